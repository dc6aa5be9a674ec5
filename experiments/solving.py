"""Runs of one method on one instance by `solve`, planned from `EXPERIMENTS`."""

import contextlib
import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from experiments.definitions import EXPERIMENTS, AnyMethod, Experiment, settings
from hypsolve import Instance, Result, solve
from hypsolve.solvers.backends.scip import hide_spurious_scip_errors

R = TypeVar("R", bound="SolveRun")
T = TypeVar("T")


class Answered(Protocol):
    """An answer of a method, with the time it took."""

    @property
    def solve_time_s(self) -> float:
        """Seconds that the method took."""


A = TypeVar("A", bound=Answered)
COLUMNS = (
    "experiment",
    "series",
    "axis",
    "value",
    "digest",
    "instance",
    "objective",
    "method",
    "options",
    "policy",
    "seed",
    "time_limit_s",
    "status",
    "objective_s",
    "bound_s",
    "gap",
    "solve_time_s",
    "n_timings",
    "n_requests",
    "n_blocks",
    "n_tiers",
    "n_nodes",
    "extrapolated",
    "message",
    "version",
)
IDENTITY = ("digest", "method", "options", "seed", "time_limit_s", "version")
REPEAT_BELOW_S = 0.05  # a shorter run is timed N_TIMINGS times, and its median is kept
N_TIMINGS = 5


def solve_quietly(instance: Instance, method: AnyMethod, **options: Any) -> Result:
    """Call `solve` and suppress the false errors of SCIP."""
    is_scip = method == "partition_scip"
    with hide_spurious_scip_errors() if is_scip else contextlib.nullcontext():
        return solve(instance, method, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRun:
    """One call of `solve`: the instance, the method, and the columns that identify the row."""

    experiment: str
    series: str
    axis: str
    value: Any
    instance: Instance
    digest: str
    method: AnyMethod
    options: Mapping[str, Any]
    seed: int
    time_limit_s: float
    version: str

    def row(self) -> dict[str, Any]:
        """Return the columns that are known before the run."""
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "instance": self.instance.name,
            "objective": self.instance.objective,
            "method": name_of(self.method),
            "options": json.dumps(self.options, sort_keys=True),
            "policy": self.options.get("policy", ""),
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "n_requests": self.instance.n_requests,
            "n_blocks": self.instance.n_blocks,
            "n_tiers": self.instance.n_tiers,
            "n_nodes": self.instance.n_nodes,
            "extrapolated": self.instance.extrapolated,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Solve, several times if a solve is short, and return the other columns."""
        self.warm()
        return answer_columns(*timed(self.solve))

    def warm(self) -> None:
        """Solve a tiny instance; one's own method may not take it, and is not warmed."""
        if isinstance(self.method, str):
            warm(self.method, json.dumps(self.options), str(self.instance.objective))

    def solve(self, **more: Any) -> Result:
        """Call the method with its options and `more` keywords."""
        return solve_quietly(
            self.instance, self.method, time_limit_s=self.time_limit_s, seed=self.seed,
            **self.options, **more,
        )  # fmt: skip

    @property
    def call(self) -> str:
        """Method and options."""
        return call_of(self.method, self.options)

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return the status and the solve time."""
        from experiments.labels import seconds

        return f"{row['status']}, {seconds(row['solve_time_s'])}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds that all timings took."""
        return float(row["solve_time_s"] * row["n_timings"])

    def __str__(self) -> str:
        return describe_run(self)


def name_of(method: AnyMethod) -> str:
    """Return the name of a method; of one's own method, the name of its function."""
    if isinstance(method, str):
        return method
    return str(getattr(method, "function", method).__name__)


def call_of(method: AnyMethod, options: Mapping[str, Any]) -> str:
    """Describe a method and its options in one line."""
    return " ".join([name_of(method), *(f"{k}={v}" for k, v in options.items())])


def describe_run(run: Any) -> str:
    """Describe a run by its experiment, series, value, seed and method."""
    place = f"{run.experiment}/{run.series} {run.axis}={run.value} seed={run.seed}"
    return f"{place} {run.call}"


def answer_columns(result: Result, times_s: Sequence[float]) -> dict[str, Any]:
    """Return the columns of an answer that was timed once or several times."""
    return {
        "status": result.status,
        "objective_s": result.objective_s,
        "bound_s": result.bound_s,
        "gap": result.gap,
        "solve_time_s": statistics.median(times_s),
        "n_timings": len(times_s),
        "message": result.message,
    }


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> list[SolveRun]:
    """List the runs of an experiment at a size (quick, default, full)."""
    return runs_of(
        EXPERIMENTS[name], SolveRun, name, size, version=version, n_seeds=n_seeds,
        time_limit_s=time_limit_s,
    )  # fmt: skip


def runs_of(
    experiment: Experiment,
    kind: type[R],
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None,
    time_limit_s: float | None,
) -> list[R]:
    """List the runs of an experiment at a size, as instances of `kind`."""
    n_seeds = n_seeds or experiment.n_seeds[size]
    runs = []
    for series_name, value, seed in settings(experiment.series, size, n_seeds):
        series = experiment.series[series_name]
        instance = series.build(value, seed)
        digest = instance.digest()
        limits_s = series.time_limit_s or experiment.time_limit_s
        runs += [
            kind(
                experiment=name,
                series=series_name,
                axis=series.axis,
                value=value,
                instance=instance,
                digest=digest,
                method=call.method,
                options=call.options,
                seed=seed,
                time_limit_s=time_limit_s or limits_s[size],
                version=version,
            )
            for call in series.calls
            if call.is_run(value, seed)
        ]
    return runs


def timed(call: Callable[[], A]) -> tuple[A, list[float]]:
    """Return the answer of a method, and its solve times: several if they are short."""
    answer = with_loaded_kernels(call)
    times_s = [answer.solve_time_s]
    while max(times_s) < REPEAT_BELOW_S and len(times_s) < N_TIMINGS:
        times_s.append(call().solve_time_s)
    return answer, times_s


def short(value: float) -> float:
    """Round to six digits, which keeps the files small."""
    return float(f"{value:.6g}")


def with_loaded_kernels(call: Callable[[], T]) -> T:
    """Return the result of `call`, and call again if it compiled or loaded a kernel.

    Each layout of an argument (a read-only array, say) makes numba compile a version of its
    own, or load one. That takes up to seconds, once a process, and is not the method's time.
    """
    n_before = n_kernel_versions()
    result = call()
    return result if n_kernel_versions() == n_before else call()


def n_kernel_versions() -> int:
    """Count the compiled versions of all kernels in this process."""
    modules = [m for name, m in sys.modules.items() if name.startswith("hypsolve.kernels.")]
    functions = {id(f): f for module in modules for f in vars(module).values()}
    return sum(len(getattr(f, "overloads", ())) for f in functions.values())


@functools.cache
def warm(method: str, options: str, objective: str = "mean_latency") -> None:
    """Make a method import its backend and load its kernels before a clock starts."""
    tiny = Instance.from_tables(
        [[[1.0, 1.0, 1.0]]], [0, 0, 0], [[(0, 0)], [(0, 0)]], objective=objective
    )
    solve_quietly(tiny, method, time_limit_s=1.0, **json.loads(options))
