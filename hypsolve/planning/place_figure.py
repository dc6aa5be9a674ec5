"""The figure of a placement: a column per site, a lane per pipeline, a box per stage.

Lanes are read from left to right, and from top to bottom where a site is too narrow for all
stages of a pipeline. Equal pipelines share a lane. A lane begins below those above it that are
at the same sites. The last lane has the machines left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypsolve.planning.network_figure import joined_names
from hypsolve.planning.palette import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    MUTED,
    ORANGE,
    RC,
    VERMILION,
    drawing,
    short_name,
)
from hypsolve.planning.place_text import (
    MIN_RANGE,
    alike_pipelines,
    describe_holds,
    names_of,
    show_rate,
)
from hypsolve.planning.placement_records import JOINS_LESS, JOINS_MORE, NO_PIPELINE, RUNTIME
from hypsolve.problem import validation as valid
from hypsolve.problem.optional import optional
from hypsolve.problem.units import count, show_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.planning.placement_plan import PlacementPlan
    from hypsolve.planning.placement_records import PlacedPipeline
    from hypsolve.problem.fleet import Machine
    from hypsolve.problem.network import Link

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9")  # Okabe-Ito, by pipeline
# in inches
PAGE_WIDTH = 9.4
BOX, MAX_BOX, HEIGHT = 1.42, 2.1, 0.6  # width and height of a box
BETWEEN, SITES = 0.34, 0.86  # between two boxes of a site, and between two sites
PAD, HEADER, LABEL, ROW, LANE = 0.1, 0.6, 0.27, 0.24, 0.2
LINE, MARK = 0.16, 0.17  # between two lines of a label, and before its letters
LETTER = 0.066  # mean width of a letter of 8 pt
BOLD = 0.93  # share of letters that fit if they are bold
BIG = 1.25  # letters of the name of a site, in those of other lines
SMALL, NORMAL = 8.0, 9.0  # points
EDGE = 0.01  # inches for the edges of the outer panels
TINT = 0.16  # opacity of boxes
WHY = {
    JOINS_LESS: "a pipeline serves less",
    JOINS_MORE: "gains in the model only",
    NO_PIPELINE: "fits no pipeline",
    RUNTIME: "not run by the server",
}
"""Reasons of machines that are left out, as they stand in a box."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a lane: its column, its row in the lane, its place in the row, its lines."""

    column: int
    row: int
    slot: int
    lines: tuple[str, ...]
    link: Link | None = None  # from the box before, if that is at another site


@dataclass(frozen=True, slots=True)
class Lane:
    """Boxes under a label; those of a pipeline are joined by arrows."""

    label: tuple[str, ...]
    colour: str
    boxes: tuple[Box, ...]
    is_pipeline: bool

    @property
    def columns(self) -> range:
        """Columns from the first to the last of its boxes."""
        columns = [box.column for box in self.boxes]
        return range(min(columns), max(columns) + 1)

    @property
    def label_height(self) -> float:
        """Height of the lines of its label in inches."""
        return LABEL + (len(self.label) - 1) * LINE

    @property
    def rows(self) -> int:
        """Number of rows."""
        return max((box.row for box in self.boxes), default=0) + 1

    @property
    def height(self) -> float:
        """Height in inches."""
        return self.label_height + self.rows * HEIGHT + (self.rows - 1) * ROW + LANE


