"""Random placements: fleets with sites, and pipelines of unlike stages on them."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hypsolve as hs

MODES = ("stage", "pipeline", "serial")
GPUS = ("rtx-3090", "l4", "a10", "rtx-4090", "a100-40gb")
BLOCKS = 8


def small_model():
    """Return a model of few layers, which fits on every GPU."""
    model = hs.model("llama-3-8b")
    keep = (model.blocks[0], *model.blocks[1 : BLOCKS - 1], model.blocks[-1])
    return dataclasses.replace(model, name="small", blocks=keep)


def random_link(rng):
    return hs.Link(
        bytes_per_s=float(10 ** rng.uniform(7, 9.5)),
        latency_s=float(10 ** rng.uniform(-5, -2)),
        return_latency_s=float(10 ** rng.uniform(-5, -2)),
    )


def random_requests(rng, n=16):
    arrival_s = np.sort(rng.exponential(0.04, n).cumsum())
    if rng.random() < 0.5:
        arrival_s = np.round(arrival_s, 1)  # several at once
    return hs.Requests(
        float(rng.integers(0, 3)) + arrival_s, rng.integers(1, 80, n), rng.integers(1, 40, n)
    )


def random_runtime(rng):
    """Return options of the batching that bind often."""
    options: dict[str, Any] = {
        "max_num_seqs": int(rng.integers(1, 12)),
        "chunk_tokens": int(rng.choice([16, 64, 512])),
    }
    if rng.random() < 0.5:
        options["max_num_batched_tokens"] = int(rng.choice([32, 256]))
    if rng.random() < 0.5:
        options |= {"kv_admission": "paged", "kv_block_tokens": int(rng.choice([1, 16]))}
    if rng.random() < 0.4:
        options["iteration_s"] = float(rng.choice([1e-3, 1 / 256]))
    if rng.random() < 0.3:
        options["link_contention"] = True
    return options


def machine(rng, name, site, gpu, model, blocks, requests):
    """Return a machine, often with little room for KV cache beside the blocks of its stage."""
    profile = hs.gpu(gpu)
    node = hs.Node(name=name, gpu=profile)
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    if rng.random() < 0.7:
        kv = sum(block.kv_bytes_per_token for block in blocks)
        room = model.stage_weight_bytes(blocks) + kv * longest * rng.uniform(1.05, 4)
        reserved = profile.memory_bytes - room
        if reserved > 0:
            node = dataclasses.replace(node, reserved_bytes=reserved)
    return hs.Machine(node=node, site=site)


def equal_pipelines(seed, n_stages=None):
    """Return a problem, a placement of equal pipelines, and options of `simulate`."""
    rng = np.random.default_rng([seed, 1])
    model, requests = small_model(), random_requests(rng)
    n_stages = int(rng.integers(1, 4)) if n_stages is None else n_stages
    n_pipelines = int(rng.integers(2, 5))
    machines, kinds = [], [str(rng.choice(GPUS)) for _ in range(n_stages)]
    cuts = [0, *sorted(rng.choice(np.arange(2, BLOCKS), n_stages - 1, False).tolist()), BLOCKS]
    first = [
        machine(rng, "first", "room", kind, model, model.blocks[i:j], requests)
        for kind, (i, j) in zip(kinds, itertools.pairwise(cuts), strict=True)
    ]
    for p in range(n_pipelines):
        for s in range(n_stages):
            node = dataclasses.replace(first[s].node, name=f"m{p}-{s}")
            machines.append(hs.Machine(node=node, site="room"))
    fleet = hs.Fleet(
        name="lab",
        sites=(hs.Site(name="room", link=random_link(rng)),),
        machines=tuple(machines),
    )
    placement = hs.Placement(
        tuple(
            hs.Pipeline(
                tuple(
                    hs.PlacedStage(f"m{p}-{s}", 1, cuts[s], cuts[s + 1])
                    for s in range(n_stages)
                ),
                1.0,
            )
            for p in range(n_pipelines)
        )
    )
    problem = hs.PlacementProblem(model=model, fleet=fleet, requests=requests)
    options = random_runtime(rng)
    options.pop("link_contention", None)  # a tier has one link, pipelines have their own
    if rng.random() < 0.3:
        options |= {"users": int(rng.integers(1, 8)), "think_time_s": 0.05}
    return problem, placement, options


def tiers_of(problem, placement):
    """Return the deployment of equal pipelines as tiers of several nodes, and its partition."""
    first = problem.deployment(placement.pipelines[0].groups)
    tiers = []
    for s, tier in enumerate(first.network.tiers):
        names = [pipeline.stages[s].machine for pipeline in placement.pipelines]
        nodes = tuple(problem.fleet.machine(name).node for name in names)
        tiers.append(hs.Tier(name=f"tier {s}", nodes=nodes, link=tier.link))
    network = dataclasses.replace(first.network, tiers=tuple(tiers))
    return dataclasses.replace(first, network=network), placement.pipelines[0].partition


@dataclass(frozen=True)
class Case:
    """A placement to simulate."""

    problem: hs.PlacementProblem
    placement: hs.Placement
    requests: hs.Requests
    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    closed_loop: dict[str, Any] = field(default_factory=dict)

    def run(self, simulate, **more):
        """Return what a simulator makes of it, with its users if there are any."""
        options = self.options | self.closed_loop | more
        return simulate(self.problem, self.placement, self.requests, self.policy, **options)

    def simulate(self, **more):
        """Simulate it without users."""
        case = dataclasses.replace(self, closed_loop={})
        return case.run(hs.simulate_placement, **more)


def random_placement(seed, mode, policy=None):
    """Return unlike pipelines over two sites, some of several stages on one machine."""
    rng = np.random.default_rng([seed, 2, MODES.index(mode)])
    model, requests = small_model(), random_requests(rng)
    sites = [hs.Site(name=name, link=random_link(rng)) for name in ("here", "there")]
    nvlink = hs.interconnect("nvlink3", "a100-40gb")
    pipelines, machines = [], []
    for p in range(int(rng.integers(1, 5))):
        n_stages = int(rng.integers(1, 5))
        cuts = [0, *sorted(rng.choice(np.arange(2, BLOCKS), n_stages - 1, False)), BLOCKS]
        site = str(rng.choice(["here", "there"]))
        box = None
        if rng.random() < 0.3:
            gpu = hs.gpu("a100-40gb")
            box = hs.Node(name=f"box{p}", gpu=gpu, gpus=2 * n_stages, interconnect=nvlink)
            machines.append(hs.Machine(node=box, site=site))
        stages = []
        for s in range(n_stages):
            if box is None:
                name, blocks = f"m{p}-{s}", model.blocks[cuts[s] : cuts[s + 1]]
                at = str(rng.choice(["here", "there"])) if rng.random() < 0.3 else site
                one = machine(rng, name, at, str(rng.choice(GPUS)), model, blocks, requests)
                uplink = random_link(rng) if rng.random() < 0.2 else None
                machines.append(dataclasses.replace(one, uplink=uplink))
            gpus = 1 if box is None else int(rng.choice([1, 2]))
            name = f"m{p}-{s}" if box is None else box.name
            stages.append(hs.PlacedStage(name, gpus, int(cuts[s]), int(cuts[s + 1])))
        pipelines.append(hs.Pipeline(tuple(stages), float(rng.uniform(0.1, 3))))
    problem = hs.PlacementProblem(
        model=model,
        requests=hs.Requests([0.0], [100], [10]),
        fleet=hs.Fleet(
            name="lab",
            sites=tuple(sites),
            machines=tuple(machines),
            links={("here", "there"): random_link(rng)},
            entry={"here": 0.75, "there": 0.25},
        ),
    )
    policy = policy or str(rng.choice(hs.PLACEMENT_POLICIES))
    options = random_runtime(rng) | {"batching": mode}
    if mode == "serial" and rng.random() < 0.5:
        options["micro_batch_tokens"] = int(rng.choice([8, 64]))
    closed = {}
    if rng.random() < 0.3:
        closed = {"users": int(rng.integers(1, 12)), "think_time_s": 0.02}
    return Case(problem, hs.Placement(tuple(pipelines)), requests, policy, options, closed)
