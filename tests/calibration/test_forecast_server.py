"""A forecast of one server: by the catalogue's coefficients, with the error that is known."""

import pytest

from hypsolve.calibration.forecast_server import forecast_server
from hypsolve.calibration.servers import catalog_fit, expected_error, fitted_servers

LOAD = {"prompt_tokens": 1024, "output_tokens": 256, "users": 16}


def test_more_users_raise_rate_and_latency():
    """Nothing is served faster because more wait; batches serve more tokens."""
    made = [
        forecast_server("h100", "vllm", "llama-3.1-8b", **(LOAD | {"users": users}))
        for users in (1, 4, 16, 64)
    ]
    for name in ("tpot_s", "tokens_per_s"):
        values = [getattr(each, name) for each in made]
        assert values == sorted(values)
    assert made[-1].tokens_per_s < 64 * made[0].tokens_per_s


def test_rate_and_latencies_belong_together():
    """In a closed loop, users are rate times latency."""
    made = forecast_server("h200", "vllm", "meta-llama/Llama-3.1-8B", **LOAD)
    latency_s = made.ttft_s + 255 * made.tpot_s
    assert made.tokens_per_s / 256 * latency_s == pytest.approx(16)


def test_the_error_is_that_of_what_was_not_seen():
    """A measured model has the error of new lengths, another one that of new models."""
    server = fitted_servers()["h100", "tensorrt-llm"]
    names = ("h100_sxm", "trtllm")
    seen = forecast_server(*names, "llama-3.1-8b", **LOAD)
    unseen = forecast_server(*names, "qwen3-8b", **LOAD)
    assert seen.expected_error == server.new_lengths
    assert unseen.expected_error == server.new_groups
    assert f"time per output token {server.new_groups['tpot']:.0%}" in str(unseen)
    assert forecast_server("gb200", "trtllm", "qwen3-32b", **LOAD).expected_error is None
    assert forecast_server("l40s", "vllm", "qwen3-8b", **LOAD).expected_error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "h101"}, "GPU 'h101' is not in the catalogue"),
        ({"users": 0}, "forecast_server: users must be at least 1, got 0"),
        ({"tensor_parallel": 3}, "tensor_parallel must be 1 or one of 2, 4, 8, got 3"),
        ({"model": "llama-3.1-70b"}, "need more memory than 1 GPUs have|memory"),
        ({"weights": "fp3"}, "weights 'fp3' are not in the catalogue"),
    ],
)
def test_what_cannot_be_forecast_is_refused(change, message):
    arguments = {"gpu": "h100", "runtime": "vllm", "model": "llama-3.1-8b", **LOAD, **change}
    with pytest.raises(ValueError, match=message):
        forecast_server(**arguments)


def test_coefficients_come_from_the_catalogue():
    """Forecasts use the numbers that the catalogue states."""
    stated = fitted_servers()["h100", "vllm"].costs
    assert catalog_fit().costs("h100", "vllm") == stated


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-8b"])
def test_errors_are_written_in_the_order_of_plans(model):
    """One order everywhere: time per output token, tokens/s, time to first token."""
    text = str(forecast_server("h100", "vllm", model, **LOAD)).partition("error: ")[2]
    words = ["time per output token", "tokens/s", "TTFT"]
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)
    plan = expected_error("h100", "vllm")
    assert [plan.index(word) for word in words] == sorted(plan.index(word) for word in words)
