"""The best splits with few moves, against all splits and the re-scorer."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.serving_evaluation import refusal
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.throughput.few_moves import Moves, splits_with_few_moves
from tests.helpers.serving_oracles import feasible_splits, random_serving, with_targets


def moved(tier_before, cuts):
    """Count moved blocks one by one."""
    stages = [k for k in range(len(cuts) - 1) for _ in range(cuts[k], cuts[k + 1])]
    return sum(now != then for now, then in zip(stages, tier_before, strict=True))


@pytest.mark.parametrize("mode", ["stage", "pipeline", "serial"])
def test_the_best_splits_with_few_moves_are_those_of_enumeration(mode):
    """By code that shares nothing with the kernels: no other split with so few carries more."""
    rng = np.random.default_rng(len(mode))
    n_limited = 0
    for case in range(60):
        instance = random_serving(rng, mode)
        if case % 3 == 0:
            instance = with_targets(instance, rng)
        before = np.sort(rng.integers(-1, instance.n_tiers, instance.n_blocks))
        max_moves = int(rng.integers(0, instance.n_blocks + 1))
        splits, was_cut_off = splits_with_few_moves(
            instance,
            Moves.of_tiers(before, instance.n_tiers),
            max_moves,
            n_splits=3,
            deadline=NEVER,
        )
        few = [s for s in feasible_splits(instance) if moved(before, s.cuts) <= max_moves]
        n_limited += 0 < len(few) < len(list(feasible_splits(instance)))
        assert not was_cut_off
        found = [hs.Partition(split.cuts) for split in splits]
        assert len(set(found)) == len(found) and set(found) <= set(few)
        for split, partition in zip(splits, found, strict=True):
            assert not refusal(instance, partition, split.rate * (1 - 1e-6))
        rates = [split.rate for split in splits]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(rates))
        least = rates[-1] if len(rates) == 3 else 1e-6
        others = [partition for partition in few if partition not in found]
        assert all(refusal(instance, other, least * (1 + 1e-6)) for other in others)
    assert n_limited > 8


def test_moves_are_counted_block_by_block():
    """The bound of a box is the least number of its splits, or less."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        n_tiers, n_blocks = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        before = rng.integers(-1, n_tiers, n_blocks)
        moves = Moves.of_tiers(before, n_tiers)
        inner = np.sort(rng.integers(0, n_blocks + 1, (2, n_tiers - 1)), axis=1)
        low = np.concatenate(([0], inner.min(axis=0), [n_blocks]))
        high = np.concatenate(([0], inner.max(axis=0), [n_blocks]))
        counts = []
        for cuts in np.ndindex(*(high - low + 1)):
            each = tuple((low + cuts).tolist())
            if list(each) == sorted(each):
                assert moves.of(each) == moved(before, each)
                counts.append(moved(before, each))
        assert moves.fewest(low, high) <= min(counts)


def test_a_block_that_was_in_several_tiers_may_stay_in_each():
    """Cards that held equal blocks are now stages of their own: counted block by block."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        n_tiers, n_blocks = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        was_in = rng.random((n_tiers, n_blocks)) < 0.5
        moves = Moves(was_in)
        low = np.concatenate(
            ([0], np.sort(rng.integers(0, n_blocks + 1, n_tiers - 1)), [n_blocks])
        )
        high = low.copy()
        high[1:-1] = np.minimum(np.maximum.accumulate(low[1:-1] + rng.integers(0, 3)), n_blocks)
        counts = []
        for cuts in np.ndindex(*(high - low + 1)):
            each = tuple((low + cuts).tolist())
            if list(each) == sorted(each):
                stages = [k for k in range(n_tiers) for _ in range(each[k], each[k + 1])]
                away = sum(not was_in[k, b] for b, k in enumerate(stages))
                assert moves.of(each) == away
                counts.append(away)
        assert moves.fewest(low, high) <= min(counts)


def test_a_passed_deadline_cuts_the_search_off():
    """What is found by then is returned, and that more may be better."""
    instance = hs.ServingInstance.from_tables(
        fixed_s=[[1e-3], [2e-3]], block_kind=[0] * 6, tiers=[[(0, 1e9)], [(1, 1e9)]],
        prompt_tokens=100, output_tokens=10, max_num_seqs=20,
    )  # fmt: skip
    spent = Deadline(1e-9)
    moves = Moves.of_tiers(np.array([1] * 6), 2)
    splits, was_cut_off = splits_with_few_moves(instance, moves, 2, n_splits=9, deadline=spent)
    assert was_cut_off and len(splits) < 3
