"""List scheduling of many requests, and a local search over the list in windows.

An *operation* is one stage of one request, numbered ``r * n_stages + k``. The list is an order
of all operations. They are placed one after the other, each on the node where it finishes
earliest, in a gap if one is long enough. So an operation that stands before another is placed
first even if it is ready later, and the other may still use the time before it. Every schedule
in which nothing can start earlier is the list schedule of the order of its starts, if each
operation is barred from the other nodes.

Only the latest `MAX_SPANS` busy spans of a node are kept; earlier gaps are given up. So a
schedule takes time in proportion to its length, and a timetable is small enough to be copied.
"""

from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import FlowShop
from hypsolve.kernels.jit import kernel

MAX_SPANS = 24


class Timetable(NamedTuple):
    """Busy spans of every node, in rows: one row per number of operations placed.

    Spans ``0..n_spans[row, x] - 1`` of node x are sorted, disjoint and do not touch: `_fill`
    inserts a span for every operation placed, and merges it with the spans that it touches. If
    there is no room for another span, `_fill` merges the two earliest, so only gaps are lost
    and time once busy stays busy. Nothing else removes a span; `_copy` replaces a whole row.
    """

    begin: Any  # (n_rows, n_nodes, MAX_SPANS + 1), seconds
    end: Any  # (n_rows, n_nodes, MAX_SPANS + 1), seconds
    n_spans: Any  # (n_rows, n_nodes), at most MAX_SPANS


def new_timetable(shop, n_rows):
    """Timetable of a flow shop with every node idle in every row."""
    shape = (n_rows, shop.slot[-1], MAX_SPANS + 1)
    return Timetable(np.zeros(shape), np.zeros(shape), np.zeros(shape[:2], np.int64))


@kernel
def _gap(begin, end, n, ready, length):
    """Return the earliest start from `ready` on, and the number of spans before it."""
    at = n
    while at > 0 and end[at - 1] > ready:
        at -= 1
    start = ready
    while at < n and start + length > begin[at]:
        start = end[at]
        at += 1
    return start, at


@kernel
def _fill(begin, end, n, at, start, stop):
    """Insert a busy span behind the first `at` spans; return the new number of spans."""
    after_last = at > 0 and end[at - 1] == start
    before_next = at < n and begin[at] == stop
    if after_last and before_next:
        end[at - 1] = end[at]
        for i in range(at, n - 1):
            begin[i], end[i] = begin[i + 1], end[i + 1]
        return n - 1
    if after_last:
        end[at - 1] = stop
        return n
    if before_next:
        begin[at] = start
        return n
    for i in range(n, at, -1):
        begin[i], end[i] = begin[i - 1], end[i - 1]
    begin[at], end[at] = start, stop
    if n < MAX_SPANS:
        return n + 1
    begin[1] = begin[0]  # merge the two earliest spans: the gap between them is given up
    for i in range(n):
        begin[i], end[i] = begin[i + 1], end[i + 1]
    return n


@kernel
def _place(shop, table, row, r, k, ready):
    """Place stage k of request r in a row of the timetable; return node, start and end."""
    best, best_at, best_start, best_end = 0, 0, 0.0, np.inf
    for g in range(shop.first[k], shop.first[k + 1]):
        length = shop.service[r, g]
        for x in range(shop.slot[g], shop.slot[g + 1]):
            n = table.n_spans[row, x]
            start, at = _gap(table.begin[row, x], table.end[row, x], n, ready, length)
            if start + length < best_end:
                best, best_at, best_start, best_end = x, at, start, start + length
    n = table.n_spans[row, best]
    table.n_spans[row, best] = _fill(
        table.begin[row, best], table.end[row, best], n, np.int64(best_at), best_start, best_end
    )
    return best, best_start, best_end


@kernel
def place_all(shop, order, table, node, start, end):
    """Place all operations in the given order; row 0 of the timetable is overwritten.

    `node`, `start` and `end`, shape (n_requests, n_stages), are filled.
    """
    n_stages = len(shop.first) - 1
    table.n_spans[0] = 0
    for operation in order:
        r, k = operation // n_stages, operation % n_stages
        ready = shop.release[r] if k == 0 else end[r, k - 1] + shop.travel[r, k - 1]
        node[r, k], start[r, k], end[r, k] = _place(shop, table, np.int64(0), r, k, ready)


@kernel
def place_stage(shop, k, requests, ready, table, node, start, end):
    """Place stage k of the requests in the given order; fill column k of the outputs.

    ``ready`` (n_requests,) is when a request may start the stage, and is changed to when it may
    start the next one. In row 0 of the timetable the nodes of the stage must be idle.
    """
    for r in requests:
        node[r, k], start[r, k], end[r, k] = _place(shop, table, np.int64(0), r, k, ready[r])
        ready[r] = end[r, k] + shop.travel[r, k]


@kernel
def _copy(source, a, target, b):
    """Copy row a of `source` to row b of `target`."""
    for x in range(source.n_spans.shape[1]):
        n = source.n_spans[a, x]
        target.n_spans[b, x] = n
        for i in range(n):
            target.begin[b, x, i] = source.begin[a, x, i]
            target.end[b, x, i] = source.end[a, x, i]


