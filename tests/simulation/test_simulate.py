"""`simulate` in closed form: one request on an idle network, one level against the other."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from hypsolve.problem import evaluation
from hypsolve.problem.costs import service_s, step_s, step_work, to_instance
from hypsolve.problem.deployment import CostModel
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import random_scenario

MODELS, GPUS = hs.models(), tuple(hs.gpus())
exactly = {"rel": 1e-9, "abs": 0.0}


# one request on an idle network


def catalog_case(seed, name, cost_model):
    """A model of the catalog on GPUs of the catalog, one request; relays, and room for all."""
    rng = np.random.default_rng(seed)
    weights = ("fp16", "int8", "int4")[seed % 3]
    model = hs.model(name, weights)
    n_tiers = int(rng.integers(1, 6))
    cuts = np.sort(rng.integers(0, model.n_blocks + 1, n_tiers - 1)).tolist()
    links = [
        hs.Link(
            bytes_per_s=10.0 ** rng.uniform(6, 11),
            latency_s=float(rng.choice([0.0, rng.uniform(0, 0.1)])),
            return_latency_s=[None, 0.0, float(rng.uniform(0, 0.1))][rng.integers(3)],
        )
        for _ in range(n_tiers - 1)
    ]
    tiers = [
        [hs.gpu(GPUS[g]) for g in rng.integers(0, len(GPUS), rng.integers(1, 4))]
        for _ in range(n_tiers)
    ]
    prompt_tokens = int(rng.choice([1, 17, 2040, 4090, rng.integers(1, 20_000)]))
    output_tokens = int(rng.choice([1, 2, 40]))
    deployment = toys.deployment(
        tiers, hs.Requests([0.0], [prompt_tokens], [output_tokens]), model, links,
        memory_bytes=1e15, cost_model=cost_model,
    )  # fmt: skip
    return deployment, hs.Partition((0, *cuts, model.n_blocks))


def crossed(deployment, partition):
    """Return (link, bytes per token) of every link with a stage behind it."""
    model = deployment.model
    sent = [model.input_bytes_per_token, *(b.output_bytes_per_token for b in model.blocks)]
    return [
        (tier.link, sent[cut])
        for tier, cut in zip(deployment.network.tiers[:-1], partition.cuts[1:-1], strict=True)
        if cut < model.n_blocks
    ]


def seeds(name):
    return range(6 * MODELS.index(name), 6 * MODELS.index(name) + 6)


@pytest.mark.parametrize("cost_model", list(CostModel))
@pytest.mark.parametrize("name", MODELS)
def test_one_request_takes_its_services_and_transfers(name, cost_model):
    for seed in seeds(name):
        deployment, partition = catalog_case(seed, name, cost_model)
        requests, tiers = deployment.requests, deployment.network.tiers
        p, o = int(requests.prompt_tokens[0]), int(requests.output_tokens[0])
        instance = to_instance(deployment, allow_empty=True)
        fastest = hs.evaluate(instance, partition, objective="path")
        for policy in ("hypsched_rt", "random"):
            for link_contention in (False, True):
                trace = hs.simulate(
                    deployment, partition, policy, seed=seed, chunk_tokens=None,
                    link_contention=link_contention,
                )  # fmt: skip
                gpus = {
                    b: tiers[k].nodes[trace.node[0, k]].gpu
                    for k in range(len(tiers))
                    for b in partition.stage(k)
                }
                alone_s = math.fsum(
                    float(service_s(deployment.model.blocks[b], gpu, p, o, cost_model))
                    for b, gpu in gpus.items()
                )
                transfers_s = evaluation.transfer_s(instance, partition).sum()
                assert trace.end_s[0] == pytest.approx(alone_s + transfers_s, **exactly)
                if policy == "hypsched_rt":
                    assert trace.end_s[0] == pytest.approx(fastest, **exactly)
                prefill_s = math.fsum(
                    float(service_s(deployment.model.blocks[b], gpu, p, 1, cost_model))
                    for b, gpu in gpus.items()
                )
                links_s = sum(
                    link.round_trip_s + p * token_bytes / link.bytes_per_s
                    for link, token_bytes in crossed(deployment, partition)
                )
                assert trace.ttft_s[0] == pytest.approx(prefill_s + links_s, **exactly)
                assert trace.busy_s.sum() == pytest.approx(alone_s, **exactly)


def test_catalog_cases_are_of_all_kinds():
    cases = [
        catalog_case(seed, name, CostModel.ROOFLINE) for name in MODELS for seed in seeds(name)
    ]
    used = {n.gpu for d, _ in cases for t in d.network.tiers for n in t.nodes}
    assert used == {hs.gpu(name) for name in GPUS}
    cuts = [partition.cuts for _, partition in cases]
    n_blocks = [d.model.n_blocks for d, _ in cases]
    assert sum(len(c) > 2 and c[1] == 0 for c in cuts) > 5  # the first tier relays
    assert sum(c[-2] == n for c, n in zip(cuts, n_blocks, strict=True) if len(c) > 2) > 5
    assert sum(any(a == b for a, b in itertools.pairwise(c[1:-1])) for c in cuts) > 5


@pytest.mark.parametrize("link_contention", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 100, 512, 1999, 2000, 3000])
def test_chunks_of_one_prompt_flow_from_stage_to_stage(chunk_tokens, link_contention):
    """As jobs in a permutation flow shop; links are machines of it if they are shared."""
    model = hs.model("mistral-7b")
    cuts, p = (0, 0, 12, 12, 20, 34), 2000
    names = ("l4", "a10", "rtx-4090", "t4", "a100-40gb")
    latencies_s = (0.01, 0.02, 0.0, 0.004)
    links = [hs.Link(bytes_per_s=1e8 * (k + 1), latency_s=s) for k, s in enumerate(latencies_s)]
    deployment = toys.deployment(
        [[hs.gpu(name)] for name in names], hs.Requests([0.0], [p], [1]), model, links,
        memory_bytes=1e15,
    )  # fmt: skip
    chunks = [min(chunk_tokens, p - c) for c in range(0, p, chunk_tokens)]
    sent = [model.input_bytes_per_token, *(b.output_bytes_per_token for b in model.blocks)]
    messages = [(0.0, p)]  # before the first stage the prompt is in one piece
    for k, name in enumerate(names):
        stage = [model.blocks[b] for b in range(cuts[k], cuts[k + 1])]
        if stage:
            arrived, now_s, done = [s for s, q in messages for _ in range(q)], 0.0, 0
            messages = []
            for q in chunks:
                start_s = max(now_s, arrived[done + q - 1])
                now_s = start_s + sum(
                    float(step_s(hs.gpu(name), *step_work(b, q, done)))
                    for b in stage
                    if not b.last_token_only or done + q == p
                )
                done += q
                messages.append((now_s, q))
        if k < len(links):
            link, free_s, before_s, there = links[k], 0.0, 0.0, []
            for at_s, q in messages:
                begin_s = max(at_s, free_s) if link_contention else at_s
                free_s = begin_s + q * sent[cuts[k + 1]] / link.bytes_per_s
                before_s = max(free_s + link.latency_s, before_s)
                there.append((before_s, q))
            messages = there
    trace = hs.simulate(
        deployment, hs.Partition(cuts), chunk_tokens=chunk_tokens,
        link_contention=link_contention,
    )  # fmt: skip
    assert trace.n_visits == 3 * len(chunks)
    assert trace.left_s[0, -1] == pytest.approx(messages[-1][0], **exactly)
    assert trace.end_s[0] - trace.left_s[0, -1] == pytest.approx(sum(latencies_s), **exactly)


# one request alone is never later for having more


def changed(deployment, kind, factor):
    """Return the deployment with all rates, or all latencies, multiplied by `factor`."""

    def change(link):
        if link is None:
            return None
        if kind == "rate":
            return replace(link, bytes_per_s=link.bytes_per_s * factor)
        return replace(link, latency_s=link.latency_s * factor)

    network = deployment.network
    tiers = tuple(replace(tier, link=change(tier.link)) for tier in network.tiers)
    return replace(deployment, network=replace(network, tiers=tiers))


@given(seed=st.integers(0, 10**6), factor=st.sampled_from([1.01, 2.0, 1e3]))
def test_one_request_is_never_later_for_having_more(seed, factor):
    scenario = random_scenario(seed, hs.simulate)
    some = scenario.deployment.requests
    alone = hs.Requests(some.arrival_s[:1], some.prompt_tokens[:1], some.output_tokens[:1])
    deployment = replace(scenario.deployment, requests=alone)
    options = {
        k: v
        for k, v in scenario.options.items()
        if k in ("seed", "max_num_seqs", "chunk_tokens")
    }
    names = [node.name for tier in deployment.network.tiers for node in tier.nodes]

    def end_s(deployment, **more):
        return hs.simulate(deployment, scenario.partition, **options, **more).end_s[0]

    usual_s = end_s(deployment)
    slack_s = 1e-12 * usual_s
    assert end_s(changed(deployment, "rate", factor)) <= usual_s + slack_s
    assert end_s(changed(deployment, "latency", 1 / factor)) <= usual_s + slack_s
    assert end_s(deployment, link_contention=True) >= usual_s - slack_s
    slow = [hs.Event(0.0, "slowdown", name, factor) for name in names]
    assert end_s(deployment, events=slow) >= usual_s - slack_s
    late_s = float(alone.arrival_s[0])  # a moment at which it has not begun, then one amid it
    for at_s in (late_s, (late_s + usual_s) / 2):
        thin = [
            hs.Event(at_s, "bandwidth", tier.name, 1 / factor)
            for tier in deployment.network.tiers[:-1]
        ]
        assert end_s(deployment, events=thin) >= usual_s - slack_s


# a batch


@pytest.mark.parametrize("max_num_seqs", [1, 3, 7, 64])
def test_a_burst_goes_through_in_waves(max_num_seqs):
    """Equal stages of one second, instant links: wave after wave, stage behind stage."""
    deployment = toys.deployment([[toys.gpu(t0_s=1.0)]] * 3, toys.burst(20))
    trace = hs.simulate(deployment, toys.even(3), max_num_seqs=max_num_seqs)
    wave = np.arange(20) // max_num_seqs
    np.testing.assert_array_equal(trace.left_s, wave[:, None] + np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(trace.end_s, wave + 3.0)
    np.testing.assert_array_equal(trace.busy_s, np.ones(3) * (wave[-1] + 1))


def test_weights_are_read_once_per_batch():
    blocks = hs.Model(
        name="heavy",
        blocks=(
            hs.Block(kind="h", weight_bytes=100, always_read_bytes=100, kv_bytes_per_token=1),
        ),
    )
    deployment = toys.deployment(
        [[toys.gpu(bytes_per_s=1.0)]], toys.burst(4, prompt_tokens=10, output_tokens=3), blocks
    )
    trace = hs.simulate(deployment, toys.even(1))
    prefill_s = 100 + 4 * 10
    decodes_s = [100 + 4 * 11, 100 + 4 * 12]  # the whole context is read, the new token too
    assert trace.first_token_s.tolist() == [prefill_s] * 4
    assert trace.end_s.tolist() == [prefill_s + sum(decodes_s)] * 4


def test_decodes_overtake_prompts_that_are_out_of_budget():
    """The budget is for prompts alone: a decode behind a prompt that must wait is taken."""
    deployment = toys.deployment(
        [[toys.gpu(t0_s=1.0)]], hs.Requests([0.0, 0.0, 0.5], [4, 8, 1], [3, 1, 1])
    )
    trace = hs.simulate(deployment, toys.even(1), chunk_tokens=4, record_visits=True)
    visits = trace.visits
    columns = (visits.request.tolist(), visits.end_s.tolist(), visits.tokens.tolist())
    assert sorted(zip(*columns, strict=True)) == [
        (0, 1.0, 4), (0, 2.0, 1), (0, 3.0, 1),  # never held up
        (1, 2.0, 4), (1, 3.0, 4), (2, 4.0, 1),  # a remainder stays in front
    ]  # fmt: skip
    alone = hs.simulate(deployment, toys.even(1), chunk_tokens=4, max_num_seqs=1)
    assert alone.end_s.tolist() == [6.0, 3.0, 4.0]


# flow level = token level


def one_token_case(seed):
    """Any network, no batches, one output token: what both levels know."""
    rng = np.random.default_rng(seed)
    name = MODELS[seed % len(MODELS)]
    base, partition = catalog_case(seed, name, list(CostModel)[seed % 2])
    n = 60
    prompt_tokens = rng.integers(1, 4000, n)
    instance = to_instance(base)
    scale_s = hs.evaluate(instance, partition)
    arrival_s = rng.exponential(scale_s * rng.choice([0.1, 0.5, 2.0]), n).cumsum()
    deployment = hs.Deployment(
        model=base.model,
        network=base.network,
        requests=hs.Requests(arrival_s, prompt_tokens, np.ones(n, np.int64)),
        cost_model=base.cost_model,
    )
    return deployment, partition


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_levels_agree_without_batches_and_with_one_output_token(policy):
    """A stage is left earlier at token level: ids come back at the end, not link by link."""
    n_queued = 0
    for seed in range(30):
        deployment, partition = one_token_case(seed)
        flow = hs.simulate(deployment, partition, policy, level="flow", seed=seed)
        token = hs.simulate(
            deployment, partition, policy, seed=seed, max_num_seqs=1, chunk_tokens=None
        )
        np.testing.assert_array_equal(token.node, flow.node)
        np.testing.assert_allclose(token.end_s, flow.end_s, rtol=1e-9, atol=0)
        np.testing.assert_allclose(token.busy_s, flow.busy_s, rtol=1e-9, atol=0)
        np.testing.assert_array_equal(token.n_iterations, flow.n_iterations)
        back_s = [
            tier.link.round_trip_s - tier.link.latency_s
            if cut < deployment.model.n_blocks
            else 0
            for tier, cut in zip(
                deployment.network.tiers[:-1], partition.cuts[1:-1], strict=True
            )
        ]
        shift_s = np.append(0.0, np.cumsum(back_s))
        np.testing.assert_allclose(token.left_s, flow.left_s - shift_s, rtol=1e-9)
        np.testing.assert_allclose(token.reached_s, flow.reached_s - shift_s, rtol=1e-9)
        n_queued += (flow.admitted_s > flow.reached_s).sum()
    assert n_queued > 500  # they were no idle networks


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_flow_level_trace_is_the_schedule(policy):
    deployment, partition = one_token_case(5)
    instance = to_instance(deployment)
    plan = hs.schedule(instance, partition, policy, seed=3)
    for problem in (deployment, instance):
        trace = hs.simulate(
            problem, partition, policy, level="flow", seed=3, record_visits=True
        )
        np.testing.assert_array_equal(trace.node, plan.node)
        first_s = instance.arrival_s.min()  # schedules count from it, traces from 0
        np.testing.assert_array_equal(trace.admitted_s, plan.start_s + first_s)
        np.testing.assert_array_equal(trace.left_s, plan.end_s + first_s)
        np.testing.assert_array_equal(trace.end_s, evaluation.completion_s(plan) + first_s)
        assert trace.visits is not None and len(trace.visits.request) == trace.n_visits
        mean_s = hs.evaluate(instance, partition, plan, "mean_latency")
        assert trace.latency_s.mean() == pytest.approx(mean_s)
        assert np.isnan(trace.first_token_s).all()


def test_a_replayed_schedule_serves_as_it_says():
    deployment, partition = one_token_case(7)
    plan = hs.schedule(to_instance(deployment), partition, "random", seed=1)
    trace = hs.simulate(deployment, partition, plan, max_num_seqs=1, chunk_tokens=None)
    np.testing.assert_array_equal(trace.node, plan.node)
    end_s = trace.end_s - trace.arrival_s.min()
    np.testing.assert_allclose(end_s, evaluation.completion_s(plan), rtol=1e-9)
    assert trace.policy == "replayed schedule"
