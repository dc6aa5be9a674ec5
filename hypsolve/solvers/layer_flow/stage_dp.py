"""The method `stage_dp`: the best layout of stages, with a covering bound on all layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import LayerLayout
from hypsolve.problem.layer_result import LayerFlowOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.layer_flow.covering_bound import CoveringBound
from hypsolve.solvers.layer_flow.stage_search import search

SEARCH_SHARE = 0.7  # of the time limit, before the bound


def stage_dp(problem: LayerFlowProblem, *, time_limit_s: float, seed: int) -> LayerFlowOutcome:
    """Share the layers of each stage among its machines; bound the flow of every layout.

    The layout is the best one of stages: ranges that overlap otherwise are not tried. The
    bound holds for all layouts, and its certificate can be verified. See `stage_search` and
    `covering_bound`.
    """
    deadline = Deadline(time_limit_s)
    covering = CoveringBound(problem, "stage_dp")
    layout, n = search(covering, Deadline(SEARCH_SHARE * time_limit_s), seed)
    flow = layout.tokens_per_s if layout else 0.0
    bound, certificate = covering.bound(flow, deadline)
    statistics = {"flows": n, "covers": len(covering.covers)}
    return to_layer_outcome(layout, bound, statistics, certificate)


def to_layer_outcome(
    layout: LayerLayout | None,
    bound: float,
    statistics: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
    message: str = "",
) -> LayerFlowOutcome:
    """Return the outcome of a layout and a bound; without flow, no layout is a solution."""
    if layout is not None and layout.tokens_per_s <= 0:
        layout = None
    status = Status.FEASIBLE if layout else Status.UNKNOWN
    if layout and layout.tokens_per_s >= bound * (1 - 1e-6):
        status, bound = Status.OPTIMAL, max(bound, layout.tokens_per_s)
    if layout is None and bound <= 0:
        status = Status.INFEASIBLE
    return LayerFlowOutcome(
        status,
        layout,
        bound_tokens_per_s=bound if math.isfinite(bound) else math.inf,
        certificate=certificate,
        message=message,
        statistics=statistics,
    )
