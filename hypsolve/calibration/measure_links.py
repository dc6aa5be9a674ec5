"""Throughput and latency of TCP between two hosts: `measure_link`, and `serve_links` beside it.

One host serves, the other one measures. After a greeting, the client asks for one of three
exchanges in 9 bytes, a letter and a number: `PING` of n messages, each of which comes back
before the next is sent; `UP` of n bytes, which the server counts and confirms; `DOWN` of n
bytes. Only zeros are sent, and nothing is kept.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hypsolve.problem import validation as valid
from hypsolve.problem.network import Link

PORT = 47147
GREETING = b"hypsolve link 1\n"
PING, UP, DOWN = b"P", b"U", b"D"
REQUEST = struct.Struct("!cQ")
MESSAGE = b"\0" * 64  # of a ping
CONFIRMED = b"."
CHUNK = b"\0" * 2**18
MAX_PINGS, MAX_TRANSFER = 10_000, 2**36
N_PINGS = 200
FIRST_BYTES = 2**20  # of the first transfer, which tells how many bytes the next ones get
TIMEOUT_S = 20.0
LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Measured TCP between this host and another one.

    Attributes
    ----------
    host : str
    up_bytes_per_s, down_bytes_per_s : float
        Rate from this host to the other, and back.
    round_trip_s : float
        Median time in which 64 bytes come back.
    round_trip_range_s : (float, float)
        Its 5th and 95th percentile.
    """

    host: str
    up_bytes_per_s: float
    down_bytes_per_s: float
    round_trip_s: float
    round_trip_range_s: tuple[float, float]

    def link(self) -> Link:
        """Return the link from this host to the other, each way with half of the round trip."""
        half_s = self.round_trip_s / 2
        return Link(bytes_per_s=self.up_bytes_per_s, latency_s=half_s, return_latency_s=half_s)


@valid.suggest_keywords("measure_link")
def measure_link(
    host: str,
    port: int = PORT,
    *,
    seconds: float = 3.0,
    progress: Callable[[str], None] | None = None,
) -> LinkTimes:
    """Measure TCP between this host and one where `serve_links` runs.

    Parameters
    ----------
    host : str
        Name or address; ``loopback`` serves on this host for the measurement.
    port : int
    seconds : float
        About how long each of the two transfers takes.
    progress : callable, optional
        Called with a line of text before each part.

    Returns
    -------
    LinkTimes

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or if another program answers there.
    OSError
        If the host cannot be reached, or the connection breaks.

    Examples
    --------
    >>> times = measure_link("loopback", seconds=0.05)
    >>> times.up_bytes_per_s > 1e6 and times.link().latency_s > 0
    True
    """
    valid.text("measure_link", "host", host)
    valid.real("measure_link", "seconds", seconds, strict=True)
    if host == LOOPBACK:
        with serving("127.0.0.1", 0) as found:
            return _measure("127.0.0.1", found, seconds, progress)
    port = valid.whole("measure_link", "port", port, minimum=1, maximum=65535)
    return _measure(host, port, seconds, progress)


