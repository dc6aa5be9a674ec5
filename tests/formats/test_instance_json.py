"""Instance files and benchmark files: exact round trips; wrong files are refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hypsolve.formats import benchmarks, instance_json
from hypsolve.problem.instance import Instance, Objective
from instances import freeze
from instances.scenarios import scenario


@st.composite
def instances(draw):
    """Draw a legal instance with arbitrary floats, which only an exact round trip keeps."""
    n_tiers, n_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_requests, n_classes = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    seconds = st.floats(0, 1e100)
    tiers = draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, n_classes - 1), seconds), min_size=1, max_size=2),
            min_size=n_tiers,
            max_size=n_tiers,
        )
    )
    objective = draw(st.sampled_from(Objective))
    return Instance.from_tables(
        block_s=draw(arrays(np.float64, (n_requests, n_classes, n_blocks), elements=seconds)),
        block_bytes=draw(arrays(np.float64, n_blocks, elements=seconds)),
        tiers=tiers,
        transfer_s=draw(arrays(np.float64, (1, n_tiers - 1, n_blocks + 1), elements=seconds)),
        reference_s=draw(arrays(np.float64, (n_classes, n_blocks), elements=seconds)),
        arrival_s=draw(arrays(np.float64, n_requests, elements=seconds)),
        objective=objective,
        stage_rule=draw(st.sampled_from(("pooled", "fastest", "slowest"))),
        allow_empty=objective is not Objective.P0 and draw(st.booleans()),
        overlap=draw(st.booleans()),
        link_cost=draw(st.sampled_from(("occupancy", "full"))),
        name=draw(st.text(max_size=5)),
    )


@pytest.fixture
def instance():
    return Instance.from_tables(
        block_s=[[[1.0, 2.0, 0.1]], [[3.0, 4.0, 0.2]]],
        block_bytes=[1, 2, 3],
        tiers=[[(0, 4.0)], [(0, 8.0), (0, 9.0)]],
        transfer_s=[[[0.5, 0.25, 0.125, 0.0]]],
        arrival_s=[0.0, 1 / 3],
        objective="mean_latency",
        name="größe",
    )


@pytest.fixture
def document(instance, tmp_path):
    """Return the JSON of `instance`, and a function that loads a changed document."""
    instance_json.save(instance, tmp_path / "good.json")
    content = json.loads((tmp_path / "good.json").read_text())

    def load(changed):
        (tmp_path / "bad.json").write_text(json.dumps(changed))
        return instance_json.load(tmp_path / "bad.json")

    return content, load


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@given(instance=instances())
def test_round_trip_is_exact(tmp_path_factory, suffix, instance):
    path = tmp_path_factory.mktemp("io") / f"instance{suffix}"
    instance_json.save(instance, path)
    again = instance_json.load(path)
    assert again.digest() == instance.digest()
    for field in ("name", "extrapolated", "tier_names", "node_names", "class_names"):
        assert getattr(again, field) == getattr(instance, field)


def test_equal_instances_make_equal_files_and_leave_nothing_else(instance, tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        instance_json.save(instance, tmp_path / name)
    instance_json.save(instance, tmp_path / "a.json.gz")  # over an old one
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json.gz", "b.json.gz"]


def test_failed_write_keeps_the_old_file(instance, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    instance_json.save(instance, path)
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(instance_json.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"cannot write an instance here: No space left.*a\.json"):
        instance_json.save(instance.replace(name="other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_keeps_what_replace_may_not_allow(tmp_path):
    """A file says whether transfers were compiled for an empty first tier."""
    kept = scenario("campus", "phi-3-mini", n_requests=2)
    for instance in (kept, scenario("campus", "phi-3-mini", n_requests=2, allow_empty=True)):
        instance_json.save(instance, tmp_path / "a.json")
        read = instance_json.load(tmp_path / "a.json")
        assert read.empty_first_tier == instance.empty_first_tier == instance.allow_empty
    instance_json.save(kept, tmp_path / "a.json")
    with pytest.raises(ValueError, match="allow_empty"):
        instance_json.load(tmp_path / "a.json").replace(allow_empty=True)
    document = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(document | {"empty_first_tier": 3}))
    with pytest.raises((ValueError, TypeError), match=r"empty_first_tier must be .*got 3"):
        instance_json.load(tmp_path / "a.json")


def test_absent_folder_and_wrong_name(instance, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write an instance here.*no/a\.json"):
        instance_json.save(instance, tmp_path / "no" / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write an instance here"):
        instance_json.save(instance, tmp_path / "file" / "a.json")
    with pytest.raises(ValueError, match=r"must end in \.json or \.json\.gz"):
        instance_json.save(instance, tmp_path / "a.pkl")
    with pytest.raises(FileNotFoundError):
        instance_json.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "truncated JSON"),
        ('{"format": "hypsolve-inst', "truncated JSON|not JSON"),
        ('{"format": "hypsolve-instance", "version": 1,', "truncated JSON"),
        ("weights\n1 2", "not JSON"),
        ("[1, 2]", "not an instance"),
        ("null", "not an instance"),
        ('{"format": "lp"}', "not an instance"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"version": NaN}', "numbers must be finite, got NaN"),
        ('{"version": -Infinity}', "numbers must be finite, got -Infinity"),
        ('{"version": 1, "version": 1}', "key 'version' occurs twice"),
        ('{"version": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_broken_text(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        instance_json.load(path)
    assert str(path) in str(error.value)


def test_every_truncation_is_refused(instance, tmp_path):
    path = tmp_path / "a.json"
    instance_json.save(instance, path)
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"truncated JSON|UTF-8|utf-8|not JSON"):
            instance_json.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 3, "version must be 1 or 2, got 3"),
        ("version", True, "version must be 1 or 2, got True"),
        ("version", "1", "version must be 1 or 2, got '1'"),
        ("format", "other", "not an instance"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("arrival_s", "soon", "arrival_s must be a list"),
        ("arrival_s", [0.0, "1"], "arrival_s must hold numbers, got '1'"),
        ("arrival_s", [0.0, True], "arrival_s must hold numbers, got True"),
        ("arrival_s", [0.0, [1.0]], "arrival_s must hold numbers, got"),
        ("arrival_s", [0.0, -1.0], "arrival_s must be finite and not negative, got -1.0"),
        ("arrival_s", [0, 10**400], "too large"),
        ("arrival_s", [0.0, 1.0, 2.0], "block_s must have 1 or n_requests = 3 rows"),
        ("kind_s", {"shape": [2, 2], "values": [1, 2, 3]}, "as many values as its shape says"),
        (
            "kind_s",
            {"shape": [-1, -3], "values": [1, 2, 3]},
            "as many values as its shape says",
        ),
        ("kind_s", {"shape": "3", "values": [1, 2, 3]}, "as many values as its shape says"),
        ("kind_s", {"shape": [3], "values": [1, 2, 3]}, r"block_s must have shape"),
        ("kind_s", {"shape": [3], "values": [1, 2, 3], "x": 1}, "kind_s must be a list, or"),
        ("block_kind", [0, 1, 0.5], "block_kind must hold whole numbers"),
        ("block_kind", [0, 1, 99], "block_kind must hold whole numbers below"),
        ("objective", "fun", "objective must be one of bottleneck"),
        ("objective", [], "objective must be one of bottleneck"),
        ("overlap", 1, "overlap must be True or False, got 1"),
        ("tied_bytes", "0", "tied_bytes must be a number, got '0'"),
        ("tier_names", "ab", "tier_names must be a list of strings, got 'ab'"),
        ("tier_names", [1, 2], "tier_names must be 2 strings"),
        ("name", None, "name must be a string, got None"),
    ],
)
def test_wrong_field(document, field, value, message):
    content, load = document
    with pytest.raises(ValueError, match=message):
        load(content | {field: value})


def test_a_file_of_version_1_is_read():
    """Files that were saved before the rename keep their digest."""
    instance = instance_json.load(Path(__file__).parent / "data" / "instance-version-1.json")
    assert instance == freeze.load_frozen("operator-pinned")
    assert instance.digest() == freeze.index()["operator-pinned"]["digest"]
    assert instance.min_blocks_given.tolist() == [1, 0, 2, 0, 1]
    assert instance.max_blocks.tolist() == [8, 34, 34, 34, 12]


@pytest.mark.parametrize(
    ("old", "new"), [("least_given", "min_blocks_given"), ("most_blocks", "max_blocks")]
)
def test_a_name_belongs_to_one_version(document, old, new):
    content, load = document
    with pytest.raises(ValueError, match=f"unknown field '{old}'; did you mean {new}"):
        load({old if key == new else key: value for key, value in content.items()})
    renamed = {new: old for old, new in instance_json.OLD_NAMES[1].items()}
    version_1 = {renamed.get(key, key): value for key, value in content.items()}
    with pytest.raises(ValueError, match=f"unknown field '{new}'; did you mean {old}"):
        load(version_1 | {"version": 1, new: content[new]})


def test_frozen_instances_are_of_todays_version():
    for name in freeze.frozen():
        content = json.loads((freeze.FOLDER / f"{name}.json").read_text())
        assert content["version"] == instance_json.VERSION, name


def test_every_field_is_needed(document):
    content, load = document
    for field in content.keys() - {"format", "version"}:
        with pytest.raises(ValueError, match=f"field '{field}' is missing"):
            load({key: value for key, value in content.items() if key != field})
    assert load(content).n_requests == 2


def test_overflowing_float_is_refused(instance, tmp_path):
    path = tmp_path / "a.json"
    instance_json.save(instance, path)
    path.write_text(path.read_text().replace("0.3333333333333333", "1e999"))
    with pytest.raises(ValueError, match="arrival_s must be finite"):
        instance_json.load(path)


def test_large_files_are_refused_before_they_are_parsed(instance, tmp_path):
    plain, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    instance_json.save(instance, plain)
    size = plain.stat().st_size
    assert instance_json.load(plain, max_bytes=size).digest() == instance.digest()
    with pytest.raises(ValueError, match=f"at most {size - 1} bytes, got {size}"):
        instance_json.load(plain, max_bytes=size - 1)
    packed.write_bytes(gzip.compress(b" " * 10_000_000))  # 10 kB on disk
    with pytest.raises(ValueError, match="at most 100000 bytes when unpacked"):
        instance_json.load(packed, max_bytes=100_000)


def test_broken_gzip(instance, tmp_path):
    path = tmp_path / "a.json.gz"
    instance_json.save(instance, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    for content in (whole[:-12], whole[:30], b"{}", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            instance_json.load(path)


def test_not_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="utf-8"):
        instance_json.load(tmp_path / "a.json")
    (tmp_path / "chain.txt").write_bytes(b"\xff\xfe1 2")
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        benchmarks.read_chains(tmp_path / "chain.txt", n_tiers=2)


# chains on chains


@pytest.fixture
def text(tmp_path):
    def write(content):
        path = tmp_path / "problem.txt"
        path.write_text(content)
        return path

    return write


def test_chains_of_weights(text):
    instance = benchmarks.read_chains(text("# tasks\n4\n\n2 # light\n6\n"), speeds=[1, 2])
    assert (instance.n_tiers, instance.n_blocks, instance.n_requests) == (2, 3, 1)
    np.testing.assert_array_equal(instance.reference_s, [[4, 2, 6], [2, 1, 3]])
    assert not instance.transfer_s.any() and not instance.block_bytes.any()
    assert instance.name == "problem"


def test_chains_with_communication_and_memory(text):
    path = text("4, 0.5, 10\n2\t0.25 20\n6 9 30\n")
    instance = benchmarks.read_chains(
        path, speeds=[1, [2, 1]], memory=[40, 60], allow_empty=True
    )
    np.testing.assert_array_equal(instance.transfer_s, [[[0, 0.5, 0.25, 0]]])
    np.testing.assert_array_equal(instance.block_bytes, [10, 20, 30])
    np.testing.assert_array_equal(instance.node_bytes, [40, 60, 60])
    np.testing.assert_array_equal(instance.node_class, [0, 1, 0])
    assert instance.allow_empty
    assert benchmarks.read_chains(path, n_tiers=3, memory=60.0).node_bytes.tolist() == [60] * 3


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {"n_tiers": 2}, "at least one task"),
        ("1\n2 3\n", {"n_tiers": 2}, "line 2: must have 1 columns as the first, got 2"),
        ("1 2 3 4", {"n_tiers": 2}, "line 1: must have 1 to 3 columns, got 4"),
        ("1\n# two\nx\n", {"n_tiers": 2}, "line 3: must be a finite number >= 0, got 'x'"),
        ("1\n-2\n", {"n_tiers": 2}, "line 2: .* got '-2'"),
        ("nan\n", {"n_tiers": 2}, "line 1: .* got 'nan'"),
        ("1e999\n", {"n_tiers": 2}, "line 1: .* got '1e999'"),
        ("1_0\n", {"n_tiers": 2}, "line 1: .* got '1_0'"),
        ("1\n", {}, "either n_tiers or speeds"),
        ("1\n", {"n_tiers": 2, "speeds": [1, 1]}, "either n_tiers or speeds"),
        ("1\n", {"n_tiers": 0}, "n_tiers must be at least 1, got 0"),
        ("1\n", {"speeds": [1, 0]}, r"speeds\[1\] must be positive and finite, got 0"),
        ("1\n", {"n_tiers": 2, "memory": 5}, "memory needs a third column"),
        ("1 0 1\n", {"n_tiers": 2}, "third column needs memory"),
        ("1 0 1\n", {"n_tiers": 2, "memory": [1]}, "memory must have 2 entries, got 1"),
        ("1\n2\n", {"n_tiers": 2, "max_bytes": 2}, "at most 2 bytes"),
        ("1\n", {"n_tiers": 2, "max_bytes": -1}, "read_chains: max_bytes must be at least 0"),
        ("1 0 1\n", {"n_tiers": 2, "memory": []}, "memory must have 2 entries, got 0"),
        ("1 0 1\n", {"n_tiers": 1, "memory": [-1]}, r"memory\[0\] must be .*, got -1"),
        ("1\n", {"n_tiers": 10**7}, "n_tiers must be at most 100000, got 10000000"),
        ("1\n", {"speeds": [[1] * 100_001]}, "nodes of speeds must be at most 100000, got"),
        ("1\n", {"speeds": []}, "speeds must hold at least one tier, got none"),
        ("1\n", {"speeds": [[1], []]}, r"speeds\[1\] must hold at least one node, got none"),
    ],
)
def test_wrong_chains(text, content, options, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.read_chains(text(content), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speeds": 5}, "speeds must be a number or a sequence of them, got 5"),
        ({"speeds": "12"}, "speeds must be a number or a sequence of them, got '12'"),
        (
            {"speeds": [1, None]},
            r"speeds\[1\] must be a number or a sequence of them, got None",
        ),
        ({"speeds": [["1"]]}, r"speeds\[0\] must be a number, got '1'"),
        ({"n_tiers": 2.0}, "n_tiers must be a whole number, got 2.0"),
        ({"n_tiers": 2, "memory": {}}, "memory must be a number or a sequence of them, got {}"),
        ({"n_tiers": 2, "memory": [1, "x"]}, r"memory\[1\] must be a number, got 'x'"),
        (
            {"n_tiers": 2, "memory": 1, "max_bytes": "x"},
            "max_bytes must be a whole number, got",
        ),
    ],
)
def test_wrong_types_of_chains(text, options, message):
    with pytest.raises(TypeError, match=f"read_chains: {message}"):
        benchmarks.read_chains(text("1 0 1\n"), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda file: instance_json.load(None),
            "load: path must be a string or a path, got None",
        ),
        (
            lambda file: instance_json.load(file, max_bytes="x"),
            "load: max_bytes must be a whole number",
        ),
        (
            lambda file: benchmarks.read_chains(3, n_tiers=1),
            "read_chains: path must be a string",
        ),
        (
            lambda file: benchmarks.read_hybrid_flow_shop(3),
            "read_hybrid_flow_shop: path must be a string",
        ),
        (
            lambda file: benchmarks.read_hybrid_flow_shop(file, max_bytes=1.5),
            "read_hybrid_flow_shop: max_bytes must be a whole number, got 1.5",
        ),
    ],
)
def test_wrong_types_of_arguments(text, call, message):
    with pytest.raises(TypeError, match=message):
        call(text(JOBS))


def test_wrong_path_to_save(instance):
    with pytest.raises(TypeError, match="save: path must be a string or a path, got 3"):
        instance_json.save(instance, 3)


# hybrid flow shops: 3 jobs on 2 stages of 2 and 1 machines

JOBS = "3 2\n2 1\n4 1\n5 2\n6 3\n"
STAGES = "3 2\n2 1\n4 5 6\n1 2 3\n"
TIMES = [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        (JOBS, "auto"),
        (JOBS, "jobs"),
        (STAGES, "auto"),
        (STAGES, "stages"),
        ("3\n2\n2 1\n4 1\n5 2\n6 3\n", "auto"),
        ("# comment\n3, 2\n2, 1\n\n4, 1\n5, 2\n6, 3\n", "auto"),
    ],
)
def test_hybrid_flow_shop(text, content, layout):
    instance = benchmarks.read_hybrid_flow_shop(text(content), layout=layout)
    np.testing.assert_array_equal(instance.block_s[:, 0, :], TIMES)
    np.testing.assert_array_equal(instance.node_tier, [0, 0, 1])
    assert instance.objective is Objective.MAKESPAN
    for limits in (instance.min_blocks, instance.max_blocks):
        np.testing.assert_array_equal(limits, [1, 1])
    assert not instance.arrival_s.any() and not instance.allow_empty


def test_release_dates_and_other_objective(text):
    instance = benchmarks.read_hybrid_flow_shop(
        text(JOBS + "release: 0 7 1.5\n"), objective="mean_latency"
    )
    np.testing.assert_array_equal(instance.arrival_s, [0, 7, 1.5])
    assert instance.objective is Objective.MEAN_LATENCY


def test_taillard_flow_shop(text):
    content = (
        "number of jobs, number of machines, initial seed, upper bound and lower bound :\n"
        "3 2 873654221 1278 1232\nprocessing times :\n4 5 6\n1 2 3\n"
    )
    instance = benchmarks.read_hybrid_flow_shop(text(content), layout="taillard")
    np.testing.assert_array_equal(instance.block_s[:, 0, :], TIMES)
    np.testing.assert_array_equal(instance.node_tier, [0, 1])


@pytest.mark.parametrize(
    ("content", "layout", "message"),
    [
        ("", "auto", "line 1: must be the numbers of jobs and stages"),
        ("3\n", "auto", "line 1: must be the numbers of jobs and stages"),
        ("3 2 9\n", "auto", "line 1: must be the numbers of jobs and stages"),
        ("0 2\n1 1\n", "auto", r"line 1: must be whole, in 1\.\.1000000, got 0"),
        ("1.5 2\n1 1\n", "auto", "line 1: must be whole"),
        ("3 2\n", "auto", "line 2: must be the machines of 2 stages, got 0"),
        ("3 2\n1 1 1\n", "auto", "line 2: must be the machines of 2 stages, got 3"),
        ("3 2\n1 0\n4 1\n5 2\n6 3\n", "auto", "line 2: must be whole"),
        (
            "3 2\n1 1\n4 1\n5\n6 3\n",
            "auto",
            "line 4: must be one of 3 jobs of 2 processing times",
        ),
        (
            "3 2\n1 1\n4 1\n5 2\n",
            "auto",
            "line 4: must have 3 jobs of 2 processing times, got 2",
        ),
        ("3 2\n1 1\n", "auto", "line 2: must have 3 jobs of 2 processing times, got 0"),
        (JOBS + "7 8\n", "auto", "line 6: must have 3 jobs of 2 processing times, got 4"),
        (STAGES + "7 8 9\n", "auto", "line 5: must have 2 stages of 3 processing times, got 3"),
        (
            JOBS,
            "stages",
            "line 3: must be one of 2 stages of 3 processing times, got 2 numbers",
        ),
        (JOBS.replace("5", "x"), "auto", "line 4: must be a finite number >= 0, got 'x'"),
        (JOBS + "release 1 2\n", "auto", "line 6: must have 3 release dates, got 2"),
        ("2 2\n1 1\n1 2\n3 4\n", "auto", "layout must be given: jobs or stages"),
        (JOBS, "columns", "unknown layout 'columns'; choose one of auto, jobs"),
        (JOBS, ["jobs"], "unknown layout \\['jobs'\\]; .*choose one of auto, jobs"),
        (
            JOBS.replace("2 1\n", "99999 2\n", 1),
            "auto",
            "line 2: must have at most 100000 machines, got 100001",
        ),
    ],
)
def test_wrong_hybrid_flow_shop(text, content, layout, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.read_hybrid_flow_shop(text(content), layout=layout)
