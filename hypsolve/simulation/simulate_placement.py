"""Simulation of a placement: unlike pipelines behind a router, token by token.

The rules are those of `hypsolve.simulation.simulate` at token level, but for the following.

*Router.* When a request arrives, the policy picks a pipeline, and the request stays there. The
pipelines may differ in their stages, GPUs, links and room for KV cache. They share nothing but
the router. Requests arrive at the router; the ids of the prompt reach the first stage at once.
Each token travels back to where requests enter: `PlacementProblem.entry_s`, the mean way in and
back, delays every delivery.

*Policies.* A pipeline takes the place of a node in `hypsolve.TierState`, as in the batching
modes ``pipeline`` and ``serial``: jobs and expected seconds are sums over its stages, and a
request counts at all of its stages as soon as it is routed there. Free KV cache is that of the
node with the least. The policy ``weighted`` shares the requests in proportion to
`Pipeline.requests_per_s`, smoothly, whatever the state.

*Batching modes.* In the modes ``pipeline`` and ``serial`` each pipeline has a scheduler; under
``pipeline``, as many batches may be in flight as it has stages. In the mode ``stage`` each node
forms its own batches, and a request goes from node to node of its pipeline. A request that is
preempted starts again at the first stage of its pipeline.

*Links.* By default links never queue. With `link_contention`, a link of a pipeline sends one
message at a time; pipelines that cross the same link between two sites do not delay each other.

*Closed loop.* The next request of a user follows the delivery of the last token, as in
`simulate`; pipelines at different distances do not change the order of sending.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hypsolve.dispatch.policies import POLICIES, Choose
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Requests
from hypsolve.problem.placement import Placement, PlacementProblem
from hypsolve.problem.runtime import Batching, KvAdmission
from hypsolve.simulation import token_level
from hypsolve.simulation.events import early
from hypsolve.simulation.options import FROM_RUNTIME, Options
from hypsolve.simulation.placement_layout import (
    check_memory,
    check_rules,
    deployment_of_placement,
    in_proportion,
    layout_of_placement,
)
from hypsolve.simulation.token_setup import System
from hypsolve.simulation.trace import Trace

OWNER = "simulate_placement"
PLACEMENT_POLICIES = (*POLICIES, "weighted")
"""Names of the policies that `simulate_placement` takes."""


@valid.suggest_keywords(OWNER)
def simulate_placement(
    problem: PlacementProblem,
    placement: Placement,
    requests: Requests | None = None,
    policy: str | Choose = "hypsched_rt",
    *,
    seed: int = 0,
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
    record_visits: bool = False,
    expected_output_tokens: int | None = None,
    time_limit_s: float | None = None,
) -> Trace:
    """Simulate how the pipelines of a placement serve requests behind a router.

    The docstring of the module `hypsolve.simulation.simulate_placement` states the rules.

    Parameters
    ----------
    problem : PlacementProblem
        Its model, fleet, runtime and cost model count; its objective and targets do not.
    placement : Placement
        It must keep the rules of `check_placement`; its loads count under the policy
        ``weighted`` alone.
    requests : Requests, optional
        Default: those of the problem.
    policy : str or callable
        ``weighted``, a name in `POLICIES`, or your own function ``(tier_state, request) ->
        pipeline``; `TierState.nodes` are then the indices of the pipelines.
    seed : int
        Seed of policies that use random numbers.
    batching, max_num_seqs, max_num_batched_tokens, chunk_tokens, micro_batch_tokens
        As in `simulate`, for each pipeline. Default: those of the runtime of the problem.
    kv_admission, kv_block_tokens, iteration_s
        Likewise.
    users, think_time_s, link_contention, record_visits, expected_output_tokens, time_limit_s
        As in `simulate`.

    Returns
    -------
    Trace
        Its tiers are the positions in the pipelines: tier s has the s-th stages, in the order
        of the pipelines, so that ``trace.node[:, 0]`` is the pipeline of each request. Nodes
        are named after their machines; where a machine has several stages, the pipeline and
        the stage follow, as in ``box (0.1)``. `trace.partition` is the placement.
        `hypsolve.pipeline_metrics` has the numbers of each pipeline.

    Raises
    ------
    TimeoutError
        If the time limit passes before the last request has ended.
    ValueError, TypeError
        If the placement breaks a rule, if a stage has no room for the longest request, if an
        option is invalid or needs another one, or if a policy returns something other than a
        pipeline.

    Examples
    --------
    >>> import hypsolve as hs
    >>> nodes = [hs.Node(name=name, gpu=hs.gpu(name)) for name in ("a100-80gb", "l4", "a10")]
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.workload(n_requests=40, rate_per_s=4.0),
    ...     runtime=hs.runtime("vllm", gpus=[node.gpu for node in nodes]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=node, site="room") for node in nodes),
    ...     ),
    ... )
    >>> placement = hs.Placement((
    ...     hs.Pipeline((hs.PlacedStage("a100-80gb", 1, 0, 34),), 3.0),
    ...     hs.Pipeline(
    ...         (hs.PlacedStage("l4", 1, 0, 16), hs.PlacedStage("a10", 1, 16, 34)), 1.0
    ...     ),
    ... ))
    >>> trace = hs.simulate_placement(problem, placement)
    >>> trace.metrics().n_finished
    40
    >>> trace = hs.simulate_placement(problem, placement, policy="weighted")
    >>> [pipeline.n_requests for pipeline in hs.pipeline_metrics(trace)]
    [30, 10]
    """
    valid.of_type(OWNER, "problem", problem, PlacementProblem)
    valid.of_type(OWNER, "placement", placement, Placement)
    requests = problem.requests if requests is None else requests
    valid.of_type(OWNER, "requests", requests, Requests)
    _check_policy(policy)
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
    options = Options(
        **problem.runtime.limits(**given),
        users=users,
        think_time_s=think_time_s,
        link_contention=link_contention,
        record_visits=record_visits,
        expected_output_tokens=expected_output_tokens,
    )
    seed = valid.whole(OWNER, "seed", seed)
    if time_limit_s is not None:
        time_limit_s = valid.real(OWNER, "time_limit_s", time_limit_s, strict=True)
    early(OWNER, "arrival_s", float(np.ptp(requests.arrival_s)), " after the first arrival")
    check_rules(problem, placement, requests)
    deployment = deployment_of_placement(problem, placement, requests)
    check_memory(problem, placement, deployment)
    assigned = None
    if policy == "weighted":
        by_arrival = np.argsort(requests.arrival_s, kind="stable")
        order = by_arrival if users is None else np.arange(len(requests))
        loads = [pipeline.requests_per_s for pipeline in placement.pipelines]
        assigned = in_proportion(loads, order)
    layout = layout_of_placement(problem, placement, deployment, assigned)
    system = System(deployment, placement, policy, seed, options, layout)
    return token_level.serve(system, time_limit_s)


def _check_policy(policy: str | Choose) -> None:
    if isinstance(policy, str):
        valid.known("policy", policy, PLACEMENT_POLICIES)
    elif not callable(policy):
        raise TypeError(f"{OWNER}: policy must be a name or a function, got {policy!r:.60}")
