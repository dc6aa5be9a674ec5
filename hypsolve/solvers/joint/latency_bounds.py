"""Bounds on the mean latency (or makespan) of thousands of requests over all partitions."""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.flow_shop import Line
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.solvers.joint.decision import rounding_s
from hypsolve.solvers.joint.flow_shop import Lines, Stages
from hypsolve.solvers.joint.partition_boxes import PartitionBox

if TYPE_CHECKING:
    from hypsolve.kernels.relaxations import Climb, Ticks

LEVELS = (60, 180, 540)  # ticks in the mean latency, one level after the other
STEPS, TRIAL_STEPS = 100, 30  # of the prices, on each level; from each of two starts
MORE_STEPS = 300  # where as many lead to little
FIRST_STEP, FINER_STEP, LAST_STEP = 0.15, 0.1, 0.002  # of the way to the best known objective
NARROW, BEYOND = 0.5, 4.0  # windows: mean latencies beyond the delay known; times the longest
WIDER = 1.5  # and times what a request pays
STEPS_AT_ONCE = 10  # between two looks at that
FEWEST_TICKS = 8  # of a window
LOWER = (0.9, 0.7, 0.0)  # of prices, to go on from, one after the other: where they are best,
# hardly a step is better
LITTLE = 0.01  # of the gap: by less, more steps are in vain
MAX_PRICES = 5e6  # groups x ticks from the first release on, or there is no finer level
CALL_S, CELL_S = 0.2, 3e-9  # about the longest time between two looks at the clock


