"""HEFT [1]_ for task graphs, and as a baseline for a chain of blocks over tiers.

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
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.partition.heuristics import unrepaired_outcome


@dataclass(frozen=True, slots=True, eq=False)
class DagSchedule:
    """Schedule of a task graph.

    Attributes
    ----------
    processor, start_s, end_s : ndarray, shape (n_tasks,)
    rank_s : ndarray, shape (n_tasks,)
        Upward rank: mean length of the longest path from the start of the task to the end.
    makespan_s : float
    """

    processor: IntArray
    start_s: Array
    end_s: Array
    rank_s: Array
    makespan_s: float


def heft_dag(costs: ArrayLike, comm: ArrayLike, edges: ArrayLike) -> DagSchedule:
    """Schedule a task graph by decreasing upward rank and earliest finish with insertion [1]_.

    Tasks of equal rank keep the order in which they become ready. Of processors with an equal
    finish, the lowest is used.

    Parameters
    ----------
    costs : array_like, shape (n_tasks, n_processors)
        Seconds of each task on each processor.
    comm : array_like, shape (n_edges,)
        Seconds along each edge between different processors; 0 on one processor.
    edges : array_like of int, shape (n_edges, 2)
        Source and target task of each edge, counted from 0.

    Returns
    -------
    DagSchedule

    Raises
    ------
    ValueError
        If an array has the wrong shape or values, or the edges form a cycle.

    Examples
    --------
    >>> from hypsolve.solvers.joint.heft import heft_dag
    >>> schedule = heft_dag([[2, 9], [30, 4], [9, 3]], [5], [(0, 1)])
    >>> schedule.processor.tolist(), schedule.makespan_s
    ([0, 1, 1], 11.0)
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
    # A cost of 0 gives both ends of an edge one rank: a stable sort keeps them in sequence.
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
    """Return the tasks in topological order (Kahn's algorithm)."""
    waiting = np.bincount(target, minlength=n_tasks)
    after: list[list[int]] = [[] for _ in range(n_tasks)]
    for i, j in zip(source.tolist(), target.tolist(), strict=True):
        after[i].append(j)
    ready = np.flatnonzero(waiting == 0).tolist()
    for task in ready:  # the list grows during the loop
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
    """Place and schedule with HEFT, adapted to a chain of blocks over tiers.

    The request of the highest upward rank is served first, on the idle network, each block on
    the node where it finishes earliest. This fixes which tier hosts which blocks (`heft_cuts`).
    Then all (request, stage) tasks are placed in order of decreasing upward rank, each on the
    node where it finishes earliest, in a gap if one is long enough. Unlike a dispatch policy,
    the method knows all arrivals in advance.

    Parameters
    ----------
    instance : Instance
    time_limit_s, seed : float, int
        Unused: the method is deterministic and takes polynomial time.

    Returns
    -------
    Outcome
        FEASIBLE with a partition and a schedule, or INFEASIBLE. ``bound_s`` is 0 in both cases:
        the greedy placement never revises a choice, so a dead end proves nothing.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 1.0], [2.0, 2.0]]], [1, 1], [[(0, 2)], [(1, 2)]],
    ...     arrival_s=[0, 0], objective="makespan",
    ... )
    >>> hs.solve(instance, "heft").objective_s
    5.0
    """
    cuts, dead_end = _greedy_cuts(instance)
    if dead_end:
        return Outcome(Status.INFEASIBLE, message=f"this baseline does not fit: {dead_end}")
    partition = Partition(tuple(cuts))
    return Outcome(Status.FEASIBLE, partition, heft_schedule(instance, partition))


def heft_cuts(instance: Instance) -> Partition | None:
    """Return the partition that HEFT's first request fixes; None if it meets a dead end."""
    cuts, dead_end = _greedy_cuts(instance)
    return None if dead_end else Partition(tuple(cuts))


def _first_request(instance: Instance) -> int:
    """Return the request of the highest upward rank, by means over all nodes and links."""
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
    """Place the first request block by block; return its cuts and a message for a dead end.

    The message is empty if all blocks are placed.
    """
    r = _first_request(instance)
    block_s = instance.kind_s[r if len(instance.kind_s) > 1 else 0][:, instance.block_kind]
    transfer_s = instance.transfer_kind_s[r if len(instance.transfer_kind_s) > 1 else 0]
    capacity = _capacity_bytes(instance)
    cuts = [0]  # first block of every tier up to the current one
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
    """Return the memory of each node, with the rounding slack of `evaluation.can_hold`."""
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
    """Yield the tiers that may host block b, from the current tier on.

    A later tier ends the current stage at b and leaves the tiers in between empty. Enough
    blocks must be left for the minimum of every later tier, and pinned blocks must stay within
    reach.
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
        # lower bounds on the cuts behind this tier
        earliest = max(b + 1, first + least[tier]) + np.cumsum([0, *least[tier + 1 :]])
        if b + 1 - first <= most[tier] and (earliest <= instance.cut_max[tier + 1 :]).all():
            yield tier


def heft_schedule(instance: Instance, partition: Partition) -> Schedule:
    """Schedule the requests on a given partition by HEFT.

    Tasks (request, stage) are placed in order of decreasing upward rank, each on the node where
    it finishes earliest.
    """
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
    links = evaluation.transfer_s(instance, partition)  # links of empty stages count
    before = [0, *stages[:-1]]
    ways = [links[:, i:k].sum(axis=1) for i, k in zip(before, stages, strict=True)]
    delay_s = np.stack(ways, axis=1)
    order = _by_rank(service_s, delay_s, classes, instance.n_requests)
    shape = (len(stages), instance.n_requests)
    node, start_s, end_s = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
    kernels.schedule_chains(
        service_s, delay_s, instance.release_s.copy(), order,
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
    """Return tasks r * n_stages + k by decreasing upward rank, stages of a request in order."""
    n_stages = service_s.shape[1]
    rank_s = np.zeros((n_requests, n_stages))
    later_s = np.zeros(n_requests)
    for k in reversed(range(n_stages)):
        rank_s[:, k] = later_s + service_s[:, k, classes[k]].mean(axis=1)
        later_s = rank_s[:, k] + delay_s[:, k]
    return np.argsort(-rank_s.ravel(), kind="stable")


def heft_split(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Place the blocks where HEFT's first request puts them; see `heft`.

    Parameters
    ----------
    instance : Instance
    time_limit_s, seed : float, int
        Unused: the method is deterministic and takes polynomial time.

    Returns
    -------
    Outcome
        FEASIBLE with a partition, or INFEASIBLE if the greedy placement meets a dead end;
        ``bound_s`` is 0.
    """
    partition = heft_cuts(instance)
    if partition is None:
        return Outcome(
            Status.INFEASIBLE, message="this baseline's greedy placement meets a dead end"
        )
    return unrepaired_outcome(instance, list(partition.cuts))
