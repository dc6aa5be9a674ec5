"""`Fleet`: machines at sites, without an order, and the links between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.network import Link, Network, Node
from hypsolve.problem.units import count

OWNER = "fleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place whose machines reach each other over one local network.

    Attributes
    ----------
    name : str
    link : Link
        Link between two machines of the site.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the site, the field, the rule and the value.
    """

    name: str
    link: Link

    def __post_init__(self) -> None:
        owner = f"site {valid.name('site', self.name)!r}"
        valid.of_type(owner, "link", self.link, Link)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of a fleet: a node at a site.

    Attributes
    ----------
    node : Node
        Its GPUs, their memory, and the links among them. `Node.tensor_parallel` must not be
        set: the placement chooses the degree.
    site : str
    price_per_hour : float
        Price of the machine if it is used, in a currency of the user.
    uplink : Link or None
        Link of the machine to its site, if it is slower than the site's. Whatever the machine
        sends and receives crosses it. None: the site's links are the only limit.
    offer : str
        Name of the offer that the machine is one of. Empty: the machine is owned.
    name : str
        The name of its node.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the machine, the field, the rule and the value.
    """

    node: Node
    site: str
    price_per_hour: float = 0.0
    uplink: Link | None = None
    offer: str = ""

    def __post_init__(self) -> None:
        valid.of_type("machine", "node", self.node, Node)
        owner = f"machine {self.node.name!r}"
        valid.name(f"{owner}: site", self.site)
        valid.real(owner, "price_per_hour", self.price_per_hour)
        if self.node.tensor_parallel is not None and self.node.gpus > 1:
            raise ValueError(
                f"{owner}: tensor_parallel must not be set, for the placement chooses it,"
                f" got {self.node.tensor_parallel}"
            )
        if self.uplink is not None:
            valid.of_type(owner, "uplink", self.uplink, Link)
        valid.of_type(owner, "offer", self.offer, str)

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.node.name

    @property
    def kind(self) -> tuple[object, ...]:
        """Return what interchangeable machines share: all but names, host and offer."""
        node = self.node
        return (
            node.gpu,
            node.usable_bytes,
            node.memory_bytes,
            node.gpus,
            node.interconnect,
            self.site,
            self.price_per_hour,
            self.uplink,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Blocks that must stay at some sites.

    Attributes
    ----------
    start, stop : int
        The blocks ``start:stop``.
    sites : tuple of str
        Sites that may host them.
    """

    start: int
    stop: int
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        start = valid.whole("pin", "start", self.start)
        valid.whole("pin", "stop", self.stop, minimum=start + 1)
        sites = valid.some("pin", "sites", self.sites, str)
        _distinct("pin", "sites", sites)
        object.__setattr__(self, "sites", sites)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fleet:
    """Machines at sites, of which a placement uses some.

    Attributes
    ----------
    name : str
    sites : tuple of Site
    machines : tuple of Machine
    links : mapping of (str, str) to Link
        Link from one site to another, by their names. The way back is the link of the reversed
        pair if that is given, else this one with its return latency.
    default_link : Link or None
        Link between any other two sites. None: they cannot be used together.
    entry : mapping of str to float
        Shares of the requests by the site where they enter; they add up to 1. Default: all
        enter at the first site.
    pins : tuple of Pin
        Blocks that must stay at some sites.
    apart : tuple of frozenset of str
        Sets of machines of which a pipeline may use only one: GPUs of two makers, say.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> box = hs.Node(name="box", gpu=hs.gpu("rtx-4090"))
    >>> fleet = hs.Fleet(
    ...     name="lab", sites=(hs.Site(name="room", link=lan),),
    ...     machines=(hs.Machine(node=box, site="room"),),
    ... )
    >>> fleet
    <Fleet lab, machines of each site: room (1)>
    """

    name: str
    sites: tuple[Site, ...]
    machines: tuple[Machine, ...]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    default_link: Link | None = None
    entry: Mapping[str, float] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    apart: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        owner = f"{OWNER} {valid.text(OWNER, 'name', self.name)!r}"
        _set = object.__setattr__
        _set(self, "sites", valid.some(owner, "sites", self.sites, Site))
        _set(self, "machines", valid.some(owner, "machines", self.machines, Machine))
        names = [site.name for site in self.sites]
        _distinct(owner, "names of sites", names)
        _distinct(owner, "names of machines", [machine.name for machine in self.machines])
        for machine in self.machines:
            valid.known(f"site of machine {machine.name!r}", machine.site, names)
        links = dict(_mapping(owner, "links", self.links))
        for pair, link in links.items():
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1]:
                raise ValueError(f"{owner}: links must join two sites, got {pair!r:.60}")
            for site in pair:
                valid.known(f"site in links of {owner}", site, names)
            valid.of_type(owner, f"links[{pair!r}]", link, Link)
        _set(self, "links", links)
        if self.default_link is not None:
            valid.of_type(owner, "default_link", self.default_link, Link)
        entry = dict(_mapping(owner, "entry", self.entry)) or {names[0]: 1.0}
        for site, share in entry.items():
            valid.known(f"site in entry of {owner}", site, names)
            valid.real(owner, f"entry[{site!r}]", share)
        if abs(math.fsum(entry.values()) - 1) > 1e-9:
            raise ValueError(
                f"{owner}: shares in entry must add up to 1, got {math.fsum(entry.values()):g}"
            )
        _set(self, "entry", entry)
        for at, pin in enumerate(_sequence(owner, "pins", self.pins)):
            for site in valid.of_type(owner, f"pins[{at}]", pin, Pin).sites:
                valid.known(f"site in pins[{at}] of {owner}", site, names)
        _set(self, "pins", tuple(self.pins))
        machine_names = [machine.name for machine in self.machines]
        for at, together in enumerate(_sequence(owner, "apart", self.apart)):
            if not isinstance(together, frozenset | set):
                raise TypeError(
                    f"{owner}: apart[{at}] must be a set of names of machines,"
                    f" got {together!r:.60}"
                )
            for name in together:
                valid.known(f"machine in apart[{at}] of {owner}", name, machine_names)
        _set(self, "apart", tuple(map(frozenset, self.apart)))

    def __repr__(self) -> str:
        numbers = {site.name: 0 for site in self.sites}
        for machine in self.machines:
            numbers[machine.site] += 1
        listed = ", ".join(f"{name} ({n})" for name, n in numbers.items())
        return f"<Fleet {self.name}, machines of each site: {listed}>"

    @property
    def n_gpus(self) -> int:
        """Number of GPUs of all machines."""
        return sum(machine.node.gpus for machine in self.machines)

    def describe(self) -> str:
        """Describe the fleet: numbers of machines, GPUs and sites."""
        sizes = count(len(self.machines), "machine"), count(self.n_gpus, "GPU")
        return f"{', '.join(sizes)}, {count(len(self.sites), 'site')}"

    def machine(self, name: str) -> Machine:
        """Return the machine of a name.

        Raises
        ------
        ValueError
            If there is none; the message suggests the closest name.
        """
        by_name = {machine.name: machine for machine in self.machines}
        return by_name[valid.known("machine", name, by_name)]

    def site_link(self, start: str, end: str) -> Link | None:
        """Return the link from one site to another, or inside a site; None: there is none."""
        if start == end:
            return next(site.link for site in self.sites if site.name == start)
        there, back = self.links.get((start, end)), self.links.get((end, start))
        if there is None and back is None:
            return self.default_link
        if there is None:
            assert back is not None
            return Link(
                bytes_per_s=back.bytes_per_s,
                latency_s=back.round_trip_s - back.latency_s,
                return_latency_s=back.latency_s,
            )
        if back is None:
            return there
        return Link(
            bytes_per_s=there.bytes_per_s,
            latency_s=there.latency_s,
            return_latency_s=back.latency_s,
        )

    def link(self, start: Machine, end: Machine) -> Link | None:
        """Return the link from one machine to another; None: there is none.

        Between groups of GPUs of one machine, it is the link of a pair of its GPUs, if the
        interconnect knows it. Between machines, the slowest of the uplinks and of the link of
        the sites limits the rate, and their latencies add up.

        Examples
        --------
        >>> import hypsolve as hs
        >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
        >>> slow = hs.Link(bytes_per_s=1e8, latency_s=1e-3)
        >>> nodes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in "ab"]
        >>> a = hs.Machine(node=nodes[0], site="room", uplink=slow)
        >>> b = hs.Machine(node=nodes[1], site="room")
        >>> room = hs.Site(name="room", link=lan)
        >>> fleet = hs.Fleet(name="lab", sites=(room,), machines=(a, b))
        >>> fleet.link(a, b)
        Link(bytes_per_s=100000000.0, latency_s=0.0011, return_latency_s=0.0011)
        """
        between = self.site_link(start.site, end.site)
        if start.name == end.name:
            return inside(start.node) or between
        if between is None:
            return None
        crossed = [between, *(m.uplink for m in (start, end) if m.uplink is not None)]
        if len(crossed) == 1:
            return between
        there = math.fsum(link.latency_s for link in crossed)
        round_trip_s = math.fsum(link.round_trip_s for link in crossed)
        return Link(
            bytes_per_s=min(link.bytes_per_s for link in crossed),
            latency_s=there,
            return_latency_s=round_trip_s - there,
        )

    @classmethod
    def of_network(cls, network: Network, prices: Mapping[str, float] | None = None) -> Fleet:
        """Return the fleet of a network: a site for every tier, whose order does not count.

        Inside a tier, machines reach each other over the fastest link that the network names.
        Two tiers are joined by all links between them.

        Parameters
        ----------
        network : Network
        prices : mapping of node name to float, optional
            Prices per hour; those that are not named cost nothing.
        """
        prices = prices or {}
        nodes = [node.name for tier in network.tiers for node in tier.nodes]
        for name in _mapping(OWNER, "prices", prices):
            valid.known("node in prices", name, nodes)
        tiers, links = network.tiers, [tier.link for tier in network.tiers[:-1]]
        fastest = max(
            (link for link in links if link is not None),
            key=lambda link: link.bytes_per_s,
            default=Link(bytes_per_s=1.25e9, latency_s=1e-4),
        )
        between = {}
        for i in range(len(tiers)):
            for j in range(i + 1, len(tiers)):
                joined = _joined([link for link in links[i:j] if link is not None])
                between[tiers[i].name, tiers[j].name] = joined
        machines = tuple(
            Machine(node=node, site=tier.name, price_per_hour=prices.get(node.name, 0.0))
            for tier in tiers
            for node in tier.nodes
        )
        return cls(
            name=network.name,
            sites=tuple(Site(name=tier.name, link=fastest) for tier in tiers),
            machines=machines,
            links=between,
        )


def inside(node: Node) -> Link | None:
    """Return the link of a pair of GPUs of a machine; None if it is not known.

    The all-reduce of two GPUs sends every byte once over the link between them, and takes at
    least its latency.
    """
    links = node.interconnect
    if links is None or 2 not in links.degrees:
        return None
    pair = links.all_reduce(2)
    if pair.large_s_per_byte == 0:
        return None
    return Link(bytes_per_s=1 / pair.large_s_per_byte, latency_s=pair.small_s)


def _joined(links: Sequence[Link]) -> Link:
    """Return the link that a message sees on several links, one after the other."""
    there = math.fsum(link.latency_s for link in links)
    return Link(
        bytes_per_s=1 / math.fsum(1 / link.bytes_per_s for link in links),
        latency_s=there,
        return_latency_s=math.fsum(link.round_trip_s for link in links) - there,
    )


def _mapping(owner: str, field_: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{owner}: {field_} must be a mapping, got {value!r:.60}")
    return value


def _sequence(owner: str, field_: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, tuple | list):
        raise TypeError(f"{owner}: {field_} must be a tuple, got {value!r:.60}")
    return value


def _distinct(owner: str, what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{owner}: {what} must be distinct, got {name!r} twice")
        seen.add(name)
