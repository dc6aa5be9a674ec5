"""Beam search over partial schedules of one partition, one operation a level."""

from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import ROUND_DOWN, Shop, Ticks
from hypsolve.kernels.jit import kernel


class Layer(NamedTuple):
    """Partial schedules with the same number of operations, as arrays; see `expand`.

    Nothing more starts before `last`. Nodes of a group are in order of `free`, for they are
    interchangeable.
    """

    stage: Any  # (n, n_requests) of int8: stages begun
    ready: Any  # (n, n_requests): when the next may start; inf after the last
    free: Any  # (n, n_nodes)
    latest: Any  # (n, n_nodes): request that ended there at `free`; -1: none
    last: Any  # (n,): start of the last operation
    value: Any  # (n,): sum, or the last, of the completions so far
    begun_sum: Any  # (n,): sum of the starts so far
    bound: Any  # (n,): no completion of it is better; inf: dominated
    key: Any  # (n,): hash of `stage`
    link: Any  # (n,): the next with a hash like this one
    parent: Any  # (n,)
    operation: Any  # (n,): request * n_groups + group


def new_layer(n, n_requests, n_nodes):
    """Room for n partial schedules."""
    return Layer(
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


def bytes_each(n_requests, n_nodes):
    """Bytes of a partial schedule in a layer."""
    return 9 * n_requests + 10 * n_nodes + 52


@kernel
def begin(shop, layer, bound):
    """Make the empty schedule the layer's first entry."""
    layer.stage[0] = 0
    layer.ready[0] = shop.release
    layer.free[0] = 0.0
    layer.latest[0] = -1
    layer.last[0] = 0.0
    layer.value[0] = 0.0
    layer.begun_sum[0] = 0.0
    layer.bound[0] = bound
    layer.key[0] = 0
    layer.link[0] = -1
    layer.parent[0] = -1
    layer.operation[0] = -1


@kernel
def _bound(shop, ticks, spent, way, layer, i, stop):
    """No completion of entry i is better than this; a bound of `stop` is enough."""
    n_requests = len(shop.release)
    n_stages, n_groups = len(shop.first) - 1, len(shop.slot) - 1
    end = spent.shape[1] - 1
    per_tick = ROUND_DOWN / ticks.step
    last = layer.last[i]
    bound = layer.value[i] if shop.deadline == np.inf else 0.0
    for g in range(n_groups):
        for x in range(shop.slot[g], shop.slot[g + 1]):
            t = min(int(max(layer.free[i, x], last) * per_tick), end)
            bound -= spent[g, end] - spent[g, t]
    for r in range(n_requests):
        k = layer.stage[i, r]
        if k == n_stages:
            continue
        least = np.inf
        for g in range(shop.first[k], shop.first[k + 1]):
            start = max(layer.ready[i, r], layer.free[i, shop.slot[g]], last)
            t = int(start * per_tick)
            if t < end:
                cost = way[r, g, t]
            else:
                cost = way[r, g, end]
                if shop.deadline == np.inf:
                    cost += max(0.0, start - end * ticks.step)
            least = min(least, cost)
        bound += least
        if bound >= stop:
            break
    return bound


@kernel
def _dominates(layer, a, b, timely):
    """Whether whatever entry b can still become, entry a can become as well and no worse.

    The sum of the starts settles ties: without it two rules could each discard a schedule in
    favour of the other's.
    """
    if layer.value[a] > layer.value[b]:
        return False
    if layer.begun_sum[a] > layer.begun_sum[b] and (
        timely or layer.value[a] > layer.value[b] * (1 - 1e-9)
    ):
        return False
    last_a, last_b = layer.last[a], layer.last[b]
    for x in range(layer.free.shape[1]):
        if max(layer.free[a, x], last_a) > max(layer.free[b, x], last_b):
            return False
    for r in range(layer.ready.shape[1]):
        if max(layer.ready[a, r], last_a) > max(layer.ready[b, r], last_b):
            return False
    return True


@kernel
def _place(shop, layer, i, after, j, r, g, start):
    """Make entry j of the layer `after`: entry i with request r on group g from `start`."""
    n_stages, n_groups = len(shop.first) - 1, len(shop.slot) - 1
    k = layer.stage[i, r]
    end = start + shop.service[r, g]
    for q in range(len(shop.release)):
        after.stage[j, q] = layer.stage[i, q]
        after.ready[j, q] = layer.ready[i, q]
    after.stage[j, r] = k + 1
    after.value[j] = layer.value[i]
    if k + 1 == n_stages:
        after.ready[j, r] = np.inf
        if shop.deadline == np.inf:
            after.value[j] += end
        else:
            after.value[j] = max(after.value[j], end)
    else:
        after.ready[j, r] = end + shop.lag[r, k]
    for x in range(layer.free.shape[1]):
        after.free[j, x], after.latest[j, x] = layer.free[i, x], layer.latest[i, x]
    x = shop.slot[g]  # the first of the group is taken; the others move up to keep the order
    while x + 1 < shop.slot[g + 1] and after.free[j, x + 1] <= end:
        after.free[j, x], after.latest[j, x] = after.free[j, x + 1], after.latest[j, x + 1]
        x += 1
    after.free[j, x], after.latest[j, x] = end, r
    after.last[j] = start
    after.begun_sum[j] = layer.begun_sum[i] + start
    after.parent[j], after.operation[j] = i, r * n_groups + g


@kernel
def expand(
    shop, ticks, spent, way, layer, i, until, after, n_after, heads, salt, target,
    max_compared,
):  # fmt: skip
    """Add one operation to entries i:until, in every way that a best schedule may need.

    Operations come in the order of their starts, each as early as its node allows. Left out is
    what cannot be part of a schedule with a bound below `target`, and what another
    schedule replaces:

    - an operation that could have started before the last one, or that starts when some
      request, were it served now, would be done: either way something can start sooner;
    - of a group, any node but the first to be free;
    - of requests alike, any but the first to be ready;
    - on the last stage (for the sum), a request right behind a longer one that need not have
      come first;
    - an entry with the same stages begun where another is nowhere worse.

    Parameters
    ----------
    after : Layer
        Filled from `n_after` on.
    heads : ndarray of int32
        Of the lists of entries of `after` by hash; -1: none. Its length is a power of two.
    salt : ndarray of uint64, shape (n_requests, n_stages + 1)

    Returns
    -------
    i, n_after : int
        The next entry to expand; fewer than `until` if `after` is full.
    """
    n_requests, n_groups = shop.service.shape
    n_stages = len(shop.first) - 1
    room = len(after.bound) - n_requests * n_groups - 1
    mask = np.uint64(len(heads) - 1)
    timely = shop.deadline < np.inf
    while i < until:
        if n_after > room:
            return i, n_after
        if layer.bound[i] >= target:
            i += 1
            continue
        soonest, its_start = np.inf, np.inf
        for q in range(n_requests):
            k = layer.stage[i, q]
            if k < n_stages:
                for g in range(shop.first[k], shop.first[k + 1]):
                    start = max(layer.ready[i, q], layer.free[i, shop.slot[g]])
                    if start + shop.service[q, g] < soonest:
                        soonest, its_start = start + shop.service[q, g], start
        for r in range(n_requests):
            k = layer.stage[i, r]
            if k == n_stages:
                continue
            if shop.alike[r] >= 0:
                behind = False
                for q in range(n_requests):
                    if shop.alike[q] == shop.alike[r] and layer.stage[i, q] == k and q != r:
                        sooner = layer.ready[i, q] - layer.ready[i, r]
                        behind = behind or sooner < 0 or (sooner == 0 and q < r)
                if behind:
                    continue
            for g in range(shop.first[k], shop.first[k + 1]):
                service = shop.service[r, g]
                x = shop.slot[g]
                start = max(layer.ready[i, r], layer.free[i, x])
                if service == np.inf or start < layer.last[i]:
                    continue
                if soonest <= start and its_start < start:
                    continue
                before = layer.latest[i, x]
                if (
                    k == n_stages - 1
                    and before >= 0
                    and not timely
                    and service < shop.service[before, g]
                    and layer.ready[i, r] <= layer.free[i, x] - shop.service[before, g]
                ):
                    continue
                j = n_after
                _place(shop, layer, i, after, j, r, g, start)
                bound = _bound(shop, ticks, spent, way, after, j, target)
                bound = max(bound, layer.bound[i])
                if bound >= target:
                    continue
                key = layer.key[i] ^ salt[r, k] ^ salt[r, k + 1]
                at = np.int64(key & mask)
                dominated, other, compared = False, np.int64(heads[at]), 0
                while other >= 0 and compared < max_compared:
                    if after.key[other] == key and after.bound[other] < np.inf:
                        compared += 1
                        if _dominates(after, other, j, timely):
                            dominated = True
                            break
                        if _dominates(after, j, other, timely):
                            after.bound[other] = np.inf
                    other = np.int64(after.link[other])
                if dominated:
                    continue
                after.bound[j], after.key[j] = bound, key
                after.link[j] = heads[at]
                heads[at] = j
                n_after += 1
        i += 1
    return i, n_after


@kernel
def keep(layer, n, heads):
    """Move the entries that are not dominated to the front; returns how many."""
    mask = np.uint64(len(heads) - 1)
    heads[:] = -1
    kept = 0
    for i in range(n):
        if layer.bound[i] == np.inf:
            continue
        if kept < i:
            layer.stage[kept] = layer.stage[i]
            layer.ready[kept] = layer.ready[i]
            layer.free[kept] = layer.free[i]
            layer.latest[kept] = layer.latest[i]
            layer.last[kept] = layer.last[i]
            layer.value[kept] = layer.value[i]
            layer.begun_sum[kept] = layer.begun_sum[i]
            layer.bound[kept] = layer.bound[i]
            layer.key[kept] = layer.key[i]
            layer.parent[kept] = layer.parent[i]
            layer.operation[kept] = layer.operation[i]
        at = np.int64(layer.key[kept] & mask)
        layer.link[kept] = heads[at]
        heads[at] = kept
        kept += 1
    return kept


def warm_up():
    """Compile every kernel a method calls, on one request and one stage."""
    one = np.ones((1, 1))
    ends = np.array([0, 1])
    shop = Shop(one, np.zeros((1, 1)), np.zeros(1), ends, ends, np.array([-1]), np.inf)
    whole = np.ones((1, 1), np.int64)
    ticks = Ticks(whole, whole, np.zeros(1, np.int64), 0.5)
    spent, way = np.zeros((1, 5)), np.ones((1, 1, 5))
    layer, after = new_layer(8, 1, 1), new_layer(8, 1, 1)
    heads, salt = np.full(16, -1, np.int32), np.zeros((1, 2), np.uint64)
    begin(shop, layer, 1.0)
    _, n = expand(shop, ticks, spent, way, layer, 0, 1, after, 0, heads, salt, np.inf, 1)
    keep(after, n, heads)