class Layout:
    """Where the boxes of a placement are.

    Parameters
    ----------
    plan : PlacementPlan
    width : float
        Of the figure, in inches.
    """

    def __init__(self, plan: PlacementPlan, width: float) -> None:
        self.plan, self.width = plan, width
        self.machines = {
            machine.name: machine
            for machine in (*plan.query.fleet.machines, *plan.query.machines.unusable)
        }
        with_machines = {machine.site for machine in self.machines.values()}
        self.sites = [s.name for s in plan.query.fleet.sites if s.name in with_machines]
        n = len(self.sites)
        column = (width - (n - 1) * SITES) / n
        self.is_by_site = column >= BOX + 2 * PAD
        self.n_columns = n if self.is_by_site else 1
        self.column = column if self.is_by_site else width
        inner = self.column - 2 * PAD
        self.slots = max(1, int((inner + BETWEEN) / (BOX + BETWEEN)))
        self.box = min((inner - (self.slots - 1) * BETWEEN) / self.slots, MAX_BOX)
        self.lanes = [*self._pipelines(), *self._unused()]
        self.tops: list[float] = []
        bottoms = [HEADER] * self.n_columns
        for lane in self.lanes:
            top = max(bottoms[column] for column in lane.columns)
            self.tops.append(top)
            for column in lane.columns:
                bottoms[column] = top + lane.height
        self.height = max(bottoms) + PAD  # of the figure, in inches

    def left(self, column: int, slot: int) -> float:
        """Return the left edge of a box."""
        return column * (self.column + SITES) + PAD + slot * (self.box + BETWEEN)

    def _column_of(self, site: str) -> int:
        return self.sites.index(site) if self.is_by_site else 0

    def _pipelines(self) -> Iterator[Lane]:
        for at, (numbers, alike) in enumerate(alike_pipelines(self.plan)):
            first, n = alike[0], len(alike)
            each = f"{n} x " if n > 1 else ""
            name = f"pipeline{'s' * (n > 1)} {numbers}"
            rate = f"{each}{show_rate(first.requests_per_s)} requests/s ({first.share * n:.0%})"
            boxes = tuple(self._stages(alike))
            width = max(self.column - PAD, self.width * (not self.is_by_site)) - MARK
            fits = len(f"{name}: {rate}") <= int(width / LETTER * BOLD)
            label = (f"{name}: {rate}",) if fits else (name, rate)
            yield Lane(label, COLOURS[at % len(COLOURS)], boxes, True)

    def _stages(self, alike: Sequence[PlacedPipeline]) -> Iterator[Box]:
        column = row = slot = 0
        before: Machine | None = None
        for s, stage in enumerate(alike[0].stages):
            machine = self.machines[stage.machine]
            at, link = self._column_of(machine.site), None
            if before is None:
                column = at
            elif at == column and slot + 1 < self.slots:
                slot += 1
            elif at > column:
                column, slot = at, 0
            else:
                column, row, slot = at, row + 1, 0
            if before is not None and before.site != machine.site:
                link = self.plan.query.fleet.link(before, machine)
            names = sorted(dict.fromkeys(each.stages[s].machine for each in alike))
            gpus = machine.node.gpu.name
            gpus = gpus if stage.gpus == 1 else f"{stage.gpus} x {gpus}"
            holds = describe_holds(stage, self.plan.query.model.n_blocks)
            yield Box(column, row, slot, (*self._named(names, machine), gpus, holds), link)
            before = machine

    def _named(self, names: Sequence[str], machine: Machine) -> tuple[str]:
        """Return the names of machines in a line, with their site if columns do not show it."""
        letters = int(int((self.box - 0.16) / LETTER) * BOLD)  # as in `_stage`
        where = "" if self.is_by_site or len(self.sites) < 2 else f" ({machine.site})"
        joined = names_of(sorted(names, key=lambda name: (len(name), name)))
        if len(joined) > letters - len(where) and len(names) > 1:
            joined = _short_names(names, letters - len(where))
        return (f"{joined}{where}",)

    def _unused(self) -> Iterator[Lane]:
        used: dict[tuple[int, int], int] = {}
        boxes = []
        for each in self.plan.unused:
            groups: dict[tuple[str, str], list[Machine]] = {}
            for name in each.machines:
                if name in self.machines:
                    machine = self.machines[name]
                    groups.setdefault((machine.site, machine.node.gpu.name), []).append(machine)
            for (site, gpu), alike in groups.items():
                column = self._column_of(site)
                n = used.get((column, 0), 0)
                used[column, 0] = n + 1
                n_gpus = sum(machine.node.gpus for machine in alike)
                gpus = gpu if n_gpus == 1 else f"{n_gpus} x {gpu}"
                names = [machine.name for machine in alike]
                lines = (*self._named(names, alike[0]), gpus, WHY.get(each.why, each.why))
                boxes.append(Box(column, n // self.slots, n % self.slots, lines))
        if boxes:
            yield Lane(("left out",), GREY, tuple(boxes), False)


def _short_names(names: Sequence[str], letters: int) -> str:
    """Join names in few letters; only names with consecutive numbers are written as a range.

    Examples
    --------
    >>> _short_names(["rack-0", "rack-2", "rack-4"], 14)
    'rack-0, 2, 4'
    >>> _short_names(["rack-0", "rack-2", "rack-4", "rack-6"], 14)
    'rack-0, +3'
    >>> _short_names(["a-long-name-0", "a-long-name-1", "a-long-name-2"], 14)
    'a-long-n… to 2'
    """
    names = sorted(names, key=lambda name: (len(name), name))
    stems = {name.rstrip("0123456789") for name in names}
    if len(names) >= MIN_RANGE and ", " not in names_of(names):
        return joined_names(names, letters)
    if len(stems) == 1:
        stem = len(stems.pop())
        joined = ", ".join([names[0], *(name[stem:] for name in names[1:])])
        if len(joined) <= letters and all(name[stem:] for name in names):
            return joined
    more = f", +{len(names) - 1}"
    return short_name(names[0], letters - len(more)) + more


def placement_height(plan: PlacementPlan, width: float) -> float:
    """Return the height of the figure in inches."""
    return Layout(plan, width).height


def plot_placement(plan: PlacementPlan, ax: Axes | None = None) -> Axes:
    """Draw the figure into axes, or into those of a new figure; see `PlacementPlan.plot`."""
    width = PAGE_WIDTH
    with drawing(RC):
        if ax is None:
            size = (width, placement_height(plan, width))
            figure = optional("matplotlib.pyplot").figure(figsize=size)
            ax = figure.add_axes((0, 0, 1, 1))
        else:
            valid.of_type("plot", "ax", ax, optional("matplotlib.axes").Axes)
            width = ax.get_window_extent().width / ax.figure.dpi
        draw_placement(plan, ax, width)
    return ax


def draw_placement(plan: PlacementPlan, ax: Axes, width: float) -> None:
    """Draw sites, pipelines and machines that are left out into axes of a width in inches."""
    layout = Layout(plan, width)
    _panels(ax, layout)
    for lane, top in zip(layout.lanes, layout.tops, strict=True):
        _lane(ax, layout, lane, top)
    ax.set_xlim(-EDGE, width + EDGE)
    ax.set_ylim(layout.height, 0)
    ax.set_axis_off()
    for text in ax.figure.findobj(optional("matplotlib.text").Text):
        text.set_parse_math(False)  # a dollar sign in a name is no formula


def _panels(ax: Axes, layout: Layout) -> None:
    """Draw a panel for every site, with its name, machines and inner link."""
    fleet = layout.plan.query.fleet
    letters = int(layout.column / LETTER)
    if not layout.is_by_site:
        sites = ", ".join(layout.sites)
        ax.text(PAD, 0.2, short_name(sites, letters), size=NORMAL, weight="bold")
        return
    for k, name in enumerate(layout.sites):
        x = k * (layout.column + SITES)
        _box(ax, x, 0.02, layout.column, layout.height - 0.04, facecolor="none",
             edgecolor=FAINT, linewidth=1.0)  # fmt: skip
        here = [machine for machine in layout.machines.values() if machine.site == name]
        ax.text(x + PAD, 0.22, short_name(name, letters), size=NORMAL, weight="bold")
        line = f"{count(len(here), 'machine')}, {count(sum(m.node.gpus for m in here), 'GPU')}"
        share = fleet.entry.get(name, 0.0)
        enter = f"{share:.0%} of requests enter" if share < 1 else "requests enter here"
        if share and len(name) * BIG + len(enter) + 1 <= letters:
            ax.text(x + layout.column - PAD, 0.22, enter, size=SMALL, color=MUTED, ha="right")
        elif share:
            line = f"{count(len(here), 'machine')}; {enter}"
        if len(here) > 1 and enter not in line:
            site = next(site for site in fleet.sites if site.name == name)
            link = f"; {_rate(site.link)} inside"
            line += link * (len(line + link) <= letters)
        ax.text(x + PAD, 0.4, short_name(line, letters), size=SMALL, color=MUTED)


def _lane(ax: Axes, layout: Layout, lane: Lane, y: float) -> None:
    first = lane.boxes[0] if lane.is_pipeline else min(lane.boxes, key=lambda box: box.column)
    x, top = layout.left(first.column, 0), y + lane.label_height
    _box(ax, x, y + 0.07, 0.11, 0.11, facecolor=lane.colour)
    for at, line in enumerate(lane.label):
        ax.text(x + MARK, y + 0.18 + at * LINE, line, size=SMALL, weight="bold")
    before = None
    for box in lane.boxes:
        _stage(ax, layout, lane, box, top)
        if lane.is_pipeline and before is not None:
            _arrow(ax, layout, lane, before, box, top)
        before = box


def _top(y: float, box: Box) -> float:
    return y + box.row * (HEIGHT + ROW)


def _stage(ax: Axes, layout: Layout, lane: Lane, box: Box, y: float) -> None:
    x, top = layout.left(box.column, box.slot), _top(y, box)
    style = {} if lane.is_pipeline else {"linestyle": (0, (3, 2))}
    _box(ax, x, top, layout.box, HEIGHT, facecolor=lane.colour, alpha=TINT)
    _box(ax, x, top, layout.box, HEIGHT, facecolor="none", edgecolor=lane.colour,
         linewidth=1.3, **style)  # fmt: skip
    letters = int((layout.box - 0.16) / LETTER)
    for at, line in enumerate(box.lines):
        weight = "bold" if at == 0 else "normal"
        words = short_name(line, int(letters * BOLD) if at == 0 else letters)
        ax.text(x + 0.08, top + 0.175 * (at + 1) - 0.01, words, size=SMALL, weight=weight)


def _arrow(ax: Axes, layout: Layout, lane: Lane, start: Box, end: Box, y: float) -> None:
    """Draw an arrow from a stage to the next one, with the link between sites."""
    style: dict[str, Any] = {
        "arrowstyle": "-|>", "color": lane.colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0,
    }  # fmt: skip
    middle = _top(y, start) + HEIGHT / 2
    right, left = (
        layout.left(start.column, start.slot) + layout.box,
        layout.left(end.column, end.slot),
    )
    if start.row == end.row:
        ax.annotate("", (left, middle), (right, middle), arrowprops=style)
        _name_link(ax, layout, end, end.column, middle)
        return
    bottom, top = _top(y, start) + HEIGHT, _top(y, end)
    x, to = right - layout.box / 2, left + layout.box / 2
    turn = (bottom + top) / 2
    ax.plot([x, x, to, to], [bottom, turn, turn, top - 0.05], color=lane.colour, linewidth=1.4)
    ax.annotate("", (to, top), (to, turn), arrowprops=style)
    if end.column < start.column:
        _name_link(ax, layout, end, end.column + 1, turn)


def _name_link(ax: Axes, layout: Layout, end: Box, column: int, y: float) -> None:
    """Write rate and latency of the link to a stage into the gap before a column."""
    if end.link is None or not layout.is_by_site:
        return
    x = column * (layout.column + SITES) - SITES / 2
    style: dict[str, Any] = {"ha": "center", "size": SMALL}
    ax.text(x, y - 0.06, _rate(end.link), va="bottom", **style)
    delay = show_seconds(float(f"{end.link.latency_s:.3g}"))
    ax.text(x, y + 0.06, delay, va="top", **style)


def _rate(link: Link) -> str:
    return f"{link.bytes_per_s * 8e-9:.3g} Gbit/s"


def _box(ax: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    style = {"linewidth": 0, **style}
    ax.add_patch(optional("matplotlib.patches").Rectangle((x, y), width, height, **style))
