"""Calibration: known profiles are found again, and what runs do not say is admitted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.calibration.benchmarks import Benchmark
from hypsolve.calibration.benchmarks_run import BenchmarkRun
from hypsolve.calibration.calibrate import (
    NUMBERS,
    PRIOR,
    _Problem,
    calibrate,
    describe_errors,
    prior_widths,
)
from hypsolve.calibration.calibrate_forecast import Server, SteadyStates, simulated
from hypsolve.problem import costs

MODEL, L4 = hs.model("llama-3-8b"), hs.gpu("l4")
SERVER = Server(MODEL, hs.runtime("vllm", gpus=[L4]))
TRUE = replace(L4, t0_s=90e-6, flops_per_s=0.7 * L4.flops_per_s, bytes_per_s=2e11)
LOADS = [(512, 64, 1), (512, 64, 8), (1024, 32, 4), (256, 128, 16), (2048, 16, 2)]


def run_of(load, times=(None, None), **more):
    prompt, output, users = load
    return BenchmarkRun(
        label=str(load), model="llama-3-8b", prompt_tokens=prompt, output_tokens=output,
        users=users, ttft_s=times[0], tpot_s=times[1], **more,
    )  # fmt: skip


def benchmark(runs):
    return Benchmark(Path("made.json"), "vllm bench serve", tuple(runs))


def measured(gpu=TRUE, server=SERVER, loads=LOADS):
    """Runs whose times a simulation of a server with the true profile gives."""
    return [run_of(load, simulated(server, gpu, run_of(load))) for load in loads]


def fit(runs, **given):
    arguments = {"gpu": L4, "model": MODEL, "runtime": SERVER.runtime}
    return calibrate(benchmark(runs), **arguments | given)


def test_a_server_that_differs_from_the_catalogue_is_found():
    """Five simulated runs of a slower card: the forecast of before is off, the new one fits."""
    found = fit(measured())
    assert found.before.tpot > 0.1
    assert found.after.tpot < 0.03
    assert found.after.ttft < 0.1
    assert found.held_out.n_runs == 5
    assert found.held_out.tpot < 0.06
    assert found.gpu.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.1)
    assert found.gpu.flops_per_s == pytest.approx(TRUE.flops_per_s, rel=0.15)
    for name, (low, high) in found.intervals.items():
        assert low < getattr(TRUE, name) < high, name
    # a network file has one size of memory: what the server sees of the card
    assert found.gpu.memory_bytes == L4.memory_bytes - L4.hidden_bytes
    assert found.gpu.hidden_bytes == 0
    profile = found.profile()
    assert profile.errors["before"]["tpot"] == found.before.tpot
    assert describe_errors(found.held_out) in found.gpu.source


@pytest.mark.parametrize("request_s", [0.15, 0.0])
def test_seconds_per_request_are_found_where_there_are_any(request_s):
    """Five simulated runs of a server that adds them to each time to first token."""
    runs = [run_of(load, simulated(SERVER, TRUE, run_of(load), request_s)) for load in LOADS]
    found = fit(runs)
    low, high = found.request_interval_s
    assert found.request_s == pytest.approx(request_s, rel=0.15, abs=1e-3)
    assert low <= request_s <= high
    assert found.after.ttft < 0.1 and found.held_out.ttft < 0.25
    assert found.gpu.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.1)
    assert found.to_dict()["intervals"]["request_s"] == [low, high]
    measured = found.profile().measured
    assert measured.get("request_ms", 0) == pytest.approx(1e3 * found.request_s, abs=0.06)


def test_one_time_to_first_token_does_not_identify_seconds_per_request():
    """It could be the compute rate as well; tests without a server have no such seconds."""
    times = (2.0, 0.09)
    assert fit([run_of(LOADS[0], times)]).request_s == 0
    kernels = [run_of((p, 1, 1), (s, None), is_kernel_time=True)
               for p, s in ((64, 0.2), (512, 0.4))]  # fmt: skip
    assert fit(kernels, runtime=hs.runtime("llama.cpp")).request_s == 0


def test_the_forecast_of_before_is_that_of_the_catalogue():
    """Measured times that the catalogue itself forecasts: nothing was off, nothing moves."""
    found = fit(measured(gpu=replace(L4, memory_bytes=L4.memory_bytes - L4.hidden_bytes,
                                     visible_bytes=None)))  # fmt: skip
    assert found.before.tpot == pytest.approx(0, abs=1e-9)
    for name in NUMBERS:
        assert getattr(found.gpu, name) == pytest.approx(getattr(L4, name), rel=1e-3)


def test_decoding_alone_says_nothing_about_the_compute_rate():
    """`llama-bench` without prompts: the FLOP rate stays, and the profile says that it does."""
    runs = [
        run_of((0, 129, 1), (None, seconds), cached_tokens=depth, is_kernel_time=True)
        for depth, seconds in ((0, 0.1), (2048, 0.11))
    ]
    found = fit(runs, runtime=hs.runtime("llama.cpp"))
    assert "flops_per_s" in found.unseen
    assert found.gpu.flops_per_s == pytest.approx(L4.flops_per_s, rel=1e-3)
    low, high = found.intervals["flops_per_s"]
    assert high / low == pytest.approx(np.exp(2 * 1.96 * PRIOR[1]), rel=0.01)  # the prior's
    assert "bytes_per_s" not in found.unseen
    assert found.held_out.n_runs == 0 and np.isnan(found.held_out.tpot)
    assert "held out: unknown, too few runs" in found.gpu.source


def test_intervals_hold_the_truth_in_most_noisy_benchmarks():
    """Five runs with 3 % noise, made by the closed form that is fitted."""
    runs = [run_of(load) for load in LOADS]
    states = SteadyStates(SERVER, TRUE, runs)
    exact = states.seconds(TRUE)
    held = dict.fromkeys(NUMBERS, 0)
    for seed in range(30):
        noisy = exact * np.exp(0.03 * np.random.default_rng(seed).standard_normal(exact.shape))
        made = [run_of(load, tuple(times)) for load, times in zip(LOADS, noisy, strict=True)]
        problem = _Problem(SERVER, L4, made, states.seconds(L4))
        ranges, _ = problem.intervals(problem.fit())
        for name, (low, high) in ranges.items():
            held[name] += low <= getattr(TRUE, name) <= high
    assert min(held.values()) >= 26, held  # of 30


def test_a_fit_is_a_minimum_of_what_it_minimises():
    """Moving any number a little, either way, is no better."""
    problem = _Problem(
        SERVER, L4, measured(), np.array([simulated(SERVER, L4, r) for r in measured()])
    )
    x = problem.fit()
    which = np.arange(len(LOADS))

    def cost(at):
        errors = problem.errors(at, which)
        return errors @ errors + ((at / prior_widths(which)) ** 2).sum()

    bounded = 3 if x[3] == 0 else 4  # seconds per request are not negative
    for step in np.vstack([np.eye(4)[:bounded], -np.eye(4)[:bounded]]):
        assert cost(x + 1e-3 * step) >= cost(x) * (1 - 1e-9)


@pytest.mark.parametrize("load", [(500, 100, 1), (300, 2, 1)])
def test_one_user_takes_the_seconds_of_a_request(load):
    """A single request has a closed form of its own, which sums over its contexts."""
    runtime = hs.runtime("ideal", chunk_tokens=None)
    prompt, output, _ = load
    ttft_s, tpot_s = SteadyStates(Server(MODEL, runtime), L4, [run_of(load)]).seconds(L4)[0]
    whole = sum(float(costs.service_s(b, L4, prompt, output)) for b in MODEL.blocks)
    first = sum(float(costs.service_s(b, L4, prompt, 1)) for b in MODEL.blocks)
    assert ttft_s == pytest.approx(first, rel=1e-9)
    assert tpot_s * (output - 1) == pytest.approx(whole - first, rel=2e-3)


def test_times_that_add_up_are_calibrated_as_such():
    """A core that computes and reads in turn: its own forecast is off by nothing."""
    core = replace(L4, overlaps=False, memory_bytes=L4.memory_bytes - L4.hidden_bytes,
                   visible_bytes=None)  # fmt: skip
    found = fit(measured(gpu=core), gpu=core)
    assert found.before.tpot == pytest.approx(0, abs=1e-9)
    assert not found.gpu.overlaps
    exact = SteadyStates(SERVER, core, [run_of((512, 2, 1))]).seconds(core)[0]
    assert exact[0] == pytest.approx(simulated(SERVER, core, run_of((512, 2, 1)))[0], rel=0.02)


@pytest.mark.parametrize("load", LOADS)
def test_the_closed_form_is_near_the_simulation(load):
    """The fit corrects it by simulations, so it has to be near, not exact."""
    run = run_of(load)
    closed = SteadyStates(SERVER, L4, [run]).seconds(L4)[0]
    ttft_s, tpot_s = simulated(SERVER, L4, run)
    assert closed[1] == pytest.approx(tpot_s, rel=0.1)
    assert closed[0] == pytest.approx(ttft_s, rel=0.5)


def test_users_that_the_limits_keep_out_wait():
    """A request takes four times as long if 2 of 8 users may run, by Little's law."""
    runtime = replace(SERVER.runtime, max_num_seqs=2)
    two, eight = (run_of((512, 64, users)) for users in (2, 8))
    (two_s, eight_s) = SteadyStates(Server(MODEL, runtime), L4, [two, eight]).seconds(L4)
    assert eight_s[1] == pytest.approx(two_s[1])
    latency = [first + 63 * later for first, later in (two_s, eight_s)]
    assert latency[1] == pytest.approx(4 * latency[0])


