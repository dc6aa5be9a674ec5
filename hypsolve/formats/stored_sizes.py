"""Models with the true sizes of their stored weights, from the headers of their files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypsolve import catalog
from hypsolve.problem.deployment import Block, Model


@dataclass(slots=True)
class Part:
    """Sizes of a block: all bytes, those of its experts, and its vocabulary table."""

    n_bytes: int = 0
    expert_bytes: int = 0
    table_bytes: int = 0
    table_rows: int = 0
    table_columns: int = 0


@dataclass(slots=True)
class Weights:
    """Sizes of the blocks in a folder's files.

    `is_16_bit`: most bytes are 16-bit floats. `is_all_16_bit`: all are. `described_by`: what
    states the shape of the model.
    """

    path: Path
    embedding: Part = field(default_factory=Part)
    layers: list[Part] = field(default_factory=list)
    head: Part = field(default_factory=Part)
    is_16_bit: bool = True
    is_all_16_bit: bool = True
    described_by: str = "config.json"


def with_stored_sizes(model: Model, stored: Weights, tied: bool) -> Model:
    """Return a model with the sizes of its stored tensors.

    Layers whose sizes differ become blocks of different kinds.

    Raises
    ------
    ValueError
        If the files hold another number of layers, or no tensor of the head.
    """
    n_layers = model.n_blocks - 2
    if len(stored.layers) != n_layers:
        raise ValueError(
            f"{stored.path}: must hold {n_layers} layers as {stored.described_by} says,"
            f" got {len(stored.layers)}"
        )
    embedding, *layers, head = model.blocks
    hidden = embedding.output_bytes_per_token // catalog.ACTIVATION_BYTES
    if stored.is_16_bit and stored.embedding.table_columns != hidden:
        raise ValueError(
            f"{stored.path}: the embedding's table must have {hidden} columns as"
            f" {stored.described_by} says, got {stored.embedding.table_columns}"
        )
    rows = stored.embedding.table_rows or 1
    table_bytes = stored.embedding.table_bytes
    head_bytes = stored.head.n_bytes
    if tied:
        head_bytes += table_bytes - stored.head.table_bytes  # a stored copy is shared
    elif not stored.head.table_bytes:
        raise ValueError(f"{stored.path}: no tensor of the head, and embeddings are not tied")
    sized = [
        replace(
            embedding,
            weight_bytes=stored.embedding.n_bytes,
            gathered_bytes_per_token=-(-table_bytes // rows),
        )
    ]
    for block, of_layer in zip(layers, stored.layers, strict=True):
        expert_bytes = of_layer.expert_bytes // block.n_experts if block.n_experts else 0
        sized.append(
            replace(
                block,
                weight_bytes=of_layer.n_bytes,
                expert_bytes=expert_bytes,
                always_read_bytes=of_layer.n_bytes - expert_bytes * block.n_experts,
            )
        )
    sized.append(replace(head, weight_bytes=head_bytes, always_read_bytes=head_bytes))
    return replace(
        model,
        blocks=distinct_kinds(sized),
        tied_bytes=table_bytes if tied else 0,
        extrapolated=not stored.is_16_bit,
        source=f"{model.source}; bytes as in {stored.path.name}",
    )


def in_format(stored: Model, full: Model, formatted: Model) -> Model:
    """Return a model of stored 16-bit weights in another format.

    Parameters
    ----------
    stored : Model
        With the stored sizes, which include norms and biases.
    full, formatted : Model
        Of the same shape, by `catalog.transformer`: in 16 bits, and in the format. Each stored
        size is scaled by their ratio.
    """

    def scaled(n_bytes: int, before: int, after: int) -> int:
        return -(-n_bytes * after // before) if before else n_bytes

    blocks = []
    for block, a, b in zip(stored.blocks, full.blocks, formatted.blocks, strict=True):
        always = scaled(block.always_read_bytes, a.always_read_bytes, b.always_read_bytes)
        expert = scaled(block.expert_bytes, a.expert_bytes, b.expert_bytes)
        weight = scaled(block.weight_bytes, a.weight_bytes, b.weight_bytes)
        gathered = scaled(
            block.gathered_bytes_per_token,
            a.gathered_bytes_per_token,
            b.gathered_bytes_per_token,
        )
        blocks.append(
            replace(
                block,
                kind=b.kind,
                weight_bytes=max(weight, always + block.n_experts * expert),
                always_read_bytes=always,
                expert_bytes=expert,
                gathered_bytes_per_token=gathered,
            )
        )
    return replace(
        stored,
        blocks=distinct_kinds(blocks),
        tied_bytes=scaled(stored.tied_bytes, full.tied_bytes, formatted.tied_bytes),
        extrapolated=formatted.extrapolated,
    )


def distinct_kinds(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return blocks of which those that differ have kinds that differ: layer, layer#1, ..."""
    kinds: dict[Block, str] = {}
    numbers = Counter[str]()
    renamed = []
    for block in blocks:
        if block not in kinds:
            number = numbers[block.kind]
            kinds[block] = f"{block.kind}#{number}" if number else block.kind
            numbers[block.kind] += 1
        renamed.append(replace(block, kind=kinds[block]))
    return tuple(renamed)
