"""What-if scenarios: other networks, weights and requests, each solved to find upgrades."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hypsolve import catalog
from hypsolve.formats.gguf_header import is_gguf
from hypsolve.planning.forecast import predict
from hypsolve.planning.goal import LATENCY, RATE, Goal
from hypsolve.planning.query import (
    ModelSource,
    PlanQuery,
    Solution,
    rank_fluid,
    saturated,
    solve_query,
    to_model,
    with_tier,
)
from hypsolve.planning.saturation import SimulatedRate
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.throughput import FIRST_SHARE
from hypsolve.problem import evaluation
from hypsolve.problem.deployment import Model, Node, Tier
from hypsolve.problem.instance import Objective
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import GIB, count
from hypsolve.solvers.clock import NEVER, Deadline

MIN_GAIN = 1e-3  # in the model, of a scenario that is simulated
MIN_SIMULATED_GAIN = 0.04  # of an upgrade that is listed: the rate is found to 1/32 of a bound
MAX_SIMULATED = 8  # scenarios
N_SPLITS = 2  # of the fluid model, simulated in each
LIGHTER = {
    "fp16": ("int8", "gptq-int4"), "bf16": ("int8", "gptq-int4"), "fp8": ("gptq-int4",),
    "int8": ("gptq-int4",), "q8_0": ("q5_k_m", "q4_k_m"), "q5_k_m": ("q4_k_m",),
}  # fmt: skip
LIGHTER_GGUF = ("q8_0", "q5_k_m", "q4_k_m")  # than the types that a GGUF file stores
LIGHTER_TENSORS = ("int8", "gptq-int4")  # than what safetensors store
READS_GGUF = "llama.cpp"  # the one server that does; it reads nothing else
Kind = TypeVar("Kind")
MORE_GIB = (1, 4, 16)
MAX_GIB = 1024  # added to a node so that a model fits
SEARCH_S = 1.0  # for one scenario, where splits are searched by simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A what-if scenario that improves the plan in simulation, or makes the model fit.

    Attributes
    ----------
    what : str
        The scenario in words.
    quantity : str
        What the user asked for: ``requests/s`` that it keeps up with (with users: that they
        get), ``goodput``, which is requests/s within the targets at the load, or ``mean
        latency``.
    before, after : float
        The quantity of the plan and with the upgrade, simulated; before is nan if nothing fits.
    gain : float
        Share by which the quantity improves; nan if nothing fits without it, if `before` is
        only a lower bound, or if `before` or `after` is not settled; inf if nothing was within
        the targets.
    price_per_hour : float
        Price of the change; 0 if it needs no hardware, nan if unknown.
    cuts : tuple of int
        The simulated split.
    slo_attainment : float
        Share of the requests within the targets, with the upgrade; nan without targets.
    before_is_lower_bound, is_lower_bound : bool
        Whether `before`, or `after`, is only a lower bound, because the search for the largest
        rate was cut short or fewer requests were simulated than for a printed rate. The gain is
        then unknown, or a lower bound, too.
    before_is_settled, is_settled : bool
        False: the queue may still have grown at the end of the simulation of `before`, or of
        `after`, so that goodput or latency depends on how long was simulated.
    extrapolated : bool
        Whether no block times were measured with its weights.
    """

    what: str
    quantity: str
    before: float
    after: float
    gain: float
    price_per_hour: float
    cuts: tuple[int, ...]
    slo_attainment: float = math.nan
    before_is_lower_bound: bool = False
    is_lower_bound: bool = False
    before_is_settled: bool = True
    is_settled: bool = True
    extrapolated: bool

    @property
    def is_rate(self) -> bool:
        """Whether the quantity is in requests/s, and more is better."""
        return self.quantity != LATENCY

    @property
    def gain_per_price(self) -> float:
        """Gain per unit of price and hour; nan without a price, inf if it costs nothing."""
        if math.isnan(self.price_per_hour) or math.isnan(self.gain):
            return math.nan
        return self.gain / self.price_per_hour if self.price_per_hour else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A query other than the one that was asked.

    Attributes
    ----------
    what : str
        The difference in words.
    query : PlanQuery
    group : str
        Scenarios of one group are ordered from the smallest to the largest. A larger one is
        reported only if it is better than all smaller ones. Empty: no group.
    price_per_hour : float
        See `Upgrade`.
    """

    what: str
    query: PlanQuery
    group: str = ""
    price_per_hour: float = math.nan


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A scenario with the splits that are simulated, the best by the model first."""

    scenario: Scenario
    solution: Solution
    splits: list[tuple[int, ...]]
    modelled: float


