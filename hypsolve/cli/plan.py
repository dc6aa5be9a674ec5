"""The command `plan`."""

import itertools
import json
import math
import sys
from typing import Any

import click

from hypsolve import planner
from hypsolve.cli.shared import asking, show
from hypsolve.exporters import (
    MODULES,
    NAMES_MODULES,
    RUNTIMES,
    export,
    for_runtime,
    not_expressible,
)
from hypsolve.huggingface import model_type_of
from hypsolve.planner import NodePlan, Plan, proof_in_words
from hypsolve.solve import METHODS
from hypsolve.units import show_seconds


@click.command()
@asking
@click.option(
    "--method",
    type=click.Choice([n for n, m in METHODS.items() if m.decides == "partition"]),
    default="hypsplit_dp",
    show_default=True,
    metavar="NAME",
    help="See hypsolve methods.",
)
@click.option("--rate", default=1.0, show_default=True, help="Requests per second.")
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
    method: str,
    rate: float,
    runtime: str | None,
    model_type: str | None,
    as_json: bool,
) -> int:
    """Split a model over a network: best split, its proof, what it serves, what would help.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --rate 2
    hypsolve plan --model ~/models/Qwen2.5-7B --network network.toml --dtype int8 --json
    hypsolve plan --model llama-3-8b --network network.toml --export vllm

    Exit code: 0 a plan, 1 none (nothing fits, or none was found in time), 2 bad input.
    """  # noqa: D301

    def solved(site: Any) -> Plan:
        return planner.plan(model, site, method=method, rate_per_s=rate, **ask)

    if runtime is not None and as_json:
        raise click.UsageError("--export writes no JSON of the plan: leave --json out")
    if model_type is None:
        model_type = model_type_of(model) if runtime in NAMES_MODULES else "llama"
    found = solved(network)
    if runtime is not None and found.fits:
        why = not_expressible(found, runtime)
        if why:
            found = solved(for_runtime(found, runtime))
            print(f"{runtime} cannot express the best plan: {why}", file=sys.stderr)
            if found.fits:
                words = f"the best that it can: {proof_in_words(found.result)}"
                print(words, file=sys.stderr)
    if runtime is not None and found.fits:
        print(export(found, runtime, model_type=model_type), end="")
    elif as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        _print_plan(found)
    return 0 if found.fits else 1


def _print_plan(found: Plan) -> None:
    site = found.network.network
    mark = " (extrapolated: no times of such weights were measured)"
    print(
        f"{found.model.name} on {site.name}{mark if found.model.extrapolated else ''}:"
        f" {found.prompt_tokens} + {found.output_tokens} tokens, room for"
        f" {found.concurrency} sequences"
    )
    if not found.fits:
        print(f"\n{found.result.status}: {found.result.message}")
        _print_changes(found, "what would make it fit, each solved")
        return
    rows: list[dict[str, Any]] = []
    for (tier, *_), alike in itertools.groupby(found.nodes, key=_alike):
        nodes = list(alike)
        node = nodes[0]
        stage = next(stage for stage in found.stages if stage.tier == tier)
        rows.append(
            {
                "tier": tier,
                "nodes": f"{len(nodes)} x {node.gpu}",
                "blocks": found.blocks_in_words(node.blocks) if node.is_used else "unused",
                "weights GB": f"{node.weight_bytes / 1e9:.2f}",
                "KV GB": f"{node.kv_bytes / 1e9:.2f}",
                "free GB": f"{node.free_bytes / 1e9:.2f}",
                "alone": show_seconds(node.time_s) if node.is_used else "-",
                "stage": show_seconds(stage.time_s),
                "link": show_seconds(stage.link_s),
                "of the bottleneck": f"{stage.share:.0%}",
            }
        )
    show(rows, as_json=False)
    print(proof_in_words(found.result))
    binding = found.binding
    others = ", ".join(
        f"{stage.tier} {1 - stage.share:.0%}" for stage in found.stages if stage is not binding
    )
    print(f"binds: {binding.tier}" + (f"; slack of the others: {others}" if others else ""))
    _print_service(found)
    _print_changes(found, "what would help, each solved")


def _print_service(found: Plan) -> None:
    service = found.service
    assert service is not None
    then = f", then {show_seconds(service.tpot_s)} a token" if found.output_tokens > 1 else ""
    lines = [
        f"at {service.rate_per_s:g} requests/s (simulated token by token): first token after"
        f" {show_seconds(service.ttft_s)}{then};"
        f" latency p50 {show_seconds(service.latency_p50_s)},"
        f" p95 {show_seconds(service.latency_p95_s)}",
        f"it keeps up with {_about(service.most_requests_per_s)}; no schedule of this split"
        f" serves more than {service.bound_requests_per_s:.3g}",
        f"room for {service.most_sequences} sequences at once, or one of"
        f" {service.most_context_tokens} tokens; GPUs busy {service.utilisation:.0%}",
    ]
    if math.isfinite(service.joules_per_token):
        lines.append(f"{service.joules_per_token:.3g} J per output token (while GPUs are busy)")
    if math.isfinite(service.price_per_million_tokens):
        lines.append(f"{service.price_per_million_tokens:.4g} per million output tokens")
    if not service.keeps_up:
        lines.append("it cannot keep up with this rate: latencies only grow")
    print("\n".join(lines))


def _about(rate_per_s: float) -> str:
    if math.isnan(rate_per_s):
        return "rates that take too long to simulate"
    return f"about {rate_per_s:.3g} requests/s (simulated)"


def _print_changes(found: Plan, title: str) -> None:
    if not found.changes:
        print(f"\n{title}: none of the changes that are tried")
        return
    print(f"\n{title}:")
    for change in found.changes[:8]:
        saves = "" if math.isnan(change.gain) else f", {change.gain:.1%} less"
        print(f"  {change.what}: {show_seconds(change.objective_s)}{saves}")


def _alike(node: NodePlan) -> tuple[Any, ...]:
    return node.tier, node.gpu, node.free_bytes, node.is_used
