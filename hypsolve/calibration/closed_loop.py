"""Forecasts of measured runs: the deployment of a run, simulated or in the fluid model.

The published TTFT of a closed loop is that of requests in a steady state here: users start
evenly spread over the latency of one request, and the first and the last request of each user
are not counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hypsolve import catalog
from hypsolve.calibration.runs import ServingRun, UnknownName, closed_loop_tokens_per_s
from hypsolve.calibration.weight_bits import kv_share, with_kv_share
from hypsolve.catalog.interconnects import interconnect, measured_gpus
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Deployment, GpuProfile, Model, Requests
from hypsolve.problem.network import Network, Node, Tier
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.problem.serving_evaluation import evaluate_serving
from hypsolve.problem.solution import Partition
from hypsolve.simulation.simulate import simulate

MIN_REQUESTS = 24  # that count in a simulation
UNMEASURED_LINKS = (("rtx-pro", "pcie5"), ("h100", "pcie5"), ("b200", "nvlink5"))
DEFAULT_LINKS = "pcie4"


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast of a run, or the reason why there is none.

    Attributes
    ----------
    ttft_s, tpot_s, tokens_per_s : float
        nan without a forecast.
    reason : str
        Why there is none; empty otherwise.
    """

    ttft_s: float = math.nan
    tpot_s: float = math.nan
    tokens_per_s: float = math.nan
    reason: str = ""


def links_of(gpu: str) -> str:
    """Return the interconnect of machines with several of a GPU, as the catalogue names it."""
    for name in catalog_links():
        if gpu in measured_gpus(name):
            return name
    found = [links for prefix, links in UNMEASURED_LINKS if gpu.startswith(prefix)]
    return found[0] if found else DEFAULT_LINKS


@functools.cache
def catalog_links() -> tuple[str, ...]:
    """Return the interconnects with measured all-reduces."""
    from hypsolve.catalog.interconnects import interconnects

    return interconnects()


def model_of(run: ServingRun) -> Model:
    """Return the model of a run, with its format of weights.

    Raises
    ------
    UnknownName
        If the catalogue does not know it.
    """
    return _model(run.catalog_model, run.catalog_weights)


@functools.cache
def _model(name: str, weights: str) -> Model:
    return catalog.model(name, weights)


def deployment_of(
    run: ServingRun, gpu: GpuProfile, arrival_s: np.ndarray | None = None
) -> Deployment:
    """Return the deployment of a run: one machine whose GPUs compute as one.

    Parameters
    ----------
    run : ServingRun
    gpu : GpuProfile
        Costs of one GPU. With `OperatorRates`, the KV cache has the bits that the server gives
        it: they were fitted so.
    arrival_s : ndarray, optional
        Earliest times of requests, in seconds. Default: one request.

    Raises
    ------
    ValueError
        If the catalogue does not know a name of the run, or the model does not divide among the
        GPUs.
    """
    links, degree = None, run.tensor_parallel
    if degree > 1:
        links = interconnect(links_of(run.catalog_gpu), run.catalog_gpu)
    node = Node(name="box", gpu=gpu, gpus=degree, interconnect=links, tensor_parallel=degree)
    network = Network(name="box", tiers=(Tier(name="box", nodes=(node,)),))
    times = np.zeros(1) if arrival_s is None else arrival_s
    n = len(times)
    requests = Requests(times, np.full(n, run.prompt_tokens), np.full(n, run.output_tokens))
    runtime = catalog.runtime(run.catalog_runtime, gpus=[gpu])
    model = model_of(run)
    if gpu.operators is not None:
        model = with_kv_share(model, kv_share(run))
    return Deployment(model=model, network=network, requests=requests, runtime=runtime)


def fluid(run: ServingRun, gpu: GpuProfile) -> Forecast:
    """Forecast a run by the fluid model of its closed loop.

    Raises
    ------
    ValueError
        If the run cannot be deployed; see `deployment_of`.
    """
    deployment = deployment_of(run, gpu)
    instance = to_serving_instance(deployment, users=run.concurrency)
    served = evaluate_serving(instance, Partition((0, deployment.model.n_blocks)))
    if served.latencies is None:
        return Forecast(reason=f"no request is served: {served.limit}")
    tpot_s = served.latencies.tpot_s
    # users who the limits keep out wait for admission: the latency is that of Little's law
    latency_s = run.concurrency / served.fluid_requests_per_s
    ttft_s = max(served.latencies.ttft_s, latency_s - (run.output_tokens - 1) * tpot_s)
    return _forecast(run, ttft_s, tpot_s)


def simulated(run: ServingRun, gpu: GpuProfile) -> Forecast:
    """Forecast a run by simulating its users token by token.

    Raises
    ------
    ValueError
        If the run cannot be deployed; see `deployment_of`.
    """
    expected = fluid(run, gpu)
    if expected.reason:
        return expected
    users = run.concurrency
    latency_s = users * run.output_tokens / expected.tokens_per_s
    n_rounds = max(3, math.ceil(MIN_REQUESTS / users) + 2)
    deployment = deployment_of(run, gpu, start_times(users, n_rounds, latency_s))
    return _forecast(run, *mean_times(deployment, users, n_rounds))


def start_times(users: int, n_rounds: int, latency_s: float) -> Array:
    """Return the earliest times of the requests of a closed loop, in seconds.

    The first requests of the users are evenly spread over the latency of one request, so that
    the loop starts near its steady state. All others come when an answer has ended.

    Examples
    --------
    >>> start_times(2, 3, 8.0).tolist()
    [0.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    """
    return np.minimum(np.arange(n_rounds * users) / users, 1.0) * latency_s


def mean_times(
    deployment: Deployment, users: int, n_rounds: int, think_time_s: float = 0.0
) -> tuple[float, float]:
    """Simulate a closed loop; return the mean time to first token and time per later token.

    The first request of each user is not counted, and the last one only if there are two.

    Parameters
    ----------
    deployment : Deployment
        Of one machine, with `n_rounds` equal requests of each user.
    users, n_rounds : int
    think_time_s : float
        Seconds that a user is away from the server between two requests.

    Returns
    -------
    ttft_s, tpot_s : float
        Seconds. A single output token has a `tpot_s` of 0.
    """
    whole = Partition((0, deployment.model.n_blocks))
    trace = simulate(deployment, whole, users=users, think_time_s=think_time_s)
    counted = slice(users, (n_rounds - 1) * users if n_rounds > 2 else None)
    first_s = trace.ttft_s[counted]
    decode_s = trace.latency_s[counted] - first_s
    passes = max(int(deployment.requests.output_tokens[0]) - 1, 1)
    return float(np.nanmean(first_s)), float(np.nanmean(decode_s)) / passes


def forecast(
    run: ServingRun, method: Callable[[ServingRun, GpuProfile], Forecast], gpu: GpuProfile
) -> Forecast:
    """Forecast a run, or state why it cannot be forecast."""
    try:
        return method(run, gpu)
    except UnknownName as error:
        return Forecast(reason=str(error))
    except ValueError as error:
        return Forecast(reason=f"cannot be deployed: {error}")


def _forecast(run: ServingRun, ttft_s: float, tpot_s: float) -> Forecast:
    return Forecast(ttft_s, tpot_s, closed_loop_tokens_per_s(run, ttft_s, tpot_s))
