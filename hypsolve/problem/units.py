"""Conversions at the edge: the library itself knows only seconds, bytes and FLOPs."""

import math

GIB = 2**30


def gbps_to_bytes_per_s(gbps: float) -> float:
    """Convert 10^9 bit/s, the unit of network datasheets, to bytes/s."""
    return gbps * 1e9 / 8


def ms_to_s(milliseconds: float) -> float:
    """Convert milliseconds to seconds."""
    return milliseconds * 1e-3


def gib_to_bytes(gib: float) -> float:
    """Convert GiB (2^30 bytes), the unit of GPU memory, to bytes."""
    return gib * GIB


def finite_or_none(value: float) -> float | None:
    """A number for JSON, which knows neither nan nor inf."""
    return float(value) if math.isfinite(value) else None


def show_bytes(n_bytes: float) -> str:
    """Bytes for people to read."""
    return f"{n_bytes / 1e9:.3f} GB" if n_bytes >= 1e7 else f"{n_bytes:g} bytes"


def show_seconds(seconds: float) -> str:
    """Seconds for people to read, in s, ms or us."""
    if seconds == 0 or not math.isfinite(seconds):
        return f"{seconds:g} s"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if float(f"{abs(seconds) * scale:.4g}") >= 1:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds:.3g} s"
