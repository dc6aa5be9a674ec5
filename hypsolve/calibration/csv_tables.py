"""Tables in CSV, and the numbers in files of measurements: `read_table`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_WHOLE = 2**40


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table, and where it is.

    Attributes
    ----------
    owner : str
        File and line, for messages.
    label : str
        The line, such as ``line 2``.
    cells : dict of str to str
        By the name of the column.
    """

    owner: str
    label: str
    cells: dict[str, str]


def read_table(
    path: Path, text: str, columns: Sequence[str]
) -> tuple[list[str], list[TableRow]]:
    r"""Return the names of all columns of a table, and its rows.

    Parameters
    ----------
    path : Path
        Named in messages.
    text : str
        CSV with the columns `columns`, in any order and among others.

    Raises
    ------
    ValueError
        If a column is missing, or a row has more or fewer cells than the first line; the
        message names the file and the line.

    Examples
    --------
    >>> text = "ttft_ms,note\n5,a\n\n7,b\n"
    >>> _, rows = read_table(Path("runs.csv"), text, ["ttft_ms"])
    >>> [(row.owner, row.cells["ttft_ms"]) for row in rows]
    [('runs.csv: line 2', '5'), ('runs.csv: line 4', '7')]
    """
    table = csv.DictReader(io.StringIO(text))
    names = list(table.fieldnames or ())
    for name in columns:
        if name not in names:
            raise ValueError(
                f"{path}: column {name!r} is missing; needed are {', '.join(columns)}"
            )
    rows = []
    for cells in table:
        label = f"line {table.line_num}"
        if None in cells or None in cells.values():
            raise ValueError(f"{path}: {label}: must have as many cells as the first line")
        rows.append(TableRow(f"{path}: {label}", label, cells))
    return names, rows


def number(owner: str, key: str, value: Any) -> float:
    """Return a number of a file that is not negative; text with digits is one, too.

    Raises
    ------
    ValueError
        If it is missing or none; the message names owner, key, rule and value.
    """
    return _number(owner, key, value, strict=False)


def positive(owner: str, key: str, value: Any) -> float:
    """Return a positive number of a file.

    Raises
    ------
    ValueError
        If it is missing or none; the message names owner, key, rule and value.
    """
    return _number(owner, key, value, strict=True)


def positive_whole(owner: str, key: str, value: Any) -> int:
    """Return a positive whole number of a file, up to `MAX_WHOLE`.

    Raises
    ------
    ValueError
        If it is missing or none; the message names owner, key, rule and value.
    """
    found = positive(owner, key, value)
    if found % 1 or found > MAX_WHOLE:
        raise ValueError(
            f"{owner}: {key} must be a whole number up to 2**40, got {value!r:.60}"
        )
    return int(found)


def _number(owner: str, key: str, value: Any, *, strict: bool) -> float:
    """Return a finite number of at least 0, or above 0 if `strict`."""
    if value is None:
        raise ValueError(f"{owner}: key {key!r} is missing")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf or (strict and not found):
        rule = "a positive number" if strict else "a number of at least 0"
        raise ValueError(f"{owner}: {key} must be {rule}, got {value!r:.60}")
    return found
