"""Tables of measured steps: rows of a CSV with the machine on which they were measured."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hypsolve.calibration.csv_tables import positive, read_table
from hypsolve.calibration.measure_blocks import Timing, load_torch
from hypsolve.calibration.measure_fit import Steps
from hypsolve.calibration.measure_grid import FIELDS, BlockShape, Step
from hypsolve.problem import files

MAX_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Provenance of a measurement.

    Attributes
    ----------
    machine : str
        Name of the CPU or GPU, as the operating system or the driver gives it.
    system : str
        Operating system and instruction set.
    device : str
        ``cpu``, ``cuda`` or ``mps``.
    dtype : str
        Type of weights, activations and KV cache.
    threads : int
        Threads of torch on the CPU.
    torch : str
        Version of torch.
    date : str
        UTC, as 2026-11-29T12:00:00Z.
    """

    machine: str
    system: str
    device: str
    dtype: str
    threads: int
    torch: str
    date: str


def this_machine(device: str, dtype: str) -> Machine:
    """Return the provenance of a measurement that begins now."""
    torch = load_torch()
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return Machine(
        machine=name,
        system=f"{platform.system()} {platform.machine()}",
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def cpu_name() -> str:
    """Return the name of the CPU, as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    except OSError:  # no Linux
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def memory_bytes_of(device: str) -> tuple[int, int]:
    """Return the memory of a device and the part of it that is free, in bytes."""
    torch = load_torch()
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(total), int(free)
    if device == "mps":
        total = int(torch.mps.recommended_max_memory())
        return total, total - int(torch.mps.current_allocated_memory())
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = _meminfo("MemAvailable", total // 2)
    limit = _control_group_bytes()
    return min(total, limit), min(free, limit)


def _meminfo(key: str, default: int) -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            if name == key:
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return default


def _control_group_bytes() -> int:
    """Return the memory limit of the control group, as containers have one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return 2**63
    return int(text) if text.isdigit() else 2**63


@dataclass(frozen=True, slots=True)
class Row:
    """A step of a shape, with its time; or the reason why it was skipped.

    Attributes
    ----------
    shape : BlockShape
    step : Step
    layers : int
        Layers of the stack, of which the seconds are the mean.
    flops, moved_bytes : float
        Work of one block, as the cost model counts it.
    timing : Timing or None
        None if the step was skipped.
    skipped : str
        Why; empty if it was measured.
    """

    shape: BlockShape
    step: Step
    layers: int
    flops: float
    moved_bytes: float
    timing: Timing | None = None
    skipped: str = ""


_NUMBERS = ("layers", "phase", "batch", "tokens", "context", "flops", "bytes")
COLUMNS = (
    *(field.name for field in fields(Machine)), "shape", *FIELDS, *_NUMBERS,
    *(field.name for field in fields(Timing)), "skipped",
)  # fmt: skip
"""Columns of the table. Times are seconds of one block."""


def write_rows(path: Path, machine: Machine, rows: Iterable[Row]) -> None:
    """Write the table of all steps, the skipped ones with their reason.

    Raises
    ------
    OSError
        If the file cannot be written; a file that was there keeps its content.
    """
    with files.replacing(path, "a table of measured steps") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    **asdict(machine),
                    "shape": row.shape.name,
                    **{field: getattr(row.shape, field) for field in FIELDS},
                    **asdict(row.step),
                    "layers": row.layers,
                    "flops": f"{row.flops:.6g}",
                    "bytes": f"{row.moved_bytes:.6g}",
                    **_timing(row.timing),
                    "skipped": row.skipped,
                }
            )


def _timing(timing: Timing | None) -> dict[str, str]:
    if timing is None:
        return {field.name: "" for field in fields(Timing)}
    seconds = {key: f"{value:.6g}" for key, value in asdict(timing).items()}
    return seconds | {"repeats": str(timing.repeats)}


def steps_of(rows: Iterable[Row]) -> Steps:
    """Return the measured rows as arrays; the skipped ones are left out."""
    done = [(row, row.timing) for row in rows if row.timing is not None]
    return Steps(
        np.array([row.flops for row, _ in done]),
        np.array([row.moved_bytes for row, _ in done]),
        np.array([timing.median_s for _, timing in done]),
        np.array([row.shape.name for row, _ in done]),
        np.array([row.step.phase for row, _ in done]),
    )


def read_steps(path: str | Path) -> Steps:
    """Read the measured steps of a table that `write_rows` wrote.

    Raises
    ------
    ValueError
        If the table is invalid; the message names file, line, column, rule and value.
    OSError
        If the file cannot be read.
    """
    path = Path(path)
    text = files.read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    wanted = ("flops", "bytes", "median_s", "shape", "phase")
    _, rows = read_table(path, text, wanted)
    measured = [row for row in rows if row.cells["median_s"]]
    numbers = [
        tuple(positive(row.owner, key, row.cells[key]) for key in wanted[:3])
        for row in measured
    ]
    names = [(row.cells["shape"], row.cells["phase"]) for row in measured]
    if not numbers:
        raise ValueError(f"{path}: must hold at least one measured step, got none")
    flops, moved, seconds = np.array(numbers).T
    shapes, phases = np.array(names).T
    return Steps(flops, moved, seconds, shapes, phases)
