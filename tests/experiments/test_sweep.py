"""The sweep: resumed, torn, killed, locked, interrupted, wrongly called."""

import contextlib
import csv
import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import experiments as experiments_package
from experiments import (
    anytime,
    progress,
    record,
    registry,
    report,
    runner,
    solving,
    sweep,
)
from experiments.claims import definitions
from experiments.definitions import (
    ANYTIME,
    EXPERIMENTS,
    MEASUREMENTS,
    SIZES,
    Call,
    Experiment,
    Series,
)
from hypsolve import Instance, solve
from instances.frontier import frontier
from tests.helpers import toy_runs

ROOT = Path(__file__).parents[2]
FAST = (Call("hyperion"), Call("even_split", {"policy": "round_robin"}))


def chain(n_blocks: int, seed: int) -> Instance:
    return Instance.from_tables(
        [[[1.0 + 0.1 * seed + b % 3 for b in range(n_blocks)]] * 2] * 6,
        [0] * n_blocks,
        [[(0, 0), (1, 0)], [(0, 0), (0, 0)], [(1, 0)]],
        arrival_s=[float(r) for r in range(6)],
        objective="mean_latency",
    )


def hard(n_blocks: int, seed: int) -> Instance:
    """CP-SAT leaves a gap of 50 % and more after a minute."""
    return frontier(20, seed=seed, n_blocks=n_blocks)


def toy(
    values: tuple[int, ...],
    calls: tuple[Call, ...],
    time_limit_s: float = 5.0,
    build: Callable[[int, int], Instance] = chain,
) -> Experiment:
    return Experiment(
        question="Does the harness work?",
        series={
            "blocks": Series(
                axis="blocks", build=build, values=dict.fromkeys(SIZES, values), calls=calls
            )
        },
        n_seeds=dict.fromkeys(SIZES, 2),
        time_limit_s=dict.fromkeys(SIZES, time_limit_s),
    )


def slow(method: str) -> Experiment:
    return toy((30, 32), (Call("hyperion"), Call(method)), 0.6, build=hard)


@pytest.fixture
def experiments(monkeypatch):
    """Stand-ins for the published experiments, and no figures."""
    toys = {"toy": toy((3, 4), FAST)}
    monkeypatch.setattr(solving, "EXPERIMENTS", toys)
    monkeypatch.setattr(registry, "FAMILIES", {"solving": solving})
    monkeypatch.setattr(sweep, "_show", lambda name, out, rows=None: None)
    return toys


@pytest.fixture
def in_process(monkeypatch):
    """Execute runs in this process: much faster, where the workers are not the question."""

    def execute(runs, jobs, started):
        for run in runs:
            started(run)
            yield run, run.row() | run.measure()

    monkeypatch.setattr(runner, "_execute", execute)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    timed = ("solve_time_s", "n_timings", "message")
    return sorted(tuple(v for k, v in row.items() if k not in timed) for row in rows)


