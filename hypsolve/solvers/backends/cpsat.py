"""Run OR-Tools' CP-SAT on a model."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR
from hypsolve.solvers.backends.loading import interruptible, load_backend

PACKAGE = "ortools>=9.15"
MAX_WORKERS = 10_000  # CP-SAT's own limit


def new_solver(method: str, seed: int, workers: int) -> Any:
    """CP-SAT with our parameters."""
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
    solver: Any, model: Any, time_limit_s: float, report: Callable[[Any], None] | None
) -> tuple[Any, float]:
    """Solve; its status, and the seconds that it spent on its own copy of the model.

    `report` is called for each solution, with what to read it from.
    """
    from ortools.sat.python import cp_model

    class Report(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            assert report is not None
            report(self)

    solver.parameters.max_time_in_seconds = max(time_limit_s, 0.0)
    solver.parameters.catch_sigint_signal = False  # it would pass for a time limit
    started = time.perf_counter()
    code = interruptible(
        lambda: solver.solve(model, None if report is None else Report()), solver.stop_search
    )
    return code, max(0.0, time.perf_counter() - started - solver.wall_time)


def stopped(solver: Any, code: Any) -> str:
    """Why CP-SAT stopped; empty if its search was complete."""
    if solver.status_name(code) in ("OPTIMAL", "INFEASIBLE"):
        return ""
    if solver.status_name(code) == "MODEL_INVALID":
        raise RuntimeError(f"CP-SAT rejects the formulation: {solver.solution_info()}")
    return "at the time limit"


def size(model: Any) -> dict[str, Any]:
    """Size of a CP-SAT model."""
    proto = model.proto
    return {"n_variables": len(proto.variables), "n_constraints": len(proto.constraints)}


def floor_ticks(seconds: np.ndarray, tick_s: float) -> IntArray:
    """Whole ticks, rounded down so far that rounding in `seconds` cannot lift them."""
    return np.floor(seconds / tick_s * (1 - RELATIVE_ERROR)).astype(np.int64)
