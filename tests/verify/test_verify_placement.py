"""`verify` of a saved placement: true files pass, altered fields are refused or listed."""

import copy
import json
import re

import pytest

import hypsolve as hs
from hypsolve.planning.placement_file import SavedPlacement
from hypsolve.verify import Refuted, verify
from hypsolve.verify.placement import placement_not_covered
from tests.helpers.fleets import LAN, fleet, machine

SHORT = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 15.0}
LAB = fleet(
    machine("a"), machine("b"), machine("c", price_per_hour=1.0),
    machine("box", "a100-80gb", gpus=2, price_per_hour=2.0), machine("mac", "apple-m2-ultra"),
)  # fmt: skip
SLOW = hs.Link(bytes_per_s=1e7, latency_s=5e-3)
SITES = hs.Fleet(
    name="sites",
    sites=(hs.Site(name="room", link=LAN), hs.Site(name="cloud", link=LAN)),
    machines=(
        machine("a", uplink=hs.Link(bytes_per_s=1e8, latency_s=1e-3)),
        machine("b"),
        hs.Machine(node=machine("far").node, site="cloud"),
    ),
    default_link=SLOW,
    entry={"room": 0.5, "cloud": 0.5},
    pins=(hs.Pin(start=0, stop=1, sites=("room",)),),
)
CASES = {
    "rate": (LAB, "llama-2-13b", {"runtime": "vllm"}),
    "stage batching": (LAB, "llama-2-13b", {"runtime": "ideal"}),
    "serial": (LAB, "llama-2-13b", {"runtime": "llama.cpp", "weights": "q8_0"}),
    "targets": (LAB, "llama-3-8b", {"rate_per_s": 5, "ttft_slo_s": 0.9, "tpot_slo_s": 0.05}),
    "sites": (SITES, "llama-2-13b", {"runtime": "vllm"}),
    "users": (LAB, "llama-3-8b", {"users": 8, "tpot_slo_s": 0.05}),
}


def made(name):
    """A plan of a case as its file, and its problem."""
    machines, model, asked = CASES[name]
    plan = hs.place(model, machines, **SHORT, **asked)
    table = json.loads(json.dumps(plan.to_dict()))
    return SavedPlacement.of(table).query(machines).problem(), table


@pytest.fixture(scope="module")
def rate():
    return made("rate")


@pytest.mark.parametrize("name", CASES)
def test_what_place_writes_is_verified(name):
    problem, table = made(name)
    assert "keeps the rules and carries" in verify(problem, table)


def test_rent_is_verified():
    plan = hs.rent("llama-2-13b", LAB, rate_per_s=60, **SHORT)
    table = json.loads(json.dumps(plan.to_dict()))
    problem = SavedPlacement.of(table).query(LAB).problem()
    assert "keeps the rules" in verify(problem, table)
    with pytest.raises(Refuted, match="price_per_hour: it is"):
        verify(problem, table | {"price_per_hour": table["price_per_hour"] + 0.5})
    if (bound := table["throughput"]["fluid_bound"]) > 0:
        bad = table["throughput"] | {"fluid_bound": 1.5 * bound}
        with pytest.raises(Refuted, match="a placement here is cheaper"):
            verify(problem, table | {"throughput": bad})


def leaves(value, path=()):
    """Paths of all values that hold no others."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list) and value:
        for n, each in enumerate(value):
            yield from leaves(each, (*path, n))
    else:
        yield path


def others(value):
    """Other values of the same type, and one of another."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 10 * value + 3]
    if isinstance(value, float):
        return [1.01 * value + 1e-4, 0.99 * value + 1e-4, 0.0 if value else 1.0]
    if isinstance(value, str):
        return [value + "x", ""]
    return [1.5] if value is None else [["x"]] if isinstance(value, list) else [{"x": 1}]


