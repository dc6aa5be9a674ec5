"""Commands that put the simulated load on a server, and measure it."""

from __future__ import annotations

import shlex

from hypsolve.planning.exporters.layout import BenchmarkLoad
from hypsolve.planning.exporters.shell import command


def vllm(load: BenchmarkLoad, address: str) -> list[str]:
    """Return the lines of ``vllm bench serve``, which measures any OpenAI-compatible server."""
    return [_what(load), _vllm(load, address)]


def sglang(load: BenchmarkLoad, address: str) -> list[str]:
    """Return the lines of ``sglang.bench_serving``.

    A range ratio of 1 gives all requests one length. Random ids need no download, and prompts
    sent as ids keep their length.
    """
    return [
        _what(load),
        command(
            "python -m sglang.bench_serving --backend sglang --model MODEL",
            f"--base-url {shlex.quote(address)}",
            "--dataset-name random-ids --tokenize-prompt",
            f"--random-input-len {load.prompt_tokens} --random-output-len {load.output_tokens}",
            "--random-range-ratio 1",
            _arrivals(load, "--request-rate", "--max-concurrency"),
            f"--num-prompts {load.n_requests}",
        ),
    ]


def llama_cpp(load: BenchmarkLoad, address: str, flags: str, n_parallel: int) -> list[str]:
    """Return the lines that measure ``llama-server``, and one full batch without a server."""
    users = n_parallel if load.users is None else min(load.users, n_parallel)
    return [
        _what(load),
        _vllm(load, address, backend="openai"),
        "# without a server: the speed of one full batch (stop llama-server before)",
        command(
            "llama-batched-bench",
            flags,
            f"-npp {load.prompt_tokens} -ntg {load.output_tokens} -npl {users}",
        ),
    ]


def genai_perf(load: BenchmarkLoad, address: str = "localhost:8000") -> str:
    """Return the command of GenAI-Perf, for any OpenAI-compatible server."""
    return command(
        "genai-perf profile -m MODEL --tokenizer MODEL --endpoint-type completions --streaming",
        f"--url {shlex.quote(address)}",
        f"--synthetic-input-tokens-mean {load.prompt_tokens} --synthetic-input-tokens-stddev 0",
        f"--output-tokens-mean {load.output_tokens} --output-tokens-stddev 0",
        "--extra-inputs ignore_eos:true",
        _arrivals(load, "--request-rate", "--concurrency"),
        f"--request-count {load.n_requests}",
    )


def commented(load: BenchmarkLoad) -> list[str]:
    """Return the benchmark as comments, for what is no server of its own."""
    return [_what(load, ", behind a server that speaks OpenAI's API"), f"# {genai_perf(load)}"]


def _vllm(load: BenchmarkLoad, address: str, backend: str = "vllm") -> str:
    return command(
        f"vllm bench serve --backend {backend} --model MODEL --base-url {shlex.quote(address)}",
        "--dataset-name random",
        f"--random-input-len {load.prompt_tokens} --random-output-len {load.output_tokens}",
        "--ignore-eos",
        _arrivals(load, "--request-rate", "--max-concurrency"),
        f"--num-prompts {load.n_requests}",
        "--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,95,99",
    )


def _arrivals(load: BenchmarkLoad, rate: str, users: str) -> str:
    """Return the flag of the arrival rate, or of users who wait for their answers."""
    return f"{rate} {load.rate_per_s:.12g}" if load.users is None else f"{users} {load.users}"


def _what(load: BenchmarkLoad, where: str = "") -> str:
    return f"# benchmark of the simulated load, {load}{where}:"