class Simulated(NamedTuple):
    """The best simulated split of a candidate: the quantity of the goal, cuts, attainment."""

    value: float
    cuts: tuple[int, ...]
    slo_attainment: float = math.nan
    is_lower_bound: bool = False
    is_settled: bool = True


def find_upgrades(
    query: PlanQuery,
    solution: Solution,
    lighter: Mapping[str, Model] | None = None,
    *,
    before: float = math.nan,
    best_known: float = math.nan,
    before_is_lower_bound: bool = False,
    before_is_settled: bool = True,
    splits: Iterable[tuple[int, ...]] = (),
    deadline: Deadline = NEVER,
    progress: Progress | None = None,
) -> Iterator[Upgrade]:
    """Solve what-if scenarios, rank them by a model, and simulate the best.

    Those that change nothing but where blocks may be come first, for they cost nothing. A
    scenario that helps only the model is not an upgrade.

    Parameters
    ----------
    query : PlanQuery
    solution : Solution
        Its solution.
    lighter : mapping, optional
        The model in formats that take fewer bytes, by name of the format.
    before : float
        The quantity that the user asked for (`Goal`) without any change, simulated, of
        `solution`. Gains are counted from here.
    best_known : float
        The best such quantity of all splits that are known. An upgrade must be better than
        this: a gain that another split brings needs no upgrade. Default: `before`.
    before_is_lower_bound : bool
        Whether `before` is only a lower bound; gains are then not known.
    before_is_settled : bool
        Whether the simulation of the load is settled, see `Forecast`. If not, gains in goodput
        or latency are not known.
    splits : iterable of tuple of int
        Cuts of splits that are known; they are tried in each scenario with as many tiers.
    deadline : Deadline, optional
        When it has passed, no further scenario is tried, and TimeoutError is raised.
    progress : callable, optional
        Called with a line for each scenario.

    Yields
    ------
    Upgrade

    Raises
    ------
    TimeoutError
        If the deadline has passed before all were tried.
    KeyboardInterrupt
        At Ctrl-C.
    """
    goal = Goal(query)
    is_vague = before_is_lower_bound and goal.quantity == RATE and query.users is None
    before_is_settled = before_is_settled or goal.quantity == RATE
    progress = progress or (lambda line: None)
    known = [tuple(cuts) for cuts in splits]
    partition = solution.result.partition
    modelled = math.nan
    if partition is not None:
        known = [partition.cuts, *known]
        modelled = goal.best([goal.model(solution, cuts, query) for cuts in known])
    is_fluid = query.is_rate
    if partition is not None and is_fluid:  # by the model that ranks its scenarios
        fluid, _, rate = rank_fluid(query)
        is_fluid = not fluid.misses_targets
        modelled = rate if is_fluid else modelled

    def simulated(candidate: _Candidate) -> Upgrade | None:
        _in_time(deadline)
        scenario = candidate.scenario
        progress(f"simulating: {scenario.what}")
        best = _simulated(candidate, goal, deadline)
        gain = goal.gain(before, best.value)
        above_known = goal.gain(goal.best([before, best_known]), best.value)
        is_known = before_is_settled and not is_vague
        if above_known < MIN_SIMULATED_GAIN or (partition is not None and math.isnan(gain)):
            return None
        return Upgrade(
            what=scenario.what,
            quantity=goal.quantity,
            before=before,
            after=best.value,
            gain=gain if is_known and best.is_settled else math.nan,
            price_per_hour=scenario.price_per_hour,
            cuts=best.cuts,
            slo_attainment=best.slo_attainment,
            before_is_lower_bound=is_vague,
            is_lower_bound=best.is_lower_bound,
            before_is_settled=before_is_settled,
            is_settled=best.is_settled,
            extrapolated=scenario.query.model.extrapolated,
        )

    candidates: list[_Candidate] = []
    best_of: dict[str, float] = {}
    for scenario in scenarios(query, fits=partition is not None, lighter=lighter or {}):
        _in_time(deadline)
        progress(f"tried: {scenario.what}")
        candidate = _modelled(scenario, goal, known, is_fluid=is_fluid)
        if candidate is None:
            continue
        gain = goal.gain(modelled, candidate.modelled)
        beaten = best_of.get(scenario.group, math.nan)
        if gain < MIN_GAIN or goal.gain(beaten, candidate.modelled) < MIN_GAIN:
            continue
        if scenario.group:
            best_of[scenario.group] = candidate.modelled
        if partition is not None and _changes_rules_alone(query, scenario.query):
            if (upgrade := simulated(candidate)) is not None:
                yield upgrade
        else:
            candidates.append(candidate)
    candidates.sort(key=lambda each: goal.rank(each.modelled))
    for candidate in candidates[:MAX_SIMULATED]:
        if (upgrade := simulated(candidate)) is not None:
            yield upgrade


