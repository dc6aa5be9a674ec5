"""`PlacementProblem`, which machines host which blocks, and `Placement`, an answer to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import CostModel, Deployment, Requests
from hypsolve.problem.fleet import Fleet, Machine
from hypsolve.problem.gpu_group import check_degree
from hypsolve.problem.model import Model
from hypsolve.problem.network import Link, Network, Node, Tier
from hypsolve.problem.runtime import IDEAL, Runtime
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import count

OWNER = "placement problem"
MAX_STAGES = 6
"""Default of `PlacementProblem.max_stages`."""


class PlacementObjective(StrEnum):
    """Objective of a `PlacementProblem`.

    ``THROUGHPUT``: the largest request rate of all pipelines together. ``GOODPUT``: the largest
    rate at which every pipeline meets the targets for latencies. ``COST``: the smallest price
    per hour of machines that carry a given rate, within the targets if there are any.
    ``LATENCY``: the smallest mean latency at a given rate.
    """

    THROUGHPUT = "throughput"
    GOODPUT = "goodput"
    COST = "cost"
    LATENCY = "latency"

    @property
    def needs_rate(self) -> bool:
        """Whether the problem must state a request rate."""
        return self in (PlacementObjective.COST, PlacementObjective.LATENCY)


class DegreeRule(StrEnum):
    """Degrees of tensor parallelism that a runtime allows in one pipeline.

    ``COMMON``: all stages of a pipeline have one degree. ``FREE``: each stage has its own.
    ``ONE``: every stage is a single GPU.
    """

    COMMON = "common"
    FREE = "free"
    ONE = "one"

    @classmethod
    def of(cls, runtime: Runtime) -> DegreeRule:
        """Return the rule of a runtime, by its name."""
        if runtime.name in ("vllm", "sglang", "tensorrt-llm"):
            return cls.COMMON
        return cls.ONE if runtime.name == "llama.cpp" else cls.FREE


@dataclass(frozen=True, slots=True)
class PlacedStage:
    """A stage of a pipeline: GPUs of one machine, and the blocks that they hold.

    Attributes
    ----------
    machine : str
        Name of the machine.
    gpus : int
        Number of its GPUs that compute as one: the degree of tensor parallelism.
    start, stop : int
        The blocks ``start:stop``.
    """

    machine: str
    gpus: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        valid.name("stage: machine", self.machine)
        valid.whole("stage", "gpus", self.gpus, minimum=1)
        start = valid.whole("stage", "start", self.start)
        valid.whole("stage", "stop", self.stop, minimum=start + 1)

    def __str__(self) -> str:
        cards = "" if self.gpus == 1 else f" x{self.gpus}"
        return f"{self.machine}{cards} {self.start}:{self.stop}"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages that a request passes, and the request rate that the router sends there.

    Attributes
    ----------
    stages : tuple of PlacedStage
    requests_per_s : float
        Load of the pipeline. The router shares the requests among pipelines in proportion.
    """

    stages: tuple[PlacedStage, ...]
    requests_per_s: float

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "stages", valid.some("pipeline", "stages", self.stages, PlacedStage)
        )
        valid.real("pipeline", "requests_per_s", self.requests_per_s)

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Machine and number of GPUs of each stage."""
        return tuple((stage.machine, stage.gpus) for stage in self.stages)

    @property
    def partition(self) -> Partition:
        """Its cuts, with a tier for each stage."""
        return Partition((*(stage.start for stage in self.stages), self.stages[-1].stop))

    def __str__(self) -> str:
        return " -> ".join(map(str, self.stages))


@dataclass(frozen=True, slots=True)
class Placement:
    """Pipelines over the machines of a fleet; machines in none of them stay unused.

    Attributes
    ----------
    pipelines : tuple of Pipeline

    Examples
    --------
    >>> import hypsolve as hs
    >>> placement = hs.Placement((hs.Pipeline((hs.PlacedStage("box", 2, 0, 34),), 1.5),))
    >>> print(placement)
    box x2 0:34 at 1.5 requests/s
    >>> placement.machines
    ('box',)
    """

    pipelines: tuple[Pipeline, ...]

    def __post_init__(self) -> None:
        pipelines = valid.some("placement", "pipelines", self.pipelines, Pipeline)
        object.__setattr__(self, "pipelines", pipelines)

    @property
    def requests_per_s(self) -> float:
        """Load of all pipelines together."""
        return sum(pipeline.requests_per_s for pipeline in self.pipelines)

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines that host a stage, in the order of their first use."""
        stages = (stage for pipeline in self.pipelines for stage in pipeline.stages)
        return tuple(dict.fromkeys(stage.machine for stage in stages))

    def __str__(self) -> str:
        return "\n".join(
            f"{pipeline} at {pipeline.requests_per_s:.4g} requests/s"
            for pipeline in self.pipelines
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the pipelines as plain tables; `from_dict` reads them."""
        return {
            "pipelines": [
                {
                    "requests_per_s": pipeline.requests_per_s,
                    "stages": [
                        {
                            "machine": stage.machine,
                            "gpus": stage.gpus,
                            "blocks": [stage.start, stage.stop],
                        }
                        for stage in pipeline.stages
                    ],
                }
                for pipeline in self.pipelines
            ]
        }

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Placement:
        """Make a placement of the tables that `to_dict` returns.

        Raises
        ------
        ValueError, TypeError
            If a table or a field is missing or invalid; the message names it.
        """
        pipelines = _table("placement", tables, ("pipelines",))["pipelines"]
        if not isinstance(pipelines, list):
            raise TypeError(f"placement: pipelines must be a list, got {pipelines!r:.60}")
        return cls(tuple(_pipeline(p, each) for p, each in enumerate(pipelines)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PlacementProblem:
    """A model, a fleet and requests: which machines form which pipelines, with which blocks.

    `hypsolve.solve` takes it. A pipeline is a sequence of stages. A stage is a group of equal
    GPUs of one machine that compute as one, and a range of blocks. GPUs of one machine may
    serve different stages and pipelines.

    Attributes
    ----------
    model : Model
    fleet : Fleet
    requests : Requests
        Lengths of the requests; arrival times do not count.
    runtime : Runtime
        Limits, memory and batching mode of the server of each pipeline. Machines that it does
        not run on are for the caller to leave out, as `hypsolve.place` does.
    objective : PlacementObjective
    requests_per_s : float or None
        The request rate to carry; required under ``cost`` and ``latency``.
    ttft_slo_s, tpot_slo_s, latency_slo_s : float or None
        Targets for the means over the requests of each pipeline, in seconds. The objective
        ``throughput`` does not read them.
    degrees : DegreeRule or None
        Degrees of tensor parallelism in a pipeline. Default: the rule of the runtime.
    max_stages : int
        Largest number of stages of a pipeline.
    cost_model : CostModel

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> problem
    <PlacementProblem llama-3-8b on lab: 34 blocks, 2 machines, 2 GPUs, 1 site, throughput>
    """

    model: Model
    fleet: Fleet
    requests: Requests
    runtime: Runtime = IDEAL
    objective: PlacementObjective = PlacementObjective.THROUGHPUT
    requests_per_s: float | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    latency_slo_s: float | None = None
    degrees: DegreeRule | None = None
    max_stages: int = MAX_STAGES
    cost_model: CostModel = CostModel.ROOFLINE

    def __post_init__(self) -> None:
        for field, kind in (
            ("model", Model),
            ("fleet", Fleet),
            ("requests", Requests),
            ("runtime", Runtime),
        ):
            valid.of_type(OWNER, field, getattr(self, field), kind)
        objective = valid.one_of(OWNER, "objective", self.objective, PlacementObjective)
        object.__setattr__(self, "objective", objective)
        degrees = DegreeRule.of(self.runtime) if self.degrees is None else self.degrees
        degrees = valid.one_of(OWNER, "degrees", degrees, DegreeRule)
        object.__setattr__(self, "degrees", degrees)
        for field in ("requests_per_s", "ttft_slo_s", "tpot_slo_s", "latency_slo_s"):
            if (value := getattr(self, field)) is not None:
                valid.real(OWNER, field, value, strict=True)
        if objective.needs_rate and self.requests_per_s is None:
            raise ValueError(
                f"{OWNER}: requests_per_s must be given under objective {objective}, got None"
            )
        if objective is PlacementObjective.GOODPUT and not self.has_targets:
            raise ValueError(
                f"{OWNER}: objective goodput needs ttft_slo_s, tpot_slo_s or latency_slo_s,"
                " got none"
            )
        valid.whole(OWNER, "max_stages", self.max_stages, minimum=1)
        for pin in self.fleet.pins:
            if pin.stop > self.model.n_blocks:
                raise ValueError(
                    f"{OWNER}: pins must lie within the {self.model.n_blocks} blocks of the"
                    f" model, got {pin.start}:{pin.stop}"
                )

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        targets = (self.ttft_slo_s, self.tpot_slo_s, self.latency_slo_s)
        return any(target is not None for target in targets)

    @property
    def name(self) -> str:
        """Name of the problem, for people."""
        return f"{self.model.name} on {self.fleet.name}"

    def __repr__(self) -> str:
        blocks = count(self.model.n_blocks, "block")
        return (
            f"<PlacementProblem {self.name}: {blocks}, {self.fleet.describe()},"
            f" {self.objective}>"
        )

    def replace(self, **changes: Any) -> PlacementProblem:
        """Return a problem with other fields."""
        return dataclasses.replace(self, **changes)

    def degrees_of(self, machine: Machine) -> tuple[int, ...]:
        """Return the degrees of tensor parallelism that a machine can have for the model.

        They are known for its interconnect, divide the heads of the model, and follow
        `DegreeRule.ONE`.

        Examples
        --------
        >>> import hypsolve as hs
        >>> nvlink = hs.interconnect("nvlink4", "h100")
        >>> box = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=8, interconnect=nvlink)
        >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
        >>> problem = hs.PlacementProblem(
        ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
        ...     fleet=hs.Fleet(
        ...         name="lab", sites=(hs.Site(name="room", link=lan),),
        ...         machines=(hs.Machine(node=box, site="room"),),
        ...     ),
        ... )
        >>> problem.degrees_of(problem.fleet.machines[0])
        (1, 2, 4, 8)
        """
        node = machine.node
        if self.degrees is DegreeRule.ONE or node.interconnect is None:
            return (1,)
        known = [1, *(d for d in node.interconnect.degrees if 1 < d <= node.gpus)]
        return tuple(degree for degree in known if _divides(self.model, degree))

    def group(self, machine: Machine, gpus: int) -> Node:
        """Return the node of some GPUs of a machine that compute as one."""
        node = machine.node
        if node.gpus == 1:
            return node
        return dataclasses.replace(
            node, host=node.host or node.name, card=None, gpus=gpus, tensor_parallel=gpus
        )

    def deployment(
        self, groups: Sequence[tuple[str, int]], requests: Requests | None = None
    ) -> Deployment:
        """Return the deployment of one pipeline: a tier with one node for each stage.

        The last link carries the whole way back: the id of a token returns directly from the
        last stage to the first.

        Parameters
        ----------
        groups : sequence of (str, int)
            Machine and number of GPUs of each stage.
        requests : Requests, optional
            Default: those of the problem.

        Raises
        ------
        ValueError
            If two stages have no link between them.
        """
        machines = [self.fleet.machine(name) for name, _ in groups]
        tiers = []
        for s, (machine, (_, gpus)) in enumerate(zip(machines, groups, strict=True)):
            node = dataclasses.replace(self.group(machine, gpus), name=f"{s}:{machine.name}")
            link = self._hop(machines, s) if s + 1 < len(groups) else None
            tiers.append(Tier(name=node.name, nodes=(node,), link=link))
        return Deployment(
            model=self.model,
            network=Network(name=self.fleet.name, tiers=tuple(tiers)),
            requests=self.requests if requests is None else requests,
            cost_model=self.cost_model,
            runtime=self.runtime,
        )

    def _hop(self, machines: Sequence[Machine], stage: int) -> Link:
        """Return the link behind a stage; the last one has the latency of the way back."""
        link = self.fleet.link(machines[stage], machines[stage + 1])
        back = self.fleet.link(machines[-1], machines[0])
        if link is None or back is None:
            names = machines[stage].name, machines[stage + 1].name
            raise ValueError(f"{OWNER}: machines {names[0]!r} and {names[1]!r} have no link")
        is_last = stage == len(machines) - 2
        return Link(
            bytes_per_s=link.bytes_per_s,
            latency_s=link.latency_s,
            return_latency_s=back.latency_s if is_last else 0.0,
        )

    def entry_s(self, first: Machine) -> float:
        """Return the mean seconds from where requests enter to the first machine and back.

        A machine is at no distance from its own site. The ids of a prompt take no time.
        """
        total = 0.0
        for site, share in self.fleet.entry.items():
            if site == first.site or share == 0:
                continue
            link = self.fleet.site_link(site, first.site)
            if link is None:
                raise ValueError(f"{OWNER}: sites {site!r} and {first.site!r} have no link")
            total += share * link.round_trip_s
        return total

    def serving_instance(self, groups: Sequence[tuple[str, int]]) -> ServingInstance:
        """Return the fluid model of one pipeline, with the targets of the problem.

        Its objective is ``goodput`` if targets count, else ``throughput``. The way from where
        requests enter is part of its `request_s`.
        """
        counts = self.has_targets and self.objective is not PlacementObjective.THROUGHPUT
        targets: dict[str, Any] = (
            {
                "ttft_slo_s": self.ttft_slo_s,
                "tpot_slo_s": self.tpot_slo_s,
                "latency_slo_s": self.latency_slo_s,
            }
            if counts
            else {}
        )
        instance = to_serving_instance(
            self.deployment(groups), objective="goodput" if counts else "throughput", **targets
        )
        entry_s = self.entry_s(self.fleet.machine(groups[0][0]))
        return instance.replace(request_s=instance.rules.request_s + entry_s)

    def digest(self) -> str:
        """Return the SHA-256 digest of the problem, in hexadecimal."""
        sha = hashlib.sha256(b"placement problem 1\n")
        sha.update(json.dumps(_plain(self), sort_keys=True, default=str).encode())
        return sha.hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it, for a digest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(each)) for key, each in value.items())
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [_plain(each) for each in (value.tolist() if hasattr(value, "tolist") else value)]


def _divides(model: Model, degree: int) -> bool:
    try:
        check_degree(model, degree)
    except ValueError:
        return False
    return True


def _table(owner: str, table: Any, fields: tuple[str, ...]) -> Mapping[str, Any]:
    """Check that a table has some fields, and no others."""
    if not isinstance(table, Mapping):
        raise TypeError(f"{owner}: must be a table, got {table!r:.60}")
    for key in table:
        valid.known(f"field of {owner}", key, fields)
    for key in fields:
        if key not in table:
            raise ValueError(f"{owner}: field {key!r} is missing")
    return table


def _pipeline(p: int, table: Any) -> Pipeline:
    owner = f"pipeline {p}"
    content = _table(owner, table, ("requests_per_s", "stages"))
    if not isinstance(content["stages"], list):
        raise TypeError(f"{owner}: stages must be a list, got {content['stages']!r:.60}")
    stages = []
    for s, each in enumerate(content["stages"]):
        fields = _table(f"{owner}: stage {s}", each, ("machine", "gpus", "blocks"))
        blocks = fields["blocks"]
        if not isinstance(blocks, list) or len(blocks) != 2:
            raise TypeError(
                f"{owner}: stage {s}: blocks must be [start, stop], got {blocks!r:.60}"
            )
        stages.append(PlacedStage(fields["machine"], fields["gpus"], blocks[0], blocks[1]))
    return Pipeline(tuple(stages), content["requests_per_s"])
