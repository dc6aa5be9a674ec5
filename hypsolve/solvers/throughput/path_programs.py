"""Integer programs for a path of least seconds over the cuts, as MILP in PuLP and in CP-SAT.

Each stage that a tier may host is an arc from its first block to the block behind it. One arc
per tier makes a path over the cuts. Rows limit sums over the path, and the number of stages
that host blocks may be given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.serving import ServingInstance
from hypsolve.solvers.backends import cpsat, pulp
from hypsolve.solvers.clock import Deadline, OutOfTime

TICKS = 2**40  # units of the largest number of a row in CP-SAT


class PathModel(NamedTuple):
    """Arcs, the seconds to minimise over a path, and limits on other sums."""

    where: IntArray  # tier, first block, block behind: (n_arcs, 3)
    seconds: Array  # to minimise, (n_arcs,)
    rows: list[
        tuple[Array, float, float]
    ]  # numbers of arcs, factor of the largest chunk, limit
    chunk_s: Array  # (n_arcs,)
    n_stages: int | None = None  # arcs with blocks; None: any number


PathSolver = Callable[[PathModel, ServingInstance, Deadline], list[int] | None]


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


def path_by_pulp(
    model: PathModel, instance: ServingInstance, deadline: Deadline, method: str, seed: int
) -> list[int] | None:
    """Return a path of least seconds by HiGHS; None if there is none.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    if any(limit <= 0 for _, _, limit in model.rows):
        return None
    problem, use = path_problem(model, instance, deadline)
    answer = pulp.solve_pulp(problem, "highs", method, deadline, seed)
    if answer.stopped:
        raise OutOfTime
    if not answer.found:
        return None
    return _in_order(model, [a for a, variable in enumerate(use) if variable.value() > 0.5])


def path_problem(
    model: PathModel, instance: ServingInstance, deadline: Deadline
) -> tuple[Any, list[Any]]:
    """Return the MILP as a PuLP problem, and the variable of each arc.

    All limits are positive.
    """
    from pulp import LpAffineExpression, LpProblem

    problem = LpProblem("shortest_path")
    use = [
        problem.add_variable(f"use_{a}", cat="Binary")
        for a in deadline.each(range(len(model.where)))
    ]
    unit = max(float(model.seconds.max()), 1e-300)
    objective = zip(use, (model.seconds / unit).tolist(), strict=True)
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
        terms = list(zip(use, (numbers / limit).tolist(), strict=True))
        terms.append((largest, factor * scale / limit))
        problem.addConstraint(LpAffineExpression(terms) <= 1, f"target_{at}")
    if model.n_stages is not None:
        hosts = [(use[a], 1.0) for a in _hosting(model)]
        problem.addConstraint(LpAffineExpression(hosts) == model.n_stages, "stages")
    return problem, use


def path_by_cpsat(
    model: PathModel, instance: ServingInstance, deadline: Deadline, solver: Any
) -> list[int] | None:
    """Return a path of least seconds by CP-SAT; None if there is none.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    from ortools.sat.python import cp_model

    program = cp_model.CpModel()
    use = [program.new_bool_var(f"use_{a}") for a in deadline.each(range(len(model.where)))]
    program.minimize(cp_model.LinearExpr.weighted_sum(use, _ticks(model.seconds)[0]))
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
    if model.n_stages is not None:
        program.add(sum(use[a] for a in _hosting(model)) == model.n_stages)
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


def _hosting(model: PathModel) -> list[int]:
    """Return the arcs with blocks."""
    return np.flatnonzero(model.where[:, 1] < model.where[:, 2]).tolist()


def _in_order(model: PathModel, path: list[int]) -> list[int]:
    return sorted(path, key=lambda a: int(model.where[a, 0]))
