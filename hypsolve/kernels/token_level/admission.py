"""Admission of requests: they reach a node, get KV cache, and leave.

A request joins the list of residents of its node in `_pin`, and leaves it in `leave`. The
admission queue is first come, first served; only `admit` takes its head. Under ``reserve`` a
request holds `kv_tokens` from admission on; under ``paged``, `give_blocks` adds to them.
"""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.bins import record_node, record_stranded
from hypsolve.kernels.token_level.layout import NIL, NOW, STRANDED
from hypsolve.kernels.token_level.queues import enqueue_prompt, kv_tokens, mark_touched
from hypsolve.kernels.token_level.routes import join_route


@kernel
def admit(setup, state, n):
    """Give KV cache to the head of a node's admission queue, as long as there is room."""
    requests, places, clock = state.requests, state.places, state.clock
    node, n_stages = state.nodes[n], setup.n_stages
    while node.admission_head != NIL:
        r = node.admission_head
        v = r * n_stages + node.stage
        need = kv_tokens(setup, requests[r], requests[r].prefill)
        if node.held + need > node.capacity:
            break
        record_node(state.nodes, state.bins, clock, n)
        node.held += need
        node.queued -= need
        node.n_waiting -= 1
        node.admission_head = places[v].behind
        places[v].held = need
        places[v].admitted_s = clock[NOW]
        enqueue_prompt(places, node, n_stages, r, clock[NOW])
        mark_touched(state.nodes, state.touched, state.counts, n)


@kernel
def _enqueue(setup, state, node, r):
    """Insert a request into the admission queue of a node.

    Under ``paged`` the queue is always sorted by arrival (`rank`).
    """
    requests, places = state.requests, state.places
    n_stages, stage = setup.n_stages, node.stage
    tail = node.admission_tail
    if node.admission_head == NIL:
        node.admission_head = r
        places[r * n_stages + stage].behind = NIL
        node.admission_tail = r
    elif not setup.paged or requests[tail].rank < requests[r].rank:
        places[tail * n_stages + stage].behind = r
        places[r * n_stages + stage].behind = NIL
        node.admission_tail = r
    else:
        before, at = NIL, node.admission_head
        while requests[at].rank < requests[r].rank:
            before = at
            at = places[at * n_stages + stage].behind
        places[r * n_stages + stage].behind = at
        if before == NIL:
            node.admission_head = r
        else:
            places[before * n_stages + stage].behind = r


@kernel
def _pin(setup, state, r, stage, n):
    """Pin a request to a node: add it to the residents and to the admission queue."""
    requests, places, nodes = state.requests, state.places, state.nodes
    v = r * setup.n_stages + stage
    place, node = places[v], nodes[n]
    record_node(nodes, state.bins, state.clock, n)
    row = r if len(setup.expected_s) > 1 else 0
    node.n_jobs += 1
    node.outstanding_s += setup.expected_s[row, node.span, node.kind]
    place.node = n
    place.resident = 1
    place.resident_before = NIL
    place.resident_next = node.resident_head
    if node.resident_head != NIL:
        places[node.resident_head * setup.n_stages + stage].resident_before = r
    node.resident_head = r
    if len(state.pipes) == 0 or stage == 0:  # else counted since the request was routed
        node.queued += kv_tokens(setup, requests[r], requests[r].prefill)
    if len(state.pipes) > 0 and stage == 0:
        join_route(setup, state, r, node.pipe)
    node.n_waiting += 1
    _enqueue(setup, state, node, r)
    if len(state.pipes) == 0:
        state.dispatched[stage] += 1
    admit(setup, state, n)


@kernel
def complete(setup, state, r, n):
    """Record that a request's work at a node is complete.

    Its KV cache stays reserved until the request ends.
    """
    node = state.nodes[n]
    record_node(state.nodes, state.bins, state.clock, n)
    row = r if len(setup.expected_s) > 1 else 0
    node.n_jobs -= 1
    node.outstanding_s -= setup.expected_s[row, node.span, node.kind]  # see `exact_sums`


@kernel
def leave(setup, state, r, stage):
    """Free the KV cache of a request at a stage, and remove it from the node's residents."""
    places, nodes = state.places, state.nodes
    place = places[r * setup.n_stages + stage]
    if place.resident == 0:
        return
    n = place.node
    node = nodes[n]
    record_node(nodes, state.bins, state.clock, n)
    if np.isnan(place.admitted_s):
        node.queued -= kv_tokens(setup, state.requests[r], state.requests[r].prefill)
        node.n_waiting -= 1
    else:
        node.held -= place.held
    place.resident = 0
    if place.resident_before == NIL:
        node.resident_head = place.resident_next
    else:
        before = place.resident_before * setup.n_stages + stage
        places[before].resident_next = place.resident_next
    if place.resident_next != NIL:
        after = place.resident_next * setup.n_stages + stage
        places[after].resident_before = place.resident_before


@kernel
def reach(setup, state, r, stage, n):
    """Pin a request that reaches a stage to node `n`; if `n` is NIL, strand it.

    A stranded request waits in the list `State.stranded` until a node of the stage recovers.
    """
    place = state.places[r * setup.n_stages + stage]
    if np.isnan(place.reached_s):  # else it was stranded
        place.reached_s = state.clock[NOW]
    if n == NIL:
        place.node = STRANDED
        place.behind = state.stranded[stage]
        state.stranded[stage] = r
        record_stranded(state, stage, np.int64(1))
    else:
        _pin(setup, state, r, stage, n)


@kernel
def arrive(setup, state, r, stage, n_tokens):
    """Record prompt tokens that arrive at a stage which their request has reached before."""
    place = state.places[r * setup.n_stages + stage]
    waiting = place.arrived - place.computed - place.taken
    place.arrived += n_tokens
    if waiting == 0 and place.node >= 0 and not np.isnan(place.admitted_s):
        node = state.nodes[place.node]
        enqueue_prompt(state.places, node, setup.n_stages, r, state.clock[NOW])
        mark_touched(state.nodes, state.touched, state.counts, place.node)
