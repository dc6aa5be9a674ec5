"""`SplitSimulator`: what a split serves, briefly to rank splits, and at length to print it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypsolve.planning.forecast import room_of
from hypsolve.planning.load import Load, max_requests
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.saturation import (
    MET,
    MIN_REQUESTS,
    PRINTED_ROUNDS,
    SimulatedRate,
    confirmed_rate,
    drains,
    enough_requests,
    is_served,
    long_requests,
    rate_of_users,
    rate_within_targets,
    saturated_rate,
    serve_at_rate,
    stretch_of,
)
from hypsolve.problem import evaluation
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.solvers import clock
from hypsolve.solvers.clock import Deadline

Cuts = tuple[int, ...]
RANKING_ROUNDS = 8  # requests simulated to rank splits, over the number under way at once
RACED = 0.95  # of the best rate within targets: a split that misses it is not looked at further
RANKED = 2000  # requests of a trace that tell whether a rate is within targets, to rank splits
SHORT = 1000  # requests at a rate that tell how far a target is
SHORT_VISITS = 5e5  # of a token at a stage, in a simulation that tells how far a target is
NEAR = 1.15  # times its targets, up to which a longer simulation decides
MORE = 1.5  # times the requests of a simulation, from which it is worth another one
BARELY = 1 + 1e-9  # times its targets, at least, where a load is not served
UNKNOWN = SimulatedRate(requests_per_s=math.nan, n_requests=0)


class SplitSimulator:
    """Simulates splits of a deployment under a load.

    Parameters
    ----------
    deployment : Deployment
        Its requests are simulated over and over.
    instance : Instance
        The deployment, compiled.
    load : Load
        Targets, users, seed, and the largest size of a simulation.
    has_goal : bool
        Whether the largest rate within targets is asked for.
    bound_per_s : float
        An upper bound on the rate of all splits.
    """

    def __init__(
        self,
        deployment: Deployment,
        instance: Instance,
        load: Load,
        *,
        has_goal: bool,
        bound_per_s: float,
    ) -> None:
        self.deployment, self.instance, self.load = deployment, instance, load
        self.has_goal, self.bound_per_s = has_goal, bound_per_s
        self._of_users: dict[Cuts, SimulatedRate] = {}
        self._at_rate: dict[Cuts, tuple[float, bool]] = {}  # stretch, and whether it is served
        self._bounds: dict[Cuts, float] = {}
        self._took_s: dict[Cuts, float] = {}  # seconds of the simulation that ranked a split

    def ranked(
        self, cuts: Cuts, to_beat_per_s: float = 0.0, deadline: Deadline = clock.NEVER
    ) -> SimulatedRate:
        """Simulate a split briefly.

        Where the largest rate within targets is asked for, a split that misses them at `RACED`
        of a rate that is known already is left at that: its rate is nan.

        Parameters
        ----------
        cuts : tuple of int
        to_beat_per_s : float
            The rate of the best split so far.
        deadline : Deadline, optional
            When it has passed, the search within targets ends.
        """
        if not self.has_goal and self.load.users is not None:
            return self.of_users(cuts)
        under_way, n = self._under_way(cuts), self._ranking_requests(cuts)
        began_s = clock.now()
        most = self._most(cuts)
        rate = saturated_rate(
            self.deployment, Partition(cuts), most, n, under_way=under_way, is_quick=True
        )
        self._took_s[cuts] = clock.now() - began_s
        if not self.has_goal:
            return rate
        return rate_within_targets(
            self.deployment, Partition(cuts), self.load,
            min(most, rate.requests_per_s * (1 + under_way / n)),
            self._requests_within(n), deadline,
            least_per_s=RACED * to_beat_per_s,
        )  # fmt: skip

    def refined(
        self,
        cuts: Cuts,
        known: SimulatedRate,
        deadline: Deadline = clock.NEVER,
        *,
        raises: bool = True,
    ) -> tuple[SimulatedRate, bool]:
        """Simulate a split with as many requests as a printed rate needs, or as time allows.

        `raises` says whether a rate within targets that is confirmed is raised.

        Returns
        -------
        rate : SimulatedRate
        is_refined : bool
            Whether the time allowed more than is known.
        """
        if not self.has_goal and self.load.users is not None:
            return known, True
        if self.has_goal:
            return self._refined_within(
                cuts, known, deadline, raises
            ), not deadline.has_passed()
        if not known.is_lower_bound:
            return known, True
        under_way = self._under_way(cuts)
        n, took_s = PRINTED_ROUNDS * under_way, self._took_s.get(cuts, 0.0)
        if took_s > 0:
            n = int(min(n, known.n_requests * deadline.left_s() / took_s))
        if n < MORE * known.n_requests:
            return known, False
        rate = saturated_rate(
            self.deployment, Partition(cuts), self._most(cuts), n,
            under_way=under_way, known=known,
        )  # fmt: skip
        return rate, True

    def _refined_within(
        self, cuts: Cuts, known: SimulatedRate, deadline: Deadline, raises: bool
    ) -> SimulatedRate:
        """Return the largest rate within targets, confirmed by a long simulation."""
        partition = Partition(cuts)
        if math.isnan(known.requests_per_s):  # it lost the race, but it is printed
            if deadline.has_passed():
                return known
            known = self.ranked(cuts, 0.0, deadline)
        n = long_requests(self._under_way(cuts), self.deployment, self.load)
        return confirmed_rate(
            self.deployment, partition, self.load, known, n, deadline,
            largest_per_s=self._most(cuts) if raises else known.requests_per_s,
        )  # fmt: skip

    def of_users(self, cuts: Cuts) -> SimulatedRate:
        """Simulate the users of the load in a closed loop."""
        if cuts not in self._of_users:
            self._of_users[cuts] = rate_of_users(self.deployment, Partition(cuts), self.load)
        return self._of_users[cuts]

    def stretch(self, cuts: Cuts) -> float:
        """Return the factor on the targets at which a split would serve the load, simulated.

        It is at most 1 if and only if the load is served, see
        `hypsolve.planning.slo_answer.judged`. A short simulation that is far from the targets
        is enough.
        """
        if self.load.users is None:
            found, serves = self._stretch_at_rate(cuts)
        else:
            short = replace(self.load, max_visits=min(self.load.max_visits, SHORT_VISITS))
            found, serves = math.inf, False
            if cuts not in self._of_users:
                found = rate_of_users(self.deployment, Partition(cuts), short).stretch
            if cuts in self._of_users or found <= NEAR:
                of_users = self.of_users(cuts)
                found, serves = of_users.stretch, of_users.slo_attainment >= MET
        return min(found, 1.0) if serves else max(found, BARELY)

    def _stretch_at_rate(self, cuts: Cuts) -> tuple[float, bool]:
        if cuts in self._at_rate:
            return self._at_rate[cuts]
        partition, load, serves = Partition(cuts), self.load, False
        n = long_requests(self._under_way(cuts), self.deployment, load)
        short = max(
            MIN_REQUESTS, min(n // 4, SHORT, max_requests(self.deployment, SHORT_VISITS))
        )
        trace = serve_at_rate(self.deployment, partition, load, load.rate_per_s, short)
        found = stretch_of(trace, load)
        if found <= NEAR:
            trace = serve_at_rate(self.deployment, partition, load, load.rate_per_s, n)
            found = stretch_of(trace, load)
            serves = is_served(trace, load) and drains(self.deployment, partition, load, trace)
        self._at_rate[cuts] = found, serves
        return found, serves

    def serves_users(self, cuts: Cuts, users: float) -> float:
        """Return the share of the requests of so many users that are within the targets."""
        load = replace(self.load, users=int(users))
        return rate_of_users(self.deployment, Partition(cuts), load).slo_attainment

    def saturated(self, cuts: Cuts, share: float = 1.0) -> SimulatedRate:
        """Simulate a split where every queue is full; see `saturated_rate`."""
        under_way = self._under_way(cuts)
        n = enough_requests(under_way, self.deployment, self.load.max_visits, share)
        return saturated_rate(
            self.deployment, Partition(cuts), self._most(cuts), n, under_way=under_way
        )

    def _most(self, cuts: Cuts) -> float:
        """Return a rate that the split does not exceed, without users."""
        if cuts not in self._bounds:
            partition = Partition(cuts)
            self._bounds[cuts] = bound_on_rate(self.deployment, self.instance, partition)
        of_split = self._bounds[cuts]
        return of_split if self.load.users is not None else min(self.bound_per_s, of_split)

    def _under_way(self, cuts: Cuts) -> int:
        return room_of(self.deployment, self.instance, Partition(cuts)).running

    def max_sequences(self, cuts: Cuts) -> int:
        """Return the sequences for which a split has room at once; see `Room`."""
        return room_of(self.deployment, self.instance, Partition(cuts)).sequences

    def _requests_within(self, n: int) -> int:
        """Return how many requests tell whether a rate is within targets: at least `n`."""
        if self.load.trace is None:
            return n
        most = max_requests(self.deployment, self.load.max_visits)
        return max(n, min(RANKED, len(self.load.trace), most))

    def _ranking_requests(self, cuts: Cuts) -> int:
        most = max_requests(self.deployment, self.load.max_visits)
        return max(MIN_REQUESTS, min(RANKING_ROUNDS * self._under_way(cuts), most))


def neighbours(instance: Instance, cuts: Cuts) -> Iterator[Cuts]:
    """Yield the splits that fit with one cut moved by one block to the left or right."""
    for k in range(1, len(cuts) - 1):
        for step in (-1, 1):
            moved = (*cuts[:k], cuts[k] + step, *cuts[k + 1 :])
            is_sorted = moved[k - 1] <= moved[k] <= moved[k + 1]
            if is_sorted and not evaluation.check(instance, Partition(moved)):
                yield moved
