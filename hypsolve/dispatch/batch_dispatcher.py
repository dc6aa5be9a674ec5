"""HypSched-RT for many nodes and many requests a call: `BatchDispatcher`."""

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.dispatch.dispatcher import MAX_OCTAVES, MAX_S, TICKS_PER_S, DispatcherParams
from hypsolve.kernels.warm_up import warm
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray

MAX_CLASSES = 2**14  # a class takes 4 kB for its table of groups
MAX_OUTSTANDING = 2**62  # ticks of all nodes together (136 years): sums fit 64 bits


class BatchDispatcher:
    """`Dispatcher` in compiled code: identical choices, up to millions of requests a second.

    Nodes are numbered 0..n_nodes - 1. No node leaves or joins, and every node can take any
    request. A choice costs O(n_groups + log n_nodes), where a group holds the nodes of one
    class and one rounded slowdown; a completion costs O(log n_nodes). Both costs are amortised.
    A dispatcher must not be shared between threads without a lock.

    Parameters
    ----------
    node_class : array_like of int, shape (n_nodes,)
        Class of each node, from 0; at most 16384 classes. Nodes of a class have equal expected
        seconds.
    params : DispatcherParams, optional
        How slowdowns are measured.

    Examples
    --------
    Two nodes of class 0 and one of class 1. A request takes 1 s on class 0 and 4 s on class 1.

    >>> import hypsolve as hs
    >>> router = hs.BatchDispatcher([0, 0, 1])
    >>> router.dispatch([[1.0, 4.0]] * 4).tolist()
    [0, 1, 0, 1]

    Node 1 took 4 s for a request that was expected to take 1 s. With slowdown 1.6 it is the
    worse choice even for the second of the next two requests: (1 + 1) * 1.6 > (2 + 1) * 1.

    >>> router.complete([0, 1], expected_s=[1.0, 1.0], busy_s=[1.0, 4.0])
    >>> router.slowdown.round(1).tolist()
    [1.0, 1.6, 1.0]
    >>> router.dispatch([[1.0, 4.0]] * 2).tolist()
    [0, 0]
    """

    def __init__(
        self, node_class: ArrayLike, *, params: DispatcherParams | None = None
    ) -> None:
        from hypsolve.kernels import batch_dispatch

        classes = valid.wholes(
            "batch dispatcher", "node_class", node_class, (None,), maximum=MAX_CLASSES - 1
        )
        if not classes.size:
            raise ValueError(
                "batch dispatcher: node_class must hold at least one node, got none"
            )
        self._params = DispatcherParams() if params is None else params
        valid.of_type("batch dispatcher", "params", self._params, DispatcherParams)
        warm("batch_dispatch")
        self._max_ticks = 0
        self._n_nodes, self._n_classes = len(classes), int(classes.max()) + 1
        steps = self._params.steps_per_octave
        self._max_steps = MAX_OCTAVES * steps
        n_steps = 2 * self._max_steps + 1
        # Python's power, as in `Dispatcher`; NumPy's may differ in the last bit
        factors = [2.0 ** ((at - self._max_steps) / steps) for at in range(n_steps)]
        self._factor = np.array(factors)
        self._nodes = np.zeros(len(classes), batch_dispatch.NODE).view(np.recarray)
        n_groups = min(len(classes), self._n_classes * n_steps)
        groups = np.zeros(n_groups, batch_dispatch.GROUP).view(np.recarray)
        place = np.full((self._n_classes, n_steps), batch_dispatch.NIL, np.int32)
        self._state = self._nodes, groups, place, np.zeros(1, np.int64)
        order = np.argsort(classes, kind="stable")
        batch_dispatch.join(classes, order, *self._state, self._factor)

    @property
    def outstanding_s(self) -> Array:
        """Expected time of the jobs of each node that are not complete, shape (n_nodes,)."""
        return self._nodes.backlog / TICKS_PER_S

    @property
    def slowdown(self) -> Array:
        """Rounded moving average of the ratio of busy to expected time, shape (n_nodes,)."""
        return np.asarray(self._factor[self._nodes.step + self._max_steps])

    def dispatch(self, expected_s: ArrayLike) -> IntArray:
        """Choose a node for each request, in order, and count it as outstanding there.

        Parameters
        ----------
        expected_s : array_like, shape (n_requests, n_classes)
            Seconds that a request should take on an idle, healthy node of each class. They must
            be positive and at most 2**20, and are rounded to ticks of 2**-30 s, at least one.

        Returns
        -------
        ndarray of int, shape (n_requests,)
            The chosen nodes.

        Raises
        ------
        ValueError, TypeError
            If the seconds are out of range or of the wrong shape or type. No request of the
            call is then counted.
        """
        from hypsolve.kernels import batch_dispatch

        ticks = _ticks("expected_s", expected_s, (None, self._n_classes))
        node = np.empty(len(ticks), np.int64)
        self._reserve(len(ticks) * int(ticks.max(initial=0)))
        batch_dispatch.dispatch(ticks, *self._state, node)
        return node

    def _reserve(self, ticks: int) -> None:
        """Raise ValueError if requests of `ticks` in all might overflow the backlogs."""
        self._max_ticks += ticks  # an upper bound: completions are subtracted when it matters
        if self._max_ticks > MAX_OUTSTANDING:
            self._max_ticks = sum(self._nodes.backlog.tolist()) + ticks
            if self._max_ticks > MAX_OUTSTANDING:
                raise ValueError(
                    "batch dispatcher: outstanding seconds must be at most"
                    f" {MAX_OUTSTANDING / TICKS_PER_S:g} in all, got"
                    f" {self._max_ticks / TICKS_PER_S:g}"
                )

    def complete(self, node: ArrayLike, expected_s: ArrayLike, busy_s: ArrayLike) -> None:
        """Report completed requests, in order; a node may occur more than once.

        Parameters
        ----------
        node : array_like of int, shape (n_jobs,)
        expected_s : array_like, shape (n_jobs,)
            As given to `dispatch` for the class of the node.
        busy_s : array_like, shape (n_jobs,)
            Measured seconds that the node spent on the request, without queueing.

        Raises
        ------
        ValueError, TypeError
            If a node is unknown or has less outstanding than is reported, or seconds are not
            positive. No job of the call is then counted as complete.
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
        refused = batch_dispatch.complete(
            nodes, ticks, busy_ticks, *self._state, self._factor, self._params.slowdown_weight
        )
        if refused >= 0:
            n = nodes[refused]
            raise ValueError(
                f"batch dispatcher: expected_s[{refused}] must be at most what node {n} has"
                f" outstanding, {self.outstanding_s[n]:g} s less the jobs before it, got"
                f" {ticks[refused] / TICKS_PER_S:g}"
            )


def _ticks(field: str, seconds: ArrayLike, shape: tuple[int | None, ...]) -> IntArray:
    """Convert expected seconds to whole ticks, at least one each."""
    expected_s = valid.reals("batch dispatcher", field, seconds, shape)
    if expected_s.size and not 0 < expected_s.min() <= expected_s.max() <= MAX_S:
        least, most = expected_s.min(), expected_s.max()
        raise ValueError(
            f"batch dispatcher: {field} must be positive and at most {MAX_S}, got"
            f" {least if least <= 0 else most:g}"
        )
    return np.maximum(np.rint(expected_s * TICKS_PER_S), 1).astype(np.int64)
