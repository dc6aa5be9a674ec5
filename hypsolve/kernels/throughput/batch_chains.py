"""The least sum of seconds over splits with similar KV memory, for certificates."""

import numpy as np

from hypsolve.kernels.jit import kernel
from hypsolve.kernels.throughput.pipeline_search import shortest_sum
from hypsolve.kernels.throughput.pipeline_tables import (
    held_cycles,
    limit_per_cycle,
    longest_cycle,
    new_tables,
    set_batch,
    under_way,
)


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
def is_refuted(server, tables, n_stages, first, n_pipelines, low, high, x):
    """Return whether no split with room for more than `low` requests per cycle carries x.

    Seconds are those of batches at `high` requests per cycle.
    """
    n = under_way(server, n_stages)
    cycle_s = high / (x / n_pipelines)
    if server.iteration_s * n > cycle_s:
        return True
    set_batch(server, tables, n, high)
    room = low * held_cycles(server, n)
    cuts = np.zeros(len(server.min_blocks) + 1, np.int64)
    sum_s = shortest_sum(server, tables, n_stages, first, n_pipelines, room, cycle_s, n, cuts)
    return sum_s > cycle_s


def warm_up(server):
    """Compile the kernels on a small server."""
    tables = new_tables(server)
    levels_of(server, tables, 1, 1)
    largest_level(server, 1, -1, 1, 0.1)
    is_refuted(server, tables, 1, -1, 1, 0.0, 1.0, 0.1)
