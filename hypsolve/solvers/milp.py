"""The partition as a MILP in PuLP, solved by CBC and by HiGHS."""

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypsolve.evaluation import evaluate
from hypsolve.problem import Instance, Objective
from hypsolve.solution import Outcome, Partition
from hypsolve.solvers.exact import (
    Arcs,
    Array,
    OnImprove,
    Scale,
    WarmStart,
    arcs_on,
    better,
    chosen,
    conclude,
    given_start,
    in_units,
    interruptible,
    load_backend,
    mip_bound_s,
    require_callable,
    usable_arcs,
)

LOWER_BOUND = r"^Lower bound:"  # in CBC's log
WALL_CLOCK = r"^Total time .*\(Wallclock seconds\):"
SOLVERS = {"highs": "HiGHS", "cbc": "CBC"}


class PartitionMilp(NamedTuple):
    """The formulation: `use` says which arcs are on the path; the objective counts `unit_s`."""

    problem: Any  # pulp.LpProblem
    use: list[Any]
    arcs: Arcs
    unit_s: float
    scale: Scale


class Answer(NamedTuple):
    """What a MILP solver said, in the problem's units."""

    found: bool
    infeasible: bool
    value: float  # of the solution found
    bound: float
    stopped: str  # why; empty: the search was complete
    build_s: float  # of the solver's own copy of the model


def partition_highs(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = False,
    on_improve: OnImprove | None = None,
) -> Outcome:
    """Partition exactly: a MILP, through PuLP, by HiGHS (one thread).

    The variables choose one arc (tier, first block, end) per tier, on a path from cut 0 to cut
    n_blocks; about ``n_tiers * n_blocks**2 / 2`` of them.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``bottleneck``, ``path`` or ``p0``; the last also has one binary
        per node, for P0's choice of one node per tier.
    time_limit_s : float
        For the solver; building the model comes on top.
    seed : int
        HiGHS' ``random_seed``.
    warm_start : bool, Partition, Outcome or Result
        Partition to start from; True: Hyperion's, which answers the question by itself.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, None)`` for each better one.

    Returns
    -------
    Outcome
        With a valid ``bound_s`` also at the time limit.

    Raises
    ------
    ValueError, TypeError
        If the objective is one of a schedule, the backend cannot be imported, or an option is
        wrong.
    """
    options = (warm_start, on_improve)
    return _partition(instance, "highs", "partition_highs", time_limit_s, seed, *options)


