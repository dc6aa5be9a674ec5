"""`largest_flow` of tokens through a layout of layers, and `check_layout`, its rules."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from hypsolve.problem.layer_flow import LayerFlowProblem, Place
from hypsolve.problem.layer_layout import HostedRange, LayerLayout

TOLERANCE = 1e-6  # relative, of rates


def follows(first: HostedRange, then: HostedRange) -> bool:
    """Return True if tokens may go from a range to another: it holds the next layer.

    Examples
    --------
    >>> follows(HostedRange("a", 0, 4), HostedRange("b", 3, 6))
    True
    >>> follows(HostedRange("a", 0, 4), HostedRange("b", 2, 4))
    False
    """
    return then.start <= first.stop < then.stop


def largest_flow(problem: LayerFlowProblem, ranges: Sequence[HostedRange]) -> LayerLayout:
    """Return the layout of some ranges with the most tokens per second through all layers.

    The flow is a largest one from the coordinator back to it, found along shortest augmenting
    paths (Edmonds and Karp 1972). A machine carries its tokens per second for the number of
    layers that it holds, a link what it carries.

    Raises
    ------
    ValueError
        If the ranges break a rule of `check_layout`.

    Examples
    --------
    >>> problem = LayerFlowProblem(
    ...     name="two boxes", n_layers=3, kinds={"a": "big", "b": "small"},
    ...     tokens_per_s={"big": (90.0, 40.0), "small": (50.0,)},
    ...     links={(None, "a"): 1e6, ("a", "b"): 1e6, ("b", None): 1e6},
    ...     activation_bytes=8192, token_bytes=2,
    ... )
    >>> largest_flow(problem, [HostedRange("a", 0, 2), HostedRange("b", 2, 3)]).tokens_per_s
    40.0
    """
    layout = LayerLayout(tuple(ranges))
    for violation in check_layout(problem, layout):
        raise ValueError(f"layer layout: {violation}")
    pairs = list(_pairs(problem, layout.ranges))
    # a machine is an arc from its entry, 2 m + 2, to its exit, 2 m + 3; 0 and 1: coordinator
    at = {each.machine: 2 * m + 2 for m, each in enumerate(layout.ranges)}
    network = _Network(2 * len(at) + 2)
    for each in layout.ranges:
        entry = at[each.machine]
        network.arc(entry, entry + 1, problem.rate(each.machine, each.n_layers))
    arcs = [
        network.arc(
            0 if start is None else at[start] + 1,
            1 if end is None else at[end],
            problem.link_rate(start, end),
        )
        for start, end in pairs
    ]
    network.fill(0, 1)
    flows = [
        (start, end, network.flow(arc)) for (start, end), arc in zip(pairs, arcs, strict=True)
    ]
    return LayerLayout(layout.ranges, tuple(flow for flow in flows if flow[2] > 0))


def _pairs(
    problem: LayerFlowProblem, ranges: Sequence[HostedRange]
) -> Iterable[tuple[Place, Place]]:
    """Return the pairs of places between which tokens may go, and that have a link."""
    pairs: list[tuple[Place, Place]] = []
    for each in ranges:
        pairs += [(None, each.machine)] * (each.start == 0)
        pairs += [(each.machine, None)] * (each.stop == problem.n_layers)
        pairs += [(each.machine, then.machine) for then in ranges if follows(each, then)]
    return (pair for pair in pairs if problem.link_rate(*pair) > 0)


class _Network:
    """Arcs with their rests. Arc 2 a + 1 is arc 2 a the other way round."""

    def __init__(self, n_nodes: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(n_nodes)]
        self.end: list[int] = []
        self.rest: list[float] = []
        self.limit: list[float] = []

    def arc(self, start: int, end: int, limit: float) -> int:
        """Add an arc and return its number."""
        number = len(self.end)
        for a, (tail, head, rest) in enumerate(((start, end, limit), (end, start, 0.0))):
            self.out[tail].append(number + a)
            self.end.append(head)
            self.rest.append(rest)
            self.limit.append(rest)
        return number

    def flow(self, arc: int) -> float:
        """Return the flow of an arc: what its reverse could give back."""
        return min(self.rest[arc + 1], self.limit[arc])

    def fill(self, source: int, sink: int) -> None:
        """Augment along shortest paths until there is none."""
        while (path := self._path(source, sink)) is not None:
            step = min(self.rest[arc] for arc in path)
            for arc in path:
                self.rest[arc] -= step
                self.rest[arc ^ 1] += step

    def _path(self, source: int, sink: int) -> list[int] | None:
        least = 1e-12 * max(self.limit, default=0.0)  # rounding is no path
        by: dict[int, int] = {source: -1}
        waiting = deque([source])
        while waiting:
            node = waiting.popleft()
            if node == sink:
                path = []
                while by[node] >= 0:
                    path.append(by[node])
                    node = self.end[by[node] ^ 1]
                return path
            for arc in self.out[node]:
                if self.rest[arc] > least and self.end[arc] not in by:
                    by[self.end[arc]] = arc
                    waiting.append(self.end[arc])
        return None


def check_layout(problem: LayerFlowProblem, layout: LayerLayout) -> list[str]:
    """Return the rules that a layout breaks, as sentences; none for a legal one.

    The ranges must lie within the layers and the machines' room. Flows must go along links to
    the next layer, stay within links and machines, and what enters a machine must leave it.

    Examples
    --------
    >>> problem = LayerFlowProblem(
    ...     name="box", n_layers=2, kinds={"a": "big"}, tokens_per_s={"big": (9.0, 4.0)},
    ...     links={(None, "a"): 1e6, ("a", None): 1e6}, activation_bytes=8192, token_bytes=2,
    ... )
    >>> flows = ((None, "a", 5.0), ("a", None, 5.0))
    >>> check_layout(problem, LayerLayout((HostedRange("a", 0, 2),), flows))
    ["machine 'a' must carry at most 4 tokens/s with 2 layers, got 5"]
    """
    broken = []
    for each in layout.ranges:
        if each.machine not in problem.kinds:
            broken.append(f"machine {each.machine!r} is not in the problem")
            continue
        most = problem.max_layers(each.machine)
        if each.n_layers > most:
            broken.append(
                f"machine {each.machine!r} must hold at most {most} layers, got {each.n_layers}"
            )
        if each.stop > problem.n_layers:
            broken.append(
                f"machine {each.machine!r} must hold layers up to {problem.n_layers}, got"
                f" {each.stop}"
            )
    return broken or _broken_flows(problem, layout)


def _broken_flows(problem: LayerFlowProblem, layout: LayerLayout) -> list[str]:
    broken = []
    enters: dict[Place, float] = defaultdict(float)
    leaves: dict[Place, float] = defaultdict(float)
    legal = set(_pairs(problem, layout.ranges))
    for start, end, rate in layout.flows:
        enters[end] += rate
        leaves[start] += rate
        names = f"{start or 'coordinator'!r} to {end or 'coordinator'!r}"
        limit = problem.link_rate(start, end)
        if (start, end) not in legal:
            broken.append(f"no token can go from {names}")
        elif rate > limit * (1 + TOLERANCE):
            broken.append(
                f"the link from {names} must carry at most {limit:g} tokens/s, got {rate:g}"
            )
    for each in layout.ranges:
        rate, limit = enters[each.machine], problem.rate(each.machine, each.n_layers)
        if rate > limit * (1 + TOLERANCE):
            broken.append(
                f"machine {each.machine!r} must carry at most {limit:g} tokens/s with"
                f" {each.n_layers} layers, got {rate:g}"
            )
        if abs(rate - leaves[each.machine]) > TOLERANCE * max(rate, leaves[each.machine]):
            broken.append(
                f"machine {each.machine!r} must pass on what enters it, got {rate:g} in and"
                f" {leaves[each.machine]:g} out"
            )
    return broken
