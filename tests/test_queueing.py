"""`simulate` against queueing theory: mean waits, the utilisation law, Little's law.

Means are compared within 3 standard errors of the mean over 20 seeds. Each seed is one long run
whose first tenth is left out: at least 40 relaxation times, so what is left of the empty start
is far below the error. The error itself must be small, or agreement would mean nothing.
"""

import math
import os
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from hypsolve.problem import evaluation
from hypsolve.problem.costs import to_instance
from hypsolve.simulation.events import EventKind
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import random_scenario

N_SEEDS, N_REQUESTS = 20, 60_000
TOKENS_PER_S = 10**6  # a service of 1 s; prompts rounded to whole tokens are off by 1e-6
compiled = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="millions of requests need the JIT"
)


def assert_mean(samples, theory, *, error=0.01):
    """`samples`: an array of each seed, in the order of arrival."""
    means = np.array([s[len(s) // 10 :].mean() for s in samples])
    assert len(means) == N_SEEDS
    standard_error = means.std(ddof=1) / math.sqrt(N_SEEDS)
    assert standard_error < error * theory
    assert abs(means.mean() - theory) < 3 * standard_error


def erlang_c(n_servers, load):
    """Return the probability to wait in M/M/c."""
    terms = [load**k / math.factorial(k) for k in range(n_servers)]
    last = load**n_servers / math.factorial(n_servers) * n_servers / (n_servers - load)
    return last / (sum(terms) + last)


def hyperexponential(rng, n):
    """Draw hyperexponential times with mean 1 and second moment 3."""
    p = (1 + math.sqrt(1 / 3)) / 2
    return rng.exponential(1 / (2 * np.where(rng.random(n) < p, p, 1 - p)))


SERVICES = {  # of mean 1: how they are drawn, and the second moment
    "exponential": (lambda rng, n: rng.exponential(1.0, n), 2.0),
    "deterministic": (lambda rng, n: np.ones(n), 1.0),
    "hyperexponential": (hyperexponential, 3.0),
}


def at_flow_level(seed, rate, draw, n_nodes=1, policy="hypsched_rt"):
    """Serve Poisson arrivals on one tier of equal nodes; return the services and a trace."""
    rng = np.random.default_rng(seed)
    arrival_s = rng.exponential(1 / rate, N_REQUESTS).cumsum()
    service_s = draw(rng, N_REQUESTS)
    instance = hs.Instance.from_tables(
        service_s[:, None, None], [0.0], [[(0, 1.0)] * n_nodes], arrival_s=arrival_s
    )
    return service_s, hs.simulate(instance, hs.Partition((0, 1)), policy, seed=seed)


def at_token_level(seed, rate, draw, n_nodes=1, policy="hypsched_rt"):
    """Serve them as prompts with one output token, computed one after the other."""
    rng = np.random.default_rng(seed)
    arrival_s = rng.exponential(1 / rate, N_REQUESTS).cumsum()
    prompt_tokens = np.maximum(np.rint(draw(rng, N_REQUESTS) * TOKENS_PER_S), 1)
    deployment = toys.deployment(
        [[toys.gpu(seconds_per_flop=1 / TOKENS_PER_S)] * n_nodes],
        hs.Requests(arrival_s, prompt_tokens, np.ones(N_REQUESTS)),
        toys.model(1, flops_per_token=1.0), cost_model="flops",
    )  # fmt: skip
    trace = hs.simulate(
        deployment, toys.even(1), policy, seed=seed, max_num_seqs=1, chunk_tokens=None
    )
    return prompt_tokens / TOKENS_PER_S, trace


LEVELS = pytest.mark.parametrize("run", [at_flow_level, at_token_level])


@compiled
@LEVELS
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("load", [0.4, 0.7])
def test_one_server(run, service, load):
    """M/M/1, M/D/1, M/G/1: Pollaczek and Khinchine. And U = lambda E[S]."""
    draw, second_moment = SERVICES[service]
    waits, busy = [], []
    for seed in range(N_SEEDS):
        service_s, trace = run(seed, load, draw)
        waits.append(trace.latency_s - service_s)
        assert trace.busy_s[0] == pytest.approx(service_s.sum(), rel=1e-9)
        busy.append(np.full(1, trace.busy_s[0] / trace.end_s[-1]))
    assert_mean(waits, load * second_moment / (2 * (1 - load)), error=0.02)
    assert_mean(busy, load, error=0.002)


@compiled
@LEVELS
@pytest.mark.parametrize(("n_servers", "load"), [(2, 0.7), (5, 0.8)])
def test_least_work_left_is_one_queue_for_all(run, n_servers, load):
    """M/M/c: who goes where the work ends first waits as in a common queue (Erlang C)."""
    waits = []
    for seed in range(N_SEEDS):
        service_s, trace = run(
            seed, n_servers * load, SERVICES["exponential"][0], n_servers, "least_work_left"
        )
        waits.append(trace.latency_s - service_s)
    theory = erlang_c(n_servers, n_servers * load) / (n_servers * (1 - load))
    assert_mean(waits, theory, error=0.02)


@compiled
@LEVELS
def test_random_is_a_queue_of_its_own_for_each(run):
    waits = []
    for seed in range(N_SEEDS):
        service_s, trace = run(seed, 1.8, SERVICES["exponential"][0], 3, "random")
        waits.append(trace.latency_s - service_s)
    assert_mean(waits, 0.6 / (1 - 0.6))


@compiled
@LEVELS
def test_round_robin_lets_every_other_one_in(run):
    """E2/M/1: sigma = A*(mu (1 - sigma)), a mean wait of sigma / (mu (1 - sigma))."""
    waits, rate, sigma = [], 1.4, 0.5
    for _ in range(200):
        sigma = (rate / (rate + 1 - sigma)) ** 2
    for seed in range(N_SEEDS):
        service_s, trace = run(seed, rate, SERVICES["exponential"][0], 2, "round_robin")
        waits.append(trace.latency_s - service_s)
    assert_mean(waits, sigma / (1 - sigma))


@compiled
def test_tandem():
    """Burke: what leaves an M/M/1 is Poisson, so the next stage, links away, is one as well."""
    first_s, second_s = [], []
    for seed in range(N_SEEDS):
        rng = np.random.default_rng(seed)
        stage_s = rng.exponential([1.0, 0.0, 0.8], (N_REQUESTS, 3))
        instance = hs.Instance.from_tables(
            stage_s[:, None, :], [0.0] * 3, [[(0, 1.0)]] * 3,
            transfer_s=np.array([5.0, 3.0])[None, :, None] * np.ones((1, 2, 4)),
            arrival_s=rng.exponential(1 / 0.6, N_REQUESTS).cumsum(),
        )  # fmt: skip
        trace = hs.simulate(instance, toys.even(3))
        waits_s = trace.admitted_s - trace.reached_s
        first_s.append(waits_s[:, 0])
        second_s.append(waits_s[:, 2])
        assert waits_s[:, 1].max() < 1e-6  # services of nothing
    assert_mean(first_s, 0.6 / (1 - 0.6))
    assert_mean(second_s, 0.48 / (1 - 0.48) * 0.8)


@compiled
def test_decodes_share_a_node_in_turns():
    """Tokens of 1 s, geometric outputs, one at a time: the next token queues up at the back.

    Who is served has no influence on how many are there, as every token is the last one with
    the same probability: the mean number, so the mean latency, is that of first come, first
    served with services of the whole request (Pollaczek and Khinchine).
    """
    latencies, again, rate = [], 0.75, 0.15
    for seed in range(N_SEEDS):
        rng = np.random.default_rng(seed)
        n = N_REQUESTS // 3
        deployment = toys.deployment(
            [[toys.gpu(t0_s=1.0)]],
            hs.Requests(
                rng.exponential(1 / rate, n).cumsum(), np.ones(n), rng.geometric(1 - again, n)
            ),
        )
        trace = hs.simulate(deployment, toys.even(1), max_num_seqs=1)
        latencies.append(trace.latency_s)
        turns = trace.output_tokens > 4
        assert (trace.ttft_s[turns] > 1).any()
    mean_s, second_moment = 1 / (1 - again), (1 + again) / (1 - again) ** 2
    theory = mean_s + rate * second_moment / (2 * (1 - rate * mean_s))
    assert_mean(latencies, theory, error=0.02)


@compiled
def test_batches_of_all_who_wait():
    """Iterations of 1 s for any number: those who come meanwhile are the next batch.

    Busy periods are geometric, exp(rate) iterations each; who arrives in one waits 1/2 s.
    """
    rate, waits, batches = 1.5, [], []
    for seed in range(N_SEEDS):
        rng = np.random.default_rng(seed)
        arrival_s = rng.exponential(1 / rate, N_REQUESTS).cumsum()
        ones = np.ones(N_REQUESTS)
        deployment = toys.deployment([[toys.gpu(t0_s=1.0)]], hs.Requests(arrival_s, ones, ones))
        trace = hs.simulate(deployment, toys.even(1), max_num_seqs=10**6, chunk_tokens=None)
        waits.append(trace.latency_s - 1.0)
        batches.append(np.full(1, N_REQUESTS / trace.n_iterations[0]))
    busy = rate * math.exp(rate) / (1 + rate * math.exp(rate))
    assert_mean(waits, busy / 2)
    assert_mean(batches, rate / busy)


# Little's law, exactly, on any trace


def node_integrals_s(trace):
    """Integrate the number of requests at each node over time."""
    return trace.series.n_requests.sum(axis=1) * trace.series.bin_s


slower = 20 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 1
thorough = settings(max_examples=max(2 * settings.default.max_examples // slower, 5))
SEEDS = st.integers(0, 10**6)


@thorough
@given(seed=SEEDS, policy=st.sampled_from(sorted(POLICIES)))
def test_littles_law_at_flow_level(seed, policy):
    """Little's law holds at every node, and in the whole system without its links."""
    scenario = random_scenario(seed, hs.simulate)
    deployment, partition = scenario.deployment, scenario.partition
    trace = hs.simulate(deployment, partition, policy, level="flow", seed=seed)
    stays_s = np.zeros(len(trace.node_names))
    place = trace.network_node()
    here = place >= 0
    np.add.at(stays_s, place[here], (trace.left_s - trace.reached_s)[here])
    integrals_s = node_integrals_s(trace)
    np.testing.assert_allclose(integrals_s, stays_s, rtol=1e-9, atol=1e-9 * stays_s.max())
    instance = to_instance(deployment, allow_empty=True)
    links_s = evaluation.transfer_s(instance, partition).sum(axis=1)
    total_s = (trace.latency_s - links_s).sum()
    assert integrals_s.sum() == pytest.approx(total_s, rel=1e-9)
    # and the utilisation law: busy for the services of those it served
    services_s = evaluation.service_s(instance, partition)
    busy_s = np.zeros(len(trace.node_names))
    for r, k in np.argwhere(here):
        n = place[r, k]
        busy_s[n] += services_s[r % len(services_s), k, instance.node_class[n]]
    np.testing.assert_allclose(trace.busy_s, busy_s, rtol=1e-9)


def stays(trace, pins, events):
    """Return (node, from, until) of every attempt of a request at a node.

    It is there from when it was sent there until its last token is computed there, or until it
    starts anew because a node that it still needs fails.
    """
    visits, total = trace.visits, trace.prompt_tokens + trace.output_tokens - 1
    is_last = visits.context_tokens + visits.tokens == total[visits.request]
    done_s = defaultdict(list)
    for row in np.flatnonzero(is_last):
        done_s[visits.request[row], visits.node[row]].append(visits.end_s[row])
    failures = [
        (e.at_s, trace.node_names.index(e.target))
        for e in events
        if e.kind is EventKind.FAILURE
    ]
    attempts = defaultdict(list)  # of requests: lists of {node: since when}
    for r, n, since_s, is_first in pins:
        if is_first:
            attempts[r].append({})
        attempts[r][-1][n] = since_s
    for r, tries in attempts.items():
        for since_s in tries:
            until_s = {
                n: min([t for t in done_s[r, n] if t >= s], default=math.inf)
                for n, s in since_s.items()
            }
            restart_s = min(
                (t for t, n in failures if n in since_s and since_s[n] < t < until_s[n]),
                default=math.inf,
            )
            for n, s in since_s.items():
                yield n, s, min(until_s[n], restart_s)


@thorough
@given(seed=SEEDS)
def test_littles_law_at_token_level(seed):
    """At every node, with failures and restarts: earlier attempts count for as long as they
    lasted; those who wait until some node is up are at none."""
    scenario = random_scenario(seed, hs.simulate)
    policy, seen = scenario.policy, []
    choose = POLICIES[policy].choose if isinstance(policy, str) else POLICIES["random"].choose
    scenario = replace(scenario, policy=toys.spy_on(choose, seen))
    trace = scenario.run(hs.simulate, record_visits=True)
    assume(np.isfinite(trace.end_s).all())
    first = np.searchsorted(trace.node_tier, np.arange(len(trace.tier_names)))
    first_tier = next(k for k in range(len(first)) if trace.partition.stage(k))
    pins = [
        (r, int(first[s.tier] + node), s.time_s, s.tier == first_tier) for r, node, s in seen
    ]
    stays_s = np.zeros(len(trace.node_names))
    for n, since_s, until_s in stays(trace, pins, scenario.options.get("events", ())):
        stays_s[n] += until_s - since_s
    slack_s = 1e-9 * max(stays_s.max(), 1e-9)
    np.testing.assert_allclose(node_integrals_s(trace), stays_s, rtol=1e-9, atol=slack_s)
    assert len(pins) >= (trace.node >= 0).sum() + trace.restarts.sum()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_littles_law_in_the_whole_system(policy):
    """One tier without links, one node always up: latencies add up to the time at nodes."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        n = 60
        requests = hs.Requests(
            rng.exponential(1.0, n).cumsum(), rng.integers(1, 50, n), rng.integers(1, 9, n)
        )
        deployment = toys.deployment(
            [[toys.gpu(t0_s=0.3)] * 3], requests, toys.model(1, kv_bytes=1), memory_bytes=150.0
        )
        churn = hs.draw_events(
            deployment.network, horizon_s=60.0, seed=seed, mean_up_s=10.0, mean_down_s=3.0
        )
        events = [event for event in churn if event.target != "a0"]
        trace = hs.simulate(
            deployment, toys.even(1), policy, seed=seed, max_num_seqs=4, events=events
        )
        assert trace.restarts.sum() > 0
        assert node_integrals_s(trace).sum() == pytest.approx(trace.latency_s.sum(), rel=1e-9)
        n_iterations = trace.n_iterations.sum()
        lost_s = trace.busy_s.sum() - 0.3 * n_iterations  # of iterations that never ended
        assert -1e-9 < lost_s < 0.3 * len(events)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_utilisation_law_of_batches(factor):
    """A node is busy for its iterations times their length at its speed."""
    deployment = toys.deployment(
        [[toys.gpu(t0_s=0.25)] * 2] * 2, hs.Requests(np.arange(40.0), [5] * 40, [6] * 40)
    )
    events = [hs.Event(0.0, "slowdown", name, factor) for name in ("a0", "a1", "b0", "b1")]
    trace = hs.simulate(deployment, toys.even(2), max_num_seqs=3, events=events)
    np.testing.assert_allclose(trace.busy_s, factor * 0.25 * trace.n_iterations, rtol=1e-12)
    assert trace.metrics().mean_batch > 1.2
    share = trace.series.busy.sum(axis=1) * trace.series.bin_s
    np.testing.assert_allclose(share, trace.busy_s, rtol=1e-9)
