"""Problem instances: named networks, seeded generators, frozen files.

The named networks are the files ``networks/*.toml``. `instances.scenarios.scenario` puts a
model and requests on one of them.
"""

import functools
from pathlib import Path

from hypsolve.formats.network_toml import NetworkFile, read_network, read_network_file
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Network

__all__ = ["describe", "network", "networks", "read_network"]

_FOLDER = Path(__file__).parent / "networks"


def networks() -> tuple[str, ...]:
    """Return the names of the networks that come with the repository."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def network(name: str) -> Network:
    """Return a named network; ValueError for an unknown name lists the choices."""
    return _file(name).network


def describe(name: str) -> str:
    """Return a one-line description of a named network."""
    return _file(name).description


def _file(name: str) -> NetworkFile:
    return _read(valid.known("network", name, networks()))


@functools.cache
def _read(name: str) -> NetworkFile:
    return read_network_file(_FOLDER / f"{name}.toml")
