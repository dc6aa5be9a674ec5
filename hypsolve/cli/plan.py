"""The command `hypsolve plan`."""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import click

from hypsolve import catalog
from hypsolve.cli.options import query_options, show_progress
from hypsolve.formats.huggingface import model_type_of
from hypsolve.planning import planner
from hypsolve.planning.exporters import (
    MODULES,
    NAMES_MODULES,
    RUNTIMES,
    TENSOR_PARALLEL,
    cautions,
    export,
    not_written,
)
from hypsolve.planning.exporters.vllm import EXECUTORS
from hypsolve.planning.html_page import report_path
from hypsolve.planning.html_report import write_report
from hypsolve.planning.plan import FRONTIER_SHARE, Plan
from hypsolve.planning.platforms import runs_on
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.runtime_restrictions import NoServerPlan, restricting_server
from hypsolve.planning.saturation import MET
from hypsolve.planning.server_plan import ServerPlan, plan_for_server
from hypsolve.planning.slo_text import describe_slos
from hypsolve.planning.text import describe_proof, rate_sustained
from hypsolve.planning.what_if import lighter_models
from hypsolve.problem.optional import optional
from hypsolve.solve import METHODS
from hypsolve.solvers.clock import Deadline

DRAWING_S, DRAWING_SHARE = 2.0, 0.2  # seconds of the figures of a report, or a share if less


class ExportFormat(click.Choice[str]):
    """A name in `RUNTIMES`; a runtime that can only be planned is refused with a way out."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the format of a value."""
        if why := not_written(str(value)):
            self.fail(why, param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@query_options(limits="the whole command, report included; compiling comes before")
@click.option(
    "--method",
    type=click.Choice([n for n, m in METHODS.items() if m.decides == "partition"]),
    metavar="NAME",
    help="For objectives in seconds, see hypsolve methods.  [default: hypsplit_dp; a search"
    " for mean_latency]",
)
@click.option(
    "--report",
    type=click.Path(),
    help="Also write figures, tables and proof to this .html file.",
)
@click.option(
    "--export",
    "server",
    type=ExportFormat(tuple(RUNTIMES)),
    help="Print the plan as flags or file of a runtime.",
)
@click.option(
    "--model-type", type=click.Choice(tuple(MODULES)),
    help="Architecture whose module names --export writes.  [default: as in config.json]",
)  # fmt: skip
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    help="How --export vllm starts pipelines over several machines.  [default: ray, where it"
    " keeps the order of the stages; else mp]",
)
def plan(
    arguments: dict[str, Any],
    model: str,
    network: str,
    method: str | None,
    report: str | None,
    server: str | None,
    model_type: str | None,
    executor: str | None,
    as_json: bool,
) -> int:
    """Plan how to serve a model: split, proof, forecast, and upgrades that would help.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --rate 2
    hypsolve plan --model ~/models/Qwen2.5-7B --network network.toml --weights awq --json
    hypsolve plan --model llama-3-8b --network network.toml --export vllm
    hypsolve plan --model llama-3-8b --network network.toml --report plan.html
    hypsolve plan --model llama-3-8b --network network.toml --slo-ttft 1 --users 50
    hypsolve plan --model llama-3-8b --network network.toml --requests requests.csv

    With --slo-ttft or --slo-tpot, the plan says whether --users, or --rate, are served within
    the targets: 95% of the simulated requests. It also says the largest number of users and
    the largest rate that are, what binds, and the cheapest change that reaches the targets.

    Exit code: 0 a plan; 1 no plan, since nothing fits or the time ran out, or a plan that does
    not serve the load within the targets; 2 bad input; 130 stopped by Ctrl-C, with the best
    plan so far if there is one.
    """  # noqa: D301
    if server is not None and as_json:
        raise click.UsageError("--export and --json exclude each other")
    if executor is not None and server != "vllm":
        raise click.UsageError("--executor is for --export vllm")
    if report is not None:
        report_path(report)  # before the work
    if model_type is None:
        model_type = model_type_of(model) if server in NAMES_MODULES else "llama"
    in_full = server is None or report is not None  # else only the flags are printed
    arguments |= {"method": method}
    if server in catalog.runtimes():  # what is exported is what is planned and simulated
        arguments.setdefault("runtime", server)
    if server is not None and server not in TENSOR_PARALLEL:
        arguments.setdefault("tensor_parallel", 1)
    query = PlanQuery.of(model, network, **arguments)
    lighter = lighter_models(model, arguments.get("weights"), query.runtime.server)
    planner.warm(query)
    if report is not None:
        optional("matplotlib.figure")  # loaded before the clock starts, as kernels are
    deadline = Deadline(query.time_limit_s - _report_s(query.time_limit_s, report))
    try:
        with show_progress() as progress:
            found = plan_for_server(
                query,
                server or "",
                with_upgrades=in_full,
                lighter=lighter,
                progress=progress,
                deadline=deadline,
            )
    except NoServerPlan as error:
        print(f"hypsolve: {error}", file=sys.stderr)
        return 1
    plan, best = found.plan, found.best
    if server is not None and best.stopped:
        print(f"stopped: {best.stopped}", file=sys.stderr)
    if found.why:
        _tell_difference(found, server or restricting_server(query.runtime))
        if server is not None and (best.interrupted or (best.fits and not plan.fits)):
            return 130 if best.interrupted else 1
    if server is not None and plan.fits:
        for line in cautions(plan, server):
            print(f"note: {line}", file=sys.stderr)
        for line in _shortfalls(plan):
            print(f"warning: {line}", file=sys.stderr)
        instead_of = best if best.fits and best is not plan else None
        text = export(
            plan, server, model_type=model_type, instead_of=instead_of, executor=executor
        )
        print(text, end="")
    elif as_json:
        print(json.dumps(plan.to_dict(), indent=2, allow_nan=False))
    else:
        print(plan)
    if report is not None:
        write_report(plan, report, command=click.get_current_context().obj)
        print(f"{report}: written", file=sys.stderr)
    return _exit_code(plan)


