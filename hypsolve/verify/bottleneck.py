"""Verification of bottleneck certificates in plain Python and exact fractions.

This file shares no code with the solvers or with `evaluate`: it reads the instance's arrays
alone.
"""

import math
from fractions import Fraction
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Certificate

ROUNDING = Fraction(1, 10**12)


def verify_certificate(instance: Instance, certificate: Certificate) -> list[str]:
    """Confirm or refute a certificate of kind ``bottleneck`` or ``infeasible``.

    Parameters
    ----------
    instance : Instance
    certificate : Certificate
        A ``bottleneck`` certificate is confirmed if its cuts have the bottleneck `value_s` (up
        to 10^-12), `bound_s` is at least (1 - 2 * 10^-9) `value_s`, and no feasible cuts have
        all stages below `bound_s`. An ``infeasible`` certificate is confirmed if no cuts are
        feasible.

    Returns
    -------
    list of str
        Reasons for refuting the certificate; empty if it is confirmed.

    Notes
    -----
    To decide whether feasible cuts have every stage below a value, only the latest reachable
    start that leaves the stage its minimum number of blocks is tried, for each tier and end of
    the stage. A later start never takes more time or memory, and if the latest one gives the
    stage too many blocks, every earlier one does.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 1)], [(0, 1)]])
    >>> certificate = hs.solve(instance, "hypsplit_dp").certificate
    >>> hs.verify_certificate(instance, certificate)
    []
    >>> hs.verify_certificate(instance.replace(reference_kind_s=[[1.0, 3.0]]), certificate)
    ['bottleneck: cuts have 3.0 s, not 2.0 s']
    """
    valid.of_type("verify_certificate", "instance", instance, Instance)
    valid.of_type("verify_certificate", "certificate", certificate, Certificate)
    if certificate.kind == "joint":
        return ["certificate: hypsolve.verify.verify checks a joint one, with its result"]
    if certificate.kind not in ("bottleneck", "infeasible"):
        return [f"certificate: kind must be bottleneck or infeasible, got {certificate.kind!r}"]
    chain = _Chain(instance)
    if certificate.kind == "infeasible":
        if chain.can_stay_below(None):
            return ["infeasible: refuted, some cuts are feasible"]
        return []
    faults = []
    value, bound = certificate.value_s, certificate.bound_s
    if not (math.isfinite(value) and math.isfinite(bound)) or min(value, bound) < 0:
        return [f"bottleneck: value and bound must be finite, got {value!r} and {bound!r}"]
    exact_value, exact_bound = Fraction(value), Fraction(bound)
    realised = None if certificate.cuts is None else chain.bottleneck(certificate.cuts)
    if realised is None:
        faults.append(f"bottleneck: cuts {certificate.cuts} break a rule of the instance")
    elif abs(realised - exact_value) > ROUNDING * max(realised, exact_value):
        faults.append(f"bottleneck: cuts have {float(realised)!r} s, not {value!r} s")
    if exact_bound < exact_value * (1 - Fraction(2, 10**9)):
        faults.append(f"bottleneck: bound {bound!r} s is more than 1e-9 below {value!r} s")
    if exact_bound > 0 and chain.can_stay_below(exact_bound):
        faults.append(f"bottleneck: refuted, some cuts have every stage below {bound!r} s")
    return faults


