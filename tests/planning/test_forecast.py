"""Forecasts: what limits the rate, closed loops, prices, energy, targets and time limits."""

import math
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning import forecast as module
from hypsolve.planning import load as load_module
from hypsolve.planning.forecast import predict, serve_load
from hypsolve.planning.limiting_resource import limiting_resources
from hypsolve.planning.load import Load, evenly, serve, under_load
from hypsolve.planning.text import describe_forecast
from hypsolve.problem.runtime import Runtime
from hypsolve.solvers.clock import Deadline
from tests.helpers import token_toys as toys
from tests.helpers.sizes import n_cases


def limited_by(problem, partition, runtime=None):
    at = replace(problem, runtime=runtime or Runtime(name="toy", max_num_seqs=64))
    return predict(at, partition, 0.1).limited_by


def test_a_link_that_is_full_limits_the_rate():
    """Five tokens of two bytes take a second on the link, and next to nothing on the nodes."""
    fast, wire = toys.gpu("gpu", t0_s=1e-3), hs.Link(bytes_per_s=10.0, latency_s=0.0)
    problem = toys.deployment(
        [[fast], [fast]], toys.burst(1, 4, 2), toys.model(2, output_bytes=2), [wire]
    )
    tier = problem.network.tiers[0].name
    assert limited_by(problem, toys.even(2)) == f"link from {tier!r}"


