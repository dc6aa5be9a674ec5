"""`Forecast`: latency and throughput of a partition, simulated and bounded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import costs, evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Model,
    Requests,
)
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.simulation.metrics import growth
from hypsolve.simulation.simulate import MAX_NUM_SEQS, simulate
from hypsolve.simulation.trace import Trace

N_REQUESTS, MIN_REQUESTS, MAX_SIMULATED = 400, 20, 64_000  # in one simulation
WINDOW = 8.0  # arrivals are simulated for this many latencies
TRIES = 3  # simulations, each with more requests, before a rate is judged
STEADY, SURELY = 1.1, 1.8  # growth of the requests in progress: none, and beyond doubt
MAX_VISITS = 2e7  # (token, stage) visits in one simulation, which take some seconds
N_BISECTIONS = 5  # the largest rate is found to 1/32 of its bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of latency and throughput, for Poisson arrivals under HypSched-RT.

    Batches hold at most `hypsolve.simulation.simulate.MAX_NUM_SEQS` requests. A link sends one
    message at a time.

    Attributes
    ----------
    rate_per_s : float
        Arrival rate.
    ttft_s, tpot_s, latency_mean_s, latency_p50_s, latency_p95_s : float
        Simulated. ``ttft_s`` and ``tpot_s`` are means.
    keeps_up : bool or None
        Whether requests are served as fast as they arrive. If not, the latencies above only
        reflect the length of the simulation. None if too many requests would have to be
        simulated to decide.
    output_tokens_per_s : float
        Tokens per second at this rate, or at `max_requests_per_s` if that is less.
    utilisation : float
        Mean utilisation, at this rate, of the GPUs in use.
    max_requests_per_s : float
        Approximate largest sustainable rate, by bisection over simulations. It is nan if too
        many requests are needed to tell, and 0 if it is below 1/32 of the bound. It is at least
        `rate_per_s` if that rate is sustained.
    bound_requests_per_s : float
        Upper bound on the rate of every schedule of this partition in which a batch has at most
        `hypsolve.simulation.simulate.MAX_NUM_SEQS` requests, KV cache is reserved at admission,
        and a link sends one message at a time. The rate is the number of requests over the time
        from the first arrival to the last completion.
    max_sequences : int
        Number of sequences that fit into the KV caches of every tier at the same time; 0 if no
        block has a cache.
    max_context_tokens : int
        Longest single sequence, limited by memory and by the model; 0 if no block has a cache.
    joules_per_token : float
        Energy per output token at this rate: busy time of GPUs times their board power; nan if
        a used GPU has no ``power_w``.
    price_per_million_tokens : float
        Prices of all nodes that have one, per 10^6 output tokens at this rate; nan if none has.
    """

    rate_per_s: float
    ttft_s: float
    tpot_s: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    keeps_up: bool | None
    output_tokens_per_s: float
    utilisation: float
    max_requests_per_s: float
    bound_requests_per_s: float
    max_sequences: int
    max_context_tokens: int
    joules_per_token: float
    price_per_million_tokens: float

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __getattr__(self, name):
            raise valid.missing_attribute(self, name)


