"""HypSplit-DP on chains too long to enumerate, its messages, and the heuristics."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve import (
    Instance,
    Objective,
    Partition,
    StageRule,
    Status,
    check,
    pareto_frontier,
    solve,
    verify_certificate,
)
from hypsolve.kernels.warm_up import warm
from hypsolve.problem.evaluation import bottleneck_s, node_stage_s, path_s, stage_s
from hypsolve.solvers.partition.heuristics import block_partition, min_spread
from hypsolve.solvers.partition.infeasibility import explain_infeasible
from hypsolve.solvers.partition.stage_tables import stage_table, to_chain
from tests.helpers import oracles, strategies


def long_chain(seed, n_blocks=150, n_tiers=5, **options):
    """Return a chain of unequal blocks, nodes and links, so that reachable cuts have gaps."""
    rng = np.random.default_rng(seed)
    block_s = rng.lognormal(0, 1, (1, 3, n_blocks))
    block_bytes = rng.integers(1, 20, n_blocks).astype(float)
    room = block_bytes.sum() / n_tiers
    tiers = [
        [(int(rng.integers(3)), float(np.ceil(room * rng.uniform(0.9, 2.5)))) for _ in range(3)]
        for _ in range(n_tiers)
    ]
    transfer_s = rng.exponential(block_s.sum() / 60, (1, n_tiers - 1, n_blocks + 1))
    return Instance.from_tables(block_s, block_bytes, tiers, transfer_s, **options)


def quadratic(instance, combine, add_link):
    """Minimise over all partitions by a plain recurrence in O(n_tiers * n_blocks**2)."""
    table = stage_table(instance, None if combine is np.maximum else StageRule.FASTEST)
    best = np.full(instance.n_blocks + 1, np.inf)
    best[0] = 0
    for k in range(instance.n_tiers):
        cost = table[k]
        if k < instance.n_tiers - 1:
            cost = add_link(cost, k)
        best = combine(best[:, None], cost).min(axis=0)
    return best[-1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", ["pooled", "fastest", "slowest"])
def test_bottleneck_of_a_long_chain_is_that_of_the_recurrence(seed, rule):
    instance = long_chain(seed, stage_rule=rule, allow_empty=seed % 2 == 1, overlap=seed > 3)
    link_s = instance.reference_link_s

    def add_link(cost, k):
        return np.maximum(cost, link_s[k]) if instance.overlap else cost + link_s[k]

    best_s = quadratic(instance, np.maximum, add_link)
    result = solve(instance, "hypsplit_dp")
    assert result.objective_s == pytest.approx(best_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_path_of_a_long_chain_is_that_of_the_recurrence(seed):
    instance = long_chain(seed, objective="path", allow_empty=seed % 2 == 1)
    transfer_s = instance.reference_transfer_s
    best_s = quadratic(instance, np.add, lambda cost, k: cost + transfer_s[k])
    assert solve(instance, "hypsplit_dp").objective_s == pytest.approx(best_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_p0_of_a_long_chain_is_the_minimum_over_all_largest_stages(seed):
    """For every possible largest stage, minimise the transfers with no stage above it."""
    instance = long_chain(seed, n_blocks=24, n_tiers=3, objective="p0")
    table, transfer_s = stage_table(instance, StageRule.FASTEST), instance.reference_transfer_s
    best_s = math.inf
    for limit in np.unique(table[np.isfinite(table)]):
        best = np.full(instance.n_blocks + 1, np.inf)
        best[0] = 0
        for k in range(instance.n_tiers):
            best = (best[:, None] + np.where(table[k] <= limit, 0, np.inf)).min(axis=0)
            if k < instance.n_tiers - 1:
                best = best + transfer_s[k]
        best_s = min(best_s, limit + best[-1])
    assert solve(instance, "hypsplit_dp").objective_s == pytest.approx(best_s, rel=1e-12)


def test_the_pareto_frontier_ends_at_both_optima():
    instance = long_chain(3)
    points = pareto_frontier(instance)
    for objective, value in (
        ("bottleneck", points[0].bottleneck_s),
        ("path", points[-1].path_s),
    ):
        best_s = solve(instance.replace(objective=objective), "hypsplit_dp").objective_s
        assert value == pytest.approx(best_s, rel=1e-12)
    assert all(a.bottleneck_s < b.bottleneck_s for a, b in itertools.pairwise(points))
    assert all(a.path_s > b.path_s for a, b in itertools.pairwise(points))
    for point in points:
        assert not check(instance, point.partition)
        assert point.bottleneck_s == bottleneck_s(instance, point.partition)
        assert point.path_s == path_s(instance, point.partition)


@pytest.mark.parametrize("rule", ["pooled", "fastest", "slowest"])
def test_the_kernel_and_the_table_agree_with_evaluation(rule):
    from hypsolve.kernels import hypsplit

    warm("hypsplit")
    instance = long_chain(5, n_blocks=30, stage_rule=rule)
    table, chain = stage_table(instance), to_chain(instance)
    rng = np.random.default_rng(0)
    for _ in range(200):
        k = int(rng.integers(instance.n_tiers))
        i, j = sorted(rng.integers(0, 31, 2).tolist())
        want = stage_s(instance, k, i, j)
        reachable = (i == 0 if k == 0 else True) and (j == 30 if k == 4 else True)
        if i < j and reachable:
            assert table[k, i, j] == pytest.approx(want, rel=1e-13)
        cuts = np.array([0] * (k + 1) + [j] * (instance.n_tiers - k))
        cuts[k] = i
        whole = max(
            stage_s(instance, t, cuts[t], cuts[t + 1])
            + (instance.reference_link_s[t, cuts[t + 1]] if t < instance.n_tiers - 1 else 0)
            for t in range(instance.n_tiers)
        )
        assert hypsplit.bottleneck_s(chain, cuts) == pytest.approx(whole, rel=1e-13)


class Trials:
    """Greedy and full trials of an instance, in the windows of a limit."""

    def __init__(self, instance, limit):
        from hypsolve.kernels import hypsplit

        warm("hypsplit")
        self.split, self.chain = hypsplit, to_chain(instance)
        self.low, self.high, self.start, self.cuts = np.zeros((4, instance.n_tiers + 1), int)
        self.min_link = np.zeros(instance.n_tiers)
        self.is_open = hypsplit.cut_windows(self.chain, limit, self.low, self.high)
        if self.is_open:
            hypsplit.min_links(self.chain, self.low, self.high, self.min_link)
            self.reached = np.zeros(
                hypsplit.window_offsets(self.low, self.high, self.start), dtype=np.int32
            )

    def full(self, tau):
        """Run a full trial: (True, bottleneck) or (False, smallest rejected cost)."""
        window = self.low, self.high, self.start, self.reached
        return self.split.full_trial(self.chain, tau, *window, self.cuts)

    def greedy(self, tau):
        """Run a greedy trial: (outcome, bottleneck or smallest rejected cost)."""
        window = self.low, self.high, self.min_link
        return self.split.greedy_trial(self.chain, tau, *window, self.cuts)

    def check(self, tau):
        """Assert that the greedy trial agrees with the full one, unless it is undecided."""
        state, value = self.greedy(tau)
        if state == self.split.FEASIBLE:
            assert value <= tau
            assert self.split.bottleneck_s(self.chain, self.cuts) == value
            assert self.full(tau)[0]
        elif state == self.split.INFEASIBLE:
            assert value > tau
            assert not self.full(tau)[0]
            assert not self.full(math.nextafter(value, 0))[0]  # every smaller tau fails, too
        return state


@given(
    instance=strategies.instances(max_blocks=8, limits="always"),
    eighths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    limit=st.sampled_from([5.0, 1e300]),
)
def test_a_greedy_trial_agrees_with_a_full_one(instance, eighths, limit):
    trials = Trials(instance, limit)
    if trials.is_open:
        for tau in eighths:
            trials.check(tau / 8)


def min_bottlenecks(instance):
    """Yield the minimum bottleneck by a bisection from wide and from narrow windows."""
    from hypsolve.kernels import hypsplit

    warm("hypsplit")
    chain = to_chain(instance)
    for narrow in (False, True):
        cuts = np.zeros(instance.n_tiers + 1, int)
        found_s, _ = hypsplit.bisect_bottleneck(chain, narrow, cuts)
        if found_s < math.inf:
            assert not check(instance, Partition(tuple(cuts.tolist())))
            assert hypsplit.bottleneck_s(chain, cuts) == found_s
        yield found_s


@given(strategies.instances(max_blocks=14, max_tiers=6, limits="always", wide=True))
def test_both_starts_of_the_bisection_reach_the_optimum(instance):
    best_s = float(oracles.best_by_recurrence(instance))
    for found_s in min_bottlenecks(instance):
        assert found_s == pytest.approx(best_s, rel=1e-12, abs=0)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_blocks=st.integers(60, 300),
    allow_empty=st.booleans(),
    overlap=st.booleans(),
    rule=st.sampled_from(strategies.RULES),
    steep=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e4]),
)
def test_both_starts_of_the_bisection_agree_with_full_trials(
    seed, n_blocks, allow_empty, overlap, rule, steep
):
    """The oracle bisects by full trials in the widest windows, with no to dominant links."""
    instance = long_chain(
        seed,
        n_blocks,
        stage_rule=rule,
        allow_empty=allow_empty,
        overlap=overlap,
        min_blocks=[seed % 3 * 10] * 5,
    )
    instance = instance.replace(
        reference_occupancy_kind_s=instance.reference_occupancy_kind_s * steep
    )
    trials = Trials(instance, 1e300)
    below, above = 0.0, 1e300
    while trials.is_open and below < above:
        middle = below + (above - below) / 2
        trials.check(middle)
        success, value = trials.full(min(middle, math.nextafter(above, 0)))
        below, above = (below, value) if success else (value, above)
    best_s = math.inf if above == 1e300 else above
    for found_s in min_bottlenecks(instance):
        assert found_s == pytest.approx(best_s, rel=1e-12)


@pytest.mark.parametrize("steep", [0.0, 1.0, 1e3])
def test_a_chain_long_enough_for_narrow_windows_reaches_the_optimum(steep):
    from hypsolve.kernels import hypsplit

    instance = long_chain(7, n_blocks=1100, n_tiers=4, allow_empty=steep > 1)
    assert instance.n_tiers * (instance.n_blocks + 1) > hypsplit.LONG_CHAIN
    instance = instance.replace(
        reference_occupancy_kind_s=instance.reference_occupancy_kind_s * steep
    )
    link_s = instance.reference_link_s
    best_s = quadratic(instance, np.maximum, lambda cost, k: cost + link_s[k])
    assert solve(instance, "hypsplit_dp").objective_s == pytest.approx(best_s, rel=1e-12)


def test_the_certificate_for_thousands_of_blocks_holds_in_exact_arithmetic():
    """The verifier repeats the plain trial in exact arithmetic."""
    instance = long_chain(11, n_blocks=2000, n_tiers=12)
    certificate = solve(instance, "hypsplit_dp").certificate
    assert verify_certificate(instance, certificate) == []


@given(
    values=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 1.0, 1e9, 1e18]), max_size=80),
    same=st.booleans(),
)
def test_prefix_sums_have_twice_the_precision_of_a_float(values, same):
    from hypsolve.kernels import hypsplit

    warm("hypsplit")
    table = np.array([values or [0.0], [1.0] * max(len(values), 1)])
    kind = np.zeros(len(values), int) if same else np.arange(len(values))
    for array in (table, kind):
        array.setflags(write=False)
    sums = np.full((2, len(values) + 1, 2), np.nan)
    hypsplit.fill_prefix_sums(table, kind, sums)
    exact = Fraction(0)
    for c in range(len(values) + 1):
        found = Fraction(sums[0, c, 0]) + Fraction(sums[0, c, 1])
        assert abs(found - exact) <= exact / 2**95
        if c < len(values):
            exact += Fraction(table[0, kind[c]])
    assert sums[1, -1].tolist() == [len(values), 0]


def test_stage_times_are_exact_when_kinds_of_blocks_repeat():
    """A stage sums up its own blocks, whatever their kinds and however often they occur."""
    instance = long_chain(0, n_blocks=40)
    kinds = np.random.default_rng(0).integers(5, 30, 40)
    repeated = Instance.from_kinds(
        kind_s=instance.kind_s,
        block_kind=kinds,
        block_bytes=instance.block_bytes,
        transfer_kind_s=instance.transfer_kind_s,
        occupancy_kind_s=instance.occupancy_kind_s,
        cut_kind=instance.cut_kind,
        tiers=[[(0, 1e9), (2, 1e9), (0, 1e9)]] * 5,
    )
    for i, j in itertools.combinations(range(0, 41, 5), 2):
        exact = [math.fsum(instance.reference_s[c, kinds[i:j]]) for c in (0, 2, 0)]
        assert node_stage_s(repeated, 1, i, j) == pytest.approx(exact, rel=1e-15)


def test_infeasible_reports_need_capacity_and_shortfall_of_each_tier():
    instance = Instance.from_tables(np.ones((1, 1, 4)), [5, 5, 5, 5], [[(0, 7)], [(0, 11)]])
    result = solve(instance, "hypsplit_dp")
    assert result.status is Status.INFEASIBLE
    assert result.partition is None
    assert result.objective_s == result.bound_s == math.inf
    assert "reach block 3 of 4" in result.message
    assert "'tier-0': blocks 0:1 need 5 bytes of the 7 bytes" in result.message
    assert "block 1 would make it 10 bytes, 3 bytes too many" in result.message
    assert "'tier-1': blocks 1:3 need 10 bytes of the 11 bytes" in result.message
    assert "block 3 would make it 15 bytes, 4 bytes too many" in result.message


def test_the_explanation_of_an_infeasible_instance_has_a_sentence_per_tier():
    instance = Instance.from_tables(np.ones((1, 1, 4)), [5, 5, 5, 5], [[(0, 7)], [(0, 11)]])
    reason = explain_infeasible(instance)
    assert reason.verdict == "the tiers together reach block 3 of 4"
    assert [sentence.partition(":")[0] for sentence in reason.tiers] == [
        "tier 'tier-0'",
        "tier 'tier-1'",
    ]
    assert str(reason) == f"{reason.verdict}. {'; '.join(reason.tiers)}"


def test_infeasible_reports_contradicting_rules():
    instance = Instance.from_tables(np.ones((1, 1, 2)), [0, 0], [[(0, 1)]] * 3)
    result = solve(instance, "hypsplit_dp")
    assert result.status is Status.INFEASIBLE
    assert "2 blocks are fewer than the tiers must host, [1 1 1]" in result.message
    pinned = instance.replace(allow_empty=True, pinned={0: 1, 1: 0})
    assert "pinned blocks contradict each other" in solve(pinned, "hypsplit_dp").message


def test_even_split_gives_the_remainder_to_the_later_tiers():
    instance = Instance.from_tables(np.ones((1, 1, 11)), np.zeros(11), [[(0, 1)]] * 4)
    assert solve(instance, "even_split").partition == Partition((0, 2, 5, 8, 11))


def test_a_heuristic_does_not_repair_a_partition_that_does_not_fit():
    instance = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 1)], [(0, 9)]])
    result = solve(instance, "gpipe")
    assert result.status is Status.INFEASIBLE
    assert result.bound_s == 0  # nothing is proved
    assert "memory" in result.message
    assert solve(instance, "hypsplit_dp").partition == Partition((0, 1, 4))


def test_proportional_splits_follow_memory_and_speed():
    tables = np.ones((1, 2, 12)) * [[[1.0], [3.0]]]
    instance = Instance.from_tables(tables, np.ones(12), [[(0, 6)], [(1, 18)]])
    assert solve(instance, "memory_proportional").partition == Partition((0, 3, 12))
    assert solve(instance, "speed_proportional").status is Status.INFEASIBLE  # 9 blocks in 6
    roomy = Instance.from_tables(tables, np.ones(12), [[(0, 60)], [(1, 60)]])
    assert solve(roomy, "speed_proportional").partition == Partition((0, 9, 12))


def test_memory_proportional_uses_the_largest_node_of_a_tier():
    instance = Instance.from_tables(
        np.ones((1, 1, 12)), np.ones(12), [[(0, 1), (0, 12)], [(0, 12)]]
    )
    assert solve(instance, "memory_proportional").partition == Partition((0, 6, 12))


def test_proportional_splits_leave_a_block_for_every_tier():
    block_s = [[[100.0, 1, 1, 1], [100.0, 1, 1, 1]]]  # all of the work is in the first block
    instance = Instance.from_tables(block_s, np.zeros(4), [[(0, 1)], [(1, 1)], [(1, 1)]])
    cuts = solve(instance, "speed_proportional").partition.cuts
    assert all(i < j for i, j in itertools.pairwise(cuts))


@pytest.mark.parametrize(
    ("weights", "n_parts", "cuts"),
    [  # worked out by hand from the rule of torchgpipe
        ([5] * 12, 3, [0, 4, 8, 12]),
        ([5] * 14, 4, [0, 3, 6, 9, 14]),
        ([1] * 7 + [1.001], 3, [0, 2, 4, 8]),
        ([1, 2, 3, 4, 5, 6], 2, [0, 4, 6]),
        ([6, 5, 4, 3, 2, 1], 2, [0, 2, 6]),
        ([3, 1], 3, [0, 1, 2, 2]),
    ],
)
def test_block_partition_is_that_of_torchgpipe(weights, n_parts, cuts):
    assert block_partition(np.array(weights, float), n_parts) == cuts


@pytest.mark.parametrize("seed", range(20))
def test_block_partition_satisfies_its_theorem(seed):
    """Barany and Grinberg: with weights scaled to 0..1, the sums differ by at most 1."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1, 4, rng.integers(4, 40))
    n_parts = int(rng.integers(1, 5))
    cuts = block_partition(weights, n_parts)
    assert cuts[0] == 0
    assert cuts[-1] == len(weights)
    scaled = (weights - weights.min()) / (weights.max() - weights.min())
    sums = [scaled[i:j].sum() for i, j in itertools.pairwise(cuts)]
    assert max(sums) - min(sums) <= 1 + 1e-9


