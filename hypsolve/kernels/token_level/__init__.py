"""The token-level system as a discrete-event loop; rules: `hypsolve.simulation.simulate`.

Everything that moves is in linked lists through the requests, so memory is linear in requests,
whatever the number of events. A decode token of a request is in one place at a time (a queue,
an iteration, a message), so one link chains it there, the field `next` of its record; prompts
can be in several, and are chained by (request, stage). The decode tokens of an iteration go on
as one event.

`run` returns when it is done, when it needs more room (`GROW`), when a policy in Python must
choose (`ASK`), or after ``counts[BUDGET]`` events (`PAUSE`, so that Ctrl-C works); call it
again to go on. It is compiled without reference counts, which took four fifths of its time. All
in one file, for a kernel may only call kernels of its own: numba's cache misses other changes.
"""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level_state import (
    CHURNED,
    EVENT,
    GPU,
    LINK,
    NODE,
    PART,
    PLACE,
    REQUEST,
    VISIT,
    Plan,
    State,
    records,
)

NIL = -1  # end of a list; no node
STRANDED = -2  # node of a request for which none was up
DONE, GROW, ASK, PAUSE = 0, 1, 2, 3  # what `run` returns
ITERATION_END, CHURN, RETURN, DECODE, REACH = 0, 1, 2, 3, 4  # kinds of events, in this order
FAILURE, RECOVERY = 0, 1  # kinds of churn
N_BINS = 256
BUSY, JOBS, WAITING, HELD = np.int64(0), np.int64(1), np.int64(2), np.int64(3)  # rows of bins
N_ROWS = 4
SHIFT = 1 << 48  # code of an event: kind * SHIFT + node or request

HYPSCHED_RT = 0
RANDOM = 1
ROUND_ROBIN = 2
JOIN_SHORTEST_QUEUE = 3
POWER_OF_TWO = 4
LEAST_WORK_LEFT = 5
EARLIEST_COMPLETION = 6
ASSIGNED = 7  # replays `Plan.assigned`
ASKED = 8  # the caller chooses

# places in `State.counts` and `State.clock`
N_EVENTS, NEXT_ARRIVAL, NEXT_CHURN, N_TOUCHED, N_LOGGED, N_VISITS = range(6)
ASKING, ANSWER, BUDGET, N_ENDED = range(6, 10)
N_COUNTS = 10
NOW, ORIGIN, WIDTH = 0, 1, 2


@kernel
def _before(time_s, code, event):
    return time_s < event.time_s or (time_s == event.time_s and code < event.code)


@inlined
def _push(heap, counts, time_s, code, head, stage, detail):
    at = counts[N_EVENTS]
    counts[N_EVENTS] += 1
    while at > 0:
        above = (at - 1) >> 1
        if not _before(time_s, code, heap[above]):
            break
        heap[at] = heap[above]
        at = above
    event = heap[at]
    event.time_s = time_s
    event.code = code
    event.head = head
    event.stage = stage
    event.detail = detail


@inlined
def _pop(heap, counts):
    counts[N_EVENTS] -= 1
    n = counts[N_EVENTS]
    time_s, code = heap[n].time_s, heap[n].code
    at = 0
    while True:
        below = 2 * at + 1
        if below >= n:
            break
        if below + 1 < n and _before(heap[below + 1].time_s, heap[below + 1].code, heap[below]):
            below += 1
        if _before(time_s, code, heap[below]):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = heap[n]


@inlined
def _finish_s(starts_s, rates, at, end, begin_s, amount):
    """When `amount` is done that begins at `begin_s`, the rate being constant by pieces."""
    while at + 1 < end and starts_s[at + 1] <= begin_s:
        at += 1
    now_s = begin_s
    while at + 1 < end:
        possible = (starts_s[at + 1] - now_s) * rates[at]
        if amount <= possible:
            break
        amount -= possible
        at += 1
        now_s = starts_s[at]
    return now_s + amount / rates[at]


@inlined
def _cross(plan, links, stage, now_s, n_tokens):
    """Send tokens over the links before an active stage; when they arrive."""
    time_s = now_s
    for k in range(plan.hop_first[stage], plan.hop_end[stage]):
        link = links[k]
        while link.rate_at + 1 < link.rate_end and plan.rate_s[link.rate_at + 1] <= now_s:
            link.rate_at += 1
        if plan.contention:
            time_s = max(time_s, link.free_s)
        n_bytes = n_tokens * link.token_bytes
        time_s = _finish_s(plan.rate_s, plan.rate, link.rate_at, link.rate_end, time_s, n_bytes)
        if plan.contention:
            link.free_s = time_s
        time_s += link.latency_s
    return time_s


