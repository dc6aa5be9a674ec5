"""Run HiGHS and CBC on a PuLP problem."""

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.solvers.backends.loading import interruptible, load_backend
from hypsolve.solvers.clock import Deadline, OutOfTime

# Labels in the final report of the log of CBC.
LOWER_BOUND = r"^Lower bound:"
WALL_CLOCK = r"^Total time .*\(Wallclock seconds\):"
SOLVERS = {"highs": "HiGHS", "cbc": "CBC"}
# A rule of the presolve of HiGHS, by its bit in the option `presolve_rule_off`. In version 1.16
# probing cuts off the optima of 9 in 600 joint models of 2 to 4 requests on two nodes.
PROBING = 1 << 15
AT_THE_LIMIT = "at the time limit"
KILL_S = 0.3  # CBC is killed if it runs over its time limit by more, as its preprocessing does
WRITING_RATIO = 1.5  # about the time that PuLP takes to write a model, over that to build it


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
    deadline: Deadline,
    seed: int,
    *,
    built_s: float = 0.0,
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
    deadline : Deadline
        The solver is given the time that is left. If the model cannot be handed over before,
        the solver is not started.
    built_s : float
        Seconds that building the problem took, from which the time to write it is estimated.
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
    started_s = deadline.spent_s()
    try:
        if backend == "highs":
            return _solve_highs(problem, method, deadline, seed, warm_start, on_solution)
        return _solve_cbc(problem, method, deadline, seed, warm_start, built_s)
    except OutOfTime:
        copy_s = deadline.spent_s() - started_s
        return Answer(False, False, math.inf, -math.inf, AT_THE_LIMIT, copy_s)


