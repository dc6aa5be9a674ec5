"""`throughput_exact`: the best splits of a batched server in the fluid model."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_result import ServingOutcome
from hypsolve.problem.solution import Partition, Status
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.certificates import refute
from hypsolve.solvers.throughput.server_arrays import server_of

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

MARGIN = 1e-8
"""Relative margin of the bound: the kernels find the largest rate to 1e-10 of it."""
LEAST = 1e-9  # requests per second that no split carries if there is no answer


class Ranked(NamedTuple):
    """A split with its rate and its value; a larger value is better."""

    value: float
    rate: float
    cuts: tuple[int, ...]


def throughput_exact(
    instance: ServingInstance, *, time_limit_s: float, seed: int, n_splits: int = 1
) -> ServingOutcome:
    """Maximise the fluid request rate over all splits, or minimise the price per request.

    Under the batching mode ``stage``, bisection on the rate X: stages that carry X and have KV
    memory for a hold time h are open, the shortest chain of open stages is the next h, and X is
    carried once h does not grow. Targets for latencies make it a chain of labels with Pareto
    dominance. Under ``pipeline`` and ``serial``, all numbers of requests per cycle are tried
    that the KV memory of some stage allows; for each, the shortest chain of stages that are
    short enough decides. The answer is optimal over all splits in the fluid model of
    `hypsolve.problem.serving_stage_mode` and `serving_pipelines`.

    The result has a certificate that no split carries more, which `hypsolve.verify.verify`
    checks, unless the objective is ``cost``.

    Under the objective ``cost``, the method solves each set of tiers that may host blocks, in
    the order of its price, until no dearer set can be better.

    Parameters
    ----------
    instance : ServingInstance
    time_limit_s : float
        The method looks at the clock between the solves of single sets of tiers or of further
        splits. The first solve takes milliseconds.
    seed : int
        Not used: the method is deterministic.
    n_splits : int
        Number of splits. The best one is the partition, and the next best ones are the
        alternatives, in order and without a gap [1]_: the set of all other splits is divided at
        each cut of every split found, and each part is solved. Splits that carry no rate are
        left out.

    Returns
    -------
    ServingOutcome

    References
    ----------
    .. [1] E. L. Lawler, "A procedure for computing the k best solutions to discrete
       optimization problems and its application to the shortest path problem", Management
       Science 18 (1972).

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3], [2e-3]], block_kind=[0] * 6, tiers=[[(0, 1e9)], [(1, 1e9)]],
    ...     prompt_tokens=100, output_tokens=10, max_num_seqs=20, name="two speeds",
    ... )
    >>> result = hs.solve(instance, "throughput_exact", n_splits=3)
    >>> result
    <ServingResult of throughput_exact on 'two speeds': optimal, fluid rate 500 requests/s, \
