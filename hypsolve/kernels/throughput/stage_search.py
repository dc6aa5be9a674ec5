"""The largest request rate over all splits under the batching mode ``stage``."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel, kernel
from hypsolve.kernels.throughput.chain import (
    has_targets,
    latencies,
    meets,
    shortest_chain,
    stage_held_s,
)
from hypsolve.kernels.throughput.labels import shortest_within_targets
from hypsolve.kernels.throughput.server import SLACK, crosses, is_allowed
from hypsolve.kernels.throughput.stage_tables import (
    fill,
    fill_link,
    fill_stage,
    is_roomy,
    new_tables,
)

CLOSE = 1e-11  # a rate is not improved by less than this share of it


@kernel
def rate_limit(server, tables):
    """Return the largest rate at which all stages and links of some split keep up.

    A bottleneck recurrence over tiers and cuts. Latency, memory and targets do not count.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    best = np.zeros((n_tiers + 1, n_cuts))
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
                best[k + 1, j] = max(best[k + 1, j], rate)
    return best[n_tiers, n_cuts - 1]


@bare_kernel
def link_limit(server, tier, cut):
    """Return the rate at which the link behind a tier is always busy."""
    if not crosses(server, tier, cut) or server.link_s[tier, cut] == 0.0:
        return np.inf
    lengths = server.lengths
    return 1.0 / ((lengths.prompt_tokens + lengths.passes) * server.link_s[tier, cut])


@kernel
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


@bare_kernel
def carries(server, tables, cuts, x):
    """Return whether one split carries x requests per second."""
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        fill_link(server, tables, k, j, x)
        if tables.link_prompt_s[k, j] == np.inf:
            return False
        if i < j:
            if tables.most[k, server.content[i, j]] * (1.0 + SLACK) < x:
                return False
            fill_stage(server, tables, k, server.content[i, j], x)
    ttft, decode, held_s = latencies(server, tables, cuts)
    if not meets(server, ttft, decode, x):
        return False
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            elsewhere_s = held_s - stage_held_s(server, tables, k, i, j)
            if not is_roomy(server, tables, k, server.content[i, j], elsewhere_s, x):
                return False
    return True


@bare_kernel
def split_rate(server, tables, cuts, low, high):
    """Return the largest rate in low..high that a split carries; it carries `low`."""
    if carries(server, tables, cuts, high):
        return high
    while high - low > CLOSE / 8 * high and high > 1e-15:
        middle = (low + high) / 2
        if carries(server, tables, cuts, middle):
            low = middle
        else:
            high = middle
    return low


@kernel
def max_rate(server, cuts):
    """Return the largest rate that some split carries, its cuts filled in, and the trials.

    Bisection on the rate: a rate that some split carries is raised to the largest rate of this
    split. Once the bracket is narrow, the answer is tried for the last time just above it.

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
    top = high = rate_limit(server, tables)
    low, n_trials = 0.0, 0
    x = high * (1.0 - SLACK)
    while high > 1e-15 * max(top, 1.0):
        n_trials += 1
        if find_split(server, tables, x, cost, origin, found):
            low = split_rate(server, tables, found, x, high)
            cuts[:] = found
        else:
            high = x
        if high - low <= CLOSE * high:
            break
        if (low > 0.0 and high > low * 1.001) or low == 0.0:
            x = (low + high) / 2 if low > 0.0 else high / 4
        else:
            x = min(low * (1.0 + CLOSE), (low + high) / 2)
    return low, n_trials
