"""Boxes of partitions, the shop of each, and the bound that prices give."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.solvers.joint.tables import JointTables

if TYPE_CHECKING:
    from hypsolve.kernels.flow_shop import Shop, Ticks


@dataclass(frozen=True, slots=True)
class Box:
    """Every partition whose cut k lies in ``low[k]..high[k]``, first and last cut included."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def is_one(self) -> bool:
        """Whether it holds a single partition."""
        return self.low == self.high

    def halves(self) -> tuple["Box", "Box"]:
        """Split at the middle of the widest range."""
        widths = [high - low for low, high in zip(self.low, self.high, strict=True)]
        k = widths.index(max(widths))
        middle = (self.low[k] + self.high[k]) // 2
        below = (*self.high[:k], middle, *self.high[k + 1 :])
        above = (*self.low[:k], middle + 1, *self.low[k + 1 :])
        return Box(self.low, below), Box(above, self.high)


@dataclass(frozen=True, slots=True)
class Stages:
    """A box as a shop: per tier that surely has a stage, the least that any of them takes."""

    shop: "Shop | None"  # None: nothing surely takes time
    groups: IntArray  # of the tables, in the shop's order
    release: Array  # when requests come to the first stage


def whole(tables: JointTables) -> Box:
    """Box of all partitions."""
    low = [int(first.min()) for first in tables.first]
    high = [int(first.max()) for first in tables.first]
    return Box((*low, tables.n_blocks), (*high, tables.n_blocks))


def stages_of(tables: JointTables, box: Box) -> Stages | None:
    """Relax the box to a shop that is nowhere slower than any of its partitions.

    None if no partition of it keeps the rules. A tier that some partition leaves empty is left
    out: its work counts as none and its nodes as endless. For a single partition the shop is
    exact.
    """
    from hypsolve.kernels.flow_shop import Shop

    n = tables.n_requests
    service: list[Array] = []
    lag: list[Array] = []
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
            mine = np.flatnonzero(tables.group_tier == k)
            least = [tables.service[g][:, inside].min(axis=1) for g in mine]
            if np.isinf(np.min(least, axis=0)).any():
                return None
            service += [np.broadcast_to(each, n) for each in least]
            groups.append(mine)
            tiers.append(k)
            lag.append(np.zeros(n))
        if k < tables.n_tiers - 1:
            travel = tables.transfer[:, k, box.low[k + 1] : box.high[k + 1] + 1].min(axis=1)
            if tiers:
                lag[-1] = lag[-1] + travel
            else:
                release = release + travel
    if not tiers:
        return Stages(None, np.empty(0, np.int64), release)
    lag[-1] = np.zeros(n)  # of one partition it is: behind its last stage nothing travels
    chosen = np.concatenate(groups)
    sizes = np.bincount(tables.group, minlength=len(tables.group_tier))[chosen]
    times = np.ascontiguousarray(np.array(service).T), np.ascontiguousarray(np.array(lag).T)
    shop = Shop(
        service=times[0],
        lag=times[1],
        release=release,
        first=np.concatenate([[0], np.cumsum([len(each) for each in groups])]),
        slot=np.concatenate([[0], np.cumsum(sizes)]),
        alike=_alike(np.hstack(times)),
        deadline=math.inf,
    )
    return Stages(shop, chosen, release)


def _alike(rows: Array) -> IntArray:
    """First request with the same row; -1: there is no other."""
    _, first, inverse, counts = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    inverse = inverse.reshape(-1)
    return np.where(counts > 1, first, -1)[inverse]


def ticks_of(shop: "Shop", step: float) -> "Ticks":
    """The shop's times in ticks."""
    from hypsolve.kernels.flow_shop import ROUND_DOWN, Ticks

    def whole_ticks(times: Array) -> IntArray:
        return np.floor(np.where(np.isfinite(times), times, 0.0) / step * ROUND_DOWN).astype(
            np.int64
        )

    stage = np.repeat(np.arange(len(shop.first) - 1), np.diff(shop.first))
    return Ticks(
        busy=whole_ticks(shop.service),
        ahead=whole_ticks(shop.service + shop.lag[:, stage]),
        release=whole_ticks(shop.release),
        step=step,
    )
