"""The batching modes `pipeline` and `serial` as SimPy processes, the judge of `simulate`.

Written from the docstring of `hypsolve.simulation.simulate`; it shares the parts of
`simpy_parts` and the policies of `simpy_router` with the model of the mode `stage`.
"""

import bisect
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import simpy

from hypsolve.problem.costs import to_instance
from hypsolve.problem.evaluation import can_hold
from tests.helpers.operator_costs import request_s
from tests.helpers.simpy_parts import (
    DEFAULTS,
    Answer,
    Cards,
    Link,
    Phase,
    alone_s,
    empty_answer,
    iteration_s,
    later,
    round_to_sum_exactly,
)
from tests.helpers.simpy_router import Router


@dataclass(eq=False)
class Request:
    """A request, and its progress in the current attempt."""

    request: int
    rank: int
    prompt: int
    output: int
    n_stages: int
    delivered: int = 0
    version: int = 0  # a restart or preemption raises it
    in_flight: int = 0  # batches
    pipeline: object = None
    stranded_s: float = math.nan

    def __post_init__(self):
        self.begin_again()

    def begin_again(self):
        self.version += 1
        self.prompt_tokens = self.prompt + self.delivered
        self.taken_tokens = self.held_tokens = 0
        self.started = [0] * self.n_stages
        self.ended = [0] * self.n_stages

    @property
    def attempt(self):  # as routers call it
        return self

    @property
    def total_tokens(self):
        return self.prompt + self.output - 1

    def __lt__(self, other):
        return self.rank < other.rank


@dataclass
class Share:
    """Share of a request in a batch, or in a part of one."""

    request: Request
    version: int
    tokens: int
    cached_tokens: int
    prompt_tokens: int

    @property
    def is_void(self):
        return self.version != self.request.version

    @property
    def ends_pass(self):
        return self.cached_tokens + self.tokens >= self.prompt_tokens


@dataclass(eq=False)
class Batch:
    shares: list
    parts: list = field(default_factory=list)
    is_lost: bool = False

    def cut(self, size):
        """Cut it into parts of `size` tokens."""
        part, room = [], size
        for share in self.shares:
            at = 0
            while at < share.tokens:
                taken = min(share.tokens - at, room)
                cached = share.cached_tokens + at
                part.append(
                    Share(share.request, share.version, taken, cached, share.prompt_tokens)
                )
                at, room = at + taken, room - taken
                if room == 0:
                    self.parts.append(part)
                    part, room = [], size
        if part:
            self.parts.append(part)


class Level:
    """A quantity of a node over time, noted as intervals."""

    def __init__(self, system, what, index):
        self.system, self.what, self.index = system, what, index
        self.value, self.since_s = 0, 0.0

    def set(self, value, end_s=None):
        now_s = self.system.env.now if end_s is None else end_s
        if self.value and now_s > self.since_s:
            row = self.index, self.since_s, now_s, self.value
            self.system.answer.intervals[self.what].append(row)
        self.value, self.since_s = value, self.system.env.now

    def add(self, change):
        self.set(self.value + change)


