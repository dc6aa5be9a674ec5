"""Degrees of tensor parallelism that machines can have, and a network under one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hypsolve.formats.network_file import NetworkFile
from hypsolve.planning.platforms import with_empty
from hypsolve.problem.gpu_group import check_degree
from hypsolve.problem.model import Model
from hypsolve.problem.network import Node, Tier

ONE_DEGREE = ("vllm", "sglang", "tensorrt-llm")
"""Runtimes that take one degree for all stages."""
NO_DEGREE = ("llama.cpp",)
"""Runtimes that compute no layer on several GPUs."""


def degrees_of(node: Node) -> list[int]:
    """Return the degrees that a machine can have, in rising order."""
    if node.tensor_parallel is not None:
        return [node.tensor_parallel]
    if node.interconnect is None:
        return [1]
    return [1, *(degree for degree in node.interconnect.degrees if degree <= node.gpus)]


def has_degree(network: NetworkFile, degree: int) -> bool:
    """Return whether some machine of a network can have a degree."""
    tiers = network.network.tiers
    return any(degree in degrees_of(node) for tier in tiers for node in tier.nodes)


def dividing(model: Model, degrees: Iterable[int]) -> list[int]:
    """Return the degrees that divide the heads of a model."""
    found = []
    for degree in degrees:
        try:
            check_degree(model, degree)
        except ValueError:
            continue
        found.append(degree)
    return found


def with_optional(network: NetworkFile, model: Model) -> tuple[NetworkFile, tuple[str, ...]]:
    """Return a network in which tiers that lack some degree may stay empty, and their names.

    Under one degree for all stages, a tier without a machine for it is empty. So that all
    degrees are compared by one rule, such a tier may be empty under every degree. Tiers with
    `min_blocks` or a pin keep their rule; with these, degrees that would leave them empty are
    refused.

    Parameters
    ----------
    network : NetworkFile
        The network itself is returned if all its machines have their degree.
    model : Model
        Degrees that do not divide its heads do not count.
    """
    tiers = network.network.tiers
    if all(node.is_group for tier in tiers for node in tier.nodes):
        return network, ()

    def degrees(tier: Tier) -> set[int]:
        return set(dividing(model, {d for node in tier.nodes for d in degrees_of(node)}))

    known = set().union(*map(degrees, tiers))
    least = network.min_blocks or (None,) * len(tiers)
    most = network.max_blocks or (None,) * len(tiers)
    names = tuple(
        tier.name
        for tier, low, high in zip(tiers, least, most, strict=True)
        if low is None
        and high != 0
        and degrees(tier) != known
        and tier.name not in network.pins.values()
    )
    if not names:
        return network, ()
    least = tuple(
        0 if tier.name in names else low for tier, low in zip(tiers, least, strict=True)
    )
    return replace(network, min_blocks=least), names


def idle_gpus(network: NetworkFile, degrees: Mapping[str, int]) -> dict[str, int]:
    """Return the GPUs of each machine that are in no group, where there are some.

    Parameters
    ----------
    network : NetworkFile
    degrees : mapping of str to int
        GPUs of a group, by name of the machine.
    """
    nodes = [node for tier in network.network.tiers for node in tier.nodes]
    rest = {node.name: node.gpus % degrees[node.name] for node in nodes if node.name in degrees}
    return {name: n_gpus for name, n_gpus in rest.items() if n_gpus}


def under_one_degree(
    network: NetworkFile, degree: int
) -> tuple[NetworkFile, tuple[str, ...], dict[str, int]]:
    """Return a network in which all groups have as many GPUs, and what it leaves out.

    Machines with fewer GPUs, or with another degree of their own, are left out. Tiers that have
    no others keep them, as single GPUs or with their own degree, but must be empty.

    Parameters
    ----------
    network : NetworkFile
    degree : int
        The degree of tensor parallelism.

    Returns
    -------
    network : NetworkFile
    left_out : tuple of str
        Machines without a group.
    idle : dict of str to int
        GPUs of other machines that are in no group, by name of the machine.

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
        known = sorted({n for tier in tiers for node in tier.nodes for n in degrees_of(node)})
        raise ValueError(
            "plan: tensor_parallel must be a degree that some machine can have,"
            f" {', '.join(map(str, known))}, got {degree}"
        )
    why = f"it has no machine for tensor_parallel {degree}"
    for block, tier_name in network.pins.items():
        if tier_name in empty:
            raise ValueError(
                f"plan: block {block!r} must not be pinned to tier {tier_name!r}: {why}"
            )
    restricted = replace(network, network=replace(network.network, tiers=tuple(tiers)))
    grouped = with_empty(restricted, frozenset(empty), why).in_groups(degrees)
    in_use = {name: of_node for name, of_node in degrees.items() if name not in gone}
    return grouped, tuple(gone), idle_gpus(network, in_use)
