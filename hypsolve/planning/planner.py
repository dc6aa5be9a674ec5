"""`plan_query`: split a model, forecast how it serves, and find upgrades, on all nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypsolve.planning.cheapest_upgrade import cheapest_upgrade
from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.goal import RATE, Goal
from hypsolve.planning.plan import Alternative, Plan
from hypsolve.planning.plan_tables import plan_nodes, plan_stages
from hypsolve.planning.query import (
    DEFAULT_METHOD,
    ModelSource,
    NetworkSource,
    PlanQuery,
    Solution,
    instance_of,
    solve_query,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import (
    TIME_LIMIT,
    SloAnswer,
    SloSearch,
    answer_of,
    decided,
)
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.planning.throughput import ServedSplit, Throughput
from hypsolve.planning.token_budgets import better_budget
from hypsolve.planning.what_if import Upgrade, find_upgrades
from hypsolve.problem.deployment import Model
from hypsolve.problem.instance import Objective
from hypsolve.problem.solution import Status
from hypsolve.solve import METHODS, solve, warm_methods
from hypsolve.solvers.clock import MIN_S, Deadline
from hypsolve.solvers.partition.infeasibility import explain_infeasible

SEARCH_SHARE = 0.5  # of the time limit, for the search where upgrades are looked for, too
RESERVED_SHARE = 0.2  # of the time limit, for the forecast
SLO_SHARE = 0.4  # of the time that is left then, for the largest loads within the targets
BUDGET_SHARE = 0.2  # of the time that is left then, for other token budgets
UPGRADE_SHARE = 0.6  # of the time that is left then, for the cheapest upgrade
WRAP_UP_S = 2.0  # seconds after an interrupt, for the forecast of the best split so far


def plan_query(
    query: PlanQuery,
    *,
    with_upgrades: bool = True,
    lighter: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> Plan:
    """Answer a query on all nodes of its network.

    `hypsolve.planning.server_plan` answers it on those that its runtime can use.

    Parameters
    ----------
    query : PlanQuery
    with_upgrades, progress
        As in `hypsolve.plan`.
    lighter : mapping, optional
        As in `hypsolve.planning.what_if.find_upgrades`.
    deadline : Deadline, optional
        When all work must have ended. Default: the time limit of the query from now on, after
        kernels have been compiled.
    """
    progress = progress or (lambda line: None)
    warm(query)
    limit_s = query.time_limit_s if deadline is None else deadline.left_s()
    deadline = deadline or Deadline(limit_s)
    share = SEARCH_SHARE if with_upgrades else 1 - RESERVED_SHARE
    limited = replace(query, time_limit_s=max(share * limit_s, MIN_S))
    solution, stopped = _solve_or_fall_back(limited, progress)
    interrupted = bool(stopped)
    if interrupted:
        deadline = Deadline(min(WRAP_UP_S, deadline.left_s()))
    return _plan_of(
        query, solution, stopped, interrupted=interrupted,
        with_upgrades=with_upgrades, lighter=lighter, progress=progress, deadline=deadline,
    )  # fmt: skip


def add_upgrades(
    plan: Plan,
    *,
    lighter: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
    deadline: Deadline,
) -> Plan:
    """Add upgrades to a plan that was made without; its split and its forecast stay.

    Parameters are those of `plan_query`.
    """
    query = plan.query
    solution = Solution(
        query=query,
        deployment=plan.deployment,
        instance=instance_of(query),
        result=plan.result,
        throughput=plan.throughput,
        fluid_result=plan.fluid_result,
    )
    found = _plan_of(
        query, solution, plan.stopped * plan.interrupted, interrupted=plan.interrupted,
        forecast=plan.forecast, slo_answer=plan.slo_answer, with_upgrades=True,
        lighter=lighter, progress=progress or (lambda line: None), deadline=deadline,
    )  # fmt: skip
    return replace(found, degrees=plan.degrees, unused_nodes=plan.unused_nodes)


def warm(query: PlanQuery) -> None:
    """Compile or load the kernels that a plan for a query needs, before a clock starts."""
    warm_methods(
        query.method or DEFAULT_METHOD,
        simulates=True,
        pipelines=query.has_pipelines,
        families=query.families,
    )


def _plan_of(
    query: PlanQuery,
    solution: Solution,
    stopped: str,
    *,
    interrupted: bool,
    forecast: Forecast | None = None,
    slo_answer: SloAnswer | None = None,
    with_upgrades: bool,
    lighter: Mapping[str, Model] | None,
    progress: Progress,
    deadline: Deadline,
) -> Plan:
    """Complete a plan: forecast and answer, unless they are known, and upgrades."""
    result = solution.result
    alternatives: list[Alternative] = []
    upgrades: list[Upgrade] = []
    unfinished = "not all upgrades were tried"
    try:
        if result.partition is not None and forecast is None:
            progress("simulating requests")
            forecast = predict(
                solution.deployment,
                result.partition,
                query.load,
                query.network.price_per_hour,
                currency=query.network.currency,
                instance=solution.instance,
                deadline=deadline,
                near_per_s=_near_per_s(query, solution),
            )
            forecast = _within_bound(forecast, solution.throughput)
        if forecast is not None and query.has_targets and slo_answer is None:
            slo_answer = answer_of(solution.deployment, forecast)
            if not interrupted:
                unfinished = "the search for the largest loads within the targets was cut short"
                search = _slo_search(query, solution, forecast)
                try:
                    search.run(deadline.part(SLO_SHARE), progress)
                finally:  # an interrupt leaves what is known
                    slo_answer = search.answer()
                unfinished = "not all upgrades were tried"
        if slo_answer is not None:
            slo_answer = _decided(slo_answer, query, solution.throughput)
        if slo_answer is not None and with_upgrades and not stopped:
            budget = better_budget(
                query, solution, slo_answer.max_requests_per_s,
                deadline.part(BUDGET_SHARE), progress,
            )  # fmt: skip
            slo_answer = replace(slo_answer, better_budget=budget)
        if slo_answer is not None and not slo_answer.is_met and with_upgrades and not stopped:
            slo_answer, stopped = _with_upgrade(
                slo_answer, query, solution, lighter, deadline.part(UPGRADE_SHARE), progress
            )
        if with_upgrades and not stopped:
            if result.partition is not None and solution.throughput is None:
                for alternative in _alternatives(query, solution, deadline):
                    progress(f"simulated: the split for {alternative.objective}")
                    alternatives.append(alternative)
            for upgrade in find_upgrades(
                query,
                solution,
                lighter,
                before=_before(query, solution, forecast),
                best_known=_best_known(query, solution, forecast, alternatives),
                before_is_lower_bound=(
                    forecast is not None
                    and forecast.max_rate_is_lower_bound
                    and solution.throughput is None
                ),
                before_is_settled=forecast is None or forecast.is_settled,
                splits=[
                    *(other.cuts for other in alternatives),
                    *(each.cuts for each in _runners_up(solution)),
                ],
                deadline=deadline,
                progress=progress,
            ):
                upgrades.append(upgrade)  # those before an interrupt stay
    except KeyboardInterrupt:
        stopped, interrupted = stopped or unfinished, True
        if slo_answer is not None:
            slo_answer = _decided(slo_answer, query, solution.throughput)
    except TimeoutError:
        stopped = (
            stopped or f"time limit of {query.time_limit_s:g} s: not all upgrades were tried"
        )
    if stopped and forecast is None and result.partition is not None:
        stopped += "; the forecast was not simulated"
    if slo_answer is not None and slo_answer.decided_by == TIME_LIMIT and not stopped:
        limit = f"time limit of {query.time_limit_s:g} s"
        stopped = f"{limit}: not all splits were simulated at the load"
    is_open = forecast is not None and query.users is None and not stopped
    if is_open and forecast is not None and math.isnan(forecast.max_requests_per_s):
        limit = f"time limit of {query.time_limit_s:g} s"
        stopped = f"{limit}: the largest rate that it keeps up with takes longer to simulate"
    goal = Goal(query)
    return Plan(
        query=query,
        result=result,
        reasons=_reasons(solution),
        nodes=tuple(plan_nodes(solution)) if result.partition else (),
        stages=tuple(plan_stages(result, solution.deployment)) if result.partition else (),
        forecast=forecast,
        alternatives=tuple(alternatives),
        upgrades=tuple(sorted(upgrades, key=lambda each: _order(goal, each))),
        stopped=stopped,
        deployment=solution.deployment,
        throughput=solution.throughput,
        slo_answer=slo_answer,
        interrupted=interrupted,
        fluid_result=solution.fluid_result,
    )


def _decided(answer: SloAnswer, query: PlanQuery, found: Throughput | None) -> SloAnswer:
    """Return an answer that states what decides it; see `decided`."""
    if found is None:
        return answer
    bound = found.bound_requests_per_s
    return decided(answer, query.load, found.at_load, bound)


def _near_per_s(query: PlanQuery, solution: Solution) -> float:
    """Return the rate at which the search for the split saw it serve; 0 if there was none."""
    if solution.throughput is None or query.users is not None:
        return 0.0
    return solution.throughput.simulated_requests_per_s


def _within_bound(forecast: Forecast, found: Throughput | None) -> Forecast:
    """Return a forecast with the bound on all splits, if it is less than that on its split."""
    bound = math.inf if found is None else found.bound_requests_per_s
    has_users = forecast.load.users is not None
    if found is not None and has_users:
        bound = min(bound, found.users_bound_requests_per_s)
    served = forecast.requests_per_s if has_users else forecast.max_requests_per_s
    # the largest sustained rate is approximate
    if bound < forecast.bound_requests_per_s and not bound < served:
        return replace(forecast, bound_requests_per_s=bound)
    return forecast


def _slo_search(query: PlanQuery, solution: Solution, forecast: Forecast) -> SloSearch:
    """Return the search for the largest loads within the targets, of the split of a plan."""
    assert solution.result.partition is not None
    known, is_lower_bound, is_confirmed = math.nan, False, True
    if solution.throughput is not None:
        best = solution.throughput.splits[0]
        known, is_lower_bound = best.within_targets_per_s, best.is_lower_bound
        is_confirmed = best.is_confirmed
    return SloSearch(
        solution.deployment,
        solution.instance,
        solution.result.partition,
        query.load,
        forecast,
        within_targets_per_s=known,
        is_lower_bound=is_lower_bound,
        is_confirmed=is_confirmed,
    )


def _with_upgrade(
    answer: SloAnswer,
    query: PlanQuery,
    solution: Solution,
    lighter: Mapping[str, Model] | None,
    deadline: Deadline,
    progress: Progress,
) -> tuple[SloAnswer, str]:
    """Return an answer with the cheapest upgrade that is enough, and what is unfinished."""
    partition = solution.result.partition
    split = None if partition is None else partition.cuts
    try:
        found = cheapest_upgrade(
            query, lighter, split=split, deadline=deadline, progress=progress
        )
    except TimeoutError:
        return answer, (
            f"time limit of {query.time_limit_s:g} s: not all upgrades that may reach the"
            " targets were tried"
        )
    return replace(answer, upgrade=found, upgrades_were_tried=True), ""


def _runners_up(solution: Solution) -> tuple[ServedSplit, ...]:
    """Return the splits that were simulated beside the best one, in their order."""
    return solution.throughput.splits[1:] if solution.throughput is not None else ()


def _order(goal: Goal, upgrade: Upgrade) -> tuple[float, float]:
    """Return the key that sorts upgrades: by the goal, then by attainment of the targets."""
    attainment = upgrade.slo_attainment
    return goal.rank(upgrade.after), 0.0 if math.isnan(attainment) else -attainment


def _before(query: PlanQuery, solution: Solution, forecast: Forecast | None) -> float:
    """Return the simulated value of what the user asked for; nan if it is not known.

    Where a rate is maximised, it is the one that the search has found, as in upgrades.
    """
    goal = Goal(query)
    if solution.throughput is not None and goal.quantity == RATE and query.users is None:
        return solution.throughput.simulated_requests_per_s
    return math.nan if forecast is None else goal.of(forecast)


def _best_known(
    query: PlanQuery,
    solution: Solution,
    forecast: Forecast | None,
    alternatives: Sequence[Alternative],
) -> float:
    """Return the best simulated value of what the user asked for, over all known splits."""
    if forecast is None:
        return math.nan
    goal = Goal(query)
    others = (goal.of_split(other) for other in alternatives)
    return goal.best([_before(query, solution, forecast), *others])


def _solve_or_fall_back(query: PlanQuery, progress: Progress) -> tuple[Solution, str]:
    """Return the solution and what is unfinished; an interrupted exact method is replaced."""
    try:
        solution = solve_query(query, progress)
    except KeyboardInterrupt:
        if query.method is None or not METHODS[query.method].exact:
            raise
        quick = solve_query(replace(query, method=DEFAULT_METHOD, options={}))
        return quick, f"{query.method} was stopped: this is {DEFAULT_METHOD}'s split"
    if solution.interrupted:
        return solution, "the search was stopped: this is the best split so far"
    return solution, ""


def split(
    model: ModelSource,
    network: NetworkSource,
    *,
    simulates: bool = False,
    progress: Progress | None = None,
    **arguments: Any,
) -> Solution:
    """Split a model as `plan_query` does, without forecast and upgrades.

    Parameters
    ----------
    model, network, progress, **arguments
        As in `hypsolve.plan`.
    simulates : bool
        Whether the caller simulates the split next, so that those kernels are compiled, too.

    Returns
    -------
    Solution
    """
    query, _ = choose_degrees(PlanQuery.of(model, network, **arguments), progress)
    warm_methods(
        query.method or DEFAULT_METHOD,
        simulates=simulates or query.is_simulated or query.is_rate,
        pipelines=query.has_pipelines,
        families=query.families,
    )
    return solve_query(query, progress)


def _alternatives(
    query: PlanQuery, solution: Solution, deadline: Deadline
) -> Iterator[Alternative]:
    """Yield the best splits for other objectives, if they differ, with their forecast."""
    deployment, seen = solution.deployment, [solution.result.partition]
    for objective in (Objective.BOTTLENECK, Objective.PATH, Objective.P0):
        has_empty_tier = objective is Objective.P0 and 0 in query.network.min_blocks
        if objective == query.objective or has_empty_tier:
            continue
        if deadline.has_passed():
            raise TimeoutError
        instance = solution.instance.replace(objective=objective)
        partition = solve(instance, "hypsplit_dp").partition
        if partition in seen or partition is None:
            continue
        seen.append(partition)
        forecast = predict(
            deployment, partition, query.load, instance=instance, deadline=deadline,
            only="requests/s" if query.users is None else "",
        )  # fmt: skip
        yield Alternative(
            objective=str(objective),
            cuts=partition.cuts,
            latency_mean_s=forecast.latency_s.mean,
            max_requests_per_s=forecast.max_requests_per_s,
            goodput_requests_per_s=forecast.goodput_requests_per_s,
            max_rate_is_lower_bound=forecast.max_rate_is_lower_bound,
            slo_attainment=forecast.slo_attainment,
        )


def _reasons(solution: Solution) -> tuple[str, ...]:
    """Return why nothing fits, or why no split was found."""
    result = solution.result
    if result.partition is not None:
        return ()
    if result.status is not Status.INFEASIBLE:
        return (result.message,)
    reasons = explain_infeasible(solution.instance)
    mix = solution.query.requests
    longest = () if mix is None else (f"KV cache must hold {mix.describe_longest()}",)
    return (reasons.verdict, *reasons.tiers, *longest)
