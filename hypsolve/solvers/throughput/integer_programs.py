"""Baselines: for a given rate and hold time, is there a feasible split? As MILP and by CP-SAT.

Each stage that carries the rate, and has KV memory for the hold time, is an arc from its first
block to the block behind it. One arc per tier makes a path over the cuts. The integer program
finds the path of least hold time within the targets for latencies. The rest is the method of
`throughput_exact`: a longer path than the given hold time gives the next hold time, and
bisection finds the rate. Arcs come from the tables that `throughput_exact` uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_result import ServingOutcome
from hypsolve.problem.solution import Partition, Status
from hypsolve.solvers.backends import cpsat, pulp
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline, OutOfTime
from hypsolve.solvers.throughput.server_arrays import server_of

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

CLOSE = 1e-7  # relative width of the bracket at which bisection ends
MARGIN = 1e-8  # of the bound, for the rounding of limits
LEAST = 1e-9  # requests per second; smaller rates count as none
TICKS = 2**40  # units of the largest number of a row in CP-SAT
DECODE, PROMPT, HELD, CHUNK = 0, 1, 2, 3


class PathModel(NamedTuple):
    """Arcs, the seconds to minimise over a path, and limits on other sums."""

    where: IntArray  # tier, first block, block behind: (n_arcs, 3)
    held_s: Array  # to minimise, (n_arcs,)
    rows: list[
        tuple[Array, float, float]
    ]  # numbers of arcs, factor of the largest chunk, limit
    chunk_s: Array  # (n_arcs,)


PathSolver = Callable[[PathModel, ServingInstance, Deadline], list[int] | None]


def throughput_highs(
    instance: ServingInstance, *, time_limit_s: float, seed: int
) -> ServingOutcome:
    """Maximise the fluid request rate by bisection over MILPs in PuLP, with HiGHS.

    Parameters
    ----------
    instance : ServingInstance
        Its batching mode must be ``stage``, and its objective not ``cost``.
    time_limit_s : float
        For all models and their solution.
    seed : int
        ``random_seed`` of HiGHS.

    Raises
    ------
    ValueError
        If the mode or the objective is another one, or a package cannot be imported.
    """
    method = "throughput_highs"
    load_backend(method, "pulp", "pulp>=3.3,<4")

    def solve(model: PathModel, of: ServingInstance, deadline: Deadline) -> list[int] | None:
        return _path_by_pulp(model, of, deadline, method, seed)

    return _bisect(method, instance, Deadline(time_limit_s), solve)


def throughput_cpsat(
    instance: ServingInstance, *, time_limit_s: float, seed: int, workers: int = 1
) -> ServingOutcome:
    """Maximise the fluid request rate by bisection over models of CP-SAT.

    Parameters
    ----------
    instance : ServingInstance
        Its batching mode must be ``stage``, and its objective not ``cost``.
    time_limit_s : float
        For all models and their solution.
    seed : int
        ``random_seed`` of CP-SAT.
    workers : int
        Number of threads.

    Raises
    ------
    ValueError, TypeError
        If the mode or the objective is another one, OR-Tools cannot be imported, or `workers`
        is wrong.
    """
    method = "throughput_cpsat"
    solver = cpsat.new_solver(method, seed, workers)

    def solve(model: PathModel, of: ServingInstance, deadline: Deadline) -> list[int] | None:
        return _path_by_cpsat(model, of, deadline, solver)

    return _bisect(method, instance, Deadline(time_limit_s), solve)


def _bisect(
    method: str, instance: ServingInstance, deadline: Deadline, solve: PathSolver
) -> ServingOutcome:
    """Find the largest rate whose integer programs have a feasible path."""
    from hypsolve.kernels.throughput import stage_search, stage_tables

    _require(method, instance)
    server = server_of(instance)
    tables = stage_tables.new_tables(server)
    found = np.zeros(instance.n_tiers + 1, np.int64)
    high, low, best = stage_search.rate_limit(server, tables, found), 0.0, None
    x = high * (1 - 1e-12)
    statistics = {"rates": 0}
    try:
        while high - low > CLOSE * high and high > LEAST:
            deadline.require()
            statistics["rates"] += 1
            cuts = _find_split(server, tables, instance, x, deadline, solve)
            if cuts is None:
                high = x
            else:
                # tolerances of the solver may let a path pass that just misses a limit
                least = x * (1 - 1e-10)
                reached = float(stage_search.split_rate(server, tables, cuts, least, high))
                if reached > 0:
                    low, best = reached, Partition(tuple(cuts.tolist()))
                else:
                    high = x
            x = (low + high) / 2 if low > 0 else high / 4
            if low > 0 and high < low * 1.01:
                x = low * (1 + CLOSE / 2)
    except OutOfTime:
        message = "the time limit has passed"
        if best is None:
            return ServingOutcome(Status.UNKNOWN, message=message, statistics=statistics)
        bound = high * (1 + MARGIN)
        return ServingOutcome(
            Status.FEASIBLE, best, fluid_bound=bound, message=message, statistics=statistics
        )
    if best is None:
        return ServingOutcome(
            Status.INFEASIBLE,
            message="no split fits and meets the targets at any rate",
            statistics=statistics,
        )
    return ServingOutcome(
        Status.OPTIMAL, best, fluid_bound=high * (1 + MARGIN), statistics=statistics
    )


def _require(method: str, instance: ServingInstance) -> None:
    valid.of_type(method, "instance", instance, ServingInstance)
    if instance.rules.batching is not Batching.STAGE:
        raise ValueError(
            f"{method}: batching must be stage, got {instance.rules.batching}; throughput_exact"
            " takes all modes"
        )
    if instance.objective is ServingObjective.COST:
        raise ValueError(f"{method}: objective must be throughput or goodput, got cost")


def _find_split(
    server: Server,
    tables: Any,
    instance: ServingInstance,
    x: float,
    deadline: Deadline,
    solve: PathSolver,
) -> IntArray | None:
    """Return the cuts of a split that carries a rate, or None if there is none."""
    from hypsolve.kernels.throughput import arcs

    held_s = 0.0
    while True:
        where, numbers = arcs.arcs_at(server, tables, x, held_s)
        if not len(where):
            return None
        model = path_model(instance, x, where, numbers)
        path = solve(model, instance, deadline)
        if path is None:
            return None
        found_s = math.fsum(model.held_s[path].tolist())
        if found_s <= held_s * (1 + 1e-10):
            return np.append(where[path][:, 1], instance.n_blocks).astype(np.int64)
        held_s = found_s


def path_model(
    instance: ServingInstance, x: float, where: IntArray, numbers: Array
) -> PathModel:
    """Return the integer program for a rate over the arcs that are open."""
    rules, lengths = instance.rules, instance.lengths
    passes, again = lengths.decode_passes, lengths.chunks - 1
    decode, prompt = numbers[:, DECODE], numbers[:, PROMPT]
    rows = []
    latency = math.inf if rules.users is None else rules.users / x - rules.think_time_s
    if instance.objective is ServingObjective.GOODPUT:
        if rules.tpot_slo_s is not None and passes > 0:
            rows.append((decode, 0.0, rules.tpot_slo_s))
        if rules.ttft_slo_s is not None:
            rows.append((prompt, again, rules.ttft_slo_s))
        if rules.latency_slo_s is not None:
            latency = min(latency, rules.latency_slo_s)
    if latency < math.inf:
        rows.append((prompt + passes * decode, again, latency))
    held = lengths.hold_passes * decode + numbers[:, HELD]
    return PathModel(where, held, rows, numbers[:, CHUNK])


def _balance(
    model: PathModel, instance: ServingInstance
) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Return the arcs that leave and that enter each cut before a tier."""
    nodes: dict[tuple[int, int], tuple[list[int], list[int]]] = {
        (0, 0): ([], []),
        (instance.n_tiers, instance.n_blocks): ([], []),
    }
    for a, (k, i, j) in enumerate(model.where.tolist()):
        nodes.setdefault((k, i), ([], []))[0].append(a)
        nodes.setdefault((k + 1, j), ([], []))[1].append(a)
    return nodes


