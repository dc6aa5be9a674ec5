"""Datasheet peaks of GPUs, to which fitted rates are shares: `peaks`."""

from __future__ import annotations

from dataclasses import dataclass

from hypsolve import catalog

DATASHEET: dict[str, tuple[float, float, float, float]] = {
    "a100-40gb": (312e12, 1.0, 1.0, 1.555e12), "a100-80gb": (312e12, 1.0, 1.0, 2.039e12),
    "h100": (989.4e12, 2.0, 1.0, 3.35e12), "h200": (989.4e12, 2.0, 1.0, 4.8e12),
    "h100-pcie": (756e12, 2.0, 1.0, 2.0e12), "b200": (2250e12, 2.0, 4.0, 8.0e12),
    "gb200": (2500e12, 2.0, 4.0, 8.0e12), "b300": (2250e12, 2.0, 6.0, 8.0e12),
    "gb300": (2500e12, 2.0, 6.0, 8.0e12), "a100-80gb-pcie": (312e12, 1.0, 1.0, 1.935e12),
    "l40s": (362e12, 2.0, 1.0, 0.864e12), "rtx-pro-6000": (503.8e12, 2.0, 4.0, 1.792e12),
}  # fmt: skip
"""16-bit FLOPs per second without sparsity, its multiples in 8 and 4 bits, bytes per second.

The numbers are NVIDIA's. A multiple of 1 means that the chip has no faster units: weights in
fewer bits are computed in 16.
"""
TYPICAL_FLOPS, TYPICAL_BYTES = 0.75, 0.8  # shares of the peak that fitted profiles reach


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peak rates of a GPU.

    Attributes
    ----------
    flops_per_s : dict of int to float
        By the bits of weights and activations: 16, 8, 4.
    bytes_per_s : float
    is_datasheet : bool
        False if the peaks are those of the catalogue's profile over typical shares.
    """

    flops_per_s: dict[int, float]
    bytes_per_s: float
    is_datasheet: bool


def peaks(gpu: str) -> Peaks:
    """Return the peak rates of a GPU of the catalogue, or of one of `DATASHEET`.

    Examples
    --------
    >>> peaks("h100").flops_per_s[8] / peaks("h100").flops_per_s[16]
    2.0
    >>> peaks("rtx-4090").is_datasheet
    False
    """
    if gpu in DATASHEET:
        flops, eight, four, bytes_per_s = DATASHEET[gpu]
        return Peaks({16: flops, 8: flops * eight, 4: flops * four}, bytes_per_s, True)
    profile = catalog.gpu(gpu)
    flops = profile.flops_per_s / TYPICAL_FLOPS
    return Peaks(dict.fromkeys((16, 8, 4), flops), profile.bytes_per_s / TYPICAL_BYTES, False)
