"""HypSched-RT for a real router: `Dispatcher`, with no clock and no simulation in it."""

import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Tier

WEIGHT = 0.2  # of the newest job in a node's measured slowdown
STEPS = 16  # slowdowns are rounded to 1/16 octave, so that nodes of equal speed are one group
TICKS_PER_S = 2**30  # backlogs are counted in whole ticks (0.9 ns): exact in any order
MAX_S = 2**20  # of one request: 12 days, so that ticks keep their precision


@dataclass(slots=True)
class _Node:
    name: Hashable
    kind: Hashable
    index: int  # order of joining; ties go to the lowest
    ratio: float = 1.0  # moving average of busy / expected
    step: int = 0  # slowdown = 2 ** (step / STEPS)
    backlog: int = 0  # ticks of `jobs`
    jobs: Counter[int] = field(default_factory=Counter)  # expected ticks: how many
    stamp: int = 0  # of its valid heap entry


class Dispatcher:
    """Send each request to the node of a tier that should complete it first.

    HypSched-RT [1]_: the node of least (outstanding + own) expected seconds times slowdown.
    Outstanding: of all jobs dispatched there and not complete, a running one in full. Slowdown:
    moving average, weight 0.2, of busy over expected seconds, rounded to 1/16 octave, 1 at the
    start; so a node that is throttled or shared loses load without being told. Ties go to the
    node that joined first. A choice costs O(n_groups + log n_nodes), a group being the nodes of
    one class and one rounded slowdown. Not safe to share between threads without a lock.

    Parameters
    ----------
    nodes : Tier, or mapping of node to class, or iterable of nodes
        Nodes are named by the caller (any hashable). Nodes of a class have the same expected
        seconds, say one class per GPU model (a `Tier` is read so); in an iterable every node is
        a class of its own, named after it.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.

    Examples
    --------
    Two A100 and one L4; a request is expected to take 1 s on the one and 4 s on the other.

    >>> router = Dispatcher({"a": "A100", "b": "A100", "c": "L4"})
    >>> expected = {"A100": 1.0, "L4": 4.0}
    >>> [router.dispatch(expected) for _ in range(4)]
    ['a', 'b', 'a', 'b']
    >>> router.complete("a", expected_s=1.0, busy_s=1.0)
    >>> router.dispatch(expected, among=["b", "c"])  # a has no room for the KV cache
    'b'
    >>> router.remove("b")  # lost: 3 jobs of 1 s are the caller's to dispatch again
    3.0
    """

    def __init__(
        self, nodes: Tier | Mapping[Hashable, Hashable] | Iterable[Hashable] = ()
    ) -> None:
        self._nodes: dict[Hashable, _Node] = {}
        self._groups: dict[tuple[Hashable, int], list[tuple[int, int, int]]] = {}
        self._by_index: dict[int, _Node] = {}
        self._n_joined = self._n_stamps = self._n_stale = 0
        if isinstance(nodes, Tier):
            nodes = {node.name: node.gpu.name for node in nodes.nodes}
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
        """Jobs dispatched to a node and not complete."""
        return self._known(node).jobs.total()

    def outstanding_s(self, node: Hashable) -> float:
        """Expected seconds of those jobs."""
        return self._known(node).backlog / TICKS_PER_S

    def slowdown(self, node: Hashable) -> float:
        """Measured over expected seconds, as used: rounded to 1/16 octave."""
        return _factor(self._known(node).step)

    def add(self, node: Hashable, node_class: Hashable | None = None) -> None:
        """Let a node join, idle and with slowdown 1; without a class it is one of its own."""
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

        They are forgotten: dispatch them again, or let them end unreported, for `complete` no
        longer knows the node. If it joins again it is a new one. To drain a node, leave it out
        of `among` until it has no jobs.
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
            Seconds the request should take on an idle, healthy node of each class; one number
            for all classes. `hypsolve.problem.evaluation.stage_service_s` computes them.
        among : iterable of nodes, optional
            Those that can take it: they hold the stage and have room for its KV cache. Default:
            all. Costs time in proportion to its length.

        Returns
        -------
        hashable
            The node. Pass the seconds of its class to `complete` when the request ends.

        Raises
        ------
        ValueError
            If there is no node to choose from, a node or class is unknown, or seconds are not
            positive and finite.
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
        node = min(
            candidates, key=lambda n: ((n.backlog + own[n.kind]) * _factor(n.step), n.index)
        )  # fmt: skip
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
            As given to `dispatch` for the node's class.
        busy_s : float
            Seconds the node really spent on it, without queueing.

        Raises
        ------
        ValueError
            If the node is unknown, has no such job outstanding, or seconds are not positive.
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
        ratio = (1 - WEIGHT) * done.ratio + WEIGHT * (busy_s * TICKS_PER_S / ticks)
        done.ratio = min(max(ratio, 2.0**-32), 2.0**32)
        done.step = round(STEPS * math.log2(done.ratio))
        self._enter(done)

    def _known(self, node: Hashable) -> _Node:
        try:
            return self._nodes[node]
        except (KeyError, TypeError):
            known = ", ".join(map(repr, list(self._nodes)[:20])) or "none"
            raise ValueError(f"dispatcher: unknown node {node!r}; known are {known}") from None

    def _enter(self, node: _Node) -> None:
        """Enter a node, new or changed, in its group's heap; its older entry goes stale."""
        self._n_stamps += 1
        node.stamp = self._n_stamps
        group = self._groups.setdefault((node.kind, node.step), [])
        heapq.heappush(group, (node.backlog, node.index, node.stamp))
        self._n_stale += 1
        if self._n_stale > 2 * len(self._nodes) + 64:  # so that heaps stay in proportion
            self._n_stale = 0
            self._groups = {}
            for each in self._nodes.values():
                entry = (each.backlog, each.index, each.stamp)
                self._groups.setdefault((each.kind, each.step), []).append(entry)
            for heap in self._groups.values():
                heapq.heapify(heap)

    def _drop_stale(self) -> None:
        """Bring a valid entry to the top of every heap; forget groups that have none."""
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
    except TypeError:  # also of a tuple that holds a list, which `Hashable` lets pass
        return False
    return True


def _factor(step: int) -> float:
    return 2.0 ** (step / STEPS)


def _ticks(expected: float | Mapping[Hashable, float], kind: Hashable) -> int:
    """Whole ticks, at least one, of what a class is expected to take."""
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
