"""Events of a network while it serves: slowdowns, failures, joins, changes of bandwidth."""

import math
import os
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Network
from hypsolve.problem.files import checked_path, read_bytes

MAX_EVENTS = 10**6  # drawn at once: a few seconds
MAX_BYTES = 2**26  # of a scenario file; TOML is slow to read
LATEST_S = 2.0**32  # 136 years, counted from the first arrival; exact to half a microsecond


class EventKind(StrEnum):
    """Kind of an `Event`."""

    SLOWDOWN = "slowdown"
    BANDWIDTH = "bandwidth"
    FAILURE = "failure"
    RECOVERY = "recovery"
    JOIN = "join"


_WITH_FACTOR = (EventKind.SLOWDOWN, EventKind.BANDWIDTH)
_PRESENCE = (EventKind.FAILURE, EventKind.RECOVERY, EventKind.JOIN)


@dataclass(frozen=True, slots=True)
class Event:
    """Event that changes a node or a link.

    Parameters
    ----------
    at_s : float
        Time on the clock of the arrivals. What happens before the first arrival has happened
        when it comes.
    kind : EventKind or str
        - ``slowdown``: from now on the iterations of the node take `factor` times as long, also
          after a failure and recovery. A factor below 1 makes the node faster.
        - ``bandwidth``: from now on the link from the tier to the next has `factor` times its
          rate.
        - ``failure``: the node goes down and loses all that it holds.
        - ``recovery``: the node is up again, empty.
        - ``join``: the node is absent until now.
    target : str
        Name of the node; for ``bandwidth``, name of the tier before the link.
    factor : float
        Required for ``slowdown`` and ``bandwidth``: it replaces the factor before, and 1
        restores the normal state. Must be 1 for other kinds.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the field, the rule and the value.

    Examples
    --------
    >>> from hypsolve import Event
    >>> Event(60.0, "slowdown", "edge-0", 2.0)
    Event(at_s=60.0, kind=<EventKind.SLOWDOWN: 'slowdown'>, target='edge-0', factor=2.0)
    """

    at_s: float
    kind: EventKind
    target: str
    factor: float = math.nan  # not given

    def __post_init__(self) -> None:
        kind = valid.one_of("event", "kind", self.kind, EventKind)
        owner = f"{kind} of {valid.text('event', 'target', self.target)!r}"
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "at_s", valid.real(owner, "at_s", self.at_s))
        if kind not in _WITH_FACTOR and self.factor != self.factor:
            object.__setattr__(self, "factor", 1.0)
        factor = valid.real(owner, "factor", self.factor, strict=True)
        if factor < 1 / valid.LARGEST:  # its inverse must be finite
            raise ValueError(
                f"{owner}: factor must be at least {1 / valid.LARGEST:g}, got {self.factor!r}"
            )
        if factor != 1 and kind not in _WITH_FACTOR:
            raise ValueError(f"{owner}: factor must be 1, got {self.factor!r}")
        object.__setattr__(self, "factor", factor)


def early(owner: str, field: str, value: Any, since: str = "") -> float:
    """Check that seconds are at most `LATEST_S`; `since` says from when they count."""
    time_s = valid.real(owner, field, value)
    if time_s > LATEST_S:
        raise ValueError(
            f"{owner}: {field} must be at most {LATEST_S:g} s{since} (beyond, seconds lose"
            f" their precision), got {time_s:g}"
        )
    return time_s


def count_from(events: Iterable[Event], first_s: float) -> tuple[Event, ...]:
    """Count the times of events from the first arrival, at `first_s` seconds.

    Events before it happen at 0, in the order given: no request can tell.

    Raises
    ------
    ValueError
        If an event is more than `LATEST_S` after the first arrival.
    """
    counted = []
    for event in events:
        owner = f"simulate: {event.kind} of {event.target!r}"
        since_s = max(event.at_s - first_s, 0.0)
        early(owner, "at_s", since_s, " after the first arrival")
        counted.append(replace(event, at_s=since_s))
    return tuple(counted)