@dataclass(slots=True)
class _Node:
    """A box of partitions and its bound; not its line, for many boxes wait at a time."""

    box: PartitionBox
    bound_s: float
    level: int = -1  # of its prices
    price: Array | None = None  # (n_groups, n_ticks), per second
    wide_s: Array | None = None  # (n_requests,), width of windows
    n_in_vain: int = 0  # times that steps on its level raised it little


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a good schedule, to lay ticks by."""

    objective_s: float
    latency_s: Array  # (n_requests,)


class Bounds:
    """All partitions in boxes, the one with the least bound first.

    A box is bounded by one machine in place of each stage (see `hypsolve.kernels.relaxations`),
    a single partition also by prices.

    Attributes
    ----------
    lines : Lines
    n_boxes : int
        Bounded so far.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.lines = Lines(instance)
        self.n_boxes = 0
        self._makespan = instance.objective is Objective.MAKESPAN
        self._number = itertools.count()
        self._queue: list[tuple[float, int, _Node]] = []
        self._seen: list[_Node] = []
        self._push_box(self.lines.whole(), 0.0)

    @property
    def min_s(self) -> float:
        """No partition is better; inf if there is none, or none is left."""
        seen = (node.bound_s for node in self._seen)
        queued = self._queue[0][0] if self._queue else math.inf
        return min(queued, *seen, math.inf)

    def partitions(self, is_enough: Callable[[], bool]) -> Iterator[tuple[float, Stages]]:
        """Single partitions with their bounds, the least bound first, until it is enough."""
        while self._queue and not is_enough():
            bound_s, _, node = heapq.heappop(self._queue)
            if node.box.is_single:
                self._seen.append(node)
                stages = self.lines.of(node.box)
                assert stages is not None  # as it was when it was bounded
                yield bound_s, stages
            else:
                self._push_halves(node)

    def machine_bound_s(self, stages: Stages) -> float:
        """Bound of each stage as one machine, and of each request alone, on the objective."""
        from hypsolve.kernels import relaxations as kernels

        if stages.line is None:
            return self._seconds(stages, 0.0, float(stages.release_s.max()))
        work, _ = machine_of(stages.line)
        return self._seconds(stages, *kernels.machine_bound(stages.line, work))

    def raise_by_prices(self, known: Known, deadline: float) -> bool:
        """Raise the least bound, until nothing does or the deadline; whether that stopped it.

        It ends where the least bound reaches the known objective, too.
        """
        for node in self._seen:
            self._push(node)
        self._seen = []
        while self._queue and self._queue[0][0] < known.objective_s:
            if time.perf_counter() >= deadline:
                return True
            _, _, node = heapq.heappop(self._queue)
            if not node.box.is_single:
                self._push_halves(node)
                continue
            is_raised = self._raise(node, known, deadline)
            self._push(node)
            if not is_raised:
                break
        return False

    def _push(self, node: _Node) -> None:
        heapq.heappush(self._queue, (node.bound_s, next(self._number), node))

    def _push_halves(self, node: _Node) -> None:
        for half in node.box.branch():
            self._push_box(half, node.bound_s)

    def _push_box(self, box: PartitionBox, at_least_s: float) -> None:
        stages = self.lines.of(box)
        if stages is not None:
            self.n_boxes += 1
            self._push(_Node(box, max(at_least_s, self.machine_bound_s(stages))))

    def _seconds(self, stages: Stages, late_s: float, last_s: float) -> float:
        """Bound on the objective, from the sum of completion - release and the last one."""
        bound_s = last_s
        if not self._makespan:
            bound_s = late_s / self.instance.n_requests
            bound_s += float((stages.release_s - self.instance.arrival_s).mean())
        return max(0.0, bound_s - rounding_s(self.instance, bound_s))

    def price_round_s(self, stages: Stages, known: Known) -> float:
        """Seconds, about, of the first steps of a single partition's prices; inf: none."""
        way = self._way(stages, known, 0, math.inf)
        return math.inf if way is None else (STEPS + TRIAL_STEPS) * way.step_s

    def _raise(self, node: _Node, known: Known, deadline: float) -> bool:
        """Raise a partition's bound by finer prices, or more steps; False: none are left."""
        if node.n_in_vain == len(LOWER):
            return False
        stages = self.lines.of(node.box)
        assert stages is not None  # as it was when it was bounded
        way = self._way(stages, known, node.level + 1, deadline, node.wide_s)
        is_finer = way is not None
        way = way or self._way(stages, known, node.level, deadline, node.wide_s)
        if way is None:
            return False
        if node.price is None:
            late, price = way.up_from((way.no_prices(), way.machine_prices()), FIRST_STEP)
        else:
            begun = node.price
            if is_finer:
                begun = np.repeat(begun, LEVELS[node.level + 1] // LEVELS[node.level], axis=1)
            start = way.no_prices()
            begun = begun[:, : start.shape[1]]
            part = LOWER[node.n_in_vain]
            start[:, : begun.shape[1]] = begun * way.ticks.step * part
            length = FINER_STEP if part > 0 else FIRST_STEP
            late, price = way.up_from((start,), length, MORE_STEPS if node.n_in_vain else STEPS)
        was_s = node.bound_s
        node.bound_s = max(was_s, self._seconds(stages, late, 0.0))
        if is_finer or node.bound_s > was_s + LITTLE * (known.objective_s - was_s):
            node.level += is_finer
            node.price, node.n_in_vain = price / way.ticks.step, 0
            node.wide_s = way.ticks.width * way.ticks.step
        else:
            node.n_in_vain += 1
        return True

    def _way(
        self,
        stages: Stages,
        known: Known,
        level: int,
        deadline: float,
        wide_s: Array | None = None,
    ) -> "_Way | None":
        """Lay ticks of a level; None if there are none, or too many.

        Windows are as wide as `wide_s` at least, where that is known from a coarser level.
        """
        line = stages.line
        if self._makespan or line is None or not 0 <= level < len(LEVELS):
            return None
        mean_s = float(known.latency_s.mean())
        step_s = mean_s / LEVELS[level]
        if step_s <= 0:
            return None
        extra_s = stages.release_s - self.instance.arrival_s  # before the first stage
        delay_s = np.maximum(known.latency_s - extra_s - min_left_s(line)[:, 0], 0.0)
        widest = max(FEWEST_TICKS, math.ceil(float(delay_s.max()) * BEYOND / step_s))
        first_s = delay_s + NARROW * mean_s
        narrow = np.clip(_up(first_s / step_s), FEWEST_TICKS, widest)
        lasts_s = float(np.ptp(line.release) + min_left_s(line).max() + line.service.max())
        if line.service.shape[1] * (lasts_s / step_s + widest + 4) > MAX_PRICES:
            return None
        ticks, n_ticks = ticks_of(line, step_s, np.full(len(narrow), widest))
        width = narrow if wide_s is None else np.clip(_up(wide_s / step_s), narrow, widest)
        upper = known.objective_s * self.instance.n_requests - float(extra_s.sum())
        return _Way(line, ticks._replace(width=width), n_ticks, narrow, widest, upper, deadline)


@dataclass(slots=True)
class _Way:
    """The way up to better prices of a line, with windows as wide as they must be."""

    line: Line
    ticks: "Ticks"
    n_ticks: int
    narrow: IntArray  # no window is narrower
    widest: int  # nor wider
    upper: float  # sum of completion - release that is known to be possible, or more
    deadline: float

    @property
    def step_s(self) -> float:
        """Seconds, about, that a step takes."""
        return CELL_S * self.line.service.shape[1] * float(self.ticks.width.sum())

    def no_prices(self) -> Array:
        """Prices of 0, shape (n_groups, n_ticks)."""
        return np.zeros((self.line.service.shape[1], self.n_ticks))

    def up_from(
        self, starts: Sequence[Array], length: float, n_steps: int = STEPS
    ) -> tuple[float, Array]:
        """Go up from each of some prices, from the best of them all the steps.

        Returns the bound on the sum of completion - release, and its prices.
        """
        from hypsolve.kernels import relaxations as kernels

        climbs = [kernels.new_climb(self.line, price, length) for price in starts]
        late = [self._climb(climb, TRIAL_STEPS) for climb in climbs]
        best = climbs[int(np.argmax(late))]
        return self._climb(best, n_steps - TRIAL_STEPS), best.price

    def _climb(self, climb: "Climb", n_steps: int) -> float:
        """Take steps, between which windows are laid anew; the best bound so far.

        A window wider than all that its request pays, delay and prices, would change nothing.
        """
        from hypsolve.kernels import relaxations as kernels

        alone_s = min_left_s(self.line)[:, 0]
        while True:
            at_once = min(n_steps, STEPS_AT_ONCE, max(1, int(CALL_S / self.step_s)))
            late, is_done = kernels.raise_bound(
                self.line, self.ticks, climb, self.upper, at_once, LAST_STEP
            )
            n_steps -= at_once
            width = _up(WIDER * (climb.paid - alone_s) / self.ticks.step)
            self.ticks = self.ticks._replace(width=np.clip(width, self.narrow, self.widest))
            if is_done or n_steps <= 0 or time.perf_counter() >= self.deadline:
                return float(late)

    def machine_prices(self) -> Array:
        """What the nodes of one stage are worth to one machine: the best of the stages."""
        from hypsolve.kernels import relaxations as kernels

        work, share = machine_of(self.line)
        best, most = self.no_prices(), -math.inf
        for k in range(work.shape[1]):
            price = self.no_prices()
            kernels.machine_prices(self.line, self.ticks, work, share, k, price)
            late = self._climb(kernels.new_climb(self.line, price, FIRST_STEP), 1)
            if late > most:
                best, most = price, late
        return best


def machine_of(line: Line) -> tuple[Array, Array]:
    """Work by request and stage on one machine per stage; each group's share of its speed."""
    from hypsolve.kernels import relaxations as kernels

    work, share = np.empty(line.lag.shape), np.empty(line.service.shape[1])
    kernels.machine_work(line, work, share)
    return work, share


def _up(ticks: Array) -> IntArray:
    return np.asarray(np.ceil(ticks), np.int64)


def fastest_s(line: Line) -> Array:
    """Service on the quickest node of each stage, shape (n_requests, n_stages)."""
    return np.minimum.reduceat(line.service, line.first[:-1], axis=1)


def min_left_s(line: Line) -> Array:
    """From the start of a stage to the completion without delay, (n_requests, n_stages)."""
    whole_s = fastest_s(line) + line.lag
    return np.ascontiguousarray(whole_s[:, ::-1].cumsum(axis=1)[:, ::-1])


def ticks_of(line: Line, step_s: float, width: IntArray) -> tuple["Ticks", int]:
    """Times in ticks, and how many ticks prices need so that no window ends behind them."""
    from hypsolve.kernels.relaxations import ROUND_DOWN, Ticks

    def down(times_s: Array) -> IntArray:
        return np.ascontiguousarray(np.floor(times_s / step_s * ROUND_DOWN), np.int64)

    ahead_s = (fastest_s(line) + line.lag).cumsum(axis=1)
    head_s = line.release[:, None] - line.release.min() + np.zeros(line.lag.shape)
    head_s[:, 1:] += ahead_s[:, :-1]
    stage = np.repeat(np.arange(len(line.first) - 1), np.diff(line.first))
    whole = np.floor(line.service / step_s).astype(np.int64)
    ticks = Ticks(
        step=step_s,
        width=width,
        begin=down(head_s),
        whole=whole,
        part=line.service / step_s - whole,
        ahead=down(line.service + line.lag[:, stage]),
        lag=down(line.lag),
    )
    return ticks, int((ticks.begin.max(axis=1) + whole.max(axis=1) + width).max()) + 3
