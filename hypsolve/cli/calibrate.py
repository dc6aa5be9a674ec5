"""The command `calibrate`: a GPU profile from the benchmark of a server."""

import json
import math
from dataclasses import replace
from pathlib import Path

import click

from hypsolve import catalog
from hypsolve.calibration.benchmarks import Benchmark, read_benchmark
from hypsolve.calibration.calibrate import Calibration, Errors, RunForecast, describe_errors
from hypsolve.calibration.calibrate import calibrate as fit
from hypsolve.calibration.served_weights import without_weights
from hypsolve.catalog.interconnects import interconnect as links_of
from hypsolve.catalog.interconnects import interconnects
from hypsolve.cli.measure import keep
from hypsolve.cli.options import as_json_option, to_write
from hypsolve.formats.gpu_profile import PROFILE_ENDING, read_gpu_profile, write_gpu_profile
from hypsolve.planning.platforms import check_weights, weights_of
from hypsolve.planning.query import to_model
from hypsolve.planning.text import table
from hypsolve.problem.model import Model
from hypsolve.problem.network import GpuProfile
from hypsolve.problem.units import count, show_percent

UNITS = {
    "t0_s": ("t0_us", 1e6),
    "flops_per_s": ("tflops", 1e-12),
    "bytes_per_s": ("gb_per_s", 1e-9),
}
ROUGH = 0.3  # error of times to first token from which the text explains it
NEAR, FAR = 0.15, 0.4
"""Largest logarithm of a file's size of weights over the model's: by its format, by another."""
WORSE = 0.05  # by which an error must grow in a fit to be said
MAX_NAMED = 3  # runs in one sentence
FEW = 8  # runs, below which the text says how little they are


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--gpu", required=True, help="GPU of hypsolve gpus, or a profile file, to start from."
)
@click.option(
    "--runtime", required=True, type=click.Choice(catalog.runtimes()), help="The server."
)
@click.option(
    "--model",
    help="Model that was served: a name, a config.json, a .gguf file."
    "  [default: as the file says]",
)
@click.option(
    "--weights",
    type=click.Choice(catalog.weights_choices(), case_sensitive=False),
    help="Format of its weights.  [default: as the file says; else as stored; fp16 for a name]",
)
@click.option(
    "--tensor-parallel", type=int, help="GPUs that compute as one.  [default: as the file says]"
)
@click.option(
    "--interconnect", type=click.Choice(interconnects()), help="Links among these GPUs."
)
@click.option("--max-num-seqs", type=int, help="Limit of the server.  [default: its default]")
@click.option(
    "--max-num-batched-tokens", type=int, help="Limit of the server.  [default: its default]"
)
@click.option(
    "--where", multiple=True, metavar="COLUMN=VALUE", help="Of a CSV, the rows with this value."
)
@click.option("--name", default="", help="Name of the profile.  [default: GPU-RUNTIME]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Profile to write.  [default: GPU-RUNTIME.toml]",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@as_json_option
def calibrate(
    file: Path,
    gpu: str,
    runtime: str,
    model: str | None,
    weights: str | None,
    tensor_parallel: int | None,
    interconnect: str | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    where: tuple[str, ...],
    name: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fit a GPU profile to the benchmark of a server, and say how far the forecast was off.

    FILE is a result of vllm bench serve --save-result, sglang.bench_serving, llama-bench -o
    json, genai-perf, or a CSV with the columns prompt_tokens, output_tokens, concurrency,
    ttft_ms and tpot_ms.
    """
    start = _gpu(gpu)
    out = out or Path(f"{name or f'{start.name}-{runtime}'.replace(' ', '-').lower()}.toml")
    to_write(out, PROFILE_ENDING)
    keep(out, force)
    benchmark = _with_degree(read_benchmark(file, _conditions(where)), tensor_parallel)
    limits = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
    }
    given = {key: value for key, value in limits.items() if value is not None}
    server = catalog.runtime(runtime, gpus=[start], **given)
    served = _model(benchmark, model, weights)
    check_weights("calibrate", server, weights_of(served))
    found = fit(
        benchmark,
        gpu=start,
        model=served,
        runtime=server,
        interconnect=None if interconnect is None else links_of(interconnect, gpu),
        name=name,
    )
    write_gpu_profile(out, found.profile())
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    print(describe(found))
    print(f'{out}: for a network file, nodes = [{{gpu = "{out.name}"}}]')


def _gpu(text: str) -> GpuProfile:
    return read_gpu_profile(text) if text.endswith(PROFILE_ENDING) else catalog.gpu(text)


def _conditions(where: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in where]
    for text, (_, sign, _) in zip(where, pairs, strict=True):
        if not sign:
            raise click.ClickException(f"--where must be COLUMN=VALUE, got {text!r}")
    return {column: value for column, _, value in pairs}


def _with_degree(benchmark: Benchmark, degree: int | None) -> Benchmark:
    if degree is None:
        return benchmark
    runs = tuple(replace(run, tensor_parallel=degree) for run in benchmark.runs)
    return replace(benchmark, runs=runs)


def _model(benchmark: Benchmark, model: str | None, weights: str | None) -> Model:
    """Return the model that was served: as it is asked, or as the file names it."""
    name = _name_in(benchmark) if model is None else model
    by_name = catalog.name_of(name) in catalog.models()
    served, far = weights, FAR
    if weights is None and by_name:  # other models have a format of their own
        served, far = benchmark.weights, NEAR
        if served is not None and served not in catalog.weights_choices():
            raise click.ClickException(
                f"{benchmark.path}: weights {served!r} are not in the catalogue; give the"
                " nearest as --weights"
            )
    found = to_model(name, served)
    _check_size(benchmark, found, far)
    return found


def _name_in(benchmark: Benchmark) -> str:
    """Return the name in the catalogue of the model that a file names."""
    named = benchmark.model
    if not named:
        raise click.ClickException(
            f"{benchmark.path}: names no model; give --model and --weights"
        )
    short = without_weights(named).removeprefix("meta-")
    for name in (catalog.name_of(named), short, short.removesuffix("-instruct")):
        if name in catalog.models():
            return name
    raise click.ClickException(
        f"{benchmark.path}: model {named!r} is not in the catalogue; give --model and --weights"
    )


def _check_size(benchmark: Benchmark, model: Model, far: float) -> None:
    """Raise if the file states another size of the weights than the model has."""
    for run in benchmark.runs:
        size = run.weight_bytes
        if size is not None and abs(math.log(size / model.weight_bytes)) > far:
            raise click.ClickException(
                f"{benchmark.path}: {run.label}: model_size is {size / 1e9:.3g} GB, but"
                f" {model.name} has {model.weight_bytes / 1e9:.3g} GB; give --model and"
                " --weights as they were served"
            )


def describe(found: Calibration) -> str:
    """Describe a calibration: errors before and after, numbers with intervals, cautions."""
    benchmark, server = found.benchmark, found.server
    n = len(benchmark.runs)
    lines = [
        f"{benchmark.path.name}: {count(n, 'run')} of {benchmark.format},"
        f" {server.model.name} on {server.runtime.name}",
        *(f"left out: {reason}" for reason in benchmark.left_out),
        f"hypsolve's forecast by {found.start.name} was off by {describe_errors(found.before)}",
    ]
    rows = [
        {"forecast": "as before", **_row(found.before)},
        {"forecast": "fitted, on these runs", **_row(found.after)},
    ]
    if found.held_out.n_runs:
        rows.append({"forecast": "fitted, on runs held out", **_row(found.held_out)})
    lines.append(table(rows))
    if n < FEW:
        lines.append(table([_run_row(each) for each in found.forecasts]))
    numbers = []
    for key, (name, unit) in UNITS.items():
        low, high = found.intervals[key]
        numbers.append(
            {
                "number": name,
                "before": f"{getattr(found.start, key) * unit:.4g}",
                "fitted": f"{getattr(found.gpu, key) * unit:.4g}",
                "from": f"{low * unit:.4g}",
                "to (95 %)": f"{high * unit:.4g}",
                "note": _note(found, key),
            }
        )
    if found.request_s:
        low, high = (1e3 * bound for bound in found.request_interval_s)
        numbers.append(
            {
                "number": "request_ms",
                "before": "0",
                "fitted": f"{1e3 * found.request_s:.4g}",
                "from": f"{low:.4g}",
                "to (95 %)": f"{high:.4g}",
                "note": "",
            }
        )
    lines.append(table(numbers))
    lines += _cautions(found)
    return "\n".join(lines)


def _note(found: Calibration, key: str) -> str:
    if key in found.at_peak:
        return "peak of the data sheet"
    return "little seen" if key in found.unseen else ""


def _run_row(forecast: RunForecast) -> dict[str, str]:
    """Return the row of a run: milliseconds measured, and forecast before and after."""
    run, mark = forecast.run, "*" * forecast.waits_for_memory
    row = {"run": run.describe() + mark}
    for i, (name, measured_s) in enumerate((("TTFT", run.ttft_s), ("TPOT", run.tpot_s))):
        times = (measured_s, forecast.before[i], forecast.after[i])
        heads = (f"{name} ms", f"{name} before", f"{name} after")
        row |= {
            head: "-" if measured_s is None or time is None else f"{time * 1e3:.4g}"
            for head, time in zip(heads, times, strict=True)
        }
    return row


def _row(errors: Errors) -> dict[str, str]:
    shown = {"TPOT off by": errors.tpot, "TTFT off by": errors.ttft}
    text = {
        key: "-" if math.isnan(value) else show_percent(value) for key, value in shown.items()
    }
    return {**text, "runs": str(errors.n_runs)}


def _cautions(found: Calibration) -> list[str]:
    """Say how little the runs tell."""
    n = len(found.benchmark.runs)
    lines = []
    if found.at_peak:
        names = ", ".join(UNITS[key][0] for key in found.at_peak)
        lines.append(
            f"warning: the runs ask for more {names} than the data sheet of the GPU has, which"
            " limits the fit: GPU, model, weights or server are not those of the benchmark, or"
            " its times hold something else"
        )
    waiting = [each.run for each in found.forecasts if each.waits_for_memory]
    if waiting:
        names = "; ".join(run.describe() for run in waiting[:MAX_NAMED])
        more = f" and {len(waiting) - MAX_NAMED} more" if len(waiting) > MAX_NAMED else ""
        lines.append(
            f"* users wait for KV cache in {count(len(waiting), 'run')} ({names}{more}): its"
            " size, which no number here tells, decides the time to first token; published"
            " errors leave such runs out, the fit and the errors above have them"
        )
    if unseen := [key for key in found.unseen if key not in found.at_peak]:
        names = ", ".join(UNITS[key][0] for key in unseen)
        lines.append(
            f"the runs say little about {names}: the fit started from {found.start.name}, and"
            " stays near it there"
        )
    if not found.held_out.n_runs:
        few = f"{count(n, 'run')}: too few to hold some out"
        lines.append(f"{few}, so the error on others is unknown")
    elif n < FEW:
        lines.append(f"{n} runs are few: the held-out error is a rough one")
    loads = {(run.prompt_tokens, run.output_tokens) for run in found.benchmark.runs}
    if len(loads) == 1:
        lines.append(
            "all runs have one length of prompts and outputs: other lengths are unknown"
        )
    if found.request_s:
        lines.append(
            "request_ms passes in each request outside of iterations: work of the server, and"
            " the queue with which a benchmark begins; plans do not add it to a time to first"
            " token"
        )
    for name, before, after in (
        ("times per token", found.before.tpot, found.after.tpot),
        ("times to first token", found.before.ttft, found.after.ttft),
    ):
        if after > before + WORSE:
            lines.append(
                f"warning: {name} are further off than before the fit, {show_percent(after)}"
                f" and not {show_percent(before)}: no three numbers explain these runs"
            )
    if found.after.ttft > ROUGH:
        lines.append(
            f"times to first token stay off by {show_percent(found.after.ttft)}: benchmarks"
            " begin with a queue, which the runs do not tell apart"
        )
    lines.append("forecasts of other models, lengths and numbers of users were not validated")
    return lines
