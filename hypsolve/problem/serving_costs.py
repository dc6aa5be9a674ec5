"""`to_serving_instance`: Deployment -> ServingInstance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypsolve.problem import costs, instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Block, CostModel, Deployment, GpuProfile
from hypsolve.problem.instance_records import Limits, Names, NodeTable
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.serving import ServingInstance, lengths_of
from hypsolve.problem.serving_records import (
    KIND_TABLES,
    OWNER,
    BlockTimes,
    Lengths,
    ServingLinks,
    ServingObjective,
    ServingRules,
)
from hypsolve.problem.step_costs import is_three_numbers, step_costs


@valid.suggest_keywords("to_serving_instance")
def to_serving_instance(
    deployment: Deployment,
    *,
    objective: ServingObjective | str = ServingObjective.THROUGHPUT,
    runtime: Runtime | None = None,
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    latency_slo_s: float | None = None,
    users: int | None = None,
    think_time_s: float = 0.0,
    prices_per_hour: Mapping[str, float] | None = None,
    allow_empty: bool = False,
    pinned: Mapping[int, int] | None = None,
    min_blocks: Sequence[int] | None = None,
    max_blocks: Sequence[int] | None = None,
    name: str = "",
) -> ServingInstance:
    """Compile a deployment to the arrays of the fluid model of a batched pipeline.

    Parameters
    ----------
    deployment : Deployment
        Arrival times do not count. Different lengths enter by their moments; see `Lengths`.
    objective : ServingObjective or str
        ``throughput``, ``goodput`` or ``cost``.
    runtime : Runtime, optional
        Limits, memory and batching rules. Default: the runtime of the deployment.
    ttft_slo_s, tpot_slo_s, latency_slo_s : float, optional
        Targets for the mean time to first token, the mean time per output token after it, and
        the mean latency, in seconds.
    users : int, optional
        Users of a closed loop. Default: requests arrive by themselves.
    think_time_s : float
        Seconds between an answer and the next request of a user.
    prices_per_hour : mapping of node name to float, optional
        Prices of nodes; those that are not named cost nothing.
    allow_empty : bool
        Whether a tier may host no block.
    pinned, min_blocks, max_blocks
        As in `Instance.from_tables`.
    name : str
        Default: ``model @ network``.

    Returns
    -------
    ServingInstance

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(name="lab", tiers=(box,)),
    ...     requests=hs.Requests([0.0], [512], [128]),
    ... )
    >>> hs.to_serving_instance(deployment)
    <ServingInstance 'llama-3-8b @ lab': 34 blocks, 1 tier, 1 node, batching stage, throughput>
    """
    valid.of_type("to_serving_instance", "deployment", deployment, Deployment)
    served_by = deployment.runtime if runtime is None else runtime
    valid.of_type("to_serving_instance", "runtime", served_by, Runtime)
    deployment = _under(deployment, served_by)
    model, network = deployment.model, deployment.network
    rules = ServingRules(
        objective=objective,  # type: ignore[arg-type]
        batching=served_by.batching,
        kv_admission=served_by.kv_admission,
        max_num_seqs=served_by.max_num_seqs,
        max_num_batched_tokens=served_by.max_num_batched_tokens,
        prompt_limit=served_by.prompt_limit,
        iteration_s=served_by.iteration_s,
        ttft_slo_s=ttft_slo_s,
        tpot_slo_s=tpot_slo_s,
        latency_slo_s=latency_slo_s,
        users=users,
        think_time_s=think_time_s,
        allow_empty=allow_empty,
        request_s=deployment.request_s,
    )
    requests = deployment.requests
    lengths = lengths_of(
        requests.prompt_tokens,
        requests.output_tokens,
        rules,
        served_by.kv_block_tokens,
        deployment.max_resident_tokens,
        served_by.slot_tokens,
    )
    gpus = costs.node_classes(deployment)
    nodes = [node for tier in network.tiers for node in tier.nodes]
    node_tier, node_class, node_bytes = instance_tables.nodes(
        [
            [
                (gpus.index(deployment.profile(node)), deployment.usable_bytes(node))
                for node in tier.nodes
            ]
            for tier in network.tiers
        ]
    )
    size = len(network.tiers), model.n_blocks
    cut_min, cut_max = instance_tables.cut_limits(pinned, *size)
    return ServingInstance(
        blocks=block_times(deployment, gpus, lengths),
        links=_links(deployment, lengths),
        nodes=NodeTable(node_tier=node_tier, node_class=node_class, node_bytes=node_bytes),
        price_per_hour=_prices([node.name for node in nodes], prices_per_hour),
        lengths=lengths,
        limits=Limits(
            cut_min=cut_min,
            cut_max=cut_max,
            min_blocks_given=instance_tables.limits("min_blocks", min_blocks, *size, 0),
            max_blocks=instance_tables.limits("max_blocks", max_blocks, *size, model.n_blocks),
        ),
        rules=rules,
        names=Names(
            name=name or f"{model.name} @ {network.name}",
            extrapolated=model.extrapolated,
            tier_names=tuple(tier.name for tier in network.tiers),
            node_names=tuple(node.name for node in nodes),
            class_names=tuple(gpu.name for gpu in gpus),
        ),
    )


def _under(deployment: Deployment, runtime: Runtime) -> Deployment:
    """Return a deployment under a runtime, with room for its longest request."""
    if runtime == deployment.runtime:
        return deployment
    requests = deployment.requests
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    assert deployment.max_resident_tokens is not None  # Deployment sets it
    resident = max(deployment.max_resident_tokens, runtime.held_tokens(longest))
    return dataclasses.replace(deployment, runtime=runtime, max_resident_tokens=resident)


def block_times(
    deployment: Deployment, gpus: Sequence[GpuProfile], lengths: Lengths
) -> BlockTimes:
    """Return the times and bytes of a model's blocks on some GPUs."""
    model = deployment.model
    kinds = list(dict.fromkeys(block.kind for block in model.blocks))
    of_kind = {block.kind: block for block in model.blocks}
    context = mean_context(deployment)
    tables = {field: np.zeros((len(gpus), len(kinds))) for field in KIND_TABLES}
    for b, kind in enumerate(kinds):
        for c, gpu in enumerate(gpus):
            row = _block_row(of_kind[kind], gpu, deployment.cost_model, lengths, context)
            for field, value in row.items():
                tables[field][c, b] = value
    blocks = [of_kind[kind] for kind in kinds]
    return BlockTimes(
        **tables,
        idle_share=np.array(
            [1 - b.experts_per_token / b.n_experts if b.n_experts else 0.0 for b in blocks]
        ),
        last_token_only=np.array([int(b.last_token_only) for b in blocks]),
        collective_s=np.array(
            [[_collective_s(b, gpu, deployment.cost_model) for b in blocks] for gpu in gpus]
        ),
        tied_bytes=np.full(len(gpus), float(model.tied_bytes)),
        block_kind=np.array([kinds.index(block.kind) for block in model.blocks]),
    )


