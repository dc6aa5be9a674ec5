"""`placement_instead`: what machines serve if a placement ignores the order of their tiers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hypsolve.formats.machines_network import fleet_of_network_file
from hypsolve.planning.fitted_costs import FITTED
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_simulation import Candidate, PlacementRate, PlacementSimulator
from hypsolve.planning.query_arguments import OVERRIDES
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.throughput import QUEUES_FULL
from hypsolve.planning.upgrade_text import CLEARLY
from hypsolve.problem.placement import Placement
from hypsolve.problem.runtime import Runtime
from hypsolve.solve import solve, warm_methods
from hypsolve.solve_placement import PLACEMENT_METHODS
from hypsolve.solvers.backends.loading import preload
from hypsolve.solvers.clock import MIN_S, Deadline
from hypsolve.solvers.throughput.server_arrays import FAMILIES

if TYPE_CHECKING:
    from hypsolve.planning.plan import Plan
    from hypsolve.planning.plan_query import PlanQuery

METHOD, BASELINE = "placement_highs", "replica_per_machine"
FLUID_SHARE = 0.4  # of the time, for the search in the fluid model
RANK_SHARE = 0.5  # of the time that is left then, for brief simulations
HOPELESS = 0.85  # of the rate of a plan: a placement with less in the fluid model is left at it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementInstead:
    """A placement of `hypsolve.place` on the machines of a plan, where it serves clearly more.

    Attributes
    ----------
    requests_per_s : float
        Simulated rate, of the same kind as that of the plan.
    quantity : str
        Which rate that is, in words.
    is_lower_bound : bool
        Whether it may serve clearly more.
    n_requests : int
        Requests of the simulations of its pipelines, equal ones counted once.
    pipelines : int
        Number of pipelines.
    machines : tuple of str
        Machines in use.
    unused : tuple of str
        Machines that are left out, those that the runtime does not run on included.
    runtime : str
        Name of the runtime, which the command of the placement must name.
    """

    requests_per_s: float
    quantity: str
    is_lower_bound: bool
    n_requests: int
    pipelines: int
    machines: tuple[str, ...]
    unused: tuple[str, ...]
    runtime: str


def may_be_placed(query: PlanQuery) -> bool:
    """Return whether a placement could be compared with the plan of a query.

    A placement has no degree of tensor parallelism that is given, no limit on the blocks of a
    tier, no measured costs of operators, and no rate of users without targets.
    """
    limits = query.network.max_blocks
    return (
        query.objective in ("throughput", "goodput")
        and query.tensor_parallel is None
        and query.costs != FITTED
        and (query.users is None or query.objective == "goodput")
        and all(limit in (None, 0) for limit in limits)
        and sum(len(tier.nodes) for tier in query.network.network.tiers) > 1
    )


def warm(query: PlanQuery) -> None:
    """Compile or load the kernels of the search for a placement, before a clock starts."""
    warm_methods(families=(FAMILIES[query.runtime.batching], "placement"))
    preload(*PLACEMENT_METHODS[METHOD].backends)


def place_query_of(query: PlanQuery) -> PlaceQuery:
    """Return the query that `hypsolve.place` answers on the machines of a network."""
    fleet = fleet_of_network_file(query.network, query.model)
    runtime: str | Runtime = query.runtime
    values = {}
    if query.follows:  # the server has other defaults on other machines
        values = {
            name: getattr(query.runtime, name)
            for name in OVERRIDES
            if name not in query.follows
        }
        runtime = query.runtime.name
    alike = query.requests is None
    lengths = {"prompt_tokens": query.prompt_tokens, "output_tokens": query.output_tokens}
    return PlaceQuery.of(
        query.model,
        fleet,
        runtime=runtime,
        ttft_slo_s=query.ttft_slo_s,
        tpot_slo_s=query.tpot_slo_s,
        objective=query.objective,
        time_limit_s=query.time_limit_s,
        seed=query.seed,
        **(lengths if alike else {"requests": query.requests}),
        **values,
    )


def placement_instead(
    query: PlanQuery, plan: Plan, deadline: Deadline, progress: Progress
) -> PlacementInstead | None:
    """Return a placement that serves clearly more than a plan; None if none is found in time.

    Parameters
    ----------
    query : PlanQuery
        The query of the plan on all nodes, for which `may_be_placed` holds.
    plan : Plan
        It serves nothing if nothing fits.
    deadline : Deadline
        When the search ends.
    progress : callable
    """
    known, quantity = 0.0, QUEUES_FULL
    if plan.fits:
        if plan.throughput is None or math.isnan(plan.value):
            return None
        known, quantity = plan.value, plan.throughput.quantity
    progress("placing the machines without the order of their tiers")
    try:
        asked = place_query_of(query)
    except ValueError:  # such as a pin that no machine is left for
        return None
    found = _best(asked, known, deadline)
    if found is None or not found[1].requests_per_s > CLEARLY * known:
        return None
    best, rate = found
    used = best.placement.machines
    names = [machine.name for machine in asked.fleet.machines]
    return PlacementInstead(
        requests_per_s=rate.requests_per_s,
        quantity=quantity,
        is_lower_bound=rate.is_lower_bound,
        n_requests=rate.n_requests,
        pipelines=len(best.placement.pipelines),
        machines=used,
        unused=(*asked.left_out, *(name for name in names if name not in used)),
        runtime=asked.runtime.name,
    )


def _best(
    asked: PlaceQuery, known_per_s: float, deadline: Deadline
) -> tuple[Candidate, PlacementRate] | None:
    """Return the placement that serves most in simulation; None if none is worth it in time."""
    simulator = PlacementSimulator(asked, asked.problem())
    ranking: list[tuple[Candidate, PlacementRate]] = []
    of_ranking = None
    for each in _candidates(asked, known_per_s, deadline):
        of_ranking = of_ranking or deadline.part(RANK_SHARE)
        rate = _rate(simulator, each, of_ranking, in_full=False)
        if rate is None:
            break
        ranking.append((each, rate))
    ranking.sort(key=lambda pair: -pair[1].requests_per_s)
    if not ranking or not ranking[0][1].requests_per_s > HOPELESS * known_per_s:
        return None
    best = ranking[0][0]
    rate = _rate(simulator, best, deadline, in_full=True)
    return None if rate is None else (best, rate)


def _candidates(
    asked: PlaceQuery, known_per_s: float, deadline: Deadline
) -> Iterator[Candidate]:
    """Yield the best placement of the fluid model, and a replica on each machine."""
    problem = asked.problem()
    for method, share in ((METHOD, FLUID_SHARE), (BASELINE, FLUID_SHARE / 2)):
        if deadline.has_passed():
            return
        limit_s = max(share * deadline.left_s(), MIN_S)
        found = solve(problem, method, time_limit_s=limit_s, seed=asked.seed)
        if found.placement is None or found.served is None:
            continue
        if math.fsum(each.fluid_requests_per_s for each in found.served.pipelines) > (
            HOPELESS * known_per_s
        ):
            yield Candidate(method, found.placement, found.served)


def _rate(
    simulator: PlacementSimulator, candidate: Candidate, deadline: Deadline, *, in_full: bool
) -> PlacementRate | None:
    """Return what a placement serves, one pipeline after the other; None if out of time."""
    rates = []
    pairs = zip(candidate.placement.pipelines, candidate.served.pipelines, strict=True)
    for pipeline, fluid in pairs:
        if deadline.has_passed() and not in_full:
            return None
        alone = Placement((pipeline,))
        served = replace(candidate.served, pipelines=(fluid,))
        rates.append(simulator.rate(alone, served, deadline, in_full=in_full))
    return PlacementRate(
        math.fsum(each.requests_per_s for each in rates),
        tuple(each.requests_per_s for each in rates),
        sum(each.n_requests for each in rates),
        any(each.is_lower_bound for each in rates),
    )
