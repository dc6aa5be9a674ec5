"""Costs of servers: iterations by hand, closed loops by conservation, fits by known answers."""

from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.calibration.features import features_of
from hypsolve.calibration.fit import FIXED, Fit, fit_servers
from hypsolve.calibration.rules import fit_for, prompt_share
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.server_costs import (
    NAMES,
    TYPICAL,
    ServerCosts,
    closed_loop,
    iteration_s,
)

RUN = ServingRun(
    gpu="h100_sxm", runtime="vllm", model="meta-llama/Llama-3.1-8B", tensor_parallel=1,
    prompt_tokens=1024, output_tokens=256, concurrency=16, ttft_s=0.1, tpot_s=0.01,
)  # fmt: skip
LENGTHS = [(512, 128), (512, 512), (1024, 256), (2048, 128), (2048, 512), (4096, 256)]


def column(costs):
    return costs.to_array()[:, None]


def made_by(costs, runs):
    """Return the runs with the times that a server of these costs has."""
    arrays = np.repeat(column(costs), len(runs), axis=1)
    ttft_s, tpot_s, _ = closed_loop(features_of(runs), arrays)
    return [
        replace(run, ttft_s=float(a), tpot_s=float(b))
        for run, a, b in zip(runs, ttft_s, tpot_s, strict=True)
    ]


def settings(**changes):
    return [
        replace(RUN, prompt_tokens=p, output_tokens=o, concurrency=users,
                tensor_parallel=degree, **changes)
        for p, o in LENGTHS for users in (4, 16, 64) for degree in (1, 4)
    ]  # fmt: skip


SERVER = replace(
    TYPICAL, gemm_16=0.66, read_16=0.92, layer_s=5e-5, kv_read=0.6, state_passes=14.0,
    all_reduce_factor=1.3, iteration_s=5e-4,
)  # fmt: skip


def test_an_iteration_is_the_sum_of_its_kernels():
    """By hand, from the shape of Llama-3.1-8B, with 8 decode tokens and a prompt of 1,024."""
    c, f = TYPICAL, features_of([RUN])
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    gemm_s = 1032 * 2 * matrices / (c.gemm_16 * 989.4e12)
    read_s = 2 * matrices / (c.read_16 * 3.35e12)
    pairs = 1024 * 1025 / 2
    attention_s = 32 * 4 * 4096 * pairs / (c.attention * 989.4e12)
    kv_s = 8 * 32 * 2 * 1024 * 2 * (1024 + 128) / (c.kv_read * 3.35e12)
    states_s = 1032 * c.state_passes * 32 * 4096 * 2 / 3.35e12
    head_s = max(9 * 2 * 128256 * 4096 / (c.gemm_16 * 989.4e12),
                 2 * 128256 * 4096 / (c.read_16 * 3.35e12))  # fmt: skip
    fixed_s = 32 * (c.layer_s + c.mixed_layer_s) + c.iteration_s + 8 * c.token_s
    seconds = max(gemm_s, read_s) + attention_s + kv_s + states_s + head_s + fixed_s
    eight, one, prompt = (np.array([x]) for x in (8.0, 1.0, 1024.0))
    assert iteration_s(f, column(c), eight, one, prompt)[0] == pytest.approx(seconds, rel=1e-9)
    zero = np.zeros(1)
    alone = read_s + kv_s + states_s * 8 / 1032 + head_s + fixed_s - 32 * c.mixed_layer_s
    assert iteration_s(f, column(c), eight, zero, zero)[0] == pytest.approx(alone, rel=1e-3)


def test_groups_divide_the_work_and_add_all_reduces():
    """Four GPUs read a quarter each; the all-reduces are those of the interconnect's table."""
    four = replace(RUN, tensor_parallel=4)
    a, b = features_of([RUN]), features_of([four])
    assert b.weight_bytes[0] == a.weight_bytes[0] / 4
    assert b.state_bytes_per_token[0] == a.state_bytes_per_token[0]
    lines = hs.interconnect("nvlink4", "h100").all_reduce(4, "vllm")
    ones = np.array([8.0]), np.zeros(1), np.zeros(1)
    more = iteration_s(b, column(replace(TYPICAL, all_reduce_factor=2.0)), *ones)
    less = iteration_s(b, column(TYPICAL), *ones)
    assert (more - less)[0] == pytest.approx(64 * lines.seconds(8 * 4096 * 2), rel=1e-9)


def test_bits_decide_rates_and_kv_cache():
    """FP8 matrices have twice the peak on H100; TensorRT-LLM keeps their KV cache in 8 bits."""
    plain, small = (
        features_of([replace(RUN, runtime="trtllm", weights=w)]) for w in ("", "fp8")
    )
    assert small.gemm_flops_per_s[0] == 2 * plain.gemm_flops_per_s[0]
    assert small.kv_bytes_per_token[0] == plain.kv_bytes_per_token[0] / 2
    assert (
        features_of([replace(RUN, weights="fp8")]).kv_bytes_per_token[0]
        == (plain.kv_bytes_per_token[0])
    )


def test_one_user_decodes_alone():
    """Without others, the time per token is that of an iteration with one decode token."""
    f = features_of([replace(RUN, concurrency=1)])
    ttft_s, tpot_s, rate = closed_loop(f, column(SERVER))
    one, zero = np.ones(1), np.zeros(1)
    assert tpot_s[0] == pytest.approx(iteration_s(f, column(SERVER), one, zero, zero)[0])
    first = iteration_s(f, column(SERVER), one, one, np.array([1024.0]))[0]
    assert ttft_s[0] == pytest.approx(SERVER.request_s + SERVER.first_factor * first)
    assert rate[0] == pytest.approx(256 / (ttft_s[0] + 255 * tpot_s[0]))