class Node:
    """Node that computes parts of batches in turn."""

    def __init__(self, system, index, tier, position, spec, up):
        self.system, self.env, self.answer = system, system.env, system.answer
        self.index, self.tier, self.position = index, tier, position
        self.cards, self.up = Cards(spec, system.deployment), up
        self.gpu = system.deployment.profile(spec)  # its key among the expected times
        self.factor, self.ratio = 1.0, 1.0
        self.pipeline = self.stage = self.running = None
        self.levels = {
            what: Level(system, what, index)
            for what in ("busy", "n_requests", "n_waiting", "kv_bytes")
        }
        self.empty()

    def empty(self):
        self.parts = []
        self.last_message = None
        self.running = None

    def capacity_tokens(self):
        if not self.stage.kv_bytes:
            return math.inf
        return self.cards.tokens(self.stage.weight_bytes, self.stage.kv_bytes)

    def start(self):
        """Start the next part, if there is one and nothing is running."""
        if self.running is None and self.parts:
            batch, part = self.parts.pop(0)
            for share in part:
                if not share.is_void:
                    share.request.started[self.stage.number] += share.tokens
            nominal_s = iteration_s(
                self.stage.blocks, part, self.cards, self.system.deployment.cost_model
            )
            self.running = (self.env.now, nominal_s)
            self.levels["busy"].set(1)
            self.process = self.env.process(self.compute(batch, part))

    def compute(self, batch, part):
        start_s, nominal_s = self.running
        left_s = nominal_s
        while True:
            since_s, factor = self.env.now, self.factor
            try:
                yield later(self.env, Phase.ITERATION_ENDS, left_s * factor, self.index)
                break
            except simpy.Interrupt as interrupt:
                if interrupt.cause == "failure":
                    return
                left_s = max(0.0, left_s - (self.env.now - since_s) / factor)
        if batch.is_lost:  # a failure in this instant has been faster
            return
        self.stop(start_s)
        self.answer.n_iterations[self.index] += 1
        if nominal_s > 0:
            self.ratio = 0.8 * self.ratio + 0.2 * (self.env.now - start_s) / nominal_s
        for share in part:
            self.count(share, start_s)
        self.pipeline.send_onward(self, batch, part)
        self.pipeline.touch()

    def stop(self, start_s):
        self.running = None
        self.answer.busy_s[self.index] += self.env.now - start_s
        self.levels["busy"].set(0)

    def count(self, share, start_s):
        answer, request = self.answer, share.request
        if share.is_void:
            answer.seen["computed for a preempted request"] += 1
            return
        row = (request.request, self.index, start_s, self.env.now)
        answer.visits.append((*row, share.tokens, share.cached_tokens))
        answer.n_visits += 1
        answer.n_tokens[self.index] += share.tokens
        number = self.stage.number
        request.ended[number] += share.tokens
        if request.ended[number] == request.total_tokens:
            answer.left_s[request.request, self.tier] = self.env.now
            self.levels["n_requests"].add(-1)
            if number == len(self.pipeline.nodes) - 1:
                self.pipeline.leave(request)

    def set_factor(self, factor):
        self.factor = factor
        if self.running:
            self.answer.seen["slowdown in an iteration"] += 1
            self.process.interrupt("slowdown")

    def fail(self):
        self.up = False
        if self.pipeline and sum(not node.up for node in self.pipeline.nodes) == 1:
            self.pipeline.fail()

    def come_up(self):
        self.up, self.ratio = True, 1.0
        if self.pipeline and self.pipeline.up:
            self.system.router.call()

    def close(self):
        if self.stage:
            kv_bytes = self.cards.kv_bytes(self.stage.kv_bytes)
            room = self.capacity_tokens() * kv_bytes if kv_bytes else math.inf
            self.answer.kv_capacity_bytes[self.index] = room
        for level in self.levels.values():
            level.set(0, math.inf)


