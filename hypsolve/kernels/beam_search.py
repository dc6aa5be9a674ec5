"""Kernels of the beam search over the schedules of one partition, one operation a level.

A partial schedule is an entry of a `Level`. All entries of a level have the same number of
operations, in the order of their starts. Invariants: `expand_level` appends entries to the next
level and links each into the bucket of its hash; a dominated entry stays in place with bound
inf; `compact` alone removes entries, and then rebuilds all buckets.
"""

from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import ROUND_DOWN, DeadlineFlowShop, Ticks
from hypsolve.kernels.jit import kernel


class Level(NamedTuple):
    """Partial schedules with equally many operations, as arrays of n entries.

    No further operation starts before `last_start`. The nodes of a group are interchangeable
    and stand in ascending order of `free`.
    """

    stage: Any  # (n, n_requests) of int8: number of stages begun
    ready: Any  # (n, n_requests): when the next stage may start; inf after the last stage
    free: Any  # (n, n_nodes): when the node is free
    latest: Any  # (n, n_nodes): request that ended there at `free`; -1: none
    last_start: Any  # (n,): start of the last operation
    value: Any  # (n,): sum (with a deadline: maximum) of the completions so far
    start_sum: Any  # (n,): sum of the starts so far
    bound: Any  # (n,): lower bound on all completions of the entry; inf: dominated
    key: Any  # (n,): hash of `stage`
    link: Any  # (n,): next entry in the bucket; -1: none
    parent: Any  # (n,): entry of the level before
    operation: Any  # (n,): request * n_groups + group


def new_level(n, n_requests, n_nodes):
    """Allocate a level of n entries."""
    return Level(
        np.empty((n, n_requests), np.int8),
        np.empty((n, n_requests)),
        np.empty((n, n_nodes)),
        np.empty((n, n_nodes), np.int16),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n, np.uint64),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
    )


def entry_bytes(n_requests, n_nodes):
    """Return the bytes of one entry of a level."""
    return 9 * n_requests + 10 * n_nodes + 52


@kernel
def set_root(shop, level, bound):
    """Make the empty schedule the first entry of the level."""
    level.stage[0] = 0
    level.ready[0] = shop.release
    level.free[0] = 0.0
    level.latest[0] = -1
    level.last_start[0] = 0.0
    level.value[0] = 0.0
    level.start_sum[0] = 0.0
    level.bound[0] = bound
    level.key[0] = 0
    level.link[0] = -1
    level.parent[0] = -1
    level.operation[0] = -1


@kernel
def _lower_bound(shop, ticks, prefix, path_cost, level, i, stop):
    """Return the Lagrangian bound of entry i; the sum ends early at a bound of `stop`."""
    n_requests = len(shop.release)
    n_stages, n_groups = len(shop.first) - 1, len(shop.slot) - 1
    end = prefix.shape[1] - 1
    per_tick = ROUND_DOWN / ticks.step
    last = level.last_start[i]
    bound = level.value[i] if shop.deadline == np.inf else 0.0
    for g in range(n_groups):
        for x in range(shop.slot[g], shop.slot[g + 1]):
            t = min(int(max(level.free[i, x], last) * per_tick), end)
            bound -= prefix[g, end] - prefix[g, t]
    for r in range(n_requests):
        k = level.stage[i, r]
        if k == n_stages:
            continue
        least = np.inf
        for g in range(shop.first[k], shop.first[k + 1]):
            start = max(level.ready[i, r], level.free[i, shop.slot[g]], last)
            t = int(start * per_tick)
            if t < end:
                cost = path_cost[r, g, t]
            else:
                cost = path_cost[r, g, end]
                if shop.deadline == np.inf:
                    cost += max(0.0, start - end * ticks.step)
            least = min(least, cost)
        bound += least
        if bound >= stop:
            break
    return bound


