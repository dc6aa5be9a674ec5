"""`Runtime`: the limits, the memory and the batching rules of a serving runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from hypsolve.problem import validation as valid
from hypsolve.problem.units import GIB, count

if TYPE_CHECKING:
    from hypsolve.problem.deployment import Model, Node

MAX_LIMIT = 2**31  # of sequences and tokens
BYTES_PER_ACTIVATION = 2
BYTES_PER_LOGIT = 4
WEIGHT_FILES = ("safetensors", "gguf", "")


class Batching(StrEnum):
    """Rule by which requests form batches; see `hypsolve.simulation.simulate`.

    ``stage``: every node forms its own batches. ``pipeline``: a scheduler forms a batch that
    passes all stages, with one batch under way for each stage. ``serial``: one batch holds all
    running requests and passes the stages in turn.
    """

    STAGE = "stage"
    PIPELINE = "pipeline"
    SERIAL = "serial"


class KvAdmission(StrEnum):
    """Rule by which a request gets memory for its KV cache.

    ``reserve``: for prompt and output, at admission. ``paged``: block by block; if memory runs
    out, the request that arrived last is preempted and later computed again.
    """

    RESERVE = "reserve"
    PAGED = "paged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Limits, memory and batching rules of a serving runtime.

    `hypsolve.runtime` returns a profile of the catalogue, with single values replaced if asked.

    Attributes
    ----------
    name : str
    batching : Batching
    kv_admission : KvAdmission
    max_num_seqs : int
        Requests that run at once: over all batches of a pipeline under the batching modes
        ``pipeline`` and ``serial``, in one iteration of a node under ``stage``.
    max_num_batched_tokens : int or None
        Tokens of one iteration or batch: decode tokens first, then prompt tokens. None: no
        limit.
    chunk_tokens : int or None
        Prompt tokens of one iteration or batch. None: no limit of its own.
    micro_batch_tokens : int or None
        Tokens of a part of a batch; the parts overlap over the stages under ``serial``. None:
        batches are not cut.
    kv_block_tokens : int
        Tokens of one block of KV cache under ``paged``.
    slot_tokens : int
        Under ``reserve``, the tokens that a request reserves are rounded up to a multiple of
        so many.
    iteration_s : float
        Seconds of work on the host that each iteration adds.
    memory_fraction : float
        Share of a node's memory that the server takes, with weights and KV cache; above 0, at
        most 1. What others keep on the card (`Node.reserved_bytes`) lies in the remaining
        share as far as it fits there.
    fixed_gib : float
        Memory for libraries, kernels, graphs and communication buffers, in GiB.
    activation_widths : float
        Activations that are alive at once per token of an iteration, in multiples of the
        model's width.
    logits_copies : float
        Copies of the logits of `max_num_seqs` requests, in 4 bytes each.
    platforms : tuple of str
        What it runs on: ``cuda``, ``rocm``, ``metal``, ``jetson``, ``cpu``.
    weight_file : {"safetensors", "gguf", ""}
        Kind of file that it loads quantised weights from; empty: any. All load 16-bit weights.
    server : str
        The command's runtime in `hypsolve.RUNTIMES`; empty if there is none.
    version : str
        Version of the server that the profile describes; empty if there is none.
    source : str
        Origin of the numbers.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names the runtime, the field, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.runtime("vllm").batching
    <Batching.PIPELINE: 'pipeline'>
    >>> hs.runtime("vllm", max_num_seqs=64).max_num_seqs
    64
    """

    name: str
    batching: Batching = Batching.STAGE
    kv_admission: KvAdmission = KvAdmission.RESERVE
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    chunk_tokens: int | None = 512
    micro_batch_tokens: int | None = None
    kv_block_tokens: int = 16
    slot_tokens: int = 1
    iteration_s: float = 0.0
    memory_fraction: float = 1.0
    fixed_gib: float = 0.0
    activation_widths: float = 0.0
    logits_copies: float = 0.0
    platforms: tuple[str, ...] = ()
    weight_file: str = ""
    server: str = ""
    version: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        owner = f"runtime {valid.name('runtime', self.name)!r}"
        for field, kind in (("batching", Batching), ("kv_admission", KvAdmission)):
            member = valid.one_of(owner, field, getattr(self, field), kind)
            object.__setattr__(self, field, member)
        for field in ("max_num_seqs", "kv_block_tokens", "slot_tokens"):
            valid.whole(owner, field, getattr(self, field), minimum=1, maximum=MAX_LIMIT)
        for field in ("max_num_batched_tokens", "chunk_tokens", "micro_batch_tokens"):
            if (value := getattr(self, field)) is not None:
                valid.whole(owner, field, value, minimum=1, maximum=MAX_LIMIT)
        for field in ("iteration_s", "fixed_gib", "activation_widths", "logits_copies"):
            object.__setattr__(self, field, valid.real(owner, field, getattr(self, field)))
        share = valid.real(owner, "memory_fraction", self.memory_fraction, strict=True)
        if share > 1:
            raise ValueError(f"{owner}: memory_fraction must be at most 1, got {share!r}")
        object.__setattr__(self, "memory_fraction", share)
        if not isinstance(self.platforms, tuple | list) or not all(
            isinstance(platform, str) for platform in self.platforms
        ):
            raise TypeError(
                f"{owner}: platforms must be a tuple of strings, got {self.platforms!r:.60}"
            )
        object.__setattr__(self, "platforms", tuple(self.platforms))
        if self.weight_file not in WEIGHT_FILES:
            raise ValueError(
                f"{owner}: weight_file must be safetensors, gguf or empty, got"
                f" {self.weight_file!r:.60}"
            )

    @property
    def prompt_limit(self) -> int | None:
        """Prompt tokens of one iteration at most; None: no limit."""
        limits = [n for n in (self.chunk_tokens, self.max_num_batched_tokens) if n is not None]
        return min(limits, default=None)

    @property
    def batch_limit(self) -> int:
        """Requests in one iteration or batch at most."""
        return min(self.max_num_seqs, self.max_num_batched_tokens or self.max_num_seqs)

    def held_tokens(self, tokens: int) -> int:
        """Return the tokens of KV cache that a request of `tokens` prompt and output needs.

        Under ``reserve`` these are whole multiples of `slot_tokens`.

        Examples
        --------
        >>> import hypsolve as hs
        >>> hs.runtime("llama.cpp").held_tokens(600), hs.runtime("vllm").held_tokens(600)
        (768, 600)
        """
        if self.kv_admission is KvAdmission.PAGED:
            return tokens
        return -(-tokens // self.slot_tokens) * self.slot_tokens

    def overhead_bytes(self, model: Model) -> float:
        """Return the memory that the runtime uses besides weights and KV cache.

        `fixed_gib`, and the larger one of two needs that follow each other: the activations of
        the largest iteration, and the logits of `max_num_seqs` requests. Every node of a
        pipeline is charged the logits, which only the last stage needs.
        """
        width_bytes = model.blocks[0].output_bytes_per_token
        tokens = self.max_num_batched_tokens or self.prompt_limit or 0
        if self.micro_batch_tokens is not None:
            tokens = min(tokens or self.micro_batch_tokens, self.micro_batch_tokens)
        activations = self.activation_widths * tokens * width_bytes
        logits = self.logits_copies * self.max_num_seqs * vocabulary(model) * BYTES_PER_LOGIT
        return self.fixed_gib * GIB + max(activations, logits)

    def card_bytes(self, node: Node) -> float:
        """Return the memory of a node that the runtime sees, reserved bytes included.

        A server sees what CUDA shows of an NVIDIA card (`GpuProfile.visible_bytes`). A node
        that states less memory than its GPU has was measured, and is taken as it is; one that
        states more hides as many bytes. A runtime that runs on no platform in particular, as
        ``ideal``, has all.
        """
        nominal, given = node.gpu.memory_bytes, node.memory_bytes
        has = nominal if given is None else given
        return has - node.gpu.hidden_bytes if self.platforms and has >= nominal else has

    def usable_bytes(self, node: Node, model: Model) -> float:
        """Return a node's memory for weights and KV cache, at least 0.

        The server takes its share of the memory, or what others leave if that is less. Its own
        use is subtracted.
        """
        has = self.card_bytes(node)
        budget = min(self.memory_fraction * has, has - node.reserved_bytes)
        return max(budget - self.overhead_bytes(model), 0.0)

    def limits(self, **overrides: Any) -> dict[str, Any]:
        """Return the options of `hypsolve.simulate` that this runtime sets.

        Parts of batches belong to the batching mode ``serial``: other modes drop them.
        """
        options = {name: getattr(self, name) for name in SIMULATED} | overrides
        if options["batching"] != Batching.SERIAL and "micro_batch_tokens" not in overrides:
            options["micro_batch_tokens"] = None
        return options

    def describe(self) -> str:
        """Describe the limits in one sentence, as beside a forecast."""
        batches = {
            Batching.STAGE: "every node forms its own batches",
            Batching.PIPELINE: "one batch passes all stages, one under way per stage",
            Batching.SERIAL: "one batch at a time passes all stages",
        }[self.batching]
        kv = "reserved at admission" if self.kv_admission == "reserve" else "paged"
        return (
            f"runtime {self.name}: {batches}; {self.describe_limits()}; KV cache {kv},"
            f" in {self.memory_fraction:.0%} of the memory"
        )

    def describe_limits(self) -> str:
        """Describe the limits on requests and tokens in a few words.

        Examples
        --------
        >>> import hypsolve as hs
        >>> hs.runtime("vllm").describe_limits()
        'at most 256 requests at once in a pipeline, 2048 tokens in a batch'
        """
        where = {
            Batching.STAGE: "in an iteration",
            Batching.PIPELINE: "at once in a pipeline",
            Batching.SERIAL: "at once",
        }[self.batching]
        words = [f"{count(self.max_num_seqs, 'request')} {where}"]
        if self.max_num_batched_tokens is not None:
            words.append(f"{count(self.max_num_batched_tokens, 'token')} in a batch")
        if self.chunk_tokens is not None:
            words.append(f"{count(self.chunk_tokens, 'prompt token')} in a batch")
        return f"at most {', '.join(words)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON and TOML."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: str(value)
            if isinstance(value, StrEnum)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in plain.items()
        }


