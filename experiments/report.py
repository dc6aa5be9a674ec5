"""What the rows of a sweep say: gaps, ratios, a table per method; DataFrame -> DataFrame."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

_PLACE = ["series", "value", "seed", "method", "options"]
_NAMES = {
    "hyperion": "Hyperion",
    "gpipe": "GPipe",
    "heft": "HEFT",
    "heft_split": "HEFT cuts",
    "hypsplit_dp": "HypSplit-DP",
    "even_split": "even split",
    "memory_proportional": "memory-proportional",
    "speed_proportional": "speed-proportional",
    "torchgpipe": "torchgpipe",
    "partition_cbc": "MILP CBC",
    "partition_highs": "MILP HiGHS",
    "partition_scip": "MILP SCIP",
    "partition_cpsat": "CP-SAT",
    "joint_cpsat": "joint CP-SAT",
    "joint_milp": "joint MILP",
    "hypsched_rt": "HypSched-RT",
    "path": "path cuts",
    "round_robin": "round robin",
    "join_shortest_queue": "shortest queue",
}


def load(path: str | Path) -> pd.DataFrame:
    """Read a sweep's CSV; where a run was repeated (new version, other limit), the last counts.

    Raises
    ------
    FileNotFoundError
        Saying which command writes the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not there yet: run `python -m experiments.sweep --full"
            f" {path.stem}` in the root of the repository"
        )
    frame = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
    for place in (_PLACE, ["what"]):
        if set(place) <= set(frame):
            return frame.drop_duplicates(place, keep="last").reset_index(drop=True)
    return frame


def results(name: str, root: str | Path = "..") -> pd.DataFrame | None:
    """Rows of an experiment for a notebook: the full run's, else a shorter one's."""
    for folder in ("results", "results/default", "results/quick"):
        path = Path(root) / folder / f"{name}.csv"
        if path.exists():
            print(f"{name}: rows of {folder}/{name}.csv")
            return load(path)
    print(f"{name}: no rows yet; run `python -m experiments.sweep --full {name}` in the root")
    return None


def label(method: str, options: str) -> str:
    """How tables and legends call a method with its options (JSON)."""
    values = [_NAMES.get(str(v), str(v)) for v in json.loads(options).values()]
    return " + ".join([_NAMES.get(method, method), *values])


def with_best_bound(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``label``, ``best_bound_s`` and ``best_gap``.

    The best bound is the largest that any method proved for the same instance (digest): a
    heuristic proves none of its own. ``best_gap`` is the relative distance to it, nan without
    an answer.
    """
    proven_s = frame["bound_s"].where(np.isfinite(frame["bound_s"]))
    best_bound_s = proven_s.groupby(frame["digest"]).transform("max").fillna(0.0)
    answer_s = frame["objective_s"].where(np.isfinite(frame["objective_s"]))
    gap = ((answer_s - best_bound_s) / answer_s.where(answer_s > 0)).clip(lower=0.0)
    calls = zip(frame["method"], frame["options"], strict=True)
    return frame.assign(
        label=[label(method, options) for method, options in calls],
        best_bound_s=best_bound_s,
        best_gap=gap.mask(answer_s == 0, 0.0),
    )


def relative_to(frame: pd.DataFrame, column: str, reference: str) -> pd.DataFrame:
    """Add ``ratio``: `column` over that of the method `reference` on the same instance.

    Rows without an answer keep a ratio of nan; nothing is dropped.
    """
    answered = np.isfinite(frame["objective_s"])
    of_reference = frame[answered & (frame["method"] == reference) & (frame["options"] == "{}")]
    base = frame["digest"].map(of_reference.groupby("digest")[column].median())
    ratio = (frame[column] / base).where(answered)
    calls = zip(frame["method"], frame["options"], strict=True)
    return frame.assign(
        ratio=ratio, label=[label(method, options) for method, options in calls]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method: how often it answered, its gaps to the best bound, its times."""
    table = with_best_bound(frame)
    groups = table.groupby(table["label"].rename("method"), sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "answered": groups["objective_s"].agg(lambda s: int(np.isfinite(s).sum())),
            "optimal": groups["status"].agg(lambda s: int((s == "optimal").sum())),
            "infeasible": groups["status"].agg(lambda s: int((s == "infeasible").sum())),
            "median gap": groups["best_gap"].median(),
            "largest gap": groups["best_gap"].max(),
            "median time": groups["solve_time_s"].median(),
            "longest time": groups["solve_time_s"].max(),
        }
    )


def seconds(value: float) -> str:
    """Seconds for people, three digits."""
    if not np.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def percent(value: float) -> str:
    """A share for people; - without one."""
    return f"{100 * value:.2f} %" if np.isfinite(value) else "-"


def tables(experiment: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a sweep prints of an experiment: title -> table of texts, a row per method."""
    if experiment == "speed":
        return {"speed": _speed_table(frame)}
    if experiment == "calibration_points":
        return {}
    if experiment == "calibration":
        return {
            "calibration: mean absolute error of predicted block times": _error_table(frame)
        }
    if experiment == "latency":
        return {"mean latency relative to Hyperion's on the same instance": _ratio_table(frame)}
    if experiment == "solve_time":
        return {"partition: time relative to HypSplit-DP's": _time_table(frame)}
    of_partition = frame["series"].str.startswith("partition")
    kinds = {"partition and schedule together": ~of_partition, "partition": of_partition}
    return {
        f"{kind}: gap to the best bound any method proved": _in_words(summary(frame[rows]))
        for kind, rows in kinds.items()
        if rows.any()
    }


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    words = {"gap": percent, "time": seconds, "ratio": "{:.4g}".format}
    return table.apply(
        lambda column: column.map(words.get(str(column.name).split()[-1], str)), axis=0
    )


def _speed_table(frame: pd.DataFrame) -> pd.DataFrame:
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
    ratios = relative_to(frame, "solve_time_s", "hypsplit_dp").groupby("label")["ratio"]
    table = summary(frame).drop(columns=["infeasible"])
    return _in_words(
        table.assign(**{"median ratio": ratios.median(), "largest ratio": ratios.max()})
    )


def _ratio_table(frame: pd.DataFrame) -> pd.DataFrame:
    ratios = relative_to(frame, "objective_s", "hyperion").groupby("label")["ratio"]
    table = summary(frame)[["runs", "answered", "infeasible", "median time"]]
    return _in_words(
        table.assign(
            **{
                "smallest ratio": ratios.min(),
                "median ratio": ratios.median(),
                "largest ratio": ratios.max(),
            }
        )
    )
