"""Predictors of measured runs by name: `PREDICTORS`."""

from __future__ import annotations

from collections.abc import Callable

from hypsolve import catalog
from hypsolve.calibration.closed_loop import Forecast, fluid, forecast, simulated
from hypsolve.calibration.runs import ServingRun, UnknownName

Predictor = Callable[[ServingRun], Forecast]


def today(run: ServingRun) -> Forecast:
    """Forecast by simulation, with the three numbers of the GPU in the catalogue."""
    return _by(run, simulated)


def today_fluid(run: ServingRun) -> Forecast:
    """Forecast by the fluid model, with the three numbers of the GPU in the catalogue."""
    return _by(run, fluid)


def _by(run: ServingRun, method: Callable[..., Forecast]) -> Forecast:
    try:
        gpu = catalog.gpu(run.catalog_gpu)
    except UnknownName as error:
        return Forecast(reason=str(error))
    return forecast(run, method, gpu)


PREDICTORS: dict[str, Predictor] = {"today": today, "today_fluid": today_fluid}
