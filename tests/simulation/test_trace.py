"""Tables and figures of traces made by hand."""

import dataclasses
import itertools
import math
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given

from hypsolve.problem.solution import Partition
from hypsolve.simulation.plots import ROW
from tests.helpers import traces

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAN = float("nan")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# --- tables -----------------------------------------------------------------------------------


def test_a_row_per_request():
    frame = traces.small().to_frame()
    assert list(frame) == [
        "request", "arrival_s", "ttft_s", "tpot_s", "latency_s", "end_s", "prompt_tokens",
        "output_tokens", "restarts", "lost_tokens", "preemptions", "node_edge", "node_cloud",
        "extrapolated",
    ]  # fmt: skip
    assert frame["request"].tolist() == [0, 1, 2, 3]
    assert frame["ttft_s"].tolist() == [2, 2, 4, 4]
    assert frame["tpot_s"].tolist() == pytest.approx([1, NAN, 1.25, NAN], nan_ok=True)
    assert frame["latency_s"].tolist() == pytest.approx([4, 2, 9, NAN], nan_ok=True)
    assert frame["node_edge"].tolist() == ["e0", "e0", "e0", "e1"]
    assert frame["node_cloud"].tolist()[:3] == ["c0"] * 3
    assert frame["node_cloud"].isna().tolist() == [False, False, False, True]
    assert frame["lost_tokens"].tolist() == [0, 0, 30, 4]
    assert frame["extrapolated"].all()


def test_nodes_are_counted_over_the_network():
    assert traces.small().network_node().tolist() == [[0, 2], [0, 2], [0, 2], [1, -1]]


def test_a_row_per_visit():
    frame = traces.small().visits_frame()
    assert list(frame) == [
        "request", "tier", "node", "start_s", "end_s", "tokens", "context_tokens", "phase",
    ]  # fmt: skip
    assert frame["tier"].tolist() == ["edge", "cloud", "edge", "edge", "edge"] + ["cloud"] * 3
    assert frame["node"].tolist() == ["e0", "c0", "e0", "e0", "e0", "c0", "c0", "c0"]
    # request 2 has a prompt of one token: no cache before it, so it is a prefill
    assert frame["phase"].tolist() == ["prefill", "prefill", "decode", "prefill", "prefill",
                                       "decode", "prefill", "prefill"]  # fmt: skip
    assert frame["end_s"].tolist() == [2, 3, 4, 4, 6, 6, 6, 6]


def test_visits_of_flow_level_need_no_record():
    for visits in (None, traces.small().visits):
        frame = traces.flow(visits=visits).visits_frame()
        assert list(frame) == ["request", "tier", "node", "start_s", "end_s", "phase"]
        assert frame["request"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert frame["tier"].tolist() == ["edge", "cloud"] * 4
        assert (frame["end_s"] - frame["start_s"]).tolist() == [2, 1, 2, 1, 1, 3, 1, 3]
        assert set(frame["phase"]) == {"request"}


def test_an_empty_stage_has_no_visits():
    trace = traces.flow(
        partition=Partition((0, 4, 4)),
        node=np.array([[0, -1]] * 4),
        admitted_s=np.array([[1.0, NAN]] * 4),
        left_s=np.array([[2.0, NAN]] * 4),
    )
    assert trace.visits_frame()["tier"].tolist() == ["edge"] * 4


def test_visits_that_were_not_recorded():
    bare = traces.small(visits=None)
    with pytest.raises(ValueError, match=r"visits_frame: .* simulate with record_visits=True"):
        bare.visits_frame()
    with pytest.raises(ValueError, match=r"is_decode: .* not recorded"):
        bare.is_decode()


def test_a_row_per_node_and_bin():
    frame = traces.small().series_frame()
    assert list(frame) == [
        "node", "tier", "mid_s", "busy", "n_requests", "n_waiting", "kv_bytes", "kv_share",
    ]  # fmt: skip
    assert len(frame) == 15
    assert frame["mid_s"].tolist() == [2, 4, 6, 8, 10] * 3
    cloud = frame[frame["node"] == "c0"]
    assert cloud["tier"].tolist() == ["cloud"] * 5
    assert cloud["busy"].tolist() == [0.5, 0, 0.5, 0, 0]
    assert frame["n_waiting"].sum() == 3
    assert frame["kv_bytes"].sum() == 7e9
    assert frame["kv_share"].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0.5] + [0] * 8


