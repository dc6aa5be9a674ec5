"""`PlacementSimulator`: what placements serve, pipeline by pipeline, and behind their router.

Pipelines share nothing but the router, which sends each of them a fixed share of the requests.
What all of them serve is therefore the sum of what each one serves, and equal pipelines are
simulated once. The load that a user asks for is simulated with all pipelines and the router.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.planning.forecast import Room, room_of, round_s
from hypsolve.planning.load import (
    Load,
    at_rate_of,
    in_order,
    max_requests,
    starts,
    with_requests,
)
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.saturation import (
    LONG,
    MET,
    MIN_REQUESTS,
    PRINTED_ROUNDS,
    SimulatedRate,
    attained,
    is_steady,
)
from hypsolve.planning.split_simulator import SplitSimulator
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.instance import Instance
from hypsolve.problem.placement import Pipeline, Placement, PlacementProblem
from hypsolve.problem.placement_evaluation import ServedPlacement
from hypsolve.simulation.simulate_placement import simulate_placement
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import NEVER, Deadline

POLICY = "weighted"
"""Policy of the router that is simulated: the one that `--export` writes."""
NOTHING = SimulatedRate(requests_per_s=0.0, n_requests=0)
BARELY = 1e-3  # share by which a load must be below what a pipeline carries to be a limit
Key = tuple[object, ...]


def known_sum(rates: Iterable[float]) -> float:
    """Return the sum of the rates that are known, which are not nan.

    Examples
    --------
    >>> known_sum([2.0, math.nan, 3.0])
    5.0
    """
    return math.fsum(rate for rate in rates if not math.isnan(rate))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement to simulate, and what it carries in the fluid model."""

    origin: str
    placement: Placement
    served: ServedPlacement