def partition_cbc(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Partition exactly: the MILP of `partition_highs`, by CBC (one thread).

    PuLP does not return CBC's bound; at the time limit it is read from CBC's log.
    """
    return _partition(instance, "cbc", "partition_cbc", time_limit_s, seed)


def _partition(
    instance: Instance,
    backend: str,
    method: str,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = False,
    on_improve: OnImprove | None = None,
) -> Outcome:
    require_callable(method, on_improve)
    started = time.perf_counter()
    warm, _ = given_start(instance, method, warm_start, time_limit_s, seed)
    left_s = time_limit_s - (time.perf_counter() - started)
    started = time.perf_counter()
    model = build(instance, method)
    hinted = warm is not None and _add_hint(model, warm)
    build_s = time.perf_counter() - started

    def partition_of(value: Callable[[Any], float]) -> Partition:
        used = np.array([value(variable) > 0.5 for variable in model.use])
        return chosen(model.arcs, used, instance.n_tiers)

    def bound_s(bound: float) -> float:
        return mip_bound_s(bound * model.unit_s)

    def report(columns: Any, bound: float) -> None:
        partition = partition_of(lambda variable: columns[variable.index])
        assert on_improve is not None
        known_s = max(bound_s(bound), model.scale.least_s)
        on_improve(evaluate(instance, partition), known_s, partition, None)

    answer = solve_pulp(
        model.problem,
        backend,
        method,
        left_s,
        seed,
        warm_start=hinted,
        on_solution=None if on_improve is None else report,
    )
    found = partition_of(lambda variable: variable.value()) if answer.found else None
    best = better(instance, found, warm)
    return conclude(
        instance,
        best,
        solver=SOLVERS[backend],
        stopped=answer.stopped,
        infeasible=answer.infeasible,
        bound_s=bound_s(answer.bound),
        claimed_s=answer.value * model.unit_s if best is found else None,
        least_s=model.scale.least_s,
        upper_s=model.scale.upper_s,
        statistics={**size(model.problem), "build_s": build_s + answer.build_s},
    )


def build(instance: Instance, method: str = "partition_highs") -> PartitionMilp:
    """Build the formulation."""
    pulp = load_backend(method, "pulp", "pulp>=3.3,<4")
    arcs, scale = usable_arcs(instance, method)
    worst, added, unit_s = in_units(arcs, scale, instance.n_tiers)
    problem = pulp.LpProblem(f"partition_{instance.objective}")
    use = [problem.add_variable(f"use_{arcs.named(a)}", cat="Binary") for a in range(len(arcs))]
    objective = list(zip(use, added, strict=True))
    if instance.objective is not Objective.PATH:
        objective.append((_add_worst_stage(problem, arcs, use, worst), 1.0))
    problem += pulp.LpAffineExpression(objective)
    _add_cuts(problem, instance, arcs, use)
    if instance.objective is Objective.P0:
        _add_node_choice(problem, arcs, use)
    return PartitionMilp(problem, use, arcs, unit_s, scale)


def _add_cuts(problem: Any, instance: Instance, arcs: Arcs, use: list[Any]) -> None:
    """A path: one arc per tier, each from the cut where the one before ended."""
    import pulp

    balance: dict[tuple[int, int], list[tuple[Any, float]]] = {(0, 0): []}
    balance[instance.n_tiers, instance.n_blocks] = []
    for a, variable in enumerate(use):
        k = int(arcs.tier[a])
        balance.setdefault((k, int(arcs.first[a])), []).append((variable, 1.0))
        balance.setdefault((k + 1, int(arcs.end[a])), []).append((variable, -1.0))
    for (k, c), terms in balance.items():
        out = (k == 0) - (k == instance.n_tiers)  # one path leaves cut 0, one ends at n_blocks
        problem.addConstraint(pulp.LpAffineExpression(terms) == out, f"cut_{k}_{c}")


def _add_worst_stage(problem: Any, arcs: Arcs, use: list[Any], worst: list[float]) -> Any:
    """A variable at least as large as every stage time."""
    import pulp

    largest = problem.add_variable("worst_stage", lowBound=0)
    for k in np.unique(arcs.tier):
        terms = [(use[a], worst[a]) for a in np.flatnonzero(arcs.tier == k)]
        time_of_stage = pulp.LpAffineExpression([*terms, (largest, -1.0)])
        problem.addConstraint(time_of_stage <= 0, f"stage_{k}")
    return largest


def _add_node_choice(problem: Any, arcs: Arcs, use: list[Any]) -> None:
    """One binary per node (identical ones count once): where the tier's stage runs."""
    import pulp

    for n in np.unique(arcs.choice):
        node = problem.add_variable(f"node_{n}", cat=pulp.LpBinary)
        terms = [(use[a], 1.0) for a in np.flatnonzero(arcs.choice == n)]
        chosen_node = pulp.LpAffineExpression([*terms, (node, -1.0)])
        problem.addConstraint(chosen_node == 0, f"node_choice_{n}")


def _add_hint(model: PartitionMilp, warm: Partition) -> bool:
    """Start from a partition, with a value for every variable; False if it is too far off."""
    path = arcs_on(model.arcs, warm)
    if path is None:
        return False
    values = {f"use_{model.arcs.named(a)}": 1.0 for a in path}
    values |= {f"node_{model.arcs.choice[a]}": 1.0 for a in path}
    values["worst_stage"] = float(model.arcs.worst_s[path].max()) / model.unit_s
    for variable in model.problem.variables():
        variable.setInitialValue(values.get(variable.name, 0.0), check=False)
    return True


def size(problem: Any) -> dict[str, Any]:
    """Size of a PuLP problem."""
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
    warm_start : bool
        Start from the variables' initial values.
    on_solution : callable, optional
        HiGHS only: called with the column values, and the bound, of each better solution.
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
    highspy = load_backend(method, "highspy", "highspy>=1.14,<1.15")
    started = time.perf_counter()
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
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
    }
    if highs.version().startswith("1.14."):
        # its presolve can lose the optimum of a MIP (ERGO-Code/HiGHS issues 3043, 3073, 3094)
        options |= {"presolve": "off", "mip_allow_restart": False}
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
    # without any variable no row that asks for a path can be met
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


def _as_highs(problem: Any, highspy: Any) -> Any:
    """The problem in one piece; PuLP's own interface hands it over row by row."""
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
    return np.array([unlimited if limit is None else limit for limit in limits], float)


def _solve_cbc(
    problem: Any, method: str, time_limit_s: float, seed: int, warm_start: bool
) -> Answer:
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
    build_s = max(0.0, took_s - _logged(text, WALL_CLOCK, took_s))  # files, mostly
    value = problem.objective.value() or 0.0
    # at the limit its preprocessing calls feasible problems infeasible, without a word on time
    timed_out = "on time" in text or took_s - build_s > 0.9 * time_limit_s
    if problem.sol_status == pulp.LpSolutionOptimal:
        return Answer(True, False, value, value, "", build_s)
    if problem.status == pulp.LpStatusInfeasible and not timed_out:
        return Answer(False, True, math.inf, math.inf, "", build_s)
    found = problem.sol_status == pulp.LpSolutionIntegerFeasible
    # the log has three decimals
    bound = _logged(text, LOWER_BOUND, -math.inf) - 1e-3
    return Answer(found, False, value, bound, "at the time limit", build_s)


def _logged(log: str, label: str, absent: float) -> float:
    """Number behind a label in CBC's final report."""
    match = re.search(label + r"\s+(\S+)", log, re.MULTILINE)
    try:
        return float(match[1].rstrip(")")) if match else absent
    except ValueError:
        return absent
