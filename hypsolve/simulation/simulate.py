"""Simulation of requests under a partition and a policy: `simulate`, at two levels.

**Flow level**: a request visits each stage once, a node serves one request at a time, and
links never queue. This level runs `hypsolve.schedule` and returns the result as a `Trace`.

**Token level**: requests are served token by token, as in LLM inference.

*Passes.* A request has p prompt and o output tokens. Its prefill yields the first output
token. Each of o - 1 decode passes, with one token of input, yields the next. Every pass starts
at the first non-empty stage and goes through all others. Then the id of the token returns to
the first stage over the return latencies of the links in between. The next pass begins there
at once; after the last token, the request frees its KV cache. The last output token is never
an input: p + o - 1 tokens are computed and cached.

*Delivery.* Requests come from the request side, at the first tier. Empty tiers before the
first stage are crossed once, by the ids of the prompt, when the request arrives. Each token
travels on over their return latencies to the request side, where it is delivered. The first
delivery ends the time to first token, and the last delivery ends the request: both include the
whole way back.

*Closed loop.* With `users`, the requests are sent in the order of their indices: the first
`users` of them at the earliest arrival times of the deployment, so many of them and sorted.
Then one request is sent `think_time_s` after each end of a request, but not before all users
have sent their first one. ``arrival_s`` of the trace holds these times; nan: never sent. Users
who start at once, with equal requests, stay in step: spread their starts.

*Time of a batch.* A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` for
all tokens that a node computes at once, and reads its weights once. The LM head computes only
the positions that yield an output token: it costs nothing, not even its `t0_s`, where only
chunks before the last of their prompts are computed. A GPU with `OperatorRates`, or whose times
of computing and reading add up, takes the seconds of `hypsolve.problem.step_costs`; a piece of
a prompt of one token counts as a decode token there. `OperatorRates.request_s`, of the node
with the largest, is added to the way back of every delivery.

**Batching mode ``stage``**: every node forms its own batches.

*Pinning.* When a request first reaches a stage, the policy picks one node that can hold the
stage and is up. This node keeps the request's KV cache until the last token is back. The
request queues there, first come, first served, until its KV cache has room. Admission stops at
the first request that does not fit, even if one behind it would.
`hypsolve.dispatch.policies.TierState` lists what a policy sees. The policy HypSched-RT prefers
nodes with enough free KV cache for the request. A policy knows the true output length of a
request. If `expected_output_tokens` is given, it assumes that length instead. Admission always
counts the true length. The measured slowdown of a node is a moving average, over its
iterations, of the ratio of the time that an iteration took to the time that it takes at speed
1, host seconds included. It restarts at 1 when the node recovers.

*KV cache.* Under ``reserve``, a request reserves p + o tokens at admission, although it caches
one less. Under ``paged``, KV cache is given in blocks of `kv_block_tokens` tokens; the last
block of a request ends with its token p + o, so that a request that fits under ``reserve``
fits here. Admission gives the blocks of all tokens of the first pass, before any of them is
computed. When a node is about to start an iteration, every decode token that waits there gets
the block that it needs, if any. As long as there is no room for all of them, the request that
arrived last (ties: index) among those with KV cache at the node is preempted; it may be one of
those that need a block. A preempted request frees its KV cache on all nodes. Its tokens that
wait, are computed or are on their way are lost, and it starts again at the first stage, at
once, as after a failure; its first pass then reads the prompt and the tokens that came back.
Under ``paged`` the queue for admission is sorted by arrival, not by when requests reached the
node. Policies count the tokens of the first pass, in blocks, as the KV cache that a request
needs.

*Iterations.* A node that is idle and has waiting tokens of admitted requests starts an
iteration at once. It takes requests in the order in which their tokens began to wait: at most
`max_num_seqs` of them, and at most `chunk_tokens` tokens of prompts. The tokens of a prompt
begin to wait when they arrive or, if that is later, at admission; those that join others of
their prompt have waited since these did. A prompt beyond the limit waits and keeps its place,
also if a part of it is taken, but the node still takes decode tokens that stand behind the
prompt in this order. If `max_num_batched_tokens` is given, the iteration takes at most so many
tokens, and decode tokens before prompts: first decode tokens in their order, then prompts in
theirs. An iteration begins with `iteration_s` seconds on the host, which a slowdown does not
stretch. A chunk of a prompt moves on to the next stage as soon as it is computed.

*Links.* On the way to a non-empty stage a message crosses all links since the non-empty stage
before (to the first one: since the first tier), one link after the other. A link takes the
bytes over its rate, and then its latency. Messages of one request keep their order. By default
links never queue, each decode token crosses by itself, as one token, and each chunk of a
prompt is a message. With `link_contention` each link sends one message at a time, first come,
first served; the decode tokens of one iteration are then one message.

*Clock.* A run counts seconds from the first arrival, and events before it have happened when
it begins. `hypsolve.Trace` gives times on the clock of the arrivals, and latencies from the
seconds since the first arrival: they do not depend on the time of day.

*Events.* See `hypsolve.Event`. Work under way when a speed changes continues at the new speed.
When a node fails, requests whose work there was not complete start again at the first stage,
which keeps their ids: their prompts and the tokens that came back are computed again. A
request that finds no node up waits for one; if none ever comes up, the request never ends.

*Order of simultaneous events*: first ends of iterations, then failures and recoveries, tokens
that come back to the first stage, decode tokens that arrive at a stage, prompts or chunks that
arrive at a stage (by request index). Ties go to the lower request index, then to the lower
node index. Last are the starts of iterations; under ``paged``, blocks are given before, node
by node, then requests are admitted where KV cache has become free, and those that were
preempted reach the first stage. An iteration that takes 0 s ends after all these starts, and
the order begins again within the instant. The simulation is deterministic: equal inputs give
equal traces.

**Batching modes ``pipeline`` and ``serial``**: a scheduler per pipeline forms batches that
pass all stages. What is said above holds but for the rules below. ``pipeline`` follows vLLM
[1]_: as many batches may be in flight as there are non-empty stages. ``serial`` follows
llama.cpp over RPC [2]_: one batch is in flight.

*Pipelines.* Pipeline i consists of the i-th node, among those that can hold the stage, of
every non-empty tier. The tier with the fewest such nodes limits the number of pipelines;
further nodes stay idle. When a request reaches the first stage, the policy picks a pipeline,
by the node of its first stage, and the request stays there until it ends. It counts as having
reached all stages at this time. In `TierState` the numbers of jobs and expected seconds are of
the pipeline: a job is complete when its last token is computed at the last stage; `own_s` is
the sum over the stages, rounded as before; `remaining_s` is the sum over the nodes; the
slowdown is the largest of the nodes; free KV cache is that of the node with the least
capacity. A replayed schedule counts on the first non-empty tier only. If the pipeline is down,
the next one that is up takes its place.

*Batches.* Running requests are those that were admitted. A request is in flight while tokens
of it are in a batch that is not yet back. The scheduler forms a batch whenever fewer batches
are in flight than allowed, no other batch is in preparation, and there is a token to take,
even if nodes are busy. It takes, in the order of arrival of the requests (ties: index), first
one decode token of each running request that is not in flight, then a chunk of each running
request whose prompt is not taken as a whole, even if earlier chunks of it are in flight. Then
it admits waiting requests in the order of arrival, with a chunk of each. A batch holds at most
`max_num_batched_tokens` tokens and at most `chunk_tokens` prompt tokens; a chunk is as long as
they allow. A request is admitted only if a token of it can be taken, fewer than `max_num_seqs`
requests run, it is not in flight itself (see below), and every node of its pipeline has room
for its KV cache, which it gets on all of them at once. Admission stops at the first request
for which this does not hold. Several batches may be formed in one instant.

*Preemption.* Under ``paged``, a decode token gets its block when it is taken. If there is
none, the running request that arrived last is preempted, be it in flight or not, and so on as
in mode ``stage``. It waits for admission at the same pipeline, its tokens in flight are
computed in vain, and it is not admitted before their batches are back. A batch for which a
request was preempted admits none; if it has no token it is not sent, and the next is formed at
once.

*Passage.* A batch is in preparation on the host for `iteration_s` seconds before it reaches
the first stage. Nodes compute batches in the order in which they were formed. Between two
stages a batch is one message on each link, with or without contention, and batches of a
pipeline never overtake each other. After the last stage the ids return together. Under
``serial`` with `micro_batch_tokens`, a batch is cut into parts of so many tokens, the last one
may be shorter, in the order in which its tokens were taken; a chunk may lie in several parts.
Each part is computed by a node at once, as a batch of its own, and is a message of its own.
The ids return when the last part is computed at the last stage. A visit is the share of a
request in a part at a node; an iteration is a part at a node.

*Events.* A pipeline is up while all of its nodes are. When it goes down, all batches in flight
are lost, also ids on their way back, its nodes become idle, and all of its requests that have
not ended start again as above: the policy picks another pipeline. Requests that find no
pipeline up are stranded at the first non-empty tier until one is up.

*Order of simultaneous events*: first ends of parts at nodes (by node index), then failures and
recoveries, batches that come back, batches and parts that reach a stage, requests that reach
the first stage (by request index), and last, pipeline by pipeline, new batches and then starts
of parts. A part that takes 0 s ends after all these starts, and the order begins again within
the instant.

References
----------
.. [1] vLLM v1, ``Scheduler.schedule`` and ``EngineCore.step_with_batch_queue``,
   https://github.com/vllm-project/vllm.
.. [2] llama.cpp, ``llama-server`` (``update_slots``), https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hypsolve import catalog
from hypsolve.dispatch.policies import Choose
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Batching, KvAdmission, Runtime
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.simulation import flow_level, token_level
from hypsolve.simulation.events import Event, check_events, count_from, early
from hypsolve.simulation.options import FROM_RUNTIME, Options, check_policy
from hypsolve.simulation.token_setup import System
from hypsolve.simulation.trace import Trace

LEVELS = ("flow", "token")


@valid.suggest_keywords("simulate")
def simulate(
    problem: Deployment | Instance,
    partition: Partition,
    policy: str | Choose | Schedule = "hypsched_rt",
    *,
    level: str | None = None,
    seed: int = 0,
    runtime: str | Runtime | None = None,
    batching: Batching | str = FROM_RUNTIME,
    max_num_seqs: int = FROM_RUNTIME,
    max_num_batched_tokens: int | None = FROM_RUNTIME,
    chunk_tokens: int | None = FROM_RUNTIME,
    micro_batch_tokens: int | None = FROM_RUNTIME,
    kv_admission: KvAdmission | str = FROM_RUNTIME,
    kv_block_tokens: int = FROM_RUNTIME,
    iteration_s: float = FROM_RUNTIME,
    users: int | None = None,
    think_time_s: float = 0.0,
    link_contention: bool = False,
    events: Iterable[Event] = (),
    record_visits: bool = False,
    expected_output_tokens: int | None = None,
    time_limit_s: float | None = None,
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
        Seed of policies that use random numbers.
    runtime : str or Runtime, optional
        A name in `hypsolve.runtimes`, or a record: its memory, and the defaults of all options
        from `batching` to `iteration_s`. Default: the runtime of the deployment, which is
        ``ideal`` unless it names another.
    batching : Batching or str
        ``stage``: every node forms its own batches. ``pipeline``: a batch passes all stages,
        with one batch in flight for each non-empty stage. ``serial``: one batch is in flight.
    max_num_seqs : int
        Maximum number of requests in one iteration of a node under ``stage``; of requests that
        run at once in a pipeline under ``pipeline`` and ``serial``.
    max_num_batched_tokens : int, optional
        Maximum number of tokens in one iteration or batch, decode tokens first.
    chunk_tokens : int, optional
        Maximum number of prompt tokens in one iteration or batch; None: prompts are computed
        whole.
    micro_batch_tokens : int, optional
        Tokens of the parts into which a batch is cut under ``serial``; default: not cut.
    kv_admission : KvAdmission or str
        ``reserve``: KV cache for prompt and output is reserved at admission. ``paged``: it is
        given block by block, and requests are preempted when it runs out.
    kv_block_tokens : int
        Tokens of a block under ``paged``.
    iteration_s : float
        Seconds on the host that each iteration or batch begins with.
    users : int, optional
        Closed loop: number of users, each with one request at a time. Default: requests arrive
        when the deployment says.
    think_time_s : float
        Seconds from the end of a request to the next one of its user; needs `users`.
    link_contention : bool
        If True, a link sends one message at a time.
    events : iterable of Event
        Slowdowns, failures, recoveries, joins, changes of bandwidth.
    record_visits : bool
        If True, the trace has a row per visit; memory grows with the tokens.
    expected_output_tokens : int, optional
        Output length that policies assume for every request when they add up work and KV cache;
        for example, the mean of past requests. Default: the true length. No real router knows
        it, so the results are a best case for policies that use it. Policies always see the KV
        cache that nodes have actually reserved.
    time_limit_s : float, optional
        Seconds of computation after which a simulation at token level is given up; compiling
        comes before. Default: none.

    Returns
    -------
    Trace

    Raises
    ------
    TimeoutError
        If the time limit passes before the last request has ended.
    ValueError, TypeError
        If the partition does not fit the tiers and blocks of the problem, if no node of a tier
        can hold its stage, if an option is invalid, needs another one, or differs from its
        default at a level that does not have it, or if a policy returns something other than a
        node of ``tier_state.nodes``.

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
    >>> hs.simulate(deployment, hs.Partition((0, 8, 34)), batching="pipeline", users=4)
    <Trace of llama-3-8b @ lab at token level: hypsched_rt, 20 requests, 20 ended, 4154 visits>
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
    if runtime is not None and isinstance(problem, Deployment):
        gpus = [node.gpu for tier in problem.network.tiers for node in tier.nodes]
        problem = replace(problem, runtime=catalog.runtime(runtime, gpus=gpus))
    of_runtime: dict[str, Any] = {
        "batching": batching,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "chunk_tokens": chunk_tokens,
        "micro_batch_tokens": micro_batch_tokens,
        "kv_admission": kv_admission,
        "kv_block_tokens": kv_block_tokens,
        "iteration_s": iteration_s,
    }
    given = {name: value for name, value in of_runtime.items() if value is not FROM_RUNTIME}
    if level == "token" and isinstance(problem, Deployment):
        given = problem.runtime.limits(**given)
    options = Options(
        **given,
        users=users,
        think_time_s=think_time_s,
        link_contention=link_contention,
        events=events,  # type: ignore[arg-type]  # becomes a tuple
        record_visits=record_visits,
        expected_output_tokens=expected_output_tokens,
    )
    seed = valid.whole("simulate", "seed", seed)
    if time_limit_s is not None:
        time_limit_s = valid.real("simulate", "time_limit_s", time_limit_s, strict=True)
    check_policy(policy)
    if level == "flow":
        unfit = options.token_level_only()
        unfit += ["policy, a Schedule,"] if isinstance(policy, Schedule) else []
        if unfit:
            raise ValueError(f"simulate: {unfit[0]} needs level 'token', got level 'flow'")
        assert not isinstance(policy, Schedule)
        return flow_level.serve(problem, partition, policy, seed, options.record_visits)
    if not isinstance(problem, Deployment):
        raise ValueError(
            "simulate: level 'token' needs a Deployment (an Instance knows no tokens), got an"
            " Instance"
        )
    first_s, span_s = problem.requests.arrival_s.min(), np.ptp(problem.requests.arrival_s)
    early("simulate", "arrival_s", float(span_s), " after the first arrival")
    events = check_events(options.events, problem.network)
    options = replace(options, events=count_from(events, float(first_s)))
    return token_level.serve(System(problem, partition, policy, seed, options), time_limit_s)
