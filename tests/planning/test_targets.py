"""Upgrades where targets are given: requests/s within the targets at the load of the query."""

from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import what_if
from hypsolve.planning.forecast import predict
from hypsolve.planning.goal import Goal, modelled_slack
from hypsolve.planning.query import solve_query
from tests.helpers import token_toys as toys
from tests.helpers.plans import plan_alone, query_alone

LAN, WAN = hs.Link(bytes_per_s=1e9, latency_s=1e-4), hs.Link(bytes_per_s=1e8, latency_s=0.04)


def tier(name, gpu, n_nodes, link=None):
    nodes = tuple(hs.Node(name=f"{name}-{j}", gpu=hs.gpu(gpu)) for j in range(n_nodes))
    return hs.Tier(name=name, nodes=nodes, link=link)


COMPANY = hs.Network(
    name="company",
    tiers=(tier("edge", "l4", 2, LAN), tier("region", "a10", 2, WAN), tier("cloud", "h100", 2)),
)
ASKED = {"rate_per_s": 3.0, "tpot_slo_s": 0.05, "ttft_slo_s": 0.3, "output_tokens": 64}


@pytest.fixture(scope="module")
def found():
    return plan_alone("llama-3-8b", COMPANY, **ASKED)


def test_upgrades_are_judged_by_goodput_at_the_load(found):
    """0 % were within the targets, and a larger rate was all that upgrades were judged by."""
    assert found.forecast.goodput_requests_per_s == 0  # each token waits for 80 ms of WAN
    assert found.upgrades
    values = [(each.after, each.slo_attainment) for each in found.upgrades]
    assert values == sorted(values, reverse=True)
    tried = {each.what: each for each in what_if.scenarios(found.query, fits=True, lighter={})}
    for upgrade in found.upgrades:
        assert upgrade.quantity == "goodput" and upgrade.is_rate
        solution = solve_query(tried[upgrade.what].query)
        again = predict(solution.deployment, hs.Partition(upgrade.cuts), found.query.load)
        assert upgrade.after == again.goodput_requests_per_s > 0
        assert upgrade.slo_attainment == again.slo_attainment


def test_leaving_out_several_tiers_is_tried(found):
    """Of three sites, one alone may meet a target that any two of them miss."""
    best = found.upgrades[0]
    assert best.what.startswith("blocks only where they serve best")
    assert sum(a < b for a, b in zip(best.cuts, best.cuts[1:], strict=False)) == 1
    assert best.after == pytest.approx(3.0) and best.slo_attainment == 1.0
    assert "3 requests/s within the targets (100.0% of them)" in str(found)


def test_alternatives_tell_their_goodput(found):
    """The best known value, which upgrades must beat, is over all splits."""
    for other in found.alternatives:
        again = predict(found.deployment, hs.Partition(other.cuts), found.query.load)
        assert other.goodput_requests_per_s == again.goodput_requests_per_s
    known = max(each.goodput_requests_per_s for each in (found.forecast, *found.alternatives))
    assert all(upgrade.after > known for upgrade in found.upgrades)
    before = found.forecast.goodput_requests_per_s
    assert all(upgrade.before == before for upgrade in found.upgrades)


@pytest.mark.parametrize("objective", ["path", "mean_latency"])
@pytest.mark.parametrize("users", [None, 4])
def test_targets_come_before_the_objective(objective, users):
    """Whoever gives targets asks for requests within them, whatever decides the split."""
    asked = query_alone(
        "llama-3-8b", COMPANY, objective=objective, tpot_slo_s=0.1,
        users=None if objective == "mean_latency" else users,
    )  # fmt: skip
    assert Goal(asked).quantity == "goodput"
    assert Goal(replace(asked, tpot_slo_s=None)).quantity != "goodput"


def test_nothing_helps_where_all_targets_are_met():
    """The title says that no upgrade is needed."""
    lan = hs.Network(name="lan", tiers=(tier("rack", "h100", 1),))
    met = plan_alone("llama-3-8b", lan, rate_per_s=0.5, tpot_slo_s=1.0)
    assert met.forecast.slo_attainment == 1 and not met.upgrades
    assert "nothing; all requests are within the targets at this load" in str(met)


@pytest.mark.parametrize("load", [0.0, 0.5, 0.9, 1.5])
def test_the_model_of_slack_is_the_target_over_the_stretched_time(load):
    """A second for every pass, at most four requests in one; waiting stretches it."""
    network = toys.network([[toys.gpu("gpu", t0_s=1.0)]])
    asked = query_alone(
        toys.model(1), network, prompt_tokens=1, output_tokens=3, tpot_slo_s=2.0,
        ttft_slo_s=8.0, rate_per_s=max(load * 4 / 3, 1e-6),
        runtime=hs.Runtime(name="toy", max_num_seqs=4),
    )  # fmt: skip
    solution = solve_query(asked)
    slack = modelled_slack(solution, toys.even(1), asked)
    stretch = 1 / (1 - load) if load <= 0.9 else 10 + 100 * (load - 0.9)
    assert slack == pytest.approx(2.0 / stretch, rel=1e-5)
    no_slack = modelled_slack(solution, toys.even(1), replace(asked, tpot_slo_s=None))
    assert no_slack == pytest.approx(8.0 / stretch, rel=1e-5)
