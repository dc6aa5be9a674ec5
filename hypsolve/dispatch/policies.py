"""Dispatch policies: choose the node of a tier that serves a request."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance


@dataclass(frozen=True, slots=True)
class TierState:
    """State of a tier when a request arrives, as a policy sees it.

    A job is a request at a node that is not yet complete there. Arrays have shape (n_nodes,)
    and are aligned with `nodes`, unless stated otherwise.

    Attributes
    ----------
    tier : int
        Index of the tier.
    time_s : float
        Current time. Jobs that end at this time have already left.
    nodes : ndarray of int
        Indices of the nodes that can hold the stage, in increasing order. A policy returns one
        of them.
    n_jobs : ndarray of int
        Number of jobs, waiting or running.
    outstanding_s : ndarray
        Sum of the expected service times of the jobs, in seconds. A running job counts in full.
    remaining_s : ndarray
        Time in seconds until the node is idle if no further request is sent to it.
    own_s : ndarray
        Expected service time of this request on each node, in seconds. It is rounded, by less
        than one part in 10**9 of the longest job of the tier, so that sums are exact.
    slowdown : ndarray
        Moving average of the ratio of measured to expected time; always 1 at flow level.
    n_dispatched : int
        Requests dispatched on this tier before this one.
    kv_free_tokens : ndarray
        Free KV cache, less the tokens that queued requests will need; inf at flow level.
    kv_own_tokens : float
        KV cache that this request needs; 0 at flow level.
    uniforms : ndarray, shape (2,)
        Two draws from [0, 1) that belong to this request and do not depend on the policy.
    rng : numpy.random.Generator
        For policies that need more draws.

    Examples
    --------
    A policy reads the state and returns a node. This one prefers the node with the fewest jobs
    among those with room for the KV cache, and falls back on all nodes.

    >>> import hypsolve as hs
    >>> def fewest_jobs_with_room(state: hs.TierState, request: int) -> int:
    ...     has_room = state.kv_free_tokens >= state.kv_own_tokens
    ...     nodes = state.nodes[has_room] if has_room.any() else state.nodes
    ...     n_jobs = state.n_jobs[has_room] if has_room.any() else state.n_jobs
    ...     return nodes[n_jobs.argmin()]
    >>> instance = hs.Instance.from_tables(
    ...     [[[2.0]]], [1.0], [[(0, 1.0), (0, 1.0)]], arrival_s=[0.0, 0.5, 1.0]
    ... )
    >>> hs.schedule(instance, hs.Partition((0, 1)), fewest_jobs_with_room).node[:, 0].tolist()
    [0, 1, 0]
    """

    tier: int
    time_s: float
    nodes: IntArray
    n_jobs: IntArray
    outstanding_s: Array
    remaining_s: Array
    own_s: Array
    slowdown: Array
    n_dispatched: int
    kv_free_tokens: Array
    kv_own_tokens: float
    uniforms: Array
    rng: np.random.Generator


Choose = Callable[[TierState, int], int]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy in plain Python and its compiled twin, which makes the same choices.

    Attributes
    ----------
    choose : callable
        ``(tier_state, request) -> node``.
    kernel : str
        Name of the policy's constant in `hypsolve.kernels.dispatch`.
    draws : bool
        Whether the policy reads `TierState.uniforms`.
    """

    choose: Choose
    kernel: str
    draws: bool = False


def hypsched_rt(state: TierState, request: int) -> int:
    """Choose the node that minimises (outstanding + own) expected seconds times its slowdown.

    HypSched-RT [1]_, with measured slowdowns. Nodes without room for the request's KV cache are
    left out, unless no node has room.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.
    """
    value_s = (state.outstanding_s + state.own_s) * state.slowdown
    has_room = state.kv_free_tokens >= state.kv_own_tokens
    if has_room.any():
        value_s = np.where(has_room, value_s, np.inf)
    return int(state.nodes[np.argmin(value_s)])


def random(state: TierState, request: int) -> int:
    """Choose a node uniformly at random."""
    return int(state.nodes[int(state.uniforms[0] * len(state.nodes))])


def round_robin(state: TierState, request: int) -> int:
    """Choose the nodes in turn."""
    return int(state.nodes[state.n_dispatched % len(state.nodes)])


def join_shortest_queue(state: TierState, request: int) -> int:
    """Choose the node with the fewest jobs, a running job included."""
    return int(state.nodes[np.argmin(state.n_jobs)])


def power_of_two(state: TierState, request: int) -> int:
    """Draw two distinct nodes at random and choose the one with fewer jobs [1]_.

    The node drawn first wins a tie.

    References
    ----------
    .. [1] M. Mitzenmacher, "The power of two choices in randomized load balancing", IEEE
       Transactions on Parallel and Distributed Systems 12(10), 2001.
    """
    n_nodes = len(state.nodes)
    a = int(state.uniforms[0] * n_nodes)
    if n_nodes == 1:
        return int(state.nodes[a])
    b = int(state.uniforms[1] * (n_nodes - 1))
    b += b >= a
    return int(state.nodes[b if state.n_jobs[b] < state.n_jobs[a] else a])


def least_work_left(state: TierState, request: int) -> int:
    """Choose the node that would be idle first."""
    return int(state.nodes[np.argmin(state.remaining_s)])


def earliest_completion(state: TierState, request: int) -> int:
    """Choose the node that would complete this request first."""
    return int(state.nodes[np.argmin(state.remaining_s + state.own_s)])


POLICIES = {
    "hypsched_rt": Policy(hypsched_rt, "HYPSCHED_RT"),
    "random": Policy(random, "RANDOM", draws=True),
    "round_robin": Policy(round_robin, "ROUND_ROBIN"),
    "join_shortest_queue": Policy(join_shortest_queue, "JOIN_SHORTEST_QUEUE"),
    "power_of_two": Policy(power_of_two, "POWER_OF_TWO", draws=True),
    "least_work_left": Policy(least_work_left, "LEAST_WORK_LEFT"),
    "earliest_completion": Policy(earliest_completion, "EARLIEST_COMPLETION"),
}


def position_of(
    instance: Instance, tier: int, choose: Choose, answer: object, place: dict[int, int]
) -> int:
    """Return the position of the node that a user's policy chose among the eligible ones.

    `place` maps each eligible node to its position. Raises ValueError for any other node.
    """
    owner = f"policy {getattr(choose, '__name__', repr(choose))!r}"
    node = valid.whole(owner, f"node for tier {instance.tier_names[tier]!r}", answer)
    if node not in place:
        raise ValueError(
            f"{owner}: node for tier {instance.tier_names[tier]!r} must be one that is up"
            f" and can hold the stage, {', '.join(map(str, place))}, got {node}"
        )
    return place[node]
