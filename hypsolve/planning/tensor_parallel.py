"""`choose_degrees`: how many GPUs of a machine compute as one, chosen among all degrees.

*Rule.* vLLM, SGLang and TensorRT-LLM take one degree of tensor parallelism for all stages of a
pipeline; llama.cpp over RPC computes no layer on several GPUs; ``ideal`` lets every tier have a
degree of its own. Under one degree, a machine with fewer GPUs is left out, and a machine with
more is several nodes of its tier.

*Choice.* The model is split for every degree that is known for the interconnects and divides
the heads. The splits are exact for the query's objective, which is about requests one at a
time, so the degrees are compared by what is simulated: the `Goal` of the query. Where tiers may
differ, the `MAX_SIMULATED` degrees that a model of the goal ranks first are simulated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypsolve.formats.network_file import NetworkFile
from hypsolve.planning.forecast import predict
from hypsolve.planning.goal import Goal
from hypsolve.planning.gpu_groups import degrees_of
from hypsolve.planning.query import (
    DEFAULT_METHOD,
    PlanQuery,
    Solution,
    solve_fluid,
    solve_query,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.gpu_group import check_degree
from hypsolve.problem.network import Node, Tier
from hypsolve.solve import warm_methods
from hypsolve.solvers.clock import Deadline

ONE_DEGREE = ("vllm", "sglang", "tensorrt-llm")
"""Runtimes that take one degree for all stages."""
NO_DEGREE = ("llama.cpp",)
"""Runtimes that compute no layer on several GPUs."""
MAX_SIMULATED = 6  # choices of degrees that differ over the tiers
SHARE = 0.4  # of the time that is left, for all simulations
MAX_CHOICES = 4096  # of them that are split


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeChoice:
    """One choice of the degrees of tensor parallelism, and what it serves.

    Attributes
    ----------
    degrees : tuple of int
        Largest degree of each tier.
    is_allowed : bool
        Whether the runtime can run it.
    fits : bool
        Whether the model fits.
    reason : str
        Why it was not simulated; empty if it was.
    objective_s : float
        Least objective; inf if nothing fits.
    value : float
        What the query asks for, simulated: the largest rate, the rate of the users, the goodput
        or the mean latency; nan if it was not simulated.
    max_requests_per_s, latency_mean_s, goodput_requests_per_s : float
        As in `Forecast`; nan if it was not simulated.
    max_rate_is_lower_bound : bool
        As in `Forecast`.
    """

    degrees: tuple[int, ...]
    is_allowed: bool
    fits: bool = False
    reason: str = ""
    objective_s: float = math.inf
    value: float = math.nan
    max_requests_per_s: float = math.nan
    latency_mean_s: float = math.nan
    goodput_requests_per_s: float = math.nan
    max_rate_is_lower_bound: bool = False

    def describe_degrees(self) -> str:
        """Name the degree, or those of the tiers if they differ."""
        if len(set(self.degrees)) == 1:
            return str(self.degrees[0])
        return "/".join(map(str, self.degrees))


@dataclass(slots=True)
class _Candidate:
    """A query with its degrees, and its split if the model fits."""

    query: PlanQuery
    choice: DegreeChoice
    solution: Solution | None = None
    modelled: float = math.nan  # value of the goal, by its model

    @property
    def is_common(self) -> bool:
        """Whether all tiers have one degree."""
        return self.query.tensor_parallel is not None

    @property
    def value(self) -> float:
        """The simulated value of the goal; nan if it was not simulated."""
        return self.choice.value


def choose_degrees(
    query: PlanQuery, progress: Progress | None = None, deadline: Deadline | None = None
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
    warm_methods(DEFAULT_METHOD, simulates=True, pipelines=query.has_pipelines)
    deadline = (deadline or Deadline(query.time_limit_s)).part(SHARE)
    candidates, refused = _candidates(query)
    goal, to_split = Goal(query), deadline.part(0.5)  # the other half is for simulations
    for each in candidates:
        if each.is_common or not to_split.has_passed():
            _split(each, goal)
    best = _best_modelled(goal, [each for each in candidates if each.solution is not None])
    for at, each in enumerate(best):
        if deadline.has_passed():
            break
        progress(f"tensor parallelism {each.choice.describe_degrees()}: simulating requests")
        _simulate(each, goal, deadline.part(1 / (len(best) - at)))
    if not any(each.choice.is_allowed for each in candidates):
        why = "; ".join(choice.reason for choice in refused)
        if query.runtime.name in ONE_DEGREE:
            why = f"runtime {query.runtime.name!r} takes one for all stages; {why}"
        raise ValueError(f"plan: no degree of tensor parallelism can be run: {why}")
    order = sorted(candidates, key=lambda each: _order(goal, each))
    chosen = order[0]
    tried = [
        each.choice
        for each in order
        if each is chosen or each.is_common or not math.isnan(each.value)
    ]
    return chosen.query, (*tried, *refused)


def _best_modelled(goal: Goal, fitting: list[_Candidate]) -> list[_Candidate]:
    """Return the candidates to simulate, the best by the model of the goal first.

    All common degrees come first, then the `MAX_SIMULATED` best of the others.
    """
    ranked = sorted(fitting, key=lambda each: (not each.is_common, goal.rank(each.modelled)))
    mixed = [each for each in ranked if not each.is_common]
    out = {id(each) for each in mixed[MAX_SIMULATED:]}
    return [each for each in ranked if id(each) not in out]


def _order(goal: Goal, each: _Candidate) -> tuple[bool, bool, float, float, tuple[int, ...]]:
    """Return the key that sorts candidates: runnable, fitting, simulated, modelled, smaller.

    If nothing fits, the largest degree says how much is missing.
    """
    degrees = each.choice.degrees
    return (
        not each.choice.is_allowed,
        each.solution is None,
        goal.rank(each.value),
        goal.rank(each.modelled),
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
        common.append(_Candidate(of_degree, DegreeChoice(degrees=degrees, is_allowed=True)))
    return common + list(_mixed(query)), refused


def _mixed(query: PlanQuery) -> Iterator[_Candidate]:
    """Yield queries whose tiers differ in degree; a machine with fewer GPUs takes what it has.

    Those with few different degrees come first. Nothing is yielded for runtimes that compute no
    layer on several GPUs.
    """
    tiers, name = query.network.network.tiers, query.runtime.name
    if name in NO_DEGREE:
        return
    degrees = [_divides(query, _degrees_of(tier)) for tier in tiers]
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
        choice = DegreeChoice(degrees=_largest(network), is_allowed=name not in ONE_DEGREE)
        yield _Candidate(replace(query, network=network, tensor_parallel=None), choice)


def _known(tiers: tuple[Tier, ...]) -> list[int]:
    """Return the degrees that some machine of the network can have."""
    return sorted({degree for tier in tiers for degree in _degrees_of(tier)})


def _degrees_of(tier: Tier) -> list[int]:
    """Return the degrees that some machine of a tier can have."""
    return sorted({degree for node in tier.nodes for degree in degrees_of(node)})


def _at_most(node: Node, degree: int) -> int:
    return max(each for each in degrees_of(node) if each <= degree)


def _divides(query: PlanQuery, degrees: list[int]) -> list[int]:
    """Return the degrees that divide the heads of the model."""
    found = []
    for degree in degrees:
        try:
            check_degree(query.model, degree)
        except ValueError:
            continue
        found.append(degree)
    return found


def _largest(network: NetworkFile) -> tuple[int, ...]:
    return tuple(max(node.gpus for node in tier.nodes) for tier in network.network.tiers)


def _split(each: _Candidate, goal: Goal) -> None:
    """Split the model; a search by simulation begins after the degree is chosen."""
    quick = each.query
    if quick.is_simulated or quick.method is not None:
        quick = replace(quick, method=DEFAULT_METHOD, options={})
    if quick.is_simulated:
        quick = replace(quick, objective="path")
    solution = solve_fluid(quick)[0] if quick.is_rate else solve_query(quick)
    if solution.result.partition is None:
        each.choice = replace(each.choice, reason="the model does not fit")
        return
    each.solution = solution
    each.modelled = goal.model(solution, solution.result.partition.cuts, each.query)
    each.choice = replace(each.choice, fits=True, objective_s=solution.result.objective_s)


def _simulate(each: _Candidate, goal: Goal, deadline: Deadline) -> None:
    """Simulate the split of a candidate under the load of the query."""
    assert each.solution is not None and each.solution.result.partition is not None
    forecast = predict(
        each.solution.deployment,
        each.solution.result.partition,
        each.query.load,
        instance=each.solution.instance,
        deadline=deadline,
        only=goal.quantity,
    )
    each.choice = replace(
        each.choice,
        value=goal.of(forecast),
        max_requests_per_s=forecast.max_requests_per_s,
        max_rate_is_lower_bound=forecast.max_rate_is_lower_bound,
        latency_mean_s=forecast.latency_s.mean,
        goodput_requests_per_s=forecast.goodput_requests_per_s,
    )


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
