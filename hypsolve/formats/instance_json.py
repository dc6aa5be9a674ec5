"""Instances on disk: our JSON; `hypsolve.formats.benchmarks` reads what others have written.

The JSON holds the canonical arrays of `Instance` and nothing executable; floats are written
with the shortest digits that read back to the same double, so the digest survives.
"""

import json
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes, replacing
from hypsolve.problem.instance import ARRAY_FIELDS, Instance

FORMAT = "hypsolve-instance"
VERSION = 2
OLD_NAMES: dict[int, dict[str, str]] = {
    1: {"least_given": "min_blocks_given", "most_blocks": "max_blocks"}
}  # by version

_NAMES = ("tier_names", "node_names", "class_names")
_PLAIN = (
    "name",
    "objective",
    "stage_rule",
    "link_cost",
    "allow_empty",
    "overlap",
    "extrapolated",
    "tied_bytes",
)


def save(instance: Instance, path: str | os.PathLike[str]) -> None:
    """Write an instance as JSON; `load` gives back one with the same digest.

    Written to a temporary file beside `path` and renamed, so that `path` is never half a file.
    A gzip file is the same bytes whenever it is written.

    Parameters
    ----------
    instance : Instance
    path : str or path
        Ends in ``.json`` or ``.json.gz``.

    Raises
    ------
    ValueError
        If `path` ends otherwise.
    OSError
        If the folder is absent or not writable.
    """
    valid.of_type("save", "instance", instance, Instance)
    path = checked_path("save", path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: the name of an instance must end in .json or .json.gz")
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    document |= {field: getattr(instance, field) for field in _PLAIN}
    document |= {field: list(getattr(instance, field)) for field in _NAMES}
    for field in ARRAY_FIELDS:
        document[field] = _array_to_json(getattr(instance, field))
    lines = (
        f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in document.items()
    )
    with replacing(path, "an instance") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def _array_to_json(array: NDArray[Any]) -> Any:
    """Vectors as lists; others with their shape, which lists lose where an axis is empty."""
    if array.ndim == 1:
        return array.tolist()
    return {"shape": list(array.shape), "values": array.ravel().tolist()}


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Instance:
    """Read what `save` wrote, checking everything: a file may come from anywhere.

    Parameters
    ----------
    path : str or path
        ``.gz``: gzip-compressed.
    max_bytes : int
        Larger files, compressed or not, are refused before they are parsed.

    Raises
    ------
    ValueError
        Naming the file and what is wrong with its content.
    OSError
        If there is no such file, or it cannot be read.
    """
    path = checked_path("load", path)
    document = parse_json(path, read_bytes(path, valid.whole("load", "max_bytes", max_bytes)))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not an instance: a JSON object with format {FORMAT!r} is needed"
        )
    version = document.get("version")
    if version not in (*OLD_NAMES, VERSION) or isinstance(version, bool):
        versions = " or ".join(map(str, (*OLD_NAMES, VERSION)))
        raise ValueError(f"{path}: version must be {versions}, got {version!r}")
    renamed = OLD_NAMES.get(int(version), {})
    fields: dict[str, Any] = {
        renamed.get(str(key), str(key)): value
        for key, value in document.items()
        if key not in ("format", "version")
    }
    known = (*_PLAIN, *_NAMES, *ARRAY_FIELDS)
    for field in known:
        if field not in fields:
            raise ValueError(f"{path}: field {field!r} is missing")
    for field in fields:
        if field not in known:
            raise ValueError(f"{path}: unknown field {field!r}")
    try:
        for field in ARRAY_FIELDS:
            fields[field] = _array_from_json(field, fields[field])
        for field in _NAMES:
            if not isinstance(fields[field], list):
                raise TypeError(f"{field} must be a list of strings, got {fields[field]!r:.60}")
            fields[field] = tuple(fields[field])
        return Instance(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _array_from_json(field: str, value: Any) -> NDArray[Any]:
    """Give the array back; its numbers are checked by `Instance`."""
    if isinstance(value, list):
        shape, values = [len(value)], value
    elif isinstance(value, dict) and value.keys() == {"shape", "values"}:
        shape, values = value["shape"], value["values"]
    else:
        raise ValueError(f"{field} must be a list, or a shape and values, got {value!r:.60}")
    if not (
        isinstance(values, list)
        and isinstance(shape, list)
        and all(type(n) is int and n >= 0 for n in shape)
        and math.prod(shape) == len(values)
    ):
        raise ValueError(
            f"{field} must have as many values as its shape says, got {shape!r:.60}"
        )
    if not all(type(number) in (int, float) for number in values):
        wrong = next(number for number in values if type(number) not in (int, float))
        raise TypeError(f"{field} must hold numbers, got {wrong!r:.60}")
    return np.array(values, dtype=np.float64).reshape(shape)
