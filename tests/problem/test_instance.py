import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import (
    Block,
    Deployment,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Requests,
    Tier,
)
from hypsolve.problem.evaluation import check
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from tests.helpers import strategies


def expanded(given_):
    """Return the arrays that `from_tables` should give, by its documentation alone."""
    n_links = len(given_["tiers"]) - 1
    n_blocks = len(given_["block_bytes"])
    transfer = np.array(given_.get("transfer_s", np.zeros((1, n_links, n_blocks + 1))), float)
    occupancy = np.array(given_.get("occupancy_s", transfer), float)
    block_s = np.array(given_["block_s"], float)
    link_reference = given_.get("reference_transfer_s")
    if link_reference is None:
        link_busy = occupancy.mean(axis=0)
    else:
        link_busy = link_reference if "occupancy_s" not in given_ else occupancy.mean(axis=0)
    full = given_["link_cost"] == "full"
    return {
        "block_s": block_s,
        "reference_s": given_.get("reference_s", block_s.mean(axis=0)),
        "transfer_s": transfer,
        "reference_transfer_s": (
            transfer.mean(axis=0) if link_reference is None else link_reference
        ),
        "reference_link_s": (
            link_busy
            if not full
            else transfer.mean(axis=0)
            if link_reference is None
            else link_reference
        ),
    }


@given(strategies.arguments())
def test_from_tables_keeps_every_number(given_):
    instance = Instance.from_tables(**given_)
    for field, want in expanded(given_).items():
        np.testing.assert_allclose(getattr(instance, field), want, rtol=1e-15, err_msg=field)
    np.testing.assert_array_equal(instance.block_bytes, given_["block_bytes"])
    nodes = [(k, c, m) for k, tier in enumerate(given_["tiers"]) for c, m in tier]
    assert nodes == list(
        zip(
            instance.node_tier.tolist(),
            instance.node_class.tolist(),
            instance.node_bytes.tolist(),
            strict=True,
        )
    )
    for k, tier in enumerate(given_["tiers"]):
        assert instance.node_bytes[instance.nodes_of(k)].tolist() == [m for _, m in tier]
    assert (instance.n_tiers, instance.n_blocks) == (
        len(given_["tiers"]),
        len(given_["block_bytes"]),
    )


@given(strategies.arguments(max_requests=4))
def test_the_number_of_requests_is_the_one_length_above_one(given_):
    arrays = (given_["block_s"], given_.get("transfer_s", [0]), given_["arrival_s"])
    instance = Instance.from_tables(**given_)
    assert instance.n_requests == max(map(len, arrays))
    del given_["arrival_s"]
    assert Instance.from_tables(**given_).n_requests == max(map(len, arrays[:2]))


def test_one_arrival_is_shared_by_all_requests():
    instance = Instance.from_tables(np.ones((3, 1, 2)), [0, 0], [[(0, 0)]], arrival_s=[2.5])
    assert instance.arrival_s.tolist() == [2.5] * 3


@given(strategies.decisions())
def test_pins_and_limits_mean_what_they_say(decision):
    """The reference checks each block, not the cuts."""
    instance, partition = decision
    n_tiers = instance.n_tiers
    tier_of = [k for k in range(n_tiers) for _ in partition.stage(k)]
    free = Instance.from_tables(
        instance.block_s, np.zeros(instance.n_blocks), [[(0, 0)]] * n_tiers, allow_empty=True
    )
    assert check(free, partition) == []
    for block, tier in enumerate(tier_of):
        for other in range(n_tiers):
            pinned = Instance.from_tables(
                instance.block_s,
                np.zeros(instance.n_blocks),
                [[(0, 0)]] * n_tiers,
                allow_empty=True,
                pinned={block: other},
            )
            assert (check(pinned, partition) == []) == (other == tier)
    strict = Instance.from_tables(
        instance.block_s, np.zeros(instance.n_blocks), [[(0, 0)]] * n_tiers
    )
    assert (check(strict, partition) == []) == (set(tier_of) == set(range(n_tiers)))


def test_blocks_and_cuts_of_equal_cost_share_a_kind():
    block_s = np.array([[[1, 2, 2, 1, 3]], [[1, 2, 2, 4, 3]]])
    instance = Instance.from_tables(
        block_s, np.zeros(5), [[(0, 0)], [(0, 0)]], np.array([[[5, 5, 6, 5, 5, 0]]])
    )
    assert instance.kind_s.shape == (2, 1, 4)
    assert instance.transfer_kind_s.shape == (1, 1, 3)
    # blocks that differ for the reference alone are of different kinds
    reference = np.array([[1, 2, 7, 1, 3]])
    assert (
        Instance.from_tables(
            block_s, np.zeros(5), [[(0, 0)]], reference_s=reference
        ).reference_s.tolist()
        == reference.tolist()
    )


