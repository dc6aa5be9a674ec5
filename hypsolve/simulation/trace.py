"""`Trace`: the record of a simulation, by request, by node over time, and by visit."""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.optional import optional
from hypsolve.problem.placement import Placement
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import show_seconds

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from hypsolve.simulation.metrics import Metrics


def _freeze(record: object) -> None:
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Time averages of each node over bins of equal length; shape (n_nodes, n_bins).

    The averages are exact, not sampled: a bin's average times its length is the integral over
    the bin.

    Attributes
    ----------
    start_s, bin_s : float
        Bin i is from ``start_s + i * bin_s`` to ``start_s + (i + 1) * bin_s``. The last bin
        ends at or after the last event; after that event it counts zero, but it averages over
        its whole length.
    busy : ndarray
        Share of the time in which the node computes.
    n_requests : ndarray
        Number of requests that were dispatched to the node and whose work there is not
        complete.
    n_waiting : ndarray
        Number of those that have arrived and wait for admission (at flow level: for their
        start).
    kv_bytes : ndarray
        KV cache that requests hold, reserved or in blocks.
    n_stranded : ndarray, shape (n_tiers, n_bins)
        Number of requests that have reached the tier and are at no node, because none that can
        hold its stage is up.
    """

    start_s: float
    bin_s: float
    busy: Array
    n_requests: Array
    n_waiting: Array
    kv_bytes: Array
    n_stranded: Array

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def mid_s(self) -> Array:
        """Middle of each bin, shape (n_bins,)."""
        bins = np.arange(self.busy.shape[1], dtype=np.float64)
        return self.start_s + self.bin_s * (bins + 0.5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visits:
    """Table with one row per visit, in the order in which the visits ended.

    A visit is a decode token, or a chunk of a prompt, at a stage. Under the batching mode
    ``serial`` with `micro_batch_tokens`, a chunk may be cut into several visits.

    All arrays have shape (n_visits,).

    Attributes
    ----------
    request, node : ndarray of int
        Indices; nodes are numbered over the whole network.
    start_s, end_s : ndarray
        Start and end of the iteration. Visits of one iteration share node, start and end.
    tokens : ndarray of int
        Tokens computed: 1 in a decode, a chunk of the prompt in a prefill.
    context_tokens : ndarray of int
        Tokens of the request that were in the KV cache before.
    """

    request: IntArray
    node: IntArray
    start_s: Array
    end_s: Array
    tokens: IntArray
    context_tokens: IntArray

    def __post_init__(self) -> None:
        _freeze(self)

    def first_of_iterations(self) -> IntArray:
        """Return the rows of the first visit of each iteration, in increasing order.

        Iterations of one node that take no time, at one moment, count as one.
        """
        new = np.zeros(len(self.request), dtype=bool)
        new[:1] = True
        for array in (self.node, self.start_s, self.end_s):
            new[1:] |= array[1:] != array[:-1]
        return np.flatnonzero(new)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Trace:
    """Record of a simulation, as `hypsolve.simulate` returns it.

    An array with a value per request has shape (n_requests,). An array with a value per request
    and tier has shape (n_requests, n_tiers). An array with a value per node has shape
    (n_nodes,), and its nodes are numbered over the whole network, tier by tier. A time is nan
    if the event never happened.

    Attributes
    ----------
    level : str
        ``flow`` or ``token``.
    name, policy, seed
        Inputs of the simulation.
    partition : Partition or Placement
        A placement if `hypsolve.simulate_placement` made the trace, which says what its tiers
        and nodes are.
    tier_names, node_names : tuple of str
        Names of the tiers, and of all nodes, tier by tier.
    node_tier : ndarray of int
        Tier of each node.
    arrival_s, end_s : ndarray
        A request ends when its last token is delivered at the request side. nan: it never
        ended, because no node was left to serve it; or, in a closed loop, it was never sent.
    first_token_s : ndarray
        Time at which the first token is delivered; nan at flow level.
    prompt_tokens, output_tokens : ndarray of int
        0 if the problem was an `Instance`.
    restarts, lost_tokens : ndarray of int
        Number of restarts of the request after failures, and number of tokens whose computation
        was lost, summed over stages.
    preemptions : ndarray of int
        Number of times that the request was preempted because KV cache ran out. What was
        computed in vain is counted in `lost_tokens`, too.
    node : ndarray of int
        Index within the tier of the node that served the request, -1 if none did. After a
        restart it is the node of the last attempt.
    reached_s, admitted_s, left_s : ndarray
        Times at which the request reached the tier, got KV cache there (at flow level: was
        started), and had its last token computed there. After a restart or a preemption they
        are those of the last attempt. In a pipeline a request reaches all tiers at once.
    busy_s : ndarray
        Time that the node spent computing, in seconds.
    n_iterations, n_tokens : ndarray of int
        Iterations that the node ran, and tokens that it computed.
    n_visits : int
        Number of visits: a decode token, or a chunk of a prompt, at a stage.
    kv_capacity_bytes : ndarray
        Memory left for KV cache after the weights of the stage. 0 where a node holds no stage;
        inf where the stage keeps no KV cache, and at flow level.
    end_of_run_s : float
        Time at which the last request ended; if one never ended, time of the last event.
    series : Series
    users : int or None
        Users of a closed loop; None: requests arrived as the deployment says.
    visits : Visits or None
        None unless recorded.
    since_first : Trace or None
        The same record with all times counted from the first arrival. Differences of times are
        exact there, whatever the time of day; None: this record counts so itself.

    Examples
    --------
    >>> import hypsolve as hs
    >>> edge = hs.Tier(name="edge", nodes=(hs.Node(name="a", gpu=hs.gpu("a100-80gb")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(name="one", tiers=(edge,)),
    ...     requests=hs.Requests([0.0, 0.1], [512, 128], [16, 64]),
    ... )
    >>> trace = hs.simulate(deployment, hs.Partition((0, 34)))
    >>> trace
    <Trace of llama-3-8b @ one at token level: hypsched_rt, 2 requests, 2 ended, 80 visits>
    >>> bool(trace.ttft_s[1] < trace.latency_s[1])
    True
    """

    level: str
    name: str
    policy: str
    seed: int
    partition: Partition | Placement
    tier_names: tuple[str, ...]
    node_names: tuple[str, ...]
    node_tier: IntArray
    arrival_s: Array
    end_s: Array
    first_token_s: Array
    prompt_tokens: IntArray
    output_tokens: IntArray
    restarts: IntArray
    lost_tokens: IntArray
    preemptions: IntArray
    node: IntArray
    reached_s: Array
    admitted_s: Array
    left_s: Array
    busy_s: Array
    n_iterations: IntArray
    n_tokens: IntArray
    n_visits: int
    kv_capacity_bytes: Array
    end_of_run_s: float
    series: Series
    extrapolated: bool = False
    users: int | None = None
    visits: Visits | None = None
    since_first: Trace | None = None

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def latency_s(self) -> Array:
        """Return the seconds from arrival to end, shape (n_requests,)."""
        times = self.from_first()
        return times.end_s - times.arrival_s

    @property
    def ttft_s(self) -> Array:
        """Return the seconds from arrival to first token (TTFT), shape (n_requests,)."""
        times = self.from_first()
        return times.first_token_s - times.arrival_s

    @property
    def tpot_s(self) -> Array:
        """Return the mean seconds per token after the first (TPOT); nan for one token."""
        times = self.from_first()
        later = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return (times.end_s - times.first_token_s) / later

    @property
    def kv_share(self) -> Array:
        """Return `series.kv_bytes` over `kv_capacity_bytes`; 0 where that is 0 or inf."""
        capacity = self.kv_capacity_bytes[:, None]
        limited = np.isfinite(capacity) & (capacity > 0)
        return np.where(limited, self.series.kv_bytes / np.where(limited, capacity, 1.0), 0.0)

    @property
    def active_tiers(self) -> list[int]:
        """Tiers that have a stage."""
        tiers = range(len(self.tier_names))
        if isinstance(self.partition, Placement):
            return list(tiers)
        return [k for k in tiers if self.partition.stage(k)]

    def from_first(self) -> Trace:
        """Return `since_first`, or this record where it is None."""
        return self if self.since_first is None else self.since_first

    def network_node(self) -> IntArray:
        """Return `node` numbered over the whole network; -1: none."""
        first = np.searchsorted(self.node_tier, np.arange(len(self.tier_names)))
        return np.where(self.node >= 0, self.node + first, -1)

    def is_decode(self) -> NDArray[np.bool_]:
        """Return which of `visits` are decodes, shape (n_visits,).

        If a restarted request computes a single token again, as the remainder of a chunk, that
        visit counts as a decode, too.

        Raises
        ------
        ValueError
            If the visits were not recorded.
        """
        visits = self._recorded("is_decode")
        later = visits.context_tokens >= self.prompt_tokens[visits.request]
        return later & (visits.tokens == 1)

    def metrics(
        self,
        *,
        ttft_slo_s: float | None = None,
        tpot_slo_s: float | None = None,
        latency_slo_s: float | None = None,
    ) -> Metrics:
        """Summarise the trace; see `hypsolve.metrics`."""
        from hypsolve.simulation.metrics import metrics

        return metrics(
            self, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s, latency_slo_s=latency_slo_s
        )

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with one row per request.

        Columns: request, arrival_s, ttft_s, tpot_s, latency_s, end_s, prompt_tokens,
        output_tokens, restarts, lost_tokens, preemptions; for each tier ``node_<tier>``, the
        name of the node or None; extrapolated.
        """
        pd = optional("pandas")
        names = np.array([*self.node_names, None], dtype=object)  # -1: the last one
        nodes = names[self.network_node()]
        return pd.DataFrame(
            {
                "request": np.arange(len(self.arrival_s)),
                "arrival_s": self.arrival_s,
                "ttft_s": self.ttft_s,
                "tpot_s": self.tpot_s,
                "latency_s": self.latency_s,
                "end_s": self.end_s,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
                "restarts": self.restarts,
                "lost_tokens": self.lost_tokens,
                "preemptions": self.preemptions,
                **{f"node_{tier}": nodes[:, k] for k, tier in enumerate(self.tier_names)},
                "extrapolated": self.extrapolated,
            }
        )

    def visits_frame(self) -> pandas.DataFrame:
        """Return a table with one row per visit.

        Columns: request, tier, node, start_s, end_s, tokens, context_tokens, phase (prefill or
        decode). At flow level a request visits each stage once and as a whole: the phase is
        ``request``, and the columns tokens and context_tokens are left out.

        Raises
        ------
        ValueError
            At token level, if the visits were not recorded.
        """
        pd = optional("pandas")
        columns: dict[str, NDArray] = {}
        if self.level == "flow":
            request, tier = np.nonzero(self.node >= 0)
            node = self.network_node()[request, tier]
            times = (self.admitted_s[request, tier], self.left_s[request, tier])
            phase = np.full(len(request), "request", dtype=object)
        else:
            visits = self._recorded("visits_frame")
            request, node, times = visits.request, visits.node, (visits.start_s, visits.end_s)
            columns = {"tokens": visits.tokens, "context_tokens": visits.context_tokens}
            phase = np.where(self.is_decode(), "decode", "prefill").astype(object)
        columns = {
            "request": request,
            "tier": np.array(self.tier_names, dtype=object)[self.node_tier[node]],
            "node": np.array(self.node_names, dtype=object)[node],
            "start_s": times[0],
            "end_s": times[1],
            **columns,
            "phase": phase,
        }
        return pd.DataFrame(columns)

    def series_frame(self) -> pandas.DataFrame:
        """Return a table with one row per node and bin.

        Columns: node, tier, mid_s, busy, n_requests, n_waiting, kv_bytes, kv_share.
        """
        pd = optional("pandas")
        n_nodes, n_bins = self.series.busy.shape
        tiers = np.array(self.tier_names, dtype=object)[self.node_tier]
        return pd.DataFrame(
            {
                "node": np.repeat(np.array(self.node_names, dtype=object), n_bins),
                "tier": np.repeat(tiers, n_bins),
                "mid_s": np.tile(self.series.mid_s, n_nodes),
                "busy": self.series.busy.ravel(),
                "n_requests": self.series.n_requests.ravel(),
                "n_waiting": self.series.n_waiting.ravel(),
                "kv_bytes": self.series.kv_bytes.ravel(),
                "kv_share": self.kv_share.ravel(),
            }
        )

    def plot_gantt(
        self,
        ax: Axes | None = None,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Axes:
        """Draw a Gantt chart with one row per node.

        If the visits were recorded, a bar is an iteration. Its colour shows the phase, and its
        height the square root of the batch size, because most batches are small. Bars that are
        narrower than a pixel look pale. Otherwise, and at flow level, a bar is a request at the
        node, from admission to its last token there. Bars that overlap lie in lanes, and each
        request has a colour.

        Parameters
        ----------
        ax : Axes, optional
            Default: a new figure.
        start_s, end_s : float, optional
            Window to draw; default: the whole run.

        Returns
        -------
        Axes
        """
        from hypsolve.simulation.plots import plot_gantt

        return plot_gantt(self, ax, start_s, end_s)

    def plot_series(self, quantity: str = "busy", ax: Axes | None = None) -> Axes:
        """Draw a quantity over time as colours, with one row per node.

        Parameters
        ----------
        quantity : str
            ``busy``, ``n_requests``, ``n_waiting`` or ``kv_bytes`` of `Series`; or
            ``kv_share``, the reserved share of the KV cache.
        ax : Axes, optional
            Default: a new figure.

        Returns
        -------
        Axes
        """
        from hypsolve.simulation.plots import plot_series

        return plot_series(self, quantity, ax)

    def _recorded(self, owner: str) -> Visits:
        if self.visits is None:
            raise ValueError(
                f"{owner}: the visits of this trace were not recorded; simulate with"
                " record_visits=True"
            )
        return self.visits

    def __repr__(self) -> str:
        n_ended = int(np.isfinite(self.end_s).sum())
        return (
            f"<Trace of {self.name or 'instance'} at {self.level} level: {self.policy},"
            f" {len(self.arrival_s)} requests, {n_ended} ended, {self.n_visits} visits>"
        )

    def __str__(self) -> str:
        return "\n".join(
            [self._title(), *(f"  {name:<9}  {text}" for name, text in self._summary().items())]
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self._summary().items()
        )
        return f"<table><caption>{html.escape(self._title())}</caption>{rows}</table>"

    def _title(self) -> str:
        mark = ", extrapolated" if self.extrapolated else ""
        return f"{self.name or 'instance'} at {self.level} level{mark}"

    def _split(self) -> dict[str, str]:
        """Return the text of the partition, or of each pipeline of a placement."""
        if isinstance(self.partition, Partition):
            return {"partition": str(self.partition)}
        pipelines = enumerate(self.partition.pipelines)
        return {f"pipeline {p}": str(pipeline) for p, pipeline in pipelines}

    def _summary(self) -> dict[str, str]:
        """Return what `str` and notebooks show: a text for each name."""
        ended = np.isfinite(self.end_s)
        summary = {
            **self._split(),
            "policy": f"{self.policy}, seed {self.seed}",
            "requests": f"{len(ended)}, ended {ended.sum()}, restarts {self.restarts.sum()}",
            "visits": f"{self.n_visits} in {self.n_iterations.sum()} iterations",
        }
        for name, seconds in (("latency", self.latency_s), ("TTFT", self.ttft_s)):
            known = seconds[ended & ~np.isnan(seconds)]
            if known.size:
                summary[name] = f"mean {show_seconds(float(known.mean()))}"
        return summary
