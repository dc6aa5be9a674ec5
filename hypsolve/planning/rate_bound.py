"""`bound_on_rate`: requests per second that no schedule of a split can exceed.

The rate is the number n of requests over the time T from the first arrival to the last
completion. No steady state is assumed: busy seconds of a node or a link, and the seconds for
which one place in memory is taken, are at most T. All requests are alike: p prompt and o output
tokens. If their lengths differ, the bound is that of `hypsolve.bounds.throughput` for the one
split.

*Iterations.* A request takes part in at least ``o - 1 + ceil(p / Q)`` iterations of a stage, if
an iteration computes at most Q tokens of prompts. An iteration holds at most B requests, whose
KV cache must fit, and at most `max_num_batched_tokens` tokens. A stage therefore needs at least
`_iterations` iterations per request. Each reads all weights and takes t0 in every block. The
head computes only tokens that come out, so it needs at least o / B iterations per request.

*Busy seconds.* A block takes t0 + max(FLOPs / FLOP/s, bytes / bytes/s). A sum of maxima is at
least the maximum of the sums, so n requests keep a node busy for at least n times `_min_s`.
Linear terms of `StepCosts` add up over requests; what prompts add to an iteration is left out.
Under ``paged``, a prompt that is computed again after a preemption may take less of them than
the decode pass that it replaces, so that the smaller of both counts.

*Tensor parallelism.* GPUs that compute as one add all-reduces to every block. Their seconds
lie on or above a convex function of the bytes (`AllReduce.convex_minorant`), so iterations take
at least its value at the mean of their tokens. More iterations than the fewest take no less,
since its lines start at 0 s or above.

*Batching modes.* Under ``stage``, a tier serves at most the sum of the inverses over its nodes.
Under ``pipeline``, each pipeline serves at most its slowest stage. Under ``serial``, one batch
passes all stages before the next one starts, so the busy seconds of the stages add up, and the
ids of a batch return before the next. If parts of a batch overlap, its decode tokens still pass
every stage before the last one, which then computes the whole batch.

*Memory.* A request holds KV cache in every stage while its decode passes go round: for at
least the sum of the passes alone on the fastest nodes and the round trips of the links. Under
``reserve`` it holds p + o tokens, under ``paged`` p + o / 2 on average (passes get longer as
the context grows, so the mean over time is not less). The tokens that fit, times T, are not
less.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hypsolve.planning.mix_bound import bound_of_mix
from hypsolve.planning.request_mix import same_lengths
from hypsolve.problem import costs, evaluation
from hypsolve.problem.deployment import Block, CostModel, Deployment, GpuProfile, Node
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Batching, KvAdmission, Runtime
from hypsolve.problem.solution import Partition
from hypsolve.problem.step_costs import is_three_numbers, step_costs

Rooms = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of a tier that has some, and the nodes that can hold them."""

    tier: int
    blocks: list[Block]
    nodes: list[Node]
    room_tokens: list[float]  # tokens of KV cache that fit on each node; inf without a cache


def stages_of(deployment: Deployment, instance: Instance, partition: Partition) -> list[Stage]:
    """Return the stages of a partition that have blocks."""
    model, stages = deployment.model, []
    for k, tier in enumerate(deployment.network.tiers):
        blocks = [model.blocks[b] for b in partition.stage(k)]
        if not blocks:
            continue
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        nodes = [node for node, held in zip(tier.nodes, holds, strict=True) if held]
        weights = model.stage_weight_bytes(blocks)
        kv_bytes = [deployment.kv_bytes_per_token(blocks, node) for node in nodes]
        rooms = [
            (deployment.usable_bytes(node) - weights) // n_bytes if n_bytes else math.inf
            for node, n_bytes in zip(nodes, kv_bytes, strict=True)
        ]
        stages.append(Stage(k, blocks, nodes, rooms))
    return stages


def n_pipelines(stages: Sequence[Stage]) -> int:
    """Return the number of pipelines: pipeline i takes the i-th node of every stage."""
    return min(len(stage.nodes) for stage in stages)