def _measure(
    host: str, port: int, seconds: float, progress: Callable[[str], None] | None
) -> LinkTimes:
    report = progress or (lambda line: None)
    try:
        peer = socket.create_connection((host, port), TIMEOUT_S)
    except OSError as error:
        raise _named(error, host, port) from None
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            peer.sendall(GREETING)
            if _received(peer, len(GREETING)) != GREETING:
                raise ValueError(f"{host}:{port}: must run hypsolve measure --serve-link")
            report(f"{host}: round trips")
            trips = sorted(_round_trips(peer, N_PINGS))
            trip_s = statistics.median(trips)
            rates = []
            for name, exchange in (("to", _sent_s), ("from", _fetched_s)):
                report(f"{host}: bytes {name} it")
                rates.append(_rate(peer, exchange, trip_s, seconds))
        except OSError as error:
            raise _named(error, host, port) from None
    low, high = trips[len(trips) // 20], trips[-1 - len(trips) // 20]
    return LinkTimes(host, rates[0], rates[1], trip_s, (low, high))


def _named(error: OSError, host: str, port: int) -> OSError:
    """Return an error that names the host, for a message in one line."""
    if isinstance(error, TimeoutError):
        return OSError(
            error.errno or 110, f"no answer within {TIMEOUT_S:g} s", f"{host}:{port}"
        )
    return OSError(error.errno or 104, error.strerror or str(error), f"{host}:{port}")


def _round_trips(peer: socket.socket, n: int) -> list[float]:
    peer.sendall(REQUEST.pack(PING, n))
    found = []
    for _ in range(n):
        start_s = time.perf_counter()
        peer.sendall(MESSAGE)
        _received(peer, len(MESSAGE))
        found.append(time.perf_counter() - start_s)
    return found


def _rate(
    peer: socket.socket,
    exchange: Callable[[socket.socket, int], float],
    trip_s: float,
    seconds: float,
) -> float:
    """Return the bytes per second of a transfer that takes about so long."""
    n_bytes = FIRST_BYTES
    while True:
        took_s = exchange(peer, n_bytes)
        # a round trip is no part of the transfer, however short that is
        rate = n_bytes / max(took_s - trip_s, took_s / 4)
        if took_s >= seconds / 2 or n_bytes >= MAX_TRANSFER:
            return rate
        n_bytes = int(min(MAX_TRANSFER, max(2 * n_bytes, rate * seconds)))


def _sent_s(peer: socket.socket, n_bytes: int) -> float:
    start_s = time.perf_counter()
    peer.sendall(REQUEST.pack(UP, n_bytes))
    _send(peer, n_bytes)
    if _received(peer, 1) != CONFIRMED:
        raise ConnectionError("the other host lost bytes")
    return time.perf_counter() - start_s


def _fetched_s(peer: socket.socket, n_bytes: int) -> float:
    start_s = time.perf_counter()
    peer.sendall(REQUEST.pack(DOWN, n_bytes))
    _drain(peer, n_bytes)
    return time.perf_counter() - start_s


def _received(peer: socket.socket, n_bytes: int) -> bytes:
    """Return exactly so many bytes; raise if the connection ends before."""
    parts = bytearray()
    while len(parts) < n_bytes:
        part = peer.recv(n_bytes - len(parts))
        if not part:
            raise ConnectionError("the other host closed the connection")
        parts += part
    return bytes(parts)


def _drain(peer: socket.socket, n_bytes: int) -> None:
    buffer = bytearray(len(CHUNK))
    while n_bytes > 0:
        got = peer.recv_into(buffer, min(n_bytes, len(buffer)))
        if not got:
            raise ConnectionError("the other host closed the connection")
        n_bytes -= got


def _send(peer: socket.socket, n_bytes: int) -> None:
    while n_bytes > 0:
        part = CHUNK if n_bytes >= len(CHUNK) else CHUNK[:n_bytes]
        peer.sendall(part)
        n_bytes -= len(part)


def serve_links(
    address: str = "",
    port: int = PORT,
    *,
    ready: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve measurements of links until the process is interrupted.

    Clients are served one after the other, so that they do not disturb each other.

    Parameters
    ----------
    address : str
        Address to listen on. Default: all of this host.
    port : int
        0: any free one.
    ready : callable, optional
        Called with the port once clients can connect.
    stop : Event, optional
        Ends the server, within half a second, when it is set.

    Raises
    ------
    OSError
        If the address cannot be listened on.
    """
    valid.whole("serve_links", "port", port, maximum=65535)
    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        raise _named(error, address or "this host", port) from None
    with listener:
        if ready is not None:
            ready(listener.getsockname()[1])
        listener.settimeout(0.5)
        while stop is None or not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            with client, contextlib.suppress(OSError, ValueError):
                _serve(client)


def _serve(client: socket.socket) -> None:
    client.settimeout(TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _received(client, len(GREETING)) != GREETING:
        return
    client.sendall(GREETING)
    while True:
        kind, n = REQUEST.unpack(_received(client, REQUEST.size))
        if n > (MAX_PINGS if kind == PING else MAX_TRANSFER):
            raise ValueError(f"a request must be of at most {MAX_TRANSFER} bytes, got {n}")
        if kind == PING:
            for _ in range(n):
                client.sendall(_received(client, len(MESSAGE)))
        elif kind == UP:
            _drain(client, n)
            client.sendall(CONFIRMED)
        elif kind == DOWN:
            _send(client, n)
        else:
            raise ValueError(f"a request must be of a known kind, got {kind!r}")


@contextlib.contextmanager
def serving(address: str, port: int) -> Iterator[int]:
    """Serve in a thread of this process; provide the port."""
    ports: list[int] = []
    started, stop = threading.Event(), threading.Event()

    def ready(found: int) -> None:
        ports.append(found)
        started.set()

    thread = threading.Thread(
        target=serve_links,
        args=(address, port),
        kwargs={"ready": ready, "stop": stop},
        daemon=True,
    )
    thread.start()
    if not started.wait(TIMEOUT_S):
        raise OSError(98, "cannot listen", f"{address}:{port}")
    try:
        yield ports[0]
    finally:
        stop.set()
        thread.join()
