"""`LayerLayout`: ranges of layers on machines, and the flow of tokens between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypsolve.problem import validation as valid


@dataclass(frozen=True, slots=True)
class HostedRange:
    """A machine and the layers that it holds.

    Attributes
    ----------
    machine : str
    start, stop : int
        The machine holds the layers `start` to `stop` - 1, at least one.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it.

    Examples
    --------
    >>> str(HostedRange("box", 0, 12))
    'box 0:12'
    """

    machine: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        valid.text("hosted range", "machine", self.machine)
        owner = f"hosted range of {self.machine!r}"
        start = valid.whole(owner, "start", self.start)
        stop = valid.whole(owner, "stop", self.stop, minimum=start + 1)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)

    @property
    def n_layers(self) -> int:
        """Number of layers that the machine holds."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.machine} {self.start}:{self.stop}"


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """Which machine holds which layers, and how many tokens go from where to where.

    A machine holds one range of layers, and may run a part of it: a token may enter at any of
    the layers, and leaves behind the last one.

    Attributes
    ----------
    ranges : tuple of HostedRange
        At most one for each machine.
    flows : tuple of (str or None, str or None, float)
        Tokens per second from a machine to another. None stands for the coordinator, where
        tokens start and end.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> layout = LayerLayout(
    ...     (HostedRange("a", 0, 3), HostedRange("b", 3, 5)),
    ...     ((None, "a", 9.5), ("a", "b", 9.5), ("b", None, 9.5)),
    ... )
    >>> layout.tokens_per_s
    9.5
    >>> print(layout)
    a 0:3
    b 3:5
    """

    ranges: tuple[HostedRange, ...]
    flows: tuple[tuple[str | None, str | None, float], ...] = ()

    def __post_init__(self) -> None:
        owner = "layer layout"
        ranges = valid.some(owner, "ranges", self.ranges, HostedRange)
        object.__setattr__(self, "ranges", ranges)
        seen: set[str] = set()
        for each in ranges:
            if each.machine in seen:
                raise ValueError(
                    f"{owner}: ranges must name a machine once, got {each.machine!r} twice"
                )
            seen.add(each.machine)
        object.__setattr__(self, "flows", tuple(_flows(owner, self.flows, seen)))

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second that leave the coordinator."""
        return sum(rate for start, _, rate in self.flows if start is None)

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines that hold layers, in the order of `ranges`."""
        return tuple(each.machine for each in self.ranges)

    def range_of(self, machine: str) -> HostedRange:
        """Return the range of a machine.

        Raises
        ------
        ValueError
            If the machine holds no layers; the message suggests the likeliest name.
        """
        valid.known("machine", machine, self.machines)
        return next(each for each in self.ranges if each.machine == machine)

    def __str__(self) -> str:
        return "\n".join(map(str, self.ranges))

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain lists, as JSON has them."""
        return {
            "ranges": [[each.machine, each.start, each.stop] for each in self.ranges],
            "flows": [list(each) for each in self.flows],
        }


def _flows(
    owner: str, flows: Iterable[Any], known: set[str]
) -> Iterable[tuple[str | None, str | None, float]]:
    """Check the flows, and give them one by one."""
    seen = set()
    for each in flows:
        if not isinstance(each, tuple | list) or len(each) != 3:
            raise TypeError(
                f"{owner}: flows must hold (from, to, tokens per second), got {each!r:.60}"
            )
        start, end, rate = each
        for name in (start, end):
            if name is not None:
                valid.known(f"machine in flows of {owner}", name, known)
        if start == end:
            raise ValueError(f"{owner}: flows must join two places, got {start!r} to {end!r}")
        if (start, end) in seen:
            raise ValueError(
                f"{owner}: flows must name a pair once, got {start!r} to {end!r} twice"
            )
        seen.add((start, end))
        yield start, end, valid.real(owner, f"flow from {start!r} to {end!r}", rate)
