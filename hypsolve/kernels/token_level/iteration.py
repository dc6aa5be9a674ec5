"""Iterations of a node: which tokens one takes, how long it lasts, where its tokens go."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.admission import admit, complete, leave
from hypsolve.kernels.token_level.batch_cost import add_chunk, add_decode, batch_s, clear
from hypsolve.kernels.token_level.bins import add_to_bins
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.layout import (
    BUSY,
    DECODE,
    ITERATION_END,
    LAST_END,
    N_ENDED,
    N_LOGGED,
    N_SENT,
    N_VISITS,
    NEXT_ARRIVAL,
    NIL,
    NOW,
    RETURN,
    SHIFT,
    UNLIMITED,
)
from hypsolve.kernels.token_level.links import finish_s, send_over_links, send_prompt
from hypsolve.kernels.token_level.queues import enqueue_token, mark_touched
from hypsolve.kernels.token_level.routes import complete_route


@inlined
def start(setup, state, heap, n):
    """Start an iteration on an idle node.

    It takes requests in the order in which their tokens began to wait: at most `max_num_seqs`
    of them, and at most `chunk_tokens` prompt tokens. Once the prompt tokens are spent, decode
    tokens are still taken. If `max_num_batched_tokens` is given, decode tokens come first.
    """
    requests, places, sums = state.requests, state.places, state.sums
    node, now_s, n_stages = state.nodes[n], state.clock[NOW], setup.n_stages
    stage = node.stage
    clear(sums)
    slots, budget, left = setup.max_num_seqs, setup.chunk_tokens, setup.max_num_batched_tokens
    decodes_first = left < UNLIMITED
    n_tokens, n_passes = 0.0, 0.0
    decode, prompt = node.decode_head, node.prefill_head
    last_decode, last_prompt = NIL, NIL
    node.batch_decode, node.batch_prefill = decode, NIL
    while slots > 0 and left > 0 and (decode != NIL or prompt != NIL):
        take_prompt = decode == NIL
        if prompt != NIL and decode != NIL and not decodes_first:
            waits_s, other_s = (
                places[prompt * n_stages + stage].ready_s,
                requests[decode].ready_s,
            )
            take_prompt = waits_s < other_s or (waits_s == other_s and prompt < decode)
        if take_prompt:
            if budget == 0:
                prompt = NIL
                continue
            place = places[prompt * n_stages + stage]
            available = place.arrived - place.computed
            place.taken = min(available, budget, left)
            budget -= place.taken
            left -= place.taken
            q, c = float(place.taken), float(place.computed)
            add_chunk(setup.windows, sums, c, q)
            n_tokens += q
            if place.computed + place.taken == requests[prompt].prefill:
                n_passes += 1.0
            place.batch_behind = NIL
            if last_prompt == NIL:
                node.batch_prefill = prompt
            else:
                places[last_prompt * n_stages + stage].batch_behind = prompt
            last_prompt = prompt
            if place.taken == available:
                node.prefill_head = place.behind
                prompt = node.prefill_head
            else:
                prompt = NIL  # the budget is spent
        else:
            place = places[decode * n_stages + stage]
            place.taken = 1
            left -= 1
            add_decode(setup.windows, sums, float(place.computed))
            n_tokens += 1.0
            n_passes += 1.0
            last_decode = decode
            if decode == node.decode_mark:
                node.decode_mark = NIL
            decode = requests[decode].next
        slots -= 1
    node.decode_head = decode
    if last_decode == NIL:
        node.batch_decode = NIL
    else:
        requests[last_decode].next = NIL
    node.batch_size = setup.max_num_seqs - slots
    if node.batch_size == 0:
        return
    node.running = 1
    node.start_s = now_s
    computing_s = batch_s(setup, node.span, node.kind, sums, n_tokens, n_passes)
    node.nominal_s = setup.iteration_s + computing_s
    while node.speed_at + 1 < node.speed_end and setup.speed_s[node.speed_at + 1] <= now_s:
        node.speed_at += 1
    end_s = finish_s(
        setup.speed_s, setup.speed, node.speed_at, node.speed_end, now_s + setup.iteration_s,
        computing_s,
    )  # fmt: skip
    push(heap, state.counts, end_s, ITERATION_END * SHIFT + n, n, stage, node.run_id)


@kernel
def log_visit(log, counts, r, n, node, end_s, tokens, context):
    """Write a visit to the log, which must have room for it."""
    visit = log[counts[N_LOGGED]]
    visit.request = r
    visit.node = n
    visit.start_s = node.start_s
    visit.end_s = end_s
    visit.tokens = tokens
    visit.context = context
    counts[N_LOGGED] += 1


@inlined
def end_iteration(setup, state, heap, log, n):
    """End the iteration of a node and send its tokens on.

    The decode tokens move on as one message, and each chunk of a prompt as another.
    """
    requests, places, counts, clock = state.requests, state.places, state.counts, state.clock
    node, now_s, n_stages = state.nodes[n], clock[NOW], setup.n_stages
    stage, logging = node.stage, setup.record_visits
    is_last = node.is_last == 1
    node.running = 0
    node.busy_s += now_s - node.start_s
    add_to_bins(state.bins, clock, BUSY, n, node.start_s, now_s, 1.0)
    node.n_iterations += 1
    if node.nominal_s > 0:
        ratio = (now_s - node.start_s) / node.nominal_s
        node.slowdown += 0.2 * (ratio - node.slowdown)
    mark_touched(state.nodes, state.touched, counts, n)
    chain = node.batch_decode
    tail, r, n_decodes = NIL, chain, 0
    while r != NIL:
        place, request = places[r * n_stages + stage], requests[r]
        if logging:
            log_visit(log, counts, r, n, node, now_s, place.taken, place.computed)
        place.taken = 0
        place.computed += 1
        if place.computed == request.prompt + request.output - 1:
            place.left_s = now_s
            complete(setup, state, r, n)
            if is_last:
                complete_route(setup, state, r, node.pipe)
        n_decodes += 1
        tail = r
        r = request.next
    node.batch_decode = NIL
    node.n_tokens += n_decodes
    counts[N_VISITS] += n_decodes
    if chain != NIL and not is_last:
        on_link = n_decodes if setup.contention else 1
        time_s = send_over_links(setup, state.links, node.span + 1, now_s, on_link)
        push(heap, counts, time_s, DECODE * SHIFT + n, chain, stage + 1, np.int64(0))
    r = node.batch_prefill
    node.batch_prefill = NIL
    while r != NIL:
        place, request = places[r * n_stages + stage], requests[r]
        behind, tokens = place.batch_behind, place.taken
        if logging:
            log_visit(log, counts, r, n, node, now_s, tokens, place.computed)
        place.taken = 0
        place.computed += tokens
        node.n_tokens += tokens
        counts[N_VISITS] += 1
        if place.computed == request.prompt + request.output - 1:
            place.left_s = now_s
            complete(setup, state, r, n)
            if is_last:
                complete_route(setup, state, r, node.pipe)
        if not is_last:
            send_prompt(setup, state, heap, r, stage + 1, node.span + 1, tokens)
        elif place.computed == request.prefill:
            request.next = NIL
            if tail == NIL:
                chain = r
            else:
                requests[tail].next = r
            tail = r
        r = behind
    if is_last and chain != NIL:
        time_s = now_s + setup.return_s[node.pipe]
        push(heap, counts, time_s, RETURN * SHIFT + n, chain, stage, np.int64(0))


@inlined
def send_next(setup, state, end_s):
    """Let the user whose request ends send the next one, after the time to think.

    Requests are sent in the order of their indices: the times of those that are still to
    arrive are sorted. None is sent before all users have sent their first one.
    """
    if setup.n_users == 0:
        return
    counts, arrival_s = state.counts, state.arrival_s
    at, first = counts[N_SENT], max(counts[NEXT_ARRIVAL], setup.n_users)
    time_s = max(end_s + setup.think_time_s, arrival_s[setup.n_users - 1])
    if at == len(arrival_s):  # the last one is taken: by a user who is ready later, perhaps
        at -= 1
        if at < first or arrival_s[at] <= time_s:
            return
    else:
        counts[N_SENT] += 1
    while at > first and arrival_s[at - 1] > time_s:  # its way back to its user is longer
        arrival_s[at] = arrival_s[at - 1]
        at -= 1
    arrival_s[at] = time_s


@kernel
def _end_request(setup, state, r, end_s):
    """Free the KV cache of a request on all nodes; its last token is delivered at `end_s`."""
    state.requests[r].end_s = end_s
    state.clock[LAST_END] = max(state.clock[LAST_END], end_s)
    state.counts[N_ENDED] += 1
    send_next(setup, state, end_s)
    for stage in range(setup.n_stages):
        if state.places[r * setup.n_stages + stage].resident == 1:
            leave(setup, state, r, stage)
            n = state.places[r * setup.n_stages + stage].node
            admit(setup, state, n)


@inlined
def deliver(setup, state, head, n):
    """Deliver a chain of tokens that are back at the first stage from the last node `n`.

    Requests that got their last token end; the others start their next decode pass at once,
    while the token still travels on over the empty tiers before the first stage.
    """
    requests, now_s = state.requests, state.clock[NOW]
    delivered_s = now_s + setup.delivery_s[state.nodes[n].pipe]
    r = head
    while r != NIL:
        request = requests[r]
        after = request.next
        request.delivered += 1
        if request.delivered == 1:
            request.first_token_s = delivered_s
        if request.delivered == request.output:
            _end_request(setup, state, r, delivered_s)
        else:
            at = state.places[r * setup.n_stages].node
            enqueue_token(requests, state.nodes[at], r, now_s)
            mark_touched(state.nodes, state.touched, state.counts, at)
        r = after


@inlined
def receive(setup, state, head, stage):
    """Enqueue a chain of decode tokens at the nodes of a stage that hold their KV cache."""
    requests, now_s = state.requests, state.clock[NOW]
    r = head
    while r != NIL:
        after = requests[r].next
        n = state.places[r * setup.n_stages + stage].node
        enqueue_token(requests, state.nodes[n], r, now_s)
        mark_touched(state.nodes, state.touched, state.counts, n)
        r = after
