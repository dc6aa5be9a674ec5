"""Paths of requests through a layout: smooth weighted round robin at every node."""

import numpy as np

from hypsolve.kernels.jit import kernel
from hypsolve.kernels.token_level.layout import NIL


@kernel
def draw_paths(edge_start, edge_to, share, n_requests, max_hops):
    """Return the nodes that requests pass, in the order of their arrival.

    Node 0 is the coordinator, where every path begins and ends. After t requests at a node,
    edge e is due ``share[e] * (t + 1)`` of them; the request takes the edge that lags most
    behind this number, ties the first one.

    Parameters
    ----------
    edge_start : ndarray of int, shape (n_nodes + 1,)
        Edges of node n are ``edge_start[n]:edge_start[n + 1]``.
    edge_to : ndarray of int, shape (n_edges,)
    share : ndarray, shape (n_edges,)
        They add up to 1 at each node.
    n_requests : int
    max_hops : int
        Length of the longest path.

    Returns
    -------
    ndarray of int, shape (n_requests, max_hops)
        -1 behind the last node of a path.
    """
    paths = np.full((n_requests, max_hops), NIL)
    taken = np.zeros(len(edge_to))
    passed = np.zeros(len(edge_start) - 1)
    for r in range(n_requests):
        at, hop = 0, 0
        while True:
            best = edge_start[at]
            best_lag = -np.inf
            for e in range(edge_start[at], edge_start[at + 1]):
                lag = share[e] * (passed[at] + 1.0) - taken[e]
                if lag > best_lag:
                    best, best_lag = e, lag
            taken[best] += 1.0
            passed[at] += 1.0
            at = edge_to[best]
            if at == 0:
                break
            paths[r, hop] = at
            hop += 1
    return paths
