"""`limiting_resources`: what may keep a partition from serving more requests.

A simulation beyond the largest sustainable rate tells how many iterations each request costs,
and which nodes, links and caches are full. From these, the time that a request costs is
modelled block by block: iterations with a chunk of a prompt and iterations without one each
take the longer of their FLOPs and their bytes. The resource is named whose doubling shortens
this time most. A model of means knows nothing of batches that bunch in waves, so a forecast
simulates the names in their order with twice of each resource, see
`hypsolve.planning.doubled_resources`.

*A full tier.* If the nodes of a tier compute nearly all the time, the time that a request costs
one of them limits the rate. Larger batches help if their size is limited by KV memory of this
tier, or by the batch limit.

*No full tier.* Under ``serial`` a batch passes all stages in turn, and elsewhere too few
requests may be in flight to keep a tier busy. The rate is then the number of requests in flight
over the time of all their passes, which is a sum over all stages and links.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.rate_bound import (
    Stage,
    computed_tokens,
    lengths,
    request_work,
    stages_of,
)
from hypsolve.planning.rpc_links import returns_logits
from hypsolve.problem import costs, evaluation
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.deployment import Block, CostModel, Deployment, GpuProfile
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition
from hypsolve.problem.step_costs import is_three_numbers, step_costs
from hypsolve.simulation.trace import Trace

FULL = 0.85  # share from which a resource counts as full
LATENCY_NAME = "latency of decode passes"
WAITS = 0.5  # requests that wait at a node, on average, from which a queue is seen


def limiting_resources(
    deployment: Deployment, instance: Instance, partition: Partition, beyond: Trace
) -> tuple[str, ...]:
    """Return what may limit the rate, found in a simulation beyond the largest sustainable one.

    Parameters
    ----------
    deployment, instance, partition
        As in `hypsolve.planning.forecast.predict`.
    beyond : Trace
        A simulation in which more requests arrive than can be served.

    Returns
    -------
    tuple of str
        Such as ``memory bandwidth of 'edge'`` or ``link from 'edge'``, the one that limits the
        rate by the model first; see the docstring of this module. The only name is empty if
        nothing is known.
    """
    offered = _offered_bins(beyond)
    if not offered.any():
        return ("",)
    stages = [
        _Used.of(stage, deployment, instance, partition, beyond)
        for stage in stages_of(deployment, instance, partition)
    ]
    stages = [each for each in stages if each.nodes.size]
    is_serial = deployment.runtime.batching is Batching.SERIAL
    if is_serial or len(stages) == 1:  # all that run are in the batch
        stages = [_settled(each, stages[0], deployment, beyond, offered) for each in stages]
    link, link_load = _fullest_link(deployment, instance, partition, beyond)
    busy = [float(beyond.series.busy[each.nodes][:, offered].mean()) for each in stages]
    busiest = int(np.argmax(busy)) if busy else 0
    if not stages:
        return (link,)
    is_link_full = link_load >= max(FULL, busy[busiest])
    is_full = busy[busiest] >= FULL and not is_serial
    at_work = [stages[busiest]] if is_full else stages
    time = _RequestTime(deployment, instance, partition, at_work, is_full=is_full)
    limits = _limits_of_batches(deployment, at_work, beyond, offered)
    larger = next((name for name, share in limits.items() if share >= FULL), "")
    gains = dict.fromkeys((*limits, *([link] if link_load > 0 else [])), 0.0) | time.gains()
    if larger:
        gains[larger] = time.gain(larger_batches=2.0)
    elif not is_full and not _waits(beyond, offered):
        gains[LATENCY_NAME] = math.inf
    if is_link_full:
        if gains.get(LATENCY_NAME) == math.inf:
            gains[LATENCY_NAME] = 0.0
        gains[link] = math.inf
    return tuple(sorted(gains, key=lambda name: -gains[name]))


@dataclass(frozen=True, slots=True)
class _Used:
    """A stage, its nodes that served requests, and what each request cost them."""

    stage: Stage
    nodes: IntArray  # numbered over the whole network
    gpus: list[GpuProfile]
    shares: list[float]  # of the tokens
    n_iterations: list[float]  # that one request costs each node

    @classmethod
    def of(
        cls,
        stage: Stage,
        deployment: Deployment,
        instance: Instance,
        partition: Partition,
        trace: Trace,
    ) -> _Used:
        first, k = instance.nodes_of(stage.tier).start, stage.tier
        holds = evaluation.can_hold(instance, k, *partition.cuts[k : k + 2])
        nodes = first + np.flatnonzero(holds)
        served = trace.n_tokens[nodes] > 0
        gpus = [
            deployment.profile(node)
            for node, has in zip(stage.nodes, served, strict=True)
            if has
        ]
        nodes = nodes[served]
        n_tokens = trace.n_tokens[nodes]
        per_request = float((trace.prompt_tokens + trace.output_tokens).mean()) - 1
        n_iterations = trace.n_iterations[nodes] * per_request / n_tokens
        shares = n_tokens / n_tokens.sum() if nodes.size else n_tokens
        return cls(stage, nodes, gpus, shares.tolist(), n_iterations.tolist())


def _settled(
    used: _Used, first: _Used, deployment: Deployment, trace: Trace, offered: NDArray[np.bool_]
) -> _Used:
    """Return a stage with the batches of the time in which load is offered.

    While the first and the last requests are under way, batches are smaller.
    """
    series = trace.series
    running = (series.n_requests - series.n_waiting)[first.nodes][:, offered].mean(axis=1)
    running = np.minimum(running, deployment.runtime.batch_limit)
    n_passes = _n_passes(deployment)
    settled = [
        min(n, n_passes / max(at_once, 1.0)) if len(used.n_iterations) == len(running) else n
        for n, at_once in zip(used.n_iterations, running.tolist(), strict=False)
    ]
    return replace(used, n_iterations=settled)


def _n_passes(deployment: Deployment) -> int:
    """Return the passes of a request: its chunks, and its decode tokens after the first."""
    prompt, output = lengths(deployment)
    limit = deployment.runtime.prompt_limit
    return output - 1 + (1 if limit is None else -(-prompt // limit))


class _RequestTime:
    """Time that a request costs, as a function of the resources."""

    def __init__(
        self,
        deployment: Deployment,
        instance: Instance,
        partition: Partition,
        stages: list[_Used],
        *,
        is_full: bool,
    ) -> None:
        self.deployment, self.stages, self.is_full = deployment, stages, is_full
        output = lengths(deployment)[1]
        self.n_passes = _n_passes(deployment)
        self.n_chunks = self.n_passes - (output - 1)
        self.round_trip_s, self.links = 0.0, dict[str, float]()
        for k, tier in enumerate(deployment.network.tiers[:-1]):
            cut = partition.cuts[k + 1]
            if tier.link is not None and 0 < cut < instance.n_blocks:
                self.round_trip_s += tier.link.round_trip_s
                self.links[tier.name] = float(instance.reference_link_s[k, cut])

    def gains(self) -> dict[str, float]:
        """Return the share by which the rate grows if a resource is doubled, by its name.

        All stages are given more of it; the one to which it is most is named.
        """
        gains = {}
        for what, doubled in (
            ("compute", {"more_flops": 2.0}), ("memory bandwidth", {"more_bytes": 2.0}),
            ("all-reduces", {"faster_all_reduces": 2.0}),
        ):  # fmt: skip
            if what == "all-reduces" and not self._has_groups:
                continue
            saved = [self._stage_s(s) - self._stage_s(s, **doubled) for s in self.stages]
            stage = self.stages[int(np.argmax(saved))].stage
            tier = self.deployment.network.tiers[stage.tier].name
            gains[f"{what} of {tier!r}"] = self.gain(**doubled)
        if not self.is_full:
            gains[LATENCY_NAME] = self.gain(less_latency=2.0)
            if self.links:
                longest = max(self.links, key=self.links.__getitem__)
                faster = {"faster_links": 2.0}
                if self._logits_return:
                    faster["faster_all_reduces"] = 2.0
                gains[f"link from {longest!r}"] = self.gain(**faster)
        return gains

    @property
    def _has_groups(self) -> bool:
        """Return whether several GPUs compute as one somewhere."""
        summed = any(gpu.all_reduce is not None for each in self.stages for gpu in each.gpus)
        return summed and not self._logits_return

    @property
    def _logits_return(self) -> bool:
        """Return whether logits take the place of all-reduces, see `planning.rpc_links`."""
        tiers = self.deployment.network.tiers
        return any(returns_logits(node) for tier in tiers for node in tier.nodes)

    def gain(self, **doubled: float) -> float:
        """Return the share by which the rate grows if something is doubled."""
        before, after = self._seconds(), self._seconds(**doubled)
        if not after:
            return math.inf if before else 0.0
        return before / after - 1

    def _seconds(
        self, *, faster_links: float = 1.0, less_latency: float = 1.0, **doubled: float
    ) -> float:
        """Return the time that a request costs a full tier, or over the requests in flight."""
        if self.is_full:
            return self._stage_s(self.stages[0], **doubled)
        n_iterations = float(np.mean([each.n_iterations[0] for each in self.stages]))
        larger = n_iterations / self._at_least(n_iterations, doubled.get("larger_batches", 1.0))
        passes = [self._pass_s(stage, **doubled) for stage in self.stages]
        in_batch = larger * self.n_passes / n_iterations
        links_s = sum(self.links.values()) / self.n_passes * in_batch / faster_links
        host_s = self.deployment.runtime.iteration_s
        pass_s = math.fsum(passes) + links_s + self.round_trip_s / less_latency + host_s
        return self.n_passes * pass_s / larger

    def _stage_s(
        self,
        used: _Used,
        *,
        more_flops: float = 1.0,
        more_bytes: float = 1.0,
        faster_all_reduces: float = 1.0,
        larger_batches: float = 1.0,
    ) -> float:
        """Return the seconds of a stage's nodes for one request."""
        return math.fsum(
            share * n_iterations * seconds
            for share, n_iterations, seconds in self._iterations(
                used, more_flops, more_bytes, faster_all_reduces, larger_batches
            )
        )

    def _pass_s(
        self,
        used: _Used,
        *,
        more_flops: float = 1.0,
        more_bytes: float = 1.0,
        faster_all_reduces: float = 1.0,
        larger_batches: float = 1.0,
    ) -> float:
        """Return the seconds of an iteration of a stage."""
        return math.fsum(
            share * seconds
            for share, _, seconds in self._iterations(
                used, more_flops, more_bytes, faster_all_reduces, larger_batches
            )
        )

    def _iterations(
        self,
        used: _Used,
        more_flops: float,
        more_bytes: float,
        faster_all_reduces: float,
        larger_batches: float,
    ) -> Iterator[tuple[float, float, float]]:
        """Yield share, iterations of a request and seconds of an iteration of each node."""
        runtime = self.deployment.runtime
        for gpu, share, n in zip(used.gpus, used.shares, used.n_iterations, strict=True):
            n_iterations = self._at_least(n, larger_batches)
            seconds = math.fsum(
                count * self._block_s(block, gpu, n_iterations, more_flops, more_bytes)
                for block, count in Counter(used.stage.blocks).items()
            )
            if gpu.all_reduce is not None:
                seconds += self._collectives_s(used, gpu, n_iterations) / faster_all_reduces
            if runtime.batching is Batching.STAGE:
                seconds += n_iterations * runtime.iteration_s
            yield share, n_iterations, seconds / n_iterations

    def _at_least(self, n_iterations: float, larger_batches: float) -> float:
        """Return the iterations of a request in larger batches, which chunks do not shorten."""
        prompt, limit = lengths(self.deployment)[0], self.deployment.runtime.prompt_limit
        least = 0.0 if limit is None else prompt / limit
        return max(n_iterations / larger_batches, min(least, n_iterations))

    def _block_s(
        self,
        block: Block,
        gpu: GpuProfile,
        n_iterations: float,
        more_flops: float,
        more_bytes: float,
    ) -> float:
        """Return the seconds of a block for one request that costs some iterations."""
        prompt, output = lengths(self.deployment)
        flops_per_s, bytes_per_s = gpu.flops_per_s * more_flops, gpu.bytes_per_s * more_bytes
        if self.deployment.cost_model is CostModel.ROOFLINE and not is_three_numbers(gpu):
            faster = gpu.scaled(flops=more_flops, moved=more_bytes)
            return self._linear_block_s(block, faster, n_iterations)
        copies = gpu.kv_copies
        whole = request_work(block, self.deployment, copies)
        later = request_work(block, self.deployment, copies, decodes_only=True)
        if self.deployment.cost_model is CostModel.FLOPS:
            return whole.flops / flops_per_s
        n_mixed = min(self.n_chunks, n_iterations)  # iterations with a chunk
        mixed = n_mixed / n_iterations
        decodes = (output - 1) / n_iterations
        chunk = 1.0 if block.last_token_only else prompt / n_mixed
        alone_bytes = n_iterations * (1 - mixed) * _weight_bytes(block, decodes)
        mixed_bytes = n_mixed * _weight_bytes(block, decodes + chunk)
        alone_bytes += (1 - mixed) * later.moved_bytes
        mixed_bytes += whole.moved_bytes - (1 - mixed) * later.moved_bytes
        alone_flops = (1 - mixed) * later.flops
        mixed_flops = whole.flops - alone_flops
        return (
            n_iterations * gpu.t0_s
            + max(alone_flops / flops_per_s, alone_bytes / bytes_per_s)
            + max(mixed_flops / flops_per_s, mixed_bytes / bytes_per_s)
        )

    def _linear_block_s(self, block: Block, gpu: GpuProfile, n_iterations: float) -> float:
        """Return `_block_s` by `StepCosts`."""
        prompt, output = lengths(self.deployment)
        row, is_last = step_costs(block, gpu), block.last_token_only
        n_mixed = min(self.n_chunks, n_iterations)  # iterations with a chunk
        decodes = (output - 1) / n_iterations
        chunk = 1.0 if is_last else prompt / n_mixed
        one_s = math.fsum(costs.linear_terms_s(block, gpu, prompt, output))
        for n, tokens in ((n_iterations - n_mixed, decodes), (n_mixed, decodes + chunk)):
            used = 0.0
            if block.n_experts:
                used = 1 - (1 - block.experts_per_token / block.n_experts) ** tokens
            memory_s = row.read_s + row.experts_s * used + row.memory_token_s * tokens
            one_s += n * (row.fixed_s + max(row.compute_token_s * tokens, memory_s))
        return one_s + n_mixed * row.mixed_s

    def _collectives_s(self, used: _Used, gpu: GpuProfile, n_iterations: float) -> float:
        """Return the seconds of all-reduces for one request that costs some iterations."""
        if self.deployment.cost_model is CostModel.FLOPS:
            return 0.0
        return n_iterations * math.fsum(
            count * float(costs.collectives_s(block, gpu, tokens / n_iterations))
            for block, count in Counter(used.stage.blocks).items()
            for tokens in (computed_tokens(block, self.deployment),)
        )


