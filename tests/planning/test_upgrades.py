"""What upgrades state is what was simulated."""

import pytest

import hypsolve as hs
from hypsolve.planning.query import saturated
from hypsolve.planning.upgrade_text import describe_upgrade
from hypsolve.planning.what_if import _saturated
from hypsolve.solvers.clock import NEVER

LINK = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
NETWORK = hs.Network(
    name="two",
    tiers=(
        hs.Tier(name="a", nodes=(hs.Node(name="a", gpu=hs.gpu("l4")),), link=LINK),
        hs.Tier(name="b", nodes=(hs.Node(name="b", gpu=hs.gpu("a10")),)),
    ),
)


@pytest.fixture(scope="module")
def plan():
    return hs.plan("phi-3-mini", NETWORK, output_tokens=32, prompt_tokens=64)


def test_a_rate_of_a_shorter_simulation_is_a_lower_bound(plan):
    """Upgrades were simulated with 20 times the requests under way, the plan with 50 times.

    The rate of the shorter run is smaller by the seconds to fill and to drain, so that the gain
    was understated without a word.
    """
    assert plan.upgrades and not plan.throughput.is_lower_bound
    cuts = plan.result.partition.cuts
    same = _saturated(plan.query, [cuts], NEVER)  # no upgrade at all
    assert same.value <= plan.throughput.simulated_requests_per_s and same.is_lower_bound
    assert same.value == saturated(plan.query, cuts).requests_per_s
    for upgrade in plan.upgrades:
        assert upgrade.is_lower_bound
        assert describe_upgrade(upgrade).startswith("at least ")
