"""Figures of the experiment `throughput`; each draws `(DataFrame, Axes) -> Axes`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.serving.tables import BEST, MAX_MEDIAN_GAP, RATE, kinds, with_shares
from hypsolve.problem.units import count

COLOURS = ("#0072B2", "#E69F00", "#009E73")  # of lengths


def shares(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw every run as a share of the best rate of its deployment, a row per method."""
    kind = next(iter(kinds(frame)))
    n = count(frame["digest"].nunique(), "deployment")
    draw_shares(frame, ax)
    style.title(ax, f"{kind}; {n}", "0 %: the method has no split that fits")
    return ax


def draw_shares(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw shares of the best rate of a deployment or fleet, without a title."""
    table = with_shares(frame)
    medians = table.groupby("label")["share"].median().sort_values(kind="stable")
    for row, name in enumerate(medians.index[::-1]):
        values = 100 * table.loc[table["label"] == name, "share"].dropna()
        look = style.style_of(str(name))
        ax.plot(
            values, np.full(len(values), row), look["marker"], color=look["color"], alpha=0.35
        )
        if len(values):
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            ax.plot([low, high], [row, row], color="black", lw=1.2)
            ax.plot([median] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
    ax.set_yticks(range(len(medians)), [str(name) for name in medians.index[::-1]])
    ax.set_ylim(len(medians) - 0.5, -0.6)
    ax.set_xlim(-3, 103)
    ax.set_xlabel("share of the best simulated rate (%); bars: quartiles and median")
    return style.clean(ax, "x")


def gaps(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the gap of the best simulated split to the bound, a row per series."""
    runs = frame[(frame["method"] == BEST) & (frame[RATE] > 0)]
    names = list(dict.fromkeys(runs["series"]))
    lengths = sorted(set(runs["prompt_tokens"]))
    for number, prompt in enumerate(lengths):
        of_length = runs[runs["prompt_tokens"] == prompt]
        rows = [names.index(series) for series in of_length["series"]]
        output = int(of_length["output_tokens"].iloc[0])
        ax.plot(
            100 * of_length["gap"], np.array(rows) + 0.18 * (number - 1), "osD"[number % 3],
            color=COLOURS[number % 3], label=f"{prompt} + {output} tokens",
        )  # fmt: skip
    median = 100 * float(runs["gap"].median())
    ax.axvline(median, color="#555555", lw=1, ls="--", label=f"median, {median:.1f} %")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.6)
    ax.set_xlim(left=0)
    ax.set_xlabel("gap of the simulated rate to the bound on all splits (%)")
    return style.clean(ax, "x")


def throughput_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the shares of the methods, a figure per kind of network, and the gaps."""
    figures = {}
    question = "How much of the best simulated rate does the split of each method serve?"
    for kind, rows in kinds(frame).items():
        suffix = "" if kind == "named networks" else f"_{kind.split()[-1]}"
        height_in = 1.4 + 0.24 * rows["method"].nunique()
        figures[f"throughput{suffix}"] = style.single(rows, shares, height_in, question)
    named = kinds(frame).get("named networks")
    if named is not None and (named[RATE] > 0).any():
        figures["throughput_gap"] = style.single(
            named,
            gaps,
            1.2 + 0.26 * named["series"].nunique(),
            "How far is the best simulated split from the bound that no split exceeds?"
            f" (aim: a median under {MAX_MEDIAN_GAP:.0%})",
        )
    return figures
