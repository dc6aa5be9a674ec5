"""The requests per second that a split serves in simulation, and the bound on all splits.

The rate is n / (last completion - first arrival) of n requests that keep every queue full.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from hypsolve import Deployment, Partition, throughput_bound, to_instance
from hypsolve.planning.forecast import room_of, serve
from hypsolve.planning.load import evenly
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.saturation import OVERLOAD, enough_requests, saturated_rate

MAX_VISITS = 1e12
"""Visits of a token at a stage in one simulation: so many that no simulation is shortened."""
_known: dict[Hashable, Any] = {}  # of this process; methods often find the same split


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A simulated rate.

    Attributes
    ----------
    requests_per_s : float
    n_requests : int
        Requests of the simulation.
    n_under_way : int
        Requests that can be under way at once.
    """

    requests_per_s: float
    n_requests: int
    n_under_way: int


def bound_of(deployment: Deployment, digest: str) -> float:
    """Return requests per second that no split and no schedule exceeds."""
    return _once(("bound", digest), lambda: throughput_bound(deployment))


def served_by(
    deployment: Deployment, digest: str, partition: Partition, n_requests: int | None
) -> Served:
    """Simulate a split at its limit, as the planner does.

    Parameters
    ----------
    deployment : Deployment
        Its first request stands for all.
    digest : str
        Identifies the deployment: a split is simulated once in a process.
    partition : Partition
    n_requests : int or None
        Requests that arrive evenly, at 1.05 times the bound on the rate of the split. None: 20
        times those that can be under way, which arrive as in
        `hypsolve.planning.saturation.saturated_rate`.
    """

    def simulate() -> Served:
        instance = to_instance(deployment, objective="path")
        under_way = room_of(deployment, instance, partition).running
        most = bound_on_rate(deployment, instance, partition)
        if n_requests is not None:
            rate, n = _at_overload(deployment, partition, most, n_requests), n_requests
        else:
            most = min(most, bound_of(deployment, digest))
            n = enough_requests(under_way, deployment, MAX_VISITS)
            rate = saturated_rate(deployment, partition, most, n).requests_per_s
        return Served(requests_per_s=rate, n_requests=n, n_under_way=under_way)

    return _once((digest, partition.cuts, n_requests), simulate)


def _at_overload(deployment: Deployment, partition: Partition, most: float, n: int) -> float:
    trace = serve(evenly(deployment, OVERLOAD * most, n), partition)
    took_s = float(trace.end_s.max() - trace.arrival_s.min())
    return n / took_s if took_s else math.inf


def _once(key: Hashable, compute: Callable[[], Any]) -> Any:
    if key not in _known:
        _known[key] = compute()
    return _known[key]
