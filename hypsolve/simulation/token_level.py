"""Token level of `simulate`: run the kernel on a `System`, and turn its state into a trace."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np

from hypsolve.dispatch.policies import TierState, position_of
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.simulation import pipeline_level
from hypsolve.simulation.options import policy_name
from hypsolve.simulation.time_of_day import from_time_0
from hypsolve.simulation.token_setup import Records, System
from hypsolve.simulation.trace import Series, Trace, Visits

_EVENTS_AT_A_TIME = 5_000_000  # after them Ctrl-C is handled
_EVENTS_TO_LIMIT = 200_000  # after them the time limit is looked at: less than 0.1 s


def serve(system: System, time_limit_s: float | None = None) -> Trace:
    """Run a simulation to its end; raise TimeoutError if that takes too long."""
    from hypsolve.kernels import token_level as kernel
    from hypsolve.kernels.token_level import pipeline
    from hypsolve.kernels.warm_up import warm

    in_pipelines = system.forms_batches_of_pipelines
    warm("token_level.pipeline" if in_pipelines else "token_level")
    loop: Any = pipeline if in_pipelines else kernel
    state = system.state
    max_pushed = min(system.options.max_num_seqs, system.instance.n_requests) + 4
    max_pushed += system.instance.n_nodes
    heap = kernel.records(4 * max_pushed + 64, kernel.EVENT)
    log = kernel.records(10_000 if system.options.record_visits else 0, kernel.VISIT)
    n_events = _EVENTS_AT_A_TIME if time_limit_s is None else _EVENTS_TO_LIMIT
    end_s = math.inf if time_limit_s is None else perf_counter() + time_limit_s
    while True:
        if perf_counter() >= end_s:
            n_ended = int(np.isfinite(state.requests["end_s"]).sum())
            raise TimeoutError(
                f"simulate: the time limit of {time_limit_s:.3g} s passed when {n_ended} of"
                f" {system.instance.n_requests} requests had ended"
            )
        state.counts[kernel.BUDGET] = n_events
        why = loop.run(system.setup, state, heap, log)
        if why == kernel.DONE:
            break
        if why == kernel.CHOOSE:
            at = int(state.counts[kernel.CHOICE_FOR])
            if len(system.pipelines):
                p = pipeline_level.choose_pipeline(system, kernel, at)
                chosen = p if in_pipelines else int(system.pipelines[p, 0])
            else:
                chosen = _choose(system, kernel, at)
            state.counts[kernel.CHOICE] = chosen
        elif why == kernel.GROW:
            n_in_heap, n_logged = state.counts[[kernel.N_EVENTS, kernel.N_LOGGED]].tolist()
            if system.options.record_visits and n_logged + max_pushed > len(log):
                log = _grown(log, n_logged + max_pushed)
            else:
                heap = _grown(heap, n_in_heap + max_pushed)
    loop.settle(state)
    trace = _trace(system, kernel, log[: int(state.counts[kernel.N_LOGGED])])
    in_a_loop = system.options.users is not None  # then the given arrivals are ignored
    return from_time_0(trace, system.first_s, None if in_a_loop else system.instance.arrival_s)


def _choose(system: System, kernel: Any, at: int) -> int:
    """Return the node that a policy in Python chooses for request * n_stages + stage."""
    assert callable(system.policy)
    r, stage = divmod(at, len(system.tiers))
    k, state = system.tiers[stage], system.state
    nodes = np.array([n for n in system.nodes[stage] if state.nodes[n]["up"]])
    records, first = state.nodes[nodes], system.instance.nodes_of(k).start
    now_s = float(state.clock[kernel.NOW])
    row = r if len(system.expected_s) > 1 else 0
    request = state.requests[r]
    local = nodes - first
    local.setflags(write=False)
    free_tokens = records["capacity"] - records["held"] - records["queued"]
    tier_state = TierState(
        tier=k,
        time_s=system.time_of_day_s(r, now_s),
        nodes=local,
        n_jobs=records["n_jobs"].copy(),
        outstanding_s=records["outstanding_s"].copy(),
        remaining_s=np.array(
            [
                kernel.remaining_s(
                    system.setup, state.requests, state.places, state.nodes, int(n), now_s
                )
                for n in nodes
            ]
        ),
        own_s=system.expected_s[row, stage][records["kind"]],
        slowdown=np.array([kernel.factor(float(s)) for s in records["slowdown"]]),
        n_dispatched=int(state.dispatched[stage]),
        kv_free_tokens=free_tokens.astype(float),
        kv_own_tokens=system.kv_own_tokens(request),
        uniforms=system.setup.uniforms[stage, r].copy(),
        rng=system.rng,
    )
    position = {int(n): i for i, n in enumerate(local)}
    chosen = system.policy(tier_state, r)
    return int(nodes[position_of(system.instance, k, system.policy, chosen, position)])


def _stays(system: System) -> tuple[IntArray, dict[str, Array]]:
    """Return the nodes of each request over the network, and the times at each stage.

    Shape (n_requests, n_stages); negative: at no node.
    """
    places = system.state.places.reshape(system.instance.n_requests, len(system.tiers))
    return places["node"], {
        name: places[f"{name}_s"] for name in ("reached", "admitted", "left")
    }


def _trace(system: System, kernel: Any, log: Records) -> Trace:
    """Turn the state at the end of a run into a trace counted from the first arrival."""
    state, instance = system.state, system.instance
    shape = (instance.n_requests, instance.n_tiers)
    in_pipelines = system.forms_batches_of_pipelines
    at_stage, at_times = (pipeline_level.stays if in_pipelines else _stays)(system)
    node = np.full(shape, -1, np.int64)
    times = {name: np.full(shape, math.nan) for name in at_times}
    blocks, spans = system.blocks, system.layout.node_span
    kv_bytes = np.array(
        [
            system.deployment.kv_bytes_per_token(blocks[span], node) if span >= 0 else 0.0
            for node, span in zip(system.all_nodes, spans, strict=True)
        ]
    )
    for stage, k in enumerate(system.tiers):
        at_tier = instance.nodes_of(k)
        node[:, k] = np.maximum(at_stage[:, stage] - at_tier.start, -1)
        for name, array in times.items():
            array[:, k] = at_times[name][:, stage]
    holds, nodes = state.nodes["stage"] != kernel.NIL, state.nodes
    limited = np.where(kv_bytes > 0, nodes["capacity"] * kv_bytes, math.inf)
    capacity_bytes = np.where(holds, limited, 0.0)
    origin_s, width_s = state.clock[[kernel.ORIGIN, kernel.WIDTH]].tolist()
    n_bins = max(math.ceil((state.clock[kernel.NOW] - origin_s) / width_s), 1)
    means, of_stages = np.split(state.bins[:, :, :n_bins] / width_s, [len(nodes)], axis=1)
    n_stranded = np.zeros((instance.n_tiers, n_bins))
    n_stranded[system.tiers] = of_stages[kernel.WAITING]
    visits = None
    if system.options.record_visits:
        names = {"context": "context_tokens"}
        fields = {names.get(f, f): log[f].copy() for f in kernel.VISIT.names}
        visits = Visits(**fields)
    given = system.deployment.requests
    return Trace(
        level="token",
        name=instance.name,
        policy=policy_name(system.policy),
        seed=system.seed,
        partition=system.partition,
        tier_names=instance.tier_names,
        node_names=instance.node_names,
        node_tier=instance.node_tier,
        arrival_s=state.arrival_s.copy(),
        end_s=state.requests["end_s"].copy(),
        first_token_s=state.requests["first_token_s"].copy(),
        prompt_tokens=given.prompt_tokens,
        output_tokens=given.output_tokens,
        restarts=state.requests["restarts"].copy(),
        lost_tokens=state.requests["lost"].copy(),
        preemptions=state.requests["preemptions"].copy(),
        node=node,
        reached_s=times["reached"],
        admitted_s=times["admitted"],
        left_s=times["left"],
        busy_s=state.nodes["busy_s"].copy(),
        n_iterations=state.nodes["n_iterations"].copy(),
        n_tokens=state.nodes["n_tokens"].copy(),
        n_visits=int(state.counts[kernel.N_VISITS]),
        series=Series(
            start_s=origin_s,
            bin_s=width_s,
            busy=means[kernel.BUSY],
            n_requests=means[kernel.JOBS],
            n_waiting=means[kernel.WAITING],
            kv_bytes=means[kernel.HELD] * kv_bytes[:, None],
            n_stranded=n_stranded,
        ),
        kv_capacity_bytes=capacity_bytes,
        end_of_run_s=float(state.clock[kernel.NOW]),
        extrapolated=instance.extrapolated,
        users=system.options.users,
        visits=visits,
    )


def _grown(records: Records, minimum: int) -> Records:
    """Return a copy with twice the room, or with `minimum` if that is more."""
    new = np.zeros(max(2 * len(records), minimum), records.dtype).view(np.recarray)
    new[: len(records)] = records
    return new
