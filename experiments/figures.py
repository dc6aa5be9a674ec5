"""One function per plot, each `(DataFrame, Axes) -> Axes`.

A frame is what `experiments.report.load` reads. A method has one colour and marker everywhere
(Okabe and Ito's palette, told apart without colour too).
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import report
from experiments.figure_style import (
    _STYLE,
    _clean,
    _instances_per_point,
    _log_ticks,
    _notes,
    _objectives,
    _size_axis,
    _style,
    _title,
)
from experiments.labels import at_limit, extrapolation


def _lines(
    frame: pd.DataFrame, ax: Axes, column: str, scale: float = 1.0, *, of_time: bool = False
) -> None:
    """Median over seeds against size, a line per method; a note counts what is not as it looks.

    Lines get thinner and markers smaller in drawing order, so that of equal ones all are seen.
    Hollow points (`of_time`): medians that are lower bounds, for runs were at the time limit.
    """
    known = list(_STYLE)
    groups = sorted(  # rows come in the order in which runs ended
        frame.groupby("label", sort=False),
        key=lambda group: known.index(group[0]) if group[0] in known else len(known),
    )
    sizes = zip(
        np.linspace(3.2, 1.0, len(groups)), np.linspace(10, 5, len(groups)), strict=True
    )
    missing, late = [], []
    for (label, rows), (width, size) in zip(groups, sizes, strict=True):
        style = _style(str(label))
        median = scale * rows.groupby("value")[column].median()
        ax.plot(median.index, median, label=label, markersize=size, lw=width, **style)
        n_missing = int((~np.isfinite(rows["objective_s"])).sum())
        if n_missing:
            missing.append(f"{label} {n_missing}/{len(rows)}")
        limited = at_limit(rows)
        if of_time and limited.any():
            late.append(f"{label} {limited.sum()}/{len(rows)}")
            finished = rows[column].mask(limited, np.inf).groupby(rows["value"]).median()
            open_ended = median[np.isinf(finished) & np.isfinite(median)]
            if len(open_ended):
                hollow = style | {"linestyle": "none", "markerfacecolor": "white"}
                ax.plot(open_ended.index, open_ended, markersize=size, **hollow)
    _notes(ax, {"without answer": missing, "hollow: at least, runs at the limit": late})
    ax.legend(fontsize=7, frameon=False)


def gap_against_size(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Gap to the best proven bound against instance size, one series; median over seeds."""
    _lines(report.with_best_bound(frame), ax, "best_gap", 100)
    _size_axis(frame, ax)
    ax.set_ylabel("gap to best bound (%)")
    ax.set_ylim(-0.02 * ax.get_ylim()[1])
    return _clean(ax)


