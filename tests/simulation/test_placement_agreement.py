"""`simulate_placement` against an independent SimPy model, in all batching modes."""

from collections import Counter
from functools import cache

import pytest

import hypsolve as hs
from tests.helpers import simpy_placement
from tests.helpers.agreement import assert_agree, assert_series_agree
from tests.helpers.placements import MODES, random_placement

SEEDS = range(60)
OF_MODE = {
    "stage": "stays at its pipeline",
    "pipeline": "several batches in flight",
    "serial": "batch in parts",
}


@cache
def answer(seed, mode):
    return random_placement(seed, mode).run(simpy_placement.simulate, seed=seed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed, mode):
    """Every time, choice, count and visit is that of the model."""
    case = random_placement(seed, mode)
    trace = case.run(hs.simulate_placement, seed=seed, record_visits=True)
    assert_agree(trace, answer(seed, mode))
    if seed % 4 == 0:
        assert_series_agree(trace.series, answer(seed, mode))


@pytest.mark.parametrize("mode", MODES)
def test_cases_cover_everything(mode):
    """Each policy and rule has come into play."""
    seen = Counter()
    for seed in SEEDS:
        case, got = random_placement(seed, mode), answer(seed, mode)
        seen.update(got.seen)
        lengths = {len(pipeline.stages) for pipeline in case.placement.pipelines}
        seen[f"policy {case.policy}"] += 1
        seen["unlike pipelines"] += len(lengths) > 1
        seen["preempted"] += (got.preemptions > 0).sum()
        seen["policy of live state, unlike pipelines"] += len(
            lengths
        ) > 1 and case.policy not in ("weighted", "random", "round_robin")
    assert {f"policy {name}" for name in hs.PLACEMENT_POLICIES} <= set(seen)
    needed = {"unlike pipelines", "preempted", "waited for KV memory", "sent by a user"}
    needed |= {"policy of live state, unlike pipelines", "chunk cut", "no node with room"}
    needed |= {"queued for a link", OF_MODE[mode]}
    rare = {name: seen[name] for name in needed if seen[name] < 5}
    assert not rare