def _path_by_pulp(
    model: PathModel, instance: ServingInstance, deadline: Deadline, method: str, seed: int
) -> list[int] | None:
    from pulp import LpAffineExpression, LpProblem

    problem = LpProblem("shortest_hold_time")
    use = [
        problem.add_variable(f"use_{a}", cat="Binary")
        for a in deadline.each(range(len(model.where)))
    ]
    unit = max(float(model.held_s.max()), 1e-300)
    objective = zip(use, (model.held_s / unit).tolist(), strict=True)
    problem += LpAffineExpression(list(objective))
    for (k, c), (leaving, entering) in deadline.each(_balance(model, instance).items()):
        terms = [(use[a], 1.0) for a in leaving] + [(use[a], -1.0) for a in entering]
        out = (k == 0) - (k == instance.n_tiers)
        problem.addConstraint(LpAffineExpression(terms) == out, f"cut_{k}_{c}")
    largest = problem.add_variable("largest_chunk", lowBound=0)  # as a share of `scale`
    scale = max(float(model.chunk_s.max()), 1e-300)
    for a, chunk in enumerate((model.chunk_s / scale).tolist()):
        if chunk > 0:
            terms = [(use[a], chunk), (largest, -1.0)]
            problem.addConstraint(LpAffineExpression(terms) <= 0, f"chunk_{a}")
    for at, (numbers, factor, limit) in enumerate(model.rows):
        if limit <= 0:
            return None
        terms = list(zip(use, (numbers / limit).tolist(), strict=True))
        terms.append((largest, factor * scale / limit))
        problem.addConstraint(LpAffineExpression(terms) <= 1, f"target_{at}")
    answer = pulp.solve_pulp(problem, "highs", method, deadline, seed)
    if answer.stopped:
        raise OutOfTime
    if not answer.found:
        return None
    return _in_order(model, [a for a, variable in enumerate(use) if variable.value() > 0.5])


