"""`PlacementPlan`: pipelines over machines, what they serve, and why machines are left out."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.placement_given import given_of
from hypsolve.planning.placement_records import (
    PlaceAnswer,
    PlacedPipeline,
    PlacedThroughput,
    UnusedMachine,
)
from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.placement import Pipeline, Placement
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.units import finite_or_none
from hypsolve.simulation.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT, VERSION = "hypsolve-placement", 1  # of `PlacementPlan.to_dict`


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

    @property
    def largest_rate(self) -> float:
        """Rate that was simulated behind the router, else the sum of the pipelines' rates."""
        known = math.nan if self.answer is None else self.answer.served_per_s
        if self.throughput is None or not math.isnan(known):
            return known
        return self.throughput.simulated_requests_per_s

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
            load = replace(load, rate_per_s=self.largest_rate)
        return PlacementSimulator(self.query, self.result.problem).trace(self.placement, load)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw sites, pipelines and machines that are left out; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Default: axes that fill a new figure, 9.4 inches wide.

        Returns
        -------
        matplotlib Axes
            ``plot().figure.savefig("placement.png", dpi=200)`` writes a file.

        Raises
        ------
        ValueError
            If matplotlib is missing, or there is no placement.
        """
        from hypsolve.planning.place_figure import plot_placement

        if self.placement is None:
            raise ValueError(f"place: no placement to draw, {self.result.status}")
        return plot_placement(self, ax)

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
            "digest": query.problem().digest(),
            "given": given_of(query.problem()),
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
        files.save_json(path, self.to_dict(), what="placement")


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
