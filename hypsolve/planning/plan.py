"""`Plan`: the split of a query as data, with nodes, stages, forecast and upgrades."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.degree_choice import DegreeChoice
from hypsolve.planning.expected_errors import errors_of_plan
from hypsolve.planning.forecast import Forecast, serve_load
from hypsolve.planning.layers import describe_blocks
from hypsolve.planning.placement_instead import PlacementInstead
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.request_mix import RequestMix
from hypsolve.planning.serving_frontier import ServingPoint, serving_points, undominated
from hypsolve.planning.slo_answer import SloAnswer
from hypsolve.planning.throughput import Throughput
from hypsolve.planning.what_if import Upgrade
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.result import Result
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import finite_or_none, show_seconds
from hypsolve.simulation.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT, VERSION = "hypsolve-plan", 3  # of `Plan.to_dict`; version 1 stated neither
FRONTIER_SHARE = 0.1  # of the time limit, for the frontier that a figure shows


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """Blocks, memory and time of one node.

    Attributes
    ----------
    tier, node, gpu : str
        Names.
    blocks : range
        Blocks that the node holds; empty if the node is unused.
    weight_bytes, kv_bytes : float
        Weights of its blocks, and KV cache for `PlanQuery.n_reserved` sequences.
    free_bytes : float
        Memory that is left.
    time_s : float
        Time of its blocks for one request, alone on the node.
    is_used : bool
        Whether the node can hold the blocks of its tier.
    n_gpus : int
        GPUs of the node, which compute as one: the degree of tensor parallelism.
    """

    tier: str
    node: str
    gpu: str
    blocks: range
    weight_bytes: float
    kv_bytes: float
    free_bytes: float
    time_s: float
    is_used: bool
    n_gpus: int = 1

    def describe_gpus(self) -> str:
        """Name the GPU, with their number where several compute as one: ``(8 x H100-SXM)``."""
        return self.gpu if self.n_gpus == 1 else f"({self.n_gpus} x {self.gpu})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Blocks of one tier, and their share of the objective.

    Attributes
    ----------
    tier : str
    blocks : range
    time_s : float
        Under ``bottleneck``, time of the nodes of the tier together; else of the fastest node.
    link_s : float
        Time of the link to the next tier: of the bytes under ``bottleneck``, else with all
        round trips.
    share : float
        Under ``bottleneck``, (time_s + link_s) divided by that of the bottleneck stage. Under
        other objectives, the share of the objective (under ``mean_latency``, of the latency of
        one request alone): shares then sum to 1.
    binds : str
        What takes most of this time: ``link``, ``compute`` or ``memory bandwidth`` of one
        request alone; empty if it takes no time. `Forecast.limited_by` says it for batches.
    """

    tier: str
    blocks: range
    time_s: float
    link_s: float
    share: float
    binds: str

    def describe_limit(self) -> str:
        """Say what takes most of the time, as in ``82% link`` or ``memory bandwidth``."""
        whole_s = self.time_s + self.link_s
        if self.binds == "link" and whole_s > 0:
            return f"{self.link_s / whole_s:.0%} link"
        return self.binds


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best split for another objective, simulated with the requests of the plan.

    Attributes
    ----------
    objective : str
    cuts : tuple of int
    latency_mean_s, max_requests_per_s, goodput_requests_per_s : float
    max_rate_is_lower_bound : bool
    slo_attainment : float
        As in `Forecast`.
    """

    objective: str
    cuts: tuple[int, ...]
    latency_mean_s: float
    max_requests_per_s: float
    goodput_requests_per_s: float = math.nan
    max_rate_is_lower_bound: bool = False
    slo_attainment: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan:
    """A plan for serving one model on one network, made by `hypsolve.plan`.

    Attributes
    ----------
    query : PlanQuery
        Model, network, requests, objective, method and limits.
    result : Result
        The partition and its proof; see `hypsolve.solve`.
    reasons : tuple of str
        Why nothing fits: a verdict, then one reason per tier; empty if the plan fits.
    nodes : tuple of NodePlan
        Every node of the network; empty if nothing fits.
    stages : tuple of StagePlan
        Every tier; empty if nothing fits.
    forecast : Forecast or None
        Expected latency and throughput; None if nothing fits.
    alternatives : tuple of Alternative
        The best splits for the objectives bottleneck, path and P0, if they are others.
    upgrades : tuple of Upgrade
        Scenarios that improve the objective, or make the model fit; the best is first.
    stopped : str
        What the time limit or a KeyboardInterrupt left unfinished; empty if the plan is
        complete.
    deployment : Deployment
        Model and network with one request, or with the representatives of requests of
        different lengths, and the KV cache to leave room for.
    degrees : tuple of DegreeChoice
        Degrees of tensor parallelism that were tried, the chosen one first; empty if no machine
        has several GPUs or all degrees are given.
    throughput : Throughput or None
        What the split serves in simulation, and the bound over all splits; None unless the
        objective is in requests per second.
    unused_nodes : tuple of str
        Nodes that the pipelines of a server leave out of the network that was asked for, as
        `hypsolve.nearest_plan` chose. `nodes` has the others, and proofs are about these.
    slo_answer : SloAnswer or None
        Whether the load is served within the targets, and the largest loads that are; None
        without targets, or if nothing fits.
    interrupted : bool
        Whether it was a KeyboardInterrupt: the plan is the best so far.
    fluid_result : ServingResult or None
        The best splits of the fluid model, under an objective in requests per second. Its
        certificate says that no split carries more in this model; save it and its `instance`
        to check it with `hypsolve.verify`. `result` has no certificate then, since its split
        is chosen by simulation. Not part of the JSON.
    placement_instead : PlacementInstead or None
        What `hypsolve.place` serves on all machines of the network, without the order of its
        tiers; None unless that is clearly more than this plan serves, and was found in a small
        share of the time limit. It is not looked for without upgrades.
    """

    query: PlanQuery
    result: Result
    reasons: tuple[str, ...]
    nodes: tuple[NodePlan, ...]
    stages: tuple[StagePlan, ...]
    forecast: Forecast | None
    alternatives: tuple[Alternative, ...]
    upgrades: tuple[Upgrade, ...]
    stopped: str
    deployment: Deployment
    degrees: tuple[DegreeChoice, ...] = ()
    throughput: Throughput | None = None
    unused_nodes: tuple[str, ...] = ()
    slo_answer: SloAnswer | None = None
    interrupted: bool = False
    fluid_result: ServingResult | None = None
    placement_instead: PlacementInstead | None = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Nodes that the plan leaves out of the network that was asked for.

        The runtime does not run on them, they have fewer GPUs than compute as one
        (``query.left_out``, ``query.too_small``), or no pipeline has them (`unused_nodes`).
        """
        query = self.query
        return tuple(dict.fromkeys((*query.left_out, *query.too_small, *self.unused_nodes)))

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __getattr__(self, name):
            raise valid.missing_attribute(self, name)

    def __repr__(self) -> str:
        facts = [str(self.result.status)]
        if self.fits:
            facts.append(f"{self.objective_name} {self.describe_value()}")
        stages = (f"{s.tier} {self.describe_blocks(s.blocks)}" for s in self.stages)
        facts += ["; ".join(stages)] if self.stages else []
        facts += [f"stopped: {self.stopped}"] if self.stopped else []
        return f"<Plan of {self.model.name} on {self.network.network.name}: {', '.join(facts)}>"

    def __str__(self) -> str:
        from hypsolve.planning.text import text

        return text(self)

    def _repr_html_(self) -> str:
        """Return the title, the proof and the table of nodes, which Jupyter shows."""
        from hypsolve.planning.html_parts import fragment

        return fragment(self)

    @property
    def model(self) -> Model:
        """The model that is served."""
        return self.query.model

    @property
    def network(self) -> NetworkFile:
        """The network, with prices and rules on blocks."""
        return self.query.network

    @property
    def objective_name(self) -> str:
        """The objective in words, as in ``mean latency``."""
        return self.query.objective.replace("_", " ")

    @property
    def value(self) -> float:
        """Value of the objective: seconds, or requests per second in simulation."""
        if self.throughput is None:
            return self.result.objective_s
        return self.throughput.simulated_requests_per_s

    def describe_value(self) -> str:
        """Write the value of the objective with its unit."""
        if self.throughput is None:
            return show_seconds(self.value)
        if math.isnan(self.value):
            return "a rate that was not found in time"
        return f"{self.value:.3g} requests/s"

    @property
    def fits(self) -> bool:
        """Whether the model fits on the network."""
        return self.result.partition is not None

    @property
    def bottleneck_stage(self) -> StagePlan:
        """The stage with the largest share: under ``bottleneck``, the one that limits it."""
        return max(self.stages, key=lambda stage: stage.share)

    def simulate(self, *, record_visits: bool = False) -> Trace:
        """Simulate the requests of the forecast again.

        Raises
        ------
        ValueError
            If nothing fits.
        """
        if self.result.partition is None:
            raise ValueError(f"plan: no split to simulate, {self.result.status}")
        return serve_load(
            self.deployment, self.result.partition, self.query.load, record_visits=record_visits
        )

    def serving_frontier(self) -> tuple[ServingPoint, ...]:
        """Return splits that no other beats in both simulated rate and mean latency."""
        return undominated(self.serving_points())

    def serving_points(self) -> tuple[ServingPoint, ...]:
        """Return this split and others, with what they serve in simulation.

        The others are those of `alternatives`, and those of the Pareto frontier of requests one
        at a time that were simulated in time.
        """
        known = [] if self.forecast is None else [self._own_point()]
        known += [self._point(other.cuts, other) for other in self.alternatives]
        simulated = serving_points(
            self.deployment,
            self.result.instance,
            self.query.load,
            FRONTIER_SHARE * self.query.time_limit_s,
        )
        seen = {point.partition for point in known}
        new = (
            p
            for p in simulated
            if p.is_known
            and p.partition not in seen
            and self.query.has_limits_of(p.partition.cuts)
        )
        return (*known, *new)

    def _own_point(self) -> ServingPoint:
        assert self.forecast is not None and self.result.partition is not None
        served = Alternative(
            objective=self.query.objective,
            cuts=self.result.partition.cuts,
            latency_mean_s=self.forecast.latency_s.mean,
            max_requests_per_s=self.forecast.max_requests_per_s,
            slo_attainment=self.forecast.slo_attainment,
            max_rate_is_lower_bound=self.forecast.max_rate_is_lower_bound,
        )
        return self._point(served.cuts, served)

    def _point(self, cuts: tuple[int, ...], served: Alternative) -> ServingPoint:
        partition, instance = Partition(cuts), self.result.instance
        return ServingPoint(
            partition=partition,
            max_requests_per_s=served.max_requests_per_s,
            latency_mean_s=served.latency_mean_s,
            bottleneck_s=evaluation.bottleneck_s(instance, partition),
            path_s=evaluation.path_s(instance, partition),
            slo_attainment=served.slo_attainment,
            max_rate_is_lower_bound=served.max_rate_is_lower_bound,
        )

    def plot(self, kind: str, ax: Axes | None = None) -> Axes:
        """Draw one figure of the plan; needs matplotlib.

        Parameters
        ----------
        kind : {"network", "stages", "pareto", "latency", "gantt", "upgrades"}
            ``network``: layers and memory of each node. ``stages``: seconds of each stage and
            link. ``pareto``: simulated rate and mean latency of this split and of splits that
            no other beats in both. ``latency``: distribution of the simulated latencies.
            ``gantt``: simulated iterations of the nodes. ``upgrades``: what each upgrade
            improves, simulated.
        ax : matplotlib Axes, optional
            Default: axes of a new figure, 16 cm wide.

        Returns
        -------
        matplotlib Axes
            ``plot(kind).figure.savefig("plan.png", dpi=200)`` writes a file.

        Raises
        ------
        ValueError
            If matplotlib is missing, or there is nothing to draw.
        """
        from hypsolve.planning.figures import plot

        return plot(self, kind, ax)

    def describe_blocks(self, blocks: range) -> str:
        """Name blocks as in ``embedding, layers 0-12``; layers are counted from 0."""
        return describe_blocks(blocks, self.model.n_blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers, strings, lists and dicts, for JSON.

        None stands for inf and nan, which JSON lacks.
        """
        query = self.query
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": query.model.name,
            "network": query.network.network.name,
            "prompt_tokens": query.prompt_tokens,
            "output_tokens": query.output_tokens,
            "weights": query.weights,
            "tensor_parallel": query.tensor_parallel,
            "requests": None if query.requests is None else query.requests.to_dict(),
            "costs": query.costs,
            "rate_per_s": query.rate_per_s if query.users is None else None,
            "users": query.users,
            "think_time_s": query.think_time_s,
            "ttft_slo_s": query.ttft_slo_s,
            "tpot_slo_s": query.tpot_slo_s,
            "runtime": query.runtime.to_dict(),
            "concurrency": query.concurrency,
            "objective": query.objective,
            "method": query.method,
            "time_limit_s": float(query.time_limit_s),
            "seed": query.seed,
            "left_out": list(self.left_out),
            "too_small": list(query.too_small),
            "optional": list(query.optional),
            "idle_gpus": dict(query.idle_gpus),
            "follows": list(query.follows),
            "result": self.result.to_dict(),
            "reasons": list(self.reasons),
            "nodes": [record_to_dict(node) for node in self.nodes],
            "stages": [record_to_dict(stage) for stage in self.stages],
            "forecast": None if self.forecast is None else record_to_dict(self.forecast),
            "alternatives": [record_to_dict(other) for other in self.alternatives],
            "upgrades": [record_to_dict(upgrade) for upgrade in self.upgrades],
            "stopped": self.stopped,
            "degrees": [record_to_dict(choice) for choice in self.degrees],
            "throughput": None if self.throughput is None else record_to_dict(self.throughput),
            "unused_nodes": list(self.unused_nodes),
            "slo_answer": None if self.slo_answer is None else record_to_dict(self.slo_answer),
            "interrupted": self.interrupted,
            "placement_instead": (
                None
                if self.placement_instead is None
                else record_to_dict(self.placement_instead)
            ),
            "expected_errors": [record_to_dict(error) for error in errors_of_plan(self)],
        }


def record_to_dict(record: Any) -> dict[str, Any]:
    """Return a record as plain numbers, strings, lists and dicts, for JSON."""
    return {name: _plain(getattr(record, name)) for name in record.__slots__}


def _plain(value: Any) -> Any:
    if isinstance(value, range):
        return [value.start, value.stop]
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, RequestMix):
        return value.source
    if dataclasses.is_dataclass(value):
        return record_to_dict(value)
    return finite_or_none(value) if isinstance(value, float) else value
