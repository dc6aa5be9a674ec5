"""The modes `pipeline` and `serial` against an independent SimPy model."""

import itertools
from collections import Counter

import numpy as np
import pytest

import hypsolve
from tests.helpers import scenarios_token as scenarios
from tests.helpers import simpy_pipeline
from tests.helpers.agreement import Judge, assert_agree, assert_series_agree
from tests.helpers.sizes import n_cases

# the last ones tell apart whether a batch that preempts admits requests
SEEDS = (*range(n_cases(200, 400)), 622, 666, 1372, 1471, 1552, 1972)
MODES = ("pipeline", "serial")


judge = Judge(simpy_pipeline.simulate, MODES)
scenario, answer = judge.scenario, judge.answer


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    """Every time, choice, count and visit is that of the model, with any options and events."""
    assert_agree(scenario(seed).run(hypsolve.simulate, record_visits=True), answer(seed))


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_series_agree(seed):
    """Each bin's average, from the intervals in which something lasted."""
    assert_series_agree(scenario(seed).run(hypsolve.simulate).series, answer(seed))


def test_scenarios_cover_everything():
    """Each option, policy, event and rule has come into play, several times."""
    seen = Counter()
    for seed in SEEDS:
        run, got = scenario(seed), answer(seed)
        seen.update(got.seen)
        policy = run.policy if isinstance(run.policy, str) else scenarios.REPLAY
        empty = [i == j for i, j in itertools.pairwise(run.partition.cuts)]
        seen.update(
            {
                f"policy {policy}": 1,
                f"mode {run.options['batching']}": 1,
                "requests restarted": (got.restarts > 0).sum(),
                "requests preempted twice": (got.preemptions > 1).sum(),
                "requests that lost tokens": (got.lost_tokens > 0).sum(),
                "requests that never ended": np.isnan(got.end_s).sum(),
                "requests that were never sent": np.isnan(got.arrival_s).sum(),
                "leading relay": empty[0],
                "relay between": sum(empty[1:-1]),
                "several pipelines": len({tuple(row) for row in got.node.tolist()}) > 1,
                "contention": run.options["link_contention"],
                "host time": "iteration_s" in run.options,
                "visit without duration": any(v[2] == v[3] for v in got.visits),
            }
        )
    rare = [name for name, count in seen.items() if count < 5]
    assert not rare, {name: seen[name] for name in rare}
    assert {f"policy {name}" for name in scenarios.KINDS} <= set(seen)
    assert set(hypsolve.EventKind) <= set(seen)
    assert {
        "preempted",
        "preempted in flight",
        "computed for a preempted request",
        "preempting batch without tokens",
        "head still in flight",
        "waited for KV memory",
        "all seats taken",
        "chunk cut",
        "batch in parts",
        "several batches in flight",
        "chunks of one prompt in flight",
        "held back behind a batch",
        "queued for a link",
        "batch lost",
        "restart after a token",
        "no node with room",
        "stranded",
        "sent by a user",
        "slowdown in an iteration",
    } <= set(seen)
