"""Catalogue of GPUs, LLMs, runtimes and formats of weights, each number with its source.

The tables are ``gpus.toml``, ``cards.toml``, ``models.toml``, ``runtimes.toml`` and
``weights.toml``.

>>> from hypsolve import catalog
>>> catalog.gpu("a100-80gb").basis
'fitted'
>>> catalog.model("llama-3-8b").n_blocks
34
"""

import functools
import tomllib
from collections.abc import Iterable
from dataclasses import fields, replace
from importlib import resources
from typing import Any

from hypsolve.catalog.nearest import unknown_gpu
from hypsolve.catalog.weights import (
    WeightFormat,
    held_bytes,
    weight_format,
    weight_formats,
    weights_choices,
)
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Block, GpuProfile, Model
from hypsolve.problem.runtime import Batching, Runtime
from hypsolve.problem.units import GIB

__all__ = [
    "ACTIVATION_BYTES",
    "WeightFormat",
    "gpu",
    "gpus",
    "model",
    "models",
    "name_of",
    "runtime",
    "runtimes",
    "shape",
    "transformer",
    "weight_format",
    "weight_formats",
    "weights_choices",
]

ACTIVATION_BYTES = 2  # activations and KV cache are fp16 for all weight formats
MIN_SHARE = 0.05  # of the memory, where a server reserves more than a small GPU has
MAX_LAYERS = 2**20
MAX_SIZE = 2**40  # of every other number of a shape: FLOPs and bytes stay finite


@functools.cache
def _table(file: str) -> dict[str, dict[str, Any]]:
    path = resources.files(__name__).joinpath(file)
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _gpus() -> dict[str, GpuProfile]:
    cards = _table("cards.toml")
    return {
        slug: GpuProfile(
            **entry,
            visible_bytes=cards[slug]["visible_gib"] * GIB if slug in cards else None,
        )
        for slug, entry in _table("gpus.toml").items()
    }


def gpus() -> dict[str, GpuProfile]:
    """Return all GPU profiles of the catalogue by their short name.

    The ``basis`` of a profile is ``fitted`` (to measured block times) or ``datasheet`` (values
    times measured shares). Its memory is the whole memory: on Jetson and Apple the system uses
    a part of it, so reserve some. Servers see ``visible_bytes`` of NVIDIA cards, read from
    ``cards.toml`` with their sources. Chips of Apple come with several sizes of memory
    (``instances/README.md`` lists them); give a node the size that it has.

    Returns
    -------
    dict of str to GpuProfile

    Examples
    --------
    >>> import hypsolve as hs
    >>> len(hs.gpus()) > 30, hs.gpus()["l4"].tier
    (True, 'fog')
    """
    return dict(_gpus())


def gpu(name: str) -> GpuProfile:
    """Return a GPU profile of the catalogue.

    Parameters
    ----------
    name : str
        A key of `gpus`.

    Raises
    ------
    ValueError
        For an unknown name; the message names the likeliest, and shows how to define a GPU in a
        network file. In Python, give a `GpuProfile` its figures.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.gpu("rtx-4090").memory_bytes / 2**30
    24.0
    """
    if not isinstance(name, str) or name not in _gpus():
        raise ValueError(unknown_gpu(name, _gpus()))
    return _gpus()[name]


def models() -> tuple[str, ...]:
    """Return the names of all models of the catalogue.

    Examples
    --------
    >>> import hypsolve as hs
    >>> "llama-3-8b" in hs.models()
    True
    """
    return tuple(_table("models.toml"))


def shape(name: str) -> dict[str, Any]:
    """Return the shape of an LLM of the catalogue, as arguments of `transformer`.

    Parameters
    ----------
    name : str
        A name in `models`.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the likeliest.

    Examples
    --------
    >>> from hypsolve import catalog
    >>> catalog.shape("llama-3-8b")["n_kv_heads"]
    8
    """
    shapes = _table("models.toml")
    return dict(shapes[valid.known("model", name, shapes)])


@valid.suggest_keywords("model")
def model(name: str, weights: str = "fp16") -> Model:
    """Return an LLM of the catalogue as a chain of blocks: embedding, layers, head.

    Parameters
    ----------
    name : str
        A name in `models`.
    weights : str
        Format of the weights: a key of `weight_formats`, or ``int4``, which means
        ``gptq-int4``. Block times were measured with 16-bit weights alone: the other formats
        give ``extrapolated=True``. The format is appended to the name, as in
        ``phi-3-medium-q4_k_m``, unless it is fp16.

    Raises
    ------
    ValueError
        For an unknown name or format; the message suggests the likeliest.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.model("llama-3-8b")
    <Model llama-3-8b, 34 blocks (32 layers), 16.060 GB>
    >>> hs.model("llama-3-8b", weights="q4_k_m")
    <Model llama-3-8b-q4_k_m, 34 blocks (32 layers), 4.912 GB>
    >>> hs.model("llama-3-8b", weights="q4_k_m").extrapolated
    True
    """
    return transformer(name, **shape(name), weights=weights)


