"""Networks on disk: a TOML file that says what machines there are, and how they are linked."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve import validation as valid
from hypsolve.deployment import GpuProfile, Link, Model, Network, Node, Tier
from hypsolve.io import checked_path, read_bytes
from hypsolve.units import gbps_to_bytes_per_s, gib_to_bytes, ms_to_s

MAX_BYTES = 2**26
MAX_COUNT = 100_000  # of nodes of one kind
_KEYS = {  # required keys, optional keys
    "network": ({"tiers"}, {"description", "gpus"}),
    "tier": ({"name", "nodes"}, {"link", "pin", "least_blocks", "most_blocks"}),
    "nodes": (
        {"gpu"},
        {"count", "names", "memory_gib", "reserved_gib", "price_per_hour", "source"},
    ),
    "link": (
        {"gbps", "latency_ms"},
        {"return_latency_ms", "gbps_source", "latency_source"},
    ),
    "gpu": (
        {"t0_us", "tflops", "gb_per_s", "memory_gib"},
        {"power_w", "source"},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """What a file says: a network, and what is wanted of it.

    Attributes
    ----------
    network : Network
    description : str
    pins : dict
        Tier by block: ``embedding``, ``head``, or the number of a layer, counted from 0.
    least_blocks, most_blocks : tuple of int or None
        Of each tier; None: at least one, and no limit. A tier of which at least 0 are wanted
        may stay empty: it passes on what comes.
    price_per_hour : dict
        By name of the node; those without a price are not in it.
    """

    network: Network
    description: str = ""
    pins: Mapping[str | int, str] = field(default_factory=dict)
    least_blocks: tuple[int | None, ...] = ()
    most_blocks: tuple[int | None, ...] = ()
    price_per_hour: Mapping[str, float] = field(default_factory=dict)

    def rules(self, model: Model) -> dict[str, Any]:
        """Arguments of `hypsolve.to_instance` that say where blocks of a model may be.

        Raises
        ------
        ValueError
            If the model has no such block, or the limits leave no room.
        """
        tiers = [tier.name for tier in self.network.tiers]
        pinned = {_block(model, block): tiers.index(at) for block, at in self.pins.items()}
        rules: dict[str, Any] = {"pinned": pinned} if pinned else {}
        least = [1 if limit is None else limit for limit in self.least_blocks]
        if sum(least) > model.n_blocks:
            raise ValueError(
                f"least_blocks of all tiers must be at most the {model.n_blocks} blocks of"
                f" {model.name}, got {sum(least)}"
            )
        if any(limit is not None for limit in self.least_blocks):
            rules["least_blocks"] = least
            rules["allow_empty"] = 0 in least
        if any(limit is not None for limit in self.most_blocks):
            rules["most_blocks"] = [
                model.n_blocks if limit is None else min(limit, model.n_blocks)
                for limit in self.most_blocks
            ]
        return rules


def _block(model: Model, name: str | int) -> int:
    """Number of a block by the name that pins use."""
    ends = {"embedding": 0, "head": model.n_blocks - 1}
    number = ends[name] if isinstance(name, str) else name + 1
    if not isinstance(name, str) and name >= model.n_blocks - 2:
        raise ValueError(
            f"pin of layer {name}: {model.name} has layers 0 to {model.n_blocks - 3}"
        )
    return number


def read_network(path: str | os.PathLike[str]) -> Network:
    """Read a network from TOML: `read_network_file` without what is wanted of it."""
    return read_network_file(path).network


def read_network_file(path: str | os.PathLike[str]) -> NetworkFile:
    """Read a network and what is wanted of it from TOML; the network is named after the file.

    Per tier, request side first: ``nodes`` and, but on the last, the ``link`` to the next. A
    group of nodes has a ``gpu`` (of the catalogue, or of the file's own ``[gpus.NAME]``:
    t0_us, tflops, gb_per_s, memory_gib), and may have ``count`` or ``names``, ``memory_gib``
    (else the GPU's), ``reserved_gib`` for runtime and activations, ``price_per_hour``. A link
    has ``gbps`` and one-way ``latency_ms``, and may have ``return_latency_ms``. A tier may have
    ``pin`` (``embedding``, ``head``, numbers of layers), ``least_blocks`` (0: the tier may stay
    empty) and ``most_blocks``, embedding and head counted. Keys that end in ``source`` say
    where a number comes from::

        [[tiers]]
        name = "desk"
        pin = ["embedding"]
        nodes = [{gpu = "jetson-agx-orin", reserved_gib = 8.0}]
        link = {gbps = 1.0, latency_ms = 0.2}

        [[tiers]]
        name = "rented"
        nodes = [{gpu = "a100-80gb", count = 2, price_per_hour = 1.8}]

    Raises
    ------
    ValueError, TypeError
        Naming the file, the entry and the key.
    OSError
        If there is no such file, or it cannot be read.
    """
    path = checked_path("read_network", path)
    table = _read_toml(path)
    owner = path.name
    _check_keys(owner, "network", table)
    gpus = _gpus(owner, table.get("gpus", {}))
    entries = _list(owner, table, "tiers")
    tiers: list[Tier] = []
    pins: dict[str | int, str] = {}
    prices: dict[str, float] = {}
    for k, entry in enumerate(entries):
        tier, of_nodes = _tier(f"{owner}: tier {k}", entry, gpus)
        tiers.append(tier)
        prices |= of_nodes
        for block in _pins(f"{owner}: tier {k}", entry.get("pin", [])):
            if block in pins:
                raise ValueError(
                    f"{owner}: tier {k}: pin must name a block once, got {block!r} of"
                    f" {pins[block]!r} before"
                )
            pins[block] = tier.name
    return NetworkFile(
        network=Network(name=path.stem, tiers=tuple(tiers)),
        description=_text(owner, "description", table),
        pins=pins,
        least_blocks=_limits(owner, entries, "least_blocks"),
        most_blocks=_limits(owner, entries, "most_blocks"),
        price_per_hour=prices,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(path, MAX_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: not TOML: {error}") from None


def _gpus(owner: str, table: Any) -> dict[str, GpuProfile]:
    """GPUs by numbers of one's own."""
    if not isinstance(table, dict):
        raise TypeError(f"{owner}: gpus must be tables, got {table!r:.60}")
    found = {}
    for name, entry in table.items():
        of_gpu = f"{owner}: gpu {name!r}"
        _check_keys(of_gpu, "gpu", entry)
        if name in catalog.gpus():
            raise ValueError(f"{of_gpu}: name must not be one of the catalogue's")
        numbers = {
            key: valid.real(of_gpu, key, entry[key], strict=key != "t0_us")
            for key in ("t0_us", "tflops", "gb_per_s", "memory_gib")
        }
        found[name] = GpuProfile(
            name=name,
            t0_s=numbers["t0_us"] * 1e-6,
            flops_per_s=numbers["tflops"] * 1e12,
            bytes_per_s=numbers["gb_per_s"] * 1e9,
            memory_bytes=gib_to_bytes(numbers["memory_gib"]),
            power_w=valid.real(of_gpu, "power_w", entry.get("power_w", 0.0)),
            source=_text(of_gpu, "source", entry),
        )
    return found


def _tier(
    owner: str, entry: Any, gpus: Mapping[str, GpuProfile]
) -> tuple[Tier, dict[str, float]]:
    _check_keys(owner, "tier", entry)
    name = valid.text(owner, "name", entry["name"])
    nodes: list[Node] = []
    prices: dict[str, float] = {}
    for group in _list(owner, entry, "nodes"):
        made = _nodes(f"{owner} nodes", name, group, gpus, nodes)
        nodes += made
        if "price_per_hour" in group:
            price = valid.real(f"{owner} nodes", "price_per_hour", group["price_per_hour"])
            prices |= dict.fromkeys((node.name for node in made), price)
    link = _link(f"{owner} link", entry.get("link"))
    return Tier(name=name, nodes=tuple(nodes), link=link), prices


def _nodes(
    owner: str, tier: str, group: Any, gpus: Mapping[str, GpuProfile], before: list[Node]
) -> list[Node]:
    _check_keys(owner, "nodes", group)
    gpu = valid.text(owner, "gpu", group["gpu"])
    profile = gpus[gpu] if gpu in gpus else catalog.gpu(gpu)
    names = group.get("names")
    if names is None:
        count = valid.whole(owner, "count", group.get("count", 1), least=1)
        if count > MAX_COUNT:
            raise ValueError(f"{owner}: count must be at most {MAX_COUNT}, got {count}")
        first = sum(node.name.startswith(f"{tier}-{gpu}-") for node in before)
        names = [f"{tier}-{gpu}-{first + i}" for i in range(count)]
    else:
        for each in _list(owner, group, "names"):
            valid.text(owner, "names", each)
        if valid.whole(owner, "count", group.get("count", len(names))) != len(names):
            raise ValueError(
                f"{owner}: count must be the number of names, {len(names)},"
                f" got {group['count']}"
            )
    reserved_gib = valid.real(owner, "reserved_gib", group.get("reserved_gib", 0.0))
    memory_gib = group.get("memory_gib")
    if memory_gib is not None:
        memory_gib = valid.real(owner, "memory_gib", memory_gib, strict=True)
    return [
        Node(
            name=name,
            gpu=profile,
            memory_bytes=None if memory_gib is None else gib_to_bytes(memory_gib),
            reserved_bytes=gib_to_bytes(reserved_gib),
        )
        for name in names
    ]


def _link(owner: str, entry: Any) -> Link | None:
    if entry is None:
        return None
    _check_keys(owner, "link", entry)
    gbps = valid.real(owner, "gbps", entry["gbps"], strict=True)
    latency_ms = valid.real(owner, "latency_ms", entry["latency_ms"])
    back_ms = valid.real(owner, "return_latency_ms", entry.get("return_latency_ms", latency_ms))
    return Link(
        bytes_per_s=gbps_to_bytes_per_s(gbps),
        latency_s=ms_to_s(latency_ms),
        return_latency_s=ms_to_s(back_ms),
    )


def _pins(owner: str, blocks: Any) -> list[str | int]:
    if not isinstance(blocks, list):
        raise TypeError(f"{owner}: pin must be a list, got {blocks!r:.60}")
    for block in blocks:
        if isinstance(block, str):
            valid.known(f"block to pin ({owner})", block, ("embedding", "head"))
        else:
            valid.whole(owner, "pin", block)
    return blocks


def _limits(owner: str, entries: list[Any], key: str) -> tuple[int | None, ...]:
    return tuple(
        None if key not in entry else valid.whole(f"{owner}: tier {k}", key, entry[key])
        for k, entry in enumerate(entries)
    )


def _check_keys(owner: str, kind: str, entry: Any) -> None:
    required, optional = _KEYS[kind]
    if not isinstance(entry, dict):
        raise TypeError(f"{owner}: must be a table, got {entry!r:.60}")
    for key in sorted(required - entry.keys()):
        raise ValueError(f"{owner}: key {key!r} is missing")
    for key in sorted(entry.keys() - required - optional):
        raise ValueError(f"{owner}: unknown key {key!r}; known: {sorted(required | optional)}")
    for key in entry:
        if key.endswith("source"):
            valid.text(owner, key, entry[key])


def _text(owner: str, key: str, entry: Mapping[str, Any]) -> str:
    return valid.text(owner, key, entry[key]) if key in entry else ""


def _list(owner: str, entry: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(entry[key], list) or not entry[key]:
        raise ValueError(
            f"{owner}: {key} must be a list of at least one, got {entry[key]!r:.60}"
        )
    return entry[key]