def test_requests_of_one_token_have_finite_times():
    """A table may hold prefill alone; the time per token is then that of one more pass."""
    f = features_of([replace(RUN, output_tokens=1, concurrency=64)])
    made = closed_loop(f, column(SERVER))
    assert all(0 < float(x[0]) < 1e6 for x in made) and made[1][0] < 10


def test_a_loop_conserves_prompts():
    """In the time of a request, the prompts of all others are computed once."""
    costs = replace(SERVER, in_step=1e-9, request_s=1e-9, first_factor=1e-9)
    run = replace(RUN, concurrency=33, output_tokens=129)
    f = features_of([run])
    _, tpot_s, _ = closed_loop(f, column(costs))
    b, zero, one = np.array([33.0]), np.zeros(1), np.ones(1)
    alone = iteration_s(f, column(costs), b, zero, zero)[0]
    mixed = iteration_s(f, column(costs), b, one, np.array([1024.0]))[0]
    assert 128 * tpot_s[0] == pytest.approx(96 * alone + 32 * mixed, rel=1e-6)


def test_users_beyond_the_kv_cache_wait():
    """By Little's law, all users' latency is that of the running ones in proportion."""
    run = replace(RUN, prompt_tokens=16000, output_tokens=4000, concurrency=64)
    f = features_of([run])
    assert 10 < f.running[0] < 40
    ttft_s, tpot_s, rate = closed_loop(f, column(SERVER))
    assert ttft_s[0] > 10
    assert rate[0] * (ttft_s[0] + 3999 * tpot_s[0]) == pytest.approx(64 * 4000)


def test_a_fit_forecasts_lengths_that_it_did_not_see():
    """Runs of a known server: half of the lengths tell the others within 2 %."""
    runs = made_by(SERVER, settings())
    seen = [run for run in runs if (run.prompt_tokens, run.output_tokens) in LENGTHS[::2]]
    unseen = [run for run in runs if run not in seen]
    ttft_s, tpot_s, rate = fit_servers(seen).forecast(unseen)
    assert tpot_s == pytest.approx([run.tpot_s for run in unseen], rel=0.02)
    assert rate == pytest.approx([run.tokens_per_s for run in unseen], rel=0.03)
    assert ttft_s == pytest.approx([run.ttft_s for run in unseen], rel=0.15)
    before = Fit({}, 0).forecast(unseen)[1]
    assert max(abs(before / np.array([run.tpot_s for run in unseen]) - 1)) > 0.1


def test_a_few_wrong_measurements_do_not_bend_a_fit():
    """One run in nine is three times too slow, as published tables have it."""
    runs = made_by(SERVER, settings())
    wrong = [replace(r, tpot_s=3 * r.tpot_s) if i % 9 == 0 else r for i, r in enumerate(runs)]
    _, tpot_s, _ = fit_servers(wrong).forecast(runs)
    errors = abs(tpot_s / np.array([run.tpot_s for run in runs]) - 1)
    assert errors.mean() < 0.03


def test_an_unseen_gpu_takes_what_its_runtime_and_all_share():
    """Constants of a runtime carry over; without any run, all is typical."""
    fit = fit_servers(made_by(SERVER, settings()))
    other = fit.costs("h200", "vllm")
    assert TYPICAL.layer_s < other.layer_s
    assert Fit({}, 0).costs("h200", "vllm").to_array() == pytest.approx(TYPICAL.to_array())
    assert Fit({}, 0).costs("h100", "sglang").in_step == pytest.approx(0.5)
    for name in FIXED:
        assert getattr(fit.costs("h100", "vllm"), name) == pytest.approx(getattr(TYPICAL, name))


def test_a_fit_on_top_of_another_starts_from_it():
    """A user's few runs change a fit of many, and none of them leaves it as it is."""
    base = fit_servers(made_by(SERVER, settings()))
    same = fit_servers([], base=base)
    assert same.costs("h100", "vllm") == base.costs("h100", "vllm")
    slower = replace(SERVER, layer_s=1e-4)
    few = made_by(slower, settings()[:6])
    made = fit_servers(few, base=base).forecast(few)[1]
    assert made == pytest.approx([run.tpot_s for run in few], rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_coefficients_are_named(name):
    with pytest.raises(ValueError, match=f"server costs: {name} must be positive"):
        replace(TYPICAL, **{name: -1.0})


def test_fits_leave_out_sets_that_cannot_be_trusted():
    """A prefix cache was on for all runs of a server; a setting measured twice must agree."""
    runs = made_by(SERVER, settings())
    assert fit_for(runs) == runs
    cached = [*runs, replace(runs[0], ttft_s=1e-3)]
    assert prompt_share(cached[-1]) > 1 and fit_for(cached) == []
    doubled = [*runs, replace(runs[0], tpot_s=1.5 * runs[0].tpot_s)]
    other = made_by(SERVER, settings(weights="fp8"))
    assert fit_for([*doubled, *other]) == other


def test_prompts_within_an_iteration_show_a_prefix_cache():
    """The time that all-reduces and KV cache need is not left for the FLOPs of prompts."""
    run = replace(RUN, tensor_parallel=8, prompt_tokens=8000, output_tokens=100)
    honest = made_by(SERVER, [run])[0]
    assert prompt_share(honest) < 0.9
    assert prompt_share(replace(honest, tpot_s=honest.tpot_s / 5)) > 0.9


def test_servers_can_be_written_down():
    """The catalogue keeps the coefficients by name."""
    from dataclasses import asdict

    assert ServerCosts(**asdict(SERVER)) == SERVER
