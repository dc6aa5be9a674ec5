"""Requests from files: public traces of LLM services, and your own columns."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypsolve.formats.request_trace_rows import FORMATS, Rows, read_rows
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Requests
from hypsolve.problem.files import MAX_BYTES, checked_path, read_bytes

_LOG = logging.getLogger("hypsolve")


def read_requests(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    unsorted: str = "error",
    start_s: float | None = None,
    end_s: float | None = None,
    zero_output: str = "error",
    max_tokens: int | None = None,
    longer: str = "error",
    sample: float | None = None,
    n_requests: int | None = None,
    rate_per_s: float | None = None,
    speedup: float | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Requests:
    r"""Read requests from a file, and select, limit and stretch them.

    The options apply in the order of the signature. The first line tells the format:

    ``azure``
        The Azure LLM inference traces of 2023 [1]_ and 2024: CSV with the columns ``TIMESTAMP,
        ContextTokens, GeneratedTokens``. Times look like ``2023-11-16 18:17:03.9799600``, may
        have ``T`` for the blank and a zone (``Z``, ``+00:00``), and are exact to 1 ns. Time 0
        is the earliest timestamp in the file, even if its request is dropped.
    ``burstgpt``
        The BurstGPT traces [3]_: CSV with the columns ``Timestamp`` in seconds, ``Request
        tokens`` and ``Response tokens``. Requests that failed have no output.
    ``mooncake``
        The Mooncake traces [2]_: a JSON object per line, with ``timestamp`` in ms,
        ``input_length`` and ``output_length``. Shared prefixes (``hash_ids``) are ignored.
    ``hypsolve``
        CSV with the columns ``arrival_s, prompt_tokens, output_tokens``: see the example.

    CSV columns may be in any order; other columns are ignored. Blank lines are skipped.

    Parameters
    ----------
    path : str or path
        A name that ends in ``.gz`` is a gzip-compressed file.
    format : str
        ``azure``, ``burstgpt``, ``mooncake``, ``hypsolve``, or ``auto``.
    unsorted : str
        Treatment of rows out of order: ``error`` or ``sort``.
    start_s, end_s : float, optional
        Keep arrivals in start_s <= t < end_s, and make start_s the new time 0.
    zero_output : str
        Treatment of requests without output (failed ones in some traces): ``error``, ``drop``,
        or ``one`` (give them one output token).
    max_tokens : int, optional
        Maximum number of tokens of a request, prompt and output together.
    longer : str
        Treatment of longer requests: ``error``, ``drop``, or ``clip``. Clipping first shortens
        the output to at most `max_tokens` - 1, then the prompt.
    sample : float, optional
        Share of the requests to keep, in (0, 1]. Each request is drawn independently, so the
        request rate falls. With the same seed, a smaller sample is a subset of a larger one.
    n_requests : int, optional
        Keep only the first `n_requests` requests.
    rate_per_s : float, optional
        Stretch time so that (requests - 1) / (last arrival - first arrival) is this rate.
    speedup : float, optional
        Divide times by this factor. Cannot be combined with `rate_per_s`.
    seed : int
        Seed of `sample`.
    max_bytes : int
        Larger files are refused. The limit holds for the compressed and for the unpacked size.

    Returns
    -------
    Requests
        In order of arrival. The numbers of dropped and changed requests are logged to
        ``hypsolve`` at level INFO.

    Raises
    ------
    ValueError, TypeError
        If a row or an argument is invalid; the message names the file, line, column, rule and
        value, or the argument.
    OSError
        If the file does not exist or cannot be read.

    References
    ----------
    .. [1] P. Patel et al., "Splitwise: Efficient generative LLM inference using phase
       splitting", ISCA 2024; github.com/Azure/AzurePublicDataset.
    .. [2] R. Qin et al., "Mooncake: Trading more storage for less computation", FAST 2025;
       github.com/kvcache-ai/Mooncake.
    .. [3] Y. Wang et al., "BurstGPT: A real-world workload dataset to optimize LLM serving
       systems", KDD 2025; github.com/HPMLL/BurstGPT.

    Examples
    --------
    Read the second minute of a file at twice the speed:

    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> rows = ["arrival_s,prompt_tokens,output_tokens"]
    >>> rows += [f"{second}.25,{200 + second},30" for second in range(120)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.csv")
    ...     _ = path.write_text("\n".join(rows))
    ...     requests = hs.read_requests(path, start_s=60, end_s=120, speedup=2)
    >>> len(requests), requests.arrival_s[:3].tolist()
    (60, [0.125, 0.625, 1.125])
    """
    owner = "read_requests"
    path = checked_path(owner, path)
    valid.known("format", format, FORMATS)
    valid.known("unsorted", unsorted, ("error", "sort"))
    valid.known("zero_output", zero_output, ("error", "drop", "one"))
    valid.known("longer", longer, ("error", "drop", "clip"))
    if max_tokens is not None:
        valid.whole(owner, "max_tokens", max_tokens, minimum=2)
    if n_requests is not None:
        valid.whole(owner, "n_requests", n_requests, minimum=1)
    if sample is not None and valid.real(owner, "sample", sample, strict=True) > 1:
        raise ValueError(f"{owner}: sample must be in (0, 1], got {sample!r}")
    if rate_per_s is not None and speedup is not None:
        raise ValueError(f"{owner}: give rate_per_s or speedup, not both")
    for name, value in (("rate_per_s", rate_per_s), ("speedup", speedup)):
        if value is not None:
            valid.real(owner, name, value, strict=True)
    start, end = _window(start_s, end_s)
    rng = np.random.default_rng(valid.whole(owner, "seed", seed))
    content = read_bytes(path, valid.whole(owner, "max_bytes", max_bytes))

    rows = _in_order(read_rows(path, content, format), unsorted)
    n_read = len(rows.line)
    inside = (rows.time_s >= start) & (rows.time_s < end)
    rows = _keep(rows, inside, f"not in {start:g} <= t < {end:g} s")
    rows = _mend_zero_output(rows, zero_output)
    if max_tokens is not None:
        rows = _limit(rows, max_tokens, longer)
    if sample is not None:
        kept = rng.random(len(rows.line)) < sample
        rows = _keep(rows, kept, f"not in the sample of {sample:g}")
    if n_requests is not None:
        kept = np.arange(len(rows.line)) < n_requests
        rows = _keep(rows, kept, f"after the first {n_requests}")
    if not len(rows.line):
        raise ValueError(f"{path}: no request is left of {n_read} that were read")
    arrival_s = _stretch(path, rows.time_s - start, rate_per_s, speedup)
    return Requests(arrival_s, rows.prompt_tokens, rows.output_tokens)


def _window(start_s: float | None, end_s: float | None) -> tuple[float, float]:
    owner = "read_requests"
    start = 0.0 if start_s is None else valid.real(owner, "start_s", start_s)
    end = math.inf if end_s is None else valid.real(owner, "end_s", end_s)
    if end <= start:
        raise ValueError(f"{owner}: end_s must be above start_s = {start:g}, got {end_s!r}")
    return start, end


def _in_order(rows: Rows, unsorted: str) -> Rows:
    early = np.flatnonzero(np.diff(rows.time_s) < 0) + 1
    if not len(early):
        return rows
    if unsorted == "error":
        row = early[0]
        raise ValueError(
            f"{rows.path}: line {rows.line[row]}: {rows.columns[0]} must not be earlier than on"
            f" line {rows.line[row - 1]} (unsorted='sort' sorts),"
            f" got {rows.time_s[row - 1] - rows.time_s[row]:g} s earlier"
        )
    _LOG.info("%s: sorted; %d rows were earlier than the one before", rows.path, len(early))
    return rows.take(np.argsort(rows.time_s, kind="stable"))


def _keep(rows: Rows, kept: NDArray[np.bool_], why: str) -> Rows:
    if kept.all():
        return rows
    n, n_dropped = len(kept), int((~kept).sum())
    _LOG.info("%s: dropped %d of %d requests: %s", rows.path, n_dropped, n, why)
    return rows.take(kept)


def _mend_zero_output(rows: Rows, zero_output: str) -> Rows:
    zero = rows.output_tokens == 0
    if not zero.any():
        return rows
    if zero_output == "error":
        raise ValueError(
            f"{rows.path}: line {rows.line[zero][0]}: {rows.columns[2]} must be at least 1"
            " (or zero_output be 'drop' or 'one'), got 0"
        )
    if zero_output == "drop":
        return _keep(rows, ~zero, "without output")
    _LOG.info("%s: %d requests without output take 1 token", rows.path, int(zero.sum()))
    return replace(rows, output_tokens=np.maximum(rows.output_tokens, 1))


def _limit(rows: Rows, max_tokens: int, longer: str) -> Rows:
    prompt, output = rows.prompt_tokens, rows.output_tokens
    over = prompt + output > max_tokens
    if not over.any():
        return rows
    if longer == "error":
        row = np.flatnonzero(over)[0]
        raise ValueError(
            f"{rows.path}: line {rows.line[row]}: {rows.columns[1]} + {rows.columns[2]} must be"
            f" at most max_tokens = {max_tokens} (or longer be 'drop' or 'clip'),"
            f" got {prompt[row] + output[row]}"
        )
    if longer == "drop":
        return _keep(rows, ~over, f"more than {max_tokens} tokens")
    _LOG.info("%s: clipped %d requests to %d tokens", rows.path, int(over.sum()), max_tokens)
    output = np.minimum(output, max_tokens - 1)
    return replace(
        rows, output_tokens=output, prompt_tokens=np.minimum(prompt, max_tokens - output)
    )


def _stretch(
    path: Path, time_s: NDArray[np.float64], rate_per_s: float | None, speedup: float | None
) -> NDArray[np.float64]:
    if rate_per_s is not None:
        span_s = float(time_s[-1] - time_s[0])
        if not span_s:
            raise ValueError(
                f"{path}: rate_per_s needs arrivals at two times, got {len(time_s)} at one"
            )
        speedup = rate_per_s * (span_s / (len(time_s) - 1))
    if speedup is None:
        return time_s
    with np.errstate(all="ignore"):  # `Requests` refuses an overflow
        return time_s / speedup