class _Chain:
    """An instance as lists of exact numbers.

    `seconds` and `bytes` are prefix sums over the blocks: by node class, and of the memory.
    """

    def __init__(self, instance: Instance) -> None:
        kinds: list[int] = instance.block_kind.tolist()
        self.n_blocks, self.n_tiers = len(kinds), len(instance.min_blocks)
        table: list[list[float]] = instance.reference_kind_s.tolist()
        self.seconds = [_prefix_sums([Fraction(row[kind]) for kind in kinds]) for row in table]
        sizes: list[float] = instance.block_bytes.tolist()
        self.bytes = _prefix_sums([Fraction(size) for size in sizes])
        self.tied = Fraction(instance.tied_bytes)
        exact = all(size.is_integer() for size in sizes) and sum(sizes) <= 2**53
        grace = Fraction(1) if exact else 1 + ROUNDING
        self.nodes: list[list[tuple[int, Fraction]]] = [[] for _ in range(self.n_tiers)]
        for tier, kind, size in zip(
            instance.node_tier.tolist(),
            instance.node_class.tolist(),
            instance.node_bytes.tolist(),
            strict=True,
        ):
            self.nodes[tier].append((kind, Fraction(size) * grace))
        link = (
            instance.reference_transfer_kind_s
            if instance.link_cost == "full"
            else instance.reference_occupancy_kind_s
        )
        self.link = [[Fraction(x) for x in row] for row in link.tolist()]
        self.cut_kind: list[int] = instance.cut_kind.tolist()
        self.overlap, self.rule = instance.overlap, str(instance.stage_rule)
        # for other objectives than the bottleneck, one node that can hold the stage suffices
        if instance.objective != "bottleneck" and self.rule == "slowest":
            self.rule = "fastest"
        limits: Any = (
            instance.min_blocks, instance.max_blocks, instance.cut_min, instance.cut_max,
        )  # fmt: skip
        self.min_blocks, self.max_blocks, self.cut_min, self.cut_max = (
            a.tolist() for a in limits
        )

    def stage(self, k: int, i: int, j: int) -> Fraction | None:
        """Return the time of blocks i:j on tier k with its link; None if they do not fit."""
        time = Fraction(0)
        if i < j:
            need = self.bytes[j] - self.bytes[i]
            if i == 0 and j == self.n_blocks:
                need -= self.tied
            times = [
                self.seconds[c][j] - self.seconds[c][i]
                for c, size in self.nodes[k]
                if need <= size
            ]
            if not times or (self.rule == "slowest" and len(times) < len(self.nodes[k])):
                return None
            if self.rule == "slowest":
                time = max(times)
            elif self.rule == "fastest" or min(times) == 0:
                time = min(times)
            else:
                time = 1 / sum((1 / t for t in times), Fraction(0))
        if k == self.n_tiers - 1:
            return time
        link = self.link[k][self.cut_kind[j]]
        return max(time, link) if self.overlap else time + link

    def bottleneck(self, cuts: tuple[int, ...]) -> Fraction | None:
        """Return the largest stage time of the cuts; None if they are not feasible."""
        if len(cuts) != self.n_tiers + 1 or cuts[0] != 0 or cuts[-1] != self.n_blocks:
            return None
        worst = Fraction(0)
        for k in range(self.n_tiers):
            i, j = cuts[k], cuts[k + 1]
            if not self.min_blocks[k] <= j - i <= self.max_blocks[k]:
                return None
            if not self.cut_min[k + 1] <= j <= self.cut_max[k + 1]:
                return None
            time = self.stage(k, i, j)
            if time is None:
                return None
            worst = max(worst, time)
        return worst

    def can_stay_below(self, limit: Fraction | None) -> bool:
        """Return whether feasible cuts have every stage below `limit`; None sets no limit."""
        reachable = [True] + [False] * self.n_blocks
        for k in range(self.n_tiers):
            largest = _largest_at_or_before(reachable)
            reachable = [False] * (self.n_blocks + 1)
            first, end = max(self.cut_min[k + 1], self.min_blocks[k]), self.cut_max[k + 1]
            for j in range(first, end + 1):
                i = largest[j - self.min_blocks[k]]
                if i is None or j - i > self.max_blocks[k]:
                    continue
                time = self.stage(k, i, j)
                reachable[j] = time is not None and (limit is None or time < limit)
        return reachable[self.n_blocks]


def _prefix_sums(values: list[Fraction]) -> list[Fraction]:
    sums = [Fraction(0)]
    for value in values:
        sums.append(sums[-1] + value)
    return sums


def _largest_at_or_before(reachable: list[bool]) -> list[int | None]:
    largest: list[int | None] = []
    for cut, reached in enumerate(reachable):
        largest.append(cut if reached else largest[-1] if largest else None)
    return largest
