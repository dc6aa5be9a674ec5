"""Placements as SimPy processes, the judge of `simulate_placement`.

Written from its docstring. The nodes, links and schedulers are those of the SimPy models of
`simulate`; pipelines that differ, and a router in front of them, are added here.
"""

import math
from collections import Counter

import numpy as np
import simpy

from tests.helpers import simpy_model, simpy_pipeline
from tests.helpers.operator_costs import request_s
from tests.helpers.simpy_node import Node
from tests.helpers.simpy_parts import (
    DEFAULTS,
    Link,
    Phase,
    alone_s,
    empty_answer,
    later,
    round_to_sum_exactly,
)
from tests.helpers.simpy_router import Router


def simulate(problem, placement, requests, policy, *, seed=0, **options):
    """Serve all requests by the pipelines of a placement."""
    believed = requests.output_tokens
    if "expected_output_tokens" in options:
        believed = np.full_like(believed, options.pop("expected_output_tokens"))
    plan = Plan(problem, placement, requests, policy, seed, believed)
    options = DEFAULTS | options
    is_stage = options["batching"] == "stage"
    system = (NodesSystem if is_stage else SchedulersSystem)(plan, options)
    system.add_requests()
    system.serve()
    for node in system.nodes:
        node.close()
    system.answer.end_of_run_s = float(system.answer.end_s.max())
    return system.answer


class Plan:
    """A placement with its requests, policy and draws."""

    def __init__(self, problem, placement, requests, policy, seed, believed):
        self.problem, self.placement, self.requests = problem, placement, requests
        self.policy, self.believed = policy, believed
        self.uniforms = np.random.default_rng(seed).random((len(requests), 2)).tolist()
        self.deployments = [
            problem.deployment(pipeline.groups, requests) for pipeline in placement.pipelines
        ]
        self.lengths = [len(pipeline.stages) for pipeline in placement.pipelines]

    def places(self):
        """Yield (pipeline, stage) in the order of the nodes of a trace."""
        for s in range(max(self.lengths)):
            for p, length in enumerate(self.lengths):
                if s < length:
                    yield p, s

    def spec(self, p, s):
        return self.deployments[p].network.tiers[s].nodes[0]

    def links(self, env, p, contention):
        tiers = self.deployments[p].network.tiers
        return [Link(env, tier.link, contention) for tier in tiers[:-1]]

    def facts(self, p, s):
        """Return the blocks of a stage with their numbers, and its bytes."""
        model, stage = self.problem.model, self.placement.pipelines[p].stages[s]
        blocks = model.blocks[stage.start : stage.stop]
        tied_bytes = model.tied_bytes if len(blocks) == model.n_blocks else 0
        before = model.blocks[stage.start - 1].output_bytes_per_token if stage.start else 0
        weight_bytes = sum(block.weight_bytes for block in blocks) - tied_bytes
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        return list(Counter(blocks).items()), weight_bytes, kv_bytes, before

    def delivery_s(self, p):
        pipeline = self.placement.pipelines[p]
        site = self.problem.fleet.machine(pipeline.stages[0].machine).site
        fleet, entry_s = self.problem.fleet, 0.0
        for start, share in fleet.entry.items():
            if start != site:
                entry_s += share * fleet.site_link(start, site).round_trip_s
        return entry_s + request_s(self.deployments[p])

    def shares(self):
        loads = np.array([pipeline.requests_per_s for pipeline in self.placement.pipelines])
        return (loads / loads.sum()).tolist()


