"""The token-level system as SimPy processes: plain and slow, the judge of `hypsolve.simulate`.

One process per request, message, node, router (one per stage) and event. Work under way when
a node's speed or a link's rate changes is interrupted and timed anew. Nothing is shared with
the simulator but what a block costs and which node can hold a stage. Read `simulate` first.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import simpy

from hypsolve.problem.costs import to_instance
from hypsolve.problem.evaluation import can_hold
from tests.helpers.operator_costs import request_s
from tests.helpers.simpy_node import Node
from tests.helpers.simpy_parts import (
    DEFAULTS,
    Answer,
    Attempt,
    Link,
    Phase,
    Stay,
    empty_answer,
    later,
)
from tests.helpers.simpy_router import Router


@dataclass(eq=False)
class Stage:
    """Stage of a pipeline: consecutive blocks on a tier."""

    number: int
    tier: int
    blocks: list  # (block, how many of it)
    weight_bytes: int
    kv_bytes_per_token: int
    input_bytes_per_token: int
    is_last: bool
    links: list  # to here from the stage before; none before the first stage
    return_s: float  # from here to the first stage
    nodes: list = field(default_factory=list)  # that can hold it
    router: Router | None = None


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
    """Serve all requests; `policy` is a name, or a Schedule whose nodes are replayed."""
    system = System(deployment, DEFAULTS | options)
    absent = {event.target for event in events if event.kind == "join"}
    system.add_nodes(absent)
    believed = deployment.requests.output_tokens
    if expected_output_tokens is not None:
        believed = np.full_like(believed, expected_output_tokens)
    system.add_stages(partition, policy, seed, believed)
    system.add_requests()
    for position, event in enumerate(events):
        system.env.process(system.event(position, event))
    all_ended = simpy.AllOf(system.env, system.requests)
    while not all_ended.triggered and system.env.peek() < math.inf:
        system.env.step()
    for node in system.nodes:
        node.close()
    for stage in system.stages:
        stage.router.close()
    system.answer.end_of_run_s = system.env.now
    return system.answer


class System:
    """System of nodes, links and stages, with requests, messages and events."""

    def __init__(self, deployment, options):
        tiers = deployment.network.tiers
        self.env = simpy.Environment()
        limit = {name: math.inf if value is None else value for name, value in options.items()}
        self.deployment, self.max_num_seqs = deployment, options["max_num_seqs"]
        self.chunk_tokens = limit["chunk_tokens"]
        self.max_num_batched_tokens = limit["max_num_batched_tokens"]
        self.paged = options["kv_admission"] == "paged"
        self.slot_tokens = deployment.runtime.slot_tokens
        self.kv_block_tokens, self.iteration_s = (
            options["kv_block_tokens"],
            limit["iteration_s"],
        )
        self.users, self.think_time_s = options["users"], options["think_time_s"]
        self.contention = options["link_contention"]
        self.links = [Link(self.env, tier.link, self.contention) for tier in tiers[:-1]]
        self.link_of = dict(zip((tier.name for tier in tiers), self.links, strict=False))
        n_nodes = sum(len(tier.nodes) for tier in tiers)
        given_s = deployment.requests.arrival_s.copy()
        self.answer = empty_answer(given_s, len(tiers), n_nodes)
        self.nodes, self.node_of, self.stages, self.requests = [], {}, [], []
        self.starts = None

    def add_nodes(self, absent):
        """Build the system; `absent` names the nodes that join later."""
        for k, tier in enumerate(self.deployment.network.tiers):
            for position, spec in enumerate(tier.nodes):
                up = spec.name not in absent
                node = Node(self, len(self.nodes), k, position, spec, up)
                self.nodes.append(node)
                self.node_of[spec.name] = node

    def add_stages(self, partition, policy, seed, believed):
        model = self.deployment.model
        instance = to_instance(self.deployment, allow_empty=True)
        rng = np.random.default_rng(seed)
        before = next(k for k in range(partition.n_tiers) if partition.stage(k))
        self.leading = self.links[:before]  # over empty tiers: each request crosses them once
        for tier in range(partition.n_tiers):
            first, end = partition.cuts[tier], partition.cuts[tier + 1]
            if first == end:
                continue
            stage = self.stage_of(model, tier, first, end, self.links[before:tier])
            holds = can_hold(instance, tier, first, end)
            for node in (node for node in self.nodes if node.tier == tier):
                if holds[node.position]:
                    stage.nodes.append(node)
                    node.hold(stage)
            uniforms = rng.random((instance.n_requests, 2)).tolist()
            stage.router = Router(
                self.env, stage, policy, uniforms, self.deployment, believed, self.answer
            )
            self.stages.append(stage)
            before = tier

    def stage_of(self, model, tier, first, end, links):
        blocks = model.blocks[first:end]
        tied_bytes = model.tied_bytes if len(blocks) == model.n_blocks else 0
        before = model.blocks[first - 1] if first else None
        return Stage(
            number=len(self.stages),
            tier=tier,
            blocks=list(Counter(blocks).items()),
            weight_bytes=sum(block.weight_bytes for block in blocks) - tied_bytes,
            kv_bytes_per_token=sum(block.kv_bytes_per_token for block in blocks),
            input_bytes_per_token=(
                before.output_bytes_per_token if before else model.input_bytes_per_token
            ),
            is_last=end == model.n_blocks,
            links=links,
            return_s=sum(
                link.return_latency_s for link in self.links[len(self.leading) : tier]
            ),
        )

    def next_starts(self):
        """Return the event that starts iterations on all nodes, last in this instant."""
        if self.starts is None or self.starts.processed:
            self.starts = later(self.env, Phase.ITERATION_STARTS)
            if self.paged:
                blocks = later(self.env, Phase.BLOCKS)
                blocks.callbacks.append(lambda _: self.give_blocks())
        return self.starts

    def give_blocks(self):
        """Give blocks where iterations are about to start, then admit where memory is free."""
        idle = [node for node in self.nodes if node.up and not node.running and node.stage]
        if any([node.give_blocks() for node in idle]):
            for node in self.nodes:
                if node.up and node.stage:
                    node.admit()

    def preempt(self, attempt):
        """Free the memory of a request, which starts again."""
        attempt.over = True
        for stay in attempt.stays.values():
            if stay.node is not None:
                stay.node.release(stay, admit=False)
        self.requests[attempt.request].interrupt("preemption")

    # requests

    def add_requests(self):
        given = self.deployment.requests
        columns = given.arrival_s, given.prompt_tokens, given.output_tokens
        self.rank = np.argsort(np.argsort(given.arrival_s, kind="stable")).tolist()
        if self.users is not None:
            self.rank = list(range(len(given)))
            self.answer.arrival_s[:] = math.nan
        self.sent = [self.env.event() for _ in range(len(given))]
        self.n_sent = 0
        for r, row in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            self.requests.append(self.env.process(self.request(r, *row)))
        for start_s in sorted(given.arrival_s.tolist())[: self.users or 0]:
            self.send_next(start_s)

    def send_next(self, at_s):
        """Let a user send the next request at a time."""
        if self.n_sent < len(self.sent):
            if self.n_sent > 0:  # requests are sent in the order of their indices
                at_s = max(at_s, float(self.answer.arrival_s[self.n_sent - 1]))
            self.answer.seen["sent by a user"] += 1
            self.answer.arrival_s[self.n_sent] = at_s
            self.sent[self.n_sent].succeed(at_s)
            self.n_sent += 1

    def request(self, r, arrival_s, prompt, output):
        """Serve a request, from arrival to end (a process)."""
        if self.users is not None:
            arrival_s = yield self.sent[r]
        yield later(self.env, Phase.MESSAGE_ARRIVES, arrival_s - self.env.now, tie=r)
        delivered, attempt_before = 0, False
        while delivered < output:
            returned = simpy.Store(self.env)
            passes = output - delivered
            whole = prompt + output
            attempt = Attempt(r, prompt + delivered, passes, whole, self.rank[r], returned)
            links = () if attempt_before else self.leading
            self.send([(attempt, attempt.prompt_tokens)], 0, links=links)
            attempt_before = True
            try:
                while delivered < output:
                    yield attempt.returned.get()
                    delivered += 1
                    if delivered == 1:
                        self.answer.first_token_s[r] = self.env.now + self.delivery_s(r)
            except simpy.Interrupt as interrupt:
                self.answer.seen[f"{interrupt.cause} after a token"] += delivered > 0
                self.forget(attempt, interrupt.cause)
            attempt.over = True
            for stay in attempt.stays.values():
                if stay.node is not None:
                    stay.node.release(stay)
        if self.users is not None:
            self.send_next(self.env.now + self.delivery_s(r) + self.think_time_s)
        yield self.env.timeout(self.delivery_s(r))
        self.answer.end_s[r] = self.env.now

    def delivery_s(self, r):
        """Return the seconds of a token of a request from the first stage to its user."""
        leading_s = sum(link.return_latency_s for link in self.leading)
        return leading_s + request_s(self.deployment)

    def forget(self, attempt, cause):
        r, answer = attempt.request, self.answer
        counts = answer.restarts if cause == "failure" else answer.preemptions
        counts[r] += 1
        answer.lost_tokens[r] += sum(stay.ended_tokens for stay in attempt.stays.values())
        answer.node[r] = -1
        answer.reached_s[r] = answer.admitted_s[r] = answer.left_s[r] = math.nan
        for number, stay in attempt.stays.items():
            if stay.node is None:
                self.stages[number].router.remove(stay)

    def return_tokens(self, attempts, node):
        """Return the tokens of an iteration and begin the next passes (a process)."""
        delay_s = node.stage.return_s
        yield later(self.env, Phase.TOKENS_RETURN, delay_s, tie=node.index)
        onward = []
        for attempt in attempts:
            if not attempt.over:
                attempt.returned.put("token")
                attempt.n_returned += 1
                if attempt.n_returned < attempt.n_passes:
                    onward.append(attempt)
        self.send_decodes(onward, 0)

    # messages

    def send(self, parts, number, before=None, links=None):
        """Send (attempt, tokens) of several requests to a stage, in one message."""
        stage = self.stages[number]
        links = stage.links if links is None else links
        return self.env.process(self.message(parts, stage, before, links))

    def message(self, parts, stage, before, links):
        """Cross the links, and arrive after the message `before` (a process)."""
        message_bytes = sum(tokens for _, tokens in parts) * stage.input_bytes_per_token
        for link in links:
            self.answer.seen["queued for a link"] += link.lane.count >= link.lane.capacity
            yield from link.cross(message_bytes)
        if not links:
            yield later(self.env, Phase.MESSAGE_ARRIVES)
        if before is not None and before.is_alive:
            self.answer.seen["held back behind a chunk"] += 1
            yield before
        for attempt, tokens in parts:
            if not attempt.over:
                self.arrive(attempt, tokens, stage)

    def arrive(self, attempt, tokens, stage):
        stay = attempt.stays.get(stage.number)
        if stay is None:
            stay = attempt.stays[stage.number] = Stay(attempt)
            self.answer.reached_s[attempt.request, stage.tier] = self.env.now
            stage.router.reach(stay)
        stay.receive(tokens, self.env.now)
        if stay.node is not None:
            stay.node.receive(stay)

    def send_onward(self, entries, number):
        """Send the tokens of an iteration to the next stage, decode tokens first."""
        self.send_decodes([e.stay.attempt for e in entries if e.is_decode], number)
        for entry in entries:
            if not entry.is_decode:
                stay = entry.stay
                part = stay.attempt, entry.tokens
                stay.last_message = self.send([part], number, stay.last_message)

    def send_decodes(self, attempts, number):
        """Send one token per request: one message where links queue, else one each."""
        parts = [(attempt, 1) for attempt in attempts]
        messages = [parts] if self.contention and parts else [[part] for part in parts]
        for message in messages:
            self.send(message, number)

    # events

    def event(self, position, event):
        """Apply an event (a process)."""
        yield later(self.env, Phase.EVENT, event.at_s, tie=position)
        self.answer.seen[str(event.kind)] += 1
        if event.kind == "bandwidth":
            link = self.link_of[event.target]
            self.answer.seen["bandwidth in a transmission"] += bool(link.transmitting)
            link.set_factor(event.factor)
        elif event.kind == "slowdown":
            self.node_of[event.target].set_factor(event.factor)
        elif event.kind == "failure":
            self.node_of[event.target].fail()
        else:
            self.node_of[event.target].come_up()
