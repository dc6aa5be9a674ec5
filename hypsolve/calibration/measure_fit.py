"""Fit of the three numbers of a GPU profile to times of steps, and errors on held-out shapes.

The form is that of the cost model: ``t0 + max(flops / F, bytes / B)``, or the sum of both times
on a machine that computes and reads in turn; see `choose_form`. The fit minimises the
mean relative error, because a slow step weighs no more than a fast one, and because a disturbed
step must not bend the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypsolve.problem.arrays import Array

QUANTILES = (0.02, 0.1, 0.3)  # few steps beat the true rates: the fit starts there
MAX_ROUNDS = 30
N_SAMPLES = 200  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
CLEARLY = 0.75  # of the other form's error on held-out shapes: a sum must be better than this
SMALLEST = 1e-3  # relative error from which a step has its full weight


@dataclass(frozen=True, slots=True)
class Roofline:
    """Three numbers of a profile: ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)``.

    Attributes
    ----------
    t0_s, flops_per_s, bytes_per_s : float
        A rate is infinite if no step is limited by it.
    overlaps : bool
        Whether a step computes while it reads. If not, the two times add up, as on a CPU core.
    """

    t0_s: float
    flops_per_s: float
    bytes_per_s: float
    overlaps: bool = True

    def seconds(self, flops: Array, moved_bytes: Array) -> Array:
        """Return the seconds of a block in each step."""
        combine = np.maximum if self.overlaps else np.add
        limits = combine(flops / self.flops_per_s, moved_bytes / self.bytes_per_s)
        return np.asarray(self.t0_s + limits)


@dataclass(frozen=True, slots=True)
class Steps:
    """Measured steps: arrays of equal length, and the shape and phase of each.

    Attributes
    ----------
    flops, moved_bytes, seconds : ndarray, shape (n_steps,)
        Work of one block in a step, and its measured time.
    shape, phase : ndarray of str, shape (n_steps,)
    """

    flops: Array
    moved_bytes: Array
    seconds: Array
    shape: np.ndarray
    phase: np.ndarray

    def take(self, which: np.ndarray) -> Steps:
        """Return the steps that a mask or an array of indices selects."""
        return Steps(
            self.flops[which], self.moved_bytes[which], self.seconds[which],
            self.shape[which], self.phase[which],
        )  # fmt: skip


def fit_roofline(
    steps: Steps, start: Roofline | None = None, *, overlaps: bool = True
) -> Roofline:
    """Fit the three numbers by least mean relative error.

    In turn, the steps are divided into those limited by compute and those limited by memory,
    and the numbers are found by non-negative least squares, weighted so that absolute errors
    count.

    Parameters
    ----------
    steps : Steps
        At least one.
    start : Roofline, optional
        The division begins there. Default: several rates that few steps beat; the best counts.
    overlaps : bool
        Whether the larger of both times is fitted, or their sum.

    Returns
    -------
    Roofline

    Examples
    --------
    >>> import numpy as np
    >>> flops, moved = np.array([1e9, 1e9, 1e12, 4e12]), np.array([1e8, 2e8, 2e8, 3e8])
    >>> seconds = 1e-4 + np.maximum(flops / 1e13, moved / 1e11)
    >>> names = np.array(["a"] * 4)
    >>> found = fit_roofline(Steps(flops, moved, seconds, names, names))
    >>> f"{found.t0_s:.3g} {found.flops_per_s:.3g} {found.bytes_per_s:.3g}"
    '0.0001 1e+13 1e+11'
    """
    if start is None:
        per_flop, per_byte = (
            np.quantile(steps.seconds / work, QUANTILES)
            for work in (steps.flops, steps.moved_bytes)
        )
        starts = [np.array([0.0, u, v]) for u, v in itertools.product(per_flop, per_byte)]
    else:
        starts = [np.array([start.t0_s, 1 / start.flops_per_s, 1 / start.bytes_per_s])]
    best_error, best = np.inf, starts[0]
    for numbers in starts:
        for _ in range(MAX_ROUNDS):
            error = float(np.abs(_errors(steps, numbers, overlaps)).mean())
            if error >= best_error * (1 - 1e-9):
                break
            best_error, best = error, numbers
            numbers = _refit(steps, numbers, overlaps)
        else:
            continue
    t0, u, v = best
    return Roofline(float(t0), _inverse(u), _inverse(v), overlaps)


def _inverse(number: float) -> float:
    return float(1 / number) if number > 0 else np.inf


def _errors(steps: Steps, numbers: Array, overlaps: bool) -> Array:
    """Return the relative error of each step under t0, 1 / F and 1 / B."""
    t0, u, v = numbers
    combine = np.maximum if overlaps else np.add
    predicted = t0 + combine(steps.flops * u, steps.moved_bytes * v)
    return np.asarray(predicted / steps.seconds - 1)


def _refit(steps: Steps, numbers: Array, overlaps: bool) -> Array:
    """Return better numbers for the division of steps that the given numbers make."""
    _, u, v = numbers
    by_compute = steps.flops * u > steps.moved_bytes * v
    columns = (
        np.ones_like(steps.seconds),
        np.where(by_compute | (not overlaps), steps.flops, 0.0),
        np.where(by_compute & overlaps, 0.0, steps.moved_bytes),
    )
    relative = np.stack([column / steps.seconds for column in columns], axis=1)
    weights = 1 / np.sqrt(np.maximum(np.abs(_errors(steps, numbers, overlaps)), SMALLEST))
    found = nonnegative(relative * weights[:, None], weights)
    unseen = ~relative.any(axis=0)  # no step is limited by this rate: it stays
    found[unseen] = numbers[unseen]
    return found


def nonnegative(matrix: Array, target: Array) -> Array:
    """Return the non-negative least-squares solution for a few unknowns.

    The optimum is the unconstrained solution for the unknowns that are positive in it, so all
    sets of unknowns are tried, unless the unconstrained solution for all is not negative.

    Examples
    --------
    >>> import numpy as np
    >>> found = nonnegative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0]))
    >>> found.round(6).tolist()
    [1.5, 0.0]
    """
    n = matrix.shape[1]
    scale = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(scale > 0, scale, 1.0)
    best, least = np.zeros(n), float(target @ target)
    for size in range(n, 0, -1):
        for chosen in itertools.combinations(range(n), size):
            part = scaled[:, chosen]
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            if (found < 0).any():
                continue
            rest = target - part @ found
            if rest @ rest < least * (1 - 1e-12):
                least, best = float(rest @ rest), np.zeros(n)
                best[list(chosen)] = found
        if size == n and best.any():
            break
    return best / np.where(scale > 0, scale, 1.0)


def intervals(steps: Steps, fitted: Roofline, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of the three numbers, by a bootstrap over the steps.

    Steps are drawn with replacement among those of a shape and phase. The intervals hold the
    noise of the measurement; they do not hold the error of the form of the cost model, which
    the error on held-out shapes shows.

    Returns
    -------
    dict of str to (float, float)
        By the names of the attributes of `Roofline`.
    """
    rng = np.random.default_rng(seed)
    parts = [
        np.flatnonzero((steps.shape == shape) & (steps.phase == phase))
        for shape in np.unique(steps.shape)
        for phase in np.unique(steps.phase)
    ]
    drawn = []
    for _ in range(N_SAMPLES):
        which = np.concatenate([rng.choice(part, len(part)) for part in parts if len(part)])
        found = fit_roofline(steps.take(which), fitted, overlaps=fitted.overlaps)
        drawn.append((found.t0_s, found.flops_per_s, found.bytes_per_s))
    low, high = np.percentile(drawn, INTERVAL, axis=0, method="nearest")
    names = ("t0_s", "flops_per_s", "bytes_per_s")
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class ShapeError:
    """Error of a fit to other shapes on a shape that it has not seen.

    Attributes
    ----------
    shape : str
    fitted_to : tuple of str
    n_steps : int
    prefill, decode : float
        Mean absolute relative error; nan without steps of the phase.
    """

    shape: str
    fitted_to: tuple[str, ...]
    n_steps: int
    prefill: float
    decode: float


