"""The claims: plans, scenes, what a row says, paired statistics, the table, the pictures."""

import csv
import dataclasses
import math
import pickle
from functools import partial
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import claims, figure_style, presentation, report, runner, sweep
from experiments.claims import (
    claim_figures,
    definitions,
    figures,
    judging,
    runs,
    scenes,
    series,
    statements,
    statistics,
    tables,
    trends,
)
from experiments.claims.conclude import conclude
from experiments.claims.statistics import LATENCY, UTILISATION
from experiments.record import as_text
from hypsolve import Event, evaluate, simulate, solve, to_instance
from instances import networks
from instances.scenarios import scenario_network


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """Bootstrap intervals need not be precise here, and take most of the time."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)


HYPERION, GPIPE, HEFT = (("hyperion", "{}"), ("gpipe", "{}"), ("heft", "{}"))


# plans and definitions


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
def test_every_method_of_a_setting_is_given_the_same_requests(name):
    runs = definitions.plan(name, "default", version="0")
    runner.by_identity(runs, claims.IDENTITY)  # raises for runs that are the same
    methods, digests = {}, {}
    for run in runs:
        row = run.row()
        place = (row["series"], row["value"], row["seed"])
        methods.setdefault(place, []).append((row["method"], row["options"]))
        digests.setdefault(place, set()).add(row["digest"])
    assert all(len(of_place) == 1 for of_place in digests.values())
    distinct = {(name, *digest) for (name, _, _), digest in digests.items()}
    assert len(distinct) == len(digests)
    of_series = {}
    for (name, _, _), of_place in methods.items():
        assert of_series.setdefault(name, of_place) == of_place
    assert {seed for _, _, seed in methods} == {0, 1, 2}


def test_full_has_ten_seeds_and_the_ranges_asked_for():
    values = {}
    for name, experiment in definitions.EXPERIMENTS.items():
        assert experiment.n_seeds["full"] >= 10
        for size, fewer in (("full", "default"), ("default", "quick")):
            smaller = {key for key, series in experiment.series.items() if series.values[fewer]}
            assert smaller <= {key for key, s in experiment.series.items() if s.values[size]}
        values[name] = {v for s in experiment.series.values() for v in s.values["full"]}
    assert values["tiers"] == set(range(2, 9))
    assert {min(values["output_length"]), max(values["output_length"])} == {32, 4096}
    runs = definitions.plan("churn", "full", version="0", n_seeds=1)
    assert {run.row()["model"] for run in runs} == set(series.MODELS)
    used = definitions.plan("utilisation", "full", version="0", n_seeds=1)
    assert {run.row()["network"] for run in used} == set(networks())


def test_a_plan_obeys_its_limits():
    runs = definitions.plan("tiers", "quick", version="7", n_seeds=1, time_limit_s=3.0)
    assert {(r.seed, r.time_limit_s, r.version) for r in runs} == {(0, 3.0, "7")}


# scenes


def campus(**options):
    options = {"seed": 1, "n_requests": 20, **options}
    return scenes.serve(scenario_network("campus"), "phi-3-medium", **options)


def test_requests_depend_on_workload_and_seed_alone():
    slow = scenes.with_bandwidth("campus", 0.01)
    other = scenes.serve(slow, "phi-3-medium", seed=1, n_requests=20)
    for field in ("arrival_s", "prompt_tokens", "output_tokens"):
        ours, theirs = (getattr(s.deployment.requests, field) for s in (campus(), other))
        assert ours.tolist() == theirs.tolist()
    longer = campus(output_tokens=300).deployment.requests
    assert set(longer.output_tokens.tolist()) == {300}
    prompts = campus().deployment.requests.prompt_tokens
    assert longer.prompt_tokens.tolist() == prompts.tolist()
    digests = {campus().digest(), other.digest(), campus(seed=2).digest()}
    assert len(digests) == 3


def test_load_is_a_multiple_of_what_is_served_one_at_a_time():
    gaps = [campus(load=load).deployment.requests.arrival_s for load in (0.5, 2.0)]
    assert gaps[0] == pytest.approx(4 * gaps[1])
    assert not campus(load=math.inf).deployment.requests.arrival_s.any()


def test_bandwidth_changes_rates_and_nothing_else():
    tiers = scenes.with_bandwidth("branch-offices-wan", 0.008).tiers
    for tier, before in zip(tiers, scenario_network("branch-offices-wan").tiers, strict=True):
        assert tier.nodes == before.nodes
        if tier.link is not None:
            assert tier.link.bytes_per_s == 1e6
            assert tier.link.latency_s == before.link.latency_s
    assert tiers[-1].link is None


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_spread_keeps_what_a_tier_can_do_together(spread):
    for tier, before in zip(
        scenes.spread_network(spread, seed=3).tiers,
        scenario_network("campus").tiers,
        strict=True,
    ):
        speeds = np.array([node.gpu.flops_per_s for node in tier.nodes])
        bandwidths = np.array([node.gpu.bytes_per_s for node in tier.nodes])
        gpu = before.nodes[0].gpu
        assert speeds.sum() == pytest.approx(4 * gpu.flops_per_s)
        assert bandwidths / speeds == pytest.approx(gpu.bytes_per_s / gpu.flops_per_s)
        assert 1 <= speeds.max() / speeds.min() <= spread**2
        assert (speeds.max() > speeds.min()) == (spread > 1)


@pytest.mark.parametrize("n_tiers", [2, 8])
def test_a_drawn_network_holds_its_model(n_tiers):
    drawn = scenes.drawn_network("phi-3-medium", n_tiers, seed=5)
    scene = scenes.serve(drawn, "phi-3-medium", seed=0, n_requests=2)
    assert len(drawn.tiers) == n_tiers
    assert solve(to_instance(scene.deployment), "hypsplit_dp").partition is not None


def test_a_model_that_fits_nowhere_is_said(monkeypatch):
    monkeypatch.setattr(scenes, "best_period_s", lambda instance: math.inf)
    monkeypatch.setattr(scenes, "DRAWS", 2)
    with pytest.raises(ValueError, match="2 tiers must hold llama-3-8b, none of 2 does"):
        scenes.drawn_network("llama-3-8b", 2, seed=0)


def test_churn_is_part_of_the_scene():
    quiet = campus()
    assert scenes.with_churn(quiet, "failures", 0.0, seed=1).events == ()
    failing = scenes.with_churn(quiet, "failures", 3.0, seed=1)
    kinds = [str(event.kind) for event in failing.events]
    assert kinds.count("failure") == kinds.count("recovery") > 0
    assert failing.digest() != quiet.digest()
    slow = scenes.with_churn(quiet, "slowdowns", 3.0, seed=1)
    assert {event.factor for event in slow.events} == {1.0, scenes.SLOW_FACTOR}


# runs


def a_run(scene, method="hyperion", options=None, **fields):
    return runs.SimRun(
        experiment="x", series="s", axis="a", value=1, scene=scene, digest=scene.digest(),
        method=method, options=options or {}, seed=0, time_limit_s=5.0, version="0", **fields,
    )  # fmt: skip


def test_alone_a_request_takes_its_computing_and_its_links():
    scene = campus(n_requests=1)
    (plan,) = [runs.plan(scene.deployment, "gpipe", {}, seed=0, time_limit_s=1.0)]
    instance = to_instance(scene.deployment)
    for chunk_tokens in (None, 64):
        trace = simulate(scene.deployment, plan.partition, chunk_tokens=chunk_tokens)
        compute_s, link_s = runs.alone_s(instance, plan.partition, trace)
        if chunk_tokens is None:
            assert trace.latency_s == pytest.approx(compute_s + link_s, rel=1e-9)
    path_s = evaluate(instance, plan.partition, objective="path")
    assert compute_s + link_s == pytest.approx([path_s], rel=1e-9)


def arrivals(arrival_s, end_s):
    trace = SimpleNamespace(arrival_s=np.array(arrival_s), end_s=np.array(end_s, float))
    trace.from_first = lambda: trace
    return trace


def test_growth_tells_a_queue_that_grows():
    at = np.arange(401.0)
    assert runs.growth(arrivals(at, at + 5)) == pytest.approx(1, rel=0.02)
    assert runs.growth(arrivals(at, 3 * at + 5)) == pytest.approx(7 / 3, rel=0.03)
    assert runs.growth(arrivals(at, np.full(401, np.nan))) == pytest.approx(7 / 3, rel=0.03)
    assert runs.growth(arrivals([0, 0], [1, 2])) == math.inf
    assert math.isnan(runs.growth(arrivals([0, 1], [0.1, 1.1])))


def test_the_estimate_is_all_that_its_ablation_leaves_out():
    scene = campus(n_requests=60, load=3)
    cuts = solve(to_instance(scene.deployment), "hypsplit_dp").partition
    with_it, without = (
        simulate(scene.deployment, cuts, policy)
        for policy in ("hypsched_rt", runs.without_estimate)
    )
    assert with_it.node.tolist() == without.node.tolist()
    slow = (Event(0.0, "slowdown", "lab-jetson-agx-orin-0", 8.0),)
    with_it, without = (
        simulate(scene.deployment, cuts, policy, events=slow)
        for policy in ("hypsched_rt", runs.without_estimate)
    )
    assert (with_it.node[:, 0] == 0).sum() < (without.node[:, 0] == 0).sum()


def test_without_estimate_prefers_nodes_with_room():
    state = SimpleNamespace(
        nodes=np.array([2, 5]), outstanding_s=np.array([0.0, 9.0]), own_s=np.ones(2),
        kv_free_tokens=np.array([3.0, 50.0]), kv_own_tokens=10.0,
    )  # fmt: skip
    assert runs.without_estimate(state, 0) == 5
    state.kv_own_tokens = 99.0
    assert runs.without_estimate(state, 0) == 2


def test_requests_that_never_end_are_counted_not_averaged_away():
    scene = scenes.serve(scenario_network("home-lab"), "llama-3-8b", seed=0, n_requests=6)
    last_s = float(scene.deployment.requests.arrival_s[-1])
    broken = dataclasses.replace(scene, events=(Event(last_s, "failure", "box-rtx-3090-0"),))
    row = a_run(broken).measure()
    assert row["status"] == "feasible"
    assert row["n_unfinished"] > 0
    assert math.isnan(row["latency_s"])
    assert math.isfinite(a_run(scene).measure()["latency_s"])


def test_a_plan_that_does_not_fit_is_a_row():
    scene = scenes.serve(
        scenario_network("phone-edge-cloud-5g"), "phi-3-medium", seed=0, n_requests=5
    )
    row = a_run(scene, "gpipe").measure()
    assert row["status"] == "infeasible"
    assert row["message"]
    assert row["cuts"] == ""
    assert all(math.isnan(row[name]) for name in ("latency_s", "utilisation", "growth"))


def test_what_the_planner_believes_does_not_change_the_world():
    scene = campus(n_requests=40)
    measured, believed = (
        runs.plan(scene.deployment, "hyperion", options, seed=0, time_limit_s=5.0)
        for options in ({}, {"cost_model": "flops"})
    )
    assert measured.partition != believed.partition
    row = a_run(scene, options={"cost_model": "flops"}).measure()
    trace = simulate(scene.deployment, believed.partition)
    assert row["latency_s"] == pytest.approx(trace.latency_s.mean(), rel=1e-5)
    assert a_run(scene, options={"cost_model": "flops"}).row()["costs"] == "roofline"


def test_a_method_without_a_policy_has_its_assignment_replayed():
    scene = campus(n_requests=30)
    result = runs.plan(scene.deployment, "heft", {}, seed=0, time_limit_s=5.0)
    assert runs.dispatcher(result, {}) is result.schedule
    trace = simulate(scene.deployment, result.partition, result.schedule)
    assert trace.node.tolist() == result.schedule.node.tolist()


def test_dispatch_may_believe_another_output_length():
    scene = campus(n_requests=60, load=6.0)
    knows, guesses = (
        a_run(scene, options=options) for options in ({}, {"believes": "mean output"})
    )
    mean = round(scene.deployment.requests.output_tokens.mean())
    wanted = {"expected_output_tokens": mean}
    assert runs.believed(scene.deployment, guesses.options) == wanted
    assert runs.believed(scene.deployment, knows.options) == {}
    first, second = knows.measure(), guesses.measure()
    assert first["cuts"] == second["cuts"]
    assert first["latency_s"] != second["latency_s"]


@pytest.fixture
def conversations(tmp_path, monkeypatch):
    """A folder of shared data with a made-up file of conversations alone."""
    folder = tmp_path / "data" / "traces"
    folder.mkdir(parents=True)
    lines = [f"{0.5 * i},{100 + i},{1 + i % 7}" for i in range(500)]
    path = folder / "azure_llm_2023_conv.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path))
    return path


def test_windows_of_a_file_are_replayed(conversations):
    served = [
        campus(workload=scenes.CONVERSATIONS, seed=seed).deployment.requests
        for seed in (1, 1, 2)
    ]
    starts = [int(requests.prompt_tokens[0]) for requests in served]
    assert starts[0] == starts[1] != starts[2]
    for start, requests in zip(starts, served, strict=True):
        assert requests.prompt_tokens.tolist() == list(range(start, start + 20))
        assert np.diff(requests.arrival_s) == pytest.approx(np.diff(requests.arrival_s)[0])
    with pytest.raises(OSError, match=r"conv\.csv: must hold 501 requests or more, got 500"):
        campus(workload=scenes.CONVERSATIONS, n_requests=501)


def test_a_file_that_cannot_be_replayed_is_one_line(conversations, tmp_path, capsys):
    conversations.write_text("what is this\n")
    arguments = ["arrival_rate", "--full", "--seeds", "1", "--out", str(tmp_path / "rows")]
    assert sweep.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep: ") and "line 1: must name the columns" in line


def test_a_series_without_its_file_is_left_out_and_said(conversations, monkeypatch, capsys):
    experiment = definitions.EXPERIMENTS["arrival_rate"]
    few = dataclasses.replace(experiment, n_requests={"full": 5}, n_seeds={"full": 1})
    monkeypatch.setitem(definitions.EXPERIMENTS, "arrival_rate", few)
    there = {run.series for run in definitions.plan("arrival_rate", "full", version="0")}
    capsys.readouterr()  # the other files are not there
    conversations.unlink()
    left = {run.series for run in definitions.plan("arrival_rate", "full", version="0")}
    (replayed,) = there - left
    assert "replayed" in replayed
    assert f"arrival_rate/{replayed}: its file is not here" in capsys.readouterr().out
    assert not any("replayed" in series for series in left)


def test_wrong_profiles_are_constant_factors():
    scene = series.churn_scene("error", "phi-3-medium", 0.4, 0, 5)
    assert len(scene.events) == 12
    assert {(event.at_s, event.kind) for event in scene.events} == {(0.0, "slowdown")}
    assert len({event.factor for event in scene.events}) == 12
    assert not series.churn_scene("error", "phi-3-medium", 0.0, 0, 5).events


# every experiment, from its definition to the table of claims


def quick_runs(name, **options):
    """Return the runs of size quick; even a busy machine does not reach their time limit."""
    return definitions.plan(name, "quick", version="0", time_limit_s=300.0, **options)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Folder with the rows of all experiments at size quick."""
    folder = tmp_path_factory.mktemp("quick")
    for name in definitions.EXPERIMENTS:
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(claims.COLUMNS)
            for run in quick_runs(name):
                before, after = run.row(), run.measure()
                assert not before.keys() & after.keys()
                assert sorted(before | after) == sorted(claims.COLUMNS)
                row = before | after
                assert run.seconds(row) >= 0
                assert row["status"] in run.describe(row)
                writer.writerow([as_text(row[column]) for column in claims.COLUMNS])
    return folder


