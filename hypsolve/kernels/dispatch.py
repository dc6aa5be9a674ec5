"""Dispatch the requests of one tier, in the order in which they become ready.

Every node serves its requests first come, first served, one job at a time. Completions at time
t come before arrivals at t. Ties between nodes go to the lowest index. The kernels read two
tables of shape (n_requests or 1, n_classes): `service_s` is the time that a job takes;
`expected_s` is the time that policies know, rounded so that its sums are exact.
"""

import numpy as np

from hypsolve.kernels.jit import kernel

HYPSCHED_RT = 0
RANDOM = 1
ROUND_ROBIN = 2
JOIN_SHORTEST_QUEUE = 3
POWER_OF_TWO = 4
LEAST_WORK_LEFT = 5
EARLIEST_COMPLETION = 6


@kernel
def _append(n, r, first, last, next_request, n_jobs):
    """Append request r to the queue of node n, a list linked by `next_request`."""
    if n_jobs[n] == 0:
        first[n] = r
    else:
        next_request[last[n]] = r
    last[n] = r
    n_jobs[n] += 1


@kernel
def _complete(n, first, next_request, n_jobs, outstanding_s, own_s):
    """Remove the first job from the queue of node n."""
    first[n] = next_request[first[n]]
    n_jobs[n] -= 1
    outstanding_s[n] -= own_s
    if n_jobs[n] == 0:
        outstanding_s[n] = 0.0


@kernel
def _hypsched_rt(outstanding_s, own_s, node_class):
    """Return the node that minimises outstanding plus own expected seconds."""
    best, best_s = 0, np.inf
    for n in range(len(node_class)):
        value_s = outstanding_s[n] + own_s[node_class[n]]
        if value_s < best_s:
            best, best_s = n, value_s
    return best


@kernel
def _join_shortest_queue(n_jobs):
    """Return the node with the fewest jobs."""
    best = 0
    for n in range(1, len(n_jobs)):
        if n_jobs[n] < n_jobs[best]:
            best = n
    return best


@kernel
def _power_of_two(n_jobs, u, v):
    """Return the node with fewer jobs of two distinct nodes drawn by u and v."""
    n_nodes = len(n_jobs)
    a = int(u * n_nodes)
    if n_nodes == 1:
        return a
    b = int(v * (n_nodes - 1))
    if b >= a:
        b += 1
    return b if n_jobs[b] < n_jobs[a] else a


@kernel
def _least_work_left(free_s, now_s):
    """Return the node that is idle first."""
    best, best_s = 0, np.inf
    for n in range(len(free_s)):
        left_s = max(free_s[n] - now_s, 0.0)
        if left_s < best_s:
            best, best_s = n, left_s
    return best


@kernel
def _earliest_completion(free_s, now_s, own_s, node_class):
    """Return the node that completes the request first."""
    best, best_s = 0, np.inf
    for n in range(len(free_s)):
        value_s = max(free_s[n] - now_s, 0.0) + own_s[node_class[n]]
        if value_s < best_s:
            best, best_s = n, value_s
    return best


@kernel
def dispatch(
    policy, order, ready_s, service_s, expected_s, uniforms, node_class, node, start_s, end_s
):
    """Dispatch by any policy, in O(n_nodes) per request.

    Parameters
    ----------
    policy : int
        One of the constants of this module.
    order : ndarray of int, shape (n_requests,)
        The requests in the order in which they become ready.
    ready_s : ndarray, shape (n_requests,)
    service_s, expected_s : ndarray, shape (n_requests or 1, n_classes)
    uniforms : ndarray, shape (n_requests or 0, 2)
        Draws from [0, 1) of the policies that draw.
    node_class : ndarray of int, shape (n_nodes,)
    node, start_s, end_s : ndarray, shape (n_requests,)
        Filled with the schedule.
    """
    n_nodes = len(node_class)
    n_jobs = np.zeros(n_nodes, np.int64)
    outstanding_s, free_s = np.zeros(n_nodes), np.zeros(n_nodes)
    first, last = np.zeros(n_nodes, np.int64), np.zeros(n_nodes, np.int64)
    next_request = np.empty(len(order), np.int64)
    one_row = len(service_s) == 1
    for turn in range(len(order)):
        r = order[turn]
        row = 0 if one_row else r
        now_s = ready_s[r]
        for n in range(n_nodes):
            while n_jobs[n] > 0 and end_s[first[n]] <= now_s:
                done = 0 if one_row else first[n]
                own_s = expected_s[done, node_class[n]]
                _complete(n, first, next_request, n_jobs, outstanding_s, own_s)
        if policy == HYPSCHED_RT:
            n = _hypsched_rt(outstanding_s, expected_s[row], node_class)
        elif policy == RANDOM:
            n = int(uniforms[r, 0] * n_nodes)
        elif policy == ROUND_ROBIN:
            n = turn % n_nodes
        elif policy == JOIN_SHORTEST_QUEUE:
            n = _join_shortest_queue(n_jobs)
        elif policy == POWER_OF_TWO:
            n = _power_of_two(n_jobs, uniforms[r, 0], uniforms[r, 1])
        elif policy == LEAST_WORK_LEFT:
            n = _least_work_left(free_s, now_s)
        else:
            n = _earliest_completion(free_s, now_s, expected_s[row], node_class)
        _append(n, r, first, last, next_request, n_jobs)
        outstanding_s[n] += expected_s[row, node_class[n]]
        node[r] = n
        start_s[r] = max(now_s, free_s[n])
        end_s[r] = start_s[r] + service_s[row, node_class[n]]
        free_s[n] = end_s[r]


