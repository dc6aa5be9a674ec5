"""Reports and figures on small frames: what is drawn is what the rows say."""

import math
import re

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import (
    figure_style,
    figures,
    labels,
    markdown,
    presentation,
    report,
    solving,
    speed,
)

NONE, ROUND_ROBIN = "{}", '{"policy": "round_robin"}'


def row(
    series, value, digest, method, objective_s, bound_s, *, options=NONE, time_s=0.5, seed=0
):
    if math.isfinite(objective_s):
        status = "optimal" if objective_s == bound_s else "feasible"
    else:
        status = "infeasible" if bound_s == math.inf else "unknown"
    return {
        "experiment": "x",
        "series": series,
        "axis": "blocks",
        "value": value,
        "digest": digest,
        "instance": "i",
        "objective": "bottleneck" if series.startswith("partition") else "mean_latency",
        "method": method,
        "options": options,
        "policy": "",
        "seed": seed,
        "time_limit_s": 1.0,
        "status": status,
        "objective_s": objective_s,
        "bound_s": bound_s,
        "gap": math.nan,
        "solve_time_s": time_s,
        "n_timings": 1,
        "n_requests": 1,
        "n_blocks": 8,
        "n_tiers": 3,
        "n_nodes": 6,
        "extrapolated": False,
        "message": "",
        "version": "0",
    }


@pytest.fixture
def frame():
    """Two sizes; GPipe does not fit the larger one, whose exact run ended without an answer."""
    return pd.DataFrame(
        [
            row("blocks", 8, "a", "hyperion", 5.0, 0.0, time_s=1e-3),
            row("blocks", 8, "a", "gpipe", 10.0, 0.0),
            row("blocks", 8, "a", "joint_cpsat", 4.0, 4.0, time_s=3.0),
            row("blocks", 16, "b", "hyperion", 8.0, 0.0, time_s=2e-3),
            row("blocks", 16, "b", "gpipe", math.inf, math.inf),
            row("blocks", 16, "b", "joint_cpsat", math.inf, 6.0, time_s=3.0),
            row("partition: blocks", 8, "c", "hypsplit_dp", 2.0, 2.0, time_s=1e-4),
            row("partition: blocks", 8, "c", "partition_highs", 2.0, 2.0, time_s=0.2),
            row("partition: blocks", 16, "d", "hypsplit_dp", 3.0, 3.0, time_s=2e-4),
            row("partition: blocks", 16, "d", "partition_highs", math.inf, 1.0, time_s=1.0),
        ],
        columns=solving.COLUMNS,
    )


@pytest.fixture
def ax():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def lines_of(ax):
    """Label -> points of each line with bars."""
    return {
        str(container.get_label()): list(zip(*container[0].get_data(), strict=True))
        for container in ax.containers
    }


