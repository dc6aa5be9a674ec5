"""Figures of the experiments that solve or calibrate; each draws `(DataFrame, Axes) -> Axes`.

`experiments.report.load` reads the frames. A figure has at most six lines; the tables beside it
(``NAME.md``) hold all methods.
"""

import re
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments import report
from experiments.figure_style import panels, single
from experiments.labels import at_limit, extrapolation, seconds

JOINT_METHODS = (
    "Hyperion", "Hyperion + path cuts", "Hyperion+", "GPipe", "HEFT", "joint CP-SAT"
)  # fmt: skip
SCALE_METHODS = (
    "Hyperion", "Hyperion+", "Hyperion+ + Lagrangian bound", "GPipe", "HEFT", "joint exact"
)  # fmt: skip
PARTITION_METHODS = (
    "HypSplit-DP", "even split", "HEFT cuts", "memory-proportional", "speed-proportional",
    "DeepSpeed balanced",
)  # fmt: skip
EXACT_METHODS = ("HypSplit-DP", "CP-SAT", "MILP HiGHS", "MILP CBC", "MILP SCIP")
LATENCY_METHODS = (
    "GPipe", "HEFT", "even split + HypSched-RT", "HypSplit-DP + round robin",
    "Hyperion + path cuts",
)  # fmt: skip
FRONTIER_METHODS = ("Hyperion", "joint exact", "joint CP-SAT", "joint MILP")
PROVED = '{"prove": true}'  # has the answers of Hyperion+, with another bound
OVER_SEEDS = "median over the seeds, band: quartiles"
NO_GAP = 5e-4  # smaller gaps are drawn as none
MIN_TIMES_S = 1e-2


