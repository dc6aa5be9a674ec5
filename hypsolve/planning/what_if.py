"""What-if scenarios: other networks, weights and requests, each solved to find upgrades."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hypsolve import catalog
from hypsolve.formats.gguf_header import is_gguf
from hypsolve.planning.query import ModelSource, PlanQuery, solve_query, to_model, with_tier
from hypsolve.problem.deployment import Model, Node, Tier
from hypsolve.problem.result import Result
from hypsolve.problem.units import GIB
from hypsolve.solve import METHODS

MIN_GAIN = 1e-3  # of an upgrade that is reported
LIGHTER = {
    "fp16": ("int8", "gptq-int4"), "bf16": ("int8", "gptq-int4"), "fp8": ("gptq-int4",),
    "int8": ("gptq-int4",), "q8_0": ("q5_k_m", "q4_k_m"), "q5_k_m": ("q4_k_m",),
}  # fmt: skip
LIGHTER_GGUF = ("q8_0", "q5_k_m", "q4_k_m")  # than the types that a GGUF file stores
Kind = TypeVar("Kind")
MORE_GIB = (1, 4, 16)
MAX_GIB = 1024  # added to a node so that a model fits
SEARCH_S = 1.0  # for one scenario, where splits are simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A what-if scenario that improves the plan, or makes the model fit.

    Attributes
    ----------
    what : str
        The scenario in words.
    objective_s : float
        Objective of the best split in the scenario.
    gain : float
        Share of the objective that it saves; nan if nothing fits without it.
    """

    what: str
    objective_s: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A query other than the one that was asked.

    Attributes
    ----------
    what : str
        The difference in words.
    query : PlanQuery
    group : str
        Scenarios of one group are ordered from the smallest to the largest. A larger one is
        reported only if it is better than all smaller ones. Empty: no group.
    """

    what: str
    query: PlanQuery
    group: str = ""


def find_upgrades(
    query: PlanQuery, before: Result, lighter: Mapping[str, Model] | None = None
) -> Iterator[tuple[Scenario, Upgrade | None]]:
    """Solve what-if scenarios one by one.

    Parameters
    ----------
    query : PlanQuery
    before : Result
        Its solution.
    lighter : mapping, optional
        The model in formats that take fewer bytes, by name of the format.

    Yields
    ------
    Scenario, Upgrade or None
        None: the scenario does not help.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C, also if it ended the search for one scenario.
    """
    quick = query
    if query.method is not None and METHODS[query.method].exact:  # same optimum, in no time
        method = None if query.is_simulated else "hypsplit_dp"
        quick = replace(query, method=method, options={})
    if query.is_simulated:
        quick = replace(quick, time_limit_s=min(query.time_limit_s, SEARCH_S))
    before_s, best_s = before.objective_s, dict[str, float]()
    fits = before.partition is not None
    for scenario in scenarios(quick, fits=fits, lighter=lighter or {}):
        solution = solve_query(scenario.query)
        if solution.interrupted:
            raise KeyboardInterrupt
        value_s = solution.result.objective_s
        to_beat_s = min(before_s, best_s.get(scenario.group, math.inf))
        if solution.result.partition is None or value_s >= to_beat_s * (1 - MIN_GAIN):
            yield scenario, None
            continue
        if scenario.group:
            best_s[scenario.group] = value_s
        gain = 1 - value_s / before_s if math.isfinite(before_s) else math.nan
        yield scenario, Upgrade(what=scenario.what, objective_s=value_s, gain=gain)


def lighter_models(source: ModelSource, weights: str | None) -> dict[str, Model]:
    """Return a model, given by name or path, in formats lighter than `weights`."""
    if isinstance(source, Model):
        return {}
    n_bytes = to_model(source, weights).weight_bytes
    names = LIGHTER.get(catalog.weight_format(weights or "fp16").name, ())
    if weights is None and Path(source).is_file() and is_gguf(Path(source)):
        names = LIGHTER_GGUF
    models = {name: to_model(source, name) for name in names}
    # a file may already store its weights in such a format
    return {name: each for name, each in models.items() if each.weight_bytes < 0.99 * n_bytes}


def scenarios(
    query: PlanQuery, *, fits: bool, lighter: Mapping[str, Model]
) -> Iterator[Scenario]:
    """Yield the scenarios that may improve a query, or make it fit."""
    for name, model in lighter.items():
        yield Scenario(what=f"weights in {name}", query=replace(query, model=model))
    if not fits:
        yield from _smaller_requests(query)
    for k in range(len(query.network.network.tiers)):
        yield from _of_tier(query, k, fits=fits)


def _of_tier(query: PlanQuery, k: int, *, fits: bool) -> Iterator[Scenario]:
    network, tiers = query.network, query.network.network.tiers
    tier = tiers[k]
    limits = network.min_blocks or (None,) * len(tiers)
    may_be_empty = len(tiers) > 1 and query.objective != "p0"  # which has no empty stages
    if may_be_empty and limits[k] != 0:
        yield _on_network(
            query,
            f"no block on {tier.name!r} (min_blocks = 0), if that is better",
            min_blocks=(*limits[:k], 0, *limits[k + 1 :]),
        )
    if fits:
        for gib in MORE_GIB:
            yield _with_memory(query, k, gib)
    else:
        yield from _min_memory(query, k)
    if len(tier.nodes) > 1 and network.may_be_stages(k):
        yield Scenario(
            what=f"nodes of {tier.name!r} as stages in a row",
            query=replace(query, network=network.in_a_row(k, tier.nodes)),
        )
    if network.max_blocks and network.max_blocks[k] is not None:
        yield _on_network(
            query,
            f"no max_blocks on {tier.name!r}",
            max_blocks=(*network.max_blocks[:k], None, *network.max_blocks[k + 1 :]),
        )
    taken = sum(1 if limit is None else limit for limit in limits)
    has_room = taken < query.model.n_blocks  # a new tier hosts at least one block
    for what, node in _kinds(tier).items():
        more = replace(node, name=_new_name(query, "more"))
        yield Scenario(
            what=f"one more {what} in {tier.name!r}",
            group=f"{what} {k}",
            query=replace(query, network=with_tier(network, k, nodes=(*tier.nodes, more))),
        )
        if has_room and (len(tiers) > 1 or network.inner_link(k) is not None):
            yield _with_stage(query, k, more, what)
    if tier.link is not None:
        link = replace(tier.link, bytes_per_s=2 * tier.link.bytes_per_s)
        yield Scenario(
            what=f"twice the rate of the link from {tier.name!r}",
            query=replace(query, network=with_tier(network, k, link=link)),
        )


def _kinds(tier: Tier) -> dict[str, Node]:
    """Return one node of each kind in a tier, by a name for the kind."""
    kinds = {(node.gpu.name, node.usable_bytes): node for node in tier.nodes}
    names = [name for name, _ in kinds]
    return {
        name if names.count(name) == 1 else f"{name} with {n_bytes / GIB:.3g} GiB free": node
        for (name, n_bytes), node in kinds.items()
    }


def _smaller_requests(query: PlanQuery) -> Iterator[Scenario]:
    """Yield the largest number of sequences that fits, and the longest sequences that fit."""

    def fewer(n: int) -> Scenario:
        what = f"room for {n} sequences at once, not {query.concurrency}"
        return Scenario(what=what, query=replace(query, concurrency=n))

    def shorter(tokens: int) -> Scenario:
        output = min(query.output_tokens, tokens - 1)
        return Scenario(
            what=f"sequences of {tokens} tokens, not {query.tokens}",
            query=replace(query, prompt_tokens=tokens - output, output_tokens=output),
        )

    yield from _largest(fewer, 1, query.concurrency)
    yield from _largest(shorter, 2, query.tokens)


def _min_memory(query: PlanQuery, k: int) -> Iterator[Scenario]:
    """Yield the fewest GiB to add to each node of a tier so that the model fits."""
    return _largest(lambda spared: _with_memory(query, k, MAX_GIB - spared), 0, MAX_GIB)


def _largest(at: Callable[[int], Scenario], low: int, end: int) -> Iterator[Scenario]:
    """Yield the scenario of the largest number in ``low..end - 1`` that fits, if any does."""
    if end <= low or not _fits(at(low)):
        return
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (middle, end) if _fits(at(middle)) else (low, middle)
    yield at(low)


def _fits(scenario: Scenario) -> bool:
    quick = replace(scenario.query, objective="bottleneck", method="hypsplit_dp", options={})
    return solve_query(quick).result.partition is not None


def _on_network(query: PlanQuery, what: str, **changes: Any) -> Scenario:
    return Scenario(what=what, query=replace(query, network=replace(query.network, **changes)))


def _with_memory(query: PlanQuery, k: int, gib: int) -> Scenario:
    tier = query.network.network.tiers[k]
    nodes = tuple(_grown(node, gib * GIB) for node in tier.nodes)
    return Scenario(
        what=f"{gib} GiB more on each node of {tier.name!r}",
        group=f"memory {k}",
        query=replace(query, network=with_tier(query.network, k, nodes=nodes)),
    )


def _grown(node: Node, more_bytes: float) -> Node:
    has = node.gpu.memory_bytes if node.memory_bytes is None else node.memory_bytes
    return replace(node, memory_bytes=has + more_bytes)


def _with_stage(query: PlanQuery, k: int, node: Node, what: str) -> Scenario:
    """Add a node as a tier of its own behind tier `k`, linked as nodes of that tier are."""
    network, tiers = query.network, list(query.network.network.tiers)
    link = network.inner_link(k) or tiers[k].link or tiers[k - 1].link
    behind = Tier(name=_new_name(query, "tier"), nodes=(node,), link=tiers[k].link)
    tiers[k : k + 1] = [replace(tiers[k], link=link), behind]
    scenario = _on_network(
        query,
        f"one more {what} as a tier of its own behind {tiers[k].name!r}",
        network=replace(network.network, tiers=tuple(tiers)),
        min_blocks=_with_gap(network.min_blocks, k + 1),
        max_blocks=_with_gap(network.max_blocks, k + 1),
        inner_links=_with_gap(network.inner_links, k + 1),
    )
    return replace(scenario, group=f"{what} {k}")


def _with_gap(of_tiers: tuple[Kind | None, ...], at: int) -> tuple[Kind | None, ...]:
    return (*of_tiers[:at], None, *of_tiers[at:]) if of_tiers else ()


def _new_name(query: PlanQuery, word: str) -> str:
    tiers = query.network.network.tiers
    names = {name for tier in tiers for name in (tier.name, *(n.name for n in tier.nodes))}
    return next(name for i in range(len(names) + 1) if (name := f"{word}-{i}") not in names)
