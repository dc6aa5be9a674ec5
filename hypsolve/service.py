"""What a partition will serve: simulated token by token, and bounds that no schedule beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hypsolve import costs, evaluation
from hypsolve.deployment import Block, Deployment, GpuProfile, Requests
from hypsolve.problem import Instance
from hypsolve.simulation import MAX_BATCH, simulate
from hypsolve.solution import Partition

N_REQUESTS = 400  # simulated
MOST_REQUESTS = 8000  # simulated where more come than can be served


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What to expect under Poisson arrivals of equal requests and HypSched-RT.

    Attributes
    ----------
    rate_per_s : float
        Of the requests.
    ttft_s, tpot_s, latency_p50_s, latency_p95_s : float
        Simulated; ``ttft_s`` and ``tpot_s`` are means.
    requests_per_s, output_tokens_per_s : float
        Served; below the rate where the network cannot keep up.
    utilisation : float
        Busy share of the GPUs that hold a stage.
    most_requests_per_s : float
        Served where more come: simulated, at the rate of the bound; over the second half of the
        arrivals.
    bound_requests_per_s : float
        What no schedule can exceed with this partition and `MAX_BATCH` requests a batch.
    most_sequences : int
        That have room in the KV caches at once, over all tiers.
    most_context_tokens : int
        Of one sequence alone.
    joules_per_token, price_per_million_tokens : float
        Of output at this rate: energy of the busy time of GPUs at their board power; prices of
        all nodes that have one, nan if none has.
    """

    rate_per_s: float
    ttft_s: float
    tpot_s: float
    latency_p50_s: float
    latency_p95_s: float
    requests_per_s: float
    output_tokens_per_s: float
    utilisation: float
    most_requests_per_s: float
    bound_requests_per_s: float
    most_sequences: int
    most_context_tokens: int
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
    arrival_s = rng.exponential(1 / rate_per_s, N_REQUESTS).cumsum()
    trace = simulate(_under(deployment, arrival_s), partition)
    found = trace.metrics()
    instance = costs.to_instance(deployment)
    rooms = _rooms(deployment, instance, partition)
    prompt, output = _lengths(deployment)
    sequences = min(
        (sum(int(room // (prompt + output)) for room in of_tier) for of_tier in rooms.values()),
        default=0,
    )
    bound = _bound(deployment, instance, partition, rooms)
    nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
    power_w = np.array([node.gpu.power_w for node in nodes])
    joules = float(power_w @ trace.busy_s)
    n_tokens = N_REQUESTS * output
    prices = price_per_hour or {}
    price = sum(prices.values()) / 3600 * found.observed_s / n_tokens * 1e6
    used = trace.busy_s > 0
    return Service(
        rate_per_s=rate_per_s,
        ttft_s=found.ttft_s.mean,
        tpot_s=found.tpot_s.mean,
        latency_p50_s=found.latency_s.p50,
        latency_p95_s=found.latency_s.p95,
        requests_per_s=found.requests_per_s,
        output_tokens_per_s=found.output_tokens_per_s,
        utilisation=float(np.array(found.node_utilisation)[used].mean()) if used.any() else 0.0,
        most_requests_per_s=_overloaded(deployment, partition, bound, sequences, rng),
        bound_requests_per_s=bound,
        most_sequences=sequences,
        most_context_tokens=min((int(max(of_tier)) for of_tier in rooms.values()), default=0),
        joules_per_token=joules / n_tokens if (power_w[used] > 0).all() else math.nan,
        price_per_million_tokens=price if prices else math.nan,
    )


def _lengths(deployment: Deployment) -> tuple[int, int]:
    requests = deployment.requests
    return int(requests.prompt_tokens[0]), int(requests.output_tokens[0])


def _under(deployment: Deployment, arrival_s: np.ndarray) -> Deployment:
    """Requests like the first one, at these times."""
    prompt, output = _lengths(deployment)
    ones = np.ones(len(arrival_s), np.int64)
    return replace(deployment, requests=Requests(arrival_s, prompt * ones, output * ones))


def _overloaded(
    deployment: Deployment,
    partition: Partition,
    bound: float,
    sequences: int,
    rng: np.random.Generator,
) -> float:
    """Requests per second that are served where they come at the rate of the bound.

    Four times as many come as there is room for, so that those that end in the second half of
    the arrivals are as many as begin in it.
    """
    if math.isinf(bound):
        return math.inf
    n = min(max(N_REQUESTS, 4 * sequences), MOST_REQUESTS)
    arrival_s = rng.exponential(1 / bound, n).cumsum()
    trace = simulate(_under(deployment, arrival_s), partition)
    last_s = float(arrival_s[-1])
    n_ended = int(((trace.end_s > last_s / 2) & (trace.end_s <= last_s)).sum())
    return min(n_ended / (last_s / 2), bound)  # some began before the half in which they end


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
        weights = sum(block.weight_bytes for block in blocks)
        if len(blocks) == model.n_blocks:
            weights -= model.tied_bytes
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        rooms[k] = [
            (node.usable_bytes - weights) // kv_bytes
            for node, held in zip(tier.nodes, holds, strict=True)
            if held
        ]
    return rooms


def _bound(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    rooms: Mapping[int, list[float]],
) -> float:
    """Requests per second that no schedule can exceed: the fluid limit.

    A node spends on a request at least what `_least_s` says, so a tier serves at most the sum
    of the inverses over its nodes. That is the optimum of the fluid linear program, which falls
    apart by tiers where all requests are alike.
    """
    prompt, output = _lengths(deployment)
    least = math.inf
    for k, tier in enumerate(deployment.network.tiers):
        blocks = [deployment.model.blocks[b] for b in partition.stage(k)]
        if not blocks:
            continue
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        of_tier = rooms.get(k)
        rate = 0.0
        for number, node in enumerate(n for n, h in zip(tier.nodes, holds, strict=True) if h):
            batch = MAX_BATCH
            if of_tier is not None:  # no more of them are on the node at once
                batch = min(batch, int(of_tier[number] // (prompt + output)))
            if batch:
                least_s = sum(_least_s(b, node.gpu, prompt, output, batch) for b in blocks)
                rate += 1 / least_s if least_s else math.inf
        least = min(least, rate)
    return least


def _least_s(block: Block, gpu: GpuProfile, prompt: int, output: int, batch: int) -> float:
    """Least seconds of a node that a request costs, by a block, in batches of at most `batch`.

    An iteration takes ``t0 + max(flops / F, bytes / B)``: at least t0 and either arm. FLOPs, KV
    reads and activations add up over requests; t0 and the weights are shared by at most `batch`
    of them, in each of the `output` iterations that a request is in at least.
    """
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
    return output * gpu.t0_s / batch + max(compute_s, memory_s)
