"""`under_one_degree`: a network of groups of equally many GPUs, without smaller machines."""

from __future__ import annotations

from dataclasses import replace

from hypsolve.formats.network_file import NetworkFile
from hypsolve.planning.platforms import with_empty


def under_one_degree(network: NetworkFile, degree: int) -> tuple[NetworkFile, tuple[str, ...]]:
    """Return a network in which all groups have as many GPUs, and the nodes that it leaves out.

    Machines with fewer GPUs, or with another degree of their own, are left out. Tiers that have
    no others keep them, as single GPUs or with their own degree, but must be empty.

    Parameters
    ----------
    network : NetworkFile
    degree : int
        The degree of tensor parallelism.

    Raises
    ------
    ValueError
        If no machine is left, or a tier that must hold blocks has none.
    """
    tiers, empty, gone = [], set(), []
    degrees: dict[str, int] = {}
    for tier in network.network.tiers:
        nodes = tuple(node for node in tier.nodes if node.groups(degree))
        gone += [node.name for node in tier.nodes if node not in nodes]
        if not nodes:
            empty.add(tier.name)
        degrees |= {
            node.name: degree if nodes else node.tensor_parallel or 1
            for node in nodes or tier.nodes
        }
        tiers.append(replace(tier, nodes=nodes or tier.nodes))
    if len(empty) == len(tiers):
        raise ValueError(f"no machine has {degree} GPUs for tensor_parallel {degree}")
    why = f"it has no machine for tensor_parallel {degree}"
    for block, tier_name in network.pins.items():
        if tier_name in empty:
            raise ValueError(
                f"plan: block {block!r} must not be pinned to tier {tier_name!r}: {why}"
            )
    restricted = replace(network, network=replace(network.network, tiers=tuple(tiers)))
    return with_empty(restricted, frozenset(empty), why).in_groups(degrees), tuple(gone)
