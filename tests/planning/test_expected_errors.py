"""Every plan states the error of its forecast, or that it is not known."""

import hypsolve as hs
from hypsolve.planning.expected_errors import error_lines


def plan(*gpus, runtime, min_blocks=None):
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
        "llama-3-8b", network, runtime=runtime, output_tokens=16, with_upgrades=False
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
