"""Kernels of the fluid model of a batched server: the largest rate over all splits.

| file | holds |
|---|---|
| `server` | `Server`, the seconds of an iteration |
| `node` | a node under the batching mode ``stage`` |
| `stage_tables` | tables of all stages and links at a rate |
| `chain` | the shortest chain of stages, its latencies |
| `labels` | the shortest chain within targets |
| `stage_search` | the largest rate under ``stage`` |
| `arcs` | every stage as an arc, for integer programs |
| `pipeline_tables` | rooms of stages, seconds of a batch under ``pipeline`` and ``serial`` |
| `pipeline_search` | the largest rate under ``pipeline`` and ``serial`` |
| `batch_chains` | splits with similar KV memory, for certificates |
| `many` | the largest rates of one model on many networks |
"""

import numpy as np

from hypsolve.kernels.throughput import (
    arcs,
    batch_chains,
    labels,
    pipeline_search,
    stage_search,
    stage_tables,
)
from hypsolve.kernels.throughput.server import (
    N_COLUMNS,
    PIPELINE,
    SERIAL,
    STAGE,
    Lengths,
    Server,
    Targets,
)

__all__ = [
    "N_COLUMNS",
    "PIPELINE",
    "SERIAL",
    "STAGE",
    "Lengths",
    "Server",
    "Targets",
    "max_rate",
    "warm_up",
]


def max_rate(server, cuts):
    """Return the largest rate that some split carries, its cuts filled in, and the trials.

    Parameters
    ----------
    server : Server
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in, unless the rate is 0.
    """
    search = stage_search if server.batching == STAGE else pipeline_search
    return search.max_rate(server, cuts)


def tiny(batching=STAGE, **changes):
    """Return a server of two blocks on two nodes."""
    ints, reals = np.int64, np.float64
    times = np.zeros((1, 1, N_COLUMNS))
    times[0, 0, 0] = 1.0
    server = Server(
        times,
        np.array([[1.0], [2.0]]),
        np.array([[-1, 0, 1], [-1, -1, 0], [-1, -1, -1]], ints),
        batching,
        0.0,
        np.array([0, 1, 2], ints),
        np.zeros(2, ints),
        np.ones(2, reals),
        np.full((2, 2), np.inf),
        np.array([0, 1, 2], ints),
        np.array([0, 1], ints),
        np.zeros((2, 3)),
        np.zeros(2),
        np.zeros(2),
        4.0,
        np.inf,
        np.inf,
        np.array([0, 0, 2], ints),
        np.array([0, 2, 2], ints),
        np.ones(2, ints),
        np.full(2, 2, ints),
        Lengths(10.0, 3.0, 1.0, 3.0, 1.0, 10.0),
        Targets(np.inf, np.inf, np.inf, np.inf, 0.0),
    )
    return server._replace(**changes)


def warm_up():
    """Compile the kernels on two blocks and two tiers.

    `many` is left out: only `throughput_many` needs it, and its first call compiles it.
    """
    cuts = np.zeros(3, np.int64)
    for batching in (STAGE, PIPELINE):
        max_rate(tiny(batching), cuts)
    server = tiny()
    tables = stage_tables.new_tables(server)
    arcs.arcs_at(server, tables, 0.1, 0.0)
    stage_search.split_rate(server, tables, np.array([0, 1, 2]), 0.1, 0.2)
    stage_search.rate_limit(server, tables, cuts)
    labels.shortest_within_targets(server, tables, 0.0, 0.1, cuts)
    batch_chains.warm_up(tiny(PIPELINE))
