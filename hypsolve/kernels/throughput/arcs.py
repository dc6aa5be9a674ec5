"""Every stage of every tier as an arc between cuts, at a rate, for integer programs."""

import numpy as np

from hypsolve.kernels.jit import kernel
from hypsolve.kernels.throughput.chain import is_open
from hypsolve.kernels.throughput.labels import add_step
from hypsolve.kernels.throughput.server import is_allowed
from hypsolve.kernels.throughput.stage_tables import fill


@kernel
def arcs_at(server, tables, x, held_s):
    """Return the arcs that are open at a rate if KV cache is held for so many seconds.

    Returns
    -------
    where : ndarray of int, shape (n_arcs, 3)
        Tier, first block, and the block behind the stage; an empty tier has an arc, too.
    numbers : ndarray, shape (n_arcs, 4)
        Seconds of a decode pass, of the prompt, of the prompt in proportion to the KV cache
        held, and of a chunk, with the link behind the stage; see `labels`.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    if not fill(server, tables, x):
        return np.zeros((0, 3), np.int64), np.zeros((0, 4))
    most = n_tiers * n_cuts * (n_cuts + 1) // 2
    where, numbers = np.zeros((most, 3), np.int64), np.zeros((most, 4))
    n_arcs = 0
    for k in range(n_tiers):
        for i in range(n_cuts):
            for j in range(i, n_cuts):
                if not (tables.ahead[k, i] and tables.behind[k + 1, j]):
                    continue
                if not is_allowed(server, k, i, j) or tables.link_prompt_s[k, j] == np.inf:
                    continue
                if not is_open(server, tables, k, i, j, held_s, x):
                    continue
                where[n_arcs, 0], where[n_arcs, 1], where[n_arcs, 2] = k, i, j
                add_step(server, tables, k, i, j, numbers[n_arcs])
                n_arcs += 1
    return where[:n_arcs], numbers[:n_arcs]
