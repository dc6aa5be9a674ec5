"""The partition problem as a MILP in PuLP, solved by HiGHS or CBC."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.evaluation import evaluate
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.backends.pulp import SOLVERS, size, solve_pulp
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
from hypsolve.solvers.partition.arcs import (
    Arcs,
    CostLimits,
    arcs_on,
    mip_bound_s,
    scale_costs,
    to_partition,
    usable_arcs,
)
from hypsolve.solvers.partition.hypsplit import hypsplit_dp


class PartitionMilp(NamedTuple):
    """The MILP and its meaning."""

    problem: Any  # pulp.LpProblem
    use: list[Any]  # a binary per arc: whether the arc is on the path
    arcs: Arcs
    unit_s: float  # seconds of a unit of the objective
    limits: CostLimits


def partition_highs(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = False,
    on_improve: OnImprove | None = None,
) -> Outcome:
    """Find an optimal partition by a MILP, with HiGHS on one thread.

    About ``n_tiers * n_blocks**2 / 2`` binaries choose one arc (tier, first block, end) per
    tier, on a path from cut 0 to cut n_blocks.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``bottleneck``, ``path`` or ``p0``. The model of ``p0`` has
        another binary per node, for the choice of one node per tier.
    time_limit_s : float
        For warm start, model and solver together.
    seed : int
        ``random_seed`` of HiGHS.
    warm_start : bool, Partition, Outcome or Result
        Partition to start from. True: that of `hypsplit_dp`, which is optimal by itself.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, None)`` for each improving
        partition.

    Returns
    -------
    Outcome
        With a valid ``bound_s``, also at the time limit.

    Raises
    ------
    ValueError, TypeError
        If the objective is a property of the schedule, a package cannot be imported, or an
        option is wrong.
    """
    options = (warm_start, on_improve)
    return _partition(instance, "highs", "partition_highs", time_limit_s, seed, *options)


def partition_cbc(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Find an optimal partition by the MILP of `partition_highs`, with CBC on one thread.

    PuLP does not return the bound of CBC. At the time limit, the bound is read from its log.
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
    """Build the MILP, solve it by a backend, and convert the answer."""
    require_callable(method, on_improve)
    deadline = Deadline(time_limit_s)
    own = partial(hypsplit_dp, instance, time_limit_s=time_limit_s, seed=seed)
    warm, _ = given_start(instance, method, warm_start, own)
    started_s = deadline.spent_s()
    try:
        model = build(instance, method, deadline)
    except OutOfTime as late:
        build_s = deadline.spent_s() - started_s
        return without_model(instance, warm, SOLVERS[backend], late.min_s, build_s)
    hinted = warm is not None and _add_hint(model, warm)
    build_s = deadline.spent_s() - started_s

    def partition_of(value: Callable[[Any], float]) -> Partition:
        used = np.array([value(variable) > 0.5 for variable in model.use])
        return to_partition(model.arcs, used, instance.n_tiers)

    def bound_s(bound: float) -> float:
        return mip_bound_s(bound * model.unit_s)

    def report(columns: Any, bound: float) -> None:
        partition = partition_of(lambda variable: columns[variable.index])
        assert on_improve is not None
        known_s = max(bound_s(bound), model.limits.min_s)
        on_improve(evaluate(instance, partition), known_s, partition, None)

    answer = solve_pulp(
        model.problem,
        backend,
        method,
        deadline,
        seed,
        built_s=build_s,
        warm_start=hinted,
        on_solution=None if on_improve is None else report,
    )
    found = partition_of(lambda variable: variable.value()) if answer.found else None
    best = cheaper_partition(instance, found, warm)
    return to_outcome(
        instance,
        best,
        solver=SOLVERS[backend],
        stopped=answer.stopped,
        infeasible=answer.infeasible,
        bound_s=bound_s(answer.bound),
        claimed_s=answer.value * model.unit_s if best is found else None,
        min_s=model.limits.min_s,
        upper_s=model.limits.upper_s,
        statistics={**size(model.problem), "build_s": build_s + answer.build_s},
    )


def build(
    instance: Instance, method: str = "partition_highs", deadline: Deadline | None = None
) -> PartitionMilp:
    """Build the MILP of an instance; `method` is named in errors.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    pulp = load_backend(method, "pulp", "pulp>=3.3,<4")
    deadline = deadline or Deadline(math.inf)
    arcs, limits = usable_arcs(instance, method, deadline)
    worst, added, unit_s = scale_costs(arcs, limits, instance.n_tiers)
    deadline.min_s = limits.min_s
    deadline.require()
    problem = pulp.LpProblem(f"partition_{instance.objective}")
    use = [
        problem.add_variable(f"use_{arcs.label(a)}", cat="Binary")
        for a in deadline.each(range(len(arcs)))
    ]
    objective = list(zip(use, added, strict=True))
    if instance.objective is not Objective.PATH:
        objective.append((_add_worst_stage(problem, arcs, use, worst, deadline), 1.0))
    problem += pulp.LpAffineExpression(objective)
    _add_cuts(problem, instance, arcs, use, deadline)
    if instance.objective is Objective.P0:
        _add_node_choice(problem, arcs, use)
    return PartitionMilp(problem, use, arcs, unit_s, limits)


