"""Metrics of a `Trace`: latency, throughput, service-level objectives, utilisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.units import finite_or_none, show_seconds

if TYPE_CHECKING:
    from hypsolve.simulation.trace import Trace

NAN = math.nan
SETTLED = 1.25  # growth of the median latency up to which requests do not pile up
MIN_TO_JUDGE = 20  # requests, of which the growth is judged
MIN_LATENCIES = 3  # median latencies for which requests must arrive to judge the growth
ON_PACE = 0.95  # completions per arrival down to which requests do not pile up


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Mean and percentiles of `n` times in seconds; nan if `n` is 0.

    Percentiles are interpolated linearly, as is numpy's default.
    """

    n: int
    mean: float
    p50: float
    p95: float
    p99: float

    def __str__(self) -> str:
        if not self.n:
            return "none"
        names = ("mean", "p50", "p95", "p99")
        return ", ".join(f"{name} {show_seconds(getattr(self, name))}" for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Metrics of a trace, as `metrics` returns them; nan where a number is not defined.

    Attributes
    ----------
    n_requests, n_finished, n_unfinished : int
        All requests, those that ended, and those that never did.
    latency_s : Summary
        Seconds from arrival to end of the requests that ended.
    ttft_s : Summary
        Seconds from arrival to first token of the requests that got one; empty at flow level.
    tpot_s : Summary
        Seconds per output token after the first one, over the requests that ended and have more
        than one. Each request counts once, whatever its length. Empty at flow level.
    observed_s : float
        Seconds from the first arrival to the last end; if a request never ended, to the end of
        the run.
    offered_s : float
        Seconds for which load is offered: from the first arrival to the last, and one mean gap
        more. If all requests arrive at once, or with users in a closed loop, `observed_s`.
    requests_per_s, output_tokens_per_s : float
        Requests that ended, and their output tokens, per second for which load is offered; the
        time in which the last requests drain is not counted. If requests pile up, it is the
        rate at which they end while others arrive; see `served_share`. If too few arrived, or
        within too short a time, to tell, they are counted per observed second.
        `output_tokens_per_s` is nan for an `Instance`.
    ttft_slo_s, tpot_slo_s, latency_slo_s : float or None
        Limits as given.
    slo_attainment : float
        Share of all requests that ended within every limit; nan without a limit.
    goodput_requests_per_s : float
        Requests within every limit, per the same seconds as `requests_per_s`.
    node_utilisation, tier_utilisation : tuple of float
        Busy share of the observed time; for a tier, the mean over all of its nodes. It is no
        share of the rate that a node can serve: a node that is always busy with small batches
        may serve many times as many requests.
    utilisation : float
        Mean over all nodes of the network.
    active_utilisation : float
        Mean over all nodes of the tiers that have a stage, including nodes that cannot hold it.
    mean_batch : float
        Visits per iteration.
    mean_in_flight : float
        Time average of the number of requests that have arrived and have not ended. Each
        counts once.
    mean_at_nodes : float
        Time average of the number of requests at the nodes: waiting, in service, or between two
        passes. A request counts at each node that it was sent to and where its work is not
        complete; at token level it can count on several tiers at once.
    mean_waiting : float
        The part of `mean_at_nodes` due to requests that wait for KV cache (at flow level: to be
        started).
    mean_stranded : float
        Time average of the number of requests that are at no node, because every node of the
        tier that they need is down.
    restarts, lost_tokens : int
        Sums over all requests.
    """

    name: str
    policy: str
    tier_names: tuple[str, ...]
    node_names: tuple[str, ...]
    n_requests: int
    n_finished: int
    n_unfinished: int
    latency_s: Summary
    ttft_s: Summary
    tpot_s: Summary
    observed_s: float
    offered_s: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft_slo_s: float | None
    tpot_slo_s: float | None
    latency_slo_s: float | None
    slo_attainment: float
    goodput_requests_per_s: float
    node_utilisation: tuple[float, ...]
    tier_utilisation: tuple[float, ...]
    utilisation: float
    active_utilisation: float
    mean_batch: float
    mean_in_flight: float
    mean_at_nodes: float
    mean_waiting: float
    mean_stranded: float
    restarts: int
    lost_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain numbers, strings, lists and dictionaries; nan as None."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        tiers = zip(self.tier_names, self.tier_utilisation, strict=True)
        per_s = self.output_tokens_per_s
        tokens = "" if math.isnan(per_s) else f", {per_s:.4g} output tokens/s"
        of = f", of the {self.n_finished} that ended" if self.n_unfinished else ""
        lines = [
            f"{self.name or 'trace'}, {self.policy}",
            f"  requests     {self.n_requests}, of which {self.n_unfinished} never ended",
            f"  latency      {self.latency_s}{of}",
            f"  TTFT         {self.ttft_s}",
            f"  TPOT         {self.tpot_s}",
            f"  throughput   {self.requests_per_s:.4g} requests/s{tokens}"
            f"; load offered for {show_seconds(self.offered_s)}, the last end after"
            f" {show_seconds(self.observed_s)}",
        ]
        limits = self._limits()
        if limits:
            lines.append(
                f"  SLO          {self.slo_attainment:.1%} with {limits}; goodput"
                f" {self.goodput_requests_per_s:.4g} requests/s"
            )
        lines += [
            f"  busy         {self.utilisation:.1%} of the time, nodes of active tiers"
            f" {self.active_utilisation:.1%};"
            f" {', '.join(f'{name} {value:.1%}' for name, value in tiers)}"
            " (a busy node may have room in its batches)",
            f"  in flight    {self.mean_in_flight:.4g} requests on average;"
            f" {self.mean_at_nodes:.4g} counted once at each stage where they are under way,"
            f" {self.mean_waiting:.4g} of these waiting; {self.mean_batch:.4g} a batch,"
            f" {self.mean_stranded:.4g} without a node",
            f"  restarts     {self.restarts}, {self.lost_tokens} tokens lost",
        ]
        return "\n".join(lines)

    def _limits(self) -> str:
        named = (
            ("TTFT", self.ttft_slo_s),
            ("TPOT", self.tpot_slo_s),
            ("latency", self.latency_slo_s),
        )
        return ", ".join(
            f"{name} <= {show_seconds(limit)}" for name, limit in named if limit is not None
        )


def metrics(
    trace: Trace,
    *,
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    latency_slo_s: float | None = None,
) -> Metrics:
    """Summarise a trace in a few numbers.

    Parameters
    ----------
    trace : Trace
    ttft_slo_s, tpot_slo_s, latency_slo_s : float, optional
        Upper limits on the seconds to the first token, per later token, and to the end. A
        request of one token has no TPOT and keeps any limit on it. A request that never ended
        misses every limit.

    Returns
    -------
    Metrics

    Raises
    ------
    ValueError
        If a limit is not positive and finite, or is on TTFT or TPOT at flow level.
    TypeError
        If `trace` is not a Trace, or a limit is not a number.

    Examples
    --------
    >>> import hypsolve as hs
    >>> edge = hs.Tier(name="edge", nodes=(hs.Node(name="a", gpu=hs.gpu("a100-80gb")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(name="one", tiers=(edge,)),
    ...     requests=hs.workload(n_requests=50, rate_per_s=1.0),
    ... )
    >>> trace = hs.simulate(deployment, hs.Partition((0, 34)))
    >>> numbers = hs.metrics(trace, ttft_slo_s=1.0, latency_slo_s=600.0)
    >>> numbers.n_finished, numbers.slo_attainment
    (50, 1.0)
    >>> 0 < numbers.utilisation < 1
    True
    """
    valid.of_class("metrics", "trace", trace, "Trace")
    trace = trace.from_first()
    limits = {"ttft": ttft_slo_s, "tpot": tpot_slo_s, "latency": latency_slo_s}
    for name, limit in limits.items():
        if limit is None:
            continue
        limits[name] = valid.real("metrics", f"{name}_slo_s", limit, strict=True)
        if trace.level == "flow" and name != "latency":
            raise ValueError(
                f"metrics: {name}_slo_s needs a trace of level token, got one of level flow"
            )
    times = {"ttft": trace.ttft_s, "tpot": trace.tpot_s, "latency": trace.latency_s}
    finished = np.isfinite(trace.end_s)
    kept = finished.copy()
    for name, limit in limits.items():
        if limit is not None:
            kept &= ~(times[name] > limit)  # nan keeps it: a request of one token has no TPOT
    sent_s = trace.arrival_s[~np.isnan(trace.arrival_s)]  # in a closed loop some are never sent
    first_s = float(sent_s.min())
    observed_s = trace.end_of_run_s - first_s
    span_s, n = float(np.ptp(sent_s)), len(sent_s)
    offered_s = span_s * n / (n - 1) if span_s and trace.users is None else observed_s
    share = served_share(trace)
    if math.isnan(share):
        counted_s = max(observed_s, offered_s)
    else:
        counted_s = offered_s / share if share else math.inf
    n_finished, n_kept = int(finished.sum()), int(kept.sum())
    has_tokens = bool(trace.output_tokens.any())
    has_limit = any(limit is not None for limit in limits.values())
    use = [_ratio(float(busy_s), observed_s) for busy_s in trace.busy_s]
    of_tier = [np.flatnonzero(trace.node_tier == k) for k in range(len(trace.tier_names))]
    active = [n for k in trace.active_tiers for n in of_tier[k]]
    ended_s = np.where(finished, trace.end_s, trace.end_of_run_s)
    in_flight_s = float(np.nansum(np.maximum(ended_s - trace.arrival_s, 0.0)))
    series = trace.series
    at_nodes_s, waiting_s, stranded_s = (
        float(counts.sum()) * series.bin_s
        for counts in (series.n_requests, series.n_waiting, series.n_stranded)
    )
    return Metrics(
        name=trace.name,
        policy=trace.policy,
        tier_names=trace.tier_names,
        node_names=trace.node_names,
        n_requests=len(finished),
        n_finished=n_finished,
        n_unfinished=len(finished) - n_finished,
        latency_s=summary(times["latency"]),
        ttft_s=summary(times["ttft"]),
        tpot_s=summary(times["tpot"]),
        observed_s=observed_s,
        offered_s=offered_s,
        requests_per_s=_ratio(n_finished, counted_s),
        output_tokens_per_s=_ratio(
            float(trace.output_tokens[finished].sum()) if has_tokens else NAN, counted_s
        ),
        ttft_slo_s=limits["ttft"],
        tpot_slo_s=limits["tpot"],
        latency_slo_s=limits["latency"],
        slo_attainment=_ratio(n_kept, len(finished)) if has_limit else NAN,
        goodput_requests_per_s=_ratio(n_kept, counted_s) if has_limit else NAN,
        node_utilisation=tuple(use),
        tier_utilisation=tuple(_mean([use[n] for n in nodes]) for nodes in of_tier),
        utilisation=_mean(use),
        active_utilisation=_mean([use[n] for n in active]),
        mean_batch=_ratio(trace.n_visits, int(trace.n_iterations.sum())),
        mean_in_flight=_ratio(in_flight_s, observed_s),
        mean_at_nodes=_ratio(at_nodes_s, observed_s),
        mean_waiting=_ratio(waiting_s, observed_s),
        mean_stranded=_ratio(stranded_s, observed_s),
        restarts=int(trace.restarts.sum()),
        lost_tokens=int(trace.lost_tokens.sum()),
    )


def growth(trace: Trace) -> float:
    """Return how much the number of requests under way grows while requests arrive.

    The time from the first arrival to the last is cut into quarters. The growth is the mean
    number under way in the last quarter over the mean in the second one. It is near 1 if the
    network keeps up, (7 / 8) / (3 / 8) if it serves a fixed number per second and more arrive,
    and inf if all requests arrive at once.
    """
    trace = trace.from_first()
    first_s, last_s = trace.arrival_s.min(), trace.arrival_s.max()
    if last_s == first_s:
        return math.inf
    quarters = np.linspace(first_s, last_s, 5)
    end_s = np.where(np.isnan(trace.end_s), math.inf, trace.end_s)
    n_under_way = [
        np.clip(np.minimum(end_s, until) - np.maximum(trace.arrival_s, since), 0.0, None).sum()
        for since, until in ((quarters[1], quarters[2]), (quarters[3], quarters[4]))
    ]
    return float(n_under_way[1] / n_under_way[0]) if n_under_way[0] else math.nan


def served_share(trace: Trace) -> float:
    """Return the rate at which requests end over the rate at which they arrive, at most 1.

    Two signs tell that a queue builds up. The median latency of the last quarter of the
    arrivals exceeds that of the second quarter by more than `SETTLED`: requests that arrive
    within t seconds then end within t seconds plus that growth. Or the requests end, from the
    first to the last of them, at less than `ON_PACE` of the rate at which they arrive. The
    share is the lesser of both, and 1 without a sign. It is nan if nothing can be judged: if
    fewer than `MIN_TO_JUDGE` requests ended, if they arrived within less than `MIN_LATENCIES`
    median latencies, or with users in a closed loop.
    """
    trace = trace.from_first()
    order = np.argsort(trace.arrival_s, kind="stable")
    quarters = np.array_split(order, 4)
    arrival_s, latency_s = trace.arrival_s, trace.latency_s
    known = ~np.isnan(latency_s)
    early, late = (each[known[each]] for each in (quarters[1], quarters[3]))
    if known.sum() < MIN_TO_JUDGE or trace.users is not None or not (early.size and late.size):
        return NAN
    before_s, after_s = (float(np.median(latency_s[each])) for each in (early, late))
    span_s = float(np.ptp(arrival_s))
    if span_s < MIN_LATENCIES * after_s:
        return NAN
    pace = _ratio(span_s, float(np.ptp(trace.end_s[known])))
    share = pace if pace < ON_PACE and known.all() else 1.0
    if after_s > SETTLED * before_s:
        apart_s = float(np.median(arrival_s[late]) - np.median(arrival_s[early]))
        share = min(share, _ratio(apart_s, apart_s + after_s - before_s) if apart_s else 0.0)
    return share


def summary(times_s: Array) -> Summary:
    """Return the mean and the percentiles of those times that are known."""
    known = times_s[~np.isnan(times_s)]
    if not known.size:
        return Summary(n=0, mean=NAN, p50=NAN, p95=NAN, p99=NAN)
    p50, p95, p99 = np.percentile(known, (50, 95, 99)).tolist()
    return Summary(n=known.size, mean=float(known.mean()), p50=p50, p95=p95, p99=p99)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else NAN


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return finite_or_none(value)
    return value
