"""Experiments with `solve`: a run is one method on one instance, planned from EXPERIMENTS."""

import contextlib
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from experiments.definitions import EXPERIMENTS, Experiment, settings
from hypsolve import Instance, Result, solve
from hypsolve.solvers.backends.scip import hide_spurious_scip_errors

R = TypeVar("R", bound="SolveRun")
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
QUESTIONS = {name: experiment.question for name, experiment in EXPERIMENTS.items()}
REPEAT_BELOW_S = 0.05  # a shorter run is timed N_TIMINGS times and the median is kept
N_TIMINGS = 5


def solve_quietly(instance: Instance, method: str, **options: Any) -> Result:
    """Call `solve`, without the false errors of SCIP."""
    is_scip = method == "partition_scip"
    with hide_spurious_scip_errors() if is_scip else contextlib.nullcontext():
        return solve(instance, method, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRun:
    """One call of `solve`: an instance, a method, and where the row belongs."""

    experiment: str
    series: str
    axis: str
    value: Any
    instance: Instance
    digest: str
    method: str
    options: Mapping[str, Any]
    seed: int
    time_limit_s: float
    version: str

    def row(self) -> dict[str, Any]:
        """All that is known before the run."""
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "instance": self.instance.name,
            "objective": self.instance.objective,
            "method": self.method,
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
        """Solve, and again if that was short; the rest of the row."""
        warm(self.method, json.dumps(self.options))
        result = self.solve()
        times_s = [result.solve_time_s]
        while max(times_s) < REPEAT_BELOW_S and len(times_s) < N_TIMINGS:
            times_s.append(self.solve().solve_time_s)
        return told(result, times_s)

    def solve(self, **more: Any) -> Result:
        """Call the method with its options, and with more of them."""
        return solve_quietly(
            self.instance, self.method, time_limit_s=self.time_limit_s, seed=self.seed,
            **self.options, **more,
        )  # fmt: skip

    @property
    def call(self) -> str:
        """Method and options."""
        return " ".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])

    def words(self, row: Mapping[str, Any]) -> str:
        """How the run ended, in a few words."""
        from experiments.labels import seconds

        return f"{row['status']}, {seconds(row['solve_time_s'])}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """How long all its timings took."""
        return float(row["solve_time_s"] * row["n_timings"])

    def __str__(self) -> str:
        place = f"{self.experiment}/{self.series} {self.axis}={self.value} seed={self.seed}"
        return f"{place} {self.call}"


def told(result: Result, times_s: Sequence[float]) -> dict[str, Any]:
    """Columns of an answer that was timed once or more."""
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
    """Every run of an experiment at a size (quick, default, full)."""
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
    """Every run of an experiment at a size, as runs of this kind."""
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


@functools.cache
def warm(method: str, options: str) -> None:
    """Let a method import its backend and load its kernels before a clock starts."""
    tiny = Instance.from_tables(
        [[[1.0, 1.0, 1.0]]], [0, 0, 0], [[(0, 0)], [(0, 0)]], objective="mean_latency"
    )
    solve_quietly(tiny, method, time_limit_s=1.0, **json.loads(options))
