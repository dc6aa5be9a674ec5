"""The command `hypsolve plan`."""

import json
import sys
from typing import Any

import click

from hypsolve import catalog
from hypsolve.cli.options import query_options, show_progress
from hypsolve.formats.huggingface import model_type_of
from hypsolve.planning import planner
from hypsolve.planning.exporters import (
    MODULES,
    NAMES_MODULES,
    ONE_PIPELINE,
    RUNTIMES,
    cautions,
    export,
    not_expressible,
)
from hypsolve.planning.exporters.platforms import runs_on
from hypsolve.planning.html_report import report_path, write_report
from hypsolve.planning.plan import Plan
from hypsolve.planning.runtime_restrictions import nearest_plan
from hypsolve.planning.text import describe_proof
from hypsolve.solve import METHODS


@click.command()
@query_options(limits="the whole command, upgrades included; compiling comes before")
@click.option(
    "--method",
    type=click.Choice([n for n, m in METHODS.items() if m.decides == "partition"]),
    metavar="NAME",
    help="See hypsolve methods.  [default: hypsplit_dp; a search for mean_latency]",
)
@click.option(
    "--report",
    type=click.Path(),
    help="Also write figures, tables and proof to this .html file.",
)
@click.option(
    "--export",
    "server",
    type=click.Choice(tuple(RUNTIMES)),
    help="Print the plan as flags or file of a runtime.",
)
@click.option(
    "--model-type", type=click.Choice(tuple(MODULES)),
    help="Architecture whose module names --export writes.  [default: as in config.json]",
)  # fmt: skip
def plan(
    arguments: dict[str, Any],
    model: str,
    network: str,
    method: str | None,
    report: str | None,
    server: str | None,
    model_type: str | None,
    as_json: bool,
) -> int:
    """Plan how to serve a model: split, proof, forecast, and upgrades that would help.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --rate 2
    hypsolve plan --model ~/models/Qwen2.5-7B --network network.toml --weights awq --json
    hypsolve plan --model llama-3-8b --network network.toml --export vllm
    hypsolve plan --model llama-3-8b --network network.toml --report plan.html

    Exit code: 0 a plan; 1 no plan, since nothing fits or the time ran out; 2 bad input.
    """  # noqa: D301
    if server is not None and as_json:
        raise click.UsageError("--export and --json exclude each other")
    if report is not None:
        report_path(report)  # before the work
    if model_type is None:
        model_type = model_type_of(model) if server in NAMES_MODULES else "llama"
    in_full = server is None or report is not None  # else only the flags are printed
    arguments |= {"method": method}
    if server in catalog.runtimes():  # what is exported is what is planned and simulated
        arguments.setdefault("runtime", server)
    with show_progress() as progress:
        plan = planner.plan(
            model, network, with_upgrades=in_full, progress=progress, **arguments
        )
    if server is not None and plan.stopped:
        print(f"stopped: {plan.stopped}", file=sys.stderr)
    best = plan
    if server is not None and (plan.fits or server in ONE_PIPELINE):
        why = not_expressible(plan, server) if plan.fits else "nothing fits as it is"
        if why and plan.stopped:
            print(f"{server} cannot express it: {why}", file=sys.stderr)
            return 130
        if why:
            print(f"{server} cannot express the best plan: {why}", file=sys.stderr)
            near = _for_runtime(plan, server, in_full)
            if plan.fits and not near.fits:
                return 1
            plan = near if near.fits else plan
    if not plan.fits and not in_full:
        with show_progress() as progress:  # to find what would make it fit
            plan = planner.plan(model, network, progress=progress, **arguments)
    if server is not None and plan.fits:
        for line in cautions(plan, server):
            print(f"note: {line}", file=sys.stderr)
        instead_of = best if best.fits and best is not plan else None
        print(export(plan, server, model_type=model_type, instead_of=instead_of), end="")
    elif as_json:
        print(json.dumps(plan.to_dict(), indent=2, allow_nan=False))
    else:
        print(plan)
    if report is not None:
        write_report(plan, report, command=click.get_current_context().obj)
        print(f"{report}: written", file=sys.stderr)
    return 0 if plan.fits else 1


def _for_runtime(best: Plan, runtime: str, in_full: bool) -> Plan:
    """Return a plan that the runtime can express, and report how it differs."""
    with show_progress() as progress:
        plan = nearest_plan(
            best,
            runtime,
            time_limit_s=best.query.time_limit_s,
            with_upgrades=in_full,
            progress=progress,
        )
    if not plan.fits:
        verdict, *details = plan.reasons
        print(f"nor does a plan fit that it can express: {verdict}", file=sys.stderr)
        for line in details:
            print(f"  {line}", file=sys.stderr)
        return plan
    words = ""
    if best.fits:
        more = plan.result.objective_s / best.result.objective_s - 1
        side = "above" if more >= 0 else "below"
        words = f" ({plan.objective_name} {abs(more):.1%} {side} the best plan's)"
    used = [node.node for node in plan.nodes if node.is_used]
    row = f"on {', '.join(used)}{words}: {describe_proof(plan)}"
    print(f"planned for it instead, {row}", file=sys.stderr)
    _hint_at_inner_links(best, plan, runtime)
    return plan


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
        if tier.name in tiers and best.network.inner_link(k) is None
    ]
    if unknown:
        tiers_without = ", ".join(unknown)
        print(
            f"a link `inner` in the network file ({tiers_without}) would let in more nodes",
            file=sys.stderr,
        )
