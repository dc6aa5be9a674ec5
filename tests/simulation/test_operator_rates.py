"""GPUs with rates of operators, or whose times add up, in all batching modes, against SimPy."""

from collections import Counter
from functools import cache

import pytest

import hypsolve
from tests.helpers import operator_costs
from tests.helpers import scenarios_token as scenarios
from tests.helpers.agreement import MODELS, assert_agree, scenario_of_any_mode
from tests.helpers.sizes import n_cases

SEEDS = range(n_cases(80, 120))


@cache
def scenario(seed):
    mode, given = scenario_of_any_mode(seed)
    if seed % 4 < 2:
        given = scenarios.in_groups(seed, given)
    return mode, operator_costs.with_operators(seed, given)


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    """The models count the work of every GPU and sequence; the simulator sums coefficients."""
    mode, given = scenario(seed)
    assert_agree(given.run(hypsolve.simulate, record_visits=True), given.run(MODELS[mode]))


def test_scenarios_cover_everything():
    seen = Counter()
    for seed in SEEDS:
        deployment = scenario(seed)[1].deployment
        if deployment.cost_model == "flops":
            continue
        nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
        rates = [node.gpu.operators for node in nodes]
        seen["operators"] += any(rates)
        seen["three numbers"] += None in rates
        seen["sums"] += not all(node.gpu.overlaps for node in nodes)
        seen["groups"] += any(r and node.gpus > 1 for r, node in zip(rates, nodes, strict=True))
        seen["request"] += deployment.request_s > 0
        seen["mixed"] += any(r and r.mixed_layer_s for r in rates)
    assert len(seen) == 6 and min(seen.values()) >= 10, seen
