"""Compilation of all kernels that the modes ``pipeline`` and ``serial`` need."""

import numpy as np

from hypsolve.kernels.throughput import batch_chains, pipeline_search
from hypsolve.kernels.throughput.server import PIPELINE
from hypsolve.kernels.throughput.tiny import tiny


def warm_up():
    """Compile the search and the kernels of certificates on two blocks and two tiers."""
    server = tiny(PIPELINE)
    pipeline_search.max_rate(server, np.zeros(3, np.int64))
    batch_chains.warm_up(server)
