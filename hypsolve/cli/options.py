"""What the commands share: options, tables, errors in one line."""

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


class OneLine(click.Group):
    """Errors in one line; exit codes 0 done, 1 infeasible, 2 bad input, 130 stopped."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **kwargs: Any) -> Any:
        """Run a command, and exit; its context's object is the command line."""
        given = sys.argv[1:] if args is None else list(args)
        kwargs |= {"standalone_mode": False, "obj": shlex.join(["hypsolve", *given])}
        try:
            sys.exit(super().main(given, "hypsolve", **kwargs) or 0)
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
        """Run a command; nobody may read on, as after `| head`."""
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


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def asking(
    *, objectives: Sequence[str] = OBJECTIVES, rate: bool = True, inherits: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that say what is wanted; the command gets them as `ask`, for `hypsolve.plan`.

    If it inherits what an earlier plan was asked for, numbers that are not given are None.
    """

    def number(name: str, default: int, words: str) -> Callable[..., Any]:
        if inherits:
            return click.option(name, type=int, help=f"{words} Default: as in the plan so far.")
        return click.option(name, default=default, show_default=True, help=words)

    options = [
        click.option("--model", required=True, help="A name, a config.json, or a folder."),
        click.option("--network", required=True, type=click.Path(), help="A TOML file."),
        number("--prompt", 512, "Tokens of a prompt."),
        number("--output", 256, "Tokens of an output."),
        number("--concurrency", 16, "Sequences that every node must have room for at once."),
        click.option(
            "--dtype",
            type=click.Choice(tuple(catalog.GROUP_BYTES)),
            help="Format of all weights; default: as stored, fp16 for a name.",
        ),
        click.option(
            "--time-limit",
            default=60.0,
            show_default=True,
            help="Seconds of a search; of those for changes, 1 each.",
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
                help="What to minimise; see README.",
            )
        )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def asked(**given: Any) -> Any:
            ask = {
                name: given.pop(option) for option, name in _ASKED.items() if option in given
            }
            return command(ask=ask, **given)

        for option in reversed(options):
            asked = option(asked)
        return asked

    return decorate


_ASKED = {
    "prompt": "prompt_tokens", "output": "output_tokens", "concurrency": "concurrency",
    "dtype": "weights", "objective": "objective", "time_limit": "time_limit_s",
    "rate": "rate_per_s",
}  # fmt: skip


def to_write(path: str | Path | None, *endings: str) -> None:
    """Refuse a file that cannot be written, before the work; `endings`: of its name."""
    if path is None:
        return
    if endings and not str(path).endswith(endings):
        raise ValueError(f"{path}: the name must end in {' or '.join(endings)}")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write in", str(path))


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows a line of what is being done, in place of the one before.

    Nothing is shown where errors do not go to a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    try:
        yield lambda line: print(f"\r\033[K{line:.100}", end="", file=sys.stderr, flush=True)
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a table, or the same as JSON."""
    print(json.dumps(rows, indent=2, allow_nan=False) if as_json else table(rows))
