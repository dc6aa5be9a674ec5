"""Lower bounds on the mean latency or makespan over all partitions and schedules."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.flow_shop import ROUND_DOWN, FlowShop
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance, Objective
from hypsolve.solvers import clock
from hypsolve.solvers.joint.decision import rounding_s
from hypsolve.solvers.joint.flow_shop import FlowShopRelaxation, Relaxer, fastest_s, remaining_s
from hypsolve.solvers.joint.hyperion_plus_params import AscentParams
from hypsolve.solvers.joint.partition_boxes import PartitionBox

if TYPE_CHECKING:
    from hypsolve.kernels.relaxations import AscentState, StepRule, TimeGrid

MAX_FIT_S = 0.2  # estimated time between two fits of the windows
CELL_S = 3e-9  # estimated time of an evaluation for one group and tick of one window


@dataclass(slots=True)
class _BoxNode:
    """A partition box and its bound; its flow shop is made anew, for many boxes wait."""

    box: PartitionBox
    bound_s: float
    level: int = -1  # of its multipliers
    multipliers: Array | None = None  # (n_groups, n_ticks), seconds per second
    window_s: Array | None = None  # (n_requests,), width of the windows
    n_stalled: int = 0  # ascents in a row with little gain


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Objective and latencies of the best known schedule; they scale grids and steps."""

    objective_s: float
    latency_s: Array  # (n_requests,)


