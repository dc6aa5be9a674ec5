"""Nodes, GPUs, links and runtimes of TOML files: what network and machines files share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve.catalog import nearest
from hypsolve.catalog.interconnects import interconnect, interconnects
from hypsolve.formats.gpu_profile import PROFILE_ENDING, profile_of, read_gpu_profile
from hypsolve.formats.network_toml_types import GpuTable, LinkTable, RuntimeTable
from hypsolve.formats.toml_tables import checked_table
from hypsolve.problem.network import GpuProfile, Link, Node
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.units import GIB, gbps_to_bytes_per_s, gib_to_bytes, ms_to_s


def own_gpus(owner: str, tables: Mapping[str, GpuTable]) -> dict[str, GpuProfile]:
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


def profile_files(groups: Iterable[tuple[str, Any]], folder: Path) -> dict[str, GpuProfile]:
    """Return the GPUs that groups name by the path of a profile file, relative to `folder`.

    A group comes with what errors call it.
    """
    found: dict[str, GpuProfile] = {}
    for owner, group in groups:
        name = group.get("gpu") if isinstance(group, dict) else None
        if not isinstance(name, str) or not name.endswith(PROFILE_ENDING) or name in found:
            continue
        try:
            found[name] = read_gpu_profile(folder / name)
        except OSError as error:
            where = f"{owner}: gpu {name}"
            raise type(error)(error.errno, error.strerror, where) from None
    return found


def check_gpu_is_named(owner: str, group: Any) -> None:
    """Raise if a group has a table in place of the name of its GPU."""
    if isinstance(group, dict) and isinstance(own := group.get("gpu"), dict):
        hint = nearest.hint_by_figures(own, catalog.gpus())
        raise TypeError(
            f"{owner}: gpu must be a name, got a table; define it as [gpus.NAME]{hint}"
        )


def node_fields(
    owner: str, group: Mapping[str, Any], gpus: Mapping[str, GpuProfile]
) -> dict[str, Any]:
    """Return the fields of a node, without its name, from a checked table of nodes."""
    gpu = group["gpu"]
    known = catalog.gpus() | dict(gpus)
    if gpu not in known:
        message = nearest.unknown_gpu(gpu, known, nearest.usable_figures(group))
        raise ValueError(f"{owner}: {message}")
    profile = known[gpu]
    if (slowdown := group.get("slowdown", 1.0)) != 1:
        profile = slower_gpu(profile, slowdown)
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
    return {
        "gpu": profile,
        "memory_bytes": None if memory_gib is None else gib_to_bytes(memory_gib),
        "reserved_bytes": gib_to_bytes(group.get("reserved_gib", 0.0)),
        "host": host,
        **_of_several(owner, group),
    }


def nodes_of(owner: str, names: Sequence[str], fields: Mapping[str, Any]) -> list[Node]:
    """Return equal nodes of some names."""
    try:
        return [Node(name=name, **fields) for name in names]
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


def _of_several(owner: str, group: Mapping[str, Any]) -> dict[str, Any]:
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


def slower_gpu(gpu: GpuProfile, slowdown: float) -> GpuProfile:
    """Return a GPU that takes so many times as long for everything."""
    rate = 1 / slowdown
    slower = gpu.scaled(seconds=slowdown, flops=rate, moved=rate)
    return replace(
        slower,
        name=f"{gpu.name} {slowdown:g}x slower",
        flops_per_s=gpu.flops_per_s / slowdown,
        bytes_per_s=gpu.bytes_per_s / slowdown,
    )


def link_of(owner: str, given: Any) -> Link:
    """Return the link of a table."""
    entry = checked_table(owner, LinkTable, given)
    return Link(
        bytes_per_s=gbps_to_bytes_per_s(entry["gbps"]),
        latency_s=ms_to_s(entry["latency_ms"]),
        return_latency_s=ms_to_s(entry.get("return_latency_ms", entry["latency_ms"])),
    )


def runtime_of(owner: str, given: str | RuntimeTable, gpus: Iterable[GpuProfile]) -> Runtime:
    """Return the runtime of a file, with the defaults that it has on the file's GPUs."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise TypeError(f"{owner}: runtime must be a name or a table, got {given!r:.60}")
    entry: dict[str, Any] = dict(checked_table(f"{owner}: runtime", RuntimeTable, given))
    try:
        return catalog.runtime(entry.pop("name"), gpus=gpus, **entry)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
