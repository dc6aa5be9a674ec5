"""Tables and figures of an experiment, as its definition names them."""

import importlib
from collections.abc import Callable, Mapping
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


def _called(
    show: str | Callable[..., Mapping[str, Any]] | None, experiment: str, frame: pd.DataFrame
) -> Mapping[str, Any]:
    """Call a function, or import it by ``module:name`` first; without one, nothing is shown."""
    if show is None:
        return {}
    if isinstance(show, str):
        module, _, name = show.partition(":")
        show = getattr(importlib.import_module(module), name)
    return show(experiment, frame)  # type: ignore[operator, no-any-return]


def save_figures(experiment: str, frame: pd.DataFrame, out: str | Path) -> list[Path]:
    """Draw the figures of an experiment as PNG files in `out`; return their paths."""
    paths = []
    for name, figure in figures_of(experiment, frame).items():
        path = Path(out) / f"{name}.png"
        figure.savefig(path, dpi=figure_style.DPI)
        plt.close(figure)
        paths.append(path)
    return paths


def save_tables(
    name: str, tables: Mapping[str, pd.DataFrame], out: str | Path, notes: str = ""
) -> list[Path]:
    """Write tables of texts as ``NAME.md`` in `out`; return its path, none without a table."""
    if not tables:
        return []
    command = f"Written by `python -m experiments.sweep` from `{name}.csv`; do not edit."
    parts = [f"<!-- {command} -->", f"# {name}"]
    parts += [f"**{title}**\n\n{markdown(table)}" for title, table in tables.items()]
    parts += [notes] if notes else []
    path = Path(out) / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [path]


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown, its index first; numbers stand on the right."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    rows = [
        [str(index), *map(str, cells)]
        for index, cells in zip(table.index, table.to_numpy(), strict=True)
    ]
    rule = [":--", *("--:" for _ in table.columns)]
    lines = [head, rule, *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )
