"""`points_of_networks`: what splits serve on all choices of nodes that a server can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hypsolve.planning.query import PlanQuery, Solution, rank_fluid, solve_query
from hypsolve.planning.runtime_restrictions import ServerNetwork, queries_of_server
from hypsolve.planning.serving_frontier import MAX_POINTS, ServingPoint, simulated_point
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.deployment import Tier
from hypsolve.problem.evaluation import evaluate
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.partition.hypsplit import ParetoPoint

CHOICE_SHARE = 0.3  # of the time limit, to choose the splits that are simulated


def points_of_networks(
    queries: Sequence[PlanQuery], deadline: Deadline, progress: Progress | None = None
) -> tuple[ServingPoint, ...]:
    """Simulate the best splits on several choices of nodes.

    Of each, the split with the largest rate in the fluid model, and the one with the least
    latency of requests one at a time, are candidates. `MAX_POINTS` candidates are simulated,
    first those that no other beats in the rate of its nodes and the latency.

    Parameters
    ----------
    queries : sequence of PlanQuery
        One query on each choice of nodes.
    deadline : Deadline
        When it has passed, no further split is simulated.
    progress : callable, optional
        Called with a line for each simulated split.
    """
    found: list[tuple[float, float, Solution, Partition]] = []
    choosing = deadline.part(CHOICE_SHARE)
    for query in queries:
        if found and choosing.has_passed():
            break
        limit_s = choosing.part(1.0).limit_s
        splits, rate = _fluid(replace(query, objective="throughput", time_limit_s=limit_s))
        alone = solve_query(replace(query, objective="path", time_limit_s=limit_s))
        if alone.result.partition is None or not splits:
            continue
        of_split = [alone.result.partition, Partition(splits[0])]
        for partition in dict.fromkeys(of_split):
            path_s = evaluate(alone.instance, partition)
            found.append((rate, path_s, alone, partition))
    points: list[ServingPoint] = []
    seen: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
    for _, path_s, solution, partition in _by_front(found):
        nodes = nodes_with_blocks(solution.deployment.network.tiers, partition)
        if (partition.cuts, nodes) in seen:
            continue
        if len(points) == MAX_POINTS or (points and deadline.has_passed()):
            break
        seen.add((partition.cuts, nodes))
        if progress is not None:
            progress(
                f"simulating splits on {len(queries)} choices of nodes: {len(points)} done"
            )
        instance = solution.instance
        at = ParetoPoint(
            bottleneck_s=evaluate(instance, partition, objective="bottleneck"),
            path_s=path_s,
            partition=partition,
        )
        load = solution.query.load
        point = simulated_point(solution.deployment, instance, load, at, deadline)
        points.append(replace(point, nodes=nodes))
    return tuple(points)


def best_in_fluid(query: PlanQuery) -> tuple[Partition, ...]:
    """Return the best splits of the fluid model: for the rate, and for that within targets."""
    objectives = ("goodput", "throughput") if query.has_targets else ("throughput",)
    limit_s = query.time_limit_s / len(objectives)
    found = (_fluid(replace(query, objective=o, time_limit_s=limit_s)) for o in objectives)
    return tuple(dict.fromkeys(Partition(cuts) for splits, _ in found for cuts in splits))


def _fluid(query: PlanQuery) -> tuple[list[tuple[int, ...]], float]:
    """Return the best split of the fluid model, or none, and its rate."""
    _, splits, rate = rank_fluid(replace(query, method=None, options={}))
    return splits, rate


def _by_front(
    found: list[tuple[float, float, Solution, Partition]],
) -> list[tuple[float, float, Solution, Partition]]:
    """Return candidates by decreasing rate, those that no other beats first."""
    ordered = sorted(found, key=lambda each: (-each[0], each[1]))
    least_s, first, rest = math.inf, [], []
    for each in ordered:
        if each[1] < least_s:
            least_s = each[1]
            first.append(each)
        else:
            rest.append(each)
    return first + rest


def nodes_with_blocks(tiers: Sequence[Tier], partition: Partition) -> tuple[str, ...]:
    """Return the names of the nodes of all tiers that hold blocks in a split."""
    return tuple(
        node.name for k, tier in enumerate(tiers) if partition.stage(k) for node in tier.nodes
    )


def with_other_nodes(
    tried: Sequence[ServingPoint], nodes: ServerNetwork, asked: PlanQuery, deadline: Deadline
) -> tuple[ServingPoint, ...]:
    """Add splits on the other choices of nodes that the server can use, named by nodes."""
    tiers = nodes.query.network.network.tiers
    own = tuple(replace(p, nodes=nodes_with_blocks(tiers, p.partition)) for p in tried)
    alone = replace(nodes.query, network=asked.network, objective="path")
    queries = queries_of_server(solve_query(alone), nodes.server)
    return own + points_of_networks(queries, deadline)
