"""Patterns that may pay for their GPUs, among those that are too many to enumerate.

For given prices of GPUs, a dynamic program finds the cheapest units that host all layers at a
rate, by the upper bounds of `RateLimits`: for every number of stages, every set of sites that a
pipeline visits, and every degree, if stages have one in common. Orders of stages, links between
them and numbers of stages on one machine are relaxed, so its answer bounds what any of these
patterns earns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.placement import DegreeRule
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.many_networks import checked_threads
from hypsolve.solvers.placement.machine_classes import Bundle
from hypsolve.solvers.placement.master import Duals
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace, Unit
from hypsolve.solvers.placement.rate_limits import FIRST, LAST, MIDDLE, RateLimits

N_PRICED = 240
"""Rates that the dynamic program tries."""
N_BEST = 6
"""Rates at which a pattern is made of the cheapest units."""
MARGIN = 1e-8


@dataclass(frozen=True)
class Family:
    """Patterns that one dynamic program covers.

    Attributes
    ----------
    n_stages : int
    sites : tuple of str
        In an order of the least round trip.
    units : tuple of Unit
    trip, other : int
        Levels of `RateLimits`: latency of the links, and seconds of other layers.
    most : float
        Requests per second that the links between the sites carry.
    """

    n_stages: int
    sites: tuple[str, ...]
    units: tuple[Unit, ...]
    trip: int
    other: int
    most: float


@dataclass(frozen=True)
class Priced:
    """Largest value of the patterns of all families, at some prices.

    Attributes
    ----------
    factor : float
        Factor by which prices must rise so that no pattern earns more than its GPUs cost.
    patterns : list of Pattern
        Candidates, those that earn most first.
    """

    factor: float
    patterns: list[Pattern]


def round_trips(space: PatternSpace, n_stages: int) -> dict[frozenset[str], tuple]:
    """Return the least latency of links, by the sites that so many stages visit, and an order.

    Sets of sites without links, or of more sites than stages, are left out.
    """
    fleet = space.problem.fleet
    sites = sorted({each.site for each in space.classes})
    local = min(
        [site.link.latency_s for site in fleet.sites]
        + [link.latency_s for link in space.links.inside if link is not None]
    )
    found: dict[frozenset[str], tuple] = {}
    for n in range(1, min(len(sites), n_stages) + 1):
        for some in itertools.permutations(sites, n):
            total, is_linked = (n_stages - n) * local, True
            for a, b in itertools.pairwise((*some, some[0])):
                if a == b:
                    total += local
                    continue
                link = fleet.site_link(a, b)
                if link is None:
                    is_linked = False
                    break
                total += link.latency_s
            key = frozenset(some)
            if is_linked and (key not in found or total < found[key][0]):
                found[key] = total, some
    return found


class PatternPricing:
    """The dynamic programs of all families of at least some stages."""

    def __init__(
        self, space: PatternSpace, limits: RateLimits, n_enumerated: int, sent: float
    ) -> None:
        self.space, self.limits, self.sent = space, limits, sent
        self.n_threads = checked_threads("placement", limits.values.n_threads, 100, 1)
        step = max(1, len(limits.rates) // N_PRICED)
        at = np.arange(len(limits.rates) - 1, -1, -step)[::-1]
        self._at: IntArray = at
        above = np.append(limits.rates[at[1:]], limits.rates[-1])
        # the first column stands for all rates below the second one
        self.rates: Array = np.concatenate([[limits.rates[at[0]]], above]) * (1 + MARGIN)
        self._index = {unit: u for u, unit in enumerate(limits.values.units)}
        self.families = [
            family
            for n in range(max(2, n_enumerated + 1), space.problem.max_stages + 1)
            for family in self._families(n)
        ]

    def _families(self, n_stages: int) -> Iterator[Family]:
        limits, space = self.limits, self.space
        is_common = space.problem.degrees is DegreeRule.COMMON
        degrees = sorted({degree for _, degree in space.units}) if is_common else [0]
        for sites, (trip_s, order) in round_trips(space, n_stages).items():
            trip = limits.trip_level(trip_s)
            for degree in degrees:
                for other, least_s in enumerate(limits.layer_levels):
                    units = tuple(
                        (c, d)
                        for c, d in space.units
                        if space.classes[c].site in sites
                        and d in (degree or d,)
                        and limits.layer_s[self._index[c, d]] >= least_s
                    )
                    if units:
                        most = self._linked_rate(order)
                        yield Family(n_stages, order, units, trip, other, most)

    def _linked_rate(self, sites: tuple[str, ...]) -> float:
        """Return the requests per second that cross from and to each of the sites."""
        if len(sites) == 1 or not self.sent:
            return math.inf
        fleet = self.space.problem.fleet
        most = math.inf
        for a in sites:
            links = [fleet.site_link(a, b) or fleet.site_link(b, a) for b in sites if b != a]
            back = [fleet.site_link(b, a) for b in sites if b != a]
            rates = [link.bytes_per_s for link in (*links, *back) if link is not None]
            most = min(most, max(rates) / self.sent)
        return most

    def reference(self, is_cost: bool) -> Duals:
        """Return dual values whose prices are the capacities of GPUs, or the given prices.

        At a rate X, a unit hosts m of the L layers: its capacity is the largest X m / L. If a
        pattern carries X, the capacities of its units add up to at least X.
        """
        classes, n_layers = self.space.classes, self.limits.n_layers
        capacity = np.zeros(len(classes))
        for family in self.families:
            for position in range(3):
                hosted = np.clip(self._hosted(family, position), 0, n_layers)
                extra = hosted * self.rates / n_layers
                for unit in family.units:
                    most = float(extra[self._index[unit]].max()) / unit[1]
                    capacity[unit[0]] = max(capacity[unit[0]], most)
        sizes = [range(1, each.gpus + 1) for each in classes]
        rate, each_gpu = 1.0, capacity
        number = [len(each.machines) * each.gpus for each in classes]
        value = float((capacity * number).sum())
        if is_cost:
            each_gpu = np.array([each.price_per_hour / each.gpus for each in classes])
            used = capacity > 0
            rate = float((each_gpu[used] / capacity[used]).min()) if used.any() else 0.0
            value = -rate * (self.space.problem.requests_per_s or 0.0)
        share = {(c, s): float(each_gpu[c]) * s for c, some in enumerate(sizes) for s in some}
        return Duals(value, share, {}, rate)

    def price(self, duals: Duals, deadline: Deadline) -> Priced:
        """Return what the patterns of all families earn at most, and candidates.

        Families that the deadline leaves out make the factor infinite.
        """

        def solve(family: Family) -> tuple[float, list[tuple[float, Pattern]]]:
            return (math.inf, []) if deadline.has_passed() else self._solve(family, duals)

        with ThreadPoolExecutor(self.n_threads) as pool:
            found = list(pool.map(solve, self.families))
        factor = max((each[0] for each in found), default=1.0)
        candidates = sorted((c for each in found for c in each[1]), key=lambda c: -c[0])
        return Priced(max(1.0, factor), [pattern for _, pattern in candidates])

    def _solve(self, family: Family, duals: Duals) -> tuple[float, list[tuple[float, Pattern]]]:
        from hypsolve.kernels import placement as kernels

        own = [self._index[unit] for unit in family.units]
        hosted = np.stack([self._hosted(family, position)[own] for position in range(3)])
        price = np.array([duals.share[unit] for unit in family.units])
        copies = np.array([self._copies(unit, family.n_stages) for unit in family.units])
        n_layers, n = self.limits.n_layers, family.n_stages
        cost = np.zeros(len(self.rates))
        choice = np.zeros((int(copies.sum()), n + 1, 4, n_layers + 1), np.uint8)
        kernels.cheapest_cover(hosted, price, copies, n, n_layers, cost, choice)
        earned = np.minimum(self.rates, family.most) * duals.rate
        possible = np.isfinite(cost)
        if not possible.any():
            return 1.0, []
        if (cost[possible] <= 0).any():
            return math.inf, []
        ratio = np.where(possible, earned / np.where(possible, cost, 1.0), 0.0)
        profit = np.where(possible, earned - cost, -math.inf)
        best = {*np.argsort(-profit)[:N_BEST].tolist(), *np.argsort(-ratio)[:N_BEST].tolist()}
        candidates = []
        for t in best:
            if not possible[t]:
                continue
            one = np.zeros(1)
            part = np.ascontiguousarray(hosted[:, :, t : t + 1])
            kernels.cheapest_cover(part, price, copies, n, n_layers, one, choice)
            units = _trace(family, part[:, :, 0], copies, choice, n_layers)
            for pattern in self._patterns(family, units):
                candidates.append((float(profit[t]), pattern))
        return float(ratio.max()), candidates

    def _hosted(self, family: Family, position: int) -> IntArray:
        """Return the largest numbers of layers; the first column is for any small rate."""
        args = family.n_stages, (FIRST, MIDDLE, LAST)[position], family.trip, family.other
        table = self.limits.hosted(*args)[:, self._at]
        return np.concatenate([self.limits.hosted_at_all(*args)[:, None], table], axis=1)

    def _copies(self, unit: Unit, n_stages: int) -> int:
        each = self.space.classes[unit[0]]
        return min(n_stages, len(each.machines) * (each.gpus // unit[1]))

    def _patterns(
        self, family: Family, units: tuple[Unit, list[Unit], Unit]
    ) -> Iterator[Pattern]:
        """Yield the patterns of a first unit, some between, and a last one, by sites."""
        first, between, last = units
        place = {site: at for at, site in enumerate(family.sites)}
        n = len(family.sites)
        start = place[self.space.classes[first[0]].site]
        end = place[self.space.classes[last[0]].site]

        def rank(unit: Unit) -> tuple[int, Unit]:
            at = (place[self.space.classes[unit[0]].site] - start) % n
            return (n if at == (end - start) % n and at else at), unit

        ordered = [first, *sorted(between, key=rank), last]
        bundles = [Bundle(c, (d,)) for c, d in ordered]
        for a, b in itertools.pairwise([*bundles, bundles[0]]):
            if self.space.links.between(a.of, b.of) is None:
                return
        yield from self.space.finished(bundles)
        joined = self._joined(bundles)
        if len(joined) < len(bundles):
            yield from self.space.finished(joined)

    def _joined(self, bundles: list[Bundle]) -> list[Bundle]:
        """Return the bundles with neighbours on one machine wherever they may be."""
        allowed = set(self.space.bundles)
        found = [bundles[0]]
        for bundle in bundles[1:]:
            longer = Bundle(bundle.of, (*found[-1].degrees, *bundle.degrees))
            if found[-1].of == bundle.of and longer in allowed:
                found[-1] = longer
            else:
                found.append(bundle)
        return found


def _trace(
    family: Family, hosted: IntArray, copies: IntArray, choice: np.ndarray, n_layers: int
) -> tuple[Unit, list[Unit], Unit]:
    """Return the first unit, those between, and the last one, by the choices."""
    from hypsolve.kernels import placement as kernels

    first = last = family.units[0]
    between = []
    k, ends, n = family.n_stages, 3, n_layers
    at = len(choice) - 1
    for u in range(len(family.units) - 1, -1, -1):
        for _ in range(int(copies[u])):
            how = int(choice[at, k, ends, n])
            at -= 1
            if how == kernels.NONE:
                continue
            unit = family.units[u]
            if how == kernels.AS_FIRST:
                first, ends, n = unit, ends - 1, max(0, n - int(hosted[FIRST, u]))
            elif how == kernels.AS_LAST:
                last, ends, n = unit, ends - 2, max(0, n - int(hosted[LAST, u]))
            else:
                between.append(unit)
                n = max(0, n - int(hosted[MIDDLE, u]))
            k -= 1
    return first, between, last
