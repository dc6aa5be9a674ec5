"""Parts that the commands share: options, progress, tables, errors in one line."""

import contextlib
import errno
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hypsolve import catalog
from hypsolve.planning.query import OBJECTIVES
from hypsolve.planning.text import table

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


def _fail(message: str) -> None:
    print(f"hypsolve: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


_OBJECTIVE_HELP = {
    "bottleneck": "bottleneck: throughput, requests one at a time.",
    "path": "path: latency of one request.",
    "p0": "p0: the objective of the Hyperion paper.",
    "mean_latency": "mean_latency: simulated at --rate.",
}
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def query_options(
    *,
    objectives: Sequence[str] = OBJECTIVES,
    rate: bool = True,
    inherits: bool = False,
    scenarios: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with the options of a query.

    The command gets their values as `arguments` of `hypsolve.plan`, besides model and network.

    Parameters
    ----------
    objectives : sequence of str
        Choices of ``--objective``; empty: no such option.
    rate : bool
        Whether there is an option ``--rate``.
    inherits : bool
        Whether an earlier plan provides defaults: numbers that are not given are None.
    scenarios : bool
        Whether the command solves what-if scenarios.
    """
    of_scenarios = "; each what-if scenario gets at most 1" if scenarios else ""

    def number(name: str, default: int, words: str) -> Callable[..., Any]:
        if inherits:
            words = f"{words}  [default: as in the earlier plan]"
            return click.option(name, type=int, help=words)
        return click.option(name, default=default, show_default=True, help=words)

    options = [
        click.option(
            "--model",
            required=True,
            help="A name (see hypsolve models), a config.json, a .gguf file, or a folder.",
        ),
        click.option(
            "--network",
            required=True,
            type=click.Path(),
            help="A TOML file (see hypsolve init), or an .ini file of Helix.",
        ),
        number("--prompt", 512, "Prompt tokens of every request."),
        number("--output", 256, "Output tokens of every request."),
        number("--concurrency", 16, "Sequences for which every node must have KV cache."),
        click.option(
            "--weights",
            type=click.Choice(catalog.weights_choices(), case_sensitive=False),
            help="Format of weights; int4: gptq-int4.  [default: as stored; fp16 for a name]",
        ),
        click.option(
            "--time-limit",
            default=60.0,
            show_default=True,
            help=f"Seconds for the search{of_scenarios}.",
        ),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            help="Seed of the method" + (" and of the simulated arrivals." if rate else "."),
        ),
        as_json_option,
    ]
    if rate:
        options.append(
            click.option("--rate", default=1.0, show_default=True, help="Requests per second.")
        )
    if objectives:
        options.append(
            click.option(
                "--objective",
                type=click.Choice(tuple(objectives)),
                default="bottleneck",
                show_default=True,
                help=" ".join(_OBJECTIVE_HELP[name] for name in objectives),
            )
        )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_arguments(**given: Any) -> Any:
            arguments = {
                name: given.pop(option)
                for option, name in _ARGUMENTS.items()
                if option in given
            }
            return command(arguments=arguments, **given)

        for option in reversed(options):
            with_arguments = option(with_arguments)
        return with_arguments

    return decorate


_ARGUMENTS = {
    "prompt": "prompt_tokens", "output": "output_tokens", "concurrency": "concurrency",
    "weights": "weights", "objective": "objective", "time_limit": "time_limit_s",
    "rate": "rate_per_s", "seed": "seed",
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
