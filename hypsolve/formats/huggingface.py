"""Models from files: a ``config.json``, with safetensors if there are any, or a GGUF file."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve.formats import gguf
from hypsolve.formats.gguf_header import is_gguf
from hypsolve.formats.gguf_header import model_name as gguf_model_name
from hypsolve.formats.safetensors import read_weights
from hypsolve.formats.stored_sizes import Weights, in_format, with_stored_sizes
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Model
from hypsolve.problem.files import checked_path, parse_json, read_bytes

MAX_BYTES = 2**26  # of a config.json
MAX_LAYERS = 10_000
MAX_SIZE = 2**31  # of every other number of a shape
NESTED_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # bitsandbytes, double quantisation
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
    fused_qkv : bool
        Whether query, key and value are one matrix.
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
    fused_qkv: bool = False
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
    "phi3": Family(_USUAL, fused_qkv=True, slides=_all_slide),
    "gemma2": Family(
        _USUAL, tied_by_default=True, head_dim=256, slides=lambda _, layer: layer % 2 == 0
    ),
    "mixtral": Family(_USUAL, slides=_all_slide),
    "gpt2": Family(
        {"n_layers": "n_layer", "hidden": "n_embd", "n_heads": "n_head", "ffn": "n_inner",
         "vocab": "vocab_size"},
        gated_ffn=False, fused_qkv=True, tied_by_default=True, context_key="n_positions",
        positions=(1024, 0),
    ),
    "gpt_neox": Family(_USUAL, gated_ffn=False, fused_qkv=True),
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
    """Read the architecture of an LLM from its files, without loading its weights.

    Parameters
    ----------
    path : str or path
        A ``config.json`` of Hugging Face, or a folder that holds one. If the folder also holds
        safetensors, their headers give the size of each block. Or a GGUF file of llama.cpp, any
        of its shards (``NAME-00001-of-00003.gguf``), or a folder with one GGUF model: its
        header gives the shape and the size of each block, and layers whose sizes differ, as in
        Q4_K_M, are blocks of different kinds. The first megabytes of a GGUF file are enough.
    weights : str, optional
        Format of the weights, whatever the files state: a key of `hypsolve.weight_formats`, or
        ``int4``. Sizes are scaled from stored 16-bit weights, or computed from the shape.
        Default: the stored formats. A config.json alone gives the format that its
        ``quantization_config`` describes, with the bits of its groups and the format of its
        head, else fp16.
    name : str, optional
        Default: name of the folder, or of the GGUF file.

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
        weights = catalog.weight_format(weights).name
    if (file := _gguf_file(path)) is not None:
        return gguf.read_gguf(file, weights=weights, name=name)
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


