"""Bisection on the bottleneck, for one network or for many."""

import numpy as np

from hypsolve.kernels.hypsplit.chain import Chain
from hypsolve.kernels.hypsplit.trials import (
    FEASIBLE,
    INFEASIBLE,
    UNDECIDED,
    full_trial,
    greedy_trial,
)
from hypsolve.kernels.hypsplit.windows import (
    cut_windows,
    farthest_cuts,
    min_links,
    window_offsets,
)
from hypsolve.kernels.jit import bare_kernel, kernel, threaded_kernel

# A chain with more (tier, cut) pairs starts from narrow windows; affects speed only.
LONG_CHAIN = 2**12
NO_LIMIT = np.finfo(np.float64).max


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
