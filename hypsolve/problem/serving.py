"""`ServingInstance`: the arrays of a batched server, which the throughput methods read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance_records import Limits, Names, NodeTable, check_below
from hypsolve.problem.serving_records import (
    KIND_TABLES,
    OWNER,
    BlockTimes,
    Lengths,
    ServingLinks,
    ServingObjective,
    ServingRules,
    plain_fields,
)
from hypsolve.problem.units import count

__all__ = ["RECORDS", "ServingInstance", "ServingObjective"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServingInstance:
    """A model on ordered tiers whose servers batch requests, as arrays.

    Make one with `from_tables`, `hypsolve.to_serving_instance` or `hypsolve.load`. Two
    instances are equal if their digests are. `Instance` holds the problem in which a node
    serves one request at a time. A class of nodes may be a GPU, or a group of GPUs that work
    tensor-parallel.

    Attributes
    ----------
    blocks : BlockTimes
        Seconds and bytes of the blocks.
    links : ServingLinks
        Links between the tiers.
    nodes : NodeTable
        Tier, class and memory of the nodes.
    price_per_hour : ndarray, shape (n_nodes,)
        Price of each node, in a currency of the user.
    lengths : Lengths
        Moments of the lengths of requests.
    limits : Limits
        Pinned blocks, and limits on the number of blocks of each tier.
    rules : ServingRules
        Objective, targets, and the limits of the runtime.
    names : Names
        Names for people. They are not part of the digest.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.
    """

    blocks: BlockTimes
    links: ServingLinks
    nodes: NodeTable
    price_per_hour: Array
    lengths: Lengths
    limits: Limits
    rules: ServingRules
    names: Names

    def __post_init__(self) -> None:
        for name, kind in RECORDS.items():
            valid.of_type(OWNER, name, getattr(self, name), kind)
        n_nodes, n_links = len(self.nodes.node_tier), self.links.token_s.shape[0]
        check_below("node_class", self.nodes.node_class, self.n_classes)
        if n_links != self.n_tiers - 1:
            raise ValueError(
                f"{OWNER}: token_s must have {self.n_tiers - 1} rows, one for each link,"
                f" got {n_links}"
            )
        if len(self.links.cut_kind) != self.n_blocks + 1:
            raise ValueError(
                f"{OWNER}: cut_kind must have shape ({self.n_blocks + 1}),"
                f" got {self.links.cut_kind.shape}"
            )
        self.limits.check(self.n_tiers, self.n_blocks)
        price = valid.reals(OWNER, "price_per_hour", self.price_per_hour, (n_nodes,))
        object.__setattr__(self, "price_per_hour", price)
        if self.objective is ServingObjective.COST and not price.any():
            raise ValueError(
                f"{OWNER}: price_per_hour must be positive for a node under objective cost,"
                " got 0 for all"
            )
        names = self.names.for_sizes(self.n_tiers, n_nodes, self.n_classes)
        object.__setattr__(self, "names", names)

    def __repr__(self) -> str:
        sizes = ", ".join(
            count(number, noun)
            for number, noun in (
                (self.n_blocks, "block"),
                (self.n_tiers, "tier"),
                (len(self.nodes.node_tier), "node"),
            )
        )
        mode = f"batching {self.rules.batching}, {self.objective}"
        return f"<ServingInstance {self.name!r}: {sizes}, {mode}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServingInstance) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def name(self) -> str:
        """Name of the instance, for people."""
        return self.names.name

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Name of each tier."""
        return self.names.tier_names

    @property
    def objective(self) -> ServingObjective:
        """Objective: throughput, goodput or cost."""
        return self.rules.objective

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks.block_kind)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return int(self.nodes.node_tier[-1]) + 1

    @property
    def n_classes(self) -> int:
        """Number of node classes."""
        return self.blocks.fixed_s.shape[0]

    @property
    def min_blocks(self) -> IntArray:
        """Minimum number of blocks per tier, at least 1 unless tiers may be empty."""
        least = self.limits.min_blocks_given
        return least if self.rules.allow_empty else np.maximum(least, 1)

    def nodes_of(self, tier: int) -> range:
        """Return the indices of the nodes of a tier."""
        ends = np.searchsorted(self.nodes.node_tier, [tier, tier + 1])
        return range(int(ends[0]), int(ends[1]))

    def replace(self, **changes: Any) -> ServingInstance:
        """Return an instance with other rules or another name.

        Parameters
        ----------
        **changes
            Attributes of `ServingRules`, or ``name``.

        Examples
        --------
        >>> instance = ServingInstance.from_tables(
        ...     fixed_s=[[1e-3]], block_kind=[0, 0], tiers=[[(0, 1e9)]], prompt_tokens=100,
        ...     output_tokens=10,
        ... )
        >>> instance.replace(users=8, name="eight users").rules.users
        8
        """
        known = [field.name for field in dataclasses.fields(ServingRules)]
        names = self.names
        if "name" in changes:
            names = dataclasses.replace(names, name=changes.pop("name"))
        for field in changes:
            valid.known(f"field of the rules of a {OWNER}", field, [*known, "name"])
        rules = dataclasses.replace(self.rules, **changes)
        return dataclasses.replace(self, rules=rules, names=names)

    def digest(self) -> str:
        """Return the SHA-256 digest of the problem, in hexadecimal; names do not count."""
        sha = hashlib.sha256(b"serving instance 1\n")
        for record, content in self.to_dict().items():
            if record != "names":
                sha.update(f"{record} {json.dumps(content, sort_keys=True)}\n".encode())
        return sha.hexdigest()

    def names_digest(self) -> str:
        """Return the SHA-256 digest of the names of tiers and nodes, and `extrapolated`.

        `digest` leaves them out; the name of the instance is in neither.
        """
        names = {key: value for key, value in plain_fields(self.names).items() if key != "name"}
        return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the instance as plain tables; `from_dict` reads them."""
        tables = {name: plain_fields(getattr(self, name)) for name in RECORDS}
        return tables | {"price_per_hour": self.price_per_hour.tolist()}

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> ServingInstance:
        """Make an instance of the tables that `to_dict` returns, and validate them.

        Raises
        ------
        ValueError, TypeError
            If a table or field is missing, unknown or invalid; the message names it.
        """
        _require_table("tables", tables)
        known = [*RECORDS, "price_per_hour"]
        for name in tables:
            valid.known(f"table of a {OWNER}", name, known)
        for name in known:
            if name not in tables:
                raise ValueError(f"{OWNER}: table {name!r} is missing")
        records = {name: _record(name, kind, tables[name]) for name, kind in RECORDS.items()}
        _refuse_flags("price_per_hour", tables["price_per_hour"])
        return cls(**records, price_per_hour=tables["price_per_hour"])

    @classmethod
    def from_tables(
        cls,
        *,
        fixed_s: ArrayLike,
        block_kind: ArrayLike,
        tiers: Sequence[Sequence[tuple[int, float]]],
        prompt_tokens: int,
        output_tokens: int,
        read_s: ArrayLike | None = None,
        expert_s: ArrayLike | None = None,
        compute_token_s: ArrayLike | None = None,
        memory_token_s: ArrayLike | None = None,
        compute_chunk_s: ArrayLike | None = None,
        memory_chunk_s: ArrayLike | None = None,
        weight_bytes: ArrayLike | None = None,
        kv_bytes_per_token: ArrayLike | None = None,
        mixed_s: ArrayLike | None = None,
        linear_token_s: ArrayLike | None = None,
        linear_chunk_s: ArrayLike | None = None,
        idle_share: ArrayLike | None = None,
        last_token_only: ArrayLike | None = None,
        collective_s: ArrayLike | None = None,
        tied_bytes: ArrayLike | None = None,
        token_s: ArrayLike | None = None,
        cut_kind: ArrayLike | None = None,
        round_trip_s: ArrayLike | None = None,
        entry_s: ArrayLike | None = None,
        price_per_hour: ArrayLike | None = None,
        kv_block_tokens: int = 16,
        pinned: Mapping[int, int] | None = None,
        min_blocks: Sequence[int] | None = None,
        max_blocks: Sequence[int] | None = None,
        name: str = "",
        **rules: Any,
    ) -> ServingInstance:
        """Make an instance for requests of one length from a user's tables.

        Parameters
        ----------
        fixed_s, read_s, expert_s, compute_token_s, memory_token_s, compute_chunk_s, \
