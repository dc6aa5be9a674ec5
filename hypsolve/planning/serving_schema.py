"""Types of the files of a `ServingInstance` and of its results, for `json_schema`."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from hypsolve.formats.network_toml_types import Key
from hypsolve.problem.runtime import MAX_LIMIT, Batching, KvAdmission
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.solution import Status
from hypsolve.problem.validation import LARGEST

Number = Annotated[float, Key("A number.", maximum=LARGEST)]
Index = Annotated[int, Key("A whole number.", maximum=2**31)]
OfKinds = list[list[Number]]
Seconds = Annotated[float, Key("Seconds.", maximum=LARGEST)]
Target = Annotated[float, Key("Seconds.", strict=True, maximum=LARGEST)]
Limit = Annotated[int, Key("A number of requests or tokens.", minimum=1, maximum=MAX_LIMIT)]
Tokens = Annotated[float, Key("Tokens.", maximum=LARGEST)]


class BlocksTable(TypedDict):
    """Seconds and bytes of the blocks: a row per class of nodes, a column per kind of block."""

    fixed_s: Annotated[OfKinds, "Seconds of a block in each iteration."]
    read_s: Annotated[OfKinds, "Seconds to read its weights."]
    expert_s: Annotated[OfKinds, "Seconds to read all of its experts."]
    compute_token_s: Annotated[OfKinds, "Seconds of computation for a decode token."]
    memory_token_s: Annotated[OfKinds, "Seconds of memory traffic for a decode token."]
    compute_chunk_s: Annotated[OfKinds, "Seconds of computation for a chunk of a prompt."]
    memory_chunk_s: Annotated[OfKinds, "Seconds of memory traffic for a chunk of a prompt."]
    mixed_s: NotRequired[
        Annotated[OfKinds | None, "Seconds more in an iteration with a chunk."]
    ]
    linear_token_s: NotRequired[
        Annotated[OfKinds | None, "Seconds of a decode token that nothing overlaps."]
    ]
    linear_chunk_s: NotRequired[
        Annotated[OfKinds | None, "Seconds of a chunk that nothing overlaps."]
    ]
    weight_bytes: Annotated[OfKinds, "Bytes of its weights."]
    kv_bytes_per_token: Annotated[OfKinds, "Bytes of its KV cache for each token."]
    idle_share: Annotated[
        list[Annotated[float, Key("A probability.", maximum=LARGEST)]],
        "Probability that a token does not hit a given expert, by kind; 0 without experts.",
    ]
    last_token_only: Annotated[
        list[Annotated[int, Key("0 or 1.", maximum=1)]],
        "1 if the block computes the last token of a prompt alone, by kind.",
    ]
    collective_s: Annotated[
        list[
            list[
                Annotated[
                    tuple[Number, Number, Number, Number, Number],
                    "alpha + beta n seconds up to `switch` tokens, gamma + delta n above:"
                    " alpha, beta, switch, gamma, delta.",
                ]
            ]
        ],
        "Collective operations of n tokens in a block, by class and kind.",
    ]
    tied_bytes: Annotated[
        list[Number], "Bytes of weights that a stage of all blocks saves, by class."
    ]
    block_kind: Annotated[list[Index], "Kind of each block, counted from 0."]


class LinksTable(TypedDict):
    """Links from each tier to the next one."""

    token_s: Annotated[
        list[list[Number]], "Seconds that a token keeps a link busy: a column per kind of cut."
    ]
    cut_kind: Annotated[list[Index], "Column of `token_s` for the cut before each block."]
    round_trip_s: Annotated[list[Number], "Seconds of both ways, by link."]
    entry_s: Annotated[
        list[Number], "Seconds that a link before the first stage adds to the first token."
    ]


class NodesTable(TypedDict):
    """Nodes, tier by tier."""

    node_tier: Annotated[list[Index], "Tier of each node, counted from 0, rising."]
    node_class: Annotated[list[Index], "Class of each node, counted from 0."]
    node_bytes: Annotated[list[Number], "Memory of each node in bytes."]


class LengthsTable(TypedDict):
    """Moments of the lengths of requests: p prompt, o output, h tokens held; E is the mean."""

    prompt_tokens: Annotated[float, Key("E[p].", strict=True, maximum=LARGEST)]
    decode_passes: Annotated[float, Key("E[o - 1].", maximum=LARGEST)]
    chunks: Annotated[float, Key("Chunks of a prompt.", minimum=1, maximum=LARGEST)]
    held_tokens: Annotated[float, Key("E[h].", strict=True, maximum=LARGEST)]
    hold_passes: Annotated[float, Key("E[h (o - 1)] / E[h].", maximum=LARGEST)]
    hold_chunks: Annotated[float, Key("E[h chunks] / E[h].", minimum=1, maximum=LARGEST)]
    hold_prompt_tokens: Annotated[float, Key("E[h p] / E[h].", maximum=LARGEST)]
    resident_tokens: Annotated[
        float,
        Key("Tokens that a node must have room for.", strict=True, maximum=LARGEST),
    ]
    alike: NotRequired[Annotated[bool, "Whether all requests have equal lengths."]]


class LimitsTable(TypedDict):
    """Limits of the cuts and of the number of blocks of each tier."""

    cut_min: Annotated[list[Index], "Smallest cut before each tier, and behind the last."]
    cut_max: Annotated[list[Index], "Largest cut before each tier, and behind the last."]
    min_blocks_given: Annotated[list[Index], "Smallest number of blocks of each tier."]
    max_blocks: Annotated[list[Index], "Largest number of blocks of each tier."]


class RulesTable(TypedDict):
    """Objective, targets, and the limits of the runtime."""

    objective: NotRequired[Annotated[ServingObjective, "What is optimised."]]
    batching: NotRequired[Annotated[Batching, "Who forms batches."]]
    kv_admission: NotRequired[Annotated[KvAdmission, "How KV cache is given."]]
    max_num_seqs: NotRequired[Annotated[Limit, "Requests that run at once."]]
    max_num_batched_tokens: NotRequired[
        Annotated[Limit | None, "Tokens of an iteration; null: no limit."]
    ]
    prompt_limit: NotRequired[
        Annotated[Limit | None, "Prompt tokens of an iteration; null: no limit."]
    ]
    iteration_s: NotRequired[Annotated[Seconds, "Seconds on the host for each iteration."]]
    ttft_slo_s: NotRequired[Annotated[Target | None, "Target for the first token, seconds."]]
    tpot_slo_s: NotRequired[Annotated[Target | None, "Target for each later token, seconds."]]
    latency_slo_s: NotRequired[Annotated[Target | None, "Target for the last token, seconds."]]
    users: NotRequired[Annotated[Limit | None, "Users of a closed loop; null: none."]]
    think_time_s: NotRequired[
        Annotated[Seconds, "Seconds between an answer and the next request of a user."]
    ]
    request_s: NotRequired[
        Annotated[
            Seconds, "Seconds of a request outside of iterations, before its first token."
        ]
    ]
    allow_empty: NotRequired[Annotated[bool, "Whether a tier may host no block."]]


class NamesTable(TypedDict):
    """Names for people."""

    name: NotRequired[Annotated[str, "Name of the instance."]]
    extrapolated: NotRequired[Annotated[bool, "Whether costs were not measured."]]
    tier_names: NotRequired[Annotated[list[str], "Name of each tier."]]
    node_names: NotRequired[Annotated[list[str], "Name of each node."]]
    class_names: NotRequired[Annotated[list[str], "Name of each class of nodes."]]


class ServingInstanceFile(TypedDict):
    """A model on ordered tiers whose servers batch requests, as `hypsolve.save` writes it."""

    format: Annotated[Literal["hypsolve-serving-instance"], "Kind of the file."]
    version: Annotated[Literal[1], "Version of the format."]
    blocks: BlocksTable
    links: LinksTable
    nodes: NodesTable
    lengths: LengthsTable
    limits: LimitsTable
    rules: RulesTable
    names: NamesTable
    price_per_hour: Annotated[list[Number], "Price of each node, in a currency of the user."]


class ServedTable(TypedDict):
    """Rate, latencies and price of a split in the fluid model."""

    fluid_requests_per_s: Annotated[float, "Largest rate that the split carries."]
    ttft_s: Annotated[float | None, "Seconds to the first token; null: the rate is 0."]
    tpot_s: Annotated[float | None, "Seconds of each later token."]
    latency_s: Annotated[float | None, "Seconds to the last token."]
    limit: Annotated[str, "The rule that refuses a higher rate."]
    price_per_request: Annotated[float | None, "Price; null: the rate is 0."]


class AlternativeTable(TypedDict):
    """A further split."""

    cuts: Annotated[list[Index], "Tier k hosts blocks cuts[k] to cuts[k + 1] - 1."]
    served: ServedTable


class HoldStepTable(TypedDict):
    """A step of the chain of hold times; see `hypsolve.verify`."""

    held_s: Annotated[float, "Seconds for which every split that is left holds KV cache."]
    potentials_s: Annotated[
        list[list[float | None]],
        "Least seconds of KV cache in the first k tiers up to cut c; null: no chain. Empty:"
        " the check finds the chains itself.",
    ]


class LevelRangeTable(TypedDict):
    """Splits that are refuted together; see `hypsolve.verify`."""

    n_stages: Annotated[int, "Tiers that host blocks."]
    n_pipelines: Annotated[int, "Pipelines."]
    first_tier: Annotated[int | None, "First tier that hosts blocks; null: any."]
    low: Annotated[float, "Requests per cycle, excluded."]
    high: Annotated[float, "Requests per cycle, included."]


class RateCertificateTable(TypedDict):
    """A proof that no split carries a rate in the fluid model; see `hypsolve.verify`."""

    refuted_requests_per_s: Annotated[float, "Requests per second that no split carries."]
    hold_steps: Annotated[list[HoldStepTable], "Under the batching mode `stage`."]
    level_ranges: Annotated[list[LevelRangeTable], "Under `pipeline` and `serial`."]


class ServingResultFile(TypedDict):
    """A split of a `ServingInstance` with its score, as `ServingResult.save` writes it."""

    version: Annotated[Literal[2], "Version of the format."]
    instance: Annotated[str, "Name of the instance."]
    digest: Annotated[str, "SHA-256 of the instance, without names."]
    names_digest: Annotated[str, "SHA-256 of names of tiers and nodes, and `extrapolated`."]
    extrapolated: Annotated[bool, "Whether costs were not measured."]
    objective: Annotated[ServingObjective, "What is optimised."]
    method: Annotated[str, "Name in `hypsolve methods`, or of your own method."]
    status: Annotated[Status, "What is proved, in the fluid model."]
    cuts: Annotated[
        list[Index] | None,
        "Tier k hosts blocks cuts[k] to cuts[k + 1] - 1; null: no solution.",
    ]
    fluid_bound: Annotated[
        float | None, "No split passes it in the fluid model; null: none is proved."
    ]
    fluid_gap: Annotated[float | None, "Share by which the bound is better; null: no solution."]
    served: Annotated[ServedTable | None, "null: no solution."]
    alternatives: Annotated[list[AlternativeTable], "Further splits, the best first."]
    certificate: Annotated[RateCertificateTable | None, "null: the method gave none."]
    solve_time_s: Annotated[float, "Wall time of the method in seconds."]
    message: Annotated[str, "Explanation in words."]
    statistics: Annotated[dict[str, Any], "Counts and times of the method."]
