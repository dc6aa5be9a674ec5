"""GPUs that compute as one: memory and times against GPU by GPU counts; refused degrees."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem import costs, evaluation

GIB = 2**30
NVLINK = hs.interconnect("nvlink4", "h100")
LINES = hs.Interconnect(
    name="lines",
    all_reduces=tuple(
        hs.AllReduce(
            library="nccl", degree=degree, switch_bytes=3000.0, small_s=1e-5,
            small_s_per_byte=3e-9, large_s=2.5e-5, large_s_per_byte=1e-9,
        )
        for degree in (2, 4, 8)
    ),
)  # fmt: skip


def toy_model(n_heads=8, n_kv_heads=2, n_layers=6, tied_bytes=0):
    embedding = hs.Block(
        kind="embedding", weight_bytes=3 * GIB, gathered_bytes_per_token=512,
        collectives=1, collective_bytes_per_token=512,
    )  # fmt: skip
    layer = hs.Block(
        kind="layer", weight_bytes=2 * GIB, always_read_bytes=2 * GIB, kv_bytes_per_token=2**20,
        activation_bytes_per_token=1024, output_bytes_per_token=512, flops_per_token=4e9,
        attention_flops_per_pair=5e5, collectives=2, collective_bytes_per_token=512,
    )  # fmt: skip
    head = hs.Block(
        kind="head", weight_bytes=3 * GIB, always_read_bytes=3 * GIB, flops_per_token=3e9,
        last_token_only=True, collectives=1, collective_bytes_per_token=4000,
    )  # fmt: skip
    return hs.Model(
        name="toy", blocks=(embedding, *[layer] * n_layers, head), n_heads=n_heads,
        n_kv_heads=n_kv_heads, tied_bytes=tied_bytes,
    )  # fmt: skip


def machine(degree, gpu="h100", interconnect=LINES, **fields):
    return hs.Node(
        name=f"box{degree}", gpu=hs.gpu(gpu), gpus=degree, interconnect=interconnect,
        tensor_parallel=degree, **fields,
    )  # fmt: skip


def deployed(nodes, model=None, tokens=(300, 40), **fields):
    tiers = (hs.Tier(name="rack", nodes=tuple(nodes)),)
    return hs.Deployment(
        model=model or toy_model(),
        network=hs.Network(name="lab", tiers=tiers),
        requests=hs.Requests([0.0], [tokens[0]], [tokens[1]]),
        **fields,
    )


def on_one_gpu_s(block, node, n_kv_heads, new, cached):
    """Count the work of one GPU of a group in one step, then its all-reduces."""
    gpu, degree = node.gpu, node.gpus
    computed = 1 if block.last_token_only else new
    pairs = sum(cached + i for i in range(1, new + 1))
    flops = (block.flops_per_token * computed + block.attention_flops_per_pair * pairs) / degree
    heads = max(n_kv_heads / degree, 1)  # whole heads on each GPU
    kv = block.kv_bytes_per_token / n_kv_heads * heads * (cached + new)
    moved = (block.always_read_bytes + block.gathered_bytes_per_token * computed) / degree
    moved += kv + block.activation_bytes_per_token * computed / degree
    size = block.collective_bytes_per_token * computed
    each_s = 1e-5 + 3e-9 * size if size <= 3000 else 2.5e-5 + 1e-9 * size
    work_s = max(flops / gpu.flops_per_s, moved / gpu.bytes_per_s)
    return gpu.t0_s + work_s + (block.collectives * each_s if degree > 1 else 0.0)


@pytest.mark.parametrize("degree", [2, 4, 8])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("prompt", [3, 300])
def test_times_are_those_of_every_single_gpu(degree, n_kv_heads, prompt):
    """Every block and request: a sum over steps of the work of one GPU, then all-reduces."""
    node, output = machine(degree), 20
    model = toy_model(n_kv_heads=n_kv_heads)
    deployment = deployed([node], model, (prompt, output))
    instance = hs.to_instance(deployment)
    for b, block in enumerate(model.blocks):
        steps = [(prompt, 0), *((1, prompt + s) for s in range(output - 1))]
        expected = sum(on_one_gpu_s(block, node, n_kv_heads, *step) for step in steps)
        assert instance.block_s[0, 0, b] == pytest.approx(expected, rel=1e-12)


def test_a_single_gpu_is_its_own_profile():
    """Without groups nothing is derived, so that no number changes."""
    node = hs.Node(name="a", gpu=hs.gpu("h100"))
    assert deployed([node]).profile(node) is node.gpu


def fits_on_every_gpu(model, node, first, end, resident, usable_bytes):
    """Count the bytes of one GPU: its part of the weights, and whole KV heads."""
    blocks = model.blocks[first:end]
    weights = sum(block.weight_bytes for block in blocks)
    weights -= model.tied_bytes if len(blocks) == model.n_blocks else 0
    heads = max(model.n_kv_heads / node.gpus, 1)
    kv = sum(block.kv_bytes_per_token for block in blocks) / model.n_kv_heads * heads
    return weights / node.gpus + kv * resident <= usable_bytes


@pytest.mark.parametrize("tied_bytes", [0, 3 * GIB])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 8])
@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_memory_under_one_degree_is_exact(degree, n_kv_heads, tied_bytes):
    """A stage is let in exactly if every GPU can hold its part, for any memory and stage."""
    model = toy_model(n_kv_heads=n_kv_heads, tied_bytes=tied_bytes)
    resident = 4096
    for memory_bytes in (1.7 * GIB, 3.9 * GIB, 8.3 * GIB, 21.7 * GIB):
        node = machine(degree, memory_bytes=memory_bytes)
        deployment = deployed([node], model, max_resident_tokens=resident)
        instance = hs.to_instance(deployment)
        for first, end in itertools.combinations(range(model.n_blocks + 1), 2):
            expected = fits_on_every_gpu(model, node, first, end, resident, memory_bytes)
            assert evaluation.can_hold(instance, 0, first, end)[0] == expected


@pytest.mark.parametrize("tied_bytes", [0, 3 * GIB])
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_mixed_copies_let_nothing_in_that_does_not_fit(n_kv_heads, tied_bytes):
    """An instance has one size per block: more copies cost at least their bytes."""
    model = toy_model(n_kv_heads=n_kv_heads, tied_bytes=tied_bytes)
    resident, n_refused = 4096, 0
    for memory_bytes in np.linspace(1.5 * GIB, 30 * GIB, 40):
        nodes = [machine(d, memory_bytes=float(memory_bytes)) for d in (1, 2, 4, 8)]
        deployment = deployed(nodes, model, max_resident_tokens=resident)
        instance = hs.to_instance(deployment)
        for first, end in itertools.combinations(range(model.n_blocks + 1), 2):
            holds = evaluation.can_hold(instance, 0, first, end)
            for node, is_holder in zip(nodes, holds, strict=True):
                fits = fits_on_every_gpu(model, node, first, end, resident, memory_bytes)
                assert fits or not is_holder
                n_refused += fits and not is_holder
    assert n_refused < 0.1 * 40 * len(nodes) * 28  # few that would fit are refused


def test_the_runtime_takes_its_share_of_every_gpu():
    """Libraries, graphs and activations are on every GPU, so that eight pay eight times."""
    runtime, model = hs.runtime("vllm"), hs.model("llama-3-70b")
    node = machine(8, interconnect=NVLINK)
    single = hs.Node(name="a", gpu=hs.gpu("h100"))
    deployment = deployed([node], model, runtime=runtime)
    assert deployment.usable_bytes(node) == 8 * runtime.usable_bytes(single, model)


@pytest.mark.parametrize(
    ("degree", "heads", "message"),
    [
        (4, (6, 6), "tensor_parallel must divide its 6 attention heads, got 4"),
        (8, (8, 3), "must divide its 3 KV heads, or be a multiple of them, got 8"),
        (2, (0, 0), "n_heads and n_kv_heads must be known for tensor_parallel 2, got 0 and 0"),
    ],
)  # fmt: skip
def test_degrees_that_do_not_divide_the_heads_are_refused(degree, heads, message):
    """The message names the model, its heads and the degree."""
    model = toy_model(*heads)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        deployed([machine(degree)], model)
    assert f"node 'box{degree}'" in str(error.value)
    assert "model 'toy'" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": 0}, "node 'a': gpus must be at least 1, got 0"),
        ({"gpus": 8}, "interconnect must be"),
        ({"gpus": 8, "interconnect": "nvlink4"}, "interconnect must be"),
        ({"gpus": 2, "interconnect": LINES, "tensor_parallel": 4},
         "node 'a': tensor_parallel must be at most gpus = 2, got 4"),
        ({"gpus": 8, "interconnect": LINES, "tensor_parallel": 3},
         "tensor_parallel must be 1 or one of 2, 4, 8, got 3"),
        ({"gpus": 8, "interconnect": LINES, "tensor_parallel": True}, "tensor_parallel"),
    ],
)  # fmt: skip
def test_bad_machines_are_refused(fields, message):
    """Wrong numbers and missing links are named, and not found out in a simulation."""
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        hs.Node(name="a", gpu=hs.gpu("h100"), **fields)


def test_a_deployment_needs_groups():
    """A machine whose degree is open, or that is several groups, is no single node."""
    open_machine = replace(machine(8), tensor_parallel=None)
    with pytest.raises(ValueError, match=r"must be gpus = 8, got None \(Network.in_groups"):
        deployed([open_machine])
    with pytest.raises(ValueError, match="got 2, which makes 4 nodes"):
        deployed([replace(machine(8), tensor_parallel=2)])


def test_groups_share_out_the_gpus_of_a_machine():
    """8 GPUs under degree 2 are 4 nodes of one host with two cards each; a fifth is unused."""
    box = replace(machine(8), tensor_parallel=None, card=1)
    single = hs.Node(name="single", gpu=hs.gpu("l4"))
    tier = hs.Tier(name="rack", nodes=(box, single))
    network = hs.Network(name="lab", tiers=(tier,))
    pairs = network.in_groups(2).tiers[0].nodes
    assert [(n.name, n.host, n.card, n.gpus) for n in pairs] == [
        (f"box8/{i}", "box8", 1 + 2 * i, 2) for i in range(4)
    ]
    assert len(network.in_groups(1).tiers[0].nodes) == 9
    assert [node.name for node in network.in_groups(8).tiers[0].nodes] == ["box8"]
    with pytest.raises(ValueError, match="tier 'rack' has no machine for tensor_parallel 16"):
        network.in_groups(16)
    with pytest.raises(ValueError, match="node 'box8': tensor_parallel must be chosen"):
        network.in_groups()
    odd = replace(box, gpus=5)
    assert [node.name for node in odd.groups(4)] == ["box8"]
    assert replace(box, tensor_parallel=4).groups(2) == ()


def test_groups_of_one_machine_are_linked_by_its_interconnect():
    """An all-reduce of two GPUs takes 10 us, or 25 us and 1 ns per byte: 1 GB/s."""
    tier = hs.Tier(name="rack", nodes=replace(machine(8), tensor_parallel=None).groups(2))
    assert tier.machine_link.bytes_per_s == pytest.approx(1e9)
    assert tier.machine_link.latency_s == 1e-5
    other = hs.Tier(name="r", nodes=(*tier.nodes, *replace(machine(4), host="x").groups()))
    single = hs.Tier(name="s", nodes=(machine(8),))
    plain = hs.Tier(name="p", nodes=(hs.Node(name="a", gpu=hs.gpu("l4"), host="h"),) * 2)
    assert (other.machine_link, single.machine_link, plain.machine_link) == (None, None, None)


def test_cards_of_groups_are_distinct():
    """Two groups of one host must not share a card."""
    first, second = machine(2, host="h", card=0), machine(4, host="h", card=1)
    with pytest.raises(ValueError, match="1 of host h"):
        hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(first, second)),))


def random_all_reduces(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        small_s, large_s = 10 ** rng.uniform(-6, -3, 2)
        slopes = 10 ** rng.uniform(-12, -8, 2) * rng.integers(0, 2, 2)
        yield hs.AllReduce(
            library="nccl", degree=2, switch_bytes=rng.integers(0, 2) * 10 ** rng.uniform(3, 7),
            small_s=small_s, small_s_per_byte=slopes[0], large_s=large_s,
            large_s_per_byte=slopes[1],
        )  # fmt: skip


def test_the_convex_function_below_all_reduces():
    """The bound on the rate relies on it: convex, and nowhere above, for catalogue and any."""
    sizes = np.linspace(0, 3e7, 4001)
    known = (each for name in hs.interconnects() for each in hs.interconnect(name).all_reduces)
    for each in (*known, *random_all_reduces(300)):
        below = each.convex_minorant()
        at = np.sort(
            np.append(sizes, [each.switch_bytes, np.nextafter(each.switch_bytes, 1e9)])
        )
        assert (below.seconds(at) <= each.seconds(at) * (1 + 1e-9)).all()
        values = below.seconds(sizes)
        bends = values[:-2] - 2 * values[1:-1] + values[2:]
        assert (bends >= -1e-9 * values[1:-1]).all()


def test_collectives_of_catalogue_models():
    """Two all-reduces of the hidden width per layer; half of the logits for the head."""
    model = hs.model("llama-3-70b")
    embedding, layer, head = model.blocks[0], model.blocks[1], model.blocks[-1]
    assert (layer.collectives, layer.collective_bytes_per_token) == (2, 8192 * 2)
    assert (embedding.collectives, embedding.collective_bytes_per_token) == (1, 8192 * 2)
    assert (head.collectives, head.collective_bytes_per_token) == (1, 128_256)
    assert (model.n_heads, model.n_kv_heads) == (64, 8)
    assert costs.collectives_s(layer, hs.gpu("h100"), 5.0) == 0
