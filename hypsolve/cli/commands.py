"""The commands `compare`, `pareto`, `simulate` and `replan`."""

import contextlib
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from hypsolve.cli.options import (
    DEFAULT_ALONE,
    is_given,
    planned_for,
    query_options,
    show,
    show_progress,
    to_write,
    without_defaults,
)
from hypsolve.cli.saved_placement import or_of_placement, replan_saved, simulate_saved
from hypsolve.dispatch.policies import POLICIES
from hypsolve.formats.request_traces import read_requests
from hypsolve.planning import comparison, planner
from hypsolve.planning.degree_text import describe_lost_degree, of_degree
from hypsolve.planning.earlier_plan import (
    OBJECTIVES,
    query_in,
    query_of_plan,
    solution_of_plan,
    with_arguments,
)
from hypsolve.planning.expected_errors import (
    ExpectedError,
    distinct_words,
    errors_of_stages,
    expected_errors,
    used_nodes,
)
from hypsolve.planning.figures import draw_pareto
from hypsolve.planning.forecast import round_s
from hypsolve.planning.frontier_of_nodes import best_in_fluid, with_other_nodes
from hypsolve.planning.layers import describe_blocks, describe_cuts
from hypsolve.planning.load import ROUNDS_OF_USERS, Load, arriving, at_rate, starts
from hypsolve.planning.plan import record_to_dict
from hypsolve.planning.query import ALONE, PlanQuery, Solution, solve_query
from hypsolve.planning.replan import Replan
from hypsolve.planning.replan import replan as plan_anew
from hypsolve.planning.runtime_restrictions import (
    ServerNetwork,
    describe_nodes,
    network_for_server,
)
from hypsolve.planning.saturation import MET
from hypsolve.planning.serving_frontier import (
    ServingPoint,
    open_points,
    serving_points,
    undominated,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_text import describe_refuted, describe_slos
from hypsolve.planning.split_forecasts import SplitForecasts
from hypsolve.planning.target_bound import refuting_bounds
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.planning.text import describe_forecast, describe_rate
from hypsolve.problem import validation as valid
from hypsolve.problem.network import Node
from hypsolve.problem.optional import optional
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import finite_or_none, show_bytes, show_seconds
from hypsolve.simulation.perfetto import write_perfetto
from hypsolve.simulation.simulate import simulate as simulate_requests
from hypsolve.simulation.trace import Trace
from hypsolve.simulation.workloads import WORKLOADS, workload
from hypsolve.solvers.backends.scip import hide_spurious_scip_errors
from hypsolve.solvers.clock import Deadline

OWN_SHARE = 0.5  # of the time of a frontier, for splits on the nodes of the plan
FLUID_SHARE = 0.2  # of the time left for a frontier, for the best splits of the fluid model
N_REQUESTS = 300  # of a simulation
N_NAMED = 4  # splits that were not simulated and are named
CUT_SHORT = "the time limit ended the choice of nodes: a longer --time-limit may find better"
NODES_SHARE = 0.3  # of the time limit, to choose the nodes that a server's pipelines use


@click.command()
@query_options(
    objectives=ALONE,
    default_objective=DEFAULT_ALONE,
    limits="the whole command, shared by the methods; compiling comes before",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Method to compare; may be repeated.  [default: all]",
)
def compare(
    arguments: dict[str, Any], model: str, network: str, methods: tuple[str, ...], as_json: bool
) -> int:
    """Split a model by several methods, side by side, and simulate each split.

    \b
    hypsolve compare --model llama-3-8b --network network.toml
    """  # noqa: D301
    results: list[Result] = []
    planned = query = PlanQuery.of(model, network, **arguments)
    if "objective" not in arguments:
        query = replace(query, objective=query.objective_alone)
    with show_progress() as progress:
        nodes, deadline = comparison.choose_nodes(
            query, methods or None, planned=planned, simulates=True, progress=progress
        )
    query = nodes.query
    forecasts = SplitForecasts(query)
    fluid = []
    if not methods and not query.is_simulated:  # which scores splits in another unit
        fluid = comparison.fluid_results(nodes, deadline)
    for result in fluid:
        forecasts.add(result, deadline.part(FLUID_SHARE))
    with (
        contextlib.suppress(KeyboardInterrupt),
        show_progress() as progress,
        hide_spurious_scip_errors(),
    ):
        for result in comparison.compare_query(
            query, methods or None, progress=progress, simulate=forecasts.add, deadline=deadline
        ):
            results.append(result)
            progress(f"{result.method}: {result.status}")
    _tell_nodes(nodes, as_json)
    n_methods = len(methods) or len(comparison.comparable(query.objective))
    if len(results) < n_methods:
        print(f"stopped: {len(results)} of {n_methods} methods are finished", file=sys.stderr)
    if as_json:
        plain = [result.to_dict() | forecasts.to_dict(result) for result in (*fluid, *results)]
        print(json.dumps(plain, indent=2, allow_nan=False))
    elif results:
        bound_s = max(result.bound_s for result in results)
        is_asked = "objective" in arguments
        rows = [_row(result, bound_s, forecasts, is_asked) for result in (*fluid, *results)]
        show(rows, as_json=False)
        if is_asked:
            print(
                "gap: the optimum is at most this share below, by the best bound that a method"
                " here proved"
            )
        print("layers by tier: the embedding comes before layer 0, the head after the last")
        print(
            f"requests/s, TTFT and TPOT (mean, p50, p95, p99): simulated with"
            f" {query.load.describe()}; {query.runtime.describe()}"
        )
        if slos := describe_slos(query.load):
            print(f"within targets: share of the requests at this load within {slos}")
        errors = (forecasts.errors(result) for result in (*fluid, *results))
        for line in distinct_words(itertools.chain.from_iterable(errors)):
            print(line)
        if any(">=" in row["requests/s"] for row in rows):
            print(">=: the time limit ended the search for larger rates (--time-limit)")
    if len(results) < n_methods:
        return 130
    return 0 if any(result.partition is not None for result in results) else 1


def _row(
    result: Result, bound_s: float, forecasts: SplitForecasts, is_asked: bool
) -> dict[str, str]:
    """Return a row of `compare`; no split is below `bound_s`, whichever method proved it.

    What the split is for requests one at a time is shown if that objective `is_asked` for.
    """
    fits = result.partition is not None
    gap = max(0.0, 1 - bound_s / result.objective_s) if fits and result.objective_s > 0 else 0.0
    alone = {
        str(result.instance.objective): show_seconds(result.objective_s) if fits else "-",
        "gap": f"{gap:.2%}" if fits and bound_s > 0 else "-",
    }
    return {
        "method": result.method,
        **forecasts.row(result),
        "status": str(result.status),
        **(alone if is_asked else {}),
        "solved in": show_seconds(result.solve_time_s),
        "layers": describe_cuts(result.partition.cuts) if result.partition else result.message,
    }


@click.command()
@query_options(objectives=())
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    help="Also draw the frontier to this .png, .svg or .pdf file.",
)
def pareto(
    arguments: dict[str, Any], model: str, network: str, png: Path | None, as_json: bool
) -> int:
    """List the Pareto frontier: splits that no other beats in both rate and latency.

    Both are simulated, as requests are served in batches. With targets, splits that meet
    them at the load are marked.

    \b
    hypsolve pareto --model llama-3-8b --network network.toml --png pareto.png
    """  # noqa: D301
    to_write(png, ".png", ".svg", ".pdf")
    planned = PlanQuery.of(model, network, **arguments)
    nodes, deadline = _nodes(planned)
    query = replace(nodes.query, objective="path", time_limit_s=deadline.part(1.0).limit_s)
    solution = solve_query(query)
    _tell_nodes(nodes, as_json)
    if solution.result.partition is None:
        print("[]" if as_json else f"{solution.result.status}: {solution.result.message}")
        return 1
    share = OWN_SHARE if nodes.server else 1.0  # of the time, for the nodes of the plan
    best = best_in_fluid(replace(query, time_limit_s=deadline.part(FLUID_SHARE).limit_s))
    if nodes.solution is not None and (split := nodes.solution.result.partition) is not None:
        best = tuple(dict.fromkeys((split, *best)))
    tried = serving_points(
        solution.deployment, solution.instance, query.load, deadline.part(share).limit_s, best
    )
    if nodes.server:  # splits with other limits are on other nodes
        tried = tuple(p for p in tried if query.has_limits_of(p.partition.cuts))
        tried = with_other_nodes(tried, nodes, planned, deadline)
    points = undominated(tried)
    if not points:
        print(
            f"no split could be simulated within {planned.time_limit_s:g} s (--time-limit)",
            file=sys.stderr,
        )
    errors = {point: _errors_of_point(point, solution, nodes, planned) for point in points}
    if as_json:
        plain = [
            {
                "max_requests_per_s": point.max_requests_per_s,
                "max_rate_is_lower_bound": point.max_rate_is_lower_bound,
                "latency_mean_s": point.latency_mean_s,
                "bottleneck_s": point.bottleneck_s,
                "path_s": point.path_s,
                "slo_attainment": finite_or_none(point.slo_attainment),
                "cuts": list(point.partition.cuts),
                "nodes": list(point.nodes),
                "expected_errors": [record_to_dict(error) for error in errors[point]],
            }
            for point in points
        ]
        print(json.dumps(plain, indent=2, allow_nan=False))
    elif points:
        others = "; on other GPUs its defaults for them" if nodes.server else ""
        print(f"simulated with {query.load.describe()}; {query.runtime.describe()}{others}")
        if slos := describe_slos(query.load):
            print(
                f"within targets: share of the requests at this load within {slos}; * from"
                f" {MET:.0%}"
            )
        rows = [
            {
                "keeps up with": f"{'at least ' * point.max_rate_is_lower_bound}"
                f"{point.max_requests_per_s:.3g} requests/s",
                "mean latency": show_seconds(point.latency_mean_s),
                "alone": show_seconds(point.path_s),
                **_attainment(point),
                "layers": describe_cuts(point.partition.cuts),
                **({"nodes": ", ".join(point.nodes)} if point.nodes else {}),
            }
            for point in points
        ]
        show(rows, as_json=False)
        for line in distinct_words(itertools.chain.from_iterable(errors.values())):
            print(line)
    if points and (line := _not_simulated(tried)):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if png is not None and points:
        _draw(points, solution.instance.name, png)
    return 0 if points else 1


