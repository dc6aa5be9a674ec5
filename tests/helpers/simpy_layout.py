"""Layouts as SimPy processes, the judge of `simulate_layout`.

Written from its docstring. Links, the order within an instant and the seconds of a block are
those of the SimPy model of `simulate`; nodes, paths and admission are written anew.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import simpy

from tests.helpers.operator_costs import request_s
from tests.helpers.simpy_parts import DEFAULTS, Cards, Link, Phase, iteration_s, later


@dataclass(eq=False)
class Stay:
    """A request at a node of its path."""

    request: int
    node: "Node"
    entry: int
    prompt: int
    waiting: int = 0
    since_s: float = math.nan
    computed: int = 0
    message: simpy.Process | None = None  # the last one of its prompt on the way here

    def receive(self, tokens):
        if not self.waiting:
            self.since_s = self.node.env.now
        self.waiting += tokens
        self.node.available.add(self)
        self.node.wake()


@dataclass
class Share:
    """Tokens of a stay in an iteration."""

    stay: Stay
    tokens: int
    cached_tokens: int

    @property
    def is_decode(self):
        return self.cached_tokens >= self.stay.prompt

    @property
    def ends_pass(self):
        return self.cached_tokens + self.tokens >= self.stay.prompt


class Node:
    """A machine with its range of blocks."""

    def __init__(self, system, number, hosted):
        self.system, self.env, self.number, self.hosted = system, system.env, number, hosted
        problem = system.problem
        self.machine = problem.fleet.machine(hosted.machine)
        self.cards = Cards(self.machine.node, system.deployment)
        self.blocks = problem.model.blocks[hosted.start : hosted.stop]
        tied = problem.model.tied_bytes if len(self.blocks) == problem.model.n_blocks else 0
        weights = sum(block.weight_bytes for block in self.blocks) - tied
        self.capacity = math.floor(self.machine.node.usable_bytes - weights)
        self.held = self.peak = 0
        self.busy_s, self.n_iterations, self.n_tokens = 0.0, 0, 0
        self.available, self.woken = set(), self.env.event()
        self.env.process(self.run())

    def kv_bytes(self, entry, tokens):
        blocks = self.blocks[entry - self.hosted.start :]
        return tokens * sum(block.kv_bytes_per_token for block in blocks)

    def wake(self):
        if not self.woken.triggered:
            self.woken.succeed()

    def run(self):
        while True:
            if not self.available:
                self.woken = self.env.event()
                yield self.woken
            yield later(self.env, Phase.ITERATION_STARTS)
            batch = self.take()
            start_s, seconds = self.env.now, self.seconds(batch)
            yield later(self.env, Phase.ITERATION_ENDS, self.system.iteration_s + seconds)
            self.busy_s += self.env.now - start_s
            self.n_iterations += 1
            self.finish(batch, start_s)

    def take(self):
        options = self.system.options
        order = sorted(self.available, key=lambda stay: (stay.since_s, stay.request))
        total = options["max_num_batched_tokens"]
        if total is not None:
            order.sort(key=lambda stay: stay.computed < stay.prompt)
        total = math.inf if total is None else total
        prompts = options["chunk_tokens"]
        batch = []
        for stay in order:
            if len(batch) == options["max_num_seqs"] or total == 0:
                break
            is_prompt = stay.computed < stay.prompt
            tokens = min(stay.waiting, prompts, total) if is_prompt else 1
            if tokens == 0:
                self.system.seen["prompt waits for the next iteration"] += 1
                continue
            if is_prompt:
                prompts -= tokens
            self.system.seen["chunk cut"] += tokens < stay.waiting
            total -= tokens
            stay.waiting -= tokens
            if not stay.waiting:
                self.available.remove(stay)
            batch.append(Share(stay, tokens, stay.computed))
        return batch

    def seconds(self, batch):
        """Return the seconds of a batch, block by block."""
        entries = {share.stay.entry for share in batch}
        self.system.seen["iteration of several entries"] += len(entries) > 1
        total_s = 0.0
        for number, block in enumerate(self.blocks, start=self.hosted.start):
            passing = [share for share in batch if share.stay.entry <= number]
            cost_model = self.system.problem.cost_model
            total_s += iteration_s([(block, 1)], passing, self.cards, cost_model)
        return total_s

    def finish(self, batch, start_s):
        decodes, chunks = defaultdict(list), []
        for share in batch:
            self.n_tokens += share.tokens
            stay = share.stay
            self.system.visits.append(
                (stay.request, self.number, start_s, self.env.now, share.tokens, stay.computed)
            )
            stay.computed += share.tokens
            after = self.system.after(stay)
            if after is None:
                if share.ends_pass:
                    self.env.process(self.system.come_back(stay.request))
            elif share.is_decode:
                decodes[after.node].append(after)
            else:
                chunks.append((after, share.tokens))
        for node, stays in decodes.items():
            if self.system.options["link_contention"]:
                self.env.process(self.system.send(self, node, stays))
            else:
                for stay in stays:
                    self.env.process(self.system.send(self, node, [stay]))
        for after, tokens in chunks:
            after.message = self.env.process(
                self.system.send_chunk(self, after, tokens, after.message)
            )


@dataclass(eq=False)
class Way:
    """Ways out of a node, with exact shares."""

    ends: list
    shares: list
    taken: list = field(default_factory=list)
    n: int = 0

    def next(self):
        self.taken = self.taken or [0] * len(self.ends)
        self.n += 1
        lags = [w * self.n - t for w, t in zip(self.shares, self.taken, strict=True)]
        best = max(range(len(lags)), key=lambda i: (lags[i], -i))
        self.taken[best] += 1
        return self.ends[best]


class System:
    """The coordinator, the nodes, and what travels between them."""

    def __init__(self, problem, layout, options):
        self.env, self.problem, self.layout = simpy.Environment(), problem, layout
        self.options, self.seen, self.visits = DEFAULTS | options, Counter(), []
        self.iteration_s = self.options["iteration_s"]
        names = tuple((hosted.machine, 1) for hosted in layout.ranges)
        self.deployment = problem.deployment(names)
        self.nodes = {h.machine: Node(self, i, h) for i, h in enumerate(layout.ranges)}
        self.links = {}
        self.requests, n = problem.requests, len(problem.requests)
        self.arrival_s = self.requests.arrival_s - self.requests.arrival_s.min()
        self.order = sorted(range(n), key=lambda r: (self.arrival_s[r], r))
        self.users = self.options["users"]
        if self.users is not None:
            self.order = list(range(n))
            self.arrival_s = np.sort(self.arrival_s)
            self.arrival_s[self.users :] = math.nan
        self.paths = self.draw()
        times = ("admitted_s", "first_token_s", "end_s", "freed_s")
        self.times = {name: np.full(n, math.nan) for name in times}
        self.returned, self.stays = [0] * n, {}
        self.queue = []
        self.n_sent = len(self.order) if self.users is None else min(self.users, n)
        self.is_admitting, self.all_sent = False, self.env.event()

    def draw(self):
        ways = {}
        for name in [None, *self.nodes]:
            out = [(b, Fraction(f)) for a, b, f in self.layout.flows if a == name and f > 0]
            total = sum(f for _, f in out)
            ways[name] = Way([b for b, _ in out], [f / total for _, f in out])
        paths = {}
        for r in self.order:
            paths[r], at = [], ways[None].next()
            while at is not None:
                paths[r].append(self.nodes[at])
                at = ways[at].next()
        return paths

    def serve(self):
        given = self.order if self.users is None else self.order[: self.users]
        for r in given:
            self.env.process(self.arrive(r))
        self.env.run()
        return self

    def arrive(self, r):
        yield later(self.env, Phase.MESSAGE_ARRIVES, self.arrival_s[r], tie=r)
        self.join(r)
        if self.users is not None and r == min(self.users, len(self.order)) - 1:
            self.all_sent.succeed()

    def join(self, r):
        self.arrival_s[r] = self.env.now
        self.queue.append(r)
        self.ask_to_admit()

    def ask_to_admit(self):
        if not self.is_admitting:
            self.is_admitting = True
            self.env.process(self.admit())

    def admit(self):
        yield later(self.env, Phase.DISPATCH)
        self.is_admitting = False
        blocked = []  # paths whose next request has no room
        for r in list(self.queue):  # room only shrinks: one pass by arrival is enough
            path, needs = self.paths[r], self.needs(r)
            has_room = all(n.held + b <= n.capacity for n, b in zip(path, needs, strict=True))
            if path in blocked or not has_room:
                self.seen["waited for KV memory"] += 1
                blocked.append(path)
                continue
            self.seen["overtook another path"] += bool(blocked)
            self.queue.remove(r)
            for node, needed in zip(path, needs, strict=True):
                node.held += needed
                node.peak = max(node.peak, node.held)
            self.times["admitted_s"][r] = self.env.now
            prompt = int(self.requests.prompt_tokens[r])
            self.stays[r] = [
                Stay(r, node, entry, prompt)
                for node, entry in zip(path, self.entries(r), strict=True)
            ]
            self.stays[r][0].receive(prompt)

    def entries(self, r):
        return [0, *(node.hosted.stop for node in self.paths[r][:-1])]

    def needs(self, r):
        tokens = int(self.requests.prompt_tokens[r] + self.requests.output_tokens[r])
        pairs = zip(self.paths[r], self.entries(r), strict=True)
        return [node.kv_bytes(entry, tokens) for node, entry in pairs]

    def after(self, stay):
        stays = self.stays[stay.request]
        i = stays.index(stay) + 1
        return stays[i] if i < len(stays) else None

    def cross(self, start, end, tokens):
        if (start, end) not in self.links:
            link = self.problem.fleet.link(start.machine, end.machine)
            contention = self.options["link_contention"]
            self.links[start, end] = Link(self.env, link, contention)
        link = self.links[start, end]
        self.seen["queued for a link"] += (
            self.options["link_contention"] and link.lane.count > 0
        )
        return link.cross(tokens * start.blocks[-1].output_bytes_per_token)

    def send(self, start, end, stays):
        yield from self.cross(start, end, len(stays))
        for stay in stays:
            stay.receive(1)

    def send_chunk(self, start, stay, tokens, before):
        yield from self.cross(start, stay.node, tokens)
        if before is not None and before.is_alive:
            yield before
        stay.receive(tokens)

    def come_back(self, r):
        first, last = self.paths[r][0].machine, self.paths[r][-1].machine
        fleet, back_s = self.problem.fleet, 0.0
        if first is not last:
            back_s = fleet.link(last, first).latency_s
        yield later(self.env, Phase.TOKENS_RETURN, back_s)
        entry_s = request_s(self.deployment)
        for site, share in fleet.entry.items():
            if site != first.site:
                entry_s += share * fleet.site_link(site, first.site).round_trip_s
        self.returned[r] += 1
        if self.returned[r] == 1:
            self.times["first_token_s"][r] = self.env.now + entry_s
        if self.returned[r] < self.requests.output_tokens[r]:
            self.stays[r][0].receive(1)
            return
        self.times["freed_s"][r] = self.env.now
        self.times["end_s"][r] = end_s = self.env.now + entry_s
        for node, needed in zip(self.paths[r], self.needs(r), strict=True):
            node.held -= needed
        self.ask_to_admit()
        if self.users is not None and self.n_sent < len(self.order):
            pause_s = end_s + self.options["think_time_s"] - self.env.now
            yield later(self.env, Phase.MESSAGE_ARRIVES, pause_s)
            if not self.all_sent.triggered:
                self.seen["waits until all users have sent"] += 1
            yield self.all_sent
            if self.n_sent < len(self.order):
                self.seen["sent by a user"] += 1
                self.n_sent += 1
                self.join(self.n_sent - 1)


def simulate(problem, layout, **options):
    """Serve the requests of a problem by a layout."""
    return System(problem, layout, options).serve()
