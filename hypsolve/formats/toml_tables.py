"""Tables of TOML files, checked against the types that describe them."""

import functools
import re
import tomllib
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from hypsolve.problem import validation as valid
from hypsolve.problem.files import read_bytes

MAX_BYTES = 2**26

Table = TypeVar("Table")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises
    ------
    ValueError
        If it is not TOML, or too large; the message names the file.
    OSError
        If the file does not exist or cannot be read.
    """
    return parse_toml(path, read_bytes(path, MAX_BYTES))


def parse_toml(path: Path, content: bytes) -> dict[str, Any]:
    """Parse the content of a TOML file; errors are those of `read_toml`."""
    try:
        return tomllib.loads(content.decode())
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError also for a number of 5,000 digits
        raise ValueError(f"{path}: not TOML: {error}") from None


def header_lines(content: bytes, key: str) -> list[int]:
    """Return the line of each header ``[[key]]`` of a TOML file, counted from 1.

    Headers inside a string of several lines are found, too, and entries of an inline list are
    not: the lines are those of the entries if there are as many.
    """
    header = re.compile(rb"[ \t]*\[\[[ \t]*" + key.encode() + rb"[ \t]*\]\]")
    lines = enumerate(content.splitlines(), start=1)
    return [number for number, line in lines if header.match(line)]


def key_line(content: bytes, key: str) -> int | None:
    """Return the line of ``[key]`` or of ``key = ...`` if there is one such line, else None."""
    name = key.encode()
    start = re.compile(rb"[ \t]*(\[[ \t]*" + name + rb"[ \t]*\]|" + name + rb"[ \t]*=)")
    lines = enumerate(content.splitlines(), start=1)
    found = [number for number, line in lines if start.match(line)]
    return found[0] if len(found) == 1 else None


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def checked_table(owner: str, kind: type[Table], entry: Any) -> Table:
    """Return a table whose keys and values follow the rules of its type.

    Nested tables are not checked: their readers know the names for error messages.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"{owner}: must be a table, got {entry!r:.60}")
    record: Any = kind
    hints = _hints(record)
    for key in sorted(entry.keys() - hints.keys()):
        hint = valid.did_you_mean(key, hints)
        raise ValueError(f"{owner}: unknown key {key!r}; {hint}known: {sorted(hints)}")
    for key in sorted(record.__required_keys__ - entry.keys()):
        raise ValueError(f"{owner}: key {key!r} is missing")
    return cast(
        Table,
        {key: checked_value(owner, key, value, hints[key]) for key, value in entry.items()},
    )


def checked_value(owner: str, key: str, value: Any, hint: Any) -> Any:
    """Return a value that follows the rules of its key, which `hint` describes."""
    if get_origin(hint) is NotRequired:
        (hint,) = get_args(hint)
    if get_origin(hint) is not Annotated:
        return value
    kind, rule = get_args(hint)
    if kind is str:
        return valid.text(owner, key, value)
    if kind is bool:
        return valid.flag(owner, key, value)
    if get_origin(kind) is dict and not isinstance(value, dict):
        hint = f"; write [{key}.NAME], not [[{key}]]" if isinstance(value, list) else ""
        raise TypeError(f"{owner}: {key} must be tables, got {value!r:.60}{hint}")
    if get_origin(kind) is list:
        if rule.minimum and (not isinstance(value, list) or len(value) < rule.minimum):
            least = "one" if rule.minimum == 1 else rule.minimum
            raise ValueError(
                f"{owner}: {key} must be a list of at least {least}, got {value!r:.60}"
            )
        if not isinstance(value, list):
            raise TypeError(f"{owner}: {key} must be a list, got {value!r:.60}")
        return [checked_value(owner, key, each, *get_args(kind)) for each in value]
    if kind is int:
        value = valid.whole(owner, key, value, minimum=rule.minimum)
    elif kind is float:
        value = valid.real(owner, key, value, minimum=rule.minimum, strict=rule.strict)
    if kind in (int, float) and value > rule.maximum:
        raise ValueError(f"{owner}: {key} must be at most {rule.maximum:g}, got {value!r}")
    return value
