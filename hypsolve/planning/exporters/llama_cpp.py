"""llama.cpp: `llama-server`, `ggml-rpc-server` on other machines, nginx before replicas."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import BenchmarkLoad, Card, Export, Layout, Replica
from hypsolve.planning.exporters.shell import (
    ROUTER_PORT,
    Ports,
    command,
    nginx,
    of_replicas,
    of_stages,
    on,
    url,
)
from hypsolve.planning.platforms import BACKENDS, CPU, platform_of, threads_of

MAX_DEVICES = 16  # llama_max_devices()
MAX_SLOTS = 256  # LLAMA_MAX_SEQ: llama-server refuses more
SLOT_TOKENS = 256  # GGML_PAD of n_ctx_seq: the context of a slot is a multiple of these
N_GPU_LAYERS = 999  # all, and the output layer


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a replica as ``llama-server`` sees them, in the order of the stages.

    The CPU of its own host is none: it computes the layers that no device has, the first ones.
    """

    names: tuple[str, ...]
    servers: tuple[str, ...]  # host:port of each RPC server
    on_cpu: Card | None = None  # the first stage, if ``llama-server`` computes it itself


def write(export: Export) -> str:
    """Write the RPC servers of each replica, then its ``llama-server``."""
    layout, load = export.layout, export.load
    lines = [of_stages(layout), *of_replicas(layout)]
    ports, rpc_ports = Ports(8080), Ports(50052)
    if layout.n_stages > 1 + _is_cpu(layout.replicas[0].cards[0]):
        lines += [
            "# -ts counts one entry more than there are layers, for the output layer counts;",
            "# llama-server keeps the embedding table in its own memory",
        ]
    if any(_has_server_of_several(replica) for replica in layout.replicas):
        lines.append(
            "# a ggml-rpc-server has several devices since October 2025 (pull request 16276)"
        )
    started, urls, benches = start(layout, load, ports, rpc_ports)
    lines += started
    address = url(*urls[0])
    if len(urls) > 1:
        lines += nginx("llama-servers", urls)
        address = url(urls[0][0], ROUTER_PORT)
    return "\n".join([*lines, *benchmark.llama_cpp(load, address, *benches[0])])


