"""A tiny server, on which `warm_up` compiles the kernels."""

import numpy as np

from hypsolve.kernels.throughput.server import N_COLUMNS, STAGE, Lengths, Server, Targets


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
