"""Simulation of requests under a partition and a policy: `simulate`, at two levels.

**Flow level**: a request visits each stage once, a node serves one request at a time, and links
never queue. It is `hypsolve.schedule`, seen as a `Trace`.

**Token level**: how LLM inference runs.

*Passes.* A request has p prompt and o output tokens. Its prefill yields the first output token.
Each of o - 1 decode passes, with one token of input, yields the next. Every pass goes through
all non-empty stages. Then the id of the token returns to the request side over the return
latencies of the links, where it is delivered: the request ends, or its next pass begins.

*Pinning.* When a request first reaches a stage, the policy picks one node that can hold the
stage and is up. This node keeps the request's KV cache until the request ends. There the
request queues, first come, first served, until p + o tokens of KV cache are free, which it then
holds. `hypsolve.dispatch.policies.TierState` lists what a policy sees. HypSched-RT prefers
nodes with room. A policy knows the output length of a request, unless `expected_output_tokens`
gives the length that it assumes instead; admission always reserves for the true one. The
measured slowdown of a node is a moving average over its iterations: the time that one took over
the time that its batch takes at speed 1. It restarts at 1 when the node recovers.

*Batching.* A node that is idle and has waiting tokens of admitted requests starts an iteration
at once. It takes requests in the order in which their tokens began to wait: at most `max_batch`
of them, and at most `chunk_tokens` tokens of prompts. Decode tokens behind prompts that must
wait are still taken. A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` for
the whole batch, and reads its weights once. The head computes only the positions that yield a
token. A chunk of a prompt moves on to the next stage as soon as it is computed.

*Links.* Tokens cross all links up to the next non-empty stage, one after the other: bytes over
rate, then latency. Messages of one request keep their order. By default links never queue. With
`link_contention` each link sends one message at a time, first come, first served. The decode
tokens of one iteration are one message, and each chunk of a prompt is another.

*Events.* See `hypsolve.Event`. Work under way when a speed changes continues at the new speed.
When a node fails, requests whose work there was not complete start again at the first stage:
their prompts and delivered tokens are computed again. A request that finds no node up waits for
one; if none ever comes up, the request never ends.

*Order within one instant*: ends of iterations, failures and recoveries, returned tokens, tokens
that arrive, requests that reach a stage (by index), starts of iterations. Ties go to the lower
request, then to the lower node. Equal input gives equal traces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from hypsolve.dispatch.policies import POLICIES, Choose
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem import costs, evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import MAX_TOKENS, Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.simulation.events import Event, check_events, early
from hypsolve.simulation.time_series import bin_intervals
from hypsolve.simulation.token_level import policy_name, serve
from hypsolve.simulation.token_setup import Options, System
from hypsolve.simulation.trace import Series, Trace, Visits

LEVELS = ("flow", "token")
MAX_BATCH, CHUNK_TOKENS = 64, 512  # default options


def simulate(
    problem: Deployment | Instance,
    partition: Partition,
    policy: str | Choose | Schedule = "hypsched_rt",
    *,
    level: str | None = None,
    seed: int = 0,
    max_batch: int = MAX_BATCH,
    chunk_tokens: int | None = CHUNK_TOKENS,
    link_contention: bool = False,
    events: Iterable[Event] = (),
    record_visits: bool = False,
    expected_output_tokens: int | None = None,
) -> Trace:
    """Simulate how a partition and a policy serve the requests of a problem.

    The docstring of the module `hypsolve.simulation.simulate` states the rules.

    Parameters
    ----------
    problem : Deployment or Instance
        Token level needs a deployment, because an instance has no tokens.
    partition : Partition
    policy : str, callable or Schedule
        A name in `POLICIES`; your own function ``(tier_state, request) -> node`` as in
        `schedule`; or, at token level, a schedule whose nodes are replayed. Where a node of the
        schedule is down, the next node of its tier that is up takes its place.
    level : str, optional
        ``flow`` or ``token``; default: the finest level that the problem allows.
    seed : int
        Seed of policies that draw.
    max_batch : int
        Maximum number of requests in one iteration of a node.
    chunk_tokens : int, optional
        Maximum number of prompt tokens in one iteration of a node; None: prompts are computed
        whole.
    link_contention : bool
        If True, a link sends one message at a time.
    events : iterable of Event
        Slowdowns, failures, recoveries, joins, changes of bandwidth.
    record_visits : bool
        If True, the trace has a row per visit; memory grows with the tokens.
    expected_output_tokens : int, optional
        Output length that policies assume for every request, such as a mean of the past, when
        they add up work and KV cache. Default: the true length, which no real router knows; it
        is the best case for policies that use it. The KV cache that nodes have reserved is
        always visible as it is.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError, TypeError
        If the partition has another shape, if no node of a tier can hold its stage, if an
        option that the level does not have differs from its default, or if a policy returns
        something other than a node of ``tier_state.nodes``.

    Examples
    --------
    >>> import hypsolve as hs
    >>> def tier(name, gpu, link=None):
    ...     nodes = tuple(hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu)) for n in range(2))
    ...     return hs.Tier(name=name, nodes=nodes, link=link)
    >>> wire = hs.Link(bytes_per_s=1.25e9, latency_s=0.5e-3)
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(
    ...         name="lab", tiers=(tier("edge", "l4", wire), tier("cloud", "a100-80gb"))
    ...     ),
    ...     requests=hs.workload(n_requests=20, rate_per_s=2.0),
    ... )
    >>> trace = hs.simulate(deployment, hs.Partition((0, 8, 34)))
    >>> trace.metrics(ttft_slo_s=2.0).n_finished
    20
    >>> failure = hs.Event(1.0, "failure", "edge-0")
    >>> churned = hs.simulate(deployment, hs.Partition((0, 8, 34)), events=[failure])
    >>> bool(churned.restarts.sum() > trace.restarts.sum())
    True
    """
    if not isinstance(problem, Deployment | Instance):
        raise TypeError(
            f"simulate: problem must be a Deployment or an Instance, got {problem!r:.60}"
        )
    finest = "token" if isinstance(problem, Deployment) else "flow"
    level = finest if level is None else valid.known("level", level, LEVELS)
    max_batch = valid.whole("simulate", "max_batch", max_batch, minimum=1)
    if chunk_tokens is not None:
        chunk_tokens = valid.whole("simulate", "chunk_tokens", chunk_tokens, minimum=1)
    if expected_output_tokens is not None:
        expected_output_tokens = valid.whole(
            "simulate", "expected_output_tokens", expected_output_tokens, minimum=1
        )
        if expected_output_tokens > MAX_TOKENS:
            raise ValueError(
                f"simulate: expected_output_tokens must be at most 2**40,"
                f" got {expected_output_tokens!r:.60}"
            )
    valid.flag("simulate", "link_contention", link_contention)
    valid.flag("simulate", "record_visits", record_visits)
    seed = valid.whole("simulate", "seed", seed)
    if not isinstance(events, Iterable):
        raise TypeError(f"simulate: events must be Events in a list, got {events!r:.60}")
    events = tuple(events)
    if isinstance(policy, str):
        valid.known("policy", policy, POLICIES)
    elif not callable(policy) and not isinstance(policy, Schedule):
        raise TypeError(
            "simulate: policy must be a name, a function, or a Schedule (of a Result: its"
            f" schedule), got {policy!r:.60}"
        )
    if level == "flow":
        given = {
            "max_batch": max_batch != MAX_BATCH,
            "chunk_tokens": chunk_tokens != CHUNK_TOKENS,
            "link_contention": link_contention,
            "events": bool(events),
            "expected_output_tokens": expected_output_tokens is not None,
            "policy, a Schedule,": isinstance(policy, Schedule),
        }
        for option, is_given in given.items():
            if is_given:
                raise ValueError(f"simulate: {option} needs level 'token', got level 'flow'")
        assert not isinstance(policy, Schedule)
        return _flow(problem, partition, policy, seed, record_visits)
    if not isinstance(problem, Deployment):
        raise ValueError(
            "simulate: level 'token' needs a Deployment (an Instance knows no tokens), got an"
            " Instance"
        )
    early("simulate", "arrival_s", float(problem.requests.arrival_s.max()))
    options = Options(
        max_batch=max_batch,
        chunk_tokens=chunk_tokens,
        link_contention=bool(link_contention),
        events=check_events(events, problem.network),
        record_visits=bool(record_visits),
        expected_output_tokens=expected_output_tokens,
    )
    return serve(System(problem, partition, policy, seed, options))


def _flow(
    problem: Deployment | Instance,
    partition: Partition,
    policy: str | Choose,
    seed: int,
    record_visits: bool,
) -> Trace:
    """Return what `schedule` does as a trace."""
    if isinstance(problem, Deployment):
        instance, requests = costs.to_instance(problem), problem.requests
        prompt_tokens, output_tokens = requests.prompt_tokens, requests.output_tokens
    else:
        instance = problem
        prompt_tokens = output_tokens = np.zeros(instance.n_requests, np.int64)
    served = schedule(instance, partition, policy, seed=seed)
    shape = (instance.n_requests, instance.n_tiers)
    links_s = evaluation.transfer_s(instance, partition)
    reached_s = np.full(shape, math.nan)
    ready_s = instance.arrival_s
    for k in range(instance.n_tiers):
        if partition.stage(k):
            reached_s[:, k] = ready_s
            ready_s = served.end_s[:, k]
        if k < instance.n_tiers - 1:
            ready_s = ready_s + links_s[:, k]
    request, tier = np.nonzero(served.node >= 0)
    first = np.searchsorted(instance.node_tier, np.arange(instance.n_tiers))
    node = served.node[request, tier] + first[tier]
    start_s, end_s = served.start_s[request, tier], served.end_s[request, tier]
    busy_s = np.zeros(instance.n_nodes)
    np.add.at(busy_s, node, end_s - start_s)
    visits = None
    if record_visits:
        order = np.lexsort((node, end_s))
        zeros = np.zeros(len(order), np.int64)
        visits = Visits(
            request=request[order], node=node[order], start_s=start_s[order],
            end_s=end_s[order], tokens=zeros, context_tokens=zeros,
        )  # fmt: skip
    first_s, last_s = float(instance.arrival_s.min()), float(end_s.max())
    bin_s = (last_s - first_s) / 128 or 1.0
    grid: dict[str, Any] = {
        "row": node, "n_rows": instance.n_nodes, "first_s": first_s, "bin_s": bin_s,
        "n_bins": 128,
    }  # fmt: skip
    ones = np.ones(len(node))
    at_node_s = bin_intervals(reached_s[request, tier], end_s, ones, **grid)
    return Trace(
        level="flow",
        name=instance.name,
        policy=policy_name(policy),
        seed=seed,
        partition=partition,
        tier_names=instance.tier_names,
        node_names=instance.node_names,
        node_tier=instance.node_tier,
        arrival_s=instance.arrival_s,
        end_s=evaluation.completion_s(served),
        first_token_s=np.full(instance.n_requests, math.nan),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        restarts=np.zeros(instance.n_requests, np.int64),
        lost_tokens=np.zeros(instance.n_requests, np.int64),
        node=served.node,
        reached_s=reached_s,
        admitted_s=served.start_s,
        left_s=served.end_s,
        busy_s=busy_s,
        n_iterations=np.bincount(node, minlength=instance.n_nodes),
        n_tokens=np.zeros(instance.n_nodes, np.int64),
        n_visits=len(node),
        series=Series(
            start_s=first_s,
            bin_s=bin_s,
            busy=bin_intervals(start_s, end_s, ones, **grid),
            n_requests=at_node_s,
            n_waiting=bin_intervals(reached_s[request, tier], start_s, ones, **grid),
            kv_bytes=np.zeros_like(at_node_s),
            n_stranded=np.zeros((instance.n_tiers, at_node_s.shape[1])),
        ),
        kv_capacity_bytes=np.full(instance.n_nodes, math.inf),
        end_of_run_s=float(evaluation.completion_s(served).max()),
        extrapolated=instance.extrapolated,
        visits=visits,
    )
