"""Experiment `router`: the time that `hypsolve route` adds to a request on one core.

`python -m experiments.router_overhead [--quick] [--out FOLDER]` starts the router in a process
of its own, pinned to one core, before a stub server that answers at once on loopback. Requests
arrive in a Poisson stream of 200 per second through the router, and as many go directly to the
stub, in turns. A row is a round of one kind of answer and one way.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.record import machine, note_session, provenance, recording, software

COLUMNS = (
    "round", "kind", "way", "requests", "rate_per_s", "failed", "median_ms", "p95_ms", "p99_ms",
    "first_byte_median_ms", "first_byte_p99_ms", "router_cpu_ms", "version",
)  # fmt: skip
RATE_PER_S = 200.0
N_WARM = 80  # requests before each round, which are not timed
SIZES = {"quick": (1, 1.0), "default": (5, 5.0)}  # rounds, and seconds of each
KINDS, WAYS = ("whole", "stream"), ("direct", "routed")
PACKAGES = ("starlette", "uvicorn", "httptools", "uvloop", "httpx", "httpcore", "h11")
BODY = {"prompt": "Tell me a story of about the usual length. " * 12, "max_tokens": 64}
_ANSWER = json.dumps(
    {
        "choices": [{"text": "once " * 64}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 64},
    }
).encode()
_EVENTS = [b'data: {"choices": [{"text": "once "}]}\n\n'] * 8 + [b"data: [DONE]\n\n"]


async def _stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection at once."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            if b'"stream": true' in await reader.readexactly(length):
                start = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in _EVENTS)
                writer.write(b"HTTP/1.1 200 OK\r\n" + start + chunks + b"0\r\n\r\n")
            else:
                start = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + start % len(_ANSWER) + _ANSWER)
            await writer.drain()
    writer.close()


class _Client:
    """Sends requests over connections that are kept open."""

    def __init__(self, port: int, kind: str) -> None:
        table = {**BODY, "stream": kind == "stream"}
        body = json.dumps(table).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request, self._port = head.encode() + body, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> tuple[float, float] | None:
        """Return seconds to the first byte of the answer and to its end; None if it failed."""
        connection = (
            self._idle.pop()
            if self._idle
            else await asyncio.open_connection("127.0.0.1", self._port)
        )
        reader, writer = connection
        began_s = time.perf_counter()
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            size, first_s = -1, 0.0
            while size:
                size = int(await reader.readuntil(b"\r\n"), 16)
                await reader.readexactly(size + 2)
                first_s = first_s or time.perf_counter()
        else:
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            first_s = time.perf_counter()
        end_s = time.perf_counter()
        self._idle.append(connection)
        return (first_s - began_s, end_s - began_s) if b" 200 " in head[:16] else None

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()


@contextlib.contextmanager
def router(port: int, core: int | None) -> Iterator[tuple[int, int]]:
    """Run the router before a server on a port; provide its own port and its process."""
    stage = [{"machine": "stub", "gpus": 1, "blocks": [0, 1]}]
    times = {"fluid_ttft_s": 0.001, "fluid_tpot_s": 1e-5, "ttft_s": None, "tpot_s": None}
    pipeline = {"stages": stage, "requests_per_s": 1e4, "fluid_requests_per_s": 1e4,
                "max_sequences": 1000, **times}  # fmt: skip
    document = {"format": "hypsolve-placement", "version": 1, "prompt_tokens": 120,
                "output_tokens": 64, "runtime": {}, "pipelines": [pipeline] * 2}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "placement.json"
        path.write_text(json.dumps(document))
        servers = [f"--server={n}=http://127.0.0.1:{port}" for n in (1, 2)]
        command = [sys.executable, "-m", "hypsolve.cli", "route", str(path), "--port=0",
                   "--health-interval=0", *servers]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                if not said:
                    raise RuntimeError("router: hypsolve route did not start")
                if core is not None:
                    os.sched_setaffinity(process.pid, {core})
                yield int(said.rsplit(":", 1)[1].partition("/")[0]), process.pid
            finally:
                process.terminate()


def cpu_s(process: int) -> float:
    """Return the seconds that all threads of a process were on a CPU; nan where unknown."""
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    times = [int(each.read_text().split()[0]) for each in tasks]
    return sum(times) / 1e9 if times else math.nan


async def _round(ports: dict[str, int], kind: str, seconds: float, seed: int) -> dict[str, Any]:
    """Return the times of each way: Poisson arrivals of each, that take turns."""
    clients = {way: _Client(port, kind) for way, port in ports.items()}
    for client in clients.values():  # connections are open, and code is warm
        for _ in range(N_WARM // 4):
            await asyncio.gather(*(client.ask() for _ in range(4)))
    loop, draw = asyncio.get_running_loop(), random.Random(seed)
    tasks: dict[str, list[asyncio.Task[Any]]] = {way: [] for way in WAYS}
    at_s = began_s = loop.time()
    n = 0
    while at_s < began_s + seconds:
        at_s += draw.expovariate(2 * RATE_PER_S)
        await asyncio.sleep(max(at_s - loop.time(), 0))
        way = WAYS[n % 2]
        tasks[way].append(loop.create_task(clients[way].ask()))
        n += 1
    found = {way: await asyncio.gather(*each) for way, each in tasks.items()}
    for client in clients.values():
        client.close()
    return found


def row(
    number: int, kind: str, way: str, seconds: float, found: Sequence[Any], cpu_ms: float,
    version: str,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of the CSV."""
    served = [each for each in found if each is not None]
    first_ms, whole_ms = ([1e3 * each[i] for each in served] for i in (0, 1))
    cuts = statistics.quantiles(whole_ms, n=100, method="inclusive")
    return {
        "round": number,
        "kind": kind,
        "way": way,
        "requests": len(found),
        "rate_per_s": len(found) / seconds,
        "failed": len(found) - len(served),
        "median_ms": cuts[49],
        "p95_ms": cuts[94],
        "p99_ms": cuts[98],
        "first_byte_median_ms": statistics.median(first_ms),
        "first_byte_p99_ms": statistics.quantiles(first_ms, n=100, method="inclusive")[98],
        "router_cpu_ms": cpu_ms,
        "version": version,
    }


