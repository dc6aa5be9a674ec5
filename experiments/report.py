"""Gaps, ratios and tables from the rows of a sweep; DataFrame -> DataFrame."""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.labels import (
    at_limit,
    describe_largest,
    describe_median,
    label,
    percent,
    seconds,
)

_PLACE = ["series", "value", "seed", "method", "options"]


def load(path: str | Path, rows: Collection[int] | None = None) -> pd.DataFrame:
    """Read the CSV of a sweep; of a run that was repeated, the last row counts.

    Parameters
    ----------
    path : str or path
    rows : collection of int, optional
        Numbers of the rows to keep, counted from 0; default: all.

    Raises
    ------
    FileNotFoundError
        If it is not there; the message names the command that writes it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} does not exist yet: run `python -m experiments.sweep --full"
            f" {path.stem}` in the root of the repository"
        )
    frame = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
    if rows is not None:
        frame = frame[frame.index.isin(rows)]
    for place in (_PLACE, ["what"]):
        if set(place) <= set(frame):
            return frame.drop_duplicates(place, keep="last").reset_index(drop=True)
    return frame


def results(name: str, root: str | Path = "..") -> pd.DataFrame | None:
    """Return the rows of an experiment for a notebook, of the longest run that is there."""
    for folder in ("results", "results/default", "results/quick"):
        path = Path(root) / folder / f"{name}.csv"
        if path.exists():
            print(f"{name}: rows of {folder}/{name}.csv")
            return load(path)
    print(f"{name}: no rows yet; run `python -m experiments.sweep --full {name}` in the root")
    return None


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``label``, the name of each method with its options in tables and legends."""
    calls = zip(frame["method"], frame["options"], strict=True)
    return frame.assign(label=[label(method, options) for method, options in calls])


def with_best_bound(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``label``, ``best_bound_s`` and ``best_gap``.

    The best bound is the largest that any method proved for the instance (digest), because
    heuristics prove none. ``best_gap`` is (objective - best bound) / objective; it is nan
    without an answer. A frame that has the columns is returned as it is: add them before rows
    of a method are left out, for its bounds count for the others.
    """
    if "best_gap" in frame:
        return frame
    proven_s = frame["bound_s"].where(np.isfinite(frame["bound_s"]))
    best_bound_s = proven_s.groupby(frame["digest"]).transform("max").fillna(0.0)
    answer_s = frame["objective_s"].where(np.isfinite(frame["objective_s"]))
    gap = ((answer_s - best_bound_s) / answer_s.where(answer_s > 0)).clip(lower=0.0)
    return labelled(frame).assign(
        best_bound_s=best_bound_s,
        best_gap=gap.mask(answer_s == 0, 0.0),
    )


def relative_to(frame: pd.DataFrame, column: str, reference: str) -> pd.DataFrame:
    """Add ``ratio``: `column` divided by its value for the method `reference`, by instance.

    A time counts with or without an answer; it is a lower bound where ``at_limit``, which is
    added too, is true. An objective needs an answer of both methods; otherwise the ratio is
    nan. No row is dropped.
    """
    counts = np.isfinite(frame[column])
    of_reference = frame[counts & (frame["method"] == reference) & (frame["options"] == "{}")]
    base = frame["digest"].map(of_reference.groupby("digest")[column].median())
    return labelled(frame).assign(
        ratio=(frame[column] / base).where(counts), at_limit=at_limit(frame)
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise each method: its answers, its gaps to the best bound, its times."""
    table = with_best_bound(frame).assign(at_limit=at_limit(frame))
    groups = table.groupby(table["label"].rename("method"), sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "answered": groups["objective_s"].agg(lambda s: int(np.isfinite(s).sum())),
            "optimal": groups["status"].agg(lambda s: int((s == "optimal").sum())),
            "infeasible": groups["status"].agg(lambda s: int((s == "infeasible").sum())),
            "at the limit": groups["at_limit"].sum(),
            "median gap": groups["best_gap"].median(),
            "largest gap": groups["best_gap"].max(),
            "median time": groups["solve_time_s"].median(),
            "longest time": groups["solve_time_s"].max(),
        }
    )


