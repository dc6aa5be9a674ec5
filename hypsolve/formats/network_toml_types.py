"""The tables of a network file, as types: `read_network_file` checks by them.

`hypsolve.planning.json_schema` writes them out as a JSON Schema.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

from hypsolve import catalog

MAX_COUNT = 100_000  # of nodes of one kind
MAX_NUMBER = 1e100  # in any unit: in bytes or FLOP/s it is still below `validation.LARGEST`


@dataclass(frozen=True, slots=True)
class Key:
    """What is said of a key: in words, for people; and the rules of its value.

    A number is `minimum` (if `strict`, more) to `maximum`; a string is not empty; a list
    has `minimum` entries, `distinct` or not. A string may be one of those that are `known` (an
    editor proposes them), and must be none of those that are `taken`.
    """

    about: str
    minimum: float = 0
    strict: bool = False
    maximum: float = MAX_NUMBER
    distinct: bool = False
    known: Callable[[], Iterable[str]] | None = None
    taken: Callable[[], Iterable[str]] | None = None


Source = Annotated[str, Key("Where the numbers come from.")]
End = Literal["embedding", "head"]
Layer = Annotated[int, Key("Number of a layer, counted from 0.")]


class GpuTable(TypedDict):
    """A GPU of one's own, by what it reaches, not what its datasheet says.

    A block of a step takes t0 + max(FLOPs / tflops, bytes / gb_per_s).
    """

    t0_us: Annotated[float, Key("Fixed time of a block in each step, in microseconds.")]
    tflops: Annotated[float, Key("What it computes, in 10^12 FLOP/s.", strict=True)]
    gb_per_s: Annotated[float, Key("What its memory delivers, in 10^9 bytes/s.", strict=True)]
    memory_gib: Annotated[float, Key("Memory in GiB (2^30 bytes).", strict=True)]
    power_w: NotRequired[Annotated[float, Key("Board power in W, for joules per token.")]]
    source: NotRequired[Source]


class NodesTable(TypedDict):
    """Nodes of one kind."""

    gpu: Annotated[
        str,
        Key("Name of the GPU: of `hypsolve gpus` or of [gpus.NAME].", known=catalog.gpus),
    ]
    count: NotRequired[
        Annotated[
            int,
            Key(
                "Number of nodes; default: 1, or that of the names.",
                minimum=1,
                maximum=MAX_COUNT,
            ),
        ]
    ]
    names: NotRequired[
        Annotated[
            list[Annotated[str, Key("Name of a node.")]],
            Key("Names of the nodes; default: TIER-GPU-0, ...", minimum=1, distinct=True),
        ]
    ]
    memory_gib: NotRequired[
        Annotated[
            float,
            Key("Memory of each in GiB (2^30 bytes); default: the GPU's.", strict=True),
        ]
    ]
    reserved_gib: NotRequired[
        Annotated[
            float,
            Key(
                "GiB of it for the system, the runtime and activations, below the memory;"
                " default: 0."
            ),
        ]
    ]
    slowdown: NotRequired[
        Annotated[float, Key("Times as slow as the GPU, say throttled; default: 1.", minimum=1)]
    ]
    price_per_hour: NotRequired[Annotated[float, Key("Price of each, in your currency.")]]
    source: NotRequired[Source]


class LinkTable(TypedDict):
    """From a tier to the next."""

    gbps: Annotated[float, Key("What the link carries, in Gbit/s (10^9 bit/s).", strict=True)]
    latency_ms: Annotated[float, Key("One-way latency in ms.")]
    return_latency_ms: NotRequired[
        Annotated[float, Key("Latency of the way back in ms; default: latency_ms.")]
    ]
    gbps_source: NotRequired[Source]
    latency_source: NotRequired[Source]


class TierTable(TypedDict):
    """A level of the network: every node that has the memory holds the tier's blocks."""

    name: Annotated[str, Key("Name of the tier.")]
    nodes: Annotated[list[NodesTable], Key("Its nodes, by kind.", minimum=1)]
    link: NotRequired[Annotated[LinkTable, Key("To the next tier; on all but the last.")]]
    inner: NotRequired[
        Annotated[
            LinkTable,
            Key(
                "Among its nodes; runtimes that run one pipeline can then have several of them"
                " as stages."
            ),
        ]
    ]
    pin: NotRequired[
        Annotated[
            list[End | Layer],
            Key("Blocks that must be here: embedding, head, numbers of layers.", distinct=True),
        ]
    ]
    min_blocks: NotRequired[
        Annotated[
            int,
            Key("Fewest blocks, embedding and head counted; 0: may stay empty; default: 1."),
        ]
    ]
    max_blocks: NotRequired[
        Annotated[int, Key("Most blocks, embedding and head counted; default: no limit.")]
    ]


class NetworkTable(TypedDict):
    """A network of GPUs, for `hypsolve plan`."""

    description: NotRequired[Annotated[str, Key("What it is, for people.")]]
    tiers: Annotated[
        list[TierTable], Key("In the order of requests, their side first.", minimum=1)
    ]
    gpus: NotRequired[
        Annotated[
            dict[Annotated[str, Key("Not of the catalogue.", taken=catalog.gpus)], GpuTable],
            Key("GPUs of one's own, by name."),
        ]
    ]
