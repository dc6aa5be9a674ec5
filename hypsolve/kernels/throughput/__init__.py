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
| `servers` | the largest rate of nodes that hold all blocks, under these modes |
| `batch_chains` | splits with similar KV memory, for certificates |
| `stage_mode`, `pipeline_mode` | compilation of all that a batching mode needs |
| `tiny` | the input of `warm_up` |
| `many` | the largest rates of one model on many networks |
"""

from hypsolve.kernels.throughput import (
    pipeline_mode,
    pipeline_search,
    stage_mode,
    stage_search,
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


def warm_up():
    """Compile the kernels of all batching modes.

    `many` is left out: only `throughput_many` needs it, and its first call compiles it.
    """
    stage_mode.warm_up()
    pipeline_mode.warm_up()
