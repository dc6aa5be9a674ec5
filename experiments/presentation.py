"""Tables, figures and answers of an experiment, as its definition names them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from experiments import figure_style, registry
from experiments.labels import extrapolation


def tables_of(experiment: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of an experiment: title -> table of texts.

    A title says how many runs have extrapolated costs. ``>`` marks a lower bound: a run that
    ended at the time limit would have taken longer.
    """
    note = extrapolation(frame)
    tables = _called(registry.shown(experiment).tables, experiment, frame)
    return {f"{title} ({note})" if note else title: table for title, table in tables.items()}


def figures_of(experiment: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw the figures of an experiment, if it has any: name of the file -> figure."""
    with figure_style.page():
        return dict(_called(registry.shown(experiment).figures, experiment, frame))


def answers_of(experiment: str, frame: pd.DataFrame) -> list[str]:
    """Return the answers of an experiment in one line each, if it states any."""
    return list(_called(registry.shown(experiment).answers, experiment, frame))


def _called(show: str | Callable[..., Any] | None, experiment: str, frame: pd.DataFrame) -> Any:
    """Call a function, or import it by ``module:name`` first; without one, nothing is shown."""
    if show is None:
        return {}
    if isinstance(show, str):
        module, _, name = show.partition(":")
        show = getattr(importlib.import_module(module), name)
    return show(experiment, frame)  # type: ignore[operator]


def save_figures(experiment: str, frame: pd.DataFrame, out: str | Path) -> list[Path]:
    """Draw the figures of an experiment as PNG files in `out`; return their paths."""
    paths = []
    for name, figure in figures_of(experiment, frame).items():
        path = Path(out) / f"{name}.png"
        figure.savefig(path, dpi=figure_style.DPI)
        plt.close(figure)
        paths.append(path)
    return paths
