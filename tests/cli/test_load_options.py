"""Rate, users, targets, runtime and weights are options of every command."""

import json
import re

import pytest

import hypsolve as hs
from hypsolve.cli import main
from hypsolve.cli.examples import NETWORK as EXAMPLE
from hypsolve.planning.query import OVERRIDES
from hypsolve.problem.units import show_seconds
from tests.cli.test_cli import run

LOAD = (
    "--rate", 2, "--ttft-slo", 1, "--tpot-slo", 0.1, "--runtime", "vllm", "--max-num-seqs", 8,
    "--weights", "awq", "--output", 16,
)  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "network.toml"
    path.write_text(EXAMPLE.replace("[[tiers]]", 'currency = "EUR"\n\n[[tiers]]', 1))
    return path


@pytest.fixture(scope="module")
def plan_file(network, tmp_path_factory):
    import hypsolve as hs

    made = hs.plan("llama-3-8b", network, output_tokens=16, with_upgrades=False)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(json.dumps(made.to_dict() | {"model": "llama-3-8b-awq"}))
    return path


@pytest.mark.parametrize("command", ["plan", "compare", "pareto", "simulate", "replan"])
def test_every_command_takes_load_runtime_and_weights(capsys, network, plan_file, command):
    more = ("--before", plan_file, "--max-moves", 40) if command == "replan" else ()
    more = ("--method", "hypsplit_dp") if command == "compare" else more
    arguments = (command, "--model", "llama-3-8b", "--network", network, *LOAD, *more)
    code, out, _ = run(capsys, *arguments)
    assert "runtime vllm" in out and "at most 8 requests at once" in out
    assert code == int(out.startswith("no"))  # `plan` alone answers
    closed = (*arguments[:5], *LOAD[2:], *more, "--users", 3)  # in place of the rate
    code, out, _ = run(capsys, *closed, "--json")
    assert code == int(command == "plan" and not json.loads(out)["slo_answer"]["is_met"])
    document = json.loads(out)
    document = document[0] if isinstance(document, list) else document
    if command == "simulate":
        assert document["ttft_slo_s"] == 1 and document["tpot_s"]["p99"] > 0
    elif command == "pareto":
        assert document["max_requests_per_s"] > 0
    else:
        forecast = document["forecast"]
        assert forecast["load"]["users"] == 3 and "runtime vllm" in forecast["runtime"]
        assert forecast["slo_attainment"] is not None
        for name in ("ttft_s", "tpot_s", "latency_s"):
            times = forecast[name]
            assert times["p50"] <= times["p95"] <= times["p99"]


def test_a_serial_runtime_is_planned_for_its_path(capsys, network):
    """Its throughput is 1 / path, so the bottleneck is no objective of it."""
    arguments = (
        "plan",
        "--model",
        "llama-3-8b",
        "--network",
        network,
        "--runtime",
        "llama.cpp",
    )
    _, out, _ = run(capsys, *arguments, "--json", "--output", 16)
    document = json.loads(out)
    assert document["objective"] == "throughput"
    assert document["runtime"]["batching"] == "serial"
    method = ("--method", "hypsplit_dp")  # which splits for requests one at a time
    _, out, _ = run(capsys, *arguments, *method, "--json", "--output", 16)
    assert json.loads(out)["objective"] == "path"
    code, _, err = run(capsys, *arguments, "--objective", "bottleneck")
    assert code == 2 and "goodput, cost, path or mean_latency under runtime" in err


def test_an_export_is_simulated_as_its_server(capsys, network):
    """Plan with the limits of vLLM what is printed for vLLM."""
    arguments = ("plan", "--model", "llama-3-8b", "--network", network, "--output", 16)
    _, out, _ = run(capsys, *arguments, "--export", "vllm", "--max-num-seqs", 24)
    assert "--max-num-seqs 24" in out and "--max-num-batched-tokens 2048" in out


