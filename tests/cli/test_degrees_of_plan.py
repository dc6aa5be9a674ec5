"""What commands say of machines of several GPUs, and of plans that serve nothing."""

import json

import pytest

import hypsolve as hs
from tests.cli.test_cli import run

UNEQUAL = """
runtime = "vllm"

[[tiers]]
name = "edge"
nodes = [{gpu = "l4", count = 2}]
link = {gbps = 10, latency_ms = 1}

[[tiers]]
name = "cloud"
nodes = [{gpu = "l4"}]
"""
MACHINE = """
runtime = "vllm"

[[tiers]]
name = "rack"
nodes = [{gpu = "h100", gpus = 4, interconnect = "nvlink4"}]
"""
LINK = "link = {gbps = 10, latency_ms = 1}"
HOSTS = 'runtime = "vllm"\n' + "".join(
    f'[[tiers]]\nname = "{name}"\nhost = "{host}"\nnodes = [{{gpu = "l4"}}]\n{link}\n'
    for name, host, link in zip("abcd", "xyyz", [LINK, LINK, LINK, ""], strict=True)
)


def written(tmp_path, text):
    path = tmp_path / "network.toml"
    path.write_text(text)
    return path


def test_a_plan_that_serves_nothing_can_be_compared(capsys, tmp_path):
    """Targets that no split meets made the gain over the best plan a division by zero."""
    command = (
        "plan", "--model", "phi-3-mini", "--network", written(tmp_path, UNEQUAL),
        "--slo-tpot", 0.0001, "--output", 16, "--time-limit", 20,
    )  # fmt: skip
    code, out, err = run(capsys, *command)
    assert code == 1
    assert "vllm cannot express the best plan: " in err
    assert "(goodput 0 requests/s, and that plan's is 0 requests/s)" in err
    assert out.startswith("no: 1 requests/s are not served within TPOT <= 100 us")  # a bound


def test_no_plan_of_a_server_is_no_bad_input(capsys, tmp_path):
    """The help says that exit code 1 is no plan, and 2 is bad input; this was 2."""
    network = written(tmp_path, HOSTS)
    command = ("plan", "--model", "phi-3-mini", "--network", network, "--output", 16)
    code, out, err = run(capsys, *command, "--time-limit", 20)
    assert (code, out) == (1, "")
    assert "vllm can express no plan: Ray puts" in err.splitlines()[-1]
    with pytest.raises(ValueError, match="vllm can express no plan: Ray puts"):
        hs.plan("phi-3-mini", network, output_tokens=16, with_upgrades=False)


def test_replan_says_that_a_degree_is_lost(capsys, tmp_path):
    """The error named an option that was not given."""
    model = ("--model", "phi-3-mini", "--output", 16)
    network = written(tmp_path, MACHINE)
    _, out, _ = run(
        capsys, "plan", *model, "--network", network, "--tensor-parallel", 4, "--json"
    )  # fmt: skip
    before = tmp_path / "plan.json"
    before.write_text(out)
    written(tmp_path, MACHINE.replace("gpus = 4", "gpus = 2"))
    again = ("replan", *model, "--network", network, "--before", before, "--max-moves", 0)
    code, out, err = run(capsys, *again, "--json")
    document = json.loads(out)
    said = (
        "the earlier plan had tensor parallelism of degree 4, which no machine can have any"
        f" more: degree {document['tensor_parallel']} was chosen anew\n"
    )
    assert (code, document["lost_degree"], err) == (0, 4, said)
    code, out, _ = run(capsys, *again)
    assert code == 0 and out.startswith(said)
    assert "no split of these nodes with tensor parallelism of degree" in out
