"""Passage of batches through the stages of a pipeline, and their return.

A batch is cut into parts of `micro_batch_tokens` tokens; a part is computed by a node at once.
`LEG` says where the next part of a batch begins at a stage.
"""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.batch_cost import add_chunk, add_decode, batch_s, clear
from hypsolve.kernels.token_level.bins import add_to_bins, record_node
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.iteration import log_visit, send_next
from hypsolve.kernels.token_level.layout import (
    BUSY,
    ITERATION_END,
    LAST_END,
    N_ENDED,
    N_VISITS,
    NOW,
    RETURN,
    SHIFT,
)
from hypsolve.kernels.token_level.links import finish_s, send_over_links
from hypsolve.kernels.token_level.pipeline.layout import HANDOVER
from hypsolve.kernels.token_level.pipeline.queues import delist, mark_touched, record_pipe


@inlined
def compute(setup, state, heap, n):
    """Start the next part of a batch on an idle node, if one has arrived."""
    node, now_s, sums = state.nodes[n], state.clock[NOW], state.sums
    at = node.pipe * setup.n_slots + node.turn
    leg = state.legs[at * setup.n_stages + node.stage]
    if node.running == 1 or leg.done >= leg.arrived:
        return
    clear(sums)
    left = setup.micro_batch_tokens
    n_tokens, n_passes = 0.0, 0.0
    node.n_rows = 0
    i, offset = leg.share, leg.offset
    while i < state.batches[at].n_shares and left > 0:
        share = state.shares[at, i]
        taken = min(share.taken - offset, left)
        cached = float(share.first + offset)
        if taken == 1:
            add_decode(setup.windows, sums, cached)
        else:
            add_chunk(setup.windows, sums, cached, float(taken))
        n_tokens += float(taken)
        if offset + taken == share.taken:
            n_passes += float(share.yields)
        if share.attempt == state.requests[share.request].attempt:
            state.places[share.request * setup.n_stages + node.stage].taken = taken
        left -= taken
        node.n_rows += 1
        i, offset = i + 1, np.int64(0)
    node.running = 1
    node.start_s = now_s
    node.nominal_s = batch_s(setup, node.span, node.kind, sums, n_tokens, n_passes)
    while node.speed_at + 1 < node.speed_end and setup.speed_s[node.speed_at + 1] <= now_s:
        node.speed_at += 1
    end_s = finish_s(
        setup.speed_s, setup.speed, node.speed_at, node.speed_end, now_s, node.nominal_s
    )
    epoch = state.pipes[node.pipe].epoch
    push(heap, state.counts, end_s, ITERATION_END * SHIFT + n, n, node.stage, epoch)


@kernel
def _complete(setup, state, r, node, n):
    """Record that a request's work at a node, or in the whole pipeline, is complete."""
    record_node(state.nodes, state.bins, state.clock, n)
    node.n_jobs -= 1
    state.places[r * setup.n_stages + node.stage].left_s = state.clock[NOW]
    pipe = state.pipes[node.pipe]
    if node.stage == pipe.n_stages - 1:
        row = r if len(setup.own_s) > 1 else 0
        pipe.n_jobs -= 1
        pipe.outstanding_s -= setup.own_s[row, node.pipe]  # exact, see `exact_sums`


@inlined
def _count_part(setup, state, log, n, at, leg):
    """Count the tokens of the part that a node has computed; return how many it sends on."""
    node, counts, now_s = state.nodes[n], state.counts, state.clock[NOW]
    left, sent = setup.micro_batch_tokens, np.int64(0)
    i, offset = leg.share, leg.offset
    while i < state.batches[at].n_shares and left > 0:
        share = state.shares[at, i]
        r, taken = share.request, min(share.taken - offset, left)
        request = state.requests[r]
        if share.attempt == request.attempt:  # else it was preempted
            place = state.places[r * setup.n_stages + node.stage]
            if setup.record_visits:
                log_visit(log, counts, r, n, node, now_s, taken, share.first + offset)
            place.taken = 0
            place.computed += taken
            node.n_tokens += taken
            counts[N_VISITS] += 1
            if place.computed == request.prompt + request.output - 1:
                _complete(setup, state, r, node, n)
        left -= taken
        sent += taken
        offset += taken
        if offset == share.taken:
            i, offset = i + 1, np.int64(0)
    leg.share = i
    leg.offset = offset
    leg.done += 1
    return sent


