"""What the exact formulations share: arcs, units, options, and what an answer means."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR, memory_slack
from hypsolve.problem.instance import (
    Instance,
    Objective,
    StageRule,
)
from hypsolve.problem.solution import Partition
from hypsolve.solvers.partition.stage_tables import (
    feasible_stages,
    node_groups,
    prefix_bytes,
    prefix_seconds,
    stage_table,
)

MIP_ERROR = 1e-7  # what the tolerances of a floating-point MIP solver may add to its bound
MIP_SCALE = 1000.0  # the order of the objective, in the units of a MIP
MIP_STEP = 2.0**-20  # times in those units are rounded down to this: solvers fail on tiny ones


@dataclass(frozen=True, slots=True)
class Arcs:
    """Stages a partition may use; a partition is a path of one arc per tier.

    The objective is ``worst + sum of added_s over the path``, where ``worst`` is the largest
    ``worst_s`` on the path. In `p0` an arc also chooses a node (identical nodes count once).
    """

    tier: IntArray
    first: IntArray
    end: IntArray
    choice: IntArray  # the node, counted over all tiers; the tier where no node is chosen
    worst_s: Array
    added_s: Array

    def __len__(self) -> int:
        return len(self.tier)

    def within(self, max_s: float) -> "Arcs":
        """Those that cost no more than that by themselves."""
        kept = self.worst_s + self.added_s <= max_s
        worst_s, added_s = self.worst_s[kept], self.added_s[kept]
        first, end, choice = self.first[kept], self.end[kept], self.choice[kept]
        return Arcs(self.tier[kept], first, end, choice, worst_s, added_s)

    def named(self, a: int) -> str:
        """Tier, node, first block and end block of an arc, as part of a variable's name."""
        return f"{self.tier[a]}_{self.choice[a]}_{self.first[a]}_{self.end[a]}"


def partition_arcs(instance: Instance, method: str) -> Arcs:
    """Tabulate the arcs of the instance's partition problem.

    Raises
    ------
    ValueError
        If the objective is one of a schedule.
    """
    objective = instance.objective
    if objective.is_scheduled:
        raise ValueError(
            f"method {method!r} decides a partition: its objective must be bottleneck, path or"
            f" p0, got {objective}"
        )
    if objective is Objective.P0:
        return _node_arcs(instance)
    rule = StageRule.FASTEST if objective is Objective.PATH else instance.stage_rule
    stage_s = stage_table(instance, rule)
    tier, first, end = np.nonzero(np.isfinite(stage_s))
    cost_s = stage_s[tier, first, end]
    if objective is Objective.PATH:
        cost_s = cost_s + _outgoing(instance.reference_transfer_s)[tier, end]
        return Arcs(tier, first, end, tier, np.zeros(len(tier)), cost_s)
    link_s = _outgoing(instance.reference_link_s)[tier, end]
    cost_s = np.maximum(cost_s, link_s) if instance.overlap else cost_s + link_s
    return Arcs(tier, first, end, tier, cost_s, np.zeros(len(tier)))


def _outgoing(link_s: Array) -> Array:
    """Seconds per tier and cut; the last tier has no link."""
    return np.vstack([link_s, np.zeros((1, link_s.shape[1]))])


def _node_arcs(instance: Instance) -> Arcs:
    legal = feasible_stages(instance)
    groups = node_groups(instance)
    all_sums = prefix_seconds(instance)
    parts = []
    for k in range(instance.n_tiers):
        first, end = np.nonzero(legal[k])
        for g in range(groups.start[k], groups.start[k + 1]):
            held = holds(instance, groups.node_bytes[g], first, end)
            sums = all_sums[groups.node_class[g]]
            spent = (sums[end] - sums[first]).sum(axis=-1)
            same = np.ones(int(held.sum()), np.int64)
            parts.append((k * same, first[held], end[held], g * same, spent[held]))
    tier, first, end, choice, worst_s = (np.concatenate(c) for c in zip(*parts, strict=True))
    added_s = _outgoing(instance.reference_transfer_s)[tier, end]
    return Arcs(tier, first, end, choice, worst_s, added_s)


