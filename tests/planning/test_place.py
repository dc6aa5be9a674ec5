"""`hypsolve.place`: its numbers are those of evaluations and simulations made apart."""

import itertools
import json
import math

import jsonschema
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.json_schema import schema
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_search import PlacementSearch
from hypsolve.planning.place_simulation import Candidate
from hypsolve.planning.placement_plan import placement_of
from hypsolve.planning.placement_records import (
    JOINS_LESS,
    NO_PIPELINE,
    NO_ROOM,
    NOT_NEEDED,
    RUNTIME,
)
from hypsolve.planning.split_simulator import UNKNOWN, SplitSimulator
from hypsolve.problem.serving_evaluation import check_serving
from tests.helpers.fleets import fleet, machine

SHORT = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 30.0}
MIXED = (
    machine("a"), machine("b"), machine("big", "a100-80gb"), machine("tiny", "jetson-agx-orin"),
    machine("mac", "apple-m2-ultra"),
)  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    """A placement of two kinds of pipelines."""
    return hs.place("llama-2-13b", fleet(*MIXED), runtime="vllm", **SHORT)


@pytest.fixture(scope="module")
def answered():
    """A placement with a rate and targets."""
    return hs.place(
        "llama-3-8b", fleet(*MIXED[:3]), rate_per_s=20, ttft_slo_s=0.5, tpot_slo_s=0.05, **SHORT
    )


def fluid(plan):
    """The pipelines of a plan at the loads that they carry, for `evaluate_placement`."""
    return hs.Placement(
        tuple(
            hs.Pipeline(each.stages, each.fluid_requests_per_s * (1 - 1e-9))
            for each in plan.pipelines
        )
    )


def poisson(problem, rate, n=4000, seed=5):
    prompt, output = problem.requests.prompt_tokens[0], problem.requests.output_tokens[0]
    arrival_s = np.random.default_rng(seed).exponential(1 / rate, n).cumsum()
    return hs.Requests(arrival_s, np.full(n, prompt), np.full(n, output))


def test_fluid_rates_are_those_of_evaluate_placement(plan):
    problem = plan.result.problem
    assert not hs.check_placement(problem, plan.placement)
    served = hs.evaluate_placement(problem, fluid(plan))
    rates = [each.fluid_requests_per_s for each in served.pipelines]
    assert rates == pytest.approx([each.fluid_requests_per_s for each in plan.pipelines])
    assert sum(rates) == pytest.approx(plan.throughput.fluid_requests_per_s)
    assert plan.throughput.fluid_requests_per_s <= plan.throughput.fluid_bound * (1 + 1e-6)


@pytest.mark.full_length
def test_the_simulated_rate_is_that_of_requests_that_fill_every_queue(plan):
    """One after the other, far more requests than fit serve at most as many per second."""
    total = 0.0
    for each in plan.pipelines:
        groups = tuple((stage.machine, stage.gpus) for stage in each.stages)
        cuts = (0, *(stage.stop for stage in each.stages))
        n = 4000
        requests = hs.Requests(np.zeros(n), np.full(n, 128), np.full(n, 16))
        deployment = plan.result.problem.deployment(groups, requests)
        trace = hs.simulate(deployment, hs.Partition(cuts), link_contention=True)
        rate = n / float(trace.end_s.max())
        assert rate <= each.bound_requests_per_s
        assert each.requests_per_s == pytest.approx(rate, rel=0.1)
        total += each.requests_per_s
    found = plan.throughput
    assert total == pytest.approx(found.simulated_requests_per_s)
    assert total <= found.pipelines_bound_requests_per_s
    assert found.simulated_requests_per_s <= found.bound_requests_per_s
    assert found.gap == pytest.approx(1 - total / found.bound_requests_per_s)


def test_the_best_simulated_placement_is_shown(plan):
    rates = [each.simulated_requests_per_s for each in plan.throughput.placements]
    assert rates[0] >= 0.97 * max(rates)


def test_the_answer_is_that_of_a_simulation_behind_the_router(answered):
    problem, answer = answered.result.problem, answered.answer
    for rate, is_met in ((20, True), (1.5 * answer.max_requests_per_s, False)):
        trace = hs.simulate_placement(
            problem, answered.placement, poisson(problem, rate), "weighted"
        )
        within = trace.metrics(ttft_slo_s=0.5, tpot_slo_s=0.05).slo_attainment
        assert (within >= 0.95) is is_met
    assert answer.is_met and answered.is_met
    assert answer.slo_attainment >= 0.95
    assert answer.max_requests_per_s >= 20
    assert answer.max_users > 1


def test_a_load_beyond_the_bound_is_not_served():
    plan = hs.place("llama-3-8b", fleet(machine("a")), rate_per_s=2000, **SHORT)
    assert plan.answer.is_met is False and not plan.is_met
    assert plan.throughput.bound_requests_per_s < 2000
    assert "no: this placement does not keep up with 2000 requests/s" in str(plan)


