"""A `Plan` as text: sentences and tables, which `str(plan)` and the HTML report share."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hypsolve.planning.degree_text import (
    before_split,
    degree_lines,
    left_out_lines,
    of_degree,
)
from hypsolve.planning.expected_errors import error_lines
from hypsolve.planning.layers import describe_cuts
from hypsolve.planning.rpc_links import describe_rpc
from hypsolve.planning.saturation import MET
from hypsolve.planning.slo_text import NOT_DRAINED, describe_slos, slo_lines
from hypsolve.planning.throughput import OF_USERS, QUEUES_FULL
from hypsolve.planning.upgrade_text import (
    CLEARLY,
    describe_bound,
    describe_upgrade,
    split_first,
)
from hypsolve.problem.units import count, show_seconds

if TYPE_CHECKING:
    from hypsolve.planning.forecast import Forecast
    from hypsolve.planning.plan import Alternative, NodePlan, Plan
    from hypsolve.planning.throughput import ServedSplit, Throughput

MAX_UPGRADES = 8  # printed
MAX_STAGES = 6  # whose slack is printed
EQUAL = 5e-4  # slack of a stage that is called a bottleneck beside the largest one
SHARE_OF = {
    "bottleneck": "of bottleneck", "path": "of path", "p0": "of p0",
    "mean_latency": "of latency alone",
    **dict.fromkeys(("throughput", "goodput", "cost"), "of latency alone"),
}  # fmt: skip
RULES = {"bottleneck": "the bottleneck", "p0": "P0", "path": "the path"}
"""Objectives of the paper, in words."""
HEADS = {
    "tier": "tier of the network, in the order in which requests pass",
    "nodes": "number and GPU of nodes that are alike",
    "holds": "blocks of each node: layers are counted from 0",
    "weights GB": "weights on each node, in 10^9 bytes",
    "KV GB": "KV cache on each node for the sequences of the query, in 10^9 bytes",
    "free GB": "memory left on each node, in 10^9 bytes",
    "node alone": "time of one request on one such node",
    "stage": "time of one request on the tier: of all its nodes together under the objective"
    " bottleneck, else of its fastest node",
    "link": "time of one request on the link to the next tier: how long it keeps the link busy"
    " under the objective bottleneck, else with all latencies, there and back",
    "of bottleneck": "stage and link, as a share of the bottleneck stage and its link",
    "of path": "stage and link, as a share of the path",
    "of p0": "stage and link, as a share of the objective p0",
    "of latency alone": "stage and link, as a share of the latency of one request alone",
}
"""Heads of `rows_of_nodes`, explained."""


WITHOUT_EXPORT = ("tensorrt-llm",)
"""Runtimes of the catalogue that `hypsolve.export` writes no commands of."""


def text(plan: Plan) -> str:
    """Return the text that `hypsolve plan` prints."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    if plan.interrupted:
        yield f"stopped: {plan.stopped}"
    limit, tokens = plan.model.context_tokens, plan.query.tokens
    if limit and tokens > limit:
        yield (
            f"warning: {tokens} tokens are longer than the {limit} tokens the model was made"
            " for: runtimes may refuse them"
        )
    if lines := slo_lines(plan):
        yield from (*lines, "")
    yield f"{title(plan)}: {describe_query(plan)}"
    if plan.query.left_out:
        yield describe_left_out(plan)
    said = {*plan.query.left_out, *plan.query.too_small}
    if names := [name for name in plan.unused_nodes if name not in said]:
        yield f"left out: {', '.join(names)} (in no pipeline of this plan)"
    yield from left_out_lines(plan)
    yield ""
    if not plan.fits:
        verdict, *details = infeasible_lines(plan)
        yield verdict
        yield from (f"  {line}" for line in details)
        yield from degree_lines(plan)
        yield from placement_lines(plan)
    else:
        yield table(rows_of_nodes(plan))
        if plan.forecast is not None and plan.slo_answer is None:
            # before the proof, which is of another quantity
            yield judge_load(plan.forecast).words
        yield describe_proof(plan)
        yield from rate_lines(plan)
        yield from placement_lines(plan)
        yield describe_bottleneck(plan)
        if pairs := describe_pipelines(plan):
            yield pairs
        if idle := describe_idle(plan):
            yield idle
        yield from degree_lines(plan)
        if ways := describe_rpc(plan.query.network, plan.query.runtime):
            yield ways
        if plan.forecast is not None:
            # the proof is of another quantity, so what it misses stands beside it
            yield from alternatives_lines(plan)
            yield from forecast_lines(plan)
            yield from error_lines(plan)
        if plan.query.runtime.name in WITHOUT_EXPORT:
            yield f"to export: --export json or yaml; {plan.query.runtime.name} has no format"
    if plan.stopped and not plan.interrupted:
        yield f"stopped: {plan.stopped}"
    if plan.upgrades or not plan.stopped:
        yield ""
        yield upgrade_title(plan)
        yield from (f"  {line}" for line in upgrade_lines(plan))


