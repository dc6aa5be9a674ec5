"""Hyperion, bettered at scale: the partition by simulated latency, the schedule by search."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hypsolve.kernels.flow_shop import Line
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.joint.decision import no_partition
from hypsolve.solvers.joint.flow_shop import Stages, decision_of
from hypsolve.solvers.joint.heft import heft
from hypsolve.solvers.joint.latency_bounds import (
    Bounds,
    Known,
    fastest_s,
    machine_of,
    min_left_s,
)
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.joint.two_stage import hyperion
from hypsolve.solvers.outcomes import OPTIMAL_GAP

METHOD = "hyperion_plus"
MAX_PARTITIONS, MAX_BOXES = 64, 1000  # given a schedule, before neighbours; bounded for it
FIRST_LEADS = 1.5, 2.0, 0.0  # tried on every partition
LEADS = 0.0, 1.0, 1.5, 2.0, 2.5  # tried by stage on the best
ROUNDS = ((4, 3), (2, 10))  # how many of the best go on; when a window has had enough trials
FINALISTS, CLOSE = 6, 1.03  # that share the rest of the trials, if so close to the best
WIDTH, LOOK, STEP = 24, 72, 12  # operations in a window, behind it, and between two windows
MAX_TRIALS = 100  # in a window, of a finalist
FEWEST_TRIALS, TRIALS_EACH = 36_000, 36  # in all; for each request, if that is more
WINDOWS_AT_ONCE = 32  # between two looks at the clock
BETTER = 1e-4  # by a smaller part a search is at its end
NEW_BEGINNINGS = 48
SHAKE = 0.1  # of a mean fastest service: how far starts are moved for a new beginning
ROUNDING = 1e-9  # of the objective: by more, a bound above it is wrong
SEARCH_SHARE = 0.5  # of the time limit, if there is a bound to be raised with the rest


def hyperion_plus(
    instance: Instance, *, time_limit_s: float, seed: int, prove: bool = False
) -> Outcome:
    """Decide partition and schedule for thousands of requests: never worse than Hyperion.

    Partitions are taken in the order of a bound on their latency, until the next bound is no
    better than the best answer, or there are enough. Each gets a schedule: stage by stage, in
    the order of about when one machine in place of the nodes would start them, which does the
    shortest rest first, each request goes where it finishes earliest. The schedules of the best
    partitions are bettered by a search in windows of time (see
    `hypsolve.kernels.list_scheduling`).
    Hyperion's answers, by either of its cuts, and HEFT's are answers too. Like HEFT, and unlike
    a dispatch policy, it knows all arrivals beforehand: it plans a known workload, or says what
    a policy could gain.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        The work is in proportion to the requests, and ends by itself: after about a second
        where there are 1,000. The limit ends it sooner.
    seed : int
        Of new beginnings of the search. Unless the limit ends it, the answer is the same for
        the same seed.
    prove : bool
        Raise ``bound_s`` by prices on the nodes' time, in ever finer ticks, as far as those go
        (of the mean latency; the makespan has no such bound). That takes a second for tens of
        requests, and all of `time_limit_s` for 1,000 and more. Half of it is kept for prices,
        unless not even the first steps would fit; then, and where arrivals are so far apart
        that ticks would be too many, ``message`` says so.

    Returns
    -------
    Outcome
        FEASIBLE, or OPTIMAL if the bound is reached. ``bound_s`` holds over all partitions and
        schedules, whenever the search ends: of each stage as one machine, of each request
        alone and, with `prove`, by prices.
    """
    prove = valid.flag(f"method {METHOD!r}", "prove", prove)
    started = time.perf_counter()
    relaxations = Bounds(instance)
    search = _Search(relaxations, started + time_limit_s, np.random.default_rng(seed))
    for outcome in (
        hyperion(instance, time_limit_s=time_limit_s, seed=seed),
        hyperion(instance, time_limit_s=time_limit_s, seed=seed, partition_objective="path"),
        heft(instance, time_limit_s=time_limit_s, seed=seed),
    ):
        if outcome.partition is not None and outcome.schedule is not None:
            search.begin_with(outcome.partition, outcome.schedule)
    if search.partition is None:  # nor would a path of least latency fit
        return no_partition(instance)
    kept_s = (1 - SEARCH_SHARE) * time_limit_s
    round_s = math.inf
    if prove and search.plans:
        round_s = relaxations.price_round_s(search.plans[0].stages, search.known())
    has_time = round_s <= kept_s
    if has_time:
        search.deadline -= kept_s
    search.schedule_partitions()
    search.better()
    notes = [
        f"{len(search.plans)} partitions scheduled, {search.n_trials} trials to better them",
        *["search stopped at the time limit"] * search.was_stopped,
    ]
    if has_time:
        stopped = relaxations.raise_by_prices(search.known(), started + time_limit_s)
        notes += ["bound raised until the time limit" if stopped else "bound raised by prices"]
    elif prove and instance.objective is Objective.MAKESPAN:
        notes += ["no prices for a makespan"]
    elif prove:
        notes += ["no time for prices" if round_s < math.inf else "too many ticks for prices"]
    bound_s = relaxations.min_s
    if search.best_s < bound_s <= search.best_s * (1 + ROUNDING):
        bound_s = search.best_s
    is_proved = search.best_s - bound_s <= OPTIMAL_GAP * search.best_s
    return Outcome(
        Status.OPTIMAL if is_proved else Status.FEASIBLE,
        search.partition,
        search.schedule,
        bound_s=bound_s,
        message=", ".join(notes),
        statistics={
            "n_boxes": relaxations.n_boxes,
            "n_scheduled": len(search.plans),
            "n_trials": search.n_trials,
        },
    )


@dataclass(slots=True)
class _Plan:
    """A partition with the order from which its schedule is made."""

    stages: Stages
    line: Line  # its service is inf where a request is barred from a group
    work_s: Array  # (n_requests, n_stages), as `machine_of`
    min_s: Array  # (n_requests, n_stages), as `min_left_s`
    lead: Array = field(default_factory=lambda: np.empty(0))  # (n_stages,), see `_Search._lead`
    order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # of the operations
    value_s: float = math.inf

    @property
    def asked(self) -> Array:
        """Service without bars."""
        assert self.stages.line is not None  # a single partition has a stage
        return self.stages.line.service


class _Search:
    """The best decision so far, and the plans from which better ones may come."""

    def __init__(self, bounds: Bounds, deadline: float, rng: np.random.Generator) -> None:
        self.bounds = bounds
        self.instance = bounds.instance
        self.deadline = deadline
        self.rng = rng
        self.best_s = math.inf
        self.partition: Partition | None = None
        self.schedule: Schedule | None = None
        self.plans: list[_Plan] = []
        self.n_trials = 0
        self.was_stopped = False
        self._planned: set[tuple[int, ...]] = set()
        self._makespan = self.instance.objective is Objective.MAKESPAN

    def is_late(self) -> bool:
        """Whether the search must end; if it asks, it had more to do."""
        self.was_stopped = time.perf_counter() >= self.deadline
        return self.was_stopped

    def known(self) -> Known:
        """What is known of the best schedule so far."""
        assert self.schedule is not None
        return Known(self.best_s, evaluation.latency_s(self.instance, self.schedule))

    def begin_with(self, partition: Partition, schedule: Schedule) -> None:
        """Take a decision for a start, and its partition for one more plan."""
        self._take(partition, schedule)
        self._plan(self.bounds.lines.of(PartitionBox(partition.cuts, partition.cuts)))

    def schedule_partitions(self) -> None:
        """Plan for partitions in the order of their bounds, while one may be better.

        Then for the neighbours of the best plan, as long as one of them is the best.
        """
        for bound_s, stages in self.bounds.partitions(self._has_looked_enough):
            if bound_s >= self.best_s or len(self.plans) >= MAX_PARTITIONS:
                break
            self._plan(stages)
        best = None
        while self.plans and self._best_plans(1)[0] is not best and not self.is_late():
            best = self._best_plans(1)[0]
            for cuts in neighbours(best.stages.box.low):
                near = self.bounds.lines.of(PartitionBox(cuts, cuts))
                if near is not None and self.bounds.machine_bound_s(near) < self.best_s:
                    self._plan(near)

    def _has_looked_enough(self) -> bool:
        return self.bounds.n_boxes >= MAX_BOXES or self.is_late()

    def _take(self, partition: Partition, schedule: Schedule) -> None:
        """Take over a decision if it is better."""
        value_s = evaluation.evaluate(self.instance, partition, schedule)
        if value_s < self.best_s:
            self.best_s, self.partition, self.schedule = value_s, partition, schedule

    def _plan(self, stages: Stages | None) -> None:
        """Make a plan for a single partition, unless there is one."""
        if stages is not None and stages.box.low not in self._planned:
            self._planned.add(stages.box.low)
            self.plans.append(self._first_plan(stages))

    def better(self) -> None:
        """Better the plans, the best ones longer, until the trials or the time are used up."""
        if not self.plans:
            return
        for plan in self._best_plans(FINALISTS):
            self._tune(plan)
        for n_plans, n_trials in ROUNDS:
            for plan in self._best_plans(n_plans):
                self._pass(plan, n_trials)
        plans = self._best_plans(FINALISTS)
        plans = [plan for plan in plans if plan.value_s <= CLOSE * plans[0].value_s]
        for plan in plans:
            self._settle(plan)
        for i in itertools.islice(itertools.cycle(range(len(plans))), NEW_BEGINNINGS):
            if self._is_over():
                break
            again = self._shaken(plans[i])
            self._settle(again)
            if again.value_s < plans[i].value_s:
                plans[i] = again

    def _best_plans(self, n: int) -> list[_Plan]:
        return sorted(self.plans, key=lambda plan: plan.value_s)[:n]

    def _is_over(self) -> bool:
        most = max(FEWEST_TRIALS, TRIALS_EACH * self.instance.n_requests)
        return self.n_trials >= most or self.is_late()

    def _first_plan(self, stages: Stages) -> _Plan:
        """Serve stage by stage, with the best of some leads."""
        line = stages.line
        assert line is not None  # a single partition has a stage
        plan = _Plan(
            stages=stages,
            line=line._replace(service=line.service.copy()),
            work_s=machine_of(line)[0],
            min_s=min_left_s(line),
        )
        for ahead in FIRST_LEADS[: 1 if self._makespan else None]:
            self._lead(plan, np.full(line.lag.shape[1], ahead))
        return plan

    def _tune(self, plan: _Plan) -> None:
        """Better the leads of a plan, one stage at a time."""
        if self._makespan:
            return
        for k in range(len(plan.lead)):
            for ahead in LEADS:
                if ahead != plan.lead[k] and not self.is_late():
                    lead = plan.lead.copy()
                    lead[k] = ahead
                    self._lead(plan, lead)

    def _lead(self, plan: _Plan, lead: Array) -> None:
        """Serve stage by stage in order of about when one machine would start each request.

        That machine does the shortest rest first, and may interrupt; a request's start is when
        it ends less `lead` times its work. For the makespan the most urgent go first. Where the
        schedule so made is better than the plan's, its starts are the plan's order.
        """
        from hypsolve.kernels import list_scheduling, relaxations

        line, ready = plan.line, plan.line.release.copy()
        state = list_scheduling.new_state(line, 1)
        node, start, end = _times(line)
        for k, ahead in enumerate(lead):
            key = ready - plan.min_s[:, k]  # who must start first, for all to end together
            if not self._makespan:
                work = plan.work_s[:, k].copy()
                key = relaxations.shortest_rest_first(ready, work)[0] - ahead * work
            list_scheduling.place_stage(
                line, k, np.argsort(key, kind="stable"), ready, state, node, start, end
            )
        self._offer(plan.stages, node, start, end)
        other = replace(plan, lead=lead, order=_by_start(start))
        self._place(other)
        if other.value_s < plan.value_s:
            plan.lead, plan.order, plan.value_s = lead, other.order, other.value_s

    def _place(self, plan: _Plan) -> Array:
        """Serve all requests in the order of a plan, and value it; returns the starts."""
        from hypsolve.kernels import list_scheduling

        node, start, end = _times(plan.line)
        list_scheduling.place_all(
            plan.line, plan.order, list_scheduling.new_state(plan.line, 1), node, start, end
        )
        plan.value_s = self._offer(plan.stages, node, start, end)
        return start

    def _offer(self, stages: Stages, node: IntArray, start: Array, end: Array) -> float:
        """Value of a schedule, which is offered if it seems better."""
        last_s = end[:, -1]
        value_s = last_s.max() if self._makespan else (last_s - self.instance.arrival_s).mean()
        if value_s < self.best_s:
            self._take(*decision_of(self.instance, stages, node, start, end))
        return float(value_s)

    def _settle(self, plan: _Plan) -> None:
        """Better a plan until that has little effect."""
        before_s = math.inf
        while plan.value_s < before_s * (1 - BETTER) and not self._is_over():
            before_s = plan.value_s
            self._pass(plan, MAX_TRIALS)

    def _pass(self, plan: _Plan, max_trials: int) -> None:
        """Go once through a plan's order, a window at a time, and keep it if that helped."""
        from hypsolve.kernels import list_scheduling

        line, before = plan.line, replace(plan, order=plan.order.copy())
        service = line.service.copy()
        course = list_scheduling.new_course(line, plan.asked, plan.min_s, plan.order)
        room, at = list_scheduling.new_room(line, WIDTH + LOOK), 0
        while at < len(plan.order) and not self._is_over():
            until = min(at + WINDOWS_AT_ONCE * STEP, len(plan.order))
            at, n_trials = list_scheduling.improve(
                course, room, self._makespan, WIDTH, STEP, at, until, max_trials
            )
            self.n_trials += n_trials
        self._place(plan)
        if plan.value_s > before.value_s:  # beyond the windows, more was lost
            plan.order, plan.value_s = before.order, before.value_s
            line.service[:] = service

    def _shaken(self, plan: _Plan) -> _Plan:
        """Another plan to begin from: starts moved at random, nobody barred."""
        line = plan.line._replace(service=plan.asked.copy())
        start = self._place(plan)
        start = start + self.rng.normal(0, SHAKE * float(fastest_s(line).mean()), start.shape)
        order = _by_start(np.maximum.accumulate(start, axis=1))
        again = replace(plan, line=line, order=order)
        self._place(again)
        return again


def _times(line: Line) -> tuple[IntArray, Array, Array]:
    """Room for node, start and end, each (n_requests, n_stages)."""
    shape = line.lag.shape
    return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)


def _by_start(start: Array) -> IntArray:
    """Operations by start; those of one request stay in order."""
    n_requests, n_stages = start.shape
    return np.lexsort((np.tile(np.arange(n_stages), n_requests), start.ravel()))


def neighbours(cuts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Cuts moved by one block, one or several neighbours together; not all keep the rules."""
    inner = range(1, len(cuts) - 1)
    for first, last in itertools.combinations_with_replacement(inner, 2):
        for by in (-1, 1):
            yield tuple(cut + by if first <= at <= last else cut for at, cut in enumerate(cuts))
