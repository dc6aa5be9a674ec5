"""`LoadSearch`: of all splits, one that serves a load within its targets, if there is one."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.split_simulator import Cuts, SplitSimulator
from hypsolve.problem import evaluation
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline

MAX_ALL = 500  # splits up to which all are simulated, if the time allows
MAX_CUTS = 20_000  # splits with or without memory, up to which those that fit are counted
STEPS = (1, 2, 4, 8)  # blocks by which a cut is moved
STEP_COSTS = 0.02  # relative, by which a split is put back for each of these blocks
PATIENCE, LITTLE = 60, 20  # splits without a better one, after which the search ends
FAR = 1.4  # times its targets, from which there is little patience


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSearched:
    """Number of splits simulated at a load, and whether one of them serves it.

    Attributes
    ----------
    is_met : bool
        Whether a split was found that serves the load within its targets.
    n_simulated : int
        Splits that were simulated at the load.
    n_splits : int or None
        Splits that fit on the nodes; None if they were too many to be counted.
    was_cut_short : bool
        Whether the time limit or an interrupt ended the search.
    n_refuted : int
        Choices of nodes whose bound on the rate is below the load, so that none was simulated.
    is_of_all_nodes : bool
        Whether no node of the query is left out by all choices of nodes that were searched.
    """

    is_met: bool
    n_simulated: int
    n_splits: int | None
    was_cut_short: bool
    n_refuted: int = 0
    is_of_all_nodes: bool = True

    @property
    def is_of_all(self) -> bool:
        """Whether all splits were simulated, or refuted by a bound."""
        is_complete = self.n_splits is not None and self.n_simulated >= self.n_splits
        return is_complete and self.is_of_all_nodes

    def with_nodes(self, other: LoadSearched) -> LoadSearched:
        """Return what is known together with the search on another choice of nodes."""
        known = None not in (self.n_splits, other.n_splits)
        return LoadSearched(
            is_met=self.is_met or other.is_met,
            n_simulated=self.n_simulated + other.n_simulated,
            n_splits=(self.n_splits or 0) + (other.n_splits or 0) if known else None,
            was_cut_short=self.was_cut_short or other.was_cut_short,
            n_refuted=self.n_refuted + other.n_refuted,
            is_of_all_nodes=self.is_of_all_nodes and other.is_of_all_nodes,
        )


class LoadSearch:
    """The search for a split that serves the load of a query within its targets.

    A simulation tells the factor on the targets at which a split would serve the load. The next
    splits are those with a cut or two moved from one with a small factor. Where at most
    `MAX_ALL` splits fit, the search goes on until all are simulated, and else until many have
    brought no smaller factor.

    Attributes
    ----------
    stretch : dict
        Maps each split that was simulated to that factor; see `SplitSimulator.stretch`.
    met : list of tuple of int
        Splits that serve the load; the search ends with the first.

    Parameters
    ----------
    simulator : SplitSimulator
    is_allowed : callable
        Whether a split may be chosen, if it fits.
    """

    def __init__(self, simulator: SplitSimulator, is_allowed: Callable[[Cuts], bool]) -> None:
        self.simulator, self.is_allowed = simulator, is_allowed
        self.stretch: dict[Cuts, float] = {}
        self.met: list[Cuts] = []
        self.is_complete = False
        self._heap: list[tuple[float, Cuts]] = []
        self._seen: set[Cuts] = set()
        self._all: list[Cuts] | None = None
        self._has_counted = False
        self._n_since_better = 0

    def run(
        self,
        first: Sequence[Cuts],
        deadline: Deadline,
        progress: Progress,
        *,
        stops_far: bool = False,
    ) -> None:
        """Search from some splits on, or go on where the deadline ended the search.

        `stops_far` says whether the search stops for now where all first splits are far from
        the targets, since others hardly meet them.
        """
        n_first = len(self.stretch) + len(first)
        for cuts in first:
            self._push(cuts, 0.0)
        while not (self.met or self.is_complete):
            is_far = min(self.stretch.values(), default=0.0) > FAR
            if stops_far and is_far and len(self.stretch) >= n_first:
                return
            if self.stretch and deadline.has_passed():
                return
            following = self._next()
            if following is None:
                self.is_complete = True
                return
            self._simulate(following)
            if len(self.stretch) > 1:
                progress(f"targets: {len(self.stretch)} splits simulated at this load")

    def best(self) -> Cuts | None:
        """Return the split with the smallest factor on the targets; None if none is known."""
        return min(self.stretch, key=self.stretch.__getitem__, default=None)

    def result(self) -> LoadSearched:
        """Return what is known."""
        splits = self._splits()
        return LoadSearched(
            is_met=bool(self.met),
            n_simulated=len(self.stretch),
            n_splits=None if splits is None else len(splits),
            was_cut_short=not (self.met or self.is_complete),
        )

    def _simulate(self, cuts: Cuts) -> None:
        before = min(self.stretch.values(), default=math.inf)
        found = self.stretch[cuts] = self.simulator.stretch(cuts)
        self._n_since_better = 0 if found < before else self._n_since_better + 1
        if found <= 1:
            self.met.append(cuts)
            return
        finite = min(found, 1e9)  # a split that serves nothing still has neighbours
        for moved, n_blocks in _moves(cuts):
            self._push(moved, finite * (1 + STEP_COSTS * n_blocks))

    def _push(self, cuts: Cuts, order: float) -> None:
        if cuts not in self._seen:
            self._seen.add(cuts)
            heapq.heappush(self._heap, (order, cuts))

    def _next(self) -> Cuts | None:
        """Return the split to simulate next; None if the search is over."""
        few = self._splits()
        if few is None and self._n_since_better >= self._patience():
            return None
        while self._heap:
            _, cuts = heapq.heappop(self._heap)
            if self.is_allowed(cuts) and _fits(self.simulator.instance, cuts):
                return cuts
        left = (cuts for cuts in few or () if cuts not in self.stretch)
        return next(left, None)

    def _patience(self) -> int:
        return PATIENCE if min(self.stretch.values(), default=FAR) < FAR else LITTLE

    def _splits(self) -> list[Cuts] | None:
        """Return all splits that fit, if these are few; counted once."""
        if not self._has_counted:
            self._has_counted = True
            self._all = _few_splits(self.simulator.instance, self.is_allowed)
        return self._all


def _moves(cuts: Cuts) -> Iterator[tuple[Cuts, int]]:
    """Yield splits with a cut, or two adjacent ones, moved, and the number of blocks."""
    inner = range(1, len(cuts) - 1)
    for step in STEPS:
        for first, last in ((at, at + more) for at in inner for more in (0, 1)):
            if last not in inner:
                continue
            for by in (-step, step):
                moved = tuple(
                    cut + by if first <= at <= last else cut for at, cut in enumerate(cuts)
                )
                if all(a <= b for a, b in itertools.pairwise(moved)):
                    yield moved, step


def _fits(instance: Instance, cuts: Cuts) -> bool:
    return not evaluation.check(instance, Partition(cuts))


def _few_splits(
    instance: Instance, is_allowed: Callable[[Cuts], bool], most: int = MAX_ALL
) -> list[Cuts] | None:
    """Return all splits that fit and are allowed; None if there are more than `most`."""
    n_blocks, n_inner = instance.n_blocks, instance.n_tiers - 1
    if math.comb(n_blocks + n_inner, n_inner) > MAX_CUTS:
        return None
    found = []
    for inner in itertools.combinations_with_replacement(range(n_blocks + 1), n_inner):
        cuts = (0, *inner, n_blocks)
        sizes = [j - i for i, j in itertools.pairwise(cuts)]
        if min(sizes) == 0 and not instance.allow_empty:
            continue
        if is_allowed(cuts) and _fits(instance, cuts):
            found.append(cuts)
            if len(found) > most:
                return None
    return found
