"""The split of least mean latency, as the simulator has it: searched, with a proven bound."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hypsolve.planning.forecast import serve
from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Partition, Status
from hypsolve.problem.units import show_seconds
from hypsolve.solve import solve
from hypsolve.solvers.partition.hypsplit import MARGIN, pareto_frontier
from hypsolve.solvers.partition.stage_tables import cost_table, stage_table

METHOD = "simulated"  # name of the search in a `Result`
FASTEST = StageRule.FASTEST
STEPS = (1, 2, 4, 8)  # blocks by which a cut is moved at a time
MAX_LOOKS = 20_000  # at partial splits, where only the least bound is asked for
Cuts = tuple[int, ...]
Tell = Callable[[str], None]


class Splits:
    """Partitions with the mean latency of a deployment's requests: simulated, and bounded.

    A prompt is computed in chunks of at least one token, which follow each other through the
    stages. So before a stage can work on it, a token has passed all stages before; the stage
    computes the whole prompt; then a token passes all stages behind. The same holds for links.
    (A block that computes the last token alone is passed by, unless all behind it do the same,
    as the head.) Decode passes follow one another. Each takes at least what it takes alone, on
    the quickest node of its tier: batches, queues and contended links only add to that. Hence,
    for one request and for the mean of all ::

        bound = sum of stages and links (one prompt token, all decode passes)
              + max over stages and links (whole prompt - one prompt token)

    Parameters
    ----------
    deployment : Deployment
        Its requests are alike, but for the arrivals.
    rules : mapping
        Arguments of `hypsolve.to_instance` that say where blocks may be.

    Attributes
    ----------
    instance, alone : Instance
        Of the requests; of one of them, objective ``path``.
    mean_s : dict
        Mean latency by cuts, of those simulated.
    """

    def __init__(self, deployment: Deployment, rules: Mapping[str, Any]) -> None:
        self.deployment = deployment
        self.instance = to_instance(deployment, objective=Objective.MEAN_LATENCY, **rules)
        self.mean_s: dict[Cuts, float] = {}

        def alone(prompt: int, output: int) -> Instance:
            request = Requests(np.zeros(1), np.array([prompt]), np.array([output]))
            one = replace(deployment, requests=request)
            return to_instance(one, objective=Objective.PATH, **rules)

        requests = deployment.requests
        prompt, output = int(requests.prompt_tokens[0]), int(requests.output_tokens[0])
        self.alone = alone(prompt, output)
        self._first, self._token = alone(prompt, 1), alone(1, 1)

    @functools.cached_property
    def tables_s(self) -> tuple[Array, Array]:
        """What blocks i:j on tier k, with their link, add to the sum and to the largest."""
        blocks = [np.array(p.reference_s) for p in (self.alone, self._first, self._token)]
        last_only = np.array([b.last_token_only for b in self.deployment.model.blocks])
        is_behind = np.logical_and.accumulate(last_only[::-1])[::-1]
        blocks[2][:, last_only & ~is_behind] = 0.0  # the first chunk passes these by
        links = [
            part.reference_transfer_kind_s[:, part.cut_kind]
            for part in (self.alone, self._first, self._token)
        ]
        (decodes_s, rest_s), (decode_links_s, rest_links_s) = (
            (np.maximum(whole - first, 0.0) + token, np.maximum(first - token, 0.0))
            for whole, first, token in (blocks, links)
        )
        largest_s = stage_table(_with_times(self.alone, rest_s, rest_links_s), FASTEST)
        largest_s[:-1] = np.maximum(largest_s[:-1], rest_links_s[:, None, :])
        return cost_table(_with_times(self.alone, decodes_s, decode_links_s)), largest_s

    @property
    def best(self) -> tuple[float, Cuts]:
        """The least mean latency so far, and its cuts."""
        return min((value_s, cuts) for cuts, value_s in self.mean_s.items())

    def simulate(self, cuts: Cuts) -> float:
        """Mean latency of a partition."""
        if cuts not in self.mean_s:
            trace = serve(self.deployment, Partition(cuts))
            value_s, bound_s = float(trace.latency_s.mean()), self.bound_s(cuts)
            if value_s < bound_s:
                raise RuntimeError(f"{cuts}: {value_s!r} s is below its bound, {bound_s!r} s")
            self.mean_s[cuts] = value_s
        return self.mean_s[cuts]

    def bound_s(self, cuts: Cuts) -> float:
        """Of a partition; inf where a rule forbids it."""
        added_s, largest_s = self.tables_s
        at = (np.arange(len(cuts) - 1), np.array(cuts[:-1]), np.array(cuts[1:]))
        return float(added_s[at].sum() + largest_s[at].max()) * (1 - MARGIN)

    def in_order_of_bound(self) -> Iterator[tuple[float, Cuts]]:
        """Every partition that is allowed with its bound, the least bound first."""
        return ((bound_s, cuts) for bound_s, cuts in self.looks() if cuts is not None)

    def min_bound_s(self) -> float:
        """Of all partitions: the least of their bounds, or less where that takes long."""
        bound_s = 0.0
        for look_s, cuts in itertools.islice(self.looks(), MAX_LOOKS):
            bound_s = look_s
            if cuts is not None:
                break
        return bound_s

    def looks(self) -> Iterator[tuple[float, Cuts | None]]:
        """The same, and between them bounds of all that follows: there can be very many.

        Best-first search over the tiers: the least that can be left to pay is known beforehand.
        """
        added_s, largest_s = self.tables_s
        n_tiers, n_cuts, _ = added_s.shape
        left_s = np.full((n_tiers + 1, n_cuts), math.inf)
        left_s[n_tiers, -1] = 0.0
        left_largest_s = left_s.copy()
        for k in range(n_tiers - 1, -1, -1):
            left_s[k] = (added_s[k] + left_s[k + 1][None, :]).min(axis=1)
            rest_s = np.maximum(largest_s[k], left_largest_s[k + 1][None, :])
            left_largest_s[k] = rest_s.min(axis=1)
        min_s = float(left_s[0, 0] + left_largest_s[0, 0])
        heap: list[tuple[float, float, float, Cuts]] = []
        if math.isfinite(min_s):
            heap.append((min_s, 0.0, 0.0, (0,)))
        while heap:
            bound_s, prefix_seconds, worst_s, cuts = heapq.heappop(heap)
            k, i = len(cuts) - 1, cuts[-1]
            if k == n_tiers:
                yield bound_s * (1 - MARGIN), cuts
                continue
            yield bound_s * (1 - MARGIN), None
            then_s = prefix_seconds + added_s[k, i]
            worsts_s = np.maximum(worst_s, largest_s[k, i])
            bounds_s = then_s + left_s[k + 1] + np.maximum(worsts_s, left_largest_s[k + 1])
            for j in np.flatnonzero(np.isfinite(bounds_s)).tolist():
                entry = (float(bounds_s[j]), float(then_s[j]), float(worsts_s[j]), (*cuts, j))
                heapq.heappush(heap, entry)


def minimise_mean_latency(
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
    looks = splits.looks()
    bound_s, _ = next(looks)
    stopped = is_whole = False
    try:
        for bound_s, cuts in itertools.chain(
            ((bound_s, point.partition.cuts) for point in pareto_frontier(splits.alone)),
            ((bound_s, cuts) for cuts in _descent(splits)),
            looks,
        ):
            value_s, _ = splits.best
            if bound_s >= value_s:
                is_whole = True
                break
            if cuts is None:
                if time.perf_counter() - started > time_limit_s:
                    break
                continue
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
            bound_s=splits.min_bound_s(),
            instance=splits.instance,
            certificate=None,
            message=f"split for the least {result.instance.objective}, then simulated",
        ),
    )


def _with_times(instance: Instance, block_s: Array, link_s: Array) -> Instance:
    """The same with other seconds: blocks (n_classes, n_blocks), links (n_links, n_cuts)."""
    return instance.replace(
        kind_s=block_s[None],
        reference_kind_s=block_s,
        block_kind=np.arange(instance.n_blocks),
        transfer_kind_s=link_s[None],
        reference_transfer_kind_s=link_s,
        occupancy_kind_s=link_s[None],
        reference_occupancy_kind_s=link_s,
        cut_kind=np.arange(instance.n_blocks + 1),
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
