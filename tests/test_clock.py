"""Results at any clock: times of day of 1e12 s lose no digit of a latency or a makespan."""

import copy

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hypsolve import METHODS, Instance, Partition, check, evaluate, schedule, solve
from hypsolve.verify import Refuted, verify
from hypsolve.verify.reading import not_covered
from tests.helpers import oracles, strategies

ORIGINS_S = (0.0, 1e3, 1e6, 1.7e9, 1e12)
FEW = settings(max_examples=max(settings.default.max_examples // 4, 8))


def at(instance, origin_s):
    """Shift the arrivals, which must be multiples of 2**-10 s so that no digit is lost."""
    arrival_s = np.round(instance.arrival_s * 2**10) / 2**10
    return instance.replace(arrival_s=arrival_s - arrival_s.min() + origin_s)


@FEW
@given(strategies.scheduled(), st.sampled_from(ORIGINS_S))
def test_joint_answers_do_not_depend_on_the_clock(instance, origin_s):
    near, far = at(instance, 0.0), at(instance, origin_s)
    np.testing.assert_array_equal(far.release_s, near.release_s)
    for method in ("joint_exact", "hyperion", "heft", "hyperion_plus"):
        here, there = solve(near, method), solve(far, method)
        assert (here.objective_s, here.bound_s) == (there.objective_s, there.bound_s)
        assert here.partition == there.partition
    exact_s = oracles.best_joint(far)
    best = solve(far, "joint_exact")
    if best.partition is not None:
        assert best.objective_s == pytest.approx(float(exact_s), rel=1e-9)
        assert best.bound_s <= exact_s


@FEW
@given(strategies.scheduled(), st.sampled_from(ORIGINS_S))
def test_certificates_are_verified_at_any_clock(instance, origin_s):
    far = at(instance, origin_s)
    result = solve(far, "joint_exact")
    assume(result.certificate is not None)
    document = result.to_dict()
    verify(far, document)
    if result.partition is None or not result.objective_s:
        return
    claimed = document["objective_s"] * (1 - 1e-7)  # no rounding of late times excuses it
    document["objective_s"] = document["certificate"]["value_s"] = claimed
    document["gap"] = (claimed - document["bound_s"]) / claimed
    with pytest.raises(Refuted):
        verify(far, document)


@pytest.mark.parametrize("origin_s", ORIGINS_S)
def test_two_requests_of_one_block_at_any_clock(origin_s):
    """At 1.7e9 s, a mean latency that was 1e-5 too small was verified."""
    instance = Instance.from_tables(
        [[[0.125]]], [1], [[(0, 1)]], arrival_s=[origin_s, origin_s + 0.0625],
        objective="mean_latency",
    )  # fmt: skip
    result = solve(instance, "joint_exact")
    assert result.objective_s == pytest.approx((0.125 + 0.1875) / 2, rel=1e-12)
    verify(instance, result.to_dict())


def test_a_makespan_counts_from_the_first_arrival():
    """Gaps from time 0 called a makespan optimal that was 3 % too long."""
    late = 1e6
    instance = Instance.from_tables(
        [[[3.0]], [[2.0]]], [1], [[(0, 1), (0, 1)]], arrival_s=[late, late + 1],
        objective="makespan",
    )  # fmt: skip
    greedy = schedule(instance, Partition((0, 1)), lambda state, request: 0)
    assert evaluate(instance, Partition((0, 1)), greedy) == 5.0
    assert check(instance, Partition((0, 1)), greedy) == []
    result = solve(instance, "joint_exact")
    assert (str(result.status), result.objective_s) == ("optimal", 3.0)
    assert result.gap < 1e-9
    for method in ("joint_cpsat", "joint_milp"):
        assert METHODS[method].exact
        assert solve(instance, method).objective_s == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("extrapolated", lambda instance: instance.replace(extrapolated=True)),
        ("names", lambda instance: instance.replace(tier_names=instance.tier_names[::-1])),
        ("names", lambda instance: instance.replace(node_names=instance.node_names[::-1])),
    ],
)
def test_names_and_extrapolated_are_covered(field, change):
    """Both could be changed in the instance, and the result was still verified."""
    instance = Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]])
    document = solve(instance, "hypsplit_dp").to_dict()
    verify(instance, document)
    other = change(instance)
    assert other.digest() == instance.digest()
    with pytest.raises(Refuted, match="names_digest"):
        verify(other, document)
    with pytest.raises(Refuted, match="extrapolated"):
        verify(instance, document | {"extrapolated": True})


def of_version_2(document, first_s):
    """Write a result as version 2 did: times of schedules, and a makespan, from time 0."""
    old = copy.deepcopy(document) | {"version": 2}
    del old["names_digest"]
    for key in ("start_s", "end_s"):
        old["schedule"][key] = [[x + first_s for x in row] for row in old["schedule"][key]]
    if old["objective"] == "makespan":
        for key in ("objective_s", "bound_s"):
            old[key] += first_s
        for key in ("value_s", "bound_s"):
            old["certificate"][key] += first_s
        old["gap"] = (old["objective_s"] - old["bound_s"]) / old["objective_s"]
    return old


EARLY_S = (0.0, 1.5, 1e3)  # first arrivals of earlier versions that are read


