"""Readers of text files of two classical problems: chains on chains, hybrid flow shops."""

import math
import numbers
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.files import MAX_BYTES, checked_path, read_bytes
from hypsolve.problem.instance import Instance, Objective

MAX_NODES = 10**5  # a node is a few Python objects: seconds, not minutes
_LAYOUTS = ("auto", "jobs", "stages", "taillard")


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
    r"""Read a chains-on-chains partitioning problem from columns of numbers.

    The problem has no common file format: published chains [1]_ (rows of sparse matrices, scan
    lines of images) are columns of task weights. A line has one to three numbers, separated by
    blanks, tabs or commas: the weight of a task; the seconds of communication if the chain is
    cut after it (default 0; the number of the last task is not used); the memory of the task.
    All lines have the same number of columns. ``#`` starts a comment.

    Parameters
    ----------
    path : str or path
    n_tiers : int
        Number of processors of speed 1. Give either `n_tiers` or `speeds`.
    speeds : sequence of float, or of sequences of float
        Weight per second of each processor in chain order, or of each node of each tier.
    memory : float or sequence of float
        Memory of the nodes, one number for all tiers or one for each; needs the third column.
    allow_empty : bool
        Whether a processor may get no task.
    objective : Objective or str
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    Instance
        A block per task and a tier per processor; named after the file.

    Raises
    ------
    ValueError, TypeError
        If a line or an argument is invalid; the message names it.
    OSError
        If the file does not exist or cannot be read.

    References
    ----------
    .. [1] A. Pinar, E. K. Tabak, C. Aykanat, "One-dimensional partitioning for heterogeneous
       systems", JPDC 68, 2008.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "chain.txt")
    ...     _ = path.write_text("4\n2\n6\n")
    ...     instance = hs.read_chains(path, speeds=[1, 2])
    >>> hs.solve(instance, "hypsplit_dp")
    <Result of hypsplit_dp on 'chain': optimal, bottleneck 4 s, gap 0.000%>
    """
    if (n_tiers is None) == (speeds is None):
        raise ValueError("read_chains: give either n_tiers or speeds")
    if speeds is None:
        speeds = [1.0] * _at_most_nodes(
            "n_tiers", valid.whole("read_chains", "n_tiers", n_tiers, minimum=1)
        )
    tier_speeds = _tier_speeds(speeds)
    path = checked_path("read_chains", path)
    max_bytes = valid.whole("read_chains", "max_bytes", max_bytes)
    rows = list(_number_lines(path, max_bytes))
    if not rows:
        raise ValueError(f"{path}: must hold at least one task, got none")
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width or width > 3:
            wanted = f"{width} columns as the first" if width <= 3 else "1 to 3 columns"
            raise ValueError(f"{path}: line {line}: must have {wanted}, got {len(row)}")
    columns = np.array([row for _, row in rows])
    if memory is not None and width < 3:
        raise ValueError(f"{path}: memory needs a third column, got {width}")
    if memory is None and width == 3:
        raise ValueError(f"{path}: a third column needs memory of the tiers, got None")
    limits = _memory_limits(memory, len(tier_speeds))
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


def _tier_speeds(speeds: Any) -> list[list[float]]:
    """Return the speeds of the nodes of each tier."""
    tiers = [
        [valid.real("read_chains", f"speeds[{k}]", speed, strict=True) for speed in nodes]
        for k, nodes in enumerate(
            [tier] if isinstance(tier, numbers.Real) else _sequence(f"speeds[{k}]", tier)
            for k, tier in enumerate(_sequence("speeds", speeds))
        )
    ]
    if not tiers:
        raise ValueError("read_chains: speeds must hold at least one tier, got none")
    if [] in tiers:
        k = tiers.index([])
        raise ValueError(f"read_chains: speeds[{k}] must hold at least one node, got none")
    _at_most_nodes("nodes of speeds", sum(map(len, tiers)))
    return tiers


