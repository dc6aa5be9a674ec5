"""Copies of patterns -> pipelines over machines with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypsolve.problem.placement import PlacedStage
from hypsolve.solvers.placement.machine_classes import MachineClass, pack
from hypsolve.solvers.placement.master import Column
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace

MAX_STEPS = 20_000
"""Steps of the search for machines that keep stages apart."""


def assign(
    space: PatternSpace, patterns: Sequence[Pattern], counts: Mapping[int, int]
) -> list[tuple[int, tuple[tuple[str, int], ...]]]:
    """Return each pipeline as its pattern, and machine and number of GPUs of each stage.

    Parameters
    ----------
    space : PatternSpace
    patterns : sequence of Pattern
    counts : mapping of int to int
        Copies of each pattern, which the fleet can host together.

    Notes
    -----
    Where links inside a machine are worse than those between machines, stages that send to each
    other get different machines if a short search finds some.
    """
    copies = [r for r in sorted(counts) for _ in range(counts[r])]
    shares = [
        (of, gpus, at, s)
        for at, r in enumerate(copies)
        for s, (of, gpus) in enumerate(patterns[r].sizes)
    ]
    machine: dict[tuple[int, int], str] = {}
    for c, each in enumerate(space.classes):
        mine = sorted((x for x in shares if x[0] == c), key=lambda x: -x[1])
        sizes = tuple(gpus for _, gpus, _, _ in mine)
        where: Sequence[int] | None = None
        if space.links.is_inside_worse(c):
            number = {(at, s): i for i, (_, _, at, s) in enumerate(mine)}
            where = _pack_apart(sizes, _next_to(patterns, copies, number), each)
        if where is None:
            where = pack(sizes, each.gpus, len(each.machines))
        assert where is not None  # the rows of the program allow it
        for (_, _, at, s), m in zip(mine, where, strict=True):
            machine[at, s] = each.machines[m].name
    return [
        (
            r,
            tuple(
                (machine[at, share], degree)
                for (_, degree), share in zip(
                    patterns[r].units, patterns[r].shares, strict=True
                )
            ),
        )
        for at, r in enumerate(copies)
    ]


def greedy(
    space: PatternSpace, columns: Sequence[Column], requests_per_s: float | None, is_cost: bool
) -> dict[int, int] | None:
    """Return copies of columns, each time the next one for which there are machines.

    Orders by the rate, by the rate per GPU, and as given are tried. Under the objective cost,
    copies are added until they carry the rate, and None is returned if they do not.
    """
    best: tuple[float, dict[int, int]] | None = None
    gpus = [sum(n for _, n in column.pattern.sizes) for column in columns]
    given = list(range(len(columns)))
    for order in (
        given,
        sorted(given, key=lambda r: -columns[r].rate / gpus[r]),
        sorted(given, key=lambda r: -columns[r].rate),
    ):
        free = [[each.gpus] * len(each.machines) for each in space.classes]
        counts: dict[int, int] = {}
        total = 0.0
        for r in order:
            while columns[r].rate > 0 and _place(free, columns[r].pattern.sizes):
                counts[r] = counts.get(r, 0) + 1
                total += columns[r].rate
                if is_cost and requests_per_s is not None and total >= requests_per_s:
                    return None if columns[r].link_bytes else counts
        if not is_cost and counts and (best is None or total > best[0]):
            best = total, counts
    return None if best is None else best[1]


def _place(free: list[list[int]], sizes: Sequence[tuple[int, int]]) -> bool:
    """Take GPUs for shares of machines, the fullest machine first; False: there are none."""
    taken: list[tuple[int, int, int]] = []
    for c, gpus in sorted(sizes, key=lambda size: -size[1]):
        fitting = [m for m, n in enumerate(free[c]) if n >= gpus]
        if not fitting:
            for of, m, n in taken:
                free[of][m] += n
            return False
        m = min(fitting, key=lambda m: free[c][m])
        free[c][m] -= gpus
        taken.append((c, m, gpus))
    return True


def _next_to(
    patterns: Sequence[Pattern], copies: Sequence[int], number: Mapping[tuple[int, int], int]
) -> set[tuple[int, int]]:
    """Return the pairs of shares of a class whose stages send to each other, both ways."""
    pairs: set[tuple[int, int]] = set()
    for at, r in enumerate(copies):
        of = patterns[r].shares
        for s in range(len(of)):
            one, other = number.get((at, of[s - 1])), number.get((at, of[s]))
            if one is not None and other is not None and one != other:
                pairs |= {(one, other), (other, one)}
    return pairs


def _pack_apart(
    sizes: Sequence[int], pairs: set[tuple[int, int]], each: MachineClass
) -> list[int] | None:
    """Return a machine for each share with no pair on one machine; None if none is found."""
    free, where, steps = [each.gpus] * len(each.machines), [0] * len(sizes), 0

    def place(at: int) -> bool:
        nonlocal steps
        if at == len(sizes):
            return True
        for m in range(len(free)):
            steps += 1
            if steps > MAX_STEPS:
                return False
            if free[m] < sizes[at]:
                continue
            if any(where[other] == m and (at, other) in pairs for other in range(at)):
                continue
            free[m] -= sizes[at]
            where[at] = m
            if place(at + 1):
                return True
            free[m] += sizes[at]
        return False

    return where if place(0) else None


def stages(groups: Sequence[tuple[str, int]], cuts: Sequence[int]) -> tuple[PlacedStage, ...]:
    """Return the stages of a pipeline with cuts."""
    return tuple(
        PlacedStage(machine, gpus, cuts[s], cuts[s + 1])
        for s, (machine, gpus) in enumerate(groups)
    )