def _add_cuts(
    problem: Any, instance: Instance, arcs: Arcs, use: list[Any], deadline: Deadline
) -> None:
    """Use one arc per tier, each from the cut at which the previous arc ends."""
    import pulp

    balance: dict[tuple[int, int], list[tuple[Any, float]]] = {(0, 0): []}
    balance[instance.n_tiers, instance.n_blocks] = []
    for a, variable in enumerate(deadline.each(use)):
        k = int(arcs.tier[a])
        balance.setdefault((k, int(arcs.first[a])), []).append((variable, 1.0))
        balance.setdefault((k + 1, int(arcs.end[a])), []).append((variable, -1.0))
    for (k, c), terms in deadline.each(balance.items()):
        out = (k == 0) - (k == instance.n_tiers)  # one path leaves cut 0, one ends at n_blocks
        problem.addConstraint(pulp.LpAffineExpression(terms) == out, f"cut_{k}_{c}")


def _add_worst_stage(
    problem: Any, arcs: Arcs, use: list[Any], worst: list[float], deadline: Deadline
) -> Any:
    """Add a variable that is at least as large as every stage time."""
    import pulp

    largest = problem.add_variable("worst_stage", lowBound=0)
    for k in deadline.each(np.unique(arcs.tier)):
        terms = [(use[a], worst[a]) for a in np.flatnonzero(arcs.tier == k)]
        time_of_stage = pulp.LpAffineExpression([*terms, (largest, -1.0)])
        problem.addConstraint(time_of_stage <= 0, f"stage_{k}")
    return largest


def _add_node_choice(problem: Any, arcs: Arcs, use: list[Any]) -> None:
    """Add a binary per group of identical nodes: whether it runs the stage of its tier."""
    import pulp

    for n in np.unique(arcs.choice):
        node = problem.add_variable(f"node_{n}", cat=pulp.LpBinary)
        terms = [(use[a], 1.0) for a in np.flatnonzero(arcs.choice == n)]
        chosen_node = pulp.LpAffineExpression([*terms, (node, -1.0)])
        problem.addConstraint(chosen_node == 0, f"node_choice_{n}")


def _add_hint(model: PartitionMilp, warm: Partition) -> bool:
    """Give every variable the initial value of a partition.

    Return False if an arc of the partition was left out as too costly.
    """
    path = arcs_on(model.arcs, warm)
    if path is None:
        return False
    values = {f"use_{model.arcs.label(a)}": 1.0 for a in path}
    values |= {f"node_{model.arcs.choice[a]}": 1.0 for a in path}
    values["worst_stage"] = float(model.arcs.worst_s[path].max()) / model.unit_s
    for variable in model.problem.variables():
        variable.setInitialValue(values.get(variable.name, 0.0), check=False)
    return True
