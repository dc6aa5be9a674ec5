"""Types of the tables in a network file, with the rules that `read_network_file` checks.

`hypsolve.planning.json_schema` makes a JSON Schema from them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import (
    Annotated,
    Literal,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
)

from hypsolve import catalog
from hypsolve.catalog.interconnects import interconnects
from hypsolve.problem.network import MAX_GPUS
from hypsolve.problem.runtime import MAX_LIMIT, Batching, KvAdmission

MAX_COUNT = 100_000  # of nodes of one kind
MAX_NUMBER = 1e100  # in any unit; in bytes or FLOP/s still below `validation.LARGEST`


@dataclass(frozen=True, slots=True)
class Key:
    """Description of a key, and the rules of its value.

    A number lies between `minimum` (excluded if `strict`) and `maximum`. A string is not empty.
    A list has at least `minimum` entries, which differ if `distinct`. Editors propose the
    strings of `known`; the strings of `taken` are refused.
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
    """A GPU by the speeds that it reaches, not by those of its datasheet.

    A block takes t0 + max(FLOPs / tflops, bytes / gb_per_s) in a step, or the sum of both times
    if they do not overlap.
    """

    t0_us: Annotated[float, Key("Fixed time of a block in each step, in microseconds.")]
    tflops: Annotated[float, Key("Compute rate in 10^12 FLOP/s.", strict=True)]
    gb_per_s: Annotated[float, Key("Memory bandwidth in 10^9 bytes/s.", strict=True)]
    memory_gib: Annotated[float, Key("Memory in GiB (2^30 bytes).", strict=True)]
    overlaps: NotRequired[
        Annotated[
            bool,
            Key(
                "Whether a block computes while it reads, as on a GPU; default: true. If false,"
                " the two times add up, as on a core of a CPU."
            ),
        ]
    ]
    power_w: NotRequired[Annotated[float, Key("Board power in W, for joules per token.")]]
    source: NotRequired[Source]


class HardwareTable(TypedDict):
    """GPUs of a node or machine."""

    gpu: Annotated[
        str,
        Key(
            "Name of the GPU: of `hypsolve gpus` or of [gpus.NAME]; or the path of a profile"
            " file (.toml) of `hypsolve measure` or `hypsolve calibrate`, from this folder.",
            known=catalog.gpus,
        ),
    ]
    gpus: NotRequired[
        Annotated[
            int,
            Key(
                "Number of equal GPUs in each node, a machine; default: 1.",
                minimum=1,
                maximum=MAX_GPUS,
            ),
        ]
    ]
    interconnect: NotRequired[
        Annotated[
            str,
            Key("Links among the GPUs of a machine; required with gpus.", known=interconnects),
        ]
    ]
    memory_gib: NotRequired[
        Annotated[
            float,
            Key("Memory of each GPU in GiB (2^30 bytes); default: the GPU's.", strict=True),
        ]
    ]
    reserved_gib: NotRequired[
        Annotated[
            float,
            Key(
                "Memory that the system and other programs keep, in GiB, below memory_gib;"
                " default: 0. The runtime's own use is not part of it."
            ),
        ]
    ]
    slowdown: NotRequired[
        Annotated[
            float, Key("Factor by which it is slower than its GPU; default: 1.", minimum=1)
        ]
    ]
    source: NotRequired[Source]


