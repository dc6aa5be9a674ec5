"""The front door: the METHODS table, and `solve`, which times, scores and checks each."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.joint.cpsat import joint_cpsat
from hypsolve.solvers.joint.heft import heft, heft_split
from hypsolve.solvers.joint.hyperion_plus import hyperion_plus
from hypsolve.solvers.joint.joint_exact import joint_exact
from hypsolve.solvers.joint.milp import joint_milp
from hypsolve.solvers.joint.two_stage import gpipe, hyperion, two_stage
from hypsolve.solvers.partition.cpsat import partition_cpsat
from hypsolve.solvers.partition.heuristics import (
    deepspeed_balanced,
    even_split,
    memory_proportional,
    pipedream,
    speed_proportional,
    torchgpipe,
)
from hypsolve.solvers.partition.hypsplit import hypsplit_dp
from hypsolve.solvers.partition.mathopt_mip import partition_scip
from hypsolve.solvers.partition.pulp_milp import partition_cbc, partition_highs

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
    exact: bool = False
    objectives: tuple[Objective, ...] = PARTITION
    kernels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Method: function must be callable, got {self.function!r:.60}")
        if self.decides not in ("partition", "both"):
            raise ValueError(f"Method: decides must be partition or both, got {self.decides!r}")


def _exact(function: Callable[..., Outcome], decides: str = "partition") -> Method:
    """An exact formulation; those of partition and schedule start from Hyperion's answer."""
    if decides == "partition":
        return Method(function, "partition", True, kernels=("hypsplit",))
    return Method(function, "both", True, SCHEDULED, ("hypsplit", "dispatch"))


METHODS: dict[str, Method] = {
    "hyperion": Method(
        hyperion, "both", False, PARTITION + SCHEDULED, ("hypsplit", "dispatch")
    ),
    "hyperion_plus": Method(
        hyperion_plus,
        "both",
        False,
        SCHEDULED,
        ("hypsplit", "dispatch", "heft", "relaxations", "list_scheduling"),
    ),
    "gpipe": Method(gpipe, "both", False, PARTITION + SCHEDULED, ("dispatch",)),
    "heft": Method(heft, "both", False, PARTITION + SCHEDULED, ("heft",)),
    "hypsplit_dp": Method(hypsplit_dp, "partition", True, kernels=("hypsplit",)),
    "even_split": Method(even_split, "partition", False),
    "memory_proportional": Method(memory_proportional, "partition", False),
    "speed_proportional": Method(speed_proportional, "partition", False),
    "torchgpipe": Method(torchgpipe, "partition", False),
    "deepspeed_balanced": Method(deepspeed_balanced, "partition", False),
    "pipedream": Method(pipedream, "partition", False),
    "heft_split": Method(heft_split, "partition", False),
    "partition_cbc": _exact(partition_cbc),
    "partition_highs": _exact(partition_highs),
    "partition_cpsat": _exact(partition_cpsat),
    "partition_scip": _exact(partition_scip),
    "joint_cpsat": _exact(joint_cpsat, "both"),
    "joint_milp": _exact(joint_milp, "both"),
    "joint_exact": Method(
        joint_exact,
        "both",
        True,
        SCHEDULED,
        ("hypsplit", "dispatch", "subgradient", "beam_search"),
    ),
}