def default_tables(name: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return one table of an experiment with `solve`: a row per method."""
    return {f"{name}: gap to the best bound that any method proved": _describe(summary(frame))}


def gap_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table of gaps and times per kind of problem, and the gaps at scale by size."""
    titles = {"joint": "partition and schedule together", "scale": "the same at scale"}
    kinds = gap_kinds(frame)
    tables = {
        title: table
        for kind, rows in kinds.items()
        for title, table in default_tables(titles.get(kind, kind), rows).items()
    }
    if "scale" in kinds:
        tables["the same at scale: median gap by number of requests"] = _gaps_by_value(
            kinds["scale"]
        )
    return tables


def latency_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the table of mean latencies relative to Hyperion's."""
    title = "mean latency relative to Hyperion's, where both have an answer"
    return {title: _ratio_table(frame)}


def solve_time_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the table of solve times relative to HypSplit-DP's."""
    return {"partition: time relative to HypSplit-DP's": _time_table(frame)}


def speed_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the table of speeds and targets."""
    title = (
        "speed; met: the median is below the target; a row `hypsplit_dp / NAME` compares the"
        " exact method with a heuristic that proves nothing"
    )
    return {title: speed_table(frame)}


def calibration_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the table of errors per GPU."""
    return {"calibration: mean absolute error of predicted block times": _error_table(frame)}


def gap_kinds(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split the rows of `gap`: joint problems, joint problems at scale, partition problems."""
    of_partition = frame["series"].str.startswith("partition")
    at_scale = frame["series"].str.startswith("at scale")
    kinds = {
        "joint": ~of_partition & ~at_scale, "scale": at_scale, "partition": of_partition,
    }  # fmt: skip
    return {kind: frame[rows] for kind, rows in kinds.items() if rows.any()}


def _gaps_by_value(frame: pd.DataFrame) -> pd.DataFrame:
    """Tabulate median gaps: a row per method, a column per value of the axis."""
    table = with_best_bound(frame)
    methods = list(dict.fromkeys(table["label"]))
    gaps = table.groupby(["label", "value"])["best_gap"].median().unstack()
    gaps.columns = [f"{value:g}" for value in gaps.columns]
    return gaps.reindex(methods).map(percent).rename_axis(index="method")


def _describe(table: pd.DataFrame) -> pd.DataFrame:
    words = {"gap": percent, "time": seconds, "ratio": "{:.4g}".format}
    return table.apply(
        lambda column: column.map(words.get(str(column.name).split()[-1], str)), axis=0
    )


def speed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what was timed, the target, the minimum and median, and whether it is met."""
    columns = ["target", "min", "median", "unit", "repeats", "met"]
    return frame.set_index("what")[columns].map(
        lambda cell: f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    )


def _error_table(frame: pd.DataFrame) -> pd.DataFrame:
    table = frame[frame["fitted"]].pivot_table(
        index="gpu", columns=["cost_model", "phase"], values="mape"
    )
    table.columns = [" ".join(column) for column in table.columns]
    return table.map(percent)


def _time_table(frame: pd.DataFrame) -> pd.DataFrame:
    table = _describe(summary(frame).drop(columns=["infeasible"]))
    runs = relative_to(frame, "solve_time_s", "hypsplit_dp").groupby("label")
    for name, describe in (
        ("median ratio", describe_median),
        ("largest ratio", describe_largest),
    ):
        table[name] = pd.Series({key: describe(g["ratio"], g["at_limit"]) for key, g in runs})
    return table


def frontier_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table per setting: optima that each method proved, its times and its gaps."""
    tables = {}
    for (series, value), runs in with_best_bound(frame).groupby(
        ["series", "value"], sort=False
    ):
        groups = runs.groupby(runs["label"].rename("method"), sort=False)
        tables[f"{series}, {value:g} requests"] = _describe(
            pd.DataFrame(
                {
                    "seeds": groups.size(),
                    "proved": groups["status"].agg(lambda s: int((s == "optimal").sum())),
                    "median time": groups["solve_time_s"].median(),
                    "longest time": groups["solve_time_s"].max(),
                    "own median gap": groups["gap"].median(),
                    "own largest gap": groups["gap"].max(),
                    "largest best-bound gap": groups["best_gap"].max(),
                }
            )
        )
    return tables


def traces(frame: pd.DataFrame) -> pd.DataFrame:
    """Expand the column ``trace`` to a row per point.

    Returns
    -------
    DataFrame
        label, series, seed, elapsed_s; ``above`` and ``below``: distance of the objective and
        of the bound from the best objective of the instance, in % of it; ``gap``: (objective -
        bound) / objective in %, 100 before the first answer.
    """
    best_s = frame["objective_s"].groupby(frame["digest"]).transform("min")
    rows = []
    for (_, run), best in zip(frame.iterrows(), best_s, strict=True):
        for elapsed_s, objective_s, bound_s in json.loads(run["trace"]):
            rows.append(
                {
                    "label": label(run["method"], run["options"]),
                    "series": f"{run['series']}, {run['value']:g} requests",
                    "seed": run["seed"],
                    "elapsed_s": elapsed_s,
                    "above": np.nan if objective_s is None else 100 * (objective_s / best - 1),
                    "below": 100 * (1 - bound_s / best),
                    "gap": 100.0
                    if objective_s is None
                    else 100 * max(0.0, 1 - bound_s / objective_s),
                }
            )
    return pd.DataFrame(rows)


def _ratio_table(frame: pd.DataFrame) -> pd.DataFrame:
    ratios = relative_to(frame, "objective_s", "hyperion").groupby("label")["ratio"]
    table = summary(frame)[["runs", "answered", "infeasible", "median time"]]
    return _describe(
        table.assign(
            **{
                "smallest ratio": ratios.min(),
                "median ratio": ratios.median(),
                "largest ratio": ratios.max(),
            }
        )
    )
