"""`nearest_plan`: the best plan that a runtime can express."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import (
    BY_LAYER,
    ONE_PIPELINE,
    RUNTIMES,
    not_expressible,
    refusals,
)
from hypsolve.planning.exporters.layout import Layout, numbered
from hypsolve.planning.forecast import Forecast
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import plan_query, warm
from hypsolve.planning.platforms import platforms_of, supported
from hypsolve.planning.query import PlanQuery, Solution, solve_fluid, solve_query
from hypsolve.planning.served_best import Choice, served_best
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Node
from hypsolve.problem.instance import Objective
from hypsolve.problem.rules import StageRule
from hypsolve.solvers.clock import Deadline

CHOICE_SHARE = 0.5  # of the time limit, to choose among the networks that are allowed
MAX_PIPELINES = 256  # networks of whole pipelines that are solved
MAX_REPLICAS = 4  # numbers of replicas up to this are all tried, then powers of 2
SIMULATED_SHARE = 0.4  # of that time, to simulate the best few networks
SAME = 1e-9  # relative difference of objectives that are equal


@dataclass(frozen=True, slots=True)
class Candidate:
    """A restricted network, and the tiers that must be empty in it."""

    network: NetworkFile
    empty: frozenset[str]


@valid.suggest_keywords("nearest_plan")
def nearest_plan(
    plan: Plan,
    runtime: str,
    *,
    time_limit_s: float = 60.0,
    with_upgrades: bool = True,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> Plan:
    """Return the best plan that a runtime can express, solved under its restrictions.

    The restrictions are:

    - For a runtime of whole pipelines, each tier keeps equally many nodes: pipeline i takes the
      i-th node of each stage. Several nodes of a tier may instead become stages one after
      another. The network must then state how the nodes of the tier are linked (``inner``),
      and neither pin nor limit the blocks of the tier.
    - If every stage of the runtime needs a layer, the first stage gets the first layer, and the
      last stage gets the last layer. A tier that may be empty is left out if the plan improves.
    - Nodes on which the runtime does not run are left out; a tier of such nodes stays empty.
    - The stages must be placed on the machines as the runtime places them.

    Where a rate is asked for (`hypsolve.planning.goal.Goal`), the best few networks are
    simulated, and the one that serves most is planned; of nearly equal ones, the one with the
    best objective. Of plans with equal objectives, the one with the fewest stages is returned,
    then the one with the most replicas. At most `MAX_PIPELINES` of the networks that these
    rules allow are tried.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    time_limit_s, with_upgrades, progress
        As in `hypsolve.plan`.
    deadline : Deadline, optional
        When all work must have ended, if that is earlier than the time limit from now on.

    Returns
    -------
    Plan
        `plan` itself if the runtime can express `plan`; otherwise a new plan. The network of
        the new plan may differ from the network of `plan`. The new plan may fit even if `plan`
        does not, because nodes in a row hold more than each node alone.

    Raises
    ------
    ValueError
        If no plan exists to start from, the runtime runs on no node, the network pins the first
        or the last layer to another stage, or no split fits the machines.

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
    if plan.fits and not not_expressible(plan, runtime):
        return plan
    candidates = _candidates(plan, runtime)
    if not plan.fits and runtime not in ONE_PIPELINE:
        raise ValueError(f"nearest_plan: no plan to start from, {plan.result.status}")
    query = replace(plan.query, time_limit_s=time_limit_s)
    if deadline is None:
        warm(query)
        deadline = Deadline(time_limit_s)
    queries = [
        replace(query, network=restricted)
        for candidate in candidates
        for restricted in _by_layer(plan, candidate, runtime, MAX_PIPELINES // len(candidates))
    ]
    best = queries[0]
    if len(queries) > 1:
        best = _best_of(queries, runtime, deadline.part(CHOICE_SHARE), progress)
    near = plan_query(best, with_upgrades=with_upgrades, progress=progress, deadline=deadline)
    # splits for other objectives are of these nodes alone, which no option asks for
    near = replace(near, alternatives=(), forecast=_with_left_out(near, plan.network))
    against = refusals(Layout.of(near), runtime) if near.fits else []
    if against:
        raise ValueError(f"nearest_plan: {runtime} can express no plan: {against[0]}")
    return near


def _with_left_out(near: Plan, network: NetworkFile) -> Forecast | None:
    """Return a plan's forecast that counts the prices of the nodes that it leaves out, too."""
    kept = {node.name for tier in near.network.network.tiers for node in tier.nodes}
    price = sum(p for name, p in network.price_per_hour.items() if name not in kept)
    if near.forecast is None or not price:
        return near.forecast
    unused = near.forecast.unused_price_per_hour
    return replace(near.forecast, unused_price_per_hour=np.nan_to_num(unused) + price)


def _best_of(
    queries: list[PlanQuery], runtime: str, deadline: Deadline, progress: Progress | None
) -> PlanQuery:
    """Return the best query that the runtime can express; all share the time that is left.

    Where a rate is asked for, the best few are simulated. Among equal objectives, fewer stages
    go first, then more replicas. If nothing fits, the first query is returned.
    """
    choices: list[Choice] = []
    why: list[str] = []
    splitting = deadline.part(1 - SIMULATED_SHARE)
    for at, query in enumerate(queries):
        limit_s = splitting.part(1 / (len(queries) - at)).limit_s
        limited = replace(query, time_limit_s=limit_s)
        if query.is_rate:  # the best few networks are simulated later
            solution, rates = solve_fluid(limited)
        else:
            solution, rates = solve_query(limited, progress), {}
        if solution.interrupted:
            raise KeyboardInterrupt
        if solution.result.partition is None:
            continue
        layout = _layout(solution)
        against = refusals(layout, runtime)
        why += against
        if not against:
            score_s = 1 / max(rates.values()) if rates else _score_s(solution, layout)
            order = (score_s, layout.n_stages, -len(layout.replicas), at)
            # the load of a simulation follows the limit of the whole query, not of its part
            choices.append(Choice(order, replace(solution, query=query)))
    if not choices and why:
        raise ValueError(f"nearest_plan: {runtime} can express no plan: {why[0]}")
    if not choices:
        return queries[0]
    return queries[int(served_best(_in_order(choices), deadline, progress).order[-1])]


def _in_order(choices: list[Choice]) -> list[Choice]:
    """Return the choices with an order in which nearly equal scores are equal."""
    ordered, last_s = [], -math.inf
    for choice in sorted(choices, key=lambda each: each.order):
        score_s, *rest = choice.order
        if score_s > last_s * (1 + SAME):
            last_s = score_s
        ordered.append(replace(choice, order=(last_s, *rest)))
    return ordered


def _score_s(solution: Solution, layout: Layout) -> float:
    """Return what is compared of a solution: its objective, for all replicas together.

    Under ``pooled``, a bottleneck is that of all nodes of a stage. Where it is that of one
    pipeline, n pipelines serve n times as many requests.
    """
    instance, objective_s = solution.result.instance, solution.result.objective_s
    of_one = instance.stage_rule is not StageRule.POOLED
    shared = of_one and instance.objective is Objective.BOTTLENECK
    return objective_s / len(layout.replicas) if shared else objective_s


def _layout(solution: Solution) -> Layout:
    """Return the layout of a split, as `Layout.of` does for a plan."""
    partition = solution.result.partition
    assert partition is not None
    used = {}
    for k, tier in enumerate(solution.deployment.network.tiers):
        holds = evaluation.can_hold(solution.instance, k, *partition.cuts[k : k + 2])
        used[tier.name] = [n.name for n, held in zip(tier.nodes, holds, strict=True) if held]
    return Layout.of_split(solution.deployment, partition.cuts, used)


def _candidates(plan: Plan, runtime: str) -> list[Candidate]:
    """Return the networks that a runtime of whole pipelines allows, or the network itself."""
    network, empty = _supported(plan, runtime)
    if runtime not in ONE_PIPELINE:
        return [Candidate(network, empty)]
    counts = _replica_counts(network, empty)
    found: list[Candidate] = []
    for n_replicas in counts:
        found += _pipelines(network, empty, n_replicas, max(MAX_PIPELINES // len(counts), 1))
    return found


def _supported(plan: Plan, runtime: str) -> tuple[NetworkFile, frozenset[str]]:
    """Return the network without nodes that the runtime does not run on, GPUs numbered.

    The tiers that have no other nodes keep them, and are named: they must be empty, as must
    those that may hold no block.
    """
    simulated = plan.deployment.runtime
    network, empty = supported("nearest_plan", plan.network, runtime, simulated)
    if empty and plan.query.objective == Objective.P0:
        platforms = ", ".join(platforms_of(runtime, simulated))
        raise ValueError(
            f"nearest_plan: {runtime} runs on {platforms}, so tier {min(empty)!r} would have to"
            " be empty, but objective p0 has no empty stages"
        )
    numbers = numbered(plan.network.network)
    tiers = tuple(
        replace(tier, nodes=tuple(replace(n, card=numbers[n.name]) for n in tier.nodes))
        for tier in network.network.tiers
    )
    most = network.max_blocks or (None,) * len(tiers)
    closed = {tier.name for tier, limit in zip(tiers, most, strict=True) if limit == 0}
    return replace(network, network=replace(network.network, tiers=tiers)), empty | closed


def _replica_counts(network: NetworkFile, empty: frozenset[str]) -> list[int]:
    """Return the numbers of replicas to try, the largest first.

    Every tier that must hold blocks has a node for each replica.
    """
    tiers = network.network.tiers
    sizes = [
        len(tier.nodes)
        for k, tier in enumerate(tiers)
        if tier.name not in empty and not _may_be_empty(network, k)
    ]
    of_all = [len(tier.nodes) for tier in tiers if tier.name not in empty]
    largest = min(sizes) if sizes else max(of_all)
    counts = {n for n in range(1, largest + 1) if n <= MAX_REPLICAS or n & (n - 1) == 0}
    return sorted(counts | {largest}, reverse=True)


def _may_be_empty(network: NetworkFile, k: int) -> bool:
    return bool(network.min_blocks) and network.min_blocks[k] == 0


def _pipelines(
    network: NetworkFile, empty: frozenset[str], n_replicas: int, max_networks: int
) -> list[Candidate]:
    """Return the networks in which every stage has one node for each replica.

    If there are too many, a tier is only its fastest nodes, its largest nodes, or all nodes in
    a row. A tier with fewer nodes than replicas is empty.
    """
    tiers = network.network.tiers
    out = empty | {tier.name for tier in tiers if len(tier.nodes) < n_replicas}
    used = [k for k, tier in enumerate(tiers) if tier.name not in out]
    options = [list(_rows(network, k, n_replicas)) for k in used]
    if math.prod(map(len, options)) > max_networks:
        options = [_some(network, k, n_replicas) for k in used]
    if math.prod(map(len, options)) > max_networks:
        options = [rows[-1:] for rows in options]
    found = []
    for chosen in itertools.product(*options):
        each = network
        for k, row in reversed(list(zip(used, chosen, strict=True))):  # indices stay valid
            each = each.in_a_row(k, row)
        found.append(Candidate(each, frozenset(out)))
    return found


Row = tuple[tuple[Node, ...], ...]  # the nodes of each stage, one for each replica


def _rows(network: NetworkFile, k: int, n_replicas: int) -> Iterator[Row]:
    """Yield the stages that a tier can be in pipelines: one stage, or several in any order.

    Rows that differ only by nodes of one kind are yielded once. The nodes of a stage in a row
    are of one kind.
    """
    kinds = _kinds(network.network.tiers[k].nodes)
    numbers = tuple(map(len, kinds))
    alone = (
        Counter(kind)
        for kind in itertools.combinations_with_replacement(range(len(kinds)), n_replicas)
    )
    single: Iterator[Row] = (
        (tuple(node for kind in counts for node in kinds[kind][: counts[kind]]),)
        for counts in alone
        if all(counts[kind] <= numbers[kind] for kind in counts)
    )
    groups = tuple(number // n_replicas for number in numbers)
    longest = sum(groups) if network.may_be_stages(k) else 1
    several = (
        _assigned(kinds, row, n_replicas)
        for length in range(2, longest + 1)
        for row in _sequences(groups, length)
    )
    return itertools.islice(itertools.chain(single, several), MAX_PIPELINES + 1)


def _kinds(nodes: Sequence[Node]) -> list[list[Node]]:
    """Return the nodes by kind, the fastest kind first."""
    alike: dict[tuple[GpuProfile, int, float], list[Node]] = {}
    for node in nodes:
        alike.setdefault((node.gpu, node.gpus, node.usable_bytes), []).append(node)
    return sorted(alike.values(), key=lambda of_kind: -_bytes_per_s(of_kind[0]))


def _bytes_per_s(node: Node) -> float:
    return node.gpus * node.gpu.bytes_per_s


def _sequences(counts: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """Yield the sequences of kinds that take each kind at most as often as there are."""
    if length == 0:
        yield ()
        return
    for at, number in enumerate(counts):
        if number:
            left = (*counts[:at], number - 1, *counts[at + 1 :])
            yield from ((at, *rest) for rest in _sequences(left, length - 1))


def _assigned(kinds: list[list[Node]], row: tuple[int, ...], n_replicas: int) -> Row:
    """Return the nodes of a row of kinds: a pipeline takes neighbours of each kind."""
    n_uses = Counter(row)
    seen: Counter[int] = Counter()
    stages = []
    for kind in row:
        firsts = range(0, n_replicas * n_uses[kind], n_uses[kind])
        stages.append(tuple(kinds[kind][first + seen[kind]] for first in firsts))
        seen[kind] += 1
    return tuple(stages)


def _some(network: NetworkFile, k: int, n_replicas: int) -> list[Row]:
    nodes = network.network.tiers[k].nodes
    by_speed = sorted(nodes, key=lambda node: -_bytes_per_s(node))
    by_size = sorted(nodes, key=lambda node: -node.gpus * node.usable_bytes)
    rows: list[Row] = [(tuple(by_size[:n_replicas]),), (tuple(by_speed[:n_replicas]),)]
    if network.may_be_stages(k):
        kinds = _kinds(nodes)
        places = {id(node): at for at, node in enumerate(nodes)}
        row = tuple(kind for kind, of in enumerate(kinds) for _ in range(len(of) // n_replicas))
        stages = _assigned(kinds, row, n_replicas)
        if len(stages) > 1:
            rows.append(tuple(sorted(stages, key=lambda stage: places[id(stage[0])])))
    return list(dict.fromkeys(rows))


def _by_layer(
    plan: Plan, candidate: Candidate, runtime: str, max_choices: int
) -> list[NetworkFile]:
    """Return a network with a layer in every stage for each choice of empty tiers.

    If there are more than `max_choices`, only two are made: no tier is empty that need not be,
    or the tiers that are empty in the plan. A runtime that needs no layer in a stage gets the
    network itself.
    """
    network, tiers = candidate.network, candidate.network.network.tiers
    must = tuple(k for k, tier in enumerate(tiers) if tier.name in candidate.empty)
    if runtime not in BY_LAYER:
        return [_limited(network, must)] if must else [network]
    optional = [k for k in range(len(tiers)) if _may_be_empty(network, k) and k not in must]
    unused = {stage.tier for stage in plan.stages if not stage.blocks}
    as_planned = tuple(k for k in optional if tiers[k].name in unused)
    choices: list[tuple[int, ...]] = list(dict.fromkeys([(), as_planned]))
    if 2 ** len(optional) <= max_choices:
        sizes = range(len(optional) + 1)
        choices = [each for n in sizes for each in itertools.combinations(optional, n)]
    networks, errors = [], []
    for choice in choices:
        if len(must) + len(choice) < len(tiers):
            try:
                networks.append(_with_layers(plan, network, runtime, (*must, *choice)))
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
    return _limited(replace(network, pins=pins), empty)


def _limited(network: NetworkFile, empty: tuple[int, ...]) -> NetworkFile:
    """Return a copy of a network with some tiers empty, and a block in each of the others."""
    names = [tier.name for tier in network.network.tiers]
    left = {names[k] for k in empty}
    for block, tier_name in network.pins.items():
        if tier_name in left:
            raise ValueError(f"block {block!r} is pinned to {tier_name!r}, left empty")
    lowest = network.min_blocks or (None,) * len(names)
    highest = network.max_blocks or (None,) * len(names)
    return replace(
        network,
        min_blocks=tuple(0 if k in empty else lowest[k] or None for k in range(len(names))),
        max_blocks=tuple(0 if k in empty else highest[k] for k in range(len(names))),
    )
