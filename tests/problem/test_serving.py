"""`ServingInstance`: errors, digests, files, and its seconds against the cost model."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem import costs
from hypsolve.problem.serving import ServingInstance, lengths_of
from hypsolve.problem.serving_records import ServingRules


def tables(**changes):
    given = {
        "fixed_s": [[1e-3, 2e-3]],
        "read_s": [[4e-3, 1e-3]],
        "block_kind": [0, 0, 1],
        "tiers": [[(0, 8e9)], [(0, 9e9), (0, 9e9)]],
        "weight_bytes": [[1e9, 5e8]],
        "kv_bytes_per_token": [[1e5, 0]],
        "token_s": [[1e-6]],
        "prompt_tokens": 100,
        "output_tokens": 10,
    }
    return ServingInstance.from_tables(**(given | changes))


@pytest.mark.parametrize("tiers", [[[(0, 8e9)]], [[(0, 8e9)], [(0, 9e9), (0, 9e9)]]])
@pytest.mark.parametrize("cut_kind", [[0, 0, 0, 0], [0, 1, 2, 0]])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_file_states_its_kind_and_keeps_the_digest(tmp_path, tiers, cut_kind, suffix):
    """A single tier has no links: its table must keep its shape through nested lists."""
    token_s = np.full((len(tiers) - 1, 1 + max(cut_kind)), 0.1)
    instance = tables(
        tiers=tiers, token_s=token_s, cut_kind=cut_kind, objective="goodput", tpot_slo_s=0.3
    )
    hs.save(instance, tmp_path / f"serving{suffix}")
    read = hs.load(tmp_path / f"serving{suffix}")
    assert isinstance(read, ServingInstance)
    assert read == instance
    assert read.to_dict() == instance.to_dict()


@pytest.mark.parametrize(
    "changes",
    [{"users": 3}, {"max_num_seqs": 5}, {"price_per_hour": [1, 2, 3]}, {"pinned": {0: 0}},
     {"tied_bytes": [1e8]}, {"tpot_slo_s": 0.5}, {"collective_s": np.ones((1, 2, 5))}],
)  # fmt: skip
def test_a_digest_covers_every_record_but_the_names(changes):
    """Sweeps tell problems apart by digest, and must not by name."""
    assert tables(**changes).digest() != tables().digest()
    assert tables(name="another").digest() == tables().digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed_s": [[-1.0, 0]]}, "serving instance: fixed_s must be finite and not negative"),
        ({"read_s": [[1.0]]}, r"serving instance: read_s must have shape \(1, 2\)"),
        ({"block_kind": [0, 2]}, "serving instance: block_kind must be from 0 to 1, got 2"),
        ({"tied_bytes": [6e8]}, "serving instance: tied_bytes must be at most"),
        ({"objective": "goodput"}, "objective goodput needs ttft_slo_s"),
        ({"objective": "cost"}, "price_per_hour must be positive"),
        ({"batching": "waves"}, "batching must be one of stage, pipeline, serial, got 'waves'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"tpot_slo_s": 0.0}, "tpot_slo_s must be positive and finite, got 0.0"),
        ({"round_trip_s": [0, 0]}, r"round_trip_s must have shape \(1\), got \(2,\)"),
        ({"idle_share": [1.0, 0], "expert_s": [[1, 0]]}, "idle_share must be below 1"),
        ({"tiers": [[(1, 8e9)], [(0, 1)]]}, "node_class must hold whole numbers below 1"),
    ],
)
def test_bad_input_names_field_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        tables(**changes)


def test_an_unknown_argument_suggests_the_likeliest():
    with pytest.raises(TypeError, match="'max_seqs'; did you mean max_num_seqs"):
        tables(max_seqs=3)


def test_a_broken_file_names_what_is_missing(tmp_path):
    path = tmp_path / "broken.json"
    hs.save(tables(), path)
    document = json.loads(path.read_text())
    del document["lengths"]["chunks"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="field 'chunks' of lengths is missing"):
        hs.load(path)


def test_moments_are_means_over_requests():
    """Moments of mixed lengths, against their definitions; equal lengths give plain values."""
    rules = ServingRules(prompt_limit=100)
    p, o = np.array([50.0, 250.0]), np.array([11.0, 1.0])
    mixed = lengths_of(p, o, rules)
    h = p + o
    assert mixed.hold_passes == pytest.approx((61 * 10 + 0) / h.sum())
    assert mixed.hold_chunks == pytest.approx((61 * 1 + 251 * 3) / h.sum())
    assert mixed.hold_prompt_tokens == pytest.approx((h * p).sum() / h.sum())
    assert (mixed.chunks, mixed.resident_tokens, mixed.alike) == (1.5, 251, False)
    alike = lengths_of([250, 250], [11, 11], rules)
    assert (alike.chunks, alike.hold_chunks, alike.hold_passes) == (3, 3, 10)
    paged = lengths_of([250], [11], ServingRules(kv_admission="paged"), 16)
    assert paged.held_tokens == 256  # 250 + 6, which is a whole number of blocks
    assert lengths_of([1], [1], ServingRules(kv_admission="paged"), 16).held_tokens == 2


@pytest.mark.parametrize("model", ["llama-3-8b", "mixtral-8x7b"])
@pytest.mark.parametrize(("n_decode", "n_chunks"), [(1, 0), (7, 0), (5, 1), (0, 2)])
def test_seconds_of_an_iteration_are_those_of_the_cost_model(model, n_decode, n_chunks):
    """`costs.step_work` adds up the work of each sequence, and knows no moments."""
    gpu, shape = hs.gpu("a100-80gb"), hs.model(model)
    tier = hs.Tier(name="t", nodes=(hs.Node(name="n", gpu=gpu),))
    deployment = hs.Deployment(
        model=shape,
        network=hs.Network(name="n", tiers=(tier,)),
        requests=hs.Requests([0.0], [1024], [64]),
        runtime=hs.runtime("ideal", chunk_tokens=512),
    )
    instance = hs.to_serving_instance(deployment)
    blocks, c = instance.blocks, instance.lengths.chunk_tokens
    kind = 1  # a layer
    block = shape.blocks[1]
    parts = [(1.0, 1024 + 32 - 1, n_decode), (c, (1024 - c) / 2, n_chunks)]
    flops = sum(n * float(costs.step_work(block, q, at)[0]) for q, at, n in parts)
    work = [float(costs.step_work(block, q, at)[1]) for q, at, _ in parts]
    read = [float(costs.weight_read_bytes(block, q)) for q, _, _ in parts]
    tokens = n_decode + n_chunks * c
    moved = float(costs.weight_read_bytes(block, tokens)) + sum(
        n * (w - r) for (_, _, n), w, r in zip(parts, work, read, strict=True)
    )
    compute = n_decode * blocks.compute_token_s + n_chunks * blocks.compute_chunk_s
    experts = blocks.expert_s * (1 - blocks.idle_share**tokens)
    memory = n_decode * blocks.memory_token_s + n_chunks * blocks.memory_chunk_s
    seconds = blocks.fixed_s + np.maximum(compute, blocks.read_s + experts + memory)
    assert seconds[0, kind] == pytest.approx(float(costs.step_s(gpu, flops, moved)), rel=1e-12)


LINES = hs.Interconnect(
    name="lines",
    all_reduces=(
        hs.AllReduce(
            library="nccl", degree=2, switch_bytes=5e5, small_s=1e-5, small_s_per_byte=3e-11,
            large_s=2.5e-5, large_s_per_byte=1e-11,
        ),
    ),
)  # fmt: skip


def group_of_two(runtime, tokens=(600, 64)):
    pair = hs.Node(
        name="pair", gpu=hs.gpu("a100-80gb"), gpus=2, interconnect=LINES, tensor_parallel=2
    )
    return hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="n", tiers=(hs.Tier(name="t", nodes=(pair,)),)),
        requests=hs.Requests([0.0], [tokens[0]], [tokens[1]]),
        runtime=runtime,
    )


@pytest.mark.parametrize("chunk_tokens", [None, 100])
def test_a_tensor_parallel_group_takes_its_all_reduces(chunk_tokens):
    """A single user in the simulator, which adds up pass by pass, against the fluid model."""
    deployment = group_of_two(hs.runtime("ideal", chunk_tokens=chunk_tokens))
    instance = hs.to_serving_instance(deployment, users=1, think_time_s=1e9)
    whole = hs.Partition((0, 34))
    latencies = hs.evaluate_serving(instance, whole).latencies
    alone = hs.simulate(deployment, whole)
    assert latencies.latency_s == pytest.approx(alone.end_s[0], rel=1e-3)
    assert instance.blocks.collective_s.max() > 0


def test_reserved_kv_cache_is_rounded_up_to_slots():
    """Count KV cache in slots, as the simulator does where it admits requests."""
    slots = hs.runtime("ideal", slot_tokens=1024, max_num_seqs=10_000)
    assert hs.to_serving_instance(group_of_two(slots)).lengths.held_tokens == 1024
    given = hs.to_serving_instance(group_of_two(hs.runtime("ideal")), runtime=slots)
    assert given.lengths.held_tokens == given.lengths.resident_tokens == 1024
    assert given.rules.max_num_seqs == 10_000


def test_fields_that_came_later_are_left_out_where_they_are_0():
    """Files and digests of instances without linear terms are those of before."""
    instance = hs.to_serving_instance(group_of_two(hs.runtime("vllm")))
    later = {"mixed_s", "linear_token_s", "linear_chunk_s", "request_s"}
    tables = instance.to_dict()
    assert not later & {*tables["blocks"], *tables["rules"]}
    zeros = {name: np.zeros_like(instance.blocks.fixed_s) for name in later - {"request_s"}}
    same = replace(instance, blocks=replace(instance.blocks, **zeros))
    assert same.digest() == instance.digest()
    more = replace(instance, blocks=replace(instance.blocks, mixed_s=zeros["mixed_s"] + 1e-3))
    slow = more.replace(request_s=0.5)
    assert len({each.digest() for each in (instance, more, slow)}) == 3
    assert type(slow).from_dict(slow.to_dict()) == slow
