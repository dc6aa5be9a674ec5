"""Rules by which measured runs are left out of claims and fits: `left_out`.

The rules were stated before any fit. They look at the run and at what it measured, never at a
forecast, and apply to all runs alike.
"""

from __future__ import annotations

from hypsolve import catalog
from hypsolve.calibration.closed_loop import deployment_of, model_of
from hypsolve.calibration.runs import ServingRun

PREFIX_CACHE = "prefix cache: prompts would be computed above 90 % of the peak"
KV_QUEUE = "KV queue: users wait over 2 s, and their requests need more KV cache than there is"
MAX_SHARE = 0.9  # of the peak
MIN_QUEUE_S = 2.0
DENSE_FLOPS_PER_S = {
    "a100_sxm": 312e12, "h100_sxm": 989.4e12, "h200_sxm": 989.4e12, "b200_sxm": 2250e12,
    "gb200": 2500e12, "b300_sxm": 2250e12, "gb300": 2500e12, "l40s": 362e12,
    "rtx_pro_6000_server": 503.8e12,
}  # fmt: skip
"""Peak rates of 16-bit FLOPs without sparsity, from the datasheets of NVIDIA."""
FASTER = {"fp8": 2.0, "int8": 2.0, "nvfp4": 4.0}
"""By how much the peak is higher with weights and activations in fewer bits."""


def left_out(run: ServingRun) -> str:
    """Return the rule that leaves a run out; empty if none does.

    A run is left out if its prompts would be computed above `MAX_SHARE` of the peak, which
    makes hits of a prefix cache likely: a prompt within the measured time to first token, or
    all prompts and outputs at the measured rate. It is left out, too, if users wait more than
    `MIN_QUEUE_S` for a first token, and prompt and output of all users exceed the KV cache that
    the runtime has by its profile: which share of the memory the server took is not known.

    Raises
    ------
    ValueError
        If the catalogue does not know a name of the run, or the model does not divide among the
        GPUs.
    """
    if peak_share(run) > MAX_SHARE:
        return PREFIX_CACHE
    if run.ttft_s > MIN_QUEUE_S:
        held = run.concurrency * (run.prompt_tokens + run.output_tokens)
        if held > room_tokens(run):
            return KV_QUEUE
    return ""


def peak_share(run: ServingRun) -> float:
    """Return the share of the peak at which prompts were computed; 0 if no peak is known."""
    peak = DENSE_FLOPS_PER_S.get(run.gpu, 0.0) * run.tensor_parallel
    if not peak:
        return 0.0
    weights = run.catalog_weights
    peak *= FASTER.get(weights, 1.0)
    model, p, o = model_of(run), run.prompt_tokens, run.output_tokens
    linear = sum(b.flops_per_token for b in model.blocks if not b.last_token_only)
    pair = sum(b.attention_flops_per_pair for b in model.blocks)
    prompt = linear * p + pair * p * p / 2
    output = linear * o + pair * o * (p + o / 2)
    requests_per_s = run.tokens_per_s / o
    return max(prompt / run.ttft_s, requests_per_s * (prompt + output)) / peak


def room_tokens(run: ServingRun) -> float:
    """Return the tokens of KV cache that fit beside the weights, by the runtime's profile."""
    deployment = deployment_of(run, catalog.gpu(run.catalog_gpu))
    node, blocks = deployment.network.tiers[0].nodes[0], deployment.model.blocks
    free = deployment.usable_bytes(node) - deployment.model.stage_weight_bytes(blocks)
    return max(free, 0.0) / deployment.kv_bytes_per_token(blocks, node)
