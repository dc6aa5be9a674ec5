"""Helix's program of the flow through layers as a model of OR-Tools' CP-SAT.

Tokens per second count in ticks. Rates of machines and links are rounded up to ticks, and a
largest flow between whole limits is whole, so no layout has a larger flow than the bound.
"""

from __future__ import annotations

import math
from typing import Any

from hypsolve.problem.layer_evaluation import largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem, Place
from hypsolve.problem.layer_layout import HostedRange
from hypsolve.problem.layer_result import LayerFlowOutcome
from hypsolve.solvers.backends import cpsat as backend
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.layer_flow.covering_bound import flow_limit
from hypsolve.solvers.layer_flow.pulp_milp import places_of
from hypsolve.solvers.layer_flow.stage_dp import to_layer_outcome

TICKS = 2**20
"""Ticks of the largest flow."""


def layer_cpsat(
    problem: LayerFlowProblem, *, time_limit_s: float, seed: int, workers: int = 1
) -> LayerFlowOutcome:
    """Solve Helix's program with CP-SAT on some threads, without a warm start."""
    deadline = Deadline(time_limit_s)
    solver = backend.new_solver("layer_cpsat", seed, workers)
    from ortools.sat.python import cp_model

    n, most = problem.n_layers, flow_limit(problem)
    per_token = TICKS / most if most > 0 else 1.0

    def ticks(rate: float) -> int:
        return math.ceil(min(rate, most) * per_token * (1 + 1e-12))

    model = cp_model.CpModel()
    first: dict[Place, Any] = {m: model.new_int_var(0, n, "") for m in problem.machines}
    behind: dict[Place, Any] = {m: model.new_int_var(0, n, "") for m in problem.machines}
    holds = {
        m: [model.new_bool_var("") for _ in range(problem.max_layers(m) + 1)]
        for m in problem.machines
    }
    into: dict[Place, list[Any]] = {place: [] for place in (None, *problem.machines)}
    out: dict[Place, list[Any]] = {place: [] for place in (None, *problem.machines)}
    for (start, end), limit in places_of(problem).items():
        flow = model.new_int_var(0, ticks(limit), "")
        opens = model.new_bool_var("")
        into[end].append(flow)
        out[start].append(flow)
        model.add(flow == 0).only_enforce_if(~opens)
        if start is None:
            model.add(first[end] == 0).only_enforce_if(opens)
        elif end is None:
            model.add(behind[start] == n).only_enforce_if(opens)
        else:
            model.add(first[end] <= behind[start]).only_enforce_if(opens)
            model.add(behind[start] < behind[end]).only_enforce_if(opens)
    for m in problem.machines:
        model.add_exactly_one(holds[m])
        model.add(behind[m] == first[m] + sum(k * b for k, b in enumerate(holds[m])))
        model.add(sum(into[m]) == sum(out[m]))
        rates = [ticks(problem.rate(m, k)) for k in range(len(holds[m]))]
        model.add(sum(into[m]) <= sum(r * b for r, b in zip(rates, holds[m], strict=True)))
    model.add(sum(out[None]) <= TICKS)
    model.maximize(sum(out[None]))
    code, _ = backend.run(solver, model, deadline, None)
    name, layout = solver.status_name(code), None
    if name in ("OPTIMAL", "FEASIBLE"):
        held = {m: solver.value(behind[m]) - solver.value(first[m]) for m in problem.machines}
        ranges = [
            HostedRange(m, solver.value(first[m]), solver.value(behind[m]))
            for m in problem.machines
            if held[m]
        ]
        layout = largest_flow(problem, ranges) if ranges else None
    bound = most
    if name in ("OPTIMAL", "FEASIBLE"):
        bound = min(most, math.ceil(solver.best_objective_bound - 1e-6) / per_token)
    return to_layer_outcome(
        layout, bound, backend.size(model), message=backend.stopped(solver, code)
    )
