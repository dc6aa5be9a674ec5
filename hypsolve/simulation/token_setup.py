"""Set-up of the token level: a deployment and a partition as arrays of the kernel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve.dispatch.policies import POLICIES, Choose
from hypsolve.dispatch.schedule import exact_sums
from hypsolve.problem import costs, evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Requests,
)
from hypsolve.problem.evaluation import stage_service_s
from hypsolve.problem.placement import Placement
from hypsolve.problem.runtime import Batching, KvAdmission
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.problem.step_costs import is_three_numbers, step_costs
from hypsolve.simulation.events import Event, EventKind
from hypsolve.simulation.options import Options
from hypsolve.simulation.pipeline_setup import pipeline_state
from hypsolve.simulation.token_layout import Layout, layout_of_tiers

_UNLIMITED = 2**62
Records = NDArray[np.void]


class System:
    """Network, requests and policy as arrays, ready for one simulation.

    Attributes
    ----------
    instance : Instance
        Flow-level instance of the deployment.
    layout : Layout
        Stages of the nodes, and the links to them.
    tiers : list of int
        Tiers that have a stage: the active stages.
    nodes : list of ndarray of int
        Nodes that can hold each active stage, numbered over the whole network.
    first_s : float
        The first arrival. A run counts its times from there.
    all_nodes : list of Node
    expected_s : ndarray, shape (n_requests or 1, n_spans, n_classes)
        Service times of whole requests, as policies see them.
    pipelines : ndarray of int, shape (n_pipelines, n_stages)
        Nodes of each pipeline, -1 behind its last one. Without a placement, there are none
        under the batching mode ``stage``.
    setup, state
        See `hypsolve.kernels.token_level.layout` and, for pipelines,
        `hypsolve.kernels.token_level.pipeline.layout`.
    """

    def __init__(
        self,
        deployment: Deployment,
        partition: Partition | Placement,
        policy: str | Choose | Schedule,
        seed: int,
        options: Options,
        layout: Layout | None = None,
    ) -> None:
        from hypsolve.kernels import token_level as kernel

        self.deployment, self.partition, self.policy = deployment, partition, policy
        self.seed, self.options = seed, options
        self.all_nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
        self.instance = costs.to_instance(deployment, allow_empty=True)
        self.first_s = float(self.instance.arrival_s.min())
        if layout is None:
            schedule = policy if isinstance(policy, Schedule) else None
            evaluation.require_shape(self.instance, partition, schedule)  # type: ignore[arg-type]
            assert isinstance(partition, Partition)
            layout = layout_of_tiers(deployment, self.instance, partition, options.batching)
        self.layout, self.tiers, self.nodes = layout, layout.tiers, layout.nodes
        self.pipelines = layout.pipelines
        self.rng = np.random.default_rng(seed)
        self.expected_s = self._expected_s()
        self.setup = self._setup(kernel)
        in_pipelines = self.forms_batches_of_pipelines
        self.state = pipeline_state(self) if in_pipelines else self._state(kernel)

    @property
    def forms_batches_of_pipelines(self) -> bool:
        """Whether a batch passes a whole pipeline: the kernel is that of pipelines."""
        return self.options.batching is not Batching.STAGE

    def kv_own_tokens(self, request: Any) -> float:
        """Return the KV cache that a request needs, as policies see it."""
        if self.options.kv_admission is KvAdmission.RESERVE:
            tokens = int(request["prompt"] + request["believed"])
            slot = self.deployment.runtime.held_tokens(1)
            return float(-(-tokens // slot) * slot)
        block = self.options.kv_block_tokens
        whole = int(request["prompt"] + request["output"])
        return float(min(-(-int(request["prefill"]) // block) * block, whole))

    def time_of_day_s(self, request: int, now_s: float) -> float:
        """Return the time at which a request asks for a node, as the trace will show it."""
        time_s = self.first_s + now_s
        if self.options.users is not None:
            return time_s
        return max(time_s, float(self.instance.arrival_s[request]))

    def _own_s(self) -> Array:
        """Return the service times of whole requests in each pipeline, as policies see them."""
        kinds, spans = self.instance.node_class, self.layout.node_span
        by_stage = [
            np.where(at >= 0, self.expected_s[:, spans[at], kinds[at]], 0.0)
            for at in self.pipelines.T
        ]
        total_s = np.sum(by_stage, axis=0)
        return exact_sums(total_s, self.instance.n_requests) if total_s.size else total_s

    @property
    def blocks(self) -> list[list[Block]]:
        """Return the blocks of each span."""
        return [list(self.deployment.model.blocks[i:j]) for i, j in self.layout.spans]

    def _expected_s(self) -> Array:
        """Return the service times of whole requests that policies see.

        Shape (n_requests or 1, n_spans, n_classes); one row if all requests are equal.
        """
        instance, n_requests = self.instance, self.instance.n_requests
        if self.options.expected_output_tokens is not None:
            outputs = np.full(n_requests, self.options.expected_output_tokens)
            given = self.deployment.requests
            believed = Requests(given.arrival_s, given.prompt_tokens, outputs)
            instance = costs.to_instance(
                replace(self.deployment, requests=believed, max_resident_tokens=None)
            )
        stages = (stage_service_s(instance, i, j) for i, j in self.layout.spans)
        return np.stack([exact_sums(s, n_requests) for s in stages], axis=1)

    def _prefill_s(self) -> Array:
        """Return the prefill part of `expected_s`, for policies that use remaining work."""
        names = ("least_work_left", "earliest_completion")
        shape = self.expected_s.shape
        if not callable(self.policy) and self.policy not in names:
            return np.zeros((0, *shape[1:]))
        prefill_s = np.zeros(shape)
        gpus = costs.node_classes(self.deployment)
        prompt_tokens = self.deployment.requests.prompt_tokens[: shape[0]]
        for span, blocks in enumerate(self.blocks):
            for c, gpu in enumerate(gpus):
                for block, count in Counter(blocks).items():
                    seconds = costs.service_s(
                        block, gpu, prompt_tokens, 1, self.deployment.cost_model
                    )
                    prefill_s[:, span, c] += count * seconds
        return np.minimum(prefill_s, self.expected_s)

    def _uniforms(self) -> Array:
        """Draw two uniforms per stage and request, for policies that draw."""
        policy = self.policy
        draws = callable(policy) or (policy in POLICIES and POLICIES[policy].draws)
        n_requests = self.instance.n_requests if draws else 0
        return np.stack([self.rng.random((n_requests, 2)) for _ in self.tiers])

    def _assigned(self) -> IntArray:
        """Return the nodes of a replayed schedule, shape (n_requests or 0, n_stages).

        Of pipelines: those that requests are assigned to, shape (n_requests, 1).
        """
        if self.layout.assigned is not None:
            return self.layout.assigned[:, None]
        if not isinstance(self.policy, Schedule):
            return np.zeros((0, len(self.tiers)), np.int64)
        if len(self.pipelines):
            return self._assigned_pipelines(self.policy)
        assigned = np.empty((self.instance.n_requests, len(self.tiers)), np.int64)
        for stage, k in enumerate(self.tiers):
            assigned[:, stage] = self.policy.node[:, k] + self.instance.nodes_of(k).start
            wrong = ~np.isin(assigned[:, stage], self.nodes[stage])
            if wrong.any():
                r = int(np.argmax(wrong))
                raise ValueError(
                    f"simulate: the schedule's node of request {r} on tier"
                    f" {self.instance.tier_names[k]!r} must be one that can hold the stage,"
                    f" got {int(self.policy.node[r, k])}"
                )
        return assigned

    def _assigned_pipelines(self, schedule: Schedule) -> IntArray:
        """Return the pipeline of each request's node on the first tier that is not empty."""
        k = self.tiers[0]
        node = schedule.node[:, k] + self.instance.nodes_of(k).start
        match = node[:, None] == self.pipelines[None, :, 0]
        if not match.any(axis=1).all():
            r = int(np.argmin(match.any(axis=1)))
            raise ValueError(
                f"simulate: the schedule's node of request {r} on tier"
                f" {self.instance.tier_names[k]!r} must belong to a pipeline, got"
                f" {int(schedule.node[r, k])}"
            )
        return np.argmax(match, axis=1)[:, None].astype(np.int64)

    def _code(self, kernel: Any) -> int:
        """Return the number of the policy in the kernel."""
        if isinstance(self.policy, Schedule) or self.layout.assigned is not None:
            return int(kernel.ASSIGNED)
        if callable(self.policy):
            return int(kernel.PYTHON)
        return int(getattr(kernel, POLICIES[self.policy].kernel))

    def _setup(self, kernel: Any) -> Any:
        """Return the inputs of the kernel, which do not change."""
        options, layout = self.options, self.layout
        parts, part_start, windows = parts_of(kernel, self.blocks)
        gpu = to_records(list(map(gpu_record, costs.node_classes(self.deployment))), kernel.GPU)
        self.node_names = [node.name for node in self.all_nodes]
        speed = _pieces(
            self.node_names, np.ones(len(self.node_names)), options.events, EventKind.SLOWDOWN
        )
        rates = np.array([link.bytes_per_s for link in layout.links])
        rate = _pieces(layout.link_names, rates, options.events, EventKind.BANDWIDTH)
        self.speed_start, self.rate_start = speed[2], rate[2]
        order = np.argsort(self.instance.arrival_s, kind="stable")
        n_users = 0 if options.users is None else min(options.users, len(order))
        return kernel.Setup(
            policy=self._code(kernel),
            max_num_seqs=limit_of(options.max_num_seqs),
            max_num_batched_tokens=limit_of(options.max_num_batched_tokens),
            chunk_tokens=limit_of(options.chunk_tokens),
            micro_batch_tokens=limit_of(options.micro_batch_tokens),
            iteration_s=options.iteration_s,
            paged=options.kv_admission is KvAdmission.PAGED,
            kv_block_tokens=limit_of(options.kv_block_tokens),
            slot_tokens=self.deployment.runtime.held_tokens(1),
            n_users=n_users,
            think_time_s=options.think_time_s,
            n_slots=len(self.tiers) if options.batching is Batching.PIPELINE else 1,
            return_s=layout.return_s,
            delivery_s=layout.delivery_s,
            contention=options.link_contention,
            bandwidth_bound=self.deployment.cost_model is CostModel.ROOFLINE,
            record_visits=options.record_visits,
            n_stages=len(self.tiers),
            order=np.arange(len(order)) if options.users is not None else order,
            part=parts,
            part_start=part_start,
            windows=windows,
            gpu=gpu,
            cost=part_costs(kernel, self.blocks, costs.node_classes(self.deployment)),
            hop_first=layout.hop_first,
            hop_end=layout.hop_end,
            eligible=np.concatenate(self.nodes),
            eligible_start=np.append(0, np.cumsum([len(nodes) for nodes in self.nodes])),
            speed_s=speed[0],
            speed=1 / speed[1],
            rate_s=rate[0],
            rate=rate[1],
            churn=self._churn(kernel),
            expected_s=self.expected_s,
            prefill_s=self._prefill_s(),
            uniforms=self._uniforms(),
            assigned=self._assigned(),
            member=self.pipelines,
            own_s=self._own_s(),
        )

    def _churn(self, kernel: Any) -> Records:
        """Return the failures, recoveries and joins, sorted by time."""
        kinds = {
            EventKind.FAILURE: kernel.FAILURE,
            EventKind.RECOVERY: kernel.RECOVERY,
            EventKind.JOIN: kernel.RECOVERY,
        }
        number = {name: n for n, name in enumerate(self.node_names)}
        rows = [
            (event.at_s, kinds[event.kind], number[event.target])
            for event in self.options.events
            if event.kind in kinds
        ]
        return to_records(rows, kernel.CHURNED)

    def _state(self, kernel: Any) -> Any:
        """Return the variables of the kernel at the start."""
        n_requests, n_nodes = self.instance.n_requests, self.instance.n_nodes
        n_stages, given = len(self.tiers), self.deployment.requests
        requests = kernel.records(n_requests, kernel.REQUEST)
        requests["prompt"] = requests["prefill"] = given.prompt_tokens
        requests["output"] = requests["believed"] = given.output_tokens
        if self.options.expected_output_tokens is not None:
            requests["believed"] = self.options.expected_output_tokens
        requests["rank"][self.setup.order] = np.arange(n_requests)
        requests["next"] = requests["pipe"] = kernel.NIL
        requests["first_token_s"] = requests["end_s"] = math.nan
        places = kernel.records(n_requests * n_stages, kernel.PLACE)
        places["node"] = kernel.NIL
        places["reached_s"] = places["admitted_s"] = places["left_s"] = math.nan
        clock, counts, arrival_s = self.start(kernel)
        return kernel.State(
            requests=requests,
            places=places,
            nodes=self._nodes(kernel, float(clock[kernel.ORIGIN])),
            pipes=self._routes(kernel),
            links=self.links(kernel),
            stranded=np.full(n_stages, kernel.NIL),
            n_stranded=np.zeros(n_stages, np.int64),
            stranded_seen_s=np.full(n_stages, clock[kernel.ORIGIN]),
            dispatched=np.zeros(n_stages, np.int64),
            touched=np.zeros(n_nodes, np.int64),
            gone=np.zeros(n_requests, np.bool_),
            sums=np.zeros((len(self.setup.windows), 3)),
            bins=np.zeros((kernel.N_ROWS, n_nodes + n_stages, kernel.N_BINS)),
            counts=counts,
            clock=clock,
            arrival_s=arrival_s,
        )

    def links(self, kernel: Any) -> Records:
        """Return the records of the links at the start."""
        layout = self.layout
        links = kernel.records(len(layout.links), kernel.LINK)
        for k, (link, cut) in enumerate(zip(layout.links, layout.link_cuts, strict=True)):
            links[k]["latency_s"] = link.latency_s
            links[k]["token_bytes"] = self._token_bytes(cut)
        links["rate_at"], links["rate_end"] = self.rate_start[:-1], self.rate_start[1:]
        return links

    def start(self, kernel: Any) -> tuple[Array, IntArray, Array]:
        """Return the clock, the counts and the arrivals at the start.

        All times of a run count from the first arrival. With users, the first request of each
        arrives at one of the earliest arrival times, and the arrivals of the others are not yet
        known: nan.
        """
        arrival_s = np.array(self.instance.release_s)
        n_sent = len(arrival_s)
        if self.options.users is not None:
            n_sent = min(self.options.users, n_sent)
            arrival_s = np.sort(arrival_s)
            arrival_s[n_sent:] = math.nan
        width_s = max(float(np.ptp(arrival_s[:n_sent])) / 128, 1e-6)
        clock = np.array([0.0, 0.0, width_s, 0.0])
        counts = np.zeros(kernel.N_COUNTS, np.int64)
        counts[kernel.CHOICE], counts[kernel.N_SENT] = kernel.NIL, n_sent
        return clock, counts, arrival_s

    def _token_bytes(self, cut: int) -> float:
        """Return the bytes per token that cross a link after `cut` blocks."""
        model = self.deployment.model
        if cut == 0:
            return float(model.input_bytes_per_token)
        return float(model.blocks[cut - 1].output_bytes_per_token)

    def is_up(self) -> list[bool]:
        """Return which nodes are up at the start; the others join later."""
        joining = {e.target for e in self.options.events if e.kind is EventKind.JOIN}
        return [name not in joining for name in self.node_names]

    def _nodes(self, kernel: Any, origin_s: float) -> Records:
        """Return the records of the nodes at the start."""
        nodes = kernel.records(self.instance.n_nodes, kernel.NODE)
        nodes["stage"] = kernel.NIL
        nodes["kind"] = self.instance.node_class
        nodes["up"] = self.is_up()
        heads = [name for name in nodes.dtype.names if name.endswith(("_head", "_tail"))]
        for field in (*heads, "decode_mark", "batch_decode", "batch_prefill"):
            nodes[field] = kernel.NIL
        nodes["slowdown"] = 1.0
        nodes["seen_s"] = origin_s
        nodes["speed_at"], nodes["speed_end"] = self.speed_start[:-1], self.speed_start[1:]
        blocks = self.blocks
        for stage, at_tier in enumerate(self.nodes):
            for n in at_tier:
                span = int(self.layout.node_span[n])
                nodes[n]["stage"], nodes[n]["span"] = stage, span
                nodes[n]["is_last"] = self.layout.is_last(stage, int(n))
                nodes[n]["capacity"] = self.capacity_tokens(blocks[span], n)
        for p, members in enumerate(self.pipelines):
            nodes["pipe"][members[members >= 0]] = p
        return nodes

    def _routes(self, kernel: Any) -> Records:
        """Return the records of the pipelines of a placement whose nodes form batches."""
        routes: Records = kernel.records(len(self.pipelines), kernel.ROUTE)
        routes["n_stages"] = self.layout.n_stages
        return routes

    def capacity_tokens(self, blocks: list[Block], n: int) -> int:
        """Return the KV tokens that fit on a node beside the weights of these blocks."""
        node = self.all_nodes[n]
        kv_bytes = self.deployment.kv_bytes_per_token(blocks, node)
        if kv_bytes == 0:
            return _UNLIMITED
        weights = self.deployment.model.stage_weight_bytes(blocks)
        tokens = (self.deployment.usable_bytes(node) - weights) // kv_bytes
        # rounding must not keep the longest request from a node that can hold it
        longest = self.deployment.max_resident_tokens or 0
        return int(min(max(tokens, longest), _UNLIMITED))


