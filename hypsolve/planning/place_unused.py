"""`unused_machines`: which machines a placement leaves out, and why.

A reason is found by trying: one machine of each kind is put into every pipeline, at every place
and with every degree, and the best split with it is found in the fluid model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.placement_records import (
    BETTER,
    JOINS_LESS,
    JOINS_MORE,
    NO_PIPELINE,
    NO_ROOM,
    NOT_NEEDED,
    RUNTIME,
    UNKNOWN,
    UnusedMachine,
)
from hypsolve.problem.fleet import Machine
from hypsolve.problem.placement import (
    DegreeRule,
    Pipeline,
    Placement,
    PlacementObjective,
    PlacementProblem,
)
from hypsolve.problem.placement_evaluation import ServedPlacement
from hypsolve.problem.units import show_bytes
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement.values import best_split

NOTHING = 1e-6  # share of a rate that counts as no gain
Groups = tuple[tuple[str, int], ...]


def unused_machines(
    query: PlaceQuery,
    problem: PlacementProblem,
    placement: Placement,
    served: ServedPlacement,
    deadline: Deadline,
) -> tuple[UnusedMachine, ...]:
    """Return the machines that a placement leaves out, equal ones together, and why.

    Parameters
    ----------
    query : PlaceQuery
    problem : PlacementProblem
    placement : Placement
    served : ServedPlacement
        Its rates in the fluid model.
    deadline : Deadline
        When it has passed, no further pipeline is tried.
    """
    found = [
        UnusedMachine(machines=(name,), why=RUNTIME, reason=reason)
        for name, reason in query.left_out.items()
    ]
    used = set(placement.machines)
    kinds: dict[tuple[object, ...], list[Machine]] = {}
    for machine in problem.fleet.machines:
        if machine.name not in used:
            kinds.setdefault(machine.kind, []).append(machine)
    for alike in kinds.values():
        found.append(_reason(problem, placement, served, alike, deadline))
    return tuple(_merged(found))


def _merged(found: Sequence[UnusedMachine]) -> Iterator[UnusedMachine]:
    """Yield records of machines; those with one reason become one record."""
    by_reason: dict[tuple[str, str], list[UnusedMachine]] = {}
    for each in found:
        by_reason.setdefault((each.why, each.reason), []).append(each)
    for alike in by_reason.values():
        names = tuple(name for each in alike for name in each.machines)
        yield replace(alike[0], machines=names)


def _reason(
    problem: PlacementProblem,
    placement: Placement,
    served: ServedPlacement,
    alike: Sequence[Machine],
    deadline: Deadline,
) -> UnusedMachine:
    machine, names = alike[0], tuple(each.name for each in alike)
    if lacks := _lacks_room(problem, machine):
        return UnusedMachine(machines=names, why=NO_ROOM, reason=lacks)
    if problem.objective is PlacementObjective.COST:
        return UnusedMachine(
            machines=names, why=NOT_NEEDED, reason="the load is served without it"
        )
    if problem.objective is PlacementObjective.LATENCY:
        return UnusedMachine(
            machines=names, why=NOT_NEEDED, reason="no lower mean latency was found with it"
        )
    best: tuple[float, float, int, Groups] | None = None  # gain, rate, pipeline, groups
    was_tried = False
    for p, groups in _joined(problem, placement, machine):
        if deadline.has_passed():
            break
        was_tried = True
        split = best_split(problem, groups, time_limit_s=max(deadline.left_s(), 0.01))
        if split is None:
            continue
        before = served.pipelines[p].fluid_requests_per_s
        gain = split.requests_per_s - before
        if best is None or gain > best[0]:
            best = gain, split.requests_per_s, p, groups
    if best is None and not was_tried and deadline.has_passed():
        why, reason = UNKNOWN, "not tried in time"
        return UnusedMachine(machines=names, why=why, reason=reason)
    if best is None:
        return UnusedMachine(
            machines=names,
            why=NO_PIPELINE,
            reason=_no_pipeline(problem, placement, machine, was_tried=was_tried),
        )
    return _of_gain(names, placement, served, best)


def _of_gain(
    names: tuple[str, ...],
    placement: Placement,
    served: ServedPlacement,
    best: tuple[float, float, int, Groups],
) -> UnusedMachine:
    gain, rate, p, groups = best
    before = served.pipelines[p]
    row = " -> ".join(name for name, _ in groups)
    limit = words_of_limit(before.limit)
    if gain > NOTHING * before.fluid_requests_per_s:
        why = JOINS_MORE
        reason = (
            f"as {row}, pipeline {p + 1} gains {gain:.3g} requests/s in the fluid model; of the"
            " placements that were simulated, this one serves most"
        )
    elif gain > -NOTHING * before.fluid_requests_per_s:
        why = BETTER
        reason = f"pipeline {p + 1} gains nothing by it: {limit} limits it"
    else:
        why = JOINS_LESS
        reason = (
            f"no pipeline gains by it: the best, {row}, would serve {rate:.3g} requests/s in"
            f" place of {before.fluid_requests_per_s:.3g} in the fluid model"
        )
    return UnusedMachine(machines=names, why=why, reason=reason, gain_per_s=gain)


def _joined(
    problem: PlacementProblem, placement: Placement, machine: Machine
) -> Iterator[tuple[int, Groups]]:
    """Yield pipelines with a stage on a machine more, by the number of the pipeline."""
    seen: set[object] = set()
    for p, pipeline in enumerate(placement.pipelines):
        kinds = tuple(
            (problem.fleet.machine(name).kind, gpus) for name, gpus in pipeline.groups
        )
        if kinds in seen or len(pipeline.stages) >= problem.max_stages:
            continue
        seen.add(kinds)
        for degree in problem.degrees_of(machine):
            if not _may_join(problem, pipeline, machine, degree):
                continue
            for at in range(len(pipeline.stages) + 1):
                groups = pipeline.groups
                yield p, (*groups[:at], (machine.name, degree), *groups[at:])


def _may_join(
    problem: PlacementProblem, pipeline: Pipeline, machine: Machine, degree: int
) -> bool:
    degrees = {stage.gpus for stage in pipeline.stages}
    if problem.degrees is DegreeRule.COMMON and degrees != {degree}:
        return False
    names = {stage.machine for stage in pipeline.stages}
    return not any(machine.name in apart and names & apart for apart in problem.fleet.apart)


def _no_pipeline(
    problem: PlacementProblem, placement: Placement, machine: Machine, *, was_tried: bool
) -> str:
    """Say why no pipeline can take a machine in."""
    degrees = {stage.gpus for pipeline in placement.pipelines for stage in pipeline.stages}
    own, why = set(problem.degrees_of(machine)), "none has a stage to spare or a link to it"
    longest = min(len(pipeline.stages) for pipeline in placement.pipelines)
    apart = {name for each in problem.fleet.apart if machine.name in each for name in each}
    if was_tried:
        why = "with a stage there, no split fits or carries anything"
    elif longest >= problem.max_stages:
        why = f"all have {problem.max_stages} stages already, the most that are allowed"
    elif set(placement.machines) <= apart:
        why = "it must not be in a pipeline with their machines"
    elif problem.degrees is DegreeRule.COMMON and not own & degrees:
        why = (
            f"stages of {problem.runtime.name} have one degree of tensor parallelism,"
            f" {_degrees(degrees)} there and {_degrees(own)} here"
        )
    left = [m for m in problem.fleet.machines if m.name not in placement.machines]
    held = problem.model.stage_weight_bytes(problem.model.blocks)
    usable = math.fsum(usable_bytes(problem, each) for each in left)
    together = (
        f"all that are left out have {usable / 1e9:.0f} GB beside the runtime, for weights of"
        f" {held / 1e9:.0f} GB"
    )
    if usable >= held:
        together = "no pipeline of those left out was found"
    return f"no pipeline can take it in ({why}), and {together}"


def _degrees(degrees: set[int]) -> str:
    return " or ".join(map(str, sorted(degrees)))


def usable_bytes(problem: PlacementProblem, machine: Machine) -> float:
    """Return the memory for weights and KV cache of all GPUs of a machine."""
    deployment = problem.deployment(((machine.name, 1),))
    node = deployment.network.tiers[0].nodes[0]
    return machine.node.gpus * max(deployment.usable_bytes(node), 0.0)


def _lacks_room(problem: PlacementProblem, machine: Machine) -> str:
    """Say that a machine cannot hold a layer beside the runtime; empty if it can."""
    requests = problem.requests
    mean = float((requests.prompt_tokens + requests.output_tokens).mean())
    tokens = problem.runtime.held_tokens(math.ceil(mean))
    most_room, least_need = -math.inf, math.inf
    for degree in problem.degrees_of(machine):
        deployment = problem.deployment(((machine.name, degree),))
        node = deployment.network.tiers[0].nodes[0]
        layers = [block for block in problem.model.blocks if block.kv_bytes_per_token > 0]
        layer = min(layers or problem.model.blocks, key=lambda block: block.weight_bytes)
        need = problem.model.stage_weight_bytes([layer])
        need += deployment.kv_bytes_per_token([layer], node) * tokens
        room = deployment.usable_bytes(node)
        if room >= need:
            return ""
        most_room, least_need = max(most_room, room), min(least_need, need)
    return (
        f"too little memory for any stage: {show_bytes(max(most_room, 0.0))} are left beside"
        " the runtime, and one layer with the KV cache of one request takes"
        f" {show_bytes(least_need)}"
    )


def words_of_limit(limit: str) -> str:
    """Return a limit of the fluid model in a few words.

    Examples
    --------
    >>> words_of_limit("no batch is large enough: KV cache")
    'KV memory'
    """
    short = limit.removeprefix("no batch is large enough: ")
    words = {
        "KV cache": "KV memory",
        "the target for the time per output token": "the TPOT target",
        "the target for the time to first token": "the TTFT target",
    }
    return words.get(short, short)
