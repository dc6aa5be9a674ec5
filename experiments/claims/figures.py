"""Figures of the claims' experiments, each draws `(DataFrame, Axes) -> Axes`.

`experiments.report.load` reads the frames.
"""

import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments import figure_style as style
from experiments.claims.statements import JOINT, PAPER
from experiments.claims.statistics import (
    HYPERION,
    LATENCY,
    SETTING,
    comparisons,
    interval,
    saturated,
)
from experiments.figure_style import panels, single
from experiments.figures import only
from experiments.labels import extrapolation
from experiments.report import labelled

METHODS = (
    "Hyperion", "Hyperion + path cuts", "Hyperion + P0 cuts", "GPipe", "HEFT"
)  # fmt: skip
RULES = ("Hyperion", "HypSplit-DP + round robin", "HypSplit-DP + shortest queue", "HEFT",
         "HypSplit-DP + earliest completion", "GPipe")  # fmt: skip
CHURN_METHODS = ("Hyperion", "HypSplit-DP + without estimate", "HypSplit-DP + round robin",
                 "HypSplit-DP + shortest queue", "HypSplit-DP + earliest completion",
                 "HEFT")  # fmt: skip
SHOWN = {"heterogeneity": RULES, "churn": CHURN_METHODS}
INTERVAL = "geometric mean over seeds, 95 % interval"
CANNOT = "cannot keep up with the arrivals"
PARTS = {"compute_s": "#0072B2", "link_s": "#E69F00", "others_s": "#BBBBBB"}
_PART_NAMES = {
    "compute_s": "computing alone",
    "link_s": "links",
    "others_s": "waiting, and batches shared with others",
}


