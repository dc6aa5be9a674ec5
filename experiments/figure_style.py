"""Style of all figures: page width, text size, colours, markers, axes, panels and notes.

A figure is `WIDTH_IN` wide (16 cm), and no text on it is smaller than `TEXT_PT`. A method has
one colour (of Okabe and Ito's palette), marker and line in every figure.
"""

import re
import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments import labels
from hypsolve.planning.palette import drawing

WIDTH_IN = 16 / 2.54
TEXT_PT = 8
DPI = 150
HOLLOW = {"color": "#555555", "marker": "o", "linestyle": "none", "markerfacecolor": "white"}
_UNIT = re.compile(r"(?<=\d) (?=%|(s|ms|us|times)\b)")  # a number stays with its unit
_EXPLAINED = ("hollow", "the paper")  # entries of a legend that explain
NOTE = "note"  # mark of the texts that `notes` writes
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = "osDv^<>Pd"
STYLE = {  # label of a method: colour, marker, line
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
    "Hyperion+ + Lagrangian bound": ("#000000", "^", ":"),
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
    "DeepSpeed balanced": ("#D55E00", "d", "-."),
    "PipeDream": ("#CC79A7", "^", "-."),
    "path cuts": ("#0072B2", "d", ":"),
    "P0 cuts": ("#0072B2", "X", "-."),
    "best simulated": ("#000000", "o", "-"),
    "fluid model, exact": ("#D55E00", "D", "-"),
    "fluid model, MILP HiGHS": ("#CC79A7", "P", "-"),
    "fluid model, CP-SAT": ("#D55E00", "X", "--"),
}
_AXIS = {
    "nodes": "nodes per tier",
    "memory": "memory tightness",
    "Gbit/s": "rate of the links (Gbit/s)",
    "load": "load",
    "spread": "spread of speeds within a tier",
}


def page() -> AbstractContextManager[None]:
    """Return a context in which figures have the text sizes of a page of 16 cm."""
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize",
             "ytick.labelsize", "legend.fontsize", "figure.titlesize")  # fmt: skip
    return drawing(dict.fromkeys(sizes, TEXT_PT) | {"lines.markersize": 4.5})


