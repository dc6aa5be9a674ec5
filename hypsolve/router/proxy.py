"""`Proxy`: an OpenAI-compatible reverse proxy over pipelines, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from hypsolve.problem import validation as valid
from hypsolve.router.answers import MAX_LINE, AnswerMeter, Garbage
from hypsolve.router.core import Ending, Refusal, Router, Ticket, Why
from hypsolve.router.estimates import Measured
from hypsolve.router.health import Condition
from hypsolve.router.metrics import Metrics
from hypsolve.router.requests import RequestFacts, read_request
from hypsolve.router.transport import IDLE_S, LeanTransport
from hypsolve.router.waiting import Busy, WaitingRoom

logger = logging.getLogger("hypsolve.router")
Headers = list[tuple[bytes, bytes]]
HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
))  # fmt: skip
NOT_SENT = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"accept-encoding"}
NOT_SENT_ON = HOP_BY_HOP | {b"content-length", b"date"}  # the router's own server states these
WRONG_HEADERS = "the headers of the request must be valid in HTTP/1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyParams:
    """Limits of a `Proxy`.

    Attributes
    ----------
    max_queue : int
        Requests that wait because no pipeline has room; more get status 429.
    queue_timeout_s : float
        Longest such wait.
    connect_timeout_s, first_token_timeout_s, idle_timeout_s : float
        Longest time to a connection, to the first token of a stream, and between its tokens.
    answer_timeout_s : float
        Longest time to an answer that is not streamed.
    max_body_bytes, max_answer_bytes : int
        Largest request, and largest answer that is not streamed.
    max_held_bytes : int
        Bodies of all requests under way together, waiting ones included; more get status 429.
    max_attempts : int
        Pipelines on which a request is tried.
    health_interval_s : float
        Seconds between checks of each server's ``/health``; 0: none.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong type.
    """

    max_queue: int = 256
    queue_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    answer_timeout_s: float = 600.0
    max_body_bytes: int = 16 * 2**20
    max_answer_bytes: int = 64 * 2**20
    max_held_bytes: int = 2**30
    max_attempts: int = 3
    health_interval_s: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s"):
                valid.real("proxy", field.name, value, strict=field.name[0] != "h")
            else:
                valid.whole("proxy", field.name, value, minimum=int(field.name != "max_queue"))


class _Failed(Exception):
    """An attempt failed by the pipeline's fault; `answer` is what its server said, if any."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        is_down: bool = False,
        retry_after_s: float | None = None,
        answer: tuple[int, Headers, bytes] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.is_down, self.retry_after_s, self.answer = is_down, retry_after_s, answer


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    """The client went away, or does not read."""


@dataclass(slots=True)
class _Exchange:
    """A request of a client: what came, and whether the answer has begun."""

    path: str
    query: bytes
    headers: Headers
    body: bytes
    facts: RequestFacts
    send: Send
    arrived_s: float
    first_s: float | None = None  # when the answer began
    is_whole: bool = False  # the server has done its work, and the last bytes are sent on

    @property
    def has_begun(self) -> bool:
        return self.first_s is not None


