"""Measure blocks on this machine, and fit a GPU profile to their times: `measure`.

Steps run in the order of the grid, the shapes in turn. A step that needs more memory than there
is, or more time than is left, is skipped and named.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hypsolve.calibration.measure_blocks import (
    Stack,
    element_bytes_of,
    load_torch,
    n_layers_of,
)
from hypsolve.calibration.measure_fit import (
    Roofline,
    ShapeError,
    Steps,
    choose_form,
    fit_roofline,
    held_out,
    intervals,
    shape_error,
)
from hypsolve.calibration.measure_grid import (
    DEFAULT_SHAPES,
    BlockShape,
    Step,
    grid,
    need_bytes,
    read_shape,
)
from hypsolve.calibration.measure_rows import (
    Machine,
    Row,
    memory_bytes_of,
    steps_of,
    this_machine,
)
from hypsolve.formats.gpu_profile import MeasuredProfile
from hypsolve.problem import validation as valid
from hypsolve.problem.network import GpuProfile
from hypsolve.problem.units import count, finite_or_none, show_bytes

DEVICES = tuple(DEFAULT_SHAPES)
DTYPES = {"cpu": "float32", "mps": "float16", "cuda": "float16"}
"""Type of numbers by device. Few CPUs compute with 16 bits at full speed."""
KNOWN_DTYPES = ("float32", "bfloat16", "float16")
MEMORY_SHARE = 0.8  # of the free memory
QUICK_S, FULL_S = 75.0, 1200.0  # time limits
REPEATS, STEP_S = 3, 0.2  # repeats of a step at least, and their seconds at least
STOPPED = "stopped"
MAX_REASON = 100  # characters of an error of torch that are kept
MIN_STEPS = 4  # of a fit of three numbers
RATES = ("flops_per_s", "bytes_per_s")
OTHER_FORM = {
    True: "if compute and memory times added up",
    False: "if the larger of compute and memory time counted",
}
"""Name of the form that was not chosen, by `Roofline.overlaps` of the chosen one."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times of steps on a machine, and what was fitted to them.

    Attributes
    ----------
    machine : Machine
    rows : tuple of Row
        All steps of the grid; the skipped ones with their reason.
    fitted : Roofline
        Fit to all measured steps.
    interval : dict of str to (float, float)
        95 % intervals of the three numbers.
    error : ShapeError
        Error of the fit on the steps that it was fitted to.
    held_out : tuple of ShapeError
        Error on each shape of a fit to the other shapes.
    other_form : tuple of ShapeError
        Errors of the form that was not chosen, in which compute and memory times add up, or
        the larger of both counts: on all steps it was fitted to, then on each shape held out.
    memory_bytes : int
        Memory of the device.
    unlimited : tuple of str
        Rates that limit no step: the profile has the largest one seen in their place.
    """

    machine: Machine
    rows: tuple[Row, ...]
    fitted: Roofline
    interval: dict[str, tuple[float, float]]
    error: ShapeError
    held_out: tuple[ShapeError, ...]
    other_form: tuple[ShapeError, ...]
    memory_bytes: int
    unlimited: tuple[str, ...] = ()

    @property
    def busy(self) -> float:
        """Return the median ratio of wall-clock time to measured time of the steps."""
        timings = [row.timing for row in self.rows if row.timing]
        return statistics.median(timing.wall_s / timing.median_s for timing in timings)

    @property
    def is_stopped(self) -> bool:
        """Whether Ctrl-C ended the measurement."""
        return any(row.skipped == STOPPED for row in self.rows)

    @property
    def skipped(self) -> list[Row]:
        """Steps that were not measured."""
        return [row for row in self.rows if row.timing is None]

    def profile(self, name: str = "") -> MeasuredProfile:
        """Return the profile for a network file; `name` is that of the machine by default.

        The name of a CPU ends in its threads, by which plans and exports know it as one.
        """
        gpu = GpuProfile(
            name=with_threads(name, self.machine) if name else slug(self.machine),
            t0_s=self.fitted.t0_s,
            flops_per_s=self.fitted.flops_per_s,
            bytes_per_s=self.fitted.bytes_per_s,
            overlaps=self.fitted.overlaps,
            memory_bytes=float(self.memory_bytes),
            basis="fitted",
            source=self.describe_source(),
        )
        return MeasuredProfile(
            gpu=gpu,
            intervals=self.interval,
            errors={about: _by_phase(each) for about, each in self.errors().items()},
            measured={key: getattr(self.machine, key) for key in Machine.__slots__},
        )

    def errors(self) -> dict[str, ShapeError]:
        """Return all errors by what they are about."""
        found = {"of the fit": self.error}
        found |= {f"{each.shape}, held out": each for each in self.held_out}
        other = OTHER_FORM[self.fitted.overlaps]
        for each in self.other_form:
            about = f", {each.shape} held out" if each.fitted_to else ""
            found[f"{other}{about}"] = each
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return machine, numbers, intervals, errors and all steps as plain values."""
        return {
            "machine": asdict(self.machine),
            "memory_bytes": self.memory_bytes,
            **{name: getattr(self.fitted, name) for name in ("t0_s", *RATES)},
            "overlaps": self.fitted.overlaps,
            "intervals": {
                name: [finite_or_none(bound) for bound in bounds]
                for name, bounds in self.interval.items()
            },
            "errors": {
                about: {phase: finite_or_none(e) for phase, e in _by_phase(each).items()}
                for about, each in self.errors().items()
            },
            "unlimited": list(self.unlimited),
            "busy": self.busy,
            "steps": [
                {
                    "shape": row.shape.name,
                    **asdict(row.step),
                    "median_s": row.timing.median_s if row.timing else None,
                    "skipped": row.skipped,
                }
                for row in self.rows
            ],
        }

    def describe_source(self) -> str:
        """Describe in a line what the profile was fitted to, and its error."""
        machine, n = self.machine, self.error.n_steps
        shapes = list(dict.fromkeys(row.shape.name for row in self.rows if row.timing))
        text = (
            f"hypsolve measure on {machine.machine}, {machine.device}, {machine.dtype},"
            f" {count(machine.threads, 'thread')}, torch {machine.torch},"
            f" {machine.date[:10]}: {n} steps of blocks of {', '.join(shapes)}"
        )
        errors = [
            f"{each.shape} {percent(each.prefill)} and {percent(each.decode)}"
            for each in self.held_out
        ]
        if not errors:
            return f"{text}; no error on a shape that was not fitted, for there is one shape"
        return (
            f"{text}; mean error in prefill and decode on a shape that was not fitted:"
            f" {', '.join(errors)}"
        )