def _errors_of_point(
    point: ServingPoint, solution: Solution, nodes: ServerNetwork, planned: PlanQuery
) -> tuple[ExpectedError, ...]:
    """Return the error to expect of what a split serves, for each kind of GPU in use."""
    deployment, runtime = solution.deployment, planned.runtime.name
    if not point.nodes:
        stages = list(used_nodes(deployment, solution.instance, point.partition))
    else:  # on another choice of nodes
        of_tier: dict[str, dict[str, Node]] = {}
        for query in (planned, nodes.query):
            for tier in query.deployment().network.tiers:
                chosen = {node.name: node for node in tier.nodes if node.name in point.nodes}
                of_tier[tier.name] = of_tier.get(tier.name, {}) | chosen
        stages = [list(each.values()) for each in of_tier.values() if each]
    return errors_of_stages(stages, runtime, planned.model)


def _not_simulated(tried: Sequence[ServingPoint]) -> str:
    """Say which splits were not simulated, or not to the end; empty if all were."""
    left, n_cut = (
        [point for point in tried if not point.is_known],
        sum(point.max_rate_is_lower_bound for point in tried),
    )
    words = []
    if left:
        words.append(
            f"{len(tried) - len(left)} of {len(tried)} splits were simulated: those that are"
            " best for requests one at a time, and the best of the fluid model"
        )
        maybe = open_points(tried)
        if len(maybe) < len(left):
            words.append(
                f"{len(left) - len(maybe)} others were left out, for by their bounds they are"
                " no better"
            )
        if maybe:
            names = [describe_cuts(point.partition.cuts) for point in maybe]
            more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
            words.append(
                "for these the time (--time-limit) did not suffice, and they may be better:"
                f" layers {'; '.join(names[:N_NAMED])}{more}"
            )
    if n_cut:
        words.append(f"at least: the search for larger rates was cut short ({n_cut} splits)")
    return "\n".join(words)