@pytest.mark.parametrize("name", ["churn", "ablation", "transfer_of_optimality"])
def test_a_run_repeats_itself(quick, name):
    """What the fixture ran, run again after a journey: every method and policy of ours."""
    times = ("solve_time_s", "run_time_s")
    with (quick / f"{name}.csv").open(newline="") as file:
        before = {runner.identity(row, claims.IDENTITY): row for row in csv.DictReader(file)}
    for run in quick_runs(name, n_seeds=1):
        arrived = pickle.loads(pickle.dumps(run))
        assert arrived.scene.digest() == run.digest
        row = before[runner.identity(run.row(), claims.IDENTITY)]
        again = arrived.row() | arrived.measure()
        for column in set(claims.COLUMNS) - {*times}:
            assert as_text(again[column]) == row[column], (str(run), column)


def test_no_cuts_are_better_in_simulation_than_the_best(quick):
    frame = report.labelled(report.load(quick / "transfer_of_optimality.csv"))
    under_hypsched_rt = frame[frame["method"].isin(["hyperion", "best_cuts"])]
    latencies = under_hypsched_rt.pivot(index="seed", columns="label", values="latency_s")
    assert latencies.shape == (2, 4)
    assert (latencies.min(axis=1) == latencies[statements.BEST_CUTS]).all()
    assert (latencies.nunique(axis=1) > 1).all()


