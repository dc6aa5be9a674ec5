"""`simulate` where things coincide, are lost for good, or are huge."""

import os
import tracemalloc

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from hypsolve.simulation import token_level
from tests.helpers import token_toys as toys

SECOND = toys.gpu(t0_s=1.0)  # every iteration takes one
OPTIONS = [
    {},
    {"link_contention": True},
    {"max_num_seqs": 1, "chunk_tokens": 1},
    {"max_num_seqs": 3, "chunk_tokens": 2, "link_contention": True},
]


# everything at one instant


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nothing_takes_time(policy, options):
    """No bytes, no latencies, no flops: every request ends at its arrival, all work is done."""
    deployment = toys.deployment(
        [[toys.gpu()] * 2] * 3,
        hs.Requests(np.repeat([0.0, 7.0], 5), np.arange(1, 11), np.arange(10, 0, -1)),
    )
    trace = hs.simulate(deployment, toys.even(3), policy, **options)
    np.testing.assert_array_equal(trace.end_s, trace.arrival_s)
    np.testing.assert_array_equal(trace.first_token_s, trace.arrival_s)
    assert trace.n_tokens.sum() == 3 * 10 * 10  # p + o - 1 = 10 on each of 3 stages
    assert not trace.busy_s.any()
    metrics = trace.metrics(ttft_slo_s=1e-9)
    assert metrics.n_finished == 10 and metrics.slo_attainment == 1


