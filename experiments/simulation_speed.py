"""Tasks of experiment `speed` that time the token-level simulator, each in its own process.

`python -m experiments.simulation_speed TASK SIZE` prints JSON. The scenario is Llama-3-8B on 3
tiers of 8 GPUs, with requests like those of the Azure conversation trace of 2023.
"""

import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = Path(__file__).parent.parent
N_TRACE, TRACE_RATE_PER_S = 13_828, 5.9  # of the conversation trace


def deployment(n_requests: int, *, output_tokens: int | None = None) -> Any:
    """Draw conversations at the rate of the trace, on request all of one output length."""
    import hypsolve as hs

    requests = hs.workload("azure_conversation", n_requests=n_requests,
                           rate_per_s=TRACE_RATE_PER_S)  # fmt: skip
    if output_tokens is not None:
        same = np.full(n_requests, output_tokens)
        requests = hs.Requests(
            requests.arrival_s, np.minimum(requests.prompt_tokens, 512), same
        )
    return hs.Deployment(model=hs.model("llama-3-8b"), network=_network(), requests=requests)


def _network() -> Any:
    import hypsolve as hs

    wire = hs.Link(bytes_per_s=1.25e9, latency_s=0.5e-3)
    tiers = []
    for name, gpu, link in (("edge", "rtx-4090", wire), ("fog", "l4", wire),
                            ("cloud", "a100-80gb", None)):  # fmt: skip
        nodes = tuple(hs.Node(name=f"{name}-{j}", gpu=hs.gpu(gpu)) for j in range(8))
        tiers.append(hs.Tier(name=name, nodes=nodes, link=link))
    return hs.Network(name="three tiers of eight", tiers=tuple(tiers))


def _partition(problem: Any) -> Any:
    import hypsolve as hs

    return hs.solve(hs.to_instance(problem), "hypsplit_dp").partition


def _timed(problem: Any, partition: Any, **options: Any) -> tuple[float, Any]:
    import hypsolve as hs

    start = time.perf_counter()
    trace = hs.simulate(problem, partition, **options)
    return time.perf_counter() - start, trace


def whole_trace(size: str) -> dict[str, Any]:
    """Simulate the conversation trace, or drawn requests of its number without the file."""
    import hypsolve as hs
    from experiments.claims.scenes import CONVERSATIONS, can_draw, trace_file

    problem, what = deployment(N_TRACE), "requests drawn as in the Azure conversation trace"
    if can_draw(CONVERSATIONS):
        problem = hs.Deployment(
            model=problem.model,
            network=problem.network,
            requests=hs.read_requests(trace_file(CONVERSATIONS)),
        )
        what = "the Azure conversation trace"
    partition = _partition(problem)
    _timed(deployment(2), partition)
    repeats = {"quick": 1, "default": 2, "full": 7}[size]
    seconds, n_visits = [], 0
    for _ in range(repeats):
        taken_s, trace = _timed(problem, partition)
        seconds.append(taken_s)
        n_visits = trace.n_visits
    return {"seconds": seconds, "n_visits": n_visits, "what": what}


def batches(size: str) -> dict[str, Any]:
    """Time a loaded system: its iterations hold many requests."""
    import dataclasses

    import hypsolve as hs

    base = deployment({"quick": 500, "default": 4000, "full": 20_000}[size])
    requests = dataclasses.replace(base.requests, arrival_s=base.requests.arrival_s / 20)
    problem = hs.Deployment(model=base.model, network=base.network, requests=requests)
    partition = _partition(problem)
    _timed(deployment(2), partition)
    taken = [
        _timed(problem, partition) for _ in range({"quick": 1, "default": 2, "full": 7}[size])
    ]
    trace = taken[0][1]
    return {
        "seconds": [seconds for seconds, _ in taken],
        "n_visits": trace.n_visits,
        "mean_batch": trace.n_visits / int(trace.n_iterations.sum()),
    }


def against_simpy(size: str) -> dict[str, Any]:
    """Time the SimPy model of the tests and `simulate` in turn; their traces must agree."""
    sys.path.insert(0, str(_ROOT / "tests"))
    from tests.helpers import simpy_model

    n_requests, repeats = {"quick": (10, 1), "default": (40, 1), "full": (200, 3)}[size]
    problem = deployment(n_requests)
    partition = _partition(problem)
    _timed(problem, partition)
    slow_s, fast_s = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        theirs = simpy_model.simulate(problem, partition)
        slow_s.append(time.perf_counter() - start)
        for _ in range(5):
            seconds, ours = _timed(problem, partition)
            fast_s.append(seconds)
    times = ("first_token_s", "end_s", "admitted_s", "left_s")
    same = all(
        np.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=0)
        for name in times
    )
    same = same and np.array_equal(ours.node, theirs.node) and ours.n_visits == theirs.n_visits
    if not same:
        raise RuntimeError("simulate and the SimPy model disagree")
    return {"slow_s": slow_s, "fast_s": fast_s, "n_visits": ours.n_visits}


def memory(size: str) -> dict[str, Any]:
    """Return the peak memory of one simulation; `size` is requests x output tokens.

    tracemalloc counts it: it sees every array, and the kernels allocate none. The resident set
    would also hold the memory that compiling the kernels took.
    """
    n_requests, output_tokens = map(int, size.split("x"))
    small = deployment(2, output_tokens=2)
    partition = _partition(small)
    _timed(small, partition)  # kernels and libraries
    problem = deployment(n_requests, output_tokens=output_tokens)
    tracemalloc.start()
    _, trace = _timed(problem, partition)
    return {"bytes": tracemalloc.get_traced_memory()[1], "n_visits": trace.n_visits}


if __name__ == "__main__":
    tasks = {"trace": whole_trace, "batches": batches, "simpy": against_simpy, "memory": memory}
    print(json.dumps(tasks[sys.argv[1]](sys.argv[2])))
