"""Binned averages agree with a loop over intervals and bins."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.simulation.time_series import bin_intervals

GRID = {"n_rows": 2, "first_s": 10.0, "bin_s": 2.0, "n_bins": 3}


def averages(start_s, end_s, weight, row, **changes):
    return bin_intervals(
        np.array(start_s, dtype=float), np.array(end_s, dtype=float), weight,
        np.array(row, dtype=np.int64), **(GRID | changes),
    ).tolist()  # fmt: skip


def test_by_hand():
    assert averages([11, 10, 13], [15, 16, 13.5], np.array([1.0, 2, 4]), [0, 1, 0]) == [
        [0.5, 2.0, 0.5],
        [2.0, 2.0, 2.0],
    ]


def test_outside_of_the_bins_nothing_counts():
    ends = ([0, 3, 16, 99], [10, 10.5, 17, 100])
    assert averages(*ends, 8.0, [0, 0, 0, 1]) == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_an_open_interval_lasts():
    assert averages([12], [np.inf], 3.0, [1]) == [[0.0, 0.0, 0.0], [0.0, 3.0, 3.0]]


def test_no_intervals():
    assert averages([], [], 1.0, []) == [[0.0] * 3] * 2


def test_empty_intervals_count_nothing():
    assert averages([10, 11, 16], [10, 11, 16], 5.0, [0, 1, 0]) == [[0.0] * 3] * 2


def overlap_s(start, end, low, high):
    return max(Fraction(0), min(end, high) - max(start, low))


@given(
    intervals=st.lists(
        st.tuples(
            st.integers(-20, 200), st.integers(0, 150), st.integers(0, 9), st.integers(0, 2)
        ),
        max_size=20,
    ),
    n_bins=st.integers(1, 9),
    first=st.integers(-3, 9),
    width=st.integers(1, 17),
    unit=st.sampled_from([1.0, 0.125, 0.1, 1e-6, 1e5]),
)
def test_agrees_with_a_plain_sum(intervals, n_bins, first, width, unit):
    start, length, weight, row = np.array(intervals, dtype=np.int64).reshape(-1, 4).T
    found = bin_intervals(
        start * unit, (start + length) * unit, weight.astype(float), row,
        n_rows=3, first_s=first * unit, bin_s=width * unit, n_bins=n_bins,
    )  # fmt: skip
    wanted = [
        [
            float(
                sum(
                    (
                        w * overlap_s(s, s + n, first + b * width, first + (b + 1) * width)
                        for s, n, w, of in intervals
                        if of == r
                    ),
                    Fraction(0),
                )
                / width
            )
            for b in range(n_bins)
        ]
        for r in range(3)
    ]
    assert found.shape == (3, n_bins)
    assert found == pytest.approx(np.array(wanted), abs=1e-9)
    assert (found >= 0).all()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 50))
def test_bins_add_up_to_the_total(seed, n):
    rng = np.random.default_rng(seed)
    start_s = rng.random(n) * 50
    end_s = start_s + rng.random(n) * 50
    weight, row = rng.random(n), rng.integers(0, 4, n)
    found = bin_intervals(
        start_s, end_s, weight, row, n_rows=4, first_s=0.0, bin_s=100 / 7, n_bins=7
    )
    total = np.bincount(row, weight * (end_s - start_s), 4)
    assert found.sum(axis=1) * 100 / 7 == pytest.approx(total)


def test_a_row_that_empties_is_at_zero_again():
    """Whole weights of any size leave no residue behind."""
    rng = np.random.default_rng(0)
    start_s = rng.random(10_000)
    weight = rng.integers(1, 10**11, 10_000).astype(float)
    found = bin_intervals(
        start_s, start_s + rng.random(10_000), weight, np.zeros(10_000, np.int64),
        n_rows=1, first_s=0.0, bin_s=0.5, n_bins=10,
    )  # fmt: skip
    assert (found[0, :4] > 0).all()
    assert (found[0, 4:] == 0).all()
