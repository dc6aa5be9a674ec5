"""The command `plan`."""

import json
import sys
from typing import Any

import click

from hypsolve.cli.options import asking, progress
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
from hypsolve.planning.html_report import report_path, write_report
from hypsolve.planning.plan import Plan
from hypsolve.planning.runtime_restrictions import nearest_plan
from hypsolve.planning.text import describe_proof
from hypsolve.solve import METHODS


@click.command()
@asking()
@click.option(
    "--method",
    type=click.Choice([n for n, m in METHODS.items() if m.decides == "partition"]),
    metavar="NAME",
    help="See hypsolve methods; default: hypsplit_dp, for mean_latency a search by simulation.",
)
@click.option(
    "--report", type=click.Path(), help="Write pictures, tables and proof to this .html, too."
)
@click.option(
    "--export", "runtime", type=click.Choice(tuple(RUNTIMES)), help="Print flags of a runtime."
)
@click.option(
    "--model-type", type=click.Choice(tuple(MODULES)),
    help="Whose names of modules --export takes; default: as config.json says.",
)  # fmt: skip
def plan(
    ask: dict[str, Any],
    model: str,
    network: str,
    method: str | None,
    report: str | None,
    runtime: str | None,
    model_type: str | None,
    as_json: bool,
) -> int:
    """Split a model over a network: best split, its proof, what it serves, what would help.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --rate 2
    hypsolve plan --model ~/models/Qwen2.5-7B --network network.toml --dtype int8 --json
    hypsolve plan --model llama-3-8b --network network.toml --export vllm
    hypsolve plan --model llama-3-8b --network network.toml --report plan.html

    Exit code: 0 a plan, 1 none (nothing fits, or none was found in time), 2 bad input.
    """  # noqa: D301
    if runtime is not None and as_json:
        raise click.UsageError("--export writes no JSON of the plan: leave --json out")
    if report is not None:
        report_path(report)  # before the work
    if model_type is None:
        model_type = model_type_of(model) if runtime in NAMES_MODULES else "llama"
    ask |= {"method": method}
    in_full = runtime is None or report is not None  # else the flags alone are printed
    with progress() as tell:
        found = planner.plan(model, network, with_changes=in_full, tell=tell, **ask)
    if runtime is not None and found.stopped:
        print(f"stopped: {found.stopped}", file=sys.stderr)
    if runtime is not None and (found.fits or runtime in ONE_PIPELINE):
        why = not_expressible(found, runtime) if found.fits else "nothing fits as it is"
        if why and found.stopped:
            print(f"{runtime} cannot express it: {why}", file=sys.stderr)
            return 130
        if why:
            print(f"{runtime} cannot express the best plan: {why}", file=sys.stderr)
            near = _for_runtime(found, runtime, ask["time_limit_s"], in_full)
            if found.fits and not near.fits:
                return 1
            found = near if near.fits else found
    if not found.fits and not in_full:
        with progress() as tell:  # to say what would make it fit
            found = planner.plan(model, network, tell=tell, **ask)
    if runtime is not None and found.fits:
        for line in cautions(found, runtime):
            print(f"note: {line}", file=sys.stderr)
        print(export(found, runtime, model_type=model_type), end="")
    elif as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        print(found)
    if report is not None:
        write_report(found, report, command=click.get_current_context().obj)
        print(f"{report}: written", file=sys.stderr)
    return 0 if found.fits else 1


def _for_runtime(best: Plan, runtime: str, time_limit_s: float, in_full: bool) -> Plan:
    """A plan that the runtime can express, and a word on it."""
    with progress() as tell:
        found = nearest_plan(
            best, runtime, time_limit_s=time_limit_s, with_changes=in_full, tell=tell
        )
    if not found.fits:
        print(f"nor does anything fit that it can: {found.result.message}", file=sys.stderr)
        return found
    more = ""
    if best.fits:
        more = f" ({found.result.objective_s / best.result.objective_s - 1:.1%} more)"
    used = [node.node for node in found.nodes if node.is_used]
    row = f"on {', '.join(used)}{more}: {describe_proof(found)}"
    print(f"planned for it instead, {row}", file=sys.stderr)
    _tell_unused(best, found)
    return found


def _tell_unused(best: Plan, found: Plan) -> None:
    """Which nodes a plan for a runtime leaves out, and what would let them in."""
    kept = {node.node for node in found.nodes if node.is_used}
    left = [node for node in best.nodes if node.is_used and node.node not in kept]
    if not left:
        return
    site, tiers = best.network, {node.tier for node in left}
    unknown = [
        tier.name
        for k, tier in enumerate(site.network.tiers)
        if tier.name in tiers and site.inner_link(k) is None
    ]
    hint = ""
    if unknown:
        hint = f"; a link `inner` in the network file ({', '.join(unknown)}) lets them in"
    print(f"left out: {', '.join(node.node for node in left)}{hint}", file=sys.stderr)
