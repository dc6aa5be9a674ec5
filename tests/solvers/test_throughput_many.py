"""`throughput_many` against `throughput_exact`, network by network, and its errors."""

from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem import instance_tables
from hypsolve.problem.instance_records import Limits, Names, NodeTable
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingLinks
from hypsolve.solvers.throughput.exact import MARGIN, throughput_exact
from tests.helpers.serving_oracles import mixed_lengths, random_serving, with_targets

MODES = ("stage", "pipeline", "serial")


def is_limited(instance):
    """Whether blocks are pinned or numbers of blocks are limited."""
    limits = instance.limits
    return (limits.cut_min[1:-1] > 0).any() or (
        (limits.max_blocks < instance.n_blocks).any()
        or (limits.cut_max[1:-1] < instance.n_blocks).any()
    )


def random_networks(rng, instance, n_networks):
    """Return random arguments of `throughput_many`; some networks have fewer tiers."""
    n_tiers = instance.n_tiers if is_limited(instance) else int(rng.integers(1, 4))
    if not instance.rules.allow_empty:
        n_tiers = min(n_tiers, instance.n_blocks)
    shape = (n_networks, n_tiers, 3)
    node_class = rng.integers(-1, instance.n_classes, shape)
    node_class[:, :, rng.integers(3)] = rng.integers(0, instance.n_classes, shape[:2])
    if not is_limited(instance):
        used = rng.integers(1, n_tiers + 1, n_networks)
        node_class[np.arange(n_tiers) >= used[:, None]] = -1
    sizes = instance.nodes.node_bytes
    # two sizes, so that there are equal nodes and unequal ones
    node_bytes = rng.choice([sizes.min(), sizes.max() * rng.uniform(1, 5)], shape)
    n_rows = rng.choice([1, n_networks], 3)
    width = instance.links.token_s.shape[1]
    return {
        "node_class": node_class,
        "node_bytes": node_bytes,
        "token_s": rng.uniform(0, 1e-4, (n_rows[0], n_tiers - 1, width)),
        "round_trip_s": rng.uniform(0, 1e-2, (n_rows[1], n_tiers - 1)),
        "entry_s": rng.uniform(0, 0.05, (n_rows[2], n_tiers - 1)),
    }


def one_network(instance, given, network):
    """Return the instance of one network of a batch."""
    is_node = given["node_class"][network] >= 0
    tier = np.nonzero(is_node)[0]
    n_tiers, n_blocks = int(tier[-1]) + 1, instance.n_blocks
    limits = instance.limits
    if not is_limited(instance):
        cut_min, cut_max = instance_tables.cut_limits(None, n_tiers, n_blocks)
        limits = Limits(
            cut_min=cut_min,
            cut_max=cut_max,
            min_blocks_given=np.zeros(n_tiers),
            max_blocks=np.full(n_tiers, n_blocks),
        )
    rows = {
        field: given[field][network if len(given[field]) > 1 else 0][: n_tiers - 1]
        for field in ("token_s", "round_trip_s", "entry_s")
    }
    return replace(
        instance,
        nodes=NodeTable(
            node_tier=tier,
            node_class=given["node_class"][network][is_node],
            node_bytes=given["node_bytes"][network][is_node],
        ),
        links=ServingLinks(cut_kind=instance.links.cut_kind, **rows),
        limits=limits,
        price_per_hour=np.zeros(len(tier)),
        names=Names(),
    )


def compare(instance, given, n_threads):
    """Compare every row with `throughput_exact`, to the last bit; return the rates."""
    plans = hs.throughput_many(instance, **given, n_threads=n_threads)
    assert len(plans) == len(given["node_class"])
    for network in range(len(plans)):
        alone = one_network(instance, given, network)
        outcome = throughput_exact(alone, time_limit_s=60, seed=0)
        cuts, rate = plans.cuts[network].tolist(), plans.fluid_requests_per_s[network]
        if outcome.partition is None:
            assert rate == 0
            assert set(cuts) == {-1}
        else:
            assert tuple(cuts[: alone.n_tiers + 1]) == outcome.partition.cuts
            assert set(cuts[alone.n_tiers + 1 :]) <= {alone.n_blocks}
            assert rate * (1 + MARGIN) == outcome.fluid_bound
    return plans.fluid_requests_per_s


@pytest.mark.parametrize("mode", MODES)
def test_batches_equal_one_by_one_to_the_last_bit(mode):
    """Limits, targets, users and mixed lengths hold for all networks of a batch."""
    rng = np.random.default_rng([41, MODES.index(mode)])
    rates, limited = [], 0
    for case in range(40):
        instance = random_serving(rng, mode)
        if case % 3 == 0:
            instance = with_targets(instance, rng)
        if case % 4 == 3:
            instance = mixed_lengths(instance, rng)
        given = random_networks(rng, instance, n_networks=8)
        rates.extend(compare(instance, given, n_threads=1 + case % 2))
        limited += is_limited(instance)
    assert limited >= 5
    assert 0.2 * len(rates) < np.count_nonzero(rates) < 0.95 * len(rates)


