"""Interconnects of machines with several GPUs, from ``interconnects.toml``."""

import functools
import tomllib
from importlib import resources
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.interconnect import AllReduce, Interconnect


@functools.cache
def _tables() -> dict[str, Any]:
    path = resources.files("hypsolve.catalog").joinpath("interconnects.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def interconnects() -> tuple[str, ...]:
    """Return the names of all interconnects of the catalogue.

    Examples
    --------
    >>> from hypsolve.catalog.interconnects import interconnects
    >>> "nvlink4" in interconnects()
    True
    """
    return tuple(_tables()["interconnects"])


def measured_gpus(name: str) -> tuple[str, ...]:
    """Return the GPUs, by their names in the catalogue, whose all-reduces were measured."""
    table = _tables()["interconnects"]
    return tuple(table[valid.known("interconnect", name, table)].get("measured", {}))


@functools.cache
def _all_reduces(measured_on: str) -> tuple[AllReduce, ...]:
    rows = _tables()["measured"][measured_on]["all_reduces"]
    return tuple(AllReduce(**row) for row in rows)


def interconnect(name: str, gpu: str = "") -> Interconnect:
    """Return an interconnect of the catalogue, with the all-reduces of a GPU on it.

    Parameters
    ----------
    name : str
        A name in `interconnects`.
    gpu : str
        Name of the GPU, as in `hypsolve.gpus`. A GPU that was not measured gets the figures of
        one that was, marked ``assumed``.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the likeliest.

    Examples
    --------
    >>> from hypsolve.catalog.interconnects import interconnect
    >>> nvlink = interconnect("nvlink4", "h100")
    >>> nvlink.basis, nvlink.degrees
    ('measured', (2, 4, 8))
    >>> interconnect("pcie4", "rtx-4090").basis
    'assumed'
    """
    table = _tables()["interconnects"]
    entry = table[valid.known("interconnect", name, table)]
    measured = entry.get("measured", {})
    own = measured.get(gpu)
    stand_in = own or entry["stands_for"]
    source = _tables()["measured"][stand_in]["source"]
    if own is None:
        source = f"not measured: figures of {stand_in}; {entry['about']}; {source}"
    return Interconnect(
        name=name,
        all_reduces=_all_reduces(stand_in),
        basis="measured" if own else "assumed",
        source=source,
    )
