"""`plan`: what it says against the definitions, and against solving again."""

import dataclasses
import inspect
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning import comparison, forecast, planner, query, what_if
from hypsolve.planning.forecast import predict
from hypsolve.planning.layers import describe_blocks, describe_cuts
from hypsolve.planning.load import Load
from hypsolve.planning.plan import Alternative
from hypsolve.planning.query import PlanQuery, solve_query
from hypsolve.planning.text import describe_bottleneck, describe_proof, forecast_lines
from hypsolve.planning.upgrade_text import describe_upgrade
from hypsolve.planning.what_if import lighter_models, scenarios
from hypsolve.problem import costs, evaluation
from hypsolve.problem.units import GIB
from hypsolve.simulation.metrics import growth
from hypsolve.solvers import clock
from instances import network, networks
from tests.helpers import token_toys as toys
from tests.helpers.plans import alone, plan_alone, query_alone
from tests.helpers.scenarios_token import random_scenario
from tests.helpers.sizes import n_cases

WIRE = hs.Link(bytes_per_s=1e8, latency_s=1e-3)
SHORT = {"output_tokens": 32}  # simulating each token is most of the time of a plan
ASKED = {"concurrency": 8, **SHORT}


def tier(name, gpu, n_nodes=1, link=None, **fields):
    nodes = tuple(
        hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu), **fields) for n in range(n_nodes)
    )
    return hs.Tier(name=name, nodes=nodes, link=link)


SMALL = hs.Network(
    name="small", tiers=(tier("desk", "rtx-3090", 2, WIRE), tier("rack", "a100-40gb"))
)


@pytest.fixture(scope="module")
def found():
    return plan_alone("llama-3-8b", SMALL, rate_per_s=2.0, **ASKED)


@pytest.fixture(scope="module")
def too_small():
    return plan_alone("llama-3-8b", TIGHT, concurrency=64)


@pytest.fixture
def unsimulated(monkeypatch, found):
    """Plans that say of any split that it serves the same: for what is solved alone."""
    for module in (planner, what_if):
        monkeypatch.setattr(module, "predict", lambda *arguments, **options: found.forecast)


def best_s(*arguments, **options):
    return planner.split(*arguments, **alone(options)).result.objective_s


def fits(*arguments, **options):
    return planner.split(*arguments, **alone(options)).result.partition is not None


def test_a_plan_is_what_solve_proves(found):
    instance = found.result.instance
    assert found.fits and str(found.result.status) == "optimal"
    assert hs.solve(instance, "partition_highs").objective_s == pytest.approx(
        found.result.objective_s, rel=1e-6
    )
    assert hs.verify_certificate(instance, found.result.certificate) == []
    assert describe_proof(found).startswith(
        "proved optimal: no split over all tiers has a bottleneck be"
    )


def test_nodes_hold_what_their_blocks_need(found):
    model, partition = found.model, found.result.partition
    resident = 8 * (512 + 32)
    for node in found.nodes:
        k = ("desk", "rack").index(node.tier)
        assert node.blocks == partition.stage(k) and node.is_used
        blocks = [model.blocks[b] for b in node.blocks]
        assert node.weight_bytes == sum(block.weight_bytes for block in blocks)
        assert node.kv_bytes == resident * sum(block.kv_bytes_per_token for block in blocks)
        memory = SMALL.tiers[k].nodes[0].usable_bytes
        assert node.free_bytes == memory - node.weight_bytes - node.kv_bytes >= 0


def test_stages_are_the_objective_and_one_binds(found):
    instance, partition = found.result.instance, found.result.partition
    sums = [stage.time_s + stage.link_s for stage in found.stages]
    assert max(sums) == pytest.approx(evaluation.bottleneck_s(instance, partition), rel=1e-12)
    assert found.bottleneck_stage.share == 1.0
    assert found.bottleneck_stage is found.stages[int(np.argmax(sums))]


def test_every_upgrade_is_what_simulating_again_says(found):
    """List only what improves the rate that the user asked for, not a proxy."""
    assert found.upgrades
    rates = [other.max_requests_per_s for other in found.alternatives]
    before = found.forecast.max_requests_per_s  # of the plan that is printed
    known = max(before, *rates)
    values = [upgrade.after for upgrade in found.upgrades]
    assert values == sorted(values, reverse=True)
    scenario_of = tried(found)
    for upgrade in found.upgrades:
        assert upgrade.quantity == "requests/s" and upgrade.before == before
        assert upgrade.gain == pytest.approx(upgrade.after / before - 1)
        assert upgrade.after > 1.03 * known
        scenario = scenario_of[upgrade.what].query
        solution = solve_query(scenario)
        again = predict(
            solution.deployment,
            hs.Partition(upgrade.cuts),
            found.query.load,
            instance=solution.instance,
        )
        assert again.max_requests_per_s == upgrade.after
        assert upgrade.extrapolated == scenario.model.extrapolated
    behind = tier("new", "a100-40gb")
    longer = replace(SMALL, tiers=(SMALL.tiers[0], replace(SMALL.tiers[1], link=WIRE), behind))
    own_tier = scenario_of["one more A100-40GB as a tier of its own behind 'rack'"]
    assert solve_query(own_tier.query).result.objective_s == pytest.approx(
        best_s("llama-3-8b", longer, **ASKED), rel=1e-12
    )


def test_what_another_split_gains_is_no_gain_of_an_upgrade(found):
    """Gains are counted from the printed plan, and a line tells what needs no upgrade."""
    most = found.forecast.max_requests_per_s
    better = Alternative(objective="p0", cuts=(0, 4, 34), latency_mean_s=1.0,
                            max_requests_per_s=1.5 * most)  # fmt: skip
    with_better = replace(found, alternatives=(better,))
    title, first, *rest = str(with_better).partition("what would help")[2].splitlines()
    assert first == (
        "  another split of the same machines (--objective p0), no upgrade: about"
        f" {1.5 * most:.3g} requests/s, 50% more"
    )
    assert len(rest) == len(found.upgrades) > 0 and "simulated" in title
    assert f"{first}\n" in f"{replace(with_better, upgrades=())}\n"
    worse = replace(found, alternatives=(replace(better, max_requests_per_s=most),))
    assert "another split" not in str(worse)
    goal = what_if.Goal(found.query)
    solution = solve_query(found.query)
    listed = [
        {
            upgrade.what: upgrade.gain
            for upgrade in what_if.find_upgrades(
                found.query, solution, before=most, best_known=known * most
            )
        }
        for known in (1.0, 100.0)
    ]
    assert listed[0] and listed[1] == {} and goal.quantity == "requests/s"


