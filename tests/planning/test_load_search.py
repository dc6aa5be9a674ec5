"""Whether a load is served by some split: by enumeration, and how a "no" is said."""

import functools
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning import load_search, planner
from hypsolve.planning.load import Load
from hypsolve.planning.load_search import LoadSearch, LoadSearched
from hypsolve.planning.saturation import MET, attained, serve_at_rate, stretch_of
from hypsolve.planning.slo_answer import SloAnswer, decided, judged, load_trace
from hypsolve.planning.slo_text import describe_answer
from hypsolve.planning.throughput import RateSearch
from hypsolve.solvers.clock import NEVER, Deadline
from tests.cli.test_cli import run

GPUS = ("t4", "l4", "a10", "rtx-3090", "rtx-4090", "a100-40gb", "v100-16gb")


def drawn(seed):
    """A deployment of two or three tiers with all of its splits, and a load without targets."""
    rng = np.random.default_rng([15, seed])
    tiers = []
    n_tiers = int(rng.integers(2, 4))
    for k in range(n_tiers):
        nodes = tuple(
            hs.Node(name=f"{k}-{j}", gpu=hs.gpu(str(rng.choice(GPUS))))
            for j in range(int(rng.integers(1, 3)))
        )
        link = hs.Link(
            bytes_per_s=float(10 ** rng.uniform(7.3, 9.3)),
            latency_s=float(10 ** rng.uniform(-4, -2)),
        )
        tiers.append(hs.Tier(name=f"t{k}", nodes=nodes, link=link if k < n_tiers - 1 else None))
    model = hs.model("llama-3-8b")
    model = replace(model, blocks=(model.blocks[0], *model.blocks[1:8], model.blocks[-1]))
    deployment = hs.Deployment(
        model=model,
        network=hs.Network(name="drawn", tiers=tuple(tiers)),
        requests=hs.Requests([0.0], [int(rng.choice([64, 512]))], [16]),
    )
    instance = hs.to_instance(deployment, objective="path")
    every = itertools.combinations(range(1, instance.n_blocks), n_tiers - 1)
    splits = [hs.Partition((0, *inner, instance.n_blocks)) for inner in every]
    splits = [split for split in splits if not hs.check(instance, split)]
    load = Load(users=int(rng.choice([2, 8, 16])), max_visits=2e5)
    return rng, deployment, instance, splits, load


def with_tight_targets(rng, deployment, instance, splits, load):
    """Targets that one split just meets: the best in a mix of both latencies."""
    traces = [load_trace(deployment, instance, split, load) for split in splits]
    late = np.array(
        [[np.quantile(each, 0.96) for each in (t.ttft_s, t.tpot_s)] for t in traces]
    )
    share = rng.uniform()
    best = int(np.argmin(np.log(late) @ [share, 1 - share]))
    slack = 1.005
    while True:
        ttft, tpot = (float(value) * slack for value in late[best])
        found = replace(load, ttft_slo_s=ttft, tpot_slo_s=tpot)
        if judged(deployment, instance, splits[best], found).slo_attainment >= 0.955:
            return found
        slack *= 1.004


@pytest.mark.parametrize("seed", range(4))
def test_the_answer_is_that_of_all_splits(seed):
    """The oracle simulates every split; several of these loads were said not to be served."""
    rng, deployment, instance, splits, load = drawn(seed)
    load = with_tight_targets(rng, deployment, instance, splits, load)
    search = RateSearch(deployment, {}, load, objective="goodput", prices_per_hour={})
    _, found = search.run(200.0)
    best = hs.Partition(found.splits[0].cuts)
    assert judged(deployment, instance, best, load).is_met
    assert found.at_load.is_met and found.splits[0].slo_attainment >= MET

    harder = replace(load, tpot_slo_s=0.5 * load.tpot_slo_s)
    n_met = sum(judged(deployment, instance, split, harder).is_met for split in splits)
    search = RateSearch(deployment, {}, harder, objective="goodput", prices_per_hour={})
    at_load = search.run(200.0)[1].at_load
    assert at_load.is_met == (n_met > 0)
    if not n_met:
        assert at_load == LoadSearched(
            is_met=False, n_simulated=len(splits), n_splits=len(splits), was_cut_short=False
        )
        assert at_load.is_of_all


@pytest.mark.parametrize("seed", [1])
def test_a_rate_is_looked_for_in_all_splits_too(seed):
    """Requests at a rate: the same oracle."""
    rng, deployment, instance, splits, load = drawn(seed)
    load = replace(load, users=None, rate_per_s=2.0)
    load = with_tight_targets(rng, deployment, instance, splits, load)
    search = RateSearch(deployment, {}, load, objective="goodput", prices_per_hour={})
    _, found = search.run(200.0)
    assert found.at_load.is_met
    met = [each.cuts for each in found.splits[:1]]
    assert judged(deployment, instance, hs.Partition(met[0]), load).is_met


