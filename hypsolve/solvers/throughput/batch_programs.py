"""`BatchTrials`: integer programs for the batching modes ``pipeline`` and ``serial``.

The question is whether some split carries a rate. For a rate, a number of stages and of
pipelines, let y be the most requests that a split may start per cycle, by its KV memory, the
limits of the runtime and the targets. Then the longest cycle that carries the rate is known.
Stages and messages that are short enough for it are the arcs of `path_programs`, and the
integer program finds the path of least seconds with that number of stages. It is a split that
carries the rate if the path is not longer than the cycle.

Splits differ in y, so the program is solved for ranges of y: stages need room for the smallest
y of the range, and take the seconds of the largest. If no path is short enough, the range holds
no split that carries the rate. Otherwise the y of the split found divides the range. No range
goes beyond a size at which a collective operation jumps up, for seconds over requests may rise
there.

Splits in one stage are sets of servers (`hypsolve.problem.serving_servers`). There are few of
them, and each is tried by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.path_programs import PathModel, PathSolver

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

LEAST = 1e-9  # requests per second; smaller rates count as none
CLOSE = 1e-10  # of seconds and levels, for rounding


class BatchTrials:
    """Trials of rates under the batching modes ``pipeline`` and ``serial``."""

    def __init__(
        self,
        instance: ServingInstance,
        server: Server,
        deadline: Deadline,
        solve: PathSolver,
    ) -> None:
        from hypsolve.kernels.throughput import PIPELINE, pipeline_search

        self.is_pipeline = server.batching == PIPELINE
        self.instance, self.server = instance, server
        self.deadline, self.solve = deadline, solve
        self.tables = pipeline_search.new_tables(server)
        self.found: tuple[float, Partition] | None = None
        targets = server.targets
        times = min(targets.ttft_s, targets.latency_s, targets.users)
        self.by_first = times < math.inf and float(server.entry_s.max()) > 0

    def start(self) -> float:
        """Return a rate that no split carries; `found` is a split that carries half of it."""
        x = LEAST
        while (found := self.find(x, math.inf)) is not None:
            self.found = found
            x = 2 * found[0]
        return x

    def find(self, x: float, high: float) -> tuple[float, Partition] | None:
        """Return a split that carries a rate, with its largest rate."""
        if (whole := self._whole(x)) is not None:
            return whole
        for n_stages, n_pipelines, first in self._shapes():
            found = self._find(x, n_stages, n_pipelines, first)
            if found is not None:
                return found
        return None

    def _whole(self, x: float) -> tuple[float, Partition] | None:
        """Return a split in one stage that carries a rate."""
        from hypsolve.kernels.throughput import batch_chains

        n_tiers = len(self.server.min_blocks)
        cuts = np.zeros(n_tiers + 1, np.int64)
        for k in range(n_tiers):
            if not batch_chains.is_whole(self.server, k, cuts):
                continue
            rate = float(batch_chains.rate_of(self.server, self.tables, cuts))
            if rate >= x:
                return rate, Partition(tuple(cuts.tolist()))
        return None

    def _shapes(self) -> Iterator[tuple[int, int, int]]:
        """Yield numbers of stages (not 1) and pipelines, and the first tier; -1: any."""
        n_tiers, widest = len(self.server.min_blocks), self.tables.rooms.shape[2]
        for n_stages in range(n_tiers, 1, -1):
            for n_pipelines in range(widest, 0, -1):
                for first in range(n_tiers) if self.by_first else (-1,):
                    yield n_stages, n_pipelines, first

    def _find(
        self, x: float, n_stages: int, n_pipelines: int, first: int
    ) -> tuple[float, Partition] | None:
        from hypsolve.kernels.throughput import batch_chains

        shape = n_stages, first, n_pipelines
        top = float(batch_chains.largest_level(self.server, *shape, x))
        jumps = batch_chains.jumps_under(self.server, n_stages, top).tolist()
        ends = [top, *jumps, 0.0] if top > 0 else []
        ranges = [(low, high) for high, low in itertools.pairwise(ends)]
        while ranges:
            low, high = ranges.pop()
            cuts = self._shortest(x, n_stages, n_pipelines, first, low, high)
            if cuts is None:
                continue
            rate = float(batch_chains.rate_of(self.server, self.tables, cuts))
            if rate >= x:
                return rate, Partition(tuple(cuts.tolist()))
            level = float(
                batch_chains.level_of(self.server, self.tables, cuts, n_stages, n_pipelines)
            )
            if low < level < high * (1 - CLOSE):
                ranges += [(low, level), (level, high)]
        return None

    def _shortest(
        self, x: float, n_stages: int, n_pipelines: int, first: int, low: float, high: float
    ) -> np.ndarray | None:
        """Return the cuts of a path no longer than the cycle; None if there is none."""
        from hypsolve.kernels.throughput import batch_chains

        self.deadline.require()
        cycle_s = high / (x / n_pipelines)
        shape = n_stages, first, n_pipelines
        where, seconds = batch_chains.batch_arcs(
            self.server, self.tables, *shape, low * (1 + CLOSE), high, x
        )
        if np.count_nonzero(where[:, 1] < where[:, 2]) < n_stages:
            return None
        model = PathModel(where, seconds, [], np.zeros(len(where)), n_stages)
        path = self.solve(model, self.instance, self.deadline)
        if path is None:
            return None
        n = n_stages if self.is_pipeline else 1
        host_s = self.server.iteration_s
        total_s = math.fsum(seconds[path].tolist()) + host_s
        if max(total_s, n * host_s) > cycle_s * (1 + CLOSE):
            return None
        return np.append(where[path][:, 1], self.instance.n_blocks).astype(np.int64)
