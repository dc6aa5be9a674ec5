"""The integer program over patterns: how many copies of each, on which machines, at which load.

Copies y of a pattern r carry at most X y requests per second. Machines of a class have room for
sets of shares of GPUs. If each size of a share divides the next larger one, as degrees of
tensor parallelism do, one row per size s says so exactly, for u machines of G GPUs:

    sum over the sizes t >= s of (t / s) n_t  <=  u floor(G / s).

Otherwise there is an integer variable for each maximal set of shares that fits on a machine.
Loads of patterns that cross shared links are variables, whose bytes the links limit.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.placement import PlacementProblem
from hypsolve.solvers.backends import cpsat
from hypsolve.solvers.backends import pulp as pulp_backend
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace

Share = tuple[int, int]
"""Class of machines, and number of GPUs."""
Link = tuple[str, ...]
"""A shared link, as in `hypsolve.problem.placement_evaluation`."""
LOAD_TICKS = 2**27
"""CP-SAT: ticks of the largest load."""
ROW_TICKS, OBJECTIVE_TICKS = 2**56, 2**55
"""CP-SAT: largest values of a row and of the objective. It loses solutions of rows of 2**60."""


@dataclass
class Program:
    """A linear program in integers: maximise ``cost x``, ``rows x <= limits``, ``0 <= x``.

    Attributes
    ----------
    cost, upper, is_integer : list
        Of each variable.
    rows : list of (dict of int to float, float)
        Coefficients by variables, and the limit.
    """

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    is_integer: list[bool] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float]] = field(default_factory=list)

    def variable(self, cost: float, upper: float, is_integer: bool) -> int:
        """Add a variable and return its index."""
        self.cost.append(cost)
        self.upper.append(upper)
        self.is_integer.append(is_integer)
        return len(self.cost) - 1

    def row(self, coefficients: dict[int, float], limit: float) -> int:
        """Add a row and return its index."""
        self.rows.append((coefficients, limit))
        return len(self.rows) - 1


Solver = Callable[
    [Program, int, Deadline, int], tuple[dict[int, int] | None, float, float, bool]
]
"""Function that solves a program: counts, value, bound, and whether it is complete."""


@dataclass(frozen=True)
class Column:
    """A pattern with its rate, as the master sees it.

    Attributes
    ----------
    pattern : Pattern
    rate : float
    link_bytes : mapping of shared link to float
        Bytes of a request.
    """

    pattern: Pattern
    rate: float
    link_bytes: Mapping[Link, float]

    @property
    def sizes(self) -> Counter[Share]:
        """Number of shares of each kind."""
        return Counter(self.pattern.sizes)


@dataclass(frozen=True)
class Duals:
    """Dual values of the relaxation.

    Attributes
    ----------
    value : float
        Of the relaxation: requests per second, or the negative price per hour.
    share : dict
        Price of each share of a machine.
    link : dict
        Price of a byte per second on each shared link.
    rate : float
        Worth of a request per second; 1 unless a rate is given.
    """

    value: float
    share: dict[Share, float]
    link: dict[Link, float]
    rate: float

    def scaled(self, factor: float, is_cost: bool, requests_per_s: float | None) -> Duals:
        """Return dual values under which rates count by a factor less than machines."""
        if not is_cost:
            share = {each: price * factor for each, price in self.share.items()}
            link = {each: price * factor for each, price in self.link.items()}
            return Duals(self.value * factor, share, link, self.rate)
        assert requests_per_s is not None
        rate = self.rate / factor
        value = self.value + (self.rate - rate) * requests_per_s
        return Duals(value, self.share, self.link, rate)

    def price(self, share: Share) -> float:
        """Return the price of a share, at the least that of two smaller ones if it has none.

        A share that no pattern took when the relaxation was solved has no price of its own. It
        may cost as much as its parts, for a machine with room for it has room for them.

        Examples
        --------
        >>> Duals(1.0, {(0, 1): 0.5, (0, 2): 0.75}, {}, 1.0).price((0, 3))
        1.25
        """
        if share in self.share:
            return self.share[share]
        c, gpus = share
        parts = [
            self.price((c, a)) + self.price((c, gpus - a)) for a in range(1, gpus // 2 + 1)
        ]
        return min(parts, default=0.0)

    def mixed(self, other: Duals, weight: float, shares: Iterable[Share]) -> Duals:
        """Return the mean of two sets of dual values, with some weight of the other one."""
        own = 1 - weight
        links = {*self.link, *other.link}
        value = own * self.value + (weight * other.value if weight else 0.0)
        return Duals(
            value,
            {s: own * self.price(s) + weight * other.price(s) for s in shares},
            {e: own * self.link.get(e, 0.0) + weight * other.link.get(e, 0.0) for e in links},
            own * self.rate + weight * other.rate,
        )

    def reward(self, link_bytes: Mapping[Link, float]) -> float:
        """Return the worth of a request per second of a pattern."""
        paid = sum(self.link.get(link, 0.0) * size for link, size in link_bytes.items())
        return max(0.0, self.rate - paid)


@dataclass(frozen=True)
class Copies:
    """A solution of the integer program.

    Attributes
    ----------
    counts : dict of int to int
        Copies of each column that is used, by its index.
    value : float
        Requests per second, or the negative price per hour.
    bound : float
        Upper bound on `value`.
    is_complete : bool
        Whether the solver completed its search.
    """

    counts: dict[int, int]
    value: float
    bound: float
    is_complete: bool


class Master:
    """The integer program over some columns, and its relaxation.

    Parameters
    ----------
    space : PatternSpace
    sizes : set of Share
        All shares of machines that columns may have.
    links : mapping of shared link to float
        Bytes per second of each.
    is_cost : bool
        Whether to minimise the price for the given rate, instead of maximising the rate.
    machines : sequence of float, optional
        Number of machines of each class that may be used. Default: all.
    """

    def __init__(
        self,
        space: PatternSpace,
        sizes: set[Share],
        links: Mapping[Link, float],
        *,
        is_cost: bool,
        machines: Sequence[float] | None = None,
    ) -> None:
        self.space, self.links = space, links
        self.machines = machines or [len(each.machines) for each in space.classes]
        self.problem: PlacementProblem = space.problem
        self.sizes = {
            c: sorted(gpus for of, gpus in sizes if of == c) for c in range(len(space.classes))
        }
        self.is_cost = is_cost

    def program(
        self, columns: Sequence[Column]
    ) -> tuple[Program, dict[Share, list[tuple[int, float]]], dict[Any, int], list[int]]:
        """Return the program, the rows of each share, the other rows, and machine variables.

        The first variables are the copies of the columns.
        """
        program = Program()
        for column in columns:
            is_shared = any(link in self.links for link in column.link_bytes)
            worth = 0.0 if is_shared or self.is_cost else column.rate
            program.variable(worth, math.inf, True)
        by_share: dict[Share, list[tuple[int, float]]] = {}
        other: dict[Any, int] = {}
        machines: list[int] = []
        for c, each in enumerate(self.space.classes):
            price = -each.price_per_hour if self.is_cost else 0.0
            machines += self._machines(program, c, price, by_share, other)
        for r, column in enumerate(columns):
            for share, n in column.sizes.items():
                for row, coefficient in by_share[share]:
                    entries = program.rows[row][0]
                    entries[r] = entries.get(r, 0.0) + n * coefficient
        self._loads(program, columns, other)
        return program, by_share, other, machines

    def _machines(
        self,
        program: Program,
        c: int,
        price: float,
        by_share: dict[Share, list[tuple[int, float]]],
        other: dict[Any, int],
    ) -> list[int]:
        """Add the machines of a class: how many are used, and what they have room for."""
        each, sizes = self.space.classes[c], self.sizes[c]
        n = self.machines[c]
        if not sizes:
            return []
        if all(b % a == 0 for a, b in itertools.pairwise(sizes)):
            used = program.variable(price, n, True)
            for s in sizes:
                row = program.row({used: -float(each.gpus // s)}, 0.0)
                for t in sizes:
                    if t >= s:
                        by_share.setdefault((c, t), []).append((row, t / s))
            other["machines", c] = program.row({used: 1.0}, n)
            return [used]
        rows = {s: program.row({}, 0.0) for s in sizes}
        for s, row in rows.items():
            by_share[c, s] = [(row, 1.0)]
        count: dict[int, float] = {}
        for fill in fills(tuple(reversed(sizes)), each.gpus):
            used = program.variable(price, n, True)
            count[used] = 1.0
            for s, number in Counter(fill).items():
                program.rows[rows[s]][0][used] = -float(number)
        other["machines", c] = program.row(count, n)
        return list(count)

    def _loads(
        self, program: Program, columns: Sequence[Column], other: dict[Any, int]
    ) -> None:
        carried: dict[int, float] = {}
        on_link: dict[Link, dict[int, float]] = {link: {} for link in self.links}
        for r, column in enumerate(columns):
            shared = [link for link in column.link_bytes if link in self.links]
            if not shared:
                carried[r] = -column.rate
                continue
            load = program.variable(0.0 if self.is_cost else 1.0, math.inf, False)
            program.row({load: 1.0, r: -column.rate}, 0.0)
            carried[load] = -1.0
            for link in shared:
                on_link[link][load] = column.link_bytes[link] / self.links[link]
        for link, entries in on_link.items():
            if entries:
                other[link] = program.row(entries, 1.0)
        if self.is_cost:
            assert self.problem.requests_per_s is not None
            rate = self.problem.requests_per_s
            other["rate"] = program.row({v: a / rate for v, a in carried.items()}, -1.0)

    def relax(self, columns: Sequence[Column]) -> Duals | None:
        """Solve the relaxation by HiGHS; None if no copies carry the given rate."""
        program, by_share, other, _ = self.program(columns)
        self._allow_parts(program, by_share)
        value, _, duals = solve_relaxation(program)
        if value is None:
            return None
        share = {
            s: sum(coefficient * duals[row] for row, coefficient in rows)
            for s, rows in by_share.items()
        }
        link = {
            each: duals[other[each]] / self.links[each] for each in self.links if each in other
        }
        rate = 1.0
        if self.is_cost:
            assert self.problem.requests_per_s is not None
            rate = duals[other["rate"]] / self.problem.requests_per_s
        return Duals(value, share, link, rate)

    def _allow_parts(
        self, program: Program, by_share: Mapping[Share, list[tuple[int, float]]]
    ) -> None:
        """Let a share be used as two smaller ones, so that it costs at least as much."""
        for c, sizes in self.sizes.items():
            if not sizes or all(b % a == 0 for a, b in itertools.pairwise(sizes)):
                continue
            for s, a in itertools.combinations(reversed(sizes), 2):
                rest = [b for b in sizes if b <= min(a, s - a)]
                part = program.variable(0.0, math.inf, False)
                for size, n in ((s, 1.0), (a, -1.0), *((b, -1.0) for b in rest[-1:])):
                    entries = program.rows[by_share[c, size][0][0]][0]
                    entries[part] = entries.get(part, 0.0) + n

    def loads(self, columns: Sequence[Column], counts: Mapping[int, int]) -> dict[int, float]:
        """Return the load of all copies of each column, at the best shares of the links."""
        program, _, other, _ = self.program(columns)
        load_of: dict[int, int] = {}
        at = len(columns)
        while at < len(program.cost) and program.is_integer[at]:
            at += 1
        for r, column in enumerate(columns):
            if any(link in self.links for link in column.link_bytes):
                load_of[r] = at
                at += 1
        for r in range(len(columns)):
            program.upper[r] = float(counts.get(r, 0))
            program.row({r: -1.0}, -program.upper[r])
        if self.is_cost:  # carry as much as possible; what is not needed is scaled off
            del program.rows[other["rate"]]
            program.cost = [0.0] * len(program.cost)
            for r, column in enumerate(columns):
                program.cost[load_of.get(r, r)] = 1.0 if r in load_of else column.rate
        _, values, _ = solve_relaxation(program)
        return {
            r: float(values[load_of[r]]) if r in load_of else n * columns[r].rate
            for r, n in counts.items()
        }


def fills(sizes: tuple[int, ...], gpus: int) -> list[tuple[int, ...]]:
    """Return the maximal sets of shares that fit on a machine.

    Parameters
    ----------
    sizes : tuple of int
        From the largest to the smallest.

    Examples
    --------
    >>> fills((3, 2), 7)
    [(3, 3), (3, 2, 2), (2, 2, 2)]
    """
    if not sizes:
        return [()]
    first, rest = sizes[0], sizes[1:]
    found = []
    for n in range(gpus // first, -1, -1):
        for others in fills(rest, gpus - n * first):
            if n < gpus // first and gpus - n * first - sum(others) >= first:
                continue
            found.append((first,) * n + others)
    return found


def solve_relaxation(program: Program) -> tuple[float | None, Array, Array]:
    """Solve a program without integrality by HiGHS: value, variables and duals of the rows.

    The value is None if there is no solution.
    """
    highspy = load_backend("placement", "highspy", "highspy>=1.16,<1.17")
    highs = pulp_backend.silent_highs(highspy)
    model = highspy.HighsLp()
    n = len(program.cost)
    model.num_col_, model.num_row_ = n, len(program.rows)
    model.col_cost_ = -np.array(program.cost)
    model.col_lower_, model.col_upper_ = np.zeros(n), np.array(program.upper)
    model.row_lower_ = np.full(len(program.rows), -highspy.kHighsInf)
    model.row_upper_ = np.array([limit for _, limit in program.rows])
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = n, len(program.rows)
    entries = [row for row, _ in program.rows]
    matrix.start_ = np.cumsum([0, *map(len, entries)], dtype=np.int32)
    matrix.index_ = np.array([v for row in entries for v in row], np.int32)
    matrix.value_ = np.array([a for row in entries for a in row.values()], float)
    highs.passModel(model)
    highs.setOptionValue("primal_feasibility_tolerance", 1e-9)
    highs.setOptionValue("dual_feasibility_tolerance", 1e-9)
    pulp_backend.run_on_one_thread(highspy, highs)
    status, states = highs.getModelStatus(), highspy.HighsModelStatus
    if status in (states.kInfeasible, states.kUnboundedOrInfeasible, states.kModelEmpty):
        return None, np.zeros(n), np.zeros(len(program.rows))
    if status != states.kOptimal:
        reason = highs.modelStatusToString(status)
        raise RuntimeError(f"HiGHS did not solve a relaxation: {reason!r}")
    solution = highs.getSolution()
    duals = np.maximum(-np.array(solution.row_dual), 0.0)
    return -highs.getInfo().objective_function_value, np.array(solution.col_value), duals


def by_highs(
    program: Program, n_columns: int, deadline: Deadline, seed: int
) -> tuple[dict[int, int] | None, float, float, bool]:
    """Solve a program as a MILP in PuLP with HiGHS.

    Returns
    -------
    counts : dict of int to int or None
        Values of the first variables; None without a solution.
    value, bound : float
    is_complete : bool
    """
    from pulp import LpAffineExpression, LpProblem

    problem = LpProblem("placement")
    variables = [
        problem.add_variable(
            f"x_{v:06d}",
            lowBound=0,
            upBound=None if math.isinf(upper) else upper,
            cat="Integer" if is_integer else "Continuous",
        )
        for v, (upper, is_integer) in enumerate(
            zip(program.upper, program.is_integer, strict=True)
        )
    ]
    problem += LpAffineExpression(
        [(x, -cost) for x, cost in zip(variables, program.cost, strict=True)]
    )
    for at, (row, limit) in enumerate(program.rows):
        terms = LpAffineExpression([(variables[v], a) for v, a in row.items()])
        if terms:
            problem.addConstraint(terms <= limit, f"row_{at}")
    answer = pulp_backend.solve_pulp(problem, "highs", "placement_highs", deadline, seed)
    bound = -answer.bound
    if answer.infeasible:
        return None, -math.inf, -math.inf, True
    if not answer.found:
        return None, -math.inf, bound, False
    counts = {
        r: round(variables[r].varValue) for r in range(n_columns) if variables[r].varValue > 0.5
    }
    return counts, -answer.value, bound, not answer.stopped


def by_cpsat(
    program: Program, n_columns: int, deadline: Deadline, seed: int
) -> tuple[dict[int, int] | None, float, float, bool]:
    """Solve a program by CP-SAT, as `by_highs` does.

    Coefficients are rounded such that no solution is lost: rows by their largest coefficient,
    down, and the objective up.
    """
    solver = cpsat.new_solver("placement_cpsat", seed, 1)
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    most, tick = _largest_variables(program), []
    for largest, is_whole in zip(most, program.is_integer, strict=True):
        tick.append(1.0 if is_whole else max(largest, 1e-300) / LOAD_TICKS)
    variables = [
        model.new_int_var(0, math.ceil(largest / unit * (1 + 1e-12)), f"x_{v}")
        for v, (largest, unit) in enumerate(zip(most, tick, strict=True))
    ]
    for row, limit in program.rows:
        if row:
            _add_row(model, variables, row, limit, most, tick, program.is_integer)
    weights = [cost * unit for cost, unit in zip(program.cost, tick, strict=True)]
    reach = sum(abs(w) * m / unit for w, m, unit in zip(weights, most, tick, strict=True))
    factor = OBJECTIVE_TICKS / (reach or 1.0)
    model.maximize(
        sum(x * math.ceil(w * factor) for x, w in zip(variables, weights, strict=True) if w)
    )
    code, _ = cpsat.run(solver, model, deadline, None)
    name = solver.status_name(code)
    if name == "INFEASIBLE":
        return None, -math.inf, -math.inf, True
    bound = solver.best_objective_bound / factor
    if name not in ("OPTIMAL", "FEASIBLE"):
        return None, -math.inf, math.inf, False
    counts = {r: solver.value(variables[r]) for r in range(n_columns)}
    value = solver.objective_value / factor
    return {r: n for r, n in counts.items() if n}, value, bound, name == "OPTIMAL"


def _add_row(
    model: Any,
    variables: Sequence[Any],
    row: Mapping[int, float],
    limit: float,
    most: Sequence[float],
    tick: Sequence[float],
    is_integer: Sequence[bool],
) -> None:
    """Add a row in integers that every solution of the row satisfies, its loads rounded up."""
    if all(a == round(a) and is_integer[v] for v, a in row.items()) and limit == round(limit):
        model.add(sum(variables[v] * round(a) for v, a in row.items()) <= round(limit))
        return
    reach = abs(limit) + sum(abs(a) * (most[v] + tick[v]) for v, a in row.items())
    factor = ROW_TICKS / reach
    rounding = sum(a * tick[v] for v, a in row.items() if a > 0 and not is_integer[v])
    terms = [variables[v] * math.floor(a * tick[v] * factor) for v, a in row.items()]
    model.add(sum(terms) <= math.ceil((limit + rounding) * factor))


def _largest_variables(program: Program) -> list[float]:
    """Return an upper bound on each variable."""
    most = list(program.upper)
    for _ in range(3):
        for row, limit in program.rows:
            rest = sum(a * most[v] for v, a in row.items() if a < 0)
            for v, a in row.items():
                if a > 0 and rest > -math.inf:
                    most[v] = min(most[v], (limit - rest) / a)
    return most
