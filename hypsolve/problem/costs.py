"""Time and memory of blocks and links, and `to_instance`: Deployment -> Instance.

The fits of GPU profiles and all predictions share these conventions: a multiply-add counts as 2
FLOPs, attention is causal, and a block takes
``t0_s + max(flops / flops_per_s, bytes / bytes_per_s)`` in a step, where the bytes are the
weights read, the KV cache read, and the activations. GPUs that compute as one add all-reduces.
Profiles with `OperatorRates`, or whose times of computing and reading add up, take the seconds
of `hypsolve.problem.step_costs` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Link,
    Model,
)
from hypsolve.problem.instance import Instance, LinkCost, Objective, StageRule
from hypsolve.problem.step_costs import is_three_numbers, step_costs


def weight_read_bytes(block: Block, tokens: ArrayLike) -> Array:
    """Return the weight bytes that a step of `tokens` reads.

    Of a mixture of experts, it is the expected number of distinct experts that are read.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    read = block.always_read_bytes + block.gathered_bytes_per_token * tokens
    if block.n_experts:
        idle = (1 - block.experts_per_token / block.n_experts) ** tokens
        read = read + block.expert_bytes * block.n_experts * (1 - idle)
    return read


def step_work(
    block: Block,
    tokens: ArrayLike,
    cached_tokens: ArrayLike,
    n_sequences: ArrayLike = 1,
    *,
    kv_copies: int = 1,
) -> tuple[Array, Array]:
    """Return the FLOPs and the bytes of one block in one step.

    Parameters
    ----------
    tokens, cached_tokens : array_like
        Tokens computed per sequence, and tokens in its KV cache before the step. A decode step
        at context x is ``tokens=1, cached_tokens=x - 1``.
    n_sequences : array_like
        Sequences in the batch.
    kv_copies : int
        Copies of the KV cache, each of which is read; see `GpuProfile`.

    Returns
    -------
    flops, moved_bytes : ndarray
        In the broadcast shape of the arguments.
    """
    q, c, n = (np.asarray(a, dtype=np.float64) for a in (tokens, cached_tokens, n_sequences))
    computed = n if block.last_token_only else n * q
    pairs = n * (_window_sum(c + q, block.window_tokens) - _window_sum(c, block.window_tokens))
    reach = c if block.window_tokens is None else np.minimum(c, block.window_tokens - 1)
    flops = block.flops_per_token * computed + block.attention_flops_per_pair * pairs
    moved = (
        weight_read_bytes(block, computed)
        + block.kv_bytes_per_token * kv_copies * n * (reach + q)
        + block.activation_bytes_per_token * computed
    )
    return flops, moved


def _window_sum(n: Array, window: int | None) -> Array:
    """Return the sum of min(x, window) over x = 1..n."""
    if window is None:
        return n * (n + 1) / 2
    inside = np.minimum(n, window)
    return inside * (inside + 1) / 2 + (n - inside) * window


def step_s(
    gpu: GpuProfile,
    flops: ArrayLike,
    moved_bytes: ArrayLike,
    cost_model: CostModel = CostModel.ROOFLINE,
) -> Array:
    """Return the seconds of one block in one step by the three numbers of a GPU.

    Cost model ``roofline`` is the formula at the top of this module. Cost model ``flops`` is
    the paper's f / C: FLOPs divided by the compute rate.
    """
    compute_s = np.asarray(flops, dtype=np.float64) / gpu.flops_per_s
    if cost_model is CostModel.FLOPS:
        return compute_s
    return gpu.t0_s + np.maximum(compute_s, np.asarray(moved_bytes) / gpu.bytes_per_s)


