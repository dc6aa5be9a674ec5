"""`Proxy` in front of stub servers that are slow, hang, break, answer garbage and come back."""

import asyncio
import contextlib
import gc
import json
import tracemalloc

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypsolve.router.core import Router
from hypsolve.router.health import Condition
from hypsolve.router.params import RouterParams
from hypsolve.router.pipeline import RoutedPipeline
from hypsolve.router.proxy import Proxy, ProxyParams, server_url

EVENTS = [b'data: {"choices": [{"text": "%d"}]}\n\n' % n for n in range(3)]
DONE = b"data: [DONE]\n\n"
ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}'


class Parts(httpx.AsyncByteStream):
    """The body of an answer: bytes, an error to raise, or a wait."""

    def __init__(self, parts):
        self._parts = parts

    async def __aiter__(self):
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, Exception):
                raise part
            else:
                await part()


async def forever():
    await asyncio.get_running_loop().create_future()


class Stub(httpx.AsyncBaseTransport):
    """A server that behaves as told, request by request; the last behaviour stays."""

    def __init__(self, *behaviours):
        self.behaviours = list(behaviours) or ["good"]
        self.requests = []

    async def handle_async_request(self, request):
        if request.url.path == "/health":
            if self.behaviours[0] == "refuse":
                raise httpx.ConnectError("refused")
            return httpx.Response(200)
        self.requests.append(request)
        now = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        if callable(now):
            return await now(request)
        if now == "refuse":
            raise httpx.ConnectError("refused")
        if now == "hang":
            await forever()
        if isinstance(now, int):
            headers = {"retry-after": "7"} if now == 429 else {}
            return httpx.Response(now, headers=headers, stream=Parts([b'{"error": {}}']))
        if json.loads(request.content).get("stream"):
            parts = {
                "good": [*EVENTS, DONE],
                "die": [*EVENTS[:2], httpx.ReadError("reset")],
                "die early": [httpx.ReadError("reset")],
                "end early": EVENTS[:2],
                "empty": [],
                "stall": [EVENTS[0], forever],
                "garbage": [b"<html>no</html>\n\n"],
                "split": [EVENTS[0][:9], EVENTS[0][9:] + EVENTS[1][:3], EVENTS[1][3:], DONE],
            }[now]
            kind = "text/event-stream"
        else:
            parts = {
                "good": [ANSWER[:9], ANSWER[9:]],
                "split": [ANSWER],
                "die": [ANSWER[:9], httpx.ReadError("reset")],
                "end early": [ANSWER[:9]],
                "stall": [ANSWER[:9], forever],
            }.get(now, [b"<html>no</html>"])
            kind = "application/json"
        return httpx.Response(200, headers={"content-type": kind}, stream=Parts(parts))


def proxy_of(*stubs, speeds=None, params=None, router=None, **limits):
    speeds = speeds or range(1, len(stubs) + 1)
    pipelines = [
        RoutedPipeline(
            name=str(n), prompt_token_s=s / 1024, output_token_s=s / 1024,
            max_in_flight=limits.get("max_in_flight"),
        )
        for n, s in enumerate(speeds)
    ]  # fmt: skip
    fast = {"first_token_timeout_s": 0.05, "idle_timeout_s": 0.05, "answer_timeout_s": 0.05}
    return Proxy(
        Router(pipelines, router),
        [f"http://server{n}:8000" for n in range(len(stubs))],
        ProxyParams(**{**fast, **(params or {})}),
        transports=stubs,
    )


class Reply:
    def __init__(self):
        self.status, self.headers, self.chunks = None, {}, []
        self.is_complete = False

    @property
    def body(self):
        return b"".join(self.chunks)

    @property
    def error(self):
        return json.loads(self.body)["error"]


async def ask(
    proxy, table=None, *, body=None, headers=(), path="/v1/completions", leave_after=None,
    method="POST", query=b"", send=None,
):  # fmt: skip
    """Send a request to the application; leave after so many chunks of the answer."""
    table = {"prompt": "Tell me a story", "max_tokens": 8} if table is None else table
    body = json.dumps(table).encode() if body is None else body
    reply, left = Reply(), asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    if leave_after == 0:
        left.set()

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def keep(message):
        if message["type"] == "http.response.start":
            assert reply.status is None, "an answer began twice"
            reply.status = message["status"]
            reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            return
        assert not reply.is_complete
        reply.chunks.append(message.get("body", b""))
        reply.is_complete = not message.get("more_body", False)
        if len(reply.chunks) == leave_after:
            left.set()
            await asyncio.sleep(0.01)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query, "root_path": "", "http_version": "1.1", "scheme": "http",
        "headers": [(b"content-type", b"application/json"), *headers], "client": None,
        "server": None, "asgi": {"version": "3.0"},
    }  # fmt: skip
    await proxy.app(scope, receive, send or keep)
    return reply


def assert_nothing_left(proxy):
    for p in range(len(proxy.router.pipelines)):
        assert proxy.router.outstanding_tokens(p) == (0, 0)
        assert proxy.router.n_in_flight(p) == 0
    assert len(proxy.room) == 0


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while there is work, and then jumps to the next timer.

    Time limits then depend on no load of the machine. Not for sockets.
    """

    _now_s = 0.0

    def time(self):
        return self._now_s

    def _run_once(self):
        timers = [each.when() for each in self._scheduled if not each.cancelled()]
        if timers and not self._ready:
            self._now_s = max(self._now_s, min(timers))
        super()._run_once()


def run(coroutine):
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(asyncio.wait_for(coroutine, 1000))


STREAM = {"prompt": "Tell me", "stream": True, "max_tokens": 8}


# --- what passes ------------------------------------------------------------------------------


def test_an_answer_passes_unchanged_and_headers_of_a_connection_do_not():
    stub = Stub()
    proxy = proxy_of(stub)
    headers = [
        (b"authorization", b"Bearer secret"), (b"connection", b"keep-alive, x-own"),
        (b"x-own", b"1"), (b"te", b"trailers"), (b"x-mine", b"2"),
    ]  # fmt: skip
    reply = run(ask(proxy, headers=headers))
    assert (reply.status, reply.body) == (200, ANSWER)
    assert reply.headers["content-length"] == str(len(ANSWER))
    sent = stub.requests[0]
    assert str(sent.url) == "http://server0:8000/v1/completions"
    assert sent.headers["authorization"] == "Bearer secret"
    assert sent.headers["x-mine"] == "2"
    assert not {"x-own", "te", "connection"} & {name.lower() for name in sent.headers}
    assert json.loads(sent.content)["max_tokens"] == 8
    assert_nothing_left(proxy)


@pytest.mark.parametrize("how", ["good", "split"])
def test_events_pass_as_they_come(how):
    proxy = proxy_of(Stub(how))
    reply = run(ask(proxy, STREAM))
    assert reply.status == 200
    assert reply.body == b"".join(EVENTS[: 3 if how == "good" else 2]) + DONE
    assert len(reply.chunks) > 3
    assert reply.headers["content-type"] == "text/event-stream"
    assert_nothing_left(proxy)


def test_requests_go_where_they_are_expected_to_end_first():
    """One server is three times as fast; nothing ends before all were sent."""

    async def all_at_once():
        gate = asyncio.Event()

        async def wait(request):
            await gate.wait()
            return httpx.Response(
                200, headers={"content-type": "application/json"}, stream=Parts([ANSWER])
            )

        stubs = [Stub(wait), Stub(wait)]
        proxy = proxy_of(*stubs, speeds=[1.0, 3.1], params={"answer_timeout_s": 20})
        tasks = []
        for _ in range(8):
            tasks.append(asyncio.ensure_future(ask(proxy)))
            await asyncio.sleep(0.01)
        counts = [len(stub.requests) for stub in stubs]
        gate.set()
        replies = await asyncio.gather(*tasks)
        assert {reply.status for reply in replies} == {200}
        assert_nothing_left(proxy)
        return counts

    assert run(all_at_once()) == [6, 2]


# --- faults -----------------------------------------------------------------------------------

EARLY = ["refuse", "hang", "die early", "garbage", "empty", 500, 503, 429]


@pytest.mark.parametrize("fault", EARLY)
def test_a_stream_that_fails_before_its_first_token_is_served_elsewhere(fault):
    bad, good = Stub(fault), Stub()
    proxy = proxy_of(bad, good)
    reply = run(ask(proxy, STREAM))
    assert (reply.status, reply.body) == (200, b"".join(EVENTS) + DONE)
    assert reply.headers["x-hypsolve-pipeline"] == "2"
    assert len(bad.requests) == len(good.requests) == 1
    assert_nothing_left(proxy)


@pytest.mark.parametrize(
    "fault", ["refuse", "hang", "die", "stall", "garbage", "end early", 502]
)
def test_an_answer_that_is_not_streamed_is_whole_or_served_elsewhere(fault):
    bad, good = Stub(fault), Stub()
    proxy = proxy_of(bad, good)
    reply = run(ask(proxy))
    assert (reply.status, reply.body) == (200, ANSWER)
    assert len(bad.requests) == len(good.requests) == 1
    assert_nothing_left(proxy)


@pytest.mark.parametrize("fault", ["die", "end early", "stall"])
def test_nothing_is_sent_twice_after_the_first_token(fault):
    bad, good = Stub(fault), Stub()
    proxy = proxy_of(bad, good)
    reply = run(ask(proxy, STREAM))
    assert reply.status == 200
    assert reply.body.startswith(EVENTS[0])
    *_, last = [line for line in reply.body.split(b"\n") if line]
    assert "message" in json.loads(last.removeprefix(b"data: "))["error"]
    assert DONE not in reply.body
    assert reply.is_complete
    assert good.requests == []
    assert_nothing_left(proxy)


def test_a_request_that_the_server_refuses_is_not_tried_elsewhere():
    bad, good = Stub(422), Stub()
    reply = run(ask(proxy_of(bad, good)))
    assert (reply.status, reply.body) == (422, b'{"error": {}}')
    assert good.requests == []


@pytest.mark.parametrize("streams", [False, True])
def test_a_long_refusal_passes(streams):
    """A server that quotes the request in its answer is not to blame."""
    words = b'{"error": {"message": "' + b"x" * 2**17 + b'"}}'

    async def refuse(request):
        return httpx.Response(400, stream=Parts([words[:9], words[9:]]))

    good = Stub()
    proxy = proxy_of(Stub(refuse), good)
    reply = run(ask(proxy, {**STREAM, "stream": streams}))
    assert (reply.status, reply.body) == (400, words)
    assert good.requests == []
    assert_nothing_left(proxy)
    proxy = proxy_of(Stub(refuse), good, params={"max_answer_bytes": 1000})
    reply = run(ask(proxy))
    assert (reply.status, reply.body) == (400, words[:1000])
    assert reply.headers["content-length"] == "1000"
    assert good.requests == []


def test_a_long_first_event_passes():
    event = b'data: {"choices": [{"text": "' + b"x" * 2**17 + b'"}]}\n\n'

    async def long(request):
        kind = {"content-type": "text/event-stream"}
        parts = [event[n : n + 2**15] for n in range(0, len(event), 2**15)]
        return httpx.Response(200, headers=kind, stream=Parts([*parts, DONE]))

    proxy = proxy_of(Stub(long))
    reply = run(ask(proxy, STREAM))
    assert (reply.status, reply.body) == (200, event + DONE)

    async def endless(request):
        kind = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=kind, stream=Parts([b"data: " + b"x" * 2**21]))

    reply = run(ask(proxy_of(Stub(endless)), STREAM))
    assert (reply.status, reply.error["message"]) == (
        502, "the stream holds no event in 1048576 bytes",
    )  # fmt: skip


def test_a_header_that_cannot_be_sent_is_the_fault_of_the_request():
    async def script():
        servers = [await asyncio.start_server(answer_http, "127.0.0.1", 0) for _ in range(2)]
        urls = [f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in servers]
        pipelines = [
            RoutedPipeline(name=name, prompt_token_s=1.0, output_token_s=1.0) for name in "ab"
        ]
        proxy = Proxy(Router(pipelines), urls)
        for _ in range(4):
            reply = await ask(proxy, headers=[(b"x-mine", b"\t1 \t")])
            assert (reply.status, reply.body) == (200, ANSWER)
            reply = await ask(proxy, headers=[(b"x-mine", b"a\x00b")])
            assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
            bad = [(b"x-mine", b"a\x00b")]
            reply = await ask(proxy, path="/v1/models", method="GET", headers=bad)
            assert reply.status == 400
        assert [proxy.router.condition(p, 0.0) for p in range(2)] == [Condition.UP] * 2
        assert_nothing_left(proxy)
        for transport in proxy._transports:
            await transport.aclose()
        await asyncio.sleep(0.05)  # the servers see it
        for server in servers:
            server.close()

    run_long(script())


async def answer_http(reader, writer):
    """Answer each request on a real connection; the header must have come without blanks."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"x-mine: 1\r\n" in head.lower()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            length = b"content-length: %d\r\n" % len(ANSWER)
            kind = b"content-type: application/json\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + length + kind + ANSWER)
    writer.close()


