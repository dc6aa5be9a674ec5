"""`Network`: tiers of nodes with GPUs, and the links between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypsolve.problem import validation as valid
from hypsolve.problem.interconnect import AllReduce, Interconnect
from hypsolve.problem.operator_rates import OperatorRates
from hypsolve.problem.profile_errors import ProfileErrors

MAX_GPUS = 1024  # in one machine


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """Speed and memory of a GPU, or of several equal ones that compute as one.

    A block takes ``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` seconds in a step.
    `hypsolve.gpu` returns a profile of the catalogue, `Deployment.profile` that of a group.

    Attributes
    ----------
    name : str
    t0_s : float
        Fixed time of a block in each step, in seconds.
    flops_per_s, bytes_per_s : float
        Compute rate and memory bandwidth that blocks reach.
    memory_bytes : float
    power_w : float
        Board power in watts; 0 if unknown.
    tier : str
        Where the catalogue expects the GPU: ``edge``, ``fog`` or ``cloud``.
    basis : str
        Origin of the three speeds: ``fitted`` to measured block times, ``datasheet`` values
        times measured shares, or ``user``.
    source : str
        Origin of the numbers, in words.
    visible_bytes : float or None
        Memory that CUDA shows to a server, which is less than `memory_bytes`: error correction
        and the driver take a part. None: all.
    kv_copies : int
        Copies of the KV cache in a group with more GPUs than the model has KV heads.
    all_reduce : AllReduce or None
        Seconds of an all-reduce in a group; a block adds `Block.collectives` of them to a step.
    overlaps : bool
        Whether a block computes while it reads. If not, the two times add up, as on the core of
        a CPU: ``t0_s + flops / flops_per_s + bytes / bytes_per_s``.
    operators : OperatorRates or None
        A rate for each kind of operator, in place of the three numbers. They remain the
        profile's summary, and the cost model ``flops`` reads them.
    errors : ProfileErrors or None
        How far times by a profile that was fitted to a benchmark, or to steps of blocks, were
        off; forecasts state it.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the GPU, the field, the rule and the value.
    """

    name: str
    t0_s: float
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float
    power_w: float = 0.0
    tier: str = ""
    basis: str = "user"
    source: str = ""
    visible_bytes: float | None = None
    kv_copies: int = 1
    all_reduce: AllReduce | None = None
    overlaps: bool = True
    operators: OperatorRates | None = None
    errors: ProfileErrors | None = None

    def __post_init__(self) -> None:
        owner = f"gpu {valid.text('gpu', 'name', self.name)!r}"
        valid.real(owner, "t0_s", self.t0_s)
        for field in ("flops_per_s", "bytes_per_s", "memory_bytes"):
            valid.real(owner, field, getattr(self, field), strict=True)
        valid.real(owner, "power_w", self.power_w)
        if self.visible_bytes is not None:
            valid.real(owner, "visible_bytes", self.visible_bytes, strict=True)
            if self.visible_bytes > self.memory_bytes:
                raise ValueError(
                    f"{owner}: visible_bytes must be at most memory_bytes ="
                    f" {self.memory_bytes!r}, got {self.visible_bytes!r}"
                )
        valid.whole(owner, "kv_copies", self.kv_copies, minimum=1)
        if self.all_reduce is not None:
            valid.of_type(owner, "all_reduce", self.all_reduce, AllReduce)
        valid.flag(owner, "overlaps", self.overlaps)
        if self.operators is not None:
            valid.of_type(owner, "operators", self.operators, OperatorRates)
        if self.errors is not None:
            valid.of_type(owner, "errors", self.errors, ProfileErrors)

    @property
    def hidden_bytes(self) -> float:
        """Memory that the card has and CUDA does not show."""
        return 0.0 if self.visible_bytes is None else self.memory_bytes - self.visible_bytes

    def scaled(
        self, *, seconds: float = 1.0, flops: float = 1.0, moved: float = 1.0
    ) -> "GpuProfile":
        """Return a profile with constants, FLOPs/s and bytes/s times factors.

        Examples
        --------
        >>> import hypsolve as hs
        >>> hs.gpu("l4").scaled(flops=2).flops_per_s / hs.gpu("l4").flops_per_s
        2.0
        """
        rates = self.operators
        return replace(
            self,
            t0_s=self.t0_s * seconds,
            flops_per_s=self.flops_per_s * flops,
            bytes_per_s=self.bytes_per_s * moved,
            operators=None if rates is None else rates.scaled(seconds, flops, moved),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link from one tier to the next.

    Attributes
    ----------
    bytes_per_s : float
        Rate of the link.
    latency_s : float
        One-way latency.
    return_latency_s : float or None
        Latency of the way back; None means `latency_s`.
    round_trip_s : float
        Sum of both latencies.
    """

    bytes_per_s: float
    latency_s: float
    return_latency_s: float | None = None

    def __post_init__(self) -> None:
        valid.real("link", "bytes_per_s", self.bytes_per_s, strict=True)
        valid.real("link", "latency_s", self.latency_s)
        if self.return_latency_s is not None:
            valid.real("link", "return_latency_s", self.return_latency_s)

    @property
    def round_trip_s(self) -> float:
        """Sum of the latency and the return latency."""
        back = self.latency_s if self.return_latency_s is None else self.return_latency_s
        return self.latency_s + back


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine with one GPU, or with several equal ones.

    Attributes
    ----------
    name : str
    gpu : GpuProfile
    memory_bytes : float or None
        Memory of each GPU; None means the memory of its profile.
    reserved_bytes : float
        Part of the memory of each GPU that others use: the system, other programs. The
        runtime's own use is a matter of `Runtime`.
    host : str
        Machine that the GPU is in, as other machines reach it. Nodes of one host share it.
        Default: empty, which means that the node is a host of its own.
    card : int or None
        Number of the first GPU in its host, from 0. None: its place among those of the host.
    gpus : int
        Number of GPUs.
    interconnect : Interconnect or None
        Links among the GPUs; required if there are several. `hypsolve.interconnect` returns
        one of the catalogue.
    tensor_parallel : int or None
        Degree: the number of GPUs that compute as one. A machine of 8 GPUs with degree 2 is 4
        groups, each of which `groups` makes a node. None: not chosen yet, as `hypsolve.plan`
        does; a single GPU needs no choice.
    usable_bytes : float
        The memory of each GPU less the reserved part.
    class_name : str
        Name of the GPU, with their number if there are several.
    is_group : bool
        Whether all GPUs compute as one, as in every node of a deployment.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the node, the field, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> nvlink = hs.interconnect("nvlink4", "h100")
    >>> box = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=8, interconnect=nvlink)
    >>> [node.name for node in box.groups(4)]
    ['box/0', 'box/1']
    """

    name: str
    gpu: GpuProfile
    memory_bytes: float | None = None
    reserved_bytes: float = 0.0
    host: str = ""
    card: int | None = None
    gpus: int = 1
    interconnect: Interconnect | None = None
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        owner = f"node {valid.name('node', self.name)!r}"
        valid.of_type(owner, "gpu", self.gpu, GpuProfile, " (hypsolve.gpu(name) gives one)")
        if self.memory_bytes is not None:
            valid.real(owner, "memory_bytes", self.memory_bytes, strict=True)
        reserved = valid.real(owner, "reserved_bytes", self.reserved_bytes)
        if self.host != "" and not valid.text(owner, "host", self.host).isprintable():
            raise ValueError(f"{owner}: host must be printable, got {self.host!r:.60}")
        if self.card is not None:
            valid.whole(owner, "card", self.card)
        self._check_group(owner)
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        if reserved >= memory:
            raise ValueError(
                f"{owner}: reserved_bytes must be below memory_bytes = {memory:g},"
                f" got {reserved:g}"
            )

    def _check_group(self, owner: str) -> None:
        """Check the number of GPUs, the links among them, and the degree."""
        valid.whole(owner, "gpus", self.gpus, minimum=1, maximum=MAX_GPUS)
        by_name = " (hypsolve.interconnect(name, gpu) gives one)"
        if self.gpus > 1 or self.interconnect is not None:
            valid.of_type(owner, "interconnect", self.interconnect, Interconnect, by_name)
        if (degree := self.tensor_parallel) is None:
            return
        valid.whole(owner, "tensor_parallel", degree, minimum=1)
        if degree > self.gpus:
            raise ValueError(
                f"{owner}: tensor_parallel must be at most gpus = {self.gpus}, got {degree}"
            )
        if degree > 1 and self.interconnect is not None:
            try:
                self.interconnect.all_reduce(degree)
            except ValueError as error:
                raise ValueError(f"{owner}: {error}") from None

    @property
    def usable_bytes(self) -> float:
        """The memory of each GPU less the reserved part."""
        memory = self.gpu.memory_bytes if self.memory_bytes is None else self.memory_bytes
        return memory - self.reserved_bytes

    @property
    def class_name(self) -> str:
        """The name of its GPU, with their number if it has several: ``8 x H100-SXM``."""
        return self.gpu.name if self.gpus == 1 else f"{self.gpus} x {self.gpu.name}"

    @property
    def is_group(self) -> bool:
        """Whether all its GPUs compute as one, as every node of a deployment must."""
        return self.gpus == (self.tensor_parallel or 1)

    def groups(self, degree: int | None = None) -> tuple["Node", ...]:
        """Return a node for every group of GPUs that compute as one.

        Parameters
        ----------
        degree : int, optional
            GPUs of a group. Default, and required value if it is set: `tensor_parallel`.

        Returns
        -------
        tuple of Node
            None if the machine has fewer GPUs, or another degree was set. GPUs that are left
            over stay unused.
        """
        degree = degree or self.tensor_parallel or (1 if self.gpus == 1 else None)
        if degree is None:
            raise ValueError(
                f"node {self.name!r}: tensor_parallel must be chosen for its {self.gpus} GPUs"
            )
        if degree > self.gpus or degree != (self.tensor_parallel or degree):
            return ()
        if self.gpus == 1:
            return (self,)
        n_groups = self.gpus // degree
        return tuple(
            replace(
                self,
                name=self.name if n_groups == 1 else f"{self.name}/{i}",
                host=self.host or self.name,
                card=None if self.card is None else self.card + i * degree,
                gpus=degree,
                tensor_parallel=degree,
            )
            for i in range(n_groups)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the network: nodes that hold equal blocks and share the requests.

    Attributes
    ----------
    name : str
    nodes : tuple of Node
    link : Link or None
        Link to the next tier; None on the last tier.
    """

    name: str
    nodes: tuple[Node, ...]
    link: Link | None = None

    def __post_init__(self) -> None:
        owner = f"tier {valid.name('tier', self.name)!r}"
        object.__setattr__(self, "nodes", valid.some(owner, "nodes", self.nodes, Node))
        if self.link is not None and not isinstance(self.link, Link):
            raise TypeError(f"{owner}: link must be a Link or None, got {self.link!r:.60}")

    @property
    def machine_link(self) -> Link | None:
        """The link among the nodes if they are GPUs of one machine; else None.

        The all-reduce of two GPUs sends every byte once over the link between them, and takes
        at least its latency.
        """
        links = self.nodes[0].interconnect
        if len(self.nodes) == 1 or links is None or 2 not in links.degrees:
            return None
        if {(node.host, node.interconnect) for node in self.nodes} != {
            (self.nodes[0].host or None, links)
        }:
            return None
        pair = links.all_reduce(2)
        if pair.large_s_per_byte == 0:
            return None
        return Link(bytes_per_s=1 / pair.large_s_per_byte, latency_s=pair.small_s)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Network:
    """A chain of tiers.

    Attributes
    ----------
    name : str
    tiers : tuple of Tier
        Tiers in the order that a request visits them.

    Raises
    ------
    ValueError
        If a tier but the last has no link, the last has one, or two names are equal, or two
        nodes are one card of a host.

    Examples
    --------
    >>> import hypsolve as hs
    >>> desk = hs.Tier(
    ...     name="desk",
    ...     nodes=(hs.Node(name="desk", gpu=hs.gpu("l4")),),
    ...     link=hs.Link(bytes_per_s=125e6, latency_s=2e-3),
    ... )
    >>> rack = hs.Tier(name="rack", nodes=(hs.Node(name="rack", gpu=hs.gpu("a100-80gb")),))
    >>> hs.Network(name="lab", tiers=(desk, rack))
    <Network lab, nodes of each tier: desk (1), rack (1)>
    """

    name: str
    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        owner = f"network {valid.text('network', 'name', self.name)!r}"
        object.__setattr__(self, "tiers", valid.some(owner, "tiers", self.tiers, Tier))
        for tier in self.tiers[:-1]:
            if tier.link is None:
                raise ValueError(f"{owner}: tier {tier.name!r} needs a link to the next tier")
        if self.tiers[-1].link is not None:
            raise ValueError(
                f"{owner}: the last tier {self.tiers[-1].name!r} must have no link"
            )
        names = [tier.name for tier in self.tiers]
        _distinct(owner, "tier names", names)
        nodes = [node for tier in self.tiers for node in tier.nodes]
        _distinct(owner, "node names", [node.name for node in nodes])
        numbered = [
            f"{node.card + i} of host {node.host}"
            for node in nodes
            if node.host and node.card is not None
            for i in range(node.gpus)
        ]
        _distinct(owner, "cards", numbered)

    def in_groups(self, degree: int | Mapping[str, int] | None = None) -> "Network":
        """Return a network in which every group of GPUs that compute as one is a node.

        Parameters
        ----------
        degree : int or dict of str to int, optional
            GPUs of every group: the degree of tensor parallelism. Machines with fewer GPUs, or
            with another degree of their own, are left out. A dict has the degrees of some
            machines, by the node's name. Default: each machine's own degree.

        Raises
        ------
        ValueError
            If a tier is left without nodes, or a machine of several GPUs has no degree, or its
            interconnect does not know it.

        Examples
        --------
        >>> import hypsolve as hs
        >>> nvlink = hs.interconnect("nvlink4", "h100")
        >>> box = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=8, interconnect=nvlink)
        >>> hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(box,)),)).in_groups(2)
        <Network lab, nodes of each tier: rack (4)>
        """
        tiers = []
        for tier in self.tiers:
            nodes = tuple(
                group
                for node in tier.nodes
                for group in node.groups(
                    degree.get(node.name) if isinstance(degree, Mapping) else degree
                )
            )
            if not nodes:
                raise ValueError(
                    f"network {self.name!r}: tier {tier.name!r} has no machine for"
                    f" tensor_parallel {degree}"
                )
            tiers.append(replace(tier, nodes=nodes))
        return replace(self, tiers=tuple(tiers))

    def __repr__(self) -> str:
        tiers = ", ".join(f"{tier.name} ({len(tier.nodes)})" for tier in self.tiers)
        return f"<Network {self.name}, nodes of each tier: {tiers}>"


def _distinct(owner: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{owner}: {what} must be distinct, got {name!r} twice")
        seen.add(name)
