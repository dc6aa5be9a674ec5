"""`PlacementOutcome`, the claim of a placement method, and `PlacementResult`, its score."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.notebook_table import notebook_table
from hypsolve.problem.placement import Placement, PlacementObjective, PlacementProblem
from hypsolve.problem.placement_evaluation import ServedPlacement
from hypsolve.problem.solution import Status, checked_status
from hypsolve.problem.units import finite_or_none, show_seconds

VERSION = 1  # of `PlacementResult.to_dict`
UNITS = {
    PlacementObjective.THROUGHPUT: "requests/s",
    PlacementObjective.GOODPUT: "requests/s",
    PlacementObjective.COST: "per hour",
    PlacementObjective.LATENCY: "s mean latency",
}


@dataclass(frozen=True, slots=True)
class PlacementOutcome:
    """The claim of a method on a `PlacementProblem`, which `hypsolve.solve` scores and checks.

    Attributes
    ----------
    status : Status
        ``optimal`` and ``feasible`` need a placement; the others exclude it.
    placement : Placement or None
    fluid_bound : float or None
        A value of the objective that no placement passes in the fluid model, with pipelines of
        at most `max_stages` stages. None if the method proves none.
    alternatives : tuple of Placement
        Further placements, the best first.
    message : str
    statistics : mapping of str to any

    Raises
    ------
    ValueError, TypeError
        If a field has a wrong type or value; the message names the field.
    """

    status: Status
    placement: Placement | None = None
    fluid_bound: float | None = None
    alternatives: tuple[Placement, ...] = ()
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = "placement outcome"
        status = checked_status(owner, self.status, "placement", self.placement, Placement)
        object.__setattr__(self, "status", status)
        if self.fluid_bound is not None and self.fluid_bound != math.inf:
            valid.real(owner, "fluid_bound", self.fluid_bound)
        for each in self.alternatives:
            valid.of_type(owner, "alternatives", each, Placement)


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class PlacementResult:
    """A placement that `hypsolve.solve` has scored by the fluid model and checked.

    Attributes
    ----------
    method : str
    status : Status
        ``optimal``: no placement is better in the fluid model, by more than 10^-6 of the value.
        It is no claim about simulations or measurements.
    problem : PlacementProblem
    placement : Placement or None
        None without a solution.
    served : ServedPlacement or None
        Rates, latencies and price, by `evaluate_placement`.
    fluid_bound : float or None
        A value of the objective that no placement passes in the fluid model, with pipelines of
        at most `max_stages` stages; None if none is proved.
    alternatives : tuple of (Placement, ServedPlacement)
        Further placements of the method, each scored, the best first.
    solve_time_s : float
        Wall time of the method alone, without the compilation of kernels.
    message : str
    statistics : mapping of str to any
    """

    method: str
    status: Status
    problem: PlacementProblem
    placement: Placement | None
    served: ServedPlacement | None
    fluid_bound: float | None
    alternatives: tuple[tuple[Placement, ServedPlacement], ...]
    solve_time_s: float
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_smaller_better(self) -> bool:
        """Whether the objective is minimised: a price or a latency."""
        return self.problem.objective.needs_rate

    @property
    def objective(self) -> float:
        """Value of the objective: requests/s, price per hour, or seconds."""
        if self.served is None:
            return math.inf if self.is_smaller_better else 0.0
        return self.served.objective(self.problem.objective)

    @property
    def fluid_gap(self) -> float:
        """Share by which `fluid_bound` is better than the answer; 1 if nothing is proved."""
        if self.served is None:
            return math.nan
        if self.fluid_bound is None:
            return 1.0
        better, worse = self.fluid_bound, self.objective
        if self.is_smaller_better:
            better, worse = worse, better
        return max(0.0, 1 - worse / better) if better > 0 else 0.0

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the machines that host no stage."""
        used = set() if self.placement is None else set(self.placement.machines)
        return tuple(m.name for m in self.problem.fleet.machines if m.name not in used)

    def __repr__(self) -> str:
        facts = [str(self.status)]
        if self.served is not None:
            facts.append(f"{self.objective:.4g} {UNITS[self.problem.objective]}")
            known = self.fluid_bound is not None
            facts.append(f"fluid gap {self.fluid_gap:.3%}" if known else "no bound proved")
        name = self.problem.name
        return f"<PlacementResult of {self.method} on {name!r}: {', '.join(facts)}>"

    def __str__(self) -> str:
        lines = [f"{self.method} on {self.problem.name}"]
        lines.append(f"  status     {self.status}" + (f": {self.message}" * bool(self.message)))
        if self.served is not None:
            lines.append(f"  fluid rate {self.served.requests_per_s:.4g} requests/s")
            if self.served.price_per_hour:
                lines.append(f"  price      {self.served.price_per_hour:.4g} per hour")
        lines.append(f"  solved in  {show_seconds(self.solve_time_s)}")
        lines += [f"  {row[0]}  {row[1]}" for row in self._rows()]
        if self.unused:
            lines.append(f"  unused: {', '.join(self.unused)}")
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        if self.placement is None:
            return []
        return [
            (f"{pipeline.requests_per_s:.4g}/s", str(pipeline))
            for pipeline in self.placement.pipelines
        ]

    def _repr_html_(self) -> str:
        """Return a table of the pipelines, which Jupyter shows."""
        return notebook_table(repr(self)[1:-1], ("load", "stages"), self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Return all but the problem as plain numbers, strings, lists and dicts.

        JSON has no inf and nan: None stands for both.
        """
        bound = self.fluid_bound
        return {
            "version": VERSION,
            "problem": self.problem.name,
            "digest": self.problem.digest(),
            "objective": str(self.problem.objective),
            "method": self.method,
            "status": str(self.status),
            "placement": None if self.placement is None else self.placement.to_dict(),
            "served": None if self.served is None else _plain(self.served),
            "unused": list(self.unused),
            "fluid_bound": None if bound is None else finite_or_none(bound),
            "fluid_gap": finite_or_none(self.fluid_gap),
            "max_stages": self.problem.max_stages,
            "alternatives": [placement.to_dict() for placement, _ in self.alternatives],
            "solve_time_s": self.solve_time_s,
            "message": self.message,
            "statistics": dict(self.statistics),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON to a path that ends in ``.json`` or ``.json.gz``.

        Raises
        ------
        ValueError
            If `path` ends in something else.
        OSError
            If the folder does not exist or cannot be written to.
        """
        files.save_json(path, self.to_dict())


def _plain(served: ServedPlacement) -> dict[str, Any]:
    return {
        "requests_per_s": served.requests_per_s,
        "price_per_hour": served.price_per_hour,
        "mean_latency_s": finite_or_none(served.mean_latency_s),
        "pipelines": [
            {
                "fluid_requests_per_s": finite_or_none(rate.fluid_requests_per_s),
                "limit": rate.limit,
                "ttft_s": None if times is None else finite_or_none(times.ttft_s),
                "tpot_s": None if times is None else finite_or_none(times.tpot_s),
                "latency_s": None if times is None else finite_or_none(times.latency_s),
            }
            for rate, times in zip(served.pipelines, served.latencies, strict=True)
        ],
    }
