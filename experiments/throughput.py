"""Run the experiments on requests per second: ``python -m experiments.throughput [OPTIONS]``.

This is the experiment `throughput` of `experiments.sweep`, with the options of the sweep. With
``--exhaustive`` it is the experiment `throughput_exhaustive`, which simulates every split of
eight small deployments. ``--rates [--full] [--jobs N]`` solves nothing: it simulates the splits
of the rows of `throughput` again, and keeps the splits, the solve times and the bounds. Use it
when the simulation changed and the methods did not.
"""

import argparse
import csv
import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from experiments import runner, sweep
from experiments.definitions import SIZES
from experiments.record import as_text, machine, provenance
from experiments.serving import definitions
from experiments.serving.runs import COLUMNS, IDENTITY, ServingRun
from hypsolve import Partition

Row = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--rates" in given:
        return _rates([each for each in given if each != "--rates"])
    name = "throughput"
    if "--exhaustive" in given:
        given.remove("--exhaustive")
        name = "throughput_exhaustive"
    return sweep.main([name, *given])


def _rates(arguments: Sequence[str]) -> int:
    """Simulate the splits of the rows of `throughput` again, and write tables and figures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.throughput --rates")
    size = parser.add_mutually_exclusive_group()
    for name in SIZES:
        if name != "default":
            size.add_argument(f"--{name}", action="store_const", const=name, dest="size")
    parser.add_argument("--out", type=Path, help="folder of the rows")
    parser.add_argument("--jobs", type=int, default=1, help="deployments at a time (default 1)")
    options = parser.parse_args(arguments)
    of_size = options.size or "default"
    path = (options.out or Path(sweep.FOLDERS[of_size])) / "throughput.csv"
    command = " ".join(["python -m experiments.throughput --rates", *arguments])
    session = provenance(command) | machine()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = definitions.plan("throughput", of_size, version=session["hypsolve"])
    again = simulate_again(rows, runs, options.jobs)
    partial = path.with_suffix(".csv.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(again)
    partial.replace(path)
    _note(path.with_suffix(".json"), session)
    return sweep.main(["throughput", "--redraw", "--out", str(path.parent)])


def simulate_again(rows: Sequence[Row], runs: Iterable[ServingRun], jobs: int) -> list[Row]:
    """Return the rows with the rates that their splits serve in simulation now.

    Rows that no run of the plan makes stay as they are.
    """
    runner.warm_alone()
    planned = runner.by_identity(runs, IDENTITY)
    todo: dict[str, list[tuple[int, ServingRun, Row]]] = defaultdict(list)  # by deployment
    for number, row in enumerate(rows):
        run = planned.get(runner.identity(row, IDENTITY))
        if run is not None and row["cuts"]:
            todo[run.digest].append((number, run, row))
    again = list(rows)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn) as pool:
        simulated = (pool.map if jobs > 1 else map)(_simulate, todo.values())
        for done, columns in enumerate(simulated, start=1):
            for number, more in columns.items():
                again[number] = rows[number] | {k: as_text(v) for k, v in more.items()}
            print(f"[{done}/{len(todo)}] deployments simulated", flush=True)
    return again


def _simulate(group: Sequence[tuple[int, ServingRun, Row]]) -> dict[int, dict[str, Any]]:
    """Simulate the splits of one deployment; each once, for methods often find the same."""
    return {
        number: run.simulate(partition_of(row["cuts"]), float(row["bound_requests_per_s"]))
        for number, run, row in group
    }


def partition_of(text: str) -> Partition:
    """Read a split as `Partition` prints it: ``0:12 | 12:34``."""
    ranges = [part.split(":") for part in text.split(" | ")]
    return Partition((int(ranges[0][0]), *(int(end) for _, end in ranges)))


def _note(path: Path, session: dict[str, Any]) -> None:
    """Note beside the rows that their rates were simulated again."""
    record = json.loads(path.read_text())
    for each in record["sessions"]:
        each["rates"] = session
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
