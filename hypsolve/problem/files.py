"""Read and write files safely: size limits, strict JSON, atomic replacement."""

import contextlib
import gzip
import io
import json
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

MAX_BYTES = 2**30


@contextlib.contextmanager
def replacing(path: Path, what: str) -> Iterator[TextIO]:
    """Open a temporary file that replaces `path` after the block; ``.gz`` is compressed.

    If the block raises, `path` keeps its content and the temporary file is removed. `what`
    names the content in the error message.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(temporary.open("xb"))
            stack.callback(_sync, raw)
            binary: Any = raw
            if path.name.endswith(".gz"):
                # without name and time, equal contents give equal files
                binary = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
            stack.callback(text.detach)  # flushes and leaves `raw` open
            yield text
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {what} here: {error.strerror}", str(path)
        ) from None
    finally:
        with contextlib.suppress(OSError):  # renamed already, or never created
            temporary.unlink()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def checked_path(owner: str, path: Any) -> Path:
    """Return `path` as a `Path`; raise TypeError unless it is a string or a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{owner}: path must be a string or a path, got {path!r:.60}")
    return Path(path)


def save_json(
    path: Any, content: dict[str, Any], *, what: str = "result", indent: int | None = None
) -> None:
    """Write a result, or what `what` names, as JSON to a ``.json`` or ``.json.gz`` path.

    Raises
    ------
    ValueError
        If `path` ends in something else.
    OSError
        If the folder does not exist or cannot be written to.
    """
    path = checked_path("save", path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: the name of a {what} must end in .json or .json.gz")
    with replacing(path, f"a {what}") as file:
        file.write(json.dumps(content, allow_nan=False, indent=indent) + "\n")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file, decompressed if its name ends in ``.gz``.

    Raises
    ------
    ValueError
        If the file or its decompressed content exceeds `max_bytes`, or the compression is
        broken.
    OSError
        If the file does not exist or cannot be read.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path}: file must have at most {max_bytes} bytes, got {size}")
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from None
    if len(content) > max_bytes:
        raise ValueError(f"{path}: file must have at most {max_bytes} bytes when unpacked")
    return content


def parse_json(path: Path, content: bytes) -> Any:
    """Parse JSON strictly: keys must be distinct and numbers finite.

    Raises
    ------
    ValueError
        If the content is invalid; the message names the path and the fault.
    """
    try:
        return json.loads(
            content.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(error.doc.rstrip())
        what = "truncated JSON" if cut_off else "not JSON"
        raise ValueError(f"{path}: {what}: {error}") from None
    except ValueError as error:  # also UnicodeDecodeError, and numbers of too many digits
        raise ValueError(f"{path}: {error}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return document


def _refuse_constant(token: str) -> float:
    raise ValueError(f"numbers must be finite, got {token}")