def gap_distribution(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Every run's gap to the best proven bound, a row per method, its median as a bar."""
    table = report.with_best_bound(frame)
    names = []
    for row, (label, runs) in enumerate(table.groupby("label", sort=False)):
        gaps = 100 * runs["best_gap"].dropna()
        style = _style(str(label))
        ax.plot(
            gaps,
            np.full(len(gaps), row),
            style["marker"],
            color=style["color"],
            alpha=0.5,
            ms=5,
        )
        if len(gaps):
            ax.plot([gaps.median()] * 2, [row - 0.3, row + 0.3], color="black", lw=1.5)
        missing = len(runs) - len(gaps)
        names.append(
            f"{label}\n{missing} of {len(runs)} without answer" if missing else str(label)
        )
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("gap to best bound (%)")
    n_instances = f"{frame['digest'].nunique()} instances, bars are medians"
    _title(ax, frame, _objectives(frame), n_instances)
    _clean(ax).grid(axis="y", visible=False)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return ax


def solve_time_against_size(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Seconds of each method against instance size, one series; median over seeds."""
    _lines(report.with_best_bound(frame), ax, "solve_time_s", of_time=True)
    ax.set_yscale("log")
    _size_axis(frame, ax)
    ax.set_ylabel("solve time (s)")
    return _clean(ax)


def time_ratio(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Solve time over HypSplit-DP's on the same instance, one series; median over seeds."""
    table = report.relative_to(frame, "solve_time_s", "hypsplit_dp")
    _lines(table, ax, "ratio", of_time=True)
    ax.set_yscale("log")
    _size_axis(frame, ax)
    ax.set_ylabel("solve time / HypSplit-DP's")
    return _clean(ax)


def latency_ratio(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Mean latency over Hyperion's on the same instance, a row per network and model.

    Geometric mean over seeds and loads of the runs that have an answer; at the right, how many
    have none.
    """
    table = report.relative_to(frame, "objective_s", "hyperion")
    rows = list(dict.fromkeys(table["series"]))
    labels = list(dict.fromkeys(table["label"]))
    for offset, label in zip(np.linspace(-0.3, 0.3, len(labels)), labels, strict=True):
        runs = table[table["label"] == label]
        ratios = np.exp(np.log(runs["ratio"]).groupby(runs["series"]).mean())
        style = _style(label) | {"linestyle": "none"}
        heights = [rows.index(series) + offset for series in ratios.index]
        ax.plot(ratios, heights, label=label, markersize=6, **style)
    for row, series in enumerate(rows):
        runs = table[table["series"] == series]
        missing = runs[~np.isfinite(runs["objective_s"])]["label"].value_counts()
        of = runs["label"].value_counts()
        note = ", ".join(f"{label} {n}/{of[label]}" for label, n in missing.items())
        if note:
            ax.annotate(
                f"infeasible: {note}", (1.01, row), xycoords=("axes fraction", "data"),
                fontsize=7, va="center",
            )  # fmt: skip
    ax.axvline(1.0, color=_STYLE["Hyperion"][0], lw=1)
    _log_ticks(ax, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("mean latency / Hyperion's")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    n_answers = table["ratio"].notna().groupby([table["series"], table["label"]]).sum()
    n_lines = -(-len(labels) // 3)  # of the legend
    words = [
        f"geometric mean of at most {n_answers.max()} runs a point",
        extrapolation(frame),
    ]
    ax.set_title("; ".join(filter(None, words)), fontsize=9, pad=10 + 13 * n_lines)
    _clean(ax).grid(axis="y", visible=False)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return ax


def speed_table(frame: pd.DataFrame, ax: Axes) -> Axes:
    """What was timed, the target, what was measured, and whether it is met."""
    cells = [
        [
            row.what,
            row.target,
            *(f"{x:.4g} {row.unit}" for x in (row.min, row.median)),
            row.repeats,
            row.met,
        ]
        for row in frame.itertuples()
    ]
    ax.set_axis_off()
    table = ax.table(
        cells,
        colLabels=["what", "target", "min", "median", "repeats", "met"],
        colWidths=[0.52, 0.11, 0.11, 0.11, 0.07, 0.06],
        cellLoc="left",
        loc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#DDDDDD")
        cell.PAD = 0.02
        cell.set_text_props(ha="left", weight="bold" if row == 0 else "normal")
    return ax


_PHASE = {"prefill": ("#0072B2", "o"), "decode": ("#D55E00", "^")}


def calibration_errors(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Mean absolute error per GPU, phase and cost model, on the rows profiles are fitted to."""
    fitted = frame[frame["fitted"]]
    gpus = sorted(fitted["gpu"].unique())
    for (cost_model, phase), rows in fitted.groupby(["cost_model", "phase"]):
        colour, marker = _PHASE.get(str(phase), ("#999999", "s"))
        face = colour if cost_model == "roofline" else "none"
        heights = [gpus.index(gpu) for gpu in rows["gpu"]]
        label = f"{phase}, {cost_model}"
        ax.plot(100 * rows["mape"], heights, marker, color=colour, mfc=face, label=label)
    ax.set_yticks(range(len(gpus)), gpus, fontsize=8)
    ax.invert_yaxis()
    _log_ticks(ax, (1, 2, 5, 10, 20, 50, 100))
    ax.set_xlabel("mean absolute error of block times (%)")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    _clean(ax)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return ax


def calibration_scatter(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Predicted against measured block time, one cost model; points are means of groups."""
    for (phase, fitted), rows in frame.groupby(["phase", "fitted"]):
        colour, marker = _PHASE.get(str(phase), ("#999999", "s"))
        label = f"{phase}, {'fitted' if fitted else 'other sources'}"
        face = colour if fitted else "none"
        ax.plot(
            rows["measured_s"], rows["predicted_s"], marker,
            color=colour, mfc=face, ms=4, alpha=0.7, label=label,
        )  # fmt: skip
    ends = [frame["measured_s"].min(), frame["measured_s"].max()]
    ax.plot(ends, ends, color="black", lw=1)
    ax.loglog()
    ax.set_xlabel("measured block time (s)")
    ax.set_ylabel("predicted (s)")
    ax.legend(fontsize=7, frameon=False)
    return _clean(ax)


def panels(frame: pd.DataFrame, draw: Callable[[pd.DataFrame, Axes], Axes]) -> Figure:
    """Draw each series of a frame in a panel of its own, with one legend."""
    names = list(dict.fromkeys(frame["series"]))
    n_columns = len(names) if len(names) < 4 else 2 if len(names) == 4 else 3
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(5.2 * n_columns, 3.4 * n_rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    entries = {}
    for name, ax in zip(names, axes.flat, strict=False):
        rows = frame[frame["series"] == name]
        draw(rows, ax)
        if "digest" in rows:
            _title(ax, rows, f"{_objectives(rows)}, {name}", _instances_per_point(rows))
        else:
            _title(ax, rows, name)
        entries.update(dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)))
        ax.get_legend().remove()  # one for all panels
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=5, frameon=False
    )
    return figure


def _single(
    frame: pd.DataFrame, draw: Callable[[pd.DataFrame, Axes], Axes], width: float, height: float
) -> Figure:
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    draw(frame, ax)
    return figure


def gap_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Gap and time against size: joint methods, the same at scale, and partition methods."""
    figures = {}
    for kind, rows in report.gap_kinds(frame).items():
        n_methods = len(rows[["method", "options"]].drop_duplicates())
        figures[f"gap_{kind}"] = panels(rows, gap_against_size)
        figures[f"gap_{kind}_time"] = panels(rows, solve_time_against_size)
        figures[f"gap_{kind}_distribution"] = _single(
            rows, gap_distribution, 7, 1 + 0.45 * n_methods
        )
    return figures


def solve_time_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Seconds and ratios against size."""
    return {
        "solve_time": panels(frame, solve_time_against_size),
        "solve_time_ratio": panels(frame, time_ratio),
    }


def latency_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Mean latency relative to Hyperion's."""
    return {"latency": _single(frame, latency_ratio, 8, 1.5 + 0.55 * frame["series"].nunique())}


def anytime(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Objective (above 0) and bound (below 0) over time, of `report.traces`; a line per run.

    Percent of the best known objective. A method is done where its lines end.
    """
    for (label, _), run in frame.groupby(["label", "seed"], sort=False):
        style = _style(str(label)) | {"marker": "none"}
        for column, sign in (("above", 1), ("below", -1)):
            ax.plot(
                run["elapsed_s"], sign * run[column], drawstyle="steps-post", lw=1.2,
                label=label if sign > 0 else None, **style,
            )  # fmt: skip
        ends = [run["above"].iloc[-1], -run["below"].iloc[-1]]
        ax.plot([run["elapsed_s"].iloc[-1]] * 2, ends, ".", ms=5, color=style["color"])
    ax.axhline(0.0, color="#666666", lw=0.6)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=0.1)
    ticks = [-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("elapsed (s)")
    ax.set_ylabel("% of the best objective")
    ax.legend(fontsize=7, frameon=False)
    return _clean(ax)


def joint_frontier_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Gap and time against size, and how each came about: methods; then parts left out."""
    whole = frame["options"] == "{}"
    n_values = frame.groupby("series")["value"].transform("nunique")
    sizes = frame[whole & (n_values > 1)]
    figures = {}
    if len(sizes):
        figures["joint_frontier_gap"] = panels(sizes, gap_against_size)
        figures["joint_frontier_time"] = panels(sizes, solve_time_against_size)
    rivals = frame[frame["method"] == "joint_cpsat"]
    compared = whole & frame["digest"].isin(rivals["digest"]) & (frame["method"] != "hyperion")
    if compared.any():
        figures["joint_frontier"] = panels(report.traces(frame[compared]), anytime)
    parts = frame["digest"].isin(frame[~whole]["digest"]) & (frame["method"] == "joint_exact")
    if parts.any():
        figures["joint_frontier_parts"] = panels(report.traces(frame[parts]), anytime)
    return figures


def speed_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """The table of speeds."""
    return {"speed": _single(frame, speed_table, 12, 0.6 + 0.32 * len(frame))}


def calibration_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Errors per GPU."""
    return {
        "calibration": _single(
            frame, calibration_errors, 7, 1.2 + 0.28 * frame[frame["fitted"]]["gpu"].nunique()
        )
    }


def calibration_points_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Predicted against measured, a panel per cost model."""
    by_model = frame.assign(series=frame["cost_model"]).sort_values("series", ascending=False)
    return {"calibration_points": panels(by_model, calibration_scatter)}


FIGURES: dict[str, Callable[[pd.DataFrame], dict[str, Figure]]] = {
    "gap": gap_figures,
    "solve_time": solve_time_figures,
    "latency": latency_figures,
    "joint_frontier": joint_frontier_figures,
    "speed": speed_figures,
    "calibration": calibration_figures,
    "calibration_points": calibration_points_figures,
}
