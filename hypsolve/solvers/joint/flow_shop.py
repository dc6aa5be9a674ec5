"""Partitions as lines of stages, for methods that serve thousands of requests."""

from dataclasses import dataclass

import numpy as np

from hypsolve.kernels.flow_shop import Line
from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import stage_service_s
from hypsolve.problem.instance import (
    Instance,
)
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.partition.stage_tables import feasible_stages


@dataclass(frozen=True, slots=True)
class Stages:
    """A box of partitions as one line that is nowhere slower than any of them.

    Attributes
    ----------
    box : PartitionBox
    line : Line or None
        Exact if the box holds a single partition; None if no tier surely has a stage.
    release_s : ndarray, shape (n_requests,)
        When requests come to the first stage of the line.
    tiers : list of int
        Of the stages.
    groups : list of tuple (tier, class)
        Of the line.
    nodes : ndarray
        Of the line's slots, counted within their tier.
    """

    box: PartitionBox
    line: Line | None
    release_s: Array
    tiers: list[int]
    groups: list[tuple[int, int]]
    nodes: IntArray


class Lines:
    """The partitions of an instance as lines: `of` a box, if it holds one that is allowed."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._is_legal = feasible_stages(instance)

    def whole(self) -> PartitionBox:
        """Box of all partitions: each cut from the first to the last that a stage allows."""
        n_blocks = self.instance.n_blocks
        low, high = [0], [0]
        for legal in self._is_legal[1:]:
            begins = np.flatnonzero(legal.any(axis=1))
            low.append(int(begins[0]) if begins.size else n_blocks)
            high.append(int(begins[-1]) if begins.size else n_blocks)
        return PartitionBox((*low, n_blocks), (*high, n_blocks))

    def of(self, box: PartitionBox) -> Stages | None:
        """Relax a box to a line; None if no partition of it is allowed.

        What all its partitions put on a tier is that tier's stage. A tier on which they agree
        on nothing is left out: its work counts as none and its nodes as endless.
        """
        instance, n = self.instance, self.instance.n_requests
        service: list[Array] = []
        lag: list[Array] = []
        groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        nodes: list[IntArray] = []
        tiers: list[int] = []
        first = [0]
        release = instance.arrival_s.astype(np.float64)
        for k in range(instance.n_tiers):
            begin, end = box.high[k], box.low[k + 1]
            ranges = slice(box.low[k], begin + 1), slice(end, box.high[k + 1] + 1)
            if not self._is_legal[k][ranges].any():
                return None
            if begin < end:
                times, classes, holders = self._stage(k, begin, end)
                for c in dict.fromkeys(classes.tolist()):
                    service.append(np.broadcast_to(times[:, c], n))
                    groups.append((k, c))
                    sizes.append(int((classes == c).sum()))
                nodes.append(holders)
                tiers.append(k)
                first.append(len(groups))
                lag.append(np.zeros(n))
            if k < instance.n_tiers - 1 and box.low[k + 1] < instance.n_blocks:
                travel = self._travel(k, box.low[k + 1], box.high[k + 1])
                if tiers:
                    lag[-1] = lag[-1] + travel
                else:
                    release = release + travel
        if not tiers:
            return Stages(box, None, release, [], [], np.empty(0, np.int64))
        line = Line(
            np.ascontiguousarray(np.array(service).T),
            np.ascontiguousarray(np.array(lag).T),
            release,
            np.array(first),
            np.concatenate([[0], np.cumsum(sizes)]),
        )
        return Stages(box, line, release, tiers, groups, np.concatenate(nodes))

    def _stage(self, tier: int, first: int, end: int) -> tuple[Array, IntArray, IntArray]:
        """Seconds by request and class; classes and numbers of the nodes that can hold it."""
        holders = np.flatnonzero(evaluation.can_hold(self.instance, tier, first, end))
        classes = self.instance.node_class[self.instance.nodes_of(tier)][holders]
        order = np.argsort(classes, kind="stable")
        times = stage_service_s(self.instance, first, end)
        return times, classes[order], holders[order]

    def _travel(self, link: int, low: int, high: int) -> Array:
        """Least seconds over a link behind any of the cuts, by request.

        Behind the last block nobody waits for it.
        """
        if high == self.instance.n_blocks:
            return np.zeros(1)
        kinds = self.instance.cut_kind[low : high + 1]
        return self.instance.transfer_kind_s[:, link, kinds].min(axis=1)


def decision_of(
    instance: Instance, stages: Stages, node: IntArray, start_s: Array, end_s: Array
) -> tuple[Partition, Schedule]:
    """Decision from slots and times, each (n_requests, n_stages), on a single partition."""
    shape = instance.n_requests, instance.n_tiers
    nodes = np.full(shape, -1, np.int64)
    starts_s, ends_s = np.full(shape, np.nan), np.full(shape, np.nan)
    nodes[:, stages.tiers] = stages.nodes[node]
    starts_s[:, stages.tiers], ends_s[:, stages.tiers] = start_s, end_s
    return Partition(stages.box.low), Schedule(nodes, starts_s, ends_s)
