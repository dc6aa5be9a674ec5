"""The experiment on Helix's problem: its plan, rows, tables and answers."""

import csv

import pandas as pd
import pytest

from experiments import sweep
from experiments.layouts import COLUMNS, plan
from experiments.layouts.tables import helix_answers, helix_tables
from hypsolve.problem.layer_evaluation import largest_flow
from instances.helix_flow import PUBLISHED, helix_flow
from instances.helix_layouts import published_ranges


def test_every_size_holds_the_smaller_one():
    names = [{str(run) for run in plan("helix", size, version="1")} for size in
             ("quick", "default", "full")]  # fmt: skip
    assert names[0] < names[1] < names[2]


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_layouts_carry_the_published_flows(method):
    """The ranges and the flows are facts of different files of the artefact."""
    for (cluster, model), flow in PUBLISHED[method].items():
        layout = largest_flow(helix_flow(cluster, model), published_ranges(method, cluster))
        assert layout.tokens_per_s == pytest.approx(flow, rel=1e-8)


def test_a_sweep_writes_flows_below_their_bounds(tmp_path):
    folder = tmp_path
    assert sweep.main(["helix", "--quick", "--out", str(folder)]) == 0
    with (folder / "helix.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert all(tuple(row) == COLUMNS for row in rows.values())
    assert len(rows) == len(plan("helix", "quick", version="1"))
    ours = rows["stage_dp"]
    assert 1754 < float(ours["flow_tokens_per_s"]) <= float(ours["bound_tokens_per_s"]) < 1755
    assert float(rows["published_helix"]["flow_tokens_per_s"]) == pytest.approx(1212.18)
    assert all(0 < float(rows[m]["simulated_requests_per_s"]) < 10 for m in
               ("stage_dp", "published_helix", "published_swarm"))  # fmt: skip
    assert rows["published_helix"]["layout"].startswith("19-L4 0:1; ")
    assert (folder / "helix.png").stat().st_size > 10_000


def frame_of(flow, bound):
    """Make the rows of two methods on a cluster."""
    return pd.DataFrame(
        {
            "series": "s", "cluster": "single-24", "model": "llama-70b",
            "method": ["stage_dp", "published_helix"], "flow_tokens_per_s": [flow, 1000.0],
            "bound_tokens_per_s": [bound, float("nan")], "solve_time_s": [1.0, float("nan")],
            "simulated_requests_per_s": [3.0, 2.0], "is_short": [False, True],
        }
    )  # fmt: skip


def test_answers_compare_with_the_published_flow_and_the_aims():
    (met,) = helix_answers("helix", frame_of(2046.0, 2047.0))
    assert "2046.0 tokens/s flow" in met and "2.05 times Helix's published" in met
    assert "it serves 1.50 times its requests in simulation, which was too short" in met
    assert met.endswith("met)")
    (missed,) = helix_answers("helix", frame_of(2046.0, 2100.0))
    assert missed.endswith("missed)")
    (table,) = helix_tables("helix", frame_of(1500.0, 2000.0)).values()
    assert table.loc["stage_dp", "flow"] == "1500.0"
    assert table["simulated"].tolist() == ["3.00 requests/s", "2.00 requests/s (short)"]
    assert "50" in table.loc["published_helix", "gap to the best bound"]
