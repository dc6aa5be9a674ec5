"""Runs of `solve` whose rows also record when each better answer or bound was found."""

import inspect
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.definitions import ANYTIME as EXPERIMENTS
from experiments.solving import COLUMNS as OF_SOLVING
from experiments.solving import IDENTITY as IDENTITY
from experiments.solving import SolveRun, answer_columns, runs_of, with_loaded_kernels
from hypsolve import Result
from hypsolve.solve import METHODS

COLUMNS = (*OF_SOLVING, "trace")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun(SolveRun):
    """One call of `solve` that records its incumbents and bounds."""

    def measure(self) -> dict[str, Any]:
        """Solve once; ``trace`` is a JSON list of [elapsed_s, objective_s, bound_s].

        A point holds the best objective (null before the first answer) and the best bound so
        far; the last point is the answer. A method decides how often it reports bounds.
        """
        self.warm()
        result, points = with_loaded_kernels(self._watched)
        return {**answer_columns(result, [result.solve_time_s]), "trace": json.dumps(points)}

    def _watched(self) -> tuple[Result, list[list[float | None]]]:
        points: list[list[float | None]] = []
        best_s, proven_s = math.inf, 0.0
        started = time.perf_counter()

        def note(objective_s: float, bound_s: float, *_decision: Any) -> None:
            nonlocal best_s, proven_s
            best_s, proven_s = min(best_s, objective_s), max(proven_s, bound_s)
            elapsed_s = time.perf_counter() - started
            points.append([elapsed_s, None if math.isinf(best_s) else best_s, proven_s])

        watchers = {"on_improve": note, "on_bound": lambda bound_s: note(math.inf, bound_s)}
        method = METHODS[self.method] if isinstance(self.method, str) else self.method
        taken = inspect.signature(getattr(method, "function", method)).parameters
        result = self.solve(**{name: f for name, f in watchers.items() if name in taken})
        note(result.objective_s, result.bound_s)
        return result, points


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> Sequence[TracedRun]:
    """List the runs of an experiment at a size (quick, default, full)."""
    return runs_of(
        EXPERIMENTS[name], TracedRun, name, size, version=version, n_seeds=n_seeds,
        time_limit_s=time_limit_s,
    )  # fmt: skip
