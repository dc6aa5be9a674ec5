"""Exported events: their form, and their agreement with the trace."""

import gzip
import json
import re

import numpy as np
import pytest
from hypothesis import given

from hypsolve.simulation import perfetto
from hypsolve.simulation.perfetto import write_perfetto
from tests.helpers import traces

NEEDED = {  # keys of each phase, by the format's definition
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "C": {"name", "pid", "ts", "args"},
    "b": {"name", "cat", "id", "pid", "tid", "ts"},
    "n": {"name", "cat", "id", "pid", "tid", "ts"},
    "e": {"name", "cat", "id", "pid", "tid", "ts"},
}


def exported(trace, path):
    write_perfetto(trace, path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def of_phase(document, phase):
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def nanoseconds(microseconds):
    """As Perfetto reads them: cut, not rounded."""
    return int(float(microseconds) * 1000.0)


def check(document):
    """Raise unless every event has the form that its phase asks for."""
    open_slices, used, last_end = {}, set(), {}
    names = {(e["name"], e["pid"], e["tid"]) for e in of_phase(document, "M")}
    for event in document["traceEvents"]:
        assert NEEDED[event["ph"]] <= set(event)
        assert isinstance(event["pid"], int) and isinstance(event.get("tid", 0), int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
            assert ("process_name", event["pid"], event["pid"]) in names
        if event["ph"] in "be":
            key = (event["cat"], event["id"])  # what readers pair by, over all processes
            if event["ph"] == "b":
                assert key not in used
                used.add(key)
                open_slices[key] = event
            else:
                begin = open_slices.pop(key)
                assert begin["ts"] <= event["ts"]
                assert (begin["pid"], begin["name"]) == (event["pid"], event["name"])
        if event["ph"] == "C":
            assert event["args"] and all(
                isinstance(value, float) for value in event["args"].values()
            )
    assert not open_slices
    slices = sorted(of_phase(document, "X"), key=lambda e: (e["ts"], e["dur"]))
    for event in slices:
        assert ("thread_name", event["pid"], event["tid"]) in names
        assert event["tid"] != event["pid"] and event["dur"] >= 0
        start_ns = nanoseconds(event["ts"])
        assert start_ns >= last_end.get(event["tid"], 0)
        last_end[event["tid"]] = start_ns + nanoseconds(event["dur"])


def test_the_small_trace(tmp_path):
    document = exported(traces.small(), tmp_path / "trace.json")
    check(document)
    assert document["displayTimeUnit"] == "ms"
    assert document["otherData"] == {
        "trace": "small", "level": "token", "policy": "round_robin", "seed": 7,
        "partition": "0:2 | 2:4", "extrapolated": True,
    }  # fmt: skip
    threads = {e["tid"]: e["args"]["name"] for e in of_phase(document, "M")
               if e["name"] == "thread_name"}  # fmt: skip
    processes = {e["pid"]: e["args"]["name"] for e in of_phase(document, "M")
                 if e["name"] == "process_name"}  # fmt: skip
    slices = [
        (processes[e["pid"]], threads[e["tid"]], e["name"], round(e["ts"]), e["dur"], e["args"])
        for e in of_phase(document, "X")
    ]

    def args(prefills, decodes, tokens, *requests):
        return {"batch": prefills + decodes, "prefills": prefills, "decodes": decodes,
                "tokens": tokens, "requests": list(requests)}  # fmt: skip

    assert slices == [
        ("edge", "e0", "prefill", 0, 1e6, args(1, 0, 4, 0)),
        ("cloud", "c0", "prefill", 1e6, 1e6, args(1, 0, 4, 0)),
        ("edge", "e0", "mixed", 1e6, 2e6, args(1, 1, 3, 0, 1)),
        ("edge", "e0", "prefill", 3e6, 2e6, args(1, 0, 1, 2)),
        ("cloud", "c0", "mixed", 4e6, 1e6, args(2, 1, 4, 0, 1, 2)),
    ]


def test_lifelines_of_the_small_trace(tmp_path):
    document = exported(traces.small(), tmp_path / "trace.json")
    begins = [e for e in of_phase(document, "b") if e["cat"] == "lifeline"]
    ends = [e for e in of_phase(document, "e") if e["cat"] == "lifeline"]
    assert [round(e["ts"]) for e in begins] == [0, 1e6, 1e6, 2e6]
    assert [round(e["ts"]) for e in ends] == [4e6, 3e6, 10e6, 10e6]  # never: the end of all
    assert [e["args"]["ended"] for e in begins] == [True, True, True, False]
    assert [e["args"]["output_tokens"] for e in begins] == [3, 1, 5, 2]
    first_tokens = of_phase(document, "n")
    assert [round(e["ts"]) for e in first_tokens] == [2e6, 3e6, 5e6, 6e6]
    assert [e["args"]["ttft_ms"] for e in first_tokens] == [2000, 2000, 4000, 4000]
    assert [e["id"] for e in first_tokens] == [e["id"] for e in begins]


def test_counters_of_the_small_trace(tmp_path):
    document = exported(traces.small(), tmp_path / "trace.json")
    tracks = {}
    for event in of_phase(document, "C"):
        ((key, value),) = event["args"].items()
        tracks.setdefault((event["name"], key), []).append((round(event["ts"]), value))
    assert len(tracks) == 15
    times = [0, 2e6, 4e6, 6e6, 8e6, 10e6]
    assert tracks["e0 busy", "share"] == list(zip(times, [1, 1, 0.5, 0, 0, 0], strict=True))
    assert tracks["c0 KV cache", "bytes"][4:] == [(8e6, 2e9), (10e6, 0)]
    assert tracks["e1 requests", "number"][1] == (2e6, 1.0)
    assert tracks["e1 KV cache share", "share"][:3] == [(0, 0), (2e6, 0.5), (4e6, 0)]
    assert tracks["e0 waiting", "number"][:3] == [(0, 0.5), (2e6, 1), (4e6, 0)]


def test_bins_before_the_first_arrival_are_left_out(tmp_path):
    series = traces.small().series
    shifted = type(series)(
        start_s=-3.0, bin_s=2.0, busy=series.busy, n_requests=series.n_requests,
        n_waiting=series.n_waiting, kv_bytes=series.kv_bytes, n_stranded=series.n_stranded,
    )  # fmt: skip
    document = exported(traces.small(series=shifted), tmp_path / "trace.json")
    check(document)
    busy = [e for e in of_phase(document, "C") if e["name"] == "e0 busy"]
    assert [round(e["ts"]) for e in busy] == [0, 2e6, 4e6, 6e6]  # bins from 1, 3, 5 s; the end
    assert [e["args"]["share"] for e in busy] == [0.5, 0, 0, 0]


def test_flow_level_has_a_slice_per_visit(tmp_path):
    trace = traces.flow()
    document = exported(trace, tmp_path / "trace.json")
    check(document)
    slices = of_phase(document, "X")
    assert len(slices) == 8
    assert {e["name"] for e in slices} == {f"request {r}" for r in range(4)}
    assert sum(e["dur"] for e in slices) == pytest.approx(1e6 * trace.busy_s.sum())
    assert len(of_phase(document, "b")) == 4 and not of_phase(document, "n")
    recorded = traces.flow(visits=traces.small().visits)
    assert exported(recorded, tmp_path / "other.json") == document


def test_without_visits_stays_are_asynchronous(tmp_path):
    document = exported(traces.small(visits=None), tmp_path / "trace.json")
    check(document)
    assert not of_phase(document, "X")
    stays = {
        phase: [(e["name"], round(e["ts"])) for e in of_phase(document, phase)
                if e["cat"] == "stay"]
        for phase in "be"
    }  # fmt: skip
    assert stays["b"] == [("e0", 0), ("c0", 1e6), ("e0", 1e6), ("c0", 3e6), ("e0", 3e6),
                          ("c0", 4e6), ("e1", 2.5e6)]  # fmt: skip
    assert [ts for _, ts in stays["e"]] == [3e6, 4e6, 3e6, 5e6, 5e6, 9e6, 10e6]


def test_names_are_escaped(tmp_path):
    names = ('a"b\\', "é\n", "</script>")
    document = exported(traces.small(node_names=names, name='"'), tmp_path / "trace.json")
    check(document)
    found = [e["args"]["name"] for e in of_phase(document, "M") if e["name"] == "thread_name"]
    assert found == list(names)
    assert {e["name"].removesuffix(" busy") for e in of_phase(document, "C")} >= set(names)


def test_slices_stay_apart_when_a_reader_cuts_at_nanoseconds(tmp_path):
    """1.001 * 1000 is 1000.9999999999999: back to back slices must not overlap for that."""
    visits = traces.small().visits
    edges_s = 1 + np.cumsum(np.full(2001, 1.001e-6))
    n = len(edges_s) - 1
    zeros = np.zeros(n, np.int64)
    many = type(visits)(
        request=zeros, node=zeros, start_s=edges_s[:-1], end_s=edges_s[1:],
        tokens=zeros + 1, context_tokens=zeros + 9,
    )  # fmt: skip
    document = exported(traces.small(visits=many), tmp_path / "trace.json")
    check(document)
    assert len(of_phase(document, "X")) == n
    ends = [round(1000 * (e["ts"] + e["dur"])) for e in of_phase(document, "X")]
    assert ends == [round(1000 * e["ts"]) for e in of_phase(document, "X")[1:]] + [ends[-1]]


def test_pieces_are_small_and_join_up(tmp_path, monkeypatch):
    trace = traces.small()
    whole = exported(trace, tmp_path / "whole.json")
    bare = exported(traces.small(visits=None), tmp_path / "bare.json")
    monkeypatch.setattr(perfetto, "CHUNK", 2)
    assert exported(trace, tmp_path / "pieces.json") == whole
    assert exported(traces.small(visits=None), tmp_path / "pieces.json") == bare
    pieces = list(perfetto._events(trace))[1:]  # but for the names
    n_bins = trace.series.busy.shape[1]
    assert max(map(len, pieces)) <= max(3 * perfetto.CHUNK, n_bins + 1)


def test_an_existing_file_is_overwritten(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("x" * 10**6)
    check(exported(traces.small(), path))


def test_an_unwritable_path_says_so(tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "none"))):
        write_perfetto(traces.small(), tmp_path / "none" / "trace.json")


def test_a_compressed_file_is_the_same_and_the_same_every_time(tmp_path):
    plain, packed, again = (
        tmp_path / f"{name}" for name in ("a.json", "b.json.gz", "c.json.gz")
    )
    for path in (plain, packed, again):
        write_perfetto(traces.small(), path)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json",
        "b.json.gz",
        "c.json.gz",
    ]


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, name, error):
    path = tmp_path / name
    path.write_text("mine")

    def events(trace):
        yield ["{}"] * 10**5
        raise error

    monkeypatch.setattr(perfetto, "_events", events)
    with pytest.raises(type(error)) as caught:
        write_perfetto(traces.small(), path)
    if isinstance(error, OSError):
        assert caught.value.errno == 28 and caught.value.filename == str(path)
        assert "cannot write a trace here: No space left" in str(caught.value)
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [1, None, 2.5])
def test_a_path_is_a_string_or_a_path(path):
    with pytest.raises(TypeError, match="write_perfetto: path must be a string or a path, got"):
        write_perfetto(traces.small(), path)


