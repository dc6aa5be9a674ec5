"""Commands for the file of a placement: `simulate`, `replan`, `export` and `verify`."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click

from hypsolve.cli.options import (
    as_json_option,
    machines_option,
    show,
    show_progress,
    to_write,
)
from hypsolve.formats.machines import read_machines
from hypsolve.formats.machines_file import MachinesFile
from hypsolve.planning.exporters.placements import SERVERS, export_placement
from hypsolve.planning.place import warm
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_simulation import POLICY, PlacementSimulator
from hypsolve.planning.placement_file import SavedPlacement
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.placement_replan import replan_placement
from hypsolve.planning.plan import record_to_dict
from hypsolve.planning.request_mix import RequestMix
from hypsolve.planning.slo_text import describe_slos
from hypsolve.problem import validation as valid
from hypsolve.problem.units import count, show_seconds
from hypsolve.simulation.pipeline_metrics import PipelineMetrics, pipeline_metrics
from hypsolve.simulation.simulate_placement import PLACEMENT_POLICIES
from hypsolve.verify.placement import placement_not_covered, verify_placement
from hypsolve.verify.reading import Refuted

GIB = 2**30
MAX_REQUESTS = 1_000_000  # of a simulation
NO_PLACEMENT = "holds no placement, for nothing fits"
model_option = click.option(
    "--model",
    help="The model, as for hypsolve place.  [default: the name in the file, if the catalogue"
    " knows it]",
)
placement_argument = click.argument("placement", type=click.Path())


class OrOfPlacement(click.Command):
    """A command for a plan that has another form for the file of a placement.

    The other form runs where the first argument is no option, or there is ``--machines``.
    """

    of_placement: click.Command

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        """Return the context of the form that the arguments are for."""
        has_file = bool(args) and not args[0].startswith("-")
        if has_file or any(each.partition("=")[0] == "--machines" for each in args):
            return self.of_placement.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def or_of_placement(other: click.Command) -> Callable[[Callable[..., Any]], OrOfPlacement]:
    """Decorate a command that has another form for the file of a placement."""

    def decorate(function: Callable[..., Any]) -> OrOfPlacement:
        command = click.command(cls=OrOfPlacement)(function)
        command.of_placement = other
        return command

    return decorate


def read_with_machines(
    placement: str, machines: str, model: str | None
) -> tuple[SavedPlacement, MachinesFile, PlaceQuery]:
    """Read a placement, its machines, and its query; say on stderr if the machines differ."""
    saved, of_file = SavedPlacement.of(placement), read_machines(machines)
    query = saved.query(of_file, model)
    if words := saved.changes(query):
        print(f"note: {placement}: {words}", file=sys.stderr)
    return saved, of_file, query


def plan_of(placement: str, machines: str, model: str | None) -> PlacementPlan:
    """Return the plan in a file, which must hold a placement that fits these machines."""
    saved, of_file, _ = read_with_machines(placement, machines, model)
    plan = saved.plan(of_file, model)
    if not plan.fits:
        raise ValueError(f"{placement}: {NO_PLACEMENT}")
    return plan


@click.command()
@placement_argument
@machines_option
@model_option
@click.option("--rate", type=float, help="Requests per second.  [default: as in the file]")
@click.option("--users", type=int, help="Closed loop of so many users, in place of --rate.")
@click.option("--think-time", type=float, help="Seconds from a user's request to the next.")
@click.option(
    "--slo-ttft", type=float, help="Target for the first token.  [default: as in the file]"
)
@click.option(
    "--slo-tpot", type=float, help="Target for each later token.  [default: as in the file]"
)
@click.option(
    "--requests",
    type=int,
    help="Number of requests.  [default: enough to tell whether the load is served]",
)
@click.option("--trace", type=click.Path(), help="Take the requests from this file.")
@click.option(
    "--policy",
    type=click.Choice(PLACEMENT_POLICIES),
    default=POLICY,
    show_default=True,
    help="Policy of the router that chooses the pipeline of each request.",
)
@click.option("--seed", type=int, help="Seed of arrivals.  [default: as in the file]")
@as_json_option
def simulate_saved(
    placement: str,
    machines: str,
    model: str | None,
    rate: float | None,
    users: int | None,
    think_time: float | None,
    slo_ttft: float | None,
    slo_tpot: float | None,
    requests: int | None,
    trace: str | None,
    policy: str,
    seed: int | None,
    as_json: bool,
) -> int:
    """Simulate all pipelines of a placement behind their router, token by token.

    \b
    hypsolve place --model llama-3-8b --machines machines.toml --save placement.json
    hypsolve simulate placement.json --machines machines.toml --rate 2

    The load is that of the file, if none is given; else the largest rate that it states.
    """  # noqa: D301
    if rate is not None and users is not None:
        raise click.UsageError("--users and --rate exclude each other")
    if requests is not None:
        valid.whole("simulate", "requests", requests, minimum=2, maximum=MAX_REQUESTS)
    given: dict[str, Any] = {
        "rate_per_s": rate, "users": users, "think_time_s": think_time, "seed": seed,
        "ttft_slo_s": slo_ttft, "tpot_slo_s": slo_tpot,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    if trace is not None:
        mix = RequestMix.of(trace)
        asked["requests"] = mix
        if rate is None and users is None and not math.isnan(mix.rate_per_s):
            asked["rate_per_s"] = mix.rate_per_s
    saved, of_file, _ = read_with_machines(placement, machines, model)
    plan = saved.plan(of_file, model, **_with_objective(saved.document, asked))
    if plan.placement is None:
        print("{}" if as_json else f"{placement}: {NO_PLACEMENT}")
        return 1
    query = plan.query
    load = query.load if query.asks_load else replace(query.load, rate_per_s=plan.largest_rate)
    warm(query)
    simulator = PlacementSimulator(query, plan.result.problem)
    served = simulator.trace(plan.placement, load, policy, requests)
    targets = {"ttft_slo_s": load.ttft_slo_s, "tpot_slo_s": load.tpot_slo_s}
    numbers, of_each = served.metrics(**targets), pipeline_metrics(served, **targets)
    if as_json:
        table = numbers.to_dict() | {"pipelines": [record_to_dict(each) for each in of_each]}
        print(json.dumps(table, indent=2, allow_nan=False))
        return 0
    offered = load.describe() if load.users else f"{load.rate_per_s:.4g} requests/s"
    print(
        f"{count(len(of_each), 'pipeline')} behind a router ({policy}), {offered},"
        f" {query.describe()}; links send one message at a time"
    )
    print(query.runtime.describe())
    print(numbers)
    if slos := describe_slos(load):
        print(f"within targets: share of the requests within {slos}")
    show([_row(plan, each) for each in of_each], as_json=False)
    return 0


def _with_objective(document: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a query that is simulated only: its objective does not count."""
    has_targets = any(
        (asked.get(name) or document[name]) is not None for name in ("ttft_slo_s", "tpot_slo_s")
    )
    return {**asked, "objective": "goodput" if has_targets else "throughput"}


