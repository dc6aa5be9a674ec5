"""Instances: the canonical arrays that every solver reads, and the objectives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance_records import (
    USER_NAME,
    BlockCosts,
    Limits,
    LinkTimes,
    Names,
    NodeTable,
    check_below,
    set_reals,
)
from hypsolve.problem.notebook_table import notebook_table
from hypsolve.problem.rules import LinkCost, Objective, Rules, StageRule
from hypsolve.problem.units import count, show_bytes

__all__ = ["ARRAY_FIELDS", "Instance", "LinkCost", "Objective", "StageRule"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Instance:
    """A problem in canonical form, as arrays.

    Make one with `from_tables`, `hypsolve.to_instance` or `hypsolve.load`. Two instances are
    equal if their digests are.

    Blocks with equal columns share a *kind* (the layers of a transformer do), and so do cuts.
    The table over blocks is ``kind_table[..., block_kind]``, the table over cuts is
    ``kind_table[..., cut_kind]``.

    The objectives that depend on the partition alone use the times of one *reference request*.
    By default its times are the means over the requests.

    Attributes
    ----------
    kind_s : ndarray, shape (n_requests or 1, n_classes, n_block_kinds)
        Time of a block in seconds, for a request on a node class.
    reference_kind_s : ndarray, shape (n_classes, n_block_kinds)
        Time of a block in seconds, for the reference request.
    block_kind : ndarray of int, shape (n_blocks,)
    block_bytes : ndarray, shape (n_blocks,)
        Memory that a node needs for a block; all 0 means no memory limit.
    tied_bytes : float
        Memory that tied weights save if a single stage holds all blocks.
    transfer_kind_s, occupancy_kind_s : ndarray, (n_requests or 1, n_tiers - 1, n_cut_kinds)
        Transfer time from tier k to k + 1 at a cut, and the part that keeps the link busy.
    reference_transfer_kind_s, reference_occupancy_kind_s : ndarray, (n_tiers - 1, n_cut_kinds)
        Both times for the reference request.
    cut_kind : ndarray of int, shape (n_blocks + 1,)
    node_tier, node_class : ndarray of int, shape (n_nodes,)
        Tier and class of each node; nodes are sorted by tier.
    node_bytes : ndarray, shape (n_nodes,)
        Usable memory.
    arrival_s : ndarray, shape (n_requests,)
    cut_min, cut_max : ndarray of int, shape (n_tiers + 1,)
        Smallest and largest position of each cut, as imposed by pinned blocks.
    min_blocks_given, max_blocks : ndarray of int, shape (n_tiers,)
        Limits on the number of blocks of each stage, as given. The effective lower limit,
        `min_blocks`, is at least 1 unless `allow_empty`.
    empty_first_tier : bool
        Whether the transfers at cut 0 are those that an empty first tier pays. False if
        `hypsolve.to_instance` compiled them without one; then `replace` allows none. Not part
        of the digest.
    objective, stage_rule, allow_empty, overlap, link_cost
        As in `from_tables`.
    name, extrapolated, tier_names, node_names, class_names
        Descriptive only, and not part of the digest. `extrapolated` marks costs that are
        extrapolated from measurements.
    costs, links, nodes, limits, rules, names
        Records that hold the attributes above, except `arrival_s`; see
        `hypsolve.problem.instance_records`.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.
    """

    costs: BlockCosts
    links: LinkTimes
    nodes: NodeTable
    limits: Limits
    arrival_s: Array
    rules: Rules
    names: Names

    def __post_init__(self) -> None:
        n_tiers, n_nodes = int(self.nodes.node_tier[-1]) + 1, len(self.nodes.node_tier)
        n_classes, n_blocks = self.costs.kind_s.shape[1], len(self.costs.block_kind)
        check_below("node_class", self.nodes.node_class, n_classes)
        if self.links.transfer_kind_s.shape[1] != n_tiers - 1:
            raise ValueError(
                f"instance: transfer_s must have shape (any, {n_tiers - 1}, any),"
                f" got {self.links.transfer_kind_s.shape}"
            )
        if len(self.links.cut_kind) != n_blocks + 1:
            raise ValueError(
                f"instance: cut_kind must have shape ({n_blocks + 1}),"
                f" got {self.links.cut_kind.shape}"
            )
        self.limits.check(n_tiers, n_blocks)
        self._check_first_tier()
        self._check_rows()
        names = self.names.for_sizes(n_tiers, n_nodes, n_classes)
        object.__setattr__(self, "names", names)

    def _check_first_tier(self) -> None:
        """Refuse an empty first tier if the transfers at cut 0 were compiled without one."""
        may_be_empty = self.rules.allow_empty and self.limits.min_blocks_given[0] == 0
        if may_be_empty and not self.links.empty_first_tier:
            raise ValueError(
                "instance: allow_empty must be False or min_blocks[0] at least 1, for the"
                " transfers behind an empty first tier were not compiled, got"
                f" allow_empty={self.rules.allow_empty} and"
                f" min_blocks[0]={self.limits.min_blocks_given[0]}; compile the deployment"
                " again: hypsolve.to_instance(deployment, allow_empty=True, ...)"
            )

    def _check_rows(self) -> None:
        n_requests = len(set_reals(self, "arrival_s", (None,)))
        for field, table in (
            ("block_s", self.costs.kind_s),
            ("transfer_s", self.links.transfer_kind_s),
            ("occupancy_s", self.links.occupancy_kind_s),
        ):
            if len(table) not in (1, n_requests):
                raise ValueError(
                    f"instance: {field} must have 1 or n_requests = {n_requests} rows,"
                    f" got {len(table)}"
                )
        if not n_requests:
            raise ValueError("instance: arrival_s must hold at least one request, got none")

    @classmethod
    def from_arrays(cls, *, arrival_s: Array, **fields: Any) -> Instance:
        """Make an instance from its attributes, without merging kinds or rows.

        Raises
        ------
        ValueError, TypeError
            If a field is invalid; the message names it, the rule and the value, and suggests
            the likeliest name in place of an unknown one.
        """
        parts = _by_record(fields)
        records = {record: kind(**parts.get(record, {})) for record, kind in RECORDS.items()}
        return cls(arrival_s=arrival_s, **records)

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __getattr__(self, name):
            raise valid.missing_attribute(self, name)

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
        return notebook_table(
            repr(self)[1:-1], ("tier", "nodes", "node classes", "memory"), rows
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def kind_s(self) -> Array:
        """Time by kind of block, shape (n_requests or 1, n_classes, n_block_kinds)."""
        return self.costs.kind_s

    @property
    def reference_kind_s(self) -> Array:
        """Reference request: time by kind of block, shape (n_classes, n_block_kinds)."""
        return self.costs.reference_kind_s

    @property
    def block_kind(self) -> IntArray:
        """Kind of each block, shape (n_blocks,)."""
        return self.costs.block_kind

    @property
    def block_bytes(self) -> Array:
        """Memory of each block on a node, shape (n_blocks,)."""
        return self.costs.block_bytes

    @property
    def tied_bytes(self) -> float:
        """Memory that is saved if one stage holds all blocks."""
        return self.costs.tied_bytes

    @property
    def transfer_kind_s(self) -> Array:
        """Transfer time by kind of cut, shape (n_requests or 1, n_tiers - 1, n_cut_kinds)."""
        return self.links.transfer_kind_s

    @property
    def occupancy_kind_s(self) -> Array:
        """Part of `transfer_kind_s` that keeps the link busy."""
        return self.links.occupancy_kind_s

    @property
    def reference_transfer_kind_s(self) -> Array:
        """Reference request: transfer time by kind of cut, shape (n_tiers - 1, n_cut_kinds)."""
        return self.links.reference_transfer_kind_s

    @property
    def reference_occupancy_kind_s(self) -> Array:
        """Part of the reference transfers that keeps the link busy."""
        return self.links.reference_occupancy_kind_s

    @property
    def cut_kind(self) -> IntArray:
        """Kind of each cut, shape (n_blocks + 1,)."""
        return self.links.cut_kind

    @property
    def empty_first_tier(self) -> bool:
        """Whether the transfers at cut 0 are those that an empty first tier pays."""
        return self.links.empty_first_tier

    @property
    def node_tier(self) -> IntArray:
        """Tier of each node, ascending, shape (n_nodes,)."""
        return self.nodes.node_tier

    @property
    def node_class(self) -> IntArray:
        """Class of each node, shape (n_nodes,)."""
        return self.nodes.node_class

    @property
    def node_bytes(self) -> Array:
        """Usable memory of each node, shape (n_nodes,)."""
        return self.nodes.node_bytes

    @property
    def cut_min(self) -> IntArray:
        """Smallest value of each cut, shape (n_tiers + 1,)."""
        return self.limits.cut_min

    @property
    def cut_max(self) -> IntArray:
        """Largest value of each cut, shape (n_tiers + 1,)."""
        return self.limits.cut_max

    @property
    def min_blocks_given(self) -> IntArray:
        """Minimum number of blocks per tier as given, shape (n_tiers,)."""
        return self.limits.min_blocks_given

    @property
    def max_blocks(self) -> IntArray:
        """Maximum number of blocks per tier, shape (n_tiers,)."""
        return self.limits.max_blocks

    @property
    def objective(self) -> Objective:
        """Objective to minimise."""
        return self.rules.objective

    @property
    def stage_rule(self) -> StageRule:
        """Rule that combines the nodes of a tier into one stage time."""
        return self.rules.stage_rule

    @property
    def allow_empty(self) -> bool:
        """Whether a tier may host no block."""
        return self.rules.allow_empty

    @property
    def overlap(self) -> bool:
        """Whether a stage computes while its link sends."""
        return self.rules.overlap

    @property
    def link_cost(self) -> LinkCost:
        """Part of the outgoing transfer that counts in the bottleneck."""
        return self.rules.link_cost

    @property
    def name(self) -> str:
        """Name of the instance, for people."""
        return self.names.name

    @property
    def extrapolated(self) -> bool:
        """Whether costs go beyond measurements."""
        return self.names.extrapolated

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Name of each tier."""
        return self.names.tier_names

    @property
    def node_names(self) -> tuple[str, ...]:
        """Name of each node."""
        return self.names.node_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each node class."""
        return self.names.class_names

    @cached_property
    def release_s(self) -> Array:
        """Arrivals counted from the first one, as schedules count; shape (n_requests,).

        Far from time 0, differences of times keep digits that the times themselves lack.
        """
        release_s = self.arrival_s - self.arrival_s.min()
        release_s.setflags(write=False)
        return release_s

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
        """Time of each block for the reference request, shape (n_classes, n_blocks)."""
        return self.reference_kind_s[:, self.block_kind]

    @property
    def block_s(self) -> Array:
        """Time of each block, shape (n_requests or 1, n_classes, n_blocks)."""
        return self.kind_s[:, :, self.block_kind]

    @property
    def transfer_s(self) -> Array:
        """Transfer time at each cut, shape (n_requests or 1, n_tiers - 1, n_blocks + 1)."""
        return self.transfer_kind_s[:, :, self.cut_kind]

    @property
    def reference_transfer_s(self) -> Array:
        """Reference request: transfer time at each cut, shape (n_tiers - 1, n_blocks + 1)."""
        return self.reference_transfer_kind_s[:, self.cut_kind]

    @property
    def reference_link_s(self) -> Array:
        """Time that links add to the bottleneck, shape (n_tiers - 1, n_blocks + 1)."""
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
            If the new instance breaks a rule. An instance that `hypsolve.to_instance` has
            compiled without an empty first tier cannot get one: its transfers at cut 0 would
            charge the network for every token. Compile it again with ``allow_empty=True``.

        Notes
        -----
        Transfers stay as they are, and those of tables are taken as given.

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
        arrival_s = changes.pop("arrival_s", self.arrival_s)
        records = {
            record: dataclasses.replace(getattr(self, record), **fields)
            for record, fields in _by_record(changes, "pinned", "min_blocks").items()
        }
        return dataclasses.replace(self, arrival_s=arrival_s, **records)

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

    def names_digest(self) -> str:
        """Return the SHA-256 digest of what `digest` leaves out, in hexadecimal.

        It covers the names of tiers, nodes and classes, in order, and `extrapolated`.
        """
        names = (self.tier_names, self.node_names, self.class_names)
        plain = json.dumps([*map(list, names), bool(self.extrapolated)])
        return hashlib.sha256(plain.encode()).hexdigest()

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
        """Make an instance from user-supplied tables.

        The tables `block_s`, `transfer_s`, `occupancy_s` and `arrival_s` have a row per
        request, or a single row for all requests.

        Parameters
        ----------
        block_s : array_like, shape (n_requests or 1, n_classes, n_blocks)
            Time of a block in seconds, for a request on a node class; at least 0.
        block_bytes : array_like, shape (n_blocks,)
            Memory that a node needs for each block; all 0 means no memory limit. Whole numbers
            that sum to at most 2**53 are compared exactly, others up to rounding.
        tiers : sequence of sequences of (class, memory_bytes)
            Nodes of each tier, in the order that a request visits the tiers.
        transfer_s, occupancy_s : array_like, shape (n_requests or 1, n_tiers - 1, n_blocks + 1)
            Transfer time from tier k to k + 1 if stage k ends at each cut (default: 0), and the
            part of it during which the link is busy (default: all of it).
        arrival_s : array_like, shape (n_requests,) or (1,)
            Default: every request arrives at 0.
        reference_s : array_like, shape (n_classes, n_blocks)
            Times of the blocks for the reference request; default: the mean over the requests.
        reference_transfer_s : array_like, shape (n_tiers - 1, n_blocks + 1)
            Transfer times of the reference request; default: the mean over the requests. The
            part that keeps a link busy is the mean of `occupancy_s`, or all without it.
        objective : Objective or str
            ``bottleneck``, ``path``, ``p0`` (P0, the objective of the Hyperion paper),
            ``mean_latency`` or ``makespan``.
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
            If a field is invalid; the message names it, the rule and the value.

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
        empty_first_tier: bool = True,
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
        one row. Equal problems therefore have equal arrays. If `empty_first_tier` is False, the
        transfers at cut 0 are not those of an empty first tier, and none is allowed.
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
        return cls.from_arrays(
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
            empty_first_tier=empty_first_tier,
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


RECORDS: dict[str, Any] = {
    "costs": BlockCosts,
    "links": LinkTimes,
    "nodes": NodeTable,
    "limits": Limits,
    "rules": Rules,
    "names": Names,
}
_RECORD_OF = {
    field.name: record for record, kind in RECORDS.items() for field in dataclasses.fields(kind)
}
_FIELD_OF = {user_name: field for field, user_name in USER_NAME.items()}


def _by_record(fields: Mapping[str, Any], *also: str) -> dict[str, dict[str, Any]]:
    """Return fields of an instance by the record that holds them; TypeError for others."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        if name not in _RECORD_OF:
            takes = (*also, "arrival_s", *_RECORD_OF)
            hint = valid.did_you_mean(_FIELD_OF.get(name, name), takes)
            raise TypeError(
                f"instance: unknown field {name!r}; {hint}choose one of {', '.join(takes)}"
            )
        parts.setdefault(_RECORD_OF[name], {})[name] = value
    return parts


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
