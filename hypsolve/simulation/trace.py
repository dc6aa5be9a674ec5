"""What a simulation saw: `Trace`, with a row per request, node averages over time, visits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.optional import optional
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
    """Averages per node over bins of equal length; arrays have shape (n_nodes, n_bins).

    Exact time averages, not samples: a bin's mean times its length is the integral over it.

    Attributes
    ----------
    start_s, bin_s : float
        Bin i is from ``start_s + i * bin_s`` to ``start_s + (i + 1) * bin_s``; the last one
        ends at or after the last event, averages over its whole length, and counts nothing
        after that event.
    busy : ndarray
        Share of the time in which the node computed.
    n_requests : ndarray
        Requests dispatched to the node whose work there was not complete.
    n_waiting : ndarray
        Of these, those that had arrived and waited to be admitted: for KV cache (at flow
        level: to be started).
    kv_bytes : ndarray
        KV cache reserved.
    n_stranded : ndarray, shape (n_tiers, n_bins)
        Requests that have reached the tier and are at no node, for none that can hold its stage
        is up.
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
    """One row per (tokens of a request, stage): arrays of shape (n_visits,), as they ended.

    Attributes
    ----------
    request, node : ndarray of int
        `node` counts over the whole network.
    start_s, end_s : ndarray
        Of the iteration. Visits of one iteration share node, start and end.
    tokens : ndarray of int
        Computed: 1 in a decode, a chunk of the prompt in a prefill.
    context_tokens : ndarray of int
        Of the request, in the KV cache before.
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
        """Row of the first visit of each iteration, rising.

        Iterations of one node that take no time, at the same moment, count as one.
        """
        new = np.zeros(len(self.request), dtype=bool)
        new[:1] = True
        for array in (self.node, self.start_s, self.end_s):
            new[1:] |= array[1:] != array[:-1]
        return np.flatnonzero(new)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Trace:
    """What `hypsolve.simulate` saw.

    Arrays of requests have shape (n_requests,), of visits to tiers (n_requests, n_tiers), of
    nodes (n_nodes,), over the whole network, tier by tier. Times are nan where nothing
    happened.

    Attributes
    ----------
    level : str
        ``flow`` or ``token``.
    name, policy, seed, partition
        What was simulated.
    tier_names, node_names, node_tier
        Of the network.
    arrival_s, end_s : ndarray
        A request ends when its last token is back at the request side; nan: it never ended,
        because no node was left to serve it.
    first_token_s : ndarray
        When the first token is back; nan at flow level.
    prompt_tokens, output_tokens : ndarray of int
        0 if the problem was an `Instance`.
    restarts, lost_tokens : ndarray of int
        Because of failures; tokens computed in vain, summed over stages.
    node : ndarray of int
        Node of the tier that served the request (the last one, after a restart); -1: none.
    reached_s, admitted_s, left_s : ndarray
        When the request reached the tier; when it got KV cache (at flow level: was started);
        when its last token was computed there. Of the last attempt, after a restart.
    busy_s : ndarray
        Seconds in which the node computed.
    n_iterations, n_tokens : ndarray of int
        Batches and tokens a node computed.
    n_visits : int
        (Tokens of a request, stage) pairs: the events of the simulation.
    kv_capacity_bytes : ndarray
        What a node has for KV cache, beside the weights of its stage; 0 where it holds no
        stage, inf where the stage keeps no KV cache, and at flow level.
    end_of_run_s : float
        The last end; if a request never ended, the moment after which nothing happened.
    series : Series
    visits : Visits or None
        None unless asked for.
    """

    level: str
    name: str
    policy: str
    seed: int
    partition: Partition
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
    visits: Visits | None = None

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def latency_s(self) -> Array:
        """From arrival to end."""
        return self.end_s - self.arrival_s

    @property
    def ttft_s(self) -> Array:
        """From arrival to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Array:
        """Mean seconds per token after the first; nan for requests of one token."""
        later = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return (self.end_s - self.first_token_s) / later

    @property
    def kv_share(self) -> Array:
        """`series.kv_bytes` as a share of `kv_capacity_bytes`; 0 where that is 0 or inf."""
        capacity = self.kv_capacity_bytes[:, None]
        limited = np.isfinite(capacity) & (capacity > 0)
        return np.where(limited, self.series.kv_bytes / np.where(limited, capacity, 1.0), 0.0)

    def network_node(self) -> IntArray:
        """`node`, counted over the whole network; shape (n_requests, n_tiers), -1: none."""
        first = np.searchsorted(self.node_tier, np.arange(len(self.tier_names)))
        return np.where(self.node >= 0, self.node + first, -1)

    def is_decode(self) -> NDArray[np.bool_]:
        """Which of `visits` are decodes, shape (n_visits,).

        A single token that a restarted request computes again, as the remainder of a chunk,
        counts as one too.
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
        """Sum it up; see `hypsolve.metrics`."""
        from hypsolve.simulation.metrics import metrics

        return metrics(
            self, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s, latency_slo_s=latency_slo_s
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per request.

        Columns: request, arrival_s, ttft_s, tpot_s, latency_s, end_s, prompt_tokens,
        output_tokens, restarts, lost_tokens, a column ``node_<tier>`` with the name of the node
        (None: none) per tier, extrapolated.
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
                **{f"node_{tier}": nodes[:, k] for k, tier in enumerate(self.tier_names)},
                "extrapolated": self.extrapolated,
            }
        )

    def visits_frame(self) -> pandas.DataFrame:
        """One row per visit.

        Columns: request, tier, node, start_s, end_s, tokens, context_tokens, phase (prefill or
        decode). At flow level, where a request visits each stage once and as a whole, the
        phase is request, and there are no columns of tokens.

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
        """One row per node and bin.

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
        """Draw what each node did, a row per node.

        With visits: a bar per iteration, in the colour of its phase, its height the square root
        of its batch (most batches are small); pale where bars are narrower than a pixel. Else,
        and at flow level: a bar per request that the node served, from admission to its last
        token there, in lanes where they overlap; a colour per request.

        Parameters
        ----------
        ax : Axes, optional
        start_s, end_s : float, optional
            The window to draw; default: all.
        """
        from hypsolve.simulation.plots import plot_gantt

        return plot_gantt(self, ax, start_s, end_s)

    def plot_series(self, quantity: str = "busy", ax: Axes | None = None) -> Axes:
        """Draw a quantity over time, a row per node.

        Parameters
        ----------
        quantity : str
            One of `Series`: ``busy``, ``n_requests``, ``n_waiting``, ``kv_bytes``; or
            ``kv_share``, the share of its capacity that a node has reserved.
        ax : Axes, optional
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
        return (
            f"<Trace of {self.name or 'instance'} at {self.level} level,"
            f" {len(self.arrival_s)} requests, {self.n_visits} visits>"
        )

    def __str__(self) -> str:
        mark = ", extrapolated" if self.extrapolated else ""
        ended = np.isfinite(self.end_s)
        lines = [
            f"{self.name or 'instance'} at {self.level} level{mark}",
            f"  partition  {self.partition}",
            f"  policy     {self.policy}, seed {self.seed}",
            f"  requests   {len(ended)}, ended {ended.sum()}, restarts {self.restarts.sum()}",
            f"  visits     {self.n_visits} in {self.n_iterations.sum()} iterations",
        ]
        if ended.any():
            mean_s = float(self.latency_s[ended].mean())
            lines.append(f"  latency    mean {show_seconds(mean_s)}")
        return "\n".join(lines)
