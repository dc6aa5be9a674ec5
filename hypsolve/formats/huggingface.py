"""Models from Hugging Face files: a ``config.json``, and safetensors if there are any."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypsolve import catalog
from hypsolve.formats.safetensors import Weights, read_weights
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Block, Model
from hypsolve.problem.files import checked_path, parse_json, read_bytes

MAX_BYTES = 2**26  # of a config.json
MAX_LAYERS = 10_000
MAX_SIZE = 2**31  # of every other number of a shape
SHAPE = "n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab"
Config = Mapping[str, Any]
_OTHER_NAMES = ("phi-2", "qwen-72b")  # models of the catalogue with unknown module names


@dataclass(frozen=True, slots=True)
class Family:
    """Conventions of the configurations of a ``model_type``.

    Attributes
    ----------
    keys : mapping of str to str
        Key of each number of the shape.
    gated_ffn : bool
        Whether the feed-forward part has three matrices, not two.
    tied_by_default : bool
        Whether the head is the embedding table unless the file denies it.
    head_dim : int or None
        Default head dimension; None means hidden size / heads.
    context_key : str
        Key of the context length.
    positions : (int, int) or None
        Table of positions: default number of rows, and extra rows.
    slides : callable
        ``(config, layer) -> bool``: whether a layer has the sliding window.
    """

    keys: Mapping[str, str]
    gated_ffn: bool = True
    tied_by_default: bool = False
    head_dim: int | None = None
    context_key: str = "max_position_embeddings"
    positions: tuple[int, int] | None = None
    slides: Callable[[Config, int], bool] = lambda config, layer: False


_USUAL = {
    "n_layers": "num_hidden_layers", "hidden": "hidden_size", "n_heads": "num_attention_heads",
    "ffn": "intermediate_size", "vocab": "vocab_size",
}  # fmt: skip


def _all_slide(config: Config, layer: int) -> bool:
    return True


def _qwen2_slides(config: Config, layer: int) -> bool:
    if not _flag(config, "use_sliding_window", False):
        return False
    first = _whole(config, "max_window_layers", 0) if "max_window_layers" in config else 28
    return layer >= first


FAMILIES: dict[str, Family] = {
    "llama": Family(_USUAL),
    "mistral": Family(_USUAL, slides=_all_slide),
    "qwen2": Family(_USUAL, slides=_qwen2_slides),
    "qwen3": Family(_USUAL, head_dim=128, slides=_qwen2_slides),
    "phi3": Family(_USUAL, slides=_all_slide),
    "gemma2": Family(
        _USUAL, tied_by_default=True, head_dim=256, slides=lambda _, layer: layer % 2 == 0
    ),
    "mixtral": Family(_USUAL, slides=_all_slide),
    "gpt2": Family(
        {"n_layers": "n_layer", "hidden": "n_embd", "n_heads": "n_head", "ffn": "n_inner",
         "vocab": "vocab_size"},
        gated_ffn=False, tied_by_default=True, context_key="n_positions",
        positions=(1024, 0),
    ),
    "gpt_neox": Family(_USUAL, gated_ffn=False),
    "opt": Family(
        {**_USUAL, "ffn": "ffn_dim"}, gated_ffn=False, tied_by_default=True,
        positions=(2048, 2),
    ),
}  # fmt: skip
"""Families that `read_model` knows, by ``model_type``."""


@valid.suggest_keywords("read_model")
def read_model(
    path: str | os.PathLike[str], *, weights: str | None = None, name: str | None = None
) -> Model:
    """Read the architecture of an LLM from Hugging Face files, without loading its weights.

    Parameters
    ----------
    path : str or path
        A ``config.json``, or a folder that holds one. If the folder also holds safetensors,
        their headers give the size of each block.
    weights : {"fp16", "int8", "int4"}, optional
        Format of all weights, whatever the files state. Sizes are scaled from stored 16-bit
        weights, or computed from the shape. Default: the stored formats. A config.json alone
        gives layers in the format of its ``quantization_config``, and all else in fp16.
    name : str, optional
        Default: name of the folder.

    Returns
    -------
    Model
        Embedding with its table of positions, layers, head with the last norm. It is
        ``extrapolated`` unless the weights are 16-bit floats.

    Raises
    ------
    ValueError, TypeError
        If a file is invalid; the message names the file, the key or the tensor, the rule and
        the value.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import hypsolve as hs
    >>> config = {
    ...     "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
    ...     "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 1000,
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "config.json")
    ...     _ = path.write_text(json.dumps(config))
    ...     model = hs.read_model(path, name="tiny")
    >>> model.n_blocks, model.n_layers, model.weight_bytes
    (4, 2, 419840)
    """
    path = checked_path("read_model", path)
    if weights is not None:
        valid.known("weights", weights, catalog.GROUP_BYTES)
    folder = path if path.is_dir() else path.parent
    config_path = path / "config.json" if path.is_dir() else path
    if name is None:
        name = folder.resolve().name
    config = parse_json(config_path, read_bytes(config_path, MAX_BYTES))
    if not isinstance(config, dict):
        raise ValueError(f"{config_path}: must be a JSON object, got {config!r:.60}")
    stored = read_weights(folder) if path.is_dir() else None
    if stored is not None and weights is not None and not stored.is_all_16_bit:
        stored = None  # quantised sizes cannot be converted
    try:
        return _model(config, name, weights, stored, f"{config_path.name} of {name}")
    except (ValueError, TypeError) as error:
        raise type(error)(f"{config_path}: {error}") from None


def model_type_of(path: str | os.PathLike[str]) -> str:
    """Return the ``model_type`` of a config.json; ``llama`` for a name of the catalogue.

    Raises
    ------
    ValueError
        If the names of the model's modules are unknown.
    """
    if catalog.name_of(str(path)) in _OTHER_NAMES:
        raise ValueError(f"{path}: the names of its modules are not known; give --model-type")
    where = checked_path("model_type_of", path)
    if str(path) in catalog.models() or not where.exists():
        return "llama"
    config_path = where / "config.json" if where.is_dir() else where
    config = parse_json(config_path, read_bytes(config_path, MAX_BYTES))
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) and found in FAMILIES else "llama"


def _model(
    config: Config, name: str, weights: str | None, stored: Weights | None, source: str
) -> Model:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"model_type must be one of {', '.join(FAMILIES)}, got {kind!r:.60}; for another"
            f" decoder-only transformer give hypsolve.catalog.transformer its {SHAPE}"
        )
    family = FAMILIES[kind]
    tied = _flag(config, "tie_word_embeddings", family.tied_by_default)
    shape = _shape(config, family)
    quantised = "fp16" if stored else _format(config)
    fixed: dict[str, Any] = {
        **shape,
        "gated_ffn": family.gated_ffn,
        "tied_embeddings": tied,
        "weights": weights or quantised,
        "source": source,
    }
    full = catalog.transformer(name, **fixed)
    slides = _slides(config, family, shape["n_layers"])
    blocks = full.blocks
    if any(slides):
        window = _whole(config, "sliding_window")
        windowed = catalog.transformer(name, **fixed, window_tokens=window).blocks
        of_layers = (windowed[i + 1] if s else blocks[i + 1] for i, s in enumerate(slides))
        blocks = (blocks[0], *of_layers, blocks[-1])
    if weights is None and quantised != "fp16":  # only the layers are quantised
        ends = catalog.transformer(name, **{**fixed, "weights": "fp16"})
        blocks = (ends.blocks[0], *blocks[1:-1], ends.blocks[-1])
        full = replace(full, tied_bytes=ends.tied_bytes)
    context_tokens = 0
    if config.get(family.context_key) is not None:
        context_tokens = _whole(config, family.context_key)
    if family.positions:
        default, n_beyond = family.positions
        table, *rest = blocks
        n_rows = (context_tokens or default) + n_beyond
        n_bytes = table.weight_bytes + n_rows * table.gathered_bytes_per_token
        blocks = (replace(table, weight_bytes=n_bytes), *rest)
    model = replace(full, blocks=blocks, context_tokens=context_tokens)
    if stored is None:
        return model
    if weights in (None, "fp16"):
        return _as_stored(model, stored, tied)
    return _quantised(_as_stored(model, stored, tied), weights)


def _shape(config: Config, family: Family) -> dict[str, int]:
    if config.get("model_type") == "gpt2" and config.get("n_inner") is None:
        config = {**config, "n_inner": 4 * _whole(config, "n_embd")}
    shape = {field: _whole(config, key) for field, key in family.keys.items()}
    if shape["n_layers"] > MAX_LAYERS:
        raise ValueError(
            f"{family.keys['n_layers']} must be at most {MAX_LAYERS}, got {shape['n_layers']}"
        )
    heads, hidden = shape["n_heads"], shape["hidden"]
    shape["n_kv_heads"] = heads
    if config.get("num_key_value_heads") is not None:
        shape["n_kv_heads"] = _whole(config, "num_key_value_heads")
    if config.get("head_dim") is not None:
        shape["head_dim"] = _whole(config, "head_dim")
    elif family.head_dim is not None:
        shape["head_dim"] = family.head_dim
    elif hidden % heads:
        raise ValueError(
            f"{family.keys['hidden']} must be a multiple of {family.keys['n_heads']} = {heads},"
            f" got {hidden}"
        )
    else:
        shape["head_dim"] = hidden // heads
    if config["model_type"] == "mixtral":
        shape["n_experts"] = _whole(config, "num_local_experts")
        shape["experts_per_token"] = _whole(config, "num_experts_per_tok")
    projected = config.get("word_embed_proj_dim", hidden)
    if projected != hidden:
        raise ValueError(
            f"word_embed_proj_dim must be hidden_size = {hidden} (no other is known here),"
            f" got {projected!r:.60}"
        )
    return shape


def _slides(config: Config, family: Family, n_layers: int) -> list[bool]:
    """Return for each layer whether it has the sliding window."""
    if config.get("sliding_window") is None:
        return [False] * n_layers
    listed = config.get("layer_types")
    if listed is None:
        return [family.slides(config, layer) for layer in range(n_layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(listed, list) or len(listed) != n_layers:
        raise ValueError(f"layer_types must list {n_layers} layers, got {listed!r:.60}")
    for each in listed:
        if each not in known:
            raise ValueError(f"layer_types must be of {', '.join(known)}, got {each!r:.60}")
    return [each == known[0] for each in listed]


def _format(config: Config) -> str:
    """Return the format of the weights."""
    quantised = config.get("quantization_config")
    if quantised is None:
        return "fp16"
    if not isinstance(quantised, dict):
        raise ValueError(f"quantization_config must be an object, got {quantised!r:.60}")
    groups = quantised.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    of_weights = first.get("weights") if isinstance(first, dict) else None
    packed = of_weights.get("num_bits") if isinstance(of_weights, dict) else None
    fp8 = 8 if quantised.get("quant_method") == "fp8" else None
    bits = quantised.get("bits", quantised.get("w_bit", packed or fp8))
    if quantised.get("load_in_4bit") or bits == 4:
        return "int4"
    if quantised.get("load_in_8bit") or bits == 8:
        return "int8"
    raise ValueError(
        f"quantization_config must say 4 or 8 bits (or give the format of the weights),"
        f" got {quantised!r:.60}"
    )


def _as_stored(model: Model, stored: Weights, tied: bool) -> Model:
    """Return the model with the sizes of its stored tensors."""
    n_layers = model.n_blocks - 2
    if len(stored.layers) != n_layers:
        raise ValueError(
            f"{stored.path}: must hold {n_layers} layers as config.json says,"
            f" got {len(stored.layers)}"
        )
    embedding, *layers, head = model.blocks
    hidden = embedding.output_bytes_per_token // catalog.ACTIVATION_BYTES
    if stored.is_16_bit and stored.embedding.table_columns != hidden:
        raise ValueError(
            f"{stored.path}: the embedding's table must have {hidden} columns as config.json"
            f" says, got {stored.embedding.table_columns}"
        )
    rows = stored.embedding.table_rows or 1
    table_bytes = stored.embedding.table_bytes
    head_bytes = stored.head.n_bytes
    if tied:
        head_bytes += table_bytes - stored.head.table_bytes  # a stored copy is shared
    elif not stored.head.table_bytes:
        raise ValueError(f"{stored.path}: no tensor of the head, and embeddings are not tied")
    kinds: dict[Block, str] = {}
    blocks = [
        replace(
            embedding,
            weight_bytes=stored.embedding.n_bytes,
            gathered_bytes_per_token=-(-table_bytes // rows),
        )
    ]
    for block, of_layer in zip(layers, stored.layers, strict=True):
        expert_bytes = of_layer.expert_bytes // block.n_experts if block.n_experts else 0
        sized = replace(
            block,
            weight_bytes=of_layer.n_bytes,
            expert_bytes=expert_bytes,
            always_read_bytes=of_layer.n_bytes - expert_bytes * block.n_experts,
        )
        number = sum(kind.startswith(block.kind + "#") for kind in kinds.values())
        kind = kinds.setdefault(sized, f"{block.kind}#{number}")
        blocks.append(replace(sized, kind=kind.removesuffix("#0")))
    blocks.append(replace(head, weight_bytes=head_bytes, always_read_bytes=head_bytes))
    return replace(
        model,
        blocks=tuple(blocks),
        tied_bytes=table_bytes if tied else 0,
        extrapolated=not stored.is_16_bit,
        source=f"{model.source}; bytes as in {stored.path.name}",
    )


def _quantised(model: Model, weights: str) -> Model:
    """Return a model of 16-bit weights with its sizes in another format."""

    def held(n_bytes: int) -> int:
        return -(-n_bytes * catalog.GROUP_BYTES[weights] // catalog.GROUP_BYTES["fp16"])

    blocks = (
        replace(
            block,
            weight_bytes=held(block.weight_bytes),
            always_read_bytes=held(block.always_read_bytes),
            expert_bytes=held(block.expert_bytes),
            gathered_bytes_per_token=held(block.gathered_bytes_per_token),
        )
        for block in model.blocks
    )
    return replace(
        model, blocks=tuple(blocks), tied_bytes=held(model.tied_bytes), extrapolated=True
    )


def _whole(config: Config, key: str, least: int = 1) -> int:
    if key not in config:
        raise ValueError(f"key {key!r} is missing; {config['model_type']} needs it")
    owner = str(config["model_type"])
    return valid.whole(owner, key, config[key], minimum=least, maximum=MAX_SIZE)


def _flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key, default)
    valid.flag(str(config["model_type"]), key, value)
    return bool(value)
