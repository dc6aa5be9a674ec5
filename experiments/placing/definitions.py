"""The experiment on placements, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from experiments.definitions import Call, Shown, settings
from experiments.placing.runs import BEST, PlacingRun
from hypsolve.solve_placement import PLACEMENT_METHODS
from instances.drawn_fleets import drawn_placement

KINDS = {6: 3, 12: 4, 24: 6, 48: 7, 64: 8}
"""Kinds of machines, by the number of machines."""
CALLS = (*map(Call, PLACEMENT_METHODS), Call(BEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingSeries:
    """Drawn fleets along the number of machines.

    Attributes
    ----------
    model : str
    n_sites : int
    values : dict
        Numbers of machines, for each size (quick, default, full).
    time_limit_s : dict
        Seconds to place, for each size.
    """

    model: str
    n_sites: int
    values: Mapping[str, tuple[int, ...]]
    time_limit_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingExperiment:
    """A question, and the series of fleets that answer it."""

    question: str
    series: Mapping[str, PlacingSeries]
    n_seeds: Mapping[str, int]
    shown: Shown


ONE_SITE = {"quick": 2.0, "default": 5.0, "full": 10.0}
SEVERAL = {"quick": 2.0, "default": 10.0, "full": 60.0}
EXPERIMENTS: dict[str, PlacingExperiment] = {
    "placement": PlacingExperiment(
        question="How many requests per second does each method's placement serve on"
        " machines without an order, how far is that from the bounds, and how long does the"
        " method take?",
        series={
            "llama-3-8b, one site": PlacingSeries(
                model="llama-3-8b",
                n_sites=1,
                values={"quick": (6,), "default": (6, 12), "full": (6, 12, 24)},
                time_limit_s=ONE_SITE,
            ),
            "llama-3-70b, one site": PlacingSeries(
                model="llama-3-70b",
                n_sites=1,
                values={"quick": (), "default": (12,), "full": (12, 24)},
                time_limit_s=ONE_SITE,
            ),
            "llama-3-8b, three sites": PlacingSeries(
                model="llama-3-8b",
                n_sites=3,
                values={"quick": (), "default": (), "full": (48, 64)},
                time_limit_s=SEVERAL,
            ),
            "llama-3-70b, three sites": PlacingSeries(
                model="llama-3-70b",
                n_sites=3,
                values={"quick": (), "default": (), "full": (48, 64)},
                time_limit_s=SEVERAL,
            ),
        },
        n_seeds={"quick": 1, "default": 1, "full": 3},
        shown=Shown(
            "experiments.placing.tables:placement_tables",
            "experiments.placing.figures:placement_figures",
            "experiments.placing.tables:placement_answers",
        ),
    )
}


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> list[PlacingRun]:
    """List the runs of an experiment at a size (quick, default, full)."""
    experiment = EXPERIMENTS[name]
    runs = []
    for series_name, value, seed in settings(
        experiment.series, size, n_seeds or experiment.n_seeds[size]
    ):
        series = experiment.series[series_name]
        problem = drawn_placement(
            series.model, value, n_kinds=KINDS[value], n_sites=series.n_sites, seed=seed
        )
        of_setting = partial(
            PlacingRun,
            experiment=name,
            series=series_name,
            axis="machines",
            value=value,
            problem=problem,
            digest=problem.digest(),
            seed=seed,
            time_limit_s=time_limit_s or series.time_limit_s[size],
            version=version,
        )
        runs += [
            of_setting(method=str(call.method), options=call.options)
            for call in CALLS
            if call.is_run(value, seed)
        ]
    return runs
