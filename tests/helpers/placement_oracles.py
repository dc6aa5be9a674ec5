"""Random tiny placement problems, and the best placement by enumeration of named machines.

Nothing here knows classes of machines, patterns or integer programs: all sequences of groups of
GPUs, all cuts, and all sets of pipelines that have enough GPUs are tried.
"""

import itertools
import math

import numpy as np
from scipy.optimize import linprog

import hypsolve as hs
from hypsolve.problem.interconnect import AllReduce
from hypsolve.problem.placement import Pipeline, PlacedStage
from hypsolve.problem.placement_evaluation import link_bytes_per_request, link_rate
from hypsolve.problem.serving_evaluation import check_serving, evaluate_serving, latencies_at

MEGA = 1e6


def random_placement(rng, objective=None):
    """A fleet of 2 to 4 machines with at most 4 GPUs, and a model of 3 to 6 blocks."""
    objective = objective or rng.choice(["throughput", "goodput", "cost"])
    n_sites = int(rng.choice([1, 1, 2]))
    sites = tuple(hs.Site(name=name, link=_link(rng, 1e-4)) for name in "xy"[:n_sites])
    names = [site.name for site in sites]
    gpus = [_gpu(rng, f"gpu{g}") for g in range(2)]
    inner = _interconnect(rng)
    machines, n_gpus, kinds = [], 0, []
    for name in "abcd"[: rng.integers(2, 5)]:
        if kinds and rng.random() < 0.4:
            kind = kinds[rng.integers(len(kinds))]
        else:
            kind = (
                int(rng.integers(2)),
                int(rng.choice([1, 1, 2, 3])),
                str(rng.choice(names)),
                float(rng.choice([1.0, 2.0, 3.5])),
                _link(rng, 1e-3) if rng.random() < 0.15 else None,
            )
        n = kind[1] if n_gpus + kind[1] <= 4 else 1
        n_gpus += n
        if n_gpus > 4:
            break
        kinds.append(kind)
        node = hs.Node(
            name=name, gpu=gpus[kind[0]], gpus=n, interconnect=inner if n > 1 else None
        )
        machines.append(
            hs.Machine(node=node, site=kind[2], price_per_hour=kind[3], uplink=kind[4])
        )
    model = _model(rng)
    pins = ()
    if n_sites == 2 and rng.random() < 0.3:
        start = int(rng.integers(model.n_blocks))
        pins = (hs.Pin(start=start, stop=start + 1, sites=(str(rng.choice(names)),)),)
    apart = ()
    if rng.random() < 0.15:
        apart = (frozenset(m.name for m in machines[:2]),)
    entry = {"x": 0.25, "y": 0.75} if n_sites == 2 and rng.random() < 0.5 else {}
    slow = hs.Link(
        bytes_per_s=float(rng.choice([2e5, 2e6, 1e8])),
        latency_s=float(rng.choice([1e-3, 1e-2])),
    )
    fleet = hs.Fleet(
        name="tiny", sites=sites, machines=tuple(machines), default_link=slow, entry=entry,
        pins=pins, apart=apart,
    )  # fmt: skip
    runtime = hs.Runtime(
        name="toy",
        batching=str(rng.choice(["stage", "pipeline", "serial"])),
        kv_admission=str(rng.choice(["reserve", "paged"])),
        max_num_seqs=int(rng.choice([2, 8, 64])),
        chunk_tokens=int(rng.choice([32, 512])),
        iteration_s=float(rng.choice([0.0, 1e-3])),
    )
    targets = {}
    if objective != "throughput" and (objective == "goodput" or rng.random() < 0.5):
        name = str(rng.choice(["ttft_slo_s", "tpot_slo_s", "latency_slo_s"]))
        scale = {"ttft_slo_s": 0.2, "tpot_slo_s": 0.03, "latency_slo_s": 0.6}[name]
        targets[name] = float(scale * rng.choice([0.5, 1.0, 4.0]))
    return hs.PlacementProblem(
        model=model,
        fleet=fleet,
        requests=hs.Requests([0.0], [int(rng.choice([16, 100]))], [int(rng.choice([1, 20]))]),
        runtime=runtime,
        objective=objective,
        requests_per_s=float(rng.choice([1.0, 10.0, 40.0]))
        if objective in ("cost", "latency")
        else None,
        degrees=str(rng.choice(["common", "free", "one"])),
        max_stages=int(rng.choice([2, 3, 4])),
        **targets,
    )


