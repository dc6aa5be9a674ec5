"""What the exact formulations share: arcs, units, options, and what an answer means."""

import importlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypsolve.evaluation import check, evaluate, memory_slack
from hypsolve.problem import Instance, Objective, StageRule
from hypsolve.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.tables import held_bytes, legal_stages, node_groups, spent_s, stage_table

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

OPTIMAL_GAP = 1e-6  # re-evaluated relative gap up to which an answer is OPTIMAL
MIP_ERROR = 1e-7  # what the tolerances of a floating-point MIP solver may add to its bound
ROUNDING = 1e-12  # what summation in another order may add
MIP_SCALE = 1000.0  # the order of the objective, in the units of a MIP
MIP_STEP = 2.0**-20  # times in those units are rounded down to this: solvers fail on tiny ones

OnImprove = Callable[[float, float, Partition, Schedule | None], None]  # objective_s, bound_s
OnBound = Callable[[float], None]  # bound_s
WarmStart = Any  # bool, Outcome, Result, Partition or (Partition, Schedule): see `given_start`


def load_backend(method: str, module: str, package: str) -> Any:
    """Import a solver backend, or say which package the method lacks."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"method {method!r} needs the package {package!r}, which cannot be imported"
            f" ({error}); pip install '{package}'"
        ) from error


def interruptible(solve: Callable[[], Any], stop: Callable[[], Any]) -> Any:
    """Let a solver run in a thread, so that Ctrl-C stops it soon and is raised here."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solve)
        try:
            return running.result()
        except KeyboardInterrupt:
            stop()
            raise


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

    def within(self, most_s: float) -> "Arcs":
        """Those that cost no more than that by themselves."""
        kept = self.worst_s + self.added_s <= most_s
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
    legal = legal_stages(instance)
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
    sums = held_bytes(instance)
    need = (sums[end] - sums[first]).sum(axis=-1)
    need -= instance.tied_bytes * ((first == 0) & (end == instance.n_blocks))
    return (need <= capacity * (1 + memory_slack(instance))) | (first == end)


class Scale(NamedTuple):
    """The order of an objective: ``upper_s / n_tiers <= optimum <= upper_s``."""

    least_s: float  # lower bound, from the cheapest arc of each tier alone
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
    upper_s = float(reach_s[-1]) * (1 + ROUNDING)
    least_s = 0.0
    if math.isfinite(upper_s):
        worst, added = np.full(n_tiers, np.inf), np.full(n_tiers, np.inf)
        np.minimum.at(worst, arcs.tier, arcs.worst_s)
        np.minimum.at(added, arcs.tier, arcs.added_s)
        least_s = float(worst.max() + added.sum()) * (1 - ROUNDING)
    return arcs.within(upper_s), Scale(least_s, upper_s)


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


def require_callable(method: str, callback: Any, name: str = "on_improve") -> None:
    """Raise TypeError unless the callback can be called, or is not there."""
    if callback is not None and not callable(callback):
        raise TypeError(
            f"method {method!r}: {name} must be callable or None, got {callback!r:.60}"
        )


def given_start(
    instance: Instance, method: str, warm_start: WarmStart, time_limit_s: float, seed: int
) -> tuple[Partition | None, Schedule | None]:
    """Decision to start from: none (False), Hyperion's own (True), or the caller's.

    Raises
    ------
    TypeError, ValueError
        If the caller's is no decision, lacks what the objective needs, or breaks a rule.
    """
    owner = f"method {method!r}"
    scheduled = instance.objective.is_scheduled
    schedule: Any = None
    if warm_start is False:
        return None, None
    if warm_start is True:
        from hypsolve.solvers.hyperion import hyperion

        own = hyperion(instance, time_limit_s=time_limit_s, seed=seed)
        return own.partition, own.schedule
    if isinstance(warm_start, Partition):
        partition: Any = warm_start
    elif isinstance(warm_start, tuple) and len(warm_start) == 2:
        partition, schedule = warm_start
    elif hasattr(warm_start, "partition") and hasattr(warm_start, "schedule"):
        partition, schedule = warm_start.partition, warm_start.schedule  # Outcome or Result
    else:
        raise TypeError(
            f"{owner}: warm_start must be True, False, an Outcome, a Result, a Partition or"
            f" (Partition, Schedule), got {warm_start!r:.60}"
        )
    if not isinstance(partition, Partition):
        raise TypeError(
            f"{owner}: warm_start must hold a partition, got {type(partition).__name__}"
        )
    if not isinstance(schedule, Schedule) and (scheduled or schedule is not None):
        raise TypeError(
            f"{owner}: warm_start must hold a partition and a schedule, got {partition!r} and"
            f" {type(schedule).__name__}"
        )
    schedule = schedule if scheduled else None
    broken = check(instance, partition, schedule)
    if broken:
        raise ValueError(f"{owner}: warm_start breaks a rule: {broken[0]}")
    return partition, schedule


def conclude(
    instance: Instance,
    partition: Partition | None,
    schedule: Schedule | None = None,
    *,
    solver: str,
    stopped: str = "",
    infeasible: bool = False,
    bound_s: float,
    least_s: float = 0.0,
    claimed_s: float | None = None,
    upper_s: float = math.inf,
    statistics: Mapping[str, Any],
) -> Outcome:
    """Make the Outcome: OPTIMAL iff the decision, scored by definition, meets the bound.

    Parameters
    ----------
    stopped : str
        Why the solver stopped; empty if it ended its search.
    least_s, upper_s : float
        What is known without the solver: bounds on the optimum.
    claimed_s : float, optional
        The decision's objective in the solver's eyes. A floating-point solver that sees less
        than there is, or bounds the optimum by more than is known, is not believed.
    """
    if infeasible and math.isinf(upper_s):
        return Outcome(
            Status.INFEASIBLE,
            bound_s=math.inf,
            message=f"proved by {solver}: no partition keeps the rules",
            statistics=statistics,
        )
    message = f"{solver} stopped {stopped}" if stopped else f"proved by {solver}"
    objective_s = math.inf if partition is None else evaluate(instance, partition, schedule)
    most_s = min(upper_s, objective_s) * (1 + OPTIMAL_GAP)
    less = claimed_s is not None and objective_s > claimed_s + OPTIMAL_GAP * objective_s
    if infeasible or bound_s > most_s or (partition is not None and less):
        bound_s = 0.0
        message = f"{solver} lost its way in rounding: the bound is not its own"
    bound_s = min(max(0.0, bound_s, least_s), objective_s)
    status = Status.UNKNOWN
    if partition is not None:
        proven = objective_s - bound_s <= OPTIMAL_GAP * objective_s
        status = Status.OPTIMAL if proven else Status.FEASIBLE
    if status is not Status.OPTIMAL and message.startswith("proved"):
        message = f"{solver} ended its search with a gap that rounding left"
    return Outcome(
        status, partition, schedule, bound_s=bound_s, message=message, statistics=statistics
    )


def better(
    instance: Instance, found: Partition | None, warm: Partition | None
) -> Partition | None:
    """The cheaper of a solver's partition and the one it started from."""
    given = [partition for partition in (found, warm) if partition is not None]
    return min(given, key=lambda partition: evaluate(instance, partition), default=None)
