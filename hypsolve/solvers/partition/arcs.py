"""The partition problem as a shortest path with a bottleneck term: arcs, units and bounds.

The exact formulations share this file. An arc is a stage: a tier, its first block and its end.
A partition is a path of one arc per tier from cut 0 to cut n_blocks.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR, memory_slack
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.partition.stage_tables import (
    feasible_stages,
    node_groups,
    prefix_bytes,
    prefix_seconds,
    stage_tables,
)

# The constants below keep bounds valid in floating-point solvers; they are not options.
MIP_ERROR = 1e-7  # relative error of a bound that the tolerances of a MIP solver may cause
MIP_SCALE = 1000.0  # order of magnitude of the objective in the units of a MIP
TABLE_S = 0.4  # arcs may be tabulated so long after the deadline: they give a bound
MIP_STEP = 2.0**-20  # costs are rounded down to multiples of it: solvers fail on tiny costs


@dataclass(frozen=True, slots=True)
class Arcs:
    """Stages that a partition may use, as arrays of shape (n_arcs,).

    The objective of a path is the largest ``worst_s`` plus the sum of ``added_s`` of its arcs.
    For the objective `p0` an arc also chooses a node; identical nodes count once.

    Attributes
    ----------
    tier, first, end : ndarray of int
        The stage ``first:end`` of the tier.
    choice : ndarray of int
        For `p0` the group of identical nodes, counted over all tiers; otherwise the tier.
    worst_s, added_s : ndarray
        Contributions to the maximum and to the sum of the objective.
    """

    tier: IntArray
    first: IntArray
    end: IntArray
    choice: IntArray
    worst_s: Array
    added_s: Array

    def __len__(self) -> int:
        """Return the number of arcs."""
        return len(self.tier)

    def keep_affordable(self, max_s: float) -> "Arcs":
        """Return the arcs that by themselves cost at most `max_s`."""
        kept = self.worst_s + self.added_s <= max_s
        worst_s, added_s = self.worst_s[kept], self.added_s[kept]
        first, end, choice = self.first[kept], self.end[kept], self.choice[kept]
        return Arcs(self.tier[kept], first, end, choice, worst_s, added_s)

    def label(self, a: int) -> str:
        """Return tier, choice, first block and end of arc a, for the name of its variable."""
        return f"{self.tier[a]}_{self.choice[a]}_{self.first[a]}_{self.end[a]}"


def partition_arcs(instance: Instance, method: str, deadline: Deadline = NEVER) -> Arcs:
    """Tabulate the arcs of the partition problem of an instance.

    Raises
    ------
    ValueError
        If the objective is a property of the schedule.
    OutOfTime
        If the deadline passes.
    """
    objective = instance.objective
    if objective.is_scheduled:
        raise ValueError(
            f"method {method!r} decides a partition: its objective must be bottleneck, path or"
            f" p0, got {objective}"
        )
    if objective is Objective.P0:
        return _node_arcs(instance, deadline)
    rule = StageRule.FASTEST if objective is Objective.PATH else instance.stage_rule
    parts = []
    for k, stage_s in enumerate(deadline.each(stage_tables(instance, rule))):
        first, end = np.nonzero(np.isfinite(stage_s))
        parts.append((np.full(len(first), k), first, end, stage_s[first, end]))
    tier, first, end, cost_s = (np.concatenate(each) for each in zip(*parts, strict=True))
    if objective is Objective.PATH:
        cost_s = cost_s + _outgoing_s(instance.reference_transfer_s)[tier, end]
        return Arcs(tier, first, end, tier, np.zeros(len(tier)), cost_s)
    link_s = _outgoing_s(instance.reference_link_s)[tier, end]
    cost_s = np.maximum(cost_s, link_s) if instance.overlap else cost_s + link_s
    return Arcs(tier, first, end, tier, cost_s, np.zeros(len(tier)))


def _outgoing_s(link_s: Array) -> Array:
    """Append a row of zeros to the seconds of the links: the last tier has no link."""
    return np.vstack([link_s, np.zeros((1, link_s.shape[1]))])


def _node_arcs(instance: Instance, deadline: Deadline) -> Arcs:
    """Tabulate the arcs of `p0`: a stage on one node of its tier."""
    feasible = feasible_stages(instance, deadline)
    groups = node_groups(instance)
    prefix_s = prefix_seconds(instance)
    parts = []
    for k in deadline.each(range(instance.n_tiers)):
        first, end = np.nonzero(feasible[k])
        for g in range(groups.start[k], groups.start[k + 1]):
            fits = holds(instance, groups.node_bytes[g], first, end)
            prefix = prefix_s[groups.node_class[g]]
            node_s = (prefix[end] - prefix[first]).sum(axis=-1)
            ones = np.ones(int(fits.sum()), np.int64)
            parts.append((k * ones, first[fits], end[fits], g * ones, node_s[fits]))
    tier, first, end, choice, worst_s = (np.concatenate(c) for c in zip(*parts, strict=True))
    added_s = _outgoing_s(instance.reference_transfer_s)[tier, end]
    return Arcs(tier, first, end, choice, worst_s, added_s)


def holds(
    instance: Instance, capacity: float, first: IntArray, end: IntArray
) -> NDArray[np.bool_]:
    """Return, elementwise, whether a node of `capacity` bytes can hold blocks first:end."""
    prefix = prefix_bytes(instance)
    need = (prefix[end] - prefix[first]).sum(axis=-1)
    need -= instance.tied_bytes * ((first == 0) & (end == instance.n_blocks))
    return (need <= capacity * (1 + memory_slack(instance))) | (first == end)


class CostLimits(NamedTuple):
    """Bounds on the optimum without a solver: ``upper_s / n_tiers <= optimum <= upper_s``."""

    min_s: float  # lower bound, from the cheapest arc of each tier alone
    upper_s: float  # upper bound, from a known path; inf: there is no path


def usable_arcs(
    instance: Instance, method: str, deadline: Deadline = NEVER
) -> tuple[Arcs, CostLimits]:
    """Return the arcs that an optimal partition may use, and bounds on the optimum.

    The path that minimises the sum of all its costs costs at most `n_tiers` times the optimum.
    An arc that by itself costs more than this path is on no optimal path. Without such arcs,
    costs span a range that the tolerances of a solver can resolve.
    """
    deadline = deadline.extended(TABLE_S)
    arcs = partition_arcs(instance, method, deadline)
    n_tiers = instance.n_tiers
    cost_s = arcs.worst_s + arcs.added_s
    reach_s = np.full(instance.n_blocks + 1, np.inf)
    reach_s[0] = 0.0
    for k in deadline.each(range(n_tiers)):
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
    return arcs.keep_affordable(upper_s), CostLimits(min_s, upper_s)


def mip_unit_s(size_s: float) -> float:
    """Return the seconds of a MIP unit: a power of two of which `size_s` holds `MIP_SCALE`."""
    in_range = math.isfinite(size_s) and size_s / MIP_SCALE > 0
    return 2.0 ** math.floor(math.log2(size_s / MIP_SCALE)) if in_range else 1.0


def scale_costs(
    arcs: Arcs, limits: CostLimits, n_tiers: int
) -> tuple[list[float], list[float], float]:
    """Scale the costs of the arcs to MIP units.

    Returns
    -------
    tuple of list of float, list of float, float
        ``worst_s`` and ``added_s`` in units, rounded down to multiples of `MIP_STEP`, and the
        seconds of a unit.
    """
    unit_s = mip_unit_s(limits.upper_s / n_tiers)
    if math.isinf(limits.upper_s):  # there is no path, whatever the arcs cost
        return [0.0] * len(arcs), [0.0] * len(arcs), unit_s
    costs = (np.floor(c / unit_s / MIP_STEP) * MIP_STEP for c in (arcs.worst_s, arcs.added_s))
    worst, added = (cost.tolist() for cost in costs)
    return worst, added, unit_s


def mip_bound_s(bound_s: float) -> float:
    """Lower a bound by what the tolerances of a MIP solver may have added to it."""
    return max(0.0, bound_s - MIP_ERROR * abs(bound_s)) if math.isfinite(bound_s) else 0.0


def to_partition(arcs: Arcs, used: NDArray[np.bool_], n_tiers: int) -> Partition:
    """Convert the arcs of a path, marked in `used`, to a partition.

    Raises
    ------
    RuntimeError
        If the number of arcs is not `n_tiers`.
    """
    order = np.argsort(arcs.tier[used], kind="stable")
    ends = arcs.end[used][order].tolist()
    if len(ends) != n_tiers:
        raise RuntimeError(f"a solution must use {n_tiers} arcs, got {len(ends)}")
    return Partition((0, *ends))


def arcs_on(arcs: Arcs, partition: Partition) -> list[int] | None:
    """Return the arc of each tier, on its fastest node; None if an arc is not in `arcs`."""
    path = []
    for k in range(partition.n_tiers):
        first, end = partition.cuts[k], partition.cuts[k + 1]
        is_stage = (arcs.tier == k) & (arcs.first == first) & (arcs.end == end)
        at = np.flatnonzero(is_stage)
        if not len(at):
            return None
        path.append(int(at[np.argmin(arcs.worst_s[at])]))
    return path
