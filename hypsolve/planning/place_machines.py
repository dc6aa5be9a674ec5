"""`Machines`: those that a placement may choose from, and what a runtime can use of them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from hypsolve.formats.machines import read_machines
from hypsolve.formats.machines_file import MachinesFile
from hypsolve.formats.machines_network import fleet_of_network_file
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.platforms import ONE_PLATFORM, platform_of, platforms_of, runs_on
from hypsolve.problem.deployment import Model, Network
from hypsolve.problem.fleet import Fleet, Machine
from hypsolve.problem.runtime import Runtime

MachinesSource = str | os.PathLike[str] | MachinesFile | Fleet | Network | NetworkFile
OWNER = "place"
DEFAULT_RUNTIME = "vllm"
RPC_SERVER = "llama.cpp"  # whose stages on two machines talk through the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Machines to choose from, as a file or a user gives them.

    Attributes
    ----------
    fleet : Fleet
    currency : str
        Of the prices; empty if it is not stated.
    runtime : Runtime or None
        The one that their file names.
    notes : tuple of str
        What the reader of the file left out or assumed.
    unusable : tuple of Machine
        Those that the runtime does not run on, which `fleet` lacks.
    """

    fleet: Fleet
    currency: str = ""
    runtime: Runtime | None = None
    notes: tuple[str, ...] = ()
    unusable: tuple[Machine, ...] = ()

    @classmethod
    def of(cls, source: MachinesSource, model: Model) -> Machines:
        """Return machines from a file, a fleet, or a network whose order does not count."""
        if isinstance(source, str | os.PathLike):
            source = read_machines(source)
        if isinstance(source, MachinesFile):
            return cls(
                fleet=source.fleet_for(model),
                currency=source.currency,
                runtime=source.runtime,
                notes=source.notes,
            )
        if isinstance(source, Fleet):
            return cls(fleet=source)
        if isinstance(source, Network):
            return cls(fleet=Fleet.of_network(source))
        if isinstance(source, NetworkFile):
            return cls(
                fleet=fleet_of_network_file(source, model),
                currency=source.currency,
                runtime=source.runtime,
            )
        raise TypeError(
            f"{OWNER}: machines must be a path, a MachinesFile, a Fleet, a Network or a"
            f" NetworkFile, got {source!r:.60}"
        )

    def runtime_asked(self, asked: str | Runtime | None) -> str | Runtime:
        """Return the runtime that was asked for, or else that of the file, or vLLM.

        The file's values also hold where its runtime is asked for by name.
        """
        own = self.runtime
        if own is not None and asked in (None, own.name):
            return own
        return DEFAULT_RUNTIME if asked is None else asked


def usable(machines: Machines, runtime: Runtime) -> tuple[Machines, dict[str, str]]:
    """Return the machines that a runtime runs on, and why it does not run on the others.

    Raises
    ------
    ValueError
        If none is left.
    """
    server, fleet = runtime.server, machines.fleet
    left_out = {
        machine.name: (
            f"runtime {runtime.name} does not run on {machine.node.gpu.name}"
            f" ({platform_of(machine.node.gpu.name)})"
        )
        for machine in fleet.machines
        if not runs_on(server, runtime, machine.node.gpu.name)
    }
    kept = tuple(machine for machine in fleet.machines if machine.name not in left_out)
    if not kept:
        gpus = ", ".join(dict.fromkeys(each.node.gpu.name for each in fleet.machines))
        platforms = ", ".join(platforms_of(server, runtime))
        raise ValueError(
            f"{OWNER}: {server or runtime.name} runs on {platforms}, and the machines have only"
            f" {gpus}"
        )
    if not left_out:
        return machines, {}
    apart = tuple(together - left_out.keys() for together in fleet.apart)
    fleet = dataclasses.replace(
        fleet, machines=kept, apart=tuple(each for each in apart if len(each) > 1)
    )
    gone = tuple(machine for machine in machines.fleet.machines if machine.name in left_out)
    return dataclasses.replace(machines, fleet=fleet, unusable=gone), left_out


def restricted(fleet: Fleet, runtime: Runtime) -> tuple[Fleet, tuple[str, ...]]:
    """Return a fleet with what a runtime keeps apart, and its restrictions in words."""
    names = [machine.name for machine in fleet.machines]
    if runtime.server == RPC_SERVER and len(names) > 1:
        together = (*fleet.apart, frozenset(names))
        return dataclasses.replace(fleet, apart=together), (
            "pipelines of llama.cpp are kept inside one machine: between two machines, all"
            " states pass llama-server",
        )
    platforms: dict[str, list[str]] = {}
    for machine in fleet.machines:
        platform = platform_of(machine.node.gpu.name)
        if platform:
            platforms.setdefault(platform, []).append(machine.name)
    if runtime.server not in ONE_PLATFORM or len(platforms) < 2:
        return fleet, ()
    kinds = list(platforms.values())
    pairs = tuple(
        frozenset((a, b))
        for i, first in enumerate(kinds)
        for second in kinds[i + 1 :]
        for a in first
        for b in second
    )
    return dataclasses.replace(fleet, apart=(*fleet.apart, *pairs)), (
        f"a pipeline of {runtime.server} has GPUs of one platform ({', '.join(platforms)})",
    )
