"""Parts that the commands share: options, progress, tables, errors in one line."""

import contextlib
import errno
import functools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hypsolve import catalog
from hypsolve.formats.network_toml_types import runtime_keys
from hypsolve.planning.fitted_costs import COSTS
from hypsolve.planning.query import OBJECTIVES
from hypsolve.planning.request_mix import RequestMix
from hypsolve.planning.text import table

LENGTHS = ("prompt", "output")  # options for the lengths of all requests
OLD_OPTIONS = {"--dtype": "--weights", "--from": "--before"}  # old options and their successors


class OneLine(click.Group):
    """A group of commands that reports an error in one line.

    Exit codes: 0 success, 1 nothing fits, 2 bad input, 130 interrupted.
    """

    def main(self, args: Sequence[str] | None = None, *_: Any, **kwargs: Any) -> Any:
        """Run a command and exit; the object of its context is the command line."""
        given = sys.argv[1:] if args is None else list(args)
        kwargs |= {"standalone_mode": False, "obj": shlex.join(["hypsolve", *given])}
        try:
            sys.exit(super().main(given, "hypsolve", **kwargs) or 0)
        except click.NoSuchOption as error:
            successor = OLD_OPTIONS.get(error.option_name)
            _fail(
                f"unknown option {error.option_name}; did you mean {successor}?"
                if successor
                else error.format_message()
            )
        except click.ClickException as error:
            _fail(error.format_message())
        except TimeoutError as error:  # an OSError, but of no file
            print(f"hypsolve: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            _fail(f"{where}{error.strerror or error}")
        except (ValueError, TypeError) as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            print("hypsolve: stopped", file=sys.stderr)
            sys.exit(130)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit quietly if the output is closed, as by `| head`."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        return code


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _fail(message: str) -> None:
    print(f"hypsolve: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


_OBJECTIVE_HELP = {
    "throughput": "throughput: requests/s of servers that batch, simulated.",
    "goodput": "goodput: requests/s of which 95% are within the targets.",
    "latency": "latency: least mean latency of placements at --rate, in the fluid model.",
    "cost": "cost: price per request of servers that batch.",
    "bottleneck": "bottleneck: throughput, requests one at a time.",
    "path": "path: latency of one request.",
    "p0": "p0: the objective of the Hyperion paper.",
    "mean_latency": "mean_latency: simulated at --rate.",
}


class _Known(click.types.StringParamType):
    """A string of which help lists the known values; the query checks it."""

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(map(str, known))

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return f"[{'|'.join(self.known)}]"


_RUNTIME = {
    name: (
        kind if rule.known is None else _Known(rule.known()),
        f"{rule.about}  [default: the runtime's]",
    )
    for name, (kind, rule) in runtime_keys().items()
}
"""Type and help of the options that replace values of the runtime, which checks them."""
network_option = click.option(
    "--network",
    required=True,
    type=click.Path(),
    help="A TOML file (see hypsolve init), or an .ini file of Helix.",
)
machines_option = click.option(
    "--machines",
    required=True,
    type=click.Path(),
    help="A TOML file of machines (see hypsolve init --machines) or of a network, whose order"
    " does not count; an .ini file of Helix; or a .csv file of nvidia-smi.",
)
DEFAULT_ALONE = "bottleneck; path for a runtime of one batch at a time"
"""Default of objectives in seconds, in words."""
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def of_network(maybe: Callable[..., Any], inherits: bool) -> list[Any]:
    """Return the options of a query that are for a network with tiers in order alone."""
    earlier = "as in the earlier plan]"
    return [
        maybe(
            "--tensor-parallel",
            int,
            "GPUs of a machine that compute as one.  [default: "
            + (earlier if inherits else "the best by simulation]"),
        ),
        maybe(
            "--costs",
            click.Choice(COSTS),
            "Seconds of blocks by three numbers per GPU, or by fits to measured servers where"
            " there are any; auto: by fits if all GPUs have one that errs less.  [default: "
            + (earlier if inherits else "roofline]"),
        ),
    ]


def query_options(
    *,
    objectives: Sequence[str] = OBJECTIVES,
    inherits: bool = False,
    default_objective: str = "throughput; goodput with a target; with --method "
    + DEFAULT_ALONE,
    limits: str = "the whole command; compiling comes before",
    takes_requests: bool = True,
    takes_machines: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with the options of a query.

    The command gets their values as `arguments` of `hypsolve.plan`, besides model and network.
    Options without a default that are not given are left out.

    Parameters
    ----------
    objectives : sequence of str
        Choices of ``--objective``; empty: no such option.
    inherits : bool
        Whether an earlier plan provides defaults: options that are not given are left out.
    default_objective : str
        What ``--objective`` is by default, in words.
    limits : str
        What the time limit is for.
    takes_requests : bool
        Whether there is an option ``--requests`` for a file.
    takes_machines : bool
        Whether machines without an order are given in place of a network. The rate has no
        default then, and the degree of tensor parallelism is not an option.
    """

    def number(name: str, default: Any, words: str, **more: Any) -> Callable[..., Any]:
        if inherits:
            words = f"{words}  [default: as in the earlier plan]"
            return click.option(name, type=more.get("type", type(default)), help=words)
        return click.option(name, default=default, show_default=True, help=words, **more)

    def maybe(name: str, kind: Any, words: str) -> Callable[..., Any]:
        return click.option(name, type=kind, help=words)

    def target(time: str, words: str) -> Callable[..., Any]:
        names = (f"--slo-{time}", f"--{time}-slo", f"{time}_slo")  # either order of the words
        return click.option(*names, type=float, help=words)

    options = [
        click.option(
            "--model",
            required=True,
            help="A name (see hypsolve models), a config.json, a .gguf file, or a folder.",
        ),
        machines_option if takes_machines else network_option,
        number("--prompt", 512, "Prompt tokens of every request."),
        number("--output", 256, "Output tokens of every request."),
        maybe("--rate", float, "Requests per second.  [default: the largest]")
        if takes_machines
        else number("--rate", 1.0, "Requests per second."),
        maybe("--users", int, "Closed loop of so many users, in place of --rate."),
        maybe("--think-time", float, "Seconds from a user's request to the next one."),
        target("ttft", "Target for the first token, in seconds."),
        target("tpot", "Target for each later token, in seconds."),
        *(
            []
            if takes_machines
            else [
                number(
                    "--concurrency", 16, "Sequences for which every node must have KV cache."
                )
            ]
        ),
        click.option(
            "--weights",
            type=click.Choice(catalog.weights_choices(), case_sensitive=False),
            help="Format of weights; int4: gptq-int4.  [default: "
            + ("as in the earlier plan]" if inherits else "as stored; fp16 for a name]"),
        ),
        maybe(
            "--runtime",
            click.Choice(catalog.runtimes()),
            "Server whose limits, memory and batches are simulated.  [default: "
            + (
                "as in the earlier plan]"
                if inherits
                else "vllm]"
                if takes_machines
                else "as in the network file, else ideal]"
            ),
        ),
        *([] if takes_machines else of_network(maybe, inherits)),
        *(maybe(_flag(name), kind, words) for name, (kind, words) in _RUNTIME.items()),
        click.option(
            "--time-limit",
            default=60.0,
            show_default=True,
            help=f"Seconds for {limits}.",
        ),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            help="Seed of the method and of the simulated arrivals.",
        ),
        as_json_option,
    ]
    if objectives:
        options.append(
            maybe(
                "--objective",
                click.Choice(tuple(objectives)),
                " ".join(_OBJECTIVE_HELP[name] for name in objectives)
                + f"  [default: {default_objective}]",
            )
        )

    if takes_requests:
        options.append(
            maybe(
                "--requests",
                click.Path(),
                "File of requests of different lengths, in place of --prompt and --output; its"
                " own rate is the default of --rate.",
            )
        )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_arguments(**given: Any) -> Any:
            taken = {
                name: given.pop(option)
                for option, name in _ARGUMENTS.items()
                if option in given and (option != "requests" or takes_requests)
            }
            arguments = {name: value for name, value in taken.items() if value is not None}
            if taken.get("users") is not None and is_given("rate"):
                raise click.UsageError("--users and --rate exclude each other")
            if taken.get("users") is not None:
                arguments.pop("rate_per_s", None)  # the default
            if "requests" in arguments:
                for option in LENGTHS:
                    if is_given(option):
                        raise click.UsageError(f"--requests and --{option} exclude each other")
                arguments = planned_for(arguments, arguments["requests"])
            return command(arguments=arguments, **given)

        for option in reversed(options):
            with_arguments = option(with_arguments)
        return with_arguments

    return decorate


def planned_for(
    arguments: Mapping[str, Any], requests: str, *, needs_rate: bool = True
) -> dict[str, Any]:
    """Return the arguments of a plan for the requests of a file, without other defaults.

    They are returned as they are if lengths are given on the command line. `needs_rate` says
    whether requests that arrive all at one time need a rate that is given.
    """
    if any(map(is_given, LENGTHS)):
        return dict(arguments)
    mix = RequestMix.of(requests)
    kept = {**arguments, "requests": mix}
    for option in (*LENGTHS, "rate"):
        has_none = option == "rate" and math.isnan(mix.rate_per_s) and not needs_rate
        if not (is_given(option) or has_none):
            kept.pop(_ARGUMENTS[option], None)
    return kept


def is_given(option: str) -> bool:
    """Return whether an option stands on the command line of the command that runs."""
    source = click.get_current_context().get_parameter_source(option)
    return source not in (None, ParameterSource.DEFAULT)


def without_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that stand on the command line of the command that runs."""
    given = {name for option, name in _ARGUMENTS.items() if is_given(option)}
    return {name: value for name, value in arguments.items() if name in given}


_ARGUMENTS = {
    "prompt": "prompt_tokens", "output": "output_tokens", "concurrency": "concurrency",
    "weights": "weights", "objective": "objective", "time_limit": "time_limit_s",
    "rate": "rate_per_s", "users": "users", "think_time": "think_time_s",
    "ttft_slo": "ttft_slo_s", "tpot_slo": "tpot_slo_s", "runtime": "runtime",
    "seed": "seed", "tensor_parallel": "tensor_parallel", "requests": "requests",
    "costs": "costs",
    **{name: name for name in _RUNTIME},
}  # fmt: skip


def to_write(path: str | Path | None, *endings: str) -> None:
    """Raise unless a file can be written there and its name has one of `endings`.

    Commands call this before the work starts.
    """
    if path is None:
        return
    if endings and not str(path).endswith(endings):
        raise ValueError(f"{path}: the name must end in {' or '.join(endings)}")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write in", str(path))


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Provide a function that shows a line of progress in place of the previous line.

    It shows nothing unless stderr is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    try:
        yield lambda line: print(f"\r\033[K{line:.100}", end="", file=sys.stderr, flush=True)
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as a table or as JSON."""
    print(json.dumps(rows, indent=2, allow_nan=False) if as_json else table(rows))
