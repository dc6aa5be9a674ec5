"""A sweep on a Dask cluster: real scheduler and workers on loopback, some of them killed."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs hypsolve[dask]")

from experiments import claims, cluster, record, registry, solving, sweep
from experiments.claims import definitions
from experiments.definitions import Call
from hypsolve import Instance
from tests.experiments.test_sweep import toy
from tests.helpers import toy_runs

ROOT = Path(__file__).parents[2]
BACKENDS = (
    "hyperion",
    "heft",
    "hypsplit_dp",
    "partition_cbc",
    "partition_highs",
    "partition_scip",
    "partition_cpsat",
    "joint_cpsat",
    "joint_milp",
)


def small(n_blocks: int, seed: int) -> Instance:
    return Instance.from_tables(
        [[[1.0 + seed, 2.0, 3.0][:n_blocks]]] * 2,
        [0] * n_blocks,
        [[(0, 0), (0, 0)], [(0, 0)]],
        objective="mean_latency",
    )


class Dask:
    """A scheduler and its workers, each a process of its own without a nanny."""

    def __init__(self, folder: Path, n_workers: int) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        file = folder / "scheduler.json"
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), "a scheduler")
        self.address = json.loads(file.read_text())["address"]
        for number in range(n_workers):
            self.join(f"worker-{number}")

    def _start(self, name: str, *options: str, path: Path = ROOT) -> None:
        role = name.partition("-")[0]
        home = self.folder / name  # `python -m` looks for modules where it stands
        home.mkdir()
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", f"distributed.cli.dask_{role}"),
                    *("--host", "127.0.0.1"),
                    *("--scheduler-file", str(self.folder / "scheduler.json"), *options),
                ],
                cwd=home,
                env={
                    **os.environ,
                    "PYTHONPATH": str(path),
                    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
                    "DASK_TEMPORARY_DIRECTORY": str(self.folder),
                },
                stdout=log,
                stderr=log,
            )

    def join(self, name: str, n_threads: int = 1, path: Path = ROOT) -> None:
        threads = ("--nthreads", str(n_threads))
        self._start(name, "--no-nanny", "--no-dashboard", *threads, path=path)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def worker(self, name: str) -> str:
        """Address of a worker, once it has one and the scheduler knows."""
        log = self.folder / f"{name}.log"
        wait_until(lambda: "Starting established connection" in log.read_text(), name)
        return re.search(r"Start worker at: +(\S+)", log.read_text())[1]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


@contextlib.contextmanager
def started(folder: Path, n_workers: int):
    dask = Dask(folder, n_workers)
    try:
        yield dask
    finally:
        dask.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Give a scheduler on a busy machine the time to answer."""
    monkeypatch.setattr(cluster, "CONNECT_S", 120.0)


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    with started(tmp_path_factory.mktemp("dask"), 2) as dask:
        yield dask


def wait_until(true, what, seconds=300.0):
    """Wait for an event; the limit is for processes that hang."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def square(monkeypatch, tmp_path):
    """Plan toy runs: deeds by number."""
    monkeypatch.setattr(registry, "FAMILIES", {"toys": toy_runs, "solving": solving})
    monkeypatch.setattr(sweep, "_show", lambda name, out, rows=None: None)

    def plan(deeds: dict[int, str]) -> None:
        runs = [(number, deed, tmp_path) for number, deed in deeds.items()]
        monkeypatch.setitem(toy_runs.PLANS, "square", runs)

    return plan


@contextlib.contextmanager
def meanwhile(action):
    """Do something in a thread; what goes wrong there fails the test, before all else."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        try:
            yield
        finally:
            future.result()


def rows_of(path: Path, *without: str) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(tuple(v for k, v in row.items() if k not in without) for row in rows)


def squares(numbers):
    return sorted(str(number**2) for number in numbers)


def test_a_killed_worker_costs_no_row_and_doubles_none(dask, square, tmp_path):
    """One is killed in the middle of a run; every other run goes on, that one starts again."""
    square({1: "", 2: "wait once", 3: "", 4: "", 5: ""})

    def kill():
        wait_until((tmp_path / "2.begun").exists, "run begun")
        wait_until(lambda: b"\n5," in (tmp_path / "dask/square.csv").read_bytes(), "others")
        os.kill(int((tmp_path / "2.begun").read_text()), signal.SIGKILL)

    with meanwhile(kill):
        assert (
            sweep.main(["square", "--dask", dask.address, "--out", str(tmp_path / "dask")]) == 0
        )
    assert [name for name, p in dask.processes.items() if p.poll() == -signal.SIGKILL]
    assert sweep.main(["square", "--out", str(tmp_path / "here")]) == 0
    there, here = (
        rows_of(tmp_path / f"{name}/square.csv", "run_time_s") for name in ("dask", "here")
    )
    assert there == here
    assert len(there) == 5
    (session,) = json.loads((tmp_path / "dask/square.json").read_text())["sessions"]
    assert session["cluster"]["workers"] == 2
    assert len(session["cluster"]["hosts"]) == 1
    assert "cpu" not in session


