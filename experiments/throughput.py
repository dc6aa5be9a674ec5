"""Run the experiments on requests per second: ``python -m experiments.throughput [OPTIONS]``.

This is the experiment `throughput` of `experiments.sweep`, with the options of the sweep. With
``--exhaustive`` it is the experiment `throughput_exhaustive`, which simulates every split of
eight small deployments.
"""

import sys
from collections.abc import Sequence

from experiments import sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = "throughput"
    if "--exhaustive" in given:
        given.remove("--exhaustive")
        name = "throughput_exhaustive"
    return sweep.main([name, *given])


if __name__ == "__main__":
    sys.exit(main())
