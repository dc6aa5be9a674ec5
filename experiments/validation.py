"""Compare forecasts of real servers with what was measured on them.

``python -m experiments.sweep validation`` predicts every run of the tables
``$HYPSOLVE_SHARED/data/serving_runs/*.csv`` by every predictor, writes ``validation.csv``, and
makes tables and figures of it. ``python -m experiments.validation [OUT]`` writes rows alone.
A run that cannot be predicted has an empty prediction and a reason.
"""

import csv
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import validation_errors
from experiments.aiconfigurator_forecasts import KEY
from hypsolve.calibration.closed_loop import Forecast
from hypsolve.calibration.predictors import PREDICTORS, Predictor
from hypsolve.calibration.rules import left_out
from hypsolve.calibration.runs import (
    COLUMNS,
    ServingRun,
    closed_loop_tokens_per_s,
    is_table_of_runs,
    read_runs,
)

ROOT = Path(__file__).resolve().parents[1]
QUANTITIES = ("ttft_s", "tpot_s", "tokens_per_s")
SIDES = ("measured", "predicted")
ADDED = (
    "predictor", *(f"{side}_{name}" for name in QUANTITIES for side in SIDES), "left_out",
    "reason",
)  # fmt: skip
MISSING = "validation: no measured serving runs here (HYPSOLVE_SHARED is not set); skipped"


def aiconfigurator(runs: Sequence[ServingRun]) -> list[Forecast]:
    """Return the forecasts of NVIDIA's aiconfigurator for the settings of runs.

    They were made once by ``experiments.aiconfigurator_forecasts``.
    """
    path = ROOT / "results" / "aiconfigurator.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {tuple(row[name] for name in KEY): row for row in rows}
    return [_of_aiconfigurator(run, known) for run in runs]


def _of_aiconfigurator(run: ServingRun, known: Mapping[Any, Mapping[str, str]]) -> Forecast:
    row = known.get(tuple(run.row.get(name, "") for name in KEY))
    if row is None:
        return Forecast(reason="not forecast: results/aiconfigurator.csv has other settings")
    if row["reason"]:
        return Forecast(reason=row["reason"])
    ttft_s, tpot_s = float(row["ttft_s"]), float(row["tpot_s"])
    return Forecast(ttft_s, tpot_s, closed_loop_tokens_per_s(run, ttft_s, tpot_s))


ALL: dict[str, Predictor] = {**PREDICTORS, "aiconfigurator": aiconfigurator}


def data_dir() -> Path | None:
    """Return the folder of measured runs in ``$HYPSOLVE_SHARED`` or ``../shared``."""
    shared = Path(os.environ.get("HYPSOLVE_SHARED") or ROOT.parent / "shared")
    path = shared / "data" / "serving_runs"
    return path if path.is_dir() and tables(path) else None


def tables(folder: Path) -> list[Path]:
    """Return the tables of measured runs in a folder, in the order of their names."""
    return [path for path in sorted(folder.glob("*.csv")) if is_table_of_runs(path)]


def load(folder: Path) -> list[ServingRun]:
    """Read all tables of measured runs in a folder.

    Raises
    ------
    ValueError
        If a table is invalid; the message names file, line, column, rule and value.
    """
    return [run for path in tables(folder) for run in read_runs(path)]


def predicted_rows(
    runs: list[ServingRun], predictors: Mapping[str, Predictor] = ALL
) -> Iterator[dict[str, Any]]:
    """Predict runs; yield a row per run and predictor."""
    names = dict.fromkeys(name for run in runs for name in run.row)
    forecasts = {}
    for name, predict in predictors.items():
        began_s = time.perf_counter()
        forecasts[name] = predict(runs)
        print(f"validation: {name}, {time.perf_counter() - began_s:.0f} s", flush=True)
    for number, run in enumerate(runs):
        own = {name: run.row.get(name, "") for name in names or COLUMNS}
        why = _left_out(run)
        for name, made in forecasts.items():
            yield {**own, **_added(run, name, made[number], why)}


def _added(run: ServingRun, predictor: str, forecast: Forecast, why: str) -> dict[str, Any]:
    row: dict[str, Any] = {"predictor": predictor, "left_out": why, "reason": forecast.reason}
    for name in QUANTITIES:
        row[f"measured_{name}"] = getattr(run, name)
        predicted = getattr(forecast, name)
        row[f"predicted_{name}"] = None if math.isnan(predicted) else predicted
    return row


def _left_out(run: ServingRun) -> str:
    try:
        return left_out(run)
    except ValueError:  # no name of the catalogue: its predictions say so
        return ""


def frame_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame: the columns of the runs first, then `ADDED`."""
    frame = pd.DataFrame(list(rows))
    return frame[[*(name for name in frame if name not in ADDED), *ADDED]]


def run(out: Path) -> int:
    """Write ``validation.csv`` and ``validation_errors.csv`` into `out`; always returns 0.

    Without measured runs it prints one line, and writes nothing.

    Raises
    ------
    OSError
        If a table of runs is invalid; the message names file, line, column, rule and value.
    """
    folder = data_dir()
    if folder is None:
        print(MISSING)
        return 0
    try:
        runs = load(folder)
    except ValueError as error:
        raise OSError(f"validation: {error}") from None
    frame = frame_of(predicted_rows(runs))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "validation.csv"
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    errors = validation_errors.by_group(frame)
    committed = ROOT / "results" / "validation_errors.csv"  # before it is written anew
    grown = validation_errors.grown(pd.read_csv(committed), errors)
    errors.to_csv(
        out / "validation_errors.csv", index=False, float_format="%.4f", lineterminator="\n"
    )
    for line in grown:
        print(f"validation: the error grew; add to *Results affected* in CHANGELOG.md: {line}")
    print(f"validation: {len(runs)} runs, {len(ALL)} predictors; {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
