"""Small random deployments with every option of the token-level simulator."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hypsolve.dispatch.policies import POLICIES
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Requests,
    Tier,
)
from hypsolve.problem.evaluation import can_hold
from hypsolve.problem.interconnect import AllReduce, Interconnect
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.solution import Partition, Schedule
from hypsolve.simulation.events import Event

REPLAY = "replay"
SEE_MOST = ("hypsched_rt", "least_work_left", "earliest_completion")
KINDS = (*sorted(POLICIES), REPLAY, *SEE_MOST)  # of policies, each seed has its turn


@dataclass
class Scenario:
    """Arguments of `simulate`."""

    deployment: Deployment
    partition: Partition
    policy: str | Schedule
    options: dict[str, Any]

    def run(self, simulate: Callable[..., Any], **more: Any) -> Any:
        return simulate(self.deployment, self.partition, self.policy, **self.options, **more)


def from_the_first_arrival(scenario: Scenario) -> Scenario:
    """Count the times of a scenario from its first arrival: its trace rounds none of them."""
    requests = scenario.deployment.requests
    first_s = float(requests.arrival_s.min())
    since = replace(requests, arrival_s=requests.arrival_s - first_s)
    events = [
        replace(event, at_s=max(event.at_s - first_s, 0.0))
        for event in scenario.options.get("events", ())
    ]
    return replace(
        scenario,
        deployment=replace(scenario.deployment, requests=since),
        options={**scenario.options, "events": events},
    )


@dataclass
class Draw:
    """Any numbers, which never coincide; or round ones: multiples of a power of two, so that
    sums are exact and things happen at the same moment all the time."""

    rng: np.random.Generator
    is_round: bool

    def number(self, low: float, high: float, grid: float) -> float:
        if not self.is_round:
            return float(self.rng.uniform(low, high))
        first, last = math.ceil(low / grid), math.floor(high / grid)
        return grid * float(self.rng.integers(first, last + 1))

    def whole(self, low: float, high: float, grid: int) -> int:
        return int(self.number(low, high, grid))

    def rate(self, low: float, high: float) -> float:
        """Draw evenly on a logarithmic scale; a power of two if round."""
        power = self.rng.uniform(math.log2(low), math.log2(high))
        return 2.0 ** (round(power) if self.is_round else power)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def random_model(draw: Draw) -> Model:
    rng = draw.rng
    hidden = draw.whole(250, 2000, 2**8)
    weight = draw.whole(2**18, 2**20, 2**18)
    embedding = Block(
        kind="embedding",
        weight_bytes=weight,
        gathered_bytes_per_token=draw.whole(0, 2**18, 2**18),
        output_bytes_per_token=hidden,
        flops_per_token=0.0 if draw.chance(0.7) else draw.number(0, 2**19, 2**19),
    )
    kinds = []
    for i in range(rng.integers(1, 3)):
        n_experts = 4 if draw.chance(0.3) and not draw.is_round else 0
        kinds.append(
            Block(
                kind=f"layer{i}",
                weight_bytes=weight,
                always_read_bytes=weight // (4 if n_experts else 1),
                expert_bytes=weight // 8 if n_experts else 0,
                n_experts=n_experts,
                experts_per_token=2 if n_experts else 0,
                kv_bytes_per_token=draw.whole(500, 2**15, 2**15),
                activation_bytes_per_token=draw.whole(0, 2**15, 2**15),
                output_bytes_per_token=hidden + draw.whole(0, 300, 2**8),
                flops_per_token=draw.number(2**17, 2**21, 2**19),
                attention_flops_per_pair=draw.number(0, 2**15, 2**15),
                window_tokens=int(rng.integers(1, 30)) if draw.chance(0.5) else None,
            )
        )
    layers = [kinds[i] for i in rng.integers(0, len(kinds), rng.integers(1, 6))]
    head = Block(
        kind="head",
        weight_bytes=weight,
        always_read_bytes=weight,
        output_bytes_per_token=4,
        flops_per_token=2.0 * weight,
        last_token_only=draw.chance(0.8),
    )
    return Model(
        name="tiny",
        blocks=(embedding, *layers, head),
        input_bytes_per_token=int(rng.choice([0, 4, 2**8])),
        tied_bytes=int(rng.choice([0, weight])),
    )


def random_requests(draw: Draw, n: int) -> Requests:
    rng = draw.rng
    arrival_s = rng.exponential(rng.choice([1e-4, 3e-3, 0.03]), n).cumsum()
    if draw.is_round:
        arrival_s = np.rint(arrival_s * 2**10) / 2**10
    if draw.chance(0.5):  # bursts
        arrival_s = arrival_s[rng.integers(0, n, n)]
    if draw.chance(0.3):
        arrival_s[: n // 2] = 0.0
    prompt, output = rng.integers(1, 60, n), rng.integers(1, rng.choice([3, 13]), n)
    if draw.is_round:  # shares of them that are exact
        prompt, output = 2 ** rng.integers(0, 6, n), rng.choice([1, 2, 3, 5, 9], n)
    if draw.chance(0.3 if draw.is_round else 0.1):
        prompt[:], output[:] = prompt[0], output[0]
    return Requests(arrival_s, prompt, output)


def random_network(draw: Draw, model: Model, partition: Partition, resident: int) -> Network:
    """Draw a partition; every stage fits on at least one node of its tier."""
    rng = draw.rng
    gpus = [
        GpuProfile(
            name=f"gpu{i}",
            t0_s=draw.number(0, 2**-11, 2**-12),
            flops_per_s=draw.rate(2**28, 2**31),
            bytes_per_s=draw.rate(2**28, 2**31),
            memory_bytes=1e12,
        )
        for i in range(rng.integers(1, 4))
    ]
    tight = draw.chance(0.5)
    tiers = []
    for k in range(partition.n_tiers):
        stage = [model.blocks[b] for b in partition.stage(k)]
        weights = sum(block.weight_bytes for block in stage)
        kv_bytes = sum(block.kv_bytes_per_token for block in stage)
        n_nodes = int(rng.integers(1, 4))
        sure = int(rng.integers(n_nodes))
        nodes = []
        for i in range(n_nodes):
            room = resident * (rng.uniform(1, 3) if tight else 1e3)
            if i != sure and draw.chance(0.1):
                room = -1.0  # cannot hold the stage
            memory_bytes = max(weights + kv_bytes * room, 1.0)
            gpu = gpus[rng.integers(len(gpus))]
            nodes.append(Node(name=f"n{k}{i}", gpu=gpu, memory_bytes=memory_bytes))
        latencies_s = [draw.number(0, 2**-8, 2**-11), draw.number(0, 2**-8, 2**-11)]
        link = Link(
            bytes_per_s=draw.rate(2**17, 2**22),
            latency_s=latencies_s[0] if draw.chance(0.7) else 0.0,
            return_latency_s=[None, 0.0, latencies_s[1]][rng.integers(3)],
        )
        last = k == partition.n_tiers - 1
        tiers.append(Tier(name=f"t{k}", nodes=tuple(nodes), link=None if last else link))
    return Network(name="random", tiers=tuple(tiers))


def in_groups(seed: int, scenario: Scenario) -> Scenario:
    """Make groups of GPUs of some nodes, which hold the stages that they held before."""
    draw = Draw(np.random.default_rng([seed, 3]), is_round=seed % 2 == 1)
    deployment, rng = scenario.deployment, draw.rng
    blocks = {
        block: replace(
            block,
            collectives=int(rng.integers(0, 3)),
            collective_bytes_per_token=draw.whole(0, 2**12, 2**8),
        )
        for block in dict.fromkeys(deployment.model.blocks)
    }
    model = replace(
        deployment.model,
        blocks=tuple(blocks[block] for block in deployment.model.blocks),
        n_heads=8,
        n_kv_heads=int(rng.choice([1, 2, 4, 8])),
    )
    interconnect = Interconnect(
        name="links",
        all_reduces=tuple(
            AllReduce(
                library=library,
                degree=degree,
                switch_bytes=draw.whole(0, 2**14, 2**10),
                small_s=draw.number(0, 2**-9, 2**-13),
                small_s_per_byte=1 / draw.rate(2**22, 2**25),
                large_s=draw.number(0, 2**-9, 2**-13),
                large_s_per_byte=1 / draw.rate(2**22, 2**25),
            )
            for library in ("nccl", "vllm")
            for degree in (2, 4)
        ),
    )
    instance = to_instance(deployment, allow_empty=True)
    tiers = []
    for k, tier in enumerate(deployment.network.tiers):
        holds = can_hold(instance, k, *scenario.partition.cuts[k : k + 2])
        nodes = []
        for node, is_holder in zip(tier.nodes, holds, strict=True):
            n = int(rng.choice([1, 2, 4]))
            copies = max(n // model.n_kv_heads, 1) if is_holder else 1
            assert node.memory_bytes is not None
            group = {"gpus": n, "tensor_parallel": n, "interconnect": interconnect}
            memory_bytes = node.memory_bytes * copies / n
            nodes.append(replace(node, memory_bytes=memory_bytes, **(group if n > 1 else {})))
        tiers.append(replace(tier, nodes=tuple(nodes)))
    network = replace(deployment.network, tiers=tuple(tiers))
    deployment = replace(deployment, model=model, network=network)
    return replace(scenario, deployment=deployment)


def random_schedule(
    rng: np.random.Generator,
    deployment: Deployment,
    partition: Partition,
    *,
    in_pipelines: bool = False,
) -> Schedule:
    """Draw a schedule: any node that can hold the stage; its times are not used.

    In pipelines, the i-th node of a stage has a place only if every stage has so many.
    """
    instance = to_instance(deployment, allow_empty=True)
    node = np.full((len(deployment.requests), partition.n_tiers), -1)
    holders = {
        k: np.flatnonzero(can_hold(instance, k, *partition.cuts[k : k + 2]))
        for k in range(partition.n_tiers)
        if partition.stage(k)
    }
    n_pipelines = min(len(holds) for holds in holders.values())
    for k, holds in holders.items():
        choices = holds[:n_pipelines] if in_pipelines else holds
        node[:, k] = rng.choice(choices, len(node))
    nothing = np.full(node.shape, np.nan)
    return Schedule(node, nothing, nothing)


def random_events(draw: Draw, deployment: Deployment, calm: Any) -> tuple[Event, ...]:
    """Draw events within the run; some fall on a moment of `calm`, the run without events."""
    rng, tiers = draw.rng, deployment.network.tiers
    horizon_s = 1.2 * float(calm.end_s.max())
    moments_s = calm.arrival_s
    if draw.is_round:  # others are not the same to the last digit in every simulator
        some = calm.reached_s[~np.isnan(calm.reached_s)]
        moments_s = np.concatenate([moments_s, calm.first_token_s, calm.end_s, some])

    def moment(after_s: float = 0.0) -> float:
        some_s = float(rng.choice(moments_s))
        if draw.chance(0.4 if draw.is_round else 0.2) and some_s > after_s:
            return some_s
        at_s = after_s + float(rng.random() ** 2) * max(horizon_s - after_s, 1e-3)
        return math.ceil(at_s * 2**11) / 2**11 if draw.is_round else at_s

    def factor(low: float, high: float) -> float:
        return draw.rate(low, high) if draw.chance(0.7) else 1.0

    events = []
    for tier in tiers[:-1]:
        for _ in range(rng.integers(0, 3)):
            events.append(Event(moment(), "bandwidth", tier.name, factor(1 / 32, 8)))
    for node in (node for tier in tiers for node in tier.nodes):
        for _ in range(rng.integers(0, 3)):
            events.append(Event(moment(), "slowdown", node.name, factor(1 / 4, 8)))
        at_s = 0.0
        if draw.chance(0.15):
            at_s = moment()
            events.append(Event(at_s, "join", node.name))
        while draw.chance(0.35):
            at_s = moment(at_s)
            events.append(Event(at_s, "failure", node.name))
            if draw.chance(0.15):
                break  # for good
            if draw.chance(0.8):
                at_s = moment(at_s)
            events.append(Event(at_s, "recovery", node.name))
    return tuple(events)


def random_mode(draw: Draw, batchings: tuple[str, ...]) -> dict[str, Any]:
    """Draw the options that came with the batching modes."""
    rng = draw.rng
    options: dict[str, Any] = {"batching": batchings[rng.integers(len(batchings))]}
    if draw.chance(0.6):
        options["max_num_batched_tokens"] = int(rng.choice([2, 5, 16, 40]))
    if options["batching"] == "serial" and draw.chance(0.7):
        options["micro_batch_tokens"] = int(rng.choice([1, 3, 8, 16]))
    if draw.chance(0.6):
        options["kv_admission"] = "paged"
        options["kv_block_tokens"] = int(rng.choice([1, 2, 8, 16]))
    if draw.chance(0.4):
        options["iteration_s"] = draw.number(2**-11, 2**-8, 2**-11)
    if draw.chance(0.4):
        options["users"] = int(rng.integers(1, 12))
        options["think_time_s"] = draw.number(0, 2**-6, 2**-8) if draw.chance(0.5) else 0.0
    return options


def random_scenario(
    seed: int, simulate: Callable[..., Any], batchings: tuple[str, ...] = ()
) -> Scenario:
    """Draw all options; `simulate` runs once to find the length of the run without events.

    With `batchings`, the options that came with the batching modes are drawn, too.
    """
    rng = np.random.default_rng(seed)
    draw = Draw(rng, is_round=seed % 2 == 1)
    model = random_model(draw)
    n_tiers = int(rng.integers(1, 5))
    cuts = np.sort(rng.integers(0, model.n_blocks + 1, n_tiers - 1)).tolist()
    partition = Partition((0, *cuts, model.n_blocks))
    requests = random_requests(draw, int(rng.integers(1, 26)))
    if batchings and seed % 5 < 3:  # KV cache that grows while tokens are decoded
        outputs = np.minimum(requests.prompt_tokens, 30)
        requests = Requests(requests.arrival_s, requests.output_tokens, outputs)
    slot_tokens = int(np.random.default_rng([seed, 1]).choice([1, 1, 3, 8]))
    runtime = Runtime(name="random", slot_tokens=slot_tokens if batchings else 1)
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    longest = runtime.held_tokens(longest)
    deployment = Deployment(
        model=model,
        network=random_network(draw, model, partition, longest),
        requests=requests,
        runtime=runtime,
        cost_model=CostModel.FLOPS if draw.chance(0.25) else CostModel.ROOFLINE,
    )
    kind = KINDS[seed // 2 % len(KINDS)]
    chunk_tokens = int(2 ** rng.integers(0, 5) if draw.is_round else rng.integers(1, 40))
    options = {
        "seed": int(rng.integers(1000)),
        "max_num_seqs": int(rng.integers(1, 9)),
        "chunk_tokens": None if draw.chance(0.3) else chunk_tokens,
        "link_contention": draw.chance(0.5),
    }
    beliefs = np.random.default_rng([seed, 1])  # apart: what else is drawn stays as it was
    if beliefs.random() < 0.4:
        options["expected_output_tokens"] = int(beliefs.integers(1, 15))
    if batchings:
        modes = Draw(np.random.default_rng([seed, 2]), is_round=draw.is_round)
        options |= random_mode(modes, batchings)
    in_pipelines = options.get("batching", "stage") != "stage"
    policy = kind
    if kind == REPLAY:
        policy = random_schedule(rng, deployment, partition, in_pipelines=in_pipelines)
    scenario = Scenario(deployment, partition, policy, options)
    if draw.is_round:
        scenario = with_a_latecomer(draw, scenario, scenario.run(simulate))
    if draw.chance(0.75):
        events = random_events(draw, scenario.deployment, scenario.run(simulate))
        scenario = replace(scenario, options={**options, "events": events})
    return scenario


def with_a_latecomer(draw: Draw, scenario: Scenario, calm: Any) -> Scenario:
    """Let the last request arrive at the moment of another one's first token or end."""
    requests = scenario.deployment.requests
    last = len(requests) - 1
    arrival_s = requests.arrival_s.copy()
    arrival_s[last] = draw.rng.choice(np.concatenate([calm.first_token_s, calm.end_s]))
    requests = Requests(arrival_s, requests.prompt_tokens, requests.output_tokens)
    return replace(scenario, deployment=replace(scenario.deployment, requests=requests))
