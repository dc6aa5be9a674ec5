"""What the joint formulations share: tables, decisions, and how to time and score an answer."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hypsolve import evaluation
from hypsolve.problem import Instance, Objective
from hypsolve.solution import Outcome, Partition, Schedule
from hypsolve.solvers.exact import (
    ROUNDING,
    Array,
    IntArray,
    OnImprove,
    WarmStart,
    conclude,
    given_start,
    holds,
)
from hypsolve.solvers.tables import legal_stages, node_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTables:
    """A joint problem in one unit of time, counted from each request's origin.

    Tier k chooses one of its arcs, the stage ``first[k][a]:end[k][a]``. Nodes are counted over
    all tiers; identical nodes of a tier share a group. Tables that are the same for every
    request have one row.
    """

    first: list[IntArray]  # per tier, (n_arcs,)
    end: list[IntArray]
    node_tier: IntArray  # (n_nodes,)
    group: IntArray  # (n_nodes,)
    group_tier: IntArray  # (n_groups,)
    service: list[Array]  # per group, (n_requests or 1, n_arcs); inf: does not fit
    transfer: Array  # (n_requests or 1, n_tiers - 1, n_blocks + 1)
    release: Array  # (n_requests,)
    origin_s: Array  # (n_requests,), where the unit's 0 is, for each request
    unit_s: float = 1.0

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.release)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return len(self.first)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return self.transfer.shape[2] - 1

    def nodes(self, tier: int) -> list[int]:
        """Nodes of a tier."""
        return [int(n) for n in np.flatnonzero(self.node_tier == tier)]

    def empty(self, tier: int) -> list[int]:
        """Arcs of a tier that leave it empty."""
        return [int(a) for a in np.flatnonzero(self.first[tier] == self.end[tier])]

    def row(self, table: Array, request: int) -> int:
        """Row of a request in a table that may have one for all."""
        return request if len(table) > 1 else 0

    def fastest(self, tier: int) -> Array:
        """Service on the quickest node that can hold the stage, (n_requests or 1, n_arcs)."""
        groups = np.flatnonzero(self.group_tier == tier)
        return np.min([self.service[g] for g in groups], axis=0)

    def twins(self) -> list[tuple[int, int]]:
        """Pairs of nodes of which the second is the first one's next identical twin."""
        order = np.argsort(self.group, kind="stable").tolist()
        return [
            (n, twin)
            for n, twin in itertools.pairwise(order)
            if self.group[n] == self.group[twin]
        ]

    def in_units(self, unit_s: float) -> "JointTables":
        """The same in units of `unit_s`, a power of two."""
        return replace(
            self,
            service=[table / unit_s for table in self.service],
            transfer=self.transfer / unit_s,
            release=self.release / unit_s,
            unit_s=unit_s,
        )

    def rounded_down(self, step: float) -> "JointTables":
        """The same with each stage's, link's and release's time a multiple of `step`."""

        def whole(times: Array) -> Array:
            return np.floor(times / step * (1 - ROUNDING)) * step

        return replace(
            self,
            service=[whole(table) for table in self.service],
            transfer=whole(self.transfer),
            release=whole(self.release),
        )

    def objective_s(self, value: float, objective: Objective, arrival_s: Array) -> float:
        """Seconds of the objective from the sum (or the last) of the completions."""
        if objective is Objective.MAKESPAN:
            return float(self.origin_s.max()) + value * self.unit_s
        # the true arrivals, not rounded ones
        offset_s = float((self.origin_s - arrival_s).mean())
        return value * self.unit_s / self.n_requests + offset_s

    def value(self, objective_s: float, objective: Objective, arrival_s: Array) -> float:
        """Sum (or the last) of the completions in the unit, from the objective in seconds."""
        if objective is Objective.MAKESPAN:
            return (objective_s - float(self.origin_s.max())) / self.unit_s
        offset_s = float((self.origin_s - arrival_s).mean())
        return (objective_s - offset_s) / self.unit_s * self.n_requests


def joint_tables(instance: Instance, method: str) -> JointTables:
    """Tabulate the joint problem in seconds.

    Raises
    ------
    ValueError
        If the objective is not one of a schedule.
    """
    if not instance.objective.is_scheduled:
        raise ValueError(
            f"method {method!r} decides partition and schedule: its objective must be"
            f" mean_latency or makespan, got {instance.objective}"
        )
    arcs = [np.nonzero(tier) for tier in legal_stages(instance)]
    groups = node_groups(instance)
    n_kinds = instance.kind_s.shape[2]
    before = np.zeros((instance.n_blocks + 1, n_kinds))
    before[np.arange(1, instance.n_blocks + 1), instance.block_kind] = 1
    before = before.cumsum(axis=0)  # blocks of each kind before each cut: whole numbers
    group_tier = np.repeat(np.arange(instance.n_tiers), np.diff(groups.start))
    service = []
    for g, k in enumerate(group_tier):
        first, end = arcs[k]
        work = (before[end] - before[first]) @ instance.kind_s[:, groups.node_class[g]].T
        fits = holds(instance, groups.node_bytes[g], first, end)
        service.append(np.where(fits[None, :], work.T, np.inf))
    keys = {
        key: g
        for g, key in enumerate(
            zip(
                group_tier.tolist(),
                groups.node_class.tolist(),
                groups.node_bytes.tolist(),
                strict=True,
            )
        )
    }
    nodes = zip(
        instance.node_tier.tolist(),
        instance.node_class.tolist(),
        instance.node_bytes.tolist(),
        strict=True,
    )
    transfer = instance.transfer_s.copy()
    transfer[:, :, -1] = 0.0  # beyond it all stages are empty: nothing waits for this link
    origin_s = float(instance.arrival_s.min())
    return JointTables(
        first=[first for first, _ in arcs],
        end=[end for _, end in arcs],
        node_tier=instance.node_tier,
        group=np.array([keys[node] for node in nodes], np.int64),
        group_tier=group_tier,
        service=service,
        transfer=transfer,
        release=instance.arrival_s - origin_s,
        origin_s=np.full(instance.n_requests, origin_s),
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
    partition, schedule = given_start(instance, method, warm_start, time_limit_s, seed)
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
    return ROUNDING * abs(bound_s) + n_sums * 2.0**-52 * float(instance.arrival_s.max())


def tell(on_improve: OnImprove, instance: Instance, made: Decision, bound_s: float) -> None:
    """Report a decision that a solver found on its way, timed and scored by definition."""
    schedule = timed(instance, made)
    objective_s = evaluation.evaluate(instance, made.partition, schedule)
    on_improve(objective_s, bound_s, made.partition, schedule)


def no_partition(instance: Instance) -> Outcome:
    """Outcome where not even one request by itself has a path: no solver is asked."""
    return conclude(
        instance,
        None,
        infeasible=True,
        bound_s=math.inf,
        solver="a shortest path of one request",
        statistics={},
    )


def conclude_joint(
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
    return conclude(instance, *best, claimed_s=claimed_s, **answer)
