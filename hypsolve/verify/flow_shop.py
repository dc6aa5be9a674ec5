"""A flow shop: its Lagrangian bound and all its schedules, in exact integers."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from typing import Any

from hypsolve.verify.reading import BoxClaim

MONEY = 2**44  # units of cost per tick of time
MULTIPLIER = 2**20  # units of cost in 2**-24 ticks, the unit of certificates
FORBIDDEN = 10**30  # cost of a path that misses the deadline


class ExactFlowShop:
    """Flow shop of a partition box; times in 1 / `per_s` s, costs in 1 / `MONEY` ticks."""

    def __init__(
        self,
        stages: Any,
        release: list[int],
        bound: int,
        per_s: int,
        makespan: bool,
        box: BoxClaim,
    ) -> None:
        self.stages, self.release = stages, release
        self.bound, self.deadline = bound, bound if makespan else None
        self.tick = int(Fraction(box.tick_s) * per_s)
        self.end: int = box.n_ticks
        # a value of at least `goal` proves the bound; for a deadline any positive one does
        self.goal = 1 if makespan else -(-bound * MONEY // self.tick)
        # by stage and group: prefix sums of the multipliers over ticks
        self.sums: list[list[list[int]]] = []
        for groups, _ in stages:
            self.sums.append([])
            for nodes, _ in groups:
                multiplier = [0] * self.end
                for node, first, run in box.multipliers:
                    if node == nodes[0]:
                        multiplier[first : first + len(run)] = [MULTIPLIER * x for x in run]
                self.sums[-1].append(list(accumulate(multiplier, initial=0)))
        rows = [
            [travel[r] for _, travel in stages]
            + [s[r] for groups, _ in stages for _, s in groups]
            for r in range(len(release))
        ]
        self.alike = [[q for q, x in enumerate(rows) if x == y and x is not y] for y in rows]
        self.way = [self._ways(r) for r in range(len(release))]

    def at(self, time: int) -> int:
        """Return the tick in which a time lies; times after the last tick share one."""
        return min(time // self.tick, self.end)

    def money(self, time: int) -> int:
        """Return a time in units of cost, rounded down."""
        return time * MONEY // self.tick

    def _ways(self, r: int) -> list[list[list[int]]]:
        """Return the minimum cost of request r from a start on, by [stage][group][tick].

        A dynamic program over the stages, backwards: the cost of a start is the multipliers of
        the stage's ticks plus the cost of the next stage, minimised over this and later starts.
        """
        ways: list[list[list[int]]] = []
        onward: list[int] = []
        for (groups, travel), sums in zip(
            reversed(self.stages), reversed(self.sums), strict=True
        ):
            ways.insert(0, [])
            for (_, service), spent in zip(groups, sums, strict=True):
                took = service[r]
                if took is None:
                    ways[0].append([FORBIDDEN] * (self.end + 1))
                    continue
                busy, ahead = self.at(took), self.at(took + travel[r])
                until = spent[busy:] + [spent[-1]] * busy
                cost = [b - a for a, b in zip(spent, until, strict=True)]
                if onward:
                    after = onward[ahead:] + [onward[-1]] * ahead
                    cost = list(map(int.__add__, cost, after))
                elif self.deadline is None:
                    done = self.money(took)
                    cost = [c + done + MONEY * t for t, c in enumerate(cost)]
                else:
                    late = max(0, -((took - self.deadline) // self.tick))
                    cost[late:] = [FORBIDDEN] * len(cost[late:])
                ways[0].append(list(accumulate(reversed(cost), min))[::-1])
            onward = list(map(min, *ways[0])) if len(ways[0]) > 1 else ways[0][0]
        return ways

    def root(self) -> Any:
        """Return the empty schedule as a state.

        A state is a tuple: number of stages begun by each request, time at which each is ready,
        times at which nodes are free (by stage and group), last start, value (sum or maximum of
        completions so far), and sum of starts.
        """
        free = tuple(
            tuple((0,) * len(nodes) for nodes, _ in groups) for groups, _ in self.stages
        )
        return (0,) * len(self.release), tuple(self.release), free, 0, 0, 0

    def value(self, state: Any) -> int:
        """Return the Lagrangian lower bound on any completion of a partial schedule."""
        stage, ready, free, last, value, _ = state
        total = 0 if self.deadline is not None else self.money(value)
        for spent, of_stage in zip(self.sums, free, strict=True):
            for sums, times in zip(spent, of_stage, strict=True):
                total -= sum(sums[-1] - sums[self.at(max(t, last))] for t in times)
        for r, k in enumerate(stage):
            if k < len(self.stages):
                starts = (self.at(max(ready[r], last, times[0])) for times in free[k])
                total += min(ways[t] for ways, t in zip(self.way[r][k], starts, strict=True))
        return total

    def none_better(self) -> bool:
        """Return whether no schedule is below the bound, by breadth-first enumeration.

        Each level adds an operation, in the order of starts. Dominated schedules are left out:
        an operation that starts before the last one, or starts after another could have ended;
        a request with an identical one that is ready earlier; and a partial schedule if another
        with equal stages begun is nowhere worse. Of two equal ones the smaller sum of starts
        stays.
        """
        layer = [self.root()]
        for _ in range(len(self.release) * len(self.stages)):
            after: dict[Any, list[Any]] = {}
            for state in layer:
                for child in self._children(state):
                    if min(child[0]) == len(self.stages):  # complete
                        if child[4] < self.bound:
                            return False
                    elif self.value(child) < self.goal:
                        self._keep(after.setdefault(child[0], []), child)
            layer = [child for kept in after.values() for *_, child in kept]
        return True

    def _children(self, state: Any) -> Iterator[Any]:
        stage, ready, free, last, value, begun = state
        ways = [
            (max(ready[r], free[k][g][0]), service[r], r, k, g)
            for r, k in enumerate(stage)
            if k < len(self.stages)
            for g, (_, service) in enumerate(self.stages[k][0])
            if service[r] is not None
        ]
        soonest, its_start = min((start + took, start) for start, took, *_ in ways)
        for start, took, r, k, g in ways:
            if start < last or soonest <= start > its_start:
                continue
            if any(stage[q] == k and (ready[q], q) < (ready[r], r) for q in self.alike[r]):
                continue  # an identical request is ready earlier
            end, now = start + took, list(ready)
            now[r] = end + self.stages[k][1][r]
            times = [list(of_stage) for of_stage in free]
            times[k][g] = tuple(sorted((*free[k][g][1:], end)))
            done = value
            if k == len(self.stages) - 1:
                done = value + end if self.deadline is None else max(value, end)
            begun_stages = (*stage[:r], k + 1, *stage[r + 1 :])
            yield begun_stages, tuple(now), tuple(map(tuple, times)), start, done, begun + start

    def _keep(self, kept: list[Any], child: Any) -> None:
        """Add a partial schedule unless a kept one dominates it; drop those it dominates."""
        stage, ready, free, last, value, begun = child
        times = [t for of_stage in free for of_group in of_stage for t in of_group]
        times += [t for t, k in zip(ready, stage, strict=True) if k < len(self.stages)]
        new = (value, begun, [max(t, last) for t in times], child)
        if not any(self._as_good(old, new) for old in kept):
            kept[:] = [old for old in kept if not self._as_good(new, old)]
            kept.append(new)

    def _as_good(self, a: Any, b: Any) -> bool:
        surely = a[0] < b[0] and self.deadline is None
        return (surely or (a[0] <= b[0] and a[1] <= b[1])) and all(map(int.__le__, a[2], b[2]))