def _changes_rules_alone(query: PlanQuery, other: PlanQuery) -> bool:
    """Return whether a query has the same machines and the same model as another."""
    return other.network.network == query.network.network and other.model == query.model


def _in_time(deadline: Deadline) -> None:
    if deadline.has_passed():
        raise TimeoutError


def _modelled(
    scenario: Scenario, goal: Goal, known: Sequence[tuple[int, ...]], *, is_fluid: bool
) -> _Candidate | None:
    """Solve a scenario for several objectives, and rank the splits by the model.

    `is_fluid` says whether that is the fluid model, where a rate is maximised.
    """
    query = replace(scenario.query, method=None, options={})
    if query.is_rate:
        fluid, splits, rate = rank_fluid(query)
        if not splits:
            return None
        value = 0.0 if fluid.misses_targets else rate
        if not is_fluid:
            value = goal.best([goal.model(fluid, cuts, query) for cuts in splits])
        return _Candidate(scenario, fluid, splits, value)
    is_serial = query.runtime.batching is Batching.SERIAL
    objectives = [Objective.PATH]
    if goal.is_rate and not is_serial:
        objectives = [Objective.BOTTLENECK, Objective.PATH]
    solution, splits = None, []
    for objective in objectives:
        found = solve_query(replace(query, objective=str(objective)))
        if found.result.partition is None:
            return None
        solution = solution or found
        splits.append(found.result.partition.cuts)
    assert solution is not None
    n_tiers = solution.instance.n_tiers
    splits += [
        cuts
        for cuts in known
        if len(cuts) == n_tiers + 1 and not evaluation.check(solution.instance, Partition(cuts))
    ]
    splits = list(dict.fromkeys(splits))
    values = {cuts: goal.model(solution, cuts, query) for cuts in splits}
    splits.sort(key=lambda cuts: goal.rank(values[cuts]))
    return _Candidate(scenario, solution, splits[:2], values[splits[0]])


def _simulated(candidate: _Candidate, goal: Goal, deadline: Deadline) -> Simulated:
    """Simulate the splits of a candidate, and return the best."""
    query, solution = candidate.scenario.query, candidate.solution
    splits = candidate.splits
    if query.is_rate:
        splits = rank_fluid(query, N_SPLITS)[1]
    if query.is_rate and goal.quantity == RATE and query.users is None:
        return _saturated(query, splits, deadline)
    if query.is_simulated:
        limited = replace(query, time_limit_s=min(SEARCH_S, max(deadline.left_s(), 1e-3)))
        searched = solve_query(limited)
        if searched.interrupted:
            raise KeyboardInterrupt
        assert searched.result.partition is not None
        cuts = searched.result.partition.cuts
        if goal.quantity == LATENCY:
            return Simulated(searched.result.objective_s, cuts)
        splits = list(dict.fromkeys([cuts, *splits]))
    found = {}
    for cuts in splits:
        is_own = query.has_limits_of(cuts)
        found[cuts] = predict(
            solution.deployment if is_own else query.with_limits_of(cuts).deployment(),
            Partition(cuts),
            query.load,
            instance=solution.instance if is_own else None,
            deadline=deadline,
            only=goal.quantity,
        )
    best = min(found, key=lambda cuts: goal.rank(goal.of(found[cuts])))
    forecast = found[best]
    return Simulated(
        goal.of(forecast),
        best,
        forecast.slo_attainment,
        goal.is_lower_bound(forecast),
        goal.is_settled(forecast),
    )


def _saturated(
    query: PlanQuery, splits: Sequence[tuple[int, ...]], deadline: Deadline
) -> Simulated:
    """Simulate splits in short with full queues, and the best of them at length.

    Fewer requests are simulated than for the printed rate of a plan. The rate is then a lower
    bound, as `SimulatedRate` says, since the seconds to fill and to drain count for more.
    """
    rates: dict[tuple[int, ...], SimulatedRate] = {}
    for cuts in splits:
        if not rates or not deadline.has_passed():
            rates[cuts] = saturated(query.with_limits_of(cuts), cuts, FIRST_SHARE)
    best = max(rates, key=lambda cuts: rates[cuts].requests_per_s)
    if not deadline.has_passed():
        rates[best] = saturated(query.with_limits_of(best), best)
    rate = rates[best]
    return Simulated(rate.requests_per_s, best, is_lower_bound=rate.is_lower_bound)