def test_two_jobs_write_the_rows_of_one_and_a_second_sweep_adds_none(
    experiments, tmp_path, request
):
    assert sweep.main(["toy", "--jobs", "2", "--out", str(tmp_path / "two")]) == 0
    request.getfixturevalue("in_process")
    assert sweep.main(["toy", "--out", str(tmp_path / "one")]) == 0
    one, two = (rows_of(tmp_path / name / "toy.csv") for name in ("one", "two"))
    assert len(one) == 2 * 2 * 2
    assert without_times(one) == without_times(two)
    before = (tmp_path / "one/toy.csv").read_bytes()
    assert sweep.main(["toy", "--out", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one/toy.csv").read_bytes() == before


def test_a_change_of_limit_or_seeds_adds_exactly_the_missing_runs(
    experiments, in_process, tmp_path
):
    arguments = ["toy", "--out", str(tmp_path)]
    assert sweep.main([*arguments, "--seeds", "1"]) == 0
    assert len(rows_of(tmp_path / "toy.csv")) == 4
    assert sweep.main(arguments) == 0
    assert len(rows_of(tmp_path / "toy.csv")) == 8
    assert sweep.main([*arguments, "--time-limit", "7"]) == 0
    rows = rows_of(tmp_path / "toy.csv")
    assert [row["time_limit_s"] for row in rows] == ["5.0"] * 8 + ["7.0"] * 8
    sessions = json.loads((tmp_path / "toy.json").read_text())["sessions"]
    assert [session["first_row"] for session in sessions] == [0, 4, 8]


def test_a_session_that_wrote_no_row_gives_way_to_the_next(tmp_path):
    for command, first_row in (("a", 0), ("b", 0), ("c", 4), ("d", 4), ("e", 6)):
        record.note_session(tmp_path / "x.csv", {"command": command}, first_row)
    sessions = json.loads((tmp_path / "x.json").read_text())["sessions"]
    assert [(session["command"], session["first_row"]) for session in sessions] == [
        ("b", 0),
        ("d", 4),
        ("e", 6),
    ]


def test_rows_hold_what_solve_says(experiments, in_process, tmp_path):
    assert sweep.main(["toy", "--out", str(tmp_path), "--seeds", "1"]) == 0
    rows = rows_of(tmp_path / "toy.csv")
    assert tuple(rows[0]) == solving.COLUMNS
    for row in rows:
        instance = chain(int(row["value"]), 0)
        assert row["digest"] == instance.digest()
        options = json.loads(row["options"])
        result = solving.solve(instance, row["method"], time_limit_s=5.0, seed=0, **options)
        assert float(row["objective_s"]) == result.objective_s
        assert (row["n_nodes"], row["n_requests"], row["n_timings"]) == ("5", "6", "5")
        assert row["objective"] == "mean_latency"


def test_a_file_torn_at_any_byte_of_its_last_row_loses_that_row_alone(tmp_path):
    path = tmp_path / "x.csv"
    rows = [{"a": "1", "b": 'say "no", é'}, {"a": "2", "b": "x,y\nz"}]
    with record.recording(path, ("a", "b")) as log:
        for row in rows:
            log.append(row)
    data = path.read_bytes()
    header, first = (
        end + 1 for end in (data.index(b"\n"), data.index(b"\n", data.index(b"1,")))
    )
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with record.recording(path, ("a", "b")) as log:
            n_whole = (length >= first) + (length >= len(data))
            assert len(log.rows) == n_whole
            for row in rows[n_whole:]:
                log.append(row)
        assert path.read_bytes() == data, length
    assert header < first < len(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("c,d\n", "other columns"),
        ("a,b\n1\n2,3\n", "line 2 must have 2 columns, got 1"),
        (b"a,b\n\xff\xfe,1\n", "not a CSV"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, message):
    path = tmp_path / "x.csv"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    with pytest.raises(OSError, match=message), record.recording(path, ("a", "b")):
        pass
    assert path.read_bytes() == data


def test_two_sweeps_on_one_file(experiments, tmp_path, capsys):
    with record.recording(tmp_path / "toy.csv", solving.COLUMNS):
        assert sweep.main(["toy", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"sweep: {tmp_path / 'toy.csv'} is being written by another sweep\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toys"], "unknown experiment 'toys'; choose from toy"),
        (["--seeds", "0"], "--seeds: must be a whole number of 1 to 10000, got '0'"),
        (["--jobs", "-1"], "--jobs: must be a whole number"),
        (["--jobs", "two"], "--jobs: must be a whole number"),
        (
            ["--time-limit", "nan"],
            "--time-limit: must be positive and finite seconds, got 'nan'",
        ),
        (["--time-limit", "0"], "--time-limit: must be positive"),
        (["--time-limit", "inf"], "--time-limit: must be positive"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--jobs", "2", "--dask", "tcp://127.0.0.1:1"], "not allowed with argument --jobs"),
        (["--outt", "x"], "unrecognized arguments"),
        (["--out"], "expected one argument"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(experiments, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        sweep.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.startswith("sweep: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "extra"), [("rich", "experiments"), ("distributed", "dask")]
)
def test_a_missing_package_is_named_with_its_extra(
    experiments, capsys, monkeypatch, package, extra
):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: name != package or None)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["toy", "--dask", "tcp://127.0.0.1:1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    install = f'in a clone of hypsolve, run pip install -e ".[{extra}]"'
    assert error == f"sweep: {package} is missing: {install}\n"


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_out_that_is_no_folder(experiments, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    assert sweep.main(["toy", "--out", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error == f"sweep: --out must be a folder, got {str(tmp_path / name)!r}\n"


def test_a_restart_says_how_much_it_found(experiments, in_process, tmp_path, capsys):
    arguments = ["toy", "--out", str(tmp_path)]
    assert sweep.main([*arguments, "--seeds", "1"]) == 0
    assert "found" not in capsys.readouterr().out
    assert sweep.main(arguments) == 0
    assert "toy: 4 of 8 runs found, going on with the others\n" in capsys.readouterr().out


def test_a_bar_says_so_too(monkeypatch, capsys):
    monkeypatch.setattr(progress, "CONSOLE", Console(force_terminal=True))
    with progress.Progress("toy", 8, ["a", "b"], 1):
        pass
    assert "toy: 6 of 8 runs found, going on with the others\n" in capsys.readouterr().out


def test_time_left_is_that_of_the_calls_to_come_shared_by_the_jobs(capsys):
    with progress.Progress("toy", 6, ["a", "a", "a", "b", "c", "c"], 2) as shown:
        shown.end("first", "a", "ok", 10.0)
        assert shown._left_s() == (2 + 1 + 2) * 10 / 2  # of the others nothing is known: as a
        shown.end("second", "a", "ok", 20.0)
        shown.end("third", "b", "ok", 100.0)
        assert shown._left_s() == (15 + 2 * (15 + 100) / 2) / 2
    assert "[1/6] first: ok (0:00 gone, 0:25 left)" in capsys.readouterr().out


@pytest.fixture
def timed(experiments, monkeypatch):
    """Measure a run whose solves take given seconds, after given counts of loaded kernels."""

    def measure(times_s, n_versions):
        times_s, n_versions = iter(times_s), iter(n_versions)

        def solve_in(*arguments, **options):
            return dataclasses.replace(solve(*arguments, **options), solve_time_s=next(times_s))

        experiments["toy"] = toy((3,), FAST[:1])
        (run, _) = solving.plan("toy", "quick", version="0")
        monkeypatch.setattr(solving, "warm", lambda *call: None)
        monkeypatch.setattr(solving, "n_kernel_versions", lambda: next(n_versions))
        monkeypatch.setattr(solving, "solve", solve_in)
        row = run.measure()
        return row["solve_time_s"], row["n_timings"]

    return measure


def test_a_short_run_is_timed_often_and_its_median_kept(timed):
    assert timed([0.04, 0.01, 0.03, 0.001, 0.002], [4, 4]) == (0.01, 5)
    assert timed([7.0], [4, 4]) == (7.0, 1)  # once is enough


def test_a_solve_that_loads_a_kernel_is_not_timed(timed):
    assert timed([3.57, 0.06], [4, 5]) == (0.06, 1)


def test_loaded_kernels_are_counted():
    run = solving.plan("gap", "quick", version="0")[0]
    arrived = pickle.loads(pickle.dumps(run))  # its arrays are laid out as in a worker
    solving.with_loaded_kernels(arrived.solve)
    before = solving.n_kernel_versions()
    assert before > 0
    arrived.solve()
    assert solving.n_kernel_versions() == before


def test_a_run_that_raises_stops_the_sweep_by_name_and_keeps_the_rows(
    experiments, tmp_path, capsys
):
    experiments["toy"] = toy(
        (3,), (*FAST, Call("hyperion", {"partition_objective": "makespan"}))
    )
    assert sweep.main(["toy", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "toy/blocks blocks=3 seed=0 hyperion partition_objective=makespan" in error
    assert error.count("\n") == 1
    assert len(rows_of(tmp_path / "toy.csv")) == 2


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """Plan runs that do as they are told: deeds by number."""
    monkeypatch.setattr(registry, "FAMILIES", {"toys": toy_runs})
    monkeypatch.setattr(sweep, "_show", lambda name, out, rows=None: None)

    def plan(deeds: dict[int, str]) -> None:
        runs = [(number, deed, tmp_path) for number, deed in deeds.items()]
        monkeypatch.setitem(toy_runs.PLANS, "square", runs)

    return plan


def test_a_run_whose_process_died_is_tried_again(toys, tmp_path):
    toys({1: "", 2: "die once", 3: "", 4: ""})
    assert sweep.main(["square", "--jobs", "2", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "square.csv")
    assert sorted(row["square"] for row in rows) == ["1", "16", "4", "9"]


def test_a_run_whose_process_dies_twice_is_named_beside_others(toys, tmp_path, capsys):
    toys({1: "wait", 2: "die", 3: ""})
    assert sweep.main(["square", "--jobs", "2", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "sweep: square/2 die: its process died, twice; 0 rows are in " in error
    (tmp_path / "go").touch()
    toys({1: "wait", 2: "", 3: ""})
    assert sweep.main(["square", "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert len(rows_of(tmp_path / "square.csv")) == 3


def test_one_process_at_a_time_holds_a_lock_file(tmp_path):
    entered = threading.Event()

    def enter():
        with record.waiting_for(tmp_path / "new/lock"):
            entered.set()

    thread = threading.Thread(target=enter)
    with record.waiting_for(tmp_path / "new/lock"):
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_a_definition_that_asks_for_one_run_twice_is_refused(experiments, tmp_path):
    experiments["toy"] = toy((3,), (Call("hyperion"), Call("hyperion")))
    with pytest.raises(ValueError, match="are the same run"):
        sweep.main(["toy", "--out", str(tmp_path)])


def test_list_names_every_experiment(capsys):
    assert sweep.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*EXPERIMENTS, "speed", "calibration", "validation"):
        assert f"  {name} " in printed


def test_the_name_of_a_family_is_all_of_it_and_no_name_the_first_with_speed():
    parser = sweep._parser()
    families = registry.FAMILIES
    everything = [name for family in families.values() for name in family.EXPERIMENTS]
    n_names = len(everything) + len(families) + len(MEASUREMENTS)
    assert len({*everything, *families, *MEASUREMENTS}) == n_names
    assert sweep._named(["claims", "churn", "gap"], parser) == (*definitions.EXPERIMENTS, "gap")
    assert sweep._DEFAULT == ("gap", "solve_time", "latency", "throughput", "speed")


def test_published_experiments_plan_distinct_runs():
    for family, experiments in ((solving, EXPERIMENTS), (anytime, ANYTIME)):
        for name in experiments:
            runs = family.plan(name, "quick", version="0")
            assert runner.by_identity(runs, family.IDENTITY), name


def test_a_call_is_run_up_to_a_size_and_a_seed():
    runs = anytime.plan("joint_frontier", "full", version="0", n_seeds=5)
    in_first = [run for run in runs if run.series == "frontier, 2-2-2 nodes"]
    largest = {call: max(r.value for r in in_first if r.call == call) for call in
               {r.call for r in in_first}}  # fmt: skip
    assert largest["joint_exact"] == 50 and largest["joint_milp"] == 8
    assert max(run.seed for run in runs if run.method == "joint_exact" and not run.options) == 4
    assert max(run.seed for run in runs if run.method == "joint_cpsat") == 2


@pytest.mark.parametrize("method", ["hyperion", "joint_exact", "joint_cpsat", "joint_milp"])
def test_a_trace_rises_and_falls_to_the_answer(method):
    runs = anytime.plan("joint_frontier", "quick", version="0")
    run = next(r for r in runs if r.method == method)
    row = run.row() | run.measure()
    assert set(row) == set(anytime.COLUMNS)
    points = json.loads(row["trace"])
    elapsed_s, objective_s, bound_s = zip(*points, strict=True)
    known = [x for x in objective_s if x is not None]
    assert list(elapsed_s) == sorted(elapsed_s)
    assert known == sorted(known, reverse=True) and known[-1] == row["objective_s"]
    assert list(bound_s) == sorted(bound_s) and bound_s[-1] >= row["bound_s"]
    assert max(bound_s) <= row["objective_s"]
    assert (len(points) > 2) == (method != "hyperion")
    shown = report.traces(pd.DataFrame([row]))
    assert shown["above"].iloc[-1] == 0 and (shown["below"] >= 0).all()


DRIVER = """
import sys
from pathlib import Path
from experiments import registry, solving, sweep
from tests.experiments.test_sweep import slow
from tests.helpers import toy_runs

if __name__ == "__main__":
    name, what, folder, *options = sys.argv[1:]
    if name == "square":  # `what`: number:deed,...
        registry.FAMILIES = {"toys": toy_runs}
        pairs = (pair.split(":") for pair in what.split(","))
        toy_runs.PLANS[name] = [(int(n), deed, Path(folder)) for n, deed in pairs]
    else:  # `what`: a method
        registry.FAMILIES = {"solving": solving}
        solving.EXPERIMENTS = {name: slow(what)}
    sweep._show = lambda name, out, rows=None: None
    sys.exit(sweep.main([name, "--out", folder, *options]))
"""


@pytest.fixture
def start(tmp_path):
    """Start a sweep in a process group of its own: Ctrl-C hits the workers, too."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    processes = []

    def run(name: str, what: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(driver), name, what, str(tmp_path), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what the process will do; the limit is for one that hangs."""
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the process hangs"
        time.sleep(0.05)


def n_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def test_killed_and_started_again_it_loses_and_doubles_nothing(start, tmp_path):
    """Killed in the middle of the fourth run, when three rows are written."""
    path = tmp_path / "square.csv"
    process = start("square", "1:,2:,3:,4:wait,5:")
    wait_for((tmp_path / "4.begun").exists, process)
    process.kill()
    process.communicate(timeout=300)  # ends when its worker, which holds the pipe, has ended
    kept = rows_of(path)
    assert len(kept) == 3
    with path.open("ab") as file:
        file.write(b"4,wa")  # as if killed while writing
    (tmp_path / "go").touch()
    again = start("square", "1:,2:,3:,4:wait,5:", "--jobs", "2")
    _, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    rows = rows_of(path)
    assert rows[: len(kept)] == kept
    assert sorted(int(row["square"]) for row in rows) == [1, 4, 9, 16, 25]


@pytest.mark.parametrize(("method", "jobs"), [("joint_cpsat", "2"), ("joint_milp", "1")])
def test_ctrl_c_leaves_a_valid_file_and_says_where_it_stopped(start, tmp_path, method, jobs):
    path = tmp_path / "toy.csv"
    process = start("toy", method, "--jobs", jobs, "--time-limit", "1000")
    wait_for(lambda: n_rows(path) > 0, process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=300)  # long before the limit of the run
    assert process.returncode == 130, error
    assert "sweep: stopped at toy/blocks blocks=" in error
    assert "Traceback" not in error
    assert f"{n_rows(path)} rows are in {path}" in error
    assert path.read_bytes().endswith(b"\n")
    assert {row["method"] for row in rows_of(path)} == {"hyperion"}  # none cut short


def ignore_signals(ready):
    """Work on, whatever signal comes, as CP-SAT may."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ready.set()
    threading.Event().wait()


def test_workers_that_ignore_signals_are_ended(monkeypatch):
    """A sweep waited for them for ever after Ctrl-C, at full load."""
    monkeypatch.setattr(runner, "GRACE_S", 0.1)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    deaf = context.Process(target=ignore_signals, args=(ready,))
    idle = context.Process(target=time.sleep, args=(1e6,))
    for process in (deaf, idle):
        process.start()
    ready.wait()
    runner.end_children()
    for process in (deaf, idle):
        process.join(60)
    assert (deaf.exitcode, idle.exitcode) == (-signal.SIGKILL, -signal.SIGTERM)


def test_an_interrupt_while_a_row_is_flushed_counts_the_row(tmp_path, monkeypatch):
    """The row is in the file, so the message must count it."""

    def interrupted(_):
        raise KeyboardInterrupt

    with record.recording(tmp_path / "rows.csv", ("a", "b")) as rows:
        rows.append({"a": 1, "b": "two\nlines"})
        monkeypatch.setattr(record.os, "fsync", interrupted)
        progress = SimpleNamespace(current="here")
        with pytest.raises(KeyboardInterrupt, match="at here; 2 rows are in"):  # noqa: SIM117
            with sweep._locating_errors(progress, rows):
                rows.append({"a": 2, "b": "x"})


def test_tables_show_the_rows_of_this_plan_alone(
    experiments, in_process, tmp_path, monkeypatch
):
    """A file may hold rows of another limit: they are not mixed in, whichever came last."""
    shown = []
    monkeypatch.setattr(
        sweep, "_show", lambda name, out, rows: shown.append(report.load(out / "toy.csv", rows))
    )
    arguments = ["toy", "--out", str(tmp_path)]
    for limit in ([], ["--time-limit", "7"], []):
        assert sweep.main([*arguments, *limit]) == 0
    assert [set(frame["time_limit_s"]) for frame in shown] == [{5.0}, {7.0}, {5.0}]
    assert [len(frame) for frame in shown] == [8, 8, 8]


def test_the_false_errors_of_scip_are_kept_back_and_nothing_else(capfd):
    """OR-Tools writes them to the file descriptor, where others write as well."""
    instance = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
    with solving.hide_spurious_scip_errors():
        os.write(2, b"before\n")
        assert solve(instance, "partition_scip").status == "optimal"
        os.write(2, b"ERROR: of somebody else\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nERROR: of somebody else\nafter\n"


def test_no_run_by_scip_writes_its_false_errors(capfd):
    """Nor does the first, which loads it."""
    solving.warm.cache_clear()
    solving.warm("partition_scip", "{}")
    tiny = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
    assert solving.solve_quietly(tiny, "partition_scip").status == "optimal"
    assert "ERROR" not in capfd.readouterr().err


def test_the_example_of_an_experiment_of_ones_own_runs_as_documented(tmp_path):
    """The docstring of `experiments` holds it: 20 lines, a method of one's own, no figure.

    Its README holds the same file; `test_readme.py` leaves the run of it to this test.
    """
    _, _, rest = experiments_package.__doc__.partition("::\n\n")
    code, _, _ = rest.partition("\nTables and figures")
    page = (ROOT / "experiments" / "README.md").read_text()
    assert f"```python halves.py\n{textwrap.dedent(code)}```" in page
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    script = tmp_path / "halves.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "rows")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "rows/halves.csv")
    assert {row["method"] for row in rows} == {"hypsplit_dp", "halves"}
    assert {row["status"] for row in rows} == {"optimal", "feasible"}
    assert "halves: gap to the best bound that any method proved" in done.stdout
    session = json.loads((tmp_path / "rows/halves.json").read_text())
    assert f"python halves.py --out {tmp_path / 'rows'}" in json.dumps(session)
    names = {path.name for path in (tmp_path / "rows").iterdir()}
    assert names == {"halves.csv", "halves.json", "halves.md"}
