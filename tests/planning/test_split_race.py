"""The split that a plan chooses for targets and users, among many that are simulated."""

import functools
import json
import math
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import planner, split_simulator
from hypsolve.planning.load import Load
from hypsolve.planning.query import solve_query
from hypsolve.planning.saturation import (
    MET,
    SimulatedRate,
    confirmed_rate,
    is_served,
    requests_within,
    serve_at_rate,
)
from hypsolve.planning.slo_answer import judged
from hypsolve.planning.split_simulator import neighbours
from hypsolve.planning.text import describe_rate, describe_rules
from hypsolve.planning.throughput import RateSearch
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from tests.cli.test_cli import run
from tests.helpers import token_toys as toys

TWO = """
[[tiers]]
name = "desk"
link = {gbps = 1, latency_ms = 0.2}
nodes = [{gpu = "rtx-3060", count = 2, price_per_hour = 0.1}]
[[tiers]]
name = "rack"
nodes = [{gpu = "rtx-3090", price_per_hour = 0.3}]
"""
TARGETS = {"ttft_slo_s": 1.0, "tpot_slo_s": 0.06}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "two.toml"
    path.write_text(TWO)
    return path


@functools.cache
def planned(two, **more):
    query = hs.PlanQuery.of("llama-3-8b", hs.read_network_file(two), **TARGETS, **more)
    return planner.plan_query(query, with_upgrades=False)


def most_users(plan, among):
    """Return whether a split of other cuts serves more users than the plan says."""
    query = replace(plan.query, users=among[1])
    deployment = query.deployment()
    instance = hs.to_instance(deployment, objective="path", **query.rules())
    return judged(deployment, instance, Partition(among[0]), query.load).is_met


def test_no_means_that_no_known_split_serves_the_users(two):
    """The six best splits of the fluid model serve 43 users at most, other splits 52.

    Neighbours of the chosen split are the oracle: none of them serves a tenth more users.
    """
    plan = planned(two, users=45)
    assert plan.slo_answer.is_met and plan.slo_answer.slo_attainment >= MET
    most = plan.slo_answer.max_users
    assert most > 47
    for cuts in neighbours(plan.result.instance, plan.result.partition.cuts):
        assert not most_users(plan, (cuts, math.ceil(1.1 * most)))


def test_users_beyond_reach_leave_the_split_of_most_users(two):
    """Splits were ranked by chance: 0.0 to 0.3 % of the requests of 200 users are in time."""
    of_users = planned(two, users=200)
    of_rate = planned(two, rate_per_s=1.0)
    assert not of_users.slo_answer.is_met
    assert of_users.slo_answer.max_users >= 0.95 * of_rate.slo_answer.max_users
    best = of_users.throughput.splits[0]
    assert best.simulated_requests_per_s == of_users.slo_answer.max_requests_per_s > 1.0


def test_all_splits_state_one_quantity(two):
    """Rates of the few users in time and rates of Poisson arrivals stood in one column."""
    for users in (45, 200):
        found = planned(two, users=users).throughput
        for each in found.splits:
            is_met = found.splits[0].slo_attainment >= MET
            if not is_met and not math.isnan(each.simulated_requests_per_s):
                assert each.simulated_requests_per_s == each.within_targets_per_s
        known = [s for s in found.splits if not math.isnan(s.simulated_requests_per_s)]
        assert len(known) >= 2 and "HypSplit-DP" in describe_rules(found)
        assert "nan" not in describe_rules(found)


def test_what_was_not_looked_for_is_null(two):
    """The rate was 0 with a gap of 100 % after a cut search, and said to be exact."""
    plan = planned(two, users=200)
    load = replace(plan.query.load, max_visits=2e6)
    search = RateSearch(
        plan.query.deployment(),
        plan.query.rules(),
        load,
        objective="goodput",
        prices_per_hour={},
    )
    _, found = search.run(1e-3)
    best = found.splits[0]
    assert found.is_lower_bound and best.simulated_requests_per_s != 0
    if math.isnan(found.simulated_requests_per_s):
        assert math.isnan(found.gap) and "was not found in time" in describe_rate(found)


def test_a_cut_search_writes_null(capsys, two):
    """A time limit of a millisecond leaves no time for any rate within the targets."""
    code, out, _ = run(
        capsys, "plan", "--model", "llama-3-8b", "--network", two, "--slo-ttft", 1.0,
        "--slo-tpot", 0.06, "--users", 200, "--time-limit", 0.001, "--json",
    )  # fmt: skip
    found = json.loads(out)["throughput"]
    assert code == 1 and found["is_lower_bound"]
    assert found["simulated_requests_per_s"] is None and found["gap"] is None


def test_an_interrupt_leaves_a_lower_bound(two, monkeypatch):
    """Ctrl-C before any rate is confirmed: the plan said 0.02 requests/s, its answer 1.7."""
    monkeypatch.setattr(split_simulator, "confirmed_rate", interrupted)
    query = hs.PlanQuery.of("llama-3-8b", hs.read_network_file(two), **TARGETS, users=200)
    plan = planner.plan_query(query, with_upgrades=False)
    found, answer = plan.throughput, plan.slo_answer
    assert plan.stopped and found.is_lower_bound
    assert answer.max_rate_is_lower_bound
    assert answer.max_requests_per_s <= found.simulated_requests_per_s * 1.1
    assert "serves at least" in describe_rate(found)
    assert "no long simulation has confirmed this rate" in describe_rate(found)
    assert "at least 0 " not in str(plan)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_proportional_splits_are_tried_for_throughput():
    """On `factory` with long prompts, the best splits of the fluid model serve 82 % at most."""
    from instances.scenarios import scenario_network

    query = hs.PlanQuery.of(
        "phi-3-medium", scenario_network("factory"), prompt_tokens=2048, output_tokens=128
    )
    found = solve_query(query).throughput
    assert {"speed_proportional", "memory_proportional"} & {s.origin for s in found.splits}
    assert found.simulated_requests_per_s > 4.9  # of 5.22, the best that is known; it was 4.2


