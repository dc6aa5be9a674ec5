"""Search for the split with the least simulated mean latency, with a proven bound."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hypsolve.planning.load import serve
from hypsolve.planning.request_mix import same_lengths
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.problem.units import show_seconds
from hypsolve.solve import METHODS, Method, solve
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.partition.hypsplit import MARGIN, pareto_frontier
from hypsolve.solvers.partition.stage_tables import cost_table, stage_table

METHOD = "simulated"  # name of the search in a `Result`
FASTEST = StageRule.FASTEST
CUT_STEPS = (1, 2, 4, 8)  # blocks by which the local search moves a cut
MAX_EVALUATIONS = 20_000  # of bounds of partial splits, where only the least bound is wanted
Cuts = tuple[int, ...]
Progress = Callable[[str], None]  # gets a line on the work in progress


class Splits:
    """Partitions of a deployment, with their simulated mean latency and a lower bound on it.

    The bound rests on these properties of the simulation:

    - A prompt is computed in chunks of at least one token, which follow each other through the
      stages. One token must pass every earlier stage before a stage can start on the prompt.
    - The stage then computes the whole prompt. One token must pass every later stage after
      that. Links behave like stages. (The first chunk skips a block that computes only the
      last token, unless all blocks after it do so too, as the head does.)
    - Decode passes follow one another. Each pass takes at least its time alone on the fastest
      node of each tier.
    - Batches, queues and contended links only add to these times.

    For one request, and hence for the mean over all requests, the bound is::

        bound = sum over stages and links of (one prompt token, all decode passes)
              + max over stages and links of (whole prompt - one prompt token)

    If lengths differ, the terms are means over the requests: the mean of a maximum is at least
    the maximum of the means.

    Parameters
    ----------
    deployment : Deployment
        The requests that are simulated.
    rules : mapping
        Arguments of `hypsolve.to_instance` that restrict the blocks of each tier.

    Attributes
    ----------
    instance : Instance
        All requests, objective ``mean_latency``.
    alone : Instance
        One request, or all of different lengths, objective ``path``.
    mean_s : dict
        Maps the cuts of every partition simulated so far to its mean latency in seconds.
    interrupted : bool
        Whether a KeyboardInterrupt ended the search.
    """

    def __init__(self, deployment: Deployment, rules: Mapping[str, Any]) -> None:
        self.deployment = deployment
        self.instance = to_instance(deployment, objective=Objective.MEAN_LATENCY, **rules)
        self.mean_s: dict[Cuts, float] = {}
        self.interrupted = False

        def alone(prompt: IntArray, output: IntArray) -> Instance:
            requests = Requests(np.zeros(len(prompt)), prompt, output)
            one = replace(deployment, requests=requests)
            return to_instance(one, objective=Objective.PATH, **rules)

        prompt, output = deployment.requests.prompt_tokens, deployment.requests.output_tokens
        if same_lengths(deployment.requests):
            prompt, output = prompt[:1], output[:1]
        one = np.ones(1, dtype=np.int64)
        self.alone = alone(prompt, output)
        self._first, self._token = alone(prompt, np.ones_like(prompt)), alone(one, one)

    @functools.cached_property
    def tables_s(self) -> tuple[Array, Array]:
        """Seconds that blocks i:j on tier k, with their link, add to the sum and to the max.

        Both arrays have the shape (n_tiers, n_blocks + 1, n_blocks + 1).
        """
        blocks = [np.array(p.reference_s) for p in (self.alone, self._first, self._token)]
        last_only = np.array([b.last_token_only for b in self.deployment.model.blocks])
        is_behind = np.logical_and.accumulate(last_only[::-1])[::-1]
        blocks[2][:, last_only & ~is_behind] = 0.0  # the first chunk skips these
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
        """The incumbent: least mean latency so far, and its cuts."""
        return min((value_s, cuts) for cuts, value_s in self.mean_s.items())

    def simulate(self, cuts: Cuts) -> float:
        """Return the simulated mean latency of a partition in seconds.

        Raises
        ------
        RuntimeError
            If it is below the bound, which would be a bug.
        """
        if cuts not in self.mean_s:
            trace = serve(self.deployment, Partition(cuts))
            value_s, bound_s = float(trace.latency_s.mean()), self.bound_s(cuts)
            rounding_s = 2.0**-50 * float(self.deployment.requests.arrival_s.max())
            if value_s < bound_s - rounding_s:
                raise RuntimeError(f"{cuts}: {value_s!r} s is below its bound, {bound_s!r} s")
            self.mean_s[cuts] = value_s
        return self.mean_s[cuts]

    def score(self, partition: Partition) -> float:
        """Return `simulate` of a partition, for `hypsolve.solve`."""
        return self.simulate(partition.cuts)

    def bound_s(self, cuts: Cuts) -> float:
        """Return the lower bound on the mean latency; inf if a rule forbids the partition."""
        added_s, largest_s = self.tables_s
        at = (np.arange(len(cuts) - 1), np.array(cuts[:-1]), np.array(cuts[1:]))
        return float(added_s[at].sum() + largest_s[at].max()) * (1 - MARGIN)

    def in_order_of_bound(self) -> Iterator[tuple[float, Cuts]]:
        """Yield every feasible partition with its bound, the least bound first."""
        return ((bound_s, cuts) for bound_s, cuts in self.by_bound() if cuts is not None)

    def min_bound_s(self) -> float:
        """Lower bound on the mean latency of every partition (weaker if cut off)."""
        bound_s = 0.0
        for next_s, cuts in itertools.islice(self.by_bound(), MAX_EVALUATIONS):
            bound_s = next_s
            if cuts is not None:
                break
        return bound_s

    def by_bound(self) -> Iterator[tuple[float, Cuts | None]]:
        """Yield partitions as `in_order_of_bound` does, and (bound, None) in between.

        The extra bounds hold for all partitions still to come, of which there can be very many.
        This is a best-first search over the tiers. Its estimate of the remaining tiers is exact
        for the sum and for the max apart, so bounds never decrease.
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
    splits: Splits,
    *,
    time_limit_s: float,
    seed: int = 0,
    bound_s: float = 0.0,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Search for the partition with the least simulated mean latency, and prove a bound.

    A local search starts from the Pareto frontier of throughput and latency. Then partitions
    are simulated in the order of their bounds. The search ends when the next bound is no better
    than the incumbent: no other partition can be better.

    Parameters
    ----------
    splits : Splits
    time_limit_s, seed, **options
        As in `hypsolve.solve`; the search takes no options, and draws nothing.
    bound_s : float
        A lower bound on the mean latency that is proved already.
    progress : callable, optional
        Called with a line on incumbent and gap before each simulation.

    Returns
    -------
    Result
        OPTIMAL for the very requests of `splits` if the search was completed. A
        KeyboardInterrupt ends the search as the time limit does, and sets `splits.interrupted`.
    """

    def simulated(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        return _search(splits, time_limit_s, progress or (lambda line: None))

    method = Method(
        simulated,
        "both",
        objectives=(Objective.MEAN_LATENCY,),
        kernels=("hypsplit",),
        score=splits.score,
        bound_s=bound_s,
    )
    return solve(splits.instance, method, time_limit_s=time_limit_s, seed=seed, **options)


def _search(splits: Splits, time_limit_s: float, progress: Progress) -> Outcome:
    deadline = Deadline(time_limit_s)
    first = solve(splits.alone, "hypsplit_dp")
    if first.partition is None:
        return Outcome(first.status, bound_s=first.bound_s, message=first.message)
    splits.simulate(first.partition.cuts)
    by_bound = splits.by_bound()
    bound_s, _ = next(by_bound)
    is_complete = False
    try:
        for bound_s, cuts in itertools.chain(
            ((bound_s, point.partition.cuts) for point in pareto_frontier(splits.alone)),
            ((bound_s, cuts) for cuts in _descent(splits)),
            by_bound,
        ):
            value_s, _ = splits.best
            if bound_s >= value_s:
                is_complete = True
                break
            if cuts is not None:
                progress(
                    f"{len(splits.mean_s)} splits simulated, least mean latency"
                    f" {show_seconds(value_s)}, gap {1 - bound_s / value_s:.1%}"
                )
            if deadline.has_passed():
                break
            if cuts is not None:
                splits.simulate(cuts)
        else:
            is_complete = True
    except KeyboardInterrupt:
        splits.interrupted = True
    value_s, cuts = splits.best
    message = f"{len(splits.mean_s)} splits simulated"
    if is_complete:
        message += ", no other can be better"
    elif splits.interrupted:
        message += ", interrupted"
    return Outcome(
        Status.OPTIMAL if is_complete or value_s <= bound_s else Status.FEASIBLE,
        Partition(cuts),
        bound_s=value_s if is_complete else bound_s,
        message=message,
        statistics={"n_simulated": len(splits.mean_s)},
    )


def solve_simulated(
    splits: Splits,
    name: str,
    *,
    time_limit_s: float,
    seed: int,
    bound_s: float = 0.0,
    **options: Any,
) -> Result:
    """Split with a method that minimises the bottleneck, and score the split by simulation.

    Parameters
    ----------
    splits : Splits
    name : str
        Name in `hypsolve.METHODS`.
    time_limit_s, seed, **options
        As in `hypsolve.solve`.
    bound_s : float
        A lower bound on the mean latency that is proved already.

    Returns
    -------
    Result
        Its bound holds for every partition of `splits`.
    """
    bottleneck = splits.alone.replace(objective=Objective.BOTTLENECK)

    def run(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        result = solve(bottleneck, name, time_limit_s=time_limit_s, seed=seed, **options)
        if result.partition is None:
            return Outcome(result.status, bound_s=result.bound_s, message=result.message)
        return Outcome(
            Status.FEASIBLE,
            result.partition,
            message="split for the least bottleneck, then simulated",
            statistics=result.statistics,
        )

    run.__name__ = name  # the method that the result states
    method = Method(
        run,
        "both",
        objectives=(Objective.MEAN_LATENCY,),
        kernels=METHODS[name].kernels,
        score=splits.score,
        bound_s=max(bound_s, splits.min_bound_s()),
    )
    return solve(splits.instance, method, time_limit_s=time_limit_s, seed=seed)


def _with_times(instance: Instance, block_s: Array, link_s: Array) -> Instance:
    """Return a copy of an instance with other times in seconds.

    Blocks have shape (n_classes, n_blocks), links (n_links, n_cuts).
    """
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
    """Yield neighbours of the incumbent, and of each better one that the caller simulates."""
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
    """Yield cuts in which one cut, or several adjacent cuts together, are moved."""
    inner = range(1, len(cuts) - 1)
    for step in CUT_STEPS:
        for first, last in itertools.combinations_with_replacement(inner, 2):
            for by in (-step, step):
                moved = tuple(
                    cut + by if first <= at <= last else cut for at, cut in enumerate(cuts)
                )
                if all(a <= b for a, b in itertools.pairwise(moved)):
                    yield moved
