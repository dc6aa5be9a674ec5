"""`serving_points`, `undominated`: splits that no other beats in simulated rate and latency."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hypsolve.planning.forecast import predict
from hypsolve.planning.load import Load
from hypsolve.planning.saturation import MET
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.partition.hypsplit import ParetoPoint, pareto_frontier

MAX_POINTS = 12  # splits that are simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPoint:
    """A split with what it serves, simulated, and its times for requests one at a time.

    Attributes
    ----------
    partition : Partition
    max_requests_per_s : float
        Approximate largest sustainable rate in batches, simulated; nan if it was not found in
        time.
    latency_mean_s : float
        Mean latency at the load, simulated; nan if it was not simulated.
    bottleneck_s, path_s : float
        As in `ParetoPoint`: of requests one at a time.
    slo_attainment : float
        Share of the requests within the targets at the load; nan without targets.
    max_rate_is_lower_bound : bool
        Whether the search for the largest rate was cut short: `max_requests_per_s` is
        sustained, and larger rates may be.
    nodes : tuple of str
        Names of the nodes of all tiers with blocks, where splits on several choices of nodes
        are compared; else empty.
    """

    partition: Partition
    max_requests_per_s: float
    latency_mean_s: float
    bottleneck_s: float
    path_s: float
    slo_attainment: float = math.nan
    max_rate_is_lower_bound: bool = False
    nodes: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether rate and latency were simulated in time."""
        return math.isfinite(self.max_requests_per_s) and math.isfinite(self.latency_mean_s)

    @property
    def meets_targets(self) -> bool:
        """Whether enough requests are within the targets; False without targets."""
        return self.slo_attainment >= MET


@functools.lru_cache(maxsize=8)
def serving_points(
    deployment: Deployment, instance: Instance, load: Load, limit_s: float = math.inf
) -> tuple[ServingPoint, ...]:
    """Simulate splits of the Pareto frontier of requests one at a time.

    In batches many of them are worse than others in both rate and latency; see `undominated`.

    Parameters
    ----------
    deployment : Deployment
    instance : Instance
        The deployment, compiled.
    load : Load
    limit_s : float
        Seconds after which no further split is simulated.

    Returns
    -------
    tuple of ServingPoint
        All splits of the frontier. At most `MAX_POINTS`, evenly chosen, are simulated; the
        rates of the others are nan.
    """
    deadline = Deadline(limit_s)
    points = pareto_frontier(instance)
    few = np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round()
    simulated: dict[int, ServingPoint] = {}
    for i in dict.fromkeys(int(at) for at in few):
        if simulated and deadline.has_passed():
            break
        simulated[i] = simulated_point(deployment, instance, load, points[i], deadline)
    return tuple(simulated.get(i, _unknown(point)) for i, point in enumerate(points))


def _unknown(point: ParetoPoint) -> ServingPoint:
    return ServingPoint(
        partition=point.partition,
        max_requests_per_s=math.nan,
        latency_mean_s=math.nan,
        bottleneck_s=point.bottleneck_s,
        path_s=point.path_s,
    )


def simulated_point(
    deployment: Deployment,
    instance: Instance,
    load: Load,
    point: ParetoPoint,
    deadline: Deadline,
) -> ServingPoint:
    """Simulate a split: its largest rate, and its latency at the load."""
    rate = replace(load, users=None, think_time_s=0.0)
    forecast = predict(
        deployment,
        point.partition,
        rate,
        instance=instance,
        only="requests/s",
        deadline=deadline,
    )
    at_load = forecast
    if load.users is not None:
        at_load = predict(
            deployment, point.partition, load, instance=instance, only="mean latency"
        )
    return ServingPoint(
        partition=point.partition,
        max_requests_per_s=forecast.max_requests_per_s,
        latency_mean_s=at_load.latency_s.mean,
        bottleneck_s=point.bottleneck_s,
        path_s=point.path_s,
        slo_attainment=at_load.slo_attainment,
        max_rate_is_lower_bound=forecast.max_rate_is_lower_bound,
    )


def undominated(points: Sequence[ServingPoint]) -> tuple[ServingPoint, ...]:
    """Keep the points that no other one beats in rate and latency, by decreasing rate.

    Points whose rate or latency is not known are left out.
    """
    known = [point for point in points if point.is_known]
    known.sort(key=lambda p: (-p.max_requests_per_s, p.latency_mean_s))
    kept: list[ServingPoint] = []
    for point in known:
        if not kept or point.latency_mean_s < kept[-1].latency_mean_s:
            kept.append(point)
    return tuple(kept)
