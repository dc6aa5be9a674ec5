"""Requests through the stages of one partition: bounds from prices, and a search in layers.

A *shop* is a flow shop with unrelated groups of identical nodes: request r may start its first
stage at ``release[r]``; stage k has groups ``first[k]:first[k + 1]``; group g has nodes
``slot[g]:slot[g + 1]`` and takes ``service[r, g]`` (inf: cannot); stage k + 1 may start
``lag[r, k]`` after the end of stage k. Minimised is the sum of the completions; or asked is
whether all can be completed before a deadline.

Bounds price the nodes' time. Time is cut into ticks of ``step``; ``price[g, t]`` is asked for
each tick that a request spends on a node of group g. At any prices >= 0,
``sum over requests of their cheapest way through (completion + what they pay)
- sum of all prices x nodes`` is at most the least sum of completions: a schedule never uses
more than there is. Under a deadline completions do not count, only ways that keep it, and more
than 0 says that there is no such schedule. Starts, and lengths of use, are rounded down to
ticks: nodes stay free of overlap, and a way that was possible stays possible.
"""

import numpy as np

from hypsolve.kernels.flow_shop import Shop, Ticks
from hypsolve.kernels.jit import kernel

UNITS = 2**24  # of a tick: prices are whole multiples, so that certificates can state them
MIX = 0.3  # of what is asked for now, in the running mean along which prices move


@kernel
def add_up(price, spent):
    """Fill `spent` (n_groups, n_ticks + 1): price of the ticks before each."""
    for g in range(price.shape[0]):
        total = 0.0
        spent[g, 0] = 0.0
        for t in range(price.shape[1]):
            total += price[g, t]
            spent[g, t + 1] = total


@kernel
def cheapest(shop, ticks, spent, way, best):
    """Bound at the prices whose sums are `spent`.

    Fills ``way[r, g, t]``: the least a request pays, its completion included unless there is a
    deadline, from the stage of group g on, if that stage is on g and starts at tick t or later;
    inf if it would miss the deadline. `best` is scratch, (n_stages, n_ticks + 1).
    """
    n_requests, n_groups = shop.service.shape
    n_stages = len(shop.first) - 1
    end = spent.shape[1] - 1
    total = 0.0
    for r in range(n_requests):
        for k in range(n_stages - 1, -1, -1):
            least = best[k]
            least[:] = np.inf
            for g in range(shop.first[k], shop.first[k + 1]):
                cost = way[r, g]
                if shop.service[r, g] == np.inf:
                    cost[:] = np.inf
                    continue
                busy, ahead, sums = ticks.busy[r, g], ticks.ahead[r, g], spent[g]
                within = max(end + 1 - busy, 0)
                for t in range(within):
                    cost[t] = sums[t + busy] - sums[t]
                last = sums[end]
                for t in range(within, end + 1):
                    cost[t] = last - sums[t]
                if k == n_stages - 1:
                    done = shop.service[r, g]
                    for t in range(end + 1):
                        completion = done + ticks.step * t
                        if shop.deadline == np.inf:
                            cost[t] += completion
                        elif completion >= shop.deadline:
                            cost[t] = np.inf
                else:
                    onward = best[k + 1]
                    within = max(end + 1 - ahead, 0)
                    for t in range(within):
                        cost[t] += onward[t + ahead]
                    last = onward[end]
                    for t in range(within, end + 1):
                        cost[t] += last
                lowest = cost[end]
                for t in range(end - 1, -1, -1):
                    x = cost[t]
                    lowest = x if x < lowest else lowest
                    cost[t] = lowest
                for t in range(end + 1):
                    least[t] = cost[t] if cost[t] < least[t] else least[t]
        total += best[0, min(ticks.release[r], end)]
    for g in range(n_groups):
        total -= spent[g, end] * (shop.slot[g + 1] - shop.slot[g])
    return total


@kernel
def _walk(shop, ticks, way, r, use):
    """Add to `use` the ticks of request r's cheapest way."""
    end = way.shape[2] - 1
    t = min(ticks.release[r], end)
    g = 0
    for k in range(len(shop.first) - 1):
        if k > 0:
            t = min(end, t + ticks.ahead[r, g])
        g = shop.first[k]
        for other in range(shop.first[k] + 1, shop.first[k + 1]):
            if way[r, other, t] < way[r, g, t]:
                g = other
        cost = way[r, g]
        while t < end and cost[t + 1] == cost[t]:
            t += 1
        for j in range(t, min(end, t + ticks.busy[r, g])):
            use[g, j] += 1.0


