"""Nodes and stages of a plan: blocks, memory, times, and what takes most of the time."""

from __future__ import annotations

from collections.abc import Iterator

from hypsolve.planning.plan import NodePlan, StagePlan
from hypsolve.planning.query import Solution
from hypsolve.planning.rate_bound import lengths
from hypsolve.problem import costs, evaluation
from hypsolve.problem.deployment import CostModel, Deployment
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result


def plan_nodes(solution: Solution) -> Iterator[NodePlan]:
    """Yield every node with its blocks, memory and time."""
    deployment, instance = solution.deployment, solution.result.instance
    partition = solution.result.partition
    assert partition is not None and deployment.max_resident_tokens is not None
    model = deployment.model
    for k, tier in enumerate(deployment.network.tiers):
        blocks = partition.stage(k)
        of_tier = [model.blocks[b] for b in blocks]
        weights = model.stage_weight_bytes(of_tier)
        holds = evaluation.can_hold(instance, k, blocks.start, blocks.stop)
        times_s = evaluation.node_stage_s(instance, k, blocks.start, blocks.stop)
        for node, is_used, time_s in zip(tier.nodes, holds, times_s, strict=True):
            used = bool(is_used and blocks)
            kv = deployment.kv_bytes_per_token(of_tier, node) * deployment.max_resident_tokens
            yield NodePlan(
                tier=tier.name,
                node=node.name,
                gpu=node.gpu.name,
                n_gpus=node.gpus,
                blocks=blocks if used else range(0),
                weight_bytes=float(weights) if used else 0.0,
                kv_bytes=float(kv) if used else 0.0,
                free_bytes=deployment.usable_bytes(node) - (weights + kv if used else 0),
                time_s=float(time_s) if used else 0.0,
                is_used=used,
            )


def plan_stages(result: Result, deployment: Deployment) -> Iterator[StagePlan]:
    """Yield every tier with its blocks and its share of the objective."""
    instance, partition = result.instance, result.partition
    assert partition is not None
    is_bottleneck = instance.objective is Objective.BOTTLENECK
    parts = []
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        time_s = evaluation.stage_s(instance, k, i, j, None if is_bottleneck else "fastest")
        link_s = 0.0
        if k < instance.n_tiers - 1 and is_bottleneck:
            link_s = evaluation.link_s(instance, k, j)
        elif k < instance.n_tiers - 1:
            link_s = float(instance.reference_transfer_kind_s[k, instance.cut_kind[j]])
        parts.append((time_s, link_s))
    counted = [time_s + link_s for time_s, link_s in parts]
    if instance.objective is Objective.P0:  # only the largest stage counts
        largest = max(range(len(parts)), key=lambda k: parts[k][0])
        counted = [link_s + (k == largest) * time_s for k, (time_s, link_s) in enumerate(parts)]
    whole = max(counted) if is_bottleneck else sum(counted)
    for k, (time_s, link_s) in enumerate(parts):
        yield StagePlan(
            tier=instance.tier_names[k],
            blocks=partition.stage(k),
            time_s=time_s,
            link_s=link_s,
            share=counted[k] / whole if whole else 0.0,
            binds=_binds(result, deployment, k, partition.stage(k), time_s, link_s),
        )


def _binds(
    result: Result, deployment: Deployment, k: int, blocks: range, time_s: float, link_s: float
) -> str:
    """Return what takes most of the time of one request alone on a tier and its link.

    Compute takes most of it if it takes more than half of the time on a node, averaged over the
    nodes that can hold the blocks, each weighted by the share of requests that it serves.
    """
    if link_s >= time_s:
        return "link" if link_s > 0 else ""
    if deployment.cost_model is CostModel.FLOPS:
        return "compute"
    holds = evaluation.can_hold(result.instance, k, blocks.start, blocks.stop)
    node_s = evaluation.node_stage_s(result.instance, k, blocks.start, blocks.stop)
    model, nodes = deployment.model, deployment.network.tiers[k].nodes
    prompt, output = lengths(deployment)
    compute_share = shares = 0.0
    for node, is_used, alone_s in zip(nodes, holds, node_s, strict=True):
        if is_used and alone_s > 0:
            profile = deployment.profile(node)
            compute_s = sum(
                float(costs.service_s(block, profile, prompt, output, CostModel.FLOPS))
                for block in (model.blocks[b] for b in blocks)
            )
            # a node serves requests in proportion to its speed
            compute_share += compute_s / alone_s / alone_s
            shares += 1 / alone_s
    return "compute" if compute_share > 0.5 * shares else "memory bandwidth"
