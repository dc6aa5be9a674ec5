"""`refute`: a certificate that no split carries a rate, for `hypsolve.verify`.

The certificate is made for a rate that is a little lower, so that the verifier, which rounds
every number against the claim, still comes to the same conclusions.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.rate_certificate import HoldStep, LevelRange, RateCertificate
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

MARGINS = (1e-8, 1e-7, 5e-7)
"""Relative amounts by which the refuted rate exceeds the best one. The smallest one fails where
a target is missed by a rounding error only, because latencies hardly depend on the rate."""
LOWERED = 1e-9  # relative amount by which the chain of hold times is made for a lower rate
ROUNDING = 1e-11  # of potentials, hold times and requests per cycle
MAX_STEPS = 1000


def refute(instance: ServingInstance, server: Server, best: float) -> RateCertificate | None:
    """Return a certificate that no split carries a rate just above the best one.

    Parameters
    ----------
    instance : ServingInstance
    server : Server
        Its arrays.
    best : float
        Largest rate that some split carries, or a small positive rate if none does.

    Returns
    -------
    RateCertificate or None
        None if no rate up to the largest of `MARGINS` is refuted.
    """
    is_stage = instance.rules.batching is Batching.STAGE
    for margin in MARGINS:
        rate = best * (1 + margin)
        if is_stage and (steps := _hold_steps(server, rate * (1 - LOWERED))) is not None:
            return RateCertificate(refuted_requests_per_s=rate, hold_steps=tuple(steps))
        if not is_stage and (ranges := _level_ranges(server, rate)) is not None:
            return RateCertificate(refuted_requests_per_s=rate, level_ranges=tuple(ranges))
    return None


def _hold_steps(server: Server, x: float) -> list[HoldStep] | None:
    """Return the chain of hold times at a rate that is to be refuted."""
    from hypsolve.kernels.throughput import arcs, labels, stage_tables

    tables = stage_tables.new_tables(server)
    limited = min(server.targets[:4]) < math.inf
    held_s, steps = 0.0, []
    for _ in range(MAX_STEPS):
        where, numbers = arcs.arcs_at(server, tables, x, held_s)
        potentials = _potentials(server, where, numbers)
        # cuts from which no split is completed at this rate have no arcs: 0 is a bound there
        potentials[tables.ahead & ~tables.behind] = 0.0
        end_s = float(potentials[-1, -1])
        rows = tuple(map(tuple, potentials.tolist()))
        if limited and end_s < math.inf:
            cuts = np.zeros(len(server.min_blocks) + 1, np.int64)
            found_s = float(labels.shortest_within_targets(server, tables, held_s, x, cuts))
            found_s *= 1 - ROUNDING
            if found_s > end_s * (1 + ROUNDING):
                end_s, rows = found_s, ()
        steps.append(HoldStep(held_s=held_s, potentials_s=rows))
        if math.isinf(end_s):
            return steps
        if end_s <= held_s:
            return None
        held_s = end_s
    return None


def _potentials(server: Server, where: np.ndarray, numbers: Array) -> Array:
    """Return the least seconds of KV cache up to each cut behind each number of tiers."""
    from hypsolve.kernels.throughput import labels

    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    cost = np.full((n_tiers + 1, n_cuts), math.inf)
    cost[0, 0] = 0.0
    arc_s = server.lengths.hold_passes * numbers[:, labels.DECODE] + numbers[:, labels.HELD]
    for k in range(n_tiers):
        of_tier = where[:, 0] == k
        first, end = where[of_tier, 1], where[of_tier, 2]
        np.minimum.at(cost[k + 1], end, cost[k, first] + arc_s[of_tier])
    return cost * (1 - ROUNDING)


def _level_ranges(server: Server, x: float) -> list[LevelRange] | None:
    """Return ranges of requests per cycle that together hold all splits."""
    from hypsolve.kernels.throughput import pipeline_search

    tables = pipeline_search.new_tables(server)
    targets = server.targets
    by_first = min(targets.ttft_s, targets.latency_s, targets.users) < math.inf
    by_first = by_first and float(server.entry_s.max()) > 0
    n_tiers, widest = len(server.min_blocks), tables.rooms.shape[2]
    ranges = []
    for n_stages in range(1, n_tiers + 1):
        for n_pipelines in range(1, widest + 1):
            for first in range(n_tiers) if by_first else (-1,):
                found = _Levels(server, tables, x, n_stages, n_pipelines, first).ranges()
                if found is None:
                    return None
                ranges += found
    return ranges


class _Levels:
    """Splits with some numbers of stages and of pipelines, by their requests per cycle."""

    def __init__(
        self,
        server: Server,
        tables: object,
        x: float,
        n_stages: int,
        n_pipelines: int,
        first: int,
    ) -> None:
        from hypsolve.kernels.throughput import batch_chains

        self.server, self.tables, self.x = server, tables, x
        self.key = n_stages, first, n_pipelines
        self.kernels = batch_chains
        top = float(batch_chains.largest_level(server, n_stages, first, n_pipelines, x))
        top *= 1 + ROUNDING
        levels = batch_chains.levels_of(server, tables, n_stages, n_pipelines)
        # a level, and a jump, belong to the range that they end
        jumps = {y * (1 + ROUNDING) for y in batch_chains.jumps_under(server, n_stages, top)}
        inner = jumps | {float(level) * (1 + ROUNDING) for level in levels}
        self.ends = [top, *sorted((y for y in inner if y < top), reverse=True), 0.0]
        self.jumps, self.top = jumps, top

    def ranges(self) -> list[LevelRange] | None:
        """Return ranges that are refuted; None if some split is not."""
        if self.top <= 0:
            return []
        found = []
        last_end = len(self.ends) - 1
        # seconds of all splits of a range are those at its end, so no jump lies inside
        marks = [at for at, y in enumerate(self.ends) if 0 < at < last_end and y in self.jumps]
        parts = list(itertools.pairwise([0, *marks, last_end]))
        n_stages, first, n_pipelines = self.key
        while parts:
            at, last = parts.pop()
            high, low = self.ends[at], self.ends[last]
            if self._is_refuted(low, high):
                found.append(
                    LevelRange(
                        n_stages=n_stages,
                        n_pipelines=n_pipelines,
                        first_tier=None if first < 0 else first,
                        low=low,
                        high=high,
                    )
                )
            elif last - at == 1:
                return None
            else:
                middle = (at + last) // 2
                parts += [(at, middle), (middle, last)]
        return found

    def _is_refuted(self, low: float, high: float) -> bool:
        n_stages, first, n_pipelines = self.key
        if high in self.jumps:
            high *= 1 - 2 * ROUNDING  # just below it
        x = self.x * (1 - 2 * ROUNDING)  # seconds may be rounded
        return bool(
            self.kernels.is_refuted(
                self.server, self.tables, n_stages, first, n_pipelines, low, high, x
            )
        )
