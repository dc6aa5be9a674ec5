"""Events of a network: checked, drawn, read from a file."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.problem.deployment import GpuProfile, Link, Network, Node, Tier
from hypsolve.simulation import events as events_module
from hypsolve.simulation.events import Event, EventKind, check_events, draw_events, read_events

GPU = GpuProfile(name="gpu", t0_s=0.0, flops_per_s=1.0, bytes_per_s=1.0, memory_bytes=1.0)


def network_of(**tiers):
    """Return a network with named tiers of so many nodes, called tier-0, tier-1, ..."""
    names = list(tiers)
    return Network(
        name="net",
        tiers=tuple(
            Tier(
                name=name,
                nodes=tuple(Node(name=f"{name}-{i}", gpu=GPU) for i in range(n_nodes)),
                link=None if name == names[-1] else Link(bytes_per_s=1.0, latency_s=0.0),
            )
            for name, n_nodes in tiers.items()
        ),
    )


NETWORK = network_of(edge=2, fog=1, cloud=3)
FAILURES = {"mean_up_s": 100.0, "mean_down_s": 10.0}
SLOWDOWNS = {"mean_normal_s": 50.0, "mean_slow_s": 20.0, "slow_factor": 3.0}
BANDWIDTHS = {"mean_full_s": 70.0, "mean_degraded_s": 5.0, "degraded_factor": 0.25}
CHURN = FAILURES | SLOWDOWNS | BANDWIDTHS
OWN = {
    "failures": {EventKind.FAILURE, EventKind.RECOVERY},
    "slowdowns": {EventKind.SLOWDOWN},
    "bandwidths": {EventKind.BANDWIDTH},
}


# one event


def test_an_event_takes_plain_values():
    event = Event(3, "slowdown", "edge-0", 2)
    assert event == Event(3.0, EventKind.SLOWDOWN, "edge-0", 2.0)
    assert isinstance(event.kind, EventKind) and isinstance(event.at_s, float)
    assert Event(0, "failure", "edge-0").factor == 1.0
    with pytest.raises(AttributeError):
        event.at_s = 4.0


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ((0, "explosion", "a"), ValueError, "event: kind must be one of slowdown, .*, join"),
        ((0, None, "a"), ValueError, "event: kind must be one of .*, got None"),
        ((0, "failure", ""), ValueError, "event: target must not be empty"),
        ((0, "failure", 3), TypeError, "event: target must be a string, got 3"),
        ((-1, "failure", "a"), ValueError, "failure of 'a': at_s must be .*negative, got -1"),
        ((np.nan, "failure", "a"), ValueError, "at_s must be finite and not negative, got nan"),
        ((np.inf, "join", "a"), ValueError, "join of 'a': at_s must be finite .* got inf"),
        ((1e200, "join", "a"), ValueError, r"join of 'a': at_s must be at most .* got 1e\+200"),
        (
            (0, "slowdown", "a"),
            ValueError,
            "slowdown of 'a': factor must be positive.* got nan",
        ),
        (
            (0, "slowdown", "a", 5e-324),
            ValueError,
            "factor must be at least 1e-150, got 5e-324",
        ),
        (("1", "join", "a"), TypeError, "join of 'a': at_s must be a number, got '1'"),
        ((True, "join", "a"), TypeError, "join of 'a': at_s must be a number, got True"),
        ((0, "slowdown", "a", 0), ValueError, "slowdown of 'a': factor must be positive"),
        ((0, "bandwidth", "a", -2), ValueError, "factor must be positive and finite, got -2"),
        ((0, "bandwidth", "a", np.inf), ValueError, "factor must be positive and .* got inf"),
        ((0, "slowdown", "a", "2"), TypeError, "slowdown of 'a': factor must be a number"),
        ((0, "failure", "a", 2.0), ValueError, r"failure of 'a': factor must be 1, got 2\.0"),
        ((0, "recovery", "a", 0.5), ValueError, "recovery of 'a': factor must be 1"),
        ((0, "join", "a", 2), ValueError, "join of 'a': factor must be 1, got 2"),
    ],
)
def test_a_wrong_event_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        Event(*fields)


# in sequence


def test_events_are_sorted_by_time_and_keep_their_order_within_an_instant():
    given_events = [
        Event(5, "recovery", "edge-0"),
        Event(2, "failure", "edge-0"),
        Event(5, "failure", "edge-0"),
        Event(1, "slowdown", "edge-0", 2),
        Event(1, "slowdown", "edge-0", 3),
        Event(5, "bandwidth", "fog", 0.5),
    ]
    ordered = check_events(given_events, NETWORK)
    assert ordered == tuple(given_events[i] for i in (3, 4, 1, 0, 2, 5))
    assert check_events([], NETWORK) == ()
    assert check_events(iter(given_events), NETWORK) == ordered


@pytest.mark.parametrize(
    ("given_events", "message"),
    [
        (
            [Event(0, "slowdown", "edge-1", 2), Event(1, "failure", "edge-2")],
            r"events\[1\] \(failure of 'edge-2' at 1 s\): unknown node 'edge-2'; did you mean",
        ),
        ([Event(0, "slowdown", "edge", 2)], r"events\[0\] .* unknown node 'edge'"),
        ([Event(0, "bandwidth", "egde", 2)], "unknown tier 'egde'; did you mean edge?"),
        ([Event(0, "bandwidth", "edge-0", 2)], "unknown tier 'edge-0'"),
        (
            [Event(4, "bandwidth", "cloud", 2)],
            r"events\[0\] \(bandwidth of 'cloud' at 4 s\): target must be a tier with a link",
        ),
        (
            [Event(7, "failure", "fog-0"), Event(2, "failure", "fog-0")],
            r"events\[0\] \(failure of 'fog-0' at 7 s\): the node must be up, got a node down"
            " since 2 s",
        ),
        (
            [Event(0, "recovery", "fog-0")],
            "the node must be down after a failure, got a node that",
        ),
        (
            [Event(1, "join", "fog-0"), Event(2, "recovery", "fog-0")],
            r"events\[1\] .* the node must be down after a failure",
        ),
        (
            [Event(1, "join", "fog-0"), Event(2, "join", "fog-0")],
            r"events\[1\] .* a join must be the node's first .* got join at 1 s before it",
        ),
        (
            [Event(3, "join", "fog-0"), Event(2, "failure", "fog-0")],
            r"events\[0\] .* a join must be the node's first .* got failure at 2 s before it",
        ),
    ],
)
def test_what_cannot_happen_is_refused_by_number(given_events, message):
    with pytest.raises(ValueError, match=message):
        check_events(given_events, NETWORK)


@pytest.mark.parametrize(
    ("wrong", "network", "message"),
    [
        (
            [Event(0, "failure", "edge-0"), (1, "failure")],
            NETWORK,
            r"events\[1\]: must be an E",
        ),
        (Event(0, "failure", "edge-0"), NETWORK, "check_events: events must be Events in a"),
        (None, NETWORK, "check_events: events must be Events in a list, got None"),
        ("failure", NETWORK, r"events\[0\]: must be an Event, got 'f'"),
        ([], "net", "check_events: network must be a Network, got 'net'"),
    ],
)
def test_wrong_types_are_refused(wrong, network, message):
    with pytest.raises(TypeError, match=message):
        check_events(wrong, network)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(list(EventKind)), st.sampled_from("abc")),
        max_size=8,
    )
)
def test_a_sequence_is_legal_if_each_node_may_join_then_fails_and_recovers_in_turn(drawn):
    network = Network(
        name="net", tiers=(Tier(name="t", nodes=tuple(Node(name=n, gpu=GPU) for n in "abc")),)
    )
    drawn = [entry for entry in drawn if entry[1] is not EventKind.BANDWIDTH]
    lives = {name: "" for name in "abc"}
    for _, kind, name in sorted(drawn, key=lambda entry: entry[0]):
        if kind is not EventKind.SLOWDOWN:
            lives[name] += kind[0]
    legal = all(re.fullmatch("j?(fr)*f?", life) for life in lives.values())
    given_events = [
        Event(*entry, 2.0) if entry[1] is EventKind.SLOWDOWN else Event(*entry)
        for entry in drawn
    ]
    if not legal:
        with pytest.raises(ValueError, match=r"events\[\d\] "):
            check_events(given_events, network)
    else:
        checked = check_events(given_events, network)
        assert sorted(map(hash, checked)) == sorted(map(hash, given_events))
        assert check_events(checked, network) == checked


# drawn


@given(seed=st.integers(0, 2**64), horizon_s=st.floats(0, 2000))
def test_what_is_drawn_can_happen_and_what_begins_ends(seed, horizon_s):
    drawn = draw_events(NETWORK, horizon_s=horizon_s, seed=seed, **CHURN)
    assert drawn == draw_events(NETWORK, horizon_s=horizon_s, seed=seed, **CHURN)
    assert check_events(drawn, NETWORK) == drawn
    for tier in NETWORK.tiers:
        for target in (tier.name, *(node.name for node in tier.nodes)):
            for kinds in OWN.values():
                own = [e for e in drawn if e.target == target and e.kind in kinds]
                assert len(own) % 2 == 0
                for begin, end in zip(own[::2], own[1::2], strict=True):
                    assert begin.at_s < horizon_s and begin.at_s <= end.at_s
                    assert end.factor == 1 and (begin.factor == 1) == (begin.kind == "failure")
    assert {e.factor for e in drawn} <= {1.0, 3.0, 0.25}


@pytest.mark.parametrize(
    ("name", "alone"),
    [("failures", FAILURES), ("slowdowns", SLOWDOWNS), ("bandwidths", BANDWIDTHS)],
)
def test_one_kind_does_not_change_another(name, alone):
    everything = draw_events(NETWORK, horizon_s=2000.0, seed=7, **CHURN)
    only = draw_events(NETWORK, horizon_s=2000.0, seed=7, **alone)
    assert len(only) > 10
    assert only == tuple(e for e in everything if e.kind in OWN[name])
    assert only != draw_events(NETWORK, horizon_s=2000.0, seed=8, **alone)


def test_more_nodes_behind_do_not_change_those_before():
    larger = network_of(edge=2, fog=1, cloud=4)
    few = draw_events(NETWORK, horizon_s=1000.0, seed=1, **FAILURES)
    many = draw_events(larger, horizon_s=1000.0, seed=1, **FAILURES)
    assert few == tuple(event for event in many if event.target != "cloud-3")
    assert len(few) < len(many)


def test_nodes_have_streams_of_their_own():
    drawn = draw_events(NETWORK, horizon_s=2000.0, seed=3, **FAILURES)
    firsts = {}
    for event in drawn:
        firsts.setdefault(event.target, event.at_s)
    assert len(set(firsts.values())) == 6
    slow = draw_events(
        NETWORK, horizon_s=2000.0, seed=3, **(SLOWDOWNS | {"mean_normal_s": 100})
    )
    assert not {e.at_s for e in slow} & {e.at_s for e in drawn}


def test_a_mean_only_stretches_the_durations():
    once = draw_events(NETWORK, horizon_s=1000.0, seed=5, **FAILURES)
    twice = draw_events(NETWORK, horizon_s=2000.0, seed=5, mean_up_s=200.0, mean_down_s=20.0)
    assert [e.target for e in once] == [e.target for e in twice]
    np.testing.assert_allclose([2 * e.at_s for e in once], [e.at_s for e in twice])


def test_durations_have_the_means_asked_for():
    drawn = draw_events(network_of(all=1), horizon_s=2e5, seed=11, **FAILURES)
    at_s = np.array([0.0, *(event.at_s for event in drawn)])
    gaps = np.diff(at_s)
    up_s, down_s = gaps[::2], gaps[1::2]
    for spans, mean_s in ((up_s, 100.0), (down_s, 10.0)):  # exponential: deviation = mean
        error = mean_s / np.sqrt(len(spans))
        assert spans.mean() == pytest.approx(mean_s, abs=4 * error)
        assert spans.std() == pytest.approx(mean_s, rel=0.15)


def test_nothing_is_drawn_without_rates_or_time():
    assert draw_events(NETWORK, horizon_s=1000.0, seed=0) == ()
    assert draw_events(NETWORK, horizon_s=0.0, seed=0, **CHURN) == ()
    one = network_of(only=1)  # no link, so no bandwidth to change
    assert draw_events(one, horizon_s=1000.0, seed=0, **BANDWIDTHS) == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"horizon_s": -1}, ValueError, "churn: horizon_s must be finite and not negative"),
        ({"horizon_s": np.inf}, ValueError, "churn: horizon_s must be finite .* got inf"),
        ({"seed": -1}, ValueError, "churn: seed must be at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "churn: seed must be a whole number, got 0.5"),
        ({"mean_up_s": 0}, ValueError, "churn: mean_up_s must be positive and finite, got 0"),
        (
            {"mean_down_s": -3.0},
            ValueError,
            r"churn: mean_down_s must be positive .* got -3\.0",
        ),
        ({"mean_down_s": "x"}, TypeError, "churn: mean_down_s must be a number, got 'x'"),
        (
            {"mean_down_s": None},
            ValueError,
            "churn: mean_down_s must be given with mean_up_s, got None",
        ),
        (
            {"slow_factor": 2.0},
            ValueError,
            "churn: mean_normal_s must be given with slow_factor, got None",
        ),
        (
            {"mean_full_s": 2.0, "mean_degraded_s": 1.0},
            ValueError,
            "churn: degraded_factor must be given with mean_full_s, got None",
        ),
        (
            {"mean_normal_s": 1.0, "mean_slow_s": 1.0, "slow_factor": 0.0},
            ValueError,
            "churn: slow_factor must be positive and finite, got 0",
        ),
        (
            {"mean_up_s": 1e-9, "mean_down_s": 1e-9},
            ValueError,
            "churn: mean_up_s, mean_down_s must make at most 1000000 events in horizon_s = 1000"
            r", got about 6e\+12",
        ),
        (
            {"mean_up_s": 0.0059, "mean_down_s": 0.0059},
            ValueError,
            r"must make at most 1000000 events in horizon_s = 1000, got about 1\.02e\+06",
        ),
        (
            {"horizon_s": 1e150, "mean_up_s": 1e-300, "mean_down_s": 1e-300},
            ValueError,
            "must make at most 1000000 events in horizon_s = .*, got about inf",
        ),
    ],
)
def test_wrong_rates_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        draw_events(NETWORK, **({"horizon_s": 1000, "seed": 0} | FAILURES | changes))


def test_churn_needs_a_network():
    with pytest.raises(TypeError, match="churn: network must be a Network, got None"):
        draw_events(None, horizon_s=1.0, seed=0)


# read


LISTED = """
[[events]]
at_s = 30
kind = "slowdown"
target = "edge-1"
factor = 2.5

