"""Hyperion, bettered at scale: the partition by simulated latency, the schedule by search."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hypsolve import evaluation
from hypsolve import validation as valid
from hypsolve.kernels.line import Line
from hypsolve.problem import Array, Instance, IntArray, Objective
from hypsolve.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.exact import OPTIMAL_GAP
from hypsolve.solvers.heft import heft
from hypsolve.solvers.hyperion import hyperion
from hypsolve.solvers.joint_boxes import Box
from hypsolve.solvers.joint_tables import no_partition
from hypsolve.solvers.latency_bounds import Bounds, Known, least_left_s, machine_of
from hypsolve.solvers.lines import Stages, decision_of

METHOD = "hyperion_plus"
MOST_PARTITIONS, MOST_BOXES = 64, 1000  # that are given a schedule; that are bounded for it
ROUNDS = ((4, 3), (2, 10))  # how many of the best go on, and trials in each window
FINALISTS, CLOSE = 6, 1.03  # that share the rest of the trials, if so close to the best
WIDTH, LOOK, STEP = 24, 72, 12  # operations in a window, behind it, and between two windows
MOST_TRIALS = 100  # in a window, of a finalist
FEWEST_TRIALS, TRIALS_EACH = 36_000, 36  # in all; for each request, if that is more
WINDOWS_AT_ONCE = 32  # between two looks at the clock
BETTER = 1e-4  # by a smaller part a search is at its end
NEW_BEGINNINGS = 48
SHAKE = 0.1  # of a mean service: how far starts are moved for a new beginning
ROUNDING = 1e-9  # of the objective: by more, a bound above it is wrong
SEARCH_SHARE = 0.5  # of the time limit, if there is a bound to be raised with the rest


def hyperion_plus(
    instance: Instance, *, time_limit_s: float, seed: int, prove: bool = False
) -> Outcome:
    """Decide partition and schedule for thousands of requests: never worse than Hyperion.

    Partitions are taken in the order of a bound on their latency, until the next bound is no
    better than the best answer, or there are enough. Each gets a schedule: stage by stage, the
    shortest rest first on one machine in place of the nodes gives the order, and each request
    goes where it finishes earliest. The schedules of the best partitions are bettered by a
    search in windows of time (see `hypsolve.kernels.orders`). Hyperion's answers, by either of
    its cuts, and HEFT's are answers too. Like HEFT, and unlike a dispatch policy, it knows all
    arrivals beforehand: it plans a known workload, or says what a policy could gain.

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
        Keep half of `time_limit_s` to raise ``bound_s`` by prices on the nodes' time, in ever
        finer ticks, as far as those go (of the mean latency; the makespan has one bound). From
        some thousands of requests on that takes minutes, and the search has half the time.

    Returns
    -------
    Outcome
        FEASIBLE, or OPTIMAL if the bound is reached. ``bound_s`` holds over all partitions and
        schedules, whenever the search ends: of each stage as one machine, of each request
        alone and, with `prove`, by prices.
    """
    prove = valid.flag(f"method {METHOD!r}", "prove", prove)
    started = time.perf_counter()
    search_s = SEARCH_SHARE * time_limit_s if prove else time_limit_s
    bounds = Bounds(instance)
    search = _Search(bounds, started + search_s, np.random.default_rng(seed))
    for outcome in (
        hyperion(instance, time_limit_s=time_limit_s, seed=seed),
        hyperion(instance, time_limit_s=time_limit_s, seed=seed, partition_objective="path"),
        heft(instance, time_limit_s=time_limit_s, seed=seed),
    ):
        if outcome.partition is not None and outcome.schedule is not None:
            search.begin_with(outcome.partition, outcome.schedule)
    if search.partition is None:  # nor would a path of least latency fit
        return no_partition(instance)
    search.schedule_partitions()
    search.better()
    notes = [
        f"{len(search.plans)} partitions scheduled, {search.n_trials} trials to better them",
        *["search stopped at the time limit"] * search.is_late(),
    ]
    if prove:
        assert search.schedule is not None  # as there is a partition
        known = Known(search.best_s, evaluation.latency_s(instance, search.schedule))
        stopped = bounds.raise_by_prices(known, started + time_limit_s)
        notes += ["bound raised until the time limit" if stopped else "bound raised by prices"]
    bound_s = bounds.least_s
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
            "n_boxes": bounds.n_boxes,
            "n_scheduled": len(search.plans),
            "n_trials": search.n_trials,
        },
    )


@dataclass(slots=True)
class _Plan:
    """A partition with the order from which its schedule is made."""

    stages: Stages
    line: Line  # its service is inf where a request is barred from a group
    least_s: Array  # (n_requests, n_stages), as `least_left_s`
    order: IntArray  # (n_requests * n_stages,), operations
    value_s: float

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
        self._planned: set[tuple[int, ...]] = set()
        self._makespan = self.instance.objective is Objective.MAKESPAN

    def is_late(self) -> bool:
        """Whether the search must end."""
        return time.perf_counter() >= self.deadline

    def begin_with(self, partition: Partition, schedule: Schedule) -> None:
        """Take a decision for a start, and its partition for one more plan."""
        self._take(partition, schedule)
        self._plan(self.bounds.lines.of(Box(partition.cuts, partition.cuts)))

    def schedule_partitions(self) -> None:
        """Plan for partitions in the order of their bounds, while one may be better.

        Then for the neighbours of the best plan, as long as one of them is the best.
        """
        for bound_s, stages in self.bounds.partitions(self._has_looked_enough):
            if bound_s >= self.best_s or len(self.plans) >= MOST_PARTITIONS:
                break
            self._plan(stages)
        best = None
        while self.plans and self._best_plans(1)[0] is not best and not self.is_late():
            best = self._best_plans(1)[0]
            for cuts in neighbours(best.stages.box.low):
                near = self.bounds.lines.of(Box(cuts, cuts))
                if near is not None and self.bounds.machine_bound_s(near) < self.best_s:
                    self._plan(near)

    def _has_looked_enough(self) -> bool:
        return self.bounds.n_boxes >= MOST_BOXES or self.is_late()

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
        """Serve stage by stage, the shortest rest first (for the makespan: the most urgent)."""
        from hypsolve.kernels import bounds, orders

        line = stages.line
        assert line is not None  # a single partition has a stage
        work, _ = machine_of(line)
        least_s = least_left_s(line)
        state, ready = orders.new_state(line, 1), line.release.copy()
        node, start, end = _times(line)
        for k in range(line.lag.shape[1]):
            key = ready - least_s[:, k]  # who must start first, for all to end together
            if not self._makespan:
                key, _ = bounds.shortest_rest_first(ready, work[:, k].copy())
            orders.place_stage(
                line, k, np.argsort(key, kind="stable"), ready, state, node, start, end
            )
        self._offer(stages, node, start, end)
        line = line._replace(service=line.service.copy())
        plan = _Plan(stages, line, least_s, _by_start(start), math.inf)
        self._place(plan)
        return plan

    def _place(self, plan: _Plan) -> Array:
        """Serve all requests in the order of a plan, and value it; returns the starts."""
        from hypsolve.kernels import orders

        node, start, end = _times(plan.line)
        orders.place_all(
            plan.line, plan.order, orders.new_state(plan.line, 1), node, start, end
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
            self._pass(plan, MOST_TRIALS)

    def _pass(self, plan: _Plan, most_trials: int) -> None:
        """Go once through a plan's order, a window at a time, and keep it if that helped."""
        from hypsolve.kernels import orders

        line, before = plan.line, replace(plan, order=plan.order.copy())
        service = line.service.copy()
        room = WIDTH + LOOK
        state, trial = orders.new_state(line, room + 1), orders.new_state(line, 1)
        window, ready, at = orders.new_window(room), line.release.copy(), 0
        n_at_once = WINDOWS_AT_ONCE * STEP
        while at < len(plan.order) and not self._is_over():
            at, n_trials = orders.improve(
                line, plan.asked, plan.least_s, plan.order, ready, self._makespan, WIDTH, STEP,
                at, min(at + n_at_once, len(plan.order)), most_trials, state, trial, window,
            )  # fmt: skip
            self.n_trials += n_trials
        self._place(plan)
        if plan.value_s > before.value_s:  # beyond the windows, more was lost
            plan.order, plan.value_s = before.order, before.value_s
            line.service[:] = service

    def _shaken(self, plan: _Plan) -> _Plan:
        """Another plan to begin from: starts moved at random, nobody barred."""
        line = plan.line._replace(service=plan.asked.copy())
        start = self._place(plan)
        start = start + self.rng.normal(0, SHAKE * float(line.service.mean()), start.shape)
        order = _by_start(np.maximum.accumulate(start, axis=1))
        again = _Plan(plan.stages, line, plan.least_s, order, math.inf)
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
