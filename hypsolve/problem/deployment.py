"""What a user has: a model, a network of GPUs, and the requests to serve."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid

MAX_TOKENS = 2**40  # of one prompt or output


class CostModel(StrEnum):
    """How a block's FLOPs and bytes become seconds: measured roofline, or the paper's f / C."""

    ROOFLINE = "roofline"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The smallest part of a model that can be placed: embedding, one layer, or the head.

    Parameters
    ----------
    kind : str
        Name of the kind; blocks of one kind cost the same.
    weight_bytes : int
        Held in memory.
    always_read_bytes : int
        Weights streamed in every step, whatever the number of tokens.
    gathered_bytes_per_token : int
        Weights read per token: one row of an embedding table.
    expert_bytes, n_experts, experts_per_token : int
        One expert of a mixture-of-experts layer, how many there are, how many a token visits.
    kv_bytes_per_token : int
        KV cache kept per resident token.
    activation_bytes_per_token : int
        Activations read and written in a step.
    output_bytes_per_token : int
        Sent to the next block.
    flops_per_token : float
        Linear part, 2 per multiply-add.
    attention_flops_per_pair : float
        Per (token, context token) pair.
    window_tokens : int or None
        Sliding attention window; None: the whole context.
    last_token_only : bool
        In prefill one position is computed (the head).
    """

    kind: str
    weight_bytes: int
    always_read_bytes: int = 0
    gathered_bytes_per_token: int = 0
    expert_bytes: int = 0
    n_experts: int = 0
    experts_per_token: int = 0
    kv_bytes_per_token: int = 0
    activation_bytes_per_token: int = 0
    output_bytes_per_token: int = 0
    flops_per_token: float = 0.0
    attention_flops_per_pair: float = 0.0
    window_tokens: int | None = None
    last_token_only: bool = False

    def __post_init__(self) -> None:
        owner = f"block {valid.text('block', 'kind', self.kind)!r}"
        for field in (
            "weight_bytes",
            "always_read_bytes",
            "gathered_bytes_per_token",
            "expert_bytes",
            "n_experts",
            "experts_per_token",
            "kv_bytes_per_token",
            "activation_bytes_per_token",
            "output_bytes_per_token",
        ):
            valid.whole(owner, field, getattr(self, field))
        valid.real(owner, "flops_per_token", self.flops_per_token)
        valid.real(owner, "attention_flops_per_pair", self.attention_flops_per_pair)
        if self.window_tokens is not None:
            valid.whole(owner, "window_tokens", self.window_tokens, minimum=1)
        valid.flag(owner, "last_token_only", self.last_token_only)
        if self.experts_per_token > self.n_experts:
            raise ValueError(
                f"{owner}: experts_per_token must be at most n_experts = {self.n_experts},"
                f" got {self.experts_per_token}"
            )
        if self.always_read_bytes + self.n_experts * self.expert_bytes > self.weight_bytes:
            raise ValueError(
                f"{owner}: always_read_bytes + n_experts * expert_bytes must be at most"
                f" weight_bytes = {self.weight_bytes}, got"
                f" {self.always_read_bytes + self.n_experts * self.expert_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Model:
    """An LLM as a chain of blocks.

    ``tied_bytes`` are counted once, not twice, where one stage holds all blocks (an embedding
    table that is also the head). ``extrapolated`` marks costs beyond what was measured;
    ``source`` says where the shape comes from. ``context_tokens`` is the longest sequence that
    it was made for; 0: not known.
    """

    name: str
    blocks: tuple[Block, ...]
    input_bytes_per_token: int = 4  # token ids
    tied_bytes: int = 0
    extrapolated: bool = False
    source: str = ""
    context_tokens: int = 0

    def __post_init__(self) -> None:
        owner = f"model {valid.text('model', 'name', self.name)!r}"
        object.__setattr__(self, "blocks", valid.some(owner, "blocks", self.blocks, Block))
        valid.whole(owner, "input_bytes_per_token", self.input_bytes_per_token)
        valid.whole(owner, "tied_bytes", self.tied_bytes)
        valid.whole(owner, "context_tokens", self.context_tokens)
        valid.flag(owner, "extrapolated", self.extrapolated)
        first_kind: dict[str, Block] = {}
        for block in self.blocks:
            if first_kind.setdefault(block.kind, block) != block:
                raise ValueError(
                    f"{owner}: blocks of kind {block.kind!r} must be equal, got two"
                )

    def __repr__(self) -> str:
        return f"<Model {self.name}, {self.n_blocks} blocks, {self.weight_bytes / 1e9:.4g} GB>"

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def weight_bytes(self) -> int:
        """Weights of all blocks when placed apart."""
        return sum(block.weight_bytes for block in self.blocks)

    def stage_weight_bytes(self, blocks: Sequence[Block]) -> int:
        """Weights of some of the blocks on one node; of all, ``tied_bytes`` less."""
        tied_bytes = self.tied_bytes if len(blocks) == self.n_blocks else 0
        return sum(block.weight_bytes for block in blocks) - tied_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """What a GPU does: ``t = t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` per block.

    ``basis`` says where the three numbers come from: ``fitted`` to measured block times,
    ``datasheet`` times measured shares, or the ``user``; ``source`` says it in words.
    """

    name: str
    t0_s: float
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float
    power_w: float = 0.0
    tier: str = ""
    basis: str = "user"
    source: str = ""

    def __post_init__(self) -> None:
        owner = f"gpu {valid.text('gpu', 'name', self.name)!r}"
        valid.real(owner, "t0_s", self.t0_s)
        for field in ("flops_per_s", "bytes_per_s", "memory_bytes"):
            valid.real(owner, field, getattr(self, field), strict=True)
        valid.real(owner, "power_w", self.power_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From one tier to the next: rate, one-way latency, and latency of the way back."""

    bytes_per_s: float
    latency_s: float
    return_latency_s: float | None = None  # None: the same

    def __post_init__(self) -> None:
        valid.real("link", "bytes_per_s", self.bytes_per_s, strict=True)
        valid.real("link", "latency_s", self.latency_s)
        if self.return_latency_s is not None:
            valid.real("link", "return_latency_s", self.return_latency_s)

    @property
    def round_trip_s(self) -> float:
        """Latency forward and back."""
        back = self.latency_s if self.return_latency_s is None else self.return_latency_s
        return self.latency_s + back


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine: a GPU profile and the memory usable for weights and KV cache."""

    name: str
    gpu: GpuProfile
    memory_bytes: float | None = None  # None: what the GPU has
    reserved_bytes: float = 0.0  # runtime, activations

    def __post_init__(self) -> None:
        owner = f"node {valid.name('node', self.name)!r}"
        valid.of_type(owner, "gpu", self.gpu, GpuProfile, " (hypsolve.gpu(name) gives one)")
        if self.memory_bytes is not None:
            valid.real(owner, "memory_bytes", self.memory_bytes, strict=True)
        reserved = valid.real(owner, "reserved_bytes", self.reserved_bytes)
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        if reserved >= memory:
            raise ValueError(
                f"{owner}: reserved_bytes must be below memory_bytes = {memory:g},"
                f" got {reserved:g}"
            )

    @property
    def usable_bytes(self) -> float:
        """Memory less what is reserved."""
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        return memory - self.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the network, and the link to the next one (None on the last)."""

    name: str
    nodes: tuple[Node, ...]
    link: Link | None = None

    def __post_init__(self) -> None:
        owner = f"tier {valid.name('tier', self.name)!r}"
        object.__setattr__(self, "nodes", valid.some(owner, "nodes", self.nodes, Node))
        if self.link is not None and not isinstance(self.link, Link):
            raise TypeError(f"{owner}: link must be a Link or None, got {self.link!r:.60}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Network:
    """Tiers in path order, request side first."""

    name: str
    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        owner = f"network {valid.text('network', 'name', self.name)!r}"
        object.__setattr__(self, "tiers", valid.some(owner, "tiers", self.tiers, Tier))
        for tier in self.tiers[:-1]:
            if tier.link is None:
                raise ValueError(f"{owner}: tier {tier.name!r} needs a link to the next tier")
        if self.tiers[-1].link is not None:
            raise ValueError(
                f"{owner}: the last tier {self.tiers[-1].name!r} must have no link"
            )
        names = [tier.name for tier in self.tiers]
        _distinct(owner, "tier", names)
        _distinct(owner, "node", [node.name for tier in self.tiers for node in tier.nodes])

    def __repr__(self) -> str:
        tiers = ", ".join(f"{tier.name} ({len(tier.nodes)})" for tier in self.tiers)
        return f"<Network {self.name}, nodes of each tier: {tiers}>"


def _distinct(owner: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{owner}: {what} names must be distinct, got {name!r} twice")
        seen.add(name)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it arrives, the tokens of its prompt, the tokens it is to produce."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Many requests as arrays, each of shape (n_requests,)."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        arrival_s = valid.reals("requests", "arrival_s", self.arrival_s, (None,))
        object.__setattr__(self, "arrival_s", arrival_s)
        if not arrival_s.size:
            raise ValueError("requests: arrival_s must hold at least one request, got none")
        for field in ("prompt_tokens", "output_tokens"):
            tokens = valid.reals("requests", field, getattr(self, field), arrival_s.shape)
            if (tokens % 1).any() or tokens.min() < 1 or tokens.max() > MAX_TOKENS:
                wrong = tokens[(tokens % 1 != 0) | (tokens < 1) | (tokens > MAX_TOKENS)][0]
                raise ValueError(
                    f"requests: {field} must be whole numbers from 1 to 2**40,"
                    f" got {float(wrong)!r}"
                )
            whole = tokens.astype(np.int64)
            whole.setflags(write=False)
            object.__setattr__(self, field, whole)

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Requests":
        """Gather single requests."""
        rows = list(requests)
        for r, row in enumerate(rows):
            valid.of_type("requests", f"request {r}", row, Request)
        return cls(
            np.array([r.arrival_s for r in rows]),
            np.array([r.prompt_tokens for r in rows]),
            np.array([r.output_tokens for r in rows]),
        )

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Deployment:
    """A model on a network under requests: what `hypsolve.problem.costs.to_instance` compiles.

    ``max_resident_tokens`` (default: the largest prompt + output) is what a node reserves KV
    cache for, in every block it holds.
    """

    model: Model
    network: Network
    requests: Requests
    cost_model: CostModel = CostModel.ROOFLINE
    max_resident_tokens: int | None = None

    def __post_init__(self) -> None:
        by_name = " (hypsolve.model(name) gives one)"
        valid.of_type("deployment", "model", self.model, Model, by_name)
        valid.of_type("deployment", "network", self.network, Network)
        valid.of_type("deployment", "requests", self.requests, Requests)
        cost_model = valid.one_of("deployment", "cost_model", self.cost_model, CostModel)
        object.__setattr__(self, "cost_model", cost_model)
        longest = int((self.requests.prompt_tokens + self.requests.output_tokens).max())
        if self.max_resident_tokens is None:
            object.__setattr__(self, "max_resident_tokens", longest)
        elif (
            valid.whole("deployment", "max_resident_tokens", self.max_resident_tokens) < longest
        ):
            raise ValueError(
                f"deployment: max_resident_tokens must be at least {longest}, the longest"
                f" request's prompt + output, got {self.max_resident_tokens}"
            )

    def __repr__(self) -> str:
        return (
            f"<Deployment of {self.model.name} on {self.network.name},"
            f" {len(self.requests)} requests, cost model {self.cost_model}>"
        )
