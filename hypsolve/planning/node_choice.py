"""`best_nodes`: the nodes of a network on which a server of whole pipelines serves most.

A pipeline is as slow as its slowest node, and a server has other defaults on other GPUs. So a
node more may lower the rate. The networks without some kinds of nodes, and without some tiers,
are compared: all are solved by the fluid model, and the best few are simulated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.query import PlanQuery, rank_fluid
from hypsolve.planning.runtime_networks import kinds_of, limited, may_be_empty
from hypsolve.planning.served_best import Choice, served_best
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.deployment import Node
from hypsolve.solvers.clock import Deadline

MAX_CHOICES = 64  # networks that are solved
MAX_KINDS = 3  # of nodes in a tier, up to which all sets of kinds are tried
SHARE = 0.5  # of the best rate in the fluid model, from which a network is simulated


def best_nodes(
    query: PlanQuery, deadline: Deadline, progress: Progress | None = None
) -> PlanQuery:
    """Return the query on the nodes on which most requests are served in simulation.

    Parameters
    ----------
    query : PlanQuery
        Its objective is ``throughput`` or ``goodput``; the query itself is returned for others.
    deadline : Deadline
        When it has passed before anything is simulated, the query itself is returned.
    progress : callable, optional
        Called with a line for each simulated network.
    """
    if query.objective not in ("throughput", "goodput"):
        return query
    queries = queries_on_nodes(query)
    if len(queries) == 1:
        return query
    solved: dict[int, tuple[float, float]] = {}  # factor on the targets, then rate
    choices = {}
    for at, each in enumerate(queries):
        if at and deadline.has_passed():
            break
        limit_s = deadline.part(1 / (len(queries) - at + 1)).limit_s
        solution, splits, rate = rank_fluid(replace(each, time_limit_s=limit_s))
        # a split with other limits is one of another network, where it has them
        if splits and rate > 0 and each.has_limits_of(splits[0]):
            solved[at] = solution.relaxed, rate
            order = (solution.relaxed, 1 / rate, at)
            choices[at] = Choice(order, replace(solution, query=each))
    if not choices or deadline.has_passed():
        return query
    relaxed = min(factor for factor, _ in solved.values())
    least = SHARE * max(rate for factor, rate in solved.values() if factor == relaxed)
    tried = [choices[at] for at in choices if at == 0 or solved[at][1] >= least]
    return queries[int(served_best(tried, deadline, progress).order[-1])]


def queries_on_nodes(query: PlanQuery) -> list[PlanQuery]:
    """Return the query, and those on its networks without some kinds of nodes or tiers.

    Each has the limits that the server has on the nodes of its network. One that only has empty
    tiers, and the same limits, is left out: its splits are some of the query's.
    """
    queries = [query]
    for network, is_closed in networks(query.network):
        each = query.on(network)
        if not is_closed or each.runtime != query.runtime:
            queries.append(each)
    return queries


def on_nodes_of(query: PlanQuery, cuts: Sequence[int]) -> PlanQuery:
    """Return the query on the nodes that a split uses, if the server has other limits on them.

    The other tiers are closed. The query itself is returned if its limits are those of the
    split, so that every plan has the limits of the nodes in use.
    """
    if query.has_limits_of(tuple(cuts)):
        return query
    empty = tuple(k for k, (i, j) in enumerate(itertools.pairwise(cuts)) if i == j)
    most = query.network.max_blocks or (None,) * len(cuts[:-1])
    empty += tuple(k for k, limit in enumerate(most) if limit == 0)
    return query.on(limited(query.network, tuple(sorted(set(empty)))))


def networks(network: NetworkFile) -> Iterator[tuple[NetworkFile, bool]]:
    """Yield the networks without some kinds of nodes or tiers, and whether tiers are left out.

    The network itself is not yielded. If there are more than `MAX_CHOICES`, fewer sets of kinds
    of nodes are tried.
    """
    options = [list(_options(network, k, MAX_KINDS)) for k in range(_n_tiers(network))]
    if math.prod(map(len, options)) > MAX_CHOICES:
        options = [list(_options(network, k, 0)) for k in range(_n_tiers(network))]
    chosen = itertools.islice(itertools.product(*options), 1, MAX_CHOICES)  # first: all nodes
    for each in chosen:
        try:
            yield _network_of(network, each), () in each
        except ValueError:  # a block is pinned to a tier that would be left out
            continue


Nodes = tuple[Node, ...] | None


def _options(network: NetworkFile, k: int, max_kinds: int) -> Iterator[Nodes]:
    """Yield the nodes that a tier may keep: None for all, and none if it may be empty."""
    yield None
    if network.max_blocks and network.max_blocks[k] == 0:
        return
    kinds = kinds_of(network.network.tiers[k].nodes)  # the fastest one first
    if len(kinds) <= max_kinds:
        sizes = range(1, len(kinds))
        sets = [each for n in sizes for each in itertools.combinations(kinds, n)]
    else:
        sets = [tuple(kinds[:n]) for n in range(1, min(len(kinds), 2))]
    for each in sets:
        yield tuple(node for kind in each for node in kind)
    if may_be_empty(network, k):
        yield ()


def _network_of(network: NetworkFile, chosen: tuple[Nodes, ...]) -> NetworkFile:
    closed = tuple(k for k, nodes in enumerate(chosen) if nodes == ())
    if len(closed) == len(chosen):
        raise ValueError("no tier is left")
    if closed:
        most = network.max_blocks or (None,) * len(chosen)
        closed += tuple(k for k, limit in enumerate(most) if limit == 0)
        network = limited(network, tuple(sorted(set(closed))))
    for k, nodes in enumerate(chosen):
        if nodes:
            of_tier = network.network.tiers[k].nodes
            network = network.in_a_row(k, [tuple(node for node in of_tier if node in nodes)])
    return network


def _n_tiers(network: NetworkFile) -> int:
    return len(network.network.tiers)
