"""Files of placements: what is read back is what was written, and bad files are named."""

import copy
import dataclasses
import json
import re

import pytest

import hypsolve as hs
from hypsolve.planning.placement_file import SavedPlacement
from tests.helpers.fleets import fleet, machine

SHORT = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 15.0}
BOXES = (
    machine("a"), machine("b"), machine("box", "h100", gpus=2, price_per_hour=2.0),
    machine("mac", "apple-m2-ultra"),
)  # fmt: skip
QUERIES = {
    "largest rate": {},
    "rate and targets": {"rate_per_s": 5, "ttft_slo_s": 0.5, "tpot_slo_s": 0.05},
    "other weights": {"weights": "q8_0", "runtime": "llama.cpp"},
    "requests": {"requests": hs.Requests([0.0, 1.0, 3.0], [100, 200, 50], [16, 8, 24])},
    "cost": {"rate_per_s": 20},
}


@pytest.fixture(scope="module", params=QUERIES)
def plan(request):
    """Plans of different queries; under `requests`, lengths differ."""
    asked = SHORT | QUERIES[request.param]
    if "requests" in asked:
        asked = {"time_limit_s": 15.0, "requests": asked["requests"]}
    make = hs.rent if request.param == "cost" else hs.place
    return make("llama-2-13b", fleet(*BOXES), **asked)


@pytest.fixture(scope="module")
def table():
    """The table of a small plan."""
    plan = hs.place("llama-3-8b", fleet(*BOXES[:2]), rate_per_s=2, **SHORT)
    return json.loads(json.dumps(plan.to_dict()))


def test_a_file_holds_all_of_a_plan(plan, tmp_path):
    path = tmp_path / "plan.json.gz"
    plan.save(path)
    again = hs.load_placement(path, fleet(*BOXES))
    assert again.to_dict() == plan.to_dict()
    assert [each.stages for each in again.pipelines] == [each.stages for each in plan.pipelines]
    if plan.query.requests is None:  # a file keeps some lengths of requests, not all
        assert str(again) == str(plan)
    assert hs.export_placement(again, plan.query.runtime.server) == hs.export_placement(
        plan, plan.query.runtime.server
    )


def test_the_same_simulation(plan):
    """A file and its machines are enough to simulate a plan again."""
    again = hs.load_placement(plan.to_dict(), fleet(*BOXES))
    if plan.query.requests is None:
        assert again.simulate().metrics() == plan.simulate().metrics()


def test_a_plan_without_placement():
    plan = hs.place("llama-3-70b", fleet(machine("a")), **SHORT)
    again = hs.load_placement(json.loads(json.dumps(plan.to_dict())), fleet(machine("a")))
    assert again.to_dict() == plan.to_dict() and not again.fits


def test_other_machines_are_named(table):
    saved = SavedPlacement.of(table)
    for machines, words in (
        (BOXES[:1], "the machines are not those of the plan: without b"),
        (BOXES[:3], "with box besides"),
        ((machine("a"), machine("new")), "without b and with new besides"),
        ((machine("a"), machine("b", "h100")), "gpu.name of machine b is 'H100-SXM', was 'RTX"),
    ):
        assert words in saved.changes(saved.query(fleet(*machines)))
        with pytest.raises(
            ValueError, match=r"the machines are not those of the plan|does not"
        ):
            hs.load_placement(table, fleet(*machines))
    renamed = hs.Fleet(name="other", sites=fleet(*BOXES[:2]).sites, machines=BOXES[:2])
    assert saved.changes(saved.query(renamed)) == ""


ROOM = fleet(*BOXES[:2]).sites[0]
SLOW = hs.Link(bytes_per_s=1e8, latency_s=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machines": (machine("a", price_per_hour=2.0), machine("b"))},
         "the machines are not those of the plan: price_per_hour of machine a is 2.0, was 0.0"),
        ({"sites": (hs.Site(name="room", link=SLOW),)},
         "bytes_per_s of site room is 100000000.0, was 1250000000.0"),
        ({"sites": (ROOM, hs.Site(name="rack", link=SLOW))}, "site rack is new"),
        ({"default_link": SLOW}, "the default link is new"),
        ({"apart": (frozenset({"a", "b"}),)}, "apart of the fleet is [['a', 'b']], was "),
        ({"machines": tuple(machine(name, "h100", price_per_hour=1.0) for name in "ab")},
         " more"),
    ],
)  # fmt: skip
def test_the_field_that_differs_is_named(table, changes, words):
    """The text was: of the same names, but with other values (or the model differs)."""
    given = {"name": "lab", "sites": (ROOM,), "machines": BOXES[:2]}
    saved = SavedPlacement.of(table)
    text = saved.changes(saved.query(hs.Fleet(**{**given, **changes})))
    assert words in text and "or the model" not in text
    plain = SavedPlacement.of({key: of for key, of in table.items() if key != "given"})
    assert "but with other values" in plain.changes(
        plain.query(hs.Fleet(**{**given, **changes}))
    )


