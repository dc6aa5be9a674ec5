"""Rules by which measured runs are left out of claims and fits: `left_out`, `fit_for`.

The rules look at runs and at what they measured, never at a forecast, and apply to all alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hypsolve.calibration.features import features_of, room_tokens
from hypsolve.calibration.peaks import peaks
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.weight_bits import EIGHT_BIT_KV, kv_share

PREFIX_CACHE = "prefix cache: prompts would be computed above 90 % of the peak"
KV_QUEUE = "KV queue: users wait over 2 s, and their requests need more KV cache than there is"
MAX_SHARE = 0.9  # of the peak
MIN_QUEUE_S = 2.0
REPEATABLE = 1.25  # largest ratio of times per token of one setting, measured twice


def left_out(run: ServingRun) -> str:
    """Return the rule that leaves a run out of claims; empty if none does.

    A run is left out if its prompts would be computed above `MAX_SHARE` of the peak, which
    makes hits of a prefix cache likely; see `prompt_share`. It is left out, too, if users wait
    more than `MIN_QUEUE_S` for a first token, and prompt and output of all users exceed the KV
    cache that the runtime has by its profile, in 16 bits: neither the share of the memory that
    the server took is known, nor the bits of its KV cache.

    Raises
    ------
    ValueError
        If the catalogue does not know a name of the run, or the run cannot be deployed.
    """
    if prompt_share(run) > MAX_SHARE:
        return PREFIX_CACHE
    if run.ttft_s > MIN_QUEUE_S:
        held = run.concurrency * (run.prompt_tokens + run.output_tokens)
        if held > room_tokens(run) * kv_share(run):  # in 16 bits
            return KV_QUEUE
    return ""


def prompt_share(run: ServingRun) -> float:
    """Return the share of the peak FLOPs at which prompts were computed, by the larger sign.

    One sign is a prompt within the measured time to first token. The other is the prompts of a
    mean iteration, within the time that is left after what no server avoids at datasheet
    bandwidth: KV cache is read, in 8 bits if that may be, weights are read in iterations
    without prompts, and all-reduces of all tokens are sent at the measured rate of large ones.
    It is inf if no time is left, and 0 if the peak of the GPU is not known.
    """
    peak = peaks(run.peak_gpu)
    if not peak.is_datasheet:
        return 0.0
    f = features_of([run])
    p, o = run.prompt_tokens, run.output_tokens
    flops = float((p * (f.flops_per_token + f.pair_flops_per_token))[0])
    at_peak_s = flops / float(f.gemm_flops_per_s[0])
    prompts = run.tokens_per_s / o * run.tpot_s  # in a mean iteration
    kv_bytes = float(f.kv_bytes_per_token[0])
    if run.catalog_weights in EIGHT_BIT_KV and kv_share(run) == 1:
        kv_bytes /= 2
    without = 1 - min(1.0, prompts * float(f.chunks[0]))
    read = prompts * (o - 1) * kv_bytes + without * float(f.weight_bytes[0])
    sent = prompts * (p + o - 1) * float((f.collectives * f.message_bytes_per_token)[0])
    left_s = run.tpot_s - read / peak.bytes_per_s - sent * float(f.large_s_per_byte[0])
    in_iteration = prompts * at_peak_s / left_s if left_s > 0 else np.inf
    return float(max(at_peak_s / run.ttft_s, in_iteration))


def fit_for(runs: Iterable[ServingRun]) -> list[ServingRun]:
    """Return the runs that a fit may use.

    Runs that `left_out` names are not among them. Of one GPU, runtime, model and format of
    weights all are left out if one of them shows a prefix cache, for it was on for all; or if a
    setting was measured twice and the times per token differ by more than `REPEATABLE`, for
    then something varied that the table does not say.
    """
    sets: dict[tuple[str, ...], list[ServingRun]] = {}
    for run in runs:
        sets.setdefault((*run.group, run.catalog_weights), []).append(run)
    return [
        run
        for alike in sets.values()
        if not any(prompt_share(run) > MAX_SHARE for run in alike) and is_repeatable(alike)
        for run in alike
        if not left_out(run)
    ]


def is_repeatable(runs: Sequence[ServingRun]) -> bool:
    """Return whether settings that were measured twice have about the same time per token."""
    times: dict[tuple[int, ...], list[float]] = {}
    for run in runs:
        key = (run.tensor_parallel, run.prompt_tokens, run.output_tokens, run.concurrency)
        times.setdefault(key, []).append(run.tpot_s)
    return all(max(each) <= REPEATABLE * min(each) for each in times.values())
