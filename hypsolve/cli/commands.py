"""Commands around a plan: `compare`, `pareto`, `simulate`, `replan`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from hypsolve.cli.options import asking, progress, show, to_write
from hypsolve.dispatch.policies import POLICIES
from hypsolve.formats.request_traces import read_requests
from hypsolve.planning import planner
from hypsolve.planning.figures import draw_pareto
from hypsolve.planning.forecast import arriving
from hypsolve.planning.plan import describe_blocks
from hypsolve.planning.replan import OBJECTIVES, partition_in
from hypsolve.planning.replan import replan as plan_anew
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.optional import optional
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import show_bytes, show_seconds
from hypsolve.simulation.perfetto import write_perfetto
from hypsolve.simulation.simulate import simulate as simulate_requests
from hypsolve.simulation.workloads import WORKLOADS, workload
from hypsolve.solvers.backends.scip import hide_spurious_scip_errors
from hypsolve.solvers.partition.hypsplit import ParetoPoint, pareto_frontier


@click.command()
@asking()
@click.option("--method", "methods", multiple=True, help="Repeat it; default: all.")
def compare(
    ask: dict[str, Any], model: str, network: str, methods: tuple[str, ...], as_json: bool
) -> int:
    """Split a model by several methods, side by side.

    \b
    hypsolve compare --model llama-3-8b --network network.toml
    """  # noqa: D301
    results: list[Result] = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        progress() as tell,
        hide_spurious_scip_errors(),
    ):
        for result in planner.compare(model, network, methods or None, tell=tell, **ask):
            results.append(result)
            tell(f"{result.method}: {result.status}")
    n_asked = len(methods) or len(planner.comparable(ask["objective"]))
    if len(results) < n_asked:
        print(f"stopped: {len(results)} methods have answered", file=sys.stderr)
    if as_json:
        print(json.dumps([result.to_dict() for result in results], indent=2, allow_nan=False))
    elif results:
        show([_row(result) for result in results], as_json=False)
    return 0 if any(result.partition is not None for result in results) else 1


def _row(result: Result) -> dict[str, str]:
    fits = result.partition is not None
    proved = result.bound_s > 0 and fits
    return {
        "method": result.method,
        "status": str(result.status),
        str(result.instance.objective): show_seconds(result.objective_s) if fits else "-",
        "gap": f"{result.gap:.2%}" if proved else "-",
        "solved in": show_seconds(result.solve_time_s),
        "cuts": str(result.partition) if fits else result.message,
    }


@click.command()
@asking(objectives=(), rate=False)
@click.option("--png", type=click.Path(path_type=Path), help="Draw it, too.")
def pareto(
    ask: dict[str, Any], model: str, network: str, png: Path | None, as_json: bool
) -> int:
    """List the splits that no other beats in both throughput and latency.

    \b
    hypsolve pareto --model llama-3-8b --network network.toml --png pareto.png
    """  # noqa: D301
    to_write(png, ".png", ".svg", ".pdf")
    _, result = planner.split(model, network, **ask)
    points = pareto_frontier(result.instance)
    rows = [
        {
            "requests/s": f"{1 / point.bottleneck_s:.4g}" if point.bottleneck_s else "inf",
            "latency": show_seconds(point.path_s),
            "cuts": str(point.partition),
        }
        for point in points
    ]
    if as_json:
        plain = [
            {"bottleneck_s": p.bottleneck_s, "path_s": p.path_s, "cuts": list(p.partition.cuts)}
            for p in points
        ]
        print(json.dumps(plain, indent=2, allow_nan=False))
    elif points:
        print("one request at a time: throughput of a stage's nodes together, latency alone")
        show(rows, as_json=False)
    else:
        print(f"{result.status}: {result.message}")
    if png is not None and points:
        _draw(points, result.instance.name, png)
    return 0 if points else 1


def _draw(points: list[ParetoPoint], name: str, path: Path) -> None:
    figure = optional("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    draw_pareto(points, ax)
    ax.set_title(name, loc="left", fontsize=9)
    figure.savefig(path, dpi=150)


@click.command()
@asking()
@click.option("--method", help="Of the split; default as in hypsolve plan.")
@click.option("--plan", "of_plan", type=click.Path(), help="Split as there; a plan's JSON.")
@click.option(
    "--workload",
    "source",
    type=click.Choice(tuple(WORKLOADS)),
    help="Lengths and gaps of the requests; default: all of --prompt and --output.",
)
@click.option("--requests", default=300, show_default=True, help="How many.")
@click.option("--trace", type=click.Path(), help="A file of requests instead; its own rate.")
@click.option(
    "--policy", type=click.Choice(tuple(POLICIES)), default="hypsched_rt", show_default=True
)
@click.option("--seed", default=0, show_default=True)
@click.option("--ttft-slo", type=float, help="Seconds to the first token, at most.")
@click.option("--tpot-slo", type=float, help="Seconds per later token, at most.")
@click.option("--perfetto", type=click.Path(), help="Write a trace for ui.perfetto.dev.")
def simulate(
    ask: dict[str, Any],
    model: str,
    network: str,
    method: str | None,
    of_plan: str | None,
    source: str | None,
    requests: int,
    trace: str | None,
    policy: str,
    seed: int,
    ttft_slo: float | None,
    tpot_slo: float | None,
    perfetto: str | None,
    as_json: bool,
) -> int:
    """Serve requests with the best split, or that of a plan, token by token.

    \b
    hypsolve simulate --model llama-3-8b --network network.toml --rate 2
    hypsolve simulate --model llama-3-8b --network network.toml --trace requests.csv
    hypsolve simulate --model llama-3-8b --network network.toml --plan plan.json
    """  # noqa: D301
    to_write(perfetto)
    if of_plan is not None and (method is not None or ask["objective"] != "bottleneck"):
        raise click.UsageError("--plan is a split: leave --method and --objective out")
    with progress() as tell:
        deployment, result = planner.split(model, network, method=method, tell=tell, **ask)
    if of_plan is not None:
        partition: Partition | None = partition_in(of_plan, result.instance)
    else:
        partition = result.partition
    if partition is None:
        plain = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        print(plain if as_json else f"{result.status}: {result.message}")
        return 1
    if result.statistics.get("stopped"):
        print("stopped: the split is the best so far", file=sys.stderr)
    if trace is not None:
        given = read_requests(trace)
    elif source is not None:
        given = workload(source, n_requests=requests, rate_per_s=ask["rate_per_s"], seed=seed)
    else:
        valid.whole("simulate", "requests", requests, minimum=1)
        rng = np.random.default_rng(valid.whole("simulate", "seed", seed))
        given = arriving(deployment, ask["rate_per_s"], requests, rng).requests
    longest = int((given.prompt_tokens + given.output_tokens).max())
    served = simulate_requests(
        Deployment(
            model=deployment.model,
            network=deployment.network,
            requests=given,
            max_resident_tokens=max(longest, deployment.max_resident_tokens or 0),
        ),
        partition,
        policy,
        seed=seed,
        link_contention=True,
        record_visits=perfetto is not None,
    )
    numbers = served.metrics(ttft_slo_s=ttft_slo, tpot_slo_s=tpot_slo)
    if as_json:
        print(json.dumps(numbers.to_dict(), indent=2, allow_nan=False))
    else:
        span_s = float(np.ptp(given.arrival_s))
        offered = f"{(len(given) - 1) / span_s:.3g} a second" if span_s else "all at once"
        lengths = (given.prompt_tokens.mean(), given.output_tokens.mean())
        print(
            f"{partition}: {len(given)} requests, {offered}, of {lengths[0]:.4g} +"
            f" {lengths[1]:.4g} tokens in the mean; links send one message at a time"
        )
        print(numbers)
    if perfetto is not None:
        write_perfetto(served, perfetto)
    return 0


@click.command()
@asking(objectives=OBJECTIVES, rate=False, inherits=True)
@click.option(
    "--from",
    "before",
    required=True,
    type=click.Path(),
    help="The plan so far, as hypsolve plan --json prints it.",
)
@click.option("--max-moves", required=True, type=int, help="Blocks that may change tier.")
def replan(
    ask: dict[str, Any], model: str, network: str, before: str, max_moves: int, as_json: bool
) -> int:
    """Split anew after the network has changed, moving few blocks: the best with so many moves.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --json > plan.json
    hypsolve replan --model llama-3-8b --network new.toml --from plan.json --max-moves 4
    """  # noqa: D301
    ask = {name: value for name, value in ask.items() if value is not None}
    found = plan_anew(model, network, before, max_moves=max_moves, **ask)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    elif found.partition is None:
        print(f"infeasible with at most {max_moves} blocks moved: {found.reason}")
    else:
        what, least = found.instance.objective, show_seconds(found.objective_s)
        print(f"{found.n_moved} blocks moved")
        rows = []
        for k, tier in enumerate(found.deployment.network.tiers):
            blocks = describe_blocks(found.partition.stage(k), found.instance.n_blocks)
            loads = [found.moved_bytes.get(node.name, 0) for node in tier.nodes]
            rows.append(
                {
                    "tier": tier.name,
                    "blocks": blocks,
                    "nodes that load": f"{sum(n > 0 for n in loads)} of {len(loads)}",
                    "each at most": show_bytes(max(loads)),
                }
            )
        show(rows, as_json=False)
        print(f"proved: with at most {max_moves} moved, no split has a {what} below {least}")
        show(
            [{"moves": str(m), "at best": show_seconds(s)} for m, s in found.frontier],
            as_json=False,
        )
    return 0 if found.partition is not None else 1
