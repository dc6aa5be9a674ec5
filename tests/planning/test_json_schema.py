"""JSON Schemas: files that are read are accepted, and what is refused is refused by both."""

import copy
import datetime
import json
import math
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

import hypsolve as hs
import instances
from hypsolve.cli import catalog as catalog_commands
from hypsolve.cli import examples
from hypsolve.cli.options import OBJECTIVES
from hypsolve.formats.gpu_profile import read_gpu_profile
from hypsolve.formats.network_toml import read_network_file
from hypsolve.planning.json_schema import SCHEMAS, _of, schema
from instances.scenarios import scenario

GOOD = tomllib.loads("""
description = "two tiers, every key"
[[tiers]]
name = "desk"
pin = ["embedding", 3]
min_blocks = 1
max_blocks = 12
nodes = [
  {gpu = "l4", count = 2, memory_gib = 20, price_per_hour = 1, source = "s"},
  {gpu = "mine", count = 2, names = ["old", "new"], reserved_gib = 2.4},
]
[tiers.link]
gbps = 1.0
gbps_source = "s"
latency_ms = 2
latency_source = "s"
return_latency_ms = 3
[[tiers]]
name = "rack"
pin = ["head"]
nodes = [{gpu = "a100-80gb"}]
[gpus.mine]
t0_us = 20
tflops = 60
gb_per_s = 500.5
memory_gib = 16
power_w = 250
overlaps = true
source = "s"
""")
VALUES = [
    -1, 0, 1, 2, 9, 100_001, 10**101, 10**400, -0.5, 0.0, 0.5, 3.0, 1e99, 1e101, 1e200,
    math.inf, -math.inf, math.nan, True, False, datetime.date(2026, 1, 2),
    "", "x", "embedding", "head", "l4", "mine", "rack", "a\nb",
    [], [0], [-1], [0.5], [0, 0], [True], [""], ["a"], ["a", "a"], ["a", "b"], ["head"],
    ["embedding", 7], ["tail"], [[]], [{}], {}, {"x": 1}, {"l4": {}}, {"": {}},
]  # fmt: skip
BEYOND = {  # what the reader refuses and a schema cannot know
    "two limits": r"max_blocks must be at least min_blocks",
    "the catalogue": r"unknown gpu '",
    "names of all tiers": r"(node|tier) names must be distinct",
    "pins of all tiers": r"pin must name a block once",
    "two keys at once": r"count must be the number of names",
    "two keys, or a key and the catalogue": r"reserved_gib must be below the memory",
    "which tier is the last": r"needs a link to the next tier|must have no link",
    "what can be printed": r"name must be printable",
    "how a whole number is written": r"must be a whole number, got -?\d+(\.0|\.?\d*e\+\d+)$",
    "that nan is a number": r"got nan$",
}


@pytest.fixture(scope="module")
def network_schema():
    return jsonschema.Draft202012Validator(schema("network"))


@pytest.fixture(scope="module")
def plan_schema():
    return jsonschema.Draft202012Validator(schema("plan"))


# --- network files ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMAS)
def test_schemas_are_schemas(kind):
    document = json.loads(json.dumps(schema(kind), allow_nan=False))
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["title"] and document["description"]
    jsonschema.Draft202012Validator.check_schema(document)
    jsonschema.Draft7Validator.check_schema(document)  # what Taplo reads it as
    assert '"$ref"' not in json.dumps(document)
    with pytest.raises(
        ValueError,
        match="unknown schema 'tiers'; choose one of network, machines, profile, plan, s",
    ):
        schema("tiers")


@pytest.mark.parametrize("kind", ["network", "machines"])
def test_every_key_of_a_file_to_write_is_explained(kind):
    def walk(node, path):
        for name, of_key in node.get("properties", {}).items():
            assert of_key["description"], (*path, name)
            unit = re.search(r"_(gib|ms|us|w)$|^gbps$|^tflops$|^gb_per_s$", name)
            if unit:
                said = re.search(r"GiB|\bms\b|microsec|\bW\b|Gbit/s|FLOP/s|bytes/s",
                                 of_key["description"])  # fmt: skip
                assert said, (*path, name)
            walk(of_key, (*path, name))
        for inner in ("items", "additionalProperties"):
            if isinstance(node.get(inner), dict):
                walk(node[inner], path)

    walk(schema(kind), ())


