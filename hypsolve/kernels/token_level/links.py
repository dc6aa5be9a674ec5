"""Messages over the links between stages."""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.layout import NOW, REACH, SHIFT


@inlined
def finish_s(starts_s, rates, at, end, begin_s, amount):
    """Return when an amount of work that begins at `begin_s` is done.

    The rate is ``rates[i]`` from ``starts_s[i]`` on, for i = at..end - 1.
    """
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
def send_over_links(setup, links, span, now_s, n_tokens):
    """Send tokens over all links before a span of blocks, and return when they arrive.

    With contention, a link sends one message at a time, in the order of the calls.
    """
    time_s = now_s
    for k in range(setup.hop_first[span], setup.hop_end[span]):
        link = links[k]
        while link.rate_at + 1 < link.rate_end and setup.rate_s[link.rate_at + 1] <= now_s:
            link.rate_at += 1
        if setup.contention:
            time_s = max(time_s, link.free_s)
        n_bytes = n_tokens * link.token_bytes
        time_s = finish_s(
            setup.rate_s, setup.rate, link.rate_at, link.rate_end, time_s, n_bytes
        )
        if setup.contention:
            link.free_s = time_s
        time_s += link.latency_s
    return time_s


@kernel
def send_prompt(setup, state, heap, r, stage, span, n_tokens):
    """Send prompt tokens of a request to a stage, whose blocks are a span.

    They never overtake prompt tokens that the request sent to the stage before.
    """
    place = state.places[r * setup.n_stages + stage]
    time_s = send_over_links(setup, state.links, span, state.clock[NOW], n_tokens)
    time_s = max(time_s, place.sent_s)
    place.sent_s = time_s
    code = REACH * SHIFT + r
    push(heap, state.counts, time_s, code, n_tokens, stage, state.requests[r].attempt)
