"""HEFT [1]_: for any task graph, and adapted to a chain of blocks over tiers, a baseline.

References
----------
.. [1] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task
   scheduling for heterogeneous computing", IEEE Trans. Parallel Distrib. Syst. 13(3), 2002.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import (
    Instance,
    Objective,
    StageRule,
)
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.partition.heuristics import unrepaired_outcome


@dataclass(frozen=True, slots=True, eq=False)
class DagSchedule:
    """Where and when each task of a graph runs; arrays of shape (n_tasks,)."""

    processor: IntArray
    start_s: Array
    end_s: Array
    rank_s: Array  # upward rank
    makespan_s: float


def heft_dag(costs: ArrayLike, comm: ArrayLike, edges: ArrayLike) -> DagSchedule:
    """Schedule a task graph: decreasing upward rank, insertion-based earliest finish [1]_.

    Ties in rank keep the order in which tasks become ready, ties in finish go to the lowest
    processor.

    Parameters
    ----------
    costs : array_like, shape (n_tasks, n_processors)
        Seconds of each task on each processor.
    comm : array_like, shape (n_edges,)
        Seconds along each edge between different processors; nothing on the same one.
    edges : array_like of int, shape (n_edges, 2)
        (from, to), tasks counted from 0.

    Returns
    -------
    DagSchedule

    Raises
    ------
    ValueError
        If an array has the wrong shape or values, or the edges form a cycle.
    """
    from hypsolve.kernels import heft as kernels

    cost = valid.reals("heft", "costs", costs, (None, None))
    if not cost.size:
        raise ValueError(f"heft: costs must hold tasks and processors, got shape {cost.shape}")
    comm_s = valid.reals("heft", "comm", comm, (None,))
    pairs = edges if np.size(edges) else np.zeros((0, 2))
    ends = valid.reals("heft", "edges", pairs, (len(comm_s), 2))
    n_tasks = len(cost)
    if (ends % 1).any() or (ends >= n_tasks).any():
        raise ValueError(f"heft: edges must hold whole numbers below {n_tasks}")
    source, target = ends.astype(np.int64).T
    topological = _topological(n_tasks, source, target)
    rank_s = cost.mean(axis=1)
    out = [np.flatnonzero(source == task) for task in range(n_tasks)]
    for task in reversed(topological):
        later = comm_s[out[task]] + rank_s[target[out[task]]]
        rank_s[task] += later.max(initial=0.0)
    # costs of 0 make ranks equal along an edge, hence stable, from a topological order
    order = np.array(topological)[np.argsort(-rank_s[topological], kind="stable")]
    by_target = np.argsort(target, kind="stable")
    first_in = np.searchsorted(target[by_target], np.arange(n_tasks + 1))
    processor = np.zeros(n_tasks, np.int64)
    start_s, end_s = np.zeros(n_tasks), np.zeros(n_tasks)
    kernels.schedule_dag(
        cost.copy(), order, first_in, source[by_target], comm_s[by_target],
        processor, start_s, end_s,
    )  # fmt: skip
    return DagSchedule(processor, start_s, end_s, rank_s, float(end_s.max()))


def _topological(n_tasks: int, source: IntArray, target: IntArray) -> list[int]:
    waiting = np.bincount(target, minlength=n_tasks)
    after: list[list[int]] = [[] for _ in range(n_tasks)]
    for i, j in zip(source.tolist(), target.tolist(), strict=True):
        after[i].append(j)
    ready = np.flatnonzero(waiting == 0).tolist()
    for task in ready:  # grows while it is read
        for later in after[task]:
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)
    if len(ready) < n_tasks:
        raise ValueError(
            f"heft: edges must not form a cycle, got one through task {int(waiting.argmax())}"
        )
    return ready


def heft(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Place and schedule with HEFT, adapted to chains of blocks over tiers.

    The first request in HEFT's order, the one of the highest upward rank, is served on the idle
    network, each block where it finishes earliest, and so fixes which tier hosts which blocks
    (`heft_cuts`). Then all (request, stage) tasks follow in order of decreasing upward rank,
    each on the node where it finishes earliest, in a gap if one is long enough. Unlike a
    dispatch policy it knows all arrivals beforehand. ``bound_s`` is 0.

    Parameters
    ----------
    instance : Instance
    time_limit_s, seed : float, int
        Common to all methods; unused, for this one is deterministic and polynomial.

    Returns
    -------
    Outcome
        FEASIBLE with a partition and a schedule, or INFEASIBLE: for this baseline only, which
        never takes back a choice, so ``bound_s`` is 0 then too.
    """
    cuts, dead_end = _greedy_cuts(instance)
    if dead_end:
        return Outcome(Status.INFEASIBLE, message=f"this baseline does not fit: {dead_end}")
    partition = Partition(tuple(cuts))
    return Outcome(Status.FEASIBLE, partition, heft_schedule(instance, partition))


