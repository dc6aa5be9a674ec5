"""Plans for requests per second: the best split by simulation, bounded over all splits."""

import itertools
import json
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.bounds.throughput import throughput_bound
from hypsolve.planning import what_if
from hypsolve.planning.load import Load
from hypsolve.planning.query import rank_fluid, solve_fluid
from hypsolve.planning.saturation import MET, attainment, saturated_rate
from hypsolve.planning.text import describe_rate
from hypsolve.planning.throughput import RateSearch
from hypsolve.problem import evaluation
from tests.cli.test_cli import run

SMALL = {  # two tiers on 1 GbE, few splits fit
    "rtx-3060, rtx-3090": ("llama-3-8b", (("rtx-3060", 3), ("rtx-3090", 1))),
    "t4, l4": ("llama-2-13b", (("t4", 4), ("l4", 2))),
    "rtx-3080, v100": ("llama-3-8b", (("rtx-3080", 4), ("v100-16gb", 2))),
}


def deployment(model, tiers, **more):
    """Requests of 256 + 64 tokens; 1 GiB of each node is taken."""
    wire = hs.Link(bytes_per_s=1.25e8, latency_s=2e-4)
    network = hs.Network(
        name="lab",
        tiers=tuple(
            hs.Tier(
                name=f"tier-{k}",
                nodes=tuple(
                    hs.Node(name=f"{k}-{j}", gpu=hs.gpu(gpu), reserved_bytes=2.0**30)
                    for j in range(n)
                ),
                link=wire if k < len(tiers) - 1 else None,
            )
            for k, (gpu, n) in enumerate(tiers)
        ),
    )
    return hs.Deployment(
        model=hs.model(model), network=network, requests=hs.Requests([0.0], [256], [64]), **more
    )


def splits_of(problem):
    """Yield every split that fits, with blocks on all tiers."""
    instance = hs.to_instance(problem)
    for inner in itertools.combinations(range(1, instance.n_blocks), instance.n_tiers - 1):
        cuts = (0, *inner, instance.n_blocks)
        if all(
            evaluation.can_hold(instance, k, *cuts[k : k + 2]).any()
            for k in range(instance.n_tiers)
        ):
            yield cuts


@pytest.mark.parametrize("case", SMALL)
def test_the_chosen_split_is_nearly_the_best_of_all_and_none_exceeds_the_bound(case):
    """Every split is simulated: the fluid model only decides which ones a plan looks at."""
    problem = deployment(*SMALL[case])
    load = Load(max_visits=2e6)
    search = RateSearch(problem, {}, load, objective="throughput", prices_per_hour={})
    _, found = search.run(60.0)
    bound = throughput_bound(problem)
    assert found.bound_requests_per_s == bound
    served = {
        cuts: saturated_rate(problem, hs.Partition(cuts), bound, 4000).requests_per_s
        for cuts in splits_of(problem)
    }
    assert len(served) >= 20
    assert served[found.splits[0].cuts] >= 0.97 * max(served.values())
    assert max(served.values()) <= bound
    assert all(each.simulated_requests_per_s <= bound for each in found.splits)
    assert found.gap == pytest.approx(1 - found.simulated_requests_per_s / bound)


def test_a_split_for_one_request_at_a_time_serves_a_part_of_it():
    """The reason for the objective: the bottleneck of single requests knows no memory."""
    search = RateSearch(
        deployment(*SMALL["t4, l4"]), {}, Load(), objective="throughput", prices_per_hour={}
    )
    _, found = search.run(60.0)
    of = {each.origin: each.simulated_requests_per_s for each in found.splits}
    assert of["bottleneck"] < 0.25 * found.simulated_requests_per_s


def test_goodput_is_the_largest_rate_at_which_95_percent_meet_the_targets():
    problem = deployment(*SMALL["rtx-3060, rtx-3090"])
    load = Load(ttft_slo_s=0.5, tpot_slo_s=0.08, max_visits=1e6)
    search = RateSearch(problem, {}, load, objective="goodput", prices_per_hour={})
    _, found = search.run(60.0)
    rate, best = found.simulated_requests_per_s, hs.Partition(found.splits[0].cuts)
    assert 0 < rate < found.bound_requests_per_s
    assert attainment(problem, best, load, rate, found.n_requests) >= MET
    assert attainment(problem, best, load, 1.1 * rate, found.n_requests) < MET
    free = RateSearch(problem, {}, load, objective="throughput", prices_per_hour={})
    assert free.run(60.0)[1].simulated_requests_per_s > rate


def test_cost_leaves_out_a_tier_that_is_dear():
    """The second tier serves more, but not as much more as it costs."""
    problem = deployment("llama-3.2-1b", (("rtx-3060", 1), ("rtx-3090", 1)))
    rules = {"allow_empty": True}
    prices = {"0-0": 0.1, "1-0": 5.0}
    search = RateSearch(problem, rules, Load(), objective="cost", prices_per_hour=prices)
    _, found = search.run(60.0)
    assert found.splits[0].cuts == (0, 18, 18)
    prices = {"0-0": 5.0, "1-0": 0.1}
    search = RateSearch(problem, rules, Load(), objective="cost", prices_per_hour=prices)
    assert search.run(60.0)[1].splits[0].cuts == (0, 0, 18)