class PlacementRouter(Router):
    """Router in front of the pipelines; a request stays where it was sent first."""

    def __init__(self, system, plan, pipelines):
        self.env, self.policy, self.uniforms = system.env, plan.policy, plan.uniforms
        self.answer, self.plan, self.pipelines = system.answer, plan, pipelines
        self.output_tokens = plan.believed.tolist()
        self.prompt_tokens = plan.requests.prompt_tokens.tolist()
        self.undispatched, self.n_dispatched = [], 0
        self.sent, self.n_sent = {}, Counter()
        gpus = {node.gpu for pipeline in pipelines for node in pipeline.nodes}
        ones = np.ones_like(plan.believed)
        self.node_s, self.node_prefill_s = {}, {}
        for pipeline in pipelines:
            for node in pipeline.nodes:
                row = (node.stage.blocks, gpus, pipeline.deployment)
                alone = round_to_sum_exactly(alone_s(*row, plan.believed))
                self.node_s[node] = alone[node.gpu]
                self.node_prefill_s[node] = alone_s(*row, ones)[node.gpu]
        self.pipeline_s = round_to_sum_exactly(
            {each: sum(self.node_s[node] for node in each.nodes) for each in pipelines}
        )
        self.called = self.env.event()
        self.env.process(self.run())

    @property
    def stage(self):
        return self

    @property
    def nodes(self):
        return self.pipelines

    def choose(self, nodes, stay):
        r = stay.attempt.request
        if r in self.sent:
            self.answer.seen["stays at its pipeline"] += 1
            self.n_dispatched -= 1  # the caller counts it again
        else:
            self.sent[r] = getattr(self, self.plan.policy)(nodes, stay)
            self.n_sent[self.sent[r]] += 1
        return self.sent[r]

    def weighted(self, nodes, stay):
        due = [w * (self.n_dispatched + 1) for w in self.plan.shares()]
        return max(nodes, key=lambda each: due[each.number] - self.n_sent[each])

    def expected_s(self, node, stay):
        return float(self.pipeline_s[node][stay.attempt.request])

    def remaining_s(self, node):
        seconds = []
        for each in node.nodes:
            if each.running:
                start_s, nominal_s = node.under_way(each)
                seconds.append(max(0.0, start_s + nominal_s - self.env.now))
            for r, prompt, started in node.incomplete(each):
                seconds.append(self.unstarted_at(each, r, prompt, started))
        return math.fsum(seconds)

    def unstarted_at(self, node, r, prompt, started):
        prefill_s = float(self.node_prefill_s[node][r])
        seconds = prefill_s * (1 - min(started, prompt) / prompt)
        decodes = self.prompt_tokens[r] + self.output_tokens[r] - 1 - max(started, prompt)
        if decodes > 0:
            decodes_s = float(self.node_s[node][r]) - prefill_s
            seconds += decodes_s * decodes / (self.output_tokens[r] - 1)
        return seconds


class Users:
    """Closed loop of users who may wait for deliveries of different lengths."""

    def wake(self, ready_s, send):
        """Let a user send the next request when ready (a process)."""
        yield self.env.timeout(max(ready_s - self.env.now, 0.0))
        if self.n_sent < len(self.answer.arrival_s):
            send(ready_s)


# modes `pipeline` and `serial`


class Scheduler(simpy_pipeline.Pipeline):
    """A pipeline with its own way back."""

    def __init__(self, system, number, nodes, plan):
        super().__init__(system, number, nodes)
        self.own_delivery_s = plan.delivery_s(number)
        self.deployment = plan.deployments[number]

    @property
    def delivery_s(self):
        return self.own_delivery_s

    def pin(self, request, expected_s):
        for node in self.nodes:
            self.answer.reached_s[request.request, node.tier] = self.env.now
        super().pin(request, expected_s)

    @staticmethod
    def under_way(node):
        return node.running

    def incomplete(self, node):
        for request in self.waiting + self.running:
            if request.ended[node.stage.number] < request.total_tokens:
                started = request.started[node.stage.number]
                yield request.request, request.prompt_tokens, started


class SchedulersSystem(Users, simpy_pipeline.System):
    """Pipelines with a scheduler each, behind a router."""

    def __init__(self, plan, options):
        super().__init__(plan.deployments[0], options)
        given = plan.requests.arrival_s.copy()
        n_nodes, longest = sum(plan.lengths), max(plan.lengths)
        self.answer = empty_answer(given, longest, n_nodes)
        self.nodes, self.leading = [], []
        at, positions = {}, Counter()
        contention = options["link_contention"]
        links = [plan.links(self.env, p, contention) for p in range(len(plan.lengths))]
        for p, s in plan.places():
            node = simpy_pipeline.Node(
                self, len(self.nodes), s, positions[s], plan.spec(p, s), True
            )
            positions[s] += 1
            blocks, weight_bytes, kv_bytes, before = plan.facts(p, s)
            node.stage = simpy_pipeline.Stage(
                number=s,
                tier=s,
                blocks=blocks,
                weight_bytes=weight_bytes,
                kv_bytes=kv_bytes,
                input_bytes=before,
                links=links[p][s - 1 : s] if s else [],
                return_s=sum(link.return_latency_s for link in links[p]),
            )
            self.nodes.append(node)
            at[p, s] = node
        self.pipelines = []
        for p, length in enumerate(plan.lengths):
            nodes = [at[p, s] for s in range(length)]
            self.pipelines.append(Scheduler(self, p, nodes, plan))
            for node in nodes:
                node.pipeline = self.pipelines[-1]
        self.stages = [None] * longest  # only their number counts
        self.router = PlacementRouter(self, plan, self.pipelines)

    def add_requests(self):
        super().add_requests()
        if self.users is not None:
            self.last_start_s = float(self.answer.arrival_s[self.n_sent - 1])

    def arrive(self, r):
        delay_s = max(float(self.answer.arrival_s[r]) - self.env.now, 0.0)
        yield later(self.env, Phase.MESSAGE_ARRIVES, delay_s, tie=r)
        self.router.reach(self.requests[r])

    def end(self, end_s):
        self.n_ended += 1
        if self.users is not None:
            ready_s = max(end_s + self.think_time_s, self.last_start_s)
            self.env.process(self.wake(ready_s, self.send))

    def send(self, at_s):
        self.answer.seen["sent by a user"] += 1
        self.answer.arrival_s[self.n_sent] = at_s
        self.env.process(self.arrive(self.n_sent))
        self.n_sent += 1

    def serve(self):
        while self.n_ended < len(self.requests):
            self.env.step()


