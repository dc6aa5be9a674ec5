"""The largest request rate over all splits under ``pipeline`` and ``serial`` batching.

For K stages, n batches are under way (K or 1). If y requests start per cycle, a split with R
pipelines carries R y / C requests per second, where the cycle C is the sum of the seconds of
all stages, links and the host, and at least n times the largest of them. C / y does not rise in
y, so a split does best with the largest y that its KV memory allows. The search tries all of
these y, the *levels*. For given K, R and y, only stages with enough memory count, and their
seconds are fixed, so the least sum over stages that are short enough decides.
"""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_kernel, kernel
from hypsolve.kernels.throughput.server import PIPELINE, SLACK, crosses, is_allowed, tau

CLOSE = 1e-11  # a rate is not improved by less than this share of it
LEAST = 1e-9  # requests per second; smaller rates count as none


class Tables(NamedTuple):
    """Work space of the search."""

    n_holders: np.ndarray  # nodes that can hold a stage, (n_tiers, n_contents)
    rooms: np.ndarray  # least room of the first r + 1 of them, (n_tiers, n_contents, r)
    class_s: np.ndarray  # seconds of a batch on a class, (n_classes, n_contents)
    batch_s: np.ndarray  # seconds of a batch on the slowest node, (n_tiers, n_contents)
    cost: np.ndarray  # least sum of seconds, (n_tiers + 1, n_cuts, n_tiers + 1)
    origin: np.ndarray  # cut before the last tier in it


@kernel
def new_tables(server):
    """Return tables of rooms for a server, and work space."""
    n_tiers, n_contents = len(server.min_blocks), server.counts.shape[0]
    n_cuts, n_classes = server.content.shape[0], server.times.shape[0]
    widest = 0
    for k in range(n_tiers):
        widest = max(widest, server.node_start[k + 1] - server.node_start[k])
    n_holders = np.zeros((n_tiers, n_contents), np.int64)
    rooms = np.zeros((n_tiers, n_contents, widest))
    for k in range(n_tiers):
        for content in range(n_contents):
            least = np.inf
            for node in range(server.node_start[k], server.node_start[k + 1]):
                room = server.room[server.node_group[node], content]
                if room > 0.0:
                    least = min(least, room)
                    rooms[k, content, n_holders[k, content]] = least
                    n_holders[k, content] += 1
    return Tables(
        n_holders,
        rooms,
        np.zeros((n_classes, n_contents)),
        np.zeros((n_tiers, n_contents)),
        np.zeros((n_tiers + 1, n_cuts, n_tiers + 1)),
        np.zeros((n_tiers + 1, n_cuts, n_tiers + 1), np.int64),
    )


@bare_kernel
def under_way(server, n_stages):
    """Return the batches under way."""
    return n_stages if server.batching == PIPELINE else 1


@bare_kernel
def limit_per_cycle(server, n):
    """Return the requests that may start per cycle, apart from KV memory."""
    lengths = server.lengths
    y = server.max_num_seqs / (lengths.passes + 1.0 + (lengths.chunks - 1.0) / n)
    y = min(y, n * server.max_prompt_tokens / lengths.prompt_tokens)
    return min(y, n * server.max_tokens / (lengths.prompt_tokens + lengths.passes))


@bare_kernel
def held_cycles(server, n):
    """Return the cycles for which a request holds KV cache."""
    return server.lengths.hold_passes + 1.0 + (server.lengths.hold_chunks - 1.0) / n


@bare_kernel
def longest_cycle(server, n, entry_s, x):
    """Return the longest cycle that the targets allow at x requests per second."""
    lengths, targets = server.lengths, server.targets
    prompt = 1.0 + (lengths.chunks - 1.0) / n
    longest = (targets.ttft_s - entry_s) / prompt
    if lengths.passes > 0.0:
        longest = min(longest, targets.tpot_s)
    latency_s = min(targets.latency_s, targets.users / x - targets.think_time_s)
    return min(longest, (latency_s - entry_s) / (prompt + lengths.passes))


@bare_kernel
def slowest_s(server, tables, k, content, n_pipelines):
    """Return the seconds of a batch on the slowest of the first nodes that hold a stage."""
    seconds, n_left = 0.0, n_pipelines
    for node in range(server.node_start[k], server.node_start[k + 1]):
        group = server.node_group[node]
        if server.room[group, content] > 0.0:
            seconds = max(seconds, tables.class_s[server.group_class[group], content])
            n_left -= 1
            if n_left == 0:
                break
    return seconds


