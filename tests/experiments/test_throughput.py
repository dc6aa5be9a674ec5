"""The experiments on requests per second: plans, rows against `solve`, tables, shares."""

import csv
import json
import math
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import (
    presentation,
    registry,
    report,
    runner,
    serving,
    serving_speed,
    speed,
    sweep,
    throughput,
)
from experiments.serving import definitions, methods, runs, simulated, tables
from hypsolve import (
    THROUGHPUT_METHODS,
    Partition,
    solve,
    throughput_bound,
    to_instance,
    to_serving_instance,
)
from hypsolve.planning.forecast import serve
from hypsolve.planning.load import evenly
from hypsolve.planning.rate_bound import bound_on_rate
from instances import networks
from instances.scenarios import scenario_network
from instances.serving import (
    ENUMERATED,
    LENGTHS,
    drawn,
    enumerated,
    named,
    serving_deployment,
)

RESULTS = Path(__file__).parents[2] / "results"


def short_box(prompt_tokens=32, output_tokens=4):
    """Two tiers of one node each, with short requests, so that a simulation is fast."""
    return serving_deployment(
        scenario_network("two-regions"), "llama-3-8b", prompt_tokens, output_tokens
    )


def rates_of_loads(deployment, partition, n, shares=(1.05, 0.97, 0.85)):
    """Simulate a split under even arrivals, at shares of the bound on its rate."""
    most = bound_on_rate(deployment, to_instance(deployment, objective="path"), partition)
    rates = []
    for share in shares:
        trace = serve(evenly(deployment, share * most, n), partition)
        rates.append(n / (trace.end_s.max() - trace.arrival_s.min()))
    return rates


def run_of(method, deployment, *, options=None, n_requests=None):
    return runs.ServingRun(
        experiment="throughput",
        series="s",
        axis="a",
        value=1,
        deployment=deployment,
        digest=to_serving_instance(deployment).digest(),
        method=method,
        options=options or {},
        seed=0,
        time_limit_s=600.0,
        version="0",
        n_requests=n_requests,
    )


# instances


def test_drawn_deployments_fit_and_depend_on_the_seed_alone():
    """The batching modes are compared on the same networks, and a split fits on each."""
    for n_tiers in (2, 3, 4):
        by_mode = [drawn(n_tiers, seed=1, batching=mode) for mode in ("stage", "serial")]
        assert by_mode[0].network == by_mode[1].network
        assert by_mode[0].model == by_mode[1].model
        assert len(by_mode[0].network.tiers) == n_tiers
        instance = to_instance(by_mode[0], objective="bottleneck")
        assert solve(instance, "hypsplit_dp").partition is not None
    digests = {to_serving_instance(drawn(2, seed=seed)).digest() for seed in range(5)}
    assert len(digests) == 5


