"""Instances on disk: our JSON, and readers for the plain text files of two older problems.

The JSON holds the canonical arrays of `Instance` and nothing executable; floats are written
with the shortest digits that read back to the same double, so the digest survives.
"""

import contextlib
import dataclasses
import gzip
import json
import math
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve import validation as valid
from hypsolve.problem import Instance, Objective

FORMAT = "hypsolve-instance"
VERSION = 1
MAX_BYTES = 2**30
_NUMBER = (int, float, np.number)

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
_ARRAYS = tuple(
    field.name for field in dataclasses.fields(Instance) if field.name not in _NAMES + _PLAIN
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
    path = Path(path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: the name of an instance must end in .json or .json.gz")
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    document |= {field: getattr(instance, field) for field in _PLAIN}
    document |= {field: list(getattr(instance, field)) for field in _NAMES}
    for field in _ARRAYS:
        document[field] = _array_to_json(getattr(instance, field))
    lines = (
        f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in document.items()
    )
    _replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _array_to_json(array: NDArray[Any]) -> Any:
    """Vectors as lists; others with their shape, which lists lose where an axis is empty."""
    if array.ndim == 1:
        return array.tolist()
    return {"shape": list(array.shape), "values": array.ravel().tolist()}


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            if path.name.endswith(".gz"):
                # no name, no time: equal instances make equal files
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    packed.write(content)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write an instance here: {error.strerror}", str(path)
        ) from None
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            temporary.unlink()


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
    path = Path(path)
    document = _parse(path, _read_bytes(path, max_bytes))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not an instance: a JSON object with format {FORMAT!r} is needed"
        )
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"{path}: version must be {VERSION}, got {version!r}")
    fields = {key: document[key] for key in document if key not in ("format", "version")}
    known = (*_PLAIN, *_NAMES, *_ARRAYS)
    for field in known:
        if field not in fields:
            raise ValueError(f"{path}: field {field!r} is missing")
    for field in fields:
        if field not in known:
            raise ValueError(f"{path}: unknown field {field!r}")
    try:
        for field in _ARRAYS:
            fields[field] = _array_from_json(field, fields[field])
        for field in _NAMES:
            if not isinstance(fields[field], list):
                raise TypeError(f"{field} must be a list of strings, got {fields[field]!r:.60}")
            fields[field] = tuple(fields[field])
        return Instance(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read_bytes(path: Path, max_bytes: int) -> bytes:
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


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        return _read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text: {error}") from None


def _parse(path: Path, content: bytes) -> Any:
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


def read_chains(
    path: str | os.PathLike[str],
    *,
    n_tiers: int | None = None,
    speeds: Sequence[float | Sequence[float]] | None = None,
    memory: float | Sequence[float] | None = None,
    allow_empty: bool = False,
    objective: Objective | str = Objective.BOTTLENECK,
    max_bytes: int = MAX_BYTES,
) -> Instance:
    """Read a chains-on-chains partitioning problem from plain columns.

    There is no common file format for this problem; published chains (rows of sparse matrices,
    scan lines of images) are columns of task weights. Read are lines of one to three numbers,
    separated by blanks, tabs or commas: the weight of a task; the seconds of communication if
    the chain is cut after it (default 0; that of the last task is not used, nothing leaves the
    chain); the memory of the task. All lines have equally many. ``#`` starts a comment.

    Parameters
    ----------
    path : str or path
    n_tiers : int
        That many processors of speed 1; or give `speeds`.
    speeds : sequence of float, or of sequences of float
        Weight per second of each processor in chain order, or of each node of each tier.
    memory : float or sequence of float
        Memory of the nodes of all tiers, or of each tier; needs the third column.
    allow_empty : bool
        Whether a processor may get no task.
    objective : Objective or str
    max_bytes : int
        Larger files are refused.

    Raises
    ------
    ValueError, TypeError
        With the number of the wrong line, or naming the argument.

    References
    ----------
    .. [1] A. Pinar, E. K. Tabak, C. Aykanat, "One-dimensional partitioning for heterogeneous
       systems", JPDC 68, 2008.
    """
    path = Path(path)
    rows = list(_number_lines(path, max_bytes))
    if not rows:
        raise ValueError(f"{path}: must hold at least one task, got none")
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width or width > 3:
            wanted = f"{width} columns as the first" if width <= 3 else "1 to 3 columns"
            raise ValueError(f"{path}: line {line}: must have {wanted}, got {len(row)}")
    columns = np.array([row for _, row in rows])
    if (n_tiers is None) == (speeds is None):
        raise ValueError("chains: give either n_tiers or speeds")
    if speeds is None:
        speeds = [1.0] * valid.whole("chains", "n_tiers", n_tiers, least=1)
    tier_speeds = [
        [
            valid.real("chains", "speeds", speed, strict=True)
            for speed in ([tier] if isinstance(tier, _NUMBER) else tier)
        ]
        for tier in speeds
    ]
    if memory is not None and width < 3:
        raise ValueError(f"{path}: memory needs a third column, got {width}")
    if memory is None and width == 3:
        raise ValueError(f"{path}: a third column needs memory of the tiers, got None")
    each = memory or 0.0
    limits = [each] * len(tier_speeds) if isinstance(each, _NUMBER) else list(each)
    if len(limits) != len(tier_speeds):
        raise ValueError(
            f"chains: memory must have {len(tier_speeds)} entries, got {len(limits)}"
        )
    classes = sorted({speed for tier in tier_speeds for speed in tier})
    n_blocks, n_links = len(columns), max(len(tier_speeds) - 1, 0)
    transfer_s = np.zeros((1, n_links, n_blocks + 1))
    if width > 1:
        transfer_s[:, :, 1:-1] = columns[:-1, 1]
    return Instance.from_tables(
        block_s=columns[None, None, :, 0] / np.array(classes)[None, :, None],
        block_bytes=columns[:, 2] if width == 3 else np.zeros(n_blocks),
        tiers=[
            [(classes.index(speed), limit) for speed in tier]
            for tier, limit in zip(tier_speeds, limits, strict=True)
        ],
        transfer_s=transfer_s,
        objective=objective,
        allow_empty=allow_empty,
        name=path.stem,
    )


def read_hybrid_flow_shop(
    path: str | os.PathLike[str],
    *,
    layout: str = "auto",
    objective: Objective | str = Objective.MAKESPAN,
    max_bytes: int = MAX_BYTES,
) -> Instance:
    """Read a hybrid flow shop (identical parallel machines at each stage) from text.

    Each stage of the shop becomes a tier that hosts exactly one block, each machine a node.
    Numbers are separated by blanks, tabs or commas; ``#`` starts a comment. Layouts:

    ``jobs``
        ``n_jobs n_stages`` (on one line or two); machines per stage; one line per job with its
        processing time at each stage. Sets that predate any convention, such as that of
        Carlier and Neron [1]_, circulate in several layouts: this is the commonest.
    ``stages``
        The same, but one line per stage with the time of each job: the testbed of
        Fernandez-Viagas and Framinan [2]_.
    ``taillard``
        ``n_jobs n_machines ...``, no line of machines (one per stage), then one line per
        machine as in Taillard's flow shops [3]_; lines of words are skipped. One problem per
        file.
    ``auto``
        ``jobs`` or ``stages``, whichever the lines fit; refused if both do.

    A last line that starts with the word ``release`` gives the release date of each job.

    Parameters
    ----------
    path : str or path
    layout : str
    objective : Objective or str
        ``makespan``, or ``mean_latency`` for the mean flow time.
    max_bytes : int
        Larger files are refused.

    Raises
    ------
    ValueError
        With the number of the wrong line.

    References
    ----------
    .. [1] J. Carlier, E. Neron, "An exact method for solving the multi-processor flow-shop",
       RAIRO Oper. Res. 34, 2000.
    .. [2] V. Fernandez-Viagas, J. M. Framinan, "Design of a testbed for hybrid flow shop
       scheduling with identical machines", Comput. Ind. Eng. 141, 2020.
    .. [3] E. Taillard, "Benchmarks for basic scheduling problems", EJOR 64, 1993.
    """
    if layout not in ("auto", "jobs", "stages", "taillard"):
        raise ValueError(
            f"unknown layout {layout!r}; choose one of auto, jobs, stages, taillard"
        )
    path = Path(path)
    release: list[tuple[int, list[float]]] = []
    rows = list(_number_lines(path, max_bytes, release, skip_words=layout == "taillard"))
    if layout != "taillard" and len(rows) > 1 and len(rows[0][1]) == len(rows[1][1]) == 1:
        rows[:2] = [(rows[1][0], rows[0][1] + rows[1][1])]  # header on two lines
    if not rows or len(rows[0][1]) < 2 or (len(rows[0][1]) > 2 and layout != "taillard"):
        line = rows[0][0] if rows else 1
        raise ValueError(f"{path}: line {line}: must be the numbers of jobs and stages")
    n_jobs, n_stages = (_count(path, rows[0][0], value) for value in rows[0][1][:2])
    body = rows[1:]
    machines = [1] * n_stages
    if layout != "taillard":
        if not body or len(body[0][1]) != n_stages:
            line, got = (body[0][0], len(body[0][1])) if body else (rows[0][0] + 1, 0)
            raise ValueError(
                f"{path}: line {line}: must be the machines of {n_stages} stages, got {got}"
            )
        machines = [_count(path, body[0][0], value) for value in body[0][1]]
        body = body[1:]
    if layout == "auto":
        layout = _guess_layout(path, body, n_jobs, n_stages)
    per_job = layout == "jobs"
    n_rows, width = (n_jobs, n_stages) if per_job else (n_stages, n_jobs)
    what = f"{'jobs' if per_job else 'stages'} of {width} processing times"
    for line, row in body[:n_rows]:
        if len(row) != width:
            raise ValueError(
                f"{path}: line {line}: must be one of {n_rows} {what}, got {len(row)} numbers"
            )
    if len(body) != n_rows:
        line = body[n_rows][0] if len(body) > n_rows else (body or rows)[-1][0]
        raise ValueError(f"{path}: line {line}: must have {n_rows} {what}, got {len(body)}")
    times = np.array([row for _, row in body])
    for line, dates in release:
        if len(dates) != n_jobs:
            raise ValueError(
                f"{path}: line {line}: must have {n_jobs} release dates, got {len(dates)}"
            )
    return Instance.from_tables(
        block_s=(times if per_job else times.T)[:, None, :],
        block_bytes=np.zeros(n_stages),
        tiers=[[(0, 0.0)] * count for count in machines],
        arrival_s=release[-1][1] if release else np.zeros(n_jobs),
        objective=objective,
        least_blocks=[1] * n_stages,
        most_blocks=[1] * n_stages,
        name=path.stem,
    )


def _guess_layout(
    path: Path, body: list[tuple[int, list[float]]], n_jobs: int, n_stages: int
) -> str:
    if n_jobs == n_stages:
        raise ValueError(
            f"{path}: with as many jobs as stages, layout must be given: jobs or stages"
        )
    return "stages" if body and len(body[0][1]) == n_jobs else "jobs"


def _count(path: Path, line: int, value: float) -> int:
    if value % 1 or not 1 <= value <= 10**6:
        raise ValueError(f"{path}: line {line}: must be whole, in 1..1000000, got {value:g}")
    return int(value)


def _number_lines(
    path: Path,
    max_bytes: int,
    release: list[tuple[int, list[float]]] | None = None,
    *,
    skip_words: bool = False,
) -> Iterator[tuple[int, list[float]]]:
    """Yield (line number, numbers) of each line that has any; `release` takes its own lines."""
    for line, text in enumerate(_read_text(path, max_bytes).splitlines(), start=1):
        words = text.partition("#")[0].replace(",", " ").split()
        if release is not None and words and words[0].rstrip(":").lower() == "release":
            release.append((line, [_number(path, line, word) for word in words[1:]]))
        elif words and not (skip_words and words[0][0].isalpha()):
            yield line, [_number(path, line, word) for word in words]


def _number(path: Path, line: int, word: str) -> float:
    try:
        number = math.nan if "_" in word else float(word)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{path}: line {line}: must be a finite number >= 0, got {word!r:.40}")
    return number
