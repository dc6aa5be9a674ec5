"""`plan`: split a model over a network, forecast how it serves, and find upgrades."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.goal import Goal
from hypsolve.planning.plan import Alternative, NodePlan, Plan, StagePlan
from hypsolve.planning.query import (
    DEFAULT_METHOD,
    ModelSource,
    NetworkSource,
    PlanQuery,
    Solution,
    instance_of,
    solve_query,
    takes_query,
)
from hypsolve.planning.rate_bound import lengths
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.planning.throughput import ServedSplit
from hypsolve.planning.what_if import Upgrade, find_upgrades, lighter_models
from hypsolve.problem import costs, evaluation
from hypsolve.problem.deployment import CostModel, Deployment, Model
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Status
from hypsolve.solve import METHODS, solve, warm_methods
from hypsolve.solvers.clock import MIN_S, Deadline
from hypsolve.solvers.partition.infeasibility import explain_infeasible

SEARCH_SHARE = 0.5  # of the time limit, for the search where upgrades are looked for, too
RESERVED_SHARE = 0.2  # of the time limit, for the forecast


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
    rate_per_s : float
        Requests per second, for the forecast and for ``mean_latency``.
    concurrency : int
        Sequences for which every node must have KV cache at once; where batches pass whole
        pipelines, `Runtime.max_num_seqs` at most.
    objective : {"bottleneck", "path", "p0", "mean_latency"}
        ``mean_latency`` is the mean latency of requests at this rate, simulated token by token.
        The proof then holds for the simulated requests only.
    method : str, optional
        A name in `hypsolve.METHODS` that decides a partition. Default: ``hypsplit_dp``, which
        is exact, and of equal splits the one with the most room for KV cache; for
        ``mean_latency`` a search by simulation. If `method` is given with
        ``mean_latency``, the method minimises the bottleneck, and its split is then simulated.
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
        entry.
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
    warm(query)
    deadline = Deadline(query.time_limit_s)
    query, degrees = choose_degrees(query, progress, deadline)
    found = plan_query(
        query,
        with_upgrades=with_upgrades,
        lighter=lighter,
        progress=progress,
        deadline=deadline,
    )
    return replace(found, degrees=degrees)


def plan_query(
    query: PlanQuery,
    *,
    with_upgrades: bool = True,
    lighter: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> Plan:
    """Answer a query as `plan` does.

    Parameters
    ----------
    query : PlanQuery
    with_upgrades, progress
        As in `plan`.
    lighter : mapping, optional
        As in `hypsolve.planning.what_if.find_upgrades`.
    deadline : Deadline, optional
        When all work must have ended. Default: the time limit of the query from now on, after
        kernels have been compiled.
    """
    progress = progress or (lambda line: None)
    warm(query)
    limit_s = query.time_limit_s if deadline is None else deadline.left_s()
    deadline = deadline or Deadline(limit_s)
    share = SEARCH_SHARE if with_upgrades else 1 - RESERVED_SHARE
    limited = replace(query, time_limit_s=max(share * limit_s, MIN_S))
    solution, stopped = _solve_or_fall_back(limited, progress)
    return _plan_of(
        query, solution, stopped,
        with_upgrades=with_upgrades, lighter=lighter, progress=progress, deadline=deadline,
    )  # fmt: skip


def add_upgrades(
    plan: Plan,
    *,
    lighter: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
    deadline: Deadline,
) -> Plan:
    """Add upgrades to a plan that was made without; its split and its forecast stay.

    Parameters are those of `plan_query`.
    """
    query = plan.query
    solution = Solution(
        query=query,
        deployment=plan.deployment,
        instance=instance_of(query),
        result=plan.result,
        throughput=plan.throughput,
    )
    found = _plan_of(
        query, solution, plan.stopped,
        forecast=plan.forecast, with_upgrades=True, lighter=lighter,
        progress=progress or (lambda line: None), deadline=deadline,
    )  # fmt: skip
    return replace(found, degrees=plan.degrees)


def warm(query: PlanQuery) -> None:
    """Compile or load the kernels that a plan for a query needs, before a clock starts."""
    more = ("throughput",) if query.is_rate else ()
    warm_methods(
        query.method or DEFAULT_METHOD,
        simulates=True,
        pipelines=query.has_pipelines,
        families=more,
    )


def _plan_of(
    query: PlanQuery,
    solution: Solution,
    stopped: str,
    *,
    forecast: Forecast | None = None,
    with_upgrades: bool,
    lighter: Mapping[str, Model] | None,
    progress: Progress,
    deadline: Deadline,
) -> Plan:
    """Complete a plan: the forecast, unless it is known, alternatives and upgrades."""
    result = solution.result
    alternatives: list[Alternative] = []
    upgrades: list[Upgrade] = []
    try:
        if result.partition is not None and forecast is None:
            progress("simulating requests")
            forecast = predict(
                solution.deployment,
                result.partition,
                query.load,
                query.network.price_per_hour,
                currency=query.network.currency,
                instance=solution.instance,
                deadline=deadline,
            )
        if with_upgrades and not stopped:
            if result.partition is not None and solution.throughput is None:
                for alternative in _alternatives(query, solution, deadline):
                    progress(f"simulated: the split for {alternative.objective}")
                    alternatives.append(alternative)
            for upgrade in find_upgrades(
                query,
                solution,
                lighter,
                before=math.nan if forecast is None else Goal(query).of(forecast),
                best_known=_best_known(query, forecast, alternatives),
                before_is_lower_bound=(
                    forecast is not None and forecast.max_rate_is_lower_bound
                ),
                splits=[
                    *(other.cuts for other in alternatives),
                    *(each.cuts for each in _runners_up(solution)),
                ],
                deadline=deadline,
                progress=progress,
            ):
                upgrades.append(upgrade)  # those before an interrupt stay
    except KeyboardInterrupt:
        stopped = stopped or "not all upgrades were tried"
    except TimeoutError:
        stopped = (
            stopped or f"time limit of {query.time_limit_s:g} s: not all upgrades were tried"
        )
    if stopped and forecast is None and result.partition is not None:
        stopped += "; the forecast was not simulated"
    goal = Goal(query)
    return Plan(
        query=query,
        result=result,
        reasons=_reasons(solution),
        nodes=tuple(_nodes(solution)) if result.partition else (),
        stages=tuple(_stages(result, solution.deployment)) if result.partition else (),
        forecast=forecast,
        alternatives=tuple(alternatives),
        upgrades=tuple(sorted(upgrades, key=lambda each: _order(goal, each))),
        stopped=stopped,
        deployment=solution.deployment,
        throughput=solution.throughput,
    )


def _runners_up(solution: Solution) -> tuple[ServedSplit, ...]:
    """Return the splits that were simulated beside the best one, in their order."""
    return solution.throughput.splits[1:] if solution.throughput is not None else ()


def _order(goal: Goal, upgrade: Upgrade) -> tuple[float, float]:
    """Return the key that sorts upgrades: by the goal, then by attainment of the targets."""
    attainment = upgrade.slo_attainment
    return goal.rank(upgrade.after), 0.0 if math.isnan(attainment) else -attainment


def _best_known(
    query: PlanQuery, forecast: Forecast | None, alternatives: Sequence[Alternative]
) -> float:
    """Return the best simulated value of what the user asked for, over all known splits."""
    if forecast is None:
        return math.nan
    goal = Goal(query)
    return goal.best([goal.of(forecast), *(goal.of_split(other) for other in alternatives)])


def _solve_or_fall_back(query: PlanQuery, progress: Progress) -> tuple[Solution, str]:
    """Return the solution and what is unfinished; an interrupted exact method is replaced."""
    try:
        solution = solve_query(query, progress)
    except KeyboardInterrupt:
        if query.method is None or not METHODS[query.method].exact:
            raise
        quick = solve_query(replace(query, method=DEFAULT_METHOD, options={}))
        return quick, f"{query.method} was stopped: this is {DEFAULT_METHOD}'s split"
    if solution.interrupted:
        return solution, "the search was stopped: this is the best split so far"
    return solution, ""


def split(
    model: ModelSource,
    network: NetworkSource,
    *,
    simulates: bool = False,
    progress: Progress | None = None,
    **arguments: Any,
) -> Solution:
    """Split a model as `plan` does, without forecast and upgrades.

    Parameters
    ----------
    model, network, progress, **arguments
        As in `plan`.
    simulates : bool
        Whether the caller simulates the split next, so that those kernels are compiled, too.

    Returns
    -------
    Solution
    """
    query, _ = choose_degrees(PlanQuery.of(model, network, **arguments), progress)
    warm_methods(
        query.method or DEFAULT_METHOD,
        simulates=simulates or query.is_simulated or query.is_rate,
        pipelines=query.has_pipelines,
        families=("throughput",) if query.is_rate else (),
    )
    return solve_query(query, progress)


def _alternatives(
    query: PlanQuery, solution: Solution, deadline: Deadline
) -> Iterator[Alternative]:
    """Yield the best splits for other objectives, if they differ, with their forecast."""
    deployment, seen = solution.deployment, [solution.result.partition]
    for objective in (Objective.BOTTLENECK, Objective.PATH, Objective.P0):
        has_empty_tier = objective is Objective.P0 and 0 in query.network.min_blocks
        if objective == query.objective or has_empty_tier:
            continue
        if deadline.has_passed():
            raise TimeoutError
        instance = solution.instance.replace(objective=objective)
        partition = solve(instance, "hypsplit_dp").partition
        if partition in seen or partition is None:
            continue
        seen.append(partition)
        forecast = predict(
            deployment, partition, query.load, instance=instance, deadline=deadline
        )
        yield Alternative(
            objective=str(objective),
            cuts=partition.cuts,
            latency_mean_s=forecast.latency_s.mean,
            max_requests_per_s=forecast.max_requests_per_s,
            goodput_requests_per_s=forecast.goodput_requests_per_s,
            max_rate_is_lower_bound=forecast.max_rate_is_lower_bound,
            slo_attainment=forecast.slo_attainment,
        )


def _reasons(solution: Solution) -> tuple[str, ...]:
    """Return why nothing fits, or why no split was found."""
    result = solution.result
    if result.partition is not None:
        return ()
    if result.status is not Status.INFEASIBLE:
        return (result.message,)
    reasons = explain_infeasible(solution.instance)
    return (reasons.verdict, *reasons.tiers)


def _nodes(solution: Solution) -> Iterator[NodePlan]:
    deployment, instance = solution.deployment, solution.result.instance
    partition = solution.result.partition
    assert partition is not None and deployment.max_resident_tokens is not None
    model = deployment.model
    for k, tier in enumerate(deployment.network.tiers):
        blocks = partition.stage(k)
        of_tier = [model.blocks[b] for b in blocks]
        weights = model.stage_weight_bytes(of_tier)
        holds = evaluation.can_hold(instance, k, blocks.start, blocks.stop)
        times_s = evaluation.node_stage_s(instance, k, blocks.start, blocks.stop)
        for node, is_used, time_s in zip(tier.nodes, holds, times_s, strict=True):
            used = bool(is_used and blocks)
            kv = deployment.kv_bytes_per_token(of_tier, node) * deployment.max_resident_tokens
            yield NodePlan(
                tier=tier.name,
                node=node.name,
                gpu=node.gpu.name,
                n_gpus=node.gpus,
                blocks=blocks if used else range(0),
                weight_bytes=float(weights) if used else 0.0,
                kv_bytes=float(kv) if used else 0.0,
                free_bytes=deployment.usable_bytes(node) - (weights + kv if used else 0),
                time_s=float(time_s) if used else 0.0,
                is_used=used,
            )


def _stages(result: Result, deployment: Deployment) -> Iterator[StagePlan]:
    instance, partition = result.instance, result.partition
    assert partition is not None
    is_bottleneck = instance.objective is Objective.BOTTLENECK
    parts = []
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        time_s = evaluation.stage_s(instance, k, i, j, None if is_bottleneck else "fastest")
        link_s = 0.0
        if k < instance.n_tiers - 1 and is_bottleneck:
            link_s = evaluation.link_s(instance, k, j)
        elif k < instance.n_tiers - 1:
            link_s = float(instance.reference_transfer_kind_s[k, instance.cut_kind[j]])
        parts.append((time_s, link_s))
    counted = [time_s + link_s for time_s, link_s in parts]
    if instance.objective is Objective.P0:  # only the largest stage counts
        largest = max(range(len(parts)), key=lambda k: parts[k][0])
        counted = [link_s + (k == largest) * time_s for k, (time_s, link_s) in enumerate(parts)]
    whole = max(counted) if is_bottleneck else sum(counted)
    for k, (time_s, link_s) in enumerate(parts):
        yield StagePlan(
            tier=instance.tier_names[k],
            blocks=partition.stage(k),
            time_s=time_s,
            link_s=link_s,
            share=counted[k] / whole if whole else 0.0,
            binds=_binds(result, deployment, k, partition.stage(k), time_s, link_s),
        )


def _binds(
    result: Result, deployment: Deployment, k: int, blocks: range, time_s: float, link_s: float
) -> str:
    """Return what takes most of the time of one request alone on a tier and its link.

    Compute takes most of it if it takes more than half of the time on a node, averaged over the
    nodes that can hold the blocks, each weighted by the share of requests that it serves.
    """
    if link_s >= time_s:
        return "link" if link_s > 0 else ""
    if deployment.cost_model is CostModel.FLOPS:
        return "compute"
    holds = evaluation.can_hold(result.instance, k, blocks.start, blocks.stop)
    node_s = evaluation.node_stage_s(result.instance, k, blocks.start, blocks.stop)
    model, nodes = deployment.model, deployment.network.tiers[k].nodes
    prompt, output = lengths(deployment)
    compute_share = shares = 0.0
    for node, is_used, alone_s in zip(nodes, holds, node_s, strict=True):
        if is_used and alone_s > 0:
            profile = deployment.profile(node)
            compute_s = sum(
                float(costs.service_s(block, profile, prompt, output, CostModel.FLOPS))
                for block in (model.blocks[b] for b in blocks)
            )
            # a node serves requests in proportion to its speed
            compute_share += compute_s / alone_s / alone_s
            shares += 1 / alone_s
    return "compute" if compute_share > 0.5 * shares else "memory bandwidth"
