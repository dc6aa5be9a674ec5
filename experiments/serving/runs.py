"""One run: a method splits a deployment, and a simulation says what the split serves."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.serving.methods import SIMULATING, Answer, solved
from experiments.serving.simulated import bound_of, served_by
from experiments.solving import call_of, describe_run, short, timed
from hypsolve import Deployment, Partition, evaluate_serving, to_serving_instance
from hypsolve.kernels.warm_up import warm

COLUMNS = (
    "experiment",
    "series",
    "axis",
    "value",
    "digest",
    "network",
    "model",
    "prompt_tokens",
    "output_tokens",
    "batching",
    "method",
    "options",
    "seed",
    "time_limit_s",
    "n_blocks",
    "n_tiers",
    "n_nodes",
    "extrapolated",
    "status",
    "cuts",
    "simulated_requests_per_s",
    "fluid_requests_per_s",
    "bound_requests_per_s",
    "gap",
    "n_requests",
    "n_under_way",
    "n_simulated",
    "solve_time_s",
    "n_timings",
    "run_time_s",
    "message",
    "version",
)
IDENTITY = ("series", "value", "digest", "method", "options", "seed", "time_limit_s", "version")


class RateRun:
    """What runs that measure a rate have in common."""

    __slots__ = ()
    method: str
    options: Mapping[str, Any]

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return the status, the rate and the gap."""
        if not row["simulated_requests_per_s"]:
            return str(row["status"])
        rate, gap = row["simulated_requests_per_s"], row["gap"]
        return f"{row['status']}, {rate:.3g} requests/s, gap {gap:.1%}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds of the method and the simulations."""
        return float(row["run_time_s"])

    @property
    def call(self) -> str:
        """Method and options."""
        return call_of(self.method, self.options)

    def __str__(self) -> str:
        return describe_run(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun(RateRun):
    """A method on a deployment, and the columns that identify the row.

    Attributes
    ----------
    n_requests : int or None
        Requests of a simulation; see `experiments.serving.simulated.served_by`.
    """

    experiment: str
    series: str
    axis: str
    value: Any
    deployment: Deployment
    digest: str
    method: str
    options: Mapping[str, Any]
    seed: int
    time_limit_s: float
    version: str
    n_requests: int | None = None

    def row(self) -> dict[str, Any]:
        """Return the columns that are known before the run."""
        deployment = self.deployment
        tiers = deployment.network.tiers
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "network": deployment.network.name,
            "model": deployment.model.name,
            "prompt_tokens": int(deployment.requests.prompt_tokens[0]),
            "output_tokens": int(deployment.requests.output_tokens[0]),
            "batching": str(deployment.runtime.batching),
            "method": self.method,
            "options": json.dumps(self.options, sort_keys=True),
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "n_blocks": deployment.model.n_blocks,
            "n_tiers": len(tiers),
            "n_nodes": sum(len(tier.nodes) for tier in tiers),
            "extrapolated": deployment.model.extrapolated,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Split and simulate; the rates are 0 and the gap is nan where there is no split."""
        warm("hypsplit", "dispatch", "token_level", "token_level.pipeline", "throughput")
        began = time.perf_counter()
        bound = bound_of(self.deployment, self.digest)
        answer, times_s = self._timed()
        seen: dict[str, Any] = {
            "simulated_requests_per_s": 0.0,
            "fluid_requests_per_s": 0.0,
            "gap": math.nan,
            "n_requests": 0,
            "n_under_way": 0,
        }
        if answer.partition is not None:
            instance = to_serving_instance(self.deployment)
            fluid = evaluate_serving(instance, answer.partition).fluid_requests_per_s
            seen = {
                "fluid_requests_per_s": short(fluid),
                **self.simulate(answer.partition, bound),
            }
        return {
            "status": str(answer.status),
            "cuts": "" if answer.partition is None else str(answer.partition),
            **seen,
            "bound_requests_per_s": short(bound),
            "n_simulated": answer.n_simulated,
            "solve_time_s": short(statistics.median(times_s)),
            "n_timings": len(times_s),
            "run_time_s": short(time.perf_counter() - began),
            "message": answer.message,
        }

    def simulate(self, partition: Partition, bound: float) -> dict[str, Any]:
        """Simulate a split, and return the columns on that."""
        served = served_by(self.deployment, self.digest, partition, self.n_requests)
        return {
            "simulated_requests_per_s": short(served.requests_per_s),
            "gap": short(1 - served.requests_per_s / bound),
            "n_requests": served.n_requests,
            "n_under_way": served.n_under_way,
        }

    def _timed(self) -> tuple[Answer, list[float]]:
        """Solve, several times if a solve is short; of a simulating method, once."""
        if self.method in SIMULATING:
            answer = self._solve()
            return answer, [answer.solve_time_s]
        return timed(self._solve)

    def _solve(self) -> Answer:
        return solved(
            self.method, self.deployment, self.options, time_limit_s=self.time_limit_s,
            seed=self.seed,
        )  # fmt: skip
