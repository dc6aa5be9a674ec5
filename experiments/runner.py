"""What a run and a family of runs are; executes runs in worker processes, one row each."""

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments import record

Row = dict[str, Any]
Rows = Generator[tuple["Run", Row], None, None]
TRIES = 2  # a run whose process died may have been short of memory, beside another


class Run(Protocol):
    """A row to be. It can be pickled, and is small, for it travels to the worker."""

    @property
    def call(self) -> str:
        """What is run, not on what: runs of one call take about as long."""

    def row(self) -> Row:
        """All columns that are known before the run."""

    def measure(self) -> Row:
        """The other columns: a pure function of the run, but for times."""

    def words(self, row: Mapping[str, Any]) -> str:
        """How the run ended, for people; `row` is ``row() | measure()``."""

    def seconds(self, row: Mapping[str, Any]) -> float:
        """How long the measurement took, as far as the row tells."""


class Family(Protocol):
    """A module of experiments that share their columns."""

    @property
    def QUESTIONS(self) -> Mapping[str, str]:
        """What each experiment asks, by its name."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """Of the CSV: those of `Run.row` and of `Run.measure`."""

    @property
    def IDENTITY(self) -> tuple[str, ...]:
        """Columns of `Run.row` that make two runs the same."""

    def plan(
        self,
        name: str,
        size: str,
        *,
        version: str,
        n_seeds: int | None = None,
        time_limit_s: float | None = None,
    ) -> Sequence[Run]:
        """Every run of an experiment at a size (quick, default, full)."""


class Workers(Protocol):
    """What executes runs."""

    @property
    def jobs(self) -> int:
        """How many runs at a time."""

    def where(self) -> dict[str, Any]:
        """Where rows come from, for their provenance."""

    def execute(self, runs: Sequence[Run], *, started: Callable[[Run], None]) -> Rows:
        """Yield each run with its row, as they end; closing the iterator stops them.

        Raises
        ------
        RuntimeError
            Naming a run that raised or that its worker does not survive.
        """


def identity(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """What makes two runs the same."""
    return tuple(record.as_text(row[column]) for column in columns)


def by_identity(runs: Iterable[Run], columns: Sequence[str]) -> dict[tuple[str, ...], Run]:
    """Runs by what makes them the same.

    Raises
    ------
    ValueError
        If two are: their rows could not be told apart.
    """
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        first = found.setdefault(identity(run.row(), columns), run)
        if first is not run:
            raise ValueError(f"{first} and {run} are the same run")
    return found


@dataclass(frozen=True, slots=True)
class Processes:
    """Processes of this machine, `jobs` at a time.

    Never this process itself: a solver's own Ctrl-C handler then cannot pass an interrupted
    search off as a finished one. A run whose process dies is tried once more, in a new one.
    """

    jobs: int

    def where(self) -> dict[str, Any]:
        """Say what this machine is."""
        return record.machine()

    def execute(self, runs: Sequence[Run], *, started: Callable[[Run], None]) -> Rows:
        """Yield each run with its row, as they end; see `Workers`."""
        warm_alone()  # compiled once, here: several workers at it can spoil the cache
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
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        for pool in (*idle, *(pool for _, pool, _ in running.values())):
            pool.shutdown()


@functools.cache
def warm_alone() -> None:
    """Compile the kernels, or load them, while no other process does so in the same folder.

    numba numbers its files there by an index that bears one writer: two of unlike CPUs that
    share the folder could end up with code of one another.
    """
    from hypsolve.kernels import hypsplit
    from hypsolve.kernels.warm_up import warm

    of_kernels = (getattr(value, "stats", None) for value in vars(hypsplit).values())
    folder = next(
        (stats.cache_path for stats in of_kernels if stats and stats.cache_path), None
    )
    with record.waiting_for(Path(folder) / "hypsolve.lock") if folder else nullcontext():
        warm()


def _pool() -> ProcessPoolExecutor:
    """One process, for a pool of several does not say which of them died."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_start_worker)


def _start_worker() -> None:
    logging.getLogger("hypsolve").setLevel(logging.ERROR)  # its notices would tear the bar
    signal.signal(signal.SIGINT, lambda *_: None)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
