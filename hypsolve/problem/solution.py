"""What is decided: `Partition`, `Schedule`; what a method claims: `Outcome`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid


class Status(StrEnum):
    """What is known of the answer, not why the search stopped."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Partition:
    """Which tier hosts which blocks: stage k is ``cuts[k]:cuts[k + 1]``, possibly empty.

    Parameters
    ----------
    cuts : tuple of int, length n_tiers + 1
        From 0 to n_blocks, never falling.
    """

    cuts: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            given = tuple(self.cuts)
        except TypeError:
            raise TypeError(f"partition: cuts must be a sequence, got {self.cuts!r}") from None
        cuts = tuple(valid.whole("partition", f"cuts[{k}]", c) for k, c in enumerate(given))
        if len(cuts) < 2 or cuts[0] != 0:
            raise ValueError(
                f"partition: cuts must start at 0 and have two or more, got {cuts}"
            )
        for before, after in itertools.pairwise(cuts):
            if after < before:
                raise ValueError(f"partition: cuts must not fall, got {before} before {after}")
        object.__setattr__(self, "cuts", cuts)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return len(self.cuts) - 1

    def stage(self, tier: int) -> range:
        """Blocks that a tier hosts."""
        return range(self.cuts[tier], self.cuts[tier + 1])

    def __str__(self) -> str:
        return " | ".join(f"{i}:{j}" for i, j in itertools.pairwise(self.cuts))


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Which node serves which request, and when; each array of shape (n_requests, n_tiers).

    ``node`` counts within the tier. An empty stage has node -1 and times nan.
    """

    node: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]

    def __post_init__(self) -> None:
        node = _array("node", self.node)
        if node.ndim != 2 or node.dtype.kind not in "iu":
            raise TypeError(
                "schedule: node must hold whole numbers, of shape (n_requests, n_tiers), got"
                f" {node.dtype} of shape {node.shape}"
            )
        object.__setattr__(self, "node", node.astype(np.int64, copy=False))
        for field_name in ("start_s", "end_s"):
            times = _array(field_name, getattr(self, field_name))
            if times.dtype.kind not in "iuf":
                raise TypeError(
                    f"schedule: {field_name} must hold numbers, got dtype {times.dtype}"
                )
            if times.shape != node.shape:
                raise ValueError(
                    f"schedule: {field_name} must have the shape of node, {node.shape},"
                    f" got {times.shape}"
                )
            object.__setattr__(self, field_name, times.astype(np.float64, copy=False))


def _array(field_name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:  # ragged
        raise ValueError(f"schedule: {field_name} must be a rectangular array") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxProof:
    """Why no partition whose cut k is in ``low[k]..high[k]`` has an answer below a bound.

    Attributes
    ----------
    low, high : tuple of int
        For each cut, first and last included.
    how : str
        ``lagrangian_bound``: the multipliers prove it. ``search``: the box holds a single
        partition, and all its schedules must be enumerated; the multipliers only help.
    tick_s : float
        Time is cut into `n_ticks` ticks of this, from the first arrival on.
    n_ticks : int
    multipliers : tuple of (int, int, tuple of int)
        Lagrange multipliers of the nodes' capacity, a row per group of identical nodes: the
        group's first node, counted over all tiers; the first tick; and the multiplier of each
        tick from there on, in 2**-24 ticks. All others are 0.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    how: str
    tick_s: float
    n_ticks: int
    multipliers: tuple[tuple[int, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A proof that `hypsolve.verify` repeats in exact arithmetic.

    ``kind`` is ``bottleneck`` (the partition's bottleneck is `value_s`, and no partition has
    one below `bound_s`), ``infeasible`` (no partition keeps the rules; `value_s` is inf) or
    ``joint`` (an answer of `value_s` is known, and no partition and schedule have an objective
    below `bound_s`, by `boxes` that make up all partitions).
    """

    kind: str
    value_s: float
    bound_s: float
    cuts: tuple[int, ...] | None = None
    boxes: tuple[BoxProof, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        valid.text("certificate", "kind", self.kind)
        for name in ("value_s", "bound_s"):  # what they say is for `verify_certificate`
            valid.of_type("certificate", name, getattr(self, name), float)
        if self.cuts is not None:
            valid.of_type("certificate", "cuts", self.cuts, tuple)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method claims; `hypsolve.solve` scores and checks it.

    ``bound_s`` is a proven lower bound on the objective; 0 always is one, inf says infeasible.
    """

    status: Status
    partition: Partition | None = None
    schedule: Schedule | None = None
    bound_s: float = 0.0
    certificate: Certificate | None = None
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "status", valid.one_of("outcome", "status", self.status, Status)
        )
        for name, kind in (
            ("partition", Partition),
            ("schedule", Schedule),
            ("certificate", Certificate),
        ):
            if getattr(self, name) is not None:
                valid.of_type("outcome", name, getattr(self, name), kind)
        _seconds_or_inf("outcome", "bound_s", self.bound_s)
        valid.of_type("outcome", "message", self.message, str)


def _seconds_or_inf(owner: str, name: str, value: Any) -> None:
    if value != math.inf:
        valid.real(owner, name, value)


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: its name, and a sentence naming tier, node, request and value."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"
