"""Machines of several GPUs on the command line: every command takes the degree."""

import json

import pytest

from tests.cli.test_cli import run

MACHINE = """
runtime = "vllm"

[[tiers]]
name = "rack"
nodes = [{gpu = "h100", gpus = 4, interconnect = "nvlink4", price_per_hour = 8.0}]
"""
MODEL = ("--model", "llama-3-8b", "--output", 16)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("machine") / "network.toml"
    path.write_text(MACHINE)
    return path


@pytest.mark.parametrize("command", ["plan", "compare", "pareto", "simulate"])
def test_every_command_takes_the_degree(capsys, network, command):
    """Degree 4 is one node; nothing is left of the open machine."""
    more = ("--method", "hypsplit_dp") if command == "compare" else ()
    arguments = (command, *MODEL, "--network", network, "--tensor-parallel", 4, *more)
    code, out, err = run(capsys, *arguments, "--json")
    used = "" if command == "plan" else "pipelines of vllm on rack-h100-0\n"
    assert (code, err) == (0, used)
    document = json.loads(out)
    if command == "plan":
        assert document["tensor_parallel"] == 4
        assert [node["n_gpus"] for node in document["nodes"]] == [4]


def test_the_degree_is_chosen_and_exported(capsys, network):
    """Without the option, all degrees are tried; the flag is that of the chosen one."""
    code, out, _ = run(capsys, "plan", *MODEL, "--network", network, "--json")
    assert code == 0
    document = json.loads(out)
    assert sorted(each["degrees"][0] for each in document["degrees"]) == [1, 2, 4]
    code, out, _ = run(
        capsys, "plan", *MODEL, "--network", network, "--tensor-parallel", 2, "--export", "vllm"
    )  # fmt: skip
    assert code == 0
    assert "--tensor-parallel-size 2 " in out  # of copies, or of stages in a row


def test_a_plan_file_keeps_its_degree(capsys, network, tmp_path):
    """simulate and replan read the degree of an earlier plan."""
    arguments = (*MODEL, "--network", network)
    _, out, _ = run(capsys, "plan", *arguments, "--tensor-parallel", 2, "--json")
    path = tmp_path / "plan.json"
    path.write_text(out)
    code, out, err = run(capsys, "simulate", *arguments, "--plan", path, "--requests", 20)
    assert (code, err) == (0, "")
    code, out, err = run(
        capsys, "replan", *arguments, "--before", path, "--max-moves", 0, "--json"
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["tensor_parallel"] == 2


def test_wrong_degrees_are_refused_in_one_line(capsys, network):
    """Exit code 2, and the rule."""
    code, out, err = run(
        capsys, "plan", *MODEL, "--network", network, "--tensor-parallel", 16
    )  # fmt: skip
    assert (code, out) == (2, "")
    rule = "plan: tensor_parallel must be a degree that some machine can have, 1, 2, 4, got 16"
    assert err == f"hypsolve: {rule}\n"
