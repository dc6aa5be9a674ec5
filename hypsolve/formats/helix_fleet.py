"""Fleets of Helix: nodes with several GPUs, and the regions that their links tell apart."""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hypsolve import catalog
from hypsolve.catalog.gpu_names import gpu_of_name, usual_interconnect
from hypsolve.catalog.interconnects import interconnect
from hypsolve.formats.helix_pipeedge import GPUS_OF_TYPES, cluster_of_ini
from hypsolve.formats.machines_file import ASSUMED_LINK, MachinesFile
from hypsolve.problem.fleet import Fleet, Machine, Site
from hypsolve.problem.network import Link, Node

COORDINATOR = "coordinator"
"""Name of the site where requests enter; it has no machines."""
REGION_GAP = 3.0
"""Ratio of latencies between regions and inside them from which regions are told apart."""
_SEVERAL = re.compile(r"(.+)x([1-9][0-9]?)")
Links = Mapping[frozenset[str], Link]


def machines_of_helix(path: Path, content: bytes) -> MachinesFile:
    """Return the fleet of a cluster file of Helix; `read_machines` describes it."""
    type_of, links = cluster_of_ini(path, content)
    _check_all_linked(path, type_of, links)
    notes: list[str] = []
    regions = _regions(list(type_of), links)
    names = ["cluster"] if len(regions) == 1 else [f"region-{r}" for r in range(len(regions))]
    site_of = {i: name for name, members in zip(names, regions, strict=True) for i in members}
    machines = tuple(
        Machine(node=_node(path, i, kind, notes), site=site_of[i])
        for i, kind in type_of.items()
    )
    joined: dict[tuple[str, str], list[Link]] = {}
    for one, other in itertools.combinations(type_of, 2):
        ends = site_of[one], site_of[other]
        if names.index(ends[0]) > names.index(ends[1]):
            ends = ends[::-1]
        joined.setdefault(ends, []).append(links[frozenset((one, other))])
    sites = [
        Site(name=name, link=_worst(joined.get((name, name), [ASSUMED_LINK]))) for name in names
    ]
    between = {ends: _worst(found) for ends, found in joined.items() if ends[0] != ends[1]}
    entry = {}
    for name, members in zip(names, regions, strict=True):
        link = _from_coordinator(members, links)
        if link is not None:
            between[COORDINATOR, name] = link
            entry = {COORDINATOR: 1.0}
    if entry:
        sites.append(Site(name=COORDINATOR, link=sites[0].link))
        notes.append("requests enter at the site of Helix's coordinator, which has no machines")
    if len(regions) > 1:
        shown = "; ".join(
            f"{name}: nodes {', '.join(members)}"
            for name, members in zip(names, regions, strict=True)
        )
        notes.append(f"regions are told apart by the latencies of links: {shown}")
    if any(
        len({(link.bytes_per_s, link.latency_s) for link in of}) > 1 for of in joined.values()
    ):
        notes.append(
            "links inside a site, and between two sites, get the lowest rate and the highest"
            " latency of their pairs of nodes"
        )
    return MachinesFile(
        fleet=Fleet(
            name=path.stem,
            sites=tuple(sites),
            machines=machines,
            links=between,
            entry=entry,
        ),
        source=str(path),
        notes=tuple(dict.fromkeys(notes)),
    )


def _node(path: Path, number: str, kind: str, notes: list[str]) -> Node:
    """Return a node of a type such as ``A100`` or ``T4x2``."""
    found = _SEVERAL.fullmatch(kind)
    base, gpus = (found[1], int(found[2])) if found else (kind, 1)
    try:
        gpu = GPUS_OF_TYPES.get(base) or gpu_of_name(base)
    except ValueError as error:
        raise ValueError(f"{path}: ComputeNode-{number}: type: {error}") from None
    links = None
    if gpus > 1:
        links = usual_interconnect(gpu, base)
        notes.append(f"the interconnect among the GPUs of {kind} is assumed to be {links}")
    return Node(
        name=f"ComputeNode-{number}",
        gpu=catalog.gpu(gpu),
        gpus=gpus,
        interconnect=None if links is None else interconnect(links, gpu),
    )


def _check_all_linked(path: Path, nodes: Iterable[str], links: Links) -> None:
    for pair in itertools.combinations(nodes, 2):
        if frozenset(pair) not in links:
            raise ValueError(
                f"{path}: each node must be linked to each other, got no link between nodes"
                f" {pair[0]} and {pair[1]} (a pruned cluster, or one of a placement, lacks"
                " links: read the file that it was made of)"
            )


def _regions(nodes: list[str], links: Links) -> list[list[str]]:
    """Return groups of nodes that links of low latency join; one, if there are no such groups.

    The largest ratio between latencies that follow each other tells low from high.
    """
    pairs = [frozenset(pair) for pair in itertools.combinations(nodes, 2)]
    seconds = sorted({links[pair].latency_s for pair in pairs})
    gaps = [
        (high / low if low > 0 else float("inf"), low)
        for low, high in itertools.pairwise(seconds)
    ]
    ratio, longest_s = max(gaps, default=(1.0, 0.0), key=lambda gap: gap[0])
    if ratio < REGION_GAP:
        return [nodes]
    regions: list[list[str]] = []
    for node in nodes:
        for region in regions:
            if links[frozenset((region[0], node))].latency_s <= longest_s:
                region.append(node)
                break
        else:
            regions.append([node])
    of = {node: r for r, region in enumerate(regions) for node in region}
    for pair in pairs:
        one, other = pair
        if (of[one] == of[other]) != (links[pair].latency_s <= longest_s):
            return [nodes]  # near and far are no groups
    return regions


def _worst(links: Iterable[Link]) -> Link:
    """Return the link with the lowest rate and the highest latencies of some."""
    some = list(links)
    return Link(
        bytes_per_s=min(link.bytes_per_s for link in some),
        latency_s=max(link.latency_s for link in some),
    )


def _from_coordinator(members: list[str], links: Links) -> Link | None:
    """Return the link from the coordinator to a region, if the file has one."""
    source, sink = (
        [found for i in members if (found := links.get(frozenset((end, i)))) is not None]
        for end in ("source", "sink")
    )
    if not source:
        return None
    there = _worst(source)
    back = _worst(sink) if sink else there
    return Link(
        bytes_per_s=there.bytes_per_s,
        latency_s=there.latency_s,
        return_latency_s=back.latency_s,
    )
