"""The joint problem as tables: arcs of cuts, service times, transfers and releases."""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import RELATIVE_ERROR
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.solvers.partition.arcs import holds
from hypsolve.solvers.partition.stage_tables import feasible_stages, node_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTables:
    """A joint problem in one unit of time, counted from an origin for each request.

    Tier k chooses one arc a, which is the stage ``first[k][a]:end[k][a]``. Nodes are counted
    over all tiers. Identical nodes of a tier form a group. A table has one row if its values do
    not depend on the request.
    """

    first: list[IntArray]  # per tier, (n_arcs,)
    end: list[IntArray]
    node_tier: IntArray  # (n_nodes,)
    group: IntArray  # (n_nodes,)
    group_tier: IntArray  # (n_groups,)
    service: list[Array]  # per group, (n_requests or 1, n_arcs); inf: does not fit
    transfer: Array  # (n_requests or 1, n_tiers - 1, n_blocks + 1)
    release: Array  # (n_requests,)
    origin_s: Array  # (n_requests,), the time that is 0 here, counted from the first arrival
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
        """Return the nodes of a tier."""
        return [int(n) for n in np.flatnonzero(self.node_tier == tier)]

    def empty(self, tier: int) -> list[int]:
        """Return the arcs of a tier that leave it empty."""
        return [int(a) for a in np.flatnonzero(self.first[tier] == self.end[tier])]

    def row(self, table: Array, request: int) -> int:
        """Return the row of a request in a table that may have a single row."""
        return request if len(table) > 1 else 0

    def fastest(self, tier: int) -> Array:
        """Return the shortest service times of a tier, shape (n_requests or 1, n_arcs).

        An arc that no node of the tier can hold takes inf.
        """
        groups = np.flatnonzero(self.group_tier == tier)
        return np.min([self.service[g] for g in groups], axis=0)

    def twins(self) -> list[tuple[int, int]]:
        """Return the pairs of consecutive nodes of a group."""
        order = np.argsort(self.group, kind="stable").tolist()
        return [
            (n, twin)
            for n, twin in itertools.pairwise(order)
            if self.group[n] == self.group[twin]
        ]

    def scale(self, unit_s: float) -> "JointTables":
        """Convert tables in seconds to units of `unit_s`, a power of two."""
        return replace(
            self,
            service=[table / unit_s for table in self.service],
            transfer=self.transfer / unit_s,
            release=self.release / unit_s,
            unit_s=unit_s,
        )

    def rounded_down(self, step: float) -> "JointTables":
        """Round all service, transfer and release times down to multiples of `step`."""

        def whole(times: Array) -> Array:
            return np.floor(times / step * (1 - RELATIVE_ERROR)) * step

        return replace(
            self,
            service=[whole(table) for table in self.service],
            transfer=whole(self.transfer),
            release=whole(self.release),
        )

    def objective_s(self, value: float, objective: Objective, release_s: Array) -> float:
        """Convert the sum of completion times (makespan: the last one) to the objective."""
        if objective is Objective.MAKESPAN:
            return float(self.origin_s.max()) + value * self.unit_s
        # by the exact arrivals; releases may be rounded
        offset_s = float((self.origin_s - release_s).mean())
        return value * self.unit_s / self.n_requests + offset_s

    def value(self, objective_s: float, objective: Objective, release_s: Array) -> float:
        """Convert an objective in seconds to the sum (or the last) of completion times."""
        if objective is Objective.MAKESPAN:
            return (objective_s - float(self.origin_s.max())) / self.unit_s
        offset_s = float((self.origin_s - release_s).mean())
        return (objective_s - offset_s) / self.unit_s * self.n_requests


def joint_tables(instance: Instance, method: str) -> JointTables:
    """Tabulate the joint problem in seconds.

    Raises
    ------
    ValueError
        If the objective does not depend on the schedule.
    """
    if not instance.objective.is_scheduled:
        raise ValueError(
            f"method {method!r} decides partition and schedule: its objective must be"
            f" mean_latency or makespan, got {instance.objective}"
        )
    arcs = [np.nonzero(tier) for tier in feasible_stages(instance)]
    groups = node_groups(instance)
    n_kinds = instance.kind_s.shape[2]
    before = np.zeros((instance.n_blocks + 1, n_kinds))
    before[np.arange(1, instance.n_blocks + 1), instance.block_kind] = 1
    before = before.cumsum(axis=0)  # exact: numbers of blocks of each kind before each cut
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
    transfer[:, :, -1] = 0.0  # all further stages are empty: nothing waits for this transfer
    return JointTables(
        first=[first for first, _ in arcs],
        end=[end for _, end in arcs],
        node_tier=instance.node_tier,
        group=np.array([keys[node] for node in nodes], np.int64),
        group_tier=group_tier,
        service=service,
        transfer=transfer,
        release=instance.release_s,
        origin_s=np.zeros(instance.n_requests),
    )
