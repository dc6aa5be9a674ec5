"""Helix's mixed-integer program of the flow through layers, by PuLP and HiGHS.

Variables: the first layer of each machine, whether it holds k layers, the tokens per second
of each pair of places, and whether tokens may go between them (Helix, ASPLOS'25, section 4).
Tokens may go from machine i to machine j if the first layer of j is at most the layer behind
i, and the layer behind j is larger.
"""

from __future__ import annotations

import math
from typing import Any

from hypsolve.problem.layer_evaluation import largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem, Place
from hypsolve.problem.layer_layout import HostedRange
from hypsolve.problem.layer_result import LayerFlowOutcome
from hypsolve.solvers.backends import pulp as backend
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.layer_flow.covering_bound import flow_limit
from hypsolve.solvers.layer_flow.stage_dp import to_layer_outcome

BOUND_ERROR = 1e-7  # relative, of the bound of HiGHS


def places_of(problem: LayerFlowProblem) -> dict[tuple[Place, Place], float]:
    """Return the pairs of places with a link, and the tokens per second that they can carry."""
    most = {
        m: max(problem.tokens_per_s[kind], default=0.0) for m, kind in problem.kinds.items()
    }
    pairs = {}
    for start, end in problem.links:
        ends = [most[place] for place in (start, end) if place is not None]
        limit = min(problem.link_rate(start, end), *ends)
        if limit > 0:
            pairs[start, end] = limit
    return pairs


def layer_highs(
    problem: LayerFlowProblem, *, time_limit_s: float, seed: int
) -> LayerFlowOutcome:
    """Solve Helix's mixed-integer program with HiGHS, without a warm start."""
    pulp = load_backend("layer_highs", "pulp", "pulp>=3.3,<4")
    deadline = Deadline(time_limit_s)
    n = problem.n_layers
    model = pulp.LpProblem("layers")
    names = {machine: m for m, machine in enumerate(problem.machines)}
    first: dict[Place, Any] = {
        m: _add(model, f"s{i}", 0, n, "Integer") for m, i in names.items()
    }
    holds = {
        m: [
            _add(model, f"b{i}_{k}", 0, 1, "Integer")
            for k in range(1, problem.max_layers(m) + 1)
        ]
        for m, i in names.items()
    }
    behind: dict[Place, Any] = {
        m: first[m] + pulp.lpSum(k * b for k, b in enumerate(holds[m], 1)) for m in names
    }
    into: dict[Place, list[Any]] = {place: [] for place in (None, *names)}
    out: dict[Place, list[Any]] = {place: [] for place in (None, *names)}
    for p, ((start, end), limit) in enumerate(places_of(problem).items()):
        flow = _add(model, f"f{p}", 0, limit, "Continuous")
        opens = _add(model, f"d{p}", 0, 1, "Integer")
        into[end].append(flow)
        out[start].append(flow)
        model += flow <= limit * opens
        if start is None:
            model += first[end] <= n * (1 - opens)
        elif end is None:
            model += behind[start] >= n * opens
        else:
            model += first[end] <= behind[start] + n * (1 - opens)
            model += behind[start] + 1 <= behind[end] + (n + 1) * (1 - opens)
    for m in names:
        model += pulp.lpSum(holds[m]) <= 1
        model += behind[m] <= n
        model += pulp.lpSum(into[m]) == pulp.lpSum(out[m])
        rates = [problem.rate(m, k) for k in range(1, len(holds[m]) + 1)]
        model += pulp.lpSum(into[m]) <= pulp.lpSum(
            r * b for r, b in zip(rates, holds[m], strict=True)
        )
    model.setObjective(-1 * pulp.lpSum(out[None]))  # the back end minimises
    most = flow_limit(problem)
    model += pulp.lpSum(out[None]) <= most * (1 + 1e-9)
    found = backend.solve_pulp(model, "highs", "layer_highs", deadline, seed)
    layout = None
    if found.found:
        ranges = []
        for m in names:
            held = sum(k for k, b in enumerate(holds[m], 1) if b.varValue > 0.5)
            if held:
                start = round(first[m].varValue)
                ranges.append(HostedRange(m, start, start + held))
        layout = largest_flow(problem, ranges) if ranges else None
    bound = most
    if math.isfinite(found.bound):
        bound = min(most, max(0.0, -found.bound) * (1 + BOUND_ERROR))
    return to_layer_outcome(layout, bound, backend.size(model), message=found.stopped)


def _add(model: Any, name: str, low: float, high: float, kind: str) -> Any:
    """Add a variable to a model."""
    return model.add_variable(name, low, high, kind)
