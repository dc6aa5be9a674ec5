"""The cheapest upgrade is judged as the load of the plan is, and no smaller one is enough."""

import math
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import cheapest_upgrade as module
from hypsolve.planning import planner
from hypsolve.planning.cheapest_upgrade import cheapest_upgrade
from hypsolve.planning.slo_answer import judged
from hypsolve.planning.slo_text import describe_sufficient
from hypsolve.solvers.clock import NEVER, Deadline


def site(n_nodes):
    """A desk with RTX 4090s; each costs 0.5 per hour."""
    nodes = tuple(hs.Node(name=f"n{i}", gpu=hs.gpu("rtx-4090")) for i in range(n_nodes))
    network = hs.Network(name="site", tiers=(hs.Tier(name="desk", nodes=nodes),))
    return hs.NetworkFile(network=network, price_per_hour={node.name: 0.5 for node in nodes})


def asked(n_nodes=1, **more):
    lengths = {"prompt_tokens": 256, "output_tokens": 64}
    return hs.PlanQuery.of("llama-3.2-1b", site(n_nodes), **{**lengths, **more})


def is_enough(query, n_more):
    larger = replace(query, network=site(1 + n_more))
    deployment = larger.deployment()
    instance = hs.to_instance(deployment, objective="path", **larger.rules())
    whole = hs.Partition((0, instance.n_blocks))
    return judged(deployment, instance, whole, larger.load).is_met


@pytest.mark.full_length
def test_the_plan_with_the_upgrade_says_yes():
    """One more node met a loose target in a short simulation, but did not keep up."""
    query = asked(ttft_slo_s=10.0, rate_per_s=400)
    upgrade = cheapest_upgrade(query, deadline=NEVER)
    larger = replace(query, network=site(1 + upgrade.n_gpus))
    plan = planner.plan_query(larger, with_upgrades=False)
    assert plan.slo_answer.is_met and plan.forecast.keeps_up
    smaller = replace(query, network=site(upgrade.n_gpus))
    assert not planner.plan_query(smaller, with_upgrades=False).slo_answer.is_met


@pytest.mark.parametrize(
    "query",
    [
        asked(ttft_slo_s=0.05, tpot_slo_s=0.012, users=700),  # the fluid model: 9 more
        asked(ttft_slo_s=0.05, tpot_slo_s=0.012, rate_per_s=900),
        asked(prompt_tokens=512, output_tokens=32, ttft_slo_s=0.05, tpot_slo_s=0.008,
              users=800, runtime="vllm"),  # grew to 35 where 34 are enough
    ],
)  # fmt: skip
def test_no_smaller_number_is_enough(query):
    """Each size is judged again: one more node than needed costs 0.5 per hour."""
    upgrade = cheapest_upgrade(query, deadline=NEVER)
    assert not upgrade.is_upper_bound and upgrade.price_per_hour == upgrade.n_gpus / 2
    assert is_enough(query, upgrade.n_gpus) and not is_enough(query, upgrade.n_gpus - 1)


def test_a_cut_search_says_at_most(monkeypatch):
    """The time ends when the first size is known to be enough."""
    query = asked(ttft_slo_s=0.05, tpot_slo_s=0.012, users=700)
    simulated, ends = module._simulated, Deadline(math.inf)

    def last(option, query):
        found = simulated(option, query)
        ends.at_s = -math.inf
        return found

    monkeypatch.setattr(module, "_simulated", last)
    upgrade = cheapest_upgrade(query, deadline=ends)
    assert upgrade.is_upper_bound and upgrade.n_gpus > 5
    assert describe_sufficient(upgrade).startswith(f"at most {upgrade.n_gpus} more RTX 4090")


def test_a_failure_to_keep_up_is_said_as_such():
    """All requests met a target of a minute, and the answer was no without a reason."""
    query = asked(ttft_slo_s=60.0, rate_per_s=190)
    plan = planner.plan_query(query, with_upgrades=False)
    answer, text = plan.slo_answer, str(plan)
    assert not answer.is_met and not answer.keeps_up and answer.slo_attainment >= 0.95
    assert text.startswith("no: 190 requests/s are not served within TTFT <= 60 s with at most")
    assert "(more than this split keeps up with, " in text.splitlines()[0]
    assert 100 < answer.sustained_requests_per_s < 190
    assert f"which is about {answer.sustained_requests_per_s:.3g}" in text.splitlines()[0]
    assert "all requests are within the targets" not in text and "it takes 95%" not in text
    assert answer.max_requests_per_s <= plan.throughput.bound_requests_per_s
