"""`joint_milp`: partition and schedule together, as a MILP in PuLP for HiGHS or CBC."""

import math
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.backends.pulp import SOLVERS, size, solve_pulp
from hypsolve.solvers.clock import NEVER, Deadline, OutOfTime
from hypsolve.solvers.joint.decision import (
    Decision,
    arcs_of,
    is_tabulated,
    no_partition,
    proven_s,
    report_decision,
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
from hypsolve.solvers.outcomes import OnImprove, WarmStart, require_callable
from hypsolve.solvers.partition.arcs import MIP_ERROR, MIP_STEP, mip_unit_s

METHOD = "joint_milp"


class JointMilp(NamedTuple):
    """The model and its variables. The objective is in `tables.unit_s`, arrivals included."""

    problem: Any  # pulp.LpProblem
    tables: JointTables
    use: list[list[Any]]  # [tier][arc]: the tier has this stage
    on: dict[tuple[int, int], Any]  # [request, node]: the node serves the request
    before: dict[tuple[int, int, int], Any]  # [request, other, tier]: request ends first
    apart: list[tuple[int, int, int]]  # known: request ends before other can start
    start: list[list[Any]]  # [request][tier]
    end: list[list[Any]]


def joint_milp(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    backend: str = "highs",
    warm_start: WarmStart = True,
    on_improve: OnImprove | None = None,
) -> Outcome:
    """Find an optimal partition and schedule jointly, by a MILP through PuLP (one thread).

    The model has one binary per tier and arc, and one per request and node. Two requests that
    can be on a tier at the same time have two more, for their order on a shared node. Each
    big-M is the smallest that the time windows of the requests allow. `joint_cpsat` states the
    same rules, each in a function of the same name.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        For warm start, model and solver together. HiGHS may run over it by up to 2 s on models
        of 60 requests and 3,000 arcs a tier, for its presolve does not look at the clock.
    seed : int
        The solver's random seed.
    backend : str
        ``highs`` or ``cbc``.
    warm_start : bool, Outcome, Result or (Partition, Schedule)
        Solution to start from. True: the solution of the method ``hyperion``.
    on_improve : callable, optional
        HiGHS only. Called as ``on_improve(objective_s, bound_s, partition, schedule)`` for each
        better solution.

    Returns
    -------
    Outcome
        Its ``bound_s`` is valid at the time limit, too.

    Raises
    ------
    ValueError, TypeError
        If the objective does not depend on the schedule, the backend is unknown or cannot be
        imported, an option is invalid, or CBC is given `on_improve`.
    """
    valid.known("backend", backend, tuple(SOLVERS))
    require_callable(METHOD, on_improve)
    if backend == "cbc" and on_improve is not None:
        raise ValueError(f"method {METHOD!r}: on_improve needs backend='highs', got 'cbc'")
    load_backend(METHOD, "pulp", "pulp>=3.3,<4")
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
        return without_model(instance, warm, SOLVERS[backend], min_s, build_s)
    hinted = warm is not None and is_tabulated(formulation.tables, warm)
    if warm is not None and hinted:
        _add_hint(formulation, warm)
    build_s = deadline.spent_s() - started_s

    def report(columns: Any, bound: float) -> None:
        decision = _decision(formulation, lambda variable: columns[variable.index])
        proven = proven_s(instance, formulation.tables, bound, MIP_ERROR)
        assert on_improve is not None
        report_decision(on_improve, instance, decision, max(min_s, proven))

    answer = solve_pulp(
        formulation.problem,
        backend,
        METHOD,
        deadline,
        seed,
        built_s=build_s,
        warm_start=hinted,
        on_solution=None if on_improve is None else report,
    )
    solved = _decision(formulation, lambda variable: variable.value()) if answer.found else None
    proven = proven_s(instance, formulation.tables, answer.bound, MIP_ERROR)
    # infeasibility is always false here: each request by itself has a feasible path
    false_claim = "with a false claim of infeasibility"
    return to_joint_outcome(
        instance,
        solved,
        warm,
        solver=SOLVERS[backend],
        stopped=false_claim if answer.infeasible else answer.stopped,
        bound_s=0.0 if answer.infeasible else proven,
        min_s=min_s,
        claimed_s=formulation.tables.objective_s(
            answer.value, instance.objective, instance.release_s
        ),
        statistics={**size(formulation.problem), "build_s": build_s + answer.build_s},
    )


def _decision(formulation: JointMilp, value: Any) -> Decision:
    tables = formulation.tables
    cuts = [0]
    for k, variables in enumerate(formulation.use):
        cuts.append(int(tables.end[k][int(np.argmax([value(v) for v in variables]))]))
    node = np.full((tables.n_requests, tables.n_tiers), -1)
    for (r, n), variable in formulation.on.items():
        if value(variable) > 0.5:
            node[r, tables.node_tier[n]] = n
    # not by start times: tolerances may swap a stage of zero length with its neighbour
    ahead = np.zeros(
        (tables.n_tiers, tables.n_requests)
    )  # number of requests before it on its node
    for (p, q, k), variable in formulation.before.items():
        if value(variable) > 0.5 and node[p, k] == node[q, k]:
            ahead[k, q] += 1
    for p, q, k in formulation.apart:
        ahead[k, q] += node[p, k] == node[q, k]
    return Decision(Partition(tuple(cuts)), node, np.argsort(ahead, axis=1, kind="stable"))


def build(
    instance: Instance, warm: Decision | None = None, deadline: Deadline = NEVER
) -> JointMilp:
    """Build the model; with a warm start, only solutions at least as good are feasible.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    pulp = load_backend(METHOD, "pulp", "pulp>=3.3,<4")
    deadline.require()
    tables = joint_tables(instance, METHOD)
    require_partition(windows(tables), METHOD)
    incumbent = None if warm is None else table_times(tables, warm)[1][:, -1]
    deadline.require()
    tables, last = drop_dominated(tables, instance.objective, incumbent, deadline)
    deadline.require()
    unit_s = mip_unit_s(min_objective_s(tables, instance.objective))
    tables = tables.scale(unit_s).rounded_down(MIP_STEP)
    last = last / tables.unit_s * (1 + SLACK)
    deadline.require()
    window = windows(tables)
    problem = pulp.LpProblem(f"joint_{instance.objective}")
    use = _add_cuts(problem, tables)
    deadline.require()
    start, end = _add_release(problem, tables, window, last)
    on = _add_assignment(problem, tables, use, start, end, deadline)
    _add_precedence(problem, tables, use, start, end)
    before, apart = _add_no_overlap(problem, tables, on, start, end, deadline)
    _add_symmetry(problem, tables, on)
    add_objective = _add_makespan if instance.objective is Objective.MAKESPAN else _add_latency
    add_objective(problem, end, window, last)
    return JointMilp(problem, tables, use, on, before, apart, start, end)


def _sum(terms: Any) -> Any:
    import pulp

    return pulp.LpAffineExpression(list(terms))


def _add_cuts(problem: Any, tables: JointTables) -> list[list[Any]]:
    """Use one arc per tier, from the cut where the arc of the tier before ends."""
    use = [
        [
            problem.add_variable(f"use_{k}_{i}_{j}", cat="Binary")
            for i, j in zip(tables.first[k], tables.end[k], strict=True)
        ]
        for k in range(tables.n_tiers)
    ]
    for k, variables in enumerate(use):
        problem.addConstraint(_sum((v, 1.0) for v in variables) == 1, f"stage_{k}")
        if k:
            entering, leaving = tables.end[k - 1], tables.first[k]
            for c in np.union1d(entering, leaving):
                flow = [(use[k - 1][a], 1.0) for a in np.flatnonzero(entering == c)]
                flow += [(variables[a], -1.0) for a in np.flatnonzero(leaving == c)]
                problem.addConstraint(_sum(flow) == 0, f"cut_{k}_{c}")
    return use


def _add_release(
    problem: Any, tables: JointTables, window: Windows, last: Array
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Start and end each stage within the time window of the request."""
    start: list[list[Any]] = []
    end: list[list[Any]] = []
    for r in range(tables.n_requests):
        spans = [
            (float(window.head[r, k]), float(last[r] - window.tail[r, k]))
            for k in range(tables.n_tiers)
        ]
        for variables, name in ((start, "start"), (end, "end")):
            variables.append(
                [problem.add_variable(f"{name}_{r}_{k}", *span) for k, span in enumerate(spans)]
            )
    return start, end


def _add_assignment(
    problem: Any,
    tables: JointTables,
    use: list[list[Any]],
    start: list[list[Any]],
    end: list[list[Any]],
    deadline: Deadline,
) -> dict[tuple[int, int], Any]:
    """Assign each request to one node that can hold the stage, for its service time there.

    An empty stage has no node.
    """
    on: dict[tuple[int, int], Any] = {}
    for k in range(tables.n_tiers):
        fastest = tables.fastest(k)
        for r in deadline.each(range(tables.n_requests)):
            least = fastest[tables.row(fastest, r)]
            took = [(end[r][k], 1.0), (start[r][k], -1.0)]
            served = [(use[k][a], 1.0) for a in tables.empty(k)]
            floor = [(v, -t) for v, t in zip(use[k], least.tolist(), strict=True)]
            problem.addConstraint(_sum([*took, *floor]) >= 0, f"least_{r}_{k}")
            for n in tables.nodes(k):
                on[r, n] = problem.add_variable(f"on_{r}_{n}", cat="Binary")
                served.append((on[r, n], 1.0))
                table = tables.service[tables.group[n]]
                row = table[tables.row(table, r)]
                misfit = np.isinf(row)
                if misfit.any():
                    fits = [(use[k][a], 1.0) for a in np.flatnonzero(misfit)]
                    problem.addConstraint(_sum([(on[r, n], 1.0), *fits]) <= 1, f"fit_{r}_{n}")
                service = np.where(misfit, least, row)
                big = float((service - least).max())  # no other node is faster by more
                if big > 0:
                    own = [(v, -t) for v, t in zip(use[k], service.tolist(), strict=True)]
                    rule = _sum([*took, *own, (on[r, n], -big)]) >= -big
                    problem.addConstraint(rule, f"service_{r}_{n}")
            problem.addConstraint(_sum(served) == 1, f"served_{r}_{k}")
    return on


def _add_precedence(
    problem: Any,
    tables: JointTables,
    use: list[list[Any]],
    start: list[list[Any]],
    end: list[list[Any]],
) -> None:
    """Start a stage after the stage before has ended and its output is transferred."""
    for k in range(tables.n_tiers - 1):
        for r in range(tables.n_requests):
            row = tables.transfer[tables.row(tables.transfer, r), k][tables.end[k]]
            crossing = [(v, -t) for v, t in zip(use[k], row.tolist(), strict=True)]
            rule = _sum([(start[r][k + 1], 1.0), (end[r][k], -1.0), *crossing]) >= 0
            problem.addConstraint(rule, f"precedence_{r}_{k}")


def _add_no_overlap(
    problem: Any,
    tables: JointTables,
    on: dict[tuple[int, int], Any],
    start: list[list[Any]],
    end: list[list[Any]],
    deadline: Deadline,
) -> tuple[dict[tuple[int, int, int], Any], list[tuple[int, int, int]]]:
    """Let a node serve one request at a time: one of two ends before the other starts."""
    before: dict[tuple[int, int, int], Any] = {}
    apart = []
    for k in range(tables.n_tiers):
        for r in deadline.each(range(tables.n_requests)):
            for other in range(r):
                pair = ((r, other), (other, r))
                known = [
                    (p, q, k) for p, q in pair if end[p][k].upBound <= start[q][k].lowBound
                ]
                if known:
                    apart.append(known[0])
                    continue
                for p, q in pair:
                    before[p, q, k] = problem.add_variable(f"before_{p}_{q}_{k}", cat="Binary")
                    big = end[p][k].upBound - start[q][k].lowBound
                    gap = _sum([(start[q][k], 1.0), (end[p][k], -1.0), (before[p, q, k], -big)])
                    problem.addConstraint(gap >= -big, f"order_{p}_{q}_{k}")
                either = [(before[p, q, k], 1.0) for p, q in pair]
                problem.addConstraint(_sum(either) <= 1, f"pair_{r}_{other}_{k}")
                for n in tables.nodes(k):
                    share = [*either, (on[r, n], -1.0), (on[other, n], -1.0)]
                    problem.addConstraint(_sum(share) >= -1, f"share_{r}_{other}_{n}")
    return before, apart


def _add_symmetry(problem: Any, tables: JointTables, on: dict[tuple[int, int], Any]) -> None:
    """Break the symmetry of identical nodes.

    A request uses a node only if a request with a smaller number uses the node before it.
    """
    for n, twin in tables.twins():
        for r in range(tables.n_requests):
            first = _sum([*((on[q, n], 1.0) for q in range(r)), (on[r, twin], -1.0)])
            problem.addConstraint(first >= 0, f"twin_{r}_{twin}")


def _add_latency(problem: Any, end: list[list[Any]], window: Windows, last: Array) -> None:
    """Minimise the sum of the completion times, for the mean latency."""
    problem += _sum((stages[-1], 1.0) for stages in end)


def _add_makespan(problem: Any, end: list[list[Any]], window: Windows, last: Array) -> None:
    """Minimise the last completion time, the makespan."""
    makespan = problem.add_variable(
        "makespan", float(window.min_completion.max()), float(last.max())
    )
    for r, stages in enumerate(end):
        problem.addConstraint(_sum([(makespan, 1.0), (stages[-1], -1.0)]) >= 0, f"last_{r}")
    problem += _sum([(makespan, 1.0)])


def _add_hint(formulation: JointMilp, warm: Decision) -> None:
    """Hint a solution to the solver: a value for every variable."""
    problem, tables, use, on, before, _, start, end = formulation
    arcs = arcs_of(tables, warm.partition)
    starts, ends = table_times(tables, warm)
    for k, variables in enumerate(use):
        for a, variable in enumerate(variables):
            variable.setInitialValue(int(a == arcs[k]))
    for (r, n), variable in on.items():
        variable.setInitialValue(int(warm.node[r, tables.node_tier[n]] == n))
    for (p, q, k), variable in before.items():
        rank = warm.order[k].tolist()
        shared = warm.node[p, k] == warm.node[q, k] >= 0 and rank.index(p) < rank.index(q)
        variable.setInitialValue(int(shared))
    for variables, times in ((start, starts), (end, ends)):
        for r, k in np.ndindex(times.shape):
            low, high = variables[r][k].lowBound, variables[r][k].upBound
            variables[r][k].setInitialValue(min(max(float(times[r, k]), low), high))
    for variable in problem.variables():
        if variable.name == "makespan":
            variable.setInitialValue(float(ends[:, -1].max()), check=False)
