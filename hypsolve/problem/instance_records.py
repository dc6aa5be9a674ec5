"""The records that make up an `Instance`. Each one validates its own fields.

An `Instance` checks that the sizes of its records agree. Arrays are read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray

USER_NAME = {  # names of the tables in `Instance.from_tables`, for messages
    "kind_s": "block_s",
    "reference_kind_s": "reference_s",
    "transfer_kind_s": "transfer_s",
    "occupancy_kind_s": "occupancy_s",
    "reference_transfer_kind_s": "reference_transfer_s",
    "reference_occupancy_kind_s": "reference_occupancy_s",
    "node_bytes": "tiers' memory_bytes",
}


def set_reals(record: Any, field: str, shape: tuple[int | None, ...]) -> Array:
    """Validate a field of a record as an array of numbers, store it, and return it."""
    name = USER_NAME.get(field, field)
    array = valid.reals("instance", name, getattr(record, field), shape)
    object.__setattr__(record, field, array)
    return array


def set_indices(
    record: Any, field: str, shape: tuple[int | None, ...], end: int | None = None
) -> IntArray:
    """Validate a field as an array of whole numbers below `end`, store it, and return it."""
    real = valid.reals("instance", field, getattr(record, field), shape)
    if (real % 1).any():
        limit = "" if end is None else f" below {end}"
        raise ValueError(
            f"instance: {field} must hold whole numbers{limit}, got {real.max():g}"
        )
    if end is not None:
        check_below(field, real, end)
    array = real.astype(np.int64)
    array.setflags(write=False)
    object.__setattr__(record, field, array)
    return array


def check_below(field: str, array: Array | IntArray, end: int) -> None:
    """Raise ValueError unless all numbers of an array are below `end`."""
    if array.size and array.max() >= end:
        raise ValueError(
            f"instance: {field} must hold whole numbers below {end}, got {array.max():g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockCosts:
    """Time and memory of the blocks, by kind of block; see `Instance`."""

    kind_s: Array
    reference_kind_s: Array
    block_kind: IntArray
    block_bytes: Array
    tied_bytes: float = 0.0

    def __post_init__(self) -> None:
        kind_s = set_reals(self, "kind_s", (None, None, None))
        if not kind_s.size:
            raise ValueError(
                "instance: block_s must hold at least one request, class and block, got shape"
                f" {kind_s.shape}"
            )
        _, n_classes, n_kinds = kind_s.shape
        set_reals(self, "reference_kind_s", (n_classes, n_kinds))
        n_blocks = len(set_indices(self, "block_kind", (None,), n_kinds))
        block_bytes = set_reals(self, "block_bytes", (n_blocks,))
        tied_bytes = valid.real("instance", "tied_bytes", self.tied_bytes)
        object.__setattr__(self, "tied_bytes", tied_bytes)
        if not n_blocks:
            raise ValueError("instance: block_kind must hold at least one block, got none")
        # memory must be monotone: all blocks together need no less than all but one
        shared = min(block_bytes[0], block_bytes[-1])
        if tied_bytes > shared:
            raise ValueError(
                "instance: tied_bytes must be at most the bytes of the first and of the last"
                f" block, {shared:g}, got {tied_bytes:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeTable:
    """Tier, class and memory of the nodes; see `Instance`."""

    node_tier: IntArray
    node_class: IntArray
    node_bytes: Array

    def __post_init__(self) -> None:
        tier = set_indices(self, "node_tier", (None,), np.size(self.node_tier))
        if not tier.size:
            raise ValueError("instance: tiers must hold at least one tier, got none")
        if tier[0] != 0 or not np.isin(np.diff(tier), (0, 1)).all():
            raise ValueError(
                "instance: node_tier must start at 0 and rise by 0 or 1 from node to node, got"
                f" {tier.tolist()!s:.60}"
            )
        set_indices(self, "node_class", tier.shape)
        set_reals(self, "node_bytes", tier.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinkTimes:
    """Transfers between the tiers, by kind of cut; see `Instance`.

    `empty_first_tier` says whether the transfers at cut 0 are those that an empty first tier
    pays. It is not part of the digest: without empty tiers, nothing reads these transfers.
    """

    transfer_kind_s: Array
    occupancy_kind_s: Array
    reference_transfer_kind_s: Array
    reference_occupancy_kind_s: Array
    cut_kind: IntArray
    empty_first_tier: bool = True

    def __post_init__(self) -> None:
        transfer_s = set_reals(self, "transfer_kind_s", (None, None, None))
        _, n_links, n_kinds = transfer_s.shape
        occupancy_s = set_reals(self, "occupancy_kind_s", (None, n_links, n_kinds))
        set_reals(self, "reference_transfer_kind_s", (n_links, n_kinds))
        set_reals(self, "reference_occupancy_kind_s", (n_links, n_kinds))
        set_indices(self, "cut_kind", (None,), n_kinds)
        valid.flag("instance", "empty_first_tier", self.empty_first_tier)
        instance_tables.one_length(transfer_s=transfer_s, occupancy_s=occupancy_s)
        if transfer_s.size:
            instance_tables.check_occupancy(transfer_s, occupancy_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """Limits of the cuts and of the number of blocks of each tier; see `Instance`."""

    cut_min: IntArray
    cut_max: IntArray
    min_blocks_given: IntArray
    max_blocks: IntArray

    def __post_init__(self) -> None:
        least = set_indices(self, "min_blocks_given", (None,))
        most = set_indices(self, "max_blocks", least.shape)
        for field in ("cut_min", "cut_max"):
            set_indices(self, field, (len(least) + 1,))
        for k, (low, high) in enumerate(zip(least.tolist(), most.tolist(), strict=True)):
            if low > high:
                raise ValueError(
                    f"instance: min_blocks[{k}] must be at most max_blocks[{k}] = {high},"
                    f" got {low}"
                )

    def check(self, n_tiers: int, n_blocks: int) -> None:
        """Raise ValueError unless the limits are for these numbers of tiers and blocks."""
        if len(self.max_blocks) != n_tiers:
            raise ValueError(
                f"instance: min_blocks_given must have shape ({n_tiers}),"
                f" got {self.min_blocks_given.shape}"
            )
        for field, end in (
            ("cut_min", n_blocks + 1),
            ("cut_max", n_blocks + 1),
            ("min_blocks_given", n_blocks + 2),
            ("max_blocks", n_blocks + 1),
        ):
            check_below(field, getattr(self, field), end)
        ends = [self.cut_min[0], self.cut_max[0], self.cut_min[-1], self.cut_max[-1]]
        if ends != [0, 0, n_blocks, n_blocks]:
            raise ValueError(
                f"instance: cut_min and cut_max must start at 0 and end at {n_blocks},"
                f" got {[int(end) for end in ends]}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names for people, and whether costs go beyond measurements; see `Instance`."""

    name: str = ""
    extrapolated: bool = False
    tier_names: tuple[str, ...] = ()
    node_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"instance: name must be a string, got {self.name!r}")
        extrapolated = valid.flag("instance", "extrapolated", self.extrapolated)
        object.__setattr__(self, "extrapolated", extrapolated)

    def for_sizes(self, n_tiers: int, n_nodes: int, n_classes: int) -> Names:
        """Return the names with defaults for those that are not given."""
        return Names(
            name=self.name,
            extrapolated=self.extrapolated,
            tier_names=_names("tier", self.tier_names, n_tiers),
            node_names=_names("node", self.node_names, n_nodes),
            class_names=_names("class", self.class_names, n_classes),
        )


def _names(part: str, given: Any, number: int) -> tuple[str, ...]:
    names = tuple(given) or tuple(f"{part}-{i}" for i in range(number))
    if len(names) != number or not all(isinstance(name, str) for name in names):
        raise ValueError(f"instance: {part}_names must be {number} strings, got {names!r:.80}")
    return names
