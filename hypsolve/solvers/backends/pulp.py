"""Run HiGHS and CBC on a PuLP problem."""

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.solvers.backends.loading import interruptible, load_backend

# Labels in the final report of the log of CBC.
LOWER_BOUND = r"^Lower bound:"
WALL_CLOCK = r"^Total time .*\(Wallclock seconds\):"
SOLVERS = {"highs": "HiGHS", "cbc": "CBC"}
# A rule of the presolve of HiGHS, by its bit in the option `presolve_rule_off`. In version 1.16
# probing cuts off the optima of 9 in 600 joint models of 2 to 4 requests on two nodes.
PROBING = 1 << 15


class Answer(NamedTuple):
    """Answer of a MILP solver, in the units of the problem."""

    found: bool  # whether the variables hold a solution
    infeasible: bool
    value: float  # objective of the solution
    bound: float
    stopped: str  # why the solver stopped; empty if it completed its search
    build_s: float  # seconds that the solver spent on copying the model


def size(problem: Any) -> dict[str, Any]:
    """Return the numbers of variables and constraints of a PuLP problem."""
    return {"n_variables": problem.numVariables(), "n_constraints": problem.numConstraints()}


def solve_pulp(
    problem: Any,
    backend: str,
    method: str,
    time_limit_s: float,
    seed: int,
    *,
    warm_start: bool = False,
    on_solution: Callable[[Any, float], None] | None = None,
) -> Answer:
    """Solve a PuLP problem to proven optimality or to the time limit.

    Parameters
    ----------
    backend : str
        ``highs`` or ``cbc``.
    method : str
        Named in errors.
    warm_start : bool
        Start from the initial values of the variables.
    on_solution : callable, optional
        HiGHS only: called as ``on_solution(column_values, bound)`` for each improving solution.

    Returns
    -------
    Answer
        If it has a solution, the variables of `problem` hold it.

    Raises
    ------
    ValueError
        If the solver cannot be imported or run.

    Notes
    -----
    Both solvers run on one thread, with all gaps 0 and tolerances of 1e-9, because the bound
    that they report must hold to 1e-7 (`hypsolve.solvers.partition.arcs.MIP_ERROR`). HiGHS
    presolves and restarts, but does not probe (`PROBING`). These settings are part of the
    proof, so they are not options.
    """
    if backend == "highs":
        return _solve_highs(problem, method, time_limit_s, seed, warm_start, on_solution)
    return _solve_cbc(problem, method, time_limit_s, seed, warm_start)


def _solve_highs(
    problem: Any,
    method: str,
    time_limit_s: float,
    seed: int,
    warm_start: bool,
    on_solution: Callable[[Any, float], None] | None,
) -> Answer:
    """Pass the problem to HiGHS, run it, and store the solution in the variables."""
    highspy = load_backend(method, "highspy", "highspy>=1.16,<1.17")
    started = time.perf_counter()
    highs = _silent_highs(highspy)
    highs.passModel(_as_highs(problem, highspy))
    if warm_start:
        start = highspy.HighsSolution()
        start.col_value = [variable.varValue or 0.0 for variable in problem.variables()]
        highs.setSolution(start)
    build_s = time.perf_counter() - started
    options: dict[str, Any] = {
        "time_limit": max(time_limit_s, 0.0),
        "threads": 1,
        "random_seed": seed % 2**31,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": 0.0,
        "primal_feasibility_tolerance": 1e-9,
        "dual_feasibility_tolerance": 1e-9,
        "mip_feasibility_tolerance": 1e-9,
        "presolve_rule_off": PROBING,
    }
    for option, value in options.items():
        highs.setOptionValue(option, value)
    if on_solution is not None:
        highs.cbMipImprovingSolution.subscribe(
            lambda e: on_solution(e.data_out.mip_solution, e.data_out.mip_dual_bound)
        )
    highs.HandleUserInterrupt = True
    interruptible(highs.run, highs.cancelSolve)
    status, info = highs.getModelStatus(), highs.getInfo()
    states = highspy.HighsModelStatus
    # a model without variables cannot satisfy the rows that require a path
    infeasible = status in (states.kInfeasible, states.kModelEmpty)
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    columns = highs.getSolution().col_value
    found = feasible and not infeasible and len(columns) == problem.numVariables()
    if found:
        for variable, value in zip(problem.variables(), columns, strict=True):
            variable.varValue = value
    if infeasible or status == states.kOptimal:
        stopped = ""
    elif status == states.kTimeLimit:
        stopped = "at the time limit"
    else:
        stopped = f"with {highs.modelStatusToString(status)!r}"
    value = info.objective_function_value
    return Answer(found, infeasible, value, info.mip_dual_bound, stopped, build_s)


