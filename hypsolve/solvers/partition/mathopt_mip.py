"""The partition problem as a MIP in OR-Tools' MathOpt, solved by SCIP.

MathOpt also offers HiGHS, which `partition_highs` runs through `highspy`.
"""

import datetime
import math
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome
from hypsolve.solvers.backends.loading import interruptible, load_backend
from hypsolve.solvers.clock import Deadline, OutOfTime
from hypsolve.solvers.outcomes import to_outcome, without_model
from hypsolve.solvers.partition.arcs import (
    Arcs,
    CostLimits,
    mip_bound_s,
    scale_costs,
    to_partition,
    usable_arcs,
)

METHOD = "partition_scip"
PACKAGE = "ortools>=9.15"
INTERRUPTER = "ortools.util.python.solve_interrupter"


class PartitionMip(NamedTuple):
    """The MIP and its meaning."""

    model: Any  # mathopt.Model
    use: list[Any]  # a binary per arc: whether the arc is on the path
    arcs: Arcs
    unit_s: float  # seconds of a unit of the objective
    limits: CostLimits


def partition_scip(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Find an optimal partition by the MILP of `partition_highs`, with SCIP on one thread.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``bottleneck``, ``path`` or ``p0``.
    time_limit_s : float
        For model and solver together.
    seed : int
        Random seed of SCIP.

    Returns
    -------
    Outcome
        With a valid ``bound_s``, also at the time limit.

    Raises
    ------
    ValueError
        If the objective is a property of the schedule, or OR-Tools cannot be imported.

    Notes
    -----
    OR-Tools 9.15 prints two spurious ERROR lines (``SCIPcatchEvent does not support`` and
    ``gscip_event_handler.cc``) when SCIP is used; they can be ignored.
    `hypsolve.solvers.backends.scip.hide_spurious_scip_errors` filters them.
    """
    mathopt = load_backend(METHOD, "ortools.math_opt.python.mathopt", PACKAGE)
    deadline = Deadline(time_limit_s)
    try:
        model, use, arcs, unit_s, limits = build(instance, deadline)
    except OutOfTime as late:
        build_s = deadline.spent_s()
        return without_model(instance, None, "SCIP", late.min_s, build_s)
    build_s = deadline.spent_s()
    parameters = mathopt.SolveParameters(
        time_limit=datetime.timedelta(seconds=max(deadline.left_s(), 1e-6)),
        threads=1,
        random_seed=seed % 2**31,
        relative_gap_tolerance=0.0,
        absolute_gap_tolerance=0.0,
    )
    parameters.gscip.real_params["numerics/feastol"] = 1e-9
    started_s = deadline.spent_s()
    interrupter = load_backend(METHOD, INTERRUPTER, PACKAGE).SolveInterrupter()
    answer = interruptible(
        lambda: mathopt.solve(
            model, mathopt.SolverType.GSCIP, params=parameters, interrupter=interrupter
        ),
        interrupter.interrupt,
    )
    took_s = deadline.spent_s() - started_s
    solver_s = answer.solve_stats.solve_time.total_seconds()
    build_s += max(0.0, took_s - solver_s)  # the rest went into a copy of the model
    reason = answer.termination.reason
    partition = None
    if answer.has_primal_feasible_solution():
        used = np.array(answer.variable_values(use)) > 0.5
        partition = to_partition(arcs, used, instance.n_tiers)
    infeasible = reason is mathopt.TerminationReason.INFEASIBLE
    complete = infeasible or reason is mathopt.TerminationReason.OPTIMAL
    bounds = answer.termination.objective_bounds
    return to_outcome(
        instance,
        partition,
        solver="SCIP",
        stopped="" if complete else "at the time limit",
        infeasible=infeasible,
        bound_s=mip_bound_s(bounds.dual_bound * unit_s),
        claimed_s=bounds.primal_bound * unit_s,
        min_s=limits.min_s,
        upper_s=limits.upper_s,
        statistics={
            "n_variables": model.get_num_variables(),
            "n_constraints": model.get_num_linear_constraints(),
            "build_s": build_s,
        },
    )


def build(instance: Instance, deadline: Deadline | None = None) -> PartitionMip:
    """Build the MIP of an instance; OutOfTime once the deadline has passed."""
    mathopt = load_backend(METHOD, "ortools.math_opt.python.mathopt", PACKAGE)
    deadline = deadline or Deadline(math.inf)
    arcs, limits = usable_arcs(instance, METHOD, deadline)
    worst, added, unit_s = scale_costs(arcs, limits, instance.n_tiers)
    deadline.min_s = limits.min_s
    deadline.require()
    model = mathopt.Model(name=f"partition_{instance.objective}")
    use = [
        model.add_binary_variable(name=f"use_{arcs.label(a)}")
        for a in deadline.each(range(len(arcs)))
    ]
    for variable, cost in deadline.each(zip(use, added, strict=True)):
        model.objective.set_linear_coefficient(variable, cost)
    if instance.objective is not Objective.PATH:
        largest = _add_worst_stage(model, arcs, use, worst, deadline)
        model.objective.set_linear_coefficient(largest, 1.0)
    _add_cuts(model, instance, arcs, use, deadline)
    if instance.objective is Objective.P0:
        _add_node_choice(model, arcs, use)
    return PartitionMip(model, use, arcs, unit_s, limits)


def _add_cuts(
    model: Any, instance: Instance, arcs: Arcs, use: list[Any], deadline: Deadline
) -> None:
    """Use one arc per tier, each from the cut at which the previous arc ends."""
    balance: dict[tuple[int, int], Any] = {}

    def row(k: int, c: int) -> Any:
        if (k, c) not in balance:
            out = float((k == 0) - (k == instance.n_tiers))
            balance[k, c] = model.add_linear_constraint(lb=out, ub=out, name=f"cut_{k}_{c}")
        return balance[k, c]

    row(0, 0)
    row(instance.n_tiers, instance.n_blocks)
    for a, variable in enumerate(deadline.each(use)):
        k = int(arcs.tier[a])
        row(k, int(arcs.first[a])).set_coefficient(variable, 1.0)
        row(k + 1, int(arcs.end[a])).set_coefficient(variable, -1.0)


def _add_worst_stage(
    model: Any, arcs: Arcs, use: list[Any], worst: list[float], deadline: Deadline
) -> Any:
    """Add a variable that is at least as large as every stage time."""
    largest = model.add_variable(lb=0.0, name="worst_stage")
    for k in deadline.each(np.unique(arcs.tier)):
        row = model.add_linear_constraint(ub=0.0, name=f"stage_{k}")
        for a in np.flatnonzero(arcs.tier == k):
            row.set_coefficient(use[a], worst[a])
        row.set_coefficient(largest, -1.0)
    return largest


def _add_node_choice(model: Any, arcs: Arcs, use: list[Any]) -> None:
    """Add a binary per group of identical nodes: whether it runs the stage of its tier."""
    for n in np.unique(arcs.choice):
        row = model.add_linear_constraint(lb=0.0, ub=0.0, name=f"node_choice_{n}")
        for a in np.flatnonzero(arcs.choice == n):
            row.set_coefficient(use[a], 1.0)
        row.set_coefficient(model.add_binary_variable(name=f"node_{n}"), -1.0)
