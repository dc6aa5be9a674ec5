"""The partition as a constraint program for OR-Tools' CP-SAT."""

import math
import time
from typing import Any, NamedTuple

import numpy as np

from hypsolve import validation as valid
from hypsolve.problem import Instance, Objective
from hypsolve.solution import Outcome
from hypsolve.solvers.exact import (
    ROUNDING,
    Arcs,
    IntArray,
    chosen,
    conclude,
    least_s,
    load_backend,
    partition_arcs,
)

METHOD = "partition_cpsat"
PACKAGE = "ortools>=9.12"
RESOLUTION = 2.0**27  # ticks in a lower bound on the objective
MOST_TICKS = 2.0**44  # longer stages are cut off there: sums stay far below 2**62


class PartitionCp(NamedTuple):
    """The formulation: `use` says which arcs are on the path; the objective counts `tick_s`."""

    model: Any  # cp_model.CpModel
    use: list[Any]
    arcs: Arcs
    tick_s: float


def partition_cpsat(
    instance: Instance, *, time_limit_s: float, seed: int, workers: int = 1
) -> Outcome:
    """Partition exactly, by CP-SAT.

    Stage times are counted in ticks of 2**-q s and rounded down, so that the bound holds for
    the true ones; the answer is scored with those.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``bottleneck``, ``path`` or ``p0``.
    time_limit_s : float
        For the solver; building the model comes on top.
    seed : int
        CP-SAT's ``random_seed``.
    workers : int
        Threads.

    Returns
    -------
    Outcome
        With a valid ``bound_s`` also at the time limit.
    """
    started = time.perf_counter()
    model, use, arcs, tick_s = build(instance)
    statistics = {**size(model), "build_s": time.perf_counter() - started}
    solver = new_solver(METHOD, time_limit_s, seed, workers)
    code = solver.solve(model)
    partition = None
    if solver.status_name(code) in ("OPTIMAL", "FEASIBLE"):
        used = np.array([solver.boolean_value(variable) for variable in use])
        partition = chosen(arcs, used, instance.n_tiers)
    return conclude(
        instance,
        partition,
        infeasible=solver.status_name(code) == "INFEASIBLE",
        bound_s=solver.best_objective_bound * tick_s * (1 - ROUNDING),
        stopped=stopped(solver, code),
        statistics=statistics,
    )


def new_solver(method: str, time_limit_s: float, seed: int, workers: int) -> Any:
    """CP-SAT with our parameters."""
    cp_model = load_backend(method, "ortools.sat.python.cp_model", PACKAGE)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(time_limit_s, 0.0)
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.num_workers = valid.whole(
        f"method {method!r}", "workers", workers, least=1
    )
    return solver


def stopped(solver: Any, code: Any) -> str:
    """Why CP-SAT stopped."""
    if solver.status_name(code) in ("OPTIMAL", "INFEASIBLE"):
        return "proved by CP-SAT"
    if solver.status_name(code) == "MODEL_INVALID":
        raise RuntimeError(f"CP-SAT rejects the formulation: {solver.solution_info()}")
    return "CP-SAT stopped at the time limit"


def size(model: Any) -> dict[str, Any]:
    """Size of a CP-SAT model."""
    proto = model.proto
    return {"n_variables": len(proto.variables), "n_constraints": len(proto.constraints)}


def floor_ticks(seconds: np.ndarray, tick_s: float) -> IntArray:
    """Whole ticks, rounded down so far that rounding in `seconds` cannot lift them."""
    ticks = np.floor(np.minimum(seconds / tick_s * (1 - ROUNDING), MOST_TICKS))
    return ticks.astype(np.int64)


def build(instance: Instance) -> PartitionCp:
    """Build the formulation."""
    cp_model = load_backend(METHOD, "ortools.sat.python.cp_model", PACKAGE)
    arcs = partition_arcs(instance, METHOD)
    size_s = least_s(arcs, instance.n_tiers) or max(
        arcs.worst_s.max(initial=0.0), arcs.added_s.max(initial=0.0), 2.0**-900
    )
    tick_s = 2.0 ** math.floor(math.log2(size_s / RESOLUTION))
    worst, added = (floor_ticks(c, tick_s).tolist() for c in (arcs.worst_s, arcs.added_s))
    model = cp_model.CpModel()
    model.name = f"partition_{instance.objective}"
    use = [model.new_bool_var(f"use_{arcs.named(a)}") for a in range(len(arcs))]
    objective = cp_model.LinearExpr.weighted_sum(use, added)
    if instance.objective is not Objective.PATH:
        objective += _add_worst_stage(model, arcs, use, worst)
    model.minimize(objective)
    _add_cuts(model, instance, arcs, use)
    if instance.objective is Objective.P0:
        _add_node_choice(model, arcs, use)
    return PartitionCp(model, use, arcs, tick_s)


def _add_cuts(model: Any, instance: Instance, arcs: Arcs, use: list[Any]) -> None:
    """A path: one arc per tier, each from the cut where the one before ended."""
    leaving: dict[tuple[int, int], list[Any]] = {}
    entering: dict[tuple[int, int], list[Any]] = {}
    for a, literal in enumerate(use):
        k = int(arcs.tier[a])
        leaving.setdefault((k, int(arcs.first[a])), []).append(literal)
        entering.setdefault((k + 1, int(arcs.end[a])), []).append(literal)
    for k in range(instance.n_tiers):
        model.add_exactly_one(use[a] for a in np.flatnonzero(arcs.tier == k))
    for cut in leaving.keys() | entering.keys():
        if 0 < cut[0] < instance.n_tiers:
            model.add(sum(entering.get(cut, ())) == sum(leaving.get(cut, ())))


def _add_worst_stage(model: Any, arcs: Arcs, use: list[Any], worst: list[int]) -> Any:
    """A variable at least as large as every stage time."""
    largest = model.new_int_var(0, max(worst, default=0), "worst_stage")
    for k in np.unique(arcs.tier):
        on_tier = np.flatnonzero(arcs.tier == k)
        model.add(sum(worst[a] * use[a] for a in on_tier) <= largest)
    return largest


def _add_node_choice(model: Any, arcs: Arcs, use: list[Any]) -> None:
    """One literal per node (identical ones count once): where the tier's stage runs."""
    for n in np.unique(arcs.choice):
        node = model.new_bool_var(f"node_{n}")
        model.add(sum(use[a] for a in np.flatnonzero(arcs.choice == n)) == node)
