"""Networks on disk: TOML files of machines, links and limits."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hypsolve.formats.gpu_profile import PROFILE_ENDING
from hypsolve.formats.network_file import NetworkFile
from hypsolve.formats.network_toml_types import End, Layer, NetworkTable, NodesTable, TierTable
from hypsolve.formats.toml_nodes import (
    check_gpu_is_named,
    link_of,
    node_fields,
    nodes_of,
    own_gpus,
    profile_files,
    runtime_of,
)
from hypsolve.formats.toml_tables import checked_table, checked_value, read_toml
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Network, Node, Tier
from hypsolve.problem.files import checked_path

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
    return network_of_table(path, read_toml(path))


def network_of_table(path: Path, content: Mapping[str, Any]) -> NetworkFile:
    """Return the network of the content of a file; `read_network_file` describes it."""
    owner = str(path)
    table = checked_table(owner, NetworkTable, content)
    entries = [
        checked_table(f"{owner}: tier {k}", TierTable, _without_keys_of_nodes(owner, k, entry))
        for k, entry in enumerate(table["tiers"])
    ]
    gpus = own_gpus(owner, table.get("gpus", {})) | profile_files(
        _groups(owner, entries), path.parent
    )
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
    gpus_of = [node.gpu for tier in network.tiers for node in tier.nodes]
    return NetworkFile(
        network=network,
        description=table.get("description", ""),
        pins=pins,
        min_blocks=tuple(entry.get("min_blocks") for entry in entries),
        max_blocks=tuple(entry.get("max_blocks") for entry in entries),
        price_per_hour=prices,
        currency=table.get("currency", ""),
        inner_links=tuple(
            link_of(f"{owner}: tier {k} inner", entry["inner"])
            if "inner" in entry
            else tiers[k].machine_link
            for k, entry in enumerate(entries)
        ),
        runtime=runtime_of(owner, table["runtime"], gpus_of) if "runtime" in table else None,
    )


def _without_keys_of_nodes(owner: str, at: int, entry: Any) -> Any:
    """Return the table of a tier; raise if it has a key that belongs to its nodes."""
    for key in entry if isinstance(entry, dict) else ():
        if key in NodesTable.__annotations__ and key not in TierTable.__annotations__:
            raise ValueError(
                f"{owner}: tier {at}: key {key!r} belongs to nodes: nodes = [{{gpu = ...,"
                f" {key} = {entry[key]!r:.20}}}]"
            )
    return entry


def _groups(owner: str, tiers: Iterable[TierTable]) -> Iterator[tuple[str, Any]]:
    """Yield every group of nodes, and what errors call it."""
    for tier in tiers:
        for k, group in enumerate(tier["nodes"]):
            yield f"{owner}: tier {tier['name']!r} nodes {k}", group


def _tier(
    owner: str, entry: TierTable, gpus: Mapping[str, GpuProfile]
) -> tuple[Tier, dict[str, float]]:
    nodes: list[Node] = []
    prices: dict[str, float] = {}
    for i, given in enumerate(entry["nodes"]):
        of_group = f"{owner} nodes {i}"
        check_gpu_is_named(of_group, given)
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
    link = link_of(f"{owner} link", entry["link"]) if "link" in entry else None
    return Tier(name=entry["name"], nodes=tuple(nodes), link=link), prices


def _nodes(
    owner: str,
    tier: str,
    group: NodesTable,
    gpus: Mapping[str, GpuProfile],
    before: list[Node],
) -> list[Node]:
    fields = node_fields(owner, group, gpus)
    names = group.get("names")
    if names is None:
        taken = {node.name for node in before}
        gpu = group["gpu"]
        kind = fields["gpu"].name if gpu.endswith(PROFILE_ENDING) else gpu
        free = (name for i in itertools.count() if (name := f"{tier}-{kind}-{i}") not in taken)
        names = list(itertools.islice(free, group.get("count", 1)))
    elif group.get("count", len(names)) != len(names):
        raise ValueError(
            f"{owner}: count must be the number of names, {len(names)}, got {group['count']}"
        )
    return nodes_of(owner, names, fields)


def _pins(owner: str, blocks: Sequence[str | int]) -> Sequence[str | int]:
    for block in blocks:
        if isinstance(block, str):
            valid.known(f"block to pin ({owner})", block, get_args(End))
        else:
            checked_value(owner, "pin", block, Layer)
    return blocks
