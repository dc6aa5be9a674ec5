"""Errors of forecasts against measured runs: by group, in tables, in figures, in one line."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figure_style as style

GROUP = ["gpu", "runtime", "model"]
QUANTITIES = {"tpot_s": "TPOT", "tokens_per_s": "tokens/s", "ttft_s": "TTFT"}
EXTERNAL = ("aiconfigurator",)
KNOWN = {"gpu": "h100_sxm", "runtime": "trtllm", "model": "meta-llama/Llama-3.1-8B-Instruct",
         "tensor_parallel": 1}  # fmt: skip
"""The 42 runs that the targets name: those of this group on one GPU."""


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a claim is about, with relative errors of each quantity.

    Left out are runs by a rule (``left_out``), and runs that one of our predictors could not
    predict: all are compared on the same runs. `EXTERNAL` predictors may lack some.
    """
    frame = frame.copy()
    for name in QUANTITIES:
        for side in ("measured", "predicted"):
            frame[f"{side}_{name}"] = pd.to_numeric(frame[f"{side}_{name}"], errors="coerce")
        frame[name] = (frame[f"predicted_{name}"] / frame[f"measured_{name}"] - 1).abs()
    run = [name for name in frame if name not in _OF_A_PREDICTOR]
    frame["run"] = frame.groupby(run, sort=False, dropna=False).ngroup()
    own = ~frame["predictor"].isin(EXTERNAL)
    unpredicted = frame.loc[own & frame["predicted_tpot_s"].isna(), "run"]
    kept = frame["left_out"].fillna("").eq("") & ~frame["run"].isin(unpredicted)
    return frame[kept]


_OF_A_PREDICTOR = {
    "predictor", "reason", *QUANTITIES, *(f"predicted_{name}" for name in QUANTITIES),
}  # fmt: skip


