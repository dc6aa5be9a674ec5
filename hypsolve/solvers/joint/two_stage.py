"""Two-stage methods: a partition method, then online dispatch on its partition."""

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
    """Run Hyperion [1]_: HypSplit-DP places the blocks, HypSched-RT dispatches the requests.

    Parameters
    ----------
    instance : Instance
        On a partition objective, `hypsplit_dp` gives the answer, and a schedule is added.
    time_limit_s, seed : float, int
        Handed to HypSplit-DP and to HypSched-RT.
    partition_objective : Objective or str
        ``bottleneck``, ``path`` or ``p0``: minimised by the first stage if the objective of the
        instance is ``mean_latency`` or ``makespan``.

    Returns
    -------
    Outcome
        On ``mean_latency`` and ``makespan`` it is FEASIBLE at best, with ``bound_s`` 0: an
        optimal partition does not make the schedule optimal.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 1.0], [2.0, 2.0]]], [1, 1], [[(0, 2)], [(1, 2)]],
    ...     arrival_s=[0, 0], objective="makespan",
    ... )
    >>> hs.solve(instance, "hyperion").objective_s
    5.0
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
    """Run the paper's GPipe baseline: equal block counts, requests dispatched round robin."""
    return two_stage(even_split, "round_robin", instance, time_limit_s=time_limit_s, seed=seed)


def _requires_more(instance: Instance, stage_1: Instance) -> bool:
    """Return True if stage 1 alone requires every node of a tier to hold the tier's stage."""
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
    """Run a partition method, then dispatch the requests on its partition by a policy.

    Parameters
    ----------
    method : callable
        A partition method, called with `options`.
    policy : str or callable
        A name in `POLICIES`, or a policy function.
    instance : Instance
    time_limit_s, seed : float, int
    partition_objective : Objective or str
        Objective of the partition method if the instance has a scheduled objective.

    Returns
    -------
    Outcome
        With a schedule if there is a partition. On a scheduled objective ``bound_s`` is 0.

    Raises
    ------
    ValueError
        If `partition_objective` is a scheduled objective.
    """
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
        is_proof = math.isinf(outcome.bound_s)  # a baseline that finds none proves nothing
        if is_proof and _requires_more(instance, stage_1):
            return Outcome(
                Status.UNKNOWN,
                message=f"stage 1 requires every node to hold its stage; {outcome.message}",
            )
        return outcome
    dispatched = schedule(instance, outcome.partition, policy, seed=seed)
    if not instance.objective.is_scheduled:
        return replace(outcome, schedule=dispatched)
    note = f"stage 1: {outcome.status} for {stage_1.objective}; {outcome.message}".rstrip("; ")
    return replace(
        outcome,
        status=Status.FEASIBLE,
        schedule=dispatched,
        bound_s=0.0,
        certificate=None,
        message=note,
    )
