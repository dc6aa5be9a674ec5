"""The partition problem as a constraint program, solved by OR-Tools' CP-SAT."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.evaluation import RELATIVE_ERROR, evaluate
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solvers.backends.cpsat import PACKAGE, floor_ticks, new_solver, run, size, stopped
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline, OutOfTime
from hypsolve.solvers.outcomes import (
    OnImprove,
    WarmStart,
    cheaper_partition,
    given_start,
    require_callable,
    to_outcome,
    without_model,
)
from hypsolve.solvers.partition.arcs import Arcs, CostLimits, arcs_on, to_partition, usable_arcs
from hypsolve.solvers.partition.hypsplit import hypsplit_dp

METHOD = "partition_cpsat"
RESOLUTION = 1e-7  # relative error of an objective that rounding to ticks may cause


class PartitionCp(NamedTuple):
    """The constraint program and its meaning."""

    model: Any  # cp_model.CpModel
    use: list[Any]  # a literal per arc: whether the arc is on the path
    arcs: Arcs
    tick_s: float  # seconds of a unit of the objective
    limits: CostLimits


def partition_cpsat(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = False,
    workers: int = 1,
    on_improve: OnImprove | None = None,
) -> Outcome:
    """Find an optimal partition by a constraint program, with CP-SAT.

    Stage times are rounded down to ticks of 2**-q s, so that the bound is valid for the exact
    times. The partition is scored with the exact times.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``bottleneck``, ``path`` or ``p0``.
    time_limit_s : float
        For warm start, model and solver together.
    seed : int
        ``random_seed`` of CP-SAT.
    warm_start : bool, Partition, Outcome or Result
        Partition to start from. True: that of `hypsplit_dp`, which is optimal by itself.
    workers : int
        Number of threads, at most 10000.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, None)`` for each improving
        partition, in the thread of the solver.

    Returns
    -------
    Outcome
        With a valid ``bound_s``, also at the time limit.

    Raises
    ------
    ValueError, TypeError
        If the objective is a property of the schedule, OR-Tools cannot be imported, or an
        option is wrong.
    """
    require_callable(METHOD, on_improve)
    solver = new_solver(METHOD, seed, workers)
    deadline = Deadline(time_limit_s)
    own = partial(hypsplit_dp, instance, time_limit_s=time_limit_s, seed=seed)
    warm, _ = given_start(instance, METHOD, warm_start, own)
    started_s = deadline.spent_s()
    try:
        formulation = build(instance, deadline)
    except OutOfTime as late:
        build_s = deadline.spent_s() - started_s
        return without_model(instance, warm, "CP-SAT", late.min_s, build_s)
    model, use, arcs, tick_s, limits = formulation
    if warm is not None:
        _add_hint(formulation, warm)
    build_s = deadline.spent_s() - started_s

    def bound_s(ticks: float) -> float:
        return max(limits.min_s, ticks * tick_s * (1 - RELATIVE_ERROR))

    def partition_of(value: Callable[[Any], bool]) -> Partition:
        return to_partition(arcs, np.array([value(v) for v in use]), instance.n_tiers)

    def report(callback: Any) -> None:
        partition = partition_of(callback.boolean_value)
        objective_s = evaluate(instance, partition)
        assert on_improve is not None
        on_improve(objective_s, bound_s(callback.best_objective_bound), partition, None)

    code, copy_s = run(solver, model, deadline, None if on_improve is None else report)
    found = None
    if solver.status_name(code) in ("OPTIMAL", "FEASIBLE"):
        found = partition_of(solver.boolean_value)
    return to_outcome(
        instance,
        cheaper_partition(instance, found, warm),
        solver="CP-SAT",
        stopped=stopped(solver, code),
        infeasible=solver.status_name(code) == "INFEASIBLE",
        bound_s=bound_s(solver.best_objective_bound),
        min_s=limits.min_s,
        upper_s=limits.upper_s,
        statistics={**size(model), "build_s": build_s + copy_s},
    )


def build(instance: Instance, deadline: Deadline | None = None) -> PartitionCp:
    """Build the constraint program of an instance; OutOfTime once the deadline has passed."""
    cp_model = load_backend(METHOD, "ortools.sat.python.cp_model", PACKAGE)
    deadline = deadline or Deadline(math.inf)
    arcs, limits = usable_arcs(instance, METHOD, deadline)
    n_tiers = instance.n_tiers
    size_s, tick_s = limits.upper_s / n_tiers * RESOLUTION / (n_tiers + 1), math.inf
    if math.isfinite(size_s):  # else there is no path, whatever the arcs cost
        tick_s = 2.0 ** math.floor(math.log2(max(size_s, 2.0**-1000)))
    worst, added = (floor_ticks(c, tick_s).tolist() for c in (arcs.worst_s, arcs.added_s))
    deadline.min_s = limits.min_s
    deadline.require()
    model = cp_model.CpModel()
    model.name = f"partition_{instance.objective}"
    use = [model.new_bool_var(f"use_{arcs.label(a)}") for a in deadline.each(range(len(arcs)))]
    objective = cp_model.LinearExpr.weighted_sum(use, added)
    if instance.objective is not Objective.PATH:
        objective += _add_worst_stage(model, arcs, use, worst, deadline)
    model.minimize(objective)
    _add_cuts(model, instance, arcs, use, deadline)
    if instance.objective is Objective.P0:
        _add_node_choice(model, arcs, use)
    return PartitionCp(model, use, arcs, tick_s, limits)


def _add_cuts(
    model: Any, instance: Instance, arcs: Arcs, use: list[Any], deadline: Deadline
) -> None:
    """Use one arc per tier, each from the cut at which the previous arc ends."""
    leaving: dict[tuple[int, int], list[Any]] = {}
    entering: dict[tuple[int, int], list[Any]] = {}
    for a, literal in enumerate(deadline.each(use)):
        k = int(arcs.tier[a])
        leaving.setdefault((k, int(arcs.first[a])), []).append(literal)
        entering.setdefault((k + 1, int(arcs.end[a])), []).append(literal)
    for k in range(instance.n_tiers):
        model.add_exactly_one(use[a] for a in np.flatnonzero(arcs.tier == k))
    for cut in deadline.each(leaving.keys() | entering.keys()):
        if 0 < cut[0] < instance.n_tiers:
            model.add(sum(entering.get(cut, ())) == sum(leaving.get(cut, ())))


def _add_worst_stage(
    model: Any, arcs: Arcs, use: list[Any], worst: list[int], deadline: Deadline
) -> Any:
    """Add a variable that is at least as large as every stage time."""
    largest = model.new_int_var(0, max(worst, default=0), "worst_stage")
    for k in deadline.each(np.unique(arcs.tier)):
        on_tier = np.flatnonzero(arcs.tier == k)
        model.add(sum(worst[a] * use[a] for a in on_tier) <= largest)
    return largest


def _add_node_choice(model: Any, arcs: Arcs, use: list[Any]) -> None:
    """Add a literal per group of identical nodes: whether it runs the stage of its tier."""
    for n in np.unique(arcs.choice):
        node = model.new_bool_var(f"node_{n}")
        model.add(sum(use[a] for a in np.flatnonzero(arcs.choice == n)) == node)


def _add_hint(formulation: PartitionCp, warm: Partition) -> None:
    """Hint the arcs of a partition, unless one of them was left out as too costly."""
    path = arcs_on(formulation.arcs, warm)
    for a, literal in enumerate(formulation.use if path is not None else ()):
        formulation.model.add_hint(literal, a in (path or ()))
