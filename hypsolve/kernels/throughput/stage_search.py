"""The largest request rate over all splits under the batching mode ``stage``."""

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, bare_kernel, inner_kernel, kernel
from hypsolve.kernels.throughput.chain import (
    has_targets,
    latencies,
    meets,
    shortest_chain,
    stage_held_s,
    target_margin,
)
from hypsolve.kernels.throughput.labels import shortest_within_targets
from hypsolve.kernels.throughput.server import SLACK, crosses, is_allowed
from hypsolve.kernels.throughput.stage_tables import (
    fill,
    fill_link,
    fill_stage,
    memory_margin,
    new_tables,
)

CLOSE = 1e-11  # a rate is not improved by less than this share of it
WIDE = 1.3  # ratio of the ends of a bracket in whose middle the next trial is; speed only
TINY = 1e-9  # of a margin, where rounding decides


@kernel
def rate_limit(server, tables, cuts):
    """Return the largest rate at which all stages and links of some split keep up.

    A bottleneck recurrence over tiers and cuts. Latency, memory and targets do not count. The
    cuts of such a split are filled in, unless the rate is 0.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    best = np.zeros((n_tiers + 1, n_cuts))
    origin = np.zeros((n_tiers + 1, n_cuts), np.int64)
    best[0, 0] = np.inf
    for k in range(n_tiers):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if best[k, i] == 0.0:
                continue
            for j in range(i, min(n_cuts - 1, i + server.max_blocks[k]) + 1):
                if best[k + 1, j] >= best[k, i] or not is_allowed(server, k, i, j):
                    continue
                rate = min(best[k, i], link_limit(server, k, j))
                if i < j:
                    rate = min(rate, tables.most[k, server.content[i, j]])
                if rate > best[k + 1, j]:
                    best[k + 1, j], origin[k + 1, j] = rate, i
    if best[n_tiers, n_cuts - 1] > 0.0:
        cuts[n_tiers] = n_cuts - 1
        for k in range(n_tiers - 1, -1, -1):
            cuts[k] = origin[k + 1, cuts[k + 1]]
    return best[n_tiers, n_cuts - 1]


@bare_inner_kernel
def link_limit(server, tier, cut):
    """Return the rate at which the link behind a tier is always busy."""
    if not crosses(server, tier, cut) or server.link_s[tier, cut] == 0.0:
        return np.inf
    lengths = server.lengths
    return 1.0 / ((lengths.prompt_tokens + lengths.passes) * server.link_s[tier, cut])


@inner_kernel
def find_split(server, tables, x, cost, origin, cuts):
    """Return whether some split carries x requests per second, and fill in its cuts.

    Every split that carries x holds KV cache for at least `held_s` seconds, so its stages have
    memory for so many. The shortest chain of stages with that memory is the next `held_s`. It
    is a split that carries x once it is not longer than the last one.
    """
    if not fill(server, tables, x):
        return False
    limited = has_targets(server)
    held_s = 0.0
    while True:
        found_s = shortest_chain(server, tables, held_s, x, cost, origin, cuts)
        if found_s == np.inf:
            return False
        if limited:
            ttft, decode, _ = latencies(server, tables, cuts)
            if not meets(server, ttft, decode, x):
                found_s = shortest_within_targets(server, tables, held_s, x, cuts)
                if found_s == np.inf:
                    return False
        if found_s <= held_s * (1.0 + SLACK):
            return True
        held_s = found_s


@bare_inner_kernel
def margin(server, tables, cuts, x):
    """Return by which share one split could exceed a limit at x requests per second.

    Returns
    -------
    float
        Negative if and only if the split does not carry x: the least of all limits, each
        divided by what is used of it, less 1.
    """
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        fill_link(server, tables, k, j, x)
        if tables.link_prompt_s[k, j] == np.inf:
            return -1.0
        if i < j:
            if tables.most[k, server.content[i, j]] * (1.0 + SLACK) < x:
                return -1.0
            fill_stage(server, tables, k, server.content[i, j], x)
    ttft, decode, held_s = latencies(server, tables, cuts)
    least = target_margin(server, ttft, decode, x)
    if not meets(server, ttft, decode, x):
        return min(least, -TINY)
    least = max(0.0, min(1.0, least))
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            content = server.content[i, j]
            elsewhere_s = max(held_s - stage_held_s(server, tables, k, i, j), 0.0)
            least = min(least, memory_margin(server, tables, k, content, elsewhere_s, x))
            if least < 0.0:
                break
    return least


@bare_kernel
def split_rate(server, tables, cuts, low, high):
    """Return the largest rate in low..high that a split carries; 0 if it does not carry `low`.

    Regula falsi on `margin` (the Illinois variant). A step is at least half as long as the
    bracket that is left in the end, so that both of its ends move. A bracket that did not halve
    in a few steps is halved. The ends come first. There is one call of `margin`, for LLVM
    inlines each of them.
    """
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            high = min(high, tables.most[k, server.content[i, j]])
        high = min(high, link_limit(server, k, j))
    if high < low * (1.0 - SLACK):
        return 0.0
    f_high, f_low, side, width, steps = 0.0, 0.0, 0, high - low, 0
    x = high
    while True:
        f = margin(server, tables, cuts, x)
        if x == high:
            if f >= 0.0:
                return high
            if high <= low:
                return 0.0
            f_high, x = f, low
            continue
        if x == low:
            if f < 0.0:
                return 0.0
            f_low = f
        elif f >= 0.0:
            f_high = f_high / 2 if side == 1 else f_high
            low, f_low, side = x, f, 1
        else:
            f_low = f_low / 2 if side == -1 else f_low
            high, f_high, side = x, f, -1
        if high - low <= CLOSE / 8 * high or high <= 1e-15:
            return low
        step = CLOSE / 16 * high
        x = low + (high - low) * (f_low / (f_low - f_high))
        x = max(low + step, min(high - step, x))
        steps += 1
        if steps == 3:
            if high - low > width / 2:
                x = (low + high) / 2
            width, steps = high - low, 0


@kernel
def max_rate(server, cuts):
    """Return the largest rate that some split carries, its cuts filled in, and the trials.

    The search starts from a split that is best if latency and memory do not count. While the
    bracket is wide, the trials are in its middle. Later, a trial just above the largest rate so
    far finds a better split or proves that there is none. A split that is found is raised to
    its own largest rate. Where this gains little, a trial in the middle of the bracket comes
    next, so that the number of trials is that of a bisection at worst.

    Returns
    -------
    rate : float
        0 if no split carries any rate, within 1e-10 of the largest rate.
    n_trials : int
        Rates that were tried.
    """
    tables = new_tables(server)
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    cost = np.zeros((n_tiers + 1, n_cuts))
    origin = np.zeros((n_tiers + 1, n_cuts), np.int64)
    found = np.zeros(n_tiers + 1, np.int64)
    top = high = rate_limit(server, tables, found)
    low, n_trials, x = 0.0, 0, 1e-6 * top
    is_found, is_above, is_middle = top > 0.0, True, True
    while True:
        if is_found:
            before = low
            low = split_rate(server, tables, found, x, high)
            if n_trials > 0:
                low = max(low, x)
            is_above = is_middle or low > before * 1.01
            cuts[:] = found
        if high <= 1e-15 * max(top, 1.0) or high - low <= CLOSE * high:
            return low, n_trials
        if low == 0.0:
            x = high * (1.0 - SLACK) if n_trials == 0 else high / 4
        elif high > WIDE * low:
            x, is_above = np.sqrt(low * high), False
        elif is_above:
            x = min(low * (1.0 + CLOSE), (low + high) / 2)
        else:
            x = (low + high) / 2
        n_trials += 1
        is_middle = not is_above
        is_found = find_split(server, tables, x, cost, origin, found)
        if not is_found:
            if low > 0.0 and is_above:
                return low, n_trials
            high, is_above = x, True