# mode `stage`


class Route:
    """A pipeline whose nodes form their own batches."""

    def __init__(self, system, number, nodes, plan):
        self.system, self.number, self.nodes, self.up = system, number, nodes, True
        self.delivery_s = plan.delivery_s(number)
        self.deployment = plan.deployments[number]
        self.attempts = {}  # that are not over -> expected seconds

    def pin(self, stay, expected_s):
        self.attempts[stay.attempt] = expected_s
        pin(self.system, self.nodes[0], stay)

    def live(self):
        self.attempts = {a: s for a, s in self.attempts.items() if not a.over}
        return self.attempts

    def is_complete(self, attempt, number):
        stay = attempt.stays.get(number)
        return stay is not None and stay.ended_tokens == stay.total_tokens

    @property
    def unfinished(self):
        last = len(self.nodes) - 1
        return {a: s for a, s in self.live().items() if not self.is_complete(a, last)}

    @property
    def outstanding_s(self):
        return sum(self.unfinished.values())

    @property
    def ratio(self):
        return max(node.ratio for node in self.nodes)

    def kv_tokens(self, attempt, n_tokens):
        return self.nodes[0].kv_tokens(attempt, n_tokens)

    @property
    def unclaimed_tokens(self):
        return min(self.unclaimed_at(number) for number in range(len(self.nodes)))

    def unclaimed_at(self, number):
        node = self.nodes[number]
        to_come = [
            attempt
            for attempt in self.live()
            if number not in attempt.stays or attempt.stays[number].node is None
        ]
        claims = sum(node.kv_tokens(each, each.prompt_tokens) for each in to_come)
        return node.unclaimed_tokens - claims

    @staticmethod
    def under_way(node):
        return node.running.start_s, node.running.nominal_s

    def incomplete(self, node):
        number = node.stage.number
        for attempt in self.live():
            if not self.is_complete(attempt, number):
                stay = attempt.stays.get(number)
                started = stay.started_tokens if stay else 0
                yield attempt.request, attempt.prompt_tokens, started


class Onward:
    """Way to a later node of a pipeline, which is no choice."""

    def __init__(self, system, node):
        self.system, self.node = system, node

    def reach(self, stay):
        pin(self.system, self.node, stay)


def pin(system, node, stay):
    node.pin(stay, float(system.router.node_s[node][stay.attempt.request]))


class NodesSystem(Users, simpy_model.System):
    """Nodes that form their own batches, in pipelines behind a router."""

    def __init__(self, plan, options):
        super().__init__(plan.deployments[0], options)
        given = plan.requests.arrival_s.copy()
        n_nodes, longest = sum(plan.lengths), max(plan.lengths)
        self.answer = empty_answer(given, longest, n_nodes)
        self.leading = []
        at, positions = {}, Counter()
        links = [plan.links(self.env, p, self.contention) for p in range(len(plan.lengths))]
        for p, s in plan.places():
            node = Node(self, len(self.nodes), s, positions[s], plan.spec(p, s), True)
            positions[s] += 1
            blocks, weight_bytes, kv_bytes, before = plan.facts(p, s)
            node.hold(
                simpy_model.Stage(
                    number=s,
                    tier=s,
                    blocks=blocks,
                    weight_bytes=weight_bytes,
                    kv_bytes_per_token=kv_bytes,
                    input_bytes_per_token=before,
                    is_last=s == plan.lengths[p] - 1,
                    links=links[p][s - 1 : s] if s else [],
                    return_s=sum(link.return_latency_s for link in links[p]),
                )
            )
            node.stage.router = Onward(self, node)
            self.nodes.append(node)
            at[p, s] = node
        self.routes = [
            Route(self, p, [at[p, s] for s in range(length)], plan)
            for p, length in enumerate(plan.lengths)
        ]
        self.router = PlacementRouter(self, plan, self.routes)
        for route in self.routes:
            route.nodes[0].stage.router = self.router

    def send(self, parts, number, before=None, links=None):
        if not parts:
            return None
        r = parts[0][0].request
        route = self.router.sent.get(r, self.routes[0])
        stage = route.nodes[number].stage
        return self.env.process(self.message(parts, stage, before, stage.links))

    def delivery_s(self, r):
        return self.router.sent[r].delivery_s

    def send_next(self, at_s):
        if self.n_sent < min(self.users, len(self.sent)):  # the first one of a user
            self.last_start_s = at_s
            super().send_next(at_s)
        else:
            ready_s = max(at_s, self.last_start_s)
            self.env.process(self.wake(ready_s, super().send_next))

    def serve(self):
        all_ended = simpy.AllOf(self.env, self.requests)
        while not all_ended.triggered:
            self.env.step()
