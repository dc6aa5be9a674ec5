"""`schedule`: compiled policies against plain Python, closed forms, a user's own policy."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.dispatch import policies
from hypsolve.dispatch import schedule as schedule_module
from hypsolve.dispatch.policies import POLICIES, TierState
from hypsolve.dispatch.schedule import schedule
from hypsolve.kernels import dispatch as kernels
from hypsolve.problem.evaluation import check
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Schedule

NAMES = sorted(POLICIES)


@st.composite
def cases(draw, max_requests: int = 12, max_nodes: int = 5) -> tuple[Instance, Partition]:
    """Draw an instance and a partition.

    Times are small integers, so that ties abound, or their thirds, whose sums are not exact.
    """
    n_tiers, n_classes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_blocks = draw(st.integers(n_tiers, 5))
    n_requests = draw(st.integers(1, max_requests))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = draw(st.sampled_from([1.0, 1 / 3, 1e-9]))
    many = draw(st.booleans())
    memory = rng.integers(1, 3, n_blocks).astype(float)
    cuts = np.sort(rng.integers(0, n_blocks + 1, n_tiers - 1)).tolist()
    partition = Partition((0, *cuts, n_blocks))
    tiers = []
    for k in range(n_tiers):
        need = memory[partition.cuts[k] : partition.cuts[k + 1]].sum()
        some = [
            (int(c), float(b))
            for c, b in zip(
                rng.integers(0, n_classes, draw(st.integers(1, max_nodes))),
                rng.integers(0, 2 * n_blocks, max_nodes),
                strict=False,
            )
        ]
        some[rng.integers(len(some))] = (int(rng.integers(n_classes)), float(need))
        tiers.append(some)
    instance = Instance.from_tables(
        rng.integers(0, 4, (n_requests if many else 1, n_classes, n_blocks)) * unit,
        memory,
        tiers,
        transfer_s=rng.integers(0, 3, (draw(st.sampled_from([1, n_requests])), n_tiers - 1,
                                       n_blocks + 1)) * unit,
        arrival_s=rng.integers(0, 8, n_requests) * unit,
        allow_empty=True,
    )  # fmt: skip
    return instance, partition


def assert_equal(a: Schedule, b: Schedule) -> None:
    np.testing.assert_array_equal(a.node, b.node)
    np.testing.assert_array_equal(a.start_s, b.start_s)
    np.testing.assert_array_equal(a.end_s, b.end_s)


@pytest.mark.parametrize("name", NAMES)
@given(case=cases(), seed=st.integers(0, 9))
def test_a_compiled_policy_makes_the_choices_of_its_python_twin(name, case, seed):
    instance, partition = case
    found = schedule(instance, partition, name, seed=seed)
    assert check(instance, partition, found) == []
    assert_equal(found, schedule(instance, partition, POLICIES[name].choose, seed=seed))


@given(case=cases(max_requests=60, max_nodes=12))
def test_grouped_hypsched_rt_makes_the_choices_of_the_plain_kernel(case):
    plain = schedule(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_module, "MAX_UNGROUPED_NODES", 0)
        assert_equal(schedule(*case), plain)


@pytest.mark.parametrize("rows", [1, 3000])
def test_grouped_hypsched_rt_makes_the_choices_of_the_plain_kernel_under_load(rows):
    rng = np.random.default_rng(5)
    block_s = rng.random((rows, 3, 1))
    tier = [(int(c), 1.0) for c in rng.integers(0, 3, 100)]
    instance = Instance.from_tables(
        block_s, [1.0], [tier], arrival_s=np.cumsum(rng.exponential(0.002, 3000))
    )
    grouped = schedule(instance, Partition((0, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_module, "MAX_UNGROUPED_NODES", 1000)
        assert_equal(grouped, schedule(instance, Partition((0, 1))))
    assert len(set(grouped.node[:, 0])) == 100


def test_a_large_tier_groups_only_the_nodes_that_hold_the_stage(monkeypatch):
    rng = np.random.default_rng(7)
    n_nodes = 100
    kinds, holds = rng.integers(0, 3, n_nodes), rng.random(n_nodes) < 0.8
    holds[[0, -1]] = False  # so that a position among eligible nodes differs from the node
    assert schedule_module.MAX_UNGROUPED_NODES < holds.sum() < n_nodes
    tier = [(int(c), 2.0 if h else 1.0) for c, h in zip(kinds, holds, strict=True)]
    instance = Instance.from_tables(
        rng.random((800, 3, 2)), [1.0, 1.0], [tier],
        arrival_s=np.cumsum(rng.exponential(0.005, 800)),
    )  # fmt: skip
    served = []
    grouped = kernels.dispatch_grouped
    monkeypatch.setattr(
        kernels, "dispatch_grouped", lambda *arrays: served.append(grouped(*arrays))
    )
    found = schedule(instance, Partition((0, 2)))
    assert len(served) == 1
    assert_equal(found, schedule(instance, Partition((0, 2)), policies.hypsched_rt))
    assert len(served) == 1
    assert set(found.node[:, 0]) == set(np.flatnonzero(holds))
    assert check(instance, Partition((0, 2)), found) == []


def one_tier(block_s, tier, arrival_s) -> Instance:
    return Instance.from_tables(block_s, [1.0], [tier], arrival_s=arrival_s)


def test_hypsched_rt_counts_the_running_job_in_full():
    # at 3.9 node 0 has 0.1 s left of 4: full count 4 + 4 loses to 0 + 6, remainder 0.1 + 4 wins
    instance = one_tier([[[4.0], [6.0]]], [(0, 1.0), (1, 1.0)], [0.0, 3.9])
    whole = Partition((0, 1))
    assert schedule(instance, whole).node[:, 0].tolist() == [0, 1]
    assert schedule(instance, whole, "earliest_completion").node[:, 0].tolist() == [0, 0]


def test_completions_precede_arrivals():
    instance = one_tier([[[1.0]]], [(0, 1.0), (0, 1.0)], [0.0, 1.0, 1.0, 2.0])
    for name in set(NAMES) - {"random", "power_of_two", "round_robin"}:
        assert schedule(instance, Partition((0, 1)), name).node[:, 0].tolist() == [0, 0, 1, 0]


def test_least_work_left_is_blind_to_speed():
    instance = one_tier([[[5.0], [1.0]]], [(0, 1.0), (1, 1.0)], [0.0])
    assert schedule(instance, Partition((0, 1)), "least_work_left").node[0, 0] == 0
    assert schedule(instance, Partition((0, 1)), "earliest_completion").node[0, 0] == 1


def test_round_robin_skips_nodes_that_cannot_hold_the_stage():
    instance = one_tier([[[1.0]]], [(0, 1.0), (0, 0.0), (0, 1.0)], np.zeros(5))
    found = schedule(instance, Partition((0, 1)), "round_robin")
    assert found.node[:, 0].tolist() == [0, 2, 0, 2, 0]


def test_random_and_power_of_two_spread_over_all_nodes():
    n = 4000
    instance = one_tier([[[1e-9]]], [(0, 1.0)] * 4, np.arange(n, dtype=float))
    for name in (
        "random",
        "power_of_two",
    ):  # all nodes are idle: power_of_two takes its first draw
        share = np.bincount(schedule(instance, Partition((0, 1)), name).node[:, 0]) / n
        assert share == pytest.approx(0.25, abs=0.03)
    other = schedule(instance, Partition((0, 1)), "random", seed=1)
    assert (other.node != schedule(instance, Partition((0, 1)), "random").node).any()


def test_power_of_two_prefers_the_shorter_queue():
    instance = one_tier([[[1e9]]], [(0, 1.0)] * 2, np.zeros(200))
    found = schedule(instance, Partition((0, 1)), "power_of_two")
    assert np.bincount(found.node[:, 0]).tolist() == [100, 100]


def test_an_empty_stage_still_pays_for_its_links():
    transfer_s = np.array([[[0.0, 0, 0], [3, 4, 5]], [[0, 0, 0], [3, 4, 5]]])
    transfer_s[:, 0] = [7.0, 8.0, 9.0]
    instance = Instance.from_tables(
        [[[1.0, 2.0]]], [1, 1], [[(0, 9)], [(0, 9)], [(0, 9)]],
        transfer_s=transfer_s, arrival_s=[10.0, 0.0], allow_empty=True,
    )  # fmt: skip
    found = schedule(instance, Partition((0, 1, 1, 2)))
    assert found.node.tolist() == [[0, -1, 0], [0, -1, 0]]
    assert found.start_s[:, 0].tolist() == [10.0, 0.0]
    assert found.start_s[:, 2].tolist() == [10 + 1 + 8 + 4, 1 + 8 + 4]
    assert np.isnan(found.start_s[:, 1]).all() and np.isnan(found.end_s[:, 1]).all()
    late = schedule(instance, Partition((0, 0, 0, 2)))
    assert late.start_s[1, 2] == 7 + 3


def test_a_users_policy_sees_the_tier():
    seen: list[TierState] = []

    def last_node(state, request):
        seen.append(state)
        return state.nodes[-1]

    instance = one_tier([[[2.0], [3.0]]], [(0, 1.0), (1, 0.0), (1, 1.0)], [0.0, 1.0, 3.0])
    found = schedule(instance, Partition((0, 1)), last_node)
    assert found.node[:, 0].tolist() == [2, 2, 2]
    assert check(instance, Partition((0, 1)), found) == []
    assert [state.time_s for state in seen] == [0.0, 1.0, 3.0]
    assert [state.n_jobs.tolist() for state in seen] == [[0, 0], [0, 1], [0, 1]]
    assert [state.outstanding_s.tolist() for state in seen] == [[0, 0], [0, 3], [0, 3]]
    assert [state.remaining_s.tolist() for state in seen] == [[0, 0], [0, 2], [0, 3]]
    assert seen[0].own_s.tolist() == [2, 3] and seen[0].nodes.tolist() == [0, 2]
    assert seen[2].slowdown.tolist() == [1, 1] and seen[2].n_dispatched == 2


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (1, ValueError, r"policy 'mine': node for tier 'tier-0' must be one .*0, 2, got 1"),
        (-1, ValueError, r"policy 'mine': node for tier 'tier-0' must be at least 0, got -1"),
        (None, TypeError, r"policy 'mine': node for tier 'tier-0' must be a whole number"),
        (0.0, TypeError, r"must be a whole number, got 0.0"),
    ],
)
def test_a_users_policy_must_return_an_eligible_node(answer, error, message):
    def mine(state, request):
        return answer

    instance = one_tier([[[1.0]]], [(0, 1.0), (0, 0.0), (0, 1.0)], np.zeros(2))
    with pytest.raises(error, match=message):
        schedule(instance, Partition((0, 1)), mine)


def test_bad_input_names_the_argument():
    instance = one_tier([[[1.0]]], [(0, 1.0)], [0.0])
    with pytest.raises(ValueError, match=r"unknown policy 'fifo'; choose one of hypsched_rt, "):
        schedule(instance, Partition((0, 1)), "fifo")
    with pytest.raises(ValueError, match="unknown policy 3"):
        schedule(instance, Partition((0, 1)), 3)
    with pytest.raises(ValueError, match="cuts must have 2 entries"):
        schedule(instance, Partition((0, 1, 1)))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        schedule(instance, Partition((0, 1)), seed=-1)
    small = one_tier([[[1.0]]], [(0, 0.5)], [0.0])
    with pytest.raises(ValueError, match=r"tier 'tier-0' has no node that can hold blocks 0:1"):
        schedule(small, Partition((0, 1)))


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-200, 0.1, 1e150])
def test_extreme_seconds(scale):
    instance = one_tier([[[scale]]], [(0, 1.0)] * 2, np.zeros(6))
    found = schedule(instance, Partition((0, 1)))
    assert np.isfinite(found.end_s).all()
    if scale:
        assert math.isclose(found.end_s.max(), 3 * scale)
    assert_equal(found, schedule(instance, Partition((0, 1)), policies.hypsched_rt))


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="the JIT is off")
def test_warm_up_compiles_every_signature_in_use():
    kernels.warm_up()
    instance = one_tier([[[1.0]]], [(0, 1.0)] * 70, np.zeros(3))
    for name in NAMES:
        schedule(instance, Partition((0, 1)), name)
    assert len(kernels.dispatch.signatures) == 1
    assert len(kernels.dispatch_grouped.signatures) == 1