def _exit_code(plan: Plan) -> int:
    """Return 130 after an interrupt, 1 without a plan or if its load misses its targets."""
    if plan.interrupted:
        return 130
    answer = plan.slo_answer
    return 0 if plan.fits and (answer is None or answer.is_met) else 1


def _report_s(limit_s: float, report: str | None) -> float:
    """Return the seconds of a time limit that a report takes: it simulates and draws."""
    if report is None:
        return 0.0
    return FRONTIER_SHARE * limit_s + min(DRAWING_S, DRAWING_SHARE * limit_s)


def _shortfalls(plan: Plan) -> Iterator[str]:
    """Say where a plan that is exported does not serve what was asked for."""
    forecast, query = plan.forecast, plan.query
    if forecast is None:
        return
    also = ", and what --objective path serves" * (query.objective == "bottleneck")
    if forecast.keeps_up is False:
        rate = forecast.max_requests_per_s
        asked = f"{query.rate_per_s:g}"
        keeps_up = f"it keeps up with {rate_sustained(forecast)}, not with {asked}"
        if math.isnan(rate):
            keeps_up = f"it does not keep up with {asked} requests/s"
        yield (
            f"simulated, {keeps_up}; hypsolve plan without --export shows what would help{also}"
        )
    if forecast.slo_attainment < MET:
        yield (
            f"simulated, {forecast.slo_attainment:.1%} of the requests are within"
            f" {describe_slos(query.load)}"
        )


def _tell_difference(found: ServerPlan, server: str) -> None:
    """Report why a server cannot express the best plan, and how its own plan differs."""
    best, plan = found.best, found.plan
    if best.interrupted:
        print(f"{server} cannot express it: {found.why}", file=sys.stderr)
        return
    of = " of one stage per tier" * _is_better(plan, best)  # nodes in a row are several
    print(f"{server} cannot express the best plan{of}: {found.why}", file=sys.stderr)
    if not plan.fits:
        verdict, *details = plan.reasons
        print(f"nor does a plan fit that it can express: {verdict}", file=sys.stderr)
        for line in details:
            print(f"  {line}", file=sys.stderr)
        return
    words = ""
    if best.fits:
        words = f" ({plan.objective_name} {_against(plan, best)})"
    used = [node.node for node in plan.nodes if node.is_used]
    row = f"on {', '.join(used)}{words}: {describe_proof(plan)}"
    print(f"planned for it instead, {row}", file=sys.stderr)
    _hint_at_inner_links(best, plan, server)


def _is_better(plan: Plan, best: Plan) -> bool:
    """Return whether a plan for a server beats the best plan of all nodes."""
    if not (plan.fits and best.fits):
        return False
    return plan.value > best.value if plan.query.is_rate else plan.value < best.value


def _against(plan: Plan, best: Plan) -> str:
    """Compare the value of a plan with that of the best plan, which may be 0."""
    if not best.value:
        return f"{plan.describe_value()}, and that plan's is {best.describe_value()}"
    more = plan.value / best.value - 1
    return f"{abs(more):.1%} {'above' if more >= 0 else 'below'} that plan's"


def _hint_at_inner_links(best: Plan, plan: Plan, server: str) -> None:
    """Say where a link `inner` would let nodes in that are left out; the export names them."""
    kept = {node.node for node in plan.nodes if node.is_used}
    tiers = {
        node.tier
        for node in best.nodes
        if node.is_used
        and node.node not in kept
        and runs_on(server, plan.query.runtime, node.gpu)
    }
    unknown = [
        tier.name
        for k, tier in enumerate(best.network.network.tiers)
        if tier.name in tiers and len(tier.nodes) > 1 and best.network.inner_link(k) is None
    ]
    if unknown:
        tiers_without = ", ".join(unknown)
        print(
            f"a link `inner` in the network file ({tiers_without}) would let in more nodes",
            file=sys.stderr,
        )