def kept_split(weights, n_parts):
    """Apply the rule of DeepSpeed by a plain recurrence; return its cuts.

    Of each prefix and number of parts it keeps (difference, largest, smallest, cuts).
    """
    kept = {(0, 0): (0, 0, math.inf, (0,))}
    for parts in range(1, n_parts + 1):
        for end in range(parts, len(weights) + 1):
            choices = []
            for start in range(end):
                if (parts - 1, start) not in kept:
                    continue
                _, largest, smallest, cuts = kept[parts - 1, start]
                part = sum(weights[start:end])
                high, low = max(largest, part), min(smallest, part)
                choices.append((high - low, -start, high, low, (*cuts, end)))
            difference, _, high, low, cuts = min(choices)
            kept[parts, end] = (difference, high, low, cuts)
    return list(kept[n_parts, len(weights)][3])


@given(weights=st.lists(st.integers(0, 9), min_size=1, max_size=12), n_parts=st.integers(1, 5))
def test_min_spread_is_the_rule_of_deepspeed(weights, n_parts):
    cuts = min_spread(np.array(weights, float), n_parts)
    if len(weights) <= n_parts:
        assert cuts == [min(part, len(weights)) for part in range(n_parts + 1)]
    else:
        assert cuts == kept_split(weights, n_parts)


