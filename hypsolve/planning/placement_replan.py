"""`replan_placement`: the best placement that loads few bytes after machines came or went."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypsolve.planning.place import warm
from hypsolve.planning.place_machines import MachinesSource
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_search import EXACT
from hypsolve.planning.place_served import pipelines_of, throughput_of
from hypsolve.planning.place_simulation import (
    Candidate,
    PlacementRate,
    PlacementSimulator,
    known_sum,
    weighted,
)
from hypsolve.planning.place_text import alike_pipelines, describe_holds, names_of, show_rate
from hypsolve.planning.placement_file import PlacementSource, SavedPlacement
from hypsolve.planning.placement_moves import WRAP_UP_S, FewBytes, FewBytesSearch, loading_rate
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.placement_records import RUNTIME, UNKNOWN, UnusedMachine, table_of_stage
from hypsolve.planning.query_arguments import ModelSource
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.text import table
from hypsolve.problem import validation as valid
from hypsolve.problem.fleet import Fleet
from hypsolve.problem.placement import PlacedStage, Placement
from hypsolve.problem.placement_evaluation import ServedPlacement, evaluate_placement
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.solution import Status
from hypsolve.problem.units import count, finite_or_none, show_bytes, show_seconds
from hypsolve.solve import solve
from hypsolve.solvers.clock import Deadline

OWNER = "replan"
METHOD = "replan"
FORMAT, VERSION = "hypsolve-placement-replan", 1  # of `PlacementReplan.to_dict`
FREE_SHARE = 0.2  # of the time limit, for the best placement without a limit on moves
OTHERS_SHARE = 0.2  # of what is left then, for each placement that is simulated, too
RANK_SHARE = 0.5  # of what is left then, to rank them by simulation
SEARCH_SHARE = 0.7  # of the time that is left then, for the best one within it
PROVED = 2e-6  # largest gap of an answer that is proved


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedPipeline:
    """A pipeline of the new placement, and what happens until it serves.

    Attributes
    ----------
    stages : tuple of PlacedStage
    is_kept : bool
        Whether it is a pipeline of the earlier placement, which serves all the time.
    loads : mapping of str to int
        Bytes of weights that its stages load, by machine.
    interruption_s : float
        Seconds until its machines have loaded all; 0 for a pipeline that is kept. Restarting a
        server is not counted.
    requests_per_s, fluid_requests_per_s : float
        Simulated, and in the fluid model.
    """

    stages: tuple[PlacedStage, ...]
    is_kept: bool
    loads: Mapping[str, int]
    interruption_s: float
    requests_per_s: float
    fluid_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlacementReplan:
    """A placement that loads few bytes, made by `replan_placement`.

    Attributes
    ----------
    plan : PlacementPlan
        The new placement; its file is read by every command.
    pipelines : tuple of MovedPipeline
    moved_bytes : mapping of str to int
        Bytes that each machine loads; machines that load nothing are left out.
    move_s : float
        Seconds that the machine loads that takes the longest. Machines load at the same time.
    max_move_bytes, max_move_s : float
        The limits; inf: none.
    stopped_pipelines : tuple of tuple of PlacedStage
        Pipelines of the earlier placement that stop.
    changes : str
        What differs between the machines of the earlier placement and these.
    before_per_s, during_per_s, after_per_s : float
        Simulated requests per second: of the earlier placement (nan if it has none), of the
        pipelines that are kept, and of the new placement. Pipelines without a simulated rate
        are left out of the sums.
    fluid_per_s : float
        Rate of the new placement in the fluid model.
    fluid_bound : float
        No placement within the limits carries more there; inf if nothing is proved.
    best_fluid_per_s : float
        Largest rate there of the placements that were found within the limits. The one that
        serves most in simulation is taken, which may be another one.
    free_per_s : float
        Rate in the fluid model of the best placement that was found without limits; nan if none
        was.
    is_complete : bool
        Whether pipelines of all lengths were searched. Otherwise the bound is that of
        placements without limits on what they load.
    stopped : str
        What a KeyboardInterrupt left unfinished; empty without one.
    interrupted : bool
    """

    plan: PlacementPlan
    pipelines: tuple[MovedPipeline, ...]
    moved_bytes: Mapping[str, int]
    move_s: float
    max_move_bytes: float
    max_move_s: float
    stopped_pipelines: tuple[tuple[PlacedStage, ...], ...]
    changes: str
    before_per_s: float
    during_per_s: float
    after_per_s: float
    fluid_per_s: float
    fluid_bound: float
    best_fluid_per_s: float
    free_per_s: float
    is_complete: bool
    stopped: str = ""
    interrupted: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is a placement within the limits."""
        return self.plan.fits

    @property
    def gap(self) -> float:
        """Share by which `fluid_bound` is above the answer; nan if nothing is proved."""
        if not 0 < self.fluid_bound < math.inf:
            return math.nan
        return max(0.0, 1 - self.fluid_per_s / self.fluid_bound)

    @property
    def is_proved(self) -> bool:
        """Whether no placement within the limits carries more in the fluid model."""
        return self.gap <= PROVED

    def __repr__(self) -> str:
        moved = show_bytes(sum(self.moved_bytes.values()))
        return f"<PlacementReplan: {moved} loaded, {self.after_per_s:.3g} requests/s>"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.interrupted:
            yield f"stopped: {self.stopped}"
        if self.changes:
            yield self.changes
        ends = list(self._ends())
        if not self.fits:
            found = "was found" if self.interrupted else "serves a request"
            yield f"no placement {self._within()} {found}"
            yield from (f"  {line}" for line in ends)
            return
        n_kept = sum(each.is_kept for each in self.pipelines)
        n_loading = count(len(self.moved_bytes), "machine")
        line = f"{n_kept} of {count(len(self.pipelines), 'pipeline')} serve all the time"
        if self.moved_bytes:
            total = show_bytes(sum(self.moved_bytes.values()))
            line += f"; {n_loading} to load {total}, in {show_seconds(self.move_s)}"
        yield line
        yield table(list(self._rows()))
        yield from ends
        before = (
            "" if math.isnan(self.before_per_s) else f"before {show_rate(self.before_per_s)}, "
        )
        yield (
            f"requests/s, simulated: {before}meanwhile {show_rate(self.during_per_s)}, after"
            f" {show_rate(self.after_per_s)}"
        )
        if unknown := [f"pipeline {p}" for p, each in enumerate(self.pipelines, start=1)
                       if math.isnan(each.requests_per_s)]:  # fmt: skip
            yield f"left out of these rates, for want of a simulation: {', '.join(unknown)}"
        yield self._proof()
        if self.free_per_s > self.fluid_per_s * (1 + PROVED):
            yield f"without limits on what is loaded: {self.free_per_s:.4g} there"
        yield "a restart of a server, and reading from its own disk, are not counted"

    def _proof(self) -> str:
        """Say what is proved in the fluid model."""
        line = f"in the fluid model, it carries {self.fluid_per_s:.4g} requests/s; "
        if self.is_proved:
            line += f"proved: no placement {self._within()} carries more there"
        elif math.isnan(self.gap):
            line += "nothing is proved"
        else:
            line += (
                f"proved: no placement {self._within()} carries more than"
                f" {self.fluid_bound:.4g} there (gap {self.gap:.1%})"
            )
        if self.best_fluid_per_s > self.fluid_per_s * (1 + PROVED):
            line += (
                f"; another one carries {self.best_fluid_per_s:.4g} there, and serves less in"
                " simulation"
            )
        if not (self.is_complete or self.is_proved):
            cut = "before the interrupt" if self.interrupted else "in time"
            line += f"; not all pipelines were searched {cut}"
        return line

    def _rows(self) -> Iterator[dict[str, str]]:
        """Yield a row per stage; pipelines with equal stages, loads and rates share theirs."""
        fleet, at = self.plan.query.fleet, 0
        for _, alike in alike_pipelines(self.plan):
            moved = self.pipelines[at : at + len(alike)]
            for _, group in itertools.groupby(moved, key=_until):
                same = list(group)
                yield from self._rows_of(same, at, fleet)
                at += len(same)

    def _rows_of(
        self, same: Sequence[MovedPipeline], at: int, fleet: Fleet
    ) -> Iterator[dict[str, str]]:
        first, n = same[0], len(same)
        loads = sum(first.loads.values())
        waits = "serves all the time" if first.is_kept else (
            f"starts after {show_seconds(first.interruption_s)}"
        )  # fmt: skip
        each = f"{n} x " * (n > 1)
        for s, stage in enumerate(first.stages):
            gpu, head = fleet.machine(stage.machine).node.gpu.name, s == 0
            numbers = f"{at + 1}" if n == 1 else f"{at + 1}-{at + n}"
            size = f"{each}{show_bytes(loads)}" if loads else "-"
            yield {
                "pipeline": numbers if head else "",
                "machine": names_of([pipeline.stages[s].machine for pipeline in same]),
                "GPUs": gpu if stage.gpus == 1 else f"{stage.gpus} x {gpu}",
                "holds": describe_holds(stage, self.plan.query.model.n_blocks),
                "loads": size if head else "",
                "until then": waits if head else "",
                "requests/s": f"{each}{show_rate(first.requests_per_s)}" if head else "",
            }

    def _ends(self) -> Iterator[str]:
        """Yield the pipelines that stop; those with equal stages share a line."""
        n_blocks = self.plan.query.model.n_blocks
        alike: dict[tuple[Any, ...], list[tuple[PlacedStage, ...]]] = {}
        for stages in self.stopped_pipelines:
            kind = tuple((stage.gpus, stage.start, stage.stop) for stage in stages)
            alike.setdefault(kind, []).append(stages)
        for group in alike.values():
            words = [
                f"{names_of([stages[s].machine for stages in group])}"
                f"{f' x{stage.gpus}' * (stage.gpus > 1)} ({describe_holds(stage, n_blocks)})"
                for s, stage in enumerate(group[0])
            ]
            n = f" {len(group)} pipelines:" if len(group) > 1 else ""
            yield f"stops:{n} {' -> '.join(words)}"

    def _within(self) -> str:
        words = []
        if self.max_move_bytes < math.inf:
            words.append(f"that loads at most {show_bytes(self.max_move_bytes)}")
        if self.max_move_s < math.inf:
            words.append(f"that loads in at most {show_seconds(self.max_move_s)}")
        return " and ".join(words) or "of these machines"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers, strings, lists and dicts, for JSON.

        None stands for inf and nan. ``placement`` is the table of `plan`.
        """
        numbers = (
            "max_move_bytes", "max_move_s", "before_per_s", "during_per_s", "after_per_s",
            "fluid_per_s", "fluid_bound", "best_fluid_per_s", "gap", "free_per_s",
        )  # fmt: skip
        return {
            "format": FORMAT,
            "version": VERSION,
            "changes": self.changes,
            "moved_bytes": dict(self.moved_bytes),
            "move_s": self.move_s,
            **{name: finite_or_none(float(getattr(self, name))) for name in numbers},
            "is_proved": self.is_proved,
            "is_complete": self.is_complete,
            "stopped_pipelines": [
                [table_of_stage(stage) for stage in each] for each in self.stopped_pipelines
            ],
            "pipelines": [
                {
                    "stages": [table_of_stage(stage) for stage in each.stages],
                    "is_kept": each.is_kept,
                    "loads": dict(each.loads),
                    "interruption_s": each.interruption_s,
                    "requests_per_s": finite_or_none(each.requests_per_s),
                    "fluid_requests_per_s": each.fluid_requests_per_s,
                }
                for each in self.pipelines
            ],
            "stopped": self.stopped,
            "interrupted": self.interrupted,
            "placement": self.plan.to_dict(),
        }


def replan_placement(
    before: PlacementSource,
    machines: MachinesSource,
    *,
    model: ModelSource | None = None,
    max_move_bytes: float | None = None,
    max_move_s: float | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> PlacementReplan:
    """Place a model anew after machines came or went, and load few bytes.

    A stage loads the weights of its blocks, but for those that GPUs of its machine hold: a
    stage of the earlier placement with as many GPUs may go on there with other blocks. Machines
    are known by their names. They load at the same time, each over its own link and uplink from
    within its site. Pipelines that stay as they are serve all the time.

    Of all placements within the limits, the one with the largest rate in the fluid model is
    searched. It is simulated, as are the best one that loads nothing and those of shorter
    pipelines, and the one that serves most is taken. Of placements with an equal rate in the
    fluid model, one is searched that serves most until the machines have loaded, and then one
    that loads few bytes. On fleets of few machines the largest rate there is proved; on larger
    ones, or if the time ends, a bound is stated.

    Parameters
    ----------
    before : path, PlacementPlan or mapping
        The earlier placement, as `hypsolve.place` returned or ``--save`` wrote it.
    machines : path, MachinesFile, Fleet, Network or NetworkFile
        The machines of today.
    model : str, path or Model, optional
        Default: the model of the catalogue that the earlier placement names.
    max_move_bytes : float, optional
        Limit on the bytes that all machines load together.
    max_move_s : float, optional
        Limit on the seconds that any machine loads.
    progress : callable, optional
        Called with a line of text about the work in progress.
    **arguments
        Of `hypsolve.place`; they replace those of the earlier placement.

    Returns
    -------
    PlacementReplan
        A KeyboardInterrupt ends the work in progress; the record then holds the best placement
        so far and the bound so far, and ``stopped`` names what is missing.

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names it.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import hypsolve as hs
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b", "c")]
    >>> room = hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4))
    >>> a, b, c = [hs.Machine(node=box, site="room") for box in boxes]
    >>> two = hs.Fleet(name="lab", sites=(room,), machines=(a, b))
    >>> plan = hs.place("llama-3-8b", two, output_tokens=64, time_limit_s=20)
    >>> now = hs.Fleet(name="lab", sites=(room,), machines=(a, c))
    >>> again = hs.replan_placement(plan, now, max_move_bytes=2**34)
    >>> [each.is_kept for each in again.pipelines], list(again.moved_bytes), again.is_proved
    ([True, False], ['c'], True)
    """
    limits: dict[str, Any] = {"max_bytes": math.inf, "max_seconds": math.inf}
    if max_move_bytes is not None:
        limits["max_bytes"] = float(valid.real(OWNER, "max_move_bytes", max_move_bytes))
    if max_move_s is not None:
        limits["max_seconds"] = float(valid.real(OWNER, "max_move_s", max_move_s))
    progress = progress or (lambda line: None)
    saved = SavedPlacement.of(before)
    query = _query(saved, machines, model, arguments)
    changes = saved.changes(saved.query(machines, model))
    warm(query)
    return _Replanning(saved, query, changes, progress).run(**limits)


class _Replanning:
    """The steps of `replan_placement`; an interrupt leaves the best placement so far."""

    def __init__(
        self, saved: SavedPlacement, query: PlaceQuery, changes: str, progress: Progress
    ) -> None:
        self.saved, self.query, self.changes = saved, query, changes
        self.progress, self.problem = progress, query.problem()
        self.deadline, self.stopped = Deadline(query.time_limit_s), ""

    def run(self, *, max_bytes: float, max_seconds: float) -> PlacementReplan:
        """Search the placement, simulate it, and compare it with the earlier one."""
        free, problem = self._free(), self.problem
        pipelines_of_free = () if free.placement is None else free.placement.pipelines
        extra = tuple(pipeline.stages for pipeline in pipelines_of_free)
        self.progress("searching placements that load few bytes")
        found = FewBytesSearch(
            problem,
            self.saved.placement,
            max_bytes=max_bytes,
            max_seconds=max_seconds,
            deadline=self.deadline.part(SEARCH_SHARE),
            extra=extra,
            seed=self.query.seed,
        ).run()
        if found.is_interrupted:
            self._interrupt("the search for placements that load few bytes was stopped")
        limit = math.inf if free.fluid_bound is None else free.fluid_bound
        bound, is_complete = found.bound_per_s, found.is_complete
        known = [found, *self._others(found, max_bytes, max_seconds)]
        best_fluid_per_s = max(each.requests_per_s for each in known)
        found, plan, rates, fluid = self._planned(known)
        rate_of = {p.name: loading_rate(problem, p) for p in problem.fleet.machines}
        moved: Counter[str] = Counter()
        for own in found.loads:
            moved.update(own)
        seconds = {name: size / rate_of[name] for name, size in moved.items()}
        pipelines, gone = _compared(self.saved, found, rates, fluid, seconds)
        throughput = self.saved.document["throughput"]
        earlier = None if throughput is None else throughput["simulated_requests_per_s"]
        return PlacementReplan(
            plan=plan,
            pipelines=tuple(pipelines),
            moved_bytes=dict(moved),
            move_s=max(seconds.values(), default=0.0),
            max_move_bytes=max_bytes,
            max_move_s=max_seconds,
            stopped_pipelines=tuple(gone),
            changes=self.changes,
            before_per_s=math.nan if earlier is None else earlier,
            during_per_s=known_sum(each.requests_per_s for each in pipelines if each.is_kept),
            after_per_s=known_sum(rates),
            fluid_per_s=found.requests_per_s,
            fluid_bound=min(bound, limit),
            best_fluid_per_s=best_fluid_per_s,
            free_per_s=math.nan if free.served is None else free.served.requests_per_s,
            is_complete=is_complete,
            stopped=self.stopped,
            interrupted=bool(self.stopped),
        )

    def _interrupt(self, what: str) -> None:
        self.stopped = self.stopped or what
        self.deadline = Deadline(min(WRAP_UP_S, self.deadline.left_s()))

    def _free(self) -> PlacementResult:
        """Return the best placement without a limit on what is loaded, found in short time."""
        self.progress("searching placements without a limit on what is loaded")
        limit_s = FREE_SHARE * self.query.time_limit_s
        try:
            return solve(self.problem, EXACT, time_limit_s=limit_s, seed=self.query.seed)
        except KeyboardInterrupt:
            self._interrupt("the search for placements was stopped")
        return self._result(Status.UNKNOWN, None, None)

    def _others(
        self, found: FewBytes, max_bytes: float, max_seconds: float
    ) -> Iterator[FewBytes]:
        """Yield the best placement that loads nothing, and those of shorter pipelines.

        The fluid model overestimates pipelines of many small stages, in which batches bunch, so
        that they may serve less in simulation than what serves already.
        """
        if found.placement is None or self.stopped:
            return
        longest = max(len(each.stages) for each in found.placement.pipelines)
        tries = [(self.problem, 0.0)] if sum(map(len, found.loads)) else []
        tries += [
            (self.problem.replace(max_stages=n), max_bytes) for n in range(longest - 1, 0, -1)
        ]
        for problem, limit in tries:
            if self.deadline.has_passed():
                return
            other = FewBytesSearch(
                problem, self.saved.placement, max_bytes=limit, max_seconds=max_seconds,
                deadline=self.deadline.part(OTHERS_SHARE), seed=self.query.seed,
            ).run()  # fmt: skip
            if other.is_interrupted:
                self._interrupt("the search for placements of shorter pipelines was stopped")
                return
            if other.placement is not None:
                yield other

    def _result(
        self, status: Status, placement: Placement | None, served: ServedPlacement | None
    ) -> PlacementResult:
        return PlacementResult(
            method=METHOD,
            status=status,
            problem=self.problem,
            placement=placement,
            served=served,
            fluid_bound=None,  # which is about all placements, whatever they load
            alternatives=(),
            solve_time_s=self.deadline.spent_s(),
        )

    def _planned(
        self, found: Sequence[FewBytes]
    ) -> tuple[FewBytes, PlacementPlan, tuple[float, ...], tuple[float, ...]]:
        """Return the placement that serves most in simulation, its plan, and its rates.

        The rates of its pipelines are those in simulation, and in the fluid model.
        """
        query, first = self.query, found[0]
        if first.placement is None:
            why = "no placement within the limits on what is loaded serves a request"
            if self.stopped:
                why = "no placement within the limits on what is loaded was found"
            plan = PlacementPlan(
                query=query,
                result=self._result(Status.UNKNOWN, None, None),
                placement=None,
                reasons=(why,),
                stopped=self.stopped,
                interrupted=bool(self.stopped),
            )
            return first, plan, (), ()
        simulator = PlacementSimulator(query, self.problem)
        served = [
            (each, evaluate_placement(self.problem, each.placement))
            for each in found
            if each.placement is not None
        ]
        simulated = self._simulated(simulator, served)
        chosen, candidate, rate = simulated[0]
        placement, of_placement = candidate.placement, candidate.served
        result = self._result(Status.FEASIBLE, placement, of_placement)
        used = set(placement.machines)
        rest = tuple(m.name for m in query.fleet.machines if m.name not in used)
        unused = [UnusedMachine(machines=(name,), why=RUNTIME, reason=reason)
                  for name, reason in query.left_out.items()]  # fmt: skip
        if rest:
            reason = "in no pipeline of the best placement that loads so few bytes"
            unused.insert(0, UnusedMachine(machines=rest, why=UNKNOWN, reason=reason))
        plan = PlacementPlan(
            query=query,
            result=result,
            placement=weighted(placement, rate.weights),
            pipelines=tuple(pipelines_of(simulator, candidate, rate, None)),
            throughput=throughput_of(
                simulator, result, [each[1:] for each in simulated], None, math.inf
            ),
            unused=tuple(unused),
            stopped=self.stopped,
            interrupted=bool(self.stopped),
        )
        fluid = tuple(each.fluid_requests_per_s for each in of_placement.pipelines)
        return chosen, plan, rate.of_pipelines, fluid

    def _simulated(
        self,
        simulator: PlacementSimulator,
        served: Sequence[tuple[FewBytes, ServedPlacement]],
    ) -> list[tuple[FewBytes, Candidate, PlacementRate]]:
        """Return placements with their rates in simulation, the largest first.

        Of equal rates, the larger one in the fluid model comes first, and then the one that was
        found first. An interrupt leaves those that were simulated, or else the first one.
        """
        self.progress("simulating the placement")
        simulated: list[tuple[FewBytes, Candidate, PlacementRate]] = []
        deadline = self.deadline.part(RANK_SHARE)
        for found, of_each in served:
            assert found.placement is not None
            candidate = Candidate(METHOD, found.placement, of_each)
            try:
                if simulated and (self.stopped or deadline.has_passed()):
                    break
                rate = simulator.rate(found.placement, of_each, deadline)
            except KeyboardInterrupt:
                self._interrupt("not all pipelines were simulated at length")
                if simulated:
                    break
                rate = simulator.known_rate(found.placement, of_each)
            simulated.append((found, candidate, rate))
        simulated.sort(key=lambda each: -each[2].requests_per_s)
        found, candidate, rate = simulated[0]
        try:
            if not self.stopped:
                rate = simulator.rate(
                    candidate.placement, candidate.served, self.deadline, in_full=True
                )
        except KeyboardInterrupt:
            self._interrupt("not all pipelines were simulated at length")
        return [(found, candidate, rate), *simulated[1:]]


def _query(
    saved: SavedPlacement,
    machines: MachinesSource,
    model: ModelSource | None,
    arguments: Mapping[str, Any],
) -> PlaceQuery:
    """Return the query for a rate: what is rented is placed, too."""
    query = saved.query(machines, model, **arguments)
    if not query.problem().objective.needs_rate:
        return query
    if "objective" in arguments:
        raise ValueError(
            f"{OWNER}: objective must be throughput or goodput, got {arguments['objective']!r}"
        )
    objective = "goodput" if query.has_targets else "throughput"
    return saved.query(machines, model, **arguments, objective=objective)


def _compared(
    saved: SavedPlacement,
    found: FewBytes,
    rates: Sequence[float],
    fluid: Sequence[float],
    seconds: Mapping[str, float],
) -> tuple[list[MovedPipeline], list[tuple[PlacedStage, ...]]]:
    """Return the pipelines, and those of the earlier placement that stop."""
    old = Counter(
        () if saved.placement is None else (p.stages for p in saved.placement.pipelines)
    )
    pipelines = []
    new = () if found.placement is None else found.placement.pipelines
    for pipeline, loads, rate, most in zip(new, found.loads, rates, fluid, strict=True):
        is_kept = not loads and old[pipeline.stages] > 0
        old[pipeline.stages] -= is_kept
        pipelines.append(
            MovedPipeline(
                stages=pipeline.stages,
                is_kept=is_kept,
                loads=loads,
                interruption_s=max((seconds[name] for name in loads), default=0.0),
                requests_per_s=rate,
                fluid_requests_per_s=most,
            )
        )
    return pipelines, list(old.elements())


def _until(pipeline: MovedPipeline) -> tuple[Any, ...]:
    """Return what pipelines that share a row have in common besides their stages."""
    return (
        pipeline.is_kept,
        sum(pipeline.loads.values()),
        pipeline.interruption_s,
        repr(pipeline.requests_per_s),  # nan equals nan
    )
