"""Profiles with rates of operators, or of times that add up: scenarios, and a block's seconds.

`block_s` writes the rules down for every GPU of a node and every sequence of a batch. It shares
no code with `hypsolve.problem.step_costs`.
"""

import math
from dataclasses import replace

import numpy as np

from hypsolve.problem.operator_rates import OperatorRates
from tests.helpers.scenarios_token import Draw, Scenario


def random_rates(draw: Draw) -> OperatorRates:
    """Draw rates with and without each constant."""

    def seconds() -> float:
        return draw.number(0, 2**-12, 2**-14) if draw.chance(0.7) else 0.0

    return OperatorRates(
        gemm_flops_per_s=draw.rate(2**28, 2**31),
        head_flops_per_s=draw.rate(2**28, 2**31),
        attention_flops_per_s=draw.rate(2**26, 2**30),
        weight_bytes_per_s=draw.rate(2**28, 2**31),
        head_bytes_per_s=draw.rate(2**28, 2**31),
        kv_bytes_per_s=draw.rate(2**26, 2**30),
        state_bytes_per_s=draw.rate(2**26, 2**30),
        layer_s=seconds(),
        mixed_layer_s=seconds(),
        iteration_s=seconds(),
        token_s=seconds(),
        request_s=seconds(),
        all_reduce_factor=draw.rate(1 / 2, 4),
    )


def with_operators(seed: int, scenario: Scenario) -> Scenario:
    """Give most GPUs of a scenario rates of operators, or times that add up, or both."""
    draw = Draw(np.random.default_rng([seed, 4]), is_round=seed % 2 == 1)
    deployment = scenario.deployment
    nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
    gpus = {
        gpu: replace(
            gpu,
            overlaps=draw.chance(0.5),
            operators=random_rates(draw) if draw.chance(0.7) else None,
        )
        for gpu in dict.fromkeys(node.gpu for node in nodes)
    }
    tiers = tuple(
        replace(tier, nodes=tuple(replace(node, gpu=gpus[node.gpu]) for node in tier.nodes))
        for tier in deployment.network.tiers
    )
    network = replace(deployment.network, tiers=tiers)
    return replace(scenario, deployment=replace(deployment, network=network))


def request_s(deployment) -> float:
    """Return the seconds of a request outside of iterations."""
    if deployment.cost_model == "flops":
        return 0.0
    gpus = [node.gpu for tier in deployment.network.tiers for node in tier.nodes]
    return max([gpu.operators.request_s for gpu in gpus if gpu.operators], default=0.0)


def _contexts(entry, window):
    """Return the tokens that each token of an entry attends to."""
    return [min(entry.cached_tokens + i, window) for i in range(1, int(entry.tokens) + 1)]


def _read_bytes(block, computed):
    """Return the weights that a step reads, gathered rows left out."""
    used = 0.0
    if block.n_experts:
        used = 1 - (1 - block.experts_per_token / block.n_experts) ** computed
    return block.always_read_bytes + used * block.expert_bytes * block.n_experts


def block_s(block, computed, batch, cards):
    """Return the seconds of a block in an iteration, or None with three overlapping numbers."""
    gpu, rates, n = cards.gpu, cards.gpu.operators, cards.number
    if rates is None and gpu.overlaps:
        return None
    window = math.inf if block.window_tokens is None else block.window_tokens
    pairs = [sum(_contexts(entry, window)) for entry in batch]
    all_reduces_s = cards.all_reduces_s(block, computed)
    if rates is None:
        moved = _read_bytes(block, computed) / n
        moved += block.gathered_bytes_per_token * computed / n
        moved += block.activation_bytes_per_token * computed / n
        read = sum(min(e.cached_tokens, window - 1) + e.tokens for e in batch)
        moved += read * block.kv_bytes_per_token * cards.share_of_heads
        flops = block.flops_per_token * computed
        flops += block.attention_flops_per_pair * sum(pairs)
        return gpu.t0_s + flops / n / gpu.flops_per_s + moved / gpu.bytes_per_s + all_reduces_s
    if block.gathered_bytes_per_token > 0:
        return rates.iteration_s
    combine = max if gpu.overlaps else lambda a, b: a + b
    flops, read = block.flops_per_token * computed / n, _read_bytes(block, computed) / n
    if block.last_token_only:
        seconds = combine(flops / rates.head_flops_per_s, read / rates.head_bytes_per_s)
        return seconds + computed * rates.token_s
    seconds = combine(flops / rates.gemm_flops_per_s, read / rates.weight_bytes_per_s)
    seconds += rates.layer_s + rates.all_reduce_factor * all_reduces_s
    seconds += computed * block.output_bytes_per_token / rates.state_bytes_per_s
    if any(entry.tokens > 1 for entry in batch):
        seconds += rates.mixed_layer_s
    for entry, n_pairs in zip(batch, pairs, strict=True):
        if entry.tokens > 1:
            flops = n_pairs * block.attention_flops_per_pair / n
            seconds += flops / rates.attention_flops_per_s
        else:
            kv_bytes = n_pairs * block.kv_bytes_per_token * cards.share_of_heads
            seconds += kv_bytes / rates.kv_bytes_per_s
    return seconds
