"""Ties between optimal splits: the one with the most room for KV cache, by enumeration."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.query import solve_query
from hypsolve.planning.room_for_kv import CLOSE
from hypsolve.problem.units import GIB
from tests.helpers.plans import plan_alone

LINK = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)


def chain(gpu, memories_gib):
    """Return a network of tiers of one node each, with equal GPUs and unequal memory."""
    nodes = [
        hs.Node(name=f"n-{k}", gpu=gpu, memory_bytes=gib * GIB)
        for k, gib in enumerate(memories_gib)
    ]
    tiers = [
        hs.Tier(name=node.name, nodes=(node,), link=LINK if k < len(nodes) - 1 else None)
        for k, node in enumerate(nodes)
    ]
    return hs.Network(name="chain", tiers=tuple(tiers))


def room_tokens(query, cuts):
    """Return the tokens that fit on every node, from the bytes of its blocks."""
    rooms = []
    for k, tier in enumerate(query.network.network.tiers):
        blocks = query.model.blocks[cuts[k] : cuts[k + 1]]
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        left = tier.nodes[0].usable_bytes - sum(block.weight_bytes for block in blocks)
        if kv_bytes:
            rooms.append(left // kv_bytes)
    return min(rooms)


def all_cuts(query, instance):
    """Return every legal split with its objective, its path and its room."""
    n, n_tiers = query.model.n_blocks, instance.n_tiers
    for inner in itertools.combinations(range(1, n), n_tiers - 1):
        cuts = (0, *inner, n)
        if not hs.check(instance, hs.Partition(cuts)):
            partition = hs.Partition(cuts)
            values = [
                hs.evaluate(instance, partition, objective=objective)
                for objective in (query.objective, "path")
            ]
            yield cuts, *values, room_tokens(query, cuts)


@pytest.mark.parametrize("objective", ["path", "bottleneck", "p0"])
@pytest.mark.parametrize("seed", range(6))
def test_no_equal_split_has_more_room(objective, seed):
    """Enumerate: an equal split with clearly more room would be printed instead."""
    rng = np.random.default_rng(seed)
    n_tiers = int(rng.integers(2, 4))
    network = chain(hs.gpu("rtx-3090"), rng.integers(12, 25, n_tiers).tolist())
    query = hs.PlanQuery.of("llama-3-8b", network, concurrency=2, objective=objective)
    solution = solve_query(query)
    result, own = solution.result, solution.result.partition
    plain = hs.solve(result.instance, "hypsplit_dp")
    assert result.status == "optimal" and result.bound_s == plain.bound_s
    assert result.objective_s == pytest.approx(plain.objective_s, rel=1e-12)
    known = list(all_cuts(query, result.instance))
    least_s = min(value for _, value, *_ in known)
    path_s = hs.evaluate(result.instance, plain.partition, objective="path")
    rooms = [
        room
        for _, value, alone_s, room in known
        if value <= least_s * (1 + 1e-12)
        and (objective != "bottleneck" or alone_s <= path_s * (1 + 1e-12))
    ]
    assert room_tokens(query, own.cuts) >= max(rooms) / CLOSE - 1
    if objective == "bottleneck":  # room is not bought with a longer path
        own_s = hs.evaluate(result.instance, own, objective="path")
        assert own_s <= path_s * (1 + 1e-12)
    if result.certificate is not None:
        assert result.certificate.cuts == own.cuts
        assert hs.verify_certificate(result.instance, result.certificate) == []


@pytest.mark.parametrize("runtime", ["ideal", "llama.cpp"])
def test_twins_share_the_layers(runtime):
    """Two equal cards: one was full, while its twin had gigabytes to spare."""
    network = chain(hs.gpu("rtx-4090"), [24, 24])
    query = {"objective": "path", "concurrency": 4, "runtime": runtime}
    plan = plan_alone("llama-2-13b", network, with_upgrades=False, **query)
    first, second = plan.nodes
    layer = max(block.weight_bytes for block in plan.model.blocks)
    assert abs(first.free_bytes - second.free_bytes) < 2 * layer
    chosen = plan_alone(
        "llama-2-13b", network, with_upgrades=False, method="hypsplit_dp", **query
    )
    assert chosen.result.objective_s == pytest.approx(plan.result.objective_s, rel=1e-12)
    if runtime == "ideal":  # HypSplit-DP's own split is the roomy one under llama.cpp
        assert plan.forecast.max_sequences > 2 * chosen.forecast.max_sequences
        assert "most room" in plan.result.message and "most room" not in chosen.result.message


def test_no_more_kv_cache_is_reserved_than_slots_use():
    """A server of four slots was refused for lack of room for sixteen sequences."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    site = hs.Network(name="home", tiers=(box,))
    long = {"prompt_tokens": 7168, "output_tokens": 1024, "with_upgrades": False}
    assert not plan_alone("llama-3-8b", site, **long).fits
    found = plan_alone("llama-3-8b", site, runtime="llama.cpp", **long)
    slots = hs.runtime("llama.cpp").max_num_seqs
    kv_bytes = sum(block.kv_bytes_per_token for block in found.model.blocks) * 8192
    assert found.fits and found.nodes[0].kv_bytes == slots * kv_bytes
    first = str(found).splitlines()[0]
    assert first.endswith(
        f"KV cache for {slots} sequences (all that runtime llama.cpp runs at once, of 16)"
    )
    two = plan_alone("llama-3-8b", site, runtime="llama.cpp", max_num_seqs=2, **long)
    assert two.nodes[0].kv_bytes == 2 * kv_bytes
    few = plan_alone("llama-3-8b", site, runtime="llama.cpp", concurrency=1, **long)
    assert few.nodes[0].kv_bytes == kv_bytes
    assert str(few).splitlines()[0].endswith("KV cache for 1 sequence")


@pytest.mark.parametrize("users", [3, 40])
def test_users_need_no_more_room_than_for_themselves(users):
    """Seventy billion weights in 4 bits leave two 3090 room for less than 16 sequences."""
    box = hs.Node(
        name="box", gpu=hs.gpu("rtx-3090"), gpus=2,
        interconnect=hs.interconnect("nvlink-bridge", "rtx-3090"),
    )  # fmt: skip
    found = hs.plan(
        "llama-3-70b", hs.Network(name="lab", tiers=(hs.Tier(name="t", nodes=(box,)),)),
        weights="awq", runtime="vllm", users=users, tensor_parallel=2, prompt_tokens=752,
        with_upgrades=False,
    )  # fmt: skip
    assert found.query.n_reserved == min(users, 16)
    assert found.fits == (users == 3)
