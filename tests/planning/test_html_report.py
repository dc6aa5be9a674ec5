"""Figures and the report of a plan: what they show, also in a real browser, and load."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.cli.examples import NETWORK as EXAMPLE
from hypsolve.planning import figures, html_page, network_figure
from hypsolve.planning.figures import FIGURES
from hypsolve.planning.forecast import predict
from hypsolve.planning.upgrade_text import describe_upgrade, split_first
from instances import network
from tests.cli.test_cli import run
from tests.helpers.plans import plan_alone
from tests.planning.test_planner import SMALL, TIGHT, tier

matplotlib.use("Agg")
SHORT = {"concurrency": 8, "output_tokens": 8, "with_upgrades": False}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "network.toml"
    path.write_text(EXAMPLE)
    return path


@pytest.fixture(scope="module")
def found(site):
    return plan_alone("llama-3-8b", site, rate_per_s=2.0, output_tokens=32)


@pytest.fixture(scope="module")
def too_small():
    """A plan of what does not fit."""
    return plan_alone("llama-3-8b", TIGHT, concurrency=64, output_tokens=16)


@pytest.fixture(scope="module")
def report(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "plan.html"
    hs.write_report(found, path, command="hypsolve plan <this>")
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures, for tests of their words: drawing takes most of the time."""
    monkeypatch.setattr(html_page, "_svg", lambda *arguments: "<svg></svg>")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    matplotlib.pyplot.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


# figures


def test_network_shows_every_node_tier_and_link(found):
    ax = found.plot("network")
    shown = " | ".join(texts(ax))
    for node in found.nodes:
        assert node.gpu in shown and f"{node.free_bytes / 1e9:.1f} of" in shown
    for stage, each in zip(found.stages, found.network.network.tiers, strict=True):
        assert stage.tier in shown and found.describe_blocks(stage.blocks) in shown
        if each.link is not None:
            assert f"{each.link.bytes_per_s * 8e-9:.3g}\nGbit/s" in shown


def test_memory_is_to_scale(found):
    """One bar of weights, KV cache and memory for each kind of node."""
    bars = [p for p in found.plot("network").patches if math.isclose(p.get_height(), 0.13)]
    usable = {
        n.name: n.usable_bytes for each in found.network.network.tiers for n in each.nodes
    }
    kinds = {(node.tier, node.gpu): node for node in found.nodes}.values()
    n_bytes = [
        n_bytes
        for node in kinds
        for n_bytes in (node.weight_bytes, node.kv_bytes, usable[node.node])
    ]
    scale = max(bar.get_width() for bar in bars) / max(n_bytes)
    assert [bar.get_width() for bar in bars] == pytest.approx([n * scale for n in n_bytes])


@pytest.mark.parametrize("width", [3.8, 6.3, 9.4])
def test_every_kind_of_node_is_drawn_once(width):
    mixed = replace(tier("desk", "rtx-3090", 9), link=SMALL.tiers[0].link)
    others = [hs.Node(name=f"x{n}", gpu=hs.gpu(gpu)) for n, gpu in enumerate(("l4", "a10"))]
    mixed = replace(mixed, nodes=(others[0], *mixed.nodes, others[1]))
    wide = replace(SMALL, tiers=(mixed, *SMALL.tiers[1:]))
    plan = plan_alone("llama-3-8b", wide, **SHORT)
    shown = texts(figures.plot(plan, "network", None, width))
    assert "9 x RTX 3090" in shown and "L4" in shown and "A10" in shown
    assert any(text.startswith("0") and text.endswith("8") for text in shown)  # of tier desk


@pytest.fixture(scope="module", params=["campus", "phone-edge-cloud-5g", "operator-5-tier"])
def of_network(request):
    """A plan for a network of the repository."""
    return plan_alone("phi-3-medium", network(request.param), **{**SHORT, "concurrency": 1})