memory_chunk_s, weight_bytes, kv_bytes_per_token, mixed_s, linear_token_s, \
linear_chunk_s : array_like, shape (n_classes, n_kinds)
            As in `BlockTimes`; default: 0.
        block_kind : array_like of int, shape (n_blocks,)
            Kind of each block.
        tiers : sequence of sequences of (class, memory_bytes)
            Nodes of each tier, in the order that a request visits the tiers.
        prompt_tokens, output_tokens : int
            Lengths of all requests.
        idle_share, last_token_only, collective_s, tied_bytes
            As in `BlockTimes`; default: 0.
        token_s, cut_kind, round_trip_s, entry_s
            As in `ServingLinks`. Default: links take no time, and `cut_kind` is a kind for
            each cut if `token_s` has as many columns.
        price_per_hour : array_like, shape (n_nodes,)
        kv_block_tokens : int
            Tokens of a block of KV cache under ``kv_admission="paged"``.
        pinned, min_blocks, max_blocks
            As in `Instance.from_tables`.
        name : str
        **rules
            Attributes of `ServingRules`.

        Returns
        -------
        ServingInstance

        Raises
        ------
        ValueError, TypeError
            If a field is invalid; the message names it, the rule and the value.

        Examples
        --------
        >>> instance = ServingInstance.from_tables(
        ...     fixed_s=[[1e-3]], block_kind=[0, 0, 0], tiers=[[(0, 8e9)], [(0, 8e9)]],
        ...     prompt_tokens=100, output_tokens=10, max_num_seqs=4, name="tiny",
        ... )
        >>> instance
        <ServingInstance 'tiny': 3 blocks, 2 tiers, 2 nodes, batching stage, throughput>
        """
        given = {
            "read_s": read_s,
            "expert_s": expert_s,
            "compute_token_s": compute_token_s,
            "memory_token_s": memory_token_s,
            "compute_chunk_s": compute_chunk_s,
            "memory_chunk_s": memory_chunk_s,
            "weight_bytes": weight_bytes,
            "kv_bytes_per_token": kv_bytes_per_token,
            "mixed_s": mixed_s,
            "linear_token_s": linear_token_s,
            "linear_chunk_s": linear_chunk_s,
        }
        fixed = valid.reals(OWNER, "fixed_s", fixed_s, (None, None))
        n_classes, n_kinds = fixed.shape
        n_links = instance_tables.count_tiers(tiers) - 1
        n_blocks = np.size(block_kind)
        node_tier, node_class, node_bytes = instance_tables.nodes(tiers)
        for field in rules:
            if field not in _RULE_FIELDS:
                takes = [*given, *_RULE_FIELDS]
                raise TypeError(
                    f"ServingInstance.from_tables: unknown argument {field!r};"
                    f" {valid.did_you_mean(field, takes)}rules are {', '.join(_RULE_FIELDS)}"
                )
        settings = ServingRules(**rules)
        prompt = valid.whole(OWNER, "prompt_tokens", prompt_tokens, minimum=1)
        output = valid.whole(OWNER, "output_tokens", output_tokens, minimum=1)
        width = 1 if token_s is None else np.shape(token_s)[-1]
        if cut_kind is None:
            cut_kind = (
                np.arange(n_blocks + 1) if width == n_blocks + 1 else [0] * (n_blocks + 1)
            )
        size = len(tiers), n_blocks
        cut_min, cut_max = instance_tables.cut_limits(pinned, *size)
        return cls(
            blocks=BlockTimes(
                fixed_s=fixed,
                **{name: _or_zeros(given[name], fixed.shape) for name in KIND_TABLES[1:]},
                idle_share=_or_zeros(idle_share, (n_kinds,)),
                last_token_only=_or_zeros(last_token_only, (n_kinds,), np.int64),
                collective_s=_or_zeros(collective_s, (n_classes, n_kinds, 5)),
                tied_bytes=_or_zeros(tied_bytes, (n_classes,)),
                block_kind=block_kind,  # type: ignore[arg-type]
            ),
            links=ServingLinks(
                token_s=_or_zeros(token_s, (n_links, 1)),
                cut_kind=cut_kind,  # type: ignore[arg-type]
                round_trip_s=_or_zeros(round_trip_s, (n_links,)),
                entry_s=_or_zeros(entry_s, (n_links,)),
            ),
            nodes=NodeTable(node_tier=node_tier, node_class=node_class, node_bytes=node_bytes),
            price_per_hour=_or_zeros(price_per_hour, (len(node_tier),)),
            lengths=lengths_of([prompt], [output], settings, kv_block_tokens),
            limits=Limits(
                cut_min=cut_min,
                cut_max=cut_max,
                min_blocks_given=instance_tables.limits("min_blocks", min_blocks, *size, 0),
                max_blocks=instance_tables.limits("max_blocks", max_blocks, *size, n_blocks),
            ),
            rules=settings,
            names=Names(name=name),
        )


def lengths_of(
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    rules: ServingRules,
    kv_block_tokens: int = 16,
    resident_tokens: float | None = None,
    slot_tokens: int = 1,
) -> Lengths:
    """Return the moments of the lengths of requests under the limits of a runtime.

    Parameters
    ----------
    prompt_tokens, output_tokens : array_like, shape (n_requests,)
    rules : ServingRules
        Its `prompt_limit` cuts prompts into chunks; `kv_admission` decides what is held.
    kv_block_tokens : int
        Tokens of a block of KV cache if it is paged.
    resident_tokens : float, optional
        Default: the longest request.
    slot_tokens : int
        Reserved KV cache is rounded up to a multiple of so many tokens; see `Runtime`.
    """
    block = valid.whole(OWNER, "kv_block_tokens", kv_block_tokens, minimum=1)
    p, o = (np.asarray(a, dtype=np.float64) for a in (prompt_tokens, output_tokens))
    slot = valid.whole(OWNER, "slot_tokens", slot_tokens, minimum=1)
    held = np.ceil((p + o) / slot) * slot
    if rules.kv_admission == "paged":
        held = np.minimum(p + o, np.ceil((p + (o + 1) / 2) / block) * block)
    longest = np.maximum(held, p + o)
    limit = np.inf if rules.prompt_limit is None else rules.prompt_limit
    pieces = np.maximum(np.ceil(p / limit), 1.0)
    alike = bool((p == p[0]).all() and (o == o[0]).all())
    mean_held = float(held.mean())
    chunks = float(pieces[0]) if alike else max(1.0, float(p.mean()) / limit)
    return Lengths(
        prompt_tokens=float(p.mean()),
        decode_passes=float((o - 1).mean()),
        chunks=chunks,
        held_tokens=mean_held,
        hold_passes=float((held * (o - 1)).mean()) / mean_held,
        hold_chunks=float((held * pieces).mean()) / mean_held,
        hold_prompt_tokens=float((held * p).mean()) / mean_held,
        resident_tokens=float(longest.max()) if resident_tokens is None else resident_tokens,
        alike=alike,
    )


def _or_zeros(table: ArrayLike | None, shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.zeros(shape, dtype) if table is None else table


def _require_table(name: str, table: Any) -> None:
    if not isinstance(table, Mapping):
        raise TypeError(f"{OWNER}: {name} must be a table, got {table!r:.60}")


def _refuse_flags(field: str, value: Any) -> None:
    """Raise TypeError for true and false in a list: arrays would take them as numbers."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, bool):
            raise TypeError(f"{OWNER}: {field} must hold numbers or strings, got {each}")
        _refuse_flags(field, each)


