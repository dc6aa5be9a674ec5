"""Rooms of stages, and seconds of a batch, under ``pipeline`` and ``serial`` batching."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, inner_kernel, kernel
from hypsolve.kernels.throughput.server import (
    ALPHA,
    BETA,
    CHUNK_TOKENS,
    DELTA,
    GAMMA,
    MIN_ITERATION_S,
    PIPELINE,
    SLACK,
    SWITCH,
    block_s,
    crosses,
)

UNKNOWN = -1.0


class Tables(NamedTuple):
    """Work space of the search.

    The rooms do not depend on a batch. `set_batch` sets `unit_s` and `message_s` for a batch,
    and empties `batch_s`, which `stage_s` fills in for the stages that are looked up.
    """

    n_holders: np.ndarray  # nodes that can hold a stage, (n_tiers, n_contents)
    rooms: np.ndarray  # least room of the first r + 1 of them, (n_tiers, n_contents, r)
    level_rooms: np.ndarray  # distinct rooms for r + 1 pipelines, falling, (r, any)
    n_level_rooms: np.ndarray  # their number, (r,)
    times: np.ndarray  # those of the server, and those with collectives that do not jump up
    unit_s: np.ndarray  # seconds of a block of each kind on a class, (n_classes, n_kinds)
    batch_s: np.ndarray  # of a stage on its slowest node, inf if it does not fit, or UNKNOWN
    message_s: np.ndarray  # seconds that a batch keeps a link busy, (n_tiers, n_cuts)
    cost: np.ndarray  # least sum of seconds, (n_tiers + 1, n_cuts, n_tiers + 1)
    origin: np.ndarray  # cut before the last tier in it


@bare_inner_kernel
def jumps_up(row):
    """Return whether the collective of a block takes longer at once above some size."""
    return row[GAMMA] + row[DELTA] * row[SWITCH] > row[ALPHA] + row[BETA] * row[SWITCH]


@inner_kernel
def _all_times(server):
    """Return the times of a server, and again with collectives that go on without a jump.

    Above the size of the jump, these take no longer, and no steeper a line than below it.
    """
    has_jumps, (n_classes, n_kinds, n_columns) = 0, server.times.shape
    for c in range(n_classes):
        for kind in range(n_kinds):
            has_jumps = max(has_jumps, int(jumps_up(server.times[c, kind])))
    found = np.zeros((1 + has_jumps, n_classes, n_kinds, n_columns))
    for at in range(1 + has_jumps):
        found[at] = server.times
    for c in range(has_jumps * n_classes):
        for kind in range(n_kinds):
            row = found[1, c, kind]
            if jumps_up(row):
                at_switch_s = row[ALPHA] + row[BETA] * row[SWITCH]
                row[DELTA] = min(row[DELTA], row[BETA])
                row[GAMMA] = at_switch_s - row[DELTA] * row[SWITCH]
    return found


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
    level_rooms = np.zeros((widest, n_tiers * n_contents))
    n_level_rooms = np.zeros(widest, np.int64)
    for r in range(widest):
        distinct = np.unique(rooms[:, :, r])[::-1]
        n_level_rooms[r] = len(distinct)
        if distinct[-1] == 0.0:  # of stages with fewer holders
            n_level_rooms[r] -= 1
        for at in range(n_level_rooms[r]):
            level_rooms[r, at] = distinct[at]
    return Tables(
        n_holders,
        rooms,
        level_rooms,
        n_level_rooms,
        _all_times(server),
        np.zeros((n_classes, server.counts.shape[1])),
        np.zeros((n_tiers, n_contents)),
        np.zeros((n_tiers, n_cuts)),
        np.zeros((n_tiers + 1, n_cuts, n_tiers + 1)),
        np.zeros((n_tiers + 1, n_cuts, n_tiers + 1), np.int64),
    )


@bare_inner_kernel
def under_way(server, n_stages):
    """Return the batches under way."""
    return n_stages if server.batching == PIPELINE else 1


@bare_inner_kernel
def limit_per_cycle(server, n):
    """Return the requests that may start per cycle, apart from KV memory."""
    lengths = server.lengths
    y = server.max_num_seqs / (lengths.passes + 1.0 + (lengths.chunks - 1.0) / n)
    y = min(y, n * server.max_prompt_tokens / lengths.prompt_tokens)
    return min(y, n * server.max_tokens / (lengths.prompt_tokens + lengths.passes))


@bare_inner_kernel
def held_cycles(server, n):
    """Return the cycles for which a request holds KV cache."""
    return server.lengths.hold_passes + 1.0 + (server.lengths.hold_chunks - 1.0) / n


@bare_inner_kernel
def longest_cycle(server, n, entry_s, x):
    """Return the longest cycle that the targets allow at x requests per second."""
    lengths, targets = server.lengths, server.targets
    prompt = 1.0 + (lengths.chunks - 1.0) / n
    longest = (targets.ttft_s - entry_s) / prompt
    if lengths.passes > 0.0:
        longest = min(longest, targets.tpot_s)
    latency_s = min(targets.latency_s, targets.users / x - targets.think_time_s)
    return min(longest, (latency_s - entry_s) / (prompt + lengths.passes))


@bare_inner_kernel
def jump_below(server, n, y):
    """Return the largest number of requests per cycle below y where a collective jumps up.

    There, an iteration has as many tokens as the faster algorithm takes, and a cycle over its
    requests may be shorter than with more of them. 0: there is no such number.

    Parameters
    ----------
    n : int
        Batches under way.
    y : float
        Requests per cycle.
    """
    lengths, found = server.lengths, 0.0
    for group in range(server.group_start[len(server.min_blocks)]):
        rows = server.times[server.group_class[group]]
        for kind in range(rows.shape[0]):
            row = rows[kind]
            switch, tokens = row[SWITCH], row[CHUNK_TOKENS]
            if not jumps_up(row):
                continue
            # in iterations of several chunks, of one, and of none
            all_tokens = lengths.passes + lengths.chunks * tokens
            for way in range(3):
                size = switch - tokens if way == 1 else switch
                of_request = all_tokens if way == 0 else lengths.passes
                if size <= 0.0 or of_request <= 0.0:
                    continue
                at = size / of_request * (1.0 - SLACK)
                if (at * lengths.chunks > 1.0) == (way == 0) and n * at < y * (1.0 - SLACK):
                    found = max(found, n * at)
    return found


@bare_inner_kernel
def set_batch(server, tables, n, y, times):
    """Set the tables for batches of y requests per cycle, n batches under way.

    `times` is 0, or 1 for collectives that do not jump up.
    """
    lengths = server.lengths
    b, k_chunks = y * lengths.passes / n, y * lengths.chunks / n
    for c in range(server.times.shape[0]):
        for kind in range(server.counts.shape[1]):
            tables.unit_s[c, kind] = block_s(tables.times[times, c, kind], b, k_chunks)
    tokens = b + k_chunks * lengths.prompt_tokens / lengths.chunks
    for k in range(len(server.min_blocks)):
        for cut in range(server.cut_min[k + 1], server.cut_max[k + 1] + 1):
            seconds = 0.0
            if crosses(server, k, cut):
                seconds = tokens * server.link_s[k, cut]
            tables.message_s[k, cut] = seconds
    tables.batch_s[:] = UNKNOWN


@bare_inner_kernel
def slowest_s(server, tables, k, content, n_pipelines):
    """Return the seconds of a batch on the slowest of the first nodes that hold a stage."""
    slowest, n_left, last = MIN_ITERATION_S, n_pipelines, -1
    for node in range(server.node_start[k], server.node_start[k + 1]):
        group = server.node_group[node]
        if server.room[group, content] > 0.0:
            c = server.group_class[group]
            if c != last:
                seconds = 0.0
                for kind in range(server.counts.shape[1]):
                    seconds += server.counts[content, kind] * tables.unit_s[c, kind]
                slowest, last = max(slowest, seconds), c
            n_left -= 1
            if n_left == 0:
                break
    return slowest


@bare_inner_kernel
def stage_s(server, tables, k, content, n_pipelines, room):
    """Return the seconds of a batch in a stage, inf without enough nodes with enough room."""
    seconds = tables.batch_s[k, content]
    if seconds == UNKNOWN:
        seconds = np.inf
        if (
            tables.n_holders[k, content] >= n_pipelines
            and tables.rooms[k, content, n_pipelines - 1] * (1.0 + SLACK) >= room
        ):
            seconds = slowest_s(server, tables, k, content, n_pipelines)
        tables.batch_s[k, content] = seconds
    return seconds