@pytest.mark.parametrize("runtime", ["vllm", "llama.cpp"])
def test_every_batching_mode_has_such_a_plan(runtime):
    network = deployment(*SMALL["rtx-3060, rtx-3090"]).network
    made = hs.plan(
        "llama-3.2-1b", network, runtime=runtime, objective="throughput",
        output_tokens=16, with_upgrades=False,
    )  # fmt: skip
    found = made.throughput
    assert 0 < found.simulated_requests_per_s <= found.bound_requests_per_s
    assert made.forecast.keeps_up


def test_a_plan_states_rate_bound_and_gap(capsys, tmp_path):
    file = tmp_path / "lab.toml"
    file.write_text(
        '[[tiers]]\nname = "desk"\nlink = {gbps = 1, latency_ms = 0.2}\n'
        'nodes = [{gpu = "rtx-3060", count = 2}]\n'
        '[[tiers]]\nname = "rack"\nnodes = [{gpu = "rtx-3090"}]\n'
    )
    command = ("plan", "--model", "llama-3.2-1b", "--network", file, "--output", 32,
               "--objective", "throughput", "--time-limit", 30)  # fmt: skip
    code, out, _ = run(capsys, *command, "--json")
    document = json.loads(out)
    found = document["throughput"]
    assert code == 0 and document["objective"] == "throughput"
    rate, bound = found["simulated_requests_per_s"], found["bound_requests_per_s"]
    assert 0 < rate <= bound and found["gap"] == pytest.approx(1 - rate / bound)
    assert found["splits"][0]["cuts"] == document["result"]["cuts"]
    text = str(hs.plan("llama-3.2-1b", file, output_tokens=32, objective="throughput",
                       with_upgrades=False, time_limit_s=30))  # fmt: skip
    assert "no split and no schedule serves more than" in text and "requests/s" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "goodput"}, "objective goodput needs ttft_slo_s or tpot_slo_s"),
        ({"objective": "cost"}, "objective cost needs price_per_hour"),
        (
            {"objective": "throughput", "method": "hypsplit_dp"},
            "method must be None under objective throughput",
        ),
    ],
)
def test_what_an_objective_needs_is_asked_for(arguments, message):
    network = deployment(*SMALL["rtx-3060, rtx-3090"]).network
    with pytest.raises(ValueError, match=message):
        hs.plan("llama-3-8b", network, **arguments)


def test_what_fits_nowhere_is_said():
    problem = deployment("llama-3-70b", (("rtx-3060", 1),))
    made = hs.plan("llama-3-70b", problem.network, objective="throughput", with_upgrades=False)
    assert not made.fits and made.throughput is None and made.reasons


def test_requests_of_users_are_bounded_by_their_rounds():
    """Three users who think for 10 s send at most 3 requests in 10 s."""
    problem = replace(deployment(*SMALL["rtx-3060, rtx-3090"]))
    load = Load(users=3, think_time_s=10.0)
    search = RateSearch(problem, {}, load, objective="throughput", prices_per_hour={})
    assert search.bound() < 0.3
    _, found = search.run(60.0)
    rates = [each.simulated_requests_per_s for each in found.splits]
    assert min(rates) > 0 and max(rates) <= search.bound()
    assert found.simulated_requests_per_s > 0.2  # 3 rounds of about 10 s and the latency


@pytest.fixture(scope="module")
def one_card():
    """A card with room for many short requests at once."""
    return deployment("llama-3.2-1b", (("rtx-3060", 1),), runtime=hs.runtime("vllm"))


def searched(problem, max_visits, limit_s=60.0):
    load = Load(max_visits=max_visits)
    search = RateSearch(problem, {}, load, objective="throughput", prices_per_hour={})
    return search.run(limit_s)[1]


def test_a_printed_rate_has_the_requests_that_it_needs(one_card):
    """Fill and drain counted for several percent of it, more so with a short time limit.

    Sixteen times the requests bring the rate that is sustained: 2 % more at most.
    """
    small, large = (searched(one_card, visits) for visits in (1e5, 1e7))
    assert small.n_requests == large.n_requests and not large.is_lower_bound
    assert small.simulated_requests_per_s == pytest.approx(
        large.simulated_requests_per_s, rel=2e-3
    )
    bound = throughput_bound(one_card)
    n = 16 * large.n_requests
    sustained = saturated_rate(one_card, hs.Partition((0, 18)), bound, n).requests_per_s
    assert 0.98 * sustained < large.simulated_requests_per_s <= bound
    assert sustained <= bound


