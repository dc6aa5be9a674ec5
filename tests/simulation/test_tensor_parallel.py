"""Groups of GPUs that compute as one, in all batching modes, against the SimPy models."""

from functools import cache

import pytest

import hypsolve
from tests.helpers import scenarios_token as scenarios
from tests.helpers.agreement import (
    MODELS,
    assert_agree,
    assert_series_agree,
    scenario_of_any_mode,
)
from tests.helpers.sizes import n_cases

SEEDS = range(n_cases(80, 120))


@cache
def scenario(seed):
    mode, given = scenario_of_any_mode(seed)
    return mode, scenarios.in_groups(seed, given)


@cache
def answer(seed):
    mode, given = scenario(seed)
    return given.run(MODELS[mode])


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    """The models let every GPU compute its part; the simulator computes with one profile."""
    ours = scenario(seed)[1].run(hypsolve.simulate, record_visits=True)
    assert_agree(ours, answer(seed))


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_series_agree(seed):
    """The KV cache of a bin counts the copies of GPUs without a head of their own."""
    assert_series_agree(scenario(seed)[1].run(hypsolve.simulate).series, answer(seed))


def test_scenarios_cover_everything():
    """Small and large messages, copies of KV heads, and mixed degrees have come into play."""
    seen = {"copies": 0, "mixed copies": 0, "groups": 0, "all-reduces": 0}
    for seed in SEEDS:
        deployment = scenario(seed)[1].deployment
        nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
        profiles = [deployment.profile(node) for node in nodes]
        copies = {profile.kv_copies for profile in profiles}
        is_group = any(node.gpus > 1 for node in nodes)
        seen["copies"] += max(copies) > 1
        seen["mixed copies"] += len(copies) > 1
        seen["groups"] += is_group
        seen["all-reduces"] += is_group and any(b.collectives for b in deployment.model.blocks)
    assert min(seen.values()) >= 10, seen
