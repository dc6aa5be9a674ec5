"""Blocks of KV cache under ``paged``, and requests that are preempted when there are none."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.admission import admit
from hypsolve.kernels.token_level.bins import record_node
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.failure import remove_tokens, restart
from hypsolve.kernels.token_level.layout import NIL, NOW, REACH, SHIFT
from hypsolve.kernels.token_level.queues import kv_tokens


@kernel
def _last_arrived(setup, state, n):
    """Return the request that arrived last among those with KV cache on a node."""
    last, r = NIL, state.nodes[n].resident_head
    while r != NIL:
        place = state.places[r * setup.n_stages + state.nodes[n].stage]
        is_later = last == NIL or state.requests[r].rank > state.requests[last].rank
        if is_later and not np.isnan(place.admitted_s):
            last = r
        r = place.resident_next
    return last


@kernel
def _preempt(setup, state, heap, r):
    """Let a request start again at the first stage, as after a failure."""
    request = state.requests[r]
    state.gone[r] = True
    remove_tokens(setup, state, heap, state.gone)
    state.gone[r] = False
    restart(setup, state, r)
    request.preemptions += 1
    code = REACH * SHIFT + r
    push(
        heap, state.counts, state.clock[NOW], code, request.prefill, np.int64(0),
        request.attempt,
    )  # fmt: skip


@kernel
def _needed(setup, state, node):
    """Return the KV tokens that the decode tokens waiting at a node need."""
    total, r = 0, node.decode_head
    while r != NIL:
        place = state.places[r * setup.n_stages + node.stage]
        total += kv_tokens(setup, state.requests[r], place.computed + 1) - place.held
        r = state.requests[r].next
    return total


@kernel
def _give(setup, state, n):
    """Give the decode tokens waiting at a node their blocks, for which there is room."""
    node = state.nodes[n]
    record_node(state.nodes, state.bins, state.clock, n)
    r = node.decode_head
    while r != NIL:
        place = state.places[r * setup.n_stages + node.stage]
        needed = kv_tokens(setup, state.requests[r], place.computed + 1) - place.held
        place.held += needed
        node.held += needed
        r = state.requests[r].next


@kernel
def give_blocks(setup, state, heap):
    """Give blocks to the decode tokens at all nodes that are about to start an iteration.

    Nodes come in the order of their indices. Requests are preempted where there is no room,
    and then others are admitted where KV cache has become free. Return whether any was
    preempted.
    """
    nodes = state.nodes
    preempted = False
    for n in range(len(nodes)):
        node = nodes[n]
        if node.touched == 0 or node.running == 1 or node.up == 0 or node.decode_head == NIL:
            continue
        needed = _needed(setup, state, node)
        while node.held + needed > node.capacity:
            _preempt(setup, state, heap, _last_arrived(setup, state, n))
            preempted = True
            needed = _needed(setup, state, node)
        if needed > 0:
            _give(setup, state, n)
    if preempted:
        for n in range(len(nodes)):
            if nodes[n].stage != NIL and nodes[n].up == 1:
                admit(setup, state, n)
    return preempted
