"""The answers that a sweep prints at its end, against its rows read anew."""

import csv
import re
import statistics
from pathlib import Path

import pytest

from experiments import presentation, registry, report, sweep
from hypsolve import METHODS

RESULTS = Path(__file__).parents[2] / "results"


def rows_of(name):
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def answers(name):
    return presentation.answers_of(name, report.load(RESULTS / f"{name}.csv"))


def by_instance(name, method, column):
    """Map each instance to the value of a method without options, and leave failures out."""
    return {
        row["digest"]: float(row[column])
        for row in rows_of(name)
        if row["method"] == method and row["options"] == "{}" and row[column] not in ("inf", "")
    }


@pytest.mark.parametrize("rival", ["GPipe", "HEFT"])
def test_latency_compares_each_instance_with_hyperion(rival):
    own = by_instance("latency", "hyperion", "objective_s")
    theirs = by_instance("latency", rival.lower(), "objective_s")
    ratios = [value / own[digest] for digest, value in theirs.items()]
    shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    assert f"{rival} {shown}" in answers("latency")[0]


def test_gap_lists_the_methods_that_prove_nothing_and_counts_the_optima():
    partition = answers("gap")[-1]
    runs = [
        row
        for row in rows_of("gap")
        if row["series"].startswith("partition") and row["method"] == "hypsplit_dp"
    ]
    n_optimal = sum(row["status"] == "optimal" for row in runs)
    assert f"HypSplit-DP is optimal in {n_optimal} of {len(runs)} runs" in partition
    gaps = [float(gap) for gap in re.findall(r"([\d.]+) %", partition)]
    assert gaps == sorted(gaps) and len(gaps) == 4 and gaps[0] > 0
    assert not any(name in partition for name in ("MILP", "CP-SAT"))


def test_solve_time_names_every_exact_backend_with_its_median():
    (line,) = answers("solve_time")
    own = by_instance("solve_time", "hypsplit_dp", "solve_time_s")
    theirs = by_instance("solve_time", "partition_highs", "solve_time_s")
    median = statistics.median(value / own[digest] for digest, value in theirs.items())
    assert f"MILP HiGHS {median:.0f}" in line
    n_exact = sum(m.exact and m.decides == "partition" for m in METHODS.values())
    assert len(re.findall(r" \d+(?=,|$)", line)) == n_exact - 1


def test_speed_counts_the_targets():
    judged = [row for row in rows_of("speed") if row["met"]]
    met = sum(row["met"] == "yes" for row in judged)
    assert answers("speed")[0].startswith(f"{met} of {len(judged)} targets are met")


def test_a_sweep_ends_with_its_answers_and_a_picture(tmp_path, capsys):
    for name in ("latency.csv", "latency.json"):
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    (tmp_path / "latency.png").touch()
    sweep._conclude(["latency", "speed"], tmp_path, {})
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"  latency: {answers('latency')[0]}"]
    assert last.startswith(f"look at {tmp_path / 'latency.png'}; ")


def test_only_experiments_with_answers_state_them():
    named = {name for name in registry.questions() if registry.shown(name).answers}
    solved = {
        "gap",
        "solve_time",
        "latency",
        "throughput",
        "throughput_exhaustive",
        "validation",
    }
    assert named == solved | {"speed", "placement", "helix"}