def _memory_limits(memory: Any, n_tiers: int) -> list[float]:
    """Return the memory of the nodes of each tier."""
    if memory is None:
        return [0.0] * n_tiers
    if isinstance(memory, numbers.Real):
        return [valid.real("read_chains", "memory", memory)] * n_tiers
    limits = _sequence("memory", memory)
    if len(limits) != n_tiers:
        raise ValueError(f"read_chains: memory must have {n_tiers} entries, got {len(limits)}")
    return [valid.real("read_chains", f"memory[{k}]", limit) for k, limit in enumerate(limits)]


def _sequence(field: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(
            f"read_chains: {field} must be a number or a sequence of them, got {value!r:.60}"
        )
    return list(value)


def _at_most_nodes(what: str, n: int) -> int:
    if n > MAX_NODES:
        raise ValueError(f"read_chains: {what} must be at most {MAX_NODES}, got {n}")
    return n


def read_hybrid_flow_shop(
    path: str | os.PathLike[str],
    *,
    layout: str = "auto",
    objective: Objective | str = Objective.MAKESPAN,
    max_bytes: int = MAX_BYTES,
) -> Instance:
    r"""Read a hybrid flow shop (identical parallel machines at each stage) from text.

    A stage of the shop becomes a tier that hosts exactly one block, a machine becomes a node, a
    job becomes a request. Numbers are separated by blanks, tabs or commas; ``#`` starts a
    comment. Layouts:

    ``jobs``
        ``n_jobs n_stages`` (on one line or two); machines per stage; a line per job with its
        processing time at each stage. Old benchmark sets, such as the Carlier-Neron set [1]_,
        circulate in several layouts; this is the most common one.
    ``stages``
        As ``jobs``, but with a line per stage that holds the time of each job: the testbed of
        Fernandez-Viagas and Framinan [2]_.
    ``taillard``
        ``n_jobs n_machines ...``, then a line per machine, as in Taillard's flow shops [3]_.
        Every stage has one machine. Lines of text are skipped. A file holds one problem.
    ``auto``
        ``jobs`` or ``stages``, whichever fits the lines. If both fit, the file is refused.

    A last line that starts with the word ``release`` gives the release date of each job.

    Parameters
    ----------
    path : str or path
    layout : str
    objective : Objective or str
        ``makespan``, or ``mean_latency`` for the mean flow time.
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    Instance
        Named after the file.

    Raises
    ------
    ValueError
        If a line or an argument is invalid; the message names it.
    OSError
        If the file does not exist or cannot be read.

    References
    ----------
    .. [1] J. Carlier, E. Neron, "An exact method for solving the multi-processor flow-shop",
       RAIRO Oper. Res. 34, 2000.
    .. [2] V. Fernandez-Viagas, J. M. Framinan, "Design of a testbed for hybrid flow shop
       scheduling with identical machines", Comput. Ind. Eng. 141, 2020.
    .. [3] E. Taillard, "Benchmarks for basic scheduling problems", EJOR 64, 1993.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "shop.txt")
    ...     _ = path.write_text("3 2\n1 2\n4 5\n2 6\n3 3\n")  # 3 jobs, 2 stages
    ...     hs.read_hybrid_flow_shop(path)
    <Instance 'shop': 3 requests, 2 blocks, 2 tiers, 3 nodes, makespan>
    """
    valid.known("layout", layout, _LAYOUTS)
    path = checked_path("read_hybrid_flow_shop", path)
    max_bytes = valid.whole("read_hybrid_flow_shop", "max_bytes", max_bytes)
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
    if sum(machines) > MAX_NODES:
        line = rows[0][0] if layout == "taillard" else rows[1][0]
        raise ValueError(
            f"{path}: line {line}: must have at most {MAX_NODES} machines, got {sum(machines)}"
        )
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
        min_blocks=[1] * n_stages,
        max_blocks=[1] * n_stages,
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
    """Yield (line number, numbers) of each line that holds numbers.

    Lines that start with ``release`` go to `release`, if it is given.
    """
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


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text: {error}") from None