def limit_of(number: int | None) -> int:
    """Return a limit for a kernel."""
    return _UNLIMITED if number is None else min(number, _UNLIMITED)


def gpu_record(gpu: GpuProfile) -> tuple[float, ...]:
    """Return the record of a profile in the kernel."""
    rates = (gpu.t0_s, gpu.flops_per_s, gpu.bytes_per_s, gpu.kv_copies)
    is_linear = int(not is_three_numbers(gpu))
    if gpu.all_reduce is None:
        return (*rates, 0, 0.0, 0.0, 0.0, 0.0, 0.0, is_linear)
    lines = gpu.all_reduce
    small, large = lines.small_s_per_byte, lines.large_s_per_byte
    return (
        *(*rates, 1, lines.switch_bytes, lines.small_s, small, lines.large_s, large),
        is_linear,
    )


def part_costs(kernel: Any, stages: list[list[Block]], gpus: Sequence[GpuProfile]) -> Records:
    """Return the coefficients of each part on each class, in the order of `parts_of`."""
    parts = [block for blocks in stages for block in Counter(blocks)]
    cost: Records = kernel.records((len(gpus), len(parts)), kernel.COST)
    for c, gpu in enumerate(gpus):
        for at, block in enumerate(parts):
            if not is_three_numbers(gpu):
                cost[c, at] = tuple(step_costs(block, gpu))
    return cost


