"""The best split of a single pipeline in the fluid model, for methods that place one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypsolve.problem.placement import (
    DegreeRule,
    Pipeline,
    PlacedStage,
    Placement,
    PlacementProblem,
)
from hypsolve.problem.placement_evaluation import link_bytes_per_request, link_rate
from hypsolve.problem.serving_evaluation import check_serving, evaluate_serving
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.exact import BoxSolver
from hypsolve.solvers.throughput.server_arrays import server_of

MARGIN = 1e-9
"""Share that is taken off the rate of the kernels, which find it to 1e-10 of it."""
Box = tuple[tuple[int, int], ...]
"""Smallest and largest value of each cut."""
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

    It is None, too, if the pipeline breaks a rule on links, degrees, pins or machines apart.

    Parameters
    ----------
    problem : PlacementProblem
    groups : sequence of (str, int)
        Machine and number of GPUs of each stage. Every stage gets at least one block.
    time_limit_s : float
    """
    groups = tuple(groups)
    if not may_serve(problem, groups):
        return None
    instance = problem.serving_instance(groups)
    server, best = server_of(instance), None
    counts = {"trials": 0, "solves": 0}
    for box in boxes(problem, [problem.fleet.machine(name).site for name, _ in groups]):
        part = server._replace(
            cut_min=np.array([low for low, _ in box]),
            cut_max=np.array([high for _, high in box]),
        )
        split = BoxSolver(instance, part, Deadline(time_limit_s), counts).best(part)
        if split is not None and (best is None or split.rate > best.rate):
            best = split
    if best is None:
        return None
    return split_of(groups, Partition(best.cuts), best.rate * (1 - MARGIN))


def rate_of(
    problem: PlacementProblem, groups: Sequence[tuple[str, int]], cuts: Sequence[int]
) -> Split | None:
    """Return a pipeline with given cuts at its largest rate; None if it carries no request.

    It is None, too, if the pipeline breaks a rule.
    """
    groups, partition = tuple(groups), Partition(tuple(cuts))
    if not may_serve(problem, groups):
        return None
    sites = [problem.fleet.machine(name).site for name, _ in groups]
    if not any(
        all(low <= cut <= high for (low, high), cut in zip(box, cuts, strict=True))
        for box in boxes(problem, sites)
    ):
        return None
    instance = problem.serving_instance(groups)
    if check_serving(instance, partition):
        return None
    rate = evaluate_serving(instance, partition).fluid_requests_per_s
    return split_of(groups, partition, rate * (1 - MARGIN)) if rate > 0 else None


def may_serve(problem: PlacementProblem, groups: Sequence[tuple[str, int]]) -> bool:
    """Return whether groups may form a pipeline: links, degrees, machines apart, blocks."""
    machines = [problem.fleet.machine(name) for name, _ in groups]
    if len(groups) > min(problem.max_stages, problem.model.n_blocks):
        return False
    if problem.degrees is DegreeRule.COMMON and len({gpus for _, gpus in groups}) > 1:
        return False
    names = {name for name, _ in groups}
    if any(len(names & apart) > 1 for apart in problem.fleet.apart):
        return False
    hops = itertools.pairwise([*machines, machines[0]])
    return all(problem.fleet.link(a, b) is not None for a, b in hops)


def boxes(problem: PlacementProblem, sites: Sequence[str]) -> tuple[Box, ...]:
    """Return the limits of the cuts that pinned blocks impose: one of these boxes.

    Each box has the smallest and the largest value of each cut. The blocks of a pin are in
    consecutive stages at its sites.

    Parameters
    ----------
    problem : PlacementProblem
    sites : sequence of str
        Site of each stage.
    """
    n, n_blocks = len(sites), problem.model.n_blocks
    choices = []
    for pin in problem.fleet.pins:
        runs, start = [], None
        for s in range(n + 1):
            is_open = s < n and sites[s] in pin.sites
            if is_open and start is None:
                start = s
            if not is_open and start is not None:
                runs.append((start, s, pin))
                start = None
        choices.append(runs)
    found = []
    for chosen in itertools.product(*choices):
        low = [k if k < n else n_blocks for k in range(n + 1)]
        high = [n_blocks - (n - k) if k else 0 for k in range(n + 1)]
        for start, end, pin in chosen:
            high[start] = min(high[start], pin.start)
            low[end] = max(low[end], pin.stop)
        for k in range(1, n + 1):
            low[k] = max(low[k], low[k - 1] + 1)
        for k in range(n - 1, -1, -1):
            high[k] = min(high[k], high[k + 1] - 1)
        if all(a <= b for a, b in zip(low, high, strict=True)):
            found.append(tuple(zip(low, high, strict=True)))
    return tuple(found)


def loaded(problem: PlacementProblem, splits: Sequence[Split]) -> Placement:
    """Return pipelines at their largest rates, or less where shared links carry less.

    All pipelines that cross an overloaded link are slowed down by one factor, link by link.
    """
    pipelines = [split.at(split.requests_per_s) for split in splits]
    sent = [link_bytes_per_request(problem, pipeline) for pipeline in pipelines]
    loads = [pipeline.requests_per_s for pipeline in pipelines]
    for link in sorted({link for each in sent for link in each}):
        used = sum(load * each.get(link, 0.0) for load, each in zip(loads, sent, strict=True))
        share = min(1.0, link_rate(problem, link) / used * (1 - MARGIN)) if used else 1.0
        loads = [
            load * share if link in each else load
            for load, each in zip(loads, sent, strict=True)
        ]
    return Placement(tuple(split.at(load) for split, load in zip(splits, loads, strict=True)))


def split_of(groups: Groups, partition: Partition, requests_per_s: float) -> Split:
    """Return the stages of some groups under a partition, with their rate."""
    stages = tuple(
        PlacedStage(machine, gpus, partition.cuts[s], partition.cuts[s + 1])
        for s, (machine, gpus) in enumerate(groups)
    )
    return Split(stages, requests_per_s)
