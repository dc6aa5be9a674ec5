"""Objectives and rules, straight from their definitions: `evaluate` and `check`.

This file shares no arithmetic with the solvers: they use prefix sums and tables, it sums the
blocks of a stage. Users may score and check their own decisions with it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import (
    Instance,
    LinkCost,
    Objective,
    StageRule,
)
from hypsolve.problem.solution import Partition, Schedule, Violation
from hypsolve.problem.units import show_bytes

RELATIVE_ERROR = 1e-12  # of two sums in different orders


def stage_bytes(instance: Instance, first: int, end: int) -> float:
    """Return the memory that a node needs for blocks first:end."""
    total = math.fsum(instance.block_bytes[first:end].tolist())
    return total - instance.tied_bytes if first == 0 and end == instance.n_blocks else total


def can_hold(instance: Instance, tier: int, first: int, end: int) -> NDArray[np.bool_]:
    """Return which nodes of a tier can hold blocks first:end, shape (nodes of the tier,)."""
    capacity = instance.node_bytes[instance.nodes_of(tier)]
    if first == end:
        return np.ones(len(capacity), dtype=bool)
    need = stage_bytes(instance, first, end)
    holds = need <= capacity
    return holds if holds.all() else need <= capacity * (1 + memory_slack(instance))


def memory_slack(instance: Instance) -> float:
    """Return the relative slack of memory limits: 0 for whole bytes, whose sums are exact."""
    return bytes_slack(instance.block_bytes)


def bytes_slack(block_bytes: Array) -> float:
    """Return the relative slack of limits on sums of `block_bytes`."""
    exact = block_bytes.sum() <= 2**53 and bool((block_bytes == np.rint(block_bytes)).all())
    return 0.0 if exact else RELATIVE_ERROR


def node_stage_s(instance: Instance, tier: int, first: int, end: int) -> Array:
    """Return the reference seconds of blocks first:end on each node of a tier.

    Memory is ignored. The array has shape (nodes of the tier,).
    """
    kinds = instance.block_kind[first:end]
    lowest = int(kinds.min()) if len(kinds) else 0
    counts = np.bincount(kinds - lowest)
    present = np.flatnonzero(counts)  # a stage has few of a million kinds
    node_class = instance.node_class[instance.nodes_of(tier)].tolist()
    prefix_seconds = {
        c: math.fsum(
            (instance.reference_kind_s[c, lowest + present] * counts[present]).tolist()
        )
        for c in set(node_class)
    }
    return np.array([prefix_seconds[c] for c in node_class])


def stage_s(
    instance: Instance, tier: int, first: int, end: int, rule: StageRule | str | None = None
) -> float:
    """Return the stage time of blocks first:end on a tier for the reference request.

    The outgoing link is not included.

    Parameters
    ----------
    rule : StageRule or str, optional
        Default: the rule of the instance. ``fastest``: time of the fastest node that can hold
        the stage. ``pooled``: 1 / sum(1 / t) over the nodes that can hold it, the period of
        the tier if each node serves a share of the requests in proportion to its speed.
        ``slowest``: time of the slowest node; every node must hold the stage.

    Returns
    -------
    float
        Seconds; inf if the blocks do not fit, 0 for an empty stage.
    """
    rule = (
        instance.stage_rule
        if rule is None
        else valid.one_of("stage_s", "rule", rule, StageRule)
    )
    if first == end:
        return 0.0
    holds = can_hold(instance, tier, first, end)
    times = node_stage_s(instance, tier, first, end)[holds]
    if not times.size or (rule is StageRule.SLOWEST and not holds.all()):
        return math.inf
    if rule is StageRule.SLOWEST:
        return float(times.max())
    if rule is StageRule.FASTEST or times.min() == 0:
        return float(times.min())
    with np.errstate(over="ignore"):
        return float(1 / (1 / times).sum())


def link_s(instance: Instance, link: int, cut: int) -> float:
    """Return the seconds that a link adds to the bottleneck if its stage ends at `cut`."""
    full = instance.link_cost is LinkCost.FULL
    kinds = instance.reference_transfer_kind_s if full else instance.reference_occupancy_kind_s
    return float(kinds[link, instance.cut_kind[cut]])


def bottleneck_s(instance: Instance, partition: Partition) -> float:
    """Return the largest stage time, each with its outgoing link (added or overlapped)."""
    worst = 0.0
    for k in range(instance.n_tiers):
        time_s = stage_s(instance, k, partition.cuts[k], partition.cuts[k + 1])
        if k < instance.n_tiers - 1:
            outgoing_s = link_s(instance, k, partition.cuts[k + 1])
            time_s = max(time_s, outgoing_s) if instance.overlap else time_s + outgoing_s
        worst = max(worst, time_s)
    return worst


def _fastest_and_transfers(
    instance: Instance, partition: Partition
) -> tuple[list[float], float]:
    cuts = partition.cuts
    stages = [
        stage_s(instance, k, cuts[k], cuts[k + 1], StageRule.FASTEST)
        for k in range(instance.n_tiers)
    ]
    transfer_s = instance.reference_transfer_kind_s
    links = [transfer_s[k, instance.cut_kind[cuts[k + 1]]] for k in range(instance.n_tiers - 1)]
    return stages, math.fsum(links)


def path_s(instance: Instance, partition: Partition) -> float:
    """Return the latency of the reference request on an idle network.

    It visits the fastest node of every tier and pays every transfer.
    """
    stages, transfers_s = _fastest_and_transfers(instance, partition)
    return math.fsum(stages) + transfers_s if math.inf not in stages else math.inf


def p0_s(instance: Instance, partition: Partition) -> float:
    """Return the objective of the paper's problem P0.

    It is the largest stage time on the fastest nodes, plus all transfers.
    """
    stages, transfers_s = _fastest_and_transfers(instance, partition)
    return max(stages) + transfers_s


def service_s(instance: Instance, partition: Partition) -> Array:
    """Return the seconds of each stage, shape (n_requests or 1, n_tiers, n_classes)."""
    n_kinds = instance.kind_s.shape[2]
    counts = np.array(
        [
            np.bincount(instance.block_kind[i:j], minlength=n_kinds)
            for i, j in zip(partition.cuts, partition.cuts[1:], strict=False)
        ],
        dtype=np.float64,
    )
    return np.einsum("tk,rck->rtc", counts, instance.kind_s)


def transfer_s(instance: Instance, partition: Partition) -> Array:
    """Return the transfer seconds of each link, shape (n_requests or 1, n_tiers - 1)."""
    kinds = instance.cut_kind[list(partition.cuts[1:-1])]
    return instance.transfer_kind_s[:, np.arange(instance.n_tiers - 1), kinds]


def completion_s(schedule: Schedule) -> Array:
    """Return the end of each request's last stage, in seconds from the first arrival.

    Shape (n_requests,).
    """
    return np.fmax.reduce(schedule.end_s, axis=1)


def latency_s(instance: Instance, schedule: Schedule) -> Array:
    """Return completion minus arrival of each request in seconds, shape (n_requests,)."""
    return completion_s(schedule) - instance.release_s


def mean_latency_s(instance: Instance, schedule: Schedule) -> float:
    """Return the mean latency in seconds."""
    return float(latency_s(instance, schedule).mean())


def makespan_s(schedule: Schedule) -> float:
    """Return the last completion, in seconds from the first arrival."""
    return float(completion_s(schedule).max())


def evaluate(
    instance: Instance,
    partition: Partition,
    schedule: Schedule | None = None,
    objective: Objective | str | None = None,
) -> float:
    """Return the objective value of a decision.

    The decision need not be legal: `check` decides that. A stage that fits on no node costs
    inf.

    Parameters
    ----------
    instance : Instance
    partition : Partition
    schedule : Schedule, optional
        Needed for the objectives ``mean_latency`` and ``makespan``.
    objective : Objective or str, optional
        Default: the objective of the instance.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValueError
        If the decision does not have the instance's numbers of tiers, blocks and requests, or
        if the objective needs a schedule and there is none.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 2.0, 3.0]]], [1, 1, 1], [[(0, 2)], [(0, 2)]]
    ... )
    >>> hs.evaluate(instance, hs.Partition((0, 2, 3)))
    3.0
    >>> hs.evaluate(instance, hs.Partition((0, 2, 3)), objective="path")
    6.0
    """
    if objective is None:
        objective = instance.objective
    objective = valid.one_of("evaluate", "objective", objective, Objective)
    require_shape(instance, partition, schedule)
    if objective.is_scheduled:
        if schedule is None:
            raise ValueError(f"evaluate: objective {objective} needs a schedule, got None")
        if objective is Objective.MAKESPAN:
            return makespan_s(schedule)
        return mean_latency_s(instance, schedule)
    score = {Objective.BOTTLENECK: bottleneck_s, Objective.PATH: path_s, Objective.P0: p0_s}
    return score[objective](instance, partition)


def require_shape(
    instance: Instance, partition: Partition, schedule: Schedule | None = None
) -> None:
    """Raise ValueError unless the decision has the instance's tiers, blocks and requests."""
    valid.of_type("decision", "instance", instance, Instance)
    valid.of_type("decision", "partition", partition, Partition)
    if schedule is not None:
        valid.of_type("decision", "schedule", schedule, Schedule)
    if partition.n_tiers != instance.n_tiers or partition.cuts[-1] != instance.n_blocks:
        raise ValueError(
            f"partition: cuts must have {instance.n_tiers + 1} entries and end at"
            f" {instance.n_blocks}, got {partition.cuts}"
        )
    shape = (instance.n_requests, instance.n_tiers)
    if schedule is not None and schedule.node.shape != shape:
        raise ValueError(f"schedule: node must have shape {shape}, got {schedule.node.shape}")


