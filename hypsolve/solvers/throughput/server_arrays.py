"""`server_of`: ServingInstance -> the arrays that the kernels read."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hypsolve.kernels import throughput as kernels
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.stage_contents import stage_contents

MODES = {
    Batching.STAGE: kernels.STAGE,
    Batching.PIPELINE: kernels.PIPELINE,
    Batching.SERIAL: kernels.SERIAL,
}
FAMILIES = {
    Batching.STAGE: "throughput.stage_mode",
    Batching.PIPELINE: "throughput.pipeline_mode",
    Batching.SERIAL: "throughput.pipeline_mode",
}
"""The part of the family ``throughput`` of kernels that a batching mode needs."""


def server_of(instance: ServingInstance) -> kernels.Server:
    """Return the arrays of an instance for the kernels of the fluid model."""
    rules, lengths, links, nodes = (
        instance.rules,
        instance.lengths,
        instance.links,
        instance.nodes,
    )
    content, counts = stage_contents(
        instance.blocks.block_kind, instance.blocks.fixed_s.shape[1]
    )
    groups, node_group = _groups(instance)
    group_tier, group_class, group_bytes, group_size = groups
    n_tiers, n_cuts = instance.n_tiers, instance.n_blocks + 1
    link_s = np.zeros((n_tiers, n_cuts))
    link_s[:-1] = links.token_s[:, links.cut_kind]
    tiers = np.arange(n_tiers + 1)
    return kernels.Server(
        times=block_rows(instance),
        counts=counts,
        content=content,
        batching=MODES[rules.batching],
        iteration_s=rules.iteration_s,
        group_start=np.searchsorted(group_tier, tiers).astype(np.int64),
        group_class=group_class,
        group_size=group_size.astype(np.float64),
        room=_rooms(instance, counts, int(content[0, -1]), group_class, group_bytes),
        node_start=np.searchsorted(nodes.node_tier, tiers).astype(np.int64),
        node_group=node_group,
        link_s=link_s,
        round_trip_s=np.append(links.round_trip_s, 0.0),
        entry_s=np.append(0.0, np.cumsum(links.entry_s)) + rules.request_s,
        max_num_seqs=float(rules.max_num_seqs),
        max_tokens=_or_inf(rules.max_num_batched_tokens),
        max_prompt_tokens=_or_inf(rules.prompt_limit),
        cut_min=instance.limits.cut_min.astype(np.int64),
        cut_max=instance.limits.cut_max.astype(np.int64),
        min_blocks=np.array(instance.min_blocks, dtype=np.int64),
        max_blocks=instance.limits.max_blocks.astype(np.int64),
        lengths=kernels.Lengths(
            lengths.prompt_tokens,
            lengths.decode_passes,
            lengths.chunks,
            lengths.hold_passes,
            lengths.hold_chunks,
            lengths.hold_prompt_tokens,
        ),
        targets=_targets(instance),
    )


def block_rows(instance: ServingInstance) -> Array:
    """Return the numbers of each kind of block on each class, as `Server.times` holds them."""
    blocks, lengths = instance.blocks, instance.lengths
    times = np.zeros((*blocks.fixed_s.shape, kernels.N_COLUMNS))
    last = blocks.last_token_only == 1
    columns: list[NDArray[np.float64]] = [
        blocks.fixed_s,
        blocks.read_s,
        blocks.expert_s,
        np.broadcast_to(blocks.idle_share, blocks.fixed_s.shape),
        blocks.compute_token_s,
        blocks.memory_token_s,
        blocks.compute_chunk_s,
        blocks.memory_chunk_s,
        np.broadcast_to(
            np.where(last, 1 / lengths.chunks, lengths.chunk_tokens), blocks.fixed_s.shape
        ),
        np.broadcast_to(last.astype(np.float64), blocks.fixed_s.shape),
        blocks.mixed_s,
        blocks.linear_token_s,
        blocks.linear_chunk_s,
    ]
    for at, column in enumerate(columns):
        times[:, :, at] = column
    times[:, :, len(columns) :] = blocks.collective_s
    return times


def _groups(
    instance: ServingInstance,
) -> tuple[tuple[IntArray, IntArray, Array, IntArray], IntArray]:
    """Return tier, class, memory and size of groups of equal nodes; the group of each node."""
    nodes = instance.nodes
    rows = np.stack(
        [nodes.node_tier, nodes.node_class, nodes.node_bytes.astype(np.float64)], axis=1
    )
    unique, inverse, sizes = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    tier, node_class = unique[:, 0].astype(np.int64), unique[:, 1].astype(np.int64)
    return (tier, node_class, unique[:, 2].copy(), sizes), inverse.reshape(-1).astype(np.int64)


def _rooms(
    instance: ServingInstance,
    counts: Array,
    whole: int,
    group_class: IntArray,
    group_bytes: Array,
) -> Array:
    """Return the requests that fit on a node of a group beside each stage, 0 if none does."""
    lengths = instance.lengths
    weights, kv = (table[group_class] for table in stage_bytes(instance, counts, whole))
    free = group_bytes[:, None] - weights
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = np.where(kv > 0, free / kv, math.inf)
    rooms = tokens / lengths.held_tokens
    if lengths.alike:
        rooms = np.floor(rooms * (1 + 1e-12))
    fits = (free >= -1e-12 * group_bytes[:, None]) & (
        tokens >= lengths.resident_tokens * (1 - 1e-12)
    )
    return np.ascontiguousarray(np.where(fits, rooms, 0.0))


def stage_bytes(instance: ServingInstance, counts: Array, whole: int) -> tuple[Array, Array]:
    """Return the weights of each stage and its KV cache per token, by class and content.

    Parameters
    ----------
    instance : ServingInstance
    counts : ndarray, shape (n_contents, n_kinds)
        Blocks of each kind; see `hypsolve.problem.stage_contents`.
    whole : int
        Content of the stage of all blocks, which has no tied weights twice.
    """
    blocks = instance.blocks
    weights = blocks.weight_bytes @ counts.T
    weights[:, whole] -= blocks.tied_bytes
    return weights, blocks.kv_bytes_per_token @ counts.T


def _targets(instance: ServingInstance) -> kernels.Targets:
    rules = instance.rules
    counted = instance.objective is not ServingObjective.THROUGHPUT
    times = (rules.ttft_slo_s, rules.tpot_slo_s, rules.latency_slo_s)
    ttft_s, tpot_s, latency_s = (_or_inf(t) if counted else math.inf for t in times)
    users = _or_inf(rules.users)
    return kernels.Targets(ttft_s, tpot_s, latency_s, users, rules.think_time_s)


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else float(value)
