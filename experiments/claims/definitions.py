"""The claims of the Hyperion paper as experiments at token level: definitions, as data.

M. Ma et al., "Hyperion: Hierarchical Scheduling for Parallel LLM Acceleration in Multi-tier
Networks", arXiv:2511.14450 (v1 of 18 November, v2 of 1 December 2025).

*Known*, from the two abstracts and from public summaries of the problem. The models are
Llama-3-8B and Phi-3-medium, the baselines GPipe and HEFT, and the tiers (edge, fog, cloud) have
nodes of different speed. Latency is "up to" 52.1 % below GPipe's and 31.2 % below HEFT's with
Phi-3-medium, and 44.5 % below GPipe's for long sequences. GPUs are used more, and Hyperion
scales better with the length of the output and the number of tiers. A block takes FLOPs /
(FLOP/s) seconds; a partition costs its slowest stage plus the sum of all transfers.

*Not known*, because the full text was not available: devices, nodes per tier, rates and
latencies of links, lengths, request rates, batching, repetitions, and the settings behind "up
to".

*Our choices* follow the paper's description, not the outcome.

- Networks are those of this repository, every number with its source, or are drawn from its GPU
  table.
- Block times are measured (cost model ``roofline``). Series named ``flops`` use the paper's
  model, also at a load at which requests hardly meet, because that model has no queues.
- Nodes batch continuously (64 requests, chunks of 512 prompt tokens).
- Requests come from `hypsolve.simulation.workloads`. Series "drawn as" use lengths and gaps
  fitted to Azure's traces; series "replayed" use windows of Azure's and Mooncake's traces
  themselves, if the files are on this machine.
- The load is 0.7 of the rate at which the best partition serves one request at a time, unless
  it is the axis (then up to saturation). There are 10 seeds, 32 to 4,096 output tokens, 2 to 8
  tiers.
- Links are pure delays as in the paper's model, except in series named "shared links".

*Methods.* ``hyperion`` balances the pooled stage times of the tiers; with ``p0`` cuts it
minimises the paper's own objective. ``gpipe`` has even cuts and round robin. ``heft`` knows all
arrivals beforehand; its cuts are used and its assignment is replayed. Variants change one part
of Hyperion: the cuts, the dispatch policy, the rule for a stage's time, the cost of links, or
the costs of the planner (``cost_model``, which does not change the simulation).

*Kinder than the world*, to all methods. Dispatchers know the true output length of every
request, and planners know all lengths (``believes``: dispatch assumes the mean output length).
Nodes take the seconds of their profiles, so without events the estimate of effective capacity
has nothing to correct (``error`` in `churn`: constant errors per node). Means include the
requests of warm-up and drain.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from experiments.claims.runs import SimRun
from experiments.claims.scenes import CONVERSATIONS, can_draw, drawn_network, spread_network
from experiments.claims.series import (
    BEST_CUTS,
    CORE,
    DISPATCH,
    EARLIEST,
    EVEN_CUTS,
    FASTEST,
    JOINT_CALL,
    LLAMA,
    MODELS,
    P0_CUTS,
    PATH_CUTS,
    PHI,
    SHORTEST_QUEUE,
    SLOWEST,
    SWEEP,
    VARIANTS,
    SceneSeries,
    along,
    arrival_rate_series,
    bandwidth_series,
    by_size,
    churn_scene,
    from_size,
    output_length_series,
)
from experiments.definitions import Shown, settings
from instances import networks


def _shown(figures: str) -> Shown:
    return Shown("experiments.claims.tables:tables", f"experiments.claims.figures:{figures}")


LATENCY_SHOWN = _shown("latency_figures")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimExperiment:
    """A question, and the series of scenes that answer it.

    Attributes
    ----------
    question : str
    series : dict
    n_seeds, n_requests, time_limit_s : dict
        Seeds, requests and seconds to plan, for each size.
    shown : Shown
        Tables and figures.
    """

    question: str
    series: Mapping[str, SceneSeries]
    n_seeds: Mapping[str, int]
    n_requests: Mapping[str, int]
    time_limit_s: Mapping[str, float]
    shown: Shown = LATENCY_SHOWN


def _experiment(
    question: str,
    series: Mapping[str, SceneSeries],
    *,
    n_requests: int = 240,
    time_limit_s: float = 10.0,
    figures: str = "latency_figures",
) -> ClaimExperiment:
    return ClaimExperiment(
        question=question,
        series=series,
        n_seeds=by_size(2, 3, 10),
        n_requests=by_size(min(n_requests, 24), min(n_requests, 60), n_requests),
        time_limit_s=by_size(2.0, min(5.0, time_limit_s), time_limit_s),
        shown=_shown(figures),
    )


EXPERIMENTS: dict[str, ClaimExperiment] = {
    "bandwidth": _experiment(
        "Is Hyperion faster than GPipe and HEFT at every bandwidth between tiers?",
        {
            f"campus, {PHI}": bandwidth_series("campus", PHI, at="quick"),
            f"campus, {LLAMA}": bandwidth_series("campus", LLAMA),
            f"branch-offices-wan, {PHI}": bandwidth_series(
                "branch-offices-wan", PHI, at="default"
            ),
            f"campus, {PHI}, drawn as Azure conversations": bandwidth_series(
                "campus", PHI, workload="azure_conversation"
            ),
            f"campus, {PHI}, shared links": bandwidth_series("campus", PHI, shared_links=True),
            **{
                f"campus, {model}, flops, load {load:g}": bandwidth_series(
                    "campus", model, cost_model="flops", load=load
                )
                for model, load in ((PHI, 0.1), (PHI, 0.7), (LLAMA, 0.1))
            },
        },
    ),
    "output_length": _experiment(
        "Does Hyperion's lead grow with the length of the output?",
        {
            f"campus, {PHI}": output_length_series("campus", PHI, at="quick"),
            f"campus, {LLAMA}": output_length_series("campus", LLAMA),
            f"branch-offices-wan, {PHI}": output_length_series(
                "branch-offices-wan", PHI, at="default"
            ),
            **{
                f"campus, {model}, flops, load {load:g}": output_length_series(
                    "campus", model, (*CORE, P0_CUTS), cost_model="flops", load=load
                )
                for model, load in ((PHI, 0.1), (PHI, 0.7), (LLAMA, 0.1))
            },
        },
        n_requests=100,
    ),
    "arrival_rate": _experiment(
        "Up to which rate of requests is Hyperion faster, and who saturates first?",
        {
            f"campus, {PHI}": arrival_rate_series("campus", PHI, at="quick"),
            f"campus, {LLAMA}": arrival_rate_series("campus", LLAMA),
            f"branch-offices-wan, {PHI}": arrival_rate_series(
                "branch-offices-wan", PHI, at="default"
            ),
            f"campus, {PHI}, drawn as Azure conversations": arrival_rate_series(
                "campus", PHI, max_load=25, workload="azure_conversation"
            ),
            f"campus, {PHI}, drawn as Azure code": arrival_rate_series(
                "campus", PHI, max_load=25, workload="azure_code"
            ),
            **{
                f"campus, {PHI}, {words} replayed": arrival_rate_series(
                    "campus", PHI, max_load=25, workload=workload
                )
                for words, workload in (
                    ("Azure conversations", CONVERSATIONS),
                    ("Azure code", "azure_code_replayed"),
                    ("Mooncake conversations", "mooncake_replayed"),
                )
            },
        },
        n_requests=150,
    ),
    "tiers": _experiment(
        "Does Hyperion's lead grow with the number of tiers?",
        {
            f"drawn, {model}": along(
                "tiers", partial(drawn_network, model), model, SWEEP,
                from_size("quick" if model == PHI else "full",
                          (3,), (2, 4, 8), tuple(range(2, 9))),
            )
            for model in MODELS
        },
    ),
    "heterogeneity": _experiment(
        "Does HypSched-RT pay more, the more the speeds within a tier differ?",
        {
            f"spread, {model}, load {load:g}": along(
                "spread", spread_network, model,
                (*SWEEP, SHORTEST_QUEUE, EARLIEST, FASTEST, SLOWEST),
                from_size("quick" if (model, load) == (PHI, 3) else "full", (2.0,),
                      (1.0, 2.0, 4.0), (1.0, 1.5, 2.0, 3.0, 4.0)),
                load=load,
            )
            for model, load in ((PHI, 0.7), (PHI, 3), (LLAMA, 3))
        },
    ),
    "churn": _experiment(
        "Does the estimate of effective capacity pay when nodes slow down or fail?",
        {
            f"{kind}, {model}": SceneSeries(
                axis=f"{kind} per node",
                build=partial(churn_scene, kind, model),
                values=from_size(at, (2.0,), (0.0, 1.0, 4.0), (0.0, 0.5, 1.0, 2.0, 4.0)),
                calls=DISPATCH,
            )
            for kind, model, at in (
                ("slowdowns", PHI, "quick"), ("slowdowns", LLAMA, "full"),
                ("failures", PHI, "default"), ("failures", LLAMA, "full"),
            )
        }
        | {
            f"error, {model}": SceneSeries(
                axis="error of profiles, log",
                build=partial(churn_scene, "error", model),
                values=from_size("full", (), (), (0.05, 0.15, 0.4)),
                calls=DISPATCH,
            )
            for model in MODELS
        },
        figures="churn_figures",
    ),
    "utilisation": _experiment(
        "Does Hyperion use the GPUs more, on named networks?",
        {
            f"{name}, {model}": along(
                "load", name, model, (*CORE, EVEN_CUTS, PATH_CUTS, P0_CUTS),
                from_size("quick" if (name, model) == ("campus", PHI) else "full",
                      (0.7,), (0.7, math.inf), (0.7, math.inf)),
                keyword="load",
            )
            for name in networks()
            for model in MODELS
        },
        figures="utilisation_figures",
    ),
    "ablation": _experiment(
        "Which stage of Hyperion earns the gain, and what do rules and cost models change?",
        {
            f"{name}, {model}": along(
                "load", name, model, VARIANTS,
                from_size("quick" if (name, model) == ("campus", PHI) else "full",
                      (0.7,), (0.7, 3), (0.7, 3)),
                keyword="load",
            )
            for name in ("branch-offices-wan", "campus", "mixed-rack")
            for model in MODELS
        },
        figures="ablation_figures",
    ),
    "transfer_of_optimality": _experiment(
        "Is the joint optimum found at flow level still the best at token level?",
        {
            f"{name}, {model}": along(
                "requests", name, model, (JOINT_CALL, *CORE, PATH_CUTS, P0_CUTS, BEST_CUTS),
                from_size("quick" if (name, model) == ("campus", PHI) else "full",
                      (3,), (3, 4), (3, 4, 6)),
                keyword="n_requests", load=0.9,
            )
            for name in ("campus", "mixed-rack")
            for model in MODELS
        },
        figures="transfer_figures",
    ),
}  # fmt: skip


def plan(
    name: str,
    size: str,
    *,
    version: str,
    n_seeds: int | None = None,
    time_limit_s: float | None = None,
) -> list[SimRun]:
    """List the runs of an experiment at a size (quick, default, full).

    A series whose request trace is not on this machine is left out, and a line says so.
    """
    experiment = EXPERIMENTS[name]
    n_seeds = n_seeds or experiment.n_seeds[size]
    here = {}
    for series_name, series in experiment.series.items():
        if can_draw(series.workload):
            here[series_name] = series
        elif series.values[size]:
            print(f"{name}/{series_name}: its file is not here (HYPSOLVE_SHARED); left out")
    runs = []
    for series_name, value, seed in settings(here, size, n_seeds):
        series = here[series_name]
        scene = series.build(value, seed, experiment.n_requests[size])
        digest = scene.digest()
        runs += [
            SimRun(
                experiment=name,
                series=series_name,
                axis=series.axis,
                value=value,
                scene=scene,
                digest=digest,
                method=call.method,
                options=call.options,
                seed=seed,
                time_limit_s=time_limit_s or experiment.time_limit_s[size],
                version=version,
            )
            for call in series.calls
        ]
    return runs
