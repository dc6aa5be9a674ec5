"""`write_placement_report`: a `PlacementPlan` as one HTML file that loads nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from html import escape

from hypsolve.planning.html_page import (
    html_figure,
    made,
    page_end,
    page_head,
    tiles,
    write_page,
)
from hypsolve.planning.html_parts import html_table, sentence
from hypsolve.planning.place_figure import draw_placement, placement_height
from hypsolve.planning.place_text import (
    answer_lines,
    assumption_lines,
    describe_load,
    describe_placement,
    proof_lines,
    rate_lines_of_placement,
    rows_of_stages,
    show_rate,
    unused_lines,
)
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.throughput import QUEUES_FULL
from hypsolve.problem import validation as valid
from hypsolve.problem.units import show_seconds
from hypsolve.simulation.metrics import Summary

CAPTION = (
    "Pipelines over the sites: each box is a stage, with its machine, its GPUs and its layers;"
    " equal pipelines share boxes, and dashed boxes are machines that are left out."
)
HEADS = {
    "machine": "machine of each stage, in the order in which requests pass; equal pipelines"
    " share a row",
    "GPUs": "GPUs that compute as one",
    "holds": "layers of the stage, counted from 0; embedding and head are with the first and"
    " the last",
    "requests/s": "simulated, of each pipeline",
    "share": "of all requests, which the router sends there",
    "TTFT p95": "seconds to the first token that 95% of its requests do not exceed",
    "TPOT p95": "seconds per later token, likewise",
    "limited by": "what limits its rate in the fluid model",
}
OTHER_HEADS = {
    "fluid model": "requests/s that it carries in the fluid model, which neglects waves of"
    " batches",
    "simulated": "requests/s, pipeline by pipeline; briefly, but for the best ones",
}


@valid.suggest_keywords("write_placement_report")
def write_placement_report(
    plan: PlacementPlan, path: str | os.PathLike[str], *, command: str = ""
) -> None:
    """Write a placement as one HTML file: pipelines over sites, rates, proof, sources.

    The file loads nothing, runs no script, and also holds the plan as JSON. It follows the
    light or dark colour scheme of the reader. Needs matplotlib.

    Parameters
    ----------
    plan : PlacementPlan
    path : str or path
        Ends in ``.html``.
    command : str
        Command that made the plan, which the report states.

    Raises
    ------
    ValueError
        If `path` has another ending, or matplotlib is missing.
    OSError
        If the folder does not exist or cannot be written to.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import hypsolve as hs
    >>> box = hs.Machine(node=hs.Node(name="box", gpu=hs.gpu("rtx-4090")), site="room")
    >>> room = hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4))
    >>> lab = hs.Fleet(name="lab", sites=(room,), machines=(box,))
    >>> plan = hs.place("llama-3-8b", lab, output_tokens=16, time_limit_s=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "plan.html"
    ...     write_placement_report(plan, path)
    ...     "<title>llama-3-8b on lab" in path.read_text()
    True
    """
    valid.of_type("write_placement_report", "plan", plan, PlacementPlan)
    write_page(path, _page(plan, command))


def _page(plan: PlacementPlan, command: str) -> Iterator[str]:
    query = plan.query
    name = f"{query.model.name} on {query.fleet.name}"
    yield from page_head(f"{name}: hypsolve placement")
    yield f"<h1>{escape(name)}</h1>"
    yield f'<p class="asked">{escape(_asked(plan))}</p>'
    yield from _verdict(plan)
    if plan.fits:
        yield tiles(_numbers(plan))
        yield "<h2>Pipelines</h2>"
        yield html_figure(
            "placement",
            CAPTION,
            draw=lambda ax, width: draw_placement(plan, ax, width),
            height=lambda width: placement_height(plan, width),
        )
        yield html_table(rows_of_stages(plan), HEADS)
    if lines := list(unused_lines(plan)):
        yield "<h2>Machines that are left out</h2>"
        items = (f"<li>{escape(line.removeprefix('left out: '))}</li>" for line in lines)
        yield f"<ul>{''.join(items)}</ul>"
    if plan.fits:
        yield "<h2>What is simulated, and what is proved</h2>"
        yield _items([*rate_lines_of_placement(plan), *proof_lines(plan)])
        yield from _others(plan)
        yield "<h2>Assumptions</h2>"
        yield _items(assumption_lines(plan))
    if rows := list(_links(plan)):
        yield "<h2>Links between sites</h2>"
        yield html_table(rows)
    yield "<h2>Sources</h2>"
    yield html_table(
        [{"subject": what, "source": source} for what, source in _sources(plan, command)]
    )
    yield from page_end(plan.to_dict(), "placement")


def _asked(plan: PlacementPlan) -> str:
    query = plan.query
    words = f"{query.describe()}; objective {query.objective}; runtime {query.runtime.name}"
    if query.asks_load:
        words += f"; {query.load.describe()}"
    return words


def _verdict(plan: PlacementPlan) -> Iterator[str]:
    """Yield the answer to the load, or what is placed, or why nothing is."""
    if not plan.fits:
        words = f"no placement of {plan.query.model.name} on {plan.query.fleet.name}"
        yield f'<div class="verdict none"><strong>{escape(sentence(words))}</strong>'
        yield f"{_items(plan.reasons)}</div>"
        return
    said = [] if plan.answer is None else list(answer_lines(plan))
    first, *more = (*said, describe_placement(plan))
    kind = "" if plan.is_met or not plan.query.asks_load else " none"
    strong, rest = _sentence(plan, first), " ".join(_sentence(plan, line) for line in more)
    if plan.stopped:
        rest += f" Stopped: {plan.stopped}."
    yield (f'<p class="verdict{kind}"><strong>{escape(strong)}</strong><br>{escape(rest)}</p>')


def _sentence(plan: PlacementPlan, line: str) -> str:
    """Return a line as a sentence; one that starts with a name keeps its first letter."""
    return f"{line}." if line.startswith(plan.query.model.name) else sentence(line)


def _items(lines: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence(line))}</li>' for line in lines)}</ul>"


def _numbers(plan: PlacementPlan) -> dict[str, str]:
    """Return the most important numbers by name, for tiles."""
    found, answer, query = plan.throughput, plan.answer, plan.query
    assert found is not None
    at_least = "at least " * found.is_lower_bound
    serves = "serves" if found.quantity == QUEUES_FULL else "serves within the targets"
    numbers = {serves: f"{at_least}{show_rate(found.simulated_requests_per_s)} requests/s"}
    if answer is not None:
        if answer.max_users is not None:
            more = "at least " * answer.max_users_is_lower_bound
            numbers["users within the targets"] = f"{more}{answer.max_users}"
        numbers["TTFT"] = _median_and_p95(answer.ttft_s)
        numbers["TPOT"] = _median_and_p95(answer.tpot_s)
        numbers["latencies with"] = describe_load(plan)
    every = len(query.fleet.machines) + len(query.left_out)
    numbers |= {
        "machines in use": f"{len(plan.machines)} of {every}",
        "pipelines": f"{len(plan.pipelines)}",
        "sequences at once": f"{sum(each.max_sequences for each in plan.pipelines)}",
    }
    if plan.price_per_hour:
        numbers["price per hour"] = _money(plan, plan.price_per_hour)
        numbers["price of 10^6 tokens"] = _money(plan, plan.price_per_million_tokens)
    if math.isfinite(found.bound_requests_per_s):
        numbers["no placement serves more than"] = (
            f"{show_rate(found.bound_requests_per_s)} requests/s"
        )
        numbers["gap"] = f"{found.gap:.1%}"
    return numbers


def _money(plan: PlacementPlan, value: float) -> str:
    return f"{value:.4g} {plan.query.machines.currency}".rstrip()


def _median_and_p95(times: Summary) -> str:
    if math.isnan(times.p50):
        return "nan"
    return f"{_seconds(times.p50)} (p95 {_seconds(times.p95)})"


def _seconds(seconds: float) -> str:
    return show_seconds(float(f"{seconds:.3g}"))


def _others(plan: PlacementPlan) -> Iterator[str]:
    """Yield a table of the placements that were simulated, if there are several."""
    assert plan.throughput is not None
    if len(plan.throughput.placements) < 2:
        return
    yield "<p>Placements that were simulated:</p>"
    rows = [
        {
            "placement": f"{each.origin}{' (this plan)' * (at == 0)}",
            "pipelines": f"{len(each.placement.pipelines)}",
            "machines": f"{len(each.placement.machines)}",
            "fluid model": f"{show_rate(each.fluid_requests_per_s)}",
            "simulated": f"{show_rate(each.simulated_requests_per_s)}",
        }
        for at, each in enumerate(plan.throughput.placements)
    ]
    yield html_table(rows, OTHER_HEADS)


def _links(plan: PlacementPlan) -> Iterator[dict[str, str]]:
    """Yield a row for every pair of sites that a link joins."""
    fleet = plan.query.fleet
    names = [site.name for site in fleet.sites]
    for i, start in enumerate(names):
        for end in names[i + 1 :]:
            link = fleet.site_link(start, end)
            if link is not None:
                yield {
                    "from": start,
                    "to": end,
                    "rate": f"{link.bytes_per_s * 8e-9:.3g} Gbit/s",
                    "latency there": _seconds(link.latency_s),
                    "and back": _seconds(link.round_trip_s - link.latency_s),
                }


def _sources(plan: PlacementPlan, command: str) -> Iterator[tuple[str, str]]:
    yield from made(command)
    result, query = plan.result, plan.query
    words = f"{result.method}, {show_seconds(result.solve_time_s)}"
    yield "method", f"{words}; {result.message}" if result.message else words
    yield "problem", f"SHA-256 {result.problem.digest()}"
    yield f"model {query.model.name}", query.model.source
    nodes = [machine.node for machine in query.fleet.machines]
    for name, gpu in {node.gpu.name: node.gpu for node in nodes}.items():
        yield f"GPU {name}", gpu.source or "the machines file"
    among = [node.interconnect for node in nodes if node.gpus > 1]
    for links in dict.fromkeys(each for each in among if each is not None):
        yield f"interconnect {links.name}", f"{links.basis}: {links.source}"