@given(strategies.arguments())
def test_digest_is_of_what_is_given_not_of_how(given_):
    digest = Instance.from_tables(**given_).digest()
    assert len(digest) == 64
    other = dict(given_)
    for field in ("block_s", "transfer_s", "occupancy_s", "reference_s", "block_bytes"):
        if field in given_:
            array = np.array(given_[field], dtype=">f8")  # big-endian, Fortran order, strided
            other[field] = np.asfortranarray(np.repeat(array, 2, axis=-1))[..., ::2]
    other["tiers"] = tuple(
        tuple((np.int32(c), np.float64(m)) for c, m in t) for t in given_["tiers"]
    )
    other["name"] = "another name"
    assert Instance.from_tables(**other).digest() == digest
    assert (
        Instance.from_tables(**given_).replace(name="x", extrapolated=True).digest() == digest
    )


@pytest.mark.parametrize("zero", [0, 0.0, np.float64(0), -0.0])
def test_zero_is_one_number_to_the_digest(zero):
    def digest(value):
        return Instance.from_tables(
            [[[1.0, value]]], [value, 1], [[(0, 1)]], tied_bytes=value, arrival_s=[value]
        ).digest()

    assert digest(zero) == digest(0.0)


CHANGES = {
    "block_s": [[[1, 2, 3], [4, 5, 7]]],
    "block_bytes": [2, 1, 2],
    "tiers": [[(0, 9)], [(1, 8)]],
    "transfer_s": [[[1, 2, 1, 0]]],
    "occupancy_s": [[[0, 1, 1, 0]]],
    "arrival_s": [1],
    "reference_s": [[1, 2, 3], [4, 5, 8]],
    "reference_transfer_s": [[1, 2, 2, 0]],
    "objective": "path",
    "stage_rule": "fastest",
    "allow_empty": True,
    "overlap": True,
    "link_cost": "full",
    "pinned": {1: 0},
    "min_blocks": [2, 1],
    "max_blocks": [2, 1],
    "tied_bytes": 0.5,
}
BASE = {
    "block_s": [[[1, 2, 3], [4, 5, 6]]],
    "block_bytes": [2, 1, 1],
    "tiers": [[(0, 9)], [(1, 9)]],
    "transfer_s": [[[1, 2, 3, 0]]],
}


@pytest.mark.parametrize("field", CHANGES)
def test_digest_sees_every_field(field):
    changed = Instance.from_tables(**(BASE | {field: CHANGES[field]}))
    assert changed.digest() != Instance.from_tables(**BASE).digest()


@given(
    strategies.arguments(), st.sampled_from(["objective", "link_cost", "stage_rule", "overlap"])
)
def test_replace_is_making_it_anew(given_, field):
    change = {
        field: {"objective": "path", "link_cost": "full", "stage_rule": "slowest"}.get(
            field, True
        )
    }
    anew = Instance.from_tables(**(given_ | change))
    assert Instance.from_tables(**given_).replace(**change).digest() == anew.digest()


@given(strategies.arguments(max_blocks=4, max_tiers=3), st.booleans())
def test_replace_of_allow_empty_changes_what_is_legal(given_, allow_empty):
    replaced = Instance.from_tables(**given_).replace(allow_empty=allow_empty)
    anew = Instance.from_tables(**(given_ | {"allow_empty": allow_empty}))
    n_blocks = anew.n_blocks
    for cut in range(n_blocks + 1):
        partition = Partition((0, *[cut] * (anew.n_tiers - 1), n_blocks))
        assert check(replaced, partition) == check(anew, partition)