def _weight_bytes(block: Block, n_tokens: float) -> float:
    """Return the bytes of weights that an iteration reads, whatever it gathers by token."""
    gathered = block.gathered_bytes_per_token * n_tokens
    return float(costs.weight_read_bytes(block, n_tokens)) - gathered


def _offered_bins(trace: Trace) -> NDArray[np.bool_]:
    """Return the bins in the second half of the time in which load is offered."""
    mid_s = trace.series.mid_s
    first_s, last_s = trace.arrival_s.min(), trace.arrival_s.max()
    return (mid_s > (first_s + last_s) / 2) & (mid_s < last_s)


def _fullest_link(
    deployment: Deployment, instance: Instance, partition: Partition, trace: Trace
) -> tuple[str, float]:
    """Return the name of the link that is busy for the largest share, and the share."""
    served_per_s = trace.metrics().requests_per_s
    loads = {
        f"link from {tier.name!r}": _link_load(instance, partition, k, served_per_s)
        for k, tier in enumerate(deployment.network.tiers[:-1])
    }
    return max(loads.items(), key=lambda each: each[1], default=("", 0.0))


def _link_load(instance: Instance, partition: Partition, k: int, served_per_s: float) -> float:
    cut = partition.cuts[k + 1]
    if cut >= instance.n_blocks:
        return 0.0
    return float(instance.reference_link_s[k, cut]) * served_per_s