@pytest.mark.parametrize("width", [3.8, 9.4])
def test_text_of_the_network_lies_in_its_card(of_network, width):
    ax = figures.plot(of_network, "network", None, width)
    renderer = ax.figure.canvas.get_renderer()
    cards = [p.get_window_extent(renderer) for p in ax.patches if p.get_edgecolor()[3] > 0
             and math.isclose(p.get_height(), network_figure.CARD)]  # fmt: skip
    assert len(cards) >= len(of_network.stages)
    n_inside = 0
    for text in ax.texts:
        box = text.get_window_extent(renderer)
        for card in cards:
            if card.x0 <= box.x0 <= card.x1 - 4 and card.y0 <= box.y0 <= card.y1:
                n_inside += 1
                assert box.x1 <= card.x1 + 1 and box.y1 <= card.y1 + 1, text.get_text()
    assert n_inside == 4 * len(cards)
    matplotlib.pyplot.close(ax.figure)


@pytest.mark.parametrize("kind", FIGURES)
def test_text_is_at_least_8_points_and_inside_the_figure(kind, found):
    for width in (3.8, 6.3, 9.4):
        figure = figures.plot(found, kind, None, width).figure
        figure.canvas.draw()
        edge = figure.bbox.width + 2
        assert all(text.get_size() >= 8 for text in figure.findobj(matplotlib.text.Text))
        (ax,) = figure.axes
        for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.title):
            box = text.get_window_extent()
            assert box.x0 >= -2 and box.x1 <= edge, (kind, width, text.get_text())


def test_a_link_back_of_another_latency_is_told():
    slow = replace(SMALL.tiers[0].link, return_latency_s=0.25)
    wide = replace(SMALL, tiers=(replace(SMALL.tiers[0], link=slow), SMALL.tiers[1]))
    shown = " ".join(texts(plan_alone("llama-3-8b", wide, **SHORT).plot("network")))
    assert "250 ms back" in shown


@pytest.mark.parametrize("objective", ["bottleneck", "path", "p0"])
def test_stages_are_as_long_as_they_take(objective):
    found = plan_alone("phi-3-mini", SMALL, objective=objective, **SHORT)
    ax = found.plot("stages")
    widths = [bar.get_width() for bar in ax.patches]
    times_s = [stage.time_s for stage in found.stages]
    expected = times_s + [stage.link_s for stage in found.stages]
    assert widths == pytest.approx(expected, rel=1e-12)
    assert texts(ax)[1].endswith(f"{found.stages[0].share:.0%}")


def test_pareto_marks_this_plan(found):
    """Rates and latencies are those of serving in batches, and no split beats another."""
    ax = found.plot("pareto")
    *_, frontier, here = ax.lines
    points = found.serving_frontier()
    assert frontier.get_xdata().tolist() == [point.max_requests_per_s for point in points]
    assert frontier.get_ydata().tolist() == [point.latency_mean_s for point in points]
    assert here.get_xdata()[0] == found.forecast.max_requests_per_s
    assert here.get_ydata()[0] == found.forecast.latency_s.mean
    assert ax.get_xlim()[1] > here.get_xdata()[0] and ax.get_ylim()[1] > here.get_ydata()[0]
    for a, b in itertools.pairwise(points):
        assert a.max_requests_per_s >= b.max_requests_per_s
        assert a.latency_mean_s > b.latency_mean_s
    forecast = predict(found.deployment, points[0].partition, found.query.load)
    assert forecast.latency_s.mean == points[0].latency_mean_s
    assert forecast.max_requests_per_s == points[0].max_requests_per_s


