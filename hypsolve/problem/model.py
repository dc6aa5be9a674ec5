"""`Model`: an LLM as a chain of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypsolve.problem import validation as valid
from hypsolve.problem.units import count, show_bytes


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
    collectives, collective_bytes_per_token : int
        Under tensor parallelism: all-reduces of a step, and their bytes per computed token.

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
    collectives: int = 0
    collective_bytes_per_token: int = 0

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
            "collectives",
            "collective_bytes_per_token",
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
    n_heads, n_kv_heads : int
        Attention heads, and heads of the KV cache; 0 if unknown. Tensor parallelism divides
        them among GPUs.
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
    n_heads: int = 0
    n_kv_heads: int = 0

    def __post_init__(self) -> None:
        owner = f"model {valid.text('model', 'name', self.name)!r}"
        object.__setattr__(self, "blocks", valid.some(owner, "blocks", self.blocks, Block))
        for field in ("input_bytes_per_token", "tied_bytes"):
            valid.whole(owner, field, getattr(self, field), maximum=valid.LARGEST)
        for field in ("context_tokens", "n_heads", "n_kv_heads"):
            valid.whole(owner, field, getattr(self, field))
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
