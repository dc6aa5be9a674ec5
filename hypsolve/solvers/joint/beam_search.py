"""Beam search over the schedules of one partition, one operation a level."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hypsolve.problem.arrays import IntArray
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Pace
from hypsolve.solvers.joint.decision import Decision
from hypsolve.solvers.joint.lagrangian_bound import Multipliers, min_proof
from hypsolve.solvers.joint.partition_boxes import BoxRelaxation
from hypsolve.solvers.joint.tables import JointTables

if TYPE_CHECKING:
    from hypsolve.kernels.beam_search import Level
    from hypsolve.kernels.flow_shop import DeadlineFlowShop

PARENTS = 256  # entries expanded between two selections of the best children
FIRST_PARENT_S = 1e-3  # guess of the time of an entry, before the first one is measured


class BeamSearchResult(NamedTuple):
    """The best schedule that a beam search found, and a bound on all schedules."""

    value: float  # of the best schedule better than the target; inf: none
    operations: list[tuple[int, int]]  # (request, group), in the order of their starts
    bound: float  # lower bound on every schedule, at most the target
    is_complete: bool  # nothing was dropped for want of memory or time
    n_expanded: int


def max_width(shop: "DeadlineFlowShop", memory_bytes: float) -> int:
    """Return the largest width of a beam search within the memory; 0: it does not fit."""
    from hypsolve.kernels.beam_search import entry_bytes

    n_requests, n_nodes = len(shop.release), int(shop.slot[-1])
    n_levels = n_requests * (len(shop.first) - 1)
    each = entry_bytes(n_requests, n_nodes)
    fixed = 2 * each * (PARENTS + shop.service.size)  # two levels of twice the width, and this
    return max(0, int((memory_bytes - fixed) / (4 * each + 8 * n_levels)))


def beam_search(
    shop: "DeadlineFlowShop",
    multipliers: Multipliers,
    target: float,
    width: int,
    is_stopped: Callable[[], bool],
    seed: int,
    max_compared: int,
) -> BeamSearchResult:
    """Search for a schedule better than the target, and bound all schedules from below.

    The Lagrangian bound of the multipliers bounds every partial schedule. Each level keeps the
    partial schedules with the smallest bounds that no other one dominates. A search that never
    has to drop one is exact.

    Parameters
    ----------
    shop : DeadlineFlowShop
    multipliers : Multipliers
    target : float
        Only schedules with a smaller sum of completion times are of interest. With a deadline,
        `target` is the deadline.
    width : int
        Partial schedules kept of each level. The smallest bound that is dropped bounds the
        rest; with a deadline, nothing does.
    is_stopped : callable
        Returns True once the time is up.
    seed : int
        Of the hash of partial schedules; no answer depends on it.
    max_compared : int
        Number of entries with which a new one is compared; 0: none is pruned by dominance.
    """
    from hypsolve.kernels import beam_search as kernels
    from hypsolve.kernels import subgradient

    n_requests, n_groups = shop.service.shape
    n_stages, n_nodes = len(shop.first) - 1, int(shop.slot[-1])
    ticks = multipliers.ticks
    prefix = np.empty((n_groups, multipliers.values.shape[1] + 1))
    path_cost = np.empty((n_requests, *prefix.shape))
    subgradient.prefix_sums(multipliers.values, prefix)
    scratch = np.empty((n_stages, prefix.shape[1]))
    root = subgradient.lagrangian_bound(shop, ticks, prefix, path_cost, scratch)
    has_deadline = shop.deadline < math.inf
    cutoff = min_proof(shop) if has_deadline else target  # prunes a partial schedule
    rng = np.random.default_rng(seed)
    salt = rng.integers(0, 2**63, (n_requests, n_stages + 1)).astype(np.uint64)
    n_entries = 2 * width + PARENTS + shop.service.size
    level, after = (kernels.new_level(n_entries, n_requests, n_nodes) for _ in range(2))
    buckets = np.full(2 ** max(4, math.ceil(math.log2(width))), -1, np.int32)
    kernels.set_root(shop, level, root)
    n, dropped, n_expanded = 1, math.inf, 0

    pace = Pace(FIRST_PARENT_S)

    def bound_of(smallest: float) -> float:
        """Turn the smallest bound of what is left out into a bound on every schedule."""
        if has_deadline:
            return target if smallest >= cutoff else -math.inf
        return min(target, smallest)

    def stopped() -> BeamSearchResult:
        """Bound all that is left: entries not expanded, children, and what was dropped."""
        left = float(np.concatenate([level.bound[i:n], after.bound[:n_after]]).min())
        smallest = min(dropped, below, left)
        return BeamSearchResult(math.inf, [], bound_of(smallest), False, n_expanded)

    history: list[tuple[IntArray, IntArray]] = []
    for _ in range(n_requests * n_stages):
        buckets[:] = -1
        i, n_after, below = 0, 0, cutoff
        while i < n:
            if is_stopped():
                return stopped()
            until = min(n, i + PARENTS)
            has_room = True
            while i < until and has_room:
                start, end = i, i + pace.units(until - i)
                i, n_after = kernels.expand_level(
                    shop, ticks, prefix, path_cost, level, i, end, after, n_after, buckets,
                    salt, below, max_compared,
                )  # fmt: skip
                pace.done()
                n_expanded += i - start
                has_room = i == end
                if i < until and has_room and is_stopped():
                    return stopped()
            if n_after > 2 * width:  # make no more children that would be dropped at once
                n_after, smallest = _keep_best(after, n_after, width, buckets)
                below = min(below, smallest)
        n_after, smallest = _keep_best(after, n_after, width, buckets)
        smallest = min(below, smallest)
        if smallest < cutoff:
            dropped = min(dropped, smallest)
        history.append((after.parent[:n_after].copy(), after.operation[:n_after].copy()))
        level, after, n = after, level, n_after
        if n == 0:
            break
    bound = bound_of(dropped)
    best = int(np.argmin(level.value[:n])) if n else -1
    value = float(level.value[best]) if n else math.inf
    if value >= target:  # its bound may be smaller: unused capacity is charged, too
        return BeamSearchResult(math.inf, [], bound, math.isinf(dropped), n_expanded)
    operations = _trace_back(history, best, n_groups)
    return BeamSearchResult(
        value, operations, min(value, bound), math.isinf(dropped), n_expanded
    )


def _keep_best(level: "Level", n: int, width: int, buckets: IntArray) -> tuple[int, float]:
    """Keep the `width` entries with the smallest bounds, and none that is dominated.

    Returns the number of entries left and the smallest bound dropped.
    """
    from hypsolve.kernels import beam_search as kernels

    bounds, smallest = level.bound[:n], math.inf
    alive = np.flatnonzero(bounds < math.inf)
    if len(alive) > width:
        beyond = alive[np.argpartition(bounds[alive], width)[width:]]
        smallest = float(bounds[beyond].min())
        bounds[beyond] = math.inf
    return kernels.compact(level, n, buckets), smallest


def _trace_back(
    history: list[tuple[IntArray, IntArray]], entry: int, n_groups: int
) -> list[tuple[int, int]]:
    """Return the operations (request, group) of an entry of the last level, first to last."""
    operations = []
    for parent, operation in reversed(history):
        operations.append(divmod(int(operation[entry]), n_groups))
        entry = int(parent[entry])
    return operations[::-1]


def replay_operations(
    tables: JointTables,
    cuts: tuple[int, ...],
    relaxation: BoxRelaxation,
    operations: list[tuple[int, int]],
) -> Decision:
    """Turn the operations of a beam search into a decision.

    Each operation is on the node of its group that is free first.
    """
    shop = relaxation.shop
    assert shop is not None
    n, tier_of = tables.n_requests, tables.node_tier
    node = np.full((n, tables.n_tiers), -1)
    order: list[list[int]] = [[] for _ in range(tables.n_tiers)]
    stage, ready = np.zeros(n, np.int64), relaxation.release.copy()
    free = {
        g: [(0.0, int(m)) for m in np.flatnonzero(tables.group == relaxation.groups[g])]
        for _, g in operations
    }
    for r, g in operations:
        free_at, m = min(free[g])
        end = max(free_at, ready[r]) + shop.service[r, g]
        free[g][free[g].index((free_at, m))] = (end, m)
        ready[r] = end + shop.travel[r, stage[r]]
        stage[r] += 1
        node[r, tier_of[m]] = m
        order[int(tier_of[m])].append(r)
    filled = [each or list(range(n)) for each in order]
    return Decision(Partition(cuts), node, np.array(filled, np.int64))