def drawn(ax):
    """Label -> points of each plain line with a legend entry."""
    return {
        str(line.get_label()): list(zip(*line.get_data(), strict=True))
        for line in ax.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def heights(points):
    return [y for _, y in points]


def test_gaps_are_to_the_best_bound_of_any_method(frame):
    table = report.with_best_bound(frame).set_index(["digest", "method"])
    assert table.loc[("a", "gpipe"), "best_gap"] == pytest.approx(0.6)
    assert table.loc[("a", "hyperion"), "best_gap"] == pytest.approx(0.2)
    assert table.loc[("a", "joint_cpsat"), "best_gap"] == 0
    # proved by a run that found no answer itself; "does not fit" proves nothing for the others
    assert table.loc[("b", "hyperion"), "best_gap"] == pytest.approx(0.25)
    assert math.isnan(table.loc[("b", "gpipe"), "best_gap"])
    assert len(table) == len(frame)


def test_a_value_of_zero_has_no_gap():
    table = report.with_best_bound(pd.DataFrame([row("s", 1, "a", "hyperion", 0.0, 0.0)]))
    assert table["best_gap"].tolist() == [0.0]


def test_ratios_keep_rows_without_an_answer(frame):
    table = report.relative_to(frame, "objective_s", "hyperion")
    assert len(table) == len(frame)
    ratio = table.set_index(["digest", "method"])["ratio"]
    assert ratio[("a", "gpipe")] == 2
    assert math.isnan(ratio[("b", "gpipe")])


@pytest.fixture
def limited():
    """Three instances; HiGHS proves one, ends at the limit on one, finds nothing on another."""
    own = [row("p", 8, d, "hypsplit_dp", 2.0, 2.0, time_s=1e-3) for d in "abc"]
    return pd.DataFrame(
        [
            *own,
            row("p", 8, "a", "partition_highs", 2.0, 2.0, time_s=0.1),
            row("p", 8, "b", "partition_highs", 2.5, 1.0, time_s=1.02),
            row("p", 8, "c", "partition_highs", math.inf, 0.0, time_s=1.01),
            row("p", 8, "a", "partition_cbc", 2.0, 2.0, time_s=0.2),
            row("p", 8, "b", "partition_cbc", 2.0, 2.0, time_s=0.3),
            row("p", 8, "c", "partition_cbc", 2.5, 1.0, time_s=1.0),
        ],
        columns=solving.COLUMNS,
    )


def test_times_at_the_limit_count_as_lower_bounds(limited):
    runs = report.relative_to(limited, "solve_time_s", "hypsplit_dp")
    highs = runs[runs["method"] == "partition_highs"]
    assert highs["ratio"].tolist() == pytest.approx([100, 1020, 1010])  # none is dropped
    assert highs["at_limit"].tolist() == [False, True, True]
    (table,) = presentation.tables_of("solve_time", limited).values()
    assert table.loc["MILP HiGHS", ["median ratio", "largest ratio"]].tolist() == [
        "> 1,010",
        "> 1,020",
    ]
    # two of three are finished: the median is what it is, whatever the third would have taken
    assert table.loc["MILP CBC", ["median ratio", "largest ratio"]].tolist() == [
        "300",
        "> 1,000",
    ]
    assert table.loc["HypSplit-DP", "largest ratio"] == "1"
    assert table["at the limit"].to_dict() == {
        "HypSplit-DP": "0",
        "MILP HiGHS": "2",
        "MILP CBC": "1",
    }


def test_half_of_the_runs_at_the_limit_leave_the_median_open(limited):
    (table,) = presentation.tables_of("solve_time", limited[limited["digest"] != "c"]).values()
    assert table.loc["MILP HiGHS", "median ratio"] == "> 560"


def test_a_heuristic_is_never_at_the_limit(frame):
    assert labels.at_limit(frame).tolist() == [False] * 5 + [True] + [False] * 3 + [True]


@pytest.mark.parametrize("experiment", ["gap", "solve_time", "latency"])
def test_tables_mark_extrapolated_costs(frame, experiment):
    assert not any(
        "extrapolated" in title for title in presentation.tables_of(experiment, frame)
    )
    frame.loc[:2, "extrapolated"] = True
    for title in presentation.tables_of(experiment, frame):
        assert "(3 of 10 runs with extrapolated costs)" in title


def texts_of(figure):
    """All texts above the panels, and above the axes of each."""
    legends = [legend.get_title().get_text() for legend in figure.legends]
    shown = [ax for ax in figure.axes if ax.get_visible()]
    titles = [ax.get_title(loc="left") for ax in shown]
    notes = [text.get_text() for ax in shown for text in ax.texts]
    return " ".join("; ".join([*legends, *titles, *notes]).split())


@pytest.mark.parametrize("name", ["gap", "solve_time", "latency"])
def test_figures_mark_extrapolated_costs_and_say_what_a_point_is(frame, name):
    def texts():
        drawn = presentation.figures_of(name, frame).values()
        found = [texts_of(figure) for figure in drawn]
        plt.close("all")
        return found

    assert not any("extrapolated" in text for text in texts())
    assert all(re.search(r"\d (instances?|runs)", text) for text in texts())
    assert all("?" in text for text in texts())  # the question that the figure answers
    frame["extrapolated"] = True
    assert all("runs with extrapolated costs" in text for text in texts())


def test_a_figure_says_how_many_instances_a_point_is_of(frame):
    twice = pd.concat([frame, frame.assign(digest=frame["digest"] + "'", seed=1)])
    for rows, words in ((frame, "1 instance a point"), (twice, "median of 2 instances")):
        figure = figures.panels(rows, figures.gap_against_size, "How far?")
        assert f"How far? mean latency, bottleneck; {words}" in texts_of(figure)
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["blocks", "blocks"]
    plt.close("all")


@pytest.mark.parametrize("name", ["gap", "solve_time", "latency"])
def test_figures_are_as_wide_as_a_page_and_no_text_is_small(frame, name):
    for figure in presentation.figures_of(name, frame).values():
        assert figure.get_figwidth() == pytest.approx(16 / 2.54)
        for text in figure.findobj(matplotlib.text.Text):
            assert text.get_fontsize() >= 8 or not text.get_text(), text
    plt.close("all")


def test_methods_without_a_gap_are_counted_instead_of_drawn_over_each_other(frame, ax):
    figures.gap_against_size(frame[frame["series"] == "partition: blocks"], ax)
    assert not lines_of(ax)
    assert "at 0 %, not drawn: HypSplit-DP 2/2, MILP HiGHS 1/2" in ax.texts[0].get_text()


def test_two_models_are_not_joined_by_a_line(frame, ax):
    models = frame["value"].map({8: "llama-3-8b @ campus", 16: "phi-3-medium @ campus"})
    rows = frame.assign(instance=models)[frame["series"] == "blocks"]
    figures.gap_against_size(rows, ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "llama-3-8b",
        "phi-3-medium",
    ]
    assert all(line.get_linestyle() == "None" for line in ax.get_lines())


def test_methods_are_drawn_in_one_order_whichever_ended_first(frame, ax):
    figures.gap_against_size(frame[frame["series"] == "blocks"].iloc[::-1], ax)
    assert list(lines_of(ax)) == ["Hyperion", "GPipe"]


def test_points_at_the_limit_are_hollow_and_the_legend_explains_them(limited, ax):
    figures.time_ratio(limited, ax)
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    drawn = [y for line in hollow for y in line.get_ydata()]
    assert drawn == [pytest.approx(1010)]
    assert "hollow: at least, runs at the limit" in ax.get_legend_handles_labels()[1]
    assert "no answer: MILP HiGHS 1/3" in ax.texts[0].get_text()


def test_summary_counts_infeasible_runs(frame):
    table = report.summary(frame[frame["series"] == "blocks"])
    assert table.loc["GPipe", ["runs", "answered", "infeasible"]].tolist() == [2, 1, 1]
    assert table.loc["Hyperion", "largest gap"] == pytest.approx(0.25)


def test_labels_tell_options_apart():
    assert labels.label("gpipe", NONE) == "GPipe"
    assert labels.label("hypsplit_dp", ROUND_ROBIN) == "HypSplit-DP + round robin"


def test_gap_against_size_draws_medians_and_counts_missing_answers(frame, ax):
    figures.gap_against_size(frame[frame["series"] == "blocks"], ax)
    assert heights(lines_of(ax)["Hyperion"]) == [pytest.approx(20), pytest.approx(25)]
    words = " ".join(ax.texts[0].get_text().split())
    assert "no answer: GPipe 1/2, joint CP-SAT 1/2" in words
    assert "at 0 %, not drawn: joint CP-SAT 1/2" in words
    assert ax.get_xlabel() == "blocks"
    assert "%" in ax.get_ylabel()


def test_bounds_of_methods_that_are_not_drawn_count(frame):
    milp = row("blocks", 16, "b", "joint_milp", math.inf, 7.0)
    figure = presentation.figures_of("gap", pd.concat([frame, pd.DataFrame([milp])]))
    (panel,) = figure["gap_joint"].axes
    assert "joint MILP" not in lines_of(panel)
    assert heights(lines_of(panel)["Hyperion"]) == [pytest.approx(20), pytest.approx(12.5)]
    plt.close("all")


def test_lines_have_bars_from_quartile_to_quartile(frame, ax):
    rows = frame[(frame["series"] == "blocks") & (frame["value"] == 8)]
    more = [rows.assign(objective_s=rows["objective_s"] * x, digest=f"a{x}") for x in (2, 4)]
    figures.gap_against_size(pd.concat([rows, *more]), ax)
    (bars,) = next(c for c in ax.containers if c.get_label() == "Hyperion")[2]
    (bar,) = bars.get_segments()
    gaps = [20, 60, 80]  # (5 - 4) / 5, (10 - 4) / 10, (20 - 4) / 20: bounds of the others
    assert bar[0][1] <= bar[1][1]
    assert bar[0][1] >= 0 and bar[1][1] <= max(gaps)


def test_gap_distribution_draws_every_gap_and_counts_the_others(frame, ax):
    figures.gap_distribution(frame[frame["series"] == "blocks"], ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [
        "Hyperion\nno gap 0 of 2",
        "GPipe\nno gap 0 of 2, no answer 1",
        "joint CP-SAT\nno gap 1 of 2, no answer 1",
    ]
    points = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == 3


def test_solve_time_is_on_a_log_axis_in_seconds(frame, ax):
    figures.solve_time_against_size(frame[frame["series"] == "blocks"], ax)
    assert ax.get_yscale() == "log"
    assert heights(lines_of(ax)["Hyperion"]) == [1e-3, 2e-3]
    assert "(s)" in ax.get_ylabel()


def test_time_ratio_is_relative_to_hypsplit_dp(frame, ax):
    figures.time_ratio(frame[frame["series"] == "partition: blocks"], ax)
    assert heights(lines_of(ax)["MILP HiGHS"]) == [pytest.approx(2000), pytest.approx(5000)]


def test_latency_ratio_tells_how_many_have_no_answer(frame, ax):
    figures.latency_ratio(frame[frame["series"] == "blocks"], ax)
    assert lines_of(ax)["GPipe"][0][0] == pytest.approx(2)
    (name,) = (label.get_text() for label in ax.get_yticklabels())
    assert "GPipe 1/2" in name


def test_the_gap_over_time_is_a_step_function_of_the_seeds(ax):
    points = [(0.1, 50.0), (1.0, 10.0), (2.0, 0.0)]
    frame = pd.DataFrame(
        [
            {"label": "joint exact", "series": "s", "seed": seed, "elapsed_s": at, "gap": gap}
            for seed in range(3)
            for at, gap in points
        ]
    )
    figures.gap_over_time(frame, ax)
    ((x, y),) = [line.get_data() for line in ax.get_lines() if len(line.get_xdata()) > 2]
    assert y[0] == 100 and y[-1] == 0
    assert set(y[(x > 0.1) & (x < 1)]) == {50.0}
    assert "proved: joint exact 3/3" in ax.texts[-1].get_text()


def test_speed_is_a_table_with_a_row_per_measurement(tmp_path):
    rows = [speed.row("a", [1.0, 2.0, 4.0], "ms", 3), speed.row("b", [7.0], "times")]
    assert [row["met"] for row in rows] == ["yes", ""]
    assert speed.row("a", [4.0], "ms", 3)["met"] == "no"
    frame = pd.DataFrame(rows)
    tables = presentation.tables_of("speed", frame)
    (path,) = markdown.save_tables("speed", tables, tmp_path)
    assert "| a | < 3 ms | 1 | 2 | ms | 3 | yes |" in path.read_text().splitlines()
    assert presentation.figures_of("speed", frame) == {}


def test_a_ratio_of_imports_below_1_explains_itself(monkeypatch):
    seconds = {"numba": 1.0, "hypsolve": 0.5}
    monkeypatch.setattr(speed, "_import_s", seconds.get)
    (measured,) = speed.import_ratio("quick")
    assert measured["median"] == 0.5
    assert "(numba is imported when first needed)" in measured["what"]


@pytest.fixture
def calibration():
    rows = [
        (gpu, "s", fitted, phase, model, mape)
        for gpu in ("L4", "T4")
        for fitted in (True, False)
        for phase in ("prefill", "decode")
        for model, mape in (("roofline", 0.05), ("flops", 0.8))
    ]
    frame = pd.DataFrame(
        rows, columns=["gpu", "source", "fitted", "phase", "cost_model", "mape"]
    )
    return frame.assign(tenth=0, n=3, predicted_s=2e-3, measured_s=[1e-3, 2e-3] * 8)


def test_calibration_errors_draws_percent_per_gpu(calibration, ax):
    figures.calibration_errors(calibration, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["L4", "T4"]
    lines = drawn(ax)
    assert lines["decode, roofline"] == [(pytest.approx(5), 0), (pytest.approx(5), 1)]
    assert lines["prefill, flops"][0][0] == pytest.approx(80)


def test_calibration_scatter_draws_every_group(calibration, ax):
    figures.calibration_scatter(calibration, ax)
    lines = drawn(ax)
    assert sum(map(len, lines.values())) == len(calibration)
    assert ax.get_xscale() == ax.get_yscale() == "log"


@pytest.mark.parametrize("name", ["calibration", "calibration_points"])
def test_calibration_pictures(calibration, tmp_path, name):
    (path,) = presentation.save_figures(name, calibration, tmp_path)
    assert path == tmp_path / f"{name}.png"


def test_calibration_table_has_a_row_per_gpu(calibration):
    (table,) = presentation.tables_of("calibration", calibration).values()
    assert table.loc["L4", "flops decode"] == "80.00 %"


def test_every_method_has_a_style_of_its_own():
    looks = {tuple(look) for look in figure_style.STYLE.values()}
    joint = [
        figure_style.STYLE[label] for label in ("Hyperion", "GPipe", "HEFT", "joint CP-SAT")
    ]
    assert len(set(joint)) == 4
    assert all(len(look) == 3 for look in looks)


@pytest.mark.parametrize("experiment", ["gap", "solve_time", "latency"])
def test_save_figures_writes_a_picture_each(frame, tmp_path, experiment):
    if experiment == "solve_time":
        frame = frame[frame["series"] == "partition: blocks"]
    paths = presentation.save_figures(experiment, frame, tmp_path)
    assert paths
    assert sorted(paths) == sorted(tmp_path.iterdir())
    for path in paths:
        height, width, _ = plt.imread(path).shape
        assert height > 200
        assert width > 400
    assert not plt.get_fignums()


@pytest.mark.parametrize("experiment", ["gap", "solve_time", "latency"])
def test_tables_have_a_row_per_method(frame, experiment):
    tables = presentation.tables_of(experiment, frame)
    assert sum(map(len, tables.values())) >= 5
    assert all(
        isinstance(text, str) for table in tables.values() for text in table.to_numpy().flat
    )


def test_load_keeps_the_last_row_of_a_repeated_run(frame, tmp_path):
    again = frame.iloc[[0]].assign(objective_s=4.5, version="1")
    path = tmp_path / "gap.csv"
    pd.concat([frame, again]).to_csv(path, index=False)
    loaded = report.load(path)
    assert len(loaded) == len(frame)
    hyperion = loaded[(loaded["method"] == "hyperion") & (loaded["value"] == 8)]
    assert hyperion["objective_s"].tolist() == [4.5]
    assert loaded["objective_s"].eq(math.inf).sum() == frame["objective_s"].eq(math.inf).sum()


def test_a_missing_file_says_which_command_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments\.sweep --full gap"):
        report.load(tmp_path / "gap.csv")
