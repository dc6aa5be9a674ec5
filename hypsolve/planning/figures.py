"""Figures of a `Plan`: `Plan.plot` draws one of `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.optional import optional
from hypsolve.problem.units import show_seconds
from hypsolve.solvers.partition.hypsplit import ParetoPoint, pareto_frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.planning.plan import NodePlan, Plan

WEIGHTS, KV, LINK, MARK = "#0072B2", "#E69F00", "#999999", "#D55E00"
TIERS = ("#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#E69F00", "#0072B2")  # in turn
MAX_NODES = 6  # of a tier, drawn
BAR = 0.16  # above the bar of a node's memory, for its name
MAX_LETTERS = 48  # of a name
MAX_BARS = 20  # of changes
PASSES = 6.0  # of a decode token, in the window of the Gantt chart
Draw = Callable[["Plan", "Axes"], None]


def plot(found: Plan, kind: str, ax: Axes | None) -> Axes:
    """See `Plan.plot`."""
    draw, size, can_draw = FIGURES[valid.known("figure of a plan", kind, FIGURES)]
    if not can_draw(found):
        raise ValueError(f"plan: nothing to draw as {kind!r}, {found.result.status}")
    if ax is None:
        _, ax = optional("matplotlib.pyplot").subplots(
            figsize=size(found), layout="constrained"
        )
    else:
        valid.of_type("plot", "ax", ax, optional("matplotlib.axes").Axes)
    draw(found, ax)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    if any(len(name) > MAX_LETTERS for name in rows):
        ax.set_yticks(ax.get_yticks(), labels=[_short(name) for name in rows])
    for text in ax.figure.findobj(optional("matplotlib.text").Text):
        text.set_parse_math(False)  # names are names, dollars too
    return ax


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def _network(found: Plan, ax: Axes) -> None:
    """A column for each tier: its nodes, and in each how its memory is used."""
    patches = optional("matplotlib.patches")
    tiers = found.network.network.tiers
    largest = max(node.usable_bytes for tier in tiers for node in tier.nodes)
    rows = 0
    for k, tier in enumerate(tiers):
        nodes = [node for node in found.nodes if node.tier == tier.name]
        shown = nodes if len(nodes) <= MAX_NODES else nodes[: MAX_NODES - 1]
        rows = max(rows, len(shown) + (len(shown) < len(nodes)))
        stage = found.stages[k]
        colour = TIERS[k % len(TIERS)]
        ax.add_patch(
            patches.Rectangle((k + 0.08, -0.98), 0.74, 0.56, facecolor=colour, alpha=0.45)
        )
        ax.text(
            k + 0.45, -0.82, _short(tier.name), ha="center", va="center", weight="bold", size=10
        )
        words = found.describe_blocks(stage.blocks)
        ax.text(k + 0.45, -0.66, words, ha="center", va="center", size=8)
        width = 0.74 / found.model.n_blocks
        for at in stage.blocks:  # in the model's whole chain
            left = k + 0.08 + at * width
            ax.add_patch(
                patches.Rectangle((left, -0.54), 0.8 * width, 0.08, color="#333333", lw=0)
            )
        for row, (node, plan) in enumerate(zip(tier.nodes, shown, strict=False)):
            _node(ax, patches, k, row, node.usable_bytes, largest, plan)
        if len(shown) < len(nodes):
            more = f"and {len(nodes) - len(shown)} more"
            ax.text(
                k + 0.45, len(shown) + BAR - 0.06, more, ha="center", size=8, style="italic"
            )
        if tier.link is not None:
            ax.annotate(
                "", (k + 1.08, -0.7), (k + 0.82, -0.7), arrowprops={"arrowstyle": "-|>"}
            )
            rate = f"{tier.link.bytes_per_s * 8 / 1e9:.3g} Gbit/s"
            delay = show_seconds(tier.link.latency_s)
            if tier.link.round_trip_s != 2 * tier.link.latency_s:
                back_s = tier.link.round_trip_s - tier.link.latency_s
                delay += f"\n{show_seconds(back_s)} back"
            ax.text(k + 0.95, -1.06, rate, ha="center", va="bottom", size=7)
            ax.text(k + 0.95, -0.36, delay, ha="center", va="top", size=7)
    handles = [
        patches.Patch(color=colour, label=label)
        for colour, label in ((WEIGHTS, "weights"), (KV, "KV cache"), ("white", "free"))
    ]
    for handle in handles:
        handle.set_edgecolor("#444444")
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    ax.set_xlim(0, len(tiers) - 0.1)
    ax.set_ylim(rows + 0.02, -1.25)
    ax.set_axis_off()


def _node(
    ax: Axes, patches: Any, k: int, row: int, usable: float, largest: float, plan: NodePlan
) -> None:
    """A bar as long as the node's memory, in it weights and KV cache."""
    left, width = k + 0.08, 0.74 * usable / largest
    x = left
    for n_bytes, colour in ((plan.weight_bytes, WEIGHTS), (plan.kv_bytes, KV)):
        length = 0.74 * n_bytes / largest
        ax.add_patch(patches.Rectangle((x, row + BAR), length, 0.34, color=colour, lw=0))
        x += length
    edge = {"fill": False, "edgecolor": "#444444", "lw": 0.8}
    ax.add_patch(patches.Rectangle((left, row + BAR), width, 0.34, **edge))
    used = "" if plan.is_used else " (unused)"
    ax.text(left, row + BAR - 0.06, f"{_short(plan.node)}{used}", va="bottom", size=7.5)
    gb = f"{plan.gpu}, {plan.free_bytes / 1e9:.1f} of {usable / 1e9:.1f} GB free"
    ax.text(left, row + BAR + 0.4, gb, va="top", size=6.5, color="#444444")


