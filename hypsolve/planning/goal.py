"""`Goal`: the quantity that a query asks for, simulated and as a model that ranks scenarios."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.planning.forecast import Forecast
from hypsolve.planning.query import PlanQuery, Solution
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.problem import costs, evaluation
from hypsolve.problem.instance import Objective
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition

if TYPE_CHECKING:
    from hypsolve.planning.plan import Alternative

RATE, GOODPUT, LATENCY = "requests/s", "goodput", "mean latency"  # quantities of a goal
NEARLY_FULL = 0.9  # load from which the model of waiting times is extended by its tangent


class Goal:
    """The quantity that the user asked for: a rate to maximise, or a latency to minimise.

    Parameters
    ----------
    query : PlanQuery
        With targets, the goal is the goodput at the load: requests/s within the targets.
        Without, with the objectives ``throughput``, ``cost``, ``bottleneck`` and ``p0``, or
        where batches are computed one at a time, it is the largest sustainable rate; with
        users, the rate that they get; else the least mean latency.
    """

    def __init__(self, query: PlanQuery) -> None:
        is_serial = query.runtime.batching is Batching.SERIAL
        throughput = query.is_rate or query.objective in (Objective.BOTTLENECK, Objective.P0)
        asks_for_rate = query.users is not None or throughput or is_serial
        self.quantity = RATE if asks_for_rate and not query.is_simulated else LATENCY
        if query.ttft_slo_s is not None or query.tpot_slo_s is not None:
            self.quantity = GOODPUT
        self.is_rate = self.quantity != LATENCY
        self.has_users = query.users is not None

    def of(self, forecast: Forecast) -> float:
        """Return the quantity in a forecast."""
        if self.quantity == GOODPUT:
            return forecast.goodput_requests_per_s
        if not self.is_rate:
            return forecast.latency_s.mean
        if forecast.load.users is not None:
            return forecast.requests_per_s
        return forecast.max_requests_per_s

    def of_split(self, other: Alternative) -> float:
        """Return the quantity in a split for another objective; nan if it was not simulated."""
        if self.quantity == GOODPUT:
            return other.goodput_requests_per_s
        if not self.is_rate:
            return other.latency_mean_s
        return math.nan if self.has_users else other.max_requests_per_s

    def is_lower_bound(self, forecast: Forecast) -> bool:
        """Return whether the quantity in a forecast is only a lower bound."""
        is_searched = self.quantity == RATE and forecast.load.users is None
        return is_searched and forecast.max_rate_is_lower_bound

    def is_settled(self, forecast: Forecast) -> bool:
        """Return whether the quantity in a forecast is that of a load that goes on."""
        return self.quantity == RATE or forecast.is_settled

    def model(self, solution: Solution, cuts: tuple[int, ...], query: PlanQuery) -> float:
        """Return the model of the quantity by which scenarios are ranked.

        Goodput is modelled by the slack of the targets, see `modelled_slack`.
        """
        partition = Partition(cuts)
        if self.quantity == GOODPUT:
            return modelled_slack(solution, partition, query)
        if self.is_rate:
            return bound_on_rate(
                solution.deployment,
                solution.instance,
                partition,
                users=query.users,
                think_time_s=query.think_time_s,
            )
        path = solution.instance.replace(objective=Objective.PATH)
        return evaluation.evaluate(path, partition)

    def rank(self, value: float) -> float:
        """Return the key that sorts values of the quantity, the best first and nan last."""
        if math.isnan(value):
            return math.inf
        return -value if self.is_rate else value

    def best(self, values: Iterable[float]) -> float:
        """Return the best value that is known; nan if none is."""
        return min(values, key=self.rank, default=math.nan)

    def gain(self, before: float, after: float) -> float:
        """Return the share by which the quantity improves."""
        if self.is_rate:
            if not before:
                return math.inf if after else 0.0
            return after / before - 1
        return 1 - after / before if before else 0.0


def modelled_slack(solution: Solution, partition: Partition, query: PlanQuery) -> float:
    """Return the least ratio of a target to a modelled time; larger is better.

    The times are those of one request alone, stretched by 1 / (1 - u) for waiting, where u is
    the rate of the load over the bound on the rate. (Users are a load of their number over
    their time alone.)
    """
    deployment, path_s = solution.deployment, evaluation.path_s
    requests = deployment.requests
    first = replace(requests, output_tokens=np.ones_like(requests.output_tokens))
    prefill = costs.to_instance(replace(deployment, requests=first), allow_empty=True)
    alone_s = path_s(solution.instance, partition)
    ttft_s = path_s(prefill, partition)
    tpot_s = (alone_s - ttft_s) / max(float(requests.output_tokens.mean()) - 1, 1)
    offered_per_s = query.rate_per_s
    if query.users is not None:
        offered_per_s = query.users / (alone_s + query.think_time_s)
    load = offered_per_s / bound_on_rate(deployment, solution.instance, partition)
    below = min(load, NEARLY_FULL)
    stretch = 1 / (1 - below) + (load - below) / (1 - below) ** 2
    pairs = ((ttft_s, query.ttft_slo_s), (tpot_s, query.tpot_slo_s))
    worst = max((time_s / slo_s for time_s, slo_s in pairs if slo_s is not None), default=0.0)
    return 1 / (worst * stretch) if worst else math.inf