def solve(
    instance: Instance,
    method: str | Method | Callable[..., Outcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Answer an instance with a method; time it, score the answer again, and check it.

    Parameters
    ----------
    instance : Instance
    method : str, callable or Method
        A name in METHODS, or your own function
        ``(instance, *, time_limit_s, seed, **options) -> Outcome``, held to the same checks.
        One that decides the partition alone is ``Method(function, "partition")``.
    time_limit_s : float
        What an exact method may spend on its search; building its model comes on top.
    seed : int
    **options
        The method's own. A method that decides the partition alone also takes ``policy``
        (default ``hypsched_rt``, a name in POLICIES or a callable) and ``partition_objective``
        (default ``bottleneck``) where the objective is a scheduled one. For the others see
        ``help(METHODS[name].function)``.

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
    KeyboardInterrupt
        At Ctrl-C, within about a second; what was found is lost, unless ``on_improve``
        (`joint_exact`, `joint_cpsat`, `joint_milp`) kept it.
    """
    hint = " (hypsolve.to_instance makes one of a Deployment)"
    valid.of_type("solve", "instance", instance, Instance, hint)
    time_limit_s = valid.real("solve", "time_limit_s", time_limit_s, strict=True)
    seed = valid.whole("solve", "seed", seed)
    name, entry = _look_up(method)
    function, kernels = entry.function, entry.kernels
    said: list[tuple[Instance, Outcome]] = []  # of stage 1, by somebody's function
    completed = entry.decides == "partition" and instance.objective.is_scheduled
    if completed:
        policy = options.pop("policy", "hypsched_rt")
        kept = (
            entry.function if isinstance(method, str) else _keeping(name, entry.function, said)
        )
        function, kernels = _completed(kept, policy), (*kernels, "dispatch")
    elif instance.objective not in entry.objectives:
        raise ValueError(
            f"{name}: objective must be one of {', '.join(entry.objectives)},"
            f" got {instance.objective}"
        )
    _check_options(name, entry.function, options, completed)
    if kernels:
        warm(*kernels)
    started = time.perf_counter()
    outcome = _an_outcome(
        name, function(instance, time_limit_s=time_limit_s, seed=seed, **options)
    )
    solve_time_s = time.perf_counter() - started
    for stage_1, of_stage_1 in said:
        _certify(stage_1, f"{name}, stage 1", of_stage_1, 0.0)
    return _certify(instance, name, outcome, solve_time_s)


def _look_up(method: str | Method | Callable[..., Outcome]) -> tuple[str, Method]:
    if isinstance(method, Method):
        return getattr(method.function, "__name__", "method"), method
    if callable(method):
        return _look_up(Method(method, "both", objectives=PARTITION + SCHEDULED))
    return method, METHODS[valid.known("method", method, METHODS)]


def _keeping(
    name: str, function: Callable[..., Outcome], said: list[tuple[Instance, Outcome]]
) -> Callable[..., Outcome]:
    """Keep what a function says, to be checked when its time is taken."""

    def run(instance: Instance, **options: Any) -> Outcome:
        outcome = _an_outcome(name, function(instance, **options))
        said.append((instance, outcome))
        return outcome

    return run


def _an_outcome(name: str, outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{name}: must return an Outcome, got {outcome!r:.60}")
    return outcome


def _completed(function: Callable[..., Outcome], policy: Any) -> Callable[..., Outcome]:
    def run(instance: Instance, **options: Any) -> Outcome:
        return two_stage(function, policy, instance, **options)

    return run


def options_of(function: Callable[..., Outcome]) -> set[str] | None:
    """Names of the options that a method takes; None: any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"time_limit_s", "seed"}


def _check_options(
    name: str, function: Callable[..., Outcome], options: dict[str, Any], completed: bool
) -> None:
    """A wrong option is an error that lists the right ones, before any work."""
    takes = options_of(function)
    if takes is None:
        return
    if completed:
        takes |= {"policy", "partition_objective"}
    for option in options:
        if option not in takes:
            listed = ", ".join(sorted(takes)) or "none"
            why = ""
            if option in ("policy", "partition_objective"):
                why = " (that is for methods that decide a partition, on a scheduled objective)"
            raise TypeError(f"{name}: unknown option {option!r}; it takes {listed}{why}")


def _certify(instance: Instance, name: str, outcome: Outcome, solve_time_s: float) -> Result:
    """Score and check with `evaluate` alone."""
    objective_s, gap, status = math.inf, math.nan, outcome.status
    bound_s = float(outcome.bound_s)
    if outcome.partition is not None:
        if outcome.schedule is None and instance.objective.is_scheduled:
            raise ValueError(
                f"{name}: returned no schedule for objective {instance.objective}; a method"
                ' that decides the partition alone is hypsolve.Method(function, "partition")'
            )
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