def test_models_are_those_of_the_first_server_that_answers_in_time():
    class Models(Stub):
        async def handle_async_request(self, request):
            now = {"good": [b'{"data": []}'], "stall": [b'{"data"', forever]}
            return httpx.Response(200, stream=Parts(now[self.behaviours[0]]))

    proxy = proxy_of(Models("stall"), Models("good"), params={"connect_timeout_s": 0.05})
    reply = run(ask(proxy, path="/v1/models", method="GET"))
    assert (reply.status, reply.body) == (200, b'{"data": []}')


def test_the_last_failure_is_reported_when_nothing_is_left():
    proxy = proxy_of(Stub("hang"), Stub("die early"))
    assert run(ask(proxy, STREAM)).status == 502
    proxy = proxy_of(Stub(429))
    reply = run(ask(proxy))
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    proxy = proxy_of(Stub("hang"))
    reply = run(ask(proxy))
    assert (reply.status, reply.error["code"]) == (504, 504)


def test_a_server_that_comes_back_gets_requests_again():
    async def script():
        bad, good = Stub("refuse"), Stub()
        proxy = proxy_of(
            bad, good, router=RouterParams(first_cooldown_s=100.0, max_cooldown_s=100)
        )
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "2"
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "2"
        assert len(bad.requests) == 1  # not asked while it cools down
        bad.behaviours = ["good"]
        await proxy.check(0)  # does not end a cooldown that a request began
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "2"
        proxy.router.check(0, True, asyncio.get_running_loop().time() + 100.0)
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "1"
        bad.behaviours = ["refuse"]
        await proxy.check(0)
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "2"
        assert len(bad.requests) == 2
        bad.behaviours = ["good"]
        await proxy.check(0)
        assert (await ask(proxy)).headers["x-hypsolve-pipeline"] == "1"
        assert_nothing_left(proxy)

    run(script())


