"""Readers of benchmark files, on small files in the forms that each tool writes."""

import json

import pytest

from hypsolve.calibration.benchmarks import read_benchmark

VLLM = {
    "date": "20260917-120000", "endpoint_type": "openai", "backend": "openai", "label": None,
    "model_id": "meta-llama/Llama-3.1-8B-Instruct", "tokenizer_id": "x", "num_prompts": 40,
    "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, "duration": 20.0,
    "completed": 40, "failed": 0, "total_input_tokens": 40960, "total_output_tokens": 5120,
    "request_throughput": 2.0, "request_goodput": None, "output_throughput": 256.0,
    "total_token_throughput": 2304.0, "mean_ttft_ms": 190.9, "median_ttft_ms": 180.0,
    "std_ttft_ms": 20.0, "p99_ttft_ms": 300.0, "mean_tpot_ms": 7.9381, "median_tpot_ms": 7.9,
    "std_tpot_ms": 0.1, "p99_tpot_ms": 8.4, "mean_itl_ms": 7.93, "median_itl_ms": 7.8,
    "std_itl_ms": 1.0, "p99_itl_ms": 12.0,
}  # fmt: skip
LLAMA = {
    "build_commit": "8cf427ff", "build_number": 5163, "gpu_info": "NVIDIA GeForce RTX 4080",
    "backends": "CUDA", "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "model_type": "qwen2 7B Q4_K - Medium", "model_size": 4677120000, "n_batch": 2048,
    "n_ubatch": 512, "n_threads": 8, "use_mmap": True, "n_prompt": 512, "n_gen": 0,
    "n_depth": 0, "test_time": "2025-04-24T11:58:50Z", "avg_ns": 72135640,
    "stddev_ns": 1453752, "avg_ts": 7100.002165, "samples_ns": [74601900, 71632900],
}  # fmt: skip


def statistics(unit, average):
    return {"unit": unit, "avg": average, "p50": average, "std": 0.1}


GENAI = {
    "request_throughput": {"unit": "requests/sec", "avg": 17.2225},
    "request_latency": statistics("ms", 5767.43),
    "time_to_first_token": statistics("ms", 184.6378),
    "inter_token_latency": statistics("ms", 2.17673),
    "output_token_throughput": {"unit": "tokens/sec", "avg": 44190.56},
    "output_sequence_length": statistics("tokens", 2565.855),
    "input_sequence_length": statistics("tokens", 200.85),
    "input_config": {"model": ["ensemble"], "streaming": True, "concurrency": 100},
}
GENAI_CSV = """\
Metric,avg,min,max,p99,p95,p90,p75,p50,p25
Time To First Token (ms),"1,146.31",249.48,"3,485.23","3,457.97",1,1,1,640.07,286.52
Time To Second Token (ms),26.05,0.00,133.51,96.12,36.56,34.88,34.35,33.55,1.78
Request Latency (ms),"6,406.20","5,371.47","9,608.72",1,1,1,1,1,1
Inter Token Latency (ms),30.35,27.59,35.60,35.23,33.88,32.53,31.05,30.13,29.04
Output Sequence Length (tokens),174.45,164.00,187.00,1,1,1,1,1,1
Input Sequence Length (tokens),"3,000.05","2,999.00","3,001.00",1,1,1,1,1,1

Metric,Value
Output Token Throughput (per sec),261.25
Request Throughput (per sec),1.50
Request Count (count),20.00
"""
TABLE = """\
gpu,runtime,model,tensor_parallel,prompt_tokens,output_tokens,concurrency,ttft_ms,tpot_ms
h100,vllm,llama-3.1-8b,2,1024,128,8,190.898,7.9381
h100,vllm,llama-3.1-8b,2,1024,128,16,,9.7741
h100,vllm,llama-3.1-8b,2,1024,1,16,100,
l4,vllm,llama-3.1-8b,1,1024,128,16,500,30
"""
ONE = "\n".join(TABLE.splitlines()[:2])


def read(tmp_path, content, name="bench.json", **options):
    path = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return read_benchmark(path, **options)


def test_vllm_bench_serve(tmp_path):
    """Lengths are totals over completed requests; users are the limit of the closed loop."""
    found = read(tmp_path, VLLM)
    (run,) = found.runs
    assert (found.format, found.model) == ("vllm bench serve", VLLM["model_id"])
    assert (run.prompt_tokens, run.output_tokens, run.users) == (1024, 128, 8)
    assert (run.ttft_s, run.tpot_s) == (pytest.approx(0.1909), pytest.approx(7.9381e-3))
    assert found.left_out == ()


