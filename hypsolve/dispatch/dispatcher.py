"""HypSched-RT for a real router: `Dispatcher` keeps no clock and simulates nothing."""

import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Tier

TICKS_PER_S = 2**30  # backlogs are whole ticks of 0.9 ns, so that sums are exact in any order
MAX_S = 2**20  # expected seconds of one request (12 days): a float still resolves a tick
MAX_OCTAVES = 32
MIN_SLOWDOWN, MAX_SLOWDOWN = 2.0**-MAX_OCTAVES, 2.0**MAX_OCTAVES  # whatever is reported


@dataclass(frozen=True, slots=True)
class DispatcherParams:
    """Parameters of the measured slowdown in `Dispatcher` and `BatchDispatcher`.

    Attributes
    ----------
    slowdown_weight : float
        Weight of the newest job in the moving average of busy over expected seconds, in (0, 1].
        A larger weight notices a throttled node after fewer jobs; a smaller one averages out
        noisy measurements. With 0.2, about half of a lasting change shows after 3 jobs.
    steps_per_octave : int
        Slowdowns are rounded to this number of steps between s and 2 s, from 1 to 256. Nodes of
        a class with equal rounded slowdowns form a group, and a choice costs
        O(n_groups + log n_nodes). Fewer steps make a choice in a large tier cheaper; more steps
        weigh small differences in speed more exactly.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong type.

    Examples
    --------
    One job that takes three times as long as expected changes the average from 1 to 2.

    >>> import hypsolve as hs
    >>> params = hs.DispatcherParams(slowdown_weight=0.5)
    >>> router = hs.Dispatcher(["a", "b"], params=params)
    >>> router.dispatch(1.0)
    'a'
    >>> router.complete("a", expected_s=1.0, busy_s=3.0)
    >>> router.slowdown("a")
    2.0
    """

    slowdown_weight: float = 0.2
    steps_per_octave: int = 16

    def __post_init__(self) -> None:
        owner = "DispatcherParams"
        weight = valid.real(owner, "slowdown_weight", self.slowdown_weight, strict=True)
        if weight > 1:
            raise ValueError(f"{owner}: slowdown_weight must be at most 1, got {weight!r}")
        steps = valid.whole(owner, "steps_per_octave", self.steps_per_octave, minimum=1)
        if steps > 256:
            raise ValueError(f"{owner}: steps_per_octave must be at most 256, got {steps}")
        object.__setattr__(self, "slowdown_weight", weight)
        object.__setattr__(self, "steps_per_octave", steps)


@dataclass(slots=True)
class _Node:
    """State of one node; ``backlog`` is always the sum of ``jobs``."""

    name: Hashable
    kind: Hashable  # class
    index: int  # order of joining; ties go to the lowest
    ratio: float = 1.0  # moving average of busy / expected
    step: int = 0  # slowdown, as log2(ratio) in whole steps
    backlog: int = 0  # ticks
    jobs: Counter[int] = field(default_factory=Counter)  # expected ticks -> number of jobs
    stamp: int = 0  # of its only valid heap entry


