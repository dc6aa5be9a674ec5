"""`simulate_placement`: unlike pipelines behind a router, against `simulate`."""

import dataclasses
import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.simulation.placement_layout import in_proportion
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
    """A node of a tier is a pipeline of one stage, in the mode `stage` as well."""
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


def test_policy_in_python_sees_pipelines():
    """A function that copies a policy of the kernel makes its choices, on every pipeline."""
    for name, mode in itertools.product(POLICIES, MODES):
        case = random_placement(3, mode)
        ours = dataclasses.replace(case, policy=hs.POLICIES[name].choose).simulate(seed=5)
        theirs = dataclasses.replace(case, policy=name).simulate(seed=5)
        assert_equal_traces(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
def test_placed_and_idle_pipelines_are_named(mode):
    """A pipeline without requests counts as idle, and nodes are named after their machines."""
    case = random_placement(1, mode, policy="weighted")
    idle = [dataclasses.replace(each, requests_per_s=0.0) for each in case.placement.pipelines]
    idle[0] = dataclasses.replace(idle[0], requests_per_s=1.0)
    case = dataclasses.replace(case, placement=hs.Placement(tuple(idle)))
    trace = case.simulate()
    assert (trace.node[:, 0] == 0).all()
    first, *others = hs.pipeline_metrics(trace, latency_slo_s=1e6)
    assert first.slo_attainment == 1
    assert all(each.n_requests == 0 and sum(each.busy_s) == 0 for each in others)
    for row, pipeline in zip([first, *others], case.placement.pipelines, strict=True):
        for name, stage in zip(row.node_names, pipeline.stages, strict=True):
            assert name.split(" (")[0] == stage.machine


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_smooth(seed):
    """At any time the requests of a pipeline are within two of its share."""
    rng = np.random.default_rng(seed)
    loads = rng.exponential(1.0, int(rng.integers(1, 9)))
    chosen = in_proportion(loads.tolist(), np.arange(300))
    counts = np.cumsum(chosen[:, None] == np.arange(len(loads)), axis=0)
    due = np.arange(1, 301)[:, None] * loads / loads.sum()
    assert np.abs(counts - due).max() < 2


def test_shares_go_by_arrival():
    """The order of arrival counts, not that of the indices."""
    assert in_proportion([1.0, 1.0], np.array([2, 0, 1])).tolist() == [1, 0, 0]


def test_users_far_and_near_send_in_the_order_of_readiness():
    """A user of a near pipeline is not held back by one who still waits for a delivery."""
    far = hs.Link(bytes_per_s=1e9, latency_s=5.0)
    nodes = [hs.Node(name=name, gpu=hs.gpu("a100-80gb")) for name in ("near", "far")]
    problem = hs.PlacementProblem(
        model=hs.model("llama-3-8b"),
        requests=hs.Requests(np.zeros(6), [10] * 6, [2] * 6),
        fleet=hs.Fleet(
            name="two",
            sites=tuple(hs.Site(name=node.name, link=far) for node in nodes),
            machines=tuple(hs.Machine(node=node, site=node.name) for node in nodes),
            default_link=far,
        ),
    )
    placement = hs.Placement(
        tuple(hs.Pipeline((hs.PlacedStage(node.name, 1, 0, 34),), 1.0) for node in nodes)
    )
    trace = hs.simulate_placement(problem, placement, policy="round_robin", users=2)
    latency_s = trace.latency_s
    assert (np.diff(trace.arrival_s) >= 0).all()
    assert latency_s[0] < 0.1 and latency_s[1] > 10
    assert trace.arrival_s[2] == trace.end_s[0] < 0.1


MACHINES = ("a", "b")


def placed(*pipelines, **changes):
    """Return a problem on two machines, and a placement of (machine, gpus, first, end)."""
    nodes = [hs.Node(name=name, gpu=hs.gpu("l4")) for name in MACHINES]
    lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    problem = hs.PlacementProblem(
        model=hs.model("llama-3-8b"),
        requests=hs.Requests([0.0], [100], [10]),
        fleet=hs.Fleet(
            name="lab",
            sites=(hs.Site(name="room", link=lan),),
            machines=tuple(hs.Machine(node=node, site="room") for node in nodes),
        ),
        **changes,
    )
    return problem, hs.Placement(
        tuple(
            hs.Pipeline(tuple(hs.PlacedStage(*stage) for stage in stages), load)
            for load, *stages in pipelines
        )
    )


WHOLE = (1.0, ("a", 1, 0, 34))


@pytest.mark.parametrize(
    ("pipelines", "options", "message"),
    [
        ([(1.0, ("a", 1, 0, 20))], {}, "blocks 0:34"),
        ([(1.0, ("c", 1, 0, 34))], {}, "'c' is not in the fleet"),
        ([WHOLE, WHOLE], {}, "machine a: 1 GPUs are there, 2 are used"),
        ([(1.0, ("a", 2, 0, 34))], {}, "gpus must be one of 1, got 2"),
        ([WHOLE], {"policy": "weigthed"}, "did you mean weighted"),
        (
            [(0.0, ("a", 1, 0, 34))],
            {"policy": "weighted"},
            "needs a pipeline with requests_per",
        ),
        ([WHOLE], {"think_time_s": 1.0}, "think_time_s needs users"),
        ([WHOLE], {"policy": lambda state, r: 7}, "must be one that is up"),
        (
            [WHOLE],
            {"requests": hs.Requests([0.0], [10**6], [10])},
            "has no|no node has room|must hold its weights",
        ),
    ],
)
def test_errors_name_the_rule(pipelines, options, message):
    """A placement that breaks a rule, or a wrong option, is refused in one line."""
    problem, placement = placed(*pipelines)
    with pytest.raises(ValueError, match=message):
        hs.simulate_placement(problem, placement, **options)


def test_wrong_types_are_refused():
    """Arguments of other types are named."""
    problem, placement = placed(WHOLE)
    with pytest.raises(TypeError, match="placement must be"):
        hs.simulate_placement(problem, [WHOLE])
    with pytest.raises(TypeError, match="policy must be a name or a function"):
        hs.simulate_placement(problem, placement, policy=3)
    with pytest.raises(TypeError, match="did you mean users"):
        hs.simulate_placement(problem, placement, user=3)
    trace = hs.simulate(problem.deployment([("a", 1)]), hs.Partition((0, 34)))
    with pytest.raises(ValueError, match="one of simulate_placement"):
        hs.pipeline_metrics(trace)


def test_loads_do_not_matter_to_other_policies():
    """A placement whose loads exceed what it carries is simulated all the same."""
    problem, placement = placed((1e9, ("a", 1, 0, 34)), (1.0, ("b", 1, 0, 34)))
    trace = hs.simulate_placement(problem, placement)
    assert np.isfinite(trace.end_s).all()
    assert "pipeline 1" in str(trace)
    assert "pipeline 1" in trace._repr_html_()