def _stages(found: Plan, ax: Axes) -> None:
    """What each stage takes with its link; what binds, marked."""
    stages = found.stages
    rows = np.arange(len(stages))
    times_s = np.array([stage.time_s for stage in stages])
    links_s = np.array([stage.link_s for stage in stages])
    ax.barh(rows, times_s, color=WEIGHTS, label="blocks")
    ax.barh(rows, links_s, left=times_s, color=LINK, label="link to the next tier")
    longest_s = float((times_s + links_s).max())
    for row, stage in enumerate(stages):
        words = f"{show_seconds(stage.time_s + stage.link_s)}, {stage.share:.0%}"
        _beside(ax, longest_s, row, words)
    if found.objective == "bottleneck":
        ax.axvline(longest_s, color=MARK, lw=1.2, ls="--", label="bottleneck")
    ax.set_yticks(rows, labels=[stage.tier for stage in stages])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * longest_s or 1.0)
    of = "its nodes together" if found.objective == "bottleneck" else "its quickest node"
    ax.set_xlabel(f"seconds of one request on each tier, {of}")
    _finish(ax, legend=True)


def _pareto(found: Plan, ax: Axes) -> None:
    """The frontier, and where this plan is."""
    from hypsolve.problem import evaluation

    result = found.result
    assert result.partition is not None
    draw_pareto(pareto_frontier(result.instance), ax)
    here_s = evaluation.bottleneck_s(result.instance, result.partition)
    path_s = evaluation.path_s(result.instance, result.partition)
    ax.plot(1 / here_s if here_s else np.inf, path_s, "D", color=MARK, label="this plan")
    _finish(ax, legend=True)


def draw_pareto(points: list[ParetoPoint], ax: Axes) -> None:
    """Throughput against latency of splits that no other beats in both."""
    rates = [1 / p.bottleneck_s if p.bottleneck_s else np.inf for p in points]
    paths_s = [p.path_s for p in points]
    ax.plot(rates, paths_s, "o-", drawstyle="steps-post", color=WEIGHTS, label="best splits")
    ax.set_xlabel("requests per second that the slowest stage serves one at a time")
    ax.set_ylabel("latency of one request alone (s)")
    _finish(ax)


