"""Ceilings of profiles: the catalogue is below them, and names of fits find them."""

import pytest

import hypsolve as hs
from hypsolve import catalog
from hypsolve.calibration.peaks import DATASHEET
from hypsolve.catalog.datasheets import ceiling


@pytest.mark.parametrize("name", catalog.gpus())
def test_no_profile_of_the_catalogue_is_above_its_data_sheet(name):
    """Fitted and derived rates alike; those of no data sheet have no ceiling."""
    most, gpu = ceiling(name, "llama-3-8b"), hs.gpu(name)
    if most is not None:
        assert gpu.flops_per_s <= most.flops_per_s
        assert gpu.bytes_per_s <= most.bytes_per_s
    if name in DATASHEET:
        assert most.bytes_per_s == DATASHEET[name][3]
        assert most.flops_per_s == pytest.approx(DATASHEET[name][0], rel=1e-3)


@pytest.mark.parametrize(
    ("profile", "gpu"),
    [
        ("L4", "L4"), ("l4", "L4"), ("L4-vllm", "L4"), ("L40S-vllm", "L40S"), ("L400", None),
        ("A100-80GB PCIe-sglang", "A100-80GB PCIe"), ("A100-80GB-sglang", "A100-80GB"),
        ("RTX 3090-llama.cpp", "RTX 3090"), ("mine", None),
    ],
)  # fmt: skip
def test_the_name_of_a_fit_names_the_gpu(profile, gpu):
    most = ceiling(profile)
    assert (most and most.gpu) == gpu


def test_weights_of_fewer_bits_may_be_computed_faster():
    sixteen, eight, four = (
        ceiling("h100", f"llama-3-8b{end}").flops_per_s for end in ("", "-fp8", "-nvfp4")
    )
    assert (eight, four) == (2 * sixteen, 4 * sixteen)
    assert ceiling("h100", "llama-3-8b-awq").flops_per_s == sixteen