def test_shares_are_those_of_the_rates_and_loads_are_carried(plan, answered):
    for each in (plan, answered):
        assert math.fsum(p.share for p in each.pipelines) == pytest.approx(1)
        loads = [pipeline.requests_per_s for pipeline in each.placement.pipelines]
        shares = [load / sum(loads) for load in loads]
        assert shares == pytest.approx([p.share for p in each.pipelines])
        for load, pipeline in zip(loads, each.pipelines, strict=True):
            assert load <= pipeline.fluid_requests_per_s * (1 + 1e-9)


def test_json_keeps_the_schema_and_gives_the_placement_back(plan, answered, tmp_path):
    for each in (plan, answered):
        each.save(tmp_path / "plan.json")
        table = json.loads((tmp_path / "plan.json").read_text())
        jsonschema.validate(table, schema("placement"))
        assert table["throughput"]["simulated_requests_per_s"] == pytest.approx(
            sum(pipeline["requests_per_s"] for pipeline in table["pipelines"])
        )
        read = placement_of(table)
        assert [p.stages for p in read.pipelines] == [p.stages for p in each.pipelines]
        assert not hs.check_placement(each.result.problem, read)


def test_a_saved_plan_that_is_none_is_refused():
    with pytest.raises(ValueError, match="format must be 'hypsolve-placement', got 'x'"):
        placement_of({"format": "x"})
    with pytest.raises(ValueError, match="version must be 1, got 2"):
        placement_of({"format": "hypsolve-placement", "version": 2})
    with pytest.raises(ValueError, match="no pipelines"):
        placement_of({"format": "hypsolve-placement", "version": 1, "pipelines": []})


# machines that are left out


def reasons(plan):
    return {name: each for each in plan.unused for name in each.machines}


def test_every_machine_is_used_or_has_a_reason(plan):
    known = {*plan.machines, *reasons(plan)}
    assert known == {each.name for each in MIXED}
    assert reasons(plan)["mac"].why == RUNTIME
    assert "does not run on Apple M2 Ultra (metal)" in str(plan)


def test_a_machine_without_room_for_a_layer_is_named_with_its_memory():
    small = hs.Node(name="small", gpu=hs.gpu("rtx-4090"), reserved_bytes=25e9)
    lab = fleet(machine("box", "a100-80gb"), hs.Machine(node=small, site="room"))
    unused = reasons(hs.place("llama-3-8b", lab, **SHORT))["small"]
    assert unused.why == NO_ROOM and "0 bytes are left" in unused.reason


def test_a_machine_of_another_degree_joins_no_pipeline():
    """The two H100 hold the model together alone; a stage beside has one GPU."""
    lab = fleet(machine("pair", "h100", gpus=2), machine("tiny", "t4"))
    plan = hs.place("llama-3-70b", lab, weights="int8", max_stages=1, **SHORT)
    unused = reasons(plan)["tiny"]
    assert unused.why == NO_PIPELINE and "stages already" in unused.reason


def test_the_rate_with_a_machine_more_is_that_of_its_best_split():
    """Against all cuts of all orders."""
    lab = fleet(machine("fast", "h100"), machine("slow", "t4"))
    plan = hs.place("llama-3-8b", lab, **SHORT)
    unused = reasons(plan)["slow"]
    assert plan.machines == ("fast",) and unused.why == JOINS_LESS
    problem = plan.result.problem
    best = max(
        hs.evaluate_serving(instance, hs.Partition((0, cut, 34))).fluid_requests_per_s
        for groups in itertools.permutations((("fast", 1), ("slow", 1)))
        for instance in [problem.serving_instance(groups)]
        for cut in range(1, 34)
        if not check_serving(instance, hs.Partition((0, cut, 34)))
    )
    gain = best - plan.pipelines[0].fluid_requests_per_s
    assert gain < 0 and unused.gain_per_s == pytest.approx(gain, rel=1e-6)


def test_idle_gpus_are_counted():
    lab = fleet(machine("box", "h100", gpus=4))
    plan = hs.place("llama-3-8b", lab, **SHORT)
    used = sum(stage.gpus for each in plan.pipelines for stage in each.stages)
    assert plan.idle_gpus == ({"box": 4 - used} if used < 4 else {})


def test_nothing_fits():
    plan = hs.place("llama-3-70b", fleet(machine("a")), **SHORT)
    assert not plan.fits and not plan.is_met and plan.pipelines == ()
    assert "the weights take 141.1 GB, and all machines together have" in str(plan)
    jsonschema.validate(plan.to_dict(), schema("placement"))
    with pytest.raises(ValueError, match="no placement to simulate"):
        plan.simulate()


# rent


