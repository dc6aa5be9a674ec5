"""Instances: the canonical arrays that every solver reads, and the objectives."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.html_table import html_table
from hypsolve.problem.units import count, show_bytes


class Objective(StrEnum):
    """Objective to minimise, in seconds.

    ``BOTTLENECK``: largest stage time, with its link. ``PATH``: latency of the reference
    request on an idle network. ``P0``: largest stage time plus all transfers, as in the paper.
    ``MEAN_LATENCY``: mean of completion minus arrival. ``MAKESPAN``: last completion.
    `hypsolve.problem.evaluation` has the formulas.
    """

    BOTTLENECK = "bottleneck"
    PATH = "path"
    P0 = "p0"
    MEAN_LATENCY = "mean_latency"
    MAKESPAN = "makespan"

    @property
    def is_scheduled(self) -> bool:
        """Whether the objective depends on the schedule, not on the partition alone."""
        return self in (Objective.MEAN_LATENCY, Objective.MAKESPAN)


class StageRule(StrEnum):
    """Rule that combines the nodes of a tier into one stage time; see `evaluation.stage_s`."""

    POOLED = "pooled"
    FASTEST = "fastest"
    SLOWEST = "slowest"


class LinkCost(StrEnum):
    """Part of the outgoing transfer that counts in the bottleneck.

    ``OCCUPANCY``: the time that the link is busy. ``FULL``: the whole transfer.
    """

    OCCUPANCY = "occupancy"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Instance:
    """A problem as canonical arrays.

    Make one with `from_tables`, `hypsolve.to_instance` or `hypsolve.load`. Two instances are
    equal if their digests are.

    Blocks with equal columns share a *kind* (the layers of a transformer do), and so do cuts.
    The table over blocks is ``kind_table[..., block_kind]``, the table over cuts is
    ``kind_table[..., cut_kind]``.

    Attributes
    ----------
    kind_s : ndarray, shape (n_requests or 1, n_classes, n_block_kinds)
        Seconds of a block for a request on a node class.
    reference_kind_s : ndarray, shape (n_classes, n_block_kinds)
        Seconds of a block for the reference request.
    block_kind : ndarray of int, shape (n_blocks,)
    block_bytes : ndarray, shape (n_blocks,)
        Memory that a node needs for a block; all 0 means no memory limit.
    tied_bytes : float
        Memory that is saved if one stage holds all blocks.
    transfer_kind_s, occupancy_kind_s : ndarray, (n_requests or 1, n_tiers - 1, n_cut_kinds)
        Seconds from tier k to k + 1 at a cut, and the part that keeps the link busy.
    reference_transfer_kind_s, reference_occupancy_kind_s : ndarray, (n_tiers - 1, n_cut_kinds)
        Both for the reference request.
    cut_kind : ndarray of int, shape (n_blocks + 1,)
    node_tier, node_class : ndarray of int, shape (n_nodes,)
        Tier and class of each node; nodes are sorted by tier.
    node_bytes : ndarray, shape (n_nodes,)
        Usable memory.
    arrival_s : ndarray, shape (n_requests,)
    cut_min, cut_max : ndarray of int, shape (n_tiers + 1,)
        Limits of each cut, which pinned blocks impose.
    min_blocks_given, max_blocks : ndarray of int, shape (n_tiers,)
        Limits of each stage as given; `min_blocks` is at least 1 where no stage may be empty.
    objective, stage_rule, allow_empty, overlap, link_cost
        As in `from_tables`.
    name, extrapolated, tier_names, node_names, class_names
        For people, and not part of the digest. `extrapolated` marks costs beyond measurements.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """

    kind_s: Array
    reference_kind_s: Array
    block_kind: IntArray
    block_bytes: Array
    tied_bytes: float
    transfer_kind_s: Array
    occupancy_kind_s: Array
    reference_transfer_kind_s: Array
    reference_occupancy_kind_s: Array
    cut_kind: IntArray
    node_tier: IntArray
    node_class: IntArray
    node_bytes: Array
    arrival_s: Array
    cut_min: IntArray
    cut_max: IntArray
    min_blocks_given: IntArray
    max_blocks: IntArray
    objective: Objective = Objective.BOTTLENECK
    stage_rule: StageRule = StageRule.POOLED
    allow_empty: bool = False
    overlap: bool = False
    link_cost: LinkCost = LinkCost.OCCUPANCY
    name: str = ""
    extrapolated: bool = False
    tier_names: tuple[str, ...] = ()
    node_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind_s = self._reals("kind_s", (None, None, None))
        n_rows, n_classes, n_kinds = kind_s.shape
        if not kind_s.size:
            raise ValueError(
                "instance: block_s must hold at least one request, class and block, got shape"
                f" {kind_s.shape}"
            )
        self._reals("reference_kind_s", (n_classes, n_kinds))
        n_blocks = len(self._indices("block_kind", (None,), n_kinds))
        self._reals("block_bytes", (n_blocks,))
        self._set("tied_bytes", valid.real("instance", "tied_bytes", self.tied_bytes))
        tier = self._indices("node_tier", (None,), np.size(self.node_tier))
        if not tier.size:
            raise ValueError("instance: tiers must hold at least one tier, got none")
        if tier[0] != 0 or not np.isin(np.diff(tier), (0, 1)).all():
            raise ValueError(
                "instance: node_tier must start at 0 and rise by 0 or 1 from node to node, got"
                f" {tier.tolist()!s:.60}"
            )
        n_tiers = int(tier[-1]) + 1
        self._indices("node_class", tier.shape, n_classes)
        self._reals("node_bytes", tier.shape)
        transfer_s = self._reals("transfer_kind_s", (None, n_tiers - 1, None))
        n_cut_kinds = transfer_s.shape[2]
        occupancy_s = self._reals("occupancy_kind_s", (None, n_tiers - 1, n_cut_kinds))
        self._reals("reference_transfer_kind_s", (n_tiers - 1, n_cut_kinds))
        self._reals("reference_occupancy_kind_s", (n_tiers - 1, n_cut_kinds))
        self._indices("cut_kind", (n_blocks + 1,), n_cut_kinds)
        arrival_s = self._reals("arrival_s", (None,))
        for field, length in (
            ("block_s", n_rows),
            ("transfer_s", len(transfer_s)),
            ("occupancy_s", len(occupancy_s)),
        ):
            if length not in (1, len(arrival_s)):
                raise ValueError(
                    f"instance: {field} must have 1 or n_requests = {len(arrival_s)} rows,"
                    f" got {length}"
                )
        if not len(arrival_s):
            raise ValueError("instance: arrival_s must hold at least one request, got none")
        for field in ("cut_min", "cut_max"):
            self._indices(field, (n_tiers + 1,), n_blocks + 1)
        self._indices("min_blocks_given", (n_tiers,), n_blocks + 2)
        self._indices("max_blocks", (n_tiers,), n_blocks + 1)
        for field, kind in (
            ("objective", Objective),
            ("stage_rule", StageRule),
            ("link_cost", LinkCost),
        ):
            self._set(field, valid.one_of("instance", field, getattr(self, field), kind))
        for field in ("allow_empty", "overlap", "extrapolated"):
            self._set(field, valid.flag("instance", field, getattr(self, field)))
        self._check_rules()
        self._name_parts(n_tiers, len(tier), n_classes)

    def _check_rules(self) -> None:
        if self.objective is Objective.P0 and self.allow_empty:
            raise ValueError("instance: allow_empty must be False for objective p0, got True")
        for k, (least, most) in enumerate(
            zip(self.min_blocks_given.tolist(), self.max_blocks.tolist(), strict=True)
        ):
            if least > most:
                raise ValueError(
                    f"instance: min_blocks[{k}] must be at most max_blocks[{k}] = {most},"
                    f" got {least}"
                )
        if self.transfer_kind_s.size:
            instance_tables.check_occupancy(self.transfer_kind_s, self.occupancy_kind_s)
        ends = [self.cut_min[0], self.cut_max[0], self.cut_min[-1], self.cut_max[-1]]
        if ends != [0, 0, self.n_blocks, self.n_blocks]:
            raise ValueError(
                f"instance: cut_min and cut_max must start at 0 and end at {self.n_blocks},"
                f" got {[int(end) for end in ends]}"
            )
        # memory must be monotone: all blocks together need no less than all but one
        shared = min(self.block_bytes[0], self.block_bytes[-1])
        if self.tied_bytes > shared:
            raise ValueError(
                "instance: tied_bytes must be at most the bytes of the first and of the last"
                f" block, {shared:g}, got {self.tied_bytes:g}"
            )

    def _name_parts(self, n_tiers: int, n_nodes: int, n_classes: int) -> None:
        defaults = {
            "tier_names": tuple(f"tier-{k}" for k in range(n_tiers)),
            "node_names": tuple(f"node-{n}" for n in range(n_nodes)),
            "class_names": tuple(f"class-{c}" for c in range(n_classes)),
        }
        for field, default in defaults.items():
            names = tuple(getattr(self, field)) or default
            if len(names) != len(default) or not all(isinstance(name, str) for name in names):
                raise ValueError(
                    f"instance: {field} must be {len(default)} strings, got {names!r:.80}"
                )
            self._set(field, names)
        if not isinstance(self.name, str):
            raise TypeError(f"instance: name must be a string, got {self.name!r}")

    def __repr__(self) -> str:
        sizes = ", ".join(
            count(number, noun)
            for number, noun in (
                (self.n_requests, "request"),
                (self.n_blocks, "block"),
                (self.n_tiers, "tier"),
                (self.n_nodes, "node"),
            )
        )
        mark = ", extrapolated" if self.extrapolated else ""
        return f"<Instance {self.name!r}: {sizes}, {self.objective}{mark}>"

    def _repr_html_(self) -> str:
        """Return a table of the tiers, which Jupyter shows."""
        rows = []
        for k in range(self.n_tiers):
            nodes = self.nodes_of(k)
            classes = dict.fromkeys(self.node_class[nodes].tolist())
            rows.append(
                (
                    self.tier_names[k],
                    str(nodes.stop - nodes.start),
                    ", ".join(self.class_names[c] for c in classes),
                    show_bytes(float(self.node_bytes[nodes].sum())),
                )
            )
        return html_table(repr(self)[1:-1], ("tier", "nodes", "node classes", "memory"), rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _reals(self, field: str, shape: tuple[int | None, ...]) -> Array:
        array = valid.reals(
            "instance", _USER_NAME.get(field, field), getattr(self, field), shape
        )
        self._set(field, array)
        return array

    def _indices(self, field: str, shape: tuple[int | None, ...], end: int) -> IntArray:
        """Return a field as whole numbers in 0..end - 1."""
        real = valid.reals("instance", field, getattr(self, field), shape)
        if (real % 1).any() or (real.size and real.max() >= end):
            raise ValueError(
                f"instance: {field} must hold whole numbers below {end}, got {real.max():g}"
            )
        array = real.astype(np.int64)
        array.setflags(write=False)
        self._set(field, array)
        return array

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_kind)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return len(self.min_blocks_given)

    @property
    def n_nodes(self) -> int:
        """Number of nodes of all tiers."""
        return len(self.node_tier)

    @property
    def n_classes(self) -> int:
        """Number of node classes."""
        return self.kind_s.shape[1]

    @property
    def reference_s(self) -> Array:
        """Seconds of the reference request, shape (n_classes, n_blocks)."""
        return self.reference_kind_s[:, self.block_kind]

    @property
    def block_s(self) -> Array:
        """Seconds of blocks, shape (n_requests or 1, n_classes, n_blocks)."""
        return self.kind_s[:, :, self.block_kind]

    @property
    def transfer_s(self) -> Array:
        """Seconds of transfers, shape (n_requests or 1, n_tiers - 1, n_blocks + 1)."""
        return self.transfer_kind_s[:, :, self.cut_kind]

    @property
    def reference_transfer_s(self) -> Array:
        """Transfers of the reference request, shape (n_tiers - 1, n_blocks + 1)."""
        return self.reference_transfer_kind_s[:, self.cut_kind]

    @property
    def reference_link_s(self) -> Array:
        """Seconds that links add to the bottleneck, shape (n_tiers - 1, n_blocks + 1)."""
        full = self.link_cost is LinkCost.FULL
        kinds = self.reference_transfer_kind_s if full else self.reference_occupancy_kind_s
        return kinds[:, self.cut_kind]

    @property
    def min_blocks(self) -> IntArray:
        """Minimum number of blocks per stage, shape (n_tiers,).

        It is at least 1 unless stages may be empty.
        """
        return (
            self.min_blocks_given if self.allow_empty else np.maximum(self.min_blocks_given, 1)
        )

    def nodes_of(self, tier: int) -> slice:
        """Return the nodes of a tier, as a slice of the node arrays."""
        first, end = np.searchsorted(self.node_tier, (tier, tier + 1))
        return slice(int(first), int(end))

    def replace(self, **changes: Any) -> Instance:
        """Return a copy with some fields changed, validated again.

        Parameters
        ----------
        **changes
            Any attribute; ``pinned``, ``min_blocks`` and ``max_blocks`` as in `from_tables`.

        Raises
        ------
        TypeError
            For an unknown field; the message suggests the likeliest name.
        ValueError
            If the new instance breaks a rule.

        Examples
        --------
        >>> instance = Instance.from_tables([[[1.0, 2.0]]], [0, 0], [[(0, 0)], [(0, 0)]])
        >>> instance.replace(objective="path", name="two tiers")
        <Instance 'two tiers': 1 request, 2 blocks, 2 tiers, 2 nodes, path>
        """
        size = self.n_tiers, self.n_blocks
        if "pinned" in changes:
            pins = instance_tables.cut_limits(changes.pop("pinned"), *size)
            changes["cut_min"], changes["cut_max"] = pins
        for limit, field, default in (
            ("min_blocks", "min_blocks_given", 0),
            ("max_blocks", "max_blocks", self.n_blocks),
        ):
            if limit in changes:
                changes[field] = instance_tables.limits(
                    limit, changes.pop(limit), *size, default
                )
        takes = ("pinned", "min_blocks", *(field.name for field in dataclasses.fields(self)))
        for name in changes:
            if name not in takes:
                hint = valid.did_you_mean(_FIELD_OF.get(name, name), takes)
                raise TypeError(
                    f"instance: unknown field {name!r}; {hint}choose one of {', '.join(takes)}"
                )
        return dataclasses.replace(self, **changes)

    def digest(self) -> str:
        """Return the SHA-256 digest of the problem, in hexadecimal.

        It covers all arrays (shape and little-endian content), objective, rules and flags, but
        no names.
        """
        sha = hashlib.sha256()
        for field in ARRAY_FIELDS:
            array = getattr(self, field)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            label = _DIGEST_LABEL.get(field, field)
            sha.update(f"{label} {array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
        rules = (
            self.objective,
            self.stage_rule,
            self.link_cost,
            self.allow_empty,
            self.overlap,
        )
        sha.update(f"{self.tied_bytes!r} {' '.join(map(str, rules))}".encode())
        return sha.hexdigest()

    @classmethod
    @valid.suggest_keywords("Instance.from_tables")
    def from_tables(
        cls,
        block_s: ArrayLike,
        block_bytes: ArrayLike,
        tiers: Sequence[Sequence[tuple[int, float]]],
        transfer_s: ArrayLike | None = None,
        occupancy_s: ArrayLike | None = None,
        arrival_s: ArrayLike | None = None,
        reference_s: ArrayLike | None = None,
        reference_transfer_s: ArrayLike | None = None,
        objective: Objective | str = Objective.BOTTLENECK,
        stage_rule: StageRule | str = StageRule.POOLED,
        allow_empty: bool = False,
        overlap: bool = False,
        link_cost: LinkCost | str = LinkCost.OCCUPANCY,
        pinned: Mapping[int, int] | None = None,
        min_blocks: Sequence[int] | None = None,
        max_blocks: Sequence[int] | None = None,
        tied_bytes: float = 0.0,
        name: str = "",
    ) -> Instance:
        """Make an instance from a user's own numbers.

        The tables `block_s`, `transfer_s`, `occupancy_s` and `arrival_s` have a row per
        request, or a single row for all requests.

        Parameters
        ----------
        block_s : array_like, shape (n_requests or 1, n_classes, n_blocks)
            Seconds of a block for a request on a node class, at least 0.
        block_bytes : array_like, shape (n_blocks,)
            Memory that a node needs for each block; all 0 means no memory limit. Whole numbers
            that sum to at most 2**53 are compared exactly, others up to rounding.
        tiers : sequence of sequences of (class, memory_bytes)
            Nodes of each tier, in the order that a request visits the tiers.
        transfer_s, occupancy_s : array_like, shape (n_requests or 1, n_tiers - 1, n_blocks + 1)
            Seconds from tier k to k + 1 if stage k ends at a cut (default 0), and the part
            that keeps the link busy (default: all).
        arrival_s : array_like, shape (n_requests,) or (1,)
            Default: every request arrives at 0.
        reference_s : array_like, shape (n_classes, n_blocks)
            Seconds of the reference request; default: the mean over the requests.
        reference_transfer_s : array_like, shape (n_tiers - 1, n_blocks + 1)
            Transfers of the reference request; default: the mean over the requests. The part
            that keeps a link busy is the mean of `occupancy_s`, or all without it.
        objective : Objective or str
            ``bottleneck``, ``path``, ``p0``, ``mean_latency`` or ``makespan``.
        stage_rule : StageRule or str
            ``pooled``, ``fastest`` or ``slowest``.
        allow_empty : bool
            Whether a tier may host no block and only relay.
        overlap : bool
            Whether a stage computes while its link sends. The bottleneck is then the larger of
            the two times, not their sum.
        link_cost : LinkCost or str
            ``occupancy``, or ``full`` for the whole transfer (a literal reading of the paper).
        pinned : mapping of block to tier, optional
            Blocks that must be on a given tier.
        min_blocks, max_blocks : sequence of int, shape (n_tiers,), optional
            Limits on the number of blocks of each tier.
        tied_bytes : float
            Memory that is saved if one stage holds all blocks.
        name : str
            For people.

        Returns
        -------
        Instance

        Raises
        ------
        ValueError, TypeError
            Naming the field, the rule and the value.

        Examples
        --------
        Two tiers of one node each; the second node is twice as fast.

        >>> instance = Instance.from_tables(
        ...     block_s=[[[1.0, 2.0, 3.0], [0.5, 1.0, 1.5]]],
        ...     block_bytes=[4, 4, 4],
        ...     tiers=[[(0, 8)], [(1, 8)]],
        ...     name="two tiers",
        ... )
        >>> instance
        <Instance 'two tiers': 1 request, 3 blocks, 2 tiers, 2 nodes, bottleneck>
        """
        table = valid.reals("instance", "block_s", block_s, (None, None, None))
        if not table.size:
            raise ValueError(
                "instance: block_s must hold at least one request, class and block, got shape"
                f" {table.shape}"
            )
        n_blocks = table.shape[2]
        n_links = instance_tables.count_tiers(tiers) - 1
        link_shape = (None, n_links, n_blocks + 1)
        transfer = np.zeros((1, n_links, n_blocks + 1))
        if transfer_s is not None:
            transfer = valid.reals("instance", "transfer_s", transfer_s, link_shape)
        occupancy = transfer
        if occupancy_s is not None:
            occupancy = valid.reals("instance", "occupancy_s", occupancy_s, link_shape)
        return cls.from_kinds(
            kind_s=table,
            reference_kind_s=reference_s,
            block_kind=np.arange(n_blocks),
            block_bytes=block_bytes,
            tied_bytes=tied_bytes,
            transfer_kind_s=transfer,
            occupancy_kind_s=occupancy,
            reference_transfer_kind_s=reference_transfer_s,
            reference_occupancy_kind_s=reference_transfer_s if occupancy_s is None else None,
            cut_kind=np.arange(n_blocks + 1),
            tiers=tiers,
            arrival_s=arrival_s,
            objective=objective,
            stage_rule=stage_rule,
            allow_empty=allow_empty,
            overlap=overlap,
            link_cost=link_cost,
            pinned=pinned,
            min_blocks=min_blocks,
            max_blocks=max_blocks,
            name=name,
        )

    @classmethod
    @valid.suggest_keywords("Instance.from_kinds")
    def from_kinds(
        cls,
        *,
        kind_s: ArrayLike,
        block_kind: ArrayLike,
        block_bytes: ArrayLike,
        transfer_kind_s: ArrayLike,
        occupancy_kind_s: ArrayLike,
        cut_kind: ArrayLike,
        tiers: Sequence[Sequence[tuple[int, float]]],
        arrival_s: ArrayLike | None = None,
        reference_kind_s: ArrayLike | None = None,
        reference_transfer_kind_s: ArrayLike | None = None,
        reference_occupancy_kind_s: ArrayLike | None = None,
        objective: Objective | str = Objective.BOTTLENECK,
        stage_rule: StageRule | str = StageRule.POOLED,
        allow_empty: bool = False,
        overlap: bool = False,
        link_cost: LinkCost | str = LinkCost.OCCUPANCY,
        pinned: Mapping[int, int] | None = None,
        min_blocks: Sequence[int] | None = None,
        max_blocks: Sequence[int] | None = None,
        tied_bytes: float = 0.0,
        name: str = "",
        extrapolated: bool = False,
        tier_names: Sequence[str] = (),
        node_names: Sequence[str] = (),
        class_names: Sequence[str] = (),
    ) -> Instance:
        """Make an instance from tables that have a column per kind of block and cut.

        Parameters are as in `from_tables`; the names of parts are also given. Kinds are
        numbered in order of appearance, equal kinds are merged, and a table of equal rows keeps
        one row. Equal problems therefore have equal arrays.
        """
        n_tiers = instance_tables.count_tiers(tiers)
        kind_s = valid.reals("instance", "block_s", kind_s, (None, None, None))
        kind_shape = kind_s.shape[1:]
        reference = instance_tables.table_or_none("reference_s", reference_kind_s, kind_shape)
        transfer = valid.reals(
            "instance", "transfer_s", transfer_kind_s, (None, n_tiers - 1, None)
        )
        link_shape = transfer.shape[1:]
        occupancy = valid.reals(
            "instance", "occupancy_s", occupancy_kind_s, (None, *link_shape)
        )
        link_reference = instance_tables.table_or_none(
            "reference_transfer_s", reference_transfer_kind_s, link_shape
        )
        busy_reference = instance_tables.table_or_none(
            "reference_occupancy_s", reference_occupancy_kind_s, link_shape
        )
        arrival = valid.reals(
            "instance", "arrival_s", np.zeros(1) if arrival_s is None else arrival_s, (None,)
        )
        n_requests = instance_tables.one_length(
            block_s=kind_s, transfer_s=transfer, occupancy_s=occupancy, arrival_s=arrival
        )
        if len(arrival) != n_requests:
            arrival = np.repeat(arrival, n_requests)
        kind_s, transfer, occupancy = map(
            instance_tables.one_row_if_equal, (kind_s, transfer, occupancy)
        )
        block_kind, kinds = instance_tables.merge_kinds(
            "block_kind", block_kind, kind_s, reference
        )
        cut_kind, cuts = instance_tables.merge_kinds(
            "cut_kind", cut_kind, transfer, occupancy, link_reference, busy_reference
        )
        n_blocks = len(block_kind)
        node_tier, node_class, node_bytes = instance_tables.nodes(tiers)
        least = instance_tables.limits("min_blocks", min_blocks, n_tiers, n_blocks, 0)
        most = instance_tables.limits("max_blocks", max_blocks, n_tiers, n_blocks, n_blocks)
        cut_min, cut_max = instance_tables.cut_limits(pinned, n_tiers, n_blocks)
        return cls(
            kind_s=kind_s[..., kinds],
            reference_kind_s=instance_tables.mean_or_given(kind_s, reference)[..., kinds],
            block_kind=block_kind,
            block_bytes=valid.reals("instance", "block_bytes", block_bytes, (n_blocks,)),
            tied_bytes=tied_bytes,
            transfer_kind_s=transfer[..., cuts],
            occupancy_kind_s=occupancy[..., cuts],
            reference_transfer_kind_s=instance_tables.mean_or_given(transfer, link_reference)[
                ..., cuts
            ],
            reference_occupancy_kind_s=instance_tables.mean_or_given(occupancy, busy_reference)[
                ..., cuts
            ],
            cut_kind=cut_kind,
            node_tier=node_tier,
            node_class=node_class,
            node_bytes=node_bytes,
            arrival_s=arrival,
            cut_min=cut_min,
            cut_max=cut_max,
            min_blocks_given=least,
            max_blocks=most,
            objective=valid.one_of("instance", "objective", objective, Objective),
            stage_rule=valid.one_of("instance", "stage_rule", stage_rule, StageRule),
            allow_empty=allow_empty,
            overlap=overlap,
            link_cost=valid.one_of("instance", "link_cost", link_cost, LinkCost),
            name=name,
            extrapolated=extrapolated,
            tier_names=tuple(tier_names),
            node_names=tuple(node_names),
            class_names=tuple(class_names),
        )


_USER_NAME = {  # names of the tables in `from_tables`, for messages
    "kind_s": "block_s",
    "reference_kind_s": "reference_s",
    "transfer_kind_s": "transfer_s",
    "occupancy_kind_s": "occupancy_s",
    "reference_transfer_kind_s": "reference_transfer_s",
    "reference_occupancy_kind_s": "reference_occupancy_s",
    "node_bytes": "tiers' memory_bytes",
}
_FIELD_OF = {user_name: field for field, user_name in _USER_NAME.items()}
# Labels in the digest that differ from the field's name: digests outlive a rename.
_DIGEST_LABEL = {"min_blocks_given": "least_given", "max_blocks": "most_blocks"}
ARRAY_FIELDS = (  # in the order of the digest
    "kind_s",
    "reference_kind_s",
    "block_kind",
    "block_bytes",
    "transfer_kind_s",
    "occupancy_kind_s",
    "reference_transfer_kind_s",
    "reference_occupancy_kind_s",
    "cut_kind",
    "node_tier",
    "node_class",
    "node_bytes",
    "arrival_s",
    "cut_min",
    "cut_max",
    "min_blocks_given",
    "max_blocks",
)