def _plain_ticks(axis: Axis) -> None:
    """Put as many ticks on a logarithmic axis as its range has room for."""
    low, high = axis.get_view_interval()
    ratio = high / low
    subs = (1, 2, 3, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 200 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _infeasible(table: pd.DataFrame) -> dict[str, list[str]]:
    """Count the runs whose plan does not fit, by method."""
    counts = []
    for label, rows in table.groupby("label", sort=False):
        n = int((rows["status"] == "infeasible").sum())
        if n:
            counts.append(f"{label} {n}/{len(rows)}")
    return {"does not fit": counts}


def latency(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw mean latencies against the axis, of one series: geometric mean, 95 % interval.

    Hollow points: the method cannot keep up, so the latency depends on the length of the run.
    """
    table = labelled(frame)
    late = saturated(frame)
    style.size_axis(frame, ax)
    best: dict[float, tuple[float, str]] = {}
    for label in style.in_order(table["label"].unique()):
        rows = table[table["label"] == label]
        logs = np.log(rows["latency_s"].dropna()).groupby(rows["value"])
        if not len(logs):
            continue
        look = style.style_of(label)
        mean = np.exp(logs.mean())
        ends = np.exp(np.array([interval(values) for _, values in logs]))
        ax.plot(mean.index, mean, label=label, lw=1.2, **look)
        ax.fill_between(mean.index, *ends.T, color=look["color"], alpha=0.15, lw=0)
        place = tuple(rows[SETTING[:2]].iloc[0])
        hollow = mean[[bool(late.get((*place, value, label), False)) for value in mean.index]]
        ax.plot(hollow.index, hollow, **look | {"linestyle": "none", "mfc": "white"})
        if len(hollow):
            style.explain_hollow(ax, CANNOT)
        for value, seconds in mean.items():
            best[value] = min(best.get(value, (np.inf, "")), (seconds, label))  # type: ignore[index]
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)
    ax.set_ylabel("mean latency (s)")
    style.legend(ax)
    style.notes(ax, _infeasible(table))
    fastest = pd.Series([label for _, label in best.values()]).value_counts()
    name, n = next(iter(fastest.items()), ("", 0))
    answer = f"fastest at {n} of {len(best)} values: {name}" if n else ""
    style.title(ax, str(frame["series"].iloc[0]), answer, extrapolation(frame))
    return style.clean(ax)


def reduction(
    frame: pd.DataFrame,
    ax: Axes,
    rivals: Sequence[str] = ("GPipe", "HEFT"),
    reference: str = HYPERION,
) -> Axes:
    """Draw by how much the reference's latency is lower, of one series; 95 % intervals.

    Dashed, with the default rivals: the paper's figures ("up to"). Hollow: one of the two
    methods cannot keep up.
    """
    shown = labelled(frame)["label"].isin([reference, *rivals])
    found = comparisons(frame[shown], LATENCY, reference)
    style.size_axis(frame, ax)
    missing, medians = [], []
    for number, label in enumerate(rivals):
        rows = found[found["label"] == label]
        look = style.style_of(label)
        n_infeasible = (rows["infeasible"] + rows["both_infeasible"]).sum()
        if n_infeasible:
            missing.append(f"{label} {n_infeasible}/{rows['n'].sum()}")
        rows = rows.dropna(subset="change")
        change, low, high = (100 * rows[name] for name in ("change", "low", "high"))
        error = np.maximum([change - low, high - change], 0)
        x = style.dodged(rows["value"], number, len(rivals), ax) if len(rows) else rows["value"]
        ax.errorbar(x, change, error, label=label, lw=1.2, elinewidth=0.8, **look)
        hollow = np.asarray(rows["state"] != "judged")
        ax.plot(
            np.asarray(x)[hollow], change[hollow], zorder=3,
            **look | {"linestyle": "none", "mfc": "white"},
        )  # fmt: skip
        if hollow.any():
            style.explain_hollow(ax, f"one of the two {CANNOT}")
        if (~hollow).any():
            medians.append(f"{label} {round(change[~hollow].median()) + 0} %")
        if label in PAPER and set(rivals) == set(PAPER):
            ax.axhline(
                100 * PAPER[label], color=look["color"], lw=0.8, ls="--",
                label=f"the paper's figure, {label}",
            )  # fmt: skip
    style.notes(ax, {"does not fit": missing})
    ax.axhline(0, color="black", lw=0.8)
    ax.set_ylabel("latency lower by (%)")
    style.legend(ax)
    answer = f"median: {', '.join(medians[:2])}" if medians else ""
    style.title(ax, str(frame["series"].iloc[0]), answer, extrapolation(frame))
    return style.clean(ax)


def parts(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the parts of the mean latency, a bar per method; mean over seeds of one setting."""
    table = labelled(frame)
    table = table.assign(others_s=table["latency_s"] - table["compute_s"] - table["link_s"])
    means = table.groupby("label", sort=False)[list(PARTS)].mean().dropna()
    left = np.zeros(len(means))
    for name, colour in PARTS.items():
        # alone, a prompt is computed whole; in chunks, its stages overlap and may be faster
        width = means[name].to_numpy().clip(min=0)
        ax.barh(means.index, width, left=left, color=colour, label=_PART_NAMES[name])
        left += width
    style.notes(ax, _infeasible(table))
    ax.invert_yaxis()
    ax.set_xlabel("mean latency (s)")
    style.legend(ax)
    return style.clean(ax, "x")


def _left_out(state: object, reference: str) -> str:
    return str(state).replace("reference", reference).replace("rival", "it")


def gains(frame: pd.DataFrame, ax: Axes, reference: str = HYPERION) -> Axes:
    """Draw by how much the reference is faster than each method, a point per setting.

    Only settings count in which both methods keep up; the names of the rows count the others.
    """
    found = comparisons(frame, LATENCY, reference)
    kept = found[found["state"] == "judged"]
    medians = 100 * kept.groupby("label")["change"].median().dropna()
    names = []
    in_order = medians.sort_values(ascending=False, kind="stable").index
    in_order = list(dict.fromkeys([*in_order, *found["label"]]))  # last: those without a median
    for row, label in enumerate(in_order):
        runs = found[found["label"] == label]
        change = 100 * kept[kept["label"] == label]["change"].dropna()
        look = style.style_of(str(label))
        heights = np.full(len(change), row)
        ax.plot(change, heights, look["marker"], color=look["color"], alpha=0.5)
        if len(change):
            low, median, high = np.quantile(change, [0.25, 0.5, 0.75])
            ax.plot([low, high], [row, row], color="black", lw=1.2)
            ax.plot([median] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
        states = runs["state"].value_counts().drop("judged", errors="ignore")
        counts = (f"{n} {_left_out(state, reference)}" for state, n in states.items())
        left_out = ", ".join(counts)
        names.append(f"{label}\nof {len(runs)}: {left_out}" if left_out else str(label))
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.6)
    ax.set_xlabel(f"{reference}'s latency lower by (%); left of 0 the other method is faster")
    answer = ""
    if len(medians):
        best, worst = medians.idxmax(), medians.idxmin()
        answer = (
            f"median: {medians[best]:+.0f} % against {best},"
            f" {medians[worst]:+.0f} % against {worst}"
        )
    words = "a point per setting; bars: quartiles and median"
    style.title(ax, answer, words, extrapolation(frame), width=62)
    return style.clean(ax, "x")


def utilisation(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the busy share of all GPUs, a row per series, of one load; 95 % intervals."""
    table = labelled(frame)
    series = list(dict.fromkeys(table["series"]))
    names = style.in_order(table["label"].unique())
    for offset, label in zip(np.linspace(-0.33, 0.33, len(names)), names, strict=True):
        look = style.style_of(label) | {"linestyle": "none"}
        rows = table[table["label"] == label]
        shares = 100 * rows["utilisation"].dropna()
        groups = shares.groupby(rows["series"])
        mean = groups.mean()
        ends = np.array([interval(values) for _, values in groups]).reshape(-1, 2).T
        error = np.nan_to_num(np.maximum([mean - ends[0], ends[1] - mean], 0))
        heights = [series.index(name) + offset for name in mean.index]
        ax.errorbar(mean, heights, xerr=error, label=label, elinewidth=0.8, **look)
    texts = []
    for name in series:
        of_series = table[table["series"] == name].groupby("label")["utilisation"]
        absent = [label for label, shares in of_series if shares.isna().all()]
        note = textwrap.fill(f"does not fit: {', '.join(absent)}", 34)
        texts.append(f"{name}\n{note}" if absent else name)
    ax.set_yticks(range(len(series)), texts)
    ax.set_ylim(len(series) - 0.5, -0.5)
    ax.set_xlabel("busy share of all GPUs (%)")
    style.legend(ax)
    means = table.groupby(["series", "label"])["utilisation"].mean().unstack()
    busiest = means.idxmax(axis=1).value_counts()
    counts = ", ".join(f"{label} {n}" for label, n in busiest.items())
    answer = f"busiest, of {len(means)}: {counts}"
    style.title(ax, answer, "mean over seeds, 95 % interval", extrapolation(frame), width=66)
    return style.clean(ax, "x")


def transfer(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw latencies over the joint optimum's, at token level against flow level."""
    table = labelled(frame)
    optimum = table[table["label"] == JOINT].set_index(["digest"])[["planned_s", "latency_s"]]
    below = total = 0
    for label in style.in_order(table["label"].unique()):
        rows = table[table["label"] == label]
        if label == JOINT:
            continue
        base = optimum.loc[rows["digest"]]
        ratios = rows[["planned_s", "latency_s"]].to_numpy() / base.to_numpy()
        ax.plot(*ratios.T, label=label, alpha=0.6, **style.style_of(label) | {"linestyle": ""})
        known = ratios[np.isfinite(ratios[:, 1]), 1]
        below, total = below + int((known < 1 - 1e-6).sum()), total + len(known)
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="black", lw=0.8)
    ax.axhline(1, color="black", lw=0.8, ls="--")
    ax.loglog()
    _plain_ticks(ax.xaxis)
    _plain_ticks(ax.yaxis)
    ax.set_xlabel(f"flow level: latency / {JOINT}'s")
    ax.set_ylabel("token level: the ratio")
    style.legend(ax)
    answer = f"faster than the optimum at token level: {below} of {total} runs"
    style.title(ax, str(frame["series"].iloc[0]), answer, extrapolation(frame))
    return style.clean(ax)


def latency_figures(name: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw latencies, and how much lower Hyperion's are than GPipe's and HEFT's."""
    axis = frame["axis"].iloc[0]
    return {
        name: panels(
            only(frame, SHOWN.get(name, METHODS)), latency,
            f"Which method has the lowest mean latency, by {axis}?", note=INTERVAL,
        ),
        f"{name}_reduction": panels(
            frame, reduction, f"By how much is Hyperion's latency lower, by {axis}?",
            note="mean over seeds, 95 % interval",
        ),
    }  # fmt: skip


def churn_figures(name: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw latencies under churn, and Hyperion's lead over other dispatch rules."""
    shown = only(frame, CHURN_METHODS)
    against_rules = partial(reduction, rivals=CHURN_METHODS[1:])
    return {
        name: panels(
            shown, latency, "Which dispatch rule is best when nodes slow down or fail?",
            note=INTERVAL,
        ),
        f"{name}_reduction": panels(
            shown, against_rules, "By how much is HypSched-RT faster when nodes slow or fail?",
            note="mean over seeds, 95 % interval",
        ),
    }  # fmt: skip


def utilisation_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw busy shares at a usual load, and in a burst."""
    loads = {
        ("", "at load 0.7"): frame[np.isfinite(frame["load"])],
        ("_burst", "in a burst"): frame[np.isinf(frame["load"])],
    }
    return {
        f"utilisation{suffix}": single(
            rows, utilisation, 1.6 + 0.46 * rows["series"].nunique(),
            f"Which method keeps the GPUs busier {words}?",
        )
        for (suffix, words), rows in loads.items()
        if len(rows)
    }  # fmt: skip


def ablation_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw Hyperion's lead over each of its variants."""
    height_in = 1.2 + 0.36 * labelled(frame)["label"].nunique()
    question = "Which part of Hyperion earns the gain?"
    return {"ablation": single(frame, gains, height_in, question)}


def transfer_figures(name: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw latencies relative to the joint optimum's."""
    question = "Is the joint optimum of the flow level still the best at token level?"
    return {name: panels(frame, transfer, question, height_in=2.4, note="a point per run")}
