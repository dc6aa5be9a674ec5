"""Ceilings of fitted profiles: the rates of data sheets (``datasheets.toml``)."""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources

from hypsolve import catalog

IN_8_BITS = ("fp8", "int8", "q8_0", "q5_k_m", "q4_k_m", "q4_0")
"""Formats of weights that servers compute in 8 bits, at twice the rate, on chips that can."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Rates that no profile of a GPU can exceed.

    Attributes
    ----------
    gpu : str
        Name of the GPU.
    flops_per_s : float
        With the format of the weights.
    bytes_per_s : float
    """

    gpu: str
    flops_per_s: float
    bytes_per_s: float


@functools.cache
def _table() -> dict[str, dict[str, float]]:
    path = resources.files("hypsolve.catalog").joinpath("datasheets.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def ceiling(profile: str, model: str = "") -> Ceiling | None:
    """Return the largest rates of a GPU, by the name of its profile.

    Parameters
    ----------
    profile : str
        A name in `hypsolve.gpus`, or the name of a profile that begins with that of a GPU, as
        those of `hypsolve calibrate` do: ``L4-vllm``.
    model : str
        Name of the model; its end names the format of the weights. Empty: in 8 bits.

    Returns
    -------
    Ceiling or None
        None if the GPU, or its data sheet, is not known.

    Examples
    --------
    >>> ceiling("L4-vllm", "llama-3-8b")
    Ceiling(gpu='L4', flops_per_s=121000000000000.0, bytes_per_s=300000000000.0)
    >>> ceiling("my server") is None
    True
    """
    keys = catalog.gpus()
    names = {name: key for key in keys for name in (key, catalog.gpu(key).name)}
    known = [name for name in names if profile == name or profile.startswith(f"{name}-")]
    if not known:
        return None
    key = names[max(known, key=len)]
    if key not in _table():
        return None
    times = 2.0
    if model:
        eight = model.endswith(tuple(f"-{weights}" for weights in IN_8_BITS))
        times = 4.0 if model.endswith("-nvfp4") else 2.0 if eight else 1.0
    entry = _table()[key]
    return Ceiling(
        gpu=catalog.gpu(key).name,
        flops_per_s=times * entry["tflops"] * 1e12,
        bytes_per_s=entry["gb_per_s"] * 1e9,
    )