@pytest.mark.parametrize("name", ["trace", "trace.gz", "trace.json.zip", "json"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"the name of a trace must end in \.json or \.json\.gz"
    ):
        write_perfetto(traces.small(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_only_traces_are_written(tmp_path):
    with pytest.raises(TypeError, match="write_perfetto: trace must be a Trace, got 'x'"):
        write_perfetto("x", tmp_path / "trace.json")


@pytest.mark.parametrize("options", [{"record_visits": True}, {}, {"level": "flow"}])
def test_a_simulation(tmp_path, options):
    trace = traces.simulated(**options)
    document = exported(trace, tmp_path / "trace.json")
    check(document)
    counted = {e["name"] for e in of_phase(document, "C")}
    assert len(counted) == 5 * len(trace.node_names)
    slices = of_phase(document, "X")
    busy_s = sum(e["dur"] for e in slices) / 1e6
    if options:
        assert busy_s == pytest.approx(trace.busy_s.sum(), abs=1e-9 * len(slices))
        assert len(slices) == trace.n_iterations.sum()
    else:
        assert not slices
        stays = [e for e in of_phase(document, "b") if e["cat"] == "stay"]
        assert len(stays) == 2 * len(trace.arrival_s)


def test_what_a_failure_cut_short_is_left_out(tmp_path):
    visits = traces.simulated(record_visits=True).visits
    last = np.flatnonzero(visits.node == 0)[-1]
    start_s, middle_s = visits.start_s[last], (visits.start_s[last] + visits.end_s[last]) / 2
    trace = traces.simulated(record_visits=True, fails_at_s=middle_s)
    assert trace.restarts.sum() > 0
    document = exported(trace, tmp_path / "trace.json")
    check(document)
    slices = of_phase(document, "X")
    busy_s = sum(e["dur"] for e in slices) / 1e6
    assert busy_s + (middle_s - start_s) == pytest.approx(trace.busy_s.sum(), rel=1e-6)
    lifelines = [e for e in of_phase(document, "b") if e["cat"] == "lifeline"]
    assert sum(e["args"]["restarts"] for e in lifelines) == trace.restarts.sum()


@given(trace=traces.random_traces())
def test_any_trace(trace, tmp_path_factory):
    document = exported(trace, tmp_path_factory.mktemp("any") / "trace.json")
    check(document)
    threads = {e["args"]["name"]: e["tid"] for e in of_phase(document, "M")
               if e["name"] == "thread_name"}  # fmt: skip
    slices = of_phase(document, "X")
    assert len(slices) == trace.n_iterations.sum()
    for n, name in enumerate(trace.node_names):
        mine = [e for e in slices if e["tid"] == threads[name]]
        busy_s = sum(e["dur"] for e in mine) / 1e6
        assert busy_s == pytest.approx(trace.busy_s[n], rel=1e-9, abs=2e-9 * len(mine))
        assert sum(e["args"]["tokens"] for e in mine) == trace.n_tokens[n]
        assert sum(e["args"]["batch"] for e in mine) == sum(
            len(e["args"]["requests"]) for e in mine
        )
    assert sum(e["args"]["batch"] for e in slices) == trace.n_visits
    assert sum(e["args"]["decodes"] for e in slices) == trace.is_decode().sum()
    assert len(of_phase(document, "b")) == len(trace.arrival_s) == len(of_phase(document, "n"))