def test_simulate_takes_the_load_of_a_plan(capsys, network, tmp_path):
    """And not the default rate of the command."""
    command = ("--model", "llama-3-8b", "--network", network)
    _, out, _ = run(capsys, "plan", *command, "--rate", 3, "--output", 16, "--json")
    (tmp_path / "plan.json").write_text(out)
    code, out, _ = run(
        capsys, "simulate", *command, "--plan", tmp_path / "plan.json", "--requests", 30
    )
    assert code == 0 and "30 requests, 3 per second, of 512 + 16 tokens" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--users", 0), "plan: users must be at least 1, got 0"),
        (("--think-time", 1), "plan: think_time_s needs users"),
        (("--ttft-slo", -1), "plan: ttft_slo_s must be positive and finite, got -1.0"),
        (("--max-num-seqs", 0), "max_num_seqs must be at least 1, got 0"),
        (("--memory-fraction", 2), "memory_fraction must be at most 1, got 2.0"),
        (("--users", 2, "--objective", "mean_latency"), "objective mean_latency needs a rate"),
    ],
)
def test_bad_loads_are_refused(capsys, network, options, message):
    code, out, err = run(
        capsys, "plan", "--model", "llama-3-8b", "--network", network, *options
    )
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_users_and_a_rate_exclude_each_other_everywhere(capsys, network):
    """A plan for users would silently forget the rate."""
    both = ("plan", "--model", "llama-3-8b", "--network", network, "--users", 2, "--rate", 3)
    code, out, err = run(capsys, *both)
    assert (code, out, err) == (2, "", "hypsolve: --users and --rate exclude each other\n")
    message = "plan: users and rate_per_s exclude each other, got 2 and 3"
    for function in (hs.plan, hs.PlanQuery.of):
        with pytest.raises(ValueError, match=message):
            function("llama-3-8b", network, users=2, rate_per_s=3)


RUNTIME_VALUES = {
    "max_num_seqs": 7, "max_num_batched_tokens": 300, "chunk_tokens": 96,
    "micro_batch_tokens": 64, "kv_block_tokens": 8, "slot_tokens": 128,
    "batching": "serial",
    "kv_admission": "reserve", "iteration_s": 0.002, "memory_fraction": 0.5, "fixed_gib": 2.5,
}  # fmt: skip
BAD_VALUES = {
    "max_num_seqs": (0, "must be at least 1, got 0"),
    "chunk_tokens": (0, "must be at least 1, got 0"),
    "batching": ("all", "must be one of stage, pipeline, serial, got 'all'"),
    "iteration_s": (-1.0, "must be finite and not negative, got -1.0"),
    "memory_fraction": (2.0, "must be at most 1, got 2.0"),
}


@pytest.mark.parametrize("command", ["plan", "compare", "pareto", "simulate", "replan"])
@pytest.mark.parametrize("name", OVERRIDES)
def test_every_value_of_a_runtime_is_an_option_of_every_command(command, name):
    """Three of ten were, so a plan that was made in Python could not be asked for."""
    flag = "--" + name.replace("_", "-")
    options = {each for option in main.commands[command].params for each in option.opts}
    assert flag in options and name in RUNTIME_VALUES


@pytest.mark.parametrize("name", OVERRIDES)
def test_options_mean_what_files_and_python_mean(capsys, network, tmp_path, name):
    import hypsolve as hs

    values = {name: RUNTIME_VALUES[name]}
    if name == "micro_batch_tokens":  # which no other mode has
        values["batching"] = "serial"
    of_file = tmp_path / "file.toml"
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    table = f'runtime = {{name = "ideal", {keys}}}\n'
    of_file.write_text(table + network.read_text())
    asked = {"objective": "path", "with_upgrades": False, "output_tokens": 2}
    of_python = hs.plan("llama-3-8b", network, **asked, **values).to_dict()["runtime"]
    assert of_python[name] == values[name]
    assert hs.plan("llama-3-8b", of_file, **asked).to_dict()["runtime"] == of_python
    arguments = ("plan", "--model", "llama-3-8b", "--network", network, "--output", 2)
    flags = [
        each for key, value in values.items() for each in ("--" + key.replace("_", "-"), value)
    ]
    code, out, _ = run(capsys, *arguments, "--objective", "path", *flags, "--json")
    assert code == 0 and json.loads(out)["runtime"] == of_python


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_have_the_same_message_everywhere(capsys, network, tmp_path, name):
    import hypsolve as hs

    value, message = BAD_VALUES[name]
    of_file = tmp_path / "file.toml"
    as_toml = f'"{value}"' if isinstance(value, str) else value
    of_file.write_text(
        f'runtime = {{name = "ideal", {name} = {as_toml}}}\n' + network.read_text()
    )
    for arguments in ((network, {name: value}), (of_file, {})):
        with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
            hs.plan("llama-3-8b", arguments[0], **arguments[1])
    flag = "--" + name.replace("_", "-")
    code, _, err = run(
        capsys, "plan", "--model", "llama-3-8b", "--network", network, f"{flag}={value}"
    )
    assert code == 2 and f"{name} {message}" in err


