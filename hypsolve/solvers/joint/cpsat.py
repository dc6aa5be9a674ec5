"""`joint_cpsat`: partition and schedule together, as a constraint program for CP-SAT."""

import math
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solvers.backends.cpsat import PACKAGE, new_solver, run, size, stopped
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import NEVER, Deadline, OutOfTime
from hypsolve.solvers.joint.decision import (
    Decision,
    arcs_of,
    is_tabulated,
    no_partition,
    proven_s,
    report_decision,
    starting_order,
    table_times,
    to_joint_outcome,
    warm_decision,
    without_model,
)
from hypsolve.solvers.joint.tables import JointTables, joint_tables
from hypsolve.solvers.joint.time_windows import (
    SLACK,
    Windows,
    drop_dominated,
    idle_bound_s,
    min_objective_s,
    require_partition,
    windows,
)
from hypsolve.solvers.outcomes import OnBound, OnImprove, WarmStart, require_callable

METHOD = "joint_cpsat"
RESOLUTION = 2e-7  # share of the objective that rounding the longest chain down may hide
MAX_SUM_TICKS = 2.0**56  # sums of completions stay below, far from 2**62


class JointCp(NamedTuple):
    """The model and its variables. The objective is in `tables.unit_s`, arrivals included."""

    model: Any  # cp_model.CpModel
    tables: JointTables
    use: list[list[Any]]  # [tier][arc]: the tier has this stage
    on: dict[tuple[int, int], Any]  # [request, node]: the node serves the request
    start: list[list[Any]]  # [request][tier]
    end: list[list[Any]]


def joint_cpsat(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = True,
    workers: int = 1,
    on_improve: OnImprove | None = None,
    on_bound: OnBound | None = None,
) -> Outcome:
    """Find an optimal partition and schedule jointly, by OR-Tools' CP-SAT.

    The model has one literal per tier and arc, and one optional interval per request and node.
    Times are whole ticks of 2**-q s. Arrivals, transfers and service times are rounded down,
    so the bound holds for the exact times; the schedule found is scheduled again with those.
    `joint_milp` states the same rules, each in a function of the same name.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        For warm start, model and solver together.
    seed : int
        CP-SAT's ``random_seed``.
    warm_start : bool, Outcome, Result or (Partition, Schedule)
        Solution to start from. True: the solution of the method ``hyperion``.
    workers : int
        Threads, at most 10000.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, schedule)`` for each better
        solution, from the solver's thread.
    on_bound : callable, optional
        Called as ``on_bound(bound_s)`` for each better bound, from the solver's thread.

    Returns
    -------
    Outcome
        Its ``bound_s`` is valid at the time limit, too.
    """
    require_callable(METHOD, on_improve)
    require_callable(METHOD, on_bound, "on_bound")
    solver = new_solver(METHOD, seed, workers)
    deadline = Deadline(time_limit_s)
    tables = joint_tables(instance, METHOD)
    warm = warm_decision(instance, tables, METHOD, warm_start, time_limit_s, seed)
    min_s = idle_bound_s(instance, tables)
    if math.isinf(min_s):
        return no_partition(instance)
    started_s = deadline.spent_s()
    try:
        formulation = build(instance, warm, deadline)
    except OutOfTime:
        build_s = deadline.spent_s() - started_s
        return without_model(instance, warm, "CP-SAT", min_s, build_s)
    if warm is not None and is_tabulated(formulation.tables, warm):
        _add_hint(formulation, warm)
    build_s = deadline.spent_s() - started_s

    def report(callback: Any) -> None:
        decision = _decision(formulation, callback.value)
        assert on_improve is not None
        report_decision(on_improve, instance, decision, bound_of(callback.best_objective_bound))

    def bound_of(value: float) -> float:
        return max(min_s, proven_s(instance, formulation.tables, value, 0.0))

    if on_bound is not None:
        solver.best_bound_callback = lambda value: on_bound(bound_of(value))
    code, copy_s = run(
        solver, formulation.model, deadline, None if on_improve is None else report
    )
    solved = None
    if solver.status_name(code) in ("OPTIMAL", "FEASIBLE"):
        solved = _decision(formulation, solver.value)
    return to_joint_outcome(
        instance,
        solved,
        warm,
        solver="CP-SAT",
        stopped=stopped(solver, code),
        bound_s=proven_s(instance, formulation.tables, solver.best_objective_bound, 0.0),
        min_s=min_s,
        statistics={**size(formulation.model), "build_s": build_s + copy_s},
    )