def parts_of(kernel: Any, stages: list[list[Block]]) -> tuple[Records, IntArray, Array]:
    """Return the blocks by stage and kind, where each stage starts, and attention windows."""
    windows = list(dict.fromkeys(b.window_tokens for blocks in stages for b in blocks))
    rows, starts = [], [0]
    for blocks in stages:
        for block, count in Counter(blocks).items():
            idle = 1 - block.experts_per_token / block.n_experts if block.n_experts else 0.0
            rows.append(
                (
                    count,
                    block.flops_per_token,
                    block.attention_flops_per_pair,
                    block.always_read_bytes,
                    block.gathered_bytes_per_token,
                    block.expert_bytes * block.n_experts,
                    idle,
                    block.kv_bytes_per_token,
                    block.activation_bytes_per_token,
                    windows.index(block.window_tokens),
                    block.last_token_only,
                    block.collectives,
                    block.collective_bytes_per_token,
                )
            )
        starts.append(len(rows))
    limits = np.array([math.inf if w is None else float(w) for w in windows])
    return to_records(rows, kernel.PART), np.array(starts), limits


def _pieces(
    names: list[str], values: Array, events: tuple[Event, ...], kind: EventKind
) -> tuple[Array, Array, IntArray]:
    """Return piecewise constant values: begins, values, and the first piece of each name."""
    changes: dict[str, list[Event]] = {name: [] for name in names}
    for event in events:
        if event.kind is kind:
            changes[event.target].append(event)
    from_s: list[float] = []
    value: list[float] = []
    starts = [0]
    for name, normal in zip(names, values, strict=True):
        from_s += [-math.inf, *(event.at_s for event in changes[name])]
        value += [normal, *(normal * event.factor for event in changes[name])]
        starts.append(len(from_s))
    return np.array(from_s), np.array(value), np.array(starts)


def to_records(rows: Sequence[tuple[float, ...]], dtype: Any) -> Records:
    """Return records whose fields are attributes, which kernels without the JIT need."""
    return np.array(rows, dtype).view(np.recarray)