def test_rent_takes_the_cheapest_of_all_sets_of_machines():
    """Against the largest rate of every set of machines."""
    prices = {"a": 0.6, "b": 0.6, "big": 1.9, "fast": 4.0}
    gpus = {"a": "rtx-4090", "b": "rtx-4090", "big": "a100-80gb", "fast": "h100"}
    offers = [machine(n, gpus[n], price_per_hour=price) for n, price in prices.items()]
    rate, least = 60.0, math.inf
    for n in range(1, 5):
        for some in itertools.combinations(offers, n):
            query = PlaceQuery.of("llama-3-8b", fleet(*some), **SHORT)
            best = hs.solve(query.problem(), "placement_highs").objective
            if best >= rate:
                least = min(least, math.fsum(each.price_per_hour for each in some))
    plan = hs.rent("llama-3-8b", fleet(*offers), rate_per_s=rate, **SHORT)
    assert plan.throughput.fluid_bound == pytest.approx(least)
    assert plan.price_per_hour >= least * (1 - 1e-9)
    assert plan.is_met and plan.answer.keeps_up
    assert {each.why for each in plan.unused} <= {NOT_NEEDED}


def test_rent_pays_more_where_the_cheapest_machines_fail_in_simulation():
    """The bound stays that of the rate that was asked for."""
    offers = [machine(name, price_per_hour=1.0) for name in "abc"]
    query = PlaceQuery.of("llama-3-8b", fleet(offers[0]), **SHORT)
    one = hs.solve(query.problem(), "placement_highs").objective
    plan = hs.rent("llama-3-8b", fleet(*offers), rate_per_s=0.995 * one, **SHORT)
    assert plan.throughput.fluid_bound == pytest.approx(1.0)
    assert plan.is_met and plan.price_per_hour in (1.0, 2.0)


