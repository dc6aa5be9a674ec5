"""Drawn fleets: what was asked for, the same for a seed."""

import pytest

from instances import drawn_fleets
from instances.drawn_fleets import ROOM, drawn_placement


@pytest.mark.parametrize(("n_machines", "n_kinds", "n_sites"), [(6, 3, 1), (13, 4, 3)])
def test_a_fleet_has_the_machines_kinds_and_sites_that_were_asked_for(
    n_machines, n_kinds, n_sites
):
    problem = drawn_placement(
        "llama-3-8b", n_machines, n_kinds=n_kinds, n_sites=n_sites, seed=3
    )
    machines = problem.fleet.machines
    assert len(machines) == n_machines and len(problem.fleet.sites) == n_sites
    assert len({(each.node.gpu.name, each.node.gpus) for each in machines}) == n_kinds
    assert len(problem.fleet.links) == n_sites * (n_sites - 1) / 2
    assert {each.site for each in machines} == {site.name for site in problem.fleet.sites}


def test_a_seed_decides_everything():
    arguments = {"n_kinds": 3, "n_sites": 2}
    first, again, other = (
        drawn_placement("llama-3-8b", 6, seed=seed, **arguments) for seed in (1, 1, 2)
    )
    assert first.digest() == again.digest() != other.digest()


def test_a_fleet_has_room_for_its_model(monkeypatch):
    problem = drawn_placement("llama-3-70b", 12, n_kinds=4, seed=0)
    memory_bytes = sum(m.node.gpus * m.node.gpu.memory_bytes for m in problem.fleet.machines)
    assert memory_bytes >= ROOM * sum(block.weight_bytes for block in problem.model.blocks)
    monkeypatch.setattr(drawn_fleets, "ROOM", 10.0)
    with pytest.raises(ValueError, match="2 machines must have room for llama-3-70b"):
        drawn_placement("llama-3-70b", 2, n_kinds=1, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_kinds": 0}, "n_kinds must be at least 1, got 0"),
        ({"n_kinds": 7}, "n_machines must be at least 7, got 6"),
        ({"n_kinds": 2, "n_sites": 9}, "n_sites must be"),
    ],
)
def test_wrong_numbers_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        drawn_placement("llama-3-8b", 6, seed=0, **fields)