def bound_on_rate(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    *,
    users: int | None = None,
    think_time_s: float = 0.0,
) -> float:
    """Return requests per second that no schedule of a partition exceeds, under its runtime.

    Parameters
    ----------
    deployment : Deployment
        Its runtime gives batching mode and limits.
    instance : Instance
        The compiled deployment.
    partition : Partition
    users, think_time_s
        As in `hypsolve.simulate`: each user has at most one request in flight. The time of the
        rate then runs to the end of the last think time: a user's request and its pause are one
        round.

    Returns
    -------
    float
        See the docstring of this module for the proof.
    """
    if not same_lengths(deployment.requests):
        return bound_of_mix(deployment, partition, users=users, think_time_s=think_time_s)
    stages = stages_of(deployment, instance, partition)
    bound, round_trip_s = math.inf, 0.0
    for k, tier in enumerate(deployment.network.tiers[:-1]):
        cut = partition.cuts[k + 1]
        if cut < instance.n_blocks:
            busy_s = float(instance.reference_link_s[k, cut])
            bound = min(bound, 1 / busy_s if busy_s else math.inf)
            assert tier.link is not None
            if cut > 0:  # decode passes do not cross the links of empty leading tiers
                round_trip_s += tier.link.round_trip_s
    is_stage = deployment.runtime.batching is Batching.STAGE
    of_nodes = _of_tiers if is_stage else _of_pipelines
    bound = min(bound, of_nodes(deployment, stages, round_trip_s))
    if users is not None:
        alone_s = think_time_s + hold_s(deployment, stages, round_trip_s)
        bound = min(bound, users / alone_s if alone_s else math.inf)
    return bound


def hold_s(deployment: Deployment, stages: Sequence[Stage], round_trip_s: float) -> float:
    """Return the least seconds of all decode passes of one request."""
    passes_s = sum(
        min(
            least_decodes_s(stage.blocks, bounded(deployment, n), deployment)
            for n in stage.nodes
        )
        for stage in stages
    )
    return (lengths(deployment)[1] - 1) * round_trip_s + passes_s


def _of_tiers(deployment: Deployment, stages: Sequence[Stage], round_trip_s: float) -> float:
    """Return the bound by nodes and memory where every node forms its own batches."""
    held_s, held_tokens = hold_s(deployment, stages, round_trip_s), _held_tokens(deployment)
    bound = math.inf
    for stage in stages:
        rates = [
            _rate(stage.blocks, bounded(deployment, node), deployment, room)
            for node, room in zip(stage.nodes, stage.room_tokens, strict=True)
        ]
        bound = min(bound, math.fsum(rates))
        at_once = sum(_sequences(room, held_tokens, deployment) for room in stage.room_tokens)
        bound = min(bound, at_once / held_s if held_s else math.inf)
    return bound


def _of_pipelines(
    deployment: Deployment, stages: Sequence[Stage], round_trip_s: float
) -> float:
    """Return the bound by nodes and memory where batches pass whole pipelines."""
    runtime, held_tokens = deployment.runtime, _held_tokens(deployment)
    total = 0.0
    for i in range(n_pipelines(stages)):
        room = min(stage.room_tokens[i] for stage in stages)
        pipeline = [Stage(s.tier, s.blocks, [s.nodes[i]], [s.room_tokens[i]]) for s in stages]
        gpus = [bounded(deployment, stage.nodes[0]) for stage in pipeline]
        busy_s = [
            _busy_s(stage.blocks, gpu, deployment, room)
            for stage, gpu in zip(pipeline, gpus, strict=True)
        ]
        cycle_s = max(busy_s)
        if runtime.batching is Batching.SERIAL:
            per_batch_s = runtime.iteration_s + round_trip_s
            returns = lengths(deployment)[1] / _batch(runtime, room, deployment)
            if runtime.micro_batch_tokens is None:
                cycle_s = math.fsum(busy_s) + returns * per_batch_s
            elif runtime.micro_batch_tokens >= runtime.batch_limit:
                decodes_s = [
                    _busy_s(stage.blocks, gpu, deployment, room, decodes_only=True)
                    for stage, gpu in zip(pipeline[:-1], gpus[:-1], strict=True)
                ]
                cycle_s = max(cycle_s, math.fsum(decodes_s) + busy_s[-1])
        rate = 1 / cycle_s if cycle_s else math.inf
        held_s = hold_s(deployment, pipeline, round_trip_s)
        at_once = min(runtime.max_num_seqs, _sequences(room, held_tokens, deployment))
        total += min(rate, at_once / held_s if held_s else math.inf)
    return total


