"""The least work of a request in a block, in seconds, for bounds on the rate.

All requests are alike. FLOPs, KV reads, activations and linear terms (`StepCosts`) add up over
requests; an iteration shares t0 and the weights. Of a mixture of experts, an iteration reads at
least the experts of one token, which is constant: the expected number of distinct experts is
concave in the tokens, so that a mean over iterations says nothing about it.

GPUs that compute as one add all-reduces to every block. Their seconds are replaced by a convex
function of the bytes that is nowhere larger (`bounded`), so that iterations take at least its
value at the mean of their tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hypsolve.problem import costs
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Block, CostModel, Deployment, GpuProfile
from hypsolve.problem.runtime import KvAdmission
from hypsolve.problem.step_costs import is_three_numbers, step_costs


@dataclass(frozen=True, slots=True)
class RequestWork:
    """Seconds by class of nodes and kind of block, arrays of shape (n_classes, n_kinds).

    Attributes
    ----------
    fixed : t0 of an iteration.
    weights : to read the weights that an iteration reads at least.
    decode_compute, decode_memory : all decode passes of a request.
    prompt_compute, prompt_memory : the prompt of a request, in as many chunks as needed.
    pass_compute, pass_memory : one decode pass at the least context, p + 1 tokens.
    alone : all decode passes of a request that is alone.
    decode_linear, prompt_linear, pass_linear : what is behind the maximum of both, likewise.
    """

    fixed: Array
    weights: Array
    decode_compute: Array
    decode_memory: Array
    prompt_compute: Array
    prompt_memory: Array
    pass_compute: Array
    pass_memory: Array
    alone: Array
    decode_linear: Array
    prompt_linear: Array
    pass_linear: Array


def bounded(gpu: GpuProfile) -> GpuProfile:
    """Return the profile of a node, with convex all-reduces, which take no longer."""
    if gpu.all_reduce is None:
        return gpu
    return replace(gpu, all_reduce=gpu.all_reduce.convex_minorant())


def request_work(
    deployment: Deployment, kinds: Sequence[Block], gpus: Sequence[GpuProfile]
) -> RequestWork:
    """Return the least work of a request in each kind of block on each class of nodes."""
    rows = [[_row(deployment, block, gpu) for block in kinds] for gpu in gpus]
    table = np.array(rows)  # (n_classes, n_kinds, fields of RequestWork)
    fields = dataclasses.fields(RequestWork)
    return RequestWork(*(np.ascontiguousarray(table[:, :, at]) for at in range(len(fields))))


def _row(deployment: Deployment, block: Block, gpu: GpuProfile) -> tuple[float, ...]:
    p = int(deployment.requests.prompt_tokens[0])
    o = int(deployment.requests.output_tokens[0])
    roofline = deployment.cost_model is CostModel.ROOFLINE
    if roofline and not is_three_numbers(gpu):
        return _linear_row(deployment, block, gpu)
    per_flop, per_byte = 1 / gpu.flops_per_s, 1 / gpu.bytes_per_s if roofline else 0.0
    one_read = float(costs.weight_read_bytes(block, 1.0)) - block.gathered_bytes_per_token
    cached = np.arange(p, p + o - 1, dtype=np.float64)
    copies = gpu.kv_copies
    flops, moved = (
        np.broadcast_to(part, cached.shape)
        for part in costs.step_work(block, 1.0, cached, kv_copies=copies)
    )
    prompt = costs.step_work(block, float(p), 0.0, kv_copies=copies)
    computed = 1.0 if block.last_token_only else float(p)
    read = float(costs.weight_read_bytes(block, computed))
    prompt_bytes = float(prompt[1]) - read + block.gathered_bytes_per_token * computed
    prompt_bytes += block.kv_bytes_per_token * copies * reread_tokens(deployment, block)
    least = costs.step_work(block, 1.0, float(p), kv_copies=copies)
    alone = costs.service_s(block, gpu, p, o, deployment.cost_model)
    alone = alone - costs.service_s(block, gpu, p, 1, deployment.cost_model)
    return (
        gpu.t0_s if roofline else 0.0,
        one_read * per_byte,
        float(flops.sum()) * per_flop,
        (float(moved.sum()) - one_read * (o - 1)) * per_byte,
        float(prompt[0]) * per_flop,
        prompt_bytes * per_byte,
        float(least[0]) * per_flop,
        (float(least[1]) - one_read) * per_byte,
        float(alone),
        0.0,
        0.0,
        0.0,
    )


def _linear_row(deployment: Deployment, block: Block, gpu: GpuProfile) -> tuple[float, ...]:
    """Return `_row` by `StepCosts`; seconds that prompts add to an iteration are left out."""
    p = int(deployment.requests.prompt_tokens[0])
    o = int(deployment.requests.output_tokens[0])
    row = step_costs(block, gpu)
    is_paged = deployment.runtime.kv_admission is KvAdmission.PAGED
    all_s, prompt_s = costs.linear_terms_s(block, gpu, p, o)
    decode_s, _ = costs.linear_terms_s(block, gpu, p, o, may_recompute=is_paged)
    prompt_s += row.prompt_kv_s * reread_tokens(deployment, block)
    experts = block.experts_per_token / block.n_experts if block.n_experts else 0.0
    computed = 1.0 if block.last_token_only else float(p)
    _, read = costs.attended(block, 1.0, p)
    alone = costs.service_s(block, gpu, p, o) - costs.service_s(block, gpu, p, 1)
    return (
        row.fixed_s,
        row.read_s + row.experts_s * experts,
        row.compute_token_s * (o - 1),
        row.memory_token_s * (o - 1),
        row.compute_token_s * computed,
        row.memory_token_s * computed,
        row.compute_token_s,
        row.memory_token_s,
        float(alone) - (all_s - decode_s),
        decode_s,
        prompt_s,
        row.token_s + row.decode_pair_s * float(read),
    )


def reread_tokens(deployment: Deployment, block: Block) -> float:
    """Return the tokens of KV cache that the chunks of a prompt read again, at least.

    The chunk that is followed by l - 1 others begins behind at least p - l Q tokens.
    """
    limit, p = deployment.runtime.prompt_limit, int(deployment.requests.prompt_tokens[0])
    if limit is None:
        return 0.0
    window = math.inf if block.window_tokens is None else block.window_tokens - 1
    behind = np.arange(p - limit, 0, -limit, dtype=np.float64)
    return float(np.minimum(behind, window).sum())
