"""Experiment `speed`: minimum and median times of the warm library, against its targets.

Some tasks run in a process of their own: `python -m experiments.speed TASK` prints JSON.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import scale_speed, serving_speed
from experiments.solving import solve_quietly
from experiments.speed_rows import row, timed_s

COLUMNS = (
    "task",
    "size",
    "what",
    "target",
    "min",
    "median",
    "unit",
    "repeats",
    "met",
    "version",
)
BACKENDS = ("partition_cbc", "partition_highs", "partition_cpsat", "partition_scip")
_ROOT = Path(__file__).parent.parent
_UNWANTED = ("ortools", "pulp", "highspy", "pandas", "matplotlib")


def _table_instance(n_requests: int, n_blocks: int, n_tiers: int, n_nodes: int) -> Any:
    """Draw a chain with three node classes, transfers per cut, memory, and Poisson arrivals."""
    from hypsolve import Instance

    rng = np.random.default_rng([n_blocks, n_tiers, n_nodes])
    sizes = rng.lognormal(0, 0.5, n_requests)
    kinds_s = rng.uniform(0.5, 1.5, (3, 4)) * 1e-3  # classes, kinds of block
    block_kind = rng.integers(0, 4, n_blocks)
    cut_kind = rng.integers(0, 8, n_blocks + 1)
    transfer_s = rng.uniform(0, 2e-3, (1, n_tiers - 1, 8))
    block_bytes = rng.integers(1, 5, n_blocks)
    fair_share = block_bytes.sum() / n_tiers
    period_s = kinds_s.mean() * n_blocks / n_tiers / n_nodes * sizes.mean()
    return Instance.from_kinds(
        kind_s=sizes[:, None, None] * kinds_s,
        block_kind=block_kind,
        block_bytes=block_bytes,
        transfer_kind_s=transfer_s,
        occupancy_kind_s=transfer_s,
        cut_kind=cut_kind,
        tiers=[
            [
                (int(rng.integers(3)), float(fair_share * rng.uniform(1.1, 2)))
                for _ in range(n_nodes)
            ]
            for _ in range(n_tiers)
        ],
        arrival_s=np.cumsum(rng.exponential(1.3 * period_s, n_requests)),
    )


def _chain() -> Any:
    """Return the 42 blocks of Phi-3-medium on 3 tiers of 4 nodes."""
    from experiments.definitions import three_tiers_of_four

    return three_tiers_of_four()


def solve_time(size: str) -> list[dict[str, Any]]:
    """Time `solve`: the method, its re-scoring and its checks."""
    from hypsolve import solve

    instance = _chain()
    solve(instance, "hypsplit_dp")
    repeats = {"quick": 50, "default": 200, "full": 1000}[size]
    times_ms = [1e3 * timed_s(lambda: solve(instance, "hypsplit_dp")) for _ in range(repeats)]
    return [row("solve with hypsplit_dp, 42 blocks, 3 tiers of 4 nodes", times_ms, "ms", 1)]


def kernel_time(size: str) -> list[dict[str, Any]]:
    """Time HypSplit-DP on a long chain, from prefix sums to cuts."""
    from hypsolve.solvers.partition.hypsplit import hypsplit_dp

    instance = _table_instance(1, 4096, 32, 4)
    hypsplit_dp(instance, time_limit_s=60, seed=0)
    repeats = {"quick": 10, "default": 30, "full": 200}[size]
    times_ms = [
        1e3 * timed_s(lambda: hypsplit_dp(instance, time_limit_s=60, seed=0))
        for _ in range(repeats)
    ]
    return [row("HypSplit-DP, 4096 blocks, 32 tiers of 4 nodes", times_ms, "ms", 10)]


def milp_ratio(size: str) -> list[dict[str, Any]]:
    """Time the exact backends in turn with HypSplit-DP, and check that the optima agree."""
    from hypsolve import solve

    instance = _chain()
    repeats = {"quick": 1, "default": 2, "full": 7}[size]
    times_s: dict[str, list[float]] = {method: [] for method in ("hypsplit_dp", *BACKENDS)}
    optimum_s = solve(instance, "hypsplit_dp").objective_s
    for method in BACKENDS:
        solve_quietly(instance, method)  # imports its backend
    for _ in range(repeats):
        for method, times in times_s.items():
            for _ in range(1 if method in BACKENDS else 50):
                result = solve_quietly(instance, method)
                if not math.isclose(result.objective_s, optimum_s, rel_tol=1e-6):
                    raise RuntimeError(
                        f"speed: {method} found {result.objective_s!r} s, hypsplit_dp"
                        f" {optimum_s!r} s"
                    )
                times.append(result.solve_time_s)
    own_s = times_s.pop("hypsplit_dp")
    return [
        row(
            f"{method} / hypsplit_dp, 42 blocks, 3 tiers of 4 nodes",
            [t / statistics.median(own_s) for t in times],
            "times",
        )
        for method, times in times_s.items()
    ]


def dispatch(size: str) -> list[dict[str, Any]]:
    """Dispatch a million requests in a process of its own, and read its peak memory."""
    repeats = {"quick": 1, "default": 1, "full": 5}[size]
    answers = [_in_process("dispatch") for _ in range(repeats)]
    what = "dispatch of 1,000,000 requests, 3 tiers of 8 nodes, HypSched-RT"
    return [
        row(what, [a["seconds"] for a in answers], "s", 3),
        row(f"{what}: peak memory", [a["peak_bytes"] / 1e9 for a in answers], "GB", 1),
    ]


def import_ratio(size: str) -> list[dict[str, Any]]:
    """Compare the process times of two imports, taken in turn."""
    repeats = {"quick": 3, "default": 5, "full": 21}[size]
    times_s: dict[str, list[float]] = {"numba": [], "hypsolve": []}
    for module in times_s:
        _import_s(module)  # reads the files
    for _ in range(repeats):
        for module, times in times_s.items():
            times.append(_import_s(module))
    base_s = statistics.median(times_s["numba"])
    ratios = [t / base_s for t in times_s["hypsolve"]]
    what = "import hypsolve / import numba, process time (numba is imported when first needed)"
    return [row(what, ratios, "times", 1.3)]


def first_solve(size: str) -> list[dict[str, Any]]:
    """Time the first solve of a fresh process with a warm cache of numba."""
    repeats = {"quick": 1, "default": 2, "full": 9}[size]
    _in_process("first")  # fills the cache
    start_s, call_s = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        call_s.append(_in_process("first")["seconds"])
        start_s.append(time.perf_counter() - start)
    return [
        row("first hypsplit_dp solve in a fresh process, warm cache", call_s, "s", 3),
        row("first hypsplit_dp solve with Python's start and imports", start_s, "s"),
    ]


def simulator(size: str) -> list[dict[str, Any]]:
    """Time the token-level simulator on one core; an event is a (token, stage) visit."""
    trace = _simulated("trace", size)
    visits = trace["n_visits"]
    loaded = _simulated("batches", size)
    what = f"simulate {trace['what']}, 3 tiers of 8 nodes, {visits:,} events"
    return [
        row(what, trace["seconds"], "s", 10),
        row(f"{what}: per event", [1e9 * s / visits for s in trace["seconds"]], "ns", 333),
        row(
            "simulate, 3 tiers of 8 nodes under load, mean batch"
            f" {loaded['mean_batch']:.1f}: per event",
            [1e9 * s / loaded["n_visits"] for s in loaded["seconds"]],
            "ns",
            333,
        ),
    ]


def simulator_against_simpy(size: str) -> list[dict[str, Any]]:
    """Time `simulate` and the SimPy model of the tests in turn on one trace."""
    answer = _simulated("simpy", size)
    base_s = statistics.median(answer["fast_s"])
    what = f"simulate / SimPy model, same scenario and trace, {answer['n_visits']:,} events"
    ratios = [base_s / slow_s for slow_s in answer["slow_s"]]
    return [row(what, ratios, "times", 1 / 50)]


def simulator_memory(size: str) -> list[dict[str, Any]]:
    """Compare peak memory at 10 times the tokens, and at 10 times the requests."""
    n = {"quick": 1000, "default": 10_000, "full": 20_000}[size]
    one = _simulated("memory", f"{n}x16")["bytes"]
    tokens = _simulated("memory", f"{n}x160")["bytes"]
    requests = _simulated("memory", f"{10 * n}x16")["bytes"]
    return [
        row(f"simulate: peak memory, {n:,} requests, at 10 times the tokens", [tokens / one],
             "times", 1.5),
        row(f"simulate: peak memory, {n:,} requests, at 10 times the requests",
             [requests / one], "times", 12),
        row("simulate: peak memory per request", [requests / (10 * n) / 1e3], "kB"),
    ]  # fmt: skip


TASKS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "solve": solve_time,
    "kernel": kernel_time,
    "milp_ratio": milp_ratio,
    "dispatch": dispatch,
    "import": import_ratio,
    "first": first_solve,
    "simulate": simulator,
    "simpy": simulator_against_simpy,
    "simulate_memory": simulator_memory,
    "chain": scale_speed.long_chain,
    "growth": scale_speed.growth,
    "decision": scale_speed.decisions,
    "batch": scale_speed.batch,
    "peers": scale_speed.peers,
    "fluid_model": serving_speed.fluid_model,
    "plan": serving_speed.whole_plan,
    "throughput_many": serving_speed.many_networks,
}


def _import_s(module: str) -> float:
    """Return the process seconds of an import; it must not load unwanted packages."""
    code = (
        f"import sys, time, {module}; print(time.process_time(),"
        f" *(m for m in {_UNWANTED} if m in sys.modules))"
    )
    seconds, *unwanted = _python("-c", code).split()
    if unwanted:
        raise RuntimeError(f"speed: import {module} loads {', '.join(unwanted)}")
    return float(seconds)


def _in_process(task: str) -> dict[str, float]:
    answer: dict[str, float] = json.loads(_python("-m", "experiments.speed", task))
    return answer


def _simulated(task: str, size: str) -> Any:
    return json.loads(_python("-m", "experiments.simulation_speed", task, size))


def _python(*arguments: str) -> str:
    done = subprocess.run(
        (sys.executable, *arguments), cwd=_ROOT, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"speed: python {' '.join(arguments)} failed: {last}")
    return done.stdout


def _dispatch_here() -> dict[str, float]:
    import resource

    from hypsolve import solve
    from hypsolve.dispatch.schedule import schedule

    small = _table_instance(10, 42, 3, 8)
    partition = solve(small, "hyperion").partition  # compiles both kernels
    assert partition is not None
    instance = _table_instance(1_000_000, 42, 3, 8)
    partition = solve(instance, "hypsplit_dp").partition
    assert partition is not None
    seconds = timed_s(lambda: schedule(instance, partition, "hypsched_rt", seed=0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def _first_here() -> dict[str, float]:
    from hypsolve import solve

    instance = _table_instance(1, 42, 3, 4)
    return {"seconds": timed_s(lambda: solve(instance, "hypsplit_dp"))}


if __name__ == "__main__":
    here = {"dispatch": _dispatch_here, "first": _first_here}
    print(json.dumps(here[sys.argv[1]]()))