@kernel
def _fill(bins, clock, row, n, begin_s, end_s, level):
    """Add `level` from `begin_s` to `end_s` to the bins of a node."""
    if level == 0 or end_s <= begin_s:
        return
    origin_s, width_s = clock[ORIGIN], clock[WIDTH]
    first = min(int((begin_s - origin_s) / width_s), N_BINS - 1)
    last = min(int((end_s - origin_s) / width_s), N_BINS - 1)
    if first == last:
        bins[row, n, first] += level * (end_s - begin_s)
        return
    bins[row, n, first] += level * (origin_s + (first + 1) * width_s - begin_s)
    for i in range(first + 1, last):
        bins[row, n, i] += level * width_s
    bins[row, n, last] += level * (end_s - (origin_s + last * width_s))


@kernel
def _account(nodes, bins, clock, n):
    """Fill the bins of a node up to now: its jobs or its KV cache are about to change."""
    node, now_s = nodes[n], clock[NOW]
    if now_s > node.seen_s:
        _fill(bins, clock, JOBS, n, node.seen_s, now_s, float(node.n_jobs))
        _fill(bins, clock, WAITING, n, node.seen_s, now_s, float(node.n_waiting))
        _fill(bins, clock, HELD, n, node.seen_s, now_s, float(node.held))
        node.seen_s = now_s


@kernel
def _strand(state, stage, change):
    """Fill the bins of those who wait for a node of a stage to be up; then there are others."""
    now_s, seen_s = state.clock[NOW], state.stranded_seen_s[stage]
    row = len(state.nodes) + stage
    _fill(state.bins, state.clock, WAITING, row, seen_s, now_s, float(state.n_stranded[stage]))
    state.stranded_seen_s[stage] = now_s
    state.n_stranded[stage] += change