def test_no_split_that_is_beaten_is_drawn_as_a_best_one(found):
    """A plan that beats all other splits is the only best one."""
    own = found.result.partition
    rivals = [
        (point.max_requests_per_s, point.latency_mean_s)
        for point in found.serving_points()
        if point.partition != own
    ]
    mine = (1.01 * max(r for r, _ in rivals), 0.99 * min(s for _, s in rivals))
    latency_s = replace(found.forecast.latency_s, mean=mine[1])
    served = replace(found.forecast, max_requests_per_s=mine[0], latency_s=latency_s)
    *others, frontier, here = replace(found, forecast=served).plot("pareto").lines
    beaten = [tuple(point) for line in others for point in line.get_xydata()]
    assert tuple(here.get_xydata()[0]) == mine
    assert frontier.get_xydata().tolist() == [list(mine)]
    assert rivals and sorted(beaten) == sorted(rivals)


def test_latencies_are_those_simulated(found):
    trace = found.simulate()
    first, last = (line for line in found.plot("latency").lines if len(line.get_xdata()) > 1)
    np.testing.assert_array_equal(first.get_xdata(), np.sort(trace.ttft_s))
    np.testing.assert_array_equal(last.get_xdata(), np.sort(trace.latency_s))
    assert last.get_ydata()[-1] == 100
    marks = [line.get_xdata()[0] for line in found.plot("latency").lines[-2:]]
    assert marks == [found.forecast.latency_s.p50, found.forecast.latency_s.p95]


def test_gantt_shows_work_of_the_nodes(found):
    ax = found.plot("gantt")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [node.node for node in found.nodes] and ax.collections
    low, high = ax.get_xlim()
    assert high - low == pytest.approx(6 * found.forecast.tpot_s.mean)
    assert low == np.median(found.simulate().arrival_s)
    labels = [float(label.get_text()) for label in ax.get_xticklabels()]
    assert labels[0] == 0 and ax.get_xlabel().startswith("ms, from ")
    np.testing.assert_allclose(labels, (ax.get_xticks() - low) * 1e3, atol=1e-6)


def test_changes_are_in_order(found):
    ax = found.plot("upgrades")
    shown = (*split_first(found), *found.upgrades)[:20]
    assert [bar.get_width() for bar in ax.patches] == [change.after for change in shown]
    names, values = texts(ax)[::2], texts(ax)[1::2]
    assert names == [upgrade.what for upgrade in shown]
    assert values[0] == describe_upgrade(shown[0])


