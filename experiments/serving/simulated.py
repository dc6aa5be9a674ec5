"""The requests per second that a split serves in simulation, and the bound on all splits.

The rate is n / (last completion - first arrival) of n requests alike, which arrive evenly. Too
many requests can serve a split ill: batches of nodes bunch in waves and links idle in between,
or requests are preempted where KV cache runs short. So a split is simulated at several loads.
The largest rate counts, by one rule for all methods:

1. `OVERLOAD` times the bound on the rate of the split, where all queues grow.
2. `HEADROOM` times the rate that was served then, or the bound if that is less.
3. The bound, and from there down in steps of `STEP`, until the load is no more than the largest
   rate so far: requests are not served faster than they arrive.
4. If the split keeps up with its best load, there may be a better one below the next load that
   was tried: `N_HALVINGS` bisections between the two.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from hypsolve import Deployment, Partition, throughput_bound, to_instance
from hypsolve.planning.forecast import room_of
from hypsolve.planning.load import evenly, serve
from hypsolve.planning.rate_bound import bound_on_rate

OVERLOAD, HEADROOM = 1.05, 1.1
STEP = 0.9  # from one load to the next
N_HALVINGS = 3  # of a step, so that the best load is found to 1.4 %
ROUNDS = 20  # requests of a simulation, over those that can be under way at once
KEEPS_UP = 1 / (1 + 1 / ROUNDS)  # of the load: filling and draining take the rest
MIN_REQUESTS = 100
_known: dict[Hashable, Any] = {}  # of this process; methods often find the same split


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A simulated rate.

    Attributes
    ----------
    requests_per_s : float
    n_requests : int
        Requests of a simulation.
    n_under_way : int
        Requests that can be under way at once.
    """

    requests_per_s: float
    n_requests: int
    n_under_way: int


def bound_of(deployment: Deployment, digest: str) -> float:
    """Return requests per second that no split and no schedule exceeds."""
    return _once(("bound", digest), lambda: throughput_bound(deployment))


def served_by(
    deployment: Deployment,
    digest: str,
    partition: Partition,
    n_requests: int | None = None,
    *,
    to_beat: float = 0.0,
) -> Served:
    """Simulate a split at its limit.

    Parameters
    ----------
    deployment : Deployment
        Its first request stands for all.
    digest : str
        Identifies the deployment: a split is simulated once in a process.
    partition : Partition
    n_requests : int, optional
        Requests of a simulation. Default: `ROUNDS` times those that can be under way.
    to_beat : float
        Loads at which the split could not serve more than this rate are left out, but for the
        first one. A split whose bound is no more than this rate is not simulated: its rate is
        given as 0.
    """
    instance = to_instance(deployment, objective="path")
    under_way = room_of(deployment, instance, partition).running
    n = n_requests or max(MIN_REQUESTS, ROUNDS * under_way)
    most = bound_on_rate(deployment, instance, partition)

    def served(offered_per_s: float) -> float:
        return _once(
            (digest, partition.cuts, offered_per_s, n),
            lambda: _rate(deployment, partition, offered_per_s, n),
        )

    least_load = to_beat * (n - 1) / n
    rate = _largest_rate(served, most, least_load, n) if most > to_beat else 0.0
    return Served(requests_per_s=rate, n_requests=n, n_under_way=under_way)


def _largest_rate(
    served: Callable[[float], float], most: float, least_load: float, n: int
) -> float:
    """Return the largest rate that is served, of the loads that the module describes.

    Parameters
    ----------
    served : callable
        The rate under a load of even arrivals.
    most : float
        A bound on the rate.
    least_load : float
        Loads up to this one are left out, but for the first one.
    n : int
        Requests of a simulation. The n-th one arrives ``(n - 1) / load`` seconds after the
        first, so that no rate exceeds ``load * n / (n - 1)``.
    """
    rates = {OVERLOAD * most: served(OVERLOAD * most)}  # by load

    def may_serve_more(load: float) -> bool:
        return load > max(least_load, max(rates.values()) * (n - 1) / n)

    again = min(HEADROOM * rates[OVERLOAD * most], most)
    if may_serve_more(again):
        rates[again] = served(again)
    load = most
    while may_serve_more(load):
        rates[load] = served(load)
        load *= STEP
    low = max(rates, key=lambda load: rates[load])
    high = min((load for load in rates if load > low), default=low)
    for _ in range(N_HALVINGS):
        load = (low + min(high, most)) / 2
        if rates[low] < KEEPS_UP * low or load <= low or high <= least_load:
            break
        rates[load] = served(load)
        low, high = (load, high) if rates[load] >= KEEPS_UP * load else (low, load)
    return max(rates.values())


def _rate(deployment: Deployment, partition: Partition, offered_per_s: float, n: int) -> float:
    trace = serve(evenly(deployment, offered_per_s, n), partition)
    took_s = float(trace.end_s.max() - trace.arrival_s.min())
    return n / took_s if took_s else math.inf


def _once(key: Hashable, compute: Callable[[], Any]) -> Any:
    if key not in _known:
        _known[key] = compute()
    return _known[key]
