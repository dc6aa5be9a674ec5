"""`PlaceQuery`: the query of `hypsolve.place`, and `Machines`, those to choose from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from hypsolve import catalog
from hypsolve.planning.load import MAX_VISITS, Load
from hypsolve.planning.place_machines import (
    OWNER,
    Machines,
    MachinesSource,
    restricted,
    usable,
)
from hypsolve.planning.plan_query import VISITS_PER_S
from hypsolve.planning.platforms import (
    check_weights,
    weights_of,
)
from hypsolve.planning.query_arguments import (
    MAX_PLAN_TOKENS,
    MAX_USERS,
    MIN_RATE,
    OVERRIDES,
    ModelSource,
    meant_option,
    to_model,
)
from hypsolve.planning.request_mix import LENGTHS, RequestMix
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Model, Requests
from hypsolve.problem.fleet import Fleet
from hypsolve.problem.placement import MAX_STAGES, PlacementObjective, PlacementProblem
from hypsolve.problem.runtime import Runtime
from hypsolve.solve_placement import PLACEMENT_METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceQuery:
    """A query to `hypsolve.place`: model, machines, requests, targets and limits.

    Attributes
    ----------
    model : Model
    machines : Machines
        Those that the runtime runs on; `left_out` names the others.
    prompt_tokens, output_tokens : int
        Lengths of every request; with `requests`, their rounded means.
    rate_per_s : float or None
        Requests per second to serve; None: the largest rate is asked for.
    users, think_time_s : int or None, float
        Closed loop instead of a rate, as in `hypsolve.plan`.
    ttft_slo_s, tpot_slo_s : float or None
        Targets for the first token and for each later one.
    runtime : Runtime
    objective : str or None
        ``throughput``, ``goodput``, ``cost`` or ``latency``. Default: ``goodput`` with a
        target, else ``throughput``.
    method : str or None
        Name in `hypsolve.PLACEMENT_METHODS`. Default: the exact one.
    max_stages : int
        Largest number of stages of a pipeline.
    time_limit_s : float
        Limit on the whole command.
    seed : int
    weights : str or None
    requests : RequestMix or None
        Requests of different lengths.
    left_out : mapping of str to str
        Machines that cannot be used, with the reason.
    restrictions : tuple of str
        What the runtime does not allow, in words.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid, or no machine is left; the message names the field, the rule and
        the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Machine(node=hs.Node(name="box", gpu=hs.gpu("rtx-4090")), site="room")
    >>> mac = hs.Machine(node=hs.Node(name="mac", gpu=hs.gpu("apple-m2-ultra")), site="room")
    >>> room = hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4))
    >>> lab = hs.Fleet(name="lab", sites=(room,), machines=(box, mac))
    >>> query = PlaceQuery.of("llama-3-8b", lab)
    >>> query.objective, query.left_out
    ('throughput', {'mac': 'runtime vllm does not run on Apple M2 Ultra (metal)'})
    """

    model: Model
    machines: Machines
    prompt_tokens: int = 512
    output_tokens: int = 256
    rate_per_s: float | None = None
    users: int | None = None
    think_time_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    runtime: Runtime
    objective: str = None  # type: ignore[assignment]  # becomes a name
    method: str | None = None
    max_stages: int = MAX_STAGES
    time_limit_s: float = 60.0
    seed: int = 0
    weights: str | None = None
    requests: RequestMix | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    restrictions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _set = object.__setattr__
        if self.requests is not None:
            mix = RequestMix.of(self.requests)
            _set(self, "requests", mix)
            for name, value in zip(LENGTHS, mix.mean_tokens, strict=True):
                _set(self, name, value)
        self._check_load()
        valid.of_type(OWNER, "runtime", self.runtime, Runtime)
        check_weights(OWNER, self.runtime, weights_of(self.model))
        if self.objective is None:
            default = "goodput" if self.has_targets else "throughput"
            _set(self, "objective", default)
        valid.known("objective", self.objective, tuple(PlacementObjective))
        if self.objective == "goodput" and not self.has_targets:
            raise ValueError(
                f"{OWNER}: objective goodput needs ttft_slo_s or tpot_slo_s, got neither"
            )
        if PlacementObjective(self.objective).needs_rate and not (
            self.rate_per_s or self.users
        ):
            raise ValueError(
                f"{OWNER}: objective {self.objective} needs rate_per_s or users, got neither"
            )
        if self.objective == "cost" and self.users is not None and not self.has_targets:
            raise ValueError(
                f"{OWNER}: objective cost needs ttft_slo_s or tpot_slo_s with users, since any"
                f" machine serves {self.users} users who wait, got neither"
            )
        if self.method is not None:
            valid.known("method", self.method, PLACEMENT_METHODS)
        valid.whole(OWNER, "max_stages", self.max_stages, minimum=1)
        valid.real(OWNER, "time_limit_s", self.time_limit_s, strict=True)
        valid.whole(OWNER, "seed", self.seed)

    def _check_load(self) -> None:
        for name in LENGTHS:
            value = getattr(self, name)
            valid.whole(OWNER, name, value, minimum=1, maximum=MAX_PLAN_TOKENS)
        if self.rate_per_s is not None:
            rate = valid.real(OWNER, "rate_per_s", self.rate_per_s, minimum=MIN_RATE)
            object.__setattr__(self, "rate_per_s", float(rate))
        if self.users is not None:
            valid.whole(OWNER, "users", self.users, minimum=1, maximum=MAX_USERS)
        if self.users is not None and self.rate_per_s is not None:
            raise ValueError(
                f"{OWNER}: users and rate_per_s exclude each other, got {self.users} and"
                f" {self.rate_per_s:g}"
            )
        if valid.real(OWNER, "think_time_s", self.think_time_s) and self.users is None:
            raise ValueError(
                f"{OWNER}: think_time_s needs users, got {self.think_time_s:g} without"
            )
        for name in ("ttft_slo_s", "tpot_slo_s"):
            if (value := getattr(self, name)) is not None:
                valid.real(OWNER, name, value, strict=True)

    @classmethod
    def of(
        cls,
        model: ModelSource,
        machines: MachinesSource,
        *,
        runtime: str | Runtime | None = None,
        weights: str | None = None,
        **arguments: Any,
    ) -> PlaceQuery:
        """Read model and machines, and make a query of them.

        Parameters
        ----------
        model, weights
            As in `hypsolve.plan`.
        machines : path, MachinesFile, Fleet, Network or NetworkFile
            A path is for `hypsolve.read_machines`.
        runtime : str or Runtime, optional
            Default: that of the file, else ``vllm``.
        **arguments
            Attributes of `PlaceQuery`; attributes of `Runtime` replace its own.
        """
        own = {each.name for each in fields(cls)} - {
            "model", "machines", "runtime", "weights", "left_out", "restrictions",
        }  # fmt: skip
        for option in arguments:
            if option not in own and option not in OVERRIDES:
                takes = ("runtime", "weights", "progress", *own, *OVERRIDES)
                meant = meant_option(option, takes)
                raise TypeError(f"{OWNER}: unknown option {option!r}; {meant}".rstrip("; "))
        overrides = {name: arguments.pop(name) for name in OVERRIDES if name in arguments}
        if arguments.get("requests") is not None:
            for name in LENGTHS:
                if name in arguments:
                    raise ValueError(
                        f"{OWNER}: requests have lengths of their own, got {name} ="
                        f" {arguments[name]!r:.60} beside them"
                    )
        model = to_model(model, weights)
        given = Machines.of(machines, model)
        runtime = given.runtime_asked(runtime)
        asked = runtime if isinstance(runtime, Runtime) else catalog.runtime(runtime)
        kept, left_out = usable(given, asked)
        fleet, restrictions = restricted(kept.fleet, asked)
        gpus = [machine.node.gpu for machine in fleet.machines]
        return cls(
            model=model,
            machines=dataclasses.replace(kept, fleet=fleet),
            runtime=catalog.runtime(runtime, gpus=gpus, **overrides),
            weights=weights,
            left_out=left_out,
            restrictions=restrictions,
            **arguments,
        )

    @property
    def fleet(self) -> Fleet:
        """The machines that can be used."""
        return self.machines.fleet

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        return self.ttft_slo_s is not None or self.tpot_slo_s is not None

    @property
    def asks_load(self) -> bool:
        """Whether a rate or a number of users is to be served."""
        return self.rate_per_s is not None or self.users is not None

    @property
    def needed_per_s(self) -> float | None:
        """The rate to carry: as given, or of the users if each time is at its target."""
        if self.users is None:
            return self.rate_per_s
        passes = self.output_tokens - 1
        round_s = self.think_time_s + (self.ttft_slo_s or 0.0) + passes * (self.tpot_slo_s or 0)
        return self.users / round_s if round_s > 0 else None

    @property
    def load(self) -> Load:
        """The load that placements are simulated under."""
        return Load(
            rate_per_s=math.nan if self.rate_per_s is None else self.rate_per_s,
            users=self.users,
            think_time_s=self.think_time_s,
            ttft_slo_s=self.ttft_slo_s,
            tpot_slo_s=self.tpot_slo_s,
            seed=self.seed,
            max_visits=min(MAX_VISITS, self.time_limit_s * VISITS_PER_S),
            mix=self.requests,
        )

    def problem(self, **changes: Any) -> PlacementProblem:
        """Return the problem of a query; keyword arguments replace its fields."""
        requests = Requests(
            np.zeros(1), np.array([self.prompt_tokens]), np.array([self.output_tokens])
        )
        if self.requests is not None:
            requests = self.requests.representatives
        return PlacementProblem(
            **{
                "model": self.model,
                "fleet": self.fleet,
                "requests": requests,
                "runtime": self.runtime,
                "objective": PlacementObjective(self.objective),
                "requests_per_s": self.needed_per_s,
                "ttft_slo_s": self.ttft_slo_s,
                "tpot_slo_s": self.tpot_slo_s,
                "max_stages": self.max_stages,
                **changes,
            }
        )

    def describe(self) -> str:
        """Describe the requests of the query."""
        if self.requests is not None:
            return self.requests.describe()
        return f"{self.prompt_tokens} + {self.output_tokens} tokens"