def test_the_health_watch_survives_any_error_of_a_check(caplog):
    class Broken(Stub):
        async def handle_async_request(self, request):
            raise RuntimeError("unforeseen")

    async def script():
        came_twice, n_checks = asyncio.Event(), 0

        class Counting(Stub):
            async def handle_async_request(self, request):
                nonlocal n_checks
                n_checks += 1
                if n_checks == 2:
                    came_twice.set()
                return await super().handle_async_request(request)

        proxy = proxy_of(Broken(), Counting(), params={"health_interval_s": 0.001})
        async with proxy._lifespan(proxy.app):
            await came_twice.wait()
        assert "pipeline 0: health check failed: RuntimeError('unforeseen')" in caplog.text

    run(script())


def test_no_server_is_up():
    async def script():
        proxy = proxy_of(Stub("refuse"))
        assert (await ask(proxy)).status == 502
        reply = await ask(proxy)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert (await ask(proxy, path="/health", method="GET")).status == 503

    run(script())


@pytest.mark.parametrize("leave_after", [0, 1])
def test_a_client_that_leaves_releases_its_work(leave_after):
    proxy = proxy_of(Stub("stall"), params={"idle_timeout_s": 20, "first_token_timeout_s": 20})
    run(ask(proxy, STREAM, leave_after=leave_after))
    assert_nothing_left(proxy)
    assert proxy.router.condition(0, 0.0) is Condition.UP


def test_a_stream_is_completed_when_its_last_event_was_sent():
    async def linger(request):
        kind = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=kind, stream=Parts([EVENTS[0], DONE, forever]))

    proxy = proxy_of(Stub(linger), params={"idle_timeout_s": 20})
    reply = run(ask(proxy, STREAM, leave_after=2))
    assert reply.body == EVENTS[0] + DONE
    text = run(ask(proxy, path="/metrics", method="GET")).body.decode()
    assert 'hypsolve_attempts_total{ending="completed",pipeline="0"} 1.0' in text
    assert_nothing_left(proxy)