def runtimes() -> tuple[str, ...]:
    """Return the names of all serving runtimes of the catalogue.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.runtimes()
    ('ideal', 'vllm', 'sglang', 'tensorrt-llm', 'llama.cpp')
    """
    return tuple(_table("runtimes.toml"))


def runtime(
    name: str | Runtime = "ideal", *, gpus: Iterable[GpuProfile] = (), **overrides: Any
) -> Runtime:
    """Return a serving runtime of the catalogue, with the defaults of its server.

    Parameters
    ----------
    name : str or Runtime
        A name in `runtimes`; or a record, of which single values are replaced.
    gpus : iterable of GpuProfile
        The GPUs that it will run on: some servers have larger defaults on large ones.
    **overrides
        Attributes of `Runtime` that replace the defaults.

    Raises
    ------
    ValueError, TypeError
        For an unknown name or an invalid value; the message names it.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.runtime("vllm").max_num_batched_tokens
    2048
    >>> hs.runtime("vllm", gpus=[hs.gpu("h100")]).max_num_batched_tokens
    8192
    >>> hs.runtime("llama.cpp", max_num_seqs=3).describe()[:60]
    'runtime llama.cpp: one batch at a time passes all stages; at'
    """
    own = [field.name for field in fields(Runtime) if field.name != "name"]
    for key in overrides:
        valid.known("attribute of a runtime", key, own)
    if isinstance(name, Runtime):
        return replace(name, **overrides)
    table = _table("runtimes.toml")
    entry = dict(table[valid.known("runtime", name, table)])
    entry |= _of_gpus(entry.pop("tiers", ()), list(gpus))
    entry = {key: None if value == "none" else value for key, value in entry.items()}
    found = Runtime(name=name, **{**entry, **overrides})
    if overrides.get("micro_batch_tokens") is not None and (
        found.batching is not Batching.SERIAL
    ):
        raise ValueError(
            f"runtime {name!r}: micro_batch_tokens needs batching serial, got"
            f" {str(found.batching)!r}"
        )
    return found


def _of_gpus(tiers: Iterable[dict[str, Any]], gpus: list[GpuProfile]) -> dict[str, Any]:
    """Return the defaults of a server on these GPUs, in place of its own."""
    if not gpus:
        return {}
    seen_gib = min(gpu.memory_bytes - gpu.hidden_bytes for gpu in gpus) / GIB
    found: dict[str, Any] = {}
    for tier in tiers:
        excepted = [word for word in tier.get("except", ()) for g in gpus if word in g.name]
        if seen_gib >= tier["min_memory_gib"] and not excepted:
            found = {k: v for k, v in tier.items() if k not in ("min_memory_gib", "except")}
    reserved_gib = found.pop("reserved_gib", None)
    if reserved_gib is not None:
        share = round(1 - reserved_gib / seen_gib, 3)
        found["memory_fraction"] = max(share, MIN_SHARE)
    return found


def name_of(model: str) -> str:
    """Return the catalogue's name of a model, which may be given by its repository.

    A name that is not in the catalogue is returned unchanged.
    """
    for name, shape in _table("models.toml").items():
        if shape["source"].partition(":")[0] == model:
            return name
    return model


