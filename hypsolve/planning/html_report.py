"""A `Plan` as one HTML file that needs nothing else: `write_report`."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from hypsolve.planning.figures import FIGURES
from hypsolve.planning.plan import Alternative, Plan
from hypsolve.planning.text import (
    changes_title,
    describe_bottleneck,
    describe_proof,
    infeasible_lines,
    rows_of_nodes,
    service_lines,
    title,
)
from hypsolve.problem import validation as valid
from hypsolve.problem.files import checked_path, replacing
from hypsolve.problem.optional import optional
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import show_seconds
from hypsolve.verify.bottleneck import verify_certificate

CAPTIONS = {
    "network": "What each tier hosts, its blocks in the chain of all, and how each node's"
    " memory is used; bars of memory are to scale.",
    "stages": "What one request costs on each tier, and on the link behind it.",
    "pareto": "Splits that no other beats in both throughput and latency, requests one by one.",
    "latency": "Simulated token by token: share of the requests that waited no longer.",
    "gantt": "Simulated iterations of the nodes, during a few passes of a token.",
    "changes": "What the objective comes to with each change.",
}
PACKAGES = ("hypsolve", "numpy", "numba", "matplotlib")
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto;
  max-width: 1000px; padding: 24px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; }
h2 { font-size: 1.1rem; margin: 36px 0 8px; padding-top: 12px; border-top: 1px solid #d5dae0; }
p, ul { margin: 8px 0; }
.asked, figcaption, dt { color: #4a5460; }
.verdict { padding: 10px 14px; border-left: 4px solid #0072b2; background: #eef5fa; }
.verdict.none { border-color: #d55e00; background: #fdf1e7; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr));
  gap: 12px; margin: 16px 0; padding: 0; }
.numbers div { border: 1px solid #d5dae0; border-radius: 6px; padding: 8px 12px; }
dt { font-size: 0.8rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 4px 10px; text-align: left; border-bottom: 1px solid #e4e8ec; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 12px 0; }
figure svg { width: 100%; height: auto; max-width: var(--width); }
figcaption { font-size: 0.85rem; }
pre { font-size: 0.75rem; overflow-x: auto; background: #f6f8fa; padding: 12px; }
@media print {
  details { display: none; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
}
"""


def write_report(found: Plan, path: str | os.PathLike[str], *, command: str = "") -> None:
    """Write a plan as one HTML file: pictures, tables, proof and where the numbers come from.

    The file loads nothing, runs no script, and holds the plan as JSON, too. Needs matplotlib.

    Parameters
    ----------
    found : Plan
    path : str or path
        Ends in ``.html``.
    command : str
        What made the plan, to be told.

    Raises
    ------
    ValueError
        If `path` ends otherwise, or matplotlib is missing.
    OSError
        If the folder is absent or not writable.
    """
    valid.of_type("write_report", "found", found, Plan)
    path = report_path(path)
    text = "\n".join(_page(found, command))
    with replacing(path, "a report") as file:
        file.write(text)


