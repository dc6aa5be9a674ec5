"""The command `hypsolve`: what is known, and a plan for a network of one's own."""

import itertools
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from hypsolve import catalog
from hypsolve.exporters import (
    BY_LAYER,
    MODULES,
    RUNTIMES,
    export,
    for_runtime,
    not_expressible,
)
from hypsolve.planner import OBJECTIVES, NodePlan, Plan, plan, proof_in_words
from hypsolve.solve import METHODS
from hypsolve.units import show_seconds

EXAMPLE = """\
# A network for `hypsolve plan`. Tiers in the order in which requests pass them; edit to taste.
# `hypsolve gpus` lists the GPUs. Lines that begin with # are optional.

[[tiers]]
name = "desk"
# pin = ["embedding"]        # these blocks must be here: embedding, head, numbers of layers
# least_blocks = 1           # embedding and head counted
# most_blocks = 12

[[tiers.nodes]]
gpu = "jetson-agx-orin"
reserved_gib = 8.0           # for the system, the runtime, activations
# memory_gib = 64.0          # if it is not what the GPU has
# names = ["orin"]           # else desk-jetson-agx-orin-0, ...

[tiers.link]                 # to the next tier
gbps = 0.94
latency_ms = 0.3             # one way
# return_latency_ms = 0.3    # if the way back is not alike

[[tiers]]
name = "box"

[[tiers.nodes]]
gpu = "rtx-4090"
count = 2
reserved_gib = 2.4

[tiers.link]
gbps = 0.5
latency_ms = 10.0

[[tiers]]
name = "rented"

[[tiers.nodes]]
gpu = "a100-80gb"
reserved_gib = 8.0
price_per_hour = 1.8         # in your currency

# A GPU of one's own, by what it reaches (not what its datasheet says): a block of a step takes
# t0 + max(FLOPs / tflops, bytes / gb_per_s)
# [gpus.my-gpu]
# t0_us = 20.0
# tflops = 60.0
# gb_per_s = 500.0
# memory_gib = 16.0
"""


