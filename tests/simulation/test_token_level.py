"""The token level beyond its rules: memory, what policies believe, long horizons."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import random_scenario


def deployment(n_requests, outputs):
    """Return a deployment of two tiers of two L4 with ten requests a second."""
    outputs = np.broadcast_to(outputs, n_requests)
    wire = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
    tiers = tuple(
        hs.Tier(
            name=name,
            nodes=tuple(hs.Node(name=f"{name}{j}", gpu=hs.gpu("l4")) for j in range(2)),
            link=link,
        )
        for name, link in (("a", wire), ("b", None))
    )
    return hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="two", tiers=tiers),
        requests=hs.Requests(
            0.1 * np.arange(n_requests), np.full(n_requests, 50), outputs
        ),
    )  # fmt: skip


CUTS = hs.Partition((0, 17, 34))
OUTAGE = (hs.Event(1.01, "failure", "a0"), hs.Event(2.0, "recovery", "a0"))


def peak_bytes(problem, **options):
    tracemalloc.start()
    trace = hs.simulate(problem, CUTS, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, trace


def test_a_failure_costs_no_memory():
    problem = deployment(4000, 2)
    hs.simulate(problem, CUTS)
    calm, _ = peak_bytes(problem)
    churned, trace = peak_bytes(problem, events=OUTAGE)
    assert trace.restarts.sum() > 0
    assert churned < 1.2 * calm
    everyone = hs.simulate(  # reaches a tier whose only node is away: all are stranded at once
        problem, CUTS, events=[hs.Event(500.0, "join", name) for name in ("a0", "a1")]
    )
    assert not np.isnan(everyone.end_s).any()
    assert everyone.visits is None


def test_a_log_that_grows_leaves_the_rest_alone():
    problem = deployment(300, 60)
    without, _ = peak_bytes(problem)
    within, trace = peak_bytes(problem, record_visits=True)
    n_bytes = sum(getattr(trace.visits, f).nbytes for f in ("request", "node", "start_s"))
    assert trace.n_visits == len(trace.visits.node) == 300 * (50 // 50 + 59) * 2
    assert within < without + 8 * n_bytes  # the log, its copy when it grew, and the visits


def test_what_happens_after_the_last_request_is_left_out():
    problem = deployment(30, 8)
    calm = hs.simulate(problem, CUTS)
    later = hs.simulate(problem, CUTS, events=[hs.Event(1e7, "failure", "a0")])
    toys.assert_same(later, calm)
    assert later.series.bin_s == calm.series.bin_s
    assert later.end_of_run_s == calm.end_of_run_s == calm.end_s.max()


def test_an_iteration_that_nobody_is_in_any_more_does_not_prolong_the_run():
    """Its request was restarted elsewhere; the throttled node would compute for 1e6 s."""
    gpus = [toys.gpu("gpu", t0_s=1.0)] * 2
    problem = toys.deployment([gpus, gpus], toys.burst(1, prompt_tokens=4), toys.model(2))
    events = [
        hs.Event(1.5, "slowdown", "a0", 1e6), hs.Event(1.6, "failure", "b0"),
    ]  # fmt: skip
    trace = hs.simulate(problem, toys.even(2), "round_robin", chunk_tokens=2, events=events)
    assert trace.restarts.tolist() == [1]
    assert trace.end_of_run_s == trace.end_s[0] < 10
    assert trace.series.bin_s < 1
    found = trace.metrics()
    assert found.node_utilisation[0] == pytest.approx(1.0)  # from the start to the end
    assert max(found.node_utilisation) <= 1
    assert trace.series.busy[0].sum() * trace.series.bin_s == pytest.approx(trace.busy_s[0])


def test_those_without_a_node_are_counted():
    gpus = [toys.gpu("gpu", t0_s=1.0)]
    problem = toys.deployment([gpus, gpus], toys.burst(3), toys.model(2))
    back = [hs.Event(0.0, "failure", "b0"), hs.Event(11.0, "recovery", "b0")]
    trace = hs.simulate(problem, toys.even(2), events=back, max_num_seqs=1)
    waits_s = (11.0 - trace.reached_s[:, 1]).sum()
    assert trace.series.n_stranded[0].max() == 0
    assert trace.series.n_stranded[1].sum() * trace.series.bin_s == pytest.approx(waits_s)
    found = trace.metrics()
    assert found.mean_stranded == pytest.approx(waits_s / found.observed_s)
    never = hs.simulate(problem, toys.even(2), events=back[:1], max_num_seqs=1)
    assert never.metrics().requests_per_s == 0
    assert never.series.n_stranded[1, -1] > 0


def test_a_node_that_holds_the_longest_request_but_for_rounding_admits_it():
    kv_bytes, weights = 2**20, 2**54  # sums beyond 2**53 are not exact
    block = hs.Block(kind="block", weight_bytes=weights, kv_bytes_per_token=kv_bytes,
                     flops_per_token=1.0)  # fmt: skip
    problem = toys.deployment(
        [[toys.gpu()]], toys.burst(1, 3, 2), hs.Model(name="toy", blocks=(block,)),
        memory_bytes=float(weights + 5 * kv_bytes - 64),
    )  # fmt: skip
    trace = hs.simulate(problem, toys.even(1))
    assert np.isfinite(trace.end_s).all()


def test_what_a_trace_holds_cannot_be_written_to():
    trace = hs.simulate(deployment(3, 2), CUTS, record_visits=True)
    for array in (trace.end_s, trace.node, trace.series.busy, trace.visits.node):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_policies_may_only_know_a_mean_length():
    rng = np.random.default_rng(1)
    outputs = rng.integers(1, 200, 40)
    problem, seen = deployment(40, outputs), {}

    def watch(state, request):
        seen.setdefault(request, (state.own_s[0], state.kv_own_tokens))
        return int(state.nodes[0])

    hs.simulate(problem, CUTS, watch, expected_output_tokens=100)
    assert set(seen.values()) == {next(iter(seen.values()))}  # all prompts are equal
    own_s, kv_tokens = seen[0]
    assert kv_tokens == 50 + 100
    same = deployment(40, 100)
    hs.simulate(same, CUTS, watch_same := lambda state, request: watch(state, -1 - request))
    assert seen[-1] == (pytest.approx(own_s, rel=1e-9), kv_tokens)
    del watch_same


@pytest.mark.parametrize("policy", sorted(hs.POLICIES))
def test_a_belief_that_is_true_changes_nothing(policy):
    for seed in range(8):
        scenario = random_scenario(seed, hs.simulate)
        requests = scenario.deployment.requests
        equal = hs.Requests(
            requests.arrival_s, requests.prompt_tokens, np.full(len(requests), 3)
        )
        problem = replace(scenario.deployment, requests=equal, max_resident_tokens=None)
        given = (problem, scenario.partition, policy)
        options = scenario.options | {"expected_output_tokens": None}
        knowing = hs.simulate(*given, **options)
        options["expected_output_tokens"] = 3
        toys.assert_same(hs.simulate(*given, **options), knowing)


def test_beliefs_reach_every_policy_that_looks_at_lengths():
    outputs = np.where(np.arange(200) % 3, 4, 400)
    problem = deployment(200, outputs)
    problem = replace(
        problem, requests=replace(problem.requests, arrival_s=np.arange(200) * 1e-3)
    )
    for policy in ("hypsched_rt", "least_work_left", "earliest_completion"):
        knowing = hs.simulate(problem, CUTS, policy)
        believing = hs.simulate(problem, CUTS, policy, expected_output_tokens=136)
        assert not np.isnan(believing.end_s).any()
        assert (knowing.node != believing.node).any(), policy