def _gguf_file(path: Path) -> Path | None:
    """Return a GGUF file, the one in a folder without config.json, or None."""
    if not path.is_dir():
        return path if is_gguf(path) else None
    if (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len({gguf_model_name(file) for file in files}) > 1:
        found = ", ".join(file.name for file in files[:10])
        raise ValueError(f"{path}: name one of the GGUF files in this folder, such as {found}")
    return files[0] if files else None


def model_type_of(path: str | os.PathLike[str]) -> str:
    """Return the ``model_type`` of a config.json or a GGUF file.

    It is ``llama`` for a name of the catalogue.

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
    if (file := _gguf_file(where)) is not None:
        architecture = gguf.architecture_of(file)
        return architecture if architecture in FAMILIES else "llama"
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
    slides = _slides(config, family, shape["n_layers"])
    window = _whole(config, "sliding_window") if any(slides) else None
    fixed: dict[str, Any] = {
        **shape,
        "gated_ffn": family.gated_ffn,
        "fused_qkv": family.fused_qkv,
        "tied_embeddings": tied,
        "source": source,
    }

    def of_shape(weights: str | catalog.WeightFormat) -> Model:
        full = catalog.transformer(name, **fixed, weights=weights)
        if window is None:
            return full
        windowed = catalog.transformer(name, **fixed, weights=weights, window_tokens=window)
        pairs = zip(full.blocks[1:-1], windowed.blocks[1:-1], slides, strict=True)
        layers = (with_it if slid else without for without, with_it, slid in pairs)
        return replace(full, blocks=(full.blocks[0], *layers, full.blocks[-1]))

    form = catalog.weight_format(weights or "fp16")
    if weights is None and stored is None:
        form = _format(config, name)
    full = of_shape(form)
    context_tokens = 0
    if config.get(family.context_key) is not None:
        context_tokens = _whole(config, family.context_key)
    blocks = full.blocks
    if family.positions:
        default, n_beyond = family.positions
        table, *rest = blocks
        n_rows = (context_tokens or default) + n_beyond
        n_bytes = table.weight_bytes + n_rows * shape["hidden"] * catalog.ACTIVATION_BYTES
        blocks = (replace(table, weight_bytes=n_bytes), *rest)
    model = replace(full, blocks=blocks, context_tokens=context_tokens)
    if stored is None:
        return model
    as_stored = with_stored_sizes(model, stored, tied)
    if not form.extrapolated:
        return as_stored
    return in_format(as_stored, of_shape("fp16"), full)


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


def _format(config: Config, model_name: str) -> catalog.WeightFormat:
    """Return the format that a configuration describes, with its own bits per weight.

    Compressed-tensors store weights of AWQ and of GPTQ alike, so that only the name of the
    model tells which of them made the weights.
    """
    quantised = config.get("quantization_config")
    if quantised is None:
        return catalog.weight_format("fp16")
    if not isinstance(quantised, dict):
        raise ValueError(f"quantization_config must be an object, got {quantised!r:.60}")
    if quantised.get("load_in_4bit"):
        nested = bool(quantised.get("bnb_4bit_use_double_quant"))
        return _with_bits(catalog.weight_format("nf4"), NESTED_NF4_BITS if nested else None)
    groups = quantised.get("config_groups")
    first = _object(next(iter(groups.values()), None) if isinstance(groups, dict) else None)
    packed = _object(first.get("weights"))
    method = quantised.get("quant_method")
    is_float = method == "fp8" or packed.get("type") == "float"
    bits = quantised.get("bits", quantised.get("w_bit", packed.get("num_bits")))
    if quantised.get("load_in_8bit") or (bits is None and is_float):
        bits = 8
    if bits == 4:
        is_awq = method == "awq" or (bool(packed) and "awq" in model_name.lower())
        name = "awq" if is_awq else "gptq-int4"
    elif bits == 8:
        name = "fp8" if is_float else "int8"
    else:
        raise ValueError(
            f"quantization_config must say 4 or 8 bits (or give the format of the weights),"
            f" got {quantised!r:.60}"
        )
    # GPTQ and AWQ store a zero per group even if it is always the same
    has_zero = not packed or not packed.get("symmetric", True)
    extra = 8 if is_float else 16 + has_zero * bits  # floats of few bits have scales of 8
    given = {**quantised, **packed}
    key = "group_size" if "group_size" in given else "q_group_size"
    layer_bits = bits + extra / _group(key, given[key]) if key in given else None
    form = _with_bits(catalog.weight_format(name), layer_bits)
    return replace(form, head_bits=form.layer_bits) if _has_head(quantised, first) else form


def _with_bits(form: catalog.WeightFormat, bits: float | None) -> catalog.WeightFormat:
    """Return a format with other bits per weight in its layers, if any are given."""
    if bits is None:
        return form
    return replace(form, layer_bits=bits, raised_bits=bits, qkv_bits=bits)


def _group(key: str, size: object) -> float:
    """Return how many weights share a scale; infinite where a whole row does."""
    if size is None or size == -1:
        return math.inf
    return valid.whole("quantization_config", key, size, minimum=1, maximum=MAX_SIZE)


def _object(value: object) -> Config:
    """Return a value that is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _has_head(quantised: Config, group: Config) -> bool:
    """Return whether the head is quantised, too."""
    if quantised.get("lm_head") is True:  # GPTQ
        return True
    ignored, targets = quantised.get("ignore"), group.get("targets")
    if not isinstance(ignored, list) or not isinstance(targets, list):
        return False
    return "Linear" in targets and not any("lm_head" in str(each) for each in ignored)


def _whole(config: Config, key: str, least: int = 1) -> int:
    if key not in config:
        raise ValueError(f"key {key!r} is missing; {config['model_type']} needs it")
    owner = str(config["model_type"])
    return valid.whole(owner, key, config[key], minimum=least, maximum=MAX_SIZE)


def _flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key, default)
    valid.flag(str(config["model_type"]), key, value)
    return bool(value)
