"""`solve_placement`, the part of `solve` for a `PlacementProblem`, and `PLACEMENT_METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import validation as valid
from hypsolve.problem.placement import Placement, PlacementObjective, PlacementProblem
from hypsolve.problem.placement_evaluation import (
    ServedPlacement,
    check_placement,
    evaluate_placement,
)
from hypsolve.problem.placement_result import PlacementOutcome, PlacementResult
from hypsolve.problem.solution import Status
from hypsolve.solvers.backends.loading import preload
from hypsolve.solvers.placement import exact, rules
from hypsolve.solvers.throughput.server_arrays import FAMILIES

ALL = tuple(PlacementObjective)
RATES = (PlacementObjective.THROUGHPUT, PlacementObjective.GOODPUT)


@dataclass(frozen=True, slots=True)
class PlacementMethod:
    """A method for a `PlacementProblem` and its properties.

    Attributes
    ----------
    function : callable
        ``(problem, *, time_limit_s, seed, **options) -> PlacementOutcome``.
    exact : bool
        Whether the method proves optimality in the fluid model, given enough time.
    objectives : tuple of PlacementObjective
    backends : tuple of str
        Modules of other solvers that `solve` imports before the clock starts.
    """

    function: Callable[..., PlacementOutcome]
    exact: bool = False
    objectives: tuple[PlacementObjective, ...] = ALL
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"PlacementMethod: function must be callable, got {self.function!r:.60}"
            )


PLACEMENT_METHODS: dict[str, PlacementMethod] = {
    "placement_highs": PlacementMethod(
        exact.placement_highs, exact=True, backends=("pulp", "highspy")
    ),
    "placement_cpsat": PlacementMethod(
        exact.placement_cpsat,
        exact=True,
        backends=("ortools.sat.python.cp_model", "highspy"),
    ),
    "replica_per_machine": PlacementMethod(rules.replica_per_machine, objectives=RATES),
    "pipelines_of_one_kind": PlacementMethod(rules.pipelines_of_one_kind, objectives=RATES),
    "memory_ring": PlacementMethod(rules.memory_ring, objectives=RATES),
    "kinds_as_tiers": PlacementMethod(rules.kinds_as_tiers, objectives=RATES),
    "equal_stages": PlacementMethod(rules.equal_stages, objectives=RATES),
    "greedy_fill": PlacementMethod(rules.greedy_fill, objectives=RATES),
}
"""Methods that `hypsolve.solve` takes for a `PlacementProblem`."""


def solve_placement(
    problem: PlacementProblem,
    method: str | PlacementMethod | Callable[..., PlacementOutcome],
    other_methods: tuple[str, ...],
    *,
    time_limit_s: float,
    seed: int,
    **options: Any,
) -> PlacementResult:
    """Solve a placement problem with a method, and score its answer by the fluid model.

    `hypsolve.solve` calls this; its arguments are explained there. `other_methods` are the
    names of the methods for other problems.
    """
    name, entry = _look_up(method, other_methods)
    if problem.objective not in entry.objectives:
        raise ValueError(
            f"{name}: objective must be one of {', '.join(entry.objectives)},"
            f" got {problem.objective}"
        )
    valid.known_options(name, options, valid.options_of(entry.function))
    warm(FAMILIES[problem.runtime.batching], "placement")
    preload(*entry.backends)
    started = time.perf_counter()
    outcome = entry.function(problem, time_limit_s=time_limit_s, seed=seed, **options)
    solve_time_s = time.perf_counter() - started
    if not isinstance(outcome, PlacementOutcome):
        raise TypeError(f"{name}: must return a PlacementOutcome, got {outcome!r:.60}")
    return _certified(problem, name, outcome, solve_time_s)


def _look_up(
    method: str | PlacementMethod | Callable[..., PlacementOutcome],
    other_methods: tuple[str, ...],
) -> tuple[str, PlacementMethod]:
    if isinstance(method, PlacementMethod):
        return getattr(method.function, "__name__", "method"), method
    if isinstance(method, str):
        if method in other_methods and method not in PLACEMENT_METHODS:
            raise ValueError(
                f"solve: method {method!r} does not solve a PlacementProblem; methods for it:"
                f" {', '.join(PLACEMENT_METHODS)}"
            )
        return method, PLACEMENT_METHODS[valid.known("method", method, PLACEMENT_METHODS)]
    if callable(method):
        return _look_up(PlacementMethod(method), other_methods)
    raise TypeError(
        "solve: method must be a name, a function or a PlacementMethod for a"
        f" PlacementProblem, got {method!r:.60}"
    )


def _certified(
    problem: PlacementProblem, name: str, outcome: PlacementOutcome, solve_time_s: float
) -> PlacementResult:
    served = None
    if outcome.placement is not None:
        served = _scored(problem, name, outcome.placement)
    result = PlacementResult(
        method=name,
        status=outcome.status,
        problem=problem,
        placement=outcome.placement,
        served=served,
        fluid_bound=outcome.fluid_bound,
        alternatives=tuple(
            (placement, _scored(problem, name, placement)) for placement in outcome.alternatives
        ),
        solve_time_s=solve_time_s,
        message=outcome.message,
        statistics=outcome.statistics,
    )
    _check_bound(result)
    return result


def _scored(problem: PlacementProblem, name: str, placement: Placement) -> ServedPlacement:
    violations = check_placement(problem, placement)
    if violations:
        raise RuntimeError(f"{name}: its answer breaks a rule: {violations[0]}")
    return evaluate_placement(problem, placement)


def _check_bound(result: PlacementResult) -> None:
    """Raise RuntimeError if an answer passes its own bound, or is not as good as it claims."""
    if result.status is Status.OPTIMAL and result.fluid_bound is None:
        raise RuntimeError(f"{result.method}: claims optimal without a bound")
    if result.served is None or result.fluid_bound is None:
        return
    sign = -1 if result.is_smaller_better else 1
    slack = 1e-6 * abs(result.fluid_bound)
    if sign * (result.objective - result.fluid_bound) > slack:
        raise RuntimeError(
            f"{result.method}: its answer of {result.objective!r} passes its own bound"
            f" {result.fluid_bound!r}"
        )
    if result.status is Status.OPTIMAL and result.fluid_gap > 1e-6:
        raise RuntimeError(
            f"{result.method}: claims optimal with a gap of {result.fluid_gap:.3g}"
        )
