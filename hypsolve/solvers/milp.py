"""The partition as a MILP in PuLP, solved by CBC and by HiGHS."""

import math
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem import Instance, Objective
from hypsolve.solution import Outcome
from hypsolve.solvers.exact import (
    Arcs,
    chosen,
    conclude,
    in_units,
    load_backend,
    mip_bound_s,
    partition_arcs,
)


class PartitionMilp(NamedTuple):
    """The formulation: `use` says which arcs are on the path; the objective counts `unit_s`."""

    problem: Any  # pulp.LpProblem
    use: list[Any]
    arcs: Arcs
    unit_s: float


class Answer(NamedTuple):
    """What a MILP solver said, in the problem's units."""

    found: bool
    infeasible: bool
    bound: float
    stopped: str


def partition_highs(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
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

    Returns
    -------
    Outcome
        With a valid ``bound_s`` also at the time limit.

    Raises
    ------
    ValueError
        If the objective is one of a schedule, or the backend cannot be imported.
    """
    return _partition(instance, "highs", "partition_highs", time_limit_s, seed)


def partition_cbc(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Partition exactly: the MILP of `partition_highs`, by CBC (one thread).

    PuLP does not return CBC's bound; at the time limit it is read from CBC's log.
    """
    return _partition(instance, "cbc", "partition_cbc", time_limit_s, seed)


def _partition(
    instance: Instance, backend: str, method: str, time_limit_s: float, seed: int
) -> Outcome:
    started = time.perf_counter()
    model = build(instance, method)
    statistics = {**size(model.problem), "build_s": time.perf_counter() - started}
    answer = solve_pulp(model.problem, backend, method, time_limit_s, seed)
    partition = None
    if answer.found:
        used = np.array([variable.value() > 0.5 for variable in model.use])
        partition = chosen(model.arcs, used, instance.n_tiers)
    return conclude(
        instance,
        partition,
        infeasible=answer.infeasible,
        bound_s=mip_bound_s(answer.bound * model.unit_s),
        stopped=answer.stopped,
        statistics=statistics,
    )


def build(instance: Instance, method: str = "partition_highs") -> PartitionMilp:
    """Build the formulation."""
    pulp = load_backend(method, "pulp", "pulp>=3.3,<4")
    arcs = partition_arcs(instance, method)
    worst, added, unit_s = in_units(arcs, instance.n_tiers)
    problem = pulp.LpProblem(f"partition_{instance.objective}")
    use = [problem.add_variable(f"use_{arcs.named(a)}", cat="Binary") for a in range(len(arcs))]
    objective = list(zip(use, added, strict=True))
    if instance.objective is not Objective.PATH:
        objective.append((_add_worst_stage(problem, arcs, use, worst), 1.0))
    problem += pulp.LpAffineExpression(objective)
    _add_cuts(problem, instance, arcs, use)
    if instance.objective is Objective.P0:
        _add_node_choice(problem, arcs, use)
    return PartitionMilp(problem, use, arcs, unit_s)


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
    import pulp

    solver = pulp.HiGHS(
        msg=False,
        timeLimit=max(time_limit_s, 0.0),
        threads=1,
        gapRel=0.0,
        gapAbs=0.0,
        random_seed=seed % 2**31,
        primal_feasibility_tolerance=1e-9,
        dual_feasibility_tolerance=1e-9,
        mip_feasibility_tolerance=1e-9,
    )
    # what pulp's solve() does, with a start and a callback in between
    problem.checkDuplicateVars()
    solver.createAndConfigureSolver(problem)
    highs = problem.solverModel
    if highs.version().startswith("1.14."):
        # its presolve can lose the optimum of a MIP (ERGO-Code/HiGHS issues 3043, 3073, 3094)
        highs.setOptionValue("presolve", "off")
        highs.setOptionValue("mip_allow_restart", False)
    solver.buildSolverModel(problem)
    if warm_start:
        start = highspy.HighsSolution()
        start.col_value = [variable.varValue or 0.0 for variable in problem.variables()]
        highs.setSolution(start)
    if on_solution is not None:
        highs.cbMipImprovingSolution.subscribe(
            lambda e: on_solution(e.data_out.mip_solution, e.data_out.mip_dual_bound)
        )
    solver.callSolver(problem)
    problem.assignStatus(*solver.findSolutionValues(problem))
    status = highs.getModelStatus()
    states = highspy.HighsModelStatus
    found = problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    # without any variable no row that asks for a path can be met
    infeasible = status in (states.kInfeasible, states.kModelEmpty)
    if infeasible or status == states.kOptimal:
        stopped = "proved by HiGHS"
    elif status == states.kTimeLimit:
        stopped = "HiGHS stopped at the time limit"
    else:
        stopped = f"HiGHS stopped: {highs.modelStatusToString(status)}"
    found = found and not infeasible
    return Answer(found, infeasible, highs.getInfo().mip_dual_bound, stopped)


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
            return Answer(False, False, -math.inf, f"CBC failed: {error}")
        text = log.read_text(errors="replace")
    # at the limit its preprocessing calls feasible problems infeasible, without a word on time
    timed_out = "on time" in text or time.perf_counter() - started > 0.9 * time_limit_s
    if problem.sol_status == pulp.LpSolutionOptimal:
        return Answer(True, False, problem.objective.value(), "proved by CBC")
    if problem.status == pulp.LpStatusInfeasible and not timed_out:
        return Answer(False, True, math.inf, "proved by CBC")
    found = problem.sol_status == pulp.LpSolutionIntegerFeasible
    return Answer(found, False, _logged_bound(text), "CBC stopped at the time limit")


def _logged_bound(log: str) -> float:
    """Bound in CBC's final report, less what its three decimals may hide; else nothing."""
    match = re.search(r"^Lower bound:\s+(\S+)", log, re.MULTILINE)
    try:
        return float(match[1]) - 1e-3 if match else -math.inf
    except ValueError:
        return -math.inf
