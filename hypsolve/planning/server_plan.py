"""`plan`: the answer to a query on the nodes that its runtime can use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.planning.all_nodes import over_all_nodes
from hypsolve.planning.degree_choice import DegreeChoice
from hypsolve.planning.exporters import ONE_PIPELINE, not_expressible
from hypsolve.planning.node_choice import best_nodes, on_nodes_of
from hypsolve.planning.placement_instead import may_be_placed, placement_instead
from hypsolve.planning.placement_instead import warm as warm_placement
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import add_upgrades, plan_query, warm
from hypsolve.planning.query import ModelSource, NetworkSource, PlanQuery, takes_query
from hypsolve.planning.rpc_links import depends_on_empty_tiers
from hypsolve.planning.runtime_restrictions import (
    may_be_rows,
    nearest_plan,
    network_for_server,
    nodes_in,
    plan_in_rows,
    restricting_server,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import ALL_SPLITS, BOUND, SOME_SPLITS
from hypsolve.planning.target_bound import refuting_bounds
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.planning.what_if import lighter_models
from hypsolve.problem.deployment import Model
from hypsolve.solvers.clock import Deadline

PLACED_SHARE = 0.06  # of the time limit, for a placement without the order of the tiers
SPARE = 1.3  # times as much is kept for it, since a simulation that has begun is finished
NODES_SHARE = 0.25  # of the time limit, for nodes without the slow ones
NEAR_SHARE = 0.5  # of the time that is left, for a plan for a server before upgrades
OTHERS_SHARE = 0.4  # of the time that is left then, for nodes that the plan leaves out
FIRST_SHARE = 0.5  # of the time limit, for the best plan, where one for a server may follow


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A plan that a server can express, and the best plan of all nodes.

    Attributes
    ----------
    plan : Plan
        The answer. If the search was stopped, it is `best`, which the server may be unable to
        express.
    best : Plan
        The plan itself, if the server can express the best plan of all nodes.
    why : str
        Why the server cannot express `best`; empty if it can.
    """

    plan: Plan
    best: Plan
    why: str = ""


@takes_query
def plan(
    model: ModelSource,
    network: NetworkSource,
    *,
    weights: str | None = None,
    with_upgrades: bool = True,
    progress: Progress | None = None,
    **arguments: Any,
) -> Plan:
    """Plan how to serve a model on a network: split, proof, forecast and upgrades.

    If the runtime is a server of whole pipelines, such as vLLM, that cannot express the best
    split of all nodes, the plan is the best one that the server can express: see
    `hypsolve.nearest_plan`. ``plan.unused_nodes`` names the nodes in no pipeline.

    Parameters
    ----------
    model : str, path or Model
        A name in `hypsolve.models`; or a ``config.json``, a GGUF file or a folder, for
        `hypsolve.read_model`.
    network : path, Network or NetworkFile
        A TOML file for `hypsolve.read_network_file`, or an .ini file for `hypsolve.read_helix`.
    weights : str, optional
        Format of the weights: a key of `hypsolve.weight_formats`. Default: the format in the
        model's files, or fp16 if `model` is a name.
    tensor_parallel : int, optional
        Number of GPUs of a machine that compute as one. Default: all degrees that the runtime
        can run are planned and simulated, and the best is taken; ``plan.degrees`` lists them.
    with_upgrades : bool
        Whether to solve what-if scenarios, and to simulate the splits for other objectives.
    progress : callable, optional
        Called with a line of text about the work in progress.
    prompt_tokens, output_tokens : int
        Lengths of every request.
    requests : path or Requests, optional
        Requests of different lengths, in place of both: a file for `hypsolve.read_requests`, or
        the arrays. The split is chosen for their lengths, and the forecast serves them.
    rate_per_s : float
        Requests per second, for the forecast and for ``mean_latency``. Default: 1, or the rate
        at which `requests` arrived, which are else sped up or slowed down.
    concurrency : int
        Sequences for which every node must have KV cache at once; where batches pass whole
        pipelines, `Runtime.max_num_seqs` at most.
    objective : {"throughput", "goodput", "cost", "bottleneck", "path", "p0", "mean_latency"}
        Requests per second of servers that batch: the largest rate, the largest rate within the
        targets, or the least price per request. Or seconds: the paper's objectives, for
        requests one at a time, and the mean latency of requests at this rate, simulated token
        by token; its proof holds for the simulated requests only. Default: ``goodput`` with a
        target, else ``throughput``; with a `method` ``bottleneck``, or ``path`` where the
        runtime computes one batch at a time.
    method : str, optional
        A name in `hypsolve.METHODS` that decides a partition. Default: for requests per second,
        the search of `hypsolve.planning.throughput`; for ``mean_latency`` a search by
        simulation; for others ``hypsplit_dp``, which is exact, and of equal splits the one with
        the most room for KV cache. If `method` is given with ``mean_latency``, the method
        minimises the bottleneck, and its split is then simulated.
    time_limit_s, seed
        As in `hypsolve.solve`.
    **options
        Options of the method.

    Returns
    -------
    Plan
        A KeyboardInterrupt ends the work in progress. The plan then holds the finished parts,
        and ``stopped`` names the missing ones.

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names the argument, or the file and the
        entry. If the server of the runtime can express no plan on the network.
    OSError
        If a file does not exist or cannot be read.
    KeyboardInterrupt
        If the interrupt comes before a split has been found.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> plan = hs.plan("llama-3-8b", home, concurrency=8, with_upgrades=False)
    >>> plan.fits, plan.stages[0].blocks
    (True, range(0, 34))
    >>> plan.forecast.keeps_up
    True
    """
    query = PlanQuery.of(model, network, weights=weights, **arguments)
    lighter = lighter_models(model, weights, query.runtime.server) if with_upgrades else {}
    return plan_for_server(
        query, with_upgrades=with_upgrades, lighter=lighter, progress=progress
    ).plan


