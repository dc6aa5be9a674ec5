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
    """Open a file to write that takes the place of `path` once it is whole; .gz is packed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(temporary.open("xb"))
            stack.callback(_sync, raw)
            binary: Any = raw
            if path.name.endswith(".gz"):
                # no name, no time: equal contents make equal files
                binary = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
            stack.callback(text.detach)  # flushes, and leaves `raw` open for the others
            yield text
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {what} here: {error.strerror}", str(path)
        ) from None
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def checked_path(owner: str, path: Any) -> Path:
    """Return `path`, which must be a string or a path, as a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{owner}: path must be a string or a path, got {path!r:.60}")
    return Path(path)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file, unpacked if it is gzip, of at most `max_bytes`."""
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
    """Return what a JSON document holds; keys once, numbers finite, errors with the path."""
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
