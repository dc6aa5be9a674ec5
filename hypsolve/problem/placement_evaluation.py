"""`check_placement` and `evaluate_placement`: the rules that a placement keeps, and its rate.

They use the definitions alone; the methods share no code with them. A pipeline carries what
`evaluate_serving` says of its stages, one node each. Pipelines share the links between sites
and the uplinks of machines. Every prompt token and every decode token crosses each link between
two stages of its pipeline once; the loads of the pipelines, times these bytes, must not exceed
the rate of a link in either direction. Links inside a site and inside a machine are not shared.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from hypsolve.problem.fleet import Machine
from hypsolve.problem.placement import (
    DegreeRule,
    Pipeline,
    Placement,
    PlacementObjective,
    PlacementProblem,
)
from hypsolve.problem.serving_evaluation import (
    ServedRate,
    check_serving,
    evaluate_serving,
    latencies_at,
)
from hypsolve.problem.serving_split import Latencies
from hypsolve.problem.solution import Violation

SLACK = 1e-9
"""Relative rounding that rules about rates forgive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPlacement:
    """Rates and latencies of a placement in the fluid model.

    Attributes
    ----------
    requests_per_s : float
        Load of all pipelines together. `check_placement` confirms that they carry it.
    pipelines : tuple of ServedRate
        The largest rate of each pipeline on its own, with its limit.
    latencies : tuple of Latencies or None
        Mean latencies of each pipeline at its load; None without load.
    price_per_hour : float
        Price of all machines that host a stage.
    mean_latency_s : float
        Mean over the requests of all pipelines at their loads; inf without load.
    """

    requests_per_s: float
    pipelines: tuple[ServedRate, ...]
    latencies: tuple[Latencies | None, ...]
    price_per_hour: float
    mean_latency_s: float

    def objective(self, objective: PlacementObjective) -> float:
        """Return the value of an objective: requests/s, price per hour, or seconds."""
        if objective is PlacementObjective.COST:
            return self.price_per_hour
        if objective is PlacementObjective.LATENCY:
            return self.mean_latency_s
        return self.requests_per_s


def evaluate_placement(problem: PlacementProblem, placement: Placement) -> ServedPlacement:
    """Return what a placement carries in the fluid model.

    Raises
    ------
    ValueError
        If the placement breaks a rule; see `check_placement`.
    """
    for violation in check_placement(problem, placement):
        raise ValueError(f"evaluate_placement: {violation}")
    served, latencies = [], []
    for pipeline in placement.pipelines:
        instance = problem.serving_instance(pipeline.groups)
        most = evaluate_serving(instance, pipeline.partition)
        load = min(pipeline.requests_per_s, most.fluid_requests_per_s)
        served.append(most)
        latencies.append(latencies_at(instance, pipeline.partition, load) if load else None)
    total = placement.requests_per_s
    weighted = [
        pipeline.requests_per_s * times.latency_s
        for pipeline, times in zip(placement.pipelines, latencies, strict=True)
        if times is not None
    ]
    return ServedPlacement(
        requests_per_s=total,
        pipelines=tuple(served),
        latencies=tuple(latencies),
        price_per_hour=math.fsum(
            problem.fleet.machine(name).price_per_hour for name in placement.machines
        ),
        mean_latency_s=math.fsum(weighted) / total if total else math.inf,
    )


def check_placement(problem: PlacementProblem, placement: Placement) -> list[Violation]:
    """Return the rules that a placement breaks.

    The rules are about blocks, machines, GPUs, degrees, pins, memory, loads, targets and links.
    """
    found = [
        Violation(rule, f"pipeline {p}: {text}")
        for p, pipeline in enumerate(placement.pipelines)
        for rule, text in _broken_by_pipeline(problem, pipeline)
    ]
    if found:
        return found
    found = [*_gpus(problem, placement)]
    if found:
        return found
    for p, pipeline in enumerate(placement.pipelines):
        found += _carried(problem, p, pipeline)
    found += _shared_links(problem, placement)
    rate, load = problem.requests_per_s, placement.requests_per_s
    if problem.objective.needs_rate and rate is not None and load < rate * (1 - SLACK):
        found.append(
            Violation("rate", f"the loads must add up to {rate:g} requests/s, got {load:g}")
        )
    return found


