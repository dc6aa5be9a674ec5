"""`cheapest_upgrade`: the cheapest upgrade with which a load is served within its targets."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from hypsolve.planning.forecast import sustains
from hypsolve.planning.query import PlanQuery, fluid_within_targets, with_tier
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import SufficientUpgrade, judged
from hypsolve.planning.throughput import PROPORTIONAL, Cuts
from hypsolve.planning.token_budgets import token_budgets
from hypsolve.planning.what_if import Scenario, kinds_of_nodes, scenarios
from hypsolve.problem import evaluation
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Model, Node
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.solve import solve
from hypsolve.solvers.clock import Deadline

MAX_MORE = 32  # nodes of a kind, copies of the network, or links that are added
NEARLY = 0.9  # of the load in the fluid model, from which an upgrade is simulated
N_SPLITS = 2  # simulated with each upgrade
MAX_LARGER = 3  # times that more is tried, if the simulation needs more than the model
FREED = ", with min_blocks = 0 everywhere"  # every tier may stay empty
Cost = tuple[bool, float, int]
Sized = Callable[[int], Scenario]
"""A scenario of so many nodes or links more."""


@dataclass(frozen=True, slots=True)
class _Option:
    """A scenario that is worth a simulation, and the same scenario with more or less of it.

    `n` is its size, and `failed` the largest size that is known not to be enough. The scenario
    of another size is `at` of it, if there are several sizes.
    """

    scenario: Scenario
    n_gpus: int
    at: Sized | None = None
    n: int = 1
    failed: int = 0
    n_left: int = 0  # times that more is tried
    split: Cuts | None = None  # that is simulated first

    @property
    def cost(self) -> Cost:
        """Key that sorts options: known prices before unknown ones, then fewer GPUs."""
        price = self.scenario.price_per_hour
        return (math.isnan(price), 0.0 if math.isnan(price) else price, self.n_gpus)


def cheapest_upgrade(
    query: PlanQuery,
    lighter: Mapping[str, Model] | None = None,
    *,
    split: Cuts | None = None,
    deadline: Deadline,
    progress: Progress | None = None,
) -> SufficientUpgrade | None:
    """Return the cheapest upgrade with which a load is served within its targets.

    The upgrades are other token budgets, which cost nothing and come first, see
    `hypsolve.planning.token_budgets`; then the scenarios of `hypsolve.planning.what_if`, up to
    32 more nodes of one kind in a tier (also where every tier may be empty), copies of the
    whole network, and faster links. Each is solved again in the fluid model, and those that
    carry the load there, or nearly, are simulated: the cheapest first. Upgrades of unknown
    price come after the others, those with the fewest GPUs first. Of the first one that is
    enough, smaller sizes are simulated, too. Upgrades of several kinds at once are not tried.

    Parameters
    ----------
    query : PlanQuery
        With targets.
    lighter : mapping, optional
        The model in formats that take fewer bytes, by name of the format.
    split : tuple of int, optional
        The split of the plan, which is also simulated with other token budgets.
    deadline : Deadline
        When it has passed, no further upgrade is tried, and TimeoutError is raised.
    progress : callable, optional
        Called with a line for each upgrade.

    Returns
    -------
    SufficientUpgrade or None
        None if no upgrade that was tried is enough.

    Raises
    ------
    TimeoutError
        If the deadline has passed before an upgrade was found.
    """
    progress = progress or (lambda line: None)
    order = itertools.count()
    queue: list[tuple[Cost, int, _Option]] = []
    for option in _options(query, lighter or {}, split, deadline):
        progress(f"modelled: {option.scenario.what}")
        heapq.heappush(queue, (option.cost, next(order), option))
    while queue:
        option = heapq.heappop(queue)[2]
        _in_time(deadline)
        progress(f"simulating: {option.scenario.what}")
        upgrade = _simulated(option, query)
        if upgrade is not None:
            return _fewest(option, upgrade, query, deadline, progress)
        if option.at is not None and option.n_left:
            larger = _resized(option, query, option.n + max(1, option.n // 4), option.n)
            heapq.heappush(queue, (larger.cost, next(order), larger))
    return None


def _fewest(
    option: _Option,
    upgrade: SufficientUpgrade,
    query: PlanQuery,
    deadline: Deadline,
    progress: Progress,
) -> SufficientUpgrade:
    """Return the smallest size of an option that is enough in simulation, by bisection.

    The fluid model, which has chosen the size, may ask for more than it takes. If the deadline
    passes, the smallest size so far is returned as an upper bound.
    """
    if option.at is None:
        return upgrade
    low, high = option.failed, option.n
    while high - low > 1:
        if deadline.has_passed():
            return replace(upgrade, is_upper_bound=True)
        middle = (low + high) // 2
        smaller = _resized(option, query, middle, low)
        progress(f"simulating: {smaller.scenario.what}")
        found = _simulated(smaller, query)
        if found is None:
            low = middle
        else:
            high, upgrade = middle, found
    return upgrade


def _in_time(deadline: Deadline) -> None:
    if deadline.has_passed():
        raise TimeoutError


def _simulated(option: _Option, query: PlanQuery) -> SufficientUpgrade | None:
    """Simulate the best splits of an option; return None if none is enough.

    The judge is the one of the query itself, see `hypsolve.planning.slo_answer.judged`: it asks
    for the targets, and for a rate that the split keeps up with.
    """
    scenario = option.scenario
    rules = scenario.query.rules()
    of_all = to_instance(scenario.query.deployment(), objective="path", **rules)
    splits = [] if option.split is None else [option.split]
    for cuts in dict.fromkeys((*splits, *_splits(scenario.query, of_all))):
        partition = Partition(cuts)
        deployment = scenario.query.with_limits_of(cuts).deployment()
        instance = to_instance(deployment, objective="path", **rules)
        if evaluation.check(instance, partition):
            continue  # with the limits on the nodes of this split
        verdict = judged(deployment, instance, partition, query.load)
        if not verdict.is_met:
            continue
        if sustains(deployment, instance, partition, query.load) is not False:
            return SufficientUpgrade(
                what=scenario.what,
                price_per_hour=scenario.price_per_hour,
                n_gpus=option.n_gpus,
                cuts=cuts,
                slo_attainment=verdict.slo_attainment,
                extrapolated=scenario.query.model.extrapolated,
            )
    return None


def _splits(query: PlanQuery, instance: Instance) -> list[Cuts]:
    """Return splits of a query to simulate: the best of the fluid model, and those of rules."""
    fluid = fluid_within_targets(query, N_SPLITS)
    if fluid is None or fluid.partition is None:
        return []
    found: list[Partition | None] = [fluid.partition]
    found += [other for other, _ in fluid.alternatives]
    if instance.n_tiers > 1:
        found += [solve(instance, rule).partition for rule in PROPORTIONAL]
    return list(dict.fromkeys(each.cuts for each in found if each is not None))


def _options(
    query: PlanQuery, lighter: Mapping[str, Model], split: Cuts | None, deadline: Deadline
) -> Iterator[_Option]:
    """Yield the upgrades that carry the load in the fluid model, or nearly."""
    for what, other in token_budgets(query):
        _in_time(deadline)
        if _carried(other) >= NEARLY:
            scenario = Scenario(what=what, query=other, price_per_hour=0.0)
            yield _Option(scenario, 0, split=split)
    fixed = list(scenarios(query, fits=True, lighter=lighter))
    if query.objective != "goodput":
        what = "another split of the same machines (--objective goodput)"
        fixed.insert(0, Scenario(what=what, query=query, price_per_hour=0.0))
    sized = [*_more_nodes(query), *_copies(query), *_faster_links(query)]
    if _may_be_freed(query):
        sized += _more_nodes(_freed(query), FREED)
    known = {at(1).what for at in sized}
    for scenario in fixed:
        _in_time(deadline)
        if scenario.what not in known and _carried(scenario.query) >= NEARLY:
            yield _Option(scenario, _gpus(scenario.query) - _gpus(query))
    for at in sized:
        option = _smallest(at, query, deadline)
        if option is not None:
            yield option


def _smallest(at: Sized, query: PlanQuery, deadline: Deadline) -> _Option | None:
    """Return the smallest scenario that nearly carries the load in the fluid model."""
    low, high = 0, MAX_MORE
    _in_time(deadline)
    if _carried(at(high).query) < NEARLY:
        return None
    while high - low > 1:
        _in_time(deadline)
        middle = (low + high) // 2
        low, high = (low, middle) if _carried(at(middle).query) >= NEARLY else (middle, high)
    scenario = at(high)
    n_gpus = _gpus(scenario.query) - _gpus(query)
    return _Option(scenario, n_gpus, at, high, n_left=MAX_LARGER)


def _resized(option: _Option, query: PlanQuery, n: int, failed: int) -> _Option:
    """Return an option of another size, of which a smaller size has failed."""
    assert option.at is not None
    scenario = option.at(n)
    n_gpus = _gpus(scenario.query) - _gpus(query)
    return _Option(scenario, n_gpus, option.at, n, failed, option.n_left - 1)


def _carried(query: PlanQuery) -> float:
    """Return the share of the load that the fluid model carries within the targets.

    Users are those of the rate, by Little's law.
    """
    result = fluid_within_targets(query)
    if result is None or result.served is None:
        return 0.0
    rate, latencies = result.fluid_requests_per_s, result.served.latencies
    if query.users is None:
        return rate / query.rate_per_s
    round_s = query.think_time_s + (latencies.latency_s if latencies else 0.0)
    return rate * round_s / query.users


def _may_be_freed(query: PlanQuery) -> bool:
    """Return whether some tier must hold a block."""
    n_tiers = len(query.network.network.tiers)
    limits = query.network.min_blocks or (None,) * n_tiers
    return n_tiers > 1 and query.objective != "p0" and any(limit != 0 for limit in limits)


def _freed(query: PlanQuery) -> PlanQuery:
    """Return a query in which every tier may be empty."""
    n_tiers = len(query.network.network.tiers)
    return replace(query, network=replace(query.network, min_blocks=(0,) * n_tiers))


def _more_nodes(query: PlanQuery, also: str = "") -> Iterator[Sized]:
    """Yield the scenarios of more nodes, for each kind of node in each tier."""
    for k, tier in enumerate(query.network.network.tiers):
        for what, node in kinds_of_nodes(tier).items():
            yield partial(_with_more, query, k, node, what, also)


def _with_more(query: PlanQuery, k: int, node: Node, what: str, also: str, n: int) -> Scenario:
    network = query.network
    tier = network.network.tiers[k]
    more = _copies_of((node,), n, query)
    return Scenario(
        what=f"{'one' if n == 1 else n} more {what} in {tier.name!r}{also}",
        price_per_hour=n * network.price_per_hour.get(node.name, math.nan),
        query=replace(query, network=with_tier(network, k, nodes=(*tier.nodes, *more))),
    )


def _copies(query: PlanQuery) -> Iterator[Sized]:
    """Yield the scenario of copies of every node, where there are several."""
    nodes = [node for tier in query.network.network.tiers for node in tier.nodes]
    if len(nodes) > 1:
        yield partial(_with_copies, query)


def _with_copies(query: PlanQuery, n: int) -> Scenario:
    network, tiers = query.network, query.network.network.tiers
    grown = tuple(
        replace(tier, nodes=(*tier.nodes, *_copies_of(tier.nodes, n, query))) for tier in tiers
    )
    prices = (
        network.price_per_hour.get(node.name, math.nan) for tier in tiers for node in tier.nodes
    )
    return Scenario(
        what=f"{n + 1} times as many nodes of each kind in every tier",
        price_per_hour=n * math.fsum(prices),
        query=replace(
            query, network=replace(network, network=replace(network.network, tiers=grown))
        ),
    )


def _copies_of(nodes: Sequence[Node], n: int, query: PlanQuery) -> tuple[Node, ...]:
    """Return `n` copies of each node, with names of their own, on machines of their own."""
    taken = {node.name for tier in query.network.network.tiers for node in tier.nodes}
    return tuple(
        replace(node, name=name, card=None)
        for node in nodes
        for name in itertools.islice(_names(node.name, taken), n)
    )


def _names(like: str, taken: Collection[str]) -> Iterator[str]:
    """Yield names that no node has."""
    names = (f"{like}-more-{i}" for i in itertools.count(1))
    return (name for name in names if name not in taken)


def _faster_links(query: PlanQuery) -> Iterator[Sized]:
    """Yield the scenarios of a faster link, for each link."""
    for k, tier in enumerate(query.network.network.tiers):
        if tier.link is not None:
            yield partial(_with_faster_link, query, k)


def _with_faster_link(query: PlanQuery, k: int, n: int) -> Scenario:
    tier = query.network.network.tiers[k]
    assert tier.link is not None
    link = replace(tier.link, bytes_per_s=(n + 1) * tier.link.bytes_per_s)
    times = "twice" if n == 1 else f"{n + 1} times"
    return Scenario(
        what=f"{times} the rate of the link from {tier.name!r}",
        query=replace(query, network=with_tier(query.network, k, link=link)),
    )


def _gpus(query: PlanQuery) -> int:
    """Return the number of GPUs of a network."""
    return sum(node.gpus for tier in query.network.network.tiers for node in tier.nodes)
