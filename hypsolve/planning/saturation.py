"""`saturated_rate` and `rate_within_targets`: the largest rates that a simulation serves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning import sustained_rate
from hypsolve.planning.forecast import serve_load
from hypsolve.planning.load import (
    Load,
    after_start,
    at_rate_of,
    evenly,
    in_whole_rounds,
    max_requests,
    serve,
    within_targets,
)
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import NEVER, Deadline

OVERLOAD = 1.05  # of the bound: every queue fills
HEADROOM = 1.1  # of the rate that was served then
OVERLOAD_COSTS = 1.02  # times the rate under overload: from there, overload lowers the rate
N_CLIMBS = 4  # loads that are tried then, between the rate that was served and the bound
NEARLY = 0.99  # of the bound: another load cannot show clearly more
SETTLES = 0.15  # of the share that fill and drain may take: a longer simulation serves more
ROUNDS = 20  # requests simulated to rank splits, over the number that can be under way at once
PRINTED_ROUNDS = 50  # likewise for a printed rate: fill and drain take 2 % of it at most
MIN_REQUESTS = 100
LONG = 4000  # requests that tell whether a rate is served within targets, at least
N_BISECTIONS = 7  # a rate within targets is found to 1/128 of the largest rate
RAISED, MAX_RAISED = 0.04, 8  # steps by which it is raised while it is confirmed
MET = 0.95  # share of the requests that must meet the targets


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRate:
    """A rate that a simulation served, and over how many requests.

    Attributes
    ----------
    requests_per_s : float
        Requests over the seconds from the first arrival to the last completion. Of a rate
        within targets: the largest rate of Poisson arrivals at which 95 % of the requests meet
        every target; 0 if there is none.
    n_requests : int
        Requests of the simulation.
    is_lower_bound : bool
        Whether the split may serve clearly more: because fewer than `PRINTED_ROUNDS` times the
        requests that can be under way at once were simulated, or because the search for the
        largest rate was cut short.
    slo_attainment : float
        Share of the requests of users that are within the targets; nan without both.
    within_targets_per_s : float
        Largest rate of Poisson arrivals within the targets; nan if it was not looked for.
    stretch : float
        Of users with targets: see `stretch_of`; else nan.
    is_confirmed : bool
        False: the rate within targets was only found in short simulations. Queues may build up
        at it, so the rate that is served for long may be smaller; see `confirmed_rate`.
    """

    requests_per_s: float
    n_requests: int
    is_lower_bound: bool = False
    slo_attainment: float = math.nan
    within_targets_per_s: float = math.nan
    stretch: float = math.nan
    is_confirmed: bool = True


def saturated_rate(
    deployment: Deployment,
    partition: Partition,
    bound_per_s: float,
    n_requests: int,
    *,
    under_way: int = 0,
    known: SimulatedRate | None = None,
    is_quick: bool = False,
) -> SimulatedRate:
    """Simulate a split at its limit, and return what it serves.

    Requests arrive evenly, first at `OVERLOAD` times a bound on the rate, so that queues never
    empty. Batches may then bunch in waves, so they arrive again at `HEADROOM` times the rate
    that was served, or at the bound if that is less; the larger rate counts. Splits that serve
    `NEARLY` the bound are not simulated again. Where batches pass whole pipelines and the
    second rate is clearly larger, overload costs: a queue for KV cache preempts requests, and a
    dispatcher that sends every request on as it arrives leaves a long queue at the slowest
    server. Then loads between this rate and the bound are tried, too, by bisection. The seconds
    in which the first requests fill the pipeline and the last ones leave it count, so the rate
    is below the one that is sustained, and never exceeds a valid bound. With n requests, of
    which w are under way at once, the difference is about w / n of it.

    Parameters
    ----------
    deployment : Deployment
        Its requests come over and over.
    partition : Partition
    bound_per_s : float
        Finite upper bound on the rate.
    n_requests : int
        It is raised to a multiple of the requests of the deployment, for which the bound holds.
    under_way : int
        Requests that can be under way at once.
    known : SimulatedRate, optional
        A rate that was simulated with fewer requests. The first simulation is then left out,
        unless the second one serves hardly more than is known.
    is_quick : bool
        Whether the second simulation is left out, to rank splits. It is made where batches pass
        whole pipelines, for overload may cost one split more than another.
    """
    n_requests = in_whole_rounds(deployment, n_requests)

    def served(offered_per_s: float) -> float:
        trace = serve(evenly(deployment, offered_per_s, n_requests), partition)
        took_s = float(trace.end_s.max() - trace.arrival_s.min())
        return n_requests / took_s if took_s else math.inf

    is_short = n_requests < PRINTED_ROUNDS * under_way
    in_pipelines = deployment.runtime.batching is not Batching.STAGE
    if known is None:
        rate = served(OVERLOAD * bound_per_s)
        if rate < NEARLY * bound_per_s and (in_pipelines or not is_quick):
            again = served(min(HEADROOM * rate, bound_per_s))
            if in_pipelines and again > OVERLOAD_COSTS * rate:
                again = _climb(served, again, bound_per_s)
            rate = max(rate, again)
    else:
        sustained = known.requests_per_s * (1 + under_way / known.n_requests)
        rate = served(min(OVERLOAD * bound_per_s, HEADROOM * sustained))
        if rate <= known.requests_per_s * (1 + SETTLES * under_way / known.n_requests):
            rate = max(
                rate, served(min(HEADROOM * max(rate, known.requests_per_s), bound_per_s))
            )
        if rate <= known.requests_per_s:
            return replace(known, is_lower_bound=is_short)
    return SimulatedRate(requests_per_s=rate, n_requests=n_requests, is_lower_bound=is_short)


def _climb(served: Callable[[float], float], rate: float, bound_per_s: float) -> float:
    """Return the largest rate that is served under loads from a rate to a bound.

    The queue hardly grows under a load that is nearly served; larger loads are then tried.
    """
    low, high = rate, bound_per_s
    for _ in range(N_CLIMBS):
        offered = math.sqrt(low * high)
        found = served(offered)
        rate = max(rate, found)
        low, high = (offered, high) if found >= offered / HEADROOM else (low, offered)
    return rate


def rate_of_users(deployment: Deployment, partition: Partition, load: Load) -> SimulatedRate:
    """Simulate users in a closed loop, and return the rate that they get.

    The last think time counts, as in the bound: a user's request and its pause are one round.
    With targets, only requests within them count.
    """
    trace = serve_load(deployment, partition, load)
    took_s = float(trace.end_s.max() - trace.arrival_s.min()) + load.think_time_s
    n = len(trace.end_s)
    found = trace.metrics(ttft_slo_s=load.ttft_slo_s, tpot_slo_s=load.tpot_slo_s)
    no_targets = math.isnan(found.slo_attainment)
    share = 1.0 if no_targets else found.slo_attainment
    return SimulatedRate(
        requests_per_s=share * n / took_s if took_s else math.inf,
        n_requests=n,
        slo_attainment=math.nan if no_targets else attained_by_users(trace, load),
        stretch=stretch_of(trace, load),
    )


def enough_requests(
    under_way: int, deployment: Deployment, max_visits: float, share: float = 1.0
) -> int:
    """Return how many requests a simulation needs: `ROUNDS` times those under way.

    At most as many as make `max_visits`, where a visit is a token at a stage; and of these
    only a share, to rank splits.
    """
    most = min(ROUNDS * under_way, max_requests(deployment, max_visits))
    return max(MIN_REQUESTS, int(share * most))


def long_requests(under_way: int, deployment: Deployment, load: Load) -> int:
    """Return how many requests tell whether a rate is served within targets.

    They are all requests of a trace, at least. At most as many as make the `max_visits` of the
    load, where a visit is a token at a stage.
    """
    most = max_requests(deployment, load.max_visits)
    n_trace = 0 if load.trace is None else len(load.trace)
    return max(MIN_REQUESTS, min(max(PRINTED_ROUNDS * under_way, LONG, n_trace), most))


def rate_within_targets(
    deployment: Deployment,
    partition: Partition,
    load: Load,
    largest_per_s: float,
    n_requests: int,
    deadline: Deadline = NEVER,
    *,
    least_per_s: float = 0.0,
) -> SimulatedRate:
    """Return the largest rate at which 95 % of the simulated requests meet the targets.

    Requests arrive in a Poisson process of the seed of `load`, or as in its trace; the same
    arrivals are scaled to each rate. The rate is found by bisection, since latencies grow with
    it. It is not confirmed; see `confirmed_rate`.

    Parameters
    ----------
    deployment : Deployment
    partition : Partition
    load : Load
        Its targets and its seed.
    largest_per_s : float
        Rate beyond which none is looked for.
    n_requests : int
        Requests of each simulation.
    deadline : Deadline, optional
        When it has passed, the largest rate so far is returned.
    least_per_s : float
        Rate below which none is looked for. If the targets are missed at it, the rate is nan.
    """

    def is_met(rate_per_s: float) -> bool:
        return attainment(deployment, partition, load, rate_per_s, n_requests) >= MET

    low, high = 0.0, largest_per_s
    if least_per_s > 0:
        if least_per_s >= high or not is_met(least_per_s):
            return SimulatedRate(
                requests_per_s=math.nan, n_requests=n_requests, is_confirmed=False
            )
        low = least_per_s
    elif is_met(high):
        return _within(high, n_requests, is_confirmed=False)
    is_cut_short, finest = False, largest_per_s * 2.0**-N_BISECTIONS
    while high - low > finest and not (is_cut_short := deadline.has_passed()):
        rate_per_s = (low + high) / 2
        low, high = (rate_per_s, high) if is_met(rate_per_s) else (low, rate_per_s)
    if is_cut_short and low == 0:  # that there is none was not found
        low = math.nan
    return _within(low, n_requests, is_cut_short, is_confirmed=False)


def _within(
    rate_per_s: float, n_requests: int, is_cut_short: bool = False, *, is_confirmed: bool = True
) -> SimulatedRate:
    return SimulatedRate(
        requests_per_s=rate_per_s,
        n_requests=n_requests,
        is_lower_bound=is_cut_short,
        within_targets_per_s=rate_per_s,
        is_confirmed=is_confirmed,
    )


def confirmed_rate(
    deployment: Deployment,
    partition: Partition,
    load: Load,
    known: SimulatedRate,
    n_requests: int,
    deadline: Deadline = NEVER,
    *,
    largest_per_s: float = math.inf,
) -> SimulatedRate:
    """Return a rate within targets that a longer simulation confirms; see `is_served`.

    Near the rate that a split can sustain, queues build up so slowly that the requests of a
    short simulation are served in time, and those of a longer one are not. The rate is lowered
    in steps of 2, 4, 8, ... % until it is confirmed, and then found by bisection to
    `sustained_rate.CONFIRMED_TO`. If it is confirmed at once, it is raised in steps of 4 % as
    long as that is confirmed, too.

    Parameters
    ----------
    deployment, partition, load
        As in `rate_within_targets`.
    known : SimulatedRate
        The rate that a shorter simulation found.
    n_requests : int
        Requests of the longer one.
    deadline : Deadline, optional
        When it has passed, no further rate is tried: the last one is returned. If none was
        confirmed by then, its `is_confirmed` is False.
    largest_per_s : float
        Rate beyond which none is looked for.
    """

    def is_confirmed(rate_per_s: float) -> bool:
        trace = serve_at_rate(deployment, partition, load, rate_per_s, n_requests)
        return is_served(trace, load) and drains(deployment, partition, load, trace)

    if not known.requests_per_s > 0:
        return replace(known, is_confirmed=True)  # nothing is claimed that could fail
    refused_per_s = math.inf
    for rate_per_s in sustained_rate.lowered(known.requests_per_s):
        if deadline.has_passed():
            return _within(rate_per_s, known.n_requests, is_cut_short=True, is_confirmed=False)
        if is_confirmed(rate_per_s):
            break
        refused_per_s = rate_per_s
    else:
        return _within(0.0, n_requests)
    if math.isfinite(refused_per_s):
        rate_per_s, is_cut_short = sustained_rate.raised(
            rate_per_s, refused_per_s, is_confirmed, deadline
        )
        return _within(rate_per_s, n_requests, is_cut_short)
    is_cut_short = False
    for _ in range(MAX_RAISED):
        higher = min(rate_per_s * (1 + RAISED), largest_per_s)
        is_cut_short = deadline.has_passed()
        if is_cut_short or higher <= rate_per_s or not is_confirmed(higher):
            break
        rate_per_s = higher
    return _within(rate_per_s, n_requests, known.is_lower_bound and is_cut_short)


def is_served(trace: Trace, load: Load) -> bool:
    """Return whether a load is served within its targets, and goes on to be.

    95 % of the requests meet the targets: of all, and of the later half, where a queue that
    grows slowly shows. Requests also end at the rate at which they arrive: under a loose
    target, a longer simulation would miss it.
    """
    return attained(trace, load)[0] >= MET and is_steady(trace)


def drains(deployment: Deployment, partition: Partition, load: Load, trace: Trace) -> bool:
    """Return whether a queue surely drains at the rate of a simulation.

    See `hypsolve.planning.sustained_rate.drains_queue`. Users in a closed loop leave no queue.
    """
    span_s = float(np.ptp(trace.arrival_s))
    if load.users is not None or span_s == 0:
        return True
    rate_per_s = (len(trace.arrival_s) - 1) / span_s
    found = sustained_rate.drains_queue(deployment, partition, rate_per_s, seed=load.seed + 1)
    return found is True


def is_steady(trace: Trace) -> bool:
    """Return whether a load is sustained, as far as the length of a simulation tells.

    See `hypsolve.planning.sustained_rate`.
    """
    return sustained_rate.is_steady(trace) is not False


def attained(trace: Trace, load: Load) -> tuple[float, bool]:
    """Return the share of the requests within the targets, of all or of the later half.

    The smaller share counts, of Poisson arrivals; the second value says whether it is that of
    the later half. Users in a closed loop build up no queue, so all of their requests count but
    the first one of each; see `after_start`.
    """
    if trace.users is not None:
        return attained_by_users(trace, load), False
    is_within = requests_within(trace, load)
    of_all = float(is_within.mean())
    later = float(is_within[len(is_within) // 2 :].mean())
    return min(of_all, later), later < of_all and later < MET <= of_all


def attained_by_users(trace: Trace, load: Load) -> float:
    """Return the share of the requests of users after their start that are within targets.

    See `after_start`.
    """
    return float(within_targets(trace, load)[after_start(trace)].mean())


def stretch_of(trace: Trace, load: Load) -> float:
    """Return the factor on the targets of a load at which a simulation would meet them.

    95 % of the requests, as `attained` counts them, are within the targets times this factor.
    It is at most 1 where the targets are met, up to rounding; nan without targets.
    """
    targets = ((trace.ttft_s, load.ttft_slo_s), (trace.tpot_s, load.tpot_slo_s))
    factors = [times_s / limit_s for times_s, limit_s in targets if limit_s is not None]
    if not factors:
        return math.nan
    worst = np.fmax.reduce(factors)  # a request of one token has no TPOT
    worst = np.where(np.isfinite(trace.end_s), np.nan_to_num(worst, nan=0.0), math.inf)
    parts = [worst[after_start(trace)]]
    if trace.users is None:
        worst = worst[np.argsort(trace.arrival_s, kind="stable")]
        parts = [worst, worst[len(worst) // 2 :]]
    return max(float(np.sort(part)[math.ceil(MET * len(part)) - 1]) for part in parts)


def requests_within(trace: Trace, load: Load) -> NDArray[np.bool_]:
    """Return which requests of a trace meet the targets of a load, by arrival."""
    return within_targets(trace, load)[np.argsort(trace.arrival_s, kind="stable")]


def attainment(
    deployment: Deployment, partition: Partition, load: Load, rate_per_s: float, n_requests: int
) -> float:
    """Return the share of the requests, at a rate, that meet a load's targets."""
    trace = serve_at_rate(deployment, partition, load, rate_per_s, n_requests)
    return trace.metrics(ttft_slo_s=load.ttft_slo_s, tpot_slo_s=load.tpot_slo_s).slo_attainment


def serve_at_rate(
    deployment: Deployment, partition: Partition, load: Load, rate_per_s: float, n_requests: int
) -> Trace:
    """Simulate Poisson arrivals at a rate, with the seed of a load, or those of its trace."""
    return serve(at_rate_of(deployment, load, rate_per_s, n_requests), partition)