async def measure(size: str, version: str, core: int | None) -> list[dict[str, Any]]:
    """Return the rows of all rounds."""
    rounds, seconds = SIZES[size]
    server = await asyncio.start_server(_stub, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rows = []
    async with server:
        loop = asyncio.get_running_loop()
        context = router(port, core)
        own, process = await loop.run_in_executor(None, context.__enter__)
        try:
            for number in range(rounds):
                for kind in KINDS:
                    before_s = cpu_s(process)
                    found = await _round({"direct": port, "routed": own}, kind, seconds, number)
                    n_sent = len(found["routed"]) + N_WARM
                    each_s = (cpu_s(process) - before_s) / n_sent
                    spent_ms = {"direct": 0.0, "routed": 1e3 * each_s}
                    rows += [
                        row(number, kind, way, seconds, found[way], spent_ms[way], version)
                        for way in WAYS
                    ]
        finally:
            await loop.run_in_executor(None, context.__exit__, None, None, None)
    return rows


def added(rows: Sequence[Any], kind: str, column: str) -> list[float]:
    """Return what the router adds to a column, in ms, in each round."""
    of = {
        (int(each["round"]), each["way"]): float(each[column])
        for each in rows
        if each["kind"] == kind
    }
    numbers = sorted({number for number, _ in of})
    return [of[number, "routed"] - of[number, "direct"] for number in numbers]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, append the rows, and print what the router adds."""
    parser = argparse.ArgumentParser(description="Time that the router adds on one core.")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--out", type=Path, default=None, help="folder of router.csv")
    options = parser.parse_args(arguments)
    size = "quick" if options.quick else "default"
    out = options.out or Path("results", "quick" if options.quick else "")
    words = ["python -m experiments.router_overhead", *(["--quick"] if options.quick else [])]
    session = {**provenance(" ".join(words)), **software(*PACKAGES), **machine()}
    core = None
    if hasattr(
        os, "sched_setaffinity"
    ):  # Linux: the router has a core, this process the others
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            core = cores[-1]
            os.sched_setaffinity(0, set(cores[:-1]))
    with recording(out / "router.csv", COLUMNS) as record:
        done = [each for each in record.rows if each["version"] == session["hypsolve"]]
        if not done:
            note_session(record.path, session, len(record.rows))
            for each in asyncio.run(measure(size, session["hypsolve"], core)):
                record.append(each)
            done = record.rows
        for kind in KINDS:
            for column in ("first_byte_median_ms", "median_ms", "p99_ms", "router_cpu_ms"):
                values = added(done, kind, column)
                print(
                    f"{kind}: {column} is larger by {statistics.median(values):.2f}"
                    f" (rounds: {min(values):.2f} to {max(values):.2f})"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