@kernel
def _step(price, direction, use, size, gap, unit, first_time):
    """Move the prices along a running mean of what is asked for beyond what there is."""
    norm = 0.0
    for g in range(price.shape[0]):
        for t in range(price.shape[1]):
            beyond = use[g, t] - size[g, t]
            if not first_time:
                beyond = MIX * beyond + (1 - MIX) * direction[g, t]
            direction[g, t] = beyond
            if price[g, t] > 0 or beyond > 0:
                norm += beyond * beyond
    if norm <= 1e-6:  # what is asked for fits; and steps so long would drown in rounding
        return False
    far = gap / norm
    for g in range(price.shape[0]):
        for t in range(price.shape[1]):
            x = price[g, t] + far * direction[g, t]
            price[g, t] = np.floor(x / unit) * unit if x > 0 else 0.0
    return True


@kernel
def _scale(price, size, total, unit):
    """Scale the prices so that all there is costs `total`; alike if they are all 0."""
    worth = 0.0
    for g in range(price.shape[0]):
        for t in range(price.shape[1]):
            worth += price[g, t] * size[g, t]
    for g in range(price.shape[0]):
        for t in range(price.shape[1]):
            x = price[g, t] * (total / worth) if worth > 0 else total / size.sum()
            price[g, t] = np.floor(x / unit) * unit


@kernel
def raise_bound(shop, ticks, price, upper, target, n_steps, length, floor):
    """Raise the bound by better prices, in place.

    Parameters
    ----------
    upper : float
        Aim of the steps.
    target : float
        Stop at a bound of this.
    n_steps : int
        Most evaluations; 1: the bound at the prices given.
    length, floor : float
        First step as a share of the way to `upper`, and the share at which to stop.

    Returns
    -------
    float
        The best bound, which is that of the prices left behind. Under a deadline those are
        scaled, if there is more than one step: all there is costs as much as the deadline.
    """
    n_requests, n_groups = shop.service.shape
    n_ticks = price.shape[1]
    spent = np.empty((n_groups, n_ticks + 1))
    way = np.empty((n_requests, n_groups, n_ticks + 1))
    scratch = np.empty((len(shop.first) - 1, n_ticks + 1))
    use, direction = np.zeros((n_groups, n_ticks)), np.zeros((n_groups, n_ticks))
    size = np.empty((n_groups, n_ticks))
    for g in range(n_groups):
        size[g] = shop.slot[g + 1] - shop.slot[g]
    unit = ticks.step / UNITS
    if shop.deadline < np.inf and n_steps > 1:
        _scale(price, size, shop.deadline, unit)
    now = price.copy()
    best, waited = -np.inf, 0
    for i in range(n_steps):
        add_up(now, spent)
        bound = cheapest(shop, ticks, spent, way, scratch)
        if i == 0 or bound > best:
            waited = 0 if i == 0 or bound > best + 1e-3 * abs(upper - best) else waited + 1
            best = bound
            price[:] = now
        else:
            waited += 1
        if best >= target or i == n_steps - 1:
            break
        if waited >= 10:
            length *= 0.7
            waited = 0
            if length < floor:
                break
            now[:] = price  # back to the best
            add_up(now, spent)
            bound = cheapest(shop, ticks, spent, way, scratch)
        use[:] = 0.0
        for r in range(n_requests):
            _walk(shop, ticks, way, r, use)
        gap = length * max(upper - bound, 1e-6 * abs(upper))
        if not _step(now, direction, use, size, gap, unit, i == 0):
            break
        if shop.deadline < np.inf:
            _scale(now, size, shop.deadline, unit)
    return best


def warm_up():
    """Compile every kernel a method calls, on one request and one stage."""
    one = np.ones((1, 1))
    ends = np.array([0, 1])
    shop = Shop(one, np.zeros((1, 1)), np.zeros(1), ends, ends, np.array([-1]), np.inf)
    whole = np.ones((1, 1), np.int64)
    ticks = Ticks(whole, whole, np.zeros(1, np.int64), 0.5)
    price = np.zeros((1, 4))
    raise_bound(shop, ticks, price, 2.0, np.inf, 2, 0.3, 0.01)
    spent, way = np.empty((1, 5)), np.empty((1, 1, 5))
    add_up(price, spent)
    cheapest(shop, ticks, spent, way, np.empty((1, 5)))
