"""`Load`: the load that a forecast is for, and the requests that are simulated under it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.rate_bound import lengths
from hypsolve.planning.request_mix import GIVEN, RequestMix
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.solution import Partition
from hypsolve.simulation.simulate import simulate
from hypsolve.simulation.trace import Trace

N_REQUESTS, MIN_REQUESTS = 400, 20  # in one simulation
MAX_VISITS = 2e7  # (token, stage) visits in one simulation, which take some seconds
ROUNDS_OF_USERS = 20  # requests of each user in a closed loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load that a forecast is for: arrivals at a rate, or users in a closed loop.

    Attributes
    ----------
    rate_per_s : float
        Requests per second; not used if there are users.
    users : int or None
        Users, each with one request at a time. They start at random times within one round: the
        latency of a request on the idle network, and the think time.
    think_time_s : float
        Seconds from the end of a user's request to the next one.
    ttft_slo_s, tpot_slo_s : float or None
        Targets for the first token and for each later one.
    seed : int
        Seed of the arrivals, and of the starts of users.
    max_visits : float
        Visits, of a token at a stage, in one simulation at most.
    mix : RequestMix or None
        Requests of different lengths; if it has all of them, they arrive as they did, faster or
        slower for the rate, or are sent by the users in their order. None: Poisson arrivals of
        requests like those of the deployment.
    """

    rate_per_s: float = 1.0
    users: int | None = None
    think_time_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    seed: int = 0
    max_visits: float = MAX_VISITS
    mix: RequestMix | None = None

    @property
    def trace(self) -> Requests | None:
        """All requests of the mix, in order of arrival; None if they are not known."""
        return None if self.mix is None else self.mix.requests

    @property
    def arrivals(self) -> str:
        """Description of the arrivals of requests at a rate."""
        if self.mix is None or self.mix.requests is None:
            return "Poisson arrivals"
        where = "given" if self.mix.source == GIVEN else f"in {self.mix.source}"
        return f"arrivals as {where}"

    def describe(self) -> str:
        """Describe the load in a few words."""
        what = "" if self.mix is None else f"the requests{self.mix.of_source}"
        if self.mix is not None and self.mix.requests is None:
            what = f"requests like those{self.mix.of_source or ' of the plan'}"
        if self.users is None and what:
            return f"{what} at {self.rate_per_s:g} per second"
        if self.users is None:
            return f"a rate of {self.rate_per_s:g} per second"
        think = f" who think for {self.think_time_s:g} s" if self.think_time_s else ""
        if what:
            what, think = f" who send {what}", think.replace(" who", " and", 1)
        return f"{self.users} user{'s' * (self.users != 1)}{what}{think}"


def with_requests(deployment: Deployment, load: Load, within_s: float = 0.0) -> Deployment:
    """Return a deployment with the requests that are simulated under a load.

    Users start within `within_s` seconds. The requests of a trace are simulated once, as far as
    visits allow; those of a short one over and over.
    """
    if load.users is None:
        if load.trace is not None:
            n = max(max_requests(deployment, load.max_visits), MIN_REQUESTS)
            return from_trace(deployment, load, load.rate_per_s, min(_trace_size(load), n))
        rng = np.random.default_rng(load.seed)
        return under_load(deployment, load.rate_per_s, rng, load.max_visits)
    n = max(N_REQUESTS, ROUNDS_OF_USERS * load.users, _trace_size(load))
    n = max(min(n, max_requests(deployment, load.max_visits)), load.users, MIN_REQUESTS)
    if load.trace is not None:
        deployment = replace(deployment, requests=load.trace)
    return in_order(deployment, starts(load, n, within_s))


def after_start(trace: Trace) -> NDArray[np.bool_]:
    """Return which requests of a simulation count towards targets, by index.

    Of users in a closed loop, the first request of each does not count: all users start within
    one round of a user alone, so their prompts meet in a burst that does not come again. If
    there are no other requests, and where requests arrive at a rate, all count.
    """
    n = len(trace.arrival_s)
    first = 0 if trace.users is None or trace.users >= n else trace.users
    return np.arange(n) >= first


def within_targets(trace: Trace, load: Load) -> NDArray[np.bool_]:
    """Return which requests of a simulation meet the targets of a load, by index."""
    kept = np.isfinite(trace.end_s)
    for times_s, limit_s in (
        (trace.ttft_s, load.ttft_slo_s),
        (trace.tpot_s, load.tpot_slo_s),
    ):
        if limit_s is not None:
            kept &= ~(times_s > limit_s)  # nan keeps it: a request of one token has no TPOT
    return kept


def _trace_size(load: Load) -> int:
    """Return the requests of a trace, or of so many repetitions that there are enough."""
    if load.trace is None:
        return 0
    n = len(load.trace)
    return n * math.ceil(N_REQUESTS / n)


