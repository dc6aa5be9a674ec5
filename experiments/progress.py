"""Progress of a sweep: a bar on a terminal, lines elsewhere; tables of texts."""

import contextlib
import textwrap
import time
from types import TracebackType
from typing import Any, Literal

import pandas as pd
from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column, Table

from experiments.waiting import duration, every

CONSOLE = Console()
SAY_EVERY_S = 0.5  # between plain lines; runs that end in between are only counted
QUIET_S = 15.0  # without a line for so long, one names the current run


class Progress:
    """A bar with the current run and the time left; a context manager.

    The time left is the sum, over the calls still to come, of the mean time of each call so
    far: an exact method takes a thousand times as long as a heuristic.
    """

    def __init__(self, name: str, n_runs: int, calls: list[str], jobs: int) -> None:
        """Take the name, the number of runs, the calls to come, and the runs at a time."""
        self.name, self.n_runs, self.jobs = name, n_runs, jobs
        self.n_done = n_runs - len(calls)
        self.current = ""
        self._to_come = calls
        self._seen_s: dict[str, list[float]] = {}
        self._began_s = time.perf_counter()
        self._said_s = 0.0
        self._quiet = contextlib.ExitStack()
        self._bar: rich_progress.Progress | None = None
        if CONSOLE.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn(
                    "{task.description}",
                    table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis"),
                ),
                rich_progress.BarColumn(table_column=Column(ratio=1)),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TextColumn("{task.fields[left]}"),
                console=CONSOLE,
                expand=True,
            )
            self._task = self._bar.add_task(name, total=n_runs, completed=self.n_done, left="")

    def __enter__(self) -> "Progress":
        self._began_s = time.perf_counter()
        if self.n_done:
            found = f"{self.n_done} of {self.n_runs} runs found"
            print(f"{self.name}: {found}, going on with the others", flush=True)
        if self._bar is not None:
            self._bar.start()
        else:
            self._quiet.enter_context(every(QUIET_S, self._still))
        return self

    def _still(self) -> str:
        """Name the current run if nothing was printed for a while."""
        last_s = max(self._said_s, self._began_s)
        if not self.current or time.perf_counter() - last_s < QUIET_S:
            return ""
        return f"[{self.n_done}/{self.n_runs}] still at {self.current}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._quiet.close()
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._task, description=self.name, left="done")
            self._bar.stop()

    def start(self, run: Any) -> None:
        """Show a run as the current one."""
        self.current = str(run)
        if self._bar is not None:
            self._bar.update(self._task, description=self.current)

    def end(self, run: Any, call: str, result: str, took_s: float) -> None:
        """Count a run as done and show its result."""
        self.n_done += 1
        self._seen_s.setdefault(call, []).append(took_s)
        self._to_come.remove(call)
        left = f"{duration(self._left_s())} left" if self._to_come else ""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, left=left)
        elif not self._to_come or time.perf_counter() - self._said_s > SAY_EVERY_S:
            self._said_s = time.perf_counter()
            print(
                f"[{self.n_done}/{self.n_runs}] {run}: {result}"
                f" ({duration(time.perf_counter() - self._began_s)} gone"
                f"{', ' if left else ''}{left})",
                flush=True,
            )

    def _left_s(self) -> float:
        mean_s = {call: sum(times) / len(times) for call, times in self._seen_s.items()}
        unseen_s = sum(mean_s.values()) / len(mean_s)
        return sum(mean_s.get(call, unseen_s) for call in self._to_come) / self.jobs


def print_table(title: str, frame: pd.DataFrame) -> None:
    """Print a frame of texts, its index first.

    The words of a header stand below each other, and long names are wrapped. Values are never
    wrapped: a terminal narrower than the table wraps whole lines.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = [(str(frame.index.name or ""), [textwrap.fill(str(n), 40) for n in frame.index])]
    columns += [(str(c).replace(" ", "\n"), [str(v) for v in frame[c]]) for c in frame.columns]
    needed = 2
    for number, (header, texts) in enumerate(columns):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(header, justify=justify, vertical="bottom", no_wrap=True)
        needed += 2 + max(len(line) for text in (header, *texts) for line in text.split("\n"))
    for row in zip(*(texts for _, texts in columns), strict=True):
        table.add_row(*row)
    Console(width=max(needed, CONSOLE.width)).print(table)