def test_results_that_vllm_appended_to_one_file(tmp_path):
    """`--append-result` writes an object in each line."""
    second = {**VLLM, "max_concurrency": 16, "completed": 80}
    found = read(tmp_path, f"{json.dumps(VLLM)}\n{json.dumps(second)}")
    assert [run.users for run in found.runs] == [8, 16]
    assert [run.prompt_tokens for run in found.runs] == [1024, 512]
    assert [run.label for run in found.runs] == ["entry 0", "entry 1"]


def test_a_benchmark_without_a_limit_of_users(tmp_path):
    """Users follow from Little's law; a TTFT of requests sent at once is a queue."""
    burst = {**VLLM, "max_concurrency": None}
    found = read(tmp_path, burst)
    (run,) = found.runs
    assert run.users == pytest.approx(2.0 * (0.1909 + 127 * 7.9381e-3))
    assert run.ttft_s is None
    assert "all requests were sent at once" in found.left_out[0]
    (run,) = read(tmp_path, {**burst, "request_rate": 2.0}).runs
    assert run.ttft_s == pytest.approx(0.1909)


def test_llama_bench(tmp_path):
    """A prompt is timed whole, generated tokens one by one behind `n_depth` tokens."""
    generated = {**LLAMA, "n_prompt": 0, "n_gen": 128, "n_depth": 1024, "avg_ns": 1068078400}
    both = {**LLAMA, "n_gen": 128}
    found = read(tmp_path, [LLAMA, generated, both])
    prompt, decode = found.runs
    assert found.format == "llama-bench"
    assert (prompt.prompt_tokens, prompt.output_tokens, prompt.users) == (512, 1, 1)
    assert (prompt.ttft_s, prompt.tpot_s, prompt.chunk_tokens) == (0.07213564, None, 512)
    assert (decode.prompt_tokens, decode.cached_tokens, decode.output_tokens) == (0, 1024, 129)
    assert (decode.ttft_s, decode.tpot_s) == (None, pytest.approx(1.0680784 / 128))
    assert found.left_out == (
        "entry 2: a test of prompt and generation together, whose parts are not known",
    )
    lines = "\n".join(json.dumps(each) for each in (LLAMA, generated))
    assert read(tmp_path, lines, "bench.jsonl").runs == found.runs


def test_genai_perf(tmp_path):
    """Averages, in the unit that the file states; users of `--concurrency`."""
    found = read(tmp_path, GENAI)
    (run,) = found.runs
    assert (found.format, found.model, run.users) == ("genai-perf", "ensemble", 100)
    assert (run.prompt_tokens, run.output_tokens) == (200.85, 2565.855)
    assert run.ttft_s == pytest.approx(0.1846378)
    assert run.tpot_s == pytest.approx(2.17673e-3)
    older = {
        **{key: value for key, value in GENAI.items() if "sequence" not in key},
        "num_input_token": statistics("tokens", "200.85"),
        "num_output_token": statistics("tokens", "2565.855"),
        "time_to_first_token": statistics("ns", "184637800"),
        "inter_token_latency": statistics("ns", "2176730"),
        "input_config": {"perf_analyzer": {"stimulus": {"concurrency": 100}}},
    }
    (again,) = read(tmp_path, older).runs
    assert again.ttft_s == pytest.approx(run.ttft_s)
    assert (again.prompt_tokens, again.users) == (200.85, 100)


def test_genai_perf_without_streaming_or_concurrency(tmp_path):
    """Without streaming, the first token comes with the last: its time says nothing."""
    whole = {key: value for key, value in GENAI.items() if key != "inter_token_latency"}
    found = read(tmp_path, {**whole, "input_config": {"streaming": False}})
    (run,) = found.runs
    assert run.ttft_s is None
    assert run.tpot_s == pytest.approx(5.76743 / 2565.855)
    assert run.users == pytest.approx(17.2225 * 5.76743)
    assert len(found.left_out) == 2


def test_genai_perf_csv(tmp_path):
    """Thousands are separated by commas; users follow from Little's law."""
    found = read(tmp_path, GENAI_CSV, "profile_export_genai_perf.csv")
    (run,) = found.runs
    assert (run.prompt_tokens, run.output_tokens) == (3000.05, 174.45)
    assert (run.ttft_s, run.tpot_s) == (pytest.approx(1.14631), pytest.approx(0.03035))
    assert run.users == pytest.approx(6.4062 * 1.5)