def describe_left_out(plan: Plan) -> str:
    """Name the nodes that the runtime does not run on."""
    runtime = plan.query.runtime
    names, platforms = ", ".join(plan.query.left_out), ", ".join(runtime.platforms)
    return f"left out: {names} (runtime {runtime.name} runs on {platforms})"


def title(plan: Plan) -> str:
    """Name model and network; mark times that were not measured."""
    mark = " (extrapolated: no times of such weights were measured)"
    return (
        f"{plan.model.name} on {plan.network.network.name}"
        f"{mark if plan.model.extrapolated else ''}"
    )


def describe_query(plan: Plan) -> str:
    """Describe the requests of the query."""
    query, n = plan.query, plan.query.n_reserved
    why = ""
    if query.has_pipelines and n == query.runtime.max_num_seqs < query.concurrency:
        why = f" (all that runtime {query.runtime.name} runs at once, of {query.concurrency})"
    lengths = f"{query.prompt_tokens} + {query.output_tokens} tokens"
    if query.requests is not None:
        lengths = query.requests.describe()
    return f"{lengths}, KV cache for {count(n, 'sequence')}{why}"


def infeasible_lines(plan: Plan) -> list[str]:
    """Return why nothing fits: the verdict, then a line per tier, then a hint."""
    verdict, *tiers = plan.reasons
    wide = [
        tier.name
        for k, tier in enumerate(plan.network.network.tiers)
        if len(tier.nodes) > 1 and plan.network.inner_link(k) is None
    ]
    hint = []
    if wide:
        hint = [
            "each node of a tier holds all of its blocks; with a link `inner` in the network"
            f" file ({', '.join(wide)}), they can be stages in a row"
        ]
    return [f"{plan.result.status}: {verdict}", *tiers, *hint]


def rows_of_nodes(plan: Plan) -> list[dict[str, str]]:
    """Return a row per group of nodes that are alike; `HEADS` explains the columns."""
    rows: list[dict[str, str]] = []
    stages = {stage.tier: stage for stage in plan.stages}
    for (tier, *_), alike in itertools.groupby(plan.nodes, key=_alike):
        nodes = list(alike)
        node, stage = nodes[0], stages[tier]
        # the nodes of all rows of a tier are one stage, which the first row states
        is_first = not any(row["tier"] == tier for row in rows)
        rows.append(
            {
                "tier": tier,
                "nodes": f"{len(nodes)} x {node.describe_gpus()}",
                "holds": plan.describe_blocks(node.blocks) if node.is_used else "unused",
                "weights GB": f"{node.weight_bytes / 1e9:.2f}",
                "KV GB": f"{node.kv_bytes / 1e9:.2f}",
                "free GB": f"{node.free_bytes / 1e9:.2f}",
                "node alone": show_seconds(node.time_s) if node.is_used else "-",
                "stage": show_seconds(stage.time_s) if is_first else "",
                "link": show_seconds(stage.link_s) if is_first else "",
                SHARE_OF[plan.query.objective]: _share(stage.share) if is_first else "",
            }
        )
    return rows


def _share(share: float) -> str:
    """Format a share; one that is close to the whole gets a digit more."""
    return f"{share:.1%}" if 0.995 <= share < 0.9995 else f"{share:.0%}"