def check(
    instance: Instance, partition: Partition, schedule: Schedule | None = None
) -> list[Violation]:
    """Return the rules that a decision breaks; an empty list means that it is legal.

    Parameters
    ----------
    instance : Instance
    partition : Partition
    schedule : Schedule, optional
        Without it only the partition is checked.

    Returns
    -------
    list of Violation
        A rule of the schedule appears once per tier, for the first request that breaks it.

    Raises
    ------
    ValueError
        If the decision does not have the instance's numbers of tiers, blocks and requests.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 2.0, 3.0]]], [1, 1, 1], [[(0, 2)], [(0, 2)]]
    ... )
    >>> hs.check(instance, hs.Partition((0, 2, 3)))
    []
    >>> print(hs.check(instance, hs.Partition((0, 0, 3)))[0])
    blocks: tier 'tier-0' must host 1 to 3 blocks, got 0
    """
    require_shape(instance, partition, schedule)
    found = list(_check_partition(instance, partition))
    if schedule is not None:
        found += _check_schedule(instance, partition, schedule)
    return found


def _check_partition(instance: Instance, partition: Partition) -> list[Violation]:
    found = []
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        tier = f"tier {instance.tier_names[k]!r}"
        least, most = int(instance.min_blocks[k]), int(instance.max_blocks[k])
        if not least <= j - i <= most:
            found.append(
                Violation("blocks", f"{tier} must host {least} to {most} blocks, got {j - i}")
            )
        low, high = int(instance.cut_min[k + 1]), int(instance.cut_max[k + 1])
        if not low <= j <= high:
            found.append(
                Violation("pinned", f"{tier} must end at cut {low} to {high}, got {j}")
            )
        holds = can_hold(instance, k, i, j)
        # under `slowest`, a node that cannot hold the stage makes the bottleneck infinite
        all_must = instance.stage_rule is StageRule.SLOWEST and (
            instance.objective is Objective.BOTTLENECK
        )
        if not (holds.all() if all_must else holds.any()):
            found.append(
                Violation(
                    "memory",
                    f"{tier}: blocks {i}:{j} need {show_bytes(stage_bytes(instance, i, j))},"
                    f" its {'smallest' if all_must else 'largest'} node has"
                    f" {show_bytes(_extreme(instance, k, all_must))}",
                )
            )
    return found