def check_events(events: Iterable[Event], network: Network) -> tuple[Event, ...]:
    """Sort events by time and check that they can happen to this network, in this order.

    Parameters
    ----------
    events : iterable of Event
        Events of one instant happen in the order given.
    network : Network

    Returns
    -------
    tuple of Event

    Raises
    ------
    ValueError
        If a target is not in the network, a ``bandwidth`` names the last tier, a node fails
        while it is down or recovers while it is up, or a ``join`` comes after another failure,
        recovery or join of the node. Messages number the events from 0, in the order given.
    """
    valid.of_type("check_events", "network", network, Network)
    if not isinstance(events, Iterable):
        raise TypeError(f"check_events: events must be Events in a list, got {events!r:.60}")
    given = list(events)
    return _checked(given, network, len(given))


def _checked(given: list[Event], network: Network, n_listed: int) -> tuple[Event, ...]:
    """Check events; error messages tell those that were drawn, from `n_listed` on."""
    for number, event in enumerate(given):
        if not isinstance(event, Event):
            raise TypeError(f"events[{number}]: must be an Event, got {event!r:.60}")
    tiers = [tier.name for tier in network.tiers]
    nodes = set(_node_names(network))
    last_presence: dict[str, int] = {}
    order = sorted(range(len(given)), key=lambda number: given[number].at_s)
    for number in order:
        event, before = given[number], last_presence.get(given[number].target)
        try:
            if event.kind is EventKind.BANDWIDTH:
                _check_link(event.target, tiers)
            elif event.target not in nodes:
                valid.known("node", event.target, _node_names(network))
            elif event.kind in _PRESENCE:
                _check_presence(event, None if before is None else given[before])
                last_presence[event.target] = number
        except ValueError as error:
            who = f"events[{number}]" if number < n_listed else "a drawn event"
            what = f"{event.kind} of {event.target!r} at {event.at_s:g} s"
            by = " by a drawn event" if before is not None and before >= n_listed else ""
            raise ValueError(f"{who} ({what}): {error}{by}") from None
    return tuple(given[number] for number in order)


def _node_names(network: Network) -> list[str]:
    return [node.name for tier in network.tiers for node in tier.nodes]


def _check_link(target: str, tiers: list[str]) -> None:
    if valid.known("tier", target, tiers) == tiers[-1]:
        raise ValueError("target must be a tier with a link to the next, got the last tier")


def _check_presence(event: Event, before: Event | None) -> None:
    """Check a failure, recovery or join against the one before it at the node."""
    if event.kind is EventKind.JOIN:
        if before is not None:
            raise ValueError(
                "a join must be the node's first failure, recovery or join,"
                f" got {before.kind} at {before.at_s:g} s before it"
            )
        return
    since = before if before and before.kind is EventKind.FAILURE else None
    if since and event.kind is EventKind.FAILURE:
        raise ValueError(f"the node must be up, got a node down since {since.at_s:g} s")
    if not since and event.kind is EventKind.RECOVERY:
        raise ValueError("the node must be down after a failure, got a node that is up")


