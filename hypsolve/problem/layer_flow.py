"""`LayerFlowProblem`: machines hold ranges of layers, so that the most tokens flow through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from hypsolve.problem import validation as valid
from hypsolve.problem.units import count

OWNER = "layer flow problem"
Place = str | None
"""A machine, or None for the coordinator, where tokens start and end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LayerFlowProblem:
    """Machines with rates and links, and the layers that they are to hold for the largest flow.

    That flow is Helix's objective (ASPLOS'25). A machine holds one range of layers. Its tokens
    per second depend on its kind and on the number of layers that it holds, whatever part of
    them a token uses. A token may enter a range at any layer, and leaves behind its last one.
    A link carries activations between two machines, and ids of tokens from and to the
    coordinator.

    The flow is no serving rate: the rates hold for one batch size, and a round trip takes no
    time.

    Attributes
    ----------
    name : str
    n_layers : int
    kinds : mapping of str to str
        Kind of each machine.
    tokens_per_s : mapping of str to tuple of float
        Tokens per second of a machine of each kind that holds 1, 2, ... layers. The length is
        the largest number of layers that it can hold.
    links : mapping of (str or None, str or None) to float
        Bytes per second from a machine to another; None stands for the coordinator. Two places
        without an entry have no link.
    activation_bytes, token_bytes : float
        Bytes of one token between machines, and from or to the coordinator.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> problem = LayerFlowProblem(
    ...     name="two boxes", n_layers=3, kinds={"a": "big", "b": "small"},
    ...     tokens_per_s={"big": (90.0, 40.0), "small": (50.0,)},
    ...     links={(None, "a"): 1e6, ("a", "b"): 1e6, ("b", None): 1e6},
    ...     activation_bytes=8192, token_bytes=2,
    ... )
    >>> problem
    <LayerFlowProblem two boxes: 3 layers, 2 machines of 2 kinds>
    >>> problem.rate("a", 2), problem.link_rate("a", "b"), problem.link_rate("b", "a")
    (40.0, 122.0703125, 0.0)
    """

    name: str
    n_layers: int
    kinds: Mapping[str, str]
    tokens_per_s: Mapping[str, tuple[float, ...]]
    links: Mapping[tuple[Place, Place], float]
    activation_bytes: float
    token_bytes: float

    def __post_init__(self) -> None:
        valid.name(OWNER, self.name)
        valid.whole(OWNER, "n_layers", self.n_layers, minimum=1)
        for field in ("kinds", "tokens_per_s", "links"):
            if not isinstance(getattr(self, field), Mapping):
                value = getattr(self, field)
                raise TypeError(f"{OWNER}: {field} must be a mapping, got {value!r:.60}")
        if not self.kinds:
            raise ValueError(f"{OWNER}: kinds must hold at least one machine, got none")
        rates = {}
        for kind, row in self.tokens_per_s.items():
            values = valid.reals(OWNER, f"tokens_per_s of {kind!r}", row, (None,))
            rates[valid.text(OWNER, "kind", kind)] = tuple(map(float, values))
        for machine, kind in self.kinds.items():
            valid.text(OWNER, "machine", machine)
            valid.known(f"kind of machine {machine!r}", kind, rates)
        links = {}
        for pair, value in self.links.items():
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1]:
                raise TypeError(f"{OWNER}: links must join two places, got {pair!r:.60}")
            for place in pair:
                if place is not None:
                    valid.known("machine in links", place, self.kinds)
            links[pair] = valid.real(OWNER, f"link from {pair[0]!r} to {pair[1]!r}", value)
        for field in ("activation_bytes", "token_bytes"):
            valid.real(OWNER, field, getattr(self, field), strict=True)
        object.__setattr__(self, "kinds", dict(self.kinds))
        object.__setattr__(self, "tokens_per_s", rates)
        object.__setattr__(self, "links", links)

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines."""
        return tuple(self.kinds)

    def max_layers(self, machine: str) -> int:
        """Return the largest number of layers that a machine can hold."""
        return min(self.n_layers, len(self.tokens_per_s[self.kinds[machine]]))

    def rate(self, machine: str, n_layers: int) -> float:
        """Return the tokens per second of a machine with so many layers; 0 if too many."""
        if not 1 <= n_layers <= self.max_layers(machine):
            return 0.0
        return self.tokens_per_s[self.kinds[machine]][n_layers - 1]

    def link_rate(self, start: Place, end: Place) -> float:
        """Return the tokens per second that a link carries; 0 without a link."""
        is_end = start is None or end is None
        size = self.token_bytes if is_end else self.activation_bytes
        return self.links.get((start, end), 0.0) / size

    def digest(self) -> str:
        """Return the SHA-256 digest of all fields but the name, in hexadecimal."""
        links = sorted((str(a), str(b), value) for (a, b), value in self.links.items())
        content = [
            self.n_layers, sorted(self.kinds.items()), sorted(self.tokens_per_s.items()),
            links, self.activation_bytes, self.token_bytes,
        ]  # fmt: skip
        sha = hashlib.sha256(b"layer flow problem 1\n")
        sha.update(json.dumps(content).encode())
        return sha.hexdigest()

    def __repr__(self) -> str:
        machines, kinds = len(self.kinds), len(set(self.kinds.values()))
        return (
            f"<LayerFlowProblem {self.name}: {count(self.n_layers, 'layer')},"
            f" {count(machines, 'machine')} of {count(kinds, 'kind')}>"
        )
