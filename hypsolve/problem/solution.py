"""Decisions (`Partition`, `Schedule`) and the claims of a method (`Outcome`)."""

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
from hypsolve.problem.notebook_table import notebook_table
from hypsolve.problem.units import count, show_seconds

MAX_ROWS = 20  # visits that a notebook shows


class Status(StrEnum):
    """State of knowledge about a solution; it does not say why the search stopped.

    ``OPTIMAL``: proven optimal. ``FEASIBLE``: a solution without that proof. ``INFEASIBLE``:
    proven to have no solution. ``UNKNOWN``: no solution and no proof.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


def checked_status(owner: str, status: Any, name: str, answer: Any, kind: type) -> Status:
    """Return the status of a method's claim, whose answer goes with it.

    ``optimal`` and ``feasible`` need an answer; the others exclude it.

    Raises
    ------
    ValueError, TypeError
        If the status or the answer is invalid, or they contradict each other.

    Examples
    --------
    >>> checked_status("outcome", "infeasible", "partition", None, tuple)
    <Status.INFEASIBLE: 'infeasible'>
    """
    known = valid.one_of(owner, "status", status, Status)
    if answer is not None:
        valid.of_type(owner, name, answer, kind)
    if (answer is not None) != (known in (Status.OPTIMAL, Status.FEASIBLE)):
        has = f"no {name}" if answer is None else f"a {name}"
        raise ValueError(f"{owner}: status {known} does not go with {has}")
    return known


@dataclass(frozen=True, slots=True)
class Partition:
    """An assignment of blocks to tiers: tier k hosts blocks ``cuts[k]:cuts[k + 1]``.

    Parameters
    ----------
    cuts : tuple of int, length n_tiers + 1
        From 0 to n_blocks, in ascending order. Two equal cuts make an empty stage.

    Examples
    --------
    >>> partition = Partition((0, 2, 2, 6))
    >>> print(partition)
    0:2 | 2:2 | 2:6
    >>> partition.stage(2)
    range(2, 6)
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
        """Return the blocks that a tier hosts, as a range."""
        return range(self.cuts[tier], self.cuts[tier + 1])

    def __str__(self) -> str:
        return " | ".join(f"{i}:{j}" for i, j in itertools.pairwise(self.cuts))

    def _repr_html_(self) -> str:
        """Return a table of the stages, which Jupyter shows."""
        rows = [
            (str(k), f"{i}:{j}", str(j - i))
            for k, (i, j) in enumerate(itertools.pairwise(self.cuts))
        ]
        return notebook_table("Partition", ("tier", "blocks (first:end)", "number"), rows)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Schedule:
    """The node, start and end of every request on every tier.

    Attributes
    ----------
    node : ndarray of int, shape (n_requests, n_tiers)
        Number of the node within its tier; -1 where the stage is empty.
    start_s, end_s : ndarray, shape (n_requests, n_tiers)
        Seconds from the first arrival; nan where the stage is empty.
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

    def __repr__(self) -> str:
        n_requests, n_tiers = self.node.shape
        sizes = f"{count(n_requests, 'request')} on {count(n_tiers, 'tier')}"
        served = self.node >= 0
        if not served.any():
            return f"<Schedule: {sizes}>"
        start, end = self.start_s[served].min(), self.end_s[served].max()
        return f"<Schedule: {sizes}, from {show_seconds(start)} to {show_seconds(end)}>"

    def _repr_html_(self) -> str:
        """Return a table of the first visits, which Jupyter shows."""
        visits = list(zip(*np.nonzero(self.node >= 0), strict=True))
        rows = [
            (
                str(r),
                str(k),
                str(self.node[r, k]),
                show_seconds(self.start_s[r, k]),
                show_seconds(self.end_s[r, k]),
            )
            for r, k in visits[:MAX_ROWS]
        ]
        more = f"; the first {MAX_ROWS} of {len(visits)} visits" * (len(visits) > MAX_ROWS)
        heads = ("request", "tier", "node", "start", "end")
        return notebook_table(repr(self)[1:-1] + more, heads, rows)


def _array(field_name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:  # ragged
        raise ValueError(f"schedule: {field_name} must be a rectangular array") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxProof:
    """Proof that no partition of a box has an objective below the certificate's bound.

    The box holds every partition whose cut k is in ``low[k]..high[k]``.

    Attributes
    ----------
    low, high : tuple of int
        Limits of each cut, both included.
    how : str
        ``lagrangian_bound``: the multipliers prove it. ``search``: the box holds a single
        partition, and all its schedules must be enumerated; the multipliers only help.
    tick_s : float
        Length of a tick. Time starts at the first arrival.
    n_ticks : int
        Number of ticks.
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
    """A proof of a bound or of infeasibility, which `hypsolve.verify` checks exactly.

    Attributes
    ----------
    kind : str
        ``bottleneck``: the partition's bottleneck is `value_s`, and no partition has one below
        `bound_s`. ``infeasible``: no partition is legal. ``joint``: a solution of `value_s` is
        known, and no partition and schedule have an objective below `bound_s`.
    value_s : float
        Objective of the solution; inf if infeasible.
    bound_s : float
        Proven lower bound; inf if infeasible.
    cuts : tuple of int or None
        Partition of the solution.
    boxes : tuple of BoxProof
        Proofs of a ``joint`` certificate. Together the boxes hold every partition.
    """

    kind: str
    value_s: float
    bound_s: float
    cuts: tuple[int, ...] | None = None
    boxes: tuple[BoxProof, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        valid.text("certificate", "kind", self.kind)
        for name in ("value_s", "bound_s"):  # `verify_certificate` judges their values
            valid.of_type("certificate", name, getattr(self, name), float)
        if self.cuts is not None:
            valid.of_type("certificate", "cuts", self.cuts, tuple)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The claim of a method, which `hypsolve.solve` scores and checks.

    Attributes
    ----------
    status : Status
        ``optimal`` and ``feasible`` need a partition; the others exclude it.
    partition : Partition or None
    schedule : Schedule or None
        Needed where the objective is ``mean_latency`` or ``makespan``.
    bound_s : float
        Proven lower bound on the objective: 0 is always valid, inf claims infeasibility.
    certificate : Certificate or None
        Proof of the bound.
    message : str
        Reason for people, for example why no solution exists.
    statistics : mapping of str to any
        Counts and times of the method; `hypsolve.solve` passes them on unread.

    Raises
    ------
    ValueError, TypeError
        If a field has a wrong type or value; the message names the field.

    Examples
    --------
    >>> import hypsolve as hs
    >>> def first_tier(instance, *, time_limit_s, seed):
    ...     cuts = (0,) + (instance.n_blocks,) * instance.n_tiers
    ...     return hs.Outcome("feasible", hs.Partition(cuts))
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]], allow_empty=True
    ... )
    >>> hs.solve(instance, first_tier)
    <Result of first_tier: feasible, bottleneck 3 s, no bound proved>
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
    """A broken rule.

    Attributes
    ----------
    rule : str
        ``blocks``, ``pinned``, ``memory``, ``empty stage``, ``node``, ``times``, ``order``,
        ``duration`` or ``overlap``.
    message : str
        A sentence that names tier, node, request and value.
    """

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"