def describe_proof(plan: Plan) -> str:
    """State in one sentence what is proved about the split."""
    found = plan.throughput
    is_of_all = found is not None and found.bound_is_of_all_nodes
    of_nodes = " of these nodes" if plan.unused_nodes and not is_of_all else ""
    if plan.throughput is not None:
        return describe_rate(plan.throughput, of_nodes + of_degree(plan), before_split(plan))
    result = plan.result
    value = show_seconds(result.objective_s)
    of = ", requests one at a time"
    if plan.query.is_simulated:
        of = f", of the requests simulated at {plan.query.rate_per_s:g} per second"
    instance = result.instance
    over = " over all tiers" if instance.n_tiers > 1 and not instance.allow_empty else ""
    over = f"{of_nodes}{over}"
    if str(result.status) == "optimal":
        return f"proved optimal: no split{over} has a {plan.objective_name} below {value}{of}"
    if result.bound_s > 0:
        return (
            f"not proved optimal: no split{over} has a {plan.objective_name} below"
            f" {show_seconds(result.bound_s)}, this one has {value} (gap {result.gap:.2%}){of}"
        )
    return f"nothing proved: this split has a {plan.objective_name} of {value}{of}"


def describe_rate(found: Throughput, of_nodes: str = "", before: str = "") -> str:
    """State what a split serves in simulation, and what no other one exceeds.

    `of_nodes` says of which nodes and degrees the other splits are, and `before` what else
    none exceeds.
    """
    proved = (
        f"proved: {before}no split{of_nodes} and no schedule serves more than"
        f" {found.bound_requests_per_s:.3g} under the limits of this runtime"
    )
    if "targets" in found.quantity:
        proved += ", with or without targets"
    elif not math.isnan(found.users_bound_requests_per_s):
        proved = proved.replace("serves more", "serves these users more")
    if math.isnan(found.simulated_requests_per_s):
        return f"the rate within the targets was not found in time; {proved}"
    at_least = "at least " * found.is_lower_bound
    quantity = "requests/s" if found.quantity == QUEUES_FULL else found.quantity
    end = "last completion"
    if found.quantity == OF_USERS:  # the bound counts each request with the pause after it
        end = "end of the last think time"
    return (
        f"simulated over {found.n_requests} requests, from the first arrival to the {end}, it"
        f" serves {at_least}{found.simulated_requests_per_s:.3g} {quantity};"
        f" {proved} (gap {'at most ' * found.is_lower_bound}{found.gap:.1%})"
        f"{_of_users(found, of_nodes)}{_unconfirmed(found)}"
    )


def _unconfirmed(found: Throughput) -> str:
    """Say that no long simulation has confirmed a rate; empty if one has."""
    if found.splits[0].is_confirmed:
        return ""
    return (
        "; in time, no long simulation has confirmed this rate within the targets: queues may"
        " build up at it, so that less is served"
    )


def _of_users(found: Throughput, of_nodes: str) -> str:
    """Say what users get where the rate of all arrivals is maximised; empty without users."""
    if "targets" not in found.quantity or math.isnan(found.users_requests_per_s):
        return ""
    return (
        f"; these users wait for their answers and get {found.users_requests_per_s:.3g}"
        f" requests/s within the targets; proved: no split{of_nodes} and no schedule serves"
        f" them more than {found.users_bound_requests_per_s:.3g}"
    )


def rate_lines(plan: Plan) -> list[str]:
    """Return what the model of batches says, and what splits for other objectives serve."""
    found = plan.throughput
    if found is None:
        return []
    best = (
        f"best of {len(found.splits)} splits that were simulated; in the fluid model the best"
        f" split of all serves {found.fluid_requests_per_s:.3g}"
    )
    if not found.fluid_requests_per_s:
        best = (
            f"best of {len(found.splits)} splits that were simulated; in the fluid model no"
            " split meets the targets at any rate"
        )
    return [best, *([rules] if (rules := describe_rules(found)) else [])]


