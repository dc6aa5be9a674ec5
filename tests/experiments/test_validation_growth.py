"""No group of measured runs is forecast worse than the committed errors say, untold."""

import io
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from experiments import validation, validation_errors
from experiments.validation_errors import grown, untold
from hypsolve.calibration.predictors import PREDICTORS
from hypsolve.calibration.runs import of_groups
from tests.helpers.sizes import n_cases

ROOT = Path(__file__).parents[2]
ERRORS = ROOT / "results" / "validation_errors.csv"
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
QUICK = ("calibrated_new_groups", "calibrated_new_lengths")
UNFITTED = ("today", "today_fluid")
MAX_RUNS = 16  # of a group that these forecast, too: for all groups they take minutes
IS_NIGHTLY = n_cases(False, True)


def previous(number: int) -> pd.DataFrame:
    """Return the committed errors of an earlier version of the file; 0 is the last one."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run(
            [*git, "log", "--format=%H", "--", str(ERRORS)], capture_output=True, text=True,
            check=True,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no history of git here")
    if len(found) <= number:
        pytest.skip("the history holds no earlier version of the errors")
    path = f"{found[number]}:{ERRORS.relative_to(ROOT)}"
    shown = subprocess.run([*git, "show", path], capture_output=True, text=True, check=True)
    return pd.read_csv(io.StringIO(shown.stdout))


def test_an_error_that_is_raised_is_found():
    """5 % more may be, 6 % more may not; forecasts of others are theirs."""
    before = pd.read_csv(ERRORS)
    own = before["predictor"] == "today"
    for factor, n_found in ((1.04, 0), (1.06, own.sum()), (0.5, 0)):
        after = before.copy()
        after.loc[own, "tpot_s"] *= factor
        after.loc[before["predictor"] == "aiconfigurator", "tpot_s"] *= 2
        found = grown(before, after)
        assert len(found) == n_found
        assert all(": TPOT by today, " in line for line in found)


def test_a_line_under_results_affected_tells_it():
    """The group is named; other sections of the changelog do not count."""
    line = "h100_sxm, vllm, Qwen3-32B: TPOT by today, 23.7 % -> 30.0 %"
    told = "# Changelog\n## 0.1.0\n### Results affected\n\n- Worse on\n  h100_sxm, vllm,\n"
    told += "  Qwen3-32B.\n"
    assert untold([line], told) == []
    assert untold([line], told.replace("Qwen3-32B", "Qwen3-8B")) == [line]
    assert untold([line], told.replace("Results affected", "Added")) == [line]


def test_committed_errors_that_grew_are_told():
    """Whoever runs the experiment anew states what became worse."""
    assert untold(grown(previous(1), pd.read_csv(ERRORS)), CHANGELOG) == []


def test_no_error_of_a_group_has_grown():
    """The forecasts of this code against the committed errors, where the measurements are."""
    folder = validation.data_dir()
    if folder is None:
        pytest.skip(validation.MISSING)
    runs = validation.load(folder)
    few = [r for of_one in of_groups(runs).values() if len(of_one) <= MAX_RUNS for r in of_one]
    parts = [(runs, QUICK), (few, UNFITTED)]
    if IS_NIGHTLY:
        parts = [(runs, tuple(PREDICTORS))]
    published = pd.read_csv(ERRORS)
    for some, names in parts:
        rows = validation.predicted_rows(some, {name: PREDICTORS[name] for name in names})
        errors = validation_errors.by_group(validation.frame_of(rows))
        known = published[published["predictor"].isin(names)]
        assert some is few or len(errors) == len(known)
        assert untold(grown(published, errors), CHANGELOG) == []