def test_a_change_of_rules_alone_is_simulated_first():
    """Far tiers that must hold a block: without them the same machines serve more."""
    far = replace(WIRE, latency_s=0.04)
    tiers = (tier("edge", "l4", 1, far), tier("rack", "a100-40gb", 1, far), tier("sky", "l4"))
    network = hs.Network(name="wan", tiers=tiers)
    asked = query_alone("llama-3-8b", network, rate_per_s=0.5, **SHORT)
    solution = solve_query(asked)
    before = what_if.Goal(asked).of(
        predict(asked.deployment(), solution.result.partition, asked.load)
    )
    lines = []
    found = what_if.find_upgrades(asked, solution, before=before, progress=lines.append)
    first = next(found)
    assert first.what.startswith("blocks only where they serve best") and first.gain > 0
    assert lines == [f"tried: {first.what}", f"simulating: {first.what}"]


def test_prices_of_upgrades_are_those_of_the_file():
    """A second node costs what the first does, lighter weights cost nothing."""
    site = hs.NetworkFile(
        network=SMALL, price_per_hour={"desk-0": 0.4, "desk-1": 0.4, "rack-0": 1.5}
    )
    asked = query_alone("llama-3-8b", site, concurrency=8)
    light = {"int8": hs.model("llama-3-8b", weights="int8")}
    price = {
        each.what: each.price_per_hour for each in scenarios(asked, fits=True, lighter=light)
    }
    assert price["one more RTX 3090 in 'desk'"] == 0.4
    assert price["one more A100-40GB as a tier of its own behind 'rack'"] == 1.5
    assert price["weights in int8"] == 0
    assert math.isnan(price["twice the rate of the link from 'desk'"])
    upgrade = what_if.Upgrade(
        what="x", quantity="requests/s", before=2.0, after=3.0, gain=0.5, price_per_hour=0.4,
        cuts=(0, 34), extrapolated=False,
    )  # fmt: skip
    assert upgrade.gain_per_price == pytest.approx(1.25)
    assert math.isnan(replace(upgrade, price_per_hour=math.nan).gain_per_price)


def tried(found):
    """Scenarios that are tried for a plan, by their description."""
    lighter = lighter_models("llama-3-8b", None)
    return {each.what: each for each in scenarios(found.query, fits=True, lighter=lighter)}


def test_an_upgrade_is_reported_if_it_is_better_than_the_smaller_ones(monkeypatch):
    """For example 4 GiB after 1 GiB, or a tier of its own after a node in the tier."""
    fast = hs.Link(bytes_per_s=1e10, latency_s=1e-4)
    tight = replace(
        SMALL, tiers=(tier("desk", "rtx-3090", 2, fast, memory_bytes=3 * GIB), SMALL.tiers[1])
    )
    asked = query_alone("llama-3-8b", tight, concurrency=8)
    solution, goal = solve_query(asked), what_if.Goal(asked)
    cuts = solution.result.partition.cuts
    before = goal.model(solution, cuts, asked)
    monkeypatch.setattr(what_if, "MAX_SIMULATED", 1000)
    monkeypatch.setattr(what_if, "MIN_SIMULATED_GAIN", what_if.MIN_GAIN)
    monkeypatch.setattr(
        what_if,
        "_simulated",
        lambda candidate, *_: what_if.Simulated(candidate.modelled, candidate.splits[0]),
    )
    listed = {
        upgrade.what: upgrade.after
        for upgrade in what_if.find_upgrades(asked, solution, before=before)
    }
    groups = {}
    for scenario in scenarios(asked, fits=True, lighter={}):
        candidate = what_if._modelled(scenario, goal, [cuts], is_fluid=False)
        if scenario.group and candidate is not None:
            groups.setdefault(scenario.group, []).append((scenario.what, candidate.modelled))
    n_listed = 0
    for members in groups.values():
        best = before
        for what, value in members:
            better = value > best * (1 + what_if.MIN_GAIN)
            assert (what in listed) is better
            n_listed += better
            best = max(best, value) if better else best
    assert 0 < n_listed < sum(map(len, groups.values()))
    assert any(len(members) == 3 for members in groups.values())


def test_nodes_of_two_sizes_are_both_offered_whatever_their_order(unsimulated):
    for memories in ((24, 6), (6, 24)):
        nodes = tuple(
            hs.Node(name=f"n{gib}", gpu=hs.gpu("rtx-3090"), memory_bytes=gib * GIB)
            for gib in memories
        )
        network = replace(
            SMALL, tiers=(hs.Tier(name="desk", nodes=nodes, link=WIRE), SMALL.tiers[1])
        )
        found = plan_alone("llama-3-8b", network, concurrency=8)
        names = tried(found)
        assert "one more RTX 3090 with 24 GiB free in 'desk'" in names
        assert "one more RTX 3090 with 6 GiB free in 'desk'" in names


def test_a_limit_that_is_in_the_way_is_told():
    site = hs.NetworkFile(network=SMALL, max_blocks=(3, 4))
    found = plan_alone("llama-3-8b", site, concurrency=1, **SHORT)
    assert not found.fits
    (upgrade,) = (each for each in found.upgrades if each.what == "no max_blocks on 'rack'")
    site = replace(site, max_blocks=(3, None))
    free = plan_alone("llama-3-8b", site, with_upgrades=False, **SHORT)
    assert upgrade.after == pytest.approx(free.forecast.max_requests_per_s, rel=0.1)


def test_nodes_in_a_row_are_tried_where_they_are_linked(unsimulated):
    site = hs.NetworkFile(network=SMALL, inner_links=(WIRE, None))
    found = plan_alone("llama-3-8b", site, concurrency=8)
    row = tried(found)["nodes of 'desk' as stages in a row"].query.network.network
    assert [(t.name, t.link, len(t.nodes)) for t in row.tiers] == [
        ("desk/desk-0", WIRE, 1), ("desk/desk-1", WIRE, 1), ("rack", None, 1),
    ]  # fmt: skip
    limited = replace(site, max_blocks=(20, None))
    found = plan_alone("llama-3-8b", limited, concurrency=8)
    assert not any("in a row" in what for what in tried(found))


TIGHT = hs.Network(
    name="tight", tiers=(tier("a", "t4", link=WIRE), tier("b", "t4", memory_bytes=2 * GIB))
)


