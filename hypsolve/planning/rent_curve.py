"""`RentCurve`: the least price against the rate, and the prices at which the answer changes.

All of it is about the fluid model, as the bound of `hypsolve.rent` is; nothing is simulated.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypsolve.planning.place_query import MachinesSource, PlaceQuery
from hypsolve.planning.place_search import default_method
from hypsolve.planning.query_arguments import ModelSource
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.text import table
from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.fleet import Fleet, Machine
from hypsolve.problem.placement import PlacementObjective, PlacementProblem
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.solution import Status
from hypsolve.problem.units import count, finite_or_none
from hypsolve.solve import solve, warm_methods
from hypsolve.solvers.clock import MIN_S, Deadline
from hypsolve.solvers.throughput.server_arrays import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWNER = "rent_curve"
FORMAT, VERSION = "hypsolve-rent-curve", 1  # of `RentCurve.to_dict`
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Rates of the curve, as shares of the rate that is asked for."""
CURVE_SHARE = 0.5  # of the time, for the curve; the rest is for the prices
CLOSE = 1e-6  # relative difference of equal prices
MAX_STEPS = 12  # of the price of an offer until it is not worth renting


@dataclass(frozen=True, slots=True, kw_only=True)
class RentPoint:
    """The cheapest machines for a rate, in the fluid model.

    Attributes
    ----------
    requests_per_s : float
    price_per_hour : float
        inf if no machines were found that carry the rate.
    bound_per_hour : float
        No machines for less carry the rate; inf if none do at any price.
    machines : dict of str to int
        Number of machines by the name of their kind, those that are free included.
    """

    requests_per_s: float
    price_per_hour: float
    bound_per_hour: float
    machines: dict[str, int]

    @property
    def is_proved(self) -> bool:
        """Whether no machines are cheaper, or none carry the rate."""
        if math.isinf(self.price_per_hour):
            return math.isinf(self.bound_per_hour)
        return self.price_per_hour - self.bound_per_hour <= CLOSE * self.price_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferPrice:
    """The price at which machines of a kind enter the answer, or leave it.

    Attributes
    ----------
    name : str
        Of the kind.
    price_per_hour : float
        Of one machine, today.
    used : int
        Machines of the kind in the answer for the rate that is asked for.
    break_even_per_hour : float
        If they are used: up to this price, the answer is no dearer than machines without this
        kind. If not: below it, machines with one of this kind are cheaper; above it, none are.
        inf: the load needs them; 0: they are no help even for nothing; nan: not found in time.
    is_proved : bool
        Whether bounds prove the price.
    """

    name: str
    price_per_hour: float
    used: int
    break_even_per_hour: float
    is_proved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RentCurve:
    """Prices of the cheapest machines at some rates, and the break-even prices of offers.

    Attributes
    ----------
    model, machines, currency : str
    requests_per_s : float
        The rate that is asked for.
    points : tuple of RentPoint
        By rate.
    offers : tuple of OfferPrice
        Those in use first.
    max_stages : int
        All of it is about pipelines of at most so many stages.
    stopped : str
        What a KeyboardInterrupt left unfinished; empty without one.
    interrupted : bool
    """

    model: str
    machines: str
    currency: str
    requests_per_s: float
    points: tuple[RentPoint, ...]
    offers: tuple[OfferPrice, ...]
    max_stages: int
    stopped: str = ""
    interrupted: bool = False

    @property
    def is_carried(self) -> bool:
        """Whether machines were found for the rate that is asked for."""
        return any(
            point.requests_per_s == self.requests_per_s and point.price_per_hour < math.inf
            for point in self.points
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        money = f"{self.currency} per hour".strip()
        if self.interrupted:
            yield f"stopped: {self.stopped}"
        yield (
            f"{self.model} on {self.machines}: the least price in the fluid model, with"
            f" pipelines of at most {count(self.max_stages, 'stage')}"
        )
        yield ""
        yield table([
            {
                "requests/s": f"{point.requests_per_s:.4g}",
                money: _price(point.price_per_hour, "none"),
                "no less than": _price(point.bound_per_hour, "none"),
                "machines": ", ".join(f"{n} x {k}" for k, n in point.machines.items()) or "-",
            }
            for point in self.points
        ])  # fmt: skip
        for each in self.offers:
            yield ("" if each is not self.offers[0] else "\n") + _describe(each, money)

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as plain tables, for JSON; None stands for inf and nan."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "machines": self.machines,
            "currency": self.currency,
            "requests_per_s": self.requests_per_s,
            "max_stages": self.max_stages,
            "points": [
                {
                    "requests_per_s": point.requests_per_s,
                    "price_per_hour": finite_or_none(point.price_per_hour),
                    "bound_per_hour": finite_or_none(point.bound_per_hour),
                    "is_proved": point.is_proved,
                    "machines": point.machines,
                }
                for point in self.points
            ],
            "offers": [
                {
                    "name": each.name,
                    "price_per_hour": each.price_per_hour,
                    "used": each.used,
                    "break_even_per_hour": finite_or_none(each.break_even_per_hour),
                    "is_needed": each.break_even_per_hour == math.inf,
                    "is_proved": each.is_proved,
                }
                for each in self.offers
            ],
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }

    def json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON to a path that ends in ``.json`` or ``.json.gz``.

        Raises
        ------
        ValueError
            If `path` ends in something else.
        OSError
            If the folder does not exist or cannot be written to.
        """
        files.save_json(path, self.to_dict(), what="curve", indent=2)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the least price against the rate, with its bound; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Default: axes that fill a new figure.

        Returns
        -------
        matplotlib Axes
            ``plot().figure.savefig("curve.png", dpi=200)`` writes a file.

        Raises
        ------
        ValueError
            If matplotlib is missing, or no machines carry any of the rates.
        """
        from hypsolve.planning.rent_curve_figure import plot_curve

        return plot_curve(self, ax)