def _waits(trace: Trace, offered: NDArray[np.bool_]) -> bool:
    return float(trace.series.n_waiting[:, offered].mean()) > WAITS


def _limits_of_batches(
    deployment: Deployment, stages: list[_Used], trace: Trace, offered: NDArray[np.bool_]
) -> dict[str, float]:
    """Return what may keep batches of some stages small, and how full it is, the fullest first.

    Of KV memories, the fullest is returned.
    """
    runtime = deployment.runtime
    tokens = runtime.max_num_batched_tokens
    per_request = sum(lengths(deployment)) - 1
    if tokens is not None and runtime.prompt_limit == tokens:
        n_iterations = max(min(each.n_iterations) for each in stages)
        if per_request / n_iterations >= FULL * tokens:
            return {f"batch limit of {tokens} tokens": 1.0}
    of_kv = {
        f"KV memory of {deployment.network.tiers[each.stage.tier].name!r}": _share_of_kv(
            each, trace, offered
        )
        for each in stages
    }
    kv = max(of_kv, key=of_kv.__getitem__)
    limit = f"batch limit of {runtime.batch_limit}"
    shares = {limit: _share_of_limit(deployment, stages, trace, offered), kv: of_kv[kv]}
    return dict(sorted(shares.items(), key=lambda each: -each[1]))