class PartitionBounds:
    """Best-first branching on partition boxes, each with a lower bound on the objective.

    A box is bounded by the preemptive single-machine relaxation of its flow shop, and a single
    partition also by a Lagrangian bound (see `hypsolve.kernels.relaxations`).

    Attributes
    ----------
    relaxer : Relaxer
    n_boxes : int
        Number of boxes bounded so far.
    """

    def __init__(self, instance: Instance, params: AscentParams | None = None) -> None:
        self.instance = instance
        self.params = params or AscentParams()
        self.relaxer = Relaxer(instance)
        self.n_boxes = 0
        self._is_makespan = instance.objective is Objective.MAKESPAN
        self._count = itertools.count()  # breaks ties in the heap
        # Every feasible partition is in exactly one box of `_heap` or `_visited`. `_push`
        # inserts into the heap. `partitions` and `raise_bound` pop a box and put back its
        # branches; `partitions` moves a single partition to `_visited`, `raise_bound` moves all
        # of these to the heap and puts a partition back with its raised bound.
        self._heap: list[tuple[float, int, _BoxNode]] = []
        self._visited: list[_BoxNode] = []  # single partitions that `partitions` has yielded
        self._push_box(self.relaxer.root(), 0.0)

    @property
    def bound_s(self) -> float:
        """Lower bound over all partitions; inf if none is feasible."""
        visited = (node.bound_s for node in self._visited)
        queued = self._heap[0][0] if self._heap else math.inf
        return min(queued, *visited, math.inf)

    def partitions(
        self, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[float, FlowShopRelaxation]]:
        """Yield single partitions with their bounds, in ascending order of the bound."""
        while self._heap and not should_stop():
            bound_s, _, node = heapq.heappop(self._heap)
            if node.box.is_single:
                self._visited.append(node)
                yield bound_s, self._relaxation(node)
            else:
                self._branch(node)

    def single_machine_bound_s(self, relaxation: FlowShopRelaxation) -> float:
        """Return the bound of the preemptive single-machine relaxation on the objective."""
        from hypsolve.kernels import relaxations as kernels

        if relaxation.shop is None:
            return self._objective_s(relaxation, 0.0, float(relaxation.release_s.max()))
        work, _ = single_machine_work(relaxation.shop)
        sums = kernels.single_machine_bound(relaxation.shop, work)
        return self._objective_s(relaxation, *sums)

    def raise_bound(self, incumbent: Incumbent, deadline: float) -> bool:
        """Raise the lowest bound by subgradient ascent as far as possible.

        The ascent ends when the lowest bound reaches the incumbent, or when the partition with
        the lowest bound has no multipliers left to try.

        Returns
        -------
        bool
            True if the deadline (of `hypsolve.solvers.clock.now`) ended it.
        """
        for node in self._visited:
            self._push(node)
        self._visited = []
        while self._heap and self._heap[0][0] < incumbent.objective_s:
            if clock.now() >= deadline:
                return True
            _, _, node = heapq.heappop(self._heap)
            if not node.box.is_single:
                self._branch(node)
                continue
            has_tried = self._ascend(node, incumbent, deadline)
            self._push(node)
            if not has_tried:
                break
        return False

    def first_ascent_s(self, relaxation: FlowShopRelaxation, incumbent: Incumbent) -> float:
        """Estimate the seconds of a partition's first ascent; inf if it has too many ticks."""
        ascent = self._ascent_on_grid(relaxation, incumbent, 0, math.inf)
        if ascent is None:
            return math.inf
        return (self.params.evaluations + self.params.trial_evaluations) * ascent.evaluation_s

    def _push(self, node: _BoxNode) -> None:
        heapq.heappush(self._heap, (node.bound_s, next(self._count), node))

    def _push_box(self, box: PartitionBox, parent_bound_s: float) -> None:
        relaxation = self.relaxer.relax(box)
        if relaxation is not None:
            self.n_boxes += 1
            bound_s = self.single_machine_bound_s(relaxation)
            self._push(_BoxNode(box, max(parent_bound_s, bound_s)))

    def _branch(self, node: _BoxNode) -> None:
        for branch in node.box.branch():
            self._push_box(branch, node.bound_s)

    def _relaxation(self, node: _BoxNode) -> FlowShopRelaxation:
        relaxation = self.relaxer.relax(node.box)
        assert relaxation is not None  # it was feasible when it was bounded
        return relaxation

    def _objective_s(
        self, relaxation: FlowShopRelaxation, latency_sum: float, makespan: float
    ) -> float:
        """Turn bounds on the sum of (completion - release) and the makespan into seconds."""
        bound_s = makespan
        if not self._is_makespan:
            bound_s = latency_sum / self.instance.n_requests
            bound_s += float((relaxation.release_s - self.instance.release_s).mean())
        return max(0.0, bound_s - rounding_s(self.instance, bound_s))

    def _ascend(self, node: _BoxNode, incumbent: Incumbent, deadline: float) -> bool:
        """Raise a partition's Lagrangian bound on a finer time grid or by a restart.

        `PartitionBounds` calls it for the partition with the lowest bound. Returns False if
        neither a finer grid nor a restart is left.
        """
        params = self.params
        if node.n_stalled == len(params.restart_scales):
            return False
        relaxation = self._relaxation(node)
        ascent = self._ascent_on_grid(
            relaxation, incumbent, node.level + 1, deadline, node.window_s
        )
        is_finer = ascent is not None
        if ascent is None:
            ascent = self._ascent_on_grid(
                relaxation, incumbent, node.level, deadline, node.window_s
            )
        if ascent is None:
            return False
        if node.multipliers is None:
            starts = [ascent.zeros(), ascent.single_machine_multipliers()]
            latency_sum, best = ascent.run(starts, params.first_step, params.evaluations)
        else:
            scale = params.restart_scales[node.n_stalled]
            refine = (
                params.levels[node.level + 1] // params.levels[node.level] if is_finer else 1
            )
            start = ascent.resample(node.multipliers, refine, scale)
            latency_sum, best = ascent.run(
                [start],
                params.refined_step if scale > 0 else params.first_step,
                params.stalled_evaluations if node.n_stalled else params.evaluations,
            )
        before_s = node.bound_s
        node.bound_s = max(before_s, self._objective_s(relaxation, latency_sum, 0.0))
        gain_s = params.min_gain * (incumbent.objective_s - before_s)
        if is_finer or node.bound_s > before_s + gain_s:
            node.level += is_finer
            node.multipliers, node.n_stalled = best / ascent.grid.tick, 0
            node.window_s = ascent.grid.width * ascent.grid.tick
        else:
            node.n_stalled += 1
        return True

    def _ascent_on_grid(
        self,
        relaxation: FlowShopRelaxation,
        incumbent: Incumbent,
        level: int,
        deadline: float,
        window_s: Array | None = None,
    ) -> "_WindowedAscent | None":
        """Return a windowed ascent on the grid of a level; None if the grid has too many ticks.

        Windows have at least the width `window_s`, where a coarser level has determined it.
        """
        params, shop = self.params, relaxation.shop
        if self._is_makespan or shop is None or not 0 <= level < len(params.levels):
            return None
        mean_s = float(incumbent.latency_s.mean())
        tick_s = mean_s / params.levels[level]
        if tick_s <= 0:
            return None
        before_s = (
            relaxation.release_s - self.instance.release_s
        )  # on the way to the first stage
        no_delay_s = remaining_s(shop)[:, 0]
        delay_s = np.maximum(incumbent.latency_s - before_s - no_delay_s, 0.0)
        min_ticks = params.min_window_ticks
        max_width = max(
            min_ticks, math.ceil(float(delay_s.max()) * params.max_window_delays / tick_s)
        )
        margin_s = delay_s + params.window_margin * mean_s
        min_width = np.clip(_ceil(margin_s / tick_s), min_ticks, max_width)
        duration_s = float(np.ptp(shop.release) + no_delay_s.max() + shop.service.max())
        n_multipliers = shop.service.shape[1] * (duration_s / tick_s + max_width + 4)
        if n_multipliers > params.max_multipliers:
            return None
        grid, n_ticks = time_grid(shop, tick_s, np.full(len(min_width), max_width))
        width = min_width
        if window_s is not None:
            width = np.clip(_ceil(window_s / tick_s), min_width, max_width)
        upper = incumbent.objective_s * self.instance.n_requests - float(before_s.sum())
        return _WindowedAscent(
            params,
            shop,
            grid._replace(width=width),
            n_ticks,
            min_width,
            max_width,
            upper,
            deadline,
        )


