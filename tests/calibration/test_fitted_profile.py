"""Profiles with the coefficients of a server: iterations by `server_costs` and by `costs`."""

import numpy as np
import pytest

from hypsolve import catalog
from hypsolve.calibration.closed_loop import deployment_of, fluid, simulated
from hypsolve.calibration.features import features_of
from hypsolve.calibration.fitted_profile import fitted_profile
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.server_costs import closed_loop, iteration_s
from hypsolve.calibration.servers import catalog_fit
from hypsolve.problem import costs

CASES = [
    ("h100", "vllm", "llama-3.1-8b", "bf16", 1),
    ("h100", "vllm", "llama-3.1-70b", "fp8", 4),
    ("h100", "tensorrt-llm", "qwen3-32b", "fp8", 2),
    ("b200", "tensorrt-llm", "qwen3-32b", "nvfp4", 1),
    ("h200", "vllm", "mixtral-8x7b", "bf16", 2),
]


def run_of(gpu, runtime, model, weights, degree, users=16, prompt=1000, output=200):
    return ServingRun(
        gpu=gpu, runtime=runtime, model=model, weights=weights, tensor_parallel=degree,
        prompt_tokens=prompt, output_tokens=output, concurrency=users, ttft_s=1.0, tpot_s=1.0,
    )  # fmt: skip


def server(run):
    fitted = catalog_fit().costs(run.catalog_gpu, run.catalog_runtime)
    profile = catalog.gpu(run.catalog_gpu)
    return fitted, fitted_profile(profile, fitted, run.peak_gpu, run.catalog_weights)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("n_decode", "n_prompt"), [(1, 0), (24, 0), (8, 1000), (0, 1000)])
def test_iterations_take_the_seconds_of_the_closed_form(case, n_decode, n_prompt):
    """Decode tokens at the mean context, and one whole prompt."""
    run = run_of(*case)
    fitted, gpu = server(run)
    expected = iteration_s(
        features_of([run]), fitted.to_array()[:, None], np.array([float(n_decode)]),
        np.array([float(n_prompt > 0)]), np.array([float(n_prompt)]),
    )  # fmt: skip
    deployment = deployment_of(run, gpu)
    group = deployment.profile(deployment.network.tiers[0].nodes[0])
    total_s = 0.0
    for block in deployment.model.blocks:
        row = costs.step_costs(block, group)
        out = n_decode + (n_prompt > 0)
        tokens = out if block.last_token_only else n_decode + n_prompt
        used = 0.0
        if block.n_experts:
            used = 1 - (1 - block.experts_per_token / block.n_experts) ** tokens
        pairs, reach = n_prompt * (n_prompt + 1) / 2, n_decode * 1100
        total_s += row.fixed_s + row.mixed_s * (n_prompt > 0)
        total_s += max(row.compute_token_s * tokens, row.read_s + row.experts_s * used)
        total_s += row.token_s * tokens + row.prompt_pair_s * pairs + row.decode_pair_s * reach
        total_s += float(costs.collectives_s(block, group, tokens))
    # the host's seconds of a token are those of decode tokens there, and of all that come out
    host_s = group.operators.token_s * (n_prompt > 0)
    assert total_s - host_s == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("case", CASES[:2])
def test_forecasts_agree_with_the_closed_form_at_long_outputs(case):
    """Few prompts come between many decode passes: both forms nearly forget how they meet."""
    run = run_of(*case, users=8, prompt=256, output=800)
    fitted, gpu = server(run)
    _, tpot_s, tokens_per_s = closed_loop(features_of([run]), fitted.to_array()[:, None])
    for method in (simulated, fluid):
        made = method(run, gpu)
        assert made.tpot_s == pytest.approx(tpot_s[0], rel=0.02)
        assert made.tokens_per_s == pytest.approx(tokens_per_s[0], rel=0.03)
        assert made.ttft_s > fitted.request_s
