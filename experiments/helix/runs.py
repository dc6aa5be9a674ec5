"""One run: a method lays layers out on a cluster of Helix, or a published flow is quoted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.labels import seconds
from experiments.solving import describe_run, short
from hypsolve import solve
from hypsolve.problem.layer_flow import LayerFlowProblem
from instances.helix_flow import PUBLISHED

COLUMNS = (
    "experiment",
    "series",
    "axis",
    "value",
    "digest",
    "cluster",
    "model",
    "method",
    "options",
    "seed",
    "time_limit_s",
    "status",
    "layout",
    "flow_tokens_per_s",
    "bound_tokens_per_s",
    "gap",
    "solve_time_s",
    "message",
    "version",
)
IDENTITY = ("series", "value", "digest", "method", "options", "seed", "time_limit_s", "version")


@dataclass(frozen=True, slots=True, kw_only=True)
class HelixRun:
    """A method on a cluster, and the columns that identify the row."""

    experiment: str
    cluster: str
    model: str
    problem: LayerFlowProblem
    digest: str
    method: str
    time_limit_s: float
    version: str
    seed: int = 0
    axis: str = "machines"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """Model and cluster."""
        return f"{self.model}, {self.cluster}"

    @property
    def value(self) -> int:
        """Number of machines."""
        return len(self.problem.machines)

    @property
    def call(self) -> str:
        """Name of the method, which takes no options here."""
        return self.method

    def row(self) -> dict[str, Any]:
        """Return the columns that are known before the run."""
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "cluster": self.cluster,
            "model": self.model,
            "method": self.method,
            "options": "{}",
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Solve, or quote; a published flow has no bound, and no time on this machine."""
        if self.method in PUBLISHED:
            flow = PUBLISHED[self.method][self.cluster, self.model]
            return {
                "status": "published",
                "layout": "",
                "flow_tokens_per_s": short(flow),
                "bound_tokens_per_s": math.nan,
                "gap": math.nan,
                "solve_time_s": math.nan,
                "message": "",
            }
        found = solve(
            self.problem, self.method, time_limit_s=self.time_limit_s, seed=self.seed
        )  # fmt: skip
        ranges = sorted(found.layout.ranges, key=lambda r: r.start) if found.layout else []
        return {
            "status": str(found.status),
            "layout": "; ".join(map(str, ranges)),
            "flow_tokens_per_s": short(found.tokens_per_s),
            "bound_tokens_per_s": short(found.bound_tokens_per_s),
            "gap": short(found.gap),
            "solve_time_s": short(found.solve_time_s),
            "message": found.message,
        }

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return the status, the flow and the solve time."""
        flow = f"{row['status']}, {row['flow_tokens_per_s']:.5g} tokens/s"
        is_quoted = row["status"] == "published"
        return flow if is_quoted else f"{flow}, {seconds(row['solve_time_s'])}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds of the method."""
        return 0.0 if row["status"] == "published" else float(row["solve_time_s"])

    def __str__(self) -> str:
        return describe_run(self)