def _silent_highs(highspy: Any) -> Any:
    """Return a HiGHS that prints nothing, not even the line with its version.

    Its constructor enables callbacks, which prints that line, before a user can set options.
    """

    class SilentHighs(highspy.Highs):
        def enableCallbacks(self) -> Any:
            self.setOptionValue("output_flag", False)
            return super().enableCallbacks()

    return SilentHighs()


def _as_highs(problem: Any, highspy: Any) -> Any:
    """Convert a problem to a HiGHS model at once; PuLP's interface adds it row by row."""
    variables = problem.variables()
    for column, variable in enumerate(variables):
        variable.index = column
    rows = problem.constraints()
    entries = [[(v.index, c) for v, c in row.items() if c] for row in rows]
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(variables), len(rows)
    model.col_cost_ = np.array([problem.objective.get(v, 0.0) for v in variables], float)
    model.col_lower_ = _limits((v.lowBound for v in variables), -highspy.kHighsInf)
    model.col_upper_ = _limits((v.upBound for v in variables), highspy.kHighsInf)
    kinds = highspy.HighsVarType
    model.integrality_ = [
        kinds.kInteger if v.cat == "Integer" else kinds.kContinuous for v in variables
    ]
    model.row_lower_ = _limits((row.getLb() for row in rows), -highspy.kHighsInf)
    model.row_upper_ = _limits((row.getUb() for row in rows), highspy.kHighsInf)
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_col_, matrix.num_row_ = len(variables), len(rows)
    matrix.start_ = np.cumsum([0, *map(len, entries)], dtype=np.int32)
    matrix.index_ = np.array([column for row in entries for column, _ in row], np.int32)
    matrix.value_ = np.array([value for row in entries for _, value in row], float)
    return model


def _limits(limits: Iterable[float | None], unlimited: float) -> Array:
    """Convert limits to an array, with None as `unlimited`."""
    return np.array([unlimited if limit is None else limit for limit in limits], float)


def _solve_cbc(
    problem: Any, method: str, time_limit_s: float, seed: int, warm_start: bool
) -> Answer:
    """Run CBC on files in a temporary folder; read its bound from its log."""
    import pulp

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "cbc.log"
        solver = pulp.COIN_CMD(
            path=pulp.PULP_CBC_CMD.pulp_cbc_path,
            msg=False,
            timeLimit=max(time_limit_s, 0.01),
            threads=1,
            gapRel=0.0,
            gapAbs=0.0,
            logPath=str(log),
            warmStart=warm_start,
            options=[
                "primalTolerance 1e-9",
                "dualTolerance 1e-9",
                "integerTolerance 1e-9",
                "increment 1e-9",
                f"randomCbcSeed {seed % 2**31}",
            ],
        )
        solver.tmpDir = folder
        if not solver.available():
            raise ValueError(
                f"method {method!r} needs the CBC that comes with PuLP, which cannot be run;"
                " pip install 'pulp>=3.3,<4'"
            )
        started = time.perf_counter()
        try:
            problem.solve(solver)
        except pulp.PulpSolverError as error:
            return Answer(False, False, math.inf, -math.inf, f"with an error: {error}", 0.0)
        took_s = time.perf_counter() - started
        text = log.read_text(errors="replace")
    build_s = max(0.0, took_s - _logged(text, WALL_CLOCK, took_s))  # mostly for files
    value = problem.objective.value() or 0.0
    # if the limit expires during preprocessing, CBC may report a feasible problem as
    # infeasible, without mentioning the limit
    timed_out = "on time" in text or took_s - build_s > 0.9 * time_limit_s
    if problem.sol_status == pulp.LpSolutionOptimal:
        return Answer(True, False, value, value, "", build_s)
    if problem.status == pulp.LpStatusInfeasible and not timed_out:
        return Answer(False, True, math.inf, math.inf, "", build_s)
    found = problem.sol_status == pulp.LpSolutionIntegerFeasible
    bound = _logged(text, LOWER_BOUND, -math.inf) - 1e-3  # the log has three decimals
    return Answer(found, False, value, bound, "at the time limit", build_s)


def _logged(log: str, label: str, absent: float) -> float:
    """Return the number after a label in the log of CBC; `absent` if there is none."""
    match = re.search(label + r"\s+(\S+)", log, re.MULTILINE)
    try:
        return float(match[1].rstrip(")")) if match else absent
    except ValueError:
        return absent
