"""The command `route`: HypSched-RT in front of the servers of a plan."""

import logging
import sys
from typing import Any

import click

from hypsolve.problem import validation as valid
from hypsolve.problem.optional import install
from hypsolve.problem.units import count


@click.command()
@click.argument("plan", type=click.Path())
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME_OR_NUMBER=URL",
    help="Address of the server of a pipeline, which is named by its number or one of its"
    " machines; once for every pipeline.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9000, show_default=True, help="Port; 0: any that is free.")
@click.option(
    "--max-in-flight",
    type=int,
    help="Requests at once of each pipeline.  [default: the plan's]",
)
@click.option(
    "--max-queue", default=256, show_default=True, help="Requests that wait; more get 429."
)
@click.option(
    "--first-token-timeout", default=120.0, show_default=True, help="Seconds to a first token."
)
@click.option(
    "--idle-timeout", default=60.0, show_default=True, help="Seconds between two tokens."
)
@click.option(
    "--answer-timeout",
    default=600.0,
    show_default=True,
    help="Seconds to an answer that is not streamed.",
)
@click.option("--max-body-mib", default=16, show_default=True, help="Largest request, in MiB.")
@click.option(
    "--health-interval",
    default=5.0,
    show_default=True,
    help="Seconds between checks of /health of each server; 0: none.",
)
@click.option(
    "--drain", default=30, show_default=True, help="Seconds to finish requests at a stop."
)
def route(
    plan: str,
    servers: tuple[str, ...],
    host: str,
    port: int,
    max_in_flight: int | None,
    max_queue: int,
    first_token_timeout: float,
    idle_timeout: float,
    answer_timeout: float,
    max_body_mib: int,
    health_interval: float,
    drain: int,
) -> int:
    """Send requests to the servers of a plan: each to the pipeline that ends it first.

    \b
    hypsolve place --model llama-3-8b --machines machines.toml --save placement.json
    hypsolve route placement.json --server 1=http://box:8000 --server 2=http://rack:8000

    PLAN is a saved placement, or what hypsolve plan --json prints. The address that it listens
    on takes requests as OpenAI's does, and has /health and /metrics. It knows no TLS and no
    passwords: leave them to a gateway.

    Exit code: 0 stopped by SIGTERM or Ctrl-C; 1 the port is taken; 2 bad input.
    """  # noqa: D301
    try:
        from hypsolve.router.proxy import Proxy, ProxyParams
        from hypsolve.router.serve import serve
    except ImportError as error:
        raise ValueError(
            f"route needs the package {error.name!r}; {install('router')}"
        ) from None
    from hypsolve.router.core import Router
    from hypsolve.router.params import RouterParams
    from hypsolve.router.plan_pipelines import read_pipelines

    valid.whole("route", "--port", port, maximum=65535)
    valid.whole("route", "--drain", drain, minimum=1)
    valid.whole("route", "--max-body-mib", max_body_mib, minimum=1, maximum=2**20)
    if max_in_flight is not None:
        valid.whole("route", "--max-in-flight", max_in_flight, minimum=1, maximum=2**30)
    host = _host(host)
    planned = read_pipelines(plan, max_in_flight)
    urls = planned.urls(servers)
    params: dict[str, Any] = {
        "max_queue": max_queue,
        "first_token_timeout_s": first_token_timeout,
        "idle_timeout_s": idle_timeout,
        "answer_timeout_s": answer_timeout,
        "max_body_bytes": max_body_mib * 2**20,
        "health_interval_s": health_interval,
    }
    router = Router(planned.pipelines, RouterParams(output_tokens=planned.output_tokens))
    proxy = Proxy(router, urls, ProxyParams(**params))
    logging.getLogger("hypsolve.router").setLevel(logging.INFO)

    def ready(bound: int) -> None:
        what = count(len(urls), "pipeline")
        print(
            f"{what} behind http://{f'[{host}]' if ':' in host else host}:{bound}/v1",
            flush=True,
        )

    if not serve(proxy, host=host, port=port, drain_s=drain, ready=ready):
        return 1
    print("stopped", file=sys.stderr)
    return 0


def _host(given: str) -> str:
    """Return an address to listen on; IPv6 may stand in brackets."""
    host = given[1:-1] if given[:1] == "[" and given[-1:] == "]" else given
    try:
        is_name = bool(host.encode("idna")) and not set(host) & set("/[]@ ")
    except UnicodeError:
        is_name = False
    if not is_name:
        raise ValueError(f"route: --host must be a host name or an address, got {given!r:.60}")
    return host
