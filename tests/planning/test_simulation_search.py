"""The search for the least mean latency: against enumeration, and its bound on every split."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.planning import simulation_search
from hypsolve.planning.simulation_search import Splits, minimise_mean_latency, solve_simulated
from hypsolve.solvers import clock
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import random_scenario


def drawn(seed):
    """A small deployment under equal requests, and rules on its blocks."""
    rng = np.random.default_rng(seed)
    n, prompt, output = int(rng.integers(1, 12)), int(rng.integers(1, 1500)), rng.integers(1, 9)
    ones = np.ones(n, np.int64)
    arrival_s = rng.exponential(1.0, n).cumsum() * 10.0 ** rng.integers(-5, 2)
    deployment = replace(
        random_scenario(seed, hs.simulate).deployment,
        requests=hs.Requests(arrival_s, prompt * ones, output * ones),
        max_resident_tokens=None,
        cost_model=hs.CostModel.ROOFLINE,
    )
    return deployment, {"allow_empty": bool(rng.integers(2))}


def allowed(splits):
    n_tiers, n_blocks = splits.instance.n_tiers, splits.instance.n_blocks
    for inner in itertools.combinations_with_replacement(range(n_blocks + 1), n_tiers - 1):
        cuts = (0, *inner, n_blocks)
        if not hs.check(splits.instance, hs.Partition(cuts)):
            yield cuts


@given(st.integers(0, 2**32 - 1))
def test_the_search_is_enumeration_and_bounds_hold(seed):
    deployment, rules = drawn(seed)
    splits = Splits(deployment, rules)
    every = {cuts: splits.simulate(cuts) for cuts in allowed(splits)}
    ordered = list(splits.in_order_of_bound())
    assert sorted(cuts for _, cuts in ordered) == sorted(every)
    bounds = np.array([bound_s for bound_s, _ in ordered])
    assert (np.diff(bounds) >= -1e-12 * bounds.max(initial=0.0)).all()
    for bound_s, cuts in ordered:
        assert bound_s == pytest.approx(splits.bound_s(cuts), rel=1e-12)
        assert bound_s <= every[cuts]
    found = minimise_mean_latency(Splits(deployment, rules), time_limit_s=60)
    if not every:
        assert found.partition is None and str(found.status) == "infeasible"
        return
    assert str(found.status) == "optimal" and found.gap == 0.0
    assert found.objective_s == found.bound_s == min(every.values())
    assert every[found.partition.cuts] == found.objective_s
    assert found.method == "simulated" and "no other can be better" in found.message


@given(st.integers(0, 2**32 - 1))
def test_one_request_alone_of_one_prompt_token_takes_its_bound(seed):
    """There is nothing that chunks could overlap."""
    deployment, rules = drawn(seed)
    output = deployment.requests.output_tokens[:1]
    request = hs.Requests(np.zeros(1), np.array([1]), output)
    alone = replace(deployment, requests=request, max_resident_tokens=None)
    splits = Splits(alone, rules)
    for bound_s, cuts in itertools.islice(splits.in_order_of_bound(), 5):
        served = hs.simulate(alone, hs.Partition(cuts), quickest)
        assert served.latency_s[0] == pytest.approx(bound_s, rel=1e-8)


def test_one_prompt_alone_overlaps_nothing_but_what_the_bound_leaves_out():
    """Blocks of 1 s a pass: the rest of a prompt costs nothing, so the bound is exact."""
    deployment = two_tiers(1)
    request = hs.Requests(np.zeros(1), np.array([400]), np.array([3]))
    splits = Splits(replace(deployment, requests=request, max_resident_tokens=None), {})
    for bound_s, cuts in splits.in_order_of_bound():
        assert splits.simulate(cuts) == pytest.approx(bound_s, rel=1e-8)


def many_nodes(n_tiers, n_nodes, prompt, rate_per_s):
    """A quick node in front of many: prompts are cut in chunks there, and then overlap."""
    quick = toys.gpu("quick", seconds_per_flop=1e-17, bytes_per_s=1e15)
    wire = hs.Link(bytes_per_s=1.25e10, latency_s=1e-5)
    tiers = tuple(
        hs.Tier(
            name=f"t{k}",
            nodes=tuple(
                hs.Node(name=f"t{k}-{j}", gpu=hs.gpu("l4") if k else quick)
                for j in range(n_nodes if k else 1)
            ),
            link=wire if k < n_tiers - 1 else None,
        )
        for k in range(n_tiers)
    )
    n = 100
    return hs.Deployment(
        model=hs.model("phi-3-mini"),
        network=hs.Network(name="wide", tiers=tiers),
        requests=hs.Requests(
            np.arange(n) / rate_per_s, np.full(n, prompt), np.ones(n, np.int64)
        ),
    )


@pytest.mark.parametrize("prompt", [200, 350, 600, 700])
@pytest.mark.parametrize(("n_tiers", "rate_per_s"), [(6, 1e9), (12, 1e9), (12, 500.0)])
def test_chunks_that_overlap_are_not_below_the_bound(prompt, n_tiers, rate_per_s):
    deployment = many_nodes(n_tiers, 100, prompt, rate_per_s)
    splits = Splits(deployment, {"max_blocks": [1, *[34] * (n_tiers - 1)]})
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(6):
        inner = sorted(rng.choice(np.arange(2, 34), n_tiers - 2, replace=False).tolist())
        cuts = (0, 1, *inner, 34)
        value_s = splits.simulate(cuts)
        assert splits.bound_s(cuts) <= value_s
        shares.append(value_s / hs.evaluate(splits.alone, hs.Partition(cuts)))
    if (prompt, n_tiers, rate_per_s) == (600, 12, 1e9):
        assert min(shares) < 1  # faster than alone and whole, which is therefore no bound


def test_the_limit_holds_where_very_many_splits_are_as_good(monkeypatch):
    """Twenty tiers that may all be empty: bounds come before the first whole split."""
    gpus = [*hs.gpus()][:20]
    wire = hs.Link(bytes_per_s=1e9, latency_s=1e-4)
    tiers = tuple(
        hs.Tier(name=gpu, nodes=(hs.Node(name=gpu, gpu=hs.gpu(gpu)),), link=wire)
        for gpu in gpus[:-1]
    )
    last = hs.Tier(name=gpus[-1], nodes=(hs.Node(name=gpus[-1], gpu=hs.gpu(gpus[-1])),))
    ones = np.ones(20, np.int64)
    deployment = hs.Deployment(
        model=hs.model("llama-3-70b"),
        network=hs.Network(name="long", tiers=(*tiers, last)),
        requests=hs.Requests(np.arange(20.0), 4096 * ones, 8 * ones),
    )
    rules = {"allow_empty": True}
    readings = []

    def reading():
        readings.append(len(readings))
        return float(readings[-1])

    monkeypatch.setattr(clock, "now", reading)
    monkeypatch.setattr(simulation_search, "MAX_EVALUATIONS", 1000)
    found = minimise_mean_latency(Splits(deployment, rules), time_limit_s=60)
    assert len(readings) == 61  # it ends at the first reading at the limit
    assert 0 < found.bound_s < found.objective_s and str(found.status) == "feasible"
    splits = Splits(deployment, rules)
    min_s = splits.min_bound_s()
    assert 0 < min_s <= splits.bound_s(found.partition.cuts)
    evaluations = list(itertools.islice(splits.by_bound(), 500))
    bounds = np.array([bound_s for bound_s, _ in evaluations])
    assert (np.diff(bounds) >= -1e-12 * bounds[-1]).all()


def test_the_first_chunk_passes_by_what_computes_the_last_token_alone():
    def block(kind, flops, **fields):
        return hs.Block(kind=kind, weight_bytes=0, flops_per_token=flops, **fields)

    model = hs.Model(
        name="pool",
        blocks=(
            block("a", 1.0),
            block("pool", 5000.0, last_token_only=True),
            block("b", 10.0),
            block("head", 7.0, last_token_only=True),
        ),
    )
    tiers = [[toys.gpu(seconds_per_flop=1e-3)], [toys.gpu(seconds_per_flop=1e-3)]]
    deployment = toys.deployment(tiers, toys.burst(1, prompt_tokens=1024), model)
    splits = Splits(deployment, {})
    for cut in (1, 2, 3):  # a value below its bound would be an error
        assert splits.bound_s((0, cut, 4)) <= splits.simulate((0, cut, 4))


def test_a_value_below_its_bound_is_a_bug(monkeypatch):
    splits = Splits(two_tiers(3), {})
    monkeypatch.setattr(simulation_search.Splits, "bound_s", lambda self, cuts: 1e9)
    with pytest.raises(RuntimeError, match="is below its bound"):
        splits.simulate((0, 3, 6))


def quickest(tier_state, request):
    return int(tier_state.nodes[tier_state.own_s.argmin()])


NETWORK = [[toys.gpu(t0_s=1.0)], [toys.gpu(t0_s=2.0)]]


def two_tiers(n_requests=3, n_blocks=6):
    """Blocks of 1 s and of 2 s: at 1 block a tier less for each."""
    requests = toys.burst(n_requests, output_tokens=2)
    return toys.deployment(NETWORK, requests, toys.model(n_blocks))


def test_one_that_can_be_worked_out():
    found = minimise_mean_latency(Splits(two_tiers(1), {}), time_limit_s=60)
    assert found.partition.cuts == (0, 5, 6)
    assert found.objective_s == pytest.approx(2 * (5 * 1.0 + 2.0))


def test_a_time_limit_leaves_a_valid_bound(monkeypatch):
    deployment = two_tiers(20, 12)
    whole = minimise_mean_latency(Splits(deployment, {}), time_limit_s=60)
    assert str(whole.status) == "optimal"
    found = minimise_mean_latency(Splits(deployment, {}), time_limit_s=1e-9)
    assert found.statistics == {"n_simulated": 1}
    assert found.bound_s <= whole.objective_s <= found.objective_s
    assert str(found.status) == "feasible"
    assert found.gap == pytest.approx(1 - found.bound_s / found.objective_s) and found.gap > 0


@pytest.mark.parametrize("n_before", [1, 2, 3])
def test_an_interrupt_keeps_the_best_so_far(monkeypatch, n_before):
    deployment = two_tiers(20, 12)
    whole = minimise_mean_latency(Splits(deployment, {}), time_limit_s=60)
    real, calls = simulation_search.serve, []

    def serve(*arguments):
        calls.append(arguments)
        if len(calls) > n_before:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(simulation_search, "serve", serve)
    told = []
    splits = Splits(deployment, {})
    found = minimise_mean_latency(splits, time_limit_s=60, progress=told.append)
    assert splits.interrupted and found.statistics == {"n_simulated": n_before}
    assert found.message.endswith("interrupted") and str(found.status) == "feasible"
    assert found.bound_s <= whole.objective_s <= found.objective_s
    assert len(told) >= n_before and f"{n_before} splits simulated" in told[-1]
    assert found.objective_s == min(real(*given).latency_s.mean() for given in calls[:n_before])


def test_another_method_is_judged_by_simulation():
    deployment = two_tiers(4)
    rules = {"max_blocks": [4, 6]}
    even = hs.solve(hs.to_instance(deployment, **rules), "even_split")
    found = solve_simulated(Splits(deployment, rules), "even_split", time_limit_s=60, seed=0)
    best = minimise_mean_latency(Splits(deployment, rules), time_limit_s=60)
    trace = hs.simulate(deployment, even.partition, link_contention=True)
    assert found.partition == even.partition and found.method == "even_split"
    assert found.objective_s == trace.latency_s.mean()
    assert best.bound_s <= found.objective_s and found.bound_s <= best.objective_s
    splits = Splits(deployment, rules)
    min_s = min(splits.bound_s(cuts) for cuts in allowed(splits))
    assert found.bound_s == pytest.approx(min_s, rel=1e-9)
    assert found.gap == pytest.approx(1 - found.bound_s / found.objective_s)
    assert best.partition.cuts[1] <= 4


def test_what_fits_nowhere_says_why():
    kept = toys.model(4, kv_bytes=8)
    deployment = toys.deployment(
        NETWORK, toys.burst(2, 9, 9), kept, memory_bytes=150.0, max_resident_tokens=18
    )
    found = minimise_mean_latency(Splits(deployment, {}), time_limit_s=60)
    assert str(found.status) == "infeasible" and math.isinf(found.objective_s)
    assert "the tiers together reach block 2 of 4" in found.message
    splits = Splits(deployment, {})
    nothing = solve_simulated(splits, "even_split", time_limit_s=60, seed=0)
    assert nothing.partition is None


def test_a_cloud_behind_empty_tiers_pays_for_their_links_once(tmp_path):
    """Passes that started at the request side took 28 s here: 100 ms of links per token."""
    path = tmp_path / "network.toml"
    tier = '[[tiers]]\nname = "{}"\nnodes = [{{gpu = "{}"}}]\nmin_blocks = 0\n'
    link = "link = {{gbps = 1.0, latency_ms = {}}}\n"
    path.write_text(
        tier.format("edge", "jetson-agx-orin")
        + link.format(10)
        + tier.format("fog", "l4")
        + link.format(40)
        + tier.format("cloud", "h100")
    )
    tokens = {"prompt_tokens": 1024, "output_tokens": 256}
    plan = hs.plan("llama-3-8b", path, objective="mean_latency", rate_per_s=5, **tokens)
    assert str(plan.result.status) == "optimal"
    cloud = hs.Partition((0, 0, 0, plan.result.instance.n_blocks))
    assert plan.result.partition == cloud
    alone_s = float(plan.result.instance.reference_s[-1].sum())
    links_s = 2 * (0.01 + 0.04) + 2 * 4 * 1024 / 1.25e8
    assert alone_s + links_s < 1.7
    assert alone_s + links_s < plan.result.objective_s < 2.0
    assert plan.forecast.ttft_s.mean < 0.2 and plan.forecast.tpot_s.mean < 0.01
    assert plan.forecast.max_requests_per_s <= plan.forecast.bound_requests_per_s
