"""`PlanQuery`: the query that a user puts to the planner."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_type_hints

import numpy as np

from hypsolve import catalog
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.fitted_costs import (
    AUTO,
    COSTS,
    FITTED,
    ROOFLINE,
    costs_for,
    with_fitted_costs,
)
from hypsolve.planning.gpu_groups import ONE_DEGREE, under_one_degree, with_optional
from hypsolve.planning.load import MAX_VISITS, Load
from hypsolve.planning.platforms import check_weights, supported, weights_of, with_empty
from hypsolve.planning.query_arguments import (
    MAX_PLAN_TOKENS,
    OVERRIDES,
    RATES,
    ModelSource,
    NetworkSource,
    check_load,
    check_objective,
    meant_option,
    runtime_asked,
    server_defaults,
    to_model,
    to_network_file,
)
from hypsolve.planning.request_mix import LENGTHS, RequestMix
from hypsolve.planning.rpc_links import rpc_model, rpc_network
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model, Requests
from hypsolve.problem.instance import Objective, StageRule
from hypsolve.problem.runtime import IDEAL, Batching, Runtime
from hypsolve.solve import METHODS
from hypsolve.solvers.throughput.server_arrays import FAMILIES

VISITS_PER_S = 2e5  # in one simulation, per second of the time limit: a tenth of it at most


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
        Lengths of every request; with `requests`, their rounded means.
    rate_per_s : float
        Requests per second, for the forecast and for the objective ``mean_latency``. Not used
        with `users`, nor stated in the JSON of a plan then. Default of `of` and
        `hypsolve.plan`: 1, or the rate of `requests`.
    users, think_time_s : int or None, float
        Closed loop instead of a rate: users with one request at a time each, and the seconds
        from the end of a request to the user's next one.
    ttft_slo_s, tpot_slo_s : float or None
        Targets for the first token and for each later one.
    concurrency : int
        Sequences for which every node must have room in its KV cache at once. A node needs room
        for `users` at most, and for `Runtime.max_num_seqs` where batches pass whole pipelines,
        see `n_reserved`.
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
    costs : str
        ``roofline``: every GPU has three numbers. ``fitted``: GPUs whose server was fitted to
        measured runs have the rates of operators of that fit, see
        `hypsolve.calibration.fitted_profile`; others have three numbers. ``auto`` becomes one
        of both, see `hypsolve.planning.fitted_costs.costs_for`.
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
    requests : RequestMix or None
        Requests of different lengths; a file or `Requests` become one. None: all requests have
        equal lengths.

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
    costs: str = ROOFLINE
    options: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    too_small: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    idle_gpus: Mapping[str, int] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    requests: RequestMix | None = None

    def __post_init__(self) -> None:
        if self.requests is not None:
            mix = RequestMix.of(self.requests)
            object.__setattr__(self, "requests", mix)
            for name, value in zip(LENGTHS, mix.mean_tokens, strict=True):
                object.__setattr__(self, name, value)
        check_load(self)
        object.__setattr__(self, "rate_per_s", float(self.rate_per_s))
        valid.of_type("plan", "runtime", self.runtime, Runtime)
        valid.known("costs", self.costs, COSTS)
        check_weights("plan", self.runtime, weights_of(self.model))
        self._leave_out()
        if self.costs == AUTO:
            costs = costs_for(self.network.network, self.runtime)
            object.__setattr__(self, "costs", costs)
        if self.objective is None:
            object.__setattr__(self, "objective", self._default_objective())
        check_objective(self)
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
        if (tokens := self.concurrency * (self.prompt_tokens + self.output_tokens)) > (
            MAX_PLAN_TOKENS
        ):
            raise ValueError(
                "plan: concurrency * (prompt_tokens + output_tokens) must be at most"
                f" {MAX_PLAN_TOKENS}, got {tokens}"
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
        ValueError
            If users and a rate are given, which exclude each other.
        """
        users, rate = arguments.get("users"), arguments.get("rate_per_s")
        if users is not None and rate is not None:
            raise ValueError(
                f"plan: users and rate_per_s exclude each other, got {users!r:.60} and"
                f" {rate!r:.60}"
            )
        own = {each.name for each in fields(cls)} - {
            "model", "network", "options", "weights", "left_out", "too_small", "optional",
            "idle_gpus", "follows",
        }  # fmt: skip
        file = to_network_file(network)
        overrides = {name: arguments.pop(name) for name in OVERRIDES if name in arguments}
        if arguments.get("requests") is not None:
            arguments = _of_requests(arguments)
        asked = runtime_asked(arguments.get("runtime"), file)
        is_record = isinstance(arguments.get("runtime"), Runtime)
        gpus = [node.gpu for tier in file.network.tiers for node in tier.nodes]
        arguments["runtime"] = catalog.runtime(asked, gpus=gpus, **overrides)
        follows = () if is_record else server_defaults(arguments["runtime"], gpus, overrides)
        options = {name: value for name, value in arguments.items() if name not in own}
        method = arguments.get("method")
        known = valid.options_of(METHODS[method].function) if method in METHODS else set()
        for option in options:
            takes = ("weights", "with_upgrades", "progress", *own, *OVERRIDES)
            meant = meant_option(option, takes)
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
        most = network.max_blocks or (None,) * len(network.network.tiers)
        used = [k for k, limit in enumerate(most) if limit != 0]
        return replace(self, network=network, runtime=self._runtime_on(network, used))

    def _runtime_on(self, network: NetworkFile, used: Sequence[int]) -> Runtime:
        """Return the runtime with its defaults for the GPUs of some tiers."""
        if not self.follows:
            return self.runtime
        tiers = network.network.tiers
        gpus = [node.gpu for k in used for node in tiers[k].nodes]
        own = catalog.runtime(self.runtime.name, gpus=gpus)
        return replace(self.runtime, **{name: getattr(own, name) for name in self.follows})

    def with_limits_of(self, cuts: tuple[int, ...]) -> PlanQuery:
        """Return the query with the limits that the server has on the nodes of a split.

        A server has other defaults on other GPUs (`follows`), and sees only those that it uses.
        The query itself is returned if these are its limits.

        Examples
        --------
        >>> import hypsolve as hs
        >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
        >>> edge, cloud = (hs.Node(name=gpu, gpu=hs.gpu(gpu)) for gpu in ("l4", "h100"))
        >>> tiers = (
        ...     hs.Tier(name="edge", nodes=(edge,), link=link),
        ...     hs.Tier(name="cloud", nodes=(cloud,)),
        ... )
        >>> network = hs.Network(name="net", tiers=tiers)
        >>> query = hs.PlanQuery.of("llama-3-8b", network, runtime="vllm")
        >>> splits = (0, 10, 34), (0, 0, 34)
        >>> [query.with_limits_of(cuts).runtime.max_num_seqs for cuts in splits]
        [256, 1024]
        """
        used = [k for k, (i, j) in enumerate(itertools.pairwise(cuts)) if i < j]
        runtime = self._runtime_on(self.network, used)
        return self if runtime == self.runtime else replace(self, runtime=runtime)

    def has_limits_of(self, cuts: tuple[int, ...]) -> bool:
        """Return whether the limits are those of the server on the nodes of a split."""
        return self.with_limits_of(cuts) is self

    @property
    def tokens(self) -> int:
        """Tokens of one sequence: of the longest one, if they differ."""
        if self.requests is not None:
            return self.requests.longest_tokens
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
        """Sequences with KV cache reserved: no more than a pipeline or the users can run."""
        n = self.concurrency if self.users is None else min(self.concurrency, self.users)
        return min(n, self.runtime.max_num_seqs) if self.has_pipelines else n

    def deployment(self) -> Deployment:
        """Return model and network with one request, and the KV cache to leave room for.

        If lengths differ, it has the representatives of the requests. There is room for
        `n_reserved` requests of mean length then, and at least for the longest one. The links
        are those that the messages of the runtime use, see `rpc_network`, and the head returns
        what the runtime fetches from it, see `rpc_model`.
        """
        prompt, output = np.array([self.prompt_tokens]), np.array([self.output_tokens])
        requests = Requests(np.zeros(1), prompt, output)
        if self.requests is not None:
            requests = self.requests.representatives
        held = self.runtime.held_tokens(self.prompt_tokens + self.output_tokens)
        network = rpc_network(self.network, self.runtime)
        if self.costs == FITTED:
            network = with_fitted_costs(network, self.runtime, self.model)
        return Deployment(
            model=rpc_model(self.model, network),
            network=network,
            requests=requests,
            max_resident_tokens=max(
                self.n_reserved * held, self.runtime.held_tokens(self.tokens)
            ),
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
            mix=self.requests,
        )

    def rules(self) -> dict[str, Any]:
        """Return the keyword arguments of `hypsolve.to_instance` for this query.

        Where batches pass whole pipelines, a stage is as slow as its slowest node.
        """
        rules = self.network.rules(self.model)
        if self.has_pipelines:
            rules["stage_rule"] = StageRule.SLOWEST
        return rules


def _of_requests(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with their requests read, and at the rate of these unless one is given.

    Raises
    ------
    ValueError
        If they give lengths, too; or neither a rate nor users, and all arrive at one time.
    """
    for name in LENGTHS:
        if name in arguments:
            raise ValueError(
                "plan: requests have lengths of their own, got"
                f" {name} = {arguments[name]!r:.60} beside them"
            )
    mix = RequestMix.of(arguments["requests"])
    arguments = {**arguments, "requests": mix}
    if "rate_per_s" not in arguments and arguments.get("users") is None:
        if math.isnan(mix.rate_per_s):
            raise ValueError(
                f"plan: requests{mix.of_source} must arrive at two times at least, unless"
                " rate_per_s or users is given"
            )
        arguments["rate_per_s"] = mix.rate_per_s
    return arguments


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
