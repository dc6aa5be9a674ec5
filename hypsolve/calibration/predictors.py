"""Predictors of measured runs by name: `PREDICTORS`.

A predictor forecasts all runs of a table. It may fit to some of them, but never forecasts a run
by coefficients that were fitted to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypsolve import catalog
from hypsolve.calibration import splits
from hypsolve.calibration.closed_loop import Forecast, fluid, forecast, simulated
from hypsolve.calibration.features import features_of
from hypsolve.calibration.fit import Fit
from hypsolve.calibration.fitted_profile import fitted_profile
from hypsolve.calibration.runs import ServingRun, UnknownName
from hypsolve.problem.arrays import Array

Predictor = Callable[[Sequence[ServingRun]], list[Forecast]]


def today(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by simulation, with the three numbers of the GPU in the catalogue."""
    return [_by(run, simulated) for run in runs]


def today_fluid(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by the fluid model, with the three numbers of the GPU in the catalogue."""
    return [_by(run, fluid) for run in runs]


def calibrated_new_groups(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by coefficients fitted to other groups; see `splits.new_groups`."""
    return _held_out(runs, splits.new_groups)


def calibrated_new_lengths(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by coefficients fitted to other lengths; see `splits.new_lengths`."""
    return _held_out(runs, splits.new_lengths)


def simulated_new_groups(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by simulation, with coefficients fitted to other groups."""
    return _simulated(runs, splits.fits_of_new_groups)


def simulated_new_lengths(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Forecast by simulation, with coefficients fitted to other lengths."""
    return _simulated(runs, splits.fits_of_new_lengths)


def _by(run: ServingRun, method: Callable[..., Forecast]) -> Forecast:
    try:
        gpu = catalog.gpu(run.catalog_gpu)
    except UnknownName as error:
        return Forecast(reason=str(error))
    return forecast(run, method, gpu)


def _held_out(
    runs: Sequence[ServingRun], split: Callable[[Sequence[ServingRun]], Array]
) -> list[Forecast]:
    return _of_possible(runs, lambda possible: [Forecast(*row) for row in split(possible)])


def _simulated(
    runs: Sequence[ServingRun], split: Callable[[Sequence[ServingRun]], list[Fit]]
) -> list[Forecast]:
    return _of_possible(
        runs,
        lambda possible: [
            _by_server(*pair) for pair in zip(possible, split(possible), strict=True)
        ],
    )


def _by_server(run: ServingRun, fit: Fit) -> Forecast:
    """Forecast a run by simulation, with the coefficients of a fit."""
    costs = fit.costs(run.catalog_gpu, run.catalog_runtime)
    profile = catalog.gpu(run.catalog_gpu)
    gpu = fitted_profile(profile, costs, run.peak_gpu, run.catalog_weights)
    return forecast(run, simulated, gpu)


def _of_possible(
    runs: Sequence[ServingRun], predict: Callable[[list[ServingRun]], list[Forecast]]
) -> list[Forecast]:
    """Predict the runs that can be forecast; the others get the reason why they cannot."""
    reasons = [_reason(run) for run in runs]
    possible = [run for run, reason in zip(runs, reasons, strict=True) if not reason]
    made = iter(predict(possible) if possible else ())
    return [Forecast(reason=reason) if reason else next(made) for reason in reasons]


def _reason(run: ServingRun) -> str:
    """Return why a run cannot be forecast; empty if it can."""
    try:
        features_of([run])
    except UnknownName as error:
        return str(error)
    except ValueError as error:
        return f"cannot be deployed: {error}"
    return ""


PREDICTORS: dict[str, Predictor] = {
    "today": today,
    "today_fluid": today_fluid,
    "calibrated_new_groups": calibrated_new_groups,
    "calibrated_new_lengths": calibrated_new_lengths,
    "simulated_new_groups": simulated_new_groups,
    "simulated_new_lengths": simulated_new_lengths,
}
