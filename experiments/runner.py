"""Plans runs from the definitions and executes them in worker processes, one row each."""

import functools
import json
import logging
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from experiments.definitions import Experiment
from experiments.record import as_text
from hypsolve import Instance, solve

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
REPEAT_BELOW_S = 0.05  # a shorter run is timed N_TIMINGS times and the median is kept
N_TIMINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
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

    @property
    def call(self) -> str:
        """Method and options."""
        return " ".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])

    def __str__(self) -> str:
        place = f"{self.experiment}/{self.series} {self.axis}={self.value} seed={self.seed}"
        return f"{place} {self.call}"


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two runs the same."""
    return tuple(as_text(row[column]) for column in IDENTITY)


def plan(
    name: str,
    experiment: Experiment,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> list[Run]:
    """Every run of an experiment at a size (quick, default, full).

    Raises
    ------
    ValueError
        If two runs are the same: their rows could not be told apart.
    """
    runs = []
    for series_name, series in experiment.series.items():
        for value in series.values[size]:
            for seed in range(n_seeds or experiment.n_seeds[size]):
                instance = series.build(value, seed)
                digest = instance.digest()
                runs += [
                    Run(
                        experiment=name,
                        series=series_name,
                        axis=series.axis,
                        value=value,
                        instance=instance,
                        digest=digest,
                        method=call.method,
                        options=call.options,
                        seed=seed,
                        time_limit_s=time_limit_s or experiment.time_limit_s[size],
                        version=version,
                    )
                    for call in series.calls
                ]
    first: dict[tuple[str, ...], Run] = {}
    for run in runs:
        if first.setdefault(identity(run.row()), run) is not run:
            raise ValueError(f"{first[identity(run.row())]} and {run} are the same run")
    return runs


def execute(
    runs: Sequence[Run], *, jobs: int, started: Callable[[Run], None]
) -> Generator[tuple[Run, dict[str, Any]], None, None]:
    """Yield each run with its row, as they end.

    Always in worker processes, `jobs` at a time: a solver's own Ctrl-C handler then cannot pass
    an interrupted search off as a finished one. Closing the iterator stops the workers.

    Raises
    ------
    RuntimeError
        Naming a run that raised or whose worker died.
    """
    waiting = iter(runs)
    running: dict[Future[dict[str, Any]], Run] = {}
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_start_worker
    ) as pool:
        try:
            while True:
                while len(running) < jobs and (run := next(waiting, None)) is not None:
                    running[pool.submit(_measure, run)] = run
                    started(run)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    try:
                        answer = future.result()
                    except BrokenProcessPool:
                        raise RuntimeError(f"{run}: its process died") from None
                    except Exception as error:
                        raise RuntimeError(f"{run}: {type(error).__name__}: {error}") from error
                    yield run, run.row() | answer
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _start_worker() -> None:
    logging.getLogger("hypsolve").setLevel(logging.ERROR)  # its notices would tear the bar
    signal.signal(signal.SIGINT, lambda *_: None)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _measure(run: Run) -> dict[str, Any]:
    _warm(run.method, json.dumps(run.options))
    limits: dict[str, Any] = {"time_limit_s": run.time_limit_s, "seed": run.seed}
    result = solve(run.instance, run.method, **limits, **run.options)
    times_s = [result.solve_time_s]
    while max(times_s) < REPEAT_BELOW_S and len(times_s) < N_TIMINGS:
        again = solve(run.instance, run.method, **limits, **run.options)
        times_s.append(again.solve_time_s)
    return {
        "status": result.status,
        "objective_s": result.objective_s,
        "bound_s": result.bound_s,
        "gap": result.gap,
        "solve_time_s": statistics.median(times_s),
        "n_timings": len(times_s),
        "message": result.message,
    }


@functools.cache
def _warm(method: str, options: str) -> None:
    """Let a method import its backend and load its kernels before a clock starts."""
    tiny = Instance.from_tables(
        [[[1.0, 1.0, 1.0]]], [0, 0, 0], [[(0, 0)], [(0, 0)]], objective="mean_latency"
    )
    solve(tiny, method, time_limit_s=1.0, **json.loads(options))
