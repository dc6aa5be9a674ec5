"""The mode `stage` with the options of serving runtimes, against its SimPy model."""

from collections import Counter

import numpy as np
import pytest

import hypsolve
from tests.helpers import simpy_model
from tests.helpers.agreement import Judge, assert_agree, assert_series_agree
from tests.helpers.sizes import n_cases

SEEDS = range(n_cases(150, 300))


judge = Judge(simpy_model.simulate, ("stage",))
scenario, answer = judge.scenario, judge.answer


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    """Paged KV cache, token budgets, host seconds and users, with events, are the model's."""
    assert_agree(scenario(seed).run(hypsolve.simulate, record_visits=True), answer(seed))


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_series_agree(seed):
    """Each bin's average, from the intervals in which something lasted."""
    assert_series_agree(scenario(seed).run(hypsolve.simulate).series, answer(seed))


def test_scenarios_cover_everything():
    """Each new rule has come into play, several times."""
    seen = Counter()
    for seed in SEEDS:
        run, got = scenario(seed), answer(seed)
        seen.update(got.seen)
        seen.update({name: 1 for name in run.options})
        seen.update(
            {
                "requests preempted twice": (got.preemptions > 1).sum(),
                "requests preempted and restarted": (
                    (got.preemptions > 0) & (got.restarts > 0)
                ).sum(),
                "requests that were never sent": np.isnan(got.arrival_s).sum(),
            }
        )
    expected = {
        "preempted",
        "preempted itself",
        "preemption after a token",
        "failure after a token",
        "requests preempted twice",
        "requests preempted and restarted",
        "requests that were never sent",
        "sent by a user",
        "max_num_batched_tokens",
        "iteration_s",
        "slowdown in an iteration",
        "waited for KV memory",
    }
    assert all(seen[name] >= 5 for name in expected), {name: seen[name] for name in expected}
