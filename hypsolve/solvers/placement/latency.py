"""`LatencySearch`: the placement of least mean latency at a given rate, with a bound.

The mean latency T(x) of a pipeline grows with its load x. X(t), the largest load of a pattern
at a mean latency of at most t over all cuts, is the answer to a problem of goodput. A pipeline
whose latency is above t[k] and at most t[k + 1] therefore carries at most X(t[k + 1]), and its
requests wait for more than t[k] each. The integer program

    minimise  sum of t[k] z  over loads z <= X(t[k + 1]) y, copies y, sum of z >= rate

bounds the mean latency of every placement from below, and its copies at its loads are a
placement, whose latencies are at most t[k + 1]. The intervals that it uses are halved until
both are close.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.placement import Pipeline, Placement, PlacementObjective, PlacementProblem
from hypsolve.problem.placement_evaluation import check_placement, evaluate_placement
from hypsolve.problem.placement_result import PlacementOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement import rules
from hypsolve.solvers.placement.assignment import assign, stages
from hypsolve.solvers.placement.master import (
    Column,
    Link,
    Master,
    Program,
    Solver,
    solve_relaxation,
)
from hypsolve.solvers.placement.pattern_pool import PatternPool
from hypsolve.solvers.placement.pattern_values import MARGIN, PatternValues
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace
from hypsolve.solvers.placement.rate_limits import RateLimits

MAX_PATTERNS = 4_000
"""Patterns that are enumerated at most, under this objective."""
STEP = 1.15
"""Ratio of the latencies of the coarsest grid."""
PARTS = 2**18
"""Parts of a step of the finest grid, on a scale of logarithms."""
FIRST_S, LAST_S = 1e-6, 1e9
"""Smallest and largest latency at which patterns are looked at."""
START_SHARE = 1.0
"""Share of the rate, carried by patterns that may exclude each other, up to which all are."""
FAR = 40 * PARTS
"""Exponent from which patterns that have carried nothing so far are asked for their most."""
MAX_EXPONENT = 400 * PARTS
"""Latencies beyond are one interval."""
GAP = 1e-3
"""Share of the latency below which the search ends."""
OPTIMAL_GAP = 5e-7
CLOSE = 1e-8
"""Relative slack of bounds, for the rounding of linear programs."""
SLACK = 1e-9
COARSE, FINER = 0.1, 0.3
"""Width of the intervals of the relaxation at the first integer program, and its decrease."""
NEAR = 24
"""Intervals that are halved at a time beside those of the relaxation, by reduced cost."""


@dataclass
class Curve:
    """Known values of X(t) of a pattern, at some latencies.

    Attributes
    ----------
    exponents : list of int
        Sorted; the latencies by their place on the grid.
    points : dict of int to (float, float, tuple of int)
        At each of them: a load that is surely carried, one that is not passed, and cuts.
    most : float
        No load is larger.
    is_known : bool
        Whether `most` is the largest load itself.
    """

    most: float
    is_known: bool = False
    exponents: list[int] = field(default_factory=list)
    points: dict[int, tuple[float, float, tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """Latencies from one point of the grid to the next known one, for a pattern.

    Attributes
    ----------
    pattern : int
    low : int
        Exponent; no pipeline of the interval has a smaller latency.
    high : int or None
        Exponent; None: without limit.
    """

    pattern: int
    low: int
    high: int | None


class LatencyMaster(Master):
    """The integer program over intervals: copies of patterns, and their loads at a price."""

    def __init__(
        self,
        space: PatternSpace,
        sizes: set[tuple[int, int]],
        links: dict[Link, float],
        latency_s: Sequence[float],
    ) -> None:
        super().__init__(space, sizes, links, is_cost=True)
        self.latency_s = latency_s
        self.load_of: list[int] = []

    def program(self, columns: Sequence[Column]) -> Any:
        """Return the program, with latencies as costs and machines for nothing."""
        program, by_share, other, machines = super().program(columns)
        for v in machines:
            program.cost[v] = 0.0
        return program, by_share, other, machines

    def _loads(
        self, program: Program, columns: Sequence[Column], other: dict[Any, int]
    ) -> None:
        rate = self.problem.requests_per_s
        assert rate is not None
        on_link: dict[Link, dict[int, float]] = {link: {} for link in self.links}
        self.load_of = []
        for r, column in enumerate(columns):  # loads count in shares of the rate
            load = program.variable(-self.latency_s[r], 1.0, False)
            self.load_of.append(load)
            program.row({load: 1.0, r: -min(column.rate / rate, 1.0)}, 0.0)
            for link, size in column.link_bytes.items():
                if link in self.links:
                    on_link[link][load] = size * rate / self.links[link]
        for link, entries in on_link.items():
            if entries:
                other[link] = program.row(entries, 1.0)
        other["rate"] = program.row(dict.fromkeys(self.load_of, -1.0), -1.0)


class LatencySearch:
    """The search for the placement of least mean latency.

    Parameters
    ----------
    problem : PlacementProblem
    deadline : Deadline
    seed : int
    solve : callable
        Of integer programs, as `master.by_highs`.
    max_patterns : int
    gap : float
        The search ends at this share of the latency.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        deadline: Deadline,
        seed: int,
        solve: Solver,
        max_patterns: int = MAX_PATTERNS,
        gap: float = GAP,
    ) -> None:
        self.problem, self.deadline, self.seed, self.solve = problem, deadline, seed, solve
        assert problem.requests_per_s is not None
        self.rate: float = problem.requests_per_s
        self.gap = gap
        self.space = PatternSpace(problem)
        self.pool = PatternPool(self.space, PatternValues(self.space))
        n_stages = self.pool.enumerate(max_patterns, deadline.part(0.1))
        self.is_whole = n_stages == problem.max_stages
        self.patterns: list[Pattern] = self.pool.patterns
        self.curves = [Curve(math.inf) for _ in self.patterns]
        self.first_s = 0.0  # the latency of exponent 0
        self.bound_s = 0.0
        self.best: Placement | None = None
        self.best_s = math.inf
        self.is_none = False
        self.statistics: dict[str, Any] = {
            "enumerated": len(self.patterns), "relaxations": 0, "programs": 0, "solved": 0,
        }  # fmt: skip

    # -- loads at a latency -------------------------------------------------------------------

    def _values(self, latency_s: float) -> PatternValues:
        targets = {"latency_slo_s": latency_s}
        given = self.problem.latency_slo_s
        if given is not None:
            targets["latency_slo_s"] = min(latency_s, given)
        problem = self.problem.replace(objective=PlacementObjective.GOODPUT, **targets)
        return PatternValues(self.space, problem=problem)

    def _seconds(self, exponent: int) -> float:
        return self.first_s * math.exp(exponent / PARTS * math.log(STEP))

    def _rates(
        self, latency_s: float, of: Sequence[int]
    ) -> list[tuple[float, float, tuple[int, ...]]]:
        values, patterns = self._values(latency_s), [self.patterns[p] for p in of]
        safe, cuts = values.rates(patterns)
        best = safe if values.is_exact else values.rates(patterns, is_best=True)[0]
        self.statistics["solved"] += len(of)
        return [
            (float(a) * (1 - MARGIN), float(b) * (1 + MARGIN), c)
            for a, b, c in zip(safe, best, cuts, strict=True)
        ]

    def _look(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Find the loads of some patterns at some exponents."""
        by_exponent: dict[int, list[int]] = defaultdict(list)
        for p, exponent in wanted:
            if exponent not in self.curves[p].points:
                by_exponent[exponent].append(p)
        for exponent, of in sorted(by_exponent.items()):
            for p, point in zip(of, self._rates(self._seconds(exponent), of), strict=True):
                insort(self.curves[p].exponents, exponent)
                self.curves[p].points[exponent] = point

    def _start(self) -> bool:
        """Find for each pattern a latency that it does not undercut; False: no time for that.

        Latencies grow until the patterns that carry something carry the rate together.
        """
        limits = RateLimits(
            self.pool.values,
            {len(pattern.units) for pattern in self.patterns},
            sorted({self.pool.values.round_trip_s(pattern) for pattern in self.patterns}),
        )
        most = limits.of(self.patterns, self.deadline.part(0.3))
        for curve, each in zip(self.curves, most.tolist(), strict=True):
            curve.most = each
        alive = [p for p, each in enumerate(most) if each > 0]
        if not alive:
            self.is_none = self.is_whole
            return False
        low_s = FIRST_S
        while not any(point[1] > 0 for point in self._rates(low_s * 4, alive)):
            low_s *= 4
            if self.deadline.has_passed():
                return False
            if low_s > LAST_S:
                self._solve_limits(alive)
                is_any = any(self.curves[p].most > 0 for p in alive)
                self.is_none = self.is_whole and not is_any
                return False
        self.first_s = low_s
        exponent, carried = PARTS, 0.0
        while carried < START_SHARE * self.rate and exponent < MAX_EXPONENT:
            self._look((p, exponent) for p in alive)
            found = [self.curves[p].points[exponent][1] for p in alive]
            carried += sum(rate * self._copies(p) for p, rate in zip(alive, found, strict=True))
            alive = [p for p, rate in zip(alive, found, strict=True) if rate == 0]
            exponent += PARTS
            if exponent == FAR:
                self._solve_limits(alive)
                alive = [p for p in alive if self.curves[p].most > 0]
            if self.deadline.has_passed() or not alive:
                break
        return not self.deadline.has_passed()

    def _copies(self, p: int) -> int:
        """Return an upper bound on the copies of a pattern."""
        sizes = Counter(self.patterns[p].sizes)
        return min(
            len(self.space.classes[c].machines) * (self.space.classes[c].gpus // gpus) // n
            for (c, gpus), n in sizes.items()
        )

    def _solve_limits(self, of: Sequence[int]) -> None:
        """Find the loads of patterns at any latency that the targets allow."""
        patterns = [self.patterns[p] for p in of]
        values = self.pool.values
        rates = values.rates(patterns, is_best=not values.is_exact)[0]
        for p, rate in zip(of, rates.tolist(), strict=True):
            self.curves[p].most, self.curves[p].is_known = rate * (1 + MARGIN), True

    # -- the search ---------------------------------------------------------------------------

    def run(self) -> PlacementOutcome:
        """Return the best placement that is found in time, and the bound."""
        self._try_rules()
        if self.patterns and self._start():
            self._refine()
        elif not self.patterns:
            self.is_none = self.is_whole
        if self.is_none:
            return PlacementOutcome(
                Status.INFEASIBLE,
                message=f"no placement carries {self.rate:g} requests/s",
                statistics=self.statistics,
            )
        bound = min(self.bound_s, self.best_s) if self.is_whole else None
        if self.best is None:
            return PlacementOutcome(
                Status.UNKNOWN,
                fluid_bound=bound or None,
                message="the time limit has passed",
                statistics=self.statistics,
            )
        is_optimal = bound is not None and self.best_s - bound <= OPTIMAL_GAP * self.best_s
        return PlacementOutcome(
            Status.OPTIMAL if is_optimal else Status.FEASIBLE,
            self.best,
            fluid_bound=bound,
            statistics=self.statistics,
        )

    def _try_rules(self) -> None:
        """Look at the placements of quick rules, slowed down to the rate."""
        for rule in rules.QUICK_RULES:
            found = rule(self.problem, time_limit_s=1.0, seed=self.seed).placement
            if found is not None and found.requests_per_s >= self.rate:
                share = self.rate / found.requests_per_s
                self._keep(
                    Placement(
                        tuple(
                            Pipeline(p.stages, p.requests_per_s * share)
                            for p in found.pipelines
                        )
                    )
                )
            if self.deadline.has_passed():
                return

    def _keep(self, placement: Placement) -> None:
        """Keep a placement if it is legal and the best so far."""
        if check_placement(self.problem, placement):
            return
        latency_s = evaluate_placement(self.problem, placement).mean_latency_s
        if latency_s < self.best_s:
            self.best, self.best_s = placement, latency_s

    @property
    def _is_close(self) -> bool:
        return self.best is not None and self.best_s - self.bound_s <= self.gap * self.best_s

    def _refine(self) -> None:
        """Halve the intervals that the relaxation and then the integer program use."""
        coarse = COARSE
        while not self.deadline.has_passed() and not self._is_close:
            intervals = self._intervals()
            columns = [self._column(each) for each in intervals]
            master = self._master(intervals)
            program, by_share, other, _ = master.program(columns)
            value, x, duals = solve_relaxation(program)
            self.statistics["relaxations"] += 1
            if value is None:
                self.is_none = self.is_whole
                return
            relaxed_s = -value
            self._bound(relaxed_s * (1 - CLOSE))
            profit = self._profit(columns, master.latency_s, duals, by_share, other)
            used = [r for r in range(len(columns)) if x[master.load_of[r]] > 1e-9]
            wide = [r for r in used if self._width(intervals[r]) > coarse]
            if wide:
                within = min(self.best_s - relaxed_s, coarse * relaxed_s)
                near = np.argsort(-profit, kind="stable").tolist()
                more = [
                    r
                    for r in near[: 10 * NEAR]
                    if profit[r] >= -within and self._width(intervals[r]) > coarse
                ][:NEAR]
                self._halve(intervals[r] for r in {*wide, *more})
                continue
            chosen = [r for r in range(len(columns)) if relaxed_s - profit[r] <= self.best_s]
            coarse = max(coarse * FINER, self.gap / 3)
            if not self._branch([intervals[r] for r in chosen]):
                return

    def _branch(self, intervals: list[Interval]) -> bool:
        """Solve the integer program and halve what it uses; return whether to go on."""
        columns = [self._column(each) for each in intervals]
        master = self._master(intervals)
        program, _, _, _ = master.program(columns)
        counts, _, bound, is_complete = self.solve(
            program, len(columns), self.deadline.part(0.5), self.seed
        )
        self.statistics["programs"] += 1
        if counts is None and is_complete:  # none is better than the best one that is known
            self._bound(self.best_s)
            self.is_none = self.best is None and self.is_whole
            return False
        self._bound(min(-bound * (1 - CLOSE), self.best_s))
        if counts is None:
            return False
        counts = self._carrying(counts, program, master)
        wide = [intervals[r] for r in counts if self._width(intervals[r]) > 1.5 / PARTS]
        if all(intervals[r].high is not None for r in counts):
            self._place(intervals, columns, counts)
        if not wide:
            return False
        self._halve(wide)
        return True

    @staticmethod
    def _carrying(
        counts: dict[int, int], program: Program, master: LatencyMaster
    ) -> dict[int, int]:
        """Return the copies that carry a load; others cost nothing, so there may be some."""
        for r in range(len(master.load_of)):
            program.upper[r] = float(counts.get(r, 0))
        value, x, _ = solve_relaxation(program)
        if value is None:  # a solution that is only valid up to rounding
            return counts
        return {r: n for r, n in counts.items() if x[master.load_of[r]] > 1e-9}

    def _bound(self, bound_s: float) -> None:
        if self.bound_s < bound_s < math.inf:
            self.bound_s = bound_s

    def _intervals(self) -> list[Interval]:
        """Return the intervals of all patterns that carry more than the ones before."""
        found = []
        for p, curve in enumerate(self.curves):
            low, carried = 0, 0.0
            for exponent in curve.exponents:
                best = curve.points[exponent][1]
                if best > carried:
                    found.append(Interval(p, low, exponent))
                    carried = best
                low = exponent
            if carried < curve.most * (1 - 3 * MARGIN):
                found.append(Interval(p, low, None))
        return found

    def _column(self, interval: Interval, *, is_safe: bool = False) -> Column:
        curve = self.curves[interval.pattern]
        one = self.pool.columns([interval.pattern], is_safe=is_safe)[0]
        rate = curve.most
        if interval.high is not None:
            safe, best, _ = curve.points[interval.high]
            rate = safe if is_safe else best
        return Column(one.pattern, rate, one.link_bytes)

    def _master(self, intervals: Sequence[Interval]) -> LatencyMaster:
        return LatencyMaster(
            self.space,
            set(self.pool.shares),
            self.pool.links,
            [self._seconds(each.low) for each in intervals],
        )

    def _width(self, interval: Interval) -> float:
        """Return the share by which the latencies of an interval differ."""
        if interval.high is None:
            return math.inf
        return (interval.high - interval.low) / PARTS * math.log(STEP)

    def _halve(self, intervals: Iterable[Interval]) -> None:
        wanted, unknown = set(), []
        for each in intervals:
            if each.high is not None:
                if each.high - each.low > 1:
                    wanted.add((each.pattern, (each.low + each.high) // 2))
                continue
            curve = self.curves[each.pattern]
            carries = any(point[1] > 0 for point in curve.points.values())
            if not curve.is_known and (carries or each.low >= FAR):
                unknown.append(each.pattern)
                continue
            at = each.low + PARTS * max(1, each.low // (16 * PARTS))
            if at > MAX_EXPONENT:
                curve.most = 0.0
            else:
                wanted.add((each.pattern, at))
        if unknown:
            self._solve_limits(unknown)
        self._look(wanted)

    def _profit(
        self,
        columns: Sequence[Column],
        latency_s: Sequence[float],
        duals: Array,
        by_share: dict[tuple[int, int], list[tuple[int, float]]],
        other: dict[Any, int],
    ) -> Array:
        """Return by how much a copy of each column may improve on the relaxation, at most 0."""
        price = {
            share: sum(a * float(duals[row]) for row, a in rows)
            for share, rows in by_share.items()
        }
        worth = float(duals[other["rate"]])
        found = np.zeros(len(columns))
        for r, column in enumerate(columns):
            each = worth - latency_s[r]
            for link, size in column.link_bytes.items():
                if link in other:
                    each -= float(duals[other[link]]) * size * self.rate / self.pool.links[link]
            cost = sum(n * price[share] for share, n in column.sizes.items())
            found[r] = min(1.0, column.rate / self.rate) * max(0.0, each) - cost
        return np.minimum(found, 0.0)

    # -- placements ---------------------------------------------------------------------------

    def _place(
        self, intervals: Sequence[Interval], columns: Sequence[Column], counts: dict[int, int]
    ) -> None:
        """Keep the pipelines of a solution, at the loads of least latency on the grid."""
        used = sorted(counts)
        mine = [intervals[r] for r in used]
        safe = [self._column(each, is_safe=True) for each in mine]
        master = self._master(mine)
        program, _, _, _ = master.program(safe)
        for at, r in enumerate(used):
            program.upper[at] = float(counts[r])
        value, x, _ = solve_relaxation(program)
        if value is None:
            return
        share = [float(x[v]) for v in master.load_of]
        total = math.fsum(share)
        patterns = [self.patterns[each.pattern] for each in mine]
        pipelines = []
        for at, groups in assign(
            self.space, patterns, {at: counts[r] for at, r in enumerate(used)}
        ):
            high = mine[at].high
            assert high is not None
            load = share[at] / total * self.rate / counts[used[at]]
            if load > 0:
                cuts = self.curves[mine[at].pattern].points[high][2]
                pipelines.append(Pipeline(stages(groups, cuts), load))
        self._keep(Placement(tuple(pipelines)))