def _decision(formulation: JointCp, value: Any) -> Decision:
    tables = formulation.tables
    cuts = [0]
    for k, literals in enumerate(formulation.use):
        cuts.append(int(tables.end[k][[value(literal) for literal in literals].index(1)]))
    node = np.full((tables.n_requests, tables.n_tiers), -1)
    for (r, n), literal in formulation.on.items():
        if value(literal):
            node[r, tables.node_tier[n]] = n
    start, end = (
        np.array([[value(v) for v in row] for row in times], np.float64)
        for times in (formulation.start, formulation.end)
    )
    return Decision(Partition(tuple(cuts)), node, starting_order(start, end))


def _tick_s(tables: JointTables, objective: Objective, last: Array) -> float:
    """Return the seconds of a tick: a power of two, fine unless sums would get too large."""
    steps = 2 * tables.n_tiers * tables.n_requests
    fine = min_objective_s(tables, objective) * RESOLUTION / steps
    n_terms = max(tables.n_requests, max(map(len, tables.first)))
    coarse = float(last.max()) * n_terms / MAX_SUM_TICKS
    return 2.0 ** math.ceil(math.log2(max(fine, coarse, 2.0**-900)))


def build(
    instance: Instance, warm: Decision | None = None, deadline: Deadline = NEVER
) -> JointCp:
    """Build the model; with a warm start, only solutions at least as good are feasible.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    cp_model = load_backend(METHOD, "ortools.sat.python.cp_model", PACKAGE)
    deadline.require()
    tables = joint_tables(instance, METHOD)
    require_partition(windows(tables), METHOD)
    incumbent = None if warm is None else table_times(tables, warm)[1][:, -1]
    deadline.require()
    tables, last = drop_dominated(tables, instance.objective, incumbent, deadline)
    deadline.require()
    tables = tables.scale(_tick_s(tables, instance.objective, last)).rounded_down(1.0)
    last = np.floor(last / tables.unit_s * (1 + SLACK)) + 1
    deadline.require()
    window = windows(tables)
    model = cp_model.CpModel()
    model.name = f"joint_{instance.objective}"
    use = _add_cuts(model, tables)
    deadline.require()
    start, end = _add_release(model, tables, window, last)
    on, intervals = _add_assignment(model, tables, use, start, end, deadline)
    _add_precedence(model, tables, use, start, end, deadline)
    _add_no_overlap(model, intervals)
    _add_symmetry(model, tables, on)
    add_objective = _add_makespan if instance.objective is Objective.MAKESPAN else _add_latency
    add_objective(model, end, window, last)
    return JointCp(model, tables, use, on, start, end)


def _add_cuts(model: Any, tables: JointTables) -> list[list[Any]]:
    """Use one arc per tier, from the cut where the arc of the tier before ends."""
    use = [
        [
            model.new_bool_var(f"use_{k}_{i}_{j}")
            for i, j in zip(tables.first[k], tables.end[k], strict=True)
        ]
        for k in range(tables.n_tiers)
    ]
    for k, literals in enumerate(use):
        model.add_exactly_one(literals)
        if k:
            entering, leaving = tables.end[k - 1], tables.first[k]
            for c in np.union1d(entering, leaving):
                arrive = [use[k - 1][a] for a in np.flatnonzero(entering == c)]
                model.add(sum(arrive) == sum(literals[a] for a in np.flatnonzero(leaving == c)))
    return use


def _add_release(
    model: Any, tables: JointTables, window: Windows, last: Array
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Start and end each stage within the time window of the request."""
    start, end = [], []
    for r in range(tables.n_requests):
        spans = [
            (int(window.head[r, k]), int(last[r] - window.tail[r, k]))
            for k in range(tables.n_tiers)
        ]
        start.append(
            [model.new_int_var(*span, f"start_{r}_{k}") for k, span in enumerate(spans)]
        )
        end.append([model.new_int_var(*span, f"end_{r}_{k}") for k, span in enumerate(spans)])
    return start, end


