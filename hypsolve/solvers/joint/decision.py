"""Decisions without times, their schedules, and the outcome of a joint solver."""

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
    """A decision without its times: they follow."""

    partition: Partition
    node: IntArray  # (n_requests, n_tiers), counted over all tiers; -1 on an empty stage
    order: IntArray  # (n_tiers, n_requests), requests as their stages start


def decision(
    instance: Instance, tables: JointTables, partition: Partition, schedule: Schedule
) -> Decision:
    """Forget a schedule's times; rename identical nodes in the order of their first request."""
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
    """Requests of each tier as they start, shape (n_tiers, n_requests)."""
    return np.lexsort((end.T, start.T), axis=-1)


def earliest(
    release: Array, service: Array, transfer: Array, node: IntArray, order: IntArray
) -> tuple[Array, Array]:
    """Start and end each stage as early as its node's order allows, each (n_requests, n_tiers).

    `service` has that shape too, `transfer` one column less; an empty stage serves 0 on node
    -1.
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
    """Arc of each tier that the partition uses."""
    cuts = partition.cuts
    return [
        int(np.flatnonzero((tables.first[k] == cuts[k]) & (tables.end[k] == cuts[k + 1]))[0])
        for k in range(tables.n_tiers)
    ]


def offers(tables: JointTables, made: Decision) -> bool:
    """Whether the tables still have the decision's stages and nodes."""
    for k, arcs in enumerate(zip(tables.first, tables.end, strict=True)):
        at = [i for i, arc in enumerate(zip(*arcs, strict=True)) if arc == _stage(made, k)]
        if not at:
            return False
        for r, n in enumerate(made.node[:, k].tolist()):
            table = tables.service[tables.group[n]]
            if n >= 0 and math.isinf(table[tables.row(table, r), at[0]]):
                return False
    return True


def _stage(made: Decision, tier: int) -> tuple[int, int]:
    return made.partition.cuts[tier], made.partition.cuts[tier + 1]


def times_in_units(tables: JointTables, made: Decision) -> tuple[Array, Array]:
    """Start and end of every stage in the tables' unit, by the tables' own durations."""
    arcs = arcs_of(tables, made.partition)
    service = np.zeros(made.node.shape)
    for (r, k), n in np.ndenumerate(made.node):
        if n >= 0:
            table = tables.service[tables.group[n]]
            service[r, k] = table[tables.row(table, r), arcs[k]]
    cuts = list(made.partition.cuts[1:-1])
    transfer = tables.transfer[:, np.arange(tables.n_tiers - 1), cuts]
    transfer = np.broadcast_to(transfer, (tables.n_requests, tables.n_tiers - 1))
    return earliest(tables.release, service, transfer, made.node, made.order)


def timed(instance: Instance, made: Decision) -> Schedule:
    """Schedule with the true durations, as early as each node's order allows."""
    shape = made.node.shape
    classes = instance.node_class[np.maximum(made.node, 0)]
    service = np.broadcast_to(
        evaluation.service_s(instance, made.partition), (*shape, instance.n_classes)
    )
    service_s = np.take_along_axis(service, classes[:, :, None], axis=2)[:, :, 0]
    used = made.node >= 0
    service_s = np.where(used, service_s, 0.0)
    transfer_s = np.broadcast_to(
        evaluation.transfer_s(instance, made.partition), (shape[0], shape[1] - 1)
    )
    start_s, end_s = earliest(instance.arrival_s, service_s, transfer_s, made.node, made.order)
    firsts = np.searchsorted(instance.node_tier, np.arange(instance.n_tiers))
    return Schedule(
        np.where(used, made.node - firsts, -1),
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
    """Decision to start from: none, Hyperion's own answer or the caller's."""
    own = partial(hyperion, instance, time_limit_s=time_limit_s, seed=seed)
    partition, schedule = given_start(instance, method, warm_start, own)
    if partition is None or schedule is None:
        return None
    return decision(instance, tables, partition, schedule)


def proven_s(
    instance: Instance, tables: JointTables, value: float, relative_error: float
) -> float:
    """Seconds from a proven bound in the tables' unit, less what arithmetic may add."""
    if not math.isfinite(value):
        return 0.0
    bound_s = tables.objective_s(value, instance.objective, instance.arrival_s)
    return max(0.0, bound_s * (1 - relative_error) - rounding_s(instance, bound_s))


def rounding_s(instance: Instance, bound_s: float) -> float:
    """What rounding may take from a latency: late arrivals leave few digits for it."""
    n_sums = instance.n_tiers * (instance.n_requests + 2)  # on the longest chain of work
    return RELATIVE_ERROR * abs(bound_s) + n_sums * 2.0**-52 * float(instance.arrival_s.max())


def tell(on_improve: OnImprove, instance: Instance, made: Decision, bound_s: float) -> None:
    """Report a decision that a solver found on its way, timed and scored by definition."""
    schedule = timed(instance, made)
    objective_s = evaluation.evaluate(instance, made.partition, schedule)
    on_improve(objective_s, bound_s, made.partition, schedule)


def no_partition(instance: Instance) -> Outcome:
    """Outcome where not even one request by itself has a path: no solver is asked."""
    return to_outcome(
        instance,
        None,
        infeasible=True,
        bound_s=math.inf,
        solver="a shortest path of one request",
        statistics={},
    )


def to_joint_outcome(
    instance: Instance,
    found: Decision | None,
    warm: Decision | None,
    *,
    claimed_s: float | None = None,
    **answer: Any,
) -> Outcome:
    """Outcome of the better of the solver's decision and the one it started from.

    `claimed_s`: the solver's own value of `found`. The rest as `conclude` takes it.
    """
    best: tuple[Partition | None, Schedule | None] = (None, None)
    best_s = math.inf
    for made in (found, warm):
        if made is not None:
            schedule = timed(instance, made)
            objective_s = evaluation.evaluate(instance, made.partition, schedule)
            if objective_s < best_s:
                best, best_s = (made.partition, schedule), objective_s
                claimed_s = claimed_s if made is found else None
    return to_outcome(instance, *best, claimed_s=claimed_s, **answer)
