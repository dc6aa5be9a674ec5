"""The command `measure`: a profile of this machine, or of a link."""

from pathlib import Path

import click

from hypsolve.calibration import measure as blocks
from hypsolve.calibration.measure_grid import FIELDS
from hypsolve.calibration.measure_rows import write_rows
from hypsolve.cli.options import show_progress, to_write
from hypsolve.formats.gpu_profile import write_gpu_profile
from hypsolve.planning.text import table
from hypsolve.problem.units import gib_to_bytes, show_bytes, show_seconds

DEFAULT_OUT = "profile.toml"
BUSY = 1.2  # from which the machine is called busy


@click.command()
@click.option(
    "--device",
    type=click.Choice(blocks.DEVICES),
    help="Where blocks run.  [default: the fastest kind that torch sees]",
)
@click.option(
    "--model",
    "shapes",
    multiple=True,
    metavar="SHAPE",
    help="Shape of the blocks: a name of hypsolve models, or "
    + ":".join(FIELDS)
    + ". May be given several times; a single one gets a second one."
    "  [default: two or three that suit the device]",
)
@click.option("--dtype", type=click.Choice(blocks.KNOWN_DTYPES), help="Type of all numbers.")
@click.option("--threads", type=int, help="Threads on the CPU.  [default: one for each core]")
@click.option("--quick", is_flag=True, help="Fewer steps, in less than two minutes.")
@click.option("--time-limit", type=float, help="Seconds after which no further step starts.")
@click.option("--memory-gib", type=float, help="Memory that may be used.")
@click.option("--name", default="", help="Name of the profile.  [default: of the machine]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=DEFAULT_OUT,
    show_default=True,
    help="Profile to write; the table of all times gets the same name with .csv.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def measure(
    device: str | None,
    shapes: tuple[str, ...],
    dtype: str | None,
    threads: int | None,
    quick: bool,
    time_limit: float | None,
    memory_gib: float | None,
    name: str,
    out: Path,
    force: bool,
) -> None:
    """Measure transformer blocks on this machine, and fit a GPU profile to their times.

    Blocks have random weights, so nothing is downloaded. A network file takes the profile by
    its path: nodes = [{gpu = "profile.toml"}]. Needs torch: pip install 'hypsolve[measure]'.
    """
    to_write(out, ".toml")
    rows_file = out.with_suffix(".csv")
    for path in (out, rows_file):
        keep(path, force)
    with show_progress() as progress:
        found = blocks.measure(
            shapes,
            device=device,
            dtype=dtype,
            threads=threads,
            quick=quick,
            memory_bytes=None if memory_gib is None else int(gib_to_bytes(memory_gib)),
            time_limit_s=time_limit,
            progress=progress,
        )
    profile = found.profile(name)
    write_rows(rows_file, found.machine, found.rows)
    write_gpu_profile(out, profile)
    print(describe(found))
    print(f'{out}: for a network file, nodes = [{{gpu = "{out.name}"}}]')
    print(f"{rows_file}: all times")


def keep(path: Path, force: bool) -> None:
    """Raise if a file exists that may not be replaced."""
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists already; give another name, or --force")


def describe(found: blocks.Measurement) -> str:
    """Describe a measurement: machine, numbers with intervals, errors, skipped steps."""
    machine = found.machine
    n = sum(row.timing is not None for row in found.rows)
    lines = [
        f"{machine.machine}, {machine.device}, {machine.dtype}, {machine.threads} threads,"
        f" torch {machine.torch}: {n} of {len(found.rows)} steps,"
        f" memory {show_bytes(found.memory_bytes)}",
        "in one step, a block takes t0 + max(FLOPs / tflops, bytes / gb_per_s):",
    ]
    units = {"t0_s": ("t0_us", 1e6), "flops_per_s": ("tflops", 1e-12)}
    units["bytes_per_s"] = ("gb_per_s", 1e-9)
    rows = [
        {
            "number": name,
            "fitted": f"{getattr(found.fitted, key) * unit:.4g}",
            "from": f"{found.interval[key][0] * unit:.4g}",
            "to (95 %)": f"{found.interval[key][1] * unit:.4g}",
        }
        for key, (name, unit) in units.items()
    ]
    lines += [table(rows), "mean error of the form:"]
    errors = [("the fit itself", found.error)]
    errors += [(f"{e.shape}, fitted to {', '.join(e.fitted_to)}", e) for e in found.held_out]
    shown = [
        {
            "on": about,
            "steps": each.n_steps,
            "prefill": blocks.percent(each.prefill),
            "decode": blocks.percent(each.decode),
        }
        for about, each in errors
    ]
    lines.append(table(shown))
    slowest = max(row.timing.median_s for row in found.rows if row.timing)
    lines.append(f"the slowest step of a block took {show_seconds(slowest)}")
    for key in found.unlimited:
        lines.append(f"no step was limited by {units[key][0]}: the largest one seen is given")
    if found.busy > BUSY:
        lines.append(
            f"the machine was busy: by the clock on the wall, steps took {found.busy:.1f} times"
            " as long as on the core; times on the core are used"
        )
    reasons: dict[str, list[str]] = {}
    for row in found.skipped:
        text = f"{row.shape.name}, {row.step.describe()}"
        reasons.setdefault(row.skipped, []).append(text)
    for reason, steps in reasons.items():
        lines.append(f"skipped, {reason}: {'; '.join(steps)}")
    return "\n".join(lines)
