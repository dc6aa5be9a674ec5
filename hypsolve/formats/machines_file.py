"""`MachinesFile`: a fleet with what a placement needs besides: pins, a runtime, a currency."""

import re
from dataclasses import dataclass, replace

from hypsolve.problem import validation as valid
from hypsolve.problem.fleet import Fleet, Pin
from hypsolve.problem.model import Model
from hypsolve.problem.network import Link
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.units import show_seconds

ASSUMED_LINK = Link(bytes_per_s=1.25e8, latency_s=2e-4)
"""Link between machines of a site for which a file states none: 1 Gbit/s Ethernet."""
_RANGE = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class BlockPin:
    """Blocks of any model that must stay at some sites.

    Attributes
    ----------
    blocks : str
        ``embedding``, ``head``, or numbers ``START:STOP`` of blocks, of which the embedding is
        block 0. Without a start or a stop, the range begins or ends with the model.
    sites : tuple of str
        Sites that may host them.
    owner : str
        Name of the pin in messages.

    Raises
    ------
    ValueError
        If `blocks` names none; the message names the owner and the value.

    Examples
    --------
    >>> from hypsolve import model
    >>> from hypsolve.formats.machines_file import BlockPin
    >>> BlockPin("30:", ("home",)).of(model("llama-3-8b"))
    Pin(start=30, stop=34, sites=('home',))
    """

    blocks: str
    sites: tuple[str, ...]
    owner: str = "pin"

    def __post_init__(self) -> None:
        valid.text(self.owner, "blocks", self.blocks)
        found = _RANGE.fullmatch(self.blocks)
        if self.blocks not in ("embedding", "head") and not found:
            raise ValueError(
                f"{self.owner}: blocks must be embedding, head, or numbers such as 0:4,"
                f" got {self.blocks!r:.60}"
            )
        if found and found[2] and int(found[1] or 0) >= int(found[2]):
            raise ValueError(
                f"{self.owner}: blocks must start before they stop, got {self.blocks!r}"
            )

    @property
    def needs_model(self) -> bool:
        """Whether the number of the last block depends on the model."""
        return self.blocks == "head" or self.blocks.endswith(":")

    def of(self, model: Model) -> Pin:
        """Return the pin for a model.

        Raises
        ------
        ValueError
            If the model has too few blocks.
        """
        pin = self._numbered(model.n_blocks)
        if pin is None or pin.stop > model.n_blocks:
            raise ValueError(
                f"{self.owner}: blocks must lie within the {model.n_blocks} blocks of"
                f" {model.name}, got {self.blocks!r}"
            )
        return pin

    def without_model(self) -> Pin | None:
        """Return the pin if it does not depend on the model, else None."""
        return None if self.needs_model else self._numbered(0)

    def _numbered(self, n_blocks: int) -> Pin | None:
        if self.blocks in ("embedding", "head"):
            start = 0 if self.blocks == "embedding" else n_blocks - 1
            return Pin(start=start, stop=start + 1, sites=self.sites)
        first, last = self.blocks.split(":")
        start, stop = int(first or 0), int(last or n_blocks)
        return Pin(start=start, stop=stop, sites=self.sites) if start < stop else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinesFile:
    """The content of a machines file: a fleet, pins of blocks, a runtime, a currency.

    Attributes
    ----------
    fleet : Fleet
        Named after the file. Its pins are those that do not depend on the model: `fleet_for`
        adds the others.
    source : str
        Path of the file, as given.
    description : str
    currency : str
        Currency of the prices; empty if the file names none.
    runtime : Runtime or None
        Runtime that the file names, with the values that it replaces; None if it names none.
    pins : tuple of BlockPin
        All pins of the file.
    notes : tuple of str
        What was assumed, and what of the file was left out, in sentences for people.
    """

    fleet: Fleet
    source: str = ""
    description: str = ""
    currency: str = ""
    runtime: Runtime | None = None
    pins: tuple[BlockPin, ...] = ()
    notes: tuple[str, ...] = ()

    def fleet_for(self, model: Model) -> Fleet:
        """Return the fleet with all pins, which may depend on the number of blocks.

        Raises
        ------
        ValueError
            If the model lacks a pinned block; the message names the pin.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import hypsolve as hs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "lab.toml")
        ...     _ = path.write_text('''
        ...     machines = [{gpu = "l4", count = 2}]
        ...     pins = [{blocks = "head", sites = ["site"]}]
        ...     ''')
        ...     file = hs.read_machines(path)
        >>> file.fleet_for(hs.model("llama-3-8b")).pins
        (Pin(start=33, stop=34, sites=('site',)),)
        """
        return replace(self.fleet, pins=tuple(pin.of(model) for pin in self.pins))


def assumed_link_note(where: str, link: Link = ASSUMED_LINK) -> str:
    """Say that a link was assumed."""
    return (
        f"{where}: machines are assumed to reach each other at"
        f" {link.bytes_per_s * 8e-9:g} Gbit/s, {show_seconds(link.latency_s)} one way"
    )
