"""Splits that move few blocks of an earlier plan: the least objective, or the largest rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from hypsolve.planning.earlier_plan import Placement
from hypsolve.planning.query import PlanQuery, Solution
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.throughput import N_SPLITS, Candidate, Cuts, RateSearch, Throughput
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import solve
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.partition.stage_tables import cost_table
from hypsolve.solvers.throughput.few_moves import Moves, splits_with_few_moves

EARLIER = "earlier plan"  # origin of the split that moves no block


class FewMovesSearch(RateSearch):
    """The best split of a query for requests per second that moves few blocks.

    Parameters
    ----------
    query : PlanQuery
        Its objective is in requests per second.
    old : Placement
        Where the blocks are.
    max_moves : int
        Largest number of blocks that may move.
    """

    def __init__(self, query: PlanQuery, old: Placement, max_moves: int) -> None:
        super().__init__(
            query.deployment(),
            query.rules(),
            query.load,
            objective=query.objective,
            prices_per_hour=query.network.price_per_hour,
            has_limits_of=query.has_limits_of,
        )
        self.query, self.max_moves = query, max_moves
        self.moves = Moves(old.was_in(self.instance))
        self.table = moves_table(self.instance, old)

    def splits(
        self, time_limit_s: float, n_splits: int = N_SPLITS
    ) -> tuple[dict[Cuts, float], Outcome]:
        """Return the best splits of the fluid model with so few moves, and the best one."""
        deadline = Deadline(time_limit_s)
        was_cut_off = False
        for serving, relaxed in self._instances():
            ranked, was_cut_off = splits_with_few_moves(
                serving, self.moves, self.max_moves, n_splits=n_splits, deadline=deadline
            )
            if ranked:
                self.relaxed = relaxed
                best = Outcome(
                    Status.FEASIBLE, Partition(ranked[0].cuts), message="fluid model"
                )
                return {split.cuts: split.rate for split in ranked}, best
        if was_cut_off:
            return {}, Outcome(Status.UNKNOWN, message="the time limit has passed")
        return {}, Outcome(Status.INFEASIBLE)

    def solution(self, progress: Progress | None = None) -> Solution:
        """Return the split that serves most in simulation, as `solve_query` does."""
        result, throughput = self.run(self.query.time_limit_s, progress)
        return replace(
            self._solution(result), interrupted=self.interrupted, throughput=throughput
        )

    def fluid_solution(self) -> tuple[Solution, dict[Cuts, float]]:
        """Return the best split of the fluid model as `solve_fluid` does, and its rate."""
        rates, outcome = self.splits(self.query.time_limit_s, 1)
        return self._solution(solve(self.instance, self.method(lambda: outcome))), rates

    def _solution(self, result: Result) -> Solution:
        return Solution(
            query=self.query,
            deployment=self.deployment,
            instance=self.instance,
            result=result,
            relaxed=self.relaxed,
        )

    def served_points(self, served: Throughput) -> tuple[tuple[int, float], ...]:
        """Return moves and rates of splits that no other one beats in both, by moves.

        Only splits that were simulated at the same length are compared.
        """
        rates = sorted(
            (self.moves.of(split.cuts), -split.simulated_requests_per_s)
            for split in served.splits
            if split.cuts in self.settled
        )
        points: list[tuple[int, float]] = []
        for moved, rate in rates:
            if not points or -rate > points[-1][1]:
                points.append((moved, -rate))
        return tuple(points)

    def is_allowed(self, cuts: Cuts) -> bool:
        """Return whether a split may be chosen, and moves few blocks."""
        return super().is_allowed(cuts) and self.moves.of(cuts) <= self.max_moves

    def _candidates(self, fluid: Mapping[Cuts, float]) -> dict[Cuts, Candidate]:
        found = super()._candidates(fluid)
        _, stays = best_split(self.instance, self.table, 0, NEVER)
        if stays is not None:
            each = found.get(stays.cuts, Candidate(EARLIER, stays.cuts))
            found[stays.cuts] = replace(each, is_printed=True)
        return found

    def _splits_of_rules(self) -> Iterator[tuple[str, Cuts]]:
        for objective in (Objective.BOTTLENECK, Objective.PATH):
            alone = self.instance.replace(objective=objective)
            _, partition = best_split(alone, self.table, self.max_moves, NEVER)
            if partition is not None:
                yield str(objective), partition.cuts


def moved_blocks(table: IntArray, partition: Partition) -> int:
    """Return the number of blocks that a partition moves, by `moves_table`."""
    cuts = partition.cuts
    return sum(int(table[k, cuts[k], cuts[k + 1]]) for k in range(len(table)))


def fewest_moves(
    instance: Instance, table: IntArray, max_moves: int, deadline: Deadline = NEVER
) -> int | None:
    """Return the fewest moves with which a split fits; None if more than `max_moves` must."""
    fits = np.flatnonzero(np.isfinite(search_moves(instance, table, max_moves, deadline)[0]))
    return int(fits[0]) if fits.size else None


def best_split(
    instance: Instance, moves: IntArray, max_moves: int, deadline: Deadline
) -> tuple[tuple[tuple[int, float], ...], Partition | None]:
    """Return the objective that each number of moves allows, and the best partition if any."""
    best, cuts = search_moves(instance, moves, min(max_moves, instance.n_blocks), deadline)
    frontier = falling(best)
    if not frontier:
        return frontier, None
    return frontier, Partition(tuple(int(c) for c in cuts[frontier[-1][0]]))


def moves_table(instance: Instance, old: Placement) -> IntArray:
    """Count the blocks of i:j that were not in tier k; shape (n_tiers, n_cuts, n_cuts)."""
    away = (~old.was_in(instance)).astype(np.int64)
    sums = np.concatenate([np.zeros((len(away), 1), np.int64), away.cumsum(axis=1)], axis=1)
    return sums[:, None, :] - sums[:, :, None]


def search_moves(
    instance: Instance, moves: IntArray, max_moves: int, deadline: Deadline
) -> tuple[Array, IntArray]:
    """Return the least objective with exactly m moves, and its cuts, for m = 0..max_moves.

    Raises
    ------
    TimeoutError
        If the deadline passes before the end; nothing is known then.
    """
    n_tiers, n_cuts = instance.n_tiers, instance.n_blocks + 1
    cost_s = cost_table(instance)
    is_sum = instance.objective is Objective.PATH
    best = np.full((n_tiers + 1, n_cuts, max_moves + 1), math.inf)
    last = np.zeros((n_tiers + 1, n_cuts, max_moves + 1), np.int64)
    best[0, 0, 0] = 0.0
    for k in range(n_tiers):
        for i, j in np.argwhere(np.isfinite(cost_s[k])).tolist():
            if deadline.has_passed():
                raise TimeoutError(
                    f"replan: the time limit of {deadline.limit_s:g} s passed before the split"
                    " was found"
                )
            moved = int(moves[k, i, j])
            if moved > max_moves:
                continue
            before = best[k, i, : max_moves + 1 - moved]
            value = before + cost_s[k, i, j] if is_sum else np.maximum(before, cost_s[k, i, j])
            better = value < best[k + 1, j, moved:]
            best[k + 1, j, moved:][better] = value[better]
            last[k + 1, j, moved:][better] = i
    cuts = np.zeros((max_moves + 1, n_tiers + 1), np.int64)
    for m in range(max_moves + 1):
        left, cuts[m, n_tiers] = m, instance.n_blocks
        if math.isinf(best[n_tiers, -1, m]):
            continue
        for k in range(n_tiers, 0, -1):
            j = cuts[m, k]
            cuts[m, k - 1] = last[k, j, left]
            left -= int(moves[k - 1, cuts[m, k - 1], j])
    return best[n_tiers, -1], cuts


def falling(best: Array) -> tuple[tuple[int, float], ...]:
    """Return (moves, objective) wherever one more move lets the objective fall."""
    points: list[tuple[int, float]] = []
    for m, value in enumerate(best.tolist()):
        if math.isfinite(value) and (not points or value < points[-1][1] * (1 - 1e-12)):
            points.append((m, value))
    return tuple(points)
