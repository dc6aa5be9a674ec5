"""The experiment on Helix's problem, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.definitions import Shown
from experiments.layouts.runs import HelixRun
from hypsolve.solve_layer_flow import LAYER_FLOW_METHODS
from instances.helix_flow import PUBLISHED, helix_flow

METHODS = (*LAYER_FLOW_METHODS, *PUBLISHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class HelixExperiment:
    """A question, the clusters and models of each size, seconds and visits per run."""

    question: str
    problems: Mapping[str, tuple[tuple[str, str], ...]]
    time_limit_s: Mapping[str, float]
    max_visits: Mapping[str, int]
    shown: Shown


REGIONS = (("regions-24", "llama-70b"),)
OF_24 = (("single-24", "llama-70b"), *REGIONS)
EXPERIMENTS: dict[str, HelixExperiment] = {
    "helix": HelixExperiment(
        question="How many tokens per second flow through the layouts of each method on"
        " Helix's clusters, how far is that from a bound, how long does the method take, and"
        " how many requests per second do the layouts serve in simulation?",
        problems={
            "quick": REGIONS,
            "default": (*OF_24, ("single-42", "llama-70b")),
            "full": (
                *OF_24,
                ("single-42", "llama-70b"),
                ("single-24", "llama-30b"),
                ("regions-24", "llama-30b"),
            ),
        },
        time_limit_s={"quick": 3.0, "default": 10.0, "full": 60.0},
        max_visits={"quick": 1_000_000, "default": 10_000_000, "full": 200_000_000},
        shown=Shown(
            "experiments.layouts.tables:helix_tables",
            "experiments.layouts.figures:helix_figures",
            "experiments.layouts.tables:helix_answers",
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
) -> list[HelixRun]:
    """List the runs of an experiment at a size; the clusters have no seeds."""
    experiment = EXPERIMENTS[name]
    runs = []
    for cluster, model in experiment.problems[size]:
        problem = helix_flow(cluster, model)
        runs += [
            HelixRun(
                experiment=name,
                cluster=cluster,
                model=model,
                problem=problem,
                digest=problem.digest(),
                method=method,
                time_limit_s=time_limit_s or experiment.time_limit_s[size],
                max_visits=experiment.max_visits[size],
                version=version,
            )
            for method in METHODS
            if method in LAYER_FLOW_METHODS or (cluster, model) in PUBLISHED[method]
        ]
    return runs
