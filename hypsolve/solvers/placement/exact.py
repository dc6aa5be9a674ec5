"""`placement_highs` and `placement_cpsat`: the best placement of pipelines, with a bound.

The methods enumerate patterns, see `PatternSpace`. The relaxation of the integer program over
the patterns whose rates are known gives prices of GPUs. A pattern whose upper bound on the rate
does not pay for its GPUs is never solved for its cuts. The integer program is then solved over
all patterns that an optimal solution may contain, by the gap between the relaxation and the
best solution (reduced cost fixing).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.placement import (
    Placement,
    PlacementObjective,
    PlacementProblem,
)
from hypsolve.problem.placement_evaluation import link_rate
from hypsolve.problem.placement_result import PlacementOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement import master as masters
from hypsolve.solvers.placement.assignment import assign, stages
from hypsolve.solvers.placement.master import Column, Copies, Duals, Link, Master, Program
from hypsolve.solvers.placement.pattern_values import MARGIN, PatternValues
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace
from hypsolve.solvers.placement.rate_limits import RateLimits
from hypsolve.solvers.placement.values import Split, best_split

Solver = Callable[
    [Program, int, Deadline, int], tuple[dict[int, int] | None, float, float, bool]
]
MAX_PATTERNS = 200_000
"""Patterns that are enumerated at most."""
BATCH = 256
"""Patterns that are solved for their cuts before the relaxation is solved again."""
OPTIMAL_GAP = 5e-7
SLACK = 1e-9
FIRST_COLUMNS = 300
"""Patterns of the first integer program."""
PRICING_SHARE = 0.5
"""Share of the time after which patterns are no longer solved for the relaxation."""
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
        Its objective is ``throughput``, ``goodput`` or ``cost``.
    time_limit_s : float
    seed : int
        ``random_seed`` of HiGHS.
    max_patterns : int
        Patterns that are enumerated at most. If there are more, those of fewer stages are
        enumerated, and the bound covers the others by a relaxation.

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
    return Search(problem, Deadline(time_limit_s), seed, masters.by_highs, max_patterns).run()


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
        Its objective is ``throughput``, ``goodput`` or ``cost``.
    time_limit_s : float
    seed : int
        ``random_seed`` of CP-SAT.
    max_patterns : int
        Patterns that are enumerated at most.
    """
    load_backend("placement_cpsat", "ortools.sat.python.cp_model", "ortools>=9.15")
    return Search(problem, Deadline(time_limit_s), seed, masters.by_cpsat, max_patterns).run()


