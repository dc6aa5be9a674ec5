"""HypSched-RT for many nodes and many requests a call: `BatchDispatcher`."""

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.dispatch.dispatcher import MAX_S, STEPS, TICKS_PER_S
from hypsolve.kernels.warm_up import warm
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray

MAX_CLASSES = 2**14  # each takes 4 kB, for its groups
MAX_OUTSTANDING = 2**62  # ticks of all nodes: 136 years, so that they fit 64 bits


class BatchDispatcher:
    """`Dispatcher` in compiled code: the same choices for up to millions of requests a second.

    Nodes are numbers, 0..n_nodes - 1, none leaves or joins, and all can take any request. A
    choice costs O(n_groups + log n_nodes), a group being the nodes of one class and one rounded
    slowdown; a completion O(log n_nodes). Both are means over many. Not safe to share between
    threads without a lock; each thread may have one of its own.

    Parameters
    ----------
    node_class : array_like of int, shape (n_nodes,)
        Class of each node, from 0; at most 16384 classes. Nodes of a class have the same
        expected seconds.

    Examples
    --------
    Two nodes of class 0 and one of class 1; requests take 1 s on the one and 4 s on the other.

    >>> router = BatchDispatcher([0, 0, 1])
    >>> router.dispatch([[1.0, 4.0]] * 4).tolist()
    [0, 1, 0, 1]
    >>> router.complete([0, 1], expected_s=[1.0, 1.0], busy_s=[1.0, 3.0])
    >>> router.dispatch([[1.0, 4.0]] * 2).tolist()
    [0, 0]
    """

    def __init__(self, node_class: ArrayLike) -> None:
        from hypsolve.kernels import batch_dispatch

        classes = valid.wholes(
            "batch dispatcher", "node_class", node_class, (None,), maximum=MAX_CLASSES - 1
        )
        if not classes.size:
            raise ValueError(
                "batch dispatcher: node_class must hold at least one node, got none"
            )
        warm("batch_dispatch")
        self._max_ticks = 0
        self._n_nodes, self._n_classes = len(classes), int(classes.max()) + 1
        n_steps = 2 * batch_dispatch.MAX_STEPS + 1
        self._factor = np.array(
            [2.0 ** ((at - batch_dispatch.MAX_STEPS) / STEPS) for at in range(n_steps)]
        )
        self._nodes = np.zeros(len(classes), batch_dispatch.NODE).view(np.recarray)
        n_groups = min(len(classes), self._n_classes * n_steps)
        groups = np.zeros(n_groups, batch_dispatch.GROUP).view(np.recarray)
        place = np.full((self._n_classes, n_steps), batch_dispatch.NIL, np.int32)
        self._state = self._nodes, groups, place, np.zeros(1, np.int64)
        order = np.argsort(classes, kind="stable")
        batch_dispatch.join(classes, order, *self._state, self._factor)

    @property
    def outstanding_s(self) -> Array:
        """Expected seconds of the jobs dispatched and not complete, shape (n_nodes,)."""
        return self._nodes.backlog / TICKS_PER_S

    @property
    def slowdown(self) -> Array:
        """Measured over expected seconds, rounded to 1/16 octave, shape (n_nodes,)."""
        return 2.0 ** (self._nodes.step / STEPS)

    def dispatch(self, expected_s: ArrayLike) -> IntArray:
        """Choose a node for each request, in order, and count it as outstanding there.

        Parameters
        ----------
        expected_s : array_like, shape (n_requests, n_classes)
            Seconds a request should take on an idle, healthy node of each class: positive, at
            most 2**20, counted in ticks of 2**-30 s, at least one.

        Returns
        -------
        ndarray of int, shape (n_requests,)

        Raises
        ------
        ValueError, TypeError
            Naming the argument, the rule and the value.
        """
        from hypsolve.kernels import batch_dispatch

        ticks = _ticks("expected_s", expected_s, (None, self._n_classes))
        node = np.empty(len(ticks), np.int64)
        self._make_room(len(ticks) * int(ticks.max(initial=0)))
        batch_dispatch.dispatch(ticks, *self._state, node)
        return node

    def _make_room(self, ticks: int) -> None:
        """Refuse requests that might take more ticks than an integer holds."""
        self._max_ticks += ticks  # completions are not followed until it matters
        if self._max_ticks > MAX_OUTSTANDING:
            self._max_ticks = sum(self._nodes.backlog.tolist()) + ticks
            if self._max_ticks > MAX_OUTSTANDING:
                raise ValueError(
                    "batch dispatcher: outstanding seconds must be at most"
                    f" {MAX_OUTSTANDING / TICKS_PER_S:g} in all, got"
                    f" {self._max_ticks / TICKS_PER_S:g}"
                )

    def complete(self, node: ArrayLike, expected_s: ArrayLike, busy_s: ArrayLike) -> None:
        """Report that nodes have completed requests, one or many of each node, in order.

        Parameters
        ----------
        node : array_like of int, shape (n_jobs,)
        expected_s : array_like, shape (n_jobs,)
            As given to `dispatch` for the node's class.
        busy_s : array_like, shape (n_jobs,)
            Seconds the node really spent on it, without queueing.

        Raises
        ------
        ValueError, TypeError
            If a node is unknown or has less outstanding than is reported, or seconds are not
            positive; then no job of the call counts as complete.
        """
        from hypsolve.kernels import batch_dispatch

        nodes = valid.wholes(
            "batch dispatcher", "node", node, (None,), maximum=self._n_nodes - 1
        )
        ticks = _ticks("expected_s", expected_s, nodes.shape)
        busy_ticks = (
            valid.reals("batch dispatcher", "busy_s", busy_s, nodes.shape) * TICKS_PER_S
        )
        if (busy_ticks == 0).any():
            raise ValueError("batch dispatcher: busy_s must be positive and finite, got 0.0")
        refused = batch_dispatch.complete(nodes, ticks, busy_ticks, *self._state, self._factor)
        if refused >= 0:
            n = nodes[refused]
            raise ValueError(
                f"batch dispatcher: expected_s[{refused}] must be at most what node {n} has"
                f" outstanding, {self.outstanding_s[n]:g} s less the jobs before it, got"
                f" {ticks[refused] / TICKS_PER_S:g}"
            )


def _ticks(field: str, seconds: ArrayLike, shape: tuple[int | None, ...]) -> IntArray:
    """Whole ticks, at least one each."""
    expected_s = valid.reals("batch dispatcher", field, seconds, shape)
    if expected_s.size and not 0 < expected_s.min() <= expected_s.max() <= MAX_S:
        least, most = expected_s.min(), expected_s.max()
        raise ValueError(
            f"batch dispatcher: {field} must be positive and at most {MAX_S}, got"
            f" {least if least <= 0 else most:g}"
        )
    return np.maximum(np.rint(expected_s * TICKS_PER_S), 1).astype(np.int64)
