"""Named networks and generators: their properties, and the arguments they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instances
from hypsolve import catalog
from hypsolve.formats import instance_json
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Block, Model
from hypsolve.problem.evaluation import can_hold, stage_s
from hypsolve.problem.instance import Instance, Objective
from instances import freeze, network, networks
from instances.frontier import TIER_SPEEDS, frontier, profiled
from instances.generate import DRAWN_GPUS, LINK_CLASSES, generate, place, stretched
from instances.scenarios import (
    SCENARIOS,
    best_period_s,
    capacity_per_s,
    deployment,
    scenario,
    scenario_network,
)

PAPER_MODELS = ("phi-3-medium", "llama-3-8b")
EVEN_SPLIT_FITS = {
    "branch-offices-wan",
    "campus",
    "home-lab",
    "mixed-rack",
    "operator-5-tier",
    "two-regions",
}


def even_split(n_blocks, n_tiers):
    """Return the even split, whose remainder goes to the later tiers."""
    each, more = divmod(n_blocks, n_tiers)
    sizes = [each] * (n_tiers - more) + [each + 1] * more
    return [0, *np.cumsum(sizes).tolist()]


def even_split_fits(instance):
    cuts = even_split(instance.n_blocks, instance.n_tiers)
    return all(
        can_hold(instance, k, cuts[k], cuts[k + 1]).any() for k in range(instance.n_tiers)
    )


# named networks


def test_there_are_networks_of_two_to_five_tiers():
    sizes = [len(instances.network(name).tiers) for name in instances.networks()]
    assert len(sizes) >= 7
    assert set(sizes) == {2, 3, 4, 5}
    assert instances.networks() == SCENARIOS


@pytest.mark.parametrize("name", instances.networks())
def test_network_says_what_it_is_and_rises_in_speed(name):
    network = instances.network(name)
    assert network.name == name
    assert len(instances.describe(name)) > 20
    assert "/" not in instances.describe(name)
    first, last = (max(n.gpu.bytes_per_s for n in network.tiers[k].nodes) for k in (0, -1))
    assert first < last
    assert len({node.gpu for tier in network.tiers for node in tier.nodes}) > 1


@pytest.mark.parametrize("name", instances.networks())
@pytest.mark.parametrize("model", PAPER_MODELS)
def test_some_partition_fits_both_paper_models(name, model):
    assert np.isfinite(best_period_s(scenario(name, model, n_requests=5, seed=0)))


@pytest.mark.parametrize("name", sorted(EVEN_SPLIT_FITS))
@pytest.mark.parametrize("model", PAPER_MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_even_split_fits(name, model, seed):
    instance = scenario(name, model, n_requests=50, seed=seed)
    assert instance.n_blocks == {"phi-3-medium": 42, "llama-3-8b": 34}[model]
    assert even_split_fits(instance)


def test_even_split_does_not_fit_everywhere():
    fits = {
        (name, model): even_split_fits(scenario(name, model, n_requests=5, seed=0))
        for name in SCENARIOS
        for model in PAPER_MODELS
    }
    assert {name for name in SCENARIOS if all(fits[name, m] for m in PAPER_MODELS)} == (
        EVEN_SPLIT_FITS
    )
    assert not any(fits["phone-edge-cloud-5g", model] for model in PAPER_MODELS)
    assert not fits["factory", "phi-3-medium"]


def test_two_gib_less_and_the_even_split_fails():
    # the fact above must be able to fail: it is the memory that decides
    instance = scenario("operator-5-tier", "phi-3-medium", n_requests=5, seed=0)
    assert even_split_fits(instance)
    assert not even_split_fits(instance.replace(node_bytes=instance.node_bytes - 2 * 2**30))


GOOD = """
description = "two machines"
[[tiers]]
name = "here"
nodes = [{gpu = "l4", count = 2, reserved_gib = 2.4, source = "s"}]
link = {gbps = 1.0, gbps_source = "s", latency_ms = 2.0, latency_source = "s"}
[[tiers]]
name = "there"
nodes = [
  {gpu = "l4", count = 1, memory_gib = 20, source = "s"},
  {gpu = "l4", count = 1, source = "s"},
]
"""


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return instances.read_network(path)


def test_read_network(tmp_path):
    network = read(tmp_path, GOOD)
    here, there = network.tiers
    assert network.name == "mine"
    assert [n.name for n in here.nodes] == ["here-l4-0", "here-l4-1"]
    assert [n.name for n in there.nodes] == ["there-l4-0", "there-l4-1"]
    assert here.nodes[0].usable_bytes == pytest.approx((24 - 2.4) * 2**30)
    assert there.nodes[0].usable_bytes == 20 * 2**30
    assert (here.link.bytes_per_s, here.link.latency_s) == (1.25e8, 0.002)
    assert here.link.round_trip_s == 0.004
    both = GOOD.replace("latency_ms = 2.0", "latency_ms = 2.0, return_latency_ms = 5.0")
    assert read(tmp_path, both).tiers[0].link.round_trip_s == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"l4"', '"l5"', "unknown gpu 'l5'; did you mean l4"),
        (
            "count = 2",
            "count = 0",
            r"mine\.toml: tier 0 'here' nodes 0: count must be at least 1, got 0",
        ),
        ("count = 2", 'count = "2"', "count must be a whole number, got '2'"),
        ('gpu = "l4", count = 2', "count = 2", "tier 0 'here' nodes 0: key 'gpu' is missing"),
        (
            "gbps = 1.0",
            "gbps = 0",
            "tier 0 'here' link: gbps must be positive and finite, got 0",
        ),
        (
            "gbps = 1.0",
            "mbps = 1.0",
            "tier 0 'here' link: unknown key 'mbps'; did you mean gbps. known: ",
        ),
        (
            "latency_ms = 2.0",
            "latency_ms = -1",
            "latency_ms must be finite and not negative, got -1",
        ),
        ("latency_ms = 2.0", "latency_ms = nan", "latency_ms must be finite"),
        (
            "reserved_gib = 2.4",
            "reserved_gib = 99",
            "reserved_gib must be below the memory, .* GiB, got 99",
        ),
        (
            "reserved_gib = 2.4",
            "reserve = 2.4",
            "unknown key 'reserve'; did you mean reserved_gib. known: ",
        ),
        ('source = "s"}', 'source = ""}', "source must not be empty"),
        ('name = "there"', 'name = "here"', "tier names must be distinct, got 'here' twice"),
        ("description", "[", "not TOML"),
        (GOOD[GOOD.index("[[tiers]]") :], "tiers = []", "tiers must be a list of at least one"),
        (GOOD[GOOD.index("[[tiers]]") :], "tiers = 3", "tiers must be a list of at least one"),
        (GOOD[GOOD.index("[[tiers]]") :], "tiers = [3]", "tier 0: must be a table, got 3"),
        ("link = {", "nolink = {", "unknown key 'nolink'"),
        ('"two machines"', "3", r"mine\.toml: description must be a string, got 3"),
        (
            "memory_gib = 20",
            'memory_gib = "20"',
            "tier 1 'there' nodes 0: memory_gib must be a number, got '20'",
        ),
        ("memory_gib = 20", "memory_gib = 0", "memory_gib must be positive and finite, got 0"),
        ("reserved_gib = 2.4", "reserved_gib = -1", "reserved_gib must be .*not negative, got"),
        ("count = 2", "count = 1000000000", "count must be at most 100000, got 1000000000"),
    ],
)
def test_wrong_network(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises((ValueError, TypeError), match=message):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_unknown_names_list_the_choices():
    with pytest.raises(
        ValueError, match="unknown network 'moon'; choose one of branch-offices"
    ):
        instances.network("moon")
    with pytest.raises(
        ValueError, match="unknown scenario 'moon'; choose one of branch-offices"
    ):
        scenario("moon", n_requests=1, seed=0)
    with pytest.raises(ValueError, match="unknown lengths 'long'; choose one of synthetic"):
        scenario("campus", n_requests=1, seed=0, lengths="long")
    with pytest.raises(ValueError, match="unknown link class 'string'; choose one of rack"):
        generate(seed=0, link_class="string")


# scenarios and load


def test_scenario_is_a_function_of_its_arguments():
    arguments = {"n_requests": 7, "seed": 3, "objective": "mean_latency", "overlap": True}
    one, two = (scenario("campus", "phi-3-medium", **arguments) for _ in range(2))
    assert one.digest() == two.digest()
    assert one.objective is Objective.MEAN_LATENCY and one.overlap
    other = scenario("campus", "phi-3-medium", **(arguments | {"seed": 4}))
    assert other.digest() != one.digest()


def test_quantised_weights_are_marked():
    assert not scenario("campus", n_requests=2, seed=0).extrapolated
    assert scenario("campus", n_requests=2, seed=0, weights="int4").extrapolated


def test_load_only_stretches_time():
    calm, busy = (scenario("campus", n_requests=20, seed=1, load=load) for load in (0.4, 0.8))
    np.testing.assert_allclose(calm.arrival_s, 2 * busy.arrival_s)
    np.testing.assert_array_equal(calm.kind_s, busy.kind_s)
    burst = scenario("campus", n_requests=20, seed=1, load=np.inf)
    assert not burst.arrival_s.any()
    timed = scenario("campus", n_requests=2000, seed=1, rate=5.0)
    assert 2000 / timed.arrival_s[-1] == pytest.approx(5.0, rel=0.1)


def test_capacity_of_one_tier_is_the_sum_of_its_nodes():
    # 3 blocks: 6 s on a node of the first class, 3 s on one of the second; one is too small
    instance = Instance.from_tables(
        [[[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]], [1, 1, 1], [[(0, 3), (1, 3), (1, 2)]]
    )
    assert capacity_per_s(instance) == pytest.approx(1 / 6 + 1 / 3)


@pytest.mark.parametrize("load", [0.35, 0.7])
@pytest.mark.parametrize("lengths", ["synthetic", "azure_conversation"])
def test_load_is_the_share_of_what_the_best_partition_serves(load, lengths):
    instance = scenario("campus", n_requests=5000, seed=2, load=load, lengths=lengths)
    rate_per_s = instance.n_requests / instance.arrival_s[-1]
    assert rate_per_s * best_period_s(instance) == pytest.approx(load, rel=0.05)


@pytest.mark.parametrize("load", [0, -1, np.nan])
def test_wrong_load(load):
    with pytest.raises(ValueError, match="load must be positive"):
        scenario("campus", n_requests=2, seed=0, load=load)


def generated(**options):
    return generate(**({"seed": 0, "n_requests": 2} | options))


def campus(**options):
    return scenario("campus", **({"n_requests": 2} | options))


def small_frontier(**options):
    return frontier(**({"n_requests": 2, "seed": 1} | options))


def small_profiled(**options):
    return profiled(**({"n_requests": 2, "seed": 1} | options))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (generated, {"seed": -1}, ValueError, "generate: seed must be at least 0, got -1"),
        (generated, {"seed": "a"}, TypeError, "generate: seed must be a whole number, got 'a'"),
        (generated, {"seed": None}, TypeError, "generate: seed must be a whole number"),
        (
            generated,
            {"nodes_per_tier": 2.5},
            TypeError,
            "generate: nodes_per_tier must be one for all or a sequence, got 2.5",
        ),
        (generated, {"nodes_per_tier": (1, 1.5, 1)}, TypeError, "must be a whole number"),
        (
            generated,
            {"link_class": 3},
            TypeError,
            "generate: link_class must be one for all or a sequence, got 3",
        ),
        (generated, {"load": "x"}, TypeError, "load must be a number, got 'x'"),
        (generated, {"rate": "x"}, TypeError, "rate must be a number, got 'x'"),
        (generated, {"rate": 1e-320}, ValueError, "arrival_s must be"),
        (
            generated,
            {"max_resident_tokens": "x"},
            TypeError,
            "max_resident_tokens must be a whole number, got 'x'",
        ),
        (generated, {"model": None}, TypeError, "model must be a name or a Model, got None"),
        (generated, {"memory_tightness": "x"}, TypeError, "generate: memory_tightness must be"),
        (generated, {"lengths": []}, ValueError, r"unknown lengths \[\]; choose one of"),
        (
            generated,
            {"foo": 1},
            TypeError,
            "generate: unknown option 'foo'; it also takes objective, .*pinned",
        ),
        (
            generated,
            {"model": Model(name="one", blocks=(Block(kind="a", weight_bytes=1),)),
             "n_blocks": 5},
            ValueError,
            "model 'one': must have layers to repeat, got 1 blocks",
        ),
        (campus, {"seed": -1}, ValueError, "scenario: seed must be at least 0, got -1"),
        (campus, {"seed": 0.5}, TypeError, "scenario: seed must be a whole number, got 0.5"),
        (campus, {"load": None}, TypeError, "scenario: load must be a number, got None"),
        (campus, {"model": 3}, TypeError, "model must be a name or a Model, got 3"),
        (campus, {"foo": 1}, TypeError, "scenario: unknown option 'foo'; it also takes"),
        (small_frontier, {"seed": -1}, ValueError, "frontier: seed must be at least 0"),
        (small_frontier, {"n_requests": 0}, ValueError, "n_requests must be at least 1, got 0"),
        (small_frontier, {"n_blocks": 0}, ValueError, "frontier: n_blocks must be at least 3"),
        (small_frontier, {"nodes_per_tier": 3}, TypeError, "nodes_per_tier must be a sequence"),
        (
            small_frontier,
            {"nodes_per_tier": (1, 0)},
            ValueError,
            r"nodes_per_tier\[1\] must be at least 1, got 0",
        ),
        (small_frontier, {"load": "x"}, TypeError, "frontier: load must be a number, got 'x'"),
        (small_frontier, {"burst": 1}, TypeError, "burst must be True or False, got 1"),
        (small_profiled, {"seed": -1}, ValueError, "profiled: seed must be at least 0"),
        (small_profiled, {"nodes_per_tier": ()}, ValueError, r"must have 1\.\.5 entries"),
        (small_profiled, {"load": 0}, ValueError, "profiled: load must be positive and finite"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(make, options, error, message):
    make()
    with pytest.raises(error, match=message):
        make(**options)


def test_unknown_names_may_be_anything():
    for odd in ([], None, 3):
        with pytest.raises(ValueError, match=r"unknown network .*; choose one of branch"):
            instances.network(odd)
    with pytest.raises(TypeError, match="read_network: path must be a string or a path, got 3"):
        instances.read_network(3)


def test_infeasible_scenario_still_has_arrivals():
    instance = scenario("home-lab", "llama-3-70b", n_requests=5, seed=0)
    assert np.isinf(best_period_s(instance))
    assert 0 < capacity_per_s(instance) < np.inf
    assert instance.arrival_s[-1] > 0


def best_by_enumeration(instance):
    def best(tier, first):
        if tier == instance.n_tiers:
            return 0.0 if first == instance.n_blocks else np.inf
        start = first if instance.allow_empty else first + 1
        return min(
            (
                max(stage_s(instance, tier, first, end, "pooled"), best(tier + 1, end))
                for end in range(start, instance.n_blocks + 1)
            ),
            default=np.inf,
        )

    return best(0, 0)


@given(data=st.data(), allow_empty=st.booleans())
def test_best_period_is_that_of_enumeration(data, allow_empty):
    n_tiers, n_blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    number = st.integers(0, 8)
    instance = Instance.from_tables(
        block_s=[[[data.draw(number) for _ in range(n_blocks)] for _ in range(2)]],
        block_bytes=[data.draw(st.integers(1, 4)) for _ in range(n_blocks)],
        tiers=[
            [(data.draw(st.integers(0, 1)), data.draw(number)) for _ in range(2)]
            for _ in range(n_tiers)
        ],
        allow_empty=allow_empty,
        tied_bytes=1,
    )
    assert best_period_s(instance) == pytest.approx(best_by_enumeration(instance), rel=1e-12)


# generator


@pytest.mark.parametrize("seed", range(5))
def test_generated_instance_is_reproducible_and_feasible(seed):
    arguments = {"seed": seed, "n_tiers": 4, "nodes_per_tier": (3, 2, 2, 1), "n_requests": 10}
    instance = generate(**arguments)
    assert instance.digest() == generate(**arguments).digest()
    assert instance.digest() != generate(**(arguments | {"seed": seed + 100})).digest()
    assert np.bincount(instance.node_tier).tolist() == [3, 2, 2, 1]
    assert np.isfinite(best_period_s(instance))


def test_generator_options():
    same = generate(seed=1, heterogeneity=0, nodes_per_tier=4, n_requests=3)
    assert all(len(set(same.node_class[same.nodes_of(k)])) == 1 for k in range(3))
    mixed = generate(seed=1, heterogeneity=1, nodes_per_tier=8, n_requests=3)
    assert all(len(set(mixed.node_class[mixed.nodes_of(k)])) > 1 for k in range(3))
    loose, tight = (generate(seed=1, memory_tightness=t, n_requests=3) for t in (0.3, 0.9))
    assert loose.node_bytes.sum() > 2 * tight.node_bytes.sum()
    assert generate(seed=1, n_blocks=7, n_requests=3).n_blocks == 7
    assert generate(seed=1, n_blocks=100, model="gemma-2-9b", n_requests=3).n_blocks == 100
    assert generate(seed=1, n_tiers=1, memory_tightness=None, n_requests=1).n_tiers == 1
    wan, rack = (generate(seed=1, link_class=c, n_requests=3) for c in ("wan", "rack"))
    assert (
        wan.reference_transfer_kind_s[:, 0] > 100 * rack.reference_transfer_kind_s[:, 0]
    ).all()
    two = generate(seed=1, link_class=("5g", "rack"), n_requests=3)
    assert two.reference_transfer_kind_s[0, 0] > 100 * two.reference_transfer_kind_s[1, 0]


@pytest.mark.parametrize("name", LINK_CLASSES)
def test_every_link_class_works(name):
    assert generate(seed=0, link_class=name, n_requests=2).n_tiers == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory_tightness": 1.5},
            r"memory_tightness must leave a feasible partition, got 1\.5",
        ),
        ({"memory_tightness": 0}, "memory_tightness must be positive and finite, got 0"),
        ({"heterogeneity": 2}, "heterogeneity must be at most 1, got 2"),
        ({"nodes_per_tier": (1, 2)}, "nodes_per_tier must have 3 entries, got"),
        ({"nodes_per_tier": 0}, "nodes_per_tier must be at least 1, got 0"),
        ({"link_class": ("lan",)}, "link_class must have 2 entries"),
        ({"n_blocks": 2}, "n_blocks must be at least 3, got 2"),
        ({"n_requests": 0}, "n_requests must be at least 1, got 0"),
        ({"max_resident_tokens": 100}, "max_tokens must be at least 516, got 100"),
    ],
)
def test_wrong_generator_options(options, message):
    with pytest.raises(ValueError, match=message):
        generate(seed=0, **options)


def test_places_go_from_edge_to_cloud():
    assert [place(k, 3) for k in range(3)] == ["edge", "fog", "cloud"]
    assert [place(k, 2) for k in range(2)] == ["edge", "cloud"]
    assert place(0, 1) == "cloud"
    for n in range(2, 9):
        order = [("edge", "fog", "cloud").index(place(k, n)) for k in range(n)]
        assert order == sorted(order) and (order[0], order[-1]) == (0, 2)


def test_stretched_keeps_ends_and_layers():
    model = catalog.model("llama-3-8b")
    assert stretched(model, model.n_blocks).blocks == model.blocks
    long = stretched(model, 3 * model.n_blocks)
    assert (long.blocks[0], long.blocks[-1]) == (model.blocks[0], model.blocks[-1])
    assert {b.kind for b in long.blocks} == {b.kind for b in model.blocks}


# frontier


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("nodes", [(2, 2, 2), (4, 3, 2), (1, 1)])
def test_frontier_is_what_the_definition_says(seed, nodes):
    instance = frontier(10, nodes, seed=seed)
    assert instance.digest() == frontier(10, nodes, seed=seed).digest()
    assert instance.objective is Objective.MEAN_LATENCY
    total = instance.block_bytes.sum()
    assert instance.block_bytes.tolist() == [16.0, *[10.0] * 30, 16.0]
    tier_bytes = [instance.node_bytes[instance.nodes_of(k)] for k in range(len(nodes))]
    assert all((b == b[0]).all() and 0.45 * total <= b[0] <= 0.70 * total for b in tier_bytes)
    assert sum(b[0] for b in tier_bytes) >= 1.25 * total

    # service = size * work / speed: ratios of classes do not depend on the request
    block_s = instance.block_s
    ratio = block_s / block_s[:1, :1, :]
    np.testing.assert_allclose(ratio, ratio[:, :, :1] * np.ones(32))
    size_over_speed = block_s[:, :, 0] / block_s[:, :, 1]
    np.testing.assert_allclose(size_over_speed, size_over_speed[0, 0])
    for node, tier in enumerate(instance.node_tier):
        # work is 9..11, sizes 8..120, speed within 0.8..1.25 of the tier's base
        slow = block_s[:, node, 1:-1] * TIER_SPEEDS[tier] * 0.8
        fast = block_s[:, node, 1:-1] * TIER_SPEEDS[tier] * 1.25
        assert (fast >= 8 * 9 * (1 - 1e-9)).all() and (slow <= 120 * 11 * (1 + 1e-9)).all()
    latency_s = instance.transfer_s - instance.occupancy_kind_s[:, :, instance.cut_kind]
    np.testing.assert_allclose(
        latency_s[:, :, :-1], latency_s[:1, :, :1] * np.ones((10, 1, 32))
    )
    assert ((latency_s[0, :, 0] >= 5 - 1e-9) & (latency_s[0, :, 0] <= 30 + 1e-9)).all()
    assert not instance.transfer_s[:, :, -1].any()
    raw = instance.occupancy_kind_s[:, :, instance.cut_kind]
    times = raw[:, :, 1:-1] / raw[:, :, :1]
    assert set(np.round(times, 9).ravel()) == {2.0, 3.0}


def test_frontier_arrivals():
    busy, calm = (frontier(400, seed=1, load=load) for load in (0.9, 0.45))
    np.testing.assert_allclose(calm.arrival_s, 2 * busy.arrival_s)
    mean_gap_s = best_period_s(busy) / 0.9
    assert busy.arrival_s[-1] / 400 == pytest.approx(mean_gap_s, rel=0.2)
    burst = frontier(400, seed=1, burst=True)
    assert not burst.arrival_s.any()
    np.testing.assert_array_equal(burst.kind_s, busy.kind_s)
    with pytest.raises(ValueError, match="load must be positive and finite, got 0"):
        frontier(3, seed=1, load=0)
    with pytest.raises(ValueError, match=r"nodes_per_tier must have 1\.\.5 entries"):
        frontier(3, (1,) * 6, seed=1)


def test_profiled_nodes_are_unrelated():
    instance = profiled(10, (3, 3, 3), seed=1)
    assert instance.digest() == profiled(10, (3, 3, 3), seed=1).digest()
    ratio = instance.kind_s[:, 1:, 1] / instance.kind_s[:, :1, 1]
    assert (np.ptp(ratio, axis=0) / ratio.mean(axis=0)).max() > 0.01
    assert np.isfinite(best_period_s(instance))


# frozen


def test_recipes_and_files_agree():
    assert set(freeze.frozen()) == set(freeze.RECIPES)
    assert len(freeze.frozen()) >= 8
    objectives = {freeze.load_frozen(name).objective for name in freeze.frozen()}
    assert objectives == set(Objective)


@pytest.mark.parametrize("name", freeze.frozen())
def test_frozen_file_has_its_digest(name):
    entry, instance = freeze.index()[name], freeze.load_frozen(name)
    assert instance.digest() == entry["digest"]
    assert instance.objective == entry["objective"]
    assert (instance.n_requests, instance.n_blocks) == (entry["n_requests"], entry["n_blocks"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(freeze, "FOLDER", tmp_path)
    monkeypatch.setattr(freeze, "RECIPES", {"small": lambda: frontier(2, (1, 1), seed=1)})
    assert freeze.main([]) == 0
    return tmp_path


def test_changed_file_is_noticed(folder):
    assert freeze.frozen() == ("small",)
    assert freeze.load_frozen("small").n_requests == 2
    instance_json.save(freeze.load_frozen("small").replace(overlap=True), folder / "small.json")
    with pytest.raises(ValueError, match="frozen instance 'small': digest must be"):
        freeze.load_frozen("small")
    with pytest.raises(ValueError, match="unknown frozen instance 'big'; choose one of small"):
        freeze.load_frozen("big")


def test_results_are_kept_and_only_improve(folder):
    assert freeze.record("small", best_s=10.0, bound_s=5.0, method="a")
    assert not freeze.record("small", best_s=11.0, bound_s=4.0, method="b")
    assert freeze.record("small", best_s=11.0, bound_s=6.0, method="c")
    entry = freeze.index()["small"]
    assert (entry["best_s"], entry["best_method"]) == (10.0, "a")
    assert (entry["bound_s"], entry["bound_method"]) == (6.0, "c")
    assert freeze.main([]) == 0  # the file is there: nothing is made or forgotten
    assert freeze.index()["small"] == entry
    with pytest.raises(ValueError, match=r"best_s 1\.0 beats bound_s 2\.0"):
        freeze.record("small", best_s=1.0, bound_s=2.0, method="d")
    with pytest.raises(TypeError, match="'small': best_s must be a number, got 'x'"):
        freeze.record("small", best_s="x", bound_s=2.0, method="d")
    with pytest.raises(ValueError, match=r"'small': bound_s must be .*, got nan"):
        freeze.record("small", best_s=1.0, bound_s=np.nan, method="d")


def test_infeasible_is_recorded_only_with_its_proof(folder):
    assert not freeze.record("small", best_s=np.inf, bound_s=0.0, method="a")
    assert freeze.record("small", best_s=np.inf, bound_s=np.inf, method="b")
    assert freeze.index()["small"]["bound_s"] == np.inf


@pytest.mark.parametrize(
    "options", [{}, {"rate": 2.5, "lengths": "azure_code"}, {"load": np.inf}]
)
def test_a_scenario_is_the_instance_of_its_deployment(options):
    given = {"n_requests": 30, "seed": 4, **options}
    expected = scenario("campus", "phi-3-medium", **given)
    assert to_instance(deployment("campus", "phi-3-medium", **given)) == expected


def test_a_deployment_refuses_what_a_scenario_refuses():
    with pytest.raises(ValueError, match="unknown scenario 'camp'; did you mean campus"):
        deployment("camp")
    with pytest.raises(ValueError, match="scenario: rate must be positive, got 0"):
        deployment("campus", rate=0)


def test_a_seed_draws_the_same_gpus_when_the_catalogue_grows(monkeypatch):
    """Published instances are named by seed: 28 new cards must not change one of them."""
    before = [generate(seed=seed).digest() for seed in range(3)]
    gpus = catalog.gpus()
    grown = {f"a-new-{name}": gpu for name, gpu in gpus.items()} | gpus
    monkeypatch.setattr(catalog, "_gpus", lambda: grown)
    assert [generate(seed=seed).digest() for seed in range(3)] == before
    assert len(DRAWN_GPUS) == 40 and set(DRAWN_GPUS) <= set(gpus)


def test_named_networks_reserve_only_what_others_keep():
    """A server's own share comes from its runtime: a tenth in the file would count twice."""
    shared_memory = ("Jetson", "Apple")
    for name in networks():
        for tier, of_scenario in zip(
            network(name).tiers, scenario_network(name).tiers, strict=True
        ):
            for node, less in zip(tier.nodes, of_scenario.nodes, strict=True):
                if any(word in node.gpu.name for word in shared_memory):
                    assert node == less and node.reserved_bytes > 0
                else:
                    assert node.reserved_bytes == 0
                    assert less.usable_bytes == pytest.approx(0.9 * node.usable_bytes)
