"""The partition as a constraint program for OR-Tools' CP-SAT."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.evaluation import RELATIVE_ERROR, evaluate
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solvers.backends.cpsat import PACKAGE, floor_ticks, new_solver, run, size, stopped
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.outcomes import (
    OnImprove,
    WarmStart,
    better,
    given_start,
    require_callable,
    to_outcome,
)
from hypsolve.solvers.partition.arcs import Arcs, Scale, arcs_on, chosen, usable_arcs
from hypsolve.solvers.partition.hypsplit import hypsplit_dp

METHOD = "partition_cpsat"
RESOLUTION = 1e-7  # of the objective: what rounding down may hide on a path


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
    own = partial(hypsplit_dp, instance, time_limit_s=time_limit_s, seed=seed)
    warm, _ = given_start(instance, METHOD, warm_start, own)
    left_s = time_limit_s - (time.perf_counter() - started)
    started = time.perf_counter()
    formulation = build(instance)
    model, use, arcs, tick_s, scale = formulation
    if warm is not None:
        _add_hint(formulation, warm)
    build_s = time.perf_counter() - started

    def bound_s(ticks: float) -> float:
        return max(scale.min_s, ticks * tick_s * (1 - RELATIVE_ERROR))

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
    return to_outcome(
        instance,
        better(instance, found, warm),
        solver="CP-SAT",
        stopped=stopped(solver, code),
        infeasible=solver.status_name(code) == "INFEASIBLE",
        bound_s=bound_s(solver.best_objective_bound),
        min_s=scale.min_s,
        upper_s=scale.upper_s,
        statistics={**size(model), "build_s": build_s + copy_s},
    )


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
