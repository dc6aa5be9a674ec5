"""Fleets of network files: the machines of all tiers, whose order does not count."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypsolve.formats.machines_file import (
    ASSUMED_LINK,
    BlockPin,
    MachinesFile,
    assumed_link_note,
)
from hypsolve.formats.network_file import NetworkFile
from hypsolve.formats.network_toml import network_of_table
from hypsolve.formats.toml_nodes import link_of
from hypsolve.problem.fleet import Fleet
from hypsolve.problem.model import Model


def machines_of_network(path: Path, table: Mapping[str, Any]) -> MachinesFile:
    """Return the fleet of a network file, whose tiers are its sites.

    Machines are whole: the degree of tensor parallelism of a file is chosen anew.
    """
    file = network_of_table(path, table)  # as it is, so that all of it is checked
    notes = ["the tiers are sites, whose order does not count; requests enter at the first one"]
    fixed = [
        f"tier {tier['name']!r} nodes {k}"
        for tier in table["tiers"]
        for k, group in enumerate(tier["nodes"])
        if "tensor_parallel" in group
    ]
    if fixed:
        notes.append(f"tensor_parallel is chosen anew: {', '.join(fixed)}")
        file = network_of_table(path, _without_degrees(table))
    fleet = Fleet.of_network(file.network, file.price_per_hour)
    sites, assumed = [], []
    for site, tier in zip(fleet.sites, table["tiers"], strict=True):
        link = site.link
        if "inner" in tier:
            link = link_of(f"{path}: tier {site.name!r} inner", tier["inner"])
        elif sum(machine.site == site.name for machine in fleet.machines) > 1:
            link = ASSUMED_LINK if len(fleet.sites) == 1 else link
            assumed.append((site.name, link))
        sites.append(replace(site, link=link))
    if assumed:
        names = ", ".join(repr(name) for name, _ in assumed)
        tiers = "tier" if len(assumed) == 1 else "tiers"
        notes.append(
            f"{assumed_link_note(f'{tiers} {names} without inner links', assumed[0][1])}"
            + (", the fastest link of the file" if len(sites) > 1 else "")
        )
    pins = _pins(path, file)
    numbered = (pin.without_model() for pin in pins)
    for key in ("min_blocks", "max_blocks"):
        if any(key in tier for tier in table["tiers"]):
            notes.append(f"{key} is left out: it counts the blocks of a tier")
    return MachinesFile(
        fleet=replace(
            fleet,
            sites=tuple(sites),
            pins=tuple(pin for pin in numbered if pin is not None),
        ),
        source=str(path),
        description=file.description,
        currency=file.currency,
        runtime=file.runtime,
        pins=pins,
        notes=tuple(notes),
    )


def fleet_of_network_file(file: NetworkFile, model: Model) -> Fleet:
    """Return the machines of a network, with its pins for a model, inner links and prices.

    Tiers that may hold no blocks have none.
    """
    most = file.max_blocks or (None,) * len(file.network.tiers)
    fleet = Fleet.of_network(file.network, file.price_per_hour)
    open_sites = {
        site.name for site, limit in zip(fleet.sites, most, strict=True) if limit != 0
    }
    sites = []
    for k, site in enumerate(fleet.sites):
        own = ASSUMED_LINK if len(fleet.sites) == 1 else site.link
        sites.append(replace(site, link=file.inner_link(k) or own))
    return replace(
        fleet,
        sites=tuple(sites),
        machines=tuple(each for each in fleet.machines if each.site in open_sites),
        pins=tuple(pin.of(model) for pin in _pins(Path(fleet.name), file)),
    )


def _without_degrees(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checked file without degrees of tensor parallelism."""
    tiers = [
        tier
        | {
            "nodes": [
                {key: value for key, value in group.items() if key != "tensor_parallel"}
                for group in tier["nodes"]
            ]
        }
        for tier in table["tiers"]
    ]
    return {**table, "tiers": tiers}


def _pins(path: Path, file: NetworkFile) -> tuple[BlockPin, ...]:
    """Return the pins of the tiers; layer 0 is block 1."""
    return tuple(
        BlockPin(
            block if isinstance(block, str) else f"{block + 1}:{block + 2}",
            (tier,),
            f"{path}: pin of {block!r}",
        )
        for block, tier in file.pins.items()
    )
