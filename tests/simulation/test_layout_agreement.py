"""`simulate_layout` against an independent SimPy model, and against `simulate` on tiers."""

import itertools
from collections import Counter
from functools import cache

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.simulation.simulate_layout import simulate_layout
from tests.helpers import simpy_layout
from tests.helpers.layouts import random_layout, replicas_layout
from tests.helpers.placements import equal_pipelines, tiers_of

SEEDS = range(100)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@cache
def judged(seed):
    case = random_layout(seed)
    return simpy_layout.simulate(case.problem, case.layout, **case.options)


@pytest.mark.parametrize("seed", SEEDS)
def test_simulator_agrees(seed):
    """Every path, time, count and visit is that of the model."""
    case, judge = random_layout(seed), judged(seed)
    trace = simulate_layout(case.problem, case.layout, record_visits=True, **case.options)
    for r, path in enumerate(trace.path):
        assert list(trace.paths[path]) == [node.number for node in judge.paths[r]]
    np.testing.assert_allclose(trace.arrival_s, judge.arrival_s, **CLOSE)
    for name, times_s in judge.times.items():
        np.testing.assert_allclose(getattr(trace, name), times_s, err_msg=name, **CLOSE)
    nodes = list(judge.nodes.values())
    np.testing.assert_allclose(trace.busy_s, [node.busy_s for node in nodes], **CLOSE)
    assert trace.n_iterations.tolist() == [node.n_iterations for node in nodes]
    assert trace.n_tokens.tolist() == [node.n_tokens for node in nodes]
    assert trace.kv_peak_bytes.tolist() == [node.peak for node in nodes]
    columns = ("request", "node", "context_tokens", "start_s", "end_s", "tokens")
    rows = np.stack([getattr(trace.visits, name) for name in columns], axis=1)
    expected = np.array(judge.visits)[:, [0, 1, 5, 2, 3, 4]]
    for table in (rows, expected):
        table[:] = table[np.lexsort(table[:, 2::-1].T)]  # by request, node, context
    np.testing.assert_allclose(rows, expected, **CLOSE)


def test_cases_cover_everything():
    """Each rule has come into play."""
    seen = Counter()
    for seed in SEEDS:
        seen.update(name for name, number in judged(seed).seen.items() if number)
    needed = {
        "iteration of several entries", "waited for KV memory", "overtook another path",
        "queued for a link", "chunk cut", "sent by a user",
        "prompt waits for the next iteration",
    }  # fmt: skip
    assert {name: seen[name] for name in needed if seen[name] < 5} == {}


def ample(problem):
    """Return a problem whose machines have all of their memory."""
    machines = tuple(
        hs.Machine(node=hs.Node(name=m.name, gpu=m.node.gpu), site=m.site)
        for m in problem.fleet.machines
    )
    fleet = hs.Fleet(name="lab", sites=problem.fleet.sites, machines=machines)
    return problem.replace(fleet=fleet)


@pytest.mark.parametrize("n_stages", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_tiers_are_those_of_simulate(seed, n_stages):
    """Tiers of equal nodes that replay the paths are served alike where KV cache is ample."""
    problem, placement, options = equal_pipelines(seed, n_stages)
    problem = ample(problem)
    options = {k: v for k, v in options.items() if not k.startswith("kv_")}
    stages = list(zip(*(pipeline.stages for pipeline in placement.pipelines), strict=True))
    tiers = [
        ([each.machine for each in stage], (stage[0].start, stage[0].stop)) for stage in stages
    ]
    trace = simulate_layout(problem, replicas_layout(tiers), **options)
    deployment, partition = tiers_of(problem, placement)
    first = np.cumsum([0, *(len(stage) for stage in stages)])[:-1]
    node = np.array([trace.paths[p] for p in trace.path]) - first
    if "users" not in options:
        order = np.argsort(problem.requests.arrival_s, kind="stable")
        assert (np.bincount(node[order][: len(stages[0]), 0]) == 1).all()  # in turn
    n = len(trace.path)
    replayed = hs.simulate(
        deployment, partition, hs.Schedule(node, *np.zeros((2, n, n_stages))), **options
    ).from_first()
    assert_same(trace, replayed)


def assert_same(trace, expected):
    for name in ("arrival_s", "first_token_s", "end_s"):
        got, known = getattr(trace, name), getattr(expected, name)
        np.testing.assert_allclose(got, known, err_msg=name, **CLOSE)


@pytest.mark.parametrize("seed", range(8))
def test_one_stage_is_that_of_simulate_with_short_memory(seed):
    """On whole replicas, waiting at the coordinator is waiting at the node."""
    problem, placement, options = equal_pipelines(seed, 1)
    options = {k: v for k, v in options.items() if not k.startswith("kv_")}
    names = [pipeline.stages[0].machine for pipeline in placement.pipelines]
    layout = replicas_layout([(names, (0, problem.model.n_blocks))])
    trace = simulate_layout(problem, layout, **options)
    deployment, partition = tiers_of(problem, placement)
    node = np.array([trace.paths[p] for p in trace.path])
    n = len(trace.path)
    schedule = hs.Schedule(node, *np.zeros((2, n, 1)))
    replayed = hs.simulate(deployment, partition, schedule, **options).from_first()
    assert_same(trace, replayed)
    np.testing.assert_allclose(trace.admitted_s, replayed.admitted_s[:, 0], **CLOSE)


@pytest.mark.parametrize("seed", range(8))
def test_pipelines_are_those_of_simulate_placement(seed):
    """Disjoint pipelines that share the requests by weight are served alike."""
    problem, placement, options = equal_pipelines(seed)
    problem = ample(problem)
    options = {k: v for k, v in options.items() if not k.startswith("kv_")}
    flows = []
    for pipeline in placement.pipelines:
        names = [None, *(stage.machine for stage in pipeline.stages), None]
        flows += [(a, b, 1.0) for a, b in itertools.pairwise(names)]
    stages = [stage for pipeline in placement.pipelines for stage in pipeline.stages]
    ranges = tuple(HostedRange(each.machine, each.start, each.stop) for each in stages)
    layout = LayerLayout(ranges, tuple(flows))
    for link_contention in (False, True):
        more = options | {"link_contention": link_contention}
        trace = simulate_layout(problem, layout, **more)
        expected = hs.simulate_placement(problem, placement, policy="weighted", **more)
        assert_same(trace, expected.from_first())
