"""Conversions of units, and numbers as text.

hypsolve computes in seconds, bytes and FLOPs alone; other units occur in files and messages.
"""

import math

GIB = 2**30


def gbps_to_bytes_per_s(gbps: float) -> float:
    """Convert Gbit/s (10^9 bit/s, the unit of network datasheets) to bytes/s."""
    return gbps * 1e9 / 8


def ms_to_s(milliseconds: float) -> float:
    """Convert milliseconds to seconds."""
    return milliseconds * 1e-3


def gib_to_bytes(gib: float) -> float:
    """Convert GiB (2^30 bytes, the unit of GPU memory) to bytes."""
    return gib * GIB


def finite_or_none(value: float) -> float | None:
    """Return a float for JSON, which has no nan and no inf: None stands for both."""
    return float(value) if math.isfinite(value) else None


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    Examples
    --------
    >>> count(1, "block"), count(2, "block")
    ('1 block', '2 blocks')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_percent(share: float) -> str:
    """Return a share as text for people, with two digits, or as a whole number from 100 % on.

    Examples
    --------
    >>> show_percent(0.0412), show_percent(1.94)
    ('4.1 %', '194 %')
    """
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def show_bytes(n_bytes: float) -> str:
    """Return a number of bytes as text for people, in GB (10^9 bytes) from 10 MB on."""
    return f"{n_bytes / 1e9:.3f} GB" if n_bytes >= 1e7 else f"{n_bytes:g} bytes"


def show_seconds(seconds: float) -> str:
    """Return a time as text for people, in s, ms or us."""
    if seconds == 0 or not math.isfinite(seconds):
        return f"{seconds:g} s"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if float(f"{abs(seconds) * scale:.4g}") >= 1:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds:.3g} s"
