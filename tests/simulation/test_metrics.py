"""Metrics against numbers worked out by hand, and properties that hold for any trace."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.problem.solution import Partition
from hypsolve.simulation.metrics import metrics
from tests.helpers import traces

NAN = float("nan")


def test_times_of_the_small_trace():
    found = metrics(traces.small())
    assert (found.n_requests, found.n_finished, found.n_unfinished) == (4, 3, 1)
    latency = found.latency_s  # 2, 4 and 9 s
    assert (latency.n, latency.mean, latency.p50) == (3, 5.0, 4.0)
    assert (latency.p95, latency.p99) == pytest.approx((8.5, 8.9))
    ttft = found.ttft_s  # 2, 2, 4 s and 4 s of the one that never ended
    assert (ttft.n, ttft.mean, ttft.p50) == (4, 3.0, 3.0)
    tpot = found.tpot_s  # (5 - 3) / 2 and (11 - 6) / 4
    assert (tpot.n, tpot.mean, tpot.p50) == (2, 1.125, 1.125)
    assert found.observed_s == 10.0
    assert found.requests_per_s == 0.3
    assert found.output_tokens_per_s == 0.9  # 3 + 1 + 5 tokens, not the 2 of the last request


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"ttft_slo_s": 2.0}, 2),  # exactly 2 s is within 2 s
        ({"ttft_slo_s": 1.999}, 0),
        ({"ttft_slo_s": 4.0}, 3),  # the fourth has TTFT 4 s, but never ended
        ({"tpot_slo_s": 1.0}, 2),  # one token: no TPOT to miss
        ({"tpot_slo_s": 1.25}, 3),
        ({"latency_slo_s": 4.0}, 2),
        ({"latency_slo_s": 3.0, "ttft_slo_s": 2.0}, 1),
        ({"latency_slo_s": 9.0, "tpot_slo_s": 1.0, "ttft_slo_s": 4.0}, 2),
    ],
)
def test_service_levels_of_the_small_trace(limits, kept):
    found = metrics(traces.small(), **limits)
    assert found.slo_attainment == kept / 4
    span_s = float(np.ptp(traces.small().arrival_s))
    assert found.offered_s == span_s * 4 / 3  # three gaps between four requests, and one more
    assert found.goodput_requests_per_s == kept / found.observed_s
    assert {name: getattr(found, name) for name in limits} == limits


def test_without_limits_there_is_no_attainment():
    found = metrics(traces.small())
    assert math.isnan(found.slo_attainment) and math.isnan(found.goodput_requests_per_s)
    assert found.ttft_slo_s is None


def test_utilisation_and_load_of_the_small_trace():
    found = metrics(traces.small())
    assert found.node_utilisation == (0.5, 0.0, 0.2)
    assert found.tier_utilisation == (0.25, 0.2)
    assert found.utilisation == pytest.approx(0.7 / 3)
    assert found.active_utilisation == pytest.approx(0.7 / 3)
    assert found.mean_batch == 8 / 5
    assert found.mean_at_nodes == pytest.approx(2.4)  # 12 in bins of 2 s, over 10 s
    assert found.mean_waiting == pytest.approx(0.6)
    assert found.mean_stranded == pytest.approx(0.3)
    assert (found.restarts, found.lost_tokens) == (3, 34)


def test_only_tiers_with_a_stage_are_active():
    found = metrics(traces.small(partition=Partition((0, 4, 4))))
    assert found.active_utilisation == 0.25
    assert found.utilisation == pytest.approx(0.7 / 3)


def test_flow_level_has_no_tokens_to_time():
    trace = traces.flow()
    found = metrics(trace, latency_slo_s=6.0)
    assert (found.latency_s.mean, found.latency_s.p50) == (5.75, 5.5)  # 3, 4, 7, 9
    assert (found.ttft_s.n, found.tpot_s.n) == (0, 0) and math.isnan(found.ttft_s.p99)
    assert found.slo_attainment == 0.5
    for name in ("ttft_slo_s", "tpot_slo_s"):
        with pytest.raises(ValueError, match=f"metrics: {name} needs a trace of level token"):
            metrics(trace, **{name: 1.0})


def test_an_instance_has_no_tokens_to_count():
    nothing = np.zeros(4, np.int64)
    found = metrics(traces.flow(prompt_tokens=nothing, output_tokens=nothing))
    assert math.isnan(found.output_tokens_per_s)
    assert found.requests_per_s == 4 / 11


def served_at(rate_per_s, n_requests=1_000, output_tokens=128, **options):
    """Simulate Llama-3.1-8B on one H100 at a rate."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="h100", gpu=hs.gpu("h100")),))
    ones = np.ones(n_requests, np.int64)
    gaps_s = np.random.default_rng(0).exponential(1 / rate_per_s, n_requests)
    requests = hs.Requests(gaps_s.cumsum(), 128 * ones, output_tokens * ones)
    deployment = hs.Deployment(
        model=hs.model("llama-3.1-8b"),
        network=hs.Network(name="box", tiers=(box,)),
        requests=requests,
    )
    trace = hs.simulate(deployment, hs.Partition((0, 34)), **options)
    return metrics(trace, latency_slo_s=1e6), requests


