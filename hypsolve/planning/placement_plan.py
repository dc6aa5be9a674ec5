"""`PlacementPlan`: pipelines over machines, what they serve, and why machines are left out."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from hypsolve.planning.place_query import PlaceQuery
from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.placement import Pipeline, PlacedStage, Placement
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.units import finite_or_none
from hypsolve.simulation.metrics import Summary
from hypsolve.simulation.trace import Trace

FORMAT, VERSION = "hypsolve-placement", 1  # of `PlacementPlan.to_dict`
BETTER, JOINS_LESS, JOINS_MORE, NO_ROOM, NO_PIPELINE, RUNTIME, NOT_NEEDED, UNKNOWN = (
    "gains nothing", "serves less", "serves more", "no room", "no pipeline", "runtime",
    "not needed", "not tried",
)  # fmt: skip
"""Values of `UnusedMachine.why`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPipeline:
    """A pipeline of a placement, with what it serves.

    Attributes
    ----------
    stages : tuple of PlacedStage
    requests_per_s : float
        Simulated; see `PlacedThroughput.quantity`.
    share : float
        Share of all requests that the router sends here.
    fluid_requests_per_s : float
        Largest rate in the fluid model.
    limit : str
        What limits that rate.
    ttft_s, tpot_s : float
        Means in the fluid model at `load_per_s`; nan where the model has none.
    load_per_s : float
        The share of the rate that is asked for; of the largest rate without one.
    max_sequences : int
        Sequences that fit into its KV caches at once.
    bound_requests_per_s : float
        No split over these groups of GPUs and no schedule serves more.
    """

    stages: tuple[PlacedStage, ...]
    requests_per_s: float
    share: float
    fluid_requests_per_s: float
    limit: str
    ttft_s: float
    tpot_s: float
    load_per_s: float
    max_sequences: int
    bound_requests_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the pipeline as a plain table."""
        return {
            "stages": [
                {"machine": s.machine, "gpus": s.gpus, "blocks": [s.start, s.stop]}
                for s in self.stages
            ],
            "requests_per_s": finite_or_none(self.requests_per_s),
            "share": self.share,
            "fluid_requests_per_s": finite_or_none(self.fluid_requests_per_s),
            "limit": self.limit,
            "load_per_s": finite_or_none(self.load_per_s),
            "ttft_s": finite_or_none(self.ttft_s),
            "tpot_s": finite_or_none(self.tpot_s),
            "max_sequences": self.max_sequences,
            "bound_requests_per_s": finite_or_none(self.bound_requests_per_s),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPlacement:
    """A placement that was simulated.

    Attributes
    ----------
    origin : str
        Method that proposed it.
    placement : Placement
    fluid_requests_per_s, simulated_requests_per_s : float
    """

    origin: str
    placement: Placement
    fluid_requests_per_s: float
    simulated_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedThroughput:
    """Rate of the best simulated placement, and how far any other could be ahead.

    Attributes
    ----------
    objective : str
    simulated_requests_per_s : float
        Sum over the pipelines; see `quantity`.
    quantity : str
        Which rate that is, in words.
    n_requests : int
        Requests of the simulations of single pipelines, equal ones counted once.
    is_lower_bound : bool
        Whether the placement may serve clearly more.
    fluid_requests_per_s : float
        Rate of this placement in the fluid model.
    fluid_bound : float
        Value of the objective, requests/s or a price per hour, that no placement passes in the
        fluid model, with at most ``max_stages`` stages; nan if none is proved. It bounds no
        simulated rate.
    fluid_gap : float
        Share by which the best placement of the fluid model is away from it; nan if unknown.
    bound_requests_per_s : float
        No placement of pipelines of at most ``max_stages`` stages and no schedule serves more,
        under the limits of the runtime; see `hypsolve.planning.placement_bound`. inf if the
        time did not allow it.
    gap : float
        ``1 - simulated_requests_per_s / bound_requests_per_s``.
    pipelines_bound_requests_per_s : float
        No split over the groups of GPUs of these pipelines and no schedule serves more.
    placements : tuple of SimulatedPlacement
        All that were simulated, the chosen one first.
    """

    objective: str
    simulated_requests_per_s: float
    quantity: str
    n_requests: int
    is_lower_bound: bool
    fluid_requests_per_s: float
    fluid_bound: float
    fluid_gap: float
    bound_requests_per_s: float
    gap: float
    pipelines_bound_requests_per_s: float
    placements: tuple[SimulatedPlacement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain table."""
        return {
            "objective": self.objective,
            "simulated_requests_per_s": finite_or_none(self.simulated_requests_per_s),
            "quantity": self.quantity,
            "n_requests": self.n_requests,
            "is_lower_bound": self.is_lower_bound,
            "fluid_requests_per_s": finite_or_none(self.fluid_requests_per_s),
            "fluid_bound": finite_or_none(self.fluid_bound),
            "fluid_gap": finite_or_none(self.fluid_gap),
            "bound_requests_per_s": finite_or_none(self.bound_requests_per_s),
            "gap": finite_or_none(self.gap),
            "pipelines_bound_requests_per_s": finite_or_none(
                self.pipelines_bound_requests_per_s
            ),
            "placements": [
                {
                    "origin": each.origin,
                    "fluid_requests_per_s": finite_or_none(each.fluid_requests_per_s),
                    "simulated_requests_per_s": finite_or_none(each.simulated_requests_per_s),
                    **each.placement.to_dict(),
                }
                for each in self.placements
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceAnswer:
    """Whether a load is served, simulated with all pipelines and their router.

    Attributes
    ----------
    is_met : bool or None
        Whether the load of the query is served within its targets, if it has any, and goes on
        to be; None if the query asks for no load.
    slo_attainment : float
        Share of its requests within all targets; nan without targets.
    is_of_later_half : bool
        Whether that share is that of the later half of the requests.
    keeps_up : bool
        Whether requests are served as fast as they arrive.
    n_requests : int
        Requests of the simulation.
    ttft_s, tpot_s, latency_s : Summary
        Of that simulation: at the load of the query, or at `max_requests_per_s`.
    served_per_s : float
        Rate of that simulation.
    max_requests_per_s : float
        Largest rate within the targets (without targets: that is kept up with); nan if it is
        not known.
    max_rate_is_lower_bound : bool
    max_users : int or None
        Largest number of users within the targets; None if it was not looked for.
    max_users_is_lower_bound : bool
    """

    is_met: bool | None
    slo_attainment: float
    is_of_later_half: bool
    keeps_up: bool
    n_requests: int
    ttft_s: Summary
    tpot_s: Summary
    latency_s: Summary
    served_per_s: float
    max_requests_per_s: float
    max_rate_is_lower_bound: bool
    max_users: int | None
    max_users_is_lower_bound: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as a plain table."""
        return {
            "is_met": self.is_met,
            "slo_attainment": finite_or_none(self.slo_attainment),
            "is_of_later_half": self.is_of_later_half,
            "keeps_up": self.keeps_up,
            "n_requests": self.n_requests,
            **{
                name: _summary(getattr(self, name))
                for name in ("ttft_s", "tpot_s", "latency_s")
            },
            "served_per_s": finite_or_none(self.served_per_s),
            "max_requests_per_s": finite_or_none(self.max_requests_per_s),
            "max_rate_is_lower_bound": self.max_rate_is_lower_bound,
            "max_users": self.max_users,
            "max_users_is_lower_bound": self.max_users_is_lower_bound,
        }


def _summary(times: Summary) -> dict[str, float | None]:
    return {
        name: finite_or_none(getattr(times, name)) for name in ("mean", "p50", "p95", "p99")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedMachine:
    """Machines that are alike and in no pipeline, and why.

    Attributes
    ----------
    machines : tuple of str
        Names.
    why : str
        One of the words at the top of this module.
    reason : str
        The reason as a sentence.
    gain_per_s : float
        Requests per second that the best pipeline that was tried gains in the fluid model if it
        takes one of these machines in; nan if none was tried.
    """

    machines: tuple[str, ...]
    why: str
    reason: str
    gain_per_s: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain table."""
        return {
            "machines": list(self.machines),
            "why": self.why,
            "reason": self.reason,
            "gain_per_s": finite_or_none(self.gain_per_s),
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlacementPlan:
    """Which machines form which pipelines, made by `hypsolve.place`.

    Attributes
    ----------
    query : PlaceQuery
    result : PlacementResult
        Answer of the method in the fluid model, with its bound.
    placement : Placement or None
        The best simulated placement; the loads of its pipelines are the weights of the router.
        None if nothing fits.
    pipelines : tuple of PlacedPipeline
    throughput : PlacedThroughput or None
    answer : PlaceAnswer or None
        None if nothing was simulated with the router.
    unused : tuple of UnusedMachine
    reasons : tuple of str
        Why there is no placement.
    stopped : str
        What the time limit or a KeyboardInterrupt left unfinished.
    interrupted : bool
    """

    query: PlaceQuery
    result: PlacementResult
    placement: Placement | None
    pipelines: tuple[PlacedPipeline, ...] = ()
    throughput: PlacedThroughput | None = None
    answer: PlaceAnswer | None = None
    unused: tuple[UnusedMachine, ...] = ()
    reasons: tuple[str, ...] = ()
    stopped: str = ""
    interrupted: bool = False

    def __repr__(self) -> str:
        facts = [str(self.result.status)]
        if self.throughput is not None:
            n = len(self.pipelines)
            facts += [
                f"{n} pipeline{'s' * (n != 1)}",
                f"{self.throughput.simulated_requests_per_s:.3g} requests/s",
            ]
        facts += [f"stopped: {self.stopped}"] if self.stopped else []
        name = f"{self.query.model.name} on {self.query.fleet.name}"
        return f"<PlacementPlan of {name}: {', '.join(facts)}>"

    def __str__(self) -> str:
        from hypsolve.planning.place_text import text

        return text(self)

    @property
    def fits(self) -> bool:
        """Whether there is a placement."""
        return self.placement is not None

    @property
    def is_met(self) -> bool:
        """Whether the plan serves what was asked for; without a load, whether it fits."""
        if self.answer is None or self.answer.is_met is None:
            return self.fits and not self.query.asks_load
        return self.answer.is_met

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines in use."""
        return () if self.placement is None else self.placement.machines

    @property
    def idle_gpus(self) -> dict[str, int]:
        """Number of GPUs without a stage of each machine that hosts some stages."""
        taken: dict[str, int] = {}
        for pipeline in self.pipelines:
            for stage in pipeline.stages:
                taken[stage.machine] = taken.get(stage.machine, 0) + stage.gpus
        fleet = self.query.fleet
        idle = {name: fleet.machine(name).node.gpus - n for name, n in taken.items()}
        return {name: n for name, n in idle.items() if n}

    @property
    def price_per_hour(self) -> float:
        """Price of the machines in use."""
        fleet = self.query.fleet
        return math.fsum(fleet.machine(name).price_per_hour for name in self.machines)

    @property
    def price_per_million_tokens(self) -> float:
        """Price per 10^6 output tokens at the largest simulated rate; nan without prices."""
        if self.throughput is None or not self.price_per_hour:
            return math.nan
        tokens = float(self.result.problem.requests.output_tokens.mean())
        rate = self.throughput.simulated_requests_per_s
        return self.price_per_hour / (rate * tokens * 3600) * 1e6 if rate else math.nan

    def simulate(self) -> Trace:
        """Simulate the load of the query, or the largest rate, with the router again.

        Raises
        ------
        ValueError
            If there is no placement.
        """
        from dataclasses import replace

        from hypsolve.planning.place_simulation import PlacementSimulator

        if self.placement is None or self.throughput is None:
            raise ValueError(f"place: no placement to simulate, {self.result.status}")
        load = self.query.load
        if not self.query.asks_load:
            known = math.nan if self.answer is None else self.answer.served_per_s
            rate = self.throughput.simulated_requests_per_s if math.isnan(known) else known
            load = replace(load, rate_per_s=rate)
        return PlacementSimulator(self.query, self.result.problem).trace(self.placement, load)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers, strings, lists and dicts, for JSON.

        None stands for inf and nan, which JSON lacks.
        """
        query = self.query
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": query.model.name,
            "machines": query.fleet.name,
            "prompt_tokens": query.prompt_tokens,
            "output_tokens": query.output_tokens,
            "weights": query.weights,
            "requests": None if query.requests is None else query.requests.to_dict(),
            "rate_per_s": query.rate_per_s,
            "users": query.users,
            "think_time_s": query.think_time_s,
            "ttft_slo_s": query.ttft_slo_s,
            "tpot_slo_s": query.tpot_slo_s,
            "runtime": query.runtime.to_dict(),
            "objective": query.objective,
            "method": self.result.method,
            "max_stages": query.max_stages,
            "time_limit_s": query.time_limit_s,
            "seed": query.seed,
            "status": str(self.result.status),
            "digest": self.result.problem.digest(),
            "solve_time_s": self.result.solve_time_s,
            "throughput": None if self.throughput is None else self.throughput.to_dict(),
            "pipelines": [pipeline.to_dict() for pipeline in self.pipelines],
            "price_per_hour": self.price_per_hour,
            "price_per_million_tokens": finite_or_none(self.price_per_million_tokens),
            "currency": query.machines.currency,
            "answer": None if self.answer is None else self.answer.to_dict(),
            "unused": [each.to_dict() for each in self.unused],
            "idle_gpus": self.idle_gpus,
            "reasons": list(self.reasons),
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON to a path that ends in ``.json``.

        Raises
        ------
        ValueError
            If `path` ends in something else.
        OSError
            If the folder does not exist or cannot be written to.
        """
        path = files.checked_path("save", path)
        if not path.name.endswith((".json", ".json.gz")):
            raise ValueError(f"{path}: the name of a placement must end in .json or .json.gz")
        with files.replacing(path, "a placement") as file:
            file.write(json.dumps(self.to_dict(), allow_nan=False) + "\n")


def placement_of(table: Any) -> Placement:
    """Return the placement of a saved plan, for `hypsolve.simulate_placement` and exports.

    Raises
    ------
    ValueError, TypeError
        If the table is no plan of this version, or has no pipelines.
    """
    owner = "placement"
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError(f"{owner}: format must be {FORMAT!r}, got {_format_of(table)!r:.60}")
    if table.get("version") != VERSION:
        raise ValueError(
            f"{owner}: version must be {VERSION}, got {table.get('version')!r:.60}"
        )
    rows = table.get("pipelines")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{owner}: the plan has no pipelines")
    pipelines = []
    for p, row in enumerate(rows):
        each = f"pipeline {p}"
        if not isinstance(row, dict) or not isinstance(row.get("stages"), list):
            raise TypeError(f"{each}: stages must be a list, got {row!r:.60}")
        load = valid.real(each, "fluid_requests_per_s", row.get("fluid_requests_per_s"))
        share = valid.real(each, "share", row.get("share"))
        inner = Placement.from_dict(
            {"pipelines": [{"requests_per_s": load, "stages": row["stages"]}]}
        )
        pipelines.append((inner.pipelines[0], share))
    factor = min((p.requests_per_s / share for p, share in pipelines if share), default=0.0)
    return Placement(tuple(Pipeline(p.stages, share * factor) for p, share in pipelines))


def _format_of(table: Any) -> Any:
    return table.get("format") if isinstance(table, dict) else table
