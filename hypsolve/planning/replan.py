"""`replan`: the best split that moves at most a given number of blocks of an earlier plan."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.planning.earlier_plan import (
    KEPT,
    OBJECTIVES,
    Placement,
    continues,
    placement,
    query_of_plan,
    weights_in,
    with_arguments,
)
from hypsolve.planning.expected_errors import (
    ExpectedError,
    expected_errors,
    requests_at_once,
)
from hypsolve.planning.few_moves import (
    FewMovesSearch,
    best_split,
    fewest_moves,
    moved_blocks,
    moves_table,
)
from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.gpu_groups import has_degree
from hypsolve.planning.node_choice import on_nodes_of
from hypsolve.planning.plan import FORMAT, VERSION, Plan, record_to_dict
from hypsolve.planning.planner import warm
from hypsolve.planning.query import (
    RATES,
    ModelSource,
    NetworkSource,
    PlanQuery,
    Solution,
    instance_of,
    solve_query,
    to_network_file,
)
from hypsolve.planning.runtime_networks import with_layers
from hypsolve.planning.runtime_restrictions import ServerNetwork, network_for_server
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.planning.throughput import Throughput
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.instance import Instance
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.problem.units import finite_or_none
from hypsolve.solve import Method, solve
from hypsolve.solvers.clock import Deadline

CHOICE_SHARE = 0.5  # of the time limit, to choose the nodes that a server's pipelines use
SEARCH_SHARE = 0.8  # of the time that is left then, for the split that serves most


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """A split that moves at most a given number of blocks, made by `replan`.

    Attributes
    ----------
    instance : Instance
    partition : Partition or None
        The best partition with at most `max_moves` moved blocks; of several, one with the
        fewest moves. None if nothing fits with so few moves.
    objective_s : float
        Objective of the partition; inf without one, nan if it is in requests per second.
    n_moved, max_moves : int
        Moved blocks, and their limit.
    moved_bytes : dict
        Weights that each node must load, by name; nodes that load nothing are left out. A node
        of another number of GPUs than before loads all, since each GPU holds another part.
    frontier : tuple of (int, float)
        Each number of moves at which the least objective falls, with that objective. If it is
        in requests per second: moves and rates of the splits that were simulated in full and
        that no other one beats in both.
    min_moves : int or None
        The fewest moves with which anything fits; None if nothing fits with any.
    reason : str
        Why there is no partition; empty if there is one.
    deployment : Deployment
        Model and network with one request, and the KV cache to leave room for.
    concurrency : int
        As in `PlanQuery`.
    forecast : Forecast or None
        Expected latency and throughput of the partition; None without one.
    query : PlanQuery
        The query, with what the earlier plan left to it, on the network of the nodes that the
        pipelines of its runtime use.
    server : str
        The runtime whose pipelines restrict the network; empty if there is no restriction.
    used, left_out : tuple of str
        Names of the nodes that these pipelines use, and of all others. What is proved about the
        objective is proved of the nodes in use.
    throughput : Throughput or None
        What the partition serves in simulation, and the bound over all splits; None unless the
        objective is in requests per second. `best_for` there is about splits with so few moves.
    stopped : str
        What a KeyboardInterrupt left unfinished; empty if the search was complete.
    lost_degree : int or None
        Degree of tensor parallelism of the earlier plan, if no machine can have it any more, so
        that the degree was chosen anew; None otherwise.
    """

    instance: Instance
    partition: Partition | None
    objective_s: float
    n_moved: int
    max_moves: int
    moved_bytes: Mapping[str, int]
    frontier: tuple[tuple[int, float], ...]
    min_moves: int | None
    reason: str
    deployment: Deployment
    concurrency: int
    forecast: Forecast | None
    query: PlanQuery
    server: str = ""
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    throughput: Throughput | None = None
    stopped: str = ""
    lost_degree: int | None = None

    @property
    def objective(self) -> str:
        """The objective of the query."""
        return self.query.objective

    @property
    def expected_errors(self) -> tuple[ExpectedError, ...]:
        """The error to expect of the forecast for each kind of GPU in use."""
        if self.partition is None:
            return ()
        return expected_errors(
            self.deployment, self.instance, self.partition,
            at_once=requests_at_once(self.forecast), model=self.query.model,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return all but the instance as plain numbers, strings, lists and dicts, for JSON.

        Stages and nodes have the form of `Plan.to_dict`, so that `replan` can go on from them.
        """
        stages, nodes = [], []
        if self.partition is not None:
            for k, tier in enumerate(self.deployment.network.tiers):
                blocks = self.partition.stage(k)
                at = [blocks.start, blocks.stop]
                stages.append({"tier": tier.name, "blocks": at})
                if blocks:
                    holds = evaluation.can_hold(self.instance, k, *at)
                    held = zip(tier.nodes, holds, strict=True)
                    nodes += [
                        {
                            "tier": tier.name,
                            "node": node.name,
                            "blocks": at,
                            "n_gpus": node.gpus,
                        }
                        for node, has in held
                        if has
                    ]
        mix = self.query.requests
        return {
            "format": FORMAT,
            "version": VERSION,
            "instance": self.instance.name,
            "model": self.deployment.model.name,
            **{name: getattr(self.query, name) for name in KEPT if name != "runtime"},
            "requests": None if mix is None else mix.to_dict(),
            "rate_per_s": self.query.rate_per_s if self.query.users is None else None,
            "runtime": self.query.runtime.to_dict(),
            "forecast": None if self.forecast is None else record_to_dict(self.forecast),
            "expected_errors": [record_to_dict(error) for error in self.expected_errors],
            "objective": self.objective,
            "throughput": None if self.throughput is None else record_to_dict(self.throughput),
            "stopped": self.stopped,
            "lost_degree": self.lost_degree,
            "cuts": None if self.partition is None else list(self.partition.cuts),
            "objective_s": finite_or_none(self.objective_s),
            "n_moved": self.n_moved,
            "max_moves": self.max_moves,
            "moved_bytes": dict(self.moved_bytes),
            "frontier": [list(point) for point in self.frontier],
            "min_moves": self.min_moves,
            "reason": self.reason,
            "left_out": list(self.left_out),
            "stages": stages,
            "nodes": nodes,
        }