def _price(price: float, otherwise: str) -> str:
    return f"{price:.4g}" if math.isfinite(price) else otherwise


def _describe(each: OfferPrice, money: str) -> str:
    head = f"{each.name} at {each.price_per_hour:.4g} {money}"
    limit, found = each.break_even_per_hour, "" if each.is_proved else " (not proved)"
    if math.isnan(limit):
        return f"{head}: not tried in time"
    if each.used:
        if math.isinf(limit):
            return f"{head}: {each.used} used; none of this kind does not do{found}"
        return f"{head}: {each.used} used, worth it up to {limit:.4g}{found}"
    if not limit:
        return f"{head}: not used; it lowers the price not even for nothing{found}"
    return f"{head}: not used, worth it below {limit:.4g}{found}"


def rent_curve(
    model: ModelSource,
    machines: MachinesSource,
    *,
    shares: Sequence[float] = SHARES,
    progress: Progress | None = None,
    **arguments: Any,
) -> RentCurve:
    """Find the least price against the rate, and the break-even prices of offers.

    All of it is about the fluid model; nothing is simulated. `hypsolve.rent` answers for one
    rate, and simulates.

    Parameters
    ----------
    model, machines, progress, **arguments
        As in `hypsolve.rent`, with ``rate_per_s`` or ``users``. ``time_limit_s`` is for all of
        the curve and the prices.
    shares : sequence of float
        Rates of the curve, as shares of the rate that is asked for, which is always one of
        them.

    Returns
    -------
    RentCurve
        A KeyboardInterrupt ends the work in progress; the curve then has the points and prices
        that were found by then. Without any, the interrupt is raised.

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names it.
    OSError
        If a file does not exist or cannot be read.

    Examples
    --------
    >>> import hypsolve as hs
    >>> node = hs.Node(name="box", gpu=hs.gpu("rtx-4090"))
    >>> lab = hs.Fleet(
    ...     name="lab",
    ...     sites=(hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)),),
    ...     machines=(hs.Machine(node=node, site="room", price_per_hour=0.5),),
    ... )
    >>> curve = hs.rent_curve("llama-3-8b", lab, rate_per_s=1.0, shares=(1.0, 1000.0))
    >>> [point.price_per_hour for point in curve.points]
    [0.5, inf]
    """
    query = PlaceQuery.of(model, machines, **{**arguments, "objective": "cost"})
    return curve_of(query, shares=shares, progress=progress or (lambda line: None))


