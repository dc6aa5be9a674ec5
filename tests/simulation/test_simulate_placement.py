"""`simulate_placement`: unlike pipelines behind a router, against `simulate`."""

import dataclasses

import numpy as np
import pytest

import hypsolve as hs
from tests.helpers.placements import MODES, equal_pipelines, random_placement, tiers_of

POLICIES = list(hs.POLICIES)
TIMES = ("end_s", "first_token_s")
COUNTS = ("preemptions", "lost_tokens", "restarts")
BY_STAGE = ("reached_s", "admitted_s", "left_s")


def assert_equal_traces(ours, theirs):
    """Every array of two traces is equal, bit by bit."""
    for field in dataclasses.fields(theirs):
        value = getattr(theirs, field.name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(ours, field.name), value, field.name)
    for field in dataclasses.fields(theirs.series):
        name = field.name
        np.testing.assert_array_equal(
            getattr(ours.series, name), getattr(theirs.series, name), name
        )
    assert ours.n_visits == theirs.n_visits
    assert ours.end_of_run_s == theirs.end_of_run_s


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_equal_pipelines_are_tiers_of_several_nodes(seed, policy):
    """Equal pipelines are the nodes of the same index in every tier, bit by bit."""
    mode = ("pipeline", "serial")[seed % 2]
    problem, placement, options = equal_pipelines(seed)
    deployment, partition = tiers_of(problem, placement)
    options |= {"batching": mode, "seed": seed}
    ours = hs.simulate_placement(problem, placement, policy=policy, **options)
    theirs = hs.simulate(deployment, partition, policy, **options)
    assert_equal_traces(ours, theirs)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_equal_replicas_are_nodes_of_a_tier(seed, policy):
    """With one stage, every node of a tier is a pipeline, in the mode `stage` as well."""
    problem, placement, options = equal_pipelines(seed, n_stages=1)
    deployment, partition = tiers_of(problem, placement)
    options |= {"batching": "stage", "kv_admission": "reserve", "seed": seed}
    ours = hs.simulate_placement(problem, placement, policy=policy, **options)
    theirs = hs.simulate(deployment, partition, policy, **options)
    assert_equal_traces(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_each_pipeline_is_a_deployment(seed, mode):
    """The requests of a pipeline fare as if no other pipeline were there, but for the entry."""
    case = random_placement(seed, mode)
    trace = case.simulate().from_first()
    for p, pipeline in enumerate(case.placement.pipelines):
        mine = np.flatnonzero(trace.node[:, 0] == p)
        if not mine.size:
            continue
        given = case.requests
        requests = hs.Requests(
            given.arrival_s[mine] - given.arrival_s.min(),
            given.prompt_tokens[mine],
            given.output_tokens[mine],
        )
        deployment = dataclasses.replace(
            case.problem.deployment(pipeline.groups, requests),
            max_resident_tokens=int((given.prompt_tokens + given.output_tokens).max()),
        )
        alone = hs.simulate(deployment, pipeline.partition, **case.options)
        entry_s = case.problem.entry_s(case.problem.fleet.machine(pipeline.stages[0].machine))
        for name in TIMES:
            expected = getattr(alone, name) + entry_s
            np.testing.assert_allclose(getattr(trace, name)[mine], expected, rtol=1e-9)
        for name in COUNTS:
            np.testing.assert_array_equal(
                getattr(trace, name)[mine], getattr(alone, name), name
            )
        n_stages = len(pipeline.stages)
        for name in BY_STAGE:
            got = getattr(trace, name)[mine]
            np.testing.assert_allclose(got[:, :n_stages], getattr(alone, name), rtol=1e-9)
            assert np.isnan(got[:, n_stages:]).all()
        own = hs.pipeline_metrics(case.simulate())[p]
        np.testing.assert_allclose(own.busy_s, alone.busy_s, rtol=1e-9)
        assert own.n_requests == mine.size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_work_is_conserved(seed, mode):
    """Every stage of its pipeline computes all tokens of a request; the metrics add up."""
    case = random_placement(seed, mode)
    trace = case.simulate()
    assert np.isfinite(trace.end_s).all()
    n_tokens = trace.prompt_tokens + trace.output_tokens - 1
    lengths = np.array([len(pipeline.stages) for pipeline in case.placement.pipelines])
    of_request = lengths[trace.node[:, 0]]
    assert trace.n_tokens.sum() == (of_request * n_tokens).sum() + trace.lost_tokens.sum()
    assert ((trace.node >= 0).sum(axis=1) == of_request).all()
    assert (trace.first_token_s >= trace.arrival_s).all()
    assert (trace.end_s >= trace.first_token_s).all()
    rows = hs.pipeline_metrics(trace)
    assert sum(row.n_requests for row in rows) == len(case.requests)
    whole = trace.metrics()
    assert sum(row.requests_per_s for row in rows) == pytest.approx(whole.requests_per_s)
    assert sum(sum(row.busy_s) for row in rows) == pytest.approx(trace.busy_s.sum())
