"""A `Plan` and what is known of it, in words and tables."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hypsolve.planning.what_if import SEARCH_S
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import show_seconds

if TYPE_CHECKING:
    from hypsolve.planning.plan import NodePlan, Plan

MAX_CHANGES = 8  # told
MAX_STAGES = 6  # whose slack is told
CLEARLY = 1.02  # better in a simulation
SHARE_OF = {
    "bottleneck": "of the bottleneck", "path": "of the path", "p0": "of p0",
    "mean_latency": "of one alone",
}  # fmt: skip


def text(found: Plan) -> str:
    """What `hypsolve plan` prints."""
    return "\n".join(_lines(found))


def _lines(found: Plan) -> Iterator[str]:
    yield title(found)
    yield ""
    if not found.fits:
        yield from infeasible_lines(found)
    else:
        yield table(rows_of_nodes(found))
        yield describe_proof(found)
        yield describe_bottleneck(found)
        if found.service is not None:
            yield from service_lines(found)
            yield from alternatives_lines(found)
    limit = found.model.context_tokens
    if limit and found.prompt_tokens + found.output_tokens > limit:
        yield f"longer than the {limit} tokens the model was made for: runtimes may refuse it"
    if found.stopped:
        yield f"stopped: {found.stopped}"
    if found.changes or not found.stopped:
        yield ""
        yield changes_title(found)
        yield from (f"  {line}" for line in changes_lines(found))


def title(found: Plan) -> str:
    """Model, network, and what was asked."""
    mark = " (extrapolated: no times of such weights were measured)"
    return (
        f"{found.model.name} on {found.network.network.name}"
        f"{mark if found.model.extrapolated else ''}:"
        f" {found.prompt_tokens} + {found.output_tokens} tokens, room for"
        f" {found.concurrency} sequences"
    )


def infeasible_lines(found: Plan) -> list[str]:
    """Why nothing fits: the verdict, then tier by tier what it needs and has."""
    result, site = found.result, found.network
    wide = [
        tier.name
        for k, tier in enumerate(site.network.tiers)
        if len(tier.nodes) > 1 and site.inner_link(k) is None
    ]
    hint = []
    if wide:
        hint = [
            f"  each node of a tier holds all of its blocks; with a link `inner` in the network"
            f" file ({', '.join(wide)}), they can be stages in a row"
        ]
    verdict, _, tiers = result.message.partition(". ")
    lines = re.split(r"; (?=tier )", tiers) if tiers else []
    return [f"{result.status}: {verdict}", *(f"  {line}" for line in lines), *hint]


def rows_of_nodes(found: Plan) -> list[dict[str, str]]:
    """A row for each group of nodes that are alike."""
    rows = []
    stages = {stage.tier: stage for stage in found.stages}
    for (tier, *_), alike in itertools.groupby(found.nodes, key=_alike):
        nodes = list(alike)
        node, stage = nodes[0], stages[tier]
        rows.append(
            {
                "tier": tier,
                "nodes": f"{len(nodes)} x {node.gpu}",
                "blocks": found.describe_blocks(node.blocks) if node.is_used else "unused",
                "weights GB": f"{node.weight_bytes / 1e9:.2f}",
                "KV GB": f"{node.kv_bytes / 1e9:.2f}",
                "free GB": f"{node.free_bytes / 1e9:.2f}",
                "alone": show_seconds(node.time_s) if node.is_used else "-",
                "stage": show_seconds(stage.time_s),
                "link": show_seconds(stage.link_s),
                SHARE_OF[found.objective]: f"{stage.share:.0%}",
            }
        )
    return rows


def describe_proof(found: Plan) -> str:
    """What is known of the split, in a sentence."""
    result = found.result
    what = found.objective.replace("_", " ")
    value = show_seconds(result.objective_s)
    of = ", requests one at a time"
    if found.objective == "mean_latency":
        of = f", of the requests simulated at {found.rate_per_s:g} a second"
    instance = result.instance
    over = " over all tiers" if instance.n_tiers > 1 and not instance.allow_empty else ""
    if str(result.status) == "optimal":
        return f"proved optimal: no split{over} has a {what} below {value}{of}"
    if result.bound_s > 0:
        return (
            f"not proved optimal: no split{over} has a {what} below"
            f" {show_seconds(result.bound_s)}, this one has {value} (gap {result.gap:.2%}){of}"
        )
    return f"nothing proved: this split has a {what} of {value}{of}"


def describe_bottleneck(found: Plan) -> str:
    """The stage that binds and the slack of the others, or the largest share."""
    binding = found.binding
    if found.objective != "bottleneck":
        return f"largest share: {binding.tier} {binding.share:.0%}"
    slack = sorted(
        ((1 - stage.share, stage.tier) for stage in found.stages if stage is not binding),
        key=lambda each: each[0],
    )
    others = ", ".join(f"{tier} {_slack(share)}" for share, tier in slack[:MAX_STAGES])
    if len(slack) > MAX_STAGES:
        others += f", and {len(slack) - MAX_STAGES} with more"
    return f"binds: {binding.tier}" + (f"; slack of the others: {others}" if others else "")


def service_lines(found: Plan) -> list[str]:
    """What to expect, in sentences."""
    service = found.service
    assert service is not None
    then = ""
    if not math.isnan(service.tpot_s):
        then = f", then {show_seconds(service.tpot_s)} a token"
    most = service.max_requests_per_s
    about = "rates that take too long to simulate"
    if not math.isnan(most):
        about = f"about {most:.3g} requests/s (simulated)"
    lines = [
        f"at {service.rate_per_s:g} requests/s (simulated token by token): first token after"
        f" {show_seconds(service.ttft_s)}{then};"
        f" latency p50 {show_seconds(service.latency_p50_s)},"
        f" p95 {show_seconds(service.latency_p95_s)}",
        f"it keeps up with {about}; no schedule of this split"
        f" serves more than {service.bound_requests_per_s:.3g}",
        f"room for {service.max_sequences} sequences at once, or one of"
        f" {service.max_context_tokens} tokens; GPUs at work {service.utilisation:.0%} of the"
        " time",
    ]
    if math.isfinite(service.joules_per_token):
        lines.append(
            f"energy: {service.joules_per_token:.3g} J per output token (while GPUs are busy)"
        )
    else:
        lines.append("energy: not known, for a GPU has no power_w")
    if math.isfinite(service.price_per_million_tokens):
        price = service.price_per_million_tokens
        lines.append(f"price: {price:.4g} per million output tokens")
    if service.keeps_up is None:
        lines.append("whether it keeps up with this rate takes too long to simulate")
    elif not service.keeps_up:
        lines.append("it cannot keep up with this rate: latencies only grow")
    return lines


def _slack(share: float) -> str:
    return f"{share:.1%}" if share < 0.01 else f"{share:.0%}"


def alternatives_lines(found: Plan) -> list[str]:
    """Splits for other objectives that serve more, or sooner, in simulation."""
    service, lines = found.service, []
    assert service is not None
    for other in found.alternatives:
        more = other.max_requests_per_s > service.max_requests_per_s * CLEARLY
        sooner = other.latency_mean_s * CLEARLY < service.latency_mean_s
        if more or sooner:
            words = " and ".join(["more"] * more + ["sooner"] * sooner)
            lines.append(
                f"simulated, the split for {other.objective} ({Partition(other.cuts)}) serves"
                f" {words}: about {other.max_requests_per_s:.3g} requests/s, mean latency"
                f" {show_seconds(other.latency_mean_s)}, not"
                f" {show_seconds(service.latency_mean_s)}; see --objective"
            )
    return lines


def changes_title(found: Plan) -> str:
    """Of the list of changes."""
    how = f"searched for {SEARCH_S:g} s" if found.objective == "mean_latency" else "solved"
    what = "what would help" if found.fits else "what would make it fit"
    return f"{what}, each {how}" + ("" if found.changes else ": none of what was tried")


def changes_lines(found: Plan) -> list[str]:
    """The best changes, and what each comes to."""
    lines = []
    for change in found.changes[:MAX_CHANGES]:
        saves = "" if math.isnan(change.gain) else f", {change.gain:.1%} less"
        lines.append(f"{change.what}: {show_seconds(change.objective_s)}{saves}")
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in lines: numbers to the right, the last column as long as it is."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(names))]
    right = [all(row[at][:1].isdigit() or row[at] == "-" for row in cells[1:])
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
    return node.tier, node.gpu, node.free_bytes, node.is_used, node.time_s