def test_many_runs_are_held_out_by_halves_of_their_lengths():
    """Runs of one length stay together: another number of users is no new length."""
    loads = [(256 * i, 32, users) for i in range(1, 8) for users in (1, 8)]
    runs = [run_of(load, (0.1, 0.03)) for load in loads]
    problem = _Problem(SERVER, L4, runs, np.ones((len(runs), 2)))
    assert problem.parts() == [i % 2 for i in range(7) for _ in range(2)]
    few = _Problem(SERVER, L4, runs[:4], np.ones((4, 2)))
    assert few.parts() == [0, 1, 2, 3]


def test_wrong_arguments_are_refused():
    one = run_of((512, 64, 1), (0.1, 0.03), tensor_parallel=2)
    with pytest.raises(ValueError, match="interconnect must be given where several GPUs"):
        fit([one])
    with pytest.raises(ValueError, match=r"tensor_parallel must be one number, got \[1, 2\]"):
        fit([one, run_of((512, 64, 1), (0.1, 0.03))])
    with pytest.raises(TypeError, match="calibrate: gpu must be a GpuProfile, got 'l4'"):
        fit([one], gpu="l4")
    with pytest.raises(TypeError, match="unknown argument 'gpus'; did you mean gpu"):
        fit([one], gpus=L4)
    with pytest.raises(ValueError, match=r"model must fit on 1 GPU of .* got llama-3-70b"):
        fit([run_of((512, 64, 1), (0.1, 0.03))], model=hs.model("llama-3-70b"))


