"""Additive recurrence: minimise the sum of transfers and stage times."""

import numpy as np

from hypsolve.kernels.hypsplit.chain import cost_s, stage_bytes, stage_s, two_sum
from hypsolve.kernels.jit import bare_kernel, kernel


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
    # minimum sum of the tiers so far that end at each cut, and of one tier more
    best, following = np.full(n_cuts, np.inf), np.empty(n_cuts)
    last = np.full(
        (n_tiers, n_cuts), -1, np.int32
    )  # start of the best stage that ends at a cut
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