def test_a_cache_with_room_for_one_limits_the_rate():
    """A node that takes a second for a batch of any size has room for one request."""
    problem = toys.deployment(
        [[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1, kv_bytes=1),
        memory_bytes=2.0,
    )  # fmt: skip
    tier = problem.network.tiers[0].name
    assert limited_by(problem, toys.even(1)) == f"KV memory of {tier!r}"


def test_the_batch_limit_limits_the_rate():
    """Give the node room for all requests, but take at most four in an iteration."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 8), toys.model(1))
    for batching in ("stage", "serial"):
        runtime = Runtime(name="toy", batching=batching, max_num_seqs=4)
        assert limited_by(problem, toys.even(1), runtime) == "batch limit of 4"


@pytest.mark.parametrize(
    ("prompt", "output", "resource"), [(2000, 1, "compute"), (16, 400, "memory bandwidth")]
)
def test_compute_limits_prefill_and_bandwidth_limits_decoding(prompt, output, resource):
    """On an H100 with memory for more requests than the batch limit allows to be useful."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="h100", gpu=hs.gpu("h100")),))
    problem = hs.Deployment(
        model=hs.model("llama-3.2-1b"),
        network=hs.Network(name="box", tiers=(box,)),
        requests=toys.burst(1, prompt, output),
    )
    problem = replace(problem, runtime=Runtime(name="toy", max_num_seqs=4096))
    partition, instance = hs.Partition((0, 18)), hs.to_instance(problem)
    bound = predict(problem, partition, 0.1, only="mean latency").bound_requests_per_s
    beyond = serve(evenly(problem, bound, 800), partition)
    found = limiting_resources(problem, instance, partition, beyond)
    assert found[0] == f"{resource} of 'box'"


L4, A10, A100, T4 = "l4", "a10", "a100-40gb", "t4"
DOUBLED = [  # of every kind of limit; three were said to be limited by a batch or by KV memory
    ("phi-3-medium", (("rtx-3090", 2), (L4, 2), ("rtx-4090", 3)), (0, 16, 30, 42), 166, 204,
     256, "llama.cpp", "gptq-int4"),
    ("llama-2-13b", ((L4, 2), (A100, 3)), (0, 15, 42), 91, 48, 64, "llama.cpp", "gptq-int4"),
    ("phi-3-medium", (("rtx-4090", 2), ("rtx-4090", 2), (L4, 1)), (0, 16, 37, 42), 929, 168, 16,
     "ideal", "fp16"),
    ("llama-2-13b", ((A100, 3), ("l40s", 2)), (0, 30, 42), 272, 127, 16, "ideal", "fp16"),
    ("llama-3-8b", ((A10, 3),), (0, 34), 140, 155, 256, "llama.cpp", "fp16"),
    ("llama-3-8b", ((A10, 1),), (0, 34), 2000, 500, 256, "ideal", "fp16"),
]  # fmt: skip
DOUBLED = DOUBLED[n_cases(slice(1, None, 2), slice(None))]  # by default the shorter half


@pytest.mark.full_length
@pytest.mark.parametrize("case", DOUBLED, ids=[f"{c[0]}-{c[6]}-{c[3]}" for c in DOUBLED])
def test_twice_of_what_limits_helps_more_than_half_as_much_as_anything(case):
    """The name is a claim about the simulator, so the simulator judges it."""
    name, tiers, cuts, prompt, output, limit, runtime, weights = case
    lan = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
    problem = hs.Deployment(
        model=hs.model(name, weights=weights),
        network=hs.Network(name="net", tiers=tuple(
            hs.Tier(
                name=f"t{k}", link=lan if k < len(tiers) - 1 else None,
                nodes=tuple(hs.Node(name=f"t{k}-{j}", gpu=hs.gpu(gpu)) for j in range(n)),
            )
            for k, (gpu, n) in enumerate(tiers)
        )),
        requests=toys.burst(1, prompt, output),
        runtime=hs.runtime(runtime, max_num_seqs=limit),
    )  # fmt: skip
    partition = hs.Partition(cuts)
    before = predict(problem, partition, 0.01)

    def gain(doubled):
        rate = predict(doubled, partition, 0.01, only="requests/s").max_requests_per_s
        return rate / before.max_requests_per_s - 1

    gains = {
        "compute": gain(with_more(problem, flops_per_s=2)),
        "memory bandwidth": gain(with_more(problem, bytes_per_s=2)),
        "KV memory": gain(with_more(problem, memory_bytes=2, visible_bytes=2)),
        "batch limit": gain(
            replace(problem, runtime=replace(problem.runtime, max_num_seqs=2 * limit))
        ),
    }
    (named,) = (gains[what] for what in gains if before.limited_by.startswith(what))
    assert named > 0.08 and named > max(gains.values()) / 2


WAVES = [  # batches that bunch in waves, which a model of means does not know
    ("phi-3-medium", ((A100, 2), (T4, 3), (A10, 1)), ((454.1e6, 0.779e-3), (3.834e9, 22.43e-3)),
     (0, 37, 38, 42), 81, 50, 256, "vllm"),
    ("llama-3-8b", ((L4, 3), (A100, 1)), ((136.4e6, 2.346e-3),), (0, 10, 34), 47, 39, 256,
     "vllm"),
    ("llama-2-13b", (("h100", 2), (L4, 1), ("h100", 2)), ((2.84e9, 1.387e-3), (6.514e9,
     1.859e-3)), (0, 3, 29, 42), 469, 23, 16, "vllm"),
    ("llama-2-13b", (("l40s", 3), ("rtx-4090", 2)), ((1.573e9, 1.189e-3),), (0, 6, 42), 1053,
     278, 16, "llama.cpp"),
]  # fmt: skip
WAVES = WAVES[n_cases(slice(1, 3), slice(None))]


@pytest.mark.full_length
@pytest.mark.parametrize("case", WAVES, ids=[f"{c[0]}-{c[3]}" for c in WAVES])
def test_what_limits_is_what_helps_in_simulation(case):
    """The model of a full batch named a limit of which twice as much changes nothing."""
    name, tiers, links, cuts, prompt, output, limit, runtime = case
    wires = [hs.Link(bytes_per_s=rate, latency_s=latency_s) for rate, latency_s in links]
    runtime = hs.runtime(runtime, max_num_seqs=limit)
    problem = hs.Deployment(
        model=hs.model(name),
        network=hs.Network(name="net", tiers=tuple(
            hs.Tier(
                name=f"t{k}", link=link,
                nodes=tuple(hs.Node(name=f"t{k}-{j}", gpu=hs.gpu(gpu)) for j in range(n)),
            )
            for k, ((gpu, n), link) in enumerate(zip(tiers, [*wires, None], strict=True))
        )),
        requests=toys.burst(1, prompt, output),
        max_resident_tokens=runtime.held_tokens(prompt + output),
        runtime=runtime,
    )  # fmt: skip
    partition = hs.Partition(cuts)
    before = predict(problem, partition, 0.01)

    def gain(doubled):
        rate = predict(doubled, partition, 0.01, only="requests/s").max_requests_per_s
        return rate / before.max_requests_per_s - 1

    gains = {
        "compute": gain(with_more(problem, flops_per_s=2)),
        "memory bandwidth": gain(with_more(problem, bytes_per_s=2)),
        "KV memory": gain(with_more(problem, memory_bytes=2, visible_bytes=2)),
        "link": gain(with_links(problem, 2.0, 1.0)),
        "latency": gain(with_links(problem, 1.0, 0.5)),
        "batch limit": gain(replace(problem, runtime=replace(
            runtime, max_num_seqs=2 * limit,
            max_num_batched_tokens=2 * runtime.max_num_batched_tokens,
        ))),
    }  # fmt: skip
    (named,) = (gains[what] for what in gains if before.limited_by.startswith(what))
    assert named > 0.08 and named > max(gains.values()) / 2


def with_links(problem, rate, latency):
    """Multiply rates and latencies of all links."""
    tiers = tuple(
        replace(
            tier,
            link=tier.link
            and hs.Link(
                bytes_per_s=rate * tier.link.bytes_per_s,
                latency_s=latency * tier.link.latency_s,
            ),
        )
        for tier in problem.network.tiers
    )
    return replace(problem, network=replace(problem.network, tiers=tiers))


def with_more(problem, **factors):
    """Multiply fields of all GPUs."""

    def node(each):
        gpu = replace(each.gpu, **{f: x * getattr(each.gpu, f) for f, x in factors.items()})
        return replace(each, gpu=gpu)

    tiers = tuple(
        replace(tier, nodes=tuple(map(node, tier.nodes))) for tier in problem.network.tiers
    )
    return replace(problem, network=replace(problem.network, tiers=tiers))


def test_users_in_a_closed_loop_get_what_little_says():
    """Users over the time of a round, thinking included."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    found = predict(problem, toys.even(1), Load(users=2, think_time_s=5.0))
    assert found.latency_s.mean == pytest.approx(3.0, abs=0.6)
    assert found.requests_per_s == pytest.approx(2 / (found.latency_s.mean + 5), rel=0.05)
    assert found.mean_in_flight == pytest.approx(2 * 3 / 8, rel=0.2)
    assert found.keeps_up is True


@pytest.mark.parametrize(("users", "think_time_s"), [(1, 0.0), (1, 5.0), (2, 5.0)])
def test_the_bound_of_a_closed_loop_knows_the_users(users, think_time_s):
    """One user who waits for each answer cannot send more, however fast the node is.

    Three passes of a second each, and the time to think, are a round. The bound was that of
    arrivals at any rate, 64 requests in a batch.
    """
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    load = Load(users=users, think_time_s=think_time_s, ttft_slo_s=100.0)
    found = predict(problem, toys.even(1), load)
    assert found.bound_requests_per_s == pytest.approx(users / (think_time_s + 2))
    assert found.requests_per_s <= found.bound_requests_per_s
    assert found.goodput_requests_per_s == found.requests_per_s
    if users == 1:
        assert found.requests_per_s == pytest.approx(1 / (think_time_s + 3))
    assert "serves these users more than" in "\n".join(describe_forecast(found))


def test_users_do_not_stay_in_step():
    """Equal users who start at once send their prompts together, round after round.

    A prompt takes a second alone, and two of them take two seconds in one batch. Users who
    start apart and have time to think do not meet.
    """
    problem = toys.deployment([[toys.gpu()]], toys.burst(1), toys.model(1, flops_per_token=1.0))
    load = Load(users=2, think_time_s=20.0)
    found = predict(problem, toys.even(1), load)
    trace = serve_load(problem, toys.even(1), load)
    n, second_s = len(trace.arrival_s), trace.arrival_s[1]
    assert trace.arrival_s[0] == 0 and 1 < second_s < 20
    assert found.ttft_s.mean == pytest.approx(1.0)
    at_once = replace(problem, requests=toys.burst(n))
    together = hs.simulate(at_once, toys.even(1), users=2, think_time_s=20.0)
    assert together.metrics().ttft_s.mean == pytest.approx(2.0)
    toys.assert_same(serve_load(problem, toys.even(1), load), trace)
    other = serve_load(problem, toys.even(1), replace(load, seed=1))
    assert other.arrival_s[1] != second_s


@pytest.mark.parametrize(
    ("open_loop", "is_told"), [(0.9, False), (2.0, True), (math.nan, False)]
)
def test_no_smaller_rate_is_told_than_users_get(open_loop, is_told):
    """It said that it keeps up with 0.103 requests/s beside users who got 0.113."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    found = predict(problem, toys.even(1), Load(users=2, think_time_s=5.0))
    rate = open_loop * found.requests_per_s
    words = "\n".join(describe_forecast(replace(found, max_requests_per_s=rate)))
    assert "users wait for their answers, so requests never pile up" in words
    assert "it keeps up with" not in words
    assert (f"at a rate instead, it would keep up with about {rate:.3g}" in words) is is_told


def test_targets_are_counted():
    """One of the two targets cannot be met, the other always is."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    for tpot_slo_s, share in ((1.5, 1.0), (0.5, 0.0)):
        load = Load(rate_per_s=0.01, tpot_slo_s=tpot_slo_s)
        found = predict(problem, toys.even(1), load)
        assert found.slo_attainment == share
        assert found.goodput_requests_per_s == pytest.approx(0.01 * share)
    assert math.isnan(predict(problem, toys.even(1), 0.01).slo_attainment)


def test_only_nodes_in_use_are_paid_for():
    """The price of the others is told apart."""
    fast, wire = toys.gpu("gpu", t0_s=0.1), hs.Link(bytes_per_s=1e9, latency_s=0.0)
    problem = toys.deployment([[fast], [fast]], toys.burst(1, 1, 4), toys.model(2), [wire])
    names = [node.name for tier in problem.network.tiers for node in tier.nodes]
    prices = dict(zip(names, (3.6, 7.2), strict=True))
    first = hs.Partition((0, 2, 2))
    found = predict(problem, first, 1.0, prices, currency="EUR")
    assert found.price_per_million_tokens == pytest.approx(3.6 / 3600 / 4 * 1e6)
    assert (found.unused_price_per_hour, found.currency) == (7.2, "EUR")


def pair_and_one(batching, **limits):
    """Two nodes, then one; four blocks; a pipeline takes one node of each tier."""
    gpus = [replace(toys.gpu("gpu", t0_s=0.01), power_w=watts) for watts in (5, 7, 11)]
    return toys.deployment(
        [gpus[:2], gpus[2:]], toys.burst(1, 2, 3), toys.model(4, kv_bytes=1),
        memory_bytes=60.0, runtime=Runtime(name="toy", batching=batching, **limits),
    )  # fmt: skip


PRICES = {"a0": 1.0, "a1": 2.0, "b0": 4.0}


@pytest.mark.parametrize(
    ("batching", "cuts", "used"),
    [
        ("stage", (0, 2, 4), "a0 a1 b0"),
        ("pipeline", (0, 2, 4), "a0 b0"),
        ("serial", (0, 2, 4), "a0 b0"),
        ("pipeline", (0, 4, 4), "a0 a1"),
        ("stage", (0, 0, 4), "b0"),
    ],
)
@pytest.mark.parametrize("rate_per_s", [0.01, 5.0])
def test_every_node_in_use_is_paid_for_at_any_load(batching, cuts, used, rate_per_s):
    """The price of an hour was 3 where little was served and 5 where much was."""
    problem = pair_and_one(batching)
    found = predict(problem, hs.Partition(cuts), rate_per_s, PRICES)
    paid = found.price_per_million_tokens / 1e6 * found.output_tokens_per_s * 3600
    assert paid == pytest.approx(sum(PRICES[name] for name in used.split()))
    assert found.unused_price_per_hour == pytest.approx(7 - paid)
    instance = hs.to_instance(problem, allow_empty=True)
    assert list(module.nodes_in_use(problem, instance, hs.Partition(cuts))) == [
        name in used for name in PRICES
    ]


@pytest.mark.parametrize(
    ("batching", "limit", "fits", "running"),
    [("stage", 64, 6, 6), ("stage", 1, 6, 3), ("pipeline", 64, 6, 6), ("serial", 4, 6, 4)],
)
def test_room_is_that_of_the_pipelines(batching, limit, fits, running):
    """A second node of a tier adds no room to a pipeline that it is not in."""
    problem = pair_and_one(batching, max_num_seqs=limit)  # 60 bytes: 30 tokens of two blocks
    found = predict(problem, hs.Partition((0, 2, 4)), 0.1)
    assert (found.max_sequences, found.max_running_sequences) == (fits, running)
    limits = f"(at most {running} run at once)"
    assert (limits in "\n".join(describe_forecast(found))) is (running < fits)


@pytest.mark.parametrize(("batching", "fits"), [("stage", 8), ("pipeline", 4), ("serial", 4)])
def test_room_of_unequal_stages_is_not_pooled_over_pipelines(batching, fits):
    """75 sequences were announced where the only pipeline has room for 30."""
    problem = pair_and_one(batching)
    found = predict(problem, hs.Partition((0, 3, 4)), 0.1)  # 20 tokens on a0 and a1, 60 on b0
    assert found.max_sequences == fits
    assert found.max_context_tokens == 20


def test_arrivals_have_the_rate_that_is_told():
    """At 5 requests/s means 5, not what was drawn."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1e-3)]], toys.burst(1), toys.model(1))
    for seed in range(3):
        served = under_load(problem, 5.0, np.random.default_rng(seed))
        arrival_s = served.requests.arrival_s
        assert (len(arrival_s) - 1) / np.ptp(arrival_s) == pytest.approx(5.0)


class Ticks:
    """A clock that goes on by a step at each reading."""

    def __init__(self, step_s):
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self):
        self.now_s += self.step_s
        return self.now_s