def _solve_highs(
    problem: Any,
    method: str,
    deadline: Deadline,
    seed: int,
    warm_start: bool,
    on_solution: Callable[[Any, float], None] | None,
) -> Answer:
    """Pass the problem to HiGHS, run it, and store the solution in the variables."""
    highspy = load_backend(method, "highspy", "highspy>=1.16,<1.17")
    started_s = deadline.spent_s()
    highs = silent_highs(highspy)
    highs.passModel(_as_highs(problem, highspy, deadline))
    if warm_start:
        start = highspy.HighsSolution()
        start.col_value = [variable.varValue or 0.0 for variable in problem.variables()]
        highs.setSolution(start)
    build_s = deadline.spent_s() - started_s
    options: dict[str, Any] = {
        "time_limit": deadline.left_s(),
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
    interruptible(lambda: run_on_one_thread(highspy, highs), highs.cancelSolve)
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
        stopped = AT_THE_LIMIT
    else:
        stopped = f"with {highs.modelStatusToString(status)!r}"
    value = info.objective_function_value
    return Answer(found, infeasible, value, info.mip_dual_bound, stopped, build_s)


def silent_highs(highspy: Any) -> Any:
    """Return a HiGHS that prints nothing, not even the line with its version.

    Its constructor enables callbacks, which prints that line, before a user can set options.
    """

    class SilentHighs(highspy.Highs):
        def enableCallbacks(self) -> Any:
            self.setOptionValue("output_flag", False)
            return super().enableCallbacks()

    return SilentHighs()


def run_on_one_thread(highspy: Any, highs: Any) -> None:
    """Run HiGHS on one thread, also where this process has started HiGHS on several.

    All models of a process share the threads of HiGHS, so it refuses another number of them
    than that of its first model.
    """
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("parallel", "off")
    highs.run()
    if highs.getModelStatus() == highspy.HighsModelStatus.kNotset:
        highs.setOptionValue("threads", 0)  # as many as there are; `parallel` leaves one
        highs.run()


def _as_highs(problem: Any, highspy: Any, deadline: Deadline) -> Any:
    """Convert a problem to a HiGHS model at once; PuLP's interface adds it row by row."""
    variables = problem.variables()
    for column, variable in enumerate(variables):
        variable.index = column
    rows = problem.constraints()
    entries = [[(v.index, c) for v, c in row.items() if c] for row in deadline.each(rows)]
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
    deadline.require()
    matrix.index_ = np.array([column for row in entries for column, _ in row], np.int32)
    matrix.value_ = np.array([value for row in entries for _, value in row], float)
    return model


def _limits(limits: Iterable[float | None], unlimited: float) -> Array:
    """Convert limits to an array, with None as `unlimited`."""
    return np.array([unlimited if limit is None else limit for limit in limits], float)


def _solve_cbc(
    problem: Any, method: str, deadline: Deadline, seed: int, warm_start: bool, built_s: float
) -> Answer:
    """Run CBC on files in a temporary folder; read its bound from its log."""
    import pulp

    solver = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path)
    if not solver.available():
        raise ValueError(
            f"method {method!r} needs the CBC that comes with PuLP, which cannot be run;"
            " pip install 'pulp>=3.3,<4'"
        )
    started_s = deadline.spent_s()
    deadline.require(WRITING_RATIO * built_s)
    with tempfile.TemporaryDirectory() as folder:
        model, start, solution = (
            str(Path(folder, f"cbc.{end}")) for end in ("mps", "mst", "sol")
        )
        variables, names, rows, _ = problem.writeMPS(model, rename=1)
        command = [solver.path, model]
        if warm_start:
            solver.writesol(start, problem, variables, names, rows)
            command += ["-mips", start]
        limit_s = deadline.left_s()
        command += [
            *("-sec", f"{max(limit_s, 0.01)}", "-timeMode", "elapsed"),
            *("-primalTolerance", "1e-9", "-dualTolerance", "1e-9"),
            *("-integerTolerance", "1e-9", "-increment", "1e-9"),
            *("-randomCbcSeed", f"{seed % 2**31}", "-ratio", "0.0", "-allow", "0.0"),
            *("-threads", "1", "-solve", "-printingOptions", "all", "-solution", solution),
        ]
        run_s = deadline.spent_s()
        log, failure = _run_command(command, Path(folder, "cbc.log"), limit_s + KILL_S)
        took_s = deadline.spent_s() - run_s
        build_s = run_s - started_s
        if failure or not Path(solution).exists():
            why = failure or "without a solution file"
            return Answer(False, False, math.inf, -math.inf, why, build_s)
        status, values, *_, sol_status = solver.readsol_MPS(
            solution, problem, variables, names, rows
        )
    problem.assignVarsVals(values)
    solver_s = _logged(log, WALL_CLOCK, took_s)
    build_s += max(0.0, took_s - solver_s)  # the rest was mostly for reading the model
    value = problem.objective.value() or 0.0
    # if the limit expires during preprocessing, CBC may report a feasible problem as
    # infeasible, without mentioning the limit
    timed_out = "on time" in log or solver_s > 0.9 * limit_s
    if sol_status == pulp.LpSolutionOptimal:
        return Answer(True, False, value, value, "", build_s)
    if status == pulp.LpStatusInfeasible and not timed_out:
        return Answer(False, True, math.inf, math.inf, "", build_s)
    found = sol_status == pulp.LpSolutionIntegerFeasible
    bound = _logged(log, LOWER_BOUND, -math.inf) - 1e-3  # the log has three decimals
    return Answer(found, False, value, bound, AT_THE_LIMIT, build_s)


def _run_command(command: list[str], log: Path, limit_s: float) -> tuple[str, str]:
    """Run a program, and kill it at the limit; return its output, and why it failed."""
    failure = ""
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=limit_s if math.isfinite(limit_s) else None,
                check=False,
            )
        except subprocess.TimeoutExpired:
            failure = AT_THE_LIMIT
        else:
            if done.returncode:
                failure = f"with an error: {command[0]} returned {done.returncode}"
    return log.read_text(errors="replace"), failure


def _logged(log: str, label: str, absent: float) -> float:
    """Return the number after a label in the log of CBC; `absent` if there is none."""
    match = re.search(label + r"\s+(\S+)", log, re.MULTILINE)
    try:
        return float(match[1].rstrip(")")) if match else absent
    except ValueError:
        return absent