@pytest.mark.parametrize("width", [3.8, 6.3])
def test_what_an_upgrade_reaches_fits_beside_its_bar(found, width):
    """Words on a search that was cut short left no room for the bars, and a UserWarning."""
    upgrade = replace(
        found.upgrades[0], quantity="requests/s", before=1.0, after=28.8, gain=math.nan,
        before_is_lower_bound=True,
    )  # fmt: skip
    words = describe_upgrade(upgrade)
    plan = replace(found, upgrades=(upgrade,), alternatives=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = figures.plot(plan, "upgrades", None, width)
        ax.figure.draw_without_rendering()
    shown = [text for text in ax.texts if " ".join(text.get_text().split()) == words]
    assert len(shown) == 1 and len(words) > 60
    assert shown[0].get_window_extent().x1 <= ax.figure.bbox.x1


def test_outputs_of_one_token_and_one_node_are_drawn():
    box = hs.Network(name="one", tiers=(tier("box", "a100-80gb"),))
    found = plan_alone("phi-3-mini", box, output_tokens=1, concurrency=1)
    for kind in FIGURES:
        found.plot(kind)


def test_figures_go_where_they_are_told(found, too_small):
    figure, axes = matplotlib.pyplot.subplots(2, 3)
    for kind, ax in zip(FIGURES, axes.flat, strict=True):
        assert found.plot(kind, ax) is ax
    with pytest.raises(ValueError, match="unknown figure of a plan 'pie'; choose one of netw"):
        found.plot("pie")
    with pytest.raises(TypeError, match="ax must be an Axes"):
        found.plot("stages", figure)
    for kind in FIGURES:
        if kind == "upgrades":
            too_small.plot(kind)
            continue
        with pytest.raises(ValueError, match=f"nothing to draw as '{kind}', infeasible"):
            too_small.plot(kind)


def test_the_report_says_how_messages_go_and_nodes_pair(tmp_path):
    """Both change what a plan serves, and the text of the plan has them."""
    wire = hs.Link(bytes_per_s=1.25e8, latency_s=1e-4)
    kinds = (("a", ("a10", "l40s")), ("b", ("l4", "l4")))
    tiers = tuple(
        hs.Tier(
            name=name,
            nodes=tuple(
                hs.Node(name=f"{name}{i}", gpu=hs.gpu(gpu)) for i, gpu in enumerate(gpus)
            ),
            link=wire if name == "a" else None,
        )
        for name, gpus in kinds
    )
    network = hs.NetworkFile(
        network=hs.Network(name="n", tiers=tiers), min_blocks=(5, 5), max_blocks=(29, 29)
    )
    for runtime in ("llama.cpp", "vllm"):
        found = plan_alone("llama-3-8b", network, output_tokens=8, runtime=runtime)
        hs.write_report(found, tmp_path / "x.html")
        page, text = (tmp_path / "x.html").read_text(), str(found)
        line = "ipelines: 1 x A10 -&gt; L4, 1 x L40S"
        assert line in page and line.replace("&gt;", ">") in text
        assert ("the logits return there" in page) == (runtime == "llama.cpp")
        assert ("the logits return there" in text) == (runtime == "llama.cpp")


# the file


class Loads(HTMLParser):
    """What a page would load, run, or refer to; ids."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.found.append(value)
            assert not name.startswith("on"), name


def test_the_file_loads_nothing(report):
    text = report.read_text()
    page = Loads(text)
    assert page.found and all(each.startswith("#") for each in page.found)  # within SVG
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert all(each.startswith("#") for each in re.findall(r"url\(['\"]?([^)]*)", text))
    assert "@import" not in text
    known = set(page.ids)
    assert {each[1:] for each in page.found} <= known


def test_the_file_holds_the_plan(report, found):
    from html import unescape

    text = report.read_text()
    inner = re.search(r"<pre>(.*)</pre>", text, re.DOTALL)[1]
    assert json.loads(unescape(inner)) == json.loads(json.dumps(found.to_dict()))
    assert "hypsolve plan &lt;this&gt;" in text and found.model.source in unescape(text)
    for each in found.network.network.tiers:
        assert unescape(text).count(each.nodes[0].gpu.source) == 1


def test_names_cannot_write_html(tmp_path):
    evil = "<script>alert('&amp;\")</script>"
    nodes = (hs.Node(name=evil, gpu=hs.gpu("rtx-4090")),)
    network = hs.Network(name="n" + evil, tiers=(hs.Tier(name="t" + evil, nodes=nodes),))
    found = plan_alone("phi-3-mini", network, output_tokens=8)
    hs.write_report(found, tmp_path / "x.html", command=evil)
    assert "script" not in Loads((tmp_path / "x.html").read_text()).tags


def test_names_are_no_formulas_and_may_be_of_any_script(tmp_path):
    """Warnings would be errors here."""
    names = (r"cloud $\frac{1}$ $x$", "クラウド", "облако")
    links = (SMALL.tiers[0].link,) * 2
    tiers = tuple(
        hs.Tier(name=name, nodes=(hs.Node(name=f"n {name}", gpu=hs.gpu("l4")),), link=link)
        for name, link in zip(names, (*links, None), strict=True)
    )
    network = hs.Network(name="$a$ $b$", tiers=tiers)
    found = plan_alone("phi-3-mini", network, concurrency=1, output_tokens=8)
    hs.write_report(found, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    for name in names:
        assert text.count(name) >= 4


def test_long_names_are_cut_short(tmp_path):
    tiers = tuple(
        hs.Tier(
            name=f"{k}" * 150,
            nodes=tuple(
                hs.Node(name=f"{k}-{j} " + "node" * 50, gpu=hs.gpu("l4")) for j in range(8)
            ),
            link=SMALL.tiers[0].link if k < 2 else None,
        )
        for k in range(3)
    )
    network = hs.Network(name="long", tiers=tiers)
    found = plan_alone("phi-3-mini", network, concurrency=1, output_tokens=8)
    for kind in FIGURES:
        if kind == "upgrades" and not found.upgrades:
            continue
        ax = found.plot(kind)
        shown = [text.get_text() for text in ax.findobj(matplotlib.text.Text)]
        assert not any("node" * 13 in text or "1" * 60 in text for text in shown), kind
    hs.write_report(found, tmp_path / "x.html")
    assert "node" * 50 in (tmp_path / "x.html").read_text()  # in the plan as JSON


def test_what_does_not_fit_has_a_report(tmp_path, too_small):
    hs.write_report(too_small, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert "<strong>Infeasible: the tiers together reach" in text
    assert text.count("<li>tier &#x27;") == 2 and 'id="upgrades"' in text
    assert 'id="network"' not in text and "What would make it fit, simulated" in text


def first_lines(plan, path):
    """Return class and text of the banner."""
    hs.write_report(plan, path)
    kind, inner = re.search(r'<p class="(verdict[^"]*)">(.*?)</p>', path.read_text()).groups()
    return kind, html.unescape(re.sub(r"<[^>]*>", " ", inner))


@pytest.mark.usefixtures("undrawn")
def test_the_banner_judges_the_load_before_the_proof(tmp_path, found):
    """A proof about requests one at a time must not hide that the load is not met."""
    most = found.forecast.max_requests_per_s
    kind, words = first_lines(found, tmp_path / "x.html")
    assert kind == "verdict"
    assert words.index("It keeps up with the 2 requests/s") < words.index("Proved optimal")
    assert "about the bottleneck alone, not about the load" in words
    asked = replace(found.query, rate_per_s=100.0)
    load = replace(found.forecast.load, rate_per_s=100.0)
    over = replace(found, query=asked,
                   forecast=replace(found.forecast, load=load, keeps_up=False))  # fmt: skip
    kind, words = first_lines(over, tmp_path / "y.html")
    assert kind == "verdict none"
    assert words.index("It cannot keep up with 100 requests/s") < words.index("Proved optimal")
    assert f"it sustains about {most:.3g} requests/s" in words
    page = (tmp_path / "y.html").read_text()
    assert "<dt>TTFT</dt><dd>grows without end</dd>" in page
    assert "<dt>TTFT</dt><dd>grows" not in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(("share", "kind"), [(0.95, "verdict"), (0.5, "verdict none")])
@pytest.mark.usefixtures("undrawn")
def test_the_banner_judges_the_targets(tmp_path, found, share, kind):
    """A load that is kept up with, but outside of the targets, is not served."""
    load = replace(found.forecast.load, ttft_slo_s=0.5)
    missed = replace(found.forecast, load=load, slo_attainment=share)
    found = replace(found, forecast=missed)
    shown, words = first_lines(found, tmp_path / "x.html")
    assert shown == kind and f"{share:.1%} of the requests are within TTFT <= 500 ms" in words
    assert str(found).index("within TTFT") < str(found).index("proved optimal")


@pytest.mark.usefixtures("undrawn")
def test_a_search_that_was_cut_short_is_told(tmp_path, found):
    """A lower bound on a rate is no estimate of it."""
    rate = f"{found.forecast.max_requests_per_s:.3g} requests/s"
    hs.write_report(found, tmp_path / "x.html")
    assert f"<dd>about {rate}</dd>" in (tmp_path / "x.html").read_text()
    short = replace(
        found,
        forecast=replace(found.forecast, max_rate_is_lower_bound=True),
        alternatives=tuple(
            replace(each, max_rate_is_lower_bound=True) for each in found.alternatives
        ),
    )
    hs.write_report(short, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert f"<dd>at least {rate}</dd>" in text and f"about {rate}" not in text
    assert text.count(">at least ") > 1 + len(found.alternatives)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_plan_has_a_report(tmp_path, found):
    some = replace(found, forecast=None, upgrades=(), stopped="in the middle")
    hs.write_report(some, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert "Stopped: in the middle." in text and 'id="latency"' not in text
    assert "What would help" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_refuted_certificate_is_told(tmp_path, found):
    wrong = replace(found.result.certificate, bound_s=2 * found.result.bound_s)
    hs.write_report(replace(found, result=replace(found.result, certificate=wrong)),
                    tmp_path / "x.html")  # fmt: skip
    text = (tmp_path / "x.html").read_text()
    assert "Its certificate is refuted" in text and "was verified" not in text


@pytest.mark.usefixtures("undrawn")
def test_extrapolated_times_are_marked(tmp_path):
    found = plan_alone("llama-3-8b", SMALL, weights="int4", **SHORT)
    hs.write_report(found, tmp_path / "x.html")
    assert "times are extrapolated" in (tmp_path / "x.html").read_text()


def test_bad_paths(tmp_path, found):
    with pytest.raises(ValueError, match=r"plan\.pdf: the name of a report must end in \.html"):
        hs.write_report(found, tmp_path / "plan.pdf")
    with pytest.raises(OSError, match="cannot write a report here: no such folder"):
        hs.write_report(found, tmp_path / "nowhere" / "plan.html")
    with pytest.raises(TypeError, match="plan must be a Plan, got 3"):
        hs.write_report(3, tmp_path / "plan.html")


def test_the_command_writes_it(capsys, site, tmp_path):
    path = tmp_path / "plan.html"
    command = (
        "plan", "--model", "phi-3-mini", "--network", site, "--output", 4, "--report", path
    )  # fmt: skip
    code, out, err = run(capsys, *command)
    assert code == 0 and err == f"{path}: written\n"
    assert "no split and no schedule serves" in out
    assert f">hypsolve plan --model phi-3-mini --network {site}" in path.read_text()
    assert run(capsys, *command, "--objective", "path", "--json")[0] == 0
    code, out, err = run(capsys, *command[:-1], tmp_path / "plan.pdf")
    assert (code, out) == (2, "") and "must end in .html" in err


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1100,900",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def opened(browser, path, width=1100, scheme="light"):
    """Open a file; nothing may be complained of, or asked of a network."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for message in (
            json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
        )
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("chrome")} == {path.as_uri()}