def _nodes(
    query: PlanQuery, progress: Progress | None = None
) -> tuple[ServerNetwork, Deadline]:
    """Choose the nodes of a query as ``hypsolve plan`` does, and start the time limit."""
    planner.warm(query)
    deadline = Deadline(query.time_limit_s)
    query, _ = choose_degrees(query, progress, deadline, restrict=network_for_server)
    choice = deadline.part(NODES_SHARE)
    return network_for_server(query, progress=progress, deadline=choice), deadline


def _tell_nodes(nodes: ServerNetwork, as_json: bool) -> None:
    """Print on which nodes the answer is, if the runtime cannot use all; not amid JSON."""
    if line := nodes.describe():
        print(line, file=sys.stderr if as_json else sys.stdout)
    if nodes.is_cut_short:
        print(CUT_SHORT, file=sys.stderr)


def _split(query: PlanQuery, progress: Progress) -> tuple[ServerNetwork, Solution, Deadline]:
    """Split a query on the nodes of ``hypsolve plan``; the search gets a share of the time."""
    nodes, deadline = _nodes(query, progress)
    solution = nodes.solution
    if solution is None:
        share_s = deadline.part(planner.SEARCH_SHARE).limit_s
        solution = solve_query(replace(nodes.query, time_limit_s=share_s), progress)
    return nodes, replace(solution, query=nodes.query), deadline


