"""Runs from CSV: tables of one's own, and the statistics of ``genai-perf``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from hypsolve.calibration.benchmarks_run import BenchmarkRun, Left
from hypsolve.calibration.csv_tables import TableRow, positive, positive_whole, read_table
from hypsolve.problem import validation as valid

COLUMNS = ("prompt_tokens", "output_tokens", "concurrency", "ttft_ms", "tpot_ms")
SERVER = ("gpu", "runtime", "model", "precision", "weights", "tensor_parallel")
"""Columns that a table may have, and in which all of its runs must agree."""
MILLISECONDS = 1e-3


def read_own_table(
    path: Path, text: str, where: Mapping[str, str], left: Left
) -> list[BenchmarkRun | None]:
    """Read a table with the columns `COLUMNS`, in any order and among others.

    Empty cells of ``ttft_ms`` or ``tpot_ms`` mean that they were not measured.
    """
    names, rows = read_table(path, text, COLUMNS)
    for name in where:
        valid.known(f"column of {path}", name, names)
    rows = [row for row in rows if all(row.cells[name] == where[name] for name in where)]
    if where and not rows:
        raise ValueError(f"{path}: no row has {dict(where)}")
    for name in (name for name in SERVER if name in names):
        values = sorted({row.cells[name] for row in rows})
        if len(values) > 1:
            raise ValueError(
                f"{path}: {name} must be the same in all runs, got {', '.join(values[:6])};"
                f" select some, as by {name}={values[-1]}"
            )
    return [_run(row, left) for row in rows]


def _run(row: TableRow, left: Left) -> BenchmarkRun | None:
    owner, cells = row.owner, row.cells
    load = {name: positive(owner, name, cells[name]) for name in COLUMNS[:3]}
    times = {
        name: positive(owner, name, cells[name]) * MILLISECONDS if cells[name].strip() else None
        for name in COLUMNS[3:]
    }
    if all(value is None for value in times.values()):
        left.out(owner, "neither ttft_ms nor tpot_ms is given")
        return None
    degree = cells.get("tensor_parallel") or "1"
    return BenchmarkRun(
        label=row.label,
        model=cells.get("model", ""),
        prompt_tokens=load["prompt_tokens"],
        output_tokens=load["output_tokens"],
        users=max(1.0, load["concurrency"]),
        ttft_s=times["ttft_ms"],
        tpot_s=times["tpot_ms"] if load["output_tokens"] > 1 else None,
        tensor_parallel=positive_whole(owner, "tensor_parallel", degree),
    )


def read_genai_perf_csv(path: Path, text: str, left: Left) -> BenchmarkRun | None:
    """Read ``profile_export_genai_perf.csv``, which does not say how many users there were."""
    averages: dict[str, str] = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) > 1:
            averages[row[0]] = row[1].replace(",", "")
    keys = {
        "ttft": "Time To First Token (ms)",
        "tpot": "Inter Token Latency (ms)",
        "latency": "Request Latency (ms)",
        "prompt": _either(averages, "Input Sequence Length", "Num Input Token"),
        "output": _either(averages, "Output Sequence Length", "Num Output Token"),
        "per_s": _either(averages, "Request Throughput (per sec)", "Request Throughput"),
    }
    owner = str(path)
    found = {
        name: positive(owner, key, averages[key])
        for name, key in keys.items()
        if key in averages
    }
    for name in ("prompt", "output", "latency", "per_s"):
        if name not in found:
            raise ValueError(f"{path}: row {keys[name]!r} is missing")
    if "tpot" not in found and "ttft" in found:
        left.out(f"{path}: {path.name}", "its TTFT: answers were not streamed")
        del found["ttft"]
    return BenchmarkRun(
        label=path.name,
        model="",
        prompt_tokens=found["prompt"],
        output_tokens=found["output"],
        users=max(1.0, found["latency"] * MILLISECONDS * found["per_s"]),
        ttft_s=found["ttft"] * MILLISECONDS if "ttft" in found else None,
        tpot_s=found.get("tpot", found["latency"] / found["output"]) * MILLISECONDS,
    )


def _either(averages: Mapping[str, str], *names: str) -> str:
    """Return the first row that begins with one of the names; the first name without any."""
    for name in names:
        for key in averages:
            if key.startswith(name):
                return key
    return names[0]
