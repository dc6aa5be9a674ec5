"""Shapes of transformer blocks, and the steps of them that are measured.

A step is a prefill of prompts or a decode of one token per sequence. The grid of steps crosses
phase, batch, tokens and context. Two shapes at least are measured: with a single shape, the
fixed time of a block cannot be told from the time in which its weights are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hypsolve import catalog
from hypsolve.problem import costs
from hypsolve.problem import validation as valid
from hypsolve.problem.model import Block

FIELDS = ("hidden", "n_heads", "n_kv_heads", "head_dim", "ffn")
MAX_SIZE = 2**20  # of each number of a shape
DEFAULT_SHAPES = {
    "cpu": ("llama-3.2-1b", "896:14:2:64:4864:qwen2.5-0.5b"),
    "mps": ("llama-3.2-1b", "llama-3.2-3b"),
    "cuda": ("llama-3-8b", "phi-3-medium", "llama-3.2-1b"),
}
"""Shapes that are measured by default, by the type of the device."""
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Shape of a transformer block with grouped-query attention and a gated MLP.

    Attributes
    ----------
    name : str
    hidden, n_heads, n_kv_heads, head_dim, ffn : int
        As in the config.json of a model.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the shape, the field, the rule and the value.

    Examples
    --------
    >>> shape = BlockShape("llama-3-8b", 4096, 32, 8, 128, 14336)
    >>> shape.n_weights
    218103808
    """

    name: str
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int

    def __post_init__(self) -> None:
        owner = f"shape {valid.text('shape', 'name', self.name)!r}"
        for field in FIELDS:
            valid.whole(owner, field, getattr(self, field), minimum=1, maximum=MAX_SIZE)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{owner}: n_heads must be a multiple of n_kv_heads = {self.n_kv_heads},"
                f" got {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"{owner}: head_dim must be even, got {self.head_dim}")

    @property
    def n_weights(self) -> int:
        """Weights of the matrices of a block."""
        attention = 2 * self.hidden * (self.n_heads + self.n_kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.ffn

    def block(self) -> Block:
        """Return the block as the cost model sees it, with 2 bytes per number."""
        numbers = {field: getattr(self, field) for field in FIELDS}
        return catalog.transformer(self.name, n_layers=1, vocab=1, **numbers).blocks[1]


def read_shape(text: str) -> BlockShape:
    """Return a shape by the name of a model of the catalogue, or by its numbers.

    Parameters
    ----------
    text : str
        Such as ``llama-3-8b``, or hidden size, heads, KV heads, head dimension and size of the
        MLP, as in ``4096:32:8:128:14336``.

    Raises
    ------
    ValueError
        If the name is unknown, if its blocks are not of this kind, or if a number is invalid.

    Examples
    --------
    >>> read_shape("llama-3-8b") == read_shape("4096:32:8:128:14336:llama-3-8b")
    True
    """
    parts = text.split(":")
    if len(parts) in (len(FIELDS), len(FIELDS) + 1):
        numbers = [_whole(text, *pair) for pair in zip(FIELDS, parts, strict=False)]
        name = parts[len(FIELDS)] if len(parts) > len(FIELDS) else "x".join(parts)
        return BlockShape(name, *numbers)
    shape = catalog.shape(text)
    if shape.get("n_experts") or not shape.get("gated_ffn", True):
        raise ValueError(
            f"shape {text!r}: must have a gated MLP without experts; choose another model, or"
            f" give {':'.join(FIELDS)}"
        )
    return BlockShape(text, *(shape[field] for field in FIELDS))


def _whole(owner: str, field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"shape {owner!r}: {field} must be a whole number, got {text!r:.60}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a block: `tokens` of each of `batch` sequences.

    Attributes
    ----------
    phase : str
        ``prefill`` or ``decode``.
    batch : int
        Sequences.
    tokens : int
        Tokens computed per sequence; 1 in a decode step.
    context : int
        Tokens per sequence that are cached before a prefill step; or that a decode step reads,
        its own included.
    """

    phase: str
    batch: int
    tokens: int
    context: int

    @property
    def cached(self) -> int:
        """Tokens per sequence that are cached before the step."""
        return self.context - 1 if self.phase == DECODE else self.context

    def describe(self) -> str:
        """Describe the step in a few words."""
        what = f"{self.tokens} tokens" if self.phase == PREFILL else "1 token"
        return f"{self.phase} of {self.batch} x {what}, context {self.context}"

    def work(self, shape: BlockShape, element_bytes: int) -> tuple[float, float]:
        """Return the FLOPs and the bytes of one block, as the cost model counts them."""
        flops, moved = costs.step_work(shape.block(), self.tokens, self.cached, self.batch)
        return float(flops), float(moved) * element_bytes / catalog.ACTIVATION_BYTES


def need_bytes(shape: BlockShape, step: Step, n_layers: int, element_bytes: int) -> int:
    """Return the memory that a step needs: weights, KV caches, and activations of one layer.

    The activations are those of the largest moment in a layer: input, queries, keys and values
    before and after the rotary embedding, and the result of attention; or input and the arrays
    of the MLP. Steps of several tokens add the mask of their attention in two types, and
    devices may expand keys and values to all heads.
    """
    heads = shape.n_heads * shape.head_dim
    held = step.cached + step.tokens
    kv = 2 * step.batch * held * shape.n_kv_heads * shape.head_dim
    tokens = step.batch * step.tokens
    attention = 3 * shape.hidden + 6 * heads + 4 * shape.n_kv_heads * shape.head_dim
    mlp = 2 * shape.hidden + 4 * shape.ffn
    numbers = n_layers * (shape.n_weights + kv) + tokens * max(attention, mlp)
    if step.tokens > 1:
        numbers += 2 * step.batch * held * heads + 2 * step.tokens * held
    return numbers * element_bytes


FULL = {
    PREFILL: [
        *((1, tokens, 0) for tokens in (16, 64, 128, 256, 512, 1024, 2048)),
        *((4, tokens, 0) for tokens in (64, 256)),
        *((1, tokens, context) for tokens in (128, 512) for context in (512, 2048)),
    ],
    DECODE: list(itertools.product((1, 2, 4, 8, 16, 32, 64), (1,), (128, 512, 2048, 8192))),
}
QUICK = {
    PREFILL: [(1, 16, 0), (1, 64, 0), (1, 256, 0), (4, 32, 0), (1, 128, 512)],
    DECODE: [
        (1, 1, 128), (8, 1, 128), (1, 1, 2048), (4, 1, 1024), (8, 1, 512), (8, 1, 2048),
        (16, 1, 256),
    ],
}  # fmt: skip
"""Steps as batch, tokens and context, by phase; the most telling come first."""


def grid(quick: bool) -> list[Step]:
    """Return the steps to measure, phases in turn, so that a cut-off leaves some of both.

    Examples
    --------
    >>> [step.phase for step in grid(quick=True)[:3]]
    ['prefill', 'decode', 'prefill']
    """
    of_phase = QUICK if quick else FULL
    lists: Sequence[list[Step]] = [
        [Step(phase, *numbers) for numbers in of_phase[phase]] for phase in (PREFILL, DECODE)
    ]
    rows = itertools.zip_longest(*lists)
    return [step for row in rows for step in row if step is not None]
