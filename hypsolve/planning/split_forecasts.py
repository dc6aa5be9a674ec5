"""`SplitForecasts`: the simulated splits of several methods, side by side."""

from __future__ import annotations

import math
from typing import Any

from hypsolve.planning.expected_errors import (
    ExpectedError,
    expected_errors,
    requests_at_once,
)
from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.plan import record_to_dict
from hypsolve.planning.query import PlanQuery
from hypsolve.problem.result import Result
from hypsolve.simulation.metrics import Summary
from hypsolve.solvers.clock import NEVER, Deadline


class SplitForecasts:
    """Forecasts of splits; methods with equal cuts share one.

    Parameters
    ----------
    query : PlanQuery
        Its load and its runtime are simulated, with the limits on the nodes of each split.
    """

    def __init__(self, query: PlanQuery) -> None:
        self.query, self.deployment = query, query.deployment()
        self._of_cuts: dict[tuple[int, ...], Forecast] = {}

    def add(self, result: Result, deadline: Deadline = NEVER) -> None:
        """Simulate the split of a result, unless it is known.

        After the deadline, the largest rate is not searched for any more.
        """
        partition = result.partition
        if partition is not None and partition.cuts not in self._of_cuts:
            of_split = self.query.with_limits_of(partition.cuts)
            same = of_split is self.query
            forecast = predict(
                self.deployment if same else of_split.deployment(), partition, self.query.load,
                only="requests/s", deadline=deadline,
            )  # fmt: skip
            self._of_cuts[partition.cuts] = forecast

    def of(self, result: Result) -> Forecast | None:
        """Return the forecast of a result's split; None if there is no split."""
        partition = result.partition
        return None if partition is None else self._of_cuts.get(partition.cuts)

    def to_dict(self, result: Result) -> dict[str, Any]:
        """Return the forecast and its expected errors for JSON, each under its name."""
        forecast = self.of(result)
        return {
            "forecast": None if forecast is None else record_to_dict(forecast),
            "expected_errors": [record_to_dict(error) for error in self.errors(result)],
        }

    def errors(self, result: Result) -> tuple[ExpectedError, ...]:
        """Return the error to expect of the forecast for each kind of GPU in use."""
        if result.partition is None:
            return ()
        return expected_errors(
            self.deployment, result.instance, result.partition,
            at_once=requests_at_once(self.of(result)), model=self.query.model,
        )  # fmt: skip

    def row(self, result: Result) -> dict[str, str]:
        """Return the columns of a table."""
        forecast = self.of(result)
        if forecast is None:
            return {"requests/s": "-", "TTFT": "-", "TPOT": "-"}
        is_closed = forecast.load.users is not None
        rate = forecast.requests_per_s if is_closed else forecast.max_requests_per_s
        at_least = ">= " if forecast.max_rate_is_lower_bound and not is_closed else ""
        share = forecast.slo_attainment
        within = {} if math.isnan(share) else {"within targets": f"{share:.1%}"}
        return {
            "requests/s": "?" if math.isnan(rate) else f"{at_least}{rate:.3g}",
            **within,
            "TTFT": _short(forecast.ttft_s),
            "TPOT": _short(forecast.tpot_s),
        }


def _short(times: Summary) -> str:
    """Write mean and percentiles in one unit."""
    if not times.n:
        return "-"
    values = [times.mean, times.p50, times.p95, times.p99]
    unit, scale = ("ms", 1e3) if values[-1] < 1 else ("s", 1.0)
    return " / ".join(f"{value * scale:.3g}" for value in values) + f" {unit}"