def test_what_does_not_fit_says_why_and_what_would(too_small):
    found = too_small
    assert not found.fits and found.forecast is None and not found.nodes
    assert "too many" in found.result.message
    texts = {change.what for change in found.upgrades}
    assert "weights in gptq-int4" in texts
    for change in found.upgrades:
        assert math.isfinite(change.after) and math.isnan(change.gain)
    (shorter,) = (text for text in texts if text.startswith("sequences of"))
    longest = int(shorter.split()[2])
    assert shorter == f"sequences of {longest} tokens, not 768"
    asked = {"prompt_tokens": longest - 256, "output_tokens": 256, "concurrency": 64}
    assert fits("llama-3-8b", TIGHT, **asked)
    assert not fits("llama-3-8b", TIGHT, **asked | {"prompt_tokens": longest - 255})
    (memory,) = (text for text in texts if text.endswith("GiB more on each node of 'b'"))
    gib = int(memory.split()[0])
    for more, does_fit in ((gib, True), (gib - 1, False)):
        wider = tier("b", "t4", memory_bytes=(2 + more) * GIB)
        grown = replace(TIGHT, tiers=(TIGHT.tiers[0], wider))
        assert fits("llama-3-8b", grown, concurrency=64) is does_fit
    (fewer,) = (text for text in texts if text.startswith("room for"))
    most = int(fewer.split()[2])
    assert fits("llama-3-8b", TIGHT, concurrency=most)
    assert not fits("llama-3-8b", TIGHT, concurrency=most + 1)


def test_what_cannot_be_mended_by_fewer_sequences_does_not_say_so():
    tiny = hs.Network(name="tiny", tiers=(tier("a", "t4", memory_bytes=GIB),))
    found = plan_alone("llama-3-8b", tiny)
    assert not any(change.what.startswith("room for") for change in found.upgrades)


@pytest.mark.parametrize("objective", ["bottleneck", "path", "p0"])
def test_objectives(objective, unsimulated):
    found = plan_alone("phi-3-mini", SMALL, objective=objective, concurrency=1)
    instance, partition = found.result.instance, found.result.partition
    assert str(instance.objective) == objective
    assert found.result.objective_s == hs.evaluate(instance, partition)
    shares = [stage.share for stage in found.stages]
    if objective == "bottleneck":
        assert max(shares) == 1.0
        return
    times_s = [stage.time_s for stage in found.stages]
    links_s = sum(stage.link_s for stage in found.stages)
    stages_s = sum(times_s) if objective == "path" else max(times_s)
    assert stages_s + links_s == pytest.approx(found.result.objective_s, rel=1e-12)
    assert sum(shares) == pytest.approx(1.0)
    assert found.bottleneck_stage.share == max(shares)


def test_mean_latency_is_searched_by_simulation():
    asked = {"objective": "mean_latency", "rate_per_s": 3.0, "seed": 5, "output_tokens": 24}
    found = plan_alone("phi-3-mini", SMALL, **asked)
    assert found.result.method == "simulated" and str(found.result.status) == "optimal"
    assert found.result.objective_s == found.forecast.latency_s.mean
    assert found.simulate().latency_s.mean() == found.forecast.latency_s.mean
    assert "what would help, simulated" in str(
        found
    ) and "requests simulated at 3 per second" in str(found)
    assert sum(stage.share for stage in found.stages) == pytest.approx(1.0)
    for change in found.upgrades:
        assert change.quantity == "mean latency" and change.after < found.result.objective_s
    for name in ("hypsplit_dp", "even_split", "partition_cpsat"):
        solution = planner.split("phi-3-mini", SMALL, method=name, **asked)
        other = solution.result
        again = predict(solution.deployment, other.partition, Load(rate_per_s=3.0, seed=5))
        assert other.objective_s == again.latency_s.mean and other.method == name
        assert other.objective_s >= found.result.objective_s >= other.bound_s


def test_splits_for_other_objectives_are_simulated_too(found):
    assert [other.objective for other in found.alternatives] == ["path", "p0"]
    for other in found.alternatives:
        best = hs.solve(found.result.instance.replace(objective=other.objective), "hypsplit_dp")
        assert other.cuts == best.partition.cuts
        again = predict(found.deployment, best.partition, 2.0)
        assert other.latency_mean_s == again.latency_s.mean
        assert other.max_requests_per_s == again.max_requests_per_s


@pytest.mark.parametrize(
    ("rate", "latency", "words"),
    [
        (1.5, 1.0, "keeps up with more requests: about .*, but has a mean latency of"),
        (1.0, 0.5, "has a lower mean latency of .*, but keeps up with about"),
        (1.5, 0.5, "keeps up with more requests: about .* and has a lower mean latency of"),
        (1.01, 0.99, ""),
    ],
)
def test_a_split_that_serves_better_is_told(rate, latency, words, found):
    forecast, other = found.forecast, found.alternatives[0]
    other = replace(
        other,
        latency_mean_s=latency * forecast.latency_s.mean,
        max_requests_per_s=rate * forecast.max_requests_per_s,
    )
    told = [
        line
        for line in str(replace(found, alternatives=(other,))).splitlines()
        if line.startswith("but in batches, simulated, the split of ")
    ]
    if not words:
        assert told == []
        return
    (line,) = told
    layers = describe_cuts(other.cuts)
    start = f"but in batches, simulated, the split of --objective path (layers {layers}) "
    assert re.match(f"{re.escape(start)}{words}", line)


def test_one_split_for_all_objectives_has_no_alternatives():
    box = hs.Network(name="one", tiers=(tier("box", "a100-80gb"),))
    found = plan_alone("phi-3-mini", box, concurrency=1, **SHORT)
    assert found.alternatives == () and "no split has a bottleneck below" in str(found)


@pytest.mark.parametrize("factor", [0.3, 0.6, 0.9, 1.5])
def test_the_rate_asked_for_and_the_largest_agree(factor, found):
    most = found.forecast.max_requests_per_s
    partition = found.result.partition
    forecast = predict(found.deployment, partition, factor * most)
    assert forecast.keeps_up is (factor < 1)
    assert (forecast.max_requests_per_s >= factor * most) is forecast.keeps_up
    assert forecast.max_requests_per_s == pytest.approx(most, rel=0.1)


def test_a_rate_that_takes_too_long_to_tell_is_said_to(found):
    short = replace(
        found.forecast, keeps_up=None, is_settled=False, max_requests_per_s=math.nan
    )
    text = str(replace(found, forecast=short))
    assert "takes too long to simulate" in text
    assert "cannot keep up" not in text