def test_the_time_in_which_the_last_requests_drain_is_not_counted():
    """What keeps up serves the offered rate, however short the run is."""
    for n_requests in (30, 1_000):
        found, requests = served_at(5.0, n_requests)
        offered_per_s = (n_requests - 1) / np.ptp(requests.arrival_s)
        assert found.observed_s > found.offered_s - 1 / offered_per_s
        assert found.slo_attainment == 1
        assert found.goodput_requests_per_s == pytest.approx(offered_per_s)
        assert found.requests_per_s == pytest.approx(offered_per_s)


def test_the_rate_beyond_capacity_is_not_called_throughput():
    """All requests end at last, but not as fast as they arrive."""
    sustained, _ = served_at(500.0, 5_000)
    drained_per_s = sustained.n_requests / sustained.observed_s
    assert sustained.requests_per_s < 0.5 * 500
    assert sustained.requests_per_s == pytest.approx(drained_per_s, rel=0.1)


@pytest.mark.parametrize(("n_requests", "rate_per_s"), [(300, 100), (300, 300), (3_000, 300)])
def test_a_short_burst_is_not_served_faster_than_the_bound(n_requests, rate_per_s):
    """A burst within fewer seconds than a latency shows no rate that can last."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="h100", gpu=hs.gpu("h100")),))
    deployment = hs.Deployment(
        model=hs.model("llama-3.1-8b"),
        network=hs.Network(name="box", tiers=(box,)),
        requests=hs.Requests(
            np.arange(n_requests) / rate_per_s, [512] * n_requests, [256] * n_requests
        ),
    )
    found = metrics(hs.simulate(deployment, hs.Partition((0, 34))), latency_slo_s=1e6)
    assert found.goodput_requests_per_s == found.requests_per_s
    assert 0 < found.requests_per_s <= hs.throughput_bound(deployment)


def test_nothing_ended():
    found = metrics(traces.small(end_s=np.full(4, NAN)), latency_slo_s=1.0)
    assert (found.n_finished, found.latency_s.n, found.slo_attainment) == (0, 0, 0.0)
    assert found.requests_per_s == found.goodput_requests_per_s == 0
    assert found.observed_s == 10  # the nodes were busy all the same
    assert found.node_utilisation == (0.5, 0.0, 0.2)
    assert found.mean_at_nodes == pytest.approx(2.4)
    assert "none" in str(found)


def test_what_never_ended_is_observed_to_the_end_of_the_run():
    found = metrics(traces.small(end_of_run_s=21.0))
    assert found.observed_s == 20.0
    assert (found.requests_per_s, found.output_tokens_per_s) == (0.15, 0.45)
    assert found.node_utilisation == (0.25, 0.0, 0.1)
    assert (found.mean_at_nodes, found.mean_waiting) == pytest.approx((1.2, 0.3))


def test_no_time_passed():
    at = np.ones(4)
    there = np.ones((4, 2))
    found = metrics(
        traces.small(
            arrival_s=at,
            end_s=at,
            first_token_s=at,
            admitted_s=there,
            left_s=there,
            visits=None,
            end_of_run_s=1.0,
        )
    )
    assert found.observed_s == 0
    assert math.isnan(found.requests_per_s) and math.isnan(found.utilisation)


@pytest.mark.parametrize("limit", [0.0, -1.0, NAN, math.inf])
def test_a_limit_is_positive_and_finite(limit):
    with pytest.raises(ValueError, match="metrics: tpot_slo_s must be positive and finite"):
        metrics(traces.small(), tpot_slo_s=limit)


def test_only_traces_are_summed_up():
    with pytest.raises(TypeError, match="metrics: trace must be a Trace, got 'x'"):
        metrics("x")


def test_a_limit_is_a_number():
    with pytest.raises(TypeError, match="metrics: latency_slo_s must be a number, got '1'"):
        metrics(traces.small(), latency_slo_s="1")


def test_to_dict_is_plain():
    found = traces.small(end_s=np.full(4, NAN)).metrics(ttft_slo_s=2)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["latency_s"] == {"n": 0, "mean": None, "p50": None, "p95": None, "p99": None}
    assert plain["node_utilisation"] == [0.5, 0.0, 0.2] and plain["requests_per_s"] == 0
    assert plain["ttft_slo_s"] == 2.0 and plain["latency_slo_s"] is None
    assert plain["n_unfinished"] == 4 and plain["node_names"] == ["e0", "e1", "c0"]


def test_text_says_what_was_measured():
    text = str(metrics(traces.small(), ttft_slo_s=2.0, latency_slo_s=3.0))
    for words in (
        "small, round_robin",
        "4, of which 1 never ended",
        "mean 5 s, p50 4 s, p95 8.5 s, p99 8.9 s",
        "0.3 requests/s, 0.9 output tokens/s; load offered for",
        "25.0% with TTFT <= 2 s, latency <= 3 s; goodput 0.1 requests/s",
        "edge 25.0%, cloud 20.0%",
        "2.4 counted once at each stage where they are under way, 0.6 of these waiting; 1.6 a"
        " batch, 0.3 without a node",
        "(a busy node may have room in its batches)",
        "3, 34 tokens lost",
    ):
        assert words in text
    assert "SLO" not in str(metrics(traces.small()))


@given(trace=traces.random_traces(), limits=st.lists(st.floats(1e-9, 1e4), min_size=2))
def test_invariants(trace, limits):
    found = metrics(trace)
    for summary, times_s in (
        (found.latency_s, trace.end_s - trace.arrival_s),
        (found.ttft_s, trace.first_token_s - trace.arrival_s),
    ):
        known = np.sort(times_s[~np.isnan(times_s)])
        assert summary.n == len(known)
        if summary.n:
            slack = 1e-12 * known[-1]
            assert known[0] <= summary.p50 <= summary.p95 <= summary.p99 <= known[-1]
            assert known[0] - slack <= summary.mean <= known[-1] + slack
    assert found.n_finished + found.n_unfinished == found.n_requests
    share = found.n_finished / found.n_requests
    for name in ("ttft_slo_s", "tpot_slo_s", "latency_slo_s"):
        attained = [metrics(trace, **{name: limit}).slo_attainment for limit in sorted(limits)]
        assert attained == sorted(attained)
        assert attained[0] >= 0 and attained[-1] <= share
    loose = metrics(trace, ttft_slo_s=1e9, tpot_slo_s=1e9, latency_slo_s=1e9)
    assert loose.slo_attainment == share
    assert loose.goodput_requests_per_s == pytest.approx(found.requests_per_s, nan_ok=True)


@given(trace=traces.random_traces())
def test_utilisation_is_busy_time_over_what_was_observed(trace):
    found = metrics(trace)
    assert min(found.node_utilisation) >= 0 and max(found.node_utilisation) <= 1 + 1e-9
    busy_s = np.array(found.node_utilisation) * found.observed_s
    assert busy_s == pytest.approx(trace.busy_s)
    weights = np.bincount(trace.node_tier)
    assert np.average(found.tier_utilisation, weights=weights) == pytest.approx(
        found.utilisation
    )


@given(
    fails_at_s=st.floats(0.0, 2.0),
    failing=st.lists(
        st.sampled_from([f"{tier}-{n}" for tier in ("bench", "rented") for n in range(2)]),
        unique=True,
    ),
    max_num_seqs=st.integers(1, 8),
)
@example(fails_at_s=0.6, failing=["rented-0", "rented-1"], max_num_seqs=4)
@example(fails_at_s=0.0, failing=["bench-0", "bench-1"], max_num_seqs=4)
def test_no_node_of_a_simulation_is_busy_for_longer_than_it_lasts(**options):
    trace = traces.simulated(**options)
    found = metrics(trace)
    assert found.n_unfinished == 0 or len(options["failing"]) > 1
    assert trace.arrival_s.max() <= trace.end_of_run_s
    used = found.node_utilisation if found.observed_s else (0.0,)
    assert min(used) >= 0 and max(used) <= 1 + 1e-9
    assert not found.mean_waiting < 0  # nan if no time passed
    assert not found.mean_waiting > found.mean_at_nodes + 1e-9
    assert not found.mean_at_nodes > 2 * len(trace.arrival_s) + 1e-9  # two stages


@pytest.mark.parametrize("level", ["flow", "token"])
def test_of_a_simulation(level):
    trace = traces.simulated(level=level)
    found = metrics(trace)
    assert found.n_unfinished == 0 and found.restarts == 0
    latencies_s = trace.latency_s.sum()  # Little's law
    assert found.mean_in_flight * found.observed_s == pytest.approx(latencies_s)
    at_nodes_s = np.nansum(trace.left_s - trace.reached_s)
    assert found.mean_at_nodes * found.observed_s == pytest.approx(at_nodes_s)
    waiting_s = np.nansum(trace.admitted_s - trace.reached_s)
    assert found.mean_waiting * found.observed_s == pytest.approx(waiting_s, abs=1e-9)
    assert found.output_tokens_per_s == pytest.approx(
        found.requests_per_s * trace.output_tokens.mean()
    )
    assert found.utilisation == pytest.approx(trace.busy_s.mean() / found.observed_s)
    assert 0 < found.utilisation < 1 and found.utilisation < found.active_utilisation
    if level == "token":
        wanted_s = found.ttft_s.mean * len(trace.arrival_s) + np.nansum(
            trace.tpot_s * (trace.output_tokens - 1)
        )
        assert trace.latency_s.sum() == pytest.approx(wanted_s)
        assert found.mean_batch > 1
