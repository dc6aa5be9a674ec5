"""The commands `hypsolve place` and `hypsolve rent`."""

import json
import math
import sys
from typing import Any

import click

from hypsolve.cli.options import query_options, show_progress, to_write
from hypsolve.planning.exporters.placements import SERVERS, export_placement
from hypsolve.planning.html_page import report_path
from hypsolve.planning.place import place_query
from hypsolve.planning.place_html import write_placement_report
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.rent_curve import curve_of
from hypsolve.planning.rent_curve_figure import SIZE
from hypsolve.problem.optional import optional
from hypsolve.problem.placement import MAX_STAGES
from hypsolve.solve_placement import PLACEMENT_METHODS

LIMITS = "the whole command; compiling comes before"


def _shared(command: Any) -> Any:
    """Decorate a command with the options that `place` and `rent` share."""
    options = [
        click.option(
            "--max-stages",
            default=MAX_STAGES,
            show_default=True,
            help="Stages of a pipeline, at most.",
        ),
        click.option(
            "--method",
            type=click.Choice(tuple(PLACEMENT_METHODS)),
            metavar="NAME",
            help="Search in the fluid model, see hypsolve methods.  [default: an exact one]",
        ),
        click.option(
            "--export",
            "server",
            type=click.Choice(SERVERS),
            help="Print the commands of a server for each pipeline, and the router.",
        ),
        click.option(
            "--report",
            type=click.Path(),
            help="Also write figure, tables and proof to this .html file.",
        ),
        click.option(
            "--save", type=click.Path(), help="Also write what --json prints to this file."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@query_options(
    objectives=("throughput", "goodput", "latency"),
    default_objective="throughput; goodput with a target",
    limits=LIMITS,
    takes_machines=True,
)
@_shared
def place(
    arguments: dict[str, Any],
    model: str,
    machines: str,
    max_stages: int,
    method: str | None,
    server: str | None,
    report: str | None,
    save: str | None,
    as_json: bool,
) -> int:
    """Decide which machines form which pipelines, and what they serve.

    \b
    hypsolve place --model llama-3-70b --machines machines.toml
    hypsolve place --model llama-3-70b --machines machines.toml --slo-tpot 0.05 --users 40
    hypsolve place --model llama-3-8b --machines nvidia-smi.csv --rate 5 --json
    hypsolve place --model llama-3-70b --machines machines.toml --objective latency --rate 2
    hypsolve place --model llama-3-8b --machines machines.toml --export vllm
    hypsolve place --model llama-3-8b --machines machines.toml --report placement.html

    Machines have no order, and some may be left out: the plan says why. The best placement of
    the fluid model is proved; the best few are simulated token by token behind a router, and
    the best simulated one is printed.

    Exit code: 0 a placement that serves the load, if there is one; 1 nothing fits, or the load
    is not served within the targets; 2 bad input; 130 stopped by Ctrl-C, with the best
    placement so far.
    """  # noqa: D301
    return _run(arguments, model, machines, max_stages, method, server, report, save, as_json)


@click.command()
@query_options(objectives=(), limits=LIMITS, takes_machines=True)
@_shared
@click.option(
    "--curve",
    is_flag=True,
    help="Print the least price at other rates, too, and the prices at which offers enter or"
    " leave the answer, in the fluid model and without simulation.",
)
@click.option(
    "--png",
    type=click.Path(),
    help="With --curve: also draw the curve to this .png, .svg or .pdf file.",
)
def rent(
    arguments: dict[str, Any],
    model: str,
    machines: str,
    max_stages: int,
    method: str | None,
    server: str | None,
    report: str | None,
    save: str | None,
    curve: bool,
    png: str | None,
    as_json: bool,
) -> int:
    """Find the cheapest machines that serve a rate, or users, within targets.

    \b
    hypsolve rent --model llama-3-70b --machines offers.toml --rate 4 --slo-tpot 0.05
    hypsolve rent --model llama-3-8b --machines offers.toml --users 100 --slo-ttft 1
    hypsolve rent --model llama-3-70b --machines offers.toml --rate 4 --curve --png curve.png

    Machines with a price_per_hour cost it if they are used; offers are machines of which any
    number up to max_count may be rented. Machines without a price are free.

    Exit code: as for hypsolve place.
    """  # noqa: D301
    if "users" not in arguments and "rate_per_s" not in arguments:
        raise click.UsageError("rent needs --rate or --users")
    arguments["objective"] = "cost"
    if png is not None and not curve:
        raise click.UsageError("--png is for --curve")
    if curve:
        if not (server is None and report is None):
            raise click.UsageError("--curve excludes --export and --report")
        to_write(save, ".json", ".json.gz")
        to_write(png, ".png", ".svg", ".pdf")
        if png is not None:
            optional("matplotlib.figure")  # before the work
        query = PlaceQuery.of(
            model, machines, max_stages=max_stages, method=method, **arguments
        )
        return _curve(query, as_json, save, png)
    return _run(arguments, model, machines, max_stages, method, server, report, save, as_json)


def _curve(query: PlaceQuery, as_json: bool, save: str | None, png: str | None) -> int:
    with show_progress() as progress:
        found = curve_of(query, progress=progress)
    print(found.json() if as_json else found)
    if save is not None:
        found.save(save)
        print(f"{save}: written", file=sys.stderr)
    if png is not None and any(math.isfinite(point.price_per_hour) for point in found.points):
        ax = optional("matplotlib.figure").Figure(figsize=SIZE, layout="constrained").subplots()
        found.plot(ax)
        ax.figure.savefig(png, dpi=200)
        print(f"{png}: written", file=sys.stderr)
    if found.interrupted:
        return 130
    return 0 if found.is_carried else 1


def _run(
    arguments: dict[str, Any],
    model: str,
    machines: str,
    max_stages: int,
    method: str | None,
    server: str | None,
    report: str | None,
    save: str | None,
    as_json: bool,
) -> int:
    if server is not None and as_json:
        raise click.UsageError("--export and --json exclude each other")
    to_write(save, ".json", ".json.gz")
    if report is not None:
        report_path(report)  # before the work
        optional("matplotlib.figure")  # loaded before the clock starts, as kernels are
    if server is not None:  # what is exported is what is planned and simulated
        arguments.setdefault("runtime", server)
    query = PlaceQuery.of(model, machines, max_stages=max_stages, method=method, **arguments)
    with show_progress() as progress:
        plan = place_query(query, progress=progress)
    if server is not None and plan.fits:
        print(export_placement(plan, server), end="")
    elif as_json:
        print(json.dumps(plan.to_dict(), indent=2, allow_nan=False))
    else:
        print(plan)
    if report is not None:
        write_placement_report(plan, report, command=click.get_current_context().obj)
        print(f"{report}: written", file=sys.stderr)
    if save is not None:
        plan.save(save)
        print(f"{save}: written", file=sys.stderr)
    return exit_code(plan)


def exit_code(plan: PlacementPlan) -> int:
    """Return 130 after an interrupt, 1 without a placement or if the load is not served."""
    if plan.interrupted:
        return 130
    if not plan.fits:
        return 1
    return 0 if not plan.query.asks_load or plan.is_met else 1