def test_a_share_of_no_capacity_is_none():
    series = traces.small().series
    nothing = dataclasses.replace(series, kv_bytes=0 * series.kv_bytes)
    shut = traces.small(kv_capacity_bytes=np.array([0.0, 0, np.inf]), series=nothing)
    assert not shut.kv_share.any()


def test_a_simulation_reserves_what_there_is():
    trace = traces.simulated()
    assert trace.end_of_run_s == trace.end_s.max()
    assert (trace.series.n_waiting <= trace.series.n_requests + 1e-9).all()
    limited = np.isfinite(trace.kv_capacity_bytes) & (trace.kv_capacity_bytes > 0)
    assert limited.tolist() == [True, True, False, False, True, True]
    assert 0 < trace.kv_share.max() <= 1 and trace.kv_share[limited].any(axis=1).all()
    bytes_back = trace.kv_share[limited] * trace.kv_capacity_bytes[limited, None]
    assert bytes_back == pytest.approx(trace.series.kv_bytes[limited])


def test_waiting_at_flow_level_is_until_the_start():
    trace = traces.simulated(level="flow")
    waited_s = np.nansum(trace.admitted_s - trace.reached_s)
    assert waited_s > 0
    assert trace.series.n_waiting.sum() * trace.series.bin_s == pytest.approx(waited_s)


def test_iterations_are_told_apart():
    visits = traces.small().visits
    assert visits.first_of_iterations().tolist() == [0, 1, 2, 4, 5]
    nothing = np.zeros(0, np.int64)
    none = type(visits)(
        request=nothing, node=nothing, start_s=nothing * 1.0, end_s=nothing * 1.0,
        tokens=nothing, context_tokens=nothing,
    )  # fmt: skip
    assert none.first_of_iterations().tolist() == []


def test_equal_times_on_two_nodes_are_two_iterations():
    visits = traces.small().visits
    zeros = np.zeros(3, np.int64)
    same = type(visits)(
        request=np.arange(3), node=np.array([0, 0, 1]), start_s=zeros + 1.0,
        end_s=zeros + 2.0, tokens=zeros + 1, context_tokens=zeros,
    )  # fmt: skip
    assert same.first_of_iterations().tolist() == [0, 2]


def test_delivered_tokens_that_are_computed_again_are_a_prefill():
    visits = traces.small().visits
    again = type(visits)(
        request=np.array([2, 2, 2]), node=np.zeros(3, np.int64), start_s=np.arange(3.0),
        end_s=np.arange(3.0) + 1, tokens=np.array([2, 3, 1]),
        context_tokens=np.array([0, 2, 5]),
    )  # fmt: skip
    # a prompt of 1 token; restarted with 4 delivered; then a decode
    assert traces.small(visits=again).is_decode().tolist() == [False, False, True]


@given(trace=traces.random_traces())
def test_every_iteration_is_found(trace):
    first = trace.visits.first_of_iterations()
    per_node = np.bincount(trace.visits.node[first], minlength=len(trace.node_names))
    assert per_node.tolist() == trace.n_iterations.tolist()
    frame = trace.visits_frame()
    assert len(frame) == trace.n_visits
    assert (frame["phase"] == "decode").sum() == (trace.visits.context_tokens > 0).sum()


def test_texts_are_short():
    text = str(traces.small())
    assert text.splitlines() == [
        "small at token level, extrapolated",
        "  partition  0:2 | 2:4",
        "  policy     round_robin, seed 7",
        "  requests   4, ended 3, restarts 3",
        "  visits     8 in 5 iterations",
        "  latency    mean 5 s",
        "  TTFT       mean 2.667 s",
    ]
    assert repr(traces.small()) == (
        "<Trace of small at token level: round_robin, 4 requests, 3 ended, 8 visits>"
    )
    assert "latency" not in str(traces.small(end_s=np.full(4, NAN)))


def test_a_notebook_shows_a_table():
    table = traces.small(name="<small>")._repr_html_()
    assert table.startswith("<table><caption>&lt;small&gt; at token level, extrapolated<")
    assert table.count("<tr>") == 6
    assert "round_robin, seed 7" in table
    assert "TTFT" not in traces.flow()._repr_html_()


def test_metrics_are_a_method_too():
    assert traces.small().metrics(ttft_slo_s=2.0).slo_attainment == 0.5


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"package 'pandas'.*\[experiments\]"):
        traces.small().to_frame()


