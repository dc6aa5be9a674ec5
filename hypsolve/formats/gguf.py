"""Models from GGUF files: the shape and the true sizes, from the header alone."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve.formats.gguf_header import Header, Tensor, Value, model_name, read_headers
from hypsolve.formats.stored_sizes import (
    Part,
    Weights,
    distinct_kinds,
    in_format,
    with_stored_sizes,
)
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Block, Model

MAX_LAYERS = 10_000
MAX_SIZE = 2**31  # of every other number of a shape
MAX_SHAPES = 64  # of layers in a model

# architecture: the period of its sliding windows. In a period of n layers, all but the last
# have the window; 0: all layers have it; None: no layer has one, which is so for phi3, too,
# though its files name a window (llama.cpp, set_swa_pattern; pull request 13676).
ARCHITECTURES: dict[str, int | None] = {
    "llama": None, "mistral3": None, "qwen2": None, "qwen2moe": None, "qwen3": None,
    "qwen3moe": None, "gpt-oss": 2, "phi2": None, "phi3": None, "gemma": None, "gemma2": 2,
    "gemma3": 6, "command-r": None, "cohere2": 4, "glm4": None, "granite": None, "gpt2": None,
    "gptneox": None, "internlm2": None, "smollm3": None, "stablelm": None, "starcoder2": None,
}  # fmt: skip
"""Architectures that `read_gguf` knows, by ``general.architecture``."""

MODEL_TYPES = {"gptneox": "gpt_neox", "qwen2moe": "qwen2", "qwen3moe": "qwen3"}
"""``model_type`` of an architecture in the files of Hugging Face, where the names differ."""

_LAYER = re.compile(r"blk\.(\d{1,6})\.")
_TABLE, _HEAD = "token_embd.weight", "output.weight"
_EMBEDDING = re.compile(r"(?:token_embd|token_embd_norm|position_embd|token_types|rope_\w+)\.")
_OUTPUT = re.compile(r"output(?:_norm)?\.")
_EXPERT = re.compile(r"_exps\.|\.ffn_(?:gate|up|down)\.\d+\.")  # all in one, or one by one
_GATE = re.compile(r"\.ffn_gate(?!_inp)")  # not the router
_16_BIT = ("F16", "BF16")


def read_gguf(path: Path, *, weights: str | None = None, name: str | None = None) -> Model:
    """Read a model from a GGUF file, or from any shard of one.

    Parameters
    ----------
    path : Path
    weights : str, optional
        Format of the weights, in place of the stored types; a key of `hypsolve.weight_formats`.
    name : str, optional
        Default: name of the file.

    Raises
    ------
    ValueError, TypeError
        If the header is invalid or the architecture is unknown; the message names the file,
        the field, the rule and the value.
    OSError
        If a file does not exist or cannot be read.
    """
    header = read_headers(path)
    with _naming(header.path):
        return _model(header, weights, model_name(path) if name is None else name)


def architecture_of(path: Path) -> str:
    """Return the architecture of a GGUF file by its ``model_type`` in Hugging Face's files."""
    header = read_headers(path)
    with _naming(header.path):
        architecture = _Metadata(header).architecture
    return MODEL_TYPES.get(architecture, architecture)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the path before the message of an error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def _model(header: Header, weights: str | None, name: str) -> Model:
    metadata = _Metadata(header)
    stored, of_layers = _sizes(header, metadata)
    tied = not stored.head.table_bytes
    shapes = metadata.layer_shapes()
    windowed = metadata.windowed_layers()
    names = {tensor.name.split(".", 2)[-1] for tensors in of_layers for tensor in tensors}
    fixed: dict[str, Any] = {
        "n_layers": metadata.n_layers,
        "hidden": metadata.hidden,
        "vocab": stored.embedding.table_rows,
        "gated_ffn": _is_gated(of_layers[0], shapes[0]["ffn"]),
        "fused_qkv": "attn_qkv.weight" in names,
        "tied_embeddings": tied,
        "context_tokens": metadata.whole("context_length", 0, minimum=0),
        "source": f"{metadata.architecture}, header of {header.path.name}",
        "n_experts": metadata.n_experts,
        "experts_per_token": metadata.experts_per_token,
    }
    window = metadata.window_tokens

    def of_shape(form: str) -> Model:
        models: dict[tuple[int, ...], list[Model]] = {}
        for shape in shapes:
            key = tuple(shape.values())
            if key not in models:
                models[key] = [
                    catalog.transformer(
                        name, **fixed, **shape, window_tokens=tokens, weights=form
                    )
                    for tokens in (None, window or None)
                ]
        layers = (
            _with_flops(models[tuple(shape.values())][slides].blocks[i + 1], tensors)
            for i, (shape, slides, tensors) in enumerate(
                zip(shapes, windowed, of_layers, strict=True)
            )
        )
        model = models[tuple(shapes[0].values())][0]
        blocks = (model.blocks[0], *layers, model.blocks[-1])
        return replace(model, blocks=distinct_kinds(blocks))

    form = "fp16" if weights is None else weights
    shaped = of_shape(form)
    if weights is not None and not stored.is_all_16_bit:
        return shaped  # quantised sizes cannot be converted
    as_stored = with_stored_sizes(shaped, stored, tied)
    if not catalog.weight_format(form).extrapolated:
        return as_stored
    return in_format(as_stored, of_shape("fp16"), shaped)