def linear_step_s(
    block: Block,
    gpu: GpuProfile,
    tokens: ArrayLike,
    cached_tokens: ArrayLike,
    n_sequences: ArrayLike = 1,
) -> Array:
    """Return the seconds of one block in one step by `StepCosts`, without all-reduces.

    Parameters
    ----------
    block : Block
    gpu : GpuProfile
        One with `OperatorRates`, or whose times of computing and reading add up.
    tokens, cached_tokens, n_sequences : array_like
        As in `step_work`. Sequences of one token are decode tokens.
    """
    q, c, n = (np.asarray(a, dtype=np.float64) for a in (tokens, cached_tokens, n_sequences))
    costs = step_costs(block, gpu)
    computed = n if block.last_token_only else n * q
    pairs, reach = attended(block, q, c)
    used = np.ones_like(computed)
    if block.n_experts:
        used = 1 - (1 - block.experts_per_token / block.n_experts) ** computed
    memory_s = costs.read_s + costs.experts_s * used + costs.memory_token_s * computed
    by_prompt_s = costs.prompt_pair_s * pairs + costs.prompt_kv_s * reach
    attention_s = np.where(q == 1, costs.decode_pair_s * reach, by_prompt_s)
    return np.asarray(
        costs.fixed_s
        + costs.mixed_s * (q != 1)
        + np.maximum(costs.compute_token_s * computed, memory_s)
        + costs.token_s * computed
        + n * attention_s
    )


def attended(block: Block, tokens: ArrayLike, cached_tokens: ArrayLike) -> tuple[Array, Array]:
    """Return the pairs that tokens of a sequence attend to, and the KV cache that they read."""
    q, c = (np.asarray(a, dtype=np.float64) for a in (tokens, cached_tokens))
    window = block.window_tokens
    pairs = _window_sum(c + q, window) - _window_sum(c, window)
    reach = c if window is None else np.minimum(c, window - 1)
    return pairs, reach + q


def n_collectives(block: Block, gpu: GpuProfile) -> float:
    """Return the all-reduces of a block in a step, if several GPUs compute as one."""
    if is_three_numbers(gpu):
        return block.collectives
    return step_costs(block, gpu).collectives


def collectives_s(block: Block, gpu: GpuProfile, computed_tokens: ArrayLike) -> Array:
    """Return the seconds of a block's all-reduces in one step; 0 on a single GPU."""
    tokens = np.asarray(computed_tokens, dtype=np.float64)
    if gpu.all_reduce is None:
        return np.zeros_like(tokens)
    seconds = gpu.all_reduce.seconds(tokens * block.collective_bytes_per_token)
    return n_collectives(block, gpu) * np.asarray(seconds, dtype=np.float64)


def service_s(
    block: Block,
    gpu: GpuProfile,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    cost_model: CostModel = CostModel.ROOFLINE,
) -> Array:
    """Return the seconds of one block for whole requests: prefill and all decode steps.

    The sum over the contexts ``prompt + 1 .. prompt + output - 1`` has a closed form. Within
    the attention window, compute and memory time are linear in the context: their maximum sums
    to two arithmetic series, split where the lines cross. Beyond the window a step is constant.
    Cost model ``flops`` knows no all-reduces.
    """
    p = np.asarray(prompt_tokens, dtype=np.float64)
    o = np.asarray(output_tokens, dtype=np.float64)
    if cost_model is CostModel.ROOFLINE and not is_three_numbers(gpu):
        return _linear_service_s(block, gpu, p, o)
    copies = gpu.kv_copies
    prefill_s = step_s(gpu, *step_work(block, p, 0.0, kv_copies=copies), cost_model)
    constant = step_work(block, 1.0, -1.0, kv_copies=copies)  # at context 0
    flops_0, bytes_0 = map(float, constant)
    flops_x = block.attention_flops_per_pair
    bytes_x = float(block.kv_bytes_per_token * copies)
    if cost_model is CostModel.FLOPS:
        t0_s, compute, memory = 0.0, (flops_0, flops_x), (0.0, 0.0)
    else:
        t0_s = gpu.t0_s + float(collectives_s(block, gpu, 1.0))
        compute, memory = (flops_0, flops_x), (bytes_0, bytes_x)
        computed = np.ones_like(p) if block.last_token_only else p
        prefill_s = prefill_s + collectives_s(block, gpu, computed)
    u0, u1 = (w / gpu.flops_per_s for w in compute)
    v0, v1 = (w / gpu.bytes_per_s for w in memory)
    first, last = p + 1, p + o - 1
    if block.window_tokens is None:
        decode_s = _sum_of_max(u0, u1, v0, v1, first, last)
    else:
        w = float(block.window_tokens)
        beyond = np.maximum(last - np.maximum(first - 1, w), 0.0)
        decode_s = _sum_of_max(u0, u1, v0, v1, first, np.minimum(last, w)) + beyond * max(
            u0 + u1 * w, v0 + v1 * w
        )
    return prefill_s + t0_s * (o - 1) + decode_s


