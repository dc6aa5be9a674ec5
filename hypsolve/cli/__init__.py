"""The command `hypsolve`: plan for your own network, and list what is known."""

import logging

import click

from hypsolve.cli.calibrate import calibrate
from hypsolve.cli.catalog import gpus, init, interconnect_list, methods, models, schema
from hypsolve.cli.commands import compare, pareto, replan, simulate
from hypsolve.cli.measure import measure
from hypsolve.cli.options import OneLine
from hypsolve.cli.place import place, rent
from hypsolve.cli.plan import plan
from hypsolve.cli.route import route
from hypsolve.cli.saved_placement import export, verify


@click.group(
    cls=OneLine,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="hypsolve")
@click.pass_context
def main(context: click.Context) -> int:
    """Place one LLM on a network of unequal GPUs, and prove that no split is better.

    \b
    hypsolve init      writes an example network.toml to edit
    hypsolve plan --model llama-3-8b --network network.toml
    """  # noqa: D301
    logging.basicConfig(format="%(message)s", level=logging.WARNING)  # which kernels compile
    if context.invoked_subcommand is not None:
        return 0
    print(context.get_help())
    return 2


LISTS = (gpus, interconnect_list, models, methods, schema)
PLANS = (plan, place, rent, compare, pareto, simulate, replan, export, verify, route)
for command in (init, *PLANS, measure, calibrate, *LISTS):
    main.add_command(command)
