"""GPUs by the names of drivers: real names, and names of GPUs that are near but other ones."""

import re

import pytest

import hypsolve as hs
from hypsolve.catalog.gpu_names import gpu_of_name, has_memory_of, usual_interconnect

MIB = 2**20
PRINTED = {  # name and MiB as nvidia-smi prints them
    ("NVIDIA H100 80GB HBM3", 81559): "h100",
    ("NVIDIA H100 PCIe", 81559): "h100-pcie",
    ("NVIDIA H200", 143771): "h200",
    ("NVIDIA B200", 183359): "b200",
    ("NVIDIA A100-SXM4-80GB", 81920): "a100-80gb",
    ("NVIDIA A100-SXM4-40GB", 40960): "a100-40gb",
    ("A100-SXM4-40GB", 40536): "a100-40gb",
    ("NVIDIA A100 80GB PCIe", 81920): "a100-80gb-pcie",
    ("NVIDIA A100-PCIE-40GB", 40960): "a100-40gb",
    ("Tesla V100-SXM2-16GB", 16384): "v100-16gb",
    ("Tesla T4", 15360): "t4",
    ("Tesla P40", 24576): "p40",
    ("NVIDIA L4", 23034): "l4",
    ("NVIDIA L40S", 46068): "l40s",
    ("NVIDIA A10", 23028): "a10",
    ("NVIDIA A30", 24576): "a30",
    ("NVIDIA A40", 46068): "a40",
    ("NVIDIA RTX A6000", 49140): "rtx-a6000",
    ("NVIDIA RTX A4000", 16376): "rtx-a4000",
    ("NVIDIA RTX 6000 Ada Generation", 49140): "rtx-6000-ada",
    ("NVIDIA RTX 4000 Ada Generation", 20475): "rtx-4000-ada",
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887): "rtx-pro-6000",
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887): "rtx-pro-6000",
    ("NVIDIA GeForce RTX 5090", 32607): "rtx-5090",
    ("NVIDIA GeForce RTX 4090", 24564): "rtx-4090",
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 16376): "rtx-4070-ti-super",
    ("NVIDIA GeForce RTX 4070", 12282): "rtx-4070",
    ("NVIDIA GeForce RTX 4060 Ti", 8188): "rtx-4060-ti",
    ("NVIDIA GeForce RTX 4060 Ti", 16380): "rtx-4060-ti-16gb",
    ("NVIDIA GeForce RTX 3090", 24576): "rtx-3090",
    ("NVIDIA GeForce RTX 3080", 10240): "rtx-3080",
    ("GeForce GTX 1080 Ti", 11178): "gtx-1080-ti",
    ("NVIDIA GeForce RTX 2080 Ti", 11264): "rtx-2080-ti",
}  # fmt: skip


@pytest.mark.parametrize(("printed", "gpu"), PRINTED.items(), ids=str)
def test_names_that_drivers_print(printed, gpu):
    """The name is found, and the memory that the driver shows is that of the catalogue."""
    name, mebibytes = printed
    assert gpu_of_name(name, mebibytes * MIB) == gpu
    assert has_memory_of(gpu, mebibytes * MIB)


def test_every_gpu_of_the_catalogue_is_found():
    """By its short name, and by its full name and its memory."""
    for name, gpu in hs.gpus().items():
        assert gpu_of_name(name) == name
        assert gpu_of_name(gpu.name, gpu.memory_bytes) == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", "rtx-4090"),
        ("NVIDIA H100 NVL", "h100"),
        ("NVIDIA L40", "l40s"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "rtx-4000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000"),
        ("Quadro RTX 6000", "rtx-6000-ada"),
    ],
)
def test_other_gpus_are_not_taken_for_their_namesakes(name, nearest):
    """They have other rates; the message names the nearest as a proposal."""
    with pytest.raises(ValueError, match=f"unknown gpu {re.escape(repr(name))}; ") as error:
        gpu_of_name(name)
    assert nearest in str(error.value) and "hypsolve gpus lists all" in str(error.value)


def test_a_name_without_memory_may_be_ambiguous():
    with pytest.raises(ValueError, match="several sizes of memory: one of a100-40gb, a100-80"):
        gpu_of_name("NVIDIA A100")
    assert gpu_of_name("NVIDIA A100 80GB PCIe") == "a100-80gb-pcie"  # the size is in the name
    for name in ("", "NVIDIA", "gpu"):
        with pytest.raises(ValueError, match="unknown gpu"):
            gpu_of_name(name)


def test_a_card_with_other_memory_is_still_the_chip():
    """Its memory then differs from the catalogue's, which callers can see."""
    assert gpu_of_name("Tesla V100-SXM2-32GB", 32768 * MIB) == "v100-16gb"
    assert not has_memory_of("v100-16gb", 32768 * MIB)
    assert not has_memory_of("rtx-3080", 12288 * MIB)


@pytest.mark.parametrize(
    ("gpu", "name", "links"),
    [
        ("h100", "NVIDIA H100 80GB HBM3", "nvlink4"),
        ("h100-pcie", "NVIDIA H100 PCIe", "pcie5"),
        ("a100-40gb", "NVIDIA A100-SXM4-40GB", "nvlink3"),
        ("a100-40gb", "NVIDIA A100-PCIE-40GB", "pcie4"),
        ("b200", "NVIDIA B200", "nvlink5"),
        ("rtx-4090", "", "pcie4"),
        ("rtx-5090", "", "pcie5"),
        ("t4", "Tesla T4", "pcie3"),
        ("l4", "", "pcie4"),
        ("v100-16gb", "Tesla V100-PCIE-16GB", "pcie3"),
    ],
)
def test_usual_interconnects(gpu, name, links):
    assert usual_interconnect(gpu, name) == links
    assert links in hs.interconnects()
