"""`PlacementSearch`: finds placements in the fluid model, simulates them, keeps the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypsolve.planning.place_answer import answer_at_load, largest_loads
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_served import pipelines_of, reasons_of, throughput_of
from hypsolve.planning.place_simulation import (
    Candidate,
    PlacementRate,
    PlacementSimulator,
    at_shares,
    weighted,
)
from hypsolve.planning.place_unused import unused_machines
from hypsolve.planning.placement_bound import placement_bound
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.placement_records import (
    PlaceAnswer,
    UnusedMachine,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.placement import PlacementObjective, PlacementProblem
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.solution import Status
from hypsolve.solve import solve
from hypsolve.solve_placement import PLACEMENT_METHODS
from hypsolve.solvers.clock import MIN_S, Deadline

EXACT, BASELINE = "placement_highs", "replica_per_machine"
RULES = (BASELINE, "pipelines_of_one_kind")  # whose placements are simulated, too
OTHERS_SHARE = 0.05  # of the time that is left, for each placement of shorter pipelines
SOLVE_SHARE = 0.4  # of the time limit, for the search in the fluid model
RANK_SHARE = 0.4  # of the time that is left then, to rank placements by simulation
FULL_SHARE = 0.4  # of the time that is left then, to simulate the best one at length
BOUND_SHARE = 0.3  # likewise, for the bound on all placements
UNUSED_SHARE = 0.2  # of the time that is left then, for machines that are left out
WRAP_UP_S = 2.0  # seconds after an interrupt, for the best placement so far
N_PLACEMENTS = 6  # that are simulated, at most
CLOSE = 0.02  # share by which a brief simulation may misjudge a placement
DEARER, BEYOND, MAX_DEARER = 1.03, 1e-3, 12
"""Steps of the rate, under ``cost``, until the cheapest machines serve it in simulation."""


class PlacementSearch:
    """The search for the best simulated placement; an interrupt leaves the best so far.

    Parameters
    ----------
    query : PlaceQuery
    progress : callable
    deadline : Deadline
    """

    def __init__(self, query: PlaceQuery, progress: Progress, deadline: Deadline) -> None:
        self.query, self.progress, self.deadline = query, progress, deadline
        self.stopped, self.interrupted = "", False

    def run(self) -> PlacementPlan:
        """Return the plan; an interrupt leaves the best so far."""
        problem = self.query.problem()
        if problem.objective is PlacementObjective.COST:
            return self._cheapest(problem)
        result, candidates = self._solve(problem)
        return self._plan(result, candidates)

    def _cheapest(self, problem: PlacementProblem) -> PlacementPlan:
        """Return the cheapest machines that serve the load in simulation, too.

        If they do not, the next ones must carry more than these in the fluid model.
        """
        rate = problem.requests_per_s
        assert rate is not None
        found, first = None, None
        for at in range(MAX_DEARER):
            result, candidates = self._solve(problem.replace(requests_per_s=rate))
            if found is not None and not candidates:
                break
            first = first or result
            result = replace_bound(result, first)
            is_last = at == MAX_DEARER - 1
            found = self._plan(result, candidates, only_if_met=not is_last)
            if found.is_met or not found.fits or self.interrupted or self.deadline.has_passed():
                break
            carried = math.fsum(each.fluid_requests_per_s for each in found.pipelines)
            rate = max(DEARER * rate, carried * (1 + BEYOND))
        assert found is not None
        if not found.is_met and self.deadline.has_passed():
            self.stopped = self.stopped or (
                f"{self._limit}: no machines were found in time"
                " that serve the load in simulation"
            )
        return replace(found, stopped=self.stopped)

    @property
    def _limit(self) -> str:
        """Name the time limit, and say what it covers."""
        return (
            f"time limit of {self.query.time_limit_s:g} s for search, simulations and bounds"
            " together"
        )

    # the fluid model

    def _solve(self, problem: PlacementProblem) -> tuple[PlacementResult, list[Candidate]]:
        method = self.query.method or default_method(problem.objective)
        limit_s = max(SOLVE_SHARE * self.deadline.left_s(), MIN_S)
        self.progress(f"{method}: searching placements")
        try:
            result = solve(problem, method, time_limit_s=limit_s, seed=self.query.seed)
        except KeyboardInterrupt:
            self._interrupt("the search was stopped: this is a placement without search")
            result = solve(problem.replace(objective="throughput"), BASELINE)
        candidates = []
        if result.placement is not None and result.served is not None:
            candidates.append(Candidate(result.method, result.placement, result.served))
            candidates += [
                Candidate(f"{result.method}, alternative", placement, served)
                for placement, served in result.alternatives[: N_PLACEMENTS - 2]
            ]
        elif problem.objective is PlacementObjective.GOODPUT:
            return self._without_targets(problem)
        if not problem.objective.needs_rate and not self.interrupted:
            candidates += self._others(problem, method, result)
        return result, candidates

    def _others(
        self, problem: PlacementProblem, method: str, result: PlacementResult
    ) -> Iterator[Candidate]:
        """Yield placements of shorter pipelines, and those of `RULES`.

        The fluid model overestimates pipelines of many small stages, in which batches bunch.
        """
        if result.placement is None:
            return
        longest = max(len(each.stages) for each in result.placement.pipelines)
        tries = [(problem.replace(max_stages=n), method) for n in range(longest - 1, 0, -1)]
        tries += [(problem, rule) for rule in RULES if rule != method]
        for each, name in tries:
            if self.deadline.has_passed():
                return
            limit_s = max(OTHERS_SHARE * self.deadline.left_s(), MIN_S)
            try:
                other = solve(each, name, time_limit_s=limit_s, seed=self.query.seed)
            except KeyboardInterrupt:
                self._interrupt("not all placements were found")
                return
            if other.placement is not None and other.served is not None:
                origin = name if name in RULES else f"{name}, {each.max_stages} stages"
                yield Candidate(origin, other.placement, other.served)

    def _without_targets(
        self, problem: PlacementProblem
    ) -> tuple[PlacementResult, list[Candidate]]:
        """Return the placement with the largest rate: none meets the targets as means."""
        return self._solve(problem.replace(objective=PlacementObjective.THROUGHPUT))

    def _interrupt(self, what: str) -> None:
        self.stopped, self.interrupted = self.stopped or what, True
        self.deadline = Deadline(min(WRAP_UP_S, self.deadline.left_s()))

    # simulation

    def _plan(
        self,
        result: PlacementResult,
        candidates: list[Candidate],
        *,
        only_if_met: bool = False,
    ) -> PlacementPlan:
        """Return the plan of the best placement in simulation.

        `only_if_met` says whether a placement that does not serve the load is of no interest,
        so that its largest loads and bounds are not looked for.
        """
        if not candidates:
            return PlacementPlan(
                query=self.query,
                result=result,
                placement=None,
                reasons=tuple(reasons_of(result)),
                stopped=self.stopped,
                interrupted=self.interrupted,
            )
        simulator = PlacementSimulator(self.query, result.problem)
        best, rate, simulated = self._race(simulator, candidates)
        if result.problem.objective is PlacementObjective.LATENCY:
            placement, rate = best.placement, at_shares(rate, best.placement)
        else:
            placement = weighted(best.placement, rate.weights)
        answer: PlaceAnswer | None = None
        unused: tuple[UnusedMachine, ...] = ()
        bound = math.inf
        try:
            if not self.interrupted:
                answer = answer_at_load(simulator, placement, self.progress)
            if not only_if_met or answer is None or answer.is_met:
                self.progress("trying machines that are left out")
                unused = unused_machines(
                    self.query, result.problem, best.placement, best.served,
                    self.deadline.part(UNUSED_SHARE),
                )  # fmt: skip
                if not result.problem.objective.needs_rate:  # where nobody asks for the most
                    self.progress("bounding all placements")
                    bound = placement_bound(result.problem, self.deadline.part(BOUND_SHARE))
                if not self.interrupted:
                    answer = largest_loads(
                        simulator, placement, rate, answer, self.deadline, self.progress
                    )
        except KeyboardInterrupt:
            self._interrupt("the search for the largest loads was stopped")
        return PlacementPlan(
            query=self.query,
            result=result,
            placement=placement,
            pipelines=tuple(pipelines_of(simulator, best, rate, answer)),
            throughput=throughput_of(simulator, result, simulated, answer, bound),
            answer=answer,
            unused=unused,
            stopped=self.stopped,
            interrupted=self.interrupted,
        )

    def _race(
        self, simulator: PlacementSimulator, candidates: list[Candidate]
    ) -> tuple[Candidate, PlacementRate, list[tuple[Candidate, PlacementRate]]]:
        """Return the best placement in simulation, its rate, and all that were simulated."""
        deadline = self.deadline.part(RANK_SHARE)
        found: list[tuple[Candidate, PlacementRate]] = []
        try:
            for n, each in enumerate(_distinct(simulator, candidates)):
                if found and deadline.has_passed():
                    self.stopped = self.stopped or (
                        f"{self._limit}: not all placements were simulated"
                    )
                    break
                self.progress(f"simulating placement {n + 1} of {len(candidates)}")
                rate = simulator.rate(each.placement, each.served, deadline)
                found.append((each, rate))
        except KeyboardInterrupt:
            if not found:
                raise
            self._interrupt("not all placements were simulated")
        found.sort(key=lambda each: -self._value(*each))
        best, rate = found[0]
        if self.query.objective in ("cost", "latency"):  # the load is simulated in any case
            return best, rate, found
        try:
            full = self.deadline.part(FULL_SHARE)
            for at, (each, brief) in enumerate(found):
                if at and self._value(each, brief) * (1 + CLOSE) <= self._value(best, rate):
                    break
                self.progress("simulating the best placement at length")
                refined = simulator.rate(each.placement, each.served, full, in_full=True)
                found[at] = each, refined
                if at == 0 or self._value(each, refined) > self._value(best, rate):
                    best, rate = each, refined
                if full.has_passed():
                    break
        except KeyboardInterrupt:
            self._interrupt("the best placement was simulated briefly")
        found.sort(key=lambda each: each[0] is not best)
        return best, rate, found

    def _value(self, candidate: Candidate, rate: PlacementRate) -> float:
        """Return what placements are ranked by: larger is better."""
        if self.query.objective == "cost":
            return -candidate.served.price_per_hour
        return rate.requests_per_s


def default_method(objective: PlacementObjective) -> str:
    """Return the exact method of an objective, or else one that proves nothing."""
    exact = PLACEMENT_METHODS.get(EXACT)
    if exact is not None and objective in exact.objectives:
        return EXACT
    return next(
        (name for name, each in PLACEMENT_METHODS.items() if objective in each.objectives),
        BASELINE,
    )


def replace_bound(result: PlacementResult, first: PlacementResult) -> PlacementResult:
    """Return a result for a larger rate with the bound for the rate that was asked for."""
    if result is first:
        return result
    status: Status = result.status
    if status is Status.OPTIMAL:
        status = Status.FEASIBLE
    if result.objective <= first.objective * (1 + 1e-9):
        status = first.status
    return replace(result, fluid_bound=first.fluid_bound, status=status)


def _distinct(
    simulator: PlacementSimulator, candidates: list[Candidate]
) -> Iterator[Candidate]:
    """Yield the candidates whose pipelines are not those of an earlier one."""
    seen: set[tuple[object, ...]] = set()
    for each in candidates:
        keys = tuple(sorted(map(repr, map(simulator.key, each.placement.pipelines))))
        if keys not in seen:
            seen.add(keys)
            yield each
