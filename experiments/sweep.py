"""Run experiments: `python -m experiments.sweep [NAME...]` writes CSVs, tables and figures."""

import argparse
import contextlib
import importlib.util
import math
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments import claims, registry, runner, solving
from experiments.definitions import MEASUREMENTS, SIZES
from experiments.record import Record, machine, note_session, provenance, recording
from experiments.waiting import duration
from hypsolve.problem.optional import install

if TYPE_CHECKING:
    from experiments.progress import Progress

FOLDERS = {"quick": "results/quick", "default": "results/default", "full": "results"}
_DEFAULT = (*solving.EXPERIMENTS, "throughput", "speed")
_EPILOG = """\
Without NAME: gap, solve_time, latency, throughput and speed. The name of a family (solving,
anytime, claims, serving) stands for all its experiments. Each run appends a row to OUT/NAME.csv
when it ends; OUT/NAME.json records where the rows come from, and OUT/NAME.md holds the tables.
After Ctrl-C or a crash, the same command continues. A run whose process died is tried again:
once, or on a Dask cluster as often as its scheduler allows. OUT is results/default, with
--quick results/quick, with --full results: a short run never mixes with the committed rows.
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
        description="Run experiments, and write their rows, tables and figures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(registry.questions())}"
    )
    parser.add_argument("--list", action="store_true", help="print every question")
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="run nothing: write the tables and figures of the rows in OUT anew (without NAME,"
        " of every experiment that has rows there)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smallest instances: under a minute")
    size.add_argument(
        "--full",
        action="store_true",
        help="as published: about 22 minutes without NAME, 15 for all claims (9 with --jobs 2)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs",
        type=_whole,
        default=1,
        metavar="N",
        help="runs at a time (default 1, so that timed runs do not compete for cores)",
    )
    where.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler (tcp://host:8786); each worker needs"
        " one thread, and this clone with these package versions on its PYTHONPATH",
    )
    parser.add_argument("--time-limit", type=_seconds, metavar="S", help="seconds per run")
    parser.add_argument("--seeds", type=_whole, metavar="N", help="instances per value")
    parser.add_argument("--out", type=Path, help="folder to write to")
    return parser


def _list() -> None:
    width = max(map(len, registry.questions()))
    for title, experiments in (
        *((name, family.EXPERIMENTS) for name, family in registry.FAMILIES.items()),
        ("measured on this machine", MEASUREMENTS),
    ):
        print(f"{title}:")
        for name, each in experiments.items():
            by_name = "" if name in _DEFAULT else " (by name)"
            print(f"  {name:<{width}}  {each.question}{by_name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    names = _named(options.names or ([] if options.redraw else _DEFAULT), parser)
    extras = dict.fromkeys(("matplotlib", "pandas", "rich"), "experiments")
    if options.dask is not None:
        extras["distributed"] = "dask"
    for package, extra in extras.items():
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is missing: {install(extra)}")
    options.size = next((size for size in SIZES if vars(options).get(size)), "default")
    if options.full and not options.out and (options.seeds or options.time_limit):
        parser.error("--full with --seeds or --time-limit needs --out: results has the whole")
    options.out = options.out or Path(FOLDERS[options.size])
    command = _command(arguments)
    try:
        if options.redraw:
            return _redraw(options.out, names)
        return _sweep(options, names, command)
    except OSError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"sweep: stopped{stop}; the same command goes on from there", file=sys.stderr)
        return 130


def _command(arguments: Sequence[str]) -> str:
    """Return the command that goes on with this sweep: of a script of one's own, its own."""
    script = Path(sys.argv[0])
    if script.name == "throughput.py" and script.resolve().parent == Path(__file__).parent:
        return shlex.join(["python", "-m", "experiments.throughput", *sys.argv[1:]])
    if script.suffix == ".py" and script.name not in ("sweep.py", "__main__.py"):
        return shlex.join(["python", script.name, *sys.argv[1:]])
    return shlex.join(["python", "-m", "experiments.sweep", *arguments])