def test_quick_claims_end_to_end(quick):
    table = tables.write(quick)
    read = pd.read_csv(quick / "claims.csv")
    assert tuple(read) == judging.COLUMNS
    assert len(read) == len(table) == len(statements.CLAIMS)
    judged = table[table["runs"] > 0]
    assert (judged["settings_planned"] > 0).all()
    assert (judged["settings"] > 0).any()
    assert_counts_add_up(table)
    each = pd.read_csv(quick / "claims_settings.csv")
    for claim in table[~table["measure"].str.contains(" per ")].itertuples():
        same = each[(each["claim"] == claim.claim) & (each["against"] == claim.against)]
        verdicts = same[same["reference"] == claim.reference]["verdict"]
        assert len(verdicts) == claim.settings_planned
        assert (verdicts == "holds").sum() == claim.holds
        assert verdicts.isin(["holds", "fails", "open"]).sum() == claim.settings
    assert (judged["holds"] + judged["fails"] <= judged["cases"]).all()
    no_figure = table["paper"].isna() | (table["cases"] == 0)
    assert (table["reaches_paper"].isna() == no_figure).all()
    words = tables.describe(table)
    assert len(words) == len(table)
    assert not words.isna().any(axis=None)


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
def test_tables_and_figures_of_every_experiment(quick, tmp_path, name):
    frame = report.load(quick / f"{name}.csv")
    (table,) = presentation.tables_of(name, frame).values()
    assert set(table.index) == set(report.labelled(frame)["label"])
    paths = presentation.save_figures(name, frame, tmp_path)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert all(plt.imread(path).shape[0] > 200 for path in paths)


