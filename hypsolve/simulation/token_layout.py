"""`Layout`: the stages of the nodes at token level, and the links to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment, Link
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Stages of the nodes of a deployment, and the links to them.

    A span is a range of blocks that nodes hold as their stage, with the links that lead there.
    The spans of a pipeline come one behind the other.

    Attributes
    ----------
    tiers : list of int
        Tiers that have a stage: the active stages.
    nodes : list of ndarray of int
        Nodes that can hold a stage at each of these tiers, numbered over the whole network.
    spans : list of (int, int)
        First and end block of each span.
    node_span : ndarray of int, shape (n_nodes,)
        Span of each node; -1: it holds no stage.
    pipelines : ndarray of int, shape (n_pipelines, n_stages)
        Nodes of each pipeline, -1 behind its last one.
    links : list of Link
    link_names : list of str
        Names by which events call them.
    link_cuts : list of int
        Number of blocks before each link.
    hop_first, hop_end : ndarray of int, shape (n_spans,)
        Links before each span.
    return_s : ndarray, shape (n_pipelines or 1,)
        Seconds of a token from the last stage back to the first.
    delivery_s : ndarray, shape (n_pipelines or 1,)
        Seconds of a token from the first stage to the request side.
    assigned : ndarray of int or None
        Pipeline of each request, where it does not depend on their state.
    """

    tiers: list[int]
    nodes: list[IntArray]
    spans: list[tuple[int, int]]
    node_span: IntArray
    pipelines: IntArray
    links: list[Link]
    link_names: list[str]
    link_cuts: list[int]
    hop_first: IntArray
    hop_end: IntArray
    return_s: Array
    delivery_s: Array
    assigned: IntArray | None = None

    @property
    def n_stages(self) -> IntArray:
        """Number of stages of each pipeline."""
        return (self.pipelines >= 0).sum(axis=1)

    def is_last(self, stage: int, node: int) -> bool:
        """Return whether a node of a stage holds the last blocks."""
        return self.spans[self.node_span[node]][1] == self.spans[-1][1]


def layout_of_tiers(
    deployment: Deployment, instance: Instance, partition: Partition, batching: Batching
) -> Layout:
    """Return the layout of a partition, whose stages are those of the tiers.

    Raises
    ------
    ValueError
        If no node of a tier can hold its stage.
    """
    cuts = partition.cuts
    tiers = [k for k in range(partition.n_tiers) if partition.stage(k)]
    nodes = []
    for k in tiers:
        i, j = cuts[k], cuts[k + 1]
        holders = np.flatnonzero(evaluation.can_hold(instance, k, i, j))
        if not holders.size:
            raise ValueError(
                f"simulate: tier {instance.tier_names[k]!r} has no node that can hold"
                f" blocks {i}:{j}, which need"
                f" {evaluation.stage_bytes(instance, i, j):g} bytes"
            )
        nodes.append(holders + instance.nodes_of(k).start)
    n_pipelines = 0 if batching is Batching.STAGE else min(map(len, nodes))
    node_span = np.full(instance.n_nodes, -1)
    for span, k in enumerate(tiers):
        node_span[instance.nodes_of(k)] = span
    links = [tier.link for tier in deployment.network.tiers if tier.link is not None]
    hop_end = np.array(tiers)  # links before tier k are 0..k - 1
    n, first, last = max(n_pipelines, 1), tiers[0], tiers[-1]
    delivery_s = math.fsum(map(return_latency_s, links[:first])) + deployment.request_s
    return Layout(
        tiers=tiers,
        nodes=nodes,
        spans=[(cuts[k], cuts[k + 1]) for k in tiers],
        node_span=node_span,
        pipelines=np.stack([each[:n_pipelines] for each in nodes], axis=1),
        links=links,
        link_names=[tier.name for tier in deployment.network.tiers[:-1]],
        link_cuts=list(cuts[1:-1]),
        hop_first=np.append(0, hop_end[:-1]),
        hop_end=hop_end,
        return_s=np.full(n, math.fsum(map(return_latency_s, links[first:last]))),
        delivery_s=np.full(n, delivery_s),
    )


def return_latency_s(link: Link) -> float:
    """Return the latency of a link on the way back."""
    return link.round_trip_s - link.latency_s
