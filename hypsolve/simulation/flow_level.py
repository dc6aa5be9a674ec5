"""Flow level of `simulate`: the schedule of `hypsolve.schedule`, as a trace."""

from __future__ import annotations

import math

import numpy as np

from hypsolve.dispatch.policies import Choose
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem import costs, evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.simulation.options import policy_name
from hypsolve.simulation.time_of_day import from_time_0
from hypsolve.simulation.time_series import bin_intervals
from hypsolve.simulation.trace import Series, Trace, Visits

N_BINS = 128


def serve(
    problem: Deployment | Instance,
    partition: Partition,
    policy: str | Choose,
    seed: int,
    record_visits: bool,
) -> Trace:
    """Schedule all requests and return a trace."""
    if isinstance(problem, Deployment):
        instance, requests = costs.to_instance(problem, allow_empty=True), problem.requests
        prompt_tokens, output_tokens = requests.prompt_tokens, requests.output_tokens
    else:
        instance = problem
        prompt_tokens = output_tokens = np.zeros(instance.n_requests, np.int64)
    served = schedule(instance, partition, policy, seed=seed)
    request, tier = np.nonzero(served.node >= 0)
    first = np.searchsorted(instance.node_tier, np.arange(instance.n_tiers))
    node = served.node[request, tier] + first[tier]
    start_s, end_s = served.start_s[request, tier], served.end_s[request, tier]
    reached_s = _reached_s(instance, partition, served)
    busy_s = np.zeros(instance.n_nodes)
    np.add.at(busy_s, node, end_s - start_s)
    trace = Trace(
        level="flow",
        name=instance.name,
        policy=policy_name(policy),
        seed=seed,
        partition=partition,
        tier_names=instance.tier_names,
        node_names=instance.node_names,
        node_tier=instance.node_tier,
        arrival_s=instance.release_s,
        end_s=evaluation.completion_s(served),
        first_token_s=np.full(instance.n_requests, math.nan),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        restarts=np.zeros(instance.n_requests, np.int64),
        lost_tokens=np.zeros(instance.n_requests, np.int64),
        preemptions=np.zeros(instance.n_requests, np.int64),
        node=served.node,
        reached_s=reached_s,
        admitted_s=served.start_s,
        left_s=served.end_s,
        busy_s=busy_s,
        n_iterations=np.bincount(node, minlength=instance.n_nodes),
        n_tokens=np.zeros(instance.n_nodes, np.int64),
        n_visits=len(node),
        series=_series(instance, node, reached_s[request, tier], start_s, end_s),
        kv_capacity_bytes=np.full(instance.n_nodes, math.inf),
        end_of_run_s=float(evaluation.completion_s(served).max()),
        extrapolated=instance.extrapolated,
        visits=_visits(request, node, start_s, end_s) if record_visits else None,
    )
    return from_time_0(trace, float(instance.arrival_s.min()), instance.arrival_s)


def _reached_s(instance: Instance, partition: Partition, served: Schedule) -> Array:
    """Return when requests reach tiers, shape (n_requests, n_tiers); nan: no stage there."""
    links_s = evaluation.transfer_s(instance, partition)
    reached_s = np.full((instance.n_requests, instance.n_tiers), math.nan)
    ready_s = instance.release_s
    for k in range(instance.n_tiers):
        if partition.stage(k):
            reached_s[:, k] = ready_s
            ready_s = served.end_s[:, k]
        if k < instance.n_tiers - 1:
            ready_s = ready_s + links_s[:, k]
    return reached_s


def _series(
    instance: Instance, node: IntArray, reached_s: Array, start_s: Array, end_s: Array
) -> Series:
    """Return the time averages; the arrays have shape (n_visits,)."""
    bin_s = float(end_s.max()) / N_BINS or 1.0

    def mean(begin_s: Array, until_s: Array) -> Array:
        return bin_intervals(
            begin_s, until_s, np.ones(len(node)), node,
            n_rows=instance.n_nodes, first_s=0.0, bin_s=bin_s, n_bins=N_BINS,
        )  # fmt: skip

    return Series(
        start_s=0.0,
        bin_s=bin_s,
        busy=mean(start_s, end_s),
        n_requests=mean(reached_s, end_s),
        n_waiting=mean(reached_s, start_s),
        kv_bytes=np.zeros((instance.n_nodes, N_BINS)),
        n_stranded=np.zeros((instance.n_tiers, N_BINS)),
    )


def _visits(request: IntArray, node: IntArray, start_s: Array, end_s: Array) -> Visits:
    order = np.lexsort((node, end_s))
    zeros = np.zeros(len(order), np.int64)
    return Visits(
        request=request[order], node=node[order], start_s=start_s[order],
        end_s=end_s[order], tokens=zeros, context_tokens=zeros,
    )  # fmt: skip