class Window(NamedTuple):
    """Consecutive operations of the list, and the outcome of placing each of them.

    Entry i of `current`, `node`, `ready` and `start` describes the i-th operation of the best
    order so far. Entry i of `delay_sum` and `last` describes the first i operations, with all
    later stages of their requests served without delay. `_accept` writes all of them from one
    position to the end of the window, so they always belong to the same order. `candidate` may
    be overwritten at any time.
    """

    current: Any  # (n,) of int, operations in the best order so far
    candidate: Any  # (n,) of int, another order to evaluate
    node: Any  # (n,) of int, where the operation is placed
    ready: Any  # (n + 1,), when it may start; entry n is unused
    start: Any  # (n + 1,), when it starts; entry n is unused
    delay_sum: Any  # (n + 1,), sum of the delays
    last: Any  # (n + 1,), latest completion


def new_window(n):
    """Window with room for n operations."""
    current, candidate, node = np.empty((3, n), np.int64)
    ready, start, delay_sum, last = np.zeros((4, n + 1))
    return Window(current, candidate, node, ready, start, delay_sum, last)


class SearchState(NamedTuple):
    """The list that `improve` searches, and which request may use which group.

    `improve` alone writes it. The order is always a permutation of all operations in which the
    stages of a request stand in sequence. A request always has a group that it may use at every
    stage.
    """

    shop: Any  # its service is inf where a request is barred from a group
    full_service: Any  # (n_requests, n_groups), service without bars
    remaining: Any  # (n_requests, n_stages), start of a stage to completion without delay
    order: Any  # (n_requests * n_stages,) of int
    ready: Any  # (n_requests,), when the request's next stage may start, after ``order[:at]``


class Workspace(NamedTuple):
    """Memory of `improve`; between two calls, row 0 of `table` is after ``order[:at]``."""

    table: Any  # Timetable; row i is after i operations of the window
    trial: Any  # Timetable of one row, overwritten by every trial
    window: Any  # Window


def new_search_state(shop, full_service, remaining, order):
    """Start a search from `order`; it and the shop's service are changed in place."""
    return SearchState(shop, full_service, remaining, order, shop.release.copy())


def new_workspace(shop, n):
    """Workspace for windows of n operations, lookahead included, before the first operation."""
    return Workspace(new_timetable(shop, n + 1), new_timetable(shop, 1), new_window(n))


@kernel
def improve(search, workspace, makespan, width, stride, at, until, max_trials):
    """Improve the order and the bars by local search, one window of operations at a time.

    Operations before the window are fixed. A trial places the window and the lookahead behind
    it anew. It is judged by the sum of completion times, or by the last one for the
    makespan, as if stages that are not placed yet had no delay. A trial moves an operation
    before another one of the same stage, alone or with the later stages of its request, or bars
    its request from a group, or lifts a bar. Every improvement is accepted. The window moves on
    by `stride` after a round without improvement, or after a round that ends with `max_trials`
    trials or more.

    Parameters
    ----------
    search : SearchState
    workspace : Workspace
        As the call that ended at `at` left it.
    makespan : bool
        Minimise the last completion time, and the sum of the delays among equals.
    width, stride : int
        In operations.
    at, until : int
        Position of the first window, and the position from which no window begins.
    max_trials : int
        Per window.

    Returns
    -------
    at, n_trials : int
        Position of the next window, and the number of trials in this call.
    """
    shop, full_service, remaining, order, ready = search
    table, trial, window = workspace
    n_stages = len(shop.first) - 1
    n_trials = 0
    while at < until:
        size = min(width, len(order) - at)
        n = min(len(window.current), len(order) - at)
        window.candidate[:n] = order[at : at + n]
        window.delay_sum[0] = 0.0
        _accept(shop, remaining, ready, table, window, np.int64(0), n)
        n_window_trials, is_improved = 0, True
        while is_improved and n_window_trials < max_trials:
            is_improved = False
            for a in range(size):
                operation = window.current[a]
                r, k = operation // n_stages, operation % n_stages
                b = a - 1 if window.start[a] > window.ready[a] else -1  # it starts at once
                while b >= 0:
                    if window.current[b] % n_stages == k:
                        for with_later in range(2 if k < n_stages - 1 else 1):
                            if window.current[a] != operation or not _move(
                                window, n_stages, a, b, n, with_later == 1
                            ):
                                continue
                            n_window_trials += 1
                            if _is_better(
                                shop, remaining, ready, makespan, table, trial, window, b, n
                            ):
                                is_improved = True
                                _rewind(window, n_stages, ready, b, n)
                                _accept(shop, remaining, ready, table, window, b, n)
                    b = b - 1 if window.current[a] == operation else -1
                if window.current[a] != operation:
                    continue
                window.candidate[:n] = window.current[:n]
                for g in range(shop.first[k], shop.first[k + 1]):
                    was = shop.service[r, g]
                    is_used = shop.slot[g] <= window.node[a] < shop.slot[g + 1]
                    if not is_used and (was < np.inf or full_service[r, g] == np.inf):
                        continue  # a bar would change nothing, and there is none to lift
                    if is_used and _is_only_one(shop, r, k, g):
                        continue
                    n_window_trials += 1
                    shop.service[r, g] = np.inf if is_used else full_service[r, g]
                    if _is_better(shop, remaining, ready, makespan, table, trial, window, a, n):
                        is_improved = True
                        _rewind(window, n_stages, ready, a, n)
                        _accept(shop, remaining, ready, table, window, a, n)
                    else:
                        shop.service[r, g] = was
        n_trials += n_window_trials
        order[at : at + n] = window.current[:n]
        window.candidate[:n] = window.current[:n]
        _rewind(window, n_stages, ready, np.int64(0), n)
        _accept(shop, remaining, ready, table, window, np.int64(0), n)
        n_fixed = min(stride, len(order) - at)
        _rewind(window, n_stages, ready, n_fixed, n)
        _copy(table, n_fixed, table, np.int64(0))
        window.last[0] = window.last[n_fixed]
        at += n_fixed
    return at, n_trials


