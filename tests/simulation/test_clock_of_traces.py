"""Simulations at any clock: a time of day of 1e12 s loses no digit of a latency."""

from dataclasses import fields, replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.simulation.events import LATEST_S
from tests.helpers.scenarios_token import random_scenario
from tests.helpers.sizes import n_cases

ORIGINS_S = (0.0, 1e3, 1.7e9, 1e12)
MODES = ("stage", "pipeline", "serial")


def at(scenario, origin_s):
    """Shift arrivals and events, which are rounded so that no digit is lost."""

    def shifted(times_s):
        return np.round((times_s - first_s) * 2**10) / 2**10 + origin_s

    requests = scenario.deployment.requests
    first_s = requests.arrival_s.min()
    deployment = replace(
        scenario.deployment, requests=replace(requests, arrival_s=shifted(requests.arrival_s))
    )
    events = [
        replace(event, at_s=max(float(shifted(event.at_s)), 0.0))
        for event in scenario.options.get("events", ())
    ]
    return replace(
        scenario, deployment=deployment, options=scenario.options | {"events": events}
    )


def assert_equal(here, there):
    """Assert that two records have equal arrays and numbers, to the last bit."""
    for field in fields(here):
        ours, theirs = getattr(here, field.name), getattr(there, field.name)
        if field.name in ("series", "visits") and ours is not None:
            assert_equal(ours, theirs)
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, field.name)
        elif field.name != "since_first":
            assert ours == theirs, field.name


@pytest.mark.parametrize("origin_s", ORIGINS_S[1:])
@pytest.mark.parametrize("batching", MODES)
def test_token_level_does_not_depend_on_the_clock(batching, origin_s):
    """At 1.7e9 s, TTFT was 3.5e-6 off; times of 1e12 s were refused."""
    for seed in range(n_cases(12, 40)):
        scenario = random_scenario(seed, hs.simulate, (batching,))
        near = at(scenario, 0.0).run(hs.simulate, record_visits=True)
        far = at(scenario, origin_s).run(hs.simulate, record_visits=True)
        assert_equal(near, far.from_first())
        for name in ("ttft_s", "tpot_s", "latency_s"):
            np.testing.assert_array_equal(getattr(near, name), getattr(far, name), name)
        assert near.metrics().to_dict() == far.metrics().to_dict()
        np.testing.assert_array_equal(far.arrival_s, near.arrival_s + origin_s)
        np.testing.assert_allclose(far.end_s, near.end_s + origin_s, rtol=1e-15)


def network(n_nodes=2):
    nodes = tuple(hs.Node(name=f"n{i}", gpu=hs.gpu("l4")) for i in range(n_nodes))
    return hs.Network(name="one", tiers=(hs.Tier(name="edge", nodes=nodes),))


def deployment(arrival_s):
    n = len(arrival_s)
    requests = hs.Requests(arrival_s, np.full(n, 128), np.full(n, 8))
    return hs.Deployment(model=hs.model("llama-3-8b"), network=network(), requests=requests)


ALL = hs.Partition((0, 34))


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize("origin_s", ORIGINS_S)
def test_a_run_is_that_of_the_seconds_since_the_first_arrival(level, origin_s):
    """Arrivals of any digits: only differences count, and the trace shows them as given."""
    rng = np.random.default_rng(int(origin_s) % 97)
    arrival_s = origin_s + rng.exponential(0.3, 40).cumsum()
    since_s = arrival_s - arrival_s.min()
    far, near = (
        hs.simulate(deployment(times_s), ALL, level=level) for times_s in (arrival_s, since_s)
    )
    assert_equal(near, far.from_first())
    np.testing.assert_array_equal(far.arrival_s, arrival_s)
    np.testing.assert_array_equal(far.latency_s, near.latency_s)
    assert (far.end_s >= far.arrival_s).all()
    assert (far.reached_s[:, 0] >= far.arrival_s).all()


def test_what_is_stored_far_from_time_0_has_the_same_metrics_and_events(tmp_path):
    """Throughput, utilisation and exported traces are differences of times, too."""
    arrival_s = np.arange(40) * 0.25
    near, far = (hs.simulate(deployment(o + arrival_s), ALL) for o in (0.0, 1e12))
    assert near.metrics(ttft_slo_s=1.0).to_dict() == far.metrics(ttft_slo_s=1.0).to_dict()
    written = []
    for trace in (near, far):
        hs.write_perfetto(trace, tmp_path / "trace.json")
        written.append((tmp_path / "trace.json").read_text())
    assert written[0] == written[1]


@pytest.mark.parametrize("batching", MODES)
def test_policies_see_the_clock_of_the_arrivals(batching):
    """A user's function gets the time of day at which a request comes."""
    seen = []

    def first(state, request):
        seen.append(state.time_s)
        return state.nodes[0]

    arrival_s = 1.7e9 + np.arange(5.0)
    hs.simulate(deployment(arrival_s), ALL, first, batching=batching)
    assert seen == arrival_s.tolist()


@pytest.mark.parametrize("batching", MODES)
def test_events_before_the_first_arrival_have_happened(batching):
    """A failure long before, mended or not, a join and a slowdown leave their last state."""
    early = [
        hs.Event(5.0, "failure", "n0"),
        hs.Event(7.0, "slowdown", "n1", 4.0),
        hs.Event(8.0, "slowdown", "n1", 2.0),
    ]
    arrival_s = 1e12 + np.arange(6.0)
    far = hs.simulate(deployment(arrival_s), ALL, events=early, batching=batching)
    now = [hs.Event(0.0, e.kind, e.target, e.factor) for e in (early[0], early[2])]
    if batching == "stage":
        assert set(far.node[:, 0]) == {1}
    near = hs.simulate(deployment(arrival_s - 1e12), ALL, events=now, batching=batching)
    assert_equal(near, far.from_first())
    mended = [*early[:1], hs.Event(6.0, "recovery", "n0")]
    untouched = hs.simulate(deployment(arrival_s), ALL, batching=batching)
    assert_equal(
        untouched, hs.simulate(deployment(arrival_s), ALL, events=mended, batching=batching)
    )


def test_only_spans_that_lose_their_precision_are_refused():
    """Seconds since the first arrival are exact to half a microsecond for 136 years."""
    rule = r"must be at most 4\.29.*e\+09 s after the first arrival .*got 1e\+12"
    with pytest.raises(ValueError, match=f"arrival_s {rule}"):
        hs.simulate(deployment(np.array([0.0, 1e12])), ALL)
    late = hs.Event(1e12, "slowdown", "n0", 2.0)
    with pytest.raises(ValueError, match=f"slowdown of 'n0': at_s {rule}"):
        hs.simulate(deployment(np.array([0.0])), ALL, events=[late])
    hs.simulate(deployment(np.array([1e12 - 1.0, 1e12 - 1.0 + LATEST_S])), ALL, events=[late])
