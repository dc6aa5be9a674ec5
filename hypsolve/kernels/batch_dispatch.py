"""HypSched-RT with measured slowdowns: O(n_groups + log n_nodes) per request, amortised.

Nodes of one class and one rounded slowdown form a group. Within a group, the node with the
smallest backlog is best for every request. A group is a pairing heap [1]_ ordered by
(backlog, node). The heap is linked through the records of the nodes, because a node changes its
group whenever its rounded slowdown changes. These invariants hold between calls:

- Every node is in exactly one heap: the heap of the group with its ``kind`` and ``step``.
- ``place[kind, step + max_steps]`` is the index of that group in ``groups``, or NIL; the first
  ``n_groups[0]`` entries of ``groups`` are the groups that are not empty.
- ``groups[g].root`` is the best node of group g, and ``groups[g].backlog`` its backlog.

Backlogs are whole ticks. They are compared as floats, times the slowdown of the group; the
comparison is exact up to a backlog of 2**52 ticks (48 days) per node. Two threads must not
share a state.

References
----------
.. [1] M. L. Fredman et al., "The pairing heap: a new form of self-adjusting heap",
   Algorithmica 1, 1986.
"""

import math

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel

NIL = -1
MAX_OCTAVES = 32  # as in `hypsolve.dispatch.dispatcher`: slowdowns stay in 2**-32..2**32
NODE = np.dtype(
    [
        ("backlog", "i8"),  # ticks
        ("ratio", "f8"),  # moving average of busy / expected
        ("kind", "i4"),  # class
        ("step", "i4"),  # slowdown = 2 ** (step / steps_per_octave)
        ("child", "i4"),  # first child, or NIL
        ("next", "i4"),  # next sibling, or NIL
        ("before", "i4"),  # previous sibling, or the parent of a first child; root: NIL
    ],
    align=True,
)
GROUP = np.dtype(
    [
        ("backlog", "i8"),  # ticks of its root
        ("factor", "f8"),  # slowdown
        ("root", "i4"),  # node with the smallest (backlog, node)
        ("kind", "i4"),
        ("step", "i4"),
    ],
    align=True,
)


@kernel
def _meld(nodes, a, b):
    """Meld two heaps, each given by its root or NIL; return the root."""
    if a == NIL:
        return b
    if b == NIL:
        return a
    if nodes[b].backlog < nodes[a].backlog or (nodes[b].backlog == nodes[a].backlog and b < a):
        a, b = b, a
    child = nodes[a].child
    nodes[b].next, nodes[b].before = child, a
    if child != NIL:
        nodes[child].before = b
    nodes[a].child = b
    return a


@kernel
def _release(nodes, n):
    """Detach the children of n and meld them, in pairs and then into one; return the root."""
    first, pairs = np.int64(nodes[n].child), np.int64(NIL)
    nodes[n].child = NIL
    while first != NIL:
        a, b = first, np.int64(nodes[first].next)
        first = NIL if b == NIL else np.int64(nodes[b].next)
        merged = _meld(nodes, a, b)
        nodes[merged].next = pairs
        pairs = merged
    root = np.int64(NIL)
    while pairs != NIL:
        following = np.int64(nodes[pairs].next)
        root = _meld(nodes, root, pairs)
        pairs = following
    if root != NIL:
        nodes[root].next = nodes[root].before = NIL
    return root


@kernel
def _cut_off(nodes, n):
    """Cut node n, which is not a root, with its subtree out of its heap."""
    before, following = nodes[n].before, nodes[n].next
    if nodes[before].child == n:
        nodes[before].child = following
    else:
        nodes[before].next = following
    if following != NIL:
        nodes[following].before = before
    nodes[n].next = nodes[n].before = NIL


@kernel
def _set_root(nodes, groups, g, root):
    """Record the root of the heap of group g."""
    groups[g].root = root
    groups[g].backlog = nodes[root].backlog


@kernel
def _leave(nodes, groups, place, n_groups, n):
    """Remove node n from its group; the last group takes the place of an empty one."""
    max_steps = place.shape[1] // 2
    g = np.int64(place[nodes[n].kind, nodes[n].step + max_steps])
    root = np.int64(groups[g].root)
    if root == n:
        root = _release(nodes, n)
    else:
        _cut_off(nodes, n)
        root = _meld(nodes, root, _release(nodes, n))
    if root != NIL:
        _set_root(nodes, groups, g, root)
        return
    place[nodes[n].kind, nodes[n].step + max_steps] = NIL
    n_groups[0] -= 1
    last = n_groups[0]
    if g != last:
        groups[g] = groups[last]
        place[groups[g].kind, groups[g].step + max_steps] = g


@kernel
def _enter(nodes, groups, place, n_groups, factor, n):
    """Insert node n, which is in no heap, into its group."""
    at = nodes[n].step + place.shape[1] // 2
    g = np.int64(place[nodes[n].kind, at])
    if g != NIL:
        _set_root(nodes, groups, g, _meld(nodes, np.int64(groups[g].root), n))
        return
    g = n_groups[0]
    n_groups[0] += 1
    place[nodes[n].kind, at] = g
    groups[g].kind, groups[g].step = nodes[n].kind, nodes[n].step
    groups[g].factor = factor[at]
    _set_root(nodes, groups, g, n)


