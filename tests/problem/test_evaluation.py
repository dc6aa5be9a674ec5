import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hypsolve.problem.evaluation import bottleneck_s, check, evaluate, latency_s, stage_s
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule
from tests.helpers import oracles, strategies

PARTITION_OBJECTIVES = strategies.PARTITION_OBJECTIVES


def schedule_of(timetable):
    node, start_s, end_s = timetable
    return Schedule(np.array(node), np.array(start_s), np.array(end_s))


@given(strategies.decisions(strategies.instances(objectives=PARTITION_OBJECTIVES)))
def test_partition_scores_match_the_definitions(decision):
    instance, partition = decision
    exact = oracles.Exact(instance)
    for objective in PARTITION_OBJECTIVES:
        want = float(exact.score(partition.cuts, objective))
        assert evaluate(instance, partition, objective=objective) == pytest.approx(
            want, rel=1e-12, abs=0
        )


@given(strategies.decisions(strategies.instances(objectives=PARTITION_OBJECTIVES)))
def test_a_partition_is_legal_if_and_only_if_the_oracle_says_so(decision):
    instance, partition = decision
    exact = oracles.Exact(instance)
    legal = partition.cuts in set(exact.partitions()) and exact.score(partition.cuts) < math.inf
    assert (check(instance, partition) == []) == legal


@given(strategies.decisions())
def test_stage_times_under_every_rule(decision):
    instance, partition = decision
    exact = oracles.Exact(instance)
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k : k + 2]
        for rule in strategies.RULES:
            want = float(exact.stage_s(k, i, j, rule))
            assert stage_s(instance, k, i, j, rule) == pytest.approx(want, rel=1e-12, abs=0)


@pytest.mark.parametrize("n_nodes", [1, 2, 5])
def test_closed_forms_on_equal_nodes(n_nodes):
    instance = Instance.from_tables(
        np.full((1, 1, 6), 2.0), np.zeros(6), [[(0, 0)] * n_nodes] * 3, np.full((1, 2, 7), 0.5)
    )
    even = Partition((0, 2, 4, 6))
    assert evaluate(instance, even) == pytest.approx(4 / n_nodes + 0.5)
    assert evaluate(instance, even, objective="path") == 13
    assert evaluate(instance, even, objective="p0") == 5
    assert bottleneck_s(instance.replace(overlap=True), even) == pytest.approx(
        max(4 / n_nodes, 0.5)
    )
    assert stage_s(instance, 0, 0, 6, "slowest") == 12


def test_link_cost_full_charges_the_whole_transfer():
    tables = ([[[1, 1]]], [0, 0], [[(0, 0)], [(0, 0)]], [[[9, 5, 0]]], [[[1, 2, 0]]])
    halves = Partition((0, 1, 2))
    assert evaluate(Instance.from_tables(*tables), halves) == 3
    assert evaluate(Instance.from_tables(*tables, link_cost="full"), halves) == 6
    assert evaluate(Instance.from_tables(*tables), halves, objective="path") == 7


@given(strategies.plans(strategies.scheduled()), st.sampled_from(["mean_latency", "makespan"]))
def test_legal_schedules_are_accepted_and_scored(plan, objective):
    instance, cuts, timetable = plan
    schedule, partition = schedule_of(timetable), Partition(cuts)
    assert oracles.is_legal(instance, cuts, *timetable)
    assert check(instance, partition, schedule) == []
    ends = [max(e for e in row if not math.isnan(e)) for row in timetable[2]]
    latencies = [e - a for e, a in zip(ends, instance.release_s.tolist(), strict=True)]
    want = max(ends) if objective == "makespan" else sum(latencies) / len(latencies)
    assert evaluate(instance, partition, schedule, objective) == pytest.approx(
        want, rel=1e-12, abs=0
    )
    np.testing.assert_allclose(latency_s(instance, schedule), latencies, rtol=1e-12)


@given(strategies.plans(strategies.scheduled(max_blocks=5, max_tiers=4)), st.data())
def test_every_mutation_that_breaks_a_rule_is_rejected(plan, data):
    instance, cuts, (node, start_s, end_s) = plan
    r = data.draw(st.integers(0, instance.n_requests - 1), "request")
    k = data.draw(st.integers(0, instance.n_tiers - 1), "tier")
    wrong = data.draw(st.sampled_from([-2, -1, 0, 0.25, 1, 2.5, math.nan, math.inf, -math.inf]))
    how = data.draw(st.sampled_from(["node", "start", "end", "move", "swap", "clash", "cuts"]))
    if how == "node":
        node[r][k] = data.draw(st.integers(-2, 3), "node")
    elif how == "start":
        start_s[r][k] += wrong
    elif how == "end":
        end_s[r][k] += wrong
    elif how == "move":
        start_s[r][k] += wrong
        end_s[r][k] += wrong
    elif how == "swap":  # two requests change places on a tier
        other = data.draw(st.integers(0, instance.n_requests - 1), "other request")
        for table in (node, start_s, end_s):
            table[r][k], table[other][k] = table[other][k], table[r][k]
    elif how == "clash":  # a request starts with another, on its node
        other = data.draw(st.integers(0, instance.n_requests - 1), "other request")
        length = end_s[r][k] - start_s[r][k]
        node[r][k], start_s[r][k] = node[other][k], start_s[other][k]
        end_s[r][k] = start_s[r][k] + length
    else:
        cuts = data.draw(strategies.partitions(instance)).cuts
        exact = oracles.Exact(instance)
        assume(cuts in set(exact.partitions()) and oracles.holdable(exact, cuts))
    found = check(instance, Partition(cuts), schedule_of((node, start_s, end_s)))
    assert (found == []) == oracles.is_legal(instance, cuts, node, start_s, end_s)


