"""A `PlacementPlan` as text, which `hypsolve place` and `hypsolve rent` print."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hypsolve.planning.expected_errors import (
    UNMEASURED,
    ExpectedError,
    distinct_words,
    errors_of_stages,
    unknown_errors,
)
from hypsolve.planning.layers import describe_blocks
from hypsolve.planning.placement_records import RUNTIME
from hypsolve.planning.saturation import MET
from hypsolve.planning.slo_text import describe_slos
from hypsolve.planning.text import table
from hypsolve.planning.throughput import QUEUES_FULL
from hypsolve.problem.placement import Pipeline, PlacedStage, PlacementObjective
from hypsolve.problem.units import count, show_seconds

if TYPE_CHECKING:
    from hypsolve.planning.placement_plan import PlacementPlan
    from hypsolve.planning.placement_records import PlaceAnswer, PlacedPipeline, UnusedMachine
    from hypsolve.simulation.metrics import Summary

EQUAL = 1e-6  # relative difference of equal rates
MIN_RANGE = 3  # names with consecutive numbers that are written as a range


def text(plan: PlacementPlan) -> str:
    """Return the text that `hypsolve place` prints."""
    return "\n".join(_lines(plan))


def _lines(plan: PlacementPlan) -> Iterator[str]:
    query = plan.query
    if plan.interrupted:
        yield f"stopped: {plan.stopped}"
    limit, tokens = query.model.context_tokens, query.prompt_tokens + query.output_tokens
    if limit and tokens > limit:
        yield (
            f"warning: {tokens} tokens are longer than the {limit} tokens the model was made"
            " for: runtimes may refuse them"
        )
    if plan.fits:
        if plan.answer is not None:
            yield from answer_lines(plan)
            yield ""
        yield describe_placement(plan)
        yield ""
        yield table(rows_of_stages(plan))
        yield ""
        yield from rate_lines_of_placement(plan)
        yield from proof_lines(plan)
    else:
        yield f"no placement of {query.model.name} on {query.fleet.name}: {query.describe()}"
        yield from (f"  {line}" for line in plan.reasons)
    yield from unused_lines(plan)
    if lines := assumption_lines(plan):
        yield from ("", *lines)
    if plan.stopped and not plan.interrupted:
        yield f"stopped: {plan.stopped}"


def assumption_lines(plan: PlacementPlan) -> list[str]:
    """Return what the runtime does not allow, what was assumed, and errors to expect."""
    query = plan.query
    lines = [*query.restrictions, *query.machines.notes]
    if plan.fits:
        lines += [
            f"simulated limits: {query.runtime.describe()}",
            *error_lines_of_placement(plan),
        ]
    return lines


def answer_lines(plan: PlacementPlan) -> Iterator[str]:
    """Yield whether the load is served, and the largest loads that are."""
    answer, query = plan.answer, plan.query
    assert answer is not None
    if answer.is_met is not None:
        yield _verdict(plan, answer)
    within = "within the targets" if query.has_targets else "that it keeps up with"
    if math.isnan(answer.max_requests_per_s):
        yield f"the largest load {within} was not found in time"
        return
    if not answer.max_requests_per_s:
        yield f"no load {within} was found"
        return
    at_least = "at least " if answer.max_rate_is_lower_bound else "about "
    largest = (
        f"{at_least}{show_rate(answer.max_requests_per_s)} requests/s of {query.load.arrivals}"
    )
    if answer.max_users is not None:
        more = "at least " * answer.max_users_is_lower_bound
        largest = f"{more}{count(answer.max_users, 'user')}, or {largest}"
    if answer.is_met is None and query.has_targets:
        within = f"within {describe_slos(query.load)}"
    yield f"the largest load {within}: {largest}"


def _verdict(plan: PlacementPlan, answer: PlaceAnswer) -> str:
    load, targets = plan.query.load, plan.query.has_targets
    who = f"{load.rate_per_s:g} requests/s" if load.users is None else load.describe()
    n = f"{answer.n_requests} simulated requests"
    later = "the later half of " * answer.is_of_later_half
    within = f" within {describe_slos(load)}" if targets else ""
    share = f"{answer.slo_attainment:.1%} of {later}{n}" if targets else n
    if answer.is_met:
        return f"yes: {who} are served{within} ({share})"
    if not answer.keeps_up:
        return f"no: this placement does not keep up with {who} ({share})"
    return f"no: this placement does not serve {who}{within} (only {share}; it takes {MET:.0%})"


def describe_placement(plan: PlacementPlan) -> str:
    """Say in one line what is placed on how many machines, for what price."""
    query = plan.query
    n, used = len(plan.pipelines), len(plan.machines)
    every = len(query.fleet.machines) + len(query.left_out)
    mark = " (extrapolated: no times of such weights were measured)"
    name = f"{query.model.name}{mark if query.model.extrapolated else ''}"
    line = (
        f"{name} on {query.fleet.name}, {query.describe()}: {count(n, 'pipeline')} on"
        f" {used} of {count(every, 'machine')}"
    )
    if plan.price_per_hour:
        money = f" {query.machines.currency}" if query.machines.currency else ""
        line += f", {plan.price_per_hour:.4g}{money} per hour"
        if not math.isnan(plan.price_per_million_tokens):
            line += (
                f" ({plan.price_per_million_tokens:.3g}{money} per million output tokens at"
                " its largest rate)"
            )
    return line


def rows_of_stages(plan: PlacementPlan) -> list[dict[str, str]]:
    """Return a row per stage; equal pipelines share their rows."""
    rows = []
    fleet, n_blocks = plan.query.fleet, plan.query.model.n_blocks
    for numbers, alike in alike_pipelines(plan):
        first = alike[0]
        for s, stage in enumerate(first.stages):
            names = [each.stages[s].machine for each in alike]
            node = fleet.machine(stage.machine).node
            gpus = node.gpu.name if stage.gpus == 1 else f"{stage.gpus} x {node.gpu.name}"
            head = s == 0
            rows.append(
                {
                    "pipeline": numbers if head else "",
                    "machine": names_of(names),
                    "GPUs": gpus,
                    "holds": describe_holds(stage, n_blocks),
                    "requests/s": _times(first.requests_per_s, len(alike)) if head else "",
                    "share": f"{first.share * len(alike):.0%}" if head else "",
                    "TTFT p95": _p95([each.ttft_s for each in alike]) if head else "",
                    "TPOT p95": _p95([each.tpot_s for each in alike]) if head else "",
                    "limited by": first.limit if head else "",
                }
            )
    return rows


def alike_pipelines(plan: PlacementPlan) -> Iterator[tuple[str, list[PlacedPipeline]]]:
    """Yield equal pipelines, with their numbers from 1."""

    def kind(pipeline: PlacedPipeline) -> tuple[Any, ...]:
        names = [stage.machine for stage in pipeline.stages]
        return tuple(
            (
                plan.query.fleet.machine(stage.machine).node.gpu.name,
                plan.query.fleet.machine(stage.machine).kind,
                names.index(stage.machine),
                stage.gpus,
                stage.stop,
            )
            for stage in pipeline.stages
        )

    n = 0
    for _, group in itertools.groupby(plan.pipelines, key=kind):
        alike = list(group)
        numbers = f"{n + 1}" if len(alike) == 1 else f"{n + 1}-{n + len(alike)}"
        n += len(alike)
        yield numbers, alike


def describe_holds(stage: PlacedStage, n_blocks: int) -> str:
    """Name the layers of a stage; embedding and head are with the first and the last."""
    if (stage.start, stage.stop) == (0, n_blocks):
        return "all layers"
    words = describe_blocks(range(stage.start, stage.stop), n_blocks)
    return words.removeprefix("embedding, ").removesuffix(", head")


def names_of(names: Sequence[str]) -> str:
    """Join names; three and more with consecutive numbers become a range.

    Examples
    --------
    >>> names_of(["old-box", "l4-0", "l4-1", "l4-2", "a100-0", "a100-1"])
    'old-box, l4-0 to 2, a100-0, a100-1'
    """
    runs: list[list[str]] = []
    for name in dict.fromkeys(names):
        if runs and _is_next(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    said = []
    for run in runs:
        said += [f"{run[0]} to {_numbered(run[-1])[1]}"] if len(run) >= MIN_RANGE else run
    return ", ".join(said)


def _numbered(name: str) -> tuple[str, str]:
    """Return a name without the number at its end, and that number."""
    stem = name.rstrip("0123456789")
    return stem, name[len(stem) :]


def _is_next(name: str, other: str) -> bool:
    """Return whether only the numbers at the ends of two names differ, by one."""
    (stem, number), (same, more) = _numbered(name), _numbered(other)
    return bool(number and more) and stem == same and int(more) == int(number) + 1


def _p95(times: Sequence[Summary | None]) -> str:
    """Write the largest 95th percentile of equal pipelines."""
    known = [each.p95 for each in times if each is not None and not math.isnan(each.p95)]
    return _seconds(max(known, default=math.nan))


def show_rate(rate: float) -> str:
    """Write a rate with three digits, or as a whole number; a dash if it is not known.

    Examples
    --------
    >>> show_rate(0.12345), show_rate(1735.2), show_rate(math.nan)
    ('0.123', '1735', '-')
    """
    if math.isnan(rate):
        return "-"
    return f"{rate:.3g}" if rate < 999.5 else f"{rate:.0f}"


def _times(rate: float, n: int) -> str:
    return show_rate(rate) if n == 1 or math.isnan(rate) else f"{n} x {show_rate(rate)}"


def _seconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else show_seconds(float(f"{seconds:.3g}"))


def rate_lines_of_placement(plan: PlacementPlan) -> Iterator[str]:
    """Yield what the placement serves in simulation, and its latencies."""
    found, answer = plan.throughput, plan.answer
    assert found is not None
    at_least = "at least " * found.is_lower_bound
    what = "requests/s" if found.quantity == QUEUES_FULL else found.quantity
    line = f"simulated, it serves {at_least}{show_rate(found.simulated_requests_per_s)} {what}"
    if what == "requests/s":
        line += f" ({found.n_requests} requests, every queue full)"
    others = found.placements[1:]
    if others:
        own = found.placements[0].simulated_requests_per_s
        best = max(each.simulated_requests_per_s for each in others)
        ratio = f"{own / best:.2f} times" if best else "more than"
        line += f"; pipeline by pipeline, {ratio} the best of {count(len(others), 'other')}"
    yield line
    yield from missing_rate_lines(plan)
    if answer is None:
        yield "its latencies behind the router were not simulated in time"
    else:
        yield (
            f"behind the router, with {describe_load(plan)}, as in the table: TTFT"
            f" {_pair(answer.ttft_s)}; TPOT {_pair(answer.tpot_s)}; whole"
            f" {_pair(answer.latency_s)}"
        )


def missing_rate_lines(plan: PlacementPlan) -> Iterator[str]:
    """Yield which pipelines are left out of the rate, for theirs is not known."""
    missing = [
        (f"pipeline {p}", each.share)
        for p, each in enumerate(plan.pipelines, start=1)
        if math.isnan(each.requests_per_s)
    ]
    if missing:
        names = ", ".join(name for name, _ in missing)
        idle = ", ".join(name for name, share in missing if not share)
        line = f"left out of this rate, for theirs was not found in time: {names}"
        yield line + f"; the router sends no requests to {idle}" * bool(idle)


def describe_load(plan: PlacementPlan) -> str:
    """Name the load that was simulated behind the router."""
    answer, query = plan.answer, plan.query
    assert answer is not None
    if query.users is not None:
        return f"{count(query.users, 'user')} ({show_rate(answer.served_per_s)} requests/s)"
    rate = answer.max_requests_per_s if query.rate_per_s is None else query.rate_per_s
    return f"{show_rate(rate)} requests/s"


def _pair(times: Any) -> str:
    return f"p50 {_seconds(times.p50)}, p95 {_seconds(times.p95)}"


def error_lines_of_placement(plan: PlacementPlan) -> list[str]:
    """Return the errors to expect of the forecast, for each kind of GPU in use."""
    problem, found = plan.result.problem, list[ExpectedError]()
    for _, alike in alike_pipelines(plan):
        pipeline = Pipeline(alike[0].stages, 0.0)
        nodes = [tier.nodes for tier in problem.deployment(pipeline.groups).network.tiers]
        runtime, model = plan.query.runtime.name, plan.query.model
        found += errors_of_stages(nodes, runtime, model, may_fit=False)
    unknown = {each.gpu: None for each in found if each.words.startswith(UNMEASURED)}
    known = [each for each in found if each.gpu not in unknown]
    return distinct_words([*known, *unknown_errors(unknown, plan.query.runtime.name)])


def proof_lines(plan: PlacementPlan) -> Iterator[str]:
    """Yield bounds on what any placement serves."""
    found = plan.throughput
    assert found is not None
    stages = f"pipelines of at most {count(plan.query.max_stages, 'stage')}"
    of_these = show_rate(found.pipelines_bound_requests_per_s)
    if math.isfinite(found.bound_requests_per_s):
        yield (
            f"proved: no placement ({stages}) and no schedule serves more than"
            f" {show_rate(found.bound_requests_per_s)} requests/s under the limits of this"
            f" runtime (gap {found.gap:.1%}); on these pipelines, no split and no schedule more"
            f" than {of_these}"
        )
    else:
        yield (
            "proved: on these pipelines, no split and no schedule serves more than"
            f" {of_these} requests/s under the limits of this runtime"
        )
    yield describe_fluid(plan)


def describe_fluid(plan: PlacementPlan) -> str:
    """Say what is proved in the fluid model over all placements."""
    found, result, query = plan.throughput, plan.result, plan.query
    assert found is not None
    stages = f"with pipelines of at most {count(query.max_stages, 'stage')}"
    if result.problem.objective is PlacementObjective.COST:
        money = f" {query.machines.currency}" if query.machines.currency else ""
        price = f"{plan.price_per_hour:.4g}{money} per hour"
        if not plan.price_per_hour:
            return "these machines cost nothing: they have no price"
        if math.isnan(found.fluid_bound):
            return f"not proved: whether less than {price} is enough"
        if found.fluid_gap <= 1e-6:
            return f"proved in the fluid model: no machines for less carry this rate, {stages}"
        return (
            f"in the fluid model, no machines for less than {found.fluid_bound:.4g}{money} per"
            f" hour carry this rate, {stages} (gap {found.fluid_gap:.1%})"
        )
    if result.problem.objective is PlacementObjective.LATENCY:
        text = f"in the fluid model, its mean latency is {_seconds(result.objective)}"
        if result.fluid_bound is None:
            return f"{text}; nothing is proved about others"
        return (
            f"{text}; proved: no placement has less than {_seconds(result.fluid_bound)} there,"
            f" {stages} (gap {result.fluid_gap:.1%})"
        )
    carries = f"in the fluid model, it carries {found.fluid_requests_per_s:.4g} requests/s"
    if math.isnan(found.fluid_bound):
        return f"{carries}; nothing is proved about others"
    if found.fluid_requests_per_s >= found.fluid_bound * (1 - EQUAL):
        return f"{carries}; proved: no placement carries more there, {stages}"
    return (
        f"{carries}; proved: no placement carries more than {found.fluid_bound:.4g} there,"
        f" {stages}"
    )


def unused_lines(plan: PlacementPlan) -> Iterator[str]:
    """Yield the machines that are left out, and why; and idle GPUs of the others."""
    for each in plan.unused:
        yield f"left out: {names_of(each.machines)}: {describe_reason(each)}"
    for name, n in plan.idle_gpus.items():
        whole = plan.query.fleet.machine(name).node.gpus
        yield f"idle: {n} of {count(whole, 'GPU')} of {name}"
    known = {name for each in plan.unused if each.why == RUNTIME for name in each.machines}
    for name, reason in plan.query.left_out.items():
        if name not in known:
            yield f"left out: {name}: {reason}"


def describe_reason(unused: UnusedMachine) -> str:
    """Write why a machine is left out."""
    return unused.reason
