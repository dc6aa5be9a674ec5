"""Figures of a `Trace`: a Gantt chart of the nodes, and quantities over time."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.simulation.trace import Trace

PHASES = {"prefill": "#0072B2", "decode": "#E69F00", "prefill and decode": "#009E73"}
QUANTITIES = {  # label and unit of a series
    "busy": ("busy", 1.0),
    "n_requests": ("requests at the node", 1.0),
    "n_waiting": ("requests waiting at the node", 1.0),
    "kv_bytes": ("KV cache reserved (GB)", 1e-9),
    "kv_share": ("KV cache reserved (share of capacity)", 1.0),
}
SHARES = ("busy", "kv_share")  # the colours run from 0 to 1
ROW = 0.86  # height of a row; the distance between two nodes is 1
MIN_HEIGHT = 0.1  # share of a row, so that a batch of one is visible


def plot_gantt(
    trace: Trace, ax: Axes | None, start_s: float | None, end_s: float | None
) -> Axes:
    """Draw a Gantt chart; see `Trace.plot_gantt`."""
    start_s, end_s = _window(trace, start_s, end_s)
    ax = _axes(trace, ax)
    by_iteration = trace.level == "token" and trace.visits is not None
    draw = _draw_iterations if by_iteration else _draw_requests
    words = draw(trace, ax, start_s, end_s)
    _node_rows(trace, ax)
    ax.set_xlim(start_s, end_s)
    ax.set_xlabel("time (s)")
    _title(trace, ax, words)
    return ax


def plot_series(trace: Trace, quantity: str, ax: Axes | None) -> Axes:
    """Draw a quantity over time; see `Trace.plot_series`."""
    label, scale = QUANTITIES[valid.known("quantity", quantity, QUANTITIES)]
    ax = _axes(trace, ax)
    series = trace.series
    values = (trace.kv_share if quantity == "kv_share" else getattr(series, quantity)) * scale
    edges_s = series.start_s + series.bin_s * np.arange(values.shape[1] + 1)
    largest = 1.0 if quantity in SHARES else float(values.max(initial=0.0)) or 1.0
    shown = np.ma.masked_equal(values, 0.0)  # white
    rows = np.arange(len(values) + 1) - 0.5
    mesh = ax.pcolormesh(edges_s, rows, shown, cmap="YlGnBu", vmin=0, vmax=largest)
    ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.01, fraction=0.05)
    _node_rows(trace, ax)
    ax.set_xlim(edges_s[0], edges_s[-1])
    ax.set_xlabel("time (s)")
    _title(trace, ax, f"mean over {series.bin_s:.3g} s")
    return ax


def _window(trace: Trace, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    first_s = float(np.nanmin(trace.arrival_s))
    start = first_s if start_s is None else valid.real("plot_gantt", "start_s", start_s)
    end = trace.end_of_run_s if end_s is None else valid.real("plot_gantt", "end_s", end_s)
    if end <= start:
        if end_s is None and start_s is None:
            return start, start + 1.0  # the run took no time
        raise ValueError(f"plot_gantt: end_s must be above start_s = {start:g}, got {end:g}")
    return start, end


def _axes(trace: Trace, ax: Axes | None) -> Axes:
    if ax is not None:
        return valid.of_type("plot", "ax", ax, optional("matplotlib.axes").Axes)
    height = 1.4 + 0.3 * len(trace.node_names)
    _, ax = optional("matplotlib.pyplot").subplots(figsize=(10, height), layout="constrained")
    return ax


def _node_rows(trace: Trace, ax: Axes) -> None:
    n_nodes = len(trace.node_names)
    height = ax.get_window_extent().height * 72 / ax.figure.dpi
    size = min(8.0, max(0.85 * height / n_nodes, 3.0))
    ax.set_yticks(range(n_nodes), labels=trace.node_names, fontsize=size)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(n_nodes - 0.5, -0.5)
    for n in np.flatnonzero(np.diff(trace.node_tier)):
        ax.axhline(n + 0.5, color="#666666", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)


def _title(trace: Trace, ax: Axes, words: str) -> None:
    mark = "extrapolated" if trace.extrapolated else ""
    whole = [trace.name, trace.policy, words, mark]
    pad = 6 if ax.get_legend() is None else 22  # the legend is below the title
    ax.set_title("; ".join(filter(None, whole)), fontsize=9, loc="left", pad=pad)


def _draw_iterations(trace: Trace, ax: Axes, start_s: float, end_s: float) -> str:
    """Draw a bar per iteration; return what the title says about bars."""
    visits = trace.visits
    assert visits is not None
    first = visits.first_of_iterations()
    n_decodes = _sums(trace.is_decode().astype(np.int64), first)
    batch = np.diff(np.append(first, len(visits.request)))
    starts, ends, node = visits.start_s[first], visits.end_s[first], visits.node[first]
    phase = np.where(n_decodes == 0, 0, np.where(n_decodes == batch, 1, 2))
    shown = (ends > start_s) & (starts < end_s)
    largest = int(batch[shown].max(initial=1))
    height = ROW * np.maximum(np.sqrt(batch / largest), MIN_HEIGHT)
    bottom = node + ROW / 2
    handles = []
    for at, (name, colour) in enumerate(PHASES.items()):
        rows = shown & (phase == at)
        if rows.any():
            bars = (starts[rows], ends[rows], bottom[rows], bottom[rows] - height[rows])
            handles.append(_bars(ax, *bars, color=colour, label=name))
    if handles:
        ax.legend(
            handles=handles, fontsize=8, frameon=False, loc="lower left",
            bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0,
        )  # fmt: skip
    plural = "request" if largest == 1 else "requests"
    return f"height: square root of the batch, a full row is {largest} {plural}"


def _draw_requests(trace: Trace, ax: Axes, start_s: float, end_s: float) -> str:
    """Draw a bar per request, from admission to last token; return a text for the title."""
    left_s = np.where(np.isnan(trace.left_s), trace.end_of_run_s, trace.left_s)
    shown = (trace.node >= 0) & (left_s > start_s) & (trace.admitted_s < end_s)
    request, tier = np.nonzero(shown)
    node = trace.network_node()[request, tier]
    starts, ends = trace.admitted_s[request, tier], left_s[request, tier]
    lane, n_lanes = _lanes(starts, ends, node, len(trace.node_names))
    top = node - ROW / 2 + ROW * lane / n_lanes[node]
    bottom = top + ROW / n_lanes[node]
    colours = np.array(optional("matplotlib").colormaps["tab20"].colors)
    edge = {"edgecolor": "white", "linewidth": 0.4} if len(request) <= 300 else {}
    _bars(ax, starts, ends, top, bottom, facecolor=colours[request % len(colours)], **edge)
    return (
        "a bar per request"
        if trace.level == "flow"
        else "a bar per request, admission to last token"
    )


def _bars(ax: Axes, left: Array, right: Array, bottom: Array, top: Array, **style: Any) -> Any:
    """Add rectangles as one collection, which is fast for 10^5 of them."""
    corners = np.stack(
        [
            np.stack([x, y], axis=-1)
            for x, y in ((left, bottom), (left, top), (right, top), (right, bottom))
        ],
        axis=1,
    )
    style = {"linewidth": 0, "snap": False} | style  # a bar below a pixel is pale
    bars = optional("matplotlib.collections").PolyCollection(corners, **style)
    ax.add_collection(bars, autolim=False)
    return bars


def _sums(values: IntArray, first: IntArray) -> NDArray[np.int64]:
    return np.add.reduceat(values, first) if len(first) else np.zeros(0, np.int64)


def _lanes(
    starts: Array, ends: Array, node: IntArray, n_nodes: int
) -> tuple[IntArray, IntArray]:
    """Return the lowest free lane for each bar, and the number of lanes of each node."""
    free: list[list[int]] = [[] for _ in range(n_nodes)]  # free lanes
    open_bars: list[list[tuple[float, int]]] = [[] for _ in range(n_nodes)]  # (end, lane)
    n_lanes = np.zeros(n_nodes, np.int64)
    lane = np.zeros(len(starts), np.int64)
    for at in np.lexsort((ends, starts)).tolist():
        n = int(node[at])
        while open_bars[n] and open_bars[n][0][0] <= starts[at]:
            heapq.heappush(free[n], heapq.heappop(open_bars[n])[1])
        if free[n]:
            lane[at] = heapq.heappop(free[n])
        else:
            lane[at] = n_lanes[n]
            n_lanes[n] += 1
        heapq.heappush(open_bars[n], (float(ends[at]), int(lane[at])))
    return lane, np.maximum(n_lanes, 1)