@kernel
def _move(window, n_stages, a, b, n, with_later):
    """Fill ``candidate[b:n]`` with the current order, the operation at a moved before b.

    If `with_later`, the later stages of its request follow right behind it. Return False if the
    operation would pass an earlier stage of its request.
    """
    operation = window.current[a]
    r = operation // n_stages
    for j in range(b, a):
        if window.current[j] // n_stages == r:
            return False
    window.candidate[b] = operation
    i = b + 1
    if with_later:
        for j in range(a + 1, n):
            if window.current[j] // n_stages == r:
                window.candidate[i] = window.current[j]
                i += 1
    for j in range(b, n):
        if j != a and not (with_later and window.current[j] // n_stages == r):
            window.candidate[i] = window.current[j]
            i += 1
    return True


@kernel
def _is_only_one(shop, r, k, g):
    """Return True if g is the only group that request r may use at stage k."""
    for other in range(shop.first[k], shop.first[k + 1]):
        if other != g and shop.service[r, other] < np.inf:
            return False
    return True


@kernel
def _rewind(window, n_stages, ready, low, n):
    """Reset `ready` to before the operation at `low`, for requests with one in ``low..n - 1``.

    No other request is placed before the next call, so their entries may stay wrong until then.
    """
    for i in range(n - 1, low - 1, -1):
        ready[window.current[i] // n_stages] = window.ready[i]


@kernel
def _accept(shop, remaining, ready, table, window, low, n):
    """Make ``candidate[low:n]`` the current order, and place it; `ready` is before `low`."""
    n_stages = len(shop.first) - 1
    for i in range(low, n):
        window.current[i] = window.candidate[i]
        r, k = window.current[i] // n_stages, window.current[i] % n_stages
        window.ready[i] = ready[r]
        _copy(table, i, table, i + 1)
        node, start, end = _place(shop, table, i + 1, r, k, ready[r])
        window.node[i], window.start[i] = node, start
        completion = end + shop.travel[r, k] + remaining[r, k + 1] if k + 1 < n_stages else end
        window.delay_sum[i + 1] = (
            window.delay_sum[i] + completion - (ready[r] + remaining[r, k])
        )
        window.last[i + 1] = max(window.last[i], completion)
        ready[r] = end + shop.travel[r, k]


@kernel
def _is_better(shop, remaining, ready, makespan, table, trial, window, low, n):
    """Place ``candidate[low:n]`` on trial; return True if it beats the current order."""
    n_stages = len(shop.first) - 1
    _rewind(window, n_stages, ready, low, n)
    _copy(table, low, trial, np.int64(0))
    delay_sum, last = window.delay_sum[low], window.last[low]
    for i in range(low, n):
        r, k = window.candidate[i] // n_stages, window.candidate[i] % n_stages
        _, _, end = _place(shop, trial, np.int64(0), r, k, ready[r])
        completion = end + shop.travel[r, k] + remaining[r, k + 1] if k + 1 < n_stages else end
        delay_sum += completion - (ready[r] + remaining[r, k])
        last = max(last, completion)
        ready[r] = end + shop.travel[r, k]
        if last > window.last[n] if makespan else delay_sum >= window.delay_sum[n]:
            return False
    return last < window.last[n] or delay_sum < window.delay_sum[n] if makespan else True


def warm_up() -> None:
    """Compile every kernel that a method calls, on two requests and one stage."""
    ends = np.array([0, 1])
    shop = FlowShop(np.ones((2, 1)), np.zeros((2, 1)), np.zeros(2), ends, ends)
    order, ready, remaining = np.array([1, 0]), np.zeros(2), np.ones((2, 1))
    node, start, end = np.zeros((2, 1), np.int64), np.zeros((2, 1)), np.zeros((2, 1))
    table = new_timetable(shop, 1)
    place_stage(shop, 0, order, ready, table, node, start, end)
    place_all(shop, order, table, node, start, end)
    search = new_search_state(shop, shop.service.copy(), remaining, order)
    improve(search, new_workspace(shop, 2), False, 1, 1, 0, 2, 4)
