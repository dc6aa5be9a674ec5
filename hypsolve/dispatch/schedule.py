"""Schedules at flow level: which node serves which request, and when."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from hypsolve.dispatch.policies import POLICIES, Choose, Policy, TierState, position_of
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import stage_service_s
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule

# On larger tiers HypSched-RT keeps the nodes in one heap per class. The choices are identical;
# with fewer nodes a scan over all of them is faster.
MAX_UNGROUPED_NODES = 64


def schedule(
    instance: Instance,
    partition: Partition,
    policy: str | Choose = "hypsched_rt",
    *,
    seed: int = 0,
) -> Schedule:
    """Serve every request on every non-empty stage of a partition, at flow level.

    A request is ready for a tier when it has completed the previous stage and crossed all links
    in between. Transfers never queue, and a request still crosses the links of an empty stage.
    Requests are dispatched in the order in which they become ready; ties are broken by request
    index. For each of them `policy` chooses a node that can hold the tier's stage. Every node
    serves its requests first come, first served, one at a time. Ties between nodes go to the
    lowest index.

    Parameters
    ----------
    instance : Instance
    partition : Partition
    policy : str or callable
        A name in `POLICIES`, or a function ``(tier_state, request) -> node`` that gets a
        `TierState` and the index of the request and returns one of ``tier_state.nodes``. A
        function runs in plain Python, about 100 times slower than a named policy.
    seed : int
        Seed of the policies that draw. Every tier has its own random stream.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If the policy is unknown, the partition has the wrong number of tiers or blocks, no node
        of a tier can hold its stage, or a function returns a node that is not among
        ``tier_state.nodes``.

    Examples
    --------
    One tier of two nodes. A request takes 4 s on the first and 6 s on the second. HypSched-RT
    counts a running job in full, so at 3.9 s it prefers the idle node.

    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[4.0], [6.0]]], [1.0], [[(0, 1.0), (1, 1.0)]], arrival_s=[0.0, 3.9]
    ... )
    >>> hs.schedule(instance, hs.Partition((0, 1))).node[:, 0].tolist()
    [0, 1]
    >>> hs.schedule(instance, hs.Partition((0, 1)), "earliest_completion").end_s[:, 0].tolist()
    [4.0, 8.0]

    The built-in policies are listed in `POLICIES`. A function of your own is a policy, too.

    >>> sorted(hs.POLICIES)[:3]
    ['earliest_completion', 'hypsched_rt', 'join_shortest_queue']
    >>> def last_node(state, request):
    ...     return state.nodes[-1]
    >>> hs.schedule(instance, hs.Partition((0, 1)), last_node).node[:, 0].tolist()
    [1, 1]
    """
    if not callable(policy):
        valid.known("policy", policy, POLICIES)
    evaluation.require_shape(instance, partition)
    rng = np.random.default_rng(valid.whole("schedule", "seed", seed))
    shape = (instance.n_tiers, instance.n_requests)  # the kernels fill rows
    node = np.full(shape, -1, np.int64)
    start_s, end_s = np.full(shape, math.nan), np.full(shape, math.nan)
    ready_s = instance.release_s.copy()
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


def exact_sums(service_s: Array, n_requests: int) -> Array:
    """Round seconds to multiples of a power of two, so that n_requests of them add up exactly.

    The backlog of an empty queue is then exactly 0, a backlog does not depend on the order of
    arrivals, and the grouped kernel of HypSched-RT sees the same ties as the plain one.
    """
    _, exponent = math.frexp(service_s.max())
    unit = math.ldexp(1.0, max(exponent - 52 + n_requests.bit_length(), -1022))
    rounded = service_s / unit
    np.rint(rounded, out=rounded)
    rounded *= unit
    return rounded


@dataclass(frozen=True, slots=True)
class _Stage:
    """Inputs and outputs of the dispatch kernels for one tier."""

    order: IntArray  # requests in the order in which they become ready, (n_requests,)
    ready_s: Array  # (n_requests,)
    service_s: Array  # (n_requests or 1, n_classes)
    expected_s: Array  # service_s as policies know it: rounded by `exact_sums`
    nodes: IntArray  # nodes of the tier that can hold the stage
    node_class: IntArray  # their classes
    node: IntArray  # filled in, like the next two, by the kernel: (n_requests,)
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
    """Dispatch the requests of a tier by a compiled policy."""
    from hypsolve.kernels import dispatch as kernels

    inputs = (stage.order, stage.ready_s, stage.service_s, stage.expected_s)
    outputs = (stage.node, stage.start_s, stage.end_s)
    n_nodes = len(stage.nodes)
    if policy.kernel == "HYPSCHED_RT" and n_nodes > MAX_UNGROUPED_NODES:
        groups = np.argsort(stage.node_class, kind="stable")
        _, first = np.unique(stage.node_class[groups], return_index=True)
        group_start = np.append(first, n_nodes)
        kernels.dispatch_grouped(*inputs, stage.node_class, group_start, groups, *outputs)
    else:
        uniforms = rng.random((len(stage.ready_s) if policy.draws else 0, 2))
        code = getattr(kernels, policy.kernel)
        kernels.dispatch(code, *inputs, uniforms, stage.node_class, *outputs)
    if stage.nodes[-1] != n_nodes - 1:  # some nodes of the tier cannot hold the stage
        stage.node[:] = stage.nodes[stage.node]


def _serve_plainly(
    instance: Instance, tier: int, stage: _Stage, choose: Choose, rng: np.random.Generator
) -> None:
    """Dispatch the requests of a tier as the kernels do, by a Python function."""
    nodes, expected_s, end_s = stage.nodes, stage.expected_s, stage.end_s
    n_requests, n_nodes = len(stage.ready_s), len(nodes)
    uniforms = rng.random((n_requests, 2))
    slowdown, kv_free_tokens = np.ones(n_nodes), np.full(n_nodes, math.inf)
    for array in (nodes, slowdown, kv_free_tokens, uniforms):
        array.setflags(write=False)
    place = {int(n): at for at, n in enumerate(nodes)}
    first_s = instance.arrival_s.min()
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
            time_s=float(now_s + first_s),
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
        at = position_of(instance, tier, choose, choose(state, r), place)
        queues[at].append(r)
        outstanding_s[at] += own_s[at]
        stage.node[r] = nodes[at]
        stage.start_s[r] = max(now_s, free_s[at])
        end_s[r] = stage.start_s[r] + stage.service_s[row[r], stage.node_class[at]]
        free_s[at] = end_s[r]