class Search:
    """Patterns with what is known of their rates, and the search for the best placement."""

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
        self.is_cost = problem.objective is PlacementObjective.COST
        self.n_stages = problem.max_stages
        self.patterns = self._enumerated(max_patterns)
        n = len(self.patterns)
        self.is_solved = np.zeros(n, bool)
        self.safe, self.best, self.limit = np.zeros(n), np.zeros(n), np.full(n, math.inf)
        self.cuts: list[tuple[int, ...]] = [()] * n
        self._index_shares()
        self._index_links()
        self.bound = math.inf  # on requests per second, or on the negative price
        self.bound_of_columns = math.inf  # of the last integer program
        self.is_none = False  # whether it is proved that no placement carries the rate
        self.working: set[int] = set()
        self.statistics: dict[str, Any] = {"patterns": n, "solved": 0, "relaxations": 0}

    def _enumerated(self, max_patterns: int) -> list[Pattern]:
        """Return all patterns, or those of fewer stages if there are too many."""
        kept: list[Pattern] = []
        for most in range(1, self.problem.max_stages + 1):
            found = []
            for pattern in self.space.patterns(most):
                if len(pattern.units) == most:
                    found.append(pattern)
                    if len(kept) + len(found) > max_patterns:
                        self.n_stages = most - 1
                        return kept
            kept += found
        return kept

    def _index_shares(self) -> None:
        """Number the shares of machines, and list those of each pattern."""
        shares = sorted({share for pattern in self.patterns for share in pattern.sizes})
        number = {share: at for at, share in enumerate(shares)}
        most = max((len(pattern.sizes) for pattern in self.patterns), default=1)
        self.shares = shares
        self.share_of = np.full((len(self.patterns), most), len(shares))
        for p, pattern in enumerate(self.patterns):
            self.share_of[p, : len(pattern.sizes)] = [number[share] for share in pattern.sizes]

    def _index_links(self) -> None:
        """List the shared links, and the bytes of a request on those that a pattern crosses."""
        problem = self.problem
        blocks = problem.model.blocks
        requests = problem.requests
        tokens = float((requests.prompt_tokens + requests.output_tokens - 1).mean())
        sent = [b.output_bytes_per_token for b in blocks[:-1]] or [0]
        self.sent = tokens * min(sent), tokens * max(sent)
        self.is_exact = self.values.is_exact and self.sent[0] == self.sent[1]
        kinds: dict[tuple[tuple[Link, int], ...], int] = {}
        self.link_kind = np.zeros(len(self.patterns), np.int64)
        for p, pattern in enumerate(self.patterns):
            crossed = tuple(sorted(self._crossed(pattern).items()))
            self.link_kind[p] = kinds.setdefault(crossed, len(kinds))
        self.link_kinds = [dict(kind) for kind in kinds]
        self.links = {
            link: link_rate(problem, link) for kind in self.link_kinds for link in kind
        }

    def _crossed(self, pattern: Pattern) -> dict[Link, int]:
        """Return how often a request crosses each shared link."""
        found: dict[Link, int] = {}
        for s in range(len(pattern.units) - 1):
            if pattern.shares[s] == pattern.shares[s + 1]:
                continue
            start, end = (self.space.classes[pattern.units[t][0]] for t in (s, s + 1))
            crossed: list[Link] = []
            if start.site != end.site:
                crossed.append(("sites", start.site, end.site))
            if start.has_shared_uplink:
                crossed.append(("out", start.machines[0].name))
            if end.has_shared_uplink:
                crossed.append(("in", end.machines[0].name))
            for link in crossed:
                found[link] = found.get(link, 0) + 1
        return found

    # -- the search ---------------------------------------------------------------------------

    def run(self) -> PlacementOutcome:
        """Return the best placement that is found in time, and the bound."""
        if not self.patterns:
            return self._nothing("no pipeline keeps the rules on machines, links and pins")
        limits = RateLimits(self.values, self.patterns)
        self.limit = limits.of(self.patterns, self.deadline.part(0.3))
        self._solve(np.flatnonzero(np.isinf(self.limit)))
        duals = self._price(self.deadline.part(PRICING_SHARE))
        if duals is None or (not self.is_cost and duals.value <= 0):
            return self._too_little()
        copies = self._branch(duals)
        if copies is None:
            if self.is_none:
                return self._too_little()
            return PlacementOutcome(
                Status.UNKNOWN,
                fluid_bound=self._public(self.bound) if self.bound < math.inf else None,
                message="the time limit has passed",
                statistics=self.statistics,
            )
        return self._outcome(copies)

    def _price(self, deadline: Deadline) -> Duals | None:
        """Solve patterns for their cuts until the relaxation contains no unsolved one.

        Patterns that are not solved count with their upper bounds, so that the relaxation is a
        bound at any time. None: it has no solution.
        """
        while True:
            duals = self._relaxed()
            if duals is None:
                return None
            profit = self._profit(duals)
            self._tighten(duals, profit)
            profit[self.is_solved] = -math.inf
            near = np.flatnonzero(profit >= -CLOSE * abs(duals.value))
            if not len(near) or deadline.has_passed():
                return duals
            self._solve(np.argsort(-profit, kind="stable")[: max(BATCH, len(near))])

    def _relaxed(self) -> Duals | None:
        """Return the dual values of the relaxation over all patterns, by column generation."""
        if self.is_cost:
            assert self.problem.requests_per_s is not None
            enough = self.problem.requests_per_s * (1 + CLOSE)
            if not any(self.working) or self._generated(True, math.inf) is None:
                most = self._generated(False, enough)
                if most is None or most.value < self.problem.requests_per_s:
                    return None
        return self._generated(self.is_cost, math.inf)

    def _generated(self, is_cost: bool, enough: float) -> Duals | None:
        """Add patterns to the relaxation until no other one pays for its GPUs."""
        master = self._master(is_cost)
        if not self.working:
            self.working = set(self._promising())
        while True:
            duals = master.relax(self._columns(sorted(self.working)))
            self.statistics["relaxations"] += 1
            if duals is None or duals.value >= enough:
                return duals
            profit = self._profit(duals)
            least = CLOSE * max(abs(duals.value), 1e-300)
            order = np.argsort(-profit, kind="stable")[:BATCH]
            added = {int(p) for p in order if profit[p] > least} - self.working
            if not added or self.deadline.has_passed():
                return duals
            self.working |= added

    def _promising(self) -> list[int]:
        """Return the patterns of the largest rate for each GPU."""
        gpus = np.array([*(n for _, n in self.shares), 0])[self.share_of].sum(axis=1)
        rates = np.where(self.is_solved, self.best, self.limit)
        return [int(p) for p in np.argsort(-rates / gpus, kind="stable")[:BATCH]]

    def _master(self, is_cost: bool) -> Master:
        master = Master(self.space, set(self.shares), self.links)
        master.is_cost = is_cost
        return master

    def _columns(self, of: Sequence[int], *, is_safe: bool = False) -> list[Column]:
        known = self.safe if is_safe else self.best
        rates = np.where(self.is_solved, known, self.limit)
        sent = self.sent[1] if is_safe else self.sent[0]
        return [
            Column(
                self.patterns[p],
                float(rates[p]),
                {link: n * sent for link, n in self.link_kinds[self.link_kind[p]].items()},
            )
            for p in of
        ]

    def _profit(self, duals: Duals) -> Array:
        """Return an upper bound on what each pattern earns above the price of its GPUs."""
        rates = np.where(self.is_solved, self.best, self.limit)
        return np.asarray(rates * self._reward(duals) - self._cost(duals))

    def _cost(self, duals: Duals) -> Array:
        price = np.array([*(duals.share[share] for share in self.shares), 0.0])
        return np.asarray(price[self.share_of].sum(axis=1))

    def _reward(self, duals: Duals) -> Array:
        of_kind = [
            duals.reward({link: n * self.sent[0] for link, n in kind.items()})
            for kind in self.link_kinds
        ]
        return np.array(of_kind)[self.link_kind]

    def _tighten(self, duals: Duals, profit: Array) -> None:
        """Lower the bound by dual values that are scaled until every pattern is too dear."""
        factor = 1.0
        above = profit > 0
        if above.any():
            cost = self._cost(duals)[above]
            if (cost <= 0).any():
                return
            factor = max(1.0, float(((profit[above] + cost) / cost).max()))
        value = duals.value
        if self.is_cost:
            assert self.problem.requests_per_s is not None
            value += duals.rate * self.problem.requests_per_s * (1 - 1 / factor)
        else:
            value *= factor
        self.bound = min(self.bound, value + CLOSE * abs(value))
        self.statistics["relaxation"] = self._public(duals.value)

    def _solve(self, of: Sequence[int] | np.ndarray) -> None:
        """Find the rates and cuts of some patterns."""
        chosen = [int(p) for p in of]
        patterns = [self.patterns[p] for p in chosen]
        rates, cuts = self.values.rates(patterns)
        self.safe[chosen] = rates * (1 - MARGIN)
        self.best[chosen] = rates * (1 + MARGIN)
        if not self.values.is_exact:
            self.best[chosen] = self.values.rates(patterns, is_best=True)[0] * (1 + MARGIN)
        for p, each in zip(chosen, cuts, strict=True):
            self.cuts[p] = each
        self.is_solved[chosen] = True
        self.statistics["solved"] += len(chosen)

    def _branch(self, duals: Duals) -> Copies | None:
        """Solve the integer program until no other pattern may improve on it.

        A solution with a pattern of profit -q is at least q below the relaxation.
        """
        self.duals, self.relaxed = duals, self.bound
        relaxed, profit = self.bound, self._profit(duals)
        used = np.flatnonzero(self.is_solved & (self.best > 0))
        used = used[np.argsort(-profit[used], kind="stable")[:FIRST_COLUMNS]]
        found: Copies | None = None
        while True:
            latest = self._integer(used.tolist())
            if latest is not None and (found is None or latest.value > found.value):
                found = latest
            value = -math.inf if found is None else found.value
            profit = self._profit(duals)
            gap = relaxed - value + CLOSE * abs(relaxed)
            others = profit.copy()
            others[used] = -math.inf
            others[self.is_solved & (self.best == 0)] = -math.inf
            elsewhere = relaxed + float(others.max(initial=-math.inf))
            bound = max(self.bound_of_columns, value, elsewhere)
            self.bound = min(self.bound, bound + CLOSE * abs(bound))
            missed = np.flatnonzero(others >= -gap)
            if not len(missed):
                self.is_none = found is None and self.bound_of_columns == -math.inf
                return found
            if self.deadline.left_s() < 0.2 * self.deadline.limit_s:
                return found
            unsolved = missed[~self.is_solved[missed]]
            self._solve(unsolved[np.argsort(-others[unsolved], kind="stable")[: 2 * BATCH]])
            profit = self._profit(duals)
            used = np.flatnonzero(self.is_solved & (self.best > 0) & (profit >= -gap))

    def _integer(self, used: list[int], *, is_safe: bool = False) -> Copies | None:
        """Solve the integer program over some patterns; keys are indices of patterns."""
        columns = self._columns(used, is_safe=is_safe)
        program, _, _, _ = self._master(self.is_cost).program(columns)
        counts, value, bound, is_complete = self.solve(
            program, len(columns), self.deadline.part(0.5), self.seed
        )
        if not is_safe:
            self.bound_of_columns = bound
        if counts is None:
            return None
        if not self.is_cost:  # CP-SAT rounds its value up
            value = math.fsum(self._master(False).loads(columns, counts).values())
        return Copies({used[r]: n for r, n in counts.items()}, value, bound, is_complete)

    def _tied(self, found: Copies) -> Copies:
        """Return copies of the same value on the fewest machines, in the fewest stages."""
        profit = self._profit(self.duals)
        gap = self.relaxed - found.value + CLOSE * abs(self.relaxed)
        used = np.flatnonzero(self.is_solved & (self.best > 0) & (profit >= -gap)).tolist()
        used = sorted({*used, *found.counts})
        columns = self._columns(used)
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
                safe = self._integer(np.flatnonzero(self.safe > 0).tolist(), is_safe=True)
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
        is_whole = self.n_stages == self.problem.max_stages
        bound = self.bound if is_whole else math.inf
        bound = max(bound, value)
        is_optimal = bound - value <= OPTIMAL_GAP * abs(bound)
        return PlacementOutcome(
            Status.OPTIMAL if is_optimal else Status.FEASIBLE,
            placement,
            fluid_bound=None if bound == math.inf else self._public(bound),
            message=self._about_stages(placement),
            statistics=self.statistics,
        )

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
        patterns = [self.patterns[p] for p in used]
        columns = self._columns(used, is_safe=True)
        found: list[tuple[Column, Split]] = []
        splits: dict[tuple[tuple[str, int], ...], Split | None] = {}
        for r, groups in assign(
            self.space, patterns, {r: counts[p] for r, p in enumerate(used)}
        ):
            column = columns[r]
            split = Split(stages(groups, self.cuts[used[r]]), column.rate)
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

    def _nothing(self, message: str) -> PlacementOutcome:
        return PlacementOutcome(Status.INFEASIBLE, message=message, statistics=self.statistics)

    def _too_little(self) -> PlacementOutcome:
        if self.n_stages < self.problem.max_stages:
            return PlacementOutcome(
                Status.UNKNOWN,
                message=f"pipelines of at most {self.n_stages} stages carry too little",
                statistics=self.statistics,
            )
        if self.is_cost:
            return self._nothing(
                f"no placement carries {self.problem.requests_per_s:g} requests/s"
            )
        return self._nothing("no pipeline has room for the model and meets the targets")


def _is_nearer(pattern: Pattern, groups: Sequence[tuple[str, int]]) -> bool:
    """Return whether stages next to each other share a machine though they need not."""
    n = len(groups)
    return any(
        groups[s][0] == groups[(s + 1) % n][0]
        and pattern.shares[s] != pattern.shares[(s + 1) % n]
        for s in range(n)
    )
