"""A plan as data: what each node and stage does, the proof, the forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.forecast import Service, serve, under_load
from hypsolve.planning.what_if import Change
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.result import Result
from hypsolve.problem.units import finite_or_none
from hypsolve.simulation.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What one node holds.

    Attributes
    ----------
    tier, node, gpu : str
    blocks : range
        Empty if the node is not used.
    weight_bytes, kv_bytes : float
        Of its blocks; KV cache for the sequences asked for.
    free_bytes : float
        What is left of its memory.
    time_s : float
        Seconds of the blocks for one request, alone on this node.
    is_used : bool
        Whether the blocks of its tier fit.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What a tier does: blocks, seconds, and how near it is to what binds.

    Attributes
    ----------
    tier : str
    blocks : range
    time_s : float
        Of all its nodes together under ``bottleneck``, else of the quickest one.
    link_s : float
        To the next tier: the bytes under ``bottleneck``, else with all round trips.
    share : float
        Under ``bottleneck`` of the stage that binds, the sum of both over its sum. Else of the
        objective (under ``mean_latency``: of one request alone), so that shares sum to 1.
    """

    tier: str
    blocks: range
    time_s: float
    link_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best split for another objective, simulated like this one.

    Attributes
    ----------
    objective : str
    cuts : tuple of int
    latency_mean_s, max_requests_per_s : float
        As in `Service`.
    """

    objective: str
    cuts: tuple[int, ...]
    latency_mean_s: float
    max_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `plan` returns.

    Attributes
    ----------
    model, network, prompt_tokens, output_tokens, rate_per_s, concurrency, objective, seed
        What was asked.
    result : Result
        The partition and the proof; see `hypsolve.solve`.
    nodes : tuple of NodePlan
        Every node of the network; empty if nothing fits.
    stages : tuple of StagePlan
        Every tier; empty if nothing fits.
    service : Service or None
        What it will serve; None if nothing fits.
    alternatives : tuple of Alternative
        Other splits: those for the bottleneck, the path and P0.
    changes : tuple of Change
        What would help, or what would make it fit, each solved; the best first.
    stopped : str
        What is missing or not finished because of a KeyboardInterrupt; empty if nothing is.
    deployment : Deployment
        What was split: model, network, one request, and the KV cache to leave room for.
    """

    model: Model
    network: NetworkFile
    prompt_tokens: int
    output_tokens: int
    rate_per_s: float
    concurrency: int
    objective: str
    seed: int
    result: Result
    nodes: tuple[NodePlan, ...]
    stages: tuple[StagePlan, ...]
    service: Service | None
    alternatives: tuple[Alternative, ...]
    changes: tuple[Change, ...]
    stopped: str
    deployment: Deployment

    def __str__(self) -> str:
        from hypsolve.planning.text import text

        return text(self)

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.result.partition is not None

    @property
    def binding(self) -> StagePlan:
        """The stage that binds, or has the largest share, with its link."""
        return max(self.stages, key=lambda stage: stage.share)

    def simulate(self, *, record_visits: bool = False) -> Trace:
        """Serve the requests again that `service` is about.

        Raises
        ------
        ValueError
            If nothing fits.
        """
        if self.result.partition is None:
            raise ValueError(f"plan: no split to simulate, {self.result.status}")
        rng = np.random.default_rng(self.seed)
        served = under_load(self.deployment, self.rate_per_s, rng)
        return serve(served, self.result.partition, record_visits=record_visits)

    def plot(self, kind: str, ax: Axes | None = None) -> Axes:
        """Draw the plan; needs matplotlib.

        Parameters
        ----------
        kind : {"network", "stages", "pareto", "latency", "gantt", "changes"}
            Layers and memory of each node; seconds of each stage; this split among those that
            no other beats in both throughput and latency; simulated latencies; simulated
            iterations of the nodes; what would help.
        ax : matplotlib Axes, optional
            Default: of a new figure.

        Returns
        -------
        matplotlib Axes
            ``plot(kind).figure.savefig("plan.png", dpi=200)`` writes it.

        Raises
        ------
        ValueError
            If matplotlib is missing, or there is nothing to draw.
        """
        from hypsolve.planning.figures import plot

        return plot(self, kind, ax)

    def describe_blocks(self, blocks: range) -> str:
        """As in ``embedding, layers 0-12``; layers are counted from 0."""
        return describe_blocks(blocks, self.model.n_blocks)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dictionaries (JSON takes it)."""
        return {
            "model": self.model.name,
            "network": self.network.network.name,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "rate_per_s": self.rate_per_s,
            "concurrency": self.concurrency,
            "objective": self.objective,
            "seed": self.seed,
            "result": self.result.to_dict(),
            "nodes": [
                {**_fields(node), "blocks": [node.blocks.start, node.blocks.stop]}
                for node in self.nodes
            ],
            "stages": [
                {**_fields(stage), "blocks": [stage.blocks.start, stage.blocks.stop]}
                for stage in self.stages
            ],
            "service": None if self.service is None else _fields(self.service),
            "alternatives": [
                {**_fields(other), "cuts": list(other.cuts)} for other in self.alternatives
            ],
            "changes": [_fields(change) for change in self.changes],
            "stopped": self.stopped,
        }


def describe_blocks(blocks: range, n_blocks: int) -> str:
    """As in ``embedding, layers 0-12``; layers are counted from 0."""
    words = []
    if not blocks:
        return "none"
    if blocks.start == 0:
        words.append("embedding")
    first, last = max(blocks.start, 1) - 1, min(blocks.stop, n_blocks - 1) - 2
    if first == last:
        words.append(f"layer {first}")
    elif first < last:
        words.append(f"layers {first}-{last}")
    if blocks.stop == n_blocks:
        words.append("head")
    return ", ".join(words)


def _fields(record: Any) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {
        name: finite_or_none(value) if isinstance(value, float) else value
        for name, value in values.items()
    }
