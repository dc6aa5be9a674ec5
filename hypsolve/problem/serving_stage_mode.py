"""The fluid model of a split under the batching mode ``stage``: every node forms its batches.

All numbers are means. A rate is carried if every rule below holds.

Symbols: p prompt and o output tokens of a request, n_c chunks of c tokens, Q prompt tokens and
T tokens of an iteration at most, X requests per second. ``tau(b, k)`` are the seconds of an
iteration with b decode tokens and k chunks (`serving_iteration.iteration_s`).

*Room.* A node holds a stage if weights and the KV cache of one request fit. M requests have
room. An iteration holds at most B = min(max_num_seqs, T, M) requests.

*Largest rate of a node.* Of z requests per iteration, ``z (o - 1 + n_c) <= B``, ``z p <= Q``
and ``z (p + o - 1) <= T``. With the largest such z, a node serves ``S = z / tau(z (o - 1), z
n_c)``. No smaller batch serves more: z / tau does not fall in z, because every term of tau is
concave or linear in its contents with a term at zero that is not negative. (For collective
operations this needs lines that are concave together; otherwise S is the rate of the largest
batches.) A tier carries at most the sum of S over its nodes.

*Waiting.* At x requests per second, an iteration takes the least t with ``t = tau(b, k)``, b =
x (o - 1) t, k = x n_c t. The node is busy for a share u = min(1, b + k). A token that arrives
waits u t / 2 for the running iteration. The iteration that computes a decode token holds at
least this token, and the iteration of a chunk at least this chunk. A decode pass takes ``w =
tau(max(b, 1), k) + u t / 2``, and a chunk ``v = tau(b, max(1, k)) + u t / 2``. A stage of all
blocks has no wait in w, for the next pass begins when the last one ends.

*Shares.* Unequal nodes of a tier take shares in proportion to S. w and v of the stage are means
over these shares. The decode tokens of an iteration leave as one message, so a token waits for
b - 1 others, if b > 1, on the first link behind its stage.

*Links.* A link whose cut lies behind the first and before the last block carries every token
but the last, at s seconds each. It is busy for ``rho = X (p + o - 1) s < 1``, and a message
waits ``d = X n_c (s c)^2 / (2 (1 - rho))``. Each decode pass takes the round trip + s + d, and
the prompt the round trip + p s + n_c d. Links before the first stage carry the ids of the
prompt once. Links behind the last stage carry nothing.

*Memory.* The passes of a request take H seconds in all stages and on all links, of which the
node's own stage takes W. A node serves at most y requests per second, where ``y (H - W + (o -
1) w(y) + n_c v(y)) <= M`` and y <= S. The sum of y over the nodes of a tier is at least X. If
lengths differ, requests count in proportion to the KV cache that they hold: the fields
`hold_passes`, `hold_chunks` and `hold_prompt_tokens` of `Lengths` take the places of o - 1, n_c
and p, in H as well.

*Latencies.* The time per output token is that of a decode pass through all stages and links.
The time to first token is the entry, plus one chunk in every stage, plus n_c - 1 times the
largest chunk, plus the links. The latency adds o - 1 decode passes. With `users`, X (latency +
think time) is at most the number of users.

Where this differs from the page ``serving.md`` of the design, the reasons are: an iteration
also holds at most T tokens in all; without max(b, 1) the head, which works only where a token
comes out, would drop out of the pass of a token that is alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_iteration import Replica, holders
from hypsolve.problem.serving_split import (
    SLACK,
    Latencies,
    check_targets,
    crossed_links,
    entry_s,
    stages,
)
from hypsolve.problem.solution import Partition


class StageMode:
    """A split under the batching mode ``stage``."""

    def __init__(self, instance: ServingInstance, partition: Partition) -> None:
        self.instance, self.partition = instance, partition
        self.nodes = {
            (k, i, j): [
                _Node(instance, int(instance.nodes.node_class[node]), i, j, room)
                for node, room in holders(instance, k, i, j)
            ]
            for k, i, j in stages(partition)
        }
        self.rates = {key: [node.most() for node in nodes] for key, nodes in self.nodes.items()}

    def most(self) -> float:
        """Return a rate that no stage exceeds."""
        return min(math.fsum(rates) for rates in self.rates.values())

    def at(self, x: float) -> tuple[str, Latencies | None]:
        """Return the rule that refuses x requests per second, or the latencies."""
        instance, lengths = self.instance, self.instance.lengths
        names = instance.tier_names
        links, why = _links_s(instance, self.partition, x)
        if why:
            return why, None
        decode_s, prompt_s, held_prompt_s = links
        chunks_s: list[float] = []
        own_s: dict[tuple[int, int, int], float] = {}
        for key, nodes in self.nodes.items():
            rates = self.rates[key]
            total = math.fsum(rates)
            if x > total * (1 + SLACK):
                return f"tier {names[key[0]]}: an iteration takes too long", None
            w = v = waiting = 0.0
            for node, rate in zip(nodes, rates, strict=True):
                w_g, v_g, b = node.passes_s(min(x * rate / total, rate))
                w += rate / total * w_g
                v += rate / total * v_g
                waiting += rate / total * max(b - 1, 0.0)
            w += waiting * self._message_s(key)
            decode_s += w
            chunks_s.append(v)
            own_s[key] = lengths.hold_passes * w + v
        held_s = lengths.hold_passes * links[0] + held_prompt_s + math.fsum(own_s.values())
        for key, nodes in self.nodes.items():
            if not self._has_memory(nodes, self.rates[key], held_s - own_s[key], x):
                return f"tier {names[key[0]]}: KV cache is full", None
        ttft = entry_s(instance, self.partition) + prompt_s + math.fsum(chunks_s)
        ttft += (lengths.chunks - 1) * max(chunks_s)
        return check_targets(instance, x, ttft, decode_s)

    def _has_memory(
        self, nodes: list[_Node], rates: list[float], elsewhere_s: float, x: float
    ) -> bool:
        total = math.fsum(rates)
        shares = [min(x * rate / total, rate) for rate in rates]
        pairs = list(zip(nodes, shares, strict=True))
        used = [x_g * (elsewhere_s + node.kept_s(x_g)) / node.room for node, x_g in pairs]
        if max(used) <= 1:
            return True  # every node has memory for its share
        if min(used) > 1 + 1e-9:
            return False  # no node has memory for its share
        most = zip(nodes, rates, strict=True)
        carried = math.fsum(node.memory_rate(elsewhere_s, rate) for node, rate in most)
        return carried >= x * (1 - SLACK)

    def _message_s(self, key: tuple[int, int, int]) -> float:
        k, _, stop = key
        if stop == self.instance.n_blocks:
            return 0.0
        links = self.instance.links
        return float(links.token_s[k, links.cut_kind[stop]])


class _Node:
    """A node with a stage."""

    def __init__(
        self, instance: ServingInstance, node_class: int, start: int, stop: int, room: float
    ) -> None:
        self.instance, self.room = instance, room
        self.tau_s = Replica(instance, node_class, start, stop).iteration_s
        self.is_whole = stop - start == instance.n_blocks

    def most(self) -> float:
        """Return S, the largest rate of the node."""
        lengths = self.instance.lengths
        z = largest_batch(self.instance, self.room)
        return z / self.tau_s(z * lengths.decode_passes, z * lengths.chunks)

    def passes_s(self, rate: float) -> tuple[float, float, float]:
        """Return seconds of a decode pass and of a chunk, and decode tokens per iteration."""
        lengths = self.instance.lengths
        per_s = rate * lengths.decode_passes, rate * lengths.chunks
        t = fixed_point(
            lambda t: self.tau_s(per_s[0] * t, per_s[1] * t),
            largest_batch(self.instance, self.room) / rate,
        )
        b, k = per_s[0] * t, per_s[1] * t
        rest = min(1.0, b + k) * t / 2
        decode = self.tau_s(max(b, 1.0), k) + (0.0 if self.is_whole else rest)
        return decode, self.tau_s(b, max(1.0, k)) + rest, b

    def kept_s(self, rate: float) -> float:
        """Return the seconds for which the stage itself keeps the KV cache of a request."""
        decode, chunk, _ = self.passes_s(rate)
        lengths = self.instance.lengths
        return lengths.hold_passes * decode + lengths.hold_chunks * chunk

    def memory_rate(self, elsewhere_s: float, most: float) -> float:
        """Return y: the largest rate of the node if passes spend so long elsewhere."""
        if math.isinf(self.room):
            return most

        def missing(x: float) -> float:
            return x * (elsewhere_s + self.kept_s(x)) - self.room

        f_most = missing(most)
        if f_most <= 0:
            return most
        return zero(missing, 0.0, -self.room, most, f_most, 1e-14 * self.room)


def largest_batch(instance: ServingInstance, room: float) -> float:
    """Return the most requests per iteration of a node, z, in the mode ``stage``."""
    rules, lengths = instance.rules, instance.lengths
    batch = min(float(rules.max_num_seqs), room)
    limits = [math.inf]
    if rules.max_num_batched_tokens is not None:
        batch = min(batch, float(rules.max_num_batched_tokens))
        computed = lengths.prompt_tokens + lengths.decode_passes
        limits.append(rules.max_num_batched_tokens / computed)
    if rules.prompt_limit is not None:
        limits.append(rules.prompt_limit / lengths.prompt_tokens)
    return min(batch / (lengths.decode_passes + lengths.chunks), *limits)


def fixed_point(function: Callable[[float], float], high: float) -> float:
    """Return the least t with ``t = function(t)``, for a function with falling f(t) / t.

    It is at most `high`, up to rounding.
    """
    f_low, f_high = function(0.0), function(high) - high
    if f_high >= 0:
        return high
    return zero(lambda t: function(t) - t, 0.0, f_low, high, f_high)


def zero(
    function: Callable[[float], float],
    low: float,
    f_low: float,
    high: float,
    f_high: float,
    close: float | None = None,
) -> float:
    """Return the zero of a function between two points where its signs differ.

    The bracket is halved until it is as narrow as rounding allows, and secants speed that up.

    Parameters
    ----------
    function : callable
    low, f_low, high, f_high : float
        The points and the values there.
    close : float, optional
        A value that is 0 up to rounding. Default: 1e-15 of the point.
    """
    side = 0
    for _ in range(200):
        x = (low * f_high - high * f_low) / (f_high - f_low)
        if not low < x < high:
            x = (low + high) / 2
        f_x = function(x)
        if abs(f_x) <= (1e-15 * x if close is None else close) or high - low <= 1e-15 * high:
            return x
        if (f_x > 0) == (f_low > 0):
            low, f_low = x, f_x
            f_high, side = (f_high / 2 if side == 1 else f_high), 1
        else:
            high, f_high = x, f_x
            f_low, side = (f_low / 2 if side == -1 else f_low), -1
    return high


def _links_s(
    instance: ServingInstance, partition: Partition, x: float
) -> tuple[tuple[float, float, float], str]:
    """Return seconds on all links of a decode pass, a prompt, and a prompt weighted by KV."""
    lengths = instance.lengths
    decode = prompt = held = 0.0
    for name, token_s, round_trip in crossed_links(instance, partition):
        rho = x * (lengths.prompt_tokens + lengths.decode_passes) * token_s
        if rho >= 1:
            return (0.0, 0.0, 0.0), f"{name}: it carries too few bytes per second"
        message = token_s * lengths.chunk_tokens
        d = x * lengths.chunks * message**2 / (2 * (1 - rho))
        decode += round_trip + token_s + d
        prompt += round_trip + lengths.prompt_tokens * token_s + lengths.chunks * d
        held += round_trip + lengths.hold_prompt_tokens * token_s + lengths.hold_chunks * d
    return (decode, prompt, held), ""