def bounded(deployment: Deployment, node: Node) -> GpuProfile:
    """Return the profile of a node, with convex all-reduces, which take no longer."""
    gpu = deployment.profile(node)
    if gpu.all_reduce is None:
        return gpu
    return replace(gpu, all_reduce=gpu.all_reduce.convex_minorant())


def lengths(deployment: Deployment) -> tuple[int, int]:
    """Return prompt and output tokens of a request; if they differ, their rounded means."""
    requests = deployment.requests
    return round(requests.prompt_tokens.mean()), round(requests.output_tokens.mean())


def _held_tokens(deployment: Deployment) -> float:
    """Return the tokens of KV cache that a request holds during its decode passes, at least."""
    prompt, output = lengths(deployment)
    is_paged = deployment.runtime.kv_admission is KvAdmission.PAGED
    return prompt + output / 2 if is_paged else prompt + output


def _sequences(room: float, held_tokens: float, deployment: Deployment) -> float:
    """Return how many requests a room in tokens holds at once, averaged over time."""
    if math.isinf(room):
        return math.inf
    at_once = room / held_tokens
    is_paged = deployment.runtime.kv_admission is KvAdmission.PAGED
    return at_once if is_paged else math.floor(at_once)


def _batch(runtime: Runtime, room: float, deployment: Deployment) -> float:
    """Return the most requests in one iteration that compute a token which comes out."""
    prompt, output = lengths(deployment)
    is_paged = runtime.kv_admission is KvAdmission.PAGED
    fits = room // (prompt if is_paged else prompt + output)
    return min(runtime.batch_limit, fits)


def _rate(blocks: list[Block], gpu: GpuProfile, deployment: Deployment, room: float) -> float:
    """Return the requests per second that one node serves at most."""
    busy_s = _busy_s(blocks, gpu, deployment, room)
    if math.isinf(busy_s):
        return 0.0
    return 1 / busy_s if busy_s else math.inf


def _busy_s(
    blocks: list[Block],
    gpu: GpuProfile,
    deployment: Deployment,
    room: float,
    *,
    decodes_only: bool = False,
) -> float:
    """Return the least seconds for which one request keeps a node busy; inf if none fits."""
    runtime = deployment.runtime
    batch = _batch(runtime, room, deployment)
    if batch < 1:
        return math.inf
    n_iterations = _iterations(deployment, batch, decodes_only=decodes_only)
    host_s = runtime.iteration_s if runtime.batching is Batching.STAGE else 0.0
    return n_iterations * host_s + math.fsum(
        count * _min_s(block, gpu, deployment, batch, n_iterations, decodes_only=decodes_only)
        for block, count in Counter(blocks).items()
    )


