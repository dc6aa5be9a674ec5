"""Windows of cuts: where the cuts of every partition within a limit must lie."""

import numpy as np

from hypsolve.kernels.hypsplit.chain import combine, stage_s
from hypsolve.kernels.jit import bare_kernel, inlined


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

    A stage reaches farthest if it starts at the farthest cut of the previous tier. The cuts are
    therefore found one after the other. The search for each of them starts at the cut that
    `high` holds before the call.

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


@bare_kernel
def window_offsets(low, high, start):
    """Fill `start` with the offset of each window in a flat array; return its length."""
    length = 0
    for k in range(low.shape[0]):
        start[k] = length
        length += high[k] - low[k] + 1
    return length
