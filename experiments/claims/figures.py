"""Plots of the claims, each `(DataFrame, Axes) -> Axes`; frames are of `report.load`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.claims.statistics import (
    HYPERION,
    LATENCY,
    SETTING,
    comparisons,
    interval,
    labelled,
    saturated,
)
from experiments.claims.tables import JOINT, PAPER
from experiments.figure_style import _clean, _notes, _size_axis, _style, _title

_AXIS = {
    "Gbit/s": "rate of the links (Gbit/s)",
    "load": "load (1: what the best cuts serve one at a time)",
    "spread": "spread of speeds within a tier",
}
_HATCH = {"Hyperion + path cuts": "////", "Hyperion + P0 cuts": "...."}
PARTS = {"compute_s": "#0072B2", "link_s": "#E69F00", "others_s": "#BBBBBB"}
_PART_NAMES = {
    "compute_s": "computing, were it alone",
    "link_s": "links",
    "others_s": "waiting for others, or slowed by them in a batch",
}


def _x_axis(frame: pd.DataFrame, ax: Axes) -> None:
    _size_axis(frame, ax)
    ax.set_xlabel(_AXIS.get(frame["axis"].iloc[0], frame["axis"].iloc[0]))


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _missing(table: pd.DataFrame) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {"infeasible": []}
    for label, rows in table.groupby("label", sort=False):
        n = int((rows["status"] == "infeasible").sum())
        if n:
            notes["infeasible"].append(f"{label} {n}/{len(rows)}")
    return notes


def latency(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Mean latency against the axis, one series: geometric mean over seeds, 95 % interval.

    Hollow points: the method cannot keep up there, so the latency says how long the run was.
    """
    table = labelled(frame)
    late = saturated(frame)
    for label, rows in table.groupby("label", sort=False):
        logs = np.log(rows["latency_s"].dropna()).groupby(rows["value"])
        if not len(logs):
            continue
        style = _style(str(label))
        mean = np.exp(logs.mean())
        ends = np.exp(np.array([interval(values) for _, values in logs]))
        ax.plot(mean.index, mean, label=label, markersize=6, lw=1.5, **style)
        ax.fill_between(mean.index, *ends.T, color=style["color"], alpha=0.15, lw=0)
        place = tuple(rows[SETTING[:2]].iloc[0])
        hollow = mean[[bool(late.get((*place, value, label), False)) for value in mean.index]]
        ax.plot(
            hollow.index, hollow, markersize=6, **{**style, "linestyle": "none"}, mfc="white"
        )
    _notes(ax, _missing(table))
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)
    _x_axis(frame, ax)
    ax.set_ylabel("mean latency (s), geometric mean over seeds")
    ax.legend(fontsize=7, frameon=False)
    return _clean(ax)


def reduction(
    frame: pd.DataFrame,
    ax: Axes,
    rivals: Sequence[str] = ("GPipe", "HEFT"),
    reference: str = HYPERION,
) -> Axes:
    """By how much the reference's latency is lower, one series; 95 % intervals over seeds.

    Dashed, with the default rivals: the paper's figures, each "up to". Hollow: one of the two
    cannot keep up.
    """
    shown = labelled(frame)["label"].isin([reference, *rivals])
    found = comparisons(frame[shown], LATENCY, reference)
    notes: dict[str, list[str]] = {"infeasible": []}
    for label in rivals:
        rows = found[found["label"] == label]
        style = _style(label)
        n_infeasible = (rows["infeasible"] + rows["both_infeasible"]).sum()
        if n_infeasible:
            notes["infeasible"].append(f"{label} {n_infeasible}/{rows['n'].sum()}")
        rows = rows.dropna(subset="change")
        change, low, high = (100 * rows[name] for name in ("change", "low", "high"))
        error = np.maximum([change - low, high - change], 0)
        ax.errorbar(
            rows["value"], change, error, label=label, markersize=6, lw=1.5, capsize=2, **style
        )
        hollow = rows["state"] != "judged"
        ax.plot(
            rows["value"][hollow], change[hollow], markersize=6, mfc="white", zorder=3,
            **{**style, "linestyle": "none"},
        )  # fmt: skip
        if label in PAPER and set(rivals) == set(PAPER):
            ax.axhline(100 * PAPER[label], color=style["color"], lw=0.8, ls="--")
    _notes(ax, notes)
    ax.axhline(0, color="black", lw=0.8)
    _x_axis(frame, ax)
    ax.set_ylabel(f"{reference}'s latency lower by (%)")
    ax.legend(fontsize=7, frameon=False)
    return _clean(ax)