def _by_phase(error: ShapeError) -> dict[str, float]:
    return {"prefill": error.prefill, "decode": error.decode}


def percent(share: float) -> str:
    """Return a share as text, in whole per cent."""
    return f"{share:.0%}" if share == share else "unknown"


def slug(machine: Machine) -> str:
    """Return a name for the profile of a machine, such as ``amd-epyc-2-threads-float32``."""
    words = [machine.machine]
    if machine.device == "cpu":
        words += [count(machine.threads, "thread")]
    text = re.sub(r"[^a-z0-9]+", "-", " ".join([*words, machine.dtype]).lower())
    return text.strip("-")


def with_threads(name: str, machine: Machine) -> str:
    """Return a name for the profile of a machine that states the threads of a CPU."""
    threads = count(machine.threads, "thread").replace(" ", "-")
    if machine.device != "cpu" or threads in name:
        return name
    return f"{name}-{threads}"


def default_device() -> str:
    """Return the fastest kind of device that torch sees here."""
    torch = load_torch()
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@valid.suggest_keywords("measure")
def measure(
    shapes: Sequence[str | BlockShape] = (),
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    quick: bool = False,
    steps: Sequence[Step] | None = None,
    memory_bytes: int | None = None,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure transformer blocks on this machine, and fit the three numbers of a profile.

    Parameters
    ----------
    shapes : sequence of str or BlockShape
        Shapes of blocks; see `read_shape`. A single shape gets a second one, the first default
        that has other numbers. Default: `DEFAULT_SHAPES` of the device.
    device : str, optional
        ``cpu``, ``cuda`` or ``mps``. Default: the fastest kind that there is.
    dtype : str, optional
        ``float32``, ``bfloat16`` or ``float16``, for weights, activations and KV cache.
        Default: `DTYPES` of the device.
    threads : int, optional
        Threads of torch on the CPU. Default: as many as torch starts, one for each core.
    quick : bool
        Whether a few steps are measured, within `QUICK_S` seconds.
    steps : sequence of Step, optional
        Steps in place of the grid.
    memory_bytes : int, optional
        Memory that may be used. Default: `MEMORY_SHARE` of the free memory.
    time_limit_s : float, optional
        Seconds after which no further step starts. Default: `QUICK_S` or `FULL_S`.
    progress : callable, optional
        Called with a line of text before each step.

    Returns
    -------
    Measurement
        After Ctrl-C, of the steps until then.

    Raises
    ------
    ValueError, TypeError
        If torch is missing, if an argument is invalid, or if fewer than `MIN_STEPS` steps could
        be measured; the message names it.
    """
    torch = load_torch()
    device = device or default_device()
    valid.known("device", device, DEVICES)
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device in available and not available[device]():
        raise ValueError(f"measure: device must be one that torch sees here, got {device!r}")
    dtype = valid.known("dtype", dtype or DTYPES[device], KNOWN_DTYPES)
    element_bytes = element_bytes_of(dtype)
    total, free = memory_bytes_of(device)
    if memory_bytes is None:
        memory_bytes = int(MEMORY_SHARE * free)
    valid.whole("measure", "memory_bytes", memory_bytes, minimum=1)
    limit_s = time_limit_s if time_limit_s is not None else QUICK_S if quick else FULL_S
    valid.real("measure", "time_limit_s", limit_s, strict=True)
    if threads is not None:
        torch.set_num_threads(valid.whole("measure", "threads", threads, minimum=1))
    machine = this_machine(device, dtype)
    run = _Run(
        shapes=_both(shapes, device),
        steps=grid(quick) if steps is None else list(steps),
        device=device,
        dtype=dtype,
        element_bytes=element_bytes,
        memory_bytes=memory_bytes,
        deadline=time.monotonic() + limit_s,
        progress=progress or (lambda line: None),
    )
    return conclude(machine, run.rows(), total)


def conclude(machine: Machine, rows: Sequence[Row], memory_bytes: int) -> Measurement:
    """Fit a profile to measured rows, with intervals and errors.

    Raises
    ------
    ValueError
        If fewer than `MIN_STEPS` steps were measured.
    """
    measured = steps_of(rows)
    n = len(measured.seconds)
    if n < MIN_STEPS:
        reasons = sorted({row.skipped for row in rows if row.skipped})
        raise ValueError(
            f"measure: must time at least {MIN_STEPS} steps to fit three numbers, got {n};"
            f" skipped: {'; '.join(reasons) or 'none'}"
        )
    overlaps = choose_form(measured)
    fitted = fit_roofline(measured, overlaps=overlaps)
    bounded = with_rates_seen(fitted, measured)
    ranges = intervals(measured, fitted)
    # a rate that limits no step is only known to be no lower than the largest one seen
    unlimited = tuple(n for n in RATES if getattr(fitted, n) != getattr(bounded, n))
    ranges |= {name: (getattr(bounded, name), math.inf) for name in unlimited}
    other = shape_error(measured, fit_roofline(measured, overlaps=not overlaps), "all", ())
    return Measurement(
        machine=machine,
        rows=tuple(rows),
        fitted=bounded,
        interval=ranges,
        error=shape_error(measured, bounded, "all", ()),
        held_out=tuple(held_out(measured, overlaps=overlaps)),
        other_form=(other, *held_out(measured, overlaps=not overlaps)),
        memory_bytes=memory_bytes,
        unlimited=unlimited,
    )


def with_rates_seen(fitted: Roofline, measured: Steps) -> Roofline:
    """Return a fit whose infinite rates are replaced by the largest ones that steps reached.

    A rate is infinite where no step is limited by it: it is only known that it is no lower.
    """
    known = [
        rate if math.isfinite(rate) else float((work / measured.seconds).max())
        for rate, work in (
            (fitted.flops_per_s, measured.flops),
            (fitted.bytes_per_s, measured.moved_bytes),
        )
    ]
    return replace(fitted, flops_per_s=known[0], bytes_per_s=known[1])


def _both(shapes: Sequence[str | BlockShape], device: str) -> list[BlockShape]:
    """Return the shapes to measure: two at least."""
    if isinstance(shapes, str):
        raise TypeError(f"measure: shapes must be a sequence of names, got {shapes!r:.60}")
    found = [read_shape(each) if isinstance(each, str) else each for each in shapes]
    for each in found:
        valid.of_type("measure", "shapes", each, BlockShape)
    defaults = [read_shape(text) for text in DEFAULT_SHAPES[device]]
    if not found:
        return defaults
    if len(set(found)) == 1:
        found.append(
            next(each for each in reversed(defaults) if each.n_weights != found[0].n_weights)
        )
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"measure: shapes must have distinct names, got {', '.join(names)}")
    return found


@dataclass(slots=True)
class _Run:
    """A measurement under way: its rows so far, and the rates seen."""

    shapes: list[BlockShape]
    steps: list[Step]
    device: str
    dtype: str
    element_bytes: int
    memory_bytes: int
    deadline: float
    progress: Progress
    flops_per_s: float = 0.0  # largest rates seen: they tell how long a step will take
    bytes_per_s: float = 0.0
    is_stopped: bool = False
    found: list[Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Measure all steps of all shapes."""
        n_all = len(self.shapes) * len(self.steps)
        started = time.monotonic()
        for at, shape in enumerate(self.shapes):
            # each shape may use an equal part of the time that is left
            now = time.monotonic()
            until = now + (self.deadline - now) / (len(self.shapes) - at)
            self._measure(shape, n_all, started, until)
        return self.found

    def _measure(self, shape: BlockShape, n_all: int, started: float, until: float) -> None:
        n_layers = n_layers_of(shape, self.element_bytes)
        least = shape.n_weights * self.element_bytes
        n_layers = max(1, min(n_layers, self.memory_bytes // 2 // least))
        stack: Stack | None = None
        for step in self.steps:
            row = Row(shape, step, n_layers, *step.work(shape, self.element_bytes))
            reason = self._reason_to_skip(row, until)
            if not reason:
                self._report(shape, step, n_all, started)
                try:
                    stack = stack or Stack(shape, n_layers, self.device, self.dtype)
                    self.found.append(self._timed(stack, row, until))
                    continue
                except KeyboardInterrupt:
                    self.is_stopped, reason = True, STOPPED
                except RuntimeError as error:  # out of memory, or no kernel for it
                    reason = f"torch: {' '.join(str(error).split())[:MAX_REASON]}"
            self.found.append(replace(row, skipped=reason))

    def _timed(self, stack: Stack, row: Row, until: float) -> Row:
        """Return a row with its time, and note the rates seen."""
        left_s = max(0.0, until - time.monotonic())
        timing = stack.time(row.step, repeats=REPEATS, min_s=STEP_S, max_s=left_s)
        self.flops_per_s = max(self.flops_per_s, row.flops / timing.median_s)
        self.bytes_per_s = max(self.bytes_per_s, row.moved_bytes / timing.median_s)
        return replace(row, timing=timing)

    def _reason_to_skip(self, row: Row, until: float) -> str:
        if self.is_stopped:
            return STOPPED
        need = need_bytes(row.shape, row.step, row.layers, self.element_bytes)
        if need > self.memory_bytes:
            return f"memory: needs {show_bytes(need)} of {show_bytes(self.memory_bytes)}"
        left_s = until - time.monotonic()
        twice_s = 2 * row.layers * self._expected_s(row)  # a warm-up and a repeat
        if twice_s >= left_s:
            return "time: the limit would be exceeded"
        return ""

    def _expected_s(self, row: Row) -> float:
        """Return the least seconds of a block that the rates seen so far allow."""
        by_compute = row.flops / self.flops_per_s if self.flops_per_s else 0.0
        by_memory = row.moved_bytes / self.bytes_per_s if self.bytes_per_s else 0.0
        return max(by_compute, by_memory)

    def _report(self, shape: BlockShape, step: Step, n_all: int, started: float) -> None:
        n_done = len(self.found)
        line = f"{n_done + 1} of {n_all}: {shape.name}, {step.describe()}"
        if n_done:
            now = time.monotonic()
            left_s = (now - started) / n_done * (n_all - n_done)
            line += f"; about {max(1, round(min(left_s, self.deadline - now)))} s left"
        self.progress(line)
