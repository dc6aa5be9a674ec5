"""The query that a user puts to the planner, and `solve_query`, which splits the model."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from hypsolve import catalog
from hypsolve.formats.helix_pipeedge import read_helix
from hypsolve.formats.huggingface import read_model
from hypsolve.formats.network_toml import NetworkFile, read_network_file
from hypsolve.formats.network_toml_types import runtime_keys
from hypsolve.planning.gpu_groups import ONE_DEGREE, under_one_degree, with_optional
from hypsolve.planning.load import MAX_VISITS, Load, under_load
from hypsolve.planning.platforms import check_weights, supported, weights_of, with_empty
from hypsolve.planning.room_for_kv import with_most_room
from hypsolve.planning.rpc_links import rpc_network
from hypsolve.planning.saturation import SimulatedRate
from hypsolve.planning.simulation_search import (
    Progress,
    Splits,
    minimise_mean_latency,
    solve_simulated,
)
from hypsolve.planning.throughput import Cuts, RateSearch, ServedSplit, Throughput
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, GpuProfile, Model, Network, Requests
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.result import Result
from hypsolve.problem.runtime import IDEAL, Batching, Runtime
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import METHODS, Method, options_of, solve
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.server_arrays import FAMILIES

RATES = ("throughput", "goodput", "cost")
"""Objectives in requests per second; see `hypsolve.planning.throughput`."""
ALONE = ("bottleneck", "path", "mean_latency", "p0")
"""Objectives in seconds."""
OBJECTIVES = (*RATES, *ALONE)
DEFAULT_METHOD = "hypsplit_dp"  # for `mean_latency`, its split is where the search starts
MIN_RATE = 1e-6  # requests per second: one in 12 days
MAX_USERS = 100_000
VISITS_PER_S = 2e5  # in one simulation, per second of the time limit: a tenth of it at most
OVERRIDES = tuple(runtime_keys())
"""Attributes of `Runtime` that are arguments of `hypsolve.plan`, too."""
MAX_PLAN_TOKENS = 2**31  # of one sequence, and of all sequences that a node must hold
ModelSource = str | os.PathLike[str] | Model
NetworkSource = str | os.PathLike[str] | Network | NetworkFile


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuery:
    """A query to the planner: model, network, requests, objective, method and limits.

    `hypsolve.plan` makes a query of its arguments and keeps it as ``plan.query``.

    Attributes
    ----------
    model : Model
    network : NetworkFile
        Tiers, nodes and links, and the rules on the blocks of each tier.
    prompt_tokens, output_tokens : int
        Lengths of every request.
    rate_per_s : float
        Requests per second, for the forecast and for the objective ``mean_latency``. Not used
        with `users`, nor stated in the JSON of a plan then.
    users, think_time_s : int or None, float
        Closed loop instead of a rate: users with one request at a time each, and the seconds
        from the end of a request to the user's next one.
    ttft_slo_s, tpot_slo_s : float or None
        Targets for the first token and for each later one.
    concurrency : int
        Sequences for which every node must have room in its KV cache at once. Where batches
        pass whole pipelines, a node needs room for `Runtime.max_num_seqs` at most, see
        `n_reserved`.
    runtime : Runtime
        The serving runtime: memory, limits and batching mode.
    objective : str or None
        ``bottleneck``, ``path``, ``mean_latency`` or ``p0``, in seconds; or ``throughput``,
        ``goodput`` or ``cost``, in requests per second of servers that batch. None:
        ``goodput`` with a target, else ``throughput``; with a `method`, which splits for
        requests one at a time, `objective_alone`.
    method : str or None
        Name in `hypsolve.METHODS`. None: for objectives in requests per second, the search of
        `hypsolve.planning.throughput`; for ``mean_latency`` a search by simulation; for others
        ``hypsplit_dp``, which is exact, and of equal splits the one with the most room for KV
        cache.
    time_limit_s : float
        Limit on the whole command: search, forecast and what-if scenarios.
    seed : int
        Seed of the method and of the simulated arrivals.
    weights : str or None
        Format of the weights that was asked for; None: as stored, or `model` is a record.
    tensor_parallel : int or None
        Degree of tensor parallelism of all stages: GPUs of a machine that compute as one.
        None: `hypsolve.plan` chooses, see `hypsolve.planning.tensor_parallel`.
    options : mapping
        Further options of the method.
    left_out : tuple of str
        Nodes of the network that the runtime does not run on: `network` lacks them, or their
        tier holds no blocks.
    too_small : tuple of str
        Nodes that are left out likewise, for they have fewer GPUs than `tensor_parallel`.
    optional : tuple of str
        Tiers that may hold no blocks, though the network file gives no ``min_blocks = 0``: they
        have no machine for some degree of tensor parallelism, and `runtime` takes one for all
        stages.
    idle_gpus : mapping of str to int
        GPUs that are left out of machines whose number of GPUs is no multiple of their degree,
        by name of the machine.
    follows : tuple of str
        Attributes of `runtime` that are its server's defaults for the GPUs of the network, so
        that they follow if other nodes are used; see `on`.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; if `runtime` cannot load the weights, or runs on no node. The
        message names the field, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> query = hs.PlanQuery.of("llama-3-8b", home, rate_per_s=2, output_tokens=100)
    >>> query.model.name, query.rate_per_s, query.concurrency, query.tokens
    ('llama-3-8b', 2.0, 16, 612)
    >>> hs.plan("llama-3-8b", home, concurrency=8, with_upgrades=False).query.concurrency
    8
    """

    model: Model
    network: NetworkFile
    prompt_tokens: int = 512
    output_tokens: int = 256
    rate_per_s: float = 1.0
    users: int | None = None
    think_time_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    concurrency: int = 16
    runtime: Runtime = IDEAL
    objective: str = None  # type: ignore[assignment]  # becomes a name
    method: str | None = None
    time_limit_s: float = 60.0
    seed: int = 0
    weights: str | None = None
    tensor_parallel: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    too_small: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    idle_gpus: Mapping[str, int] = field(default_factory=dict)
    follows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            value = getattr(self, name)
            if valid.whole("plan", name, value, minimum=1) > MAX_PLAN_TOKENS:
                raise ValueError(
                    f"plan: {name} must be at most {MAX_PLAN_TOKENS}, got {value!r:.60}"
                )
        rate_per_s = valid.real("plan", "rate_per_s", self.rate_per_s, minimum=MIN_RATE)
        object.__setattr__(self, "rate_per_s", rate_per_s)
        if self.users is not None:
            valid.whole("plan", "users", self.users, minimum=1, maximum=MAX_USERS)
        think_time_s = valid.real("plan", "think_time_s", self.think_time_s)
        if think_time_s and self.users is None:
            raise ValueError(f"plan: think_time_s needs users, got {think_time_s:g} without")
        for name in ("ttft_slo_s", "tpot_slo_s"):
            if (value := getattr(self, name)) is not None:
                valid.real("plan", name, value, strict=True)
        valid.whole("plan", "concurrency", self.concurrency, minimum=1)
        valid.of_type("plan", "runtime", self.runtime, Runtime)
        check_weights("plan", self.runtime, weights_of(self.model))
        self._leave_out()
        is_serial = self.runtime.batching is Batching.SERIAL
        if self.objective is None:
            object.__setattr__(self, "objective", self._default_objective())
        valid.known("objective", self.objective, OBJECTIVES)
        if is_serial and self.objective in (Objective.BOTTLENECK, Objective.P0):
            raise ValueError(
                f"plan: objective must be {', '.join((*RATES, 'path'))} or mean_latency under"
                f" runtime {self.runtime.name!r}, which computes one batch at a time (its"
                f" throughput is 1 / path), got {self.objective!r}"
            )
        if self.users is not None and self.objective == Objective.MEAN_LATENCY:
            raise ValueError(
                "plan: objective mean_latency needs a rate, got users (a closed loop has no"
                " arrivals of its own)"
            )
        if self.method is not None:
            valid.known("method", self.method, METHODS)
        if self.is_rate:
            self._check_rate()
        if self.runtime.name in ONE_DEGREE and self.objective != Objective.P0:
            network, lacking = with_optional(self.network, self.model)
            object.__setattr__(self, "network", network)
            object.__setattr__(self, "optional", (*self.optional, *lacking))
        if self.tensor_parallel is not None:
            degree = valid.whole("plan", "tensor_parallel", self.tensor_parallel, minimum=1)
            network, small, idle = under_one_degree(self.network, degree)
            object.__setattr__(self, "idle_gpus", {**self.idle_gpus, **idle})
            object.__setattr__(self, "network", network)
            names = dict.fromkeys((*self.too_small, *small))
            object.__setattr__(self, "too_small", tuple(names))
        valid.real("plan", "time_limit_s", self.time_limit_s, strict=True)
        valid.whole("plan", "seed", self.seed)
        if self.concurrency * self.tokens > MAX_PLAN_TOKENS:
            raise ValueError(
                "plan: concurrency * (prompt_tokens + output_tokens) must be at most"
                f" {MAX_PLAN_TOKENS}, got {self.concurrency * self.tokens}"
            )
        if self.objective == Objective.P0 and 0 in self.network.min_blocks:
            tier = self.network.network.tiers[self.network.min_blocks.index(0)].name
            raise ValueError(
                f"plan: min_blocks of tier {tier!r} must be at least 1 under objective p0,"
                " which has no empty stages, got 0"
            )

    def _default_objective(self) -> str:
        """Return the objective of a query that names none."""
        if self.method is not None:
            return self.objective_alone
        return "goodput" if self.has_targets else "throughput"

    def _check_rate(self) -> None:
        """Check what the objectives in requests per second need."""
        if self.method is not None:
            raise ValueError(
                f"plan: method must be None under objective {self.objective}, which has a"
                f" search of its own, got {self.method!r}"
            )
        for option in self.options:
            raise TypeError(
                f"plan: unknown option {option!r}; under objective {self.objective}, no method"
                " takes options"
            )
        if self.objective == "goodput" and not self.has_targets:
            raise ValueError(
                "plan: objective goodput needs ttft_slo_s or tpot_slo_s, got neither"
            )
        if self.objective == "cost" and not any(self.network.price_per_hour.values()):
            raise ValueError(
                "plan: objective cost needs price_per_hour of a node in the network file,"
                " got none"
            )

    def _leave_out(self) -> None:
        """Leave out the nodes that the runtime does not run on."""
        network, empty = supported("plan", self.network, self.runtime.server, self.runtime)
        gone = [
            node.name
            for tier, kept in zip(
                self.network.network.tiers, network.network.tiers, strict=True
            )
            for node in tier.nodes
            if tier.name in empty or node not in kept.nodes
        ]
        if empty and self.objective == Objective.P0:
            raise ValueError(
                f"plan: runtime {self.runtime.name!r} runs on no node of tier {min(empty)!r},"
                " which would have to be empty, but objective p0 has no empty stages"
            )
        if gone:
            object.__setattr__(self, "network", with_empty(network, empty))
            names = dict.fromkeys((*self.left_out, *gone))
            object.__setattr__(self, "left_out", tuple(names))

    @classmethod
    def of(
        cls,
        model: ModelSource,
        network: NetworkSource,
        *,
        weights: str | None = None,
        **arguments: Any,
    ) -> PlanQuery:
        """Read model and network, and make a query of them.

        Parameters
        ----------
        model, network, weights
            As in `hypsolve.plan`.
        **arguments
            Attributes of `PlanQuery`; `runtime` may be a name. Attributes of `Runtime` replace
            its own: ``max_num_seqs=64``. All others are options of the method.

        Raises
        ------
        TypeError
            If the method takes no such option, and an argument of `hypsolve.plan` has a
            similar name.
        """
        own = {each.name for each in fields(cls)} - {
            "model", "network", "options", "weights", "left_out", "too_small", "optional",
            "idle_gpus", "follows",
        }  # fmt: skip
        file = to_network_file(network)
        overrides = {name: arguments.pop(name) for name in OVERRIDES if name in arguments}
        asked = _runtime(arguments.get("runtime"), file)
        is_record = isinstance(arguments.get("runtime"), Runtime)
        gpus = [node.gpu for tier in file.network.tiers for node in tier.nodes]
        arguments["runtime"] = catalog.runtime(asked, gpus=gpus, **overrides)
        follows = () if is_record else _defaults(arguments["runtime"], gpus, overrides)
        options = {name: value for name, value in arguments.items() if name not in own}
        method = arguments.get("method")
        known = options_of(METHODS[method].function) if method in METHODS else set()
        for option in options:
            takes = ("weights", "with_upgrades", "progress", *own, *OVERRIDES)
            meant = _meant(option, takes)
            if meant and known is not None and option not in known:
                raise TypeError(f"plan: unknown option {option!r}; {meant}")
        return cls(
            model=to_model(model, weights),
            network=file,
            weights=weights,
            options=options,
            follows=follows,
            **{name: value for name, value in arguments.items() if name in own},
        )

    def on(self, network: NetworkFile) -> PlanQuery:
        """Return the query on some nodes, with the defaults of the runtime for their GPUs.

        Nodes of tiers that may hold no blocks do not count.
        """
        tiers = network.network.tiers
        most = network.max_blocks or (None,) * len(tiers)
        gpus = [
            node.gpu
            for tier, limit in zip(tiers, most, strict=True)
            for node in tier.nodes
            if limit != 0
        ]
        runtime = self.runtime
        if self.follows:
            own = catalog.runtime(runtime.name, gpus=gpus)
            runtime = replace(runtime, **{name: getattr(own, name) for name in self.follows})
        return replace(self, network=network, runtime=runtime)

    @property
    def tokens(self) -> int:
        """Tokens of one sequence."""
        return self.prompt_tokens + self.output_tokens

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        return self.ttft_slo_s is not None or self.tpot_slo_s is not None

    @property
    def objective_alone(self) -> str:
        """Objective in seconds that stands for the rate of requests served one at a time.

        It is ``bottleneck``, or ``path`` where the runtime computes one batch at a time, since
        its throughput is then the inverse of the path.
        """
        return "path" if self.runtime.batching is Batching.SERIAL else "bottleneck"

    @property
    def is_simulated(self) -> bool:
        """Whether splits are scored by simulation."""
        return self.objective == Objective.MEAN_LATENCY

    @property
    def is_rate(self) -> bool:
        """Whether requests per second of servers that batch are maximised."""
        return self.objective in RATES

    @property
    def families(self) -> tuple[str, ...]:
        """Families of kernels of the search for the largest rate, if one is maximised."""
        return (FAMILIES[self.runtime.batching],) if self.is_rate else ()

    @property
    def has_pipelines(self) -> bool:
        """Whether batches pass whole pipelines."""
        return self.runtime.batching is not Batching.STAGE

    @property
    def n_reserved(self) -> int:
        """Sequences for which KV cache is reserved: no more than a pipeline can run."""
        if not self.has_pipelines:
            return self.concurrency
        return min(self.concurrency, self.runtime.max_num_seqs)

    def deployment(self) -> Deployment:
        """Return model and network with one request, and the KV cache to leave room for.

        The links are those that the messages of the runtime use, see `rpc_network`.
        """
        prompt, output = np.array([self.prompt_tokens]), np.array([self.output_tokens])
        return Deployment(
            model=self.model,
            network=rpc_network(self.network, self.runtime),
            requests=Requests(np.zeros(1), prompt, output),
            max_resident_tokens=self.n_reserved * self.runtime.held_tokens(self.tokens),
            runtime=self.runtime,
        )

    @property
    def load(self) -> Load:
        """The load that a plan is simulated under."""
        return Load(
            rate_per_s=self.rate_per_s,
            users=self.users,
            think_time_s=self.think_time_s,
            ttft_slo_s=self.ttft_slo_s,
            tpot_slo_s=self.tpot_slo_s,
            seed=self.seed,
            max_visits=min(MAX_VISITS, self.time_limit_s * VISITS_PER_S),
        )

    def rules(self) -> dict[str, Any]:
        """Return the keyword arguments of `hypsolve.to_instance` for this query.

        Where batches pass whole pipelines, a stage is as slow as its slowest node.
        """
        rules = self.network.rules(self.model)
        if self.has_pipelines:
            rules["stage_rule"] = StageRule.SLOWEST
        return rules


Function = TypeVar("Function", bound=Callable[..., Any])


def takes_query(function: Function) -> Function:
    """Show the attributes of `PlanQuery` in the signature of a function of ``**arguments``.

    `help`, notebooks and the API reference then list them with their defaults.
    """
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    named = {each.name for each in own} | {
        "model", "network", "options", "weights", "left_out", "too_small", "optional",
        "idle_gpus",
    }  # fmt: skip
    types = get_type_hints(PlanQuery)  # as text, they would name what the caller lacks
    keywords = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=types[each.name],
        )
        for each in fields(PlanQuery)
        if each.name not in named
    ]
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD, annotation="Any")
    shown = signature.replace(parameters=[*own, *keywords, options])
    function.__signature__ = shown  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The certified split of a query.

    Attributes
    ----------
    query : PlanQuery
    deployment : Deployment
        See `PlanQuery.deployment`.
    instance : Instance
        The deployment, compiled once. Its objective is ``path`` if splits are simulated.
    result : Result
        See `hypsolve.solve`.
    interrupted : bool
        Whether a KeyboardInterrupt ended the search: the result is the best split so far.
    throughput : Throughput or None
        What the split serves, under an objective in requests per second.
    misses_targets : bool
        Whether no split meets the targets at any rate in the fluid model, which then looked for
        the best split without them.
    fluid_result : ServingResult or None
        The best splits of the fluid model with their certificate, under an objective in
        requests per second.
    """

    query: PlanQuery
    deployment: Deployment
    instance: Instance
    result: Result
    interrupted: bool = False
    throughput: Throughput | None = None
    misses_targets: bool = False
    fluid_result: ServingResult | None = None


