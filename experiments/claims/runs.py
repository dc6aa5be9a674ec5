"""One simulated run of a claim: a method plans, the simulator serves the requests."""

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.claims.scenes import Scene
from experiments.solving import call_of, describe_run, short, with_loaded_kernels
from hypsolve import (
    CostModel,
    Deployment,
    Instance,
    Method,
    Outcome,
    Partition,
    Result,
    Schedule,
    Status,
    Trace,
    simulate,
    solve,
    to_instance,
)
from hypsolve.dispatch.policies import Choose, TierState
from hypsolve.problem import evaluation
from hypsolve.simulation.metrics import growth

COLUMNS = (
    "experiment",
    "series",
    "axis",
    "value",
    "digest",
    "network",
    "model",
    "workload",
    "costs",
    "method",
    "options",
    "seed",
    "load",
    "n_requests",
    "n_tiers",
    "n_nodes",
    "time_limit_s",
    "status",
    "cuts",
    "latency_s",
    "p50_s",
    "p95_s",
    "p99_s",
    "ttft_s",
    "tpot_s",
    "compute_s",
    "link_s",
    "requests_per_s",
    "tokens_per_s",
    "utilisation",
    "busiest",
    "mean_batch",
    "growth",
    "n_unfinished",
    "n_restarts",
    "lost_tokens",
    "n_visits",
    "planned_s",
    "solve_time_s",
    "run_time_s",
    "extrapolated",
    "message",
    "version",
)
IDENTITY = ("series", "value", "digest", "method", "options", "seed", "time_limit_s", "version")
DISPATCHING = "believes"  # option of the dispatcher's view
PLANNING = ("stage_rule", "link_cost", "cost_model")  # options of the planner's view
POLICIES = {"hyperion": "hypsched_rt", "gpipe": "round_robin"}  # of methods that imply one
_UNSEEN = dict.fromkeys(
    COLUMNS[COLUMNS.index("latency_s") : COLUMNS.index("n_visits") + 1], math.nan
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRun:
    """A method on a scene, and the columns that identify the row."""

    experiment: str
    series: str
    axis: str
    value: Any
    scene: Scene
    digest: str
    method: str
    options: Mapping[str, Any]
    seed: int
    time_limit_s: float
    version: str

    def row(self) -> dict[str, Any]:
        """Return the columns that are known before the run."""
        deployment = self.scene.deployment
        tiers = deployment.network.tiers
        return {
            "experiment": self.experiment,
            "series": self.series,
            "axis": self.axis,
            "value": self.value,
            "digest": self.digest,
            "network": deployment.network.name,
            "model": deployment.model.name,
            "workload": self.scene.workload,
            "costs": str(deployment.cost_model),
            "method": self.method,
            "options": json.dumps(self.options, sort_keys=True),
            "seed": self.seed,
            "load": self.scene.load,
            "n_requests": len(deployment.requests),
            "n_tiers": len(tiers),
            "n_nodes": sum(len(tier.nodes) for tier in tiers),
            "time_limit_s": self.time_limit_s,
            "extrapolated": deployment.model.extrapolated,
            "version": self.version,
        }

    def measure(self) -> dict[str, Any]:
        """Plan and simulate; return the other columns, nan where there is no plan."""
        began = time.perf_counter()
        result = with_loaded_kernels(
            partial(
                plan,
                self.scene.deployment,
                self.method,
                self.options,
                seed=self.seed,
                time_limit_s=self.time_limit_s,
            )
        )
        seen: dict[str, Any] = _UNSEEN
        if result.partition is not None:
            trace = simulate(
                self.scene.deployment,
                result.partition,
                dispatcher(result, self.options),
                seed=self.seed,
                events=self.scene.events,
                **believed(self.scene.deployment, self.options),
                **self.scene.options,
            )
            seen = observed(trace, self.scene.deployment, result.partition)
        return {
            "status": str(result.status),
            "cuts": "" if result.partition is None else str(result.partition),
            **seen,
            "planned_s": short(result.objective_s),
            "solve_time_s": short(result.solve_time_s),
            "run_time_s": short(time.perf_counter() - began),
            "message": result.message if result.partition is None else "",
        }

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return the status and the mean latency."""
        from experiments.labels import seconds

        return f"{row['status']}, mean latency {seconds(row['latency_s'])}"

    def seconds(self, row: Mapping[str, Any]) -> float:
        """Return the seconds of planning and simulating."""
        return float(row["run_time_s"])

    @property
    def call(self) -> str:
        """Method and options."""
        return call_of(self.method, self.options)

    def __str__(self) -> str:
        return describe_run(self)


def without_estimate(state: TierState, request: int) -> int:
    """Dispatch as HypSched-RT, but ignore how fast the nodes have been recently."""
    seconds = state.outstanding_s + state.own_s
    has_room = state.kv_free_tokens >= state.kv_own_tokens
    if has_room.any():
        seconds = np.where(has_room, seconds, np.inf)
    return int(state.nodes[np.argmin(seconds)])


def best_cuts(deployment: Deployment) -> Callable[..., Outcome]:
    """Make a method for `solve` that simulates every strict partition under HypSched-RT.

    Its answer has the smallest mean latency at token level under that policy.
    """

    def best_cuts(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        until_s = time.perf_counter() + time_limit_s
        best, best_s, message = None, math.inf, "all strict partitions simulated"
        for inner in itertools.combinations(range(1, instance.n_blocks), instance.n_tiers - 1):
            partition = Partition((0, *inner, instance.n_blocks))
            if evaluation.check(instance, partition):
                continue
            if time.perf_counter() > until_s:
                message = "time limit: not all partitions were simulated"
                break
            latency_s = simulate(deployment, partition, "hypsched_rt", seed=seed).latency_s
            if latency_s.mean() < best_s:
                best, best_s = partition, float(latency_s.mean())
        if best is None:
            late = message.startswith("time limit")
            return Outcome(Status.UNKNOWN if late else Status.INFEASIBLE, message=message)
        return Outcome(Status.FEASIBLE, best, message=message)

    return best_cuts


OWN_METHODS = {"best_cuts": best_cuts}  # deployment -> method that decides a partition
OWN_POLICIES: dict[str, Choose] = {"without_estimate": without_estimate}


def plan(
    deployment: Deployment,
    method: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    time_limit_s: float,
) -> Result:
    """Solve the deployment at flow level for the mean latency.

    Options ``stage_rule`` and ``link_cost`` go to `hypsolve.to_instance`. ``cost_model`` is the
    planner's belief: the deployment keeps its own for the simulation. ``method`` and ``policy``
    may also be names of `OWN_METHODS` and `OWN_POLICIES`.
    """
    believed = options.get("cost_model", deployment.cost_model)
    instance = to_instance(
        replace(deployment, cost_model=CostModel(believed)),
        objective="mean_latency",
        **{key: options[key] for key in PLANNING[:2] if key in options},
    )
    own = {k: v for k, v in options.items() if k not in (*PLANNING, DISPATCHING)}
    if "policy" in own:
        own["policy"] = OWN_POLICIES.get(own["policy"], own["policy"])
    call: str | Method = method
    if method in OWN_METHODS:
        call = Method(OWN_METHODS[method](deployment), "partition")
    return solve(instance, call, seed=seed, time_limit_s=time_limit_s, **own)


def dispatcher(result: Result, options: Mapping[str, Any]) -> str | Choose | Schedule:
    """Return the method's dispatch policy, or its schedule, to be replayed, if it has none."""
    policy = options.get("policy", POLICIES.get(result.method))
    if policy is None:
        assert result.schedule is not None  # the objective is a scheduled one
        return result.schedule
    return OWN_POLICIES.get(policy, policy)


def believed(deployment: Deployment, options: Mapping[str, Any]) -> dict[str, int]:
    """Return the option of `simulate` for the output length that dispatch believes, if any."""
    if DISPATCHING not in options:
        return {}
    assert options[DISPATCHING] == "mean output", options
    return {"expected_output_tokens": round(deployment.requests.output_tokens.mean())}


def observed(trace: Trace, deployment: Deployment, partition: Partition) -> dict[str, Any]:
    """Return the measures of a trace, by column.

    If some requests never end, their number is ``n_unfinished`` and all means are nan: a mean
    over the others would favour a network that serves only the requests that it can.
    """
    instance = to_instance(deployment)
    numbers = trace.metrics()
    compute_s, link_s = alone_s(instance, partition, trace)
    unfinished = numbers.n_unfinished > 0
    latency = numbers.latency_s
    seen = {
        "latency_s": latency.mean,
        "p50_s": latency.p50,
        "p95_s": latency.p95,
        "p99_s": latency.p99,
        "ttft_s": numbers.ttft_s.mean,
        "tpot_s": numbers.tpot_s.mean,
        "compute_s": float(compute_s.mean()),
        "link_s": float(link_s.mean()),
        "requests_per_s": numbers.requests_per_s,
        "tokens_per_s": numbers.output_tokens_per_s,
        "utilisation": numbers.utilisation,
        "busiest": max(numbers.node_utilisation),
        "mean_batch": numbers.mean_batch,
        "growth": growth(trace),
    }
    if unfinished:
        seen = dict.fromkeys(seen, math.nan)
    return {
        **{name: short(value) for name, value in seen.items()},
        "n_unfinished": numbers.n_unfinished,
        "n_restarts": numbers.restarts,
        "lost_tokens": numbers.lost_tokens,
        "n_visits": trace.n_visits,
    }


def alone_s(
    instance: Instance, partition: Partition, trace: Trace
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the seconds of computing and of transfers of each request alone on its nodes.

    Both have shape (n_requests,). The rest of a latency is waiting, and iterations that other
    requests of the batch make longer.
    """
    service_s = evaluation.service_s(instance, partition)
    n = instance.n_requests
    compute_s = np.zeros(n)
    rows = np.arange(n) if len(service_s) > 1 else np.zeros(n, np.int64)
    for k in range(instance.n_tiers):
        node = trace.node[:, k]
        kinds = instance.node_class[instance.nodes_of(k)][np.maximum(node, 0)]
        compute_s += np.where(node >= 0, service_s[rows, k, kinds], 0.0)
    link_s = evaluation.transfer_s(instance, partition).sum(axis=1)
    return compute_s, np.broadcast_to(link_s, n).astype(np.float64)