@pytest.mark.parametrize("when", ["an event", "an error event", "a refusal", "a last failure"])
@pytest.mark.parametrize("how", ["hangs", "is gone"])
def test_a_client_that_does_not_read_holds_nothing_and_is_no_fault_of_a_server(when, how):
    async def send(message):
        body = message.get("body", b"")
        if when == "an event" or (b'"error"' in body and message["type"].endswith("body")):
            if how == "is gone":
                raise ConnectionResetError("gone")
            await forever()

    stub = {"an error event": "die", "a refusal": 422, "a last failure": 500}.get(when, "good")
    proxy = proxy_of(Stub(stub))
    run(ask(proxy, STREAM, send=send))
    assert proxy.router.condition(0, 0.0) is Condition.UP
    assert_nothing_left(proxy)
    text = run(ask(proxy, path="/metrics", method="GET")).body.decode()
    failed = 'ending="failed",pipeline="0"} 1.0' in text
    assert failed == (when in ("an error event", "a last failure"))


def test_a_query_passes_and_a_date_does_not():
    async def dated(request):
        headers = {"content-type": "application/json", "date": "then", "x-mine": "1"}
        return httpx.Response(200, headers=headers, stream=Parts([ANSWER]))

    stub = Stub(dated)
    reply = run(ask(proxy_of(stub), query=b"a=1&b=%2F"))
    assert str(stub.requests[0].url) == "http://server0:8000/v1/completions?a=1&b=%2F"
    assert reply.headers["x-mine"] == "1"
    assert "date" not in reply.headers  # uvicorn adds one


# --- limits -----------------------------------------------------------------------------------


def test_requests_wait_for_room_in_order_and_too_many_are_refused():
    async def script():
        gate = asyncio.Event()
        served = []

        async def wait(request):
            served.append(json.loads(request.content)["prompt"])
            await gate.wait()
            return httpx.Response(
                200, headers={"content-type": "application/json"}, stream=Parts([ANSWER])
            )

        proxy = proxy_of(
            Stub(wait), max_in_flight=1, params={"max_queue": 2, "answer_timeout_s": 20}
        )
        tasks = []
        for name in "abc":
            tasks.append(asyncio.ensure_future(ask(proxy, {"prompt": name})))
            await asyncio.sleep(0.01)
        refused = await ask(proxy, {"prompt": "d"})
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert len(proxy.room) == 2
        tasks[1].cancel()  # leaves the queue
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == ["a", "c"]
        assert_nothing_left(proxy)

    run(script())


def test_bodies_of_all_requests_together_are_bounded():
    async def script():
        proxy = proxy_of(
            Stub("hang"), max_in_flight=1,
            params={"max_held_bytes": 5000, "answer_timeout_s": 20, "queue_timeout_s": 20},
        )  # fmt: skip
        large = {"prompt": "x" * 2000}
        held = [asyncio.ensure_future(ask(proxy, large)) for _ in range(2)]
        await asyncio.sleep(0.01)
        refused = await ask(proxy, large)
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        for each in held:
            each.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert_nothing_left(proxy)
        proxy._transports[0].behaviours = ["good"]
        assert (await ask(proxy, large)).status == 200

    run(script())


def test_a_wait_ends():
    async def script():
        proxy = proxy_of(
            Stub("hang"), max_in_flight=1,
            params={"queue_timeout_s": 0.02, "answer_timeout_s": 0.2},
        )  # fmt: skip
        first = asyncio.ensure_future(ask(proxy))
        await asyncio.sleep(0.01)
        assert (await ask(proxy)).status == 429
        assert (await first).status == 504
        assert_nothing_left(proxy)

    run(script())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no json", (), 400),
        (b"[1]", (), 400),
        (b"[" * 100_000, (), 400),
        (b"\xff", (), 400),
        (b'"' + b"x" * 2000 + b'"', (), 413),
        (b"{}", [(b"content-length", b"99999")], 413),
    ],
)
def test_a_bad_request_reaches_no_server(body, headers, status):
    stub = Stub()
    limits = {"max_body_bytes": 1000 if status == 413 else 2**20}
    reply = run(ask(proxy_of(stub, params=limits), body=body, headers=headers))
    assert reply.status == reply.error["code"] == status
    assert reply.error["type"] == "invalid_request_error"
    assert stub.requests == []


