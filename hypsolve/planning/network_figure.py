"""The figure of a network: tiers and links, with layers and memory on each kind of node."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypsolve.planning.palette import BLUE, FAINT, GREY, MUTED, ORANGE, short_name
from hypsolve.problem.deployment import Tier
from hypsolve.problem.optional import optional
from hypsolve.problem.units import show_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypsolve.planning.plan import NodePlan, Plan

# in inches
COLUMN = 1.62  # least width of a tier in a row of tiers
LINK = 0.56  # between two columns
HEADER, CARD, GAP, LEGEND = 0.46, 0.98, 0.1, 0.28
ARROW = 0.42  # between two rows
LETTER = 0.062  # mean width of a letter of 8 pt
SMALL, NORMAL = 8.0, 9.0  # points


@dataclass(frozen=True, slots=True)
class Card:
    """Nodes of a tier that are alike: GPU, memory and blocks.

    Attributes
    ----------
    nodes : tuple of NodePlan
    usable_bytes : float
    """

    nodes: tuple[NodePlan, ...]
    usable_bytes: float


def network_height(plan: Plan, width: float) -> float:
    """Return the height of the figure in inches."""
    cards = [_cards(plan, tier) for tier in plan.network.network.tiers]
    if _is_in_columns(len(cards), width):
        return LEGEND + HEADER + max(map(len, cards)) * (CARD + GAP)
    per_row = _per_row(cards, width)
    rows = sum(-(-len(each) // per_row) for each in cards)
    return LEGEND + len(cards) * (HEADER + ARROW) - ARROW + rows * (CARD + GAP)


def draw_network(plan: Plan, ax: Axes, width: float) -> None:
    """Draw tiers side by side if the width allows, and one below the other if not."""
    tiers = plan.network.network.tiers
    usable = plan.deployment.usable_bytes
    largest = max(usable(node) for tier in tiers for node in tier.nodes)
    every = [_cards(plan, tier) for tier in tiers]
    n, x, y = len(tiers), 0.0, LEGEND
    column = (width - (n - 1) * LINK) / n
    is_in_columns = _is_in_columns(n, width)
    of_tier, per_row = (column, 1) if is_in_columns else (width, _per_row(every, width))
    for k, (tier, cards) in enumerate(zip(tiers, every, strict=True)):
        if is_in_columns:
            x = k * (column + LINK)
        _header(ax, plan, k, x, y, of_tier)
        card_width = (of_tier - (per_row - 1) * GAP) / per_row
        for at, card in enumerate(cards):
            left = x + (at % per_row) * (card_width + GAP)
            top = y + HEADER + (at // per_row) * (CARD + GAP)
            _card(ax, plan, card, left, top, card_width, largest)
        if tier.link is not None and is_in_columns:
            _link(ax, tier, (x + column, y + 0.32), (x + column + LINK, y + 0.32))
        if not is_in_columns:
            end = y + HEADER + -(-len(cards) // per_row) * (CARD + GAP)
            if tier.link is not None:
                _link(ax, tier, (0.16, end - 0.04), (0.16, end + ARROW - 0.08))
            y = end + ARROW
    _legend(ax)
    ax.set_xlim(0, width)
    ax.set_ylim(network_height(plan, width), 0)
    ax.set_axis_off()


def _is_in_columns(n_tiers: int, width: float) -> bool:
    return (width - (n_tiers - 1) * LINK) / n_tiers >= COLUMN


def _per_row(cards: Sequence[Sequence[Card]], width: float) -> int:
    """Return how many cards stand side by side in a tier.

    All tiers have cards of one width, so that all are drawn to one scale.
    """
    return max(1, min(int((width + GAP) / (COLUMN + GAP)), max(map(len, cards))))


def _cards(plan: Plan, tier: Tier) -> list[Card]:
    """Group nodes that are alike; they need not be neighbours."""
    usable = {node.name: plan.deployment.usable_bytes(node) for node in tier.nodes}
    groups: dict[Any, list[NodePlan]] = {}
    for node in plan.nodes:
        if node.tier == tier.name:
            key = (node.describe_gpus(), usable[node.node], node.is_used)
            groups.setdefault(key, []).append(node)
    return [Card(tuple(nodes), key[1]) for key, nodes in groups.items()]


def _header(ax: Axes, plan: Plan, k: int, x: float, y: float, width: float) -> None:
    """Draw the name of the tier, and a strip with its blocks in the whole model."""
    stage = plan.stages[k]
    name = short_name(stage.tier, int(width / 0.078))
    ax.text(x, y + 0.2, name, weight="bold", size=NORMAL, va="baseline")
    n_blocks = plan.model.n_blocks
    _box(ax, x, y + 0.29, width, 0.07, facecolor=FAINT)
    if stage.blocks:
        start, stop = stage.blocks.start / n_blocks, stage.blocks.stop / n_blocks
        _box(ax, x + start * width, y + 0.29, (stop - start) * width, 0.07, facecolor=MUTED)


def _card(
    ax: Axes, plan: Plan, card: Card, x: float, y: float, width: float, largest: float
) -> None:
    """Draw the GPU, names, layers and memory of nodes that are alike."""
    node, letters = card.nodes[0], int((width - 0.14) / LETTER)
    _box(ax, x, y, width, CARD, facecolor="none", edgecolor=GREY, linewidth=0.8)
    count = f"{len(card.nodes)} x " if len(card.nodes) > 1 else ""
    layers = plan.describe_blocks(node.blocks) if node.is_used else "unused"
    names = [each.node.removeprefix(f"{node.tier}-") for each in card.nodes]  # it stands above
    lines: list[tuple[str, dict[str, Any]]] = [
        (short_name(layers, int(letters * 0.9)), {"weight": "bold"}),
        (f"{count}{node.describe_gpus()}", {}),
        (joined_names(names, letters), {"color": MUTED}),
    ]
    for at, (text, style) in enumerate(lines):
        text = short_name(text, letters)
        ax.text(x + 0.07, y + 0.17 + 0.165 * at, text, size=SMALL, **style)
    left, top, scale = x + 0.07, y + 0.58, (width - 0.14) / largest
    for n_bytes, colour in ((node.weight_bytes, BLUE), (node.kv_bytes, ORANGE)):
        _box(ax, left, top, n_bytes * scale, 0.13, facecolor=colour)
        left += n_bytes * scale
    edge: dict[str, Any] = {"facecolor": "none", "edgecolor": MUTED, "linewidth": 0.8}
    _box(ax, x + 0.07, top, card.usable_bytes * scale, 0.13, **edge)
    free = f"{node.free_bytes / 1e9:.1f} of {card.usable_bytes / 1e9:.1f} GB free"
    ax.text(x + 0.07, y + 0.88, free, size=SMALL, color=MUTED)


def joined_names(names: Sequence[str], letters: int) -> str:
    """Join names, or give the first and the last if they are too long."""
    joined = ", ".join(names)
    if len(joined) <= letters or len(names) == 1:
        return joined
    pairs = zip(names[0], names[-1], strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    last = f" to {names[-1][common:]}"
    return short_name(names[0], letters - len(last)) + last


def _link(ax: Axes, tier: Tier, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow to the next tier, with the rate and latency of the link."""
    link = tier.link
    assert link is not None
    rate = f"{link.bytes_per_s * 8 / 1e9:.3g}"
    delays = [show_seconds(link.latency_s)]
    if link.round_trip_s != 2 * link.latency_s:
        delays.append(f"{show_seconds(link.round_trip_s - link.latency_s)} back")
    arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 2, "shrinkB": 2}
    ax.annotate("", end, start, arrowprops=arrow)
    if start[0] == end[0]:
        words = f"{rate} Gbit/s, {', '.join(delays)}"
        ax.text(start[0] + 0.14, (start[1] + end[1]) / 2, words, va="center", size=SMALL)
        return
    middle = (start[0] + end[0]) / 2
    above, below = f"{rate}\nGbit/s", "\n".join(delays)
    style: dict[str, Any] = {"ha": "center", "size": SMALL, "linespacing": 1.05}
    ax.text(middle, start[1] - 0.06, above, va="bottom", **style)
    ax.text(middle, start[1] + 0.06, below, va="top", **style)


def _legend(ax: Axes) -> None:
    x = 0.0
    for label, colour in (("weights", BLUE), ("KV cache", ORANGE), ("free", "none")):
        _box(ax, x, 0.05, 0.13, 0.11, facecolor=colour, edgecolor=MUTED, linewidth=0.8)
        ax.text(x + 0.18, 0.155, label, size=SMALL)
        x += 0.4 + LETTER * len(label)


def _box(ax: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    style = {"linewidth": 0, **style}
    ax.add_patch(optional("matplotlib.patches").Rectangle((x, y), width, height, **style))