def linear_terms_s(
    block: Block,
    gpu: GpuProfile,
    prompt_tokens: int,
    output_tokens: int,
    *,
    may_recompute: bool = False,
) -> tuple[float, float]:
    """Return the least seconds of the linear terms of `StepCosts` in a whole request.

    Parameters
    ----------
    may_recompute : bool
        Whether requests may be preempted, as under ``paged``. A prompt that is computed again,
        with the tokens that came out, replaces a decode pass, and may take less.

    Returns
    -------
    decode_s, prompt_s : float
        Of all decode passes; and of the prompt, in whatever pieces it is computed. 0 for three
        numbers of which the larger time counts.
    """
    if is_three_numbers(gpu):
        return 0.0, 0.0
    row, p = step_costs(block, gpu), float(prompt_tokens)
    computed = 1.0 if block.last_token_only else p
    contexts = np.arange(p + 1, p + output_tokens)
    reach = attended(block, 1.0, contexts - 1)[1]
    # a piece of one token counts as a decode token
    pair_s = min(row.prompt_pair_s, row.decode_pair_s)
    passes_s = row.token_s + row.decode_pair_s * reach
    if may_recompute:
        tokens = np.ones_like(contexts) if block.last_token_only else contexts
        again_s = row.token_s * tokens + pair_s * attended(block, contexts, 0.0)[0]
        passes_s = np.minimum(passes_s, again_s)
    pairs, read = attended(block, p, 0.0)
    prompt_s = row.token_s * computed + pair_s * float(pairs) + row.prompt_kv_s * float(read)
    return float(passes_s.sum()), prompt_s


def _linear_service_s(block: Block, gpu: GpuProfile, p: Array, o: Array) -> Array:
    """Return `service_s` by `StepCosts`: the context counts in a linear term alone."""
    computed = np.ones_like(p) if block.last_token_only else p
    prefill_s = linear_step_s(block, gpu, p, 0.0) + collectives_s(block, gpu, computed)
    step_s = linear_step_s(block, gpu, 1.0, -1.0) + collectives_s(block, gpu, 1.0)
    window = block.window_tokens
    contexts = _window_sum(p + o - 1, window) - _window_sum(p, window)
    pairs_s = step_costs(block, gpu).decode_pair_s * contexts
    return np.asarray(prefill_s + (o - 1) * step_s + pairs_s)


def _sum_of_max(u0: float, u1: float, v0: float, v1: float, first: Array, last: Array) -> Array:
    """Return the sum of max(u0 + u1 * x, v0 + v1 * x) over the whole numbers first..last."""
    if u1 > v1:  # u is the flatter line: it is the larger one up to the crossing
        u0, u1, v0, v1 = v0, v1, u0, u1
    if u1 == v1:
        crossing = np.inf if u0 >= v0 else -np.inf
    else:
        crossing = np.floor((u0 - v0) / (v1 - u1))
    last = np.maximum(last, first - 1)
    split = np.clip(crossing, first - 1, last)
    n_u, n_v = split - first + 1, last - split
    return n_u * (u0 + u1 * (first + split) / 2) + n_v * (v0 + v1 * (split + 1 + last) / 2)