def instance_of(query: PlanQuery) -> Instance:
    """Return the instance of a query; its objective is ``path`` if splits are simulated."""
    objective = "path" if query.is_simulated or query.is_rate else query.objective
    return to_instance(query.deployment(), objective=objective, **query.rules())


def solve_query(
    query: PlanQuery, progress: Progress | None = None, *, bound_s: float = 0.0
) -> Solution:
    """Split the model of a query.

    `bound_s` is a lower bound on the simulated mean latency that is proved already.

    A KeyboardInterrupt ends a search by simulation, which then returns the best split so far.
    Other methods raise it.
    """
    deployment, rules = query.deployment(), query.rules()
    if query.is_rate:
        search = _rate_search(query, deployment)
        result, throughput = search.run(query.time_limit_s, progress)
        return Solution(
            query=query,
            deployment=deployment,
            instance=search.instance,
            result=result,
            interrupted=search.interrupted,
            throughput=throughput,
            fluid_result=search.fluid_result,
        )
    method: str | Method = query.method or DEFAULT_METHOD
    limits: dict[str, Any] = {"time_limit_s": query.time_limit_s, "seed": query.seed}
    if not query.is_simulated:
        instance = to_instance(deployment, objective=query.objective, **rules)
        if query.method is None:
            method = with_most_room(deployment, rules)
        result = solve(instance, method, **limits, **query.options)
        return Solution(query=query, deployment=deployment, instance=instance, result=result)
    rng = np.random.default_rng(query.seed)
    load = query.load
    splits = Splits(under_load(deployment, load.rate_per_s, rng, load.max_visits), rules)
    limits["bound_s"] = bound_s
    if query.method is None:
        result = minimise_mean_latency(splits, progress=progress, **limits, **query.options)
    else:
        result = solve_simulated(splits, query.method, **limits, **query.options)
    return Solution(
        query=query,
        deployment=deployment,
        instance=splits.alone,
        result=result,
        interrupted=splits.interrupted,
    )


