"""Check that no split carries a rate under ``stage``: the chain of hold times.

A split that carries the rate holds KV cache for H seconds, the sum of the seconds of its stages
and links. Suppose that H is at least h. A stage is *closed* for h if it is too slow for the
rate, or if its KV memory does not suffice when passes spend h seconds, less its own, elsewhere.
The split contains no closed stage, and no link that is too slow. Potentials bound the seconds
of the first k tiers from below: every stage and link that leads from one cut to the next adds
at least the difference of their potentials, or is closed. So H is at least the potential at the
end, which is the next h. The first h is 0. A step whose potential at the end is inf leaves no
split.

A step without a table of potentials finds the chains of open stages that meet all targets for
latencies and users by itself: labels of the seconds of a decode pass, of the prompt, of the
prompt weighted by KV, and of the largest chunk. A label that is nowhere below another one at
its cut is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

from hypsolve.problem.serving_records import ServingObjective
from hypsolve.verify.directed import fixed, times
from hypsolve.verify.iterations import GRACE, Content, Server
from hypsolve.verify.reading import need
from hypsolve.verify.serving_claims import HoldClaim
from hypsolve.verify.stage_mode import Stages

Label = tuple[int, int, int, int]


class HoldChain:
    """The refutation of a rate."""

    def __init__(self, server: Server, rate: float) -> None:
        self.server = server
        self.rate = fixed(rate, False)
        # all rules forgive relative errors of 1e-12: the rate is lowered by more
        self.low = Stages(server, fixed(Fraction(rate) * (1 - 2 * GRACE), False), False)
        self.high = Stages(server, fixed(rate, True), True, self.low)
        self.closed_from: dict[tuple[int, Content], int] = {}
        self.open_until: dict[tuple[int, Content], int] = {}
        self.targets = Targets(server, rate)

    def check(self, steps: list[HoldClaim], progress: Callable[[str], None]) -> None:
        """Refute the certificate unless its steps leave no split."""
        end_s: int | None = 0
        for at, step in enumerate(steps):
            need(end_s is not None, f"hold_steps: step {at}: the step before leaves no split")
            held_s = fixed(step.held_s, False)
            need(held_s <= (end_s or 0), f"hold_steps: step {at}: held_s is not proved")
            if step.potentials_s:
                end_s = self._end_by_potentials(at, held_s, step)
            else:
                progress(f"searching for the chains of step {at + 1} of {len(steps)}")
                end_s = self._end_by_labels(held_s)
        need(end_s is None, "hold_steps: the last step leaves a split")

    def _end_by_potentials(self, at: int, held_s: int, step: HoldClaim) -> int | None:
        server, where = self.server, f"hold_steps: step {at}: potentials_s"
        rows = [[None if p is None else fixed(p, False) for p in row]
                for row in step.potentials_s]  # fmt: skip
        need(rows[0][0] == 0, where, "must be 0 at the start")
        for k in range(server.n_tiers):
            for i in server.starts(k):
                before = rows[k][i]
                if before is None:
                    continue
                for j in server.ends(k, i):
                    claimed = rows[k + 1][j]
                    if claimed is not None and claimed <= before:
                        continue
                    if self._is_slow(k, i, j):
                        continue
                    if claimed is not None and claimed <= before + self._arc_s(k, i, j):
                        continue
                    closed = i < j and self._is_closed(k, i, j, held_s)
                    need(closed, where, f"too large for tier {k} with blocks {i}:{j}")
        return rows[-1][server.n_blocks]

    def _arc_s(self, k: int, i: int, j: int) -> int:
        own_s = self.low.own_s(k, i, j) if i < j else 0
        return own_s + self.low.link_s(k, j)

    def _is_slow(self, k: int, i: int, j: int) -> bool:
        """Return whether a stage or the link behind it does not keep up with the rate."""
        if self.low.link(k, j) is None:
            return True
        if i == j:
            return False
        most = self.low.most(k, self.server.content(i, j), True)
        return most + times(most, _GRACE, True) < self.rate

    def _is_closed(self, k: int, i: int, j: int, held_s: int) -> bool:
        """Return whether a stage has no KV memory if it is held for so many seconds."""
        content = self.server.content(i, j)
        elsewhere_s = max(held_s - self.high.own_s(k, i, j), 0)
        key = k, content
        if elsewhere_s >= self.closed_from.get(key, elsewhere_s + 1):
            return True
        if elsewhere_s <= self.open_until.get(key, -1):
            return False
        closed = self._lacks_memory(k, content, elsewhere_s)
        (self.closed_from if closed else self.open_until)[key] = elsewhere_s
        return closed

    def _lacks_memory(self, k: int, content: Content, elsewhere_s: int) -> bool:
        holders = self.low.holders(k, content)
        if len(holders) == 1:  # equal nodes serve equal shares
            [(_, node, rate, z)] = self.low.stage(k, content).nodes
            if node.room is None:
                return False
            kept_s = elsewhere_s + node.kept_s(z, False)
            return times(rate, kept_s, False) > node.room[True]
        total = sum(n * node.memory_rate(elsewhere_s, True) for n, node in holders)
        return total < self.low.x

    def _end_by_labels(self, held_s: int) -> int | None:
        """Return the least seconds of KV cache over open chains within the targets."""
        server = self.server
        rests = self._rests(held_s)
        labels: dict[int, list[Label]] = {0: [(0, 0, 0, 0)]}
        for k in range(server.n_tiers):
            after: dict[int, list[Label]] = {}
            for i, of_cut in labels.items():
                if i not in server.starts(k):
                    continue
                for j in server.ends(k, i):
                    rest = rests[k + 1].get(j)
                    if rest is None or not self._is_open(k, i, j, held_s):
                        continue
                    step = self._step(k, i, j)
                    for label in of_cut:
                        longer = _longer(label, step)
                        if not self.targets.are_missed(longer, rest):
                            after.setdefault(j, []).append(longer)
            labels = {j: _undominated(of_cut) for j, of_cut in after.items()}
        ends = labels.get(server.n_blocks, [])
        return min((times(self.low.hold_passes, d, False) + g for d, _, g, _ in ends),
                   default=None)  # fmt: skip

    def _is_open(self, k: int, i: int, j: int, held_s: int) -> bool:
        if self._is_slow(k, i, j):
            return False
        return i == j or not self._is_closed(k, i, j, held_s)

    def _step(self, k: int, i: int, j: int) -> Label:
        """Return what a stage and the link behind it add to a label."""
        link = self.low.link(k, j)
        assert link is not None
        decode, prompt, held = link
        chunk = 0
        if i < j:
            chunk = self.low.stage(k, self.server.content(i, j)).chunk_s
            decode += self.low.decode_s(k, i, j)
            prompt += chunk + (fixed(self.server.entry_s[k], False) if i == 0 else 0)
            held += chunk
        return decode, prompt, held, chunk

    def _rests(self, held_s: int) -> list[dict[int, Label]]:
        """Return the least that each number still grows by behind a cut."""
        server = self.server
        rests: list[dict[int, Label]] = [{} for _ in range(server.n_tiers + 1)]
        rests[-1][server.n_blocks] = (0, 0, 0, 0)
        for k in range(server.n_tiers - 1, -1, -1):
            for i in server.starts(k):
                found = [
                    _longer(rests[k + 1][j], self._step(k, i, j))
                    for j in server.ends(k, i)
                    if j in rests[k + 1] and self._is_open(k, i, j, held_s)
                ]
                if found:
                    d, p, g, v = (min(column) for column in zip(*found, strict=True))
                    rests[k][i] = d, p, g, v
        return rests


_GRACE = fixed(GRACE, True)


class Targets:
    """Targets for latencies in seconds at a rate, None where there is none."""

    def __init__(self, server: Server, rate: float) -> None:
        rules, lengths = server.instance.rules, server.lengths
        counted = rules.objective is not ServingObjective.THROUGHPUT
        self.passes = fixed(lengths.decode_passes, False)
        self.again = fixed(Fraction(lengths.chunks) - 1, False)
        self.ttft_s = _limit(rules.ttft_slo_s if counted else None)
        tpot_s = rules.tpot_slo_s if counted and lengths.decode_passes else None
        self.tpot_s = _limit(tpot_s)
        self.latency_s = _limit(rules.latency_slo_s if counted else None)
        if rules.users is not None:
            users = Fraction(rules.users) * (1 + GRACE) / Fraction(rate)
            limit = fixed(users - Fraction(rules.think_time_s), True)
            self.latency_s = limit if self.latency_s is None else min(limit, self.latency_s)

    def are_missed(self, label: Label, rest: Label = (0, 0, 0, 0)) -> bool:
        """Return whether a chain misses a target even with the best rest."""
        decode, prompt = label[0] + rest[0], label[1] + rest[1]
        ttft = prompt + times(self.again, max(label[3], rest[3]), False)
        if self.tpot_s is not None and decode > self.tpot_s:
            return True
        if self.ttft_s is not None and ttft > self.ttft_s:
            return True
        latency = ttft + times(self.passes, decode, False)
        return self.latency_s is not None and latency > self.latency_s


def _limit(target_s: float | None) -> int | None:
    return None if target_s is None else fixed(Fraction(target_s) * (1 + GRACE), True)


def _longer(label: Label, step: Label) -> Label:
    d, p, g, v = label
    return d + step[0], p + step[1], g + step[2], max(v, step[3])


def _undominated(labels: list[Label]) -> list[Label]:
    """Return the labels that are somewhere below every other one."""
    kept: list[Label] = []
    for label in sorted(labels):
        _, p, g, v = label
        if not any(b <= p and c <= g and e <= v for _, b, c, e in kept):
            kept.append(label)
    return kept


def carries(server: Server, cuts: list[int], rate: Fraction) -> str:
    """Return the rule by which a split might not carry a rate; empty if it does."""
    stages = Stages(server, fixed(rate, True), True)
    used = [(k, i, j) for k, (i, j) in enumerate(itertools.pairwise(cuts)) if i < j]
    label: Label = 0, 0, 0, 0
    own = {}
    for k, (i, j) in enumerate(itertools.pairwise(cuts)):
        link = stages.link(k, j)
        if link is None:
            return f"the link behind tier {k} is too slow"
        label = _longer(label, (*link, 0))
        if i < j:
            content = server.content(i, j)
            if stages.most(k, content, False) < stages.x:
                return f"tier {k} is too slow"
            chunk = stages.stage(k, content).chunk_s
            entry = fixed(server.entry_s[k], True) if i == 0 else 0
            label = _longer(label, (stages.decode_s(k, i, j), chunk + entry, chunk, chunk))
            own[k] = stages.own_s(k, i, j)
    held_s = times(stages.hold_passes, label[0], True) + label[2]
    for k, i, j in used:
        if not _has_memory(stages, k, server.content(i, j), held_s - own[k]):
            return f"tier {k} lacks KV memory"
    is_missed = Targets(server, float(rate)).are_missed(label)
    return "a target is missed" if is_missed else ""


def _has_memory(stages: Stages, k: int, content: Content, elsewhere_s: int) -> bool:
    """Return whether the nodes of a stage have KV memory, at the rate of the stages."""
    elsewhere_s = max(elsewhere_s, 0)
    nodes = stages.stage(k, content).nodes
    if all(
        node.room is None
        or times(rate, elsewhere_s + node.kept_s(z, True), True) <= node.room[False]
        for _, node, rate, z in nodes
    ):
        return True
    total = sum(n * node.memory_rate(elsewhere_s, False) for n, node, _, _ in nodes)
    return total >= stages.x


def latencies(server: Server, cuts: list[int], rate: float, up: bool) -> tuple[int, int, int]:
    """Return bounds on the seconds to the first token, of a later one, and to the last one."""
    stages = Stages(server, fixed(rate, up), up)
    decode = prompt = largest = 0
    for k, (i, j) in enumerate(itertools.pairwise(cuts)):
        link = stages.link(k, j)
        assert link is not None
        decode, prompt = decode + link[0], prompt + link[1]
        if i < j:
            chunk = stages.stage(k, server.content(i, j)).chunk_s
            decode += stages.decode_s(k, i, j)
            prompt += chunk + (fixed(server.entry_s[k], up) if i == 0 else 0)
            largest = max(largest, chunk)
    lengths = server.lengths
    ttft = prompt + times(fixed(Fraction(lengths.chunks) - 1, up), largest, up)
    passes = fixed(lengths.decode_passes, up)
    return ttft, decode if passes else 0, ttft + times(passes, decode, up)
