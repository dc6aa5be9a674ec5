"""`nearest_plan`: the best plan that a runtime can express."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import BY_LAYER, ONE_PIPELINE, RUNTIMES, not_expressible
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import plan_query
from hypsolve.planning.query import PlanQuery, solve_query
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Node

MAX_PIPELINES = 256  # networks of one pipeline that are solved


@valid.suggest_keywords("nearest_plan")
def nearest_plan(
    plan: Plan,
    runtime: str,
    *,
    time_limit_s: float = 60.0,
    with_upgrades: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Return the best plan that a runtime can express, solved under its restrictions.

    The restrictions are:

    - For a runtime of one pipeline, each tier keeps one node. Several nodes of a tier may
      instead become stages one after another. The network must then state how the nodes of
      the tier are linked (``inner``), and neither pin nor limit the blocks of the tier.
    - If every stage of the runtime needs a layer, the first stage gets the first layer, and the
      last stage gets the last layer. A tier that may be empty is left out if the plan improves.

    At most `MAX_PIPELINES` of the networks that these rules allow are tried.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    time_limit_s, with_upgrades, progress
        As in `hypsolve.plan`.

    Returns
    -------
    Plan
        `plan` itself if the runtime can express `plan`; otherwise a new plan. The network of
        the new plan may differ from the network of `plan`. The new plan may fit even if `plan`
        does not, because nodes in a row hold more than each node alone.

    Raises
    ------
    ValueError
        If no plan exists to start from, or the network pins the first or the last layer to
        another stage.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
    >>> desk = hs.Node(name="desk", gpu=hs.gpu("rtx-4090"))
    >>> rack = [hs.Node(name=f"rack-{j}", gpu=hs.gpu("a10")) for j in range(2)]
    >>> tiers = (
    ...     hs.Tier(name="desk", nodes=(desk,), link=link),
    ...     hs.Tier(name="rack", nodes=tuple(rack)),
    ... )
    >>> network = hs.Network(name="home", tiers=tiers)
    >>> plan = hs.plan("llama-3-8b", network, with_upgrades=False)
    >>> near = hs.nearest_plan(plan, "vllm", with_upgrades=False)
    >>> [node.node for node in plan.nodes], [node.node for node in near.nodes]
    (['desk', 'rack-0', 'rack-1'], ['desk', 'rack-0'])
    """
    valid.of_type("nearest_plan", "plan", plan, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    if not plan.fits and runtime not in ONE_PIPELINE:
        raise ValueError(f"nearest_plan: no plan to start from, {plan.result.status}")
    if plan.fits and not not_expressible(plan, runtime):
        return plan
    query = replace(plan.query, time_limit_s=time_limit_s)
    pipelines = _pipelines(plan.network, runtime)
    queries = [
        replace(query, network=restricted)
        for network in pipelines
        for restricted in _by_layer(plan, network, runtime, MAX_PIPELINES // len(pipelines))
    ]
    best = queries[0] if len(queries) == 1 else _best_of(queries, time_limit_s, progress)
    return plan_query(best, with_upgrades=with_upgrades, progress=progress)


def _best_of(
    queries: list[PlanQuery], time_limit_s: float, progress: Progress | None
) -> PlanQuery:
    """Return the query with the least objective; all share the time limit."""
    values = []
    for query in queries:
        quick = replace(query, time_limit_s=time_limit_s / len(queries))
        solution = solve_query(quick, progress)
        if solution.interrupted:
            raise KeyboardInterrupt
        values.append(solution.result.objective_s)
    return queries[values.index(min(values))]


def _pipelines(network: NetworkFile, runtime: str) -> list[NetworkFile]:
    """Return the networks of one node per tier, if the runtime runs one pipeline.

    If there are more than `MAX_PIPELINES`, a tier is only its fastest node, its largest node,
    or all nodes in a row.
    """
    if runtime not in ONE_PIPELINE:
        return [network]
    options = [list(_rows(network, k)) for k in range(len(network.network.tiers))]
    if math.prod(map(len, options)) > MAX_PIPELINES:
        options = [_some(network, k) for k in range(len(options))]
    if math.prod(map(len, options)) > MAX_PIPELINES:
        options = [rows[-1:] for rows in options]
    networks = []
    for chosen in itertools.product(*options):
        each = network
        for k in reversed(range(len(chosen))):  # so that indices of earlier tiers stay valid
            each = each.in_a_row(k, chosen[k])
        networks.append(each)
    return networks


def _rows(network: NetworkFile, k: int) -> Iterator[tuple[Node, ...]]:
    """Yield the rows that a tier can be in a pipeline: a node, or several in any order.

    Rows that differ only by nodes of one kind are yielded once.
    """
    alike: dict[tuple[GpuProfile, float], list[Node]] = {}
    for node in network.network.tiers[k].nodes:
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
    longest = sum(counts) if network.may_be_stages(k) else 1
    every = (row for length in range(1, longest + 1) for row in rows(counts, length))
    for row in itertools.islice(every, MAX_PIPELINES + 1):
        taken = [iter(nodes) for nodes in kinds]
        yield tuple(next(taken[at]) for at in row)


def _some(network: NetworkFile, k: int) -> list[tuple[Node, ...]]:
    nodes = network.network.tiers[k].nodes
    fastest = max(nodes, key=lambda node: node.gpu.bytes_per_s)
    largest = max(nodes, key=lambda node: node.usable_bytes)
    rows: list[tuple[Node, ...]] = list(dict.fromkeys([(largest,), (fastest,)]))
    return [*rows, nodes] if network.may_be_stages(k) and len(nodes) > 1 else rows


def _by_layer(
    plan: Plan, network: NetworkFile, runtime: str, max_choices: int
) -> list[NetworkFile]:
    """Return a network with a layer in every stage for each choice of empty tiers.

    If there are more than `max_choices`, only two are made: no tier is empty, or the tiers that
    are empty in the plan. A runtime that needs no layer in a stage gets the network itself.
    """
    if runtime not in BY_LAYER:
        return [network]
    tiers = range(len(network.network.tiers))
    optional = [k for k in tiers if network.min_blocks and network.min_blocks[k] == 0]
    tier_names = [tier.name for tier in network.network.tiers]
    unused = {stage.tier for stage in plan.stages if not stage.blocks}
    as_planned = tuple(k for k in optional if tier_names[k] in unused)
    choices: list[tuple[int, ...]] = list(dict.fromkeys([(), as_planned]))
    if 2 ** len(optional) <= max_choices:
        sizes = range(len(optional) + 1)
        choices = [each for n in sizes for each in itertools.combinations(optional, n)]
    networks, errors = [], []
    for choice in choices:
        if len(choice) < len(tiers):
            try:
                networks.append(_with_layers(plan, network, runtime, choice))
            except ValueError as error:
                errors.append(error)
    if not networks:
        raise errors[0]
    return networks


def _with_layers(
    plan: Plan, network: NetworkFile, runtime: str, empty: tuple[int, ...]
) -> NetworkFile:
    """Return a copy of a network with some tiers empty, and a layer in each of the others."""
    names = [tier.name for tier in network.network.tiers]
    used = [name for k, name in enumerate(names) if k not in empty]
    pins = dict(network.pins)
    for layer, tier_name in ((0, used[0]), (plan.model.n_blocks - 3, used[-1])):
        if pins.setdefault(layer, tier_name) != tier_name:
            raise ValueError(
                f"{runtime} needs layer {layer} in tier {tier_name!r}, but it is pinned to"
                f" {pins[layer]!r}"
            )
    for block, tier_name in pins.items():
        if tier_name not in used:
            raise ValueError(f"block {block!r} is pinned to {tier_name!r}, left empty")
    lowest = network.min_blocks or (None,) * len(names)
    highest = network.max_blocks or (None,) * len(names)
    return replace(
        network,
        pins=pins,
        min_blocks=tuple(0 if k in empty else lowest[k] or None for k in range(len(names))),
        max_blocks=tuple(0 if k in empty else highest[k] for k in range(len(names))),
    )
