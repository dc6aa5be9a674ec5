"""Verify the bound of a result on a `LayerFlowProblem`, in whole numbers.

The certificate has a flow and whole prices of the machines of each kind. A set of machines
whose rates sum to the flow covers a layer, and a machine that holds k layers gives each of
them 1 / k of its price. The cheapest cover is found by a knapsack over units of the flow.
Rates are rounded up to units and shares of prices down, so no cover is cheaper. If all
machines are not worth a cover for every layer, no layout has the flow.

``parts`` is for slow links. If every layer is held by one machine alone, the whole flow
passes from one machine to another, along links that carry it. Such links must join no two
parts, and each part must be refuted alone. Then some layer is held by two machines or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.verify.reading import Refuted

MAX_UNITS = 1_000_000


def verify_layer_flow(problem: LayerFlowProblem, certificate: Mapping[str, Any]) -> str:
    """Verify that no layout of a problem has the flow of a certificate.

    Parameters
    ----------
    problem : LayerFlowProblem
    certificate : mapping
        That of a `LayerFlowResult`.

    Returns
    -------
    str
        A sentence that states what is proven.

    Raises
    ------
    Refuted
        If the certificate does not prove its claim; the message says why.

    Examples
    --------
    >>> problem = LayerFlowProblem(
    ...     name="box", n_layers=2, kinds={"a": "big"}, tokens_per_s={"big": (9.0, 4.0)},
    ...     links={(None, "a"): 1e6, ("a", None): 1e6}, activation_bytes=8192, token_bytes=2,
    ... )
    >>> proof = {"tokens_per_s": 4.1, "units": 100, "prices": {"big": 10}, "parts": []}
    >>> verify_layer_flow(problem, proof)
    'no layout has a flow of 4.1 tokens/s'
    """
    flow, units = Fraction(certificate["tokens_per_s"]), int(certificate["units"])
    if flow <= 0 or not 1 <= units <= MAX_UNITS:
        raise Refuted(f"flow and units must be positive, got {float(flow)!r} and {units}")
    parts = certificate["parts"]
    everything = list(problem.kinds)
    if not parts:
        _refute(problem, everything, certificate["prices"], flow, units, needs_two=False)
    else:
        named = [machine for part in parts for machine in part["machines"]]
        if Counter(named) != Counter(everything):
            raise Refuted("parts must hold every machine once")
        part_of = {m: p for p, part in enumerate(parts) for m in part["machines"]}
        size = Fraction(problem.activation_bytes)
        for (start, end), rate in problem.links.items():
            if start is None or end is None or part_of[start] == part_of[end]:
                continue
            if Fraction(rate) >= flow * size:
                raise Refuted(f"the link from {start!r} to {end!r} carries the whole flow")
        for part in parts:
            _refute(
                problem, part["machines"], part["prices"], flow, units, needs_two=False
            )  # fmt: skip
        _refute(problem, everything, certificate["prices"], flow, units, needs_two=True)
    return f"no layout has a flow of {float(flow):.10g} tokens/s"


def _refute(
    problem: LayerFlowProblem,
    machines: list[str],
    prices: Mapping[str, int],
    flow: Fraction,
    units: int,
    *,
    needs_two: bool,
) -> None:
    """Raise Refuted unless some machines are not worth a cover for every layer."""
    counts = Counter(problem.kinds[machine] for machine in machines)
    best: dict[int, int] = {}  # the least price of a machine of so many units
    worth = 0
    for kind, n in counts.items():
        price = prices[kind]
        if not isinstance(price, int) or price < 0:
            raise Refuted(f"the price of {kind!r} must be a whole number, got {price!r}")
        worth += price * n
        for k, rate in enumerate(problem.tokens_per_s[kind][: problem.n_layers], 1):
            if rate > 0:
                u = min(units, -(-Fraction(rate) * units // flow))
                best[int(u)] = min(best.get(int(u), price), price // k)
    if not best:
        return
    items, cheapest = list(best.items()), min(best.values())
    least = [0] * (units + 1)
    for u in range(1, units + 1):
        least[u] = min(price + least[u - got if u > got else 0] for got, price in items)
    pairs = min(price + (least[units - u] if u < units else cheapest) for u, price in items)
    n_layers = problem.n_layers
    needed = (n_layers - 1) * least[units] + (pairs if needs_two else least[units])
    if worth >= needed:
        raise Refuted(f"the machines are worth {worth}, and covers of all layers {needed}")