def curve_of(
    query: PlaceQuery,
    *,
    shares: Sequence[float] = SHARES,
    progress: Progress = lambda line: None,
) -> RentCurve:
    """Return the curve for a query whose objective is ``cost``; see `rent_curve`."""
    factors = [valid.real(OWNER, "shares", share, strict=True) for share in shares]
    prices = _Prices(query.problem(), query.method, query.seed)
    asked = query.needed_per_s
    if asked is None:
        raise ValueError(f"{OWNER}: rate_per_s or users must be given")
    warm_methods("hypsplit_dp", families=(FAMILIES[query.runtime.batching],))
    deadline, stopped = Deadline(query.time_limit_s), ""
    rates = sorted({asked, *(asked * share for share in factors)})
    end = deadline.part(CURVE_SHARE)
    solved: dict[float, PlacementResult] = {}
    offers: list[OfferPrice] = []
    points: list[RentPoint] = []
    try:
        for at, rate in enumerate(sorted(rates, key=lambda rate: (rate != asked, rate))):
            progress(f"the cheapest machines for {rate:.4g} requests/s")
            solved[rate] = prices.solve(rate, None, end.part(1 / (len(rates) - at)))
    except KeyboardInterrupt:
        if not solved:
            raise
        stopped = "not all rates of the curve, and no prices of offers, were tried"
    points = _monotone([prices.point(rate, solved[rate]) for rate in sorted(solved)])
    answer = next(point for point in points if point.requests_per_s == asked)
    if math.isfinite(answer.price_per_hour) and not stopped:
        kinds = [name for name in prices.kinds if prices.price_of(name)]
        kinds.sort(key=lambda name: name not in answer.machines)
        try:
            for i, name in enumerate(kinds):
                progress(f"the price of {name} at which the answer changes")
                part = deadline.part(1 / (len(kinds) - i))
                offers.append(prices.break_even(name, answer, part))
        except KeyboardInterrupt:
            n_left = len(kinds) - len(offers)
            stopped = f"the prices of {count(n_left, 'offer')} were not tried"
    return RentCurve(
        model=query.model.name,
        machines=query.fleet.name,
        currency=query.machines.currency or "",
        requests_per_s=asked,
        points=tuple(points),
        offers=tuple(offers),
        max_stages=query.max_stages,
        stopped=stopped,
        interrupted=bool(stopped),
    )


def _monotone(points: list[RentPoint]) -> list[RentPoint]:
    """Return points by rate, of which none is dearer than one of a larger rate.

    Machines for a rate carry less, too, and a bound for a rate holds for larger ones.
    """
    found = list(points)
    for at in range(len(found) - 2, -1, -1):
        if found[at + 1].price_per_hour < found[at].price_per_hour:
            better = found[at + 1]
            found[at] = replace(
                found[at], price_per_hour=better.price_per_hour, machines=better.machines
            )
    for at in range(1, len(found)):
        bound = max(found[at].bound_per_hour, found[at - 1].bound_per_hour)
        found[at] = replace(found[at], bound_per_hour=bound)
    return found