class Proxy:
    """A reverse proxy that sends each request to the pipeline of HypSched-RT's choice.

    A request is sent again, to another pipeline, only until the first byte of its answer is
    sent on. Headers pass in both directions, with ``Authorization``; those of a connection do
    not. Neither prompts nor headers are logged.

    Parameters
    ----------
    router : Router
    urls : sequence of str
        Address of the server of each pipeline.
    params : ProxyParams, optional
    transports : sequence of httpx.AsyncBaseTransport, optional
        How each server is reached. Default: HTTP, without the proxies of the environment.
    """

    def __init__(
        self,
        router: Router,
        urls: Sequence[str],
        params: ProxyParams | None = None,
        *,
        transports: Sequence[httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self.router, self.params = router, params or ProxyParams()
        self._urls = [httpx.URL(server_url("proxy", url)) for url in urls]
        if len(self._urls) != len(router.pipelines):
            raise ValueError(
                f"proxy: urls must hold one for each of {len(router.pipelines)} pipelines,"
                f" got {len(self._urls)}"
            )
        self._transports = list(transports or map(_transport, self._urls))
        self.room = WaitingRoom(router, self.params.max_queue, self.params.queue_timeout_s)
        self.metrics = Metrics(router, self.room)
        self._held_bytes = 0  # of the bodies of all requests under way
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self), methods=["POST"]),
                Route("/v1/completions", _Endpoint(self), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={404: _of_status, 405: _of_status},
            lifespan=self._lifespan,
        )

    # --- completions -------------------------------------------------------------------------

    async def complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a completion; leave a client that does not read its answer."""
        with contextlib.suppress(_Gone, TimeoutError):
            await self._complete(scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        try:
            body = await _read_body(scope, receive, self.params.max_body_bytes)
            facts = read_request(body)
        except _Gone:
            return
        except _TooLarge:
            words = f"the request must be at most {self.params.max_body_bytes} bytes"
            await self._refuse(send, 413, words)
            return
        except ValueError as error:
            await self._refuse(send, 400, str(error))
            return
        if self._held_bytes + len(body) > self.params.max_held_bytes:
            words = "the requests under way hold as many bytes as the router takes"
            await self._refuse(send, 429, words, retry_after_s=1.0)
            return
        headers = _kept(scope["headers"], NOT_SENT)
        query = scope["query_string"]
        exchange = _Exchange(scope["path"], query, headers, body, facts, send, arrived_s)
        self._held_bytes += len(body)
        work = loop.create_task(self._serve(exchange))
        gone = loop.create_task(_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._held_bytes -= len(body)
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()  # raises what is no fault of a server

    async def _serve(self, exchange: _Exchange) -> None:
        router, facts = self.router, exchange.facts
        n_prompt = facts.n_tokens or router.prompt_tokens(facts.n_chars)
        n_output = facts.max_tokens or router.expected_output_tokens()
        tried: list[int] = []
        failure: _Failed | None = None
        while len(tried) < self.params.max_attempts:
            try:
                found = await self.room.enter(n_prompt, n_output, tried)
            except Busy as busy:
                if failure is None:
                    await self._refuse(exchange.send, 429, str(busy), retry_after_s=1.0)
                    return
                break
            if isinstance(found, Refusal):
                if failure is None:
                    await self._refuse_down(exchange.send, found)
                    return
                break
            if failure is not None:
                self.metrics.retried()
            failure = await self._attempt(exchange, found)
            if failure is None:
                return
            tried.append(found.pipeline)
        assert failure is not None
        if failure.answer is not None:
            await self._send_whole(exchange.send, *failure.answer)
        else:
            await self._refuse(exchange.send, failure.status, failure.message)

    async def _attempt(self, exchange: _Exchange, ticket: Ticket) -> _Failed | None:
        """Try a request on a pipeline; return the failure if it may be tried elsewhere.

        Whatever happens, the ticket ends here.
        """
        loop = asyncio.get_running_loop()
        ending, failure, measured = Ending.CANCELLED, None, None
        meter = AnswerMeter(loop.time())
        no_queue = (
            self.router.pipelines[ticket.pipeline].max_in_flight is not None
            or self.router.n_in_flight(ticket.pipeline) == 1
        )
        try:
            ending = await self._forward(exchange, ticket.pipeline, meter)
            if ending is Ending.COMPLETED:
                measured = meter.measured(no_queue=no_queue)
        except _Failed as failed:
            ending, failure = Ending.FAILED, failed
        except asyncio.CancelledError:  # the client left, perhaps because it has all it wants
            if exchange.is_whole:
                ending, measured = Ending.COMPLETED, meter.measured(no_queue=no_queue)
            raise
        except _Gone:
            return None
        finally:
            self._end(ticket, ending, failure, measured)
        now_s = loop.time()
        if exchange.first_s is not None:
            arrived_s = exchange.arrived_s
            self.metrics.answered(
                ticket.pipeline, exchange.first_s - arrived_s, now_s - arrived_s
            )
        if measured is not None:
            self.router.count_prompt(exchange.facts.n_chars, meter.prompt_tokens)
        if failure is None or not exchange.has_begun:
            return failure
        event = json.dumps(_error_table(failure.status, failure.message)).encode()
        body = b"\n\ndata: " + event + b"\n\n"
        async with asyncio.timeout(self.params.idle_timeout_s):
            await _Sending(exchange.send).body(body, more=False)
        return None

    def _end(
        self,
        ticket: Ticket,
        ending: Ending,
        failure: _Failed | None,
        measured: Measured | None,
    ) -> None:
        now_s = asyncio.get_running_loop().time()
        name = self.router.pipelines[ticket.pipeline].name
        cools = self.router.end(
            ticket,
            ending,
            now_s,
            measured=measured,
            is_down=failure is not None and failure.is_down,
            retry_after_s=None if failure is None else failure.retry_after_s,
        )
        if failure is not None:
            logger.warning("pipeline %s: %s", name, failure.message)
        if cools:
            logger.warning("pipeline %s: cooling down", name)
        elif ticket.is_probe and ending in (Ending.COMPLETED, Ending.REFUSED):
            logger.warning("pipeline %s: up again", name)
        self.metrics.ended(ticket.pipeline, ending)
        self.room.wake()

    async def _forward(self, exchange: _Exchange, pipeline: int, meter: AnswerMeter) -> Ending:
        """Send a request to a pipeline, and its answer on.

        Raises
        ------
        _Failed
            If the server fails; `exchange` says whether the answer had begun.
        _Gone
            If the client does not read.
        """
        params, loop = self.params, asyncio.get_running_loop()
        longest = (
            params.first_token_timeout_s if exchange.facts.streams else params.answer_timeout_s
        )
        limit = asyncio.timeout(longest)
        sends = _Sending(exchange.send)
        try:
            async with limit:
                request = httpx.Request(
                    "POST",
                    self._at(pipeline, exchange.path, exchange.query),
                    headers=[*exchange.headers],
                    content=exchange.body,
                    extensions={"timeout": {"connect": params.connect_timeout_s}},
                )
                response = await self._transports[pipeline].handle_async_request(request)
                try:
                    headers = _kept(response.headers.raw, NOT_SENT_ON)
                    headers.append((b"x-hypsolve-pipeline", str(pipeline + 1).encode()))
                    if response.status_code != 200:
                        return await self._pass_error(exchange, response, headers, sends)
                    kind = response.headers.get("content-type", "")
                    if not kind.startswith("text/event-stream"):
                        body = await _read_answer(response, params.max_answer_bytes)
                        meter.whole(body, loop.time())
                        exchange.first_s = loop.time()
                        exchange.is_whole = True
                        await sends.whole(200, headers, body)
                        return Ending.COMPLETED
                    await self._stream(exchange, response, headers, meter, limit, sends)
                    return Ending.COMPLETED
                finally:
                    await response.aclose()
        except TimeoutError:
            if sends.is_sending:
                raise _Gone from None
            raise _Failed(504, "the server did not answer in time") from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise _Failed(502, "the server cannot be reached", is_down=True) from None
        except httpx.LocalProtocolError:
            await self._refuse(exchange.send, 400, WRONG_HEADERS)
            return Ending.CANCELLED
        except (httpx.HTTPError, httpx.StreamError, OSError):
            raise _Failed(502, "the connection to the server broke") from None
        except Garbage as error:
            raise _Failed(502, str(error)) from None

    async def _stream(
        self,
        exchange: _Exchange,
        response: httpx.Response,
        headers: Headers,
        meter: AnswerMeter,
        limit: asyncio.Timeout,
        sends: _Sending,
    ) -> None:
        """Send events on as they come; the first bytes are held until they hold an event."""
        loop, idle_s = asyncio.get_running_loop(), self.params.idle_timeout_s
        held = b""
        async for chunk in _chunks(response):
            meter.feed(chunk, loop.time())
            if exchange.first_s is None:
                held += chunk
                if meter.first_s is None:
                    if len(held) > MAX_LINE:
                        raise Garbage(f"the stream holds no event in {MAX_LINE} bytes")
                    continue
                chunk = held
                exchange.first_s = loop.time()
                await sends.start(200, headers)
            limit.reschedule(loop.time() + idle_s)
            exchange.is_whole = meter.is_done
            await sends.body(chunk, more=True)
        if not meter.is_done:
            raise _Failed(502, "the stream of the server ended early")
        await sends.body(b"", more=False)

    async def _pass_error(
        self, exchange: _Exchange, response: httpx.Response, headers: Headers, sends: _Sending
    ) -> Ending:
        """Send the refusal of a server on; raise _Failed if it is the server's fault."""
        status = response.status_code
        body = await _read_answer(response, self.params.max_answer_bytes, cut=True)
        if status in (408, 429) or status >= 500:
            raise _Failed(
                status,
                f"the server answered with status {status}",
                retry_after_s=_retry_after_s(response) if status in (429, 503) else None,
                answer=(status, headers, body),
            )
        if not 400 <= status < 500:
            raise _Failed(502, f"the server answered with status {status}")
        exchange.first_s = asyncio.get_running_loop().time()
        await sends.whole(status, headers, body)
        return Ending.REFUSED

    async def _refuse(
        self, send: Send, status: int, words: str, *, retry_after_s: float | None = None
    ) -> None:
        self.metrics.refused(status)
        headers = [(b"content-type", b"application/json")]
        if retry_after_s is not None:
            headers.append((b"retry-after", str(max(math.ceil(retry_after_s), 1)).encode()))
        await self._send_whole(
            send, status, headers, json.dumps(_error_table(status, words)).encode()
        )

    async def _send_whole(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer; raise _Gone if the client does not read it in time."""
        try:
            async with asyncio.timeout(self.params.idle_timeout_s):
                await _Sending(send).whole(status, headers, body)
        except TimeoutError:
            raise _Gone from None

    async def _refuse_down(self, send: Send, refusal: Refusal) -> None:
        assert refusal.why is not Why.FULL
        wait_s = refusal.retry_at_s - asyncio.get_running_loop().time()
        retry_after_s = wait_s if wait_s < math.inf else 1.0
        await self._refuse(send, 503, str(refusal.why), retry_after_s=retry_after_s)

    def _at(self, pipeline: int, path: str, query: bytes = b"") -> httpx.URL:
        url = self._urls[pipeline]
        return url.copy_with(path=url.path.rstrip("/") + path, query=query or None)

    # --- other addresses ----------------------------------------------------------------

    async def _models(self, request: Request) -> Response:
        """Return the models of the first server that answers: all have the same."""
        headers = _kept(request.scope["headers"], NOT_SENT)
        query = request.scope["query_string"]
        for p in self._by_condition():
            try:
                async with asyncio.timeout(self.params.connect_timeout_s):
                    response = await self._get(p, "/v1/models", headers, query)
                    body = await _read_answer(response, self.params.max_answer_bytes)
            except httpx.LocalProtocolError:
                return JSONResponse(_error_table(400, WRONG_HEADERS), 400)
            except (httpx.HTTPError, OSError, TimeoutError, Garbage):
                continue
            if response.status_code < 500:
                found = Response(body, response.status_code)
                found.raw_headers = [
                    *_kept(response.headers.raw, NOT_SENT_ON),
                    (b"content-length", str(len(body)).encode()),
                ]
                return found
        return JSONResponse(_error_table(503, str(Why.DOWN)), 503)

    async def _health(self, request: Request) -> Response:
        now_s = asyncio.get_running_loop().time()
        conditions = {
            each.name: str(self.router.condition(p, now_s))
            for p, each in enumerate(self.router.pipelines)
        }
        is_up = Condition.UP in conditions.values()
        table = {"status": "ok" if is_up else "down", "pipelines": conditions}
        return JSONResponse(table, 200 if is_up else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    # --- health checks ------------------------------------------------------------------

    async def check(self, pipeline: int) -> None:
        """Ask a server for its health; one that does not know the address says nothing."""
        try:
            response = await self._get(pipeline, "/health", [])
            await response.aclose()
            if response.status_code in (401, 403, 404, 405):
                return
            is_well = response.status_code < 400
        except (httpx.HTTPError, OSError, TimeoutError):
            is_well = False
        now_s = asyncio.get_running_loop().time()
        if self.router.check(pipeline, is_well, now_s):
            name = self.router.pipelines[pipeline].name
            logger.warning("pipeline %s: %s", name, "up again" if is_well else "unhealthy")
        self.room.wake()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.params.health_interval_s)
            checks = map(self.check, range(len(self._urls)))
            for p, error in enumerate(await asyncio.gather(*checks, return_exceptions=True)):
                if isinstance(error, Exception):
                    name = self.router.pipelines[p].name
                    logger.error("pipeline %s: health check failed: %r", name, error)

    async def _get(
        self, pipeline: int, path: str, headers: Headers, query: bytes = b""
    ) -> httpx.Response:
        timeout_s = self.params.connect_timeout_s
        request = httpx.Request(
            "GET",
            self._at(pipeline, path, query),
            headers=[*headers],
            extensions={"timeout": {"connect": timeout_s, "read": timeout_s}},
        )
        async with asyncio.timeout(timeout_s):
            return await self._transports[pipeline].handle_async_request(request)

    def _by_condition(self) -> list[int]:
        now_s = asyncio.get_running_loop().time()
        order = range(len(self._urls))
        return sorted(order, key=lambda p: self.router.condition(p, now_s) is not Condition.UP)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watch = None
        if self.params.health_interval_s > 0:
            watch = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            for transport in self._transports:
                await transport.aclose()


class _Endpoint:
    """`Proxy.complete` as an ASGI application, which starlette does not wrap."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._proxy.complete(scope, receive, send)


class _Sending:
    """Sends to the client, and knows whether it waits for the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_sending = False

    async def _do(self, message: Message) -> None:
        self.is_sending = True
        try:
            await self._send(message)
        except OSError:
            raise _Gone from None
        self.is_sending = False

    async def start(self, status: int, headers: Headers) -> None:
        await self._do({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, chunk: bytes, *, more: bool) -> None:
        await self._do({"type": "http.response.body", "body": chunk, "more_body": more})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.body(body, more=False)


def server_url(owner: str, url: str) -> str:
    """Return the address of a server, without ``/v1`` at its end.

    Raises
    ------
    ValueError
        If it is no address of HTTP, or holds a password, a query or a fragment.

    Examples
    --------
    >>> server_url("server", "http://box:8000/v1/")
    'http://box:8000'
    """
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise ValueError(f"{owner}: url must be an address, got {url!r:.60}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ValueError(f"{owner}: url must be like http://host:port, got {url!r:.60}")
    try:
        found.raw_host.decode("ascii").encode("idna")
    except UnicodeError:
        raise ValueError(f"{owner}: url must name a host, got {url!r:.60}") from None
    if found.port is not None and not 1 <= found.port <= 65535:
        raise ValueError(f"{owner}: port of url must be from 1 to 65535, got {url!r:.60}")
    if found.userinfo or found.query or found.fragment:
        raise ValueError(f"{owner}: url must have no password, query or fragment")
    return str(found).rstrip("/").removesuffix("/v1")


def _transport(url: httpx.URL) -> httpx.AsyncBaseTransport:
    if url.scheme == "http":
        return LeanTransport()
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=256, keepalive_expiry=IDLE_S
    )
    return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)


def _kept(headers: Sequence[tuple[bytes, bytes]], without: frozenset[bytes]) -> Headers:
    """Return headers that are sent on, in lower case; ``Connection`` names further ones."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {
        each.strip().lower()
        for name, value in lower
        if name == b"connection"
        for each in value.split(b",")
    }
    # h11 takes blanks around a value off where it reads, and refuses to send them
    return [(name, value.strip(b" \t")) for name, value in lower if name not in without | named]


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    stated = dict(scope["headers"]).get(b"content-length", b"0")
    if stated.isdigit() and int(stated) > max_bytes:
        raise _TooLarge
    parts: list[bytes] = []
    n_bytes, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        n_bytes += len(parts[-1])
        if n_bytes > max_bytes:
            raise _TooLarge
        more = message.get("more_body", False)
    return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    return aiter(stream)


async def _read_answer(response: httpx.Response, max_bytes: int, *, cut: bool = False) -> bytes:
    """Return the body of an answer, and close it.

    Parameters
    ----------
    response : httpx.Response
    max_bytes : int
    cut : bool
        Whether the first `max_bytes` of a larger body will do.

    Raises
    ------
    Garbage
        If it is larger than `max_bytes`.
    """
    body = bytearray()
    try:
        async for chunk in _chunks(response):
            body += chunk
            if len(body) > max_bytes:
                if cut:
                    del body[max_bytes:]
                    break
                raise Garbage(f"the answer has more than {max_bytes} bytes")
    finally:
        await response.aclose()
    return bytes(body)


def _retry_after_s(response: httpx.Response) -> float | None:
    stated = response.headers.get("retry-after", "")
    return float(stated) if stated.isascii() and stated.isdigit() and len(stated) < 9 else None


def _error_table(status: int, words: str) -> dict[str, Any]:
    """Return an error in the form of OpenAI."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    return {"error": {"message": words, "type": kind, "param": None, "code": status}}


async def _of_status(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return JSONResponse(
        _error_table(status, str(getattr(error, "detail", "not found"))),
        status,
        headers=getattr(error, "headers", None),
    )
