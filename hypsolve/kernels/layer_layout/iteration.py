"""Iterations of a node: which tokens one takes, how long it lasts, where its tokens go."""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.layer_layout.records import (
    DECODE,
    ITERATION_END,
    MAY_ADMIT,
    N_BUCKETS,
    N_ENDED,
    N_LOGGED,
    N_SENT,
    N_VISITS,
    NIL,
    REACH,
    RETURN,
    SEND,
    SHIFT,
    UNLIMITED,
)
from hypsolve.kernels.token_level.batch_cost import add_chunk, add_decode, batch_s, clear
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.queues import enqueue_token, mark_touched


@kernel
def enqueue_prompt(places, node, max_hops, v, now_s):
    """Insert a place into the prefill queue of its node.

    The queue is always sorted by (when the prompt tokens began to wait, request).
    """
    places[v].ready_s = now_s
    r, before, at = v // max_hops, NIL, node.prefill_head
    tail = node.prefill_tail
    if at != NIL and (places[tail].ready_s < now_s or tail // max_hops < r):
        before, at = tail, NIL
    while at != NIL and (places[at].ready_s < now_s or at // max_hops < r):
        before = at
        at = places[at].behind
    places[v].behind = at
    if at == NIL:
        node.prefill_tail = v
    if before == NIL:
        node.prefill_head = v
    else:
        places[before].behind = v


@inlined
def receive_prompt(setup, state, v, n_tokens, now_s):
    """Record prompt tokens that arrive at a position of a path."""
    place = state.places[v]
    waiting = place.arrived - place.computed - place.taken
    place.arrived += n_tokens
    if waiting == 0:
        r, position = v // setup.max_hops, v % setup.max_hops
        n = setup.hop[state.requests[r].path, position].node
        enqueue_prompt(state.places, state.nodes[n], setup.max_hops, v, now_s)
        mark_touched(state.nodes, state.touched, state.counts, n)


@inlined
def receive_tokens(setup, state, head, now_s):
    """Enqueue a chain of decode tokens at the nodes of their positions."""
    requests = state.requests
    r = head
    while r != NIL:
        after = requests[r].next
        n = setup.hop[requests[r].path, requests[r].hop].node
        enqueue_token(requests, state.nodes[n], r, now_s)
        mark_touched(state.nodes, state.touched, state.counts, n)
        r = after


@kernel
def _seconds(setup, state, node):
    """Return the seconds of an iteration: of each group, with the tokens that pass it."""
    sums, tokens, total_s = state.sums, state.tokens, 0.0
    for g in range(node.n_spans):
        if g > 0:
            tokens[g, 0] += tokens[g - 1, 0]
            tokens[g, 1] += tokens[g - 1, 1]
            for w in range(sums.shape[1]):
                for i in range(3):
                    sums[g, w, i] += sums[g - 1, w, i]
        total_s += batch_s(setup, node.span + g, node.kind, sums[g], tokens[g, 0], tokens[g, 1])
    return total_s


@kernel
def start(setup, state, heap, n, now_s):
    """Start an iteration on an idle node, with tokens in the order in which they began to wait.

    It takes at most `max_num_seqs` requests and `chunk_tokens` prompt tokens. Once the prompt
    tokens are spent, decode tokens are still taken. If `max_num_batched_tokens` is given,
    decode tokens come first.
    """
    requests, places, sums, tokens = state.requests, state.places, state.sums, state.tokens
    node, max_hops = state.nodes[n], setup.max_hops
    for g in range(node.n_spans):
        clear(sums[g])
        tokens[g, 0] = 0.0
        tokens[g, 1] = 0.0
    slots, budget, left = setup.max_num_seqs, setup.chunk_tokens, setup.max_num_batched_tokens
    decodes_first = left < UNLIMITED
    decode, prompt = node.decode_head, node.prefill_head
    last_decode, last_prompt = NIL, NIL
    node.batch_decode, node.batch_prefill = decode, NIL
    while slots > 0 and left > 0 and (decode != NIL or prompt != NIL):
        take_prompt = decode == NIL
        if prompt != NIL and decode != NIL and not decodes_first:
            waits_s, other_s = places[prompt].ready_s, requests[decode].ready_s
            take_prompt = waits_s < other_s or (
                waits_s == other_s and prompt // max_hops < decode
            )
        if take_prompt:
            if budget == 0:
                prompt = NIL
                continue
            place, request = places[prompt], requests[prompt // max_hops]
            g = setup.hop[request.path, prompt % max_hops].group
            available = place.arrived - place.computed
            place.taken = min(available, budget, left)
            budget -= place.taken
            left -= place.taken
            q = float(place.taken)
            add_chunk(setup.windows, sums[g], float(place.computed), q)
            tokens[g, 0] += q
            if place.computed + place.taken == request.prompt:
                tokens[g, 1] += 1.0
            place.batch_behind = NIL
            if last_prompt == NIL:
                node.batch_prefill = prompt
            else:
                places[last_prompt].batch_behind = prompt
            last_prompt = prompt
            if place.taken == available:
                node.prefill_head = place.behind
                prompt = node.prefill_head
            else:
                prompt = NIL  # the budget is spent
        else:
            request = requests[decode]
            g = setup.hop[request.path, request.hop].group
            place = places[decode * max_hops + request.hop]
            place.taken = 1
            left -= 1
            add_decode(setup.windows, sums[g], float(place.computed))
            tokens[g, 0] += 1.0
            tokens[g, 1] += 1.0
            last_decode = decode
            if decode == node.decode_mark:
                node.decode_mark = NIL
            decode = request.next
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
    end_s = now_s + setup.iteration_s + _seconds(setup, state, node)
    push(heap, state.counts, end_s, ITERATION_END * SHIFT + n, n, 0, 0)


@inlined
def _log(setup, state, log, r, n, place, now_s):
    """Count a visit, and write it to the log if visits are recorded."""
    counts, node = state.counts, state.nodes[n]
    counts[N_VISITS] += 1
    node.n_tokens += place.taken
    if setup.record_visits:
        visit = log[counts[N_LOGGED]]
        visit.request = r
        visit.node = n
        visit.start_s = node.start_s
        visit.end_s = now_s
        visit.tokens = place.taken
        visit.context = place.computed
        counts[N_LOGGED] += 1


@inlined
def _send(setup, link, now_s, n_tokens):
    """Return when tokens that are sent over a link arrive."""
    time_s = now_s
    if setup.contention:
        time_s = max(time_s, link.free_s)
    time_s += n_tokens * link.token_bytes / link.bytes_per_s
    if setup.contention:
        link.free_s = time_s
    return time_s + link.latency_s


@inlined
def _put(setup, state, r, position):
    """Put a token that was computed at a position into the bucket of its next way.

    There is a bucket for every link, and one for the way back of every path.
    """
    request, buckets = state.requests[r], state.buckets
    if position + 1 < setup.n_hops[request.path]:
        b = setup.hop[request.path, position + 1].link
        request.hop = position + 1
    else:
        b = len(state.links) + request.path
        request.hop = 0
    if buckets[b, 1] == 0:
        state.used[state.counts[N_BUCKETS]] = b
        state.counts[N_BUCKETS] += 1
        buckets[b, 0] = NIL
    request.next = buckets[b, 0]
    buckets[b, 0] = r
    buckets[b, 1] += 1


@kernel
def end_iteration(setup, state, heap, log, n, now_s):
    """End the iteration of a node and send its tokens on.

    The decode tokens with the same way move on as one message, and before the chunks of
    prompts.
    """
    requests, places, counts, links = state.requests, state.places, state.counts, state.links
    node, max_hops = state.nodes[n], setup.max_hops
    node.running = 0
    node.busy_s += now_s - node.start_s
    node.n_iterations += 1
    mark_touched(state.nodes, state.touched, counts, n)
    r = node.batch_decode
    node.batch_decode = NIL
    while r != NIL:
        after, position = requests[r].next, requests[r].hop
        place = places[r * max_hops + position]
        _log(setup, state, log, r, n, place, now_s)
        place.taken = 0
        place.computed += 1
        _put(setup, state, r, position)
        r = after
    for i in range(counts[N_BUCKETS]):
        b = state.used[i]
        if b < len(links):  # the ways back are no links
            on_link = state.buckets[b, 1] if setup.contention else 1
            time_s = _send(setup, links[b], now_s, on_link)
            push(heap, counts, time_s, DECODE * SHIFT + b, state.buckets[b, 0], 0, 0)
            state.buckets[b, 1] = 0
    v = node.batch_prefill
    node.batch_prefill = NIL
    while v != NIL:
        place, r, position = places[v], v // max_hops, v % max_hops
        request, behind = requests[r], places[v].batch_behind
        _log(setup, state, log, r, n, place, now_s)
        n_tokens = place.taken
        place.taken = 0
        place.computed += n_tokens
        if position + 1 < setup.n_hops[request.path]:
            link = links[setup.hop[request.path, position + 1].link]
            time_s = max(_send(setup, link, now_s, n_tokens), places[v + 1].sent_s)
            places[v + 1].sent_s = time_s
            push(heap, counts, time_s, REACH * SHIFT + r, n_tokens, position + 1, 0)
        elif place.computed == request.prompt:
            _put(setup, state, r, position)
        v = behind
    for i in range(counts[N_BUCKETS]):
        b = state.used[i]
        if state.buckets[b, 1] > 0:
            p = b - len(links)
            time_s = now_s + setup.return_s[p]
            push(heap, counts, time_s, RETURN * SHIFT + p, state.buckets[b, 0], 0, 0)
            state.buckets[b, 1] = 0
    counts[N_BUCKETS] = 0


@inlined
def _end_request(setup, state, heap, r, now_s, end_s):
    """Free the KV cache of a request on all nodes; its last token is delivered at `end_s`."""
    request, counts = state.requests[r], state.counts
    request.freed_s = now_s
    request.end_s = end_s
    counts[N_ENDED] += 1
    counts[MAY_ADMIT] = 1
    for position in range(setup.n_hops[request.path]):
        hop = setup.hop[request.path, position]
        state.nodes[hop.node].held -= kv_bytes(setup, request, hop)
    if setup.users > 0 and counts[N_SENT] < len(state.requests):
        last_s = state.requests[setup.users - 1].arrival_s
        time_s = max(end_s + setup.think_time_s, last_s)
        push(heap, counts, time_s, SEND * SHIFT + r, 0, 0, 0)


@kernel
def deliver(setup, state, heap, head, now_s):
    """Deliver a chain of tokens that are back at the first nodes of their paths.

    Requests that got their last token end; the others start their next decode pass.
    """
    requests = state.requests
    r = head
    while r != NIL:
        request = requests[r]
        after = request.next
        delivered_s = now_s + setup.delivery_s[request.path]
        request.returned += 1
        if request.returned == 1:
            request.first_token_s = delivered_s
        if request.returned == request.output:
            _end_request(setup, state, heap, r, now_s, delivered_s)
        else:
            n = setup.hop[request.path, 0].node
            enqueue_token(requests, state.nodes[n], r, now_s)
            mark_touched(state.nodes, state.touched, state.counts, n)
        r = after


@inlined
def kv_bytes(setup, request, hop):
    """Return the KV cache that a request reserves at a position: of all of its tokens."""
    slot = setup.slot_tokens
    n_tokens = (request.prompt + request.output + slot - 1) // slot * slot
    return n_tokens * hop.kv_bytes