def predict(
    deployment: Deployment,
    partition: Partition,
    rate_per_s: float,
    price_per_hour: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    instance: Instance | None = None,
) -> Forecast:
    """Forecast how a partition serves requests like the first one of a deployment.

    Parameters
    ----------
    deployment : Deployment
    partition : Partition
        Every stage must fit on some node of its tier.
    rate_per_s : float
        Rate of the Poisson arrivals.
    price_per_hour : mapping, optional
        By name of the node.
    seed : int
        Seed of the arrivals.
    instance : Instance, optional
        The deployment, if it is compiled already.

    Returns
    -------
    Forecast
    """
    rng = np.random.default_rng(seed)
    prompt, output = _lengths(deployment)
    if instance is None:
        instance = costs.to_instance(deployment, allow_empty=True)
    rooms = _rooms(deployment, instance, partition)
    sequences = [sum(int(r // (prompt + output)) for r in each) for each in rooms.values()]
    served = under_load(deployment, rate_per_s, rng)
    trace = serve(served, partition)
    n = len(served.requests)
    metrics = trace.metrics()
    bound = _bound(deployment, instance, partition, rooms)
    max_rate, keeps_up = _sustained(deployment, partition, bound, rate_per_s)
    power_w = np.array([n.gpu.power_w for tier in deployment.network.tiers for n in tier.nodes])
    used = trace.busy_s > 0
    steady = min(rate_per_s, max_rate) if max_rate > 0 else rate_per_s  # also if it is nan
    prices = price_per_hour or {}
    price = sum(prices.values()) / 3600 / (steady * output) * 1e6
    busy = np.minimum(trace.busy_s[used] / n * steady, 1.0)
    return Forecast(
        rate_per_s=rate_per_s,
        ttft_s=metrics.ttft_s.mean,
        tpot_s=metrics.tpot_s.mean,
        latency_mean_s=metrics.latency_s.mean,
        latency_p50_s=metrics.latency_s.p50,
        latency_p95_s=metrics.latency_s.p95,
        keeps_up=keeps_up,
        output_tokens_per_s=steady * output,
        utilisation=float(busy.mean()) if used.any() else 0.0,
        max_requests_per_s=max_rate,
        bound_requests_per_s=bound,
        max_sequences=min(sequences, default=0),
        max_context_tokens=_max_context(deployment.model, rooms),
        joules_per_token=(
            float(power_w @ trace.busy_s) / (n * output)
            if (power_w[used] > 0).all()
            else math.nan
        ),
        price_per_million_tokens=price if prices else math.nan,
    )


def under_load(
    deployment: Deployment, rate_per_s: float, rng: np.random.Generator
) -> Deployment:
    """Return a deployment with the requests that `predict` simulates."""
    n = min(max(MIN_REQUESTS, _max_requests(deployment)), N_REQUESTS)
    return arriving(deployment, rate_per_s, n, rng)


def serve(
    deployment: Deployment, partition: Partition, *, record_visits: bool = False
) -> Trace:
    """Simulate a partition as `predict` does: links send one message at a time."""
    return simulate(deployment, partition, link_contention=True, record_visits=record_visits)


def _max_requests(deployment: Deployment) -> int:
    """Return the largest number of requests for one simulation."""
    n_passes = int(deployment.requests.output_tokens[0])
    return int(MAX_VISITS / (n_passes * len(deployment.network.tiers)))


def arriving(
    deployment: Deployment, rate_per_s: float, n: int, rng: np.random.Generator
) -> Deployment:
    """Return a deployment with `n` requests like its first one, in Poisson arrivals.

    The arrivals are scaled: ``(n - 1) / (last arrival - first arrival)`` is the rate.
    """
    return _like_the_first(deployment, at_rate(rng.exponential(1.0, n).cumsum(), rate_per_s))


def at_rate(arrival_s: NDArray[np.float64], rate_per_s: float) -> NDArray[np.float64]:
    """Scale arrivals to a rate; the first one becomes time 0."""
    since_first = arrival_s - arrival_s[0]
    if since_first[-1] > 0:
        since_first /= since_first[-1]
    with np.errstate(over="ignore"):  # `Requests` refuses infinite times
        return since_first * (len(arrival_s) - 1) / rate_per_s


def _like_the_first(deployment: Deployment, arrival_s: NDArray[np.float64]) -> Deployment:
    prompt, output = _lengths(deployment)
    ones = np.ones(len(arrival_s), np.int64)
    return replace(deployment, requests=Requests(arrival_s, prompt * ones, output * ones))


def _lengths(deployment: Deployment) -> tuple[int, int]:
    requests = deployment.requests
    return int(requests.prompt_tokens[0]), int(requests.output_tokens[0])


def _sustained(
    deployment: Deployment, partition: Partition, bound: float, rate_per_s: float
) -> tuple[float, bool | None]:
    """Return about the largest sustainable rate, and whether `rate_per_s` is sustained.

    A rate is sustained if the number of requests in progress does not grow. Requests arrive
    evenly, so that no burst is mistaken for a growing queue, during `WINDOW` times the latency
    of one request alone. If that cannot tell a growing queue from latencies that settle, more
    requests are simulated, during `WINDOW` times their mean latency. Returns nan and None if
    that takes too many requests.
    """
    if math.isinf(bound):
        return math.inf, True
    alone_s = float(serve(_evenly(deployment, bound, 1), partition).latency_s[0])
    max_requests = min(MAX_SIMULATED, _max_requests(deployment))

    def keeps_up(rate: float) -> bool | None:
        n = max(N_REQUESTS, math.ceil(WINDOW * rate * alone_s))
        if n > max_requests:
            return None
        for _ in range(TRIES):
            trace = serve(_evenly(deployment, rate, n), partition)
            grows = growth(trace)
            if grows <= STEADY or grows > SURELY or n == max_requests:
                break
            in_progress = rate * float(trace.latency_s.mean())  # Little's law
            n = min(max(4 * n, math.ceil(WINDOW * in_progress)), max_requests)
        return grows <= STEADY

    is_sustained = rate_per_s < bound and keeps_up(rate_per_s)
    if is_sustained is None:
        return math.nan, None
    low, high = (rate_per_s, bound) if is_sustained else (0.0, min(rate_per_s, bound))
    for _ in range(N_BISECTIONS):
        rate = (low + high) / 2
        does_keep_up = keeps_up(rate)
        if does_keep_up is None:
            return math.nan, is_sustained
        low, high = (rate, high) if does_keep_up else (low, rate)
    return low, is_sustained


def _evenly(deployment: Deployment, rate_per_s: float, n: int) -> Deployment:
    return _like_the_first(deployment, np.arange(n) / rate_per_s)


def _rooms(
    deployment: Deployment, instance: Instance, partition: Partition
) -> dict[int, list[float]]:
    """Return KV room in tokens of each node that holds its stage, by tier with a KV cache."""
    model, rooms = deployment.model, {}
    for k, tier in enumerate(deployment.network.tiers):
        blocks = [model.blocks[b] for b in partition.stage(k)]
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        if not kv_bytes:
            continue
        weights = model.stage_weight_bytes(blocks)
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        rooms[k] = [
            (node.usable_bytes - weights) // kv_bytes
            for node, held in zip(tier.nodes, holds, strict=True)
            if held
        ]
    return rooms


def _max_context(model: Model, rooms: Mapping[int, list[float]]) -> int:
    limit = model.context_tokens or math.inf
    return int(min(limit, *(max(each) for each in rooms.values()))) if rooms else 0


def _bound(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    rooms: Mapping[int, list[float]],
) -> float:
    """Return the fluid limit: requests per second that no schedule can exceed.

    It holds for n requests that are served in T seconds, without a steady state: busy seconds
    of nodes and links, and the seconds for which KV cache is held, are at most T each.
    A node spends at least `_min_s` on a request, so a tier serves at most the sum of the
    inverses over its nodes. Since all requests are alike, that is the optimum of the fluid
    linear program, which separates by tiers. A link carries at most one request in the time
    that its bytes take. A sequence holds its KV cache at least as long as its decode passes
    take on the fastest nodes.
    """
    prompt, output = _lengths(deployment)
    bound = math.inf
    hold_s = 0.0
    for k, tier in enumerate(deployment.network.tiers[:-1]):
        cut = partition.cuts[k + 1]
        if cut < instance.n_blocks:
            busy_s = float(instance.reference_link_s[k, cut])
            bound = min(bound, 1 / busy_s if busy_s else math.inf)
            assert tier.link is not None
            if cut > 0:  # decode passes do not cross the links of empty leading tiers
                hold_s += (output - 1) * tier.link.round_trip_s
    for k, tier in enumerate(deployment.network.tiers):
        blocks = [deployment.model.blocks[b] for b in partition.stage(k)]
        if not blocks:
            continue
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        nodes = [node for node, held in zip(tier.nodes, holds, strict=True) if held]
        hold_s += min(_decodes_s(blocks, node.gpu, deployment) for node in nodes)
        of_tier = rooms.get(k)
        rate = 0.0
        for number, node in enumerate(nodes):
            batch = MAX_NUM_SEQS
            if of_tier is not None:  # KV room limits the batch
                batch = min(batch, int(of_tier[number] // (prompt + output)))
            if batch:
                min_s = sum(
                    count * _min_s(block, node.gpu, deployment, batch)
                    for block, count in Counter(blocks).items()
                )
                rate += 1 / min_s if min_s else math.inf
        bound = min(bound, rate)
    for of_tier in rooms.values():
        n_at_once = sum(int(room // (prompt + output)) for room in of_tier)
        bound = min(bound, n_at_once / hold_s if hold_s else math.inf)
    return bound


def _decodes_s(blocks: list[Block], gpu: GpuProfile, deployment: Deployment) -> float:
    """Return seconds of all decode passes of one request alone."""
    prompt, output = _lengths(deployment)
    return sum(
        count
        * float(
            costs.service_s(block, gpu, prompt, output, deployment.cost_model)
            - costs.service_s(block, gpu, prompt, 1, deployment.cost_model)
        )
        for block, count in Counter(blocks).items()
    )


def _min_s(block: Block, gpu: GpuProfile, deployment: Deployment, batch: int) -> float:
    """Return the least time of a node that one request costs in one block.

    An iteration takes ``t0 + max(flops / F, bytes / B)``: at least t0 plus either term. FLOPs,
    KV reads and activations add up over requests. Up to `batch` requests share t0 and the
    weights in each iteration, and a request takes part in at least `output` iterations.
    """
    prompt, output = _lengths(deployment)
    first = costs.step_work(block, float(prompt), 0.0)
    contexts = np.arange(prompt, prompt + output - 1, dtype=np.float64)
    later = costs.step_work(block, 1.0, contexts)
    flops = float(first[0]) + float(np.sum(np.broadcast_to(later[0], contexts.shape)))
    moved = float(first[1]) + float(np.sum(np.broadcast_to(later[1], contexts.shape)))
    shared = float(block.always_read_bytes)
    if block.n_experts:  # a batch shares the experts that it reads
        one = float(costs.weight_read_bytes(block, 1.0)) - block.gathered_bytes_per_token
        shared_prompt = float(costs.weight_read_bytes(block, float(prompt)))
        moved -= shared_prompt - block.gathered_bytes_per_token * prompt
        moved -= one * (output - 1)
        moved += one / batch * output
    else:
        moved -= shared * output * (1 - 1 / batch)
    compute_s, memory_s = flops / gpu.flops_per_s, moved / gpu.bytes_per_s
    if deployment.cost_model is CostModel.FLOPS:
        return compute_s
    return output * gpu.t0_s / batch + max(compute_s, memory_s)
