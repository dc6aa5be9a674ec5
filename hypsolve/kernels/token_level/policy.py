"""Dispatching policies at token level; `hypsolve.dispatch.policies` describes them."""

import numpy as np

from hypsolve.kernels.dispatch import (
    EARLIEST_COMPLETION,
    HYPSCHED_RT,
    JOIN_SHORTEST_QUEUE,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
)
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.layout import (
    ASSIGNED,
    NIL,
    NOW,
    PYTHON,
)
from hypsolve.kernels.token_level.queues import kv_tokens


@inlined
def left_s(setup, request, place, row, span, kind):
    """Return the expected seconds of a request's work on a span that has not started."""
    prefill_s = setup.prefill_s[row, span, kind]
    decode_s = setup.expected_s[row, span, kind] - prefill_s
    started = place.computed + place.taken
    seconds = prefill_s * max(1.0 - started / request.prefill, 0.0)
    total = request.prompt + request.believed - 1
    passes_left = total - max(started, request.prefill)
    if passes_left > 0:
        seconds += decode_s * (passes_left / (request.believed - 1))
    return seconds


@kernel
def remaining_s(setup, requests, places, nodes, n, now_s):
    """Return the expected seconds of work that a node has left.

    It walks through the residents of the node.
    """
    node = nodes[n]
    total_s = 0.0
    if node.running == 1:
        total_s = max(node.start_s + node.nominal_s - now_s, 0.0)
    r = node.resident_head
    while r != NIL:
        place, request = places[r * setup.n_stages + node.stage], requests[r]
        row = r if len(setup.expected_s) > 1 else 0
        r = place.resident_next
        if not np.isnan(place.left_s):  # its work here is complete
            continue
        total_s += left_s(setup, request, place, row, node.span, node.kind)
    return total_s


@kernel
def factor(slowdown):
    """Round a measured slowdown to 1/16 octave, as policies see it."""
    return 2.0 ** (np.rint(16.0 * np.log2(slowdown)) / 16.0)


@kernel
def _free_kv_tokens(node):
    """Return the KV cache of a node that is neither held nor needed by queued requests."""
    return node.capacity - node.held - node.queued


@kernel
def _nth_up(setup, nodes, stage, nth):
    """Return the nth node of a stage that is up."""
    for at in range(setup.eligible_start[stage], setup.eligible_start[stage + 1]):
        n = setup.eligible[at]
        if nodes[n].up == 1:
            if nth == 0:
                return n
            nth -= 1
    return NIL


@kernel
def _best_node(setup, state, r, stage):
    """Return the node with the smallest value under the policy; ties go to the lower node.

    HypSched-RT prefers nodes that have room for the request's KV cache.
    """
    requests, places, nodes, clock = state.requests, state.places, state.nodes, state.clock
    row = r if len(setup.expected_s) > 1 else 0
    need = requests[r].prompt + requests[r].believed
    if setup.paged:
        need = kv_tokens(setup, requests[r], requests[r].prefill)
    best, best_value, best_has_room = NIL, np.inf, False
    for at in range(setup.eligible_start[stage], setup.eligible_start[stage + 1]):
        n = setup.eligible[at]
        node = nodes[n]
        if node.up == 0:
            continue
        own_s = setup.expected_s[row, node.span, node.kind]
        has_room = False
        if setup.policy == HYPSCHED_RT:
            has_room = _free_kv_tokens(node) >= need
            value = (node.outstanding_s + own_s) * factor(node.slowdown)
        elif setup.policy == JOIN_SHORTEST_QUEUE:
            value = float(node.n_jobs)
        else:
            value = remaining_s(setup, requests, places, nodes, n, clock[NOW])
            if setup.policy == EARLIEST_COMPLETION:
                value += own_s
        better = has_room if has_room != best_has_room else value < best_value
        if best == NIL or better:
            best, best_value, best_has_room = n, value, has_room
    return best


@kernel
def n_unfinished(setup, nodes, stage):
    """Return the number of requests whose work at a stage is not complete."""
    number = 0
    for at in range(setup.eligible_start[stage], setup.eligible_start[stage + 1]):
        number += nodes[setup.eligible[at]].n_jobs
    return number


@kernel
def choose(setup, state, r, stage):
    """Return the node that the policy picks for a request at a stage; NIL if none is up."""
    nodes = state.nodes
    n_up = 0
    for at in range(setup.eligible_start[stage], setup.eligible_start[stage + 1]):
        n_up += nodes[setup.eligible[at]].up
    if n_up == 0:
        return NIL
    if setup.policy == PYTHON:
        return np.int64(0)  # any node: the caller chooses
    if setup.policy == RANDOM:
        return _nth_up(setup, nodes, stage, int(setup.uniforms[stage, r, 0] * n_up))
    if setup.policy == ROUND_ROBIN:
        return _nth_up(setup, nodes, stage, state.dispatched[stage] % n_up)
    if setup.policy == POWER_OF_TWO:
        a = int(setup.uniforms[stage, r, 0] * n_up)
        first = _nth_up(setup, nodes, stage, a)
        if n_up == 1:
            return first
        b = int(setup.uniforms[stage, r, 1] * (n_up - 1))
        if b >= a:
            b += 1
        second = _nth_up(setup, nodes, stage, b)
        return second if nodes[second].n_jobs < nodes[first].n_jobs else first
    if setup.policy == ASSIGNED:
        first, end = setup.eligible_start[stage], setup.eligible_start[stage + 1]
        at = first
        while setup.eligible[at] != setup.assigned[r, stage]:
            at += 1
        while nodes[setup.eligible[at]].up == 0:
            at = at + 1 if at + 1 < end else first
        return setup.eligible[at]
    return _best_node(setup, state, r, stage)
