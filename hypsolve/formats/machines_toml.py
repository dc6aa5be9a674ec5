"""Machines files in TOML: machines, offers, sites, links, and what may serve together."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypsolve.formats.gpu_profile import PROFILE_ENDING
from hypsolve.formats.machines_file import (
    ASSUMED_LINK,
    BlockPin,
    MachinesFile,
    assumed_link_note,
)
from hypsolve.formats.machines_toml_types import (
    MAX_MACHINES,
    MachinesTable,
    MachineTable,
    OfferTable,
    PinTable,
    SiteLinkTable,
    SiteTable,
)
from hypsolve.formats.toml_nodes import (
    check_gpu_is_named,
    link_of,
    node_fields,
    nodes_of,
    own_gpus,
    profile_files,
    runtime_of,
)
from hypsolve.formats.toml_tables import checked_table, header_lines, key_line
from hypsolve.problem import validation as valid
from hypsolve.problem.fleet import Fleet, Machine, Site
from hypsolve.problem.network import GpuProfile, Link

ONLY_SITE = "site"
"""Name of the site of a file without sites."""
MAX_APART = 100_000  # pairs of machines
MAX_SHOWN = 5  # pairs of sites in a note


@dataclass(slots=True)
class _Reader:
    """A file that is being read: what errors call its parts, and what was found so far."""

    path: Path
    content: bytes
    table: MachinesTable
    gpus: Mapping[str, GpuProfile] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def owner(self, key: str) -> str:
        """Return what errors call the value of a key."""
        line = key_line(self.content, key)
        return f"{self.path}: {key}" + ("" if line is None else f" (line {line})")

    def entries(self, key: str, what: str) -> list[tuple[str, Any]]:
        """Return the entries of a list of tables, each with its name in errors."""
        entries: list[Any] = self.table.get(key, [])  # type: ignore[assignment]
        lines = header_lines(self.content, key)
        found = []
        for k, entry in enumerate(entries):
            name = entry.get("name") if isinstance(entry, dict) else None
            shown = f" {name!r:.60}" if isinstance(name, str) else ""
            line = f" (line {lines[k]})" if len(lines) == len(entries) else ""
            found.append((f"{self.path}: {what} {k}{shown}{line}", entry))
        return found


def machines_of_table(path: Path, content: bytes, table: Mapping[str, Any]) -> MachinesFile:
    """Return the machines of the content of a file; `read_machines` describes it."""
    owner = str(path)
    checked = checked_table(owner, MachinesTable, table)
    reader = _Reader(path, content, checked)
    groups = [*reader.entries("machines", "machine"), *reader.entries("offers", "offer")]
    if not groups:
        raise ValueError(f"{owner}: must have [[machines]] or [[offers]], got neither")
    files = profile_files(groups, path.parent)
    reader.gpus = own_gpus(owner, checked.get("gpus", {})) | files
    _read_sites(reader)
    for of_entry, entry in reader.entries("machines", "machine"):
        _read_machine(reader, of_entry, entry)
    for of_entry, entry in reader.entries("offers", "offer"):
        _read_offer(reader, of_entry, entry)
    pins = tuple(_pin(reader, *each) for each in reader.entries("pins", "pin"))
    numbered = (pin.without_model() for pin in pins)
    given = checked.get("default_link")
    default = None if given is None else link_of(reader.owner("default_link"), given)
    fleet = _fleet(
        owner,
        name=path.stem,
        sites=tuple(reader.sites.values()),
        machines=tuple(reader.machines.values()),
        links=_links(reader),
        default_link=default,
        entry=_entry(reader),
        pins=tuple(pin for pin in numbered if pin is not None),
        apart=_apart(reader),
    )
    gpus = [machine.node.gpu for machine in fleet.machines]
    _note_links(reader, fleet)
    return MachinesFile(
        fleet=fleet,
        source=owner,
        description=checked.get("description", ""),
        currency=checked.get("currency", ""),
        runtime=runtime_of(owner, checked["runtime"], gpus) if "runtime" in checked else None,
        pins=pins,
        notes=tuple(reader.notes),
    )


def _fleet(owner: str, **fields: Any) -> Fleet:
    try:
        return Fleet(**fields)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


def _known(owner: str, what: str, name: Any, choices: Iterable[str]) -> str:
    """Return a name that the file has elsewhere; the error begins with `owner`."""
    try:
        return valid.known(what, name, choices)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


def _distinct(owner: str, field: str, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        if name in names[:k]:
            raise ValueError(f"{owner}: {field} must be distinct, got {name!r:.60} twice")


# --- sites and links --------------------------------------------------------------------------


def _read_sites(reader: _Reader) -> None:
    """Fill `reader.sites`."""
    given = reader.table.get("link")
    common = None if given is None else link_of(reader.owner("link"), given)
    entries = reader.entries("sites", "site")
    for owner, entry in entries:
        table = checked_table(owner, SiteTable, entry)
        name = valid.name(owner, table["name"])
        if name in reader.sites:
            raise ValueError(f"{owner}: name must differ from those of the sites before it")
        own = link_of(f"{owner} link", table["link"]) if "link" in table else common
        reader.sites[name] = Site(name=name, link=own or ASSUMED_LINK)
    if not entries:
        reader.sites[ONLY_SITE] = Site(name=ONLY_SITE, link=common or ASSUMED_LINK)


def _note_links(reader: _Reader, fleet: Fleet) -> None:
    """Note the links that were assumed, and the sites that have none between them."""
    here = {name: 0 for name in reader.sites}
    for machine in fleet.machines:
        here[machine.site] += 1
    tables: Sequence[Any] = reader.table.get("sites", [{}])
    for (name, site), table in zip(reader.sites.items(), tables, strict=True):
        stated = "link" in table or "link" in reader.table
        if not stated and here[name] > 1:
            where = f"site {name!r}" if "sites" in reader.table else "no link is given"
            reader.notes.append(assumed_link_note(where, site.link))
    pairs = itertools.combinations(reader.sites, 2)
    unjoined = [
        f"{one!r} and {other!r}" for one, other in pairs if not fleet.site_link(one, other)
    ]
    if unjoined:
        more = len(unjoined) - MAX_SHOWN
        shown = ", ".join(unjoined[:MAX_SHOWN]) + (f", and {more} more" if more > 0 else "")
        reader.notes.append(f"pairs of sites without a link between them: {shown}")
    if len(reader.sites) > 1 and not reader.table.get("entry"):
        reader.notes.append(
            f"all requests enter at site {fleet.sites[0].name!r}, the first one, for the file"
            " has no [entry]"
        )


def _links(reader: _Reader) -> dict[tuple[str, str], Link]:
    found: dict[tuple[str, str], Link] = {}
    owners: dict[tuple[str, str], str] = {}
    has_return = {}
    for owner, entry in reader.entries("links", "link"):
        table: dict[str, Any] = dict(checked_table(owner, SiteLinkTable, entry))
        start, end = (
            _known(owner, f"site of {key!r}", table.pop(key), reader.sites)
            for key in ("from", "to")
        )
        if start == end:
            raise ValueError(
                f"{owner}: from and to must be two sites, got {start!r} twice; the link inside"
                " a site is a key of [[sites]]"
            )
        if (start, end) in found:
            raise ValueError(
                f"{owner}: from and to must name a way once, got {start!r} to {end!r} before"
            )
        found[start, end] = link_of(owner, table)
        owners[start, end] = owner
        has_return[start, end] = "return_latency_ms" in table
    for (start, end), owner in owners.items():
        if has_return[start, end] and (end, start) in found:
            raise ValueError(
                f"{owner}: return_latency_ms must not be given, for the link from {end!r} to"
                f" {start!r} has an entry of its own"
            )
    return found


def _entry(reader: _Reader) -> dict[str, float]:
    shares: Mapping[str, Any] = reader.table.get("entry", {})
    owner = reader.owner("entry")
    found = {}
    for site, share in shares.items():
        _known(owner, "site", site, reader.sites)
        found[site] = valid.real(owner, site, share)
        if found[site] > 1:
            raise ValueError(f"{owner}: {site} must be at most 1, got {share!r}")
    total = math.fsum(found.values())
    if found and abs(total - 1) > 1e-9:
        raise ValueError(f"{owner}: shares must add up to 1, got {total:g}")
    return found


# --- machines ---------------------------------------------------------------------------------


def _read_machine(reader: _Reader, owner: str, entry: Any) -> None:
    """Add the machines of an entry of ``[[machines]]``."""
    for key in ("tensor_parallel", "max_count"):
        if isinstance(entry, dict) and key in entry:
            why = (
                "the placement chooses it; it is a key of files with [[tiers]]"
                if key == "tensor_parallel"
                else "it is a key of [[offers]]; how many there are is count"
            )
            raise ValueError(f"{owner}: key {key!r} must not be given: {why}")
    check_gpu_is_named(owner, entry)
    table = checked_table(owner, MachineTable, entry)
    names = _names(reader, owner, table)
    if len(names) > 1 and "host" in table:
        raise ValueError(
            f"{owner}: host must be given for a single machine, got {len(names)} machines"
        )
    _add(reader, owner, names, table, label=table.get("name"))


def _read_offer(reader: _Reader, owner: str, entry: Any) -> None:
    """Add the machines of an entry of ``[[offers]]``."""
    check_gpu_is_named(owner, entry)
    table = checked_table(owner, OfferTable, entry)
    names = _numbered(table["name"], table["max_count"])
    _add(reader, owner, names, table, label=table["name"], offer=table["name"])


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}-{i}" for i in range(count)]


def _names(reader: _Reader, owner: str, table: MachineTable) -> list[str]:
    """Return the names of the machines of an entry."""
    if "names" in table:
        names, count = table["names"], table.get("count", len(table["names"]))
        if "name" in table:
            raise ValueError(f"{owner}: name must not be given beside names")
        if count != len(names):
            raise ValueError(
                f"{owner}: count must be the number of names, {len(names)}, got {count}"
            )
        return names
    count = table.get("count", 1)
    if "name" in table:
        return _numbered(table["name"], count)
    gpu = table["gpu"]
    if gpu.endswith(PROFILE_ENDING) and gpu in reader.gpus:
        gpu = reader.gpus[gpu].name
    free = (name for i in itertools.count() if (name := f"{gpu}-{i}") not in reader.machines)
    return list(itertools.islice(free, count))


def _add(
    reader: _Reader,
    owner: str,
    names: Sequence[str],
    table: MachineTable | OfferTable,
    label: str | None,
    offer: str = "",
) -> None:
    """Add machines of some names."""
    if len(reader.machines) + len(names) > MAX_MACHINES:
        raise ValueError(
            f"{owner}: a file must have at most {MAX_MACHINES} machines,"
            f" got {len(reader.machines) + len(names)} up to here"
        )
    if "site" in table:
        site = _known(owner, "site", table["site"], reader.sites)
    elif len(reader.sites) == 1:
        site = next(iter(reader.sites))
    else:
        raise ValueError(f"{owner}: key 'site' is missing: one of {', '.join(reader.sites)}")
    uplink = link_of(f"{owner} uplink", table["uplink"]) if "uplink" in table else None
    for name in names:
        valid.name(owner, name)
        if name in reader.places:
            raise ValueError(
                f"{owner}: names of machines must be distinct, got {name!r:.60}, which"
                f" {reader.places[name]} has"
            )
        reader.places[name] = owner.removeprefix(f"{reader.path}: ")
    nodes = nodes_of(owner, names, node_fields(owner, table, reader.gpus))
    for node in nodes:
        reader.machines[node.name] = Machine(
            node=node,
            site=site,
            price_per_hour=table.get("price_per_hour", 0.0),
            uplink=uplink,
            offer=offer,
        )
    if label is not None:
        reader.members.setdefault(label, []).extend(names)


# --- what may serve what ----------------------------------------------------------------------


def _pin(reader: _Reader, owner: str, entry: Any) -> BlockPin:
    table = checked_table(owner, PinTable, entry)
    _distinct(owner, "sites", table["sites"])
    for site in table["sites"]:
        _known(owner, "site", site, reader.sites)
    return BlockPin(table["blocks"], tuple(table["sites"]), owner)


def _apart(reader: _Reader) -> tuple[frozenset[str], ...]:
    """Return the sets of machines of which a pipeline uses one."""
    found: dict[frozenset[str], None] = {}
    choices = dict.fromkeys([*reader.members, *reader.machines])
    for k, names in enumerate(reader.table.get("apart", [])):
        owner = f"{reader.owner('apart')}, list {k}"
        _distinct(owner, "names", names)
        groups = []
        for name in names:
            _known(owner, "machine", name, choices)
            groups.append([name] if name in reader.machines else reader.members[name])
        if all(len(group) == 1 for group in groups):
            found[frozenset(group[0] for group in groups)] = None
            continue
        for one, other in itertools.combinations(groups, 2):
            if len(found) + len(one) * len(other) > MAX_APART:
                raise ValueError(f"{owner}: at most {MAX_APART} pairs may be apart")
            pairs = itertools.product(one, other)
            found |= {frozenset(pair): None for pair in pairs if pair[0] != pair[1]}
    return tuple(found)