@pytest.mark.parametrize("options", OPTIONS)
def test_relays_that_take_no_time_change_nothing(options):
    requests = hs.Requests(np.zeros(9), np.arange(1, 10), np.arange(9, 0, -1))
    blocks = toys.model(2)
    bare = hs.simulate(
        toys.deployment([[SECOND] * 2] * 2, requests, blocks), toys.even(2), **options
    )
    relayed = hs.simulate(
        toys.deployment([[SECOND] * 2] * 5, requests, blocks), hs.Partition((0, 0, 1, 1, 2, 2)),
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(relayed.end_s, bare.end_s)
    np.testing.assert_array_equal(relayed.node[:, [1, 3]], bare.node)
    assert (relayed.node[:, [0, 2, 4]] == -1).all()
    assert np.isnan(relayed.reached_s[:, [0, 2, 4]]).all()


def test_a_burst_of_equals_is_served_by_index():
    deployment = toys.deployment([[SECOND]], toys.burst(50, at_s=2.0))
    trace = hs.simulate(deployment, toys.even(1), max_num_seqs=8)
    np.testing.assert_array_equal(trace.end_s, 3.0 + np.arange(50) // 8)


def test_arrivals_need_not_be_in_order():
    arrival_s = np.array([5.0, 1.0, 9.0, 1.0, 0.0])
    deployment = toys.deployment([[SECOND]], hs.Requests(arrival_s, [1] * 5, [1] * 5))
    trace = hs.simulate(deployment, toys.even(1), max_num_seqs=1)
    assert trace.end_s.tolist() == [6, 2, 10, 3, 1]


# sizes


def test_one_tier_and_many_tokens():
    deployment = toys.deployment([[SECOND]], toys.burst(3, prompt_tokens=5, output_tokens=1000))
    trace = hs.simulate(deployment, toys.even(1))
    assert trace.end_s.tolist() == [1000.0] * 3
    assert trace.tpot_s.tolist() == [1.0] * 3
    assert trace.n_visits == 3000 and trace.n_iterations.tolist() == [1000]


def test_requests_of_one_output_token_have_no_time_per_token():
    trace = hs.simulate(toys.deployment([[SECOND]] * 2, toys.burst(4)), toys.even(2))
    np.testing.assert_array_equal(trace.first_token_s, trace.end_s)
    assert np.isnan(trace.tpot_s).all() and trace.metrics().tpot_s.n == 0


@pytest.mark.parametrize("chunk_tokens", [None, 2**40, 2**36, 2**70])
def test_huge_prompts(chunk_tokens):
    """A kiloflop per token at a petaflop a second; attention of 2**79 pairs, a flop each."""
    block = hs.Block(
        kind="b", weight_bytes=0, flops_per_token=1e3, attention_flops_per_pair=1.0,
        kv_bytes_per_token=2**20,
    )  # fmt: skip
    p = 2**40
    deployment = toys.deployment(
        [[toys.gpu(seconds_per_flop=1e-15)]], hs.Requests([0.0], [p], [2]),
        hs.Model(name="huge", blocks=(block,)), memory_bytes=2.0**20 * (p + 2),
    )  # fmt: skip
    trace = hs.simulate(deployment, toys.even(1), chunk_tokens=chunk_tokens, max_num_seqs=2**70)
    prefill_s = (1e3 * p + p * (p + 1) / 2) * 1e-15
    assert trace.ttft_s[0] == pytest.approx(prefill_s, rel=1e-9)
    assert trace.tpot_s[0] == pytest.approx((1e3 + p + 1) * 1e-15, rel=1e-2)  # late in time
    assert trace.n_iterations[0] == 1 + (p // chunk_tokens or 1 if chunk_tokens else 1)


def test_a_node_with_room_for_one_serves_one_at_a_time():
    deployment = toys.deployment(
        [[SECOND]], toys.burst(4, prompt_tokens=7, output_tokens=3), toys.model(1, kv_bytes=1),
        memory_bytes=10.0,
    )  # fmt: skip
    trace = hs.simulate(deployment, toys.even(1))
    assert trace.end_s.tolist() == [3, 6, 9, 12]
    assert trace.admitted_s[:, 0].tolist() == [0, 3, 6, 9]
    width_s = trace.series.bin_s
    assert trace.series.kv_bytes.max() <= 10
    assert trace.series.kv_bytes.sum() * width_s == pytest.approx(4 * 3 * 10)


# failures at the very moment of something else


def one_stage(n_nodes, requests, *events):
    deployment = toys.deployment([[SECOND] * n_nodes], requests)
    return hs.simulate(
        deployment,
        toys.even(1),
        "round_robin",
        max_num_seqs=1,
        events=events,
        record_visits=True,
    )


def test_work_that_ends_when_its_node_fails_is_done():
    trace = one_stage(1, toys.burst(1), hs.Event(1.0, "failure", "a0"))
    assert trace.end_s.tolist() == [1.0] and trace.restarts.tolist() == [0]


def test_work_that_would_end_a_moment_later_is_lost():
    just_before = np.nextafter(1.0, 0.0)
    trace = one_stage(
        1, toys.burst(1), hs.Event(just_before, "failure", "a0"), hs.Event(5, "recovery", "a0")
    )
    assert trace.end_s.tolist() == [6.0] and trace.restarts.tolist() == [1]
    assert trace.lost_tokens.tolist() == [0]  # none had been computed
    assert trace.busy_s.tolist() == [1 + just_before] and trace.n_iterations.tolist() == [1]


def test_a_request_that_arrives_when_a_node_fails_goes_elsewhere():
    trace = one_stage(2, toys.burst(2, at_s=3.0), hs.Event(3.0, "failure", "a0"))
    assert trace.node[:, 0].tolist() == [1, 1] and trace.end_s.tolist() == [4.0, 5.0]
    assert trace.restarts.tolist() == [0, 0]


def test_a_node_may_fail_and_recover_at_one_instant():
    events = hs.Event(0.5, "failure", "a0"), hs.Event(0.5, "recovery", "a0")
    trace = one_stage(1, toys.burst(2), *events)
    assert trace.restarts.tolist() == [1, 1] and trace.end_s.tolist() == [1.5, 2.5]
    assert trace.reached_s[:, 0].tolist() == [0.5, 0.5]


def test_a_node_may_fail_before_anything_arrives():
    events = hs.Event(0.0, "failure", "a0"), hs.Event(2.0, "recovery", "a0")
    trace = one_stage(1, toys.burst(1), *events)
    assert trace.restarts.tolist() == [0] and trace.end_s.tolist() == [3.0]


@pytest.mark.parametrize("late", [False, True])
def test_a_token_that_returns_when_a_node_fails_is_lost(late):
    """A failure comes before what returns at its instant; a moment later it is after."""
    link = hs.Link(bytes_per_s=1e30, latency_s=0.0, return_latency_s=0.5)
    deployment = toys.deployment(
        [[SECOND], [SECOND]], toys.burst(1, prompt_tokens=4, output_tokens=2), links=[link]
    )
    at_s = 2.5 + (1e-3 if late else 0.0)  # prefills end at 1 and 2, the token is back at 2.5
    events = hs.Event(at_s, "failure", "a0"), hs.Event(at_s, "recovery", "a0")
    trace = hs.simulate(deployment, toys.even(2), events=events, record_visits=True)
    assert trace.restarts.tolist() == [1]
    assert trace.lost_tokens.tolist() == [8]
    assert trace.visits is not None
    again = trace.visits.tokens[2:].tolist()
    if late:  # the delivered token is computed again with the prompt
        assert again == [5, 5] and trace.first_token_s[0] == 2.5
        assert trace.end_s[0] == pytest.approx(at_s + 2.5)
    else:
        assert again == [4, 4, 1, 1] and trace.first_token_s[0] == 5.0
        assert trace.end_s[0] == 7.5


def test_a_failure_spares_the_requests_that_are_through():
    """One has left the first stage when its node fails; the other has not."""
    deployment = toys.deployment([[SECOND] * 2, [SECOND]], toys.burst(2))
    events = (hs.Event(1.5, "failure", "a0"),)
    trace = hs.simulate(
        deployment, toys.even(2), "join_shortest_queue", max_num_seqs=1, events=events
    )
    assert trace.node.tolist() == [[0, 0], [1, 0]]
    assert trace.restarts.tolist() == [0, 0] and trace.end_s.tolist() == [2.0, 3.0]
    alone = hs.simulate(
        deployment, toys.even(2), lambda *_: 0, max_num_seqs=1, events=events[:0]
    )
    assert alone.end_s.tolist() == [2.0, 3.0]
    first = toys.deployment([[SECOND] * 2, [SECOND]], toys.burst(2), toys.model(2))
    plan = hs.Schedule(np.zeros((2, 2), int), np.zeros((2, 2)), np.zeros((2, 2)))
    trace = hs.simulate(first, toys.even(2), plan, max_num_seqs=1, events=events)
    assert trace.restarts.tolist() == [0, 1]
    assert trace.node.tolist() == [[0, 0], [1, 0]]  # the next one up
    assert trace.end_s.tolist() == [2.0, 3.5]


def test_an_iteration_that_hangs_and_is_lost_leaves_no_trace_in_the_series():
    """It would have ended after a million seconds; nobody waits for that, nor do the series."""
    deployment = toys.deployment([[SECOND] * 2], toys.burst(4, output_tokens=3))
    events = [hs.Event(0.0, "slowdown", "a0", 1e6), hs.Event(5.0, "failure", "a0")]
    trace = hs.simulate(deployment, toys.even(1), events=events)
    assert trace.end_s.max() < 20
    n_bins = trace.series.busy.shape[1]
    assert trace.series.start_s + n_bins * trace.series.bin_s < 40


# nobody there


def test_all_nodes_of_a_tier_lost_for_good():
    deployment = toys.deployment(
        [[SECOND] * 2, [SECOND] * 2], hs.Requests(np.arange(6.0), [1] * 6, [1] * 6)
    )
    events = [hs.Event(3.5, "failure", "b1"), hs.Event(4.0, "failure", "b0")]
    trace = hs.simulate(deployment, toys.even(2), events=events)
    ended = trace.end_s <= 4.0
    assert ended.tolist() == [True] * 3 + [False] * 3
    assert np.isnan(trace.end_s[3:]).all() and np.isnan(trace.left_s[3:, 1]).all()
    metrics = trace.metrics(latency_slo_s=10.0)
    assert (metrics.n_finished, metrics.n_unfinished) == (3, 3)
    assert metrics.slo_attainment == 0.5 and metrics.latency_s.n == 3
    assert (trace.node[3:, 1] == -1).all() and (trace.node[3:, 0] >= 0).all()


def test_memory_held_for_those_who_wait_for_ever_keeps_others_out():
    """No deadlock of the simulator, and nobody is dropped: they are counted as unfinished."""
    deployment = toys.deployment(
        [[SECOND], [SECOND]], toys.burst(3, 7, 3), toys.model(2, kv_bytes=1), memory_bytes=10.0
    )
    events = [hs.Event(0.0, "failure", "b0")]
    trace = hs.simulate(deployment, toys.even(2), events=events)
    assert trace.metrics().n_unfinished == 3
    assert trace.admitted_s[0, 0] == 0 and np.isnan(trace.admitted_s[1:]).all()
    events.append(hs.Event(100.0, "recovery", "b0"))
    trace = hs.simulate(deployment, toys.even(2), events=events)
    assert trace.end_s.tolist() == [105.0, 111.0, 117.0]


def test_requests_wait_for_nodes_to_join():
    deployment = toys.deployment(
        [[SECOND] * 2], hs.Requests([3.0, 1.0, 2.0, 6.0], [1] * 4, [1] * 4)
    )
    events = [hs.Event(5.0, "join", "a1"), hs.Event(5.0, "join", "a0")]
    trace = hs.simulate(deployment, toys.even(1), "round_robin", max_num_seqs=1, events=events)
    assert trace.node[:, 0].tolist() == [0, 1, 0, 1]  # by index, when all that join have
    assert trace.end_s.tolist() == [6.0, 6.0, 7.0, 7.0]
    assert trace.reached_s[:, 0].tolist() == [3, 1, 2, 6]
    assert trace.admitted_s[:, 0].tolist() == [5, 5, 5, 6]


def test_a_node_that_never_joins_serves_nobody():
    deployment = toys.deployment([[SECOND] * 2], toys.burst(4))
    events = [hs.Event(1e6, "join", "a0")]
    trace = hs.simulate(deployment, toys.even(1), max_num_seqs=1, events=events)
    assert (trace.node == 1).all() and trace.n_iterations.tolist() == [0, 4]


def test_a_stage_may_be_absent_until_its_requests_are_there():
    deployment = toys.deployment([[SECOND], [SECOND]], toys.burst(3))
    trace = hs.simulate(deployment, toys.even(2), events=[hs.Event(10.0, "join", "b0")])
    assert trace.end_s.tolist() == [11.0] * 3
    assert trace.reached_s[:, 1].tolist() == [1.0] * 3


# the machinery


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="too slow to trace")
def test_memory_is_linear_in_requests_not_in_tokens():
    n = 1000

    def peak_bytes(output_tokens, n=n, **options):
        requests = toys.burst(n, prompt_tokens=3, output_tokens=output_tokens)
        deployment = toys.deployment([[SECOND] * 2] * 3, requests)
        hs.simulate(deployment, toys.even(3), **options)  # whatever is kept is there now
        tracemalloc.start()
        trace = hs.simulate(deployment, toys.even(3), **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert trace.n_visits == 3 * n * output_tokens
        return peak

    few, many = peak_bytes(2), peak_bytes(40)
    assert many < few + 3 * n * 40  # not even a byte per visit
    assert peak_bytes(2, 4 * n) < 4.5 * few
    logged = peak_bytes(40, record_visits=True)
    assert logged > many + 3 * n * 40 * 48  # what the probe does see


@pytest.mark.parametrize("policy", ["hypsched_rt", "power_of_two"])
def test_a_simulation_that_is_looked_at_often_is_the_same(policy, monkeypatch):
    rng = np.random.default_rng(1)
    deployment = toys.deployment(
        [[SECOND] * 2] * 3,
        hs.Requests(rng.integers(0, 20, 40) * 1.0, rng.integers(1, 9, 40), [4] * 40),
    )
    events = [hs.Event(9.0, "failure", "b0"), hs.Event(12.0, "recovery", "b0")]
    options = {"events": events, "chunk_tokens": 5, "record_visits": True}
    at_once = hs.simulate(deployment, toys.even(3), policy, **options)
    monkeypatch.setattr(token_level, "_EVENTS_AT_A_TIME", 3)
    toys.assert_same(hs.simulate(deployment, toys.even(3), policy, **options), at_once)