def placement_lines(plan: Plan) -> list[str]:
    """Say what a placement serves that ignores the order of the tiers, if that is more.

    The list is empty or has one line, which names the command of the placement.
    """
    found = plan.placement_instead
    if found is None:
        return []
    n = len(found.machines)
    line = (
        f"without the order of the tiers: {count(found.pipelines, 'pipeline')} on {n} of"
        f" {count(n + len(found.unused), 'machine')} would serve"
        f" {'at least ' * found.is_lower_bound}{found.requests_per_s:.3g}"
        f" {'requests/s' if found.quantity == QUEUES_FULL else found.quantity}, simulated"
    )
    if plan.throughput is not None and plan.value > 0:
        at_most = "up to " * plan.throughput.is_lower_bound
        line += f", {at_most}{found.requests_per_s / plan.value:.2f} times as many"
    command = f"hypsolve place --runtime {found.runtime}"
    return [f"{line}: {command}, with --machines in place of --network, shows them"]


def describe_rules(found: Throughput) -> str:
    """Say what the paper's splits, for requests one at a time, would serve in batches.

    HypSplit-DP finds all of them. The text is empty if none was simulated.
    """
    best, *others = found.splits
    said = []
    for split in sorted(others, key=lambda each: [rule not in each.best_for for rule in RULES]):
        if split.best_for and not math.isnan(
            split.simulated_requests_per_s + best.simulated_requests_per_s
        ):
            most = best.simulated_requests_per_s
            share = 1 - split.simulated_requests_per_s / most if most else 0.0
            said.append(
                f"for {_rules(split)} (layers {describe_cuts(split.cuts)}) would serve"
                f" {split.simulated_requests_per_s:.3g} requests/s,"
                f" {abs(share):.0%} {'less' if share >= 0 else 'more'}{_but(found, split)}"
            )
    if best.best_for:
        said.append(f"for {_rules(best)} is this one")
    return f"requests one at a time: HypSplit-DP's split {'; '.join(said)}" if said else ""


def _but(found: Throughput, split: ServedSplit) -> str:
    """Say why a split that serves a larger rate was not chosen; empty if it serves less."""
    best = found.splits[0]
    if split.simulated_requests_per_s <= best.simulated_requests_per_s:
        return ""
    if found.objective == "cost":
        return ", at a higher price per request"
    if split.slo_attainment < MET:
        more = " more of" * (best.slo_attainment < MET)
        return f", but not{more} these users"
    return ", within the noise of simulations"


def _rules(split: ServedSplit) -> str:
    """Name the objectives of the paper that a split is the best for."""
    return " and ".join(words for rule, words in RULES.items() if rule in split.best_for)


def describe_bottleneck(plan: Plan) -> str:
    """Name the bottleneck stage and the slack of the others, or the largest share."""
    critical = plan.bottleneck_stage
    binds = f" ({critical.describe_limit()})" if critical.binds else ""
    if plan.query.objective != "bottleneck":
        return f"largest share: {critical.tier} {critical.share:.0%}{binds}"
    slack = sorted((1 - stage.share, stage.tier) for stage in plan.stages)
    full = [tier for share, tier in slack if share < EQUAL or tier == critical.tier]
    slack = [(share, tier) for share, tier in slack if tier not in full]
    others = ", ".join(f"{tier} {_slack(share)}" for share, tier in slack[:MAX_STAGES])
    if len(slack) > MAX_STAGES:
        others += f", and {len(slack) - MAX_STAGES} with more"
    words = f"; slack of the others: {others}" if others else ""
    return f"bottleneck stage{'s' * (len(full) > 1)}: {', '.join(full)}{binds}{words}"


def describe_pipelines(plan: Plan) -> str:
    """Say which GPUs of the tiers form pipelines; empty if all pipelines are alike.

    Pipeline i has the i-th node of each tier in the plan, in the simulation and in the commands
    of `hypsolve.export`.
    """
    of_tier = _nodes_of_pipelines(plan)
    pipelines = list(zip(*of_tier.values(), strict=False))
    kinds = Counter(tuple(node.describe_gpus() for node in nodes) for nodes in pipelines)
    if len(kinds) < 2 or len(of_tier) < 2:
        return ""
    rows = [f"{n} x {' -> '.join(gpus)}" for gpus, n in kinds.items()]
    shown = ", ".join(rows[:MAX_STAGES]) + ", ..." * (len(rows) > MAX_STAGES)
    return f"pipelines: {shown}"


