"""Partition boxes relaxed to flow shops, for methods that serve thousands of requests."""

from dataclasses import dataclass

import numpy as np

from hypsolve.kernels.flow_shop import FlowShop
from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import stage_service_s
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.partition.stage_tables import feasible_stages


@dataclass(frozen=True, slots=True)
class FlowShopRelaxation:
    """A flow shop that is nowhere slower than any partition of a box.

    Attributes
    ----------
    box : PartitionBox
    shop : FlowShop or None
        Exact if the box holds a single partition; None if no tier is sure to have a stage.
    release_s : ndarray, shape (n_requests,)
        When a request arrives at the first stage of the shop.
    tiers : list of int
        Tier of each stage.
    groups : list of tuple (tier, class)
        Tier and node class of each group.
    nodes : ndarray
        Node of each slot of the shop, counted within its tier.
    """

    box: PartitionBox
    shop: FlowShop | None
    release_s: Array
    tiers: list[int]
    groups: list[tuple[int, int]]
    nodes: IntArray


class Relaxer:
    """Relaxes partition boxes of an instance to flow shops."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._is_feasible = feasible_stages(instance)

    def root(self) -> PartitionBox:
        """Return the box of all partitions: every cut that a feasible stage allows."""
        n_blocks = self.instance.n_blocks
        low, high = [0], [0]
        for feasible in self._is_feasible[1:]:
            begins = np.flatnonzero(feasible.any(axis=1))
            low.append(int(begins[0]) if begins.size else n_blocks)
            high.append(int(begins[-1]) if begins.size else n_blocks)
        return PartitionBox((*low, n_blocks), (*high, n_blocks))

    def relax(self, box: PartitionBox) -> FlowShopRelaxation | None:
        """Relax a box to a flow shop; return None if no partition of the box is feasible.

        The stage of a tier holds the blocks that every partition of the box places there. If
        there is no such block, the tier is left out: its work counts as zero and its nodes as
        unlimited.
        """
        instance, n = self.instance, self.instance.n_requests
        service: list[Array] = []
        travel: list[Array] = []
        groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        nodes: list[IntArray] = []
        tiers: list[int] = []
        first = [0]
        release = instance.release_s.copy()
        for k in range(instance.n_tiers):
            begin, end = box.high[k], box.low[k + 1]
            ranges = slice(box.low[k], begin + 1), slice(end, box.high[k + 1] + 1)
            if not self._is_feasible[k][ranges].any():
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
                travel.append(np.zeros(n))
            if k < instance.n_tiers - 1 and box.low[k + 1] < instance.n_blocks:
                link_s = self._link_s(k, box.low[k + 1], box.high[k + 1])
                if tiers:
                    travel[-1] = travel[-1] + link_s
                else:
                    release = release + link_s
        if not tiers:
            return FlowShopRelaxation(box, None, release, [], [], np.empty(0, np.int64))
        shop = FlowShop(
            np.ascontiguousarray(np.array(service).T),
            np.ascontiguousarray(np.array(travel).T),
            release,
            np.array(first),
            np.concatenate([[0], np.cumsum(sizes)]),
        )
        return FlowShopRelaxation(box, shop, release, tiers, groups, np.concatenate(nodes))

    def _stage(self, tier: int, first: int, end: int) -> tuple[Array, IntArray, IntArray]:
        """Return service times by request and class, and the classes and numbers of nodes."""
        holders = np.flatnonzero(evaluation.can_hold(self.instance, tier, first, end))
        classes = self.instance.node_class[self.instance.nodes_of(tier)][holders]
        order = np.argsort(classes, kind="stable")
        times = stage_service_s(self.instance, first, end)
        return times, classes[order], holders[order]

    def _link_s(self, link: int, low: int, high: int) -> Array:
        """Return the minimum transfer time by request over a cut in ``low..high``.

        It is 0 if the cut may lie behind the last block, where nothing is transferred.
        """
        if high == self.instance.n_blocks:
            return np.zeros(1)
        kinds = self.instance.cut_kind[low : high + 1]
        return self.instance.transfer_kind_s[:, link, kinds].min(axis=1)


def fastest_s(shop: FlowShop) -> Array:
    """Return the service time on the fastest node of each stage, (n_requests, n_stages)."""
    return np.minimum.reduceat(shop.service, shop.first[:-1], axis=1)


def remaining_s(shop: FlowShop) -> Array:
    """Return the time from the start of a stage to the completion if there is no delay.

    The shape is (n_requests, n_stages).
    """
    step_s = fastest_s(shop) + shop.travel
    return np.ascontiguousarray(step_s[:, ::-1].cumsum(axis=1)[:, ::-1])


def to_decision(
    instance: Instance,
    relaxation: FlowShopRelaxation,
    node: IntArray,
    start_s: Array,
    end_s: Array,
) -> tuple[Partition, Schedule]:
    """Translate a schedule of the flow shop of a single partition to the instance.

    `node` (slots of the shop), `start_s` and `end_s` have shape (n_requests, n_stages).
    """
    shape = instance.n_requests, instance.n_tiers
    nodes = np.full(shape, -1, np.int64)
    starts_s, ends_s = np.full(shape, np.nan), np.full(shape, np.nan)
    nodes[:, relaxation.tiers] = relaxation.nodes[node]
    starts_s[:, relaxation.tiers], ends_s[:, relaxation.tiers] = start_s, end_s
    return Partition(relaxation.box.low), Schedule(nodes, starts_s, ends_s)