def test_latencies_that_settle_are_told_from_queues():
    """More requests are simulated where the first few do not tell."""
    wire = hs.Link(bytes_per_s=6e6, latency_s=0.03)
    tiers = (
        tier("a", "jetson-agx-orin", 1, wire), tier("b", "jetson-agx-orin", 1, wire),
        tier("c", "a10", 1, wire), tier("d", "jetson-agx-orin", 2),
    )  # fmt: skip
    solution = planner.split(
        "llama-3-8b", hs.Network(name="net", tiers=tiers), prompt_tokens=4000,
        output_tokens=1500, concurrency=1, objective="bottleneck",
    )  # fmt: skip
    deployment, result = solution.deployment, solution.result
    found = predict(deployment, result.partition, 0.01)
    most, n = found.max_requests_per_s, 1500
    means = []
    for factor in (0.97, 1.6):  # the rate is that of Poisson arrivals, these come evenly
        requests = hs.Requests(
            np.arange(n) / (factor * most), np.full(n, 4000), np.full(n, 1500)
        )
        trace = forecast.serve(replace(deployment, requests=requests), result.partition)
        means.append(growth(trace))
    assert means[0] < 1.1
    assert means[1] > 1.1 or found.max_rate_is_lower_bound, found


@pytest.mark.full_length
def test_queues_stay_or_grow_at_the_largest_rate():
    """Over many more requests than are simulated to find it."""
    found = plan_alone("llama-3-8b", SMALL, rate_per_s=2.0, **ASKED)
    rates = (0.95, 1.15)
    means = []
    for factor in rates:
        n = 16_000
        arrival_s = np.arange(n) / (factor * found.forecast.max_requests_per_s)
        requests = hs.Requests(arrival_s, np.full(n, 512), np.full(n, 32))
        served = hs.simulate(
            replace(found.deployment, requests=requests),
            found.result.partition, link_contention=True,
        )  # fmt: skip
        eighths = [each.mean() for each in np.array_split(served.latency_s, 8)]
        means.append(eighths[6] / eighths[2])
    assert means[0] < 1.1 < 1.2 < means[1]


def test_a_plan_says_what_it_is_doing(unsimulated):
    told = []
    found = plan_alone("phi-3-mini", SMALL, progress=told.append, **SHORT)
    assert told[0] == "simulating requests"
    assert {f"tried: {change.what}" for change in found.upgrades} <= set(told)
    planner.split("phi-3-mini", SMALL, objective="mean_latency", progress=told.append, **SHORT)
    assert any("splits simulated, least mean latency" in line for line in told)


def interrupt_at(monkeypatch, module, name, call=1):
    real, calls = getattr(module, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, interrupted)


def test_an_interrupt_leaves_what_there_is(monkeypatch, found):
    with monkeypatch.context() as patch:
        interrupt_at(patch, what_if, "_simulated")
        some = plan_alone("llama-3-8b", SMALL, rate_per_s=2.0, **ASKED)
    assert some.stopped == "not all upgrades were tried" and some.forecast == found.forecast
    assert some.upgrades == () != found.upgrades
    assert "stopped: not all upgrades were tried" in str(some)
    with monkeypatch.context() as patch:
        interrupt_at(patch, planner, "predict")
        less = plan_alone("llama-3-8b", SMALL, rate_per_s=2.0, **ASKED)
    assert less.stopped == "not all upgrades were tried; the forecast was not simulated"
    assert less.forecast is None and less.stages == found.stages and less.nodes == found.nodes
    assert "proved optimal" in str(less) and "what would help" not in str(less)
    json.dumps(less.to_dict(), allow_nan=False)


def test_a_searched_change_that_is_interrupted_ends_the_plan(monkeypatch):
    real, searches = query.minimise_mean_latency, []
    monkeypatch.setattr(clock, "now", lambda: 0.0)  # no time passes

    def search(splits, **options):
        searches.append(options["time_limit_s"])
        splits.interrupted = len(searches) == 3
        return real(splits, **options)

    monkeypatch.setattr(query, "minimise_mean_latency", search)
    found = plan_alone("phi-3-mini", SMALL, objective="mean_latency", output_tokens=4)
    assert found.stopped == "not all upgrades were tried"
    assert searches == [30.0, 1.0, 1.0]  # half of the limit, and for changes a second each


def test_the_limit_of_a_search_is_no_longer_for_a_change(monkeypatch):
    limits = []
    monkeypatch.setattr(clock, "now", lambda: 0.0)  # no time passes

    def search(*arguments, **options):
        limits.append(options["time_limit_s"])
        raise KeyboardInterrupt

    monkeypatch.setattr(query, "minimise_mean_latency", search)
    with pytest.raises(KeyboardInterrupt):
        plan_alone("phi-3-mini", SMALL, objective="mean_latency", time_limit_s=0.25)
    assert limits == [0.125]  # what-if scenarios have the other half


def test_a_tied_table_is_held_once_on_a_node_with_all_blocks():
    box = hs.Network(name="box", tiers=(tier("box", "rtx-3090"),))
    found = plan_alone("llama-3.2-1b", box, concurrency=1)
    (node,) = found.nodes
    assert found.model.tied_bytes > 0
    assert node.weight_bytes == found.model.weight_bytes - found.model.tied_bytes
    kv_bytes = 768 * sum(block.kv_bytes_per_token for block in found.model.blocks)
    assert node.free_bytes == hs.gpu("rtx-3090").memory_bytes - node.weight_bytes - kv_bytes


def test_an_exact_method_that_is_interrupted_is_replaced(monkeypatch, found):
    interrupt_at(monkeypatch, query, "solve")
    other = plan_alone("llama-3-8b", SMALL, rate_per_s=2.0, method="partition_cbc", **ASKED)
    assert other.stopped == "partition_cbc was stopped: this is hypsplit_dp's split"
    assert other.result.partition == found.result.partition and other.forecast == found.forecast
    interrupt_at(monkeypatch, query, "solve")
    with pytest.raises(KeyboardInterrupt):  # nothing to show
        plan_alone("llama-3-8b", SMALL)


def test_pins_and_limits_of_the_file_hold(unsimulated):
    site = hs.NetworkFile(
        network=SMALL, pins={"embedding": "desk", 20: "desk"}, max_blocks=(25, None)
    )
    found = plan_alone("llama-3-8b", site, concurrency=1)
    cut = found.result.partition.cuts[1]
    assert 22 <= cut <= 25
    assert best_s("llama-3-8b", SMALL, concurrency=1) <= found.result.objective_s
    with pytest.raises(ValueError, match="pin of layer 32: llama-3-8b has layers 0 to 31"):
        plan_alone("llama-3-8b", replace(site, pins={32: "desk"}))