def transformer(
    name: str,
    *,
    n_layers: int,
    hidden: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    gated_ffn: bool = True,
    fused_qkv: bool = False,
    tied_embeddings: bool = False,
    n_experts: int = 0,
    experts_per_token: int = 0,
    window_tokens: int | None = None,
    window_every: int = 1,
    weights: str | WeightFormat = "fp16",
    context_tokens: int = 0,
    source: str = "",
) -> Model:
    """Return a decoder-only transformer as ``n_layers + 2`` blocks.

    Norms, biases and rotary embeddings are left out (under 0.1 % of the weights). A block reads
    its input and writes its output once per token, and the head writes the logits of one token.
    All other activations are assumed to stay in cache.

    Parameters
    ----------
    name : str
        Name of the model; a weight format other than fp16 is appended.
    n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab : int
        As in the config.json of the model. With experts, `ffn` is the size of one expert.
    gated_ffn : bool
        Whether the feed-forward part has three matrices, not two.
    fused_qkv : bool
        Whether query, key and value are one matrix, to which ``q4_k_m`` and ``q5_k_m`` give
        bits of its own.
    tied_embeddings : bool
        Whether the head is the embedding table. A stage with both holds the table once.
    n_experts, experts_per_token : int
        Mixture of experts with a linear router; 0 means a dense layer.
    window_tokens : int or None
        Sliding attention window of layers 0, `window_every`, 2 `window_every`, ...
    window_every : int
        1 if all layers have the window, 2 if every second layer has it (Gemma 2).
    weights : str or WeightFormat
        Format of the weights: a key of `hypsolve.weight_formats`, ``int4``, which means
        ``gptq-int4``, or a format of your own. Where a format gives some layers more
        bits, these are blocks of a kind of their own.
    context_tokens : int
        Longest sequence that the model was made for; 0 if unknown.
    source : str
        Origin of the shape.

    Returns
    -------
    Model

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names the model, the argument, the rule and the
        value.
    """
    owner = f"model {valid.text('model', 'name', name)!r}"
    given = {
        "n_layers": n_layers,
        "hidden": hidden,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "ffn": ffn,
        "vocab": vocab,
        "window_every": window_every,
    }
    for field, value in given.items():
        most = MAX_LAYERS if field == "n_layers" else MAX_SIZE
        valid.whole(owner, field, value, minimum=1, maximum=most)
    valid.whole(owner, "n_experts", n_experts, maximum=MAX_SIZE)
    valid.whole(owner, "experts_per_token", experts_per_token, minimum=1 if n_experts else 0)
    for field, flag in (("gated_ffn", gated_ffn), ("fused_qkv", fused_qkv)):
        valid.flag(owner, field, flag)
    valid.flag(owner, "tied_embeddings", tied_embeddings)
    form = weights if isinstance(weights, WeightFormat) else weight_format(weights)
    if n_heads % n_kv_heads:
        raise ValueError(
            f"{owner}: n_heads must be a multiple of n_kv_heads = {n_kv_heads}, got {n_heads}"
        )

    state_bytes = hidden * ACTIVATION_BYTES
    query, value = hidden * n_heads * head_dim, hidden * n_kv_heads * head_dim
    down = hidden * ffn
    feed_forward = (3 if gated_ffn else 2) * down
    router = hidden * n_experts
    always = 2 * query + 2 * value + (router if n_experts else feed_forward)
    expert = feed_forward if n_experts else 0
    table = vocab * hidden
    embedding_bits, head_bits = form.embedding_bits, form.head_bits
    if tied_embeddings:
        embedding_bits = head_bits = form.tied_bits
    embedding_bits, head_bits, bits, qkv_bits = (
        form.bits_in_rows(each, hidden)
        for each in (embedding_bits, head_bits, form.layer_bits, form.qkv_bits)
    )
    output_bits = form.bits_in_rows(form.layer_bits, n_heads * head_dim)
    head_bytes = held_bytes((table, head_bits))

    def layer(kind: str, window: int | None, raised: bool) -> Block:
        most = form.raised_bits if raised else form.layer_bits
        if fused_qkv:
            attention = [(query + 2 * value, qkv_bits), (query, output_bits)]
        else:
            value_bits = form.bits_in_rows(most, hidden)
            attention = [(query + value, bits), (value, value_bits), (query, output_bits)]
        mlp = [(feed_forward - down, bits), (down, form.bits_in_rows(most, ffn))]
        always_bytes = held_bytes(*attention, *([(router, bits)] if n_experts else mlp))
        expert_bytes = held_bytes(*mlp) if n_experts else 0
        return Block(
            kind=f"{kind}-raised" if raised else kind,
            weight_bytes=always_bytes + n_experts * expert_bytes,
            always_read_bytes=always_bytes,
            expert_bytes=expert_bytes,
            n_experts=n_experts,
            experts_per_token=experts_per_token,
            kv_bytes_per_token=2 * n_kv_heads * head_dim * ACTIVATION_BYTES,
            activation_bytes_per_token=2 * state_bytes,
            output_bytes_per_token=state_bytes,
            flops_per_token=2.0 * (always + experts_per_token * expert),
            attention_flops_per_pair=4.0 * n_heads * head_dim,
            window_tokens=window,
            collectives=2,  # after attention and after the feed-forward part
            collective_bytes_per_token=state_bytes,
        )

    @functools.cache
    def layer_of(windowed: bool, raised: bool) -> Block:
        if windowed:
            return layer("layer-window", window_tokens, raised)
        return layer("layer", None, raised)

    embedding = Block(
        kind="embedding",
        weight_bytes=held_bytes((table, embedding_bits)),
        gathered_bytes_per_token=held_bytes((hidden, embedding_bits)),
        activation_bytes_per_token=state_bytes,
        output_bytes_per_token=state_bytes,
        collectives=1,  # each GPU has a part of the table
        collective_bytes_per_token=state_bytes,
    )
    head = Block(
        kind="head",
        weight_bytes=head_bytes,
        always_read_bytes=head_bytes,
        activation_bytes_per_token=state_bytes + vocab * ACTIVATION_BYTES,
        output_bytes_per_token=4,  # a token id
        flops_per_token=2.0 * table,
        last_token_only=True,
        collectives=1,  # the logits are gathered, which is half of an all-reduce
        collective_bytes_per_token=vocab * ACTIVATION_BYTES // 2,
    )
    has_window = window_tokens is not None
    layers = (
        layer_of(has_window and i % window_every == 0, form.raises(i, n_layers))
        for i in range(n_layers)
    )
    return Model(
        name=name if form.name == "fp16" else f"{name}-{form.name}",
        blocks=(embedding, *layers, head),
        tied_bytes=head_bytes if tied_embeddings else 0,
        extrapolated=form.extrapolated,
        source=source,
        context_tokens=context_tokens,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
    )