@kernel
def _dominates(level, a, b, has_deadline):
    """Return True if a dominates b: whatever completes entry b completes entry a no worse.

    Both entries have begun the same stages. The sum of the starts breaks ties: otherwise two
    dominance rules could discard two equal schedules, each in favour of the other.
    """
    if level.value[a] > level.value[b]:
        return False
    if level.start_sum[a] > level.start_sum[b] and (
        has_deadline or level.value[a] > level.value[b] * (1 - 1e-9)
    ):
        return False
    last_a, last_b = level.last_start[a], level.last_start[b]
    for x in range(level.free.shape[1]):
        if max(level.free[a, x], last_a) > max(level.free[b, x], last_b):
            return False
    for r in range(level.ready.shape[1]):
        if max(level.ready[a, r], last_a) > max(level.ready[b, r], last_b):
            return False
    return True


@kernel
def _place(shop, level, i, after, j, r, g, start):
    """Write entry j of level `after`: entry i, then request r on group g from `start`."""
    n_stages, n_groups = len(shop.first) - 1, len(shop.slot) - 1
    k = level.stage[i, r]
    end = start + shop.service[r, g]
    for q in range(len(shop.release)):
        after.stage[j, q] = level.stage[i, q]
        after.ready[j, q] = level.ready[i, q]
    after.stage[j, r] = k + 1
    after.value[j] = level.value[i]
    if k + 1 == n_stages:
        after.ready[j, r] = np.inf
        if shop.deadline == np.inf:
            after.value[j] += end
        else:
            after.value[j] = max(after.value[j], end)
    else:
        after.ready[j, r] = end + shop.travel[r, k]
    for x in range(level.free.shape[1]):
        after.free[j, x], after.latest[j, x] = level.free[i, x], level.latest[i, x]
    # the first node of the group is taken; the others move up, to stay in the order of `free`
    x = shop.slot[g]
    while x + 1 < shop.slot[g + 1] and after.free[j, x + 1] <= end:
        after.free[j, x], after.latest[j, x] = after.free[j, x + 1], after.latest[j, x + 1]
        x += 1
    after.free[j, x], after.latest[j, x] = end, r
    after.last_start[j] = start
    after.start_sum[j] = level.start_sum[i] + start
    after.parent[j], after.operation[j] = i, r * n_groups + g


