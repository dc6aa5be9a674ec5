"""One run: a method lays layers out on a cluster of Helix, or a published layout is taken."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.labels import seconds
from experiments.layouts.simulated import served_by
from experiments.solving import describe_run, short
from hypsolve import solve
from hypsolve.kernels.warm_up import warm
from hypsolve.problem.layer_evaluation import largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import LayerLayout
from instances.helix_flow import PUBLISHED
from instances.helix_layouts import published_ranges

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
    "max_visits",
    "status",
    "layout",
    "flow_tokens_per_s",
    "bound_tokens_per_s",
    "gap",
    "simulated_requests_per_s",
    "n_requests",
    "is_short",
    "solve_time_s",
    "run_time_s",
    "message",
    "version",
)
IDENTITY = (
    "series", "value", "digest", "method", "options", "seed", "time_limit_s", "max_visits",
    "version",
)  # fmt: skip


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
    max_visits: int
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
            "max_visits": self.max_visits,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Solve, or take a published layout, and simulate what the layout serves.

        A published layout has no bound, and no time on this machine. Its flow is as published.
        """
        warm("layer_layout")
        began = time.perf_counter()
        bound = gap = took_s = math.nan
        layout: LayerLayout | None
        if self.method in PUBLISHED:
            layout = largest_flow(self.problem, published_ranges(self.method, self.cluster))
            flow = PUBLISHED[self.method][self.cluster, self.model]
            status, message = "published", ""
        else:
            found = solve(
                self.problem, self.method, time_limit_s=self.time_limit_s, seed=self.seed
            )  # fmt: skip
            layout, flow, status, message = (
                found.layout, found.tokens_per_s, str(found.status), found.message
            )  # fmt: skip
            bound, gap, took_s = found.bound_tokens_per_s, found.gap, found.solve_time_s
        rate, n_requests, is_short = 0.0, 0, False
        if layout is not None and flow > 0:
            served = served_by(self.cluster, layout, self.model, max_visits=self.max_visits)
            rate, n_requests = served.requests_per_s, served.n_requests
            is_short = served.is_short
        ranges = sorted(layout.ranges, key=lambda r: r.start) if layout else []
        return {
            "status": status,
            "layout": "; ".join(map(str, ranges)),
            "flow_tokens_per_s": short(flow),
            "bound_tokens_per_s": short(bound),
            "gap": short(gap),
            "simulated_requests_per_s": short(rate),
            "n_requests": n_requests,
            "is_short": is_short,
            "solve_time_s": short(took_s),
            "run_time_s": short(time.perf_counter() - began),
            "message": message,
        }

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return the status, the flow, the simulated rate and the solve time."""
        flow = (
            f"{row['status']}, {row['flow_tokens_per_s']:.5g} tokens/s flow,"
            f" {row['simulated_requests_per_s']:.3g} requests/s simulated"
        )
        is_quoted = row["status"] == "published"
        return flow if is_quoted else f"{flow}, {seconds(row['solve_time_s'])}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds of the run."""
        return float(row["run_time_s"])

    def __str__(self) -> str:
        return describe_run(self)
