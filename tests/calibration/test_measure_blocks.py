"""Blocks in torch against a plain NumPy block, and a measurement of tiny blocks end to end."""

import csv
import json
import re

import numpy as np
import pytest

from hypsolve.calibration.measure import measure
from hypsolve.calibration.measure_blocks import EPSILON, Stack
from hypsolve.calibration.measure_grid import BlockShape, Step
from hypsolve.calibration.measure_rows import COLUMNS, read_steps, steps_of, write_rows
from hypsolve.cli.measure import describe, describe_skipped

torch = pytest.importorskip("torch", reason="the extra `measure` is not installed")

TINY = BlockShape("tiny", hidden=16, n_heads=4, n_kv_heads=2, head_dim=6, ffn=24)
OTHER = BlockShape("other", hidden=64, n_heads=4, n_kv_heads=4, head_dim=16, ffn=96)


def normed(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)


def rotated(x, positions):
    """Rotary embedding of (tokens, head_dim), halves paired."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )


def plain_layer(x, layer, cached):
    """One layer for one sequence on a cache of zeros; x has the shape (tokens, hidden)."""
    shape, d = TINY, TINY.head_dim
    w = {name: tensor.double().numpy() for name, tensor in layer.items()}
    qkv = normed(x) @ w["qkv"].T
    positions = np.arange(cached, cached + len(x))
    heads = [qkv[:, i * d : (i + 1) * d] for i in range(shape.n_heads + 2 * shape.n_kv_heads)]
    group = shape.n_heads // shape.n_kv_heads
    out = np.zeros((len(x), shape.n_heads * d))
    for h in range(shape.n_heads):
        q = rotated(heads[h], positions)
        k = rotated(heads[shape.n_heads + h // group], positions)
        v = heads[shape.n_heads + shape.n_kv_heads + h // group]
        k = np.concatenate([np.zeros((cached, d)), k])
        v = np.concatenate([np.zeros((cached, d)), v])
        for t in range(len(x)):
            seen = cached + t + 1
            score = np.exp(k[:seen] @ q[t] / np.sqrt(d))
            out[t, h * d : (h + 1) * d] = score @ v[:seen] / score.sum()
    x = x + out @ w["out"].T
    gate, up = np.split(normed(x) @ w["gate_up"].T, 2, axis=-1)
    return x + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T


@pytest.mark.parametrize(
    "step",
    [
        Step("prefill", batch=2, tokens=5, context=0),
        Step("prefill", batch=1, tokens=4, context=7),
        Step("decode", batch=3, tokens=1, context=9),
    ],
    ids=Step.describe,
)
def test_a_stack_computes_transformer_layers(step):
    """A timed block is a real one: a NumPy block that loops over heads gives its numbers."""
    stack = Stack(TINY, 2, "cpu", "float32")
    torch.manual_seed(3)
    run = stack._prepared(step)
    torch.manual_seed(3)
    x = torch.randn(step.batch, step.tokens, TINY.hidden)
    with torch.inference_mode():
        found = run().double().numpy()
        again = run().double().numpy()
    np.testing.assert_array_equal(found, again)  # repeats do the same work
    for sequence in range(step.batch):
        expected = x[sequence].double().numpy()
        for layer in stack.layers:
            expected = plain_layer(expected, layer, step.cached)
        np.testing.assert_allclose(found[sequence], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "step", [Step("decode", 3, 1, 9), Step("prefill", 2, 5, 0)], ids=Step.describe
)
def test_flops_are_those_that_torch_counts(step):
    """Torch counts those of matrices; of attention, it counts all pairs or, on a CPU, none."""
    from torch.utils.flop_counter import FlopCounterMode

    stack = Stack(TINY, 1, "cpu", "float32")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        stack._prepared(step)()
    flops, _ = step.work(TINY, 4)
    pairs = step.batch * step.tokens * (step.cached + step.tokens)
    causal = step.batch * sum(step.cached + t + 1 for t in range(step.tokens))
    of_pair = 4 * TINY.n_heads * TINY.head_dim
    linear = flops - causal * of_pair
    assert counter.get_total_flops() in (linear, linear + pairs * of_pair)


STEPS = [
    Step("prefill", 1, 8, 0), Step("decode", 1, 1, 4), Step("prefill", 1, 64, 0),
    Step("decode", 2, 1, 16),
]  # fmt: skip


def test_a_measurement_end_to_end(tmp_path):
    """Tiny blocks: every step has a time, the table is read as it was written."""
    lines = []
    found = measure([TINY, OTHER], device="cpu", threads=1, steps=STEPS, progress=lines.append)
    assert found.skipped == []
    assert len(lines) == len(found.rows) == 2 * len(STEPS)
    assert lines[0].startswith("1 of 8: tiny, prefill of 1 x 8 tokens, context 0")
    assert lines[-1].endswith(" s left")
    for row in found.rows:
        timing = row.timing
        assert 0 < timing.min_s <= timing.median_s <= timing.max_s
        assert timing.repeats >= 3
    assert [each.shape for each in found.held_out] == ["tiny", "other"]
    path = tmp_path / "rows.csv"
    write_rows(path, found.machine, found.rows)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["torch"] for row in rows} == {torch.__version__}
    back, steps = read_steps(path), steps_of(found.rows)
    np.testing.assert_allclose(back.seconds, steps.seconds, rtol=1e-5)
    np.testing.assert_allclose(back.flops, steps.flops, rtol=1e-5)
    assert back.shape.tolist() == steps.shape.tolist()


def test_steps_that_do_not_fit_are_skipped_and_named():
    """The memory is that of all steps but the largest."""
    huge = Step("decode", 64, 1, 2**20)
    found = measure(
        [TINY, OTHER], device="cpu", threads=1, steps=[*STEPS, huge], memory_bytes=2**30
    )
    assert describe_skipped(found) == [
        f"skipped, {each.skipped.replace(': ', ' (')}): {each.shape.name}, {huge.describe()}"
        for each in found.skipped
    ]
    assert [(row.shape.name, row.step) for row in found.skipped] == [
        ("tiny", huge), ("other", huge),
    ]  # fmt: skip
    assert re.fullmatch(r"memory: needs [0-9.]+ GB of 1.074 GB", found.skipped[0].skipped)


def test_ctrl_c_keeps_what_was_measured(monkeypatch):
    """Twenty minutes of a full measurement are not lost; the rest is named."""
    time = Stack.time
    calls = []

    def interrupted(self, step, **limits):
        calls.append(step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return time(self, step, **limits)

    monkeypatch.setattr(Stack, "time", interrupted)
    found = measure([TINY, OTHER], device="cpu", threads=1, steps=STEPS)
    assert found.is_stopped and len(calls) == 6
    assert [row.skipped for row in found.rows] == [""] * 5 + ["stopped"] * 3


def test_a_shape_that_does_not_fit_leaves_one_alone():
    """The text says that one shape gives no error on another one."""
    large = BlockShape("large", hidden=1024, n_heads=8, n_kv_heads=8, head_dim=128, ffn=4096)
    found = measure([large, TINY], device="cpu", threads=1, steps=STEPS, memory_bytes=2**25)
    assert found.held_out == ()
    text = describe(found)
    assert "one shape alone was measured: t0 and the reading of weights cannot be told" in text
    assert "large, all 4 steps" in text
    assert "no error on a shape that was not fitted" in found.profile().gpu.source
    for name, (low, high) in found.interval.items():
        assert low <= high and (name not in found.unlimited or high == np.inf)


def test_a_step_that_torch_cannot_run_is_skipped_and_named(monkeypatch):
    """A device may lack a kernel, or have less memory than it said."""
    time = Stack.time

    def failing(self, step, **limits):
        if step == STEPS[0]:
            raise RuntimeError("out of\nmemory")
        return time(self, step, **limits)

    monkeypatch.setattr(Stack, "time", failing)
    found = measure([TINY, OTHER], device="cpu", threads=1, steps=STEPS)
    assert [row.skipped for row in found.skipped] == ["torch: out of memory"] * 2
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(plain["steps"]) == 8 and plain["steps"][0]["median_s"] is None
    assert plain["t0_s"] == found.fitted.t0_s


def test_too_little_time_is_an_error_that_says_what_was_skipped():
    words = r"at least 4 steps .* got 0; skipped: time: the limit"
    with pytest.raises(ValueError, match=words):
        measure([TINY, OTHER], device="cpu", threads=1, steps=STEPS, time_limit_s=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cpu", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "cpu", "threads": 0}, "threads must be at least 1, got 0"),
        ({"device": "cpu", "time_limit_s": 0}, "time_limit_s must be positive and finite"),
        ({"device": "cpu", "shapes": [TINY, TINY, OTHER]}, "shapes must have distinct names"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure(**arguments)
