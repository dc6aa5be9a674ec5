"""The figure of a `RentCurve`: the least price against the rate, and its bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypsolve.planning.palette import BLUE, GREY, INK, MUTED, RC, VERMILION, drawing
from hypsolve.problem.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.planning.rent_curve import RentCurve, RentPoint

SIZE = 7.2, 4.2  # inches
N_LETTERS = 34  # of a line of the machines of a point


def plot_curve(curve: RentCurve, ax: Axes | None = None) -> Axes:
    """Draw a curve; see `RentCurve.plot`."""
    pyplot = optional("matplotlib.pyplot")
    found = [point for point in curve.points if math.isfinite(point.price_per_hour)]
    if not found:
        raise ValueError("rent_curve: no curve to draw, for no machines carry any of its rates")
    with drawing(RC):
        if ax is None:
            _, ax = pyplot.subplots(figsize=SIZE, layout="constrained")
        rates = [point.requests_per_s for point in found]
        prices = [point.price_per_hour for point in found]
        # prices between the points were not solved for
        ax.plot(rates, prices, "o:", color=BLUE, linewidth=0.8, label="cheapest machines")
        open_points = [point for point in found if not point.is_proved]
        if open_points:
            ax.plot(
                [point.requests_per_s for point in open_points],
                [point.bound_per_hour for point in open_points],
                "v", color=GREY, label="proved: none for less",
            )  # fmt: skip
        for point in found:
            is_asked = point.requests_per_s == curve.requests_per_s
            ax.annotate(
                _machines(point), (point.requests_per_s, point.price_per_hour),
                xytext=(6, -4), textcoords="offset points", ha="left", va="top",
                color=INK if is_asked else MUTED, fontweight="bold" if is_asked else "normal",
            )  # fmt: skip
        ax.axvline(curve.requests_per_s, color=GREY, linestyle=":", zorder=0)
        ax.text(
            curve.requests_per_s, 1.0, " asked for", color=MUTED, va="top",
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip
        lost = [p.requests_per_s for p in curve.points if not math.isfinite(p.price_per_hour)]
        if lost:
            ax.axvspan(lost[0], lost[-1] * 1.02, color=VERMILION, alpha=0.1, linewidth=0)
            ax.text(
                lost[0], 0.5, " not carried", color=VERMILION, va="center",
                transform=ax.get_xaxis_transform(),
            )  # fmt: skip
        ax.set_xlim(0, 1.3 * max(point.requests_per_s for point in curve.points))
        ax.set_ylim(0, 1.15 * max(prices) or 1.0)
        ax.set_xlabel("requests/s, in the fluid model")
        ax.set_ylabel(f"{curve.currency} per hour".strip())
        ax.set_title(f"The least price of machines for {curve.model}, by rate", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        if open_points:
            ax.legend(frameon=False, loc="upper left")
    return ax


def _machines(point: RentPoint) -> str:
    """Write the machines of a point in short lines."""
    lines = [""]
    for name, n in point.machines.items():
        word = f"{n} x {name}"
        if lines[-1] and len(lines[-1]) + len(word) > N_LETTERS:
            lines[-1] += ","
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + word
    return "\n".join(lines)
