"""The commands `init`, `gpus`, `interconnects`, `models`, `methods` and `schema`."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hypsolve import catalog
from hypsolve.catalog.interconnects import interconnect, interconnects, measured_gpus
from hypsolve.cli import examples
from hypsolve.cli.options import as_json_option, show
from hypsolve.formats.machines import read_machines
from hypsolve.formats.machines_text import machines_text
from hypsolve.planning.json_schema import SCHEMAS
from hypsolve.planning.json_schema import schema as schema_of
from hypsolve.solve import METHODS, Method
from hypsolve.solve_layer_flow import LAYER_FLOW_METHODS, LayerFlowMethod
from hypsolve.solve_placement import PLACEMENT_METHODS, PlacementMethod
from hypsolve.solve_serving import THROUGHPUT_METHODS, ThroughputMethod

PROVE_A_BOUND = ("hyperion_plus", "stage_dp")
"""Methods that prove a lower bound, but not that an answer is optimal."""
SOURCE_WIDTH = 32  # characters of the source of a GPU in the list


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--machines", is_flag=True, help="Write machines without an order, and offers, instead."
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --machines: write those of an inventory of nvidia-smi (.csv), a network file, or"
    " a cluster of Helix (.ini).",
)
def init(path: Path | None, machines: bool, source: Path | None) -> None:
    """Write an example network file to edit; an existing file is kept.

    \b
    hypsolve init
    hypsolve init --machines
    nvidia-smi --query-gpu=index,name,memory.total --format=csv > gpus.csv
    hypsolve init --machines --from gpus.csv lab.toml
    """  # noqa: D301
    if source is not None and not machines:
        raise click.UsageError("--from needs --machines")
    path = path or Path("machines.toml" if machines else "network.toml")
    text = examples.MACHINES if machines else examples.NETWORK
    if source is not None:
        text = machines_text(read_machines(source))
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{path} exists already; give another name") from None
    then = f"place --model llama-3-8b --machines {path}"
    if not machines:
        then = f"plan --model llama-3-8b --network {path}"
    print(f"{path}: edit it, then hypsolve {then}")


@click.command()
@click.argument("name", required=False)
@as_json_option
def gpus(name: str | None, as_json: bool) -> None:
    """List the GPUs of the catalogue, or show one of them with the source of its numbers.

    \b
    hypsolve gpus
    hypsolve gpus rtx-4090
    """  # noqa: D301
    if name is not None:
        row = _row_of_gpu(name)
        print(json.dumps(row, indent=2) if as_json else _listed(row))
        return
    rows = [_row_of_gpu(each) for each in catalog.gpus()]
    if not as_json:
        rows = [row | {"source": _first_source(row["source"])} for row in rows]
    show(rows, as_json)
    if not as_json:
        print("hypsolve gpus NAME shows the whole source of its numbers", file=sys.stderr)


def _row_of_gpu(name: str) -> dict[str, Any]:
    """Return the row of a GPU."""
    gpu = catalog.gpu(name)
    return {
        "gpu": name,
        "memory_gib": round(gpu.memory_bytes / 2**30, 1),
        "tflops": round(gpu.flops_per_s / 1e12, 1),
        "gb_per_s": round(gpu.bytes_per_s / 1e9),
        "t0_us": round(gpu.t0_s * 1e6, 1),
        "basis": gpu.basis,
        "source": gpu.source,
    }


def _first_source(source: str) -> str:
    """Return the first part of a source, short enough for a column of a terminal."""
    first = re.split(r"[;:,(]", source)[0].strip()
    if len(first) > SOURCE_WIDTH:
        first = first[: SOURCE_WIDTH - 4].rsplit(" ", 1)[0]
    return first if first == source else f"{first} ..."


def _listed(row: dict[str, Any]) -> str:
    """Return a row as lines, one for each number."""
    width = max(map(len, row))
    return "\n".join(f"{key:{width}}  {value}" for key, value in row.items())


@click.command()
@as_json_option
def models(as_json: bool) -> None:
    """List the LLMs of the catalogue with the sources of their shapes."""
    rows = []
    for name in catalog.models():
        model = catalog.model(name)
        held = model.stage_weight_bytes(model.blocks)
        rows.append(
            {
                "model": name,
                "layers": model.n_blocks - 2,
                "blocks": model.n_blocks,
                "weights_gb": round(held / 1e9, 1),
                "kv_kb_per_token": round(
                    sum(block.kv_bytes_per_token for block in model.blocks) / 1e3, 1
                ),
                "source": model.source,
            }
        )
    show(rows, as_json)


@click.command(name="interconnects")
@as_json_option
def interconnect_list(as_json: bool) -> None:
    """List the interconnects of machines with several GPUs, and where they were measured."""
    show(list(map(_row_of_interconnect, interconnects())), as_json)


def _row_of_interconnect(name: str) -> dict[str, Any]:
    """Return the row of an interconnect: microseconds of all-reduces over its most GPUs."""
    measured = measured_gpus(name)
    links = interconnect(name, measured[0] if measured else "")
    most = links.degrees[-1]
    each = links.all_reduce(most)
    return {
        "interconnect": name,
        "measured_on": ", ".join(measured) or "none: assumed",
        "degrees": ", ".join(map(str, links.degrees)),
        "gpus": most,
        "us_of_16_kib": round(each.seconds(2**14) * 1e6, 1),
        "us_of_1_mib": round(each.seconds(2**20) * 1e6, 1),
        "us_of_64_mib": round(each.seconds(2**26) * 1e6, 1),
        "source": links.source,
    }


@click.command()
@as_json_option
def methods(as_json: bool) -> None:
    """List the methods of `hypsolve.solve`, and what they prove.

    Those for an Instance serve requests one at a time; those for a ServingInstance, in batches;
    those for a PlacementProblem form pipelines of machines without an order; those for a
    LayerFlowProblem lay layers on machines for the largest flow of tokens.
    """
    rows = [
        _row_of_method(name, method.function, "Instance", method.decides, _proof(method))
        for name, method in METHODS.items()
    ]
    rows += [
        _row_of_method(name, each.function, "ServingInstance", "partition", _fluid_proof(each))
        for name, each in THROUGHPUT_METHODS.items()
    ]
    rows += [
        _row_of_method(name, each.function, "PlacementProblem", "placement", _fluid_proof(each))
        for name, each in PLACEMENT_METHODS.items()
    ]
    rows += [
        _row_of_method(
            name, flow.function, "LayerFlowProblem", "layout", _flow_proof(name, flow)
        )
        for name, flow in LAYER_FLOW_METHODS.items()
    ]
    show(rows, as_json)


def _proof(method: Method) -> str:
    """Say what a method for an `Instance` proves."""
    if method.exact:
        return "optimum"
    return "bound" if method in map(METHODS.get, PROVE_A_BOUND) else "nothing"


def _fluid_proof(method: ThroughputMethod | PlacementMethod) -> str:
    """Say what a method for a `ServingInstance` or a `PlacementProblem` proves."""
    return "optimum of the fluid model" if method.exact else "nothing"


def _flow_proof(name: str, method: LayerFlowMethod) -> str:
    """Say what a method for a `LayerFlowProblem` proves."""
    if method.exact:
        return "optimum"
    return "bound" if name in PROVE_A_BOUND else "nothing"


def _row_of_method(
    name: str, function: Callable[..., Any], kind: str, decides: str, proves: str
) -> dict[str, str]:
    """Return the row of a method, with the summary and the first source of its docstring."""
    text = inspect.getdoc(function) or ""
    words = re.sub(r" \[\d+\]_", "", text).splitlines()
    _, _, source = text.partition(".. [1] ")
    source = re.split(r"\n\s*\n|\n\.\. \[", source)[0]  # the first reference alone
    return {
        "method": name,
        "solves": kind,
        "decides": decides,
        "proves": proves,
        "what": words[0] if words else "",
        "source": " ".join(source.split()) or function.__module__,
    }


@click.command()
@click.argument("kind", type=click.Choice(tuple(SCHEMAS)))
def schema(kind: str) -> None:
    """Print the JSON Schema of a kind of file, such as `plan --json` prints.

    \b
    hypsolve schema network > network.schema.json
    """  # noqa: D301
    print(json.dumps(schema_of(kind), indent=2, allow_nan=False))
