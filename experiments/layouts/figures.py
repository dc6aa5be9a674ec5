"""Figure of the experiment `helix`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.layouts.tables import BOUND, FLOW, RATE

LABELS = {
    "stage_dp": "stage DP",
    "layer_highs": "Helix's MILP in HiGHS",
    "layer_cpsat": "Helix's MILP in CP-SAT",
    "published_helix": "Helix, published",
    "published_swarm": "Swarm, published",
    "published_petals": "Petals, published",
}
SERVED = "How many requests per second does the layout of each method serve?"
QUESTION = "How many tokens per second flow through the layout of each method?"


def flows(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the flow of each method as a share of the best bound, a row per cluster."""
    best = frame.groupby("series")[BOUND].transform("min")
    _points(frame, 100 * frame[FLOW] / best, ax)
    ax.set_xlim(-3, 103)
    ax.set_xlabel("flow, % of the best bound")
    style.title(ax, "Flow under Helix's objective", "0 %: no layout within the time limit")
    return ax


def served(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the simulated rate of each layout, a row per cluster."""
    _points(frame, frame[RATE].where(frame[RATE] > 0), ax)
    ax.set_xlim(0, 1.05 * frame[RATE].max())
    ax.set_xlabel("requests per second, simulated token by token")
    style.title(ax, "What the layouts serve", "763 + 232 tokens, batches by machine")
    return ax


def _points(frame: pd.DataFrame, values: "pd.Series[float]", ax: Axes) -> None:
    """Draw a point for each method in the row of its cluster."""
    series = list(dict.fromkeys(frame["series"]))
    methods = list(dict.fromkeys(frame["method"]))
    for m, method in enumerate(methods):
        rows = (frame["method"] == method) & values.notna()
        places = [
            series.index(name) + 0.12 * (m - len(methods) / 2 + 0.5)
            for name in frame["series"][rows]
        ]
        if places:
            ax.plot(values[rows], places, "o", ms=5, color=f"C{m}", label=LABELS[method])
    ax.set_yticks(range(len(series)), series)
    ax.invert_yaxis()
    ax.legend(fontsize="small", loc="center left")
    style.clean(ax, across="x")


def helix_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the flows and the simulated rates on all clusters."""
    height_in = 1.6 + 0.7 * frame["series"].nunique()
    return {
        "helix": style.single(frame, flows, height_in, QUESTION),
        "helix_served": style.single(frame, served, height_in, SERVED),
    }
