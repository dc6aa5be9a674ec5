"""The two-stage methods: a partition, then online dispatch on it."""

import math
from collections.abc import Callable
from dataclasses import replace

from hypsolve.dispatch.policies import Choose
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.solution import Outcome, Status
from hypsolve.solvers.partition.heuristics import even_split
from hypsolve.solvers.partition.hypsplit import hypsplit_dp

Method = Callable[..., Outcome]


def hyperion(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    partition_objective: Objective | str = Objective.BOTTLENECK,
) -> Outcome:
    """Hyperion [1]_: HypSplit-DP places the blocks, HypSched-RT dispatches the requests.

    On a partition objective it is `hypsplit_dp` with a schedule; on a scheduled one, stage 1
    minimises `partition_objective` and nothing is proved (``bound_s`` 0).

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.
    """
    return two_stage(
        hypsplit_dp,
        "hypsched_rt",
        instance,
        time_limit_s=time_limit_s,
        seed=seed,
        partition_objective=partition_objective,
    )


def gpipe(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """The paper's GPipe baseline: equal block counts, requests dealt round robin."""
    return two_stage(even_split, "round_robin", instance, time_limit_s=time_limit_s, seed=seed)


def _asks_more(instance: Instance, stage_1: Instance) -> bool:
    """Whether stage 1 asks more than the instance: that every node can hold the stage."""
    return (
        instance.objective.is_scheduled
        and stage_1.objective is Objective.BOTTLENECK
        and instance.stage_rule is StageRule.SLOWEST
    )


def two_stage(
    method: Method,
    policy: str | Choose,
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    partition_objective: Objective | str = Objective.BOTTLENECK,
    **options: object,
) -> Outcome:
    """Complete a partition method by a dispatch policy."""
    stage_1 = instance
    if instance.objective.is_scheduled:
        wanted = valid.one_of("method", "partition_objective", partition_objective, Objective)
        if wanted.is_scheduled:
            raise ValueError(
                f"partition_objective must be bottleneck, path or p0, got {wanted.value!r}"
            )
        stage_1 = instance.replace(objective=wanted)
    outcome = method(stage_1, time_limit_s=time_limit_s, seed=seed, **options)
    if outcome.partition is None:
        proved_here = math.isinf(outcome.bound_s)  # a baseline that does not fit proves nothing
        if proved_here and _asks_more(instance, stage_1):
            return Outcome(
                Status.UNKNOWN,
                message=f"stage 1 has no answer, its rule is slowest; {outcome.message}",
            )
        return outcome
    done = schedule(instance, outcome.partition, policy, seed=seed)
    if not instance.objective.is_scheduled:
        return replace(outcome, schedule=done)
    # optimal for stage 1 says nothing of the schedule
    note = f"stage 1: {outcome.status} for {stage_1.objective}; {outcome.message}".rstrip("; ")
    return replace(
        outcome,
        status=Status.FEASIBLE,
        schedule=done,
        bound_s=0.0,
        certificate=None,
        message=note,
    )
