"""Problem instances: named networks and fleets, seeded generators, frozen files.

The named networks are the files ``networks/*.toml``. `instances.scenarios.scenario` puts a
model and requests on one of them. The named fleets are the files ``machines/*.toml``.
"""

import functools
from dataclasses import replace
from pathlib import Path

from hypsolve.formats.machines import read_machines
from hypsolve.formats.network_toml import NetworkFile, read_network, read_network_file
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Network
from hypsolve.problem.fleet import Fleet

__all__ = ["describe", "fleet", "fleets", "network", "networks", "read_network"]

_FOLDER = Path(__file__).parent / "networks"
_FLEETS = Path(__file__).parent / "machines"


def networks() -> tuple[str, ...]:
    """Return the names of the networks that come with the repository."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def network(name: str, *, free_share: float = 0.0) -> Network:
    """Return a named network.

    Parameters
    ----------
    name : str
        A name in `networks`.
    free_share : float
        Share of its GPU's memory that a node keeps free if the file reserves none there. The
        profile of a runtime knows what the runtime takes; without one, 0.1 is what servers
        leave by default, and what `instances.scenarios` leaves.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the choices.
    """
    made = _file(name).network
    if not free_share:
        return made
    return replace(
        made,
        tiers=tuple(
            replace(
                tier,
                nodes=tuple(
                    node
                    if node.reserved_bytes
                    else replace(node, reserved_bytes=free_share * node.gpu.memory_bytes)
                    for node in tier.nodes
                ),
            )
            for tier in made.tiers
        ),
    )


def fleets() -> tuple[str, ...]:
    """Return the names of the fleets that come with the repository."""
    return tuple(sorted(path.stem for path in _FLEETS.glob("*.toml")))


def fleet(name: str) -> Fleet:
    """Return a named fleet: machines without an order, and offers.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the choices.
    """
    return read_machines(_FLEETS / f"{valid.known('fleet', name, fleets())}.toml").fleet


def describe(name: str) -> str:
    """Return a one-line description of a named network."""
    return _file(name).description


def _file(name: str) -> NetworkFile:
    return _read(valid.known("network", name, networks()))


@functools.cache
def _read(name: str) -> NetworkFile:
    return read_network_file(_FOLDER / f"{name}.toml")
