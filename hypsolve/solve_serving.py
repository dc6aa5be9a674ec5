"""`solve_serving`, the part of `solve` for a `ServingInstance`, and `THROUGHPUT_METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import validation as valid
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import (
    ServedRate,
    check_serving,
    evaluate_serving,
)
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_result import ServingOutcome, ServingResult
from hypsolve.problem.solution import Partition, Status
from hypsolve.solvers.backends.loading import preload
from hypsolve.solvers.throughput import integer_programs, rules
from hypsolve.solvers.throughput.exact import throughput_exact
from hypsolve.solvers.throughput.server_arrays import FAMILIES


@dataclass(frozen=True, slots=True)
class ThroughputMethod:
    """A method for a `ServingInstance` and its properties.

    Attributes
    ----------
    function : callable
        ``(instance, *, time_limit_s, seed, **options) -> ServingOutcome``.
    exact : bool
        Whether the method proves optimality in the fluid model, given enough time.
    kernels : tuple of str
        Families of kernels that `solve` compiles before the clock starts.
    backends : tuple of str
        Modules of other solvers that `solve` imports before the clock starts.
    """

    function: Callable[..., ServingOutcome]
    exact: bool = False
    kernels: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"ThroughputMethod: function must be callable, got {self.function!r:.60}"
            )


THROUGHPUT_METHODS: dict[str, ThroughputMethod] = {
    "throughput_exact": ThroughputMethod(throughput_exact, True, ("throughput",)),
    "throughput_highs": ThroughputMethod(
        integer_programs.throughput_highs, True, ("throughput",), ("pulp", "highspy")
    ),
    "throughput_cpsat": ThroughputMethod(
        integer_programs.throughput_cpsat,
        True,
        ("throughput",),
        ("ortools.sat.python.cp_model",),
    ),
    "bottleneck_split": ThroughputMethod(rules.bottleneck_split, kernels=("hypsplit",)),
    "path_split": ThroughputMethod(rules.path_split, kernels=("hypsplit",)),
    "p0_split": ThroughputMethod(rules.p0_split, kernels=("hypsplit",)),
    "even_split": ThroughputMethod(rules.even_split),
    "memory_proportional": ThroughputMethod(rules.memory_proportional),
    "speed_proportional": ThroughputMethod(rules.speed_proportional),
}
"""Methods that `hypsolve.solve` takes for a `ServingInstance`."""


def solve_serving(
    instance: ServingInstance,
    method: str | ThroughputMethod | Callable[..., ServingOutcome],
    other_methods: tuple[str, ...],
    *,
    time_limit_s: float,
    seed: int,
    **options: Any,
) -> ServingResult:
    """Solve a serving instance with a method, and score its split by the fluid model.

    `hypsolve.solve` calls this; its arguments are explained there. `other_methods` are the
    names of the methods for an `Instance`.
    """
    name, entry = _look_up(method, other_methods)
    valid.known_options(name, options, valid.options_of(entry.function))
    if entry.kernels:
        warm(*_families(entry, instance))
    preload(*entry.backends)
    started = time.perf_counter()
    outcome = entry.function(instance, time_limit_s=time_limit_s, seed=seed, **options)
    solve_time_s = time.perf_counter() - started
    if not isinstance(outcome, ServingOutcome):
        raise TypeError(f"{name}: must return a ServingOutcome, got {outcome!r:.60}")
    return _certified(instance, name, outcome, solve_time_s)


def _families(entry: ThroughputMethod, instance: ServingInstance) -> list[str]:
    """Return the families of kernels of a method; of ``throughput``, the part of the mode."""
    of_mode = {"throughput": FAMILIES[instance.rules.batching]}
    return [of_mode.get(family, family) for family in entry.kernels]


def _look_up(
    method: str | ThroughputMethod | Callable[..., ServingOutcome],
    other_methods: tuple[str, ...],
) -> tuple[str, ThroughputMethod]:
    if isinstance(method, ThroughputMethod):
        return getattr(method.function, "__name__", "method"), method
    if isinstance(method, str):
        if method in other_methods and method not in THROUGHPUT_METHODS:
            raise ValueError(
                f"solve: method {method!r} solves Instance, got a ServingInstance; methods for"
                f" it: {', '.join(THROUGHPUT_METHODS)}"
            )
        return method, THROUGHPUT_METHODS[valid.known("method", method, THROUGHPUT_METHODS)]
    if callable(method):
        return _look_up(ThroughputMethod(method), other_methods)
    raise TypeError(
        f"solve: method must be a name, a function or a ThroughputMethod for a"
        f" ServingInstance, got {method!r:.60}"
    )


def _certified(
    instance: ServingInstance, name: str, outcome: ServingOutcome, solve_time_s: float
) -> ServingResult:
    served = None
    if outcome.partition is not None:
        served = _scored(instance, name, outcome.partition)
    status = outcome.status
    if served is not None and served.fluid_requests_per_s == 0:
        # a rule that does not know of targets: its split fits, and misses them at every rate
        if status is Status.OPTIMAL:
            raise RuntimeError(f"{name}: claims optimal for a split that carries no rate")
        status, served = Status.INFEASIBLE, None
    result = ServingResult(
        method=name,
        status=status,
        instance=instance,
        partition=outcome.partition if served is not None else None,
        served=served,
        fluid_bound=outcome.fluid_bound,
        alternatives=tuple(
            (partition, _scored(instance, name, partition))
            for partition in outcome.alternatives
        ),
        solve_time_s=solve_time_s,
        message=outcome.message,
        statistics=outcome.statistics,
        certificate=outcome.certificate,
    )
    _check_bound(result)
    return result


def _scored(instance: ServingInstance, name: str, partition: Partition) -> ServedRate:
    violations = check_serving(instance, partition)
    if violations:
        raise RuntimeError(f"{name}: its answer breaks a rule: {violations[0]}")
    return evaluate_serving(instance, partition)


def _check_bound(result: ServingResult) -> None:
    """Raise RuntimeError if an answer passes its own bound, or is not as good as it claims."""
    if result.served is None or result.fluid_bound is None:
        return
    is_cost = result.instance.objective is ServingObjective.COST
    sign = -1 if is_cost else 1
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
