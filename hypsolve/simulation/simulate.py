"""Simulation of requests under a partition and a policy: `simulate`, at two levels.

**Flow level**: a request visits each stage once, a node serves one request at a time, and links
never queue. This level runs `hypsolve.schedule` and returns the result as a `Trace`.

**Token level**: requests are served token by token, as in LLM inference.

*Passes.* A request has p prompt and o output tokens. Its prefill yields the first output token.
Each of o - 1 decode passes, with one token of input, yields the next. Every pass starts at the
first non-empty stage and goes through all others. Then the id of the token returns to the first
stage over the return latencies of the links in between. The next pass begins there at once;
after the last token, the request frees its KV cache.

*Delivery.* Requests come from the request side, at the first tier. Empty tiers before the first
stage are crossed once, by the ids of the prompt, when the request arrives. Each token travels
on over their return latencies to the request side, where it is delivered. The first delivery
ends the time to first token, and the last delivery ends the request.

*Pinning.* When a request first reaches a stage, the policy picks one node that can hold the
stage and is up. This node keeps the request's KV cache until the last token is back. The
request queues there, first come, first served, until p + o tokens of KV cache are free, and
then reserves them. `hypsolve.dispatch.policies.TierState` lists what a policy sees. The policy
HypSched-RT prefers nodes with enough free KV cache for the request. A policy knows the true
output length of a request. If `expected_output_tokens` is given, it assumes that length
instead. Admission always reserves KV cache for the true length. The measured slowdown of a node
is a moving average, over its iterations, of the ratio of the time that an iteration took to the
time that its batch takes at speed 1. It restarts at 1 when the node recovers.

*Batching.* A node that is idle and has waiting tokens of admitted requests starts an iteration
at once. It takes requests in the order in which their tokens began to wait: at most
`max_num_seqs` of them, and at most `chunk_tokens` tokens of prompts. A prompt beyond that
limit waits, but the node still takes decode tokens that stand behind the prompt in this order.
A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` for the whole batch, and
reads its weights once. The LM head computes only the positions that yield a token. A chunk of a
prompt moves on to the next stage as soon as it is computed.

*Links.* On the way to a non-empty stage a message crosses all links since the non-empty stage
before (to the first one: since the first tier), one link after the other. A link takes the
bytes over its rate, and then its latency. Messages of one request keep their order. By default
links never queue. With `link_contention` each link sends one message at a time, first come,
first served. The decode tokens of one iteration are one message, and each chunk of a prompt is
another.

*Events.* See `hypsolve.Event`. Work under way when a speed changes continues at the new speed.
When a node fails, requests whose work there was not complete start again at the first stage,
which keeps their ids: their prompts and the tokens that came back are computed again. A request
that finds no node up waits for one; if none ever comes up, the request never ends.

*Order of simultaneous events*: first ends of iterations, then failures and recoveries, tokens
that come back to the first stage, decode tokens that arrive at a stage, prompts or chunks
that arrive at a stage (by request index), and last starts of iterations. Ties go to the lower
request index, then to the lower node index. The simulation is deterministic: equal inputs give
equal traces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypsolve.dispatch.policies import Choose
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.simulation import flow_level, token_level
from hypsolve.simulation.events import Event, check_events, early
from hypsolve.simulation.options import CHUNK_TOKENS, MAX_NUM_SEQS, Options, check_policy
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
    max_num_seqs: int = MAX_NUM_SEQS,
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
        Seed of policies that use random numbers.
    max_num_seqs : int
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
        Output length that policies assume for every request when they add up work and KV cache;
        for example, the mean of past requests. Default: the true length. No real router knows
        it, so the results are a best case for policies that use it. Policies always see the KV
        cache that nodes have actually reserved.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError, TypeError
        If the partition does not fit the tiers and blocks of the problem, if no node of a tier
        can hold its stage, if an option that the level does not have differs from its default,
        or if a policy returns something other than a node of ``tier_state.nodes``.

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
    options = Options(
        max_num_seqs=max_num_seqs,
        chunk_tokens=chunk_tokens,
        link_contention=link_contention,
        events=events,  # type: ignore[arg-type]  # becomes a tuple
        record_visits=record_visits,
        expected_output_tokens=expected_output_tokens,
    )
    seed = valid.whole("simulate", "seed", seed)
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
    early("simulate", "arrival_s", float(problem.requests.arrival_s.max()))
    options = replace(options, events=check_events(options.events, problem.network))
    return token_level.serve(System(problem, partition, policy, seed, options))