def solve_fluid(query: PlanQuery, n_splits: int = 1) -> tuple[Solution, dict[Cuts, float]]:
    """Split the model of a query by the fluid model alone, which takes milliseconds.

    Returns
    -------
    solution : Solution
        The best split of the fluid model; nothing is simulated.
    splits : dict
        Requests per second in the fluid model of the `n_splits` best splits, the best first.
    """
    deployment = query.deployment()
    search = _rate_search(query, deployment)
    splits, outcome = search.splits(query.time_limit_s, n_splits)
    method = search.method(lambda: outcome)
    result = solve(search.instance, method, time_limit_s=query.time_limit_s)
    solution = Solution(
        query=query,
        deployment=deployment,
        instance=search.instance,
        result=result,
        misses_targets=search.misses_targets,
    )
    return solution, splits


def rank_fluid(query: PlanQuery, n_splits: int = 1) -> tuple[Solution, list[Cuts], float]:
    """Split the model of a query as `solve_fluid` does, where the rate only ranks queries.

    Returns
    -------
    solution : Solution
        The best split; nothing is simulated, and the rate is not scored again.
    splits : list of tuple of int
        The `n_splits` best splits, the best first; empty if nothing fits.
    requests_per_s : float
        Their largest rate in the fluid model.
    """
    deployment = query.deployment()
    search = _rate_search(query, deployment)
    splits, requests_per_s = search.claimed(query.time_limit_s, n_splits)
    outcome = Outcome(Status.INFEASIBLE)
    if splits:
        outcome = Outcome(Status.FEASIBLE, Partition(splits[0]), message="fluid model")
    method = search.method(lambda: outcome)
    solution = Solution(
        query=query,
        deployment=deployment,
        instance=search.instance,
        result=solve(search.instance, method, time_limit_s=query.time_limit_s),
        misses_targets=search.misses_targets,
    )
    return solution, splits, requests_per_s


