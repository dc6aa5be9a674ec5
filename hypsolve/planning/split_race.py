"""`SplitRace`: of many splits, the one that serves most in simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from hypsolve.planning.load_search import LoadSearch, LoadSearched
from hypsolve.planning.saturation import MET, SimulatedRate
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import Bracket
from hypsolve.planning.split_simulator import Cuts, SplitSimulator, neighbours
from hypsolve.solvers.clock import Deadline

FINALISTS = 2  # splits that are simulated at length
MAX_CLIMBED = 8  # neighbours that are simulated to rank them
LOAD_SHARE = 0.35  # of the time, for a split that serves the load within its targets
TIE = 0.01  # relative difference of rates, within which simulations tell no order
CLIMB_SHARE = 0.4  # of the time that is left, for neighbours
LEAST_SHARE = 0.4  # of the time that is left, for each split that is simulated at length
MAX_USERS = 10_000  # that are looked for to compare splits


class SplitRace:
    """Ranks splits by short simulations, climbs to better neighbours, simulates the best ones.

    With targets, a split that serves the load is looked for first, see `LoadSearch`. Of those
    that serve it, the one with the largest rate within the targets is the best. Of splits that
    meet the targets at no rate, it is the one with the least factor on them. Of splits whose
    rates differ by less than `TIE`, the one with fewest stages is preferred, then the one with
    most room for KV cache, and then the most even one.

    Attributes
    ----------
    search : LoadSearch
        The splits that were simulated at the load.
    rates : dict
        What each split serves, of users if there are no targets; with targets the largest rate
        within them, nan where it was not looked for to the end.
    of_users : dict
        With users and targets: what the users get, of the splits that were simulated with them.
    max_users : dict
        Users within the targets, where those of the load are not.
    in_full : set
        Splits that were simulated with as many requests as a printed rate needs.

    Parameters
    ----------
    simulator : SplitSimulator
    printed : collection of tuple of int
        Splits that are printed beside the best one, and so simulated at length, too.
    price : callable
        Price of the nodes of a split, by which its rate is divided; 1.0 for all under the other
        objectives.
    is_allowed : callable
        Whether a neighbour may be chosen, if it fits.
    asks_load : bool
        Whether splits that serve the load within its targets come first.
    """

    def __init__(
        self,
        simulator: SplitSimulator,
        *,
        printed: Collection[Cuts],
        price: Callable[[Cuts], float],
        is_allowed: Callable[[Cuts], bool],
        asks_load: bool = False,
    ) -> None:
        self.simulator, self.printed = simulator, printed
        self.price, self.is_allowed = price, is_allowed
        self.rates: dict[Cuts, SimulatedRate] = {}
        self.of_users: dict[Cuts, SimulatedRate] = {}
        self.max_users: dict[Cuts, float] = {}
        self.in_full: set[Cuts] = set()
        load = simulator.load
        self.asks_users = simulator.has_goal and load.users is not None
        self.asks_load = asks_load
        self.search = LoadSearch(simulator, is_allowed)

    def run(self, first: Sequence[Cuts], deadline: Deadline, progress: Progress) -> None:
        """Find the best split; what is known stands if the deadline passes.

        A KeyboardInterrupt passes through, too.
        """
        if self.asks_load:
            first = self._by_load(first, deadline.part(LOAD_SHARE), progress)
        for cuts in first:
            if self.rates and deadline.has_passed():
                return
            self._rank(cuts, deadline)
            progress(self._so_far(len(first)))
        self._climb(deadline.part(CLIMB_SHARE), progress)
        finals = self._finals()
        printed = [cuts for cuts in self.rates if cuts in self.printed]
        if self.asks_users:
            finals = self._with_users(finals, deadline, progress)
            for cuts in printed:  # are they better, for these users too?
                if not deadline.has_passed():
                    self._judge_users(cuts, deadline)
        self._at_length(finals, printed, deadline, progress)
        if self.asks_load and not any(map(self.serves_load, self.rates)):
            self._search_on(deadline, progress)

    def _by_load(
        self, first: Sequence[Cuts], deadline: Deadline, progress: Progress
    ) -> list[Cuts]:
        """Return the splits to rank: the one that serves the load, or nearly, comes first."""
        self.search.run(first, deadline, progress, stops_far=True)
        best = self.search.best()
        self._note_users()
        return list(dict.fromkeys((*([] if best is None else [best]), *first)))

    def _search_on(self, deadline: Deadline, progress: Progress) -> None:
        """Use the time that is left for a split that serves the load."""
        if deadline.has_passed():
            return
        self.search.run([], deadline, progress)
        self._note_users()
        for cuts in self.search.met:
            if cuts not in self.rates:
                self._rank(cuts, deadline)
            self._at_length([cuts], [], deadline, progress)

    def _note_users(self) -> None:
        """Note what the users get of a split that serves them."""
        if self.asks_users:
            for cuts in self.search.met:
                self.of_users[cuts] = self.simulator.of_users(cuts)

    def _finals(self) -> list[Cuts]:
        """Return the splits that are simulated at length."""
        finals = self.order()[:FINALISTS]
        if self.asks_load:  # whether the others serve the load is not known yet
            finals += sorted(self.rates, key=lambda cuts: _descending(self._value(cuts)))[
                :FINALISTS
            ]
            best = self.search.best()
            finals += [] if best is None or best not in self.rates else [best]
        return list(dict.fromkeys(finals))

    def _judge_users(self, cuts: Cuts, deadline: Deadline) -> None:
        """Find out whether a split serves the users, or else more users than others."""
        self.of_users[cuts] = self.simulator.of_users(cuts)
        if self.max_users and not self.serves_users(cuts) and cuts not in self.max_users:
            self._count_users(cuts, deadline)

    def _at_length(
        self,
        finals: Sequence[Cuts],
        printed: Sequence[Cuts],
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        """Simulate splits with as many requests as a printed rate needs."""
        at_length = list(dict.fromkeys((*finals, *printed)))
        for at, cuts in enumerate(at_length):
            if deadline.has_passed():
                return
            mine = deadline.part(max(1 / (len(at_length) - at + 1), LEAST_SHARE))
            self.rates[cuts], is_refined = self.simulator.refined(
                cuts, self.rates[cuts], mine, raises=cuts in finals
            )
            if is_refined:
                self.in_full.add(cuts)
            progress(self._so_far(0))

    def alone(self, cuts: Cuts, deadline: Deadline, *, in_full: bool) -> tuple[float, ...]:
        """Simulate one split without its neighbours, and return its place in an order.

        The smallest place is the best one, over splits and over networks.
        """
        self._rank(cuts, deadline)
        if self.asks_users:
            self._count_users(cuts, deadline)
        if in_full:
            self.rates[cuts], is_refined = self.simulator.refined(
                cuts, self.rates[cuts], deadline
            )
            if is_refined:
                self.in_full.add(cuts)
        return self._key(cuts)

    def order(self) -> list[Cuts]:
        """Return all splits that were simulated, the best first."""
        ordered = sorted(self.rates, key=self._key)
        if not ordered:
            return []
        best = self._key(ordered[0])
        ties = [
            cuts
            for cuts in ordered
            if (key := self._key(cuts))[:-1] == best[:-1]
            and key[-1] <= best[-1] * (1 - TIE)  # both are negative
        ]
        if len(ties) > 1:
            chosen = min(ties, key=lambda cuts: (*self._evenness(cuts), ordered.index(cuts)))
            ordered.remove(chosen)
            ordered.insert(0, chosen)
        return ordered

    def _evenness(self, cuts: Cuts) -> tuple[int, int, int]:
        """Return a key: the smallest has fewest stages, then most room, then even stages."""
        sizes = [j - i for i, j in itertools.pairwise(cuts)]
        n_stages = sum(size > 0 for size in sizes)
        return n_stages, -self.simulator.max_sequences(cuts), max(sizes)

    def serves_load(self, cuts: Cuts) -> bool:
        """Return whether the load is known to be served within its targets."""
        if self.asks_users:
            return self.serves_users(cuts)
        rate = self.rates[cuts].requests_per_s if cuts in self.rates else math.nan
        return cuts in self.search.met or rate >= self.simulator.load.rate_per_s

    def serves_users(self, cuts: Cuts) -> bool:
        """Return whether the users of the load are served within their targets."""
        return cuts in self.of_users and self.of_users[cuts].slo_attainment >= MET

    def searched(self) -> LoadSearched:
        """Return how many splits were simulated at the load, and whether one serves it."""
        found = self.search.result()
        tried = {*self.search.stretch, *self.of_users}
        is_met = found.is_met or any(map(self.serves_load, self.rates))
        was_cut_short = found.was_cut_short and not is_met
        found = replace(
            found, is_met=is_met, n_simulated=len(tried), was_cut_short=was_cut_short
        )
        return replace(found, was_cut_short=was_cut_short and not found.is_of_all)

    def stated(self, cuts: Cuts) -> SimulatedRate:
        """Return what a split serves; a rate within targets only once it is confirmed.

        If none was confirmed in time, the rates of short simulations are lower bounds.
        """
        rate = self.rates[cuts]
        if not self.simulator.has_goal or cuts in self.in_full:
            return rate
        if not self.in_full:
            return replace(rate, is_lower_bound=True)
        return replace(
            rate, requests_per_s=math.nan, within_targets_per_s=math.nan, is_lower_bound=True
        )

    def _key(self, cuts: Cuts) -> tuple[bool, float, bool, float, float]:
        value = self._value(cuts)
        return (
            (self.asks_load or self.asks_users) and not self.serves_load(cuts),
            -self.max_users.get(cuts, 0.0),
            cuts not in self.in_full,
            0.0 if value > 0 else self.search.stretch.get(cuts, math.inf),
            _descending(value),
        )

    def _value(self, cuts: Cuts) -> float:
        price = self.price(cuts)
        return self.rates[cuts].requests_per_s / price if price else math.inf

    def _best(self) -> float:
        """Return the best value so far; 0 if none is known."""
        known = [self._value(cuts) for cuts in self.rates]
        return max((value for value in known if not math.isnan(value)), default=0.0)

    def _rank(self, cuts: Cuts, deadline: Deadline) -> None:
        best = self._best()
        to_beat = best * self.price(cuts) if math.isfinite(best) else 0.0
        self.rates[cuts] = self.simulator.ranked(cuts, to_beat, deadline)

    def _climb(self, deadline: Deadline, progress: Progress) -> None:
        """Simulate the neighbours of the best split, until none is better."""
        n_climbed, around = 0, None
        while around != (best := self.order()[0]):
            around = best
            for cuts in neighbours(self.simulator.instance, best):
                if n_climbed == MAX_CLIMBED or deadline.has_passed():
                    return
                if cuts in self.rates or not self.is_allowed(cuts):
                    continue
                self._rank(cuts, deadline)
                n_climbed += 1
                progress(self._so_far(0))

    def _with_users(
        self, finals: list[Cuts], deadline: Deadline, progress: Progress
    ) -> list[Cuts]:
        """Return the finalists that serve the users, or else those that serve most users."""
        for cuts in finals:
            if self.of_users and deadline.has_passed():
                return list(self.of_users)
            self.of_users[cuts] = self.simulator.of_users(cuts)
        if any(self.serves_users(cuts) for cuts in finals):
            return [cuts for cuts in finals if self.serves_users(cuts)]
        search = deadline.part(CLIMB_SHARE)
        for cuts in finals:
            self._count_users(cuts, search)
            progress(f"targets: {max(self.max_users.values()):.0f} users within them")
        self._climb_users(search, progress)
        return self.order()[:1]

    def _climb_users(self, deadline: Deadline, progress: Progress) -> None:
        """Look for neighbours that serve more users, until none does."""
        n_climbed, around = 0, None
        while around != (best := max(self.max_users, key=self.max_users.__getitem__)):
            around = best
            for cuts in neighbours(self.simulator.instance, best):
                if n_climbed == MAX_CLIMBED or deadline.has_passed():
                    return
                if cuts in self.max_users or not self.is_allowed(cuts):
                    continue
                n_climbed += 1
                if cuts not in self.rates:
                    self._rank(cuts, deadline)
                self._count_users(cuts, deadline)
                progress(f"targets: {max(self.max_users.values()):.0f} users within them")
                if self.serves_users(cuts):
                    return

    def _count_users(self, cuts: Cuts, deadline: Deadline) -> None:
        """Find the users of a split that are within the targets, if they are most so far."""
        asked = self.simulator.load.users
        assert asked is not None
        most = max(self.max_users.values(), default=0.0)
        bracket = Bracket()

        def holds(users: float) -> bool:
            return self.simulator.serves_users(cuts, users) >= MET

        if self.max_users and most + 1 < asked and not holds(most + 1):
            self.max_users[cuts] = 0.0  # no more than the best one: the number is not needed
            return
        self.of_users[cuts] = self.simulator.of_users(cuts)
        bracket.note(asked, self.serves_users(cuts))
        if self.max_users and most + 1 < asked:
            bracket.note(most + 1, True)
        start = max(2 * most, asked / 2)
        bracket.search(
            holds, start=start, least=1.0, most=float(min(MAX_USERS, asked)), step=1.0,
            deadline=deadline,
        )  # fmt: skip
        self.max_users[cuts] = bracket.low

    def _so_far(self, n_first: int) -> str:
        done = f"{len(self.rates)} of {max(n_first, len(self.rates))} splits simulated"
        known = [r.requests_per_s for r in self.rates.values() if r.requests_per_s >= 0]
        if not known:
            return done
        best, bound = max(known), self.simulator.bound_per_s
        return f"{done}, best {best:.3g} requests/s, gap {1 - best / bound:.1%}"


def _descending(value: float) -> float:
    """Return a key that sorts values, the largest first and nan last."""
    return math.inf if math.isnan(value) else -value