def parts(frame: pd.DataFrame, ax: Axes) -> Axes:
    """What a mean latency is made of, a bar per method; mean over the seeds of one setting."""
    table = labelled(frame)
    table = table.assign(others_s=table["latency_s"] - table["compute_s"] - table["link_s"])
    means = table.groupby("label", sort=False)[list(PARTS)].mean().dropna()
    left = np.zeros(len(means))
    for name, colour in PARTS.items():
        # alone, a prompt is computed whole; in chunks its stages overlap, so it may be faster
        width = means[name].to_numpy().clip(min=0)
        ax.barh(means.index, width, left=left, color=colour, label=_PART_NAMES[name])
        left += width
    _notes(ax, _missing(table))
    ax.invert_yaxis()
    ax.set_xlabel("mean latency (s)")
    ax.legend(fontsize=7, frameon=False)
    return _across(ax)


def _across(ax: Axes) -> Axes:
    _clean(ax).grid(axis="y", visible=False)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return ax


def _left_out(state: object, reference: str) -> str:
    return str(state).replace("reference", reference).replace("rival", "it")


def gains(frame: pd.DataFrame, ax: Axes, reference: str = HYPERION) -> Axes:
    """By how much the reference is faster than each other method, a point per setting.

    Bars are medians; only settings in which both keep up, the others are counted by who cannot.
    Left of 0 the other one is faster.
    """
    found = comparisons(frame, LATENCY, reference)
    kept = found[found["state"] == "judged"]
    names = []
    for row, (label, runs) in enumerate(found.groupby("label", sort=False)):
        change = 100 * kept[kept["label"] == label]["change"].dropna()
        style = _style(str(label))
        heights = np.full(len(change), row)
        ax.plot(change, heights, style["marker"], color=style["color"], alpha=0.6, ms=5)
        if len(change):
            ax.plot([change.median()] * 2, [row - 0.3, row + 0.3], color="black", lw=1.5)
        states = runs["state"].value_counts().drop("judged", errors="ignore")
        counts = (f"{n} {_left_out(state, reference)}" for state, n in states.items())
        left_out = ", ".join(counts)
        names.append(f"{label}\nof {len(runs)}: {left_out}" if left_out else str(label))
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(f"{reference}'s latency lower by (%)")
    return _across(ax)


def utilisation(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Busy share of all GPUs, a group of bars per series, one load; 95 % intervals."""
    table = labelled(frame)
    series = list(dict.fromkeys(table["series"]))
    labels = list(dict.fromkeys(table["label"]))
    height = 0.8 / len(labels)
    for number, label in enumerate(labels):
        rows = table[table["label"] == label]
        for row, name in enumerate(series):
            shares = 100 * rows[rows["series"] == name]["utilisation"].dropna()
            at = row - 0.4 + (number + 0.5) * height
            entry = label if row == 0 else None
            if shares.empty:
                ax.plot(0, at, "x", color=_style(label)["color"], ms=4, label=entry)
                continue
            low, high = interval(shares)
            mean = shares.mean()
            ax.barh(
                at, mean, height, color=_style(label)["color"], label=entry,
                hatch=_HATCH.get(label), edgecolor="white", linewidth=0,
                xerr=[[max(mean - low, 0)], [max(high - mean, 0)]], error_kw={"lw": 0.8},
            )  # fmt: skip
    ax.set_yticks(range(len(series)), series, fontsize=8)
    ax.set_ylim(len(series) - 0.5, -0.5)
    ax.set_xlabel("busy share of all GPUs (%), x: infeasible")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return _across(ax)


def transfer(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Latency over the joint optimum's: as planned at flow level, and at token level."""
    table = labelled(frame)
    optimum = table[table["label"] == JOINT].set_index(["digest"])[["planned_s", "latency_s"]]
    for label, rows in table[table["label"] != JOINT].groupby("label", sort=False):
        base = optimum.loc[rows["digest"]]
        ratios = rows[["planned_s", "latency_s"]].to_numpy() / base.to_numpy()
        style = _style(str(label)) | {"linestyle": "none"}
        ax.plot(*ratios.T, label=label, ms=5, alpha=0.6, **style)
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="black", lw=0.8)
    ax.axhline(1, color="black", lw=0.8, ls="--")
    ax.loglog()
    _plain_ticks(ax.xaxis)
    _plain_ticks(ax.yaxis)
    ax.set_xlabel(f"flow level: mean latency over {JOINT}'s")
    ax.set_ylabel("token level")
    ax.legend(fontsize=7, frameon=False)
    return _clean(ax)


