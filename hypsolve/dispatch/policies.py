"""Dispatch policies: choose the node of a tier that serves a request."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hypsolve.problem.arrays import Array, IntArray


@dataclass(frozen=True, slots=True)
class TierState:
    """What a policy sees of a tier when a request arrives; arrays run along `nodes`.

    Attributes
    ----------
    tier : int
    time_s : float
        Now. Jobs that end now have left.
    nodes : ndarray of int
        The nodes that can hold the stage, rising; a policy returns one of them.
    n_jobs : ndarray of int
        Jobs waiting or running.
    outstanding_s : ndarray
        Expected seconds of those jobs; the running one counts in full.
    remaining_s : ndarray
        Seconds until the node is free, if nothing else comes.
    own_s : ndarray
        Expected seconds of this request on each node, rounded (by less than one part in 10**9
        of the tier's longest job) so that sums of them are exact.
    slowdown : ndarray
        Measured over expected seconds, of late; 1 at flow level.
    n_dispatched : int
        Requests that the tier has been given before this one.
    kv_free_tokens : ndarray
        KV cache that is neither held nor queued for; inf at flow level.
    kv_own_tokens : float
        What this request needs.
    uniforms : ndarray, shape (2,)
        This request's own draws from [0, 1), the same under every policy.
    rng : numpy.random.Generator
        For policies that need more.
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
    """A policy in plain Python, and what `hypsolve.kernels.dispatch` calls it; same choices."""

    choose: Choose
    kernel: str
    draws: bool = False  # whether it reads `TierState.uniforms`


def hypsched_rt(state: TierState, request: int) -> int:
    """Least (outstanding + own) expected seconds, times slowdown; if possible, with KV room."""
    value_s = (state.outstanding_s + state.own_s) * state.slowdown
    has_room = state.kv_free_tokens >= state.kv_own_tokens
    if has_room.any():
        value_s = np.where(has_room, value_s, np.inf)
    return int(state.nodes[np.argmin(value_s)])


def random(state: TierState, request: int) -> int:
    """Any node, all equally likely."""
    return int(state.nodes[int(state.uniforms[0] * len(state.nodes))])


def round_robin(state: TierState, request: int) -> int:
    """One node after the other."""
    return int(state.nodes[state.n_dispatched % len(state.nodes)])


def join_shortest_queue(state: TierState, request: int) -> int:
    """Fewest jobs, the running one included."""
    return int(state.nodes[np.argmin(state.n_jobs)])


def power_of_two(state: TierState, request: int) -> int:
    """The one with fewer jobs of two different random nodes; of equals the one drawn first."""
    n_nodes = len(state.nodes)
    a = int(state.uniforms[0] * n_nodes)
    if n_nodes == 1:
        return int(state.nodes[a])
    b = int(state.uniforms[1] * (n_nodes - 1))
    b += b >= a
    return int(state.nodes[b if state.n_jobs[b] < state.n_jobs[a] else a])


def least_work_left(state: TierState, request: int) -> int:
    """Least seconds until free."""
    return int(state.nodes[np.argmin(state.remaining_s)])


def earliest_completion(state: TierState, request: int) -> int:
    """Least seconds until this request would be complete."""
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
