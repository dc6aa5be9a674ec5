"""Colours, markers, axes and notes that all figures share."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from experiments import labels

_STYLE = {  # label of a method: colour, marker, line
    "Hyperion": ("#0072B2", "o", "-"),
    "Hyperion + path cuts": ("#0072B2", "d", ":"),
    "Hyperion + P0 cuts": ("#0072B2", "X", "-."),
    "Hyperion + fastest rule": ("#0072B2", "^", ":"),
    "Hyperion + slowest rule": ("#0072B2", "v", ":"),
    "Hyperion + full link cost": ("#0072B2", "P", "--"),
    "Hyperion + planned by FLOPs": ("#000000", "d", "--"),
    "Hyperion + mean output believed": ("#0072B2", "*", ":"),
    "best cuts in simulation + HypSched-RT": ("#000000", "*", ":"),
    "Hyperion+": ("#000000", "D", "-"),
    "Hyperion+ + bound by prices": ("#000000", "^", ":"),
    "HypSplit-DP": ("#0072B2", "o", "-"),
    "HypSplit-DP + round robin": ("#56B4E9", "v", "--"),
    "HypSplit-DP + shortest queue": ("#666666", "<", ":"),
    "HypSplit-DP + least work left": ("#CC79A7", "<", "--"),
    "HypSplit-DP + earliest completion": ("#CC79A7", "v", ":"),
    "HypSplit-DP + without estimate": ("#D55E00", "v", "--"),
    "GPipe": ("#E69F00", "s", "-"),
    "even split": ("#E69F00", "s", "-"),
    "even split + HypSched-RT": ("#F0B84D", "^", "--"),
    "HEFT": ("#009E73", "D", "-"),
    "HEFT cuts": ("#009E73", "D", "-"),
    "HEFT cuts + HypSched-RT": ("#70C7AC", "P", "--"),
    "joint exact": ("#000000", "o", "-"),
    "joint exact + without Lagrangian bound": ("#56B4E9", "v", "--"),
    "joint exact + without partition boxes": ("#009E73", "D", ":"),
    "joint exact + without dominance": ("#E69F00", "s", "--"),
    "joint exact + CP-SAT for single partitions": ("#D55E00", "P", ":"),
    "joint CP-SAT": ("#D55E00", "X", "-"),
    "CP-SAT": ("#D55E00", "X", "-"),
    "joint MILP": ("#CC79A7", "P", "-"),
    "MILP HiGHS": ("#CC79A7", "P", "-"),
    "MILP CBC": ("#56B4E9", "v", "-"),
    "MILP SCIP": ("#000000", "*", "-"),
    "memory-proportional": ("#999999", "<", "--"),
    "speed-proportional": ("#666666", ">", "--"),
    "torchgpipe": ("#333333", "p", ":"),
    "DeepSpeed balanced": ("#8C564B", "d", "-."),
    "PipeDream": ("#BCBD22", "X", "-."),
}
_AXIS = {
    "requests": "requests",
    "blocks": "blocks",
    "tiers": "tiers",
    "nodes": "nodes per tier",
    "load": "load",
    "memory": "memory tightness",
}


def _style(label: str) -> dict[str, str]:
    colour, marker, line = _STYLE.get(label, ("#AAAAAA", "h", ":"))
    return {"color": colour, "marker": marker, "linestyle": line}


def _clean(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def _size_axis(frame: pd.DataFrame, ax: Axes) -> None:
    values = sorted(frame["value"].unique())
    if values[-1] >= 8 * values[0] > 0:
        ax.set_xscale("log", base=2)
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.set_xlabel(_AXIS.get(frame["axis"].iloc[0], frame["axis"].iloc[0]))


def _log_ticks(ax: Axes, values: Sequence[float]) -> None:
    ax.set_xscale("log")
    least, most = ax.get_xlim()
    ticks = [value for value in values if least < value < most]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _notes(ax: Axes, notes: Mapping[str, Sequence[str]]) -> None:
    """Say above the axes what does not show in them."""
    texts = [f"{what}: {', '.join(methods)}" for what, methods in notes.items() if methods]
    if texts:
        note = "\n".join(textwrap.fill(text, 80) for text in texts)
        ax.annotate(
            note, (0, 1), (0, 3), "axes fraction", textcoords="offset points", fontsize=7
        )


def _title(ax: Axes, frame: pd.DataFrame, *words: str) -> None:
    """Write the words, and whether costs are extrapolated, above the notes."""
    n_lines = sum(len(text.get_text().splitlines()) for text in ax.texts)
    note = labels.extrapolation(frame)
    ax.set_title("; ".join(filter(None, [*words, note])), fontsize=9, pad=6 + 9 * n_lines)


def _objectives(frame: pd.DataFrame) -> str:
    return ", ".join(str(name).replace("_", " ") for name in frame["objective"].unique())


def _instances_per_point(frame: pd.DataFrame) -> str:
    n = frame.groupby(["series", "value"])["digest"].nunique()
    if n.max() == 1:
        return "1 instance a point"
    least = f"{n.min()} to " if n.min() < n.max() else ""
    return f"median of {least}{n.max()} instances a point"