def test_enumerated_deployments_are_those_of_the_published_table():
    """Their numbers of splits are known from an enumeration by another program."""
    counts = {number: len(methods.splits(enumerated(number))) for number in (1, 2, 5, 6)}
    assert counts == {1: 25, 2: 23, 5: 20, 6: 201}
    assert len(ENUMERATED) == 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: named("campu", "llama-3-8b", 256), ValueError, "did you mean campus"),
        (lambda: named("campus", "llama-3-8b", 65), ValueError, "named: prompt_tokens must be"),
        (lambda: drawn(0, seed=1), ValueError, "drawn: n_tiers must be at least 1, got 0"),
        (lambda: drawn(2, seed=-1), ValueError, "drawn: seed must be at least 0, got -1"),
        (lambda: drawn(2, seed=1, batching="waves"), ValueError, "batching must be.*'waves'"),
        (lambda: enumerated(8), ValueError, "enumerated: number must be at most 7, got 8"),
        (lambda: enumerated("1"), TypeError, "enumerated: number must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# plans


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
@pytest.mark.parametrize("size", ["quick", "default"])
def test_plans_are_distinct_runs_and_a_size_contains_the_smaller_ones(name, size):
    planned = definitions.plan(name, size, version="0")
    assert runner.by_identity(planned, runs.IDENTITY)
    of_setting = {}
    for run in planned:
        of_setting.setdefault((run.series, run.value, run.seed), set()).add(run.digest)
    assert all(len(digests) == 1 for digests in of_setting.values())
    for series in definitions.EXPERIMENTS[name].series.values():
        assert set(series.values["quick"]) <= set(series.values["full"])
        assert set(series.values["default"]) <= set(series.values["full"])


def test_full_covers_named_networks_two_models_and_three_lengths():
    series = definitions.EXPERIMENTS["throughput"].series
    of_named = {name: each for name, each in series.items() if not each.is_drawn}
    expected = {f"{network}, {model}" for network in networks() for model in definitions.MODELS}
    assert set(of_named) == expected
    assert {each.values["full"] for each in of_named.values()} == {tuple(LENGTHS)}
    assert len(LENGTHS) == 3
    called = {call.method for each in of_named.values() for call in each.calls}
    assert called == {*THROUGHPUT_METHODS, "best_simulated"}
    exhaustive = definitions.plan("throughput_exhaustive", "full", version="0")
    assert sum(run.method == "every_split" for run in exhaustive) == len(ENUMERATED)


def test_a_limit_of_seeds_is_obeyed_where_the_seed_changes_something():
    planned = definitions.plan("throughput", "default", version="7", n_seeds=2, time_limit_s=3)
    assert {run.time_limit_s for run in planned} == {3}
    seeds = {}
    for run in planned:
        seeds.setdefault(run.series.startswith("drawn"), set()).add(run.seed)
    assert seeds == {False: {0}, True: {0, 1}}


# rows


@pytest.mark.parametrize("method", ["bottleneck_split", "throughput_exact", "throughput_highs"])
def test_a_row_holds_what_solve_and_an_own_simulation_say(method):
    """The rate is n / (last completion - first arrival), and n 20 times those under way."""
    deployment = short_box()
    run = run_of(method, deployment)
    row = run.row() | run.measure()
    assert set(row) == set(serving.COLUMNS)
    instance = to_serving_instance(deployment)
    result = solve(instance, method)
    assert row["cuts"] == str(result.partition)
    assert row["status"] == str(result.status)
    assert row["fluid_requests_per_s"] == pytest.approx(result.fluid_requests_per_s, rel=1e-5)
    bound = throughput_bound(deployment)
    assert row["bound_requests_per_s"] == pytest.approx(bound, rel=1e-5)
    assert row["n_requests"] >= 20 * row["n_under_way"] > 0
    rates = rates_of_loads(deployment, result.partition, row["n_requests"])
    assert row["simulated_requests_per_s"] >= 0.985 * max(rates)
    assert row["simulated_requests_per_s"] <= bound
    assert row["gap"] == pytest.approx(1 - row["simulated_requests_per_s"] / bound, abs=1e-4)


def test_the_best_simulated_split_serves_no_less_than_the_others():
    deployment = short_box()
    rates = {
        method: run_of(method, deployment).measure()["simulated_requests_per_s"]
        for method in ("best_simulated", "bottleneck_split", "path_split", "p0_split",
                       "throughput_exact")
    }  # fmt: skip
    # rates are those of the best of several loads, which bisection finds to a few in thousand
    assert rates["best_simulated"] >= 0.995 * max(rates.values())
    assert run_of("best_simulated", deployment).measure()["n_simulated"] > 1


def test_a_method_without_a_split_has_no_rate():
    """The even split does not fit on a phone, and the row must not look like a slow server."""
    deployment = serving_deployment(
        scenario_network("phone-edge-cloud-5g"), "phi-3-medium", 8, 2
    )
    row = run_of("even_split", deployment).measure()
    assert row["status"] == "infeasible"
    assert (row["cuts"], row["simulated_requests_per_s"], row["n_requests"]) == ("", 0.0, 0)
    assert math.isnan(row["gap"])
    assert row["message"]


def test_every_split_is_simulated_and_the_best_one_returned():
    """Against a loop of its own over all splits, with a simulation of its own."""
    deployment, n = short_box(), 60
    row = run_of("every_split", deployment, options={"n_requests": n}, n_requests=n).measure()
    partitions = [Partition((0, cut, 34)) for cut in range(1, 34)]
    rates = {str(each): max(rates_of_loads(deployment, each, n)) for each in partitions}
    assert row["n_simulated"] == len(rates) == 33
    assert row["status"] == "optimal"
    assert row["simulated_requests_per_s"] >= 0.985 * max(rates.values())
    assert rates[row["cuts"]] >= 0.985 * max(rates.values())


def test_a_split_that_overload_harms_counts_with_its_best_load():
    """Above the bound, and at 1.1 times what is served then, batches bunch in waves here."""
    deployment = named("factory", "phi-3-medium", 2048)
    partition, n = Partition((0, 1, 2, 4, 42)), 1000
    digest = to_serving_instance(deployment).digest()
    rates = rates_of_loads(deployment, partition, n, shares=(1.05, 1.0))
    assert rates[1] > 1.1 * rates[0]
    found = simulated.served_by(deployment, digest, partition, n)
    assert found.requests_per_s >= rates[1]


@pytest.mark.parametrize("capacity", [0.13, 0.4, 0.61, 0.77, 0.93, 0.99, 1.0])
@pytest.mark.parametrize("beyond", [0.1, 0.5, 0.9, 1.0])
def test_the_best_load_is_found_by_one_rule(monkeypatch, capacity, beyond):
    """A server that keeps up to its capacity, and serves a share of that beyond it."""
    loads = []

    def served(deployment, partition, load_per_s, n):
        loads.append(load_per_s)
        return load_per_s if load_per_s <= capacity * 7.0 else beyond * capacity * 7.0

    monkeypatch.setattr(simulated, "_rate", served)
    monkeypatch.setattr(simulated, "_known", {})
    monkeypatch.setattr(simulated, "bound_on_rate", lambda *_: 7.0)
    rate = simulated.served_by(short_box(), "", Partition((0, 17, 34)), 1000).requests_per_s
    assert 0.985 * capacity * 7 <= rate <= capacity * 7 + 1e-9
    assert len(loads) <= 7 + math.log(capacity) / math.log(0.9)


def test_every_split_says_if_the_time_was_too_short():
    answer = methods.every_split(short_box(), time_limit_s=-1.0, seed=0, n_requests=60)
    assert (answer.status, answer.partition, answer.n_simulated) == ("unknown", None, 0)
    assert "not all splits" in answer.message


def test_a_split_is_simulated_once_for_all_methods_of_a_process(monkeypatch):
    """Methods often find the same split, and simulations take most of the time."""
    deployment = short_box()
    digest = to_serving_instance(deployment).digest()
    monkeypatch.setattr(simulated, "_known", {})
    partition = Partition((0, 17, 34))
    first = simulated.served_by(deployment, digest, partition, 40)
    monkeypatch.setattr(simulated, "serve", None)
    assert simulated.served_by(deployment, digest, partition, 40) == first
    with pytest.raises(TypeError):
        simulated.served_by(deployment, "another", partition, 40)


def test_loads_are_left_out_only_where_they_cannot_matter(monkeypatch):
    """Requests are not served faster than they arrive: a split that is behind stays behind."""
    deployment, partition = short_box(), Partition((0, 17, 34))
    loads = []

    def counted(deployment, offered_per_s, n):
        loads.append(offered_per_s)
        return evenly(deployment, offered_per_s, n)

    def rate_and_loads(to_beat):
        loads.clear()
        monkeypatch.setattr(simulated, "_known", {})
        found = simulated.served_by(deployment, "", partition, 60, to_beat=to_beat)
        return found.requests_per_s, len(loads)

    monkeypatch.setattr(simulated, "evenly", counted)
    rate, n_loads = rate_and_loads(0.0)
    assert n_loads > 2 and rate <= max(loads[1:]) * 60 / 59
    assert rate_and_loads(0.99 * rate)[0] == rate
    most = max(loads) / 1.05
    behind, few_loads = rate_and_loads(0.999 * most)
    assert behind <= rate and few_loads < n_loads
    assert rate_and_loads(most * (1 + 1e-9)) == (0.0, 0)


# the command


@pytest.fixture
def in_process(monkeypatch):
    """Execute runs in this process, and only those of short requests."""

    def execute(planned, jobs, started):
        for run in planned:
            started(run)
            yield run, run.row() | run.measure()

    monkeypatch.setattr(runner, "_execute", execute)
    short = {
        "two": definitions.ServingSeries(
            axis="output tokens",
            build=lambda output, seed: short_box(output_tokens=output),
            values=dict.fromkeys(("quick", "default", "full"), (4,)),
            calls=(definitions.Call("even_split"), definitions.FLUID, definitions.BEST),
        )
    }
    every = definitions.Call("every_split", {"n_requests": 60})
    few = definitions.ServingSeries(
        axis="tiers", build=lambda n, seed: short_box(), calls=(*short["two"].calls, every),
        values=dict.fromkeys(("quick", "default", "full"), (2,)),
    )  # fmt: skip
    for name, series, n in (
        ("throughput", short, None),
        ("throughput_exhaustive", {"two": few}, 60),
    ):
        old = definitions.EXPERIMENTS[name]
        new = definitions.ServingExperiment(
            question=old.question, series=series, n_seeds=old.n_seeds,
            time_limit_s=old.time_limit_s, n_requests=n, shown=old.shown,
        )  # fmt: skip
        monkeypatch.setitem(definitions.EXPERIMENTS, name, new)


@pytest.mark.parametrize(
    ("options", "name"), [([], "throughput"), (["--exhaustive"], "throughput_exhaustive")]
)
def test_the_command_writes_rows_tables_and_figures_and_resumes(
    in_process, tmp_path, capsys, options, name
):
    arguments = [*options, "--quick", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 0
    printed = capsys.readouterr().out
    with (tmp_path / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (3 if name == "throughput" else 4)
    assert json.loads((tmp_path / f"{name}.json").read_text())["sessions"]
    assert "best simulated" in (tmp_path / f"{name}.md").read_text()
    assert f"  {name}: " in printed
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == ({"throughput.png", "throughput_gap.png"} if not options else set())
    before = (tmp_path / f"{name}.csv").read_bytes()
    assert throughput.main(arguments) == 0
    assert (tmp_path / f"{name}.csv").read_bytes() == before
    plt.close("all")


def test_the_record_holds_the_command_as_it_was_typed(monkeypatch):
    """Record the typed command, for a user repeats it to continue a stopped sweep."""
    monkeypatch.setattr("sys.argv", [throughput.__file__, "--exhaustive", "--quick"])
    command = sweep._command(["throughput_exhaustive", "--quick"])
    assert command == "python -m experiments.throughput --exhaustive --quick"


@pytest.mark.parametrize("cuts", [(0, 12, 34), (0, 0, 34, 34), (0, 34)])
def test_splits_are_read_as_they_are_written(cuts):
    assert throughput.partition_of(str(Partition(cuts))) == Partition(cuts)


def test_rates_are_simulated_again_and_all_else_is_kept(in_process, tmp_path, capsys):
    """Rates were spoilt by hand; solve times are those of the quiet machine that took them."""
    arguments = ["--quick", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 0
    path = tmp_path / "throughput.csv"
    before = report.load(path)
    spoilt = before.assign(simulated_requests_per_s=1.0, gap=0.5, solve_time_s=77.0)
    spoilt.to_csv(path, index=False)
    assert throughput.main(["--rates", *arguments]) == 0
    after = report.load(path)
    kept = before.assign(solve_time_s=77.0)  # the gap is to a bound of six digits here
    pd.testing.assert_frame_equal(after, kept, check_dtype=False, rtol=1e-5, atol=2e-6)
    (session,) = json.loads((tmp_path / "throughput.json").read_text())["sessions"]
    assert session["rates"]["command"].endswith("--rates " + " ".join(arguments))
    plt.close("all")


# tables, on rows made by hand


def row(series, digest, method, rate, bound, *, status="feasible", n_simulated=0, prompt=256):
    return {
        "experiment": "throughput", "series": series, "axis": "tiers", "value": 2,
        "digest": digest, "network": "n", "model": "m", "prompt_tokens": prompt,
        "output_tokens": LENGTHS[prompt], "batching": "stage", "method": method,
        "options": "{}",
        "seed": 0, "time_limit_s": 9.0, "n_blocks": 3, "n_tiers": 2, "n_nodes": 2,
        "extrapolated": False, "status": status if rate else "infeasible", "cuts": "0:1 | 1:3",
        "simulated_requests_per_s": rate, "fluid_requests_per_s": rate,
        "bound_requests_per_s": bound, "gap": 1 - rate / bound if rate else math.nan,
        "n_requests": 100, "n_under_way": 5, "n_simulated": n_simulated,
        "solve_time_s": 0.1, "n_timings": 1, "run_time_s": 1.0, "message": "", "version": "0",
    }  # fmt: skip


@pytest.fixture
def frame():
    """Two named settings and a drawn one; the even split does not fit in the second."""
    return pd.DataFrame(
        [
            row("campus, m", "a", "bottleneck_split", 5.0, 12.5),
            row("campus, m", "a", "even_split", 2.5, 12.5),
            row("campus, m", "a", "best_simulated", 10.0, 12.5),
            row("factory, m", "b", "bottleneck_split", 9.0, 20.0),
            row("factory, m", "b", "even_split", 0.0, 20.0),
            row("factory, m", "b", "best_simulated", 18.0, 20.0),
            row("drawn, batching serial", "c", "bottleneck_split", 3.0, 4.0),
            row("drawn, batching serial", "c", "best_simulated", 3.0, 4.0),
        ],
        columns=serving.COLUMNS,
    )


def test_shares_are_of_the_best_rate_of_the_deployment(frame):
    shares = tables.with_shares(frame).set_index(["digest", "method"])["share"]
    assert shares["a", "even_split"] == 0.25
    assert shares["b", "even_split"] == 0
    assert shares["b", "bottleneck_split"] == 0.5
    assert shares["c", "bottleneck_split"] == 1


def test_tables_and_answers_count_gaps_to_the_bound(frame):
    """The median gap is of the best simulated split: of 20 and 10 %, 15 %."""
    found = tables.throughput_tables("throughput", frame)
    by_method, serial, settings = found.values()
    assert by_method.loc["best simulated", "median gap"] == "15.00 %"
    assert by_method.loc["even split", "no split"] == "1"
    assert by_method.loc["HypSplit-DP", "median share"] == "50.00 %"
    assert serial.loc["HypSplit-DP", "median share"] == "100.00 %"
    assert settings.loc["campus, m", "256 + 64 tokens"] == "10 (20.00 %)"
    named_line, serial_line = tables.throughput_answers("throughput", frame)
    assert "best simulated split to the bound: 15.00 % (aim: under 15%)" in named_line
    assert "HypSplit-DP 50%" in named_line
    assert serial_line.startswith("drawn, batching serial, median gap")


@pytest.fixture
def exhaustive():
    """One deployment of which all splits were simulated, and one cut off."""
    return pd.DataFrame(
        [
            row("a", "a", "bottleneck_split", 5.0, 20.0),
            row("a", "a", "best_simulated", 9.8, 20.0),
            row("a", "a", "every_split", 10.0, 20.0, status="optimal", n_simulated=20),
            row("b", "b", "best_simulated", 1.0, 20.0),
            row("b", "b", "every_split", 10.0, 20.0, status="feasible", n_simulated=3),
        ],
        columns=serving.COLUMNS,
    )


def test_only_complete_enumerations_judge_a_method(exhaustive):
    (line,) = tables.exhaustive_answers("throughput_exhaustive", exhaustive)
    assert line.startswith("1 deployment, 20 splits")
    assert "best simulated 98.0% and 98.0% (targets 97% and 99%: missed)" in line
    assert "HypSplit-DP 50% and 50%" in line
    (table,) = tables.exhaustive_tables("throughput_exhaustive", exhaustive).values()
    assert table.loc["a", "best simulated"] == "98.00 %"
    assert table.loc["a", "splits"] == "20"


def test_without_an_enumeration_nothing_is_claimed(exhaustive):
    rows = exhaustive[exhaustive["method"] != "every_split"]
    assert tables.exhaustive_answers("throughput_exhaustive", rows) == []


def test_figures_draw_every_run(frame):
    drawn_figures = presentation.figures_of("throughput", frame)
    assert set(drawn_figures) == {"throughput", "throughput_serial", "throughput_gap"}
    ax = drawn_figures["throughput"].axes[0]
    points = sum(
        len(line.get_xdata()) for line in ax.get_lines() if line.get_marker() != "None"
    )
    assert points == 6
    gap_axes = drawn_figures["throughput_gap"].axes[0]
    marks = [line for line in gap_axes.get_lines() if line.get_marker() not in ("None", "")]
    assert sorted(float(x) for line in marks for x in line.get_xdata()) == [
        pytest.approx(10.0), pytest.approx(20.0),
    ]  # fmt: skip
    plt.close("all")


# the published rows


@pytest.mark.parametrize("name", definitions.EXPERIMENTS)
def test_published_rows_are_complete_and_below_the_bound(name):
    """No rate passes the bound, and simulations are long enough to be steady."""
    frame = report.load(RESULTS / f"{name}.csv")
    planned = definitions.plan(name, "full", version=str(frame["version"].iloc[0]))
    keys = {runner.identity(run.row(), runs.IDENTITY) for run in planned}
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        written = {runner.identity(each, runs.IDENTITY) for each in csv.DictReader(file)}
    assert keys <= written
    served = frame[frame["simulated_requests_per_s"] > 0]
    assert (served["simulated_requests_per_s"] <= served["bound_requests_per_s"]).all()
    assert (served["n_requests"] >= 20 * served["n_under_way"]).all()


def test_published_enumerations_state_their_targets():
    """Share of the best rate of all splits: 97 % each, which one of eight misses by 0.13 %."""
    frame = report.load(RESULTS / "throughput_exhaustive.csv")
    (line,) = presentation.answers_of("throughput_exhaustive", frame)
    assert line.startswith("8 deployments, 2604 splits")
    shares = tables.with_shares(frame).set_index("method").loc["best_simulated", "share"]
    assert shares.min() >= 0.965 and shares.median() >= tables.MEDIAN_SHARE
    assert ("99%: met)" in line) == (shares.min() >= tables.ALL_SHARES)


def test_the_experiments_are_registered():
    assert registry.family_of("throughput") is serving
    assert "throughput" in sweep._DEFAULT


@pytest.mark.parametrize("batching", ["stage", "pipeline", "serial"])
def test_the_timed_instance_has_the_stated_size_and_a_split(batching):
    """The target is stated for 82 blocks on 4 tiers of 4 nodes, some of them unequal."""
    instance = serving_speed.four_tiers_of_four(batching)
    assert (instance.n_blocks, instance.n_tiers) == (82, 4)
    assert {len(instance.nodes_of(k)) for k in range(4)} == {4}
    assert str(instance.rules.batching) == batching
    assert solve(instance, "throughput_exact").status == "optimal"


def test_speed_of_the_fluid_model_has_a_row_per_batching_mode():
    rows = serving_speed.fluid_model("quick")
    assert [each["what"].rpartition(" ")[2] for each in rows] == ["stage", "pipeline", "serial"]
    assert all(
        0 < each["min"] <= each["median"] and each["target"] == "< 20 ms" for each in rows
    )
    assert {"fluid_model", "plan", "throughput_many"} <= set(speed.TASKS)
