"""Exact methods against enumeration in fractions; heuristics and policies against optima."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hypsolve.dispatch.policies import POLICIES
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.evaluation import check, evaluate
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Certificate, Partition, Status
from hypsolve.solve import METHODS, solve
from hypsolve.solvers.partition.hypsplit import pareto_frontier
from hypsolve.verify.bottleneck import verify_certificate
from tests.helpers import oracles, strategies

EXACT = [name for name, m in METHODS.items() if m.exact and m.decides == "partition"]
BACKENDS = [name for name in EXACT if name != "hypsplit_dp"]
JOINT = [name for name, m in METHODS.items() if m.exact and m.decides == "both"]
HEURISTICS = [name for name, m in METHODS.items() if not m.exact]
PARTITION_OBJECTIVES = strategies.PARTITION_OBJECTIVES
SLOW = settings(max_examples=max(settings.default.max_examples // 2, 10))
FEW = settings(max_examples=max(settings.default.max_examples // 4, 6))


def assert_optimal(result, best_s, rel):
    best_s = float(best_s)
    assert (result.status is Status.INFEASIBLE) == math.isinf(best_s)
    assert (result.status is Status.OPTIMAL) == math.isfinite(best_s)
    assert result.objective_s == pytest.approx(best_s, rel=rel, abs=0)
    assert result.bound_s <= best_s * (1 + 1e-12)


@given(strategies.instances(objectives=PARTITION_OBJECTIVES))
def test_hypsplit_dp_is_enumeration(instance):
    assert_optimal(solve(instance, "hypsplit_dp"), oracles.best(instance), 1e-12)


@given(strategies.instances(max_blocks=14, max_tiers=6))
def test_hypsplit_dp_is_the_quadratic_recurrence(instance):
    assert_optimal(solve(instance, "hypsplit_dp"), oracles.best_by_recurrence(instance), 1e-12)


@given(
    strategies.instances(
        objectives=PARTITION_OBJECTIVES, seconds=st.floats(1e-3, 1e3), max_blocks=5, max_tiers=3
    )
)
def test_hypsplit_dp_is_enumeration_on_numbers_that_round(instance):
    assert_optimal(solve(instance, "hypsplit_dp"), oracles.best(instance), 1e-12)


@given(
    strategies.instances(
        objectives=PARTITION_OBJECTIVES,
        limits="always",
        links="always",  # links leave gaps in the cuts that can be reached
        memory=False,
        min_tiers=2,
        max_blocks=8,
    )
)
def test_hypsplit_dp_keeps_pins_and_limits(instance):
    """Nothing else is in the way: limits bind, and can make an instance infeasible."""
    result = solve(instance, "hypsplit_dp")
    assert_optimal(result, oracles.best(instance), 1e-12)
    if result.certificate is not None:
        assert verify_certificate(instance, result.certificate) == []


@given(strategies.instances(objectives=PARTITION_OBJECTIVES, wide=True))
def test_hypsplit_dp_is_enumeration_in_any_unit(instance):
    assert_optimal(solve(instance, "hypsplit_dp"), oracles.best(instance), 1e-12)


@pytest.mark.parametrize("method", BACKENDS)
@SLOW
@given(strategies.instances(objectives=PARTITION_OBJECTIVES))
def test_a_backend_is_enumeration(method, instance):
    assert_optimal(solve(instance, method), oracles.best(instance), 1e-6)


@pytest.mark.parametrize("method", BACKENDS)
@FEW
@given(strategies.instances(objectives=PARTITION_OBJECTIVES, wide=True, max_tiers=3))
def test_a_backend_is_enumeration_in_any_unit(method, instance):
    assert_optimal(solve(instance, method), oracles.best(instance), 1e-6)


CONTESTED = strategies.scheduled(
    min_requests=2, min_tiers=2, seconds=strategies.POSITIVE, max_blocks=5
)


@given(CONTESTED)
def test_joint_methods_are_enumeration_where_requests_compete(instance):
    """All methods in one test: the enumeration takes longer than they do."""
    best_s = oracles.best_joint(instance)
    for method in JOINT:
        assert_optimal(solve(instance, method), best_s, 1e-6)


@pytest.mark.parametrize("method", JOINT)
@SLOW
@given(strategies.scheduled())
def test_a_joint_method_is_enumeration(method, instance):
    assert_optimal(solve(instance, method), oracles.best_joint(instance), 1e-6)


@pytest.mark.parametrize("method", JOINT)
@FEW
@given(strategies.scheduled(limits=True, max_requests=2, max_blocks=5))
def test_a_joint_method_is_enumeration_under_pins_and_limits(method, instance):
    assert_optimal(solve(instance, method), oracles.best_joint(instance), 1e-6)


@pytest.mark.parametrize("method", JOINT)
@FEW
@given(strategies.scheduled(wide=True, min_requests=2))
def test_a_joint_method_is_enumeration_in_any_unit(method, instance):
    assert_optimal(solve(instance, method), oracles.best_joint(instance), 1e-6)


@pytest.mark.parametrize("method", JOINT)
@FEW
@given(strategies.scheduled(max_tiers=2, min_requests=2))
def test_a_joint_method_is_enumeration_long_after_time_zero(method, instance):
    """Latencies are small differences of large times."""
    late = instance.replace(arrival_s=instance.arrival_s + 2.0**20)
    assert_optimal(solve(late, method), oracles.best_joint(late), 1e-6)


@pytest.mark.parametrize("limit_s", [1e-9, 0.02])
@pytest.mark.parametrize("method", EXACT + JOINT)
@FEW
@given(data=st.data())
def test_a_bound_holds_at_the_time_limit_too(method, limit_s, data):
    if method in JOINT:
        instance = data.draw(strategies.scheduled(wide=True))
        best_s = oracles.best_joint(instance)
    else:
        instance = data.draw(strategies.instances(objectives=PARTITION_OBJECTIVES, wide=True))
        best_s = oracles.best(instance)
    result = solve(instance, method, time_limit_s=limit_s)
    assert result.bound_s <= float(best_s) * (1 + 1e-12)
    assert result.objective_s >= float(best_s) * (1 - 1e-12)
    if result.status is Status.INFEASIBLE:
        assert math.isinf(best_s)


@pytest.mark.parametrize("method", [*HEURISTICS, "hypsplit_dp"])
@SLOW
@given(strategies.scheduled(limits=True))
def test_no_heuristic_beats_the_joint_optimum(method, instance):
    result = solve(instance, method)
    best_s = float(oracles.best_joint(instance))
    assert result.objective_s >= best_s * (1 - 1e-12)
    assert result.bound_s <= best_s * (1 + 1e-12)


@pytest.mark.parametrize("method", [name for name in HEURISTICS if name != "hyperion_plus"])
@SLOW
@given(strategies.instances(objectives=PARTITION_OBJECTIVES))
def test_no_heuristic_beats_the_best_partition(method, instance):
    result = solve(instance, method)
    best_s = float(oracles.best(instance))
    assert result.objective_s >= best_s * (1 - 1e-12)
    assert result.bound_s <= best_s * (1 + 1e-12)


@given(strategies.plans(strategies.scheduled()), st.integers(0, 3))
def test_no_policy_beats_the_joint_optimum(plan, seed):
    instance, cuts, _ = plan
    best_s = float(oracles.best_joint(instance))
    for policy in POLICIES:
        done = schedule(instance, Partition(cuts), policy, seed=seed)
        assert check(instance, Partition(cuts), done) == []
        assert evaluate(instance, Partition(cuts), done) >= best_s * (1 - 1e-12)


@given(strategies.plans(strategies.scheduled(max_requests=8, max_nodes=3, max_tiers=4)))
def test_hypsched_rt_is_its_event_by_event_model(plan):
    instance, cuts, _ = plan
    done = schedule(instance, Partition(cuts), "hypsched_rt")
    want = oracles.hypsched(instance, cuts)
    assert (done.node >= 0).sum() == len(want)
    for (r, k), (node, start, end) in want.items():
        assert done.node[r, k] == node
        assert done.start_s[r, k] == pytest.approx(float(start), rel=1e-12, abs=0)
        assert done.end_s[r, k] == pytest.approx(float(end), rel=1e-12, abs=0)


@given(strategies.instances())
def test_the_pareto_frontier_is_all_non_dominated_points(instance):
    got = pareto_frontier(instance)
    want = [(float(b), float(p)) for b, p in oracles.pareto(instance)]
    some, less = 1 + 1e-12, 1 - 1e-12  # points closer than rounding may be taken for one
    for b, p in want:
        assert any(g.bottleneck_s <= b * some and g.path_s <= p * some for g in got)
    for g in got:
        assert not any(
            b <= g.bottleneck_s * some
            and p <= g.path_s * some
            and (b < g.bottleneck_s * less or p < g.path_s * less)
            for b, p in want
        )
    for before, after in itertools.pairwise(got):
        assert before.bottleneck_s < after.bottleneck_s
        assert before.path_s > after.path_s
    exact = oracles.Exact(instance)
    for point in got:
        cuts = point.partition.cuts
        assert cuts in set(exact.partitions())
        assert point.bottleneck_s == pytest.approx(
            float(exact.bottleneck(cuts)), rel=1e-12, abs=0
        )
        assert point.path_s == pytest.approx(float(exact.path(cuts)), rel=1e-12, abs=0)


# --- adjacent floats --------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [True, False], ids=["smaller", "larger"])
@pytest.mark.parametrize("rule", strategies.RULES)
@given(value=st.floats(1e-6, 1e6), first=st.booleans())
def test_the_optimum_may_be_the_next_float(rule, fits, value, first):
    """Cuts 1 and 2 have adjacent bottlenecks; the larger wins if the smaller does not fit."""
    above = float(np.nextafter(value, math.inf))
    step = above - value
    # tier 0 takes `value` up to cut 1 and `above` up to cut 2; tier 1 takes next to nothing
    times = [[value, step, 0.0], [0.0, 0.0, 0.0]]
    if first:  # now on tier 1: cut 2 has the smaller bottleneck
        times = [[0.0, 0.0, 0.0], [0.0, step, value]]
    sizes = [1.0, 1.0, 1.0]
    tiers = [[(0, 3.0)], [(1, 3.0)]]
    if not fits:  # keep the stage with the smaller bottleneck from fitting on the other tier
        tiers = [[(0, 3.0)], [(1, 1.0)]] if not first else [[(0, 1.0)], [(1, 3.0)]]
    instance = Instance.from_tables(
        [times], sizes, tiers, stage_rule=rule, min_blocks=[1, 1], max_blocks=[2, 2]
    )
    scores = {
        cut: evaluate(instance, Partition((0, cut, 3)))
        for cut in (1, 2)
        if check(instance, Partition((0, cut, 3))) == []
    }
    assert len(scores) == 1 + fits
    result = solve(instance, "hypsplit_dp")
    assert result.objective_s == min(scores.values())
    assert verify_certificate(instance, result.certificate) == []


@given(st.integers(1, 60), st.floats(1e-3, 1e3), st.sampled_from([1, 2, 3, 7]))
def test_one_stage_of_any_duration_is_feasible(n_blocks, block_s, n_nodes):
    """1 / (1 / t) may round above t, which must not make the instance infeasible."""
    instance = Instance.from_tables(
        np.full((1, 1, n_blocks), block_s), np.zeros(n_blocks), [[(0, 0)] * n_nodes]
    )
    result = solve(instance, "hypsplit_dp")
    assert result.status is Status.OPTIMAL
    assert result.objective_s == pytest.approx(n_blocks * block_s / n_nodes, rel=1e-12, abs=0)
    assert verify_certificate(instance, result.certificate) == []


@pytest.mark.parametrize("objective", PARTITION_OBJECTIVES)
@pytest.mark.parametrize("ratio", [1e3, 1e7, 1e15])
def test_a_class_may_be_far_slower_on_blocks_it_is_not_given(objective, ratio):
    """Differences of plain prefix sums would lose small numbers among large ones."""
    slow = 0.1 * ratio
    instance = Instance.from_tables(
        [[[0.1, slow, slow], [slow, 0.3, 0.1]]],
        [0, 0, 0],
        [[(0, 0)], [(1, 0)]],
        objective=objective,
    )
    for method in EXACT:
        assert_optimal(solve(instance, method), oracles.best(instance), 1e-6)
    assert_optimal(solve(instance, "hypsplit_dp"), oracles.best(instance), 1e-12)


# --- certificates -----------------------------------------------------------------------------


@given(strategies.instances(objectives=PARTITION_OBJECTIVES, max_blocks=9, max_tiers=5))
def test_certificates_are_confirmed(instance):
    result = solve(instance, "hypsplit_dp")
    if result.status is Status.INFEASIBLE:
        assert result.certificate.kind == "infeasible"
    elif instance.objective == "bottleneck":
        assert result.certificate.kind == "bottleneck"
        assert result.certificate.cuts == result.partition.cuts
    if result.certificate is not None:
        assert verify_certificate(instance, result.certificate) == []


FORGERIES = {
    "value raised": lambda c: {"value_s": c.value_s * (1 + 1e-6)},
    "value lowered": lambda c: {"value_s": c.value_s * (1 - 1e-6)},
    "bound raised": lambda c: {"bound_s": c.value_s * (1 + 1e-6)},
    "bound lowered": lambda c: {"bound_s": c.value_s * (1 - 1e-6)},
    "bound of nothing": lambda c: {"bound_s": 0.0},
    "bound of nan": lambda c: {"bound_s": math.nan},
    "value of inf": lambda c: {"value_s": math.inf},
    "all raised": lambda c: {"value_s": c.value_s * 2, "bound_s": c.value_s * (2 - 2e-9)},
    "all lowered": lambda c: {"value_s": c.value_s / 2, "bound_s": c.value_s * (0.5 - 5e-10)},
    "no cuts": lambda c: {"cuts": None},
    "a cut too few": lambda c: {"cuts": c.cuts[:-1]},
    "cuts reversed": lambda c: {"cuts": c.cuts[::-1]},
    "infeasible": lambda c: {"kind": "infeasible", "value_s": math.inf, "bound_s": math.inf},
    "unknown kind": lambda c: {"kind": "path"},
}


@given(instance=strategies.instances())
def test_forged_certificates_are_refuted(instance):
    result = solve(instance, "hypsplit_dp")
    assume(result.status is Status.OPTIMAL and result.objective_s > 0)
    for forged, changes in FORGERIES.items():
        certificate = dataclasses.replace(result.certificate, **changes(result.certificate))
        assert verify_certificate(instance, certificate), forged


@given(instance=strategies.instances(), data=st.data())
def test_a_certificate_of_a_worse_partition_is_refuted(instance, data):
    """The certificate is consistent: its cuts have its value."""
    exact = oracles.Exact(instance)
    scores = {cuts: exact.bottleneck(cuts) for cuts in exact.partitions()}
    best_s = min(scores.values(), default=math.inf)
    worse = sorted(cuts for cuts, s in scores.items() if best_s * (1 + 1e-6) < s < math.inf)
    assume(worse)
    cuts = data.draw(st.sampled_from(worse))
    value_s = float(scores[cuts])
    forged = Certificate(
        kind="bottleneck", value_s=value_s, bound_s=value_s * (1 - 1e-9), cuts=cuts
    )
    assert verify_certificate(instance, forged)


@given(instance=strategies.instances(), data=st.data())
def test_a_certificate_with_illegal_cuts_is_refuted(instance, data):
    exact = oracles.Exact(instance)
    cuts = data.draw(strategies.partitions(instance)).cuts
    assume(cuts not in set(exact.partitions()) or exact.bottleneck(cuts) == math.inf)
    best_s = oracles.best(instance)
    value_s = 1.0 if math.isinf(best_s) else float(best_s)
    forged = Certificate(
        kind="bottleneck", value_s=value_s, bound_s=value_s * (1 - 1e-9), cuts=cuts
    )
    assert verify_certificate(instance, forged)


# --- invariance: more of anything never makes the optimum worse -------------------------------


def optimum_s(given_):
    return solve(Instance.from_tables(**given_), "hypsplit_dp").objective_s


FRIENDLY = strategies.arguments(
    objectives=PARTITION_OBJECTIVES, rules=("pooled", "fastest"), max_blocks=12, max_tiers=5
)


@given(FRIENDLY, st.data())
def test_more_of_anything_is_never_worse(given_, data):
    before_s = optimum_s(given_)
    k = data.draw(st.integers(0, len(given_["tiers"]) - 1), "tier")
    more = dict(given_)
    what = data.draw(st.sampled_from(["memory", "node", "links", "blocks", "freedom"]))
    if what == "memory":
        more["tiers"] = [[(c, m * 1.5 + 1) for c, m in tier] for tier in given_["tiers"]]
    elif what == "node":
        more["tiers"] = [
            [*tier, data.draw(st.sampled_from(tier))] if at == k else tier
            for at, tier in enumerate(given_["tiers"])
        ]
    elif what == "links":
        for field in ("transfer_s", "occupancy_s", "reference_transfer_s"):
            if field in given_:
                more[field] = (np.array(given_[field]) / 2).tolist()
    elif what == "blocks":
        for field in ("block_s", "reference_s"):
            if field in given_:
                more[field] = (np.array(given_[field]) / 2).tolist()
    else:
        for field in ("pinned", "min_blocks", "max_blocks"):
            more.pop(field, None)
        more["allow_empty"] = given_["allow_empty"] or given_["objective"] != "p0"
        more["overlap"] = True
    assert optimum_s(more) <= before_s * (1 + 1e-12)


@given(FRIENDLY, st.sampled_from([2.0**-30, 2.0**20]))
def test_the_optimum_is_in_the_units_of_its_input(given_, unit):
    scaled = dict(given_)
    for field in (
        "block_s",
        "transfer_s",
        "occupancy_s",
        "reference_s",
        "reference_transfer_s",
    ):
        if field in given_:
            scaled[field] = (np.array(given_[field]) * unit).tolist()
    assert optimum_s(scaled) == pytest.approx(optimum_s(given_) * unit, rel=1e-12, abs=0)


@given(strategies.arguments(rules=("pooled", "fastest", "slowest")))
def test_a_free_last_tier_that_may_stay_empty_changes_nothing_for_the_worse(given_):
    given_ = given_ | {"allow_empty": True, "transfer_s": None, "occupancy_s": None}
    given_.pop("reference_transfer_s", None)
    wider = given_ | {"tiers": [*given_["tiers"], [(0, 0)]]}
    for field in ("min_blocks", "max_blocks"):
        if field in given_:
            wider[field] = [*given_[field], 0 if field == "min_blocks" else 9]
    assert optimum_s(wider) <= optimum_s(given_) * (1 + 1e-12)