def _latency(found: Plan, ax: Axes) -> None:
    """How latencies and times to the first token are distributed, in the simulation."""
    trace = found.simulate()
    for values_s, label, colour in (
        (trace.ttft_s, "to the first token", KV),
        (trace.latency_s, "to the last token", WEIGHTS),
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
    n = len(trace.arrival_s)
    _finish(ax, legend=True)
    words = f"{n} requests simulated at {found.rate_per_s:g} a second; dots: p50, p95"
    ax.set_title(words, loc="left", fontsize=9, pad=20)
    ticker = optional("matplotlib.ticker")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _gantt(found: Plan, ax: Axes) -> None:
    """Iterations of each node over a few decode passes, in the middle of the simulation."""
    trace = found.simulate(record_visits=True)
    tpot_s = float(trace.metrics().tpot_s.mean)
    middle_s = float(np.median(trace.arrival_s))
    width_s = PASSES * tpot_s if tpot_s > 0 else float(trace.latency_s.mean())
    end_s = max(min(middle_s + width_s, trace.end_of_run_s), middle_s * (1 + 1e-9) + 1e-12)
    trace.plot_gantt(ax, start_s=middle_s, end_s=end_s)


def _changes(found: Plan, ax: Axes) -> None:
    """What the objective comes to with each change."""
    shown = found.changes[:MAX_BARS]
    rows = np.arange(len(shown))
    values_s = [change.objective_s for change in shown]
    ax.barh(rows, values_s, color=WEIGHTS)
    whole_s = found.result.objective_s if found.fits else max(values_s)
    for row, change in enumerate(shown):
        saves = f", {change.gain:.1%} less" if found.fits else ""
        _beside(ax, whole_s, row, f"{show_seconds(change.objective_s)}{saves}")
    if found.fits:
        ax.axvline(whole_s, color=MARK, lw=1.2, ls="--", label="as it is")
    ax.set_yticks(rows, labels=[change.what for change in shown], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * whole_s or 1.0)
    ax.set_xlabel(f"{found.objective.replace('_', ' ')} (s)")
    _finish(ax, legend=found.fits)


def _finish(ax: Axes, *, legend: bool = False) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
        ax.legend(frameon=False, fontsize=8, **place)


def _beside(ax: Axes, x: float, row: int, words: str) -> None:
    ax.annotate(words, (x, row), (5, 0), textcoords="offset points", va="center", size=8)


def _network_size(found: Plan) -> tuple[float, float]:
    tiers = found.network.network.tiers
    rows = max(min(len(tier.nodes), MAX_NODES) for tier in tiers)
    return max(10.0, 2.6 * len(tiers)), 1.5 + 0.85 * rows


def _rows_size(found: Plan) -> tuple[float, float]:
    n_nodes = sum(len(tier.nodes) for tier in found.network.network.tiers)
    return 10.0, min(1.4 + 0.5 * n_nodes, 12.0)


def _changes_size(found: Plan) -> tuple[float, float]:
    return 10.0, 1.2 + 0.35 * min(len(found.changes), MAX_BARS)


def _has_plan(found: Plan) -> bool:
    return found.fits


def _has_changes(found: Plan) -> bool:
    return bool(found.changes)


Size = Callable[["Plan"], tuple[float, float]]
FIGURES: Mapping[str, tuple[Draw, Size, Callable[[Plan], bool]]] = {
    "network": (_network, _network_size, _has_plan),
    "stages": (_stages, lambda found: (8.0, 1.4 + 0.5 * len(found.stages)), _has_plan),
    "pareto": (_pareto, lambda found: (6.0, 4.0), _has_plan),
    "latency": (_latency, lambda found: (6.0, 4.0), _has_plan),
    "gantt": (_gantt, _rows_size, _has_plan),
    "changes": (_changes, _changes_size, _has_changes),
}
"""By name: how it is drawn, its size in inches, whether a plan has something to draw."""