SERVER = hs.Runtime(name="toy", max_num_seqs=4)


@pytest.fixture
def toy():
    """A server with a pass of a second for at most four requests: it ends 4 / 9 per second."""
    network = toys.network([[toys.gpu("gpu", t0_s=1.0)]])
    return hs.Deployment(
        model=toys.model(1), network=network, requests=hs.Requests([0.0], [1], [9]),
        runtime=SERVER,
    )  # fmt: skip


def rate(per_s):
    return SimulatedRate(requests_per_s=per_s, n_requests=100, within_targets_per_s=per_s)


@pytest.mark.parametrize("start", [0.5, 0.46, 0.45])
def test_a_rate_above_the_capacity_is_not_confirmed(toy, start):
    """A short simulation meets a loose target at any rate; the capacity is 4 / 9 per second."""
    load = Load(ttft_slo_s=60.0)
    short = serve_at_rate(toy, Partition((0, 1)), load, start, 100)
    assert requests_within(short, load).mean() >= MET
    found = confirmed_rate(toy, Partition((0, 1)), load, rate(start), 4000)
    assert 0.7 * 4 / 9 < found.requests_per_s <= 4 / 9 < start
    long = serve_at_rate(toy, Partition((0, 1)), load, found.requests_per_s, 4000)
    assert is_served(long, load) and found.within_targets_per_s == found.requests_per_s


def test_a_rate_that_is_too_low_is_raised(toy):
    """A short simulation may also miss the targets by chance."""
    load, partition = Load(ttft_slo_s=60.0), Partition((0, 1))
    assert confirmed_rate(toy, partition, load, rate(0.3), 4000).requests_per_s > 0.36
    capped = confirmed_rate(toy, partition, load, rate(0.3), 4000, largest_per_s=0.31)
    assert capped.requests_per_s == 0.31


def test_a_late_confirmation_leaves_a_lower_bound(toy):
    """Nothing is simulated when the time is over, and no rate at all is not confirmed."""
    load, partition = Load(ttft_slo_s=60.0), Partition((0, 1))
    late = confirmed_rate(toy, partition, load, rate(0.3), 4000, Deadline(0.0))
    assert late.is_lower_bound and late.requests_per_s == 0.3 and late.n_requests == 100
    assert not late.is_confirmed
    assert confirmed_rate(toy, partition, load, rate(0.3), 4000, largest_per_s=0.3).is_confirmed
    hopeless = replace(load, ttft_slo_s=0.5)  # a pass takes a second
    assert confirmed_rate(toy, partition, hopeless, rate(0.3), 400).requests_per_s == 0.0


@pytest.mark.full_length
def test_the_stated_rate_holds_in_a_longer_run(two):
    """The oracle is a run of 12,000 requests; 76 % of them were within at the stated rate."""
    network = hs.read_network_file(two)
    query = hs.PlanQuery.of(
        "llama-3-8b", network, prompt_tokens=64, output_tokens=256, tpot_slo_s=0.06
    )
    plan = planner.plan_query(query, with_upgrades=False)
    per_s = plan.slo_answer.max_requests_per_s
    trace = serve_at_rate(query.deployment(), plan.result.partition, query.load, per_s, 12_000)
    assert requests_within(trace, query.load).mean() >= 0.93


def test_of_equal_rates_the_roomy_and_even_split_comes_first():
    """Rates that differ by less than 1 % are no order; larger differences are.

    Under `serial`, noise of 0.8 % had put 34 blocks on one of two equal GPUs, 6 on the other.
    """
    from hypsolve.planning.split_race import SplitRace

    class Simulator:
        load, has_goal, bound_per_s, instance = Load(), False, 9.0, None

        def max_sequences(self, cuts):
            return {(0, 2, 10): 4, (0, 5, 10): 7, (0, 6, 10): 7, (0, 8, 10): 9}[cuts]

    race = SplitRace(Simulator(), printed=(), price=lambda cuts: 1.0, is_allowed=lambda c: True)
    race.rates = {
        (0, 2, 10): rate(5.0), (0, 6, 10): rate(4.98), (0, 5, 10): rate(4.96),
        (0, 8, 10): rate(4.9),
    }  # fmt: skip
    assert race.order()[0] == (0, 5, 10)
    assert race.order()[1:] == [(0, 2, 10), (0, 6, 10), (0, 8, 10)]


def test_the_largest_number_of_users_does_not_depend_on_those_asked_for(two):
    """One split was said to serve 228 users for one question and 225 for another."""
    from hypsolve.planning.forecast import predict
    from hypsolve.planning.slo_answer import SloSearch
    from hypsolve.solvers.clock import NEVER

    query = hs.PlanQuery.of("llama-3-8b", hs.read_network_file(two), **TARGETS, users=1)
    deployment, partition = query.deployment(), Partition((0, 11, 34))
    instance = hs.to_instance(deployment, objective="path", **query.rules())
    found = set()
    for users in (5, 17, 60, 300):
        load = replace(query.load, users=users)
        forecast = predict(deployment, partition, load, instance=instance)
        search = SloSearch(deployment, instance, partition, load, forecast, 2.4)
        search.run(NEVER, lambda line: None)
        answer = search.answer()
        assert answer.max_users_tolerance == 0 and not answer.max_users_is_lower_bound
        found.add(answer.max_users)
    assert len(found) == 1
    (most,) = found
    for users in (most, most + 1):
        load = replace(query.load, users=users)
        assert judged(deployment, instance, partition, load).is_met == (users == most)
