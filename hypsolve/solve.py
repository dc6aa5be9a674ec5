"""The front door: the METHODS table, and `solve`, which times, scores and checks each."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve import evaluation
from hypsolve import validation as valid
from hypsolve.kernels.warm import warm
from hypsolve.problem import Instance, Objective
from hypsolve.result import Result
from hypsolve.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.heft import heft
from hypsolve.solvers.heuristics import (
    even_split,
    heft_split,
    memory_proportional,
    speed_proportional,
    torchgpipe,
)
from hypsolve.solvers.hyperion import gpipe, hyperion, two_stage
from hypsolve.solvers.hypsplit import hypsplit_dp
from hypsolve.solvers.later import Later

PARTITION = (Objective.BOTTLENECK, Objective.PATH, Objective.P0)
SCHEDULED = (Objective.MEAN_LATENCY, Objective.MAKESPAN)


@dataclass(frozen=True, slots=True)
class Method:
    """A function ``(instance, *, time_limit_s, seed, **options) -> Outcome``, and what it does.

    Attributes
    ----------
    function : callable
    decides : str
        ``partition``, or ``both``: the schedule too.
    exact : bool
        Whether it proves its answers on `objectives`, given time.
    objectives : tuple of Objective
        What it minimises itself. A method that decides the partition alone is completed by a
        dispatch policy where the objective is a scheduled one.
    kernels : tuple of str
        Families to compile before its clock starts.
    """

    function: Callable[..., Outcome]
    decides: str
    exact: bool
    objectives: tuple[Objective, ...] = PARTITION
    kernels: tuple[str, ...] = ()


def _exact(module: str, name: str) -> Method:
    """An exact formulation, ``partition_<backend>`` or ``joint_<backend>``."""
    function = Later(f"hypsolve.solvers.{module}", name)
    if name.startswith("partition"):
        return Method(function, "partition", True, kernels=("split",))
    return Method(function, "both", True, SCHEDULED, ("split", "dispatch"))


METHODS: dict[str, Method] = {
    "hyperion": Method(hyperion, "both", False, PARTITION + SCHEDULED, ("split", "dispatch")),
    "gpipe": Method(gpipe, "both", False, PARTITION + SCHEDULED, ("dispatch",)),
    "heft": Method(heft, "both", False, PARTITION + SCHEDULED, ("heft",)),
    "hypsplit_dp": Method(hypsplit_dp, "partition", True, kernels=("split",)),
    "even_split": Method(even_split, "partition", False),
    "memory_proportional": Method(memory_proportional, "partition", False),
    "speed_proportional": Method(speed_proportional, "partition", False),
    "torchgpipe": Method(torchgpipe, "partition", False),
    "heft_split": Method(heft_split, "partition", False),
    "partition_cbc": _exact("milp", "partition_cbc"),
    "partition_highs": _exact("milp", "partition_highs"),
    "partition_cpsat": _exact("cpsat", "partition_cpsat"),
    "partition_scip": _exact("mip", "partition_scip"),
    "joint_cpsat": _exact("joint_cpsat", "joint_cpsat"),
    "joint_milp": _exact("joint_milp", "joint_milp"),
}


def solve(
    instance: Instance,
    method: str | Callable[..., Outcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Answer an instance with a method; time it, score the answer again, and check it.

    Parameters
    ----------
    instance : Instance
    method : str or callable
        A name in METHODS, or your own function
        ``(instance, *, time_limit_s, seed, **options) -> Outcome``, held to the same checks.
    time_limit_s : float
        What an exact method may spend on its search; building its model comes on top.
    seed : int
    **options
        The method's own. A method that decides the partition alone also takes ``policy``
        (default ``hypsched_rt``, a name in POLICIES or a callable) and ``partition_objective``
        (default ``bottleneck``) where the objective is a scheduled one.

    Returns
    -------
    Result

    Raises
    ------
    ValueError, TypeError
        For a wrong name, option or value, naming it.
    RuntimeError
        If the decision breaks a rule or beats its own bound by more than 10^-6: a bug of the
        method.
    """
    if not isinstance(instance, Instance):
        raise TypeError(f"solve: instance must be an Instance, got {instance!r:.60}")
    time_limit_s = valid.real("solve", "time_limit_s", time_limit_s, strict=True)
    seed = valid.whole("solve", "seed", seed)
    name, entry = _look_up(method)
    function, kernels = entry.function, entry.kernels
    completed = entry.decides == "partition" and instance.objective.is_scheduled
    if completed:
        policy = options.pop("policy", "hypsched_rt")
        function, kernels = _completed(entry.function, policy), (*kernels, "dispatch")
    elif instance.objective not in entry.objectives:
        raise ValueError(
            f"{name}: objective must be one of {', '.join(entry.objectives)},"
            f" got {instance.objective}"
        )
    _check_options(name, entry.function, options, completed)
    if kernels:
        warm(*kernels)
    started = time.perf_counter()
    outcome = function(instance, time_limit_s=time_limit_s, seed=seed, **options)
    solve_time_s = time.perf_counter() - started
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{name}: must return an Outcome, got {outcome!r:.60}")
    return _certify(instance, name, outcome, solve_time_s)