def test_known_gpus_are_proposed():
    nodes = schema("network")["properties"]["tiers"]["items"]["properties"]["nodes"]["items"]
    assert nodes["properties"]["gpu"]["anyOf"][0]["enum"] == list(hs.gpus())


def test_networks_of_the_repository_and_of_init(network_schema):
    texts = [(instances._FOLDER / f"{name}.toml").read_text() for name in instances.networks()]
    optional = re.sub(r"(?m)^# (\w+ = |\[)", r"\1", examples.NETWORK)
    assert optional.count("\n#") < examples.NETWORK.count("\n#") - 3
    for text in (*texts, examples.NETWORK, optional):
        network_schema.validate(tomllib.loads(text))
    network_schema.validate(GOOD)


TIER, NODES, LINK, GPU = ("tiers", 0), ("tiers", 0, "nodes", 0), ("tiers", 0, "link"), (
    "gpus", "mine")  # fmt: skip
MISSING = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(((*path, key), MISSING) for path, keys in {
            (): ("tiers",), TIER: ("name", "nodes"), NODES: ("gpu",),
            LINK: ("gbps", "latency_ms"), GPU: ("t0_us", "tflops", "gb_per_s", "memory_gib"),
        }.items() for key in keys),
        *(((*path, "speed"), 3) for path in ((), TIER, NODES, LINK, GPU)),
        *(((*path, key), value) for path, wrong in {
            (): {"tiers": [], "description": "", "gpus": {"l4": GOOD["gpus"]["mine"]}},
            TIER: {"name": "", "nodes": {}, "link": [], "pin": ["tail"], "min_blocks": -1,
                   "max_blocks": 0.5, "host": 1},
            NODES: {"gpu": 3, "count": 0, "names": [], "memory_gib": 0, "reserved_gib": -1,
                    "price_per_hour": "1", "source": "", "host": ""},
            LINK: {"gbps": 0, "latency_ms": -1, "return_latency_ms": True, "gbps_source": 1},
            GPU: {"t0_us": -1, "tflops": 0, "gb_per_s": math.inf, "memory_gib": "16",
                  "power_w": -1},
        }.items() for key, value in wrong.items()),
        ((*NODES, "count"), 100_001),
        ((*TIER, "pin"), ["head", "head"]),
        ((*NODES, "names"), ["a", "a"]),
        (("gpus", ""), GOOD["gpus"]["mine"]),
    ],
    ids=lambda each: ".".join(map(str, each)) if isinstance(each, tuple) else "",
)  # fmt: skip
def test_what_is_wrong_is_refused_by_both(path, value, network_schema, tmp_path):
    document = changed(GOOD, path, value)
    assert document != GOOD and not network_schema.is_valid(document)
    assert refusal(document, tmp_path)


def test_schema_and_reader_agree(network_schema, tmp_path):
    """Every value of GOOD replaced by each of VALUES, every key dropped and one added."""
    assert_agree(network_schema, GOOD, BEYOND, lambda document: refusal(document, tmp_path))


def assert_agree(json_schema, good, beyond, refused):
    """Assert that a schema and a reader take the same mutations, but for rules `beyond` it."""
    counts = {True: 0, False: 0}
    seen = set()
    for document in mutations(good):
        why = refused(document)
        valid = json_schema.is_valid(document)
        if valid and why:
            rules = [rule for rule, pattern in beyond.items() if re.search(pattern, why)]
            assert rules, f"the schema takes it, but {why}"
            seen.update(rules)
        else:
            assert valid == (why is None), (why, document)
            counts[valid] += 1
    assert seen == set(beyond)  # else a rule is one that the schema knows
    assert min(counts.values()) > 100, counts


def mutations(document):
    for path, value in [((), document), *walk(document)]:
        if isinstance(value, dict):
            yield changed(document, (*path, "speed"), 3)
        if path:
            yield changed(document, path, MISSING)
            yield from (changed(document, path, each) for each in VALUES)


