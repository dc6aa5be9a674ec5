"""Averages over bins of time, from the intervals in which something was so."""

import numpy as np

from hypsolve.problem.arrays import Array, IntArray


def bin_intervals(
    start_s: Array,
    end_s: Array,
    weight: Array | float,
    row: IntArray,
    *,
    n_rows: int,
    first_s: float,
    bin_s: float,
    n_bins: int,
) -> Array:
    """Time average, per row and bin, of the weights of the intervals that are open.

    Exact but for rounding; whole weights that add up to less than 2**53 add up exactly, so that
    a row without open intervals is at 0. O(n + n_rows * n_bins).

    Parameters
    ----------
    start_s, end_s : ndarray, shape (n,)
        Each interval from start to end >= start (inf: it stays open); what lies outside the
        bins does not count.
    weight : ndarray, shape (n,), or float
        Not negative.
    row : ndarray of int, shape (n,)
        Such as the node, 0..n_rows - 1.
    n_rows : int
    first_s, bin_s, n_bins
        Bin i is from ``first_s + i * bin_s`` to ``first_s + (i + 1) * bin_s``; `bin_s` > 0.

    Returns
    -------
    ndarray, shape (n_rows, n_bins)
        A bin's value times `bin_s` is the sum of weight times open seconds in it.
    """
    shape = (n_rows, n_bins + 1)  # the last column: from the end of the last bin on
    level, partial = np.zeros(shape), np.zeros(shape)
    for time_s, sign in ((start_s, 1.0), (end_s, -1.0)):
        at = np.clip((np.asarray(time_s) - first_s) / bin_s, 0, n_bins)
        bin_index = at.astype(np.int64)
        cell = row * (n_bins + 1) + bin_index
        change = np.broadcast_to(np.asarray(weight, dtype=np.float64), at.shape)
        level += sign * np.bincount(cell, change, level.size).reshape(shape)
        within = change * (bin_index + 1 - at)  # share of its own bin that a change acts on
        partial += sign * np.bincount(cell, within, level.size).reshape(shape)
    before = np.cumsum(level[:, :-1], axis=1) - level[:, :-1]
    return np.maximum(before + partial[:, :-1], 0.0)  # rounding may leave -1e-17
