"""Latencies of whole servers where a collective jumps to a slower algorithm."""

import pytest

import hypsolve as hs
from hypsolve.problem.serving_evaluation import evaluate_serving


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
