"""The split of least mean latency, as the simulator has it: searched, with a proven bound."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve import evaluation
from hypsolve.costs import to_instance
from hypsolve.deployment import Deployment, Requests
from hypsolve.problem import Objective
from hypsolve.result import Result
from hypsolve.service import serve
from hypsolve.simulation import CHUNK_TOKENS
from hypsolve.solution import Partition, Status
from hypsolve.solve import solve
from hypsolve.solvers.hypsplit import MARGIN, pareto_frontier
from hypsolve.solvers.tables import cost_table
from hypsolve.units import show_seconds

METHOD = "simulated"  # name of the search in a `Result`
STEPS = (1, 2, 4, 8)  # blocks by which a cut is moved at a time
Array = NDArray[np.float64]
Cuts = tuple[int, ...]
Tell = Callable[[str], None]


class Splits:
    """Partitions with the mean latency of a deployment's requests: simulated, and bounded.

    A request cannot be served faster than the first chunk of its prompt and all its decode
    passes on an idle network, on the fastest node of each tier: batches, queues, further chunks
    and contended links only add to that. Hence the path latency of such a request bounds the
    mean, for one partition and, minimised, for all.

    Parameters
    ----------
    deployment : Deployment
        Its requests are alike, but for the arrivals.
    rules : mapping
        Arguments of `hypsolve.to_instance` that say where blocks may be.

    Attributes
    ----------
    instance, alone : Instance
        Of the requests; of the one that bounds them, objective ``path``.
    mean_s : dict
        Mean latency by cuts, of those simulated.
    """

    def __init__(self, deployment: Deployment, rules: Mapping[str, Any]) -> None:
        prompt = np.minimum(deployment.requests.prompt_tokens[:1], CHUNK_TOKENS)
        alone = Requests(np.zeros(1), prompt, deployment.requests.output_tokens[:1])
        self.deployment = deployment
        self.instance = to_instance(deployment, objective=Objective.MEAN_LATENCY, **rules)
        self.alone = to_instance(
            replace(deployment, requests=alone), objective=Objective.PATH, **rules
        )
        self.mean_s: dict[Cuts, float] = {}
        self._cost_s: Array | None = None

    @property
    def best(self) -> tuple[float, Cuts]:
        """The least mean latency so far, and its cuts."""
        return min((value_s, cuts) for cuts, value_s in self.mean_s.items())

    def simulate(self, cuts: Cuts) -> float:
        """Mean latency of a partition."""
        if cuts not in self.mean_s:
            trace = serve(self.deployment, Partition(cuts))
            self.mean_s[cuts] = float(trace.latency_s.mean())
        return self.mean_s[cuts]

    def bound_s(self, cuts: Cuts) -> float:
        """Of a partition; inf where a rule forbids it."""
        stages = zip(self.cost_s, cuts, cuts[1:], strict=False)
        return sum(float(cost_s[i, j]) for cost_s, i, j in stages) * (1 - MARGIN)

    def in_order_of_bound(self) -> Iterator[tuple[float, Cuts]]:
        """Every partition that is allowed with its bound, the least bound first.

        Best-first search over the tiers: what is left to pay is known exactly beforehand.
        """
        n_tiers, n_cuts, _ = self.cost_s.shape
        left_s = np.full((n_tiers + 1, n_cuts), math.inf)
        left_s[n_tiers, -1] = 0.0
        for k in range(n_tiers - 1, -1, -1):
            left_s[k] = (self.cost_s[k] + left_s[k + 1][None, :]).min(axis=1)
        heap: list[tuple[float, float, Cuts]] = [(float(left_s[0, 0]), 0.0, (0,))]
        while heap:
            bound_s, spent_s, cuts = heapq.heappop(heap)
            k, i = len(cuts) - 1, cuts[-1]
            if k == n_tiers:
                yield bound_s * (1 - MARGIN), cuts
                continue
            totals_s = spent_s + self.cost_s[k, i] + left_s[k + 1]
            for j in np.flatnonzero(np.isfinite(totals_s)).tolist():
                then_s = spent_s + float(self.cost_s[k, i, j])
                heapq.heappush(heap, (float(totals_s[j]), then_s, (*cuts, j)))

    @property
    def cost_s(self) -> Array:
        """See `cost_table`, of the request that bounds."""
        if self._cost_s is None:
            self._cost_s = cost_table(self.alone)
        return self._cost_s


def least_mean_latency(
    deployment: Deployment,
    rules: Mapping[str, Any],
    *,
    time_limit_s: float,
    tell: Tell | None = None,
) -> Result:
    """Search the partition whose simulated mean latency is least, and prove a bound.

    Local search from the Pareto frontier of throughput and latency; then partitions in the
    order of their bounds, until the next bound is no better than the best found: none is then.

    Parameters
    ----------
    deployment, rules
        As in `Splits`.
    time_limit_s : float
    tell : callable, optional
        Gets a line on what is known, after each simulation.

    Returns
    -------
    Result
        OPTIMAL for these very requests if the search came to its end. KeyboardInterrupt ends it
        as the time limit does; ``statistics["stopped"]`` says so.
    """
    started = time.perf_counter()
    splits = Splits(deployment, rules)
    first = solve(splits.alone, "hypsplit_dp")
    if first.partition is None:
        return replace(first, method=METHOD, instance=splits.instance)
    splits.simulate(first.partition.cuts)
    bound_s = first.bound_s
    stopped = is_whole = False
    try:
        for bound_s, cuts in itertools.chain(
            ((bound_s, point.partition.cuts) for point in pareto_frontier(splits.alone)),
            ((bound_s, cuts) for cuts in _descent(splits)),
            splits.in_order_of_bound(),
        ):
            value_s, _ = splits.best
            if bound_s >= value_s:
                is_whole = True
                break
            if tell is not None:
                tell(
                    f"{len(splits.mean_s)} splits simulated, least mean latency"
                    f" {show_seconds(value_s)}, gap {1 - bound_s / value_s:.1%}"
                )
            if time.perf_counter() - started > time_limit_s:
                break
            splits.simulate(cuts)
        else:
            is_whole = True
    except KeyboardInterrupt:
        stopped = True
    value_s, cuts = splits.best
    n = len(splits.mean_s)
    words = [f"{n} splits simulated"]
    words += ["no other can be better"] * is_whole + ["stopped"] * stopped
    return _checked(
        splits,
        Result(
            method=METHOD,
            status=Status.FEASIBLE,
            objective_s=value_s,
            bound_s=value_s if is_whole else bound_s,
            gap=math.nan,
            solve_time_s=time.perf_counter() - started,
            instance=splits.instance,
            partition=Partition(cuts),
            message=", ".join(words),
            statistics={"n_simulated": n, "stopped": stopped},
        ),
    )


def as_simulated(deployment: Deployment, rules: Mapping[str, Any], result: Result) -> Result:
    """The answer of a method that decides the partition alone, by its simulated mean latency.

    Parameters
    ----------
    deployment, rules
        As in `Splits`.
    result : Result
        Under another objective.
    """
    splits = Splits(deployment, rules)
    if result.partition is None:
        return replace(result, instance=splits.instance)
    return _checked(
        splits,
        replace(
            result,
            objective_s=splits.simulate(result.partition.cuts),
            bound_s=solve(splits.alone, "hypsplit_dp").bound_s,
            instance=splits.instance,
            certificate=None,
            message=f"split for the least {result.instance.objective}, then simulated",
        ),
    )


def _descent(splits: Splits) -> Iterator[Cuts]:
    """Neighbours of the best partition, and of the better ones that are found on the way."""
    is_better = True
    while is_better:
        is_better = False
        value_s, cuts = splits.best
        for other in _neighbours(cuts):
            if splits.bound_s(other) < value_s:
                yield other
                if splits.best[0] < value_s:
                    is_better = True
                    break


def _neighbours(cuts: Cuts) -> Iterator[Cuts]:
    """Cuts moved, one or several neighbours together."""
    inner = range(1, len(cuts) - 1)
    for step in STEPS:
        for first, last in itertools.combinations_with_replacement(inner, 2):
            for by in (-step, step):
                moved = tuple(
                    cut + by if first <= at <= last else cut for at, cut in enumerate(cuts)
                )
                if all(a <= b for a, b in itertools.pairwise(moved)):
                    yield moved


def _checked(splits: Splits, result: Result) -> Result:
    assert result.partition is not None
    broken = evaluation.check(splits.instance, result.partition)
    if broken or result.objective_s < result.bound_s:
        raise RuntimeError(
            f"{result.method}: its answer breaks {broken or 'its bound'}: {result.partition} of"
            f" {result.objective_s!r} s, bound {result.bound_s!r} s"
        )
    return with_bound(result, result.bound_s)


def with_bound(result: Result, bound_s: float) -> Result:
    """The same answer with another bound on these requests, and the gap to it."""
    value_s = result.objective_s
    return replace(
        result,
        bound_s=bound_s,
        gap=1 - bound_s / value_s if value_s else 0.0,
        status=Status.OPTIMAL if value_s <= bound_s else Status.FEASIBLE,
    )