def test_every_altered_field_is_refused_or_not_covered(rate):
    """And what is not covered is accepted or refused, but never breaks the check."""
    problem, table = rate
    open_fields = [each.split(" ")[0] for each in placement_not_covered(table)]
    assert verify(problem, table)
    accepted = set()
    for path in leaves(table):
        field = ".".join(key for key in path if isinstance(key, str))
        for value in others(_at(table, path)):
            bad = copy.deepcopy(table)
            _at(bad, path[:-1])[path[-1]] = value
            try:
                verify(problem, bad)
            except (Refuted, ValueError):
                continue
            accepted.add((field, repr(value)))
    wrong = {
        (field, value)
        for field, value in accepted
        if not any(field == each or field.startswith(f"{each}.") for each in open_fields)
    }
    assert not wrong
    assert {"answer.served_per_s", "pipelines.limit", "seed"} <= {
        field for field, _ in accepted
    }


def _at(table, path):
    for key in path:
        table = table[key]
    return table


def edited(table, change):
    """A file whose placement is changed everywhere it is stated."""
    bad = copy.deepcopy(table)
    for rows in (bad["pipelines"], bad["throughput"]["placements"][0]["pipelines"]):
        change(rows)
    return bad


def swap_machine(name):
    def change(rows):
        rows[0]["stages"][0]["machine"] = name

    return change


def test_rules_are_checked_one_by_one(rate):
    problem, table = rate
    by_name = {row["stages"][0]["machine"]: n for n, row in enumerate(table["pipelines"])}
    n = by_name["box"]
    assert len(table["pipelines"][n]["stages"]) == 1

    def stage(field, value):
        def change(rows):
            rows[n]["stages"][0][field] = value

        return change

    for change, words in (
        (stage("machine", "nowhere"), "machine: not known"),
        (stage("machine", "mac"), "machine: not known"),
        (stage("gpus", 4), "4 GPUs cannot compute as one"),
        (stage("gpus", 0), "0 GPUs cannot compute as one"),
        (stage("blocks", [0, 41]), "blocks must end at 42"),
        (stage("blocks", [1, 42]), "blocks must be in order"),
        (stage("machine", "a"), "no room for 0:42|1 GPUs, 2 are used|cannot compute"),
        (lambda rows: rows.append(rows[n]), "GPUs, .* are used"),
    ):
        with pytest.raises(Refuted, match=words):
            verify(problem, edited(table, change))


def test_pins_sites_and_shared_links():
    problem, table = made("sites")
    rows = table["throughput"]["placements"][0]["pipelines"]
    assert any(len(row["stages"]) > 1 for row in rows)
    n = next(n for n, row in enumerate(rows) if len(row["stages"]) > 1)
    stages = rows[n]["stages"]
    if "far" not in {stage["machine"] for stage in stages}:
        bad = edited(table, lambda rows: rows[n]["stages"][0].update(machine="far"))
        with pytest.raises(Refuted, match="blocks 0:1 must not be at cloud"):
            verify(problem, bad)
    slow = problem.replace(
        fleet=hs.Fleet(
            name="sites",
            sites=SITES.sites,
            machines=tuple(
                hs.Machine(
                    node=m.node, site=m.site, uplink=hs.Link(bytes_per_s=1e5, latency_s=1e-3)
                )
                for m in SITES.machines
            ),
            default_link=SLOW,
            entry=SITES.entry,
            pins=SITES.pins,
        )
    )
    with pytest.raises(Refuted, match=r"it is not carried|too slow"):
        verify(slow, table | {"digest": slow.digest()})


def test_a_placement_without_pipelines_proves_nothing():
    plan = hs.place("llama-3-70b", fleet(machine("a")), **SHORT)
    table = json.loads(json.dumps(plan.to_dict()))
    problem = SavedPlacement.of(table).query(fleet(machine("a"))).problem()
    assert verify(problem, table).startswith("nothing")
    assert "status" in placement_not_covered(table)
    with pytest.raises(Refuted, match="status: there is no placement"):
        verify(problem, table | {"status": "optimal"})


def test_other_machines_are_refused(rate):
    _, table = rate
    other = SavedPlacement.of(table).query(fleet(*LAB.machines[:4])).problem()
    assert verify(other, table)  # the machine that is gone was not usable
    other = SavedPlacement.of(table).query(fleet(*LAB.machines[:3])).problem()
    with pytest.raises(Refuted, match="digest: of another model, other machines"):
        verify(other, table)


def test_no_placement():
    problem, table = made("stage batching")
    for bad, words in (([], "not a placement"), (table | {"version": 9}, "version must be 1")):
        with pytest.raises(ValueError, match=re.escape(words)):
            verify(problem, bad)