def replan(
    model: ModelSource,
    network: NetworkSource,
    before: str | os.PathLike[str] | Plan | Placement,
    *,
    max_moves: int,
    objective: str | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> Replan:
    """Repartition a model after the network has changed, moving at most `max_moves` blocks.

    A block counts as moved if its tier has another name than before and no node that held the
    block. The first GPUs of a machine count as the machine. An objective
    in seconds is minimised exactly: dynamic programming over tiers, cuts and moves takes
    O(n_tiers * n_blocks**2 * max_moves) steps. For requests per second, the splits with so few
    moves that are best in the fluid model (exactly, by branch and bound) are simulated, with
    those that are best for requests one at a time and the split of the earlier plan, if it
    fits. The one that serves most is taken.

    A server of whole pipelines, such as vLLM, may be unable to use all nodes at once. If the
    network has the same nodes as before, the earlier plan says which are used; otherwise they
    are chosen as ``hypsolve plan`` chooses them, by the best splits with so few moves. What is
    proved about the objective is proved of these nodes.

    Parameters
    ----------
    model, network
        As in `hypsolve.plan`.
    before : path, Plan or Placement
        The earlier plan. A file holds the output of ``hypsolve plan --json`` or ``hypsolve
        replan --json``, of this version or of version 1.
    max_moves : int
        Largest number of blocks that may move.
    objective : {"bottleneck", "path", "throughput", "goodput", "cost"}, optional
        Default: that of the earlier plan, ``path`` if it minimised ``mean_latency`` or ``p0``.
        If the plan states none, or was for an objective in seconds and the runtime is given
        anew: ``bottleneck``, or ``path`` where the runtime computes one batch at a time.
    weights : str, optional
        As in `hypsolve.plan`. Default: the format of the earlier plan.
    progress : callable, optional
        Called with a line of text about the work in progress.
    **arguments
        As in `hypsolve.plan`, except the method. Lengths, load, targets, concurrency, runtime
        and the degree of tensor parallelism default to those of the earlier plan. A degree that
        no machine can have any more is chosen anew.

    Returns
    -------
    Replan

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names it; or if the earlier plan is
        for another model, or for other formats of its weights.
    OSError
        If a file does not exist or cannot be read.
    TimeoutError
        If the time limit passes before the split is found.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
    >>> desk = hs.Tier(name="desk", nodes=(hs.Node(name="d", gpu=hs.gpu("l4")),), link=link)
    >>> rack = [hs.Node(name=f"r{j}", gpu=hs.gpu("a10")) for j in range(2)]
    >>> small, large = (
    ...     hs.Network(name="n", tiers=(desk, hs.Tier(name="rack", nodes=tuple(nodes))))
    ...     for nodes in (rack[:1], rack)
    ... )
    >>> before = hs.plan("llama-3-8b", small, objective="bottleneck", with_upgrades=False)
    >>> again = hs.replan("llama-3-8b", large, before, max_moves=3)
    >>> again.n_moved, list(again.moved_bytes)
    (3, ['r0', 'r1'])
    """
    max_moves = valid.whole("replan", "max_moves", max_moves)
    if objective is not None:
        valid.known("objective", objective, OBJECTIVES)
    old = placement(before)
    kept = with_arguments(old.query, arguments)
    lost_degree = None
    if "tensor_parallel" in old.query and "tensor_parallel" not in arguments:
        network = to_network_file(network)
        if not has_degree(network, old.query["tensor_parallel"]):
            lost_degree = kept.pop("tensor_parallel")
    of_file = kept.pop("weights", None)
    if weights is None and not isinstance(model, Model):
        weights = of_file or weights_in(old.model, model)
    of_plan = kept.pop("objective", None)
    if objective is None and (of_plan in RATES or "runtime" not in arguments):
        objective = of_plan  # in seconds, another runtime has its own default
    query = PlanQuery.of(model, network, weights=weights, objective=objective, **kept)
    if objective is None:
        query = replace(query, objective=query.objective_alone)
    warm(query)
    deadline = Deadline(query.time_limit_s)
    _check_same_model(old, query.model)
    asked, _ = choose_degrees(query, progress, deadline, restrict=network_for_server)
    restricted = _restricted(asked, old, max_moves, progress, deadline)
    query = restricted.query
    find = _most_served if query.is_rate else _least
    found = find(query, old, max_moves, progress, deadline)
    if found.partition is not None:
        own = on_nodes_of(query, found.partition.cuts)
        if own is not query:  # the server has other limits on the nodes of this split
            query, restricted = own, ServerNetwork.of(asked, own)
            found = find(query, old, max_moves, progress, deadline)
    instance, partition = found.instance, found.partition
    deployment, moves = query.deployment(), moves_table(instance, old)
    forecast, n_moved, min_moves, reason = None, 0, None, found.reason
    if partition is not None:
        if progress is not None:
            progress("simulating requests")
        forecast = predict(
            deployment,
            partition,
            query.load,
            query.network.price_per_hour,
            currency=query.network.currency,
            instance=instance,
            deadline=deadline,
        )
        n_moved = moved_blocks(moves, partition)
        min_moves = fewest_moves(instance, moves, n_moved)
    else:
        min_moves = fewest_moves(instance, moves, instance.n_blocks, deadline)
        if min_moves is not None:
            reason = f"at least {min_moves} blocks must move, not {max_moves}"
    return Replan(
        instance=instance,
        partition=partition,
        objective_s=found.objective_s,
        n_moved=n_moved,
        max_moves=max_moves,
        moved_bytes={} if partition is None else _loads(deployment, instance, partition, old),
        frontier=found.frontier,
        min_moves=min_moves,
        reason=reason,
        deployment=deployment,
        concurrency=query.concurrency,
        forecast=forecast,
        query=query,
        server=restricted.server,
        used=restricted.used,
        left_out=restricted.left_out,
        throughput=found.throughput,
        stopped=found.stopped,
        lost_degree=lost_degree,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A split with few moves; attributes are those of `Replan`."""

    instance: Instance
    partition: Partition | None
    objective_s: float
    frontier: tuple[tuple[int, float], ...]
    reason: str
    throughput: Throughput | None = None
    stopped: str = ""


def _least(
    query: PlanQuery,
    old: Placement,
    max_moves: int,
    progress: Progress | None,
    deadline: Deadline,
) -> _Found:
    """Return the split with the least objective in seconds, which is proved."""
    solution = solve_query(replace(query, time_limit_s=deadline.part(1.0).limit_s))
    instance = solution.instance
    table = moves_table(instance, old)
    frontier, partition = best_split(instance, table, max_moves, deadline)
    return _Found(
        instance=instance,
        partition=partition,
        objective_s=math.inf if partition is None else evaluation.evaluate(instance, partition),
        frontier=frontier,
        reason="" if partition is not None else solution.result.message,
    )


def _most_served(
    query: PlanQuery,
    old: Placement,
    max_moves: int,
    progress: Progress | None,
    deadline: Deadline,
) -> _Found:
    """Return the split that serves most, of those that are simulated.

    Raises
    ------
    TimeoutError
        If the deadline passes before a split is found.
    """
    search = FewMovesSearch(query, old, max_moves)
    result, throughput = search.run(deadline.part(SEARCH_SHARE).limit_s, progress)
    if result.status is Status.UNKNOWN:
        raise TimeoutError(
            f"replan: the time limit of {query.time_limit_s:g} s passed before the split was"
            " found"
        )
    return _Found(
        instance=search.instance,
        partition=result.partition,
        objective_s=math.inf if result.partition is None else math.nan,
        frontier=() if throughput is None else search.served_points(throughput),
        reason="" if result.partition is not None else result.message,
        throughput=throughput,
        stopped="the search was stopped: this is the best split so far"
        if search.interrupted
        else "",
    )


def _check_same_model(old: Placement, model: Model) -> None:
    if old.model and old.model != model.name:
        raise ValueError(
            f"replan: the earlier plan must be for {model.name!r}, got one for {old.model!r}"
        )
    if len(old.tier_of_block) != model.n_blocks:
        raise ValueError(
            f"replan: the earlier plan must have {model.n_blocks} blocks as the model has,"
            f" got {len(old.tier_of_block)}"
        )


def _restricted(
    query: PlanQuery,
    old: Placement,
    max_moves: int,
    progress: Progress | None,
    deadline: Deadline,
) -> ServerNetwork:
    """Choose the nodes that pipelines use, by splits that move few blocks.

    If the network still has the nodes of the earlier plan, and no others, they are those of
    this plan.
    A network whose split is not found in its share of the time is not chosen.
    """
    if continues(old, query):
        kept = query_of_plan(old, query, "replan")
        network = with_layers(kept.network, query.model, query.runtime.server)
        return ServerNetwork.of(query, replace(kept, network=network))

    def split(query: PlanQuery) -> Solution:
        if query.is_rate:
            return FewMovesSearch(query, old, max_moves).solution(progress)
        instance, mine = instance_of(query), Deadline(query.time_limit_s)
        try:
            _, partition = best_split(instance, moves_table(instance, old), max_moves, mine)
        except TimeoutError:
            partition = None
        return Solution(
            query=query,
            deployment=query.deployment(),
            instance=instance,
            result=_result(instance, partition),
        )

    return network_for_server(
        query,
        split=split,
        fluid=lambda query: FewMovesSearch(query, old, max_moves).fluid_solution(),
        progress=progress,
        deadline=deadline.part(CHOICE_SHARE),
    )


def _result(instance: Instance, partition: Partition | None) -> Result:
    """Return the result of a search that moves few blocks."""
    status = Status.UNKNOWN if partition is None else Status.FEASIBLE

    def few_moves(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        return Outcome(status, partition)

    return solve(instance, Method(few_moves, "partition"))


def _loads(
    deployment: Deployment, instance: Instance, partition: Partition, old: Placement
) -> dict[str, int]:
    """Return the weights of the blocks that each node holds now and did not hold before.

    With another number of GPUs, each of them holds another part of every block.
    """
    loads = {}
    for k, tier in enumerate(deployment.network.tiers):
        stage = partition.stage(k)
        holds = evaluation.can_hold(instance, k, stage.start, stage.stop)
        for node, held in zip(tier.nodes, holds, strict=True):
            had = old.held_by(node.name)
            if old.gpus_of_node.get(old.former(node.name), node.gpus) != node.gpus:
                had = range(0)
            new = [b for b in stage if b not in had] if held else []
            n_bytes = sum(deployment.model.blocks[b].weight_bytes for b in new)
            if n_bytes:
                loads[node.name] = n_bytes
    return loads