def held_out(steps: Steps, *, overlaps: bool = True) -> list[ShapeError]:
    """Return the error on each shape of a fit to all other shapes; none for a single shape."""
    names = list(dict.fromkeys(steps.shape.tolist()))
    if len(names) < 2:
        return []
    errors = []
    for name in names:
        unseen = steps.shape == name
        fitted = fit_roofline(steps.take(~unseen), overlaps=overlaps)
        others = tuple(other for other in names if other != name)
        errors.append(shape_error(steps.take(unseen), fitted, name, others))
    return errors


def shape_error(
    steps: Steps, fitted: Roofline, name: str, fitted_to: Sequence[str]
) -> ShapeError:
    """Return the error of a fit on some steps, by phase."""
    error = np.abs(fitted.seconds(steps.flops, steps.moved_bytes) / steps.seconds - 1)
    of_phase = {
        phase: float(error[steps.phase == phase].mean())
        if (steps.phase == phase).any()
        else np.nan
        for phase in ("prefill", "decode")
    }
    return ShapeError(name, tuple(fitted_to), len(steps.seconds), **of_phase)


def choose_form(steps: Steps) -> bool:
    """Return whether a step is taken to compute while it reads, as on a GPU.

    It is, unless the sum of both times has less than `CLEARLY` of the error: on shapes that
    were not fitted, or on the fitted steps of a single shape.

    Examples
    --------
    >>> import numpy as np
    >>> flops = np.array([1e9, 1e9, 4e9, 4e9, 9e9, 9e9])
    >>> moved = np.array([1e9, 4e9, 1e9, 4e9, 9e9, 1e9])
    >>> phase = np.array(["prefill", "decode"] * 3)
    >>> choose_form(Steps(flops, moved, (flops + moved) / 1e10, np.array(["a"] * 6), phase))
    False
    """
    return not _error_of(steps, overlaps=False) < CLEARLY * _error_of(steps, overlaps=True)


def _error_of(steps: Steps, *, overlaps: bool) -> float:
    """Return the mean error of a form over shapes and phases, held out where that can be."""
    errors = held_out(steps, overlaps=overlaps)
    if not errors:
        errors = [shape_error(steps, fit_roofline(steps, overlaps=overlaps), "all", ())]
    return float(np.nanmean([[each.prefill, each.decode] for each in errors]))
