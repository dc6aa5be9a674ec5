"""Runtime profiles: published KV-cache sizes, defaults by GPU, and refused values."""

import pytest

import hypsolve as hs
from hypsolve import catalog
from hypsolve.problem.card_memory import SEEN_GIB
from hypsolve.problem.runtime import Batching, runtime_from_dict
from hypsolve.problem.units import GIB

QWEN3_14B = dict(
    n_layers=40, hidden=5120, n_heads=40, n_kv_heads=8, head_dim=128, ffn=17408, vocab=151936
)
QWEN25_15B = dict(
    n_layers=28, hidden=1536, n_heads=12, n_kv_heads=2, head_dim=128, ffn=8960, vocab=151936,
    tied_embeddings=True,
)  # fmt: skip
PUBLISHED = [
    # model, GiB of the card, max_num_seqs, max_num_batched_tokens, tokens of KV cache, error
    # capacities that the project Helium measured with vLLM (helium/constants.py)
    ("llama-3-8b", 93.58, 1024, 4096, 543_440, 0.05),  # H100 NVL
    ("qwen3-8b", 93.58, 1024, 4096, 478_560, 0.05),
    (QWEN3_14B, 93.58, 1024, 4096, 350_304, 0.05),
    ("qwen3-32b", 93.58, 1024, 4096, 81_648, 0.05),
    ("llama-3-8b", 47.5, 1024, 4096, 208_128, 0.05),  # RTX 6000 Ada
    # these two kept 1.2 GiB besides weights and KV cache, where Llama on this card kept 2.4
    ("qwen3-8b", 47.5, 1024, 4096, 191_568, 0.08),
    (QWEN3_14B, 47.5, 1024, 4096, 92_000, 0.13),
    # vllm-project/vllm, pull request 10511: 53.29 GiB for KV cache on a card of 79.22 GiB
    ("llama-3-8b", 79.22, 256, 8192, int(53.29 * GIB / 131_072), 0.05),
    # a log of vLLM 0.7.2, Qwen2.5-Math-1.5B, 36,332 blocks of 16 tokens
    (QWEN25_15B, 22.06, 256, 4096, 581_312, 0.05),
]


@pytest.mark.parametrize(("model", "gib", "seqs", "tokens", "printed", "error"), PUBLISHED)
def test_kv_cache_sizes_that_servers_printed(model, gib, seqs, tokens, printed, error):
    """The memory model of the profile `vllm` against nine start-up logs."""
    shape = catalog.transformer("shape", **model) if isinstance(model, dict) else None
    model = shape or hs.model(model)
    card = hs.GpuProfile(
        name="card", t0_s=0.0, flops_per_s=1e14, bytes_per_s=1e12, memory_bytes=gib * GIB
    )
    runtime = hs.runtime("vllm", max_num_seqs=seqs, max_num_batched_tokens=tokens)
    free = runtime.usable_bytes(hs.Node(name="node", gpu=card), model)
    per_token = sum(block.kv_bytes_per_token for block in model.blocks)
    forecast = (free - model.stage_weight_bytes(model.blocks)) / per_token
    assert forecast == pytest.approx(printed, rel=error)


ON_CATALOGUE_CARDS = [
    # model, card of the catalogue, max_num_seqs, max_num_batched_tokens, tokens of KV cache
    ("llama-3-8b", "l4", 256, 2048, 2356 * 16),  # a log of 2,356 blocks; held out of the fit
    (QWEN25_15B, "l4", 256, 4096, 581_312),
    ("llama-3-8b", "h100", 256, 8192, int(53.29 * GIB / 131_072)),
    ("llama-3-8b", "rtx-6000-ada", 1024, 4096, 208_128),
    ("qwen3-8b", "rtx-6000-ada", 1024, 4096, 191_568),
]


@pytest.mark.parametrize(("model", "card", "seqs", "tokens", "printed"), ON_CATALOGUE_CARDS)
def test_catalogue_cards_do_not_promise_more_cache_than_was_printed(
    model, card, seqs, tokens, printed
):
    """The card that the user names: its nominal GiB promised 17 % more."""
    shape = catalog.transformer("shape", **model) if isinstance(model, dict) else None
    model = shape or hs.model(model)
    runtime = hs.runtime("vllm", max_num_seqs=seqs, max_num_batched_tokens=tokens)
    free = runtime.usable_bytes(hs.Node(name="node", gpu=hs.gpu(card)), model)
    per_token = sum(block.kv_bytes_per_token for block in model.blocks)
    forecast = (free - model.stage_weight_bytes(model.blocks)) / per_token
    assert 0.75 * printed < forecast < 1.05 * printed


def test_cards_hide_memory_from_servers_alone():
    """Named scenarios keep their digests: runtime ideal has the memory of the profile."""
    gpus = {gpu.name: gpu for gpu in hs.gpus().values()}
    for name, seen in SEEN_GIB.items():
        nominal = gpus[name].memory_bytes / GIB
        assert 0.9 * nominal < seen < nominal
        node = hs.Node(name="n", gpu=gpus[name])
        assert hs.runtime("ideal").card_bytes(node) == gpus[name].memory_bytes
        for runtime in hs.runtimes()[1:]:
            assert hs.runtime(runtime).card_bytes(node) == pytest.approx(seen * GIB)
    less = hs.Node(name="n", gpu=hs.gpu("l4"), memory_bytes=20 * GIB)
    more = hs.Node(name="n", gpu=hs.gpu("l4"), memory_bytes=32 * GIB)
    sees = [hs.runtime("vllm").card_bytes(node) / GIB for node in (less, more)]
    assert sees == pytest.approx([20, 32 - 24 + 22.03])


@pytest.mark.parametrize(
    ("gpus", "tokens", "sequences"),
    [
        (["h100"], 8192, 1024),
        (["a100-80gb"], 2048, 256),  # excepted by name
        (["l4"], 2048, 256),
        (["h100", "l4"], 2048, 256),  # the smallest decides
        ([], 2048, 256),
    ],
)
def test_defaults_of_vllm_depend_on_the_gpus(gpus, tokens, sequences):
    """The rule of EngineArgs.get_batch_defaults."""
    found = hs.runtime("vllm", gpus=[hs.gpu(name) for name in gpus])
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (tokens, sequences)


def test_a_server_takes_its_share_or_what_others_leave():
    """Count the memory of others once: it lies in the share that the server leaves."""
    model, gpu = hs.model("llama-3-8b"), hs.gpu("rtx-4090")
    runtime = hs.runtime("vllm")
    alone = runtime.usable_bytes(hs.Node(name="n", gpu=gpu), model)
    seen = runtime.card_bytes(hs.Node(name="n", gpu=gpu))
    tenth = hs.Node(name="n", gpu=gpu, reserved_bytes=0.1 * seen)
    half = hs.Node(name="n", gpu=gpu, reserved_bytes=0.5 * seen)
    assert runtime.usable_bytes(tenth, model) == pytest.approx(alone)
    assert alone - runtime.usable_bytes(half, model) == pytest.approx(0.4 * seen)


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