@bare_kernel
def _fill(server, tables, n_pipelines, room, b, k_chunks):
    """Set the seconds of a batch in all stages with enough nodes and room; inf for others."""
    for c in range(server.times.shape[0]):
        for content in range(server.counts.shape[0]):
            tables.class_s[c, content] = tau(server, c, content, b, k_chunks)
    for k in range(len(server.min_blocks)):
        for content in range(server.counts.shape[0]):
            tables.batch_s[k, content] = np.inf
            if tables.n_holders[k, content] < n_pipelines:
                continue
            if tables.rooms[k, content, n_pipelines - 1] * (1.0 + SLACK) >= room:
                seconds = slowest_s(server, tables, k, content, n_pipelines)
                tables.batch_s[k, content] = seconds


@bare_kernel
def shortest_sum(server, tables, n_stages, first, alone_s, tokens, cuts):
    """Return the least sum of seconds of stages and links, none longer than `alone_s`.

    Parameters
    ----------
    n_stages, first : int
        Stages that host blocks, and the first such tier; -1: any tier.
    alone_s : float
        Seconds of a stage, or of a message, at most.
    tokens : float
        Tokens of a message.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in, if there is a split.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    cost, origin = tables.cost, tables.origin
    cost[:] = np.inf
    cost[0, 0, 0] = 0.0
    for k in range(n_tiers):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            for j in range(i, min(n_cuts - 1, i + server.max_blocks[k]) + 1):
                if not is_allowed(server, k, i, j):
                    continue
                if first >= 0 and i == 0 and (j > 0) != (k >= first):
                    continue
                seconds = 0.0
                if crosses(server, k, j):
                    message_s = tokens * server.link_s[k, j]
                    if message_s > alone_s:
                        continue
                    seconds = message_s + server.round_trip_s[k]
                used = 0
                if i < j:
                    used = 1
                    stage_s = tables.batch_s[k, server.content[i, j]]
                    if stage_s > alone_s or stage_s == np.inf:
                        continue
                    seconds += stage_s
                for count in range(n_stages + 1 - used):
                    total = cost[k, i, count] + seconds
                    if total < cost[k + 1, j, count + used]:
                        cost[k + 1, j, count + used] = total
                        origin[k + 1, j, count + used] = i
    best = cost[n_tiers, n_cuts - 1, n_stages]
    if best < np.inf:
        cut, count = n_cuts - 1, n_stages
        for k in range(n_tiers, 0, -1):
            cuts[k] = cut
            before = origin[k, cut, count]
            if before < cut:
                count -= 1
            cut = before
        cuts[0] = 0
    return best


@bare_kernel
def try_level(server, tables, n_stages, first, n_pipelines, level, x, cuts):
    """Return whether a split of n stages carries x with at most `level` requests per cycle."""
    n, x_each = under_way(server, n_stages), x / n_pipelines
    entry_s = server.entry_s[first] if first >= 0 else 0.0
    y = min(level, x_each * longest_cycle(server, n, entry_s, x))
    if y <= 0.0:
        return False
    cycle_s = y / x_each * (1.0 + SLACK)
    if server.iteration_s * n > cycle_s:
        return False
    lengths = server.lengths
    b, k_chunks = y * lengths.passes / n, y * lengths.chunks / n
    _fill(server, tables, n_pipelines, y * held_cycles(server, n), b, k_chunks)
    tokens = b + k_chunks * lengths.prompt_tokens / lengths.chunks
    sum_s = shortest_sum(server, tables, n_stages, first, cycle_s / n, tokens, cuts)
    return sum_s + server.iteration_s <= cycle_s


@bare_kernel
def one_cycle_s(server, tables, cuts, n, n_pipelines, y):
    """Return the cycle of one split in which y requests start."""
    lengths = server.lengths
    b, k_chunks = y * lengths.passes / n, y * lengths.chunks / n
    tokens = b + k_chunks * lengths.prompt_tokens / lengths.chunks
    total = longest = server.iteration_s
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            content = server.content[i, j]
            for c in range(server.times.shape[0]):
                tables.class_s[c, content] = tau(server, c, content, b, k_chunks)
            seconds = slowest_s(server, tables, k, content, n_pipelines)
            total += seconds
            longest = max(longest, seconds)
        if crosses(server, k, j):
            seconds = tokens * server.link_s[k, j]
            total += seconds + server.round_trip_s[k]
            longest = max(longest, seconds)
    return max(total, n * longest)


@bare_kernel
def is_met(server, tables, cuts, n, first, n_pipelines, most, x):
    """Return whether one split carries x with at most so many requests per cycle."""
    each = x / n_pipelines
    y = min(most, each * longest_cycle(server, n, server.entry_s[first], x))
    if y <= 0.0:
        return False
    cycle_s = one_cycle_s(server, tables, cuts, n, n_pipelines, y)
    return each * cycle_s <= y * (1.0 + SLACK)


@bare_kernel
def split_rate(server, tables, cuts, low):
    """Return the largest rate of one split, which carries `low`."""
    n_stages, first, least = 0, -1, 2**62
    for k in range(len(server.min_blocks)):
        if cuts[k] < cuts[k + 1]:
            n_stages += 1
            first = k if first < 0 else first
            least = min(least, tables.n_holders[k, server.content[cuts[k], cuts[k + 1]]])
    n = under_way(server, n_stages)
    best = low
    for n_pipelines in range(1, least + 1):
        room = np.inf
        for k in range(len(server.min_blocks)):
            if cuts[k] < cuts[k + 1]:
                content = server.content[cuts[k], cuts[k + 1]]
                room = min(room, tables.rooms[k, content, n_pipelines - 1])
        most = min(limit_per_cycle(server, n), room / held_cycles(server, n))
        cycle_s = one_cycle_s(server, tables, cuts, n, n_pipelines, most)
        high = n_pipelines * most / cycle_s
        if high <= best:
            continue
        if is_met(server, tables, cuts, n, first, n_pipelines, most, high):
            best = high
            continue
        while high - best > CLOSE / 8 * high and high > 1e-15:
            middle = (best + high) / 2
            if is_met(server, tables, cuts, n, first, n_pipelines, most, middle):
                best = middle
            else:
                high = middle
    return best


@kernel
def max_rate(server, cuts):
    """Return the largest rate that some split carries, its cuts filled in, and the trials.

    Each round tries all levels just above the best rate so far. A split that carries that rate
    is raised to its largest one, and then rates further above are tried at its level. The
    answer is final once no level has such a split.
    """
    tables = new_tables(server)
    n_tiers = len(server.min_blocks)
    found = np.zeros(n_tiers + 1, np.int64)
    targets = server.targets
    times = min(targets.ttft_s, targets.latency_s)
    by_entry = (times < np.inf or targets.users < np.inf) and server.entry_s.max() > 0.0
    best, n_trials, raised = 0.0, 0, True
    while raised:
        raised = False
        for n_stages in range(n_tiers, 0, -1):
            for first in range(0 if by_entry else -1, n_tiers if by_entry else 0):
                for n_pipelines in range(1, tables.rooms.shape[2] + 1):
                    levels = _levels(server, tables, n_stages, n_pipelines)
                    for level in levels:
                        rate, trials = _raise(
                            server, tables, n_stages, first, n_pipelines, level, best, cuts,
                            found,
                        )  # fmt: skip
                        n_trials += trials
                        raised = raised or rate > best
                        best = rate
        if targets.users == np.inf:
            break  # levels do not depend on each other
    return best, n_trials


@kernel
def _levels(server, tables, n_stages, n_pipelines):
    """Return the requests that may start per cycle by the memory of some stage, falling."""
    n = under_way(server, n_stages)
    most = limit_per_cycle(server, n)
    values = np.zeros(tables.n_holders.size + 1)
    at = 0
    any_room = False
    for k in range(tables.n_holders.shape[0]):
        for content in range(tables.n_holders.shape[1]):
            if tables.n_holders[k, content] >= n_pipelines:
                room = tables.rooms[k, content, n_pipelines - 1]
                any_room = True
                values[at] = min(most, room / held_cycles(server, n))
                at += 1
    return np.unique(values[:at])[::-1] if any_room else values[:0]


@bare_kernel
def _raise(server, tables, n_stages, first, n_pipelines, level, best, cuts, found):
    """Return the best rate after trials at one level, and their number.

    The step above the best rate grows after a success and shrinks after a failure.
    """
    step, trials = CLOSE, 0
    while True:
        x = best * (1.0 + step) if best > 0.0 else LEAST
        trials += 1
        if try_level(server, tables, n_stages, first, n_pipelines, level, x, found):
            for k in range(len(cuts)):
                cuts[k] = found[k]
            best = max(split_rate(server, tables, found, x), x)
            step = 1e-3
        elif step > CLOSE:
            step = CLOSE
        else:
            return best, trials
