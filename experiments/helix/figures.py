"""Figure of the experiment `helix`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.helix.tables import BOUND, FLOW

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


def helix_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the flows on all clusters."""
    height_in = 1.6 + 0.7 * frame["series"].nunique()
    return {"helix": style.single(frame, flows, height_in, QUESTION)}
