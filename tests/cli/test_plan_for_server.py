"""`plan --runtime` prints the plan that is exported; exports say what they do not serve."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.cli import commands
from hypsolve.planning.plan import Plan
from hypsolve.planning.serving_frontier import undominated
from tests.cli.test_cli import run

BOX = """
[[tiers]]
name = "box"
host = "box.lan"
inner = {gbps = 400, latency_ms = 0.01}
nodes = [{gpu = "rtx-3090", count = 2}]
"""
SITES = """
[[tiers]]
name = "edge"
nodes = [{gpu = "l4"}]
link = {gbps = 1, latency_ms = 40}
[[tiers]]
name = "cloud"
nodes = [{gpu = "l4"}]
"""
SHORT = ("--output", 16)  # tokens
LARGE = ("plan", "--model", "llama-3-70b", "--weights", "q4_k_m", "--concurrency", 3, *SHORT)


def written(tmp_path, text):
    path = tmp_path / "net.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("limit", ["", "min_blocks = 0"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_plan_for_a_server_is_the_one_that_is_exported(capsys, tmp_path, asked, limit):
    """Two cards in a row were 'infeasible' in `plan`, and two commands in `--export`."""
    text = BOX.replace('name = "box"', f'name = "box"\n{limit}')
    file = written(tmp_path, text if asked else 'runtime = "llama.cpp"\n' + text)
    runtime = ("--runtime", "llama.cpp") if asked else ()
    code, out, err = run(capsys, *LARGE, "--network", file, *runtime, "--json")
    assert code == 0 and "planned for it instead, on box-rtx-3090-0, box-rtx-3090-1" in err
    held = [node["blocks"] for node in json.loads(out)["nodes"]]
    assert len(held) == 2 and held[0][1] == held[1][0]
    code, out, _ = run(capsys, *LARGE, "--network", file, "--export", "llama.cpp")
    n_layers = held[1][0] - 1
    assert code == 0 and f"-ts {n_layers},{81 - n_layers}" in out


def test_a_plan_that_a_server_can_express_keeps_its_upgrades(capsys, tmp_path):
    file = written(tmp_path, BOX)
    command = ("plan", "--model", "llama-3-8b", "--network", file, "--runtime", "vllm", *SHORT)
    code, out, err = run(capsys, *command)
    assert code == 0 and err == "" and "what would help, simulated" in out
    assert "nothing that was tried" not in out


def test_an_export_says_what_it_does_not_serve(capsys, tmp_path):
    """A pipeline over the WAN was exported for a rate and targets that it misses."""
    command = (
        "plan", "--model", "phi-3-mini", "--network", written(tmp_path, SITES), "--rate", 60,
        "--output", 64, "--tpot-slo", 0.02, "--export", "vllm", "--objective", "bottleneck",
    )  # fmt: skip
    code, _, err = run(capsys, *command)
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert code == 1 and len(warnings) == 2  # it exports, and says no
    assert "requests/s, not with 60;" in warnings[0] and "--objective path" in warnings[0]
    assert "0.0% of the requests are within TPOT <= 20 ms" in warnings[1]


def test_pareto_without_a_simulated_split(capsys, tmp_path, monkeypatch):
    """A short time limit ended in a traceback."""
    monkeypatch.setattr(commands, "serving_points", lambda *_, **__: ())
    command = ("pareto", "--model", "phi-3-mini", "--network", written(tmp_path, SITES))
    code, out, err = run(capsys, *command, "--png", tmp_path / "a.png")
    assert (code, out) == (1, "") and "no split could be simulated within 60 s" in err
    assert not (tmp_path / "a.png").exists()
    code, out, _ = run(capsys, *command, "--json")
    assert code == 1 and json.loads(out) == []


@pytest.mark.parametrize("n_known", [0, 1])
def test_the_pareto_figure_without_simulated_rates(tmp_path, monkeypatch, n_known):
    """The report ended in an error about the limits of an axis, after all the work."""
    sites = written(tmp_path, SITES)
    plan = hs.plan("phi-3-mini", sites, with_upgrades=False, output_tokens=16)
    unknown = replace(plan.forecast, max_requests_per_s=np.nan)
    points = [replace(plan.serving_points()[0], max_requests_per_s=np.nan)]
    plan = replace(plan, forecast=plan.forecast if n_known else unknown)
    monkeypatch.setattr(Plan, "serving_points", lambda self: points)
    monkeypatch.setattr(Plan, "serving_frontier", lambda self: undominated(points))
    axes = plan.plot("pareto")
    assert np.isfinite(axes.get_xlim()).all()
    says = any("no split could be simulated" in text.get_text() for text in axes.texts)
    assert says == (n_known == 0)


def test_upgrades_of_a_server_need_formats_that_it_loads(capsys, tmp_path):
    """The command proposed int8 for llama.cpp, and refused it: no plan at all."""
    file = written(tmp_path, '[[tiers]]\nname = "box"\nnodes = [{gpu = "l4"}]\n')
    code, out, err = run(
        capsys, "plan", "--model", "phi-3-mini", "--network", file, "--runtime", "llama.cpp"
    )
    assert code == 0 and "weights in q8_0" in out, err


def test_a_rate_for_a_server_is_compared_in_requests(capsys, tmp_path):
    """Two cards that vLLM cannot use together: how much less than the best plan it serves."""
    command = ("plan", "--model", "phi-3-mini", "--network", written(tmp_path, SITES))
    code, out, err = run(
        capsys, *command, "--output", 32, "--objective", "throughput", "--export", "vllm"
    )
    assert code == 0 and "vllm serve" in out
    if "planned for it instead" in err:
        assert "throughput" in err and "no split and no schedule serves more" in err
