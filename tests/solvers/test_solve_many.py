"""`solve_many` against `hypsplit_dp`, network by network, and its errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve import Instance, Status, evaluate, solve_many
from hypsolve.solvers.partition.hypsplit import hypsplit_dp
from tests.helpers import strategies


def instance_of(given, network, **rules):
    """Return the instance of one network of a batch."""
    classes, room = given["node_class"][network], given["node_bytes"][network]
    tiers = [
        [(int(c), float(size)) for c, size in zip(*tier, strict=True) if c >= 0]
        for tier in zip(classes, room, strict=True)
    ]
    tiers = [tier for tier in tiers if tier]
    links_s = np.asarray(given["transfer_s"])
    row = links_s[min(network, len(links_s) - 1), : len(tiers) - 1]
    return Instance.from_tables(
        np.asarray(given["block_s"])[None], given["block_bytes"], tiers, row[None], **rules
    )


def assert_same_one_by_one(given, n_threads=None, **rules):
    """Assert that every row equals the result of `hypsplit_dp`, to the last bit."""
    plans = solve_many(**given, n_threads=n_threads, **rules)
    assert len(plans) == len(given["node_class"])
    for network in range(len(plans)):
        instance = instance_of(given, network, **rules)
        outcome = hypsplit_dp(instance, time_limit_s=60, seed=0)
        cuts, bottleneck_s = plans.cuts[network].tolist(), plans.bottleneck_s[network]
        if outcome.status is Status.INFEASIBLE:
            assert bottleneck_s == np.inf
            assert set(cuts) == {-1}
        else:
            n_used = instance.n_tiers + 1
            assert tuple(cuts[:n_used]) == outcome.partition.cuts
            assert set(cuts[n_used:]) <= {instance.n_blocks}
            assert bottleneck_s == outcome.certificate.value_s
            assert bottleneck_s == pytest.approx(evaluate(instance, outcome.partition))
    return plans


@st.composite
def batches(draw):
    """Draw the arguments of `solve_many`."""
    n_classes, n_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    n_networks, n_tiers, n_nodes = (draw(st.integers(1, size)) for size in (3, 4, 3))
    used = draw(strategies.table(st.integers(1, n_tiers), n_networks))
    node_class = np.array(
        draw(strategies.table(st.integers(-1, n_classes - 1), n_networks, n_tiers, n_nodes))
    )
    node_class[:, :, 0] = np.maximum(node_class[:, :, 0], 0)
    node_class[np.arange(n_tiers) >= np.array(used)[:, None]] = -1
    block_bytes = draw(strategies.table(strategies.BYTES, n_blocks))
    shares = draw(strategies.table(st.integers(1, 8), n_networks, n_tiers, n_nodes))
    n_rows = draw(st.sampled_from([1, n_networks]))
    return {
        "block_s": draw(strategies.table(strategies.SECONDS, n_classes, n_blocks)),
        "block_bytes": block_bytes,
        "node_class": node_class,
        "node_bytes": np.array(shares) / 8 * sum(block_bytes),
        "transfer_s": np.array(
            draw(strategies.table(strategies.SECONDS, n_rows, n_tiers - 1, n_blocks + 1))
        ).reshape(n_rows, n_tiers - 1, n_blocks + 1),
    }


@given(
    given=batches(),
    rule=st.sampled_from(strategies.RULES),
    allow_empty=st.booleans(),
    overlap=st.booleans(),
)
def test_results_equal_those_of_hypsplit_dp(given, rule, allow_empty, overlap):
    assert_same_one_by_one(given, stage_rule=rule, allow_empty=allow_empty, overlap=overlap)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_equal_those_of_hypsplit_dp_on_a_long_model_in_threads(n_threads):
    """Five tiers of 1000 blocks start from narrow windows; three tiers do not."""
    rng = np.random.default_rng(0)
    n_networks, n_blocks = 20, 1000
    node_class = rng.integers(-1, 4, (n_networks, 5, 3))
    node_class[:, :, 0] = rng.integers(0, 4, (n_networks, 5))
    node_class[::2, 3:] = -1
    given = {
        "block_s": rng.lognormal(0, 1, (4, n_blocks)),
        "block_bytes": rng.uniform(1, 4, n_blocks),  # their sums are not exact
        "node_class": node_class,
        "node_bytes": rng.uniform(300, 1300, (n_networks, 5, 3)),
        "transfer_s": rng.exponential(40, (n_networks, 4, n_blocks + 1)),
    }
    plans = assert_same_one_by_one(given, n_threads)
    assert 0 < np.isfinite(plans.bottleneck_s).sum() < n_networks


GOOD = {
    "block_s": [[1.0, 1.0], [2.0, 2.0]],
    "block_bytes": [1, 1],
    "node_class": [[[0], [1]]] * 3,
    "node_bytes": 4,
}


def test_node_bytes_broadcasts_and_is_ignored_where_there_is_no_node():
    assert solve_many(**GOOD).bottleneck_s.tolist() == [2.0] * 3
    classes, sizes = [[[0, -1], [-1, -1]]], [[[2, np.nan], [-1, np.inf]]]
    alone = solve_many(**GOOD | {"node_class": classes, "node_bytes": sizes})
    assert alone.cuts.tolist() == [[0, 2, 2]]


@pytest.mark.parametrize("n_threads", [None, 1, 2, 10**6])
def test_zero_networks_and_any_number_of_threads_are_allowed(n_threads):
    empty = solve_many(**GOOD | {"node_class": np.zeros((0, 2, 1), int)}, n_threads=n_threads)
    assert empty.cuts.shape == (0, 3)
    assert solve_many(**GOOD, n_threads=n_threads).bottleneck_s.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"block_s": [1.0]}, ValueError, r"block_s must have shape \(any, any\), got \(1,\)"),
        ({"block_s": [[]]}, ValueError, "block_s must hold at least one class and block"),
        ({"block_s": [[1.0, -1]]}, ValueError, "block_s must be finite and not neg"),
        ({"block_bytes": [1]}, ValueError, r"block_bytes must have shape \(2\), got \(1,\)"),
        ({"node_class": [[0.5]]}, TypeError, "node_class must hold whole numbers, got dtype f"),
        ({"node_class": [[0]]}, ValueError, r"node_class must have shape \(any, any, any"),
        ({"node_class": [[[0], [0, 1]]]}, ValueError, "node_class must be a rectangular array"),
        ({"node_class": np.zeros((1, 0, 1), int)}, ValueError, "must hold at least one tier"),
        ({"node_class": np.zeros((1, 1, 0), int)}, ValueError, "none in tier 0 of network 0"),
        ({"node_class": [[[2]]]}, ValueError, r"must be from -1 to 1, got 2 at index \[0, 0"),
        ({"node_class": [[[-2]]]}, ValueError, "node_class must be from -1 .*, got -2"),
        ({"node_class": np.full((1, 1, 1), 2**64 - 1)}, ValueError, "got 18446744073709551615"),
        ({"node_bytes": True}, TypeError, "node_bytes must hold numbers, got dtype bool"),
        ({"node_bytes": "4"}, TypeError, "node_bytes must hold numbers, got dtype <U"),
        ({"node_bytes": [[1], [1, 2]]}, ValueError, "node_bytes must be a rectangular array"),
        ({"node_class": [[[0], [0]], [[-1], [0]]]}, ValueError,
         "no tier without a node before one with, got none in tier 0 of network 1"),
        ({"node_bytes": [1, 2, 3, 4]}, ValueError, r"node_bytes must have shape \(3, 2, 1\)"),
        ({"node_bytes": np.nan}, ValueError, "node_bytes must be .*, got nan"),
        ({"transfer_s": [[[0, 0, 0]]] * 2}, ValueError, "must have 1 or n_networks = 3 rows"),
        ({"transfer_s": [[[0, 0]]]}, ValueError, r"transfer_s must have shape \(any, 1, 3\)"),
        ({"stage_rule": "best"}, ValueError, "stage_rule must be one of .* got 'best'"),
        ({"allow_empty": 1}, TypeError, "allow_empty must be True or False, got 1"),
        ({"overlap": None}, TypeError, "overlap must be True or False, got None"),
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument(wrong, error, message):
    with pytest.raises(error, match=f"^solve_many: .*{message}"):
        solve_many(**GOOD | wrong)
