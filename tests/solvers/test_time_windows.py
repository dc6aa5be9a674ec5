"""Time windows of the joint formulations, against every partition in plain Python."""

import itertools
import math

import pytest

from hypsolve.solvers.joint.tables import joint_tables
from hypsolve.solvers.joint.time_windows import windows
from instances.scenarios import scenario


@pytest.mark.parametrize(("name", "n_requests"), [("campus", 40), ("two-regions", 3)])
def test_windows_are_shortest_over_all_partitions(name, n_requests):
    """Windows are computed for some requests at a time; the last ones are few."""
    instance = scenario(name, "llama-3-8b", n_requests=n_requests, objective="mean_latency")
    tables = joint_tables(instance, "test")
    n_tiers, last = tables.n_tiers, tables.n_tiers - 1
    found = windows(tables)
    for r in (0, n_requests // 2, n_requests - 1):
        alone = []
        for k in range(n_tiers):
            rows = tables.fastest(k)
            row = rows[r if len(rows) > 1 else 0]
            arcs = zip(tables.first[k].tolist(), tables.end[k].tolist(), strict=True)
            alone.append(dict(zip(arcs, row.tolist(), strict=True)))
        least = [math.inf] * n_tiers
        for inner in itertools.combinations_with_replacement(range(tables.n_blocks + 1), last):
            cuts = (0, *inner, tables.n_blocks)
            now, starts = float(tables.release[r]), []
            for k in range(n_tiers):
                starts.append(now)
                now += alone[k].get((cuts[k], cuts[k + 1]), math.inf)
                now += float(tables.transfer[r, k, cuts[k + 1]]) if k < last else 0.0
            if now < math.inf:
                least = [min(pair) for pair in zip(least, [*starts[1:], now], strict=True)]
        assert found.min_completion[r] == pytest.approx(least[-1], rel=1e-12)
        for k in range(n_tiers):
            assert found.head[r, k] <= (least[k - 1] if k else math.inf) * (1 + 1e-12)
            assert found.head[r, k] + found.tail[r, k] <= least[-1] * (1 + 1e-12)
        assert found.head[r, 0] == tables.release[r]