@pytest.mark.parametrize(("ttft_slo_s", "share"), [(100, 1.0), (1e-6, 0.0)])
def test_pareto_marks_what_is_within_the_targets(capsys, network, ttft_slo_s, share):
    """It took targets and said nothing about them."""
    command = ("pareto", "--model", "llama-3.2-1b", "--network", network,
               "--output", 8, "--concurrency", 1, "--ttft-slo", ttft_slo_s)  # fmt: skip
    code, out, _ = run(capsys, *command)
    assert code == 0 and f"within TTFT <= {show_seconds(ttft_slo_s)}; * from 95%" in out
    head, *rows, errors = out.splitlines()[2:]
    assert "within targets" in head and rows and errors.startswith("expected error")
    assert all(f"{share:.1%}{' *' * (share == 1)}  " in row for row in rows)
    code, out, _ = run(capsys, *command, "--json")
    assert code == 0 and json.loads(out)
    assert all(point["slo_attainment"] == share for point in json.loads(out))
    code, out, _ = run(capsys, *command[:-2], "--json")
    assert all(point["slo_attainment"] is None for point in json.loads(out))
    assert "within targets" not in run(capsys, *command[:-2])[1]


@pytest.fixture(scope="module")
def plan_of_users(network, tmp_path_factory):
    """A plan for 30 users who think."""
    import hypsolve as hs

    made = hs.plan(
        "llama-3.2-1b",
        network,
        output_tokens=8,
        users=30,
        think_time_s=1.0,
        with_upgrades=False,
    )
    path = tmp_path_factory.mktemp("users") / "plan.json"
    path.write_text(json.dumps(made.to_dict()))
    return path


def simulated(capsys, network, plan, *more):
    command = ("simulate", "--model", "llama-3.2-1b", "--network", network, "--plan", plan)
    return run(capsys, *command, *more)


def test_a_rate_replaces_the_users_of_a_plan(capsys, network, plan_of_users):
    """`simulate --plan` ignored the rate, and simulated the users of the plan."""
    code, out, err = simulated(capsys, network, plan_of_users, "--rate", 2)
    assert code == 0 and not err
    assert "300 requests, 2 per second, of" in out and "user" not in out
    code, out, _ = simulated(capsys, network, plan_of_users, "--users", 4)
    assert code == 0 and "4 users, of" in out  # the think time of the plan is gone, too
    code, out, err = simulated(capsys, network, plan_of_users, "--rate", 2, "--think-time", 1)
    assert (code, out) == (2, "") and "think_time_s needs users" in err


def test_users_send_as_many_requests_as_in_a_plan(capsys, network, plan_of_users):
    """300 requests of 400 users are less than one each, and say nothing of a steady load."""
    code, out, err = simulated(capsys, network, plan_of_users)
    assert code == 0 and not err and "600 requests, 30 users who think for 1 s" in out
    code, out, err = simulated(capsys, network, plan_of_users, "--requests", 60)
    assert code == 0 and "60 requests, 30 users" in out
    assert err == (
        "note: 60 requests are under 20 for each of 30 users: their start counts for much\n"
    )


def test_compare_has_targets_and_the_split_that_serves_most(capsys, tmp_path):
    """It compared splits for requests one at a time alone, and ignored the targets."""
    network = tmp_path / "far.toml"
    network.write_text(
        '[[tiers]]\nname = "edge"\nnodes = [{gpu = "l4"}]\nmin_blocks = 0\n'
        "link = {gbps = 1, latency_ms = 40}\n"
        '[[tiers]]\nname = "cloud"\nnodes = [{gpu = "h100"}]\nmin_blocks = 0\n'
    )
    command = ("compare", "--model", "llama-3.2-1b", "--network", network, "--output", 8,
               "--slo-ttft", 1, "--slo-tpot", 0.02, "--rate", 2)  # fmt: skip
    code, out, _ = run(capsys, *command)
    head, first, *rows = out.splitlines()
    names = ["method", "requests/s", "within targets", "TTFT", "TPOT", "status"]
    assert code == 0 and re.split(r"\s{2,}", head)[:6] == names
    assert "gap" not in head and "bottleneck" not in head
    assert first.startswith("throughput_exact") and "none | 0-15" in first
    assert "  100.0%  " in first and any(" 0.0%  " in row for row in rows)
    assert "within TTFT <= 1 s and TPOT <= 20 ms" in out
    code, out, _ = run(capsys, *command, "--objective", "bottleneck")
    assert code == 0 and {"gap", "bottleneck"} <= set(out.splitlines()[0].split())
