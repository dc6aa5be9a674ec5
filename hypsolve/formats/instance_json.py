"""Instances on disk, as JSON.

A file holds the canonical arrays of `Instance` and nothing executable. Floats are written with
the shortest digits that read back to the same double, so that the digest survives. Formats of
other projects are read by `hypsolve.formats.benchmarks`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes, replacing
from hypsolve.problem.instance import ARRAY_FIELDS, Instance
from hypsolve.problem.serving import ServingInstance

FORMAT = "hypsolve-instance"
SERVING_FORMAT = "hypsolve-serving-instance"
VERSION = 2
SERVING_VERSION = 1
OLD_NAMES: dict[int, dict[str, str]] = {
    1: {"least_given": "min_blocks_given", "most_blocks": "max_blocks"}
}
"""Fields that have another name today, by the version of the file."""

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
_ASSUMED = {"empty_first_tier": True}
"""Fields that are written only where they differ from these values."""


def save(instance: Instance | ServingInstance, path: str | os.PathLike[str]) -> None:
    """Write an instance as JSON; `load` returns an instance with the same digest.

    The file is written beside `path` under a temporary name and then renamed, so that `path` is
    never half a file. Equal instances give equal files, compressed or not.

    Parameters
    ----------
    instance : Instance or ServingInstance
        The file states its kind.
    path : str or path
        Ends in ``.json`` or ``.json.gz``.

    Raises
    ------
    ValueError
        If `path` ends in neither ``.json`` nor ``.json.gz``.
    OSError
        If the folder does not exist or cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables([[[1.0, 2.0]]], [0, 0], [[(0, 0)]], name="tiny")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hs.save(instance, f"{folder}/tiny.json.gz")
    ...     hs.load(f"{folder}/tiny.json.gz") == instance
    True
    """
    if not isinstance(instance, Instance | ServingInstance):
        raise TypeError(
            f"save: instance must be an Instance or a ServingInstance, got {instance!r:.60}"
        )
    path = checked_path("save", path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: the name of an instance must end in .json or .json.gz")
    document = _document(instance)
    lines = (
        f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in document.items()
    )
    with replacing(path, "an instance") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def _document(instance: Instance | ServingInstance) -> dict[str, Any]:
    if isinstance(instance, ServingInstance):
        head = {"format": SERVING_FORMAT, "version": SERVING_VERSION}
        return head | instance.to_dict()
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    document |= {field: getattr(instance, field) for field in _PLAIN}
    document |= {
        field: given
        for field, assumed in _ASSUMED.items()
        if (given := getattr(instance, field)) != assumed
    }
    document |= {field: list(getattr(instance, field)) for field in _NAMES}
    for field in ARRAY_FIELDS:
        document[field] = _array_to_json(getattr(instance, field))
    return document


def _array_to_json(array: NDArray[Any]) -> Any:
    """Return a vector as a list, and any other array with its shape.

    Nested lists would lose the shape where an axis is empty.
    """
    if array.ndim == 1:
        return array.tolist()
    return {"shape": list(array.shape), "values": array.ravel().tolist()}


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    """Read an instance that `save` wrote, and validate it as if a user had made it.

    Files of earlier versions are read, too.

    Parameters
    ----------
    path : str or path
        A name that ends in ``.gz`` is a gzip-compressed file.
    max_bytes : int
        Larger files are refused before they are parsed. The limit holds for the compressed and
        for the unpacked size.

    Returns
    -------
    Instance or ServingInstance
        The kind that the file states.

    Raises
    ------
    ValueError
        If the content is wrong; the message names the file and the field.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/tiny.json"
    ...     hs.save(hs.Instance.from_tables([[[1.0]]], [0], [[(0, 0)]], name="tiny"), path)
    ...     hs.load(path)
    <Instance 'tiny': 1 request, 1 block, 1 tier, 1 node, bottleneck>
    """
    path = checked_path("load", path)
    document = parse_json(path, read_bytes(path, valid.whole("load", "max_bytes", max_bytes)))
    kind = document.get("format") if isinstance(document, dict) else None
    if kind == SERVING_FORMAT:
        return _serving_instance(path, document)
    if kind != FORMAT:
        raise ValueError(
            f"{path}: not an instance: a JSON object with format {FORMAT!r} or"
            f" {SERVING_FORMAT!r} is needed"
        )
    fields = _fields(path, document)
    try:
        for field in ARRAY_FIELDS:
            fields[field] = _array_from_json(field, fields[field])
        for field in _NAMES:
            if not isinstance(fields[field], list):
                raise TypeError(f"{field} must be a list of strings, got {fields[field]!r:.60}")
            fields[field] = tuple(fields[field])
        return Instance.from_arrays(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _serving_instance(path: Path, document: dict[str, Any]) -> ServingInstance:
    version = document.get("version")
    if version != SERVING_VERSION or isinstance(version, bool):
        raise ValueError(f"{path}: version must be {SERVING_VERSION}, got {version!r}")
    tables = {k: v for k, v in document.items() if k not in ("format", "version")}
    try:
        return ServingInstance.from_dict(tables)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _fields(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an instance by their names of today."""
    version = document.get("version")
    if version not in (*OLD_NAMES, VERSION) or isinstance(version, bool):
        versions = " or ".join(map(str, (*OLD_NAMES, VERSION)))
        raise ValueError(f"{path}: version must be {versions}, got {version!r}")
    renamed = OLD_NAMES.get(int(version), {})
    known = (*_PLAIN, *_NAMES, *ARRAY_FIELDS)
    written = {name: name for name in known} | {new: old for old, new in renamed.items()}
    given = [field for field in document if field not in ("format", "version")]
    taken = (*written.values(), *_ASSUMED)
    for field in given:
        if field not in taken:
            hint = valid.did_you_mean(written.get(field, field), taken).rstrip()
            raise ValueError(f"{path}: unknown field {field!r}{hint and '; ' + hint}")
    for field in written.values():
        if field not in given:
            raise ValueError(f"{path}: field {field!r} is missing")
    fields = {name: document[field] for name, field in written.items()}
    return fields | {name: document.get(name, assumed) for name, assumed in _ASSUMED.items()}


def _array_from_json(field: str, value: Any) -> NDArray[Any]:
    """Return the array; `Instance` checks the values of its numbers."""
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
