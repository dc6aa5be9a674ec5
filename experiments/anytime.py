"""Experiments with `solve` whose rows also tell when each better answer or bound was there."""

import inspect
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.definitions import ANYTIME
from experiments.solving import COLUMNS as OF_SOLVING
from experiments.solving import IDENTITY as IDENTITY
from experiments.solving import SolveRun, runs_of, told, warm
from hypsolve.solve import METHODS

COLUMNS = (*OF_SOLVING, "trace")
QUESTIONS = {name: experiment.question for name, experiment in ANYTIME.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun(SolveRun):
    """One call of `solve`, watched."""

    def measure(self) -> dict[str, Any]:
        """Solve once; ``trace`` is a JSON list of [elapsed_s, objective_s, bound_s].

        Each is the best so far, null if there is none yet; the last is the answer. Bounds come
        as often as a method tells them.
        """
        warm(self.method, json.dumps(self.options))
        points: list[list[float | None]] = []
        best_s, proven_s = math.inf, 0.0
        started = time.perf_counter()

        def note(objective_s: float, bound_s: float, *_decision: Any) -> None:
            nonlocal best_s, proven_s
            best_s, proven_s = min(best_s, objective_s), max(proven_s, bound_s)
            elapsed_s = time.perf_counter() - started
            points.append([elapsed_s, None if math.isinf(best_s) else best_s, proven_s])

        watchers = {"on_improve": note, "on_bound": lambda bound_s: note(math.inf, bound_s)}
        taken = inspect.signature(METHODS[self.method].function).parameters
        result = self.solve(**{name: f for name, f in watchers.items() if name in taken})
        note(result.objective_s, result.bound_s)
        return {**told(result, [result.solve_time_s]), "trace": json.dumps(points)}


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> Sequence[TracedRun]:
    """Every run of an experiment at a size (quick, default, full)."""
    return runs_of(
        ANYTIME[name], TracedRun, name, size, version=version, n_seeds=n_seeds,
        time_limit_s=time_limit_s,
    )  # fmt: skip
