"""The experiment `validation`: on tables of other servers, and where there are no tables."""

from pathlib import Path

import pandas as pd
import pytest

from experiments import aiconfigurator_forecasts, sweep, validation, validation_errors
from hypsolve.calibration.runs import read_runs

ROOT = Path(__file__).parents[2]
TABLE = """\
gpu,runtime,model,precision,weights,tensor_parallel,prompt_tokens,output_tokens,concurrency,ttft_ms,tpot_ms,note
h100_sxm,trtllm,meta-llama/Llama-3.1-8B,,,1,512,32,4,50,7,a
l40s,vllm,Qwen/Qwen3-8B,fp8,fp8,2,512,32,4,50,12,b
tpu_v6,vllm,Qwen/Qwen3-8B,,,1,512,32,4,50,12,c
"""


@pytest.fixture
def shared(tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "data" / "serving_runs"
    folder.mkdir(parents=True)
    (folder / "mine.csv").write_text(TABLE)
    (folder / "all_reduce.csv").write_text("gpu,library\nx,y\n")
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path / "shared"))
    return folder


def test_every_run_of_any_table_has_a_row_per_predictor(shared, tmp_path):
    """GPUs, models and groups that were never seen are predicted, or have a reason."""
    assert sweep.main(["validation", "--out", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "validation.csv", keep_default_na=False)
    own = TABLE.splitlines()[0].split(",")
    assert list(frame) == [*own, *validation.ADDED]
    assert frame.groupby("note").size().eq(len(validation.ALL)).all()
    unknown = frame[frame["note"] == "c"]
    assert (unknown["predicted_tpot_s"] == "").all()
    ours = unknown[unknown["predictor"] != "aiconfigurator"]
    assert ours["reason"].str.contains("'tpu_v6' is not in the catalogue").all()
    assert unknown["reason"].str.contains("aiconfigurator.csv has other settings").sum() == 1
    known = frame[(frame["note"] != "c") & (frame["predictor"] == "today")]
    assert (known["reason"] == "").all() and (known["predicted_tpot_s"] != "").all()
    assert known["measured_tokens_per_s"].astype(float).tolist() == pytest.approx(
        [4 * 32 / (0.05 + 31 * 0.007), 4 * 32 / (0.05 + 31 * 0.012)], rel=1e-4
    )
    for name in ("validation.md", "validation.png", "validation_groups.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_without_measurements_it_says_so_and_succeeds(tmp_path, monkeypatch, capsys):
    """The data are not in the repository: a sweep elsewhere must not fail."""
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path / "none"))
    assert validation.run(tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [validation.MISSING]
    assert not (tmp_path / "validation.csv").exists()


def test_a_wrong_table_is_named_in_one_line(shared, tmp_path, capsys):
    """Bad input ends a command with status 2 and one line."""
    (shared / "mine.csv").write_text(TABLE.replace("50,7,a", "50,-7,a"))
    assert sweep.main(["validation", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "mine.csv: line 2: tpot_ms must be" in error[0]


def test_predictors_are_compared_on_the_same_runs():
    """A predictor that skips hard runs must not look better for it."""
    base = {"gpu": "g", "runtime": "r", "model": "m", "tensor_parallel": 1, "left_out": ""}
    rows = []
    for run, left in ((1, ""), (2, ""), (3, "a rule")):
        for predictor in ("a", "b"):
            missing = predictor == "b" and run == 2
            row = {**base, "concurrency": run, "predictor": predictor, "left_out": left,
                   "reason": "why" if missing else ""}  # fmt: skip
            for name in validation.QUANTITIES:
                row |= {f"measured_{name}": 1.0, f"predicted_{name}": None if missing else 1.1}
            rows.append(row)
    errors = validation_errors.by_group(pd.DataFrame(rows))
    assert errors["n"].tolist() == [1, 1]
    assert errors["tpot_s"].tolist() == pytest.approx([0.1, 0.1])
    tables = validation_errors.validation_tables("validation", pd.DataFrame(rows))
    assert tables["runs left out"]["runs"].to_dict() == {
        "all runs": "3", "a rule": "1", "b: why": "1", "counted": "1",
    }  # fmt: skip


def test_forecasts_of_others_are_found_by_their_settings(tmp_path):
    """The committed forecasts of aiconfigurator belong to settings, and hold no measurement."""
    path = ROOT / "results" / "aiconfigurator.csv"
    frame = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert tuple(frame) == aiconfigurator_forecasts.COLUMNS
    assert not frame.duplicated(list(aiconfigurator_forecasts.KEY)).any()
    row = frame[frame["reason"] == ""].iloc[0]
    table = tmp_path / "runs.csv"
    cells = {**{name: row[name] for name in aiconfigurator_forecasts.KEY}, "ttft_ms": "1",
             "tpot_ms": "1"}  # fmt: skip
    table.write_text(",".join(cells) + "\n" + ",".join(cells.values()) + "\n")
    (made,) = validation.aiconfigurator(read_runs(table))
    assert (made.ttft_s, made.tpot_s) == (float(row["ttft_s"]), float(row["tpot_s"]))
    assert aiconfigurator_forecasts.settings(table) == [
        {name: row[name] for name in aiconfigurator_forecasts.KEY}
    ]
