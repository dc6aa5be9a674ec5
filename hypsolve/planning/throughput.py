"""`maximise_rate`: the split that serves most requests per second, simulated and bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.planning.forecast import room_of
from hypsolve.planning.load import Load
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.saturation import (
    MET,
    PRINTED_ROUNDS,
    SimulatedRate,
    enough_requests,
    rate_of_users,
    rate_within_targets,
    saturated_rate,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.result import Result
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import Method, solve
from hypsolve.solvers import clock
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.exact import throughput_exact
from hypsolve.solvers.throughput.server_arrays import FAMILIES

RULES = (Objective.BOTTLENECK, Objective.PATH, Objective.P0)
"""Objectives of requests served one at a time, whose best splits are simulated, too."""
FIRST_SHARE = 0.1  # of the requests of a full simulation, to rank splits before it
Cuts = tuple[int, ...]
MORE = 1.5  # times the requests of a simulation, from which it is worth another one
FINALISTS = 3  # splits that are simulated in full
N_SPLITS = 6  # best splits of the fluid model that are simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSplit:
    """A split, and the rates that it serves.

    Attributes
    ----------
    origin : str
        ``fluid model``, or the objective of requests served one at a time whose best split it
        is.
    cuts : tuple of int
    fluid_requests_per_s : float
        Rate in the fluid model; nan if it was not computed.
    simulated_requests_per_s : float
        Requests over the seconds from the first arrival to the last completion, where every
        queue is full. With targets: the largest rate at which 95 % of the requests meet them.
        With users: the rate that they get, of requests within the targets if there are any;
        but `within_targets_per_s`, if that was looked for.
    n_requests : int
        Requests of that simulation.
    is_lower_bound : bool
        Whether the split may serve clearly more: so few requests were simulated in time that
        the seconds in which the first ones fill the pipeline, and the last ones leave it, count
        for more than 2 % of the rate; or the search for a rate within targets was cut short.
    slo_attainment : float
        Share of the requests of the users that are within the targets; nan without both.
    within_targets_per_s : float
        Largest rate of Poisson arrivals at which 95 % of the requests meet the targets; nan
        without targets, and with users who are served within them.
    best_for : tuple of str
        Objectives of requests served one at a time (``bottleneck``, ``path``, ``p0``) whose
        split by HypSplit-DP this is.
    """

    origin: str
    cuts: Cuts
    fluid_requests_per_s: float
    simulated_requests_per_s: float
    n_requests: int
    is_lower_bound: bool = False
    slo_attainment: float = math.nan
    within_targets_per_s: float = math.nan
    best_for: tuple[str, ...] = ()

    @property
    def misses_targets(self) -> bool:
        """Whether users are not served within the targets; False without users or targets."""
        return self.slo_attainment < MET


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Hold the rate of the best simulated split, and how far any other could be ahead.

    Attributes
    ----------
    objective : str
        ``throughput``, ``goodput`` or ``cost``.
    simulated_requests_per_s : float
        Of the chosen split; see `ServedSplit`.
    n_requests : int
        Requests of that simulation.
    is_lower_bound : bool
        Whether that split may serve clearly more; see `ServedSplit`.
    fluid_requests_per_s : float
        Largest rate of all splits in the fluid model.
    bound_requests_per_s : float
        No split and no schedule serves more, under the limits of the runtime.
    bound_is_of_all_degrees : bool
        Whether `bound_requests_per_s` also holds for all other degrees of tensor parallelism
        that the runtime can run; False if it is of the degrees of the plan alone.
    gap : float
        ``1 - simulated_requests_per_s / bound_requests_per_s``.
    splits : tuple of ServedSplit
        All that were simulated; the chosen one is first.
    """

    objective: str
    simulated_requests_per_s: float
    n_requests: int
    is_lower_bound: bool
    fluid_requests_per_s: float
    bound_requests_per_s: float
    gap: float
    splits: tuple[ServedSplit, ...]
    bound_is_of_all_degrees: bool = False

    def over_degrees(self, bounds: Sequence[float]) -> Throughput:
        """Return a copy with the largest of some degrees' bounds, if all are known."""
        bound = max([self.bound_requests_per_s, *bounds])
        if any(map(math.isnan, bounds)):
            return self
        return replace(
            self,
            bound_requests_per_s=bound,
            gap=1 - self.simulated_requests_per_s / bound,
            bound_is_of_all_degrees=True,
        )


