"""Runtime profiles: memory of cards, defaults by GPU, and refused values."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hypsolve as hs
from hypsolve import catalog
from hypsolve.problem.runtime import Batching, runtime_from_dict
from hypsolve.problem.units import GIB

OTHERS = ("jetson", "rx-", "arc-")
WITHOUT_ECC = {
    "gtx-1080-ti", "rtx-2080-ti", "rtx-3080", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-a4000",
}  # fmt: skip


@pytest.mark.parametrize("slug", sorted(hs.gpus()))
def test_cards_hide_memory_from_servers_alone(slug):
    """Named scenarios keep their digests: runtime ideal has the memory of the profile."""
    gpu = hs.gpu(slug)
    node = hs.Node(name="n", gpu=gpu)
    seen = gpu.memory_bytes - gpu.hidden_bytes
    assert (gpu.visible_bytes is not None) == (
        "apple" not in slug and not slug.startswith(OTHERS)
    )
    assert 0.9 * gpu.memory_bytes < seen <= gpu.memory_bytes
    assert hs.runtime("ideal").card_bytes(node) == gpu.memory_bytes
    for runtime in hs.runtimes()[1:]:
        assert hs.runtime(runtime).card_bytes(node) == seen


def test_every_size_of_a_card_has_a_source():
    """A size without a public log of the named card is marked, and follows the stated ratio."""
    cards = tomllib.loads(Path(catalog.__file__).with_name("cards.toml").read_text())
    assert set(cards) <= set(hs.gpus())
    by_rule, ratios = 0, []
    for slug, card in cards.items():
        nominal = hs.gpu(slug).memory_bytes / GIB
        assert card["basis"] in ("measured", "estimated") and len(card["source"]) > 10
        if card["source"] == "0.98 of the data sheet":
            assert card["visible_gib"] == pytest.approx(0.98 * nominal, abs=0.006)
            by_rule += 1
        elif card["basis"] == "measured" and slug in WITHOUT_ECC:
            ratios.append(card["visible_gib"] / nominal)
    assert by_rule < 0.6 * len(cards)
    assert len(ratios) == len(WITHOUT_ECC)
    assert np.median(ratios) == pytest.approx(0.98, abs=0.005)


def test_nodes_with_other_sizes_hide_as_the_card_does():
    """What a user states is believed if it is less than the data sheet; else as much hides."""
    less = hs.Node(name="n", gpu=hs.gpu("l4"), memory_bytes=20 * GIB)
    more = hs.Node(name="n", gpu=hs.gpu("l4"), memory_bytes=32 * GIB)
    sees = [hs.runtime("vllm").card_bytes(node) / GIB for node in (less, more)]
    assert sees == pytest.approx([20, 32 - 24 + 22.03])


def test_only_cards_of_the_catalogue_hide_memory():
    """A user's own GPU of the same name has what it says; a slower copy of a card hides too."""
    own = replace(hs.gpu("l4"), visible_bytes=None)
    slow = replace(hs.gpu("l4"), name="L4 2x slower")
    runtime = hs.runtime("vllm")
    assert runtime.card_bytes(hs.Node(name="n", gpu=own)) == 24 * GIB
    assert runtime.card_bytes(hs.Node(name="n", gpu=slow)) == pytest.approx(22.03 * GIB)
    with pytest.raises(ValueError, match="visible_bytes must be at most memory_bytes"):
        replace(own, visible_bytes=25 * GIB)


@pytest.mark.parametrize(
    ("gpus", "tokens", "sequences"),
    [
        (["h100"], 8192, 1024),
        (["a100-80gb"], 2048, 256),  # excepted by name
        (["l4"], 2048, 256),
        (["h200"], 8192, 1024),
        (["b200"], 16_384, 1024),
        (["b200", "a100-80gb"], 2048, 256),
        (["h100", "l4"], 2048, 256),  # the smallest decides
        ([], 2048, 256),
    ],
)
def test_defaults_of_vllm_depend_on_the_gpus(gpus, tokens, sequences):
    """The rule of EngineArgs.get_batch_defaults."""
    found = hs.runtime("vllm", gpus=[hs.gpu(name) for name in gpus])
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (tokens, sequences)
    assert (found.memory_fraction, found.version) == (0.92, "0.33.0")


