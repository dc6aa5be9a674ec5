"""`serving_points`, `undominated`: splits that no other beats in simulated rate and latency."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hypsolve.planning.forecast import predict
from hypsolve.planning.load import Load
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.saturation import MET
from hypsolve.planning.simulation_search import Splits
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.evaluation import bottleneck_s, path_s
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.partition.hypsplit import ParetoPoint, pareto_frontier

MAX_POINTS = 12  # splits that are simulated where no time limit ends it


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
    bound_requests_per_s, bound_latency_s : float
        No schedule of the split serves more, or has a lower mean latency; inf and 0 if no
        bounds were computed.
    """

    partition: Partition
    max_requests_per_s: float
    latency_mean_s: float
    bottleneck_s: float
    path_s: float
    slo_attainment: float = math.nan
    max_rate_is_lower_bound: bool = False
    nodes: tuple[str, ...] = ()
    bound_requests_per_s: float = math.inf
    bound_latency_s: float = 0.0

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
    deployment: Deployment,
    instance: Instance,
    load: Load,
    limit_s: float = math.inf,
    best: tuple[Partition, ...] = (),
) -> tuple[ServingPoint, ...]:
    """Simulate splits of the Pareto frontier of requests one at a time, the promising first.

    The order is: `best`, the two ends of the frontier, then splits that no other beats in
    their bounds on rate and latency. A split whose bounds a simulated one beats is left out.
    In batches many of them are worse than others in both rate and latency; see `undominated`.

    Parameters
    ----------
    deployment : Deployment
    instance : Instance
        The deployment, compiled.
    load : Load
    limit_s : float
        Seconds after which no further split is simulated. Without a limit, `MAX_POINTS` are
        simulated.
    best : tuple of Partition
        Further splits, such as the one with the largest rate.

    Returns
    -------
    tuple of ServingPoint
        `best` and all splits of the frontier, by increasing bottleneck; the rates of those that
        were not simulated are nan.
    """
    deadline = Deadline(limit_s)
    splits = Splits(deployment, {"allow_empty": True})
    frontier = [point.partition for point in pareto_frontier(instance)]
    points = [
        ServingPoint(
            partition=partition,
            max_requests_per_s=math.nan,
            latency_mean_s=math.nan,
            bottleneck_s=bottleneck_s(instance, partition),
            path_s=path_s(instance, partition),
            bound_requests_per_s=bound_on_rate(deployment, instance, partition),
            bound_latency_s=splits.bound_s(partition.cuts),
        )
        for partition in dict.fromkeys((*best, *frontier))
    ]
    first = dict.fromkeys((*best, *frontier[-1:], *frontier[:1]))
    simulated: dict[Partition, ServingPoint] = {}
    most = MAX_POINTS if math.isinf(limit_s) else len(points)
    for point in _by_promise(points, tuple(first)):
        if simulated and (deadline.has_passed() or len(simulated) == most):
            break
        if point.partition in first or not is_beaten(point, simulated.values()):
            simulated[point.partition] = replace(
                simulated_point(
                    deployment,
                    instance,
                    load,
                    ParetoPoint(point.bottleneck_s, point.path_s, point.partition),
                    deadline,
                ),
                bound_requests_per_s=point.bound_requests_per_s,
                bound_latency_s=point.bound_latency_s,
            )
    found = [simulated.get(point.partition, point) for point in points]
    return tuple(sorted(found, key=lambda p: (p.bottleneck_s, p.path_s)))


def _by_promise(
    points: Sequence[ServingPoint], first: Sequence[Partition]
) -> list[ServingPoint]:
    """Order splits: `first`, then those that no other beats in both bounds, and so on.

    Of splits that do not beat each other, those with the largest bounds on the rate and those
    with the least on the latency take turns.
    """
    of_split = {point.partition: point for point in points}
    ordered = [of_split.pop(partition) for partition in first]
    while of_split:
        layer: list[ServingPoint] = []
        for point in sorted(
            of_split.values(), key=lambda p: (-p.bound_requests_per_s, p.bound_latency_s)
        ):
            if not layer or point.bound_latency_s < layer[-1].bound_latency_s:
                layer.append(point)
        ends = [point for pair in zip(layer, reversed(layer), strict=True) for point in pair]
        ordered += list(dict.fromkeys(ends))
        for point in layer:
            del of_split[point.partition]
    return ordered


def is_beaten(point: ServingPoint, simulated: Iterable[ServingPoint]) -> bool:
    """Return whether a split cannot be better, by its bounds, than one that was simulated."""
    return any(
        other.max_requests_per_s >= point.bound_requests_per_s
        and other.latency_mean_s <= point.bound_latency_s
        for other in simulated
        if other.is_known
    )


def open_points(points: Sequence[ServingPoint]) -> tuple[ServingPoint, ...]:
    """Return the splits that were not simulated in time and may be better than those that were.

    Splits that `is_beaten` are left out.
    """
    return tuple(p for p in points if not p.is_known and not is_beaten(p, points))


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