def plan_for_server(
    query: PlanQuery,
    server: str = "",
    *,
    with_upgrades: bool = True,
    lighter: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> ServerPlan:
    """Answer a query by a plan that a server can express, as ``hypsolve plan`` does.

    Parameters
    ----------
    query : PlanQuery
    server : str, optional
        A name in `hypsolve.planning.exporters.RUNTIMES`. Default: the server whose whole
        pipelines the runtime of the query runs, if there is one.
    with_upgrades, progress
        As in `plan`.
    lighter : mapping, optional
        The model in formats that take fewer bytes, by name of the format.
    deadline : Deadline, optional
        When all work must have ended. Default: the time limit of the query from now on, after
        kernels have been compiled.

    Raises
    ------
    ValueError
        As `hypsolve.nearest_plan` does.
    KeyboardInterrupt
        If the interrupt comes before a split has been found.
    """
    warm(query)
    is_placed = with_upgrades and may_be_placed(query)
    if is_placed:
        warm_placement(query)
    deadline = deadline or Deadline(query.time_limit_s)
    if not is_placed:
        return _answer(query, server, with_upgrades, lighter, progress, deadline)
    before = deadline.part(1 - SPARE * PLACED_SHARE)
    found = _answer(query, server, with_upgrades, lighter, progress, before)
    if found.plan.interrupted:
        return found
    return _with_placement(found, query, deadline, progress or (lambda line: None))


def _with_placement(
    found: ServerPlan, query: PlanQuery, deadline: Deadline, progress: Progress
) -> ServerPlan:
    """Return plans of which the answer names a placement that serves clearly more."""
    plan, is_same = found.plan, found.plan is found.best
    limit_s = PLACED_SHARE * query.time_limit_s
    try:
        instead = placement_instead(
            query, plan, Deadline(min(limit_s, deadline.left_s() / SPARE)), progress
        )
        plan = replace(plan, placement_instead=instead)
    except KeyboardInterrupt:
        why = "the search for a placement without the order of the tiers was stopped"
        plan = replace(plan, stopped=plan.stopped or why, interrupted=True)
    return replace(found, plan=plan, best=plan if is_same else found.best)


def _answer(
    query: PlanQuery,
    server: str,
    with_upgrades: bool,
    lighter: Mapping[str, Model] | None,
    progress: Progress | None,
    deadline: Deadline,
) -> ServerPlan:
    """Answer a query as `plan_for_server` does, without a placement."""
    found = _plan_for_server(query, server, with_upgrades, lighter, progress, deadline)
    plan = _of_all_choices(found.plan, query)
    is_same = found.plan is found.best
    return replace(
        found, plan=plan, best=plan if is_same else _of_all_choices(found.best, query)
    )


def _of_all_choices(plan: Plan, query: PlanQuery) -> Plan:
    """Return a plan whose answer holds for all choices of degrees and nodes of a query.

    A target below the least time to the first token, or per output token, is refuted. Else, if
    the load is not served, splits of other degrees that can be run may serve it: they were not
    judged.
    """
    answer = plan.slo_answer
    if answer is None or answer.is_met:
        return plan
    least_s = refuting_bounds(query)
    if least_s:
        answer = replace(
            answer,
            decided_by=BOUND,
            least_tpot_s=least_s.get("TPOT", math.nan),
            least_ttft_s=least_s.get("TTFT", math.nan),
        )
    elif answer.decided_by == ALL_SPLITS:
        rate = query.rate_per_s if query.users is None else 0.0
        others = [
            each
            for each in plan.degrees[1:]
            if each.is_allowed and not rate > each.bound_requests_per_s
        ]
        if others:
            answer = replace(answer, decided_by=SOME_SPLITS, n_splits=None)
    return replace(plan, slo_answer=answer)


def _plan_for_server(
    query: PlanQuery,
    server: str,
    with_upgrades: bool,
    lighter: Mapping[str, Model] | None,
    progress: Progress | None,
    deadline: Deadline,
) -> ServerPlan:
    """Answer a query by a plan that a server can express; see `plan_for_server`."""
    query, degrees = choose_degrees(query, progress, deadline, restrict=network_for_server)
    asked, own_server = query, restricting_server(query.runtime)
    server = server or own_server
    if server and server == own_server:
        query = best_nodes(query, deadline.part(NODES_SHARE), progress)
    best = plan_query(
        query,
        with_upgrades=with_upgrades and not server,
        lighter=lighter,
        progress=progress,
        deadline=deadline.part(FIRST_SHARE) if server else deadline,
    )
    if server and best.fits and not best.interrupted:
        assert best.result.partition is not None
        own = on_nodes_of(query, best.result.partition.cuts)
        if own is not query:  # the server has other limits on the nodes of this split
            query = own
            best = plan_query(
                query, with_upgrades=False, lighter=lighter, progress=progress,
                deadline=deadline.part(FIRST_SHARE),
            )  # fmt: skip
    best = replace(_over_degrees(best, degrees), degrees=degrees)
    if not server:
        return ServerPlan(best, best)
    why = ""
    if best.fits or server in ONE_PIPELINE:
        why = not_expressible(best, server) if best.fits else "nothing fits as it is"
    ways_are_known = server not in ONE_PIPELINE or not depends_on_empty_tiers(
        query.network, query.runtime
    )
    in_rows = server == own_server and server in ONE_PIPELINE and may_be_rows(query)
    if (why or not ways_are_known or in_rows) and not best.interrupted:
        upgrades_later = query.is_rate and server == own_server
        near = (nearest_plan if why or not ways_are_known else plan_in_rows)(
            best,
            server,
            time_limit_s=query.time_limit_s,
            with_upgrades=with_upgrades and not upgrades_later,
            progress=progress,
            deadline=deadline.part(NEAR_SHARE) if upgrades_later else deadline,
        )
        near, used = replace(near, degrees=degrees), query
        if upgrades_later:
            near, used = _of_all_nodes(near, used, asked, server, deadline, progress)
            if not near.interrupted and (with_upgrades or not near.fits):
                near = add_upgrades(near, lighter=lighter, progress=progress, deadline=deadline)
        near, best = _naming_all(near, used, asked), _naming_all(best, query, asked)
        # a plan whose messages take other ways than was counted is no better one
        is_other = ways_are_known and bool(why)
        return ServerPlan(near, best, why) if is_other else ServerPlan(near, near)
    if server == own_server:
        best, query = _of_all_nodes(best, query, asked, server, deadline, progress)
    if not best.interrupted and (with_upgrades or not best.fits):
        best = add_upgrades(best, lighter=lighter, progress=progress, deadline=deadline)
    best = _naming_all(best, query, asked)
    return ServerPlan(best, best, why)


def _of_all_nodes(
    plan: Plan,
    query: PlanQuery,
    asked: PlanQuery,
    server: str,
    deadline: Deadline,
    progress: Progress | None,
) -> tuple[Plan, PlanQuery]:
    """Return a plan and its query, or those on other nodes that serve the load.

    The bound and the answer of the plan are extended to all nodes, see `over_all_nodes`.
    """
    found, met = over_all_nodes(
        plan, asked, server, deadline.part(OTHERS_SHARE), progress or (lambda line: None)
    )
    if met is None:
        return found, query
    other = plan_query(
        met, with_upgrades=False, progress=progress, deadline=deadline.part(FIRST_SHARE)
    )
    answer = other.slo_answer
    is_expressible = other.fits and not not_expressible(other, server)
    if answer is None or not answer.is_met or not is_expressible:
        return plan, query
    if found.throughput is not None and other.throughput is not None:
        bound = found.throughput.bound_requests_per_s
        other = replace(other, throughput=other.throughput.over_nodes([bound]))
    return replace(other, degrees=plan.degrees), met


def _over_degrees(plan: Plan, degrees: Sequence[DegreeChoice]) -> Plan:
    """Return a plan whose bound on the rate holds for all degrees that were compared."""
    found = plan.throughput
    if found is None or not degrees:
        return plan
    bounds = [each.bound_requests_per_s for each in degrees if each.is_allowed]
    return replace(plan, throughput=found.over_degrees(bounds))


def _naming_all(plan: Plan, query: PlanQuery, asked: PlanQuery) -> Plan:
    """Return a plan that names the nodes which `query` leaves out of those that were asked for.

    Their prices count as those of unused nodes.
    """
    if query is asked:
        return plan
    order = [node.name for tier in asked.network.network.tiers for node in tier.nodes]
    kept = {node.name for tier in query.network.network.tiers for node in tier.nodes}
    dropped = [name for name in order if name not in kept]
    closed = set(nodes_in(asked.network)) - set(nodes_in(query.network))
    unused = {*plan.unused_nodes, *dropped, *closed}
    price = sum(asked.network.price_per_hour.get(name, 0.0) for name in dropped)
    forecast = plan.forecast
    if forecast is not None and price:
        before = forecast.unused_price_per_hour
        forecast = replace(
            forecast, unused_price_per_hour=(0.0 if math.isnan(before) else before) + price
        )
    return replace(plan, forecast=forecast, unused_nodes=tuple(n for n in order if n in unused))
