"""`least_tpot_s`, `least_ttft_s`: latencies that no split and no schedule of a query beats.

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

*Claim.* No request has a time to its first token below that of `least_ttft_s`.

*Proof.* A prompt may be computed in chunks, by several stages at the same time. A stage begins
when the first chunk has gone through the blocks and links before it, and computes the whole
prompt in its own blocks, in one iteration after the other. Then the last chunk goes through the
blocks and links behind it. A chunk has one token at least, after no others in the least case.
Let d be the seconds of such a pass, P those of the prompt in one chunk, and D the sum of d over
all blocks and links. The time is thus at least D + P - d for the blocks of every stage. More
chunks only add to P, since weights and cached tokens are read again; all-reduces count with the
fewest seconds per token, and attention with the cheaper of its two rates. If the GPUs of a tier
may form N stages in a row, one of them has an N-th of the difference at least. The bound is the
least such value over all splits, for the shortest prompt.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hypsolve.planning.exporters import ONE_PIPELINE
from hypsolve.planning.fitted_costs import FITTED, with_fitted_costs
from hypsolve.planning.gpu_groups import NO_DEGREE, degrees_of, dividing
from hypsolve.planning.plan_query import PlanQuery
from hypsolve.planning.rate_bound import bounded, least_decodes_s
from hypsolve.planning.saturation import MET
from hypsolve.problem import costs
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import CostModel, Deployment, GpuProfile, Requests
from hypsolve.problem.model import Model
from hypsolve.problem.network import Network, Node, Tier

ROUNDING = 1e-9  # relative, which the bound gives away
FINEST = 0.005  # of the least time to the first token, which the bound may be below the claim


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


def least_ttft_s(query: PlanQuery) -> float:
    """Return seconds to the first token that no split and no schedule of a query beats.

    The proof is in the docstring of this module.

    Parameters
    ----------
    query : PlanQuery
        Before degrees of tensor parallelism are chosen, so that the bound holds for all.

    Returns
    -------
    float
        0 where not all lengths are known; inf if no split fits.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> query = hs.PlanQuery.of("llama-3-8b", home, runtime="vllm", prompt_tokens=4096)
    >>> 0.3 < least_ttft_s(query) < 0.7
    True
    """
    prompt = query.prompt_tokens
    if query.requests is not None:
        if query.requests.requests is None:
            return 0.0
        prompt = int(query.requests.requests.prompt_tokens.min())
    network, server = query.network.network, query.runtime.server
    in_rows = query.has_pipelines or server in ONE_PIPELINE
    token_s, excess_s = [], []
    for tier in network.tiers:
        of_token, of_prompt = [], []
        for node in _options(query, tier):
            only = Network(name=network.name, tiers=(replace(tier, nodes=(node,), link=None),))
            if query.costs == FITTED:
                only = with_fitted_costs(only, query.runtime, query.model)
            deployment = Deployment(
                model=query.model,
                network=only,
                requests=Requests(np.zeros(1), np.array([prompt]), np.array([1])),
                runtime=query.runtime,
            )
            gpu = bounded(deployment, only.tiers[0].nodes[0])
            token, whole = _first_token_s(deployment, gpu, prompt)
            of_token.append(token)
            n_stages = _max_stages(tier, node) if in_rows else 1
            of_prompt.append(np.maximum(whole - token, 0.0) / n_stages)
        token_s.append(np.min(of_token, axis=0))
        excess_s.append(np.min(of_prompt, axis=0))
    excess = np.array(excess_s)
    if_none = 0 if server in ONE_PIPELINE else 1
    counts_links = query.runtime.name not in NO_DEGREE

    def passed_s(limit_s: float) -> float:
        return _shortest(
            query, np.array(token_s), if_none=if_none, counts_links=counts_links,
            excess_s=excess, limit_s=limit_s,
        )  # fmt: skip

    return _least_sum(passed_s, float(excess.sum(axis=1).max())) * (1 - ROUNDING)


def refuting_bounds(query: PlanQuery) -> dict[str, float]:
    """Return the bounds in seconds that refute targets of a query, by ``TTFT`` and ``TPOT``."""
    bounds = (
        ("TTFT", query.ttft_slo_s, least_ttft_s),
        ("TPOT", query.tpot_slo_s, least_tpot_s),
    )
    return {
        name: least_s
        for name, target_s, bound in bounds
        if target_s is not None and target_s < (least_s := bound(query)) < math.inf
    }


def _least_sum(passed_s: Callable[[float], float], largest_s: float) -> float:
    """Return a lower bound on the least ``limit + passed_s(limit)`` up to the largest limit.

    `passed_s` falls in the limit, so that the sum is at least ``low + passed_s(high)`` between
    two limits. The range with the least such value is halved until it is short.
    """
    at_most_s = passed_s(largest_s)
    ranges = [(at_most_s, 0.0, largest_s, at_most_s)]
    while True:
        value_s, low_s, high_s, passed = heapq.heappop(ranges)
        if math.isinf(value_s) or high_s - low_s <= FINEST * value_s:
            return value_s
        middle_s = (low_s + high_s) / 2
        below = passed_s(middle_s)
        heapq.heappush(ranges, (low_s + below, low_s, middle_s, below))
        heapq.heappush(ranges, (middle_s + passed, middle_s, high_s, passed))


def _max_stages(tier: Tier, option: Node) -> int:
    """Return how many stages in a row the GPUs of a tier form at most, at a node's degree."""
    gpus = {node.gpus for node in tier.nodes}
    degree = (option.tensor_parallel or 1) if len(gpus) == 1 else 1
    return max(sum(node.gpus for node in tier.nodes) // degree, 1)


def _first_token_s(deployment: Deployment, gpu: GpuProfile, prompt: int) -> tuple[Array, Array]:
    """Return the least seconds of a chunk of one token, and of the prompt, in each block."""
    model, found = deployment.cost_model, {}
    for block in set(deployment.model.blocks):
        computed = 1 if block.last_token_only else prompt
        if model is CostModel.ROOFLINE and not costs.is_three_numbers(gpu):
            row = costs.step_costs(block, gpu)
            pairs, reach = map(float, costs.attended(block, prompt, 0.0))
            pair_s = min(row.prompt_pair_s, row.decode_pair_s)
            attention_s = row.prompt_pair_s * pairs + row.prompt_kv_s * reach
            if prompt == 1:
                attention_s = row.decode_pair_s * reach
            whole = float(costs.linear_step_s(block, gpu, prompt, 0.0)) - attention_s
            whole += pair_s * pairs
            token = float(costs.linear_step_s(block, gpu, 1, 0.0)) - row.decode_pair_s
        else:
            copies = gpu.kv_copies
            work = costs.step_work(block, float(prompt), 0.0, kv_copies=copies)
            whole = float(costs.step_s(gpu, *work, model))
            work = costs.step_work(block, 1.0, 0.0, kv_copies=copies)
            token = float(costs.step_s(gpu, *work, model))
        if model is CostModel.ROOFLINE:
            sizes = np.arange(1, computed + 1)
            collectives_s = costs.collectives_s(block, gpu, sizes)
            token += float(collectives_s[0])
            whole += computed * float((collectives_s / sizes).min())
        found[block] = token, whole
    seconds = np.array([found[block] for block in deployment.model.blocks])
    return seconds[:, 0], seconds[:, 1]


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


def _shortest(
    query: PlanQuery,
    blocks_s: Array,
    *,
    if_none: int,
    counts_links: bool,
    excess_s: Array | None = None,
    limit_s: float = math.inf,
) -> float:
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
    excess_s : ndarray, shape (n_tiers, n_blocks), optional
        Further seconds of each block, of which no tier has more than `limit_s`.
    limit_s : float
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
        excess = None
        if excess_s is not None:
            excess = np.concatenate([[0.0], excess_s[k].cumsum()])
        for i in np.flatnonzero(np.isfinite(reached)).tolist():
            last = i if most[k] == 0 else _last(model, weights, i, memory)
            if excess is not None:
                most_s = (excess[i] + limit_s) * (1 + ROUNDING)
                last = min(last, int(np.searchsorted(excess, most_s, side="right")) - 1)
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