def _row(plan: PlacementPlan, found: PipelineMetrics) -> dict[str, str]:
    """Return a row about a pipeline."""
    within = {} if math.isnan(found.slo_attainment) else {
        "within targets": f"{found.slo_attainment:.1%}"
    }  # fmt: skip
    return {
        "pipeline": str(found.pipeline + 1),
        "stages": " -> ".join(map(str, plan.pipelines[found.pipeline].stages)),
        "requests": str(found.n_requests),
        "requests/s": f"{found.requests_per_s:.3g}",
        "TTFT p95": _seconds(found.ttft_s.p95),
        "TPOT p95": _seconds(found.tpot_s.p95),
        **within,
        "busiest stage": f"{max(found.node_utilisation, default=0.0):.0%}",
    }


def _seconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else show_seconds(seconds)


@click.command()
@placement_argument
@click.argument("server", type=click.Choice(SERVERS))
@machines_option
@model_option
def export(placement: str, server: str, machines: str, model: str | None) -> int:
    """Print the commands of a server for each pipeline of a placement, and the router.

    \b
    hypsolve place --model llama-3-8b --machines machines.toml --save placement.json
    hypsolve export placement.json vllm --machines machines.toml

    Make the placement for the same server (--runtime): its limits are exported.
    """  # noqa: D301
    plan = plan_of(placement, machines, model)
    if plan.query.runtime.server not in (server, ""):
        print(
            f"note: {placement}: the placement was made for {plan.query.runtime.name}",
            file=sys.stderr,
        )
    print(export_placement(plan, server), end="")
    return 0