def saturated(query: PlanQuery, cuts: Cuts, share: float = 1.0) -> SimulatedRate:
    """Simulate a split of a query where every queue is full; see `RateSearch.saturated`."""
    return _rate_search(query, query.deployment()).saturated(cuts, share)


def served_by(
    query: PlanQuery, cuts: Cuts, share: float, deadline: Deadline
) -> tuple[ServedSplit, tuple[float, ...]]:
    """Simulate a split of a query for a rate; see `RateSearch.served`."""
    return _rate_search(query, query.deployment()).served(cuts, share, deadline)


def bound_of(query: PlanQuery, *, has_users: bool = True) -> float:
    """Return requests per second that no split of a query exceeds; see `RateSearch.bound`."""
    return _rate_search(query, query.deployment()).bound(has_users=has_users)


def fluid_within_targets(query: PlanQuery, n_splits: int = 1) -> ServingResult | None:
    """Return the splits with the largest rates within the targets of a query, fluid model.

    Users are left out: the rate is that of an open loop. None if no split meets the targets at
    any rate, or nothing fits.
    """
    query = replace(
        query, objective="goodput", method=None, options={}, users=None, think_time_s=0.0
    )
    search = _rate_search(query, query.deployment())
    result = search.fluid(query.time_limit_s, n_splits)
    return None if search.misses_targets or result.partition is None else result


