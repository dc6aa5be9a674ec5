"""`Interconnect`: how long GPUs of one machine need for an all-reduce."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import validation as valid

ANY_LIBRARY = "nccl"  # used where a runtime's own kernels were not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Seconds of an all-reduce of one library over so many GPUs: two lines and a switch.

    A message of at most `switch_bytes` takes ``small_s + bytes * small_s_per_byte`` seconds,
    and a larger one ``large_s + bytes * large_s_per_byte``.

    Attributes
    ----------
    library : str
        ``nccl``, ``vllm``, ``sglang`` or ``tensorrt-llm``.
    degree : int
        Number of GPUs, at least 2.
    switch_bytes, small_s, small_s_per_byte, large_s, large_s_per_byte : float

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the field, the rule and the value.

    Examples
    --------
    >>> from hypsolve.problem.interconnect import AllReduce
    >>> pair = AllReduce(library="nccl", degree=2, switch_bytes=1e6, small_s=1e-5,
    ...     small_s_per_byte=1e-11, large_s=2e-5, large_s_per_byte=5e-12)
    >>> pair.seconds(0.0), pair.seconds(1e7)
    (1e-05, 7e-05)
    """

    library: str
    degree: int
    switch_bytes: float
    small_s: float
    small_s_per_byte: float
    large_s: float
    large_s_per_byte: float

    def __post_init__(self) -> None:
        owner = f"all-reduce of {valid.name('all-reduce', self.library)!r}"
        valid.whole(owner, "degree", self.degree, minimum=2)
        for name in (
            "switch_bytes", "small_s", "small_s_per_byte", "large_s", "large_s_per_byte",
        ):  # fmt: skip
            valid.real(owner, name, getattr(self, name))

    def seconds(self, message_bytes: ArrayLike) -> Any:
        """Return the seconds of one all-reduce of a message, or of several, as an array."""
        size = np.asarray(message_bytes, dtype=np.float64)
        small = self.small_s + size * self.small_s_per_byte
        large = self.large_s + size * self.large_s_per_byte
        seconds = np.where(size <= self.switch_bytes, small, large)
        return seconds if seconds.ndim else float(seconds)

    def scaled(self, factor: float) -> AllReduce:
        """Return an all-reduce that takes so many times the seconds."""
        seconds = ("small_s", "small_s_per_byte", "large_s", "large_s_per_byte")
        return replace(self, **{name: factor * getattr(self, name) for name in seconds})

    def convex_minorant(self) -> AllReduce:
        """Return a convex all-reduce that nowhere takes longer.

        Messages of any sizes then take at least as long as equal ones of their mean size. It is
        the larger of two lines below the two given ones: with the smaller slope, and with the
        slope of large messages.
        """
        small, steep = self.small_s_per_byte, self.large_s_per_byte
        flat = min(small, steep)
        flat_s = min(self.small_s, self.large_s + (steep - flat) * self.switch_bytes)
        at_switch_s = self.small_s + small * self.switch_bytes
        steep_s = min(self.large_s, self.small_s, at_switch_s - steep * self.switch_bytes)
        if steep_s < 0:  # from the origin, then
            steep_s, steep = 0.0, at_switch_s / self.switch_bytes
        if steep <= flat:
            steep_s, steep = flat_s, flat
        return replace(
            self,
            switch_bytes=(flat_s - steep_s) / (steep - flat) if steep > flat else 0.0,
            small_s=flat_s,
            small_s_per_byte=flat,
            large_s=steep_s,
            large_s_per_byte=steep,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """The links among the GPUs of one machine, by the all-reduces measured on them.

    Attributes
    ----------
    name : str
    all_reduces : tuple of AllReduce
        One for each library and degree.
    basis : str
        ``measured`` on this interconnect and GPU; ``assumed``: measured on another one.
    source : str
        Origin of the numbers.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the interconnect, the field and the value.
    """

    name: str
    all_reduces: tuple[AllReduce, ...] = field(repr=False)
    basis: str = "user"
    source: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        owner = f"interconnect {valid.name('interconnect', self.name)!r}"
        some = valid.some(owner, "all_reduces", self.all_reduces, AllReduce)
        object.__setattr__(self, "all_reduces", some)

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees that are known, in rising order."""
        return tuple(sorted({each.degree for each in self.all_reduces}))

    def all_reduce(self, degree: int, library: str = ANY_LIBRARY) -> AllReduce:
        """Return the all-reduce of a degree: of the library, or of NCCL if it has none.

        Raises
        ------
        ValueError
            If the degree is not known; the message names those that are.
        """
        of_degree = {each.library: each for each in self.all_reduces if each.degree == degree}
        if not of_degree:
            known = ", ".join(map(str, self.degrees))
            raise ValueError(
                f"interconnect {self.name!r}: tensor_parallel must be 1 or one of {known},"
                f" got {degree}"
            )
        found = of_degree.get(library) or of_degree.get(ANY_LIBRARY)
        return found or next(iter(of_degree.values()))
