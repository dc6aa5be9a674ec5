"""One figure per topic of the claims: every judged setting, and the paper's figure."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style
from experiments.claims.judging import cases
from experiments.claims.statements import CLAIMS, TOPICS, Claim
from experiments.claims.statistics import HYPERION

_VERDICTS = {  # colour, marker, face
    "holds": ("#0072B2", "o", "#0072B2"),
    "open": ("#666666", "o", "white"),
    "fails": ("#D55E00", "X", "#D55E00"),
}
_MEANING = {
    "holds": "holds: whole 95 % interval above 0",
    "open": "hollow: open, interval includes 0",
    "fails": "fails: whole interval below 0",
}
ROW_IN = 0.19


def verdicts(table: pd.DataFrame) -> pd.Series:
    """Return holds, fails or open for each case."""
    verdict = pd.Series("open", index=table.index)
    return verdict.mask(table["low"] > 0, "holds").mask(table["high"] < 0, "fails")


def changes(table: pd.DataFrame, ax: Axes, claim: Claim, networks: Sequence[str]) -> Axes:
    """Draw the cases of a claim, a row per network that has any; bars are medians."""
    verdict = verdicts(table)
    networks = [name for name in networks if (table["network"] == name).any()]
    for row, network in enumerate(networks):
        here = table["network"] == network
        n = int(here.sum())
        heights = row + np.linspace(-0.28, 0.28, n) if n > 1 else np.array([float(row)])
        order = np.argsort(table["change"][here].to_numpy(), kind="stable")
        change = 100 * table["change"][here].to_numpy()[order]
        kinds = verdict[here].to_numpy()[order]
        for kind, (colour, marker, face) in _VERDICTS.items():
            at = kinds == kind
            ax.plot(
                change[at], heights[:n][at], marker, color=colour, mfc=face, ms=3, alpha=0.8
            )
        if n:
            ax.annotate(
                f"{n}", (1, row), (2, 0), ax.get_yaxis_transform(),
                textcoords="offset points", va="center", color="#444444",
            )  # fmt: skip
            ax.plot([np.median(change)] * 2, [row - 0.4, row + 0.4], color="black", lw=1.5)
    if np.isfinite(claim.paper):
        ax.axvline(100 * claim.paper, color="#E69F00", lw=1.2, ls="--")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(networks)), networks)
    ax.set_ylim(len(networks) - 0.4, -0.6)
    unit = {"reduction": "latency lower by (%)", "gain": "more by (%)"}
    ax.set_xlabel(unit.get(claim.measure.kind, "busier by (points)") + claim.unit)
    counts = verdict.value_counts()
    points = "\u00a0points" if claim.measure.kind == "difference" else "\u00a0%"
    answer = (
        f"holds in {counts.get('holds', 0)} of {len(table)}, fails in"
        f" {counts.get('fails', 0)}; median {100 * table['change'].median():.1f}{points}"
    )
    compared = f"against {claim.against}"
    if claim.reference != HYPERION:
        compared = f"{claim.reference} {compared}"
    style.title(ax, claim.text, compared, answer, width=34)
    return style.clean(ax, "x")


def topic_figure(
    topic: str, frame: pd.DataFrame, claims: Sequence[Claim] = CLAIMS
) -> Figure | None:
    """Draw the claims of a topic, a panel each; None if no case decides any of them."""
    judged = [(claim, cases(claim, frame)) for claim in claims if claim.topic == topic]
    judged = [(claim, table) for claim, table in judged if len(table)]
    if not judged:
        return None
    networks = list(dict.fromkeys(pd.concat([table["network"] for _, table in judged])))
    with style.page():
        n_columns = min(len(judged), 2)
        max_networks = max(table["network"].nunique() for _, table in judged)
        n_rows = -(-len(judged) // n_columns)
        figure, axes = plt.subplots(
            n_rows, n_columns, squeeze=False, layout="constrained",
            figsize=(style.WIDTH_IN, (1.3 + ROW_IN * max_networks) * n_rows + 0.9),
        )  # fmt: skip
        for ax in axes.flat[len(judged) :]:
            ax.set_visible(False)
        for (claim, table), ax in zip(judged, axes.flat, strict=False):
            changes(table, ax, claim, networks)
        note = "a point per case, its number on the right; bar: median"
        style.above(figure, _legend(judged), TOPICS[topic], note)
        return figure


def _legend(judged: Sequence[tuple[Claim, pd.DataFrame]]) -> dict[str, plt.Line2D]:
    entries = {
        _MEANING[kind]: plt.Line2D([], [], color=colour, marker=marker, mfc=face, ls="none")
        for kind, (colour, marker, face) in _VERDICTS.items()
    }
    if any(np.isfinite(claim.paper) for claim, _ in judged):
        entries["the paper's figure, up to"] = plt.Line2D([], [], color="#E69F00", ls="--")
    return entries


def save(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Draw every topic as ``claim_TOPIC.png`` in `out`; return the paths."""
    paths = []
    for topic in TOPICS:
        figure = topic_figure(topic, frame)
        if figure is None:
            continue
        paths.append(out / f"claim_{topic}.png")
        figure.savefig(paths[-1], dpi=style.DPI)
        plt.close(figure)
    return paths