def test_a_browser_shows_the_report(browser, report, found):
    opened(browser, report)
    assert browser.title == "llama-3-8b on network: hypsolve plan"
    body = browser.find_element("css selector", "body").text
    assert "Proved optimal: no split over all tiers has a bottleneck below" in body
    assert "Its certificate was verified in exact fractions." in body
    assert f"{found.forecast.max_sequences} sequences" in body
    for kind in FIGURES:
        figure = browser.find_element("css selector", f"figure#{kind} .wide svg")
        size = figure.size
        assert size["width"] > 400 and size["height"] > 100, kind
        assert figure.accessible_name or figure.get_attribute("aria-label")
    network = browser.find_element("css selector", "figure#network .wide").text
    for node in found.nodes:
        assert node.gpu in network
    rows = browser.find_elements("css selector", "table tr")
    assert [row.text for row in rows if row.text.startswith("rented 1 x A100-80GB")]
    for change in found.upgrades:
        assert change.what in body
    assert describe_upgrade(found.upgrades[0]) in body
    for tile in ("TTFT", "TPOT", "requests/s", "users at once"):
        assert tile in body
    details = browser.find_element("css selector", "details")
    assert not details.find_element("css selector", "pre").is_displayed()
    details.find_element("css selector", "summary").click()
    assert json.loads(details.find_element("css selector", "pre").text)["model"] == "llama-3-8b"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 700, 400])