def test_every_method_of_the_claims_has_a_name_and_a_style(quick):
    frame = tables.load_all(quick)
    labels = set(report.labelled(frame)["label"])
    assert not any("_" in label for label in labels)
    assert labels <= set(figure_style.STYLE)
    rivals = {claim.against for claim in statements.CLAIMS}
    assert rivals | {claim.reference for claim in statements.CLAIMS} <= labels
    limits = tables.sensitivity(frame, (1.5, math.inf))
    assert len(limits) == sum(
        claim.measure.steady and claim.rows(frame).any() for claim in statements.CLAIMS
    )


def test_conclude_prints_the_table_and_writes_it(quick, tmp_path, capsys):
    conclude(tmp_path)  # no rows: nothing to say
    assert capsys.readouterr().out == ""
    conclude(quick)
    printed = " ".join(capsys.readouterr().out.split())
    assert "against GPipe" in printed
    assert "the largest of all judged settings" in printed
    assert "| paper |" in (quick / "claims.md").read_text()
    topics = {path.stem.removeprefix("claim_") for path in quick.glob("claim_*.png")}
    assert topics and topics <= set(statements.TOPICS)


def test_a_sweep_writes_the_rows(tmp_path):
    arguments = ["tiers", "--quick", "--seeds", "1", "--out", str(tmp_path)]
    assert sweep.main(arguments) == 0
    with (tmp_path / "tiers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} >= {"hyperion", "gpipe", "heft"}
    assert {row["status"] for row in rows} == {"feasible"}


# statistics on made-up rows


def assert_counts_add_up(table):
    """Every planned setting, and every run, is counted once."""
    settings = [
        "settings",
        "rival_saturated",
        "reference_saturated",
        "both_saturated",
        "few_pairs",
        "no_pair",
    ]
    assert (table[settings].sum(axis=1) == table["settings_planned"]).all()
    runs = [
        "paired_runs", "infeasible_runs", "reference_infeasible_runs", "both_infeasible_runs",
        "unfinished_runs",
    ]  # fmt: skip
    assert (table[runs].sum(axis=1) == table["runs"]).all()


def row(value, seed, call, latency_s, *, status="feasible", growth=1.0, busy=0.5, **fields):
    method, options = call
    nothing = dict.fromkeys(claims.COLUMNS, math.nan)
    return nothing | {
        "experiment": "output_length", "series": "net", "axis": "output tokens",
        "value": value, "digest": f"{value}-{seed}", "network": "net",
        "model": "phi-3-medium", "workload": "synthetic", "costs": "roofline",
        "method": method, "options": options, "seed": seed, "load": 0.7, "status": status,
        "latency_s": latency_s, "compute_s": 0.4, "link_s": 0.1, "utilisation": busy,
        "growth": growth, "extrapolated": False, **fields,
    }  # fmt: skip


@pytest.fixture
def frame():
    """GPipe takes twice as long, HEFT does not fit at 64 and is faster at 2048."""
    rows = []
    for seed, scale in enumerate((0.9, 1.0, 1.1)):
        for value in (64, 2048):
            rows.append(row(value, seed, HYPERION, scale))
            rows.append(row(value, seed, GPIPE, 2 * scale, busy=0.25))
        rows.append(row(64, seed, HEFT, math.nan, status="infeasible"))
        rows.append(row(2048, seed, HEFT, scale * (0.8 + 0.01 * seed)))
    return pd.DataFrame(rows)


def change_of(frame, label, value, measure=LATENCY):
    found = statistics.comparisons(frame, measure)
    (one,) = found[(found["label"] == label) & (found["value"] == value)].to_dict("records")
    return one


def test_comparisons_are_paired(frame):
    gpipe = change_of(frame, "GPipe", 64)
    assert (gpipe["change"], gpipe["low"], gpipe["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert (gpipe["n"], gpipe["pairs"], gpipe["infeasible"]) == (3, 3, 0)
    heft = change_of(frame, "HEFT", 2048)
    assert heft["change"] == pytest.approx(1 - 1 / (0.8 * 0.81 * 0.82) ** (1 / 3))
    assert heft["low"] < heft["change"] < heft["high"] < 0
    assert change_of(frame, "GPipe", 64, UTILISATION)["change"] == pytest.approx(0.25)


def test_infeasible_runs_are_counted(frame):
    heft = change_of(frame, "HEFT", 64)
    assert (heft["n"], heft["pairs"], heft["infeasible"]) == (3, 0, 3)
    assert math.isnan(heft["change"])
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="HEFT"
    )
    judged = judging.judge(claim, frame)
    assert (judged["runs"], judged["infeasible_runs"]) == (6, 3)
    assert (judged["settings"], judged["holds"], judged["fails"]) == (1, 0, 1)
    assert (judged["settings_planned"], judged["no_pair"], judged["best_pairs"]) == (2, 1, 3)
    assert (judged["experiments_hold"], judged["experiments_fail"]) == (
        "", "output_length 1/1"
    )  # fmt: skip
    assert (judged["networks_hold"], judged["networks_fail"]) == ("", "net 1/1")
    assert math.isnan(judged["reaches_paper"])
    (table,) = presentation.tables_of("output_length", frame).values()
    assert table.loc["HEFT", ["runs", "infeasible"]].tolist() == ["6", "3"]


def test_other_requests_are_not_compared(frame):
    frame.loc[(frame["method"] == "gpipe") & (frame["seed"] == 1), "digest"] = "other"
    with pytest.raises(ValueError, match=r"seed=1: GPipe must be given the requests of Hyper"):
        statistics.comparisons(frame)


def test_a_setting_without_the_reference_is_left_alone(frame):
    alone = frame[~((frame["method"] == "hyperion") & (frame["value"] == 64))]
    assert set(statistics.comparisons(alone)["value"]) == {2048}


def test_saturated_settings_are_counted_apart(frame):
    late = (frame["method"] == "gpipe") & (frame["value"] == 2048)
    frame.loc[late, ["latency_s", "growth"]] = 50.0, 2.2
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe", paper=0.5
    )
    judged = judging.judge(claim, frame)
    assert judged["settings"] == judged["holds"] == judged["reaches_paper"] == 1
    assert (judged["rival_saturated"], judged["reference_saturated"]) == (1, 0)
    assert (judged["best"], judged["median"]) == pytest.approx((0.5, 0.5))
    assert judged["experiments_hold"] == "output_length 1/1"
    assert judged["rival_saturated_at"] == "output_length: net, output tokens 2048"
    assert judged["reference_saturated_at"] == ""
    assert judged["best_at"] == "output_length: net, output tokens 64"
    frame.loc[late, "latency_s"] = 0.6  # grows, but nobody waits: a burst of arrivals
    assert judging.judge(claim, frame)["rival_saturated"] == 0
    frame["growth"] = math.inf  # all arrive at once
    assert judging.judge(claim, frame)["both_saturated"] == 2
    busy = dataclasses.replace(claim, measure=UTILISATION)
    assert judging.judge(busy, frame)["settings"] == 2


SETTING_STATES = {  # growth of the rival and of the reference, which answers: column
    (1.0, 1.0, "both"): "few_pairs",  # one of three is missing
    (1.0, 1.1, "both"): "settings",
    (2.2, 1.0, "both"): "rival_saturated",
    (1.0, 2.2, "both"): "reference_saturated",
    (2.2, 2.2, "both"): "both_saturated",
    (1.0, 1.0, "reference"): "no_pair",
    (1.0, 2.2, "rival"): "no_pair",
    (1.0, 1.0, "neither"): "no_pair",
}


def test_every_planned_setting_and_run_is_counted_once():
    rows = []
    for value, (theirs, ours, who) in enumerate(SETTING_STATES, start=1):
        for seed in range(3):
            for call, growth, absent in (
                (GPIPE, theirs, "reference"),
                (HYPERION, ours, "rival"),
            ):
                missing = who in (absent, "neither") or (value == 1 and seed == 2)
                rows.append(
                    row(value, seed, call, math.nan if missing else 5.0, growth=growth,
                        status="infeasible" if who in (absent, "neither") else "feasible")
                )  # fmt: skip
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe"
    )
    judged = judging.judge(claim, pd.DataFrame(rows))
    assert_counts_add_up(pd.DataFrame([judged]))
    wanted = list(SETTING_STATES.values())
    assert {name: judged[name] for name in wanted} == {n: wanted.count(n) for n in wanted}
    of_runs = ("paired", "infeasible", "reference_infeasible", "both_infeasible", "unfinished")
    assert [judged[f"{name}_runs"] for name in of_runs] == [14, 3, 3, 3, 1]