def heft_cuts(instance: Instance) -> Partition | None:
    """Return the partition that HEFT's first request makes; None if it meets a dead end."""
    cuts, dead_end = _greedy_cuts(instance)
    return None if dead_end else Partition(tuple(cuts))


def _first_request(instance: Instance) -> int:
    """Request of the highest upward rank, with means over all nodes and over all links."""
    n_kinds = instance.kind_s.shape[2]
    blocks = np.bincount(instance.block_kind, minlength=n_kinds).astype(np.float64)
    nodes = np.bincount(instance.node_class, minlength=instance.n_classes) / instance.n_nodes
    rank_s = nodes @ (instance.kind_s @ blocks).T
    if instance.n_tiers > 1:
        n_kinds = instance.transfer_kind_s.shape[2]
        cuts = np.bincount(instance.cut_kind[1:-1], minlength=n_kinds).astype(np.float64)
        rank_s = rank_s + (instance.transfer_kind_s @ cuts).mean(axis=1)
    return int(np.argmax(rank_s))


def _greedy_cuts(instance: Instance) -> tuple[list[int], str]:
    """Cuts, or where the greedy placement of the first request came to a dead end."""
    r = _first_request(instance)
    block_s = instance.kind_s[r if len(instance.kind_s) > 1 else 0][:, instance.block_kind]
    transfer_s = instance.transfer_kind_s[r if len(instance.transfer_kind_s) > 1 else 0]
    capacity = _capacity_bytes(instance)
    cuts = [0]  # of the tiers up to the current one
    node, now_s, used_bytes = -1, 0.0, 0.0
    for b in range(instance.n_blocks):
        need = float(instance.block_bytes[b])
        best: tuple[float, int, int] | None = None
        for tier in _tiers_open_to(instance, cuts, b):
            stays = tier == len(cuts) - 1 and node >= 0
            nodes = [node] if stays else range(*instance.nodes_of(tier).indices(len(capacity)))
            links = range(len(cuts) - 1, tier)
            ready_s = now_s + sum(transfer_s[k, instance.cut_kind[b]] for k in links)
            held = need + used_bytes if stays else need
            if b == instance.n_blocks - 1 and (cuts[-1] if stays else b) == 0:
                held -= instance.tied_bytes
            for n in nodes:
                end_s = ready_s + block_s[instance.node_class[n], b]
                if held <= capacity[n] and (best is None or end_s < best[0]):
                    best = (end_s, tier, n)
        if best is None:
            return cuts, (
                f"block {b} of {need:g} bytes finds no node with room at or after tier"
                f" {instance.tier_names[len(cuts) - 1]!r} that keeps the limits of the tiers"
            )
        now_s, tier, chosen = best
        moves = tier > len(cuts) - 1 or node < 0
        used_bytes = need if moves else used_bytes + need
        cuts += [b] * (tier - len(cuts) + 1)
        node = chosen
    return cuts + [instance.n_blocks] * (instance.n_tiers + 1 - len(cuts)), ""


def _capacity_bytes(instance: Instance) -> Array:
    """What each node may hold, with the slack for rounding that `evaluation.can_hold` gives."""
    capacity = instance.node_bytes.copy()
    all_must_hold = instance.stage_rule is StageRule.SLOWEST and (
        instance.objective is Objective.BOTTLENECK
    )
    if all_must_hold:
        smallest = np.full(instance.n_tiers, math.inf)
        np.minimum.at(smallest, instance.node_tier, capacity)
        capacity = smallest[instance.node_tier]
    return capacity * (1 + evaluation.memory_slack(instance))


