"""The patterns of a search, with what is known of their rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.placement_evaluation import link_rate
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.placement.master import Column, Duals, Link, Share
from hypsolve.solvers.placement.pattern_values import MARGIN, PatternValues
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace

SLICE = 64
"""Patterns that are solved between two looks at the clock."""


class PatternPool:
    """Patterns, upper bounds on their rates, and the rates and cuts of those that are solved.

    Attributes
    ----------
    patterns : list of Pattern
    is_solved : ndarray of bool
        Whether rate and cuts of each pattern are known.
    safe, best : ndarray
        Rates of solved patterns, a little below and above their value. Where links of a pattern
        depend on the machines that host it, they are those on the worst and the best ones.
    limit : ndarray
        Upper bounds on the rates of patterns that are not solved.
    cuts : list of tuple of int
    shares : list of Share
        All shares of machines that patterns take.
    links : dict
        Bytes per second of the shared links that patterns cross.
    is_exact : bool
        Whether `safe` and `best` differ by rounding alone.
    """

    def __init__(self, space: PatternSpace, values: PatternValues) -> None:
        self.space, self.values = space, values
        self.patterns: list[Pattern] = []
        self.is_solved: NDArray[np.bool_] = np.zeros(0, bool)
        self.safe, self.best, self.limit = (np.zeros(0) for _ in range(3))
        self.cuts: list[tuple[int, ...]] = []
        self.shares: list[Share] = list(space.units)
        self.links: dict[Link, float] = {}
        requests, blocks = space.problem.requests, space.problem.model.blocks
        tokens = float((requests.prompt_tokens + requests.output_tokens - 1).mean())
        sent = [block.output_bytes_per_token for block in blocks[:-1]] or [0]
        self.sent = tokens * min(sent), tokens * max(sent)
        self.is_exact = values.is_exact and self.sent[0] == self.sent[1]
        self.n_solved = 0
        self._index: dict[Pattern, int] = {}
        self._share_index = {share: at for at, share in enumerate(self.shares)}
        self._share_of: IntArray = np.zeros((0, space.problem.max_stages), np.int64)
        self._link_kinds: dict[tuple[tuple[Link, int], ...], int] = {}
        self._link_kind: IntArray = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.patterns)

    @property
    def rates(self) -> Array:
        """Upper bounds on the rates: `best` of solved patterns, `limit` of the others."""
        return np.where(self.is_solved, self.best, self.limit)

    def add(self, patterns: Iterable[Pattern]) -> list[int]:
        """Add the patterns that are new, and return their indices."""
        first = len(self.patterns)
        for pattern in patterns:
            if pattern not in self._index:
                self._index[pattern] = len(self.patterns)
                self.patterns.append(pattern)
        new = self.patterns[first:]
        share_of = np.full((len(new), self._share_of.shape[1]), -1)  # -1: of no price
        kinds = np.zeros(len(new), np.int64)
        for p, pattern in enumerate(new):
            for s, share in enumerate(pattern.sizes):
                if share not in self._share_index:
                    self._share_index[share] = len(self.shares)
                    self.shares.append(share)
                share_of[p, s] = self._share_index[share]
            crossed = tuple(sorted(self._crossed(pattern).items()))
            for link, _ in crossed:
                if link not in self.links:
                    self.links[link] = link_rate(self.space.problem, link)
            kinds[p] = self._link_kinds.setdefault(crossed, len(self._link_kinds))
        self._share_of = np.concatenate([self._share_of, share_of])
        self._link_kind = np.concatenate([self._link_kind, kinds])
        zeros = np.zeros(len(new))
        self.is_solved = np.concatenate([self.is_solved, zeros > 0])
        self.safe, self.best = (np.concatenate([a, zeros]) for a in (self.safe, self.best))
        self.limit = np.concatenate([self.limit, np.full(len(new), math.inf)])
        self.cuts += [()] * len(new)
        return list(range(first, len(self.patterns)))

    def enumerate(self, max_patterns: int, deadline: Deadline) -> int:
        """Add all patterns, or those of fewer stages if they are too many or take too long.

        Returns
        -------
        int
            Number of stages up to which all patterns are added.
        """
        most = self.space.problem.max_stages
        for n in range(1, most + 1):
            found: list[Pattern] = []
            for pattern in self.space.of_length(n):
                found.append(pattern)
                is_full = len(self) + len(found) > max_patterns
                if n > 1 and (is_full or deadline.has_passed()):
                    return n - 1
            self.add(found)
        return most

    def _crossed(self, pattern: Pattern) -> dict[Link, int]:
        """Return how often a request crosses each shared link.

        Stages of one class cross none: its machines are in one site, and a machine whose stages
        share an uplink is a class of its own.
        """
        found: dict[Link, int] = {}
        for (a, _), (b, _) in itertools.pairwise(pattern.units):
            if a == b:
                continue
            start, end = self.space.classes[a], self.space.classes[b]
            crossed: list[Link] = []
            if start.site != end.site:
                crossed.append(("sites", start.site, end.site))
            if start.has_shared_uplink:
                crossed.append(("out", start.machines[0].name))
            if end.has_shared_uplink:
                crossed.append(("in", end.machines[0].name))
            for link in crossed:
                found[link] = found.get(link, 0) + 1
        return found

    def solve(self, of: Sequence[int] | IntArray, deadline: Deadline = NEVER) -> None:
        """Find the rates and cuts of some patterns, in order, until the deadline."""
        chosen = [int(p) for p in of]
        for start in range(0, len(chosen), SLICE):
            self._solve(chosen[start : start + SLICE])
            if deadline.has_passed():
                return

    def _solve(self, chosen: list[int]) -> None:
        patterns = [self.patterns[p] for p in chosen]
        rates, cuts = self.values.rates(patterns)
        self.safe[chosen] = rates * (1 - MARGIN)
        self.best[chosen] = rates * (1 + MARGIN)
        if not self.values.is_exact:
            self.best[chosen] = self.values.rates(patterns, is_best=True)[0] * (1 + MARGIN)
        for p, each in zip(chosen, cuts, strict=True):
            self.cuts[p] = each
        self.is_solved[chosen] = True
        self.n_solved += len(chosen)

    def columns(self, of: Iterable[int], *, is_safe: bool = False) -> list[Column]:
        """Return patterns for the master, with their safe rates or with `rates`."""
        sent = self.sent[1] if is_safe else self.sent[0]
        kinds = list(self._link_kinds)
        found = []
        for p in of:
            rate = self.best[p] if self.is_solved[p] else self.limit[p]
            link_bytes = {link: n * sent for link, n in kinds[self._link_kind[p]]}
            rate = float(self.safe[p] if is_safe else rate)
            found.append(Column(self.patterns[p], rate, link_bytes))
        return found

    def profit(self, duals: Duals) -> Array:
        """Return an upper bound on what each pattern earns above the price of its GPUs."""
        of_kind = [
            duals.reward({link: n * self.sent[0] for link, n in kind})
            for kind in self._link_kinds
        ]
        reward = np.array(of_kind)[self._link_kind]
        return np.asarray(self.rates * reward - self.cost(duals))

    def cost(self, duals: Duals) -> Array:
        """Return the price of the GPUs of each pattern."""
        price = np.array([*map(duals.price, self.shares), 0.0])
        return np.asarray(price[self._share_of].sum(axis=1))

    def gpus(self) -> Array:
        """Return the number of GPUs of each pattern."""
        number = np.array([*(gpus for _, gpus in self.shares), 0])
        return np.asarray(number[self._share_of].sum(axis=1))