def style_of(label: str) -> dict[str, Any]:
    """Return colour, marker and line of a method; of an unknown one, drawn by its name."""
    known = STYLE.get(label)
    if known is None:
        drawn = zlib.crc32(label.encode())
        known = _PALETTE[drawn % 7], _MARKERS[drawn // 7 % 9], ("-", "--", ":")[drawn // 63 % 3]
    return dict(zip(("color", "marker", "linestyle"), known, strict=True))


def in_order(names: Sequence[str]) -> list[str]:
    """Sort labels as `STYLE` lists them; unknown ones come last."""
    known = list(STYLE)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def clean(ax: Axes, across: str = "y") -> Axes:
    """Remove the frame, and draw a light grid across one axis."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="both", visible=False)
    ax.grid(axis=across, color="#DDDDDD", linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    return ax


def size_axis(frame: pd.DataFrame, ax: Axes) -> None:
    """Put a tick at every value of the axis; wide ranges are logarithmic."""
    values = sorted(frame["value"].unique())
    if values[-1] >= 8 * values[0] > 0:
        ax.set_xscale("log", base=2)
    ax.set_xticks(values, [f"{value:g}" for value in values])
    if len(values) > 6:
        for tick in ax.get_xticklabels()[1::2]:
            tick.set_visible(False)
    ax.minorticks_off()
    name = frame["axis"].iloc[0]
    ax.set_xlabel(_AXIS.get(name, name))


def log_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with ticks at those values that it shows."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [value for value in values if low < value < high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def plain_log(axis: Axis) -> None:
    """Write the powers of ten of a logarithmic axis without small exponents."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def notes(ax: Axes, counts: Mapping[str, Sequence[str]]) -> None:
    """Write above the axes what they do not show; `title` writes above the notes."""
    texts = [f"{what}: {', '.join(methods)}" for what, methods in counts.items() if methods]
    if texts:
        width = _characters(ax)
        ax.annotate(
            "\n".join(textwrap.fill(text, width) for text in texts),
            (0, 1), (0, 2), "axes fraction", textcoords="offset points",
            fontsize=TEXT_PT, color="#444444", gid=NOTE,
        )  # fmt: skip


def title(ax: Axes, *lines: str, width: int | None = None) -> None:
    """Write lines above the notes of the axes; the first is bold.

    They are wrapped at `width` characters; default: what fits beside short labels of the axis.
    """
    width = width or _characters(ax)
    n_notes = sum(len(t.get_text().splitlines()) for t in ax.texts if t.get_gid() == NOTE)
    together = (_UNIT.sub("\u00a0", line) for line in lines if line)
    wrapped = [  # bold letters are wider
        textwrap.fill(line, width if number else int(0.87 * width))
        for number, line in enumerate(together)
    ]
    n_rest = sum(line.count("\n") + 1 for line in wrapped[1:])
    pad = 3 + 1.25 * TEXT_PT * n_notes
    if n_rest:
        ax.annotate(
            "\n".join(wrapped[1:]), (0, 1), (0, pad), "axes fraction",
            textcoords="offset points", fontsize=TEXT_PT,
        )  # fmt: skip
    ax.set_title(
        wrapped[0], fontsize=TEXT_PT, loc="left", weight="bold",
        pad=pad + 1.25 * TEXT_PT * n_rest,
    )  # fmt: skip


def _characters(ax: Axes) -> int:
    """Return how many characters fit into a line above the axes."""
    grid = ax.get_subplotspec()
    n_columns = 1 if grid is None else grid.get_gridspec().ncols
    return int((ax.figure.get_figwidth() / n_columns - 0.55) * 72 / (0.57 * TEXT_PT))  # type: ignore[union-attr]


def dodged(values: pd.Index, number: int, n_lines: int, ax: Axes) -> Any:
    """Shift the points of one of several lines sideways, so that equal ones are all seen."""
    step = number - (n_lines - 1) / 2
    if ax.get_xscale() == "log":
        return values * 1.035**step
    span = (max(values) - min(values)) or 1.0
    return values + 0.012 * span * step


def panels(
    frame: pd.DataFrame,
    draw: Callable[[pd.DataFrame, Axes], Axes],
    question: str = "",
    height_in: float = 2.2,
    note: str = "",
) -> Figure:
    """Draw each series of a frame in a panel of its own, with one legend above them."""
    with page():
        names = list(dict.fromkeys(frame["series"]))
        n_columns = min(len(names), 2)
        n_rows = -(-len(names) // n_columns)
        figure, axes = plt.subplots(
            n_rows, n_columns, figsize=(WIDTH_IN, height_in * n_rows + 0.9), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        entries: dict[str, Any] = {}
        for name, ax in zip(names, axes.flat, strict=False):
            rows = frame[frame["series"] == name]
            draw(rows, ax)
            if not ax.get_title(loc="left"):
                title(ax, str(name), labels.extrapolation(rows))
            drawn = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            entries = drawn | entries
            if ax.get_legend() is not None:
                ax.get_legend().remove()
        above(figure, entries, question, note or sample(frame))
        return figure


def single(
    frame: pd.DataFrame,
    draw: Callable[[pd.DataFrame, Axes], Axes],
    height_in: float,
    question: str = "",
    note: str = "",
) -> Figure:
    """Draw a frame in one panel, with its legend above."""
    with page():
        figure, ax = plt.subplots(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(frame, ax)
        entries = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        if ax.get_legend() is not None:
            ax.get_legend().remove()
        above(figure, entries, question, note)
        return figure


def above(figure: Figure, entries: Mapping[str, Any], question: str, note: str = "") -> None:
    """Write the question, a note and the legend above all panels."""
    notes = "".join(f"\n{textwrap.fill(line, 95)}" for line in note.splitlines())
    words = textwrap.fill(question, 88) + notes
    if not words and not entries:
        return
    lines = {name: line for name, line in entries.items() if not name.startswith(_EXPLAINED)}
    entries = lines | entries  # explanations come last
    n_columns = 3 if max(map(len, entries), default=0) < 27 else 2
    box = figure.legend(
        list(entries.values()), list(entries), loc="outside upper left", ncols=n_columns,
        frameon=False, title=words, alignment="left", borderpad=0,
    )  # fmt: skip
    box.get_title().set_fontweight("bold")


def sample(frame: pd.DataFrame) -> str:
    """Say what is measured, and how many instances a point stands for."""
    if not {"digest", "objective", "value"} <= set(frame):
        return ""
    objectives = ", ".join(str(name).replace("_", " ") for name in frame["objective"].unique())
    n = frame.groupby(["series", "value"])["digest"].nunique()
    if n.max() == 1:
        return f"{objectives}; 1 instance a point"
    count = f"{n.max()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    return f"{objectives}; median of {count} instances a point, bars: quartiles"


def legend(ax: Axes) -> None:
    """Add a legend without a frame, in a notebook; `panels` moves its entries above."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=TEXT_PT)


def explain_hollow(ax: Axes, meaning: str) -> None:
    """Add the meaning of hollow markers to the legend, once."""
    text = f"hollow: {meaning}"
    if text not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], label=text, **HOLLOW)
