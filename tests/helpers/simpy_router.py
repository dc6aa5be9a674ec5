"""Router of the SimPy model: a process per stage that pins requests to nodes, and policies."""

import math

import numpy as np

from hypsolve.problem.solution import Schedule
from tests.helpers.simpy_parts import Phase, alone_s, later, round_to_sum_exactly


class Router:
    """Router that dispatches requests at its stage by index; stranded requests stay."""

    def __init__(self, env, stage, policy, uniforms, deployment, believed, answer):
        self.env, self.stage, self.policy = env, stage, policy
        self.uniforms, self.answer = uniforms, answer
        self.output_tokens = believed.tolist()  # what the outputs are taken to be
        self.prompt_tokens = deployment.requests.prompt_tokens.tolist()
        self.n_tier_nodes = len(deployment.network.tiers[stage.tier].nodes)
        tiers = deployment.network.tiers
        gpus = {deployment.profile(node) for tier in tiers for node in tier.nodes}
        self.service_s = round_to_sum_exactly(alone_s(stage.blocks, gpus, deployment, believed))
        self.prefill_s = alone_s(stage.blocks, gpus, deployment, np.ones_like(believed))
        self.undispatched = []
        self.n_dispatched = 0
        self.called = env.event()
        env.process(self.run())

    def reach(self, stay):
        self.undispatched.append(stay)
        self.call()

    def call(self):
        if not self.called.triggered:
            self.called.succeed()

    def run(self):
        while True:
            yield self.called
            yield later(self.env, Phase.DISPATCH)
            self.called = self.env.event()
            for stay in sorted(self.undispatched, key=lambda stay: stay.attempt.request):
                nodes = [node for node in self.stage.nodes if node.up]
                if nodes:
                    self.remove(stay)
                    node = self.choose(nodes, stay)
                    self.n_dispatched += 1
                    node.pin(stay, self.expected_s(node, stay))
                elif math.isnan(stay.stranded_s):
                    stay.stranded_s = self.env.now
                    self.answer.seen["stranded"] += 1

    def remove(self, stay):
        """Remove a request that is dispatched or restarts."""
        self.undispatched.remove(stay)
        self.note(stay, self.env.now)

    def note(self, stay, end_s):
        if not math.isnan(stay.stranded_s):
            interval = self.stage.tier, stay.stranded_s, end_s, 1
            self.answer.intervals["n_stranded"].append(interval)

    def close(self):
        for stay in self.undispatched:
            self.note(stay, math.inf)

    # policies: `min` takes the first of equals

    def choose(self, nodes, stay):
        if isinstance(self.policy, Schedule):
            wanted = int(self.policy.node[stay.attempt.request, self.stage.tier])
            return min(nodes, key=lambda node: (node.position - wanted) % self.n_tier_nodes)
        return getattr(self, self.policy)(nodes, stay)

    def hypsched_rt(self, nodes, stay):
        roomy = [n for n in nodes if n.unclaimed_tokens >= self.need_tokens(n, stay)]
        self.answer.seen["no node with room"] += not roomy
        return min(
            roomy or nodes,
            key=lambda n: (n.outstanding_s + self.expected_s(n, stay)) * self.slowdown(n),
        )

    def need_tokens(self, node, stay):
        r = stay.attempt.request
        if node.system.paged:
            return node.kv_tokens(stay.attempt, stay.attempt.prompt_tokens)
        return self.prompt_tokens[r] + self.output_tokens[r]

    def random(self, nodes, stay):
        return nodes[int(self.uniforms[stay.attempt.request][0] * len(nodes))]

    def round_robin(self, nodes, stay):
        return nodes[self.n_dispatched % len(nodes)]

    def join_shortest_queue(self, nodes, stay):
        return min(nodes, key=lambda node: len(node.unfinished))

    def power_of_two(self, nodes, stay):
        first = self.random(nodes, stay)
        others = [node for node in nodes if node is not first]
        if not others:
            return first
        second = others[int(self.uniforms[stay.attempt.request][1] * len(others))]
        return self.join_shortest_queue([first, second], stay)

    def least_work_left(self, nodes, stay):
        return min(nodes, key=self.remaining_s)

    def earliest_completion(self, nodes, stay):
        return min(nodes, key=lambda n: self.remaining_s(n) + self.expected_s(n, stay))

    # what they see

    def expected_s(self, node, stay):
        return float(self.service_s[node.gpu][stay.attempt.request])

    @staticmethod
    def slowdown(node):
        return 2.0 ** (round(16 * math.log2(node.ratio)) / 16)

    def remaining_s(self, node):
        parts = [self.unstarted_s(node, stay) for stay in node.unfinished]
        if node.running:
            parts.append(max(0.0, node.running.start_s + node.running.nominal_s - self.env.now))
        return math.fsum(parts)

    def unstarted_s(self, node, stay):
        r, prompt = stay.attempt.request, stay.attempt.prompt_tokens
        prefill_s = float(self.prefill_s[node.gpu][r])
        seconds = prefill_s * (1 - min(stay.started_tokens, prompt) / prompt)
        total_tokens = self.prompt_tokens[r] + self.output_tokens[r] - 1
        decodes = total_tokens - max(stay.started_tokens, prompt)
        if decodes > 0:
            decodes_s = self.expected_s(node, stay) - prefill_s
            seconds += decodes_s * decodes / (self.output_tokens[r] - 1)
        return seconds
