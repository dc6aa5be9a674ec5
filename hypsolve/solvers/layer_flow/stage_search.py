"""Layouts of stages: the machines of a stage share its layers, and any of them may run a token.

For a flow F, a stage is a least set of machines whose rates sum to F. A dynamic program over
the number of machines used of each kind finds the most layers that such stages hold, in any
order. F is found by bisection. Prices of the covering bound say which stages are too dear to
be part of an answer, and which states have wasted too much.

Where links that carry F join only parts of the machines, stages of one part follow each
other, and tokens go from part to part between two stages with enough pairs of machines. At
the end, machines of a kind are swapped as long as the flow rises.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hypsolve.kernels.layer_flow import most_layers
from hypsolve.problem.layer_evaluation import largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.layer_flow.covering_bound import (
    COARSE,
    CoveringBound,
    flow_limit,
    linked_parts,
)

MAX_STATES = 20_000_000
MAX_STAGES = 5_000  # of a dynamic program
MAX_ENDS = 400  # stages tried as the first or the last one of a part
MAX_PARTS = 5
ENDS = (1, 2, 3, 4)  # machines of the first and the last stage of a part
DISTANCE = 1e-4  # relative, at which the bisection ends


@dataclass(frozen=True)
class Stage:
    """Machines of each kind, and the layers that they hold together."""

    counts: tuple[int, ...]
    n_layers: int

    @property
    def size(self) -> int:
        """Number of machines."""
        return sum(self.counts)


class Part:
    """Machines that fast links join, and the stages that they can form for a flow."""

    def __init__(
        self, problem: LayerFlowProblem, machines: Sequence[str], flow: float,
        price: Mapping[str, float], slack: float,
    ) -> None:  # fmt: skip
        self.problem, self.machines = problem, tuple(machines)
        counts = Counter(problem.kinds[machine] for machine in machines)
        self.kinds = tuple(counts)
        self.limit = np.array([counts[kind] for kind in self.kinds])
        self.price = np.array([price.get(kind, 0.0) for kind in self.kinds])
        self.slack = slack
        self.stride = np.cumprod([1, *(self.limit[:-1] + 1)])
        self.n_states = int(np.prod(self.limit + 1))
        self.stages = list(itertools.islice(self._all_stages(flow), MAX_STAGES))
        self.layers = np.empty(0, np.int64)
        self.last = np.empty(0, np.int64)

    def _all_stages(self, flow: float) -> Iterator[Stage]:
        """Give the least sets of machines for each number of layers, the longest first."""
        rates = self.problem.tokens_per_s
        most = max(min(self.problem.n_layers, len(rates[kind])) for kind in self.kinds)
        seen = set()
        for k in range(most, 0, -1):
            of_kind = [max(rates[kind][k - 1 :], default=0.0) for kind in self.kinds]
            for counts in self._least_sets(of_kind, flow, k + self.slack):
                if counts not in seen:
                    seen.add(counts)
                    yield Stage(counts, k)

    def _least_sets(
        self, rates: list[float], flow: float, budget: float
    ) -> Iterator[tuple[int, ...]]:
        """Give the sets with a rate of at least `flow` that no machine can be left out of."""
        order = sorted(range(len(rates)), key=lambda kind: -rates[kind])
        counts = [0] * len(rates)

        def extend(position: int, missing: float, spent: float) -> Iterator[tuple[int, ...]]:
            for at in range(position, len(order)):
                kind = order[at]
                if rates[kind] <= 0 or counts[kind] >= self.limit[kind]:
                    continue
                cost = spent + self.price[kind]
                if cost > budget:
                    continue
                counts[kind] += 1
                if rates[kind] >= missing:  # the smallest machine is needed: so are all others
                    yield tuple(counts)
                else:
                    yield from extend(at, missing - rates[kind], cost)
                counts[kind] -= 1

        return extend(0, flow, 0.0)

    def search(self, n_layers: int) -> int:
        """Run the dynamic program; return the state with so many layers, or -1."""
        self.layers = np.empty(self.n_states, np.int64)
        self.last = np.empty(self.n_states, np.int64)
        if not self.stages:
            self.layers[:] = -1
            self.layers[0] = 0
            return -1
        uses = np.array([stage.counts for stage in self.stages])
        gain = np.array([stage.n_layers for stage in self.stages])
        return int(
            most_layers(
                uses, gain, self.limit, self.stride, self.price, self.slack, n_layers,
                self.layers, self.last,
            )
        )  # fmt: skip

    def taken(self, state: int) -> list[Stage]:
        """Return the stages that lead to a state."""
        stages = []
        while state:
            stage = self.stages[self.last[state]]
            stages.append(stage)
            state -= int(np.dot(stage.counts, self.stride))
        return stages

    def best_within(self, room: np.ndarray) -> tuple[int, int]:
        """Return the most layers of at most so many machines of each kind, and the state."""
        table = self.layers.reshape(tuple(self.limit[::-1] + 1))
        inside = table[tuple(slice(0, n + 1) for n in room[::-1])]
        where = np.unravel_index(int(inside.argmax()), inside.shape)
        return int(inside[where]), int(np.dot(where[::-1], self.stride))

    def between(self) -> dict[tuple[int, int], tuple[int, list[Stage]]]:
        """Return the longest sequences of stages, by machines of the first and the last one."""
        self.search(1 << 30)
        best: dict[tuple[int, int], tuple[int, list[Stage]]] = {}
        ends = self.stages[:MAX_ENDS]
        rests: dict[tuple[int, ...], tuple[int, int]] = {}
        for first, last in itertools.product(ends, [*ends, None]):
            used = np.array(first.counts) + (last.counts if last else 0)
            room = self.limit - used
            if room.min() < 0:
                continue
            key = tuple(map(int, room))
            if key not in rests:
                rests[key] = self.best_within(room)
            n, state = rests[key]
            if last is None:  # one stage is the first and the last one
                n, state = 0, 0
            n += first.n_layers + (last.n_layers if last else 0)
            sizes = (min(first.size, ENDS[-1]), min((last or first).size, ENDS[-1]))
            if n > best.get(sizes, (0,))[0]:
                middle = self.taken(state)
                best[sizes] = (n, [first, *middle, *([last] if last else [])])
        return best


Chain = list[tuple[Part, list[Stage]]]


def stages_for(
    bound: CoveringBound, flow: float, deadline: Deadline
) -> tuple[Chain | None, bool]:
    """Return stages that hold all layers at a flow, and whether their bound refutes it."""
    problem = bound.problem
    prices = bound.prices(flow, Counter(problem.kinds.values()), COARSE, deadline)
    if prices is None:
        return None, False
    if prices.refutes(problem.n_layers, needs_two=False):
        return None, True
    parts = linked_parts(problem, flow)
    if len(parts) > 1:
        return _chained(problem, parts, flow), False
    price = {kind: value / prices.least for kind, value in prices.price.items()}
    slack = prices.worth / prices.least - problem.n_layers + 1e-6
    part = Part(problem, parts[0], flow, price, slack)
    if part.n_states > MAX_STATES:
        raise ValueError(
            f"stage_dp: at most {MAX_STATES:,} sets of machines are searched, got"
            f" {part.n_states:,}"
        )
    state = part.search(problem.n_layers)
    return ([(part, part.taken(state))] if state >= 0 else None), False


def _chained(
    problem: LayerFlowProblem, parts: list[tuple[str, ...]], flow: float
) -> Chain | None:
    """Return stages of several parts, one after the other, if they hold all layers."""
    parts = sorted(parts, key=len, reverse=True)[:MAX_PARTS]
    made = [Part(problem, machines, flow, {}, math.inf) for machines in parts]
    tables = [part.between() if part.n_states <= MAX_STATES else {} for part in made]
    pairs = {
        (a, b): _pairs_needed(problem, parts[a], parts[b], flow)
        for a, b in itertools.permutations(range(len(parts)), 2)
    }
    for length in range(1, len(parts) + 1):
        for order in itertools.permutations(range(len(parts)), length):
            # by the machines of the last stage: the most layers, and the stages of each part
            reached: dict[int, tuple[int, list[list[Stage]]]] = {ENDS[-1]: (0, [])}
            for at, p in enumerate(order):
                then: dict[int, tuple[int, list[list[Stage]]]] = {}
                for size, (n, stages) in reached.items():
                    for (first, last), (more, added) in tables[p].items():
                        if at and size * first < pairs[order[at - 1], p]:
                            continue
                        if n + more > then.get(last, (0,))[0]:
                            then[last] = (n + more, [*stages, added])
                reached = then
            for n, stages in reached.values():
                if n >= problem.n_layers:
                    return [(made[p], each) for p, each in zip(order, stages, strict=True)]
    return None


def _pairs_needed(
    problem: LayerFlowProblem, first: tuple[str, ...], then: tuple[str, ...], flow: float
) -> float:
    """Return how many links from a part to another carry a flow, at their mean rate."""
    rates = [problem.link_rate(a, b) for a in first for b in then]
    total = sum(rates)
    return math.ceil(flow * len(rates) / total) if total > 0 else math.inf


def as_layout(problem: LayerFlowProblem, chain: Chain) -> LayerLayout:
    """Return the layout of stages; machines of a kind are taken in their order."""
    ranges, start = [], 0
    for part, stages in chain:
        free = {
            kind: [m for m in part.machines if problem.kinds[m] == kind] for kind in part.kinds
        }
        for stage in stages:
            stop = min(start + stage.n_layers, problem.n_layers)
            if stop <= start:
                break
            for kind, n in zip(part.kinds, stage.counts, strict=True):
                if not n:
                    continue
                rates = problem.tokens_per_s[kind]
                lengths = range(stop - start, min(stop, len(rates)) + 1)
                held = max(lengths, key=lambda k: (rates[k - 1], -k))
                for _ in range(n):
                    ranges.append(HostedRange(free[kind].pop(0), stop - held, stop))
            start = stop
    return largest_flow(problem, ranges)


def swapped(
    problem: LayerFlowProblem, layout: LayerLayout, flow: float, deadline: Deadline, seed: int
) -> LayerLayout:
    """Swap machines of a kind, or one with an unused one, as long as that raises the flow."""
    rng = np.random.default_rng(seed)
    improved = True
    while improved and layout.tokens_per_s < flow * (1 - 1e-9):
        improved = False
        ranges = {each.machine: each for each in layout.ranges}
        pairs = [
            (a, b)
            for a, b in itertools.combinations(problem.machines, 2)
            if problem.kinds[a] == problem.kinds[b]
            and (a in ranges or b in ranges)
            and (a not in ranges or b not in ranges or ranges[a].start != ranges[b].start)
        ]
        for index in rng.permutation(len(pairs)):
            if deadline.has_passed():
                return layout
            names = pairs[index]
            other = dict(zip(names, names[::-1], strict=True))
            tried = largest_flow(
                problem,
                [
                    HostedRange(other.get(each.machine, each.machine), each.start, each.stop)
                    for each in layout.ranges
                ],
            )
            if tried.tokens_per_s > layout.tokens_per_s * (1 + 1e-9):
                layout, improved = tried, True
                break
    return layout


def search(
    bound: CoveringBound, deadline: Deadline, seed: int
) -> tuple[LayerLayout | None, int]:
    """Return the best layout of stages that bisection finds, and the number of flows tried."""
    problem = bound.problem
    high = flow_limit(problem) * (1 + 1e-9)
    low, best, n = 0.0, None, 0
    while high > low * (1 + DISTANCE) and high > 1e-6 and not deadline.has_passed():
        flow = math.sqrt(low * high) if low > 0 else high / 2
        n += 1
        chain, _ = stages_for(bound, flow, deadline)
        if chain is None:
            high = flow
            continue
        layout = swapped(problem, as_layout(problem, chain), flow, deadline, seed)
        if best is None or layout.tokens_per_s > best.tokens_per_s:
            best = layout
        if layout.tokens_per_s < flow * (1 - 1e-9):
            high = flow  # links do not carry it
        low = max(low, layout.tokens_per_s)
    return best, n
