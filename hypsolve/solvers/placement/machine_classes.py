"""Classes of interchangeable machines, groups of their GPUs, and the links between them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypsolve.problem.fleet import Fleet, Machine
from hypsolve.problem.network import Link
from hypsolve.problem.placement import DegreeRule, PlacementProblem


@dataclass(frozen=True, slots=True)
class MachineClass:
    """Machines that a placement may exchange for each other.

    Attributes
    ----------
    machines : tuple of Machine
    degrees : tuple of int
        Degrees of tensor parallelism that their groups of GPUs may have.
    apart : frozenset of int
        Indices of the sets of `Fleet.apart` that they belong to.
    """

    machines: tuple[Machine, ...]
    degrees: tuple[int, ...]
    apart: frozenset[int]

    @property
    def gpus(self) -> int:
        """Number of GPUs of each machine."""
        return self.machines[0].node.gpus

    @property
    def site(self) -> str:
        """Site of the machines."""
        return self.machines[0].site

    @property
    def price_per_hour(self) -> float:
        """Price of each machine."""
        return self.machines[0].price_per_hour

    @property
    def has_shared_uplink(self) -> bool:
        """Whether several stages of a machine may share its uplink."""
        return self.machines[0].uplink is not None and self.gpus > 1


def classes_of(problem: PlacementProblem) -> tuple[MachineClass, ...]:
    """Return the classes of the machines of a problem.

    Machines of a class differ in nothing that counts. A machine whose stages share an uplink is
    a class of its own, because the loads on its uplink add up.
    """
    fleet = problem.fleet
    members: dict[tuple[object, ...], list[Machine]] = {}
    for machine in fleet.machines:
        apart = frozenset(i for i, names in enumerate(fleet.apart) if machine.name in names)
        alone = machine.name if machine.uplink is not None and machine.node.gpus > 1 else ""
        key = (*machine.kind, apart, alone)
        members.setdefault(key, []).append(machine)
    return tuple(
        MachineClass(tuple(machines), problem.degrees_of(machines[0]), key[-2])  # type: ignore[arg-type]
        for key, machines in members.items()
    )


@dataclass(frozen=True, slots=True)
class Bundle:
    """Consecutive stages on one machine.

    Attributes
    ----------
    of : int
        Index of the class of the machine.
    degrees : tuple of int
        GPUs of each stage.
    """

    of: int
    degrees: tuple[int, ...]

    @property
    def gpus(self) -> int:
        """Number of GPUs that it takes."""
        return sum(self.degrees)


class Links:
    """Links between machines of some classes, and between GPUs of one machine.

    Two stages on machines of one class may end up on one machine, unless a pattern says
    otherwise. Their *safe* link is the worse of both in every respect, their *best* link the
    better.
    """

    def __init__(self, fleet: Fleet, classes: Sequence[MachineClass]) -> None:
        self.fleet, self.classes = fleet, classes
        self.inside = [fleet.link(c.machines[0], c.machines[0]) for c in classes]
        self._outside = [
            fleet.link(c.machines[0], c.machines[-1])
            if len(c.machines) > 1
            else fleet.site_link(c.site, c.site)
            for c in classes
        ]
        self._known: dict[tuple[int, int, bool], Link | None] = {}

    def between(self, a: int, b: int, is_best: bool = False) -> Link | None:
        """Return the link from one bundle to another one, not known to be on one machine."""
        key = a, b, is_best
        if key not in self._known:
            self._known[key] = self._link(a, b, is_best)
        return self._known[key]

    def _link(self, a: int, b: int, is_best: bool) -> Link | None:
        first, second = self.classes[a].machines[0], self.classes[b].machines[-1]
        if first.name != second.name and (a != b or self.classes[a].gpus == 1):
            return self.fleet.link(first, second)
        if first.name == second.name:
            return self.inside[a]
        own, apart = self.inside[a], self.fleet.link(first, second)
        assert own is not None and apart is not None  # of one site
        low, high = (max, min) if is_best else (min, max)
        latency_s = high(own.latency_s, apart.latency_s)
        return Link(
            bytes_per_s=low(own.bytes_per_s, apart.bytes_per_s),
            latency_s=latency_s,
            return_latency_s=high(_back(own), _back(apart)),
        )

    def is_inside_better(self, of: int) -> bool:
        """Return whether links inside a machine may be better than those of its class."""
        own, outside = self.inside[of], self._outside[of]
        if self.classes[of].gpus == 1 or own is None or outside is None:
            return False
        return own.bytes_per_s > outside.bytes_per_s or _is_shorter(own, outside)

    def is_inside_worse(self, of: int) -> bool:
        """Return whether links inside a machine may be worse than those of its class."""
        own, outside = self.inside[of], self._outside[of]
        if self.classes[of].gpus == 1 or own is None or outside is None:
            return False
        return own.bytes_per_s < outside.bytes_per_s or _is_shorter(outside, own)


def _is_shorter(one: Link, other: Link) -> bool:
    return one.latency_s < other.latency_s or _back(one) < _back(other)


def _back(link: Link) -> float:
    return link.round_trip_s - link.latency_s


def bundles_of(
    problem: PlacementProblem, classes: Sequence[MachineClass], links: Links
) -> list[Bundle]:
    """Return the bundles that a pipeline may contain.

    Stages on one machine are a bundle of their own only where the links inside it may be
    better; otherwise each stage is a bundle by itself.
    """
    found: list[Bundle] = []
    for c, each in enumerate(classes):
        is_run = links.is_inside_better(c) or bool(each.apart)
        longest = problem.max_stages if is_run else 1
        found += [
            Bundle(c, degrees)
            for degrees in _runs(each.degrees, each.gpus, longest)
            if problem.degrees is not DegreeRule.COMMON or len(set(degrees)) == 1
        ]
    return found


def _runs(degrees: tuple[int, ...], gpus: int, longest: int) -> Iterator[tuple[int, ...]]:
    """Yield the sequences of degrees that fit on a machine."""
    for n in range(1, longest + 1):
        if n * min(degrees) > gpus:
            return
        for run in itertools.product(degrees, repeat=n):
            if sum(run) <= gpus:
                yield run


@functools.lru_cache(maxsize=100_000)
def pack(sizes: tuple[int, ...], gpus: int, n_machines: int) -> tuple[int, ...] | None:
    """Return a machine for each size, such that none holds more than its GPUs; None: no way.

    Parameters
    ----------
    sizes : tuple of int
        From the largest to the smallest.

    Examples
    --------
    >>> pack((3, 3, 2), 4, 2) is None
    True
    >>> pack((3, 2, 2, 1), 4, 2)
    (0, 1, 1, 0)
    """
    free, where = [gpus] * n_machines, [0] * len(sizes)

    def place(at: int) -> bool:
        if at == len(sizes):
            return True
        start = where[at - 1] if at and sizes[at] == sizes[at - 1] else 0
        tried: set[int] = set()
        for m in range(start, n_machines):
            if free[m] < sizes[at] or free[m] in tried:
                continue
            tried.add(free[m])
            free[m] -= sizes[at]
            where[at] = m
            if place(at + 1):
                return True
            free[m] += sizes[at]
        return False

    if sum(sizes) > gpus * n_machines or not place(0):
        return None
    return tuple(where)
