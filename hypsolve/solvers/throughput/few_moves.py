"""`splits_with_few_moves`: the best splits of a batched server that move few blocks."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hypsolve.kernels.throughput.server import Server
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.serving import ServingInstance
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.exact import BoxSolver, Ranked, parts
from hypsolve.solvers.throughput.server_arrays import server_of


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """The tiers in which each block was before, by which moved blocks are counted.

    Attributes
    ----------
    was_in : ndarray of bool, shape (n_tiers, n_blocks)
        Whether a block was in a tier: it may stay there. Nodes that held equal blocks may now
        be tiers of their own, so a block may have been in several.
    """

    was_in: NDArray[np.bool_]

    @classmethod
    def of_tiers(cls, tier_before: IntArray, n_tiers: int) -> Moves:
        """Make it of the number of each block's tier; -1 for a tier that is gone."""
        return cls(np.arange(n_tiers)[:, None] == tier_before)

    def fewest(self, cut_min: IntArray, cut_max: IntArray) -> int:
        """Return a lower bound on the moved blocks of all splits with cuts in these ranges.

        It is exact if every range is a single cut.
        """
        low = np.maximum.accumulate(cut_min)[:-1, None]
        high = np.minimum.accumulate(cut_max[::-1])[::-1][1:, None]
        block = np.arange(self.was_in.shape[1])
        may_stay = (self.was_in & (low <= block) & (block < high)).any(axis=0)
        return int(len(block) - may_stay.sum())

    def of(self, cuts: tuple[int, ...]) -> int:
        """Return the number of blocks that a split moves."""
        return self.fewest(np.array(cuts), np.array(cuts))


def splits_with_few_moves(
    instance: ServingInstance,
    moves: Moves,
    max_moves: int,
    *,
    n_splits: int = 1,
    deadline: Deadline,
) -> tuple[list[Ranked], bool]:
    """Return the best splits of the fluid model that move at most `max_moves` blocks.

    Best-first branch and bound: the best split of a box of cuts bounds all of its splits. A box
    is cut down to the cuts that some split with so few moves may have. It is halved if its best
    split moves more blocks, and divided around this split otherwise.

    Parameters
    ----------
    instance : ServingInstance
    moves : Moves
        Of as many blocks.
    max_moves : int
    n_splits : int
        Number of splits.
    deadline : Deadline
        When it has passed, no further box is solved.

    Returns
    -------
    splits : list of Ranked
        The best first, without a gap; empty if no split with so few moves carries any rate.
    was_cut_off : bool
        Whether the deadline passed before the end: other splits may be better.
    """
    solver = BoxSolver(instance, server_of(instance), deadline, {"trials": 0, "solves": 0})
    counter = itertools.count()  # breaks ties in the heap by age
    heap: list[tuple[float, int, Ranked, Server]] = []
    found: list[Ranked] = []

    def push(box: Server) -> None:
        tight = _tightened(box, moves, max_moves)
        split = None if tight is None else solver.best(tight)
        if tight is not None and split is not None:
            heapq.heappush(heap, (-split.value, next(counter), split, tight))

    push(solver.server)
    while heap and len(found) < n_splits:
        _, _, split, box = heapq.heappop(heap)
        boxes = [part for part, _ in parts(box, split.cuts, 1)]
        if moves.of(split.cuts) <= max_moves:
            found.append(split)
        else:
            boxes = _halves(box)
        for part in boxes:
            if deadline.has_passed():
                return found, True
            push(part)
    return found, solver.was_cut_off


def _tightened(box: Server, moves: Moves, max_moves: int) -> Server | None:
    """Return a box without cuts that no split with so few moves has; None if it is empty."""
    low, high = box.cut_min.copy(), box.cut_max.copy()
    if moves.fewest(low, high) > max_moves:
        return None
    for at in range(1, len(low) - 1):
        few = []
        for cut in range(int(low[at]), int(high[at]) + 1):
            least, most = low.copy(), high.copy()
            least[at] = most[at] = cut
            if moves.fewest(least, most) <= max_moves:
                few.append(cut)
        if not few:
            return None
        low[at], high[at] = few[0], few[-1]
    return box._replace(cut_min=low, cut_max=high)


def _halves(box: Server) -> list[Server]:
    """Divide a box in the middle of its widest range of cuts."""
    at = int(np.argmax(box.cut_max - box.cut_min))
    middle = int(box.cut_min[at] + box.cut_max[at]) // 2
    high, low = box.cut_max.copy(), box.cut_min.copy()
    high[at], low[at] = middle, middle + 1
    return [box._replace(cut_max=high), box._replace(cut_min=low)]
