"""Fit the coefficients of servers to measured runs: `fit_servers`.

The logarithm of a coefficient is a sum of four parts: of all servers, of the runtime, of the
GPU, and of the GPU with the runtime. Each part is drawn to 0 by a normal prior, so that a
server without runs of its own takes the coefficients of its runtime and its GPU. The fit
minimises the errors of logarithms, in units of `UNITS`, under a Cauchy loss (a few wrong
measurements do not bend it), by the Levenberg-Marquardt method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hypsolve.calibration.features import PREFILL_FIRST, Features, features_of
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.server_costs import NAMES, TYPICAL, ServerCosts, closed_loop
from hypsolve.problem.arrays import Array

UNITS = (0.3, 0.03, 0.06)  # errors of TTFT, TPOT and tokens/s that weigh the same
CAUCHY = 2.0  # errors beyond so many units lose weight
N_STEPS = 25
N_ROUNDS = 12  # of the fixed point, from the times per token of the step before
MAX_STEP = 0.7
DIFFERENCE = 1e-4
ENOUGH = 1e-4  # relative gain of a step below which the fit ends
IN_STEP_PREFILL_FIRST = 0.5  # in a wave of N prompts, N / 2 are computed before one's own
FIXED = ("attention",)
"""Coefficients that no fit moves: held-out errors did not fall when they were fitted."""


def _widths(**widths: tuple[float, float]) -> tuple[Array, Array]:
    pairs = np.array([widths[name] for name in NAMES])
    return pairs[:, 0], pairs[:, 1]


OF_ALL, OF_RUNTIME = _widths(
    read_16=(0.2, 0.1), read_8=(0.2, 0.12), read_4=(0.3, 0.15), gemm_16=(0.2, 0.1),
    gemm_8=(0.3, 0.15), gemm_4=(0.4, 0.15), attention=(0.3, 0.1), kv_read=(0.3, 0.15),
    state_passes=(0.5, 0.2), layer_s=(1.0, 0.4), mixed_layer_s=(1.0, 0.6),
    iteration_s=(1.0, 0.4), token_s=(1.0, 0.6), all_reduce_factor=(0.3, 0.2),
    request_s=(1.0, 0.7), first_factor=(0.5, 0.3), in_step=(1.0, 0.8),
)  # fmt: skip
"""Standard deviations of the logarithms: of all servers, and of a runtime from them."""
OF_GPU = np.full(len(NAMES), 0.1)
OF_BOTH = np.minimum(OF_RUNTIME, 0.3)
Server = tuple[str, str]  # GPU and runtime, as tables of runs name them


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted coefficients of any GPU under any runtime.

    Attributes
    ----------
    parts : mapping of (str, str) to ndarray
        Parts of the logarithms: ("", "") of all servers, ("", runtime), (gpu, ""),
        (gpu, runtime).
    n_runs : int
        Runs that it was fitted to.
    base : Fit, optional
        Fit to other runs, from whose coefficients the parts count. Default: `TYPICAL`.
    """

    parts: Mapping[Server, Array]
    n_runs: int
    base: Fit | None = None

    def costs(self, gpu: str, runtime: str) -> ServerCosts:
        """Return the coefficients of a server, seen or not, by the names in the catalogue."""
        keys = (("", ""), ("", runtime), (gpu, ""), (gpu, runtime))
        logs = _centre(gpu, runtime, self.base)
        for key in keys:
            if key in self.parts:
                logs = logs + self.parts[key]
        return ServerCosts(**dict(zip(NAMES, np.exp(logs).tolist(), strict=True)))

    def forecast(self, runs: Sequence[ServingRun]) -> tuple[Array, Array, Array]:
        """Return time to first token, time per token and tokens/s of runs, as arrays."""
        made = [self.costs(run.catalog_gpu, run.catalog_runtime).to_array() for run in runs]
        return closed_loop(features_of(runs), np.array(made).T)


