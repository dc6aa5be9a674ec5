"""The fit of a profile to times of blocks: known numbers, other solvers, held-out shapes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls

from hypsolve.calibration.measure import with_rates_seen, with_threads
from hypsolve.calibration.measure_fit import (
    Roofline,
    Steps,
    choose_form,
    fit_roofline,
    held_out,
    intervals,
    nonnegative,
)
from hypsolve.calibration.measure_grid import BlockShape, grid, need_bytes, read_shape
from hypsolve.calibration.measure_rows import Machine
from hypsolve.problem import costs
from hypsolve.problem.deployment import GpuProfile
from tests.helpers.sizes import n_cases

TRUE = Roofline(t0_s=60e-6, flops_per_s=7e12, bytes_per_s=3e11)
RATES = ("t0_s", "flops_per_s", "bytes_per_s")
SHAPES = ("llama-3.2-1b", "llama-3-8b")


def steps_of(truth, shapes=SHAPES, noise=0.0, seed=0):
    """Steps of the quick grid whose times the cost model makes."""
    rng = np.random.default_rng(seed)
    rows = [(read_shape(name), step) for name in shapes for step in grid(quick=True)]
    work = np.array([step.work(shape, 2) for shape, step in rows])
    gpu = GpuProfile(
        name="true", t0_s=truth.t0_s, flops_per_s=truth.flops_per_s,
        bytes_per_s=truth.bytes_per_s, memory_bytes=1e9,
    )  # fmt: skip
    seconds = costs.step_s(gpu, work[:, 0], work[:, 1])
    seconds = seconds * np.exp(noise * rng.standard_normal(len(rows)))
    names = np.array([shape.name for shape, _ in rows])
    return Steps(*work.T, seconds, names, np.array([step.phase for _, step in rows]))


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_of_exact_times_are_found(seed):
    """Times made by the cost model itself have one set of numbers."""
    rng = np.random.default_rng(seed)
    truth = Roofline(*(10 ** rng.uniform(low, low + 1) for low in (-5, 12, 11)))
    found = fit_roofline(steps_of(truth))
    for name in RATES:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3), name


def test_times_that_add_up_are_told_from_times_that_overlap():
    """A core that reads and computes in turn: the sum fits, the larger of both does not."""
    steps = steps_of(TRUE)
    seconds = 1e-3 + steps.flops / 7e10 + steps.moved_bytes / 7e9
    steps = replace(steps, seconds=seconds)
    added = fit_roofline(steps, overlaps=False)
    assert (added.t0_s, added.flops_per_s, added.bytes_per_s) == pytest.approx(
        (1e-3, 7e10, 7e9)
    )
    np.testing.assert_allclose(added.seconds(steps.flops, steps.moved_bytes), seconds)
    larger = fit_roofline(steps)
    assert np.abs(larger.seconds(steps.flops, steps.moved_bytes) / seconds - 1).mean() > 0.02
    assert max(each.decode for each in held_out(steps, overlaps=False)) < 1e-6


def test_a_few_disturbed_steps_do_not_bend_the_fit():
    """Another program may hold the machine for some steps; squared errors would follow them."""
    steps = steps_of(TRUE)
    steps.seconds[::6] *= 4
    found = fit_roofline(steps)
    assert found.flops_per_s == pytest.approx(TRUE.flops_per_s, rel=0.02)
    assert found.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.02)


def test_least_squares_without_negative_numbers_agrees_with_scipy():
    """The small solver enumerates sets of unknowns; SciPy's is an active-set method."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        matrix, target = rng.normal(size=(8, 3)), rng.normal(size=8)
        np.testing.assert_allclose(
            nonnegative(matrix, target), nnls(matrix, target)[0], atol=1e-9
        )


def test_intervals_hold_the_true_numbers_and_narrow_with_less_noise():
    """Noisy measurements: 95 % intervals hold the truth in most of them."""
    n, held = n_cases(10, 20), {name: 0 for name in RATES}
    widths = {}
    for noise in (0.05, 0.005):
        for seed in range(n):
            steps = steps_of(TRUE, noise=noise, seed=seed)
            found = intervals(steps, fit_roofline(steps), seed)
            for name, (low, high) in found.items():
                held[name] += low <= getattr(TRUE, name) <= high
            widths[noise] = found["bytes_per_s"][1] - found["bytes_per_s"][0]
    assert min(held.values()) >= 0.75 * 2 * n, held  # 95 % if they were exact
    assert widths[0.005] < widths[0.05] / 3