def _extreme(instance: Instance, tier: int, smallest: bool) -> float:
    capacity = instance.node_bytes[instance.nodes_of(tier)]
    return float(capacity.min() if smallest else capacity.max())


def _check_schedule(
    instance: Instance, partition: Partition, schedule: Schedule
) -> list[Violation]:
    found: list[Violation] = []
    service = service_s(instance, partition)
    links = np.broadcast_to(
        transfer_s(instance, partition), (instance.n_requests, instance.n_tiers - 1)
    )
    ready_s = instance.release_s
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        if i == j:
            found += _check_empty(instance, schedule, k)
        else:
            holds = can_hold(instance, k, i, j)
            found += _check_tier(instance, schedule, k, holds, service[:, k], ready_s)
            ready_s = schedule.end_s[:, k]
        if k < instance.n_tiers - 1:
            ready_s = ready_s + links[:, k]
    return found


def _check_empty(instance: Instance, schedule: Schedule, k: int) -> list[Violation]:
    used = (
        (schedule.node[:, k] != -1)
        | ~np.isnan(schedule.start_s[:, k])
        | ~np.isnan(schedule.end_s[:, k])
    )
    return _first(instance, used, "empty stage", k, "must have node -1 and times nan", schedule)


def _check_tier(
    instance: Instance,
    schedule: Schedule,
    k: int,
    holds: NDArray[np.bool_],
    service: Array,
    ready_s: Array,
) -> list[Violation]:
    node, start, end = schedule.node[:, k], schedule.start_s[:, k], schedule.end_s[:, k]
    n_nodes = len(holds)
    outside = (node < 0) | (node >= n_nodes)
    found = _first(
        instance,
        outside,
        "node",
        k,
        f"must be on a node 0..{n_nodes - 1} of the tier",
        schedule,
    )
    if found:
        return found
    found += _first(
        instance, ~holds[node], "memory", k, "is on a node that cannot hold the stage", schedule
    )
    bad = ~(np.isfinite(start) & np.isfinite(end))
    found += _first(instance, bad, "times", k, "must have finite times", schedule)
    if bad.any():
        return found
    # rounding of sums of times as large as this request's own
    slack_s = RELATIVE_ERROR * np.maximum(np.maximum(np.abs(start), np.abs(end)), ready_s)
    early = start < ready_s - slack_s
    found += _first(instance, early, "order", k, "starts before it is ready", schedule)
    classes = instance.node_class[instance.nodes_of(k)][node]
    rows = np.arange(len(node)) if len(service) > 1 else np.zeros(len(node), np.int64)
    wrong = np.abs(end - start - service[rows, classes]) > slack_s
    found += _first(instance, wrong, "duration", k, "does not take its service time", schedule)
    # a node serves one request at a time: by start and end, each begins after the previous end
    order = np.lexsort((end, start, node))
    before, after = order[:-1], order[1:]
    overlap = np.zeros(len(node), dtype=bool)
    overlap[after] = (node[after] == node[before]) & (
        end[before] - start[after] > np.maximum(slack_s[before], slack_s[after])
    )
    found += _first(instance, overlap, "overlap", k, "starts while its node is busy", schedule)
    return found


def _first(
    instance: Instance,
    broken: NDArray[np.bool_],
    rule: str,
    k: int,
    sentence: str,
    schedule: Schedule,
) -> list[Violation]:
    """Return a violation for the first request that breaks a rule, and count the others."""
    if not broken.any():
        return []
    r = int(np.argmax(broken))
    more = f" (and {int(broken.sum()) - 1} more)" if broken.sum() > 1 else ""
    start_s, end_s = schedule.start_s[r, k], schedule.end_s[r, k]
    got = f"node {schedule.node[r, k]}, {start_s:.9g}..{end_s:.9g} s"
    return [
        Violation(
            rule,
            f"request {r} on tier {instance.tier_names[k]!r} {sentence}, got {got}{more}",
        )
    ]


def stage_service_s(instance: Instance, first: int, end: int) -> Array:
    """Return the seconds of blocks first:end, shape (n_requests or 1, n_classes)."""
    n_kinds = instance.kind_s.shape[2]
    counts = np.bincount(instance.block_kind[first:end], minlength=n_kinds)
    return np.ascontiguousarray(instance.kind_s @ counts.astype(np.float64))
