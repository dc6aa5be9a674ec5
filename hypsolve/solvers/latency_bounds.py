"""Bounds on the mean latency (or makespan) of thousands of requests over all partitions."""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.line import Line
from hypsolve.problem import Array, Instance, IntArray, Objective
from hypsolve.solvers.joint_boxes import Box
from hypsolve.solvers.joint_tables import rounding_s
from hypsolve.solvers.lines import Lines, Stages

if TYPE_CHECKING:
    from hypsolve.kernels.bounds import Ticks

LEVELS = (20, 60, 180, 540)  # ticks in the mean latency, one level after the other
STEPS = 100  # of the prices, on each level
FIRST_STEP, FINER_STEP, LAST_STEP = 0.3, 0.1, 0.002  # of the way to the best known objective
BEYOND = 1.2  # windows: how much longer than the longest delay known
FEWEST_TICKS = 8  # of a window
MOST_PRICES = 1e7  # groups x ticks from the first release on, or there is no finer level
MOST_CELLS = 3e7  # requests x groups x ticks of a window, or there is no finer level
CALL_S, CELL_S = 0.2, 3e-9  # about the longest time between two looks at the clock


@dataclass(slots=True)
class _Node:
    """A box of partitions and its bound."""

    stages: Stages
    bound_s: float
    level: int = 0
    price: Array | None = None  # (n_groups, n_ticks), per second


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a good schedule, to lay ticks by."""

    objective_s: float
    latency_s: Array  # (n_requests,)


class Bounds:
    """All partitions in boxes, the one with the least bound first.

    A box is bounded by one machine in place of each stage (see `hypsolve.kernels.bounds`), a
    single partition also by prices.

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
    def least_s(self) -> float:
        """No partition is better; inf if there is none, or none is left."""
        seen = (node.bound_s for node in self._seen)
        queued = self._queue[0][0] if self._queue else math.inf
        return min(queued, *seen, math.inf)

    def partitions(self, is_enough: Callable[[], bool]) -> Iterator[tuple[float, Stages]]:
        """Single partitions with their bounds, the least bound first, until it is enough."""
        while self._queue and not is_enough():
            bound_s, _, node = heapq.heappop(self._queue)
            if node.stages.box.is_one:
                self._seen.append(node)
                yield bound_s, node.stages
            else:
                self._push_halves(node)

    def machine_bound_s(self, stages: Stages) -> float:
        """Bound of each stage as one machine, and of each request alone, on the objective."""
        from hypsolve.kernels import bounds as kernels

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
            if not node.stages.box.is_one:
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
        for half in node.stages.box.halves():
            self._push_box(half, node.bound_s)

    def _push_box(self, box: Box, at_least_s: float) -> None:
        stages = self.lines.of(box)
        if stages is not None:
            self.n_boxes += 1
            self._push(_Node(stages, max(at_least_s, self.machine_bound_s(stages))))

    def _seconds(self, stages: Stages, late_s: float, last_s: float) -> float:
        """Bound on the objective, from the sum of completion - release and the last one."""
        bound_s = last_s
        if not self._makespan:
            bound_s = late_s / self.instance.n_requests
            bound_s += float((stages.release_s - self.instance.arrival_s).mean())
        return max(0.0, bound_s - rounding_s(self.instance, bound_s))

    def _raise(self, node: _Node, known: Known, deadline: float) -> bool:
        """Raise the bound of a single partition by finer prices; False if there are none."""
        line = node.stages.line
        if self._makespan or line is None or node.level == len(LEVELS):
            return False
        step_s = float(known.latency_s.mean()) / LEVELS[node.level]
        if step_s <= 0:
            return False
        extra_s = node.stages.release_s - self.instance.arrival_s  # before the first stage
        delay_s = float((known.latency_s - extra_s - least_left_s(line)[:, 0]).max())
        wanted = max(FEWEST_TICKS, math.ceil(delay_s * BEYOND / step_s))
        width = min(wanted, max(FEWEST_TICKS, int(MOST_CELLS / line.service.size)))
        if width < wanted and node.level > 0:
            return False
        lasts_s = float(np.ptp(line.release) + least_left_s(line).max() + line.service.max())
        if line.service.shape[1] * (lasts_s / step_s + width + 4) > MOST_PRICES:
            return False
        ticks, n_ticks = ticks_of(line, step_s, width)
        upper = known.objective_s * self.instance.n_requests - float(extra_s.sum())
        climb = _Climb(line, ticks, upper, deadline)
        if node.price is None:
            starts = [np.zeros((line.service.shape[1], n_ticks)), climb.machine_prices(n_ticks)]
            length = FIRST_STEP
        else:
            finer = np.repeat(node.price, LEVELS[node.level] // LEVELS[node.level - 1], axis=1)
            price = np.zeros((len(finer), n_ticks))
            price[:, : finer.shape[1]] = finer[:, :n_ticks] * step_s
            starts, length = [price], FINER_STEP
        late, best = max(
            ((climb.raised(p, length), p) for p in starts), key=lambda pair: pair[0]
        )
        node.bound_s = max(node.bound_s, self._seconds(node.stages, late, 0.0))
        node.level += 1
        node.price = best / step_s
        return True


@dataclass(frozen=True, slots=True)
class _Climb:
    """The way up to better prices of a line."""

    line: Line
    ticks: "Ticks"
    upper: float  # sum of completion - release that is known to be possible, or more
    deadline: float

    def raised(self, price: Array, length: float) -> float:
        """Make prices better, in place; the bound on the sum of completion - release."""
        from hypsolve.kernels import bounds as kernels

        at_once = max(2, int(CALL_S / (CELL_S * self.line.service.size * self.ticks.width)))
        left, best = STEPS, -math.inf
        while left > 0 and length >= LAST_STEP and best < self.upper:
            late, length = kernels.raise_bound(
                self.line, self.ticks, price, self.upper, self.upper,
                min(left, at_once), length, LAST_STEP,
            )  # fmt: skip
            best = max(best, late)
            left -= at_once
            if time.perf_counter() >= self.deadline:
                break
        return best

    def machine_prices(self, n_ticks: int) -> Array:
        """What the nodes of one stage are worth to one machine: the best of the stages."""
        from hypsolve.kernels import bounds as kernels

        work, share = machine_of(self.line)
        best, most = np.zeros((self.line.service.shape[1], n_ticks)), -math.inf
        for k in range(work.shape[1]):
            price = np.empty(best.shape)
            kernels.machine_prices(self.line, self.ticks, work, share, k, price)
            late, _ = kernels.raise_bound(
                self.line, self.ticks, price, self.upper, self.upper, 1, FIRST_STEP, LAST_STEP
            )
            if late > most:
                best, most = price, late
        return best


def machine_of(line: Line) -> tuple[Array, Array]:
    """Work by request and stage on one machine per stage; each group's share of its speed."""
    from hypsolve.kernels import bounds as kernels

    work, share = np.empty(line.lag.shape), np.empty(line.service.shape[1])
    kernels.machine_work(line, work, share)
    return work, share


def fastest_s(line: Line) -> Array:
    """Service on the quickest node of each stage, shape (n_requests, n_stages)."""
    return np.minimum.reduceat(line.service, line.first[:-1], axis=1)


def least_left_s(line: Line) -> Array:
    """From the start of a stage to the completion without delay, (n_requests, n_stages)."""
    whole_s = fastest_s(line) + line.lag
    return np.ascontiguousarray(whole_s[:, ::-1].cumsum(axis=1)[:, ::-1])


def ticks_of(line: Line, step_s: float, width: int) -> tuple["Ticks", int]:
    """Times in ticks, and how many ticks prices need so that no window ends behind them."""
    from hypsolve.kernels.bounds import ROUND_DOWN, Ticks

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
    return ticks, int(ticks.begin.max() + whole.max()) + width + 3