def fit_servers(
    runs: Sequence[ServingRun], *, base: Fit | None = None, n_steps: int = N_STEPS
) -> Fit:
    """Fit the coefficients of all servers in some runs together.

    Parameters
    ----------
    runs : sequence of ServingRun
        A run that is given twice counts twice.
    base : Fit, optional
        Fit to other runs, whose coefficients are the centre of the prior.
    n_steps : int
        Steps at most.

    Returns
    -------
    Fit
        Without runs, the coefficients are those of `base`.

    Raises
    ------
    ValueError
        If a run cannot be deployed; see `features_of`.
    """
    if not runs:
        return Fit({}, 0, base)
    problem = _Problem(runs, base)
    x = np.zeros((len(problem.keys), len(NAMES)))
    cost, errors, tpot_s = problem.cost(x, problem.measured[1])
    damping = 1e-2
    for _ in range(n_steps):
        slopes = problem.slopes(x, tpot_s)
        gain = 0.0
        for _ in range(6):
            step = problem.step(x, errors, slopes, damping)
            new_cost, new_errors, new_tpot_s = problem.cost(x + step, tpot_s)
            if new_cost < cost:
                gain = cost - new_cost
                x, cost, errors, tpot_s = x + step, new_cost, new_errors, new_tpot_s
                damping = max(damping / 5, 1e-6)
                break
            damping *= 5
        if gain <= ENOUGH * abs(cost):
            break
    return Fit(dict(zip(problem.keys, x, strict=True)), len(runs), base)


def _centre(gpu: str, runtime: str, base: Fit | None) -> Array:
    """Return the logarithms from which a server's coefficients are fitted."""
    if base is not None:
        return np.log(base.costs(gpu, runtime).to_array())
    logs = np.log(TYPICAL.to_array())
    if runtime in PREFILL_FIRST:
        logs[NAMES.index("in_step")] = np.log(IN_STEP_PREFILL_FIRST)
    return np.asarray(logs)


class _Problem:
    """The least squares of one fit: what was measured, and which parts a run adds up."""

    def __init__(self, runs: Sequence[ServingRun], base: Fit | None) -> None:
        self.features: Features = features_of(runs)
        self.measured = np.array([[r.ttft_s, r.tpot_s, r.tokens_per_s] for r in runs]).T
        servers = [(run.catalog_gpu, run.catalog_runtime) for run in runs]
        gpus, runtimes = (sorted(set(names)) for names in zip(*servers, strict=True))
        self.keys: list[Server] = [
            ("", ""), *(("", r) for r in runtimes), *((g, "") for g in gpus),
            *sorted(set(servers)),
        ]  # fmt: skip
        self.member = np.array(
            [[g in ("", gpu) and r in ("", runtime) for g, r in self.keys]
             for gpu, runtime in servers], float,
        )  # fmt: skip
        widths = {(False, False): OF_ALL, (False, True): OF_RUNTIME,
                  (True, False): OF_GPU, (True, True): OF_BOTH}  # fmt: skip
        self.widths = np.array([widths[bool(g), bool(r)] for g, r in self.keys])
        self.centre = np.array([_centre(*server, base) for server in servers]).T
        self.free = np.array([i for i, name in enumerate(NAMES) if name not in FIXED])

    def errors(self, logs: Array, start_s: Array) -> tuple[Array, Array]:
        """Return the errors in units, one after the other, and the times per token."""
        made = closed_loop(self.features, np.exp(logs), start_s, N_ROUNDS)
        units = np.array(UNITS)[:, None]
        return (np.log(np.array(made) / self.measured) / units).ravel(), made[1]

    def cost(self, x: Array, start_s: Array) -> tuple[float, Array, Array]:
        errors, tpot_s = self.errors(self.centre + (self.member @ x).T, start_s)
        loss = CAUCHY**2 * np.log1p((errors / CAUCHY) ** 2).sum()
        return float(loss + ((x / self.widths) ** 2).sum()), errors, tpot_s

    def slopes(self, x: Array, start_s: Array) -> Array:
        """Return the derivatives of the errors by a run's own coefficients."""
        logs = self.centre + (self.member @ x).T
        at, _ = self.errors(logs, start_s)
        columns = []
        for i in self.free:
            moved = logs.copy()
            moved[i] += DIFFERENCE
            columns.append((self.errors(moved, start_s)[0] - at) / DIFFERENCE)
        return np.array(columns).T

    def step(self, x: Array, errors: Array, slopes: Array, damping: float) -> Array:
        """Return the damped Gauss-Newton step of all parts."""
        member = np.tile(self.member, (len(UNITS), 1))
        full = (member[:, :, None] * slopes[:, None, :]).reshape(len(errors), -1)
        weights = 1 / (1 + (errors / CAUCHY) ** 2)
        normal = full.T @ (full * weights[:, None])
        prior = 1 / self.widths[:, self.free].ravel() ** 2
        gradient = full.T @ (weights * errors) + prior * x[:, self.free].ravel()
        diagonal = prior * (1 + damping) + damping * np.diag(normal)
        step = np.linalg.solve(normal + np.diag(diagonal), -gradient)
        whole = np.zeros_like(x)
        whole[:, self.free] = np.clip(step, -MAX_STEP, MAX_STEP).reshape(len(self.keys), -1)
        return whole
