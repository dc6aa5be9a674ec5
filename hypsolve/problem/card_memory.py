"""Memory of NVIDIA cards as CUDA sees it, which is less than the data sheet says.

Error correction, the driver and the page tables of a card take a part. A server takes its share
of what remains: ``torch.cuda.mem_get_info`` and the "total capacity" of PyTorch's messages.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypsolve.problem.units import GIB

SEEN_GIB: Mapping[str, float] = {
    "T4": 14.56,  # "total capacity" in issue 133 of Zheng-Chong/CatVTON; nvidia-smi 15,360 MiB
    "L4": 22.03,  # recalled for this card; seen on unnamed ones; nvidia-smi 23,034 MiB
    "A10": 22.06,  # "total capacity" of an A10G; nvidia-smi 23,028 MiB
    "A30": 23.53,  # "total capacity" in issue 5 of google/RB-Modulation
    "A40": 44.4,  # recalled; nvidia-smi 46,068 MiB
    "L40S": 44.4,  # recalled; nvidia-smi 46,068 MiB (pull request 2797 of modal-client)
    "V100-16GB": 15.75,  # recalled for this card; seen on an unnamed one
    "RTX 2080 Ti": 10.73,  # recalled for this card; seen on an unnamed one
    "RTX 3090": 23.68,  # recalled for this card; seen on an unnamed one
    "RTX 4090": 23.64,  # issue 104 of ali-vilab/VGen
    "RTX A4000": 15.61,  # issue 6 of DengKaiCQ/VGGT-Long
    "RTX A6000": 47.5,  # recalled
    "RTX 6000 Ada": 47.5,  # helium/constants.py of the project Helium
    "A100-40GB": 39.4,  # recalled; nvidia-smi 40,960 MiB
    "A100-80GB": 79.15,  # recalled; nvidia-smi 81,920 MiB
    "A100-80GB PCIe": 79.15,  # recalled
    "H100-SXM": 79.2,  # recalled; 79.22 on the card of pull request 10511 of vllm-project/vllm
    "H100 PCIe": 79.1,  # recalled; nvidia-smi 81,559 MiB
    "H200": 139.8,  # recalled; nvidia-smi 143,771 MiB
    "B200": 178.4,  # recalled
}
"""GiB by the name of the card in the catalogue; others are believed to have what they say."""


def seen_bytes(gpu: str, nominal_bytes: float, given_bytes: float | None) -> float:
    """Return the memory of a node that a server on CUDA sees.

    Parameters
    ----------
    gpu : str
        Name of the card.
    nominal_bytes : float
        Memory of its profile.
    given_bytes : float or None
        Memory that the node states in its place. If it is less than the profile's, it was
        measured, and is taken as it is. If it is more, the same bytes are hidden.

    Examples
    --------
    >>> seen_bytes("L4", 24 * 2**30, None) / 2**30
    22.03
    >>> seen_bytes("L4", 24 * 2**30, 20 * 2**30) / 2**30
    20.0
    """
    has = nominal_bytes if given_bytes is None else given_bytes
    hidden = nominal_bytes - SEEN_GIB.get(gpu, nominal_bytes / GIB) * GIB
    return has - hidden if has >= nominal_bytes and hidden > 0 else has
