"""Batching modes, paged KV cache and closed loops: closed forms and conservation laws."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import random_scenario
from tests.helpers.sizes import n_cases

MODES = ("stage", "pipeline", "serial")
TOGETHER = ("pipeline", "serial")
SECOND = toys.gpu(t0_s=1.0)


def chain(n_stages, requests, **fields):
    """Return a deployment of one node of one second per tier, one block each."""
    return toys.deployment([[SECOND]] * n_stages, requests, **fields)


# one request


@pytest.mark.parametrize("batching", TOGETHER)
@pytest.mark.parametrize("chunk_tokens", [1, 4, 10, None])
@pytest.mark.parametrize("link_contention", [False, True])
def test_one_request_passes_once_per_chunk_and_token(batching, chunk_tokens, link_contention):
    """Under `serial` a chunk is taken when the one before is back, here with a whole prompt."""
    p, o = 10, 4
    link = hs.Link(bytes_per_s=8.0, latency_s=0.25, return_latency_s=0.5)
    blocks = toys.model(3, output_bytes=4)
    deployment = chain(3, toys.burst(1, p, o), blocks=blocks, links=[link] * 2)
    trace = hs.simulate(
        deployment, toys.even(3), batching=batching, link_contention=link_contention,
        chunk_tokens=chunk_tokens if batching == "serial" else None,
    )  # fmt: skip
    n_chunks = -(-p // (chunk_tokens or p)) if batching == "serial" else 1
    passes = n_chunks + o - 1
    on_links_s = (p + o - 1) * 2 * 4 / 8.0 + passes * 2 * (0.25 + 0.5)
    assert trace.end_s[0] == pytest.approx(passes * 3.0 + on_links_s, rel=1e-12)
    assert trace.first_token_s[0] < trace.end_s[0]


@pytest.mark.parametrize("n_stages", [1, 2, 5])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 12])
def test_chunks_follow_each_other_through_a_pipeline(n_stages, chunk_tokens):
    """Schedule a chunk while the one before is in flight, as vLLM does; a token waits."""
    trace = hs.simulate(
        chain(n_stages, toys.burst(1, 12, 3)), toys.even(n_stages), batching="pipeline",
        chunk_tokens=chunk_tokens,
    )  # fmt: skip
    assert trace.first_token_s[0] == n_stages + 12 // chunk_tokens - 1
    assert trace.end_s[0] == trace.first_token_s[0] + 2 * n_stages


@pytest.mark.parametrize("micro_batch_tokens", [1, 3, 4, 12, 50])
def test_micro_batches_overlap_over_the_stages(micro_batch_tokens):
    """m parts pass k stages of one second in k + m - 1 seconds."""
    deployment = chain(3, toys.burst(1, 12, 2))
    trace = hs.simulate(
        deployment, toys.even(3), batching="serial", micro_batch_tokens=micro_batch_tokens
    )
    n_parts = -(-12 // micro_batch_tokens)
    assert trace.first_token_s[0] == 3 + n_parts - 1
    assert trace.end_s[0] == trace.first_token_s[0] + 3
    assert trace.n_iterations.tolist() == [n_parts + 1] * 3
    assert trace.n_visits == 3 * (n_parts + 1)


@pytest.mark.parametrize("n_stages", [1, 4])
def test_one_stage_or_whole_prompts_leave_one_request_as_it_was(n_stages):
    """A single request with a whole prompt does not see the mode."""
    deployment = chain(n_stages, toys.burst(1, 9, 5))
    ends = [
        hs.simulate(deployment, toys.even(n_stages), batching=batching).end_s[0]
        for batching in MODES
    ]
    assert ends == [n_stages * 5.0] * 3


# many requests


@pytest.mark.parametrize("batching", TOGETHER)
def test_requests_of_one_batch_stay_together(batching):
    """N requests that arrive at once form one batch: N tokens per cycle, in both modes."""
    n, o = 12, 5
    trace = hs.simulate(chain(3, toys.burst(n, 1, o)), toys.even(3), batching=batching)
    cycle_s = 3.0
    np.testing.assert_array_equal(trace.end_s, o * cycle_s)
    assert trace.n_iterations.tolist() == [o] * 3


def test_serial_cycles_over_the_stages():
    """With all requests alike, the throughput is N tokens per cycle, the links included."""
    n, o = 6, 50
    slow = toys.gpu(t0_s=0.5)
    link = hs.Link(bytes_per_s=4.0, latency_s=0.1)
    deployment = toys.deployment(
        [[SECOND], [slow]], toys.burst(n, 1, o), toys.model(2, output_bytes=1), links=[link]
    )
    trace = hs.simulate(deployment, toys.even(2), batching="serial")
    cycle_s = 1.0 + 0.5 + n * 1 / 4.0 + 0.1 + 0.1
    np.testing.assert_allclose(trace.end_s, o * cycle_s, rtol=1e-12)


@pytest.mark.parametrize("n_stages", [2, 3, 5])
def test_a_full_pipeline_holds_a_share_of_the_requests_in_each_batch(n_stages):
    """Batches of N / K requests follow each other at the pace of a stage."""
    share, o = 4, 6
    requests = toys.burst(share * n_stages, 1, o)
    trace = hs.simulate(
        chain(n_stages, requests), toys.even(n_stages), batching="pipeline", chunk_tokens=share
    )
    batch = np.arange(share * n_stages) // share
    np.testing.assert_array_equal(trace.end_s, batch + n_stages * o)
    np.testing.assert_array_equal(trace.n_iterations, n_stages * o)
    assert trace.metrics().mean_batch == share


def test_as_many_batches_are_in_flight_as_there_are_stages():
    """A third batch of one-token prompts waits for the first one although a node is idle."""
    tiers = [[toys.gpu(t0_s=1.0)], [toys.gpu("slow", t0_s=10.0)]]
    deployment = toys.deployment(tiers, toys.burst(3))
    trace = hs.simulate(
        deployment, toys.even(2), batching="pipeline", chunk_tokens=1, record_visits=True
    )
    first = trace.visits.node == 0
    assert trace.visits.start_s[first].tolist() == [0.0, 1.0, 11.0]
    assert trace.end_s.tolist() == [11.0, 21.0, 31.0]


@pytest.mark.parametrize("batching", TOGETHER)
def test_running_requests_are_limited(batching):
    """With two seats, four requests of four tokens are served two by two."""
    trace = hs.simulate(
        chain(2, toys.burst(4, 1, 4)), toys.even(2), batching=batching, max_num_seqs=2
    )
    assert trace.admitted_s[:, 0].tolist() == [0.0, 0.0, 8.0, 8.0]
    assert trace.end_s.tolist() == [8.0, 8.0, 16.0, 16.0]


def test_decode_tokens_come_first_within_the_token_budget():
    """Two decode tokens leave room for one prompt token of a budget of three."""
    requests = hs.Requests([0.0, 0.0, 1.0], [1, 1, 3], [9, 9, 1])
    for batching in MODES:
        trace = hs.simulate(
            chain(1, requests), toys.even(1), batching=batching, max_num_batched_tokens=3,
            record_visits=True,
        )  # fmt: skip
        rows = trace.visits.request == 2
        assert trace.visits.tokens[rows].tolist() == [1, 1, 1]
        assert trace.visits.start_s[rows].tolist() == [1.0, 2.0, 3.0]
        assert trace.end_s.tolist() == [9.0, 9.0, 4.0]


def test_chunks_are_limited_by_both_limits():
    """The smaller of `chunk_tokens` and what `max_num_batched_tokens` leaves counts."""
    for batching in MODES:
        trace = hs.simulate(
            chain(1, toys.burst(1, 7, 1)), toys.even(1), batching=batching, chunk_tokens=3,
            max_num_batched_tokens=5, record_visits=True,
        )  # fmt: skip
        assert trace.visits.tokens.tolist() == [3, 3, 1]


# host seconds


@pytest.mark.parametrize("batching", MODES)
def test_host_seconds_are_added_to_each_iteration(batching):
    """Mode `stage`: at every node; else once per batch."""
    trace = hs.simulate(
        chain(2, toys.burst(1, 1, 3)), toys.even(2), batching=batching, iteration_s=0.25
    )
    per_pass_s = 2 * 1.25 if batching == "stage" else 2.25
    assert trace.end_s[0] == 3 * per_pass_s
    busy_s = 1.25 if batching == "stage" else 1.0
    np.testing.assert_array_equal(trace.busy_s, 3 * busy_s)


def test_the_host_prepares_one_batch_at_a_time():
    """Where the host is slower than every stage, it sets the pace."""
    trace = hs.simulate(
        chain(3, toys.burst(3)), toys.even(3), batching="pipeline", chunk_tokens=1,
        iteration_s=2.0,
    )  # fmt: skip
    assert trace.end_s.tolist() == [5.0, 7.0, 9.0]


def test_a_slowdown_does_not_stretch_host_seconds():
    """The node takes three times as long from the start; the host does not."""
    slow = [hs.Event(0.0, "slowdown", "a0", factor=3.0)]
    for batching in MODES:
        trace = hs.simulate(
            chain(1, toys.burst(1)), toys.even(1), batching=batching, iteration_s=0.5,
            events=slow,
        )  # fmt: skip
        assert trace.end_s[0] == 3.5


# pipelines


@pytest.mark.parametrize("batching", TOGETHER)
def test_further_nodes_stay_idle(batching):
    """Three, two and four nodes make two pipelines; the others compute nothing."""
    sizes = (3, 2, 4)
    deployment = toys.deployment([[SECOND] * n for n in sizes], toys.burst(30, 1, 2))
    trace = hs.simulate(deployment, toys.even(3), "round_robin", batching=batching)
    np.testing.assert_array_equal(trace.node, np.repeat(np.arange(30)[:, None] % 2, 3, axis=1))
    first = np.cumsum((0, *sizes[:-1]))
    used = np.concatenate([first, first + 1])
    assert (trace.busy_s[used] > 0).all()
    assert np.delete(trace.busy_s, used).sum() == 0
    assert (np.delete(trace.kv_capacity_bytes, used) == 0).all()


@pytest.mark.parametrize("batching", TOGETHER)
def test_pipelines_skip_nodes_that_cannot_hold_their_stage(batching):
    """The first node of the second tier is too small: the second one is in pipeline 0."""
    block = hs.Block(kind="block", weight_bytes=10, flops_per_token=1.0)
    model = hs.Model(name="heavy", blocks=(block, block))
    small, large = (
        hs.Node(name=n, gpu=SECOND, memory_bytes=m) for n, m in (("s", 5), ("l", 99))
    )
    link = hs.Link(bytes_per_s=1e30, latency_s=0.0)
    tiers = (
        hs.Tier(name="a", nodes=(hs.Node(name="n", gpu=SECOND, memory_bytes=99),), link=link),
        hs.Tier(name="b", nodes=(small, large)),
    )
    deployment = hs.Deployment(
        model=model, network=hs.Network(name="two", tiers=tiers), requests=toys.burst(2)
    )
    trace = hs.simulate(deployment, hs.Partition((0, 1, 2)), batching=batching)
    assert trace.node.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("batching", TOGETHER)
def test_a_failure_anywhere_takes_the_whole_pipeline_down(batching):
    """Requests restart at the other pipeline; the tokens that came back join their prompts."""
    deployment = toys.deployment([[SECOND] * 2] * 2, toys.burst(2, 3, 4))
    trace = hs.simulate(
        deployment, toys.even(2), "round_robin", batching=batching, record_visits=True,
        events=[hs.Event(5.5, "failure", "b0")],
    )  # fmt: skip
    # alone: 2 s per token. At 5.5 s request 0 has two tokens; its third is at stage 1.
    assert trace.restarts.tolist() == [1, 0]
    assert trace.node.tolist() == [[1, 1], [1, 1]]
    assert trace.lost_tokens.tolist() == [(3 + 1 + 1) + (3 + 1), 0]
    again = trace.visits.request == 0
    again &= trace.visits.node == 1
    assert trace.visits.tokens[again].tolist() == [5, 1]
    assert trace.busy_s[2] == 1 + 1 + 0.5


@pytest.mark.parametrize("batching", TOGETHER)
def test_a_lost_batch_holds_no_other_back(batching):
    """A message of 100 s is lost at 2 s; a later batch of the pipeline does not wait for it."""
    slow = hs.Link(bytes_per_s=1.0, latency_s=0.0)
    requests = hs.Requests([0.0, 4.0], [100, 1], [1, 1])
    deployment = toys.deployment(
        [[SECOND] * 2] * 2, requests, toys.model(2, output_bytes=1), links=[slow]
    )
    trace = hs.simulate(
        deployment, toys.even(2), "round_robin", batching=batching,
        events=[hs.Event(2.0, "failure", "a0"), hs.Event(3.0, "recovery", "a0")],
    )  # fmt: skip
    assert trace.node.tolist() == [[1, 1], [0, 0]]
    assert trace.end_s.tolist() == [2.0 + 1 + 100 + 1, 4.0 + 1 + 1 + 1]


@pytest.mark.parametrize("batching", TOGETHER)
def test_requests_wait_until_a_pipeline_is_whole(batching):
    """Each pipeline lacks a node until one recovers."""
    deployment = toys.deployment([[SECOND] * 2] * 2, toys.burst(1, 1, 1, at_s=1.0))
    events = [
        hs.Event(0.0, "failure", "a0"),
        hs.Event(0.0, "failure", "b1"),
        hs.Event(7.0, "recovery", "a0"),
    ]
    trace = hs.simulate(deployment, toys.even(2), batching=batching, events=events)
    assert trace.end_s.tolist() == [9.0]
    assert trace.reached_s.tolist() == [[1.0, 1.0]]
    assert trace.series.n_stranded[0].sum() * trace.series.bin_s == pytest.approx(6.0)
    never = hs.simulate(deployment, toys.even(2), batching=batching, events=events[:2])
    assert np.isnan(never.end_s[0])
    assert never.node.tolist() == [[-1, -1]]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_functions_on_offer_choose_pipelines_as_the_kernel_does(name):
    """`TierState` describes pipelines so that the policies in Python choose alike."""
    for seed in range(n_cases(15, 40)):
        scenario = replace(random_scenario(seed, hs.simulate, TOGETHER), policy=name)
        theirs = replace(scenario, policy=POLICIES[name].choose)
        toys.assert_same(theirs.run(hs.simulate), scenario.run(hs.simulate))


def test_policies_see_sums_over_the_pipeline():
    """One request is under way: a job of two seconds per token on the first pipeline."""
    seen = []
    requests = hs.Requests([0.0, 1.5], [1, 1], [3, 3])
    deployment = toys.deployment([[SECOND] * 2] * 2, requests)
    policy = toys.spy_on(POLICIES["round_robin"].choose, seen)
    hs.simulate(deployment, toys.even(2), policy, batching="serial")
    _, _, state = seen[1]
    assert state.nodes.tolist() == [0, 1]
    assert state.n_jobs.tolist() == [1, 0]
    assert state.own_s.tolist() == pytest.approx([6.0, 6.0])
    assert state.outstanding_s.tolist() == pytest.approx([6.0, 0.0])
    # 0.5 s of the running part, two decodes at stage 0, two at stage 1
    assert state.remaining_s.tolist() == pytest.approx([4.5, 0.0])


# paged KV cache


@pytest.mark.parametrize("batching", MODES)
def test_the_request_that_arrived_last_is_preempted_and_computed_again(batching):
    """Ten tokens of KV cache for two requests of 3 + 6: by hand, one second per batch.

    At 3 s each holds five tokens and needs one more. Request 1 gives way, until request 0 has
    ended at 6 s; then it reads its prompt and its three tokens, and decodes two more.
    """
    deployment = chain(
        1, toys.burst(2, 3, 6), blocks=toys.model(1, kv_bytes=1), memory_bytes=10.0
    )
    options = {"batching": batching, "kv_block_tokens": 1}
    trace = hs.simulate(deployment, toys.even(1), kv_admission="paged", **options)
    assert trace.end_s.tolist() == [6.0, 9.0]
    assert trace.first_token_s.tolist() == [1.0, 1.0]
    assert trace.preemptions.tolist() == [0, 1]
    assert trace.restarts.tolist() == [0, 0]
    assert trace.lost_tokens.tolist() == [0, 5]
    reserved = hs.simulate(deployment, toys.even(1), **options)
    assert reserved.end_s.tolist() == [6.0, 12.0]


def test_a_request_preempted_in_flight_waits_for_its_batch():
    """Six tokens of KV cache, three stages: batches of one request return every three seconds.

    At 6 s request 0 takes the room of request 2, whose batch is under way until 8 s. Request 1
    ends at 7 s, but request 2 is admitted at 8 s only. Its two chunks follow each other.
    """
    requests = hs.Requests([0.0] * 3, [1, 1, 1], [3, 2, 4])
    trace = hs.simulate(
        chain(3, requests, blocks=toys.model(3, kv_bytes=1), memory_bytes=6.0), toys.even(3),
        batching="pipeline", chunk_tokens=1, kv_admission="paged", kv_block_tokens=1,
    )  # fmt: skip
    assert trace.preemptions.tolist() == [0, 0, 1]
    assert trace.admitted_s[:, 0].tolist() == [0.0, 0.0, 8.0]
    assert trace.end_s.tolist() == [9.0, 7.0, 18.0]


def test_a_request_preempted_on_its_way_back_is_a_job_again():
    """Its last token is computed at 9 s and would be back at 10 s; at 9 s it loses its room."""
    requests = hs.Requests([0.0, 0.0, 0.0, 9.5], [1] * 4, [3, 3, 2, 1])
    back = hs.Link(bytes_per_s=1e30, latency_s=0.0, return_latency_s=0.5)
    deployment = chain(
        3, requests, blocks=toys.model(3, kv_bytes=1), memory_bytes=7.0, links=[back] * 2
    )
    seen = []
    trace = hs.simulate(
        deployment, toys.even(3), toys.spy_on(POLICIES["round_robin"].choose, seen),
        batching="pipeline", chunk_tokens=1, kv_admission="paged", kv_block_tokens=1,
    )  # fmt: skip
    assert trace.preemptions.tolist() == [0, 0, 1, 0]
    assert trace.lost_tokens.tolist() == [0, 0, 2 * 3, 0]
    _, _, state = seen[3]
    assert state.time_s == 9.5
    assert state.n_jobs.tolist() == [3]
    assert state.outstanding_s.tolist() == pytest.approx([3 * (3 + 3 + 2)])
    assert np.isfinite(trace.end_s).all()


@pytest.mark.parametrize("batching", MODES)
def test_a_request_that_fits_when_reserved_fits_in_blocks(batching):
    """Its last block ends with the request, so blocks of any length are no obstacle."""
    for block in (1, 2, 5, 7, 64, 10**30):
        trace = hs.simulate(
            chain(1, toys.burst(2, 3, 4), blocks=toys.model(1, kv_bytes=1), memory_bytes=7.0),
            toys.even(1), batching=batching, kv_admission="paged", kv_block_tokens=block,
        )  # fmt: skip
        assert np.isfinite(trace.end_s).all()
        assert (trace.kv_share <= 1).all()


@pytest.mark.parametrize("batching", MODES)
def test_with_room_for_all_admission_does_not_matter(batching):
    """Pages change nothing as long as memory does not run out."""
    for seed in range(n_cases(15, 30)):
        scenario = random_scenario(seed, hs.simulate, (batching,))
        roomy = tuple(
            replace(t, nodes=tuple(replace(n, memory_bytes=1e13) for n in t.nodes))
            for t in scenario.deployment.network.tiers
        )
        network = replace(scenario.deployment.network, tiers=roomy)
        base = replace(scenario, deployment=replace(scenario.deployment, network=network))
        traces = [
            replace(base, options={**base.options, "kv_admission": kind}).run(hs.simulate)
            for kind in ("reserve", "paged")
        ]
        np.testing.assert_array_equal(traces[0].end_s, traces[1].end_s)
        assert traces[1].preemptions.sum() == 0


# closed loop


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize("think_time_s", [0.0, 0.7])
def test_one_user_sends_one_request_after_the_other(batching, think_time_s):
    """The run is the sum of latencies alone and thinking; the arrivals given are ignored."""
    wire = hs.Link(bytes_per_s=1e9, latency_s=0.125)
    requests = hs.Requests([5.0, 2.0, 9.0, 2.0], [4, 1, 2, 8], [3, 1, 5, 2])
    deployment = toys.deployment(
        [[SECOND], [SECOND], [SECOND]], requests, toys.model(2), links=[wire] * 2
    )
    trace = hs.simulate(
        deployment, hs.Partition((0, 0, 1, 2)), batching=batching, users=1,
        think_time_s=think_time_s,
    )  # fmt: skip
    alone_s = np.array([3, 1, 5, 2]) * (2.0 + 0.25) + 0.25  # the first tier is empty
    np.testing.assert_allclose(trace.latency_s, alone_s, rtol=1e-12)
    assert trace.arrival_s[0] == 2.0
    np.testing.assert_array_equal(trace.arrival_s[1:], trace.end_s[:-1] + think_time_s)
    total_s = alone_s.sum() + 3 * think_time_s
    assert trace.end_s[-1] - 2.0 == pytest.approx(total_s, rel=1e-12)


@pytest.mark.parametrize("batching", MODES)
def test_users_have_one_request_each(batching):
    """Every end but the last ones is followed by the next request after the time to think."""
    for seed in range(30):
        scenario = random_scenario(seed, hs.simulate, (batching,))
        options = {k: v for k, v in scenario.options.items() if k != "events"}
        users, think_time_s = 1 + seed % 5, 0.01 * (seed % 3)
        options |= {"users": users, "think_time_s": think_time_s}
        trace = replace(scenario, options=options).run(hs.simulate)
        assert trace.users == users
        n = len(trace.arrival_s)
        times = trace.from_first()
        sent = np.sort(times.end_s)[: max(n - users, 0)] + think_time_s
        starts_s = np.sort(scenario.deployment.requests.arrival_s)[:users]
        starts_s -= starts_s[0]
        np.testing.assert_array_equal(times.arrival_s[users:], np.maximum(sent, starts_s[-1]))
        np.testing.assert_array_equal(times.arrival_s[:users], starts_s)
        assert np.isfinite(trace.end_s).all()


def test_requests_that_are_never_sent_have_no_times(tmp_path):
    """The only node fails for good while the first of three requests is served."""
    for batching in MODES:
        trace = hs.simulate(
            chain(1, toys.burst(3, 1, 2)), toys.even(1), batching=batching, users=1,
            events=[hs.Event(1.5, "failure", "a0")],
        )  # fmt: skip
        assert trace.arrival_s[0] == 0.0
        for times_s in (trace.arrival_s[1:], trace.end_s, trace.reached_s[1:, 0]):
            assert np.isnan(times_s).all()
        hs.write_perfetto(trace, tmp_path / "trace.json")
        lines = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        assert sum(each["name"] == "request" and each["ph"] == "b" for each in lines) == 1
        assert trace.plot_gantt().get_xlim()[0] == 0.0


# conservation


@pytest.mark.parametrize("batching", MODES)
def test_tokens_are_conserved_and_memory_is_kept(batching):
    """What nodes compute is what requests need, and what was lost; KV cache never overflows."""
    n_preempted = 0
    for seed in range(150):
        scenario = random_scenario(seed, hs.simulate, (batching,))
        trace = scenario.run(hs.simulate, record_visits=True)
        requests, partition = scenario.deployment.requests, scenario.partition
        n_stages = sum(bool(partition.stage(k)) for k in range(partition.n_tiers))
        computed = np.bincount(
            trace.visits.request, trace.visits.tokens, len(requests.prompt_tokens)
        )
        needed = n_stages * (requests.prompt_tokens + requests.output_tokens - 1)
        ended = np.isfinite(trace.end_s)
        np.testing.assert_array_equal(computed[ended], (needed + trace.lost_tokens)[ended])
        assert computed.sum() == trace.n_tokens.sum()
        assert len(trace.visits.request) == trace.n_visits
        assert (trace.kv_share <= 1 + 1e-12).all()
        if not any(e.kind == "failure" for e in scenario.options.get("events", ())):
            assert trace.restarts.sum() == 0
        if "events" not in scenario.options:
            assert ended.all()
        n_preempted += int(trace.preemptions.sum())
    assert n_preempted > 20


@pytest.mark.parametrize("batching", TOGETHER)
def test_batches_keep_their_limits(batching):
    """Tokens and requests of a part; a node computes one part at a time."""
    for seed in range(n_cases(60, 150)):
        scenario = random_scenario(seed, hs.simulate, (batching,))
        options = scenario.options
        trace = scenario.run(hs.simulate, record_visits=True)
        limit = min(
            options.get("max_num_batched_tokens") or np.inf,
            options.get("micro_batch_tokens") or np.inf,
        )
        v = trace.visits
        free_s = np.full(len(trace.node_names), -np.inf)
        parts = {}
        for row in zip(
            *(a.tolist() for a in (v.node, v.start_s, v.end_s, v.tokens)), strict=True
        ):
            parts.setdefault(row[:3], []).append(row[3])
        for (node, start_s, end_s), tokens in sorted(
            parts.items(), key=lambda each: each[0][1]
        ):
            assert start_s >= free_s[node]
            free_s[node] = end_s
            if end_s > start_s:  # those that take no time can look like one
                assert sum(tokens) <= limit
                assert len(tokens) <= options["max_num_seqs"]
