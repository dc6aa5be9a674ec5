"""vLLM: `vllm serve`, Ray across machines, `vllm-router` before several replicas.

*Executors*, as of vLLM 0.33. Within a machine, ``mp`` starts a process for each GPU, in the
order of ``CUDA_VISIBLE_DEVICES``. Across machines there are two:

- ``ray`` gives the first ranks to the machine of ``vllm serve``, and the others by Ray's node
  id, which is random (``get_bundles_sorted_by_node``; before 0.23, by the number of GPUs and
  the address). Within a machine, GPUs are ranked by their numbers. So Ray is used where the
  order is known, for two machines, or does not matter, for machines that are alike.
- ``mp`` with ``--nnodes`` (from 0.12 on) numbers the machines by ``--node-rank``, and every
  machine must have as many GPUs.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import BenchmarkLoad, Card, Export, Layout, Replica
from hypsolve.planning.exporters.shell import (
    Ports,
    behind_router,
    command,
    is_data_parallel,
    of_replicas,
    of_stages,
    on,
    url,
    visible,
)
from hypsolve.problem.runtime import KvAdmission

RAY_PORT = 6379
EXECUTORS = ("ray", "mp")
"""Executors of pipelines over several machines."""
RAY_HOSTS = 2  # whose order is known
NEAR_S = 1e-3  # latency within a local network, where any two machines are as near
BLOCK_TOKENS = (1, 8, 16, 32, 64, 128, 256)  # that --block-size takes


def write(export: Export) -> str:
    """Write one command per replica, or one for all if they are in one machine."""
    layout, load = export.layout, export.load
    ports, lines, urls = Ports(8000), [of_stages(layout), *of_replicas(layout)], []
    if is_data_parallel(layout):
        host = layout.replicas[0].hosts[0]
        port = ports.take(host)
        urls.append(url(host, port))
        lines += [on(host), _data_parallel(layout, load, port)]
    else:
        started, servers = start(layout, load, ports, Ports(29500), export.executor)
        lines += started
        urls += [url(host, port) for host, port in servers]
    router, address = behind_router(layout, "vllm-router", urls)
    return "\n".join([*lines, *router, *benchmark.vllm(load, address)])


def start(
    layout: Layout,
    load: BenchmarkLoad,
    ports: Ports,
    meeting_points: Ports,
    asked: str | None = None,
) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the lines that start each replica, and host and port of its server."""
    executor, lines = _executor(layout, asked)
    servers = []
    for replica in layout.replicas:
        host = replica.hosts[0]
        port = ports.take(host)
        servers.append((host, port))
        at = meeting_points if executor == "mp" else None
        lines += _start(layout, replica, load, port, at)
    return lines, servers


def refusals(layout: Layout) -> list[str]:
    """Return why vLLM cannot start a layout; see `hypsolve.planning.exporters.refusals`."""
    against_mp, why = _against_mp(layout), []
    if against_mp:
        why += [
            reason if reason == against_mp else f"{reason}, and {against_mp}"
            for reason in _against_ray(layout)
        ]
    if layout.mixed_degrees:
        why.append(
            "it takes one degree of tensor parallelism for all stages, and they have"
            f" {layout.mixed_degrees}"
        )
    limit, sequences = layout.runtime.max_num_batched_tokens, layout.runtime.max_num_seqs
    if limit is not None and limit < sequences:
        why.append(
            f"max_num_batched_tokens must be at least max_num_seqs = {sequences}, got {limit}"
        )
    return why


def executor_refusals(layout: Layout, executor: str) -> list[str]:
    """Return why an executor cannot start the pipelines that span several machines."""
    if all(len(replica.runs) == 1 for replica in layout.replicas):
        alone = "every pipeline is in one machine, which has executor 'mp'"
        return [] if executor == "mp" else [alone]
    if executor == "ray":
        return _against_ray(layout)
    why = _against_mp(layout)
    return [why] if why else []


def _executor(layout: Layout, asked: str | None) -> tuple[str, list[str]]:
    """Return the executor across machines, and a comment if Ray is not as usual."""
    if asked != "mp":
        why = _against_ray(layout)
        if why:
            return "mp", [f"# executor mp (vLLM 0.12 or later): {'; '.join(why)}"]
    spans = max(len(replica.hosts) for replica in layout.replicas)
    if asked == "mp" or spans <= RAY_HOSTS:
        return asked or "ray", []
    return "ray", [
        "# executor ray: it may change the order of machines after the first, all alike"
    ]


def _against_ray(layout: Layout) -> list[str]:
    """Return why Ray cannot place the stages as planned."""
    why = []
    for replica in layout.replicas:
        if len(replica.runs) > len(replica.hosts):
            why.append(_return_to(replica))
            continue
        if len(replica.hosts) > RAY_HOSTS and not _are_alike(layout, replica):
            why.append("Ray puts machines after the first in no fixed order, and they differ")
        if len(replica.hosts) > 1:
            why += [
                f"Ray ranks the GPUs of a machine by number, and {host} has"
                f" {', '.join(str(card.number) for card in cards)}"
                for host, cards in replica.runs
                if _is_reordered(cards)
            ]
    clusters = Counter(
        host for replica in layout.replicas if len(replica.hosts) > 1 for host in replica.hosts
    )
    several = [host for host, n in clusters.items() if n > 1]
    if several:
        names = ", ".join(several)
        why.append(f"a machine has one Ray cluster, and {names} would need several")
    return list(dict.fromkeys(why))