def _share_of_limit(
    deployment: Deployment, stages: list[_Used], trace: Trace, offered: NDArray[np.bool_]
) -> float:
    """Return the requests in a batch, or that run in a pipeline, as a share of the limit."""
    runtime = deployment.runtime
    if runtime.batching is not Batching.STAGE:
        series, nodes = trace.series, stages[0].nodes
        running = (series.n_requests - series.n_waiting)[nodes][:, offered].mean()
        return float(running) / runtime.max_num_seqs
    n_passes = _n_passes(deployment)
    in_batch = [n_passes / n for each in stages for n in each.n_iterations]
    return max(in_batch) / runtime.batch_limit


def _share_of_kv(used: _Used, trace: Trace, offered: NDArray[np.bool_]) -> float:
    """Return the share of the KV cache of a stage that is full.

    Half a request is counted on top of what is reserved: on average so much stays free in a
    cache in which the next request does not fit.
    """
    capacity = trace.kv_capacity_bytes[used.nodes]
    if np.isinf(capacity).any() or not capacity.all():
        return 0.0
    tokens = float((trace.prompt_tokens + trace.output_tokens).mean())
    copies = np.array([gpu.kv_copies for gpu in used.gpus])
    request = tokens * sum(block.kv_bytes_per_token for block in used.stage.blocks) * copies
    held = trace.series.kv_bytes[used.nodes][:, offered].mean(axis=1)
    return float(((held + request / 2) / capacity).mean())
