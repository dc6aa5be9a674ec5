"""`serve`: run a `Proxy` until SIGTERM or Ctrl-C, then finish what is under way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import uvicorn

from hypsolve.router.proxy import Proxy


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, and tell the port."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])


def serve(
    proxy: Proxy, *, host: str, port: int, drain_s: int, ready: Callable[[int], None]
) -> bool:
    """Serve until SIGTERM or SIGINT; return whether the server could start.

    Then no connection is accepted, and requests that were accepted have `drain_s` seconds to
    end. A second SIGINT ends at once.

    Parameters
    ----------
    proxy : Proxy
    host : str
    port : int
        0: any that is free.
    drain_s : int
    ready : callable
        Called with the port when the server listens.
    """
    config = uvicorn.Config(
        proxy.app, host=host, port=port, log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=drain_s, lifespan="on",
    )  # fmt: skip
    server = _Server(config, ready)
    # uvicorn raises the signal once more when it has stopped, which ends the process otherwise
    kept = {
        each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve())
    except SystemExit:  # it could not listen, and has said why
        return False
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
    return server.started