def _collective_s(block: Block, gpu: GpuProfile, cost_model: CostModel) -> list[float]:
    """Return the all-reduces of a block on a class of nodes, as in `BlockTimes`."""
    lines, size = gpu.all_reduce, block.collective_bytes_per_token
    if lines is None or cost_model is CostModel.FLOPS or not costs.n_collectives(block, gpu):
        return [0.0] * 5
    n = costs.n_collectives(block, gpu)
    small = lines.small_s, lines.small_s_per_byte
    large = lines.large_s, lines.large_s_per_byte
    if not size:
        small = large = lines.small_s, 0.0
    return [
        n * small[0],
        n * small[1] * size,
        lines.switch_bytes / size if size else 0.0,
        n * large[0],
        n * large[1] * size,
    ]


def mean_context(deployment: Deployment) -> float:
    """Return the mean context of a decode token: E[(p + o / 2)(o - 1)] / E[o - 1]."""
    p = deployment.requests.prompt_tokens.astype(np.float64)
    o = deployment.requests.output_tokens.astype(np.float64)
    passes = o - 1
    if not passes.any():
        return float((p + o / 2).mean())
    return float(((p + o / 2) * passes).sum() / passes.sum())


def _block_row(
    block: Block, gpu: GpuProfile, cost_model: CostModel, lengths: Lengths, context: float
) -> dict[str, float]:
    """Return a block's numbers on a GPU, for some of `KIND_TABLES`; the others are 0.

    Weights that every iteration reads are left out of the seconds of a token and of a chunk.
    """
    if cost_model is CostModel.ROOFLINE and not is_three_numbers(gpu):
        return _linear_row(block, gpu, lengths, context)
    chunk = lengths.chunk_tokens
    cached = (lengths.prompt_tokens - chunk) / 2
    copies = gpu.kv_copies
    step = costs.step_work(block, 1.0, context - 1, kv_copies=copies)
    piece = costs.step_work(block, chunk, cached, kv_copies=copies)
    computed = 1.0 if block.last_token_only else chunk
    per_prompt = lengths.chunks if block.last_token_only else 1.0
    roofline = cost_model is CostModel.ROOFLINE
    per_byte = 1 / gpu.bytes_per_s if roofline else 0.0

    def moved(work: Any, tokens: float) -> float:
        read = float(costs.weight_read_bytes(block, tokens))
        gathered = block.gathered_bytes_per_token * tokens
        return max(float(work[1]) - read + gathered, 0.0) * per_byte

    return {
        "fixed_s": gpu.t0_s if roofline else 0.0,
        "read_s": block.always_read_bytes * per_byte,
        "expert_s": block.expert_bytes * block.n_experts * per_byte,
        "compute_token_s": float(step[0]) / gpu.flops_per_s,
        "memory_token_s": moved(step, 1.0),
        "compute_chunk_s": float(piece[0]) / gpu.flops_per_s / per_prompt,
        "memory_chunk_s": moved(piece, computed) / per_prompt,
        "weight_bytes": float(block.weight_bytes),
        "kv_bytes_per_token": float(block.kv_bytes_per_token * copies),
    }


