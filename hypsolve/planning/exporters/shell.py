"""Parts of commands that several servers share: GPUs of a process, ports, load balancers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from hypsolve.planning.exporters.layout import Card, Layout
from hypsolve.planning.platforms import CPU, platform_of

ROUTER_PORT = 9000
VISIBLE = {"rocm": "HIP_VISIBLE_DEVICES"}


class Ports:
    """Hands out ports, each once per host."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._n_taken: Counter[str] = Counter()

    def take(self, host: str) -> int:
        """Return the next free port of a host."""
        self._n_taken[host] += 1
        return self._first + self._n_taken[host] - 1


def command(*words: object) -> str:
    """Join the words of a command; empty ones are left out."""
    return " ".join(str(word) for word in words if word not in ("", None))


def visible(cards: Sequence[Card]) -> str:
    """Return the variables that show a process only these GPUs of its host, in this order.

    Empty if the host has no others. CUDA would count the fastest GPU first, so the order of
    `nvidia-smi` is asked for.
    """
    if not any(card.is_shared for card in cards):
        return ""
    if platform_of(cards[0].gpu) == CPU:
        return ""
    numbers = ",".join(str(number) for card in cards for number in card.numbers)
    platform = platform_of(cards[0].gpu)
    order = "" if platform == "rocm" else "CUDA_DEVICE_ORDER=PCI_BUS_ID "
    return f"{order}{VISIBLE.get(platform, 'CUDA_VISIBLE_DEVICES')}={numbers}"


def on(host: str, then: str = "") -> str:
    """Return the comment that says where the next command runs."""
    return f"# on {host}{then}:"


def url(host: str, port: int) -> str:
    """Return the address of a server."""
    return f"http://{host}:{port}"


def behind_router(layout: Layout, program: str, urls: Sequence[str]) -> tuple[list[str], str]:
    """Return the lines that start a router of vLLM or SGLang, and the address to ask.

    A single server needs no router.

    Equal replicas take turns. Among unequal ones the router sends each request to the server
    with the fewest under way: `cache_aware` does, once loads differ by more than its
    thresholds.
    """
    if len(urls) == 1:
        return [], urls[0]
    stages = zip(*(replica.cards for replica in layout.replicas), strict=True)
    alike = all(len({(card.gpu, card.n_gpus) for card in cards}) == 1 for cards in stages)
    least = "--policy cache_aware --balance-abs-threshold 1 --balance-rel-threshold 1.0"
    host = layout.replicas[0].hosts[0]
    lines = [
        on(host, ", the load balancer before all replicas"),
        command(
            program,
            "--worker-urls",
            *map(shlex.quote, urls),
            "--policy round_robin" if alike else least,
            f"--host 0.0.0.0 --port {ROUTER_PORT}",
        ),
    ]
    return lines, url(host, ROUTER_PORT)


def nginx(
    name: str, servers: Sequence[tuple[str, int]], weights: Sequence[int] | None = None
) -> list[str]:
    """Return the lines that start nginx before several servers.

    Parameters
    ----------
    name : str
        Of the file of its configuration.
    servers : sequence of (str, int)
        Host and port.
    weights : sequence of int, optional
        Shares of the requests, which take turns. Default: each request goes to the server with
        the fewest under way.
    """
    upstream = name.replace("-", "_")
    shares = [""] * len(servers) if weights is None else [f" weight={n}" for n in weights]
    rows = [
        f"    server {_nginx(f'{host}:{port}')}{share};"
        for (host, port), share in zip(servers, shares, strict=True)
    ]
    return [
        on(servers[0][0], ", the load balancer before all replicas"),
        f"cat > {name}.conf <<'END_OF_FILE'",
        "events {}",
        "http {",
        f"  upstream {upstream} {{",
        *(["    least_conn;"] if weights is None else []),
        *rows,
        "  }",
        "  server {",
        f"    listen {ROUTER_PORT};",
        "    location / {",
        f"      proxy_pass http://{upstream};",
        "      proxy_buffering off;",
        "      proxy_read_timeout 1h;",
        "    }",
        "  }",
        "}",
        "END_OF_FILE",
        f'nginx -c "$PWD/{name}.conf"',
    ]


def _nginx(address: str) -> str:
    """Quote an address for nginx, where a name has characters that mean something there."""
    plain = all(c.isalnum() or c in ".-_:" for c in address)
    escaped = address.replace("\\", "\\\\").replace('"', '\\"')
    return address if plain else f'"{escaped}"'


def is_data_parallel(layout: Layout) -> bool:
    """Return whether one server can run all replicas.

    They must be alike GPUs of one machine, and the model dense: the ranks of a mixture of
    experts would share its experts.
    """
    cards = [card for replica in layout.replicas for card in replica.cards]
    alike = {(card.gpu, card.memory_share) for card in cards}
    several = len(layout.replicas) > 1 and layout.n_stages == 1
    return several and layout.is_one_machine and len(alike) == 1 and not layout.has_experts


def of_stages(layout: Layout) -> str:
    """Return the comment that names the layers of each stage."""
    stages = (f"{tier} {n}" for tier, n in zip(layout.tiers, layout.layers, strict=True))
    return f"# layers of each stage: {', '.join(stages)}"


def of_replicas(layout: Layout) -> list[str]:
    """Return comments that name the replicas, if there are several."""
    if len(layout.replicas) == 1:
        return []
    rows = [" -> ".join(card.node for card in replica.cards) for replica in layout.replicas]
    return [f"# {len(rows)} replicas, data parallel:", *(f"#   {row}" for row in rows)]