def walk(node, path=()):
    steps = node.items() if isinstance(node, dict) else enumerate(node)
    for step, value in steps:
        yield (*path, step), value
        if isinstance(value, dict | list):
            yield from walk(value, (*path, step))


def changed(document, path, value):
    document = copy.deepcopy(document)
    *outer, last = path
    node = document
    for step in outer:
        node = node[step]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return document


def refusal(document, tmp_path, read=read_network_file):
    """What the reader says of it; None if it takes it."""
    path = tmp_path / "net.toml"
    path.write_text("\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in document.items()))
    assert repr(tomllib.loads(path.read_text())) == repr(document)
    try:
        read(path)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def toml(value):
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


# --- machines files ---------------------------------------------------------------------------

MACHINES = tomllib.loads("""
description = "every key"
currency = "USD"
runtime = "vllm"
apart = [["desk", "rack"], ["desk", "l4"]]
[[sites]]
name = "home"
link = {gbps = 1, latency_ms = 0.2}
source = "s"
[[sites]]
name = "l4"
[[links]]
from = "home"
to = "l4"
gbps = 1.0
gbps_source = "s"
latency_ms = 2
latency_source = "s"
return_latency_ms = 3
[[machines]]
name = "desk"
gpu = "mine"
site = "home"
count = 2
memory_gib = 20
reserved_gib = 2.4
slowdown = 2
price_per_hour = 1
uplink = {gbps = 0.5, latency_ms = 2}
source = "s"
[[machines]]
names = ["rack"]
gpu = "l40s"
gpus = 4
interconnect = "pcie4"
host = "rack.lan"
site = "home"
[[machines]]
names = ["one", "two"]
count = 2
gpu = "l4"
site = "home"
[[offers]]
name = "l4"
gpu = "l4"
max_count = 3
price_per_hour = 0.5
site = "l4"
[[pins]]
blocks = "embedding"
sites = ["home"]
source = "s"
[entry]
home = 1.0
l4 = 0
[link]
gbps = 1
latency_ms = 1
[default_link]
gbps = 1
latency_ms = 10
[gpus.mine]
t0_us = 20
tflops = 60
gb_per_s = 500.5
memory_gib = 16
""")
BEYOND_MACHINES = {
    "the catalogue": r"unknown gpu '",
    "the interconnects": r"unknown interconnect '",
    "the runtimes": r"unknown runtime '",
    "names of the file": r"unknown (site|machine)",
    "all names": r"names of machines must be distinct|name must differ from",
    "all links": r"from and to must be two sites",
    "what there must be": r"must have \[\[machines\]\] or|key 'site' is missing",
    "two keys at once": r"count must be the number of names|name must not be given beside",
    "how many machines an entry has": r"host must be given for a single machine",
    "two keys, or a key and the catalogue": r"reserved_gib must be below the memory",
    "what several GPUs need": r"interconnect must be given with gpus",
    "sums": r"shares must add up to 1",
    "the blocks of a model": r"blocks must be embedding, head, or numbers such as 0:4",
    "what can be printed": r"(name|host) must be printable",
    "how a whole number is written": r"must be a whole number, got -?\d+(\.0|\.?\d*e\+\d+)$",
    "that nan is a number": r"got nan$",
}


@pytest.fixture(scope="module")
def machines_schema():
    return jsonschema.Draft202012Validator(schema("machines"))


def test_machines_of_init_are_accepted(machines_schema):
    """The schema accepts the example with and without its optional lines."""
    optional = re.sub(r"(?m)^# (\w+ = |\[)", r"\1", examples.MACHINES)
    assert optional.count("\n#") < examples.MACHINES.count("\n#") - 12
    for text in (examples.MACHINES, optional):
        machines_schema.validate(tomllib.loads(text))


def test_schema_and_reader_of_machines_agree(machines_schema, tmp_path):
    """Every value of MACHINES replaced by each of VALUES, every key dropped and one added."""
    machines_schema.validate(MACHINES)
    assert_agree(
        machines_schema, MACHINES, BEYOND_MACHINES,
        lambda document: refusal(document, tmp_path, hs.read_machines),
    )  # fmt: skip


# --- profiles of GPUs ------------------------------------------------------------------------

PROFILE = tomllib.loads("""
name = "desk"
t0_us = 40
tflops = 0.2
gb_per_s = 20.5
memory_gib = 16
overlaps = false
power_w = 65
source = "measured"
[intervals]
t0_us = [30, 50.5]
gb_per_s = [19.0, inf]
[errors]
"of the fit" = {prefill = 0.05, decode = 1}
[measured]
machine = "desk"
threads = 2
""")
BEYOND_PROFILE = {
    "what can be printed": r"name must be printable",
    "that nan is a number": r"got nan$",
}


@pytest.fixture(scope="module")
def profile_schema():
    return jsonschema.Draft202012Validator(schema("profile"))


def test_profiles_of_the_repository_are_accepted(profile_schema):
    files = sorted((Path(instances.__file__).parent / "profiles").glob("*.toml"))
    assert files
    for path in files:
        profile_schema.validate(tomllib.loads(path.read_text()))
        assert read_gpu_profile(path).name


def test_schema_and_reader_of_profiles_agree(profile_schema, tmp_path):
    """Every value of PROFILE replaced by each of VALUES, every key dropped and one added."""
    profile_schema.validate(PROFILE)
    assert_agree(
        profile_schema, PROFILE, BEYOND_PROFILE,
        lambda document: refusal(document, tmp_path, read_gpu_profile),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("name",), MISSING, r"net.toml: key 'name' is missing"),
        (("tflops",), 0, r"net.toml: tflops must be positive and finite, got 0"),
        (("tflop",), 1, r"net.toml: unknown key 'tflop'; did you mean tflops\?"),
        (("intervals",), 3, r"net.toml: intervals must be tables, got 3"),
        (
            ("intervals", "t0_us"),
            [1],
            r"intervals.t0_us must be a list of two numbers",
        ),
        (
            ("errors", "of the fit"),
            {"decode": "5 %"},
            r"errors.of the fit must be a table",
        ),
        (("measured", "threads"), True, r"measured.threads must be text or a number"),
    ],
)
def test_a_wrong_profile_is_refused_by_both(path, value, words, profile_schema, tmp_path):
    document = changed(PROFILE, path, value)
    assert not profile_schema.is_valid(document)
    assert re.search(words, refusal(document, tmp_path, read_gpu_profile))


