"""What the exact formulations share: arcs, units, and what a backend's answer means."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.evaluation import evaluate, memory_slack
from hypsolve.problem import Instance, Objective, StageRule
from hypsolve.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.tables import node_groups, prefix_sums, spent_s, stage_table

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

OPTIMAL_GAP = 1e-6  # re-evaluated relative gap up to which an answer is OPTIMAL
MIP_ERROR = 1e-7  # what the tolerances of a floating-point MIP solver may add to its bound
ROUNDING = 1e-12  # what summation in another order may add
MIP_SCALE = 1000.0  # a lower bound on the objective, in the units of a MIP
LARGEST = 1e6  # costs above so many lower bounds are cut off there: no optimum is that far up


def load_backend(method: str, module: str, package: str) -> Any:
    """Import a solver backend, or say which package the method lacks."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"method {method!r} needs the package {package!r}, which cannot be imported"
            f" ({error}); pip install '{package}'"
        ) from error


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
    legal = np.isfinite(stage_table(instance, StageRule.FASTEST))
    groups = node_groups(instance)
    all_sums = spent_s(instance)
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
    sums = prefix_sums(instance.block_bytes)
    need = sums[end] - sums[first]
    need -= instance.tied_bytes * ((first == 0) & (end == instance.n_blocks))
    return (need <= capacity * (1 + memory_slack(instance))) | (first == end)


def least_s(arcs: Arcs, n_tiers: int) -> float:
    """Lower bound on the objective from the cheapest arc of each tier alone."""
    if len(np.unique(arcs.tier)) < n_tiers:
        return 0.0
    worst = np.full(n_tiers, np.inf)
    added = np.full(n_tiers, np.inf)
    np.minimum.at(worst, arcs.tier, arcs.worst_s)
    np.minimum.at(added, arcs.tier, arcs.added_s)
    return float(worst.max() + added.sum())


def mip_unit_s(least: float, largest: float) -> float:
    """Seconds in one unit of a MIP: a power of two, `MIP_SCALE` of them in the lower bound."""
    size = least or largest or 1.0
    return 2.0 ** math.floor(math.log2(size / MIP_SCALE))


def in_units(arcs: Arcs, n_tiers: int) -> tuple[list[float], list[float], float]:
    """Costs `worst`, `added` in MIP units, cut off far above the optimum; seconds per unit."""
    least = least_s(arcs, n_tiers)
    largest = max(arcs.worst_s.max(initial=0.0), arcs.added_s.max(initial=0.0))
    unit_s = mip_unit_s(least, largest)
    most = LARGEST * least / unit_s if least else math.inf
    worst, added = (np.minimum(c / unit_s, most).tolist() for c in (arcs.worst_s, arcs.added_s))
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


def conclude(
    instance: Instance,
    partition: Partition | None,
    schedule: Schedule | None = None,
    *,
    infeasible: bool = False,
    bound_s: float,
    stopped: str,
    statistics: Mapping[str, Any],
) -> Outcome:
    """Make the Outcome: OPTIMAL iff the decision, scored by definition, meets the bound."""
    if infeasible:
        return Outcome(
            Status.INFEASIBLE,
            bound_s=math.inf,
            message=f"{stopped}: no partition keeps the rules",
            statistics=statistics,
        )
    bound_s = max(0.0, bound_s)
    status = Status.UNKNOWN
    if partition is not None:
        objective_s = evaluate(instance, partition, schedule)
        proven = objective_s - bound_s <= OPTIMAL_GAP * objective_s
        status = Status.OPTIMAL if proven else Status.FEASIBLE
    return Outcome(
        status, partition, schedule, bound_s=bound_s, message=stopped, statistics=statistics
    )