def draw_events(
    network: Network,
    *,
    horizon_s: float,
    seed: int,
    mean_up_s: float | None = None,
    mean_down_s: float | None = None,
    mean_normal_s: float | None = None,
    mean_slow_s: float | None = None,
    slow_factor: float | None = None,
    mean_full_s: float | None = None,
    mean_degraded_s: float | None = None,
    degraded_factor: float | None = None,
) -> tuple[Event, ...]:
    """Draw churn: failures, slowdowns and changes of bandwidth at random times.

    Every node and every link alternates between a normal state and a bad one, and starts in the
    normal state. Durations are exponential and independent. A bad state that begins before
    `horizon_s` also ends, possibly after it: each failure has its recovery. Failures, slowdowns
    and changes of bandwidth have random streams of their own for each node or link. So the
    failures do not depend on whether slowdowns are drawn, and changing a mean only scales the
    durations.

    Parameters
    ----------
    network : Network
    horizon_s : float
        No bad state begins at or after this time.
    seed : int
    mean_up_s, mean_down_s : float, optional
        Mean time until a node fails, and until it recovers, in seconds. Give both, or neither
        for no failures.
    mean_normal_s, mean_slow_s, slow_factor : float, optional
        Mean durations in seconds of a node's normal and slow states. While a node is slow,
        because of heat or another user, its iterations take `slow_factor` times as long. Give
        all or none.
    mean_full_s, mean_degraded_s, degraded_factor : float, optional
        Mean durations in seconds of a link's full rate, and of `degraded_factor` times that
        rate. Give all or none.

    Returns
    -------
    tuple of Event
        Sorted by time.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or if more than `MAX_EVENTS` events are expected. The message
        names the argument.

    Examples
    --------
    >>> from hypsolve import Link, Network, Node, Tier, draw_events, gpu
    >>> edge = Tier(name="edge", nodes=(Node(name="a", gpu=gpu("l4")),))
    >>> churn = draw_events(
    ...     Network(name="one", tiers=(edge,)), horizon_s=1e4, seed=1,
    ...     mean_up_s=3600.0, mean_down_s=60.0,
    ... )
    >>> {str(event.kind) for event in churn} <= {"failure", "recovery"}
    True
    """
    owner = "churn"
    valid.of_type(owner, "network", network, Network)
    horizon_s = valid.real(owner, "horizon_s", horizon_s)
    streams = np.random.SeedSequence(valid.whole(owner, "seed", seed)).spawn(3)
    nodes = _node_names(network)
    links = [tier.name for tier in network.tiers[:-1]]
    failures = {"mean_up_s": mean_up_s, "mean_down_s": mean_down_s}
    slowdowns = {
        "mean_normal_s": mean_normal_s, "mean_slow_s": mean_slow_s, "slow_factor": slow_factor
    }  # fmt: skip
    bandwidths = {
        "mean_full_s": mean_full_s,
        "mean_degraded_s": mean_degraded_s,
        "degraded_factor": degraded_factor,
    }
    slowdown, bandwidth = EventKind.SLOWDOWN, EventKind.BANDWIDTH
    events: list[Event] = []
    for stream, targets, kinds, rates in (
        (streams[0], nodes, (EventKind.FAILURE, EventKind.RECOVERY), failures),
        (streams[1], nodes, (slowdown, slowdown), slowdowns),
        (streams[2], links, (bandwidth, bandwidth), bandwidths),
    ):
        values = _together(owner, rates)
        if values is None:
            continue
        good_s, bad_s, factor = (*values, 1.0)[:3]
        expected = 2 * len(targets) * horizon_s / (good_s + bad_s)
        if expected > MAX_EVENTS:
            raise ValueError(
                f"{owner}: {', '.join(rates)} must make at most {MAX_EVENTS} events"
                f" in horizon_s = {horizon_s:g}, got about {expected:.3g}"
            )
        for target, own in zip(targets, stream.spawn(len(targets)), strict=True):
            rng = np.random.default_rng(own)
            for begin_s, end_s in _periods(rng, horizon_s, good_s, bad_s):
                events.append(Event(begin_s, kinds[0], target, factor))
                events.append(Event(end_s, kinds[1], target, 1.0))
    return check_events(events, network)


def _together(owner: str, rates: dict[str, float | None]) -> list[float] | None:
    """Return the values of arguments that belong together, or None if none is given."""
    given = [name for name, value in rates.items() if value is not None]
    if not given:
        return None
    for name, value in rates.items():
        if value is None:
            raise ValueError(f"{owner}: {name} must be given with {given[0]}, got None")
    return [valid.real(owner, name, value, strict=True) for name, value in rates.items()]