def _rate_search(query: PlanQuery, deployment: Deployment) -> RateSearch:
    objective = query.objective if query.is_rate else "throughput"
    return RateSearch(
        deployment,
        query.rules(),
        query.load,
        objective=objective,
        prices_per_hour=query.network.price_per_hour,
    )


def _runtime(asked: str | Runtime | None, network: NetworkFile) -> str | Runtime:
    """Return the runtime that was asked for, or else the one that the network file names.

    The file's values also hold where its runtime is asked for by name.
    """
    of_file = network.runtime
    if of_file is not None and asked in (None, of_file.name):
        return of_file
    return "ideal" if asked is None else asked


def _defaults(
    runtime: Runtime, gpus: list[GpuProfile], overrides: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the attributes that have the defaults of the server for these GPUs.

    A value in a network file that is equal to the default counts as one.
    """
    if runtime.name not in catalog.runtimes():
        return ()
    own = catalog.runtime(runtime.name, gpus=gpus)
    return tuple(
        each.name
        for each in fields(Runtime)
        if each.name not in overrides and getattr(own, each.name) == getattr(runtime, each.name)
    )


def _meant(option: str, names: Collection[str]) -> str:
    """Suggest a name; a part of it is enough, as ``rate`` for ``rate_per_s``."""
    if option not in names:
        part = [name for name in names if name.startswith(f"{option}_")]
        return (
            f"did you mean {part[0]}?" if part else valid.did_you_mean(option, names).rstrip()
        )
    return ""


def to_model(model: ModelSource, weights: str | None) -> Model:
    """Return a model by name, from its files, or as it is."""
    if isinstance(model, Model):
        if weights is not None:
            raise ValueError(
                f"plan: weights must be None where the model is a Model, got {weights!r:.60}"
            )
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"plan: model must be a name, a path or a Model, got {model!r:.60}")
    if isinstance(model, str):
        model = catalog.name_of(model)
        is_path = not model or os.sep in model or model.endswith((".json", ".gguf"))
        if model in catalog.models() or not (is_path or Path(model).exists()):
            return catalog.model(model, weights or "fp16")
    if model == "" or not Path(model).exists():
        raise FileNotFoundError(
            errno.ENOENT, "no such file or folder, nor a model of that name", str(model)
        )
    return read_model(model, weights=weights)


def to_network_file(network: NetworkSource) -> NetworkFile:
    """Return a network from its file (TOML, or Helix's .ini), or as it is."""
    if isinstance(network, NetworkFile):
        return network
    if isinstance(network, Network):
        return NetworkFile(network=network)
    if isinstance(network, str | os.PathLike) and os.fspath(network).lower().endswith(".ini"):
        return NetworkFile(network=read_helix(network))
    return read_network_file(network)


def with_tier(network: NetworkFile, k: int, **changes: Any) -> NetworkFile:
    """Return a copy of a network in which tier `k` has other nodes or another link."""
    tiers = list(network.network.tiers)
    tiers[k] = replace(tiers[k], **changes)
    return replace(network, network=replace(network.network, tiers=tuple(tiers)))