def test_every_backend_answers_in_a_workers_thread_as_in_a_process(
    dask, square, tmp_path, monkeypatch
):
    backends = toy((3,), tuple(map(Call, BACKENDS)), time_limit_s=20.0, build=small)
    monkeypatch.setattr(solving, "EXPERIMENTS", {"toy": backends})
    for name, options in (("dask", ["--dask", dask.address]), ("here", ["--jobs", "2"])):
        out = ["--seeds", "1", "--out", str(tmp_path / name)]
        assert sweep.main(["toy", *options, *out]) == 0
    timed = ("solve_time_s", "n_timings")
    there, here = (rows_of(tmp_path / f"{name}/toy.csv", *timed) for name in ("dask", "here"))
    assert there == here
    assert len(there) == len(BACKENDS)


def test_a_run_that_raises_is_named_and_the_next_sweep_goes_on(dask, square, tmp_path, capsys):
    arguments = ["square", "--dask", dask.address, "--out", str(tmp_path)]
    square({1: "", 2: "", 3: "raise"})
    assert sweep.main(arguments) == 1
    error = capsys.readouterr().err
    assert "square/3 raise: ValueError: 3 is no number of ours; " in error
    assert error.count("\n") == 1
    before = (tmp_path / "square.csv").read_bytes()
    square({1: "", 2: "", 3: ""})
    assert sweep.main(arguments) == 0
    assert (tmp_path / "square.csv").read_bytes().startswith(before)
    assert len(rows_of(tmp_path / "square.csv")) == 3


def test_workers_that_do_not_fit_are_refused_by_name_before_anything_runs(
    dask, square, tmp_path, capsys
):
    square({1: ""})
    other = tmp_path / "other"
    for package in ("experiments", "instances"):
        shutil.copytree(ROOT / package, other / package)
    ours = record.hypsolve_version()
    project = (ROOT / "pyproject.toml").read_text()
    (other / "pyproject.toml").write_text(project.replace(f'"{ours}"', '"9.9"'))
    dask.join("worker-other", path=other)
    dask.join("worker-many", n_threads=2)
    dask.join("worker-bare", path=tmp_path)
    names = ("worker-other", "worker-many", "worker-bare")
    addresses = [dask.worker(name) for name in names]
    try:
        assert sweep.main(["square", "--dask", dask.address, "--out", str(tmp_path)]) == 2
    finally:
        for name in names:
            dask.kill(name)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    reasons = (
        f"hypsolve 9.9, here {ours}",
        "2 threads, but runs are timed: start it with --nthreads 1",
        "ModuleNotFoundError: No module named 'experiments'",
    )
    for address, reason in zip(addresses, reasons, strict=True):
        (said,) = (part for part in error.split("; ") if f"worker {address}" in part)
        assert reason in said
    assert not (tmp_path / "square.csv").exists()


def test_a_worker_that_does_not_fit_and_comes_in_mid_run(dask, square, tmp_path, capsys):
    square({1: "", 2: "wait"})
    arguments = ["square", "--dask", dask.address, "--out", str(tmp_path)]

    def join():
        wait_until((tmp_path / "2.begun").exists, "run begun")
        dask.join("worker-late", n_threads=2)

    with meanwhile(join):
        assert sweep.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"worker {dask.worker('worker-late')} on " in error
    assert "2 threads" in error
    assert f"; 1 rows are in {tmp_path / 'square.csv'}" in error
    dask.kill("worker-late")
    (tmp_path / "go").touch()
    assert sweep.main(arguments) == 0
    assert len(rows_of(tmp_path / "square.csv")) == 2


