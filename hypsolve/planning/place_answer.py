"""`answer_at_load` and `largest_loads`: what a placement serves behind its router."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypsolve.planning.load import max_requests
from hypsolve.planning.place_simulation import PlacementRate, PlacementSimulator, Verdict
from hypsolve.planning.placement_records import PlaceAnswer
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import EXACT_USERS, MAX_USERS, MIN_ROUNDS, Bracket
from hypsolve.planning.sustained_rate import lowered
from hypsolve.problem.placement import Placement
from hypsolve.simulation.metrics import Summary, summary
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import Deadline

RAISED, MAX_RAISED = 0.04, 12  # steps by which a rate is raised while it holds
RATE_SHARE = 0.6  # of the time that is left, for the largest rate where users follow


def answer_at_load(
    simulator: PlacementSimulator,
    placement: Placement,
    progress: Progress,
) -> PlaceAnswer | None:
    """Return whether a placement serves the load of the query; None if it asks for none.

    Parameters
    ----------
    simulator : PlacementSimulator
    placement : Placement
        Its loads are the weights of the router.
    progress : callable
    """
    query = simulator.query
    if not query.asks_load:
        return None
    progress("simulating the load")
    verdict = simulator.judge(placement, query.load)
    return _answer(verdict, len(placement.pipelines), is_asked=True)


def largest_loads(
    simulator: PlacementSimulator,
    placement: Placement,
    rate: PlacementRate,
    asked: PlaceAnswer | None,
    deadline: Deadline,
    progress: Progress,
) -> PlaceAnswer | None:
    """Return an answer with the largest rate, and the most users, that are served.

    The rate of the pipelines is lowered in steps of 2, 4, 8, ... % until the placement serves
    it with its router; if it does at once, it is raised in steps of 4 %,
    where there are targets: without, no schedule serves more than with every queue full.
    """
    query = simulator.query
    of_rate = deadline.part(RATE_SHARE) if query.has_targets else deadline
    largest, verdict, is_lower_bound = math.nan, None, True
    load = replace(query.load, users=None, think_time_s=0.0)

    def judged(rate_per_s: float) -> Verdict:
        progress(f"largest load: simulating {rate_per_s:.4g} requests/s")
        return simulator.judge(placement, replace(load, rate_per_s=rate_per_s))

    if not rate.requests_per_s > 0:
        return None if asked is None else replace(asked, max_requests_per_s=0.0)
    known = query.rate_per_s if asked is not None and asked.is_met and query.rate_per_s else 0.0
    for each in lowered(rate.requests_per_s):
        if each <= known:
            largest, is_lower_bound = known, False
            break
        if of_rate.has_passed():
            largest = known or math.nan
            break
        if (found := judged(each)).is_met:
            largest, verdict, is_lower_bound = each, found, False
            break
    else:
        largest, is_lower_bound = known, False
    if largest == rate.requests_per_s and query.has_targets:  # else all queues are full
        for _ in range(MAX_RAISED):
            if of_rate.has_passed():
                is_lower_bound = True
                break
            if not (found := judged(largest * (1 + RAISED))).is_met:
                break
            largest, verdict = largest * (1 + RAISED), found
        else:
            is_lower_bound = True
    answer = asked
    if answer is None:
        if verdict is None:
            return None
        answer = _answer(verdict, len(placement.pipelines), is_asked=False)
    answer = replace(answer, max_requests_per_s=largest, max_rate_is_lower_bound=is_lower_bound)
    if not query.has_targets and query.users is None:
        return answer
    users, is_cut = _most_users(simulator, placement, answer, deadline, progress)
    return replace(answer, max_users=users, max_users_is_lower_bound=is_cut)


def _most_users(
    simulator: PlacementSimulator,
    placement: Placement,
    answer: PlaceAnswer,
    deadline: Deadline,
    progress: Progress,
) -> tuple[int | None, bool]:
    """Return the most users within the targets, and whether it is only a lower bound."""
    query = simulator.query
    if not query.has_targets:
        return None, False
    bracket = Bracket()
    if query.users is not None and answer.is_met is not None:
        bracket.note(query.users, answer.is_met)

    def holds(users: float) -> bool:
        progress(f"largest load: simulating {users:g} users")
        load = replace(query.load, users=int(users))
        return simulator.judge(placement, load).is_met

    deployment, _ = simulator.deployment(placement.pipelines[0])
    largest = max_requests(deployment, query.load.max_visits) // MIN_ROUNDS
    most = float(max(min(MAX_USERS, largest), 1))
    rate = answer.max_requests_per_s
    round_s = answer.latency_s.mean + query.think_time_s
    start = rate * round_s if math.isfinite(rate * round_s) else 1.0
    bracket.search(holds, start=max(start, 1.0), least=1.0, most=most, step=1.0,
                   deadline=deadline)  # fmt: skip
    if bracket.is_found and bracket.low <= EXACT_USERS and bracket.low < most:
        bracket.is_found = False
        bracket.search(
            holds, start=max(bracket.low, 1.0), least=1.0, most=most, step=1.0,
            deadline=deadline, tolerance=0.0,
        )  # fmt: skip
        bracket.is_found = True
    return int(bracket.low), not bracket.is_found


def _of_pipelines(trace: Trace, n_pipelines: int) -> Iterator[tuple[Summary, Summary]]:
    """Yield TTFT and TPOT of the requests of each pipeline."""
    for p in range(n_pipelines):
        own = trace.node[:, 0] == p
        yield summary(trace.ttft_s[own]), summary(trace.tpot_s[own])


def _answer(verdict: Verdict, n_pipelines: int, *, is_asked: bool) -> PlaceAnswer:
    found = verdict.trace.metrics()
    return PlaceAnswer(
        is_met=verdict.is_met if is_asked else None,
        slo_attainment=verdict.slo_attainment,
        is_of_later_half=verdict.is_of_later_half,
        keeps_up=verdict.keeps_up,
        n_requests=len(verdict.trace.end_s),
        ttft_s=found.ttft_s,
        tpot_s=found.tpot_s,
        latency_s=found.latency_s,
        served_per_s=found.requests_per_s,
        of_pipelines=tuple(_of_pipelines(verdict.trace, n_pipelines)),
        max_requests_per_s=math.nan,
        max_rate_is_lower_bound=True,
        max_users=None,
        max_users_is_lower_bound=True,
    )