@dataclass(slots=True)
class _WindowedAscent:
    """Subgradient ascent of one partition's Lagrangian bound, with windows that adapt.

    `hyperion_plus` uses it; `joint_exact` has `lagrangian_bound.LagrangianBound`.
    """

    params: AscentParams
    shop: FlowShop
    grid: "TimeGrid"
    n_ticks: int
    min_width: IntArray  # (n_requests,), of windows
    max_width: int
    upper: float  # sum of (completion - release) that is possible
    deadline: float
    pace: clock.Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = clock.Pace(self.evaluation_s)

    def is_late(self) -> bool:
        """Return True once the deadline has passed."""
        return clock.now() >= self.deadline

    @property
    def evaluation_s(self) -> float:
        """Estimated seconds of an evaluation."""
        return CELL_S * self.shop.service.shape[1] * float(self.grid.width.sum())

    @property
    def rule(self) -> "StepRule":
        """Rule of the subgradient steps."""
        from hypsolve.kernels.relaxations import StepRule

        params = self.params
        return StepRule(
            params.subgradient_weight, params.patience, params.step_shrink, params.min_step
        )

    def zeros(self) -> Array:
        """Return multipliers of 0, shape (n_groups, n_ticks)."""
        return np.zeros((self.shop.service.shape[1], self.n_ticks))

    def resample(self, multipliers: Array, refine: int, scale: float) -> Array:
        """Return scaled multipliers of a grid that is `refine` times as coarse, on this grid.

        `multipliers` are per second, and the result is per tick.
        """
        start = self.zeros()
        fine = np.repeat(multipliers, refine, axis=1)[:, : self.n_ticks]
        start[:, : fine.shape[1]] = fine * self.grid.tick * scale
        return start

    def run(
        self, starts: Sequence[Array], step: float, evaluations: int
    ) -> tuple[float, Array]:
        """Ascend from every start for a trial, then go on from the best one.

        Returns the bound on the sum of (completion - release), and its multipliers.
        """
        from hypsolve.kernels import relaxations as kernels

        n_trial = self.params.trial_evaluations
        states = [kernels.new_ascent(self.shop, start, step) for start in starts]
        bounds = [self._ascend_and_fit_windows(states[0], n_trial)]
        for state in states[1:]:
            if self.is_late():
                break
            bounds.append(self._ascend_and_fit_windows(state, n_trial))
        best = states[int(np.argmax(bounds))]
        if self.is_late():
            return max(bounds), best.best
        return self._ascend_and_fit_windows(best, evaluations - n_trial), best.best

    def _ascend_and_fit_windows(self, state: "AscentState", evaluations: int) -> float:
        """Step, and fit the time windows to each request in between; return the best bound.

        A window that is wider than the delay and the multipliers of its request together would
        give the same bound.
        """
        from hypsolve.kernels import relaxations as kernels

        no_delay_s = remaining_s(self.shop)[:, 0]
        while True:
            n_now = min(
                evaluations,
                self.params.evaluations_per_window,
                max(1, int(MAX_FIT_S / self.evaluation_s)),
            )
            evaluations -= n_now
            bound, is_done = state.progress[0], False
            while n_now > 0 and not is_done:
                n_call = self.pace.units(n_now)
                bound, is_done = kernels.ascend_in_windows(
                    self.shop, self.grid, state, self.upper, n_call, self.rule
                )
                self.pace.done()
                n_now -= n_call
                if n_now > 0 and self.is_late():
                    return float(bound)
            excess_s = state.path_cost - no_delay_s
            width = _ceil(self.params.window_growth * excess_s / self.grid.tick)
            self.grid = self.grid._replace(width=np.clip(width, self.min_width, self.max_width))
            if is_done or evaluations <= 0 or self.is_late():
                return float(bound)

    def single_machine_multipliers(self) -> Array:
        """Return the multipliers of the stage whose single machine gives the best bound."""
        from hypsolve.kernels import relaxations as kernels

        work, share = single_machine_work(self.shop)
        best, best_bound = self.zeros(), -math.inf
        for k in range(work.shape[1]):
            if self.is_late():
                break
            multiplier = self.zeros()
            kernels.single_machine_multipliers(self.shop, self.grid, work, share, k, multiplier)
            state = kernels.new_ascent(self.shop, multiplier, self.params.first_step)
            bound = self._ascend_and_fit_windows(state, 1)
            if bound > best_bound:
                best, best_bound = multiplier, bound
        return best


