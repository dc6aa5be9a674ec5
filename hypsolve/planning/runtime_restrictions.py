"""`network_for_server` and `nearest_plan`: nodes that a runtime can use, and a plan on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import ONE_PIPELINE, RUNTIMES, not_expressible, refusals
from hypsolve.planning.exporters.layout import Layout
from hypsolve.planning.forecast import Forecast
from hypsolve.planning.node_choice import best_nodes, on_nodes_of
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import plan_query, warm
from hypsolve.planning.query import PlanQuery, Solution, rank_fluid, solve_query
from hypsolve.planning.rpc_links import depends_on_empty_tiers
from hypsolve.planning.runtime_networks import (
    MAX_PIPELINES,
    by_layer,
    candidates,
    limited,
    rows_of_machines,
)
from hypsolve.planning.served_best import Choice, served_best
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.target_bound import least_tpot_s
from hypsolve.planning.throughput import Cuts
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Objective
from hypsolve.problem.rules import StageRule
from hypsolve.problem.runtime import Batching, Runtime
from hypsolve.solvers.clock import Deadline

CHOICE_SHARE = 0.5  # of the time limit, to choose among the networks that are allowed
NODES_SHARE = 0.25  # of the time of a choice, for nodes without the slow ones
FIRST_SHARE = 0.5  # of the time of a choice, for the split of all nodes
SIMULATED_SHARE = 0.4  # of that time, to simulate the best few networks
SAME = 1e-9  # relative difference of objectives that are equal
Split = Callable[[PlanQuery], Solution]
Fluid = Callable[[PlanQuery], tuple[Solution, dict[Cuts, float]]]


class NoServerPlan(ValueError):
    """A runtime can express no plan on a network, though all input is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNetwork:
    """The nodes that the pipelines of a query's runtime use.

    Attributes
    ----------
    query : PlanQuery
        The query, on the network of these nodes.
    solution : Solution or None
        The split of `query` if it is known.
    server : str
        The runtime whose pipelines restrict the network; empty if there is no restriction.
    why : str
        Why it cannot express the best split of all nodes; empty if it can.
    used, left_out : tuple of str
        Names of nodes: in pipelines, and all others of the network that was asked for.
    is_cut_short : bool
        Whether the time limit ended the choice; with more time it may be another one.
    """

    query: PlanQuery
    solution: Solution | None = None
    server: str = ""
    why: str = ""
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    is_cut_short: bool = False

    @classmethod
    def of(cls, query: PlanQuery, restricted: PlanQuery, why: str = "") -> ServerNetwork:
        """Make it of a query on all nodes and of the query on those that pipelines use."""
        used = nodes_in(restricted.network)
        known = (*query.left_out, *query.too_small, *_names(query.network))
        return cls(
            query=restricted,
            server=restricting_server(query.runtime),
            why=why,
            used=used,
            left_out=tuple(name for name in dict.fromkeys(known) if name not in used),
        )

    def of_split(self, solution: Solution) -> ServerNetwork:
        """Return a copy that names the nodes in the pipelines of a split."""
        cards = [card for replica in _layout(solution).replicas for card in replica.cards]
        used = tuple(dict.fromkeys(card.node for card in cards))
        names = dict.fromkeys((*self.used, *self.left_out))
        left_out = tuple(name for name in names if name not in used)
        return replace(self, used=used, left_out=left_out)

    def describe(self) -> str:
        """Name the nodes that pipelines use and those that are left out, in one line.

        Empty if there is no restriction.
        """
        return describe_nodes(self.server, self.used, self.left_out)


def describe_nodes(server: str, used: Sequence[str], left_out: Sequence[str]) -> str:
    """Name the nodes in the pipelines of a server; empty if there is no server."""
    if not server:
        return ""
    line = f"pipelines of {server} on {', '.join(used)}"
    return f"{line}; left out: {', '.join(left_out)}" if left_out else line


def restricting_server(runtime: Runtime) -> str:
    """Return the server whose pipelines restrict the network; empty if there is none."""
    return runtime.server if runtime.server in ONE_PIPELINE else ""


