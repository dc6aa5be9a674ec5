"""The experiments on requests per second, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.definitions import SIZES, Call, Shown, settings
from experiments.serving.runs import ServingRun
from hypsolve import Deployment, to_serving_instance
from instances import networks
from instances.serving import (
    ENUMERATED,
    LENGTHS,
    describe_enumerated,
    drawn,
    enumerated,
    named,
)

MODELS = ("llama-3-8b", "phi-3-medium")
RULES = tuple(
    map(
        Call,
        (
            "bottleneck_split",  # the objective of `hypsplit_dp`
            "p0_split",
            "path_split",
            "even_split",
            "memory_proportional",
            "speed_proportional",
        ),
    )
)
FLUID = Call("throughput_exact")
PROGRAMS = tuple(map(Call, ("throughput_highs", "throughput_cpsat")))
BEST = Call("best_simulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSeries:
    """Deployments along an axis, all split by one list of methods.

    Attributes
    ----------
    axis : str
        Name of the parameter that varies.
    build : callable
        ``(value, seed) -> Deployment``; its first request stands for all.
    values : dict
        Values of the axis, for each size (quick, default, full).
    calls : tuple of Call
        Methods of `experiments.serving.methods`.
    is_drawn : bool
        Whether the seed changes the deployment; without, only the first one is used.
    """

    axis: str
    build: Callable[[Any, int], Deployment]
    values: Mapping[str, tuple[Any, ...]]
    calls: tuple[Call, ...]
    is_drawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingExperiment:
    """A question, and the series of deployments that answer it.

    Attributes
    ----------
    question : str
    series : dict
    n_seeds, time_limit_s : dict
        Deployments a value, and seconds to split, for each size.
    n_requests : int or None
        Requests of a simulation; None: 20 times those that can be under way. See
        `experiments.serving.simulated.served_by`.
    shown : Shown
    """

    question: str
    series: Mapping[str, ServingSeries]
    n_seeds: Mapping[str, int]
    time_limit_s: Mapping[str, float]
    n_requests: int | None = None
    shown: Shown


def _sizes(quick: Any, default: Any, full: Any) -> dict[str, Any]:
    return dict(zip(SIZES, (quick, default, full), strict=True))


def _named(network: str, model: str) -> ServingSeries:
    """Make a series of the three lengths of requests on a named network."""
    is_first = model == MODELS[0]

    def build(prompt_tokens: int, seed: int) -> Deployment:
        return named(network, model, prompt_tokens)

    return ServingSeries(
        axis="prompt tokens",
        build=build,
        values=_sizes(
            (256,) if network == "two-regions" and is_first else (),
            tuple(LENGTHS) if network == "home-lab" else (),  # methods differ, runs are short
            tuple(LENGTHS),
        ),
        calls=(*RULES, FLUID, *PROGRAMS, BEST),
    )


def _drawn(batching: str) -> ServingSeries:
    """Make a series of drawn networks along the number of tiers."""

    def build(n_tiers: int, seed: int) -> Deployment:
        return drawn(n_tiers, seed=seed, batching=batching)

    return ServingSeries(
        axis="tiers",
        build=build,
        values=_sizes(
            (2,) if batching == "pipeline" else (),
            (3,) if batching != "stage" else (),
            (2, 3, 4),
        ),
        calls=(*RULES, FLUID, *PROGRAMS, BEST),
        is_drawn=True,
    )


def _enumerated(number: int) -> ServingSeries:
    """Make a series of one small deployment, all splits of which are simulated."""
    n_tiers = len(ENUMERATED[number][1])

    def build(n_tiers: int, seed: int) -> Deployment:
        return enumerated(number)

    return ServingSeries(
        axis="tiers",
        build=build,
        values=_sizes(
            (n_tiers,) if number == 5 else (), (n_tiers,) if n_tiers == 2 else (), (n_tiers,)
        ),
        calls=(
            Call("bottleneck_split"), Call("p0_split"), Call("path_split"), FLUID, BEST,
            Call("every_split"),
        ),
    )  # fmt: skip


EXPERIMENTS: dict[str, ServingExperiment] = {
    "throughput": ServingExperiment(
        question="How many requests per second does each method's split serve, how far is"
        " that from the bound, and how long does the method take?",
        series={
            **{
                f"{network}, {model}": _named(network, model)
                for network in networks()
                for model in MODELS
            },
            **{
                f"drawn, batching {batching}": _drawn(batching)
                for batching in ("stage", "pipeline", "serial")
            },
        },
        n_seeds=_sizes(1, 1, 2),
        time_limit_s=_sizes(2.0, 5.0, 20.0),
        shown=Shown(
            "experiments.serving.tables:throughput_tables",
            "experiments.serving.figures:throughput_figures",
            "experiments.serving.tables:throughput_answers",
        ),
    ),
    "throughput_exhaustive": ServingExperiment(
        question="What share of the best simulated rate of all splits does each method's"
        " split serve?",
        series={
            describe_enumerated(number): _enumerated(number)
            for number in range(len(ENUMERATED))
        },
        n_seeds=_sizes(1, 1, 1),
        time_limit_s=_sizes(600.0, 600.0, 3600.0),
        shown=Shown(
            "experiments.serving.tables:exhaustive_tables",
            answers="experiments.serving.tables:exhaustive_answers",
        ),
    ),
}


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> list[ServingRun]:
    """List the runs of an experiment at a size (quick, default, full)."""
    experiment = EXPERIMENTS[name]
    runs = []
    for series_name, value, seed in settings(
        experiment.series, size, n_seeds or experiment.n_seeds[size]
    ):
        series = experiment.series[series_name]
        if seed and not series.is_drawn:
            continue
        deployment = series.build(value, seed)
        of_setting = partial(
            ServingRun,
            experiment=name,
            series=series_name,
            axis=series.axis,
            value=value,
            deployment=deployment,
            digest=to_serving_instance(deployment).digest(),
            seed=seed,
            time_limit_s=time_limit_s or experiment.time_limit_s[size],
            version=version,
            n_requests=experiment.n_requests,
        )
        runs += [
            of_setting(method=str(call.method), options=call.options)
            for call in series.calls
            if call.is_run(value, seed)
        ]
    return runs
