"""Decisions without times, their schedules, and the outcome of a joint method."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR
from hypsolve.problem.instance import (
    Instance,
)
from hypsolve.problem.solution import Outcome, Partition, Schedule
from hypsolve.solvers.joint.tables import JointTables
from hypsolve.solvers.joint.two_stage import hyperion
from hypsolve.solvers.outcomes import (
    OnImprove,
    WarmStart,
    given_start,
    to_outcome,
)


class Decision(NamedTuple):
    """A partition and a schedule without its times, which follow from the orders."""

    partition: Partition
    node: IntArray  # (n_requests, n_tiers), counted over all tiers; -1: empty stage
    order: IntArray  # (n_tiers, n_requests), requests in the order of their starts


def to_decision(
    instance: Instance, tables: JointTables, partition: Partition, schedule: Schedule
) -> Decision:
    """Drop the times of a schedule, and number identical nodes by their first request."""
    firsts = np.searchsorted(instance.node_tier, np.arange(instance.n_tiers))
    node = np.where(schedule.node >= 0, schedule.node + firsts, -1)
    name: dict[int, int] = {}
    left = {g: np.flatnonzero(tables.group == g).tolist() for g in set(tables.group.tolist())}
    for n in node.ravel():  # request by request
        if n >= 0 and int(n) not in name:
            name[int(n)] = left[int(tables.group[n])].pop(0)
    renamed = np.array([[name.get(int(n), -1) for n in row] for row in node], np.int64)
    return Decision(partition, renamed, starting_order(schedule.start_s, schedule.end_s))


def starting_order(start: Array, end: Array) -> IntArray:
    """Return the requests of each tier in the order of their starts, (n_tiers, n_requests)."""
    return np.lexsort((end.T, start.T), axis=-1)


def earliest_times(
    release: Array, service: Array, transfer: Array, node: IntArray, order: IntArray
) -> tuple[Array, Array]:
    """Start and end each stage as early as the order on its node allows.

    Parameters
    ----------
    release : ndarray, shape (n_requests,)
    service, node : ndarray, shape (n_requests, n_tiers)
        An empty stage has node -1 and service 0.
    transfer : ndarray, shape (n_requests, n_tiers - 1)
    order : ndarray, shape (n_tiers, n_requests)

    Returns
    -------
    start, end : ndarray, shape (n_requests, n_tiers)
    """
    start, end = np.empty(service.shape), np.empty(service.shape)
    ready = release.astype(np.float64)
    for k in range(service.shape[1]):
        free: dict[int, float] = {}
        for r in order[k].tolist():
            n = int(node[r, k])
            start[r, k] = max(ready[r], free.get(n, 0.0)) if n >= 0 else ready[r]
            end[r, k] = start[r, k] + service[r, k]
            free[n] = end[r, k]
        ready = end[:, k] + (transfer[:, k] if k < transfer.shape[1] else 0.0)
    return start, end


def arcs_of(tables: JointTables, partition: Partition) -> list[int]:
    """Return the arc of each tier that the partition uses."""
    cuts = partition.cuts
    return [
        int(np.flatnonzero((tables.first[k] == cuts[k]) & (tables.end[k] == cuts[k + 1]))[0])
        for k in range(tables.n_tiers)
    ]


def is_tabulated(tables: JointTables, decision: Decision) -> bool:
    """Return True if the tables still have the stages and nodes of a decision."""
    for k, arcs in enumerate(zip(tables.first, tables.end, strict=True)):
        at = [i for i, arc in enumerate(zip(*arcs, strict=True)) if arc == _stage(decision, k)]
        if not at:
            return False
        for r, n in enumerate(decision.node[:, k].tolist()):
            table = tables.service[tables.group[n]]
            if n >= 0 and math.isinf(table[tables.row(table, r), at[0]]):
                return False
    return True


def _stage(decision: Decision, tier: int) -> tuple[int, int]:
    return decision.partition.cuts[tier], decision.partition.cuts[tier + 1]


def table_times(tables: JointTables, decision: Decision) -> tuple[Array, Array]:
    """Return start and end of every stage by the durations of the tables, in their unit."""
    arcs = arcs_of(tables, decision.partition)
    service = np.zeros(decision.node.shape)
    for (r, k), n in np.ndenumerate(decision.node):
        if n >= 0:
            table = tables.service[tables.group[n]]
            service[r, k] = table[tables.row(table, r), arcs[k]]
    cuts = list(decision.partition.cuts[1:-1])
    transfer = tables.transfer[:, np.arange(tables.n_tiers - 1), cuts]
    transfer = np.broadcast_to(transfer, (tables.n_requests, tables.n_tiers - 1))
    return earliest_times(tables.release, service, transfer, decision.node, decision.order)


def to_schedule(instance: Instance, decision: Decision) -> Schedule:
    """Schedule a decision with exact durations, as early as the orders allow."""
    shape = decision.node.shape
    classes = instance.node_class[np.maximum(decision.node, 0)]
    service = np.broadcast_to(
        evaluation.service_s(instance, decision.partition), (*shape, instance.n_classes)
    )
    service_s = np.take_along_axis(service, classes[:, :, None], axis=2)[:, :, 0]
    used = decision.node >= 0
    service_s = np.where(used, service_s, 0.0)
    transfer_s = np.broadcast_to(
        evaluation.transfer_s(instance, decision.partition), (shape[0], shape[1] - 1)
    )
    start_s, end_s = earliest_times(
        instance.release_s, service_s, transfer_s, decision.node, decision.order
    )
    firsts = np.searchsorted(instance.node_tier, np.arange(instance.n_tiers))
    return Schedule(
        np.where(used, decision.node - firsts, -1),
        np.where(used, start_s, np.nan),
        np.where(used, end_s, np.nan),
    )


def warm_decision(
    instance: Instance,
    tables: JointTables,
    method: str,
    warm_start: WarmStart,
    time_limit_s: float,
    seed: int,
) -> Decision | None:
    """Return the decision to start from: Hyperion's, the caller's, or None."""
    own = partial(hyperion, instance, time_limit_s=time_limit_s, seed=seed)
    partition, schedule = given_start(instance, method, warm_start, own)
    if partition is None or schedule is None:
        return None
    return to_decision(instance, tables, partition, schedule)


def proven_s(
    instance: Instance, tables: JointTables, value: float, relative_error: float
) -> float:
    """Convert a proven bound to seconds, less what rounding may have added to it."""
    if not math.isfinite(value):
        return 0.0
    bound_s = tables.objective_s(value, instance.objective, instance.release_s)
    return max(0.0, bound_s * (1 - relative_error) - rounding_s(instance, bound_s))


def rounding_s(instance: Instance, bound_s: float) -> float:
    """Bound the rounding error of a latency: late arrivals leave it few digits."""
    n_sums = instance.n_tiers * (instance.n_requests + 2)  # on the longest chain of operations
    return RELATIVE_ERROR * abs(bound_s) + n_sums * 2.0**-52 * float(instance.release_s.max())


def report_decision(
    on_improve: OnImprove, instance: Instance, decision: Decision, bound_s: float
) -> None:
    """Report a new incumbent, scheduled and scored by `evaluate`."""
    schedule = to_schedule(instance, decision)
    objective_s = evaluation.evaluate(instance, decision.partition, schedule)
    on_improve(objective_s, bound_s, decision.partition, schedule)


def no_partition(instance: Instance) -> Outcome:
    """Return the outcome if not even a single request has a path; no solver is needed."""
    return to_outcome(
        instance,
        None,
        infeasible=True,
        bound_s=math.inf,
        solver="a shortest path of one request",
        statistics={},
    )


def without_model(
    instance: Instance, warm: Decision | None, solver: str, min_s: float, build_s: float
) -> Outcome:
    """Return the outcome if the deadline passed before the model was built."""
    return to_joint_outcome(
        instance, None, warm, solver=solver,
        stopped="at the time limit, before its model was built",
        bound_s=0.0, min_s=min_s, statistics={"build_s": build_s},
    )  # fmt: skip


def to_joint_outcome(
    instance: Instance,
    solved: Decision | None,
    warm: Decision | None,
    *,
    claimed_s: float | None = None,
    **answer: Any,
) -> Outcome:
    """Return the outcome with the better of the solver's decision and the warm start.

    Parameters
    ----------
    instance : Instance
    solved, warm : Decision or None
    claimed_s : float, optional
        Objective of `solved` by the solver's own account.
    **answer
        As for `hypsolve.solvers.outcomes.to_outcome`.
    """
    best: tuple[Partition | None, Schedule | None] = (None, None)
    best_s = math.inf
    for decision in (solved, warm):
        if decision is not None:
            schedule = to_schedule(instance, decision)
            objective_s = evaluation.evaluate(instance, decision.partition, schedule)
            if objective_s < best_s:
                best, best_s = (decision.partition, schedule), objective_s
                claimed_s = claimed_s if decision is solved else None
    return to_outcome(instance, *best, claimed_s=claimed_s, **answer)
