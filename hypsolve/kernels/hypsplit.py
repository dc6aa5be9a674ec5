"""HypSplit-DP: the exact search for the least bottleneck, and the additive sweep beside it."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_kernel, inlined, kernel, threaded_kernel

POOLED, FASTEST, SLOWEST = 0, 1, 2
FOUND, NONE, OPEN = 0, 1, 2  # how a greedy trial ends
LONG = 2**12  # cuts of all tiers beyond which a chain is long
STRIDE = 16  # cuts that share one bound
NO_LIMIT = np.finfo(np.float64).max


class Chain(NamedTuple):
    """What every kernel here reads. A cut is a boundary between blocks, 0..n_blocks."""

    # seconds of the blocks before a cut, as sum and rest: (n_classes, n_cuts, 2)
    spent: np.ndarray
    # their bytes, likewise: (n_cuts, 2)
    held: np.ndarray
    # bytes saved where one stage holds all blocks
    tied: float
    # groups of like nodes: tier k has start[k]:start[k + 1], (n_tiers + 1,)
    group_start: np.ndarray
    # of each group (n_groups,): class, bytes of a node, number of nodes
    group_class: np.ndarray
    group_bytes: np.ndarray
    group_size: np.ndarray
    # a link's part of the bottleneck, and of a sum: (n_tiers, n_cut_kinds), last row 0
    link_kind: np.ndarray
    transfer_kind: np.ndarray
    # kind of each cut: (n_cuts,)
    cut_kind: np.ndarray
    # limits of each cut: (n_tiers + 1,)
    cut_min: np.ndarray
    cut_max: np.ndarray
    # blocks per stage: (n_tiers,)
    min_blocks: np.ndarray
    max_blocks: np.ndarray
    rule: int
    overlap: bool


@bare_kernel
def two_sum(a, b):
    """The rounded sum of two numbers, and exactly what the rounding left over (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@bare_kernel
def add_up(values, kind, sums):
    """Fill `sums` (n_rows, n_cuts, 2) with the sums of ``values[:, kind]`` before each cut.

    To twice the precision, or a stage of quick blocks behind slow ones would drown in the
    rounding of the sum. The rests of 16 blocks are added up apart: they wait for nothing.
    """
    n_blocks = len(kind)
    for c in range(values.shape[0]):
        total, rest = 0.0, 0.0
        sums[c, 0, 0], sums[c, 0, 1] = total, rest
        for first in range(0, n_blocks, 16):
            for b in range(first, min(first + 16, n_blocks)):
                total, left = two_sum(total, values[c, kind[b]])
                rest += left
                sums[c, b + 1, 0], sums[c, b + 1, 1] = total, rest
            total, rest = two_sum(total, rest)


@inlined
def need_bytes(chain, i, j):
    """Memory that a node needs for blocks i:j."""
    need = chain.held[j, 0] - chain.held[i, 0] + (chain.held[j, 1] - chain.held[i, 1])
    return need - chain.tied if i == 0 and j == chain.held.shape[0] - 1 else need


@inlined
def stage_s(chain, k, i, j):
    """Stage time of blocks i:j on tier k: never more for larger i, never less for larger j."""
    if i == j:
        return 0.0
    need = need_bytes(chain, i, j)
    speed, fastest, slowest = 0.0, np.inf, 0.0
    for g in range(chain.group_start[k], chain.group_start[k + 1]):
        if need > chain.group_bytes[g]:
            if chain.rule == SLOWEST:
                return np.inf
            continue
        c = chain.group_class[g]
        time = chain.spent[c, j, 0] - chain.spent[c, i, 0]
        time += chain.spent[c, j, 1] - chain.spent[c, i, 1]
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
def joined(chain, stage, link):
    """A stage and a link: one after the other, or together."""
    return max(stage, link) if chain.overlap else stage + link


@inlined
def with_link(chain, k, j, stage):
    """A stage that ends at cut j, with its outgoing link."""
    return joined(chain, stage, chain.link_kind[k, chain.cut_kind[j]])


@bare_kernel
def bottleneck_s(chain, cuts):
    """Largest stage with its link."""
    worst = 0.0
    for k in range(chain.min_blocks.shape[0]):
        stage = stage_s(chain, k, cuts[k], cuts[k + 1])
        worst = max(worst, with_link(chain, k, cuts[k + 1], stage))
    return worst


@inlined
def bracket(chain, k, i, first, end, hint, link, limit):
    """Where stages from cut i of at most `limit`, with a link of `link`, end in first..end - 1.

    In strides from `hint`, then by bisection.

    Returns
    -------
    tuple of int, float, int, float
        The last that is, and its stage (first - 1: none is); the next one that is not, and its
        stage (end: all are).
    """
    good, beyond = first - 1, max(end, first)
    good_s, beyond_s = 0.0, np.inf
    j, stride = max(min(hint, end - 1), first), 1
    while beyond - good > 1:
        time = stage_s(chain, k, i, j)
        if joined(chain, time, link) <= limit:
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
def farthest(chain, limit, high):
    """Fill `high` (n_tiers + 1,): the farthest cuts that stages of at most `limit` reach.

    Links are left out, so it is a chain of searches, each from what `high` holds before.
    Returns whether all blocks are reached.
    """
    n_tiers = chain.min_blocks.shape[0]
    n_blocks = chain.held.shape[0] - 1
    high[0] = 0
    for k in range(n_tiers):
        i = high[k]
        end = min(i + chain.max_blocks[k], chain.cut_max[k + 1], n_blocks) + 1
        good, _, _, _ = bracket(chain, k, i, i + 1, end, high[k + 1], 0.0, limit)
        high[k + 1] = min(good, end - 1)
    return high[n_tiers] == n_blocks


@bare_kernel
def windows(chain, limit, low, high):
    """Fill `low`, `high` (n_tiers + 1,): cuts outside are on no solution of at most `limit`.

    Links are left out. What `high` holds before says where to look first. Returns False where
    no window is left.
    """
    n_tiers = chain.min_blocks.shape[0]
    n_blocks = chain.held.shape[0] - 1
    if not farthest(chain, limit, high):
        return False
    low[n_tiers] = n_blocks
    for k in range(n_tiers - 1, -1, -1):  # nearest backward
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
    any_left = True
    for k in range(n_tiers + 1):
        any_left &= low[k] <= high[k]
    return any_left


@bare_kernel
def min_links(chain, low, high, min_link):
    """Fill `min_link` (n_tiers,): the least link behind each tier's window."""
    for k in range(min_link.shape[0]):
        min_link[k] = np.inf
        for j in range(low[k + 1], high[k + 1] + 1):
            link = chain.link_kind[k, chain.cut_kind[j]]
            min_link[k] = min(min_link[k], link)


@inlined
def min_above(chain, k, i, beyond, beyond_s, end, min_link, tau, rejected):
    """The least of `rejected` and of the times above `tau` of stages to beyond..end - 1.

    A stage is a bound for those that end behind it: the first of STRIDE cuts tells which of
    them to look at, and with the least of links where to stop.
    """
    j, bound_s = beyond, beyond_s
    while j < end:
        time = with_link(chain, k, j, bound_s)
        if tau < time < rejected:
            rejected = time
        if joined(chain, bound_s, min_link) >= rejected:
            break
        stop = min(j + STRIDE, end)
        j += 1
        while j < stop and with_link(chain, k, j, bound_s) >= rejected:
            j += 1
        if j < end:
            bound_s = stage_s(chain, k, i, j)
    return rejected


@inlined
def last_within(chain, k, i, first, last, tau, rejected):
    """The last cut of first..last whose stage and link take at most `tau`.

    Returns
    -------
    tuple of int, float and float
        The cut (-1: none is) and its time; the least of `rejected` and of the times above
        `tau` looked at on the way. The first of STRIDE cuts tells which to look at.
    """
    for top in range(last, first - 1, -STRIDE):
        start = max(top - STRIDE + 1, first)
        bound_s = stage_s(chain, k, i, start)
        for j in range(top, start - 1, -1):
            bound = with_link(chain, k, j, bound_s)
            if bound > tau and bound >= rejected:
                continue
            time = with_link(chain, k, j, stage_s(chain, k, i, j))
            if time <= tau:
                return j, time, rejected
            rejected = min(rejected, time)
    return -1, np.inf, rejected


@bare_kernel
def greedy_trial(chain, tau, low, high, min_link, cuts):
    """Seek cuts with every stage at most `tau`, each as far as one may reach from the last.

    The farthest start is the best start of the next tier's farthest cut, so if these cuts fail
    all do: unless a tier must host so many blocks that a nearer start may reach a cut that the
    farthest may not. Most cuts of a window are not looked at: the least of links and one stage
    in STRIDE rule them out.

    Parameters
    ----------
    low, high : ndarray of int, shape (n_tiers + 1,)
        Windows of a limit above `tau`, or of `tau`.
    min_link : ndarray, shape (n_tiers,)
        No more than the links of any cut in the windows.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in; what it holds before says where to look first.

    Returns
    -------
    tuple of int and float
        FOUND and the bottleneck of `cuts`; or NONE and the smallest stage time above `tau` at
        which some cut here would be farther: up to it all fail alike; or OPEN.
    """
    n_tiers = chain.min_blocks.shape[0]
    rejected, worst = np.inf, 0.0
    cuts[0] = 0
    for k in range(n_tiers):
        i = cuts[k]
        first = max(low[k + 1], i + chain.min_blocks[k])
        end = min(high[k + 1], i + chain.max_blocks[k]) + 1
        # with the least of links: no cut from `beyond` = good + 1 on can be reached
        good, good_s, beyond, beyond_s = bracket(
            chain, k, i, first, end, cuts[k + 1], min_link[k], tau
        )
        rejected = min_above(chain, k, i, beyond, beyond_s, end, min_link[k], tau, rejected)
        chosen, time = good, np.inf
        if good >= first:
            time = with_link(chain, k, good, good_s)
        if time > tau:
            rejected = min(rejected, time)
            chosen, time, rejected = last_within(chain, k, i, first, good - 1, tau, rejected)
        if chosen < 0:
            return (NONE if i + chain.min_blocks[k] <= low[k + 1] else OPEN), rejected
        worst = max(worst, time)
        cuts[k + 1] = chosen
    return FOUND, worst


@bare_kernel
def trial(chain, tau, low, high, start, reached, cuts):
    """Seek cuts with every stage at most `tau`, in every cut of every window.

    The plain way: for what `greedy_trial` leaves open, and what tests hold it against.
    ``reached[start[k] + c - low[k]]`` is the largest reachable cut of boundary k at or before
    c, or -1: of all predecessors the largest is the best, as it shrinks time and bytes.

    Returns
    -------
    tuple of bool and float
        True and the bottleneck of `cuts`; or False and the smallest stage time rejected, over
        all tiers and cuts: up to it the reachable sets are the same (inf: none was).
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
                    time = with_link(chain, k, j, stage_s(chain, k, i, j))
                    if time <= tau:
                        largest = j
                    elif time < rejected:
                        rejected = time
            reached[start[k + 1] + j - low[k + 1]] = largest
        if largest < 0:
            return False, rejected
    cuts[n_tiers] = chain.held.shape[0] - 1
    for k in range(n_tiers - 1, -1, -1):
        before = min(cuts[k + 1] - chain.min_blocks[k], high[k])
        cuts[k] = reached[start[k] + before - low[k]]
    return True, bottleneck_s(chain, cuts)


@bare_kernel
def lay_out(low, high, start):
    """Place each boundary's window in one flat array; return its length."""
    length = 0
    for k in range(low.shape[0]):
        start[k] = length
        length += high[k] - low[k] + 1
    return length


@bare_kernel
def even_s(chain):
    """Seconds of all blocks if every node worked on them all the time, as fast as on all."""
    speed = 0.0
    for g in range(chain.group_start[0], chain.group_start[chain.min_blocks.shape[0]]):
        speed += chain.group_size[g] / max(chain.spent[chain.group_class[g], -1, 0], 1e-300)
    return 1.0 / speed


@bare_kernel
def bounds_without_links(chain, high):
    """Two numbers between which the optimum would be if links took no time.

    Within 1 in 10^3 of each other, if memory allows any solution. `high` is overwritten.
    """
    below, above = 0.0, 0.0
    for c in range(chain.spent.shape[0]):
        above = max(above, chain.spent[c, -1, 0] * (1 + 1e-9))  # 1 / (1 / t) may round up
    while above - below > 1e-3 * above:
        # down by orders of magnitude until both are of one
        middle = above / 4 if above > 4 * below else below + (above - below) / 2
        if not below < middle < above:  # neighbours
            break
        if farthest(chain, middle, high):
            above = middle
        else:
            below = middle
    return below, above


@kernel
def search(chain, narrow, cuts):
    """Fill `cuts` (n_tiers + 1,) with an optimal partition.

    Parameters
    ----------
    narrow : bool
        Begin at the optimum without links, in windows as narrow as it allows: pays in long
        chains. Else at a guess, in windows that memory allows.

    Returns
    -------
    tuple of float and int
        The least bottleneck (inf: infeasible), and how many trials it took.
    """
    n_tiers = chain.min_blocks.shape[0]
    low, high = np.zeros(n_tiers + 1, np.int64), np.zeros(n_tiers + 1, np.int64)
    start, found = np.zeros(n_tiers + 1, np.int64), np.zeros(n_tiers + 1, np.int64)
    min_link = np.empty(n_tiers)
    reached = np.empty(0, np.int32)  # as long as the first full trial needs, if there is one
    if narrow:
        below, tau = bounds_without_links(chain, high)
        step = 1e-3
    else:  # a guess, and nothing depends on it
        below, tau, step = 0.0, 1.2 * even_s(chain), 0.15
    bottleneck, trials = np.inf, 0
    limit, any_left = -1.0, False  # of the windows
    while below < bottleneck:
        if bottleneck < np.inf:
            # bisect: a success lowers the top to what it realised, a failure lifts the bottom
            # to what it rejected; where the middle rounds to the top, try the bottom, or
            # neighbours hang
            tau = below + (bottleneck - below) / 2
            if tau >= bottleneck:
                tau = below
        elif limit < tau:  # of the first solution: it is not worth while to narrow them again
            limit = tau if narrow else NO_LIMIT
            any_left = windows(chain, limit, low, high)
            if any_left:
                min_links(chain, low, high, min_link)
                found[:] = high
        state, time = NONE, np.inf
        if any_left:
            trials += 1
            state, time = greedy_trial(chain, tau, low, high, min_link, found)
            if state == OPEN:
                length = lay_out(low, high, start)
                if len(reached) < length:
                    reached = np.empty(length, np.int32)
                success, time = trial(chain, tau, low, high, start, reached, found)
                state = FOUND if success else NONE
        if state == FOUND:
            bottleneck = time
            cuts[:] = found
            continue
        below = min(time, limit)
        if below == NO_LIMIT:
            break
        if bottleneck == np.inf:  # upwards, at last without a limit
            tau = max(tau + step * tau, np.nextafter(tau, np.inf), below)
            step *= 2
            if step > 10.0:
                tau = NO_LIMIT
    return bottleneck, trials


def min_bottleneck(chain, cuts):
    """`search`, narrow if the chain is long."""
    return search(chain, chain.min_blocks.shape[0] * chain.held.shape[0] > LONG, cuts)


@bare_kernel
def group_nodes(node_class, node_bytes, at, group_class, group_bytes, group_size):
    """Add a tier's groups of like nodes from `at` on, by class and bytes; return their end.

    `node_class` is -1 where there is no node.
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
def min_bottlenecks(
    spent,
    held,
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
    """Fill `cuts` and `bottleneck` of networks first..end - 1, all of one model.

    Parameters
    ----------
    slack : float
        Relative, of `node_bytes`.
    node_class, node_bytes : ndarray, shape (n_networks, n_tiers, n_nodes)
        Class -1: no node. The last tiers of a network may have none, and host nothing.
    link_s : ndarray, shape (n_networks or 1, n_tiers - 1, n_cuts)
    min_per_tier : int
        Blocks of a stage.
    """
    n_tiers, n_nodes = node_class.shape[1:]
    n_cuts = held.shape[0]
    group_start = np.zeros(n_tiers + 1, np.int64)
    group_class = np.empty(n_tiers * n_nodes, np.int64)
    group_bytes, group_size = np.empty(n_tiers * n_nodes), np.empty(n_tiers * n_nodes)
    links = np.zeros((n_tiers, n_cuts))
    cut_kind = np.arange(n_cuts)
    # of a network of all tiers; one of fewer reads the last ones
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
            spent,
            held,
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
        bottleneck[network], _ = search(chain, used * n_cuts > LONG, cuts[network, : used + 1])
        cuts[network, used + 1 :] = n_cuts - 1
        if bottleneck[network] == np.inf:
            cuts[network] = -1


@kernel
def min_sum(chain, theta, cuts, with_stages):
    """Fill `cuts` with the least sum of transfers (and fastest-node stages, if `with_stages`).

    Only stages whose time under the chain's rule, with its link, is below `theta` count
    (theta = inf: whose blocks fit). Returns the sum, inf if there is none.

    The best start of a stage is, for each node group, the least of ``best[i] - spent[i]`` over
    a range of cuts i, read from a stack of suffix minima: O(log n_blocks) each.
    """
    n_tiers, n_cuts = chain.min_blocks.shape[0], chain.held.shape[0]
    widest = np.diff(chain.group_start).max() if with_stages else 1
    best, following = np.full(n_cuts, np.inf), np.empty(n_cuts)
    last = np.full((n_tiers, n_cuts), -1, np.int32)
    # per group: cuts, oldest first, with rising values (as sum and rest)
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
            latest = j - max(chain.min_blocks[k], 1)  # start of a stage that is not empty
            if latest >= 0 and best[latest] < np.inf:
                for g in range(n_groups):
                    total, rest = best[latest], 0.0
                    if with_stages:
                        c = chain.group_class[first + g]
                        total, rest = two_sum(total, -chain.spent[c, latest, 0])
                        total, rest = two_sum(total, rest - chain.spent[c, latest, 1])
                    depth[g] = push(stack[g], value[g], depth[g], latest, total, rest)
            if j < chain.cut_min[k + 1] or j > chain.cut_max[k + 1]:
                continue
            chosen, parent = np.inf, -1
            if (
                chain.min_blocks[k] == 0
                and best[j] < np.inf
                and with_link(chain, k, j, 0.0) < theta
            ):
                chosen, parent = best[j], j
            earliest = first_below(
                chain, theta, k, max(j - chain.max_blocks[k], 0), latest + 1, j
            )
            for g in range(n_groups):
                start = earliest
                if with_stages:
                    start = first_that_fits(chain, first + g, earliest, latest + 1, j)
                at = first_at_or_behind(stack[g], depth[g], start)
                if at < depth[g]:
                    total = value[g, at, 0]
                    if with_stages:
                        c = chain.group_class[first + g]
                        total, rest = two_sum(total, chain.spent[c, j, 0])
                        total += rest + value[g, at, 1] + chain.spent[c, j, 1]
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
def push(stack, value, depth, cut, total, rest):
    """Put a cut behind all that are not below it in value; return the new depth."""
    while depth > 0 and (
        value[depth - 1, 0] > total
        or (value[depth - 1, 0] == total and value[depth - 1, 1] >= rest)
    ):
        depth -= 1
    stack[depth] = cut
    value[depth, 0], value[depth, 1] = total, rest
    return depth + 1


@bare_kernel
def first_at_or_behind(stack, depth, cut):
    """Position of the first entry at or behind a cut, `depth` if there is none."""
    bad, good = -1, depth
    while good - bad > 1:
        at = (good + bad) // 2
        if stack[at] >= cut:
            good = at
        else:
            bad = at
    return good


@bare_kernel
def first_below(chain, theta, k, first, end, j):
    """Smallest i of first..end - 1 whose stage i:j is below theta, else end."""
    bad, good = first - 1, end
    while good - bad > 1:
        i = (good + bad) // 2
        if with_link(chain, k, j, stage_s(chain, k, i, j)) < theta:
            good = i
        else:
            bad = i
    return good


@bare_kernel
def first_that_fits(chain, group, first, end, j):
    """Smallest i of first..end - 1 whose blocks i:j fit a node of the group, else end."""
    bad, good = first - 1, end
    while good - bad > 1:
        i = (good + bad) // 2
        if need_bytes(chain, i, j) <= chain.group_bytes[group]:
            good = i
        else:
            bad = i
    return good


def warm_up():
    """Compile the kernels on a chain of two blocks over two tiers; not `min_bottlenecks`.

    That is compiled when it is first called: two seconds that only `solve_many` needs.
    """
    ints, reals = np.int64, np.float64
    spent = np.zeros((1, 3, 2))
    values, kind = np.ones((1, 2)), np.arange(2)
    values.setflags(write=False)  # as an instance's are
    kind.setflags(write=False)
    add_up(values, kind, spent)
    chain = Chain(
        spent,
        spent[0],
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