def test_a_plan_is_readable_in_a_console_and_in_a_notebook(found, too_small):
    assert repr(found).startswith("<Plan of llama-3-8b on small: optimal, bottleneck ")
    assert "; rack " in repr(found) and len(repr(found)) < 200
    assert repr(too_small) == "<Plan of llama-3-8b on tight: infeasible>"
    html = found._repr_html_()
    assert "<table>" in html and "proved optimal" in html.lower()
    assert "<li>tier &#x27;a&#x27;" in too_small._repr_html_()


def test_old_names_suggest_the_new_ones():
    for old, new in (
        ("dtype", "weights"),
        ("tell", "progress"),
        ("time_limit", "time_limit_s"),
    ):
        with pytest.raises(TypeError, match=f"unknown option '{old}'; did you mean {new}"):
            plan_alone("llama-3-8b", SMALL, **{old: 1})


def test_everything_is_plain_in_a_dictionary(found, too_small):
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["result"]["cuts"] == list(found.result.partition.cuts)
    assert document["nodes"][0]["blocks"] == [0, found.result.partition.cuts[1]]
    assert document["forecast"]["price_per_million_tokens"] is None
    nothing = json.loads(json.dumps(too_small.to_dict(), allow_nan=False))
    assert nothing["forecast"] is None and nothing["upgrades"][0]["gain"] is None


def test_the_nearest_to_binding_are_named(found):
    stages = [
        replace(found.stages[0], tier=f"t{n}", share=1 - n / 20, binds="compute")
        for n in range(10)
    ]
    words = describe_bottleneck(replace(found, stages=(stages[0], *stages[:0:-1])))
    assert words == (
        "bottleneck stage: t0 (compute); slack of the others: t1 5%, t2 10%, t3 15%, t4 20%,"
        " t5 25%, t6 30%, and 3 with more"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("service", "forecast"), ("changes", "upgrades"), ("binding", "bottleneck_stage")],
)
def test_an_old_attribute_of_a_plan_suggests_its_successor(old, new, found):
    with pytest.raises(AttributeError, match=rf"'{old}'; did you mean {new}\?"):
        getattr(found, old)
    with pytest.raises(AttributeError, match=r"did you mean max_sequences\?"):
        found.forecast.most_sequences  # noqa: B018


def test_equal_stages_are_all_bottlenecks(found):
    shares = {"t0": 1.0, "t1": 0.9999, "t2": 0.5}
    link = {"time_s": 0.18, "link_s": 0.82, "binds": "link"}
    stages = tuple(replace(found.stages[0], tier=t, share=s, **link) for t, s in shares.items())
    plan = replace(found, stages=stages)
    words = "bottleneck stages: t0, t1 (82% link); slack of the others: t2 50%"
    assert describe_bottleneck(plan) == words


def test_a_command_compiles_all_its_kernels_at_once(monkeypatch):
    """A notice then says how many families there are in all."""
    calls = []
    module = sys.modules["hypsolve.solve"]
    monkeypatch.setattr(module, "warm", lambda *families: calls.append(set(families)))
    box = hs.Network(name="one", tiers=(tier("box", "a100-80gb"),))
    plan_alone("phi-3-mini", box, concurrency=1, with_upgrades=False, **SHORT)
    assert calls[0] == {"hypsplit", "token_level"}
    calls.clear()
    hs.plan("phi-3-mini", box, concurrency=1, output_tokens=16, with_upgrades=False)
    assert calls[0] == {"hypsplit", "token_level", "throughput.stage_mode"}
    calls.clear()
    list(comparison.compare("phi-3-mini", box, ("even_split", "hypsplit_dp")))
    assert calls[0] == {"hypsplit"}


def test_blocks_in_words():
    words = {
        range(0, 0): "none", range(0, 1): "embedding", range(0, 2): "embedding, layer 0",
        range(0, 4): "embedding, layers 0-2", range(2, 4): "layers 1-2", range(5, 6): "head",
        range(4, 6): "layer 3, head", range(0, 6): "embedding, layers 0-3, head",
    }  # fmt: skip
    assert {blocks: describe_blocks(blocks, 6) for blocks in words} == words


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("llama-3-9b", SMALL),
            ValueError,
            "unknown model 'llama-3-9b'; did you mean llama-3-8b",
        ),
        ((3, SMALL), TypeError, "plan: model must be a name, a path or a Model, got 3"),
        (("llama-3-8b", 3), TypeError, "path must be a string or a path, got 3"),
        (("llama-3-8b", "nowhere.toml"), FileNotFoundError, "nowhere.toml"),
    ],
)
def test_bad_model_or_network(arguments, error, message):
    with pytest.raises(error, match=message):
        hs.plan(*arguments)


