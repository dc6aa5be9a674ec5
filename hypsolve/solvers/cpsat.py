"""The partition as a constraint program for OR-Tools' CP-SAT."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypsolve import validation as valid
from hypsolve.evaluation import evaluate
from hypsolve.problem import Instance, Objective
from hypsolve.solution import Outcome, Partition
from hypsolve.solvers.exact import (
    ROUNDING,
    Arcs,
    IntArray,
    OnImprove,
    Scale,
    WarmStart,
    arcs_on,
    better,
    chosen,
    conclude,
    given_start,
    interruptible,
    load_backend,
    require_callable,
    usable_arcs,
)

METHOD = "partition_cpsat"
PACKAGE = "ortools>=9.15"
RESOLUTION = 1e-7  # of the objective: what rounding down may hide on a path
MOST_WORKERS = 10_000  # CP-SAT's own limit


class PartitionCp(NamedTuple):
    """The formulation: `use` says which arcs are on the path; the objective counts `tick_s`."""

    model: Any  # cp_model.CpModel
    use: list[Any]
    arcs: Arcs
    tick_s: float
    scale: Scale


def partition_cpsat(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = False,
    workers: int = 1,
    on_improve: OnImprove | None = None,
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
    warm_start : bool, Partition, Outcome or Result
        Partition to start from; True: Hyperion's, which answers the question by itself.
    workers : int
        Threads, at most 10000.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, None)`` for each better one,
        from the solver's thread.

    Returns
    -------
    Outcome
        With a valid ``bound_s`` also at the time limit.
    """
    require_callable(METHOD, on_improve)
    solver = new_solver(METHOD, seed, workers)
    started = time.perf_counter()
    warm, _ = given_start(instance, METHOD, warm_start, time_limit_s, seed)
    left_s = time_limit_s - (time.perf_counter() - started)
    started = time.perf_counter()
    formulation = build(instance)
    model, use, arcs, tick_s, scale = formulation
    if warm is not None:
        _add_hint(formulation, warm)
    build_s = time.perf_counter() - started

    def bound_s(ticks: float) -> float:
        return max(scale.least_s, ticks * tick_s * (1 - ROUNDING))

    def partition_of(value: Callable[[Any], bool]) -> Partition:
        return chosen(arcs, np.array([value(v) for v in use]), instance.n_tiers)

    def report(callback: Any) -> None:
        partition = partition_of(callback.boolean_value)
        objective_s = evaluate(instance, partition)
        assert on_improve is not None
        on_improve(objective_s, bound_s(callback.best_objective_bound), partition, None)

    code, copy_s = run(solver, model, left_s, None if on_improve is None else report)
    found = None
    if solver.status_name(code) in ("OPTIMAL", "FEASIBLE"):
        found = partition_of(solver.boolean_value)
    return conclude(
        instance,
        better(instance, found, warm),
        solver="CP-SAT",
        stopped=stopped(solver, code),
        infeasible=solver.status_name(code) == "INFEASIBLE",
        bound_s=bound_s(solver.best_objective_bound),
        least_s=scale.least_s,
        upper_s=scale.upper_s,
        statistics={**size(model), "build_s": build_s + copy_s},
    )


def new_solver(method: str, seed: int, workers: int) -> Any:
    """CP-SAT with our parameters."""
    owner = f"method {method!r}"
    workers = valid.whole(owner, "workers", workers, least=1)
    if workers > MOST_WORKERS:
        raise ValueError(f"{owner}: workers must be at most {MOST_WORKERS}, got {workers}")
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
    return np.floor(seconds / tick_s * (1 - ROUNDING)).astype(np.int64)


def build(instance: Instance) -> PartitionCp:
    """Build the formulation."""
    cp_model = load_backend(METHOD, "ortools.sat.python.cp_model", PACKAGE)
    arcs, scale = usable_arcs(instance, METHOD)
    n_tiers = instance.n_tiers
    size_s, tick_s = scale.upper_s / n_tiers * RESOLUTION / (n_tiers + 1), math.inf
    if math.isfinite(size_s):  # else: whatever they cost, the arcs make no path
        tick_s = 2.0 ** math.floor(math.log2(max(size_s, 2.0**-1000)))
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
    return PartitionCp(model, use, arcs, tick_s, scale)


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


def _add_hint(formulation: PartitionCp, warm: Partition) -> None:
    """Start from a partition, unless it is too far off."""
    path = arcs_on(formulation.arcs, warm)
    for a, literal in enumerate(formulation.use if path is not None else ()):
        formulation.model.add_hint(literal, a in (path or ()))