@kernel
def expand_level(
    shop, ticks, prefix, path_cost, level, i, until, after, n_after, buckets, salt, target,
    max_compared,
):  # fmt: skip
    """Append to `after` the children of entries i:until that may lead to an optimal schedule.

    A child has one more operation. Operations come in the order of their starts, and each
    starts as early as its node allows. A child is pruned if its bound is `target` or more, or
    if another schedule is at least as good:

    - the operation could start before the one added last, or a stage of another request could
      be completed before it starts: in both cases some operation could start earlier;
    - the operation is on a node that is not the first of its group to be free;
    - of identical requests, the request is not the first to be ready;
    - on the last stage (without a deadline), the request directly follows a longer one that it
      could have preceded;
    - another entry that has begun the same stages dominates the child.

    Parameters
    ----------
    shop : DeadlineFlowShop
    ticks : Ticks
    prefix, path_cost : ndarray
        Prefix sums of the multipliers, and costs of paths; see
        `hypsolve.kernels.subgradient.lagrangian_bound`.
    level, after : Level
    i, until : int
        Entries i to until - 1 of `level` are expanded.
    n_after : int
        Number of entries that `after` has already.
    buckets : ndarray of int32
        First entry of `after` for each hash; -1: none. The length is a power of two.
    salt : ndarray of uint64, shape (n_requests, n_stages + 1)
        Random numbers of the hash (Zobrist hashing).
    target : float
        Children with a bound of `target` or more are pruned.
    max_compared : int
        Number of entries with which a child is compared for dominance.

    Returns
    -------
    i, n_after : int
        The next entry to expand (fewer than `until` if `after` is full), and the number of
        entries of `after`.
    """
    n_requests, n_groups = shop.service.shape
    n_stages = len(shop.first) - 1
    room = len(after.bound) - n_requests * n_groups - 1
    mask = np.uint64(len(buckets) - 1)
    has_deadline = shop.deadline < np.inf
    while i < until:
        if n_after > room:
            return i, n_after
        if level.bound[i] >= target:
            i += 1
            continue
        earliest_end, its_start = np.inf, np.inf
        for q in range(n_requests):
            k = level.stage[i, q]
            if k < n_stages:
                for g in range(shop.first[k], shop.first[k + 1]):
                    start = max(level.ready[i, q], level.free[i, shop.slot[g]])
                    if start + shop.service[q, g] < earliest_end:
                        earliest_end, its_start = start + shop.service[q, g], start
        for r in range(n_requests):
            k = level.stage[i, r]
            if k == n_stages:
                continue
            if shop.alike[r] >= 0:
                is_behind = False
                for q in range(n_requests):
                    if shop.alike[q] == shop.alike[r] and level.stage[i, q] == k and q != r:
                        sooner = level.ready[i, q] - level.ready[i, r]
                        is_behind = is_behind or sooner < 0 or (sooner == 0 and q < r)
                if is_behind:
                    continue
            for g in range(shop.first[k], shop.first[k + 1]):
                service = shop.service[r, g]
                x = shop.slot[g]
                start = max(level.ready[i, r], level.free[i, x])
                if service == np.inf or start < level.last_start[i]:
                    continue
                if earliest_end <= start and its_start < start:
                    continue
                before = level.latest[i, x]
                if (
                    k == n_stages - 1
                    and before >= 0
                    and not has_deadline
                    and service < shop.service[before, g]
                    and level.ready[i, r] <= level.free[i, x] - shop.service[before, g]
                ):
                    continue
                j = n_after
                _place(shop, level, i, after, j, r, g, start)
                bound = _lower_bound(shop, ticks, prefix, path_cost, after, j, target)
                bound = max(bound, level.bound[i])
                if bound >= target:
                    continue
                key = level.key[i] ^ salt[r, k] ^ salt[r, k + 1]
                at = np.int64(key & mask)
                dominated, other, compared = False, np.int64(buckets[at]), 0
                while other >= 0 and compared < max_compared:
                    if after.key[other] == key and after.bound[other] < np.inf:
                        compared += 1
                        if _dominates(after, other, j, has_deadline):
                            dominated = True
                            break
                        if _dominates(after, j, other, has_deadline):
                            after.bound[other] = np.inf
                    other = np.int64(after.link[other])
                if dominated:
                    continue
                after.bound[j], after.key[j] = bound, key
                after.link[j] = buckets[at]
                buckets[at] = j
                n_after += 1
        i += 1
    return i, n_after


@kernel
def compact(level, n, buckets):
    """Move the entries that are not dominated to the front; return their number."""
    mask = np.uint64(len(buckets) - 1)
    buckets[:] = -1
    kept = 0
    for i in range(n):
        if level.bound[i] == np.inf:
            continue
        if kept < i:
            level.stage[kept] = level.stage[i]
            level.ready[kept] = level.ready[i]
            level.free[kept] = level.free[i]
            level.latest[kept] = level.latest[i]
            level.last_start[kept] = level.last_start[i]
            level.value[kept] = level.value[i]
            level.start_sum[kept] = level.start_sum[i]
            level.bound[kept] = level.bound[i]
            level.key[kept] = level.key[i]
            level.parent[kept] = level.parent[i]
            level.operation[kept] = level.operation[i]
        at = np.int64(level.key[kept] & mask)
        level.link[kept] = buckets[at]
        buckets[at] = kept
        kept += 1
    return kept


def warm_up():
    """Compile every kernel that a method calls, on one request and one stage."""
    one = np.ones((1, 1))
    ends = np.array([0, 1])
    shop = DeadlineFlowShop(
        one, np.zeros((1, 1)), np.zeros(1), ends, ends, np.array([-1]), np.inf
    )
    whole = np.ones((1, 1), np.int64)
    ticks = Ticks(whole, whole, np.zeros(1, np.int64), 0.5)
    prefix, path_cost = np.zeros((1, 5)), np.ones((1, 1, 5))
    level, after = new_level(8, 1, 1), new_level(8, 1, 1)
    buckets, salt = np.full(16, -1, np.int32), np.zeros((1, 2), np.uint64)
    set_root(shop, level, 1.0)
    _, n = expand_level(
        shop, ticks, prefix, path_cost, level, 0, 1, after, 0, buckets, salt, np.inf, 1
    )
    compact(after, n, buckets)
