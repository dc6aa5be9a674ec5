"""Time averages over bins, from weighted intervals."""

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
    """Return the time average, per row and bin, of the sum of weights of open intervals.

    The averages are exact up to rounding. Whole weights with a sum below 2**53 are added
    exactly, so that a row without open intervals is at 0. It takes O(n + n_rows * n_bins).

    Parameters
    ----------
    start_s, end_s : ndarray, shape (n,)
        Intervals, end >= start; an end of inf leaves the interval open. Time outside the bins
        does not count.
    weight : ndarray, shape (n,), or float
        Weights, not negative.
    row : ndarray of int, shape (n,)
        Row of each interval, 0..n_rows - 1; a node, for example.
    n_rows : int
    first_s, bin_s, n_bins
        Bin i is from ``first_s + i * bin_s`` to ``first_s + (i + 1) * bin_s``; `bin_s` > 0.

    Returns
    -------
    ndarray, shape (n_rows, n_bins)
        A value times `bin_s` is the sum over intervals of weight times open seconds in the bin.
    """
    shape = (n_rows, n_bins + 1)  # the last column: after the last bin
    level, partial = np.zeros(shape), np.zeros(shape)
    for time_s, sign in ((start_s, 1.0), (end_s, -1.0)):
        at = np.clip((np.asarray(time_s) - first_s) / bin_s, 0, n_bins)
        bin_index = at.astype(np.int64)
        cell = row * (n_bins + 1) + bin_index
        change = np.broadcast_to(np.asarray(weight, dtype=np.float64), at.shape)
        level += sign * np.bincount(cell, change, level.size).reshape(shape)
        within = change * (bin_index + 1 - at)  # share of its bin that comes after the change
        partial += sign * np.bincount(cell, within, level.size).reshape(shape)
    before = np.cumsum(level[:, :-1], axis=1) - level[:, :-1]
    return np.maximum(before + partial[:, :-1], 0.0)  # rounding may leave -1e-17
