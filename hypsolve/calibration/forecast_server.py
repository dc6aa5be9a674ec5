"""`forecast_server`: what a server serves in a closed loop, with its held-out error."""

from __future__ import annotations

from dataclasses import dataclass

from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.servers import catalog_fit, describe_errors, fitted_servers
from hypsolve.problem import validation as valid


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerForecast:
    """Forecast of a server by its fitted coefficients.

    Attributes
    ----------
    ttft_s, tpot_s : float
        Mean time to first token, and mean time per output token after it, in seconds.
    tokens_per_s : float
        Output tokens of all users per second.
    expected_error : dict of str to float or None
        Mean relative errors (0.05 is 5 %) of ``tpot``, ``tokens_per_s`` and ``ttft`` on
        measured runs that the coefficients had not seen: of other lengths if this model was
        measured on this server, else of other models. None if no run of this GPU and runtime
        was measured.
    """

    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    expected_error: dict[str, float] | None

    def __str__(self) -> str:
        if self.expected_error is None:
            error = "not validated on this GPU and runtime"
        else:
            error = f"expected error: {describe_errors(self.expected_error)}"
        return (
            f"TTFT {self.ttft_s:.3g} s, {1e3 * self.tpot_s:.3g} ms per output token,"
            f" {self.tokens_per_s:.4g} tokens/s; {error}"
        )


def forecast_server(
    gpu: str,
    runtime: str,
    model: str,
    *,
    weights: str = "bf16",
    tensor_parallel: int = 1,
    prompt_tokens: int,
    output_tokens: int,
    users: int,
) -> ServerForecast:
    """Forecast what one server serves to users who send their next request at once.

    Parameters
    ----------
    gpu, runtime, model : str
        Names in the catalogue, or as tables of measured runs write them (``h100_sxm``,
        ``trtllm``, ``meta-llama/Llama-3.1-8B``).
    weights : str
        Format of the weights.
    tensor_parallel : int
        GPUs of one machine that compute as one.
    prompt_tokens, output_tokens : int
        Tokens of every request.
    users : int
        Users of the closed loop.

    Returns
    -------
    ServerForecast

    Raises
    ------
    ValueError, TypeError
        If the catalogue does not know a name, a number is no positive whole number, or the
        model and a request do not fit.

    Examples
    --------
    >>> made = forecast_server("h100", "vllm", "llama-3.1-70b", weights="fp8",
    ...     tensor_parallel=4, prompt_tokens=1024, output_tokens=1024, users=32)
    >>> made.expected_error["tpot"] < 0.1 < 1 / made.tpot_s
    True
    >>> str(forecast_server("l4", "vllm", "qwen3-4b", prompt_tokens=512, output_tokens=128,
    ...     users=8)).endswith("not validated on this GPU and runtime")
    True
    """
    owner = "forecast_server"
    for name, text in (("gpu", gpu), ("runtime", runtime), ("model", model)):
        valid.of_type(owner, name, text, str)
    valid.of_type(owner, "weights", weights, str)
    numbers = {"tensor_parallel": tensor_parallel, "prompt_tokens": prompt_tokens,
               "output_tokens": output_tokens, "users": users}  # fmt: skip
    for name, number in numbers.items():
        valid.whole(owner, name, number, minimum=1, maximum=2**40)
    run = ServingRun(
        gpu=gpu, runtime=runtime, model=model, weights=weights,
        tensor_parallel=tensor_parallel, prompt_tokens=prompt_tokens,
        output_tokens=output_tokens, concurrency=users, ttft_s=1.0, tpot_s=1.0,
    )  # fmt: skip
    ttft_s, tpot_s, tokens_per_s = (float(each[0]) for each in catalog_fit().forecast([run]))
    server = fitted_servers().get((run.catalog_gpu, run.catalog_runtime))
    errors = None
    if server is not None and run.peak_gpu == run.catalog_gpu:
        is_seen = run.catalog_model in server.models
        errors = server.new_lengths if is_seen else server.new_groups
    return ServerForecast(
        ttft_s=ttft_s, tpot_s=tpot_s, tokens_per_s=tokens_per_s, expected_error=errors
    )
