"""Upper bounds on the flow through layers: every layer must be covered by enough machines.

For a flow F, the machines that hold a layer have rates of at least F together. A machine with
k layers gives each of them 1 / k of itself. Let a machine of kind t have the price y_t. If
every set of machines with a total rate of at least F costs at least c, with y_t / k for a
machine of k layers, then all layers cost at least n c. If all machines together are worth
less, F is refuted (Farley 1990). The prices come from the linear program over such sets,
whose columns the knapsack finds.

Links: where every layer is held by one machine alone, all tokens go from one machine to the
next. If links that carry F join only parts of the machines, such a layout uses one part
alone. If no part suffices, some layer is held by two machines or more. Let such sets cost at
least c'. Then F is refuted if all machines are worth less than (n - 1) c + c'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypsolve.kernels.layer_flow import cheapest_covers
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.backends.pulp import run_on_one_thread, silent_highs
from hypsolve.solvers.clock import Deadline

COARSE, FINE = 8_000, 100_000
"""Units of the refuted flow, to which rates are rounded up."""
TICKS = 10**9
"""Ticks of a price of 1 in a certificate."""
MAX_COLUMNS = 500  # of one refutation
BISECTION = 1e-4  # relative distance at which the bisection ends

MARGIN = 1e-7  # relative, of a refutation: more than rounding to ticks takes
SMALLEST = 1e-9  # tokens per second

Item = tuple[str, int]
"""A machine of a kind that holds so many layers."""


@dataclass(frozen=True)
class Prices:
    """Prices of the kinds of machines, from a linear program over covers of a layer.

    Attributes
    ----------
    flow : float
        Tokens per second of a cover.
    price : dict of str to float
        Of a machine of each kind.
    worth : float
        Price of all machines.
    least, least_of_two : float
        Price of the cheapest cover of a layer, and of the cheapest by two machines or more.
    """

    flow: float
    price: Mapping[str, float]
    worth: float
    least: float
    least_of_two: float

    def refutes(self, n_layers: int, needs_two: bool) -> bool:
        """Return True if the machines are not worth covers of all layers."""
        last = self.least_of_two if needs_two else self.least
        return self.worth < ((n_layers - 1) * self.least + last) * (1 - MARGIN)


class CoveringBound:
    """Refutes flows through the layers of a problem."""

    def __init__(self, problem: LayerFlowProblem, method: str) -> None:
        self.problem, self.method = problem, method
        self.covers: list[Counter[Item]] = []

    def items(self, kinds: Iterable[str]) -> list[Item]:
        """Return what a machine of some kinds can be."""
        problem = self.problem
        return [
            (kind, k)
            for kind in kinds
            for k in range(1, min(problem.n_layers, len(problem.tokens_per_s[kind])) + 1)
            if problem.tokens_per_s[kind][k - 1] > 0
        ]

    def prices(
        self, flow: float, counts: Mapping[str, int], units: int, deadline: Deadline
    ) -> Prices | None:
        """Solve the linear program for a flow and some machines; None if time is up.

        The search ends early if the prices refute the flow, with or without links.
        """
        n_layers = self.problem.n_layers
        items = self.items(counts)
        if not items:
            return Prices(flow, {}, 0.0, 1.0, 1.0)
        kinds = list(counts)
        rates = np.array([self.problem.tokens_per_s[kind][k - 1] for kind, k in items])
        whole = np.minimum(units, np.ceil(rates / flow * units * (1 + 1e-12))).astype(np.int64)
        master = _Master(self.method, [counts[kind] for kind in kinds])
        known = set(items)
        for cover in self.covers:
            if known.issuperset(cover) and self._rate(cover) >= flow:
                master.add(_shares(cover, kinds))
        for (kind, k), rate in zip(items, rates, strict=True):
            master.add(_shares(Counter({(kind, k): math.ceil(flow / rate)}), kinds))
        least = np.empty(units + 1)
        last = np.empty(units + 1, np.int64)
        best = None
        for _ in range(MAX_COLUMNS):
            if deadline.has_passed():
                return best
            value, dual = master.solve()
            of_item = np.array([dual[kinds.index(kind)] / k for kind, k in items])
            cheapest_covers(of_item, whole, least, last)
            rest = np.maximum(0, units - whole)
            others = np.where(rest > 0, least[rest], of_item.min())
            worth = float(dual @ [counts[kind] for kind in kinds])
            best = Prices(
                flow, dict(zip(kinds, map(float, dual), strict=True)), worth,
                float(least[units]), float((of_item + others).min()),
            )  # fmt: skip
            if least[units] >= 1 - 1e-9 or best.refutes(n_layers, needs_two=False):
                return best
            cover = _taken(items, whole, last)
            if self._rate(cover) >= flow:
                self.covers.append(cover)
            master.add(_shares(cover, kinds))
            if value > n_layers + 2:
                return best
        return best

    def _rate(self, cover: Counter[Item]) -> float:
        rates = self.problem.tokens_per_s
        return sum(rates[kind][k - 1] * n for (kind, k), n in cover.items())

    def refutation(
        self, flow: float, deadline: Deadline, units: int = COARSE
    ) -> dict[str, Any] | None:
        """Return a certificate that no layout has so large a flow, or None without a proof."""
        whole = Counter(self.problem.kinds.values())
        found = self.prices(flow, whole, units, deadline)
        if found is None:
            return None
        if found.refutes(self.problem.n_layers, needs_two=False):
            return _certificate(found, units, [])
        if not found.refutes(self.problem.n_layers, needs_two=True):
            return None
        parts = linked_parts(self.problem, flow)
        if len(parts) == 1:
            return None
        alone = []
        for part in parts:
            counts = Counter(self.problem.kinds[machine] for machine in part)
            proof = self.prices(flow, counts, units, deadline)
            if proof is None or not proof.refutes(self.problem.n_layers, needs_two=False):
                return None
            alone.append({"machines": list(part), **_ticks(proof)})
        return _certificate(found, units, alone)

    def bound(self, at_least: float, deadline: Deadline) -> tuple[float, dict[str, Any] | None]:
        """Return a flow that no layout exceeds, and the certificate; valid at any time.

        `at_least` is a flow that some layout has. Flows just above it are tried first, then the
        bound is found by bisection.
        """
        high = flow_limit(self.problem) * (1 + 1e-9)
        proof = None
        for units in (COARSE, FINE):
            flow = at_least * (1 + 2 / units)
            found = self.refutation(flow, deadline, units) if 0 < flow < high else None
            if found is None:
                break
            high, proof = flow, found
        low = at_least if proof is None else high  # nothing is left to bisect
        while high > max(low, SMALLEST) * (1 + BISECTION) and not deadline.has_passed():
            flow = math.sqrt(low * high) if low > 0 else high / 2
            found = self.refutation(flow, deadline)
            if found is not None:
                high, proof = flow, found
            else:
                low = flow
        return high, proof


def flow_limit(problem: LayerFlowProblem) -> float:
    """Return a bound by machines alone: all layers take at least so many of them."""
    return math.fsum(
        max((rate * k for k, rate in enumerate(problem.tokens_per_s[kind], 1)), default=0.0)
        for kind in problem.kinds.values()
    ) / problem.n_layers  # fmt: skip


def linked_parts(problem: LayerFlowProblem, flow: float) -> list[tuple[str, ...]]:
    """Return the machines in parts that links of at least some tokens per second join."""
    part = {machine: machine for machine in problem.machines}

    def root(machine: str) -> str:
        while part[machine] != machine:
            machine = part[machine]
        return machine

    for start, end in problem.links:
        joins = start is not None and end is not None
        if joins and problem.link_rate(start, end) >= flow:
            part[root(str(end))] = root(str(start))
    parts: dict[str, list[str]] = {}
    for machine in problem.machines:
        parts.setdefault(root(machine), []).append(machine)
    return [tuple(each) for each in parts.values()]


def _shares(cover: Counter[Item], kinds: list[str]) -> np.ndarray:
    shares = np.zeros(len(kinds))
    for (kind, k), n in cover.items():
        shares[kinds.index(kind)] += n / k
    return shares


def _taken(items: list[Item], whole: np.ndarray, last: np.ndarray) -> Counter[Item]:
    cover: Counter[Item] = Counter()
    left = len(last) - 1
    while left > 0:
        i = int(last[left])
        cover[items[i]] += 1
        left = max(0, left - int(whole[i]))
    return cover


def _ticks(found: Prices) -> dict[str, Any]:
    """Return prices as whole ticks, by a scale that makes the cheapest cover cost about 1."""
    scale = TICKS / found.least
    return {"prices": {kind: round(price * scale) for kind, price in found.price.items()}}


def _certificate(found: Prices, units: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "layer covering",
        "tokens_per_s": found.flow,
        "units": units,
        **_ticks(found),
        "parts": parts,
    }


class _Master:
    """The linear program over covers: as many layers as possible, with the machines there."""

    def __init__(self, method: str, counts: list[int]) -> None:
        self.highspy = load_backend(method, "highspy", "highspy>=1.16,<1.17")
        self.highs = silent_highs(self.highspy)
        for count in counts:
            self.highs.addRow(-self.highspy.kHighsInf, float(count), 0, [], [])

    def add(self, shares: np.ndarray) -> None:
        """Add a cover that takes some shares of the kinds of machines."""
        rows = np.flatnonzero(shares).astype(np.int32)
        self.highs.addCol(-1.0, 0.0, self.highspy.kHighsInf, len(rows), rows, shares[rows])

    def solve(self) -> tuple[float, np.ndarray]:
        """Return the largest number of layers, and the prices of the machines."""
        run_on_one_thread(self.highspy, self.highs)
        dual = np.maximum(0.0, -np.array(self.highs.getSolution().row_dual))
        return -self.highs.getInfo().objective_function_value, dual
