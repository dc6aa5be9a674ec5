"""llama.cpp: `llama-server`, `ggml-rpc-server` on other machines, nginx before replicas."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import BenchmarkLoad, Card, Export, Layout, Replica
from hypsolve.planning.exporters.shell import (
    ROUTER_PORT,
    Ports,
    command,
    of_replicas,
    of_stages,
    on,
    url,
)
from hypsolve.planning.platforms import BACKENDS, platform_of

MAX_DEVICES = 16  # llama_max_devices()
MAX_SLOTS = 256  # LLAMA_MAX_SEQ: llama-server refuses more
SLOT_TOKENS = 256  # GGML_PAD of n_ctx_seq: the context of a slot is a multiple of these
N_GPU_LAYERS = 999  # all, and the output layer


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a replica as ``llama-server`` sees them, in the order of the stages."""

    names: tuple[str, ...]
    servers: tuple[str, ...]  # host:port of each RPC server


def write(export: Export) -> str:
    """Write the RPC servers of each replica, then its ``llama-server``."""
    layout, load = export.layout, export.load
    lines, urls = [of_stages(layout), *of_replicas(layout)], []
    ports, rpc_ports = Ports(8080), Ports(50052)
    if layout.n_stages > 1:
        lines += [
            "# -ts counts one entry more than there are layers, for the output layer counts;",
            "# llama-server keeps the embedding table in its own memory",
        ]
    if any(_has_server_of_several(replica) for replica in layout.replicas):
        lines.append(
            "# a ggml-rpc-server has several devices since October 2025 (pull request 16276)"
        )
    benches = []
    for replica in layout.replicas:
        host = replica.hosts[0]
        servers, devices = _rpc_servers(replica, rpc_ports)
        flags = _flags(layout, replica, load, devices)
        port = ports.take(host)
        urls.append((host, port))
        lines += [
            *servers,
            on(host),
            command(
                _order(replica.cards[0]),
                "llama-server",
                flags,
                f"-np {slots(layout, replica, load)} -fit off --host 0.0.0.0 --port {port}",
            ),
        ]
        n_parallel = slots(layout, replica, load)
        benches.append((flags, n_parallel))
    address = url(*urls[0])
    if len(urls) > 1:
        lines += _balancer(urls)
        address = url(urls[0][0], ROUTER_PORT)
    return "\n".join([*lines, *benchmark.llama_cpp(load, address, *benches[0])])


def refusals(layout: Layout) -> list[str]:
    """Return why llama.cpp cannot start a layout."""
    if layout.n_stages > MAX_DEVICES:
        return [f"it takes {MAX_DEVICES} devices, and there are {layout.n_stages} stages"]
    return []


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
    names = {card.node: _device(card) for card in replica.cards if card.host == home}
    servers: list[str] = []
    n_remote = 0
    for host in replica.hosts[1:]:
        cards = [card for card in replica.cards if card.host == host]
        port = ports.take(host)
        servers.append(f"{host}:{port}")
        names |= {card.node: f"RPC{n_remote + i}" for i, card in enumerate(cards)}
        n_remote += len(cards)
        devices = ",".join(map(_device, cards))
        lines += [
            on(host),
            command(
                _order(cards[0]),
                "ggml-rpc-server",
                f"--device {devices}" if cards[0].is_shared else "",
                f"--host 0.0.0.0 --port {port}",
            ),
        ]
    return lines, Devices(tuple(names[card.node] for card in replica.cards), tuple(servers))


def _has_server_of_several(replica: Replica) -> bool:
    """Return whether an RPC server of a replica has several devices."""
    remote = [card.host for card in replica.cards if card.host != replica.hosts[0]]
    return len(remote) > len(set(remote))


def _device(card: Card) -> str:
    return f"{BACKENDS.get(platform_of(card.gpu), 'CUDA')}{card.number}"


def _order(card: Card) -> str:
    """Return the variable that numbers GPUs as `nvidia-smi` does, where CUDA has several."""
    return "CUDA_DEVICE_ORDER=PCI_BUS_ID" if card.is_shared and _device(card)[0] == "C" else ""


def _flags(layout: Layout, replica: Replica, load: BenchmarkLoad, devices: Devices) -> str:
    """Return the flags that `llama-server` and `llama-batched-bench` share."""
    runtime = layout.runtime
    n_parallel = slots(layout, replica, load)
    batch = layout.batched_tokens(replica, load)
    micro = runtime.micro_batch_tokens or runtime.prompt_limit or batch
    servers = ",".join(devices.servers)
    return command(
        "-m MODEL.gguf",
        f"-ngl {N_GPU_LAYERS}",
        f"--rpc {shlex.quote(servers)}" if servers else "",
        f"--device {','.join(devices.names)}",
        f"-ts {','.join(map(str, tensor_split(layout.layers)))}" if layout.n_stages > 1 else "",
        f"-c {n_parallel * slot_tokens(load)}",
        "" if batch is None else f"-b {batch}",
        "" if micro is None else f"-ub {micro if batch is None else min(micro, batch)}",
    )


def _balancer(urls: list[tuple[str, int]]) -> list[str]:
    """Return the lines that start nginx before several servers."""
    servers = (f"    server {_nginx(f'{host}:{port}')};" for host, port in urls)
    return [
        on(urls[0][0], ", the load balancer before all replicas"),
        "cat > llama-servers.conf <<'END_OF_FILE'",
        "events {}",
        "http {",
        "  upstream llama_servers {",
        "    least_conn;",
        *servers,
        "  }",
        "  server {",
        f"    listen {ROUTER_PORT};",
        "    location / {",
        "      proxy_pass http://llama_servers;",
        "      proxy_buffering off;",
        "      proxy_read_timeout 1h;",
        "    }",
        "  }",
        "}",
        "END_OF_FILE",
        'nginx -c "$PWD/llama-servers.conf"',
    ]


def _nginx(address: str) -> str:
    """Quote an address for nginx, where a name has characters that mean something there."""
    plain = all(c.isalnum() or c in ".-_:" for c in address)
    escaped = address.replace("\\", "\\\\").replace('"', '\\"')
    return address if plain else f'"{escaped}"'