def test_the_same_requests_do_not_count_twice(frame):
    twice = pd.concat([frame, frame.assign(experiment="bandwidth")])
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe"
    )
    assert judging.judge(claim, twice) == judging.judge(claim, frame)


def test_a_setting_that_was_cut_short_takes_no_pair_away(frame):
    begun = frame[(frame["method"] == "hyperion") & (frame["seed"] == 0)]
    rows = pd.concat([begun.assign(experiment="bandwidth"), frame], ignore_index=True)
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe"
    )
    assert judging.judge(claim, rows) == judging.judge(claim, frame)


def test_rows_without_a_pair_are_judged_too(frame):
    rows = pd.concat(
        [
            frame[frame["method"] == method].assign(experiment=experiment)
            for method, experiment in (("hyperion", "bandwidth"), ("gpipe", "tiers"))
        ],
        ignore_index=True,
    )
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe"
    )
    assert judging.judge(claim, rows)["settings_planned"] == 0


def test_only_proved_answers_are_optima(frame):
    frame = frame.assign(status=frame["status"].mask(frame["method"] == "hyperion", "optimal"))
    first = (frame["method"] == "hyperion") & (frame["value"] == 64) & (frame["seed"] == 0)
    frame.loc[first, "status"] = "feasible"
    claim = statements.Claim(
        text="x",
        topic="rate",
        rows=lambda f: f["value"] > 0,
        against="GPipe",
        runs=partial(trends.proved, label="Hyperion"),
    )
    judged = judging.judge(claim, frame)
    assert (judged["paired_runs"], judged["unfinished_runs"]) == (5, 1)
    assert (judged["settings"], judged["few_pairs"]) == (1, 1)


