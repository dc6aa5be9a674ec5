"""`solve_query`: the split of a query; `PlanQuery` and its arguments are here, too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypsolve.planning.load import with_requests
from hypsolve.planning.load_search import LoadSearched
from hypsolve.planning.plan_query import PlanQuery, takes_query
from hypsolve.planning.query_arguments import (
    ALONE,
    OBJECTIVES,
    OVERRIDES,
    RATES,
    ModelSource,
    NetworkSource,
    RequestsSource,
    to_model,
    to_network_file,
    with_tier,
)
from hypsolve.planning.room_for_kv import with_most_room
from hypsolve.planning.saturation import SimulatedRate
from hypsolve.planning.simulation_search import (
    Progress,
    Splits,
    minimise_mean_latency,
    solve_simulated,
)
from hypsolve.planning.throughput import Cuts, RateSearch, ServedSplit, Throughput
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.result import Result
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import Method, solve
from hypsolve.solvers.clock import Deadline

__all__ = [
    "ALONE",
    "OBJECTIVES",
    "OVERRIDES",
    "RATES",
    "ModelSource",
    "NetworkSource",
    "PlanQuery",
    "RequestsSource",
    "Solution",
    "bound_of",
    "fluid_within_targets",
    "instance_of",
    "raced_within_targets",
    "rank_fluid",
    "saturated",
    "search_load",
    "served_by",
    "solve_fluid",
    "solve_query",
    "takes_query",
    "to_model",
    "to_network_file",
    "with_tier",
]

DEFAULT_METHOD = "hypsplit_dp"  # for `mean_latency`, its split is where the search starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The certified split of a query.

    Attributes
    ----------
    query : PlanQuery
    deployment : Deployment
        See `PlanQuery.deployment`.
    instance : Instance
        The deployment, compiled once. Its objective is ``path`` if splits are simulated.
    result : Result
        See `hypsolve.solve`.
    interrupted : bool
        Whether a KeyboardInterrupt ended the search: the result is the best split so far.
    throughput : Throughput or None
        What the split serves, under an objective in requests per second.
    relaxed : float
        Factor on the targets at which a split meets them in the fluid model; see `RateSearch`.
    fluid_result : ServingResult or None
        The best splits of the fluid model with their certificate, under an objective in
        requests per second.
    """

    query: PlanQuery
    deployment: Deployment
    instance: Instance
    result: Result
    interrupted: bool = False
    throughput: Throughput | None = None
    relaxed: float = 1.0
    fluid_result: ServingResult | None = None

    @property
    def misses_targets(self) -> bool:
        """Whether no split meets the targets at any rate in the fluid model."""
        return self.relaxed > 1


def instance_of(query: PlanQuery) -> Instance:
    """Return the instance of a query; its objective is ``path`` if splits are simulated."""
    objective = "path" if query.is_simulated or query.is_rate else query.objective
    return to_instance(query.deployment(), objective=objective, **query.rules())


def solve_query(
    query: PlanQuery, progress: Progress | None = None, *, bound_s: float = 0.0
) -> Solution:
    """Split the model of a query.

    `bound_s` is a lower bound on the simulated mean latency that is proved already.

    A KeyboardInterrupt ends a search by simulation, which then returns the best split so far.
    Other methods raise it.
    """
    deployment, rules = query.deployment(), query.rules()
    if query.is_rate:
        search = _rate_search(query, deployment)
        result, throughput = search.run(query.time_limit_s, progress)
        return Solution(
            query=query,
            deployment=deployment,
            instance=search.instance,
            result=result,
            interrupted=search.interrupted,
            throughput=throughput,
            fluid_result=search.fluid_result,
        )
    method: str | Method = query.method or DEFAULT_METHOD
    limits: dict[str, Any] = {"time_limit_s": query.time_limit_s, "seed": query.seed}
    if not query.is_simulated:
        instance = to_instance(deployment, objective=query.objective, **rules)
        if query.method is None:
            method = with_most_room(deployment, rules)
        result = solve(instance, method, **limits, **query.options)
        return Solution(query=query, deployment=deployment, instance=instance, result=result)
    splits = Splits(with_requests(deployment, query.load), rules)
    limits["bound_s"] = bound_s
    if query.method is None:
        result = minimise_mean_latency(splits, progress=progress, **limits, **query.options)
    else:
        result = solve_simulated(splits, query.method, **limits, **query.options)
    return Solution(
        query=query,
        deployment=deployment,
        instance=splits.alone,
        result=result,
        interrupted=splits.interrupted,
    )