def start(
    layout: Layout, load: BenchmarkLoad, ports: Ports, rpc_ports: Ports
) -> tuple[list[str], list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the lines that start each replica, host and port, and flags of its benchmark."""
    lines, urls, benches = [], [], []
    for replica in layout.replicas:
        host = replica.hosts[0]
        servers, devices = _rpc_servers(replica, rpc_ports)
        flags = _flags(layout, replica, load, devices)
        port = ports.take(host)
        urls.append((host, port))
        n_parallel = slots(layout, replica, load)
        benches.append((flags, n_parallel))
        lines += [
            *servers,
            on(host),
            command(
                _order([card for card in replica.cards if card.host == host]),
                "llama-server",
                flags,
                f"-np {n_parallel} -fit off --host 0.0.0.0 --port {port}",
            ),
        ]
    return lines, urls, benches


def refusals(layout: Layout) -> list[str]:
    """Return why llama.cpp cannot start a layout."""
    if layout.n_stages > MAX_DEVICES:
        return [f"it takes {MAX_DEVICES} devices, and there are {layout.n_stages} stages"]
    why = []
    for replica in layout.replicas:
        own = [card for card in replica.cards if _is_cpu(card)]
        home = [card for card in own if card.host == replica.hosts[0]]
        if home and home[0] is not replica.cards[0]:
            why.append(
                "a CPU beside llama-server computes the first layers alone, and"
                f" {home[0].node} has later ones"
            )
        for host, n in Counter(card.host for card in own).items():
            if n > 1:
                why.append(f"{host} has one CPU, and {n} stages on it")
    return list(dict.fromkeys(why))


def slots(layout: Layout, replica: Replica, load: BenchmarkLoad) -> int:
    """Return the slots of a replica's server: the requests at once, at most `MAX_SLOTS`."""
    room = min(card.room_tokens for card in replica.cards) // slot_tokens(load)
    return int(min(layout.sequences(replica, load), MAX_SLOTS, max(room, 1)))


def slot_tokens(load: BenchmarkLoad) -> int:
    """Return the context of each slot, which llama.cpp would round up by itself."""
    return -(-load.tokens // SLOT_TOKENS) * SLOT_TOKENS


def tensor_split(layers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values of ``-ts`` that put `layers` of the model on each device.

    llama.cpp puts layer ``i`` of n on the first device whose cumulative share exceeds
    ``i / (n + 1)``, in float32, and counts the output layer as layer n. Whole numbers that add
    up to n + 1 give exact cumulative sums ``c``; ``c / (n + 1)`` and ``i / (n + 1)`` are then
    rounded alike, so that no layer falls on the wrong side.
    """
    return (*layers[:-1], layers[-1] + 1)


def _rpc_servers(replica: Replica, ports: Ports) -> tuple[list[str], Devices]:
    """Return the lines that start the RPC servers of a replica, and its devices.

    GPUs of the host that runs ``llama-server`` are local. Every other host has one server with
    all its GPUs, for tensors are copied directly between the devices of one server alone.
    ``llama-server`` numbers the devices of all servers in the order of ``--rpc``.
    """
    home = replica.hosts[0]
    lines: list[str] = []
    first = replica.cards[0]
    on_cpu = first if _is_cpu(first) else None
    names = {
        card.node: _device(card)
        for card in replica.cards
        if card.host == home and card is not on_cpu
    }
    servers: list[str] = []
    n_remote = 0
    for host in replica.hosts[1:]:
        cards = [card for card in replica.cards if card.host == host]
        port = ports.take(host)
        servers.append(f"{host}:{port}")
        names |= {card.node: f"RPC{n_remote + i}" for i, card in enumerate(cards)}
        n_remote += len(cards)
        devices = ",".join(map(_device, cards))
        has_cpu = any(map(_is_cpu, cards))
        lines += [
            on(host),
            command(
                _order(cards),
                "ggml-rpc-server",
                f"--device {devices}" if cards[0].is_shared or has_cpu else "",
                _threads(cards) if has_cpu else "",
                f"--host 0.0.0.0 --port {port}",
            ),
        ]
    offloaded = replica.cards[1:] if on_cpu else replica.cards
    return lines, Devices(tuple(names[each.node] for each in offloaded), tuple(servers), on_cpu)


def _has_server_of_several(replica: Replica) -> bool:
    """Return whether an RPC server of a replica has several devices."""
    remote = [card.host for card in replica.cards if card.host != replica.hosts[0]]
    return len(remote) > len(set(remote))


def _is_cpu(card: Card) -> bool:
    return platform_of(card.gpu) == CPU


def _threads(cards: Sequence[Card]) -> str:
    """Return the flag of as many threads as the CPU among cards was measured with."""
    found = [threads_of(card.gpu) for card in cards if _is_cpu(card)]
    return f"-t {found[0]}" if found and found[0] else ""


def _device(card: Card) -> str:
    if _is_cpu(card):
        return "CPU"
    return f"{BACKENDS.get(platform_of(card.gpu), 'CUDA')}{card.number}"


def _order(cards: Sequence[Card]) -> str:
    """Return the variable that numbers GPUs as `nvidia-smi` does, where CUDA has several."""
    shared = any(card.is_shared and _device(card).startswith("CUDA") for card in cards)
    return "CUDA_DEVICE_ORDER=PCI_BUS_ID" if shared else ""


def _flags(layout: Layout, replica: Replica, load: BenchmarkLoad, devices: Devices) -> str:
    """Return the flags that `llama-server` and `llama-batched-bench` share."""
    runtime = layout.runtime
    n_parallel = slots(layout, replica, load)
    batch = layout.batched_tokens(replica, load)
    micro = runtime.micro_batch_tokens or runtime.prompt_limit or batch
    servers = ",".join(devices.servers)
    layers, threads = layout.layers, ""
    n_offloaded = N_GPU_LAYERS
    if devices.on_cpu:
        layers, threads = layers[1:], _threads([devices.on_cpu])
        n_offloaded = sum(layers) + 1  # the last ones, and the output layer
    shares = ",".join(map(str, tensor_split(layers))) if len(layers) > 1 else ""
    return command(
        "-m MODEL.gguf",
        threads,
        f"-ngl {n_offloaded}" if devices.names else "",
        f"--rpc {shlex.quote(servers)}" if servers else "",
        f"--device {','.join(devices.names) or 'none'}",
        f"-ts {shares}" if shares else "",
        f"-c {n_parallel * slot_tokens(load)}",
        "" if batch is None else f"-b {batch}",
        "" if micro is None else f"-ub {micro if batch is None else min(micro, batch)}",
    )
