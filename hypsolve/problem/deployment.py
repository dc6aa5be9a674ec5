"""Inputs of a deployment: a model, a network of GPUs, and the requests to serve."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.runtime import IDEAL, Runtime
from hypsolve.problem.units import count, show_bytes

MAX_TOKENS = 2**40  # in one prompt or output


class CostModel(StrEnum):
    """Formula for the time of a block: the measured roofline, or the paper's f / C.

    See `hypsolve.problem.costs.step_s`.
    """

    ROOFLINE = "roofline"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The smallest part of a model that can be placed: the embedding, a layer, or the head.

    Parameters
    ----------
    kind : str
        Name of the kind. Blocks of one kind are equal.
    weight_bytes : int
        Memory of the weights.
    always_read_bytes : int
        Weights read in every step, whatever the number of tokens.
    gathered_bytes_per_token : int
        Weights read per token: one row of an embedding table.
    expert_bytes, n_experts, experts_per_token : int
        Mixture-of-experts layer: size of an expert, number of experts, experts per token.
    kv_bytes_per_token : int
        KV cache per resident token.
    activation_bytes_per_token : int
        Activations read and written per token in a step.
    output_bytes_per_token : int
        Bytes sent to the next block per token.
    flops_per_token : float
        FLOPs of the linear part, 2 per multiply-add.
    attention_flops_per_pair : float
        FLOPs per pair of a token and a context token.
    window_tokens : int or None
        Sliding attention window; None means the whole context.
    last_token_only : bool
        Whether prefill computes the last position alone, as the head does.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the block, the field, the rule and the value.
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
            valid.whole(owner, field, getattr(self, field), maximum=valid.LARGEST)
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

    `hypsolve.model` returns a model of the catalogue, `hypsolve.read_model` reads one from
    Hugging Face files.

    Attributes
    ----------
    name : str
    blocks : tuple of Block
        Embedding, layers, head: a model of n layers has n + 2 blocks.
    input_bytes_per_token : int
        Bytes that enter the first block per token (a token id).
    tied_bytes : int
        Weights that the first and last block share: a stage of all blocks holds them once.
    extrapolated : bool
        Whether costs go beyond measurements.
    source : str
        Origin of the shape.
    context_tokens : int
        Longest sequence that the model was made for; 0 if unknown.
    n_blocks, n_layers : int
        Number of blocks; number of blocks without embedding and head.
    weight_bytes : int
        Sum of the weights of all blocks.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the model, the field, the rule and the value.
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
        for field in ("input_bytes_per_token", "tied_bytes"):
            valid.whole(owner, field, getattr(self, field), maximum=valid.LARGEST)
        valid.whole(owner, "context_tokens", self.context_tokens)
        valid.flag(owner, "extrapolated", self.extrapolated)
        first_kind: dict[str, Block] = {}
        for block in self.blocks:
            if first_kind.setdefault(block.kind, block) != block:
                raise ValueError(
                    f"{owner}: blocks of kind {block.kind!r} must be equal, got two"
                )

    def __repr__(self) -> str:
        layers = f" ({count(self.n_layers, 'layer')})" if self.n_layers else ""
        blocks = count(self.n_blocks, "block") + layers
        return f"<Model {self.name}, {blocks}, {show_bytes(self.weight_bytes)}>"

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_layers(self) -> int:
        """Number of layers: the blocks without embedding and head."""
        return max(self.n_blocks - 2, 0)

    @property
    def weight_bytes(self) -> int:
        """Sum of the weights of all blocks, with shared weights counted twice."""
        return sum(block.weight_bytes for block in self.blocks)

    def stage_weight_bytes(self, blocks: Sequence[Block]) -> int:
        """Return the weights of some blocks on one node; all blocks share `tied_bytes`."""
        tied_bytes = self.tied_bytes if len(blocks) == self.n_blocks else 0
        return sum(block.weight_bytes for block in blocks) - tied_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """Speed and memory of a GPU.

    A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` seconds in a step.
    `hypsolve.gpu` returns a profile of the catalogue.

    Attributes
    ----------
    name : str
    t0_s : float
        Fixed time of a block in each step, in seconds.
    flops_per_s, bytes_per_s : float
        Compute rate and memory bandwidth that blocks reach.
    memory_bytes : float
    power_w : float
        Board power in watts; 0 if unknown.
    tier : str
        Where the catalogue expects the GPU: ``edge``, ``fog`` or ``cloud``.
    basis : str
        Origin of the three speeds: ``fitted`` to measured block times, ``datasheet`` values
        times measured shares, or ``user``.
    source : str
        Origin of the numbers, in words.
    visible_bytes : float or None
        Memory that CUDA shows to a server, which is less than `memory_bytes`: error correction
        and the driver take a part. None: all.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the GPU, the field, the rule and the value.
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
    visible_bytes: float | None = None

    def __post_init__(self) -> None:
        owner = f"gpu {valid.text('gpu', 'name', self.name)!r}"
        valid.real(owner, "t0_s", self.t0_s)
        for field in ("flops_per_s", "bytes_per_s", "memory_bytes"):
            valid.real(owner, field, getattr(self, field), strict=True)
        valid.real(owner, "power_w", self.power_w)
        if self.visible_bytes is not None:
            valid.real(owner, "visible_bytes", self.visible_bytes, strict=True)
            if self.visible_bytes > self.memory_bytes:
                raise ValueError(
                    f"{owner}: visible_bytes must be at most memory_bytes ="
                    f" {self.memory_bytes!r}, got {self.visible_bytes!r}"
                )

    @property
    def hidden_bytes(self) -> float:
        """Memory that the card has and CUDA does not show."""
        return 0.0 if self.visible_bytes is None else self.memory_bytes - self.visible_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link from one tier to the next.

    Attributes
    ----------
    bytes_per_s : float
        Rate of the link.
    latency_s : float
        One-way latency.
    return_latency_s : float or None
        Latency of the way back; None means `latency_s`.
    round_trip_s : float
        Sum of both latencies.
    """

    bytes_per_s: float
    latency_s: float
    return_latency_s: float | None = None

    def __post_init__(self) -> None:
        valid.real("link", "bytes_per_s", self.bytes_per_s, strict=True)
        valid.real("link", "latency_s", self.latency_s)
        if self.return_latency_s is not None:
            valid.real("link", "return_latency_s", self.return_latency_s)

    @property
    def round_trip_s(self) -> float:
        """Sum of the latency and the return latency."""
        back = self.latency_s if self.return_latency_s is None else self.return_latency_s
        return self.latency_s + back


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine with one GPU.

    Attributes
    ----------
    name : str
    gpu : GpuProfile
    memory_bytes : float or None
        Memory of the node; None means the memory of its GPU.
    reserved_bytes : float
        Part of the memory that others use: the system, other programs. The runtime's own use
        is a matter of `Runtime`.
    host : str
        Machine that the GPU is in, as other machines reach it. Nodes of one host share it.
        Default: empty, which means that the node is a host of its own.
    card : int or None
        Number of the GPU in its host, from 0. None: its place among the nodes of the host.
    usable_bytes : float
        The memory less the reserved part.
    """

    name: str
    gpu: GpuProfile
    memory_bytes: float | None = None
    reserved_bytes: float = 0.0
    host: str = ""
    card: int | None = None

    def __post_init__(self) -> None:
        owner = f"node {valid.name('node', self.name)!r}"
        valid.of_type(owner, "gpu", self.gpu, GpuProfile, " (hypsolve.gpu(name) gives one)")
        if self.memory_bytes is not None:
            valid.real(owner, "memory_bytes", self.memory_bytes, strict=True)
        reserved = valid.real(owner, "reserved_bytes", self.reserved_bytes)
        if self.host != "" and not valid.text(owner, "host", self.host).isprintable():
            raise ValueError(f"{owner}: host must be printable, got {self.host!r:.60}")
        if self.card is not None:
            valid.whole(owner, "card", self.card)
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        if reserved >= memory:
            raise ValueError(
                f"{owner}: reserved_bytes must be below memory_bytes = {memory:g},"
                f" got {reserved:g}"
            )

    @property
    def usable_bytes(self) -> float:
        """The memory less the reserved part."""
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        return memory - self.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the network: nodes that hold equal blocks and share the requests.

    Attributes
    ----------
    name : str
    nodes : tuple of Node
    link : Link or None
        Link to the next tier; None on the last tier.
    """

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
    """A chain of tiers.

    Attributes
    ----------
    name : str
    tiers : tuple of Tier
        Tiers in the order that a request visits them.

    Raises
    ------
    ValueError
        If a tier but the last has no link, the last has one, or two names are equal, or two
        nodes are one card of a host.

    Examples
    --------
    >>> import hypsolve as hs
    >>> desk = hs.Tier(
    ...     name="desk",
    ...     nodes=(hs.Node(name="desk", gpu=hs.gpu("l4")),),
    ...     link=hs.Link(bytes_per_s=125e6, latency_s=2e-3),
    ... )
    >>> rack = hs.Tier(name="rack", nodes=(hs.Node(name="rack", gpu=hs.gpu("a100-80gb")),))
    >>> hs.Network(name="lab", tiers=(desk, rack))
    <Network lab, nodes of each tier: desk (1), rack (1)>
    """

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
        _distinct(owner, "tier names", names)
        nodes = [node for tier in self.tiers for node in tier.nodes]
        _distinct(owner, "node names", [node.name for node in nodes])
        numbered = [node for node in nodes if node.host and node.card is not None]
        _distinct(owner, "cards", [f"{node.card} of host {node.host}" for node in numbered])

    def __repr__(self) -> str:
        tiers = ", ".join(f"{tier.name} ({len(tier.nodes)})" for tier in self.tiers)
        return f"<Network {self.name}, nodes of each tier: {tiers}>"


def _distinct(owner: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{owner}: {what} must be distinct, got {name!r} twice")
        seen.add(name)


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes
    ----------
    arrival_s : float
        Seconds from time 0.
    prompt_tokens, output_tokens : int
        Tokens of the prompt, and tokens to generate.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests as arrays.

    Attributes
    ----------
    arrival_s : ndarray, shape (n_requests,)
        Seconds from time 0, in any order.
    prompt_tokens, output_tokens : ndarray of int, shape (n_requests,)
        Tokens of each prompt, and tokens to generate; from 1 to 2**40.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> requests = Requests.of([Request(0.0, 120, 40), Request(0.5, 900, 10)])
    >>> len(requests), requests.prompt_tokens
    (2, array([120, 900]))
    """

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
        """Return the arrays of single requests."""
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
    """A model on a network under requests; `hypsolve.to_instance` compiles it.

    Attributes
    ----------
    model : Model
    network : Network
    requests : Requests
    cost_model : CostModel
        ``roofline`` or ``flops``.
    max_resident_tokens : int
        Tokens for which a node reserves KV cache in every block that it holds. Default: the
        largest sum of prompt and output.
    runtime : Runtime
        The serving runtime: its own use of memory is not free for weights and KV cache, and its
        limits are the defaults of `hypsolve.simulate`. Default: ``ideal``.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.
    """

    model: Model
    network: Network
    requests: Requests
    cost_model: CostModel = CostModel.ROOFLINE
    max_resident_tokens: int | None = None
    runtime: Runtime = IDEAL

    def __post_init__(self) -> None:
        by_name = " (hypsolve.model(name) gives one)"
        valid.of_type("deployment", "model", self.model, Model, by_name)
        valid.of_type("deployment", "network", self.network, Network)
        valid.of_type("deployment", "requests", self.requests, Requests)
        by_name = " (hypsolve.runtime(name) gives one)"
        valid.of_type("deployment", "runtime", self.runtime, Runtime, by_name)
        cost_model = valid.one_of("deployment", "cost_model", self.cost_model, CostModel)
        object.__setattr__(self, "cost_model", cost_model)
        longest = self.runtime.held_tokens(
            int((self.requests.prompt_tokens + self.requests.output_tokens).max())
        )
        if self.max_resident_tokens is None:
            object.__setattr__(self, "max_resident_tokens", longest)
        elif (
            valid.whole("deployment", "max_resident_tokens", self.max_resident_tokens) < longest
        ):
            raise ValueError(
                f"deployment: max_resident_tokens must be at least {longest}, the longest"
                f" request's prompt + output{self._rounded()}, got {self.max_resident_tokens}"
            )

    def _rounded(self) -> str:
        slot = self.runtime.held_tokens(1)
        return f" (in multiples of {slot})" if slot > 1 else ""

    def usable_bytes(self, node: Node) -> float:
        """Return a node's memory for weights and KV cache under the runtime."""
        return self.runtime.usable_bytes(node, self.model)

    def __repr__(self) -> str:
        return (
            f"<Deployment of {self.model.name} on {self.network.name},"
            f" {count(len(self.requests), 'request')}, cost model {self.cost_model}>"
        )
