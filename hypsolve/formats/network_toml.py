"""Networks on disk: TOML files of machines, links and limits."""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from hypsolve import catalog
from hypsolve.catalog import nearest
from hypsolve.catalog.interconnects import interconnect, interconnects
from hypsolve.formats.gpu_profile import PROFILE_ENDING, profile_of, read_gpu_profile
from hypsolve.formats.network_file import NetworkFile
from hypsolve.formats.network_toml_types import (
    End,
    GpuTable,
    Layer,
    LinkTable,
    NetworkTable,
    NodesTable,
    RuntimeTable,
    TierTable,
)
from hypsolve.formats.toml_tables import checked_table, checked_value, read_toml
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Link, Network, Node, Tier
from hypsolve.problem.files import checked_path
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.units import GIB, gbps_to_bytes_per_s, gib_to_bytes, ms_to_s

__all__ = ["NetworkFile", "read_network", "read_network_file"]


def read_network(path: str | os.PathLike[str]) -> Network:
    """Read a network from a TOML file, without its pins, limits, prices and runtime.

    Parameters
    ----------
    path : str or path
        See `read_network_file` for the format.

    Returns
    -------
    Network
        Named after the file.

    Raises
    ------
    ValueError, TypeError
        If the file is invalid; the message names the file, the entry and the key.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "lab.toml")
    ...     _ = path.write_text('''
    ...     [[tiers]]
    ...     name = "desk"
    ...     nodes = [{gpu = "l4", count = 2}]
    ...     ''')
    ...     hs.read_network(path)
    <Network lab, nodes of each tier: desk (2)>
    """
    return read_network_file(path).network


def read_network_file(path: str | os.PathLike[str]) -> NetworkFile:
    """Read a network from a TOML file, with its pins, limits, prices and runtime.

    A file lists the tiers in the order that a request visits them. Each tier has ``nodes`` and,
    unless it is the last, a ``link`` to the next tier.

    - Each group of nodes has a ``gpu``: a name in the catalogue, or the NAME of a table
      ``[gpus.NAME]`` in the file, which has the keys ``t0_us``, ``tflops``, ``gb_per_s`` and
      ``memory_gib``. Optional keys: ``count`` or ``names``, ``memory_gib`` (default: memory of
      the GPU), ``reserved_gib`` (what the system and other programs keep), ``slowdown`` (2
      means half as fast), ``price_per_hour``, ``host`` (the machine that the GPUs are in;
      default: every node is its own machine), ``gpus`` (equal GPUs in each node, with the
      ``interconnect`` among them) and ``tensor_parallel`` (how many of them compute as one;
      default: `hypsolve.plan` chooses).
    - A link has ``gbps`` and the one-way ``latency_ms``. Optional: ``return_latency_ms``.
    - Optional keys of a tier: ``host`` (of all its nodes), ``inner`` (a link among its nodes,
      for runtimes of one pipeline), ``pin`` (``embedding``, ``head``, numbers of layers from
      0), ``min_blocks`` (0 means that the tier may stay empty) and ``max_blocks``. Both limits
      count embedding and head.
    - Optional: ``runtime``, a name such as ``"vllm"``, or a table with that ``name`` and values
      in place of its defaults, such as ``max_num_seqs = 64``. An argument or an option that
      names another runtime replaces it.
    - Keys that end in ``source`` tell where a number comes from.

    ::

        [[tiers]]
        name = "desk"
        pin = ["embedding"]
        nodes = [{gpu = "jetson-agx-orin", reserved_gib = 8.0}]
        link = {gbps = 1.0, latency_ms = 0.2}

        [[tiers]]
        name = "rented"
        nodes = [{gpu = "a100-80gb", count = 2, price_per_hour = 1.8}]

    Parameters
    ----------
    path : str or path

    Returns
    -------
    NetworkFile
        Its network is named after the file.

    Raises
    ------
    ValueError, TypeError
        If the file is invalid; the message names the file, the entry and the key, and suggests
        the likeliest key in place of an unknown one.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "lab.toml")
    ...     _ = path.write_text('''
    ...     [[tiers]]
    ...     name = "desk"
    ...     nodes = [{gpu = "l4", price_per_hour = 0.7}]
    ...     pin = ["head"]
    ...     ''')
    ...     file = hs.read_network_file(path)
    >>> file.pins, file.price_per_hour
    ({'head': 'desk'}, {'desk-l4-0': 0.7})
    """
    path = checked_path("read_network", path)
    owner = str(path)
    table = checked_table(owner, NetworkTable, read_toml(path))
    entries = [
        checked_table(f"{owner}: tier {k}", TierTable, _without_keys_of_nodes(owner, k, entry))
        for k, entry in enumerate(table["tiers"])
    ]
    gpus = _gpus(owner, table.get("gpus", {})) | _profile_files(owner, entries, path.parent)
    tiers: list[Tier] = []
    pins: dict[str | int, str] = {}
    prices: dict[str, float] = {}
    for k, entry in enumerate(entries):
        of_tier = f"{owner}: tier {k} {entry['name']!r}"
        least, most = entry.get("min_blocks", 1), entry.get("max_blocks", math.inf)
        if most < least:
            raise ValueError(
                f"{of_tier}: max_blocks must be at least min_blocks, {least}, got {most}"
            )
        tier, of_nodes = _tier(of_tier, entry, gpus)
        tiers.append(tier)
        prices |= of_nodes
        for block in _pins(f"{owner}: tier {k}", entry.get("pin", [])):
            if block in pins:
                raise ValueError(
                    f"{owner}: tier {k}: pin must name a block once, got {block!r} of"
                    f" {pins[block]!r} before"
                )
            pins[block] = tier.name
    try:
        network = Network(name=path.stem, tiers=tuple(tiers))
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    return NetworkFile(
        network=network,
        description=table.get("description", ""),
        pins=pins,
        min_blocks=tuple(entry.get("min_blocks") for entry in entries),
        max_blocks=tuple(entry.get("max_blocks") for entry in entries),
        price_per_hour=prices,
        currency=table.get("currency", ""),
        inner_links=tuple(
            _link(f"{owner}: tier {k} inner", entry["inner"])
            if "inner" in entry
            else tiers[k].machine_link
            for k, entry in enumerate(entries)
        ),
        runtime=_runtime(owner, table["runtime"], network) if "runtime" in table else None,
    )