def test_rows_of_this_sweep_count_and_of_others_the_last(frame, tmp_path):
    rows = frame.assign(version="1", time_limit_s=5.0)
    older = rows.assign(time_limit_s=7.0, latency_s=9.0)
    pd.concat([rows, older]).to_csv(tmp_path / "output_length.csv", index=False, na_rep="nan")
    last = tables.load_all(tmp_path)
    assert set(last["latency_s"].dropna()) == {9.0}
    mine = tables.load_all(tmp_path, {"output_length": range(len(rows))})
    assert set(mine["time_limit_s"]) == {5.0} and len(mine) == len(rows)


def test_sweeps_that_do_not_go_together_are_one_line(frame, tmp_path):
    mixed = frame.assign(version="1", time_limit_s=5.0)
    mixed.loc[mixed["method"] == "gpipe", "digest"] = "of other requests"
    mixed.to_csv(tmp_path / "output_length.csv", index=False, na_rep="nan")
    with pytest.raises(RuntimeError, match=r"no claims\.csv, .*GPipe must be given the requ"):
        tables.write(tmp_path)


def test_slopes_are_per_doubling_or_per_unit_within_a_series():
    found = pd.DataFrame(
        [
            {"experiment": "x", "series": series, "value": value, "axis": "n", "label": "GPipe",
             "seed": seed, "paired": level - 0.1 * math.log2(value) + 0.01 * seed}
            for series, level in (("a", 0.0), ("b", 3.0))
            for value in (32, 64, 1024)
            for seed in range(3)
        ]
    )  # fmt: skip
    slopes = trends.slopes(found, doubling=True)
    assert len(slopes) == 6
    assert slopes["paired"].to_numpy() == pytest.approx(np.full(6, -0.1))
    straight = found.assign(paired=0.2 * found["value"])
    assert trends.slopes(straight, doubling=False)["paired"].to_numpy() == pytest.approx(
        np.full(6, 0.2)
    )
    assert trends.slopes(found[found["value"] == 32], doubling=True).empty


