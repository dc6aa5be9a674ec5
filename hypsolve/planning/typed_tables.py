"""`check_table`: check that a JSON document has the types that a `TypedDict` states."""

from __future__ import annotations

import types
from enum import StrEnum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from hypsolve.problem import validation as valid

WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
LARGEST = 2**63  # of whole numbers


def check_table(owner: str, table: Any, kind: Any) -> dict[str, Any]:
    """Return a table if it has the fields of a `TypedDict`, at any depth, and no others.

    Parameters
    ----------
    owner : str
        What messages begin with, such as the path of the file.
    table : any
        As `json` reads it.
    kind : type
        A `TypedDict`.

    Raises
    ------
    ValueError, TypeError
        If a field is missing, unknown, or has a wrong type; the message names it.

    Examples
    --------
    >>> from typing import TypedDict
    >>> class Point(TypedDict):
    ...     x: float
    ...     name: str | None
    >>> check_table("point", {"x": 1, "name": None}, Point)
    {'x': 1, 'name': None}
    >>> check_table("point", {"x": "1", "name": None}, Point)
    Traceback (most recent call last):
    TypeError: point: x must be a number, got '1'
    """
    if not isinstance(table, dict):
        raise TypeError(f"{owner}: must be a table, got {table!r:.60}")
    _check_fields(owner, "", table, kind)
    return table


def _check_fields(owner: str, where: str, table: dict[str, Any], kind: Any) -> None:
    hints = get_type_hints(kind, include_extras=True)
    within = f"{owner}: {where}" if where else owner
    for key in table:
        valid.known(f"field of {within}", key, hints)
    for key, each in hints.items():
        if key in table:
            _check(owner, f"{where}.{key}" if where else key, table[key], each)
        elif get_origin(each) is not NotRequired:
            raise ValueError(f"{within}: field {key!r} is missing")


def _check(owner: str, where: str, value: Any, hint: Any) -> None:
    """Raise TypeError or ValueError unless a value has the type of a hint."""
    while get_origin(hint) in (Annotated, NotRequired):
        hint = get_args(hint)[0]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return
        others = [each for each in parts if each is not type(None)]
        if len(others) == 1:
            _check(owner, where, value, others[0])
            return
        raise TypeError(f"{owner}: {where} must be one of {hint}")  # no file has such a field
    if is_typeddict(hint):
        if not isinstance(value, dict):
            raise TypeError(f"{owner}: {where} must be a table, got {value!r:.60}")
        _check_fields(owner, where, value, hint)
    elif origin is list or origin is tuple:
        _check_list(owner, where, value, parts if origin is tuple else None, parts[0])
    elif origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{owner}: {where} must be a table, got {value!r:.60}")
        for key, each in value.items():
            _check(owner, f"{where}.{key}", each, parts[1])
    elif origin is Literal:
        if type(value) is not type(parts[0]) or value not in parts:
            known = ", ".join(map(repr, parts))
            raise ValueError(f"{owner}: {where} must be {known}, got {value!r:.60}")
    elif isinstance(hint, type) and issubclass(hint, StrEnum):
        if not isinstance(value, str) or value not in list(hint):
            known = ", ".join(map(str, hint))
            raise ValueError(f"{owner}: {where} must be one of {known}, got {value!r:.60}")
    elif hint is not Any:
        _check_plain(owner, where, value, hint)


def _check_list(owner: str, where: str, value: Any, parts: Any, every: Any) -> None:
    if not isinstance(value, list):
        raise TypeError(f"{owner}: {where} must be a list, got {value!r:.60}")
    if parts is not None and len(value) != len(parts):
        raise ValueError(
            f"{owner}: {where} must have {len(parts)} entries, got {len(value)}: {value!r:.60}"
        )
    for n, each in enumerate(value):
        _check(owner, f"{where}[{n}]", each, every if parts is None else parts[n])


def _check_plain(owner: str, where: str, value: Any, kind: type) -> None:
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:
        raise TypeError(f"{owner}: {where} must be {WORDS[kind]}, got {value!r:.60}")
    if type(value) is int and abs(value) >= LARGEST:
        raise ValueError(f"{owner}: {where} must be below 2**63, got {value!r:.60}")
