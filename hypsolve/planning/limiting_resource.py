"""`limiting_resource`: what keeps a partition from serving more requests."""

from __future__ import annotations

import numpy as np

from hypsolve.planning.rate_bound import stages_of
from hypsolve.problem import costs
from hypsolve.problem.deployment import Block, CostModel, Deployment, GpuProfile
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
    link is full, KV memory or the batch limit keeps requests waiting, or they wait for nothing
    but each other's latency.

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
    loads = {
        f"link from {tier.name!r}": _link_load(instance, partition, k, served_per_s)
        for k, tier in enumerate(deployment.network.tiers[:-1])
    }
    name, load = max(loads.items(), key=lambda each: each[1], default=("", 0.0))
    busiest, busy, where = None, 0.0, 0
    for s, stage in enumerate(stages_of(deployment, instance, partition)):
        nodes = _nodes_at_work(beyond, stage.tier)
        if nodes.size:
            share = float(beyond.series.busy[nodes][:, offered].mean())
            if share > busy:
                busiest, busy, where = stage, share, s
    if load >= FULL and load >= busy:
        return name
    kv_tier = _full_of_kv(beyond, offered, deployment)
    limit = deployment.runtime.batch_limit()
    if busiest is not None and busy >= FULL:
        tier = deployment.network.tiers[busiest.tier].name
        nodes = _nodes_at_work(beyond, busiest.tier)
        batch = beyond.n_tokens[nodes].sum() / max(beyond.n_iterations[nodes].sum(), 1)
        if _is_compute_bound(busiest.blocks, busiest.nodes[0].gpu, deployment, beyond, nodes):
            return f"compute of {tier!r}"
        if kv_tier:
            return f"KV memory of {kv_tier!r}"
        if batch >= FULL * limit:
            return f"batch limit of {limit}"
        return f"memory bandwidth of {tier!r}"
    if kv_tier:
        return f"KV memory of {kv_tier!r}"
    if float(beyond.series.n_waiting[:, offered].mean()) > 0.5:
        return f"batch limit of {limit}"
    return "latency of the passes" if where or load < FULL else name


def _offered_bins(trace: Trace) -> np.ndarray:
    """Return the bins in the second half of the time in which load is offered."""
    mid_s = trace.series.mid_s
    first_s, last_s = trace.arrival_s.min(), trace.arrival_s.max()
    return (mid_s > (first_s + last_s) / 2) & (mid_s < last_s)


def _nodes_at_work(trace: Trace, tier: int) -> np.ndarray:
    return np.flatnonzero((trace.node_tier == tier) & (trace.busy_s > 0))


def _link_load(instance: Instance, partition: Partition, k: int, served_per_s: float) -> float:
    cut = partition.cuts[k + 1]
    if cut >= instance.n_blocks:
        return 0.0
    return float(instance.reference_link_s[k, cut]) * served_per_s


def _full_of_kv(trace: Trace, offered: np.ndarray, deployment: Deployment) -> str:
    """Return the tier whose KV cache is full, the fullest one; empty if none is.

    A node counts as full if the request at the head of its queue does not fit.
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
    blocks: list[Block],
    gpu: GpuProfile,
    deployment: Deployment,
    trace: Trace,
    nodes: np.ndarray,
) -> bool:
    """Return whether FLOPs take longer than bytes in the iterations that nodes ran."""
    if deployment.cost_model is CostModel.FLOPS:
        return True
    n_requests = len(trace.arrival_s)
    n_iterations = float(trace.n_iterations[nodes].sum()) / n_requests
    prompt, output = int(trace.prompt_tokens[0]), int(trace.output_tokens[0])
    context = prompt + output / 2
    compute_s = memory_s = 0.0
    for block in blocks:
        first = costs.step_work(block, float(prompt), 0.0)
        later = costs.step_work(block, 1.0, context)
        one = float(costs.weight_read_bytes(block, 1.0)) - block.gathered_bytes_per_token
        flops = float(first[0]) + (output - 1) * float(later[0])
        moved = float(first[1]) + (output - 1) * float(later[1]) - output * one
        compute_s += flops / gpu.flops_per_s
        memory_s += (max(moved, 0.0) + n_iterations * one) / gpu.bytes_per_s
    return compute_s > memory_s
