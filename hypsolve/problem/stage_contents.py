"""`stage_contents`: stages with equal numbers of blocks of every kind have equal costs."""

from __future__ import annotations

import numpy as np

from hypsolve.problem.arrays import Array, IntArray


def stage_contents(block_kind: IntArray, n_kinds: int) -> tuple[IntArray, Array]:
    """Return the number of the content of every stage, and the blocks by kind of each.

    Parameters
    ----------
    block_kind : ndarray of int, shape (n_blocks,)
    n_kinds : int

    Returns
    -------
    content : ndarray of int, shape (n_cuts, n_cuts)
        Number of the content of blocks i:j; -1 unless i < j.
    counts : ndarray, shape (n_contents, n_kinds)
        Blocks of each kind.
    """
    n_cuts = len(block_kind) + 1
    prefix = np.zeros((n_cuts, n_kinds), dtype=np.int64)
    prefix[np.arange(1, n_cuts), block_kind] = 1
    prefix = np.cumsum(prefix, axis=0)
    i, j = np.triu_indices(n_cuts, 1)
    counts, inverse = np.unique(prefix[j] - prefix[i], axis=0, return_inverse=True)
    table = np.full((n_cuts, n_cuts), -1, dtype=np.int64)
    table[i, j] = inverse.reshape(-1)
    return table, np.ascontiguousarray(counts, dtype=np.float64)
