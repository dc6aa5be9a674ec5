"""Patterns: pipelines over classes of machines, without names of machines and cuts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hypsolve.problem.placement import DegreeRule, PlacementProblem
from hypsolve.solvers.placement.machine_classes import (
    Bundle,
    Links,
    MachineClass,
    bundles_of,
    classes_of,
    pack,
)
from hypsolve.solvers.placement.values import Box, boxes

Unit = tuple[int, int]
"""Index of a class of machines, and the degree of tensor parallelism of a stage."""


class Pattern(NamedTuple):
    """A pipeline up to an exchange of equal machines.

    Attributes
    ----------
    units : tuple of Unit
        Of each stage.
    shares : tuple of int
        Index of the share of a machine that each stage is part of. Stages of one share are on
        one machine; two shares may be on one machine or on two.
    sizes : tuple of (int, int)
        Class and number of GPUs of each share.
    """

    units: tuple[Unit, ...]
    shares: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


class PatternSpace:
    """All patterns of a problem: its classes, bundles of stages, links and rules.

    In a run of stages of one site, the order does not count, except at the ends of the
    pipeline, if all transformer layers are alike, and if links between machines of a site are:
    such stages hold any part of the layers between the first and the last stage, and each of
    them has the same link behind it. Then only one order of the bundles of a run is a pattern.

    Attributes
    ----------
    problem : PlacementProblem
    classes : tuple of MachineClass
    links : Links
    bundles : list of Bundle
    is_symmetric : bool
        Whether the order in a run of stages of one site does not count.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.classes: tuple[MachineClass, ...] = classes_of(problem)
        self.links = Links(problem.fleet, self.classes)
        self.bundles = bundles_of(problem, self.classes, self.links)
        self.is_symmetric = (
            _has_like_layers(problem)
            and all(c.machines[0].uplink is None for c in self.classes)
            and not any(self.links.is_inside_worse(c) for c in range(len(self.classes)))
        )
        self._has_bundles = [
            any(b.of == c and len(b.degrees) > 1 for b in self.bundles)
            for c in range(len(self.classes))
        ]

    @property
    def units(self) -> list[Unit]:
        """All units that a pattern may contain."""
        return [(c, degree) for c, each in enumerate(self.classes) for degree in each.degrees]

    def patterns(self) -> Iterator[Pattern]:
        """Yield all patterns, those of few stages first."""
        for n_stages in range(1, self.problem.max_stages + 1):
            yield from self.of_length(n_stages)

    def of_length(self, n_stages: int) -> Iterator[Pattern]:
        """Yield the patterns of some number of stages, those of few bundles first."""
        for n in range(1, n_stages + 1):
            for bundles in self._sequences(n, n_stages):
                yield from self.finished(bundles)

    def _sequences(self, n: int, n_stages: int) -> Iterator[tuple[Bundle, ...]]:
        """Yield the sequences of n bundles with so many stages that rules and links allow."""
        prefix: list[Bundle] = []

        def extend(so_far: int) -> Iterator[tuple[Bundle, ...]]:
            if len(prefix) == n:
                yield tuple(prefix)
                return
            is_last = len(prefix) == n - 1
            for bundle in self.bundles:
                total = so_far + len(bundle.degrees)
                if total + (n - 1 - len(prefix)) > n_stages or (is_last and total < n_stages):
                    continue
                if prefix and not self._may_follow(prefix, bundle, is_last):
                    continue
                prefix.append(bundle)
                yield from extend(total)
                prefix.pop()

        yield from extend(0)

    def of_units(self, units: Sequence[Unit]) -> Iterator[Pattern]:
        """Yield the patterns of some units in order, each on a machine of its own."""
        bundles = [Bundle(c, (degree,)) for c, degree in units]
        is_common = len({degree for _, degree in units}) == 1
        if self.problem.degrees is DegreeRule.COMMON and not is_common:
            return
        for a, b in itertools.pairwise([*units, units[0]]):
            if len(units) > 1 and self.links.between(a[0], b[0]) is None:
                return
        yield from self.finished(bundles)

    def copies(self, units: Sequence[Unit]) -> int:
        """Return how often the fleet can host different units, one class at most once."""
        if len({c for c, _ in units}) < len(units):
            return 0
        return min(
            len(self.classes[c].machines) * (self.classes[c].gpus // degree)
            for c, degree in units
        )

    def _may_follow(self, prefix: list[Bundle], bundle: Bundle, is_last: bool) -> bool:
        first, before = prefix[0], prefix[-1]
        if self.problem.degrees is DegreeRule.COMMON and bundle.degrees[0] != first.degrees[0]:
            return False
        if before.of == bundle.of:
            if len(self.classes[bundle.of].machines) == 1 and self._has_bundles[bundle.of]:
                return False  # both are on one machine: a longer bundle
            if self.classes[bundle.of].apart:
                return False
        if self.links.between(before.of, bundle.of) is None:
            return False
        if is_last and self.links.between(bundle.of, first.of) is None:
            return False
        if self.is_symmetric and not is_last and len(prefix) > 1:
            sites = self.classes[before.of].site, self.classes[bundle.of].site
            if sites[0] == sites[1] and (bundle.of, bundle.degrees) < (
                before.of,
                before.degrees,
            ):
                return False
        return True

    def finished(self, bundles: Sequence[Bundle]) -> Iterator[Pattern]:
        """Yield the patterns of a sequence of bundles that the fleet can host."""
        share = list(range(len(bundles)))
        for a, b in itertools.combinations(range(len(bundles)), 2):
            if self.classes[bundles[a].of].apart & self.classes[bundles[b].of].apart:
                if bundles[a].of != bundles[b].of:
                    return
                share[b] = share[a]
        pattern = self._pattern(bundles, share)
        if self._is_hosted(pattern):
            yield pattern
        first, last = bundles[0], bundles[-1]
        if (
            len(bundles) > 2
            and first.of == last.of
            and share[0] != share[-1]
            and self._has_bundles[first.of]
            and len(self.classes[first.of].machines) > 1
        ):
            share[-1] = share[0]
            pattern = self._pattern(bundles, share)
            if self._is_hosted(pattern):
                yield pattern

    def _pattern(self, bundles: Sequence[Bundle], share: list[int]) -> Pattern:
        order = {s: at for at, s in enumerate(dict.fromkeys(share))}
        of, gpus = [0] * len(order), [0] * len(order)
        units: list[Unit] = []
        shares: list[int] = []
        for bundle, s in zip(bundles, share, strict=True):
            at = order[s]
            of[at] = bundle.of
            gpus[at] += bundle.gpus
            units += [(bundle.of, degree) for degree in bundle.degrees]
            shares += [at] * len(bundle.degrees)
        return Pattern(tuple(units), tuple(shares), tuple(zip(of, gpus, strict=True)))

    def _is_hosted(self, pattern: Pattern) -> bool:
        if len(pattern.units) > self.problem.model.n_blocks:
            return False
        return self.can_host(pattern.sizes) and (
            not self.problem.fleet.pins or bool(self.boxes(pattern))
        )

    def can_host(self, sizes: Sequence[tuple[int, int]]) -> bool:
        """Return whether the fleet has the GPUs for some shares of machines."""
        by_class: dict[int, list[int]] = defaultdict(list)
        for of, gpus in sizes:
            by_class[of].append(gpus)
        for of, each in by_class.items():
            found = self.classes[of]
            if pack(tuple(sorted(each, reverse=True)), found.gpus, len(found.machines)) is None:
                return False
        return True

    def boxes(self, pattern: Pattern) -> tuple[Box, ...]:
        """Return the limits of the cuts that pinned blocks impose: one of these boxes."""
        return boxes(self.problem, [self.classes[of].site for of, _ in pattern.units])


def _has_like_layers(problem: PlacementProblem) -> bool:
    """Return whether all blocks between the first and the last one are of one kind."""
    return len({block.kind for block in problem.model.blocks[1:-1]}) <= 1