def link_occupancy_s(
    link: Link, bytes_per_token: ArrayLike, prompt_tokens: ArrayLike, output_tokens: ArrayLike
) -> Array:
    """Return the seconds that a request keeps a link busy: all tokens but the last cross."""
    crossing = np.asarray(prompt_tokens, dtype=np.float64) + np.asarray(output_tokens) - 1
    return crossing * np.asarray(bytes_per_token, dtype=np.float64) / link.bytes_per_s


def link_delay_s(link: Link, output_tokens: ArrayLike) -> Array:
    """Return the latency of a request on a link: a round trip for each output token."""
    return np.asarray(output_tokens, dtype=np.float64) * link.round_trip_s


def block_bytes(model: Model, resident_tokens: int, kv_copies: int = 1) -> NDArray[np.float64]:
    """Return weights and KV reserve of each block in bytes, shape (n_blocks,)."""
    tokens = resident_tokens * kv_copies
    return np.array(
        [b.weight_bytes + b.kv_bytes_per_token * tokens for b in model.blocks],
        dtype=np.float64,
    )


def node_classes(deployment: Deployment) -> list[GpuProfile]:
    """Return the distinct GPU profiles in the order of their classes in an instance."""
    tiers = deployment.network.tiers
    return list(dict.fromkeys(deployment.profile(n) for tier in tiers for n in tier.nodes))


def _memory(deployment: Deployment) -> tuple[NDArray[np.float64], list[list[float]]]:
    """Return the bytes of the blocks, and the bytes of each tier's nodes.

    An instance has one size for each block, with the fewest copies of the KV cache among the
    nodes. A node that holds more copies is given less memory in their place: by the largest
    ratio over the blocks, so that no stage is let in that does not fit. If all nodes have as
    many copies, as under one degree of tensor parallelism, the sizes are exact.
    """
    model, tiers = deployment.model, deployment.network.tiers
    assert deployment.max_resident_tokens is not None  # Deployment sets it
    copies = [[deployment.profile(node).kv_copies for node in tier.nodes] for tier in tiers]
    fewest = min(min(of_tier) for of_tier in copies)
    sizes = {
        n: block_bytes(model, deployment.max_resident_tokens, n)
        for n in {fewest, *(n for of_tier in copies for n in of_tier)}
    }
    whole = {n: float(size.sum()) - model.tied_bytes for n, size in sizes.items()}
    shares = {
        n: min(1.0, whole[fewest] / whole[n], *(sizes[fewest] / size)[size > 0].tolist())
        if n > fewest
        else 1.0
        for n, size in sizes.items()
    }
    free = [
        [
            deployment.usable_bytes(node) * shares[n]
            for node, n in zip(tier.nodes, of_tier, strict=True)
        ]
        for tier, of_tier in zip(tiers, copies, strict=True)
    ]
    return sizes[fewest], free