class Pipeline:
    """A node of each stage, and a scheduler."""

    def __init__(self, system, number, nodes):
        self.system, self.env, self.answer = system, system.env, system.answer
        self.number, self.nodes, self.position = number, nodes, nodes[0].position
        self.capacity_tokens = min(node.capacity_tokens() for node in nodes)
        self.empty()

    def empty(self):
        self.waiting, self.running, self.unfinished, self.batches = [], [], {}, []
        self.is_preparing = False

    @property
    def delivery_s(self):
        return self.system.delivery_s

    # what policies see

    @property
    def up(self):
        return all(node.up for node in self.nodes)

    @property
    def outstanding_s(self):
        return sum(self.unfinished.values())

    @property
    def ratio(self):
        return max(node.ratio for node in self.nodes)

    @property
    def free_tokens(self):
        return self.capacity_tokens - sum(each.held_tokens for each in self.running)

    @property
    def unclaimed_tokens(self):
        claims = (self.kv_tokens(each, each.prompt_tokens) for each in self.waiting)
        return self.free_tokens - sum(claims)

    # requests

    def kv_tokens(self, request, n_tokens):
        whole = request.prompt + request.output
        if not self.system.paged:
            return math.ceil(whole / self.system.slot_tokens) * self.system.slot_tokens
        block = self.system.kv_block_tokens
        return min(math.ceil(n_tokens / block) * block, whole)

    def pin(self, request, expected_s):
        request.pipeline, request.stranded_s = self, math.nan
        self.unfinished[request] = expected_s
        bisect.insort(self.waiting, request)
        for node in self.nodes:
            self.answer.node[request.request, node.tier] = node.position
            node.levels["n_requests"].add(1)
        self.note()
        self.touch()

    def note(self):
        held = sum(each.held_tokens for each in self.running)
        for node in self.nodes:
            node.levels["n_waiting"].set(len(self.waiting))
            node.levels["kv_bytes"].set(held * node.cards.kv_bytes(node.stage.kv_bytes))

    def leave(self, request):
        del self.unfinished[request]

    def forget(self, request):
        """Forget the progress of a request."""
        r, answer = request.request, self.answer
        answer.lost_tokens[r] += sum(request.ended)
        answer.admitted_s[r] = answer.left_s[r] = math.nan
        request.begin_again()

    def preempt(self, request):
        self.answer.preemptions[request.request] += 1
        self.answer.seen["preempted"] += 1
        self.answer.seen["preempted in flight"] += request.in_flight > 0
        for number, node in enumerate(self.nodes):
            if request.ended[number] == request.total_tokens:
                node.levels["n_requests"].add(1)
        self.unfinished[request] = self.system.router.expected_s(self, request)
        self.running.remove(request)
        self.forget(request)
        bisect.insort(self.waiting, request)

    # batches

    def touch(self):
        self.system.touch(self)

    def act(self):
        """Form batches and start nodes, at the end of an instant."""
        while (
            self.up
            and not self.is_preparing
            and len(self.batches) < self.system.max_in_flight(self)
        ):
            batch, preempted = self.form()
            self.note()
            if batch.shares:
                self.launch(batch)
            elif not preempted:
                break
        for node in self.nodes:
            node.start()

    def form(self):
        system, seen = self.system, self.answer.seen
        batch, preempted = Batch([]), False
        room = system.max_num_batched_tokens
        for request in list(self.running):
            decodes = request.taken_tokens >= request.prompt_tokens
            if request not in self.running or request.in_flight or not decodes:
                continue
            if room == 0:
                break
            needs = self.kv_tokens(request, request.taken_tokens + 1) - request.held_tokens
            while request in self.running and needs > self.free_tokens:
                self.preempt(self.running[-1])
                preempted = True
            if request in self.running:
                request.held_tokens += needs
                self.take(batch, request, 1)
                room -= 1
        room = min(room, system.chunk_tokens)
        for request in self.running:
            left = request.prompt_tokens - request.taken_tokens
            if left > 0 and room > 0:
                seen["chunks of one prompt in flight"] += request.in_flight > 0
                seen["chunk cut"] += left > room
                self.take(batch, request, min(left, room))
                room -= batch.shares[-1].tokens
        while self.waiting and room > 0 and not preempted:
            request = self.waiting[0]
            needs = self.kv_tokens(request, request.prompt_tokens)
            if len(self.running) >= system.max_num_seqs:
                seen["all seats taken"] += 1
                break
            if request.in_flight or needs > self.free_tokens:
                seen["head still in flight"] += request.in_flight > 0
                seen["waited for KV memory"] += 1
                break
            self.waiting.remove(request)
            bisect.insort(self.running, request)
            request.held_tokens = needs
            for node in self.nodes:
                self.answer.admitted_s[request.request, node.tier] = self.env.now
            seen["chunk cut"] += request.prompt_tokens > room
            self.take(batch, request, min(request.prompt_tokens, room))
            room -= batch.shares[-1].tokens
        seen["preempting batch without tokens"] += preempted and not batch.shares
        return batch, preempted

    def take(self, batch, request, tokens):
        row = request, request.version, tokens, request.taken_tokens, request.prompt_tokens
        batch.shares.append(Share(*row))
        request.taken_tokens += tokens
        request.in_flight += 1

    def launch(self, batch):
        batch.cut(self.system.micro_batch_tokens)
        self.answer.seen["batch in parts"] += len(batch.parts) > 1
        self.answer.seen["several batches in flight"] += len(self.batches) > 0
        self.batches.append(batch)
        if self.system.iteration_s:
            self.is_preparing = True
            self.env.process(self.prepare(batch))
        else:
            self.nodes[0].parts += [(batch, part) for part in batch.parts]

    def prepare(self, batch):
        yield later(self.env, Phase.MESSAGE_ARRIVES, self.system.iteration_s)
        if not batch.is_lost:
            self.is_preparing = False
            self.nodes[0].parts += [(batch, part) for part in batch.parts]
            self.touch()

    def send_onward(self, node, batch, part):
        if node is not self.nodes[-1]:
            following = self.nodes[node.stage.number + 1]
            before = following.last_message
            message = self.message(following, batch, part, before)
            following.last_message = self.env.process(message)
        elif part is batch.parts[-1]:
            self.env.process(self.bring_back(node, batch))

    def message(self, following, batch, part, before):
        n_bytes = sum(share.tokens for share in part) * following.stage.input_bytes
        for link in following.stage.links:
            self.answer.seen["queued for a link"] += link.lane.count >= link.lane.capacity
            yield from link.cross(n_bytes)
        if before is not None and before.is_alive and not batch.is_lost:
            self.answer.seen["held back behind a batch"] += 1
            yield before
        if not batch.is_lost:
            following.parts.append((batch, part))
            self.touch()

    def bring_back(self, node, batch):
        yield later(self.env, Phase.TOKENS_RETURN, node.stage.return_s, tie=node.index)
        if batch.is_lost:
            return
        self.batches.remove(batch)
        for share in batch.shares:
            request = share.request
            request.in_flight -= 1
            if not share.is_void and share.ends_pass:
                self.deliver(request)
        self.note()
        self.touch()

    def deliver(self, request):
        r, at_s = request.request, self.env.now + self.delivery_s
        request.delivered += 1
        if request.delivered == 1:
            self.answer.first_token_s[r] = at_s
        if request.delivered == request.output:
            self.answer.end_s[r] = at_s
            self.running.remove(request)
            self.system.end(at_s)

    def fail(self):
        """Lose all batches, and restart all requests."""
        seen = self.answer.seen
        for batch in self.batches:
            batch.is_lost = True
            seen["batch lost"] += 1
        for node in self.nodes:
            if node.running:
                node.process.interrupt("failure")
                node.stop(node.running[0])
            node.levels["n_requests"].set(0)
            node.empty()
        requests = self.waiting + self.running
        self.empty()
        self.note()
        for request in requests:
            r = request.request
            self.answer.restarts[r] += 1
            self.answer.node[r] = -1
            self.answer.reached_s[r] = math.nan
            seen["restart after a token"] += request.delivered > 0
            request.in_flight, request.pipeline = 0, None
            self.forget(request)
            self.system.reach(request)


