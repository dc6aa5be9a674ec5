"""Kernels of HypSplit-DP: bisection on the bottleneck, and the additive recurrence.

`min_bottleneck` and `min_bottleneck_many` minimise the largest cost of a stage; `min_sum`
minimises the sum of costs. The cost of a stage is its time with its outgoing link.
"""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_kernel, inlined, kernel, threaded_kernel

POOLED, FASTEST, SLOWEST = 0, 1, 2  # stage rules, as in `hypsolve.problem.instance.StageRule`
FEASIBLE, INFEASIBLE, UNDECIDED = 0, 1, 2  # outcomes of a greedy trial

# The constants below affect speed only, never the result.
LONG_CHAIN = 2**12  # a chain with more (tier, cut) pairs starts from narrow windows
STRIDE = 16  # cuts for which one stage time serves as a bound
NO_LIMIT = np.finfo(np.float64).max


class Chain(NamedTuple):
    """A chain of blocks and the tiers that may host it.

    Cut c lies before block c, for c in 0..n_blocks, so n_cuts = n_blocks + 1. Cuts are grouped
    into kinds of equal transfers, and the nodes of a tier into groups of equal nodes.
    """

    prefix_s: np.ndarray  # seconds before a cut, compensated: (n_classes, n_cuts, 2)
    prefix_bytes: np.ndarray  # bytes before a cut, compensated: (n_cuts, 2)
    tied_bytes: float  # bytes saved if one stage hosts all blocks (tied embeddings)
    group_start: np.ndarray  # tier k has groups start[k]:start[k + 1], (n_tiers + 1,)
    group_class: np.ndarray  # class of the nodes of each group, (n_groups,)
    group_bytes: np.ndarray  # memory of one node of each group, (n_groups,)
    group_size: np.ndarray  # number of nodes in each group, (n_groups,)
    link_kind: np.ndarray  # link seconds in a bottleneck, last row 0: (n_tiers, n_cut_kinds)
    transfer_kind: np.ndarray  # link seconds in a sum, last row 0: (n_tiers, n_cut_kinds)
    cut_kind: np.ndarray  # (n_cuts,)
    cut_min: np.ndarray  # earliest cut before each tier and after the last: (n_tiers + 1,)
    cut_max: np.ndarray  # latest cut, likewise
    min_blocks: np.ndarray  # blocks of a stage, (n_tiers,)
    max_blocks: np.ndarray  # (n_tiers,)
    rule: int  # POOLED, FASTEST or SLOWEST
    overlap: bool  # whether a stage and its outgoing link work at the same time


