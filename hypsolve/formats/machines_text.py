"""Fleets as machines files: to edit what was read from an inventory, a network or Helix."""

import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypsolve import catalog
from hypsolve.catalog.interconnects import interconnect, interconnects
from hypsolve.formats.machines_file import MachinesFile
from hypsolve.formats.network_toml_types import runtime_keys
from hypsolve.formats.toml_nodes import slower_gpu
from hypsolve.problem.fleet import Machine
from hypsolve.problem.network import GpuProfile, Link, Node
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.units import gbps_to_bytes_per_s, gib_to_bytes, ms_to_s

WIDTH = 96  # of comments
_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key of TOML that needs no quotes
_SLOWED = re.compile(r"(.+) ([0-9.e+]+)x slower")
_FIGURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "t0_us": ("t0_s", lambda value: value * 1e-6),
    "tflops": ("flops_per_s", lambda value: value * 1e12),
    "gb_per_s": ("bytes_per_s", lambda value: value * 1e9),
    "memory_gib": ("memory_bytes", gib_to_bytes),
}


def machines_text(file: MachinesFile) -> str:
    """Return the text of a machines file, with the notes as comments.

    `hypsolve.read_machines` reads the fleet back. It states no numbers of cards.

    Raises
    ------
    ValueError
        If the fleet has what a file cannot express: an interconnect that is not of the
        catalogue, or a GPU with a rate for each kind of operator.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from hypsolve.formats.machines_file import MachinesFile
    >>> from hypsolve.formats.machines_text import machines_text
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> box = hs.Machine(node=hs.Node(name="box", gpu=hs.gpu("l4")), site="room")
    >>> lab = hs.Fleet(name="lab", sites=(hs.Site(name="room", link=lan),), machines=(box,))
    >>> print(machines_text(MachinesFile(fleet=lab)))
    [entry]
    room = 1.0
    <BLANKLINE>
    [[sites]]
    name = "room"
    link = {gbps = 10.0, latency_ms = 0.1}
    <BLANKLINE>
    [[machines]]
    name = "box"
    gpu = "l4"
    site = "room"
    <BLANKLINE>
    """
    fleet = file.fleet
    top: dict[str, Any] = {"description": file.description, "currency": file.currency}
    top = {key: value for key, value in top.items() if value}
    if file.runtime is not None:
        gpus = [machine.node.gpu for machine in fleet.machines]
        top["runtime"] = _runtime(file.runtime, gpus)
    if fleet.default_link is not None:
        top["default_link"] = _link(fleet.default_link)
    if fleet.apart:
        top["apart"] = [sorted(names) for names in fleet.apart]
    own: dict[str, dict[str, Any]] = {}
    machines = list(_machines(fleet.machines, own))
    tables: list[tuple[str, dict[str, Any]]] = [("[entry]", dict(fleet.entry))]
    for site in fleet.sites:
        tables.append(("[[sites]]", {"name": site.name, "link": _link(site.link)}))
    for (start, end), link in fleet.links.items():
        joined = _link(link)
        if (end, start) in fleet.links:
            joined.pop("return_latency_ms", None)
        tables.append(("[[links]]", {"from": start, "to": end, **joined}))
    tables += machines
    for pin in file.pins:
        tables.append(("[[pins]]", {"blocks": pin.blocks, "sites": list(pin.sites)}))
    tables += [(f"[gpus.{_key(name)}]", figures) for name, figures in own.items()]
    parts = ["".join(map(_comment, file.notes))]
    parts.append("".join(f"{_key(key)} = {_value(value)}\n" for key, value in top.items()))
    for header, table in tables:
        lines = (f"{_key(key)} = {_value(value)}\n" for key, value in table.items())
        parts.append(f"{header}\n{''.join(lines)}")
    return "\n".join(part for part in parts if part)