@pytest.mark.parametrize("level", ["flow", "token"])
def test_tables_of_a_simulation_fit_together(level):
    trace = traces.simulated(level=level, record_visits=True)
    requests, visits = trace.to_frame(), trace.visits_frame()
    assert len(visits) == trace.n_visits
    served = visits.groupby("request")["node"].agg(set)
    for row in requests.itertuples():
        assert served[row.request] == {row.node_bench, row.node_rented}
    busy_s = trace.busy_s * 0
    nodes = {name: n for n, name in enumerate(trace.node_names)}
    for (node, start_s, end_s), _ in visits.groupby(["node", "start_s", "end_s"]):
        busy_s[nodes[node]] += end_s - start_s
    assert busy_s == pytest.approx(trace.busy_s)
    series = trace.series_frame().groupby("node", sort=False)["busy"].sum()
    assert (series * trace.series.bin_s).to_numpy() == pytest.approx(trace.busy_s)
    if level == "token":
        tokens = visits.groupby(["request", "tier"])["tokens"].sum().unstack()
        wanted = trace.prompt_tokens + trace.output_tokens - 1
        assert (tokens.to_numpy() == wanted[:, None]).all()
        decodes = visits[visits["phase"] == "decode"].groupby(["request", "tier"]).size()
        decodes = decodes.unstack().reindex(range(12), fill_value=0).to_numpy()
        assert (decodes == trace.output_tokens[:, None] - 1).all()


# --- figures ----------------------------------------------------------------------------------


def bars(ax):
    """Return left, right, top and bottom of the bars of each collection."""
    found = {}
    for at, collection in enumerate(ax.collections):
        corners = [path.vertices[:4] for path in collection.get_paths()]
        found[collection.get_label() or at] = [
            (float(c[0, 0]), float(c[2, 0]), *sorted(c[:2, 1].round(9).tolist()))
            for c in corners
        ]
    return found


def test_gantt_of_iterations():
    ax = traces.small().plot_gantt()
    low, edge = ROW / 2, 2 + ROW / 2  # bottoms of e0 and c0
    height = ROW / math.sqrt(3)  # of a batch of one, as the largest is of three
    wanted = {
        "prefill": [(1, 2, low - height, low), (4, 6, low - height, low),
                    (2, 3, edge - height, edge)],
        "prefill and decode": [(2, 4, low - math.sqrt(2) * height, low),
                               (5, 6, edge - ROW, edge)],
    }  # fmt: skip
    found = bars(ax)
    assert set(found) == set(wanted)
    for name, rows in wanted.items():
        assert np.allclose(sorted(found[name]), sorted(rows), atol=1e-6)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["prefill", "prefill and decode"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["e0", "e1", "c0"]
    assert ax.get_xlim() == (1.0, 11.0) and ax.get_xlabel() == "time (s)"
    assert "a full row is 3 requests" in ax.get_title("left")
    assert "extrapolated" in ax.get_title("left")


def test_gantt_of_a_window():
    ax = traces.small().plot_gantt(start_s=2.5, end_s=4.0)
    assert {name: len(rows) for name, rows in bars(ax).items()} == {
        "prefill": 1,  # c0 2..3
        "prefill and decode": 1,  # e0 2..4
    }
    assert ax.get_xlim() == (2.5, 4.0)


@pytest.mark.parametrize("trace", [traces.flow(), traces.flow(visits=traces.small().visits)])
def test_gantt_of_flow_level(trace):
    ax = trace.plot_gantt()
    ((_, rows),) = bars(ax).items()
    assert [(left, right) for left, right, *_ in rows] == [
        (1, 3), (3, 4), (3, 5), (5, 6), (5, 6), (6, 9), (7, 8), (9, 12),
    ]  # fmt: skip
    assert np.allclose([bottom - top for *_, top, bottom in rows], ROW)  # one lane
    colours = np.unique(ax.collections[0].get_facecolor(), axis=0)
    assert len(colours) == 4
    assert ax.get_legend() is None


def test_gantt_without_visits_stacks_what_overlaps():
    trace = traces.small(
        admitted_s=np.array([[1.0, 2], [2, 4], [4, 5], [3.5, NAN]]),
        left_s=np.array([[4.0, 5], [4.5, 6], [6, 10], [NAN, NAN]]),
        visits=None,
    )
    ((_, rows),) = bars(trace.plot_gantt()).items()
    half, top = ROW / 2, -ROW / 2
    assert np.allclose(
        sorted(rows),
        sorted(
            [
                (1, 4, top, top + half),  # e0: request 0
                (2, 4.5, top + half, top + ROW),  # request 1 beside it
                (4, 6, top, top + half),  # request 2, where request 0 has left
                (3.5, 11, 1 + top, 1 + top + ROW),  # e1: request 3, to the end of the trace
                (2, 5, 2 + top, 2 + top + half),  # c0
                (4, 6, 2 + top + half, 2 + top + ROW),
                (5, 10, 2 + top, 2 + top + half),
            ]
        ),
        atol=1e-6,
    )


@given(trace=traces.random_traces(with_visits=False))
def test_lanes_never_overlap(trace):
    ((_, rows),) = bars(trace.plot_gantt()).items()
    plt.close("all")
    by_lane = {}
    for left, right, top, _ in rows:
        by_lane.setdefault(top, []).append((left, right))
    for lane in by_lane.values():
        lane.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(lane))


