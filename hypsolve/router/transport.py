"""`LeanTransport`: HTTP to a server over asyncio's own streams, with few system calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx

IDLE_S = 4.0  # servers close idle connections after 5 s
_ERRORS = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection; what is written is kept until something is to be read.

    The head and the body of a request then leave in one system call.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._kept: list[bytes] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what was kept, and read what comes; `Proxy` has time limits of its own."""
        try:
            if self._kept:
                self._writer.write(b"".join(self._kept))
                self._kept.clear()
                await self._writer.drain()
            return await self._reader.read(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep bytes until the next `read`, which follows every request."""
        self._kept.append(buffer)

    async def aclose(self) -> None:
        """Close the connection, without waiting for the other side."""
        self._writer.close()

    def get_extra_info(self, info: str) -> Any:
        """Return whether the server closed an idle connection; nothing else is known."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return None


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; asyncio sets TCP_NODELAY."""
        try:
            async with asyncio.timeout(timeout):
                return _Stream(*await asyncio.open_connection(host, port))
        except TimeoutError:
            raise httpcore.ConnectTimeout("no connection in time") from None
        except (OSError, UnicodeError) as error:  # the latter: no name of a host
            raise httpcore.ConnectError(str(error)) from None

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """The body of an answer, with errors as of httpx."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except _ERRORS as error:
            raise httpx.ReadError(str(error)) from None

    async def aclose(self) -> None:
        await self._stream.aclose()


class LeanTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 without TLS, over connections that are kept open."""

    def __init__(self) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None,
            max_keepalive_connections=256,
            keepalive_expiry=IDLE_S,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return its answer as soon as its head is there.

        Raises
        ------
        httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError
        httpx.LocalProtocolError
            If the request itself, such as a header, breaks the rules of HTTP.
        """
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            found = await self._pool.handle_async_request(sent)
        except httpcore.ConnectError as error:
            raise httpx.ConnectError(str(error)) from None
        except httpcore.ConnectTimeout as error:
            raise httpx.ConnectTimeout(str(error)) from None
        except httpcore.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from None
        except _ERRORS as error:
            raise httpx.ReadError(str(error)) from None
        return httpx.Response(found.status, headers=found.headers, stream=_Body(found.stream))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
