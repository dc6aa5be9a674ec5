"""Compare predicted block times with measured ones, per GPU, source and phase.

``python -m experiments.sweep calibration`` or ``python -m experiments.calibration`` writes
``calibration.csv`` and ``calibration_points.csv``. The second holds geometric means over groups
of rows instead of measured rows.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.fit_profiles import FITTED, NAMES, ONE_MODEL, data_dir, fit, load_times
from hypsolve import catalog
from hypsolve.problem import costs
from hypsolve.problem.deployment import CostModel

SET = ["gpu", "source", "fitted", "phase", "cost_model"]
N_GROUPS = 10


def points(data: Path) -> pd.DataFrame:
    """Return predicted and measured seconds of every block time and cost model.

    Parameters
    ----------
    data : Path
        Folder that holds ``gpu_profiles``.

    Returns
    -------
    DataFrame
        One row per block time and cost model: gpu, source, fitted (the profile was
        fitted to this row), model, phase, cost_model, predicted_s, unseen_s (predicted by a fit
        to the other models; nan if the GPU is not fitted, or to one model), measured_s.
    """
    times = load_times(data)
    slugs = {gpu: slug for slug, gpu in NAMES.items()}
    times = times[times.gpu.isin(slugs)]
    parts = []
    for gpu, rows in times.groupby("gpu"):
        profile = catalog.gpu(slugs[gpu])
        for cost_model in CostModel:
            part = rows[["gpu", "source", "fitted", "model", "phase"]].assign(
                cost_model=str(cost_model),
                predicted_s=costs.step_s(profile, rows.flops, rows.bytes, cost_model),
                unseen_s=np.nan,
                measured_s=rows.seconds,
            )
            if cost_model is CostModel.ROOFLINE and gpu in FITTED and gpu not in ONE_MODEL:
                part["unseen_s"] = _predict_unseen(rows)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _predict_unseen(rows: pd.DataFrame) -> pd.Series:
    """Predict the seconds of each fitted row by a fit to the other models of its GPU."""
    fitted = rows[rows.fitted]
    unseen_s = pd.Series(np.nan, index=rows.index)
    if fitted.model.nunique() == 1:
        return unseen_s
    for model, held_out in fitted.groupby("model"):
        seen = fitted[fitted.model != model]
        t0_s, flops_per_s, bytes_per_s = fit(
            seen.flops.to_numpy(), seen.bytes.to_numpy(), seen.seconds.to_numpy()
        )
        unseen_s[held_out.index] = t0_s + np.maximum(
            held_out.flops / flops_per_s, held_out.bytes / bytes_per_s
        )
    return unseen_s


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Reduce `points` to one row per set.

    Returns
    -------
    DataFrame
        gpu, source, fitted, phase, cost_model, n, mape (mean absolute relative error; 0.05 is
        5 %), median_ratio (predicted / measured), mape_unseen (mape of ``unseen_s``).
    """
    ratio = rows.predicted_s / rows.measured_s
    table = rows.assign(
        ratio=ratio,
        error=(ratio - 1).abs(),
        unseen_error=(rows.unseen_s / rows.measured_s - 1).abs(),
    )
    return (
        table.groupby(SET)
        .agg(
            n=("error", "size"),
            mape=("error", "mean"),
            median_ratio=("ratio", "median"),
            mape_unseen=("unseen_error", "mean"),
        )
        .reset_index()
    )


def binned(rows: pd.DataFrame) -> pd.DataFrame:
    """Reduce each set to geometric means over tenths of its measured times.

    Returns
    -------
    DataFrame
        gpu, source, fitted, phase, cost_model, tenth (below `N_GROUPS`; a set of fewer rows is
        one group), n, predicted_s, measured_s.
    """
    sets = rows.groupby(SET)
    rank = sets.measured_s.rank(method="first") - 1
    n = sets.measured_s.transform("size")
    table = rows.assign(tenth=np.where(n < N_GROUPS, 0, rank * N_GROUPS // n).astype(int))
    logs = table.assign(
        predicted_s=np.log(rows.predicted_s), measured_s=np.log(rows.measured_s)
    )
    means = logs.groupby([*SET, "tenth"]).agg(
        n=("measured_s", "size"),
        predicted_s=("predicted_s", "mean"),
        measured_s=("measured_s", "mean"),
    )
    means[["predicted_s", "measured_s"]] = np.exp(means[["predicted_s", "measured_s"]])
    return means.reset_index()


def run(out: Path, data: Path | None = None) -> int:
    """Write ``calibration.csv`` and ``calibration_points.csv`` into `out`; always returns 0.

    Without the measured data (default folder: `experiments.fit_profiles.data_dir`), it prints
    one line and writes nothing.
    """
    data = data_dir(data)
    if data is None:
        print("calibration: no measured block times here (HYPSOLVE_SHARED is not set); skipped")
        return 0
    rows = points(data)
    table = summary(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "calibration.csv", index=False, float_format="%.4g", lineterminator="\n")
    binned(rows).to_csv(
        out / "calibration_points.csv", index=False, float_format="%.4g", lineterminator="\n"
    )
    means = table[table.fitted].groupby(["cost_model", "phase"])[["mape", "mape_unseen"]].mean()
    print(f"calibration: {len(rows) // len(CostModel)} block times, {table.gpu.nunique()} GPUs")
    print((100 * means).round(1).rename(columns=lambda name: f"{name} %").to_string(na_rep="-"))
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
