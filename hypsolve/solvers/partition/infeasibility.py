"""Explain why no partition of an instance is feasible."""

from dataclasses import dataclass

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.units import show_bytes
from hypsolve.solvers.partition.stage_tables import prefix_bytes


@dataclass(frozen=True, slots=True)
class Infeasibility:
    """Why an instance has no feasible partition; ``str()`` joins the sentences.

    Attributes
    ----------
    verdict : str
        The reason, in one sentence.
    tiers : tuple of str
        For each tier, the bytes of its blocks against the memory of its nodes; empty if the
        pinned blocks contradict each other.
    """

    verdict: str
    tiers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verdict}. " + "; ".join(self.tiers) if self.tiers else self.verdict


def explain_infeasible(instance: Instance) -> Infeasibility:
    """Compare need with capacity, tier by tier.

    Every tier is filled in turn as far as its memory and the rules on blocks and cuts allow;
    the explanation says where this ends and which block is too large.
    """
    for k, (low, high) in enumerate(zip(instance.cut_min, instance.cut_max, strict=True)):
        if low > high:
            return Infeasibility(
                f"the pinned blocks contradict each other, cut {k} must be at least"
                f" {low} and at most {high}"
            )
    prefix = prefix_bytes(instance)
    tiers, reached = [], 0
    for k in range(instance.n_tiers):
        sentence, reached = _fill_tier(instance, prefix, k, reached)
        tiers.append(sentence)
    n_blocks = instance.n_blocks
    if int(instance.min_blocks.sum()) > n_blocks:
        verdict = f"{n_blocks} blocks are fewer than the tiers must host, {instance.min_blocks}"
    elif reached < n_blocks:
        verdict = f"the tiers together reach block {reached} of {n_blocks}"
    else:
        verdict = (
            "memory suffices, but not together with the minimum and maximum numbers of blocks"
            " and the pinned blocks"
        )
    return Infeasibility(verdict, tuple(tiers))


def _fill_tier(instance: Instance, prefix: Array, tier: int, first: int) -> tuple[str, int]:
    """Fill a tier from block `first` on; return a sentence and the cut that it reaches."""
    n_blocks = instance.n_blocks
    slowest = (
        instance.stage_rule is StageRule.SLOWEST and instance.objective is Objective.BOTTLENECK
    )  # every node of the tier must hold the stage
    memory = instance.node_bytes[instance.nodes_of(tier)]
    usable = float(memory.min() if slowest else memory.max())
    limit = min(first + int(instance.max_blocks[tier]), int(instance.cut_max[tier + 1]))
    need = (prefix[first : limit + 1] - prefix[first]).sum(axis=-1)
    if first == 0 and limit == n_blocks:
        need[-1] -= instance.tied_bytes
    end = max(first + int(np.searchsorted(need, usable, side="right")) - 1, first)
    name = f"tier {instance.tier_names[tier]!r}"
    if end >= min(limit, n_blocks):
        return f"{name}: blocks {first}:{end}, its rules allow no more", end
    with_next = need[end - first + 1]
    return (
        f"{name}: blocks {first}:{end} need {show_bytes(need[end - first])} of the"
        f" {show_bytes(usable)} of its {'smallest' if slowest else 'largest'} node; block {end}"
        f" would make it {show_bytes(with_next)}, {show_bytes(with_next - usable)} too many"
    ), end
