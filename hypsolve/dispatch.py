"""Which node serves which request: HypSched-RT, its rivals, and `schedule`, at flow level."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hypsolve import evaluation
from hypsolve import validation as valid
from hypsolve.problem import Array, Instance, IntArray
from hypsolve.solution import Partition, Schedule

UNGROUPED_NODES = 64  # a tier of more has HypSched-RT keep them in groups; same choices


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


def schedule(
    instance: Instance,
    partition: Partition,
    policy: str | Choose = "hypsched_rt",
    *,
    seed: int = 0,
) -> Schedule:
    """Serve every request on every non-empty stage of a partition, at flow level.

    Requests reach a tier when their previous stage has ended and all links between are crossed
    (links never queue; an empty stage still pays them). In the order of that time, ties by
    request, `policy` sends each to a node of the tier that can hold the stage, and each node
    serves first come, first served, one at a time. Ties between nodes go to the lowest index.

    Parameters
    ----------
    instance : Instance
    partition : Partition
    policy : str or callable
        A name in `POLICIES`, or your own function ``(tier_state, request) -> node``: it gets a
        `TierState` and the index of the request, and returns one of ``tier_state.nodes``. A
        function runs in plain Python, some 100 times slower.
    seed : int
        For the policies that draw; every tier has draws of its own.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If the policy is unknown, the partition is of another shape, no node of a tier can hold
        its stage, or a function returns anything else than one of ``tier_state.nodes``.

    Examples
    --------
    >>> def shortest_job_count(state, request):
    ...     return int(state.nodes[np.argmin(state.n_jobs)])
    >>> schedule(instance, partition, shortest_job_count)  # doctest: +SKIP
    """
    if not callable(policy):
        valid.known("policy", policy, POLICIES)
    evaluation.require_shape(instance, partition)
    rng = np.random.default_rng(valid.whole("schedule", "seed", seed))
    shape = (instance.n_tiers, instance.n_requests)  # the kernels fill rows
    node = np.full(shape, -1, np.int64)
    start_s, end_s = np.full(shape, math.nan), np.full(shape, math.nan)
    ready_s = instance.arrival_s.copy()
    for k in range(instance.n_tiers):
        if partition.stage(k):
            outputs = (node[k], start_s[k], end_s[k])
            stage = _stage(
                instance, k, partition.cuts[k], partition.cuts[k + 1], ready_s, outputs
            )
            if callable(policy):
                _serve_plainly(instance, k, stage, policy, rng)
            else:
                _serve(stage, POLICIES[policy], rng)
            ready_s = end_s[k]
        if k < instance.n_tiers - 1:
            cut = instance.cut_kind[partition.cuts[k + 1]]
            ready_s = ready_s + instance.transfer_kind_s[:, k, cut]
    return Schedule(node.T, start_s.T, end_s.T)


def stage_service_s(instance: Instance, first: int, end: int) -> Array:
    """Seconds of blocks first:end per request and class, shape (n_requests or 1, n_classes)."""
    n_kinds = instance.kind_s.shape[2]
    counts = np.bincount(instance.block_kind[first:end], minlength=n_kinds)
    return np.ascontiguousarray(instance.kind_s @ counts.astype(np.float64))


def exact_sums(service_s: Array, n_requests: int) -> Array:
    """Round to multiples of a power of two that let n_requests of them add up without error.

    So a backlog is 0 when a queue is empty, never depends on the order of arrivals, and the
    grouped version of HypSched-RT sees exactly the ties that the plain one sees.
    """
    _, exponent = math.frexp(service_s.max())
    unit = math.ldexp(1.0, max(exponent - 52 + n_requests.bit_length(), -1022))
    rounded = service_s / unit
    np.rint(rounded, out=rounded)
    rounded *= unit
    return rounded


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one tier is to do, as its kernels want it; the last three are filled in."""

    order: IntArray
    ready_s: Array
    service_s: Array
    expected_s: Array
    nodes: IntArray  # that can hold the stage
    node_class: IntArray
    node: IntArray
    start_s: Array
    end_s: Array


