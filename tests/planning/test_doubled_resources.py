"""Twice of a resource changes that resource alone."""

import pytest

import hypsolve as hs
from hypsolve.planning.doubled_resources import BATCH, doubled
from hypsolve.planning.planner import plan_query
from tests.planning.test_server_plan import TOO_SMALL


@pytest.mark.parametrize("runtime", ["vllm", "llama.cpp"])
def test_a_larger_batch_takes_no_memory(runtime):
    """vLLM's activations grew with the batch, so that the model no longer fitted: an error."""
    deployment = hs.PlanQuery.of(
        "phi-3-mini", hs.Network(name="n", tiers=(hs.Tier(name="t", nodes=(
            hs.Node(name="n", gpu=hs.gpu("l4")),)),)), runtime=runtime,
    ).deployment()  # fmt: skip
    larger = doubled(deployment, BATCH)
    node = deployment.network.tiers[0].nodes[0]
    assert larger.runtime.max_num_seqs == 2 * deployment.runtime.max_num_seqs
    assert larger.usable_bytes(node) == pytest.approx(deployment.usable_bytes(node), rel=1e-12)


def test_a_plan_on_a_card_that_is_nearly_full(tmp_path):
    """It ended in "simulate: tier 'slow' has no node that can hold blocks 0:1"."""
    path = tmp_path / "net.toml"
    path.write_text(TOO_SMALL)
    query = hs.PlanQuery.of("phi-3-mini", path, concurrency=1, runtime="vllm")
    found = plan_query(query, with_upgrades=False)
    assert found.stages[0].blocks == range(1) and found.forecast is not None