def lighter_models(
    source: ModelSource, weights: str | None, server: str = ""
) -> dict[str, Model]:
    """Return a model, given by name or path, in formats lighter than `weights`.

    Only formats that `server` loads are returned (`Runtime.server`); empty: those of the same
    kind of file.
    """
    if isinstance(source, Model):
        return {}
    n_bytes = to_model(source, weights).weight_bytes
    names = LIGHTER.get(catalog.weight_format(weights or "fp16").name, ())
    if weights is None and Path(source).is_file() and is_gguf(Path(source)):
        names = LIGHTER_GGUF
    if server:
        of_server = LIGHTER_GGUF if server == READS_GGUF else LIGHTER_TENSORS
        kind = catalog.weight_format(of_server[0]).file
        if any(catalog.weight_format(name).file != kind for name in names):
            names = of_server
    models = {name: to_model(source, name) for name in names}
    # a file may already store its weights in such a format
    return {name: each for name, each in models.items() if each.weight_bytes < 0.99 * n_bytes}


def scenarios(
    query: PlanQuery, *, fits: bool, lighter: Mapping[str, Model]
) -> Iterator[Scenario]:
    """Yield the scenarios that may improve a query, or make it fit."""
    n_tiers = len(query.network.network.tiers)
    limits = query.network.min_blocks or (None,) * n_tiers
    # with two tiers, it is one of the scenarios of a tier
    if n_tiers > 2 and query.objective != Objective.P0 and any(each != 0 for each in limits):
        yield _on_network(
            query,
            "blocks only where they serve best (min_blocks = 0 everywhere)",
            min_blocks=(0,) * n_tiers,
        )
    for name, model in lighter.items():
        yield Scenario(
            what=f"weights in {name}", query=replace(query, model=model), price_per_hour=0.0
        )
    if not fits:
        yield from _smaller_requests(query)
    for k in range(n_tiers):
        yield from _of_tier(query, k, fits=fits)


def _of_tier(query: PlanQuery, k: int, *, fits: bool) -> Iterator[Scenario]:
    network, tiers = query.network, query.network.network.tiers
    tier = tiers[k]
    limits = network.min_blocks or (None,) * len(tiers)
    may_be_empty = len(tiers) > 1 and query.objective != "p0"  # which has no empty stages
    if may_be_empty and limits[k] != 0:
        yield _on_network(
            query,
            f"no block on {tier.name!r} (min_blocks = 0), if that is better",
            min_blocks=(*limits[:k], 0, *limits[k + 1 :]),
        )
    if fits:
        for gib in MORE_GIB:
            yield _with_memory(query, k, gib)
    else:
        yield from _min_memory(query, k)
    if len(tier.nodes) > 1 and network.may_be_stages(k):
        yield Scenario(
            what=f"nodes of {tier.name!r} as stages in a row",
            price_per_hour=0.0,
            query=replace(query, network=network.in_a_row(k, tier.nodes)),
        )
    if network.max_blocks and network.max_blocks[k] is not None:
        yield _on_network(
            query,
            f"no max_blocks on {tier.name!r}",
            max_blocks=(*network.max_blocks[:k], None, *network.max_blocks[k + 1 :]),
        )
    taken = sum(1 if limit is None else limit for limit in limits)
    has_room = taken < query.model.n_blocks  # a new tier hosts at least one block
    for what, node in kinds_of_nodes(tier).items():
        more = replace(node, name=_new_name(query, "more"), card=None)  # not the same card
        price = network.price_per_hour.get(node.name, math.nan)
        yield Scenario(
            what=f"one more {what} in {tier.name!r}",
            group=f"{what} {k}",
            price_per_hour=price,
            query=replace(query, network=with_tier(network, k, nodes=(*tier.nodes, more))),
        )
        if has_room and (len(tiers) > 1 or network.inner_link(k) is not None):
            yield replace(_with_stage(query, k, more, what), price_per_hour=price)
    if tier.link is not None:
        link = replace(tier.link, bytes_per_s=2 * tier.link.bytes_per_s)
        yield Scenario(
            what=f"twice the rate of the link from {tier.name!r}",
            query=replace(query, network=with_tier(network, k, link=link)),
        )