def _with_flops(block: Block, tensors: Sequence[Tensor]) -> Block:
    """Return a layer with the FLOPs of its matrices, shared experts included."""
    always = sum(t.n_weights for t in tensors if len(t.shape) > 1 and not _is_expert(t))
    expert = sum(t.n_weights for t in tensors if _is_expert(t))
    visited = expert * block.experts_per_token // block.n_experts if block.n_experts else 0
    return replace(block, flops_per_token=2.0 * (always + visited))


def _is_expert(tensor: Tensor) -> bool:
    return _EXPERT.search(tensor.name) is not None


def _is_gated(tensors: Sequence[Tensor], ffn: int) -> bool:
    """Return whether a layer has a gate, of its own or as half of ffn_up (Phi-3)."""
    return any(
        _GATE.search(tensor.name)
        or (".ffn_up." in tensor.name and tensor.shape[1:] == (2 * ffn,))
        for tensor in tensors
    )


def _sizes(header: Header, metadata: "_Metadata") -> tuple[Weights, list[list[Tensor]]]:
    """Return the sizes of all blocks, and the tensors of each layer."""
    n_layers = metadata.n_layers
    stored = Weights(header.path, described_by="the metadata")
    stored.layers = [Part() for _ in range(n_layers)]
    of_layers: list[list[Tensor]] = [[] for _ in range(n_layers)]
    bytes_of: dict[str, int] = {}
    for tensor in header.tensors:
        bytes_of[tensor.type] = bytes_of.get(tensor.type, 0) + tensor.n_bytes
        if len(tensor.shape) > 1 and "_inp." not in tensor.name:  # routers stay in 32 bits
            stored.is_all_16_bit &= tensor.type in _16_BIT
        if match := _LAYER.match(tensor.name):
            number = int(match[1])
            if number >= n_layers:
                raise ValueError(
                    f"tensor {tensor.name!r:.60} must belong to a layer below block_count ="
                    f" {n_layers}"
                )
            part = stored.layers[number]
            of_layers[number].append(tensor)
            if _is_expert(tensor):
                part.expert_bytes += metadata.checked_expert(tensor).n_bytes
        else:
            part = _outside_layers(stored, tensor)
        part.n_bytes += tensor.n_bytes
    for number, tensors in enumerate(of_layers):
        if not tensors:
            raise ValueError(f"layer {number} must have tensors, got none")
    if not stored.embedding.table_bytes:
        raise ValueError(f"tensor {_TABLE!r} is missing")
    if stored.embedding.table_columns != metadata.hidden:
        raise ValueError(
            f"tensor {_TABLE!r} must have embedding_length = {metadata.hidden} columns, got"
            f" {stored.embedding.table_columns}"
        )
    stored.is_16_bit = max(bytes_of, key=lambda kind: bytes_of[kind]) in _16_BIT
    return stored, of_layers


def _outside_layers(stored: Weights, tensor: Tensor) -> Part:
    """Return the block of a tensor that belongs to no layer."""
    if tensor.name in (_TABLE, _HEAD):
        if len(tensor.shape) != 2:
            raise ValueError(f"tensor {tensor.name!r} must be a table, got {tensor.shape}")
        part = stored.embedding if tensor.name == _TABLE else stored.head
        part.table_bytes = tensor.n_bytes
        part.table_columns, part.table_rows = tensor.shape
        return part
    if _OUTPUT.match(tensor.name):
        return stored.head
    if _EMBEDDING.match(tensor.name):
        return stored.embedding
    raise ValueError(f"tensor {tensor.name!r:.60} belongs to no block that is known here")


