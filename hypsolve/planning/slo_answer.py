"""`SloSearch`: whether a load is served within its targets, and the largest loads that are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypsolve.planning.forecast import Forecast, room_of, serve_load
from hypsolve.planning.load import Load, after_start, max_requests, with_requests
from hypsolve.planning.load_search import LoadSearched
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.saturation import (
    MET,
    attained,
    drains,
    enough_requests,
    is_steady,
    long_requests,
    saturated_rate,
    serve_at_rate,
)
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import Deadline

SIMULATION, BOUND, THIS_SPLIT = "simulation", "bound", "this split"
ALL_SPLITS, SOME_SPLITS, TIME_LIMIT = "all splits", "some splits", "time limit"
"""Values of `SloAnswer.decided_by`."""
TOLERANCE = 0.02  # relative difference to which the largest loads are found
MAX_USERS = 100_000
EXACT_USERS = 1000  # up to which the largest number is found to one user
MIN_ROUNDS = 5  # requests of each user in a simulation, or the search is cut
MIN_SHARE = 2.0**-10  # of the largest rate, below which no rate is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class SufficientUpgrade:
    """An upgrade with which the load of a query is served within its targets, simulated.

    Attributes
    ----------
    what : str
        The upgrade in words.
    price_per_hour : float
        Price of what is added; 0 if it needs no hardware, nan if unknown.
    n_gpus : int
        GPUs that are added.
    cuts : tuple of int
        The simulated split.
    slo_attainment : float
        Share of the requests within the targets.
    extrapolated : bool
        Whether no block times were measured with its weights.
    is_upper_bound : bool
        Whether the time limit ended the search: less of it may be enough.
    """

    what: str
    price_per_hour: float
    n_gpus: int
    cuts: tuple[int, ...]
    slo_attainment: float
    extrapolated: bool
    is_upper_bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BetterBudget:
    """A token budget with which the split of a plan serves clearly more within its targets.

    Attributes
    ----------
    what : str
        The change in words, with the flag of the server.
    max_num_batched_tokens, chunk_tokens : int or None
        Limits of the runtime with it.
    max_num_seqs : int
        Limit on the requests with it.
    max_requests_per_s : float
        Largest rate within the targets, confirmed as that of the plan is.
    """

    what: str
    max_num_batched_tokens: int | None
    chunk_tokens: int | None
    max_num_seqs: int
    max_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SloAnswer:
    """Whether the load of a query is served within its targets, and the largest loads that are.

    A load is served within the targets if 95 % of the simulated requests meet every one. All
    values are of the split of the plan. The largest loads are found by bisection, since fewer
    requests meet their targets where the load is larger: rates to 2 %, or to the steps of 4 %
    in which they are confirmed; users to one, or to `max_users_tolerance`.

    Attributes
    ----------
    is_met : bool
        Whether the load of the query is served within the targets.
    slo_attainment : float
        Share of the requests within all targets at this load.
    is_of_later_half : bool
        Whether that share is of the later half of the requests: fewer of them are within the
        targets, so that a queue builds up.
    n_requests : int
        Requests of the simulation of this load that count. Of users, the first request of each
        does not: they all start within one round of a user alone, in a burst that does not come
        again.
    keeps_up : bool
        Whether requests are served as fast as they arrive, as far as it can be told. If not,
        the load is not served, even if a simulation ends before the targets are missed.
    drains : bool
        False: they are, but only until a queue forms, which never drains; see `Forecast`.
        `keeps_up` is then False.
    sustained_requests_per_s : float
        Approximate largest rate that this split keeps up with, without targets; nan if it is
        not known.
    max_users : int
        Largest number of users in a closed loop, with the think time of the query, that are
        served within the targets; 0 if a single one is not.
    max_users_is_lower_bound : bool
        Whether the time limit, an interrupt, or the number of requests of a simulation ended
        the search: more users may be served.
    max_users_tolerance : float
        Share of `max_users` by which more may be served, as one user more was not tried; 0 if
        one user more is not served, or if the number is a lower bound.
    max_requests_per_s : float
        Largest rate of Poisson arrivals, or of those of a trace at another speed, that is
        served within the targets; 0 if there is none.
    max_rate_is_lower_bound : bool
        As `max_users_is_lower_bound`.
    binding_target : str
        ``TTFT`` or ``TPOT``: the target that fewer requests meet where the load is too large;
        empty if no load was seen to miss its targets.
    limited_by : str
        Resource that limits the rate without targets; see `Forecast.limited_by`.
    upgrade : SufficientUpgrade or None
        Cheapest upgrade of those tried with which the load is served within the targets. None
        if it is served already, if none was found, or if none was looked for.
    upgrades_were_tried : bool
        Whether upgrades were looked for to the end.
    decided_by : str
        ``simulation`` if the load is served. Else why it is not, or is not known to be:
        ``bound``, as no split and no schedule serves its rate, or has a time per token below
        `least_tpot_s`; ``all splits``, as none of them serves it in simulation; ``some
        splits``, as none of those that were simulated serves it; ``time limit``, as the clock
        or an interrupt ended the search; or ``this split``, as no other one was tried. It is
        ``bound``, too, if the target for the first token is below `least_ttft_s`.
    least_tpot_s : float
        Bound on the time per output token: no split, no choice of nodes or of degrees and no
        schedule of a query has a smaller one. It is above the target where `decided_by` is
        ``bound`` for that reason, and else nan.
    least_ttft_s : float
        As `least_tpot_s`, for the time to the first token.
    n_simulated_splits : int
        Splits that were simulated at the load, until one served it.
    n_splits : int or None
        Splits that fit on the nodes of the plan, and on other choices of nodes that were
        searched; None if they were not counted.
    n_refuted : int
        Further choices of nodes that were not simulated: a bound refutes the load on them.
    limits : str
        Limits of the runtime on the nodes of the plan, in words.
    better_budget : BetterBudget or None
        Limit on the tokens of a batch with which this split serves clearly more within the
        targets; None if none was found, or looked for.
    """

    is_met: bool
    slo_attainment: float
    is_of_later_half: bool
    n_requests: int
    keeps_up: bool
    sustained_requests_per_s: float
    max_users: int
    max_users_is_lower_bound: bool
    max_requests_per_s: float
    max_rate_is_lower_bound: bool
    binding_target: str
    limited_by: str
    upgrade: SufficientUpgrade | None = None
    upgrades_were_tried: bool = False
    max_users_tolerance: float = 0.0
    decided_by: str = THIS_SPLIT
    n_simulated_splits: int = 1
    n_splits: int | None = None
    n_refuted: int = 0
    limits: str = ""
    better_budget: BetterBudget | None = None
    drains: bool = True
    least_tpot_s: float = math.nan
    least_ttft_s: float = math.nan


def decided(
    answer: SloAnswer, load: Load, at_load: LoadSearched | None, bound_per_s: float
) -> SloAnswer:
    """Return an answer that states what decides it.

    Parameters
    ----------
    answer : SloAnswer
    load : Load
        That of the query.
    at_load : LoadSearched or None
        The search for a split that serves the load; None if there was none.
    bound_per_s : float
        No split and no schedule serves a larger rate.
    """
    if at_load is not None:
        n = max(at_load.n_simulated, 1)
        answer = replace(
            answer,
            n_simulated_splits=n,
            n_splits=at_load.n_splits,
            n_refuted=at_load.n_refuted,
        )
    if answer.is_met:
        return replace(answer, decided_by=SIMULATION)
    if load.users is None and load.rate_per_s > bound_per_s:
        return replace(answer, decided_by=BOUND)
    if at_load is None:
        return answer
    how = ALL_SPLITS if at_load.is_of_all else SOME_SPLITS
    return replace(answer, decided_by=TIME_LIMIT if at_load.was_cut_short else how)


def answer_of(deployment: Deployment, forecast: Forecast) -> SloAnswer:
    """Return what a forecast says of its load; no larger load was looked for."""
    load = forecast.load
    keeps_up = load.users is not None or forecast.keeps_up is not False
    is_met = forecast.slo_attainment >= MET and keeps_up
    n = len(with_requests(deployment, load).requests)
    return SloAnswer(
        is_met=is_met,
        slo_attainment=forecast.slo_attainment,
        is_of_later_half=False,
        keeps_up=keeps_up,
        drains=forecast.drains,
        sustained_requests_per_s=forecast.max_requests_per_s,
        n_requests=n if load.users is None or load.users >= n else n - load.users,
        max_users=(load.users or 0) if is_met else 0,
        max_users_is_lower_bound=True,
        max_requests_per_s=load.rate_per_s if is_met and load.users is None else 0.0,
        max_rate_is_lower_bound=True,
        binding_target="",
        limited_by=forecast.limited_by,
        limits=deployment.runtime.describe_limits(),
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a split serves a load within its targets, simulated.

    Attributes
    ----------
    is_met : bool
        Whether 95 % of the requests are within the targets, and the split keeps up.
    slo_attainment : float
        Share of the requests within all targets; see `hypsolve.planning.saturation.attained`.
    is_of_later_half : bool
        Whether it is that of the later half of the requests.
    keeps_up : bool
        Whether requests are served as fast as they arrive, as far as it can be told.
    trace : Trace
        The simulation.
    """

    is_met: bool
    slo_attainment: float
    is_of_later_half: bool
    keeps_up: bool
    trace: Trace