def test_no_rate_is_above_the_data_sheet():
    """One run of a server three times as fast as an L4 can be: 442 GB/s were fitted of 300."""
    fast = replace(L4, t0_s=10e-6, flops_per_s=3e14, bytes_per_s=9e11)
    found = fit(measured(fast, loads=[(512, 64, 16)]))
    assert found.gpu.bytes_per_s <= 300e9 and found.gpu.flops_per_s <= 121e12
    assert "bytes_per_s" in found.at_peak
    assert max(found.intervals["bytes_per_s"]) <= 300e9
    assert found.gpu.bytes_per_s == pytest.approx(300e9, rel=1e-3)
    # of a GPU whose data sheet is not known, nothing is
    unknown = fit(measured(fast, loads=[(512, 64, 16)]), gpu=replace(L4, name="mine"))
    assert unknown.at_peak == () and unknown.gpu.bytes_per_s > 300e9


def test_few_runs_move_the_numbers_less_than_many():
    """A fit to one run stays nearer to the catalogue than a fit to ten equal ones."""
    one, ten = (fit(measured(loads=[LOADS[1]] * n)) for n in (1, 10))
    logs = [
        [np.log(getattr(found.gpu, name) / getattr(L4, name)) for name in NUMBERS]
        for found in (one, ten)
    ]
    moved = [float(np.square(np.array(each) / PRIOR).sum()) for each in logs]
    assert 0 < moved[0] < 0.95 * moved[1]
    assert one.after.tpot > 1.5 * ten.after.tpot
    assert one.before.tpot > one.after.tpot
