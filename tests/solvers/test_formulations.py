"""The exact formulations beyond `test_agreement`: rounding, limits, files, backends."""

import ast
import inspect
import itertools
import math
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pulp
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat import cp_model_pb2
from ortools.sat.python import cp_model

from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.evaluation import check, evaluate
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solve import solve
from hypsolve.solvers.backends import cpsat as cpsat_backend
from hypsolve.solvers.backends import pulp as pulp_backend
from hypsolve.solvers.joint import cpsat as joint_cpsat
from hypsolve.solvers.joint import joint_exact
from hypsolve.solvers.joint import milp as joint_milp
from hypsolve.solvers.joint.tables import joint_tables
from hypsolve.solvers.joint.time_windows import drop_dominated, serial_latencies, windows
from hypsolve.solvers.outcomes import to_outcome
from hypsolve.solvers.partition import cpsat, mathopt_mip, pulp_milp
from hypsolve.solvers.partition.arcs import arcs_on, holds, partition_arcs, usable_arcs
from hypsolve.solvers.write_formulation import write_formulation
from tests.helpers import oracles, strategies

PARTITION = {
    "partition_cbc": pulp_milp.partition_cbc,
    "partition_highs": pulp_milp.partition_highs,
    "partition_cpsat": cpsat.partition_cpsat,
    "partition_scip": mathopt_mip.partition_scip,
}
JOINT = {
    "cpsat": joint_cpsat.joint_cpsat,
    "exact": joint_exact.joint_exact,
    "highs": joint_milp.joint_milp,
    "cbc": lambda instance, **options: joint_milp.joint_milp(
        instance, backend="cbc", **options
    ),
}
OBJECTIVES = strategies.PARTITION_OBJECTIVES
FEW = settings(max_examples=max(settings.default.max_examples // 4, 8))
LONG = {"time_limit_s": 300, "seed": 0}  # not reached, on a busy machine either


def chain(rng, n_blocks=24, n_tiers=3, n_requests=1, n_nodes=2, **fields):
    """Draw a chain with real-valued times and tight memory."""
    work = rng.uniform(0.01, 0.1, (1, 3, n_blocks)) * rng.uniform(0.5, 2, (n_requests, 1, 1))
    capacity = 2.0 * n_blocks / n_tiers
    return Instance.from_tables(
        work,
        np.ones(n_blocks),
        [[(int(rng.integers(3)), capacity) for _ in range(n_nodes)] for _ in range(n_tiers)],
        transfer_s=rng.uniform(0, 0.05, (1, n_tiers - 1, n_blocks + 1)),
        arrival_s=np.sort(rng.uniform(0, 0.2, n_requests)),
        **fields,
    )


def best_partition_s(instance):
    """Return the best score over all cuts that `check` accepts."""
    inner = itertools.combinations_with_replacement(
        range(instance.n_blocks + 1), instance.n_tiers - 1
    )
    every = (Partition((0, *cuts, instance.n_blocks)) for cuts in inner)
    return min(
        (evaluate(instance, p) for p in every if not check(instance, p)), default=math.inf
    )


def assert_proven(instance, outcome, best_s):
    best_s = float(best_s)
    if math.isinf(best_s):
        assert outcome.status is Status.INFEASIBLE
        assert outcome.bound_s == math.inf
        return
    assert outcome.status is Status.OPTIMAL
    assert check(instance, outcome.partition, outcome.schedule) == []
    score = evaluate(instance, outcome.partition, outcome.schedule)
    assert score == pytest.approx(best_s, rel=1e-6)
    assert score * (1 - 1e-6) <= outcome.bound_s <= best_s * (1 + 1e-12)


# the partition


@pytest.mark.parametrize("method", PARTITION)
@FEW
@given(
    strategies.instances(
        objectives=OBJECTIVES, seconds=st.floats(1e-3, 1e3), max_blocks=7, max_tiers=3
    )
)
def test_a_partition_is_enumeration_on_numbers_that_round(method, instance):
    assert_proven(instance, PARTITION[method](instance, **LONG), best_partition_s(instance))


@pytest.mark.parametrize("method", PARTITION)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_backends_agree_where_enumeration_is_long(method, objective):
    instance = chain(np.random.default_rng(7), objective=objective)
    outcome = PARTITION[method](instance, **LONG)
    assert_proven(instance, outcome, best_partition_s(instance))


@pytest.mark.parametrize("seed", [70, 115, 158, 189, 205, 487, 531, 532, 586, *range(20)])
def test_highs_keeps_optima_of_a_machine_shop_that_its_probing_loses(seed):
    """Solve cases of which HiGHS 1.16 gets the first nine wrong if it probes."""
    rng = np.random.default_rng(seed)
    n_requests = int(rng.integers(2, 5))
    instance = Instance.from_tables(
        rng.integers(1, 9, (n_requests, 1, 1)), [1], [[(0, 4), (0, 5)]],
        arrival_s=rng.integers(0, 4, n_requests), objective="mean_latency",
    )  # fmt: skip
    outcome = joint_milp.joint_milp(instance, **LONG)
    assert outcome.status is Status.OPTIMAL
    value_s = evaluate(instance, outcome.partition, outcome.schedule)
    assert value_s == pytest.approx(float(oracles.best_joint(instance)), rel=1e-9)


@pytest.mark.parametrize("method", ["partition_highs", "joint_milp"])
def test_highs_prints_nothing(method):
    """The constructor of HiGHS prints a line before a user can set an option."""
    objective = "makespan" if method == "joint_milp" else "p0"
    code = (
        "from hypsolve import Instance, solve\n"
        "i = Instance.from_tables([[[1, 2]]], [0, 0], [[(0, 0)], [(0, 0)]],"
        f" objective={objective!r})\n"
        f"assert solve(i, {method!r}).status == 'optimal'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""


def test_highs_keeps_the_optimum_that_its_own_presolve_loses():
    # HiGHS 1.14 with presolve calls 5 optimal
    instance = Instance.from_tables(
        [[[1.0, 1.0, 1.0, 0.0]]],
        [1, 1, 1, 1],
        [[(0, 4.0)], [(0, 4.0)]],
        reference_transfer_s=[[1.0, 3.0, 3.0, 1.0, 1.0]],
        objective="p0",
    )
    outcome = pulp_milp.partition_highs(instance, **LONG)
    assert evaluate(instance, outcome.partition) == 4.0
    assert outcome.bound_s == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("method", PARTITION)
def test_an_optimum_of_zero_has_no_gap(method):
    instance = Instance.from_tables(np.zeros((1, 1, 3)), [1, 1, 1], [[(0, 2)], [(0, 2)]])
    outcome = PARTITION[method](instance, **LONG)
    assert outcome.status is Status.OPTIMAL
    assert outcome.bound_s == 0


@cache
def long_chain(seed, objective):
    """Return a chain that takes solvers a while, and its optimum."""
    instance = chain(np.random.default_rng(seed), 40, 4, objective=objective)
    proven = cpsat.partition_cpsat(instance, **LONG)
    assert proven.status is Status.OPTIMAL
    return instance, evaluate(instance, proven.partition)


@pytest.mark.parametrize("method", PARTITION)
@pytest.mark.parametrize("time_limit_s", [1e-9, 0.01, 0.1])
def test_a_partition_bound_holds_at_the_time_limit(method, time_limit_s):
    for seed, objective in enumerate(OBJECTIVES):
        instance, best_s = long_chain(seed, objective)
        begun_s = sum(os.times()[:4])  # processor time, with that of child processes
        outcome = PARTITION[method](instance, time_limit_s=time_limit_s, seed=0)
        assert sum(os.times()[:4]) - begun_s < 10  # it does stop
        assert 0 <= outcome.bound_s <= best_s * (1 + 1e-9)
        assert (outcome.partition is None) == (outcome.status is Status.UNKNOWN)
        assert outcome.message


def test_cbc_is_not_believed_when_it_calls_a_problem_infeasible_at_the_limit():
    for seed in range(8):
        instance = chain(np.random.default_rng(seed), 40, 4, objective="p0")
        for time_limit_s in (0.005, 0.01, 0.02):
            outcome = pulp_milp.partition_cbc(instance, time_limit_s=time_limit_s, seed=0)
            assert outcome.status is not Status.INFEASIBLE


def test_a_number_of_workers_is_at_least_one():
    instance = chain(np.random.default_rng(0), 4, 2)
    with pytest.raises(
        ValueError, match=r"'partition_cpsat': workers must be at least 1, got 0"
    ):
        cpsat.partition_cpsat(instance, workers=0, **LONG)
    assert_proven(
        instance,
        cpsat.partition_cpsat(instance, workers=2, **LONG),
        best_partition_s(instance),
    )


def test_cbc_reports_the_bound_and_time_of_its_log():
    log = "Result - Stopped on time limit\n\nObjective value: 1.5\nLower bound:      1234.568\n"
    log += "Total time (CPU seconds):       0.01   (Wallclock seconds):       0.25\n"
    assert pulp_backend._logged(log, pulp_backend.LOWER_BOUND, -math.inf) == 1234.568
    assert pulp_backend._logged("killed", pulp_backend.LOWER_BOUND, -math.inf) == -math.inf
    assert pulp_backend._logged(log, pulp_backend.WALL_CLOCK, 9.0) == 0.25


@given(strategies.instances(objectives=("p0",)))
def test_an_arc_of_p0_is_on_a_node_that_holds_it(instance):
    arcs = partition_arcs(instance, "partition_highs")
    exact = oracles.Exact(instance)
    for a in range(len(arcs)):
        k, i, j = (int(v[a]) for v in (arcs.tier, arcs.first, arcs.end))
        assert exact.holders(k, i, j)
    for capacity in set(instance.node_bytes.tolist()):
        fits = holds(instance, capacity, arcs.first, arcs.end)
        for a, fit in enumerate(fits):
            assert fit == (exact.need(int(arcs.first[a]), int(arcs.end[a])) <= capacity)


@pytest.mark.parametrize("method", PARTITION)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("ratio", [1e9, 1e15])
def test_one_block_may_be_far_longer_than_the_others(method, objective, ratio):
    # the cheapest stage of each tier says nothing about the order of the optimum
    small = 1 / ratio
    instance = Instance.from_tables(
        [[[small, 1, small], [3 * small, 3, 3 * small]]],
        [0] * 3,
        [[(0, 0)], [(1, 0)]],
        objective=objective,
    )
    outcome = PARTITION[method](instance, **LONG)
    assert_proven(instance, outcome, best_partition_s(instance))
    assert outcome.partition.cuts == (0, 2, 3)


WIDE = st.floats(-9, 9).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("method", PARTITION)
@FEW
@given(strategies.instances(objectives=OBJECTIVES, seconds=WIDE, max_blocks=5, max_tiers=3))
def test_a_partition_is_enumeration_on_times_far_apart(method, instance):
    assert_proven(instance, PARTITION[method](instance, **LONG), best_partition_s(instance))


@given(strategies.instances(objectives=OBJECTIVES, seconds=WIDE, max_blocks=6))
def test_a_scale_holds_the_optimum_and_its_arcs(instance):
    arcs, scale = usable_arcs(instance, "partition_highs")
    best_s = best_partition_s(instance)
    assert math.isinf(scale.upper_s) == math.isinf(best_s)
    if math.isfinite(best_s):
        assert scale.min_s <= best_s * (1 + 1e-12)
        assert best_s <= scale.upper_s <= best_s * instance.n_tiers * (1 + 1e-11)
        best = [p for p in legal_partitions(instance) if evaluate(instance, p) == best_s]
        assert all(arcs_on(arcs, partition) for partition in best)
        assert (arcs.worst_s + arcs.added_s <= scale.upper_s).all()


def conclusion(instance, partition, **fields):
    fields = {"solver": "S", "bound_s": 0.0, "statistics": {}, **fields}
    return to_outcome(instance, partition, **fields)


def test_an_answer_that_contradicts_what_is_known_is_not_believed():
    instance = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
    best = Partition((0, 2, 4))  # 2 s
    right = conclusion(instance, best, bound_s=2.0, claimed_s=2.0, upper_s=4.0)
    assert (right.status, right.bound_s) == (Status.OPTIMAL, 2.0)
    assert right.message == "proved by S"
    for wrong in (
        {"bound_s": 2.1, "claimed_s": 2.1},  # above the decision
        {"bound_s": 1.5, "claimed_s": 1.5},  # the decision does not cost that little
        {"bound_s": 2.0, "claimed_s": 2.0, "upper_s": 1.9},  # above a known one
        {"infeasible": True, "upper_s": 2.0},
    ):
        outcome = conclusion(instance, best, min_s=1.0, **wrong)
        assert (outcome.status, outcome.bound_s) == (Status.FEASIBLE, 1.0)
        assert "its bound is not used" in outcome.message


def test_a_gap_is_not_called_proved():
    instance = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
    outcome = conclusion(instance, Partition((0, 2, 4)), bound_s=1.9)
    assert outcome.status is Status.FEASIBLE
    assert "proved" not in outcome.message
    outcome = conclusion(instance, None, bound_s=1.9, stopped="at the time limit")
    assert (outcome.status, outcome.bound_s) == (Status.UNKNOWN, 1.9)
    assert outcome.message == "S stopped at the time limit"


@pytest.mark.parametrize("method", PARTITION)
def test_a_partition_bound_is_never_less_than_the_cheapest_stages(method):
    instance = chain(np.random.default_rng(2), 60, 4, objective="path")
    _, scale = usable_arcs(instance, method)
    outcome = PARTITION[method](instance, time_limit_s=1e-9, seed=0)
    assert 0 < scale.min_s <= outcome.bound_s
    assert outcome.statistics["build_s"] > 0


WITH_START = {m: PARTITION[m] for m in ("partition_highs", "partition_cpsat")}


@cache
def min_path_s():
    """Return the smallest path time of the chain below, whichever objective it has there."""
    return best_partition_s(chain(np.random.default_rng(5), 40, 4, objective="path"))


@pytest.mark.parametrize("method", WITH_START)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_partition_warm_start_is_never_lost(method, objective):
    instance = chain(np.random.default_rng(5), 40, 4, objective=objective)
    solved = solve(instance, "even_split", time_limit_s=10)
    score = solved.objective_s
    own = Outcome(Status.FEASIBLE, solved.partition)
    for start in (solved, solved.partition, own, (solved.partition, None), True):
        outcome = WITH_START[method](instance, time_limit_s=1e-9, seed=0, warm_start=start)
        assert evaluate(instance, outcome.partition) <= score * (1 + 1e-12)
    # far worse than what the formulation keeps
    far = instance.replace(objective="path", kind_s=instance.kind_s)
    outcome = WITH_START[method](far, warm_start=solved.partition, **LONG)
    assert_proven(far, outcome, min_path_s())


@pytest.mark.parametrize("method", WITH_START)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_partition_improvements_are_reported_as_they_come(method, objective):
    instance = chain(np.random.default_rng(2), 10, 3, objective=objective)
    seen = []
    outcome = WITH_START[method](instance, on_improve=lambda *step: seen.append(step), **LONG)
    best_s = evaluate(instance, outcome.partition)
    assert seen
    for objective_s, bound_s, partition, made in seen:
        assert check(instance, partition) == []
        assert made is None
        assert evaluate(instance, partition) == objective_s
        assert bound_s <= best_s * (1 + 1e-9)
    assert min(step[0] for step in seen) == pytest.approx(best_s, rel=1e-6)


@pytest.mark.parametrize("method", [*WITH_START, *JOINT])
def test_an_option_that_is_wrong_is_named(method):
    function = (WITH_START | JOINT)[method]
    objective = "makespan" if method in JOINT else "path"
    instance = chain(np.random.default_rng(1), 4, 2, 2, objective=objective)
    for wrong in ("yes", (1, 2, 3), None, 1):
        with pytest.raises(TypeError, match=r"method '.*_.*': warm_start must be True, False"):
            function(instance, warm_start=wrong, **LONG)
    with pytest.raises(TypeError, match=r"method '.*_.*': warm_start must hold a partition"):
        function(instance, warm_start=(1, 2), **LONG)
    with pytest.raises(TypeError, match=r"method '.*_.*': on_improve must be callable or None"):
        if method == "cbc":
            joint_milp.joint_milp(instance, on_improve="x", **LONG)
        function(instance, on_improve="x", **LONG)
    if "cpsat" in method:
        for wrong, error, rule in (
            (0, ValueError, "at least 1"),
            (10**9, ValueError, "at most 10000"),
            (2.0, TypeError, "a whole number"),
        ):
            with pytest.raises(error, match=rf"_cpsat': workers must be {rule}, got {wrong}"):
                function(instance, workers=wrong, **LONG)
    broken = Partition((0, 4, 4))
    if method in WITH_START:
        with pytest.raises(ValueError, match="warm_start breaks a rule: blocks"):
            function(instance, warm_start=broken, **LONG)


# partition and schedule


@pytest.mark.parametrize("backend", JOINT)
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_requests_may_be_days_apart(backend, objective):
    instance = Instance.from_tables(
        [[[0.43, 0.3]], [[0.86, 0.2]], [[0.5, 0.21]], [[0.3, 0.3]]],
        [0, 0],
        [[(0, 0)], [(0, 0)]],
        arrival_s=[172800, 0, 86400, 86400.1],
        objective=objective,
    )
    best_s = oracles.best_joint(instance)
    for start in (True, False):
        outcome = JOINT[backend](instance, warm_start=start, **LONG)
        assert_proven(instance, outcome, best_s)


@pytest.mark.parametrize("backend", JOINT)
@FEW
@given(
    strategies.scheduled(
        seconds=strategies.POSITIVE, min_requests=2, max_requests=3, max_tiers=2, max_blocks=3
    ),
    st.lists(st.sampled_from([0, 50, 2.0**16]), min_size=3, max_size=3),
)
def test_a_joint_method_is_enumeration_on_arrivals_far_apart(backend, instance, pauses):
    pauses = np.array(pauses[: instance.n_requests])
    instance = instance.replace(arrival_s=instance.release_s + pauses)
    outcome = JOINT[backend](instance, warm_start=False, **LONG)
    assert_proven(instance, outcome, oracles.best_joint(instance))


@pytest.mark.parametrize("backend", JOINT)
@FEW
@given(strategies.scheduled(seconds=WIDE, max_requests=2, max_tiers=2, max_blocks=3))
def test_a_joint_method_is_enumeration_on_times_far_apart(backend, instance):
    outcome = JOINT[backend](instance, warm_start=False, **LONG)
    best_s = float(oracles.best_joint(instance))
    if math.isinf(best_s):
        assert outcome.status is Status.INFEASIBLE
        return
    score = evaluate(instance, outcome.partition, outcome.schedule)
    assert score == pytest.approx(best_s, rel=1e-6, abs=1e-12)
    assert outcome.bound_s <= best_s * (1 + 1e-12)


@FEW
@given(strategies.scheduled(limits=True, wide=True, max_requests=2, max_blocks=4, max_tiers=3))
def test_cbc_is_enumeration_under_limits_and_in_any_unit(instance):
    result = solve(instance, "joint_milp", backend="cbc")
    best_s = float(oracles.best_joint(instance))
    assert (result.status is Status.INFEASIBLE) == math.isinf(best_s)
    assert (result.status is Status.OPTIMAL) == math.isfinite(best_s)
    assert result.objective_s == pytest.approx(best_s, rel=1e-6, abs=0)


def test_cbc_repeats_itself_and_leaves_the_instance_alone():
    instance = chain(np.random.default_rng(6), 5, 2, 3, objective="mean_latency")
    digest = instance.digest()
    first, second = (solve(instance, "joint_milp", backend="cbc", seed=7) for _ in range(2))
    assert first.status is second.status is Status.OPTIMAL
    assert first.partition == second.partition
    assert first.bound_s == second.bound_s
    assert np.array_equal(first.schedule.end_s, second.schedule.end_s, equal_nan=True)
    assert instance.digest() == digest


@pytest.mark.parametrize("limit_s", [1e-9, 0.02, 0.1])
def test_a_bound_of_cbc_holds_at_the_time_limit_too(limit_s):
    instance = chain(np.random.default_rng(6), 6, 3, 3, objective="mean_latency")
    best_s = joint_cpsat.joint_cpsat(instance, **LONG)
    best_s = evaluate(instance, best_s.partition, best_s.schedule)
    result = solve(instance, "joint_milp", backend="cbc", time_limit_s=limit_s)
    assert result.status in (Status.FEASIBLE, Status.OPTIMAL)
    assert 0 < result.bound_s <= best_s * (1 + 1e-6)


def test_a_solver_that_returns_no_vector_has_found_nothing():
    # HiGHS used to end here without one, and to be asked for it
    instance = Instance.from_tables(
        [[[0.0003340564348252204], [585.6489149437296], [10758196525.752386]]],
        [3],
        [[(2, 2.27), (2, 9)], [(2, 6), (0, 2.98), (1, 9)]],
        [[[7.381094866032526e-09, 227.52490092938177]]],
        objective="mean_latency",
        allow_empty=True,
        min_blocks=[0, 1],
    )
    for backend in JOINT:
        for start in (True, False):
            outcome = JOINT[backend](instance, warm_start=start, **LONG)
            assert_proven(instance, outcome, oracles.best_joint(instance))


def test_requests_that_never_meet_need_no_order():
    instance = chain(np.random.default_rng(3), 4, 2, 4, objective="mean_latency")
    apart = instance.replace(arrival_s=[0.0, 86400.0, 172800.0, 259200.0])
    assert joint_milp.build(instance).before
    formulation = joint_milp.build(apart)
    assert not formulation.before
    bounds = [v.upBound for row in formulation.end for v in row]
    assert max(bounds) < 1e6  # not the days between them


@given(strategies.scheduled(), st.lists(st.sampled_from([0, 9, 4096]), min_size=3, max_size=3))
def test_what_is_dropped_leaves_a_best_schedule(instance, pauses):
    pauses = np.array(pauses[: instance.n_requests])
    instance = instance.replace(arrival_s=instance.release_s + pauses)
    best_s = float(oracles.best_joint(instance))
    if math.isinf(best_s):
        return
    tables = joint_tables(instance, "joint_milp")
    some = serial_latencies(tables) + instance.release_s
    mean = instance.objective == "mean_latency"
    some_s = (some - instance.release_s).mean() if mean else some.max()
    assert best_s <= some_s * (1 + 1e-12)  # a schedule has it
    less, last = drop_dominated(tables, instance.objective)
    assert (
        np.argsort(less.release, kind="stable") == np.argsort(tables.release, kind="stable")
    ).all()
    assert (less.release <= tables.release).all()
    assert np.allclose(less.origin_s + less.release, instance.release_s)
    assert (last >= windows(less).min_completion * (1 - 1e-9)).all()
    most = last.sum() if mean else last.max()
    assert less.objective_s(float(most), instance.objective, instance.release_s) >= best_s * (
        1 - 1e-9
    )


@pytest.mark.parametrize("backend", JOINT)
def test_a_result_is_a_warm_start(backend):
    instance = chain(np.random.default_rng(5), 8, 3, 6, objective="mean_latency")
    start = solve(instance, "hyperion")
    outcome = JOINT[backend](instance, time_limit_s=1e-9, seed=0, warm_start=start)
    score = evaluate(instance, outcome.partition, outcome.schedule)
    assert score <= start.objective_s * (1 + 1e-12)


@pytest.mark.parametrize("backend", JOINT)
@FEW
@given(strategies.scheduled(seconds=st.floats(1e-2, 1e2), max_tiers=2))
def test_a_joint_method_is_enumeration_on_numbers_that_round(backend, instance):
    outcome = JOINT[backend](instance, warm_start=False, **LONG)
    assert_proven(instance, outcome, oracles.best_joint(instance))


@pytest.mark.parametrize("backend", JOINT)
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_identical_nodes_lose_no_solution(backend, objective):
    instance = Instance.from_tables(
        [[[2, 1, 3]], [[1, 4, 1]], [[3, 3, 2]]],
        [1, 1, 1],
        [[(0, 2), (0, 2)], [(0, 2), (0, 2)]],
        transfer_s=[[[1, 2, 1, 0]]],
        arrival_s=[0, 1, 0],
        objective=objective,
    )
    best_s = oracles.best_joint(instance)
    warm = partition_and_schedule(instance)
    for start in (False, warm):
        outcome = JOINT[backend](instance, warm_start=start, **LONG)
        assert_proven(instance, outcome, best_s)


def partition_and_schedule(instance, policy="hypsched_rt"):
    cuts = [p.cuts for p in legal_partitions(instance)]
    partition = Partition(min(cuts))
    return partition, schedule(instance, partition, policy)


def legal_partitions(instance):
    inner = itertools.combinations_with_replacement(
        range(instance.n_blocks + 1), instance.n_tiers - 1
    )
    every = (Partition((0, *cuts, instance.n_blocks)) for cuts in inner)
    return [p for p in every if not check(instance, p)]


@pytest.mark.parametrize("backend", JOINT)
@pytest.mark.parametrize("arrival_s", [0.0, 2.0**40])
def test_a_request_that_takes_no_time_costs_none(backend, arrival_s):
    # a stage of no length at the start of another must not be timed behind it
    instance = Instance.from_tables(
        [[[1, 1], [4, 1], [1, 1]], [[1, 1], [0, 1], [1, 1]]],
        [1, 1],
        [[(1, 2)], [(0, 2), (0, 2)]],
        arrival_s=[0.5, 1],
        objective="mean_latency",
    )
    outcome = JOINT[backend](instance, **LONG)
    assert_proven(instance, outcome, oracles.best_joint(instance))
    # nothing to wait for, and classes far apart: units come from what there is
    idle = Instance.from_tables(
        [[[1.0], [0.0]]],
        [1],
        [[(0, 1), (1, 1)]],
        arrival_s=[arrival_s],
        objective="mean_latency",
    )
    outcome = JOINT[backend](idle, **LONG)
    assert outcome.status is Status.OPTIMAL
    assert outcome.bound_s == 0


@pytest.mark.parametrize("backend", JOINT)
def test_late_arrivals_do_not_loosen_the_proof(backend):
    early = chain(np.random.default_rng(3), 4, 2, 3, objective="mean_latency")
    late = early.replace(arrival_s=early.arrival_s + 2.0**20)  # 12 days
    best_s = float(oracles.best_joint(early))
    outcome = JOINT[backend](late, warm_start=False, **LONG)
    assert outcome.status is Status.OPTIMAL
    assert evaluate(late, outcome.partition, outcome.schedule) == pytest.approx(
        best_s, rel=2e-6
    )
    assert outcome.bound_s <= best_s * (1 + 1e-6)


@pytest.mark.parametrize("backend", JOINT)
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_a_warm_start_is_never_lost(backend, objective):
    instance = chain(np.random.default_rng(5), 8, 3, 6, objective=objective)
    warm = partition_and_schedule(instance)
    score = evaluate(instance, *warm)
    outcome = JOINT[backend](instance, time_limit_s=1e-9, seed=0, warm_start=warm)
    assert outcome.status in (Status.FEASIBLE, Status.OPTIMAL)
    assert evaluate(instance, outcome.partition, outcome.schedule) <= score * (1 + 1e-12)
    as_outcome = Outcome(Status.FEASIBLE, *warm)
    again = JOINT[backend](instance, time_limit_s=1e-9, seed=0, warm_start=as_outcome)
    assert evaluate(instance, again.partition, again.schedule) <= score * (1 + 1e-12)


@pytest.mark.parametrize("backend", JOINT)
def test_a_warm_start_that_is_optimal_is_proved_so(backend):
    instance = chain(np.random.default_rng(11), 4, 2, 3, objective="mean_latency")
    first = JOINT[backend](instance, warm_start=False, **LONG)
    again = JOINT[backend](instance, warm_start=first, **LONG)
    assert_proven(instance, again, oracles.best_joint(instance))


def test_hyperion_is_the_warm_start():
    instance = chain(np.random.default_rng(5), 8, 3, 6, objective="mean_latency")
    from hypsolve.solvers.joint.two_stage import hyperion

    answer = hyperion(instance, **LONG)
    score = evaluate(instance, answer.partition, answer.schedule)
    for joint in JOINT.values():
        outcome = joint(instance, time_limit_s=1e-9, seed=0)
        assert evaluate(instance, outcome.partition, outcome.schedule) <= score * (1 + 1e-12)


def test_a_warm_start_that_breaks_a_rule_is_refused():
    instance = chain(np.random.default_rng(5), 6, 2, 3, objective="makespan")
    partition, made = partition_and_schedule(instance)
    early = Schedule(made.node, made.start_s - 1, made.end_s - 1)
    for joint in JOINT.values():
        with pytest.raises(ValueError, match="warm_start breaks a rule: order"):
            joint(instance, warm_start=(partition, early), **LONG)
        with pytest.raises(TypeError, match="warm_start must hold a partition and a schedule"):
            joint(instance, warm_start=Outcome(Status.FEASIBLE, partition), **LONG)


@pytest.mark.parametrize("backend", ["cpsat", "highs"])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_improvements_are_reported_as_they_come(backend, objective):
    instance = chain(np.random.default_rng(2), 6, 2, 4, objective=objective)
    seen = []
    outcome = JOINT[backend](
        instance, warm_start=False, on_improve=lambda *step: seen.append(step), **LONG
    )
    best_s = evaluate(instance, outcome.partition, outcome.schedule)
    assert seen
    for objective_s, bound_s, partition, made in seen:
        assert check(instance, partition, made) == []
        assert evaluate(instance, partition, made) == objective_s
        assert bound_s <= best_s * (1 + 1e-9)
    assert min(step[0] for step in seen) == pytest.approx(best_s, rel=1e-6)


def test_cbc_cannot_report_improvements():
    instance = chain(np.random.default_rng(2), 4, 2, 2, objective="makespan")
    with pytest.raises(ValueError, match="on_improve needs backend='highs'"):
        joint_milp.joint_milp(instance, backend="cbc", on_improve=print, **LONG)
    with pytest.raises(ValueError, match=r"unknown backend 'gurobi'; choose one of highs, cbc"):
        joint_milp.joint_milp(instance, backend="gurobi", **LONG)


@given(strategies.scheduled())
def test_windows_hold_for_every_schedule(instance):
    tables = joint_tables(instance, "joint_milp")
    window = windows(tables)
    partitions = legal_partitions(instance)
    assert np.isinf(window.min_completion).any() == (not partitions)
    for partition in partitions:
        made = schedule(instance, partition)
        start, end = (t - tables.origin_s[:, None] for t in (made.start_s, made.end_s))
        used = made.node >= 0
        done = np.fmax.reduce(end, axis=1)
        assert (start >= window.head - 1e-9)[used].all()
        assert (done[:, None] >= end + window.tail - 1e-9)[used].all()
        assert (done >= window.min_completion - 1e-9).all()


# files


@pytest.mark.parametrize("method", ["partition_cbc", "partition_highs", "partition_scip"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_written_milp_has_the_same_optimum(method, objective, tmp_path):
    instance = chain(np.random.default_rng(13), 8, 3, objective=objective)
    best_s = best_partition_s(instance)
    for suffix in (".mps", ".lp"):
        path = tmp_path / f"model{suffix}"
        units = write_formulation(instance, method, path)
        assert units.scale_s * read_and_solve(path) == pytest.approx(best_s, rel=1e-6)
        assert repr(units.scale_s) in path.read_text().splitlines()[0]


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_a_written_joint_milp_has_the_same_optimum(objective, tmp_path):
    instance = chain(np.random.default_rng(13), 4, 2, 3, objective=objective)
    best_s = float(oracles.best_joint(instance))
    for suffix in (".mps", ".lp"):
        path = tmp_path / f"model{suffix}"
        scale_s, offset_s = write_formulation(instance, "joint_milp", path)
        assert scale_s * read_and_solve(path) + offset_s == pytest.approx(best_s, rel=1e-6)


def read_and_solve(path):
    """Return the optimum of a file: PuLP and CBC read .mps, HiGHS reads .lp."""
    if path.suffix == ".mps":
        _, problem = pulp.LpProblem.fromMPS(str(path))
        options = {"msg": False, "gapRel": 0.0}
        problem.solve(pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, **options))
        assert problem.sol_status == pulp.LpSolutionOptimal
        return problem.objective.value()
    import highspy

    highs = highspy.Highs()
    probing = 1 << 15  # a rule of presolve that cuts off optima
    for option in (
        ("output_flag", False), ("presolve_rule_off", probing), ("mip_rel_gap", 0.0),
    ):  # fmt: skip
        highs.setOptionValue(*option)
    highs.readModel(str(path))
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return highs.getObjectiveValue()


@pytest.mark.parametrize("objective", [*OBJECTIVES, "mean_latency", "makespan"])
def test_a_written_constraint_program_has_the_same_optimum(objective, tmp_path):
    joint = objective in ("mean_latency", "makespan")
    instance = chain(np.random.default_rng(17), 4, 2, 3 if joint else 1, objective=objective)
    best_s = float(oracles.best_joint(instance) if joint else best_partition_s(instance))
    method = "joint_cpsat" if joint else "partition_cpsat"
    for suffix in (".pbtxt", ".txt"):
        path = tmp_path / f"model{suffix}"
        scale_s, offset_s = write_formulation(instance, method, path)
        proto = text_format.Parse(path.read_text(), cp_model_pb2.CpModelProto())
        assert len(proto.variables) > 4
        model = cp_model.CpModel()
        model.proto.parse_text_format(text_format.MessageToString(proto))
        solver = cp_model.CpSolver()
        assert solver.status_name(solver.solve(model)) == "OPTIMAL"
        assert scale_s * solver.objective_value + offset_s == pytest.approx(best_s, rel=1e-6)


def test_a_formulation_that_cannot_be_written_says_what_can(tmp_path):
    instance = chain(np.random.default_rng(1), 4, 2)
    with pytest.raises(
        ValueError, match=r"'partition_cpsat' is written to \.pbtxt or \.txt, got '\.lp'"
    ):
        write_formulation(instance, "partition_cpsat", tmp_path / "a.lp")
    with pytest.raises(
        ValueError, match=r"\.lp: partition_cbc, .*\.txt: partition_cpsat, joint"
    ):
        write_formulation(instance, "joint_milp", tmp_path / "a.docx")
    with pytest.raises(ValueError, match="unknown formulation 'hypsplit_dp'; choose one of"):
        write_formulation(instance, "hypsplit_dp", tmp_path / "a.lp")
    with pytest.raises(
        ValueError, match=r"'joint_cpsat' .* objective must be mean_latency or mak"
    ):
        write_formulation(instance, "joint_cpsat", tmp_path / "a.txt")
    tight = instance.replace(objective="makespan", node_bytes=np.ones(instance.n_nodes))
    with pytest.raises(ValueError, match="no partition keeps the rules"):
        write_formulation(tight, "joint_milp", tmp_path / "a.lp")
    for method, name in (("partition_cpsat", "a.txt"), ("partition_highs", "a.mps")):
        with pytest.raises(FileNotFoundError):
            write_formulation(instance, method, tmp_path / "nowhere" / name)
    assert not list(tmp_path.iterdir())


# backends


@pytest.mark.parametrize(
    ("method", "module", "package"),
    [
        ("partition_highs", "highspy", "highspy"),
        ("partition_highs", "pulp", "pulp"),
        ("partition_cbc", "pulp", "pulp"),
        ("partition_cpsat", "ortools.sat.python.cp_model", "ortools"),
        ("partition_scip", "ortools.math_opt.python.mathopt", "ortools"),
        ("joint_cpsat", "ortools.sat.python.cp_model", "ortools"),
        ("joint_milp", "pulp", "pulp"),
        ("joint_milp", "highspy", "highspy"),
    ],
)
def test_a_missing_backend_is_named(method, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    functions = PARTITION | {"joint_cpsat": JOINT["cpsat"], "joint_milp": JOINT["highs"]}
    objective = "makespan" if method.startswith("joint") else "bottleneck"
    instance = chain(np.random.default_rng(1), 4, 2, objective=objective)
    with pytest.raises(ValueError, match=rf"{method}.*{package}.*pip install"):
        functions[method](instance, **LONG)


def test_a_cbc_that_cannot_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(tmp_path / "cbc"))
    instance = chain(np.random.default_rng(1), 4, 2)
    with pytest.raises(ValueError, match=r"partition_cbc.*cannot be run.*pip install"):
        pulp_milp.partition_cbc(instance, **LONG)


ALL_IN_ONE = """
import sys
import numpy as np
for module in sys.argv[1].split(","):
    __import__(module)
from hypsolve.problem.instance import Instance
from hypsolve.solvers.joint import cpsat as joint_cpsat, milp as joint_milp
from hypsolve.solvers.partition import cpsat, mathopt_mip as mip, pulp_milp as milp
one = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
for _ in range(2):
    for method in (milp.partition_highs, mip.partition_scip, cpsat.partition_cpsat,
                   milp.partition_cbc):
        assert method(one, time_limit_s=300, seed=0).partition.cuts == (0, 2, 4), method
both = one.replace(objective="makespan")
for method in (joint_milp.joint_milp, joint_cpsat.joint_cpsat):
    assert method(both, time_limit_s=300, seed=0, warm_start=False).bound_s > 3.9
print("all solved")
"""


@pytest.mark.parametrize(
    "first",
    [
        "highspy,pulp,ortools.sat.python.cp_model,ortools.math_opt.python.mathopt",
        "ortools.math_opt.python.mathopt,ortools.sat.python.cp_model,pulp,highspy",
    ],
)
def test_all_backends_live_in_one_process(first):
    run = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE, first], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "all solved"


HIGHS_OF_THE_USER = """
import highspy
import numpy as np

first = highspy.Highs()
first.setOptionValue("threads", 2)
first.minimize(first.addVariable(lb=1.0))

import hypsolve as hs
from tests.helpers.placement_oracles import random_placement

two = hs.Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
print(hs.solve(two, "partition_highs").status)
print(hs.solve(random_placement(np.random.default_rng(0)), "placement_highs").status)
"""


def test_highs_is_on_one_thread_where_the_process_has_used_several():
    """HiGHS refused the number of threads, and a placement was called infeasible."""
    run = subprocess.run(
        [sys.executable, "-c", HIGHS_OF_THE_USER], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-2:] == ["optimal", "optimal"]


def test_twin_formulations_name_the_same_rules():
    def rules(module):
        tree = ast.parse(inspect.getsource(module))
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        return {f.name for f in functions if f.name.startswith("_add_")}

    assert rules(joint_cpsat) == rules(joint_milp)
    assert (
        rules(pulp_milp) == rules(cpsat) == rules(mathopt_mip) | {"_add_hint"}
    )  # SCIP takes no start
    assert {"_add_cuts", "_add_precedence", "_add_no_overlap"} <= rules(joint_milp)


SCHEDULE = """
i = hs.Instance.from_tables(rng.uniform(1, 2, (30, 2, 20)), np.zeros(20),
    [[(0, 0), (1, 0)]] * 3, arrival_s=np.arange(30.0), objective="mean_latency")
"""
CHAIN = """
i = hs.Instance.from_tables(rng.uniform(1, 2, (1, 16, 60)), np.ones(60),
    [[(2 * k, 50), (2 * k + 1, 50)] for k in range(8)],
    transfer_s=rng.uniform(0, 1, (1, 7, 61)))
"""


@pytest.mark.parametrize(
    ("method", "module", "instance"),
    [
        ("joint_cpsat", cpsat_backend, SCHEDULE),
        ("joint_milp", pulp_backend, SCHEDULE),
        ("partition_scip", mathopt_mip, CHAIN),
    ],
)
def test_ctrl_c_stops_a_solver_and_is_raised(method, module, instance):
    """Ctrl-C ends the process: it is not taken for the time limit, nor kept until then.

    The signal comes after a second of processor time in the solver, and there are minutes to
    obey, so that the test does not depend on how busy the machine is.
    """
    script = (
        "import os, signal, threading, time\n"
        "import hypsolve as hs, numpy as np\n"
        f"import {module.__name__} as module\n"
        "real = module.interruptible\n"
        "def interrupt(begun_s):\n"
        "    while time.process_time() < begun_s + 1:\n"
        "        time.sleep(0.02)\n"
        "    print('interrupted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "def interruptible(*given):\n"
        "    begun_s = time.process_time()\n"
        "    threading.Thread(target=interrupt, args=(begun_s,), daemon=True).start()\n"
        "    return real(*given)\n"
        "module.interruptible = interruptible\n"
        f"rng = np.random.default_rng(0)\n{instance}"
        f"hs.solve(i, {method!r}, time_limit_s=900)\n"
        "print('went on', flush=True)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=450
    )
    assert child.stdout == "interrupted\n"
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
