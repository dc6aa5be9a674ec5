"""`over_all_nodes`: what holds of a plan on all choices of nodes that its server can use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import ONE_PIPELINE
from hypsolve.planning.load_search import LoadSearched
from hypsolve.planning.plan import Plan
from hypsolve.planning.query import PlanQuery, Solution, bound_of, instance_of, search_load
from hypsolve.planning.runtime_networks import MAX_PIPELINES
from hypsolve.planning.runtime_restrictions import networks_of_server, nodes_in
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import decided
from hypsolve.problem.runtime import Runtime
from hypsolve.solvers.clock import Deadline

BOUND_SHARE = 0.2  # of the time, for bounds on the rates of other nodes


@dataclass(frozen=True, slots=True)
class _Choice:
    """A choice of nodes with its limits, and a bound on its rate, inf if it is not known."""

    query: PlanQuery
    bound_per_s: float


def over_all_nodes(
    plan: Plan, asked: PlanQuery, server: str, deadline: Deadline, progress: Progress
) -> tuple[Plan, PlanQuery | None]:
    """Extend bound and answer of a plan to the nodes that it leaves out.

    A server has other defaults on other nodes, and a plan is simulated on those it uses. So a
    load that they do not serve is not refused before splits on all other choices of nodes were
    searched, each with its own limits, or were refuted by a bound on their rates.

    Parameters
    ----------
    plan : Plan
    asked : PlanQuery
        On all nodes that the runtime runs on.
    server : str
        A name in `hypsolve.planning.exporters.RUNTIMES`.
    deadline : Deadline
        When the search ends.
    progress : callable
        Called with a line of text about the work in progress.

    Returns
    -------
    plan : Plan
        With a bound and an answer for all nodes, as far as the time allows.
    query : PlanQuery or None
        The query on other nodes, on which a split was found that serves the load.
    """
    found = plan.throughput
    if found is None or server not in ONE_PIPELINE or plan.interrupted:
        return plan, None
    solution = Solution(
        query=asked, deployment=asked.deployment(), instance=instance_of(asked),
        result=plan.result,
    )  # fmt: skip
    networks = networks_of_server(solution, server)
    choices, is_bounded = _bounded(asked, networks, deadline.part(BOUND_SHARE))
    if is_bounded:
        found = found.over_nodes([choice.bound_per_s for choice in choices])
    answer = plan.slo_answer
    if answer is None:
        return replace(plan, throughput=found), None
    load, at_load, met = asked.load, found.at_load, None
    is_refuted = load.users is None and load.rate_per_s > found.bound_requests_per_s
    if not answer.is_met and at_load is not None and not is_refuted:
        others = [each for each in choices if not _is_covered(each.query, plan.query, asked)]
        at_load, met = _searched(at_load, others, deadline, progress)
        at_load = replace(at_load, is_of_all_nodes=is_bounded and _is_complete(asked))
        found = replace(found, at_load=at_load)
    answer = decided(answer, load, at_load, found.bound_requests_per_s)
    return replace(plan, throughput=found, slo_answer=answer), met


def _bounded(
    asked: PlanQuery,
    networks: list[tuple[NetworkFile, list[PlanQuery]]],
    deadline: Deadline,
) -> tuple[list[_Choice], bool]:
    """Return all choices of nodes with bounds on their rates, and whether all are bounded.

    Queries on a network with the same limits share a bound first, which holds for all of them.
    """
    choices, is_complete = [], True
    has_users = not asked.has_targets  # see `Throughput.bound_requests_per_s`
    for network, queries in networks:
        shared: dict[Runtime, float] = {}
        for query in queries:
            runtime = query.runtime
            if runtime not in shared and not deadline.has_passed():
                of_all = replace(asked, network=network, runtime=runtime)
                shared[runtime] = bound_of(of_all, has_users=has_users)
            is_complete = is_complete and runtime in shared
            choices.append(_Choice(query, shared.get(runtime, float("inf"))))
    return choices, is_complete


def _is_covered(query: PlanQuery, planned: PlanQuery, asked: PlanQuery) -> bool:
    """Return whether the splits of a query were searched with those of a plan."""
    names, of_plan = (
        [tier.name for tier in each.network.network.tiers] for each in (query, planned)
    )
    if query.runtime != planned.runtime or names != of_plan:
        return False
    nodes, nodes_of_plan = set(nodes_in(query.network)), set(nodes_in(planned.network))
    if planned.network.min_blocks == asked.network.min_blocks:  # no tier was closed
        return nodes <= nodes_of_plan
    return nodes == nodes_of_plan


def _is_complete(query: PlanQuery) -> bool:
    """Return whether the choices of nodes are all that there are: one node to a tier."""
    tiers = query.network.network.tiers
    return all(len(tier.nodes) == 1 for tier in tiers) and 2 ** len(tiers) <= MAX_PIPELINES


def _searched(
    at_load: LoadSearched, choices: list[_Choice], deadline: Deadline, progress: Progress
) -> tuple[LoadSearched, PlanQuery | None]:
    """Search a split that serves the load on other nodes, the largest bounds first."""
    ordered = sorted(choices, key=lambda each: -each.bound_per_s)
    for at, choice in enumerate(ordered):
        query = choice.query
        if query.users is None and query.rate_per_s > choice.bound_per_s:
            at_load = replace(at_load, n_refuted=at_load.n_refuted + len(ordered) - at)
            break
        if deadline.has_passed():
            return replace(at_load, was_cut_short=True), None
        if query.users is None and query.rate_per_s > bound_of(query, has_users=False):
            at_load = replace(at_load, n_refuted=at_load.n_refuted + 1)
            continue
        progress(f"targets: {', '.join(nodes_in(query.network))}, with their limits")
        mine = deadline.part(1 / (len(ordered) - at))
        found = search_load(query, mine, progress)
        at_load = at_load.with_nodes(found)
        if found.is_met:
            return at_load, query
    return at_load, None
