"""Check a result without its method: `python -m hypsolve.verify INSTANCE.json RESULT.json`.

RESULT.json is `Result.to_dict`. Everything is recomputed from the instance in exact integers:
no numba, no solver, no code of a method. Exit status: 0 verified, 1 refuted, 2 wrong files.

A joint certificate divides the partitions into boxes of cuts. A box is made a flow shop that is
nowhere slower than any of its partitions. Nodes charge prices for each tick of their time: what
all requests must pay at least, completions included, less all that the nodes could charge, is
at most the sum of the completions. (Of a makespan: if requests that end before the bound must
pay more than there is to charge, none such exist.) Where prices do not suffice, the certificate
says `search`, and every schedule of that partition is enumerated here, bounded by the prices.
"""

import math
import sys
from fractions import Fraction
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

from hypsolve import io
from hypsolve.certificate import ROUNDING, verify_certificate
from hypsolve.problem import Instance
from hypsolve.solution import Certificate
from hypsolve.verify_shop import FORBIDDEN, PricedShop, Refuted, need

TOLERANCE = Fraction(1, 10**9)  # of times in a schedule, which are floats


def verify(instance: Instance, result: dict[str, Any]) -> str:
    """Verify a result of `Result.to_dict`; returns what is now certain.

    Parameters
    ----------
    instance : Instance
    result : dict
        As `Result.to_dict` makes it, of a result with a certificate.

    Raises
    ------
    Refuted
        With the first claim that does not hold.
    """
    try:
        return _verified(instance, result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refuted(f"not a result with a certificate: {error!r:.100}") from None


def _verified(instance: Instance, result: dict[str, Any]) -> str:
    certificate = result["certificate"]
    need(result["digest"] == instance.digest(), "digest: the result is of another instance")
    need(certificate is not None, "certificate: there is none")
    kind, bound_s = certificate["kind"], certificate["bound_s"]
    if kind == "infeasible":
        need(result["status"] == "infeasible", "status: must be infeasible")
        _partition(instance, kind, math.inf, math.inf, None)
        return "infeasible: no partition keeps the rules"
    numbers = (result["objective_s"], result["bound_s"], bound_s)
    need(all(isinstance(x, float) and 0 <= x < math.inf for x in numbers), "numbers:", numbers)
    objective_s, claimed_s, bound_s = map(Fraction, numbers)
    need(claimed_s <= bound_s * (1 + TOLERANCE), "bound_s: more than the certificate proves")
    need(objective_s >= bound_s * (1 - TOLERANCE), "objective_s: below what is proved")
    if result["status"] == "optimal":
        need(objective_s - bound_s <= objective_s * Fraction(101, 10**8), "status: not optimal")
    if kind == "bottleneck":
        need(str(instance.objective) == kind, "objective: must be bottleneck")
        _partition(instance, kind, numbers[0], numbers[2], tuple(result["cuts"]))
    else:
        need(kind == "joint" and instance.objective.is_scheduled, "kind:", kind)
        joint = _Joint(instance, bound_s, [box["tick_s"] for box in certificate["boxes"]])
        joint.check_schedule(result["cuts"], result["schedule"], objective_s)
        if not joint.holds_on_idle_nodes():
            joint.check_cover(certificate["boxes"])
            for box in certificate["boxes"]:
                joint.check_box(box)
    return f"{float(objective_s)!r} s is reached, and nothing is below {float(bound_s)!r} s"


def _partition(
    instance: Instance, kind: str, value_s: float, bound_s: float, cuts: tuple[int, ...] | None
) -> None:
    made = Certificate(kind=kind, value_s=value_s, bound_s=bound_s, cuts=cuts)
    found = verify_certificate(instance, made)
    need(not found, *found[:1])


class _Joint:
    """The joint problem in whole multiples of 1 / `per_s` s, from the first arrival on."""

    def __init__(self, instance: Instance, bound_s: Fraction, tick_s: list[float]) -> None:
        self.instance, n = instance, instance.n_requests
        self.n_tiers, self.n_blocks = instance.n_tiers, instance.n_blocks
        tables = (instance.kind_s, instance.transfer_kind_s, instance.arrival_s)
        floats: list[Any] = [
            bound_s,
            *tick_s,
            *(x for table in tables for x in table.ravel().tolist()),
        ]
        self.per_s = max(Fraction(x).denominator for x in floats)  # powers of two
        arrival = [self.whole(x) for x in instance.arrival_s.tolist()]
        self.origin = min(arrival)
        self.release = [a - self.origin for a in arrival]
        self.makespan = str(instance.objective) == "makespan"
        if self.makespan:  # of every completion, else of their sum
            self.bound = int(bound_s * self.per_s) - self.origin
        else:
            self.bound = int(bound_s * self.per_s) * n + sum(self.release)
        self.work = [
            [
                list(accumulate((self.whole(row[b]) for b in instance.block_kind), initial=0))
                for row in rows
            ]
            for rows in _all(instance.kind_s.tolist(), n)
        ]
        self.travel = [
            [[self.whole(row[c]) for c in instance.cut_kind] for row in rows]
            for rows in _all(instance.transfer_kind_s.tolist(), n)
        ]
        for rows in self.travel:
            for row in rows:
                row[-1] = 0  # no stage waits beyond the last block
        sizes = instance.block_bytes.tolist()
        self.held = list(accumulate(map(Fraction, sizes), initial=Fraction(0)))
        self.slack = 1 if all(s.is_integer() for s in sizes) else 1 + ROUNDING
        self.kinds: list[dict[tuple[int, float], list[int]]] = [{} for _ in range(self.n_tiers)]
        nodes = zip(instance.node_tier, instance.node_class, instance.node_bytes, strict=True)
        for node, (k, c, size) in enumerate(nodes):  # identical nodes of a tier, by the first
            self.kinds[k].setdefault((int(c), float(size)), []).append(node)
        self.most: list[int | None] = [None] * n  # latency that no better schedule exceeds
        self.arcs = [self._arcs(k) for k in range(self.n_tiers)]

    def holds_on_idle_nodes(self) -> bool:
        """Whether nothing is below the bound even if no request ever waits.

        If not, leave out from now on what takes a request so long that nothing below the bound
        can have it.
        """
        least = [self._least(r) for r in range(len(self.release))]
        done = [a + b for a, b in zip(self.release, least, strict=True)]
        spare = self.bound - (max(done) if self.makespan else sum(done))
        for r, alone in enumerate(least):
            self.most[r] = self.bound - self.release[r] if self.makespan else alone + spare
        self.arcs = [self._arcs(k) for k in range(self.n_tiers)]
        return spare <= 0

    def whole(self, seconds: float) -> int:
        return int(Fraction(seconds) * self.per_s)

    def service(self, r: int, k: int, kind: tuple[int, float], i: int, j: int) -> int | None:
        """Time of blocks i:j for request r on such a node; None: not there."""
        size = self.held[j] - self.held[i]
        if (i, j) == (0, self.n_blocks):
            size -= Fraction(self.instance.tied_bytes)
        took = self.work[r][kind[0]][j] - self.work[r][kind[0]][i]
        most = self.most[r]
        fits = i == j or size <= Fraction(kind[1]) * self.slack
        return took if fits and (most is None or took <= most) else None

    def _arcs(self, k: int) -> list[tuple[int, int]]:
        """Stages that the tier may have, as (first block, end)."""
        inst, found = self.instance, []
        for i in range(int(inst.cut_min[k]), int(inst.cut_max[k]) + 1):
            for j in range(max(i, int(inst.cut_min[k + 1])), int(inst.cut_max[k + 1]) + 1):
                legal = inst.least_blocks[k] <= j - i <= inst.most_blocks[k]
                if legal and all(self._fits(r, k, i, j) for r in range(len(self.release))):
                    found.append((i, j))
        return found

    def _fits(self, r: int, k: int, i: int, j: int) -> bool:
        times = [self.service(r, k, kind, i, j) for kind in self.kinds[k]]
        took = min((t for t in times if t is not None), default=None)
        if took is None:
            return False
        link = self.travel[r][k][j] if k < self.n_tiers - 1 else 0
        most = self.most[r]
        return most is None or took + link <= most

    def _least(self, r: int) -> int:
        """Latency of request r alone, on the partition that is best for it."""
        reach: dict[int, int] = {0: 0}
        for k in range(self.n_tiers):
            onward: dict[int, int] = {}
            for i, j in self.arcs[k]:
                times = [self.service(r, k, kind, i, j) for kind in self.kinds[k]]
                took = min(t for t in times if t is not None)
                if i in reach:
                    link = self.travel[r][k][j] if k < self.n_tiers - 1 else 0
                    onward[j] = min(onward.get(j, FORBIDDEN), reach[i] + took + link)
            reach = onward
        return reach.get(self.n_blocks, FORBIDDEN)

    def check_schedule(self, cuts: list[int], schedule: Any, objective_s: Fraction) -> None:
        """Every request on one node that can hold the stage, in time, alone there."""
        slack = TOLERANCE * max(map(abs, map(Fraction, _finite(schedule["end_s"]))), default=0)
        need(cuts[0] == 0 and cuts[-1] == self.n_blocks, "cuts: must span the blocks")
        need(len(cuts) == self.n_tiers + 1, "cuts: must be one more than tiers")
        need(len(schedule["node"]) == len(self.release), "schedule: a row per request")
        busy: dict[int, list[tuple[Fraction, Fraction]]] = {}
        ready = [Fraction(x) for x in self.instance.arrival_s.tolist()]
        for k in range(self.n_tiers):
            i, j = cuts[k], cuts[k + 1]
            need((i, j) in self._arcs(k), "cuts: tier", k, "cannot have blocks", i, "to", j)
            mine = [m for m, tier in enumerate(self.instance.node_tier) if tier == k]
            for r in range(len(ready)) if i < j else ():
                m = mine[schedule["node"][r][k]]
                kind = next(key for key, nodes in self.kinds[k].items() if m in nodes)
                took = self.service(r, k, kind, i, j)
                start, end = (Fraction(schedule[key][r][k]) for key in ("start_s", "end_s"))
                where = f"request {r} on tier {k}:"
                need(took is not None and schedule["node"][r][k] >= 0, where, "no such node")
                need(start >= ready[r] - slack, where, "starts before it is there")
                late = end - start - Fraction(took or 0, self.per_s)
                need(abs(late) <= slack, where, "takes another time than it does")
                busy.setdefault(m, []).append((start, end))
                ready[r] = end
            if k < self.n_tiers - 1:
                ready = [
                    t + Fraction(self.travel[r][k][j], self.per_s) for r, t in enumerate(ready)
                ]
        for m, uses in busy.items():
            uses.sort()
            free = all(a[1] <= b[0] + slack for a, b in pairwise(uses))
            need(free, "node", m, "serves two requests at a time")
        arrival = map(Fraction, self.instance.arrival_s.tolist())
        latency = [t - a for t, a in zip(ready, arrival, strict=True)]
        value = max(ready) if self.makespan else sum(latency, Fraction(0)) / len(latency)
        need(abs(value - objective_s) <= slack, "objective_s: it is", float(value))

    def check_cover(self, boxes: list[dict[str, Any]]) -> None:
        """The boxes are disjoint, and hold all cuts that stages leave possible."""
        ends = [[i for i, _ in arcs] for arcs in self.arcs]
        if not all(ends):
            return  # no partition is good enough
        low, high = ([*map(f, ends), self.n_blocks] for f in (min, max))
        volume, inside = math.prod(b - a + 1 for a, b in zip(low, high, strict=True)), []
        for box in boxes:
            need(len(box["low"]) == len(box["high"]) == len(low), "boxes: a range per cut")
            ranges = zip(low, high, box["low"], box["high"], strict=True)
            part = [(max(a, c), min(b, d)) for a, b, c, d in ranges]
            if all(a <= b for a, b in part):
                inside.append(part)
                volume -= math.prod(b - a + 1 for a, b in part)
        need(volume == 0, "boxes: they do not make up all partitions")
        for one, other in combinations(inside, 2):
            apart = any(a[1] < b[0] or b[1] < a[0] for a, b in zip(one, other, strict=True))
            need(apart, "boxes: two overlap at", one)

    def check_box(self, box: dict[str, Any]) -> None:
        """No schedule of a partition in the box is below the bound."""
        where = f"box {box['low']} to {box['high']}:"
        shop = self._relaxed(box)
        if shop is None:
            return
        stages, release = shop
        if not stages:
            least = max(release) if self.makespan else sum(release)
            need(least >= self.bound, where, "nothing surely takes time")
            return
        need(box["how"] in ("prices", "search"), where, "how must be prices or search")
        need(box["tick_s"] > 0 and 0 < box["n_ticks"] <= 10**6, where, "1 to 10**6 ticks > 0")
        priced = PricedShop(stages, release, self.bound, self.per_s, self.makespan, box)
        if priced.value(priced.root()) >= priced.goal:
            return
        need(box["how"] == "search", where, "its prices do not prove the bound")
        need(box["low"] == box["high"], where, "only a single partition can be searched")
        need(priced.none_better(), where, "it has a schedule below the bound")

    def _relaxed(self, box: dict[str, Any]) -> Any:
        """Per tier that surely has a stage, the least that any takes; None: no partition."""
        n, low, high = range(len(self.release)), box["low"], box["high"]
        release, stages = list(self.release), []
        for k in range(self.n_tiers):
            arcs = [
                (i, j)
                for i, j in self.arcs[k]
                if low[k] <= i <= high[k] and low[k + 1] <= j <= high[k + 1]
            ]
            if not arcs:
                return None
            if all(i < j for i, j in arcs):
                groups = []
                for kind, nodes in self.kinds[k].items():
                    times = [[self.service(r, k, kind, i, j) for i, j in arcs] for r in n]
                    least = [
                        min((t for t in row if t is not None), default=None) for row in times
                    ]
                    groups.append((nodes, least))
                if any(all(least[r] is None for _, least in groups) for r in n):
                    return None
                stages.append((groups, [0 for _ in n]))
            if k < self.n_tiers - 1:
                for r in n:
                    link = min(self.travel[r][k][low[k + 1] : high[k + 1] + 1])
                    (stages[-1][1] if stages else release)[r] += link
        if stages:
            stages[-1][1][:] = [0 for _ in n]  # only work ends a request
        return stages, release


def _all(rows: list[Any], n: int) -> list[Any]:
    """A row for each request, from those or from one that all share."""
    return rows if len(rows) == n else rows * n


def _finite(rows: Any) -> list[float]:
    return [x for row in rows for x in row if x is not None]


def main(arguments: list[str]) -> int:
    """Run the command line; return its exit status."""
    if len(arguments) != 2:
        print("verify: needs two files, INSTANCE.json and RESULT.json", file=sys.stderr)
        return 2
    try:
        instance = io.load(arguments[0])
        path = Path(arguments[1])
        result = io.parse_json(path, io.read_bytes(path, io.MAX_BYTES))
        print(f"verified: {verify(instance, result)}")
    except Refuted as reason:
        print(f"refuted: {reason}")
        return 1
    except (OSError, ValueError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
