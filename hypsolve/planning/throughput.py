"""`maximise_rate`: the split that serves most requests per second, simulated and bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.planning.load import Load, with_requests
from hypsolve.planning.saturation import MET, SimulatedRate
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.split_race import SplitRace
from hypsolve.planning.split_simulator import UNKNOWN, Cuts, SplitSimulator
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.result import Result
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import Method, solve
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.exact import throughput_exact
from hypsolve.solvers.throughput.server_arrays import FAMILIES

RULES = (Objective.BOTTLENECK, Objective.PATH, Objective.P0)
"""Objectives of requests served one at a time, whose best splits are simulated, too."""
PROPORTIONAL = ("speed_proportional", "memory_proportional")
"""Rules in use today whose splits are simulated, too: small stages bunch batches in waves."""
NEIGHBOUR = "neighbour"  # origin of a split with one cut moved
FIRST_SHARE = 0.1  # of the requests of a full simulation, to rank splits of an upgrade
N_SPLITS = 6  # best splits of the fluid model that are simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSplit:
    """A split, and the rates that it serves.

    Attributes
    ----------
    origin : str
        ``fluid model``, the objective of requests served one at a time whose best split it is,
        the rule that made it, or ``neighbour``: a better split with a cut moved by one block.
    cuts : tuple of int
    fluid_requests_per_s : float
        Rate in the fluid model; nan if it was not computed.
    simulated_requests_per_s : float
        Requests over the seconds from the first arrival to the last completion, where every
        queue is full. With users: the rate that they get. With targets: the largest rate of
        `Throughput.arrivals` at which 95 % of the requests meet them; but where the chosen
        split serves the users within the targets, the rate of their requests within the
        targets. All splits of a plan state the same of these. It is nan if it was not looked
        for to the end: in time, or because the split has less than 95 % of the rate of another
        one.
    n_requests : int
        Requests of that simulation.
    is_lower_bound : bool
        Whether the split may serve clearly more: so few requests were simulated in time that
        the seconds in which the first ones fill the pipeline, and the last ones leave it, count
        for more than 2 % of the rate; or the search for a rate within targets was cut short,
        or there was none.
    slo_attainment : float
        Share of the requests of the users that are within the targets; nan without both.
    within_targets_per_s : float
        Largest rate of `Throughput.arrivals` at which 95 % of the requests meet the targets, of
        all and of the later half; nan without targets, and where it was not looked for to the
        end.
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
        No split and no schedule serves more, under the limits of the runtime, with the degrees
        of tensor parallelism that `bound_is_of_all_degrees` tells.
        It knows no targets: with targets, every split may serve far less.
    bound_is_of_all_degrees : bool
        Whether `bound_requests_per_s` also holds for all other degrees of tensor parallelism
        that the runtime can run; False if it is of the degrees of the plan alone.
    gap : float
        ``1 - simulated_requests_per_s / bound_requests_per_s``; nan if that rate is.
    splits : tuple of ServedSplit
        All that were simulated; the chosen one is first.
    arrivals : str
        How requests arrive at a rate within targets, in words.
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
    arrivals: str = "Poisson arrivals"

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
        Its requests are simulated over and over. With targets, and for users, those of the load
        are, if it has a trace.
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
        self.of_users = self.of_fluid = deployment
        if load.mix is not None and load.users is not None:
            self.of_users = with_requests(deployment, load)
        if load.trace is not None:
            self.of_fluid = replace(deployment, requests=load.trace)
        self.splits_of = {key: value for key, value in rules.items() if key != "stage_rule"}
        self.prices_per_hour = dict(prices_per_hour)
        self.instance = to_instance(deployment, objective=Objective.PATH, **rules)
        self.interrupted = False
        self.fluid_result: ServingResult | None = None  # of the last call of `fluid`
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
                    self.of_fluid,
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
        users = self.load.users if has_users else None
        return throughput_bound(
            self.deployment if users is None else self.of_users,
            users=users,
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
        """Simulate splits, and return what the best one serves; see `SplitRace`."""
        bound = self.bound()
        candidates = self._candidates(fluid)
        race = self._race(candidates, bound)
        try:
            race.run(list(candidates), deadline, progress)
        except KeyboardInterrupt:
            if not race.rates:
                raise
            self.interrupted = True
        self.settled = race.in_full
        order = race.order()
        is_of_users = race.serves_users(order[0])
        splits = tuple(
            candidates.get(cuts, Candidate(NEIGHBOUR, cuts)).served(race, is_of_users)
            for cuts in order
        )
        best = splits[0]
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
            splits=splits,
            arrivals=self.load.arrivals,
        )

    def _race(self, candidates: Mapping[Cuts, Candidate], bound_per_s: float) -> SplitRace:
        has_goal = self.has_targets and self.objective != "throughput"
        return SplitRace(
            self._simulator(has_goal, bound_per_s),
            printed=[cuts for cuts, each in candidates.items() if each.is_printed],
            price=self.price_per_hour if self.objective == "cost" else lambda cuts: 1.0,
            is_allowed=self.is_allowed,
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
        race = self._race({}, self.bound())
        order = race.alone(cuts, deadline, in_full=share >= 1)
        served = Candidate("fluid model", cuts).served(race, race.serves_users(cuts))
        return served, order

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
        return self._simulator(False, bound_per_s).saturated(cuts, share)

    def _simulator(self, has_goal: bool, bound_per_s: float) -> SplitSimulator:
        return SplitSimulator(
            self.deployment,
            self.instance,
            self.load,
            has_goal=has_goal,
            bound_per_s=bound_per_s,
        )

    def is_allowed(self, cuts: Cuts) -> bool:
        """Return whether a split that fits may be chosen."""
        return True

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        return self.load.ttft_slo_s is not None or self.load.tpot_slo_s is not None

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
        for rule in PROPORTIONAL:
            partition = solve(self.instance, rule).partition
            if partition is not None and self.is_allowed(partition.cuts):
                found.setdefault(partition.cuts, Candidate(rule, partition.cuts))
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

    def served(self, race: SplitRace, is_of_users: bool) -> ServedSplit:
        """Return the split with what it serves.

        `is_of_users` says whether the rate of the users is what the best split is chosen by,
        so that it is stated for all splits.
        """
        rate, of_users = race.stated(self.cuts), race.of_users.get(self.cuts, UNKNOWN)
        within_per_s, stated = rate.within_targets_per_s, of_users if is_of_users else rate
        if is_of_users and (self.cuts not in race.in_full or rate.is_lower_bound):
            within_per_s = math.nan
        known = of_users if of_users.n_requests else rate
        return ServedSplit(
            origin=self.origin,
            cuts=self.cuts,
            fluid_requests_per_s=self.fluid_requests_per_s,
            simulated_requests_per_s=stated.requests_per_s,
            n_requests=stated.n_requests,
            is_lower_bound=stated.is_lower_bound or math.isnan(stated.requests_per_s),
            slo_attainment=known.slo_attainment,
            within_targets_per_s=within_per_s,
            best_for=self.best_for,
        )