def _are_indices(values: Any) -> bool:
    """Return whether a value is a list of whole numbers from 0 to 10,000."""
    return isinstance(values, list) and all(
        type(each) is int and 0 <= each <= 10_000 for each in values
    )


def _record(name: str, kind: Any, table: Any) -> Any:
    _require_table(name, table)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in table:
        valid.known(f"field of {name} in a {OWNER}", key, fields)
    for key, field in fields.items():
        if key not in table and field.default is dataclasses.MISSING:
            raise ValueError(f"{OWNER}: field {key!r} of {name} is missing")
    for key, value in table.items():
        _refuse_flags(key, value)
    content = dict(table)
    if name == "names":
        for key in ("tier_names", "node_names", "class_names"):
            if not isinstance(table.get(key, []), list | tuple):
                raise TypeError(f"{OWNER}: {key} must be a list, got {table[key]!r:.60}")
        content = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    elif name == "links" and "token_s" in content and content["token_s"] == []:
        # a single tier has no links: JSON keeps no columns of a table without rows
        kinds = table.get("cut_kind")
        n_kinds = 1 + max(kinds, default=0) if _are_indices(kinds) else 1
        content["token_s"] = np.zeros((0, n_kinds))
    return kind(**content)


RECORDS: dict[str, Any] = {
    "blocks": BlockTimes,
    "links": ServingLinks,
    "nodes": NodeTable,
    "lengths": Lengths,
    "limits": Limits,
    "rules": ServingRules,
    "names": Names,
}
_RULE_FIELDS = [field.name for field in dataclasses.fields(ServingRules)]
