"""CSV files with one writer: rows are appended one at a time, and a torn row is repaired."""

import csv
import io
import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two sweeps on one file are not detected
    fcntl = None  # type: ignore[assignment]

Row = Mapping[str, Any]
_ROOT = Path(__file__).parent.parent
COMPUTING = ("numpy", "numba", "ortools", "pulp", "highspy")  # packages that decide rows
_SHOWING = ("pandas", "matplotlib")


@dataclass(frozen=True, slots=True)
class Record:
    """An open CSV: its rows as text, and `append`. Open one with `recording`."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    file: IO[bytes]

    def append(self, row: Row) -> None:
        """Write one row in one piece, and flush it to the disk."""
        texts = {column: as_text(row[column]) for column in self.columns}
        _write(self.file, _line(texts.values()))
        os.fsync(self.file.fileno())
        self.rows.append(texts)

    def n_written(self) -> int:
        """Count the rows in the file: an interrupt may have come before `rows` had the last."""
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        return len(_parse(self.path, whole + newline, self.columns))


@contextmanager
def recording(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Open and lock a CSV to append rows; drop a last line that a crash left incomplete.

    Raises
    ------
    OSError
        If the file cannot be written, another process writes to it, or its columns differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"{path} is being written by another sweep") from None
        file.seek(0)
        whole, newline, torn = file.read().rpartition(b"\n")
        if torn:
            file.truncate(len(whole) + len(newline))
        rows = _parse(path, whole + newline, tuple(columns))
        if not newline:
            _write(file, _line(columns))
        yield Record(path, tuple(columns), rows, file)


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait for a lock file and hold it; a file system without locks grants it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if fcntl is not None:
            with suppress(OSError):  # some network file systems
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_text(value: Any) -> str:
    """Return the text of a value in the CSV: floats are exact, and all is on one line."""
    return "" if value is None else " ".join(str(value).split())


def _write(file: IO[bytes], line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(f"{file.name}: a row was written in part only: is the disk full?")


def _line(texts: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(texts)
    return buffer.getvalue().encode()


def _parse(path: Path, data: bytes, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        lines = list(csv.reader(io.StringIO(data.decode()), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise OSError(f"{path} is not a CSV of a sweep: {error}") from None
    if lines and tuple(lines[0]) != columns:
        raise OSError(f"{path} has other columns than this version writes: move it away")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(columns):
            raise OSError(
                f"{path}: line {number} must have {len(columns)} columns, got {len(line)}:"
                " delete that line, or move the file away"
            )
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def provenance(command: str) -> dict[str, Any]:
    """Return the origin of rows: command, date, commit, versions (`machine` adds the rest)."""
    # a sweep and its readers change results and notebooks themselves
    changes = _git("status", "--porcelain", "--", ".", ":!results", ":!notebooks")
    return {
        "command": command,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        **software(*COMPUTING, *_SHOWING),
    }


def software(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python, this checkout and packages; None for a missing one."""
    return {
        "python": platform.python_version(),
        "hypsolve": hypsolve_version(),
        **{package: _version(package) for package in packages},
    }


def machine() -> dict[str, Any]:
    """Describe this machine, without its name."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def hypsolve_version() -> str:
    """Return the version of this checkout, whichever version is installed."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def note_session(csv_path: Path, session: Mapping[str, Any], first_row: int) -> None:
    """Add a sweep to the JSON file beside its CSV: its rows begin at `first_row`.

    Sessions that begin there or later are replaced: they wrote no row.
    """
    path = csv_path.with_suffix(".json")
    try:
        sessions = json.loads(path.read_text())["sessions"]
        sessions = [before for before in sessions if before["first_row"] < first_row]
    except FileNotFoundError:
        sessions = []
    except (ValueError, KeyError, TypeError):
        raise OSError(f"{path} is not the provenance of a sweep: move it away") from None
    sessions.append({**session, "first_row": first_row})
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({"sessions": sessions}, indent=2) + "\n")
    partial.replace(path)


def _git(*arguments: str) -> str | None:
    """Return the output of git in this checkout; None without git or outside a checkout."""
    try:
        answer = subprocess.run(
            ("git", *arguments),
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