class _Metadata:
    """The numbers of a model's shape."""

    def __init__(self, header: Header) -> None:
        self.values = header.metadata
        architecture = self.values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise ValueError(
                f"general.architecture must be one of {', '.join(ARCHITECTURES)},"
                f" got {architecture!r:.60}"
            )
        self.architecture = architecture
        self.n_layers = self.whole("block_count", maximum=MAX_LAYERS)
        self.hidden = self.whole("embedding_length")
        self.n_experts = self.whole("expert_count", 0, minimum=0)
        self.experts_per_token = self.whole("expert_used_count") if self.n_experts else 0
        self.window_tokens = 0
        if ARCHITECTURES[architecture] is not None:
            self.window_tokens = self.whole("attention.sliding_window", 0, minimum=0)

    def get(self, key: str) -> Value:
        """Return a value of the architecture; None if it is missing."""
        return self.values.get(f"{self.architecture}.{key}")

    def whole(
        self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """Return a whole number."""
        field, value = f"{self.architecture}.{key}", self.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"key {field!r} is missing")
            return default
        return valid.whole("metadata", field, value, minimum=minimum, maximum=maximum)

    def per_layer(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]:
        """Return a whole number for each layer: an array, or one number for all."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, tuple):
            return [self.whole(key)] * self.n_layers
        field = f"{self.architecture}.{key}"
        return [
            valid.whole("metadata", field, each, minimum=1, maximum=MAX_SIZE)
            for each in self._for_all_layers(key, value)
        ]

    def _for_all_layers(self, key: str, values: Sequence[Any]) -> Sequence[Any]:
        if len(values) != self.n_layers:
            raise ValueError(
                f"metadata: {self.architecture}.{key} must have an entry for each of the"
                f" {self.n_layers} layers, got {len(values)}"
            )
        return values

    def checked_expert(self, tensor: Tensor) -> Tensor:
        """Return a tensor of experts, which must be as many as the metadata says."""
        n_experts = tensor.shape[2] if len(tensor.shape) > 2 else self.n_experts
        if not self.n_experts or n_experts != self.n_experts:
            raise ValueError(
                f"tensor {tensor.name!r:.60} must have expert_count = {self.n_experts} experts,"
                f" got {tensor.shape}"
            )
        return tensor

    def layer_shapes(self) -> list[dict[str, Any]]:
        """Return heads, KV heads, head dimension and feed-forward size of each layer."""
        heads = self.per_layer("attention.head_count")
        kv_heads = self.per_layer("attention.head_count_kv", heads)
        own = self.get("expert_feed_forward_length") is not None
        ffn = self.per_layer("expert_feed_forward_length" if own else "feed_forward_length")
        shapes = [
            {"n_heads": h, "n_kv_heads": k, "head_dim": self._head_dim(h), "ffn": f}
            for h, k, f in zip(heads, kv_heads, ffn, strict=True)
        ]
        n_shapes = len({tuple(shape.values()) for shape in shapes})
        if n_shapes > MAX_SHAPES:
            raise ValueError(f"layers must have at most {MAX_SHAPES} shapes, got {n_shapes}")
        return shapes

    def _head_dim(self, n_heads: int) -> int:
        key = "attention.key_length"
        if self.get(key) is None and self.hidden % n_heads:
            raise ValueError(
                f"metadata: {self.architecture}.embedding_length must be a multiple of"
                f" attention.head_count = {n_heads}, got {self.hidden}"
            )
        head_dim = self.whole(key, max(self.hidden // n_heads, 1))
        if (value_dim := self.whole("attention.value_length", head_dim)) != head_dim:
            raise ValueError(
                f"metadata: {self.architecture}.attention.value_length must be key_length ="
                f" {head_dim} (no other is known here), got {value_dim}"
            )
        return head_dim

    def windowed_layers(self) -> Sequence[bool]:
        """Return for each layer whether it has the sliding window."""
        period = ARCHITECTURES[self.architecture]
        if not self.window_tokens or period is None:
            return [False] * self.n_layers
        key = "attention.sliding_window_pattern"
        pattern = self.get(key)
        if isinstance(pattern, tuple):
            return [bool(each) for each in self._for_all_layers(key, pattern)]
        period = self.whole(key, period, minimum=0)
        return [period == 0 or i % period < period - 1 for i in range(self.n_layers)]