def _look_up(method: str | Callable[..., Outcome]) -> tuple[str, Method]:
    if callable(method):
        name = getattr(method, "__name__", repr(method))
        return name, Method(method, "both", False, PARTITION + SCHEDULED)
    return method, METHODS[valid.known("method", method, METHODS)]


def _completed(function: Callable[..., Outcome], policy: Any) -> Callable[..., Outcome]:
    def run(instance: Instance, **options: Any) -> Outcome:
        return two_stage(function, policy, instance, **options)

    return run


def _check_options(
    name: str, function: Callable[..., Outcome], options: dict[str, Any], completed: bool
) -> None:
    """A wrong option is an error that lists the right ones, before any work."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    takes = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"time_limit_s", "seed"}
    if completed:
        takes |= {"policy", "partition_objective"}
    for option in options:
        if option not in takes:
            listed = ", ".join(sorted(takes)) or "none"
            raise TypeError(f"{name}: unknown option {option!r}; it takes {listed}")


def _certify(instance: Instance, name: str, outcome: Outcome, solve_time_s: float) -> Result:
    """Score and check with `evaluate` alone."""
    objective_s, gap, status = math.inf, math.nan, outcome.status
    bound_s = float(outcome.bound_s)
    if math.isnan(bound_s):
        raise RuntimeError(f"{name}: claims a bound of nan")
    if outcome.partition is not None:
        objective_s = _checked_score(instance, name, outcome.partition, outcome.schedule)
        if objective_s < bound_s * (1 - 1e-6):
            raise RuntimeError(
                f"{name}: its answer of {objective_s!r} s is below its own bound {bound_s!r} s"
            )
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            raise RuntimeError(f"{name}: claims {status} but returns a partition")
        gap = 0.0 if objective_s == 0 else max(0.0, (objective_s - bound_s) / objective_s)
        if status is Status.OPTIMAL and gap > 1e-6:
            raise RuntimeError(f"{name}: claims optimal with a gap of {gap:.3g}")
    elif status in (Status.OPTIMAL, Status.FEASIBLE):
        raise RuntimeError(f"{name}: claims {status} but returns no partition")
    return Result(
        method=name,
        status=status,
        objective_s=objective_s,
        bound_s=bound_s,
        gap=gap,
        solve_time_s=solve_time_s,
        instance=instance,
        partition=outcome.partition,
        schedule=outcome.schedule,
        certificate=outcome.certificate,
        message=outcome.message,
        statistics=outcome.statistics,
    )


def _checked_score(
    instance: Instance, name: str, partition: Partition, schedule: Schedule | None
) -> float:
    violations = evaluation.check(instance, partition, schedule)
    if violations:
        raise RuntimeError(f"{name}: its answer breaks a rule: {violations[0]}")
    return evaluation.evaluate(instance, partition, schedule)
