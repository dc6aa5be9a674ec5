"""Run OR-Tools' CP-SAT."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR
from hypsolve.solvers.backends.loading import interruptible, load_backend
from hypsolve.solvers.clock import Deadline

PACKAGE = "ortools>=9.15"
MAX_WORKERS = 10_000  # limit of CP-SAT


def new_solver(method: str, seed: int, workers: int) -> Any:
    """Return a CP-SAT solver for a seed and a number of threads.

    Raises
    ------
    ValueError, TypeError
        If `workers` is out of range, or OR-Tools cannot be imported; `method` is named.
    """
    owner = f"method {method!r}"
    workers = valid.whole(owner, "workers", workers, minimum=1)
    if workers > MAX_WORKERS:
        raise ValueError(f"{owner}: workers must be at most {MAX_WORKERS}, got {workers}")
    cp_model = load_backend(method, "ortools.sat.python.cp_model", PACKAGE)
    solver = cp_model.CpSolver()
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.num_workers = workers
    return solver


def run(
    solver: Any, model: Any, deadline: Deadline, report: Callable[[Any], None] | None
) -> tuple[Any, float]:
    """Solve a model.

    Parameters
    ----------
    deadline : Deadline
        CP-SAT is given the time that is left.
    report : callable, optional
        Called for each improving solution with the callback object that holds its values.

    Returns
    -------
    tuple of status and float
        The status code, and the seconds that CP-SAT spent on copying the model.
    """
    from ortools.sat.python import cp_model

    class Report(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            assert report is not None
            report(self)

    solver.parameters.max_time_in_seconds = deadline.left_s()
    solver.parameters.catch_sigint_signal = False  # else Ctrl-C looks like the time limit
    started_s = deadline.spent_s()
    code = interruptible(
        lambda: solver.solve(model, None if report is None else Report()), solver.stop_search
    )
    return code, max(0.0, deadline.spent_s() - started_s - solver.wall_time)


def stopped(solver: Any, code: Any) -> str:
    """Return why CP-SAT stopped; empty if it completed its search.

    Raises
    ------
    RuntimeError
        If CP-SAT rejects the model.
    """
    if solver.status_name(code) in ("OPTIMAL", "INFEASIBLE"):
        return ""
    if solver.status_name(code) == "MODEL_INVALID":
        raise RuntimeError(f"CP-SAT rejects the formulation: {solver.solution_info()}")
    return "at the time limit"


def size(model: Any) -> dict[str, Any]:
    """Return the numbers of variables and constraints of a CP-SAT model."""
    proto = model.proto
    return {"n_variables": len(proto.variables), "n_constraints": len(proto.constraints)}


def floor_ticks(seconds: np.ndarray, tick_s: float) -> IntArray:
    """Convert to whole ticks, rounded down even if rounding has increased `seconds`."""
    return np.floor(seconds / tick_s * (1 - RELATIVE_ERROR)).astype(np.int64)