@inlined
def end_part(setup, state, heap, log, n):
    """End the part that a node has computed, and send it on."""
    node, now_s, counts = state.nodes[n], state.clock[NOW], state.counts
    node.running = 0
    node.busy_s += now_s - node.start_s
    add_to_bins(state.bins, state.clock, BUSY, n, node.start_s, now_s, 1.0)
    node.n_iterations += 1
    if node.nominal_s > 0:
        ratio = (now_s - node.start_s) / node.nominal_s
        node.slowdown += 0.2 * (ratio - node.slowdown)
    p, stage = node.pipe, node.stage
    pipe = state.pipes[p]
    at = p * setup.n_slots + node.turn
    leg = state.legs[at * setup.n_stages + stage]
    sent = _count_part(setup, state, log, n, at, leg)
    is_over = leg.done == state.batches[at].n_parts
    if is_over:
        node.turn = (node.turn + 1) % pipe.n_slots
    if stage + 1 < pipe.n_stages:
        following = setup.member[p, stage + 1]
        time_s = send_over_links(setup, state.links, node.span + 1, now_s, sent)
        time_s = max(time_s, state.nodes[following].sent_s)
        state.nodes[following].sent_s = time_s
        push(heap, counts, time_s, HANDOVER * SHIFT + following, at, stage + 1, pipe.epoch)
    elif is_over:
        time_s = now_s + setup.return_s[p]
        push(heap, counts, time_s, RETURN * SHIFT + n, at, stage, pipe.epoch)
    mark_touched(state, p)


@inlined
def hand_over(setup, state, at, stage):
    """Let a part of a batch, or at the first stage all of it, arrive."""
    p = at // setup.n_slots
    leg = state.legs[at * setup.n_stages + stage]
    if stage == 0:
        leg.arrived = state.batches[at].n_parts
        state.pipes[p].preparing = 0
    else:
        leg.arrived += 1
    mark_touched(state, p)


@kernel
def _end_request(setup, state, r):
    """Free the KV cache of a request; it ends when its last token is delivered."""
    request, counts = state.requests[r], state.counts
    pipe = state.pipes[request.pipe]
    end_s = state.clock[NOW] + setup.delivery_s[request.pipe]
    request.end_s = end_s
    state.clock[LAST_END] = max(state.clock[LAST_END], end_s)
    counts[N_ENDED] += 1
    pipe.n_ready -= 1
    pipe.held -= request.held
    request.held = 0
    delist(state.requests, pipe, r)
    send_next(setup, state, end_s)


@inlined
def bring_back(setup, state, at):
    """Bring a batch back to the scheduler: deliver its tokens, and let its requests go on."""
    p = at // setup.n_slots
    pipe, now_s = state.pipes[p], state.clock[NOW]
    pipe.n_in_flight -= 1
    for i in range(state.batches[at].n_shares):
        share = state.shares[at, i]
        r = share.request
        request = state.requests[r]
        request.in_flight -= 1
        if share.attempt == request.attempt and share.yields == 1:
            pipe.n_ready += 1
            request.delivered += 1
            if request.delivered == 1:
                request.first_token_s = now_s + setup.delivery_s[p]
            if request.delivered == request.output:
                _end_request(setup, state, r)
    if pipe.held != state.nodes[setup.member[p, 0]].held:
        record_pipe(setup, state, p)
    mark_touched(state, p)