def test_a_rate_of_few_requests_is_a_lower_bound(one_card):
    """A spent time limit leaves one short simulation, whose rate is far below the sustained."""
    short = searched(one_card, 1e5, limit_s=1e-3)
    long = searched(one_card, 1e5)
    assert short.is_lower_bound and short.splits[0].is_lower_bound
    assert short.n_requests < long.n_requests
    assert short.simulated_requests_per_s < long.simulated_requests_per_s
    assert "it serves at least " in describe_rate(short)
    assert "(gap at most " in describe_rate(short) and str(short.n_requests) in describe_rate(
        short
    )
    assert "at least" not in describe_rate(long) and "at most" not in describe_rate(long)


@pytest.mark.parametrize(
    ("arguments", "objective"),
    [
        ({}, "throughput"),
        ({"users": 3}, "throughput"),
        ({"ttft_slo_s": 1.0}, "goodput"),
        ({"tpot_slo_s": 0.1, "users": 3}, "goodput"),
        ({"runtime": "llama.cpp"}, "throughput"),
        ({"method": "even_split"}, "bottleneck"),
        ({"method": "even_split", "runtime": "llama.cpp"}, "path"),
        ({"objective": "p0", "ttft_slo_s": 1.0}, "p0"),
    ],
)
def test_the_default_is_what_servers_serve(arguments, objective):
    """A method splits for requests one at a time, whatever the targets are."""
    network = deployment(*SMALL["rtx-3060, rtx-3090"]).network
    assert hs.PlanQuery.of("llama-3.2-1b", network, **arguments).objective == objective


@pytest.fixture(scope="module")
def t4_plan():
    network = deployment(*SMALL["t4, l4"]).network
    lengths = {"prompt_tokens": 256, "output_tokens": 64}
    return hs.plan("llama-2-13b", network, with_upgrades=False, **lengths)


def test_one_line_says_what_the_papers_splits_would_serve(t4_plan):
    """The numbers are those of the simulated splits, which HypSplit-DP finds again."""
    found = t4_plan.throughput
    lines = [line for line in str(t4_plan).splitlines() if "HypSplit-DP" in line]
    assert len(lines) == 1 and lines[0].startswith(
        "requests one at a time: HypSplit-DP's split"
    )
    split = next(each for each in found.splits if "bottleneck" in each.best_for)
    alone = hs.solve(t4_plan.result.instance.replace(objective="bottleneck"), "hypsplit_dp")
    assert split.cuts == alone.partition.cuts != found.splits[0].cuts
    less = 1 - split.simulated_requests_per_s / found.simulated_requests_per_s
    assert (
        less > 0.25
        and f"{split.simulated_requests_per_s:.3g} requests/s, {less:.0%} less" in (lines[0])
    )


def test_every_upgrade_of_the_fluid_model_is_simulated(t4_plan, monkeypatch):
    """Their fluid rates were compared with a bound on the rate of the plan, which is larger."""
    query, simulated = t4_plan.query, []

    def note(candidate, *_):
        simulated.append(candidate.scenario.what)
        return what_if.Simulated(candidate.modelled, candidate.splits[0])

    monkeypatch.setattr(what_if, "_simulated", note)
    monkeypatch.setattr(what_if, "MAX_SIMULATED", 1000)
    solution, _, before = rank_fluid(query)
    list(what_if.find_upgrades(query, solution, before=before))
    for scenario in what_if.scenarios(query, fits=True, lighter={}):
        _, splits, rate = rank_fluid(scenario.query)
        if not scenario.group and splits:
            assert (scenario.what in simulated) == (rate > before * (1 + what_if.MIN_GAIN))
    assert any("twice the rate" in what or "one more" in what for what in simulated)


def test_a_claimed_rate_is_the_one_that_is_scored(t4_plan):
    """Scenarios are ranked without scoring their splits again."""
    query = t4_plan.query
    solution, splits, rate = rank_fluid(query, 3)
    _, scored = solve_fluid(query, 3)
    assert splits == list(scored) and solution.result.partition.cuts == splits[0]
    assert rate == pytest.approx(max(scored.values()), rel=1e-6)


def test_users_who_miss_their_targets_are_told_the_rate_within(t4_plan):
    """All of 500 users miss them: the rate of every split is the one of Poisson arrivals.

    It is null where it was not confirmed, and never the rate of the few users who are in time.
    """
    targets = {"ttft_slo_s": 2.0, "tpot_slo_s": 0.2}
    load = Load(users=500, max_visits=2e6, **targets)
    problem = deployment(*SMALL["t4, l4"])
    search = RateSearch(problem, {}, load, objective="goodput", prices_per_hour={})
    _, found = search.run(60.0)
    best = found.splits[0]
    assert best.misses_targets and best.slo_attainment < MET
    assert best.within_targets_per_s == found.simulated_requests_per_s > 0
    for each in found.splits:
        assert each.simulated_requests_per_s == pytest.approx(
            each.within_targets_per_s, nan_ok=True
        )
    assert found.bound_requests_per_s == search.bound(has_users=False)