def from_trace(deployment: Deployment, load: Load, rate_per_s: float, n: int) -> Deployment:
    """Return a deployment with `n` requests of the trace of a load, over and over, at a rate.

    The times between arrivals are those of the trace, all scaled by one number. If all of these
    requests arrive at one time, their arrivals are Poisson arrivals.
    """
    trace = load.trace
    assert trace is not None
    deployment, size = replace(deployment, requests=trace), len(trace)
    first_s, span_s = float(trace.arrival_s[0]), float(np.ptp(trace.arrival_s))
    period_s = span_s * size / max(size - 1, 1)  # a mean gap between two repetitions
    rounds = np.arange(n) // size
    arrival_s = np.resize(trace.arrival_s - first_s, n) + rounds * period_s
    if arrival_s[-1] == 0.0:
        return arriving(deployment, rate_per_s, n, np.random.default_rng(load.seed))
    return in_order(deployment, at_rate(arrival_s, rate_per_s))


def at_rate_of(deployment: Deployment, load: Load, rate_per_s: float, n: int) -> Deployment:
    """Return a deployment with `n` requests at a rate, as they arrive under a load.

    They are Poisson arrivals of the seed of the load, or those of its trace, from its begin.
    """
    if load.trace is None:
        return arriving(deployment, rate_per_s, n, np.random.default_rng(load.seed))
    return from_trace(deployment, load, rate_per_s, n)


def starts(load: Load, n: int, within_s: float) -> NDArray[np.float64]:
    """Return arrivals of `n` requests, of which users send the earliest as their first ones.

    They start at independent, uniform times within `within_s` seconds, the first one at 0. If
    all started at once, they would stay in step: every prompt would meet all others.
    """
    assert load.users is not None
    first_s = np.sort(np.random.default_rng(load.seed).random(min(load.users, n)))
    arrival_s = np.full(n, within_s)
    arrival_s[: len(first_s)] = (first_s - first_s[0]) * within_s
    return arrival_s


def under_load(
    deployment: Deployment,
    rate_per_s: float,
    rng: np.random.Generator,
    max_visits: float = MAX_VISITS,
) -> Deployment:
    """Return a deployment with the requests that `predict` simulates."""
    n = min(max(MIN_REQUESTS, max_requests(deployment, max_visits)), N_REQUESTS)
    return arriving(deployment, rate_per_s, n, rng)


def max_requests(deployment: Deployment, max_visits: float) -> int:
    """Return the largest number of requests for one simulation."""
    n_passes = float(deployment.requests.output_tokens.mean())
    return int(max_visits / (n_passes * len(deployment.network.tiers)))


def in_whole_rounds(deployment: Deployment, n: int) -> int:
    """Return a number of requests, at least `n`, that has all lengths equally often.

    What is simulated then has the lengths that a bound on the rate is proved for.
    """
    size = len(deployment.requests)
    return -(-n // size) * size


def arriving(
    deployment: Deployment, rate_per_s: float, n: int, rng: np.random.Generator
) -> Deployment:
    """Return a deployment with `n` requests like its own, in Poisson arrivals.

    The arrivals are scaled: ``(n - 1) / (last arrival - first arrival)`` is the rate.
    """
    return in_order(deployment, at_rate(rng.exponential(1.0, n).cumsum(), rate_per_s))


def at_rate(arrival_s: NDArray[np.float64], rate_per_s: float) -> NDArray[np.float64]:
    """Scale arrivals to a rate; the first one becomes time 0."""
    since_first = arrival_s - arrival_s[0]
    if since_first[-1] > 0:
        since_first /= since_first[-1]
    with np.errstate(over="ignore"):  # `Requests` refuses infinite times
        return since_first * (len(arrival_s) - 1) / rate_per_s


def in_order(deployment: Deployment, arrival_s: NDArray[np.float64]) -> Deployment:
    """Return a deployment with its requests at the given times, in order, over and over."""
    requests, n = deployment.requests, len(arrival_s)
    prompt, output = (
        np.resize(tokens, n) for tokens in (requests.prompt_tokens, requests.output_tokens)
    )
    return replace(deployment, requests=Requests(arrival_s, prompt, output))


def evenly(deployment: Deployment, rate_per_s: float, n: int) -> Deployment:
    """Return a deployment with `n` requests like its own, in even arrivals."""
    return in_order(deployment, np.arange(n) / rate_per_s)


def one_alone(deployment: Deployment) -> Deployment:
    """Return a deployment with one request, of mean lengths."""
    prompt, output = lengths(deployment)
    return replace(
        deployment, requests=Requests(np.zeros(1), np.array([prompt]), np.array([output]))
    )


def serve(
    deployment: Deployment,
    partition: Partition,
    *,
    record_visits: bool = False,
    users: int | None = None,
    think_time_s: float = 0.0,
) -> Trace:
    """Simulate a partition as forecasts do: links send one message at a time."""
    return simulate(
        deployment,
        partition,
        link_contention=True,
        record_visits=record_visits,
        users=users,
        think_time_s=think_time_s,
    )