def _planned(
    query: PlanQuery, plan: str, progress: Progress
) -> tuple[ServerNetwork, Solution, Deadline]:
    """Return the split of an earlier plan, on the nodes of this plan."""
    planner.warm(query)
    deadline = Deadline(query.time_limit_s)
    query, _ = choose_degrees(query, progress, deadline, restrict=network_for_server)
    nodes = ServerNetwork.of(query, query_of_plan(plan, query))
    return nodes, solution_of_plan(plan, nodes.query), deadline


def _attainment(point: ServingPoint) -> dict[str, str]:
    """Return the share of the requests within the targets, marked if it is enough."""
    if math.isnan(point.slo_attainment):
        return {}
    return {"within targets": f"{point.slo_attainment:.1%}{' *' * point.meets_targets}"}


def _draw(points: Sequence[ServingPoint], name: str, path: Path) -> None:
    figure = optional("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    draw_pareto(points, ax)
    figure.suptitle(name, x=0.01, ha="left", fontsize=9)
    figure.savefig(path, dpi=150)


@or_of_placement(simulate_saved)
@query_options(takes_requests=False)
@click.option("--method", help="Method of the split.  [default: as in hypsolve plan]")
@click.option("--plan", "plan", type=click.Path(), help="Take the split from this plan (JSON).")
@click.option(
    "--workload",
    "source",
    type=click.Choice(tuple(WORKLOADS)),
    help="Lengths and gaps of the requests.  [default: --prompt and --output for all]",
)
@click.option(
    "--requests",
    type=int,
    help=f"Number of requests.  [default: {N_REQUESTS}; {ROUNDS_OF_USERS} for each user]",
)
@click.option(
    "--trace",
    type=click.Path(),
    help="Take the requests from this file, and plan for them unless lengths are given.",
)
@click.option(
    "--policy",
    type=click.Choice(tuple(POLICIES)),
    default="hypsched_rt",
    show_default=True,
    help="Policy that chooses the node of each request.",
)
@click.option("--perfetto", type=click.Path(), help="Write a trace for ui.perfetto.dev.")
def simulate(
    arguments: dict[str, Any],
    model: str,
    network: str,
    method: str | None,
    plan: str | None,
    source: str | None,
    requests: int | None,
    trace: str | None,
    policy: str,
    perfetto: str | None,
    as_json: bool,
) -> int:
    """Simulate requests token by token over the best split, or over the split of a plan.

    \b
    hypsolve simulate --model llama-3-8b --network network.toml --rate 2
    hypsolve simulate --model llama-3-8b --network network.toml --trace requests.csv
    hypsolve simulate --model llama-3-8b --network network.toml --plan plan.json
    hypsolve simulate placement.json --machines machines.toml --rate 2

    The last line simulates a placement of hypsolve place --save; its options are printed by
    hypsolve simulate --machines M --help.
    """  # noqa: D301
    to_write(perfetto)
    if plan is not None and (method is not None or "objective" in arguments):
        raise click.UsageError("--plan excludes --method and --objective")
    if plan is not None:
        arguments = with_arguments(query_in(plan), without_defaults(arguments))
    elif trace is not None:
        arguments = planned_for(arguments, trace, needs_rate=False)
    query = PlanQuery.of(model, network, method=method, **arguments)
    n_requests = _n_requests(requests, query.users)
    with show_progress() as progress:
        nodes, solution, deadline = (
            _split(query, progress) if plan is None else _planned(query, plan, progress)
        )
    deployment, result, load = solution.deployment, solution.result, query.load
    partition = result.partition
    if partition is not None:
        nodes = nodes.of_split(solution)
    _tell_nodes(nodes, as_json)
    if partition is None:
        plain = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        print(plain if as_json else f"{result.status}: {result.message}")
        return 1
    if solution.interrupted:
        print("stopped: the split is the best so far", file=sys.stderr)
    if trace is not None:
        given = read_requests(trace) if load.trace is None else load.trace
        if is_given("rate"):
            given = replace(given, arrival_s=at_rate(given.arrival_s, load.rate_per_s))
    elif source is not None:
        given = workload(
            source, n_requests=n_requests, rate_per_s=load.rate_per_s, seed=query.seed
        )
        given = replace(given, arrival_s=at_rate(given.arrival_s, load.rate_per_s))
    else:
        rng = np.random.default_rng(query.seed)
        given = arriving(deployment, load.rate_per_s, n_requests, rng).requests
    if load.users is not None and (trace is not None or source is None):
        within_s = round_s(deployment, partition, load)
        given = replace(given, arrival_s=starts(load, len(given), within_s))
    longest = int((given.prompt_tokens + given.output_tokens).max())
    served = simulate_requests(
        replace(
            deployment,
            requests=given,
            max_resident_tokens=max(longest, deployment.max_resident_tokens or 0),
        ),
        partition,
        policy,
        seed=query.seed,
        users=load.users,
        think_time_s=load.think_time_s,
        link_contention=True,
        record_visits=perfetto is not None,
        time_limit_s=deadline.part(1.0).limit_s,
    )
    numbers = served.metrics(ttft_slo_s=load.ttft_slo_s, tpot_slo_s=load.tpot_slo_s)
    at_once = numbers.mean_in_flight if load.users is None else float(load.users)
    errors = expected_errors(
        deployment, result.instance, partition, at_once=at_once, model=query.model
    )
    if as_json:
        plain_errors = [record_to_dict(error) for error in errors]
        plain_numbers = numbers.to_dict() | {"expected_errors": plain_errors}
        print(json.dumps(plain_numbers, indent=2, allow_nan=False))
    else:
        lengths = (given.prompt_tokens.mean(), given.output_tokens.mean())
        print(
            f"layers {describe_cuts(partition.cuts)}: {len(given)} requests,"
            f" {_offered(served, load)}, of {lengths[0]:.4g} + {lengths[1]:.4g} tokens on"
            " average; links send one message at a time"
        )
        print(deployment.runtime.describe())
        print(numbers)
        for line in distinct_words(errors):
            print(line)
    if perfetto is not None:
        write_perfetto(served, perfetto)
    return 0


def _n_requests(asked: int | None, users: int | None) -> int:
    """Return the requests to simulate; say so if they are few for the users."""
    enough = ROUNDS_OF_USERS * (users or 0)
    if asked is None:
        return max(N_REQUESTS, enough)
    valid.whole("simulate", "requests", asked, minimum=1)
    if asked < enough:
        print(
            f"note: {asked} requests are under {ROUNDS_OF_USERS} for each of {users} users:"
            " their start counts for much",
            file=sys.stderr,
        )
    return asked


def _offered(trace: Trace, load: Load) -> str:
    """Describe the load: users, or the rate of the arrivals."""
    if load.users is not None:
        return load.describe()
    span_s = float(np.ptp(trace.arrival_s))
    return f"{(len(trace.arrival_s) - 1) / span_s:.3g} per second" if span_s else "all at once"


@or_of_placement(replan_saved)
@query_options(
    objectives=OBJECTIVES,
    inherits=True,
    default_objective=f"as in the earlier plan; else {DEFAULT_ALONE}",
)
@click.option(
    "--before",
    required=True,
    type=click.Path(),
    help="The earlier plan: output of hypsolve plan --json or hypsolve replan --json.",
)
@click.option(
    "--max-moves",
    required=True,
    type=int,
    help="Largest number of blocks that may change tier.",
)
def replan(
    arguments: dict[str, Any],
    model: str,
    network: str,
    before: str,
    max_moves: int,
    as_json: bool,
) -> int:
    """Split a model anew after the network has changed, and move few blocks.

    \b
    hypsolve plan --model llama-3-8b --network network.toml --json > plan.json
    hypsolve replan --model llama-3-8b --network new.toml --before plan.json --max-moves 4
    hypsolve replan placement.json --machines new.toml --max-move-gib 20

    The last line is for a placement of hypsolve place --save; its options are printed by
    hypsolve replan --machines M --help.
    """  # noqa: D301
    with show_progress() as progress:
        plan = plan_anew(
            model, network, before, max_moves=max_moves, progress=progress, **arguments
        )
    if line := describe_lost_degree(plan):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(plan.to_dict(), indent=2, allow_nan=False))
    elif plan.partition is None:
        print(f"infeasible with at most {max_moves} blocks moved: {plan.reason}")
        if line := describe_nodes(plan.server, plan.used, plan.left_out):
            print(line)
    else:
        _print_replan(plan, plan.partition)
    refuted = refuting_bounds(plan.query) if plan.partition is not None else {}
    if refuted:
        nodes = f" of these nodes{of_degree(plan)}"
        line = f"a target is missed; {describe_refuted(refuted, nodes)}"
        print(line, file=sys.stderr if as_json else sys.stdout)
    if plan.stopped:
        print(f"stopped: {plan.stopped}", file=sys.stderr)
        return 130
    return 0 if plan.partition is not None and not refuted else 1