def holds(
    instance: Instance, capacity: float, first: IntArray, end: IntArray
) -> NDArray[np.bool_]:
    """Whether a node of `capacity` bytes can hold blocks first:end, elementwise."""
    sums = prefix_bytes(instance)
    need = (sums[end] - sums[first]).sum(axis=-1)
    need -= instance.tied_bytes * ((first == 0) & (end == instance.n_blocks))
    return (need <= capacity * (1 + memory_slack(instance))) | (first == end)


class Scale(NamedTuple):
    """The order of an objective: ``upper_s / n_tiers <= optimum <= upper_s``."""

    min_s: float  # lower bound, from the cheapest arc of each tier alone
    upper_s: float  # upper bound, from a known path; inf: there is none


def usable_arcs(instance: Instance, method: str) -> tuple[Arcs, Scale]:
    """Arcs that a best partition may use, and the order of its objective.

    The path with the least sum of all its costs has no more than `n_tiers` times the optimum;
    an arc that alone exceeds that sum is on no best path. With those left out, the costs span
    no more than a solver's tolerances can tell apart.
    """
    arcs = partition_arcs(instance, method)
    n_tiers = instance.n_tiers
    cost_s = arcs.worst_s + arcs.added_s
    reach_s = np.full(instance.n_blocks + 1, np.inf)
    reach_s[0] = 0.0
    for k in range(n_tiers):
        on_tier = arcs.tier == k
        onward_s = np.full(instance.n_blocks + 1, np.inf)
        sums = reach_s[arcs.first[on_tier]] + cost_s[on_tier]
        np.minimum.at(onward_s, arcs.end[on_tier], sums)
        reach_s = onward_s
    upper_s = float(reach_s[-1]) * (1 + RELATIVE_ERROR)
    min_s = 0.0
    if math.isfinite(upper_s):
        worst, added = np.full(n_tiers, np.inf), np.full(n_tiers, np.inf)
        np.minimum.at(worst, arcs.tier, arcs.worst_s)
        np.minimum.at(added, arcs.tier, arcs.added_s)
        min_s = float(worst.max() + added.sum()) * (1 - RELATIVE_ERROR)
    return arcs.within(upper_s), Scale(min_s, upper_s)


def mip_unit_s(size_s: float) -> float:
    """Seconds in one unit of a MIP: a power of two, `MIP_SCALE` of them or more in `size_s`."""
    in_range = math.isfinite(size_s) and size_s / MIP_SCALE > 0
    return 2.0 ** math.floor(math.log2(size_s / MIP_SCALE)) if in_range else 1.0


def in_units(arcs: Arcs, scale: Scale, n_tiers: int) -> tuple[list[float], list[float], float]:
    """Costs `worst`, `added` in MIP units; seconds per unit."""
    unit_s = mip_unit_s(scale.upper_s / n_tiers)
    if math.isinf(scale.upper_s):  # whatever they cost, the arcs make no path
        return [0.0] * len(arcs), [0.0] * len(arcs), unit_s
    costs = (np.floor(c / unit_s / MIP_STEP) * MIP_STEP for c in (arcs.worst_s, arcs.added_s))
    worst, added = (cost.tolist() for cost in costs)
    return worst, added, unit_s


def mip_bound_s(bound_s: float) -> float:
    """Bound that a floating-point solver's tolerances cannot have pushed over the optimum."""
    return max(0.0, bound_s - MIP_ERROR * abs(bound_s)) if math.isfinite(bound_s) else 0.0


def chosen(arcs: Arcs, used: NDArray[np.bool_], n_tiers: int) -> Partition:
    """Partition whose path uses the arcs marked."""
    order = np.argsort(arcs.tier[used], kind="stable")
    ends = arcs.end[used][order].tolist()
    if len(ends) != n_tiers:
        raise RuntimeError(f"a solution must use {n_tiers} arcs, got {len(ends)}")
    return Partition((0, *ends))


def arcs_on(arcs: Arcs, partition: Partition) -> list[int] | None:
    """The arc of each tier, on the best of its nodes; None if one was left out."""
    path = []
    for k in range(partition.n_tiers):
        first, end = partition.cuts[k], partition.cuts[k + 1]
        same = (arcs.tier == k) & (arcs.first == first) & (arcs.end == end)
        at = np.flatnonzero(same)
        if not len(at):
            return None
        path.append(int(at[np.argmin(arcs.worst_s[at])]))
    return path