class Dispatcher:
    """Send each request to the node of a tier that is expected to complete it first.

    HypSched-RT [1]_ chooses the node that minimises (outstanding + own) expected seconds times
    the node's slowdown. Outstanding jobs are all jobs that were dispatched to the node and are
    not yet complete; a running job counts in full. The slowdown starts at 1. It is a moving
    average of the ratio of busy time to expected time, rounded to the nearest power of
    2**(1/16) by default (see `DispatcherParams`). A node that is throttled or shared therefore
    automatically receives less load. Ties go to the node that joined first.

    A choice costs O(n_groups + log n_nodes), where a group holds the nodes of one class and one
    rounded slowdown. A dispatcher must not be shared between threads without a lock.

    Parameters
    ----------
    nodes : Tier, or mapping of node to class, or iterable of nodes
        Nodes are named by the caller (any hashable). Nodes of a class have equal expected
        seconds; a class is typically a GPU model, and a `Tier` is read in this way. In an
        iterable, every node is a class of its own, named after the node.
    params : DispatcherParams, optional
        How slowdowns are measured.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.

    Examples
    --------
    Two A100 and one L4. A request is expected to take 1 s on an A100 and 4 s on the L4.

    >>> import hypsolve as hs
    >>> router = hs.Dispatcher({"a": "A100", "b": "A100", "c": "L4"})
    >>> expected = {"A100": 1.0, "L4": 4.0}
    >>> [router.dispatch(expected) for _ in range(4)]
    ['a', 'b', 'a', 'b']
    >>> router.complete("a", expected_s=1.0, busy_s=1.0)

    The next request does not fit the KV cache of node a.

    >>> router.dispatch(expected, among=["b", "c"])
    'b'

    Node b fails. Its 3 jobs of 1 s must be dispatched again.

    >>> router.remove("b")
    3.0
    """

    def __init__(
        self,
        nodes: Tier | Mapping[Hashable, Hashable] | Iterable[Hashable] = (),
        *,
        params: DispatcherParams | None = None,
    ) -> None:
        self._params = DispatcherParams() if params is None else params
        valid.of_type("dispatcher", "params", self._params, DispatcherParams)
        self._nodes: dict[Hashable, _Node] = {}
        self._groups: dict[tuple[Hashable, int], list[tuple[int, int, int]]] = {}
        self._by_index: dict[int, _Node] = {}
        self._n_joined = self._n_stamps = self._n_stale = 0
        if isinstance(nodes, Tier):
            nodes = {node.name: node.class_name for node in nodes.nodes}
        elif isinstance(nodes, str) or not isinstance(nodes, Iterable):
            raise TypeError(
                f"dispatcher: nodes must be a Tier, a mapping or an iterable, got {nodes!r}"
            )
        for node in nodes:
            self.add(node, nodes[node] if isinstance(nodes, Mapping) else None)

    @property
    def nodes(self) -> tuple[Hashable, ...]:
        """The nodes, in the order in which they joined."""
        return tuple(self._nodes)

    def n_jobs(self, node: Hashable) -> int:
        """Return the number of jobs that were dispatched to a node and are not complete."""
        return self._known(node).jobs.total()

    def outstanding_s(self, node: Hashable) -> float:
        """Return the expected time of all jobs of a node that are not complete, in seconds."""
        return self._known(node).backlog / TICKS_PER_S

    def slowdown(self, node: Hashable) -> float:
        """Return the rounded moving average of a node's ratio of busy to expected time."""
        step: int = self._known(node).step
        return 2.0 ** (step / self._params.steps_per_octave)

    def add(self, node: Hashable, node_class: Hashable | None = None) -> None:
        """Let a node join, idle and with slowdown 1.

        Without `node_class` the node is a class of its own, named after the node.
        """
        if node is None or not _is_hashable(node):
            raise TypeError(f"dispatcher: node must be hashable and not None, got {node!r}")
        if not _is_hashable(node_class):
            raise TypeError(f"dispatcher: node_class must be hashable, got {node_class!r}")
        if node in self._nodes:
            raise ValueError(f"dispatcher: node must be new, got {node!r} again")
        kind = node if node_class is None else node_class
        self._nodes[node] = joined = _Node(node, kind, self._n_joined)
        self._by_index[self._n_joined] = joined
        self._n_joined += 1
        self._enter(joined)

    def remove(self, node: Hashable) -> float:
        """Let a node leave; return the expected seconds of the jobs it had not completed.

        The dispatcher forgets these jobs. Dispatch them again or let them end unreported;
        `complete` no longer knows the node. A node that joins again starts anew. To drain a
        node before it leaves, keep it out of `among` until it has no jobs.
        """
        gone = self._known(node)
        del self._nodes[node], self._by_index[gone.index]
        return gone.backlog / TICKS_PER_S

    def dispatch(
        self,
        expected: float | Mapping[Hashable, float],
        among: Iterable[Hashable] | None = None,
    ) -> Hashable:
        """Choose a node for a request and count the request as outstanding there.

        Parameters
        ----------
        expected : float, or mapping of class to float
            Time in seconds that the request takes on an idle, healthy node of each class; a
            single number holds for all classes. They must be positive and at most 2**20, and
            are rounded to ticks of 2**-30 s, at least one.
            `hypsolve.problem.evaluation.stage_service_s` computes them from an instance.
        among : iterable of nodes, optional
            Nodes that can take the request, say those that have room for its KV cache.
            Default: all. The cost of the choice is then proportional to their number.

        Returns
        -------
        hashable
            The chosen node. When the request ends, pass the expected seconds of the node's
            class to `complete`.

        Raises
        ------
        ValueError
            If there is no node to choose from, a node or class is unknown, or the expected
            seconds are out of range.
        TypeError
            If `among` is not an iterable of nodes, or the expected seconds are not numbers.
        """
        if among is None:
            self._drop_stale()
            candidates = [self._by_index[heap[0][1]] for heap in self._groups.values()]
        elif isinstance(among, str) or not isinstance(among, Iterable):
            raise TypeError(f"dispatcher: among must be an iterable of nodes, got {among!r}")
        else:
            candidates = [self._known(node) for node in among]
        if not candidates:
            raise ValueError("dispatcher: there must be a node to choose from, got none")
        own = {kind: _ticks(expected, kind) for kind in {node.kind for node in candidates}}
        steps = self._params.steps_per_octave
        node = min(
            candidates,
            key=lambda n: ((n.backlog + own[n.kind]) * 2.0 ** (n.step / steps), n.index),
        )
        node.backlog += own[node.kind]
        node.jobs[own[node.kind]] += 1
        self._enter(node)
        return node.name

    def complete(self, node: Hashable, expected_s: float, busy_s: float) -> None:
        """Report that a node has completed a request.

        Parameters
        ----------
        node : hashable
        expected_s : float
            As given to `dispatch` for the class of the node.
        busy_s : float
            Measured time that the node spent on the request, without queueing.

        Raises
        ------
        ValueError
            If the node is unknown, has no job of `expected_s` outstanding, or seconds are not
            positive.
        """
        done = self._known(node)
        ticks = _ticks(expected_s, done.kind)
        busy_s = valid.real("dispatcher", "busy_s", busy_s, strict=True)
        if not done.jobs[ticks]:
            raise ValueError(
                f"dispatcher: node {node!r} must have a job of expected_s = {expected_s!r}"
                f" outstanding, got none among its {done.jobs.total()}"
            )
        done.jobs[ticks] -= 1
        if not done.jobs[ticks]:
            del done.jobs[ticks]
        done.backlog -= ticks
        weight = self._params.slowdown_weight
        ratio = (1 - weight) * done.ratio + weight * (busy_s * TICKS_PER_S / ticks)
        done.ratio = min(max(ratio, MIN_SLOWDOWN), MAX_SLOWDOWN)
        done.step = round(self._params.steps_per_octave * math.log2(done.ratio))
        self._enter(done)

    def _known(self, node: Hashable) -> _Node:
        try:
            return self._nodes[node]
        except (KeyError, TypeError):
            known = ", ".join(map(repr, list(self._nodes)[:20])) or "none"
            raise ValueError(f"dispatcher: unknown node {node!r}; known are {known}") from None

    def _enter(self, node: _Node) -> None:
        """Push a new or changed node on the heap of its group.

        Heap entries are (backlog, index, stamp). Only the entry with the node's newest stamp is
        valid; older entries stay until they reach the top, or until the heaps are rebuilt.
        """
        self._n_stamps += 1
        node.stamp = self._n_stamps
        group = self._groups.setdefault((node.kind, node.step), [])
        heapq.heappush(group, (node.backlog, node.index, node.stamp))
        self._n_stale += 1
        if self._n_stale > 2 * len(self._nodes) + 64:  # keep memory O(n_nodes)
            self._n_stale = 0
            self._groups = {}
            for each in self._nodes.values():
                entry = (each.backlog, each.index, each.stamp)
                self._groups.setdefault((each.kind, each.step), []).append(entry)
            for heap in self._groups.values():
                heapq.heapify(heap)

    def _drop_stale(self) -> None:
        """Pop stale entries off every heap until the top is valid; drop empty groups."""
        for key, heap in list(self._groups.items()):
            while heap and not self._is_valid(heap[0]):
                heapq.heappop(heap)
            if not heap:
                del self._groups[key]

    def _is_valid(self, entry: tuple[int, int, int]) -> bool:
        node = self._by_index.get(entry[1])
        return node is not None and node.stamp == entry[2]


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:  # isinstance(value, Hashable) accepts a tuple that holds a list
        return False
    return True


def _ticks(expected: float | Mapping[Hashable, float], kind: Hashable) -> int:
    """Convert the expected seconds of a class to whole ticks, at least one."""
    name = "expected seconds"
    if isinstance(expected, Mapping):
        if kind not in expected:
            raise ValueError(
                f"dispatcher: expected must name class {kind!r}, got {list(expected)!r:.200}"
            )
        expected, name = expected[kind], f"expected[{kind!r}]"
    seconds = valid.real("dispatcher", name, expected, strict=True)
    if seconds > MAX_S:
        raise ValueError(f"dispatcher: {name} must be at most {MAX_S}, got {expected!r}")
    return max(round(seconds * TICKS_PER_S), 1)
