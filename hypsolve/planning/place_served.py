"""`pipelines_of` and `throughput_of`: what a placement serves, as records of its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hypsolve.planning.place_simulation import (
    Candidate,
    PlacementRate,
    PlacementSimulator,
)
from hypsolve.planning.place_unused import usable_bytes, words_of_limit
from hypsolve.planning.placement_records import (
    PlaceAnswer,
    PlacedPipeline,
    PlacedThroughput,
    SimulatedPlacement,
)
from hypsolve.planning.saturation import MET
from hypsolve.planning.throughput import QUEUES_FULL
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.serving_evaluation import latencies_at
from hypsolve.simulation.metrics import Summary


def throughput_of(
    simulator: PlacementSimulator,
    result: PlacementResult,
    found: Sequence[tuple[Candidate, PlacementRate]],
    answer: PlaceAnswer | None,
    bound_per_s: float,
) -> PlacedThroughput:
    """Return the rate of the best simulated placement beside bounds and other placements.

    Parameters
    ----------
    simulator : PlacementSimulator
    result : PlacementResult
        Of the method in the fluid model.
    found : sequence of (Candidate, PlacementRate)
        All that were simulated, the best first.
    answer : PlaceAnswer or None
        What that serves behind its router.
    bound_per_s : float
        A bound on all placements and schedules.
    """
    query, (best, rate) = simulator.query, found[0]
    total = _total(simulator, rate, answer)
    bounds: dict[object, float] = {}
    for pipeline in best.placement.pipelines:
        key = simulator.key(pipeline)
        if key not in bounds:
            bounds[key] = simulator.bound(pipeline)
    own = math.fsum(bounds[simulator.key(each)] for each in best.placement.pipelines)
    quantity, is_lower_bound = QUEUES_FULL, rate.is_lower_bound
    if simulator.has_goal:
        quantity = f"requests/s of {query.load.arrivals} with {MET:.0%} within the targets"
        if answer is not None and total == answer.max_requests_per_s:
            is_lower_bound = answer.max_rate_is_lower_bound
    fluid_bound = math.nan if result.fluid_bound is None else result.fluid_bound
    return PlacedThroughput(
        objective=query.objective,
        simulated_requests_per_s=total,
        quantity=quantity,
        n_requests=rate.n_requests,
        is_lower_bound=is_lower_bound,
        fluid_requests_per_s=best.served.requests_per_s,
        fluid_bound=fluid_bound,
        fluid_gap=math.nan if math.isnan(fluid_bound) else result.fluid_gap,
        bound_requests_per_s=bound_per_s,
        gap=1 - total / bound_per_s if 0 < bound_per_s < math.inf else math.nan,
        pipelines_bound_requests_per_s=own,
        placements=tuple(
            SimulatedPlacement(
                origin=each.origin,
                placement=each.placement,
                fluid_requests_per_s=each.served.requests_per_s,
                simulated_requests_per_s=of_each.requests_per_s,
            )
            for each, of_each in found
        ),
    )


def pipelines_of(
    simulator: PlacementSimulator,
    best: Candidate,
    rate: PlacementRate,
    answer: PlaceAnswer | None,
) -> Iterator[PlacedPipeline]:
    """Yield the pipelines of a placement with what they serve.

    Parameters
    ----------
    simulator : PlacementSimulator
    best : Candidate
    rate : PlacementRate
        What its pipelines serve.
    answer : PlaceAnswer or None
        What they serve behind the router.
    """
    problem, times_of = simulator.problem, _times_of(rate, answer)
    load_per_s = rate.requests_per_s if answer is None else answer.served_per_s
    total = _total(simulator, rate, answer)
    known: dict[object, tuple[int, float]] = {}
    for pipeline, fluid, own, share, (ttft_s, tpot_s) in zip(
        best.placement.pipelines,
        best.served.pipelines,
        rate.of_pipelines,
        rate.shares(),
        times_of,
        strict=True,
    ):
        key = simulator.key(pipeline)
        if key not in known:
            known[key] = simulator.room(pipeline).sequences, simulator.bound(pipeline)
        load = min(share * load_per_s, fluid.fluid_requests_per_s)
        times = None
        if load > 0:
            instance = problem.serving_instance(pipeline.groups)
            times = latencies_at(instance, pipeline.partition, load)
        yield PlacedPipeline(
            stages=pipeline.stages,
            requests_per_s=own * total / rate.requests_per_s if rate.requests_per_s else own,
            share=share,
            fluid_requests_per_s=fluid.fluid_requests_per_s,
            limit=words_of_limit(fluid.limit),
            fluid_ttft_s=math.nan if times is None else times.ttft_s,
            fluid_tpot_s=math.nan if times is None else times.tpot_s,
            load_per_s=load,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            max_sequences=known[key][0],
            bound_requests_per_s=known[key][1],
        )


def _times_of(
    rate: PlacementRate, answer: PlaceAnswer | None
) -> Sequence[tuple[Summary | None, Summary | None]]:
    """Return TTFT and TPOT of the requests of each pipeline, if they were simulated."""
    return [(None, None)] * len(rate.of_pipelines) if answer is None else answer.of_pipelines


def _total(
    simulator: PlacementSimulator, rate: PlacementRate, answer: PlaceAnswer | None
) -> float:
    """Return the rate of all pipelines: within targets that behind the router, if known.

    Each pipeline alone gets Poisson arrivals; behind the router, whose turns are regular, the
    arrivals of a pipeline vary less.
    """
    if simulator.has_goal and answer is not None and answer.max_requests_per_s > 0:
        return answer.max_requests_per_s
    return rate.requests_per_s


def reasons_of(result: PlacementResult) -> Iterator[str]:
    """Yield why there is no placement."""
    problem = result.problem
    yield result.message or "no placement was found"
    held = problem.model.stage_weight_bytes(problem.model.blocks)
    usable = math.fsum(usable_bytes(problem, each) for each in problem.fleet.machines)
    yield (
        f"the weights take {held / 1e9:.1f} GB, and all machines together have"
        f" {usable / 1e9:.1f} GB beside the runtime"
    )
