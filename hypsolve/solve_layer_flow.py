"""The part of `solve` for a `LayerFlowProblem`, and `LAYER_FLOW_METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import validation as valid
from hypsolve.problem.layer_evaluation import check_layout, largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_result import LayerFlowOutcome, LayerFlowResult
from hypsolve.problem.solution import Status
from hypsolve.solvers.backends.loading import preload
from hypsolve.solvers.layer_flow.cpsat import layer_cpsat
from hypsolve.solvers.layer_flow.pulp_milp import layer_highs
from hypsolve.solvers.layer_flow.stage_dp import stage_dp

TOLERANCE = 1e-6  # relative


@dataclass(frozen=True, slots=True)
class LayerFlowMethod:
    """A method for a `LayerFlowProblem` and its properties.

    Attributes
    ----------
    function : callable
        ``(problem, *, time_limit_s, seed, **options) -> LayerFlowOutcome``.
    exact : bool
        Whether the method proves optimality, given enough time.
    backends : tuple of str
        Modules of other solvers that `solve` imports before the clock starts.
    """

    function: Callable[..., LayerFlowOutcome]
    exact: bool = False
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"LayerFlowMethod: function must be callable, got {self.function!r:.60}"
            )


LAYER_FLOW_METHODS: dict[str, LayerFlowMethod] = {
    "stage_dp": LayerFlowMethod(stage_dp, backends=("highspy",)),
    "layer_highs": LayerFlowMethod(layer_highs, exact=True, backends=("pulp", "highspy")),
    "layer_cpsat": LayerFlowMethod(
        layer_cpsat, exact=True, backends=("ortools.sat.python.cp_model",)
    ),
}
"""Methods that `hypsolve.solve` takes for a `LayerFlowProblem`."""


def solve_layer_flow(
    problem: LayerFlowProblem,
    method: str | LayerFlowMethod | Callable[..., LayerFlowOutcome],
    *,
    time_limit_s: float,
    seed: int,
    **options: Any,
) -> LayerFlowResult:
    """Solve a problem of flow through layers with a method, and compute its flow again.

    `hypsolve.solve` calls this; its arguments are explained there.
    """
    name, entry = _look_up(method)
    valid.known_options(name, options, valid.options_of(entry.function))
    warm("layer_flow")
    preload(*entry.backends)
    started = time.perf_counter()
    outcome = entry.function(problem, time_limit_s=time_limit_s, seed=seed, **options)
    solve_time_s = time.perf_counter() - started
    if not isinstance(outcome, LayerFlowOutcome):
        raise TypeError(f"{name}: must return a LayerFlowOutcome, got {outcome!r:.60}")
    return _certified(problem, name, outcome, solve_time_s)


def _look_up(
    method: str | LayerFlowMethod | Callable[..., LayerFlowOutcome],
) -> tuple[str, LayerFlowMethod]:
    if isinstance(method, LayerFlowMethod):
        return getattr(method.function, "__name__", "method"), method
    if isinstance(method, str):
        name = valid.known("method for a LayerFlowProblem", method, LAYER_FLOW_METHODS)
        return name, LAYER_FLOW_METHODS[name]
    if callable(method):
        return _look_up(LayerFlowMethod(method))
    raise TypeError(
        "solve: method must be a name, a function or a LayerFlowMethod for a"
        f" LayerFlowProblem, got {method!r:.60}"
    )


def _certified(
    problem: LayerFlowProblem, name: str, outcome: LayerFlowOutcome, solve_time_s: float
) -> LayerFlowResult:
    layout, bound = outcome.layout, outcome.bound_tokens_per_s
    if layout is not None:
        violations = check_layout(problem, layout)
        if violations:
            raise RuntimeError(f"{name}: its answer breaks a rule: {violations[0]}")
        layout = largest_flow(problem, layout.ranges)
        violations = check_layout(problem, layout)
        if violations:
            raise RuntimeError(f"{name}: the flow of its answer breaks a rule: {violations[0]}")
        if layout.tokens_per_s > bound * (1 + TOLERANCE):
            raise RuntimeError(
                f"{name}: its answer of {layout.tokens_per_s!r} tokens/s passes its own bound"
                f" {bound!r}"
            )
    result = LayerFlowResult(
        method=name,
        status=outcome.status,
        problem=problem,
        layout=layout,
        bound_tokens_per_s=bound,
        certificate=outcome.certificate,
        solve_time_s=solve_time_s,
        message=outcome.message,
        statistics=outcome.statistics,
    )
    if result.status is Status.OPTIMAL and result.gap > TOLERANCE:
        raise RuntimeError(f"{name}: claims optimal with a gap of {result.gap:.3g}")
    return result
