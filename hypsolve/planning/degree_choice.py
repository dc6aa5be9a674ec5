"""`DegreeChoice`: degrees of tensor parallelism, and what they serve in simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeChoice:
    """One choice of the degrees of tensor parallelism, and what it serves.

    Attributes
    ----------
    degrees : tuple of int
        Largest degree of each tier.
    is_allowed : bool
        Whether the runtime can run it.
    n_idle_gpus : int
        GPUs of machines with groups that are in no group.
    fits : bool
        Whether the model fits.
    reason : str
        Why it was not simulated; empty if it was.
    objective_s : float
        Least objective in seconds; inf if nothing fits, or under an objective in requests/s.
    value : float
        What the query asks for, simulated; nan if it was not simulated. Under an objective in
        requests/s, it is the rate of the best split of the fluid model in a short simulation,
        as `hypsolve.planning.throughput` ranks splits. In seconds, it is the largest rate, the
        rate of the users, the goodput at the load, or the mean latency.
    full_value : float
        Under an objective in requests/s, the same rate in a simulation as long as that of the
        plan; nan where the short one had decided.
    bound_requests_per_s : float
        No split over the tiers and no schedule serves more with these degrees, under an
        objective in requests/s; nan if it was not computed.
    max_requests_per_s, latency_mean_s, goodput_requests_per_s : float
        As in `Forecast`; nan if it was not simulated, or under an objective in requests/s.
    max_rate_is_lower_bound : bool
        As in `Forecast`.
    """

    degrees: tuple[int, ...]
    is_allowed: bool
    n_idle_gpus: int = 0
    fits: bool = False
    reason: str = ""
    objective_s: float = math.inf
    value: float = math.nan
    full_value: float = math.nan
    bound_requests_per_s: float = math.nan
    max_requests_per_s: float = math.nan
    latency_mean_s: float = math.nan
    goodput_requests_per_s: float = math.nan
    max_rate_is_lower_bound: bool = False

    def describe_degrees(self) -> str:
        """Name the degree, or those of the tiers if they differ."""
        if len(set(self.degrees)) == 1:
            return str(self.degrees[0])
        return "/".join(map(str, self.degrees))