def kinds_of_nodes(tier: Tier) -> dict[str, Node]:
    """Return one node of each kind in a tier, by a name for the kind."""
    kinds = {(node.class_name, node.usable_bytes): node for node in tier.nodes}
    names = [name for name, _ in kinds]
    return {
        name if names.count(name) == 1 else f"{name} with {n_bytes / GIB:.3g} GiB free": node
        for (name, n_bytes), node in kinds.items()
    }


def _smaller_requests(query: PlanQuery) -> Iterator[Scenario]:
    """Yield the largest number of sequences that fits, and the longest sequences that fit."""

    def fewer(n: int) -> Scenario:
        what = f"room for {count(n, 'sequence')} at once, not {query.n_reserved}"
        return Scenario(what=what, query=replace(query, concurrency=n))

    def shorter(tokens: int) -> Scenario:
        if query.requests is not None:
            cut = replace(query, requests=query.requests.clipped(tokens))
            return Scenario(
                what=f"requests cut to {tokens} tokens, not {query.tokens}", query=cut
            )
        output = min(query.output_tokens, tokens - 1)
        return Scenario(
            what=f"sequences of {tokens} tokens, not {query.tokens}",
            query=replace(query, prompt_tokens=tokens - output, output_tokens=output),
        )

    yield from _largest(fewer, 1, query.n_reserved)
    yield from _largest(shorter, 2, query.tokens)


def _min_memory(query: PlanQuery, k: int) -> Iterator[Scenario]:
    """Yield the fewest GiB to add to each node of a tier so that the model fits."""
    return _largest(lambda spared: _with_memory(query, k, MAX_GIB - spared), 0, MAX_GIB)


def _largest(at: Callable[[int], Scenario], low: int, end: int) -> Iterator[Scenario]:
    """Yield the scenario of the largest number in ``low..end - 1`` that fits, if any does."""
    if end <= low or not _fits(at(low)):
        return
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (middle, end) if _fits(at(middle)) else (low, middle)
    yield at(low)


def _fits(scenario: Scenario) -> bool:
    quick = replace(scenario.query, objective="path", method="hypsplit_dp", options={})
    return solve_query(quick).result.partition is not None


def _on_network(query: PlanQuery, what: str, **changes: Any) -> Scenario:
    changed = replace(query, network=replace(query.network, **changes))
    return Scenario(what=what, query=changed, price_per_hour=0.0)


def _with_memory(query: PlanQuery, k: int, gib: int) -> Scenario:
    tier = query.network.network.tiers[k]
    nodes = tuple(_grown(node, gib * GIB) for node in tier.nodes)
    each = "GPU" if any(node.gpus > 1 for node in nodes) else "node"
    return Scenario(
        what=f"{gib} GiB more on each {each} of {tier.name!r}",
        group=f"memory {k}",
        query=replace(query, network=with_tier(query.network, k, nodes=nodes)),
    )


def _grown(node: Node, more_bytes: float) -> Node:
    has = node.gpu.memory_bytes if node.memory_bytes is None else node.memory_bytes
    return replace(node, memory_bytes=has + more_bytes)


def _with_stage(query: PlanQuery, k: int, node: Node, what: str) -> Scenario:
    """Add a node as a tier of its own behind tier `k`, linked as nodes of that tier are."""
    network, tiers = query.network, list(query.network.network.tiers)
    link = network.inner_link(k) or tiers[k].link or tiers[k - 1].link
    behind = Tier(name=_new_name(query, "tier"), nodes=(node,), link=tiers[k].link)
    tiers[k : k + 1] = [replace(tiers[k], link=link), behind]
    scenario = _on_network(
        query,
        f"one more {what} as a tier of its own behind {tiers[k].name!r}",
        network=replace(network.network, tiers=tuple(tiers)),
        min_blocks=_with_gap(network.min_blocks, k + 1),
        max_blocks=_with_gap(network.max_blocks, k + 1),
        inner_links=_with_gap(network.inner_links, k + 1),
    )
    return replace(scenario, group=f"{what} {k}", price_per_hour=math.nan)


def _with_gap(of_tiers: tuple[Kind | None, ...], at: int) -> tuple[Kind | None, ...]:
    return (*of_tiers[:at], None, *of_tiers[at:]) if of_tiers else ()


def _new_name(query: PlanQuery, word: str) -> str:
    tiers = query.network.network.tiers
    names = {name for tier in tiers for name in (tier.name, *(n.name for n in tier.nodes))}
    return next(name for i in range(len(names) + 1) if (name := f"{word}-{i}") not in names)