@pytest.mark.parametrize(
    ("slug", "mib", "chunk", "captured"),
    [  # MiB of nvidia-smi, and the largest batch that is captured as a graph
        ("t4", 15_360, 2048, 8),
        ("l4", 23_034, 4096, 48),
        ("rtx-4090", 24_564, 4096, 48),
        ("a100-40gb", 40_960, 4096, 32),
        ("l40s", 46_068, 4096, 32),
        ("a100-80gb", 81_920, 8192, 256),
        ("h100", 81_559, 8192, 256),
        ("h200", 143_771, 8192, 256),
        ("b200", 183_359, 16_384, 512),
    ],
)
def test_defaults_of_sglang_depend_on_the_gpus(slug, mib, chunk, captured):
    """handle_gpu_memory_settings of SGLang 0.5.23, written down from its source."""
    found = hs.runtime("sglang", gpus=[hs.gpu(slug)])
    assert found.chunk_tokens == chunk
    sizes = [
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, chunk + 1, 512),
    ]
    prefills = sum(size <= chunk for size in sizes)
    reserved = 512 + 1.5 * chunk + 1024 / 8 + 2 * captured + 8 * prefills
    if mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    assert found.memory_fraction == pytest.approx(1 - reserved / mib, abs=0.012)


def test_a_card_that_is_smaller_than_what_sglang_reserves_keeps_a_share():
    small = replace(hs.gpu("gtx-1080-ti"), memory_bytes=2 * GIB, visible_bytes=None)
    assert hs.runtime("sglang", gpus=[small]).memory_fraction == 0.05


def test_profiles_of_servers_state_their_version():
    """A default without a version is false with the next release."""
    for name in hs.runtimes():
        assert bool(hs.runtime(name).version) == (name != "ideal")


def test_a_server_takes_its_share_or_what_others_leave():
    """Count the memory of others once: it lies in the share that the server leaves."""
    model, gpu = hs.model("llama-3-8b"), hs.gpu("rtx-4090")
    runtime = hs.runtime("vllm")
    alone = runtime.usable_bytes(hs.Node(name="n", gpu=gpu), model)
    seen = runtime.card_bytes(hs.Node(name="n", gpu=gpu))
    little = hs.Node(name="n", gpu=gpu, reserved_bytes=0.08 * seen)
    half = hs.Node(name="n", gpu=gpu, reserved_bytes=0.5 * seen)
    assert runtime.usable_bytes(little, model) == pytest.approx(alone)
    assert alone - runtime.usable_bytes(half, model) == pytest.approx(0.42 * seen)


def test_the_ideal_runtime_leaves_instances_as_they_are():
    node = hs.Node(name="n", gpu=hs.gpu("l4"), reserved_bytes=3 * GIB)
    assert hs.runtime().usable_bytes(node, hs.model("llama-3-8b")) == node.usable_bytes


@pytest.mark.parametrize("name", hs.runtimes())
def test_profiles_are_complete_and_round_trip(name):
    found = hs.runtime(name)
    assert found.source and found.name == name and name in found.describe()
    assert runtime_from_dict("file", found.to_dict()) == found
    assert (found.batching is Batching.STAGE) == (name == "ideal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_num_seqs": 0}, "runtime 'vllm': max_num_seqs must be at least 1, got 0"),
        ({"max_num_seqs": 1.5}, "max_num_seqs must be a whole number, got 1.5"),
        ({"memory_fraction": 1.2}, "memory_fraction must be at most 1, got 1.2"),
        ({"memory_fraction": 0}, "memory_fraction must be positive and finite, got 0"),
        ({"batching": "all"}, "batching must be one of stage, pipeline, serial, got 'all'"),
        ({"kv_admission": "none"}, "kv_admission must be one of reserve, paged, got 'none'"),
        ({"iteration_s": -1}, "iteration_s must be finite and not negative, got -1"),
        ({"max_num_sequences": 4}, "did you mean max_num_seqs"),
        ({"platforms": "cuda"}, "platforms must be a tuple of strings, got 'cuda'"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        hs.runtime("vllm", **change)
    assert message in str(caught.value)


def test_an_unknown_runtime_suggests_a_name():
    with pytest.raises(ValueError, match="unknown runtime 'vlm'; did you mean vllm"):
        hs.runtime("vlm")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"batching": "stage"}, "file: runtime must have a name"),
        ({"name": "x", "seqs": 3}, "unknown key of the runtime in file 'seqs'"),
    ],
)
def test_bad_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        runtime_from_dict("file", table)


def test_parts_of_batches_need_batching_serial():
    """`micro_batch_tokens=4` of vLLM was accepted, printed nowhere and simulated nowhere."""
    message = "'vllm': micro_batch_tokens needs batching serial, got 'pipeline'"
    with pytest.raises(ValueError, match=message):
        hs.runtime("vllm", micro_batch_tokens=4)
    with pytest.raises(ValueError, match="needs batching serial, got 'stage'"):
        hs.runtime("llama.cpp", batching="stage", micro_batch_tokens=4)
    assert hs.runtime("vllm", batching="serial", micro_batch_tokens=4).micro_batch_tokens == 4