def _iterations(deployment: Deployment, batch: float, *, decodes_only: bool) -> float:
    """Return the iterations that one request costs a stage at least."""
    prompt, output = lengths(deployment)
    runtime = deployment.runtime
    n_iterations = (output - 1) / batch
    if decodes_only:
        return n_iterations
    limit = runtime.prompt_limit
    n_chunks = 1 if limit is None else -(-prompt // limit)
    n_iterations = max(n_iterations, (output - 1 + n_chunks) / runtime.batch_limit)
    if runtime.kv_admission is KvAdmission.RESERVE:
        n_iterations = max(n_iterations, (output - 1 + n_chunks) / batch)
    if limit is not None:
        n_iterations = max(n_iterations, prompt / limit)
    if runtime.max_num_batched_tokens is not None:
        tokens = prompt + output - 1
        n_iterations = max(n_iterations, tokens / runtime.max_num_batched_tokens)
    return n_iterations


def _min_s(
    block: Block,
    gpu: GpuProfile,
    deployment: Deployment,
    batch: float,
    n_iterations: float,
    *,
    decodes_only: bool,
) -> float:
    """Return the least time of a node that one request costs in one block.

    FLOPs, KV reads and activations add up over requests. Requests share t0 and the weights of
    each iteration; of experts, an iteration reads at least those of one token.
    """
    if block.last_token_only:
        n_iterations = (lengths(deployment)[1] - 1 + (not decodes_only)) / batch
    tokens = computed_tokens(block, deployment, decodes_only=decodes_only)
    each = tokens / n_iterations if n_iterations else 0.0
    collectives_s = n_iterations * float(costs.collectives_s(block, gpu, each))
    if deployment.cost_model is CostModel.ROOFLINE and not is_three_numbers(gpu):
        row = step_costs(block, gpu)
        one = block.experts_per_token / block.n_experts if block.n_experts else 0.0
        read_s = n_iterations * (row.read_s + one * row.experts_s)
        decode_s, prompt_s = _linear_terms_s(block, gpu, deployment)
        return (
            n_iterations * row.fixed_s
            + max(row.compute_token_s * tokens, read_s + row.memory_token_s * tokens)
            + decode_s
            + (0.0 if decodes_only else prompt_s)
            + collectives_s
        )
    work = request_work(block, deployment, gpu.kv_copies, decodes_only=decodes_only)
    moved = work.moved_bytes + work.weight_bytes * n_iterations
    compute_s, memory_s = work.flops / gpu.flops_per_s, moved / gpu.bytes_per_s
    if deployment.cost_model is CostModel.FLOPS:
        return compute_s
    return n_iterations * gpu.t0_s + max(compute_s, memory_s) + collectives_s


class Work(NamedTuple):
    """Work of one request in one block.

    `moved_bytes` leaves out the weights; `weight_bytes` are those that an iteration reads at
    least.
    """

    flops: float
    moved_bytes: float
    weight_bytes: float


def computed_tokens(block: Block, deployment: Deployment, *, decodes_only: bool = False) -> int:
    """Return the tokens that a block computes for one request in all passes."""
    prompt, output = lengths(deployment)
    first = 1 if block.last_token_only else prompt
    return output - 1 + (0 if decodes_only else first)


def request_work(
    block: Block, deployment: Deployment, kv_copies: int = 1, *, decodes_only: bool = False
) -> Work:
    """Return the work of all passes of one request in a block."""
    prompt, output = lengths(deployment)
    contexts = np.arange(prompt, prompt + output - 1, dtype=np.float64)
    later = costs.step_work(block, 1.0, contexts, kv_copies=kv_copies)
    flops, moved = (float(np.sum(np.broadcast_to(part, contexts.shape))) for part in later)
    one_read = float(costs.weight_read_bytes(block, 1.0)) - block.gathered_bytes_per_token
    moved -= one_read * (output - 1)
    if not decodes_only:
        first = costs.step_work(block, float(prompt), 0.0, kv_copies=kv_copies)
        computed = 1.0 if block.last_token_only else float(prompt)
        first_read = float(costs.weight_read_bytes(block, computed))
        flops += float(first[0])
        moved += float(first[1]) - (first_read - block.gathered_bytes_per_token * computed)
    return Work(flops, moved, one_read)


def least_decodes_s(blocks: list[Block], gpu: GpuProfile, deployment: Deployment) -> float:
    """Return seconds of all decode passes of one request alone, at least."""
    prompt, output = lengths(deployment)
    seconds = 0.0
    for block, count in Counter(blocks).items():
        passes_s = float(
            costs.service_s(block, gpu, prompt, output, deployment.cost_model)
            - costs.service_s(block, gpu, prompt, 1, deployment.cost_model)
        )
        if deployment.cost_model is CostModel.ROOFLINE:
            passes_s -= costs.linear_terms_s(block, gpu, prompt, output)[0]
            passes_s += _linear_terms_s(block, gpu, deployment)[0]
        seconds += count * passes_s
    return seconds


def _linear_terms_s(
    block: Block, gpu: GpuProfile, deployment: Deployment
) -> tuple[float, float]:
    """Return the least seconds of the linear terms of decode passes and of the prompt."""
    is_paged = deployment.runtime.kv_admission is KvAdmission.PAGED
    return costs.linear_terms_s(block, gpu, *lengths(deployment), may_recompute=is_paged)
