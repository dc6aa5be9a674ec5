"""Links measured on the loopback interface, through a relay that is slow by a known amount."""

import contextlib
import socket
import threading
import time

import pytest

from hypsolve.calibration import measure_links
from hypsolve.calibration.measure_links import (
    DOWN,
    GREETING,
    MAX_TRANSFER,
    PING,
    REQUEST,
    UP,
    LinkTimes,
    measure_link,
    serving,
)

DELAY_S, BYTES_PER_S = 0.004, 2e7


@contextlib.contextmanager
def relay(port, delay_s, bytes_per_s):
    """A port that passes bytes on to another one, each part late and at a limited rate."""

    def pump(source, target):
        free_s = time.monotonic()
        while part := source.recv(2**15):
            free_s = max(free_s, time.monotonic()) + len(part) / bytes_per_s
            time.sleep(max(0.0, free_s + delay_s - time.monotonic()))
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)

    def accept():
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            pairs = ((client, server), (server, client))
            pumps = [threading.Thread(target=pump, args=pair) for pair in pairs]
            for each in pumps:
                each.start()
            for each in pumps:
                each.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_link_is_no_better_than_what_lies_between():
    """Sleeps only ever last longer: the round trip and the rate are bounded on one side."""
    with serving("127.0.0.1", 0) as port, relay(port, DELAY_S, BYTES_PER_S) as through:
        found = measure_link("127.0.0.1", through, seconds=0.2)
    assert found.round_trip_s >= 2 * DELAY_S
    assert found.round_trip_range_s[0] >= 2 * DELAY_S
    # a round trip is taken off the seconds, of which a quarter remains at least
    assert 0 < found.up_bytes_per_s <= 4 * BYTES_PER_S
    assert 0 < found.down_bytes_per_s <= 4 * BYTES_PER_S


def test_a_link_of_a_network_file():
    """Each way has half of the round trip; the rate is that towards the other host."""
    link = LinkTimes("b", 1.25e8, 2e8, 0.003, (0.002, 0.004)).link()
    assert (link.bytes_per_s, link.latency_s, link.round_trip_s) == (1.25e8, 0.0015, 0.003)


def test_each_exchange_moves_exactly_what_was_asked():
    """The protocol by hand, with numbers of bytes that are no multiple of a part."""
    with serving("127.0.0.1", 0) as port, socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(20)
        peer.sendall(GREETING)
        assert measure_links._received(peer, len(GREETING)) == GREETING
        peer.sendall(REQUEST.pack(UP, 300_001) + b"\0" * 300_001)
        assert peer.recv(10) == b"."
        peer.sendall(REQUEST.pack(DOWN, 300_001) + REQUEST.pack(PING, 1) + b"x" * 64)
        assert measure_links._received(peer, 300_001 + 64) == b"\0" * 300_001 + b"x" * 64


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        GREETING + REQUEST.pack(DOWN, MAX_TRANSFER + 1),
        GREETING + REQUEST.pack(b"?", 1),
        GREETING + REQUEST.pack(PING, 2**40),
    ],
)
def test_the_server_hangs_up_on_anything_else_and_serves_on(sent):
    """It is open to a network: it sends no endless stream, and no stranger ends it."""
    with serving("127.0.0.1", 0) as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(20)
            peer.sendall(sent)
            rest = b""
            try:
                while part := peer.recv(1000):
                    rest += part
            except ConnectionResetError:
                pass
            assert rest in (b"", GREETING)
        assert measure_link("127.0.0.1", port, seconds=0.01).up_bytes_per_s > 0


def test_a_host_without_the_server_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match="refused") as refused:
        measure_link("127.0.0.1", port)
    assert refused.value.filename == f"127.0.0.1:{port}"


def test_another_program_is_told_from_the_server():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            client, _ = other.accept()
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port}: must run hypsolve measure"):
            measure_link("127.0.0.1", port)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host": ""}, "host must not be empty"),
        ({"host": "b", "port": 0}, "port must be at least 1, got 0"),
        ({"host": "b", "seconds": 0}, "seconds must be positive and finite, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure_link(**arguments)