def test_a_model_of_the_same_name_with_other_values_is_named(table):
    model = dataclasses.replace(hs.model("llama-3-8b"), context_tokens=77)
    saved = SavedPlacement.of(table)
    text = saved.changes(saved.query(fleet(*BOXES[:2]), model))
    assert text == (
        "the model is not that of the plan: context_tokens of the model is 77, was 8192"
    )


def test_a_machine_that_is_gone_breaks_the_placement(table):
    with pytest.raises(ValueError, match="does not fit: machine: pipeline 1: machine 'b'"):
        SavedPlacement.of(table).plan(fleet(machine("a")))


def test_another_model_is_refused(table):
    with pytest.raises(ValueError, match=r"model must be that of the plan, 'llama-3-8b', got"):
        hs.load_placement(table, fleet(*BOXES[:2]), model="llama-2-7b")
    table = table | {"model": "mine"}
    with pytest.raises(ValueError, match="model 'mine' is not in the catalogue"):
        hs.load_placement(table, fleet(*BOXES[:2]))


def _set(table, path, value):
    """A copy of a table with another value at a path; `del` for none."""
    table = copy.deepcopy(table)
    *inner, last = path
    place = table
    for key in inner:
        place = place[key]
    if value == "del":
        del place[last]
    else:
        place[last] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "hypsolve-plan", "format must be 'hypsolve-placement', got 'hypsolve-pl"),
        (("version",), 2, "version must be 1, got 2"),
        (("version",), True, "version must be 1, got True"),
        (("seed",), "del", "field 'seed' is missing"),
        (("sed",), 1, "'sed'"),
        (("seed",), 1.5, "seed must be a whole number, got 1.5"),
        (("seed",), 2**70, "seed must be below 2**63"),
        (("rate_per_s",), "2", "rate_per_s must be a number, got '2'"),
        (("status",), "good", "status must be one of optimal"),
        (("objective",), None, "objective must be one of throughput"),
        (("pipelines",), {}, "pipelines must be a list, got {}"),
        (("pipelines", 0, "stages"), [], "stages must"),
        (("pipelines", 0, "stages", 0), 3, "pipelines[0].stages[0] must be a table, got 3"),
        (("pipelines", 0, "stages", 0, "gpus"), "1",
         "pipelines[0].stages[0].gpus must be a whole number, got '1'"),
        (("pipelines", 0, "stages", 0, "gpus"), 0, "gpus must be at least 1"),
        (("pipelines", 0, "stages", 0, "blocks"), [0], "blocks must have 2 entries, got 1"),
        (("pipelines", 0, "stages", 0, "blocks"), [5, 5], "stop must be at least 6"),
        (("pipelines", 0, "share"), -1, "share must be finite and not negative"),
        (("idle_gpus",), {"a": "1"}, "idle_gpus.a must be a whole number"),
        (("throughput", "placements", 0, "pipelines", 0, "stages", 0, "blocks"), [0, None],
         "blocks[1] must be a whole number, got None"),
        (("answer", "ttft_s", "p95"), True, "answer.ttft_s.p95 must be a number, got True"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(table, tmp_path, path, value, words):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(_set(table, path, value)))
    with pytest.raises((ValueError, TypeError), match=re.escape(words)) as error:
        SavedPlacement.of(bad)
    assert str(bad) in str(error.value) and "\n" not in str(error.value)


def test_a_runtime_that_is_wrong(table):
    for runtime, words in (
        ({}, "runtime must have a name"),
        (table["runtime"] | {"max_num_seq": 3}, "max_num_seq"),
        (table["runtime"] | {"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            hs.load_placement(table | {"runtime": runtime}, fleet(*BOXES[:2]))


def test_no_json(tmp_path):
    path = tmp_path / "plan.json"
    for text, words in (("{", "truncated JSON"), ("[]", "format must be"), ("{}", "format")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            SavedPlacement.of(path)
