"""Boxes of partitions: how they branch, and the flow shop that relaxes one."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.solvers.joint.tables import JointTables

if TYPE_CHECKING:
    from hypsolve.kernels.flow_shop import DeadlineFlowShop


@dataclass(frozen=True, slots=True)
class PartitionBox:
    """All partitions whose cut k is in ``low[k]..high[k]``, first and last cut included."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def is_single(self) -> bool:
        """Whether the box holds a single partition."""
        return self.low == self.high

    def branch(self) -> tuple["PartitionBox", "PartitionBox"]:
        """Split the box at the middle of its widest range."""
        widths = [high - low for low, high in zip(self.low, self.high, strict=True)]
        k = widths.index(max(widths))
        middle = (self.low[k] + self.high[k]) // 2
        below = (*self.high[:k], middle, *self.high[k + 1 :])
        above = (*self.low[:k], middle + 1, *self.low[k + 1 :])
        return PartitionBox(self.low, below), PartitionBox(above, self.high)


@dataclass(frozen=True, slots=True)
class BoxRelaxation:
    """A flow shop that is nowhere slower than any partition of a box.

    Each tier that has a stage in every partition of the box becomes a stage of the flow shop,
    with the shortest service time that any of the partitions gives it.
    """

    shop: "DeadlineFlowShop | None"  # None: no tier has a stage in every partition
    groups: IntArray  # of the tables, in the shop's order
    release: Array  # (n_requests,), when requests arrive at the first stage


def all_partitions(tables: JointTables) -> PartitionBox:
    """Return the box of all partitions."""
    low = [int(first.min()) for first in tables.first]
    high = [int(first.max()) for first in tables.first]
    return PartitionBox((*low, tables.n_blocks), (*high, tables.n_blocks))


class PartitionCounter:
    """Counts the feasible partitions of boxes.

    Parameters
    ----------
    tables : JointTables
    """

    def __init__(self, tables: JointTables) -> None:
        # a sum that may exceed 2**62 is made of Python's integers
        n_at_most = math.prod(max(1, len(first)) for first in tables.first)
        dtype = np.int64 if n_at_most < 2**62 else object
        n_cuts = tables.n_blocks + 1
        self._is_arc = []  # per tier, (n_cuts, n_cuts): 1 for an arc between two cuts
        for first, end in zip(tables.first, tables.end, strict=True):
            is_arc = np.zeros((n_cuts, n_cuts), dtype)
            is_arc[first, end] = 1
            self._is_arc.append(is_arc)

    def count(self, box: PartitionBox) -> int:
        """Return the number of feasible partitions of a box."""
        ways = np.ones(1, self._is_arc[0].dtype)
        for k, is_arc in enumerate(self._is_arc):
            rows = slice(box.low[k], box.high[k] + 1)
            ways = ways @ is_arc[rows, box.low[k + 1] : box.high[k + 1] + 1]
        return int(ways.sum())


def relax(tables: JointTables, box: PartitionBox) -> BoxRelaxation | None:
    """Relax a box to a flow shop; None if no partition of the box is feasible.

    A tier that is empty in some partition of the box is left out: it adds no work, and its
    capacity is unlimited. For a single partition the flow shop is exact.
    """
    from hypsolve.kernels.flow_shop import DeadlineFlowShop

    n = tables.n_requests
    service: list[Array] = []
    travel: list[Array] = []
    groups: list[IntArray] = []
    tiers: list[int] = []
    release = tables.release.astype(np.float64)
    for k in range(tables.n_tiers):
        first, end = tables.first[k], tables.end[k]
        inside = (first >= box.low[k]) & (first <= box.high[k])
        inside &= (end >= box.low[k + 1]) & (end <= box.high[k + 1])
        if not inside.any():
            return None
        if not (first == end)[inside].any():
            of_tier = np.flatnonzero(tables.group_tier == k)
            shortest = [tables.service[g][:, inside].min(axis=1) for g in of_tier]
            if np.isinf(np.min(shortest, axis=0)).any():
                return None
            service += [np.broadcast_to(each, n) for each in shortest]
            groups.append(of_tier)
            tiers.append(k)
            travel.append(np.zeros(n))
        if k < tables.n_tiers - 1:
            link = tables.transfer[:, k, box.low[k + 1] : box.high[k + 1] + 1].min(axis=1)
            if tiers:
                travel[-1] = travel[-1] + link
            else:
                release = release + link
    if not tiers:
        return BoxRelaxation(None, np.empty(0, np.int64), release)
    travel[-1] = np.zeros(
        n
    )  # exact for a single partition: nothing travels after its last stage
    chosen = np.concatenate(groups)
    sizes = np.bincount(tables.group, minlength=len(tables.group_tier))[chosen]
    rows = (
        np.ascontiguousarray(np.array(service).T),
        np.ascontiguousarray(np.array(travel).T),
    )
    shop = DeadlineFlowShop(
        service=rows[0],
        travel=rows[1],
        release=release,
        first=np.concatenate([[0], np.cumsum([len(each) for each in groups])]),
        slot=np.concatenate([[0], np.cumsum(sizes)]),
        alike=_first_alike(np.hstack(rows)),
        deadline=math.inf,
    )
    return BoxRelaxation(shop, chosen, release)


def _first_alike(rows: Array) -> IntArray:
    """Return for each row the first row that equals it; -1 for a row without an equal."""
    _, first, inverse, counts = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    inverse = inverse.reshape(-1)
    return np.where(counts > 1, first, -1)[inverse]