def test_replace_validates_again():
    with pytest.raises(ValueError, match="block_bytes"):
        Instance.from_tables(**BASE).replace(block_bytes=[1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match="allow_empty must be False for objective p0"):
        Instance.from_tables(**BASE, allow_empty=True).replace(objective="p0")


def test_an_instance_cannot_be_changed_by_accident():
    block_s = np.ones((1, 2, 3))
    instance = Instance.from_tables(**(BASE | {"block_s": block_s}))
    digest = instance.digest()
    block_s[:] = 7  # the user's array is copied
    assert instance.digest() == digest
    with pytest.raises(ValueError, match="read-only"):
        instance.kind_s[:] = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        instance.overlap = True


def deployment(n_tiers=3, requests=((0.0, 100, 20), (1.5, 7, 300)), twins=False):
    """Return a small mixed deployment; `twins` adds a second kind of block of equal cost."""
    layer = {
        "weight_bytes": 1000,
        "always_read_bytes": 1000,
        "kv_bytes_per_token": 3,
        "flops_per_token": 2000.0,
        "attention_flops_per_pair": 5.0,
        "output_bytes_per_token": 64,
    }
    blocks = (
        Block(kind="embedding", weight_bytes=500, output_bytes_per_token=64),
        *(Block(kind="layer", **layer) for _ in range(4)),
        *(Block(kind="twin", **layer) for _ in range(2 * twins)),
        Block(kind="head", weight_bytes=600, always_read_bytes=600, flops_per_token=900.0),
    )
    gpus = [
        GpuProfile(name=f"gpu-{g}", t0_s=1e-3, flops_per_s=1e5 * (g + 1), bytes_per_s=3e4,
                   memory_bytes=1e5)
        for g in range(3)
    ]  # fmt: skip
    tiers = tuple(
        Tier(
            name=f"tier {k}",
            nodes=tuple(
                Node(name=f"node {k}.{j}", gpu=gpus[(k + j) % 3]) for j in range(k + 1)
            ),
            link=None if k == n_tiers - 1 else Link(bytes_per_s=1e4, latency_s=0.01 * (k + 1)),
        )
        for k in range(n_tiers)
    )
    arrival_s, prompt, output = zip(*requests, strict=True)
    return Deployment(
        model=Model(name="small", blocks=blocks, tied_bytes=100),
        network=Network(name="mixed", tiers=tiers),
        requests=Requests(np.array(arrival_s), np.array(prompt), np.array(output)),
    )


@pytest.mark.parametrize(
    "made_from",
    [
        {},
        {"n_tiers": 1},
        {"n_tiers": 2, "twins": True},
        {"requests": ((0.0, 50, 9), (2.0, 50, 9))},
        {"requests": ((0.0, 1, 1),)},
    ],
    ids=str,
)
def test_a_compiled_deployment_is_its_own_tables(made_from):
    compiled = to_instance(deployment(**made_from))
    nodes = zip(
        compiled.node_tier.tolist(),
        compiled.node_class.tolist(),
        compiled.node_bytes.tolist(),
        strict=True,
    )
    tiers = [[] for _ in range(compiled.n_tiers)]
    for k, kind, memory in nodes:
        tiers[k].append((kind, memory))
    by_hand = Instance.from_tables(
        compiled.block_s,
        compiled.block_bytes,
        tiers,
        compiled.transfer_s,
        compiled.occupancy_kind_s[:, :, compiled.cut_kind],
        compiled.arrival_s,
        tied_bytes=compiled.tied_bytes,
    )
    for field in ("block_s", "reference_s", "transfer_s", "reference_link_s", "arrival_s"):
        np.testing.assert_array_equal(getattr(by_hand, field), getattr(compiled, field))
    assert by_hand.digest() == compiled.digest()
    # nothing crosses after the last block, and a relay pays
    assert (compiled.transfer_s[:, :, -1] == 0).all()
    assert (compiled.transfer_s[:, :, :-1] > 0).all()


def test_instances_are_equal_if_their_digests_are():
    first = Instance.from_tables([[[1.0, 2]]], [1, 1], [[(0, 2)]], name="one")
    same = Instance.from_tables([[[1, 2.0]]], [1.0, 1], [[(0, 2.0)]], name="two")
    assert first == same
    assert hash(first) == hash(same)
    assert first != same.replace(overlap=True)
    assert first != "one"
    assert repr(first) == "<Instance 'one': 1 request, 2 blocks, 1 tier, 1 node, bottleneck>"


def test_replace_takes_the_names_of_from_tables():
    instance = Instance.from_tables(
        np.ones((1, 1, 4)), np.zeros(4), [[(0, 1)]] * 2, min_blocks=[1, 1]
    )
    pinned = instance.replace(pinned={1: 1}, min_blocks=[0, 2], max_blocks=[4, 3])
    direct = Instance.from_tables(
        np.ones((1, 1, 4)), np.zeros(4), [[(0, 1)]] * 2,
        pinned={1: 1}, min_blocks=[0, 2], max_blocks=[4, 3],
    )  # fmt: skip
    assert pinned == direct
    with pytest.raises(TypeError, match="unknown field 'block_s'; did you mean kind_s"):
        instance.replace(block_s=[1])
    with pytest.raises(TypeError, match="instance: unknown field 'xyz'; choose one of"):
        instance.replace(xyz=[1])


def test_an_unknown_name_is_answered_with_the_likeliest():
    with pytest.raises(ValueError, match=r"unknown gpu 'RTX 4090'; did you mean rtx-4090\?"):
        hypsolve.gpu("RTX 4090")


@pytest.mark.parametrize(("old", "new"), [("least_blocks", "min_"), ("most_blocks", "max_")])
@pytest.mark.parametrize("call", ["from_tables", "from_kinds", "replace", "to_instance"])
def test_an_old_name_suggests_its_successor(call, old, new):
    calls = {
        "from_tables": lambda **limits: Instance.from_tables(**BASE, **limits),
        "from_kinds": lambda **limits: Instance.from_kinds(**limits),
        "replace": Instance.from_tables(**BASE).replace,
        "to_instance": lambda **limits: to_instance(deployment(), **limits),
    }
    with pytest.raises(TypeError, match=rf"unknown \w+ '{old}'; did you mean {new}blocks\?"):
        calls[call](**{old: [1, 1]})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("least_blocks", "; did you mean min_blocks?"), ("n_block", "; did you mean n_blocks?"),
     ("_n_blocks", ""), ("xyz", "")],
)  # fmt: skip
def test_an_old_attribute_suggests_its_successor(name, hint):
    instance = Instance.from_tables(**BASE)
    with pytest.raises(AttributeError) as caught:
        getattr(instance, name)
    assert str(caught.value) == f"'Instance' object has no attribute {name!r}{hint}"
    assert not hasattr(instance, "__array__")
    assert copy.deepcopy(instance) == pickle.loads(pickle.dumps(instance)) == instance


