"""README's picture: ``python -m experiments.readme_picture`` writes results/network.png."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import hypsolve as hs
from instances import network

_PATH = Path(__file__).parent.parent / "results" / "network.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan Phi-3-medium on the campus network and draw the network with the layers on it."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.readme_picture", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=_PATH, help="the PNG file to write")
    path = parser.parse_args(arguments).out

    import matplotlib

    matplotlib.use("Agg")
    plan = hs.plan(
        "phi-3-medium", network("campus"), objective="bottleneck", with_upgrades=False
    )
    plan.plot("network").figure.savefig(path, dpi=150, bbox_inches="tight")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
