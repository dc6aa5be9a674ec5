"""The clock of a trace: times counted from the first arrival, or from time 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.simulation.trace import Trace

_OF_REQUESTS = ("end_s", "first_token_s", "reached_s", "admitted_s", "left_s")


def from_time_0(trace: Trace, first_s: float, arrival_s: Array | None = None) -> Trace:
    """Return a trace counted from the first arrival as one that counts from time 0.

    Parameters
    ----------
    trace : Trace
    first_s : float
        Time of the first arrival.
    arrival_s : ndarray, optional
        Times at which the requests arrive, which rounding does not change. No time of a request
        is before them. Default: those of the trace, later by `first_s`.

    Returns
    -------
    Trace
        With the given trace as `since_first`.
    """
    if first_s == 0:
        return trace
    if arrival_s is None:
        arrival_s = first_s + trace.arrival_s
    of_requests = {
        name: np.maximum(first_s + getattr(trace, name).T, arrival_s).T for name in _OF_REQUESTS
    }
    visits = trace.visits
    if visits is not None:
        start_s, end_s = first_s + visits.start_s, first_s + visits.end_s
        visits = replace(visits, start_s=start_s, end_s=end_s)
    return replace(
        trace,
        arrival_s=arrival_s,
        **of_requests,
        end_of_run_s=max(first_s + trace.end_of_run_s, float(np.nanmax(arrival_s))),
        series=replace(trace.series, start_s=first_s + trace.series.start_s),
        visits=visits,
        since_first=trace,
    )
