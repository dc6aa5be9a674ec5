"""`bound_on_users`: requests per second that users in a closed loop cannot exceed.

*Claim.* U users have one request at a time each, and think for s seconds after each answer. If
n requests are served in T seconds, from the first arrival to the end of the last think time,
then ``n / T <= U / (L + s)``, where L is a lower bound on the mean latency of the requests, for
all splits.

*Proof.* The rounds of a user, a request and the thinking after it, do not overlap, and lie
within the T seconds. So the rounds of a user take at most T seconds in all, and those of all
users at most U T. They are n rounds, which take n times the mean latency plus n s, which is at
least ``n (L + s)``.

*Latency.* `hypsolve.planning.simulation_search.Splits` proves L for every request of a split:
one prompt token and all decode passes take their seconds in every stage and on every link, and
the rest of the prompt takes those of the slowest stage or link, for chunks of it may be in
different stages at once. The least sum over all splits is the first one in the order of these
bounds. Waiting for other requests only adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hypsolve.planning.load import Load
from hypsolve.planning.simulation_search import Splits
from hypsolve.problem.deployment import Deployment


def bound_on_users(deployment: Deployment, rules: Mapping[str, Any], load: Load) -> float:
    """Return requests per second that no split and no schedule serves the users of a load.

    The proof is in the docstring of this module.

    Parameters
    ----------
    deployment : Deployment
        Its requests are those of the users.
    rules : mapping
        Arguments of `hypsolve.to_instance` that restrict the blocks of each tier.
    load : Load
        Its users and their think time.

    Returns
    -------
    float
        inf without users.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from hypsolve.planning.load import Load
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(name="lab", tiers=(box,)),
    ...     requests=hs.Requests([0.0], [256], [64]),
    ... )
    >>> bound_on_users(deployment, {}, Load(users=3, think_time_s=10.0)) < 0.3
    True
    """
    if load.users is None:
        return math.inf
    round_s = Splits(deployment, dict(rules)).min_bound_s() + load.think_time_s
    return load.users / round_s if round_s > 0 else math.inf
