"""`choose_degrees`: how many GPUs of a machine compute as one, chosen among all degrees.

*Rule.* vLLM, SGLang and TensorRT-LLM take one degree of tensor parallelism for all stages of a
pipeline; llama.cpp over RPC computes no layer on several GPUs; ``ideal`` lets every tier have a
degree of its own. Under one degree, a machine with fewer GPUs is left out, and a machine with
more is several nodes of its tier. A tier without a machine for some degree may be empty under
all of them (`hypsolve.planning.gpu_groups.with_optional`).

*Choice.* The model is split for every degree that is known for the interconnects and divides
the heads, on the nodes that the server of the runtime can use, and each split is simulated.

- Under an objective in requests/s, degrees are compared as splits are: by the rate that the
  best split of the fluid model serves. Short simulations rank the degrees: all in time, and
  those within `CLOSE` of the best in the fluid model in any case. If another degree is the best
  in the fluid model, and not behind by `CLEARLY`, both are simulated as long as a plan is, if
  the time allows.
- Under an objective in seconds, which is about requests one at a time, they are compared by the
  `Goal` of the query.

Where tiers may differ, the `MAX_SIMULATED` degrees that a model ranks first are simulated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.formats.network_file import NetworkFile
from hypsolve.planning.degree_choice import DegreeChoice
from hypsolve.planning.forecast import predict
from hypsolve.planning.goal import Goal
from hypsolve.planning.gpu_groups import NO_DEGREE, ONE_DEGREE, degrees_of, dividing, idle_gpus
from hypsolve.planning.query import (
    DEFAULT_METHOD,
    PlanQuery,
    Solution,
    bound_of,
    rank_fluid,
    served_by,
    solve_query,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.throughput import FIRST_SHARE, Cuts
from hypsolve.problem.gpu_group import check_degree
from hypsolve.problem.network import Node, Tier
from hypsolve.solve import warm_methods
from hypsolve.solvers import clock
from hypsolve.solvers.clock import Deadline

MAX_SIMULATED = 6  # choices of degrees that differ over the tiers
SHARE = 0.4  # of the time that is left, for all simulations
MAX_CHOICES = 4096  # of them that are split
BOUND_SHARE = 0.2  # of the time that is left then, for bounds of degrees that differ over tiers
CLOSE = 0.8  # of the best rate by the model, from which a degree is simulated in any case
CLEARLY = 1.25  # times the rate of another degree: short simulations tell them apart
Restrict = Callable[..., Any]
"""`hypsolve.planning.runtime_restrictions.network_for_server`, which imports plans."""


@dataclass(slots=True, eq=False)
class _Candidate:
    """A query with its degrees, and its split if the model fits."""

    query: PlanQuery
    choice: DegreeChoice
    solution: Solution | None = None
    modelled: tuple[float, ...] = (math.inf,)  # rank by a model; the smallest is the best
    short: tuple[float, ...] = (math.inf,)  # rank by short simulations
    full: tuple[float, ...] = (math.inf,)  # rank by simulations as long as a plan's
    took_s: float = 0.0  # by the short simulations

    @property
    def is_common(self) -> bool:
        """Whether all tiers have one degree."""
        return self.query.tensor_parallel is not None

    @property
    def value(self) -> float:
        """The simulated value of the goal; nan if it was not simulated."""
        return self.choice.value


def choose_degrees(
    query: PlanQuery,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
    *,
    restrict: Restrict | None = None,
) -> tuple[PlanQuery, tuple[DegreeChoice, ...]]:
    """Choose the degrees of tensor parallelism of a query's machines.

    Parameters
    ----------
    query : PlanQuery
    progress : callable, optional
        Called with a line of text about the work in progress.
    deadline : Deadline, optional
        When the caller's work must have ended: the choice takes `SHARE` of what is left.
        Default: the time limit of the query from now on. What is not simulated by then is
        compared by a model alone.
    restrict : callable, optional
        `hypsolve.planning.runtime_restrictions.network_for_server`: every degree is compared on
        the nodes that the server of the runtime can use. Default: on all nodes.

    Returns
    -------
    query : PlanQuery
        Its network has a node for every group of GPUs. The query itself, if no machine has
        several GPUs or the degree is given.
    choices : tuple of DegreeChoice
        The chosen degrees first, then all other common degrees, and those that differ over the
        tiers as far as they were simulated.

    Raises
    ------
    ValueError
        If no degree can be run; the message says why.
    """
    machines = [node for tier in query.network.network.tiers for node in tier.nodes]
    if query.runtime.name in NO_DEGREE and query.tensor_parallel not in (None, 1):
        raise ValueError(
            f"plan: tensor_parallel must be 1 under runtime {query.runtime.name!r}, which"
            f" computes no layer on several GPUs, got {query.tensor_parallel}"
        )
    if query.tensor_parallel is not None or all(node.gpus == 1 for node in machines):
        return query, ()
    progress = progress or (lambda line: None)
    warm_methods(
        DEFAULT_METHOD,
        simulates=True,
        pipelines=query.has_pipelines,
        families=query.families,
    )
    deadline = (deadline or Deadline(query.time_limit_s)).part(SHARE)
    candidates, refused = _candidates(query)
    if not any(each.choice.is_allowed for each in candidates):
        why = "; ".join(choice.reason for choice in refused)
        if query.runtime.name in ONE_DEGREE:
            why = f"runtime {query.runtime.name!r} takes one for all stages; {why}"
        raise ValueError(f"plan: no degree of tensor parallelism can be run: {why}")
    if query.runtime.name in NO_DEGREE:  # there is one choice, so none is split
        return next(each.query for each in candidates if each.choice.is_allowed), ()
    goal, to_split = Goal(query), deadline.part(0.5)  # the other half is for simulations
    for at, each in enumerate(candidates):
        if each.is_common or not to_split.has_passed():
            mine = to_split.part(1 / (len(candidates) - at))
            _split(each, goal, restrict if each.choice.is_allowed else None, mine)
    largest = _bound(candidates, deadline.part(BOUND_SHARE)) if query.is_rate else None
    fitting = [each for each in candidates if each.solution is not None]
    _simulate_all(fitting, goal, progress, deadline)
    order = sorted(candidates, key=_order)
    chosen = order[0]
    tried = [
        each.choice
        for each in order
        if each in (chosen, largest) or each.is_common or not math.isnan(each.value)
    ]
    return chosen.query, (*tried, *refused)


def _bound(candidates: Sequence[_Candidate], deadline: Deadline) -> _Candidate:
    """Bound the rate of all degrees that can be run, and return the one with the largest.

    Common degrees are bounded in any case. The bound of a degree covers all splits over the
    tiers of its whole network, and of the network of its split.
    """
    allowed = [each for each in candidates if each.choice.is_allowed]
    for at, each in enumerate(allowed):
        is_complete = at < MAX_CHOICES - 1  # more choices were perhaps not even split
        if (each.is_common or not deadline.has_passed()) and is_complete:
            networks = [each.query]
            if each.solution is not None and each.solution.query is not each.query:
                networks.append(each.solution.query)
            has_users = not each.query.has_targets  # see `Throughput.bound_requests_per_s`
            bound = max(bound_of(of, has_users=has_users) for of in networks)
            each.choice = replace(each.choice, bound_requests_per_s=bound)

    def largest(each: _Candidate) -> float:
        bound = each.choice.bound_requests_per_s
        return math.inf if math.isnan(bound) else bound

    return max(allowed, key=largest)


def _simulate_all(
    fitting: list[_Candidate], goal: Goal, progress: Progress, deadline: Deadline
) -> None:
    """Simulate the candidates, the best by the model first, as far as the time allows."""
    best = _best_modelled(fitting)
    for at, each in enumerate(best):
        if deadline.has_passed() and not _is_close(each, best[0]):
            continue
        progress(f"tensor parallelism {each.choice.describe_degrees()}: simulating requests")
        _simulate(each, goal, deadline.part(1 / (len(best) - at)))
    if not best or not best[0].query.is_rate:
        return
    allowed = [each for each in best if each.choice.is_allowed and not math.isnan(each.value)]
    if not allowed:
        return
    first, modelled = (min(allowed, key=key) for key in (_short, _modelled))
    close = [first, modelled]
    if first is modelled or modelled.value * CLEARLY < first.value:
        return
    if (first.took_s + modelled.took_s) / FIRST_SHARE > deadline.left_s():
        return
    for at, each in enumerate(close):
        progress(f"tensor parallelism {each.choice.describe_degrees()}: simulating at length")
        mine = deadline.part(1 / (len(close) - at))
        if not _simulate_in_full(each, mine):
            for other in close:  # one of them alone tells nothing
                other.full = (math.inf,)
                other.choice = replace(other.choice, full_value=math.nan)
            return


def _is_close(each: _Candidate, best: _Candidate) -> bool:
    """Return whether a common degree is simulated in any case: the model may err by so much."""
    if not (each.query.is_rate and each.is_common and each.choice.is_allowed):
        return False
    return (
        each.modelled[0] == best.modelled[0] and each.modelled[-1] <= CLOSE * best.modelled[-1]
    )


def _short(each: _Candidate) -> tuple[Any, ...]:
    return each.short, each.modelled


def _modelled(each: _Candidate) -> tuple[float, ...]:
    return each.modelled


def _best_modelled(fitting: list[_Candidate]) -> list[_Candidate]:
    """Return the candidates to simulate, the best by the model first.

    All common degrees come first, then the `MAX_SIMULATED` best of the others.
    """
    ranked = sorted(fitting, key=lambda each: (not each.is_common, each.modelled))
    mixed = [each for each in ranked if not each.is_common]
    out = {id(each) for each in mixed[MAX_SIMULATED:]}
    return [each for each in ranked if id(each) not in out]


def _order(each: _Candidate) -> tuple[Any, ...]:
    """Return the key that sorts candidates: runnable, fitting, simulated, modelled, smaller.

    If nothing fits, the largest degree says how much is missing.
    """
    degrees = each.choice.degrees
    return (
        not each.choice.is_allowed,
        each.solution is None,
        each.full,
        each.short,
        each.modelled,
        degrees if each.solution is not None else tuple(-degree for degree in degrees),
    )


def _candidates(query: PlanQuery) -> tuple[list[_Candidate], list[DegreeChoice]]:
    """Return the queries of all degrees, and the degrees that are refused with the reason."""
    tiers, name = query.network.network.tiers, query.runtime.name
    common, refused = [], []
    for degree in _known(tiers):
        degrees = (degree,) * len(tiers)
        try:
            check_degree(query.model, degree)
            if name in NO_DEGREE and degree > 1:
                raise ValueError(f"runtime {name!r} computes no layer on several GPUs")
            of_degree = replace(query, tensor_parallel=degree)
        except ValueError as error:
            refused.append(DegreeChoice(degrees=degrees, is_allowed=False, reason=str(error)))
            continue
        if of_degree.too_small and name not in (*ONE_DEGREE, *NO_DEGREE):
            continue  # such a runtime need not leave machines out
        n_idle = sum(of_degree.idle_gpus.values())
        choice = DegreeChoice(degrees=degrees, is_allowed=True, n_idle_gpus=n_idle)
        common.append(_Candidate(of_degree, choice))
    return common + list(_mixed(query)), refused


def _mixed(query: PlanQuery) -> Iterator[_Candidate]:
    """Yield queries whose tiers differ in degree; a machine with fewer GPUs takes what it has.

    Those with few different degrees come first. Nothing is yielded for runtimes that compute no
    layer on several GPUs.
    """
    tiers, name = query.network.network.tiers, query.runtime.name
    if name in NO_DEGREE:
        return
    degrees = [dividing(query.model, _degrees_of(tier)) for tier in tiers]
    seen: set[tuple[int, ...]] = set()
    choices = itertools.islice(itertools.product(*degrees), MAX_CHOICES)
    for chosen in sorted(choices, key=lambda each: len(set(each))):
        of_nodes = {
            node.name: node.tensor_parallel or _at_most(node, degree)
            for tier, degree in zip(tiers, chosen, strict=True)
            for node in tier.nodes
        }
        of_all = tuple(of_nodes.values())
        if len(set(of_all)) == 1 or of_all in seen:
            continue  # it is a common degree, or known
        seen.add(of_all)
        network = query.network.in_groups(of_nodes)
        idle = idle_gpus(query.network, of_nodes)
        choice = DegreeChoice(
            degrees=_largest(network),
            is_allowed=name not in ONE_DEGREE,
            n_idle_gpus=sum(idle.values()),
        )
        of_tiers = replace(query, network=network, tensor_parallel=None, idle_gpus=idle)
        yield _Candidate(of_tiers, choice)


def _known(tiers: tuple[Tier, ...]) -> list[int]:
    """Return the degrees that some machine of the network can have."""
    return sorted({degree for tier in tiers for degree in _degrees_of(tier)})


def _degrees_of(tier: Tier) -> list[int]:
    """Return the degrees that some machine of a tier can have."""
    return sorted({degree for node in tier.nodes for degree in degrees_of(node)})


def _at_most(node: Node, degree: int) -> int:
    return max(each for each in degrees_of(node) if each <= degree)


def _largest(network: NetworkFile) -> tuple[int, ...]:
    return tuple(max(node.gpus for node in tier.nodes) for tier in network.network.tiers)


def _split(each: _Candidate, goal: Goal, restrict: Restrict | None, deadline: Deadline) -> None:
    """Split the model, on the nodes that a server can use."""
    query = each.query
    if restrict is not None:
        try:
            query = restrict(
                query, split=_quick_split, fluid=_fluid_split, deadline=deadline
            ).query
        except ValueError as error:  # it can express no plan
            each.choice = replace(each.choice, reason=str(error).removeprefix("nearest_plan: "))
            return
    if query.is_rate:
        solution, splits = _fluid_split(query)
        modelled: tuple[float, ...] = (
            solution.relaxed,
            -max(splits.values(), default=0),
        )
    else:
        solution = _quick_split(query)
    partition = solution.result.partition
    if partition is None:
        each.choice = replace(each.choice, reason="the model does not fit")
        return
    if not query.is_rate:
        modelled = (goal.rank(goal.model(solution, partition.cuts, each.query)),)
        each.choice = replace(each.choice, objective_s=solution.result.objective_s)
    each.solution, each.modelled = solution, modelled
    each.choice = replace(each.choice, fits=True)


def _fluid_split(query: PlanQuery) -> tuple[Solution, dict[Cuts, float]]:
    """Return the best split of the fluid model with its rate."""
    solution, splits, rate = rank_fluid(query)
    return solution, dict.fromkeys(splits[:1], rate)


def _quick_split(query: PlanQuery) -> Solution:
    """Split the model; a search by simulation begins after the degree is chosen."""
    if query.is_rate:
        return rank_fluid(query)[0]
    quick = query
    if query.is_simulated or query.method is not None:
        quick = replace(query, method=DEFAULT_METHOD, options={})
    if query.is_simulated:
        quick = replace(quick, objective="path")
    return replace(solve_query(quick), query=query)


def _simulate(each: _Candidate, goal: Goal, deadline: Deadline) -> None:
    """Simulate the split of a candidate, shortly, or under the load of the query."""
    assert each.solution is not None and each.solution.result.partition is not None
    partition = each.solution.result.partition
    if each.query.is_rate:
        began_s = clock.now()
        served, each.short = served_by(
            each.solution.query, partition.cuts, FIRST_SHARE, deadline
        )
        each.took_s = clock.now() - began_s
        each.choice = replace(each.choice, value=served.simulated_requests_per_s)
        return
    forecast = predict(
        each.solution.deployment,
        partition,
        each.query.load,
        instance=each.solution.instance,
        deadline=deadline,
        only=goal.quantity,
    )
    each.short = (goal.rank(goal.of(forecast)),)
    each.choice = replace(
        each.choice,
        value=goal.of(forecast),
        max_requests_per_s=forecast.max_requests_per_s,
        max_rate_is_lower_bound=forecast.max_rate_is_lower_bound,
        latency_mean_s=forecast.latency_s.mean,
        goodput_requests_per_s=forecast.goodput_requests_per_s,
    )


def _simulate_in_full(each: _Candidate, deadline: Deadline) -> bool:
    """Simulate the split of a candidate as long as a plan; return whether there was time."""
    assert each.solution is not None and each.solution.result.partition is not None
    if deadline.has_passed():
        return False
    cuts = each.solution.result.partition.cuts
    served, each.full = served_by(each.solution.query, cuts, 1.0, deadline)
    each.choice = replace(each.choice, full_value=served.simulated_requests_per_s)
    return not (served.is_lower_bound and deadline.has_passed())


def restriction_cost(
    goal: Goal, choices: tuple[DegreeChoice, ...]
) -> tuple[DegreeChoice, float] | None:
    """Return the best choice that the runtime cannot run, and its gain; None if none gains."""
    others = [each for each in choices if not each.is_allowed and not math.isnan(each.value)]
    if not others or math.isnan(choices[0].value):
        return None
    best = min(others, key=lambda each: goal.rank(each.value))
    gain = goal.gain(choices[0].value, best.value)
    return (best, gain) if gain > 0 else None
