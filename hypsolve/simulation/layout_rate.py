"""`layout_rate`: requests per second that a layout serves in simulation, near steady state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Requests
from hypsolve.problem.layer_layout import LayerLayout
from hypsolve.problem.placement import PlacementProblem
from hypsolve.simulation.layout_trace import LayoutTrace
from hypsolve.simulation.simulate_layout import simulate_layout

OWNER = "layout_rate"
ROUNDS = 20  # requests of a simulation, over those that are under way at once
MIN_REQUESTS = 100
N_PILOT = 400  # requests that arrive at once, to see how many are under way
HEADROOM = 1.1  # first load, over the rate at which requests that arrive at once are served
STEP = 0.9  # from one load to the next
KEEPS_UP = 1 / (1 + 1 / ROUNDS)  # of the load: filling and draining take the rest
MAX_VISITS = 30_000_000
"""Default of the visits of a simulation, where a visit is a token at a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRate:
    """A simulated rate of a layout, and how it was found.

    Attributes
    ----------
    requests_per_s : float
        Requests over the seconds from the first arrival to the last delivery: the largest of
        all loads that were tried. Filling and draining count.
    output_tokens_per_s : float
    n_requests : int
        Requests of a simulation.
    n_under_way : int
        The most that had KV cache at once when all arrived at once.
    is_short : bool
        Whether fewer than `ROUNDS` times `n_under_way` requests were simulated, so that the
        layout may serve clearly more.
    trace : LayoutTrace
        The simulation with this rate.
    """

    requests_per_s: float
    output_tokens_per_s: float
    n_requests: int
    n_under_way: int
    is_short: bool
    trace: LayoutTrace


def layout_rate(
    problem: PlacementProblem,
    layout: LayerLayout,
    *,
    max_visits: int = MAX_VISITS,
    n_requests: int | None = None,
    **options: Any,
) -> LayoutRate:
    """Simulate a layout at its limit, and return the largest rate that it serves.

    The requests of the problem come over and over. First all arrive at once, so that the KV
    cache is always full. Then they arrive evenly, at `HEADROOM` times the rate that was served
    so, and at larger loads as long as they are served as fast as they arrive. Loads below the
    first one follow in steps of `STEP`, down to the largest rate so far: too many requests at
    once can serve a layout ill, for batches of its nodes bunch in waves.

    Parameters
    ----------
    problem : PlacementProblem
        Its requests, model, fleet and runtime; arrival times do not count.
    layout : LayerLayout
    max_visits : int
        Largest number of visits of a simulation; fewer requests are simulated where it binds.
    n_requests : int, optional
        Requests of a simulation. Default: `ROUNDS` times those that are under way at once.
    **options
        Options of `simulate_layout`.

    Raises
    ------
    ValueError, TypeError
        As `simulate_layout`, or if a number is not positive.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from hypsolve.problem.layer_layout import HostedRange, LayerLayout
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> box = hs.Node(name="box", gpu=hs.gpu("a100-80gb"))
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [32]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=(hs.Machine(node=box, site="room"),),
    ...     ),
    ... )
    >>> layout = LayerLayout(
    ...     (HostedRange("box", 0, 34),), ((None, "box", 1.0), ("box", None, 1.0))
    ... )
    >>> rate = layout_rate(problem, layout, n_requests=2000)
    >>> 0 < rate.requests_per_s < 100, rate.is_short
    (True, True)
    """
    max_visits = valid.whole(OWNER, "max_visits", max_visits, minimum=1)

    def served(n: int, load: float = math.inf) -> LayoutTrace:
        requests = _evenly(problem.requests, n, load)
        return simulate_layout(problem, layout, requests, **options)

    pilot = served(N_PILOT)
    if n_requests is None:
        while 2 * pilot.most_under_way > len(pilot.end_s) and pilot.n_visits < max_visits / 4:
            pilot = served(4 * len(pilot.end_s))
        most = int(max_visits * len(pilot.end_s) / pilot.n_visits)
        n = max(min(ROUNDS * pilot.most_under_way, most), MIN_REQUESTS)
    else:
        n = valid.whole(OWNER, "n_requests", n_requests, minimum=1)
    at_once = served(n)
    best, load = at_once, HEADROOM * at_once.requests_per_s
    trace = served(n, load)
    while trace.requests_per_s >= KEEPS_UP * load:
        best, load = max(best, trace, key=_rate), HEADROOM * load
        trace = served(n, load)
    best = max(best, trace, key=_rate)
    load = STEP * HEADROOM * at_once.requests_per_s
    while load > best.requests_per_s:
        best = max(best, served(n, load), key=_rate)
        load *= STEP
    return LayoutRate(
        requests_per_s=best.requests_per_s,
        output_tokens_per_s=best.output_tokens_per_s,
        n_requests=n,
        n_under_way=at_once.most_under_way,
        is_short=n < ROUNDS * at_once.most_under_way,
        trace=best,
    )


def _rate(trace: LayoutTrace) -> float:
    return trace.requests_per_s


def _evenly(given: Requests, n: int, load: float) -> Requests:
    """Return n of the given requests, over and over, that arrive evenly; inf: at once."""
    rows = np.arange(n) % len(given)
    arrival_s = np.arange(n) / load
    return Requests(arrival_s, given.prompt_tokens[rows], given.output_tokens[rows])
