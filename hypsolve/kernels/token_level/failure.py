"""Nodes that fail and recover."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.admission import admit, complete, leave
from hypsolve.kernels.token_level.bins import add_to_bins, record_stranded
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.layout import (
    BUSY,
    DECODE,
    N_EVENTS,
    NIL,
    NOW,
    REACH,
    RETURN,
    SHIFT,
    STRANDED,
)
from hypsolve.kernels.token_level.queues import keep_batch, keep_prompts, keep_tokens
from hypsolve.kernels.token_level.routes import quit_route


@kernel
def remove_tokens(setup, state, heap, gone):
    """Remove the tokens of requests that are `gone` from every queue, iteration and message."""
    requests, places, nodes = state.requests, state.places, state.nodes
    n_stages = setup.n_stages
    for n in range(len(nodes)):
        node = nodes[n]
        stage = node.stage
        if stage == NIL:
            continue
        node.decode_head, node.decode_tail = keep_tokens(requests, node.decode_head, gone)
        node.decode_mark = NIL
        node.batch_decode, _ = keep_tokens(requests, node.batch_decode, gone)
        node.prefill_head, node.prefill_tail = keep_prompts(
            places, n_stages, stage, node.prefill_head, gone
        )
        node.admission_head, node.admission_tail = keep_prompts(
            places, n_stages, stage, node.admission_head, gone
        )
        node.batch_prefill = keep_batch(places, n_stages, stage, node.batch_prefill, gone)
    for stage in range(n_stages):
        state.stranded[stage], _ = keep_prompts(
            places, n_stages, stage, state.stranded[stage], gone
        )
    for at in range(state.counts[N_EVENTS]):
        kind = heap[at].code // SHIFT
        if kind in (RETURN, DECODE):
            heap[at].head, _ = keep_tokens(requests, heap[at].head, gone)


@kernel
def restart(setup, state, r):
    """Reset a request to the first stage; only the tokens that were delivered are kept."""
    request = state.requests[r]
    if len(state.pipes) > 0:
        quit_route(setup, state, r)
    for stage in range(setup.n_stages):
        place = state.places[r * setup.n_stages + stage]
        if place.resident == 1:
            if np.isnan(place.left_s):
                complete(setup, state, r, np.int64(place.node))
            leave(setup, state, r, stage)
        if place.node == STRANDED:
            record_stranded(state, stage, np.int64(-1))
        request.lost += place.computed
        place.node = NIL
        place.arrived = 0
        place.computed = 0
        place.taken = 0
        place.held = 0
        place.sent_s = 0.0
        place.reached_s = np.nan
        place.admitted_s = np.nan
        place.left_s = np.nan
    request.attempt += 1
    request.prefill = request.prompt + request.delivered


@kernel
def fail(setup, state, heap, n):
    """Take a node down and restart the requests whose work there was not complete."""
    nodes, places, n_stages = state.nodes, state.places, setup.n_stages
    node, now_s = nodes[n], state.clock[NOW]
    node.up = 0
    if node.stage == NIL:
        return
    if node.running == 1:
        node.running = 0
        node.run_id += 1  # voids the event of its end
        node.busy_s += now_s - node.start_s
        add_to_bins(state.bins, state.clock, BUSY, n, node.start_s, now_s, 1.0)
    gone = state.gone
    r = node.resident_head
    while r != NIL:
        place = places[r * n_stages + node.stage]
        after = place.resident_next
        if np.isnan(place.left_s):
            gone[r] = True
        else:
            leave(setup, state, r, node.stage)
        r = after
    remove_tokens(setup, state, heap, gone)
    for r in range(len(gone)):
        if gone[r]:
            restart(setup, state, r)  # may have been stranded
            state.requests[r].restarts += 1
    for m in range(len(nodes)):
        if nodes[m].stage != NIL and nodes[m].up == 1:
            admit(setup, state, m)
    for r in range(len(gone)):
        if gone[r]:
            request = state.requests[r]  # its ids are at the first stage: they cross no link
            code = REACH * SHIFT + r
            push(heap, state.counts, now_s, code, request.prefill, np.int64(0), request.attempt)
            gone[r] = False


@kernel
def recover(setup, state, heap, n):
    """Bring a node up, empty, and dispatch the requests that are stranded at its stage."""
    node = state.nodes[n]
    node.up = 1
    node.slowdown = 1.0
    stage = node.stage
    if stage == NIL:
        return
    r = state.stranded[stage]
    state.stranded[stage] = NIL
    record_stranded(state, stage, -state.n_stranded[stage])
    while r != NIL:
        place = state.places[r * setup.n_stages + stage]
        place.node = NIL
        code, attempt = REACH * SHIFT + r, state.requests[r].attempt
        push(heap, state.counts, state.clock[NOW], code, np.int64(0), stage, attempt)
        r = place.behind
