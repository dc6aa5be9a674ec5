"""Records of a `PlacementPlan`: pipelines, rates, the answer to a load, machines left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypsolve.problem.placement import PlacedStage, Placement
from hypsolve.problem.units import finite_or_none
from hypsolve.simulation.metrics import Summary

BETTER, JOINS_LESS, JOINS_MORE, NO_ROOM, NO_PIPELINE, RUNTIME, NOT_NEEDED, UNKNOWN = (
    "gains nothing", "serves less", "serves more", "no room", "no pipeline", "runtime",
    "not needed", "not tried",
)  # fmt: skip
"""Values of `UnusedMachine.why`."""


def table_of_stage(stage: PlacedStage) -> dict[str, Any]:
    """Return a stage as a plain table."""
    return {
        "machine": stage.machine,
        "gpus": stage.gpus,
        "blocks": [stage.start, stage.stop],
    }


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
    fluid_ttft_s, fluid_tpot_s : float
        Means in the fluid model at `load_per_s`; nan where the model has none.
    load_per_s : float
        The share of the rate of `PlaceAnswer`, or else of the largest one.
    ttft_s, tpot_s : Summary or None
        Of its requests in the simulation of `PlaceAnswer`; None without one.
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
    fluid_ttft_s: float
    fluid_tpot_s: float
    load_per_s: float
    ttft_s: Summary | None
    tpot_s: Summary | None
    max_sequences: int
    bound_requests_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the pipeline as a plain table."""
        return {
            "stages": list(map(table_of_stage, self.stages)),
            "requests_per_s": finite_or_none(self.requests_per_s),
            "share": self.share,
            "fluid_requests_per_s": finite_or_none(self.fluid_requests_per_s),
            "limit": self.limit,
            "load_per_s": finite_or_none(self.load_per_s),
            "fluid_ttft_s": finite_or_none(self.fluid_ttft_s),
            "fluid_tpot_s": finite_or_none(self.fluid_tpot_s),
            "ttft_s": None if self.ttft_s is None else _summary(self.ttft_s),
            "tpot_s": None if self.tpot_s is None else _summary(self.tpot_s),
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
        Value of the objective, requests/s, a price per hour or seconds, that no placement
        passes in the fluid model, with at most ``max_stages`` stages; nan if none is proved. It
        bounds no simulated rate.
    fluid_gap : float
        Share by which the best placement of the fluid model is away from it; nan if unknown.
    bound_requests_per_s : float
        No placement of pipelines of at most ``max_stages`` stages and no schedule serves more,
        under the limits of the runtime; see `hypsolve.planning.placement_bound`. inf if the
        time did not allow it, and under ``cost``, where the largest rate is not asked for.
    gap : float
        ``1 - simulated_requests_per_s / bound_requests_per_s``; nan if the bound is inf.
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
    of_pipelines : tuple of (Summary, Summary)
        TTFT and TPOT of the requests of each pipeline there.
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
    of_pipelines: tuple[tuple[Summary, Summary], ...]
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
