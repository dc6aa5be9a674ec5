"""Sizes of the tensors in safetensors files, from their headers alone.

The first 8 bytes of a file are the length of a JSON header (little endian). The header maps the
name of each tensor to its dtype, shape and place in the file. No weight is read.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypsolve.formats.stored_sizes import Part, Weights
from hypsolve.problem.files import parse_json, read_bytes

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 10**8  # limit of the format
_LAYER = re.compile(r"(?:(?:model|transformer|gpt_neox|decoder)\.)*(?:layers|h)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.")
_BUFFER = re.compile(r"\.(?:attn|attention)\.(?:masked_)?bias$|\.inv_freq$")  # not weights
_EMBEDDING = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_POSITIONS = ("wpe", "embed_positions")
_HEAD = ("lm_head", "embed_out")
_LAST_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def read_weights(folder: Path) -> Weights | None:
    """Return the sizes of all blocks of a model; None if the folder has no safetensors.

    Raises
    ------
    ValueError
        If a file is missing, truncated or not in the safetensors format, or if a tensor belongs
        to no known block.
    """
    paths = _files(folder)
    if not paths:
        return None
    weights = Weights(folder)
    layers: dict[int, Part] = {}
    bytes_of: dict[str, int] = {}
    for path in paths:
        for name, dtype, shape, n_bytes in _tensors(path):
            bytes_of[dtype] = bytes_of.get(dtype, 0) + n_bytes
            if _BUFFER.search(name):
                continue
            match = _LAYER.match(name)
            if match:
                part = layers.setdefault(int(match[1]), Part())
                part.expert_bytes += n_bytes if _EXPERT.search(name) else 0
            else:
                part = _outside_layers(path, weights, name, shape, n_bytes)
            part.n_bytes += n_bytes
    missing = [number for number in range(len(layers)) if number not in layers]
    if missing:
        raise ValueError(f"{folder}: no tensor of layer {missing[0]}, but of {max(layers)}")
    weights.layers = [layers[number] for number in range(len(layers))]
    largest = max(bytes_of, key=lambda dtype: bytes_of[dtype])
    weights.is_16_bit = largest in ("F16", "BF16")
    weights.is_all_16_bit = bytes_of.keys() <= {"F16", "BF16"}
    return weights


def _files(folder: Path) -> list[Path]:
    """Return the files of a model, which its index lists."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if not index.exists():
        others = sorted(folder.glob("*.safetensors"))
        if others and not single.exists():
            raise ValueError(f"{folder}: {others[0].name} needs {INDEX} beside it, got none")
        return [single] if others else []
    document = parse_json(index, read_bytes(index, MAX_HEADER_BYTES))
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ValueError(f"{index}: weight_map must map tensors to files, got {names!r:.60}")
    paths = [folder / name for name in sorted(set(names.values()))]
    for path in paths:
        if path.parent != folder:
            raise ValueError(f"{index}: a file must be in the same folder, got {path.name!r}")
        if not path.exists():
            raise ValueError(f"{index}: file {path.name!r} must be there, too, got none")
    return paths


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int], int]]:
    """Yield name, dtype, shape and bytes of every tensor in a file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: no safetensors file, or cut short: no whole header")
        content = file.read(length)
    try:
        header = json.loads(content)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = [
            (name, entry["dtype"], entry["shape"], entry["data_offsets"])
            for name, entry in tensors.items()
        ]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path}: no safetensors file: its header is not of that form"
        ) from None
    for name, dtype, shape, offsets in found:
        if not _is_tensor(dtype, shape, offsets):
            raise ValueError(f"{path}: tensor {name!r:.60}: header is not of the right form")
        begin, end = offsets
        if end > size - 8 - length:
            raise ValueError(
                f"{path}: tensor {name!r:.60}: must end within the file of {size} bytes, got"
                f" {8 + length + end}; the file is cut short"
            )
        yield name, dtype, shape, end - begin


def _is_tensor(dtype: Any, shape: Any, offsets: Any) -> bool:
    numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not isinstance(dtype, str) or not numbers:
        return False
    whole = all(type(n) is int and n >= 0 for n in (*shape, *offsets))
    return whole and offsets[0] <= offsets[1]


def _outside_layers(
    path: Path, weights: Weights, name: str, shape: list[int], n_bytes: int
) -> Part:
    """Return the block of a tensor that belongs to no layer.

    The size of a vocabulary table is added to its block.
    """
    words = name.split(".")
    part = weights.embedding
    if any(word in words for word in _EMBEDDING):
        part.table_bytes += n_bytes
        if len(shape) == 2:  # a table, not a scale
            part.table_rows, part.table_columns = shape
    elif any(word in words for word in _HEAD):
        part = weights.head
        part.table_bytes += n_bytes
    elif any(word in words for word in _LAST_NORM):
        part = weights.head
    elif not any(word in words for word in _POSITIONS):
        raise ValueError(f"{path}: tensor {name!r:.60} belongs to no block that is known here")
    return part
