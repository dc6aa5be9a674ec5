"""`joint_exact`: bounds hold, parts agree, and the search stops as it should."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve import Instance, Partition, Status, check, solve
from hypsolve.kernels.subgradient import ascend_in_ticks as ascend
from hypsolve.solvers.joint import beam_search
from hypsolve.solvers.joint.beam_search import beam_search as search_schedules
from hypsolve.solvers.joint.joint_exact import PARTS
from hypsolve.solvers.joint.joint_exact_params import JointExactParams
from hypsolve.solvers.joint.lagrangian_bound import Multipliers, to_ticks
from hypsolve.solvers.joint.partition_boxes import (
    PartitionBox,
    PartitionCounter,
    all_partitions,
    relax,
)
from hypsolve.solvers.joint.tables import joint_tables
from hypsolve.verify import verify
from instances.frontier import frontier, profiled
from tests.helpers import oracles, strategies


def value_of(instance, tables, objective_s):
    """Convert an objective to the sum of the completions (makespan: to the last one)."""
    if instance.objective == "makespan":
        return float(objective_s) - float(tables.origin_s.max())
    offset_s = float((tables.origin_s - instance.release_s).mean())
    return (float(objective_s) - offset_s) * instance.n_requests


def span_of(shop):
    """Return a time within which all requests can be served."""
    least = shop.release.max() + shop.travel.sum()
    return float(least + shop.service[np.isfinite(shop.service)].sum()) + 1


def searched(shop, multipliers, makespan, target, width, stopped=lambda: False, seed=0):
    """Run the beam search, with a deadline if the last completion counts."""
    if makespan:
        target = min(target, 2 * span_of(shop))
        shop = shop._replace(deadline=target)
    return search_schedules(shop, multipliers, target, width, stopped, seed, 200)


@given(strategies.scheduled(), st.integers(1, 40), st.integers(0, 99))
def test_any_multipliers_bound_every_partition(instance, n_ticks, seed):
    best_s = oracles.best_joint(instance)
    tables = joint_tables(instance, "joint_exact")
    if math.isinf(best_s):
        return
    relaxation = relax(tables, all_partitions(tables))
    if relaxation is None or relaxation.shop is None:
        return
    shop = relaxation.shop
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (shop.service.shape[1], n_ticks)).clip(0)
    ticks = to_ticks(shop, span_of(shop) / n_ticks)
    best = value_of(instance, tables, best_s)
    aim, most = 1.1 * best + 1, best
    if instance.objective == "makespan":
        shop = shop._replace(deadline=best * (1 + 1e-9) + 1e-9)  # a schedule keeps it
        aim, most = 0.1 * shop.deadline, 0.0
    for n_steps in (1, 8):
        bound = ascend(shop, ticks, values, aim, math.inf, n_steps, 0.3, 0.01)
        assert bound <= most * (1 + 1e-9) + 1e-9
        assert (values >= 0).all()
        again = ascend(shop, ticks, values, aim, math.inf, 1, 0.3, 0.01)
        assert again == pytest.approx(
            bound, rel=1e-12, abs=1e-12
        )  # the multipliers left behind have it


def test_a_makespan_whose_completions_nearly_agree_is_not_refuted():
    instance = Instance.from_tables(
        block_s=[[[8, 5, 1, 1], [2, 3, 3, 0.25], [2, 4, 4, 1]]],
        block_bytes=[1, 1, 1, 1],
        tiers=[[(0, 2), (2, 4)], [(1, 4)]],
        objective="makespan",
        allow_empty=True,
        arrival_s=[1, 4],
        transfer_s=[[[8, 8, 5, 1, 1]], [[2, 3, 8, 1, 1]]],
        occupancy_s=[[[0, 0, 0, 0, 0]], [[0, 0, 0, 0, 0]]],
        tied_bytes=0.5,
    )
    result = solve(instance, "joint_exact")
    assert result.objective_s == 20.5 == oracles.best_joint(instance)  # the first arrives at 1
    assert result.bound_s <= 20.5


@given(strategies.scheduled(max_tiers=2), st.integers(1, 4), st.integers(0, 99))
def test_a_beam_search_of_any_width_bounds_its_partition(instance, width, seed):
    tables = joint_tables(instance, "joint_exact")
    rng = np.random.default_rng(seed)
    for first, end in zip(tables.first[0].tolist(), tables.end[0].tolist(), strict=True):
        cuts = (first, end, tables.n_blocks)[: tables.n_tiers + 1]
        pinned = instance.replace(cut_min=np.array(cuts), cut_max=np.array(cuts))
        best_s = oracles.best_joint(pinned)
        relaxation = relax(tables, PartitionBox(cuts, cuts))
        assert (relaxation is None) == math.isinf(best_s)
        if relaxation is None:
            continue
        shop = relaxation.shop
        values = rng.uniform(0, 0.2, (shop.service.shape[1], 16))
        multipliers = Multipliers(to_ticks(shop, 0.7), values)
        best = value_of(instance, tables, best_s)
        makespan = instance.objective == "makespan"
        found = searched(shop, multipliers, makespan, math.inf, width, seed=seed)
        assert found.bound <= best * (1 + 1e-9) + 1e-9 <= found.value * (1 + 2e-9) + 2e-9
        if found.is_complete:
            assert found.value == pytest.approx(best, rel=1e-9, abs=1e-9)
        above = searched(shop, multipliers, makespan, best * 1.01 + 1e-6, 10**4, seed=seed)
        assert above.is_complete and above.value == pytest.approx(best, rel=1e-9, abs=1e-9)
        less = best * (1 - 1e-6) - 1e-9
        none = searched(shop, multipliers, makespan, less, 10**4, seed=seed)
        assert none.is_complete and math.isinf(none.value) and none.bound == less


@pytest.mark.parametrize("family", [frontier, profiled])
@pytest.mark.parametrize("burst", [False, True])
def test_the_optimum_does_not_need_any_part(family, burst):
    instance = family(4, (2, 1, 2), seed=3, burst=burst, n_blocks=10)
    full = solve(instance, "joint_exact")
    assert full.status is Status.OPTIMAL
    assert full.objective_s < solve(instance, "hyperion").objective_s * (1 + 1e-9)
    for part in PARTS:
        result = solve(
            instance, "joint_exact", disable=[part], warm_start=part == "partition_boxes"
        )
        assert result.status is Status.OPTIMAL, part
        assert result.objective_s == pytest.approx(full.objective_s, rel=1e-6), part


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_twins_of_nodes_and_requests(objective):
    """Identical nodes and requests, where dominance prunes most, against CP-SAT."""
    instance = Instance.from_tables(
        [[[2, 3, 1, 2], [3, 4, 2, 2]]],
        [1, 1, 1, 1],
        [[(0, 3), (0, 3), (1, 3)], [(1, 3), (1, 3)]],
        transfer_s=[[[1, 2, 1, 3, 0]]],
        arrival_s=[0, 0, 0, 1, 6],
        objective=objective,
    )
    ours, theirs = (solve(instance, method) for method in ("joint_exact", "joint_cpsat"))
    assert ours.status is theirs.status is Status.OPTIMAL
    assert ours.objective_s == pytest.approx(theirs.objective_s, rel=1e-6)


def test_eight_requests_are_proved_and_the_message_says_by_what():
    instance = frontier(8, seed=2)
    result = solve(instance, "joint_exact")
    assert result.status is Status.OPTIMAL
    counts = result.statistics
    pruned = [counts[f"n_{part}"] for part in ("pruned_in_boxes", "pruned_single")]
    assert all(f"{n} " in result.message for n in [*pruned, counts["n_searched"]])
    assert sum(pruned) > counts["n_searched"] > 0


def test_bounds_rise_and_answers_improve():
    instance = frontier(8, seed=1)
    answers, bounds = [], []
    result = solve(
        instance,
        "joint_exact",
        on_improve=lambda objective_s, bound_s, *_: answers.append((objective_s, bound_s)),
        on_bound=bounds.append,
    )
    assert bounds == sorted(set(bounds)) and len(bounds) > 3
    values = [objective_s for objective_s, _ in answers]
    assert values == sorted(set(values), reverse=True)
    assert values[-1] == result.objective_s
    assert max(bounds) <= result.objective_s
    assert all(bound_s <= result.objective_s for _, bound_s in answers)


def test_at_the_time_limit_the_bound_holds():
    """A fast machine may complete the proof within the last limits."""
    instance = frontier(8, seed=1)
    best_s = solve(instance, "joint_exact").objective_s
    for limit_s in (1e-3, 0.1, 0.2):
        result = solve(instance, "joint_exact", time_limit_s=limit_s)
        assert limit_s > 1e-3 or "at the time limit" in result.message
        assert result.bound_s <= best_s * (1 + 1e-9) <= result.objective_s * (1 + 2e-9)


def test_where_memory_ends_the_bound_holds():
    instance = frontier(6, seed=1, burst=True)
    best = solve(instance, "joint_exact")
    result = solve(instance, "joint_exact", memory_bytes=1.0, disable=["lagrangian_bound"])
    assert result.status is Status.FEASIBLE
    assert "where the memory for beam search ends" in result.message
    assert result.bound_s <= best.objective_s <= result.objective_s * (1 + 1e-9)


def test_an_upper_bound_says_what_is_looked_for():
    instance = frontier(6, seed=4)
    best = solve(instance, "joint_exact")
    above = solve(instance, "joint_exact", upper_bound=best.objective_s * 1.001)
    assert above.status is Status.OPTIMAL
    assert above.objective_s == pytest.approx(best.objective_s, rel=1e-9)
    below_s = best.objective_s * 0.99
    below = solve(instance, "joint_exact", upper_bound=below_s)
    assert below.status is Status.FEASIBLE
    assert "nothing better than upper_bound" in below.message
    assert below.bound_s == pytest.approx(below_s, rel=1e-6)
    assert below.bound_s <= below_s


def test_wrong_options_are_named():
    instance = frontier(2, seed=1, n_blocks=6)
    for options, error, rule in (
        ({"on_bound": 3}, TypeError, "on_bound must be callable or None, got 3"),
        ({"upper_bound": -1}, ValueError, "upper_bound must be"),
        ({"upper_bound": math.nan}, ValueError, "upper_bound must be"),
        ({"memory_bytes": 0}, ValueError, "memory_bytes must be"),
        (
            {"disable": "dominance"},
            TypeError,
            "disable must be a sequence of names, got 'dominance'",
        ),
        ({"disable": ["dominate"]}, ValueError, "unknown part 'dominate'; did you mean"),
        ({"without": ["dominance"]}, TypeError, "unknown option 'without'"),
        ({"params": {}}, TypeError, "params must be a JointExactParams"),
    ):
        with pytest.raises(error, match=rule):
            solve(instance, "joint_exact", **options)


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
@pytest.mark.parametrize(
    "changes",
    [
        {"min_ticks": 1, "max_ticks": 16, "fine_factor": 1},
        {"box_steps": 1, "rough_steps": 1, "fine_steps": 1, "max_deadlines": 1},
        {"first_width": 1, "width_factor": 2, "max_compared": 1},
        {"ticks_per_stage": 0.5, "first_step": 1.5, "last_step": 1.0, "deadline_aim": 1.0},
    ],
    ids=["ticks", "steps", "width", "lengths"],
)
def test_the_optimum_does_not_depend_on_params(changes, objective):
    instance = frontier(4, (2, 1, 2), seed=3, n_blocks=8, objective=objective)
    plain = solve(instance, "joint_exact")
    result = solve(instance, "joint_exact", params=JointExactParams(**changes))
    assert plain.status is result.status is Status.OPTIMAL
    assert result.objective_s == pytest.approx(plain.objective_s, rel=1e-6)
    verify(instance, result.to_dict())


def test_a_certificate_keeps_to_its_share_of_the_memory():
    instance = frontier(4, (2, 1, 2), seed=3, n_blocks=8)
    params = JointExactParams(max_proof_share=1e-9)
    result = solve(instance, "joint_exact", params=params)
    assert result.status is Status.OPTIMAL and result.certificate is None


@pytest.mark.parametrize(
    ("changes", "error", "rule"),
    [
        ({"fine_steps": 0}, ValueError, "fine_steps must be at least 1, got 0"),
        ({"fine_steps": 2.0}, TypeError, "fine_steps must be a whole number"),
        ({"width_factor": 1}, ValueError, "width_factor must be at least 2, got 1"),
        ({"first_step": 3}, ValueError, "first_step must be at most 2, got 3"),
        ({"last_step": 0}, ValueError, "last_step must be positive"),
        ({"min_improvement": 1e-6}, ValueError, "min_improvement must be below 1e-06"),
        ({"min_ticks": 2000}, ValueError, "max_ticks must be at least min_ticks, 2000"),
        ({"fine_factor": 32}, ValueError, r"max_ticks \* fine_factor must be at most 16384"),
        ({"max_proof_share": 1.5}, ValueError, "max_proof_share must be at most 1"),
    ],
)
def test_wrong_params_are_named(changes, error, rule):
    with pytest.raises(error, match=f"joint_exact params: {rule}"):
        JointExactParams(**changes)


@given(strategies.scheduled(limits=True))
def test_partitions_are_counted(instance):
    tables = joint_tables(instance, "joint_exact")
    if any(not len(first) for first in tables.first):
        return
    box = all_partitions(tables)
    inner = itertools.combinations_with_replacement(
        range(instance.n_blocks + 1), instance.n_tiers - 1
    )
    cuts = ((0, *each, instance.n_blocks) for each in inner)
    legal = sum(not check(instance, Partition(each)) for each in cuts)
    parts = [box] if box.is_single else list(box.branch())
    assert sum(PartitionCounter(tables).count(part) for part in parts) == legal
    assert PartitionCounter(tables).count(box) == legal


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_a_beam_search_stopped_anywhere_bounds_its_partition(monkeypatch, objective):
    """Stop after each expansion: the children of earlier entries count, too."""
    monkeypatch.setattr(beam_search, "PARENTS", 1)
    instance = frontier(4, seed=5, n_blocks=8, objective=objective)
    proven = solve(instance, "joint_exact")
    cuts = proven.partition.cuts
    tables = joint_tables(instance, "joint_exact")
    shop = relax(tables, PartitionBox(cuts, cuts)).shop
    best = value_of(instance, tables, proven.objective_s)
    values = np.zeros((shop.service.shape[1], 64))
    ticks = to_ticks(shop, span_of(shop) / 64)
    ascend(shop, ticks, values, best, best, 100, 0.3, 0.01)
    multipliers = Multipliers(ticks, values)  # so good that most partial schedules are worse
    makespan = objective == "makespan"
    for width in (3, 50):
        n_looks, complete = 0, False
        while not complete and n_looks < 200:
            looks = iter(range(n_looks))
            found = searched(
                shop, multipliers, makespan, math.inf, width,
                lambda looks=looks: next(looks, None) is None,
            )  # fmt: skip
            complete = math.isfinite(found.value)
            assert found.bound <= best * (1 + 1e-9), n_looks
            n_looks += 1
        assert n_looks > 30
