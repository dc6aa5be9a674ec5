"""Scheduler of a pipeline: it admits and preempts requests, and forms batches."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.bins import record_node
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.layout import NIL, NOW, SHIFT
from hypsolve.kernels.token_level.pipeline.layout import AGAIN, FORMED, HANDOVER, NOTHING
from hypsolve.kernels.token_level.pipeline.queues import (
    delist,
    enlist,
    mark_touched,
    record_pipe,
)
from hypsolve.kernels.token_level.queues import kv_tokens


@kernel
def pin(setup, state, r, p):
    """Pin a request to a pipeline, where it waits for admission."""
    requests, pipe = state.requests, state.pipes[p]
    request = requests[r]
    row = r if len(setup.own_s) > 1 else 0
    request.pipe = p
    pipe.n_jobs += 1
    pipe.outstanding_s += setup.own_s[row, p]
    pipe.queued += kv_tokens(setup, request, request.prefill)
    for stage in range(pipe.n_stages):
        n = setup.member[p, stage]
        record_node(state.nodes, state.bins, state.clock, n)
        state.nodes[n].n_jobs += 1
    enlist(requests, pipe, r, 0)
    record_pipe(setup, state, p)
    state.dispatched[0] += 1
    mark_touched(state, p)


@kernel
def forget(setup, state, r):
    """Forget the tokens that a request has computed; those delivered join its prompt."""
    request = state.requests[r]
    for stage in range(setup.n_stages):
        place = state.places[r * setup.n_stages + stage]
        request.lost += place.computed
        place.computed = 0
        place.taken = 0
        place.left_s = np.nan
    request.computed = 0
    request.held = 0
    request.attempt += 1
    request.admitted_s = np.nan
    request.prefill = request.prompt + request.delivered


@kernel
def _preempt(setup, state, p, r):
    """Free the KV cache of a running request, and let it wait to be computed again."""
    requests, pipe = state.requests, state.pipes[p]
    request = requests[r]
    for stage in range(pipe.n_stages):
        if not np.isnan(state.places[r * setup.n_stages + stage].left_s):
            n = setup.member[p, stage]
            record_node(state.nodes, state.bins, state.clock, n)
            state.nodes[n].n_jobs += 1
            if stage == pipe.n_stages - 1:
                row = r if len(setup.own_s) > 1 else 0
                pipe.n_jobs += 1
                pipe.outstanding_s += setup.own_s[row, p]
    pipe.held -= request.held
    if request.in_flight == 0 or request.computed < request.prefill:
        pipe.n_ready -= 1
    delist(requests, pipe, r)
    forget(setup, state, r)
    request.preemptions += 1
    pipe.queued += kv_tokens(setup, request, request.prefill)
    enlist(requests, pipe, r, 0)


@kernel
def _make_room(setup, state, p, r):
    """Get the block of a running request's next token; return whether the request still runs.

    As long as there is no room, the running request that arrived last is preempted.
    """
    request, pipe = state.requests[r], state.pipes[p]
    needed = kv_tokens(setup, request, request.computed + 1) - request.held
    while needed > 0 and pipe.held + needed > pipe.capacity:
        last = pipe.running_tail
        _preempt(setup, state, p, last)
        if last == r:
            return False
    if needed > 0:
        request.held += needed
        pipe.held += needed
    return True


@inlined
def _take(request, pipe, batch, share, r, n_tokens):
    """Append tokens of a running request to a batch that is being formed, as its `share`."""
    share.request = r
    share.attempt = request.attempt
    share.first = request.computed
    share.taken = n_tokens
    request.computed += n_tokens
    request.in_flight += 1
    share.yields = 0
    if request.computed >= request.prefill:
        share.yields = 1
        pipe.n_ready -= 1
    batch.n_shares += 1
    batch.n_tokens += n_tokens


@inlined
def _fill(setup, state, p, batch, shares):
    """Fill a batch: decode tokens, then prompts that run, then requests that are admitted.

    Returns whether a request was preempted; then nobody is admitted.
    """
    requests, pipe = state.requests, state.pipes[p]
    n_running = pipe.n_running
    left = setup.max_num_batched_tokens
    r = pipe.running_head
    while r != NIL and left > 0:
        request = requests[r]
        if request.in_flight == 0 and request.computed >= request.prefill:
            if setup.paged and not _make_room(setup, state, p, r):
                break  # it was the last one
            _take(request, pipe, batch, shares[batch.n_shares], r, 1)
            left -= 1
        r = request.behind
    preempted = pipe.n_running < n_running
    left = min(left, setup.chunk_tokens)
    r = pipe.running_head if pipe.n_ready > 0 else NIL
    while r != NIL and left > 0:
        request = requests[r]
        if request.computed < request.prefill:
            n_tokens = min(request.prefill - request.computed, left)
            _take(request, pipe, batch, shares[batch.n_shares], r, n_tokens)
            left -= n_tokens
        r = request.behind
    r = NIL if preempted else pipe.waiting_head
    while r != NIL and left > 0 and pipe.n_running < setup.max_num_seqs:
        request = requests[r]
        behind = request.behind
        needed = kv_tokens(setup, request, request.prefill)
        if request.in_flight > 0 or pipe.held + needed > pipe.capacity:
            break
        delist(requests, pipe, r)
        enlist(requests, pipe, r, 1)
        pipe.queued -= needed
        pipe.held += needed
        pipe.n_ready += 1
        request.held = needed
        request.admitted_s = state.clock[NOW]
        n_tokens = min(request.prefill, left)
        _take(request, pipe, batch, shares[batch.n_shares], r, n_tokens)
        left -= n_tokens
        r = behind
    return preempted


@inlined
def may_form(setup, pipe):
    """Return whether a pipeline may form a batch and has a request to take."""
    if pipe.n_down > 0 or pipe.preparing == 1 or pipe.n_in_flight == pipe.n_slots:
        return False
    return pipe.n_ready > 0 or pipe.n_waiting > 0


@kernel
def form(setup, state, heap, p):
    """Form the next batch of a pipeline that may form one; return what was done.

    ``FORMED``; ``NOTHING``; ``AGAIN``: requests were preempted and no token could be taken, so
    that another attempt can admit requests.
    """
    pipe = state.pipes[p]
    at = p * setup.n_slots + pipe.slot
    batch = state.batches[at]
    batch.n_shares = 0
    batch.n_tokens = 0
    preempted = _fill(setup, state, p, batch, state.shares[at])
    node = state.nodes[setup.member[p, 0]]
    if pipe.held != node.held or pipe.n_waiting != node.n_waiting:
        record_pipe(setup, state, p)
    if batch.n_tokens == 0:
        return AGAIN if preempted else NOTHING
    part = setup.micro_batch_tokens
    batch.n_parts = (batch.n_tokens + part - 1) // part
    for stage in range(pipe.n_stages):
        leg = state.legs[at * setup.n_stages + stage]
        leg.arrived = 0
        leg.done = 0
        leg.share = 0
        leg.offset = 0
    pipe.n_in_flight += 1
    pipe.slot = (pipe.slot + 1) % pipe.n_slots
    if setup.iteration_s > 0.0:
        pipe.preparing = 1
        time_s = state.clock[NOW] + setup.iteration_s
        code = HANDOVER * SHIFT + setup.member[p, 0]
        push(heap, state.counts, time_s, code, at, np.int64(0), pipe.epoch)
    else:
        state.legs[at * setup.n_stages].arrived = batch.n_parts
    return FORMED
