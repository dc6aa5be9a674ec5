"""`LeanTransport` against servers on real sockets that break, close and refuse."""

import asyncio
import contextlib

import httpx
import pytest

from hypsolve.router.transport import LeanTransport


async def ask(transport, port, body=b"{}"):
    request = httpx.Request("POST", f"http://127.0.0.1:{port}/v1/completions", content=body)
    response = await transport.handle_async_request(request)
    chunks = [chunk async for chunk in response.stream]
    await response.aclose()
    return response.status_code, b"".join(chunks)


def run(answers):
    """Serve one answer a request, as told, and return what each request got."""

    async def script():
        heads, n_connections = [], 0
        waiting = list(answers)

        async def serve(reader, writer):
            nonlocal n_connections
            n_connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while waiting:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    heads.append((head, await reader.readexactly(length)))
                    answer, closes = waiting.pop(0)
                    writer.write(answer)
                    await writer.drain()
                    if closes:
                        break
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport, got = LeanTransport(), []
        for n in range(len(answers)):
            try:
                got.append(await ask(transport, port, b"x" * (10**6 * n)))
            except httpx.HTTPError as error:
                got.append(type(error))
            await asyncio.sleep(0.05)
        await transport.aclose()
        server.close()
        return got, heads, n_connections

    return asyncio.run(asyncio.wait_for(script(), 20))


GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def test_a_connection_is_used_again_and_bodies_arrive_whole():
    got, heads, n_connections = run([(GOOD, False), (CHUNKED, False), (GOOD, True)])
    assert got == [(200, b"ok"), (200, b"abc"), (200, b"ok")]
    assert [len(body) for _, body in heads] == [0, 10**6, 2 * 10**6]
    assert n_connections == 1


def test_a_connection_that_the_server_closed_is_not_used_again():
    got, _, n_connections = run([(GOOD, True), (GOOD, True)])
    assert got == [(200, b"ok")] * 2
    assert n_connections == 2


@pytest.mark.parametrize("broken", [b"", b"no http at all\r\n\r\n", GOOD[:-1], CHUNKED[:-8]])
def test_a_server_that_breaks_is_an_error_of_httpx(broken):
    got, _, _ = run([(broken, True), (GOOD, True)])
    assert got == [httpx.ReadError, (200, b"ok")]


def test_what_is_no_name_of_a_host_cannot_be_reached():
    async def script():
        request = httpx.Request("GET", "http://a..b:80/")
        with pytest.raises(httpx.ConnectError):
            await LeanTransport().handle_async_request(request)

    asyncio.run(script())


def test_a_header_that_cannot_be_sent_is_told_apart():
    async def script():
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        request = httpx.Request("GET", url, headers=[(b"x-mine", b"a\x00b")])
        with pytest.raises(httpx.LocalProtocolError):
            await LeanTransport().handle_async_request(request)
        await asyncio.sleep(0.05)
        server.close()

    asyncio.run(script())


def test_a_refused_connection_is_told_apart():
    async def script():
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(httpx.ConnectError):
            await ask(LeanTransport(), port)

    asyncio.run(script())
