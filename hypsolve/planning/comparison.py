"""`compare`: the splits of several methods for one query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypsolve.planning.frontier_of_nodes import best_in_fluid
from hypsolve.planning.query import (
    DEFAULT_METHOD,
    ModelSource,
    NetworkSource,
    PlanQuery,
    instance_of,
    solve_query,
)
from hypsolve.planning.runtime_restrictions import (
    ServerNetwork,
    network_for_server,
    restricting_server,
)
from hypsolve.planning.simulation_search import METHOD as SIMULATED
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import METHODS, Method, solve, warm_methods
from hypsolve.solvers import clock
from hypsolve.solvers.clock import Deadline

CHOICE_SHARE = 0.3  # of the time limit, to choose the nodes that a server's pipelines use
FLUID_SHARE = 0.1  # of the time left, for the best splits of the fluid model
SEARCH_SHARE = 0.5  # of the time of a method, where its split is simulated, too
SEARCH_WEIGHT, RULE_WEIGHT = 5.0, 0.1  # of the search by simulation and of rules; exact: 1


def compare(
    model: ModelSource,
    network: NetworkSource,
    methods: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    **arguments: Any,
) -> Iterator[Result]:
    """Split a model by several methods, one after the other, within one time limit.

    A method may take a share of the time that is left: the search by simulation the largest,
    exact methods equal ones, simple rules a tenth of these.

    Parameters
    ----------
    model, network, progress, **arguments
        As in `plan`, but the default objective is ``bottleneck``, or ``path`` where the runtime
        computes one batch at a time.
    methods : sequence of str, optional
        Names in `hypsolve.METHODS` that decide a partition. Default: all of them; for
        ``mean_latency``, the search by simulation comes first.

    Yields
    ------
    Result
        In the order of `methods`. A search that a KeyboardInterrupt ended is the last. A bound
        on the mean latency that one method proved is used for all later methods.
    """
    planned = query = PlanQuery.of(model, network, **arguments)
    if arguments.get("objective") is None:
        query = replace(query, objective=query.objective_alone)
    chosen, deadline = choose_nodes(query, methods, planned=planned, progress=progress)
    yield from compare_query(chosen.query, methods, progress=progress, deadline=deadline)


def choose_nodes(
    query: PlanQuery,
    methods: Sequence[str] | None = None,
    *,
    planned: PlanQuery | None = None,
    simulates: bool = False,
    progress: Progress | None = None,
) -> tuple[ServerNetwork, Deadline]:
    """Choose the nodes on which methods are compared, as ``hypsolve plan`` chooses its own.

    `planned` is the query that it would answer, if its objective is another one.

    Returns
    -------
    chosen : ServerNetwork
    deadline : Deadline
        The end of the time limit, which has begun after kernels were compiled.
    """
    compared = methods_of(query, methods)
    names = [DEFAULT_METHOD, *(method or DEFAULT_METHOD for method in compared)]
    restricts = bool(restricting_server(query.runtime))
    simulates = simulates or query.is_simulated or restricts
    tiers = query.network.network.tiers
    chooses = (
        restricts
        or methods is None
        or any(node.gpus > 1 for tier in tiers for node in tier.nodes)
    )
    asked, planned = query.objective, query if planned is None else planned
    warm_methods(
        *names,
        simulates=simulates,
        pipelines=query.has_pipelines,
        families=planned.families if chooses else (),
    )
    deadline = Deadline(query.time_limit_s)
    planned, _ = choose_degrees(planned, progress, deadline, restrict=network_for_server)
    choice = deadline.part(CHOICE_SHARE)
    nodes = network_for_server(planned, progress=progress, deadline=choice)
    return replace(nodes, query=replace(nodes.query, objective=asked), solution=None), deadline


def compare_query(
    query: PlanQuery,
    methods: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    simulate: Callable[[Result, Deadline], None] | None = None,
    deadline: Deadline | None = None,
) -> Iterator[Result]:
    """Solve a query by several methods, as `compare` does.

    `simulate`, if given, is called with each result and the end of its time, before the result
    is handed out. Half of the time of a method is left for it.
    """
    compared = methods_of(query, methods)
    bound_s = 0.0
    if deadline is None:
        names = [method or DEFAULT_METHOD for method in compared]
        simulates = query.is_simulated or simulate is not None
        warm_methods(*names, simulates=simulates, pipelines=query.has_pipelines)
        deadline = Deadline(query.time_limit_s)
    weights = [_weight(method) for method in compared]
    for at, method in enumerate(compared):
        mine = deadline.part(weights[at] / sum(weights[at:]))
        limit_s = mine.limit_s * (SEARCH_SHARE if simulate is not None else 1)
        limited = replace(query, method=method, time_limit_s=limit_s)
        solution = solve_query(limited, progress, bound_s=bound_s)
        result = solution.result
        if simulate is not None:
            simulate(result, mine)
        if query.is_simulated and result.partition is not None:
            bound_s = result.bound_s
        yield result
        if solution.interrupted:
            return


def fluid_results(nodes: ServerNetwork, deadline: Deadline) -> list[Result]:
    """Return the best splits of the fluid model, scored like the others.

    Parameters
    ----------
    nodes : ServerNetwork
        Of `choose_nodes`.
    deadline : Deadline
        A share of it is used.
    """
    query, instance = nodes.query, instance_of(nodes.query)
    limit_s = deadline.part(FLUID_SHARE).limit_s
    began_s = clock.now()
    splits = best_in_fluid(replace(query, time_limit_s=limit_s))
    took_s = clock.now() - began_s

    def result_of(partition: Partition) -> Result:
        def throughput_exact(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
            return Outcome(Status.FEASIBLE, partition, message="best of the fluid model")

        return solve(instance, Method(throughput_exact, "partition"))

    return [replace(result_of(partition), solve_time_s=took_s) for partition in splits]


def methods_of(query: PlanQuery, methods: Sequence[str] | None) -> list[str | None]:
    """Return the methods to compare; None stands for the search by simulation.

    Raises
    ------
    ValueError
        If a method is unknown, or the objective is in requests per second.
    """
    if query.is_rate:
        raise ValueError(
            "compare: objective must be in seconds, for methods that split for requests one at"
            f" a time, got {query.objective!r}; the experiment throughput compares rates"
        )
    known = comparable(query.objective)
    for name in methods or ():
        if name in METHODS and name not in known:
            raise ValueError(
                f"method {name!r} decides a schedule, too, for hypsolve.solve alone; choose one"
                f" of {', '.join(known)}"
            )
        valid.known("method that decides a partition", name, known)
    return [None if name == SIMULATED else name for name in methods or known]


def _weight(method: str | None) -> float:
    """Return how much of the time a method may take, relative to the others."""
    if method is None:
        return SEARCH_WEIGHT
    return 1.0 if METHODS[method].exact else RULE_WEIGHT


def comparable(objective: str) -> list[str]:
    """Return the names that `compare` takes, in its order."""
    first = [SIMULATED] if objective == Objective.MEAN_LATENCY else []
    return first + [n for n, method in METHODS.items() if method.decides == "partition"]
