"""`hypsolve.plan` answers for the nodes that a server can use, as the command does."""

import json

import pytest

import hypsolve as hs
from hypsolve.planning.planner import plan_query
from tests.cli.test_cli import run
from tests.cli.test_nodes_of_commands import PAIR

TOO_SMALL = """
[[tiers]]
name = "slow"
nodes = [{gpu = "t4", memory_gib = 1.5}]
link = {gbps = 1.0, latency_ms = 0.5}
[[tiers]]
name = "fast"
nodes = [{gpu = "rtx-4090"}]
"""
ASKED = {"output_tokens": 8, "concurrency": 2, "time_limit_s": 20}
OPTIONS = ("--output", 8, "--concurrency", 2, "--time-limit", 20)


def written(tmp_path, text):
    path = tmp_path / "net.toml"
    path.write_text(text)
    return path


def used(plan):
    return {node.node for node in plan.nodes if node.is_used and len(node.blocks)}


@pytest.mark.parametrize(
    ("server", "objective"), [("vllm", None), ("vllm", "path"), ("llama.cpp", "path")]
)
def test_python_plans_what_the_command_plans(capsys, tmp_path, server, objective):
    """Python printed and proved a plan on nodes that the server cannot use together."""
    path = written(tmp_path, PAIR)
    plan = hs.plan("phi-3-mini", path, runtime=server, objective=objective, **ASKED)
    more = () if objective is None else ("--objective", objective)
    command = ("plan", "--model", "phi-3-mini", "--network", path, "--runtime", server)
    code, out, _ = run(capsys, *command, *OPTIONS, *more, "--json")
    document = json.loads(out)
    assert code == 0 and plan.result.partition.cuts == tuple(document["result"]["cuts"])
    assert [node.node for node in plan.nodes] == [each["node"] for each in document["nodes"]]
    assert list(plan.unused_nodes) == document["unused_nodes"]
    assert {each.what for each in plan.upgrades} == {
        each["what"] for each in document["upgrades"]
    }
    hs.export(plan, server)  # it can be started as planned
    assert hs.nearest_plan(plan, server) is plan


def test_python_leaves_out_the_slow_node_of_a_pair(tmp_path):
    """One node of each tier is in the one pipeline: the faster one, and the other is named."""
    plan = hs.plan(
        "phi-3-mini", written(tmp_path, PAIR), runtime="vllm", objective="path",
        with_upgrades=False, **ASKED,
    )  # fmt: skip
    assert used(plan) == {"fast", "big"} and plan.unused_nodes == ("slow",)
    assert "left out: slow (in no pipeline of this plan)" in str(plan)


def test_a_model_that_fits_in_no_pipeline_has_no_plan(capsys, tmp_path):
    """The command printed the plan that the server cannot express, as if it were its own.

    Only the embedding fits on the first tier, where vLLM needs a layer.
    """
    path = written(tmp_path, TOO_SMALL)
    asked = {"concurrency": 1, "runtime": "vllm"}
    query = hs.PlanQuery.of("phi-3-mini", path, **asked)
    assert plan_query(query, with_upgrades=False).stages[0].blocks == range(1)
    plan = hs.plan("phi-3-mini", path, with_upgrades=False, **asked)
    assert not plan.fits and plan.reasons
    command = ("plan", "--model", "phi-3-mini", "--network", path, "--runtime", "vllm")
    code, out, err = run(capsys, *command, "--concurrency", 1, "--json")
    assert code == 1 and json.loads(out)["result"]["cuts"] is None
    assert "nor does a plan fit that it can express: " in err
