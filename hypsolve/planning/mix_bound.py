"""`bound_of_mix`: a rate that no schedule of a split exceeds, if lengths differ."""

from __future__ import annotations

import itertools

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.solution import Partition


def bound_of_mix(
    deployment: Deployment,
    partition: Partition,
    *,
    users: int | None = None,
    think_time_s: float = 0.0,
) -> float:
    """Return requests per second that no schedule of a partition exceeds, under its runtime.

    It is the bound of `hypsolve.bounds.throughput`, which proves it, over the one split.

    Parameters
    ----------
    deployment : Deployment
        The bound holds for its requests in any order, and for others with the same shares.
    partition : Partition
    users, think_time_s
        As in `hypsolve.simulate`.
    """
    sizes = [j - i for i, j in itertools.pairwise(partition.cuts)]
    return throughput_bound(
        deployment,
        allow_empty=True,
        min_blocks=sizes,
        max_blocks=sizes,
        users=users,
        think_time_s=think_time_s,
    )