def _tiers_open_to(instance: Instance, cuts: list[int], b: int) -> Iterator[int]:
    """Tiers that may host block b when `cuts` are made: the current one, and later ones.

    Moving on ends the current stage at b and leaves the tiers between empty; every later tier
    must still get its least number of blocks, and pinned blocks must stay within reach.
    """
    least, most = instance.min_blocks, instance.max_blocks
    current = len(cuts) - 1
    for tier in range(current, instance.n_tiers):
        first = cuts[-1] if tier == current else b
        if tier > current:  # the stage of the tier before ends here
            length = b - (cuts[-1] if tier == current + 1 else b)
            fits = least[tier - 1] <= length <= most[tier - 1]
            if not (fits and instance.cut_min[tier] <= b <= instance.cut_max[tier]):
                return
        # the earliest that cuts tier + 1, tier + 2, ... can be
        earliest = max(b + 1, first + least[tier]) + np.cumsum([0, *least[tier + 1 :]])
        if b + 1 - first <= most[tier] and (earliest <= instance.cut_max[tier + 1 :]).all():
            yield tier


def heft_schedule(instance: Instance, partition: Partition) -> Schedule:
    """Schedule (request, stage) tasks by decreasing upward rank, where they finish earliest."""
    from hypsolve.kernels import heft as kernels

    stages = [k for k in range(instance.n_tiers) if partition.stage(k)]
    cuts = partition.cuts
    holds = [
        np.flatnonzero(evaluation.can_hold(instance, k, cuts[k], cuts[k + 1])) for k in stages
    ]
    classes = [
        instance.node_class[instance.nodes_of(k)][nodes]
        for k, nodes in zip(stages, holds, strict=True)
    ]
    service_s = np.ascontiguousarray(evaluation.service_s(instance, partition)[:, stages])
    links = evaluation.transfer_s(instance, partition)  # empty stages pay theirs too
    before = [0, *stages[:-1]]
    ways = [links[:, i:k].sum(axis=1) for i, k in zip(before, stages, strict=True)]
    delay_s = np.stack(ways, axis=1)
    order = _by_rank(service_s, delay_s, classes, instance.n_requests)
    shape = (len(stages), instance.n_requests)
    node, start_s, end_s = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
    kernels.schedule_chains(
        service_s, delay_s, instance.arrival_s.copy(), order,
        np.cumsum([0, *map(len, classes)]), np.concatenate(classes), node, start_s, end_s,
    )  # fmt: skip
    whole = (instance.n_tiers, instance.n_requests)
    all_node = np.full(whole, -1, np.int64)
    all_start_s, all_end_s = np.full(whole, math.nan), np.full(whole, math.nan)
    all_node[stages] = [nodes[row] for nodes, row in zip(holds, node, strict=True)]
    all_start_s[stages], all_end_s[stages] = start_s, end_s
    return Schedule(all_node.T, all_start_s.T, all_end_s.T)


def _by_rank(
    service_s: Array, delay_s: Array, classes: list[IntArray], n_requests: int
) -> IntArray:
    """Tasks r * n_stages + k by decreasing upward rank; those of one request stay in order."""
    n_stages = service_s.shape[1]
    rank_s = np.zeros((n_requests, n_stages))
    later_s = np.zeros(n_requests)
    for k in reversed(range(n_stages)):
        rank_s[:, k] = later_s + service_s[:, k, classes[k]].mean(axis=1)
        later_s = rank_s[:, k] + delay_s[:, k]
    return np.argsort(-rank_s.ravel(), kind="stable")


def heft_split(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """The cuts that HEFT's first request makes; see `hypsolve.solvers.joint.heft.heft`."""
    partition = heft_cuts(instance)
    if partition is None:
        return Outcome(
            Status.INFEASIBLE, message="this baseline's greedy placement meets a dead end"
        )
    return unrepaired_outcome(instance, list(partition.cuts))
