"""Latencies of whole servers where a collective jumps to a slower algorithm."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.serving_evaluation import evaluate_serving
from hypsolve.problem.serving_pipelines import PipelineMode
from hypsolve.problem.serving_split import crossed_links
from hypsolve.verify import verify


@pytest.mark.parametrize("users", [112, 120, 124, 128])
def test_users_are_as_many_as_their_requests_under_way(users):
    """Just below the jump, a larger batch carries the rate as well, in cycles too long."""
    nvlink = hs.interconnect("nvlink5", "b200")
    box = hs.Node(
        name="box", gpu=hs.gpu("b200"), gpus=4, interconnect=nvlink, tensor_parallel=4
    )
    deployment = hs.Deployment(
        model=hs.model("llama-3-70b", weights="int4"),
        network=hs.Network(name="box", tiers=(hs.Tier(name="box", nodes=(box,)),)),
        requests=hs.Requests([0.0], [1024], [1024]),
        runtime=hs.runtime("tensorrt-llm"),
    )
    instance = hs.to_serving_instance(deployment, users=users)
    found = evaluate_serving(instance, hs.Partition((0, instance.n_blocks)))
    under_way = found.fluid_requests_per_s * found.latencies.latency_s
    assert under_way <= users * (1 + 1e-6)


@pytest.mark.parametrize("n_tiers", [1, 2])
def test_a_batch_just_below_the_jump_may_carry_more_than_the_largest_one(n_tiers):
    """The largest batches are just above the jump; no smaller one carries more than stated."""
    nvlink = hs.interconnect("nvlink5", "b200")
    lan = hs.Link(bytes_per_s=1e11, latency_s=1e-5)
    boxes = [
        hs.Node(name=name, gpu=hs.gpu("b200"), gpus=2, interconnect=nvlink, tensor_parallel=2)
        for name in "ab"[:n_tiers]
    ]
    tiers = tuple(
        hs.Tier(name=box.name, nodes=(box,), link=lan if box is not boxes[-1] else None)
        for box in boxes
    )
    n_seqs = 132 * n_tiers  # a batch of more than 128 tokens is above the jump
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="boxes", tiers=tiers),
        requests=hs.Requests([0.0], [2], [65]),
        runtime=hs.runtime("vllm", max_num_seqs=n_seqs),
    )
    instance = hs.to_serving_instance(deployment)
    half = instance.n_blocks // 2
    partition = hs.Partition((0, half, instance.n_blocks) if n_tiers == 2 else (0, 2 * half))
    mode = PipelineMode(instance, partition)
    seqs = np.linspace(0.05, 1, 2_000) * n_seqs / mode.cycles
    rates = np.array([y / cycle_s(mode, y) for y in seqs])
    stated = evaluate_serving(instance, partition).fluid_requests_per_s
    assert rates.max() <= stated * (1 + 1e-9)
    assert stated <= rates.max() * 1.01
    assert rates[-1] < rates.max(), "the largest batch must be a little above the jump"
    found = {}
    for method in ("throughput_exact", "throughput_highs", "throughput_cpsat"):
        result = hs.solve(instance, method, time_limit_s=60)
        assert result.status == "optimal"
        found[method] = result.objective
        verify(instance, json.loads(json.dumps(result.to_dict())))
    assert min(found.values()) >= stated * (1 - 1e-9)
    assert max(found.values()) == pytest.approx(min(found.values()), rel=1e-6)


def test_limits_of_patterns_count_batches_just_below_the_jump():
    """Two boxes of two GPUs, either too small for the model: the limit is above the rate."""
    nvlink = hs.interconnect("nvlink5", "b200")
    gpu = replace(hs.gpu("b200"), memory_bytes=7.5e9, visible_bytes=None)
    machines = tuple(
        hs.Machine(node=hs.Node(name=name, gpu=gpu, gpus=2, interconnect=nvlink), site="room")
        for name in "ab"
    )
    lan = hs.Link(bytes_per_s=1e11, latency_s=1e-5)
    problem = hs.PlacementProblem(
        model=hs.model("llama-3-8b"),
        fleet=hs.Fleet(name="lab", sites=(hs.Site(name="room", link=lan),), machines=machines),
        requests=hs.Requests([0.0], [2], [65]),
        runtime=hs.runtime("vllm", max_num_seqs=264),
        max_stages=2,
    )
    rates = [
        hs.solve(problem, method).objective for method in ("placement_highs", "placement_cpsat")
    ]
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    assert rates[0] > 1200, "the rate just below the jump"


def cycle_s(mode, y):
    """Return the seconds of a cycle, by the iterations of the stages alone."""
    lengths, n = mode.instance.lengths, mode.n_batches
    b, k = y * lengths.decode_passes / n, y * lengths.chunks / n
    alone = [each.iteration_s(b, k) for (each,) in mode.replicas]
    alone.append(mode.instance.rules.iteration_s)
    links = [
        ((b + k * lengths.chunk_tokens) * token_s, round_trip_s)
        for _, token_s, round_trip_s in crossed_links(mode.instance, mode.partition)
    ]
    alone += [seconds for seconds, _ in links]
    return max(n * max(alone), sum(alone) + sum(trip for _, trip in links))