def _against_mp(layout: Layout) -> str:
    """Return why vLLM's own processes (``--nnodes``) cannot start the stages; empty if not.

    The machines of each replica must have equally many stages, in a row.
    """
    for replica in layout.replicas:
        if len(replica.runs) > len(replica.hosts):
            return _return_to(replica)
        if len({len(cards) for _, cards in replica.runs}) > 1:
            hosts = ", ".join(f"{host} {len(cards)}" for host, cards in replica.runs)
            return f"without Ray every machine must have as many stages; they have {hosts}"
    return ""


def _return_to(replica: Replica) -> str:
    return f"its stages return to a machine ({', '.join(replica.hosts)})"


def _are_alike(layout: Layout, replica: Replica) -> bool:
    """Return whether machines after the first can change places.

    They have the same GPUs for the same numbers of layers, and are in one local network.
    """
    at = 0
    rows: list[tuple[object, ...]] = []
    ways: list[tuple[float, float]] = []
    for _, cards in replica.runs:
        end = at + len(cards)
        kinds = [(card.gpu, card.n_gpus, card.memory_share) for card in cards]
        rows.append((kinds, layout.layers[at:end], layout.ways[at : end - 1]))
        ways += layout.ways[end - 1 : end]
        at = end
    near = all(latency_s <= NEAR_S for _, latency_s in ways)
    return near and len(set(ways)) == 1 and all(row == rows[1] for row in rows[2:])


def _is_reordered(cards: Sequence[Card]) -> bool:
    """Return whether Ray would give unequal GPUs of a machine to other stages."""
    numbers = [card.number for card in cards]
    alike = len({(card.gpu, card.n_gpus) for card in cards}) == 1
    return numbers != sorted(numbers) and not alike


def _data_parallel(layout: Layout, load: BenchmarkLoad, port: int) -> str:
    cards = [card for replica in layout.replicas for card in replica.cards]
    return command(
        visible(cards),
        "vllm serve MODEL",
        f"--data-parallel-size {len(cards)}",
        tensor_parallel(layout),
        _limits(layout, layout.replicas[0], load),
        f"--host 0.0.0.0 --port {port}",
    )


def _on_ray(replica: Replica) -> list[str]:
    """Return the lines that start the Ray cluster of a replica."""
    (head, cards), *others = replica.runs
    ray = command(visible(cards), f"ray start --head --port={RAY_PORT}")
    lines = [on(head), f"{ray} --num-gpus={_n_gpus(cards)}"]
    address = shlex.quote(f"--address={head}:{RAY_PORT}")
    for host, of_host in others:
        ray = command(visible(of_host), f"ray start {address}")
        lines += [on(host), f"{ray} --num-gpus={_n_gpus(of_host)}"]
    return lines


def _start(
    layout: Layout,
    replica: Replica,
    load: BenchmarkLoad,
    port: int,
    meeting_points: Ports | None,
) -> list[str]:
    """Return the lines that start a replica.

    It is on one machine, or on a Ray cluster, or on several machines that meet at a port
    (`meeting_points`).
    """
    n_hosts, head = len(replica.runs), replica.hosts[0]
    if n_hosts == 1:
        return [on(head), _serve(layout, replica, load, "mp", visible(replica.cards), port)]
    if meeting_points is None:
        then = f", once ray status shows {_n_gpus(replica.cards)} GPUs"
        serve = _serve(layout, replica, load, "ray", "", port)
        return [*_on_ray(replica), on(head, then), serve]
    lines = []
    address = f"--master-addr {shlex.quote(head)} --master-port {meeting_points.take(head)}"
    for rank, (host, cards) in enumerate(replica.runs):
        nodes = f"--nnodes {n_hosts} --node-rank {rank} {address}"
        headless = " --headless" if rank else ""
        serve = _serve(layout, replica, load, "mp", visible(cards), None if rank else port)
        lines += [on(host), f"{serve} {nodes}{headless}"]
    return lines


def _serve(
    layout: Layout,
    replica: Replica,
    load: BenchmarkLoad,
    backend: str,
    shown: str,
    port: int | None,
) -> str:
    several, counts = layout.n_stages > 1, ",".join(map(str, layout.layers))
    return command(
        f"VLLM_PP_LAYER_PARTITION={counts}" if several else "",
        shown,
        "vllm serve MODEL",
        f"--pipeline-parallel-size {layout.n_stages}" if several else "",
        tensor_parallel(layout),
        f"--distributed-executor-backend {backend}" if several else "",
        _limits(layout, replica, load),
        "" if port is None else f"--host 0.0.0.0 --port {port}",
    )


def tensor_parallel(layout: Layout) -> str:
    """Return the flag of the GPUs that compute as one; empty for single GPUs."""
    return f"--tensor-parallel-size {layout.degree}" if layout.degree > 1 else ""


def _n_gpus(cards: Sequence[Card]) -> int:
    return sum(card.n_gpus for card in cards)


def _limits(layout: Layout, replica: Replica, load: BenchmarkLoad) -> str:
    """Return the flags of the simulated limits.

    A checkpoint of 8 bits may ask for a KV cache of 8 bits; one of 16 was simulated.
    """
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
        "--kv-cache-dtype bfloat16" if layout.weights == "fp8" else "",
    )
