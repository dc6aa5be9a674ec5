"""Whether a load is served within its targets, and the largest loads that are.

The toy server takes a second for every pass of at most four requests, so its answers are known
without a simulation: a user among four waits for the pass that runs and for the own one, 2 s.
"""

import json
import math
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import planner, slo_answer
from hypsolve.planning.cheapest_upgrade import cheapest_upgrade
from hypsolve.planning.forecast import predict
from hypsolve.planning.saturation import MET
from hypsolve.planning.slo_answer import TOLERANCE, Bracket
from hypsolve.planning.slo_text import describe_sufficient, largest_rate
from hypsolve.solvers.clock import NEVER, Deadline
from tests.cli.test_cli import run
from tests.helpers import token_toys as toys

SLOTS = 4
SERVER = hs.Runtime(name="toy", max_num_seqs=SLOTS)
PASS = {"prompt_tokens": 1, "output_tokens": 9, "runtime": SERVER}
TARGETS = {"ttft_slo_s": 2.001, "tpot_slo_s": 1.001}


def asked(n_nodes=1, prices=None, **more):
    network = hs.NetworkFile(
        network=toys.network([[toys.gpu("gpu", t0_s=1.0)] * n_nodes]),
        price_per_hour=prices or {},
    )
    return hs.PlanQuery.of(toys.model(1), network, **PASS, **TARGETS, **more)


def answer_of(query, **more):
    return planner.plan_query(query, **{"with_upgrades": False, **more}).slo_answer


def count_of(limit, calls):
    def holds(load):
        calls.append(load)
        return load <= limit

    return holds


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("start", [1, 50, 3000])
def test_the_largest_number_is_found(limit, start):
    """The oracle is the limit itself; each load is tried once."""
    bracket, calls = Bracket(), []
    bracket.search(count_of(limit, calls), start=start, least=1, most=10_000, step=1,
                   deadline=NEVER)  # fmt: skip
    assert bracket.is_found
    assert bracket.low <= limit < bracket.low + max(1, TOLERANCE * bracket.low)
    assert all(load == int(load) >= 1 for load in calls)
    assert len(calls) == len(set(calls)) <= 30


@pytest.mark.parametrize("limit", [0.003, 0.9, 17.3])
def test_the_largest_rate_is_found_to_the_tolerance(limit):
    bracket, calls = Bracket(), []
    bracket.search(count_of(limit, calls), start=20.0, least=1e-3, most=20.0, step=0,
                   deadline=NEVER)  # fmt: skip
    assert bracket.is_found and bracket.low <= limit <= bracket.low * (1 + TOLERANCE)


@pytest.mark.parametrize("noted", [(3, True), (30, False), (12, True), (13, False)])
def test_loads_that_are_known_are_not_tried_again(noted):
    bracket, calls = Bracket(), []
    bracket.note(*noted)
    bracket.search(count_of(12, calls), start=20, least=1, most=100, step=1, deadline=NEVER)
    assert bracket.is_found and bracket.low == 12 and noted[0] not in calls


def test_a_search_that_is_cut_short_has_a_lower_bound():
    """By its largest load, and by the clock."""
    bracket = Bracket()
    bracket.search(count_of(500, []), start=3, least=1, most=100, step=1, deadline=NEVER)
    assert (bracket.low, bracket.is_found) == (100, False)
    late, calls = Bracket(), []
    late.search(count_of(500, calls), start=3, least=1, most=100, step=1, deadline=Deadline(0))
    assert (late.low, late.is_found, calls) == (0, False, [])


@pytest.mark.parametrize(("users", "is_met"), [(3, True), (4, True), (6, False), (40, False)])
def test_users_up_to_the_slots_are_served(users, is_met):
    """Serve as many users as there are slots; of one user more, one waits in every pass."""
    found = answer_of(asked(users=users))
    assert found.is_met == is_met == (found.slo_attainment >= MET)
    assert (found.max_users, found.max_users_is_lower_bound) == (SLOTS, False)
    assert found.binding_target == "TPOT"  # a token of the one who waits takes two passes
    assert found.max_requests_per_s < SLOTS / 9  # in 9 passes of a second


