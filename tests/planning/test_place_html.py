"""The report of a placement: one page that loads nothing, and shows what the plan says."""

import html
import itertools
import json
import re

import matplotlib
import matplotlib.figure
import pytest

import hypsolve as hs
from hypsolve.planning.place_figure import BOX, Layout
from hypsolve.planning.place_html import write_placement_report
from hypsolve.planning.place_text import show_rate
from tests.cli.test_cli import run
from tests.helpers.short_simulations import short_simulations

matplotlib.use("Agg")
__all__ = ["short_simulations"]
LAB = """
currency = "EUR <&>"
link = {gbps = 10, latency_ms = 0.1}
[[sites]]
name = "room"
[[sites]]
name = "<cellar>"
[[links]]
from = "room"
to = "<cellar>"
gbps = 0.8
latency_ms = 7
[[machines]]
name = "desk"
gpu = "rtx-3060"
count = 2
site = "room"
[[machines]]
name = "$tower$"
gpu = "rtx-3060"
site = "<cellar>"
[[machines]]
name = "mac"
gpu = "apple-m2-ultra"
site = "room"
[[offers]]
name = "rack"
gpu = "a100-80gb"
max_count = 2
price_per_hour = 2.0
site = "<cellar>"
"""
ASKED = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 20}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    path = tmp_path_factory.mktemp("lab") / "lab.toml"
    path.write_text(LAB)
    return path


@pytest.fixture(scope="module")
def plan(lab):
    return hs.place("llama-3-8b", lab, **ASKED)


@pytest.fixture(scope="module")
def page(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "placement.html"
    write_placement_report(plan, path, command="hypsolve place <this>")
    return path.read_text()


def words_of(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page)))


def test_the_page_loads_nothing_and_is_escaped(page):
    assert "<cellar>" not in page and "&lt;cellar&gt;" in page
    assert "<this>" not in page and "hypsolve place &lt;this&gt;" in page
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|src=", page)
    assert page.count('role="img" aria-label="') == 2  # the figure, wide and narrow
    assert '<html lang="en">' in page and 'name="viewport"' in page


def test_the_page_says_what_the_plan_says(page, plan):
    words = words_of(page)
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            assert stage.machine in words
    for unused in plan.unused:
        assert unused.reason in words
    assert show_rate(plan.throughput.simulated_requests_per_s) in words
    assert f"{plan.price_per_hour:.4g} EUR <&>" in words
    assert "0.8 Gbit/s" in words and "7 ms" in words
    assert "expected error: " in words.lower() and "--costs" not in words
    table = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.S)[1]))
    assert table == json.loads(json.dumps(plan.to_dict()))


@pytest.mark.parametrize("width", [9.4, 6.3, 3.8])
def test_boxes_lie_apart_inside_their_site(plan, width):
    """Every stage and every machine that is left out has a box of its own."""
    layout = Layout(plan, width)
    shown = sum(len(lane.boxes) for lane in layout.lanes if lane.is_pipeline)
    kinds = {
        tuple((plan.query.fleet.machine(s.machine).kind, s.gpus, s.stop) for s in p.stages)
        for p in plan.pipelines
    }
    assert shown == sum(map(len, kinds))
    assert layout.box >= BOX
    for lane in layout.lanes:
        places = [(box.column, box.row, box.slot) for box in lane.boxes]
        assert len(set(places)) == len(places)
        for box in lane.boxes:
            assert 0 <= box.slot < layout.slots
            assert layout.left(box.column, box.slot) + layout.box <= width + 1e-9
    left_out = [box for lane in layout.lanes if not lane.is_pipeline for box in lane.boxes]
    assert len(left_out) >= 1 and any("Apple" in line for box in left_out for line in box.lines)


def test_nothing_fits(tmp_path):
    (tmp_path / "small.toml").write_text('machines = [{gpu = "rtx-3060"}]\n')
    plan = hs.place("llama-3-70b", tmp_path / "small.toml", **ASKED)
    assert not plan.fits
    write_placement_report(plan, tmp_path / "none.html")
    words = words_of((tmp_path / "none.html").read_text())
    assert "No placement of llama-3-70b on small." in words
    for reason in plan.reasons:
        assert reason[1:] in words


