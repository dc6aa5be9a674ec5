"""Figure of the experiment `helix`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.layouts.tables import BOUND, FLOW, RATE

SERVED = "How many requests per second does the layout of each method serve?"
QUESTION = "How many tokens per second flow through the layout of each method?"


def flows(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the flow of each method as a share of the best bound, a row per cluster."""
    best = frame.groupby("series")[BOUND].transform("min")
    shares = 100 * frame[FLOW] / best
    series = list(dict.fromkeys(frame["series"]))
    methods = list(dict.fromkeys(frame["method"]))
    for m, method in enumerate(methods):
        rows = frame["method"] == method
        places = [
            series.index(name) + 0.12 * (m - len(methods) / 2) for name in frame["series"][rows]
        ]
        ax.plot(shares[rows], places, "o", ms=5, label=method.replace("_", " "))
    ax.set_yticks(range(len(series)), series)
    ax.invert_yaxis()
    ax.set_xlim(-3, 103)
    ax.set_xlabel("flow, % of the best bound")
    ax.legend(fontsize="small", loc="center left")
    style.clean(ax, across="x")
    style.title(ax, "Flow under Helix's objective", "0 %: no layout within the time limit")
    return ax


def served(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the simulated rate of each layout, a row per cluster."""
    series = list(dict.fromkeys(frame["series"]))
    methods = [
        m for m in dict.fromkeys(frame["method"]) if frame[frame.method == m][RATE].any()
    ]
    for m, method in enumerate(methods):
        rows = (frame["method"] == method) & (frame[RATE] > 0)
        places = [
            series.index(name) + 0.12 * (m - len(methods) / 2) for name in frame["series"][rows]
        ]
        ax.plot(frame[RATE][rows], places, "o", ms=5, label=method.replace("_", " "))
    ax.set_yticks(range(len(series)), series)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("requests per second, simulated token by token")
    ax.legend(fontsize="small", loc="best")
    style.clean(ax, across="x")
    style.title(ax, "What the layouts serve", "763 + 232 tokens, batches by machine")
    return ax


def helix_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the flows and the simulated rates on all clusters."""
    height_in = 1.6 + 0.7 * frame["series"].nunique()
    return {
        "helix": style.single(frame, flows, height_in, QUESTION),
        "helix_served": style.single(frame, served, height_in, SERVED),
    }
