"""The schedules of one partition, searched in layers of one more operation each."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array, IntArray

if TYPE_CHECKING:
    from hypsolve.kernels.beam_search import Layer
    from hypsolve.kernels.flow_shop import Shop, Ticks

MAX_COMPARED = 200  # entries with the same stages begun, against which a new one is compared
PARENTS = 256  # entries expanded between two looks at the clock


class Prices(NamedTuple):
    """What a bound on a shop is made of."""

    ticks: "Ticks"
    price: Array  # (n_groups, n_ticks)


class Found(NamedTuple):
    """What a search came to."""

    value: float  # of the best schedule better than the target; inf: none
    operations: list[tuple[int, int]]  # (request, group), in the order of their starts
    bound: float  # no schedule is better, unless it is no better than the target
    complete: bool  # nothing was dropped for want of room or time
    n_expanded: int


def max_entries(shop: "Shop", memory_bytes: float) -> int:
    """Width of a search that keeps to this much memory; 0: it cannot."""
    from hypsolve.kernels.beam_search import bytes_each

    n_requests, n_nodes = len(shop.release), int(shop.slot[-1])
    n_layers = n_requests * (len(shop.first) - 1)
    each = bytes_each(n_requests, n_nodes)
    fixed = 2 * each * (PARENTS + shop.service.size)  # two layers of twice the width, and this
    return max(0, int((memory_bytes - fixed) / (4 * each + 8 * n_layers)))


def proof_of(shop: "Shop") -> float:
    """What a bound must be to say that the deadline cannot be kept: 0, but for rounding."""
    return 1e-7 * float(shop.deadline)


def search(
    shop: "Shop",
    prices: Prices,
    target: float,
    width: int,
    stopped: Callable[[], bool],
    seed: int,
    compare: bool = True,
) -> Found:
    """Search for a schedule better than the target, and for a bound on all.

    Parameters
    ----------
    target : float
        Of the sum of completions; under a deadline it is that.
    width : int
        Partial schedules kept of each layer, those with the least bounds; the least bound that
        is dropped bounds the rest (under a deadline nothing does).
    stopped : callable
        Whether time is up.
    seed : int
        Of the hash; no answer depends on it.
    compare : bool
        Whether to leave out what another partial schedule dominates.
    """
    from hypsolve.kernels import beam_search, subgradient

    n_requests, n_groups = shop.service.shape
    n_stages, n_nodes = len(shop.first) - 1, int(shop.slot[-1])
    spent = np.empty((n_groups, prices.price.shape[1] + 1))
    way = np.empty((n_requests, *spent.shape))
    subgradient.add_up(prices.price, spent)
    scratch = np.empty((n_stages, spent.shape[1]))
    root = subgradient.cheapest(shop, prices.ticks, spent, way, scratch)
    timely = shop.deadline < math.inf
    worst = proof_of(shop) if timely else target  # a partial schedule's bound, if not this
    rng = np.random.default_rng(seed)
    salt = rng.integers(0, 2**63, (n_requests, n_stages + 1)).astype(np.uint64)
    room = 2 * width + PARENTS + shop.service.size
    layer, after = (beam_search.new_layer(room, n_requests, n_nodes) for _ in range(2))
    heads = np.full(2 ** max(4, math.ceil(math.log2(width))), -1, np.int32)
    beam_search.begin(shop, layer, root)
    n, dropped, n_expanded = 1, math.inf, 0

    def bound_of(least: float) -> float:
        """Turn the least bound among what is left into one on every schedule."""
        if timely:
            return target if least >= worst else -math.inf
        return min(target, least)

    history: list[tuple[IntArray, IntArray]] = []
    for _ in range(n_requests * n_stages):
        heads[:] = -1
        i, n_after, below = 0, 0, worst
        while i < n:
            if stopped():
                # what is not yet expanded, what came of the rest, and what of that was dropped
                left = float(np.concatenate([layer.bound[i:n], after.bound[:n_after]]).min())
                least = min(dropped, below, left)
                return Found(math.inf, [], bound_of(least), False, n_expanded)
            start, until = i, min(n, i + PARENTS)
            i, n_after = beam_search.expand(
                shop, prices.ticks, spent, way, layer, i, until, after, n_after, heads, salt,
                below, MAX_COMPARED if compare else 0,
            )  # fmt: skip
            n_expanded += i - start
            if n_after > 2 * width:  # from now on none is made that would be dropped at once
                n_after, least = _thin(after, n_after, width, heads)
                below = min(below, least)
        n_after, least = _thin(after, n_after, width, heads)
        least = min(below, least)
        if least < worst:
            dropped = min(dropped, least)
        history.append((after.parent[:n_after].copy(), after.operation[:n_after].copy()))
        layer, after, n = after, layer, n_after
        if n == 0:
            break
    bound = bound_of(dropped)
    at = int(np.argmin(layer.value[:n])) if n else -1
    value = float(layer.value[at]) if n else math.inf
    if value >= target:  # its bound need not say so: prices of time that is left over count
        return Found(math.inf, [], bound, math.isinf(dropped), n_expanded)
    operations = []
    for parent, operation in reversed(history):
        operations.append(divmod(int(operation[at]), n_groups))
        at = int(parent[at])
    return Found(value, operations[::-1], min(value, bound), math.isinf(dropped), n_expanded)


def _thin(layer: "Layer", n: int, width: int, heads: IntArray) -> tuple[int, float]:
    """Keep the `width` entries with the least bounds, and none that is dominated.

    Returns how many are left and the least bound dropped.
    """
    from hypsolve.kernels import beam_search

    bounds, least = layer.bound[:n], math.inf
    alive = np.flatnonzero(bounds < math.inf)
    if len(alive) > width:
        beyond = alive[np.argpartition(bounds[alive], width)[width:]]
        least = float(bounds[beyond].min())
        bounds[beyond] = math.inf
    return beam_search.keep(layer, n, heads), least
