"""`replan` knows blocks by the nodes that hold them, where tiers change their names."""

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.earlier_plan import placement

WIRE = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
BRIDGE = hs.interconnect("nvlink-bridge", "rtx-3090")
ASKED = {"weights": "q4_k_m", "runtime": "llama.cpp", "users": 1, "concurrency": 1}


def home(gpus):
    """A machine of some GPUs, and a slower one that the next network needs."""
    fields = {"interconnect": BRIDGE, "gpus": gpus} if gpus > 1 else {}
    box = hs.Node(name="card", gpu=hs.gpu("rtx-3090"), host="box.lan", **fields)
    pc = hs.Node(name="pc", gpu=hs.gpu("apple-m2-max"), memory_bytes=96e9)
    tiers = (
        hs.Tier(name="box", nodes=(box,), link=WIRE),
        hs.Tier(name="pc", nodes=(pc,)),
    )
    return NetworkFile(network=hs.Network(name="home", tiers=tiers), min_blocks=(0, 0))


@pytest.fixture(scope="module")
def before():
    plan = hs.plan("llama-3-70b", home(2), with_upgrades=False, **ASKED)
    held = {node.node: node.blocks for node in plan.nodes if node.is_used}
    assert set(held) == {"card/0", "card/1"}  # one behind the other, as box/card/0 and /1
    return plan


def test_the_card_that_is_left_keeps_its_blocks(before):
    """The tier box/card/0 is the tier box now, and the group card/0 is the node card."""
    held = placement(before).blocks_of_node["card/0"]
    n_others = before.model.n_blocks - len(held)
    again = hs.replan("llama-3-70b", home(1), before, max_moves=n_others)
    box, pc = (again.partition.stage(k) for k in range(2))
    assert again.reason == "" and pc and set(box) & set(held)
    assert again.n_moved == sum(b not in held for b in box) + len(pc) <= n_others
    assert again.min_moves <= again.n_moved
    blocks = before.model.blocks
    new = sum(blocks[b].weight_bytes for b in box if b not in held)
    assert again.moved_bytes.get("card", 0) == new
    assert again.moved_bytes["pc"] == sum(blocks[b].weight_bytes for b in pc)


def test_nodes_of_equal_names_come_before_groups(before):
    """A name that the earlier plan has is that node, even if another looks like its group."""
    old = placement(before)
    assert old.held_by("card") == old.held_by("card/0") == old.blocks_of_node["card/0"]
    assert old.held_by("card/1") == old.blocks_of_node["card/1"]
    assert old.held_by("card/1/0") == old.blocks_of_node["card/1"]
    assert old.held_by("other") == range(0)


def test_blocks_were_where_their_tier_or_one_of_their_nodes_is(before):
    """Each entry of the table against its definition."""
    again = hs.replan("llama-3-70b", home(1), before, max_moves=before.model.n_blocks)
    old, instance = placement(before), again.instance
    table = old.was_in(instance)
    for k, b in np.ndindex(table.shape):
        nodes = [
            name
            for tier, name in zip(instance.node_tier, instance.node_names, strict=True)
            if tier == k
        ]
        by_name = old.tier_of_block[b] == instance.tier_names[k]
        assert table[k, b] == (by_name or any(b in old.held_by(name) for name in nodes))