class PipelineRouter(Router):
    """Router whose nodes are pipelines."""

    def __init__(self, system, policy, uniforms, believed):
        self.system, self.pipelines = system, system.pipelines
        first = system.stages[0]
        super().__init__(
            system.env, first, policy, uniforms, system.deployment, believed, system.answer
        )
        gpus = {node.gpu for node in system.nodes}
        self.stage_s, self.stage_prefill_s = [], []
        for stage in system.stages:
            alone = alone_s(stage.blocks, gpus, system.deployment, believed)
            self.stage_s.append(round_to_sum_exactly(alone))
            ones = np.ones_like(believed)
            self.stage_prefill_s.append(alone_s(stage.blocks, gpus, system.deployment, ones))
        self.pipeline_s = round_to_sum_exactly(
            {
                pipeline: sum(
                    of_stage[node.gpu]
                    for of_stage, node in zip(self.stage_s, pipeline.nodes, strict=True)
                )
                for pipeline in system.pipelines
            }
        )

    def expected_s(self, node, stay):
        return float(self.pipeline_s[node][stay.request])

    def remaining_s(self, node):
        seconds = []
        for number, each in enumerate(node.nodes):
            if each.running:
                start_s, nominal_s = each.running
                seconds.append(max(0.0, start_s + nominal_s - self.env.now))
            for request in node.waiting + node.running:
                if request.ended[number] < request.total_tokens:
                    seconds.append(self.unstarted_at(number, each, request))
        return math.fsum(seconds)

    def unstarted_at(self, number, node, request):
        r, prompt = request.request, request.prompt_tokens
        started = request.started[number]
        prefill_s = float(self.stage_prefill_s[number][node.gpu][r])
        seconds = prefill_s * (1 - min(started, prompt) / prompt)
        decodes = self.prompt_tokens[r] + self.output_tokens[r] - 1 - max(started, prompt)
        if decodes > 0:
            decodes_s = float(self.stage_s[number][node.gpu][r]) - prefill_s
            seconds += decodes_s * decodes / (self.output_tokens[r] - 1)
        return seconds


