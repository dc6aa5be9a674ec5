"""All commands answer for the nodes that `plan` uses under a server of whole pipelines."""

import json

import pytest

from hypsolve.planning.serving_frontier import ServingPoint
from hypsolve.problem.solution import Partition
from tests.cli.test_cli import run

PAIR = """
[[tiers]]
name = "edge"
nodes = [{gpu = "t4", names = ["slow"]}, {gpu = "rtx-4090", names = ["fast"]}]
link = {gbps = 10, latency_ms = 1}
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb", names = ["big"]}]
"""
ROW = """
[[tiers]]
name = "box"
nodes = [{gpu = "rtx-3090", count = 2}]
inner = {gbps = 200, latency_ms = 0.02}
link = {gbps = 10, latency_ms = 0.1}
min_blocks = 0
[[tiers]]
name = "desk"
nodes = [{gpu = "rtx-4070"}]
min_blocks = 0
"""
ASKED = ("--model", "phi-3-mini", "--output", 8, "--concurrency", 2, "--time-limit", 20)
SERVERS = [("vllm", "bottleneck"), ("sglang", "bottleneck"), ("llama.cpp", "path")]


@pytest.fixture
def pair(tmp_path):
    path = tmp_path / "pair.toml"
    path.write_text(PAIR)
    return path


def planned(capsys, tmp_path, network, server, objective):
    command = ("plan", *ASKED, "--network", network, "--runtime", server)
    code, out, _ = run(capsys, *command, "--objective", objective, "--json")
    path = tmp_path / "plan.json"
    path.write_text(out)
    assert code == 0
    return path, json.loads(out)


def used(document):
    return {node["node"] for node in document["nodes"] if node["blocks"][0] < node["blocks"][1]}


@pytest.mark.parametrize(("server", "objective"), SERVERS)
def test_replan_proves_what_plan_proves(capsys, tmp_path, pair, server, objective):
    """It paired the first node of each tier, and called a slower split proved."""
    path, document = planned(capsys, tmp_path, pair, server, objective)
    assert used(document) == {"fast", "big"}
    command = ("replan", *ASKED[:2], "--network", pair, "--before", path, "--max-moves", 40)
    code, out, _ = run(capsys, *command, "--json")
    again = json.loads(out)
    assert code == 0 and used(again) == used(document) and again["left_out"] == ["slow"]
    least_s = document["result"]["objective_s"]
    assert again["objective_s"] == pytest.approx(least_s, rel=1e-9)
    rate, mine = (each["forecast"]["max_requests_per_s"] for each in (document, again))
    assert mine == pytest.approx(rate, rel=0.05)
    _, out, _ = run(capsys, *command)
    assert f"pipelines of {server} on fast, big; left out: slow" in out
    assert "no split of these nodes has a" in out


def test_a_plan_for_a_server_proves_something_of_its_nodes(capsys, pair):
    """The proof named no nodes, though it was about two of three."""
    command = ("plan", *ASKED, "--network", pair, "--runtime", "vllm", "--objective", "path")
    code, out, _ = run(capsys, *command)
    assert code == 0 and "left out: slow (in no pipeline of this plan)" in out
    assert "no split of these nodes over all tiers has a path below" in out


def test_compare_is_on_the_nodes_of_the_plan(capsys, tmp_path, pair):
    """Methods were compared on pairs in the order of the file."""
    _, document = planned(capsys, tmp_path, pair, "vllm", "bottleneck")
    command = ("compare", *ASKED, "--network", pair, "--runtime", "vllm")
    command += ("--objective", "bottleneck", "--method", "hypsplit_dp")
    code, out, err = run(capsys, *command, "--json")
    (result,) = json.loads(out)
    assert code == 0 and "pipelines of vllm on fast, big; left out: slow" in err
    assert result["objective_s"] == pytest.approx(document["result"]["objective_s"], rel=1e-9)
    _, out, err = run(capsys, *command)
    assert out.startswith("pipelines of vllm on fast, big; left out: slow\n") and not err


@pytest.mark.parametrize("by_plan", [True, False])
def test_simulate_serves_on_the_nodes_of_the_plan(capsys, tmp_path, pair, by_plan):
    """It simulated other nodes than the plan that it was given."""
    path, document = planned(capsys, tmp_path, pair, "vllm", "bottleneck")
    command = ("simulate", *ASKED[:4], "--network", pair, "--requests", 20, "--json")
    command += ("--plan", path) if by_plan else (
        *ASKED[4:], "--runtime", "vllm", "--objective", "bottleneck",
    )  # fmt: skip
    code, out, err = run(capsys, *command)
    assert code == 0 and "pipelines of vllm on fast, big; left out: slow" in err
    assert set(json.loads(out)["node_names"]) == used(document)