@kernel
def join(node_class, order, nodes, groups, place, n_groups, factor):
    """Let all nodes join, idle and with slowdown 1.

    Each class starts as a binary tree. If all nodes were children of one root, the first choice
    would take O(n_nodes).

    Parameters
    ----------
    order : ndarray of int, shape (n_nodes,)
        The nodes by class, then by index.
    """
    first = 0
    while first < len(order):
        kind, end = node_class[order[first]], first
        while end < len(order) and node_class[order[end]] == kind:
            end += 1
        for at in range(end - 1, first - 1, -1):
            n = order[at]
            nodes[n].backlog, nodes[n].ratio = 0, 1.0
            nodes[n].kind, nodes[n].step = kind, 0
            nodes[n].next = nodes[n].before = nodes[n].child = NIL
            below = first + 2 * (at - first) + 1
            for child in range(min(below + 1, end - 1), below - 1, -1):
                _meld(nodes, n, order[child])
        _enter(nodes, groups, place, n_groups, factor, order[first])
        first = end


@kernel
def dispatch(own_ticks, nodes, groups, place, n_groups, node):
    """Choose a node for each request in turn and add the request to the node's backlog.

    Parameters
    ----------
    own_ticks : ndarray of int, shape (n_requests, n_classes)
        Expected ticks of each request on an idle, healthy node of each class.
    node : ndarray of int, shape (n_requests,)
        Filled with the chosen nodes.
    """
    for r in range(len(own_ticks)):
        best, best_value = np.int64(0), np.inf
        for g in range(n_groups[0]):
            value = (groups[g].backlog + own_ticks[r, groups[g].kind]) * groups[g].factor
            if value < best_value or (
                value == best_value and groups[g].root < groups[best].root
            ):
                best, best_value = g, value
        n = np.int64(groups[best].root)
        nodes[n].backlog += own_ticks[r, nodes[n].kind]
        _set_root(nodes, groups, best, _meld(nodes, _release(nodes, n), n))
        node[r] = n


@kernel
def complete(node, ticks, busy_ticks, nodes, groups, place, n_groups, factor, weight):
    """Report jobs as complete, all of them or none.

    Parameters
    ----------
    node : ndarray of int, shape (n_jobs,)
    ticks, busy_ticks : ndarray, shape (n_jobs,)
        Expected and measured ticks of each job.
    factor : ndarray, shape (2 * max_steps + 1,)
        Slowdown of each step from -max_steps.
    weight : float
        Weight of a job in the moving average of the slowdown.

    Returns
    -------
    int
        -1; or, with no state changed, the first job that exceeds the backlog of its node.
    """
    max_steps = place.shape[1] // 2
    steps_per_octave = max_steps // MAX_OCTAVES
    refused = NIL
    for job in range(len(node)):
        nodes[node[job]].backlog -= ticks[job]
        if nodes[node[job]].backlog < 0 and refused == NIL:
            refused = job
    for job in range(len(node)):
        nodes[node[job]].backlog += ticks[job]
    if refused != NIL:
        return refused
    for job in range(len(node)):
        n = node[job]
        ratio = (1 - weight) * nodes[n].ratio + weight * (busy_ticks[job] / ticks[job])
        nodes[n].ratio = ratio = min(max(ratio, 2.0**-MAX_OCTAVES), 2.0**MAX_OCTAVES)
        step = round(steps_per_octave * math.log2(ratio))
        if step != nodes[n].step:
            _leave(nodes, groups, place, n_groups, n)
            nodes[n].backlog -= ticks[job]
            nodes[n].step = step
            _enter(nodes, groups, place, n_groups, factor, n)
            continue
        nodes[n].backlog -= ticks[job]
        g = np.int64(place[nodes[n].kind, step + max_steps])
        root = np.int64(groups[g].root)
        if root != n:
            _cut_off(nodes, n)
            root = _meld(nodes, root, n)
        _set_root(nodes, groups, g, root)
    return NIL


def warm_up() -> None:
    """Compile the kernels of this file for the argument types that `BatchDispatcher` uses."""
    nodes, groups = np.zeros(1, NODE).view(np.recarray), np.zeros(1, GROUP).view(np.recarray)
    n_steps = 2 * MAX_OCTAVES + 1
    place, n_groups = np.full((1, n_steps), NIL, np.int32), np.zeros(1, np.int64)
    ticks, factor = np.ones((1, 1), np.int64), np.ones(n_steps)
    node, checked = np.zeros(1, np.int64), np.zeros(1, np.int64)
    checked.setflags(write=False)
    join(checked, node, nodes, groups, place, n_groups, factor)
    dispatch(ticks, nodes, groups, place, n_groups, node)
    complete(checked, ticks[0], np.ones(1), nodes, groups, place, n_groups, factor, 0.2)