def _runtime(owner: str, given: str | RuntimeTable, network: Network) -> Runtime:
    """Return the runtime of a file, with the defaults that it has on the file's GPUs."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise TypeError(f"{owner}: runtime must be a name or a table, got {given!r:.60}")
    entry: dict[str, Any] = dict(checked_table(f"{owner}: runtime", RuntimeTable, given))
    gpus = [node.gpu for tier in network.tiers for node in tier.nodes]
    try:
        return catalog.runtime(entry.pop("name"), gpus=gpus, **entry)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


def _gpus(owner: str, tables: Mapping[str, GpuTable]) -> dict[str, GpuProfile]:
    """Return the GPUs that a file defines by its own numbers."""
    found = {}
    for name, given in tables.items():
        of_gpu = f"{owner}: gpu {name!r}"
        try:
            entry = checked_table(of_gpu, GpuTable, given)
        except ValueError as error:
            raise ValueError(
                f"{error}{nearest.hint_by_figures(given, catalog.gpus())}"
            ) from None
        if name in catalog.gpus():
            raise ValueError(f"{of_gpu}: name must not be one of the catalogue's")
        found[name] = profile_of(name, entry)
    return found


def _without_keys_of_nodes(owner: str, at: int, entry: Any) -> Any:
    """Return the table of a tier; raise if it has a key that belongs to its nodes."""
    for key in entry if isinstance(entry, dict) else ():
        if key in NodesTable.__annotations__ and key not in TierTable.__annotations__:
            raise ValueError(
                f"{owner}: tier {at}: key {key!r} belongs to nodes: nodes = [{{gpu = ...,"
                f" {key} = {entry[key]!r:.20}}}]"
            )
    return entry


def _profile_files(
    owner: str, tiers: Iterable[TierTable], folder: Path
) -> dict[str, GpuProfile]:
    """Return the GPUs that nodes name by the path of a profile file, relative to `folder`."""
    found: dict[str, GpuProfile] = {}
    for tier in tiers:
        for k, group in enumerate(tier["nodes"]):
            name = group.get("gpu") if isinstance(group, dict) else None
            if not isinstance(name, str) or not name.endswith(PROFILE_ENDING) or name in found:
                continue
            try:
                found[name] = read_gpu_profile(folder / name)
            except OSError as error:
                where = f"{owner}: tier {tier['name']!r} nodes {k}: gpu {name}"
                raise type(error)(error.errno, error.strerror, where) from None
    return found


def _tier(
    owner: str, entry: TierTable, gpus: Mapping[str, GpuProfile]
) -> tuple[Tier, dict[str, float]]:
    nodes: list[Node] = []
    prices: dict[str, float] = {}
    for i, given in enumerate(entry["nodes"]):
        of_group = f"{owner} nodes {i}"
        if isinstance(given, dict) and isinstance(own := given.get("gpu"), dict):
            hint = nearest.hint_by_figures(own, catalog.gpus())
            raise TypeError(
                f"{of_group}: gpu must be a name, got a table; define it as [gpus.NAME]{hint}"
            )
        group = checked_table(of_group, NodesTable, given)
        group.setdefault("host", entry.get("host", ""))
        made = _nodes(of_group, entry["name"], group, gpus, nodes)
        if "tensor_parallel" in group:
            made = [part for machine in made for part in machine.groups()]
        nodes += made
        if "price_per_hour" in group:
            # the groups of a machine share its price
            n_gpus = group.get("gpus", 1)
            n_groups = n_gpus // group.get("tensor_parallel", n_gpus)
            price = group["price_per_hour"] / n_groups
            prices |= dict.fromkeys((node.name for node in made), price)
    link = _link(f"{owner} link", entry["link"]) if "link" in entry else None
    return Tier(name=entry["name"], nodes=tuple(nodes), link=link), prices


def _nodes(
    owner: str,
    tier: str,
    group: NodesTable,
    gpus: Mapping[str, GpuProfile],
    before: list[Node],
) -> list[Node]:
    gpu = group["gpu"]
    known = catalog.gpus() | dict(gpus)
    if gpu not in known:
        message = nearest.unknown_gpu(gpu, known, nearest.usable_figures(group))
        raise ValueError(f"{owner}: {message}")
    profile = known[gpu]
    if (slowdown := group.get("slowdown", 1.0)) != 1:
        profile = _slower(profile, slowdown)
    names = group.get("names")
    if names is None:
        taken = {node.name for node in before}
        kind = profile.name if gpu.endswith(PROFILE_ENDING) else gpu
        free = (name for i in itertools.count() if (name := f"{tier}-{kind}-{i}") not in taken)
        names = list(itertools.islice(free, group.get("count", 1)))
    elif group.get("count", len(names)) != len(names):
        raise ValueError(
            f"{owner}: count must be the number of names, {len(names)}, got {group['count']}"
        )
    host = group.get("host", "")
    if not host.isprintable():
        raise ValueError(f"{owner}: host must be printable, got {host!r:.60}")
    memory_gib = group.get("memory_gib")
    has_gib = profile.memory_bytes / GIB if memory_gib is None else memory_gib
    if group.get("reserved_gib", 0.0) >= has_gib:
        raise ValueError(
            f"{owner}: reserved_gib must be below the memory, {has_gib:.4g} GiB,"
            f" got {group['reserved_gib']}"
        )
    machine = _machine(owner, group)
    try:
        return [
            Node(
                name=name,
                gpu=profile,
                memory_bytes=None if memory_gib is None else gib_to_bytes(memory_gib),
                reserved_bytes=gib_to_bytes(group.get("reserved_gib", 0.0)),
                host=host,
                **machine,
            )
            for name in names
        ]
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


def _machine(owner: str, group: NodesTable) -> dict[str, Any]:
    """Return the fields of a machine of several GPUs; none for a single GPU."""
    several = group.get("gpus", 1) > 1
    if several and "interconnect" not in group:
        raise ValueError(
            f"{owner}: interconnect must be given with gpus = {group['gpus']}: one of"
            f" {', '.join(interconnects())}"
        )
    keys = ("gpus", "tensor_parallel")
    fields: dict[str, Any] = {name: value for name, value in group.items() if name in keys}
    if "interconnect" in group:
        try:
            fields["interconnect"] = interconnect(group["interconnect"], group["gpu"])
        except ValueError as error:
            raise ValueError(f"{owner}: {error}") from None
    return fields


def _slower(gpu: GpuProfile, slowdown: float) -> GpuProfile:
    rate = 1 / slowdown
    slower = gpu.scaled(seconds=slowdown, flops=rate, moved=rate)
    return replace(
        slower,
        name=f"{gpu.name} {slowdown:g}x slower",
        flops_per_s=gpu.flops_per_s / slowdown,
        bytes_per_s=gpu.bytes_per_s / slowdown,
    )


def _link(owner: str, given: Any) -> Link:
    entry = checked_table(owner, LinkTable, given)
    return Link(
        bytes_per_s=gbps_to_bytes_per_s(entry["gbps"]),
        latency_s=ms_to_s(entry["latency_ms"]),
        return_latency_s=ms_to_s(entry.get("return_latency_ms", entry["latency_ms"])),
    )


def _pins(owner: str, blocks: Sequence[str | int]) -> Sequence[str | int]:
    for block in blocks:
        if isinstance(block, str):
            valid.known(f"block to pin ({owner})", block, get_args(End))
        else:
            checked_value(owner, "pin", block, Layer)
    return blocks
