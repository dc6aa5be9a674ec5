"""Copies of patterns -> pipelines over machines with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypsolve.problem.placement import PlacedStage
from hypsolve.solvers.placement.machine_classes import pack
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace


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
        where = pack(tuple(gpus for _, gpus, _, _ in mine), each.gpus, len(each.machines))
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


def stages(groups: Sequence[tuple[str, int]], cuts: Sequence[int]) -> tuple[PlacedStage, ...]:
    """Return the stages of a pipeline with cuts."""
    return tuple(
        PlacedStage(machine, gpus, cuts[s], cuts[s + 1])
        for s, (machine, gpus) in enumerate(groups)
    )
