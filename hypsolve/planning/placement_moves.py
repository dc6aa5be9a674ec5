"""`FewBytesSearch`: the pipelines that serve most among those that load few bytes.

A *binding* is a sequence of stages without blocks: a machine, a number of its GPUs, and the
blocks that these GPUs hold, if a stage of the earlier placement is continued there. A *box* is
a binding with a range for each cut. The best split of a box bounds the rates of all of its
splits, and blocks that every split of the box must load bound its bytes from below. An integer
program over boxes with these bounds is therefore no less than the best placement. Another one,
over the best splits of the boxes with the bytes that they do load, is a placement. The boxes
that the first program chooses are halved until both programs have one value.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hypsolve.problem.fleet import Machine
from hypsolve.problem.model import Model
from hypsolve.problem.placement import PlacedStage, Placement, PlacementProblem
from hypsolve.problem.placement_evaluation import link_rate, shared_links
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.placement.master import Program, by_highs
from hypsolve.solvers.placement.values import Box, boxes, loaded, may_serve, split_of
from hypsolve.solvers.throughput.exact import BoxSolver
from hypsolve.solvers.throughput.server_arrays import server_of

MARGIN = 1e-9  # share that is taken off rates of the kernels, which find them to 1e-10 of it
PROVED = 1e-6  # relative difference of the two programs at which the answer is proved
TIE = 1e-8  # share of the rate that all bytes of the fleet's pipelines are worth
TIED = 5e-7  # relative difference of rates between which others decide: see `_tie_broken`
KEPT_FIRST = 1e-4  # share of the rate, served meanwhile, that all these bytes are worth there
MAX_BINDINGS = 3000
MIN_PROGRAM_S = 2.0  # for an integer program, even if no time is left
WRAP_UP_S = 2.0  # after an interrupt, for the best placement so far
Held = tuple[int, int]
"""Blocks that some GPUs hold: the first one, and the one after the last."""
NOTHING: Held = (0, 0)


class Seat(NamedTuple):
    """A stage of a binding: GPUs of a machine, and the blocks that they hold."""

    machine: str
    gpus: int
    held: Held


Binding = tuple[Seat, ...]


def loading_rate(problem: PlacementProblem, machine: Machine) -> float:
    """Return the bytes per second at which a machine loads weights, from within its site."""
    link = problem.fleet.site_link(machine.site, machine.site)
    assert link is not None
    rates = [link.bytes_per_s, *([machine.uplink.bytes_per_s] if machine.uplink else [])]
    return float(min(rates))


def loaded_bytes(model: Model, blocks: range, held: Held) -> int:
    """Return the weights that a stage loads, of which some blocks are there already.

    Each GPU of a stage loads its own part; the bytes are those of all of them.

    Examples
    --------
    >>> import hypsolve as hs
    >>> model = hs.model("llama-3-8b")
    >>> layer = model.blocks[1].weight_bytes
    >>> loaded_bytes(model, range(1, 9), (5, 20)) == 4 * layer
    True
    """
    new = [b for b in blocks if not held[0] <= b < held[1]]
    total = sum(model.blocks[b].weight_bytes for b in new)
    tied = model.tied_bytes if new and len(blocks) == model.n_blocks else 0
    return max(total - tied, 0)


@dataclass(frozen=True, slots=True)
class Split:
    """A box with its best split.

    Attributes
    ----------
    binding : Binding
    box : Box
    rate : float
        Of the best split: no other one in the box carries more.
    cuts : tuple of int
        The best split.
    min_bytes, bytes : tuple of int
        Loaded at least by each stage of every split, and by those of the best one.
    """

    binding: Binding
    box: Box
    rate: float
    cuts: tuple[int, ...]
    min_bytes: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def stages(self) -> tuple[PlacedStage, ...]:
        """The stages of the best split."""
        return tuple(
            PlacedStage(seat.machine, seat.gpus, *ends)
            for seat, ends in zip(self.binding, itertools.pairwise(self.cuts), strict=True)
        )

    @property
    def is_single(self) -> bool:
        """Whether the box has one split."""
        return all(low == high for low, high in self.box)


@dataclass(frozen=True, slots=True)
class FewBytes:
    """The best placement with few bytes.

    Attributes
    ----------
    placement : Placement or None
        None if no pipeline serves a request within the limit.
    loads : tuple of mapping of machine name to int
        Bytes that each machine loads, for each pipeline.
    requests_per_s : float
    bound_per_s : float
        No placement within the limit carries more in the fluid model.
    is_complete : bool
        Whether the bound is about pipelines of all lengths.
    is_interrupted : bool
        Whether a KeyboardInterrupt ended the search.
    """

    placement: Placement | None
    loads: tuple[Mapping[str, int], ...]
    requests_per_s: float
    bound_per_s: float
    is_complete: bool
    is_interrupted: bool = False


class FewBytesSearch:
    """The search; see the module.

    Parameters
    ----------
    problem : PlacementProblem
        Its objective is ``throughput`` or ``goodput``.
    before : Placement or None
        Where blocks are. Machines are known by their names.
    max_bytes : float
        That all machines load together.
    max_seconds : float
        That a machine loads, at most. Machines load at the same time.
    deadline : Deadline
    extra : sequence of tuple of PlacedStage
        Pipelines to consider in any case.
    max_bindings : int
    seed : int
        Of the integer programs.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        before: Placement | None,
        *,
        max_bytes: float = math.inf,
        max_seconds: float = math.inf,
        deadline: Deadline = NEVER,
        extra: Sequence[tuple[PlacedStage, ...]] = (),
        max_bindings: int = MAX_BINDINGS,
        seed: int = 0,
    ) -> None:
        self.problem, self.model, self.deadline = problem, problem.model, deadline
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self.machines = {machine.name: machine for machine in problem.fleet.machines}
        self.held: dict[tuple[str, int], Counter[Held]] = defaultdict(Counter)
        old = () if before is None else before.pipelines
        for stage in (stage for pipeline in old for stage in pipeline.stages):
            if stage.machine in self.machines:
                self.held[stage.machine, stage.gpus][stage.start, stage.stop] += 1
        self._servers: dict[tuple[tuple[str, int], ...], tuple[ServingInstance, Any]] = {}
        self.old = Counter(pipeline.stages for pipeline in old)
        self.given = [*self.old.elements(), *extra]
        self.max_bindings, self.is_complete, self.seed = max_bindings, True, seed
        self._splits: dict[tuple[Binding, tuple[int, ...]], Split] = {}
        self._bound = math.inf  # of the rates of all placements, as far as it is known

    def run(self) -> FewBytes:
        """Return the best placement within the limits.

        A KeyboardInterrupt ends the search: the best of the pipelines that are known by then is
        returned, with the bound that is known by then.
        """
        is_interrupted = False
        try:
            value, best = self._search()
        except KeyboardInterrupt:
            is_interrupted, self.deadline = True, Deadline(WRAP_UP_S)
            self.is_complete = self.is_complete and self._bound < math.inf
            value, best = self._choose(list(self._splits.values()), is_bound=False)
        if best:
            try:
                best = self._tie_broken(value) or best
            except KeyboardInterrupt:
                is_interrupted = True
        return self._answer(best, is_interrupted)

    def _search(self) -> tuple[float, list[Split]]:
        """Return the largest rate of known pipelines, and these, once they are proved best."""
        open_boxes: dict[tuple[Binding, Box], Split] = {}
        splits = self._splits

        def add(binding: Binding, box: Box) -> None:
            found = self._best(binding, box)
            if found is not None:
                open_boxes[binding, box] = found
                splits[binding, found.cuts] = found

        for stages in self.given:
            for split in self._as_given(stages):
                splits[split.binding, split.cuts] = split
        for binding in itertools.chain(self._repaired(), self._bindings()):
            if self.deadline.has_passed():
                self.is_complete = False
                break
            sites = [self.machines[seat.machine].site for seat in binding]
            for box in boxes(self.problem, sites):
                add(binding, box)
        while True:
            value, best = self._choose(list(splits.values()), is_bound=False)
            relaxed = list(open_boxes.values())
            bound, chosen = self._choose(relaxed, is_bound=True)
            if self.is_complete:
                self._bound = bound * (1 + MARGIN)
            wide = [each for each in chosen if not each.is_single]
            is_proved = bound * (1 + MARGIN) <= value * (1 + PROVED)
            if is_proved or not wide or self.deadline.has_passed():
                return value, best
            for each in wide:
                del open_boxes[each.binding, each.box]
                for half in self._halves(each):
                    add(each.binding, half)

    def _tie_broken(self, value: float) -> list[Split]:
        """Return pipelines of an equal rate that serve most meanwhile, then load fewest bytes.

        They are the best of the pipelines that the search came across.
        """
        columns = list(self._splits.values())
        return self._choose(columns, is_bound=False, least_per_s=value * (1 - TIED))[1]

    def _answer(self, best: Sequence[Split], is_interrupted: bool) -> FewBytes:
        bound = self._bound
        if not best:
            return FewBytes(None, (), 0.0, bound, self.is_complete, is_interrupted)
        problem = self.problem
        placed = [
            split_of(
                tuple((seat.machine, seat.gpus) for seat in each.binding),
                Partition(each.cuts),
                each.rate * (1 - MARGIN),
            )
            for each in best
        ]
        placement = loaded(problem, placed)
        loads = []
        for each in best:
            own: Counter[str] = Counter()
            for seat, size in zip(each.binding, each.bytes, strict=True):
                own[seat.machine] += size
            loads.append({name: size for name, size in own.items() if size})
        rate = placement.requests_per_s
        return FewBytes(placement, tuple(loads), rate, bound, self.is_complete, is_interrupted)

    # bindings

    def _bindings(self) -> Iterator[Binding]:
        """Yield bindings by their number of stages: all of a number, or none."""
        longest = min(self.problem.max_stages, self.model.n_blocks)
        n_found = 0
        for length in range(1, longest + 1):
            found = list(itertools.islice(self._of_length(length), self.max_bindings + 1))
            if not found:
                return
            n_found += len(found)
            if n_found > self.max_bindings:
                self.is_complete = False
                return
            yield from found

    def _of_length(self, length: int) -> Iterator[Binding]:
        options = [
            (name, degree)
            for name, machine in self.machines.items()
            for degree in self.problem.degrees_of(machine)
        ]

        def grow(groups: tuple[tuple[str, int], ...]) -> Iterator[tuple[tuple[str, int], ...]]:
            if len(groups) == length:
                if may_serve(self.problem, groups):
                    yield groups
                return
            for name, degree in options:
                used = sum(gpus for other, gpus in groups if other == name)
                if used + degree <= self.machines[name].node.gpus:
                    yield from grow((*groups, (name, degree)))

        for groups in grow(()):
            choices = []
            for name, gpus in groups:
                held = list(self.held.get((name, gpus), ()))
                is_alone = self.machines[name].node.gpus == 1 and held
                choices.append(held if is_alone else [*held, NOTHING])
            for chosen in itertools.product(*choices):
                binding = tuple(
                    Seat(*group, held) for group, held in zip(groups, chosen, strict=True)
                )
                continued = Counter(seat for seat in binding if seat.held != NOTHING)
                if all(n <= self._n_held(seat) for seat, n in continued.items()):
                    yield binding

    def _repaired(self) -> Iterator[Binding]:
        """Yield earlier pipelines with one machine, or none, in place of one that is gone.

        On large fleets, they are found although not all bindings are searched.
        """
        for stages in self.given:
            gone = [s for s, stage in enumerate(stages) if stage.machine not in self.machines]
            if len(gone) != 1:
                continue
            seats = [Seat(st.machine, st.gpus, (st.start, st.stop)) for st in stages]
            others: list[tuple[Seat, ...]] = [()]
            for name, machine in self.machines.items():
                for degree in self.problem.degrees_of(machine):
                    free = set(self.held.get((name, degree), ())) or {NOTHING}
                    others += [(Seat(name, degree, held),) for held in sorted(free)]
            for other in others:
                binding = (*seats[: gone[0]], *other, *seats[gone[0] + 1 :])
                if self._may_be(binding):
                    yield binding

    def _may_be(self, binding: Binding) -> bool:
        """Return whether a binding keeps the rules on machines, GPUs and what they hold."""
        used: Counter[str] = Counter()
        for seat in binding:
            used[seat.machine] += seat.gpus
        continued = Counter(seat for seat in binding if seat.held != NOTHING)
        groups = tuple((seat.machine, seat.gpus) for seat in binding)
        return (
            bool(binding)
            and all(
                seat.gpus in self.problem.degrees_of(self.machines[seat.machine])
                for seat in binding
            )
            and all(n <= self.machines[name].node.gpus for name, n in used.items())
            and all(n <= self._n_held(seat) for seat, n in continued.items())
            and may_serve(self.problem, groups)
        )

    def _n_held(self, seat: Seat) -> int:
        return self.held[seat.machine, seat.gpus][seat.held]

    # boxes

    def _best(self, binding: Binding, box: Box) -> Split | None:
        """Return a box with its best split; None if no split serves within the limits."""
        low = self._bytes_in(binding, box)
        if not self._may_load(binding, low):
            return None
        groups = tuple((seat.machine, seat.gpus) for seat in binding)
        if groups not in self._servers:
            instance = self.problem.serving_instance(groups)
            self._servers[groups] = instance, server_of(instance)
        instance, server = self._servers[groups]
        part = server._replace(
            cut_min=np.array([each[0] for each in box]),
            cut_max=np.array([each[1] for each in box]),
        )
        counts = {"trials": 0, "solves": 0}
        best = BoxSolver(instance, part, NEVER, counts).best(part)
        if best is None:
            return None
        return Split(
            binding, box, best.rate, best.cuts, low, self._bytes_of(binding, best.cuts)
        )

    def _as_given(self, stages: tuple[PlacedStage, ...]) -> Iterator[Split]:
        """Yield a pipeline as it is, if it serves, with the most that its GPUs may hold."""
        groups = tuple((stage.machine, stage.gpus) for stage in stages)
        if not all(name in self.machines for name, _ in groups):
            return
        degrees = {name: self.problem.degrees_of(self.machines[name]) for name, _ in groups}
        if not all(gpus in degrees[name] for name, gpus in groups):
            return
        if not may_serve(self.problem, groups):
            return
        cuts = (0, *(stage.stop for stage in stages))
        box = tuple((cut, cut) for cut in cuts)
        sites = [self.machines[name].site for name, _ in groups]
        if cuts[-1] != self.model.n_blocks or not any(
            all(low <= cut <= high for (low, high), cut in zip(each, cuts, strict=True))
            for each in boxes(self.problem, sites)
        ):
            return
        seats = []
        for stage in stages:
            own = (stage.start, stage.stop)
            known = self.held.get((stage.machine, stage.gpus), Counter())
            seats.append(Seat(stage.machine, stage.gpus, own if known[own] else NOTHING))
        continued = Counter(seat for seat in seats if seat.held != NOTHING)
        if any(n > self._n_held(seat) for seat, n in continued.items()):
            return
        if (found := self._best(tuple(seats), box)) is not None:
            yield found

    def _bytes_of(self, binding: Binding, cuts: Sequence[int]) -> tuple[int, ...]:
        ends = itertools.pairwise(cuts)
        return tuple(
            loaded_bytes(self.model, range(*each), seat.held)
            for seat, each in zip(binding, ends, strict=True)
        )

    def _bytes_in(self, binding: Binding, box: Box) -> tuple[int, ...]:
        """Return the bytes that each stage of every split in a box must load."""
        return tuple(
            loaded_bytes(self.model, range(high, max(low, high)), seat.held)
            for seat, ((_, high), (low, _)) in zip(
                binding, itertools.pairwise(box), strict=True
            )
        )

    def _may_load(self, binding: Binding, sizes: Sequence[int]) -> bool:
        if sum(sizes) > self.max_bytes * (1 + MARGIN):
            return False
        own: Counter[str] = Counter()
        for seat, size in zip(binding, sizes, strict=True):
            own[seat.machine] += size
        return all(size <= self._machine_bytes(name) for name, size in own.items())

    def _machine_bytes(self, name: str) -> float:
        """Return the bytes that a machine may load."""
        if math.isinf(self.max_seconds):
            return math.inf
        rate = loading_rate(self.problem, self.machines[name])
        return self.max_seconds * rate * (1 + MARGIN)

    def _halves(self, split: Split) -> Iterator[Box]:
        """Yield two parts of a box, divided where held blocks begin or end if they do."""
        box = split.box
        at = max(range(len(box)), key=lambda k: box[k][1] - box[k][0])
        low, high = box[at]
        seats = split.binding[max(at - 1, 0) : at + 1]
        ends = [end for seat in seats for end in seat.held if seat.held != NOTHING]
        places = [end for end in ends if low < end <= high]
        middle = (low + high + 1) // 2
        first = min(places, key=lambda end: abs(end - middle), default=middle)
        for part in ((low, first - 1), (first, high)):
            yield (*box[:at], part, *box[at + 1 :])

    # the integer programs

    def _choose(
        self, columns: Sequence[Split], *, is_bound: bool, least_per_s: float | None = None
    ) -> tuple[float, list[Split]]:
        """Return the largest rate of columns within the limits, and the columns in use.

        With `least_per_s`, the rate is only that large at least, and what is as large as
        possible is the rate of the earlier pipelines that serve all the time.
        """
        sizes = [each.min_bytes if is_bound else each.bytes for each in columns]
        kept = [
            (column, own)
            for column, own in zip(columns, sizes, strict=True)
            if self._may_load(column.binding, own)
        ]
        if not kept:
            return 0.0, []
        columns = [column for column, _ in kept]
        everything = sum(self.model.weight_bytes for _ in self.machines) + 1
        breaks_tie = least_per_s is not None
        share = 0.0 if is_bound else KEPT_FIRST if breaks_tie else TIE
        worth = share * max(each.rate for each in columns) / everything
        program = Program()
        rates: dict[int, float] = {}  # the negative rate, by variable
        gpus: dict[str, dict[int, float]] = defaultdict(dict)
        seats: dict[Seat, dict[int, float]] = defaultdict(dict)
        loads: dict[str, dict[int, float]] = defaultdict(dict)
        crossed = [self._link_bytes(each, is_bound) for each in columns]
        for r, (column, own) in enumerate(kept):
            used: Counter[str] = Counter()
            for seat, size in zip(column.binding, own, strict=True):
                used[seat.machine] += seat.gpus
                if seat.held != NOTHING:
                    seats[seat][r] = seats[seat].get(r, 0.0) + 1
                loads[seat.machine][r] = loads[seat.machine].get(r, 0.0) + size
            upper = min(self.machines[name].node.gpus // n for name, n in used.items())
            rate = 0.0 if crossed[r] else column.rate
            rates[r] = -rate
            program.variable(rate * (not breaks_tie) - worth * sum(own), upper, True)
            for name, n in used.items():
                gpus[name][r] = float(n)
        for name, row in gpus.items():
            program.row(row, float(self.machines[name].node.gpus))
        for seat, row in seats.items():
            program.row(row, float(self._n_held(seat)))
        self._limit_loads(program, loads)
        rows: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
        for r, column in enumerate(columns):
            if crossed[r]:
                z = program.variable(
                    float(not breaks_tie), column.rate * program.upper[r], False
                )
                rates[z] = -1.0
                program.row({z: 1.0, r: -column.rate}, 0.0)
                for link, sent_bytes in crossed[r].items():
                    rows[link][z] = sent_bytes / link_rate(self.problem, link)
        for sent in rows.values():
            program.row(sent, 1.0)
        if least_per_s is not None:
            program.row(rates, -least_per_s)
            self._count_kept(program, kept)
        within = Deadline(max(self.deadline.left_s(), MIN_PROGRAM_S))
        counts, value, bound, _ = by_highs(program, len(columns), within, self.seed)
        found = [columns[r] for r, n in (counts or {}).items() for _ in range(n)]
        if is_bound:
            return max(bound, 0.0), list(dict.fromkeys(found))
        return max(value, 0.0), found

    def _count_kept(
        self, program: Program, columns: Sequence[tuple[Split, tuple[int, ...]]]
    ) -> None:
        """Add variables that count earlier pipelines in use, worth the rates of these."""
        same: dict[tuple[PlacedStage, ...], dict[int, float]] = defaultdict(dict)
        for r, (column, own) in enumerate(columns):
            n = self.old[column.stages]
            if n and not any(own):
                at = program.variable(column.rate, float(n), True)
                program.row({at: 1.0, r: -1.0}, 0.0)
                same[column.stages][at] = 1.0
        for stages, row in same.items():
            program.row(row, float(self.old[stages]))

    def _limit_loads(self, program: Program, loads: Mapping[str, Mapping[int, float]]) -> None:
        """Add the rows of the limits on bytes and seconds, in units of a limit."""
        if 0 < self.max_bytes < math.inf:
            total: dict[int, float] = defaultdict(float)
            for row in loads.values():
                for r, size in row.items():
                    total[r] += size / self.max_bytes
            program.row(dict(total), 1.0 + MARGIN)
        for name, row in loads.items():
            most = self._machine_bytes(name)
            if 0 < most < math.inf:
                program.row({r: size / most for r, size in row.items()}, 1.0 + MARGIN)

    def _link_bytes(self, split: Split, is_bound: bool) -> dict[tuple[str, ...], float]:
        """Return bytes of a request on shared links; for a bound, those of the smallest cut."""
        requests, blocks = self.problem.requests, self.model.blocks
        tokens = float((requests.prompt_tokens + requests.output_tokens - 1).mean())
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for k, (before, behind) in enumerate(itertools.pairwise(split.binding), start=1):
            start, end = self.machines[before.machine], self.machines[behind.machine]
            low, high = split.box[k] if is_bound else (split.cuts[k], split.cuts[k])
            sent = tokens * min(blocks[b - 1].output_bytes_per_token
                                for b in range(low, high + 1))  # fmt: skip
            for link in shared_links(start, end):
                found[link] += sent
        return dict(found)
