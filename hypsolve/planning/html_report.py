"""`write_report`: a `Plan` as one HTML file that loads nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape

from hypsolve.planning.degree_text import before_split, of_degree
from hypsolve.planning.expected_errors import error_lines
from hypsolve.planning.figures import FIGURES, draw
from hypsolve.planning.html_page import (
    html_figure,
    made,
    page_end,
    page_head,
    tiles,
    write_page,
)
from hypsolve.planning.html_parts import capital, html_table, sentence, verdict
from hypsolve.planning.layers import describe_cuts
from hypsolve.planning.plan import Alternative, Plan
from hypsolve.planning.rpc_links import describe_rpc
from hypsolve.planning.slo_text import largest_rate, largest_users, slo_lines
from hypsolve.planning.text import (
    HEADS,
    degree_lines,
    describe_bottleneck,
    describe_idle,
    describe_pipelines,
    describe_query,
    forecast_lines,
    placement_lines,
    rate_lines,
    rate_sustained,
    rows_of_nodes,
    share_of_rate,
    upgrade_title,
)
from hypsolve.planning.upgrade_text import describe_upgrade, split_first
from hypsolve.problem import validation as valid
from hypsolve.problem.units import show_seconds
from hypsolve.simulation.metrics import Summary

UNSTEADY = "grows without end"  # a time or a number, if requests pile up
SPLIT_HEADS = {
    "split for": "objective that the split minimises",
    "layers": "layers on each tier, counted from 0",
    "keeps up with": "largest sustainable rate in simulation",
    "mean latency": "simulated at the rate of this plan",
}
UPGRADE_HEADS = {
    "upgrade": "a scenario that was solved anew",
    "effect": "what was asked for with the upgrade, simulated, and its price if it is known",
}


@valid.suggest_keywords("write_report")
def write_report(plan: Plan, path: str | os.PathLike[str], *, command: str = "") -> None:
    """Write a plan as one HTML file: figures, tables, proof, and sources of the numbers.

    The file loads nothing, runs no script, and also holds the plan as JSON. It follows the
    light or dark colour scheme of the reader. Needs matplotlib.

    Parameters
    ----------
    plan : Plan
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
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> plan = hs.plan("phi-3-mini", home, output_tokens=16, with_upgrades=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "plan.html"
    ...     hs.write_report(plan, path)
    ...     "<title>phi-3-mini on home" in path.read_text()
    True
    """
    valid.of_type("write_report", "plan", plan, Plan)
    write_page(path, _page(plan, command))


def _page(plan: Plan, command: str) -> Iterator[str]:
    name = f"{plan.model.name} on {plan.network.network.name}"
    yield from page_head(f"{name}: hypsolve plan")
    yield f"<h1>{escape(name)}</h1>"
    query = describe_query(plan)
    if plan.model.extrapolated:
        query += "; quantised weights: times are extrapolated, none were measured"
    yield f'<p class="asked">{escape(query)}</p>'
    yield from verdict(plan)
    if not plan.fits:
        yield from (f"<p>{escape(sentence(line))}</p>" for line in placement_lines(plan))
    if plan.fits:
        yield _numbers(plan)
        details = "".join(f"<li>{escape(line)}</li>" for line in slo_lines(plan)[1:])
        if details:
            yield f"<ul>{details}</ul>"
        yield "<h2>Layers and memory of each node</h2>"
        yield _figure(plan, "network")
        yield html_table(rows_of_nodes(plan), HEADS)
        yield "<h2>Bottleneck</h2>"
        yield f"<p>{escape(sentence(describe_bottleneck(plan)))}</p>"
        for line in (*rate_lines(plan), *placement_lines(plan), *degree_lines(plan)):
            yield f"<p>{escape(sentence(line))}</p>"
        ways = describe_rpc(plan.query.network, plan.query.runtime)
        for line in (describe_pipelines(plan), describe_idle(plan), ways):
            if line:
                yield f"<p>{escape(sentence(line))}</p>"
        yield _figure(plan, "stages")
        yield _figure(plan, "pareto")
    if plan.forecast is not None:
        yield "<h2>Forecast</h2>"
        said = (*forecast_lines(plan), *error_lines(plan))
        lines = "".join(f"<li>{escape(line)}</li>" for line in said)
        yield f"<ul>{lines}</ul>"
        yield _figure(plan, "latency")
        if plan.alternatives:
            yield "<p>Splits for other objectives, simulated with these requests:</p>"
            yield html_table(_rows_of_splits(plan), SPLIT_HEADS)
        yield _figure(plan, "gantt")
    if plan.upgrades or not plan.stopped:
        yield f"<h2>{escape(capital(upgrade_title(plan)))}</h2>"
    if rows := _rows_of_upgrades(plan):
        yield html_table(rows, UPGRADE_HEADS)
    if plan.upgrades:
        yield _figure(plan, "upgrades")
    yield "<h2>Sources</h2>"
    yield html_table(
        [{"subject": what, "source": source} for what, source in _provenance(plan, command)]
    )
    yield from page_end(plan.to_dict())


def _numbers(plan: Plan) -> str:
    """Return the most important numbers as tiles."""
    forecast, numbers = plan.forecast, _tiles_of_targets(plan)
    if plan.throughput is not None:
        numbers[plan.objective_name] = plan.describe_value()
        covers = f"{before_split(plan)}no split{of_degree(plan)}"
        numbers[f"{covers} serves more than"] = (
            f"{plan.throughput.bound_requests_per_s:.3g} requests/s"
        )
        numbers["gap"] = f"{plan.throughput.gap:.1%}"
    if forecast is not None:
        is_steady = forecast.keeps_up is not False
        at_once = f"{forecast.mean_in_flight:.3g} with {forecast.load.describe()}"
        numbers |= {
            "TTFT": _mean_and_p95(forecast.ttft_s) if is_steady else UNSTEADY,
            "TPOT": _mean_and_p95(forecast.tpot_s),
            "keeps up with": rate_sustained(forecast),
            "users at once": at_once if is_steady else UNSTEADY,
            "load": share_of_rate(forecast),
            "latency": _mean_and_p95(forecast.latency_s) if is_steady else UNSTEADY,
            "limited by": forecast.limited_by or "nan",
            "bound of this split": f"{forecast.bound_requests_per_s:.3g} requests/s",
            "room for": f"{forecast.max_sequences} sequences",
            "or one of": f"{forecast.max_context_tokens} tokens",
            "energy": f"{forecast.joules_per_token:.3g} J/token",
            "price of 10^6 tokens": (
                f"{forecast.price_per_million_tokens:.4g} {forecast.currency}".rstrip()
            ),
        }
    numbers.setdefault(plan.objective_name, plan.describe_value())
    return tiles(numbers)


def _tiles_of_targets(plan: Plan) -> dict[str, str]:
    """Return the answer to the targets, if there are any, as tiles."""
    answer = plan.slo_answer
    if answer is None:
        return {}
    upgrade = "" if answer.upgrade is None else answer.upgrade.what
    met = "yes" if answer.is_met else "no"
    return {
        "within the targets": f"{met}: {answer.slo_attainment:.1%}",
        "users within the targets": largest_users(answer),
        "rate within the targets": largest_rate(answer),
        "target that binds": answer.binding_target,
        "cheapest upgrade of one kind that reaches it": upgrade,
    }


def _mean_and_p95(times: Summary) -> str:
    return f"{show_seconds(times.mean)} (p95 {show_seconds(times.p95)})" if times.n else "nan"


def _rows_of_splits(plan: Plan) -> list[dict[str, str]]:
    """Return a row for the split of the plan, and one for each alternative."""
    assert plan.result.partition is not None and plan.forecast is not None
    own = Alternative(
        objective=f"{plan.query.objective} (this plan)",
        cuts=plan.result.partition.cuts,
        latency_mean_s=plan.forecast.latency_s.mean,
        max_requests_per_s=plan.forecast.max_requests_per_s,
        max_rate_is_lower_bound=plan.forecast.max_rate_is_lower_bound,
    )
    return [
        {
            "split for": each.objective.replace("_", " "),
            "layers": describe_cuts(each.cuts),
            "keeps up with": rate_sustained(each) or "not known",
            "mean latency": show_seconds(each.latency_mean_s),
        }
        for each in (own, *plan.alternatives)
    ]


def _rows_of_upgrades(plan: Plan) -> list[dict[str, str]]:
    currency = plan.network.currency
    return [
        {"upgrade": upgrade.what, "effect": describe_upgrade(upgrade, currency)}
        for upgrade in (*split_first(plan), *plan.upgrades)
    ]


def _figure(plan: Plan, kind: str) -> str:
    """Return a figure as SVG, once for wide and once for narrow screens."""
    figure = FIGURES[kind]
    return html_figure(
        kind,
        figure.caption,
        draw=lambda ax, width: draw(plan, kind, ax, width),
        height=lambda width: figure.height(plan, width),
        layout="constrained",
    )


def _provenance(plan: Plan, command: str) -> Iterator[tuple[str, str]]:
    yield from made(command)
    result = plan.result
    yield (
        "method",
        f"{result.method}, {show_seconds(result.solve_time_s)}; {result.message}",
    )
    yield "instance", f"SHA-256 {result.to_dict()['digest']}"
    yield f"model {plan.model.name}", plan.model.source
    nodes = [node for tier in plan.network.network.tiers for node in tier.nodes]
    for name, gpu in {node.gpu.name: node.gpu for node in nodes}.items():
        yield f"GPU {name}", gpu.source or "the network file"
    among = [node.interconnect for node in nodes if node.gpus > 1]
    for links in dict.fromkeys(each for each in among if each is not None):
        yield f"interconnect {links.name}", f"{links.basis}: {links.source}"
    if plan.network.description:
        yield "network", plan.network.description
