"""`simulate` at token level against an independent SimPy model, itself judged first."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

import hypsolve
from hypsolve.dispatch.policies import POLICIES
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.costs import service_s, to_instance
from hypsolve.problem.deployment import CostModel, Deployment, Network, Node, Requests, Tier
from hypsolve.problem.evaluation import completion_s
from tests.helpers import scenarios_token as scenarios
from tests.helpers import simpy_model
from tests.helpers.agreement import Judge, assert_agree, assert_series_agree, close
from tests.helpers.sizes import n_cases

# these tell apart orders within an instant that hardly ever matter
RARE = (807, 841, 959, 1280, 1361, 1467, 1485, 1545, 1579, 1757, 1972, 2455)
SEEDS = (*range(n_cases(150, 300)), *RARE)


judge = Judge(simpy_model.simulate)
scenario, answer = judge.scenario, judge.answer


# the judge


def calm(seed: int, requests: Requests) -> tuple[Deployment, hypsolve.Partition]:
    """Return a scenario with other requests, and memory for all of them at once."""
    base = scenario(seed)
    network = base.deployment.network
    tiers = [
        replace(t, nodes=tuple(replace(n, memory_bytes=1e12) for n in t.nodes))
        for t in network.tiers
    ]
    deployment = Deployment(
        model=base.deployment.model,
        network=Network(name=network.name, tiers=tuple(tiers)),
        requests=requests,
        cost_model=base.deployment.cost_model,
    )
    return deployment, base.partition


def services_s(deployment, partition, r, node) -> float:
    """Return the seconds of request r alone on its nodes."""
    model, requests = deployment.model, deployment.requests
    p, o = requests.prompt_tokens[r], requests.output_tokens[r]
    return math.fsum(
        float(service_s(model.blocks[b], tier.nodes[node[k]].gpu, p, o, deployment.cost_model))
        for k, tier in enumerate(deployment.network.tiers)
        for b in partition.stage(k)
    )


@pytest.mark.parametrize("contention", [False, True])
def test_model_is_the_closed_form_on_an_idle_network(contention):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p, o = int(rng.integers(1, 60)), int(rng.integers(1, 20))
        deployment, partition = calm(seed, Requests([0.5], [p], [o]))
        got = simpy_model.simulate(
            deployment, partition, chunk_tokens=None, link_contention=contention
        )
        transfers_s = 0.0
        for k, tier in enumerate(deployment.network.tiers[:-1]):
            cut = partition.cuts[k + 1]
            if cut < deployment.model.n_blocks:
                sent = [deployment.model.input_bytes_per_token]
                sent += [block.output_bytes_per_token for block in deployment.model.blocks]
                n_passes = o if cut else 1  # empty leading tiers are crossed once
                transfers_s += (p + n_passes - 1) * sent[cut] / tier.link.bytes_per_s
                transfers_s += n_passes * tier.link.round_trip_s
        expected_s = services_s(deployment, partition, 0, got.node[0]) + transfers_s
        assert got.end_s[0] - 0.5 == pytest.approx(expected_s, rel=1e-9)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_model_without_batches_is_the_flow_level(policy):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = 30
        requests = Requests(
            rng.exponential(0.004, n).cumsum(), rng.integers(1, 60, n), np.ones(n, np.int64)
        )
        deployment, partition = calm(seed, requests)
        got = simpy_model.simulate(
            deployment, partition, policy, seed=seed, max_num_seqs=1, chunk_tokens=None
        )
        flow = schedule(to_instance(deployment, allow_empty=True), partition, policy, seed=seed)
        np.testing.assert_array_equal(got.node, flow.node)
        end_s = completion_s(flow) + requests.arrival_s.min()  # schedules count from it
        close(got.end_s, end_s, f"seed {seed}")
        # utilisation law: a node is busy for the services of those it served
        alone_s = sum(services_s(deployment, partition, r, got.node[r]) for r in range(n))
        assert got.busy_s.sum() == pytest.approx(alone_s, rel=1e-9)


def test_model_obeys_littles_law():
    """At every node, the integral of the number of requests equals the sum of their stays."""
    for seed in range(60):
        run = scenario(seed)
        if "events" in run.options:
            continue
        got = answer(seed)
        integral_s = np.zeros(len(got.busy_s))
        for node, start_s, end_s, weight in got.intervals["n_requests"]:
            integral_s[node] += weight * (end_s - start_s)
        sizes = [len(tier.nodes) for tier in run.deployment.network.tiers]
        first = np.cumsum([0, *sizes[:-1]])
        r, k = np.nonzero(got.node >= 0)
        stays_s = np.zeros(len(got.busy_s))
        np.add.at(stays_s, first[k] + got.node[r, k], (got.left_s - got.reached_s)[r, k])
        np.testing.assert_allclose(integral_s, stays_s, rtol=1e-9, atol=1e-15)


def test_model_keeps_its_limits():
    """Batch, chunk and memory limits; no node does two things at once; no token is lost."""
    for seed in SEEDS:
        run, got = scenario(seed), answer(seed)
        prompt = run.deployment.requests.prompt_tokens
        output = run.deployment.requests.output_tokens
        batches = defaultdict(list)
        computed = Counter()
        for request, node, start_s, end_s, tokens, context in got.visits:
            assert got.arrival_s[request] <= start_s <= end_s
            batches[node, start_s, end_s].append((request, tokens, context))
            computed[request] += tokens
        before = defaultdict(float)
        for node, start_s, end_s in sorted(batches):
            entries = batches[node, start_s, end_s]
            if end_s > start_s:  # those that take no time can look like one
                assert len({request for request, _, _ in entries}) == len(entries)
                assert len(entries) <= run.options["max_num_seqs"]
                # a restart computes delivered tokens again, as a prompt
                chunked = sum(t for r, t, c in entries if c < prompt[r])
                assert chunked <= (run.options["chunk_tokens"] or math.inf)
            assert start_s >= before[node]
            before[node] = end_s
        n_stages = sum(map(bool, map(run.partition.stage, range(run.partition.n_tiers))))
        for r in np.flatnonzero((got.restarts == 0) & ~np.isnan(got.end_s)):
            assert computed[r] == (prompt[r] + output[r] - 1) * n_stages
        if "events" not in run.options:
            assert not np.isnan(got.end_s).any()
        nodes = [(k, n) for k, t in enumerate(run.deployment.network.tiers) for n in t.nodes]
        for index, (k, node) in enumerate(nodes):
            stage = [run.deployment.model.blocks[b] for b in run.partition.stage(k)]
            room = node.usable_bytes - sum(block.weight_bytes for block in stage)
            if len(stage) == run.deployment.model.n_blocks:
                room += run.deployment.model.tied_bytes
            held = [each for each in got.intervals["kv_bytes"] if each[0] == index]
            for _, start_s, _, _ in held:
                assert sum(w for _, s, e, w in held if s <= start_s < e) <= room


# the simulator


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    assert_agree(scenario(seed).run(hypsolve.simulate, record_visits=True), answer(seed))


@pytest.mark.parametrize("policy", ["hypsched_rt", "earliest_completion"])
def test_simulator_agrees_on_a_real_model_under_churn(policy):
    rng = np.random.default_rng(1)
    gpus = [hypsolve.gpu(name) for name in ("l4", "rtx-4090", "a10", "l40s")]
    link = hypsolve.Link(bytes_per_s=1e8, latency_s=0.002)
    tiers = tuple(
        Tier(
            name=f"tier{k}",
            nodes=tuple(
                Node(name=f"node{k}-{i}", gpu=gpus[(i + k) % 4], memory_bytes=2.4e10)
                for i in range(8)
            ),
            link=link if k < 2 else None,
        )
        for k in range(3)
    )
    deployment = Deployment(
        model=hypsolve.model("llama-3-8b"),
        network=Network(name="three tiers", tiers=tiers),
        requests=Requests(
            rng.exponential(0.02, 80).cumsum(),
            rng.integers(1, 600, 80),
            rng.integers(1, 50, 80),
        ),
    )
    churn = hypsolve.draw_events(
        deployment.network, horizon_s=4.0, seed=1, mean_up_s=3.0, mean_down_s=0.5,
        mean_normal_s=1.0, mean_slow_s=1.0, slow_factor=2.0,
        mean_full_s=1.0, mean_degraded_s=1.0, degraded_factor=0.2,
    )  # fmt: skip
    run = scenarios.Scenario(
        deployment,
        hypsolve.Partition((0, 10, 22, deployment.model.n_blocks)),
        policy,
        {"chunk_tokens": 256, "link_contention": True, "events": churn},
    )
    theirs = run.run(simpy_model.simulate)
    assert theirs.restarts.sum() > 10
    assert_agree(run.run(hypsolve.simulate, record_visits=True), theirs)


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_series_agree(seed):
    """Each bin's average, from the intervals in which something lasted."""
    assert_series_agree(scenario(seed).run(hypsolve.simulate).series, answer(seed))