@kernel
def _precedes(key, a, b):
    """Return True if a comes before b by (key, index)."""
    return key[a] < key[b] or (key[a] == key[b] and a < b)


@kernel
def _reorder(key, heap, place, first, end, n):
    """Restore the binary heap ``heap[first:end]`` after the key of n has changed.

    ``heap[place[n]] == n`` holds before and after the call.
    """
    at = place[n]
    while at > first:
        above = first + (at - first - 1) // 2
        if not _precedes(key, n, heap[above]):
            break
        heap[at] = heap[above]
        place[heap[at]] = at
        at = above
    while True:
        below = first + 2 * (at - first) + 1
        if below >= end:
            break
        if below + 1 < end and _precedes(key, heap[below + 1], heap[below]):
            below += 1
        if not _precedes(key, heap[below], n):
            break
        heap[at] = heap[below]
        place[heap[at]] = at
        at = below
    heap[at] = n
    place[n] = at


@kernel
def dispatch_grouped(
    order, ready_s, service_s, expected_s, node_class, group_start, groups, node, start_s, end_s
):
    """Dispatch by HypSched-RT, in O(n_groups + log n_nodes) per request.

    The choices are those of `dispatch`. The nodes of a class form a group. Their own seconds
    are equal, so the node with the smallest backlog is the best of its group. Each group is a
    binary heap ordered by (backlog, node); another heap orders all nodes by the end of their
    running job.

    Parameters
    ----------
    group_start : ndarray of int, shape (n_groups + 1,)
    groups : ndarray of int, shape (n_nodes,)
        The nodes by class; group g is ``groups[group_start[g]:group_start[g + 1]]``.
    order, ready_s, service_s, expected_s, node_class, node, start_s, end_s
        As in `dispatch`.
    """
    n_nodes = len(node_class)
    n_jobs = np.zeros(n_nodes, np.int64)
    outstanding_s, free_s = np.zeros(n_nodes), np.zeros(n_nodes)
    first, last = np.zeros(n_nodes, np.int64), np.zeros(n_nodes, np.int64)
    next_request = np.empty(len(order), np.int64)
    one_row = len(service_s) == 1
    heap = groups.copy()  # of each group, by (backlog, node)
    place, group_of = np.empty(n_nodes, np.int64), np.empty(n_nodes, np.int64)
    for g in range(len(group_start) - 1):
        for at in range(group_start[g], group_start[g + 1]):
            place[heap[at]] = at
            group_of[heap[at]] = g
    next_end_s = np.full(n_nodes, np.inf)  # of the running job
    by_end, end_place = np.arange(n_nodes), np.arange(n_nodes)  # heap of all nodes
    for turn in range(len(order)):
        r = order[turn]
        row = 0 if one_row else r
        now_s = ready_s[r]
        while next_end_s[by_end[0]] <= now_s:
            n = by_end[0]
            done = 0 if one_row else first[n]
            _complete(
                n, first, next_request, n_jobs, outstanding_s, expected_s[done, node_class[n]]
            )
            next_end_s[n] = end_s[first[n]] if n_jobs[n] > 0 else np.inf
            _reorder(next_end_s, by_end, end_place, np.int64(0), n_nodes, n)
            g = group_of[n]
            _reorder(outstanding_s, heap, place, group_start[g], group_start[g + 1], n)
        best, best_s = n_nodes, np.inf
        for g in range(len(group_start) - 1):
            n = heap[group_start[g]]
            value_s = outstanding_s[n] + expected_s[row, node_class[n]]
            if value_s < best_s or (value_s == best_s and n < best):
                best, best_s = n, value_s
        n = best
        _append(n, r, first, last, next_request, n_jobs)
        outstanding_s[n] += expected_s[row, node_class[n]]
        node[r] = n
        start_s[r] = max(now_s, free_s[n])
        end_s[r] = start_s[r] + service_s[row, node_class[n]]
        free_s[n] = end_s[r]
        if n_jobs[n] == 1:
            next_end_s[n] = end_s[r]
            _reorder(next_end_s, by_end, end_place, np.int64(0), n_nodes, n)
        g = group_of[n]
        _reorder(outstanding_s, heap, place, group_start[g], group_start[g + 1], n)


def warm_up() -> None:
    """Compile the kernels of this file for the argument types that `schedule` uses."""
    one, zero = np.ones((1, 1)), np.zeros(1, np.int64)
    node, start_s, end_s = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    for policy in range(EARLIEST_COMPLETION + 1):
        dispatch(
            policy, zero, np.zeros(1), one, one, np.zeros((1, 2)), zero, node, start_s, end_s
        )
    dispatch_grouped(
        zero, np.zeros(1), one, one, zero, np.array([0, 1]), zero, node, start_s, end_s
    )