def test_other_addresses():
    proxy = proxy_of(Stub(), Stub())
    assert run(ask(proxy, path="/v1/embeddings")).error["code"] == 404
    assert run(ask(proxy, method="GET")).error["code"] == 405
    run(ask(proxy))
    text = run(ask(proxy, path="/metrics", method="GET")).body.decode()
    assert 'hypsolve_attempts_total{ending="completed",pipeline="0"} 1.0' in text
    assert 'hypsolve_pipeline_outstanding_seconds{pipeline="0"} 0.0' in text
    health = json.loads(run(ask(proxy, path="/health", method="GET")).body)
    assert health == {"status": "ok", "pipelines": {"0": "up", "1": "up"}}


def test_logs_hold_neither_prompts_nor_keys(caplog):
    proxy = proxy_of(Stub("garbage"), Stub("die"))
    caplog.set_level("DEBUG")
    table = {**STREAM, "prompt": "private words"}
    run(ask(proxy, table, headers=[(b"authorization", b"Bearer secret")]))
    assert "pipeline 0" in caplog.text
    assert "private" not in caplog.text
    assert "secret" not in caplog.text


# --- many requests ----------------------------------------------------------------------------

FAULTS = st.sampled_from(["good", "split", "die", "stall", *EARLY])


@settings(max_examples=60, deadline=None)
@given(
    behaviours=st.lists(st.lists(FAULTS, min_size=1, max_size=4), min_size=1, max_size=3),
    requests=st.lists(
        st.tuples(st.booleans(), st.sampled_from([None, None, 0, 1])), min_size=1, max_size=8
    ),
)
def test_no_script_of_faults_leaks_or_loses_requests(behaviours, requests):
    async def script():
        stubs = [Stub(*each) for each in behaviours]
        quick = {
            "first_token_timeout_s": 0.01,
            "idle_timeout_s": 0.01,
            "answer_timeout_s": 0.01,
        }
        proxy = proxy_of(*stubs, max_in_flight=2, params=quick)
        replies = await asyncio.gather(
            *(
                ask(proxy, {**STREAM, "stream": streams, "user": str(n)}, leave_after=leave)
                for n, (streams, leave) in enumerate(requests)
            )
        )
        assert_nothing_left(proxy)
        for n, ((_, leave), reply) in enumerate(zip(requests, replies, strict=True)):
            # at most once to each server
            for stub in stubs:
                mine = [r for r in stub.requests if json.loads(r.content)["user"] == str(n)]
                assert len(mine) <= 1
            if leave is None:
                assert reply.is_complete
                assert reply.status in (200, 429, 500, 502, 503, 504)
                assert reply.body.count(EVENTS[0]) <= 1
        # a good server takes what failed elsewhere: there are as many attempts as servers
        if any(set(each) <= {"good", "split"} for each in behaviours):
            assert all(r.status == 200 for r, (_, left) in zip(replies, requests, strict=True)
                       if left is None)  # fmt: skip

    run(script())


def test_memory_is_bounded_over_ten_thousand_requests():
    async def script():
        proxy = proxy_of(Stub(), Stub(), params={"answer_timeout_s": 20})
        stubs = proxy._transports

        async def some(n):
            for _ in range(n):
                assert (await ask(proxy, STREAM)).status == 200
            for stub in stubs:
                stub.requests.clear()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        before = await some(500)
        after = await some(9500)
        assert_nothing_left(proxy)
        assert after - before < 200_000  # 21 bytes a request

    tracemalloc.start()
    try:
        run_long(script())
    finally:
        tracemalloc.stop()


def run_long(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 300))


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("box:8000", "must be like http://host:port"),
        ("ftp://box", "must be like http"),
        ("http://", "must be like http"),
        ("http://me:key@box", "no password"),
        ("http://box?a=1", "no password, query"),
        ("http://box:port", "must be an address"),
        ("http://a..b:80", "must name a host"),
        ("http://" + 64 * "a", "must name a host"),
        ("http://box:65536", "must be from 1 to 65535|must be an address"),
    ],
)
def test_addresses_are_checked(url, words):
    with pytest.raises(ValueError, match=words):
        server_url("server", url)
    with pytest.raises(ValueError, match="must be positive"):
        ProxyParams(idle_timeout_s=0)
    with pytest.raises(ValueError, match="max_attempts must be at least 1"):
        ProxyParams(max_attempts=0)
