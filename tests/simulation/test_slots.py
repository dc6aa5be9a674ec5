"""Slots whose context is padded, as those of llama.cpp: room, admission and exports agree."""

import re
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.exporters import export
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.solution import Partition

MODEL = hs.model("llama-3-8b", "q4_k_m")
KV_BYTES = sum(block.kv_bytes_per_token for block in MODEL.blocks)


def box(runtime, tokens):
    """One card with room for so many tokens of KV cache."""
    gpu = replace(hs.gpu("rtx-3090"), visible_bytes=None)
    free = runtime.usable_bytes(hs.Node(name="box", gpu=gpu), MODEL)
    used = MODEL.stage_weight_bytes(MODEL.blocks) + (tokens + 0.5) * KV_BYTES
    node = hs.Node(name="box", gpu=gpu, reserved_bytes=free - used)
    return hs.Network(name="home", tiers=(hs.Tier(name="box", nodes=(node,)),))


def served(runtime, room, lengths):
    prompt, output = np.array(lengths).T
    deployment = Deployment(
        model=MODEL,
        network=box(runtime, room),
        requests=Requests(np.zeros(len(lengths)), prompt, output),
        runtime=runtime,
    )
    return hs.simulate(deployment, Partition((0, MODEL.n_blocks)))


@pytest.mark.parametrize("batching", ["stage", "pipeline", "serial"])
def test_padded_requests_run_as_many_at_once_as_slots_fit(batching):
    """600 tokens take 768: room for 1,900 has two slots, where three unpadded ones fit."""
    lengths = [(500, 100)] * 7
    unlimited = hs.runtime("llama.cpp", max_num_seqs=64, batching=batching)
    padded = served(unlimited, 1900, lengths)
    two = served(replace(unlimited, slot_tokens=1, max_num_seqs=2), 1900, lengths)
    three = served(replace(unlimited, slot_tokens=1), 1900, lengths)
    assert np.array_equal(padded.end_s, two.end_s)
    assert three.end_s.max() < padded.end_s.max()


def test_a_padded_request_that_does_not_fit_is_refused_beforehand():
    """It would wait for ever."""
    with pytest.raises(ValueError, match=r"(?i)hold|fit"):
        served(hs.runtime("llama.cpp"), 700, [(500, 100)])


def test_queries_leave_room_for_whole_slots():
    runtime = hs.runtime("llama.cpp", max_num_seqs=8)
    network = box(runtime, 4 * 768)
    asked = dict(runtime=runtime, prompt_tokens=500, output_tokens=100, with_upgrades=False)
    assert hs.plan(MODEL, network, concurrency=4, **asked).fits
    assert not hs.plan(MODEL, network, concurrency=5, **asked).fits


@pytest.mark.parametrize(("prompt", "output"), [(500, 100), (512, 256), (1, 1), (700, 69)])
@pytest.mark.parametrize("name", ["llama.cpp", "ideal"])
def test_exports_ask_for_the_context_that_llama_cpp_gives(name, prompt, output):
    """llama-context.cpp: n_ctx is padded to 256, then n_ctx / n_seq_max for each slot."""
    runtime = hs.runtime(name, max_num_seqs=64)
    plan = hs.plan(
        MODEL, box(runtime, 7000), runtime=runtime, prompt_tokens=prompt, output_tokens=output,
        concurrency=2, with_upgrades=False, objective="path",
    )  # fmt: skip
    text = export(plan, "llama.cpp")
    (context, slots), *_ = re.findall(r"-c (\d+) .*?-np (\d+)", text, re.S)
    context, slots = int(context), int(slots)
    assert context % 256 == 0 and context <= 7000
    of_slot = context // slots
    assert of_slot % 256 == 0  # else llama.cpp pads it, and takes more memory than was planned
    assert 0 <= of_slot - (prompt + output) < 256
    assert slots == min(7000 // of_slot, 64)


def test_llama_cpp_keeps_logits_of_one_token_for_each_slot():
    """server-context.cpp limits the outputs of a batch to the slots, whatever -ub is."""
    vocabulary = 128_256
    used = [
        hs.runtime("llama.cpp", max_num_seqs=slots, micro_batch_tokens=32).overhead_bytes(MODEL)
        for slots in (128, 256)
    ]
    assert used[1] - used[0] == pytest.approx(128 * vocabulary * 4, rel=1e-9)
