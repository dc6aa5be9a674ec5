"""A family of toy runs that crash, wait or answer as told, for tests of the runners."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.definitions import Shown

EXPERIMENTS = {
    "square": SimpleNamespace(
        question="What is the square of a number?", shown=Shown(None, None)
    )
}
COLUMNS = ("number", "deed", "version", "square", "run_time_s")
IDENTITY = ("number", "deed", "version")
WAIT_S = 600.0  # for tests that hang
PLANS: dict[str, list[tuple[int, str, Path]]] = {}  # set by the test


@dataclass(frozen=True, slots=True)
class ToyRun:
    """A run that squares a number after a deed; it marks its begin, and waits, in `folder`."""

    number: int
    deed: str
    folder: Path
    version: str

    call = "square"

    def row(self) -> dict[str, Any]:
        return {"number": self.number, "deed": self.deed, "version": self.version}

    def measure(self) -> dict[str, Any]:
        began = time.perf_counter()
        first = not self.begun.exists()
        partial = self.begun.with_suffix(".partial")
        partial.write_text(str(os.getpid()))
        partial.replace(self.begun)
        if self.deed == "raise":
            raise ValueError(f"{self.number} is no number of ours")
        if self.deed == "die" or (self.deed == "die once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "wait" or (self.deed == "wait once" and first):
            self._wait_for(self.folder / "go")
        took_s = time.perf_counter() - began
        return {"square": self.number**2, "run_time_s": took_s}

    @property
    def begun(self) -> Path:
        return self.folder / f"{self.number}.begun"

    @staticmethod
    def _wait_for(path: Path) -> None:
        deadline = time.monotonic() + WAIT_S
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {path.name}")
            time.sleep(0.02)

    def describe(self, row: Any) -> str:
        return f"it is {row['square']}"

    def seconds(self, row: Any) -> float:
        return float(row["run_time_s"])

    def __str__(self) -> str:
        return f"square/{self.number} {self.deed}"


def plan(name, size, *, version, n_seeds=None, time_limit_s=None):
    return [ToyRun(number, deed, folder, version) for number, deed, folder in PLANS[name]]
