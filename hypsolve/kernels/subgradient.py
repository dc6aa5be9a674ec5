"""Lagrangian bound on the schedules of a flow shop, raised by subgradient ascent.

The flow shop (`DeadlineFlowShop`) has stages in series, each with groups of identical nodes.
The objective is the sum of the completion times. With a deadline, the question is instead
whether all requests can be completed before it.

The bound relaxes the capacity of the nodes. Time is cut into ticks of ``step``, and
``multiplier[g, t] >= 0`` is charged for each tick that a request spends on a node of group g.
Each request then takes its cheapest path through the stages by itself. For any multipliers,

    sum over requests of the cost of their cheapest path (completion time + charges)
    - sum over groups and ticks of multiplier x number of nodes

is at most the smallest sum of completion times, because a schedule never uses more node time
than there is. With a deadline, only paths that meet it are allowed, and completion times cost
nothing; a bound above 0 then proves that no schedule meets the deadline.

Start times and busy times are rounded down to whole ticks. After rounding, operations on a
node still do not overlap, and every path remains feasible, so the bound stays valid.

Subgradient ascent moves the multipliers along the excess of the demand over the capacity, by
Polyak's step towards a known upper bound. The direction is an exponential average, as in the
deflected subgradient method of Camerini, Fratta and Maffioli (1975).
"""

import numpy as np

from hypsolve.kernels.flow_shop import DeadlineFlowShop, Ticks
from hypsolve.kernels.jit import kernel

UNITS = 2**24  # per tick; multipliers are whole multiples, so that certificates can state them
MIX = 0.3  # weight of the newest subgradient in the direction of the ascent


@kernel
def prefix_sums(multiplier, prefix):
    """Fill `prefix`, shape (n_groups, n_ticks + 1): sum of the multipliers before each tick."""
    for g in range(multiplier.shape[0]):
        total = 0.0
        prefix[g, 0] = 0.0
        for t in range(multiplier.shape[1]):
            total += multiplier[g, t]
            prefix[g, t + 1] = total


@kernel
def lagrangian_bound(shop, ticks, prefix, path_cost, best):
    """Return the Lagrangian bound of the multipliers whose prefix sums are given.

    Parameters
    ----------
    shop : DeadlineFlowShop
    ticks : Ticks
    prefix : ndarray, shape (n_groups, n_ticks + 1)
        From `prefix_sums`.
    path_cost : ndarray, shape (n_requests, n_groups, n_ticks + 1)
        Filled: ``path_cost[r, g, t]`` is the smallest cost of request r from the stage of group
        g on, if a node of g serves it from tick t or later. It includes the completion, unless
        there is a deadline, and is inf if the request would miss the deadline.
    best : ndarray, shape (n_stages, n_ticks + 1)
        Scratch.
    """
    n_requests, n_groups = shop.service.shape
    n_stages = len(shop.first) - 1
    end = prefix.shape[1] - 1
    total = 0.0
    for r in range(n_requests):
        for k in range(n_stages - 1, -1, -1):
            least = best[k]
            least[:] = np.inf
            for g in range(shop.first[k], shop.first[k + 1]):
                cost = path_cost[r, g]
                if shop.service[r, g] == np.inf:
                    cost[:] = np.inf
                    continue
                busy, ahead, sums = ticks.busy[r, g], ticks.ahead[r, g], prefix[g]
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
                lowest = cost[end]  # the request may also wait: suffix minima
                for t in range(end - 1, -1, -1):
                    x = cost[t]
                    lowest = x if x < lowest else lowest
                    cost[t] = lowest
                for t in range(end + 1):
                    least[t] = cost[t] if cost[t] < least[t] else least[t]
        total += best[0, min(ticks.release[r], end)]
    for g in range(n_groups):
        total -= prefix[g, end] * (shop.slot[g + 1] - shop.slot[g])
    return total


@kernel
def _add_usage(shop, ticks, path_cost, r, usage):
    """Add the ticks of request r's cheapest path to `usage`, shape (n_groups, n_ticks)."""
    end = path_cost.shape[2] - 1
    t = min(ticks.release[r], end)
    g = 0
    for k in range(len(shop.first) - 1):
        if k > 0:
            t = min(end, t + ticks.ahead[r, g])
        g = shop.first[k]
        for other in range(shop.first[k] + 1, shop.first[k + 1]):
            if path_cost[r, other, t] < path_cost[r, g, t]:
                g = other
        cost = path_cost[r, g]
        while t < end and cost[t + 1] == cost[t]:
            t += 1
        for j in range(t, min(end, t + ticks.busy[r, g])):
            usage[g, j] += 1.0