def _print_replan(plan: Replan, partition: Partition) -> None:
    rows = []
    for k, tier in enumerate(plan.deployment.network.tiers):
        loads = [plan.moved_bytes.get(node.name, 0) for node in tier.nodes]
        rows.append(
            {
                "tier": tier.name,
                "holds": describe_blocks(partition.stage(k), plan.instance.n_blocks),
                "nodes that load": f"{sum(n > 0 for n in loads)} of {len(loads)}",
                "at most each": show_bytes(max(loads)),
            }
        )
    print(f"{plan.n_moved} blocks moved")
    show(rows, as_json=False)
    if line := describe_nodes(plan.server, plan.used, plan.left_out):
        print(line)
    of = " of these nodes" if plan.server else ""
    if plan.throughput is not None:
        print(describe_rate(plan.throughput, of + of_degree(plan)))
        n_splits = len(plan.throughput.splits)
        print(f"best of {n_splits} simulated splits that move at most {plan.max_moves} blocks")
        head, values = "requests/s, simulated", [f"{rate:.3g}" for _, rate in plan.frontier]
    else:
        print(
            f"proved: with at most {plan.max_moves} moved, no split{of} has a {plan.objective}"
            f" below {show_seconds(plan.objective_s)}"
        )
        head, values = f"least {plan.objective}", [show_seconds(s) for _, s in plan.frontier]
    numbers = [str(moves) for moves, _ in plan.frontier]
    pairs = zip(numbers, values, strict=True)
    if numbers:
        show([{"moves": moves, head: value} for moves, value in pairs], as_json=False)
    if plan.forecast is not None:
        for line in (
            *describe_forecast(plan.forecast),
            *distinct_words(plan.expected_errors),
        ):
            print(line)
