"""Placement rules without search, for comparison."""

from __future__ import annotations

from hypsolve.problem.placement import Pipeline, Placement, PlacementProblem
from hypsolve.problem.placement_result import PlacementOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.placement.values import Split, best_split


def replica_per_machine(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Let every machine that has room for the whole model serve it alone.

    Each machine takes the degree of tensor parallelism with the largest rate, and is as many
    servers as it has groups of so many GPUs. Machines without room stay unused.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> result = hs.solve(problem, "replica_per_machine")
    >>> [str(pipeline) for pipeline in result.placement.pipelines]
    ['a 0:34', 'b 0:34']
    """
    pipelines: list[Pipeline] = []
    for machine in problem.fleet.machines:
        best: tuple[float, int, Split] | None = None
        for degree in problem.degrees_of(machine):
            split = best_split(problem, ((machine.name, degree),))
            n_groups = machine.node.gpus // degree
            if split is not None and (
                best is None or n_groups * split.requests_per_s > best[0]
            ):
                best = n_groups * split.requests_per_s, n_groups, split
        if best is not None:
            pipelines += [best[2].at(best[2].requests_per_s)] * best[1]
    if not pipelines:
        return PlacementOutcome(Status.UNKNOWN, message="no machine has room for the model")
    return PlacementOutcome(Status.FEASIBLE, Placement(tuple(pipelines)))