def test_a_target_on_later_tokens_can_bind():
    """A pass of 1 s misses 0.9 s, whoever waits."""
    query = replace(asked(users=2), tpot_slo_s=0.9)
    found = answer_of(query)
    assert not found.is_met and found.binding_target == "TPOT"
    assert (found.max_users, found.max_requests_per_s) == (0, 0.0)


def test_the_rate_within_targets_is_that_of_the_plan():
    """The objective is goodput then, so the search for the split has found it."""
    plan = planner.plan_query(asked(rate_per_s=0.01), with_upgrades=False)
    assert plan.query.objective == "goodput"
    answer = plan.slo_answer
    assert answer.is_met
    assert answer.max_requests_per_s == plan.throughput.simulated_requests_per_s > 0.01
    largest = answer.max_requests_per_s
    for factor, is_met in ((0.9, True), (1.25, False)):  # draws are only about monotone
        assert answer_of(asked(rate_per_s=factor * largest)).is_met == is_met


def test_another_objective_has_an_answer_too():
    """Whoever gives targets asks about them, whatever decides the split."""
    found = answer_of(asked(users=4, objective="path"))
    assert found.is_met and found.max_users == SLOTS
    assert 0 < found.max_requests_per_s < SLOTS / 9
    assert answer_of(replace(asked(objective="path"), ttft_slo_s=None, tpot_slo_s=None)) is None


@pytest.mark.parametrize(("users", "n_more"), [(5, 1), (8, 1), (9, 2), (17, 4)])
def test_the_cheapest_upgrade_adds_the_fewest_nodes(users, n_more):
    """Every node serves four users."""
    found = answer_of(asked(users=users), with_upgrades=True)
    assert not found.is_met
    words = "one more" if n_more == 1 else f"{n_more} more"
    assert found.upgrade.what.startswith(words) and found.upgrade.n_gpus == n_more
    assert math.isnan(found.upgrade.price_per_hour)
    assert found.upgrade.slo_attainment >= MET


def test_a_known_price_comes_before_fewer_devices():
    """Two cheap nodes cost less than one that is dear; a node without a price comes last."""
    gpus = [toys.gpu("cheap", t0_s=1.0), toys.gpu("dear", t0_s=0.5), toys.gpu("own", t0_s=1.0)]
    network = toys.network([gpus])
    names = [node.name for node in network.tiers[0].nodes]
    prices = dict(zip(names, (0.1, 5.0), strict=False))
    file = hs.NetworkFile(network=network, price_per_hour=prices)
    query = hs.PlanQuery.of(toys.model(1), file, **PASS, **TARGETS, users=17)
    upgrade = cheapest_upgrade(query, deadline=NEVER)
    assert "cheap" in upgrade.what and upgrade.price_per_hour <= 0.3
    no_prices = replace(query, network=hs.NetworkFile(network=network))
    assert cheapest_upgrade(no_prices, deadline=NEVER).n_gpus <= upgrade.n_gpus


def test_nothing_reaches_what_a_request_alone_misses():
    query = replace(asked(users=2), tpot_slo_s=0.9)
    assert cheapest_upgrade(query, deadline=NEVER) is None
    plan = planner.plan_query(query)
    assert plan.slo_answer.upgrade is None and "no upgrade that was tried reaches it" in str(
        plan
    )
    # it was "0 users, or about 0 requests/s"
    assert "serves no load within the targets, not even a single user" in str(plan)
    assert "0 users" not in str(plan) and "about 0 requests/s" not in str(plan)