def three_requests(origin_s, objective):
    return Instance.from_tables(
        [[[0.7, 0.3]], [[0.9, 0.4]], [[0.2, 0.6]]], [1, 1], [[(0, 1)], [(0, 1)]],
        arrival_s=np.array([0.0, 0.125, 0.25]) + origin_s, objective=objective,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
@pytest.mark.parametrize("origin_s", EARLY_S)
def test_results_of_earlier_versions_are_read(objective, origin_s):
    instance = three_requests(origin_s, objective)
    old = of_version_2(solve(instance, "joint_exact").to_dict(), origin_s)
    verify(instance, old)
    for key in ("start_s", "end_s"):
        for value in (10**400, [[[[1.0]]]], None):
            bad = copy.deepcopy(old)
            bad["schedule"][key][0][0] = value
            with pytest.raises(Refuted):
                verify(instance, bad)
    with pytest.raises(Refuted, match="names_digest"):
        verify(instance, old | {"names_digest": "lies"})


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
@pytest.mark.parametrize("origin_s", EARLY_S)
@pytest.mark.parametrize("by_s", [1e-8, 1e-6, 1e-3])
def test_earlier_versions_excuse_no_false_number(objective, origin_s, by_s):
    """Anyone can write version 2: its rounding excused objectives, bounds and gaps."""
    instance = three_requests(origin_s, objective)
    true = of_version_2(solve(instance, "joint_exact").to_dict(), origin_s)
    verify(instance, true)

    def changed(objective_by_s=0.0, bound_by_s=0.0, gap_by=0.0):
        old = copy.deepcopy(true)
        old["objective_s"] += objective_by_s
        old["bound_s"] += bound_by_s
        old["certificate"]["value_s"] = old["objective_s"]
        old["gap"] = (old["objective_s"] - old["bound_s"]) / old["objective_s"] + gap_by
        return old | {"status": "feasible"}

    verify(instance, changed(bound_by_s=-by_s))  # a weaker bound is true, too
    for lie in (
        changed(objective_by_s=-by_s),
        changed(objective_by_s=by_s),
        changed(bound_by_s=by_s),
        changed(gap_by=by_s),
    ):
        with pytest.raises(Refuted):
            verify(instance, lie)


@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
@pytest.mark.parametrize("origin_s", ORIGINS_S[2:])
def test_earlier_versions_of_late_arrivals_are_not_read(objective, origin_s):
    """Their times have lost digits: a greedy schedule passed as the optimum at 1.7e9 s."""
    instance = Instance.from_tables(
        [[[1.0], [2.0]]], [1], [[(0, 1), (1, 1)]],
        arrival_s=origin_s + np.array([0.0, 0.25, 0.5]), objective=objective,
    )  # fmt: skip
    best = solve(instance, "joint_exact").to_dict()
    worse = schedule(instance, Partition((0, 1)), lambda state, request: 0)
    value_s = evaluate(instance, Partition((0, 1)), worse)
    assert value_s > 1.1 * best["objective_s"]
    lie = best | {"objective_s": value_s, "bound_s": value_s, "gap": 0.0, "status": "feasible"}
    lie["schedule"] = {
        "node": worse.node.tolist(),
        "start_s": worse.start_s.tolist(),
        "end_s": worse.end_s.tolist(),
    }
    lie["certificate"] |= {"value_s": value_s}
    with pytest.raises(Refuted, match="bound_s"):
        verify(instance, lie)
    with pytest.raises(ValueError, match="first arrival must be at most 1000 s, got"):
        verify(instance, of_version_2(lie, origin_s))


def test_a_bound_below_the_first_arrival_is_read_as_none():
    """A makespan counted from 0 cannot be below the first arrival."""
    instance = three_requests(1e3, "makespan")
    old = of_version_2(solve(instance, "joint_exact").to_dict(), 1e3)
    old |= {"status": "feasible", "bound_s": 2.0, "gap": 1 - 2.0 / old["objective_s"]}
    verify(instance, old)
    with pytest.raises(Refuted, match="bound_s"):
        verify(instance, old | {"bound_s": -2.0, "gap": 1 + 2.0 / old["objective_s"]})


def test_late_arrivals_do_not_touch_what_has_no_clock():
    """A bottleneck, or that nothing fits, of an earlier version says no time of day."""
    late = Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]], arrival_s=[1e9])
    for instance, method in (
        (late, "hypsplit_dp"),
        (late.replace(node_bytes=np.zeros(2), objective="makespan"), "joint_exact"),
    ):
        document = solve(instance, method).to_dict() | {"version": 2}
        del document["names_digest"]
        verify(instance, document)


def test_what_a_check_does_not_cover_is_listed():
    instance = Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]])
    document = solve(instance, "hypsplit_dp").to_dict()
    for field in ("method", "message", "instance (its name)"):
        assert field in not_covered(document)
    assert "extrapolated" not in not_covered(document)
    old = {key: value for key, value in document.items() if key != "names_digest"}
    assert "extrapolated" in not_covered(old | {"version": 2})
    more = document | {"certificate": document["certificate"] | {"signed": "me"}}
    assert "certificate.signed" in not_covered(more)
    with pytest.raises(Refuted, match="schedule"):
        verify(instance, document | {"schedule": {"node": "lies"}})
    small = instance.replace(node_bytes=np.zeros(2))
    nothing = solve(small, "hypsplit_dp").to_dict()
    verify(small, nothing)
    for field in ("bound_s", "gap", "schedule"):
        with pytest.raises(Refuted, match=field):
            verify(small, nothing | {field: 0.5})