def _stage(
    instance: Instance,
    tier: int,
    first: int,
    end: int,
    ready_s: Array,
    outputs: tuple[IntArray, Array, Array],
) -> _Stage:
    nodes = np.flatnonzero(evaluation.can_hold(instance, tier, first, end))
    if not nodes.size:
        raise ValueError(
            f"schedule: tier {instance.tier_names[tier]!r} has no node that can hold blocks"
            f" {first}:{end}, which need {evaluation.stage_bytes(instance, first, end):g} bytes"
        )
    service_s = stage_service_s(instance, first, end)
    in_order = bool((ready_s[1:] >= ready_s[:-1]).all())
    return _Stage(
        np.arange(len(ready_s)) if in_order else np.argsort(ready_s, kind="stable"),
        ready_s,
        service_s,
        exact_sums(service_s, len(ready_s)),
        nodes,
        instance.node_class[instance.nodes_of(tier)][nodes],
        *outputs,
    )


def _serve(stage: _Stage, policy: Policy, rng: np.random.Generator) -> None:
    """Ask a policy's kernel."""
    from hypsolve.kernels import dispatch as kernels

    inputs = (stage.order, stage.ready_s, stage.service_s, stage.expected_s)
    outputs = (stage.node, stage.start_s, stage.end_s)
    n_nodes = len(stage.nodes)
    if policy.kernel == "HYPSCHED_RT" and n_nodes > UNGROUPED_NODES:
        groups = np.argsort(stage.node_class, kind="stable")
        _, first = np.unique(stage.node_class[groups], return_index=True)
        group_start = np.append(first, n_nodes)
        kernels.dispatch_grouped(*inputs, stage.node_class, group_start, groups, *outputs)
    else:
        uniforms = rng.random((len(stage.ready_s) if policy.draws else 0, 2))
        code = getattr(kernels, policy.kernel)
        kernels.dispatch(code, *inputs, uniforms, stage.node_class, *outputs)
    if stage.nodes[-1] != n_nodes - 1:  # some node of the tier cannot hold the stage
        stage.node[:] = stage.nodes[stage.node]


def _serve_plainly(
    instance: Instance, tier: int, stage: _Stage, choose: Choose, rng: np.random.Generator
) -> None:
    """Do as the kernels do, asking a function."""
    nodes, expected_s, end_s = stage.nodes, stage.expected_s, stage.end_s
    n_requests, n_nodes = len(stage.ready_s), len(nodes)
    uniforms = rng.random((n_requests, 2))
    slowdown, kv_free_tokens = np.ones(n_nodes), np.full(n_nodes, math.inf)
    for array in (nodes, slowdown, kv_free_tokens, uniforms):
        array.setflags(write=False)
    place = {int(n): at for at, n in enumerate(nodes)}
    queues: list[deque[int]] = [deque() for _ in nodes]
    outstanding_s, free_s = np.zeros(n_nodes), np.zeros(n_nodes)
    row = np.arange(n_requests) if len(expected_s) > 1 else np.zeros(n_requests, np.int64)
    for turn, r in enumerate(stage.order.tolist()):
        now_s = stage.ready_s[r]
        for at, queue in enumerate(queues):
            while queue and end_s[queue[0]] <= now_s:
                outstanding_s[at] -= expected_s[row[queue.popleft()], stage.node_class[at]]
        own_s = expected_s[row[r], stage.node_class]
        state = TierState(
            tier=tier,
            time_s=float(now_s),
            nodes=nodes,
            n_jobs=np.array([len(queue) for queue in queues]),
            outstanding_s=outstanding_s.copy(),
            remaining_s=np.maximum(free_s - now_s, 0.0),
            own_s=own_s.copy(),
            slowdown=slowdown,
            n_dispatched=turn,
            kv_free_tokens=kv_free_tokens,
            kv_own_tokens=0.0,
            uniforms=uniforms[r],
            rng=rng,
        )
        at = place_of(instance, tier, choose, choose(state, r), place)
        queues[at].append(r)
        outstanding_s[at] += own_s[at]
        stage.node[r] = nodes[at]
        stage.start_s[r] = max(now_s, free_s[at])
        end_s[r] = stage.start_s[r] + stage.service_s[row[r], stage.node_class[at]]
        free_s[at] = end_s[r]


def place_of(
    instance: Instance, tier: int, choose: Choose, answer: object, place: dict[int, int]
) -> int:
    """Position among the eligible nodes of the node that a user's policy returned."""
    owner = f"policy {getattr(choose, '__name__', repr(choose))!r}"
    node = valid.whole(owner, f"node for tier {instance.tier_names[tier]!r}", answer)
    if node not in place:
        raise ValueError(
            f"{owner}: node for tier {instance.tier_names[tier]!r} must be one that is up"
            f" and can hold the stage, {', '.join(map(str, place))}, got {node}"
        )
    return place[node]
