"""Parts of a page that reports share: head, style, tiles, figures, sources, data."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypsolve.planning.palette import FAINT, GREY, INK, MUTED, RC
from hypsolve.problem.files import checked_path, replacing
from hypsolve.problem.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = {"wide": 9.4, "narrow": 3.8}  # of figures, in inches of 96 px
PACKAGES = ("hypsolve", "numpy", "numba", "matplotlib")
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", FAINT: "var(--line)",
             GREY: "var(--grey)", "#ffffff": "var(--page)"}  # fmt: skip
"""Colours of figures that follow the colour scheme of the page."""
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --muted: #4a5460;
  --line: #d5dae0; --grey: #8c959f; --tint: #eef5fa; --warn: #fdf1e7; --code: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6e9ec; --muted: #a7b0ba; --line: #3a434d;
    --grey: #7d8792; --tint: #17293a; --warn: #3a2415; --code: #1d232a; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 0 auto; max-width: 960px; padding: 24px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 36px 0 8px; padding-top: 12px;
  border-top: 1px solid var(--line); }
p, ul { margin: 8px 0; }
.asked, figcaption, dt, .heads { color: var(--muted); }
.verdict { padding: 10px 14px; border-left: 4px solid #0072b2; background: var(--tint); }
.verdict.none { border-color: #d55e00; background: var(--warn); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
  gap: 12px; margin: 16px 0; padding: 0; }
.numbers div { border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; }
dt { font-size: 0.8rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
table { border-collapse: collapse; font-size: 0.87rem; margin: 8px 0; }
th, td { padding: 4px 10px; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
th { vertical-align: bottom; overflow-wrap: normal; }
abbr { cursor: help; text-decoration: underline dotted; text-underline-offset: 3px; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.heads { margin: 4px 0 16px; columns: 2 300px; font-size: 0.8rem; }
.heads div { break-inside: avoid; }
.heads dt, .heads dd { display: inline; font: inherit; }
.heads dt { font-weight: 600; }
.heads dt::after { content: ": "; }
figure { margin: 12px 0; }
figure svg { display: block; width: 100%; height: auto; max-width: var(--width); }
figure svg text { fill: currentColor; }
.narrow { display: none; }
figcaption { font-size: 0.85rem; }
pre { font-size: 0.75rem; background: var(--code); padding: 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 860px) {
  body { padding: 16px; }
  .wide { display: none; }
  .narrow { display: block; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
    overflow: hidden; }
  table, tbody, tr { display: block; width: 100%; }
  tr { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 4px 0; }
  td, td.number { display: grid; grid-template-columns: 8.5rem 1fr; gap: 8px; border: 0;
    padding: 2px 10px; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  td::before { content: attr(data-head); color: var(--muted); }
}
@media print {
  details { display: none; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
}
"""


def report_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report, if one can be drawn and written there."""
    path = checked_path("write_report", path)
    if path.suffix != ".html":
        raise ValueError(f"{path}: the name of a report must end in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "cannot write a report here: no such folder", str(path)
        )
    optional("matplotlib")
    return path


def write_page(path: str | os.PathLike[str], lines: Iterator[str]) -> None:
    """Write the lines of a page to a path that `report_path` accepts."""
    path = report_path(path)
    text = "\n".join(lines)
    with replacing(path, "a report") as file:
        file.write(text)


def page_head(title: str) -> Iterator[str]:
    """Yield the lines of a page up to its body."""
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"


def page_end(table: Mapping[str, Any], name: str = "plan") -> Iterator[str]:
    """Yield the last lines of a page: its data as JSON, and the end of its body."""
    plain = json.dumps(table, indent=2, allow_nan=False)
    summary = f"The {name} as JSON"
    yield f"<details><summary>{summary}</summary><pre>{escape(plain)}</pre></details>"
    yield "</body></html>\n"


def tiles(numbers: Mapping[str, str]) -> str:
    """Return numbers with their names as tiles; those that are not known are left out."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in numbers.items()
        if value and not value.startswith("nan")
    )
    return f'<dl class="numbers">{cells}</dl>'


def made(command: str) -> Iterator[tuple[str, str]]:
    """Yield by which command a page was made, when, and with which versions."""
    if command:
        yield "command", command
    yield "made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield "versions", f"Python {platform.python_version()}, {versions}; {platform.machine()}"


def html_figure(
    name: str,
    caption: str,
    *,
    draw: Callable[[Axes, float], None],
    height: Callable[[float], float],
    layout: str | None = None,
) -> str:
    """Return a figure as SVG, once for wide and once for narrow screens.

    Parameters
    ----------
    name, caption : str
    draw, height : callable
        ``draw(ax, width)`` and ``height(width)``, in inches.
    layout : str, optional
        Of Matplotlib. Default: the axes fill the figure.
    """
    caption = escape(caption)
    svgs = "".join(
        f'<div class="{kind}" style="--width: {1.15 * width * 96:.0f}px">'
        f"{_svg(name, caption, width, draw, height, layout)}</div>"
        for kind, width in WIDTHS.items()
    )
    return f'<figure id="{name}">{svgs}<figcaption>{caption}</figcaption></figure>'


def _svg(
    name: str,
    caption: str,
    width: float,
    draw: Callable[[Axes, float], None],
    height: Callable[[float], float],
    layout: str | None,
) -> str:
    style = {**RC, "svg.fonttype": "none", "svg.hashsalt": f"{name} {width}",
             "font.family": "sans-serif"}  # fmt: skip
    with optional("matplotlib").rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        figure = optional("matplotlib.figure").Figure(
            figsize=(width, height(width)), layout=layout
        )
        ax = figure.add_axes((0, 0, 1, 1)) if layout is None else figure.subplots()
        draw(ax, width)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML prolog
    for colour, variable in VARIABLES.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    return svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