class _Prices:
    """Cheapest machines of a problem at other rates, prices, or without machines of a kind."""

    def __init__(self, problem: PlacementProblem, method: str | None, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.method = method or default_method(PlacementObjective.COST)
        by_kind: dict[tuple[object, ...], list[Machine]] = {}
        for machine in problem.fleet.machines:
            by_kind.setdefault(machine.kind, []).append(machine)
        self.kinds = {_common_name(machines): machines for machines in by_kind.values()}
        self._kind_of = {m.name: name for name, mine in self.kinds.items() for m in mine}

    def price_of(self, name: str) -> float:
        """Return the price of a machine of a kind."""
        return self.kinds[name][0].price_per_hour

    def solve(self, rate: float, fleet: Fleet | None, deadline: Deadline) -> PlacementResult:
        """Solve the problem at some rate, with other machines if they are given."""
        changes: dict[str, Any] = {"requests_per_s": rate}
        if fleet is not None:
            changes["fleet"] = fleet
        limit_s = max(deadline.left_s(), MIN_S)
        problem = self.problem.replace(**changes)
        return solve(problem, self.method, time_limit_s=limit_s, seed=self.seed)

    def point(self, rate: float, result: PlacementResult) -> RentPoint:
        """Return a result as a point of the curve."""
        return RentPoint(
            requests_per_s=rate,
            price_per_hour=result.objective,
            bound_per_hour=_bound(result),
            machines=self.count(result),
        )

    def count(self, result: PlacementResult) -> dict[str, int]:
        """Return the number of machines of each kind that an answer uses."""
        used = () if result.placement is None else result.placement.machines
        return dict(Counter(self._kind_of[name] for name in used))

    def break_even(self, name: str, answer: RentPoint, deadline: Deadline) -> OfferPrice:
        """Return the price at which machines of a kind enter the answer, or leave it."""
        used = answer.machines.get(name, 0)
        price, is_proved = self._leaves(name, used, answer, deadline) if used else self._enters(
            name, answer, deadline
        )  # fmt: skip
        return OfferPrice(
            name=name,
            price_per_hour=self.price_of(name),
            used=used,
            break_even_per_hour=price,
            is_proved=is_proved,
        )

    def _leaves(
        self, name: str, used: int, answer: RentPoint, deadline: Deadline
    ) -> tuple[float, bool]:
        others = tuple(m for m in self.problem.fleet.machines if self._kind_of[m.name] != name)
        if not others:
            return math.inf, True
        result = self.solve(answer.requests_per_s, self._fleet(others), deadline)
        if result.served is None:
            is_proved = result.status is Status.INFEASIBLE
            return (math.inf if is_proved else math.nan), is_proved
        own = self.price_of(name)
        price = own + (result.objective - answer.price_per_hour) / used
        return price, result.fluid_gap <= CLOSE

    def _enters(self, name: str, answer: RentPoint, deadline: Deadline) -> tuple[float, bool]:
        """Raise the price from nothing to where the best machines with the kind cost as much.

        At a price p, the best answer with n of the kind costs rest + n p; it breaks even at
        (price - rest) / n. The largest such price is found by Dinkelbach's method.
        """
        price = 0.0
        for _ in range(MAX_STEPS):
            machines = tuple(
                replace(m, price_per_hour=price) if self._kind_of[m.name] == name else m
                for m in self.problem.fleet.machines
            )
            result = self.solve(answer.requests_per_s, self._fleet(machines), deadline)
            n = self.count(result).get(name, 0)
            saved = answer.price_per_hour - result.objective
            if saved <= CLOSE * answer.price_per_hour or not n:
                slack = CLOSE * answer.price_per_hour
                return price, _bound(result) >= answer.price_per_hour - 2 * slack
            price += saved / n
            if deadline.has_passed():
                return price, False
        return price, False

    def _fleet(self, machines: tuple[Machine, ...]) -> Fleet:
        fleet = self.problem.fleet
        names = {machine.name for machine in machines}
        apart = tuple(each & names for each in fleet.apart if len(each & names) > 1)
        return replace(fleet, machines=machines, apart=apart)


def _bound(result: PlacementResult) -> float:
    if result.status is Status.INFEASIBLE:
        return math.inf
    return result.fluid_bound or 0.0


def _common_name(machines: Sequence[Machine]) -> str:
    """Return the name of an offer, without the number of the machine."""
    first = machines[0].name
    stem, dash, number = first.rpartition("-")
    return stem if dash and number.isdigit() and len(machines) > 1 else first
