"""`Load`: the load that a forecast is for, and the requests that are simulated under it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.rate_bound import lengths
from hypsolve.problem.deployment import Deployment, Requests

N_REQUESTS, MIN_REQUESTS = 400, 20  # in one simulation
MAX_VISITS = 2e7  # (token, stage) visits in one simulation, which take some seconds
ROUNDS_OF_USERS = 20  # requests of each user in a closed loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load that a forecast is for: Poisson arrivals, or users in a closed loop.

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
    """

    rate_per_s: float = 1.0
    users: int | None = None
    think_time_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    seed: int = 0
    max_visits: float = MAX_VISITS

    def describe(self) -> str:
        """Describe the load in a few words."""
        if self.users is None:
            return f"a rate of {self.rate_per_s:g} per second"
        think = f" who think for {self.think_time_s:g} s" if self.think_time_s else ""
        return f"{self.users} user{'s' * (self.users != 1)}{think}"


def with_requests(deployment: Deployment, load: Load, within_s: float = 0.0) -> Deployment:
    """Return a deployment with the requests that are simulated under a load.

    Users start within `within_s` seconds.
    """
    if load.users is None:
        rng = np.random.default_rng(load.seed)
        return under_load(deployment, load.rate_per_s, rng, load.max_visits)
    n = max(N_REQUESTS, ROUNDS_OF_USERS * load.users)
    n = max(min(n, max_requests(deployment, load.max_visits)), load.users, MIN_REQUESTS)
    return like_the_first(deployment, starts(load, n, within_s))


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
    n_passes = int(deployment.requests.output_tokens[0])
    return int(max_visits / (n_passes * len(deployment.network.tiers)))


def arriving(
    deployment: Deployment, rate_per_s: float, n: int, rng: np.random.Generator
) -> Deployment:
    """Return a deployment with `n` requests like its first one, in Poisson arrivals.

    The arrivals are scaled: ``(n - 1) / (last arrival - first arrival)`` is the rate.
    """
    return like_the_first(deployment, at_rate(rng.exponential(1.0, n).cumsum(), rate_per_s))


def at_rate(arrival_s: NDArray[np.float64], rate_per_s: float) -> NDArray[np.float64]:
    """Scale arrivals to a rate; the first one becomes time 0."""
    since_first = arrival_s - arrival_s[0]
    if since_first[-1] > 0:
        since_first /= since_first[-1]
    with np.errstate(over="ignore"):  # `Requests` refuses infinite times
        return since_first * (len(arrival_s) - 1) / rate_per_s


def like_the_first(deployment: Deployment, arrival_s: NDArray[np.float64]) -> Deployment:
    """Return a deployment with requests like its first one at the given times."""
    prompt, output = lengths(deployment)
    ones = np.ones(len(arrival_s), np.int64)
    return replace(deployment, requests=Requests(arrival_s, prompt * ones, output * ones))


def evenly(deployment: Deployment, rate_per_s: float, n: int) -> Deployment:
    """Return a deployment with `n` requests like its first one, in even arrivals."""
    return like_the_first(deployment, np.arange(n) / rate_per_s)