def _add_assignment(
    model: Any,
    tables: JointTables,
    use: list[list[Any]],
    start: list[list[Any]],
    end: list[list[Any]],
    deadline: Deadline,
) -> tuple[dict[tuple[int, int], Any], dict[int, list[Any]]]:
    """Assign each request to one node that can hold the stage, for its service time there.

    An empty stage has no node.
    """
    on: dict[tuple[int, int], Any] = {}
    intervals: dict[int, list[Any]] = {}
    took: dict[tuple[int, int], Any] = {}
    for k in range(tables.n_tiers):
        fastest = tables.fastest(k)
        floor = [
            _table_var(model, use[k], row, f"least_{k}_{r}")
            for r, row in enumerate(deadline.each(fastest))
        ]
        empty = [use[k][a] for a in tables.empty(k)]
        for n in tables.nodes(k):
            g = int(tables.group[n])
            table = tables.service[g]
            for r in deadline.each(range(tables.n_requests)):
                row = tables.row(table, r)
                misfit = [use[k][a] for a in np.flatnonzero(np.isinf(table[row]))]
                if (g, row) not in took:
                    took[g, row] = _table_var(model, use[k], table[row], f"service_{g}_{row}")
                on[r, n] = model.new_bool_var(f"on_{r}_{n}")
                intervals.setdefault(n, []).append(
                    model.new_optional_interval_var(
                        start[r][k], took[g, row], end[r][k], on[r, n], f"run_{r}_{n}"
                    )
                )
                if misfit:
                    model.add_at_most_one([on[r, n], *misfit])
        for r in range(tables.n_requests):
            model.add_exactly_one([*(on[r, n] for n in tables.nodes(k)), *empty])
            model.add(end[r][k] >= start[r][k] + floor[tables.row(fastest, r)])
    return on, intervals


def _table_var(model: Any, use: list[Any], values: Array, name: str) -> Any:
    """Return an integer variable of at least the value of the arc in use (0 for inf).

    An equation would make CP-SAT encode every value by a literal; longer times never help.
    """
    ticks = [int(v) if math.isfinite(v) else 0 for v in values]
    variable = model.new_int_var(min(ticks), max(ticks), name)
    terms = [(t, literal) for t, literal in zip(ticks, use, strict=True) if t]
    model.add(sum(t * literal for t, literal in terms) <= variable)
    return variable


def _add_precedence(
    model: Any,
    tables: JointTables,
    use: list[list[Any]],
    start: list[list[Any]],
    end: list[list[Any]],
    deadline: Deadline,
) -> None:
    """Start a stage after the stage before has ended and its output is transferred."""
    for k in range(tables.n_tiers - 1):
        crossing = [
            _table_var(model, use[k], row[tables.end[k]], f"transfer_{k}_{r}")
            for r, row in enumerate(deadline.each(tables.transfer[:, k]))
        ]
        for r in range(tables.n_requests):
            travel = crossing[tables.row(tables.transfer, r)]
            model.add(start[r][k + 1] >= end[r][k] + travel)


def _add_no_overlap(model: Any, intervals: dict[int, list[Any]]) -> None:
    """Let a node serve one request at a time."""
    for runs in intervals.values():
        model.add_no_overlap(runs)


def _add_symmetry(model: Any, tables: JointTables, on: dict[tuple[int, int], Any]) -> None:
    """Break the symmetry of identical nodes.

    A request uses a node only if a request with a smaller number uses the node before it.
    """
    for n, twin in tables.twins():
        for r in range(tables.n_requests):
            model.add_bool_or([*(on[q, n] for q in range(r)), on[r, twin].negated()])


def _add_latency(model: Any, end: list[list[Any]], window: Windows, last: Array) -> None:
    """Minimise the sum of the completion times, for the mean latency."""
    model.minimize(sum(stages[-1] for stages in end))


def _add_makespan(model: Any, end: list[list[Any]], window: Windows, last: Array) -> None:
    """Minimise the last completion time, the makespan."""
    makespan = model.new_int_var(int(window.min_completion.max()), int(last.max()), "makespan")
    for stages in end:
        model.add(makespan >= stages[-1])
    model.minimize(makespan)


def _add_hint(formulation: JointCp, warm: Decision) -> None:
    """Hint the partition and the nodes of a solution to the solver, but no times.

    With hints of starts and ends, CP-SAT 9.15 on one worker stayed at the hinted schedule: it
    did not find an optimum that was better by 4 % for three requests.
    """
    model, tables, use, on = formulation[:4]
    arcs = arcs_of(tables, warm.partition)
    for k, literals in enumerate(use):
        for a, literal in enumerate(literals):
            model.add_hint(literal, a == arcs[k])
    for (r, n), literal in on.items():
        model.add_hint(literal, bool(warm.node[r, tables.node_tier[n]] == n))
