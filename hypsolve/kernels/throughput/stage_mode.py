"""Compilation of all kernels that the batching mode ``stage`` needs."""

import numpy as np

from hypsolve.kernels.throughput import arcs, labels, stage_search, stage_tables
from hypsolve.kernels.throughput.server import STAGE
from hypsolve.kernels.throughput.tiny import tiny


def warm_up():
    """Compile the search and the kernels of certificates on two blocks and two tiers."""
    server, cuts = tiny(STAGE), np.array([0, 1, 2])
    stage_search.max_rate(server, cuts)
    tables = stage_tables.new_tables(server)
    arcs.arcs_at(server, tables, 0.1, 0.0)
    stage_search.split_rate(server, tables, np.array([0, 1, 2]), 0.1, 0.2)
    stage_search.rate_limit(server, tables, cuts)
    labels.shortest_within_targets(server, tables, 0.0, 0.1, cuts)
