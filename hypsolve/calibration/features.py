"""Count what measured runs compute and move, as arrays: `Features`, for many forecasts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from hypsolve import catalog
from hypsolve.calibration.closed_loop import deployment_of, model_of
from hypsolve.calibration.peaks import peaks
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.weight_bits import GEMM_BITS, READ_BITS, kv_share
from hypsolve.problem import costs
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Model
from hypsolve.problem.runtime import KvAdmission

PREFILL_FIRST = frozenset({"sglang"})
"""Runtimes that compute all waiting prompts before they decode, unless asked to mix them."""


@dataclass(frozen=True, slots=True)
class Features:
    """Work, limits and peak rates of runs; every field is an array with a value per run.

    FLOPs and bytes are those of one GPU of the group, over all layers (`head_*`: of the head).

    Attributes
    ----------
    users, prompt_tokens, output_tokens, running : ndarray
        `running`: users whose requests the limits of the runtime let run at once.
    chunks : ndarray
        Pieces in which a prompt is computed.
    flops_per_token, pair_flops_per_token, weight_bytes, expert_bytes, idle_share : ndarray
        `pair_flops_per_token`: FLOPs of attention per token of a prompt. `expert_bytes`: of all
        experts; a token leaves `idle_share` of them idle, which are not read.
    kv_bytes_per_token : ndarray
        KV cache that a decode token reads at the mean context.
    state_bytes_per_token, n_layers, collectives : ndarray
        Bytes of a token's hidden state, over all layers; layers; all-reduces.
    message_bytes_per_token, switch_bytes, small_s, small_s_per_byte, large_s, large_s_per_byte
        All-reduce; see `AllReduce`.
    head_flops, head_bytes : ndarray
    gemm_bits, read_bits : ndarray
        Bits in which matrices are multiplied, and bits of the weights: 16, 8 or 4.
    gemm_flops_per_s, flops_per_s, bytes_per_s : ndarray
        Peaks of the datasheet: in `gemm_bits`, in 16 bits, and of the memory.
    is_prefill_first : ndarray of bool
    """

    users: Array
    prompt_tokens: Array
    output_tokens: Array
    running: Array
    chunks: Array
    flops_per_token: Array
    pair_flops_per_token: Array
    weight_bytes: Array
    expert_bytes: Array
    idle_share: Array
    kv_bytes_per_token: Array
    state_bytes_per_token: Array
    n_layers: Array
    collectives: Array
    message_bytes_per_token: Array
    switch_bytes: Array
    small_s: Array
    small_s_per_byte: Array
    large_s: Array
    large_s_per_byte: Array
    head_flops: Array
    head_bytes: Array
    gemm_bits: Array
    read_bits: Array
    gemm_flops_per_s: Array
    flops_per_s: Array
    bytes_per_s: Array
    is_prefill_first: Array

    def take(self, index: Array) -> Features:
        """Return the features of some of the runs."""
        return Features(*(getattr(self, field.name)[index] for field in fields(self)))


def features_of(runs: Sequence[ServingRun]) -> Features:
    """Return the features of runs.

    Raises
    ------
    ValueError
        If the catalogue does not know a name of a run, or the model does not divide among the
        GPUs, or does not fit into their memory.
    """
    rows = [_row(run) for run in runs]
    names = [field.name for field in fields(Features)]
    return Features(*(np.array([row[name] for row in rows], np.float64) for name in names))


def _row(run: ServingRun) -> dict[str, float]:
    gpu = run.catalog_gpu
    deployment = deployment_of(run, catalog.gpu(gpu))
    node = deployment.network.tiers[0].nodes[0]
    group, runtime = deployment.profile(node), deployment.runtime
    p, o, degree = run.prompt_tokens, run.output_tokens, run.tensor_parallel
    weights = run.catalog_weights
    peak, lines = peaks(run.peak_gpu), group.all_reduce
    gemm_bits, room = GEMM_BITS.get(weights, 16), room_tokens(run)
    held = p + o if runtime.kv_admission is KvAdmission.RESERVE else p + o / 2
    limit = min(room / held, runtime.max_num_seqs)
    if room < p + o:
        raise ValueError(f"the model and a request need more memory than {degree} GPUs have")
    kv = _kv_bytes(model_of(run), p + o / 2) * group.kv_copies * kv_share(run)
    return {
        **_work(model_of(run), p, degree),
        "users": run.concurrency,
        "prompt_tokens": p,
        "output_tokens": o,
        "running": max(1.0, min(run.concurrency, limit)),
        "chunks": np.ceil(p / (runtime.prompt_limit or p)),
        "kv_bytes_per_token": kv / degree,
        "gemm_bits": gemm_bits,
        "read_bits": READ_BITS.get(weights, 4),
        "gemm_flops_per_s": peak.flops_per_s[gemm_bits],
        "flops_per_s": peak.flops_per_s[16],
        "bytes_per_s": peak.bytes_per_s,
        "is_prefill_first": run.catalog_runtime in PREFILL_FIRST,
        **{
            name: 0.0 if lines is None else getattr(lines, name)
            for name in (
                "switch_bytes", "small_s", "small_s_per_byte", "large_s", "large_s_per_byte",
            )
        },
    }  # fmt: skip


def room_tokens(run: ServingRun) -> float:
    """Return the tokens of KV cache that fit beside the weights, by the runtime's profile."""
    deployment = deployment_of(run, catalog.gpu(run.catalog_gpu))
    node, blocks = deployment.network.tiers[0].nodes[0], deployment.model.blocks
    free = deployment.usable_bytes(node) - deployment.model.stage_weight_bytes(blocks)
    held = deployment.kv_bytes_per_token(blocks, node) * kv_share(run)
    return max(free, 0.0) / held


@functools.cache
def _work(model: Model, prompt_tokens: int, degree: int) -> dict[str, float]:
    """Return what one GPU of a group computes and reads, by the blocks of the model."""
    _, *layers, head = model.blocks
    pairs = sum(
        float(costs.step_work(b, prompt_tokens, 0)[0]) - b.flops_per_token * prompt_tokens
        for b in layers
    )
    first = layers[0]
    return {
        "flops_per_token": sum(b.flops_per_token for b in layers) / degree,
        "pair_flops_per_token": pairs / prompt_tokens / degree,
        "weight_bytes": sum(b.always_read_bytes for b in layers) / degree,
        "expert_bytes": sum(b.expert_bytes * b.n_experts for b in layers) / degree,
        "idle_share": 1 - first.experts_per_token / first.n_experts if first.n_experts else 0.0,
        "state_bytes_per_token": sum(b.output_bytes_per_token for b in layers),
        "n_layers": len(layers),
        "collectives": sum(b.collectives for b in layers) if degree > 1 else 0,
        "message_bytes_per_token": first.collective_bytes_per_token,
        "head_flops": head.flops_per_token / degree,
        "head_bytes": head.always_read_bytes / degree,
    }


def _kv_bytes(model: Model, context: float) -> float:
    """Return the KV cache that one decode token reads, over all layers."""
    return sum(
        b.kv_bytes_per_token * min(context, b.window_tokens or context) for b in model.blocks
    )