# --- plans ------------------------------------------------------------------------------------

SITE = """
[[tiers]]
name = "desk"
nodes = [{gpu = "l4"}, {gpu = "l4", names = ["small"], memory_gib = 1}]
link = {gbps = 10, latency_ms = 0.1}
[[tiers]]
name = "box"
nodes = [{gpu = "rtx-4090", price_per_hour = 2}]
"""
FREE = SITE.replace(", price_per_hour = 2", "")
MAY_BE_EMPTY = SITE.replace("nodes", "min_blocks = 0\nnodes", 1)
ALONE = {"with_upgrades": False}  # they take most of the time, and are alike
ASKED = [
    (SITE, {"ttft_slo_s": 5, "time_limit_s": 120}),  # with upgrades, if busy, too
    *((SITE, {"objective": objective, "ttft_slo_s": 5} | ALONE) for objective in OBJECTIVES),
    (FREE, {}),
    (MAY_BE_EMPTY, {"objective": "path"} | ALONE),
    (SITE, {"concurrency": 5000}),  # infeasible
    (SITE, {"method": "partition_cpsat"} | ALONE),  # statistics
    (SITE, {"method": "even_split"} | ALONE),  # not proved
    (SITE, {"output_tokens": 1} | ALONE),  # no time per later token
]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "site.toml"
    found = []
    few = {"concurrency": 2, "rate_per_s": 0.5, "time_limit_s": 5, "output_tokens": 4}
    for text, asked in ASKED:
        path.write_text(text)
        given = {**few, **asked}
        found.append(hs.plan("phi-3-mini", path, **given).to_dict())
    return [json.loads(json.dumps(document, allow_nan=False)) for document in found]


