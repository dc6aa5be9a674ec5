"""What a partition will serve: simulated token by token, and bounds that no schedule beats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import costs, evaluation
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
from hypsolve.simulation.simulate import MAX_BATCH, simulate
from hypsolve.simulation.trace import Trace

N_REQUESTS, MIN_REQUESTS, MAX_REQUESTS = 400, 20, 64_000  # simulated at a time
WINDOW = 8.0  # of arrivals, in latencies
TRIES = 3  # with more requests each, to tell whether a rate is kept up with
STEADY, SURELY = 1.1, 1.8  # growth of the requests under way: none, and without doubt
MAX_VISITS = 2e7  # so many (token, stage) visits take some seconds
STEPS = 5  # of the bisection: the rate is found to 1/32 of its bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What to expect under Poisson arrivals of equal requests and HypSched-RT.

    Batches are of at most `MAX_BATCH` requests, and links send one message at a time.

    Attributes
    ----------
    rate_per_s : float
        Of the requests.
    ttft_s, tpot_s, latency_mean_s, latency_p50_s, latency_p95_s : float
        Simulated; ``ttft_s`` and ``tpot_s`` are means.
    keeps_up : bool or None
        Whether the network serves requests as fast as they come; if not, the latencies above
        say how long the simulation was. None: that takes too many requests to tell.
    output_tokens_per_s : float
        At the rate, or at `max_requests_per_s` where that is less.
    utilisation : float
        Busy share of the GPUs that are used, at this rate.
    max_requests_per_s : float
        About the largest rate that it keeps up with, by bisection of simulations; nan where
        requests take too long to tell, 0 where it is below 1/32 of the bound. No less than
        `rate_per_s` if it keeps up with that.
    bound_requests_per_s : float
        What no schedule can exceed with this partition.
    max_sequences : int
        That have room in the KV caches at once, over all tiers; 0 if no stage keeps any.
    max_context_tokens : int
        Of one sequence alone, as far as memory goes, and the model was made for; 0 if no
        stage keeps any.
    joules_per_token, price_per_million_tokens : float
        Of output at this rate: energy of the busy time of GPUs at their board power; prices of
        all nodes that have one, nan if none has.
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


def predict(
    deployment: Deployment,
    partition: Partition,
    rate_per_s: float,
    price_per_hour: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
) -> Service:
    """Simulate a partition under requests like the deployment's first one.

    Parameters
    ----------
    deployment : Deployment
    partition : Partition
        Every stage must fit on some node of its tier.
    rate_per_s : float
        Of Poisson arrivals.
    price_per_hour : mapping, optional
        By name of the node.
    seed : int
        Of the arrivals.

    Returns
    -------
    Service
    """
    rng = np.random.default_rng(seed)
    prompt, output = _lengths(deployment)
    instance = costs.to_instance(deployment)
    rooms = _rooms(deployment, instance, partition)
    sequences = [sum(int(r // (prompt + output)) for r in each) for each in rooms.values()]
    served = under_load(deployment, rate_per_s, rng)
    trace = serve(served, partition)
    n = len(served.requests)
    found = trace.metrics()
    bound = _bound(deployment, instance, partition, rooms)
    most, keeps_up = _sustained(deployment, partition, bound, rate_per_s)
    power_w = np.array([n.gpu.power_w for tier in deployment.network.tiers for n in tier.nodes])
    used = trace.busy_s > 0
    steady = min(rate_per_s, most) if most > 0 else rate_per_s  # nan: the rate
    prices = price_per_hour or {}
    price = sum(prices.values()) / 3600 / (steady * output) * 1e6
    busy = np.minimum(trace.busy_s[used] / n * steady, 1.0)
    return Service(
        rate_per_s=rate_per_s,
        ttft_s=found.ttft_s.mean,
        tpot_s=found.tpot_s.mean,
        latency_mean_s=found.latency_s.mean,
        latency_p50_s=found.latency_s.p50,
        latency_p95_s=found.latency_s.p95,
        keeps_up=keeps_up,
        output_tokens_per_s=steady * output,
        utilisation=float(busy.mean()) if used.any() else 0.0,
        max_requests_per_s=most,
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
    """The deployment with so many requests like its first one as `predict` simulates."""
    n = min(max(MIN_REQUESTS, _max_requests(deployment)), N_REQUESTS)
    return arriving(deployment, rate_per_s, n, rng)


def serve(
    deployment: Deployment, partition: Partition, *, record_visits: bool = False
) -> Trace:
    """Simulate as `predict` does."""
    return simulate(deployment, partition, link_contention=True, record_visits=record_visits)


def _max_requests(deployment: Deployment) -> int:
    """Most requests to simulate at a time."""
    n_passes = int(deployment.requests.output_tokens[0])
    return int(MAX_VISITS / (n_passes * len(deployment.network.tiers)))


def arriving(
    deployment: Deployment, rate_per_s: float, n: int, rng: np.random.Generator
) -> Deployment:
    """The deployment with n requests like its first one, Poisson arrivals."""
    with np.errstate(over="ignore"):  # beyond what `Requests` takes, which says so
        arrival_s = rng.exponential(1.0, n).cumsum() / rate_per_s
    return _like_the_first(deployment, arrival_s)


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
    """About the largest rate at which the requests under way do not grow; whether this one is.

    Requests come evenly, so that no burst looks like a queue that grows, for `WINDOW` times as
    long as one takes alone; and where that does not tell a queue from latencies that settle,
    more of them, `WINDOW` times as long as they took. nan, None: that takes too many requests.
    """
    if math.isinf(bound):
        return math.inf, True
    alone_s = float(serve(_evenly(deployment, bound, 1), partition).latency_s[0])
    max_requests = min(MAX_REQUESTS, _max_requests(deployment))

    def keeps_up(rate: float) -> bool | None:
        n = max(N_REQUESTS, math.ceil(WINDOW * rate * alone_s))
        if n > max_requests:
            return None
        for _ in range(TRIES):
            trace = serve(_evenly(deployment, rate, n), partition)
            grows = growth(trace)
            if grows <= STEADY or grows > SURELY or n == max_requests:
                break
            under_way = rate * float(trace.latency_s.mean())
            n = min(max(4 * n, math.ceil(WINDOW * under_way)), max_requests)
        return grows <= STEADY

    asked = rate_per_s < bound and keeps_up(rate_per_s)
    if asked is None:
        return math.nan, None
    low, high = (rate_per_s, bound) if asked else (0.0, min(rate_per_s, bound))
    for _ in range(STEPS):
        rate = (low + high) / 2
        does = keeps_up(rate)
        if does is None:
            return math.nan, asked
        low, high = (rate, high) if does else (low, rate)
    return low, asked


def _evenly(deployment: Deployment, rate_per_s: float, n: int) -> Deployment:
    return _like_the_first(deployment, np.arange(n) / rate_per_s)


def _rooms(
    deployment: Deployment, instance: Instance, partition: Partition
) -> dict[int, list[float]]:
    """Tokens of KV cache on each node that holds its tier's stage, by tier that keeps any."""
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
    """Requests per second that no schedule can exceed: the fluid limit.

    A node spends on a request at least what `_min_s` says, so a tier serves at most the sum
    of the inverses over its nodes. That is the optimum of the fluid linear program, which falls
    apart by tiers where all requests are alike. A link carries at most one request in the time
    that its bytes take. And a sequence holds its KV cache for as long as its decode passes take
    at least, on the fastest nodes.
    """
    prompt, output = _lengths(deployment)
    least = math.inf
    hold_s = 0.0
    for k, tier in enumerate(deployment.network.tiers[:-1]):
        cut = partition.cuts[k + 1]
        if cut < instance.n_blocks:
            busy_s = float(instance.reference_link_s[k, cut])
            least = min(least, 1 / busy_s if busy_s else math.inf)
            assert tier.link is not None
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
            batch = MAX_BATCH
            if of_tier is not None:  # no more of them are on the node at once
                batch = min(batch, int(of_tier[number] // (prompt + output)))
            if batch:
                min_s = sum(
                    count * _min_s(block, node.gpu, deployment, batch)
                    for block, count in Counter(blocks).items()
                )
                rate += 1 / min_s if min_s else math.inf
        least = min(least, rate)
    for of_tier in rooms.values():
        n_at_once = sum(int(room // (prompt + output)) for room in of_tier)
        least = min(least, n_at_once / hold_s if hold_s else math.inf)
    return least


def _decodes_s(blocks: list[Block], gpu: GpuProfile, deployment: Deployment) -> float:
    """Seconds of all decode passes of one request, alone."""
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
    """Least seconds of a node that a request costs, by a block, in batches of at most `batch`.

    An iteration takes ``t0 + max(flops / F, bytes / B)``: at least t0 and either arm. FLOPs, KV
    reads and activations add up over requests; t0 and the weights are shared by at most `batch`
    of them, in each of the `output` iterations that a request is in at least.
    """
    prompt, output = _lengths(deployment)
    first = costs.step_work(block, float(prompt), 0.0)
    contexts = np.arange(prompt, prompt + output - 1, dtype=np.float64)
    later = costs.step_work(block, 1.0, contexts)
    flops = float(first[0]) + float(np.sum(np.broadcast_to(later[0], contexts.shape)))
    moved = float(first[1]) + float(np.sum(np.broadcast_to(later[1], contexts.shape)))
    shared = float(block.always_read_bytes)
    if block.n_experts:  # of the experts, those that a batch reads are shared by it
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