def test_a_deadline_ends_the_search_for_the_rate(monkeypatch):
    """No further simulation starts once the time is over."""
    monkeypatch.setattr("hypsolve.solvers.clock.now", Ticks(1.0))
    simulated = []
    real = load_module.simulate
    monkeypatch.setattr(
        load_module, "simulate", lambda *a, **k: simulated.append(1) or real(*a, **k)
    )
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1))
    late = predict(problem, toys.even(1), 0.2, deadline=Deadline(0.5))
    assert len(simulated) == 1  # the forecast itself, which tells that 0.2 is sustained
    assert late.keeps_up is True and late.max_rate_is_lower_bound
    assert late.max_requests_per_s == 0.2
    predict(problem, toys.even(1), 0.2, deadline=Deadline(1e9))
    assert len(simulated) > 8


@pytest.mark.parametrize("limit_s", [2.5, 12.5, 1e9])
def test_a_search_that_is_cut_short_gives_a_lower_bound(monkeypatch, limit_s):
    """A rate that was found before the time was over was called about the largest."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1))
    whole = predict(problem, toys.even(1), 0.2)
    assert not whole.max_rate_is_lower_bound and whole.limited_by
    assert "it keeps up with about" in "\n".join(describe_forecast(whole))
    monkeypatch.setattr("hypsolve.solvers.clock.now", Ticks(1.0))
    short = predict(problem, toys.even(1), 0.2, deadline=Deadline(limit_s))
    assert short.max_rate_is_lower_bound is (limit_s < 1e9)
    if short.max_rate_is_lower_bound:
        assert short.max_requests_per_s == 0.2 < whole.max_requests_per_s
        assert not short.limited_by
        text = "\n".join(describe_forecast(short))
        assert "it keeps up with the 0.2 requests/s that were asked for" in text


def test_a_short_time_limit_shortens_every_simulation():
    """A simulation takes at most about a tenth of the limit."""
    box = hs.Network(
        name="b", tiers=(hs.Tier(name="b", nodes=(hs.Node(name="n", gpu=hs.gpu("h200")),)),)
    )
    query = hs.PlanQuery.of("llama-3-8b", box, output_tokens=2000, time_limit_s=1.0)
    assert query.load.max_visits == 2e5
    served = under_load(
        query.deployment(), 1.0, np.random.default_rng(0), query.load.max_visits
    )
    assert len(served.requests) == 100


@pytest.mark.parametrize("late", [False, True])
def test_a_plan_never_serves_more_than_its_bound(late):
    """A rate that is too high was shown as served where its largest rate was not simulated."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    deadline = Deadline(0.0 if late else math.inf)
    found = predict(problem, toys.even(1), Load(rate_per_s=1e3), deadline=deadline)
    assert math.isnan(found.max_requests_per_s) == late
    assert 0 < found.requests_per_s <= found.bound_requests_per_s < 1e3
    assert found.output_tokens_per_s == pytest.approx(3 * found.requests_per_s)
