"""Pipelines at token level: what a policy in Python sees, and where requests have been."""

from __future__ import annotations

from typing import Any

import numpy as np

from hypsolve.dispatch.policies import TierState, position_of
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.simulation.token_setup import System


def choose_pipeline(system: System, kernel: Any, at: int) -> int:
    """Return the pipeline that a policy in Python chooses for request * n_stages."""
    from hypsolve.kernels.token_level import pipeline

    if system.forms_batches_of_pipelines:
        pipeline.observe(system.setup, system.state)
    else:
        kernel.observe_routes(system.setup, system.state)
    assert callable(system.policy)
    r, k, state, setup = at // len(system.tiers), system.tiers[0], system.state, system.setup
    up = np.flatnonzero(state.pipes["n_down"] == 0)
    pipes, request = state.pipes[up], state.requests[r]
    local = system.pipelines[up, 0] - system.instance.nodes_of(k).start
    local.setflags(write=False)
    slowdowns = [float(kernel.slowdown(setup, state, p)) for p in up]
    tier_state = TierState(
        tier=k,
        time_s=system.time_of_day_s(r, float(state.clock[kernel.NOW])),
        nodes=local,
        n_jobs=pipes["n_jobs"].copy(),
        outstanding_s=pipes["outstanding_s"].copy(),
        remaining_s=pipes["work_s"].copy(),
        own_s=setup.own_s[r if len(setup.own_s) > 1 else 0, up],
        slowdown=np.array([kernel.factor(slowdown) for slowdown in slowdowns]),
        n_dispatched=int(state.dispatched[0]),
        kv_free_tokens=pipes["free"].astype(float),
        kv_own_tokens=system.kv_own_tokens(request),
        uniforms=setup.uniforms[0, r].copy(),
        rng=system.rng,
    )
    position = {int(n): i for i, n in enumerate(local)}
    chosen = system.policy(tier_state, r)
    return int(up[position_of(system.instance, k, system.policy, chosen, position)])


def stays(system: System) -> tuple[IntArray, dict[str, Array]]:
    """Return the nodes of each request over the network, and the times at each stage.

    Shape (n_requests, n_stages); negative: at no node.
    """
    requests, n_stages = system.state.requests, len(system.tiers)
    pipe = requests["pipe"]
    node = np.where(pipe[:, None] >= 0, system.pipelines[np.maximum(pipe, 0)], -1)
    missing = (pipe[:, None] >= 0) & (node < 0)  # stages that the pipeline does not have
    wide = {
        name: np.where(missing, np.nan, requests[f"{name}_s"][:, None])
        for name in ("reached", "admitted")
    }
    left_s = system.state.places["left_s"].reshape(len(requests), n_stages)
    return node, {**wide, "left": left_s}
