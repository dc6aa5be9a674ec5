"""Rules split over the tiers that may hold blocks, as if the others were not there."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.solvers.partition import heuristics, open_tiers

RULES = (
    "even_split", "memory_proportional", "speed_proportional", "torchgpipe",
    "deepspeed_balanced", "pipedream", "heft_split",
)  # fmt: skip
N_BLOCKS = 9


def instances(rng, closed):
    """An instance of five tiers, and the one that a person would write without the closed."""
    block_s = rng.integers(1, 9, (1, 2, N_BLOCKS)).astype(float)
    block_bytes = rng.integers(1, 4, N_BLOCKS).astype(float)
    tiers = [
        [(int(rng.integers(2)), float(rng.integers(40, 90))) for _ in range(rng.integers(1, 3))]
        for _ in range(5)
    ]
    transfer_s = rng.integers(1, 5, (1, 4, N_BLOCKS + 1)).astype(float)
    transfer_s[..., -1] = 0
    common = {"objective": "bottleneck"}
    whole = hs.Instance.from_tables(
        block_s, block_bytes, tiers, transfer_s=transfer_s, allow_empty=bool(closed),
        min_blocks=[0 if k in closed else 1 for k in range(5)],
        max_blocks=[0 if k in closed else N_BLOCKS for k in range(5)], **common,
    )  # fmt: skip
    kept = [k for k in range(5) if k not in closed]
    ways = [transfer_s[:, a:b].sum(axis=1) for a, b in itertools.pairwise(kept)]
    small = hs.Instance.from_tables(
        block_s, block_bytes, [tiers[k] for k in kept],
        transfer_s=np.stack(ways, axis=1) if ways else np.zeros((1, 0, N_BLOCKS + 1)), **common,
    )  # fmt: skip
    return whole, small, kept


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "closed", [(), (0,), (2,), (4,), (0, 1), (1, 3), (0, 2, 4), (1, 2, 3, 4)]
)
def test_a_rule_does_not_see_closed_tiers(rule, closed):
    """`compare` called rules infeasible: "must host 0 to 0 blocks"."""
    for seed in range(5):
        whole, small, kept = instances(np.random.default_rng(seed), closed)
        found, wanted = hs.solve(whole, rule), hs.solve(small, rule)
        assert found.status == wanted.status
        if wanted.partition is not None:
            counts = np.zeros(5, int)
            counts[kept] = np.diff(wanted.partition.cuts)
            assert np.diff(found.partition.cuts).tolist() == counts.tolist()


def test_the_instance_of_the_open_tiers_is_the_one_without_the_others():
    """Times of links add up; nodes, memory and names are those of the open tiers."""
    whole, small, kept = instances(np.random.default_rng(7), (0, 2))
    of_open = open_tiers.without_closed_tiers(whole)
    assert of_open.tier_names == tuple(whole.tier_names[k] for k in kept)
    assert (of_open.reference_link_s[:, 1:] == small.reference_link_s[:, 1:]).all()
    assert (of_open.node_bytes == small.node_bytes).all()
    assert open_tiers.without_closed_tiers(small) is small
    assert heuristics.even_cuts(of_open) == heuristics.even_cuts(small)