def report_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a report can have that name, and can be drawn."""
    path = checked_path("write_report", path)
    if path.suffix != ".html":
        raise ValueError(f"{path}: the name of a report must end in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "cannot write a report here: no such folder", str(path)
        )
    optional("matplotlib")
    return path


def _page(found: Plan, command: str) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    name = f"{found.model.name} on {found.network.network.name}"
    yield f"<title>{escape(name)}: hypsolve plan</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{escape(name)}</h1>"
    _, _, asked = title(found).partition(": ")
    if found.model.extrapolated:
        asked += "; quantised weights: times are extrapolated, none were measured"
    yield f'<p class="asked">{escape(asked)}</p>'
    yield from _verdict(found)
    if found.fits:
        yield _numbers(found)
        yield "<h2>Which node holds what</h2>"
        yield _figure(found, "network")
        yield _table(rows_of_nodes(found))
        yield "<h2>What binds</h2>"
        yield f"<p>{escape(_sentence(describe_bottleneck(found)))}</p>"
        yield _figure(found, "stages")
        yield _figure(found, "pareto")
    if found.service is not None:
        yield "<h2>What it will serve</h2>"
        lines = "".join(f"<li>{escape(line)}</li>" for line in service_lines(found))
        yield f"<ul>{lines}</ul>"
        yield _figure(found, "latency")
        if found.alternatives:
            yield "<p>The best splits for other objectives, simulated in the same way:</p>"
            yield _table(_rows_of_splits(found))
        yield _figure(found, "gantt")
    if found.changes or not found.stopped:
        yield f"<h2>{escape(_capital(changes_title(found)))}</h2>"
    if found.changes:
        yield _table(
            [
                {
                    "change": change.what,
                    found.objective.replace("_", " "): show_seconds(change.objective_s),
                    **({"less": f"{change.gain:.1%}"} if found.fits else {}),
                }
                for change in found.changes
            ]
        )
        yield _figure(found, "changes")
    yield "<h2>Where this comes from</h2>"
    yield _table(
        [{"what": what, "from": source} for what, source in _provenance(found, command)]
    )
    plain = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    yield f"<details><summary>The plan as JSON</summary><pre>{escape(plain)}</pre></details>"
    yield "</body></html>\n"


def _verdict(found: Plan) -> Iterator[str]:
    if not found.fits:
        verdict, *tiers = infeasible_lines(found)
        lines = "".join(f"<li>{escape(line.strip())}</li>" for line in tiers)
        yield f'<div class="verdict none"><strong>{escape(_sentence(verdict))}</strong>'
        yield f"<ul>{lines}</ul></div>" if lines else "</div>"
        return
    words = _sentence(describe_proof(found))
    certificate = found.result.certificate
    if certificate is not None:
        broken = verify_certificate(found.result.instance, certificate)
        words += (
            f" Its certificate is refuted: {broken[0]}."
            if broken
            else " Its certificate was verified in exact fractions."
        )
    if found.stopped:
        words += f" Stopped: {found.stopped}."
    yield f'<p class="verdict"><strong>{escape(words)}</strong></p>'


def _numbers(found: Plan) -> str:
    """The figures that people ask for first."""
    service = found.service
    numbers = {found.objective.replace("_", " "): show_seconds(found.result.objective_s)}
    if service is not None:
        numbers |= {
            "first token after": show_seconds(service.ttft_s),
            "then, a token": show_seconds(service.tpot_s),
            "latency p50": show_seconds(service.latency_p50_s),
            "latency p95": show_seconds(service.latency_p95_s),
            "keeps up with, about": f"{service.max_requests_per_s:.3g} requests/s",
            "upper bound": f"{service.bound_requests_per_s:.3g} requests/s",
            "room for": f"{service.max_sequences} sequences",
            "or one of": f"{service.max_context_tokens} tokens",
            "energy": f"{service.joules_per_token:.3g} J/token",
            "price of 10^6 tokens": f"{service.price_per_million_tokens:.4g}",
        }
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in numbers.items()
        if not value.startswith("nan")
    )
    return f'<dl class="numbers">{cells}</dl>'


def _rows_of_splits(found: Plan) -> list[dict[str, str]]:
    """What the plan's split and those for other objectives come to."""
    assert found.result.partition is not None and found.service is not None
    own = Alternative(
        objective=f"{found.objective} (this plan)",
        cuts=found.result.partition.cuts,
        latency_mean_s=found.service.latency_mean_s,
        max_requests_per_s=found.service.max_requests_per_s,
    )
    return [
        {
            "split for": each.objective.replace("_", " "),
            "cuts": str(Partition(each.cuts)),
            "keeps up with, about": f"{each.max_requests_per_s:.3g} requests/s",
            "mean latency": show_seconds(each.latency_mean_s),
        }
        for each in (own, *found.alternatives)
    ]


def _figure(found: Plan, kind: str) -> str:
    """A figure as SVG in the page."""
    matplotlib = optional("matplotlib")
    _, size_of, _ = FIGURES[kind]
    size = size_of(found)
    style = {"svg.fonttype": "none", "svg.hashsalt": kind, "font.family": "sans-serif"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        figure = optional("matplotlib.figure").Figure(figsize=size, layout="constrained")
        found.plot(kind, figure.subplots())
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML prolog
    described = f'<svg role="img" aria-label="{escape(CAPTIONS[kind])}"'
    return (
        f'<figure id="{kind}" style="--width: {size[0] * 96:g}px">'
        f"{svg.replace('<svg', described, 1)}"
        f"<figcaption>{escape(CAPTIONS[kind])}</figcaption></figure>"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(_cell(str(value)) for value in row.values()) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    is_number = text[:1].isdigit() and len(text) < 12
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{escape(text)}</td>"


def _provenance(found: Plan, command: str) -> Iterator[tuple[str, str]]:
    if command:
        yield "command", command
    yield "made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield "versions", f"Python {platform.python_version()}, {versions}; {platform.machine()}"
    result = found.result
    yield (
        "method",
        f"{result.method}, {show_seconds(result.solve_time_s)}; {result.message}",
    )
    yield "instance", f"SHA-256 {result.to_dict()['digest']}"
    yield f"model {found.model.name}", found.model.source
    gpus = {n.gpu.name: n.gpu for tier in found.network.network.tiers for n in tier.nodes}
    for name, gpu in gpus.items():
        yield f"GPU {name}", gpu.source or "as the network file says"
    if found.network.description:
        yield "network", found.network.description


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _sentence(words: str) -> str:
    return _capital(words) + ("" if words.endswith(".") else ".")