def test_a_misspelt_argument_of_plan_is_not_blamed_on_the_method(monkeypatch):
    with pytest.raises(TypeError, match="plan: unknown option 'rate'; did you mean rate_per_s"):
        plan_alone("llama-3-8b", SMALL, rate=1)
    with pytest.raises(TypeError, match="hypsplit_dp: unknown option 'xyz'"):
        plan_alone("llama-3-8b", SMALL, xyz=1)
    with pytest.raises(TypeError, match="unknown option 'xyz'; under objective throughput"):
        hs.plan("llama-3-8b", SMALL, xyz=1)

    def mine(instance, *, time_limit_s, seed, rate):
        return hs.METHODS["hypsplit_dp"].function(instance, time_limit_s=rate, seed=seed)

    monkeypatch.setitem(hs.METHODS, "mine", hs.Method(mine, "partition", kernels=("hypsplit",)))
    assert plan_alone("llama-3-8b", SMALL, method="mine", rate=2.0, with_upgrades=False).fits

    def any_option(instance, *, time_limit_s, seed, **options):
        return mine(instance, time_limit_s=time_limit_s, seed=seed, **options)

    given = hs.Method(any_option, "partition", kernels=("hypsplit",))
    monkeypatch.setitem(hs.METHODS, "any_option", given)
    assert plan_alone(
        "llama-3-8b", SMALL, method="any_option", rate=2.0, with_upgrades=False
    ).fits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_tokens": 0}, "plan: prompt_tokens must be at least 1, got 0"),
        ({"output_tokens": 2**40}, "plan: output_tokens must be at most 2147483648"),
        ({"concurrency": 0}, "plan: concurrency must be at least 1"),
        (
            {"concurrency": 2**30},
            r"plan: concurrency \* \(prompt_tokens \+ output_tokens\) must",
        ),
        ({"rate_per_s": 0}, "plan: rate_per_s must be finite and at least 1e-06, got 0"),
        ({"weights": "fp4"}, "unknown weights 'fp4'"),
        (
            {"objective": "makespan"},
            "unknown objective 'makespan'; choose one of throughput, goodput",
        ),
        ({"objective": "mean_latency", "time_limit_s": 0}, "plan: time_limit_s must be pos"),
        ({"method": "dp"}, "unknown method 'dp'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        plan_alone("llama-3-8b", SMALL, **options)


def test_limits_that_leave_no_block_for_another_tier(unsimulated):
    site = hs.NetworkFile(network=SMALL, min_blocks=(10, 24))
    found = plan_alone("llama-3-8b", site, concurrency=1)
    assert found.result.partition.cuts == (0, 10, 34)
    assert not any("tier of its own" in what for what in tried(found))


def test_p0_knows_no_empty_tier():
    site = hs.NetworkFile(network=SMALL, min_blocks=(None, 0))
    with pytest.raises(ValueError, match="min_blocks of tier 'rack' must be at least 1 under"):
        plan_alone("llama-3-8b", site, objective="p0")


def test_a_model_from_a_file(tmp_path, found, unsimulated):
    """As in its config.json; a name that is a file too is the file."""
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "vocab_size": 128256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json", str(tmp_path)):
        read = plan_alone(path, SMALL, **ASKED)
        assert read.result.objective_s == found.result.objective_s
        assert read.forecast == found.forecast


def test_an_exact_method_proves_the_same_and_changes_are_quick(found, unsimulated):
    slow = plan_alone("llama-3-8b", SMALL, method="partition_cpsat", **ASKED)
    assert slow.result.method == "partition_cpsat"
    assert slow.result.objective_s == pytest.approx(found.result.objective_s, rel=1e-6)


def test_a_model_of_ones_own(unsimulated):
    own = plan_alone(hs.model("phi-3-mini"), SMALL, concurrency=1)
    assert not any(change.what.startswith("weights") for change in own.upgrades)
    with pytest.raises(ValueError, match="weights must be None where the model is a Model"):
        plan_alone(hs.model("phi-3-mini"), SMALL, weights="int8")


# what it will serve


def test_the_room_is_that_of_the_tier_with_the_least():
    """And what is sold is what is served, however fast requests come."""
    tiers = (tier("a", "t4", 2, WIRE), tier("b", "a100-80gb"))
    site = hs.NetworkFile(
        network=hs.Network(name="net", tiers=tiers), price_per_hour={"b-0": 3.6}
    )
    found = plan_alone("llama-3-8b", site, concurrency=2, with_upgrades=False, **SHORT)
    rooms = []
    for stage, each in zip(found.stages, tiers, strict=True):
        blocks = [found.model.blocks[b] for b in stage.blocks]
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        held = sum(block.weight_bytes for block in blocks)
        rooms.append(
            sum(int((n.usable_bytes - held) // kv_bytes // (512 + 32)) for n in each.nodes)
        )
    assert found.forecast.max_sequences == min(rooms) < max(rooms)
    most = found.forecast.max_requests_per_s
    beyond = plan_alone(
        "llama-3-8b", site, concurrency=2, rate_per_s=4 * most, with_upgrades=False, **SHORT
    )
    assert not beyond.forecast.keeps_up
    steady = beyond.forecast.max_requests_per_s
    assert beyond.forecast.output_tokens_per_s == pytest.approx(steady * 32)
    price = 3.6 / 3600 / (steady * 32) * 1e6
    assert beyond.forecast.price_per_million_tokens == pytest.approx(price)


LENGTHS = ((1, 1), (300, 40), (8, 60))
EACH = [(name, lengths) for name in networks() for lengths in LENGTHS]


@pytest.mark.parametrize(("name", "lengths"), EACH[:: n_cases(4, 1)])  # all lengths in turn
def test_what_is_predicted_is_below_the_bound(name, lengths):
    found = plan_alone(
        "phi-3-mini", network(name), prompt_tokens=lengths[0], output_tokens=lengths[1],
        concurrency=1, rate_per_s=0.5, with_upgrades=False,
    )  # fmt: skip
    forecast = found.forecast
    assert forecast.bound_requests_per_s > 0
    assert not forecast.max_requests_per_s > forecast.bound_requests_per_s
    assert forecast.max_sequences >= 1
    assert forecast.max_context_tokens >= sum(lengths)


@pytest.mark.parametrize("seed", range(0, n_cases(80, 240), 2))
def test_no_schedule_beats_the_bound(seed):
    """Random models (experts, windows), networks and chunks, and many requests at once."""
    scenario = random_scenario(seed, hs.simulate)
    base, rng = scenario.deployment, np.random.default_rng(seed)
    p, o = int(rng.integers(1, 40)), int(rng.integers(1, 20))
    n = 200
    burst = replace(base, requests=toys.burst(n, p, o), max_resident_tokens=p + o)
    instance = hs.to_instance(burst, allow_empty=True)
    partition = scenario.partition
    if any(
        partition.stage(k)
        and not evaluation.can_hold(instance, k, *partition.cuts[k : k + 2]).any()
        for k in range(partition.n_tiers)
    ):
        return
    bound = predict(burst, partition, 1.0).bound_requests_per_s
    for policy in ("round_robin", "hypsched_rt"):
        for chunk_tokens in (None, 7):
            trace = hs.simulate(
                burst, partition, policy, chunk_tokens=chunk_tokens, link_contention=True
            )
            assert n / trace.end_s.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_bound_is_reached_where_nothing_is_lost(batch):
    """Prompts of one token on one node, a second for each batch; KV caches hold `batch`."""
    kv = {"kv_bytes": 1} if batch == 1 else {}
    problem = toys.deployment(
        [[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1, **kv), memory_bytes=2.0
    )  # fmt: skip
    forecast = predict(problem, toys.even(1), 0.5)
    assert forecast.bound_requests_per_s == pytest.approx(batch)
    assert 0.7 * batch <= forecast.max_requests_per_s <= batch
    assert forecast.keeps_up
    assert not predict(problem, toys.even(1), 1.5 * batch).keeps_up


def test_links_bound_the_rate():
    wire = hs.Link(bytes_per_s=10.0, latency_s=0.0)
    fast = toys.gpu("gpu", t0_s=1e-3)
    problem = toys.deployment(
        [[fast], [fast]], toys.burst(1, 4, 2), toys.model(2, output_bytes=2), [wire]
    )  # five tokens of two bytes: a second
    forecast = predict(problem, toys.even(2), 0.5)
    assert forecast.bound_requests_per_s == pytest.approx(1.0)
    assert 0.5 <= forecast.max_requests_per_s <= 1.0


def test_a_long_way_costs_no_rate_but_where_caches_are_few():
    far = hs.Link(bytes_per_s=1e9, latency_s=0.5)
    fast = toys.gpu("gpu", t0_s=1e-3)
    problem = toys.deployment(
        [[fast], [fast]],
        toys.burst(1, 1, 5),
        toys.model(2, kv_bytes=1),
        [far],
        memory_bytes=60.0,
    )  # room for ten, each for at least four round trips of a second
    forecast = predict(problem, toys.even(2), 0.5)
    assert forecast.max_sequences == 10
    assert forecast.bound_requests_per_s == pytest.approx(10 / 4.008, rel=1e-3)
    assert 1 <= forecast.max_requests_per_s <= forecast.bound_requests_per_s
    assert forecast.keeps_up


def test_links_before_the_first_stage_hold_no_cache():
    """Decode passes do not cross them, so they do not lower the bound on the rate."""
    far, near = (hs.Link(bytes_per_s=1e9, latency_s=latency_s) for latency_s in (5.0, 0.5))
    fast, model = toys.gpu("gpu", t0_s=1e-3), toys.model(2, kv_bytes=1)
    burst = toys.burst(40, 1, 5)
    tiers, memory = [[fast], [fast], [fast]], {"memory_bytes": 60.0}
    behind = toys.deployment(tiers, burst, model, [far, near], **memory)
    bound = predict(behind, hs.Partition((0, 0, 1, 2)), 0.5).bound_requests_per_s
    alone = toys.deployment(tiers[1:], burst, model, [near], **memory)
    assert bound == predict(alone, toys.even(2), 0.5).bound_requests_per_s
    trace = hs.simulate(behind, hs.Partition((0, 0, 1, 2)))
    assert bound / 3 < len(trace.end_s) / trace.end_s.max() <= bound


def test_what_is_told_of_a_run_is_what_the_metrics_say():
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 3), toys.model(1))
    forecast = predict(problem, toys.even(1), Load(rate_per_s=0.2, seed=3))
    rng = np.random.default_rng(3)
    arrival_s = rng.exponential(1.0, 400).cumsum()
    arrival_s = np.interp(arrival_s, arrival_s[[0, -1]], [0.0, 399 / 0.2])  # at exactly 0.2
    ones = np.ones(400, np.int64)
    trace = hs.simulate(
        replace(problem, requests=hs.Requests(arrival_s, ones, 3 * ones)), toys.even(1),
        link_contention=True,
    )  # fmt: skip
    found = trace.metrics()
    for name in ("latency_s", "ttft_s", "tpot_s"):
        told, said = (dataclasses.asdict(getattr(each, name)) for each in (forecast, found))
        assert told == pytest.approx(said, rel=1e-9)
    assert forecast.latency_s.p50 < forecast.latency_s.p95
    assert forecast.output_tokens_per_s == pytest.approx(0.6)


def test_the_longest_context_is_that_of_the_roomiest_node():
    tiers = (
        hs.Tier(name="a", nodes=tuple(
            hs.Node(name=f"a{n}", gpu=hs.gpu("h200"), memory_bytes=memory * GIB)
            for n, memory in enumerate((30, 60))
        )),
    )  # fmt: skip
    model = replace(hs.model("llama-3-8b"), context_tokens=0)
    network = hs.Network(name="net", tiers=tiers)
    found = plan_alone(model, network, with_upgrades=False, **SHORT)
    kv_bytes = sum(block.kv_bytes_per_token for block in found.model.blocks)
    free = 60 * GIB - found.model.weight_bytes
    assert found.forecast.max_context_tokens == free // kv_bytes
    named = plan_alone("llama-3-8b", network, with_upgrades=False, **SHORT)
    assert named.forecast.max_context_tokens == 8192  # what it was made for


def test_a_tier_that_may_stay_empty_is_left_out_where_that_is_better():
    slow = hs.Link(bytes_per_s=2.5e6, latency_s=1e-3)
    tiers = (tier("home", "jetson-orin-nano", 1, slow), tier("dc", "h200"))
    network = hs.Network(name="net", tiers=tiers)
    full = plan_alone("phi-3-mini", network, concurrency=1, **SHORT)
    by_name = {change.what: change for change in full.upgrades}
    without = by_name["no block on 'home' (min_blocks = 0), if that is better"]
    site = hs.NetworkFile(network=full.network.network, min_blocks=(0, None))
    found = plan_alone("phi-3-mini", site, concurrency=1, **SHORT)
    assert found.result.partition.cuts == (0, 0, 34)
    assert without.after > full.forecast.max_requests_per_s
    assert found.result.objective_s < full.result.objective_s
    assert without.cuts == (0, 0, 34)
    assert not any("home" in c.what and "no block" in c.what for c in found.upgrades)
    with pytest.raises(ValueError, match="min_blocks of all tiers must be at most the 34 bl"):
        plan_alone("phi-3-mini", replace(site, min_blocks=(40, None)))


def test_changes_of_memory_and_links_are_what_solving_says():
    slow = hs.Link(bytes_per_s=1e7, latency_s=1e-3)
    a, b = tier("a", "rtx-4090", 1, slow, memory_bytes=9 * GIB), tier("b", "rtx-4090")
    roomy = replace(a, nodes=(replace(a.nodes[0], memory_bytes=None),))
    roomier = replace(a, nodes=(replace(a.nodes[0], memory_bytes=13 * GIB),))
    quicker = replace(roomy, link=replace(slow, bytes_per_s=2e7))
    for what, before, after in (
        ("4 GiB more on each node of 'a'", (a, tier("b", "t4")), (roomier, tier("b", "t4"))),
        ("twice the rate of the link from 'a'", (roomy, b), (quicker, b)),
    ):
        now, then = (hs.Network(name="net", tiers=tiers) for tiers in (before, after))
        asked = query_alone("llama-3-8b", now, concurrency=1)
        by_name = {each.what: each for each in scenarios(asked, fits=True, lighter={})}
        solved = solve_query(by_name[what].query).result.objective_s
        assert solved == best_s("llama-3-8b", then, concurrency=1)


def test_prices_and_energy_of_a_busy_node():
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1))
    gpu = replace(problem.network.tiers[0].nodes[0].gpu, power_w=100.0)
    problem = replace(problem, network=toys.network([[gpu]]))
    forecast = predict(problem, toys.even(1), 1e-3, {"a0": 3.6})  # one at a time, a second each
    assert forecast.joules_per_token == pytest.approx(100, rel=0.05)
    assert forecast.price_per_million_tokens == pytest.approx(1e6, rel=0.2)  # 1000 s a token
    assert math.isnan(predict(problem, toys.even(1), 1.0).price_per_million_tokens)