# what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rate_per_s": 0}, "rate_per_s"),
        ({"rate_per_s": 1, "users": 2}, "users and rate_per_s exclude each other"),
        ({"think_time_s": 1}, "think_time_s needs users"),
        ({"objective": "goodput"}, "goodput needs ttft_slo_s or tpot_slo_s, got neither"),
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"objective": "cost"}, "cost needs rate_per_s or users, got neither"),
        ({"objective": "cost", "users": 3}, "cost needs ttft_slo_s or tpot_slo_s with users"),
        ({"method": "hyperion"}, "unknown method 'hyperion'"),
        ({"max_stages": 0}, "max_stages must be"),
        ({"prompt_tokens": 0}, "prompt_tokens must be"),
        ({"weights": "int5"}, "int5"),
        ({"weights": "q4_k_m"}, "weights must be a format that runtime 'vllm' loads"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        hs.place("llama-3-8b", fleet(machine("a")), **arguments)


def test_unknown_arguments_and_machines_are_named():
    with pytest.raises(TypeError, match="unknown option 'rate'; did you mean rate_per_s"):
        hs.place("llama-3-8b", fleet(machine("a")), rate=3)
    with pytest.raises(TypeError, match="machines must be a path, a MachinesFile"):
        hs.place("llama-3-8b", 3)
    with pytest.raises(ValueError, match="vllm runs on cuda, rocm, and the machines have only"):
        hs.place("llama-3-8b", fleet(machine("mac", "apple-m2-ultra")))


def test_llama_cpp_stays_inside_a_machine_and_says_so():
    """Two cards could hold the model together, over RPC."""
    lab = fleet(machine("a"), machine("b"))
    plan = hs.place("llama-2-13b", lab, runtime="llama.cpp", weights="q8_0", **SHORT)
    assert all(len(each.stages) == 1 for each in plan.pipelines)
    assert "pipelines of llama.cpp are kept inside one machine" in str(plan)


def test_cards_of_two_makers_are_in_no_pipeline_together():
    lab = fleet(machine("a"), machine("b", "rx-7900-xtx"))
    query = PlaceQuery.of("llama-2-13b", lab)
    assert frozenset(("a", "b")) in query.fleet.apart
    assert not hs.place("llama-2-13b", lab, **SHORT).fits


def test_a_network_has_no_order_here(tmp_path):
    """The only split in the order of the tiers begins on the card without room."""
    path = tmp_path / "net.toml"
    path.write_text("""
    currency = "EUR"
    [[tiers]]
    name = "small"
    nodes = [{gpu = "t4", price_per_hour = 0.5}]
    link = {gbps = 1, latency_ms = 1}
    [[tiers]]
    name = "large"
    nodes = [{gpu = "a100-80gb", price_per_hour = 2}]
    """)
    plan = hs.place("llama-3-8b", path, **SHORT)
    assert plan.machines == ("large-a100-80gb-0",)
    assert plan.price_per_hour == 2 and "2 EUR per hour" in str(plan)


def test_the_runtime_of_the_file_is_the_default(tmp_path):
    path = tmp_path / "machines.toml"
    path.write_text('runtime = "sglang"\nmachines = [{gpu = "l4"}]\n')
    assert PlaceQuery.of("phi-3-mini", path).runtime.name == "sglang"
    assert PlaceQuery.of("phi-3-mini", path, runtime="vllm").runtime.name == "vllm"
    assert PlaceQuery.of("phi-3-mini", path, max_num_seqs=7).runtime.max_num_seqs == 7


def test_an_interrupt_keeps_the_best_so_far(monkeypatch):
    from hypsolve.planning import place_answer, place_search

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(place_search, "largest_loads", interrupted)
    plan = hs.place("llama-3-8b", fleet(machine("a")), rate_per_s=1, **SHORT)
    assert plan.interrupted and plan.fits and plan.answer.is_met
    assert str(plan).startswith("stopped: the search for the largest loads was stopped")
    assert place_answer.RAISED  # the module is there


def test_rules_are_simulated_beside_the_search():
    """No card holds the model: one ring of all was shown, where pairs serve more."""
    pairs = (machine("a"), machine("b"), machine("c", "rtx-3090"), machine("d", "rtx-3090"))
    plan = hs.place("llama-2-13b", fleet(*pairs), method="memory_ring", **SHORT)
    assert sorted(len(each.stages) for each in plan.placement.pipelines) == [2, 2]


def test_a_network_from_python_means_what_its_file_means(tmp_path):
    """Pins and links inside tiers were lost where the file was read first."""
    path = tmp_path / "network.toml"
    path.write_text(
        '[[tiers]]\nname = "site"\npin = ["embedding"]\ninner = {gbps = 25, latency_ms = 0.1}\n'
        "link = {gbps = 1, latency_ms = 5}\n"
        'nodes = [{gpu = "l4", count = 2}]\n'
        '[[tiers]]\nname = "cloud"\nnodes = [{gpu = "a100-80gb", count = 2}]\n'
    )
    asked = "llama-3-8b", {"runtime": "vllm"}
    of_file = PlaceQuery.of(asked[0], path, **asked[1]).fleet
    of_python = PlaceQuery.of(asked[0], hs.read_network_file(path), **asked[1]).fleet
    assert of_python.pins == of_file.pins != ()
    assert of_python.sites == of_file.sites
    assert of_python.machines == of_file.machines
    assert of_python.sites[0].link.bytes_per_s == 25e9 / 8


def test_pipelines_without_a_rate_are_left_out_of_the_sum(monkeypatch):
    """They counted as 0, and nothing said so."""
    real = SplitSimulator.ranked

    def ranked(self, cuts, *given):
        found = real(self, cuts, *given)
        node = self.deployment.network.tiers[0].nodes[0]
        return UNKNOWN if node.gpu == MIXED[2].node.gpu else found

    monkeypatch.setattr(SplitSimulator, "ranked", ranked)
    monkeypatch.setattr(SplitSimulator, "refined", lambda self, cuts, known, *_: (known, False))
    plan = hs.place("llama-3-8b", fleet(*MIXED[:3]), tpot_slo_s=0.05, **SHORT)
    assert len(plan.pipelines) == 3
    rates = {each.stages[0].machine: each.requests_per_s for each in plan.pipelines}
    assert math.isnan(rates["big"]) and rates["a"] == pytest.approx(rates["b"])
    total = plan.throughput.simulated_requests_per_s
    assert total == pytest.approx(rates["a"] + rates["b"])
    at = [each.stages[0].machine for each in plan.pipelines].index("big")
    assert f"was not found in time: pipeline {at + 1}; the router sends no req" in str(plan)
    row = next(line for line in str(plan).splitlines() if " big " in line)
    assert " nan " not in row and " - " in row
    table = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert table["pipelines"][at]["requests_per_s"] is None
    jsonschema.validate(table, schema("placement"))
    again = hs.load_placement(table, fleet(*MIXED[:3]))
    assert again.to_dict() == plan.to_dict() and str(again) == str(plan)


def test_a_time_limit_says_what_it_is_for(monkeypatch):
    monkeypatch.setattr(PlacementSearch, "_solve", _two_candidates(PlacementSearch._solve))
    plan = hs.place("llama-3-8b", fleet(*MIXED[:3]), **{**SHORT, "time_limit_s": 0.01})
    assert plan.stopped == (
        "time limit of 0.01 s for search, simulations and bounds together: not all placements"
        " were simulated"
    )


def _two_candidates(real):
    """Search as always, and propose the largest placement without its last pipeline, too."""

    def solve(self, problem):
        result, candidates = real(self, problem)
        best = candidates[0]
        fewer = hs.Placement(best.placement.pipelines[:-1])
        served = hs.evaluate_placement(problem, fewer)
        return result, [best, Candidate("fewer", fewer, served)]

    return solve
