"""Trials: decide whether a partition with a bottleneck of at most tau exists."""

import numpy as np

from hypsolve.kernels.hypsplit.chain import bottleneck_s, combine, cost_s, stage_s
from hypsolve.kernels.hypsplit.windows import gallop
from hypsolve.kernels.jit import bare_kernel, inlined

FEASIBLE, INFEASIBLE, UNDECIDED = 0, 1, 2  # outcomes of a greedy trial
STRIDE = 16  # cuts for which one stage time serves as a bound; affects speed only


@inlined
def min_cost_above(chain, k, i, beyond, beyond_s, end, min_link, tau, rejected):
    """Return the smallest cost above `tau` of stages to beyond..end - 1, at most `rejected`.

    The time of a stage is a lower bound for all stages that end behind it. The first of every
    STRIDE cuts therefore shows which of them to evaluate and, with the shortest link, when to
    stop.
    """
    j, bound_s = beyond, beyond_s
    while j < end:
        time = cost_s(chain, k, j, bound_s)
        if tau < time < rejected:
            rejected = time
        if combine(chain, bound_s, min_link) >= rejected:
            break
        stop = min(j + STRIDE, end)
        j += 1
        while j < stop and cost_s(chain, k, j, bound_s) >= rejected:
            j += 1
        if j < end:
            bound_s = stage_s(chain, k, i, j)
    return rejected


@inlined
def last_affordable(chain, k, i, first, last, tau, rejected):
    """Find the last cut of first..last whose stage costs at most `tau`.

    As in `min_cost_above`, the first of every STRIDE cuts shows which of them to evaluate.

    Returns
    -------
    tuple of int, float and float
        The cut (-1: there is none), the cost of its stage, and the minimum of `rejected` and of
        the costs above `tau` that were evaluated.
    """
    for top in range(last, first - 1, -STRIDE):
        start = max(top - STRIDE + 1, first)
        bound_s = stage_s(chain, k, i, start)
        for j in range(top, start - 1, -1):
            bound = cost_s(chain, k, j, bound_s)
            if bound > tau and bound >= rejected:
                continue
            time = cost_s(chain, k, j, stage_s(chain, k, i, j))
            if time <= tau:
                return j, time, rejected
            rejected = min(rejected, time)
    return -1, np.inf, rejected


@bare_kernel
def greedy_trial(chain, tau, low, high, min_link, cuts):
    """Seek a partition of bottleneck at most `tau` by extending every stage as far as possible.

    The farthest start of a stage is the best one for its farthest cut. If the greedy cuts fail,
    every partition fails, with one exception: a tier with a minimum number of blocks may reach
    a cut from a nearer start that it cannot reach from the farthest. The trial is then
    UNDECIDED. Most cuts of a window are never evaluated: the shortest link and the stage time
    at one cut in STRIDE rule them out.

    Parameters
    ----------
    low, high : ndarray of int, shape (n_tiers + 1,)
        Windows for a limit of at least `tau`, from `cut_windows`.
    min_link : ndarray, shape (n_tiers,)
        Lower bounds on the links of the cuts in each window.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in. The cuts that it holds before the call are hints for the search.

    Returns
    -------
    tuple of int and float
        FEASIBLE and the bottleneck of `cuts`; or INFEASIBLE and the smallest cost above `tau`
        at which some stage would reach farther, so that every smaller tau fails, too; or
        UNDECIDED.
    """
    n_tiers = chain.min_blocks.shape[0]
    rejected, worst = np.inf, 0.0
    cuts[0] = 0
    for k in range(n_tiers):
        i = cuts[k]
        first = max(low[k + 1], i + chain.min_blocks[k])
        end = min(high[k + 1], i + chain.max_blocks[k]) + 1
        # even with the shortest link, no cut from beyond = good + 1 on is within tau
        good, good_s, beyond, beyond_s = gallop(
            chain, k, i, first, end, cuts[k + 1], min_link[k], tau
        )
        rejected = min_cost_above(
            chain, k, i, beyond, beyond_s, end, min_link[k], tau, rejected
        )
        chosen, time = good, np.inf
        if good >= first:
            time = cost_s(chain, k, good, good_s)
        if time > tau:
            rejected = min(rejected, time)
            chosen, time, rejected = last_affordable(
                chain, k, i, first, good - 1, tau, rejected
            )
        if chosen < 0:
            return (
                INFEASIBLE if i + chain.min_blocks[k] <= low[k + 1] else UNDECIDED
            ), rejected
        worst = max(worst, time)
        cuts[k + 1] = chosen
    return FEASIBLE, worst


@bare_kernel
def full_trial(chain, tau, low, high, start, reached, cuts):
    """Seek a partition of bottleneck at most `tau` by examining every cut of every window.

    A plain reachability recurrence. It decides what `greedy_trial` leaves open, and tests
    compare the two.

    Parameters
    ----------
    low, high : ndarray of int, shape (n_tiers + 1,)
        Windows for a limit of at least `tau`, from `cut_windows`.
    start : ndarray of int, shape (n_tiers + 1,)
        Offset of each window in `reached`, from `window_offsets`.
    reached : ndarray of int
        Work space: ``reached[start[k] + c - low[k]]`` is the largest reachable cut before tier
        k at or before c, or -1. Among all starts of a stage the largest is the best, because it
        makes the stage shortest.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled with the partition, if there is one.

    Returns
    -------
    tuple of bool and float
        True and the bottleneck of `cuts`; or False and the smallest cost that was rejected, so
        that every smaller tau fails, too (inf: none was rejected).
    """
    n_tiers = chain.min_blocks.shape[0]
    rejected = np.inf
    reached[start[0]] = 0
    for k in range(n_tiers):
        largest = -1
        for j in range(low[k + 1], high[k + 1] + 1):
            before = min(j - chain.min_blocks[k], high[k])
            if before >= low[k]:
                i = np.int64(reached[start[k] + before - low[k]])
                if i >= 0 and j - i <= chain.max_blocks[k]:
                    time = cost_s(chain, k, j, stage_s(chain, k, i, j))
                    if time <= tau:
                        largest = j
                    elif time < rejected:
                        rejected = time
            reached[start[k + 1] + j - low[k + 1]] = largest
        if largest < 0:
            return False, rejected
    cuts[n_tiers] = chain.prefix_bytes.shape[0] - 1
    for k in range(n_tiers - 1, -1, -1):
        before = min(cuts[k + 1] - chain.min_blocks[k], high[k])
        cuts[k] = reached[start[k] + before - low[k]]
    return True, bottleneck_s(chain, cuts)