def test_commands_write_it(capsys, lab, tmp_path):
    path = tmp_path / "rent.html"
    code, _, err = run(
        capsys, "rent", "--model", "llama-3-8b", "--machines", lab, "--prompt", 128,
        "--output", 16, "--rate", 2, "--report", path, "--time-limit", 15,
    )  # fmt: skip
    assert code == 0 and f"{path}: written" in err
    assert "hypsolve rent" in words_of(path.read_text())


def test_a_report_that_cannot_be_written_is_refused_before_the_work(capsys, lab, tmp_path):
    code, _, err = run(
        capsys, "place", "--model", "llama-3-8b", "--machines", lab, "--report",
        tmp_path / "plan.pdf",
    )  # fmt: skip
    assert code == 2 and "must end in .html" in err


def test_no_rate_is_kept_up_with_beyond_full_queues(plan):
    """Pipelines serve the most that they can where every queue is full."""
    answer = plan.answer
    assert answer is not None and answer.max_requests_per_s > 0
    assert answer.max_requests_per_s <= plan.throughput.simulated_requests_per_s * (1 + 1e-9)


def test_plot_draws_into_given_axes_and_refuses_nothing(plan, tmp_path):
    figure = matplotlib.figure.Figure(figsize=(6, 4))
    ax = plan.plot(figure.add_axes((0, 0, 1, 1)))
    labels = {text.get_text() for text in ax.texts}
    assert any(label.startswith("pipeline") for label in labels) and "$tower$" in str(labels)
    (tmp_path / "small.toml").write_text('machines = [{gpu = "rtx-3060"}]\n')
    none = hs.place("llama-3-70b", tmp_path / "small.toml", **ASKED)
    with pytest.raises(ValueError, match="place: no placement to draw, infeasible"):
        none.plot()


MANY = """
default_link = {gbps = 1.0, latency_ms = 15.0}
entry = {berlin = 0.7, oslo = 0.3}
sites = [
  {name = "berlin", link = {gbps = 25.0, latency_ms = 0.1}},
  {name = "oslo", link = {gbps = 10.0, latency_ms = 0.1}},
  {name = "tokyo", link = {gbps = 10.0, latency_ms = 0.1}},
]
machines = [
  {gpu = "h100", name = "h100", site = "berlin", count = 12},
  {gpu = "l4", name = "l4", site = "oslo", count = 6},
  {gpu = "v100-16gb", name = "v100", site = "tokyo", count = 20},
]
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three sites, and pipelines of two stages with as many names as fit a row."""
    path = tmp_path_factory.mktemp("many") / "many.toml"
    path.write_text(MANY)
    return hs.place("llama-3-8b", path, **ASKED)


def test_lines_stay_inside_their_site(many):
    """Labels ran over the edge of the panel, and over that of the page at the last site."""
    ax = many.plot()
    figure = ax.figure
    renderer = figure.canvas.get_renderer()
    layout = Layout(many, 9.4)
    assert layout.is_by_site and len(layout.sites) == 3 and len(layout.lanes) >= 3
    panels = [patch.get_window_extent(renderer) for patch in ax.patches[:3]]
    extents = [(text.get_text(), text.get_window_extent(renderer)) for text in ax.texts]
    for words, extent in extents:
        assert any(p.x0 <= extent.x0 and extent.x1 <= p.x1 for p in panels), words
        assert "…" not in words
    for (words, one), (more, other) in itertools.combinations(extents, 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), (words, more)
    assert {"70% of requests enter", "30% of requests enter"} <= {words for words, _ in extents}


def test_only_consecutive_names_are_a_range(many):
    """`v100-0 to 18` stood for every second one."""
    texts = [text.get_text() for text in many.plot().texts]
    assert not any(words.startswith("v100-0 to 18") for words in texts)
    assert {"v100-0, +9", "v100-1, +9"} <= set(texts)


def test_lanes_at_different_sites_stand_side_by_side(many):
    layout = Layout(many, 9.4)
    spans = [
        (lane.columns, top, top + lane.height)
        for lane, top in zip(layout.lanes, layout.tops, strict=True)
    ]
    for (columns, top, bottom), (others, other_top, other_bottom) in itertools.combinations(
        spans, 2
    ):
        if set(columns) & set(others):
            assert bottom <= other_top + 1e-9 or other_bottom <= top + 1e-9
    assert layout.height < sum(lane.height for lane in layout.lanes)
