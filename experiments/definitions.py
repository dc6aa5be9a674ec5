"""Every experiment as data: its question, instances, methods, sizes, tables and figures."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from hypsolve import Instance, Method, Outcome
from instances.frontier import frontier, profiled
from instances.generate import generate
from instances.scenarios import SCENARIOS, scenario

SIZES = ("quick", "default", "full")
AnyMethod = str | Method | Callable[..., Outcome]
Show = str | Callable[..., Mapping[str, Any]] | None
Answers = str | Callable[..., list[str]] | None


@dataclass(frozen=True, slots=True)
class Shown:
    """The tables and figures of an experiment.

    Attributes
    ----------
    tables, figures : callable or str, optional
        A function ``(name, DataFrame) -> {title or file name: table or figure}``. A string
        ``"module:function"`` is imported when it is needed, so that this module loads without
        pandas and matplotlib. Default: one table that summarises every method, and no figure.
    answers : callable or str, optional
        A function ``(name, DataFrame) -> list of str``, or its place: the lines that a sweep
        prints at its end.
    """

    tables: Show = "experiments.report:default_tables"
    figures: Show = None
    answers: Answers = None


@dataclass(frozen=True, slots=True)
class Call:
    """A method with its options, on some of the instances only if it is slow.

    Attributes
    ----------
    method : str, Method or callable
        A name of `hypsolve.METHODS`, or a method of one's own, which worker processes must be
        able to import: define it at the top of a module.
    options : dict
        Further keywords of the method.
    max_value : float
        The method is run up to this value of the axis.
    n_seeds : float
        The method is run on at most this many instances a value.
    """

    method: AnyMethod
    options: Mapping[str, Any] = field(default_factory=dict)
    max_value: float = math.inf
    n_seeds: float = math.inf

    def is_run(self, value: Any, seed: int) -> bool:
        """Return True if the method is run on this instance of a series."""
        return bool(value <= self.max_value and seed < self.n_seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Instances along an axis, all solved by one list of methods.

    Attributes
    ----------
    axis : str
        Name of the parameter that varies.
    build : callable
        ``(value, seed) -> Instance``.
    values : dict
        Values of the axis, for each size (quick, default, full).
    calls : tuple of Call
    time_limit_s : dict, optional
        Seconds per run, for each size; default: the experiment's.
    """

    axis: str
    build: Callable[[Any, int], Instance]
    values: Mapping[str, tuple[Any, ...]]
    calls: tuple[Call, ...]
    time_limit_s: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question, and the series of instances that answer it.

    Attributes
    ----------
    question : str
    series : dict
    n_seeds : dict
        Instances a value, for each size.
    time_limit_s : dict
        Seconds per run, for each size.
    shown : Shown
        Tables and figures; default: one table.
    """

    question: str
    series: Mapping[str, Series]
    n_seeds: Mapping[str, int]
    time_limit_s: Mapping[str, float]
    shown: Shown = Shown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """An experiment with code and columns of its own.

    Attributes
    ----------
    question : str
    shown : Shown
    further : dict
        Tables and figures of the other CSV files that it writes, by their names.
    """

    question: str
    shown: Shown
    further: Mapping[str, Shown] = field(default_factory=dict)


class Values(Protocol):
    """The part of a series that `settings` reads."""

    @property
    def values(self) -> Mapping[str, tuple[Any, ...]]:
        """Values of the axis, for each size."""


def settings(
    series: Mapping[str, Values], size: str, n_seeds: int
) -> Iterator[tuple[str, Any, int]]:
    """Yield the series, the value and the seed of every setting, in order."""
    for name, each in series.items():
        for value in each.values[size]:
            for seed in range(n_seeds):
                yield name, value, seed


def _sizes(quick: Any, default: Any, full: Any) -> dict[str, Any]:
    return dict(zip(SIZES, (quick, default, full), strict=True))


def _drawn(
    parameter: str, series: int, fixed: Mapping[str, Any], value: Any, seed: int
) -> Instance:
    """Draw an instance with one parameter set to `value`; no two series share a seed."""
    return generate(seed=1000 * series + seed, **{**fixed, parameter: value})


SERVING: dict[str, Any] = {  # small enough for exact joint methods to prove some optima
    "model": "phi-3-medium",
    "n_blocks": 16,
    "n_tiers": 3,
    "nodes_per_tier": 2,
    "n_requests": 5,
    "load": 0.9,
    "memory_tightness": None,  # the memory that the GPUs have
    "objective": "mean_latency",
}
PARTITION: dict[str, Any] = {
    "model": "phi-3-medium",
    "n_blocks": 42,
    "n_tiers": 3,
    "nodes_per_tier": 4,
    "n_requests": 20,
    "memory_tightness": None,
}
HEURISTICS = (
    Call("hyperion"),
    Call("hyperion", {"partition_objective": "path"}),
    Call("gpipe"),
    Call("heft"),
)
PLUS = Call("hyperion_plus")
JOINT = tuple(map(Call, ("joint_cpsat", "joint_milp")))
SPLITS = tuple(
    map(
        Call,
        (
            "even_split",
            "memory_proportional",
            "speed_proportional",
            "torchgpipe",
            "deepspeed_balanced",
            "pipedream",
            "heft_split",
        ),
    )
)
MILPS = tuple(
    map(Call, ("partition_cbc", "partition_highs", "partition_scip", "partition_cpsat"))
)
HYPSPLIT = Call("hypsplit_dp")


def _frontier(n_requests: int, seed: int) -> Instance:
    return frontier(n_requests, seed=seed + 1)  # published as seeds 1 to 5


FAMILIES = {"frontier": frontier, "profiled": profiled}
LOADS: dict[str, dict[str, Any]] = {
    "load 0.5": {"load": 0.5},
    "load 0.9": {"load": 0.9},
    "burst": {"burst": True},
}


def _at_scale(family: str, load: str) -> Series:
    """Make a series from sizes that can be proved to sizes that can only be bounded."""

    def build(n_requests: int, seed: int) -> Instance:
        return FAMILIES[family](n_requests, seed=seed + 1, **LOADS[load])

    is_usual = load == "load 0.9"
    return Series(
        axis="requests",
        build=build,
        values=_sizes(
            (20,) if is_usual and family == "frontier" else (),
            (10, 100, 1000) if is_usual else (),
            (5, 10, 20, 100, 1000, 10_000),
        ),
        calls=(
            Call("gpipe"),
            Call("heft"),
            Call("hyperion"),
            PLUS,
            Call("hyperion_plus", {"prove": True}),
            Call("joint_exact", max_value=20),
        ),
        time_limit_s=_sizes(2.0, 5.0, 10.0),
    )


def _serving(series: int, parameter: str, axis: str, **values: tuple[Any, ...]) -> Series:
    return Series(
        axis=axis,
        build=partial(_drawn, parameter, series, SERVING),
        values=values,
        calls=(*HEURISTICS, PLUS, *JOINT),
    )


def _partition(
    series: int, calls: tuple[Call, ...], parameter: str, axis: str, fixed: Mapping[str, Any],
    **values: tuple[Any, ...],
) -> Series:  # fmt: skip
    return Series(
        axis=axis,
        build=partial(_drawn, parameter, series, {**PARTITION, **fixed}),
        values=values,
        calls=calls,
    )


CHAINS = {34: "llama-3-8b", 42: "phi-3-medium"}  # the paper's models by number of blocks


def _named(
    network: str, calls: tuple[Call, ...], n_requests: int, objective: str,
    **values: tuple[Any, ...],
) -> Series:  # fmt: skip
    """Make a series of the two models, with all their blocks, on a named network."""

    def build(n_blocks: int, seed: int) -> Instance:
        return scenario(
            network, CHAINS[n_blocks], n_requests=n_requests, seed=seed, objective=objective
        )

    return Series(axis="blocks", build=build, values=values, calls=calls)


BOTH = tuple(CHAINS)

SWAPPED = (
    Call("even_split", {"policy": "hypsched_rt"}),
    Call("heft_split", {"policy": "hypsched_rt"}),
    Call("hypsplit_dp", {"policy": "round_robin"}),
    Call("hypsplit_dp", {"policy": "join_shortest_queue"}),
)


def _latency(network: str, model: str) -> Series:
    def build(load: float, seed: int) -> Instance:
        return scenario(
            network, model, load=load, seed=seed, n_requests=200, objective="mean_latency"
        )

    return Series(
        axis="load",
        build=build,
        values=_sizes((0.7,), (0.5, 0.9), (0.3, 0.5, 0.7, 0.9)),
        calls=HEURISTICS + SWAPPED,
    )


EXPERIMENTS: dict[str, Experiment] = {
    "gap": Experiment(
        question="How far from optimal is each method and how long does it take, by size?",
        series={
            "requests": _serving(
                1, "n_requests", "requests",
                quick=(3,), default=(2, 4, 8), full=(2, 3, 4, 6, 8, 12),
            ),
            "blocks": _serving(
                2, "n_blocks", "blocks", quick=(), default=(8, 16, 32), full=(8, 16, 24, 32, 42)
            ),
            "tiers": _serving(
                3, "n_tiers", "tiers", quick=(), default=(2, 3, 4), full=(2, 3, 4, 5)
            ),
            "nodes": _serving(
                4, "nodes_per_tier", "nodes", quick=(), default=(1, 2, 4), full=(1, 2, 3, 4, 6)
            ),
            "requests, frontier family": Series(
                axis="requests", build=_frontier, calls=(*HEURISTICS, PLUS, *JOINT),
                values=_sizes((), (3, 5), (3, 5, 8, 10)),
            ),
            **{
                f"{network}, 4 requests": _named(
                    network, (*HEURISTICS, PLUS, *JOINT), 4, "mean_latency",
                    quick=(34,) if network == "mixed-rack" else (), default=BOTH, full=BOTH,
                )
                for network in ("campus", "mixed-rack")
            },
            **{
                f"at scale: {family}, {load}": _at_scale(family, load)
                for family in FAMILIES
                for load in LOADS
            },
            **{
                f"partition: {network}": _named(
                    network, (HYPSPLIT, *SPLITS, *MILPS), 20, "bottleneck",
                    quick=(), default=() if network == "factory" else BOTH, full=BOTH,
                )
                for network in ("campus", "mixed-rack", "branch-offices-wan", "factory")
            },
            "partition: blocks": _partition(
                5, (HYPSPLIT, *SPLITS, *MILPS), "n_blocks", "blocks", {},
                quick=(16,), default=(16, 42, 84), full=(8, 16, 42, 84),
            ),
            "partition: tiers": _partition(
                6, (HYPSPLIT, *SPLITS, *MILPS), "n_tiers", "tiers", {},
                quick=(), default=(2, 3, 5), full=(2, 3, 4, 5, 6),
            ),
            "partition: memory": _partition(
                7, (HYPSPLIT, *SPLITS, *MILPS), "memory_tightness", "memory", {},
                quick=(0.4,), default=(0.3, 0.5, 0.7), full=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
            ),
        },
        n_seeds=_sizes(1, 1, 3),
        time_limit_s=_sizes(2.0, 4.0, 5.0),
        shown=Shown(
            "experiments.report:gap_tables",
            "experiments.figures:gap_figures",
            "experiments.answers:gap",
        ),
    ),
    "solve_time": Experiment(
        question="How much faster is HypSplit-DP than MILP and CP-SAT at the same optimum?",
        series={
            f"{n_tiers} tiers": _partition(
                10 + n_tiers, (HYPSPLIT, *MILPS), "n_blocks", "blocks",
                {"n_tiers": n_tiers, "memory_tightness": 0.5},
                quick=(16,) if n_tiers == 3 else (),
                default=(16, 42, 84),
                full=(16, 32, 64, 96),
            )
            for n_tiers in (2, 3, 5)
        },
        n_seeds=_sizes(1, 1, 2),
        time_limit_s=_sizes(5.0, 10.0, 20.0),
        shown=Shown(
            "experiments.report:solve_time_tables",
            "experiments.figures:solve_time_figures",
            "experiments.answers:solve_time",
        ),
    ),
    "latency": Experiment(
        question="What does each stage of Hyperion gain on named networks?",
        series={
            f"{network}, {model}": _latency(network, model)
            for network in SCENARIOS
            for model in ("phi-3-medium", "llama-3-8b")
        },
        n_seeds=_sizes(1, 2, 5),
        time_limit_s=_sizes(60.0, 60.0, 60.0),
        shown=Shown(
            "experiments.report:latency_tables",
            "experiments.figures:latency_figures",
            "experiments.answers:latency",
        ),
    ),
}  # fmt: skip

EXACT = Call("joint_exact")
RIVALS = (
    Call("joint_cpsat", n_seeds=3),
    Call("joint_milp", max_value=8, n_seeds=3),
)
ABLATIONS = tuple(
    Call("joint_exact", {"disable": [part]}, max_value=8, n_seeds=3)
    for part in ("lagrangian_bound", "partition_boxes", "dominance", "beam_search")
)


def _joint(
    family: Callable[..., Instance], nodes_per_tier: tuple[int, ...], calls: tuple[Call, ...],
    values: dict[str, Any], **options: Any,
) -> Series:  # fmt: skip
    """Make a series along the number of requests; published as seeds 1 to 5."""

    def build(n_requests: int, seed: int) -> Instance:
        return family(n_requests, nodes_per_tier, seed=seed + 1, **options)

    return Series(axis="requests", build=build, values=values, calls=calls)


ANYTIME: dict[str, Experiment] = {  # their rows also record the incumbents over time
    "joint_frontier": Experiment(
        question="Up to what size can partition and schedule together be proved, and by whom?",
        series={
            "frontier, 2-2-2 nodes": _joint(
                frontier, (2, 2, 2), (Call("hyperion"), EXACT, *RIVALS, *ABLATIONS),
                _sizes((4,), (5, 8), (5, 8, 10, 12, 15, 20, 30, 50)),
            ),
            "frontier, 4-3-2 nodes": _joint(
                frontier, (4, 3, 2), (EXACT, *RIVALS), _sizes((), (), (10,))
            ),
            "frontier, burst": _joint(
                frontier, (2, 2, 2), (EXACT, *RIVALS), _sizes((), (8,), (8,)), burst=True
            ),
            "frontier, 4 tiers of 2": _joint(
                frontier, (2,) * 4, (EXACT, *RIVALS), _sizes((), (), (8,))
            ),
            "frontier, 5 tiers of 2": _joint(
                frontier, (2,) * 5, (EXACT, *RIVALS), _sizes((), (), (8,))
            ),
            "profiled, 2-2-2 nodes": _joint(
                profiled, (2, 2, 2), (Call("hyperion"), EXACT, *RIVALS),
                _sizes((4,), (8,), (8, 12, 20)),
            ),
            "profiled, burst": _joint(
                profiled, (2, 2, 2), (EXACT, *RIVALS), _sizes((), (), (8,)), burst=True
            ),
            "makespan, frontier": _joint(
                frontier, (2, 2, 2), (EXACT, *RIVALS), _sizes((), (8,), (8,)),
                objective="makespan",
            ),
            "makespan, frontier, burst": _joint(
                frontier, (2, 2, 2), (EXACT, *RIVALS), _sizes((), (), (8,)),
                objective="makespan", burst=True,
            ),
        },
        n_seeds=_sizes(1, 2, 5),
        time_limit_s=_sizes(5.0, 20.0, 60.0),
        shown=Shown(
            "experiments.report:frontier_tables",
            "experiments.figures:joint_frontier_figures",
        ),
    ),
}  # fmt: skip


MEASUREMENTS = {
    "speed": Measurement(
        question="Does the library reach its speed targets on this machine?",
        shown=Shown("experiments.report:speed_tables", answers="experiments.answers:speed"),
    ),
    "calibration": Measurement(
        question="How far are predicted block times from measured ones?",
        shown=Shown(
            "experiments.report:calibration_tables", "experiments.figures:calibration_figures"
        ),
        further={
            "calibration_points": Shown(None, "experiments.figures:calibration_points_figures")
        },
    ),
    "validation": Measurement(
        question="How far are forecasts from measured servers?",
        shown=Shown(
            "experiments.validation_errors:validation_tables",
            "experiments.validation_errors:validation_figures",
            "experiments.validation_errors:answers",
        ),
    ),
}


def three_tiers_of_four() -> Instance:
    """Return an instance of Phi-3-medium's 42 blocks on 12 nodes, for `speed`."""
    return generate(seed=0, **PARTITION)
