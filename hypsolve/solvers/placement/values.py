"""The best split of a single pipeline in the fluid model, for methods that place one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypsolve.problem.placement import Pipeline, PlacedStage, PlacementProblem
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.exact import BoxSolver
from hypsolve.solvers.throughput.server_arrays import server_of

MARGIN = 1e-9
"""Share that is taken off the rate of the kernels, which find it to 1e-10 of it."""
Groups = tuple[tuple[str, int], ...]
"""Machine and number of GPUs of each stage of a pipeline."""


@dataclass(frozen=True, slots=True)
class Split:
    """The best split of a pipeline: its stages, and the largest rate that it carries."""

    stages: tuple[PlacedStage, ...]
    requests_per_s: float

    def at(self, requests_per_s: float) -> Pipeline:
        """Return the pipeline at some load."""
        return Pipeline(self.stages, requests_per_s)


def best_split(
    problem: PlacementProblem, groups: Sequence[tuple[str, int]], *, time_limit_s: float = 60.0
) -> Split | None:
    """Return the best split of a pipeline in the fluid model; None if it carries no request.

    Parameters
    ----------
    problem : PlacementProblem
    groups : sequence of (str, int)
        Machine and number of GPUs of each stage. Every stage gets at least one block.
    time_limit_s : float
    """
    groups = tuple(groups)
    try:
        instance = problem.serving_instance(groups)
    except ValueError:  # two machines without a link
        return None
    counts = {"trials": 0, "solves": 0}
    solver = BoxSolver(instance, server_of(instance), Deadline(time_limit_s), counts)
    best = next(iter(solver.ranked()), None)
    if best is None:
        return None
    return split_of(groups, Partition(best.cuts), best.rate * (1 - MARGIN))


def split_of(groups: Groups, partition: Partition, requests_per_s: float) -> Split:
    """Return the stages of some groups under a partition, with their rate."""
    stages = tuple(
        PlacedStage(machine, gpus, partition.cuts[s], partition.cuts[s + 1])
        for s, (machine, gpus) in enumerate(groups)
    )
    return Split(stages, requests_per_s)
