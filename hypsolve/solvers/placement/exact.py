"""`placement_highs` and `placement_cpsat`: the best placement of pipelines, with a bound.

The methods enumerate patterns, see `PatternSpace`. The relaxation of the integer program over
the patterns whose rates are known gives prices of GPUs. A pattern whose upper bound on the rate
does not pay for its GPUs is never solved for its cuts. The integer program is then solved over
all patterns that an optimal solution may contain, by the gap between the relaxation and the
best solution (reduced cost fixing). Where patterns are generated, a price is bounded by whole
numbers of machines, too (Benders' cuts).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hypsolve.problem.placement import (
    Placement,
    PlacementObjective,
    PlacementProblem,
)
from hypsolve.problem.placement_result import PlacementOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement import latency, rules
from hypsolve.solvers.placement import master as masters
from hypsolve.solvers.placement.assignment import assign, greedy, stages
from hypsolve.solvers.placement.master import (
    Column,
    Copies,
    Duals,
    Master,
    Program,
    Solver,
    fills,
)
from hypsolve.solvers.placement.pattern_pool import PatternPool
from hypsolve.solvers.placement.pattern_pricing import PatternPricing, round_trips
from hypsolve.solvers.placement.pattern_values import MARGIN, PatternValues
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace
from hypsolve.solvers.placement.rate_limits import RateLimits
from hypsolve.solvers.placement.values import Split, best_split

MAX_PATTERNS = 60_000
"""Patterns that are enumerated at most."""
BATCH = 256
"""Patterns that are solved for their cuts before the relaxation is solved again."""
OPTIMAL_GAP = 5e-7
SLACK = 1e-9
FIRST_COLUMNS = 300
"""Patterns of the first integer program."""
SMOOTHING = 0.3
"""Weight of the prices of the best bound, when patterns are generated."""
PRICING_SHARE = 0.5
"""Share of the time after which patterns are no longer solved for the relaxation."""
COUNTING_SHARE = 0.4
"""Share of the time that is left after the relaxation, for whole numbers of machines."""
REFERENCE_WEIGHT = 0.1
"""Weight of the capacities of GPUs in the prices of covers, so that every GPU has a price."""
MAX_ROUNDS = 6
"""Rounds of generated patterns, in which some machines are shown not to carry a rate."""
FEW_MACHINES = 1e-3
"""Machines of each class that are added to some machines, so that all classes have a price."""
COVERED = 1e-7
"""Relative slack of covers, for the rounding of an integer program."""
CLOSE = 1e-8
"""Relative slack of bounds, for the rounding of linear programs."""


def placement_highs(
    problem: PlacementProblem,
    *,
    time_limit_s: float,
    seed: int,
    max_patterns: int = MAX_PATTERNS,
) -> PlacementOutcome:
    """Find the best placement by an integer program over patterns, in PuLP with HiGHS.

    Among placements of the same value, one of the fewest machines is returned, and of these one
    of the fewest stages.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s : float
    seed : int
        ``random_seed`` of HiGHS.
    max_patterns : int
        Patterns that are enumerated at most. If there are more, those of fewer stages are
        enumerated, and the bound covers the others by a relaxation. Under the objective
        ``latency``, at most `latency.MAX_PATTERNS` are, without a bound if there are more.

    Returns
    -------
    PlacementOutcome
        Its bound holds for all placements of pipelines of at most `max_stages` stages.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in "abcde"]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-2-13b"), requests=hs.Requests([0.0], [512], [128]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> result = hs.solve(problem, "placement_highs")
    >>> result.status, [len(each.stages) for each in result.placement.pipelines]
    (<Status.OPTIMAL: 'optimal'>, [5])
    """
    load_backend("placement_highs", "pulp", "pulp>=3.3,<4")
    return _run(problem, Deadline(time_limit_s), seed, masters.by_highs, max_patterns)


def placement_cpsat(
    problem: PlacementProblem,
    *,
    time_limit_s: float,
    seed: int,
    max_patterns: int = MAX_PATTERNS,
) -> PlacementOutcome:
    """Find the best placement by an integer program over patterns, by CP-SAT.

    The relaxations that choose the patterns are solved by HiGHS. See `placement_highs`.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s : float
    seed : int
        ``random_seed`` of CP-SAT.
    max_patterns : int
        Patterns that are enumerated at most.
    """
    load_backend("placement_cpsat", "ortools.sat.python.cp_model", "ortools>=9.15")
    return _run(problem, Deadline(time_limit_s), seed, masters.by_cpsat, max_patterns)


def _run(
    problem: PlacementProblem, deadline: Deadline, seed: int, solve: Solver, max_patterns: int
) -> PlacementOutcome:
    if problem.objective is PlacementObjective.LATENCY:
        most = min(max_patterns, latency.MAX_PATTERNS)
        return latency.LatencySearch(problem, deadline, seed, solve, most).run()
    return Search(problem, deadline, seed, solve, max_patterns).run()


@dataclasses.dataclass(frozen=True)
class Cover:
    """A constraint on numbers u of machines of each class: ``dearest u >= least``."""

    dearest: tuple[float, ...]
    least: float

    def excludes(self, machines: Sequence[int]) -> bool:
        """Return whether some machines do not satisfy it."""
        carried = math.fsum(w * n for w, n in zip(self.dearest, machines, strict=True))
        return carried < self.least * (1 - 2 * COVERED)


class Search:
    """The search for the best placement."""

    def __init__(
        self,
        problem: PlacementProblem,
        deadline: Deadline,
        seed: int,
        solve: Solver,
        max_patterns: int,
    ) -> None:
        self.problem, self.deadline, self.seed, self.solve = problem, deadline, seed, solve
        self.space = PatternSpace(problem)
        self.values = PatternValues(self.space)
        self.pool = PatternPool(self.space, self.values)
        self.is_cost = problem.objective is PlacementObjective.COST
        # up to which all patterns are enumerated
        self.n_stages = self.pool.enumerate(max_patterns, deadline.part(0.1))
        self.pricing: PatternPricing | None = None
        self.bound = math.inf  # on requests per second, or on the negative price
        self.bound_of_columns = math.inf  # of the last integer program
        self.is_none = False  # whether it is proved that no placement carries the rate
        self.working: set[int] = set()
        self.useful: list[int] = []  # patterns of the last integer program
        self.center: Duals | None = None  # dual values of the best bound
        self.covers: list[Cover] = []
        self.statistics: dict[str, Any] = {"enumerated": len(self.pool), "relaxations": 0}

    # -- the search ---------------------------------------------------------------------------

    def run(self) -> PlacementOutcome:
        """Return the best placement that is found in time, and the bound."""
        self._limit_rates()
        duals = self._price(self.deadline.part(PRICING_SHARE))
        if self.is_cost and self.pricing is not None and duals is not None:
            self._count_machines(self.deadline.part(COUNTING_SHARE))
        copies = None
        if duals is not None and (self.is_cost or duals.value > 0):
            copies = self._branch(duals)
        else:
            self.is_none = self.pricing is None and self._is_whole and not self._is_late
        self.statistics |= {"patterns": len(self.pool), "solved": self.pool.n_solved}
        if copies is not None and copies.counts:
            return self._outcome(copies)
        if self.is_none:
            return self._nothing()
        return self._by_rule()

    @property
    def _is_whole(self) -> bool:
        return self.n_stages == self.problem.max_stages

    @property
    def _is_late(self) -> bool:
        return self.deadline.has_passed()

    def _by_rule(self) -> PlacementOutcome:
        """Return the placement of a quick rule, where the search has found none in time."""
        found = None if self.is_cost else self._better_rule(None, 0.0)[0]
        is_bounded = (self._is_whole or self.pricing is not None) and self.bound < math.inf
        return PlacementOutcome(
            Status.UNKNOWN if found is None else Status.FEASIBLE,
            found,
            fluid_bound=self._public(self.bound) if is_bounded else None,
            message="the time limit has passed",
            statistics=self.statistics,
        )

    def _limit_rates(self) -> None:
        """Bound the rates of all patterns, and solve those that have no bound."""
        lengths = {len(pattern.units) for pattern in self.pool.patterns}
        trips = {self.values.round_trip_s(pattern) for pattern in self.pool.patterns}
        missing = range(self.n_stages + 1, self.problem.max_stages + 1)
        for n in missing:
            lengths.add(n)
            trips |= {total for total, _ in round_trips(self.space, n).values()}
        limits = RateLimits(self.values, lengths, sorted(trips))
        self.pool.limit = limits.of(self.pool.patterns, self.deadline.part(0.3))
        self.pool.solve(np.flatnonzero(np.isinf(self.pool.limit)))
        if missing and limits.is_known:
            self.pricing = PatternPricing(self.space, limits, self.n_stages, self.pool.sent[0])
            self.center = self.pricing.reference(self.is_cost)

    def _price(self, deadline: Deadline) -> Duals | None:
        """Solve patterns for their cuts until the relaxation contains no unsolved one.

        Patterns that are not solved count with their upper bounds, so that the relaxation is a
        bound at any time. None: it has no solution.
        """
        while True:
            duals = self._relaxed()
            if duals is None:
                return None
            profit = self.pool.profit(duals)
            profit[self.pool.is_solved] = -math.inf
            near = np.flatnonzero(profit >= -CLOSE * abs(duals.value))
            if len(near) and not deadline.has_passed():
                if self.pricing is None:
                    self._tighten(duals, 1.0)
                order = np.argsort(-profit, kind="stable")[: max(BATCH, len(near))]
                self.pool.solve(order[profit[order] > -math.inf], deadline)
                continue
            if self.pricing is None:
                return self._tighten(duals, 1.0)
            new = self._generate(duals)
            if not new or deadline.has_passed():
                return self.center
            self._solve_new(new, deadline)

    def _generate(self, duals: Duals) -> list[int]:
        """Add patterns that are not enumerated to the pool; return their indices.

        Prices are first smoothed towards those of the best bound so far [1]_.

        References
        ----------
        .. [1] P. Wentges, "Weighted Dantzig-Wolfe decomposition for linear mixed-integer
           programming", International Transactions in Operational Research 4 (1997).
        """
        assert self.pricing is not None and self.center is not None
        for share in (SMOOTHING, 0.0):
            mixed = duals.mixed(self.center, share, self.pool.shares)
            priced = self.pricing.price(mixed, self.deadline.part(0.6))
            tight = self._tighten(mixed, priced.factor)
            if tight.value < self.center.value:
                self.center = tight
            new = self.pool.add(priced.patterns)
            if new:
                return new
        return []

    def _relaxed(self) -> Duals | None:
        """Return the dual values of the relaxation over all patterns, by column generation."""
        if self.is_cost:
            rate = self.problem.requests_per_s
            assert rate is not None
            is_carried = bool(self.working) and self._generated(True, math.inf) is not None
            if not is_carried and not self._reaches(rate):
                return None
        return self._generated(self.is_cost, math.inf)

    def _reaches(self, rate: float) -> bool:
        """Return whether the relaxation carries a rate, and add patterns until it does."""
        while True:
            most = self._generated(False, rate * (1 + CLOSE))
            if most is not None and most.value >= rate:
                return True
            if most is None or self.pricing is None or self._is_late:
                return False
            mixed = most.mixed(self.pricing.reference(False), SMOOTHING, self.pool.shares)
            new = self.pool.add(self.pricing.price(mixed, self.deadline.part(0.5)).patterns)
            if not new:
                return False
            self._solve_new(new, self.deadline.part(0.5))

    def _generated(
        self, is_cost: bool, enough: float, machines: Sequence[float] | None = None
    ) -> Duals | None:
        """Add patterns to the relaxation until no other one pays for its GPUs."""
        if not self.working:
            order = np.argsort(-self.pool.rates / self.pool.gpus(), kind="stable")
            self.working = set(order[:BATCH].tolist())
        while True:
            columns = self.pool.columns(sorted(self.working))
            duals = self._master(is_cost, machines).relax(columns)
            self.statistics["relaxations"] += 1
            if duals is None or duals.value >= enough:
                return duals
            profit = self.pool.profit(duals)
            least = CLOSE * max(abs(duals.value), 1e-300)
            order = np.argsort(-profit, kind="stable")[:BATCH]
            # a generated pattern that is not solved in time has an infinite profit
            added = {int(p) for p in order if least < profit[p] < math.inf} - self.working
            if not added or self.deadline.has_passed():
                return duals
            self.working |= added

    def _solve_new(self, new: Sequence[int], deadline: Deadline) -> None:
        """Solve generated patterns for their cuts, and add those done to the relaxation."""
        self.pool.solve(new, deadline)
        self.working |= {p for p in new if self.pool.is_solved[p]}

    def _master(self, is_cost: bool, machines: Sequence[float] | None = None) -> Master:
        return Master(
            self.space, set(self.pool.shares), self.pool.links, is_cost=is_cost,
            machines=machines,
        )  # fmt: skip

    def _tighten(self, duals: Duals, factor: float) -> Duals:
        """Lower the bound by dual values that are scaled until no pattern pays for its GPUs.

        Parameters
        ----------
        duals : Duals
        factor : float
            Factor that makes patterns outside of the pool too dear.
        """
        scaled = self._scaled(duals, factor, self.is_cost)
        if scaled.value == math.inf:
            return scaled
        if scaled.value < self.bound:
            self.bound = scaled.value + CLOSE * abs(scaled.value)
        self.statistics["relaxation"] = self._public(scaled.value)
        if self.is_cost:
            self.covers.append(self._cover(scaled))
        return scaled

    def _scaled(self, duals: Duals, factor: float, is_cost: bool) -> Duals:
        """Return dual values that are scaled until no pattern pays for its GPUs."""
        profit, cost = self.pool.profit(duals), self.pool.cost(duals)
        above = profit > 0
        if (cost[above] <= 0).any():
            factor = math.inf
        elif above.any():
            factor = max(factor, float((profit[above] / cost[above]).max()) + 1)
        if factor == math.inf:
            return Duals(math.inf, duals.share, duals.link, duals.rate)
        return duals.scaled(factor, is_cost, self.problem.requests_per_s)

    # -- whole machines -----------------------------------------------------------------------

    def _cover(self, duals: Duals) -> Cover:
        """Return what numbers of machines must satisfy, by dual values that no pattern beats.

        A pattern of rate X earns no more than its shares cost, so all shares in use cost at
        least as much as the given rate earns, after the price of links. Shares on one machine
        cost at most as much as its dearest set of shares.
        """
        rate = self.problem.requests_per_s
        assert rate is not None
        dearest = []
        for c, each in enumerate(self.space.classes):
            sizes = sorted((size for of, size in duals.share if of == c), reverse=True)
            some = fills(tuple(sizes), each.gpus)
            dearest.append(max(sum(duals.share[c, size] for size in fill) for fill in some))
        links = sum(price * self.pool.links[link] for link, price in duals.link.items())
        return Cover(tuple(dearest), duals.rate * rate - links)

    def _count_machines(self, deadline: Deadline) -> None:
        """Raise the bound on the price by whole numbers of machines (Benders' cuts [1]_).

        The cheapest machines that all covers allow are a bound. If a relaxation over these
        machines alone does not carry the rate, its dual values give the next cover.

        References
        ----------
        .. [1] J. F. Benders, "Partitioning procedures for solving mixed-variables programming
           problems", Numerische Mathematik 4 (1962).
        """
        rate = self.problem.requests_per_s
        assert rate is not None and self.pricing is not None
        reference = self.pricing.reference(False)
        while not deadline.has_passed():
            machines = self._cheapest_machines(deadline)
            if machines is None:
                return
            for _ in range(MAX_ROUNDS):
                most = self._generated(
                    False, rate * (1 + CLOSE), [n + FEW_MACHINES for n in machines]
                )
                if most is None or most.value >= rate or deadline.has_passed():
                    return
                mixed = most.mixed(reference, REFERENCE_WEIGHT, self.pool.shares)
                priced = self.pricing.price(mixed, deadline)
                scaled = self._scaled(mixed, priced.factor, False)
                cover = self._cover(scaled)
                if scaled.value < math.inf and cover.excludes(machines):
                    self.covers.append(cover)
                    break
                new = self.pool.add(priced.patterns)
                if not new:
                    return
                self._solve_new(new, deadline)
            else:
                return

    def _cheapest_machines(self, deadline: Deadline) -> list[int] | None:
        """Return the cheapest machines that all covers allow, and note their price as a bound.

        None without a proof.
        """
        program = Program()
        for each in self.space.classes:
            program.variable(-each.price_per_hour, len(each.machines), True)
        for cover in self.covers:
            if 0 < cover.least < math.inf and max(cover.dearest) < math.inf:
                weights = {c: -worth / cover.least for c, worth in enumerate(cover.dearest)}
                program.row(weights, COVERED - 1)
        counts, value, bound, is_complete = masters.by_highs(
            program, len(program.cost), deadline, self.seed
        )
        if counts is None or not is_complete or bound == -math.inf:
            return None
        self.bound = min(self.bound, max(bound, value) + CLOSE * abs(value))
        return [counts.get(c, 0) for c in range(len(self.space.classes))]

    def _branch(self, duals: Duals) -> Copies | None:
        """Solve the integer program until no other pattern may improve on it.

        A solution with a pattern of profit -q is at least q below the relaxation.
        """
        pool = self.pool
        relaxed, profit = duals.value + CLOSE * abs(duals.value), pool.profit(duals)
        used = np.flatnonzero(pool.is_solved & (pool.best > 0))
        used = used[np.argsort(-profit[used], kind="stable")[:FIRST_COLUMNS]]
        found: Copies | None = None
        while True:
            latest = self._integer(used.tolist())
            if latest is not None and (found is None or latest.value > found.value):
                found = latest
            value = -math.inf if found is None else found.value
            gap = relaxed - value + CLOSE * abs(relaxed)
            profit = pool.profit(duals)
            others = profit.copy()
            others[used] = -math.inf
            others[pool.is_solved & (pool.best == 0)] = -math.inf
            elsewhere = relaxed + float(others.max(initial=-math.inf))
            if self.pricing is not None:
                elsewhere = self.bound
            bound = max(self.bound_of_columns, value, elsewhere)
            self.bound = min(self.bound, bound + CLOSE * abs(bound))
            # the gap is infinite while nothing is found, but what is left out is not missed
            missed = np.flatnonzero((others >= -gap) & (others > -math.inf))
            if not len(missed):
                is_whole = self.pricing is None and self.n_stages == self.problem.max_stages
                nothing = found is None and self.bound_of_columns == -math.inf
                self.is_none = is_whole and nothing
                self.useful = used.tolist()
                return found
            if self.deadline.left_s() < 0.2 * self.deadline.limit_s:
                self.useful = used.tolist()
                return found
            unsolved = missed[~pool.is_solved[missed]]
            order = np.argsort(-others[unsolved], kind="stable")[: 2 * BATCH]
            pool.solve(unsolved[order], self.deadline.part(0.5))
            profit = pool.profit(duals)
            used = np.flatnonzero(pool.is_solved & (pool.best > 0) & (profit >= -gap))

    def _integer(self, used: list[int], *, is_safe: bool = False) -> Copies | None:
        """Solve the integer program over some patterns; keys are indices of patterns."""
        columns = self.pool.columns(used, is_safe=is_safe)
        program, _, _, _ = self._master(self.is_cost).program(columns)
        counts, value, bound, is_complete = self.solve(
            program, len(columns), self.deadline.part(0.5), self.seed
        )
        if not is_safe:
            self.bound_of_columns = bound
        if counts is None and not is_complete:
            counts = greedy(self.space, columns, self.problem.requests_per_s, self.is_cost)
            value = -sum(self._price_of(columns, counts or {}))
        if counts is None:
            return None
        if not self.is_cost:  # CP-SAT rounds its value up
            value = math.fsum(self._master(False).loads(columns, counts).values())
        return Copies({used[r]: n for r, n in counts.items()}, value, bound, is_complete)

    def _price_of(self, columns: list[Column], counts: dict[int, int]) -> list[float]:
        """Return an upper bound on the price of some copies, by class of machines."""
        number: Counter[int] = Counter()
        for r, n in counts.items():
            for c, _ in columns[r].pattern.sizes:
                number[c] += n
        return [
            min(number[c], len(each.machines)) * each.price_per_hour
            for c, each in enumerate(self.space.classes)
        ]

    def _tied(self, found: Copies) -> Copies:
        """Return copies of the same value on the fewest machines, in the fewest stages."""
        used = sorted({*self.useful, *found.counts})
        columns = self.pool.columns(used)
        program, _, _, machines = self._master(self.is_cost).program(columns)
        slack = 1e-9 * abs(found.value)
        program.row({v: -c for v, c in enumerate(program.cost) if c}, slack - found.value)
        program.cost = [0.0] * len(program.cost)
        for v in machines:
            program.cost[v] = -1.0 - self.problem.fleet.n_gpus
        for r, column in enumerate(columns):
            program.cost[r] = -float(len(column.pattern.units))
        counts, _, _, _ = self.solve(program, len(columns), self.deadline.part(0.5), self.seed)
        if counts is None:
            return found
        return Copies({used[r]: n for r, n in counts.items()}, found.value, found.bound, True)

    # -- the answer ---------------------------------------------------------------------------

    def _outcome(self, copies: Copies) -> PlacementOutcome:
        if copies.is_complete:
            copies = self._tied(copies)
        placement = self._placement(copies.counts)
        total = placement.requests_per_s
        rate = self.problem.requests_per_s
        value = total
        if self.is_cost:
            assert rate is not None
            if total < rate * (1 - SLACK):
                safe = self._integer(np.flatnonzero(self.pool.safe > 0).tolist(), is_safe=True)
                if safe is None:
                    return PlacementOutcome(
                        Status.UNKNOWN,
                        fluid_bound=self._public(self.bound),
                        message="no placement was found whose links are surely fast enough",
                        statistics=self.statistics,
                    )
                placement = self._placement(safe.counts)
            value = -sum(
                self.problem.fleet.machine(name).price_per_hour for name in placement.machines
            )
        elif self.bound - value > OPTIMAL_GAP * abs(self.bound):
            other, value = self._better_rule(placement, value)
            placement = other or placement
        bound = self.bound if self._is_whole or self.pricing is not None else math.inf
        if 0 < value - bound <= 1e-6 * abs(value):  # rounding
            bound = value
        is_optimal = bound < math.inf and bound - value <= OPTIMAL_GAP * abs(bound)
        return PlacementOutcome(
            Status.OPTIMAL if is_optimal else Status.FEASIBLE,
            placement,
            fluid_bound=None if bound == math.inf else self._public(bound),
            message=self._about_stages(placement),
            statistics=self.statistics,
        )

    def _better_rule(
        self, placement: Placement | None, value: float
    ) -> tuple[Placement | None, float]:
        """Return the best of a placement and those of quick rules, with its value."""
        deadline = self.deadline.extended(min(0.5, 0.1 * self.deadline.limit_s))
        for rule in rules.QUICK_RULES:
            other = rule(self.problem, time_limit_s=1.0, seed=self.seed).placement
            if other is not None and other.requests_per_s > value:
                placement, value = other, other.requests_per_s
            if deadline.has_passed():
                break
        return placement, value

    def _public(self, value: float) -> float:
        return max(0.0, -value) if self.is_cost else value

    def _about_stages(self, placement: Placement) -> str:
        longest = max(len(pipeline.stages) for pipeline in placement.pipelines)
        if longest < self.problem.max_stages or longest >= self.problem.fleet.n_gpus:
            return ""
        return (
            f"a pipeline has max_stages = {self.problem.max_stages} stages: more stages may"
            " be better"
        )

    def _placement(self, counts: dict[int, int]) -> Placement:
        """Return the pipelines over machines with names, at their loads."""
        used = sorted(counts)
        patterns = [self.pool.patterns[p] for p in used]
        columns = self.pool.columns(used, is_safe=True)
        found: list[tuple[Column, Split]] = []
        splits: dict[tuple[tuple[str, int], ...], Split | None] = {}
        for r, groups in assign(
            self.space, patterns, {r: counts[p] for r, p in enumerate(used)}
        ):
            column = columns[r]
            split = Split(stages(groups, self.pool.cuts[used[r]]), column.rate)
            if not self.values.is_exact or _is_nearer(patterns[r], groups):
                if groups not in splits:
                    splits[groups] = best_split(self.problem, groups)
                other = splits[groups]
                if other is not None and other.requests_per_s > split.requests_per_s:
                    split = other
            found.append((dataclasses.replace(column, rate=split.requests_per_s), split))
        loads = self._loads([column for column, _ in found])
        return Placement(
            tuple(split.at(load) for (_, split), load in zip(found, loads, strict=True))
        )

    def _loads(self, columns: list[Column]) -> list[float]:
        """Return the loads of pipelines, one of each column."""
        loads = [column.rate for column in columns]
        if any(column.link_bytes for column in columns):
            each = dict.fromkeys(range(len(columns)), 1)
            found = self._master(self.is_cost).loads(columns, each)
            loads = [min(found[r] * (1 - MARGIN), load) for r, load in enumerate(loads)]
        rate = self.problem.requests_per_s
        if self.is_cost and rate is not None:
            total = math.fsum(loads)
            wanted = rate if total >= rate else rate * (1 - 0.9 * SLACK)
            if total > wanted * (1 - 3 * MARGIN):
                loads = [load * wanted / total for load in loads]
        return loads

    def _nothing(self) -> PlacementOutcome:
        """Return that the problem is infeasible, and why."""
        if not self.pool.patterns:
            message = "no pipeline keeps the rules on machines, links and pins"
        elif self.is_cost:
            message = f"no placement carries {self.problem.requests_per_s:g} requests/s"
        else:
            targets = self.problem.ttft_slo_s, self.problem.tpot_slo_s
            meets = " and meets the targets" if any(targets) else ""
            message = f"no pipeline has room for the model{meets}"
        return PlacementOutcome(Status.INFEASIBLE, message=message, statistics=self.statistics)


def _is_nearer(pattern: Pattern, groups: Sequence[tuple[str, int]]) -> bool:
    """Return whether stages next to each other share a machine though they need not."""
    n = len(groups)
    return any(
        groups[s][0] == groups[(s + 1) % n][0]
        and pattern.shares[s] != pattern.shares[(s + 1) % n]
        for s in range(n)
    )
