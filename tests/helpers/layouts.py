"""Random layouts: machines with overlapping ranges of blocks, and flows between them."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hypsolve as hs
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from tests.helpers.placements import (
    BLOCKS,
    GPUS,
    machine,
    random_link,
    random_requests,
    random_runtime,
    small_model,
)

PARTS = 16  # flows that leave a node add up to so many, so that their shares are exact


@dataclass(frozen=True)
class Case:
    """A layout to simulate."""

    problem: hs.PlacementProblem
    layout: LayerLayout
    options: dict[str, Any] = field(default_factory=dict)


def replicas_layout(tiers):
    """Return a layout of tiers of equal ranges, with equal flows from each tier to the next.

    `tiers` are pairs (names of machines, (start, stop)).
    """
    ranges = tuple(HostedRange(name, *blocks) for names, blocks in tiers for name in names)
    levels = [[None], *(list(names) for names, _ in tiers), [None]]
    flows = tuple(
        (a, b, 1.0)
        for first, second in itertools.pairwise(levels)
        for a in first
        for b in second
    )
    return LayerLayout(ranges, flows)


def _weights(rng, n):
    """Return n positive whole numbers that add up to `PARTS`."""
    cuts = np.sort(rng.choice(np.arange(1, PARTS), n - 1, False))
    return np.diff([0, *cuts, PARTS]).tolist()


def _ranges(rng):
    """Return ranges of one to three chains of machines; most start earlier than needed."""
    chains = []
    for c in range(int(rng.integers(1, 4))):
        n = int(rng.integers(1, 5))
        cuts = [0, *sorted(rng.choice(np.arange(2, BLOCKS), n - 1, False).tolist()), BLOCKS]
        chain = []
        for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
            early = int(rng.integers(0, 4)) if i and rng.random() < 0.7 else 0
            chain.append(HostedRange(f"m{c}-{i}", max(start - early, 0), stop))
        chains.append(chain)
    return chains


def _flows(rng, chains):
    """Return flows along the chains, and across them where blocks go on."""
    ranges = [each for chain in chains for each in chain]
    ways = {None: [chain[0].machine for chain in chains]}
    ways[None] += [r.machine for r in ranges if not r.start and r.machine not in ways[None]]
    for chain in chains:
        for a, after in itertools.zip_longest(chain, chain[1:]):
            ways[a.machine] = [after.machine if after else None]
            for b in ranges:
                goes_on = b.start <= a.stop < b.stop and b is not after
                if goes_on and rng.random() < 0.6:
                    ways[a.machine].append(b.machine)
    return tuple(
        (a, b, float(w))
        for a, ends in ways.items()
        for b, w in zip(ends, _weights(rng, len(ends)), strict=True)
    )


def random_layout(seed):
    """Return a layout on machines of two sites, often with little room for KV cache."""
    rng = np.random.default_rng([seed, 17])
    model, requests = small_model(), random_requests(rng)
    chains = _ranges(rng)
    machines = []
    for each in itertools.chain(*chains):
        blocks = model.blocks[each.start : each.stop]
        site = str(rng.choice(["here", "there"]))
        gpu = str(rng.choice(GPUS))
        machines.append(machine(rng, each.machine, site, gpu, model, blocks, requests))
    sites = tuple(hs.Site(name=name, link=random_link(rng)) for name in ("here", "there"))
    problem = hs.PlacementProblem(
        model=model,
        requests=requests,
        fleet=hs.Fleet(
            name="lab",
            sites=sites,
            machines=tuple(machines),
            links={("here", "there"): random_link(rng)},
            entry={"here": 0.75, "there": 0.25},
        ),
    )
    options = random_runtime(rng)
    for name in ("kv_admission", "kv_block_tokens"):
        options.pop(name, None)
    if rng.random() < 0.3:
        options |= {"users": int(rng.integers(1, 12)), "think_time_s": 0.02}
    layout = LayerLayout(tuple(itertools.chain(*chains)), _flows(rng, chains))
    return Case(problem, layout, options)