@dataclass(eq=False)
class Stage:
    number: int
    tier: int
    blocks: list
    weight_bytes: int
    kv_bytes: int
    input_bytes: int  # per token
    links: list  # to here from the stage before
    return_s: float
    holders: list = field(default_factory=list)
    nodes: list = field(default_factory=list)


class System:
    """Pipelines, links and requests."""

    def __init__(self, deployment, options):
        tiers = deployment.network.tiers
        self.env, self.deployment = simpy.Environment(), deployment
        limit = {name: math.inf if value is None else value for name, value in options.items()}
        self.is_serial = options["batching"] == "serial"
        self.max_num_seqs, self.chunk_tokens = options["max_num_seqs"], limit["chunk_tokens"]
        self.max_num_batched_tokens = limit["max_num_batched_tokens"]
        self.micro_batch_tokens = limit["micro_batch_tokens"]
        self.iteration_s = options["iteration_s"]
        self.paged = options["kv_admission"] == "paged"
        self.kv_block_tokens = options["kv_block_tokens"]
        self.slot_tokens = deployment.runtime.slot_tokens
        self.users, self.think_time_s = options["users"], options["think_time_s"]
        contention = options["link_contention"]
        self.links = [Link(self.env, tier.link, contention) for tier in tiers[:-1]]
        self.link_of = dict(zip((tier.name for tier in tiers), self.links, strict=False))
        n_nodes = sum(len(tier.nodes) for tier in tiers)
        given = deployment.requests.arrival_s.copy()
        self.answer = empty_answer(given, len(tiers), n_nodes)
        self.touched, self.is_waiting = [], False
        self.n_ended = 0

    def max_in_flight(self, pipeline):
        return 1 if self.is_serial else len(pipeline.nodes)

    def build(self, partition, policy, seed, absent, believed):
        deployment, model = self.deployment, self.deployment.model
        instance = to_instance(deployment, allow_empty=True)
        self.nodes, self.node_of = [], {}
        for k, tier in enumerate(deployment.network.tiers):
            for position, spec in enumerate(tier.nodes):
                up = spec.name not in absent
                node = Node(self, len(self.nodes), k, position, spec, up)
                self.nodes.append(node)
                self.node_of[spec.name] = node
        active = [k for k in range(partition.n_tiers) if partition.stage(k)]
        self.leading = self.links[: active[0]]
        self.delivery_s = sum(link.return_latency_s for link in self.leading)
        self.delivery_s += request_s(deployment)
        self.stages, before = [], active[0]
        for tier in active:
            first, end = partition.cuts[tier], partition.cuts[tier + 1]
            blocks = model.blocks[first:end]
            tied_bytes = model.tied_bytes if len(blocks) == model.n_blocks else 0
            on_the_way_back = self.links[active[0] : tier]
            self.stages.append(
                Stage(
                    number=len(self.stages),
                    tier=tier,
                    blocks=list(Counter(blocks).items()),
                    weight_bytes=sum(block.weight_bytes for block in blocks) - tied_bytes,
                    kv_bytes=sum(block.kv_bytes_per_token for block in blocks),
                    input_bytes=model.blocks[first - 1].output_bytes_per_token if first else 0,
                    links=self.links[before:tier],
                    return_s=sum(link.return_latency_s for link in on_the_way_back),
                )
            )
            holds = can_hold(instance, tier, first, end)
            at_tier = [node for node in self.nodes if node.tier == tier]
            self.stages[-1].holders = [node for node in at_tier if holds[node.position]]
            before = tier
        self.pipelines = []
        for nodes in zip(*(stage.holders for stage in self.stages), strict=False):
            for node, stage in zip(nodes, self.stages, strict=True):
                node.stage = stage
            self.pipelines.append(Pipeline(self, len(self.pipelines), list(nodes)))
            for node in nodes:
                node.pipeline = self.pipelines[-1]
        self.stages[0].nodes = self.pipelines
        uniforms = np.random.default_rng(seed).random((len(self.answer.arrival_s), 2)).tolist()
        self.router = PipelineRouter(self, policy, uniforms, believed)

    # the end of an instant

    def touch(self, pipeline):
        if pipeline not in self.touched:
            self.touched.append(pipeline)
        if not self.is_waiting:
            self.is_waiting = True
            self.env.process(self.end_of_instant())

    def end_of_instant(self):
        yield later(self.env, Phase.ITERATION_STARTS)
        touched, self.touched, self.is_waiting = self.touched, [], False
        for pipeline in touched:
            pipeline.act()

    # requests

    def add_requests(self):
        given, answer = self.deployment.requests, self.answer
        n_requests = len(answer.arrival_s)
        self.order = np.argsort(given.arrival_s, kind="stable").tolist()
        if self.users is not None:
            starts_s = sorted(answer.arrival_s.tolist())[: self.users]
            answer.arrival_s[:] = math.nan
            answer.arrival_s[: len(starts_s)] = starts_s
            self.order = list(range(n_requests))
        self.requests = [
            Request(
                r,
                self.order.index(r),
                int(given.prompt_tokens[r]),
                int(given.output_tokens[r]),
                len(self.stages),
            )
            for r in range(n_requests)
        ]
        for r in range(n_requests):
            if not math.isnan(answer.arrival_s[r]):
                self.env.process(self.arrive(r))
        self.n_sent = min(self.users or n_requests, n_requests)

    def arrive(self, r):
        delay_s = self.answer.arrival_s[r] - self.env.now
        yield later(self.env, Phase.MESSAGE_ARRIVES, delay_s, tie=r)
        request = self.requests[r]
        for link in self.leading:
            n_bytes = request.prompt * self.deployment.model.input_bytes_per_token
            yield from link.cross(n_bytes)
        self.reach(request)

    def reach(self, request):
        for stage in self.stages:
            self.answer.reached_s[request.request, stage.tier] = self.env.now
        self.router.reach(request)

    def end(self, end_s):
        self.n_ended += 1
        if self.users is not None and self.n_sent < len(self.requests):
            self.answer.seen["sent by a user"] += 1
            before_s = self.answer.arrival_s[self.n_sent - 1]  # sent in order
            self.answer.arrival_s[self.n_sent] = max(end_s + self.think_time_s, before_s)
            self.env.process(self.arrive(self.n_sent))
            self.n_sent += 1

    # events

    def event(self, position, event):
        yield later(self.env, Phase.EVENT, event.at_s, tie=position)
        self.answer.seen[str(event.kind)] += 1
        if event.kind == "bandwidth":
            self.link_of[event.target].set_factor(event.factor)
        elif event.kind == "slowdown":
            self.node_of[event.target].set_factor(event.factor)
        elif event.kind == "failure":
            self.node_of[event.target].fail()
        else:
            self.node_of[event.target].come_up()


def simulate(
    deployment,
    partition,
    policy="hypsched_rt",
    *,
    seed=0,
    events=(),
    expected_output_tokens=None,
    **options,
) -> Answer:
    """Serve all requests in mode `pipeline` or `serial`."""
    system = System(deployment, DEFAULTS | options)
    believed = deployment.requests.output_tokens
    if expected_output_tokens is not None:
        believed = np.full_like(believed, expected_output_tokens)
    absent = {event.target for event in events if event.kind == "join"}
    system.build(partition, policy, seed, absent, believed)
    system.add_requests()
    for position, event in enumerate(events):
        system.env.process(system.event(position, event))
    n_requests, answer = len(system.requests), system.answer
    while system.n_ended < n_requests and system.env.peek() < math.inf:
        system.env.step()
    for node in system.nodes:
        node.close()
    system.router.close()
    answer.end_of_run_s = system.env.now
    if system.n_ended == n_requests:
        answer.end_of_run_s = float(answer.end_s.max())
    return answer