def test_an_interrupt_keeps_what_is_known(monkeypatch):
    """Ctrl-C after two simulations: the answer stands, the largest loads are lower bounds."""
    served = slo_answer.load_trace
    n_served = 0

    def interrupted(*arguments):
        nonlocal n_served
        n_served += 1
        if n_served == 3:
            raise KeyboardInterrupt
        return served(*arguments)

    monkeypatch.setattr(slo_answer, "load_trace", interrupted)
    plan = planner.plan_query(asked(users=2), with_upgrades=False)
    answer = plan.slo_answer
    assert answer.is_met and "largest loads within the targets" in plan.stopped
    assert answer.max_users_is_lower_bound and answer.max_users >= 2
    assert "at least" in str(plan) and plan.throughput.gap >= 0


SITE = """
[[tiers]]
name = "desk"
nodes = [{gpu = "rtx-4090", price_per_hour = 0.5}]
"""


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def command(site, *more):
    return ("plan", "--model", "llama-3.2-1b", "--network", site, "--output", 32, *more)


def test_the_exit_code_is_the_answer(capsys, site):
    """Yes or no comes first; scripts read the exit code, and programs the JSON."""
    targets = ("--slo-ttft", 0.5, "--slo-tpot", 0.05)
    code, out, _ = run(capsys, *command(site, *targets, "--users", 4))
    assert code == 0 and out.startswith(
        "yes: 4 users are served within TTFT <= 500 ms and TPOT"
    )
    code, out, _ = run(capsys, *command(site, *targets, "--users", 800, "--json"))
    answer = json.loads(out)["slo_answer"]
    assert code == 1 and answer["is_met"] is False
    assert 4 < answer["max_users"] < 800 and answer["max_requests_per_s"] > 0
    upgrade = answer["upgrade"]
    assert upgrade["price_per_hour"] > 0 and upgrade["slo_attainment"] >= MET
    code, out, _ = run(capsys, *command(site, "--ttft-slo", 1e-4, "--rate", 2))
    assert code == 1 and out.startswith("no: 2 requests/s are not served within TTFT <= ")


def test_users_without_targets_are_told_rate_and_latencies(capsys, site):
    code, out, _ = run(capsys, *command(site, "--users", 8))
    assert code == 0 and "8 users are served" in out and "TTFT    mean" in out
    assert not out.startswith(("yes", "no"))


def test_an_upgrade_names_its_price():
    upgrade = slo_answer.SufficientUpgrade(
        what="2 more L4 in 'desk'", price_per_hour=1.4, n_gpus=2, cuts=(0, 34),
        slo_attainment=0.97, extrapolated=False,
    )  # fmt: skip
    assert describe_sufficient(upgrade, "EUR") == (
        "2 more L4 in 'desk' (1.4 EUR per hour); 97.0% are then within them"
    )
    unknown = replace(upgrade, price_per_hour=math.nan)
    assert "(price unknown, 2 GPUs)" in describe_sufficient(unknown)
    assert "(no hardware)" in describe_sufficient(replace(upgrade, price_per_hour=0.0))


@pytest.mark.parametrize("more", [{"users": 2}, {"rate_per_s": 0.05}])
def test_a_rate_that_nothing_confirms_is_no_answer(more):
    """It was said to be served within the targets, at four times what the server can do."""
    plan = planner.plan_query(asked(**more), with_upgrades=False)
    query, partition = plan.query, plan.result.partition
    deployment = query.deployment()
    instance = hs.to_instance(deployment, allow_empty=True)
    forecast = predict(deployment, partition, query.load, instance=instance)
    claims = {}
    for is_confirmed in (False, True):
        search = slo_answer.SloSearch(
            deployment, instance, partition, query.load, forecast,
            within_targets_per_s=2.0, is_lower_bound=True, is_confirmed=is_confirmed,
        )  # fmt: skip
        claims[is_confirmed] = search.answer()  # the time is over before a search
        assert claims[is_confirmed].max_rate_is_lower_bound
    known = more.get("rate_per_s", 0.0)  # the load that was asked for is simulated in any case
    assert claims[False].max_requests_per_s == known and claims[True].max_requests_per_s == 2.0
    if not known:
        assert largest_rate(claims[False]) == "a rate that was not found in time"
