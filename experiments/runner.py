"""Protocols of a run and of a family of runs; execution in worker processes, a row a run."""

import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments import record
from experiments.definitions import Shown
from experiments.waiting import duration, every

Row = dict[str, Any]
Rows = Generator[tuple["Run", Row], None, None]
NOTICE_S = 10.0  # between lines while one family compiles
GRACE_S = 2.0  # for workers to end after SIGTERM
TRIES = 2  # a process may have died because another run took the memory


class Run(Protocol):
    """One row of a CSV before it is measured; small, for it is pickled for a worker."""

    @property
    def call(self) -> str:
        """Method and options. Runs of one call take about the same time."""

    def row(self) -> Row:
        """Return the columns that are known before the run."""

    def measure(self) -> Row:
        """Return the other columns. Except for times, they depend on the run alone."""

    def describe(self, row: Mapping[str, Any]) -> str:
        """Describe how the run ended; `row` is ``row() | measure()``."""

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds that the measurement took, as far as the row tells."""


class Described(Protocol):
    """The part of an experiment that every family shares."""

    @property
    def question(self) -> str:
        """The question that the experiment answers."""

    @property
    def shown(self) -> Shown:
        """Its tables and figures."""


class Family(Protocol):
    """A module of experiments whose CSV files have one list of columns."""

    @property
    def EXPERIMENTS(self) -> Mapping[str, Described]:
        """The experiments by name."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """Columns of the CSV: those of `Run.row` and of `Run.measure`."""

    @property
    def IDENTITY(self) -> tuple[str, ...]:
        """Columns of `Run.row` that identify a run."""

    def plan(
        self,
        name: str,
        size: str,
        *,
        version: str,
        n_seeds: int | None = None,
        time_limit_s: float | None = None,
    ) -> Sequence[Run]:
        """List the runs of an experiment at a size (quick, default, full)."""


class Workers(Protocol):
    """Processes of this machine, or of a cluster, that execute runs."""

    @property
    def jobs(self) -> int:
        """Number of runs at a time."""

    def where(self) -> dict[str, Any]:
        """Describe the machines, for the provenance of the rows."""

    def execute(self, runs: Sequence[Run], *, started: Callable[[Run], None]) -> Rows:
        """Yield each run with its row when it ends; closing the iterator stops the runs.

        Raises
        ------
        RuntimeError
            If a run raised, or killed its workers; the message names the run.
        """


def identity(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the values that identify a run."""
    return tuple(record.as_text(row[column]) for column in columns)


def by_identity(runs: Iterable[Run], columns: Sequence[str]) -> dict[tuple[str, ...], Run]:
    """Map identities to runs.

    Raises
    ------
    ValueError
        If two runs have one identity, so that their rows could not be told apart.
    """
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        first = found.setdefault(identity(run.row(), columns), run)
        if first is not run:
            raise ValueError(f"{first} and {run} are the same run")
    return found


@dataclass(frozen=True, slots=True)
class Processes:
    """Worker processes of this machine, `jobs` at a time.

    Runs never execute in this process: a solver's own Ctrl-C handler could otherwise report an
    interrupted search as a finished one. A run whose process dies is tried once more, in a new
    process.
    """

    jobs: int

    def where(self) -> dict[str, Any]:
        """Describe this machine."""
        return record.machine()

    def execute(self, runs: Sequence[Run], *, started: Callable[[Run], None]) -> Rows:
        """Yield each run with its row when it ends; see `Workers`."""
        warm_alone()  # compile here, once, and not in every worker
        return _execute(runs, self.jobs, started)


def _execute(runs: Sequence[Run], jobs: int, started: Callable[[Run], None]) -> Rows:
    waiting = iter(runs)
    idle = [_pool() for _ in range(min(jobs, len(runs)))]
    running: dict[Future[Row], tuple[Run, ProcessPoolExecutor, int]] = {}

    def start(run: Run, pool: ProcessPoolExecutor, attempt: int) -> None:
        running[pool.submit(run.measure)] = run, pool, attempt
        started(run)

    try:
        while True:
            while idle and (run := next(waiting, None)) is not None:
                start(run, idle.pop(), 1)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, pool, attempt = running.pop(future)
                try:
                    answer = future.result()
                except BrokenProcessPool:
                    pool.shutdown()
                    if attempt == TRIES:
                        raise RuntimeError(f"{run}: its process died, twice") from None
                    start(run, _pool(), attempt + 1)
                    continue
                except Exception as error:
                    raise RuntimeError(f"{run}: {type(error).__name__}: {error}") from error
                idle.append(pool)
                yield run, run.row() | answer
    except BaseException:
        end_children()
        raise
    finally:
        for pool in (*idle, *(pool for _, pool, _ in running.values())):
            pool.shutdown()


def end_children() -> None:
    """End the worker processes, also those in which a solver ignores signals.

    A pool waits for its processes, so a worker that lives on would keep the sweep alive.
    """
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until_s = time.monotonic() + GRACE_S
    for child in children:
        child.join(max(until_s - time.monotonic(), 0.0))
        if child.is_alive():
            child.kill()


@functools.cache
def warm_alone() -> None:
    """Compile the kernels, or load them, while no other sweep does so in the same folder.

    A second sweep would compile them, too; it waits and loads them instead.
    """
    from hypsolve.kernels.cache import folders

    folder = folders().write
    with record.waiting_for(Path(folder) / "hypsolve.lock") if folder else nullcontext():
        _warm_families(folder)


def _warm_families(folder: str | Path | None) -> None:
    """Prepare the kernels family by family, and print how far that is."""
    from hypsolve.kernels.warm_up import FAMILIES, SECONDS, warm

    minutes = sum(SECONDS.values()) / 60
    cache = f"the cache is {folder}" if folder else "no folder to cache them is writable"
    print(
        f"kernels: preparing {len(FAMILIES)} families; they compile once, for about"
        f" {minutes:.0f} minutes, and load in seconds afterwards; {cache}",
        flush=True,
    )
    began_s = time.perf_counter()
    for number, family in enumerate(FAMILIES, start=1):
        started_s = time.perf_counter()
        say = f"kernels: {number} of {len(FAMILIES)}, {family}"
        with every(NOTICE_S, f"{say}: compiling"):
            warm(family, progress=lambda done, total, name: None)  # the lines here suffice
        took_s = time.perf_counter() - started_s
        if took_s > 1 or number == len(FAMILIES):
            print(
                f"{say}: ready after {took_s:.0f} s ({duration(time.perf_counter() - began_s)}"
                " in all)",
                flush=True,
            )


def _pool() -> ProcessPoolExecutor:
    """Make a pool of one process: a larger pool does not say which of its processes died."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_start_worker)


def _start_worker() -> None:
    logging.getLogger("hypsolve").setLevel(logging.ERROR)  # its notices would break the bar
    signal.signal(signal.SIGINT, lambda *_: None)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