@bare_kernel
def two_sum(a, b):
    """Return the rounded sum of two numbers and its exact rounding error [1]_.

    References
    ----------
    .. [1] D. E. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@bare_kernel
def fill_prefix_sums(values, kind, sums):
    """Fill `sums` with compensated prefix sums of ``values[:, kind]``.

    Entry ``[row, c]`` holds the sum of the values before cut c and its rounding error. Without
    the error, a stage of quick blocks behind slow ones would drown in the rounding of the sum.
    The errors of 16 blocks are added up apart from the sum, so that additions need not wait
    for each other.

    Parameters
    ----------
    values : ndarray, shape (n_rows, n_kinds)
    kind : ndarray of int, shape (n_blocks,)
    sums : ndarray, shape (n_rows, n_cuts, 2)
        Filled in.
    """
    n_blocks = len(kind)
    for c in range(values.shape[0]):
        total, error = 0.0, 0.0
        sums[c, 0, 0], sums[c, 0, 1] = total, error
        for first in range(0, n_blocks, 16):
            for b in range(first, min(first + 16, n_blocks)):
                total, left = two_sum(total, values[c, kind[b]])
                error += left
                sums[c, b + 1, 0], sums[c, b + 1, 1] = total, error
            total, error = two_sum(total, error)


@inlined
def stage_bytes(chain, i, j):
    """Return the memory that a node needs for blocks i:j."""
    need = (
        chain.prefix_bytes[j, 0]
        - chain.prefix_bytes[i, 0]
        + (chain.prefix_bytes[j, 1] - chain.prefix_bytes[i, 1])
    )
    return need - chain.tied_bytes if i == 0 and j == chain.prefix_bytes.shape[0] - 1 else need


@inlined
def stage_s(chain, k, i, j):
    """Return the time of stage i:j on tier k; inf if it does not fit.

    The time never increases with i and never decreases with j. All searches below rely on it.
    """
    if i == j:
        return 0.0
    need = stage_bytes(chain, i, j)
    speed, fastest, slowest = 0.0, np.inf, 0.0
    for g in range(chain.group_start[k], chain.group_start[k + 1]):
        if need > chain.group_bytes[g]:
            if chain.rule == SLOWEST:
                return np.inf
            continue
        c = chain.group_class[g]
        time = chain.prefix_s[c, j, 0] - chain.prefix_s[c, i, 0]
        time += chain.prefix_s[c, j, 1] - chain.prefix_s[c, i, 1]
        if chain.rule == POOLED:
            if time <= 0.0:
                return 0.0
            speed += chain.group_size[g] / time
        fastest = min(fastest, time)
        slowest = max(slowest, time)
    if chain.rule == POOLED:
        return 1.0 / speed if speed > 0.0 else np.inf
    return fastest if chain.rule == FASTEST else slowest


@inlined
def combine(chain, stage, link):
    """Combine the time of a stage and of its outgoing link: their maximum or their sum."""
    return max(stage, link) if chain.overlap else stage + link


@inlined
def cost_s(chain, k, j, stage):
    """Return the cost of a stage of tier k that ends at cut j: its time with its link."""
    return combine(chain, stage, chain.link_kind[k, chain.cut_kind[j]])


@bare_kernel
def bottleneck_s(chain, cuts):
    """Return the largest cost of a stage of the partition `cuts`."""
    worst = 0.0
    for k in range(chain.min_blocks.shape[0]):
        stage = stage_s(chain, k, cuts[k], cuts[k + 1])
        worst = max(worst, cost_s(chain, k, cuts[k + 1], stage))
    return worst


@inlined
def gallop(chain, k, i, first, end, hint, link, limit):
    """Find the last cut j of first..end - 1 at which stage i:j costs at most `limit`.

    The outgoing link is taken to be `link` at every cut, so costs increase with j. The search
    starts at `hint`, doubles its stride until it has bracketed the answer, and then bisects.

    Returns
    -------
    tuple of int, float, int, float
        The last cut within the limit and the time of its stage (first - 1: there is none); the
        next cut and the time of its stage (end: there is none).
    """
    good, beyond = first - 1, max(end, first)  # within the limit up to good, not from beyond
    good_s, beyond_s = 0.0, np.inf
    j, stride = max(min(hint, end - 1), first), 1
    while beyond - good > 1:
        time = stage_s(chain, k, i, j)
        if combine(chain, time, link) <= limit:
            good, good_s = j, time
        else:
            beyond, beyond_s = j, time
        if beyond >= end:
            j = min(good + stride, end - 1)
        elif good < first:
            j = max(beyond - stride, first)
        else:
            j = (good + beyond) // 2
        stride *= 2
    return good, good_s, beyond, beyond_s


@bare_kernel
def farthest_cuts(chain, limit, high):
    """Fill `high` with the farthest cuts that stages of at most `limit` reach without links.

    The stage before the farthest cut starts at the farthest cut of the previous tier, so a
    chain of searches suffices. Each search starts at the cut that `high` holds before the call.

    Returns
    -------
    bool
        Whether all blocks are hosted.
    """
    n_tiers = chain.min_blocks.shape[0]
    n_blocks = chain.prefix_bytes.shape[0] - 1
    high[0] = 0
    for k in range(n_tiers):
        i = high[k]
        end = min(i + chain.max_blocks[k], chain.cut_max[k + 1], n_blocks) + 1
        good, _, _, _ = gallop(chain, k, i, i + 1, end, high[k + 1], 0.0, limit)
        high[k + 1] = min(good, end - 1)
    return high[n_tiers] == n_blocks


@bare_kernel
def cut_windows(chain, limit, low, high):
    """Fill `low` and `high` with windows that hold every solution of at most `limit`.

    Links are left out. The windows also respect the limits on cuts and on blocks per stage.

    Parameters
    ----------
    low, high : ndarray of int, shape (n_tiers + 1,)
        Filled with the first and the last cut of each window. The cuts that `high` holds before
        the call are hints for the search.

    Returns
    -------
    bool
        Whether every window holds a cut; if not, no solution has a bottleneck within `limit`.
    """
    n_tiers = chain.min_blocks.shape[0]
    n_blocks = chain.prefix_bytes.shape[0] - 1
    if not farthest_cuts(chain, limit, high):
        return False
    low[n_tiers] = n_blocks
    for k in range(n_tiers - 1, -1, -1):  # earliest cuts, from the last tier backwards
        good, bad = low[k + 1], max(low[k + 1] - chain.max_blocks[k], chain.cut_min[k], 0) - 1
        while good - bad > 1:
            i = (good + bad) // 2
            if stage_s(chain, k, i, low[k + 1]) <= limit:
                good = i
            else:
                bad = i
        low[k] = max(good, bad + 1)
    for k in range(n_tiers):
        low[k + 1] = max(low[k + 1], low[k] + chain.min_blocks[k], chain.cut_min[k + 1])
    for k in range(n_tiers - 1, -1, -1):
        high[k] = min(high[k], high[k + 1] - chain.min_blocks[k], chain.cut_max[k])
    is_open = True
    for k in range(n_tiers + 1):
        is_open &= low[k] <= high[k]
    return is_open


@bare_kernel
def min_links(chain, low, high, min_link):
    """Fill `min_link` (n_tiers,) with the shortest link of the cuts in each window."""
    for k in range(min_link.shape[0]):
        min_link[k] = np.inf
        for j in range(low[k + 1], high[k + 1] + 1):
            link = chain.link_kind[k, chain.cut_kind[j]]
            min_link[k] = min(min_link[k], link)


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


@bare_kernel
def window_offsets(low, high, start):
    """Fill `start` with the offset of each window in a flat array; return its length."""
    length = 0
    for k in range(low.shape[0]):
        start[k] = length
        length += high[k] - low[k] + 1
    return length


@bare_kernel
def balanced_s(chain):
    """Return the time of all blocks if all nodes shared the work evenly all the time.

    Each node works at the speed that it has on the whole chain. The result is a guess of the
    bottleneck, not a bound.
    """
    speed = 0.0
    for g in range(chain.group_start[0], chain.group_start[chain.min_blocks.shape[0]]):
        speed += chain.group_size[g] / max(chain.prefix_s[chain.group_class[g], -1, 0], 1e-300)
    return 1.0 / speed


@bare_kernel
def bracket_without_links(chain, high):
    """Bracket the minimum bottleneck of the chain without links to one part in 10**3.

    Parameters
    ----------
    high : ndarray of int, shape (n_tiers + 1,)
        Work space; its contents are hints for the search.

    Returns
    -------
    tuple of float
        A value without a solution, or 0, and a value with a solution, provided that memory
        allows any.
    """
    below, above = 0.0, 0.0
    for c in range(chain.prefix_s.shape[0]):
        above = max(above, chain.prefix_s[c, -1, 0] * (1 + 1e-9))  # 1 / (1 / t) may round up
    while above - below > 1e-3 * above:
        # divide by 4 until both limits are of one order of magnitude, then bisect
        middle = above / 4 if above > 4 * below else below + (above - below) / 2
        if not below < middle < above:  # neighbours
            break
        if farthest_cuts(chain, middle, high):
            above = middle
        else:
            below = middle
    return below, above


@kernel
def bisect_bottleneck(chain, narrow, cuts):
    """Fill `cuts` with a partition of minimum bottleneck.

    A bisection between `below`, such that no partition has a smaller bottleneck, and the
    bottleneck of the best partition so far. A trial that succeeds lowers the upper limit to
    the bottleneck that it found; a trial that fails raises the lower limit to the smallest cost
    that it rejected. Both are costs that occur, so the limits meet at the optimum exactly.

    Parameters
    ----------
    narrow : bool
        Start at the optimum without links, in the narrow windows that it implies. This pays off
        for long chains. Otherwise start at a guess, in the windows that memory implies.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in.

    Returns
    -------
    tuple of float and int
        The minimum bottleneck (inf: infeasible) and the number of trials.
    """
    n_tiers = chain.min_blocks.shape[0]
    low, high = np.zeros(n_tiers + 1, np.int64), np.zeros(n_tiers + 1, np.int64)
    start, found = np.zeros(n_tiers + 1, np.int64), np.zeros(n_tiers + 1, np.int64)
    min_link = np.empty(n_tiers)
    reached = np.empty(0, np.int32)  # grown by the first full trial
    if narrow:
        below, tau = bracket_without_links(chain, high)
        step = 1e-3
    else:  # the result does not depend on this guess
        below, tau, step = 0.0, 1.2 * balanced_s(chain), 0.15
    bottleneck, trials = np.inf, 0
    limit, is_open = -1.0, False  # limit of the windows; whether each of them holds a cut
    while below < bottleneck:
        if bottleneck < np.inf:
            # if the middle rounds to the upper limit, the lower limit is the last candidate
            tau = below + (bottleneck - below) / 2
            if tau >= bottleneck:
                tau = below
        elif limit < tau:  # narrowing the windows again after the first solution does not pay
            limit = tau if narrow else NO_LIMIT
            is_open = cut_windows(chain, limit, low, high)
            if is_open:
                min_links(chain, low, high, min_link)
                found[:] = high
        state, time = INFEASIBLE, np.inf
        if is_open:
            trials += 1
            state, time = greedy_trial(chain, tau, low, high, min_link, found)
            if state == UNDECIDED:
                length = window_offsets(low, high, start)
                if len(reached) < length:
                    reached = np.empty(length, np.int32)
                success, time = full_trial(chain, tau, low, high, start, reached, found)
                state = FEASIBLE if success else INFEASIBLE
        if state == FEASIBLE:
            bottleneck = time
            cuts[:] = found
            continue
        below = min(time, limit)
        if below == NO_LIMIT:
            break
        if bottleneck == np.inf:  # no solution yet: raise tau, finally to no limit at all
            tau = max(tau + step * tau, np.nextafter(tau, np.inf), below)
            step *= 2
            if step > 10.0:
                tau = NO_LIMIT
    return bottleneck, trials


def min_bottleneck(chain, cuts):
    """Fill `cuts` with a partition of minimum bottleneck; see `bisect_bottleneck`."""
    return bisect_bottleneck(
        chain, chain.min_blocks.shape[0] * chain.prefix_bytes.shape[0] > LONG_CHAIN, cuts
    )


@bare_kernel
def group_nodes(node_class, node_bytes, at, group_class, group_bytes, group_size):
    """Group the nodes of a tier by class and memory; return the end of its groups.

    The groups are inserted in increasing order from position `at` on.

    Parameters
    ----------
    node_class : ndarray of int, shape (n_nodes,)
        -1 where there is no node.
    node_bytes : ndarray, shape (n_nodes,)
    at : int
        End of the groups of the tiers before.
    group_class, group_bytes, group_size : ndarray
        Filled from `at` on.
    """
    first, end = at, at
    for n in range(len(node_class)):
        c, size = node_class[n], node_bytes[n]
        if c < 0:
            continue
        g = end
        while g > first and (
            group_class[g - 1] > c or (group_class[g - 1] == c and group_bytes[g - 1] > size)
        ):
            g -= 1
        if g > first and group_class[g - 1] == c and group_bytes[g - 1] == size:
            group_size[g - 1] += 1.0
            continue
        for behind in range(end, g, -1):
            group_class[behind] = group_class[behind - 1]
            group_bytes[behind] = group_bytes[behind - 1]
            group_size[behind] = group_size[behind - 1]
        group_class[g], group_bytes[g], group_size[g] = c, size, 1.0
        end += 1
    return end


@threaded_kernel
def min_bottleneck_many(
    prefix_s,
    prefix_bytes,
    slack,
    node_class,
    node_bytes,
    link_s,
    min_per_tier,
    rule,
    overlap,
    first,
    end,
    cuts,
    bottleneck,
):
    """Fill `cuts` and `bottleneck` for networks first..end - 1, all for one model.

    Parameters
    ----------
    prefix_s, prefix_bytes : ndarray
        As in `Chain`.
    slack : float
        Relative tolerance on `node_bytes`.
    node_class, node_bytes : ndarray, shape (n_networks, n_tiers, n_nodes)
        Class -1 means no node. The last tiers of a network may be without nodes; they host no
        blocks.
    link_s : ndarray, shape (n_networks or 1, n_tiers - 1, n_cuts)
    min_per_tier : int
        Minimum number of blocks of a stage.
    rule, overlap : int, bool
        As in `Chain`.
    cuts : ndarray of int, shape (n_networks, n_tiers + 1)
        Filled in; -1 if infeasible.
    bottleneck : ndarray, shape (n_networks,)
        Filled in; inf if infeasible.
    """
    n_tiers, n_nodes = node_class.shape[1:]
    n_cuts = prefix_bytes.shape[0]
    group_start = np.zeros(n_tiers + 1, np.int64)
    group_class = np.empty(n_tiers * n_nodes, np.int64)
    group_bytes, group_size = np.empty(n_tiers * n_nodes), np.empty(n_tiers * n_nodes)
    links = np.zeros((n_tiers, n_cuts))
    cut_kind = np.arange(n_cuts)
    # a network that uses fewer tiers reads the last entries of cut_min, the first of cut_max
    cut_min = np.zeros(n_tiers + 1, np.int64)
    cut_max = np.full(n_tiers + 1, n_cuts - 1)
    cut_min[n_tiers], cut_max[0] = n_cuts - 1, 0
    min_blocks, max_blocks = np.full(n_tiers, min_per_tier), np.full(n_tiers, n_cuts - 1)
    for network in range(first, end):
        used = 0
        for k in range(n_tiers):
            group_start[k + 1] = group_nodes(
                node_class[network, k],
                node_bytes[network, k],
                group_start[k],
                group_class,
                group_bytes,
                group_size,
            )
            if group_start[k + 1] > group_start[k]:
                used = k + 1
        for g in range(group_start[used]):
            group_bytes[g] *= 1 + slack
        row = network if len(link_s) > 1 else 0
        for k in range(used - 1):
            links[k] = link_s[row, k]
        links[used - 1] = 0.0
        chain = Chain(
            prefix_s,
            prefix_bytes,
            0.0,
            group_start[: used + 1],
            group_class,
            group_bytes,
            group_size,
            links[:used],
            links[:used],
            cut_kind,
            cut_min[n_tiers - used :],
            cut_max[: used + 1],
            min_blocks[:used],
            max_blocks[:used],
            rule,
            overlap,
        )
        bottleneck[network], _ = bisect_bottleneck(
            chain, used * n_cuts > LONG_CHAIN, cuts[network, : used + 1]
        )
        cuts[network, used + 1 :] = n_cuts - 1
        if bottleneck[network] == np.inf:
            cuts[network] = -1


@kernel
def min_sum(chain, theta, cuts, with_stages):
    """Fill `cuts` with a partition of minimum sum of transfers and, optionally, stage times.

    A stage is allowed if its cost under the rule of the chain is below `theta`. The best start
    of a stage is, for each group of nodes, the minimum of ``best[i] - prefix_s[i]`` over a
    range of cuts i. It is read from a stack of suffix minima in O(log n_blocks).

    Parameters
    ----------
    theta : float
        Exclusive limit on the cost of a stage; inf: every stage that fits is allowed.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in, if there is a partition.
    with_stages : bool
        Add the time of each stage on its fastest node to the sum of transfers.

    Returns
    -------
    float
        The minimum sum; inf if there is no partition.
    """
    n_tiers, n_cuts = chain.min_blocks.shape[0], chain.prefix_bytes.shape[0]
    widest = np.diff(chain.group_start).max() if with_stages else 1
    best, following = np.full(n_cuts, np.inf), np.empty(n_cuts)
    last = np.full((n_tiers, n_cuts), -1, np.int32)
    # For each group a stack of cuts, oldest first, whose values (sum and rounding error)
    # increase: an entry is the best start at or behind its cut. A new cut removes the entries
    # that it beats.
    stack = np.empty((widest, n_cuts), np.int32)
    value = np.empty((widest, n_cuts, 2))
    depth = np.empty(widest, np.int64)
    best[0] = 0.0
    for k in range(n_tiers):
        first = chain.group_start[k]
        n_groups = chain.group_start[k + 1] - first if with_stages else 1
        following[:] = np.inf
        depth[:] = 0
        for j in range(n_cuts):
            latest = j - max(chain.min_blocks[k], 1)  # last start of a non-empty stage
            if latest >= 0 and best[latest] < np.inf:
                for g in range(n_groups):
                    total, error = best[latest], 0.0
                    if with_stages:
                        c = chain.group_class[first + g]
                        total, error = two_sum(total, -chain.prefix_s[c, latest, 0])
                        total, error = two_sum(total, error - chain.prefix_s[c, latest, 1])
                    depth[g] = push_minimum(stack[g], value[g], depth[g], latest, total, error)
            if j < chain.cut_min[k + 1] or j > chain.cut_max[k + 1]:
                continue
            chosen, parent = np.inf, -1
            if (
                chain.min_blocks[k] == 0
                and best[j] < np.inf
                and cost_s(chain, k, j, 0.0) < theta
            ):
                chosen, parent = best[j], j
            earliest = first_start_below(
                chain, theta, k, max(j - chain.max_blocks[k], 0), latest + 1, j
            )
            for g in range(n_groups):
                start = earliest
                if with_stages:
                    start = first_start_that_fits(chain, first + g, earliest, latest + 1, j)
                at = first_entry_from(stack[g], depth[g], start)
                if at < depth[g]:
                    total = value[g, at, 0]
                    if with_stages:
                        c = chain.group_class[first + g]
                        total, error = two_sum(total, chain.prefix_s[c, j, 0])
                        total += error + value[g, at, 1] + chain.prefix_s[c, j, 1]
                    if total < chosen:
                        chosen, parent = total, np.int64(stack[g, at])
            if parent >= 0:
                following[j] = chosen + chain.transfer_kind[k, chain.cut_kind[j]]
                last[k, j] = parent
        best, following = following, best
    if best[n_cuts - 1] < np.inf:
        cuts[n_tiers] = n_cuts - 1
        for k in range(n_tiers - 1, -1, -1):
            cuts[k] = last[k, cuts[k + 1]]
    return best[n_cuts - 1]


@bare_kernel
def push_minimum(stack, value, depth, cut, total, error):
    """Push a cut on a stack of suffix minima, after removing entries that are no smaller.

    Return the new depth of the stack.
    """
    while depth > 0 and (
        value[depth - 1, 0] > total
        or (value[depth - 1, 0] == total and value[depth - 1, 1] >= error)
    ):
        depth -= 1
    stack[depth] = cut
    value[depth, 0], value[depth, 1] = total, error
    return depth + 1


@bare_kernel
def first_entry_from(stack, depth, cut):
    """Return the position of the first entry at or behind a cut; `depth` if there is none."""
    bad, good = -1, depth
    while good - bad > 1:
        at = (good + bad) // 2
        if stack[at] >= cut:
            good = at
        else:
            bad = at
    return good


@bare_kernel
def first_start_below(chain, theta, k, first, end, j):
    """Return the first i of first..end - 1 whose stage i:j costs less than theta, else end."""
    bad, good = first - 1, end
    while good - bad > 1:
        i = (good + bad) // 2
        if cost_s(chain, k, j, stage_s(chain, k, i, j)) < theta:
            good = i
        else:
            bad = i
    return good


@bare_kernel
def first_start_that_fits(chain, group, first, end, j):
    """Return the first i of first..end - 1 whose blocks i:j fit the group, else end."""
    bad, good = first - 1, end
    while good - bad > 1:
        i = (good + bad) // 2
        if stage_bytes(chain, i, j) <= chain.group_bytes[group]:
            good = i
        else:
            bad = i
    return good


def warm_up():
    """Compile the kernels on a chain of two blocks over two tiers.

    `min_bottleneck_many` is left out: only `solve_many` needs it, and its first call compiles
    it, in about two seconds.
    """
    ints, reals = np.int64, np.float64
    prefix = np.zeros((1, 3, 2))
    values, kind = np.ones((1, 2)), np.arange(2)
    values.setflags(write=False)  # as in an Instance
    kind.setflags(write=False)
    fill_prefix_sums(values, kind, prefix)
    chain = Chain(
        prefix,
        prefix[0],
        0.0,
        np.array([0, 1, 2], ints),
        np.zeros(2, ints),
        np.ones(2, reals),
        np.ones(2, reals),
        np.zeros((2, 3)),
        np.zeros((2, 3)),
        np.array([0, 1, 2], ints),
        np.array([0, 0, 2], ints),
        np.array([0, 2, 2], ints),
        np.array([1, 1], ints),
        np.array([2, 2], ints),
        FASTEST,
        False,
    )
    cuts = np.zeros(3, ints)
    min_bottleneck(chain, cuts)
    min_sum(chain, np.inf, cuts, True)
    bottleneck_s(chain, cuts)