def _link(rng, latency_s):
    return hs.Link(
        bytes_per_s=float(rng.choice([1e6, 1e8, 1e9])),
        latency_s=float(latency_s * rng.choice([1, 10])),
    )


def _gpu(rng, name):
    return hs.GpuProfile(
        name=name,
        t0_s=float(rng.choice([1e-4, 1e-3])),
        flops_per_s=float(rng.choice([1e12, 4e12])),
        bytes_per_s=float(rng.choice([1e11, 4e11])),
        memory_bytes=float(rng.choice([250, 400, 900]) * MEGA),
    )


def _interconnect(rng):
    seconds_per_byte = float(rng.choice([1e-10, 1e-8, 1e-6]))
    pair = AllReduce(
        library="nccl", degree=2, switch_bytes=1e6, small_s=float(rng.choice([1e-5, 5e-4])),
        small_s_per_byte=seconds_per_byte, large_s=1e-4, large_s_per_byte=seconds_per_byte,
    )  # fmt: skip
    return hs.Interconnect(name="inner", all_reduces=(pair,))


def _model(rng):
    def block(kind, **changes):
        given = {
            "weight_bytes": 100 * 10**6, "always_read_bytes": 100 * 10**6,
            "kv_bytes_per_token": int(rng.choice([2_000, 50_000])),
            "output_bytes_per_token": 2_000, "flops_per_token": 2e8,
            "attention_flops_per_pair": 1e4, "collectives": 2,
            "collective_bytes_per_token": 2_000,
        }  # fmt: skip
        return hs.Block(kind=kind, **(given | changes))

    layer = block("layer")
    layers = [layer] * int(rng.integers(1, 5))
    if rng.random() < 0.3:
        layers[0] = block("dense", weight_bytes=150 * 10**6, flops_per_token=4e8)
    ends = {"kv_bytes_per_token": 0, "weight_bytes": 40 * 10**6}
    embedding = block("embedding", **ends, flops_per_token=0.0, always_read_bytes=0)
    head = block("head", **ends, always_read_bytes=40 * 10**6, last_token_only=True)
    return hs.Model(name="tiny", blocks=(embedding, *layers, head), n_heads=4, n_kv_heads=2)


def best_value(problem):
    """The best value of the objective by enumeration: 0 or inf if nothing carries requests."""
    offers = _offers(problem)
    best = 0.0 if not problem.objective.needs_rate else math.inf
    for chosen in _sets(problem, offers):
        load = _load(problem, chosen)
        if problem.objective.needs_rate:
            if load >= problem.requests_per_s * (1 - 1e-9):
                used = {name for each in chosen for name in each[0]}
                best = min(best, sum(problem.fleet.machine(m).price_per_hour for m in used))
        else:
            best = max(best, load)
    return best


def least_latency(problem, n_parts=6):
    """The least mean latency of all placements whose loads are multiples of rate / n_parts."""
    loads = [problem.requests_per_s * j / n_parts for j in range(1, n_parts + 1)]
    delays = {}
    for used, sent, instance, partition, most in _pipelines(problem):
        times = [latencies_at(instance, partition, x) if x <= most else None for x in loads]
        own = [math.inf if t is None else t.latency_s for t in times]
        key = tuple(sorted(used.items())), tuple(sorted(sent.items()))
        delays[key] = np.minimum(delays.get(key, np.full(n_parts, math.inf)), own)
    offers = [
        (dict(used), dict(sent), tuple(own))
        for (used, sent), own in delays.items()
        if math.isfinite(own[0])
    ]
    best = math.inf
    for chosen in _sets(problem, offers):
        for parts in _compositions(n_parts, len(chosen)):
            carried = {}
            for j, (_, sent, _) in zip(parts, chosen, strict=True):
                for link, size in sent.items():
                    carried[link] = carried.get(link, 0.0) + size * loads[j - 1]
            if all(size <= link_rate(problem, link) for link, size in carried.items()):
                weighted = [j * own[j - 1] for j, (*_, own) in zip(parts, chosen, strict=True)]
                best = min(best, sum(weighted) / n_parts)
    return best