@click.command()
@placement_argument
@machines_option
@model_option
def verify(placement: str, machines: str, model: str | None) -> int:
    """Check a saved placement without a solver: its rules, and its rates in the fluid model.

    \b
    hypsolve place --model llama-3-8b --machines machines.toml --save placement.json
    hypsolve verify placement.json --machines machines.toml

    What the check does not cover is listed: simulations, and that no other placement is better.

    Exit code: 0 verified; 1 refuted, with the first claim that does not hold; 2 bad input.
    """  # noqa: D301
    saved = SavedPlacement.of(placement)
    problem = saved.query(read_machines(machines), model).problem()
    try:
        found = verify_placement(problem, dict(saved.document))
    except Refuted as reason:
        print(f"refuted: {reason}")
        return 1
    print(f"verified: {found}")
    print(f"not covered: {', '.join(placement_not_covered(saved.document))}")
    return 0


@click.command()
@placement_argument
@machines_option
@model_option
@click.option("--max-move-gib", type=float, help="Limit on the GiB of weights that are loaded.")
@click.option(
    "--max-move-seconds", type=float, help="Limit on the seconds that any machine loads."
)
@click.option("--time-limit", type=float, help="Seconds in all.  [default: as in the file]")
@click.option(
    "--seed", type=int, help="Seed of the method and of arrivals.  [default: as in the file]"
)
@click.option("--save", type=click.Path(), help="Also write the new placement to this file.")
@as_json_option
def replan_saved(
    placement: str,
    machines: str,
    model: str | None,
    max_move_gib: float | None,
    max_move_seconds: float | None,
    time_limit: float | None,
    seed: int | None,
    save: str | None,
    as_json: bool,
) -> int:
    """Place a model anew after machines came or went, and load few weights.

    \b
    hypsolve place --model llama-3-8b --machines machines.toml --save placement.json
    hypsolve replan placement.json --machines new.toml --max-move-gib 20
    hypsolve replan placement.json --machines new.toml --max-move-seconds 30 --save new.json

    Machines are known by their names. Pipelines that stay as they are serve all the time. Of
    placements with an equal rate, the one is taken that serves most until the others have
    loaded.

    Exit code: 0 a placement; 1 none is within the limits; 2 bad input; 130 stopped by Ctrl-C,
    with the best placement so far and its gap.
    """  # noqa: D301
    to_write(save, ".json", ".json.gz")
    given: dict[str, Any] = {"time_limit_s": time_limit, "seed": seed}
    asked = {name: value for name, value in given.items() if value is not None}
    with show_progress() as progress:
        found = replan_placement(
            placement,
            read_machines(machines),
            model=model,
            max_move_bytes=None if max_move_gib is None else max_move_gib * GIB,
            max_move_s=max_move_seconds,
            progress=progress,
            **asked,
        )
    print(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else found)
    if save is not None and found.fits:
        found.plan.save(save)
        print(f"{save}: written", file=sys.stderr)
    if found.interrupted:
        return 130
    return 0 if found.fits else 1
