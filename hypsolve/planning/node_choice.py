"""`best_nodes`: the nodes of a network on which a server of whole pipelines serves most.

A pipeline is as slow as its slowest node, and a server has other defaults on other GPUs. So a
node more may lower the rate. The networks without some kinds of nodes, and without some tiers,
are compared: all are solved by the fluid model, and the best few are simulated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
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
    queries = [query]
    for network, is_closed in networks(query.network):
        each = query.on(network)
        if not is_closed or each.runtime != query.runtime:  # else a split of the query does it
            queries.append(each)
    if len(queries) == 1:
        return query
    rates: dict[int, float] = {}
    choices = {}
    for at, each in enumerate(queries):
        if at and deadline.has_passed():
            break
        limit_s = deadline.part(1 / (len(queries) - at + 1)).limit_s
        solution, splits, rate = rank_fluid(replace(each, time_limit_s=limit_s))
        if splits and rate > 0:
            rates[at] = rate
            choices[at] = Choice((1 / rate, at), replace(solution, query=each))
    if not choices or deadline.has_passed():
        return query
    least = SHARE * max(rates.values())
    tried = [choices[at] for at in choices if at == 0 or rates[at] >= least]
    return queries[int(served_best(tried, deadline, progress).order[-1])]


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