def describe_idle(plan: Plan) -> str:
    """Name the nodes that hold a stage but are in no pipeline; empty if there are none."""
    of_tier = _nodes_of_pipelines(plan)
    n_pipelines = min(map(len, of_tier.values()), default=0)
    idle = [node.node for nodes in of_tier.values() for node in nodes[n_pipelines:]]
    if not idle:
        return ""
    fewest = next(tier for tier, nodes in of_tier.items() if len(nodes) == n_pipelines)
    shown = ", ".join(idle[:MAX_STAGES]) + ", ..." * (len(idle) > MAX_STAGES)
    return (
        f"idle: {shown}; a pipeline takes one node of each tier, and {fewest} has"
        f" {n_pipelines}; with `inner` links in the network file, they can be stages in a row"
    )


def _nodes_of_pipelines(plan: Plan) -> dict[str, list[NodePlan]]:
    """Return the nodes that hold a stage, by tier; none if batches pass no whole pipelines."""
    of_tier: dict[str, list[NodePlan]] = {}
    if plan.query.has_pipelines:
        for node in plan.nodes:
            if node.is_used:
                of_tier.setdefault(node.tier, []).append(node)
    return of_tier


def _slack(share: float) -> str:
    return f"{share:.1%}" if share < 0.01 else f"{share:.0%}"


class Verdict(NamedTuple):
    """What a forecast says of the load that was asked for, in words."""

    words: str
    is_met: bool | None  # None: not known


def judge_load(forecast: Forecast) -> Verdict:
    """Say whether the load that was asked for is served, and within the targets.

    Targets are met if `MET` of the requests are within them.
    """
    load, is_met = forecast.load, forecast.keeps_up
    rate, most = f"{load.rate_per_s:g} requests/s", rate_sustained(forecast)
    if load.users is not None:
        words = f"{load.describe()} are served {forecast.requests_per_s:.3g} requests/s"
    elif is_met is None:
        words = f"whether it keeps up with {rate} takes too long to simulate"
    elif is_met:
        words = f"it keeps up with the {rate} that were asked for"
    else:
        most = f"; it sustains {most}" if most else ""
        why = "latencies grow without end" if forecast.drains else NOT_DRAINED
        words = f"it cannot keep up with {rate}: {why}{most}"
    share = forecast.slo_attainment
    if math.isnan(share):
        return Verdict(words, is_met)
    is_within = share >= MET
    but = ", and" if is_within else ", but only" if is_met else ", and only"
    words += f"{but} {share:.1%} of the requests are within {describe_slos(load)}"
    return Verdict(words, is_met and is_within if is_within else False)


def rate_sustained(forecast: Forecast | Alternative) -> str:
    """Write the largest sustainable rate with its unit; empty if it is not known."""
    if math.isnan(forecast.max_requests_per_s):
        return ""
    about = describe_bound(forecast.max_rate_is_lower_bound)
    return f"{about} {forecast.max_requests_per_s:.3g} requests/s"


def forecast_lines(plan: Plan) -> list[str]:
    """Return the forecast of a plan in sentences, without the verdict on its load."""
    assert plan.forecast is not None
    return describe_forecast(plan.forecast)[1:]


