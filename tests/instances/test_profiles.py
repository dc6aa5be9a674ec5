"""Committed profiles of machines are what the tables beside them give."""

import csv
import tomllib
from pathlib import Path

import pytest

from hypsolve.calibration.measure import with_rates_seen
from hypsolve.calibration.measure_fit import fit_roofline, held_out, intervals, shape_error
from hypsolve.calibration.measure_grid import FIELDS, BlockShape, Step
from hypsolve.calibration.measure_rows import COLUMNS, read_steps
from hypsolve.formats.gpu_profile import read_gpu_profile

FOLDER = Path(__file__).parents[2] / "instances" / "profiles"
FILES = sorted(FOLDER.glob("*.toml"))
UNITS = {
    "t0_us": ("t0_s", 1e6),
    "tflops": ("flops_per_s", 1e-12),
    "gb_per_s": ("bytes_per_s", 1e-9),
}


def test_a_cpu_is_among_them():
    devices = {tomllib.loads(path.read_text())["measured"]["device"] for path in FILES}
    assert "cpu" in devices


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_profile_is_the_fit_of_its_table(path):
    """Numbers, intervals and errors are fitted again to the committed times."""
    steps, file = read_steps(path.with_suffix(".csv")), tomllib.loads(path.read_text())
    overlaps = file.get("overlaps", True)
    fitted = with_rates_seen(fit_roofline(steps, overlaps=overlaps), steps)
    ranges = intervals(steps, fitted)
    for key, (name, unit) in UNITS.items():
        assert file[key] == pytest.approx(getattr(fitted, name) * unit, rel=2e-3), key
        expected = [bound * unit for bound in ranges[name]]
        assert file["intervals"][key] == pytest.approx(expected, rel=0.02), key
    errors = {"of the fit": shape_error(steps, fitted, "all", ())}
    errors |= {f"{each.shape}, held out": each for each in held_out(steps, overlaps=overlaps)}
    if overlaps:
        other = "if compute and memory times added up"
    else:
        other = "if the larger of compute and memory time counted"
    unlike = fit_roofline(steps, overlaps=not overlaps)
    errors[other] = shape_error(steps, unlike, "all", ())
    for each in held_out(steps, overlaps=not overlaps):
        errors[f"{other}, {each.shape} held out"] = each
    assert set(file["errors"]) == set(errors)
    for about, each in errors.items():
        for phase in ("prefill", "decode"):
            assert file["errors"][about][phase] == pytest.approx(getattr(each, phase), rel=0.01)
    profile = read_gpu_profile(path)
    assert profile.source and profile.overlaps == overlaps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_work_in_a_table_is_that_of_its_steps(path):
    """FLOPs and bytes follow from the shape and the step of each row."""
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len({row["shape"] for row in rows}) >= 2
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    for row in rows:
        shape = BlockShape(row["shape"], *(int(row[field]) for field in FIELDS))
        numbers = (int(row[key]) for key in ("batch", "tokens", "context"))
        work = Step(row["phase"], *numbers).work(shape, sizes[row["dtype"]])
        assert (float(row["flops"]), float(row["bytes"])) == pytest.approx(work, rel=1e-5)


def test_a_core_computes_and_reads_in_turn():
    """The measured errors say so: held out, the sum is off by a seventh of the other form."""
    file = tomllib.loads((FOLDER / "amd-epyc-1-thread.toml").read_text())
    assert file["overlaps"] is False
    held = {key: sum(e.values()) for key, e in file["errors"].items() if "held out" in key}
    own = [error for key, error in held.items() if not key.startswith("if ")]
    other = [error for key, error in held.items() if key.startswith("if ")]
    assert len(own) == len(other) == 2 and sum(own) < sum(other) / 5