def test_an_instance_shows_its_tiers_in_a_notebook():
    instance = Instance.from_tables(**BASE, name="<lab> & co")
    html = instance._repr_html_()
    assert "&lt;lab&gt; &amp; co" in html and "<lab>" not in html
    for text in ("1 request, 3 blocks, 2 tiers, 2 nodes", "tier-1", "class-1", "9 bytes"):
        assert text in html


def two_tiers(output_tokens):
    """Deployment of three blocks on two tiers behind a link with latency."""
    gpu = GpuProfile(name="g", t0_s=1e-4, flops_per_s=1e12, bytes_per_s=1e11, memory_bytes=1e9)
    block = dict(
        kind="layer", weight_bytes=10**6, flops_per_token=1e6,
        output_bytes_per_token=1000,
    )  # fmt: skip
    link = Link(bytes_per_s=1e8, latency_s=0.01)
    network = Network(
        name="n",
        tiers=(
            Tier(name="edge", nodes=(Node(name="a", gpu=gpu),), link=link),
            Tier(name="cloud", nodes=(Node(name="b", gpu=gpu),)),
        ),
    )
    n = len(output_tokens)
    return Deployment(
        model=Model(name="m", blocks=tuple(Block(**block) for _ in range(3))),
        network=network,
        requests=Requests([0.0] * n, [8] * n, output_tokens),
    )


@pytest.mark.parametrize("first", [{}, {"allow_empty": True, "min_blocks": [1, 0]}])
def test_an_empty_first_tier_that_was_not_compiled_is_refused(first):
    """`replace` kept transfers that charged an empty edge the WAN for every token."""
    compiled = to_instance(two_tiers([100]), objective="path", **first)
    with pytest.raises(ValueError, match=r"to_instance\(deployment, allow_empty=True"):
        compiled.replace(allow_empty=True, min_blocks=[0, 0])
    anew = to_instance(two_tiers([100]), objective="path", allow_empty=True)
    assert anew.replace(allow_empty=False).replace(allow_empty=True) == anew
    assert anew.reference_transfer_s[0, 0] < compiled.reference_transfer_s[0, 0] / 50
    kept = compiled.replace(allow_empty=True, min_blocks=[1, 0])  # the last tier alone
    assert check(kept, Partition((0, 3, 3))) == []


def test_an_empty_first_tier_is_allowed_where_it_costs_what_was_compiled():
    """One token crosses each link once, in both compilations; a single tier has no link."""
    compiled = to_instance(two_tiers([1, 1]), objective="path")
    anew = to_instance(two_tiers([1, 1]), objective="path", allow_empty=True)
    assert compiled.replace(allow_empty=True) == anew
    tables = Instance.from_tables(**BASE)
    assert tables.replace(allow_empty=True) == Instance.from_tables(**BASE, allow_empty=True)


def test_what_a_first_tier_was_compiled_for_is_not_in_the_digest():
    compiled = to_instance(two_tiers([100]))
    assert not compiled.empty_first_tier
    assert compiled.replace(empty_first_tier=True).digest() == compiled.digest()
    with pytest.raises(TypeError, match="empty_first_tier"):
        compiled.replace(empty_first_tier="no")
