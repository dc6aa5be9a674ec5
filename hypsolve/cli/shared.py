"""What the commands share: options, tables, errors in one line."""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from hypsolve import catalog
from hypsolve.planner import OBJECTIVES


class OneLine(click.Group):
    """Errors in one line; exit codes 0 done, 1 infeasible, 2 bad input, 130 stopped."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, and exit."""
        kwargs |= {"standalone_mode": False, "prog_name": "hypsolve"}
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.ClickException as error:
            _fail(error.format_message())
        except (ValueError, TypeError, OSError) as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            print("hypsolve: stopped", file=sys.stderr)
            sys.exit(130)


def _fail(message: str) -> None:
    print(f"hypsolve: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what is wanted; the command gets them as `ask`, for `hypsolve.plan`."""

    @click.option("--model", required=True, help="A name, a config.json, or a folder.")
    @click.option("--network", required=True, type=click.Path(), help="A TOML file.")
    @click.option("--prompt", default=512, show_default=True, help="Tokens of a prompt.")
    @click.option("--output", default=256, show_default=True, help="Tokens of an output.")
    @click.option(
        "--concurrency",
        default=16,
        show_default=True,
        help="Sequences that every node must have room for at once.",
    )
    @click.option(
        "--dtype",
        type=click.Choice(tuple(catalog.GROUP_BYTES)),
        help="Format of the weights; default: as stored, fp16 for a name.",
    )
    @click.option(
        "--objective", type=click.Choice(OBJECTIVES), default="bottleneck", show_default=True
    )
    @click.option("--time-limit", default=60.0, show_default=True, help="Seconds of a search.")
    @as_json_option
    @functools.wraps(command)
    def asked(
        *,
        prompt: int,
        output: int,
        concurrency: int,
        dtype: str | None,
        objective: str,
        time_limit: float,
        **others: Any,
    ) -> Any:
        ask = {
            "prompt_tokens": prompt,
            "output_tokens": output,
            "concurrency": concurrency,
            "weights": dtype,
            "objective": objective,
            "time_limit_s": time_limit,
        }
        return command(ask=ask, **others)

    return asked


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a table: numbers to the right, the last column as long as it is."""
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(names))]
    right = [all(row[at][:1].isdigit() or row[at] == "-" for row in cells[1:])
             for at in range(len(names))]  # fmt: skip
    for row in cells:
        padded = (
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(row, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
