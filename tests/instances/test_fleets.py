"""Named fleets: their sources, and the facts of Helix's clusters that they state."""

import json
import os
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import hypsolve as hs
import instances

SHARED = Path(os.environ.get("HYPSOLVE_SHARED") or Path(__file__).parents[3] / "shared")
FACTS = SHARED / "data" / "helix" / "helix_facts.json"
TYPES = {"a100-40gb": "A100", "v100-16gb": "V100", "l4": "L4", "t4": "T4"}
CLUSTERS = {
    "helix-single-24": "single24-70b",
    "helix-three-regions": "dist24-70b",
    "helix-42": "het42-70b",
}


@pytest.mark.parametrize("name", instances.fleets())
def test_every_number_of_a_fleet_has_a_source(name):
    table = tomllib.loads((instances._FLEETS / f"{name}.toml").read_text())
    assert table["description"] and instances.fleet(name).name == name
    for entry in table.get("machines", []) + table.get("offers", []):
        assert entry["source"]
    links = [site["link"] for site in table["sites"] if "link" in site] + table["links"]
    links += [entry["uplink"] for entry in table.get("machines", []) if "uplink" in entry]
    for link in links:
        assert link["gbps_source"] and link["latency_source"]


@pytest.mark.skipif(not FACTS.exists(), reason="facts of Helix not here: set HYPSOLVE_SHARED")
@pytest.mark.parametrize("name", CLUSTERS)
def test_fleets_of_helix_agree_with_its_files(name):
    """GPUs of each node, and for each pair of regions the lowest rate and highest latency."""
    facts = json.loads(FACTS.read_text())["clusters"][CLUSTERS[name]]
    fleet = instances.fleet(name)
    types = [(TYPES[gpu_of(m)], m.node.gpus) for m in fleet.machines]
    assert Counter(kind if n == 1 else f"{kind}x{n}" for kind, n in types) == Counter(
        facts["types"]
    )
    site_of = ["region-0"] * 4 + ["region-1"] * 10 + ["region-2"] * 10
    if "three" not in name:
        site_of = ["cluster"] * len(types)
    pairs = {}
    for start, end, tokens_per_s, latency_s in facts["links"]:
        if end == "sink":
            continue
        unit = facts["tok_bytes" if start == "source" else "act_bytes"]
        here = "coordinator" if start == "source" else site_of[start]
        pair = min((here, site_of[end]), (site_of[end], here), key=lambda ends: ends[1])
        pairs.setdefault(pair, []).append((tokens_per_s * unit, latency_s))
    assert len(pairs) == (9 if "three" in name else 2)
    for (one, other), found in pairs.items():
        start, end = (other, one) if other == "coordinator" else (one, other)
        link = fleet.site_link(start, end)
        assert link.bytes_per_s == pytest.approx(min(rate for rate, _ in found))
        assert link.latency_s == pytest.approx(max(latency_s for _, latency_s in found))


def gpu_of(machine):
    """Return the name in the catalogue of a machine's GPU."""
    return next(name for name, gpu in hs.gpus().items() if gpu == machine.node.gpu)
