"""Results of serving benchmarks as runs: `read_benchmark`.

Read are the files of ``vllm bench serve --save-result`` (and of ``sglang.bench_serving``), of
``llama-bench -o json`` or ``jsonl``, of ``genai-perf`` (JSON and CSV), and tables of one's own.
The format is told by the content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypsolve.calibration.benchmarks_csv import read_genai_perf_csv, read_own_table
from hypsolve.calibration.benchmarks_run import BenchmarkRun, Left
from hypsolve.calibration.csv_tables import number, positive
from hypsolve.calibration.served_weights import served_weights
from hypsolve.problem.files import checked_path, parse_json, read_bytes

MAX_BYTES = 2**28
NANOSECONDS = 1e-9
UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The runs of a file.

    Attributes
    ----------
    path : Path
    format : str
        ``vllm bench serve``, ``llama-bench``, ``genai-perf`` or ``table``.
    runs : tuple of BenchmarkRun
        At least one.
    left_out : tuple of str
        Runs, or parts of them, that say nothing, each with its reason.
    """

    path: Path
    format: str
    runs: tuple[BenchmarkRun, ...]
    left_out: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The model as the file names it; empty if it does not, or names several."""
        names = {run.model for run in self.runs}
        return names.pop() if len(names) == 1 else ""

    @property
    def weights(self) -> str | None:
        """The format of weights as the file names it; None if it does not, or names several."""
        names = {run.weights for run in self.runs}
        return names.pop() if len(names) == 1 else None


def read_benchmark(
    path: str | os.PathLike[str], where: Mapping[str, str] | None = None
) -> Benchmark:
    """Read the result of a serving benchmark.

    Parameters
    ----------
    path : str or path
        JSON, JSON lines or CSV; may be compressed (``.gz``).
    where : mapping of str to str, optional
        Of a table of one's own, the rows with these values in these columns.

    Returns
    -------
    Benchmark

    Raises
    ------
    ValueError, TypeError
        If the format is unknown, or a value is invalid; the message names file, entry, key,
        rule and value.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> entry = {"n_prompt": 512, "n_gen": 0, "avg_ns": 72_135_640, "n_ubatch": 512}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "bench.json")
    ...     _ = path.write_text(json.dumps([entry]))
    ...     (run,) = read_benchmark(path).runs
    >>> run.prompt_tokens, run.ttft_s
    (512.0, 0.07213564)
    """
    path = checked_path("read_benchmark", path)
    content = read_bytes(path, MAX_BYTES)
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return _from_csv(path, content.decode("utf-8-sig", "replace"), where or {})
    if where:
        raise ValueError(f"{path}: only rows of a CSV can be selected, got {dict(where)}")
    return _from_json(path, content)


def _from_csv(path: Path, text: str, where: Mapping[str, str]) -> Benchmark:
    left = Left()
    if text.startswith("Metric,"):
        if where:
            raise ValueError(f"{path}: only rows of a table can be selected, got {dict(where)}")
        return _benchmark(path, "genai-perf", [read_genai_perf_csv(path, text, left)], left)
    return _benchmark(path, "table", read_own_table(path, text, where, left), left)


def _from_json(path: Path, content: bytes) -> Benchmark:
    entries = _entries(path, content)
    first = entries[0]
    known: list[tuple[str, str, Callable[[str, Any, Left], BenchmarkRun | None]]] = [
        ("avg_ns", "llama-bench", _llama_bench),
        ("mean_ttft_ms", "vllm bench serve", _vllm),
        ("mean_tpot_ms", "vllm bench serve", _vllm),
        ("time_to_first_token", "genai-perf", _genai_perf),
        ("request_latency", "genai-perf", _genai_perf),
    ]
    for key, form, read in known:
        if key in first:
            left = Left()
            owners = (f"{path}: entry {i}" for i in range(len(entries)))
            found = (read(who, each, left) for who, each in zip(owners, entries, strict=True))
            return _benchmark(path, form, found, left)
    raise ValueError(
        f"{path}: must be a result of vllm bench serve, llama-bench -o json or genai-perf, or a"
        f" CSV with the columns of a table of runs; got JSON with the keys {sorted(first)[:8]}"
    )


def _entries(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Return the objects of JSON: one, a list of them, or one in each line."""
    try:
        parsed = parse_json(path, content)
    except ValueError:
        lines = [line for line in content.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[0].lstrip().startswith(b"{"):
            raise
        parsed = [parse_json(path, line) for line in lines]
    entries = parsed if isinstance(parsed, list) else [parsed]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: must hold objects, got {parsed!r:.60}")
    return entries


def _benchmark(
    path: Path, form: str, found: Iterable[BenchmarkRun | None], left: Left
) -> Benchmark:
    runs = tuple(run for run in found if run is not None)
    if not runs:
        reasons = "; ".join(left.reasons) or "the file is empty"
        raise ValueError(f"{path}: must hold at least one run that says something: {reasons}")
    return Benchmark(path, form, runs, tuple(left.reasons))


def _vllm(owner: str, entry: Mapping[str, Any], left: Left) -> BenchmarkRun | None:
    """Read an entry of ``vllm bench serve``, or of ``sglang.bench_serving``."""
    completed = number(owner, "completed", entry.get("completed"))
    if completed < 1:
        left.out(owner, "no request was completed")
        return None
    prompt = positive(owner, "total_input_tokens", entry.get("total_input_tokens")) / completed
    output = (
        positive(owner, "total_output_tokens", entry.get("total_output_tokens")) / completed
    )
    ttft_s = _milliseconds(owner, entry, "mean_ttft_ms")
    tpot_s = _milliseconds(owner, entry, "mean_tpot_ms") if output > 1 else None
    per_s = positive(owner, "request_throughput", entry.get("request_throughput"))
    users = entry.get("max_concurrency")
    rate = entry.get("request_rate")
    latency_s = (ttft_s or 0.0) + (output - 1) * (tpot_s or 0.0)
    if users is None:
        users = per_s * latency_s
        if rate in (None, "inf") and ttft_s is not None:
            left.out(owner, "its TTFT, which is a queue: all requests were sent at once")
            ttft_s = None
    elif rate not in (None, "inf") and ttft_s is not None:
        # a rate and a limit of users at once: as many as there were on average
        users = min(positive(owner, "max_concurrency", users), per_s * latency_s)
    return BenchmarkRun(
        label=owner.rpartition(": ")[2],
        model=str(entry.get("model_id") or ""),
        weights=served_weights("", str(entry.get("model_id") or "")),
        prompt_tokens=prompt,
        output_tokens=output,
        users=max(1.0, positive(owner, "max_concurrency", users)),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _milliseconds(owner: str, entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    seconds = number(owner, key, value) * 1e-3
    return seconds if seconds > 0 else None


def _llama_bench(owner: str, entry: Mapping[str, Any], left: Left) -> BenchmarkRun | None:
    """Read a test of ``llama-bench``: a prompt, or generated tokens, of one sequence."""
    n_prompt = number(owner, "n_prompt", entry.get("n_prompt"))
    n_gen = number(owner, "n_gen", entry.get("n_gen"))
    depth = number(owner, "n_depth", entry.get("n_depth", 0))
    seconds = positive(owner, "avg_ns", entry.get("avg_ns")) * NANOSECONDS
    if (n_prompt > 0) == (n_gen > 0):
        left.out(owner, "a test of prompt and generation together, whose parts are not known")
        return None
    chunk, n_bytes = entry.get("n_ubatch"), entry.get("model_size")
    name = str(entry.get("model_filename") or "")
    return BenchmarkRun(
        label=owner.rpartition(": ")[2],
        model=name,
        weights=served_weights(str(entry.get("model_type") or ""), name),
        weight_bytes=None if n_bytes is None else positive(owner, "model_size", n_bytes),
        prompt_tokens=n_prompt,
        # generated tokens t see depth + t tokens each, the first one included
        output_tokens=n_gen + 1 if n_gen else 1.0,
        users=1.0,
        cached_tokens=depth,
        ttft_s=seconds if n_prompt else None,
        tpot_s=seconds / n_gen if n_gen else None,
        chunk_tokens=None if chunk is None else positive(owner, "n_ubatch", chunk),
        is_kernel_time=True,
    )


def _genai_perf(owner: str, entry: Mapping[str, Any], left: Left) -> BenchmarkRun | None:
    """Read the statistics of ``genai-perf`` (or ``aiperf``)."""
    prompt = _average(owner, entry, "input_sequence_length", "num_input_token")
    output = _average(owner, entry, "output_sequence_length", "num_output_token")
    if prompt is None or output is None:
        missing = "input_sequence_length" if prompt is None else "output_sequence_length"
        raise ValueError(f"{owner}: key {missing!r} is missing")
    config = entry.get("input_config")
    config = config if isinstance(config, Mapping) else {}
    ttft_s = _average(owner, entry, "time_to_first_token")
    tpot_s = _average(owner, entry, "inter_token_latency")
    if tpot_s is None and ttft_s is not None:
        left.out(owner, "its TTFT: answers were not streamed")
        ttft_s = None
    latency_s = _average(owner, entry, "request_latency")
    per_s = _average(owner, entry, "request_throughput")
    users = _concurrency(config)
    if users is None:
        if latency_s is None or per_s is None:
            raise ValueError(f"{owner}: the concurrency of the load is not stated")
        users = latency_s * per_s
    if ttft_s is None and tpot_s is None and latency_s is not None and output > 1:
        tpot_s = latency_s / output
        left.out(owner, "the parts of its latency: the time per token is latency over tokens")
    return BenchmarkRun(
        label=owner.rpartition(": ")[2],
        model=_model_of(config),
        weights=served_weights("", _model_of(config)),
        prompt_tokens=prompt,
        output_tokens=output,
        users=max(1.0, float(users)),
        ttft_s=ttft_s,
        tpot_s=tpot_s if output > 1 else None,
    )


def _average(owner: str, entry: Mapping[str, Any], *keys: str) -> float | None:
    """Return the average of a statistic in seconds, or as it is if it is no time."""
    for key in keys:
        record = entry.get(key)
        if isinstance(record, Mapping) and record.get("avg") is not None:
            value = positive(owner, f"{key}.avg", record["avg"])
            return value * UNITS_S.get(str(record.get("unit", "")), 1.0)
    return None


def _concurrency(config: Mapping[str, Any]) -> float | None:
    """Return the users that the configuration of a benchmark states, wherever it does."""
    places = ((), ("perf_analyzer", "stimulus"), ("loadgen",))
    for keys in places:
        inner: Any = config
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        value = inner.get("concurrency") if isinstance(inner, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    return None


def _model_of(config: Mapping[str, Any]) -> str:
    for key in ("model", "model_names"):
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    return ""
