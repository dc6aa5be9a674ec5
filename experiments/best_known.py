"""Improve the best known answers of the frozen instances: `python -m experiments.best_known`.

Every suitable method solves them. Better objectives and bounds are recorded in
``instances/frozen/INDEX.toml``; none is lost, so the command can be repeated with more time.
"""

import argparse
import sys

from hypsolve import METHODS, Status, solve
from instances import freeze


def main(arguments: list[str] | None = None) -> int:
    """Search for better objectives and bounds of the frozen instances."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.best_known", description=main.__doc__
    )
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S")
    limit_s = parser.parse_args(arguments).time_limit
    for name in freeze.frozen():
        instance = freeze.load_frozen(name)
        for method, entry in METHODS.items():
            if instance.objective not in entry.objectives:
                continue
            result = solve(instance, method, time_limit_s=limit_s)
            if result.status is Status.INFEASIBLE and result.bound_s == 0:
                continue  # a baseline that does not fit proves nothing
            news = freeze.record(
                name, best_s=result.objective_s, bound_s=result.bound_s, method=method
            )
            if news:
                print(
                    f"{name}: {method} {result.objective_s:.9g} s, bound {result.bound_s:.9g} s"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
