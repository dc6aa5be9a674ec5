"""SGLang: `sglang.launch_server` on every machine, `sglang_router` before several replicas."""

from __future__ import annotations

import shlex

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import BenchmarkLoad, Export, Layout, Replica
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

MAX_PREFILL_TOKENS = 16384  # the server's default
HEADROOM_TOKENS = 6
"""Tokens of the context that no request can use.

The scheduler allows ``max_req_len - prompt - 1`` output tokens, where ``max_req_len`` is the
context less one. Some versions also refuse prompts longer than ``max_req_len - 5``.
"""
MEMORY = (
    "# --mem-fraction-static: for weights and KV cache; activations and graphs take the rest"
)


def write(export: Export) -> str:
    """Write one command per machine of each replica, or one if all are in one machine."""
    layout, load = export.layout, export.load
    lines = [of_stages(layout), *of_replicas(layout), MEMORY]
    ports = Ports(30000)
    if is_data_parallel(layout):
        host = layout.replicas[0].hosts[0]
        servers = [(host, ports.take(host))]
        lines += [on(host), _data_parallel(layout, load, servers[0][1])]
    else:
        started, servers = start(layout, load, ports, Ports(50000))
        lines += started
    urls = [url(host, port) for host, port in servers]
    router, address = behind_router(layout, "python -m sglang_router.launch_router", urls)
    return "\n".join([*lines, *router, *benchmark.sglang(load, address)])


def start(
    layout: Layout, load: BenchmarkLoad, ports: Ports, meeting_points: Ports
) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the lines that start each replica, and host and port of its server."""
    lines, servers = [], []
    for replica in layout.replicas:
        host = replica.hosts[0]
        port = ports.take(host)
        servers.append((host, port))
        lines += _start(layout, replica, load, port, meeting_points)
    return lines, servers


def refusals(layout: Layout) -> list[str]:
    """Return why SGLang cannot start a layout: its machines share the stages evenly."""
    why = []
    if layout.mixed_degrees:
        why.append(
            "it takes one degree of tensor parallelism for all stages, and they have"
            f" {layout.mixed_degrees}"
        )
    for replica in layout.replicas:
        counts = {len(cards) for _, cards in replica.runs}
        if len(replica.runs) > len(replica.hosts):
            why.append(f"its stages return to a machine ({', '.join(replica.hosts)})")
        elif len(counts) > 1:
            hosts = ", ".join(f"{host} {len(cards)}" for host, cards in replica.runs)
            why.append(f"every machine must have as many stages, and they have {hosts}")
    return list(dict.fromkeys(why))


def _data_parallel(layout: Layout, load: BenchmarkLoad, port: int) -> str:
    """Return the command of one server with all replicas; its limits hold for each of them."""
    cards = [card for replica in layout.replicas for card in replica.cards]
    return command(
        visible(cards),
        "python -m sglang.launch_server --model-path MODEL",
        f"--dp-size {len(cards)}",
        f"--tp-size {layout.degree}" if layout.degree > 1 else "",
        _limits(layout, layout.replicas[0], load),
        f"--host 0.0.0.0 --port {port}",
    )


def _start(
    layout: Layout, replica: Replica, load: BenchmarkLoad, port: int, meeting_points: Ports
) -> list[str]:
    n_hosts, lines = len(replica.runs), []
    several = ""
    if n_hosts > 1:
        head = replica.hosts[0]
        address = shlex.quote(f"{head}:{meeting_points.take(head)}")
        several = f"--nnodes {n_hosts} --dist-init-addr {address}"
    counts = ",".join(map(str, layout.layers))
    for rank, (host, cards) in enumerate(replica.runs):
        lines += [
            on(host),
            command(
                f"SGLANG_PP_LAYER_PARTITION={counts}" if layout.n_stages > 1 else "",
                visible(cards),
                "python -m sglang.launch_server --model-path MODEL",
                f"--pp-size {layout.n_stages}" if layout.n_stages > 1 else "",
                f"--tp-size {layout.degree}" if layout.degree > 1 else "",
                f"{several} --node-rank {rank}" if several else "",
                _limits(layout, replica, load),
                f"--host 0.0.0.0 --port {port}",
            ),
        ]
    return lines


def _limits(layout: Layout, replica: Replica, load: BenchmarkLoad) -> str:
    """Return the flags of the simulated limits; -1 turns chunks off.

    A chunk must be whole pages: it is rounded down, to one page at least.
    """
    runtime = layout.runtime
    chunk = runtime.prompt_limit or -1
    paged = runtime.kv_admission is KvAdmission.PAGED
    if paged and chunk > 0:
        pages = max(chunk // runtime.kv_block_tokens, 1)
        chunk = pages * runtime.kv_block_tokens
    return command(
        f"--context-length {load.tokens + HEADROOM_TOKENS}",
        f"--max-running-requests {layout.sequences(replica, load)}",
        f"--chunked-prefill-size {chunk}",
        "--enable-mixed-chunk" if chunk > 0 else "",
        f"--max-prefill-tokens {chunk}" if chunk > MAX_PREFILL_TOKENS else "",
        f"--mem-fraction-static {layout.memory_share(replica, 'sglang'):g}",
        f"--page-size {runtime.kv_block_tokens}" if paged else "",
        "--dtype half" if replica.needs_half else "",
        "--kv-cache-dtype bf16" if layout.weights == "fp8" else "",
    )