def _named(names: Sequence[str], parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return the experiments of these names, or of these families, each once."""
    known = registry.questions()
    families = registry.FAMILIES
    for name in names:
        if name not in known and name not in families:
            parser.error(f"unknown experiment {name!r}; choose from {', '.join(known)}")
    groups = (families[name].EXPERIMENTS if name in families else (name,) for name in names)
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _sweep(options: argparse.Namespace, names: Sequence[str], command: str) -> int:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OSError(f"--out must be a folder, got {str(options.out)!r}") from None
    n_steps = len(names) + 1
    print(f"sweep: {n_steps} steps: {', '.join(names)}, tables; into {options.out}", flush=True)
    began_s = time.perf_counter()
    session = provenance(command)
    rows: dict[str, list[int]] = {}  # of this plan: a file may hold other limits and versions
    with _workers(options) as workers:
        for step, name in enumerate(names, start=1):
            print(f"step {step} of {n_steps}: {name}", flush=True)
            if name in ("calibration", "validation"):
                _compare(name, options, session)
            elif name == "speed":
                _measure_speed(options, session)
            else:
                rows[name] = _run_experiment(name, options, session, workers)
    print(f"step {n_steps} of {n_steps}: tables and figures", flush=True)
    _show_all(names, options.out, rows)
    print(f"\ndone in {duration(time.perf_counter() - began_s)}", flush=True)
    _conclude(names, options.out, rows)
    return 0


def _conclude(names: Sequence[str], out: Path, rows: Mapping[str, Collection[int]]) -> None:
    """Print the answers of the experiments, and where the first figure and all tables are."""
    from experiments import presentation, report

    for name in names:
        path = out / f"{name}.csv"
        if path.exists():
            for line in presentation.answers_of(name, report.load(path, rows.get(name))):
                print(f"  {name}: {line}")
    pictures = [path for name in names for path in sorted(out.glob(f"{name}*.png"))]
    picture = f"look at {pictures[0]}; " if pictures else ""
    print(f"{picture}all figures, tables (.md) and rows (.csv) are in {out}")


def _redraw(out: Path, names: Sequence[str]) -> int:
    """Write the tables and figures of the rows in a folder; all that are there, or by name."""
    for name in names:
        if not (out / f"{name}.csv").exists():
            raise OSError(f"--redraw {name}: {out / name}.csv is missing")
    there = [name for name in registry.questions() if (out / f"{name}.csv").exists()]
    if not there:
        raise OSError(f"--redraw: {out} holds no rows of an experiment")
    _show_all(names or there, out, {})
    return 0


def _show_all(names: Sequence[str], out: Path, rows: Mapping[str, Collection[int]]) -> None:
    for name in names:
        _show(name, out, rows.get(name))
        for further in getattr(MEASUREMENTS.get(name), "further", ()):
            _show(further, out)
    if set(names) & set(claims.EXPERIMENTS):
        claims.conclude(out, rows)


def _workers(options: argparse.Namespace) -> AbstractContextManager[runner.Workers]:
    if options.dask is None:
        return contextlib.nullcontext(runner.Processes(options.jobs))
    from experiments.cluster import connected

    return connected(options.dask)


def _run_experiment(
    name: str, options: argparse.Namespace, session: Mapping[str, Any], workers: runner.Workers
) -> list[int]:
    """Execute the runs that have no row yet; return the numbers of this plan's rows."""
    from experiments.progress import Progress

    family = registry.family_of(name)
    assert family is not None  # the measurements have steps of their own
    limits = {"n_seeds": options.seeds, "time_limit_s": options.time_limit}
    with recording(options.out / f"{name}.csv", family.COLUMNS) as record:
        print(f"{name}: making its instances", flush=True)
        runs = family.plan(name, options.size, version=session["hypsolve"], **limits)
        planned = runner.by_identity(runs, family.IDENTITY)
        done = {runner.identity(row, family.IDENTITY) for row in record.rows}
        todo = {key: run for key, run in planned.items() if key not in done}

        def of_plan() -> list[int]:
            keys = [runner.identity(row, family.IDENTITY) for row in record.rows]
            numbers = dict(zip(keys, range(len(keys)), strict=True))
            return [numbers[key] for key in planned]

        if not todo:
            print(f"{name}: all {len(runs)} runs are in {record.path}")
            return of_plan()
        n_before, where = len(record.rows), workers.where()
        note_session(record.path, {**session, **where}, n_before)
        progress = Progress(name, len(runs), [run.call for run in todo.values()], workers.jobs)
        rows = workers.execute(list(todo.values()), started=progress.start)
        with _locating_errors(progress, record), progress, contextlib.closing(rows):
            for run, row in rows:
                todo.pop(runner.identity(row, family.IDENTITY))  # KeyError if it came twice
                record.append(row)
                if workers.where() != where:  # workers have joined
                    where = workers.where()
                    note_session(record.path, {**session, **where}, n_before)
                progress.jobs = workers.jobs
                progress.end(run, run.call, run.describe(row), run.seconds(row))
        return of_plan()


def _measure_speed(options: argparse.Namespace, session: Mapping[str, Any]) -> None:
    """Measure the speeds that have no row yet."""
    from experiments import speed
    from experiments.progress import Progress

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
        runner.warm_alone()
        note_session(record.path, {**session, **machine()}, len(record.rows))
        progress = Progress("speed", len(speed.TASKS), list(todo), 1)
        with _locating_errors(progress, record), progress:
            for task, measure in todo.items():
                progress.start(task)
                began = time.perf_counter()
                rows = measure(options.size)
                known = {"task": task, "size": options.size, "version": version}
                for row in rows:
                    record.append(row | known)
                result = f"{rows[0]['median']:.4g} {rows[0]['unit']}"
                progress.end(task, task, result, time.perf_counter() - began)


@contextlib.contextmanager
def _locating_errors(progress: "Progress", record: Record) -> Iterator[None]:
    """Add to an error how many rows are in which file, and to an interrupt the current run."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f" at {progress.current}; {record.n_written()} rows are in {record.path}"
        ) from None
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}; {record.n_written()} rows are in {record.path}"
        ) from error


def _compare(name: str, options: argparse.Namespace, session: Mapping[str, Any]) -> None:
    """Compare predictions with measurements, if those are on this machine."""
    from experiments import calibration, validation

    path = options.out / f"{name}.csv"
    before = path.stat().st_mtime_ns if path.exists() else 0
    compare = {"calibration": calibration.run, "validation": validation.run}[name]
    compare(options.out)
    if path.exists() and path.stat().st_mtime_ns != before:
        note_session(path, {**session, **machine()}, 0)


def _show(name: str, out: Path, rows: Collection[int] | None = None) -> None:
    """Print and write the tables of an experiment, and draw its figures."""
    import matplotlib

    matplotlib.use("Agg")
    from experiments import markdown, presentation, report
    from experiments.progress import print_table

    path = out / f"{name}.csv"
    if not path.exists():  # calibration without the measured data
        return
    frame = report.load(path, rows)
    tables = presentation.tables_of(name, frame)
    for title, table in tables.items():
        print_table(title, table)
    print(f"  {path}")
    for written in markdown.save_tables(name, tables, out):
        print(f"  {written}")
    for written in presentation.save_figures(name, frame, out):
        print(f"  {written}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