def describe_forecast(forecast: Forecast) -> list[str]:
    """Return a forecast in sentences; the first one judges the load."""
    load = forecast.load
    lines = [judge_load(forecast).words]
    n_of = f"{forecast.n_requests} of them " * (load.mix is not None)
    lines += [f"with {load.describe()}, {n_of}simulated token by token: {_served(forecast)}"]
    times = {"TTFT": forecast.ttft_s, "TPOT": forecast.tpot_s, "latency": forecast.latency_s}
    if forecast.is_settled or not forecast.drains:
        lines += [f"  {name:<8}{summary}" for name, summary in times.items() if summary.n]
    else:
        lines.append(f"  latencies are not settled: {_why_not_settled(forecast)}")
    if not math.isnan(forecast.slo_attainment):
        settled = forecast.is_settled or not forecast.drains
        mark = "" if settled else f" over {forecast.n_requests} requests, not settled either"
        lines.append(
            f"  goodput {forecast.goodput_requests_per_s:.3g} requests/s within the targets"
            f"{mark}"
        )
    rate = _largest_rate(forecast)
    lines += [
        f"{rate}; under the limits of this runtime, with one message at a time on a link, no"
        f" schedule of this split serves {'these users ' * (load.users is not None)}more than"
        f" {forecast.bound_requests_per_s:.3g}",
        f"memory has room for {forecast.max_sequences} sequences at once{_running(forecast)},"
        f" or one of {forecast.max_context_tokens} tokens",
        *([] if load.mix is None else [load.mix.describe_representatives()]),
        _load(forecast),
        forecast.runtime,
        *_costs(forecast),
    ]
    return lines


def _why_not_settled(forecast: Forecast) -> str:
    """Say why the latencies of a simulation are not those of a load that goes on."""
    n = forecast.n_requests
    if forecast.keeps_up is None:
        return f"{n} requests are too few for {forecast.mean_in_flight:.3g} under way"
    return f"the queue still grows after {n} requests"


def _largest_rate(forecast: Forecast) -> str:
    """Say which rate is sustained; users in a closed loop never send more than is served."""
    rate_per_s = forecast.max_requests_per_s
    if forecast.load.users is not None:
        waits = "users wait for their answers, so requests never pile up"
        if not rate_per_s > forecast.requests_per_s:  # a coarse rate below what is served
            return waits
        about = f"{describe_bound(forecast.max_rate_is_lower_bound)} {rate_per_s:.3g}"
        return f"{waits}; if requests came at a rate instead, it would keep up with {about}"
    if math.isnan(rate_per_s):
        return "the largest rate that it keeps up with takes too long to simulate"
    if is_asked_rate(forecast):
        return (
            f"it keeps up with the {rate_per_s:.3g} requests/s that were asked for; the largest"
            " rate was not found in time"
        )
    limit = f", limited by {forecast.limited_by}" if forecast.limited_by else ""
    cut = " (the search for more was cut short)" if forecast.max_rate_is_lower_bound else ""
    about = describe_bound(forecast.max_rate_is_lower_bound)
    return f"it keeps up with {about} {rate_per_s:.3g} requests/s{cut}{limit}"


def is_asked_rate(forecast: Forecast) -> bool:
    """Return whether no larger rate than that of the load is known: it is no result."""
    rate_per_s = forecast.max_requests_per_s
    return forecast.max_rate_is_lower_bound and rate_per_s == forecast.load.rate_per_s


def _served(forecast: Forecast) -> str:
    """Say what is served at the load, and how many requests are in flight."""
    if not forecast.drains:
        return (
            f"{NOT_DRAINED}, and it then serves about {forecast.requests_per_s:.3g} requests/s;"
            " before there is one:"
        )
    return (
        f"{forecast.requests_per_s:.3g} requests/s, {forecast.output_tokens_per_s:.4g} output"
        f" tokens/s, {forecast.mean_in_flight:.3g} requests in flight"
    )


def _load(forecast: Forecast) -> str:
    """Say which share of the largest rate is asked for, and how long GPUs compute."""
    share = share_of_rate(forecast)
    busy = f"GPUs in use compute {forecast.utilisation:.0%} of the time"
    if not share:
        return f"{busy}, which tells nothing about the room in batches"
    return f"load: {share}; {busy} (a busy GPU may have room in its batches)"


def share_of_rate(forecast: Forecast) -> str:
    """Say which share of the largest rate is asked for; empty if that rate is not known."""
    if math.isnan(forecast.share_of_max_rate):
        return ""
    at_most = "at most " * forecast.max_rate_is_lower_bound
    return f"{at_most}{forecast.share_of_max_rate:.0%} of the largest rate"


