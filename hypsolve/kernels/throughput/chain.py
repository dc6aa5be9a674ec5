"""The chain of stages and links in which KV cache is held for the least time, at a rate."""

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel
from hypsolve.kernels.throughput.stage_tables import is_roomy, pass_s


@bare_inner_kernel
def stage_held_s(server, tables, k, i, j):
    """Return W, the seconds for which a request holds KV cache because of a stage."""
    content = server.content[i, j]
    decode_s = pass_s(server, tables, k, content, j)
    return server.lengths.hold_passes * decode_s + tables.chunk_s[k, content]


@bare_inner_kernel
def link_held_s(server, tables, k, cut):
    """Return L, the seconds for which a request holds KV cache because of a link."""
    held_s = server.lengths.hold_passes * tables.link_decode_s[k, cut]
    return held_s + tables.link_held_s[k, cut]


@bare_inner_kernel
def is_open(server, tables, k, i, j, held_s, x):
    """Return whether a stage may be in a chain in which KV cache is held for so long."""
    if i == j:
        return True
    content = server.content[i, j]
    if tables.is_set[k, content] == 0:
        return False
    elsewhere_s = held_s - stage_held_s(server, tables, k, i, j)
    return is_roomy(server, tables, k, content, elsewhere_s, x)


@bare_inner_kernel
def shortest_chain(server, tables, held_s, x, cost, origin, cuts):
    """Return the least seconds for which KV cache is held, over chains of open stages.

    Parameters
    ----------
    held_s : float
        Stages must have KV memory if it is held for so many seconds.
    cost, origin : ndarray, shape (n_tiers + 1, n_cuts)
        Work space.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled with the chain, if there is one.

    Returns
    -------
    float
        inf if there is no chain.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    cost[:] = np.inf
    cost[0, 0] = 0.0
    for k in range(n_tiers):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if cost[k, i] == np.inf or not tables.behind[k, i]:
                continue
            last = min(n_cuts - 1, i + server.max_blocks[k], server.cut_max[k + 1])
            for j in range(max(i + server.min_blocks[k], server.cut_min[k + 1]), last + 1):
                if not tables.behind[k + 1, j]:
                    continue
                total = cost[k, i] + link_held_s(server, tables, k, j)
                if i < j:
                    if tables.is_set[k, server.content[i, j]] == 0:
                        continue
                    total += stage_held_s(server, tables, k, i, j)
                if total >= cost[k + 1, j] or tables.link_prompt_s[k, j] == np.inf:
                    continue
                if is_open(server, tables, k, i, j, held_s, x):
                    cost[k + 1, j], origin[k + 1, j] = total, i
    if cost[n_tiers, n_cuts - 1] < np.inf:
        cuts[n_tiers] = n_cuts - 1
        for k in range(n_tiers - 1, -1, -1):
            cuts[k] = origin[k + 1, cuts[k + 1]]
    return cost[n_tiers, n_cuts - 1]


@bare_inner_kernel
def latencies(server, tables, cuts):
    """Return seconds to the first token and of each later one, and of KV cache, of a chain."""
    lengths = server.lengths
    n_cuts = server.content.shape[0]
    ttft, decode, held, largest = 0.0, 0.0, 0.0, 0.0
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            content = server.content[i, j]
            if i == 0:
                ttft += server.entry_s[k]
            ttft += tables.chunk_s[k, content]
            largest = max(largest, tables.chunk_s[k, content])
            decode += pass_s(server, tables, k, content, j)
            held += stage_held_s(server, tables, k, i, j)
        if 0 < j < n_cuts - 1:
            ttft += tables.link_prompt_s[k, j]
            decode += tables.link_decode_s[k, j]
            held += link_held_s(server, tables, k, j)
    return ttft + (lengths.chunks - 1.0) * largest, decode, held


@bare_inner_kernel
def latency_limit(server, x):
    """Return the largest latency that the target and the users allow at a rate."""
    targets = server.targets
    return min(targets.latency_s, targets.users / x - targets.think_time_s)


@bare_inner_kernel
def meets(server, ttft, decode, x):
    """Return whether latencies meet all targets at a rate."""
    slack, passes, targets = 1.0 + 1e-12, server.lengths.passes, server.targets
    if passes > 0.0 and decode > targets.tpot_s * slack:
        return False
    if ttft > targets.ttft_s * slack:
        return False
    limit = latency_limit(server, x)
    return ttft + passes * decode <= limit + 1e-12 * abs(limit)


@bare_inner_kernel
def target_margin(server, ttft, decode, x):
    """Return the least of all targets, each divided by its latency, less 1; see `meets`."""
    passes, targets = server.lengths.passes, server.targets
    latency = ttft + passes * decode
    share = min(targets.ttft_s / ttft, targets.latency_s / latency)
    if passes > 0.0:
        share = min(share, targets.tpot_s / decode)
    return min(share, targets.users / (x * (latency + targets.think_time_s))) - 1.0


@bare_inner_kernel
def has_targets(server):
    """Return whether any target limits the rate."""
    targets = server.targets
    times = min(targets.ttft_s, targets.tpot_s, targets.latency_s)
    return times < np.inf or targets.users < np.inf
