"""JSON Schemas of serving instances and of their results, against files and their reader."""

import copy
import json
from dataclasses import fields

import jsonschema
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.json_schema import schema
from hypsolve.problem.serving import RECORDS, ServingInstance
from tests.helpers.serving_oracles import mixed_lengths, random_serving, with_targets

MODES = ("stage", "pipeline", "serial")
BEYOND = {  # what the reader refuses and a schema cannot know
    "sizes of two tables": r"must have shape|must have \d+ rows|_names must be \d+ strings",
    "ragged rows": r"must be (a )?rectangular",
    "what an index points to": r"below \d+, got|must be (from 0 to|at most) \d|0 to \d+, got",
    "order": r"node_tier must start at 0|cut_min and cut_max must start",
    "two keys": r"at most (max_blocks|resident_tokens|the weights)|idle_share must",
    "an objective and its needs": r"objective goodput needs|must be positive for a node under",
    "how a whole number is written": r"got dtype (float|object)|got -?\d+\.0",
    "that a table is not empty": r"at least one",
}


@pytest.fixture(scope="module")
def instance_schema():
    return jsonschema.Draft202012Validator(schema("serving-instance"))


@pytest.fixture(scope="module")
def result_schema():
    return jsonschema.Draft202012Validator(schema("serving-result"))


def random_cases(n):
    for seed in range(n):
        rng = np.random.default_rng([seed, 77])
        instance = random_serving(rng, MODES[seed % 3])
        if seed % 4 == 1:
            instance = mixed_lengths(instance, rng)
        yield with_targets(instance, rng) if seed % 2 else instance


def written(instance, tmp_path):
    hs.save(instance, tmp_path / "instance.json")
    return json.loads((tmp_path / "instance.json").read_text())


def test_the_schema_has_the_fields_of_the_records():
    """A field that is added to a record must be added to the schema."""
    properties = schema("serving-instance")["properties"]
    for name, record in RECORDS.items():
        assert set(properties[name]["properties"]) == {field.name for field in fields(record)}
        assert all(each["description"] for each in properties[name]["properties"].values())


def test_written_instances_and_results_are_accepted(tmp_path, instance_schema, result_schema):
    """All modes, targets, mixed lengths; optimal, infeasible, with alternatives and a cost."""
    statuses = set()
    for at, instance in enumerate(random_cases(24)):
        instance_schema.validate(written(instance, tmp_path))
        if at % 5 == 4:
            instance = instance.replace(objective="cost")
        result = hs.solve(instance, "throughput_exact", n_splits=1 + at % 3)
        result.save(tmp_path / "result.json")
        document = json.loads((tmp_path / "result.json").read_text())
        result_schema.validate(document)
        statuses.add(document["status"])
    assert statuses == {"optimal", "infeasible"}


VALUES = [
    None, -1, 0, 1, 7, 10**101, -0.5, 0.5, 3.0, 1e151, True, "", "x", "cost", "stage",
    [], [0], [-1], [0.5], [[0.0]], [[]], ["a"], [None], {}, {"x": 1},
]  # fmt: skip


def changes(document):
    """Yield the document with every key dropped, one added, and values of other kinds."""
    for path, value in [((), document), *walk(document)]:
        if isinstance(value, dict):
            yield changed(document, (*path, "speed"), 3)
        if path and isinstance(path[-1], str):
            yield changed(document, path, None, drop=True)
        for other in VALUES if path else ():
            yield changed(document, path, other)


def walk(node, path=()):
    steps = node.items() if isinstance(node, dict) else enumerate(node[:1])
    for step, value in steps:
        yield (*path, step), value
        if isinstance(value, dict | list):
            yield from walk(value, (*path, step))


def changed(document, path, value, *, drop=False):
    document = copy.deepcopy(document)
    *outer, last = path
    node = document
    for step in outer:
        node = node[step]
    if drop:
        del node[last]
    else:
        node[last] = value
    return document


def refusal(document, tmp_path):
    """Return what the reader says of a document; None if it takes it."""
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    try:
        hs.load(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return str(error)
    return None


def test_what_one_refuses_the_other_refuses(tmp_path, instance_schema):
    """Every field of a file with some 25 other values: schema and reader agree, or `BEYOND`."""
    import re

    document = written(next(c for c in random_cases(9) if c.n_tiers > 1), tmp_path)
    n_refused = 0
    for wrong in changes(document):
        said = refusal(wrong, tmp_path)
        if instance_schema.is_valid(wrong):
            assert said is None or any(re.search(rule, said) for rule in BEYOND.values()), said
        else:
            assert said is not None, next(instance_schema.iter_errors(wrong)).message
            n_refused += 1
    assert n_refused > 500


def test_wrong_results_are_refused(result_schema):
    """Every key of a result dropped, one added to every table, every value of a wrong type."""
    instance = ServingInstance.from_tables(
        fixed_s=[[1e-3], [2e-3]], block_kind=[0] * 6, tiers=[[(0, 1e9)], [(1, 1e9)]],
        prompt_tokens=100, output_tokens=10, max_num_seqs=20,
    )  # fmt: skip
    document = json.loads(
        json.dumps(hs.solve(instance, "throughput_exact", n_splits=2).to_dict())
    )
    result_schema.validate(document)
    n = 0
    for path, value in [((), document), *walk(document)]:
        if "statistics" in path:
            continue
        wrong = []
        if isinstance(value, dict):
            wrong.append(changed(document, (*path, "speed"), 3))
        if path and isinstance(path[-1], str):
            wrong.append(changed(document, path, None, drop=True))
        if path:
            wrong.append(changed(document, path, [] if isinstance(value, str | dict) else "x"))
        for each in wrong:
            assert not result_schema.is_valid(each), path
            n += 1
    assert n >= 60