class NodesTable(HardwareTable):
    """Nodes of one kind."""

    count: NotRequired[
        Annotated[
            int,
            Key(
                "Number of nodes; default: 1, or the number of names.",
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
    tensor_parallel: NotRequired[
        Annotated[
            int,
            Key(
                "Number of GPUs that compute as one, at most gpus: a machine is as many nodes"
                " as it has such groups; default: `hypsolve plan` chooses.",
                minimum=1,
                maximum=MAX_GPUS,
            ),
        ]
    ]
    host: NotRequired[
        Annotated[
            str,
            Key(
                "Machine that these GPUs are in, as others reach it; default: the tier's host,"
                " or every node is a machine of its own."
            ),
        ]
    ]
    price_per_hour: NotRequired[
        Annotated[float, Key("Price of each node per hour, in `currency`.")]
    ]


class LinkTable(TypedDict):
    """A link from a tier to the next, or among the nodes of a tier."""

    gbps: Annotated[float, Key("Rate of the link in Gbit/s (10^9 bit/s).", strict=True)]
    latency_ms: Annotated[float, Key("One-way latency in ms.")]
    return_latency_ms: NotRequired[
        Annotated[float, Key("Latency of the way back in ms; default: latency_ms.")]
    ]
    gbps_source: NotRequired[Source]
    latency_source: NotRequired[Source]


class TierTable(TypedDict):
    """A level of the network: every node with enough memory holds the tier's blocks."""

    name: Annotated[str, Key("Name of the tier.")]
    nodes: Annotated[list[NodesTable], Key("Nodes of the tier, by kind.", minimum=1)]
    link: NotRequired[
        Annotated[LinkTable, Key("Link to the next tier; on every tier but the last.")]
    ]
    inner: NotRequired[
        Annotated[
            LinkTable,
            Key(
                "Link among its nodes: runtimes of a single pipeline can then use several nodes"
                " of the tier as stages."
            ),
        ]
    ]
    host: NotRequired[
        Annotated[str, Key("Machine that the tier's GPUs are in, as others reach it.")]
    ]
    pin: NotRequired[
        Annotated[
            list[End | Layer],
            Key(
                "Blocks that must be on this tier: embedding, head, layer numbers from 0.",
                distinct=True,
            ),
        ]
    ]
    min_blocks: NotRequired[
        Annotated[
            int,
            Key(
                "Minimum number of blocks, embedding and head counted; 0: the tier may stay"
                " empty; default: 1."
            ),
        ]
    ]
    max_blocks: NotRequired[
        Annotated[
            int, Key("Maximum number of blocks, embedding and head counted; default: no limit.")
        ]
    ]


class RuntimeTable(TypedDict):
    """The serving runtime, and single values in place of its defaults."""

    name: Annotated[
        str, Key("Runtime of the catalogue: `vllm`, `llama.cpp`, ...", known=catalog.runtimes)
    ]
    max_num_seqs: NotRequired[
        Annotated[
            int,
            Key(
                "Requests that run at once in a pipeline (on a node under `ideal`).",
                minimum=1,
                maximum=MAX_LIMIT,
            ),
        ]
    ]
    max_num_batched_tokens: NotRequired[
        Annotated[
            int,
            Key(
                "Tokens of one batch: decode tokens, then prompts.",
                minimum=1,
                maximum=MAX_LIMIT,
            ),
        ]
    ]
    chunk_tokens: NotRequired[
        Annotated[int, Key("Prompt tokens of one batch.", minimum=1, maximum=MAX_LIMIT)]
    ]
    micro_batch_tokens: NotRequired[
        Annotated[
            int,
            Key("Tokens of a part of a batch (llama.cpp: -ub).", minimum=1, maximum=MAX_LIMIT),
        ]
    ]
    kv_block_tokens: NotRequired[
        Annotated[int, Key("Tokens of one block of KV cache.", minimum=1, maximum=MAX_LIMIT)]
    ]
    batching: NotRequired[Annotated[str, Key("Batching mode.", known=lambda: Batching)]]
    kv_admission: NotRequired[
        Annotated[
            str,
            Key("Rule of the KV cache.", known=lambda: KvAdmission),
        ]
    ]
    slot_tokens: NotRequired[
        Annotated[
            int,
            Key(
                "Reserved tokens of a request are a multiple of so many (llama.cpp: 256).",
                minimum=1,
                maximum=MAX_LIMIT,
            ),
        ]
    ]
    iteration_s: NotRequired[
        Annotated[float, Key("Seconds on the host that each batch begins with.")]
    ]
    memory_fraction: NotRequired[
        Annotated[
            float,
            Key("Share of the memory that the server takes.", strict=True, maximum=1),
        ]
    ]
    fixed_gib: NotRequired[
        Annotated[float, Key("Memory for libraries, graphs and buffers, in GiB.")]
    ]
    source: NotRequired[Source]


def runtime_keys() -> dict[str, tuple[type, Key]]:
    """Return the type and the rule of each value of a runtime that users may replace.

    They are keys of the table `runtime` of a network file, arguments of `hypsolve.plan`, and
    options of the commands.
    """
    hints = get_type_hints(RuntimeTable, include_extras=True)
    found = {}
    for name, hint in hints.items():
        if get_origin(hint) is NotRequired and name != "source":
            kind, rule = get_args(get_args(hint)[0])
            found[name] = (kind, rule)
    return found


RuntimeName = Annotated[str, Key("Name of a runtime of the catalogue.", known=catalog.runtimes)]


class NetworkTable(TypedDict):
    """A network of GPUs, for `hypsolve plan`."""

    description: NotRequired[Annotated[str, Key("Description of the network, for people.")]]
    currency: NotRequired[Annotated[str, Key("Currency of all prices, such as USD.")]]
    runtime: NotRequired[
        Annotated[
            RuntimeName | RuntimeTable,
            Key("Runtime that plans and simulations follow: its name, or a table."),
        ]
    ]
    tiers: Annotated[
        list[TierTable], Key("Tiers in the order that a request visits them.", minimum=1)
    ]
    gpus: NotRequired[
        Annotated[
            dict[
                Annotated[
                    str, Key("Name that the catalogue does not use.", taken=catalog.gpus)
                ],
                GpuTable,
            ],
            Key("Your own GPUs, by name."),
        ]
    ]