def network_for_server(
    query: PlanQuery,
    *,
    split: Split | None = None,
    fluid: Fluid | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> ServerNetwork:
    """Choose the nodes that the pipelines of a query's runtime use, as ``hypsolve plan`` does.

    If the runtime can express the best split of all nodes, its nodes are used; otherwise the
    best network under the restrictions that `nearest_plan` lists.

    Parameters
    ----------
    query : PlanQuery
    split : callable, optional
        Splits the model of a query. Default: `hypsolve.planning.query.solve_query`.
    fluid : callable, optional
        Splits it by the fluid model alone, where a rate is maximised. Default:
        `hypsolve.planning.query.rank_fluid`.
    progress : callable, optional
        Called with a line of text about the work in progress.
    deadline : Deadline, optional
        When the choice must have been made. Default: the time limit of the query from now on.
    """
    server = restricting_server(query.runtime)
    if not server:
        return ServerNetwork(query=query)
    deadline = deadline or Deadline(query.time_limit_s)
    of_nodes = deadline.part(NODES_SHARE)
    asked, query = query, best_nodes(query, of_nodes, progress)
    is_cut_short = of_nodes.has_passed()
    split = split or _solver(progress)
    first_s = deadline.part(FIRST_SHARE).limit_s
    solution = replace(split(replace(query, time_limit_s=first_s)), query=query)
    if solution.result.partition is not None:
        own = on_nodes_of(query, solution.result.partition.cuts)
        if own is not query:  # the server has other limits on the nodes of this split
            query = own
            first_s = deadline.part(FIRST_SHARE).limit_s
            solution = replace(split(replace(query, time_limit_s=first_s)), query=query)
    why = "nothing fits as it is"
    if solution.result.partition is not None:
        layout = _layout(solution)
        why = not_expressible(layout, server)
        network = query.network if why else _network_of(query.network, layout)
        ways_are_known = not depends_on_empty_tiers(query.network, query.runtime)
        is_enough = ways_are_known and not why and not may_be_rows(query)
        if solution.interrupted or is_enough:
            found = ServerNetwork.of(asked, replace(query, network=network), why)
            found = replace(found, is_cut_short=is_cut_short or deadline.has_passed())
            return replace(found, solution=solution) if network is query.network else found
    best = _restricted(solution, server, deadline, progress, split, fluid)
    is_cut_short = is_cut_short or deadline.has_passed()
    return replace(ServerNetwork.of(asked, best, why), is_cut_short=is_cut_short)


def may_be_rows(query: PlanQuery) -> bool:
    """Return whether groups of GPUs that are whole pipelines may serve more as stages in a row.

    A group that holds the model has less room for KV cache than one that holds a stage. This is
    tried within machines, where a rate is asked for.
    """
    network = query.network
    if not query.is_rate:
        return False
    for k, tier in enumerate(network.network.tiers):
        if not network.may_be_stages(k):
            if any(rows_of_machines(network, k)):
                return True
        elif len(tier.nodes) > 1 and all(n.tensor_parallel is not None for n in tier.nodes):
            return True
    return False


def _ranked(query: PlanQuery) -> tuple[Solution, dict[Cuts, float]]:
    """Return the best split of the fluid model with its rate, which only ranks networks."""
    solution, splits, rate = rank_fluid(query)
    return solution, dict.fromkeys(splits[:1], rate)


def _solver(progress: Progress | None) -> Split:
    return lambda query: solve_query(query, progress)


def nodes_in(network: NetworkFile) -> tuple[str, ...]:
    """Return the names of the nodes of all tiers that may hold blocks."""
    tiers = network.network.tiers
    most = network.max_blocks or (None,) * len(tiers)
    return tuple(
        node.name
        for tier, limit in zip(tiers, most, strict=True)
        for node in tier.nodes
        if limit != 0
    )


def _names(network: NetworkFile) -> tuple[str, ...]:
    return tuple(node.name for tier in network.network.tiers for node in tier.nodes)


def _network_of(network: NetworkFile, layout: Layout) -> NetworkFile:
    """Return a network without nodes that no pipeline of a layout can take.

    A tier that holds no blocks stays if it has a node for each pipeline.
    """
    nodes = dict(zip(layout.tiers, layout.nodes, strict=True))
    empty = []
    for k, tier in enumerate(network.network.tiers):
        if tier.name not in nodes:
            empty += [k] if len(tier.nodes) != len(layout.replicas) else []
        elif len(nodes[tier.name]) != len(tier.nodes):
            used = tuple(node for node in tier.nodes if node.name in nodes[tier.name])
            network = network.in_a_row(k, [used])
    if not empty:
        return network
    closed = limited(network, tuple(empty))
    least = network.min_blocks or (None,) * len(closed.min_blocks)
    least = tuple(0 if k in empty else given for k, given in enumerate(least))
    return replace(closed, min_blocks=least)  # other tiers that may be empty still may


@valid.suggest_keywords("nearest_plan")
def nearest_plan(
    plan: Plan,
    runtime: str,
    *,
    time_limit_s: float = 60.0,
    with_upgrades: bool = True,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> Plan:
    """Return the best plan that a runtime can express, solved under its restrictions.

    The restrictions are:

    - For a runtime of whole pipelines, each tier keeps equally many nodes: pipeline i takes the
      i-th node of each stage. Several nodes of a tier may instead become stages one after
      another. The network must then state how the nodes of the tier are linked (``inner``),
      and neither pin nor limit the blocks of the tier.
    - If every stage of the runtime needs a layer, the first stage gets the first layer, and the
      last stage gets the last layer. A tier that may be empty is left out if the plan improves.
    - Nodes on which the runtime does not run are left out; a tier of such nodes stays empty.
    - The stages must be placed on the machines as the runtime places them.

    Where a rate is asked for (`hypsolve.planning.goal.Goal`), the best few networks are
    simulated, and the one that serves most is planned; of nearly equal ones, the one with the
    best objective. Of plans with equal objectives, the one with the fewest stages is returned,
    then the one with the most replicas. At most `MAX_PIPELINES` of the networks that these
    rules allow are tried.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    time_limit_s, with_upgrades, progress
        As in `hypsolve.plan`.
    deadline : Deadline, optional
        When all work must have ended, if that is earlier than the time limit from now on.

    Returns
    -------
    Plan
        `plan` itself if the runtime can express `plan`; otherwise a new plan. The network of
        the new plan may differ from the network of `plan`. The new plan may fit even if `plan`
        does not, because nodes in a row hold more than each node alone. A plan of llama.cpp is
        also made anew if tiers may be empty: the way of its messages depends on the empty ones
        (`hypsolve.planning.rpc_links`).

    Raises
    ------
    ValueError
        If no plan exists to start from, the runtime runs on no node, the network pins the first
        or the last layer to another stage, or no split fits the machines.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
    >>> desk = hs.Node(name="desk", gpu=hs.gpu("rtx-4090"))
    >>> rack = [hs.Node(name=f"rack-{j}", gpu=hs.gpu("a10")) for j in range(2)]
    >>> tiers = (
    ...     hs.Tier(name="desk", nodes=(desk,), link=link),
    ...     hs.Tier(name="rack", nodes=tuple(rack)),
    ... )
    >>> network = hs.Network(name="home", tiers=tiers)
    >>> plan = hs.plan("llama-3-8b", network, with_upgrades=False)
    >>> near = hs.nearest_plan(plan, "vllm", with_upgrades=False)
    >>> [node.node for node in plan.nodes], [node.node for node in near.nodes]
    (['desk', 'rack-0', 'rack-1'], ['desk', 'rack-0'])
    """
    valid.of_type("nearest_plan", "plan", plan, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    ways_are_known = runtime not in ONE_PIPELINE or not depends_on_empty_tiers(
        plan.query.network, plan.query.runtime
    )
    if plan.fits and ways_are_known and not not_expressible(plan, runtime):
        return plan
    return plan_in_rows(
        plan, runtime, time_limit_s=time_limit_s, with_upgrades=with_upgrades,
        progress=progress, deadline=deadline,
    )  # fmt: skip


def plan_in_rows(
    plan: Plan,
    runtime: str,
    *,
    time_limit_s: float,
    with_upgrades: bool,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
) -> Plan:
    """Return the best plan that a runtime can express, as `nearest_plan` does.

    `plan` is not returned itself, even if the runtime can express it.
    """
    query = replace(plan.query, time_limit_s=time_limit_s)
    solution = Solution(
        query=query,
        deployment=plan.deployment,
        instance=plan.result.instance,
        result=plan.result,
    )
    if not plan.fits and runtime not in ONE_PIPELINE:
        raise ValueError(f"nearest_plan: no plan to start from, {plan.result.status}")
    if deadline is None:
        warm(query)
        deadline = Deadline(time_limit_s)
    best = _restricted(solution, runtime, deadline.part(CHOICE_SHARE), progress)
    near = plan_query(best, with_upgrades=with_upgrades, progress=progress, deadline=deadline)
    # splits for other objectives are of these nodes alone, which no option asks for
    used = nodes_in(near.network)
    near = replace(
        near,
        alternatives=(),
        forecast=_with_left_out(near, plan.network),
        unused_nodes=tuple(name for name in _names(plan.network) if name not in used),
    )
    against = refusals(Layout.of(near), runtime) if near.fits else []
    if against:
        raise NoServerPlan(f"nearest_plan: {runtime} can express no plan: {against[0]}")
    return near


def _with_left_out(near: Plan, network: NetworkFile) -> Forecast | None:
    """Return a plan's forecast that counts the prices of the nodes that it leaves out, too."""
    kept = {node.name for tier in near.network.network.tiers for node in tier.nodes}
    price = sum(p for name, p in network.price_per_hour.items() if name not in kept)
    if near.forecast is None or not price:
        return near.forecast
    unused = near.forecast.unused_price_per_hour
    return replace(near.forecast, unused_price_per_hour=np.nan_to_num(unused) + price)


def networks_of_server(
    solution: Solution, runtime: str
) -> list[tuple[NetworkFile, list[PlanQuery]]]:
    """Return the networks of pipelines that a runtime allows, each with queries on it.

    Every query closes other tiers of that network, and has the limits of the nodes that are
    left. Together they are all splits of the network, unless tiers are too many.
    """
    found = candidates(solution, runtime)
    most = MAX_PIPELINES // len(found)
    return [
        (
            candidate.network,
            [
                solution.query.on(restricted)
                for restricted in by_layer(solution, candidate, runtime, most)
            ],
        )
        for candidate in found
    ]


def queries_of_server(solution: Solution, runtime: str) -> list[PlanQuery]:
    """Return the query of a split on each network that a runtime of whole pipelines allows."""
    return [query for _, of in networks_of_server(solution, runtime) for query in of]


def _restricted(
    solution: Solution,
    runtime: str,
    deadline: Deadline,
    progress: Progress | None,
    split: Split | None = None,
    fluid: Fluid | None = None,
) -> PlanQuery:
    """Return the query of a split on the best network that a runtime allows."""
    queries = queries_of_server(solution, runtime)
    if len(queries) == 1:
        return queries[0]
    return _best_of(
        queries, runtime, deadline, progress, split or _solver(progress), fluid or _ranked
    )


def _best_of(
    queries: list[PlanQuery],
    runtime: str,
    deadline: Deadline,
    progress: Progress | None,
    split: Split,
    fluid: Fluid,
) -> PlanQuery:
    """Return the best query that the runtime can express; all share the time that is left.

    Where a rate is asked for, the best few are simulated. Among equal objectives, fewer stages
    go first, then more replicas. If nothing fits, the first query is returned. Under
    ``serial``, networks with a short pass are split first, and those that are left when the
    time has passed are not.
    """
    choices: list[Choice] = []
    why: list[str] = []
    splitting = deadline.part(1 - SIMULATED_SHARE)
    order_of = list(range(len(queries)))
    is_serial = queries[0].runtime.batching is Batching.SERIAL
    if is_serial:  # what they serve is that of the shortest pass
        order_of.sort(key=lambda at: _shortness(queries[at]))
    for n_done, at in enumerate(order_of):
        if is_serial and choices and deadline.has_passed():
            break
        query = queries[at]
        limit_s = splitting.part(1 / (len(queries) - n_done)).limit_s
        of_part = replace(query, time_limit_s=limit_s)
        if query.is_rate:  # the best few networks are simulated later
            solution, rates = fluid(of_part)
        else:
            solution, rates = split(of_part), {}
        if solution.interrupted:
            raise KeyboardInterrupt
        if solution.result.partition is None:
            continue
        layout = _layout(solution)
        against = refusals(layout, runtime)
        why += against
        if not against:
            score_s = 1 / max(rates.values()) if rates else _score_s(solution, layout)
            order = (solution.relaxed, score_s, layout.n_stages, -len(layout.replicas), at)
            # the load of a simulation follows the limit of the whole query, not of its part
            choices.append(Choice(order, replace(solution, query=query)))
    if not choices and why:
        raise NoServerPlan(f"nearest_plan: {runtime} can express no plan: {why[0]}")
    if not choices:
        return queries[0]
    return queries[int(served_best(_in_order(choices), deadline, progress).order[-1])]


def _shortness(query: PlanQuery) -> tuple[float, int]:
    """Return the least seconds of a pass on a network, and its nodes."""
    return least_tpot_s(query, may_leave_out=False), len(nodes_in(query.network))


def _in_order(choices: list[Choice]) -> list[Choice]:
    """Return the choices with an order in which nearly equal scores are equal."""
    ordered, last = [], (0.0, -math.inf)
    for choice in sorted(choices, key=lambda each: each.order):
        relaxed, score_s, *rest = choice.order
        if relaxed > last[0] or score_s > last[1] * (1 + SAME):
            last = relaxed, score_s
        ordered.append(replace(choice, order=(*last, *rest)))
    return ordered


def _score_s(solution: Solution, layout: Layout) -> float:
    """Return what is compared of a solution: its objective, for all replicas together.

    Under ``pooled``, a bottleneck is that of all nodes of a stage. Where it is that of one
    pipeline, n pipelines serve n times as many requests.
    """
    instance, objective_s = solution.result.instance, solution.result.objective_s
    of_one = instance.stage_rule is not StageRule.POOLED
    shared = of_one and instance.objective is Objective.BOTTLENECK
    return objective_s / len(layout.replicas) if shared else objective_s


def _layout(solution: Solution) -> Layout:
    """Return the layout of a split, as `Layout.of` does for a plan."""
    partition = solution.result.partition
    assert partition is not None
    used = {}
    for k, tier in enumerate(solution.deployment.network.tiers):
        holds = evaluation.can_hold(solution.instance, k, *partition.cuts[k : k + 2])
        used[tier.name] = [n.name for n, held in zip(tier.nodes, holds, strict=True) if held]
    return Layout.of_split(solution.deployment, partition.cuts, used)
