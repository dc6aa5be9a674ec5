"""`least_tpot_s`: a time per output token that no split and no schedule of a query beats.

*Claim.* Every request of two output tokens or more has a time per output token of at least the
returned one, whatever the split, the nodes, the degrees of tensor parallelism, the limits of
the runtime and the other requests are.

*Proof.* The time per output token of a request is the mean time between its tokens. Between two
of them, a decode pass goes through all blocks. A block of tier k takes no less than its pass
alone on the fastest node of this tier, with the fastest degree that its machine can have: other
requests in an iteration only add to it, and a prompt that is computed again after a preemption
counts as in `hypsolve.planning.rate_bound`. Links of tiers with blocks before and behind them
are crossed once in each direction. So a split takes at least the sum over its blocks and links,
and no split takes less than the shortest chain over all of them. Chains are left out in which
the weights of a tier exceed the memory of all of its GPUs, and those in which a tier is empty
that must not be. Nodes of a tier in a row, as servers of whole pipelines place them, hold the
blocks of the tier: the sum is the same, and the links among them only add to it.

If requests have different lengths, the bound is that of the shortest prompt and of one decode
pass: passes take the longer, the longer their context is. Links do not count where llama.cpp
sends messages other ways, nor do host seconds of iterations.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hypsolve.planning.exporters import ONE_PIPELINE
from hypsolve.planning.fitted_costs import FITTED, with_fitted_costs
from hypsolve.planning.gpu_groups import NO_DEGREE, degrees_of, dividing
from hypsolve.planning.plan_query import PlanQuery
from hypsolve.planning.rate_bound import bounded, least_decodes_s
from hypsolve.planning.saturation import MET
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.model import Model
from hypsolve.problem.network import Network, Node, Tier

ROUNDING = 1e-9  # relative, which the bound gives away


def least_tpot_s(query: PlanQuery, *, may_leave_out: bool = True) -> float:
    """Return seconds per output token that no split and no schedule of a query beats.

    The proof is in the docstring of this module.

    Parameters
    ----------
    query : PlanQuery
        Before degrees of tensor parallelism are chosen, so that the bound holds for all.
    may_leave_out : bool
        Whether a server of whole pipelines may leave out tiers that state no `min_blocks`.
        If not, links count in any case: the value then ranks networks, and may be no bound
        under llama.cpp.

    Returns
    -------
    float
        0 where nothing is known: where requests of one output token are so many that the target
        is met without the others, or where all lengths are not known. It is inf if no split
        fits.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> query = hs.PlanQuery.of("llama-3-8b", home, runtime="vllm")
    >>> 0.015 < least_tpot_s(query) < 0.025
    True
    """
    lengths = _lengths(query)
    if lengths is None:
        return 0.0
    prompt, output = lengths
    network = Network(
        name=query.network.network.name,
        tiers=tuple(
            replace(tier, nodes=tuple(_options(query, tier)))
            for tier in query.network.network.tiers
        ),
    )
    if query.costs == FITTED:
        network = with_fitted_costs(network, query.runtime, query.model)
    deployment = Deployment(
        model=query.model,
        network=network,
        requests=Requests(np.zeros(1), np.array([prompt]), np.array([output])),
        runtime=query.runtime,
    )
    blocks_s = np.array([_blocks_s(deployment, tier) for tier in network.tiers])
    blocks_s /= output - 1
    counts_links = query.runtime.name not in NO_DEGREE or not may_leave_out
    is_left_out = may_leave_out and query.runtime.server in ONE_PIPELINE
    if_none = 0 if is_left_out else 1
    shortest_s = _shortest(query, blocks_s, if_none=if_none, counts_links=counts_links)
    return shortest_s * (1 - ROUNDING)


def _lengths(query: PlanQuery) -> tuple[int, int] | None:
    """Return prompt and output tokens that no decode pass is shorter than; None if unknown."""
    if query.requests is None:
        prompt, output = query.prompt_tokens, query.output_tokens
        return (prompt, output) if output > 1 else None
    requests = query.requests.requests
    if requests is None:
        return None
    has_tpot = requests.output_tokens > 1
    if has_tpot.mean() <= 1 - MET:
        return None
    return int(requests.prompt_tokens[has_tpot].min()), 2


def _options(query: PlanQuery, tier: Tier) -> list[Node]:
    """Return a group of GPUs of each machine of a tier, for each degree that it can have."""
    found = []
    for node in tier.nodes:
        degrees = dividing(query.model, degrees_of(node))
        if query.runtime.name in NO_DEGREE:
            degrees = [degree for degree in degrees if degree == 1]
        for degree in degrees or [node.tensor_parallel or 1]:
            group = node.groups(degree)
            found += [replace(each, name=f"{node.name}/{degree}") for each in group[:1]]
    return found


def _blocks_s(deployment: Deployment, tier: Tier) -> list[float]:
    """Return the least seconds of all decode passes of a request in each block on a tier."""
    gpus = {bounded(deployment, node) for node in tier.nodes}
    least = {
        block: min(least_decodes_s([block], gpu, deployment) for gpu in gpus)
        for block in set(deployment.model.blocks)
    }
    return [least[block] for block in deployment.model.blocks]


def _shortest(query: PlanQuery, blocks_s: Array, *, if_none: int, counts_links: bool) -> float:
    """Return the least seconds of a pass over all splits; inf if none fits.

    Parameters
    ----------
    query : PlanQuery
    blocks_s : ndarray, shape (n_tiers, n_blocks)
        Seconds of a pass through each block.
    if_none : int
        Blocks of a tier at least, where the network gives no limit.
    counts_links : bool
        Whether the round trips of links count.
    """
    network, model = query.network.network, query.model
    least = query.network.min_blocks or (None,) * len(network.tiers)
    most = query.network.max_blocks or (None,) * len(network.tiers)
    n_blocks = model.n_blocks
    weights = np.cumsum([0, *(block.weight_bytes for block in model.blocks)])
    reached = np.full(n_blocks + 1, math.inf)  # seconds up to a cut
    reached[0] = 0.0
    for k, tier in enumerate(network.tiers):
        given = 0 if most[k] == 0 else least[k]
        low = if_none if given is None else given
        memory = sum(node.gpus * _memory_bytes(node) for node in tier.nodes)
        before_s = np.concatenate([[0.0], blocks_s[k].cumsum()])
        then = np.full(n_blocks + 1, math.inf)
        for i in np.flatnonzero(np.isfinite(reached)).tolist():
            last = i if most[k] == 0 else _last(model, weights, i, memory)
            to = slice(i + low, last + 1)
            if i + low <= last:
                then[to] = np.minimum(then[to], reached[i] + before_s[to] - before_s[i])
        if counts_links and tier.link is not None:
            then[1:n_blocks] += tier.link.round_trip_s
        reached = then
    return float(reached[-1])


def _memory_bytes(node: Node) -> float:
    return node.gpu.memory_bytes if node.memory_bytes is None else node.memory_bytes


def _last(model: Model, weights: IntArray, first: int, memory_bytes: float) -> int:
    """Return the end of the longest stage from a block on whose weights fit in a memory.

    `weights` are the bytes of the blocks before each cut.
    """
    if first == 0 and weights[-1] - model.tied_bytes <= memory_bytes:
        return model.n_blocks
    return int(np.searchsorted(weights, weights[first] + memory_bytes, side="right")) - 1