def test_the_error_on_a_shape_is_that_of_a_fit_to_the_others():
    """One shape runs at half the speed of the other: each fit is off by the factor 2."""
    steps = steps_of(TRUE)
    slow = steps.shape == SHAPES[1]
    steps.seconds[slow] *= 2
    first, second = held_out(steps)
    assert (first.shape, first.fitted_to) == (SHAPES[0], (SHAPES[1],))
    assert (second.shape, second.fitted_to) == (SHAPES[1], (SHAPES[0],))
    for phase in ("prefill", "decode"):
        assert getattr(first, phase) == pytest.approx(1.0, abs=0.01)  # twice too slow
        assert getattr(second, phase) == pytest.approx(0.5, abs=0.005)  # half of the time
    assert held_out(steps.take(slow)) == []


def test_a_rate_that_limits_no_step_is_the_largest_one_seen():
    """Without a step that memory limits, the bandwidth is only known to be no lower."""
    steps = steps_of(Roofline(1e-5, 1e9, 1e13))
    found = with_rates_seen(fit_roofline(steps), steps)
    assert found.flops_per_s == pytest.approx(1e9, rel=1e-3)
    assert found.bytes_per_s >= (steps.moved_bytes / steps.seconds).max() * (1 - 1e-9)
    bare = with_rates_seen(Roofline(1e-5, 1e9, np.inf), steps)
    assert bare.bytes_per_s == (steps.moved_bytes / steps.seconds).max()
    assert bare.flops_per_s == 1e9


def test_work_of_a_step_by_hand():
    """A prefill of 2 x 3 tokens on 5 cached ones, counted by hand in numbers of 4 bytes."""
    shape = BlockShape("tiny", hidden=8, n_heads=4, n_kv_heads=2, head_dim=2, ffn=16)
    weights = 8 * 8 * 2 + 2 * 8 * 4 + 3 * 8 * 16  # q and out, k and v, gate, up and down
    assert shape.n_weights == weights
    step = next(s for s in grid(quick=False) if s.phase == "prefill")
    step = type(step)("prefill", batch=2, tokens=3, context=5)
    flops, moved = step.work(shape, 4)
    pairs = 2 * (6 + 7 + 8)  # each token sees itself and all before
    assert flops == 2 * weights * 6 + 4 * 4 * 2 * pairs
    kv = 2 * 2 * 2 * 4  # bytes of a token: keys and values of two heads
    assert moved == 4 * weights + 2 * kv * 8 + 6 * 2 * 8 * 4
    kv_numbers = 2 * 2 * 8 * 2 * 2
    expanded, mask = 2 * 2 * 8 * 8, 2 * 3 * 8
    largest = 6 * (3 * 8 + 6 * 8 + 4 * 4)  # attention; the MLP has 2 * 8 + 4 * 16
    numbers = 3 * (weights + kv_numbers) + largest + expanded + mask
    assert need_bytes(shape, step, 3, 4) == 4 * numbers
    decode = type(step)("decode", batch=2, tokens=1, context=8)  # keys are read where they are
    largest = 2 * (3 * 8 + 6 * 8 + 4 * 4)
    assert need_bytes(shape, decode, 3, 4) == 4 * (3 * (weights + kv_numbers) + largest)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama-3-9b", "unknown model 'llama-3-9b'; did you mean llama-3-8b"),
        ("mixtral-8x7b", "must have a gated MLP without experts"),
        ("phi-2", "must have a gated MLP without experts"),
        ("64:4:3:16:128", "n_heads must be a multiple of n_kv_heads = 3, got 4"),
        ("64:4:2:15:128", "head_dim must be even, got 15"),
        ("64:4:2:x:128", "head_dim must be a whole number, got 'x'"),
        ("64:0:2:16:128", "n_heads must be at least 1, got 0"),
    ],
)
def test_a_wrong_shape_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_shape(text)


@pytest.mark.parametrize(
    ("name", "device", "threads", "expected"),
    [("desk", "cpu", 1, "desk-1-thread"), ("desk", "cpu", 8, "desk-8-threads"),
     ("desk-8-threads", "cpu", 8, "desk-8-threads"), ("desk", "cuda", 8, "desk")],
)  # fmt: skip
def test_a_cpu_is_named_with_its_threads(name, device, threads, expected):
    """Plans and exports know a CPU by its name."""
    machine = Machine(machine="AMD EPYC", system="Linux", device=device, dtype="float32",
                      threads=threads, torch="2", date="2026-11-29")  # fmt: skip
    assert with_threads(name, machine) == expected


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1]])
def test_the_form_is_that_of_the_machine(shapes):
    """Times of either form, 5 % of noise: the sum is taken for a machine that has it alone."""
    steps = steps_of(TRUE, shapes)
    rng = np.random.default_rng(1)
    for overlaps in (True, False):
        true = replace(TRUE, overlaps=overlaps)
        seconds = true.seconds(steps.flops, steps.moved_bytes)
        noisy = seconds * np.exp(0.05 * rng.standard_normal(len(seconds)))
        assert choose_form(replace(steps, seconds=noisy)) == overlaps
