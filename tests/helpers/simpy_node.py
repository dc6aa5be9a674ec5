"""Node that admits requests to its KV memory and computes their tokens in batches."""

import bisect
import math
from dataclasses import dataclass

import simpy

from tests.helpers.simpy_parts import Cards, Entry, Phase, iteration_s, later


@dataclass
class Iteration:
    start_s: float
    nominal_s: float
    batch: list


class Node:
    """Node that admits requests to its KV memory and computes their tokens in batches."""

    def __init__(self, system, index, tier, position, spec, up):
        self.system, self.env, self.answer = system, system.env, system.answer
        self.index, self.tier, self.position = index, tier, position
        self.cards, self.up = Cards(spec, system.deployment), up
        self.gpu = system.deployment.profile(spec)  # its key among the expected times
        self.stage = self.process = None
        self.factor = 1.0  # how many times longer iterations take
        self.running = None  # Iteration
        self.start_empty()

    def start_empty(self):
        self.ratio = 1.0  # what has been seen of the factor
        self.unfinished = {}  # stay pinned here, its work not complete -> expected seconds
        self.outstanding_s = 0.0  # their sum, exactly
        self.queue = []  # stays waiting for KV memory
        self.held_tokens = {}  # stay -> tokens of KV memory
        self.free_tokens = self.unclaimed_tokens = self.capacity_tokens()  # the queue claims
        self.available = {}  # stays with tokens that an iteration could take

    def capacity_tokens(self):
        if self.stage is None or not self.stage.kv_bytes_per_token:
            return math.inf
        return self.cards.tokens(self.stage.weight_bytes, self.stage.kv_bytes_per_token)

    @property
    def kv_bytes_per_token(self):
        return self.cards.kv_bytes(self.stage.kv_bytes_per_token)

    def hold(self, stage):
        self.stage = stage
        self.start_empty()
        self.woken = self.env.event()
        self.process = self.env.process(self.run())

    # KV memory

    def kv_tokens(self, attempt, n_tokens):
        """Return the tokens of KV memory that an attempt has when so many are cached."""
        if not self.system.paged:
            slots = math.ceil(attempt.whole_tokens / self.system.slot_tokens)
            return slots * self.system.slot_tokens
        block = self.system.kv_block_tokens
        return min(math.ceil(n_tokens / block) * block, attempt.whole_tokens)

    def first_tokens(self, stay):
        return self.kv_tokens(stay.attempt, stay.attempt.prompt_tokens)

    def needed_tokens(self):
        """Return what the decode tokens that wait here need: stay -> tokens."""
        return {
            stay: self.kv_tokens(stay.attempt, stay.started_tokens + 1) - self.held_tokens[stay]
            for stay in self.available
            if stay.started_tokens >= stay.attempt.prompt_tokens
        }

    def give_blocks(self):
        """Give blocks to decode tokens; preempt requests as long as there is no room."""
        preempted = False
        while sum(self.needed_tokens().values()) > self.free_tokens:
            last = max(self.held_tokens, key=lambda stay: stay.attempt.rank)
            self.answer.seen["preempted"] += 1
            self.answer.seen["preempted itself"] += last in self.needed_tokens()
            self.system.preempt(last.attempt)
            preempted = True
        for stay, tokens in self.needed_tokens().items():
            if tokens:
                self.note_kv(stay)
                self.held_tokens[stay] += tokens
                self.free_tokens -= tokens
                self.unclaimed_tokens -= tokens
        return preempted

    def pin(self, stay, expected_s):
        stay.node, stay.pinned_s = self, self.env.now
        self.answer.node[stay.attempt.request, self.tier] = self.position
        self.unfinished[stay] = expected_s
        self.outstanding_s += expected_s
        if self.system.paged:
            bisect.insort(self.queue, stay, key=lambda each: each.attempt.rank)
        else:
            self.queue.append(stay)
        self.unclaimed_tokens -= self.first_tokens(stay)
        self.admit()
        self.answer.seen["waited for KV memory"] += math.isnan(stay.admitted_s)

    def admit(self):
        """Admit the head of the queue while there is room; nobody overtakes it."""
        while self.queue and self.first_tokens(self.queue[0]) <= self.free_tokens:
            stay = self.queue.pop(0)
            self.held_tokens[stay] = self.first_tokens(stay)
            self.free_tokens -= self.held_tokens[stay]
            stay.admitted_s = stay.waiting_since_s = stay.held_since_s = self.env.now
            self.note("n_waiting", stay.pinned_s, 1)
            self.answer.admitted_s[stay.attempt.request, self.tier] = self.env.now
            self.offer(stay)

    def receive(self, stay):
        """Offer tokens that arrive to the next iteration, if the request is admitted."""
        if stay in self.held_tokens:
            self.offer(stay)

    def offer(self, stay):
        self.available[stay] = True
        if not self.woken.triggered:
            self.woken.succeed()

    def release(self, stay, admit=True):
        """Free the memory of a request that ends or restarts."""
        if stay in self.unfinished:
            self.leave(stay)
        if stay in self.held_tokens:
            self.unclaimed_tokens += self.held_tokens[stay]
            self.free(stay)
        elif stay in self.queue:
            self.queue.remove(stay)
            self.note("n_waiting", stay.pinned_s, 1)
            self.unclaimed_tokens += self.first_tokens(stay)
        self.available.pop(stay, None)
        if admit:
            self.admit()

    def leave(self, stay):
        """Record that the work of a request here is complete, or lost."""
        self.outstanding_s -= self.unfinished.pop(stay)
        self.note("n_requests", stay.pinned_s, 1)

    def free(self, stay):
        self.note_kv(stay)
        self.free_tokens += self.held_tokens.pop(stay)

    def note_kv(self, stay):
        """Note how long a request has held as much KV memory as it does."""
        held_bytes = self.held_tokens[stay] * self.kv_bytes_per_token
        self.note("kv_bytes", stay.held_since_s, held_bytes)
        stay.held_since_s = self.env.now

    # iterations

    def run(self):
        """Run iterations (the process of the node)."""
        while True:
            if not self.available:
                self.woken = self.env.event()
                yield self.woken
            yield self.system.next_starts()
            if self.available:  # it may have failed in this instant
                yield from self.iterate()

    def iterate(self):
        batch = self.take_batch()
        computing_s = iteration_s(
            self.stage.blocks, batch, self.cards, self.system.deployment.cost_model
        )
        nominal_s = self.system.iteration_s + computing_s
        iteration = self.running = Iteration(self.env.now, nominal_s, batch)
        completed = yield from self.compute(self.system.iteration_s, computing_s)
        self.running = None
        took_s = self.env.now - iteration.start_s
        self.answer.busy_s[self.index] += took_s
        self.note("busy", iteration.start_s, 1)
        if completed:
            if nominal_s > 0:
                self.ratio = 0.8 * self.ratio + 0.2 * took_s / nominal_s
            self.finish(iteration)

    def take_batch(self):
        waiting = sorted(self.available, key=lambda s: (s.waiting_since_s, s.attempt.request))
        left, budget = self.system.max_num_batched_tokens, self.system.chunk_tokens
        if left < math.inf:  # decode tokens first
            waiting.sort(key=lambda stay: stay.started_tokens < stay.attempt.prompt_tokens)
        batch = []
        for stay in waiting:
            if len(batch) == self.system.max_num_seqs:
                self.answer.seen["batch full"] += 1
                break
            tokens = min(1, left)
            if stay.started_tokens < stay.attempt.prompt_tokens:
                tokens = min(stay.waiting_tokens, budget, left)
                budget -= tokens
                self.answer.seen["chunk cut"] += tokens < stay.waiting_tokens
            left -= tokens
            if tokens:
                batch.append(Entry(stay, tokens, stay.started_tokens))
                stay.start(tokens)
            if not stay.waiting_tokens:
                del self.available[stay]
        return batch

    def compute(self, host_s, left_s):
        """Spend host seconds, then nominal ones; return True if they were not cut short."""
        while True:
            since_s, factor = self.env.now, self.factor
            try:
                yield later(
                    self.env, Phase.ITERATION_ENDS, host_s + left_s * factor, self.index
                )
                return True
            except simpy.Interrupt as interrupt:
                if interrupt.cause == "failure":
                    return False
                spent_s = self.env.now - since_s
                left_s = max(0.0, left_s - max(0.0, spent_s - host_s) / factor)
                host_s = max(0.0, host_s - spent_s)

    def finish(self, iteration):
        answer, now_s = self.answer, self.env.now
        answer.n_iterations[self.index] += 1
        live = [entry for entry in iteration.batch if not entry.stay.attempt.over]
        answer.seen["computed for a restarted request"] += len(iteration.batch) - len(live)
        for entry in live:
            stay, r = entry.stay, entry.stay.attempt.request
            what = entry.tokens, entry.cached_tokens
            answer.visits.append((r, self.index, iteration.start_s, now_s, *what))
            answer.n_visits += 1
            answer.n_tokens[self.index] += entry.tokens
            stay.ended_tokens += entry.tokens
            if stay.ended_tokens == stay.total_tokens:
                self.leave(stay)
                answer.left_s[r, self.tier] = now_s
        if self.stage.is_last:
            yielded = [entry.stay.attempt for entry in live if entry.ends_pass]
            self.env.process(self.system.return_tokens(yielded, self))
        else:
            self.system.send_onward(live, self.stage.number + 1)

    # what happens to it

    def set_factor(self, factor):
        self.factor = factor
        if self.running:
            self.answer.seen["slowdown in an iteration"] += 1
            self.process.interrupt("slowdown")

    def fail(self):
        self.up = False
        if self.running:
            self.answer.seen["iteration lost"] += 1
            self.process.interrupt("failure")
        complete = self.held_tokens.keys() - self.unfinished.keys()
        self.answer.seen["complete at a failed node"] += len(complete)
        victims = sorted(stay.attempt.request for stay in self.unfinished)
        for stay in list(self.unfinished):
            self.leave(stay)
        for stay in list(self.held_tokens):
            self.free(stay)
        for stay in self.queue:
            self.note("n_waiting", stay.pinned_s, 1)
        self.start_empty()
        for r in victims:
            self.system.requests[r].interrupt("failure")

    def come_up(self):
        self.up, self.ratio = True, 1.0
        if self.stage:
            self.stage.router.call()

    # what lasted

    def note(self, what, start_s, weight, end_s=None):
        end_s = self.env.now if end_s is None else end_s
        self.answer.intervals[what].append((self.index, start_s, end_s, weight))

    def close(self):
        """Close the records at the end of the run."""
        if self.stage:
            kv_bytes = self.kv_bytes_per_token
            room = self.capacity_tokens() * kv_bytes if kv_bytes else math.inf
            self.answer.kv_capacity_bytes[self.index] = room
        if self.running:  # nobody is in it any more
            self.answer.busy_s[self.index] += self.env.now - self.running.start_s
            self.note("busy", self.running.start_s, 1)
        for stay in self.queue:
            self.note("n_waiting", stay.pinned_s, 1, math.inf)
        for stay in self.unfinished:
            self.note("n_requests", stay.pinned_s, 1, math.inf)
        for stay, tokens in self.held_tokens.items():
            kv_bytes = tokens * self.kv_bytes_per_token
            self.note("kv_bytes", stay.held_since_s, kv_bytes, math.inf)