fluid gap 0.000%>
    >>> print(result.partition)
    0:4 | 4:6
    >>> [str(partition) for partition, _ in result.alternatives]
    ['0:5 | 5:6', '0:3 | 3:6']
    """
    n_splits = valid.whole("throughput_exact", "n_splits", n_splits, minimum=1)
    deadline = Deadline(time_limit_s)
    server = server_of(instance)
    statistics = {"trials": 0, "solves": 0}
    solver = BoxSolver(instance, server, deadline, statistics)
    found = list(itertools.islice(solver.ranked(), n_splits))
    if not found:
        if solver.was_cut_off:
            return ServingOutcome(Status.UNKNOWN, message="the time limit has passed")
        message = _why_none(instance, server)
        return ServingOutcome(
            Status.INFEASIBLE,
            message=message,
            statistics=statistics,
            certificate=refute(instance, server, LEAST),
        )
    best = found[0]
    is_cost = instance.objective is ServingObjective.COST
    status = Status.FEASIBLE if solver.is_incomplete else Status.OPTIMAL
    bound = -best.value * (1 - MARGIN) if is_cost else best.value * (1 + MARGIN)
    certificate = None if is_cost else refute(instance, server, best.rate)
    if certificate is not None:
        bound = certificate.refuted_requests_per_s
    message = "" if len(found) == n_splits or not solver.was_cut_off else "stopped by the clock"
    return ServingOutcome(
        status,
        Partition(best.cuts),
        fluid_bound=bound if status is Status.OPTIMAL else None,
        alternatives=tuple(Partition(split.cuts) for split in found[1:]),
        message=message,
        statistics=statistics,
        certificate=certificate,
    )


class BoxSolver:
    """Solve boxes: sets of splits whose cuts lie in given ranges."""

    def __init__(
        self,
        instance: ServingInstance,
        server: Server,
        deadline: Deadline,
        statistics: dict[str, int],
    ) -> None:
        self.instance, self.server, self.deadline = instance, server, deadline
        self.statistics = statistics
        self.was_cut_off = self.is_incomplete = False
        self.is_cost = instance.objective is ServingObjective.COST
        self.price = np.array(
            [
                sum(float(instance.price_per_hour[node]) for node in instance.nodes_of(k))
                for k in range(instance.n_tiers)
            ]
        )

    def ranked(self) -> Iterator[Ranked]:
        """Yield splits from the best on; see `throughput_exact`."""
        counter = itertools.count()  # breaks ties in the heap by age
        heap: list[tuple[float, int, Ranked, Server, int]] = []

        def push(server: Server, fixed: int) -> None:
            split = self.best(server)
            if split is not None:
                heapq.heappush(heap, (-split.value, next(counter), split, server, fixed))

        push(self.server, 1)
        while heap:
            _, _, split, server, fixed = heapq.heappop(heap)
            yield split
            for part, at in parts(server, split.cuts, fixed):
                if self.deadline.has_passed():
                    self.was_cut_off = True
                    return
                push(part, at)

    def best(self, server: Server) -> Ranked | None:
        """Return the best split within the limits of the cuts and blocks."""
        if not self.is_cost:
            return self._solve(server, 0.0)
        return self._cheapest(server)

    def _solve(self, server: Server, hourly: float) -> Ranked | None:
        from hypsolve.kernels import throughput

        cuts = np.zeros(self.instance.n_tiers + 1, np.int64)
        rate, trials = throughput.max_rate(server, cuts)
        self.statistics["trials"] += int(trials)
        self.statistics["solves"] += 1
        if rate <= 0:
            return None
        value = -hourly / 3600 / rate if self.is_cost else rate
        return Ranked(float(value), float(rate), tuple(cuts.tolist()))

    def _cheapest(self, server: Server) -> Ranked | None:
        """Return the split of the least price per request, over the sets of tiers used."""
        fastest = self._solve(server, 0.0)
        if fastest is None:
            return None
        must = server.min_blocks > 0
        free = [k for k in range(self.instance.n_tiers) if not must[k]]
        best: Ranked | None = None
        for hourly, used in self._sets(must, free):
            if best is not None and hourly / 3600 / fastest.rate >= -best.value:
                break
            if self.deadline.has_passed():
                self.was_cut_off = self.is_incomplete = True
                break
            is_used = np.isin(np.arange(self.instance.n_tiers), used)
            part = server._replace(
                min_blocks=np.where(is_used, np.maximum(server.min_blocks, 1), 0),
                max_blocks=np.where(is_used, server.max_blocks, 0),
            )
            if (part.min_blocks > part.max_blocks).any():
                continue
            split = self._solve(part, hourly)
            if split is not None and (best is None or split > best):
                best = split
        return best

    def _sets(
        self, must: np.ndarray, free: list[int]
    ) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Yield the sets of tiers that may host blocks, the cheapest first."""
        fixed = tuple(np.flatnonzero(must).tolist())
        base = float(self.price[list(fixed)].sum())
        heap = [(base, fixed, 0)]
        order = sorted(free, key=lambda k: self.price[k])
        while heap:
            hourly, used, first = heapq.heappop(heap)
            if used:
                yield hourly, used
            for at in range(first, len(order)):
                k = order[at]
                heapq.heappush(heap, (hourly + float(self.price[k]), (*used, k), at + 1))


def parts(server: Server, cuts: tuple[int, ...], fixed: int) -> Iterator[tuple[Server, int]]:
    """Divide all splits but one into parts: equal up to a cut, and smaller or larger there.

    Cuts before `fixed` are equal in all splits of the part that the given split came from.
    """
    for at in range(fixed, len(cuts) - 1):
        for low, high in (
            (int(server.cut_min[at]), cuts[at] - 1),
            (cuts[at] + 1, int(server.cut_max[at])),
        ):
            if low > high:
                continue
            cut_min, cut_max = server.cut_min.copy(), server.cut_max.copy()
            cut_min[1:at] = cut_max[1:at] = cuts[1:at]
            cut_min[at], cut_max[at] = low, high
            yield server._replace(cut_min=cut_min, cut_max=cut_max), at


def _why_none(instance: ServingInstance, server: Server) -> str:
    """Return why no split carries any rate."""
    from hypsolve.kernels import throughput

    free = server.targets._replace(
        ttft_s=np.inf, tpot_s=np.inf, latency_s=np.inf, users=np.inf, think_time_s=0.0
    )
    cuts = np.zeros(instance.n_tiers + 1, np.int64)
    if throughput.max_rate(server._replace(targets=free), cuts)[0] > 0:
        return "no split meets the targets for latencies at any rate"
    return "no split fits: memory, pinned blocks or numbers of blocks allow none"
