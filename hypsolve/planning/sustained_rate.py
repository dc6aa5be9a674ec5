"""`is_steady`: whether a load is sustained in a simulation, and the largest rate that is.

A rate is sustained if requests that arrive at it are under way for no longer the longer they
arrive. Only a simulation of that rate tells: what is served under overload proves nothing of
smaller rates. Where batches pass whole pipelines, a server with a long queue fills its batches,
so that it serves more than it would if requests arrived at the rate that it serves then.

Two numbers are compared in the arrivals of one simulation: the mean latency of the requests
from 40 to 60 % of the arrivals and of the last tenth, and the mean number under way in the
second and in the last quarter of the time. A load is not sustained if one of them grows by more
than `GROWS`, and by more than `DRIFT` of the requests that arrive in between: so many of them
add to a queue. The second condition tells the fluctuations of a short queue from a growing one.

A rate must also be sustained from a queue, see `drains_queue`. Under paged KV cache, a server
with a queue preempts requests and computes them again. It may then serve far less than before,
and never get rid of a queue that a burst has left, at a rate that it sustains without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.load import (
    N_REQUESTS,
    arriving,
    at_rate,
    in_order,
    in_whole_rounds,
    serve,
)
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.solution import Partition
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import NEVER, Deadline

MAX_SIMULATED = 16_000  # requests in one simulation
LONG = 4000  # requests that confirm the largest rate, at least
ROUNDS = 20  # requests that tell that a load is sustained, over those under way
SETTLED_ROUNDS = 50  # likewise, where latencies are printed
WINDOW = 20  # requests that tell that a load is not sustained, over those that run at once
GROWS = 1.15  # growth from which requests may pile up
DRIFT = 0.005  # share of the arrivals that add to a queue, from which they do
NOISE = 2.0  # over the root of the number of requests: a drift beyond it is no chance
MORE = 4  # times the requests of a simulation that does not tell
N_BISECTIONS = 5  # the largest rate is found to 1/32 of its bound
FIRST_STEP, MAX_STEP = 0.02, 0.3  # by which a rate is lowered if it is not confirmed
MIN_CONFIRMED = 0.05  # of the rate that was found, below which none is confirmed
CONFIRMED_TO = 0.02  # relative difference to which the largest confirmed rate is found
BURST = 2.0  # times a rate, at which the first third of the requests arrives to form a queue
QUEUED = 1.1  # times those that run, from which requests queue
SERVED = 0.8  # share of a burst that is served as it comes
DRAINED = 0.75  # of the requests under way after the burst, below which the queue drains
FIRST_BURST = 900  # requests of the first simulation with a burst
QUEUED_ROUNDS = 15  # requests with a burst, over those that can run at once


@dataclass(frozen=True, slots=True)
class Trend:
    """Development of latencies and of the requests under way while requests arrive.

    Attributes
    ----------
    n_requests : int
    growth : float
        The larger relative growth of both; see the docstring of this module.
    drift : float
        Share of the arrivals by which the requests under way grow.
    n_under_way : float
        Mean number of requests under way in the last quarter of the arrivals.
    n_running : float
        Of these, the requests that do not wait at their node, in the fullest tier.
    """

    n_requests: int
    growth: float
    drift: float
    n_under_way: float
    n_running: float

    @property
    def grows(self) -> bool:
        """Whether requests pile up."""
        return self.growth > GROWS and self.drift > DRIFT

    @property
    def is_sure(self) -> bool:
        """Whether they pile up beyond what random arrivals explain."""
        return self.grows and self.drift > NOISE / math.sqrt(self.n_requests)

    @property
    def has_begun(self) -> bool:
        """Whether so many requests were simulated that a growth is not that of the start."""
        return self.n_requests >= WINDOW * self.n_running

    def has_rounds(self, rounds: float) -> bool:
        """Return whether the requests are so many times those under way."""
        return self.n_requests >= rounds * self.n_under_way


def trend(trace: Trace) -> Trend | None:
    """Return the trend of a simulation; None if it has fewer than 20 arrivals, or no span.

    Examples
    --------
    >>> import hypsolve as hs
    >>> gpu = hs.GpuProfile(name="box", t0_s=1.0, flops_per_s=1e12, bytes_per_s=1e30,
    ...                     memory_bytes=1e12)
    >>> block = hs.Block(kind="block", weight_bytes=0, flops_per_token=0)
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=gpu),))
    >>> def served(rate_per_s, n=400):
    ...     return hs.simulate(
    ...         hs.Deployment(
    ...             model=hs.Model(name="toy", blocks=(block,)),
    ...             network=hs.Network(name="home", tiers=(box,)),
    ...             requests=hs.Requests([i / rate_per_s for i in range(n)], [1] * n, [1] * n),
    ...             runtime=hs.runtime("ideal", max_num_seqs=1),
    ...         ),
    ...         hs.Partition((0, 1)),
    ...     )
    >>> trend(served(0.9)).grows, trend(served(1.1)).grows
    (False, True)
    """
    trace = trace.from_first()
    n = len(trace.arrival_s)
    order = np.argsort(trace.arrival_s, kind="stable")
    arrival_s = trace.arrival_s[order]
    end_s = np.where(np.isnan(trace.end_s), math.inf, trace.end_s)[order]
    last_s = float(arrival_s[-1]) if n else 0.0
    if n < ROUNDS or last_s == 0.0:
        return None
    latency_s = end_s - arrival_s
    middle, late = slice(2 * n // 5, 3 * n // 5), slice(-(n // 10), None)
    before_s, after_s = (float(latency_s[each].mean()) for each in (middle, late))
    apart_s = float(arrival_s[late].mean() - arrival_s[middle].mean())
    quarters_s = np.linspace(0.0, last_s, 5)
    before, after = (
        _under_way(arrival_s, end_s, quarters_s[k], quarters_s[k + 1]) for k in (1, 3)
    )
    growths = (_ratio(after_s, before_s), _ratio(after, before))
    drifts = (_ratio(after_s - before_s, apart_s), (after - before) / (n / 2))
    at = max(range(2), key=lambda k: (growths[k] > GROWS, drifts[k]))
    return Trend(n, growths[at], drifts[at], after, _running(trace, quarters_s[3], last_s))


def _under_way(
    arrival_s: NDArray[np.float64], end_s: NDArray[np.float64], since_s: float, until_s: float
) -> float:
    """Return the mean number of requests under way in an interval."""
    inside_s = np.minimum(end_s, until_s) - np.maximum(arrival_s, since_s)
    return float(np.clip(inside_s, 0.0, None).sum() / (until_s - since_s))


def _running(trace: Trace, since_s: float, until_s: float) -> float:
    """Return the mean number of requests that do not wait, in the tier that has most."""
    series = trace.series
    bins = (series.mid_s >= since_s) & (series.mid_s <= until_s)
    if not bins.any():
        return math.inf
    of_node = (series.n_requests - series.n_waiting)[:, bins].mean(axis=1)
    n_tiers = int(trace.node_tier.max()) + 1
    return float(np.bincount(trace.node_tier, of_node, n_tiers).max())


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return math.inf if part > 0 else 1.0


def is_steady(trace: Trace) -> bool | None:
    """Return whether a load is sustained in a simulation; see the docstring of this module.

    None if the simulation is too short to tell: with fewer than 20 times the requests under
    way. Users in a closed loop never send more than is served, so their load is sustained.
    """
    if trace.users is not None:
        return True
    found = trend(trace)
    return None if found is None else _verdict(found, ROUNDS)


def _verdict(found: Trend, rounds: float) -> bool | None:
    if found.grows:
        return False if found.is_sure and found.has_begun else None
    return True if found.has_rounds(rounds) else None


def drains_queue(
    deployment: Deployment,
    partition: Partition,
    rate_per_s: float,
    *,
    seed: int = 0,
) -> bool | None:
    """Return whether a queue drains while requests arrive at a rate.

    The first third of the requests arrives at `BURST` times the rate, the others at the rate.
    More and more requests are simulated, from `FIRST_BURST` up to `MAX_SIMULATED`, until the
    burst is served as it comes, or leaves a queue and the requests are `QUEUED_ROUNDS` times
    those that run at once.

    The mean numbers under way are compared in the last tenth of the burst, and in the first and
    in the last tenth of the time after it. The queue drains if the number falls by a quarter or
    does not rise after the burst, or if the burst leaves no queue. It does not if the number
    rises by more than `DRIFT` of the requests that arrive meanwhile.

    Parameters
    ----------
    deployment : Deployment
        Its requests arrive over and over.
    partition : Partition
    rate_per_s : float
    seed : int
        Seed of the arrivals.

    Returns
    -------
    bool or None
        None if the number rises by less: the rate is close to the largest one.
    """
    n, most = FIRST_BURST, max(MAX_SIMULATED, FIRST_BURST)
    while True:
        found = _after_burst(deployment, partition, rate_per_s, n, seed)
        needed = max(QUEUED_ROUNDS * found.running, LONG) if found.is_queued else 2 * n
        if found.is_served or n >= min(needed, most):
            break
        n = min(max(2 * n, math.ceil(needed)), most)
    if not found.is_queued or found.after <= max(DRAINED * found.peak, found.before):
        return True
    return False if found.after - found.before > DRIFT * found.n_later else None


@dataclass(frozen=True, slots=True)
class _AfterBurst:
    """Mean numbers of requests under way at the end of a burst, and after it.

    `running` is the mean number that ran at the end of the burst, in the fullest tier,
    `is_queued` says whether the burst left a queue, `is_served` whether it was served as it
    came, and `n_later` is the number of requests that arrive after it, between the two
    intervals that are compared.
    """

    peak: float
    before: float
    after: float
    n_later: float
    running: float
    is_queued: bool
    is_served: bool


def _after_burst(
    deployment: Deployment, partition: Partition, rate_per_s: float, n: int, seed: int
) -> _AfterBurst:
    """Simulate a burst at `BURST` times a rate, and then twice as many requests at the rate."""
    n_burst = n // 3
    rng = np.random.default_rng(seed)
    burst_s = at_rate(rng.exponential(1.0, n_burst + 1).cumsum(), BURST * rate_per_s)
    later_s = at_rate(rng.exponential(1.0, n - n_burst).cumsum(), rate_per_s)
    begin_s, end_s = float(burst_s[-1]), float(burst_s[-1] + later_s[-1])
    arrival_s = np.concatenate([burst_s[:-1], begin_s + later_s])
    trace = serve(in_order(deployment, arrival_s), partition).from_first()
    ends_s = np.where(np.isnan(trace.end_s), math.inf, trace.end_s)
    span_s = (end_s - begin_s) / 10
    peak, before, after = (
        _under_way(trace.arrival_s, ends_s, since_s, until_s)
        for since_s, until_s in (
            (0.9 * begin_s, begin_s),
            (begin_s, begin_s + span_s),
            (end_s - span_s, end_s),
        )
    )
    widest = max(len(tier.nodes) for tier in deployment.network.tiers)
    running = min(
        _running(trace, 0.9 * begin_s, begin_s), widest * deployment.runtime.max_num_seqs
    )
    return _AfterBurst(
        peak=peak,
        before=before,
        after=after,
        n_later=0.9 * (n - n_burst),
        running=running,
        is_queued=peak > QUEUED * running,
        is_served=float((ends_s <= begin_s).mean()) * n > SERVED * n_burst,
    )


def simulate_rate(
    simulated: Callable[[int], Trace],
    n_requests: int,
    max_requests: int,
    *,
    rounds: float = ROUNDS,
    deadline: Deadline = NEVER,
) -> tuple[Trace, bool | None]:
    """Simulate a rate with as many requests as tell whether it is sustained.

    Parameters
    ----------
    simulated : callable
        Simulates so many requests.
    n_requests : int
        Requests of the first simulation.
    max_requests : int
        Requests of the last one, at most.
    rounds : float
        Requests that are enough if they do not pile up, over those under way.
    deadline : Deadline, optional
        When it has passed, no longer simulation begins.

    Returns
    -------
    trace : Trace
        The last simulation.
    is_sustained : bool or None
        None: it is too short to tell.
    """
    n = min(n_requests, max_requests)
    while True:
        trace = simulated(n)
        found = trend(trace)
        if found is None or n >= max_requests or deadline.has_passed():
            break
        if found.is_sure and found.has_begun:
            break
        if not found.grows and found.has_rounds(rounds):
            break
        needed = n if found.grows else math.ceil(1.1 * rounds * found.n_under_way)
        n = min(max(MORE * n, needed), max_requests)
    return trace, None if found is None else _verdict(found, min(rounds, ROUNDS))


def lowered(rate_per_s: float) -> Iterator[float]:
    """Yield a rate, then lower ones, until one is confirmed: by 2, 4, 8, ... % each time.

    Examples
    --------
    >>> [round(rate, 1) for _, rate in zip(range(4), lowered(100.0))]
    [100.0, 98.0, 94.1, 86.6]
    """
    rate, step = rate_per_s, FIRST_STEP
    while rate > MIN_CONFIRMED * rate_per_s:
        yield rate
        rate, step = rate * (1 - step), min(2 * step, MAX_STEP)


def raised(
    confirmed_per_s: float,
    refused_per_s: float,
    is_confirmed: Callable[[float], bool],
    deadline: Deadline = NEVER,
) -> tuple[float, bool]:
    """Return the largest confirmed rate to `CONFIRMED_TO`, and whether time ended the search.

    Examples
    --------
    >>> raised(70.0, 100.0, lambda rate: rate < 86.6)
    (85.9375, False)
    """
    low, high = confirmed_per_s, refused_per_s
    while high - low > CONFIRMED_TO * high:
        if deadline.has_passed():
            return low, True
        rate = (low + high) / 2
        low, high = (rate, high) if is_confirmed(rate) else (low, rate)
    return low, False


class Sustained:
    """Whether a partition sustains a rate of Poisson arrivals, and the largest such rate.

    Parameters
    ----------
    deployment : Deployment
        Its requests arrive over and over.
    partition : Partition
    max_requests : int
        Requests of one simulation, at most.
    seed : int
        Seed of the arrivals.
    deadline : Deadline
        When it has passed, no further simulation begins.
    rounds : float
        Requests that are enough if they do not pile up, over those under way.
    """

    def __init__(
        self,
        deployment: Deployment,
        partition: Partition,
        max_requests: int,
        seed: int = 0,
        deadline: Deadline = NEVER,
        rounds: float = ROUNDS,
    ) -> None:
        self.deployment, self.partition, self.deadline = deployment, partition, deadline
        self.rounds = rounds
        self.max_requests = max(min(MAX_SIMULATED, max_requests), ROUNDS)
        self.seed = seed

    def __call__(self, rate_per_s: float, *, least: int = 0, seed: int = 0) -> bool | None:
        """Return whether a rate is sustained; None if that takes too long to tell.

        At least `least` requests are simulated; `seed` is added to the seed.
        """
        if self.deadline.has_passed():
            return None

        def simulated(n: int) -> Trace:
            rng = np.random.default_rng(self.seed + seed)
            n = in_whole_rounds(self.deployment, n)
            return serve(arriving(self.deployment, rate_per_s, n, rng), self.partition)

        n = max(N_REQUESTS, least)
        return simulate_rate(
            simulated, n, self.max_requests, rounds=self.rounds, deadline=self.deadline
        )[1]

    def drains(self, rate_per_s: float) -> bool | None:
        """Return whether a queue drains at a rate; see `drains_queue`."""
        if self.deadline.has_passed():
            return None
        return drains_queue(self.deployment, self.partition, rate_per_s, seed=self.seed + 1)

    def largest(
        self,
        bound_per_s: float,
        *,
        sustained_per_s: float = 0.0,
        refused_per_s: float = math.inf,
        near_per_s: float = 0.0,
    ) -> tuple[float, bool]:
        """Return about the largest sustained rate, and whether it is only a lower bound.

        The rate is found by bisection to 1/32 of its bound. A longer simulation with another
        seed confirms it, or else lower rates are tried. It is nan if no rate is known to be
        sustained in time, and 0 if none was found.

        Parameters
        ----------
        bound_per_s : float
            Rate that no schedule serves.
        sustained_per_s, refused_per_s : float
            Rates that are known to be sustained, and not to be.
        near_per_s : float
            Rate that is tried first, such as the one that is served under overload; 0: none.
        """
        low, high = sustained_per_s, min(bound_per_s, refused_per_s)
        finest, is_short, n_tries = bound_per_s * 2.0**-N_BISECTIONS, False, 0
        while high - low > finest * (1 + 1e-9):
            is_first = n_tries == 0 and low < near_per_s < high
            rate = near_per_s if is_first else (low + high) / 2
            n_tries += 1
            is_sustained = self(rate)
            if is_sustained is None:
                is_short = True
                if low > 0 or self.deadline.has_passed() or n_tries > 2 * N_BISECTIONS:
                    break
            low, high = (rate, high) if is_sustained else (low, rate)
        if low > sustained_per_s:
            low, is_cut = self._confirmed(low, sustained_per_s)
            is_short = is_short or is_cut
        return (math.nan if low == 0 and is_short else low), is_short and low > 0

    def _confirmed(self, found_per_s: float, sustained_per_s: float) -> tuple[float, bool]:
        """Return a rate that longer simulations confirm, and whether time ended the search."""

        def is_confirmed(rate: float) -> bool:
            if not self(rate, least=LONG, seed=1) or not self.drains(rate):
                return False
            return rate == found_per_s or bool(self(rate, least=LONG))

        refused = math.inf
        for rate in lowered(found_per_s):
            if rate <= sustained_per_s:
                break
            if is_confirmed(rate):
                if math.isinf(refused):
                    return rate, False
                return raised(rate, refused, is_confirmed, self.deadline)
            if self.deadline.has_passed():
                return sustained_per_s, True
            refused = rate
        if math.isinf(refused) or sustained_per_s == 0:
            return sustained_per_s, False
        return raised(sustained_per_s, refused, is_confirmed, self.deadline)