def single_machine_work(shop: FlowShop) -> tuple[Array, Array]:
    """Return work (n_requests, n_stages) on one machine per stage, and shares of its speed."""
    from hypsolve.kernels import relaxations as kernels

    work, share = np.empty(shop.travel.shape), np.empty(shop.service.shape[1])
    kernels.aggregate_work(shop, work, share)
    return work, share


def time_grid(shop: FlowShop, tick_s: float, width: IntArray) -> tuple["TimeGrid", int]:
    """Return a flow shop's times in ticks, and how many ticks cover every window."""
    from hypsolve.kernels.relaxations import TimeGrid

    def floor(times_s: Array) -> IntArray:
        return np.ascontiguousarray(np.floor(times_s / tick_s * ROUND_DOWN), np.int64)

    step_s = (fastest_s(shop) + shop.travel).cumsum(axis=1)
    head_s = shop.release[:, None] - shop.release.min() + np.zeros(shop.travel.shape)
    head_s[:, 1:] += step_s[:, :-1]
    stage = np.repeat(np.arange(len(shop.first) - 1), np.diff(shop.first))
    whole = np.floor(shop.service / tick_s).astype(np.int64)
    grid = TimeGrid(
        tick=tick_s,
        width=width,
        begin=floor(head_s),
        whole=whole,
        part=shop.service / tick_s - whole,
        ahead=floor(shop.service + shop.travel[:, stage]),
        travel=floor(shop.travel),
    )
    return grid, int((grid.begin.max(axis=1) + whole.max(axis=1) + width).max()) + 3


def _ceil(ticks: Array) -> IntArray:
    return np.asarray(np.ceil(ticks), np.int64)