def test_links_of_the_instance_are_the_default():
    """A batch of other nodes on the links of the instance needs no arrays of links."""
    rng = np.random.default_rng(5)
    instance = next(
        found for _ in range(100) if (found := random_serving(rng, "stage")).n_tiers == 3
    )
    given = random_networks(rng, instance, 6) | {
        "node_class": rng.integers(0, instance.n_classes, (6, 3, 2)),
        "node_bytes": float(instance.nodes.node_bytes.max()) * 4,
    }
    links = {
        name: getattr(instance.links, name)[None]
        for name in ("token_s", "round_trip_s", "entry_s")
    }
    alone = {name: value for name, value in given.items() if name not in links}
    found = hs.throughput_many(instance, **alone)
    expected = hs.throughput_many(instance, **alone, **links)
    assert found.fluid_requests_per_s.tolist() == expected.fluid_requests_per_s.tolist()
    assert found.cuts.tolist() == expected.cuts.tolist()
    assert found.fluid_requests_per_s.any()


def two_tiers(**changes):
    given = {
        "fixed_s": [[1e-3], [2e-3]],
        "block_kind": [0] * 6,
        "tiers": [[(0, 1e9)], [(1, 1e9)]],
        "prompt_tokens": 100,
        "output_tokens": 10,
        "max_num_seqs": 20,
    }
    return ServingInstance.from_tables(**(given | changes))


@pytest.mark.parametrize("n_threads", [None, 1, 2, 10**3])
def test_zero_networks_and_any_number_of_threads_are_allowed(n_threads):
    """The edges of a batch: none at all, and fewer networks than threads."""
    links = {"token_s": np.zeros((0, 1, 1)), "round_trip_s": np.zeros((0, 1))}
    for given in ({}, links):
        empty = hs.throughput_many(
            two_tiers(), np.zeros((0, 2, 1), int), 1e9, **given, n_threads=n_threads
        )
        assert empty.cuts.shape == (0, 3)
        assert len(empty) == 0
    plans = hs.throughput_many(two_tiers(), [[[0], [1]]] * 3, 1e9, n_threads=n_threads)
    assert plans.cuts.tolist() == [[0, 4, 6]] * 3


def test_networks_that_carry_nothing_are_answered_as_infeasible():
    """Too little memory, or targets that no rate meets, beside a network that has both."""
    heavy = two_tiers(weight_bytes=[[1.0], [1.0]])
    plans = hs.throughput_many(heavy, [[[0], [1]]] * 2, [[[1], [1]], [[3], [4]]])
    assert plans.cuts[0].tolist() == [-1, -1, -1]
    assert plans.fluid_requests_per_s[0] == 0
    assert plans.fluid_requests_per_s[1] > 0
    hasty = two_tiers(objective="goodput", tpot_slo_s=8e-3)
    plans = hs.throughput_many(hasty, [[[1], [1]], [[0], [0]]], 1e9)
    assert (plans.fluid_requests_per_s > 0).tolist() == [False, True]


@pytest.mark.parametrize(
    ("instance", "wrong", "error", "message"),
    [
        ({"objective": "cost", "price_per_hour": [1, 1]}, {}, ValueError,
         "objective must be throughput or goodput, got cost"),
        ({}, {"node_class": [[[2], [0]]]}, ValueError, "node_class must be .* -1 to 1, got 2"),
        ({}, {"node_class": [[0, 1]]}, ValueError, r"node_class must have shape \(any, any"),
        ({}, {"node_class": [[[0.5], [0]]]}, TypeError, "node_class must hold whole numbers"),
        ({}, {"node_class": [[[-1], [0]]]}, ValueError, "none in tier 0 of network 0"),
        ({}, {"node_bytes": -1.0}, ValueError, "node_bytes must be finite and not negative"),
        ({}, {"node_bytes": [1, 2, 3, 4]}, ValueError, r"node_bytes must have .* \(3, 2, 1\)"),
        ({}, {"token_s": [[[0, 0]]]}, ValueError, r"token_s must have shape \(any, 1, 1\)"),
        ({}, {"token_s": [[[0]]] * 2}, ValueError, "token_s must have 1 or .* = 3 rows"),
        ({}, {"round_trip_s": [[np.nan]]}, ValueError, "round_trip_s must be .*, got nan"),
        ({}, {"entry_s": [0.0]}, ValueError, r"entry_s must have shape \(any, 1\), got \(1,\)"),
        ({}, {"node_class": [[[0]]]}, ValueError,
         "token_s must be given where node_class has other than the 2 tiers of the instance"),
        ({"pinned": {0: 0}}, {"node_class": [[[0], [0]], [[0], [-1]]]}, ValueError,
         "pinned blocks, min_blocks and max_blocks .* networks of 2 tiers, got 1 in network 1"),
        ({"max_blocks": [4, 5]}, {"node_class": [[[0]]], "token_s": np.zeros((1, 0, 1)),
         "round_trip_s": np.zeros((1, 0)), "entry_s": np.zeros((1, 0))}, ValueError,
         "need networks of 2 tiers, got 1 in node_class"),
        ({}, {"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument(instance, wrong, error, message):
    """A message names the argument, the rule and the value."""
    good = {"node_class": [[[0], [1]]] * 3, "node_bytes": 1e9}
    with pytest.raises(error, match=f"^throughput_many: .*{message}"):
        hs.throughput_many(two_tiers(**instance), **(good | wrong))


def test_an_instance_of_the_other_kind_is_refused():
    """`Instance` has `solve_many`; the message names what was given."""
    plain = hs.Instance.from_tables([[[1.0, 2.0]]], [0, 0], [[(0, 0)]])
    with pytest.raises(TypeError, match="throughput_many: instance must be"):
        hs.throughput_many(plain, [[[0]]], 1.0)
