"""`with_most_room`: HypSplit-DP that breaks ties by the room for KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypsolve.planning.rate_bound import stages_of
from hypsolve.problem import evaluation
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition
from hypsolve.solve import Method
from hypsolve.solvers.partition.hypsplit import hypsplit_dp, least_path_within

CLOSE = 1.01  # ratio of rooms that are not told apart
MAX_TRIALS = 40  # partitions that are computed to find the most room
MESSAGE = "; of equal splits, the one with the most room for KV cache"


def with_most_room(deployment: Deployment, rules: dict[str, Any]) -> Method:
    """Return HypSplit-DP that prefers room for KV cache among optimal partitions.

    The room of a partition is the number of tokens of KV cache that fit on each node, at least.
    A bisection over the room solves the instance again with as much memory reserved for KV
    cache. The room is maximised to within 1 %. The bound of HypSplit-DP is kept: the partition
    has the same objective, up to rounding. Under ``bottleneck``, where many partitions have the
    same objective, only those are preferred whose path is not longer, either.

    Parameters
    ----------
    deployment : Deployment
    rules : dict
        Keyword arguments of `hypsolve.to_instance`.
    """

    def run(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        outcome = hypsplit_dp(instance, time_limit_s=time_limit_s, seed=seed)
        if outcome.partition is None:
            return outcome

        def with_room(tokens: int) -> Partition | None:
            tighter = replace(deployment, max_resident_tokens=tokens)
            changed = to_instance(tighter, objective=instance.objective, **rules)
            if instance.objective is not Objective.BOTTLENECK:
                return hypsplit_dp(changed, time_limit_s=time_limit_s, seed=seed).partition
            assert outcome.partition is not None
            most_s = evaluation.bottleneck_s(instance, outcome.partition)
            return least_path_within(changed, most_s)

        best = _most_room(deployment, instance, outcome.partition, with_room)
        return outcome if best == outcome.partition else _instead(outcome, instance, best)

    run.__name__ = hypsplit_dp.__name__  # of the result
    return Method(run, "partition", exact=True, kernels=("hypsplit",))


def _most_room(
    deployment: Deployment,
    instance: Instance,
    best: Partition,
    with_room: Callable[[int], Partition | None],
) -> Partition:
    """Return the partition as good as `best` that leaves the most room."""

    def is_as_good(partition: Partition | None) -> bool:
        if partition is None:
            return False
        objectives = {instance.objective}
        if instance.objective is Objective.BOTTLENECK:
            objectives.add(Objective.PATH)
        return all(
            evaluation.evaluate(instance, partition, objective=objective)
            <= evaluation.evaluate(instance, original, objective=objective)
            * (1 + evaluation.RELATIVE_ERROR)
            for objective in objectives
        )

    original = best
    low, high = smallest_room(deployment, instance, best), math.inf
    if math.isinf(low):  # no block has a cache
        return best
    ratio = CLOSE  # mostly there is no better one, which one trial shows
    for _ in range(MAX_TRIALS):
        if low * CLOSE >= high:
            break
        tokens = low * ratio if math.isinf(high) else (low + high) / 2
        partition = with_room(math.ceil(tokens))
        if not is_as_good(partition):
            high = tokens
            continue
        assert partition is not None
        ratio, low = 2.0, tokens
        if smallest_room(deployment, instance, partition) > smallest_room(
            deployment, instance, best
        ):
            best = partition
    return best


def smallest_room(deployment: Deployment, instance: Instance, partition: Partition) -> float:
    """Return the tokens of KV cache that fit on each node in use, at least; inf if none has."""
    stages = stages_of(deployment, instance, partition)
    return min((room for stage in stages for room in stage.room_tokens), default=math.inf)


def _instead(outcome: Outcome, instance: Instance, partition: Partition) -> Outcome:
    """Return an outcome with another partition of the same objective."""
    certificate = outcome.certificate
    if certificate is not None:
        certificate = replace(
            certificate,
            cuts=partition.cuts,
            value_s=evaluation.evaluate(instance, partition),
        )
    message = outcome.message + MESSAGE
    return replace(outcome, partition=partition, certificate=certificate, message=message)
