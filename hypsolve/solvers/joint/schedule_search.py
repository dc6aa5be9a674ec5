"""Search for schedules of many requests: SRPT list scheduling, then local search in windows."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hypsolve.kernels.flow_shop import FlowShop
from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Objective
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.solvers import clock
from hypsolve.solvers.joint.flow_shop import (
    FlowShopRelaxation,
    fastest_s,
    remaining_s,
    to_decision,
)
from hypsolve.solvers.joint.hyperion_plus_params import HyperionPlusParams
from hypsolve.solvers.joint.latency_bounds import (
    Incumbent,
    PartitionBounds,
    single_machine_work,
)
from hypsolve.solvers.joint.partition_boxes import PartitionBox

FIRST_WINDOW_S = 0.01  # guess of the time of a window, before the first one is measured


@dataclass(slots=True)
class Candidate:
    """A partition with the list of operations from which its schedule is made.

    `value_s` is the objective of the list schedule of `order` under the bars of `shop`.
    """

    relaxation: FlowShopRelaxation
    shop: FlowShop  # its service is inf where the search bars a request from a group
    work_s: Array  # (n_requests, n_stages), see `single_machine_work`
    remaining_s: Array  # (n_requests, n_stages), see `remaining_s`
    lead: Array = field(default_factory=lambda: np.empty(0))  # (n_stages,)
    order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    value_s: float = math.inf

    @property
    def full_service(self) -> Array:
        """Service times without bars, shape (n_requests, n_groups)."""
        assert self.relaxation.shop is not None  # a single partition has a stage
        return self.relaxation.shop.service


class ScheduleSearch:
    """The incumbent, and the candidates from which better schedules may come.

    A candidate's first list follows the preemptive single-machine relaxation: stage by stage,
    requests are placed in order of their SRPT completion time minus `lead` times their work,
    which is about when the machine would start them. For the makespan, requests that are ready
    early and have a long remaining time go first. Local search then improves the lists of the
    best candidates (see `hypsolve.kernels.list_scheduling`).

    Attributes
    ----------
    objective_s, partition, schedule
        The incumbent; inf, None and None before the first one.
    candidates : list of Candidate
        One per partition tried, in the order of trial.
    n_trials : int
        Number of trials of the local search so far.
    deadline : float
        When the search ends, of `hypsolve.solvers.clock.now`; it may be changed.
    """

    def __init__(
        self,
        bounds: PartitionBounds,
        params: HyperionPlusParams,
        deadline: float,
        rng: np.random.Generator,
    ) -> None:
        self.bounds = bounds
        self.instance = bounds.instance
        self.params = params
        self.deadline = deadline
        self.rng = rng
        self.objective_s = math.inf
        self.partition: Partition | None = None
        self.schedule: Schedule | None = None
        self.candidates: list[Candidate] = []
        self.n_trials = 0
        self._tried: set[tuple[int, ...]] = set()  # cuts of the candidates
        self._is_makespan = self.instance.objective is Objective.MAKESPAN
        self._window_pace = clock.Pace(FIRST_WINDOW_S)

    def is_late(self) -> bool:
        """Return True once the deadline has passed."""
        return clock.now() >= self.deadline

    def incumbent(self) -> Incumbent:
        """Return objective and latencies of the best schedule so far."""
        assert self.schedule is not None
        return Incumbent(self.objective_s, evaluation.latency_s(self.instance, self.schedule))

    def start_from(self, partition: Partition, schedule: Schedule) -> None:
        """Offer a solution as the incumbent, and make its partition a candidate."""
        self._offer(partition, schedule)
        self._add(self.bounds.relaxer.relax(PartitionBox(partition.cuts, partition.cuts)))

    def schedule_partitions(self) -> None:
        """Schedule partitions in the order of their bounds, while one may be better.

        Then schedule the neighbours of the best candidate until none of them is better.
        """
        for bound_s, relaxation in self.bounds.partitions(self._has_enough_boxes):
            if (
                bound_s >= self.objective_s
                or len(self.candidates) >= self.params.max_partitions
            ):
                break
            self._add(relaxation)
        best = None
        while self.candidates and self._best(1)[0] is not best and not self.is_late():
            best = self._best(1)[0]
            for cuts in neighbours(best.relaxation.box.low):
                if self.is_late():
                    break
                near = self.bounds.relaxer.relax(PartitionBox(cuts, cuts))
                if (
                    near is not None
                    and self.bounds.single_machine_bound_s(near) < self.objective_s
                ):
                    self._add(near)

    def improve(self) -> None:
        """Improve the candidates, the best ones longer, until trials or time are used up."""
        params = self.params
        if not self.candidates:
            return
        for candidate in self._best(params.n_finalists):
            self._tune_leads(candidate)
        for n_candidates, max_trials in params.passes:
            for candidate in self._best(n_candidates):
                if self.is_late():
                    return
                self._improve_once(candidate, max_trials)
        finalists = self._best(params.n_finalists)
        limit_s = params.max_finalist_ratio * finalists[0].value_s
        finalists = [candidate for candidate in finalists if candidate.value_s <= limit_s]
        for candidate in finalists:
            self._improve_fully(candidate)
        turns = itertools.cycle(range(len(finalists)))
        for i in itertools.islice(turns, params.max_restarts):
            if self._is_over():
                break
            restart = self._perturbed(finalists[i])
            self._improve_fully(restart)
            if restart.value_s < finalists[i].value_s:
                finalists[i] = restart

    def _has_enough_boxes(self) -> bool:
        return self.bounds.n_boxes >= self.params.max_boxes or self.is_late()

    def _is_over(self) -> bool:
        per_request = self.params.trials_per_request * self.instance.n_requests
        return self.n_trials >= max(self.params.min_trials, per_request) or self.is_late()

    def _best(self, n: int) -> list[Candidate]:
        return sorted(self.candidates, key=lambda candidate: candidate.value_s)[:n]

    def _offer(self, partition: Partition, schedule: Schedule) -> None:
        """Make a solution the incumbent if it is better."""
        objective_s = evaluation.evaluate(self.instance, partition, schedule)
        if objective_s < self.objective_s:
            self.objective_s, self.partition, self.schedule = objective_s, partition, schedule

    def _offer_times(
        self, relaxation: FlowShopRelaxation, node: IntArray, start: Array, end: Array
    ) -> float:
        """Return the objective of a flow-shop schedule; offer it if it seems to be better."""
        last_s = end[:, -1]
        value_s = (
            last_s.max() if self._is_makespan else (last_s - self.instance.release_s).mean()
        )
        if value_s < self.objective_s:
            self._offer(*to_decision(self.instance, relaxation, node, start, end))
        return float(value_s)

    def _add(self, relaxation: FlowShopRelaxation | None) -> None:
        """Make a single partition a candidate with the best of the first leads, once."""
        if relaxation is None or relaxation.box.low in self._tried:
            return
        self._tried.add(relaxation.box.low)
        shop = relaxation.shop
        assert shop is not None  # a single partition has a stage
        candidate = Candidate(
            relaxation=relaxation,
            shop=shop._replace(service=shop.service.copy()),
            work_s=single_machine_work(shop)[0],
            remaining_s=remaining_s(shop),
        )
        for lead in self.params.first_leads[: 1 if self._is_makespan else None]:
            if len(candidate.order) and self.is_late():
                break
            self._try_lead(candidate, np.full(shop.travel.shape[1], lead))
        self.candidates.append(candidate)

    def _tune_leads(self, candidate: Candidate) -> None:
        """Try every lead for one stage after the other."""
        if self._is_makespan:
            return
        for k in range(len(candidate.lead)):
            for value in self.params.leads:
                if value != candidate.lead[k] and not self.is_late():
                    lead = candidate.lead.copy()
                    lead[k] = value
                    self._try_lead(candidate, lead)

    def _try_lead(self, candidate: Candidate, lead: Array) -> None:
        """Place stage by stage with some leads; keep the order of starts if it is better."""
        from hypsolve.kernels import list_scheduling, relaxations

        shop, ready = candidate.shop, candidate.shop.release.copy()
        table = list_scheduling.new_timetable(shop, 1)
        node, start, end = _new_times(shop)
        for k, lead_k in enumerate(lead):
            key = ready - candidate.remaining_s[:, k]  # early and long ones first
            if not self._is_makespan:
                work = candidate.work_s[:, k].copy()
                key = relaxations.srpt(ready, work)[0] - lead_k * work
            list_scheduling.place_stage(
                shop, k, np.argsort(key, kind="stable"), ready, table, node, start, end
            )
        self._offer_times(candidate.relaxation, node, start, end)
        other = replace(candidate, lead=lead, order=_by_start(start))
        self._place(other)
        if other.value_s < candidate.value_s:
            candidate.lead, candidate.order = lead, other.order
            candidate.value_s = other.value_s

    def _place(self, candidate: Candidate) -> Array:
        """Make and value the list schedule of a candidate; return its starts."""
        from hypsolve.kernels import list_scheduling

        shop = candidate.shop
        node, start, end = _new_times(shop)
        table = list_scheduling.new_timetable(shop, 1)
        list_scheduling.place_all(shop, candidate.order, table, node, start, end)
        candidate.value_s = self._offer_times(candidate.relaxation, node, start, end)
        return start

    def _improve_fully(self, candidate: Candidate) -> None:
        """Improve a candidate until a pass gains little."""
        before_s = math.inf
        while candidate.value_s < before_s * (1 - self.params.min_gain) and not self._is_over():
            before_s = candidate.value_s
            self._improve_once(candidate, self.params.max_window_trials)

    def _improve_once(self, candidate: Candidate, max_trials: int) -> None:
        """Pass over a candidate's list in windows; undo the pass if the schedule got worse."""
        from hypsolve.kernels import list_scheduling

        params, shop = self.params, candidate.shop
        before = replace(candidate, order=candidate.order.copy())
        service = shop.service.copy()
        search = list_scheduling.new_search_state(
            shop, candidate.full_service, candidate.remaining_s, candidate.order
        )
        workspace = list_scheduling.new_workspace(shop, params.window + params.lookahead)
        at = 0
        while at < len(candidate.order) and not self._is_over():
            until = min(at + params.windows_per_check * params.stride, len(candidate.order))
            while at < until and not self.is_late():
                n_windows = self._window_pace.units(-(-(until - at) // params.stride))
                at, n_trials = list_scheduling.improve(
                    search,
                    workspace,
                    self._is_makespan,
                    params.window,
                    params.stride,
                    at,
                    min(at + n_windows * params.stride, until),
                    max_trials,
                )
                self._window_pace.done()
                self.n_trials += n_trials
        self._place(candidate)
        if candidate.value_s > before.value_s:  # more was lost beyond the lookahead
            candidate.order, candidate.value_s = before.order, before.value_s
            shop.service[:] = service

    def _perturbed(self, candidate: Candidate) -> Candidate:
        """Return a candidate whose starts are moved at random, without bars."""
        shop = candidate.shop._replace(service=candidate.full_service.copy())
        start = self._place(candidate)
        sigma_s = self.params.perturbation * float(fastest_s(shop).mean())
        start = start + self.rng.normal(0, sigma_s, start.shape)
        order = _by_start(np.maximum.accumulate(start, axis=1))
        perturbed = replace(candidate, shop=shop, order=order)
        self._place(perturbed)
        return perturbed


def neighbours(cuts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield cuts with one cut, or several in a row, moved by one block; some are illegal."""
    inner = range(1, len(cuts) - 1)
    for first, last in itertools.combinations_with_replacement(inner, 2):
        for shift in (-1, 1):
            yield tuple(
                cut + shift if first <= at <= last else cut for at, cut in enumerate(cuts)
            )


def _new_times(shop: FlowShop) -> tuple[IntArray, Array, Array]:
    """Return arrays for node, start and end, each of shape (n_requests, n_stages)."""
    shape = shop.travel.shape
    return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)


def _by_start(start: Array) -> IntArray:
    """Return the operations in order of their starts; stages of a request stay in order."""
    n_requests, n_stages = start.shape
    return np.lexsort((np.tile(np.arange(n_stages), n_requests), start.ravel()))