class RateSearch:
    """The best split of a deployment for requests per second, simulated and bounded.

    Parameters
    ----------
    deployment : Deployment
        Its first request stands for all.
    rules : mapping
        Keyword arguments of `hypsolve.to_instance`.
    load : Load
        Targets, users, seed, and the largest size of a simulation.
    objective : {"throughput", "goodput", "cost"}
    prices_per_hour : mapping of node name to float
        For the objective ``cost``.
    """

    def __init__(
        self,
        deployment: Deployment,
        rules: Mapping[str, Any],
        load: Load,
        *,
        objective: str,
        prices_per_hour: Mapping[str, float],
    ) -> None:
        self.deployment, self.load, self.objective = deployment, load, objective
        self.splits_of = {key: value for key, value in rules.items() if key != "stage_rule"}
        self.prices_per_hour = dict(prices_per_hour)
        self.instance = to_instance(deployment, objective=Objective.PATH, **rules)
        self.interrupted = False
        self.fluid_result: ServingResult | None = None  # of the last call of `fluid`
        self._of_users: dict[Cuts, SimulatedRate] = {}
        self.misses_targets = False  # all splits, at any rate in the fluid model
        self.settled: set[Cuts] = set()  # splits that were simulated at the length for print

    def fluid(self, time_limit_s: float, n_splits: int = N_SPLITS) -> ServingResult:
        """Return the best splits of the fluid model; see `hypsolve.solve`.

        If no split meets the targets at any rate in the model, they are left out: a simulation
        decides.
        """
        for serving, misses_targets in self._instances():
            result = solve(
                serving, "throughput_exact", time_limit_s=time_limit_s, n_splits=n_splits
            )
            if result.partition is not None:
                self.misses_targets = misses_targets
                break
        self.fluid_result = result
        return result

    def claimed(self, time_limit_s: float, n_splits: int = 1) -> tuple[list[Cuts], float]:
        """Return the best splits of the fluid model and the largest rate, as the method claims.

        `fluid` scores each split again in plain Python, which takes most of its time. What is
        simulated next is ranked without that. The list is empty if nothing fits.
        """
        for serving, misses_targets in self._instances():
            outcome = throughput_exact(
                serving, time_limit_s=time_limit_s, seed=0, n_splits=n_splits
            )
            if outcome.partition is not None:
                self.misses_targets = misses_targets
                break
        else:
            return [], 0.0
        if outcome.fluid_bound is None or self.objective == "cost":  # a bound on the price
            rates, _ = self.splits(time_limit_s, n_splits)
            return list(rates), max(rates.values(), default=0.0)
        splits = (outcome.partition, *outcome.alternatives)
        return [each.cuts for each in splits], outcome.fluid_bound

    def _instances(self) -> Iterator[tuple[ServingInstance, bool]]:
        """Yield the instance with the targets, and then without; whether these are missed."""
        known = set(self.instance.node_names)
        goals: dict[str, Any] = {
            "objective": self.objective,
            "ttft_slo_s": self.load.ttft_slo_s,
            "tpot_slo_s": self.load.tpot_slo_s,
            "prices_per_hour": {n: p for n, p in self.prices_per_hour.items() if n in known},
        }
        for each in (goals, {}):
            yield (
                to_serving_instance(
                    self.deployment,
                    users=self.load.users,
                    think_time_s=self.load.think_time_s,
                    **self.splits_of,
                    **each,
                ),
                not each and self.has_targets,
            )

    def bound(self, *, has_users: bool = True) -> float:
        """Return requests per second that no split and no schedule exceeds.

        `has_users` says whether the users of the load send the requests, if it has some.
        """
        return throughput_bound(
            self.deployment,
            users=self.load.users if has_users else None,
            think_time_s=self.load.think_time_s if has_users else 0.0,
            **self.splits_of,
        )

    def splits(
        self, time_limit_s: float, n_splits: int = N_SPLITS
    ) -> tuple[dict[Cuts, float], Outcome]:
        """Return the best splits of the fluid model with their rates, and the best one."""
        fluid = self.fluid(time_limit_s, n_splits)
        if fluid.partition is None:
            return {}, Outcome(fluid.status, message=fluid.message)
        rates = {fluid.partition.cuts: fluid.fluid_requests_per_s}
        rates |= {each.cuts: at.fluid_requests_per_s for each, at in fluid.alternatives}
        outcome = Outcome(Status.FEASIBLE, fluid.partition, message="fluid model")
        return rates, outcome

    def method(self, outcome: Callable[[], Outcome]) -> Method:
        """Return a method for `hypsolve.solve` that gives an outcome."""

        def throughput(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
            return outcome()

        family = FAMILIES[self.deployment.runtime.batching]
        return Method(throughput, "partition", kernels=("hypsplit", family))

    def run(
        self, time_limit_s: float, progress: Progress | None = None
    ) -> tuple[Result, Throughput | None]:
        """Return the split that serves most in simulation, and what it serves.

        If the time limit passes, or at a KeyboardInterrupt, the best split so far is returned.
        """
        deadline = Deadline(time_limit_s)
        served: list[Throughput] = []

        def best_simulated() -> Outcome:
            rates, outcome = self.splits(time_limit_s)
            if not rates:
                return outcome
            found = self._simulate(rates, deadline, progress or (lambda line: None))
            served.append(found)
            message = f"{len(found.splits)} splits simulated"
            return Outcome(Status.FEASIBLE, Partition(found.splits[0].cuts), message=message)

        result = solve(self.instance, self.method(best_simulated), time_limit_s=time_limit_s)
        return result, served[0] if served else None

    def _simulate(
        self, fluid: Mapping[Cuts, float], deadline: Deadline, progress: Progress
    ) -> Throughput:
        """Rank splits by short simulations, and simulate the `FINALISTS` best in full.

        The splits of `RULES`, which are printed beside the best, are simulated in full, too.
        """
        bound = self.bound()
        candidates = self._candidates(fluid)
        served: dict[Cuts, ServedSplit] = {}
        in_full: set[Cuts] = set()
        known: dict[Cuts, tuple[SimulatedRate, float]] = {}

        def simulate(cuts: Cuts, share: float) -> None:
            began_s = clock.now()
            rate = self._rate(cuts, share, bound, deadline)
            known[cuts] = rate, clock.now() - began_s
            served[cuts] = candidates[cuts].served(rate)
            best = max(each.simulated_requests_per_s for each in served.values())
            progress(
                f"{len(served)} of {len(candidates)} splits simulated, best"
                f" {best:.3g} requests/s, gap {1 - best / bound:.1%}"
            )

        def by_rate(cuts: Cuts) -> tuple[float, ...]:
            return self._order(served[cuts])

        try:
            for cuts in candidates:
                if served and deadline.has_passed():
                    break
                simulate(cuts, FIRST_SHARE)
            finals = sorted(served, key=by_rate)[:FINALISTS]
            beside = [cuts for cuts in served if candidates[cuts].is_printed]
            finals += [cuts for cuts in beside if cuts not in finals]
            for cuts in finals:
                if deadline.has_passed():
                    break
                simulate(cuts, 1.0)
                in_full.add(cuts)
            chosen = min(served, key=lambda cuts: (cuts not in in_full, by_rate(cuts)))
            printed = list(dict.fromkeys((chosen, *beside)))
            for at, cuts in enumerate(printed):
                mine = deadline.part(1 / (len(printed) - at + 1))
                settled = self._settled(cuts, *known[cuts], bound, mine)
                served[cuts] = candidates[cuts].served(settled)
                self.settled.add(cuts)
        except KeyboardInterrupt:
            if not served:
                raise
            self.interrupted = True
        order = sorted(served, key=lambda cuts: (cuts not in in_full, by_rate(cuts)))
        best = served[order[0]]
        if best.misses_targets:
            bound = self.bound(has_users=False)
        return Throughput(
            objective=self.objective,
            simulated_requests_per_s=best.simulated_requests_per_s,
            n_requests=best.n_requests,
            is_lower_bound=best.is_lower_bound,
            fluid_requests_per_s=max(fluid.values()),
            bound_requests_per_s=bound,
            gap=1 - best.simulated_requests_per_s / bound,
            splits=tuple(served[cuts] for cuts in order),
        )

    def _rate(
        self, cuts: Cuts, share: float, bound: float, deadline: Deadline
    ) -> SimulatedRate:
        """Simulate a split, with a share of the requests of a full simulation.

        With users, the largest rate within the targets is looked for in a full simulation, if
        they are not served within the targets.
        """
        partition = Partition(cuts)
        has_targets = self.has_targets and self.objective != "throughput"
        if self.load.users is not None:
            if cuts not in self._of_users:
                self._of_users[cuts] = rate_of_users(self.deployment, partition, self.load)
            of_users = self._of_users[cuts]
            if not has_targets or share < 1 or of_users.slo_attainment >= MET:
                return of_users
        # with users, the bound is for so many of them
        rate = self.saturated(cuts, share, math.inf if self.load.users is not None else bound)
        if not has_targets:
            return rate
        within = rate_within_targets(
            self.deployment,
            partition,
            self.load,
            rate.requests_per_s,
            rate.n_requests,
            deadline,
        )
        share_of_users = math.nan if self.load.users is None else of_users.slo_attainment
        return replace(
            within,
            within_targets_per_s=within.requests_per_s,
            slo_attainment=share_of_users,
        )

    def served(
        self, cuts: Cuts, share: float, deadline: Deadline
    ) -> tuple[ServedSplit, tuple[float, ...]]:
        """Simulate one split as `run` does, and return what it serves.

        Parameters
        ----------
        cuts : tuple of int
        share : float
            Share of the requests of a full simulation.
        deadline : Deadline
            When it has passed, the search for a rate within the targets ends.

        Returns
        -------
        served : ServedSplit
        order : tuple of float
            The smallest is the best, over splits and over networks.
        """
        rate = self._rate(cuts, share, self.bound(), deadline)
        served = Candidate("fluid model", cuts).served(rate)
        return served, self._order(served)

    def saturated(
        self, cuts: Cuts, share: float = 1.0, bound_per_s: float = math.inf
    ) -> SimulatedRate:
        """Simulate a split where every queue is full.

        Parameters
        ----------
        cuts : tuple of int
        share : float
            Share of the requests of a full simulation.
        bound_per_s : float
            An upper bound on the rate, beside the one of this split.
        """
        partition = Partition(cuts)
        under_way = room_of(self.deployment, self.instance, partition).running
        n = enough_requests(under_way, self.deployment, self.load.max_visits, share)
        most = min(bound_per_s, bound_on_rate(self.deployment, self.instance, partition))
        return saturated_rate(self.deployment, partition, most, n, under_way=under_way)

    def _settled(
        self, cuts: Cuts, rate: SimulatedRate, took_s: float, bound: float, deadline: Deadline
    ) -> SimulatedRate:
        """Simulate a split again, with as many requests as a printed rate needs.

        If the time does not allow that, with as many as it allows: two simulations of the
        known size took `took_s` seconds.
        """
        has_goal = self.objective != "throughput" and self.has_targets
        if has_goal or self.load.users is not None or not rate.is_lower_bound:
            return rate
        partition = Partition(cuts)
        under_way = room_of(self.deployment, self.instance, partition).running
        n = PRINTED_ROUNDS * under_way
        if took_s > 0:
            n = min(n, int(rate.n_requests * deadline.left_s() / took_s))
        if n < MORE * rate.n_requests:
            return rate
        most = min(bound, bound_on_rate(self.deployment, self.instance, partition))
        return saturated_rate(
            self.deployment, partition, most, n, under_way=under_way, known=rate
        )

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        return self.load.ttft_slo_s is not None or self.load.tpot_slo_s is not None

    def _order(self, served: ServedSplit) -> tuple[float, ...]:
        """Return the key that sorts splits, the best first.

        With users and targets, splits that serve the users within the targets come first, then
        those that serve the largest rate within them.
        """
        return served.misses_targets, -self._value(served)

    def _value(self, served: ServedSplit) -> float:
        """Return what is maximised: the rate, or under ``cost`` requests per price."""
        if self.objective != "cost":
            return served.simulated_requests_per_s
        hourly = self.price_per_hour(served.cuts)
        return served.simulated_requests_per_s / hourly if hourly else math.inf

    def price_per_hour(self, cuts: Cuts) -> float:
        """Return the price of all nodes of the tiers that host blocks; others cost nothing."""
        return math.fsum(
            self.prices_per_hour.get(node.name, 0.0)
            for k, tier in enumerate(self.deployment.network.tiers)
            if cuts[k] < cuts[k + 1]
            for node in tier.nodes
        )

    def _candidates(self, fluid: Mapping[Cuts, float]) -> dict[Cuts, Candidate]:
        """Return the splits to simulate, those of the fluid model first."""
        found = {cuts: Candidate("fluid model", cuts, rate) for cuts, rate in fluid.items()}
        for objective, cuts in self._splits_of_rules():
            each = found.get(cuts, Candidate(objective, cuts))
            found[cuts] = replace(each, best_for=(*each.best_for, objective), is_printed=True)
        return found

    def _splits_of_rules(self) -> Iterator[tuple[str, Cuts]]:
        """Yield the objectives of `RULES`, and their splits."""
        for objective in RULES:
            if objective is Objective.P0 and self.instance.allow_empty:
                continue  # it has no empty stages
            alone = self.instance.replace(objective=objective)
            partition = solve(alone, "hypsplit_dp").partition
            if partition is not None:
                yield str(objective), partition.cuts


@dataclass(frozen=True, slots=True)
class Candidate:
    """A split that is simulated; attributes are those of `ServedSplit`.

    `is_printed` says whether its rate is printed beside that of the best split, so that it is
    simulated in full.
    """

    origin: str
    cuts: Cuts
    fluid_requests_per_s: float = math.nan
    best_for: tuple[str, ...] = ()
    is_printed: bool = False

    def served(self, rate: SimulatedRate) -> ServedSplit:
        """Return the split with a rate that it serves."""
        return ServedSplit(
            origin=self.origin,
            cuts=self.cuts,
            fluid_requests_per_s=self.fluid_requests_per_s,
            simulated_requests_per_s=rate.requests_per_s,
            n_requests=rate.n_requests,
            is_lower_bound=rate.is_lower_bound,
            slo_attainment=rate.slo_attainment,
            within_targets_per_s=rate.within_targets_per_s,
            best_for=self.best_for,
        )
