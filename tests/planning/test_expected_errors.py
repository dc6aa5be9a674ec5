"""Every plan states the error of its forecast, or that it is not known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

import hypsolve as hs
from hypsolve.calibration.fitted_profile import fitted_profile, server_profile
from hypsolve.calibration.servers import fitted_servers
from hypsolve.formats.gpu_profile import (
    MeasuredProfile,
    read_gpu_profile,
    write_gpu_profile,
)
from hypsolve.planning.expected_errors import error_lines
from tests.cli.test_measure import run

RESULTS = Path(__file__).parents[2] / "results"


def plan(*gpus, runtime, **asked):
    """Plan one tier for each GPU."""
    link = hs.Link(bytes_per_s=1e10, latency_s=1e-4)
    tiers = tuple(
        hs.Tier(
            name=f"t{k}",
            nodes=(hs.Node(name=f"n{k}", gpu=hs.gpu(gpu)),),
            link=link if k < len(gpus) - 1 else None,
        )
        for k, gpu in enumerate(gpus)
    )
    network = hs.Network(name="lab", tiers=tiers)
    return hs.plan(
        "llama-3-8b", network, runtime=runtime, output_tokens=16, with_upgrades=False, **asked
    )


def test_a_measured_server_has_a_figure_and_others_say_so():
    """The figure is that of the catalogue, of the GPU and the runtime of the plan."""
    measured, no_runtime = plan("h100", runtime="vllm"), plan("h100", runtime="ideal")
    (line,) = error_lines(measured)
    assert line in str(measured)
    assert line.startswith("expected error: time per output token ")
    assert line.endswith("on H100-SXM under runtime vllm")
    assert list(error_lines(no_runtime)) == [
        "expected error: unknown, for no server of H100-SXM under runtime ideal was measured"
    ]


def test_several_stages_are_not_validated():
    """Measured servers hold all blocks, each on GPUs of its own."""
    lines = list(error_lines(plan("h100", "l4", runtime="vllm")))
    assert lines[0].endswith("as one stage; that of several stages is unknown")
    assert lines[1] == (
        "expected error: unknown, for no server of L4 under runtime vllm was measured"
    )


def test_fitted_costs_state_their_own_error():
    """The seconds of a plan are those of a simulation by the rates of the fit."""
    fitted, plain = (
        plan("h100", runtime="vllm", costs=name) for name in ("fitted", "roofline")
    )
    server = fitted_servers()["h100", "vllm"]
    (line,), (other,) = error_lines(fitted), error_lines(plain)
    assert f"time per output token {server.simulated_groups['tpot']:.0%}" in line
    assert "of a fit to other models, the mean of 130 measured runs" in line
    assert f"time per output token {server.three_numbers['tpot']:.0%}" in other
    gpu = fitted_profile(hs.gpu("h100"), server.costs, "h100", "fp16")
    deployment = plain.query.deployment()
    node = replace(deployment.network.tiers[0].nodes[0], gpu=gpu)
    network = hs.Network(name="lab", tiers=(hs.Tier(name="t0", nodes=(node,)),))
    alone = hs.simulate(replace(deployment, network=network), hs.Partition((0, 34)))
    decode_s = alone.end_s[0] - alone.first_token_s[0]
    # with one request per second there is hardly a second request in a batch
    assert fitted.forecast.tpot_s.mean == pytest.approx(decode_s / 15, rel=0.02)
    assert fitted.to_dict()["costs"] == "fitted"


def test_models_that_were_measured_have_the_error_of_other_lengths():
    box = hs.Tier(name="t0", nodes=(hs.Node(name="n0", gpu=hs.gpu("h100")),))
    made = hs.plan(
        "qwen3-32b", hs.Network(name="lab", tiers=(box,)), runtime="vllm", weights="fp8",
        output_tokens=16, with_upgrades=False, costs="fitted",
    )  # fmt: skip
    (line,) = error_lines(made)
    server = fitted_servers()["h100", "vllm"].by_model["qwen3-32b"]
    assert f"time per output token {server.simulated_lengths['tpot']:.0%}" in line
    assert "of a fit to other lengths, the mean of 88 measured runs of qwen3-32b" in line


def rack(gpu, **node):
    box = hs.Node(name="n0", gpu=gpu if isinstance(gpu, hs.GpuProfile) else hs.gpu(gpu), **node)
    return hs.Network(name="lab", tiers=(hs.Tier(name="t0", nodes=(box,)),))


@pytest.mark.parametrize(
    ("costs", "predictor"), [("roofline", "today"), ("fitted", "simulated_new_lengths")]
)
def test_the_error_is_the_mean_of_the_runs_that_the_sentence_names(costs, predictor):
    """It was that of 12 runs of another model, too, which are off by 75 %."""
    links = hs.interconnect("nvlink4", "h200")
    found = hs.plan(
        "llama-3-70b", rack("h200", gpus=2, interconnect=links), runtime="vllm", costs=costs,
        output_tokens=16, with_upgrades=False,
    )  # fmt: skip
    with (RESULTS / "validation_errors.csv").open() as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if (row["gpu"], row["predictor"]) == ("h200_sxm", predictor)
            and row["model"].endswith("Llama-3.1-70B")
        )
    (line,) = error_lines(found)
    tpot, rate, ttft = (
        f"{float(row[name]):.0%}" for name in ("tpot_s", "tokens_per_s", "ttft_s")
    )
    assert f"time per output token {tpot}, tokens/s {rate}, TTFT {ttft}" in line
    runs = f"the mean of {row['n']} measured runs of llama-3.1-70b"
    assert f"{runs} with at most 64 users" in line
    (plain,) = found.to_dict()["expected_errors"]
    assert plain["words"] == line and plain["n_runs"] == int(row["n"])
    assert plain["tpot"] == pytest.approx(float(row["tpot_s"]), rel=0.01)


def test_more_users_than_were_measured_are_an_extrapolation():
    load = {"output_tokens": 16, "prompt_tokens": 64, "with_upgrades": False}
    few, many = (
        hs.plan("qwen3-32b", rack("h100"), runtime="vllm", weights="fp8", users=users, **load)
        for users in (8, 200)
    )
    (few,), (many,) = error_lines(few), error_lines(many)
    assert "with at most 144 users" in few and "extrapolate" not in few
    assert many.endswith("more of them extrapolate: this load has 200 on a GPU or group")


def calibrated(folder, errors, **measured):
    """Write a profile file as `hypsolve calibrate` does, and read it."""
    path = folder / "mine.toml"
    gpu = replace(hs.gpu("l4"), name="mine", visible_bytes=None)
    write_gpu_profile(path, MeasuredProfile(gpu=gpu, errors=errors, measured=measured))
    return read_gpu_profile(path)


@pytest.mark.parametrize(
    ("model", "runtime", "errors", "words"),
    [
        ("llama-3-8b", "vllm", {"tpot": 0.0015, "ttft": 0.019},
         "expected error: time per output token 0.1%, TTFT 2%, held out of 8 runs of t8.csv,"
         " llama-3-8b under runtime vllm, on mine; the error of other lengths and numbers of"
         " users than in these runs is unknown"),
        ("phi-3-mini", "vllm", {"tpot": 0.2},
         "expected error: time per output token 20%, held out of 8 runs of t8.csv, llama-3-8b"
         " under runtime vllm, on mine; the error of phi-3-mini, and of other lengths and"
         " numbers of users than in these runs is unknown"),
        ("llama-3-8b", "sglang", {"tpot": 0.2},
         "expected error: unknown under runtime sglang, for mine was fitted to 8 runs of"
         " t8.csv, llama-3-8b under runtime vllm"),
        ("llama-3-8b", "vllm", {},
         "expected error: unknown, for mine was fitted to 8 runs of t8.csv, too few to hold"
         " some out"),
    ],
)  # fmt: skip
def test_profiles_that_a_benchmark_calibrated_state_their_held_out_error(
    tmp_path, model, runtime, errors, words
):
    """A plan said that the server was never measured."""
    shown = {"before": {"tpot": 9.0}, **({"held out": errors} if errors else {})}
    gpu = calibrated(tmp_path, shown, file="t8.csv", runs=8, model="llama-3-8b", runtime="vllm")
    found = hs.plan(model, rack(gpu), runtime=runtime, output_tokens=16, with_upgrades=False)
    assert list(error_lines(found)) == [words]


def test_profiles_of_measured_blocks_say_that_no_server_was_measured(tmp_path):
    errors = {
        "of the fit": {"prefill": 0.9, "decode": 0.9},
        "llama-3.2-1b, held out": {"prefill": 0.02, "decode": 0.2},
        "qwen2.5-0.5b, held out": {"prefill": 0.04, "decode": 0.1},
        "if the sum counted, qwen2.5-0.5b held out": {"prefill": 0.9, "decode": 0.9},
    }
    gpu = calibrated(tmp_path, errors, machine="desk")
    found = hs.plan("llama-3-8b", rack(gpu), output_tokens=16, with_upgrades=False)
    assert list(error_lines(found)) == [
        "expected error: unknown, for mine was fitted to steps of blocks and not to a server,"
        " which held out shapes of blocks: prefill 3%, decode 15%"
    ]


def test_fitted_costs_that_a_gpu_lacks_are_said():
    """The GPUs of a mix were compared by two forms of costs, without a word."""
    alone, mixed, none = (
        list(error_lines(plan(*gpus, runtime="vllm", costs=costs)))
        for gpus, costs in (
            (("l4",), "fitted"), (("l4", "h100"), "fitted"), (("l4", "h100"), "roofline"),
        )
    )  # fmt: skip
    (line,) = (line for line in alone if line.startswith("costs: "))
    words = "no server of L4 under runtime vllm was fitted, so the times there are those of"
    assert line == f"costs: {words} --costs roofline"
    (line,) = (line for line in mixed if line.startswith("costs: "))
    assert words in line and "which GPU is faster" in line
    assert not any(line.startswith("costs: ") for line in none)


NETWORK = """runtime = "vllm"
[[tiers]]
name = "rack"
nodes = [{gpu = "h100", count = 2}]
"""


@pytest.mark.parametrize("command", ["plan", "simulate", "compare", "pareto", "replan"])
def test_every_command_with_a_forecast_states_its_error(capsys, tmp_path, command):
    """Only `plan` said how true its forecast is."""
    network, before = tmp_path / "network.toml", tmp_path / "plan.json"
    network.write_text(NETWORK)
    asked = ["--model", "llama-3.1-8b", "--network", network, "--output", 16]
    given = {
        "simulate": ["--requests", 50], "compare": ["--method", "hypsplit_dp"],
        "replan": ["--before", before, "--max-moves", 1],
    }.get(command, [])  # fmt: skip
    if command == "replan":
        code, printed, _ = run(capsys, "plan", *asked, "--json")
        before.write_text(printed)
    code, printed, _ = run(capsys, command, *asked, *given)
    lines = [line for line in printed.splitlines() if line.startswith("expected error: ")]
    assert code == 0 and len(lines) == 1 and "on H100-SXM under runtime vllm" in lines[0]
    code, printed, _ = run(capsys, command, *asked, *given, "--json")
    plain = json.loads(printed)
    for each in plain if isinstance(plain, list) else [plain]:
        (error,) = each["expected_errors"]
        assert error["gpu"] == "H100-SXM" and error["n_runs"] == 130
        assert error["words"].startswith("expected error: time per output token ")


def test_the_report_states_the_error(tmp_path):
    pytest.importorskip("matplotlib")
    found = plan("h100", runtime="vllm")
    hs.write_report(found, tmp_path / "plan.html")
    (line,) = error_lines(found)
    assert f"<li>{line}</li>" in (tmp_path / "plan.html").read_text()


def test_slower_gpus_have_slower_rates_and_others_none():
    h100 = hs.gpu("h100")
    half = replace(h100.scaled(seconds=2, flops=0.5, moved=0.25), name="H100-SXM 2x slower")
    whole, slow = (server_profile(gpu, "vllm", "fp16").operators for gpu in (h100, half))
    assert slow.gemm_flops_per_s == pytest.approx(0.5 * whole.gemm_flops_per_s)
    assert slow.kv_bytes_per_s == pytest.approx(0.25 * whole.kv_bytes_per_s)
    assert slow.layer_s == pytest.approx(2 * whole.layer_s)
    own = replace(h100, basis="user")
    assert server_profile(own, "vllm", "fp16") == own
    assert server_profile(h100, "ideal", "fp16") == h100
    # TensorRT-LLM keeps the KV cache of FP8 checkpoints in 8 bits
    a, b = (server_profile(h100, "tensorrt-llm", w).operators for w in ("fp16", "fp8"))
    assert b.kv_bytes_per_s == pytest.approx(2 * a.kv_bytes_per_s)


def test_fits_that_err_more_or_gpus_without_are_not_taken_by_auto():
    """SGLang computes prompts first, so that simulations of its fit err more."""
    sglang = fitted_servers()["h100", "sglang"]
    assert sglang.simulated_groups["tpot"] > sglang.three_numbers["tpot"]
    for gpus, runtime, costs in (
        (("h100",), "sglang", "roofline"),
        (("h100",), "vllm", "fitted"),
        (("l4", "h100"), "vllm", "roofline"),
    ):
        assert plan(*gpus, runtime=runtime, costs="auto").query.costs == costs
        assert plan(*gpus, runtime=runtime).query.costs == "roofline"


def test_an_unknown_form_of_costs_is_refused():
    with pytest.raises(ValueError, match="costs"):
        plan("h100", runtime="vllm", costs="fited")


@pytest.mark.parametrize(
    ("gpu", "link", "is_assumed"),
    [("rtx-3090", "nvlink-bridge", True), ("a100-80gb", "nvlink3", False)],
)
def test_links_among_gpus_that_were_not_measured_are_named(gpu, link, is_assumed):
    """Cards on an NVLink bridge were planned by the figures of PCIe, and nothing said so."""
    box = hs.Node(name="box", gpu=hs.gpu(gpu), gpus=2, interconnect=hs.interconnect(link, gpu))
    network = hs.Network(name="lab", tiers=(hs.Tier(name="box", nodes=(box,)),))
    found = hs.plan(
        "llama-3-8b", network, runtime="vllm", tensor_parallel=2, output_tokens=16,
        with_upgrades=False,
    )  # fmt: skip
    lines = [line for line in str(found).splitlines() if line.startswith("assumed: ")]
    words = f"{link} of {hs.gpu(gpu).name}, which were not measured: figures of l40s"
    assert lines == [f"assumed: all-reduces over {words}"] * is_assumed


def test_what_is_longer_than_the_context_is_said_first():
    """A prompt of 100,000 tokens was planned for a model of 8,192, or did not fit."""
    network = hs.Network(
        name="lab", tiers=(hs.Tier(name="t", nodes=(hs.Node(name="n", gpu=hs.gpu("h100")),)),)
    )
    for prompt, fits in ((20_000, True), (900_000, False)):
        found = hs.plan(
            "llama-3-8b", network, prompt_tokens=prompt, output_tokens=8, concurrency=1,
            rate_per_s=0.01, runtime="vllm", with_upgrades=False,
        )  # fmt: skip
        first = str(found).splitlines()[0]
        assert first.startswith(f"warning: {prompt + 8} tokens are longer than the 8192 tokens")
        if fits:
            comment = hs.export(found, "vllm").splitlines()[0]
            assert comment.startswith(f"# {prompt + 8} tokens are longer than the 8192 that")
