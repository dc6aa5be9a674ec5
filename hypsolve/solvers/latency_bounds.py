"""Bounds on the mean latency (or makespan) of thousands of requests over all partitions."""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.line import Line
from hypsolve.problem import Array, Instance, IntArray, Objective
from hypsolve.solvers.joint_boxes import Box
from hypsolve.solvers.joint_tables import rounding_s
from hypsolve.solvers.lines import Lines, Stages

if TYPE_CHECKING:
    from hypsolve.kernels.bounds import Climb, Ticks

LEVELS = (60, 180, 540)  # ticks in the mean latency, one level after the other
STEPS, TRIAL_STEPS = 100, 30  # of the prices, on each level; from each of two starts
FIRST_STEP, FINER_STEP, LAST_STEP = 0.3, 0.1, 0.002  # of the way to the best known objective
BEYOND = 1.2  # windows: how much longer than the longest delay known
FEWEST_TICKS = 8  # of a window
LOWER = (0.9, 0.7)  # the best prices are lowered to go on: where they are, steps lead nowhere
LITTLE = 0.01  # of the gap: by less, more steps are in vain
MOST_PRICES = 1e7  # groups x ticks from the first release on, or there is no finer level
MOST_CELLS = 3e7  # requests x groups x ticks of a window, or there is no finer level
CALL_S, CELL_S = 0.2, 3e-9  # about the longest time between two looks at the clock


@dataclass(slots=True)
class _Node:
    """A box of partitions and its bound; not its line, for many boxes wait at a time."""

    box: Box
    bound_s: float
    level: int = -1  # of its prices
    price: Array | None = None  # (n_groups, n_ticks), per second
    n_in_vain: int = 0  # times that steps on its level raised it little


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
            if node.box.is_one:
                self._seen.append(node)
                stages = self.lines.of(node.box)
                assert stages is not None  # as it was when it was bounded
                yield bound_s, stages
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
            if not node.box.is_one:
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
        for half in node.box.halves():
            self._push_box(half, node.bound_s)

    def _push_box(self, box: Box, at_least_s: float) -> None:
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
        laid = self._lay(stages, known, 0)
        if laid is None or stages.line is None:
            return math.inf
        return (STEPS + TRIAL_STEPS) * CELL_S * stages.line.service.size * laid[0].width

    def _raise(self, node: _Node, known: Known, deadline: float) -> bool:
        """Raise a partition's bound by finer prices, or more steps; False: none are left."""
        stages = self.lines.of(node.box)
        assert stages is not None  # as it was when it was bounded
        laid = self._lay(stages, known, node.level + 1)
        is_finer = laid is not None
        laid = laid or self._lay(stages, known, node.level)
        if laid is None or stages.line is None or node.n_in_vain == len(LOWER):
            return False
        ticks, n_ticks = laid
        extra_s = stages.release_s - self.instance.arrival_s  # before the first stage
        upper = known.objective_s * self.instance.n_requests - float(extra_s.sum())
        way = _Way(stages.line, ticks, upper, deadline)
        if node.price is None:
            zero = np.zeros((stages.line.service.shape[1], n_ticks))
            late, price = way.up_from((zero, way.machine_prices(n_ticks)), FIRST_STEP)
        else:
            begun = node.price
            if is_finer:
                begun = np.repeat(begun, LEVELS[node.level + 1] // LEVELS[node.level], axis=1)
            price = np.zeros((len(begun), n_ticks))
            price[:, : begun.shape[1]] = begun[:, :n_ticks]
            price *= ticks.step * LOWER[node.n_in_vain]
            late, price = way.up_from((price,), FINER_STEP)
        was_s = node.bound_s
        node.bound_s = max(was_s, self._seconds(stages, late, 0.0))
        if is_finer or node.bound_s > was_s + LITTLE * (known.objective_s - was_s):
            node.level += is_finer
            node.price, node.n_in_vain = price / ticks.step, 0
        else:
            node.n_in_vain += 1
        return True

    def _lay(self, stages: Stages, known: Known, level: int) -> "tuple[Ticks, int] | None":
        """Ticks of a level, and how many prices need; None if there are none or too many."""
        line = stages.line
        if self._makespan or line is None or not 0 <= level < len(LEVELS):
            return None
        step_s = float(known.latency_s.mean()) / LEVELS[level]
        if step_s <= 0:
            return None
        extra_s = stages.release_s - self.instance.arrival_s
        delay_s = float((known.latency_s - extra_s - least_left_s(line)[:, 0]).max())
        wanted = max(FEWEST_TICKS, math.ceil(delay_s * BEYOND / step_s))
        width = min(wanted, max(FEWEST_TICKS, int(MOST_CELLS / line.service.size)))
        if width < wanted and level > 0:
            return None
        lasts_s = float(np.ptp(line.release) + least_left_s(line).max() + line.service.max())
        if line.service.shape[1] * (lasts_s / step_s + width + 4) > MOST_PRICES:
            return None
        return ticks_of(line, step_s, width)


@dataclass(frozen=True, slots=True)
class _Way:
    """The way up to better prices of a line."""

    line: Line
    ticks: "Ticks"
    upper: float  # sum of completion - release that is known to be possible, or more
    deadline: float

    def up_from(self, starts: Sequence[Array], length: float) -> tuple[float, Array]:
        """Go up from each of some prices, from the best of them to the end.

        Returns the bound on the sum of completion - release, and its prices.
        """
        from hypsolve.kernels import bounds as kernels

        climbs = [kernels.new_climb(price, length) for price in starts]
        late = [self._up(climb, TRIAL_STEPS) for climb in climbs]
        best = int(np.argmax(late))
        return self._up(climbs[best], STEPS - TRIAL_STEPS), climbs[best].price

    def _up(self, climb: "Climb", n_steps: int) -> float:
        """Take steps, between which the clock is looked at; the best bound so far."""
        from hypsolve.kernels import bounds as kernels

        at_once = max(1, int(CALL_S / (CELL_S * self.line.service.size * self.ticks.width)))
        while True:
            late, is_done = kernels.raise_bound(
                self.line, self.ticks, climb, self.upper, min(n_steps, at_once), LAST_STEP
            )
            n_steps -= at_once
            if is_done or n_steps <= 0 or time.perf_counter() >= self.deadline:
                return float(late)

    def machine_prices(self, n_ticks: int) -> Array:
        """What the nodes of one stage are worth to one machine: the best of the stages."""
        from hypsolve.kernels import bounds as kernels

        work, share = machine_of(self.line)
        best, most = np.zeros((self.line.service.shape[1], n_ticks)), -math.inf
        for k in range(work.shape[1]):
            price = np.empty(best.shape)
            kernels.machine_prices(self.line, self.ticks, work, share, k, price)
            late = self._up(kernels.new_climb(price, FIRST_STEP), 1)
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