def test_ctrl_c_leaves_the_rows_and_a_cluster_that_can_be_used(dask, square, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from experiments import registry, sweep
            from tests.helpers import toy_runs

            folder = Path(sys.argv[1])
            deeds = {1: "", 2: "wait", 3: "wait", 4: "wait", 5: ""}
            toy_runs.PLANS["square"] = [(n, deed, folder) for n, deed in deeds.items()]
            registry.FAMILIES = {"toys": toy_runs}
            sweep._show = lambda name, out, rows=None: None
            sys.exit(sweep.main(["square", "--out", str(folder), *sys.argv[2:]]))
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(driver), str(tmp_path), "--dask", dask.address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until((tmp_path / "2.begun").exists, "run begun")
        wait_until(lambda: b"\n1," in (tmp_path / "square.csv").read_bytes(), "first row")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "sweep: stopped at square/" in error
    assert f"; 1 rows are in {tmp_path / 'square.csv'}; the same command goes on" in error
    assert error.count("\n") == 1
    (tmp_path / "go").touch()
    square({1: "", 2: "wait", 3: "wait", 4: "wait", 5: ""})
    assert sweep.main(["square", "--dask", dask.address, "--out", str(tmp_path)]) == 0
    assert len(rows_of(tmp_path / "square.csv")) == 5
    assert (tmp_path / "4.begun").exists()


def test_a_run_that_kills_every_worker_is_named(square, tmp_path, capsys):
    square({1: "", 2: "die", 3: ""})
    with started(tmp_path, 2) as dask:
        assert sweep.main(["square", "--dask", dask.address, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "sweep: square/2 die: 2 workers died while running it; " in error


def test_a_scheduler_that_is_lost(square, tmp_path, capsys):
    square({1: "", 2: "wait"})
    with started(tmp_path, 2) as dask:

        def kill():
            wait_until((tmp_path / "2.begun").exists, "run begun")
            dask.kill("scheduler")

        with meanwhile(kill):
            assert sweep.main(["square", "--dask", dask.address, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"sweep: the scheduler at {dask.address} is lost: once back, " in error
    assert f" rows are in {tmp_path / 'square.csv'}\n" in error
    assert error.count("\n") == 1
    (tmp_path / "go").touch()
    assert sweep.main(["square", "--out", str(tmp_path)]) == 0
    assert len(rows_of(tmp_path / "square.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--dask", "somewhere"], "--dask must be an address like tcp://host:8786, got"),
        (["--dask", "http://127.0.0.1:80"], "--dask must be an address like tcp://host"),
        (["--dask", "tls://127.0.0.1:9"], "needs certificates in Dask's configuration"),
    ],
)
def test_no_scheduler_there(square, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    square({1: ""})
    assert sweep.main(["square", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sweep: {message}" if "tls" not in error else "sweep: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_no_scheduler(square, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    square({1: ""})
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert sweep.main(["square", "--dask", address, "--out", str(tmp_path / "rows")]) == 2
    assert capsys.readouterr().err == f"sweep: no Dask scheduler answers at {address}\n"


def test_simulated_runs_are_the_same_though_a_worker_is_killed(tmp_path, monkeypatch):
    """Runs of the claims, with events and a policy of their own."""
    experiment = definitions.EXPERIMENTS["churn"]
    few = dataclasses.replace(experiment, n_requests={"quick": 300})
    monkeypatch.setitem(
        definitions.EXPERIMENTS, "churn", dataclasses.replace(few, n_seeds={"quick": 2})
    )
    monkeypatch.setattr(sweep, "_show", lambda name, out, rows=None: None)
    monkeypatch.setattr(claims, "conclude", lambda out, rows=None: None)
    command = ["churn", "--quick", "--out"]
    assert sweep.main([*command, str(tmp_path / "here")]) == 0
    with started(tmp_path, 2) as dask, ThreadPoolExecutor() as threads:
        dask.worker("worker-0"), dask.worker("worker-1")
        there = [*command, str(tmp_path / "there"), "--dask", dask.address]
        status = threads.submit(sweep.main, there)
        path = tmp_path / "there" / "churn.csv"
        wait_until(lambda: path.exists() and path.read_text().count("\n") > 2, "rows")
        dask.kill("worker-1")
        assert status.result() == 0
    here, there = (
        rows_of(tmp_path / folder / "churn.csv", "solve_time_s", "run_time_s")
        for folder in ("here", "there")
    )
    assert here == there
    assert len(set(here)) == len(here) == 14


def test_what_a_worker_must_share():
    ours = cluster.about_here()
    assert cluster.misfit(ours, 1) == ""
    other = {**ours, "software": {**ours["software"], "numpy": "1.0", "ortools": None}}
    assert cluster.misfit(other, 1) == (
        f"numpy 1.0, here {ours['software']['numpy']};"
        f" ortools is missing, here {ours['software']['ortools']}"
    )
    assert cluster.misfit({**ours, "sources": "?"}, 1).startswith("its files of hypsolve")
    assert "4 threads" in cluster.misfit(ours, 4)
