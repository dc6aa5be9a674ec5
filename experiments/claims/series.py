"""Building blocks of the claims' experiments: methods, and scenes along an axis."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from experiments.claims.scenes import Scene, serve, spread_network, with_bandwidth, with_churn
from experiments.definitions import SIZES, Call
from hypsolve import Network
from instances.scenarios import scenario_network

MODELS = ("phi-3-medium", "llama-3-8b")
PHI, LLAMA = MODELS
LONG_TOKENS = 1024  # an output of so many tokens or more is long


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSeries:
    """Scenes along an axis, all served by one list of methods.

    ``build`` takes a value of the axis, a seed, and a number of requests.
    """

    axis: str
    build: Callable[[Any, int, int], Scene]
    values: Mapping[str, tuple[Any, ...]]
    calls: tuple[Call, ...]
    workload: str = "synthetic"


def by_size(quick: Any, default: Any, full: Any) -> dict[str, Any]:
    """Map each size to its value."""
    return dict(zip(SIZES, (quick, default, full), strict=True))


CORE = (Call("hyperion"), Call("gpipe"), Call("heft"))
EVEN_CUTS = Call("even_split", {"policy": "hypsched_rt"})
HEFT_CUTS = Call("heft_split", {"policy": "hypsched_rt"})
ROUND_ROBIN = Call("hypsplit_dp", {"policy": "round_robin"})
SHORTEST_QUEUE = Call("hypsplit_dp", {"policy": "join_shortest_queue"})
LEAST_WORK = Call("hypsplit_dp", {"policy": "least_work_left"})
EARLIEST = Call(
    "hypsplit_dp", {"policy": "earliest_completion"}
)  # the choice of HEFT, made online
NO_ESTIMATE = Call("hypsplit_dp", {"policy": "without_estimate"})
PATH_CUTS = Call("hyperion", {"partition_objective": "path"})
P0_CUTS = Call("hyperion", {"partition_objective": "p0"})
FASTEST = Call("hyperion", {"stage_rule": "fastest"})
SLOWEST = Call("hyperion", {"stage_rule": "slowest"})
FULL_LINKS = Call("hyperion", {"link_cost": "full"})
PLANNED_BY_FLOPS = Call("hyperion", {"cost_model": "flops"})
BELIEVES_MEAN = Call("hyperion", {"believes": "mean output"})
JOINT_CALL = Call("joint_cpsat")
BEST_CUTS = Call("best_cuts", {"policy": "hypsched_rt"})  # of `experiments.claims.runs`

SWEEP = (*CORE, EVEN_CUTS, ROUND_ROBIN, PATH_CUTS, P0_CUTS)
VARIANTS = (
    *SWEEP, HEFT_CUTS, SHORTEST_QUEUE, EARLIEST, FASTEST, SLOWEST, FULL_LINKS,
    PLANNED_BY_FLOPS, BELIEVES_MEAN,
)  # fmt: skip
DISPATCH = (
    CORE[0], NO_ESTIMATE, ROUND_ROBIN, SHORTEST_QUEUE, LEAST_WORK, EARLIEST, CORE[2]
)  # fmt: skip


def _scene(
    tiers: Callable[[Any, int], Network] | str,
    model: str,
    keyword: str,
    fixed: Mapping[str, Any],
    shared_links: bool,
    value: Any,
    seed: int,
    n_requests: int,
) -> Scene:
    """Make the scene of a value: a named network, or one made for the value and the seed."""
    options = {"n_requests": n_requests, **fixed, **({keyword: value} if keyword else {})}
    made = scenario_network(tiers) if isinstance(tiers, str) else tiers(value, seed)
    if 1 < options.get("load", 1.0) < math.inf:  # requests then arrive for as long as at load 1
        options["n_requests"] = round(options["load"] * n_requests)
    scene = serve(made, model, seed=seed, **options)
    return replace(scene, options={"link_contention": True}) if shared_links else scene


def along(
    axis: str,
    tiers: Callable[[Any, int], Network] | str,
    model: str,
    calls: tuple[Call, ...],
    values: Mapping[str, tuple[Any, ...]],
    *,
    keyword: str = "",
    shared_links: bool = False,
    **fixed: Any,
) -> SceneSeries:
    """Make a series; `keyword` is the argument of `serve` that varies, `fixed` the others."""
    build = partial(_scene, tiers, model, keyword, fixed, shared_links)
    return SceneSeries(
        axis=axis, build=build, values=values, calls=calls,
        workload=fixed.get("workload", "synthetic"),
    )  # fmt: skip


def bandwidth_series(name: str, model: str, *, at: str = "full", **fixed: Any) -> SceneSeries:
    """Make a series along the rate of all links of a network."""
    return along(
        "Gbit/s", lambda gbps, _: with_bandwidth(name, gbps), model, (*SWEEP, FULL_LINKS),
        from_size(at, (0.1,), (0.01, 0.1, 1.0), (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)), **fixed,
    )  # fmt: skip


def output_length_series(
    name: str, model: str, calls: tuple[Call, ...] = SWEEP, *, at: str = "full", **fixed: Any
) -> SceneSeries:
    """Make a series along the output length, from 32 to 4,096 tokens."""
    return along(
        "output tokens", name, model, calls,
        from_size(at, (64,), (32, 256, 1024), (32, 64, 128, 256, 512, 1024, 2048, 4096)),
        keyword="output_tokens", **fixed,
    )  # fmt: skip


def arrival_rate_series(
    name: str, model: str, *, at: str = "full", max_load: float = 50, **fixed: Any
) -> SceneSeries:
    """Make a series along the load, from idle to saturated networks, or to `max_load`."""
    loads = tuple(x for x in (0.1, 0.3, 0.7, 1.5, 3, 6, 12, 25, 50) if x <= max_load)
    return along(
        "load", name, model, SWEEP, from_size(at, (0.7,), (0.3, 1.5, 6), loads), keyword="load",
        **fixed,
    )  # fmt: skip


def from_size(smallest: str, quick: Any, default: Any, full: Any) -> dict[str, Any]:
    """Map sizes to values; sizes below `smallest` have none."""
    values = by_size(quick, default, full)
    below = SIZES[: SIZES.index(smallest)]
    return {size: () if size in below else values[size] for size in SIZES}


def churn_scene(kind: str, model: str, value: float, seed: int, n_requests: int) -> Scene:
    """Make a scene of three tiers of four equal nodes with churn, `value` times per node."""
    scene = serve(spread_network(1.0, seed), model, seed=seed, n_requests=n_requests)
    return with_churn(scene, kind, value, seed)
