"""`StepCosts`: coefficients of the seconds of a block in a step, linear in what it computes.

A step of T tokens takes, with P pairs of a token of a prompt and a token of its context, R
tokens of KV cache that prompts read, and K that decode tokens read,

    fixed_s + mixed_s [prompts are in the step]
    + max(compute_token_s T, read_s + experts_s used(T) + memory_token_s T)
    + token_s T + prompt_pair_s P + prompt_kv_s R + decode_pair_s K

seconds, where used(T) is the share of the experts that some token uses. This form contains two
cases, and keeps what proofs about iterations need: seconds are a maximum of linear functions
(but for experts) plus linear functions.

- `OperatorRates`: matrices and weights are in the maximum, attention and states behind it.
- Three numbers, of which computing and reading add up (``GpuProfile.overlaps`` is False): FLOPs
  and KV cache are behind the maximum, which holds only what is read for every token.

Three numbers with the larger of both times have attention inside the maximum. They are not of
this form, and are written out where they are used.
"""

from __future__ import annotations

from typing import NamedTuple

from hypsolve.problem.model import Block
from hypsolve.problem.network import GpuProfile


class StepCosts(NamedTuple):
    """Seconds of a block in a step: by step, by token, and by pair; see this module.

    `collectives` is the number of all-reduces of the step. A piece of a prompt of one token
    counts as a decode token.
    """

    fixed_s: float = 0.0
    mixed_s: float = 0.0
    compute_token_s: float = 0.0
    read_s: float = 0.0
    experts_s: float = 0.0
    memory_token_s: float = 0.0
    token_s: float = 0.0
    prompt_pair_s: float = 0.0
    prompt_kv_s: float = 0.0
    decode_pair_s: float = 0.0
    collectives: float = 0.0


def is_three_numbers(gpu: GpuProfile) -> bool:
    """Return whether blocks take ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)``."""
    return gpu.overlaps and gpu.operators is None


def step_costs(block: Block, gpu: GpuProfile) -> StepCosts:
    """Return the coefficients of a block on a GPU that is not `is_three_numbers`.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from dataclasses import replace
    >>> layer = hs.model("llama-3-8b").blocks[1]
    >>> core = replace(hs.gpu("l4"), overlaps=False)
    >>> costs = step_costs(layer, core)
    >>> costs.token_s == layer.flops_per_token / core.flops_per_s
    True
    """
    rates = gpu.operators
    kv_bytes = block.kv_bytes_per_token * gpu.kv_copies
    experts_bytes = block.expert_bytes * block.n_experts
    if rates is None:
        per_token = block.gathered_bytes_per_token + block.activation_bytes_per_token
        pair_s = block.attention_flops_per_pair / gpu.flops_per_s
        return StepCosts(
            fixed_s=gpu.t0_s,
            read_s=block.always_read_bytes / gpu.bytes_per_s,
            experts_s=experts_bytes / gpu.bytes_per_s,
            memory_token_s=per_token / gpu.bytes_per_s,
            token_s=block.flops_per_token / gpu.flops_per_s,
            prompt_pair_s=pair_s,
            prompt_kv_s=kv_bytes / gpu.bytes_per_s,
            decode_pair_s=pair_s + kv_bytes / gpu.bytes_per_s,
            collectives=block.collectives,
        )
    if block.gathered_bytes_per_token:
        return StepCosts(fixed_s=rates.iteration_s)
    assert rates.head_flops_per_s is not None and rates.head_bytes_per_s is not None
    if block.last_token_only:
        costs = StepCosts(
            compute_token_s=block.flops_per_token / rates.head_flops_per_s,
            read_s=block.always_read_bytes / rates.head_bytes_per_s,
            experts_s=experts_bytes / rates.head_bytes_per_s,
            token_s=rates.token_s,
        )
    else:
        costs = StepCosts(
            fixed_s=rates.layer_s,
            mixed_s=rates.mixed_layer_s,
            compute_token_s=block.flops_per_token / rates.gemm_flops_per_s,
            read_s=block.always_read_bytes / rates.weight_bytes_per_s,
            experts_s=experts_bytes / rates.weight_bytes_per_s,
            token_s=block.output_bytes_per_token / rates.state_bytes_per_s,
            prompt_pair_s=block.attention_flops_per_pair / rates.attention_flops_per_s,
            decode_pair_s=kv_bytes / rates.kv_bytes_per_s,
            collectives=block.collectives,
        )
    if gpu.overlaps:
        return costs
    return costs._replace(compute_token_s=0.0, token_s=costs.token_s + costs.compute_token_s)