def _linear_row(
    block: Block, gpu: GpuProfile, lengths: Lengths, context: float
) -> dict[str, float]:
    """Return `_block_row` by `StepCosts`."""
    row, chunk = step_costs(block, gpu), lengths.chunk_tokens
    _, reach = costs.attended(block, 1.0, context - 1)
    pairs, read = costs.attended(block, chunk, (lengths.prompt_tokens - chunk) / 2)
    # of a block that computes last tokens only: one token of a prompt, spread over its chunks
    computed = 1 / lengths.chunks if block.last_token_only else chunk
    n = 1 / lengths.chunks if block.last_token_only else 1.0
    attention_s = row.prompt_pair_s * float(pairs) + row.prompt_kv_s * float(read)
    if chunk == 1:  # as a decode token
        attention_s = row.decode_pair_s * float(read)
    return {
        "fixed_s": row.fixed_s,
        "mixed_s": row.mixed_s if chunk != 1 else 0.0,
        "read_s": row.read_s,
        "expert_s": row.experts_s,
        "compute_token_s": row.compute_token_s,
        "memory_token_s": row.memory_token_s,
        "compute_chunk_s": row.compute_token_s * computed,
        "memory_chunk_s": row.memory_token_s * computed,
        "linear_token_s": row.token_s + row.decode_pair_s * float(reach),
        "linear_chunk_s": row.token_s * computed + n * attention_s,
        "weight_bytes": float(block.weight_bytes),
        "kv_bytes_per_token": float(block.kv_bytes_per_token * gpu.kv_copies),
    }


def _links(deployment: Deployment, lengths: Lengths) -> ServingLinks:
    model = deployment.model
    sent = [model.input_bytes_per_token, *(b.output_bytes_per_token for b in model.blocks)]
    sent_kinds = list(dict.fromkeys(sent))
    links = [tier.link for tier in deployment.network.tiers if tier.link is not None]
    token_s = np.zeros((len(links), len(sent_kinds)))
    for k, link in enumerate(links):
        token_s[k] = np.array(sent_kinds) / link.bytes_per_s
    ids_bytes = model.input_bytes_per_token * lengths.prompt_tokens
    return ServingLinks(
        token_s=token_s,
        cut_kind=np.array([sent_kinds.index(s) for s in sent]),
        round_trip_s=np.array([link.round_trip_s for link in links]),
        entry_s=np.array([ids_bytes / link.bytes_per_s + link.round_trip_s for link in links]),
    )


def _prices(names: Sequence[str], prices: Mapping[str, float] | None) -> Any:
    if prices is None:
        return np.zeros(len(names))
    for name in prices:
        valid.known("node in prices_per_hour", name, names)
    given = {
        n: valid.real(OWNER, f"prices_per_hour[{n!r}]", price) for n, price in prices.items()
    }
    return np.array([given.get(name, 0.0) for name in names])