def test_scenarios_cover_everything():
    """Each option, policy, event and rule has come into play, several times."""
    seen = Counter()
    for seed in SEEDS:
        run, got = scenario(seed), answer(seed)
        seen.update(got.seen)
        policy = run.policy if isinstance(run.policy, str) else scenarios.REPLAY
        cuts, blocks = run.partition.cuts, run.deployment.model.blocks
        empty = [i == j for i, j in itertools.pairwise(cuts)]
        nodes = [node for tier in run.deployment.network.tiers for node in tier.nodes]
        seen.update(
            {
                f"policy {policy}": 1,
                f"cost model {run.deployment.cost_model}": 1,
                "requests restarted": (got.restarts > 0).sum(),
                "requests restarted twice": (got.restarts > 1).sum(),
                "requests that lost tokens": (got.lost_tokens > 0).sum(),
                "requests that never ended": np.isnan(got.end_s).sum(),
                "contention": run.options["link_contention"],
                "no contention": not run.options["link_contention"],
                "whole prompts": run.options["chunk_tokens"] is None,
                "beliefs": "expected_output_tokens" in run.options,
                "leading relay": empty[0],
                "trailing relay": empty[-1],
                "relay between": any(
                    empty[k] and 0 < cuts[k] < len(blocks) for k in range(len(empty))
                ),
                "window": any(block.window_tokens for block in blocks),
                "experts": any(block.n_experts for block in blocks),
                "tied": run.deployment.model.tied_bytes > 0 and sum(empty) + 1 == len(empty),
                "equal nodes": len({node.gpu for node in nodes}) < len(nodes),
                "iteration without duration": any(v[2] == v[3] for v in got.visits),
                "batch of several": len(got.visits) - len({v[1:4] for v in got.visits}),
            }
        )  # fmt: skip
    rare = [name for name, count in seen.items() if count < 5]
    assert not rare, {name: seen[name] for name in rare}
    assert {f"policy {name}" for name in scenarios.KINDS} <= set(seen)
    assert {f"cost model {name}" for name in CostModel} <= set(seen)
    assert set(hypsolve.EventKind) <= set(seen)
    assert {
        "batch full",
        "chunk cut",
        "waited for KV memory",
        "no node with room",
        "queued for a link",
        "held back behind a chunk",
        "bandwidth in a transmission",
        "slowdown in an iteration",
        "iteration lost",
        "stranded",
        "failure after a token",
        "complete at a failed node",
        "computed for a restarted request",
    } <= set(seen)
