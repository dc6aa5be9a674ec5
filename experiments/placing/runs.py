"""One run: a method places a model on a fleet, and simulations say what that serves."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.serving.runs import RateRun
from experiments.serving.simulated import served_by
from experiments.solving import short, timed
from hypsolve import (
    PlacementProblem,
    evaluate_placement,
    place,
    solve,
    to_serving_instance,
)
from hypsolve.kernels.warm_up import warm
from hypsolve.planning.placement_bound import placement_bound
from hypsolve.problem.placement import Placement

BEST = "best_simulated"
"""The method of `hypsolve.place`: it simulates the best placements of the fluid model."""
COLUMNS = (
    "experiment",
    "series",
    "axis",
    "value",
    "digest",
    "fleet",
    "model",
    "prompt_tokens",
    "output_tokens",
    "runtime",
    "method",
    "options",
    "seed",
    "time_limit_s",
    "n_machines",
    "n_gpus",
    "n_kinds",
    "n_sites",
    "extrapolated",
    "status",
    "placement",
    "n_pipelines",
    "n_machines_used",
    "simulated_requests_per_s",
    "fluid_requests_per_s",
    "fluid_bound_requests_per_s",
    "fluid_gap",
    "bound_requests_per_s",
    "gap",
    "solve_time_s",
    "n_timings",
    "run_time_s",
    "message",
    "version",
)
IDENTITY = ("series", "value", "digest", "method", "options", "seed", "time_limit_s", "version")
_bounds: dict[str, float] = {}  # of this process, by digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The placement of a method, and the bound of an exact one on fluid rates."""

    status: str
    placement: Placement | None
    fluid_bound: float
    solve_time_s: float
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingRun(RateRun):
    """A method on a placement problem, and the columns that identify the row."""

    experiment: str
    series: str
    axis: str
    value: Any
    problem: PlacementProblem
    digest: str
    method: str
    options: Mapping[str, Any]
    seed: int
    time_limit_s: float
    version: str

    def row(self) -> dict[str, Any]:
        """Return the columns that are known before the run."""
        fleet, requests = self.problem.fleet, self.problem.requests
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "fleet": fleet.name,
            "model": self.problem.model.name,
            "prompt_tokens": int(requests.prompt_tokens[0]),
            "output_tokens": int(requests.output_tokens[0]),
            "runtime": self.problem.runtime.name,
            "method": self.method,
            "options": json.dumps(self.options, sort_keys=True),
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "n_machines": len(fleet.machines),
            "n_gpus": fleet.n_gpus,
            "n_kinds": len({(m.node.gpu.name, m.node.gpus) for m in fleet.machines}),
            "n_sites": len(fleet.sites),
            "extrapolated": self.problem.model.extrapolated,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Place and simulate; the rates are 0 and the gaps nan where there is no placement."""
        warm("token_level", "token_level.pipeline", "throughput", "placement")
        began = time.perf_counter()
        if self.digest not in _bounds:
            _bounds[self.digest] = placement_bound(self.problem)
        bound = _bounds[self.digest]
        answer, times_s = self._timed()
        simulated = fluid = 0.0
        pipelines: tuple[Any, ...] = ()
        if answer.placement is not None:
            pipelines = answer.placement.pipelines
            fluid = evaluate_placement(self.problem, answer.placement).requests_per_s
            simulated = self.simulate(answer.placement)
        return {
            "status": answer.status,
            "placement": "; ".join(map(str, pipelines)),
            "n_pipelines": len(pipelines),
            "n_machines_used": len(answer.placement.machines) if answer.placement else 0,
            "simulated_requests_per_s": short(simulated),
            "fluid_requests_per_s": short(fluid),
            "fluid_bound_requests_per_s": short(answer.fluid_bound),
            "fluid_gap": short(1 - fluid / answer.fluid_bound) if pipelines else math.nan,
            "bound_requests_per_s": short(bound),
            "gap": short(1 - simulated / bound) if pipelines else math.nan,
            "solve_time_s": short(statistics.median(times_s)),
            "n_timings": len(times_s),
            "run_time_s": short(time.perf_counter() - began),
            "message": answer.message,
        }

    def simulate(self, placement: Placement) -> float:
        """Return requests per second: the sum over the pipelines, which share nothing.

        Each pipeline is simulated at its limit, by the rule of `experiments.serving.simulated`.
        Where pipelines share the link of a site, none gets more than its load in the fluid
        model, which shares the link out.
        """
        alone = evaluate_placement(self.problem, placement).pipelines
        rates = []
        for pipeline, fluid in zip(placement.pipelines, alone, strict=True):
            deployment = self.problem.deployment(pipeline.groups)
            digest = to_serving_instance(deployment).digest()
            rate = served_by(deployment, digest, pipeline.partition).requests_per_s
            is_limited = pipeline.requests_per_s < 0.999 * fluid.fluid_requests_per_s
            rates.append(min(rate, pipeline.requests_per_s) if is_limited else rate)
        return math.fsum(rates)

    def _timed(self) -> tuple[Answer, list[float]]:
        """Solve, several times if a solve is short; of a simulating method, once."""
        if self.method == BEST:
            answer = self._solve()
            return answer, [answer.solve_time_s]
        return timed(self._solve)

    def _solve(self) -> Answer:
        if self.method == BEST:
            return self._placed()
        found = solve(
            self.problem, self.method, time_limit_s=self.time_limit_s, seed=self.seed,
            **self.options,
        )  # fmt: skip
        return Answer(
            status=str(found.status),
            placement=found.placement,
            fluid_bound=math.nan if found.fluid_bound is None else found.fluid_bound,
            solve_time_s=found.solve_time_s,
            message=found.message if found.placement is None else "",
        )

    def _placed(self) -> Answer:
        """Place as the command does, with all of its simulations."""
        began, requests = time.perf_counter(), self.problem.requests
        plan = place(
            self.problem.model,
            self.problem.fleet,
            runtime=self.problem.runtime,
            prompt_tokens=int(requests.prompt_tokens[0]),
            output_tokens=int(requests.output_tokens[0]),
            time_limit_s=self.time_limit_s,
            seed=self.seed,
            **self.options,
        )
        return Answer(
            status="feasible" if plan.placement is not None else "infeasible",
            placement=plan.placement,
            fluid_bound=math.nan,
            solve_time_s=time.perf_counter() - began,
        )
