"""Read the pipelines of a router from the file of a plan or of a placement."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes
from hypsolve.router.pipeline import RoutedPipeline
from hypsolve.router.requests import MAX_COUNT

VERSIONS = {"hypsolve-placement": 1, "hypsolve-plan": 3}


@dataclass(frozen=True, slots=True)
class PlannedPipelines:
    """Pipelines of a plan, with what it forecasts of them.

    Attributes
    ----------
    pipelines : tuple of RoutedPipeline
    machines : tuple of tuple of str
        Machines or nodes of each.
    output_tokens : float
        Mean output that was planned for.
    """

    pipelines: tuple[RoutedPipeline, ...]
    machines: tuple[tuple[str, ...], ...]
    output_tokens: float

    def number(self, owner: str, given: str) -> int:
        """Return the number, from 0, of a pipeline that is named by number or machine.

        Raises
        ------
        ValueError
            If there is no such pipeline, or the machine is in several.
        """
        n = len(self.pipelines)
        if given.isascii() and given.isdigit():
            if not 1 <= int(given[:9]) <= n:
                raise ValueError(f"{owner}: pipeline must be from 1 to {n}, got {given[:20]}")
            return int(given) - 1
        found = [p for p, names in enumerate(self.machines) if given in names]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(p + 1) for p in found)
            raise ValueError(
                f"{owner}: {given!r} is in pipelines {numbers}: give a number in its place"
            )
        known = ", ".join(dict.fromkeys(name for names in self.machines for name in names))
        raise ValueError(f"{owner}: no pipeline has {given!r:.60}; machines are {known:.300}")

    def urls(self, given: Sequence[str]) -> list[str]:
        """Return the address of each pipeline, from words ``NAME_OR_NUMBER=URL``.

        Raises
        ------
        ValueError
            If a word has another form, or a pipeline has no address or two.
        """
        urls: dict[int, str] = {}
        for word in given:
            name, _, url = word.partition("=")
            if not name or not url:
                raise ValueError(f"--server: must be NAME_OR_NUMBER=URL, got {word!r:.60}")
            p = self.number("--server", name)
            if p in urls:
                raise ValueError(f"--server: pipeline {p + 1} must have one address, got two")
            urls[p] = url
        missing = [
            f"{p + 1} ({' -> '.join(names)})"
            for p, names in enumerate(self.machines)
            if p not in urls
        ]
        if missing:
            raise ValueError(
                f"--server: every pipeline needs an address; none for {', '.join(missing)}:"
                f" add --server {missing[0].partition(' ')[0]}=http://HOST:PORT"
            )
        return [urls[p] for p in range(len(self.pipelines))]


def read_pipelines(
    path: str | os.PathLike[str], max_in_flight: int | None = None
) -> PlannedPipelines:
    """Read the pipelines of a plan (``plan --json``) or of a placement (``place --save``).

    A pipeline of a placement has its own forecast. Pipeline i of a plan has the i-th node in
    use of each tier, as in the exports; all share the forecast of the plan, in proportion to
    the seconds of their nodes.

    Parameters
    ----------
    path : str or path
    max_in_flight : int, optional
        Requests at once, of each pipeline. Default: as many as fit by the plan.

    Raises
    ------
    ValueError
        If the file is neither, or nothing fitted; the message names the field.
    OSError
        If the file cannot be read.
    """
    file = checked_path("plan", path)
    document = parse_json(file, read_bytes(file, MAX_BYTES))
    kind = document.get("format") if isinstance(document, dict) else None
    if kind not in VERSIONS:
        raise ValueError(f"{file}: format must be {' or '.join(VERSIONS)}, got {kind!r:.60}")
    if document.get("version") != VERSIONS[kind]:
        raise ValueError(
            f"{file}: version must be {VERSIONS[kind]}, got {document.get('version')!r:.60}"
        )
    try:
        read = _of_placement if kind == "hypsolve-placement" else _of_plan
        found = read(document, max_in_flight)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: no plan of this version: {error!r:.100}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except ArithmeticError:
        raise ValueError(
            f"{file}: tokens, seconds and rates must be numbers below 1e300"
        ) from None
    if not found.pipelines:
        raise ValueError(f"{file}: pipelines must hold at least one, got none: nothing fits")
    return found


def _of_placement(document: Mapping[str, Any], limit: int | None) -> PlannedPipelines:
    n_prompt, n_output = _tokens(document, "prompt_tokens"), _tokens(document, "output_tokens")
    pipelines, machines = [], []
    for p, table in enumerate(document["pipelines"]):
        names = tuple(stage["machine"] for stage in table["stages"])
        rate = _positive(table["requests_per_s"], table["fluid_requests_per_s"], 1.0)
        mean = {
            name: None if table[name] is None else table[name]["mean"]
            for name in ("ttft_s", "tpot_s")
        }
        # without any forecast a request takes all the time that its rate leaves
        alone_s = 1 / rate
        ttft_s = _positive(table["fluid_ttft_s"], mean["ttft_s"], alone_s / 2)
        tpot_s = _positive(table["fluid_tpot_s"], mean["tpot_s"], alone_s / 2 / n_output)
        pipelines.append(
            _seed(
                p, names, ttft_s, tpot_s, n_prompt, n_output, rate,
                limit or _largest(document, table["max_sequences"]),
            )
        )  # fmt: skip
        machines.append(names)
    return PlannedPipelines(tuple(pipelines), tuple(machines), n_output)


def _of_plan(document: Mapping[str, Any], limit: int | None) -> PlannedPipelines:
    n_prompt, n_output = _tokens(document, "prompt_tokens"), _tokens(document, "output_tokens")
    tiers: dict[str, list[Mapping[str, Any]]] = {}
    for node in document["nodes"]:
        if node["is_used"] and node["blocks"][0] < node["blocks"][1]:
            tiers.setdefault(node["tier"], []).append(node)
    replicas = list(zip(*tiers.values(), strict=False))  # the smallest tier counts
    if not replicas:
        return PlannedPipelines((), (), n_output)
    times_s = [sum(float(node["time_s"]) for node in nodes) for nodes in replicas]
    for nodes, time_s in zip(replicas, times_s, strict=True):
        chain = " -> ".join(node["node"] for node in nodes)
        valid.real(f"nodes {chain}", "time_s", time_s, strict=True)
    speed = sum(1 / time_s for time_s in times_s)
    mean_s = len(times_s) / speed
    forecast = document["forecast"] or {}
    served = forecast.get("max_requests_per_s")
    rate = _positive(served, forecast.get("bound_requests_per_s"), speed)
    means = [(forecast.get(name) or {}).get("mean") for name in ("ttft_s", "tpot_s")]
    n_most = _positive(forecast.get("max_sequences"), math.inf)
    pipelines, machines = [], []
    for p, (nodes, time_s) in enumerate(zip(replicas, times_s, strict=True)):
        names = tuple(node["node"] for node in nodes)
        slower, share = time_s / mean_s, 1 / time_s / speed
        ttft_s = _positive(means[0], mean_s / 2) * slower
        tpot_s = _positive(means[1], mean_s / 2 / n_output) * slower
        most = None if n_most == math.inf else max(int(n_most / len(replicas)), 1)
        pipelines.append(
            _seed(
                p, names, ttft_s, tpot_s, n_prompt, n_output, rate * share,
                limit or _largest(document, most),
            )
        )  # fmt: skip
        machines.append(names)
    return PlannedPipelines(tuple(pipelines), tuple(machines), n_output)


def _seed(
    p: int, names: tuple[str, ...], ttft_s: float, tpot_s: float, n_prompt: float,
    n_output: float, rate: float, limit: int | None,
) -> RoutedPipeline:  # fmt: skip
    alone_s = ttft_s + (n_output - 1) * tpot_s
    at_once = max(rate * alone_s, 1.0)  # Little's law
    return RoutedPipeline(
        name=f"{p + 1}: {' -> '.join(names)}",
        prompt_token_s=ttft_s / n_prompt,
        output_token_s=tpot_s,
        concurrency=at_once if limit is None else min(at_once, limit),
        max_in_flight=limit,
    )


def _tokens(document: Mapping[str, Any], name: str) -> float:
    """Return a mean number of tokens of the plan."""
    number = float(document[name])
    if not 1 <= number <= MAX_COUNT:
        raise ValueError(f"{name} must be from 1 to {MAX_COUNT}, got {document[name]!r:.60}")
    return number


def _largest(document: Mapping[str, Any], n_fit: int | None) -> int | None:
    """Return how many requests run at once: as fit, and as the runtime lets run."""
    limits = [n for n in (n_fit, document["runtime"].get("max_num_seqs")) if n]
    return min(limits, default=None)


def _positive(*numbers: Any) -> float:
    """Return the first number that is positive and finite; the last one as it is."""
    for each in numbers[:-1]:
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        if is_number and 0 < each < math.inf:
            return float(each)
    return float(numbers[-1])