def simulator_of(stretches, n_tiers=2):
    """A simulator that knows the factor of each split; splits are those of 2 tiers."""
    n_blocks = len(stretches) + 1

    class Simulator:
        instance = hs.Instance.from_tables(
            [[[1.0] * n_blocks]], [1] * n_blocks, [[(0, n_blocks)]] * n_tiers
        )

        def __init__(self):
            self.seen = []

        def stretch(self, cuts):
            self.seen.append(cuts)
            return stretches[cuts[1] - 1]

    return Simulator()


def test_the_search_ends_at_the_first_split_that_serves_and_tries_all_before_no():
    factors = [0.9 + 0.1 * abs(c - 9) for c in range(1, 40)]
    simulator = simulator_of(factors)
    search = LoadSearch(simulator, lambda cuts: True)
    search.run([(0, 1, 40)], NEVER, lambda line: None)
    assert len(search.met) == 1 and search.met[0][1] in (8, 9, 10) and len(simulator.seen) < 20
    simulator = simulator_of([1.0 + f for f in factors])
    search = LoadSearch(simulator, lambda cuts: True)
    search.run([(0, 1, 40)], NEVER, lambda line: None)
    assert not search.met and sorted(simulator.seen) == [(0, c, 40) for c in range(1, 40)]
    assert search.result().is_of_all and search.best() == (0, 9, 40)


def test_a_search_goes_on_where_the_clock_ended_it():
    simulator = simulator_of([2.0] * 6 + [1.0])
    search = LoadSearch(simulator, lambda cuts: True)
    search.run([(0, 1, 8)], Deadline(0.0), lambda line: None)
    assert search.result().was_cut_short and search.result().n_simulated == 1
    search.run([], NEVER, lambda line: None)
    assert search.result().is_met and not search.result().was_cut_short


def test_only_allowed_splits_count():
    search = LoadSearch(simulator_of([2.0] * 7), lambda cuts: cuts[1] % 2 == 0)
    search.run([], NEVER, lambda line: None)
    found = search.result()
    assert (found.n_simulated, found.n_splits, found.is_of_all) == (3, 3, True)


def test_many_splits_are_not_counted(monkeypatch):
    """The search then ends when many splits in a row were no better."""
    monkeypatch.setattr(load_search, "MAX_CUTS", 3)
    monkeypatch.setattr(load_search, "LITTLE", 4)
    search = LoadSearch(simulator_of([9.0] * 20), lambda cuts: True)
    search.run([(0, 1, 21)], NEVER, lambda line: None)
    found = search.result()
    assert found.n_splits is None and found.n_simulated == 5
    assert not found.is_of_all and not found.was_cut_short


@pytest.mark.parametrize("users", [None, 6])
@pytest.mark.parametrize("targets", [(0.3, 0.02), (0.2, None), (None, 0.015), (9.0, 9.0)])
def test_the_targets_times_the_factor_are_just_met(users, targets):
    """The oracle is the judge of the answer, with other targets."""
    _, deployment, instance, splits, _ = drawn(3)
    load = Load(users=users, rate_per_s=2.0, ttft_slo_s=targets[0], tpot_slo_s=targets[1])
    if users is None:
        trace = serve_at_rate(deployment, splits[0], load, 2.0, 300)
    else:
        trace = load_trace(deployment, instance, splits[0], load)
    factor = stretch_of(trace, load)

    def share(times):
        ttft, tpot = (None if each is None else each * times for each in targets)
        return attained(trace, replace(load, ttft_slo_s=ttft, tpot_slo_s=tpot))[0]

    assert share(factor * (1 + 1e-9)) >= MET > share(factor * (1 - 1e-9))
    assert math.isnan(stretch_of(trace, Load(users=users)))


ANSWER = SloAnswer(
    is_met=False, slo_attainment=0.5, is_of_later_half=False, n_requests=400, keeps_up=True,
    sustained_requests_per_s=5.0, max_users=3, max_users_is_lower_bound=False,
    max_requests_per_s=1.0, max_rate_is_lower_bound=False, binding_target="TPOT",
    limited_by="",
)  # fmt: skip
LOAD = Load(rate_per_s=2.0, ttft_slo_s=1.0)


def searched(n, of, *, cut=False, is_met=False):
    return LoadSearched(is_met=is_met, n_simulated=n, n_splits=of, was_cut_short=cut)