def test_the_rule_of_deepspeed_may_miss_its_own_optimum():
    """The split 2 | 2 | 5, 1 of the first four blocks, which the optimum needs, is not kept."""
    assert min_spread(np.array([2.0, 2, 5, 1, 6]), 4) == [0, 2, 3, 4, 5]
    sums = [2, 2, 5 + 1, 6]
    assert max(sums) - min(sums) == 4


@given(strategies.instances(max_blocks=7, max_tiers=4, memory=False, limits=False))
def test_pipedream_minimises_the_bottleneck_of_its_own_model(instance):
    """The oracle enumerates all cuts with one speed, shared stages and one bandwidth."""
    n_tiers, n_blocks = instance.n_tiers, instance.n_blocks
    block_s = instance.reference_s[instance.node_class].mean(axis=0)
    link_s = instance.reference_link_s.mean(axis=0) if n_tiers > 1 else np.zeros(n_blocks + 1)
    n_nodes = np.bincount(instance.node_tier)

    def bottleneck(cuts):
        stages = [block_s[i:j].sum() / n for n, (i, j) in
                  zip(n_nodes, itertools.pairwise(cuts), strict=True)]  # fmt: skip
        return max([*stages, *(link_s[c] for c in cuts[1:-1])])

    every = [
        (0, *inner, n_blocks)
        for inner in itertools.combinations_with_replacement(range(n_blocks + 1), n_tiers - 1)
    ]
    feasible = [cuts for cuts in every if not check(instance, Partition(cuts))]
    result = solve(instance, "pipedream")
    assert (result.status is Status.INFEASIBLE) == (not feasible)
    if feasible:
        assert bottleneck(result.partition.cuts) == pytest.approx(
            min(map(bottleneck, feasible))
        )


def test_hypsplit_rejects_scheduled_objectives():
    from hypsolve.solvers.partition.hypsplit import hypsplit_dp

    instance = Instance.from_tables(
        np.ones((1, 1, 2)), [0, 0], [[(0, 1)]] * 2, objective=Objective.MAKESPAN
    )
    with pytest.raises(ValueError, match=r"hypsplit_dp: objective must be .* got makespan"):
        hypsplit_dp(instance, time_limit_s=1.0, seed=0)