class _OneLine(click.Group):
    """Errors in one line; exit codes 0 done, 1 infeasible, 2 bad input, 130 stopped."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {"standalone_mode": False, "prog_name": "hypsolve"}
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.ClickException as error:
            _fail(error.format_message())
        except (ValueError, TypeError, OSError) as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            print("hypsolve: stopped", file=sys.stderr)
            sys.exit(130)


def _fail(message: str) -> None:
    print(f"hypsolve: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hypsolve")
def main() -> None:
    """Place one LLM on a network of unequal GPUs, and prove that no split is better.

    \b
    hypsolve init                    writes network.toml: edit it
    hypsolve plan --model llama-3-8b --network network.toml
    """  # noqa: D301
    logging.basicConfig(format="%(message)s", level=logging.WARNING)  # what is compiling


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default="network.toml")
def init(path: Path) -> None:
    """Write an example network to edit, unless the file is there."""
    try:
        with path.open("x") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; name another file") from None
    print(f"{path}: edit it, then hypsolve plan --model llama-3-8b --network {path}")


@main.command()
@_json
def gpus(as_json: bool) -> None:
    """List the GPUs that are known, each with the source of its numbers."""
    rows = [
        {
            "gpu": name,
            "memory_gib": round(gpu.memory_bytes / 2**30, 1),
            "tflops": round(gpu.flops_per_s / 1e12, 1),
            "gb_per_s": round(gpu.bytes_per_s / 1e9),
            "t0_us": round(gpu.t0_s * 1e6, 1),
            "basis": gpu.basis,
            "source": gpu.source,
        }
        for name, gpu in catalog.gpus().items()
    ]
    _show(rows, as_json)


@main.command()
@_json
def models(as_json: bool) -> None:
    """List the LLMs that are known, each with the source of its shape."""
    rows = []
    for name in catalog.models():
        model = catalog.model(name)
        held = model.weight_bytes - model.tied_bytes
        rows.append(
            {
                "model": name,
                "layers": model.n_blocks - 2,
                "weights_gb": round(held / 1e9, 1),
                "kv_kb_per_token": round(
                    sum(block.kv_bytes_per_token for block in model.blocks) / 1e3, 1
                ),
                "source": model.source,
            }
        )
    _show(rows, as_json)


@main.command()
@_json
def methods(as_json: bool) -> None:
    """List the methods of `hypsolve.solve`."""
    rows = []
    for name, method in METHODS.items():
        words = (method.function.__doc__ or "").strip().splitlines()
        rows.append(
            {
                "method": name,
                "decides": method.decides,
                "exact": method.exact,
                "what": words[0] if words else "",
            }
        )
    _show(rows, as_json)


@main.command("plan")
@click.option("--model", required=True, help="A name, a config.json, or a folder.")
@click.option("--network", required=True, type=click.Path(), help="A TOML file.")
@click.option("--prompt", default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--output", default=256, show_default=True, help="Tokens of an output.")
@click.option("--rate", default=1.0, show_default=True, help="Requests per second.")
@click.option(
    "--concurrency", default=16, show_default=True,
    help="Sequences that every node must have room for at once.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(tuple(catalog.GROUP_BYTES)),
    help="Format of the weights; default: as stored, fp16 for a name.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default="bottleneck", show_default=True
)
@click.option(
    "--method", type=click.Choice([n for n, m in METHODS.items() if m.decides == "partition"]),
    default="hypsplit_dp", show_default=True, metavar="NAME", help="See hypsolve methods.",
)  # fmt: skip
@click.option("--time-limit", default=60.0, show_default=True, help="Seconds of the search.")
@click.option(
    "--export", "runtime", type=click.Choice(tuple(RUNTIMES)), help="Print flags of a runtime."
)
@click.option(
    "--model-type", type=click.Choice(tuple(MODULES)), default="llama", show_default=True,
    help="Whose names of modules --export takes.",
)  # fmt: skip
@_json
def plan_command(
    model: str,
    network: str,
    prompt: int,
    output: int,
    rate: float,
    concurrency: int,
    dtype: str | None,
    objective: str,
    method: str,
    time_limit: float,
    runtime: str | None,
    model_type: str,
    as_json: bool,
) -> int:
    """Split a model over a network: best split, its proof, what it serves, what would help.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --rate 2
    hypsolve plan --model ~/models/Qwen2.5-7B --network network.toml --dtype int8 --json
    hypsolve plan --model llama-3-8b --network network.toml --export vllm

    Exit code: 0 a plan, 1 nothing fits, 2 bad input.
    """  # noqa: D301
    solved = partial(
        plan, model, prompt_tokens=prompt, output_tokens=output, rate_per_s=rate,
        concurrency=concurrency, weights=dtype, objective=objective, method=method,
        time_limit_s=time_limit,
    )  # fmt: skip
    found = solved(network)
    if runtime is not None and found.fits:
        partition = found.result.partition
        assert partition is not None
        why = not_expressible(partition) if runtime in BY_LAYER else ""
        if why:
            words = f"{runtime} cannot express the best plan ({why}); this is the best it can"
            print(words, file=sys.stderr)
            found = solved(for_runtime(found.network, found.model.n_blocks - 2))
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
    _show(rows, as_json=False)
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
        f"at most {service.most_requests_per_s:.3g} requests/s (simulated); no schedule of this"
        f" split beats {service.bound_requests_per_s:.3g}",
        f"room for {service.most_sequences} sequences at once, or one of"
        f" {service.most_context_tokens} tokens; GPUs busy {service.utilisation:.0%}",
    ]
    if math.isfinite(service.joules_per_token):
        lines.append(f"{service.joules_per_token:.3g} J per output token (while GPUs are busy)")
    if math.isfinite(service.price_per_million_tokens):
        lines.append(f"{service.price_per_million_tokens:.4g} per million output tokens")
    if service.rate_per_s > service.most_requests_per_s:
        lines.append("it cannot keep up with this rate: latencies only grow")
    print("\n".join(lines))


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


def _show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a table: numbers to the right, the last column as long as it is."""
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(names))]
    right = [all(row[at][:1].isdigit() or row[at] == "-" for row in cells[1:])
             for at in range(len(names))]  # fmt: skip
    for row in cells:
        padded = (
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(row, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
