"""Figures of a `Plan`: `Plan.plot` draws one of `FIGURES`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.planning.network_figure import draw_network, network_height
from hypsolve.planning.palette import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RC,
    VERMILION,
    drawing,
    short_name,
)
from hypsolve.planning.serving_frontier import ServingPoint
from hypsolve.planning.upgrade_text import describe_upgrade, split_first
from hypsolve.problem import validation as valid
from hypsolve.problem.optional import optional
from hypsolve.problem.units import show_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.planning.plan import Plan

PAGE_WIDTH = 6.3  # inches: 16 cm, the text width of a page
MAX_BARS = 20  # upgrades
MAX_LETTERS, MAX_NAME = 48, 68  # of the name of a tier or node, and of a bar
UPGRADE_WIDTH, MIN_BAR = (
    2.6,
    0.3,
)  # inches for an upgrade's value, least share of the longest bar
PASSES = 6.0  # decode passes in the window of the Gantt chart


@dataclass(frozen=True, slots=True)
class Figure:
    """Describe one kind of figure: its drawing function, its size, and whether it applies.

    Attributes
    ----------
    draw : callable
        ``draw(plan, ax, width)``; the width of the axes is in inches.
    height : callable
        ``height(plan, width)`` in inches.
    caption : str
    can_draw : callable
        Whether a plan has something to draw.
    """

    draw: Callable[[Plan, Axes, float], None]
    height: Callable[[Plan, float], float]
    caption: str
    can_draw: Callable[[Plan], bool] = lambda plan: plan.fits


def plot(plan: Plan, kind: str, ax: Axes | None, width: float = PAGE_WIDTH) -> Axes:
    """Draw a figure of a plan, `width` inches wide unless `ax` is given; see `Plan.plot`."""
    figure = FIGURES[valid.known("figure of a plan", kind, FIGURES)]
    if not figure.can_draw(plan):
        raise ValueError(f"plan: nothing to draw as {kind!r}, {plan.result.status}")
    with drawing(RC):
        if ax is None:
            _, ax = optional("matplotlib.pyplot").subplots(
                figsize=(width, figure.height(plan, width)), layout="constrained"
            )
        else:
            valid.of_type("plot", "ax", ax, optional("matplotlib.axes").Axes)
            width = ax.get_window_extent().width / ax.figure.dpi
        draw(plan, kind, ax, width)
    return ax


def draw(plan: Plan, kind: str, ax: Axes, width: float) -> None:
    """Draw a figure of a plan into axes that are `width` inches wide."""
    FIGURES[kind].draw(plan, ax, width)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    letters = min(MAX_LETTERS, max(int(width / 0.15), 8))  # at most some 40 % of the width
    if any(len(name) > letters for name in rows):
        ax.set_yticks(ax.get_yticks(), labels=[short_name(name, letters) for name in rows])
    for text in ax.figure.findobj(optional("matplotlib.text").Text):
        text.set_parse_math(False)  # a dollar sign in a name is no formula


def _stages(plan: Plan, ax: Axes, width: float) -> None:
    """Draw the seconds of each stage and its link, and mark the bottleneck."""
    stages = plan.stages
    rows = np.arange(len(stages))
    times_s = np.array([stage.time_s for stage in stages])
    links_s = np.array([stage.link_s for stage in stages])
    is_bottleneck = plan.query.objective == "bottleneck"
    of = "all its nodes together" if is_bottleneck else "its fastest node"
    ax.barh(rows, times_s, 0.4, color=BLUE, label=f"stage: {of}")
    ax.barh(rows, links_s, 0.4, left=times_s, color=GREY, label="link to the next tier")
    longest_s = float((times_s + links_s).max())
    values = [
        f"{show_seconds(stage.time_s + stage.link_s)}, {stage.share:.0%}" for stage in stages
    ]
    names = [
        f"{short_name(stage.tier, MAX_LETTERS // 2)}: {plan.describe_blocks(stage.blocks)}"
        for stage in stages
    ]
    _label_bars(ax, names, times_s + links_s, values, width)
    if is_bottleneck:
        ax.axvline(longest_s, color=VERMILION, lw=1.2, ls="--", zorder=0, label="bottleneck")
    _set_range(ax, longest_s, width, 1.1)
    ax.set_xlabel("seconds for one request")
    _finish(ax, legend=True, n_columns=3 if width > 5 else 1)


def _pareto(plan: Plan, ax: Axes, width: float) -> None:
    """Draw simulated rate and latency of splits, of the best among them, and of this plan."""
    points, best = plan.serving_points(), plan.serving_frontier()
    beaten = [
        point
        for point in points
        if point not in best
        and point.partition != plan.result.partition
        and np.isfinite(point.max_requests_per_s)
    ]
    if beaten:
        rates = [point.max_requests_per_s for point in beaten]
        latencies_s = [point.latency_mean_s for point in beaten]
        ax.plot(rates, latencies_s, "o", ms=4, color=GREY, label="other splits")
    draw_pareto(best, ax)
    forecast = plan.forecast
    if forecast is not None and not np.isnan(forecast.max_requests_per_s):
        here = (forecast.max_requests_per_s, forecast.latency_s.mean)
        ax.plot(*here, "D", color=VERMILION, label="this plan")
    drawn = np.concatenate([line.get_xydata() for line in ax.lines])
    if len(drawn):
        ax.set_xlim(0, 1.08 * drawn[:, 0].max())
        ax.set_ylim(0, 1.08 * drawn[:, 1].max())
    else:
        ax.text(0.5, 0.5, "no split could be simulated\nwithin the time limit", ha="center",
                va="center", transform=ax.transAxes)  # fmt: skip
    _finish(ax, legend=True)


def draw_pareto(points: Sequence[ServingPoint], ax: Axes) -> None:
    """Draw the simulated rate against the mean latency of the best splits.

    Rates that are only lower bounds are marked by arrows to the right.
    """
    least = [
        (point.max_requests_per_s, point.latency_mean_s)
        for point in points
        if point.max_rate_is_lower_bound
    ]
    if least:
        ax.plot(*zip(*least, strict=True), ">", ms=9, color=BLUE,
                label="at least this rate (search cut short)")  # fmt: skip
    rates = [point.max_requests_per_s for point in points]
    latencies_s = [point.latency_mean_s for point in points]
    ax.plot(rates, latencies_s, "o-", drawstyle="steps-post", color=BLUE, label="best splits")
    met = [
        (point.max_requests_per_s, point.latency_mean_s)
        for point in points
        if point.meets_targets
    ]
    if met:
        style: dict[str, Any] = {"ms": 11, "fillstyle": "none", "color": GREEN}
        ax.plot(*zip(*met, strict=True), "o", label="within the targets", **style)
    ax.set_xlabel("largest sustained rate in batches (requests/s, simulated)")
    ax.set_ylabel("mean latency (s)")
    _finish(ax, legend=bool(least or met))


def _latency(plan: Plan, ax: Axes, width: float) -> None:
    """Draw the distributions of simulated latencies and times to the first token."""
    trace = plan.simulate()
    for values_s, label, colour in (
        (trace.ttft_s, "to the first token", ORANGE),
        (trace.latency_s, "to the last token", BLUE),
    ):
        ordered = np.sort(values_s[~np.isnan(values_s)])
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        ax.step(ordered, 100 * shares, where="post", color=colour, label=label)
        for share in (50, 95):
            ax.plot(np.percentile(ordered, share), share, "o", ms=4, color=colour)
    ax.set_xscale("log")
    ax.set_xlabel("seconds from arrival")
    ax.set_ylabel("share of the requests (%)")
    ax.set_ylim(0, 101)
    _finish(ax, legend=True, n_columns=2)
    load = plan.query.load.describe()
    title = f"{len(trace.arrival_s)} requests simulated with {load}; dots: p50, p95"
    _set_title(ax, title, width)
    ticker = optional("matplotlib.ticker")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _gantt(plan: Plan, ax: Axes, width: float) -> None:
    """Draw the iterations of each node over a few decode passes, in mid-simulation."""
    trace = plan.simulate(record_visits=True)
    tpot_s = float(trace.metrics().tpot_s.mean)
    middle_s = float(np.median(trace.arrival_s))
    span_s = PASSES * tpot_s if tpot_s > 0 else float(trace.latency_s.mean())
    end_s = max(min(middle_s + span_s, trace.end_of_run_s), middle_s * (1 + 1e-9) + 1e-12)
    trace.plot_gantt(ax, start_s=middle_s, end_s=end_s)
    ax.set_title("", loc="left")
    _count_from_start(ax, middle_s, end_s)


def _count_from_start(ax: Axes, start_s: float, end_s: float) -> None:
    """Label a time axis from 0 at its start, in ms or s."""
    unit, scale = ("ms", 1e3) if end_s - start_s < 2 else ("s", 1.0)
    ticker = optional("matplotlib.ticker")
    ends = ticker.MaxNLocator(6).tick_values(0, (end_s - start_s) * scale)
    shown = ends[(ends >= 0) & (ends <= (end_s - start_s) * scale * (1 + 1e-9))]
    ax.set_xticks(start_s + shown / scale, labels=[f"{value:g}" for value in shown])
    ax.set_xlabel(f"{unit}, from {show_seconds(start_s)} after the first arrival")


def _upgrades(plan: Plan, ax: Axes, width: float) -> None:
    """Draw what each upgrade reaches in simulation."""
    shown = (*split_first(plan), *plan.upgrades)[:MAX_BARS]
    values = np.array([upgrade.after for upgrade in shown])
    ax.barh(np.arange(len(shown)), values, 0.4, color=BLUE)
    before = shown[0].before
    names = [upgrade.what for upgrade in shown]
    words = [describe_upgrade(upgrade, plan.network.currency) for upgrade in shown]
    letters = int(min(UPGRADE_WIDTH, (1 - MIN_BAR) * width) / 0.066)  # right of the longest bar
    _label_bars(ax, names, values, [textwrap.fill(each, letters) for each in words], width)
    is_known = not np.isnan(before)
    if is_known:
        ax.axvline(before, color=VERMILION, lw=1.2, ls="--", zorder=0, label="this plan")
    _set_range(ax, max(float(values.max()), before if is_known else 0.0), width, UPGRADE_WIDTH)
    units = {"requests/s": "requests/s", "goodput": "requests/s within the targets"}
    unit = units.get(shown[0].quantity, "mean latency (s)")
    ax.set_xlabel(f"{unit}, simulated")
    _finish(ax, legend=is_known)


def _label_bars(
    ax: Axes, names: list[str], ends: np.ndarray, values: list[str], width: float
) -> None:
    """Write each name above its bar, and the value beside it, further lines below."""
    for row, (name, end, value) in enumerate(zip(names, ends, values, strict=True)):
        above = short_name(name, min(int(width / 0.066), MAX_NAME))
        ax.annotate(above, (0, row - 0.22), (2, 1), textcoords="offset points", va="bottom")
        at, va = ((4, RC["font.size"] / 2), "top") if "\n" in value else ((4, 0), "center")
        ax.annotate(value, (end, row), at, textcoords="offset points", va=va,
                    bbox={"facecolor": "#ffffff", "linewidth": 0, "pad": 1})  # fmt: skip
    ax.set_yticks([])
    ax.set_ylim(len(names) - 0.6, -0.75)


def _set_range(ax: Axes, longest: float, width: float, value_width: float) -> None:
    """Leave `value_width` inches to the right of the longest bar."""
    share = max(1 - value_width / width, MIN_BAR)
    ax.set_xlim(0, longest / share or 1.0)


def _set_title(ax: Axes, title: str, width: float) -> None:
    lines = textwrap.fill(title, max(int(width / 0.075), 20))
    ax.set_title(lines, loc="left", fontsize=RC["font.size"], pad=20)


def _finish(ax: Axes, *, legend: bool = False, n_columns: int = 3) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
        ax.legend(frameon=False, ncols=n_columns, borderaxespad=0.2, **place)


def _bars_height(n_bars: int) -> float:
    return 1.1 + 0.47 * n_bars


def _gantt_height(plan: Plan, width: float) -> float:
    n_nodes = sum(len(tier.nodes) for tier in plan.network.network.tiers)
    return 1.4 + 0.3 * min(n_nodes, 40)


FIGURES: Mapping[str, Figure] = {
    "network": Figure(
        draw_network,
        network_height,
        "Tiers with their nodes. Each card is one kind of node: layers, number and GPU, names,"
        " and use of memory. Memory bars are to scale. The strip under the name of a"
        " tier shows where its blocks are in the model.",
    ),
    "stages": Figure(
        _stages,
        lambda plan, width: _bars_height(len(plan.stages)) + 0.35 * (width < 5),
        "Time of one request on each tier, and on the link behind it.",
    ),
    "pareto": Figure(
        _pareto,
        lambda plan, width: min(3.4, 0.85 * width),
        "Sustained rate and mean latency of splits, simulated. The best are those that no other"
        " drawn here beats in both.",
    ),
    "latency": Figure(
        _latency,
        lambda plan, width: min(3.4, 0.85 * width),
        "Simulated token by token: share of the requests with at most this latency.",
    ),
    "gantt": Figure(
        _gantt,
        _gantt_height,
        "Simulated iterations of the nodes during a few decode passes, from when half of the"
        " requests have arrived. The height of a bar is"
        " the square root of the batch size.",
    ),
    "upgrades": Figure(
        _upgrades,
        lambda plan, width: _bars_height(
            min(len(split_first(plan)) + len(plan.upgrades), MAX_BARS)
        ),
        "What was asked for with each upgrade, simulated.",
        lambda plan: bool(plan.upgrades),
    ),
}
"""Kinds of figures, by name."""