def _periods(
    rng: np.random.Generator, horizon_s: float, good_s: float, bad_s: float
) -> Iterator[tuple[float, float]]:
    """Yield begin and end of the bad states that begin before the horizon."""
    begin_s = good_s * rng.standard_exponential()
    while begin_s < horizon_s:
        end_s = begin_s + bad_s * rng.standard_exponential()
        yield begin_s, end_s
        begin_s = end_s + good_s * rng.standard_exponential()


def read_events(
    path: str | os.PathLike[str],
    network: Network,
    *,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> tuple[Event, ...]:
    r"""Read events from a TOML file that lists them, or gives parameters to draw them.

    A table ``[[events]]`` has the fields of `Event`. The table ``[churn]`` has the arguments of
    `draw_events`, without the seed::

        [[events]]
        at_s = 60.0
        kind = "slowdown"
        target = "edge-l4-0"
        factor = 2.0

        [churn]
        horizon_s = 3600.0
        mean_up_s = 1800.0
        mean_down_s = 30.0

    Parameters
    ----------
    path : str or path
        A name that ends in ``.gz`` is read as gzip.
    network : Network
    seed : int
        Seed of the drawn events.
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    tuple of Event
        Sorted by time; at one instant, listed events come first.

    Raises
    ------
    ValueError
        If the file is invalid; the message names the file, the entry (from 0) and the key.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> edge = hs.Tier(name="edge", nodes=(hs.Node(name="a", gpu=hs.gpu("l4")),))
    >>> network = hs.Network(name="one", tiers=(edge,))
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "scenario.toml")
    ...     _ = path.write_text('[[events]]\nat_s = 9\nkind = "failure"\ntarget = "a"\n')
    ...     events = hs.read_events(path, network)
    >>> events[0].at_s, str(events[0].kind)
    (9.0, 'failure')
    """
    path = checked_path("read_events", path)
    valid.of_type("read_events", "network", network, Network)
    seed = valid.whole("read_events", "seed", seed)
    document = _parse(
        path, read_bytes(path, valid.whole("read_events", "max_bytes", max_bytes))
    )
    if not document:
        raise ValueError(f"{path}: must have [[events]] or [churn], got neither")
    try:
        _check_keys(document, ("events", "churn"))
        listed = _listed(document.get("events", []))
        drawn = _drawn(document["churn"], network, seed) if "churn" in document else ()
        return _checked([*listed, *drawn], network, len(listed))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


_EVENT_KEYS = ("at_s", "kind", "target", "factor")  # the last one is optional
_RATES = tuple(draw_events.__kwdefaults__ or ())


def _check_keys(table: Any, known: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    if not isinstance(table, dict):
        raise TypeError(f"must be a table, got {table!r:.60}")
    for key in table:
        valid.known("key", key, known)
    for key in required:
        if key not in table:
            raise ValueError(f"key {key!r} is missing")


def _listed(tables: Any) -> list[Event]:
    if not isinstance(tables, list):
        raise TypeError(f"events must be [[events]] tables, got {tables!r:.60}")
    events = []
    for number, table in enumerate(tables):
        try:
            _check_keys(table, _EVENT_KEYS, _EVENT_KEYS[:3])
            events.append(Event(**table))
        except (TypeError, ValueError) as error:
            raise ValueError(f"events[{number}]: {error}") from None
    return events


def _drawn(table: Any, network: Network, seed: int) -> tuple[Event, ...]:
    try:
        _check_keys(table, ("horizon_s", *_RATES), ("horizon_s",))
        if len(table) == 1:
            raise ValueError(f"must have rates too: {', '.join(_RATES)}, got none")
    except (TypeError, ValueError) as error:
        raise ValueError(f"churn: {error}") from None
    return draw_events(network, seed=seed, **table)