def only(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return the rows of these methods; all rows if the frame has none of them."""
    kept = frame[report.labelled(frame)["label"].isin(methods)]
    return kept if len(kept) else frame


def models_of(frame: pd.DataFrame) -> dict[float, str]:
    """Map values of the axis to models, where the axis goes over models; else empty."""
    if "instance" not in frame:
        return {}
    parts = frame["instance"].astype(str).str.partition(" @ ")
    if (parts[1] == "").any():
        return {}
    names = parts[0]
    names = names.str.replace(r"x\d+$", "", regex=True)
    by_value = names.groupby(frame["value"]).first()
    return dict(by_value) if by_value.nunique() > 1 else {}


def _lines(
    table: pd.DataFrame,
    ax: Axes,
    column: str,
    scale: float = 1.0,
    *,
    of_time: bool = False,
    skipped: Sequence[str] = (),
) -> None:
    """Draw medians over instances, a line per method, with bars from quartile to quartile.

    Two models are never joined. Hollow points (`of_time`) are lower bounds: runs at the time
    limit could raise the median.
    """
    models = models_of(table)
    names = [n for n in style.in_order(table["label"].unique()) if n not in skipped]
    style.size_axis(table, ax)
    for number, name in enumerate(names):
        rows = table[table["label"] == name]
        look = style.style_of(name) | ({"linestyle": "none"} if models else {})
        groups = scale * rows.set_index("value")[column]
        low, median, high = (groups.groupby(level=0).quantile(q) for q in (0.25, 0.5, 0.75))
        x = style.dodged(median.index, number, len(names), ax)
        ax.errorbar(
            x, median, [median - low, high - median], label=name, lw=1.2, elinewidth=0.8,
            **look,
        )  # fmt: skip
        limited = at_limit(rows)
        if of_time and limited.any():
            finished = rows[column].mask(limited, np.inf).groupby(rows["value"]).median()
            hollow = np.asarray(np.isinf(finished) & np.isfinite(median))
            ax.plot(
                np.asarray(x)[hollow], median[hollow],
                zorder=3, **look | {"linestyle": "none", "markerfacecolor": "white"},
            )  # fmt: skip
            if hollow.any():
                style.explain_hollow(ax, "at least, runs at the limit")
    if models:
        ax.set_xticks(list(models), list(models.values()))
        ax.set_xlabel("")
        ax.margins(x=0.4)
    style.legend(ax)


def _missing(table: pd.DataFrame) -> dict[str, list[str]]:
    """Count the runs without an answer, by method."""
    runs = table.groupby("label", sort=False)["objective_s"]
    counts = runs.agg(lambda s: int((~np.isfinite(s)).sum()))
    sizes = runs.size()
    missing = [f"{name} {n}/{sizes[name]}" for name, n in counts.items() if n]
    return {"no answer": missing}


def _medians(values: pd.Series, names: pd.Series, order: Sequence[str], show: object) -> str:
    """Write the medians of the first two of `order` that the rows have."""
    medians = values.groupby(names).median().dropna()
    named = [name for name in order if name in medians.index][:2]
    return ", ".join(f"{name} {show(medians[name])}" for name in named)  # type: ignore[operator]


def _short_percent(share: float) -> str:
    """Write a share in percent with the digits that a figure can show."""
    if share < 1e-4:
        return "0 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def gap_against_size(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw gaps to the best proven bound against instance size, of one series.

    Methods whose median is zero at every size are counted in a note instead of a line.
    """
    table = report.with_best_bound(frame)
    by_size = table.groupby(["label", "value"])["best_gap"].median()
    largest = by_size.groupby("label").max()
    exact = [name for name in style.in_order(largest.index) if largest[name] < NO_GAP]
    counts = table[table["best_gap"] < NO_GAP]["label"].value_counts()
    sizes = table["label"].value_counts()
    _lines(table, ax, "best_gap", 100, skipped=exact)
    none = [f"{name} {counts.get(name, 0)}/{sizes[name]}" for name in exact]
    style.notes(ax, {"at 0 %, not drawn": none} | _missing(table))
    focus = ("Hyperion+", "Hyperion", "joint exact", "speed-proportional", "even split")
    answer = _medians(table["best_gap"], table["label"], focus, _short_percent)
    style.title(ax, _place(frame), answer, extrapolation(frame))
    ax.set_ylabel("gap to bound (%)")
    ax.set_ylim(-0.06 * max(1.0, ax.get_ylim()[1]))
    return style.clean(ax)


def _place(frame: pd.DataFrame) -> str:
    """Name the series, without the kind of problem."""
    return re.sub("^(partition|at scale): ", "", str(frame["series"].iloc[0]))


def gap_distribution(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw every run with a gap to the best bound, a row per method; count those without."""
    table = report.with_best_bound(frame)
    names = style.in_order(table["label"].unique())
    texts = []
    for row, name in enumerate(names):
        runs = table[table["label"] == name]
        gaps = 100 * runs["best_gap"].dropna()
        look = style.style_of(name)
        shown = gaps[gaps >= 100 * NO_GAP]
        ax.plot(
            shown, np.full(len(shown), row), look["marker"], color=look["color"], alpha=0.35
        )
        if len(gaps):
            low, median, high = np.quantile(gaps, [0.25, 0.5, 0.75])
            ax.plot([low, high], [row, row], color="black", lw=1.2)
            ax.plot([median] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
        n_missing = len(runs) - len(gaps)
        counts = f"no gap {len(gaps) - len(shown)} of {len(runs)}"
        texts.append(f"{name}\n{counts}" + (f", no answer {n_missing}" if n_missing else ""))
    ax.set_yticks(range(len(names)), texts)
    ax.set_ylim(len(names) - 0.5, -0.6)
    ax.set_xlabel("gap to best bound (%); bars: quartiles and median")
    objectives = ", ".join(str(name).replace("_", " ") for name in frame["objective"].unique())
    style.title(
        ax, f"{objectives}; {frame['digest'].nunique()} instances", extrapolation(frame)
    )
    return style.clean(ax, "x")


def solve_time_against_size(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw solve times against instance size, of one series."""
    table = report.with_best_bound(frame)
    ax.set_yscale("log")
    _lines(table, ax, "solve_time_s", of_time=True)
    focus = ("HypSplit-DP", "Hyperion+", "joint exact", "joint CP-SAT", "CP-SAT")
    answer = _medians(table["solve_time_s"], table["label"], focus, seconds)
    style.title(ax, _place(frame), answer, extrapolation(frame))
    style.plain_log(ax.yaxis)
    ax.set_ylabel("solve time (s)")
    return style.clean(ax)


def time_ratio(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw solve times over HypSplit-DP's on each instance, of one series."""
    table = report.relative_to(frame, "solve_time_s", "hypsplit_dp")
    table = table[table["label"] != "HypSplit-DP"]
    ax.set_yscale("log")
    _lines(table, ax, "ratio", of_time=True)
    ax.axhline(1, color=style.STYLE["HypSplit-DP"][0], lw=1)
    style.notes(ax, _missing(table))
    ratio = table["ratio"].median()
    answer = f"median of all solvers: {ratio:,.0f} times" if np.isfinite(ratio) else ""
    style.title(ax, _place(frame), answer, extrapolation(frame))
    style.plain_log(ax.yaxis)
    ax.set_ylabel("time / HypSplit-DP's")
    return style.clean(ax)


def latency_ratio(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw mean latencies over Hyperion's on each instance, a row per network and model.

    Points are medians over seeds and loads, bars go from quartile to quartile. The names of the
    rows say how many runs did not fit.
    """
    table = report.relative_to(frame, "objective_s", "hyperion")
    table = table[table["label"] != "Hyperion"]
    series = list(dict.fromkeys(table["series"]))
    names = style.in_order(table["label"].unique())
    for offset, name in zip(np.linspace(-0.3, 0.3, len(names)), names, strict=True):
        runs = table[(table["label"] == name) & table["ratio"].notna()]
        groups = runs.groupby("series")["ratio"]
        low, median, high = (groups.quantile(q) for q in (0.25, 0.5, 0.75))
        ax.errorbar(
            median, [series.index(one) + offset for one in median.index],
            xerr=[median - low, high - median], label=name, elinewidth=0.8,
            **style.style_of(name) | {"linestyle": "none"},
        )  # fmt: skip
    texts = []
    for one in series:
        (what, missing), *_ = _missing(table[table["series"] == one]).items()
        note = textwrap.fill(f"{what}: {', '.join(missing)}", 34)
        texts.append(f"{one}\n{note}" if missing else one)
    ax.axvline(1.0, color=style.STYLE["Hyperion"][0], lw=1, label="Hyperion")
    style.log_ticks(ax, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    ax.set_yticks(range(len(series)), texts)
    ax.set_ylim(len(series) - 0.5, -0.5)
    ax.set_xlabel("mean latency / Hyperion's")
    style.legend(ax)
    medians = table.groupby("label")["ratio"].median()
    focus = [f"{name} {medians[name]:.2f}" for name in ("GPipe", "HEFT") if name in medians]
    answer = f"median of all: {', '.join(focus)}" if focus else ""
    style.title(ax, "right of 1, Hyperion is faster", answer, extrapolation(frame), width=56)
    return style.clean(ax, "x")


_PHASE = {"prefill": ("#0072B2", "o"), "decode": ("#D55E00", "^")}


def calibration_errors(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw mean absolute errors per GPU, phase and cost model, on the rows of the fits."""
    fitted = frame[frame["fitted"]]
    gpus = sorted(fitted["gpu"].unique())
    for (cost_model, phase), rows in fitted.groupby(["cost_model", "phase"]):
        colour, marker = _PHASE.get(str(phase), ("#999999", "s"))
        face = colour if cost_model == "roofline" else "none"
        heights = [gpus.index(gpu) for gpu in rows["gpu"]]
        label = f"{phase}, {cost_model}"
        ax.plot(100 * rows["mape"], heights, marker, color=colour, mfc=face, label=label)
    ax.set_yticks(range(len(gpus)), gpus)
    ax.invert_yaxis()
    style.log_ticks(ax, (1, 2, 5, 10, 20, 50, 100))
    ax.set_xlabel("mean absolute error of block times (%); hollow: cost model flops")
    style.legend(ax)
    medians = 100 * fitted.groupby("cost_model")["mape"].median()
    answers = [f"{name} {value:.1f} %" for name, value in medians.items()]
    style.title(ax, f"median over GPUs and phases: {', '.join(answers)}")
    return style.clean(ax, "x")


def calibration_scatter(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw predicted against measured block times, of one cost model; means of groups."""
    for (phase, fitted), rows in frame.groupby(["phase", "fitted"]):
        colour, marker = _PHASE.get(str(phase), ("#999999", "s"))
        label = f"{phase}, {'fitted' if fitted else 'hollow: other sources'}"
        face = colour if fitted else "none"
        ax.plot(
            rows["measured_s"], rows["predicted_s"], marker,
            color=colour, mfc=face, ms=3, alpha=0.7, label=label,
        )  # fmt: skip
    ends = [frame["measured_s"].min(), frame["measured_s"].max()]
    ax.plot(ends, ends, color="black", lw=1)
    ax.loglog()
    style.plain_log(ax.xaxis)
    style.plain_log(ax.yaxis)
    ax.set_xlabel("measured block time (s)")
    ax.set_ylabel("predicted (s)")
    style.legend(ax)
    ratio = (frame["predicted_s"] / frame["measured_s"]).median()
    title = f"{frame['cost_model'].iloc[0]}: {ratio:.2f} of the measured time in the median"
    style.title(ax, title)
    return style.clean(ax)


def gap_over_time(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the gap that each method has proved against time, of `report.traces`.

    Lines are medians over the seeds, bands go from quartile to quartile. A run that has ended
    keeps its last gap.
    """
    grid_s = np.geomspace(MIN_TIMES_S, max(frame["elapsed_s"].max(), 2 * MIN_TIMES_S), 200)
    for name in style.in_order(frame["label"].unique()):
        runs = [run for _, run in frame[frame["label"] == name].groupby("seed")]
        gaps = []
        for run in runs:
            known = np.concatenate([[100.0], run["gap"].to_numpy()])
            gaps.append(known[np.searchsorted(run["elapsed_s"], grid_s, side="right")])
        low, median, high = np.quantile(gaps, [0.25, 0.5, 0.75], axis=0)
        look = style.style_of(name) | {"marker": "none"}
        ax.plot(grid_s, median, label=name, lw=1.4, **look)
        ax.fill_between(grid_s, low, high, color=look["color"], alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=0.1)
    ticks = [0, 0.1, 1, 10, 100]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(-0.01, 130)
    ax.minorticks_off()
    style.plain_log(ax.xaxis)
    ax.set_xlabel("elapsed (s)")
    ax.set_ylabel("own gap (%)")
    style.legend(ax)
    last = frame.groupby(["label", "seed"], sort=False)["gap"].last()
    proved = (last < 1e-4).groupby("label").sum()
    sizes = last.groupby("label").size()
    short = {name: name.rpartition(" + ")[2] for name in style.in_order(sizes.index)}
    answers = [f"{short[name]} {proved[name]}/{sizes[name]}" for name in short]
    style.title(ax, str(frame["series"].iloc[0]), f"proved: {', '.join(answers)}")
    return style.clean(ax)


def gap_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw gap and time against size, for joint, large and partition problems."""
    what = {
        "joint": ("partition and schedule together", JOINT_METHODS),
        "scale": ("partition and schedule of many requests", SCALE_METHODS),
        "partition": ("the partition alone", PARTITION_METHODS),
    }
    figures = {}
    for kind, rows in report.gap_kinds(report.with_best_bound(frame)).items():
        words, methods = what[kind]
        shown = only(rows, methods)
        gaps = shown[shown["options"] != PROVED] if kind == "scale" else shown
        medians = report.labelled(gaps).groupby("label")["best_gap"].median()
        answer = ", ".join(
            f"{name} {_short_percent(medians[name])}"
            for name in medians.sort_values(kind="stable").index
        )
        figures[f"gap_{kind}"] = panels(
            gaps, gap_against_size, f"How far from the optimum is each method? ({words})",
            note=f"Median gap over all panels: {answer}.\n{style.sample(gaps)}",
        )  # fmt: skip
        timed = only(rows, EXACT_METHODS) if kind == "partition" else shown
        figures[f"gap_{kind}_time"] = panels(
            timed, solve_time_against_size, f"How long does each method take? ({words})"
        )
        if kind != "scale":
            n_methods = len(rows[["method", "options"]].drop_duplicates())
            figures[f"gap_{kind}_distribution"] = single(
                rows, gap_distribution, 1 + 0.36 * n_methods,
                f"How far from the optimum is each method on all instances? ({words})",
            )  # fmt: skip
    return figures


def solve_time_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw solve times, and their ratios to HypSplit-DP's, against size."""
    return {
        "solve_time": panels(
            frame, solve_time_against_size, "How long do exact methods take to cut a model?"
        ),
        "solve_time_ratio": panels(
            frame, time_ratio, "How many times as long as HypSplit-DP do solvers take?"
        ),
    }


def latency_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw mean latencies relative to Hyperion's."""
    shown = only(frame, ("Hyperion", *LATENCY_METHODS))
    n_runs = frame.groupby(["series", "method", "options"]).size().max()
    return {
        "latency": single(
            shown, latency_ratio, 1.4 + 0.42 * frame["series"].nunique(),
            "Where is Hyperion faster at flow level, and which stage earns it?",
            f"median of at most {n_runs} runs a point, bars: quartiles",
        )
    }  # fmt: skip


def joint_frontier_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw gap and time against size, and gaps over time: of methods, and of ablations."""
    whole = frame["options"] == "{}"
    n_values = frame.groupby("series")["value"].transform("nunique")
    bounded = report.with_best_bound(frame)  # before any method is left out
    sizes = only(bounded[whole & (n_values > 1)], FRONTIER_METHODS)
    figures = {}
    if len(sizes):
        figures["joint_frontier_gap"] = panels(
            sizes, gap_against_size, "Up to what size is the joint optimum found?"
        )
        figures["joint_frontier_time"] = panels(
            sizes, solve_time_against_size, "How long does the joint optimum take?"
        )
    rivals = frame[frame["method"] == "joint_cpsat"]
    compared = whole & frame["digest"].isin(rivals["digest"]) & (frame["method"] != "hyperion")
    first = frame["series"] == frame["series"].iloc[0]
    groups = {"": compared & first, "_settings": compared & ~first}
    for suffix, rows in groups.items():
        if rows.any():
            figures[f"joint_frontier{suffix}"] = panels(
                report.traces(frame[rows]), gap_over_time, "Who proves how much, and when?",
                1.5, OVER_SEEDS,
            )  # fmt: skip
    parts = frame["digest"].isin(frame[~whole]["digest"]) & (frame["method"] == "joint_exact")
    if parts.any():
        figures["joint_frontier_parts"] = panels(
            report.traces(frame[parts]), gap_over_time,
            "What does each part of joint exact contribute?", note=OVER_SEEDS,
        )  # fmt: skip
    return figures


def calibration_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw errors per GPU."""
    height_in = 1.2 + 0.22 * frame[frame["fitted"]]["gpu"].nunique()
    question = "How far are predicted block times from measured ones?"
    return {"calibration": single(frame, calibration_errors, height_in, question)}


def calibration_points_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw predicted against measured times, a panel per cost model."""
    by_model = frame.assign(series=frame["cost_model"]).sort_values("series", ascending=False)
    question = "Which cost model predicts measured block times?"
    return {
        "calibration_points": panels(by_model, calibration_scatter, question, height_in=2.6)
    }