def _path_by_cpsat(
    model: PathModel, instance: ServingInstance, deadline: Deadline, solver: Any
) -> list[int] | None:
    from ortools.sat.python import cp_model

    program = cp_model.CpModel()
    use = [program.new_bool_var(f"use_{a}") for a in deadline.each(range(len(model.where)))]
    program.minimize(cp_model.LinearExpr.weighted_sum(use, _ticks(model.held_s)[0]))
    for (k, c), (leaving, entering) in deadline.each(_balance(model, instance).items()):
        out = (k == 0) - (k == instance.n_tiers)
        if (k, c) in ((0, 0), (instance.n_tiers, instance.n_blocks)):
            program.add_exactly_one([use[a] for a in (leaving if k == 0 else entering)])
        else:
            balance = [use[a] for a in leaving], [use[a] for a in entering]
            program.add(sum(balance[0]) - sum(balance[1]) == out)
    for numbers, factor, limit in model.rows:
        if limit <= 0:
            return None
        _add_target(program, use, model, numbers, factor, limit)
    code, _ = cpsat.run(solver, program, deadline, None)
    if cpsat.stopped(solver, code):
        raise OutOfTime
    if solver.status_name(code) == "INFEASIBLE":
        return None
    return _in_order(model, [a for a, v in enumerate(use) if solver.boolean_value(v)])


def _add_target(
    program: Any,
    use: list[Any],
    model: PathModel,
    numbers: Array,
    factor: float,
    limit: float,
) -> None:
    """Limit the sum of numbers of arcs and of `factor` times the largest chunk."""
    from ortools.sat.python import cp_model

    together = np.concatenate([numbers, factor * model.chunk_s])
    ticks, unit = _ticks(together)
    of_arc, of_chunk = ticks[: len(use)], ticks[len(use) :]
    total = cp_model.LinearExpr.weighted_sum(use, of_arc)
    if max(of_chunk) > 0:
        largest = program.new_int_var(0, max(of_chunk), "")
        for literal, chunk in zip(use, of_chunk, strict=True):
            if chunk > 0:
                program.add(largest >= chunk).only_enforce_if(literal)
        total += largest
    program.add(total <= min(math.floor(limit / unit), 2**60))


def _ticks(numbers: Array) -> tuple[list[int], float]:
    """Return numbers in whole ticks, rounded down, and the length of a tick."""
    unit = max(float(numbers.max()), 1e-300) / TICKS
    return np.floor(numbers / unit).astype(np.int64).tolist(), unit


def _in_order(model: PathModel, path: list[int]) -> list[int]:
    return sorted(path, key=lambda a: int(model.where[a, 0]))