@valid.suggest_keywords("to_instance")
def to_instance(
    deployment: Deployment,
    *,
    objective: Objective | str = Objective.BOTTLENECK,
    stage_rule: StageRule | str = StageRule.POOLED,
    allow_empty: bool = False,
    overlap: bool = False,
    link_cost: LinkCost | str = LinkCost.OCCUPANCY,
    pinned: Mapping[int, int] | None = None,
    min_blocks: Sequence[int] | None = None,
    max_blocks: Sequence[int] | None = None,
    name: str = "",
) -> Instance:
    """Compile a deployment to the arrays that every solver reads.

    Parameters
    ----------
    deployment : Deployment
    objective, stage_rule, allow_empty, overlap, link_cost, pinned, min_blocks, max_blocks
        As in `Instance.from_tables`.
    name : str
        Default: ``model @ network``.

    Returns
    -------
    Instance
        Nodes with equal GPU profiles share a class. Blocks are stored by kind, so that a
        million requests fit in memory. If the first tier may be empty, the transfers at cut 0,
        which empty leading tiers pay, hold the ids of the prompt and one round trip. Otherwise
        nothing reads them, and `Instance.replace` cannot allow an empty first tier.

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
    ...     requests=hs.Requests([0.0, 1.0], [512, 100], [64, 200]),
    ... )
    >>> hs.to_instance(deployment, objective="mean_latency")
    <Instance 'llama-3-8b @ lab': 2 requests, 34 blocks, 1 tier, 1 node, mean_latency>
    """
    valid.of_type("to_instance", "deployment", deployment, Deployment)
    model, network, requests = deployment.model, deployment.network, deployment.requests
    prompt, output = requests.prompt_tokens, requests.output_tokens
    if (prompt == prompt[0]).all() and (output == output[0]).all():
        prompt, output = prompt[:1], output[:1]
    kinds = list(dict.fromkeys(block.kind for block in model.blocks))
    of_kind = {block.kind: block for block in model.blocks}
    gpus = node_classes(deployment)
    kind_s = np.empty((len(prompt), len(gpus), len(kinds)))
    for c, gpu in enumerate(gpus):
        for b, kind in enumerate(kinds):
            kind_s[:, c, b] = service_s(
                of_kind[kind], gpu, prompt, output, deployment.cost_model
            )

    # The bytes across a cut depend on the block before it alone; none cross after the last.
    # Behind empty leading tiers, only the prompt crosses, and one round trip is paid: decode
    # passes start at the first stage. A request of one output token crosses a cut like that.
    fewest = instance_tables.limits(
        "min_blocks", min_blocks, len(network.tiers), model.n_blocks, 0
    )
    may_lead_empty = valid.flag("instance", "allow_empty", allow_empty) and fewest[0] == 0
    sent = [(model.input_bytes_per_token, may_lead_empty)]
    sent += [(block.output_bytes_per_token, False) for block in model.blocks[:-1]]
    sent_kinds = list(dict.fromkeys(sent))
    links = [tier.link for tier in network.tiers if tier.link is not None]
    occupancy_s = np.zeros((len(prompt), len(links), len(sent_kinds) + 1))
    transfer_s = np.zeros_like(occupancy_s)
    for k, link in enumerate(links):
        for m, (token_bytes, only_prompt) in enumerate(sent_kinds):
            crossing = np.ones_like(output) if only_prompt else output
            occupancy_s[:, k, m] = link_occupancy_s(link, token_bytes, prompt, crossing)
            transfer_s[:, k, m] = occupancy_s[:, k, m] + link_delay_s(link, crossing)

    sizes, free = _memory(deployment)
    options: dict[str, Any] = {
        "objective": objective,
        "stage_rule": stage_rule,
        "allow_empty": allow_empty,
        "overlap": overlap,
        "link_cost": link_cost,
        "pinned": pinned,
        "min_blocks": min_blocks,
        "max_blocks": max_blocks,
    }
    return Instance.from_kinds(
        kind_s=kind_s,
        block_kind=np.array([kinds.index(block.kind) for block in model.blocks]),
        block_bytes=sizes,
        tied_bytes=float(model.tied_bytes),
        transfer_kind_s=transfer_s,
        occupancy_kind_s=occupancy_s,
        # they are equal if one token is made, for then a request crosses each link once
        empty_first_tier=may_lead_empty or not links or bool((output == 1).all()),
        cut_kind=np.array([*(sent_kinds.index(s) for s in sent), len(sent_kinds)]),
        tiers=[
            [
                (gpus.index(deployment.profile(node)), n_bytes)
                for node, n_bytes in zip(tier.nodes, of_tier, strict=True)
            ]
            for tier, of_tier in zip(network.tiers, free, strict=True)
        ],
        arrival_s=requests.arrival_s,
        name=name or f"{model.name} @ {network.name}",
        extrapolated=model.extrapolated,
        tier_names=tuple(tier.name for tier in network.tiers),
        node_names=tuple(node.name for tier in network.tiers for node in tier.nodes),
        class_names=tuple(gpu.name for gpu in gpus),
        **options,
    )