[[events]]
at_s = 10.5
kind = "failure"
target = "cloud-0"
"""
RATES = """
[churn]
horizon_s = 500
mean_full_s = 70
mean_degraded_s = 5.0
degraded_factor = 0.25
"""


def read(tmp_path, text, **options):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return read_events(path, NETWORK, **options)


def test_read_events(tmp_path):
    failure, slowdown = Event(10.5, "failure", "cloud-0"), Event(30, "slowdown", "edge-1", 2.5)
    assert read(tmp_path, LISTED) == (failure, slowdown)
    drawn = draw_events(NETWORK, horizon_s=500.0, seed=4, **BANDWIDTHS)
    assert drawn
    assert read(tmp_path, RATES, seed=4) == drawn
    both = read(tmp_path, LISTED + RATES, seed=4)
    assert both == check_events([slowdown, failure, *drawn], NETWORK)
    assert read(tmp_path, RATES + LISTED, seed=4) == both
    assert read(tmp_path, RATES) != drawn  # seed 0


def test_every_rate_can_be_given_in_the_file(tmp_path):
    text = "[churn]\nhorizon_s = 900\n" + "".join(f"{k} = {v}\n" for k, v in CHURN.items())
    drawn = draw_events(NETWORK, horizon_s=900.0, seed=2, **CHURN)
    assert read(tmp_path, text, seed=2) == drawn


def test_a_file_may_be_packed(tmp_path):
    path = tmp_path / "mine.toml.gz"
    path.write_bytes(gzip.compress(LISTED.encode()))
    assert len(read_events(str(path), NETWORK)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine\.toml: must have \[\[events\]\] or \[churn\], got neither"),
        ("events = ", r"mine\.toml: not TOML: "),
        ("\0", r"mine\.toml: not TOML: "),
        (f"a = {'[' * 5000}", r"mine\.toml: not TOML: "),
        (f"a = {'9' * 5000}", r"mine\.toml: not TOML: "),
        ("[event]\n", r"mine\.toml: unknown key 'event'; did you mean events"),
        ("events = 3", r"events must be \[\[events\]\] tables, got 3"),
        ("events = [3]", r"events\[0\]: must be a table, got 3"),
        (
            LISTED.replace("target", "node", 1),
            r"events\[0\]: unknown key 'node'; choose one of",
        ),
        (LISTED.replace('target = "cloud-0"', ""), r"events\[1\]: key 'target' is missing"),
        (LISTED.replace("at_s = 30\n", ""), r"mine\.toml: events\[0\]: key 'at_s' is missing"),
        (
            LISTED.replace("failure", "fail"),
            r"events\[1\]: event: kind must be one of slowdown",
        ),
        (
            LISTED.replace("30", "-30"),
            r"events\[0\]: slowdown of 'edge-1': at_s must be finite",
        ),
        (
            LISTED.replace("30", "nan"),
            r"events\[0\]: slowdown of 'edge-1': at_s must be finite",
        ),
        (
            LISTED.replace("30", "2024-05-10"),
            r"events\[0\]: slowdown of 'edge-1': at_s must be",
        ),
        (
            LISTED.replace("2.5", "0"),
            r"events\[0\]: slowdown of 'edge-1': factor must be posit",
        ),
        (
            LISTED.replace("cloud-0", "cloud-9"),
            r"mine\.toml: events\[1\] .* unknown node 'clou",
        ),
        (
            LISTED + LISTED,
            r"mine\.toml: events\[3\] .*: the node must be up, got a node down since",
        ),
        ("churn = 3", r"mine\.toml: churn: must be a table, got 3"),
        ("[[churn]]\nhorizon_s = 3", "churn: must be a table, got"),
        ("[churn]\nmean_up_s = 3", r"mine\.toml: churn: key 'horizon_s' is missing"),
        ("[churn]\nhorizon_s = 3", "churn: must have rates too: mean_up_s, .*, got none"),
        (RATES + "seed = 3", r"mine\.toml: churn: unknown key 'seed'; choose one of horizon_s"),
        (RATES + "mean_up_h = 3", "churn: unknown key 'mean_up_h'; did you mean mean_up_s"),
        (RATES + "mean_up_s = 3", "churn: mean_down_s must be given with mean_up_s, got None"),
        (RATES.replace("500", '"500"'), "churn: horizon_s must be a number, got '500'"),
        (RATES.replace("0.25", "-1"), "churn: degraded_factor must be positive and finite"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_wrong_arguments_and_files(tmp_path):
    with pytest.raises(TypeError, match="read_events: path must be a string or a path, got 3"):
        read_events(3, NETWORK)
    with pytest.raises(OSError, match=r"nowhere\.toml"):
        read_events(tmp_path / "nowhere.toml", NETWORK)
    with pytest.raises(ValueError, match=r"mine\.toml: file must have at most 10 bytes, got"):
        read(tmp_path, LISTED, max_bytes=10)
    with pytest.raises(ValueError, match="read_events: seed must be at least 0, got -1"):
        read(tmp_path, LISTED, seed=-1)
    with pytest.raises(TypeError, match="read_events: max_bytes must be a whole number"):
        read(tmp_path, LISTED, max_bytes="1")
    with pytest.raises(TypeError, match="read_events: network must be a Network, got 'net'"):
        read_events(tmp_path / "mine.toml", "net")
    (tmp_path / "latin.toml").write_bytes("target = 'Gerät'".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml: not TOML: 'utf-8' codec"):
        read_events(tmp_path / "latin.toml", NETWORK)


def test_what_cannot_be_among_the_events_drawn_is_refused_too(tmp_path):
    """A file may list a failure of a node that churn has taken down already."""
    failures = "[churn]\nhorizon_s = 1e4\nmean_up_s = 1.0\nmean_down_s = 1e5\n"
    listed = '[[events]]\nat_s = 9e3\nkind = "failure"\ntarget = "edge-0"\n'
    with pytest.raises(
        ValueError,
        match=r"toml: events\[0\] \(failure of 'edge-0' at 9000 s\): the node must be up, got"
        r" a node down since [\d.]+ s by a drawn event$",
    ):
        read(tmp_path, failures + listed)
    with pytest.raises(
        ValueError,
        match=r"toml: a drawn event \(failure of 'edge-0' at [\d.]+ s\): the node must be up,"
        r" got a node down since 0 s$",
    ):
        read(tmp_path, failures + listed.replace("9e3", "0"))
    twice = listed + listed
    with pytest.raises(ValueError, match=r"events\[1\] .*, got a node down since 9000 s$"):
        read(tmp_path, failures.replace("1.0", "1e9") + twice)
    assert events_module.MAX_EVENTS == 10**6