def test_a_plan_with_nodes_in_a_row_is_simulated(capsys, tmp_path):
    """Its tiers have names of their own, which no network file has: it was refused."""
    network = tmp_path / "row.toml"
    network.write_text(ROW)
    large = ("--model", "llama-3-70b", "--weights", "q4_k_m", "--concurrency", 1)
    command = ("plan", *large, "--network", network, "--runtime", "llama.cpp", "--json")
    code, out, _ = run(capsys, *command, "--output", 8, "--time-limit", 20)
    path, document = tmp_path / "plan.json", json.loads(out)
    path.write_text(out)
    assert code == 0 and {"box-rtx-3090-0", "box-rtx-3090-1"} <= used(document)
    command = ("simulate", *large[:4], "--network", network, "--plan", path, "--requests", 5)
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert "pipelines of llama.cpp on box-rtx-3090-0, box-rtx-3090-1" in out
    network.write_text(ROW.replace("inner", "# inner"))
    code, _, err = run(capsys, *command)
    assert code == 2 and "must have a link `inner` and no limits, for the plan has 2" in err
    network.write_text(ROW.replace("count = 2", "count = 1"))
    code, _, err = run(capsys, *command)
    assert code == 2 and "must have the nodes of the plan, lacks box-rtx-3090-1" in err


def test_pareto_is_on_the_nodes_of_the_plan(capsys, pair):
    """Its rates were those of a slower pair of nodes."""
    command = ("pareto", *ASKED, "--network", pair, "--runtime", "vllm")
    code, out, _ = run(capsys, *command)
    assert code == 0 and out.startswith("pipelines of vllm on fast, big; left out: slow\n")
    code, out, err = run(capsys, *command[:-2], "--runtime", "ideal")
    assert code == 0 and not err and "pipelines" not in out


SITES = """
[[tiers]]
name = "edge"
nodes = [{gpu = "l4", names = ["a", "b"]}]
link = {gbps = 1, latency_ms = 1500}
min_blocks = 0
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb", names = ["big"]}]
min_blocks = 0
"""


def test_pareto_is_over_all_nodes_that_the_server_can_use(capsys, tmp_path):
    """Only splits on the nodes of one plan were listed, which are one end of the trade."""
    network = tmp_path / "sites.toml"
    network.write_text(SITES)
    command = ("pareto", *ASKED, "--network", network, "--runtime", "vllm", "--json")
    code, out, _ = run(capsys, *command)
    rows = json.loads(out)
    assert code == 0 and {"a", "b"} in [set(row["nodes"]) for row in rows]
    assert rows[0]["nodes"] == ["big"]  # the largest rate, 3 s away
    assert rows[0]["latency_mean_s"] > 3 > rows[-1]["latency_mean_s"]


def point(rate, latency_s, *, is_lower_bound=False, cut=0):
    return ServingPoint(
        partition=Partition((0, cut, 34)), max_requests_per_s=rate, latency_mean_s=latency_s,
        bottleneck_s=1.0, path_s=2.0, max_rate_is_lower_bound=is_lower_bound,
    )  # fmt: skip


def test_pareto_says_what_was_cut_short(capsys, pair, tmp_path, monkeypatch):
    """Rates of searches that the time limit ended were printed as the largest ones."""
    nan = float("nan")
    tried = (
        point(5.0, 1.0, is_lower_bound=True, cut=1), point(3.0, 0.5, cut=2),
        point(nan, nan, cut=3), point(nan, nan, cut=4),
    )  # fmt: skip
    monkeypatch.setattr("hypsolve.cli.commands.serving_points", lambda *_: tried)
    command = ("pareto", *ASKED, "--network", pair, "--png", tmp_path / "a.svg")
    code, out, _ = run(capsys, *command)
    assert code == 0 and "at least 5 requests/s" in out and "at least 3" not in out
    assert "2 of 4 splits were simulated" in out
    assert "they may be better: layers 0-1 | 2-31; 0-2 | 3-31\n" in out
    assert "at least this rate" in (tmp_path / "a.svg").read_text()
    code, out, err = run(capsys, *command, "--json")
    flags = [each["max_rate_is_lower_bound"] for each in json.loads(out)]
    assert code == 0 and flags == [True, False] and "2 of 4 splits" in err


def test_replan_continues_the_nodes_of_the_plan_until_the_network_changes(capsys, tmp_path):
    """Keep the nodes of the plan while the network has the same; else choose them anew."""
    network, before = tmp_path / "pair.toml", tmp_path / "plan.json"
    network.write_text(PAIR)
    only = PAIR.replace(
        '{gpu = "rtx-4090", names = ["fast"]}', '{gpu = "l4", names = ["fast"]}'
    )
    other = tmp_path / "other.toml"
    other.write_text(only.replace('"t4"', '"a10"'))  # here the other node is the faster one
    command = ("plan", *ASKED, "--network", network, "--runtime", "vllm")
    before.write_text(run(capsys, *command, "--objective", "bottleneck", "--json")[1])
    again = ("replan", *ASKED[:2], "--before", before, "--max-moves", 40, "--network")
    _, out, _ = run(capsys, *again, other)
    assert "pipelines of vllm on fast, big; left out: slow" in out
    other.write_text(other.read_text().replace('"slow"', '"new"'))
    _, out, _ = run(capsys, *again, other)
    assert "pipelines of vllm on new, big; left out: fast" in out


def test_compare_uses_the_nodes_of_the_default_plan(capsys, tmp_path, pair):
    """Its own objective is of requests one at a time, but the nodes are those of `plan`."""
    command = ("plan", *ASKED, "--network", pair, "--runtime", "vllm", "--json")
    document = json.loads(run(capsys, *command)[1])
    command = ("compare", *ASKED, "--network", pair, "--runtime", "vllm")
    _, out, _ = run(capsys, *command, "--method", "hypsplit_dp")
    words = out.splitlines()[0].removeprefix("pipelines of vllm on ").partition(";")[0]
    assert set(words.split(", ")) == used(document)