def solve_fluid(query: PlanQuery, n_splits: int = 1) -> tuple[Solution, dict[Cuts, float]]:
    """Split the model of a query by the fluid model alone, which takes milliseconds.

    Returns
    -------
    solution : Solution
        The best split of the fluid model; nothing is simulated.
    splits : dict
        Requests per second in the fluid model of the `n_splits` best splits, the best first.
    """
    deployment = query.deployment()
    search = _rate_search(query, deployment)
    splits, outcome = search.splits(query.time_limit_s, n_splits)
    method = search.method(lambda: outcome)
    result = solve(search.instance, method, time_limit_s=query.time_limit_s)
    solution = Solution(
        query=query,
        deployment=deployment,
        instance=search.instance,
        result=result,
        relaxed=search.relaxed,
    )
    return solution, splits


def rank_fluid(query: PlanQuery, n_splits: int = 1) -> tuple[Solution, list[Cuts], float]:
    """Split the model of a query as `solve_fluid` does, where the rate only ranks queries.

    Returns
    -------
    solution : Solution
        The best split; nothing is simulated, and the rate is not scored again.
    splits : list of tuple of int
        The `n_splits` best splits, the best first; empty if nothing fits.
    requests_per_s : float
        Their largest rate in the fluid model.
    """
    deployment = query.deployment()
    search = _rate_search(query, deployment)
    splits, requests_per_s = search.claimed(query.time_limit_s, n_splits)
    outcome = Outcome(Status.INFEASIBLE)
    if splits:
        outcome = Outcome(Status.FEASIBLE, Partition(splits[0]), message="fluid model")
    method = search.method(lambda: outcome)
    solution = Solution(
        query=query,
        deployment=deployment,
        instance=search.instance,
        result=solve(search.instance, method, time_limit_s=query.time_limit_s),
        relaxed=search.relaxed,
    )
    return solution, splits, requests_per_s


def saturated(query: PlanQuery, cuts: Cuts, share: float = 1.0) -> SimulatedRate:
    """Simulate a split of a query where every queue is full; see `RateSearch.saturated`."""
    return _rate_search(query, query.deployment()).saturated(cuts, share)


def served_by(
    query: PlanQuery, cuts: Cuts, share: float, deadline: Deadline
) -> tuple[ServedSplit, tuple[float, ...]]:
    """Simulate a split of a query for a rate; see `RateSearch.served`."""
    return _rate_search(query, query.deployment()).served(cuts, share, deadline)


def bound_of(query: PlanQuery, *, has_users: bool = True) -> float:
    """Return requests per second that no split of a query exceeds; see `RateSearch.bound`."""
    return _rate_search(query, query.deployment()).bound(has_users=has_users)


def search_load(query: PlanQuery, deadline: Deadline, progress: Progress) -> LoadSearched:
    """Search a split of a query that serves its load; see `RateSearch.search_load`."""
    return _rate_search(query, query.deployment()).search_load(deadline, progress)


def raced_within_targets(
    query: PlanQuery, cuts: Cuts, to_beat_per_s: float, deadline: Deadline
) -> float:
    """Return the largest rate within targets of a split; see `RateSearch.raced`."""
    query = replace(query, objective="goodput", method=None, options={})
    return _rate_search(query, query.deployment()).raced(cuts, to_beat_per_s, deadline)


def fluid_within_targets(query: PlanQuery, n_splits: int = 1) -> ServingResult | None:
    """Return the splits with the largest rates within the targets of a query, fluid model.

    Users are left out: the rate is that of an open loop. None if no split meets the targets at
    any rate, or nothing fits.
    """
    query = replace(
        query, objective="goodput", method=None, options={}, users=None, think_time_s=0.0
    )
    search = _rate_search(query, query.deployment())
    result = search.fluid(query.time_limit_s, n_splits)
    return None if search.misses_targets or result.partition is None else result


def _rate_search(query: PlanQuery, deployment: Deployment) -> RateSearch:
    objective = query.objective if query.is_rate else "throughput"
    return RateSearch(
        deployment,
        query.rules(),
        query.load,
        objective=objective,
        prices_per_hour=query.network.price_per_hour,
        has_limits_of=query.has_limits_of,
    )
