"""Time averages of nodes and stages, in bins of equal width.

`State.bins` holds integrals over time, so that an average is exact. When the clock leaves the
last bin, all bins become twice as wide.
"""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.layout import HELD, JOBS, N_BINS, NOW, ORIGIN, WAITING, WIDTH


@kernel
def add_to_bins(bins, clock, row, n, begin_s, end_s, level):
    """Add `level` to the bins of a node for the time from `begin_s` to `end_s`."""
    if level == 0 or end_s <= begin_s:
        return
    origin_s, width_s = clock[ORIGIN], clock[WIDTH]
    first = min(int((begin_s - origin_s) / width_s), N_BINS - 1)
    last = min(int((end_s - origin_s) / width_s), N_BINS - 1)
    if first == last:
        bins[row, n, first] += level * (end_s - begin_s)
        return
    bins[row, n, first] += level * (origin_s + (first + 1) * width_s - begin_s)
    for i in range(first + 1, last):
        bins[row, n, i] += level * width_s
    bins[row, n, last] += level * (end_s - (origin_s + last * width_s))


@kernel
def record_node(nodes, bins, clock, n):
    """Fill the bins of a node up to now.

    Every kernel that changes `n_jobs`, `n_waiting` or `held` calls this first.
    """
    node, now_s = nodes[n], clock[NOW]
    if now_s > node.seen_s:
        add_to_bins(bins, clock, JOBS, n, node.seen_s, now_s, float(node.n_jobs))
        add_to_bins(bins, clock, WAITING, n, node.seen_s, now_s, float(node.n_waiting))
        add_to_bins(bins, clock, HELD, n, node.seen_s, now_s, float(node.held))
        node.seen_s = now_s


@kernel
def record_stranded(state, stage, change):
    """Fill the bins of a stage's stranded requests up to now, then change their number."""
    now_s, seen_s = state.clock[NOW], state.stranded_seen_s[stage]
    row = len(state.nodes) + stage
    n_stranded = float(state.n_stranded[stage])
    add_to_bins(state.bins, state.clock, WAITING, row, seen_s, now_s, n_stranded)
    state.stranded_seen_s[stage] = now_s
    state.n_stranded[stage] += change


@kernel
def double_bin_width(bins, clock):
    """Double the width of the bins: merge them in pairs, and clear the second half."""
    for row in range(bins.shape[0]):
        for n in range(bins.shape[1]):
            for i in range(N_BINS // 2):
                bins[row, n, i] = bins[row, n, 2 * i] + bins[row, n, 2 * i + 1]
            bins[row, n, N_BINS // 2 :] = 0.0
    clock[WIDTH] *= 2.0


@kernel
def advance(state, time_s):
    """Move the clock to `time_s`, and widen the bins until they reach it."""
    state.clock[NOW] = time_s
    while time_s >= state.clock[ORIGIN] + N_BINS * state.clock[WIDTH]:
        double_bin_width(state.bins, state.clock)