@dataclass(frozen=True, slots=True)
class PlacementRate:
    """Rate that a placement serves in simulation: the sum over its pipelines.

    Attributes
    ----------
    requests_per_s : float
        Every queue full; or, where the goal is a rate within targets, the largest rate of
        Poisson arrivals at which 95 % of the requests of every pipeline meet them.
    of_pipelines : tuple of float
        nan: not known in time; the sum leaves the pipeline out.
    n_requests : int
        Requests of all simulations of pipelines, equal ones counted once.
    is_lower_bound : bool
        Whether the placement may serve clearly more.
    fluid_weights : tuple of float
        Weights of the router, if they are rates in the fluid model. Empty: they are
        `of_pipelines`, and pipelines without a known rate get no requests.
    """

    requests_per_s: float
    of_pipelines: tuple[float, ...]
    n_requests: int
    is_lower_bound: bool
    fluid_weights: tuple[float, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the pipelines at the router."""
        known = (0.0 if math.isnan(rate) else rate for rate in self.of_pipelines)
        return self.fluid_weights or tuple(known)

    def shares(self) -> tuple[float, ...]:
        """Return the share of the requests that the router sends to each pipeline."""
        total = math.fsum(self.weights)
        n = len(self.weights)
        return tuple(rate / total if total else 1 / n for rate in self.weights)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a placement serves a load, simulated with all pipelines and the router.

    Attributes
    ----------
    is_met : bool
        Whether 95 % of the requests meet the targets, if there are any, and requests are served
        as fast as they arrive.
    slo_attainment : float
        nan without targets.
    keeps_up : bool
    is_of_later_half : bool
        Whether the share is that of the later half of the requests.
    trace : Trace
    """

    is_met: bool
    slo_attainment: float
    keeps_up: bool
    is_of_later_half: bool
    trace: Trace


class PlacementSimulator:
    """Simulates placements for a query.

    Parameters
    ----------
    query : PlaceQuery
    problem : PlacementProblem
    """

    def __init__(self, query: PlaceQuery, problem: PlacementProblem) -> None:
        self.query, self.problem = query, problem
        self.has_goal = query.has_targets and query.objective != "throughput"
        self._servers: dict[Key, SplitSimulator | None] = {}
        self._brief: dict[Key, SimulatedRate] = {}
        self._long: dict[Key, SimulatedRate] = {}

    def rate(
        self,
        placement: Placement,
        served: ServedPlacement,
        deadline: Deadline = NEVER,
        *,
        in_full: bool = False,
    ) -> PlacementRate:
        """Return what a placement serves.

        Parameters
        ----------
        placement : Placement
        served : ServedPlacement
            Its rates in the fluid model.
        deadline : Deadline, optional
            When it has passed, no simulation gets longer.
        in_full : bool
            Whether as many requests are simulated as a printed rate needs.
        """
        of_pipelines, keys, is_lower_bound = [], set(), False
        for pipeline, fluid in zip(placement.pipelines, served.pipelines, strict=True):
            key = self.key(pipeline)
            found = self._brief_rate(key, pipeline, deadline)
            if in_full:
                found = self._full_rate(key, pipeline, found, deadline)
            keys.add(key)
            limit = pipeline.requests_per_s
            is_limited = limit < fluid.fluid_requests_per_s * (1 - BARELY)
            rate = found.requests_per_s
            is_lower_bound = is_lower_bound or found.is_lower_bound
            of_pipelines.append(min(rate, limit) if is_limited and not self._is_cost else rate)
        known = self._long if in_full else self._brief
        return PlacementRate(
            known_sum(of_pipelines),
            tuple(of_pipelines),
            sum(known[key].n_requests for key in keys if key in known),
            is_lower_bound,
        )

    def known_rate(self, placement: Placement, served: ServedPlacement) -> PlacementRate:
        """Return what earlier calls of `rate` found, also if an interrupt ended them.

        The router has the weights of the fluid model, unless all pipelines were simulated.
        """
        missing = SimulatedRate(requests_per_s=math.nan, n_requests=0)
        found = {key: self._long.get(key, self._brief.get(key, missing))
                 for key in map(self.key, placement.pipelines)}  # fmt: skip
        rates = tuple(found[self.key(each)].requests_per_s for each in placement.pipelines)
        fluid = tuple(each.fluid_requests_per_s for each in served.pipelines)
        return PlacementRate(
            known_sum(rates),
            rates,
            sum(each.n_requests for each in found.values()),
            is_lower_bound=True,
            fluid_weights=fluid if any(map(math.isnan, rates)) else (),
        )

    @property
    def _is_cost(self) -> bool:
        """Whether loads only add up to the rate that is asked for."""
        return self.problem.objective.needs_rate

    def key(self, pipeline: Pipeline) -> Key:
        """Return what makes two pipelines equal: kinds, groups, and which are one machine."""
        names = [stage.machine for stage in pipeline.stages]
        return tuple(
            (
                self.problem.fleet.machine(stage.machine).kind,
                names.index(stage.machine),
                stage.gpus,
                stage.stop,
            )
            for stage in pipeline.stages
        )

    def deployment(self, pipeline: Pipeline) -> tuple[Deployment, Instance]:
        """Return the deployment of a pipeline, and its instance."""
        deployment = self.problem.deployment(pipeline.groups)
        return deployment, to_instance(deployment, objective="path")

    def room(self, pipeline: Pipeline) -> Room:
        """Return how many sequences a pipeline has room for."""
        deployment, instance = self.deployment(pipeline)
        return room_of(deployment, instance, pipeline.partition)

    def bound(self, pipeline: Pipeline) -> float:
        """Return requests per second that no split of its machines and no schedule exceeds."""
        return throughput_bound(self.problem.deployment(pipeline.groups))

    def _server(self, key: Key, pipeline: Pipeline) -> SplitSimulator | None:
        """Return the simulator of a pipeline; None if the way to it takes all of the TTFT."""
        if key not in self._servers:
            entry_s = self.problem.entry_s(self.problem.fleet.machine(pipeline.groups[0][0]))
            load, target_s = self._open_load, self.query.ttft_slo_s
            if target_s is not None:
                load = replace(load, ttft_slo_s=target_s - entry_s)
            if self.has_goal and target_s is not None and target_s <= entry_s:
                self._servers[key] = None
            else:
                deployment, instance = self.deployment(pipeline)
                self._servers[key] = SplitSimulator(
                    deployment, instance, load, has_goal=self.has_goal, bound_per_s=math.inf
                )
        return self._servers[key]

    @property
    def _open_load(self) -> Load:
        return replace(self.query.load, users=None, think_time_s=0.0)

    def _brief_rate(self, key: Key, pipeline: Pipeline, deadline: Deadline) -> SimulatedRate:
        if key not in self._brief:
            server = self._server(key, pipeline)
            self._brief[key] = (
                NOTHING
                if server is None
                else server.ranked(pipeline.partition.cuts, 0.0, deadline)
            )
        return self._brief[key]

    def _full_rate(
        self, key: Key, pipeline: Pipeline, known: SimulatedRate, deadline: Deadline
    ) -> SimulatedRate:
        server = self._server(key, pipeline)
        if server is None or deadline.has_passed():
            return self._long.get(key, known)
        if key not in self._long:
            self._long[key] = server.refined(pipeline.partition.cuts, known, deadline)[0]
        return self._long[key]

    # all pipelines, with the router

    def judge(self, placement: Placement, load: Load) -> Verdict:
        """Judge whether a placement serves a load; loads of pipelines are their weights."""
        trace = self.trace(placement, load)
        keeps_up = load.users is not None or is_steady(trace)
        share, is_of_later_half = math.nan, False
        if self.query.has_targets:
            share, is_of_later_half = attained(trace, load)
        is_met = keeps_up and not share < MET
        return Verdict(is_met, share, keeps_up, is_of_later_half, trace)

    def trace(
        self,
        placement: Placement,
        load: Load,
        policy: str = POLICY,
        n_requests: int | None = None,
    ) -> Trace:
        """Simulate a load with all pipelines of a placement and its router.

        Parameters
        ----------
        placement : Placement
        load : Load
        policy : str
            Name in `PLACEMENT_POLICIES`.
        n_requests : int, optional
            Default: as many as tell whether the load is served.
        """
        return simulate_placement(
            self.problem,
            placement,
            self._requests(placement, load, n_requests),
            policy,
            seed=load.seed,
            users=load.users,
            think_time_s=load.think_time_s,
            link_contention=True,
        )

    def _requests(
        self, placement: Placement, load: Load, n_requests: int | None = None
    ) -> Requests:
        """Return as many requests as tell whether a load is served, or as many as asked for."""
        first = placement.pipelines[0]
        deployment = self.problem.deployment(first.groups)
        if load.users is not None:
            alone = replace(load, users=1)
            within_s = round_s(deployment, first.partition, alone)
            if n_requests is None:
                return with_requests(deployment, load, within_s).requests
            if load.trace is not None:
                deployment = replace(deployment, requests=load.trace)
            return in_order(deployment, starts(load, n_requests, within_s)).requests
        if n_requests is not None:
            return at_rate_of(deployment, load, load.rate_per_s, n_requests).requests
        n_trace = 0 if load.trace is None else len(load.trace)
        running = sum(self.room(each).running for each in placement.pipelines)
        most = max_requests(deployment, load.max_visits)
        n = max(MIN_REQUESTS, min(max(PRINTED_ROUNDS * running, LONG, n_trace), most))
        return at_rate_of(deployment, load, load.rate_per_s, n).requests


def at_shares(rate: PlacementRate, placement: Placement) -> PlacementRate:
    """Return the largest rates of pipelines whose router keeps the shares of a placement.

    Examples
    --------
    >>> import hypsolve as hs
    >>> stages = (hs.PlacedStage("box", 1, 0, 34),)
    >>> placement = hs.Placement((hs.Pipeline(stages, 1.0), hs.Pipeline(stages, 3.0)))
    >>> at_shares(PlacementRate(10.0, (4.0, 6.0), 100, False), placement).of_pipelines
    (2.0, 6.0)
    """
    loads = [pipeline.requests_per_s for pipeline in placement.pipelines]
    is_known = [not math.isnan(each) for each in rate.of_pipelines]
    triples = list(zip(rate.weights, loads, is_known, strict=True))
    factor = min(
        (weight / load for weight, load, known in triples if load and known), default=0.0
    )
    of_pipelines = tuple(load * factor if known else math.nan for _, load, known in triples)
    return dataclasses.replace(
        rate, requests_per_s=known_sum(of_pipelines), of_pipelines=of_pipelines
    )


def weighted(placement: Placement, rates: tuple[float, ...]) -> Placement:
    """Return a placement whose loads are in proportion to rates, within what it carries.

    The largest loads are those of the placement; a pipeline without a rate gets no request.

    Examples
    --------
    >>> import hypsolve as hs
    >>> stages = (hs.PlacedStage("box", 1, 0, 34),)
    >>> placement = hs.Placement((hs.Pipeline(stages, 4.0), hs.Pipeline(stages, 4.0)))
    >>> [pipeline.requests_per_s for pipeline in weighted(placement, (3.0, 6.0)).pipelines]
    [2.0, 4.0]
    """
    factors = [
        pipeline.requests_per_s / rate
        for pipeline, rate in zip(placement.pipelines, rates, strict=True)
        if rate > 0
    ]
    if not factors:
        return placement
    return Placement(
        tuple(
            dataclasses.replace(pipeline, requests_per_s=rate * min(factors))
            for pipeline, rate in zip(placement.pipelines, rates, strict=True)
        )
    )
