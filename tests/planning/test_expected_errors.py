"""Every plan states the error of its forecast, or that it is not known."""

from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.calibration.fitted_profile import fitted_profile, server_profile
from hypsolve.calibration.servers import fitted_servers
from hypsolve.planning.expected_errors import error_lines


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
    assert "other models than in" in line
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
    server = fitted_servers()["h100", "vllm"]
    assert f"time per output token {server.simulated_lengths['tpot']:.0%}" in line
    assert "other lengths of" in line


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
