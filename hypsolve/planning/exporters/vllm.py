"""vLLM: `vllm serve`, Ray across machines, `vllm-router` before several replicas."""

from __future__ import annotations

import shlex
from collections import Counter

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import Export, Layout, Load, Replica
from hypsolve.planning.exporters.shell import (
    ROUTER_PORT,
    Ports,
    balancer,
    command,
    of_replicas,
    of_stages,
    on,
    url,
    visible,
)
from hypsolve.problem.runtime import KvAdmission

RAY_PORT = 6379
BLOCK_TOKENS = (1, 8, 16, 32, 64, 128)  # that --block-size takes


def write(export: Export) -> str:
    """Write one command per replica, or one for all if they are in one machine."""
    layout, load = export.layout, export.load
    ports, lines, urls = Ports(8000), [of_stages(layout), *of_replicas(layout)], []
    if _is_data_parallel(layout):
        host = layout.replicas[0].hosts[0]
        port = ports.take(host)
        urls.append(url(host, port))
        lines += [on(host), _data_parallel(layout, load, port)]
    else:
        for replica in layout.replicas:
            host = replica.hosts[0]
            port = ports.take(host)
            urls.append(url(host, port))
            lines += _start(layout, replica, load, port)
    address = urls[0]
    if len(urls) > 1:
        lines += balancer(layout, "vllm-router", urls)
        address = url(layout.replicas[0].hosts[0], ROUTER_PORT)
    return "\n".join([*lines, *benchmark.vllm(load, address)])


def refusals(layout: Layout, load: Load) -> list[str]:
    """Return why vLLM cannot start a layout; see `hypsolve.planning.exporters`.

    Ray's ranks follow the hosts: the driver's first, then those with fewer GPUs, then by
    address (``RayDistributedExecutor``). The stages must come in this order.
    """
    why = []
    for replica in layout.replicas:
        counts = [len(cards) for _, cards in replica.runs]
        if len(replica.runs) > len(replica.hosts):
            why.append(f"its stages return to a machine ({', '.join(replica.hosts)})")
        elif counts[1:] != sorted(counts[1:]):
            hosts = ", ".join(f"{host} {len(cards)}" for host, cards in replica.runs[1:])
            why.append(f"Ray puts machines with fewer GPUs first, and they come as {hosts}")
    clusters = Counter(
        host for replica in layout.replicas if len(replica.hosts) > 1 for host in replica.hosts
    )
    several = [host for host, n in clusters.items() if n > 1]
    if several:
        why.append(
            f"a machine has one Ray cluster, and {', '.join(several)} would need several"
        )
    limit, sequences = layout.runtime.max_num_batched_tokens, layout.runtime.max_num_seqs
    if limit is not None and limit < sequences:
        why.append(
            f"max_num_batched_tokens must be at least max_num_seqs = {sequences}, got {limit}"
        )
    return list(dict.fromkeys(why))


def _is_data_parallel(layout: Layout) -> bool:
    """Return whether one server can run all replicas.

    They must be alike GPUs of one machine, and the model dense: the ranks of a mixture of
    experts would share its experts.
    """
    cards = [card for replica in layout.replicas for card in replica.cards]
    alike = {(card.gpu, card.memory_share) for card in cards}
    several = len(layout.replicas) > 1 and layout.n_stages == 1
    return several and layout.is_one_machine and len(alike) == 1 and not layout.has_experts


def _data_parallel(layout: Layout, load: Load, port: int) -> str:
    cards = [card for replica in layout.replicas for card in replica.cards]
    return command(
        visible(cards),
        "vllm serve MODEL",
        f"--data-parallel-size {len(cards)}",
        _limits(layout, layout.replicas[0], load),
        f"--host 0.0.0.0 --port {port}",
    )


def _start(layout: Layout, replica: Replica, load: Load, port: int) -> list[str]:
    """Return the lines that start a replica: on one machine, or on a Ray cluster."""
    head, *others = replica.runs
    spread = bool(others)
    lines = []
    if spread:
        ray = command(visible(head[1]), f"ray start --head --port={RAY_PORT}")
        lines += [on(head[0]), f"{ray} --num-gpus={len(head[1])}"]
        address = shlex.quote(f"--address={head[0]}:{RAY_PORT}")
        for host, cards in others:
            ray = command(visible(cards), f"ray start {address}")
            lines += [on(host), f"{ray} --num-gpus={len(cards)}"]
    if len(replica.runs) > 2:
        lines += [
            "# Ray sorts the machines after the first by their IP addresses: these must be in",
            "# the order of the stages",
        ]
    then = f", once ray status shows {len(replica.cards)} GPUs" if spread else ""
    stages = layout.n_stages > 1
    counts = ",".join(map(str, layout.layers))
    backend = "ray" if spread else "mp"
    parallel = (
        f"--pipeline-parallel-size {layout.n_stages} --distributed-executor-backend {backend}"
    )
    serve = command(
        f"VLLM_PP_LAYER_PARTITION={counts}" if stages else "",
        "" if spread else visible(replica.cards),
        "vllm serve MODEL",
        parallel if stages else "",
        _limits(layout, replica, load),
        f"--host 0.0.0.0 --port {port}",
    )
    return [*lines, on(head[0], then), serve]


def _limits(layout: Layout, replica: Replica, load: Load) -> str:
    """Return the flags of the simulated limits."""
    runtime = layout.runtime
    tokens = layout.batched_tokens(replica, load)
    paged = (
        runtime.kv_admission is KvAdmission.PAGED and runtime.kv_block_tokens in BLOCK_TOKENS
    )
    return command(
        f"--max-num-seqs {layout.sequences(replica, load)}",
        "" if tokens is None else f"--max-num-batched-tokens {tokens}",
        f"--max-model-len {load.tokens}",
        f"--gpu-memory-utilization {layout.memory_share(replica, 'vllm'):g}",
        f"--block-size {runtime.kv_block_tokens}" if paged else "",
        "--dtype half" if replica.needs_half else "",
    )
