"""Paths of requests through a layout: its rules, and the draw at every node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypsolve.problem.arrays import IntArray
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.problem.placement import PlacementProblem

OWNER = "simulate_layout"
COORDINATOR = 0  # its number; nodes follow


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Positive flows between nodes, as `draw_paths` of the kernels reads them.

    Attributes
    ----------
    start : ndarray of int, shape (n_nodes + 2,)
    to : ndarray of int, shape (n_edges,)
    share : ndarray, shape (n_edges,)
    """

    start: IntArray
    to: IntArray
    share: np.ndarray

    def draw(self, n_requests: int, ranges: Sequence[HostedRange]) -> IntArray:
        """Return the nodes that requests pass, by arrival; -1 behind the last one of a path.

        Shape (n_requests, longest path). Nodes are counted from 0 here, without the
        coordinator.
        """
        from hypsolve.kernels.layer_layout import draw_paths
        from hypsolve.kernels.warm_up import warm

        warm("layer_layout")
        paths = draw_paths(self.start, self.to, self.share, n_requests, len(ranges))
        longest = int((paths >= 0).sum(axis=1).max())
        return np.maximum(paths[:, :longest] - 1, -1)


def edges_of(problem: PlacementProblem, layout: LayerLayout) -> Edges:
    """Return the flows of a layout, which must keep the rules.

    Raises
    ------
    ValueError
        If it breaks one; the message names the machine or the flow.
    """
    number: dict[str | None, int] = {None: COORDINATOR}
    for hosted in layout.ranges:
        _check_range(problem, hosted)
        number[hosted.machine] = len(number)
    ways: list[dict[int, float]] = [{} for _ in number]
    for start, end, tokens_per_s in layout.flows:
        if tokens_per_s > 0:
            name = f"flow {_shown(start)} -> {_shown(end)}"
            _check_flow(problem, layout, name, number[start], number[end])
            ways[number[start]][number[end]] = tokens_per_s
    _check_ways_out(ways, [None, *(hosted.machine for hosted in layout.ranges)])
    shares = [value / sum(way.values()) for way in ways for value in way.values()]
    return Edges(
        start=np.cumsum([0, *map(len, ways)]),
        to=np.array([end for way in ways for end in way], np.int64),
        share=np.array(shares),
    )


def _shown(machine: str | None) -> str:
    return "the coordinator" if machine is None else repr(machine)


def _check_range(problem: PlacementProblem, hosted: HostedRange) -> None:
    machine = problem.fleet.machine(hosted.machine)
    owner, n_blocks = f"{OWNER}: range of machine {machine.name!r}", problem.model.n_blocks
    if hosted.stop > n_blocks:
        raise ValueError(
            f"{owner} must lie within the {n_blocks} blocks of the model, got"
            f" {hosted.start}:{hosted.stop}"
        )
    for pin in problem.fleet.pins:
        overlaps = max(pin.start, hosted.start) < min(pin.stop, hosted.stop)
        if overlaps and machine.site not in pin.sites:
            raise ValueError(
                f"{owner} must leave out blocks {pin.start}:{pin.stop}, which are pinned to"
                f" {', '.join(pin.sites)}, got {hosted.start}:{hosted.stop}"
            )


def _check_flow(
    problem: PlacementProblem, layout: LayerLayout, name: str, start: int, end: int
) -> None:
    """Check that a flow goes on at a block that its end holds, and that there is a link."""
    block = 0 if start == COORDINATOR else layout.ranges[start - 1].stop
    if end == COORDINATOR:
        if block != problem.model.n_blocks or start == COORDINATOR:
            raise ValueError(
                f"{OWNER}: {name} must leave a machine with the last block, number"
                f" {problem.model.n_blocks - 1}, got one that ends before block {block}"
            )
        return
    to = layout.ranges[end - 1]
    is_held = to.start == 0 if start == COORDINATOR else to.start <= block < to.stop
    if not is_held:
        raise ValueError(
            f"{OWNER}: {name} goes on at block {block}, which its end must hold, got"
            f" {to.start}:{to.stop}"
        )
    if start != COORDINATOR:
        fleet = problem.fleet
        first = fleet.machine(layout.ranges[start - 1].machine)
        if fleet.link(first, fleet.machine(to.machine)) is None:
            raise ValueError(f"{OWNER}: {name} needs a link between the machines, got none")


def _check_ways_out(ways: list[dict[int, float]], names: list[str | None]) -> None:
    """Check that every node that requests reach has a flow that leaves it."""
    reached, front = {COORDINATOR}, [COORDINATOR]
    while front:
        n = front.pop()
        if not ways[n]:
            raise ValueError(
                f"{OWNER}: a flow of more than 0 must leave {_shown(names[n])}, got none"
            )
        front += [end for end in ways[n] if end not in reached]
        reached |= set(ways[n])