@pytest.mark.parametrize(
    ("at_load", "bound", "how", "words"),
    [
        (searched(9, 9), 5.0, "all splits", "no: 2 requests/s are not served within TTFT <= "),
        (searched(9, 9), 1.9, "bound", "no: 2 requests/s are not served within TTFT <= "),
        (searched(9, None), 5.0, "some splits", "no split found that serves 2 requests/s"),
        (searched(9, 20, cut=True), 5.0, "time limit", "not decided in time: no split was"),
        (None, 5.0, "this split", "no: this split does not serve 2 requests/s"),
    ],
)
def test_a_no_says_what_decides_it(at_load, bound, how, words):
    """A plain no is proved, or all splits were simulated."""
    answer = decided(ANSWER, LOAD, at_load, bound)
    text = describe_answer(answer, LOAD)
    assert answer.decided_by == how and text.startswith(words)
    assert ("9 of 20 splits simulated" in text) == (how == "time limit")
    assert ("all simulated" in text) == (how == "all splits")
    assert ("proved: no split and no schedule" in text) == (how == "bound")
    met = decided(replace(ANSWER, is_met=True), LOAD, at_load, bound)
    assert met.decided_by == "simulation" and describe_answer(met, LOAD).startswith("yes: ")


def test_a_queue_that_never_drains_is_no_latency_that_grows():
    """All requests met their targets, and latencies were said to grow without limit."""
    answer = replace(ANSWER, keeps_up=False, slo_attainment=1.0, decided_by="all splits")
    assert "latencies grow without limit, though 100.0%" in describe_answer(answer, LOAD)
    text = describe_answer(replace(answer, drains=False), LOAD)
    assert "a queue that a burst leaves never drains, though 100.0%" in text
    assert "grow" not in text


def test_a_target_below_the_least_time_per_token_is_refuted_in_words():
    answer = replace(ANSWER, decided_by="bound", least_tpot_s=0.5)
    text = describe_answer(answer, LOAD)
    assert text.startswith("no: 2 requests/s are not served within TTFT <= ")
    assert "proved: no split and no schedule on these machines has a TPOT below 500 ms" in text


TWO = """
[[tiers]]
name = "desk"
link = {gbps = 1, latency_ms = 0.2}
nodes = [{gpu = "rtx-3060", count = 2}]
[[tiers]]
name = "rack"
nodes = [{gpu = "rtx-3090"}]
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "two.toml"
    path.write_text(TWO)
    return path


def test_time_that_runs_out_is_no_plain_no(capsys, two):
    """The exit code is 1 for every answer but yes."""
    command = ("plan", "--model", "llama-3-8b", "--network", two, "--slo-ttft", 1.0)
    targets = ("--slo-tpot", 0.06, "--time-limit", 0.001)
    code, out, _ = run(capsys, *command, *targets, "--users", 200)
    assert code == 1 and out.startswith("not decided in time: no split was found that serves")
    assert "stopped: time limit of 0.001 s: not all" in out
    code, out, _ = run(capsys, *command, *targets, "--users", 200, "--json")
    answer = json.loads(out)["slo_answer"]
    assert code == 1 and answer["decided_by"] == "time limit"
    assert 1 <= answer["n_simulated_splits"] < answer["n_splits"] == 25
    code, out, _ = run(capsys, *command, *targets, "--rate", 1e5)
    assert code == 1 and out.startswith("no: 100000 requests/s are not served")


@functools.cache
def of_users(two, users, **targets):
    query = hs.PlanQuery.of("llama-3-8b", hs.read_network_file(two), users=users, **targets)
    return planner.plan_query(query, with_upgrades=False)


def test_rate_bound_and_gap_are_of_one_quantity(two):
    """A rate of arrivals within targets stood beside the bound on what five users send."""
    plan = of_users(two, 5, ttft_slo_s=1.0, tpot_slo_s=0.06)
    found, query = plan.throughput, plan.query
    alone = hs.throughput_bound(query.deployment())
    of_five = hs.throughput_bound(query.deployment(), users=5)
    assert "Poisson arrivals" in found.quantity
    assert found.bound_requests_per_s == alone > of_five >= found.users_bound_requests_per_s
    assert found.gap == pytest.approx(1 - found.simulated_requests_per_s / alone)
    assert found.simulated_requests_per_s > found.users_bound_requests_per_s  # five are few
    assert found.users_requests_per_s <= found.users_bound_requests_per_s
    assert found.users_requests_per_s == pytest.approx(
        plan.forecast.goodput_requests_per_s, 0.02
    )
    free = of_users(two, 5).throughput
    assert free.quantity.startswith("requests/s of these users")
    assert free.bound_requests_per_s == free.users_bound_requests_per_s <= of_five
    assert free.users_requests_per_s == free.simulated_requests_per_s
    text = str(of_users(two, 5))
    assert "no schedule serves these users more than" in text


def test_no_shown_rival_serves_more_of_what_was_asked_for(two):
    """The paper's split served more than the chosen one, in another quantity."""
    for users in (5, 40, 300):
        found = of_users(two, users, ttft_slo_s=1.0, tpot_slo_s=0.06).throughput
        best, *others = found.splits
        for other in others:
            is_more = other.simulated_requests_per_s > 1.01 * best.simulated_requests_per_s
            assert not is_more or other.slo_attainment < MET, (users, other)