@pytest.fixture
def served():
    """Return a legal decision: two requests, tier 1 relays, node 1 of tier 0 is too small."""
    instance = Instance.from_tables(
        [[[1, 1, 2]]],
        [1, 1, 1],
        [[(0, 9), (0, 1)], [(0, 9)], [(0, 9)]],
        np.full((1, 2, 4), 0.5),
        arrival_s=[0, 1],
        allow_empty=True,
        objective="makespan",
    )
    timetable = (
        [[0, -1, 0], [0, -1, 0]],
        [[0, math.nan, 3], [2, math.nan, 5]],
        [[2, math.nan, 5], [4, math.nan, 7]],
    )
    return instance, Partition((0, 2, 2, 3)), timetable


@pytest.mark.parametrize(
    ("rule", "request_", "tier", "node", "start_s", "end_s"),
    [
        ("node", 0, 0, -1, 0, 2),
        ("node", 0, 0, 2, 0, 2),
        ("memory", 0, 0, 1, 0, 2),
        ("times", 0, 0, 0, math.nan, math.nan),
        ("times", 1, 2, 0, 5, math.inf),
        ("order", 1, 0, 0, 0.5, 2.5),
        ("order", 0, 2, 0, 2.5, 4.5),
        ("duration", 1, 2, 0, 5, 6.5),
        ("duration", 1, 2, 0, 5, 5),
        ("duration", 1, 2, 0, 5, 4),
        ("overlap", 1, 0, 0, 1, 3),
        ("empty stage", 0, 1, 0, math.nan, math.nan),
        ("empty stage", 0, 1, -1, 3, 3),
    ],
)
def test_a_violation_names_its_rule_and_place(
    served, rule, request_, tier, node, start_s, end_s
):
    instance, partition, timetable = served
    assert check(instance, partition, schedule_of(timetable)) == []
    for table, value in zip(timetable, (node, start_s, end_s), strict=True):
        table[request_][tier] = value
    found = check(instance, partition, schedule_of(timetable))
    assert rule in {violation.rule for violation in found}
    assert any(f"tier 'tier-{tier}'" in str(violation) for violation in found)


@pytest.mark.parametrize(
    ("rule", "cuts", "changes"),
    [
        ("blocks", (0, 0, 3), {}),
        ("blocks", (0, 1, 3), {"min_blocks": [2, 1]}),
        ("blocks", (0, 2, 3), {"max_blocks": [1, 3]}),
        ("pinned", (0, 1, 3), {"pinned": {1: 0}}),
        ("pinned", (0, 2, 3), {"pinned": {1: 1}}),
        ("memory", (0, 2, 3), {"block_bytes": [3, 2, 1]}),
        ("memory", (0, 1, 3), {"stage_rule": "slowest"}),
    ],
)
def test_a_partition_violation_names_its_rule(rule, cuts, changes):
    given_ = {
        "block_s": [[[1, 1, 1]]],
        "block_bytes": [1, 1, 1],
        "tiers": [[(0, 4)], [(0, 4), (0, 1)]],
    }
    instance = Instance.from_tables(**(given_ | changes))
    assert [violation.rule for violation in check(instance, Partition(cuts))] == [rule]


def test_whole_bytes_are_compared_exactly_and_others_to_rounding():
    def fits(block_bytes, capacity):
        instance = Instance.from_tables([[[1, 1]]], block_bytes, [[(0, capacity)]])
        return check(instance, Partition((0, 2))) == []

    assert fits([2.0**40, 1], 2.0**40 + 1)
    assert not fits([2.0**40, 1], 2.0**40)
    assert 0.1 + 0.2 > 0.3
    assert fits([0.1, 0.2], 0.3)
    assert not fits([0.1, 0.2], 0.3 - 1e-9)


def test_tied_bytes_count_once_only_where_all_blocks_are():
    tables = {
        "block_s": [[[1, 1]]],
        "block_bytes": [3, 3],
        "tied_bytes": 2,
        "allow_empty": True,
    }
    roomy = Instance.from_tables(**tables, tiers=[[(0, 4)], [(0, 4)]])
    assert check(roomy, Partition((0, 2, 2))) == []
    assert check(roomy, Partition((0, 1, 2))) == []
    tight = Instance.from_tables(**tables, tiers=[[(0, 3)], [(0, 2)]])
    assert [v.rule for v in check(tight, Partition((0, 2, 2)))] == ["memory"]
    assert [v.rule for v in check(tight, Partition((0, 1, 2)))] == ["memory"]


@pytest.mark.parametrize("late_s", [1e3, 1e9, 1e15])
def test_a_late_request_does_not_excuse_the_others(late_s):
    instance = Instance.from_tables([[[1.0]], [[1.0]]], [0], [[(0, 0)]])
    schedule = Schedule(
        np.array([[0], [0]]), np.array([[late_s], [0.0]]), np.array([[late_s + 1], [1.5]])
    )
    assert {v.rule for v in check(instance, Partition((0, 1)), schedule)} == {"duration"}


@given(strategies.plans(strategies.scheduled()), st.sampled_from([1e-6, 1 / 3, 1e5 + 0.1]))
def test_rounding_in_any_unit_is_forgiven(plan, unit):
    instance, cuts, (node, start_s, end_s) = plan
    instance = instance.replace(
        kind_s=instance.kind_s * unit,
        transfer_kind_s=instance.transfer_kind_s * unit,
        occupancy_kind_s=instance.occupancy_kind_s * unit,
        arrival_s=instance.arrival_s * unit,
    )
    schedule = Schedule(np.array(node), np.array(start_s) * unit, np.array(end_s) * unit)
    assert check(instance, Partition(cuts), schedule) == []
