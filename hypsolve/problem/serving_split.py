"""Stages, links and latencies of one split, for the fluid model in all batching modes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.solution import Partition

SLACK = 1e-12
"""Relative rounding that rules forgive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Mean latencies of a split at some rate, without queueing before admission.

    Attributes
    ----------
    ttft_s : float
        Seconds to the first output token.
    tpot_s : float
        Seconds of each later token; 0 if there is none.
    latency_s : float
        Seconds to the last token.
    """

    ttft_s: float
    tpot_s: float
    latency_s: float


def stages(partition: Partition) -> list[tuple[int, int, int]]:
    """Return the tiers that host blocks, each with its first block and the block behind."""
    return [(k, i, j) for k, (i, j) in enumerate(itertools.pairwise(partition.cuts)) if j > i]


def crossed_links(
    instance: ServingInstance, partition: Partition
) -> list[tuple[str, float, float]]:
    """Return the links between stages: name, seconds of a token, round trip in seconds."""
    links, found = instance.links, []
    for k, cut in enumerate(partition.cuts[1:-1]):
        if 0 < cut < instance.n_blocks:
            name = f"link {instance.tier_names[k]} -> {instance.tier_names[k + 1]}"
            token_s = float(links.token_s[k, links.cut_kind[cut]])
            found.append((name, token_s, float(links.round_trip_s[k])))
    return found


def entry_s(instance: ServingInstance, partition: Partition) -> float:
    """Return the seconds that links before the first stage, and `request_s`, add to TTFT."""
    first = stages(partition)[0][0]
    return math.fsum([instance.rules.request_s, *instance.links.entry_s[:first].tolist()])


def check_targets(
    instance: ServingInstance, x: float, ttft: float, decode_s: float
) -> tuple[str, Latencies | None]:
    """Return the target that latencies miss, or the latencies."""
    rules, passes = instance.rules, instance.lengths.decode_passes
    latency = ttft + passes * decode_s
    tpot = decode_s if passes else 0.0
    if rules.users is not None and x * (latency + rules.think_time_s) > rules.users * (
        1 + SLACK
    ):
        return "the users send no more requests", None
    if instance.objective is not ServingObjective.THROUGHPUT:
        for name, value, target in (
            ("time to first token", ttft, rules.ttft_slo_s),
            ("time per output token", tpot, rules.tpot_slo_s),
            ("latency", latency, rules.latency_slo_s),
        ):
            if target is not None and value > target * (1 + SLACK):
                return f"the target for the {name}", None
    return "", Latencies(ttft_s=ttft, tpot_s=tpot, latency_s=latency)
