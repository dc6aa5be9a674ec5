"""Queues of prompts and decode tokens at a node, as linked lists through the requests.

A decode token of a request is in one place at a time: a queue, an iteration, or a message. One
link, `next` of its record, therefore chains it wherever it is. A prompt can be at several
stages at once, so prompts are linked by (request, stage), through `behind` and `batch_behind`.
"""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.layout import N_TOUCHED, NIL


@inlined
def mark_touched(nodes, touched, counts, n):
    """Mark a node to be looked at when all events of this instant are over."""
    if nodes[n].touched == 0:
        nodes[n].touched = 1
        touched[counts[N_TOUCHED]] = n
        counts[N_TOUCHED] += 1


@kernel
def enqueue_prompt(places, node, n_stages, r, now_s):
    """Insert an admitted request into the prefill queue of its node.

    The queue is always sorted by (when the prompt tokens began to wait, request).
    """
    v = r * n_stages + node.stage
    places[v].ready_s = now_s
    tail = node.prefill_tail
    if node.prefill_head == NIL:
        node.prefill_head = r
        node.prefill_tail = r
        places[v].behind = NIL
        return
    if places[tail * n_stages + node.stage].ready_s < now_s or tail < r:
        places[tail * n_stages + node.stage].behind = r
        places[v].behind = NIL
        node.prefill_tail = r
        return
    before, at = NIL, node.prefill_head
    while places[at * n_stages + node.stage].ready_s < now_s or at < r:
        before = at
        at = places[at * n_stages + node.stage].behind
    places[v].behind = at
    if before == NIL:
        node.prefill_head = r
    else:
        places[before * n_stages + node.stage].behind = r


@inlined
def enqueue_token(requests, node, r, now_s):
    """Insert a decode token into the decode queue of its node.

    The queue is always sorted by (when the token began to wait, request). `decode_mark` is
    the last request that has waited for longer than the tail, NIL if none is queued; so tokens
    of one instant are sorted without a walk from the head.
    """
    requests[r].ready_s = now_s
    tail = node.decode_tail
    if node.decode_head == NIL:
        node.decode_head = r
        node.decode_tail = r
        node.decode_mark = NIL
        requests[r].next = NIL
        return
    if requests[tail].ready_s < now_s:
        node.decode_mark = tail
    elif r < tail:
        before = node.decode_mark
        at = node.decode_head if before == NIL else requests[before].next
        while requests[at].ready_s < now_s or at < r:
            before = at
            at = requests[at].next
        requests[r].next = at
        if before == NIL:
            node.decode_head = r
        else:
            requests[before].next = r
        return
    requests[tail].next = r
    requests[r].next = NIL
    node.decode_tail = r


@kernel
def keep_tokens(requests, head, gone):
    """Remove requests that are `gone` from a chain of decode tokens; return head and tail."""
    kept, tail, r = NIL, NIL, head
    while r != NIL:
        after = requests[r].next
        if not gone[r]:
            requests[r].next = NIL
            if tail == NIL:
                kept = r
            else:
                requests[tail].next = r
            tail = r
        r = after
    return kept, tail


@kernel
def keep_prompts(places, n_stages, stage, head, gone):
    """Remove requests that are `gone` from a list through `behind`; return head and tail."""
    kept, tail, r = NIL, NIL, head
    while r != NIL:
        place = places[r * n_stages + stage]
        after = place.behind
        if not gone[r]:
            place.behind = NIL
            if tail == NIL:
                kept = r
            else:
                places[tail * n_stages + stage].behind = r
            tail = r
        r = after
    return kept, tail


@kernel
def keep_batch(places, n_stages, stage, head, gone):
    """Remove requests that are `gone` from the prompts of an iteration; return the head."""
    kept, tail, r = NIL, NIL, head
    while r != NIL:
        place = places[r * n_stages + stage]
        after = place.batch_behind
        if not gone[r]:
            place.batch_behind = NIL
            if tail == NIL:
                kept = r
            else:
                places[tail * n_stages + stage].batch_behind = r
            tail = r
        r = after
    return kept


@kernel
def kv_tokens(setup, request, n_tokens):
    """Return the KV tokens that a request holds when `n_tokens` of it are cached.

    Under ``paged`` these are whole blocks; the last block ends with the request. Under
    ``reserve`` these are all tokens of the request, in whole multiples of `slot_tokens`.
    """
    whole = request.prompt + request.output
    if not setup.paged:
        return (whole + setup.slot_tokens - 1) // setup.slot_tokens * setup.slot_tokens
    block = setup.kv_block_tokens
    return min((n_tokens + block - 1) // block * block, whole)
