"""What happens when requests meet a partition and a policy: `simulate`, at two levels.

**Flow level**: one visit per request and stage, one request at a time per node, links that
never queue; `hypsolve.schedule`, seen as a `Trace`.

**Token level**: how LLM inference runs.

*Passes.* A request has p prompt and o output tokens. Its prefill yields the first output token;
each of o - 1 decode passes, with one token of input, the next. Every pass goes through all
non-empty stages; the id of the token then returns to the request side over the return latencies
of the links, where it is delivered: the request ends, or its next pass begins.

*Pinning.* When a request first reaches a stage, the policy picks one node that can hold the
stage and is up; it keeps the request's KV cache until the request ends. There the request
queues, first come, first served, until p + o tokens of KV cache are free, which it then holds.
What a policy sees is in `hypsolve.dispatch.policies.TierState`; HypSched-RT prefers nodes with
room. It knows a request's output length, unless `expected_output_tokens` says what it believes
instead; admission always reserves for the true one. A node's slowdown, as it is measured, is
the moving average over iterations of the time one took over what it should have taken with
that batch; it starts anew at 1 when the node comes up again.

*Batching.* A node that is idle and has waiting tokens of admitted requests starts an iteration
at once: it takes requests in the order in which their tokens began to wait, at most `max_batch`
of them and at most `chunk_tokens` tokens of prompts; decode tokens behind prompts that must
wait are still taken. A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` for
the whole batch, weights read once; the head computes only the positions that yield a token. A
chunk of a prompt moves on to the next stage as soon as it is computed.

*Links.* Tokens cross all links up to the next non-empty stage, one after the other: bytes over
rate, then latency. Messages of one request keep their order. By default links never queue; with
`link_contention` each sends one message at a time, first come, first served, the decode tokens
of one iteration being one message and each chunk of a prompt another.

*Events.* See `hypsolve.Event`; what is under way when a speed changes goes on at the new one.
When a node fails, requests whose work there was not complete start anew at the first stage:
prompt and delivered tokens are computed again. A request that finds no node up waits for one;
if none ever comes, it does not end.

*Within one instant*: ends of iterations, failures and recoveries, returned tokens, tokens that
arrive, requests that reach a stage (by index), starts of iterations. Ties go to the lower
request, the lower node: the same input gives the same trace.
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
MAX_BATCH, CHUNK_TOKENS = 64, 512  # defaults


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
    """Serve the requests of a problem; the rules are those of `hypsolve.simulation.simulate`.

    Parameters
    ----------
    problem : Deployment or Instance
        Token level needs a deployment: an instance knows no tokens.
    partition : Partition
    policy : str, callable or Schedule
        A name in `POLICIES`; your own function ``(tier_state, request) -> node`` as in
        `schedule`; or, at token level, a schedule whose nodes are replayed (where one is down,
        the tier's next one that is up).
    level : str, optional
        ``flow`` or ``token``; default: the finest that the problem allows.
    seed : int
        For the policies that draw.
    max_batch : int
        Most requests in one iteration of a node.
    chunk_tokens : int, optional
        Most prompt tokens in one iteration of a node; None: prompts are computed whole.
    link_contention : bool
        Whether a link sends one message at a time.
    events : iterable of Event
        Slowdowns, failures, recoveries, joins, changes of bandwidth.
    record_visits : bool
        Keep a row per visit, in memory in proportion to the tokens.
    expected_output_tokens : int, optional
        What policies take the output of every request to be, say the mean of the past, when
        they add up work and ask for KV room. Default: its true length, which no real router
        knows: the best case of policies that look at it. What a node has reserved for others
        they see as it is.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError, TypeError
        If the partition is of another shape, no node of a tier can hold its stage, an option
        that the level does not have is other than its default, or a policy returns what is no
        node of ``tier_state.nodes``.

    Examples
    --------
    >>> trace = simulate(deployment, Partition((0, 10, 34)), "hypsched_rt")  # doctest: +SKIP
    >>> print(trace.metrics(ttft_slo_s=2.0))  # doctest: +SKIP
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
    """`schedule` as a trace."""
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
