"""Export of a `Trace` for ui.perfetto.dev and chrome://tracing.

The format is the "Trace Event Format" of the Chromium project, in its JSON object form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.files import checked_path, replacing
from hypsolve.simulation.trace import Trace

if TYPE_CHECKING:
    from hypsolve.simulation.trace import Visits

CHUNK = 1 << 14  # iterations, requests or bins that are held as text at a time
REQUESTS_PID = 1  # the process of the requests; tier k is process k + 2
COUNTERS = (  # name and key of each; `_counters` yields the values in this order
    ("busy", "share"), ("requests", "number"), ("waiting", "number"), ("KV cache", "bytes"),
    ("KV cache share", "share"),
)  # fmt: skip


def write_perfetto(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as a JSON file for ui.perfetto.dev or chrome://tracing.

    - A tier is a process, and a node is a thread.
    - At flow level, a slice on a node is a request.
    - At token level with recorded visits, a slice on a node is an iteration, with its requests
      and tokens as arguments.
    - At token level without recorded visits, a slice on a node is a request, from its admission
      to its last token there. These slices are asynchronous, because they overlap.
    - Counters of each node show whether it is busy, its requests, its waiting requests, and its
      KV cache in bytes and as a share of its capacity.
    - Process ``requests`` holds a slice per request from arrival to end, with an instant at its
      first token. A request that never ended reaches to the end of the trace.

    Times are in microseconds since the first arrival, with nanosecond resolution. The file is
    streamed, so that memory does not grow with its size. It is written to a temporary file next
    to `path` and then renamed, so that `path` never holds a partial file. An iteration that a
    failure cut short has no visit, and is not in the file.

    Parameters
    ----------
    trace : Trace
    path : str or path
        Must end in ``.json`` or ``.json.gz``; an existing file is replaced. ui.perfetto.dev
        opens both.

    Raises
    ------
    ValueError, TypeError
        If `path` is not a path with one of these endings, or if `trace` is not a Trace.
    OSError
        If `path` cannot be written.

    Examples
    --------
    >>> import json
    >>> import hypsolve as hs
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> instance = hs.Instance.from_tables([[[1, 2]]], [0, 0], [[(0, 0)], [(0, 0)]])
    >>> trace = hs.simulate(instance, hs.Partition((0, 1, 2)))
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "trace.json")
    ...     hs.write_perfetto(trace, path)
    ...     written = json.loads(path.read_text())
    >>> written["otherData"]["level"]
    'flow'
    """
    trace = valid.of_type("write_perfetto", "trace", trace, Trace).from_first()
    path = checked_path("write_perfetto", path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: the name of a trace must end in .json or .json.gz")
    about = {
        "trace": trace.name,
        "level": trace.level,
        "policy": trace.policy,
        "seed": trace.seed,
        "partition": str(trace.partition),
        "extrapolated": trace.extrapolated,
    }
    with replacing(path, "a trace") as file:
        file.write(
            f'{{"displayTimeUnit": "ms", "otherData": {_json(about)}, "traceEvents": [\n'
        )
        between = ""
        for lines in _events(trace):
            if lines:
                file.write(between)
                file.write(",\n".join(lines))
                between = ",\n"
        file.write("\n]}\n")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _events(trace: Trace) -> Iterator[list[str]]:
    """Yield the events as lines of JSON, some thousand at a time."""
    yield _names(trace)
    if trace.level == "token" and trace.visits is not None:
        yield from _iterations(trace, trace.visits)
    else:
        yield from _stays(trace)
    yield from _counters(trace)
    yield from _lifelines(trace)


def _pid(tier: int) -> int:
    return tier + 2


def _tid(trace: Trace, node: int) -> int:
    """Return the thread of a node; no process has its number, so it is no main thread."""
    return len(trace.tier_names) + 2 + node


def _names(trace: Trace) -> list[str]:
    """Return the metadata: names and order of processes and threads."""
    lines = []
    processes = [(REQUESTS_PID, "requests")]
    processes += [(_pid(k), name) for k, name in enumerate(trace.tier_names)]
    for pid, name in processes:
        about = {"process_name": {"name": name}, "process_sort_index": {"sort_index": pid}}
        for what, args in about.items():
            lines.append(_json({"name": what, "ph": "M", "pid": pid, "tid": pid, "args": args}))
    for node, name in enumerate(trace.node_names):
        where = {"ph": "M", "pid": _pid(int(trace.node_tier[node])), "tid": _tid(trace, node)}
        about = {"thread_name": {"name": name}, "thread_sort_index": {"sort_index": node}}
        for what, args in about.items():
            lines.append(_json({"name": what, **where, "args": args}))
    return lines


def _nanoseconds(trace: Trace, times_s: Array) -> list[int]:
    """Return whole nanoseconds since the first arrival, 0 before it."""
    since_s = np.maximum(times_s - np.nanmin(trace.arrival_s), 0.0)
    return np.rint(since_s * 1e9).astype(np.int64).tolist()


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def _ts(nanoseconds: int) -> str:
    """Return the microseconds of a moment, plus .0002.

    Perfetto rounds down to whole nanoseconds: 1.001 * 1000 would become 1000 ns, and a slice
    would overlap the one before it.
    """
    return f"{_us(nanoseconds)}2"


def _slice(where: str, name: str, start_ns: int, end_ns: int, args: str) -> str:
    return (
        f'{{"name":{name},"ph":"X",{where},"ts":{_ts(start_ns)},"dur":{_us(end_ns - start_ns)},'
        f'"args":{args}}}'
    )


def _iterations(trace: Trace, visits: Visits) -> Iterator[list[str]]:
    """Yield a complete event per iteration."""
    where = [
        f'"cat":"iteration","pid":{_pid(int(k))},"tid":{_tid(trace, n)}'
        for n, k in enumerate(trace.node_tier)
    ]
    first = visits.first_of_iterations()
    last = np.append(first[1:], len(visits.request))
    decode = trace.is_decode()
    for at in range(0, len(first), CHUNK):
        begin, end = first[at : at + CHUNK], last[at : at + CHUNK]
        rows = slice(begin[0], end[-1])
        request, tokens = visits.request[rows].tolist(), visits.tokens[rows].tolist()
        decodes = decode[rows].tolist()
        lines = []
        for node, start_ns, end_ns, i, j in zip(
            visits.node[begin].tolist(),
            _nanoseconds(trace, visits.start_s[begin]),
            _nanoseconds(trace, visits.end_s[begin]),
            (begin - begin[0]).tolist(),
            (end - begin[0]).tolist(),
            strict=True,
        ):
            n_decode = sum(decodes[i:j])
            n_prefill = j - i - n_decode
            name = '"decode"' if not n_prefill else '"mixed"' if n_decode else '"prefill"'
            args = (
                f'{{"batch":{j - i},"prefills":{n_prefill},"decodes":{n_decode},'
                f'"tokens":{sum(tokens[i:j])},"requests":{_json(request[i:j])}}}'
            )
            lines.append(_slice(where[node], name, start_ns, end_ns, args))
        yield lines


def _stays(trace: Trace) -> Iterator[list[str]]:
    """Yield requests at nodes: complete events at flow level, asynchronous ones else."""
    left_s = np.where(np.isnan(trace.left_s), trace.end_of_run_s, trace.left_s)
    request, tier = np.nonzero((trace.node >= 0) & ~np.isnan(trace.admitted_s))
    node = trace.network_node()[request, tier]
    starts, ends = trace.admitted_s[request, tier], left_s[request, tier]
    names = [_json(name) for name in trace.node_names]
    for at in range(0, len(request), CHUNK):
        rows = slice(at, at + CHUNK)
        lines = []
        for r, k, n, start_ns, end_ns in zip(
            request[rows].tolist(),
            tier[rows].tolist(),
            node[rows].tolist(),
            _nanoseconds(trace, starts[rows]),
            _nanoseconds(trace, ends[rows]),
            strict=True,
        ):
            where = f'"cat":"request","pid":{_pid(k)},"tid":{_tid(trace, n)}'
            args = f'{{"request":{r}}}'
            if trace.level == "flow":
                lines.append(_slice(where, f'"request {r}"', start_ns, end_ns, args))
            else:
                where = where.replace('"cat":"request"', f'"cat":"stay","id":"{k}.{r}"')
                lines.append(_async("b", names[n], where, start_ns, args))
                lines.append(_async("e", names[n], where, end_ns, "{}"))
        yield lines


def _async(phase: str, name: str, where: str, at_ns: int, args: str) -> str:
    return f'{{"name":{name},"ph":"{phase}",{where},"ts":{_ts(at_ns)},"args":{args}}}'


def _counters(trace: Trace) -> Iterator[list[str]]:
    """Yield counters: the mean over a bin, at its start; 0 at the end of the last bin."""
    series = trace.series
    n_bins = series.busy.shape[1]
    edges_s = series.start_s + series.bin_s * np.arange(n_bins + 1)
    first_s = np.nanmin(trace.arrival_s)
    shown = np.append(edges_s[1:] > first_s, True)
    times = [_ts(ns) for ns in _nanoseconds(trace, edges_s[shown])]
    quantities = (series.busy, series.n_requests, series.n_waiting, series.kv_bytes,
                  trace.kv_share)  # fmt: skip
    for n, node in enumerate(trace.node_names):
        where = f'"pid":{_pid(int(trace.node_tier[n]))},"tid":{_pid(int(trace.node_tier[n]))}'
        for (label, key), of_nodes in zip(COUNTERS, quantities, strict=True):
            name, values = _json(f"{node} {label}"), of_nodes[n]
            yield [
                f'{{"name":{name},"ph":"C",{where},"ts":{ts},"args":{{"{key}":{value!r}}}}}'
                for ts, value in zip(times, np.append(values, 0.0)[shown].tolist(), strict=True)
            ]


def _lifelines(trace: Trace) -> Iterator[list[str]]:
    """Yield requests from arrival to end, with an instant at the first token."""
    ended = np.isfinite(trace.end_s)
    ends = np.where(ended, trace.end_s, trace.end_of_run_s)
    first_token = np.where(np.isnan(trace.first_token_s), -1.0, trace.first_token_s)
    sent = np.flatnonzero(~np.isnan(trace.arrival_s))  # users may never come to the others
    for at in range(0, len(sent), CHUNK):
        rows = sent[at : at + CHUNK]
        lines = []
        for r, start_ns, token_s, token_ns, end_ns, done, prompt, output, restarts in zip(
            rows.tolist(),
            _nanoseconds(trace, trace.arrival_s[rows]),
            first_token[rows].tolist(),
            _nanoseconds(trace, first_token[rows]),
            _nanoseconds(trace, ends[rows]),
            ended[rows].tolist(),
            trace.prompt_tokens[rows].tolist(),
            trace.output_tokens[rows].tolist(),
            trace.restarts[rows].tolist(),
            strict=False,
        ):
            where = f'"cat":"lifeline","id":"{r}","pid":{REQUESTS_PID},"tid":{REQUESTS_PID}'
            args = (
                f'{{"request":{r},"prompt_tokens":{prompt},"output_tokens":{output},'
                f'"restarts":{restarts},"ended":{_json(done)}}}'
            )
            lines.append(_async("b", '"request"', where, start_ns, args))
            if token_s >= 0:
                ttft = f'{{"request":{r},"ttft_ms":{(token_ns - start_ns) / 1e6!r}}}'
                lines.append(_async("n", '"first token"', where, token_ns, ttft))
            lines.append(_async("e", '"request"', where, end_ns, "{}"))
        yield lines