def _broken_by_pipeline(
    problem: PlacementProblem, pipeline: Pipeline
) -> Iterator[tuple[str, str]]:
    """Yield the rules that a pipeline breaks by itself, whatever its load."""
    n_blocks, fleet = problem.model.n_blocks, problem.fleet
    known = {machine.name: machine for machine in fleet.machines}
    ends = [0, *(stage.stop for stage in pipeline.stages)]
    if [*(stage.start for stage in pipeline.stages), n_blocks] != ends:
        yield "blocks", f"its stages must hold blocks 0:{n_blocks} in order, got {pipeline}"
        return
    if len(pipeline.stages) > problem.max_stages:
        yield (
            "stages",
            f"at most {problem.max_stages} stages are allowed, got {len(pipeline.stages)}",
        )
    for stage in pipeline.stages:
        if stage.machine not in known:
            yield "machine", f"machine {stage.machine!r} is not in the fleet"
            return
        degrees = problem.degrees_of(known[stage.machine])
        if stage.gpus not in degrees:
            yield (
                "degree",
                f"machine {stage.machine}: gpus must be one of"
                f" {', '.join(map(str, degrees))}, got {stage.gpus}",
            )
            return
        for pin in fleet.pins:
            overlaps = stage.start < pin.stop and pin.start < stage.stop
            if overlaps and known[stage.machine].site not in pin.sites:
                yield (
                    "pinned",
                    f"blocks {pin.start}:{pin.stop} must be at {' or '.join(pin.sites)},"
                    f" got machine {stage.machine} at {known[stage.machine].site}",
                )
    if problem.degrees is DegreeRule.COMMON and len({s.gpus for s in pipeline.stages}) > 1:
        yield "degree", f"all stages must have one degree, got {pipeline}"
    for apart in fleet.apart:
        used = {stage.machine for stage in pipeline.stages} & apart
        if len(used) > 1:
            yield "apart", f"machines {', '.join(sorted(used))} must not serve together"
    try:
        instance = problem.serving_instance(pipeline.groups)
    except ValueError as error:
        yield "link", str(error)
        return
    for violation in check_serving(instance, pipeline.partition):
        yield violation.rule, violation.message


def _gpus(problem: PlacementProblem, placement: Placement) -> Iterator[Violation]:
    """Yield machines of which more GPUs are used than they have."""
    stages = [stage for pipeline in placement.pipelines for stage in pipeline.stages]
    for name in placement.machines:
        used = sum(stage.gpus for stage in stages if stage.machine == name)
        has = problem.fleet.machine(name).node.gpus
        if used > has:
            yield Violation("gpus", f"machine {name}: {has} GPUs are there, {used} are used")


def _carried(problem: PlacementProblem, p: int, pipeline: Pipeline) -> Iterator[Violation]:
    """Yield the rule by which a pipeline does not carry its load."""
    if not pipeline.requests_per_s:
        return
    instance = problem.serving_instance(pipeline.groups)
    most = evaluate_serving(instance, pipeline.partition)
    if pipeline.requests_per_s > most.fluid_requests_per_s * (1 + SLACK):
        yield Violation(
            "load",
            f"pipeline {p}: it carries {most.fluid_requests_per_s:.6g} requests/s"
            f" ({most.limit}), got {pipeline.requests_per_s:.6g}",
        )


def shared_links(start: Machine, end: Machine) -> list[tuple[str, ...]]:
    """Return the shared links between two machines, as `link_bytes_per_request` names them."""
    if start.name == end.name:
        return []
    found: list[tuple[str, ...]] = []
    if start.site != end.site:
        found.append(("sites", start.site, end.site))
    if start.uplink is not None:
        found.append(("out", start.name))
    if end.uplink is not None:
        found.append(("in", end.name))
    return found


def link_bytes_per_request(
    problem: PlacementProblem, pipeline: Pipeline
) -> dict[tuple[str, ...], float]:
    """Return the bytes of a mean request on each shared link that a pipeline crosses.

    A shared link is a directed pair of sites, ``("sites", start, end)``, or a direction of an
    uplink, ``("out", machine)`` or ``("in", machine)``.
    """
    requests, blocks = problem.requests, problem.model.blocks
    tokens = float((requests.prompt_tokens + requests.output_tokens - 1).mean())
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for before, behind in itertools.pairwise(pipeline.stages):
        start, end = (problem.fleet.machine(stage.machine) for stage in (before, behind))
        for link in shared_links(start, end):
            found[link] += tokens * blocks[before.stop - 1].output_bytes_per_token
    return dict(found)


def link_rate(problem: PlacementProblem, link: tuple[str, ...]) -> float:
    """Return the bytes per second of a shared link, as `link_bytes_per_request` names it."""
    if link[0] == "sites":
        between = problem.fleet.site_link(link[1], link[2])
        assert between is not None  # a pipeline without a link breaks a rule before
        return between.bytes_per_s
    uplink = problem.fleet.machine(link[1]).uplink
    assert uplink is not None
    return uplink.bytes_per_s


def _shared_links(problem: PlacementProblem, placement: Placement) -> Iterator[Violation]:
    """Yield the shared links that carry more bytes per second than they can."""
    used: dict[tuple[str, ...], float] = defaultdict(float)
    for pipeline in placement.pipelines:
        for link, size in link_bytes_per_request(problem, pipeline).items():
            used[link] += pipeline.requests_per_s * size
    for link, bytes_per_s in used.items():
        most = link_rate(problem, link)
        if bytes_per_s > most * (1 + SLACK):
            yield Violation(
                "link",
                f"link {' '.join(link)}: it carries {most:.4g} bytes/s, {bytes_per_s:.4g} are"
                " sent",
            )