def _machines(
    machines: Sequence[Machine], own: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of equal machines that follow each other; fill the GPUs in `own`."""

    def alike(machine: Machine) -> tuple[object, ...]:
        return (machine.offer, machine.node.host, *machine.kind)

    for _, group in itertools.groupby(machines, alike):
        some = list(group)
        first, names = some[0], [machine.name for machine in some]
        table: dict[str, Any] = {"name": first.offer} if first.offer else {"name": names[0]}
        if not first.offer and len(names) > 1:
            table = {"names": names}
        table |= _hardware(first.node, own)
        if first.offer:
            table["max_count"] = len(some)
        table["site"] = first.site
        if first.offer or first.price_per_hour:
            table["price_per_hour"] = first.price_per_hour
        if first.uplink is not None:
            table["uplink"] = _link(first.uplink)
        yield ("[[offers]]" if first.offer else "[[machines]]"), table


def _hardware(node: Node, own: dict[str, dict[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = _slowed(node.gpu) or {"gpu": _gpu(node.gpu, own)}
    if node.gpus > 1:
        table["gpus"] = node.gpus
    if node.interconnect is not None:
        known = (
            name
            for name in interconnects()
            if interconnect(name, table["gpu"]) == node.interconnect
        )
        name = next(known, None)
        if name is None:
            raise ValueError(
                f"machine {node.name!r}: interconnect must be one of the catalogue,"
                f" got {node.interconnect.name!r}"
            )
        table["interconnect"] = name
    for key, n_bytes in (
        ("memory_gib", node.memory_bytes),
        ("reserved_gib", node.reserved_bytes or None),
    ):
        if n_bytes is not None:
            table[key] = _number(n_bytes, gib_to_bytes, n_bytes / gib_to_bytes(1))
    if node.host:
        table["host"] = node.host
    return table


def _slowed(gpu: GpuProfile) -> dict[str, Any] | None:
    """Return the keys of a GPU of the catalogue with a slowdown, if it is one."""
    found = _SLOWED.fullmatch(gpu.name)
    if not found:
        return None
    try:
        slowdown = float(found[2])
    except ValueError:
        return None
    for name, profile in catalog.gpus().items():
        if slowdown > 1 and profile.name == found[1] and slower_gpu(profile, slowdown) == gpu:
            return {"gpu": name, "slowdown": slowdown}
    return None


def _gpu(gpu: GpuProfile, own: dict[str, dict[str, Any]]) -> str:
    """Return the name of a GPU; one that the catalogue lacks becomes one of `own`."""
    for name, profile in catalog.gpus().items():
        if profile == gpu:
            return name
    if gpu.operators is not None:
        raise ValueError(f"gpu {gpu.name!r}: rates of operators cannot be in a machines file")
    figures: dict[str, Any] = {}
    for key, (attribute, convert) in _FIGURES.items():
        value = getattr(gpu, attribute)
        figures[key] = _number(value, convert, value / convert(1.0))
    if not gpu.overlaps:
        figures["overlaps"] = False
    if gpu.power_w:
        figures["power_w"] = gpu.power_w
    if gpu.source:
        figures["source"] = gpu.source
    names = (gpu.name if i == 0 else f"{gpu.name} {i}" for i in itertools.count())
    name = next(
        name
        for name in names
        if own.get(name, figures) == figures and name not in catalog.gpus()
    )
    own[name] = figures
    return name


def _link(link: Link) -> dict[str, Any]:
    back = link.round_trip_s - link.latency_s
    if link.return_latency_s is not None:
        back = link.return_latency_s
    table = {
        "gbps": _number(link.bytes_per_s, gbps_to_bytes_per_s, link.bytes_per_s * 8e-9),
        "latency_ms": _number(link.latency_s, ms_to_s, link.latency_s * 1e3),
    }
    if back != link.latency_s:
        table["return_latency_ms"] = _number(back, ms_to_s, back * 1e3)
    return table


def _runtime(runtime: Runtime, gpus: Sequence[GpuProfile]) -> Any:
    """Return the name of a runtime, or a table of what differs from its defaults."""
    usual = catalog.runtime(runtime.name, gpus=gpus)
    differs = {
        key: str(value) if isinstance(value, str) else value
        for key in runtime_keys()
        if (value := getattr(runtime, key)) != getattr(usual, key) and value is not None
    }
    return {"name": runtime.name, **differs} if differs else runtime.name


def _number(value: float, convert: Callable[[float], float], near: float) -> float:
    """Return the shortest number that is converted to `value` exactly, or `near`."""
    for digits in range(1, 18):
        rounded = float(f"{near:.{digits}g}")
        if convert(rounded) == value:
            return rounded
    return near


def _comment(note: str) -> str:
    """Return a note as lines of a comment, which has printable characters alone."""
    shown = "".join(each if each.isprintable() else "?" for each in note)
    lines = textwrap.wrap(shown, WIDTH, initial_indent="# ", subsequent_indent="#   ")
    return "".join(f"{line}\n" for line in lines)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    """Return a value in TOML; its basic strings have the escapes of JSON."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