def test_a_lead_that_grows_is_a_claim_that_holds(frame):
    doubles = {64: 1.0, 2048: 2.0}  # Hyperion's lead over GPipe, by value
    lead = (frame["method"] == "gpipe") * frame["value"].map(doubles).sub(1)
    growing = frame.assign(latency_s=frame["latency_s"] * (1 + lead))
    (claim,) = (
        c for c in statements.CLAIMS
        if "length of the output, phi" in c.text and c.against == "GPipe"
    )  # fmt: skip
    judged = judging.judge(claim, growing)
    assert judged["median"] == pytest.approx(1 - 0.5 ** (1 / 5))  # five doublings
    assert (judged["cases"], judged["holds"], judged["settings"]) == (1, 1, 2)
    assert judged["measure"] == "reduction per doubling"


def test_who_saturates_first():
    rows = [
        row(load, seed, call, 5.0, growth=2.0 if load >= at else 1.0, experiment="arrival_rate")
        for seed in range(3)
        for call, at in ((HYPERION, 99), (GPIPE, 3), (HEFT, 1))
        for load in (1, 3, 6, 12)
    ]
    loads = trends.saturation_loads(pd.DataFrame(rows))
    at = loads.groupby("label")["saturated_at"].unique().map(list).to_dict()
    assert at == {"Hyperion": [12], "GPipe": [3], "HEFT": [1]}
    (claim,) = (
        c for c in statements.CLAIMS if c.measure is trends.KEEPS_UP and c.against == "HEFT"
    )
    judged = judging.judge(claim, pd.DataFrame(rows))
    assert (judged["settings_planned"], judged["holds"]) == (1, 1)
    assert judged["median"] == pytest.approx(11)  # twelve times the load


def test_a_burst_at_a_small_load_is_not_where_a_method_saturates():
    late = {0.7: 2.0, 1.5: 1.0, 3: 2.0, 6: 2.0}
    rows = [
        row(load, 0, call, 5.0, growth=growth if call == GPIPE else 1.0)
        for load, growth in late.items()
        for call in (HYPERION, GPIPE)
    ]
    loads = trends.saturation_loads(pd.DataFrame(rows)).set_index("label")
    assert loads["saturated_at"].to_dict() == {"Hyperion": 6, "GPipe": 3}


def test_a_claim_without_rows_says_so(frame):
    claim = statements.Claim(
        text="x", topic="rate", rows=lambda f: f["value"] > 9999, against="GPipe"
    )
    judged = judging.judge(claim, frame)
    assert (judged["settings"], judged["runs"]) == (0, 0)
    assert math.isnan(judged["median"])


def test_long_outputs_are_those_of_the_definition(frame):
    long = statements._long("phi-3-medium")(frame)
    assert set(frame[long]["value"]) == {2048}
    assert not statements._long("llama-3-8b")(frame).any()


def test_intervals_of_known_cases():
    assert statistics.interval([0.3] * 5) == (0.3, 0.3)
    assert all(map(math.isnan, statistics.interval([1.0])))
    low, high = statistics.interval([0.0, 1.0])
    assert (low, high) == pytest.approx((0, 1))
    low, high = statistics.interval(np.arange(10))
    assert 2 < low < 4.5 < high < 7


def test_intervals_cover_the_mean_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(7)
    samples = rng.standard_normal((300, 10)) + 4
    ends = np.array([statistics.interval(sample) for sample in samples])
    covered = ((ends[:, 0] <= 4) & (ends[:, 1] >= 4)).mean()
    assert 0.84 <= covered <= 0.98  # nominally 0.95; ten seeds make it somewhat too short


def pairs_of(changes):
    """As `pairs` gives them: setting -> log ratio by seed."""
    return pd.DataFrame(
        [
            {"experiment": "x", "series": "s", "value": value, "seed": seed, "paired": paired}
            for value, by_seed in changes.items()
            for seed, paired in enumerate(by_seed)
        ]
    )