@kernel
def _widen(bins, clock):
    """Let bins be twice as long."""
    for row in range(bins.shape[0]):
        for n in range(bins.shape[1]):
            for i in range(N_BINS // 2):
                bins[row, n, i] = bins[row, n, 2 * i] + bins[row, n, 2 * i + 1]
            bins[row, n, N_BINS // 2 :] = 0.0
    clock[WIDTH] *= 2.0


@inlined
def _touch(nodes, touched, counts, n):
    """Have a node looked at when all events of this instant are over."""
    if nodes[n].touched == 0:
        nodes[n].touched = 1
        touched[counts[N_TOUCHED]] = n
        counts[N_TOUCHED] += 1


@kernel
def _enqueue_prompt(places, node, n_stages, r, now_s):
    """Prompt tokens of an admitted request begin to wait; in order of time, then request."""
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
def _enqueue_token(requests, node, r, now_s):
    """A decode token begins to wait; in order of time, then request."""
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
def _admit(requests, places, nodes, bins, touched, counts, clock, n_stages, n):
    """Give KV cache to the head of a node's admission queue, while there is room."""
    node = nodes[n]
    while node.admission_head != NIL:
        r = node.admission_head
        v = r * n_stages + node.stage
        need = requests[r].prompt + requests[r].output
        if node.held + need > node.capacity:
            break
        _account(nodes, bins, clock, n)
        node.held += need
        node.queued -= need
        node.n_waiting -= 1
        node.admission_head = places[v].behind
        places[v].admitted_s = clock[NOW]
        _enqueue_prompt(places, node, n_stages, r, clock[NOW])
        _touch(nodes, touched, counts, n)


@kernel
def remaining_s(plan, requests, places, nodes, n, now_s):
    """Expected seconds until a node has nothing left to do."""
    node = nodes[n]
    total_s = 0.0
    if node.running == 1:
        total_s = max(node.start_s + node.nominal_s - now_s, 0.0)
    r = node.resident_head
    while r != NIL:
        place, request = places[r * plan.n_stages + node.stage], requests[r]
        row = r if len(plan.expected_s) > 1 else 0
        r = place.resident_next
        if not np.isnan(place.left_s):  # through, however long it was believed to be
            continue
        prefill_s = plan.prefill_s[row, node.stage, node.kind]
        decode_s = plan.expected_s[row, node.stage, node.kind] - prefill_s
        started = place.computed + place.taken
        total_s += prefill_s * max(1.0 - started / request.prefill, 0.0)
        total = request.prompt + request.believed - 1
        passes_left = total - max(started, request.prefill)
        if passes_left > 0:
            total_s += decode_s * (passes_left / (request.believed - 1))
    return total_s


@kernel
def factor(slowdown):
    """Measured slowdown as it is used, rounded to 1/16 octave."""
    return 2.0 ** (np.rint(16.0 * np.log2(slowdown)) / 16.0)


@kernel
def _room(node):
    return node.capacity - node.held - node.queued


@kernel
def _nth_up(plan, nodes, stage, nth):
    """The nth node of a stage that is up."""
    for at in range(plan.eligible_start[stage], plan.eligible_start[stage + 1]):
        n = plan.eligible[at]
        if nodes[n].up == 1:
            if nth == 0:
                return n
            nth -= 1
    return NIL


@kernel
def _least(plan, state, r, stage):
    """The node of least value under the plan's policy, ties to the lowest."""
    requests, places, nodes, clock = state.requests, state.places, state.nodes, state.clock
    row = r if len(plan.expected_s) > 1 else 0
    need = requests[r].prompt + requests[r].believed
    best, best_value, best_has_room = NIL, np.inf, False
    for at in range(plan.eligible_start[stage], plan.eligible_start[stage + 1]):
        n = plan.eligible[at]
        node = nodes[n]
        if node.up == 0:
            continue
        own_s = plan.expected_s[row, stage, node.kind]
        has_room = False
        if plan.policy == HYPSCHED_RT:
            has_room = _room(node) >= need
            value = (node.outstanding_s + own_s) * factor(node.slowdown)
        elif plan.policy == JOIN_SHORTEST_QUEUE:
            value = float(node.n_jobs)
        else:
            value = remaining_s(plan, requests, places, nodes, n, clock[NOW])
            if plan.policy == EARLIEST_COMPLETION:
                value += own_s
        better = has_room if has_room != best_has_room else value < best_value
        if best == NIL or better:
            best, best_value, best_has_room = n, value, has_room
    return best


@kernel
def _n_resident(plan, nodes, stage):
    """Requests whose work at a stage is not complete."""
    number = 0
    for at in range(plan.eligible_start[stage], plan.eligible_start[stage + 1]):
        number += nodes[plan.eligible[at]].n_jobs
    return number


@kernel
def _choose(plan, state, r, stage):
    """Node for a request that reaches a stage; NIL if none is up."""
    nodes = state.nodes
    n_up = 0
    for at in range(plan.eligible_start[stage], plan.eligible_start[stage + 1]):
        n_up += nodes[plan.eligible[at]].up
    if n_up == 0:
        return NIL
    if plan.policy == ASKED:
        return np.int64(0)  # some node: the caller says which
    if plan.policy == RANDOM:
        return _nth_up(plan, nodes, stage, int(plan.uniforms[stage, r, 0] * n_up))
    if plan.policy == ROUND_ROBIN:
        return _nth_up(plan, nodes, stage, state.dispatched[stage] % n_up)
    if plan.policy == POWER_OF_TWO:
        a = int(plan.uniforms[stage, r, 0] * n_up)
        first = _nth_up(plan, nodes, stage, a)
        if n_up == 1:
            return first
        b = int(plan.uniforms[stage, r, 1] * (n_up - 1))
        if b >= a:
            b += 1
        second = _nth_up(plan, nodes, stage, b)
        return second if nodes[second].n_jobs < nodes[first].n_jobs else first
    if plan.policy == ASSIGNED:
        first, end = plan.eligible_start[stage], plan.eligible_start[stage + 1]
        at = first
        while plan.eligible[at] != plan.assigned[r, stage]:
            at += 1
        while nodes[plan.eligible[at]].up == 0:
            at = at + 1 if at + 1 < end else first
        return plan.eligible[at]
    return _least(plan, state, r, stage)


@kernel
def _pin(plan, state, r, stage, n):
    """A request joins a node: its list of residents, its admission queue."""
    requests, places, nodes = state.requests, state.places, state.nodes
    v = r * plan.n_stages + stage
    place, node = places[v], nodes[n]
    _account(nodes, state.bins, state.clock, n)
    row = r if len(plan.expected_s) > 1 else 0
    node.n_jobs += 1
    node.outstanding_s += plan.expected_s[row, stage, node.kind]
    place.node = n
    place.resident = 1
    place.resident_before = NIL
    place.resident_next = node.resident_head
    if node.resident_head != NIL:
        places[node.resident_head * plan.n_stages + stage].resident_before = r
    node.resident_head = r
    node.queued += requests[r].prompt + requests[r].output
    node.n_waiting += 1
    place.behind = NIL
    if node.admission_head == NIL:
        node.admission_head = r
    else:
        places[node.admission_tail * plan.n_stages + stage].behind = r
    node.admission_tail = r
    state.dispatched[stage] += 1
    _admit(
        requests, places, nodes, state.bins, state.touched, state.counts, state.clock,
        plan.n_stages, n,
    )  # fmt: skip


@kernel
def _complete(plan, state, r, stage, n):
    """A request's work at a stage is over; its KV cache stays until it ends."""
    node = state.nodes[n]
    _account(state.nodes, state.bins, state.clock, n)
    row = r if len(plan.expected_s) > 1 else 0
    node.n_jobs -= 1
    node.outstanding_s -= plan.expected_s[row, stage, node.kind]  # exact, see `exact_sums`


@kernel
def _leave(plan, state, r, stage):
    """A request gives back its KV cache and leaves its node."""
    places, nodes = state.places, state.nodes
    place = places[r * plan.n_stages + stage]
    if place.resident == 0:
        return
    n = place.node
    node = nodes[n]
    _account(nodes, state.bins, state.clock, n)
    need = state.requests[r].prompt + state.requests[r].output
    if np.isnan(place.admitted_s):
        node.queued -= need
        node.n_waiting -= 1
    else:
        node.held -= need
    place.resident = 0
    if place.resident_before == NIL:
        node.resident_head = place.resident_next
    else:
        before = place.resident_before * plan.n_stages + stage
        places[before].resident_next = place.resident_next
    if place.resident_next != NIL:
        after = place.resident_next * plan.n_stages + stage
        places[after].resident_before = place.resident_before


@kernel
def _reach(plan, state, r, stage, n):
    """A request reaches a stage for the first time, and n was chosen; NIL: it waits."""
    place = state.places[r * plan.n_stages + stage]
    if np.isnan(place.reached_s):  # else it was stranded
        place.reached_s = state.clock[NOW]
    if n == NIL:
        place.node = STRANDED
        place.behind = state.stranded[stage]
        state.stranded[stage] = r
        _strand(state, stage, np.int64(1))
    else:
        _pin(plan, state, r, stage, n)


@kernel
def _arrive(plan, state, r, stage, n_tokens):
    """Prompt tokens arrive at a stage that their request has reached before."""
    place = state.places[r * plan.n_stages + stage]
    waiting = place.arrived - place.computed - place.taken
    place.arrived += n_tokens
    if waiting == 0 and place.node >= 0 and not np.isnan(place.admitted_s):
        node = state.nodes[place.node]
        _enqueue_prompt(state.places, node, plan.n_stages, r, state.clock[NOW])
        _touch(state.nodes, state.touched, state.counts, place.node)


@kernel
def _send_prompt(plan, state, heap, r, stage, n_tokens):
    """Send prompt tokens to a stage; they never overtake earlier ones."""
    place = state.places[r * plan.n_stages + stage]
    time_s = _cross(plan, state.links, stage, state.clock[NOW], n_tokens)
    time_s = max(time_s, place.sent_s)
    place.sent_s = time_s
    code = REACH * SHIFT + r
    _push(heap, state.counts, time_s, code, n_tokens, stage, state.requests[r].attempt)


@kernel
def _window_sum(n, window):
    """Sum of min(x, window) over x = 1..n."""
    if n <= window:
        return n * (n + 1) / 2
    return window * (window + 1) / 2 + (n - window) * window


@inlined
def _stage_s(plan, stage, kind, sums, n_tokens, n_passes):
    """Seconds of an iteration at speed 1."""
    gpu = plan.gpu[kind]
    total_s = 0.0
    for at in range(plan.part_start[stage], plan.part_start[stage + 1]):
        part = plan.part[at]
        computed = n_passes if part.last_token_only == 1 else n_tokens
        if computed == 0.0:
            continue
        pairs, reach = sums[part.window, 0], sums[part.window, 1]
        flops = part.flops_per_token * computed + part.flops_per_pair * pairs
        seconds = flops / gpu.flops_per_s
        if plan.bandwidth_bound:
            moved = part.always_read_bytes + part.gathered_bytes * computed
            if part.experts_bytes > 0.0:
                moved += part.experts_bytes * (1.0 - part.idle_share**computed)
            moved += part.kv_bytes * reach + part.activation_bytes * computed
            seconds = gpu.t0_s + max(seconds, moved / gpu.bytes_per_s)
        total_s += part.count * seconds
    return total_s


@inlined
def _start(plan, state, heap, n):
    """Start an iteration on an idle node with what waits there."""
    requests, places, sums = state.requests, state.places, state.sums
    node, now_s, n_stages = state.nodes[n], state.clock[NOW], plan.n_stages
    stage = node.stage
    n_windows = len(plan.windows)
    for w in range(n_windows):
        sums[w, 0] = 0.0
        sums[w, 1] = 0.0
    slots, budget = plan.max_batch, plan.chunk_tokens
    n_tokens, n_passes = 0.0, 0.0
    decode, prompt = node.decode_head, node.prefill_head
    last_decode, last_prompt = NIL, NIL
    node.batch_decode, node.batch_prefill = decode, NIL
    while slots > 0 and (decode != NIL or prompt != NIL):
        take_prompt = decode == NIL
        if prompt != NIL and decode != NIL:
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
            place.taken = min(available, budget)
            budget -= place.taken
            q, c = float(place.taken), float(place.computed)
            for w in range(n_windows):
                window = plan.windows[w]
                sums[w, 0] += _window_sum(c + q, window) - _window_sum(c, window)
                sums[w, 1] += min(c, window - 1) + q
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
            context = float(place.computed + 1)
            for w in range(n_windows):
                reach = min(context, plan.windows[w])
                sums[w, 0] += reach
                sums[w, 1] += reach
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
    node.batch_size = plan.max_batch - slots
    if node.batch_size == 0:
        return
    node.running = 1
    node.start_s = now_s
    node.nominal_s = _stage_s(plan, stage, node.kind, sums, n_tokens, n_passes)
    while node.speed_at + 1 < node.speed_end and plan.speed_s[node.speed_at + 1] <= now_s:
        node.speed_at += 1
    end_s = _finish_s(
        plan.speed_s, plan.speed, node.speed_at, node.speed_end, now_s, node.nominal_s
    )
    _push(heap, state.counts, end_s, ITERATION_END * SHIFT + n, n, stage, node.run_id)


@kernel
def _log(log, counts, r, n, node, end_s, tokens, context):
    visit = log[counts[N_LOGGED]]
    visit.request = r
    visit.node = n
    visit.start_s = node.start_s
    visit.end_s = end_s
    visit.tokens = tokens
    visit.context = context
    counts[N_LOGGED] += 1


@inlined
def _end_iteration(plan, state, heap, log, n):
    """Tokens of an iteration go on: decode tokens together, each chunk of a prompt alone."""
    requests, places, counts, clock = state.requests, state.places, state.counts, state.clock
    node, now_s, n_stages = state.nodes[n], clock[NOW], plan.n_stages
    stage, logging = node.stage, plan.record_visits
    is_last = stage == n_stages - 1
    node.running = 0
    node.busy_s += now_s - node.start_s
    _fill(state.bins, clock, BUSY, n, node.start_s, now_s, 1.0)
    node.n_iterations += 1
    if node.nominal_s > 0:
        ratio = (now_s - node.start_s) / node.nominal_s
        node.slowdown += 0.2 * (ratio - node.slowdown)
    _touch(state.nodes, state.touched, counts, n)
    chain = node.batch_decode
    tail, r, n_decodes = NIL, chain, 0
    while r != NIL:
        place, request = places[r * n_stages + stage], requests[r]
        if logging:
            _log(log, counts, r, n, node, now_s, place.taken, place.computed)
        place.taken = 0
        place.computed += 1
        if place.computed == request.prompt + request.output - 1:
            place.left_s = now_s
            _complete(plan, state, r, stage, n)
        n_decodes += 1
        tail = r
        r = request.next
    node.batch_decode = NIL
    node.n_tokens += n_decodes
    counts[N_VISITS] += n_decodes
    if chain != NIL and not is_last:
        on_link = n_decodes if plan.contention else 1
        time_s = _cross(plan, state.links, stage + 1, now_s, on_link)
        _push(heap, counts, time_s, DECODE * SHIFT + n, chain, stage + 1, np.int64(0))
    r = node.batch_prefill
    node.batch_prefill = NIL
    while r != NIL:
        place, request = places[r * n_stages + stage], requests[r]
        behind, tokens = place.batch_behind, place.taken
        if logging:
            _log(log, counts, r, n, node, now_s, tokens, place.computed)
        place.taken = 0
        place.computed += tokens
        node.n_tokens += tokens
        counts[N_VISITS] += 1
        if place.computed == request.prompt + request.output - 1:
            place.left_s = now_s
            _complete(plan, state, r, stage, n)
        if not is_last:
            _send_prompt(plan, state, heap, r, stage + 1, tokens)
        elif place.computed == request.prefill:
            request.next = NIL
            if tail == NIL:
                chain = r
            else:
                requests[tail].next = r
            tail = r
        r = behind
    if is_last and chain != NIL:
        time_s = now_s + plan.return_s
        _push(heap, counts, time_s, RETURN * SHIFT + n, chain, stage, np.int64(0))


@kernel
def _end_request(plan, state, r):
    """The last token is back: KV cache is free on all nodes of the request."""
    state.requests[r].end_s = state.clock[NOW]
    state.counts[N_ENDED] += 1
    for stage in range(plan.n_stages):
        if state.places[r * plan.n_stages + stage].resident == 1:
            _leave(plan, state, r, stage)
            n = state.places[r * plan.n_stages + stage].node
            _admit(
                state.requests, state.places, state.nodes, state.bins, state.touched,
                state.counts, state.clock, plan.n_stages, n,
            )  # fmt: skip


@inlined
def _deliver(plan, state, heap, head, n):
    """Tokens are back at the request side; their requests end or go on."""
    requests, now_s = state.requests, state.clock[NOW]
    r, chain, tail, n_tokens = head, NIL, NIL, 0
    has_links = plan.hop_end[0] > plan.hop_first[0]
    while r != NIL:
        request = requests[r]
        after = request.next
        request.delivered += 1
        if request.delivered == 1:
            request.first_token_s = now_s
        if request.delivered == request.output:
            _end_request(plan, state, r)
        elif has_links:
            request.next = NIL
            if tail == NIL:
                chain = r
            else:
                requests[tail].next = r
            tail = r
            n_tokens += 1
        else:
            at = state.places[r * plan.n_stages].node
            _enqueue_token(requests, state.nodes[at], r, now_s)
            _touch(state.nodes, state.touched, state.counts, at)
        r = after
    if chain != NIL:
        on_link = n_tokens if plan.contention else 1
        time_s = _cross(plan, state.links, 0, now_s, on_link)
        _push(heap, state.counts, time_s, DECODE * SHIFT + n, chain, np.int64(0), np.int64(0))


@inlined
def _receive(plan, state, head, stage):
    """Decode tokens arrive at the nodes of a stage that hold their KV cache."""
    requests, now_s = state.requests, state.clock[NOW]
    r = head
    while r != NIL:
        after = requests[r].next
        n = state.places[r * plan.n_stages + stage].node
        _enqueue_token(requests, state.nodes[n], r, now_s)
        _touch(state.nodes, state.touched, state.counts, n)
        r = after


@kernel
def _without(requests, head, gone):
    """Take the requests that are `gone` out of a chain of decode tokens; (head, tail)."""
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
def _prompts_without(places, n_stages, stage, head, gone):
    """The same for a list through `Place.behind`."""
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
def _batch_without(places, n_stages, stage, head, gone):
    """The same for the prompts of a running iteration."""
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
def _forget(plan, state, heap, gone):
    """Take the tokens of the requests that are `gone` out of every queue and message."""
    requests, places, nodes, n_stages = state.requests, state.places, state.nodes, plan.n_stages
    for n in range(len(nodes)):
        node = nodes[n]
        stage = node.stage
        if stage == NIL:
            continue
        node.decode_head, node.decode_tail = _without(requests, node.decode_head, gone)
        node.decode_mark = NIL
        node.batch_decode, _ = _without(requests, node.batch_decode, gone)
        node.prefill_head, node.prefill_tail = _prompts_without(
            places, n_stages, stage, node.prefill_head, gone
        )
        node.admission_head, node.admission_tail = _prompts_without(
            places, n_stages, stage, node.admission_head, gone
        )
        node.batch_prefill = _batch_without(places, n_stages, stage, node.batch_prefill, gone)
    for stage in range(n_stages):
        state.stranded[stage], _ = _prompts_without(
            places, n_stages, stage, state.stranded[stage], gone
        )
    for at in range(state.counts[N_EVENTS]):
        kind = heap[at].code // SHIFT
        if kind in (RETURN, DECODE):
            heap[at].head, _ = _without(requests, heap[at].head, gone)


@kernel
def _restart(plan, state, r):
    """Undo what a request has got so far, but for the tokens that were delivered."""
    request = state.requests[r]
    for stage in range(plan.n_stages):
        place = state.places[r * plan.n_stages + stage]
        if place.resident == 1:
            if np.isnan(place.left_s):
                _complete(plan, state, r, stage, np.int64(place.node))
            _leave(plan, state, r, stage)
        if place.node == STRANDED:
            _strand(state, stage, np.int64(-1))
        request.lost += place.computed
        place.node = NIL
        place.arrived = 0
        place.computed = 0
        place.taken = 0
        place.sent_s = 0.0
        place.reached_s = np.nan
        place.admitted_s = np.nan
        place.left_s = np.nan
    request.attempt += 1
    request.restarts += 1
    request.prefill = request.prompt + request.delivered


@kernel
def _fail(plan, state, heap, n):
    """A node is lost, with the work of the requests that were not through with it."""
    nodes, places, n_stages = state.nodes, state.places, plan.n_stages
    node, now_s = nodes[n], state.clock[NOW]
    node.up = 0
    if node.stage == NIL:
        return
    if node.running == 1:
        node.running = 0
        node.run_id += 1  # its end is no event any more
        node.busy_s += now_s - node.start_s
        _fill(state.bins, state.clock, BUSY, n, node.start_s, now_s, 1.0)
    gone = state.gone
    r = node.resident_head
    while r != NIL:
        place = places[r * n_stages + node.stage]
        after = place.resident_next
        if np.isnan(place.left_s):
            gone[r] = True
        else:
            _leave(plan, state, r, node.stage)
        r = after
    _forget(plan, state, heap, gone)
    for r in range(len(gone)):
        if gone[r]:
            _restart(plan, state, r)  # may have been stranded
    for m in range(len(nodes)):
        if nodes[m].stage != NIL and nodes[m].up == 1:
            _admit(
                state.requests, places, nodes, state.bins, state.touched, state.counts,
                state.clock, n_stages, m,
            )  # fmt: skip
    for r in range(len(gone)):
        if gone[r]:
            _send_prompt(plan, state, heap, r, np.int64(0), state.requests[r].prefill)
            gone[r] = False


@kernel
def _recover(plan, state, heap, n):
    """A node is up, empty; requests that waited for one are dispatched."""
    node = state.nodes[n]
    node.up = 1
    node.slowdown = 1.0
    stage = node.stage
    if stage == NIL:
        return
    r = state.stranded[stage]
    state.stranded[stage] = NIL
    _strand(state, stage, -state.n_stranded[stage])
    while r != NIL:
        place = state.places[r * plan.n_stages + stage]
        place.node = NIL
        code, attempt = REACH * SHIFT + r, state.requests[r].attempt
        _push(heap, state.counts, state.clock[NOW], code, np.int64(0), stage, attempt)
        r = place.behind


@kernel
def _advance(state, time_s):
    state.clock[NOW] = time_s
    while time_s >= state.clock[ORIGIN] + N_BINS * state.clock[WIDTH]:
        _widen(state.bins, state.clock)


@inlined
def _is_void(plan, state, event):
    """Whether an event is of an iteration, an attempt or tokens that a failure has undone."""
    kind = event.code // SHIFT
    if kind == ITERATION_END:
        return state.nodes[event.head].run_id != event.detail
    if kind == REACH:
        return state.requests[event.code % SHIFT].attempt != event.detail
    return event.head == NIL


@kernel
def run(plan, state, heap, log):
    """Go on until done, or until the caller must act: DONE, GROW, ASK or PAUSE."""
    requests, nodes, counts, clock = state.requests, state.nodes, state.counts, state.clock
    n_requests, n_churn = len(requests), len(plan.churn)
    most = min(plan.max_batch, n_requests) + len(nodes) + 4  # pushed by one event
    budget = counts[BUDGET]
    while True:
        if counts[N_ENDED] == n_requests:  # iterations may run on, but nobody is in them
            return DONE
        while counts[N_EVENTS] > 0 and _is_void(plan, state, heap[0]):
            _pop(heap, counts)  # it must not move the clock
        next_s, code = np.inf, np.int64(1 << 62)
        if counts[N_EVENTS] > 0:
            next_s, code = heap[0].time_s, heap[0].code
        churn = False
        if counts[NEXT_CHURN] < n_churn:
            time_s = plan.churn[counts[NEXT_CHURN]].time_s
            churn = time_s < next_s or (time_s == next_s and code > CHURN * SHIFT)
            if churn:
                next_s, code = time_s, np.int64(CHURN * SHIFT)
        arrival = False
        if counts[NEXT_ARRIVAL] < n_requests:
            r = plan.order[counts[NEXT_ARRIVAL]]
            time_s = plan.arrival_s[r]
            arrival = time_s < next_s or (time_s == next_s and code > REACH * SHIFT + r)
            if arrival:
                next_s = time_s
        if counts[N_TOUCHED] > 0 and next_s > clock[NOW]:
            if counts[N_EVENTS] + most > len(heap):
                return GROW
            for at in range(counts[N_TOUCHED]):
                n = state.touched[at]
                node = nodes[n]
                node.touched = 0
                waits = node.decode_head != NIL or node.prefill_head != NIL
                if waits and node.running == 0 and node.up == 1:
                    _start(plan, state, heap, n)
            counts[N_TOUCHED] = 0
            continue
        if next_s == np.inf:  # some never end
            return DONE
        if counts[N_EVENTS] + most > len(heap):
            return GROW
        if budget <= 0:
            return PAUSE
        budget -= 1
        if next_s > clock[NOW]:
            _advance(state, next_s)
        if arrival:
            counts[NEXT_ARRIVAL] += 1
            _send_prompt(plan, state, heap, r, np.int64(0), requests[r].prefill)
            continue
        if churn:
            event = plan.churn[counts[NEXT_CHURN]]
            if event.kind == FAILURE:
                if counts[N_EVENTS] + most + nodes[event.node].n_jobs > len(heap):
                    return GROW
                _fail(plan, state, heap, event.node)
                budget -= n_requests  # it has walked through them
            else:
                stage = nodes[event.node].stage
                n_stranded = state.n_stranded[stage] if stage != NIL else 0
                if counts[N_EVENTS] + most + n_stranded > len(heap):
                    return GROW
                _recover(plan, state, heap, event.node)
            counts[NEXT_CHURN] += 1
            continue
        kind = code // SHIFT
        head, stage = heap[0].head, heap[0].stage
        if kind == ITERATION_END:
            if plan.record_visits and counts[N_LOGGED] + nodes[head].batch_size > len(log):
                return GROW
            _pop(heap, counts)
            _end_iteration(plan, state, heap, log, head)
        elif kind == RETURN:
            _pop(heap, counts)
            _deliver(plan, state, heap, head, code % SHIFT)
        elif kind == DECODE:
            _pop(heap, counts)
            _receive(plan, state, head, stage)
        else:
            r = code % SHIFT
            if state.places[r * plan.n_stages + stage].node == NIL:
                n = _choose(plan, state, r, stage)
                if plan.policy in (LEAST_WORK_LEFT, EARLIEST_COMPLETION):
                    budget -= _n_resident(plan, nodes, stage)  # it has walked through them
                if plan.policy == ASKED and n != NIL:
                    if counts[ANSWER] == NIL:
                        counts[ASKING] = r * plan.n_stages + stage
                        return ASK
                    n = counts[ANSWER]
                    counts[ANSWER] = NIL
                _pop(heap, counts)
                _arrive(plan, state, r, stage, head)
                _reach(plan, state, r, stage, n)
            else:
                _pop(heap, counts)
                _arrive(plan, state, r, stage, head)


@kernel
def settle(state):
    """At the end: fill the bins up to now; iterations that still run have taken until now."""
    nodes, bins, clock = state.nodes, state.bins, state.clock
    for n in range(len(nodes)):
        _account(nodes, bins, clock, n)
        if nodes[n].running == 1:
            nodes[n].busy_s += clock[NOW] - nodes[n].start_s
            _fill(bins, clock, BUSY, n, nodes[n].start_s, clock[NOW], 1.0)
    for stage in range(len(state.stranded)):
        _strand(state, stage, np.int64(0))


def warm_up() -> None:
    """Compile every kernel of this file, with the types the product calls it with."""
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    nodes = records(1, NODE)
    for field in ("admission_head", "prefill_head", "decode_head", "batch_decode"):
        nodes[field] = NIL
    for field in ("decode_mark", "batch_prefill", "resident_head"):
        nodes[field] = NIL
    nodes["up"] = nodes["speed_end"] = nodes["slowdown"] = 1
    nodes["capacity"] = 2
    requests, places = records(1, REQUEST), records(1, PLACE)
    requests["prompt"] = requests["output"] = requests["prefill"] = 1
    places["node"] = NIL
    places["reached_s"] = places["admitted_s"] = places["left_s"] = np.nan
    part, gpu = records(1, PART), records(1, GPU)
    part["count"] = gpu["flops_per_s"] = gpu["bytes_per_s"] = 1
    plan = Plan(
        policy=LEAST_WORK_LEFT, max_batch=1, chunk_tokens=1, contention=False,
        bandwidth_bound=True, record_visits=False, n_stages=1, return_s=0.0,
        order=zero, arrival_s=np.zeros(1),
        part=part, part_start=np.array([0, 1]), windows=np.ones(1),
        gpu=gpu, hop_first=zero, hop_end=zero.copy(), eligible=zero.copy(),
        eligible_start=np.array([0, 1]), speed_s=np.zeros(1), speed=np.ones(1),
        rate_s=np.zeros(0), rate=np.zeros(0), churn=records(0, CHURNED),
        expected_s=np.ones((1, 1, 1)), prefill_s=np.ones((1, 1, 1)),
        uniforms=np.zeros((1, 0, 2)), assigned=np.zeros((0, 1), np.int64),
    )  # fmt: skip
    counts = np.zeros(N_COUNTS, np.int64)
    counts[ANSWER], counts[BUDGET] = NIL, 100
    state = State(
        requests=requests, places=places, nodes=nodes, links=records(0, LINK),
        stranded=-one, n_stranded=zero.copy(), stranded_seen_s=np.zeros(1),
        dispatched=zero.copy(), touched=zero.copy(),
        gone=np.zeros(1, np.bool_), sums=np.zeros((1, 2)),
        bins=np.zeros((N_ROWS, 2, N_BINS)), counts=counts, clock=np.array([0.0, 0.0, 1.0]),
    )  # fmt: skip
    run(plan, state, records(64, EVENT), records(0, VISIT))
    settle(state)
    remaining_s(plan, requests, places, nodes, 0, 0.0)
    factor(1.0)