@kernel
def _take_step(multiplier, direction, usage, capacity, gap, unit, is_first):
    """Move the multipliers along the averaged subgradient; return False if there is none."""
    norm = 0.0
    for g in range(multiplier.shape[0]):
        for t in range(multiplier.shape[1]):
            excess = usage[g, t] - capacity[g, t]
            if not is_first:
                excess = MIX * excess + (1 - MIX) * direction[g, t]
            direction[g, t] = excess
            if multiplier[g, t] > 0 or excess > 0:
                norm += excess * excess
    if norm <= 1e-6:  # the demand fits; a step this long would drown in rounding
        return False
    length = gap / norm
    for g in range(multiplier.shape[0]):
        for t in range(multiplier.shape[1]):
            x = multiplier[g, t] + length * direction[g, t]
            multiplier[g, t] = np.floor(x / unit) * unit if x > 0 else 0.0
    return True


@kernel
def _normalise(multiplier, capacity, total, unit):
    """Scale the multipliers so that the whole capacity costs `total`; all 0: equal charges."""
    worth = 0.0
    for g in range(multiplier.shape[0]):
        for t in range(multiplier.shape[1]):
            worth += multiplier[g, t] * capacity[g, t]
    for g in range(multiplier.shape[0]):
        for t in range(multiplier.shape[1]):
            x = multiplier[g, t] * (total / worth) if worth > 0 else total / capacity.sum()
            multiplier[g, t] = np.floor(x / unit) * unit


@kernel
def ascend_in_ticks(shop, ticks, multiplier, upper, target, n_evaluations, length, floor):
    """Raise the Lagrangian bound by better multipliers, in place.

    Parameters
    ----------
    shop : DeadlineFlowShop
    ticks : Ticks
    multiplier : ndarray, shape (n_groups, n_ticks)
        Start of the ascent; becomes the multipliers of the best bound. With a deadline and more
        than one evaluation they are normalised: the whole capacity costs the deadline.
    upper : float
        Upper bound that Polyak's steps aim at.
    target : float
        The ascent stops at a bound of `target`.
    n_evaluations : int
        Maximum number of bounds evaluated; 1: only that of the given multipliers.
    length, floor : float
        Length of the first steps, as a share of the distance to `upper`. The length shrinks
        while bounds do not improve, and the ascent stops below `floor`.

    Returns
    -------
    float
        The best bound.
    """
    n_requests, n_groups = shop.service.shape
    n_ticks = multiplier.shape[1]
    prefix = np.empty((n_groups, n_ticks + 1))
    path_cost = np.empty((n_requests, n_groups, n_ticks + 1))
    scratch = np.empty((len(shop.first) - 1, n_ticks + 1))
    usage, direction = np.zeros((n_groups, n_ticks)), np.zeros((n_groups, n_ticks))
    capacity = np.empty((n_groups, n_ticks))
    for g in range(n_groups):
        capacity[g] = shop.slot[g + 1] - shop.slot[g]
    unit = ticks.step / UNITS
    if shop.deadline < np.inf and n_evaluations > 1:
        _normalise(multiplier, capacity, shop.deadline, unit)
    now = multiplier.copy()
    best, waited = -np.inf, 0
    for i in range(n_evaluations):
        prefix_sums(now, prefix)
        bound = lagrangian_bound(shop, ticks, prefix, path_cost, scratch)
        if i == 0 or bound > best:
            waited = 0 if i == 0 or bound > best + 1e-3 * abs(upper - best) else waited + 1
            best = bound
            multiplier[:] = now
        else:
            waited += 1
        if best >= target or i == n_evaluations - 1:
            break
        if waited >= 10:
            length *= 0.7
            waited = 0
            if length < floor:
                break
            now[:] = multiplier  # go back to the best
            prefix_sums(now, prefix)
            bound = lagrangian_bound(shop, ticks, prefix, path_cost, scratch)
        usage[:] = 0.0
        for r in range(n_requests):
            _add_usage(shop, ticks, path_cost, r, usage)
        gap = length * max(upper - bound, 1e-6 * abs(upper))
        if not _take_step(now, direction, usage, capacity, gap, unit, i == 0):
            break
        if shop.deadline < np.inf:
            _normalise(now, capacity, shop.deadline, unit)
    return best


def warm_up():
    """Compile every kernel that a method calls, on one request and one stage."""
    one = np.ones((1, 1))
    ends = np.array([0, 1])
    shop = DeadlineFlowShop(
        one, np.zeros((1, 1)), np.zeros(1), ends, ends, np.array([-1]), np.inf
    )
    whole = np.ones((1, 1), np.int64)
    ticks = Ticks(whole, whole, np.zeros(1, np.int64), 0.5)
    multiplier = np.zeros((1, 4))
    ascend_in_ticks(shop, ticks, multiplier, 2.0, np.inf, 2, 0.3, 0.01)
    prefix, path_cost = np.empty((1, 5)), np.empty((1, 1, 5))
    prefix_sums(multiplier, prefix)
    lagrangian_bound(shop, ticks, prefix, path_cost, np.empty((1, 5)))
