"""Baselines: for a given rate, is there a feasible split? As MILP and by CP-SAT.

Under ``stage``, each stage that carries the rate, and has KV memory for a given hold time, is
an arc of `path_programs`. The integer program finds the path of least hold time within the
targets for latencies. The rest is the method of `throughput_exact`: a longer path than the
given hold time gives the next hold time. `batch_programs` has the question for ``pipeline`` and
``serial``. Bisection finds the rate. Arcs come from the tables that `throughput_exact` uses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_result import ServingOutcome
from hypsolve.problem.solution import Partition, Status
from hypsolve.solvers.backends import cpsat
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.clock import Deadline, OutOfTime
from hypsolve.solvers.throughput.batch_programs import BatchTrials
from hypsolve.solvers.throughput.certificates import refute
from hypsolve.solvers.throughput.path_programs import (
    PathModel,
    PathSolver,
    path_by_cpsat,
    path_by_pulp,
)
from hypsolve.solvers.throughput.server_arrays import server_of

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

CLOSE = 1e-7  # relative width of the bracket at which bisection ends
MARGIN = 1e-8  # of the bound, for the rounding of limits
LEAST = 1e-9  # requests per second; smaller rates count as none
DECODE, PROMPT, HELD, CHUNK = 0, 1, 2, 3


def throughput_highs(
    instance: ServingInstance, *, time_limit_s: float, seed: int
) -> ServingOutcome:
    """Maximise the fluid request rate by bisection over MILPs in PuLP, with HiGHS.

    Parameters
    ----------
    instance : ServingInstance
        Its objective must not be ``cost``.
    time_limit_s : float
        For all models and their solution.
    seed : int
        ``random_seed`` of HiGHS.

    Raises
    ------
    ValueError
        If the objective is ``cost``, or a package cannot be imported.
    """
    method = "throughput_highs"
    load_backend(method, "pulp", "pulp>=3.3,<4")

    def solve(model: PathModel, of: ServingInstance, deadline: Deadline) -> list[int] | None:
        return path_by_pulp(model, of, deadline, method, seed)

    return _bisect(method, instance, Deadline(time_limit_s), solve)


def throughput_cpsat(
    instance: ServingInstance, *, time_limit_s: float, seed: int, workers: int = 1
) -> ServingOutcome:
    """Maximise the fluid request rate by bisection over models of CP-SAT.

    Parameters
    ----------
    instance : ServingInstance
        Its objective must not be ``cost``.
    time_limit_s : float
        For all models and their solution.
    seed : int
        ``random_seed`` of CP-SAT.
    workers : int
        Number of threads.

    Raises
    ------
    ValueError, TypeError
        If the objective is ``cost``, OR-Tools cannot be imported, or `workers`
        is wrong.
    """
    method = "throughput_cpsat"
    solver = cpsat.new_solver(method, seed, workers)

    def solve(model: PathModel, of: ServingInstance, deadline: Deadline) -> list[int] | None:
        return path_by_cpsat(model, of, deadline, solver)

    return _bisect(method, instance, Deadline(time_limit_s), solve)


def _bisect(
    method: str, instance: ServingInstance, deadline: Deadline, solve: PathSolver
) -> ServingOutcome:
    """Find the largest rate whose integer programs have a feasible path."""
    _require(method, instance)
    server = server_of(instance)
    is_stage = instance.rules.batching is Batching.STAGE
    of_mode = StageTrials if is_stage else BatchTrials
    trials = of_mode(instance, server, deadline, solve)
    high, low, best = math.inf, 0.0, None
    statistics = {"rates": 0}
    try:
        high = trials.start()
        low, best = trials.found or (0.0, None)
        x = (low + high) / 2 if low > 0 else high * (1 - 1e-12)
        while high - low > CLOSE * high and high > LEAST:
            deadline.require()
            statistics["rates"] += 1
            found = trials.find(x, high)
            if found is None:
                high = x
            else:
                low, best = found
            x = (low + high) / 2 if low > 0 else high / 4
            if low > 0 and high < low * 1.01:
                x = low * (1 + CLOSE / 2)
    except OutOfTime:
        message = "the time limit has passed"
        low, best = (low, best) if best else trials.found or (0.0, None)
        if best is None:
            return ServingOutcome(Status.UNKNOWN, message=message, statistics=statistics)
        bound = high * (1 + MARGIN) if high < math.inf else None
        return ServingOutcome(
            Status.FEASIBLE, best, fluid_bound=bound, message=message, statistics=statistics
        )
    if best is None:
        return ServingOutcome(
            Status.INFEASIBLE,
            message="no split fits and meets the targets at any rate",
            statistics=statistics,
        )
    return ServingOutcome(
        Status.OPTIMAL,
        best,
        fluid_bound=high * (1 + MARGIN),
        statistics=statistics,
        certificate=refute(instance, server, low),
    )


def _require(method: str, instance: ServingInstance) -> None:
    valid.of_type(method, "instance", instance, ServingInstance)
    if instance.objective is ServingObjective.COST:
        raise ValueError(f"{method}: objective must be throughput or goodput, got cost")


class StageTrials:
    """Trials of rates under the batching mode ``stage``."""

    def __init__(
        self,
        instance: ServingInstance,
        server: Server,
        deadline: Deadline,
        solve: PathSolver,
    ) -> None:
        from hypsolve.kernels.throughput import stage_search, stage_tables

        self.instance, self.server = instance, server
        self.deadline, self.solve = deadline, solve
        self.tables = stage_tables.new_tables(server)
        self.found: tuple[float, Partition] | None = None
        cuts = np.zeros(instance.n_tiers + 1, np.int64)
        self.limit = float(stage_search.rate_limit(server, self.tables, cuts))

    def start(self) -> float:
        """Return a rate that no split exceeds."""
        return self.limit

    def find(self, x: float, high: float) -> tuple[float, Partition] | None:
        """Return a split that carries a rate, with its largest rate up to `high`."""
        from hypsolve.kernels.throughput import stage_search

        cuts = self._find_split(x)
        if cuts is None:
            return None
        # tolerances of the solver may let a path pass that just misses a limit
        least = x * (1 - 1e-10)
        rate = float(stage_search.split_rate(self.server, self.tables, cuts, least, high))
        return (rate, Partition(tuple(cuts.tolist()))) if rate > 0 else None

    def _find_split(self, x: float) -> IntArray | None:
        """Return the cuts of a split that carries a rate, or None if there is none."""
        from hypsolve.kernels.throughput import arcs

        held_s = 0.0
        while True:
            where, numbers = arcs.arcs_at(self.server, self.tables, x, held_s)
            if not len(where):
                return None
            model = path_model(self.instance, x, where, numbers)
            path = self.solve(model, self.instance, self.deadline)
            if path is None:
                return None
            found_s = math.fsum(model.seconds[path].tolist())
            if found_s <= held_s * (1 + 1e-10):
                return np.append(where[path][:, 1], self.instance.n_blocks).astype(np.int64)
            held_s = found_s


def path_model(
    instance: ServingInstance, x: float, where: IntArray, numbers: Array
) -> PathModel:
    """Return the integer program for a rate over the arcs that are open."""
    rules, lengths = instance.rules, instance.lengths
    passes, again = lengths.decode_passes, lengths.chunks - 1
    decode, prompt = numbers[:, DECODE], numbers[:, PROMPT]
    rows = []
    latency = math.inf if rules.users is None else rules.users / x - rules.think_time_s
    if instance.objective is ServingObjective.GOODPUT:
        if rules.tpot_slo_s is not None and passes > 0:
            rows.append((decode, 0.0, rules.tpot_slo_s))
        if rules.ttft_slo_s is not None:
            rows.append((prompt, again, rules.ttft_slo_s))
        if rules.latency_slo_s is not None:
            latency = min(latency, rules.latency_slo_s)
    if latency < math.inf:
        rows.append((prompt + passes * decode, again, latency))
    held = lengths.hold_passes * decode + numbers[:, HELD]
    return PathModel(where, held, rows, numbers[:, CHUNK])
