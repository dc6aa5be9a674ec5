"""Cost formulas against plain loops over tokens and steps; validation of deployments."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve import catalog
from hypsolve.problem import costs, evaluation
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Request,
    Requests,
    Tier,
)
from hypsolve.problem.instance import ARRAY_FIELDS
from hypsolve.problem.solution import Partition

GPU = GpuProfile(name="g", t0_s=3e-5, flops_per_s=2e14, bytes_per_s=1e12, memory_bytes=80e9)


def plain_step_s(block, gpu, new, cached, cost_model):
    """Count the work of a step on one sequence, token by token."""
    computed = 1 if block.last_token_only else new
    window = block.window_tokens or 10**9
    pairs = sum(min(cached + i, window) for i in range(1, new + 1))
    flops = block.flops_per_token * computed + block.attention_flops_per_pair * pairs
    weights = block.always_read_bytes + block.gathered_bytes_per_token * computed
    for _ in range(block.n_experts):
        missed = (1 - block.experts_per_token / block.n_experts) ** computed
        weights += block.expert_bytes * (1 - missed)
    kv = block.kv_bytes_per_token * (min(cached, window - 1) + new)
    moved = weights + kv + block.activation_bytes_per_token * computed
    if cost_model == "flops":
        return flops / gpu.flops_per_s
    return gpu.t0_s + max(flops / gpu.flops_per_s, moved / gpu.bytes_per_s)


def plain_service_s(block, gpu, prompt, output, cost_model):
    total = plain_step_s(block, gpu, prompt, 0, cost_model)
    for s in range(1, output):
        total += plain_step_s(block, gpu, 1, prompt + s - 1, cost_model)
    return total


@st.composite
def blocks(draw):
    n_experts = draw(st.sampled_from([0, 0, 4, 8]))
    expert_bytes = draw(st.sampled_from([10**6, 10**8])) if n_experts else 0
    always = draw(st.sampled_from([0, 10**6, 4 * 10**8]))
    return Block(
        kind="b",
        weight_bytes=always + n_experts * expert_bytes,
        always_read_bytes=always,
        gathered_bytes_per_token=draw(st.sampled_from([0, 8192])),
        expert_bytes=expert_bytes,
        n_experts=n_experts,
        experts_per_token=draw(st.integers(1, n_experts)) if n_experts else 0,
        kv_bytes_per_token=draw(st.sampled_from([0, 4096, 10**6])),
        activation_bytes_per_token=draw(st.sampled_from([0, 16384])),
        flops_per_token=draw(st.sampled_from([0.0, 4.4e8, 1e11])),
        attention_flops_per_pair=draw(st.sampled_from([0.0, 16384.0, 1e9])),
        window_tokens=draw(st.sampled_from([None, 1, 7, 50, 100])),
        last_token_only=draw(st.booleans()),
    )


# rates that put the crossing of the two arms below, inside and above the contexts drawn
RATES = st.sampled_from([1e9, 3e11, 1e12, 7e13, 2e14])


@given(
    block=blocks(),
    flops_per_s=RATES,
    bytes_per_s=RATES,
    t0_s=st.sampled_from([0.0, 3e-5]),
    prompt=st.integers(1, 120),
    output=st.integers(1, 120),
    cost_model=st.sampled_from(list(CostModel)),
)
def test_service_equals_a_loop_over_steps(
    block, flops_per_s, bytes_per_s, t0_s, prompt, output, cost_model
):
    gpu = dataclasses.replace(GPU, t0_s=t0_s, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
    assert costs.service_s(block, gpu, prompt, output, cost_model) == pytest.approx(
        plain_service_s(block, gpu, prompt, output, cost_model), rel=1e-12, abs=1e-300
    )


@given(block=blocks(), new=st.integers(1, 80), cached=st.integers(0, 120))
def test_a_chunk_on_top_of_a_cache_equals_the_plain_count(block, new, cached):
    """The attention window may reach back into the cache."""
    for gpu in (GPU, dataclasses.replace(GPU, flops_per_s=1e18)):
        step_s = costs.step_s(gpu, *costs.step_work(block, new, cached))
        assert step_s == pytest.approx(
            plain_step_s(block, gpu, new, cached, "roofline"), rel=1e-12
        )


def test_service_splits_where_the_arms_cross():
    # attention FLOPs overtake the bytes at context 100 of a decode from 11 to 209
    block = Block(
        kind="b",
        weight_bytes=100_000,
        always_read_bytes=100_000,
        attention_flops_per_pair=1000.0,
    )
    gpu = dataclasses.replace(GPU, t0_s=0.0, flops_per_s=1.0, bytes_per_s=1.0)
    decode = 100_000 * 90 + 1000 * sum(range(101, 210))
    assert costs.service_s(block, gpu, 10, 200) == 100_000 + decode


def test_service_is_vectorised_over_requests():
    layer = catalog.model("gemma-2-9b").blocks[1]
    prompt, output = np.array([1, 512, 5000, 4096]), np.array([1, 300, 7, 2])
    together = costs.service_s(layer, GPU, prompt, output)
    alone = [costs.service_s(layer, GPU, p, o) for p, o in zip(prompt, output, strict=True)]
    assert together == pytest.approx(np.array(alone), rel=1e-15)
    for p, o, s in zip(prompt, output, together, strict=True):
        assert s == pytest.approx(plain_service_s(layer, GPU, int(p), int(o), "roofline"))


@pytest.mark.parametrize("name", ["phi-3-medium", "mixtral-8x7b", "gemma-2-27b"])
def test_service_of_real_models_equals_the_loop(name):
    for block in dict.fromkeys(catalog.model(name).blocks):
        for gpu in (catalog.gpu("t4"), catalog.gpu("h100")):
            for cost_model in CostModel:
                assert costs.service_s(block, gpu, 1900, 300, cost_model) == pytest.approx(
                    plain_service_s(block, gpu, 1900, 300, cost_model), rel=1e-12
                )


def test_step_work_counts_causal_pairs_once():
    layer = catalog.model("llama-3-8b").blocks[1]
    flops, _ = costs.step_work(layer, 100, 0)
    attention = layer.attention_flops_per_pair * 100 * 101 / 2
    assert flops == layer.flops_per_token * 100 + attention
    # two chunks do the work of one, and read the first one's KV again
    first, second = costs.step_work(layer, 60, 0), costs.step_work(layer, 40, 60)
    assert first[0] + second[0] == flops


def test_step_work_of_a_batch_shares_the_weights():
    layer = catalog.model("llama-3-8b").blocks[1]
    flops, moved = costs.step_work(layer, 1, 499, 32)
    assert flops == 32 * costs.step_work(layer, 1, 499)[0]
    per_sequence = 500 * layer.kv_bytes_per_token + layer.activation_bytes_per_token
    assert moved == layer.weight_bytes + 32 * per_sequence


def test_mixture_of_experts_reads_the_expected_distinct_experts():
    layer = catalog.model("mixtral-8x7b").blocks[1]
    one, many = (costs.weight_read_bytes(layer, n) for n in (1, 10**6))
    assert one == pytest.approx(layer.always_read_bytes + 2 * layer.expert_bytes)
    assert many == pytest.approx(layer.weight_bytes)
    # 2 tokens with 2 of 8 experts each: 8 * (1 - 0.75**2) = 3.5 distinct ones
    two = costs.weight_read_bytes(layer, 2) - layer.always_read_bytes
    assert two == pytest.approx(3.5 * layer.expert_bytes)


def test_embedding_reads_rows_and_head_computes_one_position():
    model = catalog.model("llama-3-8b")
    embedding, head = model.blocks[0], model.blocks[-1]
    flops, moved = costs.step_work(embedding, 1000, 0)
    assert (flops, moved) == (0, 1000 * (4096 * 2 + 4096 * 2))
    prefill, decode = costs.step_work(head, 1000, 0), costs.step_work(head, 1, 1000)
    assert prefill == decode
    assert prefill[0] == 2 * 128256 * 4096


def test_flops_cost_model_is_work_over_rate_alone():
    assert costs.step_s(GPU, 1e12, 1e12, CostModel.FLOPS) == 1e12 / 2e14
    assert costs.step_s(GPU, 1e12, 1e12) == 3e-5 + 1.0
    assert costs.step_s(GPU, 1e15, 1e12) == 3e-5 + 5.0


def test_flops_cost_model_misses_most_of_a_decode_step():
    layer = catalog.model("llama-3-8b").blocks[1]
    work = costs.step_work(layer, 1, 500)
    for name in ("rtx-4090", "l40s", "a100-80gb", "h100", "b200"):
        gpu = catalog.gpu(name)
        shortfall = costs.step_s(gpu, *work) / costs.step_s(gpu, *work, CostModel.FLOPS)
        assert shortfall > 13  # batch 1; the measured medians of model.md are 13 to 43


# --- networks and instances -------------------------------------------------------------------


def three_tiers(links, gpus=("jetson-agx-orin", "rtx-4090", "a100-80gb"), per_tier=1):
    tiers = [
        Tier(
            name=f"tier-{k}",
            nodes=tuple(
                Node(name=f"{gpu}-{k}-{j}", gpu=catalog.gpu(gpu)) for j in range(per_tier)
            ),
            link=links[k] if k < len(gpus) - 1 else None,
        )
        for k, gpu in enumerate(gpus)
    ]
    return Network(name="net", tiers=tuple(tiers))


LINKS = (
    Link(bytes_per_s=12.5e6, latency_s=0.01, return_latency_s=0.025),
    Link(bytes_per_s=125e6, latency_s=0.04),
)


@given(
    prompt=st.integers(1, 60),
    output=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 34), min_size=2, max_size=2).map(sorted),
    cost_model=st.sampled_from(list(CostModel)),
)
def test_services_and_transfers_are_the_idle_latency(prompt, output, cuts, cost_model):
    """The reference follows every token through the stages and back to the first of them.

    Empty tiers before the first stage are crossed once, by the prompt and one token.
    """
    model, network = catalog.model("llama-3-8b"), three_tiers(LINKS)
    instance = costs.to_instance(
        Deployment(
            model=model,
            network=network,
            requests=Requests.of([Request(0.0, prompt, output)]),
            cost_model=cost_model,
        ),
        allow_empty=True,
    )
    partition = Partition((0, *cuts, 34))
    latency_s = 0.0
    for step in range(output):
        new, cached = (prompt, 0) if step == 0 else (1, prompt + step - 1)
        for k, tier in enumerate(network.tiers):
            for b in partition.stage(k):
                latency_s += plain_step_s(
                    model.blocks[b], tier.nodes[0].gpu, new, cached, cost_model
                )
            cut = partition.cuts[k + 1]
            if tier.link is not None and cut < 34 and (cut or step == 0):
                sent = 4 if cut == 0 else 4096 * 2
                latency_s += tier.link.latency_s + new * sent / tier.link.bytes_per_s
                back_s = tier.link.return_latency_s
                latency_s += tier.link.latency_s if back_s is None else back_s
    services = evaluation.service_s(instance, partition)[0]
    transfers = evaluation.transfer_s(instance, partition)[0]
    total = sum(services[k, k] for k in range(3)) + transfers.sum()
    assert total == pytest.approx(latency_s, rel=1e-12)
    assert evaluation.path_s(instance, partition) == pytest.approx(latency_s, rel=1e-12)


def test_occupancy_is_the_bytes_and_delay_the_latency():
    assert costs.link_occupancy_s(LINKS[0], 8192, 100, 11) == 110 * 8192 / 12.5e6
    assert costs.link_delay_s(LINKS[0], 11) == pytest.approx(11 * 0.035)
    assert LINKS[1].round_trip_s == 0.08


def test_to_instance_has_the_shapes_and_kinds():
    requests = Requests.of([Request(0.0, 100, 10), Request(1.5, 6000, 20)])
    network = three_tiers(LINKS, per_tier=2)
    instance = costs.to_instance(
        Deployment(model=catalog.model("gemma-2-9b"), network=network, requests=requests)
    )
    assert instance.kind_s.shape == (2, 3, 4)  # embedding, windowed layer, layer, head
    assert instance.block_s.shape == (2, 3, 44)
    assert instance.transfer_s.shape == (2, 2, 45)
    assert (instance.transfer_s[:, :, 44] == 0).all()
    assert (instance.transfer_s[:, :, :44] > 0).all()
    # token ids cross the first cut, hidden states the others
    occupancy_s = instance.occupancy_kind_s[:, :, instance.cut_kind]
    assert occupancy_s[0, 0, 0] == pytest.approx(109 * 4 / 12.5e6)
    assert occupancy_s[1, 1, 20] == pytest.approx(6019 * 3584 * 2 / 125e6)
    assert instance.node_class.tolist() == [0, 0, 1, 1, 2, 2]
    assert instance.node_tier.tolist() == [0, 0, 1, 1, 2, 2]
    assert instance.class_names == ("Jetson AGX Orin 64GB", "RTX 4090", "A100-80GB")
    assert instance.arrival_s.tolist() == [0.0, 1.5]
    assert instance.name == "gemma-2-9b @ net"
    assert not instance.extrapolated
    gpu = catalog.gpu("rtx-4090")
    layer = catalog.model("gemma-2-9b").blocks[2]
    assert instance.block_s[1, 1, 2] == costs.service_s(layer, gpu, 6000, 20)


def test_to_instance_reserves_kv_cache_in_every_block():
    model = catalog.model("llama-3-8b")
    deployment = {
        "model": model,
        "network": three_tiers(LINKS),
        "requests": Requests.of([Request(0.0, 100, 28), Request(0.0, 300, 10)]),
    }
    longest = costs.to_instance(Deployment(**deployment)).block_bytes
    assert longest[1] == 218103808 * 2 + 310 * 4096
    assert longest[0] == longest[-1] == 128256 * 4096 * 2
    more = costs.to_instance(Deployment(**deployment, max_resident_tokens=8192)).block_bytes
    assert more[1] == 218103808 * 2 + 8192 * 4096


def test_tied_table_is_held_once_by_a_stage_with_all_blocks():
    model = catalog.model("llama-3.2-1b")
    instance = costs.to_instance(
        Deployment(
            model=model,
            network=three_tiers(LINKS),
            requests=Requests.of([Request(0.0, 10, 5)]),
        )
    )
    table = 128256 * 2048 * 2
    all_blocks = 1235746816 * 2 + 16 * 15 * 2048
    assert evaluation.stage_bytes(instance, 0, 18) == all_blocks
    assert evaluation.stage_bytes(instance, 0, 17) == all_blocks  # the head comes free
    assert evaluation.stage_bytes(instance, 1, 18) == all_blocks
    assert model.weight_bytes == 1235746816 * 2 + table  # apart: two copies


def test_many_requests_are_stored_by_kind():
    n = 200_000
    rng = np.random.default_rng(0)
    requests = Requests(
        np.sort(rng.exponential(size=n)), rng.integers(1, 4000, n), rng.integers(1, 500, n)
    )
    network = three_tiers(LINKS)
    instance = costs.to_instance(
        Deployment(model=catalog.model("llama-3-70b"), network=network, requests=requests)
    )
    assert instance.n_blocks == 82
    tables = [getattr(instance, field) for field in ARRAY_FIELDS]
    # 3 kinds x 3 classes + 2 x (2 links x 3 cut kinds) + arrivals; by block it would be 4,600 B
    assert sum(table.nbytes for table in tables) < 200 * n


def test_equal_requests_share_one_row():
    requests = Requests(np.arange(1000.0), np.full(1000, 300), np.full(1000, 50))
    instance = costs.to_instance(
        Deployment(
            model=catalog.model("llama-3-8b"), network=three_tiers(LINKS), requests=requests
        )
    )
    assert instance.kind_s.shape[0] == instance.transfer_kind_s.shape[0] == 1
    assert instance.n_requests == 1000


def test_equal_gpus_in_different_tiers_share_a_class():
    instance = costs.to_instance(
        Deployment(
            model=catalog.model("llama-3-8b"),
            network=three_tiers(LINKS, gpus=("t4", "l4", "t4")),
            requests=Requests.of([Request(0.0, 10, 5)]),
        )
    )
    assert instance.node_class.tolist() == [0, 1, 0]


# --- what users get wrong ---------------------------------------------------------------------

NODE = Node(name="n", gpu=GPU)
EDGE = Tier(name="edge", nodes=(NODE,), link=LINKS[0])
CLOUD = Tier(name="cloud", nodes=(Node(name="m", gpu=GPU),))
BLOCK = Block(kind="layer", weight_bytes=10)
NET = Network(name="net", tiers=(EDGE, CLOUD))
MODEL = Model(name="m", blocks=(BLOCK,))
ONE = Requests.of([Request(0.0, 10, 5)])
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Block(kind="", weight_bytes=1), ValueError, "block: kind must not be empty"),
        (
            lambda: Block(kind="x", weight_bytes=-1),
            ValueError,
            "block 'x': weight_bytes must be at least 0, got -1",
        ),
        (
            lambda: Block(kind="x", weight_bytes=1.5),
            TypeError,
            "block 'x': weight_bytes must be a whole number, got 1.5",
        ),
        (
            lambda: Block(kind="x", weight_bytes=1, flops_per_token=NAN),
            ValueError,
            "block 'x': flops_per_token must be finite and not negative, got nan",
        ),
        (
            lambda: Block(kind="x", weight_bytes=1, window_tokens=0),
            ValueError,
            "block 'x': window_tokens must be at least 1, got 0",
        ),
        (
            lambda: Block(kind="x", weight_bytes=1, last_token_only="yes"),
            TypeError,
            "block 'x': last_token_only must be True or False, got 'yes'",
        ),
        (
            lambda: Block(kind="x", weight_bytes=9, n_experts=2, experts_per_token=3),
            ValueError,
            "block 'x': experts_per_token must be at most n_experts = 2, got 3",
        ),
        (
            lambda: Block(kind="x", weight_bytes=9, always_read_bytes=10),
            ValueError,
            "block 'x': .* must be at most weight_bytes = 9, got 10",
        ),
        (
            lambda: Model(name="m", blocks=()),
            ValueError,
            "model 'm': blocks must hold at least one",
        ),
        (
            lambda: Model(name="m", blocks=BLOCK),
            TypeError,
            "model 'm': blocks must be a tuple of Block",
        ),
        (
            lambda: Model(name="m", blocks=(BLOCK, Block(kind="layer", weight_bytes=11))),
            ValueError,
            "model 'm': blocks of kind 'layer' must be equal",
        ),
        (
            lambda: dataclasses.replace(GPU, flops_per_s=0),
            ValueError,
            "gpu 'g': flops_per_s must be positive and finite, got 0",
        ),
        (
            lambda: dataclasses.replace(GPU, bytes_per_s=INF),
            ValueError,
            "gpu 'g': bytes_per_s must be positive and finite, got inf",
        ),
        (
            lambda: dataclasses.replace(GPU, memory_bytes="80 GB"),
            TypeError,
            "gpu 'g': memory_bytes must be a number, got '80 GB'",
        ),
        (
            lambda: dataclasses.replace(GPU, t0_s=-1e-6),
            ValueError,
            "gpu 'g': t0_s must be finite and not negative, got -1e-06",
        ),
        (
            lambda: Link(bytes_per_s=0.0, latency_s=0),
            ValueError,
            "link: bytes_per_s must be positive and finite, got 0.0",
        ),
        (
            lambda: Link(bytes_per_s=1.0, latency_s=0, return_latency_s=NAN),
            ValueError,
            "link: return_latency_s must be finite and not negative, got nan",
        ),
        (
            lambda: Node(name="n", gpu="a100-80gb"),
            TypeError,
            "node 'n': gpu must be a GpuProfile, got 'a100-80gb'",
        ),
        (
            lambda: Node(name="n", gpu=GPU, reserved_bytes=80e9),
            ValueError,
            r"node 'n': reserved_bytes must be below memory_bytes = 8e\+10, got 8e\+10",
        ),
        (
            lambda: Node(name="n", gpu=GPU, memory_bytes=NAN),
            ValueError,
            "node 'n': memory_bytes must be positive and finite, got nan",
        ),
        (
            lambda: Tier(name="t", nodes=()),
            ValueError,
            "tier 't': nodes must hold at least one",
        ),
        (
            lambda: Tier(name="t", nodes=(NODE,), link=3.0),
            TypeError,
            "tier 't': link must be a Link or None, got 3.0",
        ),
        (
            lambda: Network(name="net", tiers=(CLOUD, EDGE)),
            ValueError,
            "network 'net': tier 'cloud' needs a link to the next tier",
        ),
        (
            lambda: Network(name="net", tiers=(EDGE,)),
            ValueError,
            "network 'net': the last tier 'edge' must have no link",
        ),
        (
            lambda: Network(name="net", tiers=(EDGE, Tier(name="cloud", nodes=(NODE,)))),
            ValueError,
            "network 'net': node names must be distinct, got 'n' twice",
        ),
        (
            lambda: Requests.of([]),
            ValueError,
            "requests: arrival_s must hold at least one request",
        ),
        (
            lambda: Requests.of([Request(0.0, 10, 0)]),
            ValueError,
            "requests: output_tokens must be whole numbers from 1 to .*, got 0.0",
        ),
        (
            lambda: Requests.of([Request(0.0, 1.5, 1)]),
            ValueError,
            "requests: prompt_tokens must be whole numbers from 1 to .*, got 1.5",
        ),
        (
            lambda: Requests.of([Request(0.0, 1, 1), Request(-2.0, 1, 1)]),
            ValueError,
            r"requests: arrival_s must be finite and not negative, got -2.0 at index \[1\]",
        ),
        (
            lambda: Requests([0.0, 1.0], [1], [1, 1]),
            ValueError,
            r"requests: prompt_tokens must have shape \(2\), got \(1,\)",
        ),
        (
            lambda: Deployment(model="llama-3-8b", network=NET, requests=ONE),
            TypeError,
            "deployment: model must be a Model, got 'llama-3-8b'",
        ),
        (
            lambda: Deployment(model=MODEL, network=NET, requests=ONE, cost_model="fast"),
            ValueError,
            "deployment: cost_model must be one of roofline, flops, got 'fast'",
        ),
        (
            lambda: Deployment(model=MODEL, network=NET, requests=ONE, max_resident_tokens=14),
            ValueError,
            "deployment: max_resident_tokens must be at least 15, .* got 14",
        ),
    ],
)
def test_wrong_deployments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_lists_are_taken_for_tuples():
    tier = Tier(name="t", nodes=[NODE])
    assert tier == Tier(name="t", nodes=(NODE,))
    assert Network(name="n", tiers=[tier]).tiers == (tier,)
