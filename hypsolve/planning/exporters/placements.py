"""`export_placement`: a placement as commands, one set per pipeline, and a router."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from hypsolve.planning.exporters import benchmark, llama_cpp, refusals, sglang, vllm
from hypsolve.planning.exporters.layout import BenchmarkLoad, Layout, Replica
from hypsolve.planning.exporters.shell import ROUTER_PORT, Ports, nginx, url
from hypsolve.planning.exporters.untold import too_long
from hypsolve.planning.place_simulation import POLICY
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.placement_records import PlacedPipeline
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Network, Tier
from hypsolve.problem.placement import PlacementProblem

SERVERS = ("vllm", "sglang", "llama.cpp")
"""Servers that placements are exported for."""
WEIGHTS = 100  # of the largest share: weights are whole numbers


@valid.suggest_keywords("export_placement")
def export_placement(plan: PlacementPlan, server: str) -> str:
    """Return a placement as commands that can be started as printed.

    Every pipeline has the commands of its own server, and nginx sends each of them its share of
    the requests, in turns: the policy ``weighted`` that was simulated.

    Parameters
    ----------
    plan : PlacementPlan
    server : str
        One of `SERVERS`.

    Returns
    -------
    str
        Replace MODEL by the model's name or folder before you start a command.

    Raises
    ------
    ValueError
        If there is no placement, or the server cannot express it; the message says why.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Node(name="box", gpu=hs.gpu("rtx-4090"))
    >>> lab = hs.Fleet(
    ...     name="lab",
    ...     sites=(hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)),),
    ...     machines=(hs.Machine(node=box, site="room"),),
    ... )
    >>> plan = hs.place("llama-3-8b", lab, output_tokens=64, time_limit_s=10)
    >>> print(export_placement(plan, "vllm").splitlines()[0])
    # pipeline 1, 100% of the requests: box 32 layers
    """
    valid.of_type("export_placement", "plan", plan, PlacementPlan)
    valid.known("server", server, SERVERS)
    if plan.placement is None:
        raise ValueError(f"export: no placement to write, {plan.result.status}")
    load = _load(plan)
    layouts = layouts_of(plan)
    for p, layout in enumerate(layouts):
        if why := refusals(layout, server):
            raise ValueError(
                f"export: {server} cannot express pipeline {p + 1}: {'; '.join(why)}"
            )
    writer = _Writer(server, load, _executor(layouts) if server == "vllm" else None)
    lines = [f"# {line}" for line in too_long(plan.query.model, load, server)]
    if server == "sglang":
        lines.append(sglang.MEMORY)
    for p, (pipeline, layout) in enumerate(zip(plan.pipelines, layouts, strict=True)):
        lines += [_title(p, pipeline, layout), *writer.start(layout)]
    address = url(*writer.servers[0])
    if len(layouts) > 1:
        weights = whole_weights([pipeline.share for pipeline in plan.pipelines])
        lines.append(f"# {POLICY}: requests take turns, in proportion to simulated rates")
        lines += nginx(f"{server.replace('.', '-')}-pipelines", writer.servers, weights)
        address = url(writer.servers[0][0], ROUTER_PORT)
    lines += _benchmark(server, load, address, writer)
    return "\n".join(lines) + "\n"


class _Writer:
    """Starts the pipelines of a server one after the other, on ports that differ."""

    def __init__(self, server: str, load: BenchmarkLoad, executor: str | None) -> None:
        first, meeting = {"vllm": (8000, 29500), "sglang": (30000, 50000)}.get(
            server, (8080, 50052)
        )
        self.server, self.load, self.executor = server, load, executor
        self.ports, self.meeting_points = Ports(first), Ports(meeting)
        self.servers: list[tuple[str, int]] = []
        self.benches: list[tuple[str, int]] = []

    def start(self, layout: Layout) -> list[str]:
        """Return the lines that start a pipeline."""
        given = (layout, self.load, self.ports, self.meeting_points)
        if self.server == "vllm":
            lines, servers = vllm.start(*given, self.executor if _spans(layout) else None)
        elif self.server == "sglang":
            lines, servers = sglang.start(*given)
        else:
            lines, servers, benches = llama_cpp.start(*given)
            self.benches += benches
        self.servers += servers
        return lines


def layouts_of(plan: PlacementPlan) -> list[Layout]:
    """Return the layout of each pipeline: its groups of GPUs have numbers of their own."""
    taken: Counter[str] = Counter()
    return [_layout(plan.result.problem, pipeline, taken) for pipeline in plan.pipelines]


def whole_weights(shares: Sequence[float]) -> list[int]:
    """Return shares as whole weights, of which the largest is at most `WEIGHTS`.

    Examples
    --------
    >>> whole_weights([0.25, 0.5, 0.25]), whole_weights([0.1, 0.9])
    ([1, 2, 1], [1, 9])
    """
    largest = max(shares)
    best: list[int] = []
    least = float("inf")
    for top in range(1, WEIGHTS + 1):
        found = [max(1, round(share / largest * top)) for share in shares]
        error = max(
            abs(n / top - share / largest) for n, share in zip(found, shares, strict=True)
        )
        if error < least - 1e-3:
            best, least = found, error
    return best


def _layout(problem: PlacementProblem, pipeline: PlacedPipeline, taken: Counter[str]) -> Layout:
    """Return the layout of a pipeline; `taken` counts the GPUs in use of each machine."""
    groups = tuple((stage.machine, stage.gpus) for stage in pipeline.stages)
    deployment = problem.deployment(groups)
    tiers, shared = [], set()
    for s, (tier, (name, gpus)) in enumerate(
        zip(deployment.network.tiers, groups, strict=True)
    ):
        machine = problem.fleet.machine(name).node
        first = (machine.card or 0) + taken[name]
        node = dataclasses.replace(
            tier.nodes[0],
            name=name if machine.gpus == 1 else f"{name}/{first}",
            host=machine.host or machine.name,
            card=machine.card if machine.gpus == 1 else first,
        )
        if machine.gpus > 1:  # its other GPUs may be in other pipelines
            shared.add(node.name)
        taken[name] += gpus
        tiers.append(Tier(name=f"{s}:{node.name}", nodes=(node,), link=tier.link))
    network = Network(name=problem.fleet.name, tiers=tuple(tiers))
    cuts = (0, *(stage.stop for stage in pipeline.stages))
    used = {tier.name: [tier.nodes[0].name] for tier in tiers}
    layout = Layout.of_split(dataclasses.replace(deployment, network=network), cuts, used)
    cards = tuple(
        dataclasses.replace(card, is_shared=card.is_shared or card.node in shared)
        for card in layout.replicas[0].cards
    )
    return dataclasses.replace(layout, replicas=(Replica(cards),))


def _load(plan: PlacementPlan) -> BenchmarkLoad:
    query, answer = plan.query, plan.answer
    rate = query.rate_per_s
    if rate is None:
        rate = 1.0 if answer is None else answer.served_per_s
    return BenchmarkLoad(
        prompt_tokens=query.prompt_tokens,
        output_tokens=query.output_tokens,
        n_requests=1000 if answer is None else answer.n_requests,
        rate_per_s=float(f"{rate:.4g}"),
        users=query.users,
        think_time_s=query.think_time_s,
        mix=query.requests,
    )


def _spans(layout: Layout) -> bool:
    return len(layout.replicas[0].hosts) > 1


def _executor(layouts: Sequence[Layout]) -> str | None:
    """Return ``mp`` if a machine would need several Ray clusters, which it cannot have.

    Raises
    ------
    ValueError
        If vLLM's own processes cannot start one of these pipelines either.
    """
    hosts = Counter(
        host for layout in layouts if _spans(layout) for host in layout.replicas[0].hosts
    )
    several = [host for host, n in hosts.items() if n > 1]
    if not several:
        return None
    for p, layout in enumerate(layouts):
        if _spans(layout) and (why := vllm.executor_refusals(layout, "mp")):
            raise ValueError(
                f"export: vllm cannot start pipeline {p + 1}: a machine has one Ray cluster,"
                f" and {', '.join(several)} would need several; {'; '.join(why)}"
            )
    return "mp"


def _title(p: int, pipeline: PlacedPipeline, layout: Layout) -> str:
    stages = ", ".join(
        f"{stage.machine} {n} layers"
        for stage, n in zip(pipeline.stages, layout.layers, strict=True)
    )
    return f"# pipeline {p + 1}, {pipeline.share:.0%} of the requests: {stages}"


def _benchmark(server: str, load: BenchmarkLoad, address: str, writer: _Writer) -> list[str]:
    if server == "vllm":
        return benchmark.vllm(load, address)
    if server == "sglang":
        return benchmark.sglang(load, address)
    return benchmark.llama_cpp(load, address, *writer.benches[0])
