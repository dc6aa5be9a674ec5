"""`solve`, which times, scores and checks a method, and the table `METHODS`."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_result import LayerFlowOutcome, LayerFlowResult
from hypsolve.problem.placement import PlacementProblem
from hypsolve.problem.placement_result import PlacementOutcome, PlacementResult
from hypsolve.problem.result import Result
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_result import ServingOutcome, ServingResult
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solve_layer_flow import LayerFlowMethod, solve_layer_flow
from hypsolve.solve_placement import PLACEMENT_METHODS, PlacementMethod, solve_placement
from hypsolve.solve_serving import THROUGHPUT_METHODS, ThroughputMethod, solve_serving
from hypsolve.solvers.backends.loading import preload
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
CP_SAT = "ortools.sat.python.cp_model"
MATH_OPT = ("ortools.math_opt.python.mathopt", "ortools.util.python.solve_interrupter")
SCHEDULED = (Objective.MEAN_LATENCY, Objective.MAKESPAN)
DISPATCH_OPTIONS = {"policy", "partition_objective"}
"""Options that complete a method which decides the partition alone."""


@dataclass(frozen=True, slots=True)
class Method:
    """A solution method and its properties.

    Attributes
    ----------
    function : callable
        ``(instance, *, time_limit_s, seed, **options) -> Outcome``.
    decides : str
        ``partition``, or ``both`` for partition and schedule.
    exact : bool
        Whether the method proves optimality on `objectives`, given enough time.
    objectives : tuple of Objective
        Objectives that the method minimises. If it decides the partition alone, `solve` adds a
        dispatch policy for the objectives ``mean_latency`` and ``makespan``.
    kernels : tuple of str
        Families of kernels that `solve` compiles before the clock starts.
    score : callable, optional
        ``(partition) -> seconds``, in place of `hypsolve.evaluate`: for a method that scores
        partitions by simulation and makes no schedule.
    bound_s : float
        A lower bound on the objective of the instance that was proved beforehand, in seconds.
        The bound of a result with a partition is at least this, and a solution that reaches it
        is optimal.
    backends : tuple of str
        Modules of other solvers that `solve` imports before the clock starts.

    Examples
    --------
    >>> import hypsolve as hs
    >>> def all_on_the_last(instance, *, time_limit_s, seed):
    ...     cuts = (0,) * instance.n_tiers + (instance.n_blocks,)
    ...     return hs.Outcome("feasible", hs.Partition(cuts))
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]], allow_empty=True,
    ...     objective="makespan",
    ... )
    >>> hs.solve(instance, hs.Method(all_on_the_last, "partition")).objective_s
    3.0
    """

    function: Callable[..., Outcome]
    decides: str
    exact: bool = False
    objectives: tuple[Objective, ...] = PARTITION
    kernels: tuple[str, ...] = ()
    score: Callable[[Partition], float] | None = None
    bound_s: float = 0.0
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Method: function must be callable, got {self.function!r:.60}")
        if self.decides not in ("partition", "both"):
            raise ValueError(f"Method: decides must be partition or both, got {self.decides!r}")
        valid.real("Method", "bound_s", self.bound_s)


def _exact(
    function: Callable[..., Outcome], *backends: str, decides: str = "partition"
) -> Method:
    """Return the entry of an exact formulation.

    Joint formulations start from Hyperion's solution, so they need the kernels of dispatch.
    """
    if decides == "partition":
        return Method(function, decides, True, kernels=("hypsplit",), backends=backends)
    kernels = ("hypsplit", "dispatch")
    return Method(function, decides, True, SCHEDULED, kernels, backends=backends)


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
    "partition_cbc": _exact(partition_cbc, "pulp"),
    "partition_highs": _exact(partition_highs, "pulp", "highspy"),
    "partition_cpsat": _exact(partition_cpsat, CP_SAT),
    "partition_scip": _exact(partition_scip, *MATH_OPT),
    "joint_cpsat": _exact(joint_cpsat, CP_SAT, decides="both"),
    "joint_milp": _exact(joint_milp, "pulp", "highspy", decides="both"),
    "joint_exact": Method(
        joint_exact,
        "both",
        True,
        SCHEDULED,
        ("hypsplit", "dispatch", "subgradient", "beam_search"),
    ),
}


@overload
def solve(
    instance: Instance,
    method: str | Method | Callable[..., Outcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> Result: ...
@overload
def solve(
    instance: ServingInstance,
    method: str | ThroughputMethod | Callable[..., ServingOutcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> ServingResult: ...
@overload
def solve(
    instance: PlacementProblem,
    method: str | PlacementMethod | Callable[..., PlacementOutcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> PlacementResult: ...
@overload
def solve(
    instance: LayerFlowProblem,
    method: str | LayerFlowMethod | Callable[..., LayerFlowOutcome],
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> LayerFlowResult: ...
def solve(
    instance: Instance | ServingInstance | PlacementProblem | LayerFlowProblem,
    method: Any,
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> Result | ServingResult | PlacementResult | LayerFlowResult:
    """Solve an instance with a method, and certify the solution.

    The run of the method is timed, after its kernels are compiled and its solver is imported.
    Its solution is then scored by `hypsolve.evaluate` and checked by `hypsolve.check`, whatever
    the method claims. Infeasibility is reported as a result, not raised as an error.

    Parameters
    ----------
    instance : Instance, ServingInstance, PlacementProblem or LayerFlowProblem
        A `ServingInstance` has methods of its own, ``THROUGHPUT_METHODS``. Its answer is a
        split, which `hypsolve.problem.serving_evaluation` scores by the fluid model. A
        `PlacementProblem` has ``PLACEMENT_METHODS``; its answer is a placement, which
        `hypsolve.problem.placement_evaluation` scores. A `LayerFlowProblem`, the problem of
        Helix, has ``LAYER_FLOW_METHODS``.
    method : str, callable or Method
        A name in ``METHODS``, or a function
        ``(instance, *, time_limit_s, seed, **options) -> Outcome`` of your own that returns a
        partition and a schedule. Wrap a function that returns a partition alone:
        ``Method(function, "partition")``.
    time_limit_s : float
        Time limit of the method in seconds, with warm start, model and search. It is kept to
        within 1 s or 10 %, whichever is more; `joint_milp` states an exception. The methods
        that take polynomial time do not look at the clock; the slowest, ``deepspeed_balanced``
        and ``pipedream``, take about 2 s for 2,000 blocks on 30 tiers.
    seed : int
    **options
        Options of the method; see ``help(METHODS[name].function)``. A method that decides the
        partition alone takes two more if the objective is ``mean_latency`` or ``makespan``:
        ``policy`` (a name in ``POLICIES`` or a callable, default ``hypsched_rt``) and
        ``partition_objective`` (default ``bottleneck``).

    Returns
    -------
    Result, ServingResult, PlacementResult or LayerFlowResult
        The kind that belongs to the instance. The ``gap`` of a `Result` is ``(objective_s -
        bound_s) / objective_s``: the largest share of the objective that a better solution
        could save. It is 0 if the solution is proven optimal or the objective is 0, 1 if no
        bound is proved, and nan without a solution.

    Raises
    ------
    ValueError, TypeError
        For an invalid name, option or value; the message names it and suggests the closest
        valid one.
    RuntimeError
        If the solution breaks a rule or beats the method's own bound by more than 10^-6 of it.
        Either is a bug in the method.
    KeyboardInterrupt
        Raised about a second after Ctrl-C. The incumbent is lost unless ``on_improve`` of
        `joint_exact`, `joint_cpsat` or `joint_milp` has kept it.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     block_s=[[[1.0, 2.0, 3.0], [0.5, 1.0, 1.5]]],
    ...     block_bytes=[4, 4, 4],
    ...     tiers=[[(0, 8)], [(1, 8)]],
    ...     name="two tiers",
    ... )
    >>> result = hs.solve(instance, "hypsplit_dp")
    >>> result
    <Result of hypsplit_dp on 'two tiers': optimal, bottleneck 2.5 s, gap 0.000%>
    >>> print(result.partition)
    0:1 | 1:3
    """
    time_limit_s = valid.real("solve", "time_limit_s", time_limit_s, strict=True)
    seed = valid.whole("solve", "seed", seed)
    if isinstance(instance, ServingInstance):
        others = (*METHODS, *PLACEMENT_METHODS)
        return solve_serving(
            instance, method, others, time_limit_s=time_limit_s, seed=seed, **options
        )
    if isinstance(instance, PlacementProblem):
        others = (*METHODS, *THROUGHPUT_METHODS)
        return solve_placement(
            instance, method, others, time_limit_s=time_limit_s, seed=seed, **options
        )
    if isinstance(instance, LayerFlowProblem):
        return solve_layer_flow(
            instance, method, time_limit_s=time_limit_s, seed=seed, **options
        )
    hint = " (hypsolve.to_instance makes one of a Deployment)"
    valid.of_type("solve", "instance", instance, Instance, hint)
    name, entry = _look_up(method)
    function, kernels = entry.function, entry.kernels
    claims: list[tuple[Instance, Outcome]] = []  # claims of a user's function on the partition
    completed = entry.decides == "partition" and instance.objective.is_scheduled
    if completed:
        policy = options.pop("policy", "hypsched_rt")
        kept = (
            entry.function
            if isinstance(method, str)
            else _recorded(name, entry.function, claims)
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
    preload(*entry.backends)
    started = time.perf_counter()
    outcome = _checked_outcome(
        name, function(instance, time_limit_s=time_limit_s, seed=seed, **options)
    )
    solve_time_s = time.perf_counter() - started
    for partition_instance, claim in claims:
        _certify(partition_instance, f"{name}, stage 1", claim, 0.0)
    return _certify(instance, name, outcome, solve_time_s, entry.score, entry.bound_s)


def warm_methods(
    *methods: str,
    simulates: bool = False,
    pipelines: bool = False,
    families: Iterable[str] = (),
) -> None:
    """Compile or load all kernels of several methods at once.

    Notices of a compilation then count all families of kernels, and not those of one method.
    `simulates` adds the kernels of simulations at token level, with `pipelines` those of the
    batching modes in which batches pass whole pipelines, and `families` further ones.
    """
    needed = [*families] + [family for name in methods for family in METHODS[name].kernels]
    if simulates:
        needed.append("token_level.pipeline" if pipelines else "token_level")
    if needed:
        warm(*needed)


def _look_up(method: str | Method | Callable[..., Outcome]) -> tuple[str, Method]:
    if isinstance(method, Method):
        return getattr(method.function, "__name__", "method"), method
    if callable(method):
        return _look_up(Method(method, "both", objectives=PARTITION + SCHEDULED))
    if isinstance(method, str) and method in THROUGHPUT_METHODS and method not in METHODS:
        raise ValueError(
            f"solve: method {method!r} solves ServingInstance, got an Instance; methods for it:"
            f" {', '.join(METHODS)}"
        )
    return method, METHODS[valid.known("method", method, METHODS)]


def _recorded(
    name: str, function: Callable[..., Outcome], claims: list[tuple[Instance, Outcome]]
) -> Callable[..., Outcome]:
    """Record the outcomes of a function, to check them after the clock has stopped."""

    def run(instance: Instance, **options: Any) -> Outcome:
        outcome = _checked_outcome(name, function(instance, **options))
        claims.append((instance, outcome))
        return outcome

    return run


def _checked_outcome(name: str, outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{name}: must return an Outcome, got {outcome!r:.60}")
    return outcome


def _completed(function: Callable[..., Outcome], policy: Any) -> Callable[..., Outcome]:
    def run(instance: Instance, **options: Any) -> Outcome:
        return two_stage(function, policy, instance, **options)

    return run


def _check_options(
    name: str, function: Callable[..., Outcome], options: dict[str, Any], completed: bool
) -> None:
    """Raise TypeError for an unknown option; the message lists the known ones."""
    takes = valid.options_of(function)
    if takes is not None and completed:
        takes |= DISPATCH_OPTIONS
    why = (
        " (only a method that decides the partition alone takes it, for objective"
        " mean_latency or makespan)"
    )
    valid.known_options(name, options, takes, dict.fromkeys(DISPATCH_OPTIONS, why))


def _certify(
    instance: Instance,
    name: str,
    outcome: Outcome,
    solve_time_s: float,
    score: Callable[[Partition], float] | None = None,
    known_bound_s: float = 0.0,
) -> Result:
    """Return the result of an outcome, checked, and scored by `evaluate` or by `score`."""
    objective_s, gap, status = math.inf, math.nan, outcome.status
    bound_s = float(outcome.bound_s)
    if outcome.partition is not None:
        if score is None and outcome.schedule is None and instance.objective.is_scheduled:
            raise ValueError(
                f"{name}: returned no schedule for objective {instance.objective}; a method"
                ' that decides the partition alone is hypsolve.Method(function, "partition")'
            )
        objective_s = _checked_score(instance, name, outcome.partition, outcome.schedule, score)
        if objective_s >= known_bound_s * (1 - 1e-6):  # it may be above by rounding
            known_bound_s = min(known_bound_s, objective_s)
        bound_s = max(bound_s, known_bound_s)
        if known_bound_s and status is Status.FEASIBLE and objective_s <= bound_s:
            status = Status.OPTIMAL
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
    instance: Instance,
    name: str,
    partition: Partition,
    schedule: Schedule | None,
    score: Callable[[Partition], float] | None,
) -> float:
    violations = evaluation.check(instance, partition, schedule)
    if violations:
        raise RuntimeError(f"{name}: its answer breaks a rule: {violations[0]}")
    if score is not None:
        return score(partition)
    return evaluation.evaluate(instance, partition, schedule)
