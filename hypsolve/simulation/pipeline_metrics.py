"""Metrics of each pipeline of a simulated placement: `pipeline_metrics`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.placement import Placement
from hypsolve.simulation.metrics import Summary, metrics, summary
from hypsolve.simulation.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMetrics:
    """Metrics of a pipeline, as `pipeline_metrics` returns them; nan where one is not defined.

    Attributes
    ----------
    pipeline : int
        Its index in the placement.
    n_requests, n_finished : int
        Requests that the router sent there, and those that ended.
    requests_per_s : float
        Requests that ended, per the same seconds as `Metrics.requests_per_s` of the trace: the
        pipelines add up to that rate.
    latency_s, ttft_s, tpot_s : Summary
        Over its requests, as in `Metrics`.
    slo_attainment : float
        Share of its requests that ended within every limit; nan without a limit.
    node_names : tuple of str
        Names of the nodes of its stages.
    node_utilisation : tuple of float
        Busy share of the observed time of each stage.
    busy_s : tuple of float
        Seconds that each stage spent computing.
    """

    pipeline: int
    n_requests: int
    n_finished: int
    requests_per_s: float
    latency_s: Summary
    ttft_s: Summary
    tpot_s: Summary
    slo_attainment: float
    node_names: tuple[str, ...]
    node_utilisation: tuple[float, ...]
    busy_s: tuple[float, ...]


def pipeline_metrics(
    trace: Trace,
    *,
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    latency_slo_s: float | None = None,
) -> tuple[PipelineMetrics, ...]:
    """Summarise a trace of `simulate_placement` pipeline by pipeline.

    Parameters
    ----------
    trace : Trace
    ttft_slo_s, tpot_slo_s, latency_slo_s : float, optional
        Limits as in `metrics`.

    Returns
    -------
    tuple of PipelineMetrics
        In the order of the pipelines of the placement.

    Raises
    ------
    ValueError
        If the trace is not one of a placement, or a limit is invalid.

    Examples
    --------
    >>> import hypsolve as hs
    >>> nodes = [hs.Node(name=name, gpu=hs.gpu("l4")) for name in ("a", "b")]
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.workload(n_requests=9, rate_per_s=1.0),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=node, site="room") for node in nodes),
    ...     ),
    ... )
    >>> placement = hs.Placement(tuple(
    ...     hs.Pipeline((hs.PlacedStage(name, 1, 0, 34),), load)
    ...     for name, load in (("a", 2.0), ("b", 1.0))
    ... ))
    >>> trace = hs.simulate_placement(problem, placement, policy="weighted")
    >>> [(each.node_names, each.n_requests) for each in hs.pipeline_metrics(trace)]
    [(('a',), 6), (('b',), 3)]
    """
    valid.of_class("pipeline_metrics", "trace", trace, "Trace")
    placement = trace.partition
    if not isinstance(placement, Placement):
        raise ValueError(
            "pipeline_metrics: trace must be one of simulate_placement, got one of a partition"
        )
    limits = {
        "ttft_slo_s": ttft_slo_s,
        "tpot_slo_s": tpot_slo_s,
        "latency_slo_s": latency_slo_s,
    }
    whole = metrics(trace, **limits)
    counted_s = (
        whole.n_finished / whole.requests_per_s if whole.requests_per_s > 0 else math.nan
    )
    trace = trace.from_first()
    times = {"ttft": trace.ttft_s, "tpot": trace.tpot_s, "latency": trace.latency_s}
    finished = np.isfinite(trace.end_s)
    kept = finished.copy()
    for name, seconds in times.items():
        limit = limits[f"{name}_slo_s"]
        if limit is not None:
            kept &= ~(seconds > limit)
    has_limit = any(limit is not None for limit in limits.values())
    nodes = nodes_of_pipelines(placement)
    rows = []
    for p, own in enumerate(nodes):
        mine = trace.node[:, 0] == p
        n, n_finished = int(mine.sum()), int(finished[mine].sum())
        rows.append(
            PipelineMetrics(
                pipeline=p,
                n_requests=n,
                n_finished=n_finished,
                requests_per_s=n_finished / counted_s,
                latency_s=summary(times["latency"][mine]),
                ttft_s=summary(times["ttft"][mine]),
                tpot_s=summary(times["tpot"][mine]),
                slo_attainment=int(kept[mine].sum()) / n if has_limit and n else math.nan,
                node_names=tuple(trace.node_names[i] for i in own),
                node_utilisation=tuple(whole.node_utilisation[i] for i in own),
                busy_s=tuple(float(trace.busy_s[i]) for i in own),
            )
        )
    return tuple(rows)


def nodes_of_pipelines(placement: Placement) -> list[list[int]]:
    """Return the nodes of each pipeline, as a trace of `simulate_placement` numbers them."""
    lengths = [len(pipeline.stages) for pipeline in placement.pipelines]
    nodes: list[list[int]] = [[] for _ in lengths]
    number = 0
    for stage in range(max(lengths)):
        for p, length in enumerate(lengths):
            if stage < length:
                nodes[p].append(number)
                number += 1
    return nodes