def test_gantt_draws_into_the_axes_given():
    _, ax = plt.subplots()
    assert traces.small().plot_gantt(ax) is ax
    assert traces.small().plot_series("busy", ax) is ax


def test_gantt_refuses_an_empty_window():
    for window in ({"start_s": 5.0, "end_s": 5.0}, {"start_s": 5, "end_s": 4}, {"end_s": 1.0}):
        with pytest.raises(ValueError, match="plot_gantt: end_s must be above start_s"):
            traces.small().plot_gantt(**window)
    with pytest.raises(ValueError, match="plot_gantt: start_s must be finite"):
        traces.small().plot_gantt(start_s=math.nan)


def test_gantt_where_no_time_passes():
    at = np.ones(4)
    trace = traces.small(
        arrival_s=at, end_s=at, first_token_s=at, admitted_s=np.ones((4, 2)),
        left_s=np.ones((4, 2)), visits=None, end_of_run_s=1.0,
    )  # fmt: skip
    assert trace.plot_gantt().get_xlim() == (1.0, 2.0)


def test_a_hundred_thousand_visits_are_few_artists():
    n = 100_000
    zeros = np.zeros(n, np.int64)
    start_s = 1 + np.arange(n) * 1e-3
    visits = type(traces.small().visits)(
        request=zeros, node=zeros, start_s=start_s, end_s=start_s + 1e-3, tokens=zeros + 1,
        context_tokens=zeros + 4,
    )  # fmt: skip
    ax = traces.small(visits=visits, end_of_run_s=1 + n * 1e-3).plot_gantt()
    assert [len(collection.get_paths()) for collection in ax.collections] == [n]
    assert len(ax.patches) == 0
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[:, :, :3]
    orange = (pixels[:, :, 0] > 200) & (pixels[:, :, 2] < 150)
    assert orange.sum() > 10_000  # it is to be seen


@pytest.mark.parametrize(
    ("quantity", "label", "largest"),
    [("busy", "busy", 1.0), ("n_requests", "requests at the node", 2.0),
     ("n_waiting", "requests waiting at the node", 1.0),
     ("kv_bytes", "KV cache reserved (GB)", 3.0),
     ("kv_share", "KV cache reserved (share of capacity)", 1.0)],
)  # fmt: skip
def test_series_of_each_quantity(quantity, label, largest):
    trace = traces.small()
    ax = trace.plot_series(quantity)
    (mesh,) = ax.collections
    wanted = {"kv_bytes": trace.series.kv_bytes / 1e9, "kv_share": trace.kv_share}
    values = mesh.get_array()
    assert np.allclose(
        values.filled(0.0), wanted.get(quantity, getattr(trace.series, quantity, None))
    )
    assert mesh.get_clim() == (0, largest)
    assert ax.figure.axes[1].get_ylabel() == label
    assert ax.get_xlim() == (1.0, 11.0)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["e0", "e1", "c0"]
    ax.figure.canvas.draw()


def test_series_of_nothing():
    empty = traces.small().series
    zeros = type(empty)(
        start_s=0.0, bin_s=1.0, busy=empty.busy * 0, n_requests=empty.busy * 0,
        n_waiting=empty.busy * 0, kv_bytes=empty.busy * 0, n_stranded=empty.n_stranded * 0,
    )  # fmt: skip
    ax = traces.small(series=zeros).plot_series("kv_bytes")
    ax.figure.canvas.draw()
    assert ax.collections[0].get_clim() == (0, 1)


@pytest.mark.parametrize("plot", ["plot_gantt", "plot_series"])
def test_axes_are_matplotlibs(plot):
    with pytest.raises(TypeError, match="plot: ax must be an Axes, got 'x'"):
        getattr(traces.small(), plot)(ax="x")


def test_an_unknown_quantity_lists_the_known():
    with pytest.raises(
        ValueError, match=r"unknown quantity 'kv'; .*busy, n_requests, n_waiting, kv_bytes, k"
    ):
        traces.small().plot_series("kv")
