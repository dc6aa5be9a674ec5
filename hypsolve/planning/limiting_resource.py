"""`limiting_resource`: what keeps a partition from serving more requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.rate_bound import Stage, request_work, stages_of
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.deployment import CostModel, Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.simulation.trace import Trace

FULL = 0.85  # share from which a resource counts as full


def limiting_resource(
    deployment: Deployment, instance: Instance, partition: Partition, beyond: Trace
) -> str:
    """Return what limits the rate, found in a simulation beyond the largest sustainable one.

    The fullest of all links and tiers is named. A tier whose nodes compute nearly all the time
    is limited by compute if FLOPs take longer than reading weights and KV cache in the batches
    that were formed. Otherwise larger batches would help: it is limited by KV memory if that is
    full, by the batch limit if the batches are, else by memory bandwidth. If no node and no
    link is full, requests wait for KV memory or for the batch limit; if none waits, the
    latency of decode passes limits the rate.

    Parameters
    ----------
    deployment, instance, partition
        As in `hypsolve.planning.forecast.predict`.
    beyond : Trace
        A simulation in which more requests arrive than can be served.

    Returns
    -------
    str
        Such as ``memory bandwidth of 'edge'`` or ``link from 'edge'``.
    """
    offered = _offered_bins(beyond)
    if not offered.any():
        return ""
    served_per_s = beyond.metrics().requests_per_s
    link_loads = {
        f"link from {tier.name!r}": _link_load(instance, partition, k, served_per_s)
        for k, tier in enumerate(deployment.network.tiers[:-1])
    }
    link, link_load = max(link_loads.items(), key=lambda each: each[1], default=("", 0.0))
    busy_of = {}
    stages = stages_of(deployment, instance, partition)
    for s, stage in enumerate(stages):
        nodes = _nodes_at_work(beyond, stage.tier)
        if nodes.size:
            busy_of[s] = float(beyond.series.busy[nodes][:, offered].mean())
    busiest = max(busy_of, key=busy_of.__getitem__, default=0)
    busy = busy_of.get(busiest, 0.0)
    if link_load >= FULL and link_load >= busy:
        return link
    kv_tier = _full_of_kv(beyond, offered, deployment)
    limit = deployment.runtime.batch_limit
    if busy >= FULL:
        stage = stages[busiest]
        tier = deployment.network.tiers[stage.tier].name
        nodes = _nodes_at_work(beyond, stage.tier)
        batch = beyond.n_tokens[nodes].sum() / max(beyond.n_iterations[nodes].sum(), 1)
        if _is_compute_bound(stage, deployment, beyond, nodes):
            return f"compute of {tier!r}"
        if not kv_tier and batch < FULL * limit:
            return f"memory bandwidth of {tier!r}"
    elif not kv_tier and float(beyond.series.n_waiting[:, offered].mean()) <= 0.5:
        return "latency of decode passes"
    return f"KV memory of {kv_tier!r}" if kv_tier else f"batch limit of {limit}"


def _offered_bins(trace: Trace) -> NDArray[np.bool_]:
    """Return the bins in the second half of the time in which load is offered."""
    mid_s = trace.series.mid_s
    first_s, last_s = trace.arrival_s.min(), trace.arrival_s.max()
    return (mid_s > (first_s + last_s) / 2) & (mid_s < last_s)


def _nodes_at_work(trace: Trace, tier: int) -> IntArray:
    return np.flatnonzero((trace.node_tier == tier) & (trace.busy_s > 0))


def _link_load(instance: Instance, partition: Partition, k: int, served_per_s: float) -> float:
    cut = partition.cuts[k + 1]
    if cut >= instance.n_blocks:
        return 0.0
    return float(instance.reference_link_s[k, cut]) * served_per_s


def _full_of_kv(trace: Trace, offered: NDArray[np.bool_], deployment: Deployment) -> str:
    """Return the tier with the fullest KV cache; empty if none is full.

    Half a request is counted on top of what is reserved: on average so much stays free in a
    cache in which the next request does not fit.
    """
    request = float(trace.prompt_tokens[0] + trace.output_tokens[0])
    best, name = 0.0, ""
    for k, tier in enumerate(deployment.network.tiers):
        nodes = _nodes_at_work(trace, k)
        capacity = trace.kv_capacity_bytes[nodes]
        if not nodes.size or np.isinf(capacity).any() or not capacity.all():
            continue
        per_token = sum(
            deployment.model.blocks[b].kv_bytes_per_token for b in trace.partition.stage(k)
        )
        held = trace.series.kv_bytes[nodes][:, offered].mean(axis=1)
        share = float(((held + request * per_token / 2) / capacity).mean())
        if share >= max(best, FULL):
            best, name = share, tier.name
    return name


def _is_compute_bound(
    stage: Stage, deployment: Deployment, trace: Trace, nodes: IntArray
) -> bool:
    """Return whether FLOPs take longer than bytes in the iterations that nodes ran."""
    if deployment.cost_model is CostModel.FLOPS:
        return True
    gpu = stage.nodes[0].gpu
    n_iterations = float(trace.n_iterations[nodes].sum()) / len(trace.arrival_s)
    compute_s = memory_s = 0.0
    for block in stage.blocks:
        work = request_work(block, deployment)
        compute_s += work.flops / gpu.flops_per_s
        memory_s += (work.moved_bytes + n_iterations * work.weight_bytes) / gpu.bytes_per_s
    return compute_s > memory_s
