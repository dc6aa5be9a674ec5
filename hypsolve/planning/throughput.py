"""`maximise_rate`: the split that serves most requests per second, simulated and bounded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.planning.load import Load, with_requests
from hypsolve.planning.load_search import LoadSearch, LoadSearched
from hypsolve.planning.saturation import MET, SimulatedRate
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.split_race import SplitRace
from hypsolve.planning.split_simulator import RACED, UNKNOWN, Cuts, SplitSimulator
from hypsolve.planning.user_bound import bound_on_users
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
QUEUES_FULL = "requests/s, every queue full"
OF_USERS = "requests/s of these users, who wait for their answers"
RELAXED = (1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Factors on targets that no split meets in the fluid model, until some split meets them."""
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
        queue is full. With users and no targets: the rate that they get, over the seconds from
        the first arrival to the end of the last think time, as in the bound. With targets: the
        largest rate of `Throughput.arrivals` at which 95 % of the requests meet them, with or
        without users. It is nan if it was not looked for to the end: in time, or because the
        split has less than 95 % of the rate of another one.
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
    users_requests_per_s : float
        Requests of the users that they get served, with targets those within them; nan without
        users, and where these were not simulated.
    best_for : tuple of str
        Objectives of requests served one at a time (``bottleneck``, ``path``, ``p0``) whose
        split by HypSplit-DP this is.
    is_confirmed : bool
        False: the rate within the targets was only found in short simulations, and may not be
        served for long.
    """

    origin: str
    cuts: Cuts
    fluid_requests_per_s: float
    simulated_requests_per_s: float
    n_requests: int
    is_lower_bound: bool = False
    slo_attainment: float = math.nan
    within_targets_per_s: float = math.nan
    users_requests_per_s: float = math.nan
    best_for: tuple[str, ...] = ()
    is_confirmed: bool = True

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
        Largest rate of all splits in the fluid model, with targets within them: 0 if no split
        meets them in the model, whose numbers are means.
    bound_requests_per_s : float
        No split and no schedule serves more, under the limits of the runtime, with the degrees
        of tensor parallelism that `bound_is_of_all_degrees` tells. With users and no targets,
        it is the bound on what these users get. With targets, it knows neither these nor users:
        every split may serve far less.
    bound_is_of_all_degrees : bool
        Whether `bound_requests_per_s` also holds for all other degrees of tensor parallelism
        that the runtime can run; False if it is of the degrees of the plan alone.
    bound_is_of_all_nodes : bool
        Whether `bound_requests_per_s` also holds for all other choices of nodes that the server
        can use, with its limits on them; False if it is of the nodes of the plan alone.
    gap : float
        ``1 - simulated_requests_per_s / bound_requests_per_s``; nan if that rate is.
    splits : tuple of ServedSplit
        All that were simulated; the chosen one is first.
    arrivals : str
        How requests arrive at a rate within targets, in words.
    quantity : str
        Which rate `simulated_requests_per_s`, the bound and the gap are about, in words.
    users_requests_per_s : float
        What users get of the chosen split; see `ServedSplit`.
    users_bound_requests_per_s : float
        No split and no schedule serves these users more, with the degrees of tensor parallelism
        of the plan; nan without users.
    at_load : LoadSearched or None
        Splits that were simulated at the load; None if none had to serve it within targets.
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
    bound_is_of_all_nodes: bool = False
    arrivals: str = "Poisson arrivals"
    quantity: str = QUEUES_FULL
    users_requests_per_s: float = math.nan
    users_bound_requests_per_s: float = math.nan
    at_load: LoadSearched | None = None

    def over_nodes(self, bounds: Sequence[float]) -> Throughput:
        """Return a copy with the largest of the bounds of all choices of nodes."""
        bound = max([self.bound_requests_per_s, *bounds])
        return replace(
            self,
            bound_requests_per_s=bound,
            gap=1 - self.simulated_requests_per_s / bound,
            bound_is_of_all_nodes=not self.bound_is_of_all_degrees,
        )

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
    has_limits_of : callable, optional
        Whether the server of the runtime has these limits on the nodes of a split; see
        `PlanQuery.has_limits_of`. No other split is chosen, unless all are others.

    Attributes
    ----------
    relaxed : float
        Factor on the targets at which a split meets them in the fluid model; 1 if one does as
        they are or there are none, inf if none does at any factor that was tried.
    """

    def __init__(
        self,
        deployment: Deployment,
        rules: Mapping[str, Any],
        load: Load,
        *,
        objective: str,
        prices_per_hour: Mapping[str, float],
        has_limits_of: Callable[[Cuts], bool] | None = None,
    ) -> None:
        self.deployment, self.load, self.objective = deployment, load, objective
        self._has_limits_of = has_limits_of
        self._known_limits: dict[tuple[bool, ...], bool] = {}
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
        self.relaxed = 1.0
        self.settled: set[Cuts] = set()  # splits that were simulated at the length for print

    def fluid(self, time_limit_s: float, n_splits: int = N_SPLITS) -> ServingResult:
        """Return the best splits of the fluid model; see `hypsolve.solve`.

        If no split meets the targets at any rate in the model, they are left out: a simulation
        decides.
        """
        for serving, relaxed in self._instances():
            result = solve(
                serving, "throughput_exact", time_limit_s=time_limit_s, n_splits=n_splits
            )
            if result.partition is not None:
                self.relaxed = relaxed
                break
        self.fluid_result = result
        return result

    def claimed(self, time_limit_s: float, n_splits: int = 1) -> tuple[list[Cuts], float]:
        """Return the best splits of the fluid model and the largest rate, as the method claims.

        `fluid` scores each split again in plain Python, which takes most of its time. What is
        simulated next is ranked without that. The list is empty if nothing fits.
        """
        for serving, relaxed in self._instances():
            outcome = throughput_exact(
                serving, time_limit_s=time_limit_s, seed=0, n_splits=n_splits
            )
            if outcome.partition is not None:
                self.relaxed = relaxed
                break
        else:
            return [], 0.0
        if outcome.fluid_bound is None or self.objective == "cost":  # a bound on the price
            rates, _ = self.splits(time_limit_s, n_splits)
            return list(rates), max(rates.values(), default=0.0)
        splits = (outcome.partition, *outcome.alternatives)
        return [each.cuts for each in splits], outcome.fluid_bound

    @property
    def misses_targets(self) -> bool:
        """Whether no split meets the targets at any rate in the fluid model."""
        return self.relaxed > 1

    def _instances(self) -> Iterator[tuple[ServingInstance, float]]:
        """Yield instances with the targets, with larger ones, and without.

        The second value is the factor on the targets: inf where they were left out.
        """
        known = set(self.instance.node_names)
        targets = {"ttft_slo_s": self.load.ttft_slo_s, "tpot_slo_s": self.load.tpot_slo_s}
        goals: dict[str, Any] = {
            "objective": self.objective,
            "prices_per_hour": {n: p for n, p in self.prices_per_hour.items() if n in known},
        }
        for factor in (1.0, *RELAXED * self.has_targets, math.inf):
            slos = {name: None if s is None else factor * s for name, s in targets.items()}
            yield (
                to_serving_instance(
                    self.of_fluid,
                    users=self.load.users,
                    think_time_s=self.load.think_time_s,
                    **self.splits_of,
                    **({} if math.isinf(factor) else goals | slos),
                ),
                factor if self.has_targets else 1.0,
            )

    def bound(self, *, has_users: bool = True) -> float:
        """Return requests per second that no split and no schedule exceeds.

        `has_users` says whether the users of the load send the requests, if it has some.
        """
        users = self.load.users if has_users else None
        bound = throughput_bound(
            self.deployment if users is None else self.of_users,
            users=users,
            think_time_s=self.load.think_time_s if has_users else 0.0,
            **self.splits_of,
        )
        if users is None:
            return bound
        return min(bound, bound_on_users(self.of_users, self.splits_of, self.load))

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
        has_goal = self._has_goal
        bound = self.bound(has_users=not has_goal)
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
        splits = tuple(
            candidates.get(cuts, Candidate(NEIGHBOUR, cuts)).served(race) for cuts in order
        )
        best, has_users = splits[0], self.load.users is not None
        of_users = self.bound() if has_users and has_goal else bound
        quantity = OF_USERS if has_users else QUEUES_FULL
        if has_goal:
            quantity = f"requests/s of {self.load.arrivals} with {MET:.0%} within the targets"
        return Throughput(
            objective=self.objective,
            simulated_requests_per_s=best.simulated_requests_per_s,
            n_requests=best.n_requests,
            is_lower_bound=best.is_lower_bound,
            fluid_requests_per_s=0.0 if self.misses_targets else max(fluid.values()),
            bound_requests_per_s=bound,
            gap=1 - best.simulated_requests_per_s / bound,
            splits=splits,
            arrivals=self.load.arrivals,
            quantity=quantity,
            users_requests_per_s=best.users_requests_per_s,
            users_bound_requests_per_s=of_users if has_users else math.nan,
            at_load=race.searched() if race.asks_load else None,
        )

    def _race(self, candidates: Mapping[Cuts, Candidate], bound_per_s: float) -> SplitRace:
        has_users = self.load.users is not None
        return SplitRace(
            self._simulator(self._has_goal, bound_per_s),
            printed=[cuts for cuts, each in candidates.items() if each.is_printed],
            price=self.price_per_hour if self.objective == "cost" else lambda cuts: 1.0,
            is_allowed=self.is_allowed,
            asks_load=self._has_goal and (has_users or self.objective == "goodput"),
        )

    def search_load(self, deadline: Deadline, progress: Progress) -> LoadSearched:
        """Search a split that serves the load within its targets, and return what is known."""
        rates, _ = self.splits(deadline.part(1.0).limit_s)
        if not rates:
            return LoadSearched(is_met=False, n_simulated=0, n_splits=0, was_cut_short=False)
        simulator = self._simulator(True, self.bound(has_users=False))
        search = LoadSearch(simulator, self.is_allowed)
        search.run(list(self._candidates(rates)), deadline, progress)
        return search.result()

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
        race = self._race({}, self.bound(has_users=not self._has_goal))
        order = race.alone(cuts, deadline, in_full=share >= 1)
        return Candidate("fluid model", cuts).served(race), order

    def raced(self, cuts: Cuts, to_beat_per_s: float, deadline: Deadline) -> float:
        """Return the largest rate within targets of a split, confirmed by long simulations.

        It is nan if a short simulation misses the targets at `to_beat_per_s`, or if the time is
        not enough.
        """
        simulator = self._simulator(True, self.bound(has_users=False))
        rate = simulator.ranked(cuts, to_beat_per_s / RACED, deadline)
        if math.isnan(rate.requests_per_s):
            return math.nan
        rate, is_refined = simulator.refined(cuts, rate, deadline)
        return rate.requests_per_s if is_refined else math.nan

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
        used = tuple(i < j for i, j in itertools.pairwise(cuts))
        if self._has_limits_of is not None and used not in self._known_limits:
            self._known_limits[used] = self._has_limits_of(cuts)
        return self._known_limits.get(used, True)

    @property
    def has_targets(self) -> bool:
        """Whether there is a target for a latency."""
        return self.load.ttft_slo_s is not None or self.load.tpot_slo_s is not None

    @property
    def _has_goal(self) -> bool:
        """Whether the largest rate within targets is asked for."""
        return self.has_targets and self.objective != "throughput"

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
        allowed = [cuts for cuts in fluid if self.is_allowed(cuts)]
        found = {
            cuts: Candidate("fluid model", cuts, math.nan if self.misses_targets else rate)
            for cuts, rate in fluid.items()
            if cuts in allowed or not allowed
        }
        for objective, cuts in self._splits_of_rules():
            if not self.is_allowed(cuts):
                continue
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

    def served(self, race: SplitRace) -> ServedSplit:
        """Return the split with what it serves."""
        rate = race.stated(self.cuts)
        of_users = race.of_users.get(self.cuts, UNKNOWN)
        if race.simulator.load.users is not None and not race.simulator.has_goal:
            of_users = rate
        return ServedSplit(
            origin=self.origin,
            cuts=self.cuts,
            fluid_requests_per_s=self.fluid_requests_per_s,
            simulated_requests_per_s=rate.requests_per_s,
            n_requests=rate.n_requests,
            is_lower_bound=rate.is_lower_bound or math.isnan(rate.requests_per_s),
            slo_attainment=of_users.slo_attainment,
            within_targets_per_s=rate.within_targets_per_s,
            users_requests_per_s=of_users.requests_per_s,
            best_for=self.best_for,
            is_confirmed=rate.is_confirmed,
        )
