"""Run experiments: `python -m experiments.sweep [NAME...]`, rows in CSVs, tables, pictures."""

import argparse
import contextlib
import importlib.util
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments.definitions import EXPERIMENTS, MEASUREMENTS, SIZES
from experiments.record import Record, note_session, provenance, recording

if TYPE_CHECKING:
    from experiments.progress import Progress

FOLDERS = {"quick": "results/quick", "default": "results/default", "full": "results"}
_QUESTIONS = {
    **{name: experiment.question for name, experiment in EXPERIMENTS.items()},
    **MEASUREMENTS,
}
_DEFAULT = (*EXPERIMENTS, "speed")
_EPILOG = """\
With no NAME: gap, solve_time, latency and speed. A row is appended to OUT/NAME.csv the moment a
run ends; OUT/NAME.json says where the rows come from. Stopped by Ctrl-C or killed, the same
command goes on where it was. OUT is results/default, with --quick results/quick and with --full
results, so that a short run never mixes with the committed rows of the full one.
Exit status: 0 done, 1 a run failed, 2 wrong arguments or files, 130 stopped by Ctrl-C."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sweep: {message}\n")  # one line, without the usage


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 to 10000, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite seconds, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments.sweep",
        description="Run experiments and write CSV, pictures and a table of gaps and times.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_QUESTIONS)}")
    parser.add_argument("--list", action="store_true", help="say what the experiments ask")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smallest instances, under a minute")
    size.add_argument("--full", action="store_true", help="as published, about 20 minutes")
    parser.add_argument(
        "--jobs",
        type=_whole,
        default=1,
        metavar="N",
        help="runs at a time (default 1: measured times then do not compete for cores)",
    )
    parser.add_argument("--time-limit", type=_seconds, metavar="S", help="seconds of each run")
    parser.add_argument("--seeds", type=_whole, metavar="N", help="instances per size")
    parser.add_argument("--out", type=Path, help="folder to write to")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for name, question in _QUESTIONS.items():
            print(f"{name:<12} {question}{'' if name in _DEFAULT else ' (only by name)'}")
        return 0
    for name in options.names:
        if name not in _QUESTIONS:
            parser.error(f"unknown experiment {name!r}; choose from {', '.join(_QUESTIONS)}")
    for package in ("matplotlib", "pandas", "rich"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is missing: pip install 'hypsolve[experiments]'")
    options.size = next((size for size in SIZES if vars(options).get(size)), "default")
    options.out = options.out or Path(FOLDERS[options.size])
    command = shlex.join(["python", "-m", "experiments.sweep", *arguments])
    try:
        return _sweep(options, tuple(dict.fromkeys(options.names or _DEFAULT)), command)
    except OSError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"sweep: stopped{stop}; the same command goes on from there", file=sys.stderr)
        return 130


def _sweep(options: argparse.Namespace, names: Sequence[str], command: str) -> int:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OSError(f"--out must be a folder, got {str(options.out)!r}") from None
    session = provenance(command)
    rows: dict[str, set[int]] = {}  # of this plan: a file may hold other limits and versions
    for name in names:
        if name == "calibration":
            _calibrate(options, session)
        elif name == "speed":
            _measure_speed(options, session)
        else:
            rows[name] = _run_experiment(name, options, session)
    for name in names:
        _show(name, options.out, rows.get(name))
        if name == "calibration":
            _show("calibration_points", options.out)
    return 0


def _run_experiment(
    name: str, options: argparse.Namespace, session: Mapping[str, Any]
) -> set[int]:
    """Execute the runs that have no row yet; return the rows of this plan."""
    from experiments import report, runner
    from experiments.progress import Progress
    from hypsolve.kernels.warm import warm

    with recording(options.out / f"{name}.csv", runner.COLUMNS) as record:
        runs = runner.plan(
            name,
            EXPERIMENTS[name],
            options.size,
            version=session["hypsolve"],
            n_seeds=options.seeds,
            time_limit_s=options.time_limit,
        )
        planned = {runner.identity(run.row()) for run in runs}

        def of_plan() -> set[int]:
            rows = enumerate(record.rows)
            return {number for number, row in rows if runner.identity(row) in planned}

        done = {runner.identity(row) for row in record.rows}
        todo = [run for run in runs if runner.identity(run.row()) not in done]
        if not todo:
            print(f"{name}: all {len(runs)} runs are in {record.path}")
            return of_plan()
        warm()  # compiled once, here: several workers at it can spoil the cache
        note_session(record.path, session, len(record.rows))
        progress = Progress(name, len(runs), [run.call for run in todo], options.jobs)
        rows = runner.execute(todo, jobs=options.jobs, started=progress.start)
        with _telling_where(progress, record), progress, contextlib.closing(rows):
            for run, row in rows:
                record.append(row)
                words = f"{row['status']}, {report.seconds(row['solve_time_s'])}"
                progress.end(run, run.call, words, row["solve_time_s"] * row["n_timings"])
        return of_plan()


def _measure_speed(options: argparse.Namespace, session: Mapping[str, Any]) -> None:
    """Take the measurements that have no row yet."""
    from experiments import speed
    from experiments.progress import Progress
    from hypsolve.kernels.warm import warm

    with recording(options.out / "speed.csv", speed.COLUMNS) as record:
        done = {(row["task"], row["size"], row["version"]) for row in record.rows}
        version = session["hypsolve"]
        todo = {
            task: measure
            for task, measure in speed.TASKS.items()
            if (task, options.size, version) not in done
        }
        if not todo:
            print(f"speed: all is in {record.path}; delete it to measure again")
            return
        warm()
        note_session(record.path, session, len(record.rows))
        progress = Progress("speed", len(speed.TASKS), list(todo), 1)
        with _telling_where(progress, record), progress:
            for task, measure in todo.items():
                progress.start(task)
                began = time.perf_counter()
                rows = measure(options.size)
                known = {"task": task, "size": options.size, "version": version}
                for row in rows:
                    record.append(row | known)
                words = f"{rows[0]['median']:.4g} {rows[0]['unit']}"
                progress.end(task, task, words, time.perf_counter() - began)


@contextlib.contextmanager
def _telling_where(progress: "Progress", record: Record) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f" at {progress.current}; {len(record.rows)} rows are in {record.path}"
        ) from None


def _calibrate(options: argparse.Namespace, session: Mapping[str, Any]) -> None:
    """Compare with the measured block times, where they are."""
    from experiments import calibration

    path = options.out / "calibration.csv"
    before = path.stat().st_mtime_ns if path.exists() else 0
    calibration.run(options.out)
    if path.exists() and path.stat().st_mtime_ns != before:
        note_session(path, session, 0)


def _show(name: str, out: Path, rows: set[int] | None = None) -> None:
    """Print an experiment's tables and draw its figures."""
    import matplotlib

    matplotlib.use("Agg")
    from experiments import figures, report
    from experiments.progress import print_table

    path = out / f"{name}.csv"
    if not path.exists():  # calibration without the measured data
        return
    frame = report.load(path, rows)
    for title, table in report.tables(name, frame).items():
        print_table(title, table)
    for written in (path, *figures.save_figures(name, frame, out)):
        print(f"  {written}")


if __name__ == "__main__":
    sys.exit(main())
