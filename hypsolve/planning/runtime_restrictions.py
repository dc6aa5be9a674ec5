"""`nearest_plan`: the best plan that a runtime can express."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import BY_LAYER, ONE_PIPELINE, RUNTIMES, not_expressible
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import plan, split
from hypsolve.planning.simulation_search import METHOD as SIMULATED
from hypsolve.planning.simulation_search import Tell
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Node

MAX_PIPELINES = 256  # to choose from


def nearest_plan(
    found: Plan,
    runtime: str,
    *,
    time_limit_s: float = 60.0,
    with_changes: bool = True,
    tell: Tell | None = None,
) -> Plan:
    """The best plan that a runtime can express, solved under its restrictions.

    For one pipeline, a tier keeps one node; or, where the network says how its nodes are linked
    among each other (``inner``), and neither pins nor limits blocks there, several of them as
    stages one after another, if that is better. Where stages need a layer, the first has the
    first, the last the last; tiers that may be empty are, if that is better. All such networks
    are solved, up to `MAX_PIPELINES`; of more, some.

    Parameters
    ----------
    found : Plan
    runtime : str
        One of `RUNTIMES`.
    time_limit_s, with_changes, tell
        As in `hypsolve.plan`.

    Returns
    -------
    Plan
        `found` itself if the runtime can express it. It may be of another network, and may fit
        where `found` does not: nodes in a row hold more than each alone.

    Raises
    ------
    ValueError
        If there is no plan to start from, or the network pins one of those layers elsewhere.
    """
    valid.of_type("nearest_plan", "found", found, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    if not found.fits and runtime not in ONE_PIPELINE:
        raise ValueError(f"nearest_plan: no plan to start from, {found.result.status}")
    if found.fits and not not_expressible(found, runtime):
        return found
    method = None if found.result.method == SIMULATED else found.result.method
    ask: dict[str, Any] = {
        "prompt_tokens": found.prompt_tokens,
        "output_tokens": found.output_tokens,
        "rate_per_s": found.rate_per_s,
        "concurrency": found.concurrency,
        "objective": found.objective,
        "method": method,
        "seed": found.seed,
        "tell": tell,
    }
    pipelines = _pipelines(found.network, runtime)
    sites = [
        restricted
        for site in pipelines
        for restricted in _by_layer(found, site, runtime, MAX_PIPELINES // len(pipelines))
    ]
    best = sites[0]
    if len(sites) > 1:
        limit_s = time_limit_s / len(sites)
        values = []
        for site in sites:
            _, result = split(found.model, site, time_limit_s=limit_s, **ask)
            if result.statistics.get("stopped"):
                raise KeyboardInterrupt
            values.append(result.objective_s)
        best = sites[values.index(min(values))]
    ask |= {"time_limit_s": time_limit_s, "with_changes": with_changes}
    return plan(found.model, best, **ask)


def _pipelines(site: NetworkFile, runtime: str) -> list[NetworkFile]:
    """Networks of one node a tier, if the runtime runs one pipeline.

    Of more than `MAX_PIPELINES` some: a tier is its quickest node, its largest, or all.
    """
    if runtime not in ONE_PIPELINE:
        return [site]
    options = [list(_rows(site, k)) for k in range(len(site.network.tiers))]
    if math.prod(map(len, options)) > MAX_PIPELINES:
        options = [_some(site, k) for k in range(len(options))]
    if math.prod(map(len, options)) > MAX_PIPELINES:
        options = [rows[-1:] for rows in options]
    found = []
    for chosen in itertools.product(*options):
        each = site
        for k in reversed(range(len(chosen))):  # from the end: the numbers of others stay
            each = each.in_a_row(k, chosen[k])
        found.append(each)
    return found


def _rows(site: NetworkFile, k: int) -> Iterator[tuple[Node, ...]]:
    """What a tier can be in one pipeline: a node, or several in any order; alike ones once."""
    alike: dict[tuple[GpuProfile, float], list[Node]] = {}
    for node in site.network.tiers[k].nodes:
        alike.setdefault((node.gpu, node.usable_bytes), []).append(node)
    kinds = list(alike.values())

    def rows(counts: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
        if length == 0:
            yield ()
            return
        for at, count in enumerate(counts):
            if count:
                left = (*counts[:at], count - 1, *counts[at + 1 :])
                yield from ((at, *rest) for rest in rows(left, length - 1))

    counts = tuple(map(len, kinds))
    longest = sum(counts) if site.may_be_stages(k) else 1
    every = (row for length in range(1, longest + 1) for row in rows(counts, length))
    for row in itertools.islice(every, MAX_PIPELINES + 1):
        taken = [iter(nodes) for nodes in kinds]
        yield tuple(next(taken[at]) for at in row)


def _some(site: NetworkFile, k: int) -> list[tuple[Node, ...]]:
    nodes = site.network.tiers[k].nodes
    quickest = max(nodes, key=lambda node: node.gpu.bytes_per_s)
    largest = max(nodes, key=lambda node: node.usable_bytes)
    rows: list[tuple[Node, ...]] = list(dict.fromkeys([(largest,), (quickest,)]))
    return [*rows, nodes] if site.may_be_stages(k) and len(nodes) > 1 else rows


def _by_layer(
    found: Plan, site: NetworkFile, runtime: str, max_choices: int
) -> list[NetworkFile]:
    """With a layer in every stage, if the runtime needs that, for each choice of empty tiers.

    Of more choices than `max_choices` two: none is empty, and those that are in this plan.
    """
    if runtime not in BY_LAYER:
        return [site]
    tiers = range(len(site.network.tiers))
    optional = [k for k in tiers if site.min_blocks and site.min_blocks[k] == 0]
    of_site = [tier.name for tier in site.network.tiers]
    unused = {stage.tier for stage in found.stages if not stage.blocks}
    as_found = tuple(k for k in optional if of_site[k] in unused)
    choices: list[tuple[int, ...]] = list(dict.fromkeys([(), as_found]))
    if 2 ** len(optional) <= max_choices:
        sizes = range(len(optional) + 1)
        choices = [each for n in sizes for each in itertools.combinations(optional, n)]
    sites, errors = [], []
    for choice in choices:
        if len(choice) < len(tiers):
            try:
                sites.append(_with_layers(found, site, runtime, choice))
            except ValueError as error:
                errors.append(error)
    if not sites:
        raise errors[0]
    return sites


def _with_layers(
    found: Plan, site: NetworkFile, runtime: str, empty: tuple[int, ...]
) -> NetworkFile:
    """Some tiers empty, all others with a layer."""
    names = [tier.name for tier in site.network.tiers]
    used = [name for k, name in enumerate(names) if k not in empty]
    pins = dict(site.pins)
    for layer, tier_name in ((0, used[0]), (found.model.n_blocks - 3, used[-1])):
        if pins.setdefault(layer, tier_name) != tier_name:
            raise ValueError(
                f"{runtime} needs layer {layer} in tier {tier_name!r}, but it is pinned to"
                f" {pins[layer]!r}"
            )
    for block, tier_name in pins.items():
        if tier_name not in used:
            raise ValueError(f"block {block!r} is pinned to {tier_name!r}, left empty")
    least = site.min_blocks or (None,) * len(names)
    most = site.max_blocks or (None,) * len(names)
    return replace(
        site,
        pins=pins,
        min_blocks=tuple(0 if k in empty else least[k] or None for k in range(len(names))),
        max_blocks=tuple(0 if k in empty else most[k] for k in range(len(names))),
    )
