"""The event loop of the simulator of layer layouts: arrivals, admission, `run`."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.layer_layout.iteration import (
    deliver,
    end_iteration,
    kv_bytes,
    receive_prompt,
    receive_tokens,
    start,
)
from hypsolve.kernels.layer_layout.records import (
    BUDGET,
    DECODE,
    DONE,
    GROW,
    ITERATION_END,
    MAY_ADMIT,
    N_ENDED,
    N_EVENTS,
    N_LOGGED,
    N_SENT,
    N_TOUCHED,
    NIL,
    PAUSE,
    RETURN,
    SEND,
    SHIFT,
)
from hypsolve.kernels.token_level.event_heap import pop


@inlined
def _arrive(setup, state, r, now_s):
    """Let a request join the queue of its path at the coordinator."""
    requests, waiting, p = state.requests, state.waiting, state.requests[r].path
    requests[r].arrival_s = now_s
    requests[r].next = NIL
    if waiting[p, 0] == NIL:
        waiting[p, 0] = r
    else:
        requests[waiting[p, 1]].next = r
    waiting[p, 1] = r
    state.counts[MAY_ADMIT] = 1


@inlined
def _has_room(setup, state, r):
    """Return whether every node of a request's path has room for its KV cache."""
    request = state.requests[r]
    for position in range(setup.n_hops[request.path]):
        hop = setup.hop[request.path, position]
        node = state.nodes[hop.node]
        if node.held + kv_bytes(setup, request, hop) > node.capacity:
            return False
    return True


@kernel
def _admit(setup, state, now_s):
    """Admit the first requests of the queues that have room, in the order of arrival."""
    requests, waiting = state.requests, state.waiting
    while True:
        first = NIL
        for p in range(len(waiting)):
            r = waiting[p, 0]
            if r == NIL or (first != NIL and requests[first].rank < requests[r].rank):
                continue
            if _has_room(setup, state, r):
                first = r
        if first == NIL:
            return
        request = requests[first]
        waiting[request.path, 0] = request.next
        request.admitted_s = now_s
        for position in range(setup.n_hops[request.path]):
            hop = setup.hop[request.path, position]
            node = state.nodes[hop.node]
            node.held += kv_bytes(setup, request, hop)
            node.peak = max(node.peak, node.held)
        receive_prompt(setup, state, first * setup.max_hops, request.prompt, now_s)


@kernel
def run(setup, state, heap, log):
    """Process events until all requests have ended, or until the caller must act.

    Returns
    -------
    int
        ``DONE``; ``GROW``: the heap or the log needs more room; ``PAUSE``: ``counts[BUDGET]``
        events were processed. Except after ``DONE``, another call goes on.
    """
    requests, nodes, counts, clock = state.requests, state.nodes, state.counts, state.clock
    n_requests = len(requests)
    max_pushed = min(setup.max_num_seqs, n_requests) + len(nodes) + 4  # by one event
    n_given = n_requests if setup.users == 0 else setup.users  # whose arrivals are given
    budget = counts[BUDGET]
    arrived = np.int64(0)
    while arrived < n_given and requests[setup.order[arrived]].rank < counts[N_SENT]:
        arrived += 1
    while counts[N_ENDED] < n_requests:
        next_s = np.inf
        if counts[N_EVENTS] > 0:
            next_s = heap[0].time_s
        arriving = np.int64(NIL)
        if arrived < n_given and requests[setup.order[arrived]].arrival_s <= next_s:
            arriving = setup.order[arrived]
            next_s = requests[arriving].arrival_s
        if counts[N_EVENTS] + max_pushed > len(heap):
            return GROW
        if next_s > clock[0] and (counts[MAY_ADMIT] == 1 or counts[N_TOUCHED] > 0):
            if counts[MAY_ADMIT] == 1:
                _admit(setup, state, clock[0])
                counts[MAY_ADMIT] = 0
            for i in range(counts[N_TOUCHED]):
                node = nodes[state.touched[i]]
                node.touched = 0
                waits = node.decode_head != NIL or node.prefill_head != NIL
                if waits and node.running == 0:
                    start(setup, state, heap, state.touched[i], clock[0])
            counts[N_TOUCHED] = 0
            continue
        if budget <= 0:
            return PAUSE
        budget -= 1
        clock[0] = next_s
        if arriving != NIL:
            arrived += 1
            counts[N_SENT] += 1
            _arrive(setup, state, arriving, next_s)
            continue
        head, stage, code = heap[0].head, heap[0].stage, heap[0].code
        kind, which = code // SHIFT, code % SHIFT
        if kind == ITERATION_END:
            if setup.record_visits and counts[N_LOGGED] + nodes[which].batch_size > len(log):
                return GROW
            pop(heap, counts)
            end_iteration(setup, state, heap, log, which, next_s)
        elif kind == SEND:
            pop(heap, counts)
            if counts[N_SENT] < n_requests:
                counts[N_SENT] += 1
                _arrive(setup, state, counts[N_SENT] - 1, next_s)
        elif kind == RETURN:
            pop(heap, counts)
            deliver(setup, state, heap, head, next_s)
        elif kind == DECODE:
            pop(heap, counts)
            receive_tokens(setup, state, head, next_s)
        else:
            pop(heap, counts)
            receive_prompt(setup, state, which * setup.max_hops + stage, head, next_s)
    return DONE