def forest(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The table of claims: median with interval, best (triangle), the paper's figure (bar).

    In brackets: cases in which it holds of those judged; settings judged of those planned.
    Reductions and differences alone; gains are on another scale, and slopes are per step.
    """
    one_scale = table["measure"].isin(["reduction", "difference"])
    judged = table[(table["cases"] > 0) & one_scale].reset_index(drop=True)
    if ax is None:
        size = (9, 1 + 0.38 * len(judged))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    for row, claim in judged.iterrows():
        low, high = 100 * claim["median_low"], 100 * claim["median_high"]
        ax.plot([low, high], [row, row], color="#0072B2", lw=2)
        ax.plot(100 * claim["median"], row, "o", color="#0072B2", ms=5)
        ax.plot(100 * claim["best"], row, ">", color="#0072B2", mfc="white", ms=5)
        if np.isfinite(claim["paper"]):
            ax.plot([100 * claim["paper"]] * 2, [row - 0.35, row + 0.35], color="#D55E00", lw=2)
    names = [
        f"{claim.claim}\n{claim.reference} against {claim.against}"
        f" ({claim.holds} of {claim.cases}; {claim.settings} of {claim.settings_planned})"
        for claim in judged.itertuples()
    ]
    ax.set_yticks(range(len(judged)), names, fontsize=6.5)
    ax.set_ylim(len(judged) - 0.5, -0.5)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("latency lower, or GPUs busier, by (%)")
    words = (
        "dot and line: median over settings, 95 % interval; triangle: best setting; red: the"
        " paper's\nin brackets: holds in so many of those judged; judged of those planned"
    )
    ax.set_title(words, fontsize=7, loc="right")
    return _across(ax)


def save_forest(table: pd.DataFrame, out: Path) -> Path:
    """Draw the table of claims as ``claims.png`` in `out`; return its path."""
    figure = forest(table).figure
    figure.savefig(out / "claims.png", dpi=150)
    plt.close(figure)
    return out / "claims.png"


def panels(frame: pd.DataFrame, draw: Callable[[pd.DataFrame, Axes], Axes]) -> Figure:
    """Draw each series in a panel of its own, with one legend."""
    names = list(dict.fromkeys(frame["series"]))
    n_columns = 2 if len(names) == 4 else min(len(names), 3)
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(4.6 * n_columns, 3.3 * n_rows + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    entries = {}
    for name, ax in zip(names, axes.flat, strict=False):
        rows = frame[frame["series"] == name]
        draw(rows, ax)
        _title(ax, rows, name)
        entries.update(dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)))
        ax.get_legend().remove()
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _single(
    frame: pd.DataFrame, draw: Callable[[pd.DataFrame, Axes], Axes], n_rows: int
) -> Figure:
    figure, ax = plt.subplots(figsize=(8, 1.5 + 0.45 * n_rows), layout="constrained")
    draw(frame, ax)
    return figure


def figures_of(experiment: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """All figures of an experiment, by the name of their file."""
    if experiment == "utilisation":
        loads = {
            "": frame[np.isfinite(frame["load"])],
            "_burst": frame[np.isinf(frame["load"])],
        }
        return {
            f"utilisation{name}": _single(rows, utilisation, 1 + rows["series"].nunique())
            for name, rows in loads.items()
            if len(rows)
        }
    if experiment == "ablation":
        n_methods = labelled(frame)["label"].nunique()
        return {"ablation": _single(frame, gains, n_methods)}
    if experiment == "transfer_of_optimality":
        return {"transfer_of_optimality": panels(frame, transfer)}
    rivals: tuple[str, ...] = ("GPipe", "HEFT")
    if experiment == "churn":
        rivals = tuple(
            label for label in labelled(frame)["label"].unique() if label != HYPERION
        )
    against_rivals = partial(reduction, rivals=rivals)
    return {
        experiment: panels(frame, latency),
        f"{experiment}_reduction": panels(frame, against_rivals),
    }
