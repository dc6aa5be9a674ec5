"""The least sum of seconds over splits with similar KV memory, for certificates."""

import numpy as np

from hypsolve.kernels.jit import kernel
from hypsolve.kernels.throughput.pipeline_search import shortest_sum, split_rate
from hypsolve.kernels.throughput.pipeline_tables import (
    held_cycles,
    jump_below,
    limit_per_cycle,
    longest_cycle,
    new_tables,
    set_batch,
    stage_s,
    under_way,
)
from hypsolve.kernels.throughput.server import SLACK, crosses, is_allowed
from hypsolve.kernels.throughput.servers import set_whole


@kernel
def levels_of(server, tables, n_stages, n_pipelines):
    """Return the requests per cycle that the memory of some stage allows, falling."""
    rooms = tables.level_rooms[n_pipelines - 1, : tables.n_level_rooms[n_pipelines - 1]]
    return rooms / held_cycles(server, under_way(server, n_stages))


@kernel
def largest_level(server, n_stages, first, n_pipelines, x):
    """Return the most requests per cycle that limits and targets allow at a rate."""
    n = under_way(server, n_stages)
    entry_s = server.entry_s[first] if first >= 0 else 0.0
    longest_s = longest_cycle(server, n, entry_s, x)
    return min(limit_per_cycle(server, n), x / n_pipelines * longest_s)


@kernel
def jumps_under(server, n_stages, top):
    """Return the requests per cycle below `top` where a collective jumps up, falling."""
    n, found = under_way(server, n_stages), []
    y = jump_below(server, n, top)
    while y > 0.0:
        found.append(y)
        y = jump_below(server, n, y)
    return np.array(found)


@kernel
def is_refuted(server, tables, n_stages, first, n_pipelines, low, high, x):
    """Return whether no split with room for more than `low` requests per cycle carries x.

    Seconds are those of batches at `high` requests per cycle.
    """
    n = under_way(server, n_stages)
    cycle_s = high / (x / n_pipelines)
    if server.iteration_s * n > cycle_s:
        return True
    set_batch(server, tables, n, high, 0)
    room = low * held_cycles(server, n)
    cuts = np.zeros(len(server.min_blocks) + 1, np.int64)
    sum_s = shortest_sum(server, tables, n_stages, first, n_pipelines, room, cycle_s, n, cuts)
    return sum_s > cycle_s


@kernel
def batch_arcs(server, tables, n_stages, first, n_pipelines, low, high, x):
    """Return the stages that may be in a split with room for more than `low` per cycle.

    Returns
    -------
    where : ndarray of int, shape (n_arcs, 3)
        Tier, first block, and the block behind the stage; an empty tier has an arc, too.
    seconds : ndarray, shape (n_arcs,)
        Seconds of a batch at `high` requests per cycle, with the link behind the stage.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    n = under_way(server, n_stages)
    alone_s = high / (x / n_pipelines) / n * (1.0 + SLACK)
    set_batch(server, tables, n, high, 0)
    room = low * held_cycles(server, n)
    most = n_tiers * n_cuts * (n_cuts + 1) // 2
    where, seconds = np.zeros((most, 3), np.int64), np.zeros(most)
    n_arcs = 0
    for k in range(n_tiers):
        for i in range(n_cuts):
            for j in range(i, n_cuts):
                if not is_allowed(server, k, i, j):
                    continue
                if first >= 0 and i == 0 and (j > 0) != (k >= first):
                    continue
                own_s, message_s = 0.0, tables.message_s[k, j]
                if i < j:
                    content = server.content[i, j]
                    own_s = stage_s(server, tables, k, content, n_pipelines, room)
                if max(own_s, message_s) > alone_s:
                    continue
                where[n_arcs, 0], where[n_arcs, 1], where[n_arcs, 2] = k, i, j
                seconds[n_arcs] = own_s + message_s
                if crosses(server, k, j):
                    seconds[n_arcs] += server.round_trip_s[k]
                n_arcs += 1
    return where[:n_arcs], seconds[:n_arcs]


@kernel
def level_of(server, tables, cuts, n_stages, n_pipelines):
    """Return the requests per cycle that the KV memory of a split allows."""
    room = np.inf
    for k in range(len(server.min_blocks)):
        if cuts[k] < cuts[k + 1]:
            content = server.content[cuts[k], cuts[k + 1]]
            room = min(room, tables.rooms[k, content, n_pipelines - 1])
    return room / held_cycles(server, under_way(server, n_stages))


@kernel
def rate_of(server, tables, cuts):
    """Return the largest rate of one split, with any number of pipelines."""
    return split_rate(server, tables, cuts, 0.0)


@kernel
def is_whole(server, k, cuts):
    """Put all blocks into one tier; return whether the limits of the tiers allow that."""
    return set_whole(server, k, cuts)


def warm_up(server):
    """Compile the kernels on a small server."""
    tables, cuts = new_tables(server), np.array([0, 1, 2])
    levels_of(server, tables, 1, 1)
    largest_level(server, 1, -1, 1, 0.1)
    jumps_under(server, 1, 0.1)
    is_refuted(server, tables, 1, -1, 1, 0.0, 1.0, 0.1)
    batch_arcs(server, tables, 1, -1, 1, 0.0, 1.0, 0.1)
    level_of(server, tables, cuts, 2, 1)
    rate_of(server, tables, cuts)
    is_whole(server, 0, cuts)
