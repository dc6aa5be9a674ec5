"""Figures of the experiment `placement`; each draws `(DataFrame, Axes) -> Axes`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.serving.figures import draw_shares
from hypsolve.problem.units import count

QUESTION = "How much of the best simulated rate does the placement of each method serve?"


def shares(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw every run as a share of the best rate of its fleet, a row per method."""
    draw_shares(frame, ax)
    machines = sorted(set(frame["value"]))
    n = count(frame["digest"].nunique(), "fleet")
    sizes = " to ".join(map(str, dict.fromkeys((machines[0], machines[-1]))))
    style.title(ax, f"{n} of {sizes} machines", "0 %: the method has no placement")
    return ax


def placement_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the shares of the methods over all fleets."""
    height_in = 1.4 + 0.24 * frame["method"].nunique()
    return {"placement": style.single(frame, shares, height_in, QUESTION)}