def test_the_signature_shows_every_attribute_of_a_query():
    """Editors and `help` list what `plan` takes, though it is written once, in `PlanQuery`."""
    shown = inspect.signature(hs.plan).parameters
    found_by_itself = ("left_out", "too_small", "optional", "idle_gpus")
    for each in dataclasses.fields(PlanQuery):
        if each.name not in ("model", "network", "options", *found_by_itself):
            assert shown[each.name].default == each.default
    assert shown["options"].kind is inspect.Parameter.VAR_KEYWORD


def test_nodes_that_no_pipeline_takes_are_named():
    """A second card seemed to share its tier's work, while llama.cpp runs one pipeline."""
    link = hs.Link(bytes_per_s=1e9, latency_s=1e-4)
    cards = tuple(hs.Node(name=f"card-{j}", gpu=hs.gpu("rtx-3090")) for j in range(2))
    desk = hs.Node(name="desk", gpu=hs.gpu("rtx-4090"), reserved_bytes=2**33)
    lab = hs.Network(
        name="lab",
        tiers=(hs.Tier(name="m", nodes=(desk,), link=link), hs.Tier(name="box", nodes=cards)),
    )
    for runtime in ("llama.cpp", "vllm", "ideal"):
        query = query_alone("llama-3-8b", lab, runtime=runtime, **SHORT)
        made = planner.plan_query(query, with_upgrades=False)  # of all nodes
        drawn = hs.workload(n_requests=20, rate_per_s=1)
        deployment = replace(made.deployment, requests=drawn, max_resident_tokens=None)
        busy_s = hs.simulate(deployment, made.result.partition).busy_s
        names = ("desk", "card-0", "card-1")
        idle = {name for name, s in zip(names, busy_s, strict=True) if s == 0}
        assert idle == ({"card-1"} if runtime != "ideal" else set())
        assert ("idle: card-1;" in str(made)) == bool(idle)


