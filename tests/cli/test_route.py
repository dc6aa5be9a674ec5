"""`hypsolve route` as a process: real sockets, a stop that waits, and bad input in one line."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
import uvicorn

from hypsolve.cli.route import _host
from hypsolve.router.serve import _Server
from tests.router.test_plan_pipelines import placement


class StubServer:
    """An OpenAI server that holds its streams until it is told to go on."""

    def __init__(self):
        self.held, self.n_requests, self._ready = False, 0, threading.Event()
        self.go_on = threading.Event()
        config = uvicorn.Config(
            self._app, port=0, log_level="error", lifespan="off", interface="asgi3"
        )
        self._server = _Server(config, self._listens)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _listens(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self._ready.set()

    async def _app(self, scope, receive, send):
        kind = b"text/event-stream" if scope["path"] != "/health" else b"text/plain"
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", kind)],
        }
        await send(start)
        if scope["path"] != "/health":
            self.n_requests += 1
            event = b'data: {"choices": []}\n\n'
            await send({"type": "http.response.body", "body": event, "more_body": True})
            while self.held and not self.go_on.is_set():
                await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def stop(self):
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def stubs():
    servers = [StubServer(), StubServer()]
    yield servers
    for server in servers:
        server.go_on.set()
        server.stop()


@contextlib.contextmanager
def routing(tmp_path, *words):
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(placement()))
    command = [sys.executable, "-m", "hypsolve.cli", "route", str(path), "--port", "0", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_the_stream_under_way(tmp_path, stubs, stop):
    servers = [f"--server={n}={stub.url}/v1" for n, stub in enumerate(stubs, 1)]
    with routing(tmp_path, *servers) as process:
        said = process.stdout.readline()
        assert said.startswith("2 pipelines behind http://127.0.0.1:")
        url = said.split()[-1]
        table = {"prompt": "Tell me", "stream": True}
        for stub in stubs:
            stub.held = True
        with httpx.stream("POST", f"{url}/completions", json=table, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")  # passes while the server goes on
            process.send_signal(stop)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            for stub in stubs:
                stub.go_on.set()
            assert "data: [DONE]" in list(lines)
        assert process.wait(30) == 0
        assert process.stderr.read().strip() == "stopped"
    assert sum(stub.n_requests for stub in stubs) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--server: every pipeline needs an address; none for 1 (a -> b), 2 (c -> b)"),
        (("--server=1=http://x", "--server=2=ftp://y"), "url must be like http://host:port"),
        (("--drain=0",), "--drain must be at least 1, got 0"),
        (("--max-in-flight=0",), "--max-in-flight must be at least 1, got 0"),
        (("--max-in-flight=1" + 400 * "0",), "--max-in-flight must be at most 1073741824"),
        (("--host=",), "--host must be a host name or an address, got ''"),
        (("--host=a..b",), "--host must be a host name or an address, got 'a..b'"),
        (("--server=1=http://a..b:80", "--server=2=http://y"), "url must name a host"),
        (("--server=1=http://x", "--server=2=http://y", "--idle-timeout=0"), "idle_timeout_s"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, said):
    with routing(tmp_path, *words) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_an_address_to_listen_on_may_be_ipv6_in_brackets():
    assert [_host(each) for each in ("[::1]", "::1", "box", "0.0.0.0")] == [
        "::1", "::1", "box", "0.0.0.0",
    ]  # fmt: skip