def by_group(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean absolute relative errors by group and predictor.

    Returns
    -------
    DataFrame
        gpu, runtime, model, predictor, n (runs), and a column for each of `QUANTITIES`.
    """
    groups = counted(frame).groupby([*GROUP, "predictor"], sort=False)
    errors = groups[list(QUANTITIES)].mean()
    errors.insert(0, "n", groups.size())
    return errors.reset_index()


MAY_GROW = 0.05  # share by which an error may rise without a line in the changelog
ROUNDING = 1e-4  # of the errors in `validation_errors.csv`


def grown(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Return the errors of groups that rose by more than `MAY_GROW`, a line each.

    Parameters
    ----------
    before, after : DataFrame
        As `by_group` returns them. Groups and predictors that only one of them has, and
        `EXTERNAL` predictors, are not compared.

    Returns
    -------
    list of str
        Group, predictor, quantity, both errors.
    """
    keys = [*GROUP, "predictor"]
    both = before.merge(after, on=keys, suffixes=("_before", "_after"))
    lines = []
    for row in both[~both["predictor"].isin(EXTERNAL)].to_dict("records"):
        for name, words in QUANTITIES.items():
            old, new = row[f"{name}_before"], row[f"{name}_after"]
            if new > (1 + MAY_GROW) * old + ROUNDING:
                lines.append(
                    f"{group_name(row)}: {words} by {row['predictor']},"
                    f" {_percent(old)} -> {_percent(new)}"
                )
    return lines


def group_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row's group, such as ``h100_sxm, vllm, Qwen3-32B``."""
    return ", ".join([row["gpu"], row["runtime"], str(row["model"]).rpartition("/")[2]])


def untold(lines: list[str], changelog: str) -> list[str]:
    """Return the lines of `grown` whose group is not named under *Results affected*."""
    parts = re.split(r"^(###? .*)$", changelog, flags=re.MULTILINE)
    told = " ".join(
        " ".join(text.split())
        for head, text in zip(parts[1::2], parts[2::2], strict=True)
        if head.endswith("Results affected")
    )
    return [line for line in lines if line.partition(":")[0] not in told]


def validation_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of errors: all predictors side by side, and by group."""
    rows, errors = counted(frame), by_group(frame)
    known = rows[(rows[list(KNOWN)] == pd.Series(KNOWN)).all(axis=1)]
    lacking = rows.loc[rows["tpot_s"].isna(), "run"]
    common = rows[~rows["run"].isin(lacking)]
    order = list(dict.fromkeys(frame["predictor"]))
    tables = {
        f"median over {len(errors.groupby(GROUP))} groups of the mean absolute error":
            _summary(errors.groupby("predictor")[list(QUANTITIES)].median(), order),
        f"mean absolute error of all {rows['run'].nunique()} runs":
            _summary(rows.groupby("predictor")[list(QUANTITIES)].mean(), order),
    }  # fmt: skip
    if len(lacking) and len(common):
        medians = common.groupby([*GROUP, "predictor"])[list(QUANTITIES)].mean()
        title = f"median over groups, on the {common['run'].nunique()} runs that all forecast"
        tables[title] = _summary(medians.groupby("predictor").median(), order)
    if len(known):
        title = (
            f"mean absolute error of {known['run'].nunique()} runs of Llama-3.1-8B on one H100"
            " with TensorRT-LLM"
        )
        tables[title] = _summary(known.groupby("predictor")[list(QUANTITIES)].mean(), order)
    for name, words in QUANTITIES.items():
        wide = errors.pivot(index=[*GROUP, "n"], columns="predictor", values=name)[order]
        wide.index = pd.Index([_label(key) for key in wide.index], name="group, runs")
        tables[f"mean absolute error of {words}, by group"] = wide.map(_percent)
    tables["runs left out"] = _left_out(frame)
    return tables


def _summary(errors: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    return errors.reindex(order).rename(columns=QUANTITIES).map(_percent)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"


def _label(key: tuple[Any, ...]) -> str:
    gpu, runtime, model, n = key
    return f"{gpu}, {runtime}, {str(model).rpartition('/')[2]}, {n}"


def _left_out(frame: pd.DataFrame) -> pd.DataFrame:
    """Count runs by the rule that leaves them out, or by the reason of a missing forecast."""
    first = frame[frame["predictor"] == frame["predictor"].iloc[0]]
    reasons = frame["reason"].fillna("")
    counts = {"all runs": len(first)}
    for rule, rows in first[first["left_out"].fillna("") != ""].groupby("left_out"):
        counts[str(rule)] = len(rows)
    for predictor, rows in frame[reasons != ""].groupby("predictor"):
        for reason, some in rows.groupby("reason"):
            counts[f"{predictor}: {reason}"] = len(some)
    counts["counted"] = counted(frame)["run"].nunique()
    return pd.DataFrame({"runs": list(counts.values())}, pd.Index(counts, name="rule")).map(str)


LABELS = {
    "today": "simulation, three numbers per GPU",
    "today_fluid": "fluid model, three numbers per GPU",
    "calibrated_new_groups": "fitted costs, whole group held out",
    "calibrated_new_lengths": "fitted costs, half of the lengths held out",
    "simulated_new_groups": "simulation of fitted costs, whole group held out",
    "simulated_new_lengths": "simulation of fitted costs, half of the lengths held out",
    "aiconfigurator": "NVIDIA aiconfigurator 0.12",
}
HIDDEN = ("today_fluid", "simulated_new_groups", "simulated_new_lengths")
"""Predictors that scatter plots leave out, for others look like them."""


def validation_figures(_: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Draw predicted against measured values, and errors by group."""
    rows, errors = counted(frame), by_group(frame)
    if not len(rows):
        return {}
    return {"validation": _scatters(rows), "validation_groups": _groups(errors)}


def _scatters(rows: pd.DataFrame) -> Figure:
    predictors = [name for name in dict.fromkeys(rows["predictor"]) if name not in HIDDEN]
    with style.page():
        figure, axes = plt.subplots(
            len(predictors), 2, figsize=(style.WIDTH_IN, 2.3 * len(predictors) + 0.5),
            squeeze=False, layout="constrained", sharex="col", sharey="col",
        )  # fmt: skip
        for line, predictor in zip(axes, predictors, strict=True):
            of_one = rows[rows["predictor"] == predictor]
            for ax, name in zip(line, ("tpot_s", "tokens_per_s"), strict=True):
                _scatter(ax, of_one, name, predictor)
        for ax, unit in zip(axes[-1], ("TPOT (s)", "tokens/s"), strict=True):
            ax.set_xlabel(f"measured {unit}")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn = dict(zip(labels, handles, strict=True))
        style.above(figure, drawn, "How far are forecasts from measured servers?")
        return figure


def _scatter(ax: Axes, rows: pd.DataFrame, name: str, predictor: str) -> None:
    for i, (gpu, of_gpu) in enumerate(rows.groupby("gpu")):
        ax.plot(
            of_gpu[f"measured_{name}"], of_gpu[f"predicted_{name}"],
            "osDv^<>Pd"[i % 9], color=f"C{i % 10}", ms=2.5, alpha=0.7, label=str(gpu),
        )  # fmt: skip
    ends = [rows[f"measured_{name}"].min(), rows[f"measured_{name}"].max()]
    ax.plot(ends, ends, color="black", lw=0.8)
    ax.loglog()
    style.plain_log(ax.xaxis)
    style.plain_log(ax.yaxis)
    ax.set_ylabel("predicted")
    error = _percent(float(rows[name].mean()))
    style.title(
        ax, f"{LABELS.get(predictor, predictor)}: mean error of {QUANTITIES[name]} {error}"
    )
    style.clean(ax)


def _groups(errors: pd.DataFrame) -> Figure:
    keys = list(dict.fromkeys(map(tuple, errors[[*GROUP, "n"]].itertuples(index=False))))
    place = {key[:3]: i for i, key in enumerate(keys)}
    with style.page():
        figure, axes = plt.subplots(
            1, 2, figsize=(style.WIDTH_IN, 1.4 + 0.28 * len(keys)), sharey=True,
            layout="constrained",
        )  # fmt: skip
        for ax, name in zip(axes, ("tpot_s", "tokens_per_s"), strict=True):
            for i, (predictor, rows) in enumerate(errors.groupby("predictor", sort=False)):
                heights = [place[key] for key in rows[GROUP].itertuples(index=False, name=None)]
                ax.plot(
                    100 * rows[name], heights, "osDv^<>Pd"[i % 9], color=f"C{i % 10}", ms=4,
                    mfc="none" if i % 2 else None, label=LABELS.get(predictor, predictor),
                )  # fmt: skip
            style.log_ticks(ax, (1, 2, 5, 10, 20, 50, 100, 200))
            ax.set_xlabel(f"mean error of {QUANTITIES[name]} (%)")
            style.clean(ax, "x")
        axes[0].set_yticks(range(len(keys)), [textwrap.fill(_label(key), 38) for key in keys])
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        drawn: Mapping[str, Any] = dict(zip(labels, handles, strict=True))
        style.above(figure, drawn, "Which groups of runs are forecast well?")
        return figure


def answers(_: str, frame: pd.DataFrame) -> list[str]:
    """Return a line per predictor: median errors over groups."""
    medians = by_group(frame).groupby("predictor", sort=False)[list(QUANTITIES)].median()
    return [
        f"{predictor}: median over groups, "
        + ", ".join(f"{QUANTITIES[name]} {_percent(row[name])}" for name in QUANTITIES)
        for predictor, row in medians.iterrows()
    ]
