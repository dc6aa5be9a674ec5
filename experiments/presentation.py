"""What a sweep shows of an experiment: its tables and figures, by name."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from experiments import figures, report
from experiments.claims import QUESTIONS
from experiments.claims import figures as claim_figures
from experiments.claims import tables as claim_tables
from experiments.labels import extrapolation


def tables_of(experiment: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a sweep prints of an experiment: title -> table of texts, a row per method.

    The title says so where costs are extrapolated; ``>`` marks a lower bound, for runs at the
    time limit would have taken longer.
    """
    note = extrapolation(frame)
    tables = claim_tables.tables if experiment in QUESTIONS else report.tables
    return {
        f"{title} ({note})" if note else title: table
        for title, table in tables(experiment, frame).items()
    }


def figures_of(experiment: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """The figures of an experiment, by the name of their file."""
    if experiment in QUESTIONS:
        return claim_figures.figures_of(experiment, frame)
    return figures.FIGURES[experiment](frame)


def save_figures(experiment: str, frame: pd.DataFrame, out: str | Path) -> list[Path]:
    """Draw an experiment's figures as PNG files in `out`; return their paths."""
    paths = []
    for name, figure in figures_of(experiment, frame).items():
        path = Path(out) / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
        paths.append(path)
    return paths
