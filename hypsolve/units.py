"""Conversions at the edge: the library itself knows only seconds, bytes and FLOPs."""

GIB = 2**30
MIB = 2**20


def gbps_to_bytes_per_s(gbps: float) -> float:
    """Convert 10^9 bit/s, the unit of network datasheets, to bytes/s."""
    return gbps * 1e9 / 8


def mbps_to_bytes_per_s(mbps: float) -> float:
    """Convert 10^6 bit/s to bytes/s."""
    return mbps * 1e6 / 8


def ms_to_s(milliseconds: float) -> float:
    """Convert milliseconds to seconds."""
    return milliseconds * 1e-3


def gib_to_bytes(gib: float) -> float:
    """Convert GiB (2^30 bytes), the unit of GPU memory, to bytes."""
    return gib * GIB