def vocabulary(model: Model) -> float:
    """Return the size of a model's vocabulary, by the activations of its head; 0 if unknown."""
    width_bytes = model.blocks[0].output_bytes_per_token
    return max(model.blocks[-1].activation_bytes_per_token - width_bytes, 0) / 2


def runtime_from_dict(owner: str, table: Mapping[str, Any]) -> Runtime:
    """Return the runtime of a table that `Runtime.to_dict` made.

    Raises
    ------
    ValueError, TypeError
        If a key or a value is invalid; the message begins with `owner`.
    """
    known = [field.name for field in fields(Runtime)]
    for key in table:
        valid.known(f"key of the runtime in {owner}", key, known)
    if "name" not in table:
        raise ValueError(f"{owner}: runtime must have a name")
    return Runtime(**table)


SIMULATED = (
    "batching",
    "kv_admission",
    "max_num_seqs",
    "max_num_batched_tokens",
    "chunk_tokens",
    "micro_batch_tokens",
    "kv_block_tokens",
    "iteration_s",
)
"""Attributes that are options of `hypsolve.simulate`."""

IDEAL = Runtime(
    name="ideal",
    source="hypsolve's own rules: every node batches by itself, and nothing but weights and KV"
    " cache takes memory",
)
"""The runtime without losses: today's rules of the simulator."""
