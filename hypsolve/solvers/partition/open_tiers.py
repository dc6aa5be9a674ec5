"""An instance without its closed tiers, which may hold no block, and cuts for all tiers."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance


def open_tiers(instance: Instance) -> IntArray:
    """Return the tiers that may hold a block; all tiers if none may, or some must and cannot.

    A tier is closed if its limits are 0 to 0 blocks.
    """
    closed = (instance.max_blocks == 0) & (np.array(instance.min_blocks) == 0)
    if closed.all():
        return np.arange(instance.n_tiers)
    return np.flatnonzero(~closed)


def without_closed_tiers(instance: Instance) -> Instance:
    """Return an instance of the open tiers alone; the instance itself if no tier is closed.

    What crosses closed tiers takes the time of all links on the way. A cut is within the limits
    of all cuts that are equal to it, since no block lies between them.
    """
    kept = open_tiers(instance)
    if len(kept) == instance.n_tiers:
        return instance
    ends = [-1, *kept.tolist(), instance.n_tiers]
    equal = [slice(a + 1, b + 1) for a, b in itertools.pairwise(ends)]
    of_node = np.isin(instance.node_tier, kept)
    least = np.array(instance.min_blocks)[kept]
    links, limits, names = instance.links, instance.limits, instance.names
    return dataclasses.replace(
        instance,
        links=dataclasses.replace(
            links,
            transfer_kind_s=_joined(links.transfer_kind_s, kept),
            occupancy_kind_s=_joined(links.occupancy_kind_s, kept),
            reference_transfer_kind_s=_joined(links.reference_transfer_kind_s, kept),
            reference_occupancy_kind_s=_joined(links.reference_occupancy_kind_s, kept),
        ),
        nodes=dataclasses.replace(
            instance.nodes,
            node_tier=np.searchsorted(kept, instance.node_tier[of_node]),
            node_class=instance.node_class[of_node],
            node_bytes=instance.node_bytes[of_node],
        ),
        limits=dataclasses.replace(
            limits,
            cut_min=np.array([limits.cut_min[at].max() for at in equal]),
            cut_max=np.array([limits.cut_max[at].min() for at in equal]),
            min_blocks_given=limits.min_blocks_given[kept],
            max_blocks=limits.max_blocks[kept],
        ),
        rules=dataclasses.replace(instance.rules, allow_empty=bool((least == 0).any())),
        names=dataclasses.replace(
            names,
            tier_names=tuple(names.tier_names[k] for k in kept),
            node_names=tuple(np.array(names.node_names, dtype=object)[of_node]),
        ),
    )


def cuts_of_all_tiers(instance: Instance, cuts: list[int]) -> list[int]:
    """Return the cuts of an instance, given those of its open tiers."""
    whole = np.zeros(instance.n_tiers, np.int64)
    whole[open_tiers(instance)] = np.diff(cuts)
    return [0, *np.cumsum(whole).tolist()]


def _joined(table: Array, kept: IntArray) -> Array:
    """Return the times from each open tier to the next one; links are the last axis but one."""
    ways = [table[..., a:b, :].sum(axis=-2) for a, b in itertools.pairwise(kept)]
    if not ways:
        return np.zeros((*table.shape[:-2], 0, table.shape[-1]))
    return np.stack(ways, axis=-2)