def test_plans_are_accepted(plans, plan_schema):
    for asked, document in zip(ASKED, plans, strict=True):
        errors = [f"{e.json_path}: {e.message:.200}" for e in plan_schema.iter_errors(document)]
        assert not errors, asked
    of_kind = [document["result"]["status"] for document in plans]
    assert {"optimal", "feasible", "infeasible"} <= set(of_kind)
    nodes = [node for document in plans for node in document["nodes"]]
    assert {node["is_used"] for node in nodes} == {True, False}
    services = [document["forecast"] for document in plans]
    assert None in services and any(s and s["tpot_s"]["mean"] is None for s in services)
    prices = [s["price_per_million_tokens"] for s in services if s]
    assert None in prices and any(prices)


def test_results_with_a_schedule_are_accepted(plan_schema):
    inst = scenario("campus", "phi-3-mini", n_requests=3, seed=0, objective="mean_latency")
    document = json.loads(json.dumps(hs.solve(inst, "hyperion").to_dict()))
    assert document["schedule"]["node"]
    plan_schema.evolve(schema=plan_schema.schema["properties"]["result"]).validate(document)


def test_wrong_plans_are_refused(plans, plan_schema):
    """Every key of a plan dropped, one added to every table, every value of a wrong type."""
    document = next(d for d in plans if d["forecast"] and d["upgrades"])
    n = 0
    for path, value in [((), document), *walk(document)]:
        if "statistics" in path:
            continue
        wrong = []
        if isinstance(value, dict) and path != ("idle_gpus",):  # its keys are names of nodes
            wrong.append(((*path, "speed"), 3))
        if path and isinstance(path[-1], str):
            wrong.append((path, MISSING))
        if path:
            may_be_text = isinstance(value, str | dict) or path in (
                ("method",), ("weights",), ("forecast", "load", "mix"),
            )  # fmt: skip
            wrong.append((path, [] if may_be_text else "x"))
        for where, what in wrong:
            assert not plan_schema.is_valid(changed(document, where, what)), where
            n += 1
    assert n > 200
    for path, value in {
        ("result", "status"): "done", ("result", "objective"): "cost",
        ("nodes", 0, "blocks"): [0], ("stages", 0, "blocks"): [-1, 3], ("nodes",): None,
        ("result", "cuts"): [0.5], ("forecast", "keeps_up"): 1, ("prompt_tokens",): 1.5,
    }.items():  # fmt: skip
        assert not plan_schema.is_valid(changed(document, path, value)), path


# --- types ------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"


@dataclass
class Part:
    """A part; ``wide`` is its width.

    Attributes
    ----------
    colour : Colour
    max_bytes, wide_s : float
        Of one, nan
        if none.
    """

    colour: Colour
    max_bytes: float
    wide_s: float
    joules_per_token: int
    parts: "tuple[str, ...]"
    sizes: dict[str, int]
    pair: tuple[int, int]
    maybe: bool | None


def test_a_dataclass_is_written_field_by_field():
    number = {"type": ["number", "null"]}
    assert _of(Part) == {
        "type": "object",
        "description": "A part; `wide` is its width.",
        "properties": {
            "colour": {"type": "string", "enum": ["red"]},
            "max_bytes": {**number, "description": "Of one, null if none. In bytes."},
            "wide_s": {**number, "description": "Of one, null if none. In seconds."},
            "joules_per_token": {"type": "integer"},
            "parts": {"type": "array", "items": {"type": "string"}},
            "sizes": {"type": "object", "additionalProperties": {"type": "integer"}},
            "pair": {
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
            },
            "maybe": {"type": ["boolean", "null"]},
        },
        "required": list(Part.__annotations__),
        "additionalProperties": False,
    }
    with pytest.raises(TypeError, match="schema: <class 'complex'> is no type of a file"):
        _of(complex)


def test_the_command_prints_it():
    for kind in SCHEMAS:
        done = CliRunner().invoke(catalog_commands.schema, [kind])
        assert done.exit_code == 0 and json.loads(done.stdout) == schema(kind)
    assert CliRunner().invoke(catalog_commands.schema, ["tiers"]).exit_code == 2