def _compositions(total, n):
    """All ways to write a number as a sum of n positive ones."""
    if n == 1:
        yield (total,)
    for first in range(1, total - n + 2) if n > 1 else ():
        for rest in _compositions(total - first, n - 1):
            yield (first, *rest)


def _offers(problem):
    """Pipelines as (GPUs of each machine, bytes on shared links, rate), the best of each."""
    best = {}
    for used, sent, _, _, rate in _pipelines(problem):
        key = tuple(sorted(used.items())), tuple(sorted(sent.items()))
        best[key] = max(best.get(key, 0.0), rate)
    return [(dict(used), dict(sent), rate) for (used, sent), rate in best.items() if rate > 0]


def _pipelines(problem):
    """All pipelines: GPUs of each machine, bytes on links, instance, partition, rate."""
    for groups in _sequences(problem):
        try:
            instance = problem.serving_instance(groups)
        except ValueError:
            continue
        n, n_blocks = len(groups), problem.model.n_blocks
        for inner in itertools.combinations(range(1, n_blocks), n - 1):
            cuts = (0, *inner, n_blocks)
            partition = hs.Partition(cuts)
            if not _keeps_pins(problem, groups, cuts) or check_serving(instance, partition):
                continue
            stages = tuple(
                PlacedStage(machine, gpus, cuts[s], cuts[s + 1])
                for s, (machine, gpus) in enumerate(groups)
            )
            sent = link_bytes_per_request(problem, Pipeline(stages, 0.0))
            used = {}
            for machine, gpus in groups:
                used[machine] = used.get(machine, 0) + gpus
            rate = evaluate_serving(instance, partition).fluid_requests_per_s
            yield used, sent, instance, partition, rate


def _sequences(problem, before=()):
    for machine in problem.fleet.machines:
        for degree in problem.degrees_of(machine):
            groups = (*before, (machine.name, degree))
            if sum(d for name, d in groups if name == machine.name) > machine.node.gpus:
                continue
            if problem.degrees == "common" and len({d for _, d in groups}) > 1:
                continue
            names = {name for name, _ in groups}
            if any(len(names & apart) > 1 for apart in problem.fleet.apart):
                continue
            if len(groups) <= min(problem.max_stages, problem.model.n_blocks):
                yield groups
                yield from _sequences(problem, groups)


def _keeps_pins(problem, groups, cuts):
    for pin in problem.fleet.pins:
        for s, (name, _) in enumerate(groups):
            held = range(max(cuts[s], pin.start), min(cuts[s + 1], pin.stop))
            if len(held) and problem.fleet.machine(name).site not in pin.sites:
                return False
    return True


def _sets(problem, offers, first=0, free=None):
    """Sets of pipelines, copies included, that have enough GPUs."""
    if free is None:
        free = {machine.name: machine.node.gpus for machine in problem.fleet.machines}
    yield []
    for at in range(first, len(offers)):
        used = offers[at][0]
        if all(free[name] >= n for name, n in used.items()):
            left = {name: n - used.get(name, 0) for name, n in free.items()}
            for others in _sets(problem, offers, at, left):
                yield [offers[at], *others]


def _load(problem, chosen):
    """The largest load of some pipelines together."""
    links = sorted({link for _, sent, _ in chosen for link in sent})
    if not links:
        return sum(rate for _, _, rate in chosen)
    rows = [
        [sent.get(link, 0.0) / link_rate(problem, link) for _, sent, _ in chosen]
        for link in links
    ]
    found = linprog(
        -np.ones(len(chosen)), rows, np.ones(len(links)), bounds=[(0, r) for *_, r in chosen]
    )
    return -found.fun