def test_the_median_over_settings_resamples_seeds_of_all_together():
    steady = pairs_of({v: [math.log(1 - v)] * 4 for v in (0.1, 0.2, 0.6)})
    assert statistics.median_over_settings(steady) == pytest.approx((0.2, 0.2, 0.2))
    rng = np.random.default_rng(1)
    by_seed = 0.1 * rng.standard_normal(10)  # the same luck in all settings
    shaken = pairs_of({v: math.log(0.5) + by_seed for v in range(9)})
    median, low, high = statistics.median_over_settings(shaken)
    assert median == pytest.approx(1 - 0.5 * math.exp(by_seed.mean()))
    single = 0.5 * 2 * 1.96 * by_seed.std() / math.sqrt(10)
    assert high - low == pytest.approx(single, rel=0.3)  # nine settings are worth one here
    one = statistics.median_over_settings(pairs_of({1: [0.1]}))
    assert math.isfinite(one[0])
    assert math.isnan(one[1])
    twice = pd.concat([pairs_of({1: [0.1]})] * 2)
    with pytest.raises(ValueError, match="a setting and seed must come once"):
        statistics.median_over_settings(twice)
    holes = pairs_of({1: [math.log(0.5), math.nan], 2: [math.nan, math.log(0.5)]})
    assert statistics.median_over_settings(holes)[0] == pytest.approx(0.5)


# pictures say what the rows say


@pytest.fixture
def ax():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def test_reduction_draws_changes_and_marks_what_is_not_comparable(frame, ax):
    frame.loc[(frame["method"] == "gpipe") & (frame["value"] == 2048), "growth"] = 2.0
    figures.reduction(frame, ax)
    lines = {container.get_label(): container[0] for container in ax.containers}
    assert lines["GPipe"].get_ydata().tolist() == [50, 50]
    assert lines["GPipe"].get_xdata() == pytest.approx([64, 2048], rel=0.05)  # side by side
    assert lines["HEFT"].get_xdata() == pytest.approx([2048], rel=0.05)
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert [len(line.get_xdata()) for line in hollow] == [1, 0, 0]  # the second explains it
    assert "does not fit: HEFT 3/6" in ax.texts[0].get_text()


def test_latency_draws_geometric_means(frame, ax):
    figures.latency(frame, ax)
    lines = {line.get_label(): line for line in ax.get_lines()}
    mean = (0.9 * 1.0 * 1.1) ** (1 / 3)
    assert lines["Hyperion"].get_ydata() == pytest.approx([mean, mean])
    assert lines["GPipe"].get_ydata() == pytest.approx([2 * mean, 2 * mean])
    assert "does not fit: HEFT 3/6" in ax.texts[0].get_text()


def test_parts_add_up_to_the_latency(frame, ax):
    figures.parts(frame[frame["value"] == 2048], ax)
    ends = {}
    for patch in ax.patches:
        ends[patch.get_y()] = max(ends.get(patch.get_y(), 0), patch.get_x() + patch.get_width())
    assert sorted(ends.values()) == pytest.approx([0.81, 1.0, 2.0], rel=0.01)


def test_gains_count_what_is_left_out(frame, ax):
    figures.gains(frame, ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["GPipe", "HEFT\nof 2: 1 no pair"]


def test_transfer_draws_ratios_to_the_joint_optimum(ax):
    rows = [
        row(3, 0, ("joint_cpsat", "{}"), 2.0, planned_s=1.0),
        row(3, 0, HYPERION, 3.0, planned_s=4.0),
    ]
    figures.transfer(pd.DataFrame(rows), ax)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["Hyperion"].get_xydata().tolist() == [[4.0, 1.5]]


def test_utilisation_draws_a_point_per_method_and_names_what_does_not_fit(frame, ax):
    frame.loc[frame["method"] == "heft", "utilisation"] = math.nan
    figures.utilisation(frame[frame["value"] == 64], ax)
    lines = {container.get_label(): container[0] for container in ax.containers}
    assert lines["Hyperion"].get_xdata() == pytest.approx([50])
    assert lines["GPipe"].get_xdata() == pytest.approx([25])
    assert not len(lines["HEFT"].get_xdata())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["net\ndoes not fit: HEFT"]


def test_a_topic_has_a_panel_per_claim_and_a_point_per_judged_setting(frame):
    claim = statements.Claim(
        text="faster", topic="rate", rows=lambda f: f["value"] > 0, against="GPipe", paper=0.5
    )
    figure = claim_figures.topic_figure("rate", frame, (claim,))
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "faster"
    assert "against GPipe holds in 2 of 2, fails in 0; median 50.0" in " ".join(
        t.get_text() for t in panel.texts
    ).replace("\n", " ")
    assert [label.get_text() for label in panel.get_yticklabels()] == ["net"]
    assert "2" in [text.get_text() for text in panel.texts]
    points = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert sorted(x for line in points for x in line.get_xdata()) == pytest.approx([50, 50])
    assert claim_figures.topic_figure("stage_1", frame, (claim,)) is None
    plt.close("all")


def test_every_topic_has_claims():
    assert {claim.topic for claim in statements.CLAIMS} == set(statements.TOPICS)
