"""Layout of a placement: its pipelines as one deployment, and the router's fixed shares."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np

from hypsolve.problem.arrays import IntArray
from hypsolve.problem.deployment import Deployment, Link, Node, Requests, Tier
from hypsolve.problem.network import Network
from hypsolve.problem.placement import Placement, PlacementProblem
from hypsolve.problem.placement_evaluation import check_placement
from hypsolve.simulation.token_layout import Layout, return_latency_s

_NO_LINK = Link(
    bytes_per_s=1.0, latency_s=0.0
)  # between the tiers of the deployment; nothing crosses it


def deployment_of_placement(
    problem: PlacementProblem, placement: Placement, requests: Requests
) -> Deployment:
    """Return the deployment of all pipelines: tier s has their s-th stages, in their order.

    Its links mean nothing: those of the pipelines are in the layout.
    """
    names = Counter(s.machine for pipeline in placement.pipelines for s in pipeline.stages)
    tiers: list[list[Node]] = []
    for p, pipeline in enumerate(placement.pipelines):
        for s, stage in enumerate(pipeline.stages):
            node = problem.group(problem.fleet.machine(stage.machine), stage.gpus)
            if names[stage.machine] > 1:
                node = replace(node, name=f"{stage.machine} ({p}.{s})")
            if s == len(tiers):
                tiers.append([])
            tiers[s].append(node)
    last = len(tiers) - 1
    network = Network(
        name=problem.fleet.name,
        tiers=tuple(
            Tier(name=f"stage {s}", nodes=tuple(nodes), link=None if s == last else _NO_LINK)
            for s, nodes in enumerate(tiers)
        ),
    )
    return Deployment(
        model=problem.model,
        network=network,
        requests=requests,
        cost_model=problem.cost_model,
        runtime=problem.runtime,
    )


def layout_of_placement(
    problem: PlacementProblem,
    placement: Placement,
    deployment: Deployment,
    assigned: IntArray | None,
) -> Layout:
    """Return the layout of the deployment of a placement.

    Raises
    ------
    ValueError
        If a stage has no room for the longest request.
    """
    lengths = [len(pipeline.stages) for pipeline in placement.pipelines]
    tiers = [len(tier.nodes) for tier in deployment.network.tiers]
    first_node = np.concatenate([[0], np.cumsum(tiers)])
    taken = [0] * len(tiers)
    member = np.full((len(lengths), len(tiers)), -1)
    node_span = np.empty(sum(tiers), np.int64)
    links: list[Link] = []
    cuts: list[int] = []
    hops: list[tuple[int, int]] = []
    return_s, delivery_s = [], []
    for p, pipeline in enumerate(placement.pipelines):
        for s in range(lengths[p]):
            member[p, s] = first_node[s] + taken[s]
            node_span[member[p, s]] = len(hops)
            hops.append((len(links) + s - 1, len(links) + s) if s else (0, 0))
            taken[s] += 1
        own = problem.deployment(pipeline.groups, deployment.requests)
        own_links = [tier.link for tier in own.network.tiers if tier.link is not None]
        links += own_links
        cuts += pipeline.partition.cuts[1:-1]
        return_s.append(sum(map(return_latency_s, own_links)))
        first = problem.fleet.machine(pipeline.stages[0].machine)
        delivery_s.append(own.request_s + problem.entry_s(first))
    return Layout(
        tiers=list(range(len(tiers))),
        nodes=[np.arange(i, j) for i, j in itertools.pairwise(first_node)],
        spans=[(s.start, s.stop) for pipeline in placement.pipelines for s in pipeline.stages],
        node_span=node_span,
        pipelines=member,
        links=links,
        link_names=[f"link {k}" for k in range(len(links))],
        link_cuts=cuts,
        hop_first=np.array([i for i, _ in hops]),
        hop_end=np.array([j for _, j in hops]),
        return_s=np.array(return_s, np.float64),
        delivery_s=np.array(delivery_s, np.float64),
        assigned=assigned,
    )


def check_rules(problem: PlacementProblem, placement: Placement, requests: Requests) -> None:
    """Check the rules of a placement for requests, but for loads.

    Raises
    ------
    ValueError
        If a rule is broken; the message names the pipeline.
    """
    idle = Placement(
        tuple(replace(pipeline, requests_per_s=0.0) for pipeline in placement.pipelines)
    )
    for violation in check_placement(problem.replace(requests=requests), idle):
        if violation.rule != "rate":
            raise ValueError(f"simulate_placement: {violation.message}")


def check_memory(
    problem: PlacementProblem, placement: Placement, deployment: Deployment
) -> None:
    """Check that each stage has room for the longest request.

    Raises
    ------
    ValueError
        If one has not; the message names it.
    """
    model, longest = problem.model, deployment.max_resident_tokens
    assert longest is not None  # Deployment sets it
    for p, pipeline in enumerate(placement.pipelines):
        for stage in pipeline.stages:
            node = problem.group(problem.fleet.machine(stage.machine), stage.gpus)
            blocks = model.blocks[stage.start : stage.stop]
            needed = model.stage_weight_bytes(blocks)
            needed += deployment.kv_bytes_per_token(blocks, node) * longest
            has = deployment.usable_bytes(node)
            if needed > has * (1 + 1e-12):
                raise ValueError(
                    f"simulate_placement: pipeline {p}: stage {stage} must hold its weights and"
                    f" the KV cache of {longest} tokens, {needed:g} bytes, got {has:g}"
                )


def in_proportion(loads: list[float], order: IntArray) -> IntArray:
    """Return the pipeline of each request, by smooth weighted round robin.

    After t requests, a pipeline with the share w of the load has had t w of them, but for less
    than one if there are two pipelines, and for a few if there are many.

    Parameters
    ----------
    loads : list of float
        Load of each pipeline.
    order : ndarray of int
        Requests in the order in which they arrive.

    Raises
    ------
    ValueError
        If no pipeline has a load.

    Examples
    --------
    >>> import numpy as np
    >>> in_proportion([2.0, 1.0, 0.0], np.arange(6)).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    total = sum(loads)
    if total <= 0:
        raise ValueError(
            "simulate_placement: policy 'weighted' needs a pipeline with requests_per_s > 0,"
            " got none"
        )
    shares = np.array(loads) / total
    counts = np.zeros(len(loads))
    chosen = np.empty(len(order), np.int64)
    for t, r in enumerate(order.tolist()):
        due = np.where(shares > 0, shares * (t + 1) - counts, -np.inf)
        p = int(np.argmax(due))
        counts[p] += 1
        chosen[r] = p
    return chosen
