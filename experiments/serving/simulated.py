"""The requests per second that a split serves in simulation, and the bound on all splits.

The rate is n / (last completion - first arrival) of n requests alike, which arrive evenly and
faster than they are served. Too many requests can serve a split ill: batches of nodes bunch in
waves, and links idle in between. So a split is simulated at two loads, and the larger rate
counts: at `OVERLOAD` times the bound on its rate, where all queues grow, and at `HEADROOM`
times the rate that it served then, or at its bound if that is less.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from hypsolve import Deployment, Partition, throughput_bound, to_instance
from hypsolve.planning.forecast import room_of, serve
from hypsolve.planning.load import evenly
from hypsolve.planning.rate_bound import bound_on_rate

OVERLOAD, HEADROOM = 1.05, 1.1
ROUNDS = 20  # requests of a simulation, over those that can be under way at once
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
        The second load is left out where the split would not serve this rate at any load that
        it offers: requests are not served faster than they arrive.
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

    rate = served(OVERLOAD * most)
    second = min(HEADROOM * rate, most)
    if second * n / (n - 1) > to_beat:
        rate = max(rate, served(second))
    return Served(requests_per_s=rate, n_requests=n, n_under_way=under_way)


def _rate(deployment: Deployment, partition: Partition, offered_per_s: float, n: int) -> float:
    trace = serve(evenly(deployment, offered_per_s, n), partition)
    took_s = float(trace.end_s.max() - trace.arrival_s.min())
    return n / took_s if took_s else math.inf


def _once(key: Hashable, compute: Callable[[], Any]) -> Any:
    if key not in _known:
        _known[key] = compute()
    return _known[key]
