"""Baselines: splits by rules that do not know of batches, and by the paper's objectives.

Each rule reads an `Instance` made of the numbers of the `ServingInstance`: seconds of a request
that is served alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import check_serving
from hypsolve.problem.serving_result import ServingOutcome
from hypsolve.problem.solution import Outcome, Status
from hypsolve.solvers.partition import heuristics
from hypsolve.solvers.partition.hypsplit import hypsplit_dp


def even_split(instance: ServingInstance, *, time_limit_s: float, seed: int) -> ServingOutcome:
    """Give every tier an equal number of blocks."""
    return _by(heuristics.even_split, Objective.BOTTLENECK, instance, time_limit_s, seed)


def memory_proportional(
    instance: ServingInstance, *, time_limit_s: float, seed: int
) -> ServingOutcome:
    """Give every tier bytes in proportion to the memory of its largest node."""
    rule = heuristics.memory_proportional
    return _by(rule, Objective.BOTTLENECK, instance, time_limit_s, seed)


def speed_proportional(
    instance: ServingInstance, *, time_limit_s: float, seed: int
) -> ServingOutcome:
    """Give every tier work in proportion to its pooled speed for one request."""
    rule = heuristics.speed_proportional
    return _by(rule, Objective.BOTTLENECK, instance, time_limit_s, seed)


def bottleneck_split(
    instance: ServingInstance, *, time_limit_s: float, seed: int
) -> ServingOutcome:
    """Minimise the bottleneck of requests that are served one at a time."""
    return _by(hypsplit_dp, Objective.BOTTLENECK, instance, time_limit_s, seed)


def path_split(instance: ServingInstance, *, time_limit_s: float, seed: int) -> ServingOutcome:
    """Minimise the latency of a request that is served alone."""
    return _by(hypsplit_dp, Objective.PATH, instance, time_limit_s, seed)


def p0_split(instance: ServingInstance, *, time_limit_s: float, seed: int) -> ServingOutcome:
    """Minimise the paper's objective: the largest stage plus all transfers, of one request.

    The paper's objective leaves no tier empty, even if the instance allows it.
    """
    return _by(hypsplit_dp, Objective.P0, instance, time_limit_s, seed)


def _by(
    rule: Callable[..., Outcome],
    objective: Objective,
    instance: ServingInstance,
    time_limit_s: float,
    seed: int,
) -> ServingOutcome:
    if objective is Objective.P0 and instance.n_tiers > instance.n_blocks:
        return ServingOutcome(Status.INFEASIBLE, message="p0 needs a block in every tier")
    alone = one_request(instance, objective)
    outcome = rule(alone, time_limit_s=time_limit_s, seed=seed)
    if outcome.partition is None:
        return ServingOutcome(outcome.status, message=outcome.message)
    for violation in check_serving(instance, outcome.partition):
        return ServingOutcome(Status.INFEASIBLE, message=str(violation))
    return ServingOutcome(Status.FEASIBLE, outcome.partition, message=outcome.message)


def one_request(instance: ServingInstance, objective: Objective) -> Instance:
    """Return the `Instance` of one request that is served alone, at its mean lengths.

    Raises
    ------
    ValueError
        If weights or KV cache take different memory on different classes of nodes, as with
        tensor parallelism: an `Instance` has one size for each block.
    """
    blocks, links, lengths = instance.blocks, instance.links, instance.lengths
    size = blocks.weight_bytes + blocks.kv_bytes_per_token * lengths.resident_tokens
    if (size != size[0]).any() or (blocks.tied_bytes != blocks.tied_bytes[0]).any():
        raise ValueError(
            "serving instance: weight_bytes and kv_bytes_per_token must be equal for all"
            " classes of nodes, for methods that serve one request at a time"
        )
    kind_s = lengths.decode_passes * _alone_s(instance, 1.0, 0.0)
    kind_s += lengths.chunks * _alone_s(instance, 0.0, 1.0)
    crossing = lengths.prompt_tokens + lengths.decode_passes
    n_links, n_cuts = len(links.round_trip_s), instance.n_blocks + 1
    busy_s = np.zeros((1, n_links, n_cuts))
    busy_s[0, :, 1:-1] = crossing * links.token_s[:, links.cut_kind[1:-1]]
    transfer_s = busy_s.copy()
    transfer_s[0, :, 1:-1] += (lengths.decode_passes + 1) * links.round_trip_s[:, None]
    transfer_s[0, :, 0] = links.entry_s  # behind empty leading tiers
    nodes = instance.nodes
    tiers = [
        [(int(nodes.node_class[n]), float(nodes.node_bytes[n])) for n in instance.nodes_of(k)]
        for k in range(instance.n_tiers)
    ]
    alone = Instance.from_kinds(
        kind_s=kind_s[None],
        block_kind=blocks.block_kind,
        block_bytes=size[0, blocks.block_kind],
        transfer_kind_s=transfer_s,
        occupancy_kind_s=busy_s,
        cut_kind=np.arange(n_cuts),
        tiers=tiers,
        objective=objective,
        allow_empty=instance.rules.allow_empty and objective is not Objective.P0,
        min_blocks=instance.limits.min_blocks_given.tolist(),
        max_blocks=instance.limits.max_blocks.tolist(),
        tied_bytes=float(blocks.tied_bytes[0]),
        name=instance.name,
        tier_names=instance.tier_names,
        node_names=instance.names.node_names,
        class_names=instance.names.class_names,
    )
    return _with_pins(alone, instance)


def _with_pins(alone: Instance, instance: ServingInstance) -> Instance:
    """Return an instance with the limits of cuts of another one."""
    import dataclasses

    return dataclasses.replace(alone, limits=instance.limits)


def _alone_s(instance: ServingInstance, n_decode: float, n_chunks: float) -> Array:
    """Return the seconds of an iteration of one token or chunk, (n_classes, n_kinds)."""
    blocks, lengths = instance.blocks, instance.lengths
    last = blocks.last_token_only == 1
    of_chunk = np.where(last, 1 / lengths.chunks, lengths.chunk_tokens)
    tokens = n_decode + n_chunks * of_chunk
    share = np.where(last, np.minimum(tokens, 1.0), 1.0)
    compute = n_decode * blocks.compute_token_s + n_chunks * blocks.compute_chunk_s
    memory = share * blocks.read_s + blocks.expert_s * (1 - blocks.idle_share**tokens)
    memory = memory + n_decode * blocks.memory_token_s + n_chunks * blocks.memory_chunk_s
    alpha, beta, switch, gamma, delta = np.moveaxis(blocks.collective_s, 2, 0)
    moved = np.where(last, np.maximum(tokens, 1.0), tokens)
    above = np.maximum(gamma + delta * moved, alpha + beta * switch)
    collective = np.where(moved > switch, above, alpha + beta * moved)
    linear = n_decode * blocks.linear_token_s + n_chunks * blocks.linear_chunk_s
    linear = linear + (n_chunks > 0) * blocks.mixed_s
    seconds = share * (blocks.fixed_s + collective) + np.maximum(compute, memory) + linear
    return np.asarray(seconds)
