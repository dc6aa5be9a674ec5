"""GPUs of the catalogue by the names that drivers print, and their usual interconnects."""

import functools
import math
import re
from collections.abc import Iterable

from hypsolve import catalog
from hypsolve.catalog.nearest import near_names
from hypsolve.problem.units import GIB

MEMORY_TOLERANCE = 0.1
"""Share by which memory that a driver shows may differ from the catalogue's."""
_MAKERS = {"nvidia", "geforce", "tesla", "amd", "radeon", "intel", "r", "tm", "graphics"}
_FORMS = {"generation", "edition", "server", "workstation", "blackwell"}  # of equal rates
_MODULE = re.compile(r"sxm[0-9]?|hbm3e?")
_SIZE = re.compile(r"([0-9]{1,4})gb")
_NVLINK = {"a100": "nvlink3", "h100": "nvlink4", "h200": "nvlink4", "b200": "nvlink5"}
_ALWAYS_MODULES = ("h200", "b200")
_PCIE_5 = re.compile(r"rtx-50|rtx-pro|h100|h200|b200")
_PCIE_3 = re.compile(r"t4$|p40|v100|gtx|rtx-20")


def gpu_of_name(name: str, memory_bytes: float | None = None) -> str:
    """Return the catalogue's name of a GPU that a driver, or a user, calls by another name.

    The maker, the form of the card and the size of its memory may be part of the name. A name
    with any other word is another GPU: ``RTX 4090 Laptop GPU`` is no ``rtx-4090``.

    Parameters
    ----------
    name : str
        As ``nvidia-smi`` prints it, or a name of the catalogue.
    memory_bytes : float, optional
        Memory of the GPU, which tells GPUs of one name apart. Default: the size in the name.

    Raises
    ------
    ValueError
        If the catalogue has no such GPU, or several that differ in memory alone; the message
        names the nearest.

    Examples
    --------
    >>> gpu_of_name("NVIDIA H100 80GB HBM3"), gpu_of_name("NVIDIA A100-SXM4-40GB")
    ('h100', 'a100-40gb')
    >>> gpu_of_name("NVIDIA GeForce RTX 4060 Ti", memory_bytes=16380 * 2**20)
    'rtx-4060-ti-16gb'
    """
    gpus = catalog.gpus()
    if name in gpus:
        return name
    base, size_bytes, pcie = _parts(name)
    found = [each for each in gpus if _parts(each)[0] == base]
    if not found:
        raise ValueError(_unknown(name, gpus))
    memory_bytes = memory_bytes or size_bytes
    if memory_bytes is None:
        sizes = {gpus[each].memory_bytes for each in found}
        if len(sizes) > 1:
            raise ValueError(
                f"gpu {name!r:.60} comes with several sizes of memory: one of"
                f" {', '.join(found)}"
            )
    else:
        found = _nearest_memory(found, memory_bytes)
    same_form = [each for each in found if _parts(each)[2] == pcie]
    return (same_form or found)[0]


@functools.lru_cache(maxsize=1024)
def _parts(name: str) -> tuple[str, float | None, bool]:
    """Return the words that name the GPU, the memory in its name, and whether it says PCIe."""
    kept, size_bytes, pcie = [], None, False
    for word in re.findall(r"[a-z0-9]+", name[:200].lower()):
        size = _SIZE.fullmatch(word)
        if size:
            size_bytes = int(size[1]) * GIB or None
        elif word == "pcie":
            pcie = True
        elif word not in _MAKERS | _FORMS and not _MODULE.fullmatch(word):
            kept.append(word)
    return "-".join(kept), size_bytes, pcie


def _nearest_memory(names: list[str], memory_bytes: float) -> list[str]:
    """Return the GPUs whose memory is nearest, as a ratio."""
    gpus = catalog.gpus()
    off = {each: abs(math.log(gpus[each].memory_bytes / memory_bytes)) for each in names}
    return [each for each in names if off[each] <= min(off.values()) + 1e-9]


def _unknown(name: str, gpus: Iterable[str]) -> str:
    near = near_names(name, gpus)
    hint = f"did you mean {near[0]}? " if near else ""
    if near[1:]:
        hint += f"or {', '.join(near[1:])}? "
    return f"unknown gpu {name!r:.60}; {hint}hypsolve gpus lists all"


def has_memory_of(gpu: str, memory_bytes: float) -> bool:
    """Return whether a driver's figure is the memory of a GPU of the catalogue.

    Examples
    --------
    >>> has_memory_of("t4", 15360 * 2**20), has_memory_of("v100-16gb", 32768 * 2**20)
    (True, False)
    """
    return abs(memory_bytes / catalog.gpu(gpu).memory_bytes - 1) <= MEMORY_TOLERANCE


def usual_interconnect(gpu: str, name: str = "") -> str:
    """Return the interconnect that machines with several GPUs of a kind usually have.

    Parameters
    ----------
    gpu : str
        Name in the catalogue.
    name : str
        Name by the driver, which may say that the GPU is a module with NVLink (SXM).

    Examples
    --------
    >>> usual_interconnect("h100", "NVIDIA H100 80GB HBM3"), usual_interconnect("rtx-4090")
    ('nvlink4', 'pcie4')
    """
    base, _, pcie = _parts(gpu)
    words = re.findall(r"[a-z0-9]+", name[:200].lower())
    module = any(_MODULE.fullmatch(word) for word in words) or base in _ALWAYS_MODULES
    if base in _NVLINK and module and not pcie:
        return _NVLINK[base]
    if _PCIE_5.match(gpu):
        return "pcie5"
    return "pcie3" if _PCIE_3.match(gpu) else "pcie4"
