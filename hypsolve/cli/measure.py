"""The command `measure`: a profile of this machine, or of a link."""

import itertools
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hypsolve.calibration import measure as blocks
from hypsolve.calibration import measure_links as links
from hypsolve.calibration.measure_grid import FIELDS
from hypsolve.calibration.measure_rows import write_rows
from hypsolve.cli.options import as_json_option, show_progress, to_write
from hypsolve.formats.gpu_profile import formula, write_gpu_profile
from hypsolve.planning.text import table
from hypsolve.problem import validation as valid
from hypsolve.problem.units import count, gib_to_bytes, show_bytes, show_seconds

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
@click.option(
    "--link",
    metavar="HOST[:PORT]",
    help="Measure TCP to a host with --serve-link instead; loopback: within this host.",
)
@click.option(
    "--serve-link",
    metavar="[ADDRESS:]PORT",
    help=f"Serve such measurements until Ctrl-C; {links.PORT} is the port of --link.",
)
@as_json_option
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
    link: str | None,
    serve_link: str | None,
    as_json: bool,
) -> int:
    """Measure transformer blocks on this machine, and fit a GPU profile to their times.

    Blocks have random weights, so nothing is downloaded. A network file takes the profile by
    its path: nodes = [{gpu = "profile.toml"}]. Needs torch: pip install -e ".[measure]".
    """
    if serve_link is not None:
        serve(serve_link)
        return 0
    if link is not None:
        host, port = address_of(link, links.PORT)
        with show_progress() as progress:
            times = links.measure_link(host, port, progress=progress)
        show_found(asdict(times), describe_link(times), as_json)
        return 0
    to_write(out, ".toml")
    rows_file = out.with_suffix(".csv")
    for path in (out, rows_file):
        keep(path, force)
    memory_bytes = None
    if memory_gib is not None:
        valid.real("measure", "memory_gib", memory_gib, strict=True)
        memory_bytes = int(gib_to_bytes(memory_gib))
    with show_progress() as progress:
        found = blocks.measure(
            shapes,
            device=device,
            dtype=dtype,
            threads=threads,
            quick=quick,
            memory_bytes=memory_bytes,
            time_limit_s=time_limit,
            progress=progress,
        )
    profile = found.profile(name)
    write_rows(rows_file, found.machine, found.rows)
    write_gpu_profile(out, profile)
    show_found(found.to_dict(), describe(found), as_json)
    if not as_json:
        print(f'{out}: for a network file, nodes = [{{gpu = "{out.name}"}}]')
        print(f"{rows_file}: all times")
    return 130 if found.is_stopped else 0


def show_found(plain: dict[str, Any], text: str, as_json: bool) -> None:
    """Print what was found as text or as JSON."""
    print(json.dumps(plain, indent=2, allow_nan=False) if as_json else text)


def keep(path: Path, force: bool) -> None:
    """Raise if a file exists that may not be replaced."""
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists already; give another name, or --force")


def address_of(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Return host and port of a text such as ``box.lan:47147`` or ``[fe80::1]:47147``."""
    host, sign, port = text.rpartition(":")
    bare = ":" in host and not host.startswith("[")  # an address of IPv6 without a port
    if default_port is not None and (not sign or bare or text.endswith("]")):
        host, port = text, str(default_port)
    if not (port.isascii() and port.isdigit() and len(port) < 6):
        raise click.ClickException(f"port must be a whole number, got {port!r:.60}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def serve(text: str) -> None:
    """Serve measurements of links until Ctrl-C."""
    host, port = address_of(text)

    def ready(found: int) -> None:
        print(
            f"serving on port {found}; on the other host: hypsolve measure --link HOST:{found}"
        )
        print("Ctrl-C ends it", flush=True)

    links.serve_links(host, port, ready=ready)


def describe_link(times: links.LinkTimes) -> str:
    """Describe a measured link, with the line of a network file."""
    link = times.link()
    low, high = times.round_trip_range_s
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    source = f"hypsolve measure --link {times.host}, {date}"
    gbps = times.up_bytes_per_s * 8e-9
    return "\n".join(
        [
            f"TCP to {times.host}: {gbps:.4g} Gbit/s,"
            f" back {times.down_bytes_per_s * 8e-9:.4g} Gbit/s; round trip"
            f" {show_seconds(times.round_trip_s)} (90 % within {show_seconds(low)} to"
            f" {show_seconds(high)})",
            "for a tier of a network file, if the latency is alike both ways:",
            f"link = {{gbps = {gbps:.4g}, latency_ms = {link.latency_s * 1e3:.4g},"
            f' gbps_source = "{source}", latency_source = "half of its round trip"}}',
        ]
    )


def describe(found: blocks.Measurement) -> str:
    """Describe a measurement: machine, numbers with intervals, errors, skipped steps."""
    machine = found.machine
    n = sum(row.timing is not None for row in found.rows)
    lines = [
        f"{machine.machine}, {machine.device}, {machine.dtype},"
        f" {count(machine.threads, 'thread')}, torch {machine.torch}:"
        f" {n} of {len(found.rows)} steps,"
        f" memory {show_bytes(found.memory_bytes)}",
        f"in one step, a block takes {formula(found.fitted.overlaps)}:",
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
    lines.append(table(rows))
    shown = [
        {
            "error": about,
            "steps": each.n_steps,
            "prefill": blocks.percent(each.prefill),
            "decode": blocks.percent(each.decode),
        }
        for about, each in found.errors().items()
    ]
    lines.append(table(shown))
    if not found.fitted.overlaps:
        lines.append("this machine computes and reads in turn, so both times add up")
    slowest = max(row.timing.median_s for row in found.rows if row.timing)
    lines.append(f"the slowest step of a block took {show_seconds(slowest)}")
    for key in found.unlimited:
        lines.append(f"no step was limited by {units[key][0]}: the largest one seen is given")
    if found.busy > BUSY:
        lines.append(
            f"the machine was busy: by the clock on the wall, steps took {found.busy:.1f} times"
            " as long as on the core; times on the core are used"
        )
    if not found.held_out:
        lines.append(
            "one shape alone was measured: t0 and the reading of weights cannot be told apart,"
            " and the error on other shapes is unknown"
        )
    lines += describe_skipped(found)
    return "\n".join(lines)


def describe_skipped(found: blocks.Measurement) -> list[str]:
    """Describe what was not measured, a line for each reason and shape."""
    lines = []
    shapes = dict.fromkeys(row.shape for row in found.rows)
    kinds = dict.fromkeys(row.skipped.partition(":")[0] for row in found.skipped)
    for kind, shape in itertools.product(kinds, shapes):
        own = [row for row in found.rows if row.shape == shape]
        rows = [row for row in own if row.skipped.partition(":")[0] == kind]
        if not rows:
            continue
        steps = "; ".join(row.step.describe() for row in rows)
        what = f"all {len(own)} steps" if len(rows) == len(own) else steps
        details = [row.skipped.partition(": ")[2] for row in rows]
        detail = details[0] if len(set(details)) == 1 else f"{details[0]} and others"
        lines.append(f"skipped, {kind}{detail and f' ({detail})'}: {shape.name}, {what}")
    return lines