def _running(forecast: Forecast) -> str:
    """Say how many sequences run at once, if memory has room for more."""
    n = forecast.max_running_sequences
    return f" (at most {n} run at once)" if n < forecast.max_sequences else ""


def _costs(forecast: Forecast) -> list[str]:
    """Return energy and price in sentences."""
    lines = ["energy: unknown, because a GPU has no power_w"]
    if math.isfinite(forecast.joules_per_token):
        lines = [
            f"energy: {forecast.joules_per_token:.3g} J per output token (while GPUs are busy)"
        ]
    money = f" {forecast.currency}" if forecast.currency else ""
    if math.isfinite(forecast.price_per_million_tokens):
        unused = ""
        if forecast.unused_price_per_hour:
            unused = (
                f"; unused nodes: {forecast.unused_price_per_hour:.4g}{money} per hour more"
            )
        lines.append(
            f"price: {forecast.price_per_million_tokens:.4g}{money} per million output tokens"
            f" at this load, for the nodes in use{unused}"
        )
    return lines


def alternatives_lines(plan: Plan) -> list[str]:
    """Return splits for other objectives that serve more, or sooner, in simulation."""
    forecast, lines = plan.forecast, []
    assert forecast is not None
    for other in plan.alternatives:
        more = other.max_requests_per_s > forecast.max_requests_per_s * CLEARLY
        more = more and not forecast.max_rate_is_lower_bound  # which may be larger
        sooner = other.latency_mean_s * CLEARLY < forecast.latency_s.mean
        if more or sooner:
            rate = (
                f"keeps up with {'more requests: ' * more}"
                f"{describe_bound(other.max_rate_is_lower_bound)}"
                f" {other.max_requests_per_s:.3g} requests/s"
            )
            if math.isnan(other.max_requests_per_s):
                rate = "keeps up with a rate that takes too long to simulate"
            latency = (
                f"has a {'lower ' * sooner}mean latency of"
                f" {show_seconds(other.latency_mean_s)} instead of"
                f" {show_seconds(forecast.latency_s.mean)}"
            )
            facts = [rate, latency] if more else [latency, rate]
            joined = (" and " if more and sooner else ", but ").join(facts)
            lines.append(
                f"but in batches, simulated, the split of --objective {other.objective} (layers"
                f" {describe_cuts(other.cuts)}) {joined}"
            )
    return lines


def upgrade_title(plan: Plan) -> str:
    """Return the title of the list of upgrades."""
    what = "what would help" if plan.fits else "what would make it fit"
    nothing = "nothing that was tried"
    share = math.nan if plan.forecast is None else plan.forecast.slo_attainment
    if plan.slo_answer is not None and plan.slo_answer.upgrade is not None:
        nothing = "nothing else that was tried"  # that one is in the answer
    if plan.slo_answer is not None and not plan.slo_answer.keeps_up:
        nothing += " lets it keep up with this load"
    elif share == 1:
        nothing = "nothing; all requests are within the targets at this load"
    elif share < 1:
        nothing += " brings more requests within the targets"
    is_listed = bool(plan.upgrades or split_first(plan))
    return f"{what}, simulated" + ("" if is_listed else f": {nothing}")


def upgrade_lines(plan: Plan) -> list[str]:
    """Return the best upgrades, each with what it improves, its gain and its price.

    If another split is better, too, the first line says so: that gain needs no upgrade.
    """
    return [
        f"{upgrade.what}: {describe_upgrade(upgrade, plan.network.currency)}"
        for upgrade in (*split_first(plan), *plan.upgrades[:MAX_UPGRADES])
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as aligned text: numbers to the right, the last column of any width."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(names))]
    right = [all(row[at][:1].isdigit() or row[at] in ("-", "") for row in cells[1:])
             for at in range(len(names))]  # fmt: skip
    lines = []
    for row in cells:
        padded = (
            word.rjust(width) if is_number else word.ljust(width)
            for word, width, is_number in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _alike(node: NodePlan) -> tuple[Any, ...]:
    return node.tier, node.describe_gpus(), node.free_bytes, node.is_used, node.time_s
