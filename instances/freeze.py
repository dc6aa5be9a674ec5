"""Frozen instances: small stored ones of every objective and rule, with their best results.

``frozen/INDEX.toml`` holds the digest of each file, and the best objective and bound that
`record` has noted. A file stays unchanged when generators or the catalogue change:
``python -m instances.freeze`` only makes missing files.
"""

import argparse
import json
import math
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypsolve.formats import instance_json
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance
from instances.frontier import frontier, profiled
from instances.generate import generate
from instances.scenarios import scenario

FOLDER = Path(__file__).parent / "frozen"

RECIPES: dict[str, Callable[[], Instance]] = {
    "campus-bottleneck": lambda: scenario("campus", "phi-3-medium", n_requests=20, seed=1),
    "mixed-rack-slowest-overlap": lambda: scenario(
        "mixed-rack", n_requests=20, seed=1, stage_rule="slowest", overlap=True
    ),
    "branch-offices-full-links": lambda: scenario(
        "branch-offices-wan", "phi-3-medium", n_requests=20, seed=1, link_cost="full"
    ),
    "factory-path-empty": lambda: scenario(
        "factory", n_requests=20, seed=1, objective="path", allow_empty=True
    ),
    "phone-edge-cloud-p0": lambda: scenario(
        "phone-edge-cloud-5g", n_requests=20, seed=1, objective="p0", stage_rule="fastest"
    ),
    "operator-pinned": lambda: scenario(
        "operator-5-tier",
        n_requests=20,
        seed=1,
        allow_empty=True,
        pinned={0: 0, 33: 4},
        min_blocks=[1, 0, 2, 0, 1],
        max_blocks=[8, 34, 34, 34, 12],
    ),
    "home-lab-infeasible": lambda: scenario("home-lab", "llama-3-70b", n_requests=20, seed=1),
    "tight-memory": lambda: generate(
        seed=3,
        n_tiers=4,
        nodes_per_tier=3,
        memory_tightness=0.9,
        link_class="metro",
        n_requests=20,
    ),
    "azure-conversation-mean-latency": lambda: scenario(
        "campus", n_requests=12, seed=1, lengths="azure_conversation", objective="mean_latency"
    ),
    "frontier-8": lambda: frontier(8, seed=1),
    "frontier-8-burst-makespan": lambda: frontier(8, seed=2, burst=True, objective="makespan"),
    "profiled-8": lambda: profiled(8, seed=1),
}


def frozen() -> tuple[str, ...]:
    """Return the names of the frozen instances."""
    return tuple(index())


def index() -> dict[str, dict[str, Any]]:
    """Return the index: digest, objective and sizes, and best_s and bound_s if recorded."""
    return tomllib.loads((FOLDER / "INDEX.toml").read_text(encoding="utf-8"))


def load_frozen(name: str) -> Instance:
    """Load a frozen instance and check its digest."""
    entry = index()[valid.known("frozen instance", name, frozen())]
    instance = instance_json.load(FOLDER / f"{name}.json")
    if instance.digest() != entry["digest"]:
        raise ValueError(f"frozen instance {name!r}: digest must be {entry['digest']}")
    return instance


def record(name: str, *, best_s: float, bound_s: float, method: str) -> bool:
    """Record an objective and a bound that improve on the index; return whether one did.

    A bound of inf records a proof of infeasibility. Without it an objective of inf is ignored.
    """
    entries = index()
    entry = entries[valid.known("frozen instance", name, entries)]
    for field, value in (("best_s", best_s), ("bound_s", bound_s)):
        if value != math.inf:
            valid.real(f"frozen instance {name!r}", field, value)
    if best_s < bound_s * (1 - 1e-6):
        raise ValueError(
            f"frozen instance {name!r}: best_s {best_s!r} beats bound_s {bound_s!r}"
        )
    better = {}
    if best_s < entry.get("best_s", math.inf) or best_s == bound_s == math.inf != entry.get(
        "best_s"
    ):
        better |= {"best_s": best_s, "best_method": method}
    if bound_s > entry.get("bound_s", 0.0):
        better |= {"bound_s": bound_s, "bound_method": method}
    entry |= better
    if better:
        _write(entries)
    return bool(better)


def _write(entries: dict[str, dict[str, Any]]) -> None:
    lines = ["# Written by instances.freeze; times in seconds."]
    for name, entry in entries.items():
        lines += ["", f"[{name}]"]
        lines += (f"{key} = {_toml(value)}" for key, value in entry.items())
    (FOLDER / "INDEX.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: str | int | float) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value)


def main(arguments: list[str] | None = None) -> int:
    """Make the frozen instances that are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m instances.freeze", description=main.__doc__
    )
    parser.add_argument(
        "--force", action="store_true", help="remake all files and forget the recorded results"
    )
    force = parser.parse_args(arguments).force
    FOLDER.mkdir(exist_ok=True)
    known = index() if (FOLDER / "INDEX.toml").exists() and not force else {}
    entries = {}
    for name, recipe in RECIPES.items():
        if name not in known or not (FOLDER / f"{name}.json").exists():
            instance = recipe()
            instance_json.save(instance, FOLDER / f"{name}.json")
            known[name] = {
                "digest": instance.digest(),
                "objective": str(instance.objective),
                "n_requests": instance.n_requests,
                "n_blocks": instance.n_blocks,
                "n_nodes": instance.n_nodes,
            }
            print(f"made {name}")
        entries[name] = known[name]
    _write(entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
