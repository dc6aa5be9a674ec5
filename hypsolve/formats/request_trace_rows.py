"""Parsers of request files; `hypsolve.read_requests` selects from their rows."""

import csv
import functools
import io
import json
import logging
import math
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import MAX_TOKENS

_LOG = logging.getLogger("hypsolve")
_COLUMNS = {  # arrival, prompt tokens, output tokens
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "hypsolve": ("arrival_s", "prompt_tokens", "output_tokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
FORMATS = ("auto", *_COLUMNS)
Record = tuple[int, tuple[Any, Any, Any]]  # line number; arrival, prompt, output
Parsers = tuple[Callable[[Any], float], Callable[[Any], int], Callable[[Any], int]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file as arrays of equal length.

    `columns` are the file's names of time, prompt and output; `line` is the line number.
    """

    path: Path
    columns: tuple[str, str, str]
    time_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    line: NDArray[np.int64]

    def take(self, which: NDArray[Any]) -> "Rows":
        """Return the rows that a mask or an array of indices selects."""
        time_s, prompt, output = self.time_s, self.prompt_tokens, self.output_tokens
        return Rows(
            self.path, self.columns,
            time_s[which], prompt[which], output[which], self.line[which],
        )  # fmt: skip


def read_rows(path: Path, content: bytes, format: str) -> Rows:
    """Parse the content of a file in one of `FORMATS`; see `hypsolve.read_requests`.

    The rows follow the rules of `Requests`, except that output tokens may be 0 and that rows
    may be out of order.
    """
    try:
        line, first = _first_line(path, content)
        if format == "auto":
            format = _guess(path, line, first)
        columns = _COLUMNS[format]
        if format == "mooncake":
            records = _json_records(path, content, columns)
            parsers: Parsers = (_milliseconds, _json_tokens(1), _json_tokens(0))
        else:
            records = _csv_records(path, content, columns)
            parsers = (_stamps() if format == "azure" else _seconds, _tokens(1), _tokens(0))
        times: array[Any] = array("q" if format == "azure" else "d")  # ns, s
        return _collect(path, columns, records, parsers, times)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text: {error}") from None


def _text(content: bytes, newline: str | None) -> TextIO:
    """Return a text stream that decodes while it is read, without a copy of a long file."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=newline)


def _first_line(path: Path, content: bytes) -> tuple[int, str]:
    """Return number and text of the first line that is not blank."""
    for line, text in enumerate(_text(content, None), start=1):
        if text.strip():
            return line, text.strip()
    raise ValueError(f"{path}: must hold at least one request, got an empty file")


def _guess(path: Path, line: int, first: str) -> str:
    if first.startswith("{"):
        return "mooncake"
    names = {name.strip(' "') for name in first.split(",")}
    tables = ("azure", "burstgpt", "hypsolve")
    formats = [name for name in tables if names.issuperset(_COLUMNS[name])]
    if not formats:
        known = ", or ".join(", ".join(_COLUMNS[name]) for name in tables)
        raise ValueError(
            f"{path}: line {line}: must name the columns {known}, or be a JSON object,"
            f" got {first!r:.60}"
        )
    return formats[0]


def _csv_records(path: Path, content: bytes, columns: tuple[str, ...]) -> Iterator[Record]:
    reader = csv.reader(_text(content, ""), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    at: list[int] = []
    try:
        for row in reader:
            if len(row) < 2 and not "".join(row).strip():
                continue
            if header is None:
                header = [name.strip() for name in row]
                at = _positions(path, reader.line_num, header, columns)
            elif len(row) != len(header):
                raise ValueError(
                    f"{path}: line {reader.line_num}: must have {len(header)} columns as the"
                    f" header, got {len(row)}"
                )
            else:
                yield reader.line_num, (row[at[0]], row[at[1]], row[at[2]])
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not CSV: {error}") from None


def _positions(path: Path, line: int, header: list[str], columns: tuple[str, ...]) -> list[int]:
    for column in columns:
        if header.count(column) != 1:
            raise ValueError(
                f"{path}: line {line}: must name the column {column} once,"
                f" got {', '.join(header)!r:.60}"
            )
    ignored = [name for name in header if name not in columns]
    if ignored:
        _LOG.info("%s: columns ignored: %s", path, ", ".join(ignored))
    return [header.index(column) for column in columns]


def _json_records(path: Path, content: bytes, columns: tuple[str, ...]) -> Iterator[Record]:
    for line, text in enumerate(_text(content, None), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            got = f"{text.strip()!r:.60}"
            raise ValueError(f"{path}: line {line}: must be a JSON object, got {got}")
        for column in columns:
            if column not in row:
                raise ValueError(f"{path}: line {line}: key {column!r} is missing")
        yield line, (row[columns[0]], row[columns[1]], row[columns[2]])


def _collect(
    path: Path,
    columns: tuple[str, str, str],
    records: Iterator[Record],
    parsers: Parsers,
    times: "array[Any]",
) -> Rows:
    """Parse the records into arrays; the text of a parser's ValueError is the broken rule."""
    parse_time, parse_prompt, parse_output = parsers
    prompts, outputs, lines = array("q"), array("q"), array("q")
    for line, values in records:
        try:
            times.append(parse_time(values[0]))
            prompts.append(parse_prompt(values[1]))
            outputs.append(parse_output(values[2]))
        except ValueError as error:
            broken = len(times) + len(prompts) - 2 * len(lines)  # index of the wrong value
            raise ValueError(
                f"{path}: line {line}: {columns[broken]} must be {error},"
                f" got {values[broken]!r:.60}"
            ) from None
        lines.append(line)
    if not lines:
        raise ValueError(f"{path}: must hold at least one request, got none")
    time_s = np.array(times)
    if times.typecode == "q":  # ns since 1970
        time_s = (time_s - time_s.min()) / 1e9
    return Rows(path, columns, time_s, np.array(prompts), np.array(outputs), np.array(lines))


def _seconds(text: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= valid.LARGEST:
        raise ValueError("a finite number >= 0")
    return value


def _milliseconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number of milliseconds")
    if not 0 <= value <= valid.LARGEST:
        raise ValueError("a finite number >= 0")
    return value / 1000


def _tokens(least: int) -> Callable[[str], int]:
    """Return a parser of a whole number in text, from `least` on."""

    def parse(text: str) -> int:
        text = _WHOLE.sub("", text.strip())  # 100.0, as pandas writes it
        if text.isdigit() and text.isascii() and len(text) < 20:
            value = int(text)
            if least <= value <= MAX_TOKENS:
                return value
        raise ValueError(f"a whole number from {least} to 2**40")

    return parse


def _json_tokens(least: int) -> Callable[[Any], int]:
    """Return a parser of a whole number in JSON, from `least` on."""

    def parse(value: Any) -> int:
        if type(value) is int and least <= value <= MAX_TOKENS:
            return value
        raise ValueError(f"a whole number from {least} to 2**40")

    return parse


_WHOLE = re.compile(r"(?<=\d)\.0*$")
_STAMP = re.compile(
    r"((?:19|20)\d\d-\d\d-\d\d)[ T]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?"
    r"(Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?",
    re.ASCII,
)


def _stamps() -> Callable[[str], int]:
    """Return a parser of times to ns since 1970.

    Either all times of a file have a zone, or none has.
    """
    zones: list[bool] = []  # of the first row

    def parse(text: str) -> int:
        match = _STAMP.fullmatch(text.strip())
        if not match:
            raise ValueError("a time like 2023-11-16 18:17:03.9799600")
        day, hour, minute, second, fraction, zone = match.groups()
        if not zones:
            zones.append(zone is not None)
        elif zones[0] != (zone is not None):
            raise ValueError(f"a time with{'' if zones[0] else 'out'} a zone, as the first row")
        seconds = _day_s(day) + 3600 * int(hour) + 60 * int(minute) + int(second)
        if zone:
            seconds -= _zone_s(zone)
        return seconds * 10**9 + (int(fraction.ljust(9, "0")) if fraction else 0)

    return parse


@functools.cache
def _day_s(day: str) -> int:
    try:
        return (date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()) * 86_400
    except ValueError:
        raise ValueError("a day of the calendar") from None


@functools.cache
def _zone_s(zone: str) -> int:
    if zone == "Z":
        return 0
    east = 3600 * int(zone[1:3]) + 60 * int(zone[-2:])
    return -east if zone[0] == "-" else east
