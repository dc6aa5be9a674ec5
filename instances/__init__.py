"""Problem instances: named networks, seeded generators, frozen files.

`networks` and `network` read ``networks/*.toml``; `instances.scenarios.scenario` puts a model
and requests on one of them.
"""

import functools
import tomllib
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve import validation as valid
from hypsolve.deployment import Link, Network, Node, Tier
from hypsolve.io import checked_path
from hypsolve.units import gbps_to_bytes_per_s, gib_to_bytes, ms_to_s

__all__ = ["describe", "network", "networks", "read_network"]

_FOLDER = Path(__file__).parent / "networks"
MAX_COUNT = 100_000  # of nodes of one kind
_KEYS = {  # required keys, optional keys
    "network": ({"description", "tiers"}, set()),
    "tier": ({"name", "nodes"}, {"link"}),
    "nodes": ({"gpu", "count", "source"}, {"memory_gib", "reserved_gib"}),
    "link": (
        {"gbps", "gbps_source", "latency_ms", "latency_source"},
        {"return_latency_ms"},
    ),
}


def networks() -> tuple[str, ...]:
    """Names of the networks that come with the repository."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def network(name: str) -> Network:
    """One of `networks`; an unknown name lists the choices."""
    return _network(valid.known("network", name, networks()))


@functools.cache
def _network(name: str) -> Network:
    return read_network(_FOLDER / f"{name}.toml")


def describe(name: str) -> str:
    """One line on what a network is."""
    path = _FOLDER / f"{valid.known('network', name, networks())}.toml"
    return valid.text(path.name, "description", _read_toml(path)["description"])


def read_network(path: str | Path) -> Network:
    """Read a network from TOML, named after the file; ``networks/*.toml`` show the keys.

    Per tier, request side first: ``nodes`` (GPU by its name in the catalog, count, reserved GiB
    for runtime and activations, optionally other memory than the GPU's) and, but on the last,
    the ``link`` to the next tier (gbps, one-way latency_ms). Every entry says where its numbers
    come from.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the entry and the key.
    """
    path = checked_path("read_network", path)
    table = _read_toml(path)
    owner = path.name
    _check_keys(owner, "network", table)
    valid.text(owner, "description", table["description"])
    tiers = [
        _tier(f"{owner}: tier {k}", entry)
        for k, entry in enumerate(_list(owner, table, "tiers"))
    ]
    return Network(name=path.stem, tiers=tuple(tiers))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not TOML: {error}") from None


def _tier(owner: str, entry: Any) -> Tier:
    _check_keys(owner, "tier", entry)
    name = valid.text(owner, "name", entry["name"])
    nodes: list[Node] = []
    for group in _list(owner, entry, "nodes"):
        of_nodes = f"{owner} nodes"
        _check_keys(of_nodes, "nodes", group)
        gpu = valid.text(of_nodes, "gpu", group["gpu"])
        count = valid.whole(of_nodes, "count", group["count"], least=1)
        if count > MAX_COUNT:
            raise ValueError(f"{of_nodes}: count must be at most {MAX_COUNT}, got {count}")
        reserved_gib = valid.real(of_nodes, "reserved_gib", group.get("reserved_gib", 0.0))
        memory_gib = group.get("memory_gib")
        if memory_gib is not None:
            memory_gib = valid.real(of_nodes, "memory_gib", memory_gib, strict=True)
        first = sum(node.name.startswith(f"{name}-{gpu}-") for node in nodes)
        nodes += (
            Node(
                name=f"{name}-{gpu}-{first + i}",
                gpu=catalog.gpu(gpu),
                memory_bytes=None if memory_gib is None else gib_to_bytes(memory_gib),
                reserved_bytes=gib_to_bytes(reserved_gib),
            )
            for i in range(count)
        )
    return Tier(name=name, nodes=tuple(nodes), link=_link(f"{owner} link", entry.get("link")))


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


def _list(owner: str, entry: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(entry[key], list) or not entry[key]:
        raise ValueError(
            f"{owner}: {key} must be a list of at least one, got {entry[key]!r:.60}"
        )
    return entry[key]