@pytest.mark.parametrize("lengths", [(512, 256), (2048, 64), (4096, 2)])
def test_what_binds_is_that_of_one_node(lengths):
    """Sixteen alike nodes were bound by compute where one was by memory bandwidth."""
    model, gpu = hs.model("llama-3-8b"), hs.gpu("h100")
    compute_s = memory_s = 0.0
    prompt, output = lengths
    for block in model.blocks:
        for context in (0, *range(prompt, prompt + output - 1)):
            flops, moved = costs.step_work(block, 1 if context else prompt, context)
            compute_s += float(flops) / gpu.flops_per_s
            memory_s += float(moved) / gpu.bytes_per_s
    expected = "compute" if compute_s > memory_s else "memory bandwidth"
    for n_nodes in (1, 2, 16):
        made = plan_alone(
            model, hs.Network(name="n", tiers=(tier("a", "h100", n_nodes),)), concurrency=1,
            prompt_tokens=prompt, output_tokens=output, with_upgrades=False,
            time_limit_s=1.0,
        )  # fmt: skip
        assert [stage.binds for stage in made.stages] == [expected]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_no_gain_is_counted_from_what_is_not_settled(monkeypatch, found, before, after):
    """An upgrade brought "132 % more" than the goodput while a queue grew."""
    monkeypatch.setattr(
        what_if,
        "_simulated",
        lambda candidate, *_: what_if.Simulated(
            2e6 * candidate.modelled, candidate.splits[0], 0.99, is_settled=after
        ),
    )
    query = replace(found.query, tpot_slo_s=1.0)
    solution = solve_query(query)
    upgrades = list(
        what_if.find_upgrades(query, solution, before=1.0, before_is_settled=before)
    )
    assert upgrades
    for upgrade in upgrades:
        words = describe_upgrade(upgrade)
        assert math.isfinite(upgrade.gain) is (before and after)
        assert ("times as much" in words or "% more" in words) is (before and after)
        assert ("(not settled" in words) is not after
        assert ("without it is not settled" in words) is (after and not before)


def test_the_goodput_of_a_growing_queue_is_called_not_settled():
    """It was printed, and taken as the base of upgrades, as if the load went on."""
    network = hs.Network(name="n", tiers=(tier("a", "l4", 1),))
    asked = {"prompt_tokens": 512, "output_tokens": 32, "ttft_slo_s": 2.0, "tpot_slo_s": 0.2}
    for rate_per_s, is_settled in ((0.5, True), (50.0, False)):
        plan = plan_alone("llama-3-8b", network, rate_per_s=rate_per_s, **asked)
        assert plan.forecast.is_settled is is_settled
        (line,) = [each for each in forecast_lines(plan) if "goodput" in each]
        assert ("not settled" in line) is not is_settled
        assert plan.upgrades or is_settled
        for upgrade in plan.upgrades:
            assert math.isnan(upgrade.gain) or (is_settled and upgrade.is_settled)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_no_gain_over_a_lower_bound_is_told_as_exact(monkeypatch, found, before, after):
    """Upgrades gained 88 % or 130 % over a rate that had more to it."""
    monkeypatch.setattr(
        what_if,
        "_simulated",
        lambda candidate, *_: what_if.Simulated(
            2e6 * candidate.modelled, candidate.splits[0], is_lower_bound=after
        ),
    )
    solution = solve_query(found.query)
    upgrades = list(
        what_if.find_upgrades(found.query, solution, before=1.0, before_is_lower_bound=before)
    )
    assert upgrades
    for upgrade in upgrades:
        words = describe_upgrade(upgrade)
        assert (upgrade.is_lower_bound, upgrade.before_is_lower_bound) == (after, before)
        assert math.isnan(upgrade.gain) is before
        assert words.startswith("at least" if after else "about")
        assert ("where now it is at least 1 " in words) is before
        assert (" times as much" in words) is not before  # from ten times on
        assert ("at least" in words.partition(",")[2]) is (after or before)