def test_the_page_fits_the_window(browser, report, width, scheme):
    """No table is cut, text of figures is at least 9 px high, colours follow the scheme."""
    opened(browser, report, width, scheme)
    sizes = browser.execute_script(
        """const root = document.documentElement;
        const cut = [...document.querySelectorAll('table')].filter(
          table => table.getBoundingClientRect().right > root.clientWidth);
        const shown = [...document.querySelectorAll('svg')].filter(
          svg => svg.getBoundingClientRect().width > 0);
        const texts = shown.flatMap(svg => [...svg.querySelectorAll('text')].map(text => {
          const box = svg.getBoundingClientRect(), at = text.getBoundingClientRect();
          const scale = box.width / svg.viewBox.baseVal.width;
          return {text: text.textContent, is_out: at.left < box.left - 2 ||
            at.right > box.right + 2, px: parseFloat(getComputedStyle(text).fontSize) * scale,
            colour: getComputedStyle(text).fill};
        }));
        const tiles = [...document.querySelectorAll('.numbers > div')].map(
          tile => tile.getBoundingClientRect().top);
        return {scroll: root.scrollWidth, inner: root.clientWidth, cut: cut.length, texts,
          n_figures: shown.length, in_row: tiles.filter(top => top === tiles[0]).length,
          page: getComputedStyle(document.body).backgroundColor};"""
    )
    assert sizes["scroll"] <= sizes["inner"] and sizes["cut"] == 0
    assert sizes["n_figures"] == len(FIGURES)
    assert [each["text"] for each in sizes["texts"] if each["is_out"]] == []
    assert [each["text"] for each in sizes["texts"] if each["px"] < 9] == []
    assert sizes["in_row"] >= 2
    is_light = scheme == "light"
    assert sizes["page"] == ("rgb(255, 255, 255)" if is_light else "rgb(20, 24, 29)")
    for each in sizes["texts"]:
        brightness = np.mean([int(n) for n in re.findall(r"\d+", each["colour"])[:3]])
        assert bool(brightness < 128) is is_light, each


