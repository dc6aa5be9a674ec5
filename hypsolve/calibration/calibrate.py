"""Fit a GPU profile to the benchmark of a server: `calibrate`.

Three numbers are fitted, as logarithms of their ratios to a profile to start from: that of the
catalogue, or a measured one. The start is a prior: `PRIOR` states how far the numbers of a real
server are from it. So a benchmark that says nothing about a number, as decoding says nothing
about the FLOP rate, leaves it where it was, and the interval says so. The fit minimises squared
errors of logarithms by the Gauss-Newton method. Times per token weigh most, because times to
first token contain queues and the start of a benchmark.

Seconds per request outside of iterations are fitted, too, if the times to first token identify
them: if their 95 % interval lies above 0. They hold what a server does before the first
iteration, and the queues with which benchmarks begin.

Few runs move the numbers less, for one run cannot tell which of three numbers is wrong: the
squared errors of n runs count n / (n + `FEW_RUNS`) times. No rate is above the data sheet of
the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.calibration.benchmarks import Benchmark
from hypsolve.calibration.benchmarks_run import BenchmarkRun
from hypsolve.calibration.calibrate_forecast import (
    Server,
    SteadyStates,
    simulated,
    waits_for_memory,
    with_numbers,
)
from hypsolve.catalog.datasheets import Ceiling, ceiling
from hypsolve.formats.gpu_profile import MeasuredProfile
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.interconnect import Interconnect
from hypsolve.problem.model import Model
from hypsolve.problem.network import GpuProfile
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.units import count, finite_or_none, show_percent

NUMBERS = ("t0_s", "flops_per_s", "bytes_per_s")
PRIOR = np.array([1.0, 0.4, 0.3])
"""Standard deviations of the logarithms of the numbers, before a benchmark is seen."""
REQUEST_S = 0.1
"""Standard deviation of the seconds per request outside of iterations, before: half normal."""
REQUEST = len(NUMBERS)  # place of the seconds per request
TPOT, TTFT, TTFT_OF_USERS = 0.03, 0.1, 0.3
"""Errors that weigh the same: of times per token; of times to first token (one user, many)."""
FEW_RUNS = 4.0  # at so many, the errors weigh half
Index = NDArray[np.int64]
MIN_T0_S = 1e-7  # from which a fixed time of 0 is fitted
N_STEPS, MAX_STEP, DIFFERENCE = 30, 0.7, 1e-4
N_CORRECTIONS = 2  # of the closed form by simulations
MAX_ALONE = 12  # runs that are left out one by one; more are left out by lengths in two halves
MIN_HELD_OUT = 3  # runs
OTHER_SERVER = 9.0  # error of the fit from which the benchmark is that of another server
AT_PEAK = 1e-3  # share below a data sheet from which it is what limits a fit
KNOWN = 0.5  # share of the prior's variance below which a number counts as seen
NORMAL = 1.96  # 97.5 % quantile of the normal distribution
T_QUANTILES = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip
"""97.5 % quantiles of Student's distribution with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute relative errors of forecasts; nan where nothing was measured.

    Attributes
    ----------
    ttft, tpot : float
        0.05 is 5 %.
    n_runs : int
    """

    ttft: float
    tpot: float
    n_runs: int


@dataclass(frozen=True, slots=True)
class RunForecast:
    """A run with its forecasts before and after, in seconds; nan where there is none.

    Attributes
    ----------
    run : BenchmarkRun
    before, after, held_out : (float, float)
        Time to first token and time per token: by the profile to start from, by the fitted one,
        and by a fit that has not seen the run.
    waits_for_memory : bool
        Whether users wait for KV cache; see `calibrate_forecast.waits_for_memory`.
    """

    run: BenchmarkRun
    before: tuple[float, float]
    after: tuple[float, float]
    held_out: tuple[float, float]
    waits_for_memory: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the run and its times as plain values."""
        run = self.run
        times = {
            "measured": (run.ttft_s, run.tpot_s),
            "before": self.before,
            "after": self.after,
            "held_out": self.held_out,
        }
        plain = {
            f"{key}_{about}_s": None if value is None else finite_or_none(value)
            for about, pair in times.items()
            for key, value in zip(("ttft", "tpot"), pair, strict=True)
        }
        return {
            "label": run.label,
            "prompt_tokens": run.prompt_tokens,
            "output_tokens": run.output_tokens,
            "cached_tokens": run.cached_tokens,
            "users": run.users,
            "waits_for_memory": self.waits_for_memory,
            **plain,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile fitted to a benchmark, and how true it is.

    Attributes
    ----------
    benchmark : Benchmark
    server : Server
    start, gpu : GpuProfile
        Before and after.
    intervals : dict of str to (float, float)
        95 % intervals of the three numbers.
    unseen : tuple of str
        Numbers about which the runs say little: they stay near the start.
    request_s : float
        Seconds per request outside of iterations, in each time to first token; 0 if the runs do
        not identify them. A profile file holds them for people alone: plans do not add them.
    request_interval_s : (float, float)
        Their 95 % interval.
    at_peak : tuple of str
        Rates that the runs would have above the data sheet of the GPU, and that it limits.
    forecasts : tuple of RunForecast
    before, after, held_out : Errors
        `held_out` has no runs if there are too few.
    """

    benchmark: Benchmark
    server: Server
    start: GpuProfile
    gpu: GpuProfile
    intervals: dict[str, tuple[float, float]]
    unseen: tuple[str, ...]
    request_s: float
    request_interval_s: tuple[float, float]
    at_peak: tuple[str, ...]
    forecasts: tuple[RunForecast, ...]
    before: Errors
    after: Errors
    held_out: Errors

    def to_dict(self) -> dict[str, Any]:
        """Return runs, forecasts, numbers, intervals and errors as plain values."""
        errors = {"before": self.before, "of_the_fit": self.after, "held_out": self.held_out}
        return {
            "file": self.benchmark.path.name,
            "format": self.benchmark.format,
            "model": self.server.model.name,
            "runtime": self.server.runtime.name,
            "started_from": self.start.name,
            **{name: getattr(self.gpu, name) for name in NUMBERS},
            "request_s": self.request_s,
            "intervals": {
                **{name: list(bounds) for name, bounds in self.intervals.items()},
                "request_s": list(self.request_interval_s),
            },
            "little_seen": list(self.unseen),
            "at_peak": list(self.at_peak),
            "errors": {
                about: {
                    "ttft": finite_or_none(each.ttft),
                    "tpot": finite_or_none(each.tpot),
                    "runs": each.n_runs,
                }
                for about, each in errors.items()
            },
            "left_out": list(self.benchmark.left_out),
            "runs": [each.to_dict() for each in self.forecasts],
        }

    def profile(self) -> MeasuredProfile:
        """Return the profile file."""
        shown = {"before": self.before, "of the fit": self.after, "held out": self.held_out}
        n_waiting = sum(each.waits_for_memory for each in self.forecasts)
        waiting = {"runs_that_wait_for_memory": n_waiting} if n_waiting else {}
        request = {"request_ms": round(1e3 * self.request_s, 1)} if self.request_s else {}
        return MeasuredProfile(
            gpu=self.gpu,
            intervals=self.intervals,
            errors={
                about: {"ttft": each.ttft, "tpot": each.tpot}
                for about, each in shown.items()
                if each.n_runs
            },
            measured={
                "file": self.benchmark.path.name,
                "format": self.benchmark.format,
                "runs": len(self.benchmark.runs),
                "model": self.server.model.name,
                "runtime": self.server.runtime.name,
                "started_from": self.start.name,
                "little_seen": ", ".join(self.unseen),
                **request,
                **waiting,
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            },
        )


@valid.suggest_keywords("calibrate")
def calibrate(
    benchmark: Benchmark,
    *,
    gpu: GpuProfile,
    model: Model,
    runtime: Runtime,
    interconnect: Interconnect | None = None,
    name: str = "",
) -> Calibration:
    """Fit the three numbers of a GPU profile to a benchmark of a server.

    Parameters
    ----------
    benchmark : Benchmark
        Of `hypsolve.calibration.benchmarks.read_benchmark`.
    gpu : GpuProfile
        The profile to start from, of one GPU.
    model : Model
        The model that was served, with its format of weights.
    runtime : Runtime
        The server, with the limits that it had.
    interconnect : Interconnect, optional
        Among the GPUs, if several compute as one.
    name : str
        Name of the new profile. Default: of the GPU and the runtime.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, the model does not fit on the GPUs, or the fitted profile
        stays further off than ten times the measured times; the message names it.

    Notes
    -----
    The GPU is known by the name of its profile (`hypsolve.catalog.datasheets.ceiling`).

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import hypsolve as hs
    >>> from hypsolve.calibration.benchmarks import read_benchmark
    >>> rows = [{"n_prompt": 512, "n_gen": 0, "avg_ns": 1.6e8},
    ...     {"n_prompt": 0, "n_gen": 128, "avg_ns": 128 * 6.5e7}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "bench.json")
    ...     _ = path.write_text(json.dumps(rows))
    ...     bench = read_benchmark(path)
    >>> server = {"model": hs.model("llama-3-8b"), "runtime": hs.runtime("llama.cpp")}
    >>> found = calibrate(bench, gpu=hs.gpu("l4"), **server)
    >>> found.before.tpot > 5 * found.after.tpot  # by the catalogue, and by the new profile
    True
    >>> found.held_out.n_runs  # two runs: none can be held out
    0
    """
    valid.of_type("calibrate", "benchmark", benchmark, Benchmark)
    valid.of_type("calibrate", "gpu", gpu, GpuProfile)
    valid.of_type("calibrate", "model", model, Model)
    valid.of_type("calibrate", "runtime", runtime, Runtime)
    runs = benchmark.runs
    degrees = {run.tensor_parallel for run in runs}
    if len(degrees) > 1:
        raise ValueError(
            f"calibrate: tensor_parallel must be one number, got {sorted(degrees)}"
        )
    if interconnect is None and max(degrees) > 1:
        raise ValueError(
            "calibrate: interconnect must be given where several GPUs compute as one"
        )
    server = Server(model, runtime, interconnect)
    start = replace(
        gpu,
        name=name or f"{gpu.name}-{runtime.name}",
        t0_s=max(gpu.t0_s, MIN_T0_S),
        # a profile file has one size of memory: what a server sees
        memory_bytes=gpu.memory_bytes - gpu.hidden_bytes,
        visible_bytes=None,
        basis="fitted",
    )
    _check_room(start, model, max(degrees))
    before = np.array([_first(benchmark, server, start, run) for run in runs])
    most = ceiling(gpu.name, model.name)
    problem = _Problem(server, start, runs, before, most)
    x = problem.fit()
    for _ in range(N_CORRECTIONS):
        problem.correct(x, problem.simulations(x))
        x = problem.fit(x)
    fitted, after = problem.gpu(x), problem.simulations(x)
    interval, unseen = problem.intervals(x)
    unmeasured = np.full_like(after, np.nan)
    held_out = problem.held_out() if len(runs) >= MIN_HELD_OUT else unmeasured
    errors = [problem.mean_errors(each) for each in (before, after, held_out)]
    _check_fit(benchmark, errors[1])
    source = _source(benchmark, server, errors[0], errors[2])
    return Calibration(
        benchmark=benchmark,
        server=server,
        start=gpu,
        gpu=replace(fitted, source=source),
        intervals=interval,
        unseen=unseen,
        request_s=problem.request_s(x),
        request_interval_s=problem.request_interval(x),
        at_peak=problem.at_peak(x),
        forecasts=tuple(
            RunForecast(run, _pair(a), _pair(b), _pair(c), waits_for_memory(server, gpu, run))
            for run, a, b, c in zip(runs, before, after, held_out, strict=True)
        ),
        before=errors[0],
        after=errors[1],
        held_out=errors[2],
    )


def _pair(times_s: Array) -> tuple[float, float]:
    return float(times_s[0]), float(times_s[1])


def _check_room(gpu: GpuProfile, model: Model, n_gpus: int) -> None:
    """Raise if the weights take more than the memory of the GPUs that compute as one."""
    if model.weight_bytes > n_gpus * gpu.memory_bytes:
        raise ValueError(
            f"calibrate: model must fit on {count(n_gpus, 'GPU')} of {gpu.memory_bytes:.4g}"
            f" bytes, got {model.name}, whose weights have {model.weight_bytes:.4g}; give the"
            " GPU, weights and tensor_parallel that were used"
        )


def _first(
    benchmark: Benchmark, server: Server, gpu: GpuProfile, run: BenchmarkRun
) -> tuple[float, float]:
    """Simulate a run by the profile to start from; an error names the file and the run."""
    try:
        return simulated(server, gpu, run)
    except ValueError as error:
        reason = str(error).removeprefix("simulate: ")
        raise ValueError(
            f"calibrate: {benchmark.path.name}: {run.label}: cannot be simulated on"
            f" {gpu.name}: {reason}"
        ) from error


def _check_fit(benchmark: Benchmark, after: Errors) -> None:
    """Raise if a fit stays so far off its own runs that they are not of this server."""
    for name, error in (("TPOT", after.tpot), ("TTFT", after.ttft)):
        if error > OTHER_SERVER:
            raise ValueError(
                f"calibrate: {benchmark.path.name}: {name} must be at most"
                f" {OTHER_SERVER + 1:g} times the measured one after the fit, got"
                f" {error + 1:.3g} times on average; GPU, model, weights or runtime are not"
                " those of the benchmark"
            )


def _source(benchmark: Benchmark, server: Server, before: Errors, held_out: Errors) -> str:
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    text = (
        f"hypsolve calibrate, {date}: {count(len(benchmark.runs), 'run')} of {benchmark.format}"
        f" ({benchmark.path.name}), {server.model.name} on {server.runtime.name}; mean error"
        f" before: {describe_errors(before)}"
    )
    if not held_out.n_runs:
        return f"{text}; held out: unknown, too few runs"
    return f"{text}; on runs held out: {describe_errors(held_out)}"


def describe_errors(errors: Errors) -> str:
    """Describe errors in a few words, such as ``TPOT 4.1 %, TTFT 20 %``."""
    parts = [
        f"{name} {show_percent(value)}"
        for name, value in (("TPOT", errors.tpot), ("TTFT", errors.ttft))
        if not math.isnan(value)
    ]
    return ", ".join(parts) or "unknown"


def _weight(which: Index) -> float:
    """Return the weight of the errors of so many runs."""
    return math.sqrt(len(which) / (len(which) + FEW_RUNS))


def prior_widths(which: Index) -> Array:
    """Return the standard deviations of all numbers before, in the units of weighted errors.

    The seconds per request have no other start than 0: few runs move them like many.
    """
    return np.append(PRIOR, 1.0 / _weight(which) if len(which) else 1.0)


class _Problem:
    """The least squares of one server: measured times, forecasts of the closed form.

    A point `x` holds the logarithmic ratios of the numbers to the start, and the seconds per
    request in units of `REQUEST_S`.
    """

    def __init__(
        self,
        server: Server,
        start: GpuProfile,
        runs: Sequence[BenchmarkRun],
        before: Array,
        most: Ceiling | None = None,
    ) -> None:
        self.server, self.start, self.runs = server, start, tuple(runs)
        self.states = SteadyStates(server, start, runs)
        self.centre = np.log([getattr(start, name) for name in NUMBERS])
        self.most = np.array([math.inf, math.inf, math.inf])
        if most is not None:
            self.most[1:] = most.flops_per_s, most.bytes_per_s
        missing = math.nan
        self.measured = np.array(
            [[run.ttft_s or missing, run.tpot_s or missing] for run in runs]
        )
        one = np.array([run.users <= 1 for run in runs])
        first = np.where(one, TTFT, TTFT_OF_USERS)
        self.units = np.stack([first, np.full(len(runs), TPOT)], axis=1)
        of_server = [[0.0 if run.is_kernel_time else 1.0, 0.0] for run in runs]
        self.requests = np.array(of_server)  # to which the seconds per request are added
        self.ratio = np.ones_like(self.measured)  # of simulations to the closed form
        self.correct(np.zeros(REQUEST + 1), before)

    def gpu(self, x: Array) -> GpuProfile:
        """Return the profile of a point."""
        ratios = np.exp(self.centre + x[:REQUEST])
        return with_numbers(self.start, np.minimum(ratios, self.most))

    def at_peak(self, x: Array) -> tuple[str, ...]:
        """Return the numbers that the data sheet limits."""
        is_there = np.exp(self.centre + x[:REQUEST]) > self.most * (1 - AT_PEAK)
        return tuple(name for name, there in zip(NUMBERS, is_there, strict=True) if there)

    def request_s(self, x: Array) -> float:
        """Return the seconds per request of a point."""
        return float(REQUEST_S * x[REQUEST])

    def closed_forms(self, x: Array, which: Index) -> Array:
        """Return the times of some runs by the closed form, shape (n_runs, 2)."""
        return self.states.seconds(self.gpu(x), which)

    def simulations(self, x: Array) -> Array:
        """Return the simulated times of all runs, shape (n_runs, 2)."""
        gpu, request_s = self.gpu(x), self.request_s(x)
        return np.array([simulated(self.server, gpu, run, request_s) for run in self.runs])

    def correct(self, x: Array, simulations: Array) -> None:
        """Set the ratios of simulations to the closed form, from those of one point."""
        made = self.closed_forms(x, np.arange(len(self.runs)))
        within = simulations - self.request_s(x) * self.requests
        with np.errstate(divide="ignore", invalid="ignore"):
            self.ratio = np.where(made > 0, within / made, 1.0)

    def forecast(self, x: Array, which: Index) -> Array:
        """Return the corrected times of some runs, shape (n_runs, 2)."""
        within = self.closed_forms(x, which) * self.ratio[which]
        return within + self.request_s(x) * self.requests[which]

    def errors(self, x: Array, which: Index) -> Array:
        """Return the errors of logarithms in units, of all that was measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.forecast(x, which) / self.measured[which])
        errors = (logs / self.units[which]).ravel() * _weight(which)
        return errors[np.isfinite(errors)]

    def fit(self, x: Array | None = None, which: Index | None = None) -> Array:
        """Return the point of least squares.

        The seconds per request are 0 unless the runs identify them.
        """
        x = np.zeros(REQUEST + 1) if x is None else x
        which = np.arange(len(self.runs)) if which is None else which
        measured = np.isfinite(self.measured[which]) & (self.requests[which] > 0)
        if measured.sum() > 1:
            found = self.least_squares(x, which, REQUEST + 1)
            if self.request_interval(found, which)[0] > 0:
                return found
        return self.least_squares(np.append(x[:REQUEST], 0.0), which, REQUEST)

    def least_squares(self, x: Array, which: Index, n_free: int) -> Array:
        """Return the point of least squares over the first numbers, by damped Gauss-Newton."""
        errors, widths = self.errors(x, which), prior_widths(which)
        cost = float(errors @ errors + ((x / widths) ** 2).sum())
        damping = 1e-3
        for _ in range(N_STEPS):
            slopes = self.slopes(x, which, errors)[:, :n_free]
            normal = slopes.T @ slopes + np.diag(1 / widths[:n_free] ** 2)
            gradient = slopes.T @ errors + x[:n_free] / widths[:n_free] ** 2
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            tried = x.copy()
            tried[:n_free] += np.clip(step, -MAX_STEP, MAX_STEP)
            tried[REQUEST] = max(tried[REQUEST], 0.0)
            new_errors = self.errors(tried, which)
            new_cost = float(new_errors @ new_errors + ((tried / widths) ** 2).sum())
            if new_cost < cost:
                gain, x, errors, cost = cost - new_cost, tried, new_errors, new_cost
                damping = max(damping / 5, 1e-9)
                if gain < 1e-7 * cost:
                    break
            else:
                damping *= 8
                if damping > 1e6:
                    break
        return x

    def slopes(self, x: Array, which: Index, errors: Array) -> Array:
        """Return the derivatives of the errors."""
        moved = x + DIFFERENCE * np.eye(len(x))
        return (
            np.stack([self.errors(row, which) - errors for row in moved], axis=1) / DIFFERENCE
        )

    def deviations(
        self, x: Array, which: Index | None = None, *, with_request: bool
    ) -> tuple[Array, float]:
        """Return standard deviations of the numbers, and the quantile of a 95 % interval."""
        which = np.arange(len(self.runs)) if which is None else which
        n_free = REQUEST + 1 if with_request else REQUEST
        errors, widths = self.errors(x, which), prior_widths(which)
        slopes = self.slopes(x, which, errors)[:, :n_free]
        # the prior is as good as a measurement of each number
        squares = float(errors @ errors + ((x / widths) ** 2).sum())
        freedom = max(len(errors), 1)
        scale = max(1.0, squares / freedom)  # the form is off by more than the units
        prior = np.diag(1 / widths[:n_free] ** 2)
        variance = np.diag(np.linalg.inv(slopes.T @ slopes / scale + prior))
        quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL
        return np.sqrt(variance), quantile

    def intervals(self, x: Array) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
        """Return 95 % intervals, and the numbers about which the runs say little."""
        deviations, quantile = self.deviations(x, with_request=x[REQUEST] > 0)
        deviations = deviations[:REQUEST]
        half = np.minimum(quantile * deviations, NORMAL * PRIOR)
        numbers = np.minimum(x[:REQUEST], np.log(self.most) - self.centre)
        low, high = (np.exp(self.centre + numbers + side) for side in (-half, half))
        unseen = tuple(
            name
            for name, deviation, p in zip(NUMBERS, deviations, PRIOR, strict=True)
            if deviation**2 > KNOWN * p**2
        )
        high = np.minimum(high, self.most)
        ranges = {n: (float(low[i]), float(high[i])) for i, n in enumerate(NUMBERS)}
        return ranges, unseen

    def request_interval(self, x: Array, which: Index | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the seconds per request; (0, 0) if they are 0."""
        if not x[REQUEST]:
            return 0.0, 0.0
        deviations, quantile = self.deviations(x, which, with_request=True)
        at, half = float(x[REQUEST]), float(quantile * deviations[REQUEST])
        return REQUEST_S * max(at - half, 0.0), REQUEST_S * (at + half)

    def held_out(self) -> Array:
        """Return forecasts of each run by a fit to others, shape (n_runs, 2)."""
        made = np.full_like(self.measured, np.nan)
        parts = np.array(self.parts())
        for part in np.unique(parts):
            own = np.flatnonzero(parts == part)
            others = np.flatnonzero(parts != part)
            made[own] = self.forecast(self.fit(which=others), own)
        return made

    def parts(self) -> list[int]:
        """Return the part of each run: one load each, or one of two halves of the lengths."""
        loads = [
            (r.prompt_tokens, r.output_tokens, r.cached_tokens, r.users) for r in self.runs
        ]
        different = sorted(set(loads))
        if len(different) <= MAX_ALONE:
            return [different.index(load) for load in loads]
        lengths = sorted({load[:3] for load in loads})
        if len(lengths) > 1:
            return [lengths.index(load[:3]) % 2 for load in loads]
        return [different.index(load) % 2 for load in loads]

    def mean_errors(self, made: Array) -> Errors:
        """Return the mean errors of forecasts of all runs."""
        known = np.isfinite(made) & np.isfinite(self.measured)
        errors = np.abs(made / self.measured - 1)
        means = [
            float(errors[known[:, i], i].mean()) if known[:, i].any() else math.nan
            for i in range(2)
        ]
        return Errors(means[0], means[1], int(known.any(axis=1).sum()))