def judged(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    load: Load,
    *,
    keeps_up: bool | None = None,
) -> Judgement:
    """Judge whether a split serves a load within its targets, by a simulation.

    `keeps_up` says whether the split keeps up with the rate, if it is known; see
    `hypsolve.planning.forecast.sustains`.
    """
    trace = load_trace(deployment, instance, partition, load)
    share, is_of_later_half = attained(trace, load)
    is_known = keeps_up is not None
    keeps_up = load.users is not None or (keeps_up is not False and is_steady(trace))
    if share >= MET and keeps_up and not is_known:
        keeps_up = drains(deployment, partition, load, trace)
    is_met = share >= MET and keeps_up
    return Judgement(is_met, share, is_of_later_half, keeps_up, trace)


def load_trace(
    deployment: Deployment, instance: Instance, partition: Partition, load: Load
) -> Trace:
    """Simulate a load with as many requests as tell whether its targets are met."""
    if load.users is not None:
        return serve_load(deployment, partition, load)
    running = room_of(deployment, instance, partition).running
    n = long_requests(running, deployment, load)
    return serve_at_rate(deployment, partition, load, load.rate_per_s, n)


class Bracket:
    """The largest load that holds, between two loads, while it is searched for.

    Attributes
    ----------
    low : float
        Largest load that is known to hold; 0 at first.
    high : float
        Smallest load that is known not to hold; inf at first.
    is_found : bool
        Whether the search has ended, so that `low` is the answer.
    """

    def __init__(self) -> None:
        self.low, self.high, self.is_found = 0.0, math.inf, False

    def note(self, load: float, holds: bool) -> None:
        """Note whether a load holds."""
        if holds:
            self.low = max(self.low, load)
        else:
            self.high = min(self.high, load)

    def search(
        self,
        holds: Callable[[float], bool],
        *,
        start: float,
        least: float,
        most: float,
        step: float,
        deadline: Deadline,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Double or halve a load until it brackets the answer, then bisect.

        Parameters
        ----------
        holds : callable
            Whether a load holds; of smaller loads, all do.
        start : float
            The load that is tried first, unless others are noted.
        least, most : float
            Range of the loads that are tried.
        step : float
            Loads are multiples of it, and the answer is found to `step` or to `tolerance`; 0:
            loads are real numbers.
        deadline : Deadline
            When it has passed, the search ends, and `low` is a lower bound.
        tolerance : float
            Relative difference to which the answer is found.
        """

        def next_load() -> float:
            if math.isinf(self.high):
                return min(2 * self.low, most) if self.low else start
            if not self.low:
                return min(self.high / 2, start)
            return (self.low + self.high) / 2

        start = min(max(start, least), most)
        while not self.is_found and not deadline.has_passed():
            load = next_load()
            load = max(load // step * step, step) if step else load
            is_small = load < least or load >= self.high
            is_close = self.high - self.low <= max(step, tolerance * self.low)
            if is_small or is_close or self.low >= most:
                self.is_found = self.low < most or most == least
                return
            self.note(load, holds(load))


class SloSearch:
    """Answers whether the split of a plan serves a load within its targets.

    Parameters
    ----------
    deployment, instance, partition
        As in `hypsolve.planning.forecast.predict`.
    load : Load
        With a target for the first token or the later ones.
    forecast : Forecast
        Of this load.
    within_targets_per_s : float
        Largest rate within the targets, if it is known already; nan: it is searched.
    is_lower_bound : bool
        Whether larger rates may be within the targets, so that the search goes on.
    is_confirmed : bool
        Whether a long simulation has confirmed that rate. If not, the search starts with it,
        and it is not part of an answer.
    """

    def __init__(
        self,
        deployment: Deployment,
        instance: Instance,
        partition: Partition,
        load: Load,
        forecast: Forecast,
        within_targets_per_s: float = math.nan,
        *,
        is_lower_bound: bool = False,
        is_confirmed: bool = True,
    ) -> None:
        self.deployment, self.instance, self.partition = deployment, instance, partition
        self.load, self.forecast = load, forecast
        self.users, self.rate = Bracket(), Bracket()
        self.failing: tuple[float, Trace] | None = None  # attainment of the least bad failure
        asked = judged(deployment, instance, partition, load, keeps_up=forecast.keeps_up)
        self.asked = asked
        if asked.slo_attainment < MET:
            self.failing = asked.slo_attainment, asked.trace
        if load.users is not None:
            self.users.note(load.users, asked.is_met)
        else:
            self.rate.note(load.rate_per_s, asked.is_met)
        self.start_per_s = within_targets_per_s  # to be confirmed
        if not math.isnan(within_targets_per_s) and is_confirmed:
            self.rate.low = max(self.rate.low, within_targets_per_s)
            self.rate.is_found = not is_lower_bound

    def run(self, deadline: Deadline, progress: Progress) -> None:
        """Search the largest rate and the largest number of users; `answer` can be read then.

        A KeyboardInterrupt passes through; `answer` then holds what is known.
        """
        n_done = 0

        def tell(load: float, unit: str) -> None:
            nonlocal n_done
            n_done += 1
            known = self.users.low if unit == "users" else self.rate.low
            progress(f"targets, simulation {n_done}: {load:.4g} {unit}, at least {known:.3g}")

        def holds_rate(rate_per_s: float) -> bool:
            tell(rate_per_s, "requests/s")
            return self._holds(replace(self.load, users=None, rate_per_s=rate_per_s))

        def holds_users(users: float) -> bool:
            tell(users, "users")
            return self._holds(replace(self.load, users=int(users)))

        of_rate = deadline.part(0.5)
        if not self.rate.is_found and not of_rate.has_passed():
            most = max(self._saturated_per_s(), self.rate.low)
            start = self.start_per_s if self.start_per_s > 0 else most
            self.rate.search(
                holds_rate, start=start, least=MIN_SHARE * most, most=most, step=0.0,
                deadline=of_rate,
            )  # fmt: skip
            self.rate.is_found = self.rate.is_found or self.rate.low >= most
        largest = max_requests(self.deployment, self.load.max_visits) // MIN_ROUNDS
        most = float(max(min(MAX_USERS, largest), 1))
        self.users.search(
            holds_users, start=self._users_at(self.rate.low), least=1.0, most=most, step=1.0,
            deadline=deadline,
        )  # fmt: skip
        if self.users.is_found and self.users.low <= EXACT_USERS and self.users.low < most:
            self.users.is_found = False
            try:
                self.users.search(
                    holds_users, start=self.users.low, least=1.0, most=most, step=1.0,
                    deadline=deadline, tolerance=0.0,
                )  # fmt: skip
            finally:  # it is known to the tolerance in any case
                self.users.is_found = True

    def answer(self) -> SloAnswer:
        """Return what is known."""
        asked = self.load.rate_per_s if self.load.users is None else self.load.users
        bracket = self.rate if self.load.users is None else self.users
        return SloAnswer(
            is_met=self.asked.is_met or (self.asked.keeps_up and bracket.low >= asked),
            slo_attainment=self.asked.slo_attainment,
            is_of_later_half=self.asked.is_of_later_half,
            n_requests=int(after_start(self.asked.trace).sum()),
            keeps_up=self.asked.keeps_up,
            drains=self.forecast.drains,
            sustained_requests_per_s=self._sustained_per_s(),
            max_users=int(self.users.low),
            max_users_is_lower_bound=not self.users.is_found,
            max_users_tolerance=self._users_tolerance(),
            max_requests_per_s=self.rate.low,
            max_rate_is_lower_bound=not self.rate.is_found,
            binding_target="" if self.failing is None else self._binding(self.failing[1]),
            limited_by=self.forecast.limited_by,
            limits=self.deployment.runtime.describe_limits(),
        )

    def _users_tolerance(self) -> float:
        users = self.users
        if not users.is_found or not users.low or math.isinf(users.high):
            return 0.0
        return max(users.high - 1 - users.low, 0.0) / users.low

    def _sustained_per_s(self) -> float:
        """Return the rate that the split keeps up with: at least the one within targets."""
        known = (self.forecast.max_requests_per_s, self.rate.low or math.nan)
        return max((each for each in known if not math.isnan(each)), default=math.nan)

    def _users_at(self, rate_per_s: float) -> float:
        """Return the users of a rate by Little's law, with the mean latency of the forecast."""
        round_s = self.forecast.latency_s.mean + self.load.think_time_s
        return max(1.0, rate_per_s * round_s) if math.isfinite(round_s) else 1.0

    def _saturated_per_s(self) -> float:
        """Return the rate that is served where every queue is full."""
        deployment, instance, partition = self.deployment, self.instance, self.partition
        running = room_of(deployment, instance, partition).running
        n = enough_requests(running, deployment, self.load.max_visits)
        bound = bound_on_rate(deployment, instance, partition)
        return saturated_rate(deployment, partition, bound, n).requests_per_s

    def _holds(self, load: Load) -> bool:
        verdict = judged(self.deployment, self.instance, self.partition, load)
        share = verdict.slo_attainment
        if share < MET and (self.failing is None or share > self.failing[0]):
            self.failing = share, verdict.trace
        return verdict.is_met

    def _binding(self, trace: Trace) -> str:
        """Return the target that fewer requests of a simulation meet, the start left out."""
        counts = after_start(trace)
        missed = {
            name: (times_s > limit_s)[counts].mean()  # nan: a request of one token has no TPOT
            for name, times_s, limit_s in (
                ("TTFT", trace.ttft_s, self.load.ttft_slo_s),
                ("TPOT", trace.tpot_s, self.load.tpot_slo_s),
            )
            if limit_s is not None
        }
        return max(missed, key=missed.__getitem__)