def test_heads_of_columns_are_explained(browser, report):
    opened(browser, report)
    heads = browser.find_elements("css selector", "th abbr")
    assert "KV GB" in [head.text for head in heads]
    assert all(len(head.get_attribute("title")) > 10 for head in heads)
    below = browser.find_element("css selector", "dl.heads").text
    assert "KV cache on each node for the sequences of the query" in below


def test_a_browser_shows_why_nothing_fits(browser, tmp_path, too_small):
    path = tmp_path / "x.html"
    hs.write_report(too_small, path)
    opened(browser, path)
    verdict = browser.find_element("css selector", ".verdict").text
    assert verdict.startswith("Infeasible: the tiers together reach block")
    assert browser.find_element("css selector", "figure#upgrades .wide svg").size["width"] > 400


def test_drawing_leaves_interactive_mode_as_importing_pyplot_sets_it():
    """The back end of notebooks does so with its first figure; all figures must be shown."""
    code = (
        "import matplotlib\n"
        "import hypsolve as hs\n"
        "box = hs.Tier(name='box', nodes=(hs.Node(name='box', gpu=hs.gpu('rtx-4090')),))\n"
        "network = hs.Network(name='home', tiers=(box,))\n"
        "short = {'concurrency': 8, 'output_tokens': 8, 'with_upgrades': False}\n"
        "plan = hs.plan('llama-3-8b', network, **short)\n"
        "matplotlib.use('Agg')\n"
        "import importlib.abc, sys\n"
        "class Notebook(importlib.abc.MetaPathFinder):\n"  # as the inline back end does
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'matplotlib.pyplot':\n"
        "            matplotlib.rcParams['interactive'] = True\n"
        "sys.meta_path.insert(0, Notebook())\n"
        "plan.plot('network')\n"
        "assert matplotlib.is_interactive()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