def test_a_table_of_ones_own(tmp_path):
    """Rows are selected by columns; a time that is not given is not used."""
    found = read(tmp_path, TABLE, "runs.csv", where={"gpu": "h100"})
    assert [run.ttft_s for run in found.runs] == [pytest.approx(0.190898), None, 0.1]
    assert [run.tpot_s for run in found.runs] == [pytest.approx(0.0079381), 0.0097741, None]
    assert {run.tensor_parallel for run in found.runs} == {2}
    assert found.model == "llama-3.1-8b"
    assert [run.label for run in found.runs] == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (TABLE, "r.csv", "gpu must be the same in all runs, got h100, l4; select some"),
        (TABLE.replace("tpot_ms", "tpot"), "r.csv", "column 'tpot_ms' is missing"),
        (ONE.replace("8,190", "-8,190"), "r.csv", "line 2: concurrency must be a positive nu"),
        (
            ONE.replace("8b,2,", "8b,1.5,"),
            "r.csv",
            "line 2: tensor_parallel must be a whole number",
        ),
        (ONE.replace(",7.9381", ""), "r.csv", "line 2: must have as many cells as"),
        (TABLE.splitlines()[0], "r.csv", "at least one run that says something: the file is"),
        ({"a": 1}, "r.json", "must be a result of vllm bench serve, llama-bench -o json or"),
        ([], "r.json", "must hold objects, got"),
        ("{", "r.json", "truncated JSON"),
        ({**VLLM, "completed": 0}, "r.json", "says something: entry 0: no request was comp"),
        ({**VLLM, "mean_tpot_ms": "fast"}, "r.json", "mean_tpot_ms must be a number of at"),
        ({**VLLM, "total_input_tokens": None}, "r.json", "key 'total_input_tokens' is missing"),
        ([{**LLAMA, "avg_ns": 0}], "r.json", "entry 0: avg_ns must be a positive number, got"),
        (
            {**GENAI, "input_sequence_length": {}},
            "r.json",
            "'input_sequence_length' is missing",
        ),
        (
            GENAI_CSV.replace("Request T", "T"),
            "r.csv",
            "'Request Throughput .per sec.' is miss",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, name, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, content, name)


def test_rows_of_no_table_cannot_be_selected(tmp_path):
    with pytest.raises(ValueError, match="only rows of a CSV can be selected"):
        read(tmp_path, VLLM, where={"gpu": "h100"})
    with pytest.raises(ValueError, match=r"unknown column of .*; did you mean gpu"):
        read(tmp_path, TABLE, "r.csv", where={"gp": "h100"})
    with pytest.raises(ValueError, match="no row has"):
        read(tmp_path, TABLE, "r.csv", where={"gpu": "b200"})


@pytest.mark.parametrize(
    ("model_type", "name", "weights"),
    [
        ("llama 8B Q4_K - Medium", "x.gguf", "q4_k_m"),
        ("qwen2 7B Q5_K - Medium", "a-Q4_0.gguf", "q5_k_m"),  # the type, not the name
        ("llama 8B F16", "x.gguf", "fp16"),
        ("llama 8B Q8_0", "x.gguf", "q8_0"),
        ("llama 8B Q6_K", "x.gguf", "Q6_K"),  # in no table
        ("llama 8B Q4_K - Small", "x.gguf", "Q4_K - Small"),
        ("", "/m/Meta-Llama-3-8B-Q4_K_M.gguf", "q4_k_m"),
        ("", "m/Llama-3-8B.IQ2_XS.gguf", "iq2_xs"),
        ("llama 8B", "llama-3-8b.gguf", None),
    ],
)
def test_llama_bench_names_the_format_of_weights(tmp_path, model_type, name, weights):
    """They were taken as fp16, and 2119 GB/s were fitted for a card of 936."""
    found = read(tmp_path, [{**LLAMA, "model_type": model_type, "model_filename": name}])
    assert found.weights == weights
    assert found.runs[0].weight_bytes == LLAMA["model_size"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", None), ("a/llama-3-8b-instruct-awq", "awq"),
        ("neuralmagic/Meta-Llama-3-8B-Instruct-FP8", "fp8"), ("a/Llama-3-8B-GPTQ", "gptq-int4"),
    ],
)  # fmt: skip
def test_names_of_repositories_may_have_the_format_of_weights(tmp_path, name, weights):
    assert read(tmp_path, {**VLLM, "model_id": name}).weights == weights
