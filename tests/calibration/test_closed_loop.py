"""Forecasts of closed loops against sums of block times, and against each other."""

from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.calibration.closed_loop import deployment_of, fluid, forecast, simulated
from hypsolve.calibration.predictors import PREDICTORS
from hypsolve.calibration.rules import KV_QUEUE, PREFIX_CACHE, left_out, prompt_share
from hypsolve.calibration.runs import ServingRun
from hypsolve.problem import costs

RUN = ServingRun(
    gpu="h100_sxm", runtime="trtllm", model="meta-llama/Llama-3.1-8B", tensor_parallel=1,
    prompt_tokens=1024, output_tokens=128, concurrency=1, ttft_s=0.1, tpot_s=0.01,
)  # fmt: skip


def step_s(run, tokens, cached):
    """Seconds of a pass through all blocks, summed from the definition of a block's time."""
    deployment = deployment_of(run, hs.gpu(run.catalog_gpu))
    gpu = deployment.profile(deployment.network.tiers[0].nodes[0])
    total = 0.0
    for block in deployment.model.blocks:
        flops, moved = costs.step_work(block, tokens, cached)
        computed = 1 if block.last_token_only else tokens
        total += float(costs.step_s(gpu, flops, moved))
        total += float(costs.collectives_s(block, gpu, computed))
    return total


@pytest.mark.parametrize("degree", [1, 4])
def test_one_user_waits_for_a_prefill_and_for_each_pass(degree):
    """Both forecasts of a single user are sums of block times, for nothing is batched."""
    run = replace(RUN, tensor_parallel=degree)
    made = simulated(run, hs.gpu("h100"))
    assert made.ttft_s == pytest.approx(step_s(run, 1024, 0), rel=1e-9)
    passes = [step_s(run, 1, 1024 + i) for i in range(127)]
    assert made.tpot_s == pytest.approx(sum(passes) / 127, rel=1e-9)
    assert fluid(run, hs.gpu("h100")).tokens_per_s == pytest.approx(made.tokens_per_s, rel=0.02)


@pytest.mark.parametrize("concurrency", [4, 32])
def test_the_fluid_model_agrees_with_the_simulation_of_many_users(concurrency):
    """Two independent ways to the same number: means, and events one by one."""
    run = replace(RUN, concurrency=concurrency, output_tokens=256)
    a, b = fluid(run, hs.gpu("h100")), simulated(run, hs.gpu("h100"))
    assert a.tpot_s == pytest.approx(b.tpot_s, rel=0.05)
    assert a.tokens_per_s == pytest.approx(b.tokens_per_s, rel=0.05)


@pytest.mark.parametrize("predict", PREDICTORS.values(), ids=PREDICTORS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gpu": "tpu"}, "GPU 'tpu' is not in the catalogue"),
        ({"model": "own/model"}, "model 'own/model' is not in the catalogue"),
        ({"model": "meta-llama/Llama-3.1-70B"}, "cannot be deployed: "),
        ({"tensor_parallel": 3}, "cannot be deployed: "),
    ],
)
def test_what_cannot_be_predicted_has_a_reason(predict, change, why):
    """A row of an unseen server must not stop the rows after it."""
    made, other = predict([replace(RUN, **change), RUN])
    assert made.reason.startswith(why)
    assert made.tpot_s != made.tpot_s  # nan
    assert not other.reason and other.tpot_s > 0


def test_prompts_faster_than_the_chip_are_left_out():
    """A closed form: 8.03e9 - embedding weights, 2 FLOPs each, at 989.4 TFLOP/s."""
    seconds = 2 * 1024 * 6.98e9 / 989.4e12
    assert prompt_share(replace(RUN, ttft_s=seconds)) == pytest.approx(1, rel=0.03)
    assert left_out(replace(RUN, ttft_s=seconds)) == PREFIX_CACHE
    assert left_out(replace(RUN, ttft_s=2 * seconds)) == ""


def test_long_waits_for_kv_cache_are_left_out():
    """64 users of 16k tokens hold 137 GB of KV cache; one H100 has 80 GB."""
    waits = replace(RUN, prompt_tokens=16000, concurrency=64, ttft_s=30.0, tpot_s=0.1)
    assert left_out(waits) == KV_QUEUE
    assert left_out(replace(waits, concurrency=2)) == ""
    waits_little = replace(waits, prompt_tokens=2000, output_tokens=14000, ttft_s=1.9)
    assert left_out(waits_little) == ""
    assert left_out(replace(waits_little, ttft_s=2.1)) == KV_QUEUE


def test_a_forecast_that_fails_for_another_reason_is_not_hidden():
    """Only wrong names and deployments that cannot be become reasons."""

    def broken(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        forecast(RUN, broken, hs.gpu("h100"))
