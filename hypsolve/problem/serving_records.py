"""The records that make up a `ServingInstance`. Each one validates its own fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.runtime import MAX_LIMIT, Batching, KvAdmission

OWNER = "serving instance"
KIND_TABLES = (
    "fixed_s",
    "read_s",
    "expert_s",
    "compute_token_s",
    "memory_token_s",
    "compute_chunk_s",
    "memory_chunk_s",
    "weight_bytes",
    "kv_bytes_per_token",
    "mixed_s",
    "linear_token_s",
    "linear_chunk_s",
)
"""Fields of `BlockTimes` with a row per node class and a column per kind of block."""
LATER_FIELDS = ("mixed_s", "linear_token_s", "linear_chunk_s", "request_s")
"""Fields that are left out of files and digests where they are 0, as before they existed."""


class ServingObjective(StrEnum):
    """Objective of a `ServingInstance`.

    ``THROUGHPUT``: the largest request rate in requests per second. ``GOODPUT``: the largest
    rate at which the targets for latencies are met. ``COST``: the smallest price per request
    within these targets, if there are any.
    """

    THROUGHPUT = "throughput"
    GOODPUT = "goodput"
    COST = "cost"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTimes:
    """Seconds and bytes of the blocks, by node class and kind of block.

    An iteration computes b decode tokens and k chunks of c prompt tokens each. A block takes
    ``fixed_s + max(compute, memory) + linear + collective`` seconds, with ``compute = b
    compute_token_s + k compute_chunk_s``, ``memory = read_s + expert_s (1 - idle_share **
    (b + k c)) + b memory_token_s + k memory_chunk_s`` and ``linear = b linear_token_s + k
    linear_chunk_s``, and `mixed_s` more if k is positive. The tables are affine in b and k, but
    for the experts of a mixture, of which an iteration reads those that are hit.

    A block that computes last tokens only sees ``m = b + k / n_chunks`` tokens. It works only
    where a token comes out, in a share ``min(1, m)`` of the iterations: `fixed_s`, `read_s` and
    the collective operations, of at least one token, are multiplied by this share.

    Attributes
    ----------
    fixed_s, read_s, expert_s : ndarray, shape (n_classes, n_kinds)
        Fixed time of a block, time to read its weights, and to read all of its experts.
    compute_token_s, memory_token_s : ndarray, shape (n_classes, n_kinds)
        Seconds of a decode token at the mean context.
    compute_chunk_s, memory_chunk_s : ndarray, shape (n_classes, n_kinds)
        Seconds of a chunk at the mean number of cached tokens. For a block that computes last
        tokens only: the seconds of one token, divided by the chunks of a prompt.
    mixed_s, linear_token_s, linear_chunk_s : ndarray, shape (n_classes, n_kinds), optional
        Seconds more in an iteration with chunks; and seconds of a decode token and of a chunk
        that nothing overlaps, as those of attention by `OperatorRates`. Default: 0.
    idle_share : ndarray, shape (n_kinds,)
        Probability that a token does not hit a given expert; 0 without experts.
    last_token_only : ndarray of int, shape (n_kinds,)
        1 if the block computes the last token of a prompt alone, else 0.
    collective_s : ndarray, shape (n_classes, n_kinds, 5)
        Collective operations of n tokens in a block: ``(alpha, beta, switch, gamma, delta)``.
        They take ``alpha + beta n`` up to ``switch`` tokens, and above it ``gamma + delta n``,
        but at least the seconds of ``switch`` tokens. All 0 on a single GPU.
    weight_bytes, kv_bytes_per_token : ndarray, shape (n_classes, n_kinds)
        Memory of a block's weights, and of its KV cache per token, on a node of a class.
    tied_bytes : ndarray, shape (n_classes,)
        Weights that a stage of all blocks saves.
    block_kind : ndarray of int, shape (n_blocks,)
    """

    fixed_s: Array
    read_s: Array
    expert_s: Array
    compute_token_s: Array
    memory_token_s: Array
    compute_chunk_s: Array
    memory_chunk_s: Array
    idle_share: Array
    last_token_only: IntArray
    collective_s: Array
    weight_bytes: Array
    kv_bytes_per_token: Array
    tied_bytes: Array
    block_kind: IntArray
    mixed_s: Array = None  # type: ignore[assignment]
    linear_token_s: Array = None  # type: ignore[assignment]
    linear_chunk_s: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = valid.reals(OWNER, "fixed_s", self.fixed_s, (None, None)).shape
        if not np.prod(shape):
            raise ValueError(
                f"{OWNER}: fixed_s must hold at least one class and kind, got shape {shape}"
            )
        for field in KIND_TABLES:
            if field in LATER_FIELDS and getattr(self, field) is None:
                _set(self, field, np.zeros(shape))
            _set(self, field, valid.reals(OWNER, field, getattr(self, field), shape))
        n_classes, n_kinds = shape
        lines = valid.reals(OWNER, "collective_s", self.collective_s, (n_classes, n_kinds, 5))
        _set(self, "collective_s", lines)
        _set(self, "tied_bytes", valid.reals(OWNER, "tied_bytes", self.tied_bytes, shape[:1]))
        _set(self, "idle_share", valid.reals(OWNER, "idle_share", self.idle_share, (n_kinds,)))
        if self.idle_share.max() >= 1 and self.expert_s[:, self.idle_share >= 1].any():
            raise ValueError(
                f"{OWNER}: idle_share must be below 1 where there are experts,"
                f" got {self.idle_share.max():g}"
            )
        for field, size, end in (
            ("last_token_only", n_kinds, 1),
            ("block_kind", None, n_kinds - 1),
        ):
            whole = valid.wholes(OWNER, field, getattr(self, field), (size,), maximum=end)
            _set(self, field, whole)
        if not len(self.block_kind):
            raise ValueError(f"{OWNER}: block_kind must hold at least one block, got none")
        ends = self.weight_bytes[:, self.block_kind[[0, -1]]].min(axis=1)
        if (self.tied_bytes > ends).any():
            raise ValueError(
                f"{OWNER}: tied_bytes must be at most the weights of the first and of the last"
                f" block, {ends.tolist()}, got {self.tied_bytes.tolist()}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingLinks:
    """Links from each tier to the next one.

    Attributes
    ----------
    token_s : ndarray, shape (n_tiers - 1, n_cut_kinds)
        Seconds that a token keeps the link busy, if the stage before it ends at a cut.
    cut_kind : ndarray of int, shape (n_blocks + 1,)
        Column of `token_s` of each cut. The first and the last cut are never read: no tokens of
        a model cross a link before its first or behind its last block.
    round_trip_s : ndarray, shape (n_tiers - 1,)
        Latency of both ways.
    entry_s : ndarray, shape (n_tiers - 1,)
        Seconds that a link before the first stage adds to the time to first token: the ids of
        the prompt, and the latency of both ways.
    """

    token_s: Array
    cut_kind: IntArray
    round_trip_s: Array
    entry_s: Array

    def __post_init__(self) -> None:
        n_links, n_kinds = valid.reals(OWNER, "token_s", self.token_s, (None, None)).shape
        for field, shape in (
            ("token_s", (n_links, n_kinds)),
            ("round_trip_s", (n_links,)),
            ("entry_s", (n_links,)),
        ):
            _set(self, field, valid.reals(OWNER, field, getattr(self, field), shape))
        end = max(n_kinds - 1, 0)
        kind = valid.wholes(OWNER, "cut_kind", self.cut_kind, (None,), maximum=end)
        _set(self, "cut_kind", kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Moments of the lengths of requests: p prompt and o output tokens, h tokens held.

    A request holds ``h = p + o`` tokens of KV cache if they are reserved, rounded up to slots.
    If they are paged, it holds ``p + (o + 1) / 2`` on average, rounded up to blocks, and at
    most ``p + o``. E is the mean over requests. If all requests are alike, the weighted moments
    are the plain ones.

    Attributes
    ----------
    prompt_tokens : float
        E[p].
    decode_passes : float
        E[o - 1].
    chunks : float
        Chunks of a prompt, n_c: ceil(p / Q) with at most Q prompt tokens an iteration. If
        lengths differ: max(1, E[p] / Q).
    held_tokens : float
        E[h].
    hold_passes : float
        E[h (o - 1)] / E[h].
    hold_chunks : float
        E[h ceil(p / Q)] / E[h].
    hold_prompt_tokens : float
        E[h p] / E[h].
    resident_tokens : float
        Tokens of KV cache that a node must have room for: the largest p + o.
    alike : bool
        Whether all requests have equal lengths. A node then holds a whole number of them.
    """

    prompt_tokens: float
    decode_passes: float
    chunks: float
    held_tokens: float
    hold_passes: float
    hold_chunks: float
    hold_prompt_tokens: float
    resident_tokens: float
    alike: bool = True

    def __post_init__(self) -> None:
        for field in ("prompt_tokens", "held_tokens", "resident_tokens"):
            _set(self, field, valid.real(OWNER, field, getattr(self, field), strict=True))
        for field in ("chunks", "hold_chunks"):
            _set(self, field, valid.real(OWNER, field, getattr(self, field), minimum=1.0))
        for field in ("decode_passes", "hold_passes", "hold_prompt_tokens"):
            _set(self, field, valid.real(OWNER, field, getattr(self, field)))
        _set(self, "alike", valid.flag(OWNER, "alike", self.alike))
        if self.held_tokens > self.resident_tokens * (1 + 1e-9):
            raise ValueError(
                f"{OWNER}: held_tokens must be at most resident_tokens ="
                f" {self.resident_tokens:g}, got {self.held_tokens:g}"
            )

    @property
    def chunk_tokens(self) -> float:
        """Tokens of a chunk: the mean prompt over the chunks of a prompt."""
        return self.prompt_tokens / self.chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRules:
    """Objective, targets, and the limits of the runtime.

    Attributes
    ----------
    objective : ServingObjective
    batching : Batching
    kv_admission : KvAdmission
        How KV cache is given. The numbers in `Lengths` already depend on it.
    max_num_seqs : int
        Requests that run at once; see `Runtime`.
    max_num_batched_tokens, prompt_limit : int or None
        Tokens, and prompt tokens, of an iteration. None: no limit.
    iteration_s : float
        Seconds on the host that an iteration adds.
    request_s : float
        Seconds of a request outside of iterations, before its first token is delivered.
    ttft_slo_s, tpot_slo_s, latency_slo_s : float or None
        Targets for the mean time to first token, the mean time per output token after it, and
        the mean latency, in seconds. The objective ``throughput`` does not read them.
    users : int or None
        Users of a closed loop, with at most one request each. None: requests arrive by
        themselves.
    think_time_s : float
        Seconds between an answer and the next request of a user.
    allow_empty : bool
        Whether a tier may host no block.
    """

    objective: ServingObjective = ServingObjective.THROUGHPUT
    batching: Batching = Batching.STAGE
    kv_admission: KvAdmission = KvAdmission.RESERVE
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    prompt_limit: int | None = None
    iteration_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    latency_slo_s: float | None = None
    users: int | None = None
    think_time_s: float = 0.0
    allow_empty: bool = False
    request_s: float = 0.0

    def __post_init__(self) -> None:
        for field, kind in (
            ("objective", ServingObjective),
            ("batching", Batching),
            ("kv_admission", KvAdmission),
        ):
            _set(self, field, valid.one_of(OWNER, field, getattr(self, field), kind))
        valid.whole(OWNER, "max_num_seqs", self.max_num_seqs, minimum=1, maximum=MAX_LIMIT)
        for field in ("max_num_batched_tokens", "prompt_limit", "users"):
            if (value := getattr(self, field)) is not None:
                valid.whole(OWNER, field, value, minimum=1, maximum=MAX_LIMIT)
        for field in ("iteration_s", "think_time_s", "request_s"):
            _set(self, field, valid.real(OWNER, field, getattr(self, field)))
        for field in ("ttft_slo_s", "tpot_slo_s", "latency_slo_s"):
            if (value := getattr(self, field)) is not None:
                _set(self, field, valid.real(OWNER, field, value, strict=True))
        _set(self, "allow_empty", valid.flag(OWNER, "allow_empty", self.allow_empty))
        if self.objective is ServingObjective.GOODPUT and not self.has_targets:
            raise ValueError(
                f"{OWNER}: objective goodput needs ttft_slo_s, tpot_slo_s or latency_slo_s,"
                " got none"
            )

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        targets = (self.ttft_slo_s, self.tpot_slo_s, self.latency_slo_s)
        return any(target is not None for target in targets)


def _set(record: Any, field: str, value: Any) -> None:
    object.__setattr__(record, field, value)


def plain_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a record as JSON holds them: arrays as nested lists.

    `LATER_FIELDS` are left out where they are 0.
    """
    return {
        field.name: value.tolist()
        if isinstance(value := getattr(record, field.name), np.ndarray)
        else str(value)
        if isinstance(value, StrEnum)
        else list(value)
        if isinstance(value, tuple)
        else value
        for field in fields(record)
        if field.name not in LATER_FIELDS or np.any(getattr(record, field.name))
    }
